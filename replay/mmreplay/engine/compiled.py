"""Lays out the arrays of the compiled loop, runs it, reads the counters back."""
# ruff: noqa: F403, F405

from __future__ import annotations

import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import PlanOp
from mmreplay.engine.deadlock import Stalled, stuck
from mmreplay.engine.kinds.range import policy
from mmreplay.engine.layout import *
from mmreplay.engine.loop import replay
from mmreplay.engine.prepared import Prepared
from mmreplay.engine.result import Options, Result
from mmreplay.engine.setup import (
    DRAWS,
    HOT_NS,
    P,
    Setup,
    cpu_mask_words,
    line_scopes,
    object_scope,
    prepare,
    stream_of,
)
from mmreplay.engine.specialise import BIT_SCOPE, COLUMN
from mmreplay.engine.summary import Totals, progress_ns, summarise
from mmreplay.locking.isa import Kind
from mmreplay.machine.profile import Machine

I64 = NDArray[np.int64]


def run_compiled(prepared: Prepared, machine: Machine, options: Options) -> Result:
    """See :meth:`mmreplay.engine.Replay.run`."""
    began = time.perf_counter()
    plan, model = prepared.plan, prepared.model
    setup = prepare(plan, model, machine, options)
    memory = Memory(prepared, setup, options)
    has_deps = len(plan.dep_op) > 0
    loop_began, cpu_began = time.perf_counter(), time.thread_time()
    replay(
        memory.m, prepared.longs, prepared.longs.view(np.int32),
        setup.cost_draw.ravel().astype(np.int32), plan.mark_first, prepared.mark_vma,
        plan.mark_set, plan.sleep_ns, plan.dep_first, plan.dep_op,
        np.zeros(plan.n_ops if has_deps else 1, np.uint8),
        np.full(plan.n_ops if has_deps else 1, -1, np.int32), prepared.bits.copy(),
    )  # fmt: skip
    loop = {
        "loop_s": time.perf_counter() - loop_began,
        "loop_cpu_s": time.thread_time() - cpu_began,
    }
    threads = memory.part(HEADER, plan.n_threads, TF)
    unfinished = np.flatnonzero(threads[:, T_STATE] != END)
    if len(unfinished) and memory.m[H_STOP] < 0:
        source = prepared.code.source
        raise stuck(
            plan,
            model,
            [
                Stalled(
                    t,
                    row=int(th[T_ROW]),
                    pc=source[(th[T_PC] - memory.base[H_CODE]) // XF] if th[T_PC] >= 0 else -1,
                    mark=int(th[T_EACH]) if th[T_EACH] < th[T_EACH_END] else -1,
                )
                for t, th in zip(unfinished.tolist(), threads[unfinished], strict=True)
            ],
        )
    result = summarise(model, memory.totals(setup))
    result.detail.update(loop)
    object.__setattr__(result, "wall_s", time.perf_counter() - began)
    return result


#: Columns of an instance that name a thread: -1 is nobody.
_NONE_COLUMNS: Final = (I_WRITER, I_Q_HEAD, I_Q_TAIL, I_OSQ_HEAD, I_OSQ_TAIL, I_DRAINER)


def aligned_zeros(count: int) -> I64:
    """Zeros of which every eight share a cache line."""
    room = np.zeros(count + 8, np.int64)
    first = -room.ctypes.data // 8 % 8
    return room[first : first + count]


class Memory:
    """The flat array of one replay (see ``layout.py``)."""

    def __init__(self, prepared: Prepared, setup: Setup, options: Options) -> None:
        self.prepared = prepared
        plan, model = prepared.plan, prepared.model
        threads, locks, kinds = plan.n_threads, len(model.locks), len(prepared.kinds)
        conditions = len(model.cond_every)
        self.isize = -(-(I_BY_KIND + 2 * kinds + 1) // 8) * 8
        self.lsize = -(-(L_READERS + cpu_mask_words(setup.cores)) // 8) * 8
        leaf = 1  # the nodes above the leaves of the queue
        while 7 * leaf + 1 < threads:
            leaf = 8 * leaf + 1
        sizes = {
            HEADER: threads * TF,  # the threads: right behind the header
            H_CORE: setup.cores * CF, H_LOCK: locks * DF,
            H_STAT: locks * SF, H_BLAME: locks * (kinds + 1) * kinds,
            H_SNAP: threads * (kinds + 1), H_TWAIT: threads * locks, H_OPS: kinds * KF,
            H_TEND: threads, H_CODE: len(prepared.rows) * XF,
            H_RUNS: len(prepared.code.locked), H_ITEMS: len(prepared.code.items) * NF,
            H_VALUES: prepared.n_values, H_EVERY: setup.cores * conditions,
            H_CONDITIONS: conditions * 3, H_BITBASE: len(BIT_SCOPE) * 3,
            H_TOUCH: len(model.lines) * 3,
            H_REASONS: len(model.reasons), H_HELD: threads * 2 * locks, H_SNAPS: threads * locks,
            H_OWNED: threads * 2 * locks,
            H_TAILS: threads * 2, H_LOOPS: threads, H_SLEEPS: len(model.sleeps), H_NOWHERE: 1,
            H_MORE: self._more_sizes(threads, kinds)[-1], H_BLOCKERS: kinds, H_SCRATCH: EF,
            H_NODES: prepared.pages.node_places * (self.lsize + 8),
            H_VISIBLE: int(model.lock_params[:, P["bravo_slots"]].max(initial=0)),
            H_TOUCH_KEYS: len(prepared.pages.touch_keys),
            H_TOUCHED: len(prepared.pages.touch_keys) * cpu_mask_words(setup.cores),
            H_ENDS: plan.n_ops,
            H_INST: prepared.n_instances * self.isize, H_LINE: prepared.n_lines * self.lsize,
            H_QUEUE: 7 + leaf + -(-threads // 8) * 8,
        }  # fmt: skip
        self.base: dict[int, int] = {}
        total = HEADER
        for region, size in sizes.items():
            self.base[region] = total
            total += -(-size // 8) * 8
        self.m = aligned_zeros(total)
        self.size = sizes
        for region, base in self.base.items():
            if region != HEADER:
                self.m[region] = base
        self.base[H_QUEUE] += 7  # siblings share a cache line
        self.m[H_QUEUE], self.m[H_LEAF] = self.base[H_QUEUE], leaf
        self._fill_scalars(setup, options)
        self._fill_model(setup)
        self._fill_locks()
        self._fill_threads(setup, options)
        self._fill_code(setup)

    def _more_sizes(self, threads: int, kinds: int) -> list[int]:
        """Where the rest of each lock's instances begins in H_MORE; the last: how much in all."""
        model, shared = self.prepared.model, self.prepared.shared
        self.more_each = np.where(
            model.lock_kind == Kind.RANGE,
            EF * threads,
            np.where(model.lock_params[:, P["bravo_slots"]] > 0, B_BY_KIND + kinds + threads, 0),
        )
        counts = [shared[object_scope(scope)] for scope in model.lock_scope.tolist()]
        return [0, *np.cumsum(self.more_each * counts).tolist()]

    def part(self, region: int, *shape: int) -> I64:
        """The region as an array of the given shape; a view."""
        size = int(np.prod(shape))
        return self.m[self.base[region] : self.base[region] + size].reshape(shape)

    def _fill_code(self, setup: Setup) -> None:
        """The specialised code with the addresses of this memory."""
        rows = self.prepared.rows.copy()
        for column, region, size in (
            (X_INST, H_INST, self.isize),
            (X_LINE, H_LINE, self.lsize),
            (X_OWNER, H_LINE, self.lsize),
            (X_SEQ_LINE, H_LINE, self.lsize),
            (X_SEQ, H_VALUES, 1),
            (X_TARGET, H_CODE, 1),
        ):
            known = rows[:, column] >= 0
            rows[known, column] = self.base[region] + rows[known, column] * size
        pins = rows[:, X_OP] == X_PIN_TRY
        rows[pins, X_C] += self.base[H_VALUES]
        stats = np.isin(rows[:, X_OP], (X_RUN, X_JUMP, X_DONE), invert=True)
        rows[stats & (rows[:, X_STAT] >= 0), X_STAT] += self.base[H_STAT]
        runs, shares = rows[:, X_OP] == X_RUN, rows[:, X_OP] == X_SHARE
        rows[runs, X_A] += self.base[H_RUNS]
        rows[runs | shares, X_B] = self.base[H_ITEMS] + rows[runs | shares, X_B] * NF
        rows[runs, X_COLUMN] = rows[runs, X_B] + rows[runs, X_COLUMN] * NF
        rows[runs, X_C] *= setup.atomic
        rows[rows[:, X_OP] == X_EVERY, X_A] += self.base[H_EVERY]
        private = rows[:, X_STEP] == PRIVATE_STEP
        rows[private, X_STEP] = rows[private, X_OP]
        self.part(H_CODE, *rows.shape)[:] = rows

    def _fill_scalars(self, setup: Setup, options: Options) -> None:
        plan = self.prepared.plan
        scalars = {
            H_SHIFT: max(1, (plan.n_threads - 1).bit_length()), H_KINDS: len(self.prepared.kinds),
            H_CORES: setup.cores, H_ISIZE: self.isize, H_LSIZE: self.lsize,
            H_LOCKS: len(self.prepared.model.locks), H_QUEUED: 0,
            H_IDLE_CORES: setup.cores, H_STOP: -1, H_WIN_BEGIN: -1, H_WIN_END: -1,
            H_GRP_TOTAL: setup.group_ops, H_ATOMIC: setup.atomic, H_WAKER: setup.waker,
            H_WOKEN: setup.woken, H_FALL: setup.fall, H_SWITCH: setup.switch,
            H_SLICE: setup.slice, H_BASE_SLICE: setup.base_slice,
            H_MOST_LAG: setup.most_lag, H_WAKES_STAY: int(setup.wakes_stay),
            H_POLL: setup.poll, H_FLUSH_BASE: setup.flush_base,
            H_FLUSH_FIRST: setup.flush_first, H_FLUSH_NEXT: setup.flush_next,
            H_HANDLER: setup.handler, H_FLIGHT: setup.flight,
            H_THREADS: plan.n_threads, H_WRAP: int(options.wrap),
            H_OTHERS_LEFT: setup.others_ops,
            H_CONDS: len(self.prepared.model.cond_every), H_PAGES: 16 * plan.n_ops,
            H_NODE_PLACES: self.prepared.pages.node_places,
            H_TOUCH_COUNT: len(self.prepared.pages.touch_keys),
        }  # fmt: skip
        for field, value in scalars.items():
            self.m[field] = value

    def _fill_model(self, setup: Setup) -> None:
        """Costs of the runs, conditions, sleeps."""
        prepared, model = self.prepared, self.prepared.model
        items = self.part(H_ITEMS, len(prepared.code.items), NF)
        if len(items):
            cost, count, hold = np.array(prepared.code.items, np.int64).T
            items[:, N_COST], items[:, N_KEY] = (
                setup.cost_q[cost],
                setup.cost_key.view(np.int64)[cost],
            )
            items[:, N_DRAWS], items[:, N_COUNT] = cost * DRAWS, count
            nowhere = self.base[H_NOWHERE]
            items[:, N_HOLD] = np.where(hold < 0, nowhere, self.base[H_STAT] + hold)
        conditions = self.part(H_CONDITIONS, len(model.cond_every), 3)
        conditions[:, 0], conditions[:, 1] = model.cond_bits_set, model.cond_bits_clear
        conditions[:, 2] = model.cond_every
        self.part(H_EVERY, setup.cores, len(model.cond_every))[:] = model.cond_every
        for row, (bit, scope) in zip(
            self.part(H_BITBASE, len(BIT_SCOPE), 3), BIT_SCOPE.items(), strict=True
        ):
            row[:] = prepared.numbers.bit[bit], COLUMN[scope], prepared.shared[scope]
        touch = self.part(H_TOUCH, len(model.lines), 3)
        for row, scope, line in zip(touch, line_scopes(model), prepared.numbers.line, strict=True):
            row[:] = COLUMN[scope], prepared.shared[scope], self.base[H_LINE] + line * self.lsize
        self.part(H_TOUCH_KEYS, len(prepared.pages.touch_keys))[:] = prepared.pages.touch_keys
        self.part(H_SLEEPS, len(model.sleeps))[:] = setup.sleep_ns
        self.m[H_DIST_0 : H_DIST_0 + 4] = setup.line_ns
        cpus = self.part(H_CORE, setup.cores, CF)
        cpus[:, C_CORE : C_SOCKET + 1] = setup.place
        cpus[:, C_RUNNING] = cpus[:, C_MM] = cpus[:, C_QUEUE] = -1

    def _fill_locks(self) -> None:
        prepared, model = self.prepared, self.prepared.model
        numbers = prepared.numbers
        more = self._more_sizes(prepared.plan.n_threads, len(prepared.kinds))
        values = self.part(H_VALUES, prepared.n_values)
        lines = self.part(H_LINE, prepared.n_lines, self.lsize)
        lines[:, L_OWNER] = lines[:, L_LAST_READER] = -1
        instances = self.part(H_INST, prepared.n_instances, self.isize)
        for column in _NONE_COLUMNS:
            instances[:, column] = -1
        for index, d in enumerate(self.part(H_LOCK, len(model.locks), DF)):
            scope, kind = object_scope(int(model.lock_scope[index])), model.lock_kind[index]
            params = model.lock_params[index]
            shared = prepared.shared[scope]
            d[D_KIND], d[D_COLUMN], d[D_SHARED] = kind, COLUMN[scope], shared
            line = numbers.line[int(model.lock_line[index])]
            d[D_INST] = self.base[H_INST] + numbers.instance[index] * self.isize
            d[D_LINE] = self.base[H_LINE] + line * self.lsize
            d[D_VALUE] = self.base[H_VALUES] + numbers.value[index]
            for column, name in (
                (D_MARKS_BY, "marks_by"), (D_BUMPS, "bumps"), (D_BUMP_ACQUIRE, "bump_acquire"),
                (D_STEAL, "steal"), (D_READER_SPIN, "reader_spin"), (D_OSQ, "osq"),
                (D_SPIN_US, "spin_us"), (D_HANDOFF_NS, "handoff_ns"), (D_BATCH, "batch"),
                (D_FORM, "form"), (D_FIFO, "fifo"), (D_BRAVO, "bravo_slots"),
                (D_INHIBIT, "bravo_inhibit"), (D_ROUND, "round"), (D_WAIT, "wait"),
                (D_COST, "range_cost"), (D_ANCESTORS, "ancestors"),
            ):  # fmt: skip
                d[column] = params[P[name]]
            d[D_BATCH] = max(1, d[D_BATCH])
            d[D_FAIR], d[D_LEFTWARDS] = policy(params)
            owner = int(params[P["owner_line"]])
            d[D_OWNER] = -1
            if owner >= 0:
                d[D_OWNER] = self.base[H_LINE] + numbers.line[owner] * self.lsize
            if kind == Kind.PIN:
                first = numbers.value[index]
                values[first : first + prepared.size[scope]] = -1
            if kind != Kind.SEQ:
                mine = instances[numbers.instance[index] : numbers.instance[index] + shared]
                mine[:, I_LOCK] = index
                mine[:, I_LINE] = d[D_LINE] + np.arange(shared) * self.lsize
                each = int(self.more_each[index])
                if each:
                    first = self.base[H_MORE] + more[index]
                    mine[:, I_MORE] = first + np.arange(shared) * each
                    if kind == Kind.RWSEM:
                        self.m[mine[:, I_MORE] + B_REVOKER] = -1

    def _fill_threads(self, setup: Setup, options: Options) -> None:
        prepared, plan = self.prepared, self.prepared.plan
        th = self.part(HEADER, plan.n_threads, TF)
        first, last = plan.thread_first[:-1], plan.thread_first[1:]
        empty = first == last
        rows = np.minimum(first, max(plan.n_ops - 1, 0))
        th[:, T_STATE], th[:, T_AFTER], th[:, T_CPU] = OFF, RUN, -1
        th[:, T_LAST_CPU] = np.arange(len(th)) % setup.cores
        th[:, T_ROW] = np.where(empty, np.maximum(first - 1, 0), first)
        th[:, T_END_ROW], th[:, T_PC], th[:, T_FIN_ROW] = last, PC_THINK, -1
        th[:, T_FIRST_LAP], th[:, T_TAIL], th[:, T_GROUP] = 1, empty, setup.in_group
        th[:, T_THINK] = np.where(empty, plan.thread_tail_cpu_ns, plan.think_cpu_ns[rows])
        th[:, T_DEP_FROM] = -1
        th[:, T_RAN] = -HOT_NS
        th[:, T_NO_IDLE] = setup.no_idle
        th[:, T_LAP] = plan.thread_offset_ns
        th[:, T_MM] = prepared.longs.view(np.int32)[(th[:, T_ROW] << 4) + W_MM]
        streams = [stream_of(options.seed, t) for t in range(plan.n_threads)]
        th[:, T_STREAM] = np.array(streams, np.uint64).view(np.int64)
        self.part(H_TEND, plan.n_threads)[:] = -1
        self.part(H_TAILS, plan.n_threads, 2)[:] = prepared.tails
        self.part(H_LOOPS, plan.n_threads)[:] = prepared.loops
        blocked = np.where(empty, plan.thread_tail_blocked_ns, plan.think_blocked_ns[rows])
        blocked = np.where(setup.no_idle, 0, blocked)
        starts = plan.thread_offset_ns + blocked
        queue = self.part(H_QUEUE, self.size[H_QUEUE] - 7)
        leaf = int(self.m[H_LEAF])
        queue[:] = NEVER
        queue[leaf : leaf + len(th)] = (starts << self.m[H_SHIFT]) | np.arange(len(th))
        for node in reversed(range(leaf)):
            queue[node] = queue[8 * node + 1 : 8 * node + 9].min(initial=NEVER)

    def totals(self, setup: Setup) -> Totals:
        prepared, m = self.prepared, self.m
        kinds, n_all = prepared.kinds, len(PlanOp)
        n_kinds, n_locks = len(kinds), len(prepared.model.locks)
        n_threads = prepared.plan.n_threads

        def spread(values: I64) -> I64:
            out = np.zeros((n_all, *values.shape[1:]), np.int64)
            out[kinds] = values
            return out

        stats = self.part(H_STAT, n_locks, SF).copy()
        runs = self.part(H_RUNS, len(prepared.code.locked))
        for times, counts in zip(runs.tolist(), prepared.code.locked, strict=True):
            for (lock, write), count in counts.items():
                stats[lock, S_WRITE if write else S_READ] += times * count
        blame = np.zeros((n_locks, n_all + 1, n_all), np.int64)
        dense = self.part(H_BLAME, n_locks, n_kinds + 1, n_kinds)
        rows = np.append(kinds, n_all)
        blame[:, rows[:, None], kinds[None, :]] = dense
        ends = self.part(H_TEND, n_threads).copy()
        ops = self.part(H_OPS, n_kinds, KF)
        stop = int(m[H_STOP]) if m[H_STOP] >= 0 else int(ends.max())
        cpus = self.part(H_CORE, setup.cores, CF)
        idle = int(m[H_IDLE_NS])
        for cpu in cpus[cpus[:, C_RUNNING] < 0]:
            idle += max(0, stop - int(cpu[C_IDLE_SINCE]))
        return Totals(
            stats=stats,
            reasons=self.part(H_REASONS, len(prepared.model.reasons)).copy(),
            op_count=spread(ops[:, K_COUNT]),
            op_busy_ns=spread(ops[:, K_BUSY]),
            op_wait_ns=spread(ops[:, K_WAIT]),
            op_delay=spread(ops[:, K_DELAY:]),
            blame_ns=blame,
            thread_begun=self.part(HEADER, n_threads, TF)[:, T_NTH].copy(),
            thread_end_ns=ends,
            thread_wait_ns=self.part(H_TWAIT, n_threads, n_locks).copy(),
            thread_progress_ns=progress_ns(prepared.plan, self.part(H_ENDS, prepared.plan.n_ops)),
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
