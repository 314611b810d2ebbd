"""Which threads a group is measured by, and that the others neither end nor distort it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import change, worker_trace

from mmreplay.address_space.plan import Plan, PlanOp
from mmreplay.predict import api
from mmreplay.predict.recorded import Recorded
from mmreplay.predict.steady import Part, measured
from mmreplay.trace.store import Trace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
import small


def plan_of(*threads: tuple[int, int, int]) -> Plan:
    """Each thread: operations, think on CPU before each, sleep before each."""
    rows, row = [], 0
    for ops, cpu, blocked in threads:
        mine = []
        for _ in range(ops):
            mine.append(
                small.op(PlanOp.FAULT, vma=0, table=0, think_cpu_ns=cpu, think_blocked_ns=blocked)
            )
            row += 1
        rows.append(mine)
    return small.plan(rows)._replace(row=np.arange(row))


def part_of(
    plan: Plan, group: int = 0, service_ns: float = 0.0, pids: Sequence[int] | None = None
) -> Part:
    bundle: Any = SimpleNamespace(
        threads=[SimpleNamespace(pid=pid) for pid in pids or [1] * plan.n_threads]
    )
    times = Recorded(np.full(plan.n_ops, service_ns), np.zeros(plan.n_ops))
    return measured(bundle, plan, group, times)


def steady(part: Part) -> list[int]:
    return np.flatnonzero(part.recorded.thread_group == part.group).tolist()


WORKER = (100, 1_000, 500)


def test_equal_threads_are_all_steady_and_nothing_is_scaled() -> None:
    plan = plan_of(WORKER, WORKER, WORKER)
    part = part_of(plan)
    assert part.recorded is part.saturated is plan
    assert (part.group, part.ops_factor, part.user_factor, part.idle) == (0, 1.0, 1.0, True)


def test_a_main_thread_that_sleeps_is_not_steady() -> None:
    plan = plan_of((20, 50, 7_000), WORKER, WORKER)
    part = part_of(plan)
    assert steady(part) == [1, 2]
    assert part.ops_factor == pytest.approx(220 / 200)
    assert part.user_factor == pytest.approx(201_000 / 200_000)
    # Workers are awake for two thirds of their time, so all gets 1.5 times as fast.
    before, after = plan.think_blocked_ns, part.saturated.think_blocked_ns
    assert np.array_equal(before[20:], after[20:])  # that of the workers the engine leaves out
    alive = 20 * 50 + int(before[:20].sum())
    assert 20 * 50 + int(after[:20].sum()) == pytest.approx(alive / 1.5, rel=0.01)
    assert part.recorded.think_blocked_ns is plan.think_blocked_ns


def test_at_the_saturated_load_nobody_waits_for_others_to_be_through() -> None:
    """A pool forked one after the other; threads that only begin a little later stay so."""
    plan = plan_of(WORKER, WORKER, WORKER)
    apart = plan._replace(thread_offset_ns=np.array([5_000, 200_000, 400_000]))
    part = part_of(apart)
    assert (part.in_turn, part.idle) == (True, True)
    assert part.recorded.thread_offset_ns.tolist() == [5_000, 200_000, 400_000]
    assert part.saturated.thread_offset_ns.tolist() == [5_000] * 3
    later = plan._replace(thread_offset_ns=np.array([0, 100_000, 50_000]))
    assert part_of(later).saturated is later


def test_one_busy_thread_does_not_outweigh_the_pool() -> None:
    part = part_of(plan_of((300, 1_000, 0), *[WORKER] * 8))
    assert steady(part) == list(range(9))


def test_service_counts_as_busy() -> None:
    plan = plan_of((1_000, 0, 10), WORKER)
    assert steady(part_of(plan, service_ns=0.0)) == [1]
    assert steady(part_of(plan, service_ns=200.0)) == [0, 1]


def test_other_threads_of_the_process_keep_pace_and_other_processes_do_not_care() -> None:
    plan = plan_of((5, 10, 7_000), WORKER, WORKER)
    plan = plan._replace(thread_group=np.array([1, 0, 0], np.int32))
    part = part_of(plan)
    assert part.recorded is plan  # the group itself is whole
    assert steady(part) == [1, 2]
    assert part.saturated.think_blocked_ns[:5].sum() < 5 * 7_000 / 1.4
    apart = part_of(plan, pids=[7, 1, 1])
    assert apart.recorded is apart.saturated is plan


def test_all_threads_can_be_measured() -> None:
    plan = plan_of((5, 10, 10), WORKER)
    part = part_of(plan, group=-1)
    assert part.group >= 0
    assert steady(part) == [1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(0, 5_000), st.integers(0, 5_000)),
        min_size=1,
        max_size=8,
    )
)
def test_some_thread_is_steady_and_nobody_gets_slower(threads: list[tuple[int, int, int]]) -> None:
    plan = plan_of(*threads)
    part = part_of(plan, service_ns=100.0)
    assert steady(part)
    assert part.ops_factor >= 1
    assert part.user_factor >= 1
    assert (part.saturated.think_blocked_ns <= plan.think_blocked_ns).all()
    assert (part.saturated.think_blocked_ns >= 0).all()


def with_main(trace: Trace, loops: int) -> Trace:
    """``trace`` and a thread of the same group that works little and sleeps long."""
    import polars as pl

    other = worker_trace(threads=1, loops=loops, think_ns=100, blocked_ns=40_000)
    apart = pl.col("address") + (64 << 30)
    mine = other.operations.collect().with_columns(
        tid=99,
        address=apart,
        result=pl.when(pl.col("result") != 0).then(apart.cast(pl.Int64)).otherwise("result"),
    )
    rows = pl.concat([trace.operations.collect(), mine]).sort("begin_ns", "tid")
    rows = rows.with_columns(
        seq=pl.int_range(pl.len(), dtype=pl.UInt32).over("begin_ns").cast(pl.UInt32),
        tid=pl.col("tid").cast(pl.Int32),
    )
    people = pl.concat(
        [
            trace.threads.collect(),
            other.threads.collect().with_columns(tid=pl.lit(99, pl.Int32)),
        ]
    )
    return Trace.in_memory(trace.header, {"operations": rows, "threads": people})


def in_two_phases(trace: Trace) -> Trace:
    """Long computations first, then none: a window that ends early sees another program."""
    import polars as pl

    late = pl.col("begin_ns") > pl.col("begin_ns").max() / 2
    return change(trace, think_cpu_ns=pl.when(late).then(500).otherwise(30_000))


def test_a_main_thread_changes_the_prediction_little() -> None:
    workers = in_two_phases(worker_trace(threads=4, loops=60))
    options: dict[str, Any] = {"to_kernel": "linux-6.18", "cores": (8,), "load": "saturated"}
    plain = api.predict(workers, **options)
    mixed = api.predict(with_main(workers, loops=2), **options)
    for one, other in zip(plain.rows, mixed.rows, strict=True):
        assert other.throughput_ops_per_s == pytest.approx(one.throughput_ops_per_s, rel=0.2)
        assert other.speedup == pytest.approx(one.speedup, rel=0.2)
