"""Record streams in total order: each is walked and sorted in windows, and they are merged.

A recording has one stream, or one for each of its files.  Memory is bounded by two rounds
of each stream (20 bytes a record, and the records themselves where they do not lie in a
mapped file) and a fixed window.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers import perf_header as ph
from mmreplay.importers import perf_walk as pw
from mmreplay.importers.feeds import Feed
from mmreplay.importers.perf_decode import STREAM_SHIFT
from mmreplay.importers.perf_layout import Layout

#: Records walked before the next sort: those that wait for older ones, but at least these.
WALK_ROWS = 1 << 17
#: Bytes asked for ahead of the walk, and taken from a feed at a time.
_AHEAD_BYTES: Final = 1 << 26
FEED_BYTES = 1 << 22
_MADVISE: Final = ctypes.CDLL(None).madvise
_MADVISE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
#: Behind every time.
_NEVER: Final = (1 << 63) - 1


class Ready(NamedTuple):
    """Entries that nothing older can come before, and their total order."""

    times: NDArray[np.int64]
    positions: NDArray[np.int64]  # with the stream in the upper bits
    codes: NDArray[np.int32]
    order: NDArray[np.int64]
    rows: int


@dataclass(slots=True)
class Kind:
    """What the streams of one file have in common.

    ``where`` names it in errors.  ``salvage``: a stream may end inside a record, because
    the recorder did not end normally.  ``every``: a round ends after so many records at
    the latest.
    """

    where: str
    layout: Layout
    events: int
    salvage: bool = False
    every: int = pw.ROUND_WITHOUT


class Stream:
    """The records between two places of a buffer; see :class:`Mapped` and :class:`Fed`."""

    def __init__(self, kind: Kind, buffer: NDArray[np.uint8], start: int, end: int) -> None:
        self.kind = kind
        self.layout = kind.layout
        self.buffer = buffer
        self.end = end
        self.state = pw.new_state(start)
        self.state[pw.W_EVERY] = kind.every
        self.types = np.zeros(pw.TYPES, np.int64)
        self.samples = np.zeros(kind.events, np.int64)
        self.lost = np.zeros(kind.events, np.int64)
        self.finished = False
        #: Bytes behind the last whole record that were given up.
        self.cut_bytes = 0
        self._rows_at_most = WALK_ROWS
        self._entries, self._spare = pw.new_entries(1)
        self._order = np.empty(0, np.int64)

    def close(self) -> None:
        """Give the file back."""

    @property
    def total_bytes(self) -> int:
        """How many bytes there are to be read, as far as that is known."""
        return 0

    @property
    def done_bytes(self) -> int:
        """How many of them have been read."""
        return 0

    @property
    def limit(self) -> int:
        """Nothing older than this can come any more, ns."""
        return _NEVER if self.finished else int(self.state[pw.W_LIMIT])

    def advance(self) -> None:
        """Walk one window further and sort it.

        Raises
        ------
        UserError
            The stream is damaged or ends inside a record.
        """
        state = self.state
        waiting = int(state[pw.W_COUNT])
        window = waiting + max(waiting, self._rows_at_most)
        if window > len(self._entries.times):
            before: Any = self._entries
            self._entries, self._spare = pw.new_entries(window + waiting)
            now: Any = self._entries
            for part, old in zip(now, before, strict=True):
                part[:waiting] = old[:waiting]
        result = self._walk(window)
        count, untimed = int(state[pw.W_COUNT]), int(state[pw.W_UNTIMED])
        times = self._entries.times
        if result != pw.FULL:
            self.finished = True
            # No timed record follows: the newest time is the best guess.
            times[count - untimed : count] = max(int(state[pw.W_NEWEST]), 0)
            untimed = 0
        # Times are mostly ordered runs, which the stable sort merges in one pass.
        self._order = np.argsort(times[: count - untimed], kind="stable")

    def _walk(self, window: int) -> int:
        """Walk until ``window`` entries are there or the stream ends: FULL, or another result."""
        while True:
            result = int(
                pw.walk(
                    self.buffer,
                    self.end,
                    self.layout,
                    self.state,
                    *(part[:window] for part in self._entries),
                    self.types,
                    self.samples,
                    self.lost,
                )
            )
            if result not in (pw.END, pw.CUT) or not self._more():
                break
        self._check(result)
        return result

    def _more(self) -> bool:
        """Whether there are more bytes now than before."""
        return False

    def _place(self) -> int:
        """The walk's place in the whole stream, for messages."""
        return int(self.state[pw.W_POSITION])

    def _check(self, result: int) -> None:
        at, where = self._place(), self.kind.where
        left = self.end - int(self.state[pw.W_POSITION])
        skipped = result == pw.END and self.state[pw.W_SKIP] > 0
        if (result == pw.CUT or skipped) and self.kind.salvage:
            self.cut_bytes = left
            return
        if result == pw.SHORT_RECORD:
            raise ph.damaged(f"the record at byte {at} is shorter than a record can be", where)
        if result == pw.CUT and left < 8:
            raise ph.truncated(f"{left} bytes follow the last record at {at}", where)
        if result == pw.CUT:
            raise ph.truncated(f"the record at byte {at} reaches over the end", where)
        if result == pw.COMPRESSED:
            raise ph.damaged(f"compressed records from byte {at} on, in a plain stream", where)
        if skipped:
            raise ph.truncated("a payload reaches over the end", where)

    def ready(self, limit: int) -> int:
        """Number of entries older than ``limit``, first in :attr:`sorted`."""
        if limit == _NEVER:
            return len(self._order)
        times = self._entries.times[: len(self._order)]
        return int(np.searchsorted(times, limit, side="left", sorter=self._order))

    @property
    def entries(self) -> pw.Entries:
        """The entries in the order of the stream, as the last walk left them."""
        return self._entries

    @property
    def sorted(self) -> NDArray[np.int64]:
        """Entries by time, as the last walk left them."""
        return self._order

    def drop(self, ready: int) -> None:
        """Forget the first ``ready`` entries; the others come to the front, still sorted."""
        count, timed = int(self.state[pw.W_COUNT]), len(self._order)
        # What follows comes behind them in the stream, so a stable sort keeps equal times in it.
        pw.keep(self._entries, self._order, ready, count, self._spare)
        self._entries, self._spare = self._spare, self._entries
        self.state[pw.W_COUNT] = count - ready
        self._order = np.arange(timed - ready)
        self._release(self._oldest())

    def _oldest(self) -> int:
        """The first byte that is still needed."""
        left = self._entries.positions[: int(self.state[pw.W_COUNT])]
        at = int(self.state[pw.W_POSITION])
        return min(at, int(left.min())) if len(left) else at

    def _release(self, upto: int) -> None:
        """The bytes before ``upto`` are not needed any more."""


class Mapped(Stream):
    """Records of a mapped file, from ``start`` to ``end``."""

    def __init__(self, kind: Kind, mapped: mmap.mmap, start: int, end: int) -> None:
        super().__init__(kind, np.frombuffer(mapped, np.uint8), start, end)
        self._mapped = mapped
        self._start = start
        self._released = 0
        self._asked = start - start % mmap.PAGESIZE
        # A record has at least 8 bytes, so small files need small arrays.
        self._rows_at_most = min(WALK_ROWS, self.total_bytes // 8 + 1)

    def close(self) -> None:
        self.buffer = np.zeros(0, np.uint8)
        with contextlib.suppress(BufferError):  # an error on its way still looks at the buffer
            self._mapped.close()

    @property
    def total_bytes(self) -> int:
        return self.end - self._start

    @property
    def done_bytes(self) -> int:
        return int(self.state[pw.W_POSITION]) - self._start

    def _walk(self, window: int) -> int:
        # Ask for the pages that come next, so that the walk need not wait for the disk.
        wanted = min(self.end, int(self.state[pw.W_POSITION]) + _AHEAD_BYTES)
        if wanted - self._asked >= _AHEAD_BYTES // 2 or wanted == self.end > self._asked:
            self._advise(mmap.MADV_WILLNEED, self._asked, wanted)
            self._asked = wanted - wanted % mmap.PAGESIZE if wanted < self.end else wanted
        return super()._walk(window)

    def _release(self, upto: int) -> None:
        upto -= upto % mmap.PAGESIZE
        if upto - self._released >= 1 << 24:
            self._advise(mmap.MADV_DONTNEED, self._released, upto)
            self._released = upto

    def _advise(self, advice: int, start: int, end: int) -> None:
        """As ``mmap.madvise``, which would keep all other threads from running meanwhile."""
        at = self.buffer.__array_interface__["data"][0] + start
        _MADVISE(at, end - start, advice)  # what fails costs time or memory only


class Fed(Stream):
    """Records that come from a :class:`Feed`, through a buffer that slides over them."""

    def __init__(self, kind: Kind, feed: Feed, base: int = 0) -> None:
        super().__init__(kind, np.empty(2 * FEED_BYTES, np.uint8), 0, 0)
        self._feed = feed
        self._base = base  # of the buffer's first byte in the stream
        self._ended = False

    def close(self) -> None:
        self.buffer = np.zeros(0, np.uint8)
        self._feed.close()

    @property
    def total_bytes(self) -> int:
        return self._feed.total_bytes

    @property
    def done_bytes(self) -> int:
        return self._feed.done_bytes

    def _place(self) -> int:
        return self._base + super()._place()

    def _more(self) -> bool:
        if self._ended:
            return False
        if len(self.buffer) - self.end < FEED_BYTES:
            self._slide()
        whole: Any = self.buffer
        got = self._feed.pull(memoryview(whole)[self.end : self.end + FEED_BYTES])
        self._ended = got == 0
        self.end += got
        return got > 0

    def _slide(self) -> None:
        """Make room behind the bytes that are still needed."""
        oldest = self._oldest()
        needed = self.buffer[oldest : self.end].copy()
        if len(needed) + 2 * FEED_BYTES > len(self.buffer):
            self.buffer = np.empty(2 * (len(needed) + FEED_BYTES), np.uint8)
        self.buffer[: len(needed)] = needed
        self._entries.positions[: int(self.state[pw.W_COUNT])] -= oldest
        self.state[pw.W_POSITION] -= oldest
        self.end -= oldest
        self._base += oldest


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
