"""Compiled helpers of pairing: threads, processes, address spaces, accounting, rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmreplay.importers import pair_state as ps
from mmreplay.importers.binary import table_find, table_put
from mmreplay.importers.pair_state import (
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
from mmreplay.jit import njit
from mmreplay.schema import DurationKind, Quality

_MEASURED = int(DurationKind.MEASURED)
_END_UNSEEN = int(DurationKind.END_UNSEEN)
_UPPER = int(DurationKind.UPPER_BOUND)
_MIGRATED = int(Quality.MIGRATED)
_CONTENDED = int(Quality.CONTENDED)
_NESTED = int(Quality.NESTED_IN_SYSCALL)
_AFTER_GAP = int(Quality.AFTER_GAP)


@njit
def new_space(st: Any) -> int:
    """A fresh address space with one user."""
    space = st.count[C_SPACES]
    st.count[C_SPACES] += 1
    st.spaces[space, A_USERS] = 1
    st.spaces[space, A_ALIAS] = -1
    return space


@njit
def process_of(st: Any, pid: int) -> int:
    """Slot of the process, made with an address space of its own where it is new."""
    found = table_find(st.pid_keys, st.pid_values, np.uint64(pid))
    if found >= 0:
        return found
    return new_process(st, pid, new_space(st))


@njit
def new_process(st: Any, pid: int, space: int) -> int:
    """A fresh process (the slot of an earlier one of that pid is reused)."""
    proc = table_find(st.pid_keys, st.pid_values, np.uint64(pid))
    if proc < 0:
        proc = st.count[C_PROCS]
        st.count[C_PROCS] += 1
        table_put(st.pid_keys, st.pid_values, np.uint64(pid), proc)
    st.procs[proc, :] = 0
    st.procs[proc, P_PID] = pid
    st.procs[proc, P_SPACE] = space
    st.procs[proc, ps.P_BEFORE_EXEC] = space
    return proc


@njit
def emit_thread(st: Any, slot: int) -> None:
    """The thread's row of the table of threads."""
    row = st.count[C_THREAD_ROWS]
    st.count[C_THREAD_ROWS] += 1
    t = st.threads[slot]
    out = st.thread_rows[row]
    out[ps.H_TID] = t[S_TID]
    out[ps.H_PID] = t[ps.S_PID]
    out[ps.H_PARENT] = t[ps.S_PARENT]
    out[ps.H_SPACE] = t[ps.S_SPACE]
    out[ps.H_START] = t[ps.S_START_NS]
    out[ps.H_END] = t[ps.S_END_NS]
    out[ps.H_FIRST] = t[ps.S_FIRST_NS]
    out[ps.H_LAST] = t[ps.S_LAST_NS]
    out[ps.H_KIND] = t[ps.S_START_KIND]
    out[H_COMM0] = t[ps.S_COMM0]
    out[ps.H_COMM1] = t[ps.S_COMM1]
    out[ps.H_TAIL_CPU] = t[S_PRE_CPU]
    out[ps.H_TAIL_BLOCKED] = t[S_PRE_BLOCKED]
    out[ps.H_TAIL_EVENTS] = t[S_PRE_EVENTS]
    out[ps.H_TAIL_KNOWN] = t[S_PRE_KNOWN]


@njit
def new_thread(st: Any, tid: int, proc: int, kind: int, now: int) -> int:
    """A fresh thread; the row of an earlier thread of that tid is given out first."""
    slot = table_find(st.tid_keys, st.tid_values, np.uint64(tid))
    if slot < 0:
        slot = st.count[C_THREADS]
        st.count[C_THREADS] += 1
        table_put(st.tid_keys, st.tid_values, np.uint64(tid), slot)
    else:
        emit_thread(st, slot)
    t = st.threads[slot]
    t[:] = 0
    t[S_TID] = tid
    t[ps.S_PID] = st.procs[proc, P_PID]
    t[S_PROC] = proc
    t[ps.S_STATE] = ps.ALIVE
    t[ps.S_STARTED] = 1
    t[ps.S_LAST_NS] = now
    t[S_LAST_CPU] = -1
    t[S_ACCOUNTED_NS] = now
    t[ps.S_PARENT] = -1
    t[ps.S_SPACE] = st.procs[proc, P_SPACE]
    t[ps.S_START_NS] = -1
    t[ps.S_END_NS] = -1
    t[ps.S_FIRST_NS] = now
    t[ps.S_START_KIND] = kind
    st.procs[proc, P_LIVE] += 1
    return slot


@njit
def account(t: Any, now: int) -> None:
    """Book the time since the last booking to what the thread was doing."""
    spent = now - t[S_ACCOUNTED_NS]
    t[S_ACCOUNTED_NS] = now
    run = t[S_RUN]
    if t[S_FAULT] == 0 and t[S_CALL] == 0:
        if run == ps.RUNNING:
            t[S_PRE_CPU] += spent
        elif run == ps.BLOCKED:
            t[S_PRE_BLOCKED] += spent
        elif run == ps.PREEMPTED:
            t[S_PRE_PREEMPTED] += spent
        else:
            t[S_PRE_CPU] += spent
            t[S_PRE_KNOWN] = 0
        return
    if run == ps.BLOCKED:
        if t[S_FAULT]:
            t[S_FAULT_BLOCKED] += spent
        if t[S_CALL]:
            t[S_CALL_BLOCKED] += spent
    elif run == ps.PREEMPTED:
        if t[S_FAULT]:
            t[S_FAULT_PREEMPTED] += spent
        if t[S_CALL]:
            t[S_CALL_PREEMPTED] += spent


@njit
def inner_event(t: Any) -> None:
    """Count one event inside the open operations, or before the next one."""
    if t[S_FAULT]:
        t[S_FAULT_EVENTS] += 1
    if t[S_CALL]:
        t[S_CALL_EVENTS] += 1
    elif not t[S_FAULT]:
        t[S_PRE_EVENTS] += 1


@njit
def forget_before(t: Any, known: int) -> None:
    """Start the time before the next operation anew."""
    t[S_PRE_CPU] = 0
    t[S_PRE_BLOCKED] = 0
    t[S_PRE_PREEMPTED] = 0
    t[S_PRE_EVENTS] = 0
    t[S_PRE_KNOWN] = known


@njit
def leave_cpu(t: Any, now: int, cpu: int, run: int) -> None:
    """The thread goes off its CPU."""
    t[S_RUN] = run
    t[S_OFF_NS] = now
    t[S_OFF_CPU] = cpu


@njit
def come_back(st: Any, t: Any, now: int) -> None:
    """The thread is seen on a CPU again (``now`` -1: never seen again)."""
    run = t[S_RUN]
    if run == ps.RUNNING:
        return
    t[S_RUN] = ps.RUNNING
    if t[S_OFF_NS] < 0:
        return
    row = st.count[C_SCHEDULE]
    st.count[C_SCHEDULE] += 1
    out = st.schedule[row]
    out[ps.E_TID] = t[S_TID]
    out[ps.E_OFF] = t[S_OFF_NS]
    out[ps.E_ON] = -1 if run == ps.OFF_UNKNOWN else now
    out[ps.E_CPU] = t[S_OFF_CPU]
    out[ps.E_REASON] = 1 if run == ps.PREEMPTED else 0


@njit
def closing_row(st: Any, row: int) -> Any:
    """Where to write the end of operation ``row``: in the window, or as a patch to it."""
    local = row - st.count[C_BASE]
    if local >= 0:
        return st.ops[local]
    patch = st.count[C_PATCHES]
    st.count[C_PATCHES] += 1
    st.patch_rows[patch] = row
    st.patches[patch, :] = 0
    return st.patches[patch]


@njit
def close_call(st: Any, t: Any, now: int, how: int, cpu: int) -> Any:
    """Close the open system call with duration kind ``how``; returns its row."""
    out = closing_row(st, t[S_CALL_ROW])
    # A patch replaces the closing columns as a whole: repeat what the begin knew.
    out[ps.O_KIND] = CALL_KIND[t[S_CALL] - 1]
    out[ps.O_ADDRESS] = t[ps.S_CALL_ADDRESS]
    out[ps.O_LENGTH] = t[ps.S_CALL_LENGTH]
    out[O_CONTENTION] = t[S_CALL_CONTENTION]
    out[O_BLOCKED] = t[S_CALL_BLOCKED]
    out[O_PREEMPTED] = t[S_CALL_PREEMPTED]
    out[O_EVENTS] = t[S_CALL_EVENTS]
    out[O_DURATION_KIND] = how
    out[O_KNOWN] |= K_INSIDE
    if how == _MEASURED:
        out[O_DURATION] = now - t[S_CALL_NS]
        out[O_KNOWN] |= K_DURATION
    else:
        st.count[C_END_UNSEEN] += 1
    if cpu >= 0 and t[S_CALL_CPU] >= 0 and cpu != t[S_CALL_CPU]:
        out[O_QUALITY] |= _MIGRATED
    if t[S_CALL_CONTENTION] > 0:
        out[O_QUALITY] |= _CONTENDED
    forget_before(t, 1 if how == _MEASURED else 0)
    if how != _MEASURED:
        t[S_PRE_CPU] = now - t[S_CALL_NS]
    t[S_CALL] = 0
    return out


@njit
def close_fault(st: Any, t: Any, now: int, how: int, outcome: int, cpu: int) -> None:
    """Close the open fault with duration kind ``how`` and fault class ``outcome``."""
    out = closing_row(st, t[S_FAULT_ROW])
    out[ps.O_KIND] = t[S_FAULT]
    out[ps.O_ADDRESS] = t[ps.S_FAULT_ADDRESS]
    out[ps.O_CLASS] = outcome
    out[O_CONTENTION] = t[S_FAULT_CONTENTION]
    out[O_BLOCKED] = t[S_FAULT_BLOCKED]
    out[O_PREEMPTED] = t[S_FAULT_PREEMPTED]
    out[O_EVENTS] = t[S_FAULT_EVENTS]
    out[O_DURATION_KIND] = how
    out[O_KNOWN] |= K_INSIDE
    if how != _END_UNSEEN:
        out[O_DURATION] = now - t[S_FAULT_NS]
        out[O_KNOWN] |= K_DURATION
    else:
        st.count[C_END_UNSEEN] += 1
    if cpu >= 0 and t[S_FAULT_CPU] >= 0 and cpu != t[S_FAULT_CPU]:
        out[O_QUALITY] |= _MIGRATED
    if t[S_FAULT_CONTENTION] > 0:
        out[O_QUALITY] |= _CONTENDED
    t[S_FAULT] = 0
    if not t[S_CALL]:
        forget_before(t, 1 if how == _MEASURED else 0)
        if how == _END_UNSEEN:
            t[S_PRE_CPU] = now - t[S_FAULT_NS]


@njit
def begin_row(st: Any, t: Any, now: int, kind: int, cpu: int, weight: int, quality: int) -> int:
    """A new operation's row with what is known at its begin; returns its number."""
    row = st.count[C_OPS]
    st.count[C_OPS] += 1
    out = st.ops[row - st.count[C_BASE]]
    out[:] = 0
    out[O_BEGIN] = now
    out[ps.O_KIND] = kind
    out[ps.O_PID] = t[ps.S_PID]
    out[ps.O_TID] = t[S_TID]
    out[ps.O_SPACE] = st.procs[t[S_PROC], P_SPACE]
    out[ps.O_CPU] = cpu if cpu >= 0 else t[S_LAST_CPU]
    out[ps.O_WEIGHT] = weight
    out[ps.O_PRE_EVENTS] = -1  # nothing before it that costs
    if t[S_CALL]:
        quality |= _NESTED
        out[O_KNOWN] = K_THINK  # it follows its system call's begin at once
    else:
        out[ps.O_THINK] = t[S_PRE_CPU]
        out[ps.O_PRE_BLOCKED] = t[S_PRE_BLOCKED]
        out[ps.O_PRE_PREEMPTED] = t[S_PRE_PREEMPTED]
        out[ps.O_PRE_EVENTS] = t[S_PRE_EVENTS]
        if t[S_PRE_KNOWN]:
            out[O_KNOWN] = K_THINK
        forget_before(t, 1)
    if t[ps.S_AFTER_GAP]:
        quality |= _AFTER_GAP
        t[ps.S_AFTER_GAP] = 0
    out[O_QUALITY] = quality
    return row
