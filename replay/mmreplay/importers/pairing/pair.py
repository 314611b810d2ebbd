"""Compiled, streaming pairing: event batches -> operations, waits, schedule, VMAs.

The rules are told in ``docs/import.md``; state is kept per live
thread, process and address space only (:mod:`mmreplay.importers.pairing.state`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmreplay.importers import events as ev
from mmreplay.importers import syscalls as sc
from mmreplay.importers.binary import bare
from mmreplay.importers.pairing import state as ps
from mmreplay.importers.pairing.futex import futex_enter, futex_exit, joined
from mmreplay.importers.pairing.process import (
    end_of_thread,
    finish_clone,
    on_comm,
    on_fork,
    on_new_task,
    orphan_exit,
    result_of,
    start_thread,
)
from mmreplay.importers.pairing.queue import futex_leave
from mmreplay.importers.pairing.shared import child_shows, evidence
from mmreplay.importers.pairing.spans import contention_begin, contention_end, mapping, mmap_lock
from mmreplay.importers.pairing.thread import (
    account,
    begin_row,
    close_call,
    close_fault,
    come_back,
    emit_thread,
    inner_event,
    leave_cpu,
    new_thread,
    process_of,
)
from mmreplay.importers.pairing.wakeups import waking
from mmreplay.jit import borrowing_helper, native
from mmreplay.schema import DurationKind, FaultClass, OpKind, Quality

_NONE = np.int64(int(DurationKind.NONE))
_NO_CPU = np.int64(-1)
_MEASURED = np.int64(int(DurationKind.MEASURED))
_UPPER = np.int64(int(DurationKind.UPPER_BOUND))
_BEGIN_UNSEEN = np.int64(int(DurationKind.BEGIN_UNSEEN))
_END_UNSEEN = np.int64(int(DurationKind.END_UNSEEN))
_UNKNOWN = np.int64(int(FaultClass.UNKNOWN))
_FAILED = np.int64(int(FaultClass.FAILED))
_MINOR = np.int64(int(FaultClass.MINOR))
_FAULT_USER = np.int64(int(OpKind.FAULT_USER))
_FAULT_KERNEL = np.int64(int(OpKind.FAULT_KERNEL))
_LATE = np.int64(int(Quality.LATE))
_PAGE_SHIFT = 12
_KERNEL_HALF = np.uint64(1 << 63)


@borrowing_helper
def room(a: Any) -> Any:
    """How many events surely fit; 0: the caller drains or grows, then goes on."""
    rows = min(a[ps.C_ROOM] - a[ps.C_OPS], ps.PATCH_ROWS - a[ps.C_PATCHES])
    rows = min(rows, ps.rows_of(a, ps.B_THREADS) - a[ps.C_THREADS])
    rows = min(rows, ps.rows_of(a, ps.B_PROCS) - a[ps.C_PROCS])
    rows = min(rows, ps.rows_of(a, ps.B_SPACES) - a[ps.C_SPACES])
    rows = min(rows, ps.rows_of(a, ps.B_THREAD_ROWS) - a[ps.C_THREAD_ROWS])
    rows = min(rows, ps.rows_of(a, ps.B_SCHEDULE) - a[ps.C_SCHEDULE])
    rows = min(rows, ps.rows_of(a, ps.B_LOCKS) - a[ps.C_LOCKS])
    rows = min(rows, ps.rows_of(a, ps.B_VMAS) - a[ps.C_VMAS])
    rows = min(rows, ps.rows_of(a, ps.B_GAPS) - a[ps.C_GAPS])
    rows = min(rows, ps.rows_of(a, ps.B_WAKEUPS) - a[ps.C_WAKEUPS])
    return rows // ps.MARGIN


@borrowing_helper
def _begin_fault(
    a: Any,
    ops: Any,
    t: Any,
    role: Any,
    now: Any,
    address: np.uint64,
    bits: Any,
    ip: Any,
    weight: Any,
    user: Any,
    quality: Any,
    cpu: Any,
) -> None:
    kind = _FAULT_USER
    if role == ev.FAULT_KERNEL or (role >= ev.FAULT_SOFTWARE and not user):
        kind = _FAULT_KERNEL
    row = begin_row(a, ops, t, now, kind, cpu, weight, quality)
    out = ps.place(a, row)
    ops[out + ps.O_ADDRESS] = np.int64(address)
    ops[out + ps.O_KNOWN] |= ps.K_ADDRESS
    if role == ev.FAULT_USER or role == ev.FAULT_KERNEL:
        ops[out + ps.O_BITS] = bits & 0x7F
        ops[out + ps.O_KNOWN] |= ps.K_BITS
    ops[out + ps.O_IP] = ip
    space = ops[out + ps.O_SPACE]
    executes = a[t + ps.S_CALL] == sc.C_EXECVE + 1 or a[t + ps.S_CALL] == sc.C_EXECVEAT + 1
    if address < _KERNEL_HALF and not executes:  # then the kernel may write to the new one
        at = ps.spaces_at(a, space)
        a[at + ps.A_FAULTS] += 1
        a[at + ps.A_HIGHEST] = max(a[at + ps.A_HIGHEST], np.int64(address))
    a[t + ps.S_FAULT] = kind
    a[t + ps.S_FAULT_ROW] = row
    a[t + ps.S_FAULT_NS] = now
    a[t + ps.S_FAULT_ADDRESS] = np.int64(address)
    a[t + ps.S_FAULT_BLOCKED] = 0
    a[t + ps.S_FAULT_SLEPT] = 0
    a[t + ps.S_FAULT_PREEMPTED] = 0
    a[t + ps.S_FAULT_EVENTS] = 0
    a[t + ps.S_FAULT_CONTENTION] = 0
    a[t + ps.S_FAULT_CPU] = cpu


@borrowing_helper
def _point_row(a: Any, ops: Any, t: Any, row: Any, how: Any) -> Any:
    """Turn a row just begun into one without duration."""
    out = ps.place(a, row)
    ops[out + ps.O_DURATION_KIND] = how
    if how == _BEGIN_UNSEEN:
        a[ps.C_BEGIN_UNSEEN] += 1
    return out


@borrowing_helper
def _on_fault(
    a: Any,
    ops: Any,
    t: Any,
    role: Any,
    now: Any,
    address: np.uint64,
    bits: Any,
    ip: Any,
    weight: Any,
    user: Any,
    q: Any,
    cpu: Any,
) -> None:
    shift = np.uint64(_PAGE_SHIFT)
    open_page = np.uint64(a[t + ps.S_FAULT_ADDRESS]) >> shift
    same = a[t + ps.S_FAULT] != 0 and open_page == address >> shift
    if role <= ev.FAULT_SOFTWARE:
        if role == ev.FAULT_SOFTWARE and same and a[t + ps.S_FAULT_EVENTS] == 0:
            inner_event(a, t)  # the tracepoint has told this start already
            return
        if a[t + ps.S_FAULT]:
            a[ps.C_FAILED] += 1
            close_fault(a, ops, t, now, _END_UNSEEN, _FAILED if a[ps.C_ENDS] else _UNKNOWN, cpu)
        if a[t + ps.S_CALL]:
            a[t + ps.S_CALL_EVENTS] += 1
        _begin_fault(a, ops, t, role, now, address, bits, ip, weight, user, q, cpu)
        if not a[ps.C_PAIR]:
            _point_row(a, ops, t, a[t + ps.S_FAULT_ROW], _NONE)
            a[t + ps.S_FAULT] = 0
        return
    outcome = role - ev.FAULT_MINOR + _MINOR
    if same and a[ps.C_PAIR]:
        if a[t + ps.S_CALL]:
            a[t + ps.S_CALL_EVENTS] += 1
        close_fault(a, ops, t, now, _MEASURED, outcome, cpu)
        return
    if not a[ps.C_PAIR] and a[ps.C_STARTS]:
        inner_event(a, t)  # sampled: the starts are the histogram
        return
    if a[t + ps.S_FAULT]:
        a[ps.C_FAILED] += 1
        close_fault(a, ops, t, now, _END_UNSEEN, _FAILED, cpu)
    if a[t + ps.S_CALL]:
        a[t + ps.S_CALL_EVENTS] += 1
    _begin_fault(a, ops, t, role, now, address, bits, ip, weight, user, q, cpu)
    out = _point_row(a, ops, t, a[t + ps.S_FAULT_ROW], _BEGIN_UNSEEN if a[ps.C_STARTS] else _NONE)
    ops[out + ps.O_CLASS] = outcome
    a[t + ps.S_FAULT] = 0


@borrowing_helper
def _on_enter(
    a: Any,
    ops: Any,
    t: Any,
    call: Any,
    now: Any,
    arg: Any,
    i: Any,
    ip: Any,
    weight: Any,
    q: Any,
    cpu: Any,
) -> None:
    if a[t + ps.S_CALL]:
        close_call(a, ops, t, now, _END_UNSEEN, cpu)
    row = begin_row(a, ops, t, now, sc.CALL_KIND[call], cpu, weight, q)
    out = ps.place(a, row)
    ops[out + ps.O_ADDRESS] = np.int64(arg[i, sc.ADDRESS])
    ops[out + ps.O_LENGTH] = np.int64(arg[i, sc.LENGTH])
    ops[out + ps.O_ADDRESS2] = np.int64(arg[i, sc.ADDRESS2])
    ops[out + ps.O_LENGTH2] = np.int64(arg[i, sc.LENGTH2])
    ops[out + ps.O_PROT] = np.int64(arg[i, sc.PROT] & np.uint64(0xFF))
    ops[out + ps.O_FLAGS] = np.int64(arg[i, sc.FLAGS])
    ops[out + ps.O_OFFSET] = np.int64(arg[i, sc.OFFSET])
    ops[out + ps.O_FD] = np.int64(arg[i, sc.FD])
    ops[out + ps.O_IP] = ip
    ops[out + ps.O_KNOWN] |= sc.PRESENT[call]
    if not a[a[ps.B_EXITS] + call] or not a[ps.C_PAIR]:
        ops[out + ps.O_DURATION_KIND] = _NONE
        return
    a[t + ps.S_CALL] = call + 1
    a[t + ps.S_CALL_ROW] = row
    a[t + ps.S_CALL_NS] = now
    a[t + ps.S_CALL_BLOCKED] = 0
    a[t + ps.S_CALL_SLEPT] = 0
    a[t + ps.S_CALL_PREEMPTED] = 0
    a[t + ps.S_CALL_EVENTS] = 0
    a[t + ps.S_CALL_CONTENTION] = 0
    a[t + ps.S_CALL_NESTED] = 0
    a[t + ps.S_CALL_CPU] = cpu
    a[t + ps.S_CALL_FLAGS] = ops[out + ps.O_FLAGS]
    a[t + ps.S_CALL_ADDRESS] = ops[out + ps.O_ADDRESS]
    a[t + ps.S_CALL_LENGTH] = ops[out + ps.O_LENGTH]
    a[t + ps.S_CALL_CHILD] = 0
    a[t + ps.S_CALL_CHILD_KIND] = 0
    a[t + ps.S_CALL_CHILD_GONE] = 0
    a[t + ps.S_CALL_CHILD_SHARES] = 0
    if call == sc.C_EXECVE or call == sc.C_EXECVEAT:
        a[ps.procs_at(a, a[t + ps.S_PROC]) + ps.P_EXEC_THREAD] = ps.tid_find(a, a[t + ps.S_TID]) + 1


@borrowing_helper
def _on_exit(
    a: Any,
    ops: Any,
    slot: Any,
    call: Any,
    now: Any,
    result: Any,
    weight: Any,
    q: Any,
    cpu: Any,
) -> None:
    t = ps.threads_at(a, slot)
    if a[t + ps.S_CALL] == call + 1:
        kind = sc.CALL_KIND[call]
        if call == sc.C_CLONE or call == sc.C_CLONE3 or call == sc.C_FORK or call == sc.C_VFORK:
            kind = finish_clone(a, ops, t, call, result)
        child = a[t + ps.S_CALL_CHILD]
        attached = a[t + ps.S_CALL_LENGTH] if call == sc.C_SHMAT else 0
        out = close_call(a, ops, t, now, _MEASURED, cpu)
        ops[out + ps.O_KIND] = kind
        result_of(a, ops, out, t, call, result)
        if child > 0:
            ops[out + ps.O_CHILD] = child
            ops[out + ps.O_KNOWN] |= ps.K_CHILD
        if attached > 0:
            ops[out + ps.O_LENGTH] = attached
            ops[out + ps.O_KNOWN] |= ps.K_LENGTH
        return
    if a[t + ps.S_CALL]:
        close_call(a, ops, t, now, _END_UNSEEN, cpu)
    if not a[ps.C_PAIR]:
        return
    orphan_exit(a, ops, slot, call, result, weight, now, q, cpu)


@borrowing_helper
def _gap_check(a: Any, ops: Any, t: Any, now: Any, cpu: Any, back: Any) -> None:
    """Whether events of this thread may have been lost since its last one.

    ``back``: it is switched in now.  If it was off its CPU, it is taken to have slept through
    the loss: its think time is off by no more than the loss lasted.
    """
    gap = a[a[ps.B_GAP_NS]]
    old = a[t + ps.S_LAST_CPU]
    gap = max(gap, a[a[ps.B_GAP_NS] + old + 1])
    gap = max(gap, a[a[ps.B_GAP_NS] + cpu + 1])
    if gap < a[t + ps.S_LAST_NS] or gap < 0:
        return
    off = a[t + ps.S_RUN] == ps.BLOCKED or a[t + ps.S_RUN] == ps.PREEMPTED
    slept = back and off and a[t + ps.S_FAULT] == 0 and a[t + ps.S_CALL] == 0
    if a[t + ps.S_FAULT]:
        close_fault(a, ops, t, now, _END_UNSEEN, _UNKNOWN, _NO_CPU)
    if a[t + ps.S_CALL]:
        close_call(a, ops, t, now, _END_UNSEEN, _NO_CPU)
    account(a, t, now)
    a[t + ps.S_WAKE_NS] = 0
    futex_leave(a, ps.tid_find(a, a[t + ps.S_TID]))
    come_back(a, ops, t, now)
    a[t + ps.S_AFTER_GAP] = 1
    if not slept:
        a[t + ps.S_PRE_KNOWN] = 0
    a[t + ps.S_WAITS] = 0
    a[t + ps.S_HOLDS] = 0
    a[ps.C_GAP_EVENTS] += 1


@borrowing_helper
def _loss(a: Any, now: Any, cpu: Any, lost: Any, role: Any) -> None:
    row = a[ps.C_GAPS]
    a[ps.C_GAPS] += 1
    a[ps.C_LOSSES] += 1
    out = a[ps.B_GAPS] + row * ps.Z_SIZE
    a[out + ps.Z_RING] = cpu
    before = a[a[ps.B_RING_NS] + cpu + 1] if cpu >= 0 else a[ps.C_LAST_NS]
    a[out + ps.Z_BEGIN] = before if before >= 0 else 0
    a[out + ps.Z_END] = now
    a[out + ps.Z_LOST] = lost
    a[out + ps.Z_EVENT] = role
    a[a[ps.B_GAP_NS] + cpu + 1] = now


@borrowing_helper
def _was_away(a: Any, t: Any) -> None:
    """A thread from before the recording that first shows by coming onto a CPU slept until then."""
    fresh = a[t + ps.S_START_KIND] == ps.START_ATTACH and a[t + ps.S_LAST_CPU] < 0
    fresh = fresh and a[t + ps.S_RUN] == ps.RUNNING and a[t + ps.S_OFF_NS] == 0
    if fresh and a[t + ps.S_ROW] + a[t + ps.S_PRE_EVENTS] + a[t + ps.S_AFTER_GAP] == 0:
        a[t + ps.S_RUN] = ps.BLOCKED
        a[t + ps.S_OFF_NS] = -1  # no telling when it left
        a[t + ps.S_PRE_KNOWN] = 1


@borrowing_helper
def _returns(a: Any, ops: Any, t: Any, now: Any) -> None:
    """The thread is seen on a CPU again; whom it joined may tell why."""
    joins = a[t + ps.S_FUTEX] == ps.FUTEX_JOINS and a[t + ps.S_RUN] == ps.BLOCKED
    joins = joins and a[t + ps.S_WAKE_NS] <= 0
    come_back(a, ops, t, now)
    if joins:
        joined(a, t, now)


@borrowing_helper
def _on_futex(
    a: Any, ops: Any, slot: Any, role: Any, call: Any, arg: Any, i: Any, now: Any
) -> None:
    """A futex call begins or returns: no operation, but it tells whom a wait was for."""
    t = ps.threads_at(a, slot)
    if a[t + ps.S_CALL]:
        close_call(a, ops, t, now, _END_UNSEEN, _NO_CPU)
    if a[ps.C_PAIR]:
        if role == ev.ENTER:
            futex_enter(a, slot, call, arg, i, now)
        else:
            futex_exit(a, slot, np.int64(arg[i, 0]), now)
    inner_event(a, t)


@borrowing_helper
def _departs(a: Any, t: Any, now: Any, state: np.uint64, cpu: Any) -> None:
    """sched_switch of the thread that leaves its CPU."""
    account(a, t, now)
    # TASK_REPORT is 0x7f, 0x80 an idle kernel thread; R and R+ (0x100, preempted) could have run on
    # (include/linux/sched.h@6.18).
    leave_cpu(a, t, now, cpu, ps.BLOCKED if state & np.uint64(0xFF) else ps.PREEMPTED)
    inner_event(a, t)


@borrowing_helper
def _arrives(a: Any, ops: Any, now: Any, following: Any, cpu: Any) -> None:
    """sched_switch to a known thread, whoever leaves: often the idle task (seen with ``-a``)."""
    if 0 < following < ps.MAX_TID:
        slot = ps.tid_find(a, following)
        if slot >= 0 and a[ps.threads_at(a, slot) + ps.S_STATE] == ps.ALIVE:
            other = ps.threads_at(a, slot)
            _was_away(a, other)
            account(a, other, now)
            _returns(a, ops, other, now)
            a[other + ps.S_LAST_CPU] = cpu


@native
def pair(arena: Any, ring: Any, batch: Any, first: Any, last: Any) -> Any:
    """Pair the events ``first`` to ``last`` of a batch; returns the first one not taken.

    Fewer than all are taken when an output is full: drain the outputs, grow the state
    (:func:`mmreplay.importers.pairing.state.grow`), and call again.
    """
    a = bare(arena)
    ops = bare(ring)
    checked = first
    for i in range(first, last):
        if i == checked:
            fit = room(a)
            if fit <= 0:
                return i
            checked = i + fit
        role = np.int64(batch.role[i])
        now = batch.time[i]
        tid = np.int64(batch.tid[i])
        pid = np.int64(batch.pid[i])
        cpu = np.int64(batch.cpu[i])
        mark = batch.mark[i]
        a[ps.C_LAST_NS] = now
        a[ps.C_STACK] = 0
        if role == ev.LOST or role == ev.THROTTLE:
            _loss(a, now, cpu, np.int64(batch.arg[i, 0]), role)
            continue
        if cpu >= 0:
            a[a[ps.B_RING_NS] + cpu + 1] = now
        if role == ev.FORK:
            on_fork(a, ops, batch.arg[i], now, mark)
            continue
        if role == ev.SCHED_SWITCH:
            _arrives(a, ops, now, np.int64(batch.arg[i, 1]), cpu)
        if role == ev.THREAD_END:
            tid = np.int64(batch.arg[i, 2])
            pid = np.int64(batch.arg[i, 0])
        if tid <= 0 or pid <= 0:  # the idle task, the kernel's maps, tasks already gone
            continue
        if tid >= ps.MAX_TID or pid >= ps.MAX_TID:
            a[ps.C_BAD_THREAD] += 1
            continue
        slot = ps.tid_find(a, tid)
        if slot >= 0 and a[ps.threads_at(a, slot) + ps.S_STATE] == ps.DEAD:
            if role == ev.SWITCH or role == ev.THREAD_END or role == ev.SCHED_SWITCH:
                a[ps.C_DEAD_EVENT] += 1
                continue
            if role == ev.WAKING:  # its last deed: who joins it waits for that
                t = ps.threads_at(a, slot)
                waking(a, t, np.int64(batch.arg[i, 0]), np.int64(batch.arg[i, 1]), now)
                continue
            slot = -1
        if slot >= 0 and a[ps.threads_at(a, slot) + ps.S_PID] != pid:
            slot = -1  # the tid is somebody else's now
        if slot < 0:
            kind = ps.START_ATTACH if mark & ev.SYNTHETIC else ps.START_FIRST_SEEN
            slot = new_thread(a, ops, tid, process_of(a, ops, pid), kind, now)
        t = ps.threads_at(a, slot)
        if role == ev.CHILD_SHOWS:
            child_shows(a, ops, t, np.int64(batch.arg[i, 0]))
            continue
        if role == ev.COMM:
            on_comm(a, ops, slot, batch.arg[i], now, mark)
            continue
        if role == ev.MAPPING:
            mapping(a, ops, t, batch.arg[i], now, mark)
            if mark & ev.SYNTHETIC:
                continue
        if a[ps.C_LOSSES]:
            back = role == ev.SWITCH and batch.arg[i, 0] == 0
            _gap_check(a, ops, t, now, cpu, np.int64(back))
        gap = now - a[t + ps.S_LAST_NS]
        if a[t + ps.S_RUN] == ps.RUNNING and role < ev.SWITCH and gap < ps.BIN_NS * ps.BINS:
            a[a[ps.B_HISTOGRAM] + ps.BINS + gap // ps.BIN_NS] += 1
        quality = _LATE if mark & ev.LATE else 0
        if a[t + ps.S_FAULT] and not a[ps.C_ENDS]:
            # Start-only recordings: the thread's next event bounds the fault.
            account(a, t, now)
            close_fault(a, ops, t, now, _UPPER, _UNKNOWN, cpu)
        if role == ev.SWITCH:
            if not batch.arg[i, 0]:
                _was_away(a, t)
            account(a, t, now)
            if batch.arg[i, 0]:
                come_back(a, ops, t, now)
                leave_cpu(a, t, now, cpu, ps.PREEMPTED if batch.arg[i, 1] else ps.BLOCKED)
            else:
                _returns(a, ops, t, now)
                inner_event(a, t)
        elif role == ev.THREAD_END:
            account(a, t, now)
            futex_leave(a, slot)
            end_of_thread(a, ops, slot, now, cpu, quality)
        elif role == ev.SCHED_SWITCH:
            _departs(a, t, now, batch.arg[i, 0], cpu)
        else:
            if a[t + ps.S_RUN] != ps.RUNNING:
                if not a[ps.C_SWITCHES]:
                    a[t + ps.S_RUN] = ps.OFF_UNKNOWN  # came back unseen: no telling when
                account(a, t, now)
                _returns(a, ops, t, now)
            else:
                account(a, t, now)
            if a[t + ps.S_STARTED] != 1 and role < ev.SWITCH:
                child_shows(a, ops, t, evidence(role, np.int64(batch.arg[i, 1])))
                if (
                    a[t + ps.S_STARTED]
                    and not a[ps.procs_at(a, a[t + ps.S_PROC]) + ps.P_GUESS_OPEN]
                ):
                    a[t + ps.S_STARTED] = 1
            if not a[t + ps.S_STARTED] and role < ev.SWITCH:
                returns = np.int64(role == ev.EXIT and batch.arg[i, 0] == 0)
                start_thread(a, ops, t, now, cpu, quality, returns)
                if returns:
                    a[t + ps.S_LAST_NS] = now
                    continue
            a[ps.C_STACK] = np.int64(batch.stack[i])
            if ev.FAULT_USER <= role <= ev.FAULT_MAJOR:
                _on_fault(
                    a,
                    ops,
                    t,
                    role,
                    now,
                    batch.arg[i, 0],
                    np.int64(batch.arg[i, 1]),
                    np.int64(batch.ip[i]),
                    np.int64(batch.weight[i]),
                    np.int64(mark & ev.USER_MODE),
                    quality,
                    cpu,
                )
                if role == ev.FAULT_USER:
                    a[ps.procs_at(a, a[t + ps.S_PROC]) + ps.P_EXECUTING] = 0
            elif role == ev.ENTER or role == ev.EXIT:
                if a[t + ps.S_FAULT]:
                    a[ps.C_FAILED] += 1
                    close_fault(a, ops, t, now, _END_UNSEEN, _FAILED, cpu)
                if batch.call[i] >= sc.C_FUTEX:
                    call = np.int64(batch.call[i])
                    _on_futex(a, ops, slot, role, call, batch.arg, i, now)
                elif role == ev.ENTER:
                    if a[t + ps.S_FUTEX]:
                        futex_leave(a, slot)
                    a[ps.procs_at(a, a[t + ps.S_PROC]) + ps.P_EXECUTING] = 0
                    _on_enter(
                        a,
                        ops,
                        t,
                        np.int64(batch.call[i]),
                        now,
                        batch.arg,
                        i,
                        np.int64(batch.ip[i]),
                        np.int64(batch.weight[i]),
                        quality,
                        cpu,
                    )
                else:
                    _on_exit(
                        a,
                        ops,
                        slot,
                        np.int64(batch.call[i]),
                        now,
                        np.int64(batch.arg[i, 0]),
                        np.int64(batch.weight[i]),
                        quality,
                        cpu,
                    )
                    if batch.call[i] == sc.C_EXECVE:
                        a[ps.procs_at(a, a[t + ps.S_PROC]) + ps.P_EXECUTING] = 0
            else:
                if role == ev.CONTENTION_BEGIN:
                    contention_begin(a, ops, slot, batch.arg[i, 0], batch.arg[i, 1], now)
                elif role == ev.CONTENTION_END:
                    contention_end(a, ops, slot, batch.arg[i, 0], now)
                elif ev.MMAP_LOCK_START <= role <= ev.MMAP_LOCK_RELEASED:
                    mmap_lock(a, ops, slot, role, batch.arg[i], now)
                elif role == ev.WAKING:
                    waking(a, t, np.int64(batch.arg[i, 0]), np.int64(batch.arg[i, 1]), now)
                elif role == ev.NEW_TASK:
                    on_new_task(a, t, np.int64(batch.arg[i, 0]), np.int64(batch.arg[i, 1]))
                inner_event(a, t)
        a[t + ps.S_LAST_NS] = now
        if cpu >= 0:
            a[t + ps.S_LAST_CPU] = cpu
    return last


@native
def finish(arena: Any, ring: Any, first: Any) -> Any:
    """Close what is open and give out the threads from ``first`` on; returns how far it got."""
    a = bare(arena)
    ops = bare(ring)
    now = a[ps.C_LAST_NS]
    for slot in range(first, a[ps.C_THREADS]):
        if room(a) <= 0:
            return slot
        t = ps.threads_at(a, slot)
        if a[t + ps.S_STATE] == ps.ALIVE:
            account(a, t, now if a[t + ps.S_RUN] != ps.RUNNING else a[t + ps.S_LAST_NS])
            if a[t + ps.S_FAULT]:
                close_fault(a, ops, t, now, _END_UNSEEN, _UNKNOWN, _NO_CPU)
            if a[t + ps.S_CALL]:
                close_call(a, ops, t, now, _END_UNSEEN, _NO_CPU)
            come_back(a, ops, t, _NO_CPU)
        emit_thread(a, ops, slot)
    return a[ps.C_THREADS]
