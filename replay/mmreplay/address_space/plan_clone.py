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
from mmreplay.address_space.plan_state import (
    A_ADDRESS,
    A_ADDRESS2,
    A_ORIGIN,
    A_RESULT,
    Count,
    Cursor,
    Status,
    add_dep,
)
from mmreplay.address_space.segments import Segments
from mmreplay.address_space.vma_abi import search_core
from mmreplay.address_space.vma_apply import insert_core
from mmreplay.address_space.vma_index import find
from mmreplay.address_space.vma_state import (
    NEED_SPACE,
    S_MMAP_BASE,
    V_END,
    V_FILE,
    V_FLAGS,
    V_PGOFF,
    V_START,
    Vm,
)
from mmreplay.jit import borrowing_helper
from mmreplay.schema import OpKind


class Clones(NamedTuple):
    """C cloned threads, R recorded ones."""

    n_recorded: int
    clone_of: NDArray[np.int32]  # (C,)
    moved: Segments  # by clone: recorded pages -> 2 * distance to the clone's, in pages
    base: NDArray[np.int64]  # (M,) clones are placed below, where the recording has nothing
    private: Segments  # by recorded thread: pages that only it uses -> 1


_MMAP = int(OpKind.MMAP)
_MREMAP = int(OpKind.MREMAP)
_SHMAT = int(OpKind.SHMAT)
_THREAD_START = int(OpKind.THREAD_START)
_THREAD_EXIT = int(OpKind.THREAD_EXIT)
_OP_NONE = int(PlanOp.NONE)
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


@borrowing_helper
def _repeat(s, w, out, o, inside, thread, space):
    """Repeat the recorded operation (a few rows up) on shared memory."""
    if not inside:
        return
    recorded = o - out.ops[o].clone
    op = out.ops[recorded].op
    if op in (_OP_FORK, _OP_EXEC, _OP_PROCESS_EXIT, _OP_VFORK_EXIT):
        out.ops[o].op = _OP_NONE  # once is enough
        return
    out.ops[o].op = op
    out.ops[o].traits = out.ops[recorded].traits & ~_T_TABLE
    out.ops[o].pages = out.ops[recorded].pages
    out.ops[o].vmas = out.ops[recorded].vmas
    out.ops[o].tables = out.ops[recorded].tables
    out.ops[o].vma = out.ops[recorded].vma
    out.ops[o].vma_first_page = out.ops[recorded].vma_first_page
    out.ops[o].vma_last_page = out.ops[recorded].vma_last_page
    out.ops[o].anon_slot = out.ops[recorded].anon_slot
    out.ops[o].table = out.ops[recorded].table
    out.ops[o].file = out.ops[recorded].file
    out.ops[o].first_page = out.ops[recorded].first_page
    out.ops[o].last_page = out.ops[recorded].last_page
    at = w.cursor[_MARKS]
    for k in range(out.ops[recorded].mark_first, out.ops[recorded].mark_end):
        out.marks[at].vma = out.marks[k].vma
        out.marks[at].set = out.marks[k].set
        at += 1
    w.cursor[_MARKS] = at
    if out.ops[o].last_page >= out.ops[o].first_page:
        add_dep(w, out, thread, segments_.get_core(s, space, out.ops[o].first_page))


@borrowing_helper
def _search(m, rules, c, space, length, flags, file, offset):
    """The map's search, below everything that the recording maps later."""
    base = m.spaces[space, S_MMAP_BASE]
    m.spaces[space, S_MMAP_BASE] = min(base, c.base[space])
    where = search_core(m, rules, space, length, flags, file, offset, False)
    m.spaces[space, S_MMAP_BASE] = base
    return where


@borrowing_helper
def _place_private(m, rules, s, w, c, clone, space, page):
    """A private range of the recorded thread: a copy of its VMA for the clone; a Status."""
    slot = find(m, space, page << 12)
    if slot < 0 or m.vma[slot, V_START] > page << 12:
        return 0
    length = m.vma[slot, V_END] - m.vma[slot, V_START]
    flags = m.vma[slot, V_FLAGS] & ~np.int64(_V_GROWSDOWN)
    file = m.vma[slot, V_FILE]
    where = _search(m, rules, c, space, length, np.int64(0), file, np.int64(0))
    if where <= 0:
        return 0
    first = m.vma[slot, V_START] >> 12
    offset = m.vma[slot, V_PGOFF] if file != 0 else where >> 12
    status = insert_core(m, rules, space, where, where + length, flags, offset, file, np.int64(0))
    if status == NEED_SPACE:
        return _GROW_MAP
    segments_.assign_core(
        c.moved, clone, first, first + (length >> 12), ((where >> 12) - first) << 1
    )
    w.counters[_C_RANGES] += 1
    return 0


@borrowing_helper
def before_clone(rows, i, m, rules, s, w, out, c, o, inside, thread, space):
    """Move row ``i`` of a cloned thread to the clone's ranges.

    Returns (Status, whether the row is planned like any other).  The recorded values
    are kept in ``w.args`` for :func:`after_clone`.
    """
    kind = rows[i].kind
    w.args[A_ORIGIN] = 0
    w.args[A_ADDRESS] = rows[i].address
    w.args[A_ADDRESS2] = rows[i].address2
    w.args[A_RESULT] = rows[i].result
    if kind == _THREAD_START or kind == _THREAD_EXIT:
        return 0, True
    clone = thread - c.n_recorded
    if segments_.segments_full_core(c.moved, clone):
        return _GROW_SEGMENTS, False
    address = rows[i].address
    result = rows[i].result
    failed = rows[i].errno != 0
    distance = np.int64(-1)
    if address >= 0:
        page = address >> 12
        distance = segments_.get_core(c.moved, clone, page)
        if distance == -1 and segments_.get_core(c.private, c.clone_of[clone], page) == 1:
            status = _place_private(m, rules, s, w, c, clone, space, page)
            if status != 0:
                return status, False
            distance = segments_.get_core(c.moved, clone, page)
    maps = kind == _MMAP or kind == _SHMAT
    fixed = maps and rows[i].advice & _MAP_FIXED != 0
    places = not failed and (
        (maps and not fixed) or (kind == _MREMAP and distance != -1 and result != address)
    )
    if distance == -1 and not places:
        _repeat(s, w, out, o, inside, thread, space)
        return 0, False
    if places:
        file = np.int64(rows[i].file) + 1
        where = _search(
            m, rules, c, space, rows[i].length, rows[i].advice, file, rows[i].file_offset
        )
        if where <= 0:  # the address space is full
            _repeat(s, w, out, o, inside, thread, space)
            return 0, False
        w.args[A_ORIGIN] = result if result > 0 else address
        rows[i].result = where
        rows[i].address2 = 0
        if maps:
            rows[i].address = where
    if distance != -1 and not (places and maps):
        rows[i].address = address + ((distance >> 1) << 12)
        if result == address and not places:
            rows[i].result = rows[i].address
    return 0, True


@borrowing_helper
def after_clone(rows, i, s, w, c, thread, status):
    """Note where the clone's mapping went and put the recorded values back."""
    origin = w.args[A_ORIGIN]
    if status == 0 and origin != 0:
        pages = (rows[i].length + 4095) >> 12
        first = origin >> 12
        shift = (rows[i].result >> 12) - first
        segments_.assign_core(c.moved, thread - c.n_recorded, first, first + pages, shift << 1)
        w.counters[_C_RANGES] += 1
    rows[i].address = w.args[A_ADDRESS]
    rows[i].address2 = w.args[A_ADDRESS2]
    rows[i].result = w.args[A_RESULT]
