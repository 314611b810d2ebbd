"""Wake points of a plan: threads that wait for what another thread does between its operations."""

from __future__ import annotations

from typing import Any

import pytest
from scenario import COSTS, ends, replay
from small import R, W, machine, model, op, plan

from mmreplay.address_space.plan import WAKE_POINT, PlanOp
from mmreplay.engine import Options, Result
from mmreplay.locking.isa import Op

#: A fault of 1 us and a mapping of 50 us; locks and lines of a thread alone cost 10 ns each.
MODEL = model(
    {
        PlanOp.FAULT: [(Op.COST, "short"), (Op.DONE,)],
        PlanOp.MMAP: [
            (Op.LOCK, "mmap_lock", W),
            (Op.COST, "long"),
            (Op.UNLOCK, "mmap_lock", W),
            (Op.DONE,),
        ],
        PlanOp.MUNMAP: [
            (Op.LOCK, "mmap_lock", R),
            (Op.COST, "middle"),
            (Op.UNLOCK, "mmap_lock", R),
            (Op.DONE,),
        ],
    }
)
WOKEN = 5000
OPTIONS = ("load", "group", "cores", "wrap")


def point(**columns: Any) -> dict[str, Any]:
    return op(PlanOp.NONE, traits=int(WAKE_POINT), pages=0, **columns)


def fault(**columns: Any) -> dict[str, Any]:
    return op(PlanOp.FAULT, **columns)


def run(threads: list[list[dict[str, Any]]], fast: float = 1.0, **more: Any) -> Result:
    """Replay; faults and mappings cost ``fast`` times as much."""
    costs = {name: value * fast for name, value in COSTS.items()}
    options = {name: more.pop(name) for name in list(more) if name in OPTIONS}
    return replay(
        plan(threads, **more),
        MODEL,
        machine(4, costs),
        Options(**({"cores": 4, "wrap": False} | options)),
    )


def test_a_consumer_waits_for_its_producer() -> None:
    # producer: fault (1 us), 2 us of work, wake; consumer: 0.5 us of work, wait, 4 us, fault
    producer = [fault(), point(think_cpu_ns=2000)]
    consumer = [point(think_cpu_ns=500, deps=[1], sleep_ns=2500), fault(think_cpu_ns=4000)]
    result = run([producer, consumer])
    assert ends(result) == [3000, 3000 + WOKEN + 4000 + 1000]
    assert result.ops == 2  # points are no operations
    assert result.detail["dep_wait_ns"] == 3000 + WOKEN - 500
    assert result.sleep_ns == 0


@pytest.mark.parametrize(("cores", "begins"), [(1, 3500), (2, 1000 + WOKEN)])
def test_only_an_idle_cpu_takes_time_to_wake_up(cores: int, begins: int) -> None:
    # The consumer waits at once.  With one CPU the producer goes on for 2 us when it has woken it
    # at 1 us, and then the consumer gets the CPU after a switch (0.5 us).
    consumer = [point(deps=[3]), fault()]
    producer = [fault(), point(), fault(think_cpu_ns=1000)]
    result = run([consumer, producer], cores=cores)
    assert ends(result)[0] == begins + 1000


def test_a_consumer_that_comes_late_does_not_sleep() -> None:
    producer = [fault(), point(think_cpu_ns=2000)]
    consumer = [point(think_cpu_ns=7000, deps=[1], sleep_ns=2500), fault(think_cpu_ns=4000)]
    assert ends(run([producer, consumer])) == [3000, 12_000]


@pytest.mark.parametrize("fast", [1.0, 0.1])
def test_a_faster_producer_makes_its_consumer_faster(fast: float) -> None:
    producer = [fault(), point()] * 3
    consumer = [point(deps=[1]), fault(), point(deps=[3]), fault(), point(deps=[5]), fault()]
    first, second = ends(run([producer, consumer], fast))
    one = round(1000 * fast)
    assert first == 3 * one
    # Woken after the first item; the others are there by then.
    assert second == one + WOKEN + 3 * one
    # The same with the recorded waits as think time: as slow as it was recorded.
    slept = [fault(think_blocked_ns=1000 + WOKEN), fault(), fault()]
    _, still = ends(run([producer, slept], fast))
    assert still == 1000 + WOKEN + 3 * one


def test_a_barrier_ends_with_its_last_thread() -> None:
    # Rows 0-3, 4-7, 8-11: two operations with a barrier between.  Thread 2 arrives last.
    def thread(own: int, deps: list[int]) -> list[dict[str, Any]]:
        return [fault(think_cpu_ns=own), point(), point(deps=deps), fault()]

    result = run([thread(1000, [9]), thread(3000, [9]), thread(8000, [])])
    last = 9000
    assert ends(result) == [last + WOKEN + 1000, last + WOKEN + 1000, last + 1000]


def test_ping_pong_within_one_gap() -> None:
    # Neither thread has an operation between the three hand-overs.
    a = [fault(), point(think_cpu_ns=100), point(deps=[5]), point(think_cpu_ns=100), fault()]
    b = [point(deps=[1]), point(think_cpu_ns=300), point(deps=[3]), fault()]
    b[0]["deps"], b[2]["deps"] = [1], [3]
    a[2]["deps"] = [6]
    first, second = ends(run([a, b]))
    handed = 1000 + 100 + WOKEN + 300  # b answers
    assert first == handed + WOKEN + 100 + 1000
    assert second == handed + WOKEN + 100 + WOKEN + 1000


def test_user_time_before_points_is_useful_work() -> None:
    with_points = [fault(), *[point(think_cpu_ns=700), fault(think_cpu_ns=300)] * 20]
    without = [fault(), *[fault(think_cpu_ns=1000)] * 20]
    waiter = [fault(), point(deps=[1])]
    for group in (-1, 0):
        a = run([with_points, waiter], group=group, groups=[0, 1])
        b = run([without, waiter], group=group, groups=[0, 1])
        # The windows begin at different ordered steps.
        assert a.throughput_ops_per_s == pytest.approx(b.throughput_ops_per_s, rel=0.05)
        assert a.useful_work_rate == pytest.approx(b.useful_work_rate, rel=0.05)
        assert ends(a)[0] == ends(b)[0]


def test_saturated_load_keeps_the_waits_and_wakes_the_wakers_up() -> None:
    # The producer sleeps 40 us for something that was not recorded before each item.
    producer = [fault(think_blocked_ns=40_000), point()] * 2
    consumer = [
        point(deps=[1], sleep_ns=41_000),
        fault(),
        point(deps=[3], sleep_ns=41_000),
        fault(),
    ]
    other = [fault(think_blocked_ns=30_000)]
    threads = [producer, consumer, other]
    groups = [1, 0, 2]
    recorded = ends(run(threads, groups=groups, group=0))
    assert recorded == [82_000, 82_000 + WOKEN + 1000, 31_000]
    saturated = ends(run(threads, groups=groups, group=0, load="saturated"))
    # The group's wakers do not idle either; who has nothing to do with it sleeps on.
    assert saturated == [2000, 1000 + WOKEN + 2000, 31_000]


def test_later_laps_sleep_what_was_recorded() -> None:
    # Thread 1 loops from its first row while thread 0 (the group) goes on.
    leader = [fault(), point(), *[fault(think_cpu_ns=2000)] * 10]
    follower = [point(deps=[1], sleep_ns=3000), fault(think_cpu_ns=1000)]
    result = run([leader, follower], groups=[0, 1], loops=[-1, 12], group=0, wrap=True)
    assert ends(result)[0] == 31_000
    # First lap: woken at 1 us + 5 us, 1 us of work, 1 us of fault; each later one takes 5 us.
    assert int(result.thread_begun[1]) == 1 + (31_000 - 8000) // 5000
