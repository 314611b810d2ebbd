"""Compiled twin of ``pin.py``; see there.  The mark itself is in the loop's ``values``."""
# ruff: noqa: F403, F405

from __future__ import annotations

from mmreplay.engine.kinds.base_jit import *
from mmreplay.engine.layout import *
from mmreplay.jit import borrowing_helper, inlined_helper


@inlined_helper
def pin_barred(m, r, now):  # type: ignore[no-untyped-def]
    """May no new reader get in?"""
    return m[r + I_WRITER] >= 0 or (m[r + I_DRAINER] >= 0 and now >= m[r + I_CLOSED])


@borrowing_helper
def pin_unlock(m, r, line, t, at_ns):  # type: ignore[no-untyped-def]
    b = HEADER + t * TF
    done = line_rmw(m, line, m[b + T_CPU], at_ns)
    drop_reader(m, r, m[b + T_KIND])
    u = m[r + I_DRAINER]
    if m[r + I_READERS] == 0 and u >= 0:
        m[r + I_DRAINER] = -1
        leave(m, r, u)
        set_writer(m, r, u)
        done = wake_up(m, u, DRAINED, done)
    return done


@borrowing_helper
def pin_drain(m, r, t, done):  # type: ignore[no-untyped-def]
    """The second half of a MARK that found readers in flight."""
    b = HEADER + t * TF
    window = 0
    m[r + I_CLOSED] = 0
    if m[m[H_LOCK] + m[r + I_LOCK] * DF + D_FORM] == 0:
        window = (20 + min(m[r + I_READERS], 30)) * 500
        m[r + I_CLOSED] = done + window
    enter(m, r, t)
    m[r + I_DRAINER] = t
    m[b + T_WAIT_INST] = r
    m[b + T_AWAKE] = done
    at(m, t, FALL, done + window + m[H_FALL])
