"""Compiled pairing of lock waits and holds, and of mapping records."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmreplay.importers import events as ev
from mmreplay.importers import pair_state as ps
from mmreplay.jit import njit


@njit
def _lock_row(
    st: Any, slot: int, address: np.uint64, flags: int, mode: int, begin: int, wait: int, hold: int
) -> None:
    row = st.count[ps.C_LOCKS]
    st.count[ps.C_LOCKS] += 1
    out = st.locks[row]
    out[ps.L_TID] = st.threads[slot, ps.S_TID]
    out[ps.L_SPACE] = st.procs[st.threads[slot, ps.S_PROC], ps.P_SPACE]
    out[ps.L_ADDRESS] = np.int64(address)
    out[ps.L_FLAGS] = flags
    out[ps.L_MODE] = mode
    out[ps.L_BEGIN] = begin
    out[ps.L_WAIT] = wait
    out[ps.L_HOLD] = hold


@njit
def contention_begin(st: Any, slot: int, address: np.uint64, flags: np.uint64, now: int) -> None:
    """lock:contention_begin; a mutex says it twice (spinning, then sleeping) and ends once."""
    t = st.threads[slot]
    n = t[ps.S_WAITS]
    waits = st.waits[slot]
    for k in range(n):
        if np.uint64(waits[k, 0]) == address:
            waits[k, 2] |= np.int64(flags)
            return
    if n >= ps.STACK:
        st.count[ps.C_UNMATCHED_LOCK] += 1
        return
    waits[n, 0] = np.int64(address)
    waits[n, 1] = now
    waits[n, 2] = np.int64(flags)
    t[ps.S_WAITS] = n + 1


@njit
def contention_end(st: Any, slot: int, address: np.uint64, now: int) -> None:
    """lock:contention_end: the span's row, and its share in the open operations."""
    t = st.threads[slot]
    waits = st.waits[slot]
    found = -1
    for k in range(t[ps.S_WAITS]):
        if np.uint64(waits[k, 0]) == address:
            found = k
    if found < 0:
        st.count[ps.C_UNMATCHED_LOCK] += 1
        return
    begin = waits[found, 1]
    t[ps.S_WAITS] = found  # what was open above it has lost its end
    _lock_row(st, slot, address, waits[found, 2], ps.MODE_SPAN, begin, now - begin, -1)
    if found == 0:  # spans inside spans are part of them
        if t[ps.S_FAULT]:
            t[ps.S_FAULT_CONTENTION] += now - max(begin, t[ps.S_FAULT_NS])
        if t[ps.S_CALL]:
            t[ps.S_CALL_CONTENTION] += now - max(begin, t[ps.S_CALL_NS])


@njit
def _drop_hold(t: Any, holds: Any, at: int) -> None:
    for k in range(at, t[ps.S_HOLDS] - 1):
        for j in range(ps.HOLD_SIZE):
            holds[k, j] = holds[k + 1, j]
    t[ps.S_HOLDS] -= 1


@njit
def mmap_lock(st: Any, slot: int, role: int, arg: Any, now: int) -> None:
    """mmap_lock:*, by (thread, mm): IMPORT §4.1."""
    t = st.threads[slot]
    holds = st.holds[slot]
    mm = np.int64(arg[0])
    write = 1 if arg[1] else 0
    found = -1
    for k in range(t[ps.S_HOLDS]):
        if holds[k, 0] == mm:
            found = k
    if role == ev.MMAP_LOCK_RELEASED:
        if found < 0 or holds[found, 2] < 0:
            st.count[ps.C_UNMATCHED_LOCK] += 1
            return
        begin = holds[found, 1]
        taken = holds[found, 2]
        mode = ps.MODE_WRITE if holds[found, 3] else ps.MODE_READ
        _lock_row(st, slot, np.uint64(mm), 0, mode, begin, taken - begin, now - taken)
        _drop_hold(t, holds, found)
        return
    if role == ev.MMAP_LOCK_ACQUIRED:
        if not arg[2]:
            st.count[ps.C_TRYLOCK_FAILED] += 1
            if found >= 0 and holds[found, 2] < 0:
                _drop_hold(t, holds, found)
            return
        if found >= 0 and holds[found, 2] < 0:
            holds[found, 2] = now
            holds[found, 3] = write
            gap = (now - holds[found, 1]) // ps.BIN_NS
            if gap < ps.BINS:
                st.histogram[0, gap] += 1
            return
        if found >= 0 and holds[found, 3] and not write:  # downgrade: the write hold ends here
            begin = holds[found, 1]
            taken = holds[found, 2]
            _lock_row(st, slot, np.uint64(mm), 0, ps.MODE_WRITE, begin, taken - begin, now - taken)
            holds[found, 1] = now
            holds[found, 2] = now
            holds[found, 3] = 0
            return
        # no start: a trylock
    if found < 0:
        if t[ps.S_HOLDS] >= ps.STACK:
            st.count[ps.C_UNMATCHED_LOCK] += 1
            return
        found = t[ps.S_HOLDS]
        t[ps.S_HOLDS] += 1
    else:
        st.count[ps.C_UNMATCHED_LOCK] += 1  # the earlier hold has lost its end
    holds[found, 0] = mm
    holds[found, 1] = now
    holds[found, 2] = now if role == ev.MMAP_LOCK_ACQUIRED else -1
    holds[found, 3] = write


@njit
def mapping(st: Any, t: Any, arg: Any, now: int, mark: int) -> None:
    """A MMAP or MMAP2 record: one known VMA."""
    start, length = arg[0], arg[1]
    if length == 0 or start + length < start or start >= np.uint64(1 << 63):
        return
    proc = t[ps.S_PROC]
    space = st.procs[proc, ps.P_SPACE]
    source = 2
    if mark & ev.SYNTHETIC:
        source = 0
    elif st.procs[proc, ps.P_EXECUTING]:
        source = 1
    row = st.count[ps.C_VMAS]
    st.count[ps.C_VMAS] += 1
    out = st.vmas[row]
    out[ps.V_SPACE] = space
    out[ps.V_NS] = now
    out[ps.V_START] = np.int64(start)
    out[ps.V_LENGTH] = np.int64(length)
    out[ps.V_PROT_FLAGS] = np.int64(arg[3])
    out[ps.V_OFFSET] = np.int64(arg[2])
    out[ps.V_INODE] = np.int64(arg[4])
    out[ps.V_DEVICE] = np.int64(arg[5])
    out[ps.V_NAME] = np.int64(arg[6])
    out[ps.V_SOURCE] = source
    st.spaces[space, ps.A_MAPPED] += 1
    st.spaces[space, ps.A_HIGHEST] = max(
        st.spaces[space, ps.A_HIGHEST], np.int64(start + length - np.uint64(1))
    )
