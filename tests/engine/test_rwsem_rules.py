"""One scenario per rule of the kernel's rwsem, small enough to check by hand.

The machine: a read-modify-write on an owned line 10 ns, a line transfer 50, a
wake-up 1000 for the waker and 5000 until the woken runs, 300 to fall asleep, one
spinning round 20.  Every thread has a CPU of its own; thread 0 begins at 0 and owns
the lock's line first, so its first access costs 10.
"""

from __future__ import annotations

import itertools
from typing import Any

from scenario import COSTS, LONG, MIDDLE, SHORT, ends, replay
from small import LOCKS, R, W, machine, model, op, plan

from mmreplay.address_space.plan import PlanOp
from mmreplay.engine import LockStats, Options, Result
from mmreplay.locking.isa import Op


def hold(mode: int, cost: str) -> list[Any]:
    return [
        (Op.LOCK, "mmap_lock", mode),
        (Op.COST, cost),
        (Op.UNLOCK, "mmap_lock", mode),
        (Op.DONE,),
    ]


def run(*threads: tuple[int, list[Any]], cores: int = 4, **params: Any) -> Result:
    """Each thread: when it begins, and the program of its one operation."""
    kinds = list(PlanOp)[1 : len(threads) + 1]
    programs = {kind: program for kind, (_, program) in zip(kinds, threads, strict=True)}
    locks = {name: dict(spec) for name, spec in LOCKS.items()}
    locks["mmap_lock"].update(params)
    inputs = (
        plan([[op(kind)] for kind in kinds], offsets=[begin for begin, _ in threads]),
        model(programs, locks),
        machine(4, COSTS),
        Options(cores=cores),
    )
    return replay(*inputs)


def lock(result: Result) -> LockStats:
    return result.locks[0]


def test_readers_share() -> None:
    # T0: 10 + 1000, T1's transfer took the line: 50.  T1: 100 + 50 + 1000 + 50.
    result = run((0, hold(R, SHORT)), (100, hold(R, SHORT)))
    assert ends(result) == [1060, 1200]
    assert lock(result).read_wait_ns == 0
    assert lock(result).read_hold_ns == 2000


def test_writer_spins_through_a_short_reader_phase() -> None:
    # T1 fails at 150, first look 170.  T0 releases 5010..5060, T1 looks at 5080 and
    # moves the line until 5130; 1000 held, its own line on release.
    result = run((0, hold(R, MIDDLE)), (100, hold(W, SHORT)))
    assert ends(result) == [5060, 6140]
    assert lock(result).write_wait_ns == 5080 - 100
    assert lock(result).sleeps == 0


def test_reader_owned_window_ends_in_sleep() -> None:
    # First look at 170: window (20 + 1) / 2 us, so until 10670.  Queues until 10680,
    # asleep 10980.  T0 releases 50010..50060, wait_lock 50070, waker 51070; T1 runs at
    # 56070, takes it by 56120, releases 57120..57130.
    result = run((0, hold(R, LONG)), (100, hold(W, SHORT)))
    assert ends(result) == [51_070, 57_130]
    assert lock(result).sleeps == 1


def test_nonspinnable_stops_the_next_writer_from_spinning() -> None:
    # T1 has set NONSPINNABLE at 10670; T2 at 20000 queues at once: RMW 20050, queue
    # 20060, asleep 20360.  (A spinner would have set the window of 10.5 us.)
    result = run((0, hold(R, LONG)), (100, hold(W, SHORT)), (20_000, hold(W, SHORT)))
    assert lock(result).sleeps == 2
    # T1 as before, but T2 moved the line: T0 50010..50060, 50070, 51070.
    # T1: 56070..56120..57120, release 57130, T2 waits: wait_lock 57140, waker 58140.
    # T2: 63140..63190..64190, the sequence's line 64240, 64250.
    assert ends(result) == [51_070, 58_140, 64_250]


def test_grant_while_falling_asleep_avoids_the_sleep() -> None:
    # T0 holds 10..310.  T1 queues by 160 and would be asleep at 460.  T0 releases by 360,
    # takes wait_lock by 370, grants: T1 goes on at 370, nobody pays for a wake-up.
    result = run((0, hold(W, "brief")), (100, hold(R, SHORT)))
    assert ends(result) == [370, 370 + 1000 + 50]
    assert lock(result).sleeps == 0
    assert lock(result).read_wait_ns == 270


def test_sleeping_reader_is_granted_by_the_waker() -> None:
    # T0 holds 10..1010, releases by 1060, wait_lock 1070, waker 2070; T1 runs 7070..8070.
    result = run((0, hold(W, SHORT)), (100, hold(R, SHORT)))
    assert ends(result) == [2070, 8070 + 50]
    assert lock(result).sleeps == 1
    # Blame: T0's write until its release at 1010, then hand-over until 7070.
    fault, mmap, nobody = int(PlanOp.FAULT), int(PlanOp.MMAP), len(PlanOp)
    assert int(result.blame_ns[0, fault, mmap]) == 1010 - 100
    assert int(result.blame_ns[0, nobody, mmap]) == 7070 - 1010


def test_reader_steals_while_the_woken_writer_is_on_its_way() -> None:
    # As in the window test; the lock is free from 50010.  T2 comes at 52000, takes it by
    # 52050, releases 53050..53060; the writer is woken already: wait_lock 53070, no cost.
    result = run((0, hold(R, LONG)), (100, hold(W, SHORT)), (52_000, hold(R, SHORT)))
    assert ends(result) == [51_070, 57_130, 53_070]
    assert lock(result).steals == 1


def test_without_stealing_the_reader_queues_behind_the_writer() -> None:
    result = run((0, hold(R, LONG)), (100, hold(W, SHORT)), (52_000, hold(R, SHORT)), steal=0)
    assert lock(result).steals == 0
    # T1 56070..56120..57120..57130; T2 sleeps: wait_lock 57140, waker 58140; T2 63140..
    assert ends(result) == [51_070, 58_140, 64_190]


def test_readers_queue_while_readers_hold_it_and_a_writer_waits() -> None:
    # T2 at 20000: RMW 20050, queue 20060; the head is a writer, so nobody is woken.
    result = run((0, hold(R, LONG)), (100, hold(W, SHORT)), (20_000, hold(R, SHORT)))
    assert lock(result).steals == 0
    assert lock(result).sleeps == 2
    assert ends(result) == [51_070, 58_140, 64_190]


def test_writer_that_waited_long_sets_handoff_and_ends_stealing() -> None:
    # T2 steals 52050..62050.  T1 runs at 56070, fails at 56120, has waited: HANDOFF; asleep
    # 56420.  T2 releases 62050..62100, wait_lock 62110, waker 63110; T1 runs at 68110.
    # T3 at 64000 finds a free lock and may not take it.
    threads = (
        (0, hold(R, LONG)),
        (100, hold(W, SHORT)),
        (52_000, hold(R, "tens")),
        (64_000, hold(R, SHORT)),
    )
    result = run(*threads, handoff_ns=1000)
    assert lock(result).handoffs == 1
    assert lock(result).steals == 1
    # T1: 68110, the line came from T3: 68160..69160..69170, wait_lock 69180, waker 70180.
    assert ends(result)[1:] == [70_180, 63_110, 70_180 + 5000 + 1000 + 50]
    assert lock(run(*threads)).handoffs == 0  # 4 ms have not passed


def test_batch_limits_the_readers_of_one_wake() -> None:
    readers = [(100 + 10 * i, hold(R, SHORT)) for i in range(3)]
    all_at_once = run((0, hold(W, MIDDLE)), *readers)
    two = run((0, hold(W, MIDDLE)), *readers, batch=2)
    # One wake-up after the other by one waker: 1000 ns apart.
    woken = sorted(ends(all_at_once)[1:])
    assert [b - a for a, b in itertools.pairwise(woken)] == [1000, 1000]
    assert ends(two)[0] == ends(all_at_once)[0] - 1000  # it woke one reader less
    # The third waits for both, a wake-up by the last of them, and its own way.
    assert max(ends(two)) > woken[-1] + 5000


def test_downgrade_lets_a_queued_reader_in() -> None:
    program = [
        (Op.LOCK, "mmap_lock", W),
        (Op.COST, SHORT),
        (Op.DOWNGRADE, "mmap_lock"),
        (Op.COST, SHORT),
        (Op.UNLOCK, "mmap_lock", R),
        (Op.DONE,),
    ]
    # T0: 10..1010, downgrade 1060, wakes T1: 2060; reads until 3060..3070.
    # T1 runs at 7060..8060, the line is at CPU 0: 8110.
    result = run((0, program), (100, hold(R, SHORT)))
    assert ends(result) == [3070, 8110]
    assert lock(result).downgrade == 1
    assert lock(result).write_hold_ns == 1000


def test_downgrade_does_not_wake_a_writer_at_the_head() -> None:
    program = [
        (Op.LOCK, "mmap_lock", W),
        (Op.COST, SHORT),
        (Op.DOWNGRADE, "mmap_lock"),
        (Op.COST, MIDDLE),
        (Op.UNLOCK, "mmap_lock", R),
        (Op.DONE,),
    ]
    # osq = 0: T1 queues at once, is asleep from 460; T0 downgrades 1010..1060, reads until
    # 6060, releases 6070, wait_lock 6080, wakes T1 only now: 7080; T1 12080..12130..13130, the
    # line of the sequence that T0 moved 13180, 13190.
    result = run((0, program), (100, hold(W, SHORT)), osq=0)
    assert ends(result) == [7080, 13_190]


def test_trylock_gives_up_without_an_rmw() -> None:
    program = [
        (Op.TRY, "mmap_lock", R, "no"),
        (Op.UNLOCK, "mmap_lock", R),
        "no",
        (Op.COST, SHORT),
        (Op.DONE,),
    ]
    # T1 loads the line at 100: 150, and goes on.  T0's line is shared then: release 50.
    result = run((0, hold(W, SHORT)), (100, program))
    assert ends(result) == [1060, 1150]
    assert lock(result).try_failed == 1


def test_writer_stops_spinning_when_the_owner_sleeps() -> None:
    program = [
        (Op.LOCK, "mmap_lock", W),
        (Op.COST, SHORT),
        (Op.SLEEP, "io"),
        (Op.UNLOCK, "mmap_lock", W),
        (Op.DONE,),
    ]
    # T0 sleeps at 1010 for 20000; T1 looks at 1030, queues by 1040, asleep 1340.
    # T0 is back at 21010: release 21060, wait_lock 21070, waker 22070; T1 27070..27120..
    # 28120, the sequence's line 28170, 28180.
    result = run((0, program), (100, hold(W, SHORT)))
    assert ends(result) == [22_070, 28_180]
    assert lock(result).sleeps == 1


def test_spinners_take_turns_in_the_order_they_came() -> None:
    # T1 spins, T2 waits behind it in the osq.  T0 releases 1010..1060; T1 looks at 1080,
    # takes it by 1130 and leaves the osq: T2 looks at 1150.  At 2130 T1 moves the
    # sequence: its line 2180, release 2230 (T2 has read the lock's line); T2 looks at 2250,
    # has it by 2300, works until 3300, sequence 3350, release 3360.
    result = run((0, hold(W, SHORT)), (100, hold(W, SHORT)), (200, hold(W, SHORT)))
    assert ends(result) == [1060, 2230, 3360]
    assert lock(result).sleeps == 0


def test_without_osq_writers_sleep() -> None:
    # T1: RMW 150, queue 160, asleep 460.  T0 1010..1060, 1070, 2070.  T1 7070..7120..8120,
    # the sequence's line 8170, 8180.
    result = run((0, hold(W, SHORT)), (100, hold(W, SHORT)), osq=0)
    assert ends(result) == [2070, 8180]


def test_5_10_readers_spin() -> None:
    # As the spinning writer: T1 looks at 5080 and has it by 5130.
    result = run((0, hold(W, MIDDLE)), (100, hold(R, SHORT)), reader_spin=1)
    assert ends(result) == [5060, 6140]
    assert lock(result).sleeps == 0


def test_a_spinner_steals_from_a_queued_writer() -> None:
    # osq, T1 asleep in the queue after the window (10980).  T0 reads until 50010; T2 comes
    # at 50000, may not spin (NONSPINNABLE) and queues too: no steal.
    result = run((0, hold(R, LONG)), (100, hold(W, SHORT)), (50_000, hold(W, SHORT)))
    assert lock(result).steals == 0
    # At 52000 the lock is free, NONSPINNABLE is cleared: T2 spins, looks at 52070, takes it.
    result = run((0, hold(R, LONG)), (100, hold(W, SHORT)), (52_000, hold(W, SHORT)))
    assert lock(result).steals == 1
    assert ends(result)[2] < ends(result)[1]
