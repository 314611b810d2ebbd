"""Compiled twin of ``rwsem.py``; see there.

``r`` is the base of the instance's record, ``line`` its cache line.  Functions that
end a wait return when the lock is held, or -1.
"""
# ruff: noqa: F403, F405

from __future__ import annotations

from mmreplay.engine.kinds.base_jit import *
from mmreplay.engine.layout import *
from mmreplay.jit import borrowing_helper, inlined_helper

READ, WRITE = 0, 1
SAW_NOTHING, SAW_READER, SAW_WRITER = 0, 1, 2


@borrowing_helper
def take_read(m, r, kind, at_ns):  # type: ignore[no-untyped-def]
    add_reader(m, r, kind)
    if not m[r + I_ROWNED]:
        m[r + I_ROWNED] = 1
        notify_spinner(m, r, at_ns)


@inlined_helper
def take_write(m, r, t):  # type: ignore[no-untyped-def]
    set_writer(m, r, t)
    m[r + I_ROWNED] = 0
    m[r + I_NONSPIN] = 0
    b = HEADER + t * TF
    m[owned_by(m, t) + m[b + T_OWNED]] = r
    m[b + T_OWNED] += 1


@inlined_helper
def rwsem_take(m, r, t, mode, at_ns):  # type: ignore[no-untyped-def]
    """The fast path of an open lock."""
    if mode == WRITE:
        take_write(m, r, t)
    else:
        take_read(m, r, m[HEADER + t * TF + T_KIND], at_ns)


@borrowing_helper
def disown(m, r, t):  # type: ignore[no-untyped-def]
    b = HEADER + t * TF
    n = m[b + T_OWNED]
    owned = owned_by(m, t)
    k = 0
    while k < n and m[owned + k] != r:
        k += 1
    while k < n - 1:
        m[owned + k] = m[owned + k + 1]
        k += 1
    m[b + T_OWNED] = n - 1


@inlined_helper
def is_open(m, r, mode):  # type: ignore[no-untyped-def]
    """The fast paths' test."""
    return m[r + I_WRITER] < 0 and m[r + I_Q_HEAD] < 0 and (mode == READ or m[r + I_READERS] == 0)


@borrowing_helper
def q_remove(m, r, t):  # type: ignore[no-untyped-def]
    th = HEADER
    nxt = m[th + t * TF + T_Q_NEXT]
    u = m[r + I_Q_HEAD]
    if u == t:
        m[r + I_Q_HEAD] = nxt
        if nxt < 0:
            m[r + I_Q_TAIL] = -1
        return
    while m[th + u * TF + T_Q_NEXT] != t:
        u = m[th + u * TF + T_Q_NEXT]
    m[th + u * TF + T_Q_NEXT] = nxt
    if nxt < 0:
        m[r + I_Q_TAIL] = u


@borrowing_helper
def mark_wake(m, r, waker, at_ns, read_owned, any_):  # type: ignore[no-untyped-def]
    th = HEADER
    head = m[r + I_Q_HEAD]
    d = m[H_LOCK] + m[r + I_LOCK] * DF
    hb = th + head * TF
    if m[hb + T_MODE] == WRITE:
        if read_owned or not any_ or m[hb + T_PENDING]:
            return at_ns
        m[hb + T_PENDING] = 1
        return wake_up(m, head, RETRY, at_ns)
    if m[r + I_WRITER] >= 0:
        late = m[H_NOW] - m[hb + T_QUEUED] > m[d + D_HANDOFF_NS]
        if late and not m[r + I_HANDOFF]:
            m[r + I_HANDOFF] = 1
            stat(m, m[r + I_LOCK], S_HANDOFFS, 1)
        return at_ns
    m[r + I_HANDOFF] = 0
    # take the readers out of the queue into a chain of their own
    first = -1
    last = -1
    granted = 0
    previous = -1
    u = head
    while u >= 0 and granted < m[d + D_BATCH]:
        nxt = m[th + u * TF + T_Q_NEXT]
        if m[th + u * TF + T_MODE] == READ:
            if previous < 0:
                m[r + I_Q_HEAD] = nxt
            else:
                m[th + previous * TF + T_Q_NEXT] = nxt
            if nxt < 0:
                m[r + I_Q_TAIL] = previous
            m[th + u * TF + T_Q_NEXT] = -1
            if first < 0:
                first = u
            else:
                m[th + last * TF + T_Q_NEXT] = u
            last = u
            granted += 1
        else:
            previous = u
        u = nxt
    u = first
    while u >= 0:
        leave(m, r, u)
        take_read(m, r, m[th + u * TF + T_KIND], at_ns)
        u = m[th + u * TF + T_Q_NEXT]
    u = first
    while u >= 0:
        nxt = m[th + u * TF + T_Q_NEXT]
        if u == waker:
            m[th + u * TF + T_STATE] = GRANTED
        else:
            at_ns = wake_up(m, u, GRANTED, at_ns)
        u = nxt
    return at_ns


@borrowing_helper
def fall_asleep(m, r, t, at_ns):  # type: ignore[no-untyped-def]
    b = HEADER + t * TF
    m[b + T_AWAKE] = at_ns
    m[b + T_WAIT_INST] = r
    at(m, t, FALL, at_ns + m[H_FALL])


@borrowing_helper
def try_write_lock(m, r, t, at_ns):  # type: ignore[no-untyped-def]
    b = HEADER + t * TF
    lock = m[r + I_LOCK]
    m[b + T_WAIT_INST] = r
    first = m[r + I_Q_HEAD] == t
    free = m[r + I_WRITER] < 0 and m[r + I_READERS] == 0
    if free and (first or not m[r + I_HANDOFF]):
        if not first:
            stat(m, lock, S_STEALS, 1)
        q_remove(m, r, t)
        if first:
            m[r + I_HANDOFF] = 0
        leave(m, r, t)
        take_write(m, r, t)
        at(m, t, GRANTED, at_ns)
        return
    waited = m[H_NOW] - m[b + T_QUEUED]
    limit = m[m[H_LOCK] + lock * DF + D_HANDOFF_NS]
    if first and not free and not m[r + I_HANDOFF] and waited > limit:
        m[r + I_HANDOFF] = 1
        stat(m, lock, S_HANDOFFS, 1)
    owner = m[r + I_WRITER]
    spins = m[r + I_HANDOFF] and first and owner >= 0 and m[HEADER + owner * TF + T_CPU] >= 0
    if spins and not need_resched(m, t):
        at(m, t, HANDOFF_SPIN, NEVER)
    else:
        fall_asleep(m, r, t, at_ns)


@borrowing_helper
def queue(m, r, line, t, at_ns):  # type: ignore[no-untyped-def]
    th = HEADER
    b = th + t * TF
    m[b + T_PENDING] = 0
    m[b + T_QUEUED] = m[H_NOW]
    m[b + T_WAIT_INST] = r
    first = m[r + I_Q_HEAD] < 0
    m[b + T_Q_NEXT] = -1
    if first:
        m[r + I_Q_HEAD] = t
    else:
        m[th + m[r + I_Q_TAIL] * TF + T_Q_NEXT] = t
    m[r + I_Q_TAIL] = t
    at_ns = line_rmw(m, line, m[b + T_CPU], at_ns)
    m[b + T_STATE] = FALL
    if (m[b + T_MODE] == READ or not first) and m[r + I_WRITER] < 0:
        if m[r + I_READERS]:
            at_ns = mark_wake(m, r, t, at_ns, False, False)
        else:
            m[r + I_NONSPIN] = 0
            at_ns = mark_wake(m, r, t, at_ns, False, True)
        if m[b + T_STATE] == GRANTED:
            set_time(m, t, at_ns)
            return
    if m[b + T_MODE] == WRITE:
        try_write_lock(m, r, t, at_ns)
    else:
        fall_asleep(m, r, t, at_ns)


@borrowing_helper
def can_spin(m, r, t):  # type: ignore[no-untyped-def]
    if m[r + I_NONSPIN] or need_resched(m, t):
        return False
    owner = m[r + I_WRITER]
    return owner < 0 or m[HEADER + owner * TF + T_CPU] >= 0


@borrowing_helper
def join_osq(m, r, t, at_ns):  # type: ignore[no-untyped-def]
    b = HEADER + t * TF
    m[b + T_WAIT_INST] = r
    m[b + T_SAW] = SAW_NOTHING
    m[b + T_ENTRY] = m[r + I_ROWNED]
    m[b + T_OSQ_NEXT] = -1
    if m[r + I_OSQ_HEAD] < 0:
        m[r + I_OSQ_HEAD] = t
        m[r + I_OSQ_TAIL] = t
        at(m, t, SPIN, at_ns + m[H_POLL])
    else:
        m[HEADER + m[r + I_OSQ_TAIL] * TF + T_OSQ_NEXT] = t
        m[r + I_OSQ_TAIL] = t
        at(m, t, OSQ, max(at_ns, m[b + T_SLICE_END]))


@borrowing_helper
def leave_osq(m, r, t, at_ns):  # type: ignore[no-untyped-def]
    th = HEADER
    nxt = m[th + t * TF + T_OSQ_NEXT]
    if m[r + I_OSQ_HEAD] == t:
        m[r + I_OSQ_HEAD] = nxt
        if nxt < 0:
            m[r + I_OSQ_TAIL] = -1
        else:
            at(m, nxt, SPIN, at_ns + m[H_POLL])
        return
    u = m[r + I_OSQ_HEAD]
    while m[th + u * TF + T_OSQ_NEXT] != t:
        u = m[th + u * TF + T_OSQ_NEXT]
    m[th + u * TF + T_OSQ_NEXT] = nxt
    if nxt < 0:
        m[r + I_OSQ_TAIL] = u


@borrowing_helper
def rwsem_lock_slow(m, r, line, t, mode, at_ns):  # type: ignore[no-untyped-def]
    """What follows when the fast path of down_read or down_write failed at ``at_ns``."""
    b = HEADER + t * TF
    d = m[H_LOCK] + m[r + I_LOCK] * DF
    m[b + T_MODE] = mode
    if mode == READ:
        if m[d + D_READER_SPIN]:
            if can_spin(m, r, t):
                enter(m, r, t)
                join_osq(m, r, t, at_ns)
                return -1
        elif m[d + D_STEAL] and m[r + I_WRITER] < 0:
            count = m[r + I_READERS] + 1
            if not (m[r + I_ROWNED] and count > 1) and not m[r + I_HANDOFF]:
                stat(m, m[r + I_LOCK], S_STEALS, 1)
                take_read(m, r, m[b + T_KIND], at_ns)
                if count == 1 and m[r + I_Q_HEAD] >= 0:
                    at_ns = mark_wake(m, r, t, at_ns, True, True)
                return at_ns
        enter(m, r, t)
        queue(m, r, line, t, at_ns)
        return -1
    enter(m, r, t)
    if m[d + D_OSQ] and can_spin(m, r, t):
        join_osq(m, r, t, at_ns)
    else:
        queue(m, r, line, t, at_ns)
    return -1


@borrowing_helper
def rwsem_unlock(m, r, line, t, mode, at_ns):  # type: ignore[no-untyped-def]
    """-1: the wake-up comes as a step of its own, at ``m[H_RET]``."""
    b = HEADER + t * TF
    done = line_rmw(m, line, m[b + T_CPU], at_ns)
    if mode == READ:
        drop_reader(m, r, m[b + T_KIND])
        if m[r + I_READERS]:
            return done
        if m[r + I_Q_HEAD] >= 0:
            m[r + I_NONSPIN] = 0
    else:
        set_writer(m, r, -1)
        disown(m, r, t)
        m[r + I_ROWNED] = 0
        notify_handoff_spinner(m, r, done)
    notify_spinner(m, r, done)
    if m[r + I_Q_HEAD] < 0:
        return done
    m[b + T_WAIT_INST] = r
    m[H_RET] = line_rmw(m, line, m[b + T_CPU], done)
    at(m, t, WAKE, m[H_RET])
    return -1


@borrowing_helper
def rwsem_downgrade(m, r, line, t, at_ns):  # type: ignore[no-untyped-def]
    b = HEADER + t * TF
    done = line_rmw(m, line, m[b + T_CPU], at_ns)
    set_writer(m, r, -1)
    disown(m, r, t)
    add_reader(m, r, m[b + T_KIND])
    m[r + I_ROWNED] = 1
    notify_spinner(m, r, done)
    notify_handoff_spinner(m, r, done)
    if m[r + I_Q_HEAD] >= 0:
        done = mark_wake(m, r, t, done, True, True)
    return done


@borrowing_helper
def reader_takes(m, r, line, t):  # type: ignore[no-untyped-def]
    b = HEADER + t * TF
    done = line_rmw(m, line, m[b + T_CPU], m[H_NOW])
    leave(m, r, t)
    take_read(m, r, m[b + T_KIND], done)
    end_wait(m, r, t, False)
    if m[r + I_Q_HEAD] >= 0:
        done = mark_wake(m, r, t, done, False, False)
    return done


@borrowing_helper
def osq_event(m, r, line, t):  # type: ignore[no-untyped-def]
    b = HEADER + t * TF
    if need_resched(m, t):
        leave_osq(m, r, t, m[H_NOW])
        queue(m, r, line, t, m[H_NOW])
    else:
        m[b + T_SLICE_END] = m[H_NOW] + m[H_SLICE]
        at(m, t, OSQ, m[b + T_SLICE_END])
        stop_if_all_spin(m)


@borrowing_helper
def spin_event(m, r, line, t):  # type: ignore[no-untyped-def]
    """One look of the first spinner; returns when it holds the lock, or -1."""
    b = HEADER + t * TF
    now = m[H_NOW]
    mode = m[b + T_MODE]
    owner = m[r + I_WRITER]
    lock = m[r + I_LOCK]
    if not m[r + I_HANDOFF] and owner < 0 and (mode == READ or m[r + I_READERS] == 0):
        if m[r + I_Q_HEAD] >= 0:
            stat(m, lock, S_STEALS, 1)
        if mode == READ:
            leave_osq(m, r, t, now)
            return reader_takes(m, r, line, t)
        done = line_rmw(m, line, m[b + T_CPU], now)
        leave_osq(m, r, t, done)
        leave(m, r, t)
        take_write(m, r, t)
        end_wait(m, r, t, True)
        return done
    out = need_resched(m, t) or m[r + I_NONSPIN] != 0
    deadline = NEVER
    if not out and owner >= 0:
        m[b + T_SAW] = SAW_WRITER
        out = m[HEADER + owner * TF + T_CPU] < 0
    elif not out and m[r + I_ROWNED]:
        if m[b + T_SAW] != SAW_READER:
            m[b + T_SAW] = SAW_READER
            spin_us = m[m[H_LOCK] + lock * DF + D_SPIN_US]
            window = spin_us * 1000
            if spin_us == 1:
                window = (20 + min(m[r + I_READERS], 30)) * 500
            m[b + T_SPIN_UNTIL] = now + window
        if mode == WRITE:
            deadline = m[b + T_SPIN_UNTIL]
            if now >= deadline:
                m[r + I_NONSPIN] = 1
                out = True
    elif not out:
        m[b + T_SAW] = SAW_NOTHING
    if out:
        leave_osq(m, r, t, now)
        phase = owner < 0 and not m[r + I_HANDOFF] and m[r + I_ROWNED] and not m[b + T_ENTRY]
        if mode == READ and phase:
            return reader_takes(m, r, line, t)
        queue(m, r, line, t, now)
        return -1
    line_read(m, line, m[b + T_CPU], now)
    renewed = m[b + T_SLICE_END] <= now
    if renewed:
        m[b + T_SLICE_END] = now + m[H_SLICE]
    at(m, t, SPIN, min(m[b + T_SLICE_END], deadline))
    if renewed:
        stop_if_all_spin(m)
    return -1
