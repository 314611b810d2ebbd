"""What a trace holds and what it can support, as plain values.

:func:`summarise` makes them, the command ``show`` prints them.  The keys of
:meth:`Summary.to_json` are a stable contract.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import polars as pl

from mmreplay.errors import UserError
from mmreplay.schema import TRACE_SCHEMA, DurationKind, FaultBits, FaultClass, OpKind, Quality
from mmreplay.trace.recording import ADDED_BY, has_contention_events, record_command
from mmreplay.trace.store import Header, Trace

#: Above this share of busy time unattributed, gains are refused.
UNATTRIBUTED_LIMIT: Final = 0.20
_MOST_GAPS: Final = 5
#: Losses above these shares of the events: a warning, no rates.
LOSS_WARN: Final = 0.001
LOSS_REFUSE: Final = 0.05

#: Counter of wake-ups that may have ended a wait inside a fault (importers/pairing/wakeups.py).
_UNTOLD: Final = "wakeups_without_fault_ends"
#: Counter of calls whose addresses are not recorded (importers/pairing/futex.py).
_BLIND: Final = "futex_requeues_without_addresses"
#: Events that tell of any wait who ended it; names as perf and ftrace's text have them.
_WAKINGS: Final = frozenset(
    f"{system}{name}" for system in ("sched:", "") for name in ("sched_waking", "sched_wakeup")
)
_FAULTS: Final = (int(OpKind.FAULT_USER), int(OpKind.FAULT_KERNEL))
_MODES: Final = {int(OpKind.FAULT_USER): "user", int(OpKind.FAULT_KERNEL): "kernel"}
_TIMES: Final = {
    "think_cpu": "think_cpu_ns",
    "think_blocked": "think_blocked_ns",
    "service": "service_ns",
    "wait": "wait_ns",
    "io": "io_ns",
    "preempted": "preempted_ns",
    "unattributed": "unattributed_ns",
}
_BUSY: Final = ("think_cpu", "service", "wait", "io", "unattributed")


@dataclass(frozen=True)
class KindRow:
    """Operations of one kind: how many, how many with a duration, and their time."""

    kind: str
    count: int
    timed: int
    service_ns: int | None
    wait_ns: int | None
    io_ns: int | None


@dataclass(frozen=True)
class FaultRow:
    """Faults of one mode (user, kernel) and class (minor, major, failed, unknown)."""

    mode: str
    fault_class: str
    count: int
    write: int


@dataclass(frozen=True)
class GroupRow:
    """One thread group: threads whose command names differ in digits only."""

    group: str
    threads: int
    processes: int
    operations: int
    faults: int
    writers: int


@dataclass(frozen=True)
class Dependencies:
    """Blocked time between operations, by whether a thread of the trace ended it."""

    waits: int
    waited_ns: int  # off the CPU until another thread woke it, and back on one
    think_ns: int | None  # the rest: nobody in the trace ended it; null: blocked time unknown


@dataclass(frozen=True)
class GapRow:
    """A span in which events of one CPU (-1: of any) were lost."""

    cpu: int
    begin_ns: int
    end_ns: int
    lost: int


@dataclass(frozen=True)
class Missing:
    """Something the trace cannot support, and the recording that would add it."""

    capability: str
    consequence: str
    added_by: str
    command: str


@dataclass(frozen=True)
class Summary:
    """See the module docstring."""

    header: Header
    threads: int
    processes: int
    address_spaces: int
    operations: int
    kinds: list[KindRow]
    faults: list[FaultRow]
    groups: list[GroupRow]
    vmas: dict[str, int]
    time_ns: dict[str, int | None]
    attributed_ratio: float | None
    dependencies: Dependencies
    gaps: int
    gap_ns: int
    largest_gaps: list[GapRow]
    supports: list[str]
    missing: list[Missing]
    warnings: list[str]
    recorded_events: int = field(default=0)
    #: What the probes' own cost took off durations and think times, in ns (None: the trace does
    #: not keep the raw ones), and how many operations it cannot be right for.
    correction: dict[str, int | None] = field(default_factory=dict)

    @property
    def lost_ratio(self) -> float:
        """Lost events as a share of all that happened."""
        lost = self.header.lost_events
        total = lost + self.recorded_events
        return lost / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """The object that ``mmreplay show --format json`` prints."""
        header = self.header
        return {
            "schema": TRACE_SCHEMA,
            "span_ns": header.span_ns,
            "kernel_release": header.kernel_release,
            "machine": asdict(header.machine),
            "source": asdict(header.source),
            "clock": asdict(header.clock),
            "target": header.target,
            "processes": self.processes,
            "threads": self.threads,
            "address_spaces": self.address_spaces,
            "operations": self.operations,
            "ops_by_kind": {row.kind: row.count for row in self.kinds},
            "kinds": [asdict(row) for row in self.kinds],
            "faults": [asdict(row) for row in self.faults],
            "groups": [asdict(row) for row in self.groups],
            "vmas_by_source": self.vmas,
            "events_by_name": {event.name: event.samples for event in header.events},
            "lost_events": header.lost_events,
            "lost_by_name": {event.name: event.lost for event in header.events if event.lost},
            "gaps": self.gaps,
            "gap_ns": self.gap_ns,
            "largest_gaps": [asdict(row) for row in self.largest_gaps],
            "counters": header.counters,
            "time_ns": self.time_ns,
            "attributed_ratio": self.attributed_ratio,
            "dependencies": asdict(self.dependencies),
            "probe": asdict(header.probe) | self.correction,
            "capabilities": asdict(header.capabilities),
            "supports": self.supports,
            "missing": [asdict(row) for row in self.missing],
            "warnings": self.warnings,
        }


def require_usable(trace: Trace) -> None:
    """Raise a :class:`UserError` for a trace that nothing can be said about.

    That is one without threads, or without any operation: the command names the
    recording that would have them.
    """
    where = str(trace.path or "trace")
    command = " ".join(record_command(trace.header))
    if trace.collect(trace.threads.select(pl.len())).item() == 0:
        raise UserError(
            "the trace has no threads: nothing was recorded",
            where=where,
            fix=f"record while the program runs: {command}",
        )
    if trace.collect(trace.operations.select(pl.len())).item() == 0:
        raise UserError(
            "the trace has no page fault and no memory-map call",
            where=where,
            fix=f"record them: {command}",
        )


def _kind_name(kind: int) -> str:
    return OpKind(kind).name.lower()


def summarise(trace: Trace) -> Summary:
    """Everything :class:`Summary` has, in a few streaming queries.

    Raises
    ------
    UserError
        A table cannot be read.
    """
    kinds = _kinds(trace)
    time_ns = _times(trace)
    missing = missing_capabilities(trace.header)
    names = [_kind_name(kind) for kind in _FAULTS]
    if not trace.header.generated and not any(row.kind in names for row in kinds):
        words = " ".join(record_command(trace.header))
        happened, added = "page faults", ADDED_BY["faults"]
        if trace.header.capabilities.fault_duration != "none":  # they were asked for
            happened, added = "page fault happened", "a time in which the program takes memory"
        lack = f"no {happened}: what waits for what beside the calls is unknown, and so are gains"
        missing = [
            Missing("faults", lack, added, words),
            *(row for row in missing if row.capability != "fault_duration"),
        ]
    tasks = trace.collect(
        trace.threads.select(
            threads=pl.len(), processes=pl.col("pid").n_unique(), first=pl.col("pid").min()
        )
    ).row(0, named=True)
    gaps = trace.collect(
        trace.gaps.select(count=pl.len(), ns=(pl.col("end_ns") - pl.col("begin_ns")).sum())
    ).row(0, named=True)
    recorded = sum(event.samples for event in trace.header.events)
    summary = Summary(
        header=trace.header,
        threads=int(tasks["threads"]),
        processes=int(tasks["processes"]),
        address_spaces=_address_spaces(trace),
        operations=sum(row.count for row in kinds),
        kinds=kinds,
        faults=_faults(trace),
        groups=_groups(trace),
        vmas=_vmas(trace),
        time_ns=time_ns,
        attributed_ratio=_attributed(time_ns),
        dependencies=_dependencies(trace, time_ns["think_blocked"]),
        gaps=int(gaps["count"]),
        gap_ns=int(gaps["ns"] or 0),
        largest_gaps=_largest_gaps(trace),
        supports=supported(trace.header),
        missing=missing,
        warnings=[],
        recorded_events=recorded,
        correction=_correction(trace),
    )
    summary.warnings.extend(_warnings(summary))
    return summary


def _kinds(trace: Trace) -> list[KindRow]:
    timed = pl.col("duration_kind").is_in([int(DurationKind.MEASURED), int(DurationKind.ESTIMATED)])
    rows = trace.collect(
        trace.operations.group_by("kind")
        .agg(
            count=pl.col("weight").cast(pl.Int64).sum(),
            timed=timed.sum(),
            **{name: _known_sum(name) for name in ("service_ns", "wait_ns", "io_ns")},
        )
        .sort("count", "kind", descending=[True, False])
    )
    return [
        KindRow(
            kind=_kind_name(row["kind"]),
            count=int(row["count"]),
            timed=int(row["timed"]),
            service_ns=row["service_ns"],
            wait_ns=row["wait_ns"],
            io_ns=row["io_ns"],
        )
        for row in rows.iter_rows(named=True)
    ]


def _correction(trace: Trace) -> dict[str, int | None]:
    """How much of the recorded times was taken for the probes' own."""
    off = pl.col("duration_ns") - pl.col("duration_corrected_ns")
    think = pl.col("think_raw_ns") - pl.col("think_cpu_ns")
    raw = pl.col("duration_ns").filter(pl.col("duration_corrected_ns").is_not_null())
    waking_ns = trace.header.counters.get("timesplit_waking_ns", 0)
    row = trace.collect(
        trace.operations.select(
            duration_removed_ns=pl.when(off.count() > 0).then(off.sum()),
            duration_raw_ns=pl.when(off.count() > 0).then(raw.sum()),
            think_removed_ns=pl.when(think.count() > 0).then(think.sum() - waking_ns),
            think_raw_ns=_known_sum("think_raw_ns"),
            contended_operations=((pl.col("quality") & int(Quality.CONTENDED)) != 0).sum(),
        )
    )
    return row.row(0, named=True)


def _known_sum(column: str) -> pl.Expr:
    """Sum of a column; null where no row knows it (a sum of nothing is not 0)."""
    return pl.when(pl.col(column).count() > 0).then(pl.col(column).sum())


def _times(trace: Trace) -> dict[str, int | None]:
    inside = trace.collect(
        trace.operations.select(
            pl.len().alias("rows"), **{key: _known_sum(column) for key, column in _TIMES.items()}
        )
    ).row(0, named=True)
    tails = trace.collect(
        trace.threads.select(
            think_cpu=pl.col("tail_cpu_ns").sum(), think_blocked=pl.col("tail_blocked_ns").sum()
        )
    ).row(0, named=True)
    times: dict[str, int | None] = {}
    for key in _TIMES:
        value = inside[key]
        tail = int(tails.get(key) or 0)
        times[key] = int(value) + tail if value is not None else (tail or None)
    woken_ns = trace.header.counters.get("timesplit_waking_ns", 0)  # in no row: rule 8
    if times["wait"] is not None:
        times["wait"] += woken_ns
    # Time that was split leaves nothing unattributed, also where no row says so.
    if times["unattributed"] is None and any(times[key] is not None for key in _BUSY):
        times["unattributed"] = 0
    return times


def _dependencies(trace: Trace, blocked_ns: int | None) -> Dependencies:
    found = trace.collect(
        trace.wakeups.select(waits=pl.len(), ns=(pl.col("on_ns") - pl.col("off_ns")).sum())
    ).row(0, named=True)
    waited_ns = int(found["ns"] or 0)
    left_ns = None if blocked_ns is None else max(0, blocked_ns - waited_ns)
    return Dependencies(int(found["waits"]), waited_ns, left_ns)


def _largest_gaps(trace: Trace) -> list[GapRow]:
    rows = trace.collect(
        trace.gaps.with_columns(cpu=pl.col("ring").fill_null(-1))
        .sort("lost", "begin_ns", descending=[True, False], nulls_last=True)
        .head(_MOST_GAPS)
        .sort("begin_ns")
        .select("cpu", "begin_ns", "end_ns", pl.col("lost").fill_null(0))
    )
    return [GapRow(**row) for row in rows.iter_rows(named=True)]


def _attributed(time_ns: dict[str, int | None]) -> float | None:
    busy = sum(time_ns[key] or 0 for key in _BUSY)
    return 1.0 - (time_ns["unattributed"] or 0) / busy if busy else None


def _faults(trace: Trace) -> list[FaultRow]:
    write = (pl.col("fault_bits").fill_null(0) & int(FaultBits.WRITE)) != 0
    weight = pl.col("weight").cast(pl.Int64)
    rows = trace.collect(
        trace.operations.filter(pl.col("kind").is_in(_FAULTS))
        .group_by("kind", "fault_class")
        .agg(count=weight.sum(), write=weight.filter(write).sum())
        .sort("kind", "fault_class")
    )
    return [
        FaultRow(_MODES[kind], FaultClass(fault_class).name.lower(), int(count), int(written))
        for kind, fault_class, count, written in rows.iter_rows()
    ]


def _groups(trace: Trace) -> list[GroupRow]:
    weight = pl.col("weight").cast(pl.Int64)
    fault = pl.col("kind").is_in(_FAULTS)
    changes = pl.col("kind").is_in(
        [
            int(kind)
            for kind in (OpKind.MMAP, OpKind.MUNMAP, OpKind.MPROTECT, OpKind.BRK, OpKind.MREMAP)
        ]
    )
    by_thread = trace.operations.group_by("tid").agg(
        operations=weight.sum(),
        faults=weight.filter(fault).sum(),
        writers=weight.filter(changes).sum(),
    )
    # A reused tid has several rows of threads; its operations are counted once.
    members = trace.threads.group_by("tid", maintain_order=True).agg(
        pl.col("group").last(), pl.col("pid").last(), rows=pl.len()
    )
    rows = trace.collect(
        members.join(by_thread, on="tid", how="left")
        .group_by("group")
        .agg(
            threads=pl.col("rows").sum(),
            processes=pl.col("pid").n_unique(),
            operations=pl.col("operations").sum(),
            faults=pl.col("faults").sum(),
            writers=pl.col("writers").sum(),
        )
        .sort("operations", "group", descending=[True, False])
    )
    return [GroupRow(**row) for row in rows.iter_rows(named=True)]


def _address_spaces(trace: Trace) -> int:
    parts = [
        trace.table(name).select("address_space").unique()
        for name in ("operations", "threads", "vmas")
    ]
    return int(trace.collect(pl.concat(parts).unique().select(pl.len())).item())


def _vmas(trace: Trace) -> dict[str, int]:
    rows = trace.collect(trace.vmas.group_by("source").agg(pl.len()).sort("source"))
    return {str(source): int(count) for source, count in rows.iter_rows()}


# -- what it can support ------------------------------------------------------------------


def supported(header: Header) -> list[str]:
    """What the capabilities allow, one short line each."""
    has = header.capabilities
    lines = [
        (has.fault_duration == "measured", "waits of page faults (both ends recorded)"),
        (has.syscall_durations, "waits of memory-map calls (both ends recorded)"),
        (has.think == "oncpu", "think time on CPU, blocked and preempted time apart"),
        (has.lock_spans, "recorded lock waits (contention spans)"),
        (has.kernel_faults, "faults in kernel mode"),
        (has.data_mmaps or has.snapshot, "the address space as it was at the start"),
        (
            has.wakeups and not header.counters.get(_UNTOLD),
            "dependencies between threads (wake-ups)",
        ),
    ]
    return [text for ok, text in lines if ok]


def missing_capabilities(header: Header) -> list[Missing]:
    """What the recording lacks, in order of weight, each with the command that adds it."""
    if header.generated:
        return []
    has = header.capabilities
    known: Iterable[tuple[bool, str, str]] = (
        (has.sampling, "sampling", "events were sampled: counts are estimates, no durations"),
        (
            has.fault_duration == "upper",
            "fault_duration",
            "fault durations are upper bounds: waits cannot be told from think time",
        ),
        (
            has.fault_duration == "none",
            "fault_duration",
            "no fault durations: waits of faults are unknown",
        ),
        (
            not has.syscall_durations,
            "syscall_durations",
            "no durations of mmap, munmap, ...: waits of writers are unknown",
        ),
        (
            not has.switches,
            "switches",
            "no context switches: think time is wall time, blocked time is hidden in it",
        ),
        (
            not has.lock_spans and has_contention_events(header.kernel_release),
            "lock_spans",
            "no contention spans: short waits and spinning are only estimated",
        ),
        (not has.kernel_faults, "kernel_faults", "faults in kernel mode were not recorded"),
        (
            not has.data_mmaps and not has.snapshot and header.target in ("pids", "all"),
            "data_mmaps",
            "mappings made before the recording are unknown",
        ),
        (
            not has.wakeups,
            "wakeups",
            "no wake-ups: waits for other threads stay think time, so gains through waiting "
            "threads are a lower bound, and scaling out is an upper bound",
        ),
        (
            has.wakeups and _futexes_only(header),
            "wakeups",
            "wake-ups are told by futex calls only: waits for pipes, sockets, eventfd, epoll, "
            "signals and other processes stay think time",
        ),
        (
            has.wakeups and bool(header.counters.get(_BLIND)),
            "wakeups",
            f"{header.counters.get(_BLIND, 0):,} calls of futex_requeue, whose addresses lie in "
            "memory and are not recorded: waits that they ended or moved stay think time",
        ),
        (
            has.wakeups and bool(header.counters.get(_UNTOLD)),
            "wakeups",
            "wake-ups beside faults without ends: waits for other threads cannot be told from "
            "waits inside faults, and stay think time",
        ),
    )
    rows = []
    for lacks, capability, consequence in known:
        if lacks:
            words = record_command(header, wakeups=capability == "wakeups")
            rows.append(Missing(capability, consequence, ADDED_BY[capability], " ".join(words)))
    return rows


def _futexes_only(header: Header) -> bool:
    """Whether it was calls that told who woke whom, not the scheduler."""
    names = {event.name for event in header.events}
    calls = any("futex" in name or name.startswith("raw_syscalls") for name in names)
    return calls and names.isdisjoint(_WAKINGS)


def _warnings(summary: Summary) -> list[str]:
    lines = list(summary.header.warnings)
    ratio = summary.lost_ratio
    if ratio > LOSS_REFUSE:
        lines.append(
            f"more than {LOSS_REFUSE:.0%} of the events were lost: rates are not to be trusted, "
            "and predictions are refused"
        )
    elif ratio > LOSS_WARN and not any("were lost" in line for line in lines):
        lines.append(f"{ratio:.2%} of the events were lost; record with a larger ring (-m)")
    attributed = summary.attributed_ratio
    if attributed is not None and attributed < 1 - UNATTRIBUTED_LIMIT:
        lines.append(
            f"{1 - attributed:.0%} of busy time could not be attributed "
            f"(limit {UNATTRIBUTED_LIMIT:.0%}): gains will be refused"
        )
    if summary.threads == 1:
        lines.append("one thread only: nothing can wait for mmap_lock in this trace")
    return lines
