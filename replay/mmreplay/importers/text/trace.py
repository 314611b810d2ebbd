"""Text -> trace directory: drives scanning, pairing and writing; the header."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from mmreplay import __version__
from mmreplay.errors import UserError
from mmreplay.importers import snapshot
from mmreplay.importers.drive import finish_all, pair_all
from mmreplay.importers.names import FileName
from mmreplay.importers.options import Options
from mmreplay.importers.output.assemble import DEFAULT_PROBE_NS, NO_COMPAT, Assembler
from mmreplay.importers.pairing import state as ps
from mmreplay.importers.pairing import wakeups as pair_wakeups
from mmreplay.importers.selection import Selection
from mmreplay.importers.syscalls import C_FUTEX, CALLS, offsets_in_bytes
from mmreplay.importers.text import rows as tr
from mmreplay.importers.text import source
from mmreplay.importers.twice import Twice
from mmreplay.trace.header import (
    Capabilities,
    Clock,
    Event,
    Header,
    Machine,
    Probe,
    Source,
    plain_release,
)
from mmreplay.trace.store import Trace
from mmreplay.trace.writer import TraceWriter

#: Above this share of lost events the trace says so.
_WARN_LOST: Final = 0.001
#: How a text names the calls that tell who waits for whom: perf and ftrace, strace.
_FUTEX: Final = frozenset(
    (
        "raw_syscalls:sys_enter",
        *(
            name
            for call in CALLS[C_FUTEX:]
            for name in (f"syscalls:sys_enter_{call.name}", call.name)
        ),
    )
)
#: Names of threads that belong to no process: the machine was recorded, if a busy one.
_KERNEL_THREADS: Final = ("kworker/", "ksoftirqd/", "migration/", "rcu_", "kswapd")
#: Nor does who records, and is itself recorded, belong to the program.
_RECORDERS: Final = frozenset(("trace-cmd", "perf"))
#: Above this share of times that go back the text is not in order of time at all.
_MOST_LATE: Final = 0.10


@dataclass(slots=True)
class Dialect:
    """What a text holds, and how it says it."""

    format: str
    scan: source.Scan
    fault_starts: bool
    fault_ends: bool
    enters: bool
    exits: bool
    switches: bool
    contention: bool
    #: Whether the scheduler's wake-ups are in it.
    wakings: bool
    #: Of the events, by name, when all is read.
    samples: Any
    names: list[FileName] = field(default_factory=list)
    #: Whether lines come in order of time.
    ordered: bool = True
    kernel_faults: bool = False
    data_mmaps: bool = False
    #: Whether events were sampled instead of counted: then nothing pairs.
    sampled: bool = False
    compat_visible: bool = False
    clock: str = "unknown"
    resolution_ns: int = 1
    #: What to do about a coarse one, as the end of a sentence.
    finer: str = ""
    target: Any = "unknown"
    #: Whether it is known that only one process was recorded.
    one_process: bool = False
    #: Of how many threads the process need not be told: there is only one that it can be.
    guessable: int = 1
    tell_process: str = "print it: perf script -F +pid, or the tracefs option record-tgid"
    #: For each event so far what it tells, where events may tell the same twice.
    told_twice: Callable[[], list[int | None]] | None = None
    #: The events so far whose offset is in pages.
    paged: Callable[[], list[int]] | None = None
    probe: tuple[int, str] | None = None
    facts: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def import_text(
    file: source.TextFile, dialect: Dialect, out: Path, options: Options, progress: Any = None
) -> Trace:
    """Import an opened text.

    Raises
    ------
    UserError
        The text or the output is not what it must be; nothing is left behind.
    """
    calls = np.ones(len(CALLS), np.uint8)
    config = ps.Config(
        dialect.fault_starts,
        dialect.fault_ends,
        not dialect.sampled,
        calls * np.uint8(dialect.enters),
        calls * np.uint8(dialect.exits),
        dialect.switches,
        dialect.contention,
        dialect.wakings,
    )
    selection = Selection(options, None, str(file.path))
    twice = Twice(least=1)
    with TraceWriter(out, options.force) as writer:
        tables = Assembler(
            writer,
            switches=config.switches,
            contention=dialect.contention,
            bounded=config.fault_starts and not config.fault_ends,
        )
        tables.names = dialect.names
        tables.probe = dialect.probe or options.event_cost
        tables.more_vmas = options.snapshot is not None
        try:
            state = tables.start(config)
            pair_all(state, tables, _once(file, dialect, twice, progress), selection)
            _check(file, dialect, not selection and not state.count[ps.C_OPS])
            report = finish_all(state, tables)
        except BaseException:
            tables.abandon()
            raise
        selection.check(tables.operations)
        told: list[str] = []
        if options.snapshot is not None:
            told = snapshot.add(options.snapshot, writer, state, options.process)
        file.x[tr.X_T0] += selection.begin_ns
        header = _header(file, dialect, state, tables)
        header.counters = header.counters | report
        if twice.count:
            header.counters["events_told_twice"] = twice.count
            header.warnings.append(
                f"{twice.count:,} faults were told by two events; they count once"
            )
        header.capabilities.snapshot = options.snapshot is not None
        header.warnings += told
        if selection:
            header.warnings.append(selection.told())
        return writer.close(header)


def _once(
    file: source.TextFile, dialect: Dialect, twice: Twice, progress: Any
) -> Generator[tuple[Any, int], None, None]:
    """The text's batches without what was told twice, offsets in bytes."""
    for batch, rows in source.batches(file, dialect.scan, progress):
        if dialect.paged is not None:
            offsets_in_bytes(batch, rows, dialect.paged())
        if dialect.told_twice is not None:
            twice.know(dialect.told_twice())
            twice.leave_out(batch, rows)
        yield batch, rows


def _check(file: source.TextFile, dialect: Dialect, empty: bool) -> None:
    """Raise a :class:`UserError` for a text that nothing can be made of.

    ``empty``: no operation came of it.
    """
    where, x = str(file.path), file.x
    if x[tr.X_LINES] == 0:
        raise UserError(
            "no line of it is an event",
            where=where,
            fix="give the output of perf script, trace-cmd report or strace -f, unchanged",
        )
    if 2 * x[tr.X_UNREAD] > x[tr.X_LINES]:
        raise UserError(
            f"of {x[tr.X_UNREAD]:,} of {x[tr.X_LINES]:,} events it does not hold the arguments",
            where=where,
            fix="print them (perf script -F +trace,+addr), or import the recording itself",
        )
    if empty:
        raise UserError(
            "no line of it tells of a page fault or a memory-map call",
            where=where,
            fix="print all fields of the events (perf script --ns -F +pid,+addr), or record the "
            "default set: mmreplay record",
        )
    groups = _guessed(file)
    others = any(name.startswith(_KERNEL_THREADS) or name in _RECORDERS for name in groups)
    if (x[tr.X_IDLE] or others) and not dialect.one_process and len(groups) > 1:
        raise UserError(
            f"the whole machine was recorded, and of {x[tr.X_GUESSED]} threads "
            f"({', '.join(groups[:4])}) "
            "it does not say to which process they belong",
            where=where,
            fix=dialect.tell_process,
        )
    back = file.inversions if dialect.ordered else file.late
    if back > _MOST_LATE * x[tr.X_LINES]:
        raise UserError(
            f"times go back {back:,} times in {x[tr.X_LINES]:,} lines: the text is not in order of "
            "time, or its times are differences",
            where=where,
            fix="print it without --deltatime (strace: with -ttt, not -r)",
        )


def _guessed(file: source.TextFile) -> list[str]:
    """Groups of threads whose process was guessed: names without digits."""
    rows = file.threads[(file.threads[:, tr.K_TID] != 0) & (file.threads[:, tr.K_GUESSED] != 0)]
    names = (row[[tr.K_COMM0, tr.K_COMM1]].tobytes() for row in rows)
    groups = {re.sub(rb"\d+", b"", name.rstrip(b"\0")) for name in names}
    return sorted(name.decode("utf-8", "replace") for name in groups)


def _header(file: source.TextFile, dialect: Dialect, state: ps.State, tables: Assembler) -> Header:
    x, count, facts = file.x, state.count, dialect.facts
    probe = tables.probe or (DEFAULT_PROBE_NS, "default")
    samples = dialect.samples()
    header = Header(
        t0_ns=max(0, int(x[tr.X_T0])),
        clock=Clock(name=dialect.clock, resolution_ns=dialect.resolution_ns),
        kernel_release=plain_release(facts.get("os release", "")),
        machine=Machine(
            cpu_model=facts.get("cpudesc") or None,
            cpu_id=facts.get("cpuid") or None,
            cpus_online=_number(facts.get("nrcpus online")),
            cpus_available=_number(facts.get("nrcpus avail")),
            memory_kib=_number(facts.get("total memory")),
        ),
        source=Source(
            format=dialect.format,
            size_bytes=file.size_bytes,
            tool_version=facts.get("perf version") or facts.get("tool version") or None,
        ),
        events=[Event(name=name, samples=number) for name, number in samples.items()],
        lost_events=int(x[tr.X_LOST]),
        probe=Probe(cost_ns=probe[0], method=probe[1]),
        span_ns=int(count[ps.C_LAST_NS]),
        importer_version=__version__,
    )
    header.target = dialect.target
    both = dialect.enters and dialect.exits
    duration: Any = "none"
    if dialect.fault_starts and not dialect.sampled:
        duration = "measured" if dialect.fault_ends else "upper"
    header.capabilities = Capabilities(
        fault_duration=duration,
        syscall_durations=both and not dialect.sampled,
        think="oncpu" if dialect.switches else "wall",
        switches=dialect.switches,
        data_mmaps=dialect.data_mmaps,
        kernel_faults=dialect.kernel_faults,
        compat_visible=dialect.compat_visible,
        lock_spans=dialect.contention,
        sampling=dialect.sampled,
        wakeups=dialect.wakings or (both and not _FUTEX.isdisjoint(samples)),
    )
    header.counters = _counters(file, state, tables)
    header.warnings = [*dialect.warnings, *_warnings(file, dialect, header)]
    return header


def _number(text: str | None) -> int | None:
    digits = (text or "").split()[:1]
    return int(digits[0]) if digits and digits[0].isdigit() and int(digits[0]) > 0 else None


def _counters(file: source.TextFile, state: ps.State, tables: Assembler) -> dict[str, int]:
    count, x = state.count, file.x
    values = {
        "lines_of_events": x[tr.X_LINES],
        "other_lines": x[tr.X_SKIPPED],
        "unread_lines": x[tr.X_UNREAD],
        "addresses_printed_as_symbols": x[tr.X_SYMBOLS],
        "threads_of_guessed_processes": x[tr.X_GUESSED],
        "calls_without_duration": x[tr.X_NO_DURATION],
        "late_events": file.late,
        "begin_unseen": count[ps.C_BEGIN_UNSEEN],
        "end_unseen": count[ps.C_END_UNSEEN],
        "faults_without_end": count[ps.C_FAILED],
        "threads_after_gap": count[ps.C_GAP_EVENTS],
        "bad_thread_ids": count[ps.C_BAD_THREAD],
        "events_of_dead_threads": count[ps.C_DEAD_EVENT],
        "unmatched_lock_events": count[ps.C_UNMATCHED_LOCK],
        "failed_trylocks": count[ps.C_TRYLOCK_FAILED],
        "compat32_operations": tables.compat,
        **pair_wakeups.counters(count),
    }
    return {name: int(value) for name, value in values.items() if value}


def _warnings(file: source.TextFile, dialect: Dialect, header: Header) -> list[str]:
    x = file.x
    found = []
    if dialect.sampled:
        found.append(
            "events were sampled, so nothing pairs; count every event (-c 1, not -F or a larger -c)"
        )
    if dialect.resolution_ns > 1:
        found.append(
            f"times have a resolution of {dialect.resolution_ns:,} ns: short operations seem to "
            f"take none or twice as long{dialect.finer}"
        )
    if x[tr.X_GUESSED] > dialect.guessable and not dialect.one_process:
        found.append(
            f"it is not said to which process {x[tr.X_GUESSED]} threads belong: they are "
            f"taken for one process; {dialect.tell_process}"
        )
    if x[tr.X_UNREAD]:
        found.append(f"{x[tr.X_UNREAD]:,} lines could not be read and were left out")
    if header.counters.get("wakeups_of_unknown_context"):
        found.append(
            "the text does not tell which wake-ups came from interrupts: one that interrupted a "
            "thread counts as that thread's; import the perf.data itself"
        )
    if header.counters.get("compat32_operations") and not dialect.compat_visible:
        found.append(NO_COMPAT)
    total = int(x[tr.X_LINES]) + header.lost_events
    if header.lost_events > _WARN_LOST * total:
        share = 100 * header.lost_events / total
        found.append(f"{header.lost_events} events ({share:.1f} %) were lost")
    if dialect.enters and not dialect.exits:
        found.append(
            "returns of calls were not recorded: no durations, results or mapped addresses"
        )
    if not dialect.fault_starts and not dialect.fault_ends:
        found.append("no page faults were recorded")
    return found
