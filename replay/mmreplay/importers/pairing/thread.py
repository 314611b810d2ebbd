"""Compiled helpers of pairing: threads, processes, address spaces, accounting, rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmreplay.importers.pairing import state as ps
from mmreplay.importers.pairing.queue import futex_leave
from mmreplay.importers.pairing.sleepers import call_ends, falls_asleep, thought, wakes_up
from mmreplay.importers.pairing.state import (
    A_ALIAS,
    A_USERS,
    C_BASE,
    C_END_UNSEEN,
    C_OPS,
    C_PATCHES,
    C_PROCS,
    C_SCHEDULE,
    C_SPACES,
    C_THREAD_ROWS,
    C_THREADS,
    H_COMM0,
    K_DURATION,
    K_INSIDE,
    K_THINK,
    O_BEGIN,
    O_BLOCKED,
    O_CONTENTION,
    O_DURATION,
    O_DURATION_KIND,
    O_EVENTS,
    O_KNOWN,
    O_PREEMPTED,
    O_QUALITY,
    P_LIVE,
    P_PID,
    P_SPACE,
    S_ACCOUNTED_NS,
    S_CALL,
    S_CALL_BLOCKED,
    S_CALL_CONTENTION,
    S_CALL_CPU,
    S_CALL_EVENTS,
    S_CALL_NS,
    S_CALL_PREEMPTED,
    S_CALL_ROW,
    S_FAULT,
    S_FAULT_BLOCKED,
    S_FAULT_CONTENTION,
    S_FAULT_CPU,
    S_FAULT_EVENTS,
    S_FAULT_NS,
    S_FAULT_PREEMPTED,
    S_FAULT_ROW,
    S_LAST_CPU,
    S_OFF_CPU,
    S_OFF_NS,
    S_PRE_BLOCKED,
    S_PRE_CPU,
    S_PRE_EVENTS,
    S_PRE_KNOWN,
    S_PRE_PREEMPTED,
    S_PROC,
    S_RUN,
    S_TID,
)
from mmreplay.importers.syscalls import CALL_KIND
from mmreplay.jit import borrowing_helper
from mmreplay.schema import DurationKind, FaultClass, OpKind, Quality

_MEASURED = np.int64(int(DurationKind.MEASURED))
_FAULT_USER = np.int64(int(OpKind.FAULT_USER))
_FAULT_KERNEL = np.int64(int(OpKind.FAULT_KERNEL))
_FAILED = np.int64(int(FaultClass.FAILED))
_END_UNSEEN = np.int64(int(DurationKind.END_UNSEEN))
_MIGRATED = np.int64(int(Quality.MIGRATED))
_CONTENDED = np.int64(int(Quality.CONTENDED))
_NESTED = np.int64(int(Quality.NESTED_IN_SYSCALL))
_AFTER_GAP = np.int64(int(Quality.AFTER_GAP))
_WAKES = np.int64(int(Quality.WAKES))


@borrowing_helper
def new_space(a: Any, ops: Any) -> Any:
    """A fresh address space with one user."""
    space = a[C_SPACES]
    a[C_SPACES] += 1
    a[ps.spaces_at(a, space) + A_USERS] = 1
    a[ps.spaces_at(a, space) + A_ALIAS] = -1
    return space


@borrowing_helper
def process_of(a: Any, ops: Any, pid: Any) -> Any:
    """Slot of the process, made with an address space of its own where it is new."""
    found = ps.pid_find(a, pid)
    if found >= 0:
        return found
    return new_process(a, ops, pid, new_space(a, ops))


@borrowing_helper
def new_process(a: Any, ops: Any, pid: Any, space: Any) -> Any:
    """A fresh process (the slot of an earlier one of that pid is reused)."""
    proc = ps.pid_find(a, pid)
    if proc < 0:
        proc = a[C_PROCS]
        a[C_PROCS] += 1
        ps.pid_put(a, pid, proc)
    at = ps.procs_at(a, proc)
    for k in range(ps.P_SIZE):
        a[at + k] = 0
    a[ps.procs_at(a, proc) + P_PID] = pid
    a[ps.procs_at(a, proc) + P_SPACE] = space
    a[ps.procs_at(a, proc) + ps.P_BEFORE_EXEC] = space
    return proc


@borrowing_helper
def emit_thread(a: Any, ops: Any, slot: Any) -> None:
    """The thread's row of the table of threads."""
    t = ps.threads_at(a, slot)
    if a[t + ps.S_START_KIND] == ps.START_FORGOTTEN:
        return
    row = a[C_THREAD_ROWS]
    a[C_THREAD_ROWS] += 1
    out = a[ps.B_THREAD_ROWS] + row * ps.H_SIZE
    a[out + ps.H_TID] = a[t + S_TID]
    a[out + ps.H_PID] = a[t + ps.S_PID]
    a[out + ps.H_PARENT] = a[t + ps.S_PARENT]
    a[out + ps.H_SPACE] = a[t + ps.S_SPACE]
    a[out + ps.H_START] = a[t + ps.S_START_NS]
    a[out + ps.H_END] = a[t + ps.S_END_NS]
    a[out + ps.H_FIRST] = a[t + ps.S_FIRST_NS]
    a[out + ps.H_LAST] = a[t + ps.S_LAST_NS]
    a[out + ps.H_KIND] = a[t + ps.S_START_KIND]
    a[out + H_COMM0] = a[t + ps.S_COMM0]
    a[out + ps.H_COMM1] = a[t + ps.S_COMM1]
    a[out + ps.H_TAIL_CPU] = a[t + S_PRE_CPU]
    a[out + ps.H_TAIL_BLOCKED] = a[t + S_PRE_BLOCKED]
    a[out + ps.H_TAIL_EVENTS] = a[t + S_PRE_EVENTS]
    a[out + ps.H_TAIL_KNOWN] = a[t + S_PRE_KNOWN]


@borrowing_helper
def new_thread(a: Any, ops: Any, tid: Any, proc: Any, kind: Any, now: Any) -> Any:
    """A fresh thread; the row of an earlier thread of that tid is given out fir"""
    slot = ps.tid_find(a, tid)
    if slot < 0:
        slot = a[C_THREADS]
        a[C_THREADS] += 1
        ps.tid_put(a, tid, slot)
    else:
        futex_leave(a, slot)
        emit_thread(a, ops, slot)
    t = ps.threads_at(a, slot)
    for k in range(ps.S_SIZE):
        a[t + k] = 0
    a[t + S_TID] = tid
    a[t + ps.S_PID] = a[ps.procs_at(a, proc) + P_PID]
    a[t + S_PROC] = proc
    a[t + ps.S_STATE] = ps.ALIVE
    a[t + ps.S_STARTED] = 1
    a[t + ps.S_LAST_NS] = now
    a[t + S_LAST_CPU] = -1
    a[t + S_ACCOUNTED_NS] = now
    a[t + ps.S_PARENT] = -1
    a[t + ps.S_SPACE] = a[ps.procs_at(a, proc) + P_SPACE]
    a[t + ps.S_START_NS] = -1
    a[t + ps.S_END_NS] = -1
    a[t + ps.S_FIRST_NS] = now
    a[t + ps.S_START_KIND] = kind
    a[ps.procs_at(a, proc) + P_LIVE] += 1
    return slot


@borrowing_helper
def account(a: Any, t: Any, now: Any) -> None:
    """Book the time since the last booking to what the thread was doing."""
    spent = now - a[t + S_ACCOUNTED_NS]
    a[t + S_ACCOUNTED_NS] = now
    run = a[t + S_RUN]
    if a[t + S_FAULT] == 0 and a[t + S_CALL] == 0:
        if run == ps.RUNNING:
            a[t + S_PRE_CPU] += spent
        elif run == ps.BLOCKED:
            a[t + S_PRE_BLOCKED] += spent
        elif run == ps.PREEMPTED:
            a[t + S_PRE_PREEMPTED] += spent
        else:
            a[t + S_PRE_CPU] += spent
            a[t + S_PRE_KNOWN] = 0
        return
    if run == ps.BLOCKED:
        if a[t + S_FAULT]:
            a[t + S_FAULT_BLOCKED] += spent
            if spent > 0:
                a[t + ps.S_FAULT_SLEPT] = now - a[t + S_FAULT_NS]
        if a[t + S_CALL]:
            a[t + S_CALL_BLOCKED] += spent
            if spent > 0:
                a[t + ps.S_CALL_SLEPT] = now - a[t + S_CALL_NS]
    elif run == ps.PREEMPTED:
        if a[t + S_FAULT]:
            a[t + S_FAULT_PREEMPTED] += spent
        if a[t + S_CALL]:
            a[t + S_CALL_PREEMPTED] += spent
    elif run != ps.RUNNING:
        a[t + S_PRE_KNOWN] = -1


@borrowing_helper
def inner_event(a: Any, t: Any) -> None:
    """Count one event inside the open operations, or before the next one."""
    if a[t + S_FAULT]:
        a[t + S_FAULT_EVENTS] += 1
    if a[t + S_CALL]:
        a[t + S_CALL_EVENTS] += 1
    elif not a[t + S_FAULT]:
        a[t + S_PRE_EVENTS] += 1


@borrowing_helper
def forget_before(a: Any, t: Any, known: Any) -> None:
    """Start the time before the next operation anew."""
    a[t + S_PRE_CPU] = 0
    a[t + S_PRE_BLOCKED] = 0
    a[t + S_PRE_PREEMPTED] = 0
    a[t + S_PRE_EVENTS] = 0
    a[t + S_PRE_KNOWN] = known


@borrowing_helper
def leave_cpu(a: Any, t: Any, now: Any, cpu: Any, run: Any) -> None:
    """The thread goes off its CPU."""
    a[t + S_RUN] = run
    a[t + S_OFF_NS] = now
    a[t + S_OFF_CPU] = cpu
    a[t + ps.S_WAKE_NS] = 0
    if run == ps.BLOCKED:
        falls_asleep(a, t, now)


@borrowing_helper
def put_wakeup(a: Any, t: Any, now: Any) -> None:
    """The row that says who ended the blocked time of a thread that is back on a CPU."""
    out = a[ps.B_WAKEUPS] + a[ps.C_WAKEUPS] * ps.W_SIZE
    a[ps.C_WAKEUPS] += 1
    a[out + ps.W_TID] = a[t + S_TID]
    a[out + ps.W_OFF] = a[t + S_OFF_NS]
    a[out + ps.W_WAKE] = a[t + ps.S_WAKE_NS]
    a[out + ps.W_ON] = now
    a[out + ps.W_ROW] = a[t + ps.S_ROW] - 1
    a[out + ps.W_CPU] = a[t + S_PRE_CPU]
    a[out + ps.W_EVENTS] = a[t + S_PRE_EVENTS]
    a[out + ps.W_BLOCKED] = max(0, a[t + S_PRE_BLOCKED] - (now - a[t + S_OFF_NS]))
    a[out + ps.W_WAKER] = a[t + ps.S_WAKER]
    a[out + ps.W_WAKER_ROW] = a[t + ps.S_WAKER_ROW] - 1
    a[out + ps.W_WAKER_CPU] = a[t + ps.S_WAKER_CPU]
    a[out + ps.W_WAKER_EVENTS] = a[t + ps.S_WAKER_EVENTS]
    a[out + ps.W_WAKER_BLOCKED] = a[t + ps.S_WAKER_BLOCKED]
    a[t + ps.S_WAKE_NS] = 0


@borrowing_helper
def come_back(a: Any, ops: Any, t: Any, now: Any) -> None:
    """The thread is seen on a CPU again (``now`` -1: never seen again)."""
    run = a[t + S_RUN]
    if run == ps.RUNNING:
        return
    a[t + S_RUN] = ps.RUNNING
    if a[t + S_OFF_NS] < 0:
        return
    if run == ps.BLOCKED and now >= 0:
        wakes_up(a, t, now)
    row = a[C_SCHEDULE]
    a[C_SCHEDULE] += 1
    out = a[ps.B_SCHEDULE] + row * ps.E_SIZE
    a[out + ps.E_TID] = a[t + S_TID]
    a[out + ps.E_OFF] = a[t + S_OFF_NS]
    a[out + ps.E_ON] = -1 if run == ps.OFF_UNKNOWN else now
    a[out + ps.E_CPU] = a[t + S_OFF_CPU]
    a[out + ps.E_REASON] = 1 if run == ps.PREEMPTED else 0
    if a[t + ps.S_FUTEX] == ps.FUTEX_WAITS and run == ps.BLOCKED and now >= 0:
        a[t + ps.S_NAP_OFF] = a[t + S_OFF_NS]
        a[t + ps.S_NAP_ON] = now
        a[t + ps.S_NAP_ROW] = a[t + ps.S_ROW]
        a[t + ps.S_NAP_CPU] = a[t + S_PRE_CPU]
        a[t + ps.S_NAP_EVENTS] = a[t + S_PRE_EVENTS]
        a[t + ps.S_NAP_BLOCKED] = max(0, a[t + S_PRE_BLOCKED] - (now - a[t + S_OFF_NS]))
    if a[t + ps.S_WAKE_NS] > 0 and run == ps.BLOCKED and now >= 0:
        put_wakeup(a, t, now)


@borrowing_helper
def closing_row(a: Any, ops: Any, row: Any) -> Any:
    """Where to write the end of operation ``row``: in the ring, or as a patch to it."""
    if row >= a[C_BASE]:
        return ps.place(a, row)
    patch = a[C_PATCHES]
    a[C_PATCHES] += 1
    a[a[ps.B_PATCH_ROWS] + patch] = row
    local = (a[ps.C_RING] + patch) * ps.O_SIZE
    for k in range(ps.O_SIZE):
        ops[local + k] = 0
    return local


@borrowing_helper
def close_call(a: Any, ops: Any, t: Any, now: Any, how: Any, cpu: Any) -> Any:
    """Close the open system call with duration kind ``how``; returns its row."""
    out = closing_row(a, ops, a[t + S_CALL_ROW])
    # A patch replaces the closing columns as a whole: repeat what the begin knew.
    ops[out + ps.O_KIND] = CALL_KIND[a[t + S_CALL] - 1]
    ops[out + ps.O_ADDRESS] = a[t + ps.S_CALL_ADDRESS]
    ops[out + ps.O_LENGTH] = a[t + ps.S_CALL_LENGTH]
    ops[out + O_CONTENTION] = a[t + S_CALL_CONTENTION]
    ops[out + O_BLOCKED] = a[t + S_CALL_BLOCKED]
    ops[out + ps.O_SLEPT] = a[t + ps.S_CALL_SLEPT]
    ops[out + O_PREEMPTED] = a[t + S_CALL_PREEMPTED]
    ops[out + O_EVENTS] = a[t + S_CALL_EVENTS]
    ops[out + ps.O_NESTED] = a[t + ps.S_CALL_NESTED]
    ops[out + O_DURATION_KIND] = how
    ops[out + O_KNOWN] |= K_INSIDE
    if how == _MEASURED:
        ops[out + O_DURATION] = now - a[t + S_CALL_NS]
        ops[out + O_KNOWN] |= K_DURATION
    else:
        a[C_END_UNSEEN] += 1
    if cpu >= 0 and a[t + S_CALL_CPU] >= 0 and cpu != a[t + S_CALL_CPU]:
        ops[out + O_QUALITY] |= _MIGRATED
    if a[t + S_CALL_CONTENTION] > 0:
        ops[out + O_QUALITY] |= _CONTENDED
    forget_before(a, t, 1 if how == _MEASURED else 0)
    if how != _MEASURED:
        a[t + S_PRE_CPU] = now - a[t + S_CALL_NS]
    a[t + S_CALL] = 0
    call_ends(a, t, now)
    return out


@borrowing_helper
def close_fault(a: Any, ops: Any, t: Any, now: Any, how: Any, outcome: Any, cpu: Any) -> None:
    """Close the open fault with duration kind ``how`` and fault class ``outcome``."""
    out = closing_row(a, ops, a[t + S_FAULT_ROW])
    ops[out + ps.O_KIND] = a[t + S_FAULT]
    ops[out + ps.O_ADDRESS] = a[t + ps.S_FAULT_ADDRESS]
    ops[out + ps.O_CLASS] = outcome
    ops[out + O_CONTENTION] = a[t + S_FAULT_CONTENTION]
    ops[out + O_BLOCKED] = a[t + S_FAULT_BLOCKED]
    ops[out + ps.O_SLEPT] = a[t + ps.S_FAULT_SLEPT]
    ops[out + O_PREEMPTED] = a[t + S_FAULT_PREEMPTED]
    ops[out + O_EVENTS] = a[t + S_FAULT_EVENTS]
    ops[out + O_DURATION_KIND] = how
    ops[out + O_KNOWN] |= K_INSIDE
    if how != _END_UNSEEN:
        ops[out + O_DURATION] = now - a[t + S_FAULT_NS]
        ops[out + O_KNOWN] |= K_DURATION
        if how == _MEASURED:
            a[t + ps.S_CALL_NESTED] += now - a[t + S_FAULT_NS]
    else:
        a[C_END_UNSEEN] += 1
    if cpu >= 0 and a[t + S_FAULT_CPU] >= 0 and cpu != a[t + S_FAULT_CPU]:
        ops[out + O_QUALITY] |= _MIGRATED
    if a[t + S_FAULT_CONTENTION] > 0:
        ops[out + O_QUALITY] |= _CONTENDED
    a[t + S_FAULT] = 0
    if not a[t + S_CALL]:
        spent = now - a[t + S_FAULT_NS]
        # A failed fault ends in a signal: what follows is the program's own time.
        own = how == _END_UNSEEN and outcome == _FAILED and a[t + S_PRE_KNOWN] >= 0
        forget_before(a, t, 1 if how == _MEASURED or own else 0)
        if how == _MEASURED:
            a[t + ps.S_FAULT_END] = now
        if own:
            a[t + S_PRE_BLOCKED] = a[t + S_FAULT_BLOCKED]
            a[t + S_PRE_PREEMPTED] = a[t + S_FAULT_PREEMPTED]
            a[t + S_PRE_EVENTS] = a[t + S_FAULT_EVENTS]
            spent -= a[t + S_FAULT_BLOCKED] + a[t + S_FAULT_PREEMPTED]
            ops[out + O_BLOCKED] = 0
            ops[out + ps.O_SLEPT] = 0
            ops[out + O_PREEMPTED] = 0
            ops[out + O_EVENTS] = 0
        if how == _END_UNSEEN:
            a[t + S_PRE_CPU] = spent


@borrowing_helper
def begin_row(
    a: Any, ops: Any, t: Any, now: Any, kind: Any, cpu: Any, weight: Any, quality: Any
) -> Any:
    """A new operation's row with what is known at its begin; returns its number."""
    row = a[C_OPS]
    a[C_OPS] += 1
    a[t + ps.S_ROW] = row + 1
    out = ps.place(a, row)
    # Columns that a bit of O_KNOWN guards may hold what the ring held before.
    a[ps.C_SEQ] = a[ps.C_SEQ] + 1 if now == a[ps.C_BEGIN_NS] else 0
    a[ps.C_BEGIN_NS] = now
    ops[out + O_BEGIN] = now
    ops[out + ps.O_SEQ] = a[ps.C_SEQ]
    ops[out + O_DURATION] = 0
    ops[out + O_DURATION_KIND] = 0
    ops[out + ps.O_THINK] = 0
    ops[out + ps.O_PRE_BLOCKED] = 0
    ops[out + ps.O_PRE_PREEMPTED] = 0
    ops[out + O_CONTENTION] = 0
    ops[out + O_BLOCKED] = 0
    ops[out + ps.O_SLEPT] = 0
    ops[out + O_PREEMPTED] = 0
    ops[out + O_EVENTS] = 0
    ops[out + ps.O_NESTED] = 0
    ops[out + ps.O_ADDRESS] = 0
    ops[out + ps.O_CLASS] = 0
    ops[out + ps.O_IP] = 0
    ops[out + O_KNOWN] = 0
    ops[out + ps.O_STACK] = a[ps.C_STACK]
    if kind != _FAULT_USER and kind != _FAULT_KERNEL:
        ops[out + ps.O_LENGTH] = 0
        ops[out + ps.O_FLAGS] = 0
    ops[out + ps.O_KIND] = kind
    ops[out + ps.O_PID] = a[t + ps.S_PID]
    ops[out + ps.O_TID] = a[t + S_TID]
    ops[out + ps.O_SPACE] = a[ps.procs_at(a, a[t + S_PROC]) + P_SPACE]
    ops[out + ps.O_CPU] = cpu if cpu >= 0 else a[t + S_LAST_CPU]
    ops[out + ps.O_WEIGHT] = weight
    ops[out + ps.O_PRE_EVENTS] = -1  # nothing before it that costs
    if a[t + S_CALL]:
        quality |= _NESTED
        ops[out + O_KNOWN] = K_THINK  # it follows its system call's begin at once
    else:
        ops[out + ps.O_THINK] = a[t + S_PRE_CPU]
        ops[out + ps.O_PRE_BLOCKED] = a[t + S_PRE_BLOCKED]
        ops[out + ps.O_PRE_PREEMPTED] = a[t + S_PRE_PREEMPTED]
        ops[out + ps.O_PRE_EVENTS] = a[t + S_PRE_EVENTS]
        if a[t + S_PRE_KNOWN]:
            ops[out + O_KNOWN] = K_THINK
        if thought(a, t, now):
            quality |= _WAKES
        forget_before(a, t, 1)
    if a[t + ps.S_AFTER_GAP]:
        quality |= _AFTER_GAP
        a[t + ps.S_AFTER_GAP] = 0
    ops[out + O_QUALITY] = quality
    return row
