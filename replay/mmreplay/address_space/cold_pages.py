"""Which pages an operation finds in no cache: a pass over the planned operations, in order.

A page that was freed a moment ago is still in a cache when the allocator hands it out again
(its per-CPU lists and the buddy lists are stacks); clearing or copying one that is not there
takes as long again.  On a 2-CPU AMD EPYC (Zen 4) guest under Linux 6.18 a write fault took
1.14, 1.24, 1.54 and 1.58 us while 1, 4, 16 and 128 MiB were written and unmapped in turn, and
a write fault on shared tmpfs pages 0.85, 0.87, 0.90 and 1.12 us.  A page that was not touched for
long before it was freed is in none either: with 16 MiB of younger pages always mapped a fault
took 1.42 us for 1.09 us without (pieces of 1 MiB, ``benchmarks/unmap_costs.py``).

Unmapping looks at the struct page of each page, which was in a cache when the page was allocated
and is not for ever.  On the same machine munmap of 64 and 256 pages took 237 and 212 ns a page
right after they were touched, and after 16 MiB of others between 268 and 352, 224 and 338, by
what else was in the last-level cache (three runs of ``benchmarks/unmap_costs.py``).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mmreplay.address_space.plan import PlanOp, Trait
from mmreplay.jit import borrowing_helper, native

#: What stays in the caches between freeing and allocating, in pages of 4 KiB: 8 MiB, between
#: the 4 MiB that did and the 16 MiB that did not (above).  Of the order of a core's share of
#: the last-level cache of today's servers, 2 to 8 MiB.
CACHED_PAGES: Final = 2048

#: Ranges of 2 MiB whose last allocation is remembered: those 128 GiB apart share an entry.
RANGES: Final = 1 << 16

_COLD = np.uint64(int(Trait.COLD))
_COLD_FILE = np.uint64(int(Trait.COLD_FILE))
_FAULT, _POPULATE = int(PlanOp.FAULT), int(PlanOp.MADVISE_POPULATE)
_WRITE, _ANON, _SHARED = (np.uint64(int(t)) for t in (Trait.WRITE, Trait.ANON, Trait.SHARED))
_BACKED = np.uint64(int(Trait.FILE | Trait.SHMEM))
_AROUND = np.uint64(int(Trait.FAULT_AROUND))
_COW, _FIRST = np.uint64(int(Trait.COW)), np.uint64(int(Trait.FIRST_IN_FILE))
_NOT_MAPPED = np.uint64(
    int(Trait.HOLE | Trait.ACCESS_ERROR | Trait.FAILED | Trait.HUGETLB | Trait.SWAP)
)
#: Operations that give pages back (PAGES_PRESENT); an exit gives back what is left.
_FREES = np.zeros(256, np.bool_)
_FREES[
    [PlanOp.MUNMAP, PlanOp.MADVISE_ZAP, PlanOp.BRK_SHRINK, PlanOp.MREMAP_SHRINK, PlanOp.MMAP]
] = True
_EXIT = int(PlanOp.PROCESS_EXIT)
_PRESENT, _HUGE = np.uint64(int(Trait.PRESENT)), np.uint64(int(Trait.HUGE))
_PAGES_PRESENT = np.uint64(int(Trait.PAGES_PRESENT))
_NONE = np.uint64(0)


@borrowing_helper
def _allocates(op: Any, traits: Any) -> Any:
    """Whether pages of its own come with a fault or a populating call."""
    if traits & _FIRST != _NONE:
        return True
    if traits & _WRITE == _NONE or traits & _SHARED != _NONE:
        return False
    if op == _FAULT and traits & _PRESENT != _NONE:
        return traits & _COW != _NONE
    return True


@borrowing_helper
def _range_of(mm: Any, page: Any) -> Any:
    """Entry of ``filled`` for a page of an address space (its page table, and a few others)."""
    return ((page >> 9) + 40503 * np.int64(mm)) & (RANGES - 1)


@native
def mark_cold(ops: Any, n: int, cached: int, held: Any, filled: Any) -> None:
    """Set COLD and COLD_FILE in the traits of ``ops[:n]``, records in order of effect.

    Of freed pages at most ``cached`` are in the caches, the newest.  A call that frees more
    leaves none there that the next allocation meets, because the allocator merges them; nor
    does one that frees what has left the caches itself.  Whose pages they were does not matter:
    threads share the last-level cache.  A page of a file is
    cold where the mapping it is faulted in is larger than the caches.  ``held``, zeros on
    entry: pages that each address space has allocated (what it had before is freed unseen).
    What is free at the beginning counts as warm.  What an operation frees is cold where it is
    more than ``cached`` pages, or so many have been allocated since the 2 MiB at either end of its
    range last got one.  ``filled`` (RANGES,), zeros on entry: when that was.
    """
    warm = np.int64(cached)  # freed pages that are still in a cache
    clock = np.int64(0)  # pages allocated so far
    for o in range(n):
        traits = ops[o].traits
        op = ops[o].op
        mm = ops[o].mm
        freed = np.int64(0)
        if op == _FAULT or op == _POPULATE:
            pages = np.int64(ops[o].pages)
            if pages <= 0 or traits & _NOT_MAPPED != _NONE:
                continue
            if _allocates(op, traits):
                held[mm] += pages
                clock += pages
                filled[_range_of(mm, ops[o].first_page)] = clock
                if pages > warm:
                    warm = np.int64(0)
                    if traits & _HUGE == _NONE:
                        ops[o].traits |= _COLD
                else:
                    warm -= pages
            if (
                traits & _BACKED != _NONE
                and traits & _FIRST == _NONE
                and ops[o].vma_last_page - ops[o].vma_first_page >= cached
                and not (traits & _AROUND != _NONE and pages == 1)  # its neighbours are there
            ):
                ops[o].traits |= _COLD_FILE
        elif op == _EXIT:
            freed = held[mm]
        elif _FREES[op] and traits & _PAGES_PRESENT != _NONE and traits & _SHARED == _NONE:
            freed = min(np.int64(ops[o].pages), held[mm])
        if freed > 0:
            held[mm] -= freed
            last = filled[_range_of(mm, ops[o].first_page)]
            last = max(last, filled[_range_of(mm, ops[o].last_page)])
            if freed > cached or (last > 0 and clock - last > cached):
                ops[o].traits |= _COLD
                warm = np.int64(0)
            else:
                warm = min(warm + freed, np.int64(cached))
