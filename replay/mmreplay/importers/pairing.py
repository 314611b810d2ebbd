"""Compiled, streaming pairing: event batches -> operations, waits, schedule, VMAs.

The rules are IMPORT §4.1 to §4.4, told in ``docs/import.md``; state is kept per live
thread, process and address space only (:mod:`mmreplay.importers.pair_state`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmreplay.importers import events as ev
from mmreplay.importers import pair_state as ps
from mmreplay.importers import syscalls as sc
from mmreplay.importers.binary import table_find
from mmreplay.importers.pair_process import (
    end_of_thread,
    finish_clone,
    on_comm,
    on_fork,
    orphan_exit,
    result_of,
    start_thread,
)
from mmreplay.importers.pair_spans import contention_begin, contention_end, mapping, mmap_lock
from mmreplay.importers.pair_thread import (
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
from mmreplay.jit import njit
from mmreplay.schema import DurationKind, FaultClass, OpKind, Quality

_NONE = int(DurationKind.NONE)
_MEASURED = int(DurationKind.MEASURED)
_UPPER = int(DurationKind.UPPER_BOUND)
_BEGIN_UNSEEN = int(DurationKind.BEGIN_UNSEEN)
_END_UNSEEN = int(DurationKind.END_UNSEEN)
_UNKNOWN = int(FaultClass.UNKNOWN)
_FAILED = int(FaultClass.FAILED)
_MINOR = int(FaultClass.MINOR)
_FAULT_USER = int(OpKind.FAULT_USER)
_FAULT_KERNEL = int(OpKind.FAULT_KERNEL)
_LATE = int(Quality.LATE)
_PAGE_SHIFT = 12
_KERNEL_HALF = np.uint64(1 << 63)


@njit
def full(st: Any) -> bool:
    """Whether one more event might not fit: the caller drains or grows, then goes on."""
    c = st.count
    m = ps.MARGIN
    return (
        c[ps.C_OPS] - c[ps.C_BASE] + m > st.ops.shape[0]
        or c[ps.C_THREADS] + m > st.threads.shape[0]
        or c[ps.C_PROCS] + m > st.procs.shape[0]
        or c[ps.C_SPACES] + m > st.spaces.shape[0]
        or c[ps.C_PATCHES] + m > st.patches.shape[0]
        or c[ps.C_THREAD_ROWS] + m > st.thread_rows.shape[0]
        or c[ps.C_SCHEDULE] + m > st.schedule.shape[0]
        or c[ps.C_LOCKS] + m > st.locks.shape[0]
        or c[ps.C_VMAS] + m > st.vmas.shape[0]
        or c[ps.C_GAPS] + m > st.gaps.shape[0]
    )


@njit
def _begin_fault(st: Any, t: Any, role: int, batch: Any, i: int, quality: int, cpu: int) -> None:
    now = batch.time[i]
    address = batch.arg[i, 0]
    kind = _FAULT_USER
    if role == ev.FAULT_KERNEL or (role >= ev.FAULT_SOFTWARE and not batch.mark[i] & ev.USER_MODE):
        kind = _FAULT_KERNEL
    row = begin_row(st, t, now, kind, cpu, batch.weight[i], quality)
    out = st.ops[row - st.count[ps.C_BASE]]
    out[ps.O_ADDRESS] = np.int64(address)
    out[ps.O_KNOWN] |= ps.K_ADDRESS
    if role == ev.FAULT_USER or role == ev.FAULT_KERNEL:
        out[ps.O_BITS] = np.int64(batch.arg[i, 1] & np.uint64(0x7F))
        out[ps.O_KNOWN] |= ps.K_BITS
    out[ps.O_IP] = np.int64(batch.ip[i])
    space = out[ps.O_SPACE]
    if address < _KERNEL_HALF:
        st.spaces[space, ps.A_FAULTS] += 1
        st.spaces[space, ps.A_HIGHEST] = max(st.spaces[space, ps.A_HIGHEST], np.int64(address))
    t[ps.S_FAULT] = kind
    t[ps.S_FAULT_ROW] = row
    t[ps.S_FAULT_NS] = now
    t[ps.S_FAULT_ADDRESS] = np.int64(address)
    t[ps.S_FAULT_BLOCKED] = 0
    t[ps.S_FAULT_PREEMPTED] = 0
    t[ps.S_FAULT_EVENTS] = 0
    t[ps.S_FAULT_CONTENTION] = 0
    t[ps.S_FAULT_CPU] = cpu


@njit
def _point_row(st: Any, t: Any, row: int, how: int) -> Any:
    """Turn a row just begun into one without duration."""
    out = st.ops[row - st.count[ps.C_BASE]]
    out[ps.O_DURATION_KIND] = how
    if how == _BEGIN_UNSEEN:
        st.count[ps.C_BEGIN_UNSEEN] += 1
    return out


@njit
def _on_fault(st: Any, cfg: Any, t: Any, role: int, batch: Any, i: int, q: int, cpu: int) -> None:
    now = batch.time[i]
    page = np.int64(batch.arg[i, 0] >> np.uint64(_PAGE_SHIFT))
    same = (
        t[ps.S_FAULT] != 0 and np.int64(np.uint64(t[ps.S_FAULT_ADDRESS]) >> np.uint64(12)) == page
    )
    if role <= ev.FAULT_SOFTWARE:
        if role == ev.FAULT_SOFTWARE and same and t[ps.S_FAULT_EVENTS] == 0:
            inner_event(t)  # the tracepoint has told this start already
            return
        if t[ps.S_FAULT]:
            st.count[ps.C_FAILED] += 1
            close_fault(st, t, now, _END_UNSEEN, _FAILED if cfg.fault_ends else _UNKNOWN, cpu)
        if t[ps.S_CALL]:
            t[ps.S_CALL_EVENTS] += 1
        _begin_fault(st, t, role, batch, i, q, cpu)
        if not cfg.pair:
            _point_row(st, t, t[ps.S_FAULT_ROW], _NONE)
            t[ps.S_FAULT] = 0
        return
    outcome = role - ev.FAULT_MINOR + _MINOR
    if same and cfg.pair:
        if t[ps.S_CALL]:
            t[ps.S_CALL_EVENTS] += 1
        close_fault(st, t, now, _MEASURED, outcome, cpu)
        return
    if not cfg.pair and cfg.fault_starts:
        inner_event(t)  # sampled: the starts are the histogram
        return
    if t[ps.S_FAULT]:
        st.count[ps.C_FAILED] += 1
        close_fault(st, t, now, _END_UNSEEN, _FAILED, cpu)
    if t[ps.S_CALL]:
        t[ps.S_CALL_EVENTS] += 1
    _begin_fault(st, t, role, batch, i, q, cpu)
    out = _point_row(st, t, t[ps.S_FAULT_ROW], _BEGIN_UNSEEN if cfg.fault_starts else _NONE)
    out[ps.O_CLASS] = outcome
    t[ps.S_FAULT] = 0


@njit
def _on_enter(st: Any, cfg: Any, t: Any, batch: Any, i: int, q: int, cpu: int) -> None:
    now = batch.time[i]
    call = np.int64(batch.call[i])
    if t[ps.S_CALL]:
        close_call(st, t, now, _END_UNSEEN, cpu)
    row = begin_row(st, t, now, sc.CALL_KIND[call], cpu, batch.weight[i], q)
    out = st.ops[row - st.count[ps.C_BASE]]
    arg = batch.arg
    out[ps.O_ADDRESS] = np.int64(arg[i, sc.ADDRESS])
    out[ps.O_LENGTH] = np.int64(arg[i, sc.LENGTH])
    out[ps.O_ADDRESS2] = np.int64(arg[i, sc.ADDRESS2])
    out[ps.O_LENGTH2] = np.int64(arg[i, sc.LENGTH2])
    out[ps.O_PROT] = np.int64(arg[i, sc.PROT] & np.uint64(0xFF))
    out[ps.O_FLAGS] = np.int64(arg[i, sc.FLAGS])
    out[ps.O_OFFSET] = np.int64(arg[i, sc.OFFSET])
    out[ps.O_FD] = np.int64(arg[i, sc.FD])
    out[ps.O_IP] = np.int64(batch.ip[i])
    out[ps.O_KNOWN] |= sc.PRESENT[call]
    if not cfg.exits[call] or not cfg.pair:
        out[ps.O_DURATION_KIND] = _NONE
        return
    t[ps.S_CALL] = call + 1
    t[ps.S_CALL_ROW] = row
    t[ps.S_CALL_NS] = now
    t[ps.S_CALL_BLOCKED] = 0
    t[ps.S_CALL_PREEMPTED] = 0
    t[ps.S_CALL_EVENTS] = 0
    t[ps.S_CALL_CONTENTION] = 0
    t[ps.S_CALL_CPU] = cpu
    t[ps.S_CALL_FLAGS] = out[ps.O_FLAGS]
    t[ps.S_CALL_ADDRESS] = out[ps.O_ADDRESS]
    t[ps.S_CALL_LENGTH] = out[ps.O_LENGTH]
    t[ps.S_CALL_CHILD] = 0
    t[ps.S_CALL_CHILD_KIND] = 0
    t[ps.S_CALL_CHILD_GONE] = 0
    if call == sc.C_EXECVE or call == sc.C_EXECVEAT:
        st.procs[t[ps.S_PROC], ps.P_EXEC_THREAD] = (
            table_find(st.tid_keys, st.tid_values, np.uint64(t[ps.S_TID])) + 1
        )


@njit
def _on_exit(st: Any, cfg: Any, slot: int, batch: Any, i: int, q: int, cpu: int) -> None:
    t = st.threads[slot]
    now = batch.time[i]
    call = np.int64(batch.call[i])
    result = np.int64(batch.arg[i, 0])
    if t[ps.S_CALL] == call + 1:
        kind = sc.CALL_KIND[call]
        if call == sc.C_CLONE or call == sc.C_CLONE3 or call == sc.C_FORK or call == sc.C_VFORK:
            kind = finish_clone(st, t, call, result)
        child = t[ps.S_CALL_CHILD]
        out = close_call(st, t, now, _MEASURED, cpu)
        out[ps.O_KIND] = kind
        result_of(st, out, t, call, result)
        if child > 0:
            out[ps.O_CHILD] = child
            out[ps.O_KNOWN] |= ps.K_CHILD
        return
    if t[ps.S_CALL]:
        close_call(st, t, now, _END_UNSEEN, cpu)
    if not cfg.pair:
        return
    orphan_exit(st, slot, call, result, batch.weight[i], now, q, cpu)


@njit
def _gap_check(st: Any, t: Any, now: int, cpu: int) -> None:
    """Whether events of this thread may have been lost since its last one."""
    gap = st.gap_ns[0]
    old = t[ps.S_LAST_CPU]
    gap = max(gap, st.gap_ns[old + 1])
    gap = max(gap, st.gap_ns[cpu + 1])
    if gap < t[ps.S_LAST_NS] or gap < 0:
        return
    if t[ps.S_FAULT]:
        close_fault(st, t, now, _END_UNSEEN, _UNKNOWN, -1)
    if t[ps.S_CALL]:
        close_call(st, t, now, _END_UNSEEN, -1)
    account(t, now)
    come_back(st, t, now)
    t[ps.S_AFTER_GAP] = 1
    t[ps.S_PRE_KNOWN] = 0
    t[ps.S_WAITS] = 0
    t[ps.S_HOLDS] = 0
    st.count[ps.C_GAP_EVENTS] += 1


@njit
def _loss(st: Any, batch: Any, i: int) -> None:
    now = batch.time[i]
    cpu = np.int64(batch.cpu[i])
    row = st.count[ps.C_GAPS]
    st.count[ps.C_GAPS] += 1
    out = st.gaps[row]
    out[ps.Z_RING] = cpu
    before = st.ring_ns[cpu + 1] if cpu >= 0 else st.count[ps.C_LAST_NS]
    out[ps.Z_BEGIN] = before if before >= 0 else 0
    out[ps.Z_END] = now
    out[ps.Z_LOST] = np.int64(batch.arg[i, 0])
    out[ps.Z_EVENT] = np.int64(batch.role[i])
    st.gap_ns[cpu + 1] = now


@njit
def _sched_switch(st: Any, batch: Any, i: int, t: Any, cpu: int) -> None:
    """Out for the thread itself, in for the next one where that is known (``-a``)."""
    now = batch.time[i]
    state = batch.arg[i, 0]
    account(t, now)
    # TASK_REPORT is 0x7f; R and R+ (0x100, preempted) mean it could have run on
    # (include/linux/sched.h@6.18).
    leave_cpu(t, now, cpu, ps.BLOCKED if state & np.uint64(0x7F) else ps.PREEMPTED)
    inner_event(t)
    following = np.int64(batch.arg[i, 1])
    if 0 < following < ps.MAX_TID:
        slot = table_find(st.tid_keys, st.tid_values, np.uint64(following))
        if slot >= 0 and st.threads[slot, ps.S_STATE] == ps.ALIVE:
            other = st.threads[slot]
            account(other, now)
            come_back(st, other, now)
            other[ps.S_LAST_CPU] = cpu


@njit
def pair(st: Any, cfg: Any, batch: Any, first: int, last: int) -> int:
    """Pair the events ``first`` to ``last`` of a batch; returns the first one not taken.

    Fewer than all are taken when an output is full: drain the outputs, grow the state
    (:func:`mmreplay.importers.pair_state.grow`), and call again.
    """
    count = st.count
    for i in range(first, last):
        if full(st):
            return i
        role = np.int64(batch.role[i])
        now = batch.time[i]
        tid = np.int64(batch.tid[i])
        pid = np.int64(batch.pid[i])
        cpu = np.int64(batch.cpu[i])
        mark = batch.mark[i]
        count[ps.C_LAST_NS] = now
        if role == ev.LOST or role == ev.THROTTLE:
            _loss(st, batch, i)
            continue
        if cpu >= 0:
            st.ring_ns[cpu + 1] = now
        if role == ev.FORK:
            on_fork(st, cfg, batch.arg[i], now, mark)
            continue
        if role == ev.THREAD_END:
            tid = np.int64(batch.arg[i, 2])
            pid = np.int64(batch.arg[i, 0])
        if tid <= 0 or pid <= 0:  # the idle task, the kernel's maps, tasks already gone
            continue
        if tid >= ps.MAX_TID or pid >= ps.MAX_TID:
            count[ps.C_BAD_THREAD] += 1
            continue
        slot = table_find(st.tid_keys, st.tid_values, np.uint64(tid))
        if slot >= 0 and st.threads[slot, ps.S_STATE] == ps.DEAD:
            if role == ev.SWITCH or role == ev.THREAD_END or role == ev.SCHED_SWITCH:
                count[ps.C_DEAD_EVENT] += 1
                continue
            slot = -1
        if slot >= 0 and st.threads[slot, ps.S_PID] != pid:
            slot = -1  # the tid is somebody else's now
        if slot < 0:
            kind = ps.START_ATTACH if mark & ev.SYNTHETIC else ps.START_FIRST_SEEN
            slot = new_thread(st, tid, process_of(st, pid), kind, now)
        t = st.threads[slot]
        if role == ev.COMM:
            on_comm(st, slot, batch.arg[i], now, mark)
            continue
        if role == ev.MAPPING:
            mapping(st, t, batch.arg[i], now, mark)
            if mark & ev.SYNTHETIC:
                continue
        _gap_check(st, t, now, cpu)
        gap = now - t[ps.S_LAST_NS]
        if t[ps.S_RUN] == ps.RUNNING and role < ev.SWITCH and gap < ps.BIN_NS * ps.BINS:
            st.histogram[1, gap // ps.BIN_NS] += 1
        quality = _LATE if mark & ev.LATE else 0
        if t[ps.S_FAULT] and not cfg.fault_ends:
            # Start-only recordings: the thread's next event bounds the fault.
            account(t, now)
            close_fault(st, t, now, _UPPER, _UNKNOWN, cpu)
        if role == ev.SWITCH:
            account(t, now)
            if batch.arg[i, 0]:
                come_back(st, t, now)
                leave_cpu(t, now, cpu, ps.PREEMPTED if batch.arg[i, 1] else ps.BLOCKED)
            else:
                come_back(st, t, now)
                inner_event(t)
        elif role == ev.THREAD_END:
            account(t, now)
            end_of_thread(st, slot, now, cpu, quality)
        elif role == ev.SCHED_SWITCH:
            _sched_switch(st, batch, i, t, cpu)
        else:
            if t[ps.S_RUN] != ps.RUNNING:
                if not cfg.switches:
                    t[ps.S_RUN] = ps.OFF_UNKNOWN  # came back unseen: no telling when
                account(t, now)
                come_back(st, t, now)
            else:
                account(t, now)
            if not t[ps.S_STARTED] and role < ev.SWITCH:
                returns = role == ev.EXIT and batch.arg[i, 0] == 0
                start_thread(st, t, now, cpu, quality, returns)
                if returns:
                    t[ps.S_LAST_NS] = now
                    continue
            if ev.FAULT_USER <= role <= ev.FAULT_MAJOR:
                _on_fault(st, cfg, t, role, batch, i, quality, cpu)
                if role == ev.FAULT_USER:
                    st.procs[t[ps.S_PROC], ps.P_EXECUTING] = 0
            elif role == ev.ENTER or role == ev.EXIT:
                if t[ps.S_FAULT]:
                    count[ps.C_FAILED] += 1
                    close_fault(st, t, now, _END_UNSEEN, _FAILED, cpu)
                if role == ev.ENTER:
                    st.procs[t[ps.S_PROC], ps.P_EXECUTING] = 0
                    _on_enter(st, cfg, t, batch, i, quality, cpu)
                else:
                    _on_exit(st, cfg, slot, batch, i, quality, cpu)
                    if batch.call[i] == sc.C_EXECVE:
                        st.procs[t[ps.S_PROC], ps.P_EXECUTING] = 0
            else:
                if role == ev.CONTENTION_BEGIN:
                    contention_begin(st, slot, batch.arg[i, 0], batch.arg[i, 1], now)
                elif role == ev.CONTENTION_END:
                    contention_end(st, slot, batch.arg[i, 0], now)
                elif ev.MMAP_LOCK_START <= role <= ev.MMAP_LOCK_RELEASED:
                    mmap_lock(st, slot, role, batch.arg[i], now)
                inner_event(t)
        t[ps.S_LAST_NS] = now
        if cpu >= 0:
            t[ps.S_LAST_CPU] = cpu
    return last


@njit
def finish(st: Any, first: int) -> int:
    """Close what is open and give out the threads from ``first`` on; returns how far it got."""
    count = st.count
    now = count[ps.C_LAST_NS]
    for slot in range(first, count[ps.C_THREADS]):
        if full(st):
            return slot
        t = st.threads[slot]
        if t[ps.S_STATE] == ps.ALIVE:
            account(t, now if t[ps.S_RUN] != ps.RUNNING else t[ps.S_LAST_NS])
            if t[ps.S_FAULT]:
                close_fault(st, t, now, _END_UNSEEN, _UNKNOWN, -1)
            if t[ps.S_CALL]:
                close_call(st, t, now, _END_UNSEEN, -1)
            come_back(st, t, -1)
        emit_thread(st, slot)
    return count[ps.C_THREADS]
