"""The rules of per-VMA locks and of TLB flushes, one small scenario each.

Rules: include/linux/mmap_lock.h@6.4-7.x.  Times as in ``test_rwsem_rules``: atomics
and cache lines are free, waking costs the waker 1 us, the woken runs 5 us later; an
operation takes 1 us per page.  Times in the comments are in us.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from small import LOCKS, FlushScope, R, W, machine, model, op, plan

from mmreplay.address_space.plan import PlanOp
from mmreplay.engine import Options, Result, simulate
from mmreplay.engine.oracle import simulate_oracle
from mmreplay.locking.isa import Count, Form, Op

Engine = Callable[..., Result]
both = pytest.mark.parametrize("engine", [simulate, simulate_oracle])
forms = pytest.mark.parametrize("bump_acquire", [0, 1])

US = (Op.COST, "us", Count.PAGES)
FAULT, CHANGE, TWICE, UNMAP = PlanOp.FAULT, PlanOp.MPROTECT, PlanOp.MMAP, PlanOp.MUNMAP
BODY: dict[PlanOp, Sequence[Any]] = {
    FAULT: [
        (Op.TRY, "vma", R, "fall"),
        US,
        (Op.UNLOCK, "vma", R),
        (Op.JUMP, "end"),
        "fall",
        (Op.COUNT, "fallback"),
        (Op.LOCK, "mmap_lock", R),
        US,
        (Op.UNLOCK, "mmap_lock", R),
        "end",
        (Op.DONE,),
    ],
    CHANGE: [
        (Op.LOCK, "mmap_lock", W),
        (Op.MARK, "vma"),
        US,
        (Op.UNLOCK, "mmap_lock", W),
        (Op.DONE,),
    ],
    TWICE: [
        (Op.LOCK, "mmap_lock", W),
        (Op.MARK, "vma"),
        (Op.MARK, "vma"),
        US,
        (Op.UNLOCK, "mmap_lock", W),
        (Op.DONE,),
    ],
    UNMAP: [
        (Op.LOCK, "mmap_lock", W),
        (Op.MARK, "vma"),
        US,
        (Op.DOWNGRADE, "mmap_lock"),
        US,
        (Op.UNLOCK, "mmap_lock", R),
        (Op.DONE,),
    ],
}
FLUSH = (Op.FLUSH, int(FlushScope.MM))
INSIDE: Sequence[Any] = [
    (Op.LOCK, "mmap_lock", W),
    FLUSH,
    (Op.UNLOCK, "mmap_lock", W),
    (Op.DONE,),
]
OUTSIDE: Sequence[Any] = [
    (Op.LOCK, "mmap_lock", W),
    (Op.UNLOCK, "mmap_lock", W),
    FLUSH,
    (Op.DONE,),
]


def run(
    engine: Engine,
    *arrivals: tuple[PlanOp, float, int, int],
    bump_acquire: int = 0,
    form: Form = Form.REFCOUNT,
    programs: dict[PlanOp, Sequence[Any]] | None = None,
) -> Result:
    """One thread per (operation, arrival in us, pages, VMA), each on a CPU of its own."""
    locks = {name: dict(spec) for name, spec in LOCKS.items()}
    locks["mmap_lock"]["bump_acquire"] = bump_acquire
    locks["vma"]["form"] = form
    n = len(arrivals)
    free = {"line_smt_ns": 0, "line_llc_ns": 0, "line_socket_ns": 0, "line_cross_ns": 0}
    return engine(
        plan(
            [[op(kind, pages=pages, vma=vma)] for kind, _, pages, vma in arrivals],
            offsets=[round(at * 1000) for _, at, _, _ in arrivals],
        ),
        model(programs or BODY, locks),
        machine(n, {"us": 1000}, atomic_ns=0, spin_poll_ns=1, **free),
        Options(cores=n),
    )


def ends(result: Result) -> list[float]:
    return [int(t) / 1000 for t in result.thread_end_ns]


def lock(result: Result, name: str) -> Any:
    return next(x for x in result.locks if x.name == name)


@both
@forms
def test_a_mark_excludes_faults_in_its_vma_only(engine: Engine, bump_acquire: int) -> None:
    # VMA 0 is marked 0-10.  The fault in it (at 1) falls back and queues behind the
    # writer: woken at 10, runs 16-17; the writer is through with waking at 11.  The
    # fault in VMA 1 runs 2-3.
    result = run(
        engine, (CHANGE, 0, 10, 0), (FAULT, 1, 1, 0), (FAULT, 2, 1, 1), (FAULT, 90, 1, 1),
        bump_acquire=bump_acquire,
    )  # fmt: skip
    assert ends(result) == [11, 17, 3, 91]
    assert result.reasons == {"fallback": 1}
    assert lock(result, "vma").try_failed == 1
    assert lock(result, "mmap_lock").read == 1
    assert lock(result, "mmap_lock").read_wait_ns == 15_000


@both
@forms
def test_release_drops_all_marks(engine: Engine, bump_acquire: int) -> None:
    # The section ends at 10; the fault at 10.5 takes the VMA lock: 10.5-11.5.
    result = run(engine, (CHANGE, 0, 10, 0), (FAULT, 10.5, 1, 0), bump_acquire=bump_acquire)
    assert ends(result) == [10, 11.5]
    assert result.reasons.get("fallback", 0) == 0


@both
@forms
def test_downgrade_drops_all_marks(engine: Engine, bump_acquire: int) -> None:
    # Downgraded at 10, released at 20.  The fault at 12 runs 12-13 under the VMA lock.
    result = run(engine, (UNMAP, 0, 10, 0), (FAULT, 12, 1, 0), bump_acquire=bump_acquire)
    assert ends(result) == [20, 13]
    assert result.reasons.get("fallback", 0) == 0


@both
def test_a_mark_waits_for_faults_in_flight_and_stops_new_ones(engine: Engine) -> None:
    # Faults hold VMA 0 until 20.  The writer comes at 1 and drains; the fault at 5
    # falls back to the mmap_lock.  The last fault leaves at 20, wakes until 21; the
    # writer runs 26-27, wakes the fallen-back fault until 28: 33-34.
    result = run(engine, (FAULT, 0, 20, 0), (FAULT, 0, 10, 0), (CHANGE, 1, 1, 0), (FAULT, 5, 1, 0))
    assert ends(result) == [21, 10, 28, 34]
    assert lock(result, "vma").write_wait_ns == 25_000
    assert lock(result, "vma").try_failed == 1


@both
def test_an_rwsem_vma_lock_spins_for_short_faults(engine: Engine) -> None:
    # The fault leaves at 8; the writer, which came at 1, still spins (10.5 long).
    result = run(engine, (FAULT, 0, 8, 0), (CHANGE, 1, 1, 0), form=Form.RWSEM)
    assert ends(result) == [8, 9]
    # The reference count of 6.15 has no spinning: it slept at 1.3, runs at 14.
    result = run(engine, (FAULT, 0, 8, 0), (CHANGE, 1, 1, 0), form=Form.REFCOUNT)
    assert ends(result) == [9, 15]


@both
@forms
def test_a_second_mark_in_the_same_section_is_free(engine: Engine, bump_acquire: int) -> None:
    result = run(engine, (TWICE, 0, 1, 0), (TWICE, 5, 1, 0), bump_acquire=bump_acquire)
    assert lock(result, "vma").mark == 2  # one for each section
    assert ends(result) == [1, 6]


@both
def test_flush_inside_the_lock_makes_others_wait(engine: Engine) -> None:
    # Each thread faults once at 0-1 (its CPU then runs the mm), then one flushes at 11,
    # the other arrives at 11.5.  A flush with one target takes 0.1 + 1 = 1.1, so inside
    # the lock the second waits, outside not.
    def ask(program: Sequence[Any]) -> Result:
        threads = [[op(FAULT, vma=t), op(UNMAP, think_cpu_ns=10_000 + 500 * t)] for t in range(2)]
        return engine(
            plan(threads),
            model({FAULT: BODY[FAULT], UNMAP: program}),
            machine(2, {"us": 1000}, atomic_ns=0),
            Options(cores=2),
        )

    assert ask(INSIDE).locks[0].write_wait_ns > 0
    assert ask(OUTSIDE).locks[0].write_wait_ns == 0


@both
def test_flush_time_grows_with_the_cpus_of_the_address_space(engine: Engine) -> None:
    # Faults of 1 us at 0 load the mm on every other CPU.  At 50 the flush of n CPUs
    # takes 0.1, 0.1 + 1, 0.1 + 1 + 0.2 ... for n = 1, 2, 3 ...
    for n, expected in ((2, 1.1), (3, 1.3), (4, 1.5)):
        faults = [(FAULT, 0, 1, 0)] * (n - 1)
        result = run(engine, (UNMAP, 50, 1, 0), *faults, programs={**BODY, UNMAP: OUTSIDE})
        assert ends(result)[0] == pytest.approx(50 + expected)
