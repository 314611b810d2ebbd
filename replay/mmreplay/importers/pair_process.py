"""Compiled pairing of process life: fork, clone, exec, exit, orphan returns."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmreplay.importers import events as ev
from mmreplay.importers import pair_state as ps
from mmreplay.importers import syscalls as sc
from mmreplay.importers.binary import table_find
from mmreplay.importers.pair_thread import (
    account,
    begin_row,
    close_call,
    close_fault,
    come_back,
    inner_event,
    new_process,
    new_space,
    new_thread,
    process_of,
)
from mmreplay.jit import njit
from mmreplay.schema import DurationKind, FaultClass, OpKind, Quality

_MEASURED = int(DurationKind.MEASURED)
_BEGIN_UNSEEN = int(DurationKind.BEGIN_UNSEEN)
_END_UNSEEN = int(DurationKind.END_UNSEEN)
_UNKNOWN = int(FaultClass.UNKNOWN)
_CLONE = int(OpKind.CLONE)
_FORK = int(OpKind.FORK)
_VFORK = int(OpKind.VFORK)
_THREAD_START = int(OpKind.THREAD_START)
_THREAD_EXIT = int(OpKind.THREAD_EXIT)
_PROCESS_EXIT = int(OpKind.PROCESS_EXIT)
_ORPHAN = int(Quality.ORPHAN_EXIT)
_CHILD_RETURN = int(Quality.CHILD_RETURN)


@njit
def _cloning(t: Any) -> bool:
    call = t[ps.S_CALL] - 1
    return call == sc.C_CLONE or call == sc.C_CLONE3 or call == sc.C_FORK or call == sc.C_VFORK


@njit
def on_fork(st: Any, cfg: Any, arg: Any, now: int, mark: int) -> None:
    """A FORK record: a new thread (pid == parent pid) or a new process."""
    pid = np.int64(arg[0])
    parent_pid = np.int64(arg[1])
    tid = np.int64(arg[2])
    parent_tid = np.int64(arg[3])
    if not (0 < pid < ps.MAX_TID and 0 < tid < ps.MAX_TID):
        st.count[ps.C_BAD_THREAD] += 1
        return
    if mark & ev.SYNTHETIC:  # the recorder tells what was there before
        slot = table_find(st.tid_keys, st.tid_values, np.uint64(tid))
        if slot < 0:
            slot = new_thread(st, tid, process_of(st, pid), ps.START_ATTACH, now)
            st.threads[slot, ps.S_PARENT] = parent_tid if parent_tid > 0 else -1
        return
    parent = -1
    if 0 < parent_tid < ps.MAX_TID:
        parent = table_find(st.tid_keys, st.tid_values, np.uint64(parent_tid))
    cloning = parent >= 0 and _cloning(st.threads[parent])
    if pid == parent_pid:
        proc = process_of(st, pid)
        kind = ps.START_THREAD
    else:
        kind = ps.START_FORK
        shares = False
        guess = False
        if cloning:
            call = st.threads[parent, ps.S_CALL] - 1
            flags = st.threads[parent, ps.S_CALL_FLAGS]
            shares = call == sc.C_VFORK or (call == sc.C_CLONE and flags & sc.CLONE_VM != 0)
            guess = call == sc.C_CLONE3
        if shares:
            space = st.procs[st.threads[parent, ps.S_PROC], ps.P_SPACE]
            st.spaces[space, ps.A_USERS] += 1
        else:
            space = new_space(st)
        proc = new_process(st, pid, space)
        if parent >= 0 and not shares:  # the child's heap is a copy of the parent's
            st.procs[proc, ps.P_BREAK] = st.procs[st.threads[parent, ps.S_PROC], ps.P_BREAK]
        if guess:
            st.procs[proc, ps.P_GUESS_PARENT] = parent + 1
            st.procs[proc, ps.P_GUESS_SPACE] = space
    slot = new_thread(st, tid, proc, kind, now)
    t = st.threads[slot]
    t[ps.S_START_NS] = now
    t[ps.S_PARENT] = parent_tid if parent_tid > 0 else -1
    t[ps.S_STARTED] = 0
    t[ps.S_PRE_KNOWN] = 1
    if cfg.switches:
        t[ps.S_RUN] = ps.PREEMPTED  # runnable until it is first switched in
        t[ps.S_OFF_NS] = -1
    if parent >= 0:
        p = st.threads[parent]
        t[ps.S_COMM0] = p[ps.S_COMM0]
        t[ps.S_COMM1] = p[ps.S_COMM1]
        if cloning:
            p[ps.S_CALL_CHILD] = tid
            p[ps.S_CALL_CHILD_KIND] = 1 if pid == parent_pid else 2


@njit
def _resolve_guess(st: Any, proc: int) -> bool:
    """Whether a clone3 child was vfork-like: its parent waits in clone3 until it is gone."""
    parent = st.procs[proc, ps.P_GUESS_PARENT] - 1
    st.procs[proc, ps.P_GUESS_PARENT] = 0
    if parent < 0:
        return False
    p = st.threads[parent]
    if p[ps.S_CALL] != sc.C_CLONE3 + 1 or p[ps.S_CALL_CHILD] != st.procs[proc, ps.P_PID]:
        return False
    p[ps.S_CALL_CHILD_GONE] = 1
    space = st.procs[proc, ps.P_GUESS_SPACE]
    st.spaces[space, ps.A_ALIAS] = st.procs[p[ps.S_PROC], ps.P_SPACE]
    return True


@njit
def on_comm(st: Any, slot: int, arg: Any, now: int, mark: int) -> None:
    """A COMM record: the name, and with an exec a new address space."""
    t = st.threads[slot]
    t[ps.S_COMM0] = np.int64(arg[1])
    t[ps.S_COMM1] = np.int64(arg[2])
    if not arg[0] or mark & ev.SYNTHETIC:
        return
    proc = t[ps.S_PROC]
    _resolve_guess(st, proc)
    space = st.procs[proc, ps.P_SPACE]
    st.spaces[space, ps.A_USERS] -= 1
    st.procs[proc, ps.P_BEFORE_EXEC] = space
    st.procs[proc, ps.P_SPACE] = new_space(st)
    st.procs[proc, ps.P_BREAK] = 0
    st.procs[proc, ps.P_EXECUTING] = 1
    if t[ps.S_START_NS] < 0 and t[ps.S_LAST_NS] <= t[ps.S_FIRST_NS]:
        t[ps.S_START_KIND] = ps.START_EXEC  # the command that the recorder launched
    t[ps.S_LAST_NS] = max(t[ps.S_LAST_NS], now)


@njit
def start_thread(st: Any, t: Any, now: int, cpu: int, quality: int, returns: int) -> None:
    """The first event of a thread whose creation was recorded: its THREAD_START."""
    t[ps.S_STARTED] = 1
    if returns:
        quality |= _CHILD_RETURN
    begin_row(st, t, now, _THREAD_START, cpu, 1, quality)


@njit
def finish_clone(st: Any, t: Any, call: int, result: int) -> int:
    """The kind of a clone, clone3, fork or vfork that returns; notes its child."""
    if result > 0 and t[ps.S_CALL_CHILD] == 0 and result < ps.MAX_TID:
        t[ps.S_CALL_CHILD] = result
    if call == sc.C_FORK:
        return _FORK
    if call == sc.C_VFORK:
        return _VFORK
    if call == sc.C_CLONE:
        flags = t[ps.S_CALL_FLAGS]
        if not flags & sc.CLONE_VM:
            return _FORK
        return _VFORK if flags & sc.CLONE_VFORK else _CLONE
    if t[ps.S_CALL_CHILD_KIND] == 2:
        return _VFORK if t[ps.S_CALL_CHILD_GONE] else _FORK
    return _CLONE


@njit
def result_of(st: Any, out: Any, t: Any, call: int, result: int) -> None:
    """Fill what the return value says: result, and the range it decides."""
    out[ps.O_RESULT] = result
    out[ps.O_KNOWN] |= ps.K_RESULT
    failed = -4095 <= result < 0
    if call == sc.C_MMAP or call == sc.C_SHMAT:
        if not failed:
            out[ps.O_ADDRESS] = result
            out[ps.O_KNOWN] |= ps.K_ADDRESS
    elif call == sc.C_BRK:
        # brk returns the break there is now; the range is what lies between.
        proc = t[ps.S_PROC]
        before = st.procs[proc, ps.P_BREAK]
        if result > 0:
            if before > 0:
                out[ps.O_ADDRESS] = min(before, result)
                out[ps.O_LENGTH] = abs(result - before)
                out[ps.O_KNOWN] |= ps.K_ADDRESS | ps.K_LENGTH
            st.procs[proc, ps.P_BREAK] = result


@njit
def orphan_exit(
    st: Any, slot: int, call: int, result: int, weight: int, now: int, quality: int, cpu: int
) -> None:
    """A system call's return whose entry this thread did not make, or did not show."""
    t = st.threads[slot]
    clone = call == sc.C_CLONE or call == sc.C_CLONE3 or call == sc.C_FORK or call == sc.C_VFORK
    if clone and result == 0:  # the child's return
        if t[ps.S_START_NS] >= 0:
            inner_event(t)
        else:
            start_thread(st, t, now, cpu, quality, 1)
        return
    execs = call == sc.C_EXECVE or call == sc.C_EXECVEAT
    if execs and result == 0:
        other = st.procs[t[ps.S_PROC], ps.P_EXEC_THREAD] - 1
        st.procs[t[ps.S_PROC], ps.P_EXEC_THREAD] = 0
        if other >= 0 and other != slot and st.threads[other, ps.S_CALL] == call + 1:
            # A thread that executes takes its leader's tid (de_thread@6.18).
            o = st.threads[other]
            out = close_call(st, o, now, _MEASURED, cpu)
            result_of(st, out, o, call, result)
            return
    row = begin_row(st, t, now, sc.CALL_KIND[call], cpu, weight, quality | _ORPHAN)
    out = st.ops[row - st.count[ps.C_BASE]]
    out[ps.O_DURATION_KIND] = _BEGIN_UNSEEN
    st.count[ps.C_BEGIN_UNSEEN] += 1
    if execs and result == 0:
        out[ps.O_SPACE] = st.procs[t[ps.S_PROC], ps.P_BEFORE_EXEC]
    result_of(st, out, t, call, result)


@njit
def end_of_thread(st: Any, slot: int, now: int, cpu: int, quality: int) -> None:
    """An EXIT record: close what is open, THREAD_EXIT, and PROCESS_EXIT after the last."""
    t = st.threads[slot]
    account(t, now)
    come_back(st, t, now)
    if t[ps.S_FAULT]:
        close_fault(st, t, now, _END_UNSEEN, _UNKNOWN, -1)
    executing = t[ps.S_CALL] == sc.C_EXECVE + 1 or t[ps.S_CALL] == sc.C_EXECVEAT + 1
    proc = t[ps.S_PROC]
    if t[ps.S_CALL] and not (executing and st.procs[proc, ps.P_LIVE] > 1):
        close_call(st, t, now, _END_UNSEEN, -1)
    if not t[ps.S_STARTED]:
        start_thread(st, t, now, cpu, quality, 0)
    begin_row(st, t, now, _THREAD_EXIT, cpu, 1, quality)
    t[ps.S_STATE] = ps.DEAD
    t[ps.S_END_NS] = now
    st.procs[proc, ps.P_LIVE] -= 1
    if st.procs[proc, ps.P_LIVE] <= 0:
        shared = _resolve_guess(st, proc)
        space = st.procs[proc, ps.P_SPACE]
        st.spaces[space, ps.A_USERS] -= 1
        if st.spaces[space, ps.A_USERS] <= 0 and not shared:
            begin_row(st, t, now, _PROCESS_EXIT, cpu, 1, quality)
