"""Lays out the arrays of the compiled loop, runs it, reads the counters back."""
# ruff: noqa: F403, F405

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import Plan, PlanOp
from mmreplay.engine.layout import *
from mmreplay.engine.loop import replay
from mmreplay.engine.result import DELAY_BUCKETS, Options, Result
from mmreplay.engine.setup import SCOPES, P, Setup, cpu_mask_words, object_scope, prepare
from mmreplay.engine.specialise import Emitter, classify, pack, trait_mask
from mmreplay.engine.summary import Totals, stuck, summarise
from mmreplay.locking.isa import Kind, Scope
from mmreplay.locking.model import LockingModel
from mmreplay.machine.profile import Machine

I64 = NDArray[np.int64]


def _operations(plan: Plan, model: LockingModel, setup: Setup, kinds: I64) -> tuple[Any, I64]:
    """The specialised code and the packed operations."""
    shared = setup.shared
    limit = 1 << 10
    while True:
        keys = np.zeros(limit, np.int64)
        class_of = np.empty(plan.n_ops, np.int32)
        count = classify(
            plan.op, plan.traits, trait_mask(model), plan.mm, plan.child_mm, plan.vma, plan.table,
            plan.file, plan.anon_slot, shared[Scope.MM], shared[Scope.VMA], shared[Scope.TABLE],
            shared[Scope.FILE], shared[Scope.ANON_ROOT], keys, np.full(4 * limit, -1, np.int32),
            class_of,
        )  # fmt: skip
        if count >= 0:
            break
        limit *= 8
    emitter = Emitter(model, setup)
    starts = np.array([emitter.emit(key) for key in keys[:count].tolist()], np.int64)
    code = np.zeros((len(emitter.out), 8), np.int32)
    code[:, :6] = np.array(emitter.out, np.int32).reshape(-1, 6)
    dense = np.zeros(len(PlanOp), np.int64)
    dense[kinds] = np.arange(len(kinds))
    ops = np.empty((plan.n_ops, 8), np.int64)
    pack(
        class_of, starts, np.where(starts < 0, F_NO_PROGRAM, 0), dense, plan.op, plan.think_cpu_ns,
        plan.think_blocked_ns, plan.pages, plan.scale, plan.vma, plan.table, plan.mm,
        plan.anon_slot, plan.vmas, plan.tables, plan.file, plan.child_mm, plan.dep_first,
        setup.has_dependents, ops,
    )  # fmt: skip
    return code.ravel(), ops.ravel()


class _Sharing:
    """Dense numbers of the shared objects of each scope, in one array."""

    def __init__(self, setup: Setup) -> None:
        self.base: dict[Scope, int] = {}
        self.size: dict[Scope, int] = {}
        self.objects: dict[Scope, int] = {}
        parts = []
        total = 0
        for scope in SCOPES:
            shared = setup.shared[scope]
            self.base[scope] = total
            self.size[scope] = int(shared.sum())
            self.objects[scope] = len(shared)
            parts.append(np.where(shared, np.cumsum(shared) - 1, -1).astype(np.int32))
            total += len(shared)
        self.sid = np.concatenate(parts)


def simulate_compiled(
    plan: Plan, model: LockingModel, machine: Machine, options: Options
) -> Result:
    """See :func:`mmreplay.engine.simulate`."""
    began = time.perf_counter()
    setup = prepare(plan, model, machine, options)
    sharing = _Sharing(setup)
    kinds = np.flatnonzero(np.bincount(plan.op, minlength=len(PlanOp)))
    code, ops = _operations(plan, model, setup, kinds)
    n_threads, n_locks, n_kinds = plan.n_threads, len(model.locks), len(kinds)

    # lines and instances
    line_scope = np.array(setup.line_scope, np.int64)
    line_sid = np.array([sharing.base[s] for s in setup.line_scope], np.int64)
    sizes = [sharing.size[s] for s in setup.line_scope]
    line_base = np.cumsum([0, *sizes])[:-1].astype(np.int64)
    n_lines = sum(sizes)
    locks, n_instances, n_values = _locks(setup, model, sharing, line_sid, line_base)
    values = np.zeros(max(n_values, 1), np.int64)
    for d in locks:
        if d[D_KIND] == Kind.PIN:
            scope = Scope(int(d[D_SCOPE]))
            values[d[D_VALUE] : d[D_VALUE] + sharing.objects[scope]] = -1

    m, regions = _memory(plan, setup, options, locks, n_instances, n_lines, n_kinds)
    every = np.zeros(max(1, setup.cores * len(model.cond_every)), np.int64)
    cond_bits = np.stack(
        [model.cond_bits_set, model.cond_bits_clear, model.cond_every], axis=1
    ).astype(np.int64)
    bits = np.concatenate(
        [plan.anon_initial, np.zeros(len(plan.vma_mm), np.uint8), plan.table_initial]
    ).astype(np.uint8)
    n_anon, n_vmas = len(plan.anon_initial), len(plan.vma_mm)
    bit_base = np.array(
        [
            (0, sharing.base[Scope.ANON_ROOT], Scope.ANON_ROOT),
            (n_anon, sharing.base[Scope.VMA], Scope.VMA),
            (n_anon + n_vmas, sharing.base[Scope.TABLE], Scope.TABLE),
        ],
        np.int64,
    )
    has_deps = len(plan.dep_op) > 0
    done_ops = np.zeros(plan.n_ops if has_deps else 1, np.uint8)
    dep_head = np.full(plan.n_ops if has_deps else 1, -1, np.int32)
    tails = np.stack([plan.thread_tail_cpu_ns, plan.thread_tail_blocked_ns], axis=1)
    loops = plan.thread_loop.astype(np.int64).copy()
    loops[np.diff(plan.thread_first) == 0] = -2  # without operations: its end ends nothing
    reasons = np.zeros(len(model.reasons), np.int64)
    loop_began, cpu_began = time.perf_counter(), time.thread_time()
    replay(
        m, ops, code,
        setup.cost_q, setup.cost_key, setup.cost_draw.ravel().astype(np.int32), setup.sleep_ns,
        plan.sleep_ns, loops, tails.astype(np.int64), sharing.sid, values, line_scope, line_sid,
        line_base, cond_bits, every, bits, bit_base, plan.mark_first, plan.mark_vma, plan.mark_set,
        plan.dep_first, plan.dep_op, done_ops, dep_head,
        np.zeros(n_threads * 2 * n_locks, np.int64), np.zeros((n_threads, n_locks), np.int64),
        reasons,
    )  # fmt: skip
    loop = {
        "loop_s": time.perf_counter() - loop_began,
        "loop_cpu_s": time.thread_time() - cpu_began,
    }
    totals = _totals(m, regions, setup, kinds, n_threads, n_locks, reasons)
    threads = m[regions[H_TH] : regions[H_TH] + n_threads * TF].reshape(n_threads, TF)
    unfinished = np.flatnonzero(threads[:, T_STATE] != END)
    if len(unfinished) and m[H_STOP] < 0:
        raise stuck(model, unfinished.tolist())
    result = summarise(model, totals)
    result.detail.update(loop)
    object.__setattr__(result, "wall_s", time.perf_counter() - began)
    return result


def _locks(
    setup: Setup, model: LockingModel, sharing: _Sharing, line_sid: I64, line_base: I64
) -> tuple[I64, int, int]:
    """Descriptors of the model's locks; how many instances and values they need."""
    out = np.zeros((len(model.locks), DF), np.int64)
    instances = values = 0
    for index in range(len(model.locks)):
        scope = object_scope(int(model.lock_scope[index]))
        line = int(model.lock_line[index])
        params = model.lock_params[index]
        d = out[index]
        d[D_KIND] = model.lock_kind[index]
        d[D_SCOPE], d[D_SID], d[D_INST] = scope, sharing.base[scope], instances
        d[D_LINE_SCOPE], d[D_LINE_SID] = setup.line_scope[line], line_sid[line]
        d[D_LINE], d[D_VALUE] = line_base[line], values
        for column, name in (
            (D_MARKS_BY, "marks_by"), (D_BUMPS, "bumps"), (D_BUMP_ACQUIRE, "bump_acquire"),
            (D_STEAL, "steal"), (D_READER_SPIN, "reader_spin"), (D_OSQ, "osq"),
            (D_SPIN_US, "spin_us"), (D_HANDOFF_NS, "handoff_ns"), (D_BATCH, "batch"),
            (D_FORM, "form"),
        ):  # fmt: skip
            d[column] = params[P[name]]
        d[D_BATCH] = max(1, d[D_BATCH])
        owner = params[P["owner_line"]]
        d[D_OWNER] = line_base[owner] if owner >= 0 else -1
        if model.lock_kind[index] != Kind.SEQ:
            instances += sharing.size[scope]
        if model.lock_kind[index] in (Kind.SEQ, Kind.PIN):
            values += sharing.objects[scope]
    return out, instances, values


def _memory(
    plan: Plan, setup: Setup, options: Options, locks: I64, n_instances: int, n_lines: int,
    n_kinds: int,
) -> tuple[I64, dict[int, int]]:  # fmt: skip
    """The flat array and the bases of its regions."""
    n_threads, n_locks, cores = plan.n_threads, len(locks), setup.cores
    shift = max(1, (n_threads - 1).bit_length())
    leaves = 1 << shift
    isize = I_BY_KIND + 2 * n_kinds + 1
    lsize = L_READERS + cpu_mask_words(cores)
    sizes = {
        H_TH: n_threads * TF, H_CORE: cores * CF, H_TREE: 2 * leaves, H_LOCK: n_locks * DF,
        H_STAT: n_locks * SF, H_BLAME: n_locks * (n_kinds + 1) * n_kinds,
        H_SNAP: n_threads * (n_kinds + 1), H_TWAIT: n_threads * n_locks, H_OPCOUNT: n_kinds,
        H_OPBUSY: n_kinds, H_OPWAIT: n_kinds, H_DELAY: n_kinds * DELAY_BUCKETS, H_TEND: n_threads,
        H_DIST: cores * cores, H_INST: n_instances * isize, H_LINE: n_lines * lsize,
    }  # fmt: skip
    regions: dict[int, int] = {}
    total = HEADER
    for region, size in sizes.items():
        regions[region] = total
        total += size
    m = np.zeros(total, np.int64)
    for region, base in regions.items():
        m[region] = base
    scalars = {
        H_SHIFT: shift, H_LEAVES: leaves, H_KINDS: n_kinds, H_CORES: cores, H_ISIZE: isize,
        H_LSIZE: lsize, H_LOCKS: n_locks, H_RQ_HEAD: -1, H_RQ_TAIL: -1, H_IDLE_CORES: cores,
        H_STOP: -1, H_WIN_BEGIN: -1, H_WIN_END: -1, H_GRP_TOTAL: setup.group_ops,
        H_ATOMIC: setup.atomic, H_WAKER: setup.waker, H_WOKEN: setup.woken, H_FALL: setup.fall,
        H_SWITCH: setup.switch, H_SLICE: setup.slice, H_POLL: setup.poll,
        H_FLUSH_BASE: setup.flush_base, H_FLUSH_FIRST: setup.flush_first,
        H_FLUSH_NEXT: setup.flush_next, H_HANDLER: setup.handler, H_THREADS: n_threads,
        H_WRAP: int(options.wrap), H_SATURATED: int(options.load == "saturated"),
        H_SEED: options.seed,
    }  # fmt: skip
    for field, value in scalars.items():
        m[field] = value

    def table(region: int, rows: int) -> I64:
        return m[regions[region] : regions[region] + sizes[region]].reshape(rows, -1)

    descriptors = table(H_LOCK, n_locks) if n_locks else locks
    descriptors[:] = locks
    table(H_DIST, cores)[:] = setup.distance
    cpus = table(H_CORE, cores)
    cpus[:, C_RUNNING] = cpus[:, C_MM] = -1
    if n_lines:
        lines = table(H_LINE, n_lines)
        lines[:, L_OWNER] = lines[:, L_LAST_READER] = -1
    if n_instances:
        instances = table(H_INST, n_instances)
        for column in (
            I_WRITER, I_Q_HEAD, I_Q_TAIL, I_OSQ_HEAD, I_OSQ_TAIL, I_DRAINER, I_LINE,
        ):  # fmt: skip
            instances[:, column] = -1
        bounds = [int(d[D_INST]) for d in locks] + [n_instances]
        for index in range(n_locks):
            instances[bounds[index] : bounds[index + 1], I_LOCK] = index
            descriptors[index, D_INST] = regions[H_INST] + bounds[index] * isize
    m[regions[H_TEND] : regions[H_TEND] + n_threads] = -1
    _threads(plan, setup, options, table(H_TH, n_threads))
    tree = m[regions[H_TREE] : regions[H_TREE] + 2 * leaves]
    tree[:] = NEVER
    starts = plan.thread_offset_ns + _first_block(plan, setup, options)
    tree[leaves : leaves + n_threads] = (starts << shift) | np.arange(n_threads)
    for node in range(leaves - 1, 0, -1):
        tree[node] = min(tree[2 * node], tree[2 * node + 1])
    return m, regions


def _first_block(plan: Plan, setup: Setup, options: Options) -> I64:
    empty = np.diff(plan.thread_first) == 0
    rows = np.minimum(plan.thread_first[:-1], max(plan.n_ops - 1, 0))
    out: I64 = np.where(empty, plan.thread_tail_blocked_ns, plan.think_blocked_ns[rows])
    return np.where(setup.in_group, 0, out) if options.load == "saturated" else out


def _threads(plan: Plan, setup: Setup, options: Options, th: I64) -> None:
    first, last = plan.thread_first[:-1], plan.thread_first[1:]
    empty = first == last
    th[:, T_STATE], th[:, T_AFTER], th[:, T_CPU] = OFF, RUN, -1
    th[:, T_LAST_CPU] = np.arange(len(th)) % setup.cores
    th[:, T_ROW] = np.where(empty, np.maximum(first - 1, 0), first)
    th[:, T_END_ROW], th[:, T_PC], th[:, T_FIN_ROW] = last, PC_THINK, -1
    th[:, T_FIRST_LAP], th[:, T_TAIL], th[:, T_GROUP] = 1, empty, setup.in_group
    rows = np.minimum(first, max(plan.n_ops - 1, 0))
    th[:, T_THINK] = np.where(empty, plan.thread_tail_cpu_ns, plan.think_cpu_ns[rows])
    th[:, T_DEP_FROM] = -1
    th[:, T_MM] = plan.mm[th[:, T_ROW]]


def _totals(
    m: I64, regions: dict[int, int], setup: Setup, kinds: I64, n_threads: int, n_locks: int,
    reasons: I64,
) -> Totals:  # fmt: skip
    n_kinds, n_all = len(kinds), len(PlanOp)

    def part(region: int, *shape: int) -> I64:
        size = int(np.prod(shape))
        return m[regions[region] : regions[region] + size].reshape(shape).copy()

    def spread(values: I64) -> I64:
        out = np.zeros((n_all, *values.shape[1:]), np.int64)
        out[kinds] = values
        return out

    blame = np.zeros((n_locks, n_all + 1, n_all), np.int64)
    dense = part(H_BLAME, n_locks, n_kinds + 1, n_kinds)
    rows = np.append(kinds, n_all)
    blame[:, rows[:, None], kinds[None, :]] = dense
    ends = part(H_TEND, n_threads)
    stop = int(m[H_STOP]) if m[H_STOP] >= 0 else int(ends.max())
    idle = int(m[H_IDLE_NS])
    for cpu in part(H_CORE, setup.cores, CF):
        if cpu[C_RUNNING] < 0:
            idle += max(0, stop - int(cpu[C_IDLE_SINCE]))
    return Totals(
        stats=part(H_STAT, n_locks, SF),
        reasons=reasons,
        op_count=spread(part(H_OPCOUNT, n_kinds)),
        op_busy_ns=spread(part(H_OPBUSY, n_kinds)),
        op_wait_ns=spread(part(H_OPWAIT, n_kinds)),
        op_delay=spread(part(H_DELAY, n_kinds, DELAY_BUCKETS)),
        blame_ns=blame,
        thread_end_ns=ends,
        thread_wait_ns=part(H_TWAIT, n_threads, n_locks),
        idle_ns=idle,
        sleep_ns=int(m[H_SLEEP_NS]),
        dep_wait_ns=int(m[H_DEP_WAIT_NS]),
        stop_ns=stop,
        window_begin_ns=int(m[H_WIN_BEGIN]),
        window_end_ns=int(m[H_WIN_END]),
        window_ops=int(m[H_WIN_OPS]),
        window_user_ns=int(m[H_WIN_USER]),
        group_ops=int(m[H_GRP_OPS]),
        group_user_ns=int(m[H_GRP_USER]),
    )
