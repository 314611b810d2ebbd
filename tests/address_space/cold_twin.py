"""Which pages are in no cache, in plain Python: the definition of ``cold_pages``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from plan_twin import Op

from mmreplay.address_space.plan import PlanOp, Trait

T = Trait
NOT_MAPPED = T.HOLE | T.ACCESS_ERROR | T.FAILED | T.HUGETLB | T.SWAP
FREES = (PlanOp.MUNMAP, PlanOp.MADVISE_ZAP, PlanOp.BRK_SHRINK, PlanOp.MREMAP_SHRINK, PlanOp.MMAP)


def entry(mm: int, page: int) -> int:
    """Where the last allocation in a page's 2 MiB is remembered."""
    return (page // 512 + 40503 * mm) % 2**16


def allocates(op: Op) -> bool:
    if T.FIRST_IN_FILE in op.traits:
        return True
    if T.WRITE not in op.traits or T.SHARED in op.traits:
        return False
    return T.COW in op.traits or op.op is not PlanOp.FAULT or T.PRESENT not in op.traits


def cold_traits(ops: Sequence[Op], cached: int) -> list[Trait]:
    """COLD and COLD_FILE of each operation, in order of effect."""
    warm, held, found = cached, Counter[int](), []
    clock, filled = 0, Counter[int]()
    for op in ops:
        got, freed = Trait(0), 0
        if op.op in (PlanOp.FAULT, PlanOp.MADVISE_POPULATE):
            if op.pages > 0 and not op.traits & NOT_MAPPED:
                if allocates(op):
                    held[op.mm] += op.pages
                    clock += op.pages
                    filled[entry(op.mm, op.first_page)] = clock
                    if op.pages > warm and T.HUGE not in op.traits:
                        got |= T.COLD
                    warm = warm - op.pages if op.pages <= warm else 0
                low, high = op.bounds
                large = high - low >= cached
                alone = T.FAULT_AROUND in op.traits and op.pages == 1
                if op.traits & (T.FILE | T.SHMEM) and T.FIRST_IN_FILE not in op.traits:
                    got |= T.COLD_FILE if large and not alone else Trait(0)
        elif op.op is PlanOp.PROCESS_EXIT:
            freed = held[op.mm]
        elif op.op in FREES and T.PAGES_PRESENT in op.traits and T.SHARED not in op.traits:
            freed = min(op.pages, held[op.mm])
        if freed:
            held[op.mm] -= freed
            last = max(filled[entry(op.mm, page)] for page in (op.first_page, op.last_page))
            if freed > cached or 0 < last < clock - cached:
                got |= T.COLD
            warm = 0 if T.COLD in got else min(warm + freed, cached)
        found.append(got)
    return found
