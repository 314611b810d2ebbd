"""Whether several perf.data files are of one recording: what their heads and events say.

What cannot be true of one machine between two starts is refused.  What can, but seldom is, is a
note for the trace.  Names of hosts are compared, and shown to nobody.

Sessions: ids of events are given out once between two starts of a machine (perf_event_id,
kernel/events/core.c@6.18), so files have all ids in common (parts of one session: a recording
that was split, dumps of ``--switch-output``) or none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.errors import UserError
from mmreplay.importers import events as ev
from mmreplay.importers.perf import header as ph
from mmreplay.importers.perf import walk as pw
from mmreplay.importers.perf.container import Source
from mmreplay.importers.perf.decode import STREAM_SHIFT

_FIX: Final = "import each by itself: mmreplay import FILE -o NAME.mmt"
#: The wall clock against the clock of the events: what setting it, or sleep, hardly ever moves
#: between the starts of two recordings of one time; and what nothing usual does.
_STARTS_APART_NS: Final = 10_000_000_000
_CLOCK_SET_NS: Final = 100_000_000
#: Parts of one session follow each other within this time; longer ones are gaps.
_GAP_NS: Final = 10_000_000
_PIDS: Final = 1 << 22  # PID_MAX_LIMIT
_CPUS: Final = 1 << 13


def check_heads(sources: list[Source]) -> list[str]:
    """Compare what the files say of their machines, events and clocks: notes for the trace.

    Raises
    ------
    UserError
        They cannot be of one recording, or one was given twice.
    """
    notes: list[str] = []
    ids = {id(source): _ids(source) for source in sources}
    numbers = {id(source): _tracepoints(source) for source in sources}
    for first, other in combinations(sources, 2):
        if _same_file(first.where, other.where):
            raise UserError("is given twice", where=other.where, fix="name each file once")
        one, two = first.header, other.header
        for what, name in _MACHINE:
            a, b = name(one), name(two)
            if a and b and a != b:
                raise _refused(first, other, f"is of another {what}")
        _check_clock(first, other)
        mine, others = ids[id(first)], ids[id(other)]
        if mine != others and not mine.isdisjoint(others):
            raise UserError(
                f"has some of the event ids of {first.where}, which a machine gives once: not "
                "files of one recording",
                where=other.where,
                fix=_FIX,
            )
        known = numbers[id(first)]
        for event, number in numbers[id(other)].items():
            if known.get(event, number) != number:
                raise _refused(first, other, f"is of another kernel ({event} has another number)")
        for what, name in _DOUBTFUL:
            a, b = name(one), name(two)
            if a and b and a != b:
                notes.append(
                    f"the files name different {what}: if they are not of one machine, this trace "
                    "is of nothing that happened"
                )
        apart = _starts_apart_ns(one, two)
        if apart is not None and apart > _CLOCK_SET_NS:
            notes.append(
                f"the files' clocks put the machine's start {apart / 1e9:,.1f} s apart: if the "
                "wall clock was not set between them, they are not of one recording"
            )
    return list(dict.fromkeys(notes))


_MACHINE: Final[tuple[tuple[str, Callable[[ph.PerfHeader], Any]], ...]] = (
    ("machine (its architecture differs)", lambda head: head.arch),
    ("machine (its CPU differs)", lambda head: head.cpuid or head.cpu_desc),
    ("kernel (its release differs)", lambda head: head.os_release),
)
# A container can have a host name of its own, and balloons and hotplug change the memory.
_DOUBTFUL: Final[tuple[tuple[str, Callable[[ph.PerfHeader], Any]], ...]] = (
    ("hosts", lambda head: head.features.get(ph.F_HOSTNAME)),
    ("sizes of memory", lambda head: head.total_mem_kib),
)


def _refused(first: Source, other: Source, problem: str) -> UserError:
    return UserError(
        f"{problem} than {first.where}: not files of one recording", where=other.where, fix=_FIX
    )


def _same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:  # standard input
        return one == other


def _check_clock(first: Source, other: Source) -> None:
    clocks = [
        (attr.use_clockid, attr.use_clockid and attr.clockid)
        for attr in (first.header.attrs[0], other.header.attrs[0])
    ]
    if clocks[0] != clocks[1]:
        raise UserError(
            f"its times are of another clock than those of {first.where}",
            where=other.where,
            fix="record both with -k CLOCK_MONOTONIC, or import them apart",
        )
    apart = _starts_apart_ns(first.header, other.header)
    if apart is not None and apart > _STARTS_APART_NS:
        raise _refused(
            first, other, f"is of another start of its machine (by {apart / 1e9:,.0f} s)"
        )


def _starts_apart_ns(one: ph.PerfHeader, other: ph.PerfHeader) -> int | None:
    """How far apart the zeros of both clocks are, by the wall clock."""
    if one.wall_and_clock_ns is None or other.wall_and_clock_ns is None:
        return None
    zeros = [wall - clock for wall, clock in (one.wall_and_clock_ns, other.wall_and_clock_ns)]
    return abs(zeros[0] - zeros[1]) if one.clockid == other.clockid else None


def _ids(source: Source) -> set[int]:
    return {number for attr in source.header.attrs for number in attr.ids}


def _one_session(first: Source, other: Source) -> bool:
    return bool(_ids(first)) and _ids(first) == _ids(other)


def _tracepoints(source: Source) -> dict[str, int]:
    """Number of each tracepoint that matters: one start of a kernel gives it one.

    Of a file that was cut before its formats nothing is known: they were taken from elsewhere.
    """
    if ph.F_TRACING_DATA not in source.header.features:
        return {}
    used = [event for event in source.plan.events if event.format and event.role != ev.OTHER]
    return {event.name: event.config for event in used}


@dataclass(slots=True)
class _Met:
    """What the events of one file were about."""

    first_ns: int = -1
    last_ns: int = -1
    events: int = 0
    pids: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(_PIDS, np.bool_))
    tids: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(_PIDS, np.bool_))
    cpus: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(_CPUS, np.bool_))
    #: (tid, both words of a name)
    names: set[tuple[int, int, int]] = field(default_factory=set)


class Together:
    """Watches the events of several files go by, and says in the end whether they fit."""

    def __init__(self, sources: list[Source]) -> None:
        self._sources = sources
        numbers = [number for number, one in enumerate(sources) for _ in one.streams]
        self._source_of = np.array(numbers, np.int64)
        self._met = [_Met() for _ in sources]

    def watch(self, ready: Any, first: int, last: int, batch: ev.Batch) -> None:
        """Note the entries ``first`` to ``last``, decoded to ``batch``."""
        codes, times = ready.codes[first:last], ready.times[first:last]
        source = self._source_of[ready.positions[first:last] >> STREAM_SHIFT]
        real = (codes & pw.SYNTHETIC == 0) & (times > 0)
        rows = last - first
        for number in np.flatnonzero(np.bincount(source)).tolist():
            met, mine = self._met[number], source == number
            timed = times[mine & real]
            if len(timed):
                met.first_ns = int(timed[0]) if met.first_ns < 0 else met.first_ns
                met.last_ns = int(timed[-1])
            sampled = mine & (codes & pw.RECORD == 0)
            met.events += int(np.count_nonzero(sampled))
            for seen, values, least in (
                (met.pids, batch.pid, 1),  # 0 is nobody: what idles, and what was malformed
                (met.tids, batch.tid, 1),
                (met.cpus, batch.cpu, 0),
            ):
                told = values[:rows][sampled]
                seen[told[(told >= least) & (told < len(seen))]] = True
            named = mine & (batch.role[:rows] == ev.COMM)
            if named.any():
                words = batch.arg[:rows][named]
                told = np.column_stack((batch.tid[:rows][named], words[:, 1:3].view(np.int64)))
                met.names.update(map(tuple, np.unique(told, axis=0).tolist()))

    def check(self) -> list[str]:
        """Compare what the files hold: notes for the trace.

        Raises
        ------
        UserError
            They are not of one recording.
        """
        notes: list[str] = []
        order = sorted(range(len(self._met)), key=lambda number: self._met[number].first_ns)
        for place, later in enumerate(order):
            before = order[:place]
            if not before or self._met[later].first_ns < 0:
                continue
            newest = max(before, key=lambda number: self._met[number].last_ns)
            gap = self._met[later].first_ns - self._met[newest].last_ns
            if self._met[newest].last_ns >= 0 and gap > 0:
                notes += self._in_turn(before, newest, later, gap)
                continue
            for earlier in before:
                if self._met[earlier].last_ns >= self._met[later].first_ns:
                    notes += self._beside(earlier, later)
        return list(dict.fromkeys(notes))

    def _in_turn(self, before: list[int], newest: int, later: int, gap: int) -> list[str]:
        """``later`` begins when all of ``before`` have ended."""
        sources = self._sources
        parts = any(_one_session(sources[number], sources[later]) for number in before)
        attached = all(sources[number].target == "pids" for number in (*before, later))
        shared = any(self._shared(number, later) for number in before)
        if not parts and not (attached and shared):
            raise UserError(
                f"begins {gap / 1e9:,.3g} s after the last event of {sources[newest].where}: "
                "recordings of two times, not files of one",
                where=sources[later].where,
                fix=_FIX,
            )
        if parts and gap < _GAP_NS:
            return []
        return [
            f"between two of the files nothing was recorded for {gap / 1e9:,.3g} s: think time "
            "and waits around it are not to be trusted"
        ]

    def _beside(self, earlier: int, later: int) -> list[str]:
        """Both have events of one time."""
        first, other = self._sources[earlier], self._sources[later]
        one, two = self._met[earlier], self._met[later]
        if _one_session(first, other):
            if (one.first_ns, one.last_ns, one.events) == (two.first_ns, two.last_ns, two.events):
                raise UserError(
                    f"is a copy of {first.where}", where=other.where, fix="name each file once"
                )
            return []
        notes = []
        agreed = {name[0] for name in one.names & two.names}
        named = {name[0] for name in one.names} & {name[0] for name in two.names}
        against = named - agreed
        if len(against) > len(agreed):
            raise UserError(
                f"gives thread {min(against)} another name than {first.where}, at the same time: "
                "not files of one recording",
                where=other.where,
                fix=_FIX,
            )
        if against:
            notes.append(
                f"{len(against)} threads have other names in one file than in another: if these "
                "are not of one machine, this trace is of nothing that happened"
            )
        shared = self._shared(earlier, later)
        if not shared and "all" not in (first.target, other.target):
            notes.append("the files have no process in common: this trace is of both side by side")
        kinds = [
            {(event.type, event.config): event.name for event in source.plan.events}
            for source in (first, other)
        ]
        same = [name for kind, name in kinds[0].items() if kind in kinds[1]]
        if same and bool((one.tids & two.tids).any()) and bool((one.cpus & two.cpus).any()):
            notes.append(
                f"two of the files have {', '.join(sorted(same)[:3])} of the same threads: what "
                "both saw counts twice; import one of them, or record different events"
            )
        return notes

    def _shared(self, one: int, other: int) -> bool:
        return bool((self._met[one].pids & self._met[other].pids).any())
