"""``perf script`` output and ftrace text (trace-cmd report, systrace): what it holds, by a look."""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.errors import UserError
from mmreplay.importers import events as ev
from mmreplay.importers.options import Options
from mmreplay.importers.syscalls import number_tables
from mmreplay.importers.text import rows as tr
from mmreplay.importers.text import source
from mmreplay.importers.text.names import Names
from mmreplay.importers.text.records import R_COMM, R_FORK, R_SWITCH
from mmreplay.importers.text.scan import ADDRESS_FIRST, ADDRESS_OF_START, scan
from mmreplay.importers.text.trace import Dialect, import_text
from mmreplay.trace.store import Trace

#: ``COMM-TID (TGID) [CPU] FLAGS TIME: EVENT:`` (trace-cmd report -l: ``COMM-TID CPUFLAGS TIME:``)
#: and ``COMM PID/TID [CPU] TIME: PERIOD EVENT:``.
_FTRACE: Final = re.compile(
    rb"^ *\S.*-\d+ +(?:\( *(?:\d+|-+)\) +)?(?:\[\d+\] +(?:[^ ]{4,8} +)?|\d+[^ \d/][^ /]{3,7} +)"
    rb"\d+\.(\d+): +[^ ]+",
    re.MULTILINE,
)
#: What tracefs' ``trace`` says of its buffer.
_ENTRIES: Final = re.compile(
    rb"^# entries-in-buffer/entries-written: (\d{1,18})/(\d{1,18}) ", re.MULTILINE
)
#: Fields as they lie in memory: trace-cmd report -R, tracefs' option ``fields``, and perfetto of
#: calls, of whose arguments it prints the last one only: all have one name (its sys_enter has a
#: repeated field ``args``, and args_tracker.cc keeps one value for a name).
_RAW: Final = re.compile(
    rb"\d: +\w+: +(?:(?:__syscall_)?nr=\w+ |id=\w+ (?:\(\d+\) )?(?:args|ret)|"
    rb"address=\w+ \(|[^\n]* prev_state=[^\n]*\d\)? next_comm=)"
)
#: The name of a buffer before a line (trace-cmd report); names of threads stand behind blanks.
_BUFFER: Final = re.compile(rb"^[^\s:]+: [^\n]*?-\d+ +\[\d+\] ", re.MULTILINE)
_BUFFER_EVENT: Final = re.compile(
    rb"^(?:([^\s:]+):)? [^\n]*?-\d+ +(?:\([^\n)]*\) +)?\[\d+\][^\n:]*: +(\w+):", re.MULTILINE
)
_PERF: Final = re.compile(
    rb"^ *(?:\S.*? +)?(?:-?\d+/)?-?\d+ +(?:\[\d+\] +)?(?:[A-Z][A-Za-z]{0,3} +)?\d+\.(\d+): +"
    rb"(?:\d+ +)?[^ ]+",
    re.MULTILINE,
)
_FAULT_END: Final = re.compile(rb"\d+\.\d+: +(?:\d+ +)?m(?:in|aj)or-faults(?::\w+)?: *([^\n]*)")
#: With a callchain, whose lines a tab begins, the instruction pointer is there.
_CHAINED: Final = re.compile(
    rb"\d+\.\d+: +(?:\d+ +)?m(?:in|aj)or-faults(?::\w+)?: *[^\n]*\n\t *[0-9a-f]"
)
_EVENTS: Final = (
    rb"(?:page-faults|faults|m(?:in|aj)or-faults|exceptions:page_fault_\w+|syscalls:\w+)"
)
_PERIOD: Final = re.compile(rb"\d+\.\d+: +(\d+) +" + _EVENTS + rb"(?::\w+)?:")
#: What ``perf script --header`` says of an event.
_ATTR: Final = re.compile(
    rb"^# event : name = [^\n]*?\btype = (\d+)[^\n]*?\{ sample_period, sample_freq \} = (\d+)"
    rb"(?:[^\n]*?\b(freq) = 1)?",
    re.MULTILINE,
)
_HEX: Final = re.compile(rb"(?<![^ ])[0-9a-f]{1,16}(?![^ \n])")
#: Rows of the look at the beginning: some ten thousand lines.
_LOOK_ROWS: Final = 1 << 14
_CLOCK: Final = re.compile(rb"-k\s*CLOCK_(\w+)|--clockid[= ]CLOCK_(\w+)")


def looks_like(head: bytes) -> str:
    """``ftrace``, ``perf script``, or nothing, of the first bytes of a file."""
    ftrace, perf = len(_FTRACE.findall(head)), len(_PERF.findall(head))
    if ftrace and ftrace >= perf:
        return "ftrace"
    return "perf script" if perf else ""


class _Unforeseen(Exception):
    """An event that the beginning of the text did not show, and that changes how events pair."""


class _Holds(NamedTuple):
    """What a text holds, as far as pairing depends on it."""

    fault_starts: bool
    software_faults: bool
    fault_ends: bool
    enters: bool
    exits: bool
    switches: bool
    contention: bool
    task_events: bool
    wakings: bool


def _holds(kinds: Set[int]) -> _Holds:
    return _Holds(
        fault_starts=bool(kinds & {ev.FAULT_USER, ev.FAULT_KERNEL}),
        software_faults=ev.FAULT_SOFTWARE in kinds,
        fault_ends=bool(kinds & {ev.FAULT_MINOR, ev.FAULT_MAJOR}),
        enters=bool(kinds & {ev.ENTER, ev.RAW_ENTER}),
        exits=bool(kinds & {ev.EXIT, ev.RAW_EXIT}),
        switches=bool(kinds & {R_SWITCH, ev.SCHED_SWITCH}),
        contention=bool(kinds & {ev.CONTENTION_BEGIN, ev.CONTENTION_END}),
        task_events=bool(kinds & {R_FORK, R_COMM}),
        wakings=ev.WAKING in kinds,
    )


def import_trace_text(
    path: Path, out: Path, options: Options, progress: source.Progress | None
) -> Trace:
    """Import perf script or ftrace text.

    How events pair depends on which there are, and only reading all tells that.  So the beginning
    is looked at; if another kind turns up later, the import begins anew, knowing it.

    Raises
    ------
    UserError
        The text or the output is not what it must be; nothing is left behind.
    """
    file = source.open_text(path)
    try:
        form = looks_like(file.head())
        if form == "ftrace" and _RAW.search(file.head()):
            raise UserError(
                "the fields of its events are printed raw",
                where=str(path),
                fix="print them as text: trace-cmd report without -R, tracefs option nofields; "
                "perfetto's has no arguments of calls: leave their lines out (grep -v ': sys_e')",
            )
        if form == "ftrace" and (event := _told_by_two(file.head())):
            raise UserError(
                f"two buffers tell {event}, which would count twice",
                where=str(path),
                fix="import the trace.dat itself",
            )
        names = _look(file, form == "ftrace")
        kinds = frozenset(names.kinds)
        while True:
            names = Names(form == "ftrace", told=names.told)
            dialect = _dialect(file, form, kinds, names)
            try:
                return import_text(file, dialect, out, options, progress)
            except _Unforeseen:
                kinds = kinds | names.kinds
    finally:
        file.close()


def _told_by_two(head: bytes) -> str:
    """An event that two buffers (``trace-cmd record -B``) have, where there is one."""
    if not _BUFFER.search(head):
        return ""
    told: dict[bytes, bytes] = {}
    for match in _BUFFER_EVENT.finditer(head):
        if told.setdefault(match[2], match[1] or b"") != (match[1] or b""):
            return match[2].decode()
    return ""


def _look(file: source.TextFile, ftrace: bool) -> Names:
    """The events at the beginning."""
    file.restart()
    names = Names(ftrace)
    file.x[tr.X_FTRACE] = ftrace
    rows = np.zeros((_LOOK_ROWS, tr.WIDTH), np.int64)
    _scanner(names, None)(file, rows)
    return names


def _dialect(file: source.TextFile, form: str, kinds: frozenset[int], names: Names) -> Dialect:
    file.restart()
    head, x = file.head(), file.x
    ftrace = form == "ftrace"
    addresses = _addresses_of_ends(head)
    holds, facts = _holds(kinds), source.header_facts(head)
    starts, has_ends = holds.fault_starts, holds.fault_ends
    software = addresses and holds.software_faults
    if has_ends and not addresses and not starts:
        raise UserError(
            "the addresses of the page faults are not in the text",
            where=str(file.path),
            fix="print them: perf script -F +addr",
        )
    x[tr.X_FTRACE] = ftrace
    x[tr.X_TASK_EVENTS] = holds.task_events
    # Of an end without start its own instruction pointer tells the mode.
    x[tr.X_STARTS] = {ev.FAULT_USER, ev.FAULT_KERNEL} <= kinds
    x[tr.X_END_ADDRESS] = ADDRESS_FIRST if addresses else ADDRESS_OF_START
    dialect = Dialect(
        format=form,
        scan=_scanner(names, holds, facts.get("arch", "")),
        fault_starts=starts or software,
        fault_ends=has_ends,
        enters=holds.enters,
        exits=holds.exits,
        switches=holds.switches,
        contention=holds.contention,
        wakings=holds.wakings,
        samples=names.samples,
        names=names.files,
        kernel_faults=ev.FAULT_KERNEL in kinds or software or (has_ends and not starts),
        data_mmaps=b": rw-p " in head,
        compat_visible=ev.RAW_ENTER in kinds,
        resolution_ns=_resolution(head),
        told_twice=names.software_faults,
        paged=lambda: names.paged,
        sampled=_is_sampled(head),
        finer="; trace-cmd report -t prints all" if ftrace else "; perf script --ns prints all",
        facts=facts,
    )
    clock = _CLOCK.search(head)
    if clock:
        dialect.clock = (clock[1] or clock[2]).decode().lower()
    overwritten = _overwritten(head) if ftrace else 0
    if overwritten:
        dialect.warnings.append(
            f"{overwritten:,} older events were overwritten: only the end of the recording is "
            "there; read trace_pipe while it runs, or enlarge buffer_size_kb"
        )
    if (has_ends or holds.software_faults) and not _PERIOD.search(head) and not ftrace:
        unknown = "" if dialect.sampled else ", so whether events were sampled is not known"
        dialect.warnings.append(
            f"the text has no periods{unknown}: each line counts as one event, even where it "
            "stands for several; perf script -F +period prints them"
        )
    if has_ends and not addresses:
        dialect.warnings.append(
            "ends of faults have no address in the text: each is taken for the end of its thread's "
            "last fault; perf script -F +addr prints it"
        )
    return dialect


def _overwritten(head: bytes) -> int:
    """Events that were no longer in the buffer when tracefs' ``trace`` was read."""
    found = _ENTRIES.search(head)
    return max(0, int(found[2]) - int(found[1])) if found else 0


def _is_sampled(head: bytes) -> bool:
    """Whether events were sampled: their periods tell, or what ``perf script --header`` prints."""
    if any(period != b"1" for period in _PERIOD.findall(head)):
        return True
    return any(
        frequency or (kind != b"2" and int(period) > 1)  # a tracepoint's every hit is told
        for kind, period, frequency in _ATTR.findall(head)
    )


def _more(found: _Holds, foreseen: _Holds) -> bool:
    """Whether something was found that was not foreseen."""
    return any(new and not old for new, old in zip(found, foreseen, strict=True))


def _resolution(head: bytes) -> int:
    places = {len(digits) for digits in (*_PERF.findall(head), *_FTRACE.findall(head))}
    return int(10 ** max(0, 9 - max(places, default=9)))


def _addresses_of_ends(head: bytes) -> bool:
    """Whether fault ends print their address, not just an instruction pointer.

    With ``-F +addr`` the address is the first number; with ip and symbol (the default) the first
    number is the instruction pointer, and there is no second.  A number alone is the address,
    unless it lies in the kernel's half, where no fault that ends does.
    """
    ends = _FAULT_END.findall(head)[:2000]
    numbers = [_HEX.findall(line) for line in ends]
    if not any(numbers):
        return not ends  # nothing to go by; the scan counts what it cannot read
    if any(len(found) > 1 for found in numbers) or _CHAINED.search(head):
        return True
    alone = all(len(line.split()) == 1 for line in ends if line.strip())
    kernel = any(found and int(found[0], 16) >> 63 for found in numbers)
    return alone and not kernel


def _scanner(names: Names, foreseen: _Holds | None, machine: str = "") -> source.Scan:
    tables = number_tables(machine or "x86_64")
    scratch, words = np.zeros(7, np.int64), np.zeros(6, np.uint64)

    def run(file: source.TextFile, rows: NDArray[np.int64]) -> bool:
        end = file.size_bytes
        used = 0
        while True:
            part = rows[used:]
            result: Any = scan(
                file.buffer,
                end,
                file.x,
                file.threads,
                file.ring,
                names.keys,
                names.values,
                names.roles,
                names.calls,
                names.counts,
                tables.calls,
                tables.slots,
                tables.execve,
                names.told,
                names.file_keys,
                names.file_values,
                scratch,
                words,
                part,
            )
            used += int(file.x[tr.X_ROWS])
            if result == tr.NEW_NAME:
                first, last = int(file.x[tr.X_NAME_AT]), int(file.x[tr.X_NAME_END])
                names.learn(file.mapped[first:last], int(file.x[tr.X_NAME_FORM]))
                if foreseen is not None and _more(_holds(names.kinds), foreseen):
                    raise _Unforeseen
            elif result == tr.NEED_THREADS:
                file.grow_threads()
            else:
                file.x[tr.X_ROWS] = used
                return bool(result == tr.DONE)
            if len(rows) - used <= tr.MOST_ROWS:
                file.x[tr.X_ROWS] = used
                return False

    return run
