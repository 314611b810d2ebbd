"""Compiled rules of futexes: whom a wait waited for, told by the calls themselves.

``docs/import.md`` tells the rules.  Threads inside a futex call are chained by the hash of
its address, in the order of their entries: a call that woke n woke the n longest waiting.
Operations of a futex call: include/uapi/linux/futex.h@6.18.  ``futex_wait``, ``futex_wake`` and
``futex_requeue`` are taken for the operations of ``futex`` that do the same.  The addresses that
``futex_waitv`` waits for lie in memory, and no event tells them: such a wait is woken by wake-ups
in its address space that woke more threads than are known to wait for their address.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mmreplay.importers import syscalls as sc
from mmreplay.importers.binary import mix
from mmreplay.importers.pairing import state as ps
from mmreplay.importers.pairing.queue import bucket_of, futex_leave, queue, unqueue
from mmreplay.importers.pairing.thread import account, put_wakeup
from mmreplay.jit import borrowing_helper

(_WAIT, _WAKE, _FD, _REQUEUE, _CMP_REQUEUE, _WAKE_OP, _LOCK_PI, _UNLOCK_PI, _TRYLOCK_PI,
 _WAIT_BITSET, _WAKE_BITSET, _WAIT_REQUEUE_PI, _CMP_REQUEUE_PI, _LOCK_PI2) = range(14)  # fmt: skip
_WAITV: Final = 0x7E  # no operation of futex: what S_FUTEX_OP says of futex_waitv
_COMMAND: Final = 0x7F
_PRIVATE: Final = 0x80
_LOW: Final = 0xFFFF_FFFF
#: In place of an address, of which none is so high: that of futex_waitv is not known.
_ANYWHERE: Final = 2**64 - 8
_MARKS: Final = 6
_MARKED_NS = np.int64(ps.S_MARK_NS)


@borrowing_helper
def _kind_of(command: Any) -> Any:
    if (
        command == _WAIT
        or command == _WAIT_BITSET
        or command == _WAIT_REQUEUE_PI
        or command == _LOCK_PI
        or command == _LOCK_PI2
        or command == _WAITV
    ):
        return ps.FUTEX_WAITS
    if (
        command == _WAKE
        or command == _WAKE_BITSET
        or command == _WAKE_OP
        or command == _UNLOCK_PI
        or command == _REQUEUE
        or command == _CMP_REQUEUE
        or command == _CMP_REQUEUE_PI
    ):
        return ps.FUTEX_WAKES
    return ps.FUTEX_NONE


@borrowing_helper
def _key(a: Any, t: Any, address: Any) -> Any:
    """Of a private and a shared futex at one address of one address space: the same."""
    space = np.uint64(a[ps.procs_at(a, a[t + ps.S_PROC]) + ps.P_SPACE])
    return np.int64(mix(address ^ (space << np.uint64(48))) >> np.uint64(1))


@borrowing_helper
def _mark_self(a: Any, t: Any, now: Any) -> None:
    """Note the thread as it is now: as who wakes."""
    a[t + ps.S_MARK_NS] = now + 1
    a[t + ps.S_MARK_TID] = a[t + ps.S_TID]
    a[t + ps.S_MARK_ROW] = a[t + ps.S_ROW]
    a[t + ps.S_MARK_CPU] = a[t + ps.S_PRE_CPU]
    a[t + ps.S_MARK_EVENTS] = a[t + ps.S_PRE_EVENTS]
    a[t + ps.S_MARK_BLOCKED] = a[t + ps.S_PRE_BLOCKED]


@borrowing_helper
def _mark(a: Any, o: Any, w: Any) -> None:
    """Thread ``o`` was woken by whom ``w`` is marked with."""
    for k in range(_MARKS):
        a[o + _MARKED_NS + k] = a[w + _MARKED_NS + k]


@borrowing_helper
def _operation(call: Any, flags: Any) -> Any:
    """Operation and flags of futex for any of the calls; FUTEX2_PRIVATE is FUTEX_PRIVATE_FLAG."""
    if call == sc.C_FUTEX_WAKE:
        return _WAKE_BITSET | flags & _PRIVATE
    if call == sc.C_FUTEX_WAIT:
        return _WAIT_BITSET | flags & _PRIVATE
    if call == sc.C_FUTEX_REQUEUE:
        return _CMP_REQUEUE | flags & _PRIVATE
    if call == sc.C_FUTEX_WAITV:
        return np.int64(_WAITV | _PRIVATE)
    return flags


@borrowing_helper
def futex_enter(a: Any, slot: Any, call: Any, arg: Any, i: Any, now: Any) -> None:
    """A thread makes a call of futexes."""
    t = ps.threads_at(a, slot)
    futex_leave(a, slot)
    op = _operation(call, np.int64(arg[i, sc.FLAGS]))
    kind = _kind_of(op & _COMMAND)
    if kind == ps.FUTEX_NONE:
        return
    if a[ps.C_WAKINGS] or not a[ps.C_FUTEXES]:
        if kind == ps.FUTEX_WAKES:  # the scheduler's own event tells it
            return
        kind = ps.FUTEX_JOINS
    if call == sc.C_FUTEX_REQUEUE and arg[i, sc.ADDRESS] == 0:
        a[ps.C_FUTEX_BLIND] += 1  # its addresses lie in memory: whom it woke or moved is not told
        return
    a[t + ps.S_FUTEX] = kind
    a[t + ps.S_FUTEX_OP] = op
    address = arg[i, sc.ADDRESS]
    if call == sc.C_FUTEX_WAITV:
        address = np.uint64(_ANYWHERE)
    a[t + ps.S_FUTEX_KEY] = _key(a, t, address)
    a[t + ps.S_FUTEX_KEY2] = _key(a, t, arg[i, sc.ADDRESS2])
    a[t + ps.S_FUTEX_VALUE] = np.int64(arg[i, sc.LENGTH]) & _LOW
    a[t + ps.S_FUTEX_VALUE2] = np.int64(arg[i, sc.LENGTH2]) & _LOW
    command = op & _COMMAND
    bits = np.int64(_LOW)
    if command == _WAIT_BITSET or command == _WAKE_BITSET:
        bits = np.int64(arg[i, sc.PROT]) & _LOW
    a[t + ps.S_FUTEX_BITS] = bits
    a[t + ps.S_FUTEX_NS] = now
    a[t + ps.S_FUTEX_GIVEN] = 0
    a[t + ps.S_NAP_ON] = 0
    if kind == ps.FUTEX_WAKES:
        _mark_self(a, t, now)
    else:
        a[t + ps.S_MARK_NS] = 0
        a[t + ps.S_NAP_OFF] = now
        a[t + ps.S_NAP_ROW] = a[t + ps.S_ROW]
        a[t + ps.S_NAP_CPU] = a[t + ps.S_PRE_CPU]
        a[t + ps.S_NAP_EVENTS] = a[t + ps.S_PRE_EVENTS]
        a[t + ps.S_NAP_BLOCKED] = a[t + ps.S_PRE_BLOCKED]
    if kind != ps.FUTEX_JOINS:
        queue(a, slot)


@borrowing_helper
def _give(a: Any, w: Any, key: Any, count: Any) -> Any:
    """Mark the ``count`` longest waiting with whom ``w`` is marked; returns how many too few."""
    slot = a[bucket_of(a, key)]
    while slot and count > 0:
        o = ps.threads_at(a, slot - 1)
        if (
            a[o + ps.S_FUTEX] == ps.FUTEX_WAITS
            and a[o + ps.S_FUTEX_KEY] == key
            and a[o + ps.S_MARK_NS] == 0
            and a[o + ps.S_FUTEX_BITS] & a[w + ps.S_FUTEX_BITS]
        ):
            _mark(a, o, w)
            count -= 1
        slot = a[o + ps.S_FUTEX_NEXT]
    return count


@borrowing_helper
def _give_anywhere(a: Any, w: Any, count: Any) -> None:
    """Mark ``count`` of those of whom it is not known what they wait for."""
    if count > 0:
        _give(a, w, _key(a, w, np.uint64(_ANYWHERE)), count)


@borrowing_helper
def _requeue(a: Any, w: Any, count: Any) -> None:
    """Let the longest waiting for one address wait for the other."""
    key = a[w + ps.S_FUTEX_KEY]
    slot = a[bucket_of(a, key)]
    while slot and count > 0:
        o = ps.threads_at(a, slot - 1)
        following = a[o + ps.S_FUTEX_NEXT]
        waits = a[o + ps.S_FUTEX] == ps.FUTEX_WAITS and a[o + ps.S_MARK_NS] == 0
        if waits and a[o + ps.S_FUTEX_KEY] == key and key != a[w + ps.S_FUTEX_KEY2]:
            unqueue(a, slot - 1)
            a[o + ps.S_FUTEX_KEY] = a[w + ps.S_FUTEX_KEY2]
            queue(a, slot - 1)
            count -= 1
        slot = following


@borrowing_helper
def _has_woken(a: Any, w: Any, result: Any) -> None:
    """A call that wakes returns: so many were woken, or wait elsewhere now."""
    command = a[w + ps.S_FUTEX_OP] & _COMMAND
    count = result
    if command == _UNLOCK_PI:
        count = np.int64(1) if result == 0 else np.int64(0)
    if count <= 0:
        return
    key, most = a[w + ps.S_FUTEX_KEY], a[w + ps.S_FUTEX_VALUE]
    rest = np.int64(0)
    if command != _WAKE and command != _WAKE_BITSET and command != _UNLOCK_PI:  # two addresses
        rest = max(np.int64(0), count - most)
        count -= rest
    left = _give(a, w, key, count - a[w + ps.S_FUTEX_GIVEN])
    if command == _WAKE_OP:
        left = _give(a, w, a[w + ps.S_FUTEX_KEY2], rest + max(np.int64(0), left))
    elif rest > 0:
        _requeue(a, w, rest)
    if command == _WAKE or command == _WAKE_BITSET or command == _WAKE_OP:
        _give_anywhere(a, w, left)


@borrowing_helper
def _find_waker(a: Any, t: Any) -> None:
    """Who woke a thread that returns unmarked: a call that has not returned yet, else one whose
    wake-up was given to another waiter, who goes on waiting."""
    key = a[t + ps.S_FUTEX_KEY]
    slot = a[bucket_of(a, key)]
    other = np.int64(0)
    while slot:
        w = ps.threads_at(a, slot - 1)
        if a[w + ps.S_FUTEX_KEY] == key:
            if a[w + ps.S_FUTEX] == ps.FUTEX_WAKES:
                if (
                    a[w + ps.S_FUTEX_GIVEN] < max(1, a[w + ps.S_FUTEX_VALUE])
                    and a[w + ps.S_FUTEX_BITS] & a[t + ps.S_FUTEX_BITS]
                ):
                    a[w + ps.S_FUTEX_GIVEN] += 1
                    _mark(a, t, w)
                    return
            elif a[w + ps.S_MARK_NS] > a[t + ps.S_FUTEX_NS] and other == 0:
                other = w
        slot = a[w + ps.S_FUTEX_NEXT]
    if other:
        _mark(a, t, other)
        a[other + ps.S_MARK_NS] = 0


@borrowing_helper
def _find_waker_anywhere(a: Any, t: Any) -> None:
    """The same of a thread of which it is not known what it waited for: the latest call of its
    address space that may have woken it, among all threads."""
    space = a[ps.procs_at(a, a[t + ps.S_PROC]) + ps.P_SPACE]
    found, other = np.int64(0), np.int64(0)
    latest = a[t + ps.S_FUTEX_NS]
    for slot in range(a[ps.C_THREADS]):
        w = ps.threads_at(a, slot)
        if a[w + ps.S_FUTEX] == ps.FUTEX_NONE or w == t:
            continue
        if a[ps.procs_at(a, a[w + ps.S_PROC]) + ps.P_SPACE] != space:
            continue
        if a[w + ps.S_FUTEX] == ps.FUTEX_WAKES:
            if found == 0 or a[w + ps.S_FUTEX_NS] > a[found + ps.S_FUTEX_NS]:
                if a[w + ps.S_FUTEX_GIVEN] < max(1, a[w + ps.S_FUTEX_VALUE]):
                    found = w
        elif a[w + ps.S_MARK_NS] > latest:
            latest, other = a[w + ps.S_MARK_NS], w
    if found:
        a[found + ps.S_FUTEX_GIVEN] += 1
        _mark(a, t, found)
    elif other:
        _mark(a, t, other)
        a[other + ps.S_MARK_NS] = 0


@borrowing_helper
def _find_ended(a: Any, t: Any) -> None:
    """Who joins a thread waits for its id to be cleared, which the kernel does at its end
    (mm_release, kernel/fork.c@6.18): the value waited on is the thread's id."""
    tid = a[t + ps.S_FUTEX_VALUE]
    if a[t + ps.S_FUTEX_OP] & _PRIVATE or tid <= 0 or tid >= ps.MAX_TID:
        return
    slot = ps.tid_find(a, tid)
    if slot < 0:
        return
    w = ps.threads_at(a, slot)
    if w == t or a[w + ps.S_PID] != a[t + ps.S_PID]:
        return
    now = a[ps.C_LAST_NS]
    if a[w + ps.S_STATE] == ps.DEAD:
        if a[w + ps.S_END_NS] < a[t + ps.S_NAP_OFF]:
            return
        now = a[w + ps.S_END_NS]
    elif a[t + ps.S_FUTEX] == ps.FUTEX_JOINS or a[w + ps.S_CALL] or a[w + ps.S_FAULT]:
        return
    else:  # its record of the end comes after the waking
        account(a, w, now)
    for k in range(_MARKS):
        a[t + _MARKED_NS + k] = 0
    a[t + ps.S_MARK_NS] = now + 1
    a[t + ps.S_MARK_TID] = tid
    a[t + ps.S_MARK_ROW] = a[w + ps.S_ROW]
    if a[w + ps.S_STATE] != ps.DEAD:
        a[t + ps.S_MARK_CPU] = a[w + ps.S_PRE_CPU]
        a[t + ps.S_MARK_EVENTS] = a[w + ps.S_PRE_EVENTS]
        a[t + ps.S_MARK_BLOCKED] = a[w + ps.S_PRE_BLOCKED]
    a[ps.C_FUTEX_JOINS] += 1


@borrowing_helper
def _put(a: Any, t: Any) -> None:
    """The row of the wait that the marks tell of."""
    off, on = a[t + ps.S_NAP_OFF], a[t + ps.S_NAP_ON]
    out = a[ps.B_WAKEUPS] + a[ps.C_WAKEUPS] * ps.W_SIZE
    a[ps.C_WAKEUPS] += 1
    a[out + ps.W_TID] = a[t + ps.S_TID]
    a[out + ps.W_OFF] = off
    a[out + ps.W_WAKE] = min(max(off, a[t + ps.S_MARK_NS] - 1), on)
    a[out + ps.W_ON] = on
    a[out + ps.W_ROW] = a[t + ps.S_NAP_ROW] - 1
    a[out + ps.W_CPU] = a[t + ps.S_NAP_CPU]
    a[out + ps.W_EVENTS] = a[t + ps.S_NAP_EVENTS]
    a[out + ps.W_BLOCKED] = a[t + ps.S_NAP_BLOCKED]
    a[out + ps.W_WAKER] = a[t + ps.S_MARK_TID]
    a[out + ps.W_WAKER_ROW] = a[t + ps.S_MARK_ROW] - 1
    a[out + ps.W_WAKER_CPU] = a[t + ps.S_MARK_CPU]
    a[out + ps.W_WAKER_EVENTS] = a[t + ps.S_MARK_EVENTS]
    a[out + ps.W_WAKER_BLOCKED] = a[t + ps.S_MARK_BLOCKED]


@borrowing_helper
def futex_exit(a: Any, slot: Any, result: Any, now: Any) -> None:
    """A thread's futex call returns."""
    t = ps.threads_at(a, slot)
    kind = a[t + ps.S_FUTEX]
    if kind == ps.FUTEX_WAKES:
        futex_leave(a, slot)
        _has_woken(a, t, result)
    elif kind == ps.FUTEX_WAITS:
        unqueue(a, slot)
        vector = a[t + ps.S_FUTEX_OP] & _COMMAND == _WAITV  # its result is which futex it was
        if result < 0 or (result != 0 and not vector):
            if a[t + ps.S_MARK_NS]:  # it was another that was woken
                a[t + ps.S_FUTEX] = ps.FUTEX_NONE
                _give(a, t, a[t + ps.S_FUTEX_KEY], np.int64(1))
        else:
            if a[t + ps.S_MARK_NS] == 0 and vector:
                _find_waker_anywhere(a, t)
            elif a[t + ps.S_MARK_NS] == 0:
                _find_waker(a, t)
            if not a[ps.C_SWITCHES]:  # a wait that was woken has slept
                a[t + ps.S_NAP_ON] = now
            if a[t + ps.S_MARK_NS] == 0 and a[t + ps.S_NAP_ON]:
                _find_ended(a, t)
            if a[t + ps.S_NAP_ON]:
                if a[t + ps.S_MARK_NS]:
                    _put(a, t)
                    if not a[ps.C_SWITCHES]:  # what it waited is no time on a CPU
                        a[t + ps.S_PRE_CPU] = a[t + ps.S_NAP_CPU]
                else:
                    a[ps.C_FUTEX_UNKNOWN] += 1
    a[t + ps.S_FUTEX] = ps.FUTEX_NONE


@borrowing_helper
def joined(a: Any, t: Any, now: Any) -> None:
    """A thread that waits for another's end is back on a CPU, and no event says who woke it."""
    a[t + ps.S_NAP_OFF] = a[t + ps.S_OFF_NS]
    _find_ended(a, t)
    if a[t + ps.S_MARK_NS]:
        a[t + ps.S_WAKE_NS] = max(a[t + ps.S_OFF_NS], min(a[t + ps.S_MARK_NS] - 1, now))
        a[t + ps.S_WAKER] = a[t + ps.S_MARK_TID]
        a[t + ps.S_WAKER_ROW] = a[t + ps.S_MARK_ROW]
        a[t + ps.S_WAKER_CPU] = 0
        a[t + ps.S_WAKER_EVENTS] = 0
        a[t + ps.S_WAKER_BLOCKED] = 0
        put_wakeup(a, t, now)
        a[t + ps.S_FUTEX] = ps.FUTEX_NONE
