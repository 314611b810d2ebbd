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

from mmreplay.jit import borrowing_helper, inlined_helper, lean, native, tables

PAGES: Final = 512  # pages per region, x86-64 and arm64 with 4 KiB pages
REGION_SHIFT: Final = 9

# What is mapped at a page.
#: fault_around_bytes, mm/memory.c@6.18: 64 KiB, aligned.
FAULT_AROUND: Final = 16
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


SLOT: Final = np.dtype(
    [
        ("seen", np.uint64),  # threads (number modulo 64) that faulted in it
        ("region", np.int64),
        ("n_present", np.int32),  # pages not ABSENT
        ("table", np.int32),  # number of this life of the page-table page
        ("space", np.int32),
        ("next", np.int32),  # of the same space, or of the free list
        ("prev", np.int32),
        ("scratch", np.int32),  # used by collect()
        ("huge", np.int32),  # mapped by one huge page
        ("user", np.int32),  # the thread of all of ``last_use``, -1 none, -2 several
    ],
    align=True,
)
SPACE: Final = np.dtype([("head", np.int32), ("n_regions", np.int32)])


class PageState(NamedTuple):
    """S region slots, H hash buckets, M address spaces.  Few arrays: calls pass each by value."""

    key: NDArray[np.int64]  # (H,) space << 40 | region, -1 empty
    bucket: NDArray[np.int32]  # (H,) slot
    state: NDArray[np.uint8]  # (S, PAGES)
    last_use: NDArray[np.int32]  # (S, PAGES) position of the last fault, -1 none
    slot: NDArray[np.void]  # (S,) SLOT
    spaces: NDArray[np.void]  # (M,) SPACE
    meta: NDArray[np.int64]  # (META,)


tables(PageState, state=PAGES, last_use=PAGES)


def make_pages(spaces: int, slots: int = 256) -> PageState:
    """Empty state with room for ``slots`` regions (a power of two)."""
    slot = np.zeros(slots, SLOT)
    slot["next"] = np.arange(1, slots + 1)
    slot["next"][-1] = -1
    slot["table"] = slot["space"] = slot["prev"] = -1
    space = np.zeros(spaces, SPACE)
    space["head"] = -1
    return PageState(
        key=np.full(slots * 4, -1, np.int64),
        bucket=np.zeros(slots * 4, np.int32),
        state=np.zeros((slots, PAGES), np.uint8),
        last_use=np.full((slots, PAGES), -1, np.int32),
        slot=slot.view(np.recarray),
        spaces=space.view(np.recarray),
        meta=np.array([0, 0, 0], np.int64),
    )


def grow_pages(old: PageState, need: int) -> PageState:
    """The same state with room for ``need`` more regions."""
    slots = len(old.slot)
    wanted = slots
    while wanted - int(old.meta[_USED]) < need:
        wanted *= 2
    if wanted == slots:
        return old
    new = make_pages(len(old.spaces), wanted)
    for name in ("state", "last_use", "slot"):
        getattr(new, name)[:slots] = getattr(old, name)
    new.spaces[:] = old.spaces
    new.meta[:] = old.meta
    new.slot["next"][wanted - 1] = int(old.meta[_FREE])
    new.meta[_FREE] = slots
    _rehash(new)
    return new


@inlined_helper
def _bucket_of(p, key):
    """Bucket that holds ``key``, or the empty one where it belongs."""
    mask = len(p.key) - 1
    # Fibonacci hashing: regions of one space are consecutive numbers.
    at = ((key * np.int64(-7046029254386353131)) >> 20) & mask
    while p.key[at] != -1 and p.key[at] != key:
        at = (at + 1) & mask
    return at


@native
def _rehash(arrays):
    p = lean(arrays)
    for space in range(len(p.spaces)):
        slot = p.spaces[space].head
        while slot >= 0:
            key = (np.int64(space) << 40) | p.slot[slot].region
            at = _bucket_of(p, key)
            p.key[at] = key
            p.bucket[at] = slot
            slot = p.slot[slot].next


@borrowing_helper
def regions_free(p):
    """Regions that can still be made without growing."""
    return len(p.slot) - p.meta[_USED]


def tables_made(p: PageState) -> int:
    """How many lives of page-table pages there have been."""
    return int(p.meta[_NEXT_TABLE])


@borrowing_helper
def find(p, space, region):
    """Slot of a region, or -1."""
    at = _bucket_of(p, (np.int64(space) << 40) | region)
    return p.bucket[at] if p.key[at] != -1 else np.int32(-1)


@inlined_helper
def make(p, space, region):
    """Slot of a region, made (with a new table) where there is none."""
    at = _bucket_of(p, (np.int64(space) << 40) | region)
    return p.bucket[at] if p.key[at] != -1 else _make_at(p, space, region, at)


@borrowing_helper
def _make_at(p, space, region, at):
    slot = np.int32(p.meta[_FREE])
    p.meta[_FREE] = p.slot[slot].next
    p.meta[_USED] += 1
    p.key[at] = (np.int64(space) << 40) | region
    p.bucket[at] = slot
    for i in range(PAGES):
        p.state[slot, i] = ABSENT
        p.last_use[slot, i] = -1
    p.slot[slot].n_present = 0
    p.slot[slot].table = p.meta[_NEXT_TABLE]
    p.meta[_NEXT_TABLE] += 1
    p.slot[slot].seen = 0
    p.slot[slot].huge = 0
    p.slot[slot].user = -1
    p.slot[slot].region = region
    p.slot[slot].space = space
    first = p.spaces[space].head
    p.slot[slot].next = first
    p.slot[slot].prev = -1
    if first >= 0:
        p.slot[first].prev = slot
    p.spaces[space].head = slot
    p.spaces[space].n_regions += 1
    return slot


@borrowing_helper
def _free(p, slot):
    mask = len(p.key) - 1
    space = p.slot[slot].space
    hole = _bucket_of(p, (np.int64(space) << 40) | p.slot[slot].region)
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
    before = p.slot[slot].prev
    after = p.slot[slot].next
    if before >= 0:
        p.slot[before].next = after
    else:
        p.spaces[space].head = after
    if after >= 0:
        p.slot[after].prev = before
    p.spaces[space].n_regions -= 1
    p.slot[slot].space = -1
    p.slot[slot].next = p.meta[_FREE]
    p.meta[_FREE] = slot
    p.meta[_USED] -= 1


@borrowing_helper
def collect(p, space, first, last):
    """Slots of the regions of pages ``first..last`` into ``scratch``; returns their number."""
    r0 = first >> REGION_SHIFT
    r1 = last >> REGION_SHIFT
    n = 0
    if r1 - r0 >= p.spaces[space].n_regions:
        slot = p.spaces[space].head
        while slot >= 0:
            if r0 <= p.slot[slot].region <= r1:
                p.slot[n].scratch = slot
                n += 1
            slot = p.slot[slot].next
        return n
    for r in range(r0, r1 + 1):
        slot = find(p, space, r)
        if slot >= 0:
            p.slot[n].scratch = slot
            n += 1
    return n


@borrowing_helper
def bounds(p, slot, first, last):
    """Indices (from, to) of pages ``first..last`` inside a region; ``to`` is exclusive."""
    base = p.slot[slot].region << REGION_SHIFT
    return max(first - base, 0), min(last - base + 1, PAGES)


@borrowing_helper
def count(p, space, first, last):
    """(pages present, tables present) in pages ``first..last``."""
    n = collect(p, space, first, last)
    pages = 0
    for k in range(n):
        slot = p.slot[k].scratch
        lo, hi = bounds(p, slot, first, last)
        if lo == 0 and hi == PAGES:
            pages += p.slot[slot].n_present
        elif p.slot[slot].n_present > 0:
            for i in range(lo, hi):
                pages += p.state[slot, i] != ABSENT
    return pages, n


@borrowing_helper
def zap(p, space, first, last):
    """Unmap pages ``first..last``; returns (pages that were present, tables)."""
    n = collect(p, space, first, last)
    pages = 0
    for k in range(n):
        slot = p.slot[k].scratch
        if p.slot[slot].n_present == 0:
            continue
        lo, hi = bounds(p, slot, first, last)
        here = 0
        for i in range(lo, hi):
            if p.state[slot, i] != ABSENT:
                p.state[slot, i] = ABSENT
                here += 1
        p.slot[slot].n_present -= here
        p.slot[slot].huge = 0
        pages += here
    return pages, n


@borrowing_helper
def forget_uses(p, space, first, last):
    """The pages belong to a new mapping: nobody has used them."""
    found = collect(p, space, first, last)
    for k in range(found):
        slot = p.slot[k].scratch
        lo, hi = bounds(p, slot, first, last)
        for i in range(lo, hi):
            p.last_use[slot, i] = -1


@borrowing_helper
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
        _free(p, p.slot[k].scratch)
    return n


@inlined_helper
def put(p, slot, i, state):
    """Set the state of page ``i`` of a region."""
    if p.state[slot, i] == ABSENT and state != ABSENT:
        p.slot[slot].n_present += 1
    elif p.state[slot, i] != ABSENT and state == ABSENT:
        p.slot[slot].n_present -= 1
    p.state[slot, i] = state


@borrowing_helper
def populate(p, space, first, last, state, low, high, copies):
    """Map what is absent in pages ``first..last``; (pages filled, tables made, pages copied).

    ``low..high``: of what is read of a file, the aligned 16 pages around come along as far as
    this reaches (do_fault_around); ``low > high``: nothing does.  ``copies``: private pages
    mapped for reading are replaced (do_wp_page).  The caller has checked ``regions_free``.
    """
    filled = 0
    made = 0
    copied = 0
    for r in range(first >> REGION_SHIFT, (last >> REGION_SHIFT) + 1):
        before = p.meta[_USED]
        slot = make(p, space, r)
        made += p.meta[_USED] - before
        lo, hi = bounds(p, slot, first, last)
        for i in range(lo, hi):
            if p.state[slot, i] == ABSENT:
                base = r << REGION_SHIFT
                begin, end = i, i + 1
                if low <= high:
                    begin = max(i & ~(FAULT_AROUND - 1), low - base)
                    end = min((i | (FAULT_AROUND - 1)) + 1, high + 1 - base)
                for j in range(begin, end):
                    if p.state[slot, j] == ABSENT:
                        p.state[slot, j] = state
                        p.slot[slot].n_present += 1
                        filled += 1
            elif copies and (p.state[slot, i] == ZERO or p.state[slot, i] == CACHE):
                p.state[slot, i] = state
                filled += 1
                copied += 1
    return filled, made, copied


@borrowing_helper
def note_user(p, slot, thread):
    """Besides others, ``thread`` (-2: several) has used pages of a region."""
    user = p.slot[slot].user
    if user != thread:
        p.slot[slot].user = thread if user == -1 else -2


@borrowing_helper
def move(p, space, old, new, pages):
    """Move ``pages`` page entries (mremap); returns (pages moved, tables of the source).

    The caller has checked ``regions_free`` for the destination.
    """
    n = collect(p, space, old, old + pages - 1)
    moved = 0
    # make() does not touch scratch, so the list stays valid
    for k in range(n):
        slot = p.slot[k].scratch
        lo, hi = bounds(p, slot, old, old + pages - 1)
        base = p.slot[slot].region << REGION_SHIFT
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
            if use >= 0:
                p.last_use[there, j] = max(use, p.last_use[there, j])
                note_user(p, there, p.slot[slot].user)
    return moved, n


@borrowing_helper
def fork(p, parent, child):
    """Copy the parent's pages to a new space: own pages become COW in both.

    Returns (pages copied, tables copied).  The caller has checked ``regions_free``.
    """
    pages = 0
    tables = 0
    slot = p.spaces[parent].head
    while slot >= 0:
        if p.slot[slot].n_present > 0:
            other = make(p, child, p.slot[slot].region)
            tables += 1
            for i in range(PAGES):
                state = p.state[slot, i]
                if state == ANON:
                    p.state[slot, i] = COW
                    state = np.uint8(COW)
                if state == COW:
                    pages += 1
                p.state[other, i] = state
            p.slot[other].n_present = p.slot[slot].n_present
            p.slot[other].huge = p.slot[slot].huge
            # fork built it: no thread of the child can find it missing
            p.slot[other].seen = ~np.uint64(0)
        slot = p.slot[slot].next
    return pages, tables


@borrowing_helper
def total(p, space):
    """(pages, tables) of a space."""
    pages = 0
    slot = p.spaces[space].head
    while slot >= 0:
        pages += p.slot[slot].n_present
        slot = p.slot[slot].next
    return pages, p.spaces[space].n_regions


@borrowing_helper
def drop_space(p, space):
    """Free everything of a space; returns (pages, tables)."""
    pages = 0
    tables = 0
    while p.spaces[space].head >= 0:
        slot = p.spaces[space].head
        pages += p.slot[slot].n_present
        tables += 1
        _free(p, slot)
    return pages, tables
