"""Record streams in total order: each is walked and sorted in windows, and they are merged.

A recording has one stream, or one for each of its files.  Memory is bounded by two rounds
of each stream (20 bytes a record) and a fixed window.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers import perf_header as ph
from mmreplay.importers import perf_walk as pw
from mmreplay.importers.perf_decode import STREAM_SHIFT
from mmreplay.importers.perf_layout import Layout

#: Records walked before the next sort.
WALK_ROWS: Final = 1 << 18
_AHEAD_BYTES: Final = 1 << 26
#: Behind every time.
_NEVER: Final = (1 << 63) - 1


class Ready(NamedTuple):
    """Entries that nothing older can come before, and their total order."""

    times: NDArray[np.int64]
    positions: NDArray[np.int64]  # with the stream in the upper bits
    codes: NDArray[np.int32]
    order: NDArray[np.int64]
    rows: int


class Stream:
    """A mapped file's records, from ``start`` to ``end``.

    Parameters
    ----------
    where:
        The file's name, for errors.
    mapped:
        The file.
    layout:
        How its samples lie.
    events:
        Number of its events.
    """

    def __init__(
        self, where: str, mapped: mmap.mmap, start: int, end: int, layout: Layout, events: int
    ) -> None:
        self.where = where
        self.layout = layout
        self.mapped = mapped
        self.buffer: NDArray[np.uint8] = np.frombuffer(mapped, np.uint8)
        self.start, self.end = start, end
        self.state = pw.new_state(start)
        self.types = np.zeros(pw.TYPES, np.int64)
        self.samples = np.zeros(events, np.int64)
        self.lost = np.zeros(events, np.int64)
        self.finished = False
        # A record has at least 8 bytes, so small files need small arrays.
        self._step = int(min(WALK_ROWS, (end - start) // 8 + 1))
        self._times = np.empty(2 * self._step, np.int64)
        self._positions = np.empty(2 * self._step, np.int64)
        self._codes = np.empty(2 * self._step, np.int32)
        self._order = np.empty(0, np.int64)
        self._released = 0
        self._asked = start - start % mmap.PAGESIZE

    def close(self) -> None:
        """Unmap the file."""
        self.buffer = np.zeros(0, np.uint8)
        with contextlib.suppress(BufferError):  # an error on its way still looks at the buffer
            self.mapped.close()

    @property
    def limit(self) -> int:
        """Nothing older than this can come any more, ns."""
        return _NEVER if self.finished else int(self.state[pw.W_LIMIT])

    @property
    def done_bytes(self) -> int:
        return int(self.state[pw.W_POSITION]) - self.start

    def advance(self) -> None:
        """Walk one window further and sort it.

        Raises
        ------
        UserError
            The stream is damaged or ends inside a record.
        """
        state = self.state
        waiting = int(state[pw.W_COUNT])
        if waiting + self._step > len(self._times):
            room = 2 * (waiting + self._step)
            for name in ("_times", "_positions", "_codes"):
                old = getattr(self, name)
                new = np.empty(room, old.dtype)
                new[:waiting] = old[:waiting]
                setattr(self, name, new)
        self._read_ahead()
        window = waiting + self._step
        result = pw.walk(
            self.buffer,
            self.end,
            self.layout,
            state,
            self._times[:window],
            self._positions[:window],
            self._codes[:window],
            self.types,
            self.samples,
            self.lost,
        )
        self._check(result)
        count, untimed = int(state[pw.W_COUNT]), int(state[pw.W_UNTIMED])
        if result == pw.END:
            self.finished = True
            # No timed record follows: the newest time is the best guess.
            self._times[count - untimed : count] = max(int(state[pw.W_NEWEST]), 0)
            untimed = 0
        # Times are mostly ordered runs, which the stable sort merges in one pass.
        self._order = np.argsort(self._times[: count - untimed], kind="stable")

    def _check(self, result: int) -> None:
        at = int(self.state[pw.W_POSITION])
        if result == pw.SHORT_RECORD:
            raise ph.damaged(f"the record at byte {at} is shorter than a record can be", self.where)
        if result == pw.OVERRUN:
            raise ph.truncated(
                f"the record at byte {at} reaches over the end at {self.end}", self.where
            )
        if result == pw.COMPRESSED:
            raise ph.compressed(self.where)
        if result == pw.END and self.state[pw.W_SKIP]:
            raise ph.truncated(f"a payload reaches over the end at {self.end}", self.where)

    def ready(self, limit: int) -> int:
        """Number of entries older than ``limit``, first in :attr:`sorted`."""
        if limit == _NEVER:
            return len(self._order)
        times = self._times[: len(self._order)]
        return int(np.searchsorted(times, limit, side="left", sorter=self._order))

    @property
    def entries(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
        """Times, positions and codes in the order of the stream, as the last walk left them."""
        return self._times, self._positions, self._codes

    @property
    def sorted(self) -> NDArray[np.int64]:
        """Entries by time, as the last walk left them."""
        return self._order

    def drop(self, ready: int) -> None:
        """Forget the first ``ready`` entries; the others come to the front, still sorted."""
        count, timed = int(self.state[pw.W_COUNT]), len(self._order)
        # What follows comes behind them in the stream, so a stable sort keeps equal times in it.
        left = np.append(self._order[ready:], np.arange(timed, count))
        for part in (self._times, self._positions, self._codes):
            part[: len(left)] = part[left]
        self.state[pw.W_COUNT] = len(left)
        self._order = np.arange(timed - ready)
        oldest = int(self.state[pw.W_POSITION])
        if len(left):
            oldest = int(self._positions[: len(left)].min())
        self._release(oldest)

    def _read_ahead(self) -> None:
        """Ask for the pages that come next, so that the walk need not wait for the disk."""
        wanted = min(self.end, int(self.state[pw.W_POSITION]) + _AHEAD_BYTES)
        if wanted - self._asked >= _AHEAD_BYTES // 2 or (wanted == self.end > self._asked):
            self.mapped.madvise(mmap.MADV_WILLNEED, self._asked, wanted - self._asked)
            self._asked = wanted - wanted % mmap.PAGESIZE if wanted < self.end else wanted

    def _release(self, upto: int) -> None:
        """Tell the kernel that the pages before ``upto`` are done with."""
        upto -= upto % mmap.PAGESIZE
        if upto - self._released >= 1 << 24:
            self.mapped.madvise(mmap.MADV_DONTNEED, self._released, upto - self._released)
            self._released = upto


def merge(streams: list[Stream]) -> Iterator[Ready]:
    """All records of the streams by (time, stream, place in the stream).

    What is handed out holds until the next one is asked for.

    Raises
    ------
    UserError
        A stream is damaged.
    """
    while any(not stream.finished for stream in streams):
        behind = min((s for s in streams if not s.finished), key=lambda s: s.limit)
        behind.advance()
        limit = min(stream.limit for stream in streams)
        counts = [stream.ready(limit) for stream in streams]
        if len(streams) == 1:
            (only,) = streams
            yield Ready(*only.entries, only.sorted, counts[0])
        elif any(counts):
            yield _together(streams, counts)
        for stream, count in zip(streams, counts, strict=True):
            if count or stream is behind:
                stream.drop(count)


def _together(streams: list[Stream], counts: list[int]) -> Ready:
    parts: list[Any] = []
    times: Any
    positions: Any
    codes: Any
    for index, (stream, count) in enumerate(zip(streams, counts, strict=True)):
        chosen = stream.sorted[:count]
        times, positions, codes = (part[chosen] for part in stream.entries)
        parts.append((times, positions | index << STREAM_SHIFT, codes))
    times, positions, codes = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Ready(times, positions, codes, np.argsort(times, kind="stable"), len(times))
