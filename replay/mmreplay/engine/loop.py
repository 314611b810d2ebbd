"""The compiled loop: the twin of ``oracle.py``, which defines what it computes.

It differs in one respect: a thread executes its private steps in one go, with a
clock of its own, and goes back to the event queue only at ordered steps.  Programs
come specialised (``specialise.py``): branches on traits are gone.
"""
# ruff: noqa: F403, F405

from __future__ import annotations

import numpy as np

from mmreplay.engine.kinds.pin_jit import *
from mmreplay.engine.kinds.rwsem_jit import *
from mmreplay.engine.kinds.spin_jit import *
from mmreplay.engine.layout import *
from mmreplay.engine.setup import COST_BITS, DRAW_BITS, DRAWS, GOLDEN, MIX1, MIX2
from mmreplay.jit import borrowing_helper, borrowing_njit
from mmreplay.locking.isa import Kind, Op, Operand, RuntimeBit, Scope

# Enumerations as plain integers, which the compiler folds.
DONE, COST, SLEEP, FLUSH, TOUCH = int(Op.DONE), int(Op.COST), int(Op.SLEEP), int(Op.FLUSH), 4
LOCK, TRY, UNLOCK, DOWNGRADE = int(Op.LOCK), int(Op.TRY), int(Op.UNLOCK), int(Op.DOWNGRADE)
MARK, SNAP, CHECK, BRANCH = int(Op.MARK), int(Op.SNAP), int(Op.CHECK), int(Op.BRANCH)
JUMP, EACH, END_EACH, SET, COUNT = int(Op.JUMP), int(Op.EACH), int(Op.END), int(Op.SET), 17
K_RWSEM, K_PIN, K_SPIN = int(Kind.RWSEM), int(Kind.PIN), int(Kind.SPIN)
S_MM, S_VMA, S_TABLE = int(Scope.MM), int(Scope.VMA), int(Scope.TABLE)
S_FILE, S_ANON = int(Scope.FILE), int(Scope.ANON_ROOT)
CHILD, TARGET_MM = int(Operand.CHILD), int(Operand.TARGET)
B_ANON, B_DEAD = int(RuntimeBit.VMA_ANON_VMA), int(RuntimeBit.VMA_DEAD)
B_TABLE, B_TRIED = int(RuntimeBit.TABLE_PRESENT), int(RuntimeBit.OP_TRIED)
U1, U2, UG = np.uint64(MIX1), np.uint64(MIX2), np.uint64(GOLDEN)
U30, U27, U31, U56 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(56)
WRITE_MODE = 1
LOW = (1 << 32) - 1


@borrowing_helper
def mix(x):
    x = (x ^ (x >> U30)) * U1
    x = (x ^ (x >> U27)) * U2
    return x ^ (x >> U31)


@borrowing_helper
def low(x):
    return (x << 32) >> 32


@borrowing_helper
def object_of(m, ops, mark_vma, b, row, scope, operand):
    """Simulation._object."""
    if scope == S_MM:
        if operand == CHILD or operand == TARGET_MM:
            child = ops[(row << 3) + O_FILE] >> 32
            if child >= 0:
                return child
        return low(ops[(row << 3) + O_MM])
    if scope == S_VMA:
        if m[b + T_EACH] < m[b + T_EACH_END]:
            return np.int64(mark_vma[m[b + T_EACH]])
        return low(ops[(row << 3) + O_VMA])
    if scope == S_TABLE:
        return ops[(row << 3) + O_VMA] >> 32
    if scope == S_FILE:
        return low(ops[(row << 3) + O_FILE])
    if scope == S_ANON:
        return ops[(row << 3) + O_MM] >> 32
    return np.int64(0)


@borrowing_helper
def line_of(m, ops, mark_vma, sid, b, row, d, operand):
    """The shared cache line of a lock, -1 where it is private."""
    o = object_of(m, ops, mark_vma, b, row, m[d + D_LINE_SCOPE], operand)
    if o < 0:
        return np.int64(-1)
    s = np.int64(sid[m[d + D_LINE_SID] + o])
    return s if s < 0 else m[d + D_LINE] + s


@borrowing_helper
def is_shared(m, ops, mark_vma, sid, b, row, lock, operand):
    """Is an instance of the lock, or its line, shared?"""
    d = m[H_LOCK] + lock * DF
    o = object_of(m, ops, mark_vma, b, row, m[d + D_SCOPE], operand)
    if o >= 0 and sid[m[d + D_SID] + o] >= 0:
        return True
    return line_of(m, ops, mark_vma, sid, b, row, d, operand) >= 0


@borrowing_helper
def bump(m, ops, mark_vma, sid, values, b, row, d, operand, at_ns):
    """Simulation._bump, once it is known to move."""
    s = m[H_LOCK] + m[d + D_BUMPS] * DF
    o = object_of(m, ops, mark_vma, b, row, m[s + D_SCOPE], operand)
    if o < 0:
        return at_ns
    values[m[s + D_VALUE] + o] += 1 if m[d + D_BUMP_ACQUIRE] else 2
    line = line_of(m, ops, mark_vma, sid, b, row, s, operand)
    return line_write(m, line, m[b + T_CPU], at_ns, 0)


@borrowing_helper
def store_owner(m, ops, mark_vma, sid, b, row, d, operand, at_ns):
    """Simulation._store_owner, once it is known to be modelled."""
    o = object_of(m, ops, mark_vma, b, row, m[d + D_SCOPE], operand)
    if o < 0:
        return at_ns
    s = np.int64(sid[m[d + D_SID] + o])
    return line_write(m, m[d + D_OWNER] + s, m[b + T_CPU], at_ns, 0) if s >= 0 else at_ns


@borrowing_helper
def record(m, ops, b):
    """Simulation._record."""
    row = m[b + T_FIN_ROW]
    m[b + T_FIN_ROW] = -1
    kind = m[b + T_FIN_KIND]
    m[m[H_OPCOUNT] + kind] += 1
    m[m[H_OPBUSY] + kind] += m[b + T_FIN_BUSY]
    m[m[H_OPWAIT] + kind] += m[b + T_FIN_WAIT]
    delay = m[b + T_FIN_DELAY]
    bucket = delay
    if delay >= 16:
        octave = 0
        rest = delay
        if rest >> 32:
            octave += 32
            rest >>= 32
        if rest >> 16:
            octave += 16
            rest >>= 16
        if rest >> 8:
            octave += 8
            rest >>= 8
        if rest >> 4:
            octave += 4
            rest >>= 4
        if rest >> 2:
            octave += 2
            rest >>= 2
        octave += rest >> 1
        bucket = min((octave - 3) * 16 + ((delay >> (octave - 4)) - 16), 639)
    m[m[H_DELAY] + kind * 640 + bucket] += 1
    if not m[b + T_GROUP]:
        return
    m[H_GRP_RECORDED] += 1
    end = m[b + T_FIN_END]
    if m[H_WIN_END] < 0 or end <= m[H_WIN_END]:
        user = ops[(row << 3) + O_THINK]
        m[H_GRP_OPS] += 1
        m[H_GRP_USER] += user
        if m[H_WIN_BEGIN] >= 0 and end > m[H_WIN_BEGIN]:
            m[H_WIN_OPS] += 1
            m[H_WIN_USER] += user
    if m[H_WIN_BEGIN] < 0 and m[H_WIN_END] < 0 and m[H_GRP_RECORDED] * 10 >= m[H_GRP_TOTAL]:
        m[H_WIN_BEGIN] = m[H_NOW]


@borrowing_helper
def enter_gap(m, ops, tails, b, t):
    """Simulation._enter_gap."""
    row = m[b + T_ROW]
    if row == m[b + T_END_ROW]:
        m[b + T_TAIL] = 1
        m[b + T_ROW] = max(row - 1, 0)
        m[b + T_THINK] = tails[t, 0]
        blocked = tails[t, 1]
    else:
        m[b + T_THINK] = ops[(row << 3) + O_THINK]
        blocked = ops[(row << 3) + O_BLOCKED]
    m[b + T_MM] = low(ops[(m[b + T_ROW] << 3) + O_MM])
    return np.int64(0) if m[H_SATURATED] and m[b + T_GROUP] else blocked


@borrowing_helper
def flush_others(m, cpu, mm):
    """Simulation._flush."""
    targets = 0
    for other in range(m[H_CORES]):
        c = m[H_CORE] + other * CF
        if other != cpu and m[c + C_MM] == mm:
            targets += 1
            if m[c + C_RUNNING] >= 0:
                m[c + C_OWED] += m[H_HANDLER]
    if targets == 0:
        return m[H_FLUSH_BASE]
    return m[H_FLUSH_BASE] + m[H_FLUSH_FIRST] + m[H_FLUSH_NEXT] * (targets - 1)


@borrowing_helper
def begin_ready(m, b, t, row, deps, done_ops, dep_first, dep_op, dep_head):
    """Have all operations that this one depends on completed?  If not, wait for the first."""
    for k in range(dep_first[row], dep_first[row + 1]):
        dep = dep_op[k]
        if not done_ops[dep]:
            if m[b + T_DEP_FROM] < 0:
                m[b + T_DEP_FROM] = m[H_NOW]
            m[b + T_DEP_NEXT] = dep_head[dep]
            dep_head[dep] = t
            m[b + T_AFTER] = RUN
            at(m, t, OFF, NEVER)
            release_cpu(m, t)
            return False
    if m[b + T_DEP_FROM] >= 0:
        m[H_DEP_WAIT_NS] += m[H_NOW] - m[b + T_DEP_FROM]
    m[b + T_DEP_FROM] = -1
    return True


@borrowing_helper
def touches_shared(m, ops, code, mark_vma, sid, line_scope, line_sid, cond_bits, bit_base, b, row,
                   pc):  # fmt: skip
    """Simulation.ordered for an instruction whose VMA is only known now."""
    op = np.int64(code[pc << 3])
    a = np.int64(code[(pc << 3) + 1])
    if op == TOUCH:
        o = object_of(m, ops, mark_vma, b, row, line_scope[a], 0)
        return o >= 0 and sid[line_sid[a] + o] >= 0
    if op == BRANCH or op == SET:
        used = a
        if op == BRANCH:
            used = cond_bits[a, 0] | cond_bits[a, 1]
        for n in range(3):
            if used & (1 << n):
                o = object_of(m, ops, mark_vma, b, row, bit_base[n, 2], 0)
                if o >= 0 and sid[bit_base[n, 1] + o] >= 0:
                    return True
        return False
    operand = np.int64(0)
    if op <= UNLOCK:
        operand = np.int64(code[(pc << 3) + 3])
    if is_shared(m, ops, mark_vma, sid, b, row, a, operand):
        return True
    d = m[H_LOCK] + a * DF
    s = m[d + D_MARKS_BY]
    if (op == TRY or op == MARK) and s >= 0:
        if is_shared(m, ops, mark_vma, sid, b, row, s, operand):
            return True
    s = m[d + D_BUMPS]
    if s >= 0 and (op == DOWNGRADE or (op <= UNLOCK and code[(pc << 3) + 2] == WRITE_MODE)):
        return is_shared(m, ops, mark_vma, sid, b, row, s, operand)
    return False


@borrowing_njit
def replay(
    m, ops, code, cost_q, cost_key, cost_draw, sleep_ns, recorded_sleep, loops, tails, sid, values,
    line_scope, line_sid, line_base, cond_bits, every, bits, bit_base, mark_first, mark_vma,
    mark_set, dep_first, dep_op, done_ops, dep_head, held, snaps, reasons,
):  # fmt: skip
    """Run all events.  Arrays: see ``compiled.py``."""
    shift = m[H_SHIFT]
    mask = (1 << shift) - 1
    root = m[H_TREE] + 1
    th = m[H_TH]
    core = m[H_CORE]
    stats = m[H_STAT]
    atomic = m[H_ATOMIC]
    held_width = 2 * m[H_LOCKS]
    while True:
        key = m[root]
        if key == NEVER:
            break
        t = key & mask
        now = key >> shift
        m[H_NOW] = now
        b = th + t * TF
        state = m[b + T_STATE]
        completion = 0  # 1: the lock is held, 2: the step is over, 3: a mark may be stored
        done = now
        if state != RUN:
            if m[H_STOP] >= 0:
                set_time(m, t, NEVER)
                continue
            if state == OFF:
                runnable(m, t)
                continue
            r = m[b + T_WAIT_INST]
            if state == FALL:
                set_time(m, t, NEVER)
                stat(m, m[r + I_LOCK], S_SLEEPS, 1)
                release_cpu(m, t)
                continue
            if state == GRANTED:
                end_wait(m, r, t, m[b + T_MODE] == WRITE_MODE)
                completion = 1
            elif state == SPIN:
                done = spin_event(m, r, m[r + I_LINE], t)
                if done < 0:
                    continue
                completion = 1
            elif state == OSQ:
                osq_event(m, r, m[r + I_LINE], t)
                continue
            elif state == WAKE:
                if m[r + I_Q_HEAD] >= 0:
                    done = mark_wake(m, r, t, now, False, True)
                completion = 2
            elif state == DRAINED:
                set_writer(m, r, -1)
                end_wait(m, r, t, True)
                completion = 3
            else:  # RETRY, HANDOFF_SPIN
                m[b + T_PENDING] = 0
                try_write_lock(m, r, t, line_rmw(m, m[r + I_LINE], m[b + T_CPU], now))
                continue
            m[b + T_STATE] = RUN
        fresh = completion == 0
        clock = now
        pc = m[b + T_PC]
        busy = m[b + T_BUSY]
        spin = m[b + T_SPIN]
        row = m[b + T_ROW]
        cpu = m[b + T_CPU]
        slice_end = m[b + T_SLICE_END]
        draw = np.uint64(m[b + T_DRAW])
        while True:
            # -- a step that ended with an event of its own, or a LOCK that succeeded
            if completion:
                a = np.int64(code[(pc << 3) + 1])
                d = m[H_LOCK] + a * DF
                if completion == 1:
                    mode = code[(pc << 3) + 2]
                    operand = code[(pc << 3) + 3]
                    m[stats + a * SF + (S_WRITE if mode == WRITE_MODE else S_READ)] += 1
                    if m[d + D_OWNER] >= 0:
                        done = store_owner(m, ops, mark_vma, sid, b, row, d, operand, done)
                    if mode == WRITE_MODE and m[d + D_BUMPS] >= 0 and m[d + D_BUMP_ACQUIRE]:
                        done = bump(m, ops, mark_vma, sid, values, b, row, d, operand, done)
                    other = operand == CHILD or operand == TARGET_MM
                    held[t * held_width + 2 * a + (1 if other else 0)] = done
                elif completion == 3:
                    o = object_of(m, ops, mark_vma, b, row, m[d + D_SCOPE], 0)
                    if m[d + D_MARKS_BY] >= 0:
                        s = m[H_LOCK] + m[d + D_MARKS_BY] * DF
                        so = object_of(m, ops, mark_vma, b, row, m[s + D_SCOPE], 0)
                        if so >= 0:
                            values[m[d + D_VALUE] + o] = values[m[s + D_VALUE] + so]
                    line = line_of(m, ops, mark_vma, sid, b, row, d, 0)
                    done = line_rmw(m, line, cpu, done)
                completion = 0
                busy += done - clock
                clock = done
                pc += 1
                fresh = False
            # -- a run of the most frequent private steps
            while pc >= 0 and (clock < slice_end or spin > 0):
                op = np.int64(code[pc << 3])
                a = np.int64(code[(pc << 3) + 1])
                if op == COST:
                    count = code[(pc << 3) + 2]
                    pages = ops[(row << 3) + O_PAGES]
                    units = np.int64(1)
                    if count == 1:
                        units = pages & LOW
                    elif count == 2:
                        units = low(ops[(row << 3) + O_VMAS])
                    elif count == 3:
                        units = ops[(row << 3) + O_VMAS] >> 32
                    x = np.int64(((draw ^ cost_key[a]) * U1) >> U56)
                    value = cost_q[a] * units * (pages >> 32) >> 10
                    value = (value * cost_draw[a * DRAWS + x] >> DRAW_BITS) >> COST_BITS
                    clock += value
                    busy += value
                elif op == LOCK_PRIVATE:
                    clock += atomic
                    busy += atomic
                    held[t * held_width + code[(pc << 3) + 3]] = clock
                    write = code[(pc << 3) + 2] == WRITE_MODE
                    m[stats + a * SF + (S_WRITE if write else S_READ)] += 1
                    spin += code[(pc << 3) + 4]
                elif op == UNLOCK_PRIVATE:
                    write = code[(pc << 3) + 2] == WRITE_MODE
                    since = held[t * held_width + code[(pc << 3) + 3]]
                    m[stats + a * SF + (S_WRITE_HOLD if write else S_READ_HOLD)] += clock - since
                    clock += atomic
                    busy += atomic
                    spin -= code[(pc << 3) + 4]
                else:
                    break
                pc += 1
            # -- is the next step ordered?
            ordered = False
            a = np.int64(0)
            if pc >= 0:
                op = np.int64(code[pc << 3])
                a = np.int64(code[(pc << 3) + 1])
                known = code[(pc << 3) + 5]
                if known:
                    ordered = known == FL_ORDERED or touches_shared(
                        m, ops, code, mark_vma, sid, line_scope, line_sid, cond_bits, bit_base, b,
                        row, pc,
                    )  # fmt: skip
                elif op == DONE:
                    ordered = (
                        m[b + T_WAS_ORDERED] == 0
                        or ((ops[(row << 3) + O_PROGRAM] >> 32) & F_DEPENDENTS) != 0
                    )
            else:
                op = pc
                if pc == PC_BEGIN:
                    flags = ops[(row << 3) + O_PROGRAM] >> 32
                    ordered = (flags & F_NO_PROGRAM) != 0 or (
                        (flags & F_DEPS) != 0 and m[b + T_FIRST_LAP] != 0
                    )
                else:
                    ordered = pc != PC_THINK
            # -- ordered points
            if ordered or (clock >= slice_end and spin == 0):
                if m[H_STOP] >= 0:
                    set_time(m, t, NEVER)
                    break
                if not fresh or clock != now:
                    set_time(m, t, clock)
                    if m[root] != ((clock << shift) | t):
                        m[b + T_PC] = pc
                        m[b + T_BUSY] = busy
                        m[b + T_SPIN] = spin
                        break
                    now = clock
                    m[H_NOW] = now
                    fresh = True
                if m[b + T_FIN_ROW] >= 0:
                    record(m, ops, b)
                c = core + cpu * CF
                m[c + C_MM] = low(ops[(row << 3) + O_MM])
                if clock >= slice_end and spin == 0:
                    if m[H_RQ_HEAD] >= 0:
                        m[b + T_PC] = pc
                        m[b + T_BUSY] = busy
                        m[b + T_SPIN] = spin
                        m[b + T_AFTER] = RUN
                        at(m, t, OFF, NEVER)
                        rq_push(m, t)
                        release_cpu(m, t)
                        break
                    slice_end = now + m[H_SLICE]
                    m[b + T_SLICE_END] = slice_end
                if m[c + C_OWED]:
                    if pc >= 0:
                        busy += m[c + C_OWED]
                    clock += m[c + C_OWED]
                    m[c + C_OWED] = 0
                    fresh = False
                    continue
                if ordered:
                    fresh = False
                    if pc >= 0:
                        m[b + T_WAS_ORDERED] = 1
            # -- the step
            if op == COST or op >= LOCK_PRIVATE:
                continue  # its slice is checked: the run above goes on
            operand = np.int64(0)
            instance = np.int64(-1)
            line = np.int64(-1)
            obj = np.int64(-1)
            d = np.int64(0)
            if op >= LOCK and op <= CHECK:
                if op <= UNLOCK:
                    operand = np.int64(code[(pc << 3) + 3])
                d = m[H_LOCK] + a * DF
                obj = object_of(m, ops, mark_vma, b, row, m[d + D_SCOPE], operand)
                if obj >= 0:
                    s = np.int64(sid[m[d + D_SID] + obj])
                    if s >= 0:
                        instance = m[d + D_INST] + s * m[H_ISIZE]
                line = line_of(m, ops, mark_vma, sid, b, row, d, operand)
            if op == LOCK:
                kind = m[d + D_KIND]
                mode = np.int64(code[(pc << 3) + 2])
                if instance < 0:
                    done = line_rmw(m, line, cpu, now) if line >= 0 else clock + atomic
                elif kind == K_RWSEM:
                    done = line_rmw(m, line, cpu, now)
                    if is_open(m, instance, mode):
                        if mode == WRITE_MODE:
                            take_write(m, instance, t)
                        else:
                            take_read(m, instance, m[b + T_KIND], done)
                    else:
                        m[b + T_PC] = pc
                        m[b + T_BUSY] = busy
                        m[b + T_SPIN] = spin
                        m[instance + I_LINE] = line
                        done = rwsem_lock_slow(m, instance, line, t, mode, done)
                        if done < 0:
                            break
                else:
                    done = line_rmw(m, line, cpu, now)
                    if kind == K_PIN:
                        add_reader(m, instance, m[b + T_KIND])
                    elif m[instance + I_WRITER] < 0:
                        set_writer(m, instance, t)
                    else:
                        m[b + T_PC] = pc
                        m[b + T_BUSY] = busy
                        m[b + T_SPIN] = spin + 1
                        spin_wait(m, instance, t)
                        break
                if kind == K_SPIN:
                    spin += 1
                completion = 1
            elif op == TRY:
                kind = m[d + D_KIND]
                mode = np.int64(code[(pc << 3) + 2])
                ok = True
                done = clock
                if obj < 0:
                    ok = kind != K_PIN
                    if ok:
                        done += atomic
                elif kind == K_PIN:
                    s = m[d + D_MARKS_BY]
                    if s >= 0:
                        s = m[H_LOCK] + s * DF
                        so = object_of(m, ops, mark_vma, b, row, m[s + D_SCOPE], 0)
                        if so >= 0:
                            seq_line = line_of(m, ops, mark_vma, sid, b, row, s, 0)
                            done = line_read(m, seq_line, cpu, done)
                            ok = values[m[s + D_VALUE] + so] != values[m[d + D_VALUE] + obj]
                    if ok and instance >= 0:
                        if m[instance + I_DRAINER] >= 0 or m[instance + I_WRITER] >= 0:
                            ok = False
                            done = line_read(m, line, cpu, done)
                    if ok:
                        done = line_rmw(m, line, cpu, done)
                        if instance >= 0:
                            add_reader(m, instance, m[b + T_KIND])
                elif kind == K_SPIN:
                    ok = instance < 0 or m[instance + I_WRITER] < 0
                    if ok:
                        done = line_rmw(m, line, cpu, done)
                        if instance >= 0:
                            set_writer(m, instance, t)
                        spin += 1
                    else:
                        done = line_read(m, line, cpu, done)
                else:
                    ok = instance < 0 or is_open(m, instance, mode)
                    if ok:
                        done = line_rmw(m, line, cpu, done)
                        if instance >= 0:
                            if mode == WRITE_MODE:
                                take_write(m, instance, t)
                            else:
                                take_read(m, instance, m[b + T_KIND], done)
                    else:
                        done = line_read(m, line, cpu, done)
                if ok:
                    completion = 1
                else:
                    m[stats + a * SF + S_TRY_FAILED] += 1
                    busy += done - clock
                    clock = done
                    pc = np.int64(code[(pc << 3) + 4])
            elif op == UNLOCK:
                mode = np.int64(code[(pc << 3) + 2])
                done = clock
                if mode == WRITE_MODE and m[d + D_BUMPS] >= 0:
                    done = bump(m, ops, mark_vma, sid, values, b, row, d, operand, done)
                if mode == WRITE_MODE and m[d + D_OWNER] >= 0:
                    done = store_owner(m, ops, mark_vma, sid, b, row, d, operand, done)
                other = operand == CHILD or operand == TARGET_MM
                field = S_WRITE_HOLD if mode == WRITE_MODE else S_READ_HOLD
                m[stats + a * SF + field] += (
                    clock - held[t * held_width + 2 * a + (1 if other else 0)]
                )
                kind = m[d + D_KIND]
                if instance < 0:
                    done = line_rmw(m, line, cpu, done) if obj >= 0 else done + atomic
                elif kind == K_RWSEM:
                    done = rwsem_unlock(m, instance, line, t, mode, done)
                    if done < 0:
                        m[b + T_PC] = pc
                        m[b + T_BUSY] = busy + m[H_RET] - clock
                        m[b + T_SPIN] = spin
                        break
                elif kind == K_PIN:
                    done = pin_unlock(m, instance, line, t, done)
                else:
                    done = spin_unlock(m, instance, line, t, done)
                if kind == K_SPIN:
                    spin -= 1
                busy += done - clock
                clock = done
                pc += 1
            elif op == DOWNGRADE:
                done = clock
                if m[d + D_BUMPS] >= 0:
                    done = bump(m, ops, mark_vma, sid, values, b, row, d, 0, done)
                m[stats + a * SF + S_WRITE_HOLD] += clock - held[t * held_width + 2 * a]
                m[stats + a * SF + S_DOWNGRADE] += 1
                if instance >= 0:
                    done = rwsem_downgrade(m, instance, line, t, done)
                else:
                    done = line_rmw(m, line, cpu, done) if obj >= 0 else done + atomic
                if m[d + D_OWNER] >= 0:
                    done = store_owner(m, ops, mark_vma, sid, b, row, d, 0, done)
                held[t * held_width + 2 * a] = done
                busy += done - clock
                clock = done
                pc += 1
            elif op == BRANCH:
                tried = m[b + T_TRIED] != 0
                holds = True
                for want in range(2):  # bits that must be set, bits that must be clear
                    x = cond_bits[a, want]
                    if x & B_ANON:
                        obj = object_of(m, ops, mark_vma, b, row, S_ANON, 0)
                        holds &= (obj >= 0 and bits[bit_base[0, 0] + obj] != 0) == (want == 0)
                    if x & B_DEAD:
                        obj = object_of(m, ops, mark_vma, b, row, S_VMA, 0)
                        holds &= (obj >= 0 and bits[bit_base[1, 0] + obj] != 0) == (want == 0)
                    if x & B_TABLE:
                        obj = object_of(m, ops, mark_vma, b, row, S_TABLE, 0)
                        holds &= (obj >= 0 and bits[bit_base[2, 0] + obj] != 0) == (want == 0)
                    if x & B_TRIED:
                        holds &= tried == (want == 0)
                if holds and cond_bits[a, 2]:
                    n = cpu * len(cond_bits) + a
                    every[n] += 1
                    holds = every[n] % cond_bits[a, 2] == 0
                pc = np.int64(code[(pc << 3) + 4]) if holds else pc + 1
            elif op == JUMP:
                pc = np.int64(code[(pc << 3) + 4])
            elif op == DONE or op == PC_BEGIN:
                if op == DONE:
                    finish = True
                else:
                    flags = ops[(row << 3) + O_PROGRAM] >> 32
                    m[b + T_WAS_ORDERED] = 0
                    if (flags & F_DEPS) and m[b + T_FIRST_LAP]:
                        m[b + T_PC] = pc
                        m[b + T_SPIN] = spin
                        if not begin_ready(
                            m, b, t, row, flags, done_ops, dep_first, dep_op, dep_head
                        ):
                            break
                        m[b + T_WAS_ORDERED] = 1
                    m[b + T_KIND] = flags >> 8
                    m[b + T_BEGIN] = clock
                    m[b + T_WAIT] = 0
                    m[b + T_TRIED] = 0
                    m[b + T_EACH] = 0
                    m[b + T_EACH_END] = 0
                    busy = np.int64(0)
                    base = mix(np.uint64((m[H_SEED] << 40) ^ (t << 20)))
                    draw = mix(base + np.uint64(m[b + T_NTH]) * UG)
                    m[b + T_DRAW] = np.int64(draw)
                    m[b + T_NTH] += 1
                    pc = low(ops[(row << 3) + O_PROGRAM])
                    finish = (flags & F_NO_PROGRAM) != 0
                if finish:
                    m[b + T_FIN_ROW] = row
                    m[b + T_FIN_KIND] = m[b + T_KIND]
                    m[b + T_FIN_END] = clock
                    m[b + T_FIN_BUSY] = busy
                    m[b + T_FIN_WAIT] = m[b + T_WAIT]
                    m[b + T_FIN_DELAY] = clock - m[b + T_BEGIN]
                    if (ops[(row << 3) + O_PROGRAM] >> 32) & F_DEPENDENTS and not done_ops[row]:
                        done_ops[row] = 1
                        u = np.int64(dep_head[row])
                        dep_head[row] = -1
                        while u >= 0:
                            at(m, u, OFF, clock + m[H_WOKEN])
                            u = m[th + u * TF + T_DEP_NEXT]
                    row += 1
                    if row == m[b + T_END_ROW] and m[H_WRAP]:
                        if loops[t] >= 0 and not m[b + T_GROUP]:
                            row = loops[t]
                            m[b + T_FIRST_LAP] = 0
                    m[b + T_ROW] = row
                    blocked = enter_gap(m, ops, tails, b, t)
                    row = m[b + T_ROW]
                    pc = np.int64(PC_THINK)
                    m[b + T_DEP_FROM] = -1
                    if blocked:
                        m[b + T_DEP_FROM] = blocked
                        pc = np.int64(PC_BLOCK)
            elif op == PC_THINK:
                span = min(m[b + T_THINK], max(np.int64(0), slice_end - clock))
                m[b + T_THINK] -= span
                if m[b + T_THINK] == 0:
                    pc = np.int64(PC_END if m[b + T_TAIL] else PC_BEGIN)
                clock += span
            elif op == COUNT:
                reasons[a] += 1
                pc += 1
            elif op == SET:
                if a == B_TRIED:
                    m[b + T_TRIED] = 1
                else:
                    n = 0 if a == B_ANON else (1 if a == B_DEAD else 2)
                    obj = object_of(m, ops, mark_vma, b, row, bit_base[n, 2], 0)
                    if obj >= 0:
                        bits[bit_base[n, 0] + obj] = 1
                pc += 1
            elif op == TOUCH:
                done = clock
                obj = object_of(m, ops, mark_vma, b, row, line_scope[a], code[(pc << 3) + 3])
                if obj >= 0 and sid[line_sid[a] + obj] >= 0:
                    line = line_base[a] + sid[line_sid[a] + obj]
                    if code[(pc << 3) + 2] == 1:
                        done = line_write(m, line, cpu, clock, 0)
                    else:
                        done = line_read(m, line, cpu, clock)
                busy += done - clock
                clock = done
                pc += 1
            elif op == EACH:
                first = mark_first[row]
                last = mark_first[row + 1]
                while first < last and mark_set[first] != a:
                    first += 1
                end = first
                while end < last and mark_set[end] == a:
                    end += 1
                if first == end:
                    m[b + T_EACH] = 0
                    m[b + T_EACH_END] = 0
                    pc = np.int64(code[(pc << 3) + 4])
                else:
                    m[b + T_EACH] = first
                    m[b + T_EACH_END] = end
                    pc += 1
            elif op == END_EACH:
                m[b + T_EACH] += 1
                if m[b + T_EACH] < m[b + T_EACH_END]:
                    pc = np.int64(code[(pc << 3) + 4])
                else:
                    m[b + T_EACH] = 0
                    m[b + T_EACH_END] = 0
                    pc += 1
            elif op == MARK:
                done = clock
                if obj >= 0:
                    value = np.int64(-2)
                    s = m[d + D_MARKS_BY]
                    if s >= 0:
                        s = m[H_LOCK] + s * DF
                        so = object_of(m, ops, mark_vma, b, row, m[s + D_SCOPE], 0)
                        if so >= 0:
                            value = values[m[s + D_VALUE] + so]
                    place = m[d + D_VALUE] + obj
                    if value >= 0 and value == values[place]:
                        done = line_read(m, line, cpu, done)
                    else:
                        m[stats + a * SF + S_MARK] += 1
                        done = line_rmw(m, line, cpu, done)
                        if instance >= 0 and m[instance + I_READERS]:
                            m[b + T_PC] = pc
                            m[b + T_BUSY] = busy
                            m[b + T_SPIN] = spin
                            m[instance + I_LINE] = line
                            pin_drain(m, instance, t, done)
                            break
                        if value >= 0:
                            values[place] = value
                        done = line_rmw(m, line, cpu, done)
                busy += done - clock
                clock = done
                pc += 1
            elif op == SNAP or op == CHECK:
                value = np.int64(0)
                done = clock
                if obj >= 0:
                    value = values[m[d + D_VALUE] + obj]
                    done = line_read(m, line, cpu, done)
                target = np.int64(code[(pc << 3) + 4])
                if op == SNAP:
                    failed = (value & 1) == 1 and target >= 0
                    if not failed:
                        snaps[t, a] = value
                else:
                    failed = value != snaps[t, a]
                busy += done - clock
                clock = done
                pc = target if failed else pc + 1
            elif op == FLUSH:
                if a:
                    done = clock + flush_others(m, cpu, low(ops[(row << 3) + O_MM]))
                    busy += done - clock
                    clock = done
                pc += 1
            elif op == SLEEP:
                span = recorded_sleep[row]
                if span < 0:
                    span = sleep_ns[a]
                m[H_SLEEP_NS] += span
                m[b + T_PC] = pc + 1
                m[b + T_BUSY] = busy
                m[b + T_SPIN] = spin
                m[b + T_AFTER] = RUN
                at(m, t, OFF, clock + span)
                release_cpu(m, t)
                break
            elif op == PC_BLOCK:
                m[b + T_PC] = PC_THINK
                m[b + T_SPIN] = spin
                m[b + T_AFTER] = RUN
                at(m, t, OFF, clock + m[b + T_DEP_FROM])
                m[b + T_DEP_FROM] = -1
                release_cpu(m, t)
                break
            else:  # PC_END
                m[m[H_TEND] + t] = clock
                at(m, t, END, NEVER)
                release_cpu(m, t)
                if m[b + T_GROUP] == 1 and m[H_WIN_END] < 0 and loops[t] > -2:
                    m[H_WIN_END] = clock
                    if m[H_WRAP]:
                        m[H_STOP] = clock
                break
    for t in range(m[H_THREADS]):
        if m[th + t * TF + T_FIN_ROW] >= 0:
            record(m, ops, th + t * TF)
