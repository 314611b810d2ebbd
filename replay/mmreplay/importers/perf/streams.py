"""Record streams in total order: each is walked in windows, and its runs are merged.

A recording has one stream, or one for each of its files.  Memory is bounded by the runs of two
rounds of each stream, and, where they do not lie in a mapped file, by their records.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers.perf import header as ph
from mmreplay.importers.perf import runs as pr
from mmreplay.importers.perf import walk as pw
from mmreplay.importers.perf.decode import STREAM_SHIFT
from mmreplay.importers.perf.feeds import Feed
from mmreplay.importers.perf.layout import Layout
from mmreplay.trace.memory import cut, zeros

#: Entries found before what is older than all that follows is passed on.
WALK_ROWS = 1 << 17
#: Entries passed on at a time.
READY_ROWS: Final = 1 << 15
#: Runs that there is room for at first.
_RUNS: Final = 1 << 8
#: Bytes asked for ahead of the walk, and taken from a feed at a time.
_AHEAD_BYTES: Final = 1 << 26
FEED_BYTES = 1 << 22
_MADVISE: Final = ctypes.CDLL(None).madvise
_MADVISE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Ready(NamedTuple):
    """Entries in total order, (rows,) each; nothing older comes later."""

    times: NDArray[np.int64]  # ns
    positions: NDArray[np.int64]  # byte of the record, with the stream in the upper bits
    codes: NDArray[np.int32]

    def first(self, rows: int) -> Ready:
        """The first so many."""
        return Ready(self.times[:rows], self.positions[:rows], self.codes[:rows])


def _room(rows: int) -> Ready:
    times, positions, codes = cut((kind, rows) for kind in (np.int64, np.int64, np.int32))
    return Ready(times, positions, codes)


class Kind(NamedTuple):
    """What the streams of one file have in common.

    ``where`` names it in errors.  ``salvage``: a stream may end inside a record, because
    the recorder did not end normally or what there is is wanted.  ``every``: a round ends
    after so many records at the latest.
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
        self._runs = pr.new_runs(_RUNS)
        self._heap = np.empty(_RUNS, np.int64)

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
        return pr.NEVER if self.finished else int(self.state[pw.W_LIMIT])

    def advance(self) -> None:
        """Walk one window further.

        Raises
        ------
        UserError
            The stream is damaged or ends inside a record.
        """
        self.state[pw.W_WANTED] = WALK_ROWS
        while (result := self._walk()) != pw.ENOUGH:
            if result == pw.FULL:
                self._grow()
            elif result not in (pw.END, pw.CUT) or not self._more():
                break
        else:
            return
        self._check(result)
        self.finished = True
        # No timed record follows: the newest time is the best guess.
        count, untimed = int(self.state[pw.W_RUNS]), int(self.state[pw.W_UNTIMED])
        self._runs[count - untimed : count, pw.R_TIME] = max(int(self.state[pw.W_NEWEST]), 0)
        self.state[pw.W_UNTIMED] = 0

    def _walk(self) -> int:
        return int(
            pw.walk(
                self.buffer,
                self.end,
                self.layout,
                self.state,
                self._runs,
                self.types,
                self.samples,
                self.lost,
            )
        )

    def _grow(self) -> None:
        grown = pr.new_runs(2 * len(self._runs))
        grown[: len(self._runs)] = self._runs
        self._runs = grown
        self._heap = np.empty(len(grown), np.int64)

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
            raise ph.cut_short(f"{left} bytes follow the last record at {at}", where)
        if result == pw.CUT:
            lacks = (
                int.from_bytes(self.buffer[self.end - left + 6 :][:2].tobytes(), "little") - left
            )
            raise ph.cut_short(f"its last record, at byte {at}, lacks {lacks} bytes", where)
        if result == pw.COMPRESSED:
            raise ph.damaged(f"compressed records from byte {at} on, in a plain stream", where)
        if skipped:
            raise ph.cut_short("a payload reaches over the end", where)

    def take(self, limit: int, room: Ready) -> Iterator[int]:
        """Put what is older than ``limit`` into ``room``, a part at a time: its rows."""
        left = int(self.state[pw.W_RUNS] - self.state[pw.W_UNTIMED])
        pr.order(self._runs, left, self._heap)
        while left:
            rows, left = pr.merge(
                self.buffer, self.end, self.layout, self._runs, self._heap, left, limit, *room
            )
            if not rows:
                break
            yield rows
        self._release(self._oldest())

    def _oldest(self) -> int:
        """The first byte that is still needed; runs that have ended are forgotten."""
        kept, oldest = pr.drop_taken(self._runs, int(self.state[pw.W_RUNS]))
        self.state[pw.W_RUNS] = kept
        return int(min(oldest, self.state[pw.W_POSITION]))

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

    def _walk(self) -> int:
        # Ask for the pages that come next, so that the walk need not wait for the disk.
        wanted = min(self.end, int(self.state[pw.W_POSITION]) + _AHEAD_BYTES)
        if wanted - self._asked >= _AHEAD_BYTES // 2 or wanted == self.end > self._asked:
            self._advise(mmap.MADV_WILLNEED, self._asked, wanted)
            self._asked = wanted - wanted % mmap.PAGESIZE if wanted < self.end else wanted
        return super()._walk()

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
        super().__init__(kind, zeros(2 * FEED_BYTES), 0, 0)
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

    def _check(self, result: int) -> None:
        super()._check(result)
        self.cut_bytes += self._feed.cut_bytes

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
        needed = self.end - oldest
        buffer = self.buffer
        if needed + 2 * FEED_BYTES > len(buffer):
            buffer = zeros(2 * (needed + FEED_BYTES))
        # As numpy does, but without a copy on the way, and while other threads run.
        ctypes.memmove(buffer.ctypes.data, self.buffer.ctypes.data + oldest, needed)
        self.buffer = buffer
        self._runs[:, pr.PLACES] -= oldest
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
    room = _room(READY_ROWS)
    passed = -1
    while any(not stream.finished for stream in streams):
        behind = min((s for s in streams if not s.finished), key=lambda s: s.limit)
        behind.advance()
        limit = min(stream.limit for stream in streams)
        if limit == passed:
            continue
        passed = limit
        if len(streams) == 1:
            for rows in behind.take(limit, room):
                yield room.first(rows)
        else:
            yield from _together(streams, limit, room)


def _together(streams: list[Stream], limit: int, room: Ready) -> Iterator[Ready]:
    """What is older than ``limit``, at once."""
    parts: list[Any] = []
    for index, stream in enumerate(streams):
        for rows in stream.take(limit, room):
            times, positions, codes = room.first(rows)
            parts.append((times.copy(), positions | index << STREAM_SHIFT, codes.copy()))
    if parts:
        whole: Any = [np.concatenate(part) for part in zip(*parts, strict=True)]
        order = np.argsort(whole[0], kind="stable")
        yield Ready(*(part[order] for part in whole))
