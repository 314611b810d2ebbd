"""Which object an operation means, and what follows when a lock is taken: compiled.

Twins of methods of ``world.py`` and ``oracle.py``.
"""
# ruff: noqa: F403, F405

from __future__ import annotations

import numpy as np

from mmreplay.engine.kinds.base_jit import *
from mmreplay.engine.layout import *
from mmreplay.jit import borrowing_helper
from mmreplay.locking.isa import Operand

CHILD, TARGET_MM = int(Operand.CHILD), int(Operand.TARGET)
WRITE_MODE = 1


@borrowing_helper
def object_of(m, words, mark_vma, b, column, operand):
    """World._object: the number of the object that the running operation means; -1 none."""
    w = m[b + T_ROW] << 4
    if column == W_MM and (operand == CHILD or operand == TARGET_MM):
        if words[w + W_CHILD] >= 0:
            return np.int64(words[w + W_CHILD])
    if m[b + T_EACH] < m[b + T_EACH_END]:
        x = np.int64(mark_vma[m[b + T_EACH]])
        if column == W_VMA and x >= 0:
            return x
        if column == W_TABLE and x < -1:  # each tables
            return -2 - x
    if column == W_GLOBAL:
        return np.int64(0)
    return np.int64(words[w + column])


@borrowing_helper
def lock_object(m, words, mark_vma, b, lock, operand):
    return object_of(m, words, mark_vma, b, m[m[H_LOCK] + lock * DF + D_COLUMN], operand)


@borrowing_helper
def shared_line(m, d, obj):
    """The line of a lock instance; -1 where one thread uses it."""
    if obj < 0 or obj >= m[d + D_SHARED]:
        return np.int64(-1)
    return m[d + D_LINE] + obj * m[H_LSIZE]


@borrowing_helper
def is_shared(m, words, mark_vma, b, lock, operand):
    if lock < 0:
        return False
    obj = lock_object(m, words, mark_vma, b, lock, operand)
    return obj >= 0 and obj < m[m[H_LOCK] + lock * DF + D_SHARED]


@borrowing_helper
def bump(m, words, mark_vma, b, d, operand, at_ns, release):
    """Simulation._bump."""
    seq = m[d + D_BUMPS]
    if seq < 0 or not (release or m[d + D_BUMP_ACQUIRE]):
        return at_ns
    obj = lock_object(m, words, mark_vma, b, seq, operand)
    if obj < 0:
        return at_ns
    s = m[H_LOCK] + seq * DF
    m[m[s + D_VALUE] + obj] += 1 if m[d + D_BUMP_ACQUIRE] else 2
    return line_write(m, shared_line(m, s, obj), m[b + T_CPU], at_ns, 0)


@borrowing_helper
def store_owner(m, words, mark_vma, b, d, operand, at_ns):
    """Simulation._store_owner."""
    if m[d + D_OWNER] < 0:
        return at_ns
    obj = object_of(m, words, mark_vma, b, m[d + D_COLUMN], operand)
    if obj < 0 or obj >= m[d + D_SHARED]:
        return at_ns
    return line_write(m, m[d + D_OWNER] + obj * m[H_LSIZE], m[b + T_CPU], at_ns, 0)


@borrowing_helper
def locked(m, words, mark_vma, t, b, pc, done):
    """Simulation.held: the LOCK or TRY at ``pc`` has succeeded."""
    a, mode = m[pc + X_A], m[pc + X_B]
    d = m[H_LOCK] + a * DF
    operand = 0
    other = m[pc + X_HELD] & 1
    if other:
        operand = CHILD
    m[m[H_STAT] + a * SF + (S_WRITE if mode == WRITE_MODE else S_READ)] += 1
    done = store_owner(m, words, mark_vma, b, d, operand, done)
    if mode == WRITE_MODE:
        done = bump(m, words, mark_vma, b, d, operand, done, False)
    m[m[H_HELD] + t * 2 * m[H_LOCKS] + m[pc + X_HELD]] = done
    return done


@borrowing_helper
def serve(m, c):
    """Processors._serve."""
    begin = max(m[c + C_DUE], m[c + C_ACKS_FROM])
    waiting = max(0, min(m[c + C_OWED], m[c + C_ACKS_UNTIL] - begin))
    m[c + C_ACKS_FROM] = begin + waiting
    m[c + C_OWED] -= waiting


@borrowing_helper
def interrupt(m, c, clock):
    """CPU ``c`` owes the handler, which may fit into its own wait for acknowledgements."""
    m[c + C_DUE] = clock + m[H_FLIGHT]
    m[c + C_OWED] += m[H_HANDLER]
    serve(m, c)


@borrowing_helper
def await_acks(m, cpu, targets, clock):
    """How long a shootdown of so many targets takes."""
    if targets == 0:
        return m[H_FLUSH_BASE]
    span = m[H_FLUSH_BASE] + m[H_FLUSH_FIRST] + m[H_FLUSH_NEXT] * (targets - 1)
    c = m[H_CORE] + cpu * CF
    m[c + C_ACKS_FROM] = clock
    m[c + C_ACKS_UNTIL] = clock + span
    serve(m, c)
    return span
