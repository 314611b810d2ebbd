"""Operations of cloned threads: private ranges are placed anew, shared ones stay; compiled.

A clone repeats the operations of its recorded thread.  What it maps is placed by
the map's own search and the later operations on it follow; ranges that only the
recorded thread used (its stack) get a copy the same way on first use.  An
operation on anything else is on shared memory: it repeats the recorded one's
locks and VMAs without changing the state a second time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space import segments as segments_
from mmreplay.address_space.plan import PlanOp, Trait
from mmreplay.address_space.plan_calls import plan_call
from mmreplay.address_space.plan_fault import plan_fault
from mmreplay.address_space.plan_state import Count, Cursor, Status, add_dep
from mmreplay.address_space.segments import Segments
from mmreplay.address_space.vma_index import find
from mmreplay.address_space.vma_map import insert, search
from mmreplay.address_space.vma_state import NEED_SPACE, Vm
from mmreplay.jit import njit
from mmreplay.schema import OpKind


class Clones(NamedTuple):
    """C cloned threads, R recorded ones."""

    n_recorded: int
    clone_of: NDArray[np.int32]  # (C,)
    moved: Segments  # by clone: recorded pages -> 2 * distance to the clone's, in pages
    base: NDArray[np.int64]  # (M,) clones are placed below, where the recording has nothing
    private: Segments  # by recorded thread: pages that only it uses -> 1


_FAULT_USER = int(OpKind.FAULT_USER)
_FAULT_KERNEL = int(OpKind.FAULT_KERNEL)
_MMAP = int(OpKind.MMAP)
_MREMAP = int(OpKind.MREMAP)
_SHMAT = int(OpKind.SHMAT)
_THREAD_START = int(OpKind.THREAD_START)
_THREAD_EXIT = int(OpKind.THREAD_EXIT)
_OP_FAULT = int(PlanOp.FAULT)
_OP_NONE = int(PlanOp.NONE)
_OP_START = int(PlanOp.THREAD_START)
_OP_EXIT = int(PlanOp.THREAD_EXIT)
_OP_FORK = int(PlanOp.FORK)
_OP_EXEC = int(PlanOp.EXEC)
_OP_PROCESS_EXIT = int(PlanOp.PROCESS_EXIT)
_OP_VFORK_EXIT = int(PlanOp.VFORK_EXIT)
_MAP_FIXED = 0x10
_T_TABLE = np.uint64(int(Trait.TABLE_MISSING))
_V_GROWSDOWN = int(Vm.GROWSDOWN)
_MARKS = int(Cursor.MARKS)
_GROW_MAP = int(Status.GROW_MAP)
_GROW_SEGMENTS = int(Status.GROW_SEGMENTS)
_C_RANGES = int(Count.CLONE_RANGES)


@njit
def _repeat(s, w, out, o, inside, thread, space):
    """Repeat the recorded operation (a few rows up) on shared memory."""
    if not inside:
        return
    recorded = o - out.copy[o]
    op = out.op[recorded]
    if op in (_OP_FORK, _OP_EXEC, _OP_PROCESS_EXIT, _OP_VFORK_EXIT):
        out.op[o] = _OP_NONE  # once is enough
        return
    out.op[o] = op
    out.traits[o] = out.traits[recorded] & ~_T_TABLE
    out.pages[o] = out.pages[recorded]
    out.vmas[o] = out.vmas[recorded]
    out.tables[o] = out.tables[recorded]
    out.vma[o] = out.vma[recorded]
    out.anon_slot[o] = out.anon_slot[recorded]
    out.table[o] = out.table[recorded]
    out.file[o] = out.file[recorded]
    out.first_page[o] = out.first_page[recorded]
    out.last_page[o] = out.last_page[recorded]
    at = w.cursor[_MARKS]
    for k in range(out.mark_first[recorded], out.mark_first[recorded + 1]):
        out.mark_vma[at] = out.mark_vma[k]
        out.mark_set[at] = out.mark_set[k]
        at += 1
    w.cursor[_MARKS] = at
    if out.last_page[o] >= out.first_page[o]:
        add_dep(w, out, thread, segments_.get(s, space, out.first_page[o]))


@njit
def _search(m, rules, c, space, length, flags, file, offset):
    """The map's search, below everything that the recording maps later."""
    base = m.space_mmap_base[space]
    m.space_mmap_base[space] = min(base, c.base[space])
    where = search(m, rules, space, length, flags, file, offset)
    m.space_mmap_base[space] = base
    return where


@njit
def _place_private(m, rules, s, w, c, clone, space, page):
    """A private range of the recorded thread: a copy of its VMA for the clone; a Status."""
    slot = find(m, space, page << 12)
    if slot < 0 or m.start[slot] > page << 12:
        return 0
    length = m.end[slot] - m.start[slot]
    flags = m.flags[slot] & ~np.int64(_V_GROWSDOWN)
    file = m.file[slot]
    where = _search(m, rules, c, space, length, np.int64(0), file, np.int64(0))
    if where <= 0:
        return 0
    first = m.start[slot] >> 12
    offset = m.pgoff[slot] if file != 0 else where >> 12
    status = insert(m, rules, space, where, where + length, flags, offset, file, np.int64(0))
    if status == NEED_SPACE:
        return _GROW_MAP
    segments_.assign(c.moved, clone, first, first + (length >> 12), ((where >> 12) - first) << 1)
    w.counters[_C_RANGES] += 1
    return 0


@njit
def plan_clone(rows, i, m, rules, p, s, w, out, c, o, inside, thread, space, options):
    """Plan row ``i`` of a cloned thread; returns a Status."""
    kind = rows.kind[i]
    if kind == _THREAD_START or kind == _THREAD_EXIT:
        out.op[o] = _OP_START if kind == _THREAD_START else _OP_EXIT
        return 0
    clone = thread - c.n_recorded
    if segments_.segments_full(c.moved, clone):
        return _GROW_SEGMENTS
    address = rows.address[i]
    address2 = rows.address2[i]
    result = rows.result[i]
    failed = rows.errno[i] != 0
    distance = np.int64(-1)
    if rows.has_address[i] and address >= 0:
        page = address >> 12
        distance = segments_.get(c.moved, clone, page)
        if distance == -1 and segments_.get(c.private, c.clone_of[clone], page) == 1:
            status = _place_private(m, rules, s, w, c, clone, space, page)
            if status != 0:
                return status
            distance = segments_.get(c.moved, clone, page)
    maps = kind == _MMAP or kind == _SHMAT
    places = not failed and (
        (maps and (distance == -1 or rows.flags[i] & _MAP_FIXED == 0))
        or (kind == _MREMAP and distance != -1 and result != address)
    )
    if maps and rows.flags[i] & _MAP_FIXED and distance == -1:
        places = False  # over memory that is shared
    if distance == -1 and not places:
        _repeat(s, w, out, o, inside, thread, space)
        return 0
    if distance != -1:
        rows.address[i] = address + ((distance >> 1) << 12)
        if result == address:
            rows.result[i] = rows.address[i]
    origin = result if result > 0 else address
    if places:
        file = np.int64(rows.file[i]) + 1
        where = _search(
            m, rules, c, space, rows.length[i], rows.flags[i], file, rows.file_offset[i]
        )
        if where <= 0:  # the address space is full
            rows.address[i] = address
            rows.result[i] = result
            _repeat(s, w, out, o, inside, thread, space)
            return 0
        rows.result[i] = where
        rows.address2[i] = 0
        if maps:
            rows.address[i] = where
    if kind == _FAULT_USER or kind == _FAULT_KERNEL:
        out.op[o] = _OP_FAULT
        status = plan_fault(rows, i, m, rules, p, s, w, out, o, inside, thread, space, options)
    else:
        status = plan_call(rows, i, m, rules, p, s, w, out, o, inside, thread, space, options)
    if status == 0 and places and rows.result[i] > 0:
        pages = (rows.length[i] + 4095) >> 12
        first = origin >> 12
        shift = (rows.result[i] >> 12) - first
        segments_.assign(c.moved, clone, first, first + pages, shift << 1)
        w.counters[_C_RANGES] += 1
    rows.address[i] = address
    rows.address2[i] = address2
    rows.result[i] = result
    return status
