"""Compiled work on record streams before they are walked: where records end, and byte order.

A stream of a big-endian machine is turned to little-endian record by record, as far as
:mod:`perf.walk` and :mod:`perf.decode` look at it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers.binary import bare, table_find
from mmreplay.importers.perf import header as ph
from mmreplay.importers.perf.layout import (
    G_FIELDS,
    G_READ_FORMAT,
    G_SAMPLE_TYPE,
    G_SIZE,
    MAX_FIELDS,
    P_OFFSET,
    P_SIZE,
    T_SIZE,
)
from mmreplay.importers.perf.walk import (
    R_AUXTRACE,
    R_COMM,
    R_EXIT,
    R_FORK,
    R_LOST,
    R_LOST_SAMPLES,
    R_MMAP,
    R_MMAP2,
    R_SAMPLE,
    R_SWITCH_CPU_WIDE,
    R_THREAD_MAP,
    R_THROTTLE,
    R_TRACING_DATA,
    R_UNTHROTTLE,
)
from mmreplay.jit import borrowing_helper, native

# Bodies of the records that are read, behind the head: how many words of 4, 8, 4, 8, 4 bytes.
_WORDS: NDArray[np.int64] = np.zeros((64, 5), np.int64)
for _type, _words in (
    (R_MMAP, (2, 3, 0, 0, 0)),
    (R_LOST, (0, 2, 0, 0, 0)),
    (R_COMM, (2, 0, 0, 0, 0)),
    (R_EXIT, (4, 1, 0, 0, 0)),
    (R_THROTTLE, (0, 3, 0, 0, 0)),
    (R_UNTHROTTLE, (0, 3, 0, 0, 0)),
    (R_FORK, (4, 1, 0, 0, 0)),
    (R_MMAP2, (2, 3, 2, 2, 2)),
    (R_LOST_SAMPLES, (0, 1, 0, 0, 0)),
    (R_SWITCH_CPU_WIDE, (2, 0, 0, 0, 0)),
):
    _WORDS[_type] = _words
# Fields in their order: bit of sample_type, and 1 where they are two words of 4 bytes.
_SAMPLE: NDArray[np.int64] = np.array(
    [
        (ph.SAMPLE_IDENTIFIER, 0),
        (ph.SAMPLE_IP, 0),
        (ph.SAMPLE_TID, 1),
        (ph.SAMPLE_TIME, 0),
        (ph.SAMPLE_ADDR, 0),
        (ph.SAMPLE_ID, 0),
        (ph.SAMPLE_STREAM_ID, 0),
        (ph.SAMPLE_CPU, 1),
        (ph.SAMPLE_PERIOD, 0),
    ]
)
_TRAILER: NDArray[np.int64] = np.array(
    [
        (ph.SAMPLE_TID, 1),
        (ph.SAMPLE_TIME, 0),
        (ph.SAMPLE_ID, 0),
        (ph.SAMPLE_STREAM_ID, 0),
        (ph.SAMPLE_CPU, 1),
        (ph.SAMPLE_IDENTIFIER, 0),
    ]
)
_READ, _CALLCHAIN, _RAW = ph.SAMPLE_READ, ph.SAMPLE_CALLCHAIN, ph.SAMPLE_RAW


@native
def whole_records(buffer: Any, big_endian: bool) -> Any:
    """Where the last whole record of the buffer ends; -1 where one is shorter than its head."""
    at = np.int64(0)
    while at + 8 <= len(buffer):
        low, high = (7, 6) if big_endian else (6, 7)
        size = np.int64(buffer[at + low]) + (np.int64(buffer[at + high]) << 8)
        if size < 8:
            return -1
        if at + size > len(buffer):
            break
        at += size
    return at


@borrowing_helper
def _number(buffer: Any, at: Any, count: Any) -> Any:
    """A big-endian number."""
    value = np.uint64(0)
    for k in range(count):
        value = value << np.uint64(8) | np.uint64(buffer[at + k])
    return value


@borrowing_helper
def _flip(buffer: Any, at: Any, count: Any, end: Any) -> Any:
    """Turn one number round, where it lies before ``end``; returns what follows it."""
    if at + count <= end:
        for k in range(count // 2):
            other = buffer[at + count - 1 - k]
            buffer[at + count - 1 - k] = buffer[at + k]
            buffer[at + k] = other
    return at + count


@borrowing_helper
def _fields(buffer: Any, at: Any, end: Any, kinds: Any, order: Any) -> Any:
    """Turn the fields that ``kinds`` names round; returns what follows them."""
    for k in range(order.shape[0]):
        if kinds & order[k, 0]:
            if order[k, 1]:
                at = _flip(buffer, at, 4, end)
                at = _flip(buffer, at, 4, end)
            else:
                at = _flip(buffer, at, 8, end)
    return at


@borrowing_helper
def _words8(buffer: Any, at: Any, count: Any, end: Any) -> Any:
    for _ in range(min(count, max(0, end - at) // 8)):
        _flip(buffer, at, 8, end)
        at += 8
    return at


@borrowing_helper
def _sample(buffer: Any, at: Any, end: Any, layout: Any) -> None:
    flags, program = bare(layout.flags), bare(layout.program)
    event = np.int64(0)
    if layout.id_offset >= 0:
        if at + layout.id_offset + 8 > end:
            return
        ident = _number(buffer, at + layout.id_offset, 8)
        event = np.int64(table_find(layout.id_keys, layout.id_values, ident))
        if event < 0:
            return
    kinds = flags[G_SIZE * event + G_SAMPLE_TYPE]
    where = _fields(buffer, at + 8, end, kinds, _SAMPLE)
    if kinds & _READ:
        form = flags[G_SIZE * event + G_READ_FORMAT]
        times = (form & 1) + (form >> 1 & 1)
        per = 1 + (form >> 2 & 1) + (form >> 4 & 1)
        members = np.int64(1)
        if form & 8 and where + 8 <= end:  # PERF_FORMAT_GROUP
            members = np.int64(min(_number(buffer, where, 8), np.uint64(1 << 13)))
            where = _flip(buffer, where, 8, end)
        where = _words8(buffer, where, times + per * members, end)
    if kinds & _CALLCHAIN and where + 8 <= end:
        frames = np.int64(min(_number(buffer, where, 8), np.uint64(1 << 13)))
        where = _words8(buffer, _flip(buffer, where, 8, end), frames, end)
    if kinds & _RAW:
        where = _flip(buffer, where, 4, end)
        for k in range(flags[G_SIZE * event + G_FIELDS]):
            step = (MAX_FIELDS * event + k) * 4
            _flip(buffer, where + program[step + P_OFFSET], program[step + P_SIZE], end)


@native
def swap(buffer: Any, at: Any, end: Any, layout: Any, skip: Any) -> Any:
    """Turn the whole records between ``at`` and ``end`` to little-endian; where they end.

    ``skip`` (1,) int64: bytes of a payload outside of any record that are still to come.
    """
    flags, trailer = bare(layout.flags), bare(layout.trailer)
    while True:
        step = min(skip[0], end - at)
        skip[0] -= step
        at += step
        if at + 8 > end:
            return at
        kind = np.int64(_number(buffer, at, 4))
        size = np.int64(_number(buffer, at + 6, 2))
        if at + size > end:
            return at
        stop = at + size
        _flip(buffer, at, 4, at + 8)
        _flip(buffer, at + 4, 2, at + 8)
        _flip(buffer, at + 6, 2, at + 8)
        if size < 8:
            return end  # the walk says what is wrong
        if kind == R_SAMPLE:
            _sample(buffer, at, stop, layout)
        elif kind < 64:
            own = np.int64(0)
            if layout.trailer_id > 0 and size >= 8 + layout.trailer_id:
                ident = _number(buffer, stop - layout.trailer_id, 8)
                own = max(own, np.int64(table_find(layout.id_keys, layout.id_values, ident)))
            length = trailer[5 * own + T_SIZE]
            body = max(at + 8, stop - length)
            where = at + 8
            for group in range(5):
                for _ in range(_WORDS[kind, group]):
                    where = _flip(buffer, where, 8 if group & 1 else 4, body)
            if length > 0:
                _fields(buffer, body, stop, flags[G_SIZE * own + G_SAMPLE_TYPE], _TRAILER)
        elif kind == R_THREAD_MAP:
            _words8(buffer, at + 8, 2, stop)
        elif kind == R_AUXTRACE and size >= 16:
            skip[0] = np.int64(min(_number(buffer, at + 8, 8), np.uint64(1 << 62)))
            _flip(buffer, at + 8, 8, stop)
        elif kind == R_TRACING_DATA and size >= 12:
            skip[0] = np.int64(_number(buffer, at + 8, 4)) + 7 & ~7
            _flip(buffer, at + 8, 4, stop)
        at = stop


class SwapFeed:
    """A big-endian feed's records in little-endian order."""

    def __init__(self, feed: Any, layout: Any) -> None:
        self._feed = feed
        self._layout = layout
        self._buffer: Any = np.empty(1 << 21, np.uint8)
        self._given = self._turned = self._filled = 0
        self._skip = np.zeros(1, np.int64)

    @property
    def total_bytes(self) -> int:
        total: int = self._feed.total_bytes
        return total

    @property
    def done_bytes(self) -> int:
        done: int = self._feed.done_bytes
        return done

    @property
    def cut_bytes(self) -> int:
        cut: int = self._feed.cut_bytes
        return cut

    def close(self) -> None:
        self._feed.close()

    def pull(self, room: memoryview) -> int:
        """As :meth:`feeds.Feed.pull`."""
        while self._given == self._turned:
            left = self._filled - self._turned
            self._buffer[:left] = self._buffer[self._turned : self._filled].copy()
            self._given = self._turned = 0
            got = self._feed.pull(memoryview(self._buffer)[left:])
            self._filled = left + got
            if not got:
                if left >= 8:  # a cut record: its head says so
                    self._buffer[:8] = self._buffer[[3, 2, 1, 0, 5, 4, 7, 6]]
                self._turned = left
                break
            self._turned = int(swap(self._buffer, 0, self._filled, self._layout, self._skip))
        got = min(len(room), self._turned - self._given)
        room[:got] = memoryview(self._buffer)[self._given : self._given + got]
        self._given += got
        return got
