"""Compiled twin of ``spin.py``; see there."""
# ruff: noqa: F403, F405

from __future__ import annotations

from mmreplay.engine.kinds.base_jit import *
from mmreplay.engine.layout import *
from mmreplay.jit import borrowing_helper


@borrowing_helper
def spin_wait(m, r, t):  # type: ignore[no-untyped-def]
    b = HEADER + t * TF
    m[b + T_MODE] = 1
    m[b + T_WAIT_INST] = r
    m[b + T_Q_NEXT] = -1
    enter(m, r, t)
    if m[r + I_Q_HEAD] < 0:
        m[r + I_Q_HEAD] = t
    else:
        m[HEADER + m[r + I_Q_TAIL] * TF + T_Q_NEXT] = t
    m[r + I_Q_TAIL] = t
    at(m, t, GRANTED, NEVER)


@borrowing_helper
def spin_give(m, r, line, u, at_ns):  # type: ignore[no-untyped-def]
    taken = line_rmw(m, line, m[HEADER + u * TF + T_CPU], at_ns)
    leave(m, r, u)
    set_writer(m, r, u)
    at(m, u, GRANTED, taken)
    return taken


@borrowing_helper
def spin_give_nearest(m, r, line, cpu, at_ns):  # type: ignore[no-untyped-def]
    """Without order: the waiter whose CPU is nearest to ``cpu``; the others read again."""
    best = before_best = before = -1
    nearest = NEVER
    u = m[r + I_Q_HEAD]
    while u >= 0:
        way = distance(m, cpu, m[HEADER + u * TF + T_CPU])
        if way < nearest:
            nearest = way
            best = u
            before_best = before
        before = u
        u = m[HEADER + u * TF + T_Q_NEXT]
    after = m[HEADER + best * TF + T_Q_NEXT]
    if before_best < 0:
        m[r + I_Q_HEAD] = after
    else:
        m[HEADER + before_best * TF + T_Q_NEXT] = after
    if after < 0:
        m[r + I_Q_TAIL] = before_best
    taken = spin_give(m, r, line, best, at_ns)
    u = m[r + I_Q_HEAD]
    while u >= 0:
        line_read(m, line, m[HEADER + u * TF + T_CPU], taken)
        u = m[HEADER + u * TF + T_Q_NEXT]


@borrowing_helper
def spin_unlock(m, r, line, t, at_ns):  # type: ignore[no-untyped-def]
    done = line_rmw(m, line, m[HEADER + t * TF + T_CPU], at_ns)
    set_writer(m, r, -1)
    if m[r + I_Q_HEAD] >= 0:
        if m[m[H_LOCK] + m[r + I_LOCK] * DF + D_FIFO]:
            u = m[r + I_Q_HEAD]
            m[r + I_Q_HEAD] = m[HEADER + u * TF + T_Q_NEXT]
            spin_give(m, r, line, u, done)
        else:
            spin_give_nearest(m, r, line, m[HEADER + t * TF + T_CPU], done)
    return done
