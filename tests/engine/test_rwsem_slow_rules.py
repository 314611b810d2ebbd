"""More of the rwsem: hand-off, batches, windows, need_resched; as ``test_rwsem_rules.py``."""

from __future__ import annotations

from typing import Any

import pytest
from scenario import COSTS, LONG, MIDDLE, SHORT, ends, lock, replay
from small import LOCKS, R, W, machine, model, op, plan
from test_rwsem_rules import hold

from mmreplay.address_space.plan import PlanOp
from mmreplay.engine import LockStats, Options, Result
from mmreplay.locking.isa import Kind, Op, Scope


def run(
    *threads: tuple[int, list[Any]], cores: int = 4, numbers: dict[str, int] | None = None,
    **params: int,
) -> Result:  # fmt: skip
    kinds = list(PlanOp)[1 : len(threads) + 1]
    locks = {name: dict(spec) for name, spec in LOCKS.items()}
    locks["mmap_lock"].update(params)
    return replay(
        plan([[op(kind)] for kind in kinds], offsets=[begin for begin, _ in threads]),
        model({kind: program for kind, (_, program) in zip(kinds, threads, strict=True)}, locks),
        machine(4, COSTS, **(numbers or {})),
        Options(cores=cores),
    )


def rwsem(result: Result) -> LockStats:
    return lock(result, "mmap_lock")


def test_trylock_fails_where_anybody_waits() -> None:
    tries = [
        (Op.TRY, "mmap_lock", R, "no"), (Op.UNLOCK, "mmap_lock", R), (Op.DONE,),
        "no", (Op.COUNT, "failed"), (Op.DONE,),
    ]  # fmt: skip
    # Readers hold it: T2's try succeeds, unless T1 waits to write (WAITERS).
    alone = run((0, hold(R, LONG)), (60_000, hold(W, SHORT)), (5000, tries), osq=0)
    beside = run((0, hold(R, LONG)), (100, hold(W, SHORT)), (5000, tries), osq=0)
    assert alone.reasons["failed"] == 0
    assert beside.reasons["failed"] == 1


def test_the_window_of_a_spinner_grows_with_the_readers() -> None:
    # T1's first look at 170: one reader, 10.5 us, until 10670, asleep 10980; two, 11 us, until
    # 11170.  T0 releases at 11010..11060: a T1 that still spins looks at 11080 and has it.
    long = [
        (Op.LOCK, "mmap_lock", R), (Op.COST, "tens"), (Op.COST, SHORT),
        (Op.UNLOCK, "mmap_lock", R), (Op.DONE,),
    ]  # fmt: skip
    one = run((0, long), (100, hold(W, SHORT)))
    two = run((0, long), (100, hold(W, SHORT)), (50, hold(R, MIDDLE)))
    assert rwsem(one).sleeps == 1
    assert rwsem(two).sleeps == 0


@pytest.mark.parametrize(("spin_us", "sleeps"), [(0, 1), (3, 1), (6, 0)])
def test_a_window_of_its_own(spin_us: int, sleeps: int) -> None:
    # T0 reads until 5010: 3 us after the first look (170) are too short, 6 us are not.
    result = run((0, hold(R, MIDDLE)), (100, hold(W, SHORT)), spin_us=spin_us)
    assert rwsem(result).sleeps == sleeps


def test_a_spinner_makes_room_for_a_runnable_thread() -> None:
    # Two CPUs.  T1 spins until its slice ends at 2100, queues 2110, asleep 2410; T3 (on the same
    # CPU, ready at 200) runs after a switch: 2910..3910.
    work = [(Op.COST, SHORT), (Op.DONE,)]
    result = run(
        (0, hold(W, LONG)), (100, hold(W, SHORT)), (100_000, [(Op.DONE,)]), (200, work), cores=2,
        numbers={"slice_ns": 2000},
    )  # fmt: skip
    assert ends(result)[3] == 3910
    assert rwsem(result).sleeps == 1


def test_the_first_waiter_with_handoff_spins_on_the_writer_that_holds_it() -> None:
    # As in the steal test, but T2 writes: looks 52070, has it 52080..62080.  T1 fails at 56120,
    # sets HANDOFF and spins, for T2 runs.  T2 releases by 62130, wait_lock 62140: T1's
    # next try 62190..63190, the sequence's line 63240, 63250.
    result = run(
        (0, hold(R, LONG)), (100, hold(W, SHORT)), (52_000, hold(W, "tens")), handoff_ns=1000
    )
    assert ends(result) == [51_070, 63_250, 62_140]
    assert rwsem(result).handoffs == 1
    assert rwsem(result).sleeps == 1


def test_a_first_waiter_with_handoff_makes_room_for_a_runnable_thread() -> None:
    # As before on three CPUs; T1 was woken at 56070 and its turn ends at 57070.  T4, of its CPU,
    # comes at 58000: T1 looks at 58020, RMW 58030, asleep 58330; T4 58830..59830.  T2 releases
    # by 62130, wait_lock 62140, waker 63140; T1 68140..68190..69190, the sequence 69240, 69250.
    idle, work = [(Op.DONE,)], [(Op.COST, SHORT), (Op.DONE,)]
    result = run(
        (0, hold(R, LONG)), (100, hold(W, SHORT)), (52_000, hold(W, "tens")), (200_000, idle),
        (58_000, work), cores=3, numbers={"slice_ns": 1000, "wakes_stay": 1}, handoff_ns=1000,
    )  # fmt: skip
    assert ends(result) == [51_070, 69_250, 63_140, 200_000, 59_830]
    assert rwsem(result).handoffs == 1
    assert rwsem(result).sleeps == 2


def test_a_reader_that_waited_long_sets_handoff_when_a_writer_stole_the_lock() -> None:
    # T1 queues by 160.  T0 releases by 1060; T2 spins and looks at 1061, the line is free of
    # T0's wait_lock at 1070: 1120..2120.  T0 finds T2 at 1070: HANDOFF for T1.  T2: the
    # sequence 2170, release 2180, wait_lock 2190, waker 3190; T1 8190..9190, its line 9240.
    result = run(
        (0, hold(W, SHORT)), (100, hold(R, SHORT)), (200, hold(W, SHORT)), handoff_ns=500,
        numbers={"spin_poll_ns": 1},
    )  # fmt: skip
    assert rwsem(result).steals == 1
    assert rwsem(result).handoffs == 1
    assert ends(result) == [1070, 9240, 3190]


def test_one_wake_grants_all_readers_past_a_queued_writer() -> None:
    # T0 10..5010, its line is at T3 5060, wait_lock 5070, wakes T1 6070 and T3 7070.  T1
    # 11070..12070, line 12120; T3 12070..13070, line 13120, wait_lock 13130, wakes T2 14130;
    # T2 19130, 19180..20180, the sequence 20230, 20240.
    result = run(
        (0, hold(W, MIDDLE)), (100, hold(R, SHORT)), (200, hold(W, SHORT)), (300, hold(R, SHORT)),
        osq=0,
    )  # fmt: skip
    assert ends(result) == [7070, 12_120, 20_240, 14_130]


def test_5_10_readers_that_spin_pass_a_queued_writer() -> None:
    # As in the steal test: the lock is free and T1 on its way when T2 comes: it looks at
    # 52070 and takes it.
    threads = ((0, hold(R, LONG)), (100, hold(W, SHORT)), (52_000, hold(R, SHORT)))
    result = run(*threads, reader_spin=1)
    assert rwsem(result).steals == 1
    assert rwsem(result).read_wait_ns == 70


def test_5_10_readers_do_not_spin_on_an_owner_off_its_cpu() -> None:
    program = [
        (Op.LOCK, "mmap_lock", W), (Op.COST, SHORT), (Op.SLEEP, "io"),
        (Op.UNLOCK, "mmap_lock", W), (Op.DONE,),
    ]  # fmt: skip
    # T1 comes while T0 sleeps: it queues at once, asleep at 5360.
    result = run((0, program), (5000, hold(R, SHORT)), reader_spin=1)
    assert rwsem(result).sleeps == 1


def test_a_queued_writer_finds_the_lock_free_and_takes_it() -> None:
    # T2 queues behind T1, which was woken at 51070 and runs at 56070.  osq = 0: T2 comes at
    # 53000, RMW 53050, queues 53060 and may take what is free (no HANDOFF): 53060..54060.
    result = run((0, hold(R, LONG)), (100, hold(W, SHORT)), (53_000, hold(W, SHORT)), osq=0)
    assert rwsem(result).steals == 1
    assert ends(result)[2] < ends(result)[1]


def test_spin_depth_is_kept_when_a_thread_leaves_its_cpu() -> None:
    # Inside the private spin section T0 comes to an ordered step, goes back to the queue,
    # and later sleeps: the depth that it left with must be the one that it goes on with, or
    # it is never preempted again and T1 waits for the CPU for ever.
    steps = [(Op.TOUCH, "mm.3", 1), (Op.COST, SHORT)] * 6
    program = [
        (Op.LOCK, "ptl", W), (Op.TOUCH, "mm.3", 1), (Op.COST, SHORT), (Op.UNLOCK, "ptl", W),
        (Op.SLEEP, "io"), *steps, (Op.DONE,),
    ]  # fmt: skip
    other = [*steps * 5, (Op.DONE,)]
    result = replay(
        plan([[op(table=0)], [op(PlanOp.MMAP)]]),
        model({PlanOp.FAULT: program, PlanOp.MMAP: other}),
        machine(4, COSTS, slice_ns=2500),
        Options(cores=1),
    )
    # One CPU for 7 + 30 steps of 1000: they took turns, so T0 was through long before T1.
    assert result.op_count[PlanOp.FAULT] == result.op_count[PlanOp.MMAP] == 1
    assert ends(result)[0] < ends(result)[1]
    assert ends(result)[0] > 20_000 + 7000 + 3 * 500


def test_a_reader_that_steals_takes_the_queued_readers_along() -> None:
    # T0 releases at 1010: RMW 1060, wait_lock 1070.  T2 comes at 1015, RMW 1120: nobody holds it,
    # so it steals, and grants T1, first in the queue: waker 2120.  T0 finds nobody left at 1070.
    # T2 2120..3120, 3130; T1 runs 7120..8120, 8170.
    result = run((0, hold(W, SHORT)), (100, hold(R, SHORT)), (1015, hold(R, SHORT)), osq=0)
    assert rwsem(result).steals == 1
    assert ends(result) == [1070, 8170, 3130]


def test_a_writer_that_becomes_the_owner_ends_nonspinnable() -> None:
    # T1 sets NONSPINNABLE at 10670, sleeps, has it 56120..106120.  T2 comes at 60000: it may
    # spin.  T1's release 106170, T2's look 106190, RMW 106240..107240, sequence 107290, 107300.
    result = run((0, hold(R, LONG)), (100, hold(W, LONG)), (60_000, hold(W, SHORT)))
    assert rwsem(result).sleeps == 1
    assert ends(result) == [51_070, 106_170, 107_300]


def test_a_reader_that_queues_wakes_the_reader_at_the_head() -> None:
    # One reader a wake: T0 wakes T1 at 2070, T2 stays.  T1 7070..57070.  T3 at 20000: RMW 20050,
    # queue 20060; readers hold the lock and the head is a reader: it wakes T2, 21060, and sleeps.
    # T2 26060..76060, release 76110, wait_lock 76120, waker 77120; T3 82120..83120, 83170.
    threads = (
        (0, hold(W, SHORT)), (100, hold(R, LONG)), (110, hold(R, LONG)), (20_000, hold(R, SHORT)),
    )  # fmt: skip
    assert ends(run(*threads, batch=1)) == [2070, 57_120, 77_120, 83_170]


def test_a_reader_takes_those_along_that_a_batch_left_over() -> None:
    # Batches of two: the writer's release wakes T1 and T2, T3 stays.  T4 comes while they read:
    # two readers own the lock, so it cannot steal; it queues behind T3, and its look at the
    # queue grants both.
    readers = [(100, hold(R, LONG)), (150, hold(R, LONG)), (200, hold(R, LONG))]
    late = (40_000, hold(R, SHORT))
    result = run((0, hold(W, MIDDLE)), *readers, late, batch=2, osq=0)
    end = ends(result)
    assert end[4] < 43_000  # it waited for nobody
    assert end[3] < end[1] + 55_000  # T3 began at 40,000, not when T1 and T2 were through
    assert end[3] < 40_000 + 50_000 + 15_000
    assert rwsem(result).sleeps == 3


def test_a_thread_may_hold_any_number_of_them_for_writing() -> None:
    names = [f"sem{i}" for i in range(20)]
    spec = {"kind": Kind.RWSEM, "scope": Scope.GLOBAL}
    locks = LOCKS | {name: spec | {"line": f"global.{name}"} for name in names}
    program = [
        *((Op.LOCK, name, W) for name in names),
        (Op.COST, LONG),
        *((Op.UNLOCK, name, W) for name in reversed(names)),
        (Op.DONE,),
    ]
    kinds = list(PlanOp)[1:3]
    result = replay(
        plan([[op(kind)] for kind in kinds], offsets=[0, 100]),
        model(dict.fromkeys(kinds, program), locks),
        machine(4, COSTS),
        Options(cores=2),
    )
    assert [lock(result, name).write for name in names] == [2] * 20
    assert ends(result)[1] - ends(result)[0] > 50_000  # one after the other
