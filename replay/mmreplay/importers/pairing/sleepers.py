"""Who sleeps for an address space's lock, and in whose think time the wake-up lies.

A fault's recorded end (the software event, mm/memory.c:mm_account_fault@6.18) comes before the
kernel drops the lock, so where the drop wakes a sleeping waiter, waking it (up to a virtual
machine's exit for the interrupt) lies in the think time behind the fault.  Found is it by the
waiter's switches: the first think time behind a fault of another thread that begins while the
waiter is away, or began just before it had left its CPU, is the waker's.  The waiter is in a call:
a fault waits for those that hold the lock for writing, and they drop it in calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers.pairing import state as ps
from mmreplay.importers.syscalls import CALL_KIND
from mmreplay.jit import borrowing_helper
from mmreplay.schema import OpKind

_CLONE = np.int64(int(OpKind.CLONE))
_VFORK = np.int64(int(OpKind.VFORK))
_EXEC = np.int64(int(OpKind.EXEC))
_MSYNC = np.int64(int(OpKind.MSYNC))
_MADVISE = np.int64(int(OpKind.MADVISE))
_PROCESS_MADVISE = np.int64(int(OpKind.PROCESS_MADVISE))
_WILLNEED, _PAGEOUT = np.int64(3), np.int64(21)  # MADV_*: these sleep for I/O
#: So long ago a fault may have ended when the waiter that it wakes leaves its CPU: it was queued
#: then, and on its way (0.3 to 3.3 us, 2-vCPU guest, 6.18).  With no bound think times would be
#: taken the sooner the longer they are.
_LEAVING_NS = np.int64(5_000)
#: A_SLEEP_ON of a waiter that is still away.
_AWAY = np.int64((1 << 63) - 1)
#: Think times that there must be of either sort before one is taken for longer.
LEAST = 30


@borrowing_helper
def _space_of(a: Any, t: Any) -> Any:
    return ps.spaces_at(a, a[ps.procs_at(a, a[t + ps.S_PROC]) + ps.P_SPACE])


@borrowing_helper
def falls_asleep(a: Any, t: Any, now: Any) -> None:
    """The thread is blocked; inside a call that means: for a lock, where no I/O does."""
    if a[t + ps.S_CALL] == 0 or a[t + ps.S_FAULT]:
        return
    kind = CALL_KIND[a[t + ps.S_CALL] - 1]
    if kind == _CLONE or kind == _VFORK or kind == _EXEC or kind == _MSYNC:
        return
    advice = a[t + ps.S_CALL_FLAGS]
    advises = kind == _MADVISE or kind == _PROCESS_MADVISE
    if advises and (advice == _WILLNEED or advice == _PAGEOUT):
        return
    at = _space_of(a, t)
    a[at + ps.A_SLEEPER] = a[t + ps.S_TID]
    a[at + ps.A_SLEEP_SINCE] = a[t + ps.S_CALL_NS]
    a[at + ps.A_SLEEP_OFF] = now
    a[at + ps.A_SLEEP_ON] = _AWAY


@borrowing_helper
def wakes_up(a: Any, t: Any, now: Any) -> None:
    """The thread is on a CPU again."""
    at = _space_of(a, t)
    if a[at + ps.A_SLEEPER] == a[t + ps.S_TID] and a[at + ps.A_SLEEP_ON] == _AWAY:
        a[at + ps.A_SLEEP_ON] = now


@borrowing_helper
def call_ends(a: Any, t: Any, now: Any) -> None:
    """A call drops the lock before it returns: whom it wakes nobody else does."""
    at = _space_of(a, t)
    if a[at + ps.A_SLEEPER] != a[t + ps.S_TID] and a[at + ps.A_SLEEP_OFF] <= now:
        a[at + ps.A_SLEEPER] = 0


@borrowing_helper
def thought(a: Any, t: Any, now: Any) -> Any:
    """Whether the think time that ends now, behind a fault, held waking a waiter; counts it."""
    end = a[t + ps.S_FAULT_END]
    a[t + ps.S_FAULT_END] = 0
    if end == 0 or a[t + ps.S_PRE_KNOWN] == 0:
        return 0
    at = _space_of(a, t)
    woke = 0
    if a[at + ps.A_SLEEPER] != 0 and a[at + ps.A_SLEEPER] != a[t + ps.S_TID]:
        own = a[at + ps.A_SLEEP_SINCE] <= end < a[at + ps.A_SLEEP_ON]
        if own and end + _LEAVING_NS >= a[at + ps.A_SLEEP_OFF] and a[at + ps.A_SLEEP_OFF] <= now:
            woke = 1
            a[at + ps.A_SLEEPER] = 0
    place = min(a[t + ps.S_PRE_CPU] // ps.BIN_NS, ps.BINS - 1)
    a[a[ps.B_THOUGHT] + woke * ps.BINS + place] += 1
    return woke


def waking_ns(thought: NDArray[np.int64]) -> int:
    """What waking a waiter takes its waker, in ns: the difference of two medians.

    ``thought`` (2, BINS): think times behind faults without and with a wake-up, in bins of
    BIN_NS.  0 where there are fewer than LEAST of either.
    """
    totals = thought.sum(axis=1)
    if totals.min() < LEAST:
        return 0
    usual, waking = (
        int(np.searchsorted(np.cumsum(row), (total + 1) // 2))
        for row, total in zip(thought, totals, strict=True)
    )
    return max(0, waking - usual) * ps.BIN_NS
