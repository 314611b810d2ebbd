"""The compiled loop: the twin of ``oracle.py``, which defines what it computes.

It differs in one respect: a thread executes its private steps in one go, with a
clock of its own, and goes back to the event queue only at ordered steps.  Programs
come specialised (``specialise.py``); the frequent instructions are here, the others
in ``steps_jit.py``.
"""
# ruff: noqa: F403, F405

from __future__ import annotations

import numpy as np

from mmreplay.engine.layout import *
from mmreplay.engine.result import DELAY_BUCKETS
from mmreplay.engine.setup import COST_BITS, DRAW_BITS, GOLDEN
from mmreplay.engine.steps_jit import *
from mmreplay.jit import borrowing_helper, inlined_helper, native, pointer, prefetch
from mmreplay.locking.isa import Count

UG = np.uint64(GOLDEN)
PAGES_PER_VMA = int(Count.PAGES_PER_VMA)
#: A delay's exponent and four bits of its mantissa, as a double, number its bucket.
BUCKET_OFFSET = (1023 + 3) * 16


@inlined_helper
def record(m, longs, b):
    """Books.record."""
    row = m[b + T_FIN_ROW]
    m[b + T_FIN_ROW] = -1
    counters = m[H_OPS] + m[b + T_FIN_KIND] * KF
    m[counters + K_COUNT] += 1
    m[counters + K_BUSY] += m[b + T_FIN_BUSY]
    m[counters + K_WAIT] += m[b + T_FIN_WAIT]
    bucket = m[b + T_FIN_DELAY]
    if bucket >= 16:
        bucket = (np.float64(bucket).view(np.int64) >> 48) - BUCKET_OFFSET
        bucket = min(bucket, DELAY_BUCKETS - 1)
    m[counters + K_DELAY + bucket] += 1
    if not m[b + T_GROUP]:
        m[H_OTHERS_LEFT] -= 1
        if m[H_OTHERS_LEFT] == 0 and m[H_WIN_END] < 0:
            m[H_WIN_END] = m[H_STOP] = m[H_NOW]
        return
    m[H_GRP_RECORDED] += 1
    end = m[b + T_FIN_END]
    m[m[H_ENDS] + row] = end + 1
    if m[H_WIN_END] < 0 or end <= m[H_WIN_END]:
        user = longs[(row << 3) + O_THINK]
        m[H_GRP_OPS] += 1
        m[H_GRP_USER] += user
        if m[H_WIN_BEGIN] >= 0 and end > m[H_WIN_BEGIN]:
            m[H_WIN_OPS] += 1
            m[H_WIN_USER] += user
    if m[H_WIN_BEGIN] < 0 and m[H_WIN_END] < 0 and m[H_GRP_RECORDED] * 10 >= m[H_GRP_TOTAL]:
        m[H_WIN_BEGIN] = m[H_NOW]


@borrowing_helper
def next_gap(m, longs, words, t, b):
    """Simulation._next_operation, _enter_gap; returns the program counter of the gap."""
    row = m[b + T_ROW] + 1
    if row == m[b + T_END_ROW]:
        loop = m[m[H_LOOPS] + t]
        end = m[b + T_FIN_END]
        if m[H_WRAP] and loop >= 0 and not m[b + T_GROUP] and end > m[b + T_LAP]:
            m[b + T_LAP] = end
            row = loop
            m[b + T_FIRST_LAP] = 0
    if row == m[b + T_END_ROW]:
        m[b + T_TAIL] = 1
        row = max(row - 1, 0)
        m[b + T_THINK] = m[m[H_TAILS] + 2 * t]
        blocked = m[m[H_TAILS] + 2 * t + 1]
    else:
        m[b + T_THINK] = longs[(row << 3) + O_THINK]
        blocked = longs[(row << 3) + O_BLOCKED]
    m[b + T_ROW] = row
    m[b + T_MM] = words[(row << 4) + W_MM]
    m[b + T_DEP_FROM] = -1
    if blocked == 0 or m[b + T_NO_IDLE]:
        return PC_THINK
    m[b + T_DEP_FROM] = blocked
    return PC_BLOCK


@borrowing_helper
def finish(m, b, clock, busy):
    """Simulation._finish: the operation is over, and will be counted at the next ordered point."""
    m[b + T_FIN_ROW] = m[b + T_ROW]
    m[b + T_FIN_KIND] = m[b + T_KIND]
    m[b + T_FIN_END] = clock
    m[b + T_FIN_BUSY] = busy
    m[b + T_FIN_WAIT] = m[b + T_WAIT]
    m[b + T_FIN_DELAY] = clock - m[b + T_BEGIN]


@borrowing_helper
def end_is_seen(m, longs, words, b, done_ops, dep_head, clock):
    """What the end of an operation means to others (F_SEEN)."""
    row = m[b + T_ROW]
    flags = longs[(row << 3) + O_PROGRAM] >> 32
    if flags & F_TOUCHES:
        touch(m, words, b, m[b + T_CPU])
    if not flags & F_DEPENDENTS or done_ops[row]:
        return
    done_ops[row] = 1
    u = np.int64(dep_head[row])
    dep_head[row] = -1
    while u >= 0:
        idle = m[m[H_CORE] + select_cpu(m, u) * CF + C_RUNNING] < 0
        at(m, u, OFF, clock + (m[H_WOKEN] if idle else 0))
        u = m[HEADER + u * TF + T_DEP_NEXT]


@borrowing_helper
def dependencies_done(m, b, t, dep_first, dep_op, done_ops, dep_head):
    """Have all operations that this one depends on completed?  If not, wait for the first."""
    row = m[b + T_ROW]
    for k in range(dep_first[row], dep_first[row + 1]):
        dep = dep_op[k]
        if not done_ops[dep]:
            if m[b + T_DEP_FROM] < 0:
                m[b + T_DEP_FROM] = m[H_NOW]
            m[b + T_DEP_NEXT] = dep_head[dep]
            dep_head[dep] = t
            m[b + T_PC] = PC_BEGIN
            m[b + T_AFTER] = RUN
            at(m, t, OFF, NEVER)
            release_cpu(m, t)
            return False
    if m[b + T_DEP_FROM] >= 0:
        m[H_DEP_WAIT_NS] += m[H_NOW] - m[b + T_DEP_FROM]
    m[b + T_DEP_FROM] = -1
    return True


@borrowing_helper
def pass_point(m, longs, words, t, b, clock, recorded_sleep, done_ops, dep_head):
    """Simulation._pass_point; returns the program counter of the gap behind it."""
    row = m[b + T_ROW]
    flags = longs[(row << 3) + O_PROGRAM] >> 32
    m[m[H_ENDS] + row] = clock + 1
    if m[b + T_GROUP] and (m[H_WIN_END] < 0 or clock <= m[H_WIN_END]):
        user = longs[(row << 3) + O_THINK]
        m[H_GRP_USER] += user
        if m[H_WIN_BEGIN] >= 0 and clock > m[H_WIN_BEGIN]:
            m[H_WIN_USER] += user
    if flags & F_SEEN:
        end_is_seen(m, longs, words, b, done_ops, dep_head, clock)
    span = np.int64(0)
    if flags & F_DEPS and not m[b + T_FIRST_LAP]:
        span = np.int64(recorded_sleep[row])
    m[b + T_FIN_END] = clock
    pc = np.int64(next_gap(m, longs, words, t, b))
    if span > 0:
        m[b + T_DEP_FROM] = max(m[b + T_DEP_FROM], 0) + span
        pc = np.int64(PC_BLOCK)
    return pc


@borrowing_helper
def begin(m, longs, b, clock):
    """Simulation._begin; returns the first instruction."""
    word = longs[(m[b + T_ROW] << 3) + O_PROGRAM]
    m[b + T_KIND] = word >> 40
    m[b + T_BEGIN] = clock
    m[b + T_BUSY] = 0
    m[b + T_WAIT] = 0
    m[b + T_WAS_ORDERED] = 0
    m[b + T_TRIED] = 0
    m[b + T_EACH] = 0
    m[b + T_EACH_END] = 0
    m[b + T_DRAW] = np.int64(mix(np.uint64(m[b + T_STREAM]) + np.uint64(m[b + T_NTH]) * UG))
    m[b + T_NTH] += 1
    prefetch(longs, (m[b + T_ROW] << 3) + 16)  # many threads: too many streams for the CPU
    return m[H_CODE] + ((word << 32) >> 32)


@inlined_helper
def held_since(m, t, pc):
    """Where the thread keeps since when it holds the lock of an instruction."""
    return m[H_HELD] + t * 2 * m[H_LOCKS] + m[pc + X_HELD]


@inlined_helper
def if_bit(m, words, bits, b, pc):
    """X_IF_BIT; returns where the program goes on."""
    obj = np.int64(words[(m[b + T_ROW] << 4) + m[pc + X_COLUMN]])
    bit = np.int64(0)
    if obj >= 0 and bits[m[pc + X_A] + obj]:
        bit = np.int64(1)
    return m[pc + X_TARGET] if bit == m[pc + X_B] else pc + XF


@borrowing_helper
def share(m, words, draws, n, draw, w):
    """World._cost of an even share of the pages."""
    parts = np.int64(words[w + W_TABLES])
    if m[n + N_COUNT] == PAGES_PER_VMA:
        parts = np.int64(words[w + W_VMAS])
    x = np.int64(((draw ^ np.uint64(m[n + N_KEY])) * U1) >> U56)
    value = m[n + N_COST] * np.int64(words[w + W_PAGES]) * np.int64(words[w + W_SCALE]) >> 10
    value //= max(parts, 1)
    return (value * draws[m[n + N_DRAWS] + x] >> DRAW_BITS) >> COST_BITS


@borrowing_helper
def end_thread(m, t, b, clock):
    """Simulation._end."""
    m[m[H_TEND] + t] = clock
    at(m, t, END, NEVER)
    release_cpu(m, t)
    if m[b + T_GROUP] and m[H_WIN_END] < 0 and m[m[H_LOOPS] + t] > -2:
        m[H_WIN_END] = clock
        if m[H_WRAP]:
            m[H_STOP] = clock


@inlined_helper
def use_lock(m, words, t, b, pc, clock):
    """An instruction on a lock that several threads use.  -1: the thread waits."""
    op, mode, cpu = m[pc + X_OP], m[pc + X_B], m[b + T_CPU]
    w = m[b + T_ROW] << 4
    lsize = m[H_LSIZE]
    obj = np.int64(0)
    if m[pc + X_COLUMN] != W_GLOBAL:
        obj = np.int64(words[w + m[pc + X_COLUMN]])
    r = np.int64(-1)
    line = np.int64(-1)
    if m[pc + X_INST] >= 0:
        r = m[pc + X_INST] + obj * m[H_ISIZE]
        line = m[pc + X_LINE] + obj * lsize
    done = clock
    if op == X_PIN_TRY:
        ok = True
        if m[pc + X_SEQ] >= 0:
            so = np.int64(words[w + m[pc + X_SEQ_COLUMN]])
            if m[pc + X_SEQ_LINE] >= 0:
                done = line_read(m, m[pc + X_SEQ_LINE] + so * lsize, cpu, done)
            ok = m[m[pc + X_SEQ] + so] != m[m[pc + X_C] + obj]
        if ok and r >= 0 and pin_barred(m, r, clock):
            ok = False
            done = line_read(m, line, cpu, done)
        if not ok:
            m[m[pc + X_STAT] + S_TRY_FAILED] += 1
            m[b + T_PC] = m[pc + X_TARGET]
            return done
        done = write_line(m, line, cpu, done, m[H_ATOMIC])
        if r >= 0:
            add_reader(m, r, m[b + T_KIND])
    elif op == X_RWSEM_TRY:
        if not is_open(m, r, mode):
            m[m[pc + X_STAT] + S_TRY_FAILED] += 1
            m[b + T_PC] = m[pc + X_TARGET]
            return line_read(m, line, cpu, done)
        done = write_line(m, line, cpu, done, m[H_ATOMIC])
        rwsem_take(m, r, t, mode, done)
    elif op == X_RWSEM_LOCK:
        done = write_line(m, line, cpu, done, m[H_ATOMIC])
        if is_open(m, r, mode):
            rwsem_take(m, r, t, mode, done)
        else:
            done = rwsem_lock_slow(m, r, line, t, mode, done)
            if done < 0:
                return done
    elif op == X_SPIN_LOCK:
        done = write_line(m, line, cpu, done, m[H_ATOMIC])
        m[b + T_SPIN] += 1
        if m[r + I_WRITER] >= 0:
            spin_wait(m, r, t)
            return np.int64(-1)
        set_writer(m, r, t)
    else:  # X_RWSEM_UNLOCK, X_PIN_UNLOCK, X_SPIN_UNLOCK
        if mode == WRITE_MODE:
            if m[pc + X_SEQ] >= 0:
                so = np.int64(words[w + m[pc + X_SEQ_COLUMN]])
                m[m[pc + X_SEQ] + so] += m[pc + X_SEQ_BY]
                if m[pc + X_SEQ_LINE] >= 0:
                    done = write_line(m, m[pc + X_SEQ_LINE] + so * lsize, cpu, done, 0)
            if m[pc + X_OWNER] >= 0:
                done = write_line(m, m[pc + X_OWNER] + obj * lsize, cpu, done, 0)
        field = S_WRITE_HOLD if mode == WRITE_MODE else S_READ_HOLD
        m[m[pc + X_STAT] + field] += clock - m[held_since(m, t, pc)]
        if op == X_RWSEM_UNLOCK:
            done = rwsem_unlock(m, r, line, t, mode, done)
            if done < 0:
                m[b + T_BUSY] += m[H_RET] - clock
                return done
        elif op == X_PIN_UNLOCK:
            done = pin_unlock(m, r, line, t, done)
        else:
            done = spin_unlock(m, r, line, t, done)
            m[b + T_SPIN] -= 1
        m[b + T_PC] = pc + XF
        return done
    # -- Simulation.locked
    m[m[pc + X_STAT] + (S_WRITE if mode == WRITE_MODE else S_READ)] += 1
    if op != X_PIN_TRY:
        if m[pc + X_OWNER] >= 0:
            done = write_line(m, m[pc + X_OWNER] + obj * lsize, cpu, done, 0)
        if mode == WRITE_MODE and m[pc + X_SEQ] >= 0 and m[pc + X_SEQ_BY] == 1:
            so = np.int64(words[w + m[pc + X_SEQ_COLUMN]])
            m[m[pc + X_SEQ] + so] += 1
            if m[pc + X_SEQ_LINE] >= 0:
                done = write_line(m, m[pc + X_SEQ_LINE] + so * lsize, cpu, done, 0)
    m[held_since(m, t, pc)] = done
    m[b + T_PC] = pc + XF
    return done


@borrowing_helper
def between(m, longs, words, t, b, recorded_sleep, dep_first, dep_op, done_ops, dep_head, clock):
    """An ordered point between two operations.  -1: the thread waits, sleeps or has ended."""
    pc = m[b + T_PC]
    if pc == PC_THINK:
        return clock
    if pc == PC_BEGIN:
        flags = longs[(m[b + T_ROW] << 3) + O_PROGRAM] >> 32
        waits = flags & F_DEPS and m[b + T_FIRST_LAP]
        if not waits and not flags & F_NO_PROGRAM:
            return clock
        if waits and not dependencies_done(m, b, t, dep_first, dep_op, done_ops, dep_head):
            return np.int64(-1)
        if flags & F_POINT:
            m[b + T_PC] = pass_point(
                m, longs, words, t, b, clock, recorded_sleep, done_ops, dep_head
            )
            return clock
        m[b + T_PC] = begin(m, longs, b, clock)
        m[b + T_WAS_ORDERED] = 1 if waits else 0
        if flags & F_NO_PROGRAM:
            finish(m, b, clock, 0)
            if flags & F_SEEN:
                end_is_seen(m, longs, words, b, done_ops, dep_head, clock)
            m[b + T_PC] = next_gap(m, longs, words, t, b)
        return clock
    if pc == PC_BLOCK:
        m[b + T_PC] = PC_THINK
        m[b + T_AFTER] = RUN
        at(m, t, OFF, clock + m[b + T_DEP_FROM])
        m[b + T_DEP_FROM] = -1
        release_cpu(m, t)
    else:  # PC_END
        end_thread(m, t, b, clock)
    return np.int64(-1)


@inlined_helper
def ordered(
    m, longs, words, mark_first, mark_vma, mark_set, recorded_sleep, dep_first, dep_op, done_ops,
    dep_head, bits, t, b,
):  # fmt: skip
    """Simulation._point and the ordered step.  Returns when the thread goes on, or -1."""
    clock = m[H_NOW]
    if m[H_STOP] >= 0:
        set_key(m, t, NEVER)
        return np.int64(-1)
    if m[b + T_FIN_ROW] >= 0:
        record(m, longs, b)
    c = m[H_CORE] + m[b + T_CPU] * CF
    m[c + C_MM] = m[b + T_MM]
    if (clock >= m[b + T_SLICE_END] or m[c + C_RESCHED]) and m[b + T_SPIN] == 0:
        if (m[b + T_PC] < 0 or m[b + T_WAS_ORDERED] == 0) and schedule(m, t):
            m[b + T_AFTER] = RUN
            preempt(m, t)
            return np.int64(-1)
    if m[c + C_OWED] and clock >= m[c + C_DUE]:
        clock += m[c + C_OWED]
        m[b + T_BUSY] += m[c + C_OWED]
        m[c + C_OWED] = 0
        return clock
    pc = m[b + T_PC]
    if pc < 0:
        return between(
            m, longs, words, t, b, recorded_sleep, dep_first, dep_op, done_ops, dep_head, clock
        )
    m[b + T_WAS_ORDERED] = 1
    op = m[pc + X_OP]
    if op >= X_RWSEM_LOCK and op < X_MODEL:
        done = use_lock(m, words, t, b, pc, clock)
    elif op == X_DONE:
        finish(m, b, clock, m[b + T_BUSY])
        if (longs[(m[b + T_ROW] << 3) + O_PROGRAM] >> 32) & F_SEEN:
            end_is_seen(m, longs, words, b, done_ops, dep_head, clock)
        m[b + T_PC] = next_gap(m, longs, words, t, b)
        return clock
    elif op == X_IF_BIT:
        m[b + T_PC] = if_bit(m, words, bits, b, pc)
        return clock
    else:
        done = step(m, words, mark_first, mark_vma, mark_set, recorded_sleep, bits, t, b, pc, clock)
        if done >= 0:
            m[b + T_PC] = m[H_RET]
    if done >= 0:
        m[b + T_BUSY] += done - clock
    return done


@inlined_helper
def run_ahead(
    m, longs, words, draws, mark_first, mark_vma, mark_set, recorded_sleep, bits, t, b, clock
):
    """Private steps, up to the next ordered point; returns when that is."""
    pc = m[b + T_PC]
    since = clock  # the operation's busy time is known up to here
    while True:
        if pc < 0:
            if pc == PC_THINK:
                if clock >= m[b + T_SLICE_END]:
                    break
                span = min(m[b + T_THINK], m[b + T_SLICE_END] - clock)
                m[b + T_THINK] -= span
                clock += span
                if m[b + T_THINK]:
                    break
                pc = np.int64(PC_END if m[b + T_TAIL] else PC_BEGIN)
            if pc != PC_BEGIN or clock >= m[b + T_SLICE_END]:
                break
            flags = longs[(m[b + T_ROW] << 3) + O_PROGRAM] >> 32
            if flags & F_NO_PROGRAM or (flags & F_DEPS and m[b + T_FIRST_LAP]):
                break
            pc = begin(m, longs, b, clock)
            since = clock
        while True:
            op = m[pc + X_STEP]
            if op == X_RUN:
                m[m[pc + X_A]] += 1
                clock += m[pc + X_C]
                n, last = m[pc + X_B], m[pc + X_COLUMN]
                draw, w = np.uint64(m[b + T_DRAW]), m[b + T_ROW] << 4
                scale = np.int64(words[w + W_SCALE])
                while n < last:
                    value = m[n + N_COST] * scale
                    if m[n + N_COUNT]:
                        units = np.int64(words[w + W_PAGES])
                        if m[n + N_COUNT] == 2:
                            units = np.int64(words[w + W_VMAS])
                        elif m[n + N_COUNT] == 3:
                            units = np.int64(words[w + W_TABLES])
                        value *= units
                    x = np.int64(((draw ^ np.uint64(m[n + N_KEY])) * U1) >> U56)
                    value >>= 10
                    value = (value * draws[m[n + N_DRAWS] + x] >> DRAW_BITS) >> COST_BITS
                    clock += value
                    m[m[n + N_HOLD]] += value
                    n += NF
                pc += XF
            elif op == X_IF_BIT:
                pc = if_bit(m, words, bits, b, pc)
            elif op == X_EVERY:
                place = m[pc + X_A] + m[b + T_CPU] * m[H_CONDS]
                m[place] -= 1
                if m[place] == 0:
                    m[place] = m[pc + X_B]
                    pc = m[pc + X_TARGET]
                else:
                    pc += XF
            elif op == X_DONE:
                if m[b + T_WAS_ORDERED] == 0:
                    break
                if (longs[(m[b + T_ROW] << 3) + O_PROGRAM] >> 32) & F_SEEN:
                    break
                finish(m, b, clock, m[b + T_BUSY] + clock - since)
                pc = next_gap(m, longs, words, t, b)
                break
            elif op == X_JUMP:
                pc = m[pc + X_TARGET]
            elif op == X_LOCK_PRIVATE:
                clock += m[H_ATOMIC]
                m[held_since(m, t, pc)] = clock
                m[m[pc + X_STAT] + (S_WRITE if m[pc + X_B] else S_READ)] += 1
                m[b + T_SPIN] += m[pc + X_C]
                pc += XF
            elif op == X_UNLOCK_PRIVATE:
                field = S_WRITE_HOLD if m[pc + X_B] else S_READ_HOLD
                m[m[pc + X_STAT] + field] += clock - m[held_since(m, t, pc)]
                clock += m[H_ATOMIC]
                m[b + T_SPIN] -= m[pc + X_C]
                pc += XF
            elif op == X_SHARE:
                draw, w = np.uint64(m[b + T_DRAW]), m[b + T_ROW] << 4
                clock += share(m, words, draws, m[pc + X_B], draw, w)
                pc += XF
            elif op == ORDERED_STEP or (
                op == DYNAMIC_STEP and touches_shared(m, words, mark_vma, b, pc)
            ):
                break
            else:
                clock = step(
                    m, words, mark_first, mark_vma, mark_set, recorded_sleep, bits, t, b, pc, clock
                )
                pc = m[H_RET]
        if pc >= 0:
            m[b + T_BUSY] += clock - since
            break
    m[b + T_PC] = pc
    m[b + T_STATE] = POINT
    return clock


@borrowing_helper
def _run(
    m, longs, words, draws, mark_first, mark_vma, mark_set, recorded_sleep, dep_first, dep_op,
    done_ops, dep_head, bits,
):  # fmt: skip
    queue, shift = m[H_QUEUE], m[H_SHIFT]
    mask = (1 << shift) - 1
    while m[queue] != NEVER:
        t = m[queue] & mask
        m[H_NOW] = m[queue] >> shift
        b = HEADER + t * TF
        clock = m[H_NOW]
        if m[b + T_STATE] == POINT:
            set_key(m, t, NEVER)  # early: the least of the others' is known when it is needed
            clock = ordered(
                m, longs, words, mark_first, mark_vma, mark_set, recorded_sleep, dep_first, dep_op,
                done_ops, dep_head, bits, t, b,
            )  # fmt: skip
        elif m[b + T_STATE] != RUN:
            clock = wait_event(m, words, mark_vma, t, b)
        if clock >= 0:
            clock = run_ahead(
                m, longs, words, draws, mark_first, mark_vma, mark_set, recorded_sleep, bits, t, b,
                clock,
            )  # fmt: skip
            set_key(m, t, (clock << shift) | t)
    for t in range(m[H_THREADS]):
        if m[HEADER + t * TF + T_FIN_ROW] >= 0:
            record(m, longs, HEADER + t * TF)


@native
def replay(
    m, longs, words, draws, mark_first, mark_vma, mark_set, recorded_sleep, dep_first, dep_op,
    done_ops, dep_head, bits,
):  # fmt: skip
    """Run all events.  Arrays: see ``compiled.py``."""
    _run(
        pointer(m), pointer(longs), pointer(words), pointer(draws), pointer(mark_first),
        pointer(mark_vma), pointer(mark_set), pointer(recorded_sleep), pointer(dep_first),
        pointer(dep_op), pointer(done_ops), pointer(dep_head), pointer(bits),
    )  # fmt: skip
