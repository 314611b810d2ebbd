"""Steps of what no kernel has, only designs: range locks, BRAVO readers, flushes by touch.

One entry for each keeps them apart from the steps of the kernels' models, which pay
nothing for them.
"""
# ruff: noqa: F403, F405

from __future__ import annotations

import numpy as np

from mmreplay.engine.kinds.bravo_jit import *
from mmreplay.engine.kinds.range_jit import *
from mmreplay.engine.kinds.rwsem_jit import *
from mmreplay.engine.layout import *
from mmreplay.engine.objects_jit import *
from mmreplay.engine.setup import PAGE_BITS
from mmreplay.jit import borrowing_helper
from mmreplay.locking.isa import Kind

K_RANGE = int(Kind.RANGE)


@borrowing_helper
def design_lock(m, words, mark_vma, t, b, pc, clock):
    """LOCK or TRY of a lock that only designs have: a range lock, an rwsem with BRAVO readers.

    -1: the thread waits, or the writer reads the table of readers.
    """
    a, mode, operand = m[pc + X_A], m[pc + X_B], m[pc + X_C]
    tries = m[pc + X_OP] == X_DESIGN_TRY
    d = m[H_LOCK] + a * DF
    obj = lock_object(m, words, mark_vma, b, a, operand)
    r = np.int64(-1)
    if obj >= 0 and obj < m[d + D_SHARED]:
        r = m[d + D_INST] + obj * m[H_ISIZE]
    failed = False
    if m[d + D_KIND] == K_RANGE:
        done = range_lock(m, words, r, d, t, mode, operand, tries, clock)
        failed = tries and done < 0
    elif r < 0:
        done = clock + m[H_ATOMIC]
    else:
        done = bravo_lock(m, r, d, t, mode, tries, clock)
        failed = tries and done < -1
        if done >= 0:
            done = bravo_locked(m, r, t, mode, done)
    if failed:
        m[m[H_STAT] + a * SF + S_TRY_FAILED] += 1
        m[H_RET] = m[pc + X_TARGET]
        return ~done
    if done < 0:
        return done
    return locked(m, words, mark_vma, t, b, pc, done)


@borrowing_helper
def design_unlock(m, words, mark_vma, t, b, pc, clock):
    """UNLOCK of such a lock.  -1: the wake-up comes as a step of its own."""
    a, mode, operand = m[pc + X_A], m[pc + X_B], m[pc + X_C]
    d = m[H_LOCK] + a * DF
    done = clock
    if mode == WRITE_MODE:
        done = bump(m, words, mark_vma, b, d, operand, done, True)
        done = store_owner(m, words, mark_vma, b, d, operand, done)
    since = m[m[H_HELD] + t * 2 * m[H_LOCKS] + m[pc + X_HELD]]
    field = S_WRITE_HOLD if mode == WRITE_MODE else S_READ_HOLD
    m[m[H_STAT] + a * SF + field] += clock - since
    obj = lock_object(m, words, mark_vma, b, a, operand)
    r = np.int64(-1)
    if obj >= 0 and obj < m[d + D_SHARED]:
        r = m[d + D_INST] + obj * m[H_ISIZE]
    if m[d + D_KIND] == K_RANGE:
        return range_unlock(m, r, d, t, done)
    if r < 0:
        return done + m[H_ATOMIC]
    if mode != WRITE_MODE and is_published(m, r, t):
        bravo_withdraw(m, r, t, done)
        return done
    done = rwsem_unlock(m, r, m[r + I_LINE], t, mode, done)
    if done < 0:
        m[b + T_BUSY] += m[H_RET] - clock
    return done


@borrowing_helper
def touch_place(m, mm, page):
    """Where in the sorted keys a page of an address space is, or would be."""
    keys = m[H_TOUCH_KEYS]
    key = (mm << PAGE_BITS) | page
    low, high = 0, m[H_TOUCH_COUNT]
    while low < high:
        middle = (low + high) >> 1
        if m[keys + middle] < key:
            low = middle + 1
        else:
            high = middle
    return low


@borrowing_helper
def touch(m, words, b, cpu):
    """The CPU may hold translations of the operation's pages."""
    row, width = m[b + T_ROW], (m[H_CORES] + 63) >> 6
    mm = np.int64(words[(row << 4) + W_MM])
    first = touch_place(m, mm, page_of(m, words, row, G_FIRST))
    last = touch_place(m, mm, page_of(m, words, row, G_LAST) + 1)
    for place in range(first, last):
        m[m[H_TOUCHED] + place * width + (cpu >> 6)] |= 1 << (cpu & 63)


@borrowing_helper
def flush_touched(m, words, b, clock):
    """Processors.flush of what was touched."""
    row, width = m[b + T_ROW], (m[H_CORES] + 63) >> 6
    mm = np.int64(words[(row << 4) + W_MM])
    first = touch_place(m, mm, page_of(m, words, row, G_FIRST))
    last = touch_place(m, mm, page_of(m, words, row, G_LAST) + 1)
    targets = 0
    for w in range(width):
        concerned = 0
        for place in range(first, last):
            concerned |= m[m[H_TOUCHED] + place * width + w]
            m[m[H_TOUCHED] + place * width + w] = 0
        for cpu in range(64 * w, min(64 * w + 64, m[H_CORES])):
            if (concerned >> (cpu & 63)) & 1 and cpu != m[b + T_CPU]:
                targets += 1
                c = m[H_CORE] + cpu * CF
                if m[c + C_RUNNING] >= 0:
                    interrupt(m, c, clock)
    return await_acks(m, m[b + T_CPU], targets, clock)
