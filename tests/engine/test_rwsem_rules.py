"""The rules of the kernel's rwsem, one small scenario each, computed by hand.

Rules: kernel/locking/rwsem.c@6.2-6.18 (5.10 where it says so).  Cache lines and
atomics are free here, so only these times remain: a waker pays 1 us for each thread
it wakes, the woken runs 5 us later, a spinner polls after 1 ns.  An operation holds
the lock for as many us as it has pages.  Times in the comments are in us.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from small import LOCKS, R, W, machine, model, op, plan

from mmreplay.address_space.plan import PlanOp
from mmreplay.engine import Options, Result, simulate
from mmreplay.engine.oracle import simulate_oracle
from mmreplay.locking.isa import Count, Op

Engine = Callable[..., Result]
both = pytest.mark.parametrize("engine", [simulate, simulate_oracle])

HOLD = (Op.COST, "us", Count.PAGES)
READ, WRITE, TRY, IO, DOWN = (
    PlanOp.FAULT,
    PlanOp.MMAP,
    PlanOp.MADVISE_ZAP,
    PlanOp.MPROTECT,
    PlanOp.MUNMAP,
)
PROGRAMS: dict[PlanOp, Sequence[Any]] = {
    READ: [(Op.LOCK, "mmap_lock", R), HOLD, (Op.UNLOCK, "mmap_lock", R), (Op.DONE,)],
    WRITE: [(Op.LOCK, "mmap_lock", W), HOLD, (Op.UNLOCK, "mmap_lock", W), (Op.DONE,)],
    TRY: [
        (Op.TRY, "mmap_lock", R, "no"),
        HOLD,
        (Op.UNLOCK, "mmap_lock", R),
        "no",
        (Op.DONE,),
    ],
    IO: [  # sleeps 20 us in the middle of a write section
        (Op.LOCK, "mmap_lock", W),
        (Op.SLEEP, "io"),
        HOLD,
        (Op.UNLOCK, "mmap_lock", W),
        (Op.DONE,),
    ],
    DOWN: [
        (Op.LOCK, "mmap_lock", W),
        HOLD,
        (Op.DOWNGRADE, "mmap_lock"),
        HOLD,
        (Op.UNLOCK, "mmap_lock", R),
        (Op.DONE,),
    ],
}


def run(engine: Engine, *arrivals: tuple[PlanOp, float, int], **params: int) -> Result:
    """One thread per (operation, arrival in us, pages), each on a CPU of its own."""
    locks = {name: dict(spec) for name, spec in LOCKS.items()}
    locks["mmap_lock"].update(params)
    n = len(arrivals)
    free = {"line_smt_ns": 0, "line_llc_ns": 0, "line_socket_ns": 0, "line_cross_ns": 0}
    return engine(
        plan(
            [[op(kind, pages=pages)] for kind, _, pages in arrivals],
            offsets=[round(at * 1000) for _, at, _ in arrivals],
        ),
        model(PROGRAMS, locks),
        machine(n, {"us": 1000}, atomic_ns=0, spin_poll_ns=1, **free),
        Options(cores=n),
    )


def ends(result: Result) -> list[float]:
    """When each thread ended, in us."""
    return [int(t) / 1000 for t in result.thread_end_ns]


@both
def test_readers_share(engine: Engine) -> None:
    result = run(engine, (READ, 0, 5), (READ, 1, 5))
    assert ends(result) == [5, 6]
    assert result.locks[0].read == 2
    assert result.locks[0].read_wait_ns == 0


@both
def test_trylock_fails_on_a_writer_and_on_a_waiter(engine: Engine) -> None:
    # a writer holds it: the try at 1 gives up at once
    result = run(engine, (WRITE, 0, 10), (TRY, 1, 5))
    assert ends(result) == [10, 1]
    assert result.locks[0].try_failed == 1
    # readers hold it: fine at 1; but once a writer queues (at 2), not any more (at 3).
    # The last reader leaves at 50, wakes the writer until 51; it runs 56-57.
    result = run(engine, (READ, 0, 50), (TRY, 1, 5), (WRITE, 2, 1), (TRY, 3, 5), osq=0)
    assert ends(result) == [51, 6, 57, 3]
    assert result.locks[0].try_failed == 1


@both
def test_reader_of_a_reader_owned_lock_queues_behind_a_waiter(engine: Engine) -> None:
    # W queues at 1, R at 2 (no steal: it would be the second reader).  Reader leaves at
    # 50 -> W 56-57 -> R woken by W until 58, runs 63-64.
    result = run(engine, (READ, 0, 50), (WRITE, 1, 1), (READ, 2, 1), osq=0)
    assert ends(result) == [51, 58, 64]
    assert result.locks[0].steals == 0
    assert result.locks[0].sleeps == 2


@both
def test_first_reader_steals_a_free_lock_from_a_woken_writer(engine: Engine) -> None:
    # The lock is free from 10; the writer woken at 10 runs at 16.  A reader at 12
    # steals it until 22; the writer fails at 16, is woken at 22, runs 28-29.
    arrivals = (WRITE, 0, 10), (WRITE, 1, 1), (READ, 12, 10)
    result = run(engine, *arrivals, osq=0)
    assert ends(result) == [11, 29, 23]
    assert result.locks[0].steals == 1
    # Without stealing the reader queues; the writer has it 16-17, the reader 23-33.
    result = run(engine, *arrivals, osq=0, steal=0)
    assert ends(result) == [11, 18, 33]
    assert result.locks[0].steals == 0


@both
def test_writer_spins_on_a_running_writer(engine: Engine) -> None:
    result = run(engine, (WRITE, 0, 10), (WRITE, 1, 1))
    assert ends(result) == [10, 11.001]
    assert result.locks[0].sleeps == 0
    assert result.locks[0].write_wait_ns == 9001


@both
def test_writer_does_not_spin_on_a_sleeping_writer(engine: Engine) -> None:
    # The holder sleeps 0-20, holds until 21, wakes until 22; the waiter runs 27-28.
    result = run(engine, (IO, 0, 1), (WRITE, 1, 1))
    assert ends(result) == [22, 28]
    assert result.locks[0].sleeps == 1


@both
def test_spinners_take_it_in_the_order_of_arrival(engine: Engine) -> None:
    # The second (at 1) has it 10.001-11.001, the third (at 2) from 11.002.
    result = run(engine, (WRITE, 0, 10), (WRITE, 2, 1), (WRITE, 1, 1))
    assert ends(result) == [10, 12.002, 11.001]


@both
def test_writer_survives_a_short_reader_phase_spinning(engine: Engine) -> None:
    result = run(engine, (READ, 0, 5), (WRITE, 1, 1))
    assert ends(result) == [5, 6.001]
    assert result.locks[0].sleeps == 0


@both
def test_reader_owned_window_ends_in_nonspinnable(engine: Engine) -> None:
    # W2 looks first at 1.001, window (20 + 1 reader) / 2 = 10.5: at 11.501 it gives up
    # and forbids spinning.  W3 at 95 would spin for at most 10.5 and take it at 100;
    # instead it queues.  Reader leaves at 100; W2 106-107; W3 113-114.
    result = run(engine, (READ, 0, 100), (WRITE, 1, 1), (WRITE, 95, 1))
    assert ends(result) == [101, 108, 114]
    assert result.locks[0].sleeps == 2
    assert result.locks[0].steals == 0


@both
def test_a_new_writer_allows_spinning_again(engine: Engine) -> None:
    # As above; W4 comes at 106.5, while W2 owns it: it spins, and steals it from W3 at
    # 107.001.  W3, woken at 107 by W2, runs at 113 as before.
    result = run(engine, (READ, 0, 100), (WRITE, 1, 1), (WRITE, 95, 1), (WRITE, 106.5, 1))
    assert ends(result) == [101, 108, 114, 108.001]
    assert result.locks[0].steals == 1


@both
def test_waking_readers_skips_writers(engine: Engine) -> None:
    # Queue at 50: R2 W3 R4.  Both readers are granted; they run at 56 and 57, W1 is
    # through with waking at 52.  R4 leaves last, at 58, wakes W3 until 59: 64-65.
    result = run(engine, (WRITE, 0, 50), (READ, 1, 1), (WRITE, 2, 1), (READ, 3, 1), osq=0)
    assert ends(result) == [52, 57, 65, 59]


@both
def test_one_wake_grants_at_most_256_readers(engine: Engine) -> None:
    # 257 readers queue.  At 1000 the writer grants 256: the k-th runs at 1000 + k + 5.
    # The last of them leaves at 1262 and wakes the 257th: 1268-1269.
    readers = [(READ, 1 + k, 1) for k in range(257)]
    result = run(engine, (WRITE, 0, 1000), *readers)
    assert ends(result)[:3] == [1256, 1007, 1008]
    assert ends(result)[-2:] == [1263, 1269]


@both
def test_a_queueing_reader_wakes_readers_at_the_head(engine: Engine) -> None:
    # Batches of one: at 50 only R2 is granted (56-66); R3 stays at the head.  R4 comes
    # at 58, queues and wakes R3: 64-65.  R2 leaves at 66 and wakes R4: 72-73.
    arrivals = (WRITE, 0, 50), (READ, 1, 10), (READ, 2, 1), (READ, 58, 1)
    result = run(engine, *arrivals, batch=1)
    assert ends(result) == [51, 67, 65, 73]


@both
def test_hand_off_after_4_ms(engine: Engine) -> None:
    # W2 queues at 1 (W1 sleeps).  W3 spins and takes it at 1020.001; W2, woken to run at
    # 1026, fails.  W4 takes it at 6020.002; W2 runs at 6026.001, has waited more than
    # 4 ms and asks for the hand-off.  W4 releases at 11020.002: W2 gets it at once, then
    # W5, which spins since 7000, at 11021.003.
    arrivals = (
        (IO, 0, 1000),
        (WRITE, 1, 1),
        (WRITE, 500, 5000),
        (WRITE, 2000, 5000),
        (WRITE, 7000, 1000),
    )
    result = run(engine, *arrivals)
    assert result.locks[0].handoffs == 1
    assert result.thread_end_ns[1] < result.thread_end_ns[4]
    assert ends(result)[1] == pytest.approx(11021.002, abs=0.002)
    # Where the hand-off takes 1 s, W5 steals it too, and W2 waits 1 ms longer.
    result = run(engine, *arrivals, handoff_ns=10**9)
    assert result.locks[0].handoffs == 0
    assert result.thread_end_ns[1] > result.thread_end_ns[4]


@both
def test_downgrade_lets_readers_in_only_if_one_is_first(engine: Engine) -> None:
    # R2 is first: woken by the downgrade at 10 (done at 11), runs 16-17; W1 holds to 21.
    result = run(engine, (DOWN, 0, 10), (READ, 1, 1))
    assert ends(result) == [21, 17]
    assert result.locks[0].downgrade == 1
    # W2 is first: nobody wakes at 10.  W1 leaves at 20, W2 26-27, R3 33-34.
    result = run(engine, (DOWN, 0, 10), (WRITE, 1, 1), (READ, 2, 1), osq=0)
    assert ends(result) == [21, 28, 34]


@both
def test_readers_of_5_10_spin(engine: Engine) -> None:
    arrivals = (WRITE, 0, 10), (READ, 1, 1)
    result = run(engine, *arrivals, reader_spin=1)
    assert ends(result) == [10, 11.001]
    assert result.locks[0].sleeps == 0
    # Later readers sleep: woken at 10 until 11, runs 16-17.
    result = run(engine, *arrivals)
    assert ends(result) == [11, 17]
    assert result.locks[0].sleeps == 1
