"""Ordered maps from address ranges to one number, one per address space, compiled.

The planner keeps in it which operation last made a range usable (``mmap``,
``mprotect``, ``brk``, ...).  Unlike the VMA map it never merges: two mmaps of two
threads that the kernel merges into one VMA keep their two makers, so a fault
waits only for the call that made *its* page.

Layout: leaf blocks of up to ``LEAF`` ranges, and per address space a sorted
directory of blocks.  Ranges are half open, in pages.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.jit import borrowing_helper, inlined_helper, lean, native, tables

LEAF: Final = 64
#: Entries of the table of ranges looked up lately, by the low bits of 2 MiB of address space.
SEEN: Final = 64
_SEEN_SHIFT: Final = 9
#: Blocks and directory entries that one ``assign`` may need.
_SLACK: Final = 4

# meta columns
_FREE: Final = 0
_USED: Final = 1
_WIDTH: Final = 2


class Segments(NamedTuple):
    """Arrays of the map.  B blocks, M address spaces, D directory entries each."""

    start: NDArray[np.int64]  # (B, LEAF) first page
    end: NDArray[np.int64]  # (B, LEAF) page after the last
    value: NDArray[np.int64]  # (B, LEAF)
    count: NDArray[np.int32]  # (B,) ranges in the block
    next_free: NDArray[np.int32]  # (B,)
    directory: NDArray[np.int32]  # (M, D) blocks in address order
    directory_n: NDArray[np.int32]  # (M,)
    seen: NDArray[np.int64]  # (SEEN, 4) space, start, end, value: ranges looked up lately
    meta: NDArray[np.int64]  # (3,) free list head, blocks in use, D


tables(Segments, start=LEAF, end=LEAF, value=LEAF, seen=4)


def make_segments(spaces: int, blocks: int = 64, directory: int = 16) -> Segments:
    """An empty map for ``spaces`` address spaces."""
    chain = np.arange(1, blocks + 1, dtype=np.int32)
    chain[-1] = -1
    return Segments(
        start=np.zeros((blocks, LEAF), np.int64),
        end=np.zeros((blocks, LEAF), np.int64),
        value=np.zeros((blocks, LEAF), np.int64),
        count=np.zeros(blocks, np.int32),
        next_free=chain,
        directory=np.full((spaces, directory), -1, np.int32),
        directory_n=np.zeros(spaces, np.int32),
        seen=np.full((SEEN, 4), -1, np.int64),
        meta=np.array([0, 0, directory], np.int64),
    )


def grow_segments(old: Segments) -> Segments:
    """The same map with room for at least one more ``assign`` (blocks and directory)."""
    spaces, width = old.directory.shape
    blocks = len(old.count)
    more_blocks = blocks * 2 if blocks - int(old.meta[_USED]) < _SLACK else blocks
    full = spaces > 0 and int(old.directory_n.max()) + _SLACK > width
    new = make_segments(spaces, more_blocks, width * 2 if full else width)
    new.start[:blocks] = old.start
    new.end[:blocks] = old.end
    new.value[:blocks] = old.value
    new.count[:blocks] = old.count
    new.next_free[:blocks] = old.next_free
    new.directory[:, :width] = old.directory
    new.directory_n[:] = old.directory_n
    new.meta[:2] = old.meta[:2]
    if more_blocks > blocks:  # the new blocks go in front of the free list
        new.next_free[more_blocks - 1] = int(old.meta[_FREE])
        new.meta[_FREE] = blocks
    return new


def any_full(s: Segments) -> bool:
    """Whether the next ``assign`` in some space might not fit."""
    return bool(
        len(s.count) - s.meta[_USED] < _SLACK
        or (s.directory_n + _SLACK > s.directory.shape[1]).any()
    )


@borrowing_helper
def segments_full_core(s, space):
    """Whether the next ``assign`` in ``space`` might not fit."""
    return len(s.count) - s.meta[_USED] < _SLACK or s.directory_n[space] + _SLACK > s.meta[_WIDTH]


@borrowing_helper
def _new_block(s):
    block = s.meta[_FREE]
    s.meta[_FREE] = s.next_free[block]
    s.meta[_USED] += 1
    s.count[block] = 0
    return block


@borrowing_helper
def _drop_block(s, space, position):
    block = s.directory[space, position]
    s.next_free[block] = s.meta[_FREE]
    s.meta[_FREE] = block
    s.meta[_USED] -= 1
    n = s.directory_n[space]
    for i in range(position, n - 1):
        s.directory[space, i] = s.directory[space, i + 1]
    s.directory_n[space] = n - 1


@borrowing_helper
def _block_of(s, space, page):
    """Directory position of the block that holds the last range starting at or before page."""
    lo = 0
    hi = s.directory_n[space]
    while lo < hi:
        mid = (lo + hi) >> 1
        if s.start[s.directory[space, mid], 0] <= page:
            lo = mid + 1
        else:
            hi = mid
    return lo - 1


@borrowing_helper
def _index_in(s, block, page):
    """Index of the last range of ``block`` that starts at or before ``page``, or -1."""
    lo = 0
    hi = s.count[block]
    while lo < hi:
        mid = (lo + hi) >> 1
        if s.start[block, mid] <= page:
            lo = mid + 1
        else:
            hi = mid
    return lo - 1


@inlined_helper
def get_core(s, space, page):
    """The value of the range that holds ``page``, or -1."""
    at = (page >> _SEEN_SHIFT) & (SEEN - 1)
    if s.seen[at, 0] == space and s.seen[at, 1] <= page < s.seen[at, 2]:
        return s.seen[at, 3]
    return _look(s, space, page, at)


@borrowing_helper
def _look(s, space, page, at):
    position = _block_of(s, space, page)
    if position < 0:
        return np.int64(-1)
    block = s.directory[space, position]
    i = _index_in(s, block, page)
    if i < 0 or page >= s.end[block, i]:
        return np.int64(-1)
    s.seen[at, 0] = space
    s.seen[at, 1] = s.start[block, i]
    s.seen[at, 2] = s.end[block, i]
    s.seen[at, 3] = s.value[block, i]
    return s.value[block, i]


@borrowing_helper
def _forget(s, space, start, end):
    """Ranges looked up lately may change between ``start`` and ``end``.

    A page is only ever looked for in the entry of its own 2 MiB.
    """
    first = start >> _SEEN_SHIFT
    for region in range(first, min((end - 1) >> _SEEN_SHIFT, first + SEEN - 1) + 1):
        at = region & (SEEN - 1)
        if s.seen[at, 0] == space and s.seen[at, 1] < end and start < s.seen[at, 2]:
            s.seen[at, 0] = -1


@borrowing_helper
def _insert(s, space, start, end, value):
    position = _block_of(s, space, start)
    if position < 0:
        if s.directory_n[space] == 0:
            block = _new_block(s)
            s.directory[space, 0] = block
            s.directory_n[space] = 1
        position = 0
    block = s.directory[space, position]
    n = s.count[block]
    if n == LEAF:
        half = LEAF // 2
        other = _new_block(s)
        for i in range(half, LEAF):
            s.start[other, i - half] = s.start[block, i]
            s.end[other, i - half] = s.end[block, i]
            s.value[other, i - half] = s.value[block, i]
        s.count[other] = LEAF - half
        s.count[block] = half
        m = s.directory_n[space]
        for i in range(m, position + 1, -1):
            s.directory[space, i] = s.directory[space, i - 1]
        s.directory[space, position + 1] = other
        s.directory_n[space] = m + 1
        if start >= s.start[other, 0]:
            block = other
        n = s.count[block]
    at = _index_in(s, block, start) + 1
    for i in range(n, at, -1):
        s.start[block, i] = s.start[block, i - 1]
        s.end[block, i] = s.end[block, i - 1]
        s.value[block, i] = s.value[block, i - 1]
    s.start[block, at] = start
    s.end[block, at] = end
    s.value[block, at] = value
    s.count[block] = n + 1


@borrowing_helper
def _remove(s, space, position, i):
    block = s.directory[space, position]
    n = s.count[block]
    for k in range(i, n - 1):
        s.start[block, k] = s.start[block, k + 1]
        s.end[block, k] = s.end[block, k + 1]
        s.value[block, k] = s.value[block, k + 1]
    s.count[block] = n - 1
    if n == 1:
        _drop_block(s, space, position)


@borrowing_helper
def clear_core(s, space, start, end):
    """Forget pages ``start`` to ``end`` (exclusive)."""
    if end <= start:
        return
    _forget(s, space, start, end)
    position = _block_of(s, space, start)
    if position >= 0:
        block = s.directory[space, position]
        i = _index_in(s, block, start)
        if i >= 0 and s.end[block, i] > start:
            old_end = s.end[block, i]
            if s.start[block, i] < start:
                s.end[block, i] = start
                if old_end > end:
                    _insert(s, space, end, old_end, s.value[block, i])
                    return
            elif old_end > end:
                s.start[block, i] = end
                return
            else:
                _remove(s, space, position, i)
    while True:  # ranges that start inside
        position = _block_of(s, space, end - 1)
        if position < 0:
            return
        block = s.directory[space, position]
        i = _index_in(s, block, end - 1)
        if i < 0 or s.start[block, i] < start:
            return
        if s.end[block, i] > end:
            s.start[block, i] = end
        else:
            _remove(s, space, position, i)


@borrowing_helper
def assign_core(s, space, start, end, value):
    """Give pages ``start`` to ``end`` (exclusive) the value; check ``any_full`` first."""
    if end <= start:
        return
    clear_core(s, space, start, end)
    _insert(s, space, start, end, value)


@borrowing_helper
def clear_space(s, space):
    """Forget a whole address space."""
    _forget(s, space, np.int64(0), np.int64(1) << 60)
    while s.directory_n[space] > 0:
        position = s.directory_n[space] - 1
        s.count[s.directory[space, position]] = 0
        _drop_block(s, space, position)


@borrowing_helper
def next_range_core(s, space, page, end):
    """First range that reaches past ``page`` and starts before ``end``.

    Returns (start, end, value); start is -1 where there is none.  Walk with
    ``page = end of the last``.
    """
    position = _block_of(s, space, page)
    if position >= 0:
        block = s.directory[space, position]
        i = _index_in(s, block, page)
        if i >= 0 and s.end[block, i] > page:
            return s.start[block, i], s.end[block, i], s.value[block, i]
        if i + 1 < s.count[block]:
            if s.start[block, i + 1] < end:
                return s.start[block, i + 1], s.end[block, i + 1], s.value[block, i + 1]
            return np.int64(-1), np.int64(-1), np.int64(-1)
    position += 1
    if position < s.directory_n[space]:
        block = s.directory[space, position]
        if s.start[block, 0] < end:
            return s.start[block, 0], s.end[block, 0], s.value[block, 0]
    return np.int64(-1), np.int64(-1), np.int64(-1)


@native
def get(s, space, page):
    """The value of the range that holds ``page``, or -1."""
    return get_core(lean(s), space, page)


@native
def assign(s, space, start, end, value):
    """Give pages ``start`` to ``end`` (exclusive) the value; check ``any_full`` first."""
    assign_core(lean(s), space, start, end, value)


@native
def clear(s, space, start, end):
    """Forget pages ``start`` to ``end`` (exclusive)."""
    clear_core(lean(s), space, start, end)
