"""Compiled rules of wake-ups: which one ends a wait for another thread.

``docs/import.md`` tells them.  A wake-up counts where its waker is a thread of the
recording, awake between two operations, and the woken is blocked between two operations.
Waits inside operations are for locks and I/O, which the replay makes itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers import events as ev
from mmreplay.importers.pairing import state as ps
from mmreplay.jit import borrowing_helper

_IN_INTERRUPT = np.int64(ev.IN_INTERRUPT)
_UNKNOWN_CONTEXT = np.int64(ev.UNKNOWN_CONTEXT)


def counters(count: NDArray[np.int64]) -> dict[str, int]:
    """What became of wake-ups that found somebody blocked, by the names of the header."""
    return {
        "wakeups_from_interrupts": int(count[ps.C_WAKE_INTERRUPT]),
        "wakeups_inside_operations": int(count[ps.C_WAKE_INSIDE]),
        "wakeups_of_kernel_locks": int(count[ps.C_WAKE_LOCK]),
        "wakeups_without_fault_ends": int(count[ps.C_WAKE_UNTOLD]),
        "wakeups_of_unknown_context": int(count[ps.C_WAKE_UNCLEAR]),
        "wakeups_by_ended_threads": int(count[ps.C_FUTEX_JOINS]),
        "futex_requeues_without_addresses": int(count[ps.C_FUTEX_BLIND]),
        "futex_waits_without_waker": int(count[ps.C_FUTEX_UNKNOWN]),
    }


@borrowing_helper
def waking(a: Any, t: Any, woken: Any, flags: Any, now: Any) -> None:
    """Thread ``t`` (an interrupt on its CPU, by ``flags``) wakes thread id ``woken``."""
    if woken <= 0 or woken >= ps.MAX_TID:
        return
    slot = ps.tid_find(a, woken)
    if slot < 0:
        return
    o = ps.threads_at(a, slot)
    if a[o + ps.S_STATE] != ps.ALIVE or a[o + ps.S_RUN] != ps.BLOCKED or a[o + ps.S_WAKE_NS] > 0:
        return
    if flags & _IN_INTERRUPT:
        a[ps.C_WAKE_INTERRUPT] += 1
    elif a[o + ps.S_FAULT] or a[o + ps.S_CALL] or a[t + ps.S_FAULT] or a[t + ps.S_CALL]:
        a[ps.C_WAKE_INSIDE] += 1
    elif a[o + ps.S_WAITS]:
        a[ps.C_WAKE_LOCK] += 1
    elif a[ps.C_STARTS] and not a[ps.C_ENDS] and not a[ps.C_SPANS]:
        a[ps.C_WAKE_UNTOLD] += 1  # it may have waited inside a fault, whose end is not known
    else:
        if flags & _UNKNOWN_CONTEXT:
            a[ps.C_WAKE_UNCLEAR] += 1
        a[o + ps.S_WAKE_NS] = now
        a[o + ps.S_WAKER] = a[t + ps.S_TID]
        a[o + ps.S_WAKER_ROW] = a[t + ps.S_ROW]
        a[o + ps.S_WAKER_CPU] = a[t + ps.S_PRE_CPU]
        a[o + ps.S_WAKER_EVENTS] = a[t + ps.S_PRE_EVENTS]
        a[o + ps.S_WAKER_BLOCKED] = a[t + ps.S_PRE_BLOCKED]
