"""Quantiles, drift, cost calibration and gains, on plans small enough to check by hand."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreplay.address_space.plan import SCALE_ONE, MarkSet, Plan, PlanOp, Trait
from mmreplay.engine import Options, Result, simulate
from mmreplay.engine.result import DELAY_BUCKETS
from mmreplay.engine.summary import delay_bucket
from mmreplay.locking.isa import Count, Mode, Op, RuntimeBit
from mmreplay.predict import gains
from mmreplay.predict.calibration import alone, calibrate, class_keys
from mmreplay.predict.delays import quantile_ns
from mmreplay.predict.drift import DRIFT_HIGH, baseline_drift
from mmreplay.predict.explain import headline_row
from mmreplay.predict.gains import Cell
from mmreplay.predict.pace import Ways, busy_means_ns, pace, work_of
from mmreplay.predict.prediction import Row
from mmreplay.predict.recorded import Recorded
from mmreplay.predict.steady import Part

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
import small

MODEL = small.model(
    {
        PlanOp.FAULT: [
            (Op.COST, "entry"),
            (Op.LOCK, "mmap_lock", Mode.READ),
            (Op.COST, "fill", Count.PAGES),
            (Op.UNLOCK, "mmap_lock", Mode.READ),
            (Op.DONE,),
        ],
        PlanOp.MMAP: [
            (Op.COST, "entry"),
            (Op.LOCK, "mmap_lock", Mode.WRITE),
            (Op.COST, "tree"),
            (Op.UNLOCK, "mmap_lock", Mode.WRITE),
            (Op.DONE,),
        ],
    }
)
COSTS = {"entry": 300.0, "fill": 700.0, "tree": 2_000.0}


def loop(threads: int, each: int, think_ns: int = 500) -> Plan:
    """Threads that fault twice and map once, over and over; row i is operation i."""
    kinds = (PlanOp.FAULT, PlanOp.FAULT, PlanOp.MMAP)
    return small.plan(
        [
            [
                small.op(kinds[i % 3], vma=t, table=t, think_cpu_ns=think_ns, row=t * each + i)
                for i in range(each)
            ]
            for t in range(threads)
        ],
        loops=[t * each for t in range(threads)],
    )


def perfect(plan: Plan, result: Result) -> Recorded:
    """What a recording of exactly this simulation would hold, per operation of a kind."""
    service = result.op_busy_ns[plan.op] / result.op_count[plan.op]
    wait = result.op_wait_ns[plan.op] / result.op_count[plan.op]
    return Recorded(service, wait)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=200), st.floats(0, 1))
def test_quantile_is_within_a_bucket(delays: list[int], q: float) -> None:
    histogram = np.zeros(DELAY_BUCKETS, np.int64)
    for delay in delays:
        histogram[delay_bucket(delay)] += 1
    exact = float(np.quantile(delays, q, method="inverted_cdf"))
    found = quantile_ns(histogram, q)
    assert found is not None
    assert abs(found - exact) <= max(1.0, exact / 15)


def test_quantile_of_nothing() -> None:
    assert quantile_ns(np.zeros(DELAY_BUCKETS, np.int64), 0.5) is None


class TestDrift:
    plan = loop(3, 60)
    machine = small.machine(2, COSTS)
    result = simulate(plan, MODEL, machine, Options(cores=2))

    def drift(self, recorded: Recorded) -> object:
        return baseline_drift([(self.plan, self.result)], recorded, "linux-6.1", 2, "perf record")

    def test_a_recording_of_the_simulation_itself_does_not_drift(self) -> None:
        drift = self.drift(perfect(self.plan, self.result))
        assert drift.ratio == pytest.approx(1.0)  # type: ignore[attr-defined]
        assert drift.trusted  # type: ignore[attr-defined]
        for kind in drift.kinds:  # type: ignore[attr-defined]
            assert kind.service_ratio == pytest.approx(1.0, rel=1e-3)

    def test_slower_recording_is_not_trusted_and_names_the_fix(self) -> None:
        exact = perfect(self.plan, self.result)
        drift = self.drift(Recorded(exact.service_ns * 3, exact.wait_ns * 3))
        busy = float(self.result.op_busy_ns.sum() + self.result.op_wait_ns.sum())
        think = float(self.plan.think_cpu_ns.sum())
        assert drift.ratio == pytest.approx((busy + think) / (3 * busy + think))  # type: ignore[attr-defined]
        assert not drift.trusted  # type: ignore[attr-defined]
        assert drift.fix == "perf record"  # type: ignore[attr-defined]

    def test_without_durations_there_is_no_ratio_but_a_reason(self) -> None:
        nothing = np.full(self.plan.n_ops, np.nan)
        drift = self.drift(Recorded(nothing, nothing))
        assert drift.ratio is None  # type: ignore[attr-defined]
        assert "no durations" in drift.note  # type: ignore[attr-defined]
        assert not drift.trusted  # type: ignore[attr-defined]

    def test_a_kind_without_durations_is_left_out_on_both_sides(self) -> None:
        exact = perfect(self.plan, self.result)
        maps = self.plan.op == PlanOp.MMAP
        service, wait = exact.service_ns.copy(), exact.wait_ns.copy()
        service[maps] = wait[maps] = np.nan
        drift = self.drift(Recorded(service, wait))
        assert drift.ratio == pytest.approx(1.0)  # type: ignore[attr-defined]
        assert "mmap" in drift.note  # type: ignore[attr-defined]

    def test_known_operations_stand_for_the_unknown_of_their_kind(self) -> None:
        exact = perfect(self.plan, self.result)
        service, wait = exact.service_ns.copy(), exact.wait_ns.copy()
        service[::2] = wait[::2] = np.nan
        assert self.drift(Recorded(service, wait)).ratio == pytest.approx(1.0)  # type: ignore[attr-defined]

    def test_longer_waits_than_simulated_are_said_to_be_those_of_recording_too(self) -> None:
        exact = perfect(self.plan, self.result)
        waits = np.maximum(exact.wait_ns, exact.service_ns + 2_000) * 4
        drift = self.drift(Recorded(exact.service_ns, waits))
        assert drift.ratio < 0.5  # type: ignore[attr-defined]
        assert "recording itself lengthens waits" in drift.note  # type: ignore[attr-defined]
        for other in (exact, Recorded(exact.service_ns * 4, exact.wait_ns)):
            assert "lengthens" not in self.drift(other).note  # type: ignore[attr-defined]

    def test_limit_is_symmetric(self) -> None:
        from mmreplay.predict.drift import DRIFT_LOW

        assert pytest.approx(1.0) == DRIFT_LOW * DRIFT_HIGH


class TestCalibration:
    machine = small.machine(2, COSTS, spread=0.2)

    def run(self, plan: Plan) -> Result:
        return simulate(plan, MODEL, self.machine, Options(cores=1))

    def alone_ns(self, plan: Plan, op: PlanOp) -> float:
        result = self.run(alone(plan, np.flatnonzero(plan.op == op)))
        return float(result.op_busy_ns[op] / result.op_count[op])

    def test_costs_become_those_of_the_recording(self) -> None:
        plan = loop(3, 300)
        service = np.where(plan.op == PlanOp.FAULT, 2_500.0, 900.0)
        found = calibrate(plan, Recorded(service, np.zeros(plan.n_ops)), self.run)
        scaled = found.apply(plan)
        for op, wanted in ((PlanOp.FAULT, 2_500), (PlanOp.MMAP, 900)):
            rows = np.flatnonzero(scaled.op == op)
            once = alone(scaled, rows)._replace(scale=scaled.scale[rows])
            result = self.run(once)
            assert result.op_busy_ns[op] / result.op_count[op] == pytest.approx(wanted, rel=0.05)
        assert found.clipped == 0
        assert found.covered_share == 1.0

    def test_a_class_keeps_its_total_time_but_for_single_stalls(self) -> None:
        plan = loop(3, 300)
        service = np.full(plan.n_ops, 1_000.0)
        faults = np.flatnonzero(plan.op == PlanOp.FAULT)
        service[faults[::5]] = 11_000.0  # a fifth is slow: mean 3,000, median 1,000
        service[faults[0]] = 1e9
        found = calibrate(plan, Recorded(service, np.zeros(plan.n_ops)), self.run)
        once = alone(found.apply(plan), faults)._replace(scale=found.apply(plan).scale[faults])
        mean = self.run(once).op_busy_ns[PlanOp.FAULT] / len(faults)
        assert mean == pytest.approx(3_000, rel=0.05)

    def test_only_the_first_fault_of_a_vma_pays_for_its_anon_vma(self) -> None:
        bit = RuntimeBit.VMA_ANON_VMA
        model = small.model(
            {
                PlanOp.FAULT: [
                    (Op.BRANCH, (int(Trait.NEEDS_ANON_VMA), 0, 0, int(bit)), "first"), "fill",
                    (Op.COST, "fill"), (Op.DONE,),
                    "first", (Op.COST, "anon_vma"), (Op.SET, int(bit)), (Op.JUMP, "fill"),
                ]
            }
        )  # fmt: skip
        machine = small.machine(2, {"fill": 1_000.0, "anon_vma": 4_000.0})
        # 150 VMAs of eight faults each: the samples are of many more VMAs than of first faults.
        fault = [
            small.op(traits=int(Trait.NEEDS_ANON_VMA), vma=i // 8, anon_slot=i // 8, row=i)
            for i in range(1_200)
        ]
        plan = small.plan([fault[:600], fault[600:]])
        service = np.where(np.arange(1_200) % 8 == 0, 5_000.0, 1_000.0)

        def run(alone: Plan) -> Result:
            return simulate(alone, model, machine, Options(cores=1))

        found = calibrate(plan, Recorded(service, np.zeros(plan.n_ops)), run)
        assert found.factors == pytest.approx([1.0], rel=0.03)

    def test_what_no_factor_changes_is_left_out_of_it(self) -> None:
        flush = [(Op.COST, "fill"), (Op.FLUSH, small.FlushScope.MM), (Op.DONE,)]
        model = small.model({PlanOp.FAULT: flush})
        machine = small.machine(2, {"fill": 1_000.0}, shootdown_base_ns=1_000)
        plan = faults(1, 30)._replace(row=np.arange(30))

        def run(plan: Plan) -> Result:
            return simulate(plan, model, machine, Options(cores=1))

        found = calibrate(plan, Recorded(np.full(30, 1_500.0), np.zeros(30)), run)
        assert run(found.apply(plan)).op_busy_ns[PlanOp.FAULT] == pytest.approx(
            30 * 1_500, rel=0.01
        )

    def test_recorded_waits_change_nothing(self) -> None:
        plan = loop(3, 300)
        service = np.where(plan.op == PlanOp.FAULT, 2_500.0, 900.0)
        calm = calibrate(plan, Recorded(service, np.zeros(plan.n_ops)), self.run)
        busy = calibrate(plan, Recorded(service, np.full(plan.n_ops, 1e6)), self.run)
        assert np.array_equal(calm.apply(plan).scale, busy.apply(plan).scale)

    def test_factors_are_clipped_and_counted(self) -> None:
        plan = loop(3, 300)
        found = calibrate(plan, Recorded(np.full(plan.n_ops, 1e6), np.zeros(plan.n_ops)), self.run)
        assert found.clipped == found.classes == 2
        assert set(found.apply(plan).scale) == {32 * SCALE_ONE}

    def test_rare_and_unknown_operations_keep_the_machine_or_their_kind(self) -> None:
        plan = loop(3, 300)
        service = np.where(plan.op == PlanOp.FAULT, 2_500.0, np.nan)
        found = calibrate(plan, Recorded(service, np.zeros(plan.n_ops)), self.run)
        assert set(found.apply(plan).scale[plan.op == PlanOp.MMAP]) == {SCALE_ONE}
        # A fault of a class that was never recorded takes the factor of faults.
        other = plan._replace(traits=plan.traits | np.uint64(Trait.COW))
        fault = plan.op == PlanOp.FAULT
        assert found.apply(other).scale[fault] == pytest.approx(found.apply(plan).scale[fault])

    def test_class_tells_pages_apart(self) -> None:
        plan = loop(1, 3)
        more = plan._replace(pages=plan.pages * 64)
        assert not np.any(class_keys(plan) == class_keys(more))

    def test_alone_keeps_marks_with_their_operations(self) -> None:
        plan = small.plan(
            [
                [
                    small.op(PlanOp.MMAP, marks=[(1, 4), (2, 5)]),
                    small.op(PlanOp.FAULT, vma=7),
                    small.op(PlanOp.MMAP, marks=[(2, 6)], deps=[1]),
                ]
            ]
        )
        part = alone(plan, np.array([0, 2]))
        assert part.mark_first.tolist() == [0, 2, 3]
        assert part.mark_vma.tolist() == [0, 1, 2]  # 4, 5, 6, and no VMA that they do not mean
        assert len(part.vma_mm) == 3
        assert part.dep_first.tolist() == [0, 0, 0]

    def test_alone_keeps_page_tables_apart_from_vmas(self) -> None:
        tables = int(MarkSet.TABLES)
        plan = small.plan(
            [
                [
                    small.op(PlanOp.FAULT, vma=7, table=9),
                    small.op(PlanOp.MUNMAP, vma=2, table=5, marks=[(2, 3), (tables, 6)]),
                ]
            ]
        )
        part = alone(plan, np.array([1]))
        assert part.vma.tolist() == [0]
        assert part.table.tolist() == [0]
        assert part.mark_vma.tolist() == [1, 1]  # VMA 3 of 2 and 3; table 6 of 5 and 6
        assert len(part.vma_mm) == len(part.table_initial) == 2


@pytest.mark.parametrize(("cores", "per_us"), [(1, 1.0), (2, 2.0)])
def test_a_thread_that_begins_late_gets_no_cpu_time_that_is_not_there(
    cores: int, per_us: float
) -> None:
    # An operation and its thinking take 1 us.  The second thread begins when the first has done 400
    # of 500 us: on one CPU they share the last fifth, on two each has its own.
    model = small.model({PlanOp.FAULT: [(Op.COST, "fill"), (Op.DONE,)]})
    each = [[small.op(think_cpu_ns=400, row=t * 500 + i) for i in range(500)] for t in range(2)]
    plan = small.plan(each, offsets=[0, 400_000], loops=[0, 500])
    machine = small.machine(2, {"fill": 600.0}, slice_ns=10_000)
    result = simulate(plan, model, machine, Options(cores=cores, wrap=True))
    found = pace(Ways(work_of(plan, -1), busy_means_ns([result]), idle=True), result)
    assert 1_000 * found.ops / found.ns == pytest.approx(per_us, rel=0.06)


def faults(threads: int, each: int) -> Plan:
    """Threads that do nothing but fault, 0.5 µs of computing between."""
    op = small.op(PlanOp.FAULT, vma=0, think_cpu_ns=500)
    return small.plan([[op] * each for _ in range(threads)])


def whole(plan: Plan) -> Part:
    """``plan`` measured by all of its threads."""
    unused: Any = None
    return Part(unused, plan, plan, -1, 1.0, 1.0, plan.n_threads, work_of(plan, -1), idle=False)


def cell(threads: int, cores: int, seeds: int = 2, wrap: bool = True, think_ns: int = 500) -> Cell:
    plan = loop(threads, 90, think_ns)
    machine = small.machine(8, COSTS, spread=0.3)
    options = [Options(cores=cores, wrap=wrap, seed=seed) for seed in range(1, seeds + 1)]
    results = {(0, o.seed): simulate(plan, MODEL, machine, o) for o in options}
    return Cell({0: whole(plan)}, "recorded", results)


class TestGains:
    def test_shares_and_blame_agree_with_the_simulation(self) -> None:
        found = cell(4, 4, wrap=False)
        results = list(found.results.values())
        charges = gains.blame(results, MODEL.locks)
        assert sum(c.wait_ns for c in charges) == sum(int(r.op_wait_ns.sum()) for r in results)
        shares = gains.lock_shares(found, MODEL.locks)
        assert 0 < shares["mmap_lock"] < 1
        lock, op = gains.limiting(shares, charges)
        assert lock == "mmap_lock"
        held = sum(r.blame_ns[0].sum(axis=1) for r in results)[:-1]
        assert op == PlanOp(int(np.argmax(held))).name.lower()

    def test_no_contention_limits_nothing(self) -> None:
        found = cell(1, 1)
        shares = gains.lock_shares(found, MODEL.locks)
        charges = gains.blame(found.results.values(), MODEL.locks)
        assert gains.limiting(shares, charges) == (None, None)

    def test_speedup_is_one_against_itself(self) -> None:
        found = cell(4, 4)
        assert gains.speedup(found, found) == pytest.approx(1.0)

    def test_speedup_is_paired_and_inside_its_range(self) -> None:
        # next to no contention: twice as many cores are faster
        old, new = cell(4, 2, think_ns=20_000), cell(4, 4, think_ns=20_000)
        value = gains.speedup(old, new)
        low, high = gains.speedup_range(old, new)
        assert value is not None
        assert low is not None
        assert high is not None
        assert low <= value <= high
        assert value > 1

    def test_one_simulation_has_no_range(self) -> None:
        found = cell(4, 4, seeds=1)
        assert gains.throughput_range(found) == (None, None)
        assert gains.speedup_range(found, found) == (None, None)

    def test_kernel_factor_widens_the_range_of_the_varied_kernel(self) -> None:
        old, new = cell(4, 4), cell(4, 4)
        pair = (0, 1)
        plan = new.parts[0].recorded
        for slot, factor in ((new.cheaper, 0.85), (new.dearer, 1.15)):
            slot[pair] = simulate(
                plan,
                MODEL,
                small.machine(8, COSTS, spread=0.3),
                Options(cores=4, wrap=True, seed=1, kernel_factor=factor),
            )
        low, high = gains.speedup_range(old, new)
        assert low is not None
        assert high is not None
        assert low < 0.95 < 1.05 < high
        # The same uncertainty on the other side of the ratio.
        back_low, back_high = gains.speedup_range(new, old)
        assert back_low == pytest.approx(1 / high, rel=0.1)
        assert back_high == pytest.approx(1 / low, rel=0.1)

    def test_kernels_are_compared_over_the_same_operations(self) -> None:
        # Thread 0 faults 90 times, 1.5 µs each.  Thread 1 maps 60 times, 2.3 µs or 1.3 µs, and
        # then computes 10 µs before each fault: when thread 0 ends the replay, the fast kernel
        # has brought thread 1 to its computing, the slow one has not.
        fault = [small.op(PlanOp.FAULT, vma=0, think_cpu_ns=500) for _ in range(90)]
        maps = [small.op(PlanOp.MMAP, mm=1, vma=1, think_cpu_ns=1) for _ in range(60)]
        late = [small.op(PlanOp.FAULT, mm=1, vma=1, think_cpu_ns=10_000) for _ in range(30)]
        plan = small.plan([fault, maps + late])
        cells = []
        for tree in (2_000.0, 1_000.0):
            machine = small.machine(8, {**COSTS, "tree": tree})
            result = simulate(plan, MODEL, machine, Options(cores=2, wrap=True))
            cells.append(Cell({0: whole(plan)}, "recorded", {(0, 1): result}))
        gains.together(*cells)
        old, new = (cell.results[0, 1] for cell in cells)
        assert new.window_user_ns > 2 * old.window_user_ns  # what time windows would compare
        # Uncontended, 1.5 µs a fault and 11 µs a late one; a map by the mean of both replays.
        slow, fast = 135 / 2.301, 60
        mapping = (59 * 2.3 + 60 * 1.3) / 119 + 0.001
        expected = (135 + fast * mapping + (135 - 60 * 1.301)) / (135 + slow * mapping)
        assert gains.speedup(*cells) == pytest.approx(expected, rel=0.03)
        assert gains.useful_work_rate(cells[1]) / gains.useful_work_rate(cells[0]) == pytest.approx(
            expected, rel=0.03
        )

    @pytest.mark.parametrize("threads", [2, 3, 5])
    @pytest.mark.parametrize("slice_ns", [1e9, 20_000.0, 7_000.0])
    def test_threads_that_share_a_core_do_no_more_than_one(
        self, threads: int, slice_ns: float
    ) -> None:
        """However the turns lie: time counts in which another one has the core."""
        rates = []
        for n in (1, threads):
            plan = faults(n, 90)
            machine = small.machine(1, COSTS, slice_ns=slice_ns, switch_ns=0.0)
            result = simulate(plan, MODEL, machine, Options(cores=1, wrap=True))
            rates.append(gains.throughput(Cell({0: whole(plan)}, "recorded", {(0, 1): result})))
        assert rates[1] == pytest.approx(rates[0], rel=0.03)

    def test_time_that_a_thread_starves_counts(self) -> None:
        # Of three threads of 90 faults one ends; the second has got to 9 and the third to 18, both
        # early on.  Then neither came further.
        plan = faults(3, 90)
        result = simulate(plan, MODEL, small.machine(8, COSTS), Options(cores=3, wrap=True))
        begun = result.thread_begun.copy()
        at_ns = result.thread_progress_ns.copy()
        begun[1:] = 9, 18
        at_ns[1, 7:] = at_ns[2, 13:] = -1
        starved = replace(result, thread_begun=begun, thread_progress_ns=at_ns)
        cells = [Cell({0: whole(plan)}, "recorded", {(0, 1): r}) for r in (starved, result)]
        gains.together(*cells)
        after_warm_up = 0.9 * result.makespan_ns
        assert gains.throughput(cells[0]) == pytest.approx(1e9 * 90 / after_warm_up, rel=0.03)
        assert gains.speedup(*cells) == pytest.approx(243 / 90, rel=0.03)

    @pytest.mark.parametrize(("think_ns", "starves"), [(500, False), (10**12, True)])
    def test_a_thread_that_is_never_through_starves(self, think_ns: int, starves: bool) -> None:
        slow = [small.op(PlanOp.FAULT, vma=0, think_blocked_ns=think_ns)]
        quick = [small.op(PlanOp.FAULT, vma=1)] * 2
        plan = small.plan([slow, quick], groups=[0, 1], loops=[-1, 1])
        options = Options(cores=2, wrap=True, group=0)
        result = simulate(plan, MODEL, small.machine(8, COSTS), options)
        part = replace(whole(plan), group=0, work=work_of(plan, 0))
        assert gains.starves(Cell({0: part}, "recorded", {(0, 1): result})) == starves

    def test_idle_time_is_no_work(self) -> None:
        """A thread that is done sooner and sleeps has gained what it was faster, no more."""
        cells = []
        for tree in (2_000.0, 1_000.0):
            maps = [small.op(PlanOp.MMAP, mm=1, vma=1, think_cpu_ns=1) for _ in range(40)]
            last = [small.op(PlanOp.MMAP, mm=1, vma=1, think_blocked_ns=10**9)]
            faulting = [small.op(PlanOp.FAULT, vma=0, think_cpu_ns=500) for _ in range(90)]
            plan = small.plan([faulting, maps + last])
            machine = small.machine(8, {**COSTS, "tree": tree})
            result = simulate(plan, MODEL, machine, Options(cores=2, wrap=True))
            cells.append(Cell({0: whole(plan)}, "recorded", {(0, 1): result}))
        gains.together(*cells)
        # Thread 0 took as long; thread 1 gained a factor of 1.77.
        found = gains.speedup(*cells)
        assert found is not None
        assert 1.1 < found < 1.77

    @pytest.mark.parametrize("cores", [1, 2, 8])
    def test_a_group_computes_no_more_than_the_cores_can(self, cores: int) -> None:
        """Its busy thread is a ninth of it; on few cores the group does as much as they have."""
        plan = faults(1, 90)
        result = simulate(plan, MODEL, small.machine(8, COSTS), Options(cores=1, wrap=True))
        alone = Cell({0: whole(plan)}, "recorded", {(0, 1): result}, cores=cores)
        ninth = replace(whole(plan), ops_factor=9.0, user_factor=9.0)
        group = Cell({0: ninth}, "recorded", {(0, 1): result}, cores=cores)
        share = gains.useful_work_rate(alone)
        assert 2 < 9 * share < 8  # not on 1 and 2 cores
        times = min(9, cores / share)
        assert gains.useful_work_rate(group) == pytest.approx(times * share)
        assert gains.throughput(group) == pytest.approx(times * gains.throughput(alone))

    def test_without_recorded_computing_a_speedup_counts_operations(self) -> None:
        plan = loop(2, 90, think_ns=0)
        machine = small.machine(8, COSTS)
        cells = [
            Cell(
                {0: whole(plan)},
                "recorded",
                {(0, 1): simulate(plan, MODEL, machine, Options(cores=c, wrap=True))},
            )
            for c in (1, 2)
        ]
        expected = gains.throughput(cells[1]) / gains.throughput(cells[0])
        assert gains.speedup(cells[0], cells[1]) == pytest.approx(expected)


def series(values: list[float], threads: int = 64, **columns: object) -> list[Row]:
    blank = dict.fromkeys(Row.__dataclass_fields__)
    blank |= {"kernel": "k", "load": "saturated", "threads": threads, "limiting_lock": "mmap_lock"}
    blank |= {"busy_threads": threads, "lock_share": {"mmap_lock": 0.4}}
    blank |= columns
    return [
        replace(Row(**blank), cores=2**i, throughput_ops_per_s=value)  # type: ignore[arg-type]
        for i, value in enumerate(values)
    ]


class TestHeadlineRow:
    """The row that the first sentence is about."""

    @pytest.mark.parametrize(
        ("values", "busy", "cores"),
        [
            ([10, 20, 20, 20], 2, 2),
            ([10, 20, 30, 30], 3, 4),  # the third busy thread gets a core of its own
            ([10, 15, 20, 20.1], 1, 4),  # others run beside the busy one
            ([10, 20, 20, 20], 64, 8),  # a lock that stops them is what it is about
            ([10], 1, 1),
        ],
    )
    def test_the_most_cores_that_matter(self, values: list[float], busy: int, cores: int) -> None:
        assert headline_row(series(values, busy_threads=busy), "k").cores == cores

    def test_a_gain_that_changes_matters(self) -> None:
        first, second = series([10, 10], busy_threads=1)
        rows = [replace(first, speedup=1.0), replace(second, speedup=1.3)]
        assert headline_row(rows, "k").cores == 2


class TestSaturation:
    def test_knee(self) -> None:
        point = gains.saturation(series([10, 20, 31, 32, 30]))
        assert (point.cores, point.reason) == (4, "mmap_lock")

    def test_still_growing(self) -> None:
        assert gains.saturation(series([10, 20, 40])).cores is None

    def test_out_of_threads(self) -> None:
        point = gains.saturation(series([10, 20, 20], threads=2, limiting_lock=None))
        assert (point.cores, point.reason) == (2, "threads")

    def test_out_of_busy_threads(self) -> None:
        point = gains.saturation(series([10, 20, 20], threads=9, busy_threads=2))
        assert (point.cores, point.reason) == (2, "threads")

    def test_more_cores_that_do_harm_are_the_locks_doing(self) -> None:
        falls = series([20, 18, 15, 15], threads=9, busy_threads=1)
        assert (gains.saturation(falls).cores, gains.saturation(falls).reason) == (1, "mmap_lock")

    def test_a_lock_that_takes_little_is_not_the_reason(self) -> None:
        rows = series([10, 20, 20], lock_share={"mmap_lock": 0.02})
        assert gains.saturation(rows).reason == "cores"

    def test_capacity_shows_that_the_load_asks_for_no_more(self) -> None:
        rows = series([10, 20, 20], load="recorded")
        assert gains.saturation(rows).reason == "mmap_lock"
        assert gains.saturation(rows, series([15, 30, 60])).reason == "demand"
        assert gains.saturation(rows, series([10, 20, 20])).reason == "mmap_lock"

    def test_no_more_demand(self) -> None:
        rows = series([10, 20, 20], limiting_lock=None, load="recorded")
        assert gains.saturation(rows).reason == "demand"
