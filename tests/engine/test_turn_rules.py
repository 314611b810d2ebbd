"""More threads than CPUs: which CPU a thread queues on, and whose turn it is; checked by hand.

Switching takes 500, waking on an idle CPU 5000 longer (``small.machine``).
"""

from __future__ import annotations

from typing import Any

import pytest
from scenario import COSTS, LONG, SHORT, ends, replay
from small import W, machine, model, op, plan

from mmreplay.address_space.plan import PlanOp
from mmreplay.engine import Result
from mmreplay.engine.result import Options
from mmreplay.locking.isa import Op

QUICK, SLOW, IO, MAP = PlanOp.FAULT, PlanOp.MMAP, PlanOp.MUNMAP, PlanOp.MPROTECT
MODEL = model(
    {
        QUICK: [(Op.COST, SHORT), (Op.DONE,)],
        SLOW: [(Op.COST, LONG), (Op.DONE,)],
        IO: [(Op.SLEEP, "io"), (Op.DONE,)],
        MAP: [
            (Op.LOCK, "mmap_lock", W), (Op.COST, SHORT), (Op.COST, SHORT),
            (Op.UNLOCK, "mmap_lock", W), (Op.DONE,),
        ],
    }
)  # fmt: skip


def run(
    *threads: list[PlanOp], offsets: list[int] | None = None, cores: int = 1, **n: Any
) -> Result:
    rows = [[op(kind) for kind in kinds] for kinds in threads]
    options = Options(cores=cores)
    return replay(plan(rows, offsets=offsets), MODEL, machine(4, COSTS, **n), options)


def test_a_sleeper_that_is_owed_cpu_time_runs_when_the_operation_ends() -> None:
    """check_preempt_wakeup_fair: T1 has run nothing while T0 ran 6000."""
    # T0 runs over its turn of 5100 and makes room at 6000; T1 sleeps from 6500 to 26500, owed
    # 3000 (half of what T0 is ahead).  T0 runs from 7000; at 26500 its operation goes on until
    # 27000, then T1 runs 27500..28500, and T0 the other 14 operations from 29000 on.
    result = run([QUICK] * 40, [IO, QUICK], slice_ns=5100)
    assert ends(result) == [43_000, 28_500]


def test_a_sleeper_that_is_owed_nothing_waits_for_the_end_of_the_turn() -> None:
    # T0 sleeps at once, until 20000.  T1 runs from 0; its turns are over at the ends of operations
    # behind 5100, 11100, 17100 and 23100: at 24000 it is T0's, 24500..25500.
    result = run([IO, QUICK], [QUICK] * 30, slice_ns=5100)
    assert ends(result) == [25_500, 32_000]


def test_nobody_is_preempted_inside_an_operation() -> None:
    """PREEMPT_NONE, PREEMPT_VOLUNTARY, PREEMPT_LAZY: on the way back to user mode."""
    # Both take 10 + 2000 + 10; T0's turn is over when it holds the lock.
    result = run([MAP] * 2, [MAP] * 2, slice_ns=1500)
    waits = result.locks[MODEL.locks.index("mmap_lock")].write_wait_ns
    assert waits == 0


@pytest.mark.parametrize(("other_ops", "begins"), [(0, 20_000), (1, 200_600)])
def test_a_sleeper_wakes_on_an_idle_cpu_or_queues_where_it_was(other_ops: int, begins: int) -> None:
    """select_task_rq_fair; who ran less than 0.5 ms ago is not moved afterwards (task_hot)."""
    # T2 sleeps from 0 to 20000 on CPU 0, where T0 runs 100..200100; T1 on CPU 1 until 0 or 50000.
    result = run(
        [SLOW] * 4, [SLOW] * other_ops, [IO, QUICK], offsets=[100, 0, 0], cores=2
    )  # fmt: skip
    assert ends(result)[2] == begins + 1000


def test_where_wake_ups_stay_a_sleeper_queues_where_it_was() -> None:
    """Machine.wakes_stay."""
    # As above, CPU 1 being idle: T2 runs when T0 has ended.
    result = run([SLOW] * 4, [], [IO, QUICK], offsets=[100, 0, 0], cores=2, wakes_stay=True)
    assert ends(result)[2] == 201_600


def test_a_cpu_that_falls_idle_takes_who_has_not_run_for_long() -> None:
    """sched_balance_newidle."""
    # T2 queues behind T0 from the start and has never run; T1 ends at 100000.
    result = run([SLOW] * 40, [SLOW] * 2, [QUICK], cores=2)
    assert ends(result) == [2_000_000, 100_000, 101_500]


def test_at_a_tick_an_idle_cpu_takes_a_queued_thread() -> None:
    """nohz_balancer_kick."""
    # As above, but at 100100 T0 has run for a tick: T2 runs on CPU 1 105100..106100.
    result = run(
        [SLOW] * 4, [SLOW], [IO, QUICK], offsets=[100, 0, 0], cores=2, slice_ns=100_000
    )  # fmt: skip
    assert ends(result) == [200_100, 50_000, 106_100]
