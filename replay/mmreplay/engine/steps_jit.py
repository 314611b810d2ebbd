"""The steps of the compiled loop that are seldom or long: twins of methods of the oracle.

``step`` executes any instruction of the model's own set; the loop has short cuts for
the frequent ones (``loop.py``).  ``wait_event`` is every event of a thread that is not
in the middle of its program: asleep, spinning, granted, waking others.
"""
# ruff: noqa: F403, F405

from __future__ import annotations

import numpy as np

from mmreplay.engine.designs_jit import *
from mmreplay.engine.kinds.pin_jit import *
from mmreplay.engine.kinds.rwsem_jit import *
from mmreplay.engine.kinds.spin_jit import *
from mmreplay.engine.layout import *
from mmreplay.engine.objects_jit import *
from mmreplay.jit import borrowing_helper
from mmreplay.locking.isa import FlushScope, Kind, Op, RuntimeBit

# Enumerations as plain integers, which the compiler folds.
FLUSH_TABLES = int(FlushScope.TABLES)
COST, SLEEP, FLUSH, TOUCH = (X_MODEL + int(x) for x in (Op.COST, Op.SLEEP, Op.FLUSH, Op.TOUCH))
LOCK, TRY, UNLOCK = (X_MODEL + int(x) for x in (Op.LOCK, Op.TRY, Op.UNLOCK))
DOWNGRADE, MARK, SNAP = (X_MODEL + int(x) for x in (Op.DOWNGRADE, Op.MARK, Op.SNAP))
CHECK, BRANCH, EACH = (X_MODEL + int(x) for x in (Op.CHECK, Op.BRANCH, Op.EACH))
END_EACH, SET, COUNT = (X_MODEL + int(x) for x in (Op.END, Op.SET, Op.COUNT))
CONTENDED = X_MODEL + int(Op.CONTENDED)
K_RWSEM, K_PIN, K_SPIN = int(Kind.RWSEM), int(Kind.PIN), int(Kind.SPIN)
B_ANON, B_DEAD = int(RuntimeBit.VMA_ANON_VMA), int(RuntimeBit.VMA_DEAD)
B_TABLE, B_TRIED = int(RuntimeBit.TABLE_PRESENT), int(RuntimeBit.OP_TRIED)
U56 = np.uint64(56)


@borrowing_helper
def touches_shared(m, words, mark_vma, b, pc):
    """Simulation.ordered for an instruction whose VMA is only known now."""
    op = m[pc + X_OP]
    if op >= X_DESIGN:
        op += LOCK - X_DESIGN
    a = m[pc + X_A]
    if op == TOUCH:
        info = m[H_TOUCH] + 3 * a
        obj = object_of(m, words, mark_vma, b, m[info], 0)
        return obj >= 0 and obj < m[info + 1]
    if op == BRANCH or op == SET:
        used = a
        if op == BRANCH:
            used = m[m[H_CONDITIONS] + 3 * a] | m[m[H_CONDITIONS] + 3 * a + 1]
        for n in range(3):
            if used & (1 << n):
                info = m[H_BITBASE] + 3 * n
                obj = object_of(m, words, mark_vma, b, m[info + 1], 0)
                if obj >= 0 and obj < m[info + 2]:
                    return True
        return False
    operand = m[pc + X_C] if op <= UNLOCK else 0
    if is_shared(m, words, mark_vma, b, a, operand):
        return True
    d = m[H_LOCK] + a * DF
    if op == TRY or op == MARK:
        if is_shared(m, words, mark_vma, b, m[d + D_MARKS_BY], operand):
            return True
    if op == DOWNGRADE or (op <= UNLOCK and m[pc + X_B] == WRITE_MODE):
        return is_shared(m, words, mark_vma, b, m[d + D_BUMPS], operand)
    return False


@borrowing_helper
def store_mark(m, words, mark_vma, b, a, done):
    """Pin._store."""
    d = m[H_LOCK] + a * DF
    obj = lock_object(m, words, mark_vma, b, a, 0)
    seq = m[d + D_MARKS_BY]
    if seq >= 0:
        so = lock_object(m, words, mark_vma, b, seq, 0)
        if so >= 0:
            m[m[d + D_VALUE] + obj] = m[m[m[H_LOCK] + seq * DF + D_VALUE] + so]
    return line_rmw(m, shared_line(m, d, obj), m[b + T_CPU], done)


@borrowing_helper
def wait_event(m, words, mark_vma, t, b):
    """Any event but RUN.  Returns when the thread goes on with its program, or -1."""
    now, state = m[H_NOW], m[b + T_STATE]
    if m[H_STOP] >= 0:
        set_time(m, t, NEVER)
        return -1
    if state == OFF:
        runnable(m, t)
        return -1
    r = m[b + T_WAIT_INST]
    if state == FALL:
        set_time(m, t, NEVER)
        stat(m, m[r + I_LOCK], S_SLEEPS, 1)
        release_cpu(m, t)
        return -1
    pc = m[b + T_PC]
    done = now
    if state == GRANTED:
        end_wait(m, r, t, m[b + T_MODE] == WRITE_MODE)
    elif state == SPIN:
        done = spin_event(m, r, m[r + I_LINE], t)
    elif state == OSQ:
        if m[m[H_LOCK] + m[r + I_LOCK] * DF + D_KIND] == K_RANGE:
            spin_on(m, t, OSQ)
        else:
            osq_event(m, r, m[r + I_LINE], t)
        return -1
    elif state == REVOKE:
        done = bravo_event(m, r, t)
    elif state == WAKE:
        if m[r + I_Q_HEAD] >= 0:
            done = mark_wake(m, r, t, now, False, True)
    elif state == DRAINED:
        set_writer(m, r, -1)
        end_wait(m, r, t, True)
        done = store_mark(m, words, mark_vma, b, m[pc + X_A], now)
    else:  # RETRY, HANDOFF_SPIN
        m[b + T_PENDING] = 0
        try_write_lock(m, r, t, line_rmw(m, m[r + I_LINE], m[b + T_CPU], now))
        return -1
    if state == GRANTED or state == SPIN or state == REVOKE:
        if state != REVOKE and done >= 0 and m[m[H_LOCK] + m[pc + X_A] * DF + D_BRAVO]:
            done = bravo_locked(m, r, t, m[pc + X_B], done)
        if done < 0:
            return -1
        done = locked(m, words, mark_vma, t, b, pc, done)
    m[b + T_STATE] = RUN
    m[b + T_PC] = pc + XF
    m[b + T_BUSY] += done - now
    return done


@borrowing_helper
def flush_others(m, cpu, mm, lazy, clock):
    """Processors.flush of an address space; ``lazy``: CPUs that went idle from it, too."""
    targets = 0
    for other in range(m[H_CORES]):
        c = m[H_CORE] + other * CF
        if other == cpu or m[c + C_MM] != mm:
            continue
        if m[c + C_RUNNING] >= 0:
            targets += 1
            interrupt(m, c, clock)
        elif lazy:
            targets += 1
            m[c + C_MM] = -1
    return await_acks(m, cpu, targets, clock)


@borrowing_helper
def has_bit(m, words, mark_vma, bits, b, n):
    info = m[H_BITBASE] + 3 * n
    obj = object_of(m, words, mark_vma, b, m[info + 1], 0)
    return obj >= 0 and bits[m[info] + obj] != 0


@borrowing_helper
def holds(m, words, mark_vma, bits, b, cond):
    """World._holds; traits were decided when the code was specialised."""
    for want in range(2):  # bits that must be set, bits that must be clear
        x = m[m[H_CONDITIONS] + 3 * cond + want]
        for n in range(3):
            if x & (1 << n) and has_bit(m, words, mark_vma, bits, b, n) == (want == 1):
                return False
        if x & B_TRIED and (m[b + T_TRIED] != 0) == (want == 1):
            return False
    every = m[m[H_CONDITIONS] + 3 * cond + 2]
    if every == 0:
        return True
    place = m[H_EVERY] + m[b + T_CPU] * m[H_CONDS] + cond
    m[place] -= 1
    if m[place]:
        return False
    m[place] = every
    return True


@borrowing_helper
def lock_step(m, words, mark_vma, t, b, pc, clock):
    """LOCK.  -1: the thread waits."""
    a, mode = m[pc + X_A], m[pc + X_B]
    d = m[H_LOCK] + a * DF
    kind, cpu = m[d + D_KIND], m[b + T_CPU]
    obj = lock_object(m, words, mark_vma, b, a, m[pc + X_C])
    if obj < 0 or obj >= m[d + D_SHARED]:
        done = clock + m[H_ATOMIC]
    else:
        r = m[d + D_INST] + obj * m[H_ISIZE]
        line = m[r + I_LINE]
        done = line_rmw(m, line, cpu, clock)
        if kind == K_RWSEM:
            if is_open(m, r, mode):
                rwsem_take(m, r, t, mode, done)
            else:
                done = rwsem_lock_slow(m, r, line, t, mode, done)
        elif kind == K_PIN:
            add_reader(m, r, m[b + T_KIND])
        elif m[r + I_WRITER] < 0:
            set_writer(m, r, t)
        else:
            m[b + T_SPIN] += 1
            spin_wait(m, r, t)
            return -1
        if done < 0:
            return done
    if kind == K_SPIN:
        m[b + T_SPIN] += 1
    return locked(m, words, mark_vma, t, b, pc, done)


@borrowing_helper
def try_step(m, words, mark_vma, t, b, pc, clock):
    """TRY; sets H_RET to where the program goes on."""
    a, mode = m[pc + X_A], m[pc + X_B]
    d = m[H_LOCK] + a * DF
    kind, cpu = m[d + D_KIND], m[b + T_CPU]
    obj = lock_object(m, words, mark_vma, b, a, m[pc + X_C])
    r = np.int64(-1)
    line = shared_line(m, d, obj)
    if line >= 0:
        r = m[d + D_INST] + obj * m[H_ISIZE]
    done = clock
    if obj < 0:  # a fault without a VMA has nothing to pin; other objects are private
        ok = kind != K_PIN
        if ok:
            done += m[H_ATOMIC]
    elif kind == K_PIN:
        ok = True
        seq = m[d + D_MARKS_BY]
        if seq >= 0:
            s = m[H_LOCK] + seq * DF
            so = lock_object(m, words, mark_vma, b, seq, 0)
            if so >= 0:
                done = line_read(m, shared_line(m, s, so), cpu, done)
                ok = m[m[s + D_VALUE] + so] != m[m[d + D_VALUE] + obj]
        if ok and r >= 0 and pin_barred(m, r, clock):
            ok = False
            done = line_read(m, line, cpu, done)
        if ok:
            done = line_rmw(m, line, cpu, done)
            if r >= 0:
                add_reader(m, r, m[b + T_KIND])
    elif kind == K_SPIN:
        ok = r < 0 or m[r + I_WRITER] < 0
        if ok:
            done = line_rmw(m, line, cpu, done)
            if r >= 0:
                set_writer(m, r, t)
        else:
            done = line_read(m, line, cpu, done)
    else:
        ok = r < 0 or is_open(m, r, mode)
        if ok:
            done = line_rmw(m, line, cpu, done)
            if r >= 0:
                rwsem_take(m, r, t, mode, done)
        else:
            done = line_read(m, line, cpu, done)
    if not ok:
        m[m[H_STAT] + a * SF + S_TRY_FAILED] += 1
        m[H_RET] = m[pc + X_TARGET]
        return done
    if kind == K_SPIN:
        m[b + T_SPIN] += 1
    return locked(m, words, mark_vma, t, b, pc, done)


@borrowing_helper
def unlock_step(m, words, mark_vma, t, b, pc, clock):
    """UNLOCK.  -1: the wake-up comes as a step of its own."""
    a, mode, operand = m[pc + X_A], m[pc + X_B], m[pc + X_C]
    d = m[H_LOCK] + a * DF
    kind = m[d + D_KIND]
    done = clock
    if mode == WRITE_MODE:
        done = bump(m, words, mark_vma, b, d, operand, done, True)
        done = store_owner(m, words, mark_vma, b, d, operand, done)
    since = m[m[H_HELD] + t * 2 * m[H_LOCKS] + m[pc + X_HELD]]
    field = S_WRITE_HOLD if mode == WRITE_MODE else S_READ_HOLD
    m[m[H_STAT] + a * SF + field] += clock - since
    if kind == K_SPIN:
        m[b + T_SPIN] -= 1
    obj = lock_object(m, words, mark_vma, b, a, operand)
    if obj < 0 or obj >= m[d + D_SHARED]:
        return done + m[H_ATOMIC]
    r = m[d + D_INST] + obj * m[H_ISIZE]
    if kind == K_RWSEM:
        done = rwsem_unlock(m, r, m[r + I_LINE], t, mode, done)
        if done < 0:
            m[b + T_BUSY] += m[H_RET] - clock
        return done
    if kind == K_PIN:
        return pin_unlock(m, r, m[r + I_LINE], t, done)
    return spin_unlock(m, r, m[r + I_LINE], t, done)


@borrowing_helper
def downgrade_step(m, words, mark_vma, t, b, a, clock):
    d = m[H_LOCK] + a * DF
    done = bump(m, words, mark_vma, b, d, 0, clock, True)
    held = m[H_HELD] + t * 2 * m[H_LOCKS] + 2 * a
    m[m[H_STAT] + a * SF + S_WRITE_HOLD] += clock - m[held]
    m[m[H_STAT] + a * SF + S_DOWNGRADE] += 1
    obj = lock_object(m, words, mark_vma, b, a, 0)
    if obj < 0 or obj >= m[d + D_SHARED]:
        done += m[H_ATOMIC]
    else:
        r = m[d + D_INST] + obj * m[H_ISIZE]
        done = rwsem_downgrade(m, r, m[r + I_LINE], t, done)
    done = store_owner(m, words, mark_vma, b, d, 0, done)
    m[held] = done
    return done


@borrowing_helper
def mark_step(m, words, mark_vma, t, b, a, clock):
    """MARK.  -1: readers are in flight, the thread waits for them."""
    d = m[H_LOCK] + a * DF
    obj = lock_object(m, words, mark_vma, b, a, 0)
    if obj < 0:
        return clock
    seq = m[d + D_MARKS_BY]
    line, cpu = shared_line(m, d, obj), m[b + T_CPU]
    if seq >= 0:
        so = lock_object(m, words, mark_vma, b, seq, 0)
        if so >= 0 and m[m[m[H_LOCK] + seq * DF + D_VALUE] + so] == m[m[d + D_VALUE] + obj]:
            return line_read(m, line, cpu, clock)
    m[m[H_STAT] + a * SF + S_MARK] += 1
    done = line_rmw(m, line, cpu, clock)
    if line >= 0:
        r = m[d + D_INST] + obj * m[H_ISIZE]
        if m[r + I_READERS]:
            pin_drain(m, r, t, done)
            return -1
    return store_mark(m, words, mark_vma, b, a, done)


@borrowing_helper
def contended_step(m, words, mark_vma, b, pc, clock):
    """Simulation._contended; sets H_RET to where the program goes on."""
    d = m[H_LOCK] + m[pc + X_A] * DF
    obj = lock_object(m, words, mark_vma, b, m[pc + X_A], 0)
    line = shared_line(m, d, obj)
    if line < 0:
        return clock
    r = m[d + D_INST] + obj * m[H_ISIZE]
    waits = m[r + I_WAITING] != 0
    if m[d + D_KIND] == K_RWSEM:
        waits = m[r + I_Q_HEAD] >= 0
    if waits:
        m[H_RET] = m[pc + X_TARGET]
    if m[d + D_OWNER] >= 0:
        line = m[d + D_OWNER] + obj * m[H_LSIZE]
    return line_read(m, line, m[b + T_CPU], clock)


@borrowing_helper
def step(m, words, mark_first, mark_vma, mark_set, recorded_sleep, bits, t, b, pc, clock):
    """Simulation._execute.  Returns when the step is done, -1: an event of its own follows.

    The thread's row, program counter, busy time and spin depth are in its record.  The
    program goes on at ``m[H_RET]``.
    """
    op, a = m[pc + X_OP], m[pc + X_A]
    m[H_RET] = pc + XF
    if op == EACH:
        row = m[b + T_ROW]
        first, last = np.int64(mark_first[row]), np.int64(mark_first[row + 1])
        while first < last and mark_set[first] != a:
            first += 1
        end = first
        while end < last and mark_set[end] == a:
            end += 1
        if first == end:
            first = end = 0
            m[H_RET] = m[pc + X_TARGET]
        m[b + T_EACH], m[b + T_EACH_END] = first, end
    elif op == END_EACH:
        m[b + T_EACH] += 1
        if m[b + T_EACH] < m[b + T_EACH_END]:
            m[H_RET] = m[pc + X_TARGET]
        else:
            m[b + T_EACH] = m[b + T_EACH_END] = 0
    elif op == MARK:
        return mark_step(m, words, mark_vma, t, b, a, clock)
    elif op == LOCK:
        return lock_step(m, words, mark_vma, t, b, pc, clock)
    elif op == UNLOCK:
        return unlock_step(m, words, mark_vma, t, b, pc, clock)
    elif op == DOWNGRADE:
        return downgrade_step(m, words, mark_vma, t, b, a, clock)
    elif op == TRY:
        return try_step(m, words, mark_vma, t, b, pc, clock)
    elif op == FLUSH:
        if a:
            mm = np.int64(words[(m[b + T_ROW] << 4) + W_MM])
            return clock + flush_others(m, m[b + T_CPU], mm, a == FLUSH_TABLES, clock)
    elif op == BRANCH:
        if holds(m, words, mark_vma, bits, b, a):
            m[H_RET] = m[pc + X_TARGET]
    elif op == COUNT:
        m[m[H_REASONS] + a] += 1
    elif op == SET:
        if a == B_TRIED:
            m[b + T_TRIED] = 1
        else:
            info = m[H_BITBASE] + 3 * (0 if a == B_ANON else (1 if a == B_DEAD else 2))
            obj = object_of(m, words, mark_vma, b, m[info + 1], 0)
            if obj >= 0:
                bits[m[info] + obj] = 1
    elif op == TOUCH:
        info = m[H_TOUCH] + 3 * a
        obj = object_of(m, words, mark_vma, b, m[info], m[pc + X_C])
        if obj >= 0 and obj < m[info + 1]:
            line = m[info + 2] + obj * m[H_LSIZE]
            if m[pc + X_B] == 1:
                return line_write(m, line, m[b + T_CPU], clock, 0)
            return line_read(m, line, m[b + T_CPU], clock)
    elif op == SNAP or op == CHECK:
        d = m[H_LOCK] + a * DF
        obj = lock_object(m, words, mark_vma, b, a, 0)
        value = np.int64(0)
        done = clock
        if obj >= 0:
            value = m[m[d + D_VALUE] + obj]
            done = line_read(m, shared_line(m, d, obj), m[b + T_CPU], clock)
        seen = m[H_SNAPS] + t * m[H_LOCKS] + a
        failed = value != m[seen]
        if op == SNAP:
            failed = (value & 1) == 1 and m[pc + X_TARGET] >= 0
            if not failed:
                m[seen] = value
        if failed:
            m[H_RET] = m[pc + X_TARGET]
        return done
    elif op == CONTENDED:
        return contended_step(m, words, mark_vma, b, pc, clock)
    elif op >= X_DESIGN:
        if op == X_FLUSH_TOUCHED:
            return clock + flush_touched(m, words, b, clock)
        if op == X_DESIGN_UNLOCK:
            return design_unlock(m, words, mark_vma, t, b, pc, clock)
        return design_lock(m, words, mark_vma, t, b, pc, clock)
    else:  # SLEEP
        span = np.int64(recorded_sleep[m[b + T_ROW]])
        if span < 0:
            span = m[m[H_SLEEPS] + a]
        m[H_SLEEP_NS] += span
        m[b + T_PC] = pc + XF
        m[b + T_AFTER] = RUN
        at(m, t, OFF, clock + span)
        release_cpu(m, t)
        return -1
    return clock
