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
def spin_unlock(m, r, line, t, at_ns):  # type: ignore[no-untyped-def]
    done = line_rmw(m, line, m[HEADER + t * TF + T_CPU], at_ns)
    set_writer(m, r, -1)
    u = m[r + I_Q_HEAD]
    if u >= 0:
        b = HEADER + u * TF
        m[r + I_Q_HEAD] = m[b + T_Q_NEXT]
        leave(m, r, u)
        set_writer(m, r, u)
        at(m, u, GRANTED, line_rmw(m, line, m[b + T_CPU], done))
    return done
