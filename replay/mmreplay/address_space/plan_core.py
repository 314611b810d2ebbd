"""The compiled pass over a chunk of rows: dispatch, threads, processes, learnt mappings."""

from __future__ import annotations

import numpy as np

from mmreplay.address_space import page_state as pages_
from mmreplay.address_space import segments as segments_
from mmreplay.address_space.page_state import REGION_SHIFT
from mmreplay.address_space.plan import PlanOp, Trait
from mmreplay.address_space.plan_calls import copy_marks, plan_call
from mmreplay.address_space.plan_clone import plan_clone
from mmreplay.address_space.plan_fault import plan_fault
from mmreplay.address_space.plan_state import Count, Cursor, Status, add_dep, forget_deps
from mmreplay.address_space.rows import (
    HINT_HEAP,
    HINT_HUGETLB,
    HINT_OLD,
    HINT_SPECIAL,
    HINT_STACK,
    LEARN,
    THREAD_BEGIN,
    THREAD_END,
)
from mmreplay.address_space.vma_index import find
from mmreplay.address_space.vma_map import apply, insert
from mmreplay.address_space.vma_state import NEED_SPACE, NONE, Num, Vm
from mmreplay.jit import njit
from mmreplay.schema import OpKind

_FAULT_USER = int(OpKind.FAULT_USER)
_FAULT_KERNEL = int(OpKind.FAULT_KERNEL)
_CLONE = int(OpKind.CLONE)
_FORK = int(OpKind.FORK)
_VFORK = int(OpKind.VFORK)
_EXEC = int(OpKind.EXEC)
_THREAD_START = int(OpKind.THREAD_START)
_THREAD_EXIT = int(OpKind.THREAD_EXIT)
_PROCESS_EXIT = int(OpKind.PROCESS_EXIT)
_SNAPSHOT = int(OpKind.SNAPSHOT_VMA)

_OP_NONE = int(PlanOp.NONE)
_OP_FAULT = int(PlanOp.FAULT)
_OP_FORK = int(PlanOp.FORK)
_OP_EXEC = int(PlanOp.EXEC)
_OP_START = int(PlanOp.THREAD_START)
_OP_EXIT = int(PlanOp.THREAD_EXIT)
_OP_PROCESS_EXIT = int(PlanOp.PROCESS_EXIT)
_OP_VFORK_EXIT = int(PlanOp.VFORK_EXIT)

_T_SINGLE = np.uint64(int(Trait.SINGLE_THREADED))
_T_SHARES = np.uint64(int(Trait.SHARES_MM))
_T_LAST = np.uint64(int(Trait.LAST_USER))
_T_PAGES = np.uint64(int(Trait.PAGES_PRESENT))

_OUT = int(Cursor.OUT)
_MARKS = int(Cursor.MARKS)
_DEPS = int(Cursor.DEPS)
_SLOTS = int(Cursor.SLOTS)
_NEED = int(Cursor.NEED)
_GROW_MAP = int(Status.GROW_MAP)
_GROW_PAGES = int(Status.GROW_PAGES)
_GROW_SEGMENTS = int(Status.GROW_SEGMENTS)
_GROW_MARKS = int(Status.GROW_MARKS)
_GROW_DEPS = int(Status.GROW_DEPS)
_GROW_SLOTS = int(Status.GROW_SLOTS)
_GROW_TABLES = int(Status.GROW_TABLES)
_GROW_IDENTITIES = int(Status.GROW_IDENTITIES)

_C_ANON = int(Count.ANON_ASSUMED)
_C_FORK = int(Count.FORK_INTO_USED_SPACE)
_C_LEARNT = int(Count.LEARNT_MAPPINGS)
_NEXT_ANON = int(Num.NEXT_ANON)

_V_READ = int(Vm.READ)
_V_WRITE = int(Vm.WRITE)
_V_EXEC = int(Vm.EXEC)
_V_SHARED = int(Vm.SHARED | Vm.MAYSHARE)
_V_MAY = int(Vm.MAYREAD | Vm.MAYWRITE | Vm.MAYEXEC)
_V_DOWN = int(Vm.GROWSDOWN)
_V_LOCKED = int(Vm.LOCKED)
_V_NORESERVE = int(Vm.NORESERVE)
_V_ACCOUNT = int(Vm.ACCOUNT)
_V_HUGETLB = int(Vm.HUGETLB)
_V_SPECIAL = int(Vm.SPECIAL)
_MAP_SHARED = 0x1
_MAP_GROWSDOWN = 0x100
_MAP_LOCKED = 0x2000
_MAP_NORESERVE = 0x4000
_MAP_HUGETLB = 0x40000


@njit
def _room(rows, i, m, p, s, w, out, space):
    """Whether one more operation fits whatever it does; else what to grow."""
    vmas = m.space_vmas[space]
    if segments_.segments_full(s, space):
        return _GROW_SEGMENTS
    if pages_.regions_free(p) < 8:
        w.cursor[_NEED] = 8
        return _GROW_PAGES
    if len(w.table_initial) - p.meta[2] < 8:
        return _GROW_TABLES
    if len(out.mark_vma) - w.cursor[_MARKS] < vmas + 64:
        w.cursor[_NEED] = vmas + 64
        return _GROW_MARKS
    if len(out.dep_op) - w.cursor[_DEPS] < 2 * len(w.late) + 8:
        w.cursor[_NEED] = 2 * len(w.late) + 8
        return _GROW_DEPS
    if len(w.anon_set) - w.cursor[_SLOTS] < 8:
        return _GROW_SLOTS
    if len(w.identity_slot) - m.numbers[_NEXT_ANON] < vmas + 64:
        w.cursor[_NEED] = vmas + 64
        return _GROW_IDENTITIES
    if len(w.slot_uid) < len(m.start):
        return _GROW_MAP
    return 0


@njit
def _learn(rows, i, m, rules, p, s, w):
    """Apply one row of the vmas table."""
    space = rows.space[i]
    start = rows.address[i]
    length = rows.length[i]
    if start < 0 or length <= 0:
        return 0  # vsyscall and the like lie in the kernel half
    hint = rows.hint[i]
    raw = rows.flags[i]
    prot = np.int64(rows.prot[i])
    file = np.int64(rows.file[i]) + 1
    slot = find(m, space, start)
    end = start + length
    if slot >= 0 and m.start[slot] == start and m.end[slot] == end and hint & HINT_OLD == 0:
        access = m.flags[slot] & (_V_READ | _V_WRITE | _V_EXEC)
        if access == prot & 7:
            return 0  # we know it already
    flags = _V_MAY | (prot & 7)  # PROT_READ, WRITE, EXEC are Vm's lowest bits
    if raw & _MAP_SHARED:
        flags |= _V_SHARED
    if hint & HINT_STACK or raw & _MAP_GROWSDOWN:
        flags |= _V_DOWN
    if raw & _MAP_LOCKED:
        flags |= _V_LOCKED
    if raw & _MAP_NORESERVE:
        flags |= _V_NORESERVE
    elif raw & _MAP_SHARED == 0 and prot & 2:
        flags |= _V_ACCOUNT
    if hint & HINT_HUGETLB or raw & _MAP_HUGETLB:
        flags |= _V_HUGETLB
    if hint & HINT_SPECIAL:
        flags |= _V_SPECIAL
    anon = np.int64(rows.anon[i])
    if anon < 0:
        # Unknown: what ran before has written its private writable mappings; a new
        # program has written its stack (fs/exec.c:setup_arg_pages) and nothing else.
        private = raw & _MAP_SHARED == 0 and prot & 2 != 0
        if hint & HINT_OLD:
            anon = np.int64(1 if private else 0)
            if private:
                w.counters[_C_ANON] += 1
        else:
            anon = np.int64(1 if hint & HINT_STACK else 0)
    page_offset = rows.file_offset[i] >> 12 if file > 0 else start >> 12
    if insert(m, rules, space, start, end, flags, page_offset, file, anon) == NEED_SPACE:
        return _GROW_MAP
    if hint & HINT_HEAP and m.space_brk[space] == NONE:
        m.space_brk_start[space] = start
        m.space_brk[space] = end
    if hint & HINT_OLD:
        w.space_old[space] = 1
    w.counters[_C_LEARNT] += 1
    return 0


@njit
def _enter(w, thread, space):
    """The thread runs in ``space`` from now on (exec, or first seen there)."""
    old = w.thread_space[thread]
    if old == space:
        return
    if w.thread_alive[thread]:
        if old >= 0:
            w.users[old] -= 1
        w.users[space] += 1
    w.thread_space[thread] = space


@njit
def _event(rows, i, w):
    """A thread begins or ends."""
    thread = rows.thread[i]
    if rows.kind[i] == THREAD_BEGIN:
        if not w.thread_alive[thread]:
            w.thread_alive[thread] = 1
            if w.thread_space[thread] < 0:
                w.thread_space[thread] = rows.space[i]
            w.users[w.thread_space[thread]] += 1
    elif w.thread_alive[thread]:
        w.thread_alive[thread] = 0
        w.users[w.thread_space[thread]] -= 1


@njit
def _tear_down(rows, i, m, rules, p, s, w, out, o, thread, space, marks):
    """The address space ends: its last pages, its VMAs, waits for everybody in it."""
    status = apply(
        m, rules, space, _PROCESS_EXIT, np.int64(0), np.int64(0), NONE, NONE,
        np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0),
    )  # fmt: skip
    if status == NEED_SPACE:
        return _GROW_MAP
    if marks:
        copy_marks(m, w, out)
    for other in range(len(w.thread_last)):
        if other != thread and w.thread_space[other] == space:
            add_dep(w, out, thread, w.thread_last[other])
    out.pages[o], out.tables[o] = pages_.drop_space(p, space)
    if out.pages[o] > 0:
        out.traits[o] |= _T_PAGES
    segments_.clear_space(s, space)
    w.space_old[space] = 0
    out.traits[o] |= _T_LAST
    return 0


@njit
def _fork(rows, i, m, rules, p, s, w, out, o, thread, space):
    child = rows.child_space[i]
    out.op[o] = _OP_FORK
    out.child_mm[o] = child
    out.vmas[o] = m.space_vmas[space]
    out.last_page[o] = (np.int64(1) << 35) - 1
    if child < 0 or child == space:
        return 0
    if m.space_vmas[child] > 0 or p.head[child] >= 0:
        w.counters[_C_FORK] += 1
        return 0
    need = np.int64(p.n_regions[space]) + 8
    if pages_.regions_free(p) < need or len(w.table_initial) - p.meta[2] < need:
        w.cursor[_NEED] = need
        return _GROW_PAGES
    status = apply(
        m, rules, space, _FORK, np.int64(0), np.int64(0), np.int64(child), NONE,
        np.int64(0), rows.flags[i], np.int64(0), np.int64(0), rows.result[i],
    )  # fmt: skip
    if status == NEED_SPACE:
        return _GROW_MAP
    copy_marks(m, w, out)
    before = p.meta[2]
    out.pages[o], out.tables[o] = pages_.fork(p, space, child)
    for table in range(before, p.meta[2]):
        w.table_initial[table] = 1
    if out.pages[o] > 0:
        out.traits[o] |= _T_PAGES
    w.partner[child] = space
    w.partner[space] = child
    w.space_old[child] = w.space_old[space]
    return 0


@njit
def _process(rows, i, m, rules, p, s, w, out, o, inside, thread, space, before):
    """clone, fork, exec, start and exit."""
    kind = rows.kind[i]
    failed = rows.errno[i] != 0
    child = rows.child[i]
    here = np.int64(o) if inside else np.int64(-1)
    out.first_page[o] = 0
    out.last_page[o] = 0
    if kind in (_CLONE, _VFORK, _FORK):
        out.op[o] = _OP_NONE
        if failed:
            return 0
        if kind == _FORK:
            status = _fork(rows, i, m, rules, p, s, w, out, o, thread, space)
            if status != 0:
                return status
        if kind == _VFORK:
            out.traits[o] |= _T_SHARES
        if child >= 0:
            w.thread_dep[child] = here
            if kind == _VFORK:
                w.vfork_parent[child] = thread
        return 0
    parent = w.vfork_parent[thread]
    if kind == _EXEC:
        out.op[o] = _OP_NONE if failed else _OP_EXEC
        if failed:
            return 0
        # the row may carry the new space: the locks taken are those of the old one
        old = before if before >= 0 else space
        out.mm[o] = old
        if parent >= 0:
            out.op[o] = _OP_VFORK_EXIT
            w.vfork_parent[thread] = -1
            w.thread_dep[parent] = here
            return 0
        # a row that keeps its space (first exec of a recorded command) has nothing to end
        if old != space and w.users[old] <= 1:
            return _tear_down(rows, i, m, rules, p, s, w, out, o, thread, old, False)
        return 0
    if kind == _THREAD_START:
        out.op[o] = _OP_START
        return 0
    if parent >= 0:
        out.op[o] = _OP_VFORK_EXIT
        w.vfork_parent[thread] = -1
        w.thread_dep[parent] = here
        return 0
    if kind == _THREAD_EXIT:
        out.op[o] = _OP_EXIT
        if w.users[space] <= 1:
            out.traits[o] |= _T_LAST
        return 0
    out.op[o] = _OP_PROCESS_EXIT
    out.vmas[o] = m.space_vmas[space]
    out.last_page[o] = (np.int64(1) << 35) - 1
    return _tear_down(rows, i, m, rules, p, s, w, out, o, thread, space, True)


@njit
def _blank(out, o):
    """Row ``o`` as a retried operation must find it."""
    out.op[o] = _OP_NONE
    out.child_mm[o] = -1
    out.traits[o] = 0
    out.pages[o] = 0
    out.vmas[o] = 0
    out.tables[o] = 0
    out.vma[o] = -1
    out.anon_slot[o] = -1
    out.table[o] = -1
    out.file[o] = 0


@njit
def advance(rows, start, m, rules, p, s, w, out, c, options):
    """Plan rows from ``start`` on; returns (next row, Status)."""
    waste = len(out.op) - 1
    for i in range(start, len(rows.kind)):
        kind = rows.kind[i]
        space = rows.space[i]
        if kind == LEARN:
            status = _room(rows, i, m, p, s, w, out, space)
            if status == 0:
                status = _learn(rows, i, m, rules, p, s, w)
            if status != 0:
                return i, status
            continue
        if kind == THREAD_BEGIN or kind == THREAD_END:
            _event(rows, i, w)
            continue
        if kind == _SNAPSHOT:
            continue
        status = _room(rows, i, m, p, s, w, out, space)
        if status != 0:
            return i, status
        thread = rows.thread[i]
        before = w.thread_space[thread]
        if kind != _EXEC:
            _enter(w, thread, space)
        elif before < 0:
            w.thread_space[thread] = space
        row = rows.row[i]
        inside = options.row_first <= row < options.row_end
        o = w.cursor[_OUT] if inside else waste
        # positions to return to when the operation has to be tried again
        marks = w.cursor[_MARKS]
        deps = w.cursor[_DEPS]
        _blank(out, o)
        out.thread[o] = thread
        out.mm[o] = space
        out.row[o] = row
        out.copy[o] = rows.copy[i]
        if inside and w.thread_dep[thread] >= 0:
            add_dep(w, out, thread, w.thread_dep[thread])
        if rows.copy[i] > 0:
            status = plan_clone(rows, i, m, rules, p, s, w, out, c, o, inside, thread, space, options)
        elif kind == _FAULT_USER or kind == _FAULT_KERNEL:
            out.op[o] = _OP_FAULT
            status = plan_fault(rows, i, m, rules, p, s, w, out, o, inside, thread, space, options)
        elif (
            kind == _CLONE
            or kind == _FORK
            or kind == _VFORK
            or kind == _EXEC
            or kind == _THREAD_START
            or kind == _THREAD_EXIT
            or kind == _PROCESS_EXIT
        ):
            status = _process(rows, i, m, rules, p, s, w, out, o, inside, thread, space, before)
        else:
            status = plan_call(rows, i, m, rules, p, s, w, out, o, inside, thread, space, options)
        if status != 0:
            w.cursor[_MARKS] = marks
            forget_deps(w, out, thread, deps)
            return i, status
        if w.users[out.mm[o]] <= 1:
            out.traits[o] |= _T_SINGLE
        if inside:
            w.thread_dep[thread] = -1
            w.thread_last[thread] = o
            w.cursor[_OUT] = o + 1
            out.mark_first[o + 1] = w.cursor[_MARKS]
            out.dep_first[o + 1] = w.cursor[_DEPS]
        else:
            w.cursor[_MARKS] = marks
            forget_deps(w, out, thread, deps)
    return len(rows.kind), 0
