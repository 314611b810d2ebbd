"""Compiled pairing of lock waits and holds, and of mapping records."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmreplay.importers import events as ev
from mmreplay.importers import syscalls as sc
from mmreplay.importers.pairing import state as ps
from mmreplay.jit import borrowing_helper


@borrowing_helper
def _lock_row(
    a: Any,
    ops: Any,
    slot: Any,
    address: np.uint64,
    flags: Any,
    mode: Any,
    begin: Any,
    wait: Any,
    hold: Any,
) -> None:
    row = a[ps.C_LOCKS]
    a[ps.C_LOCKS] += 1
    out = a[ps.B_LOCKS] + row * ps.L_SIZE
    a[out + ps.L_TID] = a[ps.threads_at(a, slot) + ps.S_TID]
    a[out + ps.L_SPACE] = a[ps.procs_at(a, a[ps.threads_at(a, slot) + ps.S_PROC]) + ps.P_SPACE]
    a[out + ps.L_ADDRESS] = np.int64(address)
    a[out + ps.L_FLAGS] = flags
    a[out + ps.L_MODE] = mode
    a[out + ps.L_BEGIN] = begin
    a[out + ps.L_WAIT] = wait
    a[out + ps.L_HOLD] = hold


@borrowing_helper
def contention_begin(
    a: Any, ops: Any, slot: Any, address: np.uint64, flags: np.uint64, now: Any
) -> None:
    """lock:contention_begin; a mutex says it twice (spinning, then sleeping) and ends once."""
    t = ps.threads_at(a, slot)
    n = a[t + ps.S_WAITS]
    waits = a[ps.B_WAITS] + slot * ps.STACK * ps.WAIT_SIZE
    for k in range(n):
        if np.uint64(a[waits + k * ps.WAIT_SIZE + 0]) == address:
            a[waits + k * ps.WAIT_SIZE + 2] |= np.int64(flags)
            return
    if n >= ps.STACK:
        a[ps.C_UNMATCHED_LOCK] += 1
        return
    a[waits + n * ps.WAIT_SIZE + 0] = np.int64(address)
    a[waits + n * ps.WAIT_SIZE + 1] = now
    a[waits + n * ps.WAIT_SIZE + 2] = np.int64(flags)
    a[t + ps.S_WAITS] = n + 1


@borrowing_helper
def contention_end(a: Any, ops: Any, slot: Any, address: np.uint64, now: Any) -> None:
    """lock:contention_end: the span's row, and its share in the open operations."""
    t = ps.threads_at(a, slot)
    waits = a[ps.B_WAITS] + slot * ps.STACK * ps.WAIT_SIZE
    found = -1
    for k in range(a[t + ps.S_WAITS]):
        if np.uint64(a[waits + k * ps.WAIT_SIZE + 0]) == address:
            found = k
    if found < 0:
        a[ps.C_UNMATCHED_LOCK] += 1
        return
    begin = a[waits + found * ps.WAIT_SIZE + 1]
    a[t + ps.S_WAITS] = found  # what was open above it has lost its end
    _lock_row(
        a,
        ops,
        slot,
        address,
        a[waits + found * ps.WAIT_SIZE + 2],
        ps.MODE_SPAN,
        begin,
        now - begin,
        -1,
    )
    if found == 0:  # spans inside spans are part of them
        if a[t + ps.S_FAULT]:
            a[t + ps.S_FAULT_CONTENTION] += now - max(begin, a[t + ps.S_FAULT_NS])
        if a[t + ps.S_CALL]:
            a[t + ps.S_CALL_CONTENTION] += now - max(begin, a[t + ps.S_CALL_NS])


@borrowing_helper
def _drop_hold(a: Any, t: Any, holds: Any, at: Any) -> None:
    for k in range(at, a[t + ps.S_HOLDS] - 1):
        for j in range(ps.HOLD_SIZE):
            a[holds + (k) * ps.HOLD_SIZE + j] = a[holds + (k + 1) * ps.HOLD_SIZE + j]
    a[t + ps.S_HOLDS] -= 1


@borrowing_helper
def mmap_lock(a: Any, ops: Any, slot: Any, role: Any, arg: Any, now: Any) -> None:
    """mmap_lock:*, by (thread, mm)."""
    t = ps.threads_at(a, slot)
    holds = a[ps.B_HOLDS] + slot * ps.STACK * ps.HOLD_SIZE
    mm = np.int64(arg[0])
    write = 1 if arg[1] else 0
    found = -1
    for k in range(a[t + ps.S_HOLDS]):
        if a[holds + (k) * ps.HOLD_SIZE + 0] == mm:
            found = k
    if role == ev.MMAP_LOCK_RELEASED:
        if found < 0 or a[holds + (found) * ps.HOLD_SIZE + 2] < 0:
            a[ps.C_UNMATCHED_LOCK] += 1
            return
        begin = a[holds + (found) * ps.HOLD_SIZE + 1]
        taken = a[holds + (found) * ps.HOLD_SIZE + 2]
        mode = ps.MODE_WRITE if a[holds + (found) * ps.HOLD_SIZE + 3] else ps.MODE_READ
        _lock_row(a, ops, slot, np.uint64(mm), 0, mode, begin, taken - begin, now - taken)
        _drop_hold(a, t, holds, found)
        return
    if role == ev.MMAP_LOCK_ACQUIRED:
        if not arg[2]:
            a[ps.C_TRYLOCK_FAILED] += 1
            if found >= 0 and a[holds + (found) * ps.HOLD_SIZE + 2] < 0:
                _drop_hold(a, t, holds, found)
            return
        if found >= 0 and a[holds + (found) * ps.HOLD_SIZE + 2] < 0:
            a[holds + (found) * ps.HOLD_SIZE + 2] = now
            a[holds + (found) * ps.HOLD_SIZE + 3] = write
            gap = (now - a[holds + (found) * ps.HOLD_SIZE + 1]) // ps.BIN_NS
            if gap < ps.BINS:
                a[a[ps.B_HISTOGRAM] + gap] += 1
            return
        if (
            found >= 0 and a[holds + (found) * ps.HOLD_SIZE + 3] and not write
        ):  # downgrade: the write hold ends here
            begin = a[holds + (found) * ps.HOLD_SIZE + 1]
            taken = a[holds + (found) * ps.HOLD_SIZE + 2]
            _lock_row(
                a, ops, slot, np.uint64(mm), 0, ps.MODE_WRITE, begin, taken - begin, now - taken
            )
            a[holds + (found) * ps.HOLD_SIZE + 1] = now
            a[holds + (found) * ps.HOLD_SIZE + 2] = now
            a[holds + (found) * ps.HOLD_SIZE + 3] = 0
            return
        # no start: a trylock
    if found < 0:
        if a[t + ps.S_HOLDS] >= ps.STACK:
            a[ps.C_UNMATCHED_LOCK] += 1
            return
        found = a[t + ps.S_HOLDS]
        a[t + ps.S_HOLDS] += 1
    else:
        a[ps.C_UNMATCHED_LOCK] += 1  # the earlier hold has lost its end
    a[holds + (found) * ps.HOLD_SIZE + 0] = mm
    a[holds + (found) * ps.HOLD_SIZE + 1] = now
    a[holds + (found) * ps.HOLD_SIZE + 2] = now if role == ev.MMAP_LOCK_ACQUIRED else -1
    a[holds + (found) * ps.HOLD_SIZE + 3] = write


@borrowing_helper
def mapping(a: Any, ops: Any, t: Any, arg: Any, now: Any, mark: Any) -> None:
    """A MMAP or MMAP2 record: one known VMA."""
    start, length = arg[0], arg[1]
    if length == 0 or start + length < start or start >= np.uint64(1 << 63):
        return
    proc = a[t + ps.S_PROC]
    space = a[ps.procs_at(a, proc) + ps.P_SPACE]
    if a[t + ps.S_CALL] == sc.C_SHMAT + 1:  # the call itself does not say how long it is
        a[t + ps.S_CALL_LENGTH] = np.int64(length)
    source = 2
    if mark & ev.SYNTHETIC:
        source = 0
    elif a[ps.procs_at(a, proc) + ps.P_EXECUTING]:
        source = 1
    row = a[ps.C_VMAS]
    a[ps.C_VMAS] += 1
    out = a[ps.B_VMAS] + row * ps.V_SIZE
    a[out + ps.V_SPACE] = space
    a[out + ps.V_NS] = now
    a[out + ps.V_START] = np.int64(start)
    a[out + ps.V_LENGTH] = np.int64(length)
    a[out + ps.V_PROT_FLAGS] = np.int64(arg[3])
    a[out + ps.V_OFFSET] = np.int64(arg[2])
    a[out + ps.V_INODE] = np.int64(arg[4])
    a[out + ps.V_DEVICE] = np.int64(arg[5])
    a[out + ps.V_NAME] = np.int64(arg[6])
    a[out + ps.V_SOURCE] = source
    a[ps.spaces_at(a, space) + ps.A_MAPPED] += 1
    a[ps.spaces_at(a, space) + ps.A_HIGHEST] = max(
        a[ps.spaces_at(a, space) + ps.A_HIGHEST], np.int64(start + length - np.uint64(1))
    )
