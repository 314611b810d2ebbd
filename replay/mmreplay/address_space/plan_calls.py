"""Calls that read or change the map: which program, which VMAs, how many pages; compiled."""

from __future__ import annotations

import numpy as np

from mmreplay.address_space import page_state as pages_
from mmreplay.address_space import segments as segments_
from mmreplay.address_space.opmap import (
    BEFORE_LOCK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_GUARD_INSTALL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_REMOVE,
    PROGRAM,
)
from mmreplay.address_space.page_state import ANON, CACHE, DIRTY, PAGES, REGION_SHIFT, ZERO
from mmreplay.address_space.plan import PlanOp, Trait
from mmreplay.address_space.plan_fault import anon_slot_of, vma_traits
from mmreplay.address_space.plan_state import Count, Cursor, Status, add_dep, flush_late, note_late
from mmreplay.address_space.vma_index import find
from mmreplay.address_space.vma_map import apply
from mmreplay.address_space.vma_state import NEED_SPACE, NONE, Info, Vm
from mmreplay.jit import njit
from mmreplay.schema import OpKind

_T_HOLE = int(Trait.HOLE)
_T_STRUCTURAL = int(Trait.STRUCTURAL)
_T_SPLITS = int(Trait.SPLITS)
_T_MERGES = int(Trait.MERGES)
_T_OVERLAPS = int(Trait.OVERLAPS)
_T_POPULATE = int(Trait.POPULATE)
_T_MULTI = int(Trait.MULTI_VMA)
_T_NO_CHANGE = int(Trait.NO_CHANGE)
_T_PAGES = int(Trait.PAGES_PRESENT)
_T_FREES = int(Trait.FREES_TABLES)
_T_FAILED = int(Trait.FAILED)
_T_NEXT_DOWN = int(Trait.NEXT_GROWSDOWN)
_T_HUGE = int(Trait.HUGE)
_T_WRITE = int(Trait.WRITE)

_NONE_OP = int(PlanOp.NONE)
_BRK_GROW = int(PlanOp.BRK_GROW)
_BRK_SHRINK = int(PlanOp.BRK_SHRINK)
_BRK_QUERY = int(PlanOp.BRK_QUERY)
_MREMAP = (
    int(PlanOp.MREMAP_NOOP),
    int(PlanOp.MREMAP_NOOP),
    int(PlanOp.MREMAP_SHRINK),
    int(PlanOp.MREMAP_GROW),
    int(PlanOp.MREMAP_MOVE),
)
_MADV_ZAP = int(PlanOp.MADVISE_ZAP)
_MADV_POPULATE = int(PlanOp.MADVISE_POPULATE)
_MADV_COLLAPSE = int(PlanOp.MADVISE_COLLAPSE)

_MMAP = int(OpKind.MMAP)
_MUNMAP = int(OpKind.MUNMAP)
_MPROTECT = int(OpKind.MPROTECT)
_PKEY_MPROTECT = int(OpKind.PKEY_MPROTECT)
_MADVISE = int(OpKind.MADVISE)
_BRK = int(OpKind.BRK)
_MREMAP_KIND = int(OpKind.MREMAP)
_MLOCK = int(OpKind.MLOCK)
_MUNLOCK = int(OpKind.MUNLOCK)
_MLOCKALL = int(OpKind.MLOCKALL)
_MUNLOCKALL = int(OpKind.MUNLOCKALL)
_SHMAT = int(OpKind.SHMAT)
_SHMDT = int(OpKind.SHMDT)
_UFFD = int(OpKind.UFFD)
_PROC_READ = int(OpKind.PROC_READ)
_PROCESS_MADVISE = int(OpKind.PROCESS_MADVISE)

_I_EFFECTS = int(Info.EFFECTS)
_I_VMAS = int(Info.VMAS)
_I_FIRST = int(Info.FIRST_SLOT)
_I_FIRST_UID = int(Info.FIRST_UID)
_I_FIRST_FLAGS = int(Info.FIRST_FLAGS)
_I_FIRST_FILE = int(Info.FIRST_FILE)
_I_SPLITS = int(Info.SPLITS)
_I_MERGES = int(Info.MERGES)
_I_HOLE = int(Info.HOLE)
_I_MULTI = int(Info.MULTI)
_I_NO_CHANGE = int(Info.NO_CHANGE)
_I_NEXT_DOWN = int(Info.NEXT_GROWSDOWN)
_I_OVERLAPPED = int(Info.OVERLAPPED)
_I_TARGET = int(Info.TARGET_SLOT)
_I_TARGET_UID = int(Info.TARGET_UID)
_I_MREMAP = int(Info.MREMAP_KIND)
_I_CONFLICTS = int(Info.CONFLICTS)
_I_ERROR = int(Info.ERROR)
_I_POPULATES = int(Info.POPULATES)

_V_WRITE = int(Vm.WRITE)
_V_SHARED = int(Vm.SHARED)
_V_ACCESS = int(Vm.READ | Vm.WRITE | Vm.EXEC)
_MAP_POPULATE = 0x8000

_C_DISAGREED = int(Count.CALLS_DISAGREED)
_C_CONFLICTS = int(Count.MAP_CONFLICTS)
_C_STALE = int(Count.STALE_PAGES)
_C_BRK = int(Count.BRK_UNKNOWN)
_MARKS = int(Cursor.MARKS)
_NEED = int(Cursor.NEED)
_GROW_MAP = int(Status.GROW_MAP)
_GROW_PAGES = int(Status.GROW_PAGES)
_SETS = 7


@njit
def copy_marks(m, w, out):
    """The map's effects into the plan's marks: grouped by set, the kernel's order inside."""
    n = m.info[_I_EFFECTS]
    at = w.cursor[_MARKS]
    for mark_set in range(1, _SETS):
        for k in range(n):
            if m.effect_role[k] == mark_set:
                out.mark_vma[at] = m.effect_uid[k]
                out.mark_set[at] = mark_set
                at += 1
    w.cursor[_MARKS] = at


@njit
def range_deps(p, s, w, out, thread, space, first, last, users):
    """Waits of a call on pages ``first..last``.

    For the calls of other threads that made the range and, where it goes away
    (``users``), for the last fault of every other thread in it.
    """
    n = 0
    page = first
    while page <= last:
        start, end, value = segments_.next_range(s, space, page, last + 1)
        if start < 0:
            break
        if value >= 0 and out.thread[value] != thread:
            n = note_late(w, out, n, value)
        page = end
    if users:
        found = pages_.collect(p, space, first, last)
        for k in range(found):
            slot = p.scratch[k]
            lo, hi = pages_.bounds(p, slot, first, last)
            for i in range(lo, hi):
                op = p.last_use[slot, i]
                if op >= 0 and out.thread[op] != thread:
                    n = note_late(w, out, n, op)
    flush_late(w, out, n, thread)


@njit
def forget_uses(p, space, first, last):
    """The pages belong to a new mapping: nobody has used them."""
    found = pages_.collect(p, space, first, last)
    for k in range(found):
        slot = p.scratch[k]
        lo, hi = pages_.bounds(p, slot, first, last)
        for i in range(lo, hi):
            p.last_use[slot, i] = -1


@njit
def release(m, p, space, first, last):
    """Zap pages ``first..last`` and free the tables that no VMA needs any more.

    Returns (pages, tables in the range, tables freed).
    """
    zapped, tables = pages_.zap(p, space, first, last)
    forget_uses(p, space, first, last)
    above = find(m, space, (last + 1) << 12)
    ceiling = (m.start[above] >> 12) if above >= 0 else np.int64(1) << 45
    below = m.prev_slot[above] if above >= 0 else m.space_last[space]
    floor = (m.end[below] >> 12) if below >= 0 else np.int64(0)
    # only what this call uncovered: older holes lost their tables when they were made
    freed = pages_.free_tables(
        p,
        space,
        max(floor, (first >> REGION_SHIFT) << REGION_SHIFT),
        min(ceiling, ((last >> REGION_SHIFT) + 1) << REGION_SHIFT),
    )
    return zapped, tables, freed


@njit
def fill(m, p, w, space, first, last, write):
    """Populate the mapped parts of pages ``first..last``; returns (pages, tables touched)."""
    filled = 0
    before = p.meta[2]
    slot = find(m, space, first << 12)
    while slot >= 0 and m.start[slot] >> 12 <= last:
        flags = m.flags[slot]
        if flags & _V_ACCESS:
            private = flags & _V_SHARED == 0
            writes = write and flags & _V_WRITE != 0
            if m.file[slot] == 0:
                state = ANON if writes else ZERO
            elif private:
                state = ANON if writes else CACHE
            else:
                state = DIRTY if writes else CACHE
            lo = max(first, m.start[slot] >> 12)
            hi = min(last, (m.end[slot] >> 12) - 1)
            n, _ = pages_.populate(p, space, lo, hi, state)
            filled += n
        slot = m.next_slot[slot]
    for table in range(before, p.meta[2]):
        w.table_initial[table] = 1  # the populating call made it: nobody else finds it missing
    return filled, (last >> REGION_SHIFT) - (first >> REGION_SHIFT) + 1


@njit
def look(m, w, out, o, space, first, last):
    """VMAs of a range for calls that do not change the map; returns their traits."""
    slot = find(m, space, first << 12)
    end = (last + 1) << 12
    if slot < 0 or m.start[slot] >= end:
        return _T_HOLE
    traits = vma_traits(w, m.flags[slot], m.file[slot])
    out.vma[o] = m.uid[slot]
    out.file[o] = m.file[slot]
    if m.flags[slot] & _V_SHARED == 0:
        out.anon_slot[o] = anon_slot_of(m, w, slot)
    n = 1
    if m.end[slot] < end:
        traits |= _T_MULTI
    slot = m.next_slot[slot]
    while slot >= 0 and m.start[slot] < end:
        n += 1
        slot = m.next_slot[slot]
    out.vmas[o] = n
    return traits


@njit
def _describe(m, w, out, o, target, changed):
    """Row ``o`` from the map's findings; ``target``: by the VMA that now holds the result."""
    info = m.info
    traits = 0
    if info[_I_SPLITS] > 0:
        traits |= _T_SPLITS
    if info[_I_MERGES] > 0:
        traits |= _T_MERGES
    if info[_I_SPLITS] > 0 or info[_I_MERGES] > 0 or changed:
        traits |= _T_STRUCTURAL
    if info[_I_MULTI] == 1:
        traits |= _T_MULTI
    if info[_I_NO_CHANGE] == 1:
        traits = (traits | _T_NO_CHANGE) & ~_T_STRUCTURAL
    if info[_I_NEXT_DOWN] == 1:
        traits |= _T_NEXT_DOWN
    slot = info[_I_TARGET] if target else info[_I_FIRST]
    out.vmas[o] = info[_I_VMAS]
    if target:
        if slot >= 0:
            traits |= vma_traits(w, m.flags[slot], m.file[slot])
            out.vma[o] = m.uid[slot]
            out.file[o] = m.file[slot]
            if m.flags[slot] & _V_SHARED == 0:
                out.anon_slot[o] = anon_slot_of(m, w, slot)
    elif info[_I_VMAS] > 0:
        traits |= vma_traits(w, info[_I_FIRST_FLAGS], info[_I_FIRST_FILE])
        out.vma[o] = info[_I_FIRST_UID]
        out.file[o] = info[_I_FIRST_FILE]
    else:
        traits |= _T_HOLE
    return traits


@njit
def plan_call(rows, i, m, rules, p, s, w, out, o, inside, thread, space, options):
    """Plan the call in row ``i`` (not a fault, not a process event); returns a Status."""
    kind = rows.kind[i]
    flags = rows.flags[i]
    errno = rows.errno[i]
    failed = errno != 0
    op = PROGRAM[kind & 63, min(max(flags, 0), 127)]
    if failed and BEFORE_LOCK[kind & 63, min(max(errno, 0), 255)]:
        op = np.uint8(_NONE_OP)
        out.op[o] = op
        return 0
    length = rows.length[i]
    address = rows.address[i]
    if kind == _MMAP and not failed:
        address = rows.result[i] if rows.result[i] != 0 else address
    if kind == _BRK:
        address = rows.result[i] if rows.result[i] > 0 else address
    pages = (length + 4095) >> 12
    first = address >> 12
    last = first + max(pages, 1) - 1
    maker = np.int64(o) if inside else np.int64(-2)
    # mprotect, madvise and mlock of nothing return before the lock
    if (
        length == 0
        and not failed
        and kind in (_MPROTECT, _PKEY_MPROTECT, _MADVISE, _MLOCK, _MUNLOCK)
    ):
        out.op[o] = _NONE_OP
        return 0
    # room for what the call may populate or move, before anything changes
    fills = (
        (kind == _MMAP and flags & _MAP_POPULATE)
        or op == _MADV_POPULATE
        or kind in (_MLOCK, _UFFD, _MREMAP_KIND)
    )
    need = np.int64(8)
    if not failed and (kind in (_MMAP, _BRK, _MLOCK, _UFFD, _MREMAP_KIND) or op == _MADV_POPULATE):
        # a mapping may populate unasked after mlockall(MCL_FUTURE): bounded by the fill below
        if kind == _BRK and m.space_brk[space] != NONE:
            pages = (abs(rows.result[i] - m.space_brk[space]) + 4095) >> 12
        need = (pages >> REGION_SHIFT) + 8 if fills or m.space_flags[space] != 0 else need
    if pages_.regions_free(p) < need or len(w.table_initial) - p.meta[2] < need:
        w.cursor[_NEED] = need
        return _GROW_PAGES
    old_break = m.space_brk[space]
    asked = rows.result[i] if length > 0 else np.int64(0)  # brk: where address2 is null
    result = -np.int64(errno) if failed else rows.result[i]
    if kind == _PROC_READ:
        m.info[:] = 0
    else:
        if result == 0 and kind in (_MMAP, _BRK, _MREMAP_KIND, _SHMAT):
            result = NONE  # null in the trace: the rules decide
        status = apply(
            m,
            rules,
            space,
            kind,
            rows.address[i] if rows.has_address[i] else NONE,
            length,
            rows.address2[i] if kind != _BRK or rows.address2[i] > 0 else asked,
            rows.length2[i],
            np.int64(rows.prot[i]),
            flags,
            rows.file_offset[i],
            np.int64(rows.file[i]) + 1,
            result,
        )
        if status == NEED_SPACE:
            return _GROW_MAP
        if (m.info[_I_ERROR] != 0) != failed:
            w.counters[_C_DISAGREED] += 1
        copy_marks(m, w, out)
    traits = _T_FAILED if failed else 0
    out.first_page[o] = first
    out.last_page[o] = last
    if failed:
        out.op[o] = op
        if kind == _BRK:
            out.op[o] = _BRK_QUERY
        if rows.has_address[i] and kind != _MMAP and address >= 0:
            traits |= look(m, w, out, o, space, first, last)
        out.traits[o] |= np.uint64(traits)
        return 0
    # -- what the call did -------------------------------------------------------------
    if kind in (_MMAP, _SHMAT):
        traits |= _describe(m, w, out, o, True, True)
        if m.info[_I_OVERLAPPED] > 0:
            traits |= _T_OVERLAPS
        if m.info[_I_CONFLICTS] > 0:
            w.counters[_C_CONFLICTS] += m.info[_I_CONFLICTS]
        target = m.info[_I_TARGET]
        range_deps(p, s, w, out, thread, space, first, last, True)
        zapped, tables = pages_.zap(p, space, first, last)
        forget_uses(p, space, first, last)
        if zapped and m.info[_I_OVERLAPPED] == 0:
            w.counters[_C_STALE] += zapped
            zapped = 0
        out.pages[o] = zapped
        out.tables[o] = tables
        if zapped:
            traits |= _T_PAGES
        if m.info[_I_OVERLAPPED] > 0 and pages_.free_tables(p, space, first, last + 1):
            traits |= _T_FREES
        segments_.assign(s, space, first, last + 1, maker)
        if m.info[_I_POPULATES] == 1 or flags & _MAP_POPULATE:
            traits |= _T_POPULATE
            writes = target >= 0 and m.flags[target] & _V_WRITE != 0
            out.pages[o], out.tables[o] = fill(m, p, w, space, first, last, writes)
            if writes:
                traits |= _T_WRITE
    elif kind in (_MUNMAP, _SHMDT):
        traits |= _describe(m, w, out, o, False, m.info[_I_VMAS] > 0)
        _unmap(m, p, s, w, out, o, thread, space, first, last)
    elif kind in (_MPROTECT, _PKEY_MPROTECT):
        traits |= _describe(m, w, out, o, False, False)
        range_deps(p, s, w, out, thread, space, first, last, False)
        out.pages[o], out.tables[o] = pages_.count(p, space, first, last)
        if out.pages[o] > 0:
            traits |= _T_PAGES
        if m.info[_I_NO_CHANGE] == 0:
            segments_.assign(s, space, first, last + 1, maker)
    elif kind in (_MADVISE, _PROCESS_MADVISE):
        traits |= _advise(m, p, s, w, out, o, thread, space, first, last, op, flags)
    elif kind == _BRK:
        now = rows.result[i]
        if old_break == NONE:
            w.counters[_C_BRK] += 1
            old_break = now
        # the heap's VMA is what the break ends in (mm/mmap.c:brk@6.18 aligns both)
        low = (old_break + 4095) >> 12
        high = (now + 4095) >> 12
        if high > low:
            op = np.uint8(_BRK_GROW)
            out.first_page[o] = low
            out.last_page[o] = high - 1
            traits |= _describe(m, w, out, o, True, True)
            segments_.assign(s, space, low, high, maker)
            if m.info[_I_POPULATES] == 1:
                traits |= _T_POPULATE
                out.pages[o], out.tables[o] = fill(m, p, w, space, low, high - 1, True)
        elif high < low:
            op = np.uint8(_BRK_SHRINK)
            out.first_page[o] = high
            out.last_page[o] = low - 1
            traits |= _describe(m, w, out, o, False, True)
            _unmap(m, p, s, w, out, o, thread, space, high, low - 1)
        else:
            op = np.uint8(_BRK_QUERY)
            traits |= _T_NO_CHANGE
            out.first_page[o] = max(high - 1, 0)
            out.last_page[o] = max(high - 1, 0)
    elif kind == _MREMAP_KIND:
        op = np.uint8(_MREMAP[m.info[_I_MREMAP]])
        traits |= _remap(rows, i, m, p, s, w, out, o, maker, thread, space)
    elif kind in (_MLOCK, _MUNLOCK):
        traits |= _describe(m, w, out, o, False, False)
        if kind == _MLOCK and m.info[_I_POPULATES] == 1:
            traits |= _T_POPULATE
            out.pages[o], out.tables[o] = fill(m, p, w, space, first, last, True)
        else:
            out.pages[o], out.tables[o] = pages_.count(p, space, first, last)
        if out.pages[o] > 0:
            traits |= _T_PAGES
    elif kind in (_MLOCKALL, _MUNLOCKALL):
        traits |= _describe(m, w, out, o, False, False) & ~_T_HOLE
        out.vmas[o] = m.space_vmas[space]
        out.first_page[o] = 0
        out.last_page[o] = (np.int64(1) << 35) - 1
        if m.info[_I_POPULATES] == 1:
            traits |= _T_POPULATE
    elif kind == _PROC_READ:
        out.vmas[o] = m.space_vmas[space]
        out.first_page[o] = 0
        out.last_page[o] = (np.int64(1) << 35) - 1
        out.pages[o] = max(pages, 1)
    else:
        if rows.has_address[i] and address >= 0:
            traits |= look(m, w, out, o, space, first, last)
            if kind == _UFFD and (flags == 3 or flags == 4):  # COPY, ZEROPAGE
                out.pages[o], out.tables[o] = fill(m, p, w, space, first, last, flags == 3)
            else:
                present, out.tables[o] = pages_.count(p, space, first, last)
                out.pages[o] = max(pages, 1)
                if present:
                    traits |= _T_PAGES
    out.op[o] = op
    out.traits[o] |= np.uint64(traits)
    return 0


@njit
def _unmap(m, p, s, w, out, o, thread, space, first, last):
    range_deps(p, s, w, out, thread, space, first, last, True)
    out.pages[o], out.tables[o], freed = release(m, p, space, first, last)
    segments_.clear(s, space, first, last + 1)
    if out.pages[o] > 0:
        out.traits[o] |= np.uint64(_T_PAGES)
    if freed:
        out.traits[o] |= np.uint64(_T_FREES)


@njit
def _advise(m, p, s, w, out, o, thread, space, first, last, op, advice):
    traits = _describe(m, w, out, o, False, False) & ~_T_NO_CHANGE
    if m.info[_I_VMAS] == 0:
        # advice that the map ignores: look for ourselves
        traits = (traits & ~_T_HOLE) | look(m, w, out, o, space, first, last)
    elif out.anon_slot[o] < 0:
        slot = find(m, space, first << 12)
        if slot >= 0 and m.flags[slot] & _V_SHARED == 0:
            out.anon_slot[o] = anon_slot_of(m, w, slot)
    range_deps(p, s, w, out, thread, space, first, last, False)
    if op == _MADV_POPULATE:
        write = advice != MADV_POPULATE_READ
        if write:
            traits |= _T_WRITE
        traits |= _T_POPULATE
        out.pages[o], out.tables[o] = fill(m, p, w, space, first, last, write)
        return traits
    if advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_REMOVE, MADV_PAGEOUT) or (
        advice == MADV_GUARD_INSTALL
    ):
        out.pages[o], out.tables[o] = pages_.zap(p, space, first, last)
    else:
        out.pages[o], out.tables[o] = pages_.count(p, space, first, last)
    if op == _MADV_COLLAPSE:
        traits |= _T_HUGE
        out.pages[o] = PAGES * ((last - first + 1) >> REGION_SHIFT)
    if out.pages[o] > 0 and op != _MADV_COLLAPSE:
        traits |= _T_PAGES
    return traits


@njit
def _remap(rows, i, m, p, s, w, out, o, maker, thread, space):
    old = rows.address[i] >> 12
    old_pages = (rows.length2[i] + 4095) >> 12
    new = rows.result[i] >> 12
    new_pages = (rows.length[i] + 4095) >> 12
    how = m.info[_I_MREMAP]
    traits = _describe(m, w, out, o, False, how > 1)
    out.first_page[o] = old
    out.last_page[o] = old + max(old_pages, 1) - 1
    if how == 2:  # shrink
        _unmap(m, p, s, w, out, o, thread, space, old + new_pages, old + old_pages - 1)
    elif how == 3:  # grow in place
        out.last_page[o] = old + new_pages - 1
        if maker != -1:
            segments_.assign(s, space, old + old_pages, old + new_pages, maker)
    elif how == 4:  # move
        range_deps(p, s, w, out, thread, space, old, old + max(old_pages, 1) - 1, True)
        range_deps(p, s, w, out, thread, space, new, new + new_pages - 1, True)
        gone, _ = pages_.zap(p, space, new, new + new_pages - 1)
        forget_uses(p, space, new, new + new_pages - 1)
        if gone:
            traits |= _T_OVERLAPS
        keep = min(old_pages, new_pages)
        before = p.meta[2]
        moved, tables = pages_.move(p, space, old, new, keep)
        for table in range(before, p.meta[2]):
            w.table_initial[table] = 1
        out.pages[o] = moved
        out.tables[o] = tables
        if moved:
            traits |= _T_PAGES
        if old_pages > 0:
            _, _, freed = release(m, p, space, old, old + old_pages - 1)
            segments_.clear(s, space, old, old + old_pages)
            if freed:
                traits |= _T_FREES
        segments_.assign(s, space, new, new + new_pages, maker)
    if m.info[_I_POPULATES] == 1:
        traits |= _T_POPULATE
        out.pages[o], out.tables[o] = fill(
            m, p, w, space, new + old_pages, new + new_pages - 1, True
        )
    return traits
