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
from mmreplay.engine.setup import COST_BITS, DRAW_BITS, GOLDEN
from mmreplay.engine.steps_jit import *
from mmreplay.jit import borrowing_helper, borrowing_njit, inlined_helper, pointer, prefetch
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
    kind = m[b + T_FIN_KIND]
    m[m[H_OPCOUNT] + kind] += 1
    m[m[H_OPBUSY] + kind] += m[b + T_FIN_BUSY]
    m[m[H_OPWAIT] + kind] += m[b + T_FIN_WAIT]
    bucket = m[b + T_FIN_DELAY]
    if bucket >= 16:
        bucket = (np.float64(bucket).view(np.int64) >> 48) - BUCKET_OFFSET
        bucket = min(bucket, 639)
    m[m[H_DELAY] + kind * 640 + bucket] += 1
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
        at(m, u, OFF, clock + (m[H_WOKEN] if m[H_IDLE_CORES] > 0 else 0))
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
    m[b + T_WAIT] = 0
    m[b + T_WAS_ORDERED] = 0
    m[b + T_TRIED] = 0
    m[b + T_EACH] = 0
    m[b + T_EACH_END] = 0
    m[b + T_DRAW] = np.int64(mix(np.uint64(m[b + T_STREAM]) + np.uint64(m[b + T_NTH]) * UG))
    m[b + T_NTH] += 1
    prefetch(longs, (m[b + T_ROW] << 3) + 16)  # many threads: too many streams for the CPU
    return (word << 32) >> 32


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


@borrowing_helper
def _run(
    m, longs, words, code, draws, mark_first, mark_vma, mark_set, recorded_sleep, dep_first, dep_op,
    done_ops, dep_head, bits,
):  # fmt: skip
    shift, mask = m[H_SHIFT], (1 << m[H_SHIFT]) - 1
    core, atomic, isize, lsize = m[H_CORE], m[H_ATOMIC], m[H_ISIZE], m[H_LSIZE]
    runs, items, every = m[H_RUNS], m[H_ITEMS], m[H_EVERY]
    while True:
        key = m[H_ROOT]
        if key == NEVER:
            break
        t = key & mask
        now = key >> shift
        m[H_NOW] = now
        b = HEADER + t * TF
        clock = now
        at_point = m[b + T_STATE] == POINT
        if not at_point and m[b + T_STATE] != RUN:
            clock = wait_event(m, words, code, mark_vma, t, b)
            if clock < 0:
                continue
        held = m[H_HELD] + t * 2 * m[H_LOCKS]
        cpu = m[b + T_CPU]
        pc, busy, spin = m[b + T_PC], m[b + T_BUSY], m[b + T_SPIN]
        draw, w = np.uint64(m[b + T_DRAW]), m[b + T_ROW] << 4
        scale, slice_end = np.int64(words[w + W_SCALE]), m[b + T_SLICE_END]
        since = clock  # the operation's busy time is known up to here
        while True:
            if not at_point:
                # -- private steps, up to the next ordered point
                while True:
                    if pc < 0:
                        if pc == PC_THINK:
                            if clock >= slice_end:
                                break
                            span = min(m[b + T_THINK], slice_end - clock)
                            m[b + T_THINK] -= span
                            clock += span
                            if m[b + T_THINK]:
                                break
                            pc = np.int64(PC_END if m[b + T_TAIL] else PC_BEGIN)
                        if pc != PC_BEGIN or clock >= slice_end:
                            break
                        flags = longs[(m[b + T_ROW] << 3) + O_PROGRAM] >> 32
                        if flags & F_NO_PROGRAM or (flags & F_DEPS and m[b + T_FIRST_LAP]):
                            break
                        pc = begin(m, longs, b, clock)
                        draw, w = np.uint64(m[b + T_DRAW]), m[b + T_ROW] << 4
                        scale = np.int64(words[w + W_SCALE])
                        busy = np.int64(0)
                        since = clock
                    if code[pc + X_ORDERED] != PRIVATE_STEP:
                        if code[pc + X_ORDERED] == ORDERED_STEP:
                            break
                        if touches_shared(m, words, code, mark_vma, b, pc):
                            break
                    op = code[pc + X_OP]
                    if op == X_RUN:
                        m[runs + code[pc + X_A]] += 1
                        n = items + code[pc + X_B] * NF
                        last = n + code[pc + X_COLUMN] * NF
                        while n < last:
                            units = np.int64(1)
                            if m[n + N_COUNT]:
                                units = np.int64(words[w + W_PAGES])
                                if m[n + N_COUNT] == 2:
                                    units = np.int64(words[w + W_VMAS])
                                elif m[n + N_COUNT] == 3:
                                    units = np.int64(words[w + W_TABLES])
                            x = np.int64(((draw ^ np.uint64(m[n + N_KEY])) * U1) >> U56)
                            value = m[n + N_COST] * units * scale >> 10
                            value = (value * draws[m[n + N_DRAWS] + x] >> DRAW_BITS) >> COST_BITS
                            clock += value
                            m[m[n + N_HOLD]] += value
                            n += NF
                        clock += code[pc + X_C] * atomic
                        pc += XF
                    elif op == X_IF_BIT:
                        obj = np.int64(words[w + code[pc + X_COLUMN]])
                        bit = np.int64(0)
                        if obj >= 0 and bits[code[pc + X_A] + obj]:
                            bit = np.int64(1)
                        pc = code[pc + X_TARGET] if bit == code[pc + X_B] else pc + XF
                    elif op == X_EVERY:
                        place = every + cpu * m[H_CONDS] + code[pc + X_A]
                        m[place] -= 1
                        if m[place] == 0:
                            m[place] = code[pc + X_B]
                            pc = code[pc + X_TARGET]
                        else:
                            pc += XF
                    elif op == X_DONE:
                        if m[b + T_WAS_ORDERED] == 0:
                            break
                        if (longs[(m[b + T_ROW] << 3) + O_PROGRAM] >> 32) & F_SEEN:
                            break
                        finish(m, b, clock, busy + clock - since)
                        since = clock
                        pc = next_gap(m, longs, words, t, b)
                    elif op == X_JUMP:
                        pc = code[pc + X_TARGET]
                    elif op == X_LOCK_PRIVATE:
                        clock += atomic
                        m[held + code[pc + X_HELD]] = clock
                        m[code[pc + X_STAT] + (S_WRITE if code[pc + X_B] else S_READ)] += 1
                        spin += code[pc + X_C]
                        pc += XF
                    elif op == X_UNLOCK_PRIVATE:
                        field = S_WRITE_HOLD if code[pc + X_B] else S_READ_HOLD
                        m[code[pc + X_STAT] + field] += clock - m[held + code[pc + X_HELD]]
                        clock += atomic
                        spin -= code[pc + X_C]
                        pc += XF
                    elif op == X_SHARE:
                        n = items + code[pc + X_B] * NF
                        clock += share(m, words, draws, n, draw, w)
                        pc += XF
                    else:
                        m[b + T_SPIN] = spin
                        clock = step(
                            m, words, code, mark_first, mark_vma, mark_set, recorded_sleep, bits, t,
                            b, pc, clock,
                        )  # fmt: skip
                        spin = m[b + T_SPIN]
                        pc = m[H_RET]
                if pc >= 0:
                    busy += clock - since
                set_key(m, t, (clock << shift) | t)
                if m[H_ROOT] != ((clock << shift) | t):
                    m[b + T_PC], m[b + T_BUSY], m[b + T_SPIN] = pc, busy, spin
                    m[b + T_STATE] = POINT
                    break
                now = clock
                m[H_NOW] = now
            at_point = False
            since = clock
            # -- Simulation._point
            if m[H_STOP] >= 0:
                set_key(m, t, NEVER)
                break
            if m[b + T_FIN_ROW] >= 0:
                record(m, longs, b)
            c = core + cpu * CF
            m[c + C_MM] = m[b + T_MM]
            if now >= slice_end and spin == 0:
                if m[H_RQ_HEAD] >= 0:
                    m[b + T_PC], m[b + T_BUSY], m[b + T_SPIN] = pc, busy, spin
                    m[b + T_AFTER] = RUN
                    at(m, t, OFF, NEVER)
                    rq_push(m, t)
                    release_cpu(m, t)
                    break
                slice_end = now + m[H_SLICE]
                m[b + T_SLICE_END] = slice_end
            if m[c + C_OWED] and now >= m[c + C_DUE]:
                clock += m[c + C_OWED]
                m[c + C_OWED] = 0
                if pc < 0:
                    since = clock
                continue
            # -- between two operations
            if pc < 0:
                if pc == PC_THINK:
                    continue
                m[b + T_PC], m[b + T_SPIN] = pc, spin
                if pc == PC_BEGIN:
                    flags = longs[(m[b + T_ROW] << 3) + O_PROGRAM] >> 32
                    waits = flags & F_DEPS and m[b + T_FIRST_LAP]
                    if not waits and not flags & F_NO_PROGRAM:
                        continue
                    if waits and not dependencies_done(
                        m, b, t, dep_first, dep_op, done_ops, dep_head
                    ):
                        break
                    if flags & F_POINT:
                        pc = pass_point(
                            m, longs, words, t, b, clock, recorded_sleep, done_ops, dep_head
                        )
                        continue
                    pc = begin(m, longs, b, clock)
                    draw, w = np.uint64(m[b + T_DRAW]), m[b + T_ROW] << 4
                    scale = np.int64(words[w + W_SCALE])
                    busy = np.int64(0)
                    m[b + T_WAS_ORDERED] = 1 if waits else 0
                    if flags & F_NO_PROGRAM:
                        finish(m, b, clock, busy)
                        if flags & F_SEEN:
                            end_is_seen(m, longs, words, b, done_ops, dep_head, clock)
                        pc = next_gap(m, longs, words, t, b)
                    continue
                if pc == PC_BLOCK:
                    m[b + T_PC] = PC_THINK
                    m[b + T_AFTER] = RUN
                    at(m, t, OFF, clock + m[b + T_DEP_FROM])
                    m[b + T_DEP_FROM] = -1
                    release_cpu(m, t)
                else:  # PC_END
                    end_thread(m, t, b, clock)
                break
            # -- the ordered step
            m[b + T_WAS_ORDERED] = 1
            op = code[pc + X_OP]
            if op == X_DONE:
                finish(m, b, clock, busy)
                if (longs[(m[b + T_ROW] << 3) + O_PROGRAM] >> 32) & F_SEEN:
                    end_is_seen(m, longs, words, b, done_ops, dep_head, clock)
                pc = next_gap(m, longs, words, t, b)
                continue
            if op == X_IF_BIT:
                obj = np.int64(words[w + code[pc + X_COLUMN]])
                bit = np.int64(0)
                if obj >= 0 and bits[code[pc + X_A] + obj]:
                    bit = np.int64(1)
                pc = code[pc + X_TARGET] if bit == code[pc + X_B] else pc + XF
                continue
            if op < X_RWSEM_LOCK or op >= X_MODEL:
                m[b + T_PC], m[b + T_BUSY], m[b + T_SPIN] = pc, busy, spin
                clock = step(
                    m, words, code, mark_first, mark_vma, mark_set, recorded_sleep, bits, t, b, pc,
                    clock,
                )  # fmt: skip
                if clock < 0:
                    break
                spin = m[b + T_SPIN]
                pc = m[H_RET]
                continue
            # -- locks that several threads use
            obj = np.int64(0)
            if code[pc + X_COLUMN] != W_GLOBAL:
                obj = np.int64(words[w + code[pc + X_COLUMN]])
            r = np.int64(-1)
            line = np.int64(-1)
            if code[pc + X_INST] >= 0:
                r = code[pc + X_INST] + obj * isize
                line = code[pc + X_LINE] + obj * lsize
            mode = code[pc + X_B]
            done = clock
            if op == X_PIN_TRY:
                ok = True
                if code[pc + X_SEQ] >= 0:
                    so = np.int64(words[w + code[pc + X_SEQ_COLUMN]])
                    if code[pc + X_SEQ_LINE] >= 0:
                        done = line_read(m, code[pc + X_SEQ_LINE] + so * lsize, cpu, done)
                    ok = m[code[pc + X_SEQ] + so] != m[code[pc + X_C] + obj]
                if ok and r >= 0 and (m[r + I_DRAINER] >= 0 or m[r + I_WRITER] >= 0):
                    ok = False
                    done = line_read(m, line, cpu, done)
                if not ok:
                    m[code[pc + X_STAT] + S_TRY_FAILED] += 1
                    pc = code[pc + X_TARGET]
                    clock = done
                    continue
                done = write_line(m, line, cpu, done, atomic)
                if r >= 0:
                    add_reader(m, r, m[b + T_KIND])
            elif op == X_RWSEM_TRY:
                if not is_open(m, r, mode):
                    m[code[pc + X_STAT] + S_TRY_FAILED] += 1
                    clock = line_read(m, line, cpu, done)
                    pc = code[pc + X_TARGET]
                    continue
                done = write_line(m, line, cpu, done, atomic)
                rwsem_take(m, r, t, mode, done)
            elif op == X_RWSEM_LOCK:
                done = write_line(m, line, cpu, done, atomic)
                if is_open(m, r, mode):
                    rwsem_take(m, r, t, mode, done)
                else:
                    m[b + T_PC], m[b + T_BUSY], m[b + T_SPIN] = pc, busy, spin
                    done = rwsem_lock_slow(m, r, line, t, mode, done)
                    if done < 0:
                        break
            elif op == X_SPIN_LOCK:
                done = write_line(m, line, cpu, done, atomic)
                spin += 1
                if m[r + I_WRITER] >= 0:
                    m[b + T_PC], m[b + T_BUSY], m[b + T_SPIN] = pc, busy, spin
                    spin_wait(m, r, t)
                    break
                set_writer(m, r, t)
            else:  # X_RWSEM_UNLOCK, X_PIN_UNLOCK, X_SPIN_UNLOCK
                if mode == WRITE_MODE:
                    if code[pc + X_SEQ] >= 0:
                        so = np.int64(words[w + code[pc + X_SEQ_COLUMN]])
                        m[code[pc + X_SEQ] + so] += code[pc + X_SEQ_BY]
                        if code[pc + X_SEQ_LINE] >= 0:
                            line2 = code[pc + X_SEQ_LINE] + so * lsize
                            done = write_line(m, line2, cpu, done, 0)
                    if code[pc + X_OWNER] >= 0:
                        done = write_line(m, code[pc + X_OWNER] + obj * lsize, cpu, done, 0)
                field = S_WRITE_HOLD if mode == WRITE_MODE else S_READ_HOLD
                m[code[pc + X_STAT] + field] += clock - m[held + code[pc + X_HELD]]
                if op == X_RWSEM_UNLOCK:
                    done = rwsem_unlock(m, r, line, t, mode, done)
                    if done < 0:
                        busy += m[H_RET] - clock
                        m[b + T_PC], m[b + T_BUSY], m[b + T_SPIN] = pc, busy, spin
                        break
                elif op == X_PIN_UNLOCK:
                    done = pin_unlock(m, r, line, t, done)
                else:
                    done = spin_unlock(m, r, line, t, done)
                    spin -= 1
                clock = done
                pc += XF
                continue
            # -- Simulation.locked
            m[code[pc + X_STAT] + (S_WRITE if mode == WRITE_MODE else S_READ)] += 1
            if op != X_PIN_TRY:
                if code[pc + X_OWNER] >= 0:
                    done = write_line(m, code[pc + X_OWNER] + obj * lsize, cpu, done, 0)
                if mode == WRITE_MODE and code[pc + X_SEQ] >= 0 and code[pc + X_SEQ_BY] == 1:
                    so = np.int64(words[w + code[pc + X_SEQ_COLUMN]])
                    m[code[pc + X_SEQ] + so] += 1
                    if code[pc + X_SEQ_LINE] >= 0:
                        line2 = code[pc + X_SEQ_LINE] + so * lsize
                        done = write_line(m, line2, cpu, done, 0)
            m[held + code[pc + X_HELD]] = done
            clock = done
            pc += XF
    for t in range(m[H_THREADS]):
        if m[HEADER + t * TF + T_FIN_ROW] >= 0:
            record(m, longs, HEADER + t * TF)


@borrowing_njit
def replay(
    m, longs, words, code, draws, mark_first, mark_vma, mark_set, recorded_sleep, dep_first, dep_op,
    done_ops, dep_head, bits,
):  # fmt: skip
    """Run all events.  Arrays: see ``compiled.py``."""
    _run(
        pointer(m), pointer(longs), pointer(words), pointer(code), pointer(draws),
        pointer(mark_first), pointer(mark_vma), pointer(mark_set), pointer(recorded_sleep),
        pointer(dep_first), pointer(dep_op), pointer(done_ops), pointer(dep_head), pointer(bits),
    )  # fmt: skip
