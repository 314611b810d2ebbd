"""Compiled queues of the threads inside futex calls: a chain per bucket, in the order of entry."""

from __future__ import annotations

from typing import Any

from mmreplay.importers.pairing import state as ps
from mmreplay.jit import borrowing_helper


@borrowing_helper
def bucket_of(a: Any, key: Any) -> Any:
    """Where the first and the last thread of the key's bucket are."""
    return a[ps.B_FUTEXES] + 2 * (key & (ps.FUTEX_BUCKETS - 1))


@borrowing_helper
def queue(a: Any, slot: Any) -> None:
    """Put the thread at the end of its key's bucket."""
    t = ps.threads_at(a, slot)
    bucket = bucket_of(a, a[t + ps.S_FUTEX_KEY])
    last = a[bucket + 1]
    a[t + ps.S_FUTEX_NEXT] = 0
    a[t + ps.S_FUTEX_BEFORE] = last
    if last:
        a[ps.threads_at(a, last - 1) + ps.S_FUTEX_NEXT] = slot + 1
    else:
        a[bucket] = slot + 1
    a[bucket + 1] = slot + 1


@borrowing_helper
def unqueue(a: Any, slot: Any) -> None:
    """Take the thread out of its key's bucket."""
    t = ps.threads_at(a, slot)
    bucket = bucket_of(a, a[t + ps.S_FUTEX_KEY])
    before, following = a[t + ps.S_FUTEX_BEFORE], a[t + ps.S_FUTEX_NEXT]
    if before:
        a[ps.threads_at(a, before - 1) + ps.S_FUTEX_NEXT] = following
    else:
        a[bucket] = following
    if following:
        a[ps.threads_at(a, following - 1) + ps.S_FUTEX_BEFORE] = before
    else:
        a[bucket + 1] = before


@borrowing_helper
def futex_leave(a: Any, slot: Any) -> None:
    """The thread is in no futex call any more."""
    t = ps.threads_at(a, slot)
    kind = a[t + ps.S_FUTEX]
    if kind == ps.FUTEX_WAITS or kind == ps.FUTEX_WAKES:
        unqueue(a, slot)
    a[t + ps.S_FUTEX] = ps.FUTEX_NONE
