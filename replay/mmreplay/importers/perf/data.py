"""Direct reader of perf.data recordings (no perf binary is needed).

container (:mod:`perf.container`) -> record streams in windows (:mod:`perf.streams`) -> event
batches (:mod:`perf.decode`) -> operations (:mod:`pairing.pair`) -> trace (:mod:`output.assemble`).
Memory is bounded by two rounds of the recording plus a fixed number of windows.
"""

from __future__ import annotations

import itertools
import platform
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers import events as ev
from mmreplay.importers.binary import new_table
from mmreplay.importers.names import FileName, file_name
from mmreplay.importers.perf import decode as pd
from mmreplay.importers.perf import walk as pw
from mmreplay.importers.perf.container import Source, open_source
from mmreplay.importers.perf.layout import Plan
from mmreplay.importers.perf.streams import Ready, Stream, merge
from mmreplay.importers.syscalls import offsets_in_bytes

if TYPE_CHECKING:
    from mmreplay.importers.perf.groups import GroupReads
    from mmreplay.importers.perf.together import Together
    from mmreplay.importers.stacks import Frames, Stacks
    from mmreplay.importers.twice import Twice

#: Events decoded at a time.
BATCH_ROWS = 1 << 15

Progress = Callable[[int, int], None]


class Recording:
    """One recording: what its files hold together.

    ``header`` and ``plan`` are those of the first one; :attr:`events` has all events, and a
    batch's ``event`` is a place in it.
    """

    def __init__(self, sources: list[Source], notes: list[str]) -> None:
        self.sources = sources
        #: What is odd about these files as parts of one recording.
        self.notes = notes
        #: Says, when all is read, whether they are that; nothing where there is one file.
        self.together: Together | None = None
        self.streams: list[Stream] = []
        #: Where each stream's events begin in :attr:`events`.
        self.first_events: list[int] = []
        first = 0
        for source in sources:
            self.streams += source.streams
            self.first_events += [first] * len(source.streams)
            first += len(source.plan.events)
        self.events = [event for source in sources for event in source.plan.events]
        #: Names of mapped files by name id.
        self.names: list[FileName] = []
        self.decode_state = pd.new_state()
        #: Call chains, where they were recorded, and their frames that nobody took yet.
        self.stacks: Stacks | None = None
        self.frames: deque[Frames] = deque()
        #: Leaves out what several events tell, where there are such.
        self.twice: Twice | None = None
        if len(sources) > 1:
            from mmreplay.importers.perf.together import Together

            self.together = Together(sources)
        if any(plan.has_chains for plan in self.plans):
            from mmreplay.importers.stacks import Stacks

            self.stacks = Stacks()

    def close(self) -> None:
        """Give the files back."""
        for source in self.sources:
            source.close()

    @property
    def where(self) -> str:
        """The files' names, for errors."""
        return ", ".join(source.where for source in self.sources)

    @property
    def header(self) -> Any:
        """The first file's :class:`~mmreplay.importers.perf.header.PerfHeader`."""
        return self.sources[0].header

    @property
    def plans(self) -> list[Plan]:
        """What is known of the events of each file."""
        return [source.plan for source in self.sources]

    def has(self, *roles: int) -> bool:
        """Whether any event has one of the roles."""
        return any(plan.has(*roles) for plan in self.plans)

    @property
    def target(self) -> str:
        """What was recorded: ``command``, ``all``, ``pids`` or ``unknown``."""
        told = [source.target for source in self.sources]
        if told[0] == "command":
            return told[0]
        return next((kind for kind in ("all", "pids") if kind in told), "unknown")

    def total(self, entry: int) -> int:
        """Sum of one W_* entry over all streams."""
        return sum(int(stream.state[entry]) for stream in self.streams)

    @property
    def types(self) -> NDArray[np.int64]:
        """(TYPES,) records by type."""
        return sum((stream.types for stream in self.streams), np.zeros(pw.TYPES, np.int64))

    @property
    def samples(self) -> NDArray[np.int64]:
        """(events,) samples of each event."""
        return self._by_event([stream.samples for stream in self.streams])

    @property
    def lost(self) -> NDArray[np.int64]:
        """(events,) losses of each event, where known."""
        return self._by_event([stream.lost for stream in self.streams])

    def _by_event(self, counts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
        total = np.zeros(len(self.events), np.int64)
        for first, count in zip(self.first_events, counts, strict=True):
            total[first : first + len(count)] += count
        return total


def open_recording(
    paths: Path | list[Path], formats: Path | None = None, salvage: bool = False
) -> Recording:
    """Open the file or files of one recording; see :func:`perf.container.open_source`."""
    sources: list[Source] = []
    try:
        for path in [paths] if isinstance(paths, Path) else paths:
            sources.append(open_source(path, formats, salvage))
        notes: list[str] = []
        if len(sources) > 1:
            from mmreplay.importers.perf.together import check_heads

            notes = check_heads(sources)
    except BaseException:
        for source in sources:
            source.close()
        raise
    return Recording(sources, notes)


def batches(
    recording: Recording, progress: Progress | None = None, buffers: int = 1
) -> Iterator[tuple[Any, int]]:
    """The recording's events in total order: (batch, rows of it in use).

    So many batches, in turn, are filled again and again.

    Raises
    ------
    UserError
        The record stream is damaged or truncated.
    """
    rec = recording
    ring = itertools.cycle(ev.new_batches(BATCH_ROWS, buffers))
    names = _Names(rec)
    raw = None
    if rec.has(ev.RAW_ENTER, ev.RAW_EXIT):
        from mmreplay.importers.raw_calls import RawCalls

        raw = RawCalls(rec.header.arch or platform.machine(), rec.events)
    groups = _groups(rec)
    rec.twice = _twice(rec)
    paged = [number for number, event in enumerate(rec.events) if event.paged]
    for ready in merge(rec.streams):
        if rec.decode_state[pd.D_T0] == pw.MAX_TIME:
            _find_start(rec, ready)
        for first in range(0, len(ready.times), BATCH_ROWS):
            last = min(len(ready.times), first + BATCH_ROWS)
            batch = next(ring)
            names.make_room(last - first)
            for index, stream in enumerate(rec.streams):
                pd.decode(
                    stream.buffer,
                    stream.layout,
                    ready.times,
                    ready.positions,
                    ready.codes,
                    first,
                    last,
                    index,
                    rec.first_events[index],
                    rec.decode_state,
                    *names.arguments,
                    batch,
                )
                names.read(stream)
                if groups and (group := groups[index]) is not None:
                    group.count(ready, first, last, index, stream)
            if rec.together is not None:
                rec.together.watch(ready, first, last, batch)
            if rec.twice is not None:
                rec.twice.leave_out(batch, last - first)
            offsets_in_bytes(batch, last - first, paged)
            if raw is not None:
                raw.name(batch, last - first)
            if rec.stacks is not None:
                found = rec.stacks.number(batch, last - first, ready, first, rec.streams)
                rec.frames.extend([found] if found is not None else [])
            yield batch, last - first
        if progress is not None:
            done = sum(stream.done_bytes for stream in rec.streams)
            progress(done, sum(stream.total_bytes for stream in rec.streams))


def _groups(rec: Recording) -> list[GroupReads | None]:
    """For each stream what counts the events of its groups; nothing where no file has groups."""
    if not any(attr.reads_group for source in rec.sources for attr in source.header.attrs):
        return []
    from mmreplay.importers.perf.groups import GroupReads, table_of

    found: list[GroupReads | None] = []
    for source in rec.sources:
        table = table_of(source.header.attrs)
        found += [None if table is None else GroupReads(table)] * len(source.streams)
    return found


def _twice(rec: Recording) -> Twice | None:
    """What leaves out what two events of a file tell; None where no two tell the same."""
    kinds = [
        (number, event.type, event.config) if event.role != ev.OTHER else None
        for number, source in enumerate(rec.sources)
        for event in source.plan.events
    ]
    told = [kind for kind in kinds if kind is not None]
    if len(set(told)) == len(told):
        return None
    from mmreplay.importers.twice import Twice

    found = Twice()
    found.know(kinds)
    return found


def _find_start(rec: Recording, ready: Ready) -> None:
    """Time 0 of the trace: the first event that has a time."""
    real = ((ready.codes & pw.SYNTHETIC) == 0) & (ready.times > 0)
    if real.any():
        rec.decode_state[pd.D_T0] = ready.times[int(np.argmax(real))]


class _Names:
    """The decoder's table of mapped files' names, with room for the next window."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        capacity = 3 * BATCH_ROWS // 2
        self.keys, self.values = new_table(capacity)
        self.places = np.zeros((capacity, 2), np.int64)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (self.keys, self.values, self.places)

    def make_room(self, rows: int) -> None:
        known = int(self.recording.decode_state[pd.D_NAMES])
        if known + rows <= len(self.places):
            return
        capacity = 2 * (known + rows)
        places = np.zeros((capacity, 2), np.int64)
        places[:known] = self.places[:known]
        keys, values = new_table(capacity)
        pd.rehash(self.keys, self.values, keys, values)
        self.keys, self.values, self.places = keys, values, places

    def read(self, stream: Stream) -> None:
        names = self.recording.names
        for name_id in range(len(names), int(self.recording.decode_state[pd.D_NAMES])):
            first, last = self.places[name_id].tolist()
            text = stream.buffer[first:last].tobytes().decode("utf-8", "replace")
            names.append(file_name(text))
