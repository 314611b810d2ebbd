"""What calls do to the pages of their range, and the page tables that they walk; compiled."""

from __future__ import annotations

from typing import Final

import numpy as np

from mmreplay.address_space import page_state as pages_
from mmreplay.address_space.page_state import ANON, CACHE, DIRTY, REGION_SHIFT, ZERO
from mmreplay.address_space.plan import MarkSet, PlanOp, Trait
from mmreplay.address_space.plan_state import Cursor
from mmreplay.address_space.vma_index import find
from mmreplay.address_space.vma_state import (
    OWN_FILES,
    S_LAST,
    V_END,
    V_FILE,
    V_FLAGS,
    V_NEXT,
    V_PREV,
    V_START,
    Vm,
)
from mmreplay.jit import borrowing_helper

_T_COW: Final = int(Trait.COW)
_T_TABLE: Final = int(Trait.TABLE_MISSING)
_POPULATE, _MMAP = int(PlanOp.MADVISE_POPULATE), int(PlanOp.MMAP)
_TABLES: Final = int(MarkSet.TABLES)
_REWRITTEN: Final = int(MarkSet.REWRITTEN)
_MARKS: Final = int(Cursor.MARKS)
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
def list_tables(p, w, out, o, space, first, last):
    """The page-table pages of ``first..last``: one is the operation's own, the others its list.

    The last list of the operation: its set is the highest.  There is room (``_room``).
    """
    n = pages_.collect(p, space, first, last)
    at = w.cursor[_MARKS]
    for k in range(n):
        table = p.slot[p.slot[k].scratch].table
        if k == 0:
            out.ops[o].table = table
        else:
            out.marks[at].vma = table
            out.marks[at].set = _TABLES
            at += 1
    w.cursor[_MARKS] = at
    out.ops[o].tables = n


@borrowing_helper
def count_present(p, w, out, o, space, first, last):
    """Pages and page-table pages of an operation that walks what is mapped in its range."""
    out.ops[o].pages, _ = pages_.count(p, space, first, last)
    list_tables(p, w, out, o, space, first, last)


@borrowing_helper
def rewritten(m, p, space, first, last, prot):
    """mprotect of several VMAs: how many of them change, and have pages."""
    slot = find(m, space, first << 12)
    n = 0
    if slot < 0 or (m.vma[slot, V_END] >> 12) - 1 >= last:
        return n
    while slot >= 0 and m.vma[slot, V_START] >> 12 <= last:
        if m.vma[slot, V_FLAGS] & _V_ACCESS != prot & _V_ACCESS:
            begin, end = m.vma[slot, V_START] >> 12, (m.vma[slot, V_END] >> 12) - 1
            pages, _ = pages_.count(p, space, max(first, begin), min(last, end))
            n += pages > 0
        slot = m.vma[slot, V_NEXT]
    return n


@borrowing_helper
def flushes(w, out, o, n):
    """The list REWRITTEN of ``n`` VMAs (which they are does not matter)."""
    at = w.cursor[_MARKS]
    for k in range(n):
        out.marks[at + k].vma = out.ops[o].vma
        out.marks[at + k].set = _REWRITTEN
    w.cursor[_MARKS] = at + n


@borrowing_helper
def release(m, p, space, first, last):
    """Zap pages ``first..last`` and free the tables that no VMA needs any more.

    Returns (pages, tables freed).
    """
    zapped, _ = pages_.zap(p, space, first, last)
    pages_.forget_uses(p, space, first, last)
    above = find(m, space, (last + 1) << 12)
    ceiling = (m.vma[above, V_START] >> 12) if above >= 0 else np.int64(1) << 45
    below = m.vma[above, V_PREV] if above >= 0 else m.spaces[space, S_LAST]
    floor = (m.vma[below, V_END] >> 12) if below >= 0 else np.int64(0)
    # only what this call uncovered: older holes lost their tables when they were made
    freed = pages_.free_tables(
        p,
        space,
        max(floor, (first >> REGION_SHIFT) << REGION_SHIFT),
        min(ceiling, ((last >> REGION_SHIFT) + 1) << REGION_SHIFT),
    )
    return zapped, freed


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
        pays = op == _POPULATE or op == _MMAP
        if pays and out.ops[o].table < 0:  # else it has unmapped something: its tables are listed
            _makes_table(p, w, out, o, space, first >> REGION_SHIFT, before)
    out.ops[o].pages = filled
    out.ops[o].tables = (last >> REGION_SHIFT) - (first >> REGION_SHIFT) + 1
