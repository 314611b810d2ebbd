"""Calls that read or change the map: which program, which VMAs, how many pages; compiled."""

from __future__ import annotations

from typing import Final

import numpy as np

from mmreplay.address_space import page_state as pages_
from mmreplay.address_space import segments as segments_
from mmreplay.address_space.opmap import (
    BEFORE_LOCK,
    EMPTY_BEFORE_LOCK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_REMOVE,
    PROGRAM,
)
from mmreplay.address_space.page_state import PAGES, REGION_SHIFT
from mmreplay.address_space.plan import PlanOp, Trait
from mmreplay.address_space.plan_fault import (
    anon_slot_of,
    before_populate,
    copy_marks,
    fills_anon,
    lose_anon_vma,
    pieces,
    populated,
    vector_marks,
    vma_traits,
)
from mmreplay.address_space.plan_fill import (
    count_present,
    fill,
    flushes,
    list_tables,
    release,
    rewritten,
)
from mmreplay.address_space.plan_look import (
    begins_in_hole,
    look,
    more_sections,
    refused_by_vma,
)
from mmreplay.address_space.plan_proc import read_proc
from mmreplay.address_space.plan_state import (
    A_BREAK,
    A_REWRITTEN,
    Count,
    Cursor,
    Status,
    count_conflicts,
    flush_late,
    note_late,
)
from mmreplay.address_space.vma_index import find
from mmreplay.address_space.vma_state import (
    NONE,
    S_BRK,
    S_FLAGS,
    S_VMAS,
    V_END,
    V_FILE,
    V_FLAGS,
    V_LOCK,
    V_START,
    Info,
    Vm,
)
from mmreplay.jit import borrowing_helper
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
_T_LAZY = int(Trait.LAZY_FREE)
_T_NEEDS_ANON = int(Trait.NEEDS_ANON_VMA)

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
#: Advice that goes through the page tables of its range, one lock of each after the other.
_WALKS = (_MADV_ZAP, int(PlanOp.MADVISE_READ), int(PlanOp.MADVISE_GUARD))
_MADV_COLLAPSE = int(PlanOp.MADVISE_COLLAPSE)
_MUNLOCK_OP = int(PlanOp.MUNLOCK)
_REMOTE_ACCESS = int(PlanOp.REMOTE_ACCESS)
#: What takes the lock several times, by the VMAs of its range.
_AGAIN = (int(PlanOp.MM_READ), int(PlanOp.MADVISE_WILLNEED))

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
_REMAP_FILE_PAGES = int(OpKind.REMAP_FILE_PAGES)
_PROCESS_MADVISE = int(OpKind.PROCESS_MADVISE)

_I_VMAS = int(Info.VMAS)
_I_FIRST = int(Info.FIRST_SLOT)
_I_FIRST_LOCK = int(Info.FIRST_LOCK)
_I_FIRST_FLAGS = int(Info.FIRST_FLAGS)
_I_FIRST_FILE = int(Info.FIRST_FILE)
_I_FIRST_START = int(Info.FIRST_START)
_I_FIRST_END = int(Info.FIRST_END)
_I_SPLITS = int(Info.SPLITS)
_I_MERGES = int(Info.MERGES)
_I_MULTI = int(Info.MULTI)
_I_NO_CHANGE = int(Info.NO_CHANGE)
_I_NEXT_DOWN = int(Info.NEXT_GROWSDOWN)
_I_OVERLAPPED = int(Info.OVERLAPPED)
_I_TARGET = int(Info.TARGET_SLOT)
_I_MREMAP = int(Info.MREMAP_KIND)
_I_CONFLICTS = int(Info.CONFLICTS)
_I_ERROR = int(Info.ERROR)
_I_POPULATES = int(Info.POPULATES)
_I_EFFECTS = int(Info.EFFECTS)

_V_WRITE = int(Vm.WRITE)
_V_SHARED = int(Vm.SHARED)
_MAP_POPULATE = 0x8000
_MAP_NONBLOCK = 0x10000
_POPULATE = _MAP_POPULATE | _MAP_NONBLOCK  # the second undoes the first (mm/mmap.c:do_mmap@6.18)
_DONTUNMAP = 4

_C_DISAGREED = int(Count.CALLS_DISAGREED)
_C_STALE = int(Count.STALE_PAGES)
_C_BRK = int(Count.BRK_UNKNOWN)
_NEED = int(Cursor.NEED)
_GROW_PAGES = int(Status.GROW_PAGES)

#: What comes next for an operation.
STAGE_DONE: Final = 0
STAGE_APPLY: Final = 1
STAGE_FINISH: Final = 2


@borrowing_helper
def range_deps(p, s, w, out, thread, space, first, last, users):
    """Waits of a call on pages ``first..last``.

    For the calls of other threads that made the range and, where it goes away
    (``users``), for the last fault of every other thread in it.
    """
    n = 0
    page = first
    while page <= last:
        start, end, value = segments_.next_range_core(s, space, page, last + 1)
        if start < 0:
            break
        if value >= 0 and out.ops[value].thread != thread:
            n = note_late(w, out, n, value)
        page = end
    if users:
        found = pages_.collect(p, space, first, last)
        for k in range(found):
            slot = p.slot[k].scratch
            user = p.slot[slot].user
            if user == -1 or user == thread:
                continue
            lo, hi = pages_.bounds(p, slot, first, last)
            if user >= 0:
                newest = np.int64(-1)
                for i in range(lo, hi):
                    newest = max(newest, p.last_use[slot, i])
                if newest >= 0:
                    n = note_late(w, out, n, newest)
                continue
            for i in range(lo, hi):
                op = p.last_use[slot, i]
                if op >= 0 and out.ops[op].thread != thread:
                    n = note_late(w, out, n, op)
    flush_late(w, out, n, thread)


@borrowing_helper
def _describe(m, w, out, o, target, changed):
    """Row ``o`` from the map's findings; ``target``: by the VMA that now holds the result."""
    info = m.info
    traits = 0
    if info[_I_SPLITS] > 0:
        traits |= _T_SPLITS
    if info[_I_MERGES] > 0:
        traits |= _T_MERGES
        begin, end = out.ops[o].first_page << 12, (out.ops[o].last_page + 1) << 12
        part = begin > info[_I_FIRST_START] or end < info[_I_FIRST_END]
        if part and info[_I_VMAS] == 1 and not target and not changed:
            traits |= _T_SPLITS  # the part went to its neighbour
    if info[_I_SPLITS] > 0 or info[_I_MERGES] > 0 or changed:
        traits |= _T_STRUCTURAL
    if info[_I_MULTI] == 1:
        traits |= _T_MULTI
    if info[_I_NO_CHANGE] == 1:
        traits = (traits | _T_NO_CHANGE) & ~_T_STRUCTURAL
    if info[_I_NEXT_DOWN] == 1:
        traits |= _T_NEXT_DOWN
    slot = info[_I_TARGET] if target else info[_I_FIRST]
    out.ops[o].vmas = info[_I_VMAS]
    if target:
        if slot >= 0:
            traits |= vma_traits(w, m.vma[slot, V_FLAGS], m.vma[slot, V_FILE])
            out.ops[o].vma = m.vma[slot, V_LOCK]
            out.ops[o].vma_first_page = m.vma[slot, V_START] >> 12
            out.ops[o].vma_last_page = (m.vma[slot, V_END] >> 12) - 1
            out.ops[o].file = m.vma[slot, V_FILE]
            if m.vma[slot, V_FLAGS] & _V_SHARED == 0:
                out.ops[o].anon_slot = anon_slot_of(m, w, slot)
    elif info[_I_VMAS] > 0:
        traits |= vma_traits(w, info[_I_FIRST_FLAGS], info[_I_FIRST_FILE])
        out.ops[o].vma = info[_I_FIRST_LOCK]
        out.ops[o].vma_first_page = info[_I_FIRST_START] >> 12
        out.ops[o].vma_last_page = (info[_I_FIRST_END] >> 12) - 1
        out.ops[o].file = info[_I_FIRST_FILE]
    else:
        traits |= _T_HOLE
    return traits


@borrowing_helper
def _shape(rows, i):
    """(address, first page, last page) that the call is about."""
    kind = rows[i].kind
    address = rows[i].address
    if (kind == _MMAP and rows[i].errno == 0 and rows[i].result != 0) or (
        kind == _BRK and rows[i].result > 0
    ):
        address = rows[i].result
    first = address >> 12
    return address, first, first + max((rows[i].length + 4095) >> 12, 1) - 1


@borrowing_helper
def prepare_call(rows, i, m, p, w, out, o, space):
    """The program of a call and its arguments for the VMA map, in ``w.args``.

    Returns (Status, next stage).
    """
    kind = rows[i].kind
    flags = rows[i].advice
    errno = rows[i].errno
    failed = errno != 0
    op = PROGRAM[kind & 63, min(max(flags, 0), 127)]
    out.ops[o].op = op
    length = rows[i].length
    if failed and BEFORE_LOCK[kind & 63, min(max(errno, 0), 255)]:
        if not refused_by_vma(rows, i, m, space):
            out.ops[o].op = _NONE_OP
            return 0, STAGE_DONE
    if length == 0 and not failed:
        if EMPTY_BEFORE_LOCK[kind & 63]:
            out.ops[o].op = _NONE_OP
            return 0, STAGE_DONE
        if kind == _MLOCK and rows[i].address & 4095 == 0:
            out.ops[o].op = _MUNLOCK_OP  # the lock is taken, nothing is populated
    # room for what the call may populate or move, before anything changes
    pages = (length + 4095) >> 12
    fills = (
        (kind == _MMAP and flags & _POPULATE == _MAP_POPULATE)
        or op == _MADV_POPULATE
        or kind in (_MLOCK, _UFFD, _MREMAP_KIND)
    )
    need = np.int64(8)
    if not failed and (fills or (kind in (_MMAP, _BRK) and m.spaces[space, S_FLAGS] != 0)):
        if kind == _BRK and m.spaces[space, S_BRK] != NONE:
            pages = (abs(rows[i].result - m.spaces[space, S_BRK]) + 4095) >> 12
        need = (pages >> REGION_SHIFT) + 8
    if pages_.regions_free(p) < need or len(w.table_initial) - p.meta[2] < need:
        w.cursor[_NEED] = need
        return _GROW_PAGES, STAGE_DONE
    if kind == _PROC_READ or kind == _PROCESS_MADVISE:
        for k in range(len(m.info)):
            m.info[k] = 0
        return 0, STAGE_FINISH
    result = -np.int64(errno) if failed else rows[i].result
    if result == 0 and kind in (_MMAP, _BRK, _MREMAP_KIND, _SHMAT):
        result = NONE  # null in the trace: the rules decide
    address2 = rows[i].address2
    if kind == _BRK:
        w.args[A_BREAK] = m.spaces[space, S_BRK]
        if address2 == 0 and length > 0:
            address2 = rows[i].result
    if (op == _MADV_POPULATE or (kind == _MADVISE and flags == MADV_GUARD_INSTALL)) and not failed:
        before_populate(m, w, space, rows[i].address >> 12)
    w.args[A_REWRITTEN] = 0
    if kind in (_MPROTECT, _PKEY_MPROTECT) and not failed:
        first = rows[i].address >> 12
        w.args[A_REWRITTEN] = rewritten(m, p, space, first, first + pages - 1, rows[i].prot)
    w.args[0] = space
    w.args[1] = kind
    w.args[2] = rows[i].address if rows[i].address != -1 else NONE
    w.args[3] = length
    w.args[4] = address2
    w.args[5] = rows[i].length2
    w.args[6] = rows[i].prot
    w.args[7] = flags
    w.args[8] = rows[i].file_offset
    w.args[9] = np.int64(rows[i].file) + 1
    w.args[10] = result
    return 0, STAGE_APPLY


@borrowing_helper
def finish_call(rows, i, m, p, s, w, out, o, inside, before, thread, space):
    """Traits, pages, marks and waits of a call after the VMA map has replayed it."""
    kind = rows[i].kind
    flags = rows[i].advice
    failed = rows[i].errno != 0
    op = np.int64(out.ops[o].op)
    address, first, last = _shape(rows, i)
    pages = (rows[i].length + 4095) >> 12
    maker = np.int64(o) if inside else np.int64(-2)
    old_break = w.args[A_BREAK]
    if kind != _PROC_READ and kind != _PROCESS_MADVISE:
        if (m.info[_I_ERROR] != 0) != failed:
            w.counters[_C_DISAGREED] += 1
        if m.info[_I_CONFLICTS] > 0:
            count_conflicts(m, w)
        copy_marks(m, w, out)
    traits = _T_FAILED if failed else 0
    out.ops[o].first_page = first
    out.ops[o].last_page = last
    if failed:
        out.ops[o].op = op
        if kind == _BRK:
            out.ops[o].op = _BRK_QUERY
        if rows[i].address != -1 and kind != _MMAP and address >= 0:
            if kind == _MADVISE and begins_in_hole(m, space, first):
                traits |= _T_HOLE
            else:
                traits |= look(m, w, out, o, space, first, last)
            if op in _AGAIN:
                more_sections(rows, i, m, w, out, o, space, first, last)
        out.ops[o].traits |= np.uint64(traits)
        return
    # -- what the call did -------------------------------------------------------------
    if kind in (_MMAP, _SHMAT):
        traits |= _describe(m, w, out, o, True, True)
        if m.info[_I_OVERLAPPED] > 0:
            traits |= _T_OVERLAPS
        target = m.info[_I_TARGET]
        range_deps(p, s, w, out, thread, space, first, last, True)
        if m.info[_I_OVERLAPPED] > 0:
            list_tables(p, w, out, o, space, first, last)
        zapped, _ = pages_.zap(p, space, first, last)
        pages_.forget_uses(p, space, first, last)
        if zapped and m.info[_I_OVERLAPPED] == 0:
            w.counters[_C_STALE] += zapped
            zapped = 0
        out.ops[o].pages = zapped
        if zapped:
            traits |= _T_PAGES
        if m.info[_I_OVERLAPPED] > 0 and pages_.free_tables(p, space, first, last + 1):
            traits |= _T_FREES
        segments_.assign_core(s, space, first, last + 1, maker)
        if m.info[_I_POPULATES] == 1 or flags & _POPULATE == _MAP_POPULATE:
            traits |= _T_POPULATE
            writes = target >= 0 and m.vma[target, V_FLAGS] & _V_WRITE != 0
            fill(m, p, w, out, o, space, first, last, writes)
            if writes:
                traits |= _T_WRITE
    elif kind in (_MUNMAP, _SHMDT):
        if kind == _SHMDT and m.info[_I_FIRST_END] > 0:  # the call does not say how long it is
            last = (m.info[_I_FIRST_END] >> 12) - 1
            out.ops[o].last_page = last
        traits |= _describe(m, w, out, o, False, m.info[_I_VMAS] > 0)
        _unmap(m, p, s, w, out, o, thread, space, first, last)
    elif kind in (_MPROTECT, _PKEY_MPROTECT):
        traits |= _describe(m, w, out, o, False, False)
        range_deps(p, s, w, out, thread, space, first, last, False)
        count_present(p, w, out, o, space, first, last)
        flushes(w, out, o, w.args[A_REWRITTEN])
        if out.ops[o].pages > 0:
            traits |= _T_PAGES
        if m.info[_I_NO_CHANGE] == 0:
            segments_.assign_core(s, space, first, last + 1, maker)
    elif kind == _PROCESS_MADVISE:
        vector_marks(rows, i, w, out, o, space)
    elif kind == _MADVISE:
        if op == _MADV_POPULATE or flags == MADV_GUARD_INSTALL:
            populated(m, w, before, space, first)
        traits |= _advise(m, p, s, w, out, o, thread, space, first, last, op, flags)
        if op in _AGAIN:
            more_sections(rows, i, m, w, out, o, space, first, last)
    elif kind == _BRK:
        now = rows[i].result
        if old_break == NONE:
            w.counters[_C_BRK] += 1
            old_break = now
        # the heap's VMA is what the break ends in (mm/mmap.c:brk@6.18 aligns both)
        low = (old_break + 4095) >> 12
        high = (now + 4095) >> 12
        if high > low:
            op = np.int64(_BRK_GROW)
            out.ops[o].first_page = low
            out.ops[o].last_page = high - 1
            traits |= _describe(m, w, out, o, True, True)
            segments_.assign_core(s, space, low, high, maker)
            if m.info[_I_POPULATES] == 1:
                traits |= _T_POPULATE
                fill(m, p, w, out, o, space, low, high - 1, True)
        elif high < low:
            op = np.int64(_BRK_SHRINK)
            out.ops[o].first_page = high
            out.ops[o].last_page = low - 1
            traits |= _describe(m, w, out, o, False, True)
            _unmap(m, p, s, w, out, o, thread, space, high, low - 1)
        else:
            op = np.int64(_BRK_QUERY)
            traits |= _T_NO_CHANGE
            out.ops[o].first_page = max(high - 1, 0)
            out.ops[o].last_page = max(high - 1, 0)
    elif kind == _MREMAP_KIND:
        op = np.int64(_MREMAP[m.info[_I_MREMAP]])
        traits |= _remap(rows, i, m, p, s, w, out, o, maker, thread, space)
    elif kind in (_MLOCK, _MUNLOCK):
        traits |= _describe(m, w, out, o, False, False)
        if kind == _MLOCK and m.info[_I_POPULATES] == 1:
            traits |= _T_POPULATE
            fill(m, p, w, out, o, space, first, last, True)
            list_tables(p, w, out, o, space, first, last)
        else:
            count_present(p, w, out, o, space, first, last)
        if out.ops[o].pages > 0:
            traits |= _T_PAGES
    elif kind in (_MLOCKALL, _MUNLOCKALL):
        traits |= _describe(m, w, out, o, False, False) & ~_T_HOLE
        out.ops[o].vmas = m.spaces[space, S_VMAS]
        out.ops[o].first_page = 0
        out.ops[o].last_page = (np.int64(1) << 35) - 1
        if m.info[_I_POPULATES] == 1:
            traits |= _T_POPULATE
    elif kind == _PROC_READ:
        traits |= read_proc(rows, i, m, p, w, out, o, space, op, pages)
    else:
        if kind == _REMAP_FILE_PAGES and not flags & _MAP_NONBLOCK:
            traits |= _T_POPULATE
        if rows[i].address != -1 and address >= 0:
            traits |= look(m, w, out, o, space, first, last)
            if kind == _UFFD and 3 <= flags <= 5:  # COPY, ZEROPAGE, CONTINUE
                fills_anon(m, w, out, o, before, space, first)
            if kind == _UFFD and (flags == 3 or flags == 4):
                fill(m, p, w, out, o, space, first, last, flags == 3)
            else:
                count_present(p, w, out, o, space, first, last)
                if out.ops[o].pages > 0:
                    traits |= _T_PAGES
                out.ops[o].pages = max(pages, 1)
            if op == _REMOTE_ACCESS:  # process_vm_rw_single_vec: two pages of pointers at a time
                pieces(w, out, (pages - 1) >> 10, -2 - space)
            if op in _AGAIN:
                more_sections(rows, i, m, w, out, o, space, first, last)
    out.ops[o].op = op
    out.ops[o].traits |= np.uint64(traits)


@borrowing_helper
def _unmap(m, p, s, w, out, o, thread, space, first, last):
    range_deps(p, s, w, out, thread, space, first, last, True)
    list_tables(p, w, out, o, space, first, last)
    out.ops[o].pages, freed = release(m, p, space, first, last)
    segments_.clear_core(s, space, first, last + 1)
    if out.ops[o].pages > 0:
        out.ops[o].traits |= np.uint64(_T_PAGES)
    if freed:
        out.ops[o].traits |= np.uint64(_T_FREES)


@borrowing_helper
def _advise(m, p, s, w, out, o, thread, space, first, last, op, advice):
    traits = _describe(m, w, out, o, False, False) & ~_T_NO_CHANGE
    if m.info[_I_VMAS] == 0:
        # advice that the map ignores: look for ourselves
        traits = (traits & ~_T_HOLE) | look(m, w, out, o, space, first, last)
    elif out.ops[o].anon_slot < 0:
        slot = find(m, space, first << 12)
        if slot >= 0 and m.vma[slot, V_FLAGS] & _V_SHARED == 0:
            out.ops[o].anon_slot = anon_slot_of(m, w, slot)
    range_deps(p, s, w, out, thread, space, first, last, False)
    if op == _MADV_POPULATE:
        write = advice != MADV_POPULATE_READ
        if write:
            traits |= _T_WRITE
        traits |= _T_POPULATE
        fill(m, p, w, out, o, space, first, last, write)
        return traits if out.ops[o].pages > 0 else traits | _T_NO_CHANGE
    if advice == MADV_FREE:
        traits |= _T_LAZY
    if advice == MADV_GUARD_INSTALL and out.ops[o].anon_slot >= 0:
        traits |= _T_NEEDS_ANON
    if advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_REMOVE, MADV_PAGEOUT) or (
        advice == MADV_GUARD_INSTALL
    ):
        list_tables(p, w, out, o, space, first, last)
        out.ops[o].pages, _ = pages_.zap(p, space, first, last)
    elif op in _WALKS:
        count_present(p, w, out, o, space, first, last)
    else:
        out.ops[o].pages, out.ops[o].tables = pages_.count(p, space, first, last)
    if op == _MADV_COLLAPSE:
        traits |= _T_HUGE
        out.ops[o].pages = PAGES  # of a piece
        whole = ((last + 1) >> REGION_SHIFT) - ((first + PAGES - 1) >> REGION_SHIFT)
        pieces(w, out, whole, out.ops[o].vma)
    if out.ops[o].pages > 0 and op != _MADV_COLLAPSE:
        traits |= _T_PAGES
    return traits


@borrowing_helper
def _remap(rows, i, m, p, s, w, out, o, maker, thread, space):
    old = rows[i].address >> 12
    old_pages = (rows[i].length2 + 4095) >> 12
    new = rows[i].result >> 12
    new_pages = (rows[i].length + 4095) >> 12
    how = m.info[_I_MREMAP]
    traits = _describe(m, w, out, o, False, how > 1)
    out.ops[o].first_page = old
    out.ops[o].last_page = old + max(old_pages, 1) - 1
    if how == 2:  # shrink
        if m.info[_I_EFFECTS] == 0:
            traits |= _T_HOLE  # nothing was behind what stays
        _unmap(m, p, s, w, out, o, thread, space, old + new_pages, old + old_pages - 1)
    elif how == 3:  # grow in place
        out.ops[o].last_page = old + new_pages - 1
        if maker != -1:
            segments_.assign_core(s, space, old + old_pages, old + new_pages, maker)
    elif how == 4:  # move
        range_deps(p, s, w, out, thread, space, old, old + max(old_pages, 1) - 1, True)
        range_deps(p, s, w, out, thread, space, new, new + new_pages - 1, True)
        gone, _ = pages_.zap(p, space, new, new + new_pages - 1)
        pages_.forget_uses(p, space, new, new + new_pages - 1)
        if gone:
            traits |= _T_OVERLAPS
        keep = min(old_pages, new_pages)
        before = p.meta[2]
        list_tables(p, w, out, o, space, old, old + max(keep, 1) - 1)
        moved, _ = pages_.move(p, space, old, new, keep)
        for table in range(before, p.meta[2]):
            w.table_initial[table] = 1
        out.ops[o].pages = moved
        if moved:
            traits |= _T_PAGES
        if old_pages > 0:
            _, freed = release(m, p, space, old, old + old_pages - 1)
            segments_.clear_core(s, space, old, old + old_pages)
            if freed:
                traits |= _T_FREES
        segments_.assign_core(s, space, new, new + new_pages, maker)
        if rows[i].advice >= 0 and rows[i].advice & _DONTUNMAP:
            lose_anon_vma(m, w, find(m, space, old << 12))
    if m.info[_I_POPULATES] == 1:
        traits |= _T_POPULATE
        fill(m, p, w, out, o, space, new + old_pages, new + new_pages - 1, True)
    return traits
