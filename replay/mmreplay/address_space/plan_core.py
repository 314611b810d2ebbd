"""The compiled pass over a chunk of rows: dispatch, threads, processes, learnt mappings."""

from __future__ import annotations

import numpy as np

from mmreplay.address_space import page_state as pages_
from mmreplay.address_space import segments as segments_
from mmreplay.address_space.mappings import (
    HINT_GATE,
    HINT_HEAP,
    HINT_HUGETLB,
    HINT_OLD,
    HINT_SPECIAL,
    HINT_STACK,
)
from mmreplay.address_space.plan import PlanOp, Trait
from mmreplay.address_space.plan_calls import (
    STAGE_APPLY,
    STAGE_DONE,
    finish_call,
    prepare_call,
)
from mmreplay.address_space.plan_clone import after_clone, before_clone
from mmreplay.address_space.plan_fault import MOST_PIECES, copy_marks, plan_fault
from mmreplay.address_space.plan_state import Count, Cursor, Status, add_dep, forget_deps
from mmreplay.address_space.rows import LEARN, THREAD_BEGIN, THREAD_END
from mmreplay.address_space.vma_apply import apply_core, insert_core
from mmreplay.address_space.vma_index import find
from mmreplay.address_space.vma_move import forget_space
from mmreplay.address_space.vma_state import (
    NEED_SPACE,
    NONE,
    S_BRK,
    S_BRK_START,
    S_VMAS,
    V_END,
    V_FLAGS,
    V_START,
    Num,
    Vm,
)
from mmreplay.jit import borrowing_helper, inlined_helper, lean, native
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
_PROCESS_MADVISE, _PROCESS_VM = int(OpKind.PROCESS_MADVISE), int(OpKind.PROCESS_VM)
_MADVISE, _PROC_READ = int(OpKind.MADVISE), int(OpKind.PROC_READ)
_MINCORE = int(OpKind.MINCORE)
_MLOCK = int(OpKind.MLOCK)
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
_LAST_PAGE = (1 << 35) - 1  # of 47-bit user addresses
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


@inlined_helper
def _room(rows, i, m, p, s, w, out, space):
    """Whether one more operation fits whatever it does; else what to grow."""
    vmas = m.spaces[space, S_VMAS]
    kind = rows[i].kind
    if (
        kind == _PROCESS_MADVISE
        or kind == _MADVISE
        or kind == _PROC_READ
        or (kind == _PROCESS_VM or kind == _MINCORE)
    ):
        # its pieces (``plan_fault.pieces``): of a vector, or of 4 KiB at least
        some = max(rows[i].length2, rows[i].length >> 12, rows[i].result >> 12)
        vmas = max(vmas, min(some, MOST_PIECES))
    if segments_.segments_full_core(s, space):
        return _GROW_SEGMENTS
    if pages_.regions_free(p) < 8:
        w.cursor[_NEED] = 8
        return _GROW_PAGES
    if len(w.table_initial) - p.meta[2] < 8:
        return _GROW_TABLES
    marks = vmas + p.spaces[space].n_regions + 64
    if kind == _MLOCK:  # makes the page tables of its range
        marks += rows[i].length >> 21
    if len(out.marks) - w.cursor[_MARKS] < marks:
        w.cursor[_NEED] = marks
        return _GROW_MARKS
    if len(out.deps) - w.cursor[_DEPS] < 2 * len(w.threads) + 8:
        w.cursor[_NEED] = 2 * len(w.threads) + 8
        return _GROW_DEPS
    if len(w.bits) - w.cursor[_SLOTS] < 8:
        return _GROW_SLOTS
    if len(w.identities) - m.numbers[_NEXT_ANON] < vmas + 64:
        w.cursor[_NEED] = vmas + 64
        return _GROW_IDENTITIES
    if len(w.slots) < len(m.vma):
        return _GROW_MAP
    return 0


@borrowing_helper
def _learn(rows, i, m, rules, p, s, w):
    """Apply one row of the vmas table."""
    space = rows[i].space
    start = rows[i].address
    length = rows[i].length
    if rows[i].hint & HINT_GATE:  # of the kernel, so of every address space
        for other in range(len(w.spaces)):
            w.spaces[other].gate = 1
        return 0
    if start < 0 or length <= 0:
        return 0  # in the kernel half
    hint = rows[i].hint
    raw = rows[i].advice
    prot = np.int64(rows[i].prot)
    file = np.int64(rows[i].file) + 1
    slot = find(m, space, start)
    end = start + length
    if (
        slot >= 0
        and m.vma[slot, V_START] == start
        and m.vma[slot, V_END] == end
        and hint & HINT_OLD == 0
    ):
        access = m.vma[slot, V_FLAGS] & (_V_READ | _V_WRITE | _V_EXEC)
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
    anon = np.int64(rows[i].anon)
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
    page_offset = rows[i].file_offset >> 12 if file > 0 else start >> 12
    if insert_core(m, rules, space, start, end, flags, page_offset, file, anon) == NEED_SPACE:
        return _GROW_MAP
    if hint & HINT_HEAP and m.spaces[space, S_BRK] == NONE:
        m.spaces[space, S_BRK_START] = start
        m.spaces[space, S_BRK] = end
    if hint & HINT_OLD:
        w.spaces[space].old = 1
    w.counters[_C_LEARNT] += 1
    return 0


@borrowing_helper
def _enter(m, p, s, w, thread, space):
    """The thread runs in ``space`` from now on (exec, or first seen there)."""
    old = w.threads[thread].space
    if old == space:
        return
    if w.threads[thread].alive:
        if old >= 0:
            w.spaces[old].users -= 1
            if w.spaces[old].users <= 0 and w.spaces[old].ending:
                _drop(m, p, s, w, old)
        w.spaces[space].users += 1
    w.threads[thread].space = space


@borrowing_helper
def _drop(m, p, s, w, space):
    """Nobody is left in the address space."""
    forget_space(m, space)
    pages_.drop_space(p, space)
    segments_.clear_space(s, space)
    w.spaces[space].old = 0
    w.spaces[space].ending = 0


@borrowing_helper
def _event(rows, i, w):
    """A thread begins or ends."""
    thread = rows[i].thread
    if rows[i].kind == THREAD_BEGIN:
        if not w.threads[thread].alive:
            w.threads[thread].alive = 1
            if w.threads[thread].space < 0:
                w.threads[thread].space = rows[i].space
            w.spaces[w.threads[thread].space].users += 1
    elif w.threads[thread].alive:
        w.threads[thread].alive = 0
        w.spaces[w.threads[thread].space].users -= 1


@borrowing_helper
def _ask(w, space, kind, address2, flags, result):
    """Arguments of a process event for the VMA map."""
    for k in range(11):
        w.args[k] = 0
    w.args[0] = space
    w.args[1] = kind
    w.args[4] = address2
    w.args[5] = NONE
    w.args[7] = flags
    w.args[10] = result


@borrowing_helper
def _prepare_process(rows, i, m, p, w, out, o, inside, thread, space):
    """clone, fork, exec, start and exit: program and arguments; (Status, next stage)."""
    kind = rows[i].kind
    failed = rows[i].errno != 0
    child = rows[i].child
    here = np.int64(o) if inside else np.int64(-1)
    out.ops[o].op = _OP_NONE
    out.ops[o].first_page = 0
    out.ops[o].last_page = 0
    if failed:
        return 0, STAGE_DONE
    if kind == _CLONE or kind == _VFORK or kind == _FORK:
        stage = STAGE_DONE
        if kind == _FORK:
            there = rows[i].child_space
            out.ops[o].op = _OP_FORK
            out.ops[o].child_mm = there
            out.ops[o].vmas = m.spaces[space, S_VMAS]
            out.ops[o].last_page = _LAST_PAGE
            if there >= 0 and there != space:
                if m.spaces[there, S_VMAS] > 0 or p.spaces[there].head >= 0:
                    w.counters[_C_FORK] += 1
                else:
                    need = np.int64(p.spaces[space].n_regions) + 8
                    if pages_.regions_free(p) < need or len(w.table_initial) - p.meta[2] < need:
                        w.cursor[_NEED] = need
                        return _GROW_PAGES, STAGE_DONE
                    _ask(w, space, _FORK, np.int64(there), rows[i].advice, rows[i].result)
                    stage = STAGE_APPLY
        elif kind == _VFORK:
            out.ops[o].traits |= _T_SHARES
        if child >= 0:
            w.threads[child].dep = here
            if kind == _VFORK:
                w.threads[child].vfork_parent = thread
        return 0, stage
    parent = w.threads[thread].vfork_parent
    if kind == _THREAD_START:
        out.ops[o].op = _OP_START
        return 0, STAGE_DONE
    if kind == _EXEC:
        out.ops[o].op = _OP_EXEC
    if parent >= 0:  # a vfork child gives the mm back to its parent
        out.ops[o].op = _OP_VFORK_EXIT
        if kind == _EXEC:
            out.ops[o].traits |= _T_SHARES  # leaves the mm, whose accounting goes on
        w.threads[thread].vfork_parent = -1
        w.threads[parent].dep = here
        return 0, STAGE_DONE
    if kind == _EXEC:
        # The row's space is the one that exec leaves, some time after the call's begin: it
        # stays until the thread is seen in the new one.  A command that the recorder
        # launched is there already.
        if w.threads[thread].space == space and w.spaces[space].users <= 1:
            w.spaces[space].ending = 1
            out.ops[o].vmas = m.spaces[space, S_VMAS]
            out.ops[o].pages, out.ops[o].tables = pages_.total(p, space)
            out.ops[o].traits |= _T_LAST
            if out.ops[o].pages > 0:
                out.ops[o].traits |= _T_PAGES
            _wait_for_all(w, out, thread, space)
        return 0, STAGE_DONE
    if kind == _THREAD_EXIT:
        out.ops[o].op = _OP_EXIT
        if w.spaces[space].users <= 1:
            out.ops[o].traits |= _T_LAST
        return 0, STAGE_DONE
    out.ops[o].op = _OP_PROCESS_EXIT
    out.ops[o].vmas = m.spaces[space, S_VMAS]
    out.ops[o].last_page = _LAST_PAGE
    _ask(w, np.int64(space), _PROCESS_EXIT, NONE, np.int64(0), np.int64(0))
    return 0, STAGE_APPLY


@borrowing_helper
def _wait_for_all(w, out, thread, space):
    """The address space ends: after everybody's last operation in it."""
    for other in range(len(w.threads)):
        if other != thread and w.threads[other].space == space:
            add_dep(w, out, thread, w.threads[other].last)


@borrowing_helper
def _finish_process(rows, i, m, p, s, w, out, o, thread):
    """After the VMA map has forked or ended a space: pages, marks and waits."""
    space = w.args[0]
    if rows[i].kind == _FORK:
        child = rows[i].child_space
        copy_marks(m, w, out)
        before = p.meta[2]
        out.ops[o].pages, out.ops[o].tables = pages_.fork(p, space, child)
        for table in range(before, p.meta[2]):
            w.table_initial[table] = 1
        w.spaces[child].partner = space
        w.spaces[space].partner = child
        w.spaces[child].old = w.spaces[space].old
    else:
        if rows[i].kind == _PROCESS_EXIT:
            copy_marks(m, w, out)
        _wait_for_all(w, out, thread, space)
        out.ops[o].pages, out.ops[o].tables = pages_.drop_space(p, space)
        segments_.clear_space(s, space)
        w.spaces[space].old = 0
        out.ops[o].traits |= _T_LAST
    if out.ops[o].pages > 0:
        out.ops[o].traits |= _T_PAGES


@borrowing_helper
def _blank(out, o):
    """Row ``o`` as a retried operation must find it."""
    out.ops[o].op = _OP_NONE
    out.ops[o].child_mm = -1
    out.ops[o].traits = 0
    out.ops[o].pages = 0
    out.ops[o].vmas = 0
    out.ops[o].tables = 0
    out.ops[o].vma = -1
    out.ops[o].vma_first_page = -1
    out.ops[o].vma_last_page = -1
    out.ops[o].anon_slot = -1
    out.ops[o].table = -1
    out.ops[o].file = 0


@native
def advance(
    chunk, order, start, map_, rules, pages, makers, work, made, clones, row_first, row_end, huge
):
    """Plan ``rows`` in their order from position ``start`` on; returns (next position, Status)."""
    rows, m, p, s = lean(chunk), lean(map_), lean(pages), lean(makers)
    w, out, c = lean(work), lean(made), lean(clones)
    waste = len(out.ops) - 1
    for at in range(start, len(order)):
        i = order[at]
        kind = rows[i].kind
        space = rows[i].space
        if kind == LEARN:
            status = _room(rows, i, m, p, s, w, out, space)
            if status == 0:
                status = _learn(rows, i, m, rules, p, s, w)
            if status != 0:
                return at, status
            continue
        if kind == THREAD_BEGIN or kind == THREAD_END:
            _event(rows, i, w)
            continue
        if kind == _SNAPSHOT:
            continue
        status = _room(rows, i, m, p, s, w, out, space)
        if status != 0:
            return at, status
        thread = rows[i].thread
        if kind != _EXEC:
            _enter(m, p, s, w, thread, space)
        row = rows[i].row
        before = row < row_first
        inside = not before and row < row_end
        o = w.cursor[_OUT] if inside else waste
        # positions to return to when the operation has to be tried again
        marks = w.cursor[_MARKS]
        deps = w.cursor[_DEPS]
        _blank(out, o)
        out.ops[o].thread = thread
        out.ops[o].mm = space
        out.ops[o].row = row
        out.ops[o].clone = rows[i].clone
        out.ops[o].mark_first = marks
        out.ops[o].dep_first = deps
        if inside and w.threads[thread].dep >= 0:
            add_dep(w, out, thread, w.threads[thread].dep)
        status = 0
        ordinary = True
        is_clone = rows[i].clone > 0
        if is_clone:
            status, ordinary = before_clone(
                rows, i, m, rules, s, w, out, c, o, inside, thread, space
            )
        if status == 0 and ordinary:
            stage = STAGE_DONE
            process = False
            if kind == _FAULT_USER or kind == _FAULT_KERNEL:
                out.ops[o].op = _OP_FAULT
                status = plan_fault(
                    rows, i, m, rules, p, s, w, out, o, inside, before, thread, space, huge
                )
            else:
                process = (
                    kind == _CLONE
                    or kind == _FORK
                    or kind == _VFORK
                    or kind == _EXEC
                    or kind == _THREAD_START
                    or kind == _THREAD_EXIT
                    or kind == _PROCESS_EXIT
                )
                if process:
                    status, stage = _prepare_process(
                        rows, i, m, p, w, out, o, inside, thread, space
                    )
                else:
                    status, stage = prepare_call(rows, i, m, p, w, out, o, space)
            if status == 0 and stage == STAGE_APPLY:
                a = w.args
                done = apply_core(
                    m, rules, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10]
                )
                if done == NEED_SPACE:
                    status = _GROW_MAP
            if status == 0 and stage != STAGE_DONE:
                if process:
                    _finish_process(rows, i, m, p, s, w, out, o, thread)
                else:
                    finish_call(rows, i, m, p, s, w, out, o, inside, before, thread, space)
            if is_clone:
                after_clone(rows, i, s, w, c, thread, status)
        if status != 0:
            w.cursor[_MARKS] = marks
            forget_deps(w, out, thread, deps)
            return at, status
        if w.spaces[out.ops[o].mm].users <= 1:
            out.ops[o].traits |= _T_SINGLE
        if inside:
            w.threads[thread].dep = -1
            w.threads[thread].last = o
            w.cursor[_OUT] = o + 1
            out.ops[o].mark_end = w.cursor[_MARKS]
            out.ops[o].dep_end = w.cursor[_DEPS]
        else:
            w.cursor[_MARKS] = marks
            forget_deps(w, out, thread, deps)
    return len(order), 0
