"""What a call that populates its range does to the pages; compiled."""

from __future__ import annotations

from typing import Final

import numpy as np

from mmreplay.address_space import page_state as pages_
from mmreplay.address_space.page_state import ANON, CACHE, DIRTY, REGION_SHIFT, ZERO
from mmreplay.address_space.plan import PlanOp, Trait
from mmreplay.address_space.vma_index import find
from mmreplay.address_space.vma_state import (
    OWN_FILES,
    V_END,
    V_FILE,
    V_FLAGS,
    V_NEXT,
    V_START,
    Vm,
)
from mmreplay.jit import borrowing_helper

_T_COW: Final = int(Trait.COW)
_T_TABLE: Final = int(Trait.TABLE_MISSING)
_POPULATE, _MMAP = int(PlanOp.MADVISE_POPULATE), int(PlanOp.MMAP)
_V_WRITE, _V_SHARED = int(Vm.WRITE), int(Vm.SHARED)
_V_ACCESS: Final = int(Vm.READ | Vm.WRITE | Vm.EXEC)


@borrowing_helper
def _makes_table(p, w, out, o, space, region, table):
    """Row ``o`` pays for one page table, the first that it made, from ``region`` on."""
    slot = pages_.find(p, space, region)
    while slot < 0 or p.slot[slot].table != table:
        region += 1
        slot = pages_.find(p, space, region)
    w.table_initial[table] = 0
    p.slot[slot].seen |= np.uint64(1) << np.uint64(out.ops[o].thread & 63)
    out.ops[o].table = table
    out.ops[o].traits |= np.uint64(_T_TABLE)


@borrowing_helper
def fill(m, p, w, out, o, space, first, last, write):
    """Populate the mapped parts of pages ``first..last``: pages, tables and traits of ``o``."""
    filled = 0
    before = p.meta[2]
    slot = find(m, space, first << 12)
    while slot >= 0 and m.vma[slot, V_START] >> 12 <= last:
        flags, file = m.vma[slot, V_FLAGS], m.vma[slot, V_FILE]
        if flags & _V_ACCESS:
            private = flags & _V_SHARED == 0
            writes = write and flags & _V_WRITE != 0
            if file == 0:
                state = ANON if writes else ZERO
            elif private:
                state = ANON if writes else CACHE
            else:
                state = DIRTY if writes else CACHE
            start, end = m.vma[slot, V_START] >> 12, (m.vma[slot, V_END] >> 12) - 1
            lo, hi = max(first, start), min(last, end)
            if writes or file == 0 or file >= OWN_FILES:  # no fault-around
                end = start - 1
            n, _, copied = pages_.populate(p, space, lo, hi, state, start, end, writes and private)
            filled += n
            if copied:
                out.ops[o].traits |= np.uint64(_T_COW)
        slot = m.vma[slot, V_NEXT]
    for table in range(before, p.meta[2]):
        w.table_initial[table] = 1  # the populating call made it: nobody else finds it missing
    if p.meta[2] > before and o < len(out.ops) - 1:  # the last row is not planned
        op = out.ops[o].op
        if op == _POPULATE or op == _MMAP:
            _makes_table(p, w, out, o, space, first >> REGION_SHIFT, before)
    out.ops[o].pages = filled
    out.ops[o].tables = (last >> REGION_SHIFT) - (first >> REGION_SHIFT) + 1
