"""Compiled twin of ``bravo.py``; see there.

What an instance has for its bias lies from ``m[r + I_MORE]`` on: ``B_*``, the number of
published readers by kind of operation, and for every thread its slot plus one, or 0.
"""
# ruff: noqa: F403, F405

from __future__ import annotations

import numpy as np

from mmreplay.engine.kinds.base_jit import *
from mmreplay.engine.kinds.bravo import SCAN_PS
from mmreplay.engine.kinds.range_jit import add_shares, book_charges, no_charges
from mmreplay.engine.kinds.rwsem_jit import is_open, rwsem_lock_slow, rwsem_take
from mmreplay.engine.layout import *
from mmreplay.engine.setup import GOLDEN, MIX1, MIX2
from mmreplay.jit import borrowing_helper

U1, U2, UG = np.uint64(MIX1), np.uint64(MIX2), np.uint64(GOLDEN)
U30, U27, U31 = np.uint64(30), np.uint64(27), np.uint64(31)
READ = 0


@borrowing_helper
def mix(x):  # type: ignore[no-untyped-def]
    x = (x ^ (x >> U30)) * U1
    x = (x ^ (x >> U27)) * U2
    return x ^ (x >> U31)


@borrowing_helper
def is_published(m, r, t):  # type: ignore[no-untyped-def]
    return m[m[r + I_MORE] + B_BY_KIND + m[H_KINDS] + t] != 0


@borrowing_helper
def bravo_publish(m, r, d, t):  # type: ignore[no-untyped-def]
    """The second half of Bravo.publish; False: the slot is taken."""
    obj = (r - m[d + D_INST]) // m[H_ISIZE]
    lock = mix(np.uint64((m[r + I_LOCK] << 32) | obj))
    slot = np.int64(mix(lock ^ (np.uint64(t) * UG)) % np.uint64(m[d + D_BRAVO]))
    if m[m[H_VISIBLE] + slot]:
        return False
    more = m[r + I_MORE]
    m[m[H_VISIBLE] + slot] = 1
    m[more + B_BY_KIND + m[H_KINDS] + t] = slot + 1
    m[more + B_BY_KIND + m[HEADER + t * TF + T_KIND]] += 1
    m[more + B_PUBLISHED] += 1
    return True


@borrowing_helper
def bravo_lock(m, r, d, t, mode, tries, at_ns):  # type: ignore[no-untyped-def]
    """Rwsem.lock and try_lock where readers may be biased.

    Returns when it is held; -1: the thread waits; less, where it ``tries``: it does not
    get it, at the complement (``~``) of the time.
    """
    line, cpu = m[r + I_LINE], m[HEADER + t * TF + T_CPU]
    more = m[r + I_MORE]
    if mode == READ and m[more + B_BIASED]:
        at_ns = line_read(m, line, cpu, at_ns)
        if bravo_publish(m, r, d, t):
            return at_ns + m[H_ATOMIC]
    opens = is_open(m, r, mode)
    if tries and (not opens or (mode != READ and m[more + B_PUBLISHED])):
        return ~line_read(m, line, cpu, at_ns)
    at_ns = line_rmw(m, line, cpu, at_ns)
    if opens:
        rwsem_take(m, r, t, mode, at_ns)
        return at_ns
    return rwsem_lock_slow(m, r, line, t, mode, at_ns)


@borrowing_helper
def bravo_withdraw(m, r, t, at_ns):  # type: ignore[no-untyped-def]
    """Bravo.withdraw."""
    b = HEADER + t * TF
    kinds = m[H_KINDS]
    more = m[r + I_MORE]
    writer = m[more + B_REVOKER]
    if writer >= 0:
        span = m[H_NOW] - m[more + B_CHARGED]
        m[more + B_CHARGED] = m[H_NOW]
        charges = m[H_SNAP] + writer * (kinds + 1)
        add_shares(m, charges, span, m[more + B_PUBLISHED], more + B_BY_KIND)
    own = more + B_BY_KIND + kinds + t
    m[m[H_VISIBLE] + m[own] - 1] = 0
    m[own] = 0
    m[more + B_BY_KIND + m[b + T_KIND]] -= 1
    m[more + B_PUBLISHED] -= 1
    if writer >= 0 and m[more + B_PUBLISHED] == 0:
        w = HEADER + writer * TF
        book_charges(m, m[r + I_LOCK], writer)
        m[w + T_GRANTED] = m[H_NOW]
        if m[w + T_CPU] >= 0:
            sooner(m, writer, at_ns + distance(m, m[b + T_CPU], m[w + T_CPU]))


@borrowing_helper
def bravo_locked(m, r, t, mode, at_ns):  # type: ignore[no-untyped-def]
    """Bravo.locked; -1: the writer reads the table, and looks then."""
    b = HEADER + t * TF
    d = m[H_LOCK] + m[r + I_LOCK] * DF
    more = m[r + I_MORE]
    if mode == READ:
        if not m[more + B_BIASED] and not is_published(m, r, t):
            if at_ns >= m[more + B_INHIBIT_UNTIL]:
                m[more + B_BIASED] = 1
                at_ns = line_write(m, m[r + I_LINE], m[b + T_CPU], at_ns, 0)
        return at_ns
    if not m[more + B_BIASED]:
        return at_ns
    m[more + B_BIASED] = 0
    m[more + B_BEGAN] = at_ns
    scanned = line_write(m, m[r + I_LINE], m[b + T_CPU], at_ns, 0)
    scanned += m[d + D_BRAVO] * SCAN_PS // 1000
    if m[more + B_PUBLISHED] == 0:
        m[more + B_INHIBIT_UNTIL] = scanned + m[d + D_INHIBIT] * (scanned - at_ns)
        return scanned
    m[b + T_WAIT_INST] = r
    m[b + T_BUSY] += scanned - m[H_NOW]
    at(m, t, REVOKE, scanned)
    return -1


@borrowing_helper
def bravo_event(m, r, t):  # type: ignore[no-untyped-def]
    """Bravo.event: when the writer goes on, or -1."""
    b = HEADER + t * TF
    more = m[r + I_MORE]
    now = m[H_NOW]
    if m[more + B_PUBLISHED]:
        if m[more + B_REVOKER] < 0:
            m[more + B_REVOKER] = t
            m[b + T_MODE] = 1
            m[b + T_WAIT_FROM] = now
            m[more + B_CHARGED] = now
            no_charges(m, t)
        spin_on(m, t, REVOKE)
        return -1
    if m[more + B_REVOKER] == t:
        m[more + B_REVOKER] = -1
        end_wait(m, r, t, True)
    d = m[H_LOCK] + m[r + I_LOCK] * DF
    m[more + B_INHIBIT_UNTIL] = now + m[d + D_INHIBIT] * (now - m[more + B_BEGAN])
    return now
