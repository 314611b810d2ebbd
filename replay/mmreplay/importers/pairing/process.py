"""Compiled pairing of process life: fork, clone, exec, exit, orphan returns."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmreplay.importers import events as ev
from mmreplay.importers import syscalls as sc
from mmreplay.importers.pairing import state as ps
from mmreplay.importers.pairing.thread import (
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
from mmreplay.jit import borrowing_helper
from mmreplay.schema import DurationKind, FaultClass, OpKind, Quality

_TWO_GIB = np.int64(1 << 31)
_NO_CPU = np.int64(-1)
_ONE = np.int64(1)
_ZERO = np.int64(0)
_MEASURED = np.int64(int(DurationKind.MEASURED))
_BEGIN_UNSEEN = np.int64(int(DurationKind.BEGIN_UNSEEN))
_END_UNSEEN = np.int64(int(DurationKind.END_UNSEEN))
_UNKNOWN = np.int64(int(FaultClass.UNKNOWN))
_CLONE = np.int64(int(OpKind.CLONE))
_FORK = np.int64(int(OpKind.FORK))
_VFORK = np.int64(int(OpKind.VFORK))
_THREAD_START = np.int64(int(OpKind.THREAD_START))
_THREAD_EXIT = np.int64(int(OpKind.THREAD_EXIT))
_PROCESS_EXIT = np.int64(int(OpKind.PROCESS_EXIT))
_ORPHAN = np.int64(int(Quality.ORPHAN_EXIT))
#: MAP_FIXED and MAP_32BIT: the program says where, or that it be low.
_MAP_WHERE = np.int64(0x10 | 0x40)
_FLAGS_KNOWN = np.int64(1 << sc.FLAGS)
#: In S_CALL_FLAGS of a clone3: task_newtask has told them.
_FLAGS_TOLD = np.int64(1 << 62)
_CHILD_RETURN = np.int64(int(Quality.CHILD_RETURN))


@borrowing_helper
def _cloning(a: Any, t: Any) -> Any:
    call = a[t + ps.S_CALL] - 1
    return call == sc.C_CLONE or call == sc.C_CLONE3 or call == sc.C_FORK or call == sc.C_VFORK


@borrowing_helper
def on_fork(a: Any, ops: Any, arg: Any, now: Any, mark: Any) -> None:
    """A FORK record: a new thread (pid == parent pid) or a new process."""
    pid = np.int64(arg[0])
    parent_pid = np.int64(arg[1])
    tid = np.int64(arg[2])
    parent_tid = np.int64(arg[3])
    if not (0 < pid < ps.MAX_TID and 0 < tid < ps.MAX_TID):
        a[ps.C_BAD_THREAD] += 1
        return
    if mark & ev.SYNTHETIC:  # the recorder tells what was there before
        slot = ps.tid_find(a, tid)
        if slot < 0:
            slot = new_thread(a, ops, tid, process_of(a, ops, pid), ps.START_ATTACH, now)
            a[ps.threads_at(a, slot) + ps.S_PARENT] = parent_tid if parent_tid > 0 else -1
        return
    parent = -1
    if 0 < parent_tid < ps.MAX_TID:
        parent = ps.tid_find(a, parent_tid)
    cloning = parent >= 0 and _cloning(a, ps.threads_at(a, parent))
    if pid == parent_pid:
        proc = process_of(a, ops, pid)
        kind = ps.START_THREAD
    else:
        kind = ps.START_FORK
        shares = False
        guess = False
        if cloning:
            call = a[ps.threads_at(a, parent) + ps.S_CALL] - 1
            flags = a[ps.threads_at(a, parent) + ps.S_CALL_FLAGS]
            told = call == sc.C_CLONE or flags & _FLAGS_TOLD != 0
            shares = call == sc.C_VFORK or (told and flags & sc.CLONE_VM != 0)
            guess = call == sc.C_CLONE3 and not told
        if shares:
            space = a[ps.procs_at(a, a[ps.threads_at(a, parent) + ps.S_PROC]) + ps.P_SPACE]
            a[ps.spaces_at(a, space) + ps.A_USERS] += 1
        else:
            space = new_space(a, ops)
        proc = new_process(a, ops, pid, space)
        if parent >= 0 and not shares:  # the child's heap is a copy of the parent's
            a[ps.procs_at(a, proc) + ps.P_BREAK] = a[
                ps.procs_at(a, a[ps.threads_at(a, parent) + ps.S_PROC]) + ps.P_BREAK
            ]
        if guess:
            a[ps.procs_at(a, proc) + ps.P_GUESS_PARENT] = parent + 1
            a[ps.procs_at(a, proc) + ps.P_GUESS_SPACE] = space
            p = ps.threads_at(a, parent)
            a[ps.procs_at(a, proc) + ps.P_GUESS_OPEN] = 1
            a[ps.procs_at(a, proc) + ps.P_GUESS_ROW] = a[p + ps.S_CALL_ROW]
            a[ps.procs_at(a, proc) + ps.P_GUESS_MOTHER] = a[
                ps.procs_at(a, a[p + ps.S_PROC]) + ps.P_SPACE
            ]
    slot = new_thread(a, ops, tid, proc, kind, now)
    t = ps.threads_at(a, slot)
    a[t + ps.S_START_NS] = now
    a[t + ps.S_PARENT] = parent_tid if parent_tid > 0 else -1
    a[t + ps.S_STARTED] = 0
    a[t + ps.S_PRE_KNOWN] = 1
    if a[ps.C_SWITCHES]:
        a[t + ps.S_RUN] = ps.PREEMPTED  # runnable until it is first switched in
        a[t + ps.S_OFF_NS] = -1
    if parent < 0:  # nobody's that is wanted: its name came with it
        a[t + ps.S_COMM0] = np.int64(arg[4])
        a[t + ps.S_COMM1] = np.int64(arg[5])
    else:
        p = ps.threads_at(a, parent)
        a[t + ps.S_COMM0] = a[p + ps.S_COMM0]
        a[t + ps.S_COMM1] = a[p + ps.S_COMM1]
        if cloning:
            a[p + ps.S_CALL_CHILD] = tid
            a[p + ps.S_CALL_CHILD_KIND] = 1 if pid == parent_pid else 2


@borrowing_helper
def on_new_task(a: Any, t: Any, tid: Any, flags: Any) -> None:
    """task_newtask in the parent: the flags, which clone3 passes by a pointer.

    It follows the FORK record at once, before the child runs (copy_process@6.18).
    """
    if a[t + ps.S_CALL] != sc.C_CLONE3 + 1:
        return
    a[t + ps.S_CALL_FLAGS] = flags | _FLAGS_TOLD
    slot = ps.tid_find(a, tid) if 0 < tid < ps.MAX_TID else np.int64(-1)
    if slot < 0:
        return
    child = ps.procs_at(a, a[ps.threads_at(a, slot) + ps.S_PROC])
    if a[child + ps.P_GUESS_PARENT] == 0:
        return
    a[child + ps.P_GUESS_PARENT] = 0
    a[child + ps.P_GUESS_OPEN] = 0
    if flags & sc.CLONE_VM:
        space = a[ps.procs_at(a, a[t + ps.S_PROC]) + ps.P_SPACE]
        a[ps.spaces_at(a, a[child + ps.P_SPACE]) + ps.A_ALIAS] = space
        a[child + ps.P_SPACE] = space
        a[child + ps.P_BEFORE_EXEC] = space
        a[ps.threads_at(a, slot) + ps.S_SPACE] = space
        a[ps.spaces_at(a, space) + ps.A_USERS] += 1


@borrowing_helper
def _resolve_guess(a: Any, ops: Any, proc: Any) -> Any:
    """Whether a clone3 child was vfork-like: its parent waits in clone3 until it is gone."""
    parent = a[ps.procs_at(a, proc) + ps.P_GUESS_PARENT] - 1
    a[ps.procs_at(a, proc) + ps.P_GUESS_PARENT] = 0
    a[ps.procs_at(a, proc) + ps.P_GUESS_OPEN] = 0
    if parent < 0:
        return False
    p = ps.threads_at(a, parent)
    if (
        a[p + ps.S_CALL] != sc.C_CLONE3 + 1
        or a[p + ps.S_CALL_CHILD] != a[ps.procs_at(a, proc) + ps.P_PID]
    ):
        return False
    a[p + ps.S_CALL_CHILD_GONE] = 1
    space = a[ps.procs_at(a, proc) + ps.P_GUESS_SPACE]
    a[ps.spaces_at(a, space) + ps.A_ALIAS] = a[ps.procs_at(a, a[p + ps.S_PROC]) + ps.P_SPACE]
    return True


@borrowing_helper
def on_comm(a: Any, ops: Any, slot: Any, arg: Any, now: Any, mark: Any) -> None:
    """A COMM record: the name, and with an exec a new address space."""
    t = ps.threads_at(a, slot)
    a[t + ps.S_COMM0] = np.int64(arg[1])
    a[t + ps.S_COMM1] = np.int64(arg[2])
    if not arg[0] or mark & ev.SYNTHETIC:
        return
    proc = a[t + ps.S_PROC]
    _resolve_guess(a, ops, proc)
    space = a[ps.procs_at(a, proc) + ps.P_SPACE]
    a[ps.spaces_at(a, space) + ps.A_USERS] -= 1
    a[ps.procs_at(a, proc) + ps.P_BEFORE_EXEC] = space
    a[ps.procs_at(a, proc) + ps.P_SPACE] = new_space(a, ops)
    a[ps.procs_at(a, proc) + ps.P_BREAK] = 0
    a[ps.procs_at(a, proc) + ps.P_EXECUTING] = 1
    if a[t + ps.S_START_NS] < 0 and a[t + ps.S_LAST_NS] <= a[t + ps.S_FIRST_NS]:
        a[t + ps.S_START_KIND] = ps.START_EXEC  # the command that the recorder launched
    a[t + ps.S_LAST_NS] = max(a[t + ps.S_LAST_NS], now)


@borrowing_helper
def start_thread(a: Any, ops: Any, t: Any, now: Any, cpu: Any, quality: Any, returns: Any) -> None:
    """The first event of a thread whose creation was recorded: its THREAD_START."""
    guess = a[ps.procs_at(a, a[t + ps.S_PROC]) + ps.P_GUESS_OPEN]
    a[t + ps.S_STARTED] = 2 if guess else 1
    if returns:
        quality |= _CHILD_RETURN
    begin_row(a, ops, t, now, _THREAD_START, cpu, _ONE, quality)


@borrowing_helper
def finish_clone(a: Any, ops: Any, t: Any, call: Any, result: Any) -> Any:
    """The kind of a clone, clone3, fork or vfork that returns; notes its child."""
    if result > 0 and a[t + ps.S_CALL_CHILD] == 0 and result < ps.MAX_TID:
        a[t + ps.S_CALL_CHILD] = result
    if call == sc.C_FORK:
        return _FORK
    if call == sc.C_VFORK:
        return _VFORK
    flags = a[t + ps.S_CALL_FLAGS]
    if call == sc.C_CLONE or flags & _FLAGS_TOLD:
        if not flags & sc.CLONE_VM:
            return _FORK
        return _VFORK if flags & sc.CLONE_VFORK else _CLONE
    if a[t + ps.S_CALL_CHILD_KIND] == 2:
        if a[t + ps.S_CALL_CHILD_GONE]:
            return _VFORK
        return _CLONE if a[t + ps.S_CALL_CHILD_SHARES] else _FORK
    return _CLONE


@borrowing_helper
def result_of(a: Any, ops: Any, out: Any, t: Any, call: Any, result: Any) -> None:
    """Fill what the return value says: result, and the range it decides."""
    if -_TWO_GIB <= result < -4095:  # an address of a 32-bit kernel, whose long is signed
        result += 2 * _TWO_GIB
    ops[out + ps.O_RESULT] = result
    ops[out + ps.O_KNOWN] |= ps.K_RESULT
    failed = -4095 <= result < 0
    if call == sc.C_MMAP or call == sc.C_SHMAT:
        if not failed:
            ops[out + ps.O_ADDRESS] = result
            ops[out + ps.O_KNOWN] |= ps.K_ADDRESS
            space = ps.spaces_at(a, ops[out + ps.O_SPACE])
            told = ops[out + ps.O_KNOWN] & _FLAGS_KNOWN
            if told and not ops[out + ps.O_FLAGS] & _MAP_WHERE:
                a[space + ps.A_PLACED] += 1
            a[space + ps.A_HIGHEST] = max(a[space + ps.A_HIGHEST], result)
    elif call == sc.C_BRK:
        # brk returns the break there is now; the range is what lies between.
        proc = a[t + ps.S_PROC]
        before = a[ps.procs_at(a, proc) + ps.P_BREAK]
        if result > 0:
            if before > 0:
                ops[out + ps.O_ADDRESS] = min(before, result)
                ops[out + ps.O_LENGTH] = abs(result - before)
                ops[out + ps.O_KNOWN] |= ps.K_ADDRESS | ps.K_LENGTH
            a[ps.procs_at(a, proc) + ps.P_BREAK] = result


@borrowing_helper
def orphan_exit(
    a: Any,
    ops: Any,
    slot: Any,
    call: Any,
    result: Any,
    weight: Any,
    now: Any,
    quality: Any,
    cpu: Any,
) -> None:
    """A system call's return whose entry this thread did not make, or did not show."""
    t = ps.threads_at(a, slot)
    clone = call == sc.C_CLONE or call == sc.C_CLONE3 or call == sc.C_FORK or call == sc.C_VFORK
    if clone and result == 0:  # the child's return
        if a[t + ps.S_START_NS] >= 0:
            inner_event(a, t)
        else:
            start_thread(a, ops, t, now, cpu, quality, _ONE)
        return
    execs = call == sc.C_EXECVE or call == sc.C_EXECVEAT
    if execs and result == 0:
        other = a[ps.procs_at(a, a[t + ps.S_PROC]) + ps.P_EXEC_THREAD] - 1
        a[ps.procs_at(a, a[t + ps.S_PROC]) + ps.P_EXEC_THREAD] = 0
        if other >= 0 and other != slot and a[ps.threads_at(a, other) + ps.S_CALL] == call + 1:
            # A thread that executes takes its leader's tid (de_thread@6.18).
            o = ps.threads_at(a, other)
            out = close_call(a, ops, o, now, _MEASURED, cpu)
            result_of(a, ops, out, o, call, result)
            a[ps.threads_at(a, other) + ps.S_STATE] = ps.DEAD
            a[ps.threads_at(a, other) + ps.S_END_NS] = now
            a[ps.procs_at(a, a[t + ps.S_PROC]) + ps.P_LIVE] -= 1
            return
    row = begin_row(a, ops, t, now, sc.CALL_KIND[call], cpu, weight, quality | _ORPHAN)
    out = ps.place(a, row)
    ops[out + ps.O_DURATION_KIND] = _BEGIN_UNSEEN
    a[ps.C_BEGIN_UNSEEN] += 1
    if execs and result == 0:
        ops[out + ps.O_SPACE] = a[ps.procs_at(a, a[t + ps.S_PROC]) + ps.P_BEFORE_EXEC]
    result_of(a, ops, out, t, call, result)


@borrowing_helper
def end_of_thread(a: Any, ops: Any, slot: Any, now: Any, cpu: Any, quality: Any) -> None:
    """An EXIT record: close what is open, THREAD_EXIT, and PROCESS_EXIT after the last."""
    t = ps.threads_at(a, slot)
    account(a, t, now)
    come_back(a, ops, t, now)
    if a[t + ps.S_FAULT]:
        close_fault(a, ops, t, now, _END_UNSEEN, _UNKNOWN, _NO_CPU)
    executing = a[t + ps.S_CALL] == sc.C_EXECVE + 1 or a[t + ps.S_CALL] == sc.C_EXECVEAT + 1
    proc = a[t + ps.S_PROC]
    if a[t + ps.S_CALL] and not (executing and a[ps.procs_at(a, proc) + ps.P_LIVE] > 1):
        close_call(a, ops, t, now, _END_UNSEEN, _NO_CPU)
    if not a[t + ps.S_STARTED]:
        start_thread(a, ops, t, now, cpu, quality, _ZERO)
    begin_row(a, ops, t, now, _THREAD_EXIT, cpu, _ONE, quality)
    a[t + ps.S_STATE] = ps.DEAD
    a[t + ps.S_END_NS] = now
    a[ps.procs_at(a, proc) + ps.P_LIVE] -= 1
    if a[ps.procs_at(a, proc) + ps.P_LIVE] <= 0:
        shared = _resolve_guess(a, ops, proc)
        space = a[ps.procs_at(a, proc) + ps.P_SPACE]
        a[ps.spaces_at(a, space) + ps.A_USERS] -= 1
        if a[ps.spaces_at(a, space) + ps.A_USERS] <= 0 and not shared:
            begin_row(a, ops, t, now, _PROCESS_EXIT, cpu, _ONE, quality)
