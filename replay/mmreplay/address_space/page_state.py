"""What the planner knows of every page and page-table page, compiled.

Pages live in *regions* of 2 MiB, the reach of one last-level page-table page, so
a region exists exactly while its table does: it is made by the first fault and
freed when an unmap leaves no VMA in the region (``free_pgtables``,
mm/memory.c@6.18).  Each life of a table has its own number, so the ``present``
bit of a plan's table never has to be cleared.  Memory is bounded by what the
trace touches: about 2.6 KiB for 2 MiB of touched address space.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.jit import njit

PAGES: Final = 512  # pages per region, x86-64 and arm64 with 4 KiB pages
REGION_SHIFT: Final = 9

# What is mapped at a page.
ABSENT: Final = 0  # nothing known
ZERO: Final = 1  # the zero page, read-only
CACHE: Final = 2  # a page-cache page, read-only
ANON: Final = 3  # an own anonymous page
COW: Final = 4  # an anonymous page that fork shared
DIRTY: Final = 5  # a page-cache page mapped for writing

# meta columns
_FREE: Final = 0
_USED: Final = 1
_NEXT_TABLE: Final = 2
META: Final = 3


class PageState(NamedTuple):
    """S region slots, H hash buckets, M address spaces."""

    key: NDArray[np.int64]  # (H,) space << 40 | region, -1 empty
    bucket: NDArray[np.int32]  # (H,) slot
    state: NDArray[np.uint8]  # (S, PAGES)
    last_use: NDArray[np.int32]  # (S, PAGES) position of the last fault, -1 none
    n_present: NDArray[np.int32]  # (S,) pages not ABSENT
    table: NDArray[np.int32]  # (S,) number of this life of the page-table page
    seen: NDArray[np.uint64]  # (S,) threads (number modulo 64) that faulted in it
    huge: NDArray[np.uint8]  # (S,) mapped by one huge page
    region: NDArray[np.int64]  # (S,)
    space: NDArray[np.int32]  # (S,)
    next: NDArray[np.int32]  # (S,) of the same space, or of the free list
    prev: NDArray[np.int32]  # (S,)
    scratch: NDArray[np.int32]  # (S,)
    head: NDArray[np.int32]  # (M,)
    n_regions: NDArray[np.int32]  # (M,)
    meta: NDArray[np.int64]  # (META,)


def make_pages(spaces: int, slots: int = 256) -> PageState:
    """Empty state with room for ``slots`` regions (a power of two)."""
    chain = np.arange(1, slots + 1, dtype=np.int32)
    chain[-1] = -1
    return PageState(
        key=np.full(slots * 4, -1, np.int64),
        bucket=np.zeros(slots * 4, np.int32),
        state=np.zeros((slots, PAGES), np.uint8),
        last_use=np.full((slots, PAGES), -1, np.int32),
        n_present=np.zeros(slots, np.int32),
        table=np.full(slots, -1, np.int32),
        seen=np.zeros(slots, np.uint64),
        huge=np.zeros(slots, np.uint8),
        region=np.zeros(slots, np.int64),
        space=np.full(slots, -1, np.int32),
        next=chain,
        prev=np.full(slots, -1, np.int32),
        scratch=np.zeros(slots, np.int32),
        head=np.full(spaces, -1, np.int32),
        n_regions=np.zeros(spaces, np.int32),
        meta=np.array([0, 0, 0], np.int64),
    )


def grow_pages(old: PageState, need: int) -> PageState:
    """The same state with room for ``need`` more regions."""
    slots = len(old.table)
    wanted = slots
    while wanted - int(old.meta[_USED]) < need:
        wanted *= 2
    if wanted == slots:
        return old
    new = make_pages(len(old.head), wanted)
    for name in (
        "state",
        "last_use",
        "n_present",
        "table",
        "seen",
        "huge",
        "region",
        "space",
        "next",
        "prev",
    ):
        getattr(new, name)[:slots] = getattr(old, name)
    new.head[:] = old.head
    new.n_regions[:] = old.n_regions
    new.meta[:] = old.meta
    new.next[wanted - 1] = int(old.meta[_FREE])
    new.meta[_FREE] = slots
    _rehash(new)
    return new


@njit
def _bucket_of(p, key):
    """Bucket that holds ``key``, or the empty one where it belongs."""
    mask = len(p.key) - 1
    # Fibonacci hashing: regions of one space are consecutive numbers.
    at = ((key * np.int64(-7046029254386353131)) >> 20) & mask
    while p.key[at] != -1 and p.key[at] != key:
        at = (at + 1) & mask
    return at


@njit
def _rehash(p):
    for space in range(len(p.head)):
        slot = p.head[space]
        while slot >= 0:
            key = (np.int64(space) << 40) | p.region[slot]
            at = _bucket_of(p, key)
            p.key[at] = key
            p.bucket[at] = slot
            slot = p.next[slot]


@njit
def regions_free(p):
    """Regions that can still be made without growing."""
    return len(p.table) - p.meta[_USED]


@njit
def tables_made(p):
    """How many lives of page-table pages there have been."""
    return p.meta[_NEXT_TABLE]


@njit
def find(p, space, region):
    """Slot of a region, or -1."""
    at = _bucket_of(p, (np.int64(space) << 40) | region)
    return p.bucket[at] if p.key[at] != -1 else np.int32(-1)


@njit
def make(p, space, region):
    """Slot of a region, made (with a new table) where there is none."""
    key = (np.int64(space) << 40) | region
    at = _bucket_of(p, key)
    if p.key[at] != -1:
        return p.bucket[at]
    slot = np.int32(p.meta[_FREE])
    p.meta[_FREE] = p.next[slot]
    p.meta[_USED] += 1
    p.key[at] = key
    p.bucket[at] = slot
    p.state[slot, :] = ABSENT
    p.last_use[slot, :] = -1
    p.n_present[slot] = 0
    p.table[slot] = p.meta[_NEXT_TABLE]
    p.meta[_NEXT_TABLE] += 1
    p.seen[slot] = 0
    p.huge[slot] = 0
    p.region[slot] = region
    p.space[slot] = space
    first = p.head[space]
    p.next[slot] = first
    p.prev[slot] = -1
    if first >= 0:
        p.prev[first] = slot
    p.head[space] = slot
    p.n_regions[space] += 1
    return slot


@njit
def _free(p, slot):
    mask = len(p.key) - 1
    space = p.space[slot]
    hole = _bucket_of(p, (np.int64(space) << 40) | p.region[slot])
    # backward-shift deletion: no tombstones, so look-ups stay short
    at = (hole + 1) & mask
    while p.key[at] != -1:
        ideal = ((p.key[at] * np.int64(-7046029254386353131)) >> 20) & mask
        if ((at - ideal) & mask) >= ((at - hole) & mask):
            p.key[hole] = p.key[at]
            p.bucket[hole] = p.bucket[at]
            hole = at
        at = (at + 1) & mask
    p.key[hole] = -1
    before = p.prev[slot]
    after = p.next[slot]
    if before >= 0:
        p.next[before] = after
    else:
        p.head[space] = after
    if after >= 0:
        p.prev[after] = before
    p.n_regions[space] -= 1
    p.space[slot] = -1
    p.next[slot] = p.meta[_FREE]
    p.meta[_FREE] = slot
    p.meta[_USED] -= 1


@njit
def collect(p, space, first, last):
    """Slots of the regions of pages ``first..last`` into ``scratch``; returns their number."""
    r0 = first >> REGION_SHIFT
    r1 = last >> REGION_SHIFT
    n = 0
    if r1 - r0 >= p.n_regions[space]:
        slot = p.head[space]
        while slot >= 0:
            if r0 <= p.region[slot] <= r1:
                p.scratch[n] = slot
                n += 1
            slot = p.next[slot]
        return n
    for r in range(r0, r1 + 1):
        slot = find(p, space, r)
        if slot >= 0:
            p.scratch[n] = slot
            n += 1
    return n


@njit
def bounds(p, slot, first, last):
    """Indices (from, to) of pages ``first..last`` inside a region; ``to`` is exclusive."""
    base = p.region[slot] << REGION_SHIFT
    return max(first - base, 0), min(last - base + 1, PAGES)


@njit
def count(p, space, first, last):
    """(pages present, tables present) in pages ``first..last``."""
    n = collect(p, space, first, last)
    pages = 0
    for k in range(n):
        slot = p.scratch[k]
        lo, hi = bounds(p, slot, first, last)
        if lo == 0 and hi == PAGES:
            pages += p.n_present[slot]
        elif p.n_present[slot] > 0:
            for i in range(lo, hi):
                pages += p.state[slot, i] != ABSENT
    return pages, n


@njit
def zap(p, space, first, last):
    """Unmap pages ``first..last``; returns (pages that were present, tables)."""
    n = collect(p, space, first, last)
    pages = 0
    for k in range(n):
        slot = p.scratch[k]
        if p.n_present[slot] == 0:
            continue
        lo, hi = bounds(p, slot, first, last)
        here = 0
        for i in range(lo, hi):
            if p.state[slot, i] != ABSENT:
                p.state[slot, i] = ABSENT
                here += 1
        p.n_present[slot] -= here
        p.huge[slot] = 0
        pages += here
    return pages, n


@njit
def free_tables(p, space, floor, ceiling):
    """Free the tables of regions wholly inside pages ``floor..ceiling`` (exclusive).

    The kernel frees a table when no VMA is left in its reach, so ``floor`` and
    ``ceiling`` are the end of the VMA before the hole and the start of the next.
    """
    first = (floor + PAGES - 1) >> REGION_SHIFT
    last = (ceiling >> REGION_SHIFT) - 1
    if last < first:
        return 0
    n = collect(p, space, first << REGION_SHIFT, (last << REGION_SHIFT) + PAGES - 1)
    for k in range(n):
        _free(p, p.scratch[k])
    return n


@njit
def put(p, slot, i, state):
    """Set the state of page ``i`` of a region."""
    if p.state[slot, i] == ABSENT and state != ABSENT:
        p.n_present[slot] += 1
    elif p.state[slot, i] != ABSENT and state == ABSENT:
        p.n_present[slot] -= 1
    p.state[slot, i] = state


@njit
def populate(p, space, first, last, state):
    """Map what is absent in pages ``first..last``; returns (pages filled, tables made).

    The caller has checked ``regions_free``.
    """
    filled = 0
    made = 0
    for r in range(first >> REGION_SHIFT, (last >> REGION_SHIFT) + 1):
        before = p.meta[_USED]
        slot = make(p, space, r)
        made += p.meta[_USED] - before
        lo, hi = bounds(p, slot, first, last)
        for i in range(lo, hi):
            if p.state[slot, i] == ABSENT:
                p.state[slot, i] = state
                p.n_present[slot] += 1
                filled += 1
    return filled, made


@njit
def move(p, space, old, new, pages):
    """Move ``pages`` page entries (mremap); returns (pages moved, tables of the source).

    The caller has checked ``regions_free`` for the destination.
    """
    n = collect(p, space, old, old + pages - 1)
    moved = 0
    # make() does not touch scratch, so the list stays valid
    for k in range(n):
        slot = p.scratch[k]
        lo, hi = bounds(p, slot, old, old + pages - 1)
        base = p.region[slot] << REGION_SHIFT
        for i in range(lo, hi):
            state = p.state[slot, i]
            use = p.last_use[slot, i]
            if state == ABSENT and use < 0:
                continue
            target = base + i - old + new
            there = make(p, space, target >> REGION_SHIFT)
            j = target & (PAGES - 1)
            if state != ABSENT:
                put(p, there, j, state)
                put(p, slot, i, ABSENT)
                moved += 1
            p.last_use[there, j] = max(use, p.last_use[there, j])
    return moved, n


@njit
def fork(p, parent, child):
    """Copy the parent's pages to a new space: own pages become COW in both.

    Returns (pages copied, tables copied).  The caller has checked ``regions_free``.
    """
    pages = 0
    tables = 0
    slot = p.head[parent]
    while slot >= 0:
        if p.n_present[slot] > 0:
            other = make(p, child, p.region[slot])
            tables += 1
            for i in range(PAGES):
                state = p.state[slot, i]
                if state == ANON:
                    p.state[slot, i] = COW
                    state = np.uint8(COW)
                if state == COW:
                    pages += 1
                p.state[other, i] = state
            p.n_present[other] = p.n_present[slot]
            p.huge[other] = p.huge[slot]
            # fork built it: no thread of the child can find it missing
            p.seen[other] = ~np.uint64(0)
        slot = p.next[slot]
    return pages, tables


@njit
def drop_space(p, space):
    """Free everything of a space; returns (pages, tables)."""
    pages = 0
    tables = 0
    while p.head[space] >= 0:
        slot = p.head[space]
        pages += p.n_present[slot]
        tables += 1
        _free(p, slot)
    return pages, tables
