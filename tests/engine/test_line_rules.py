"""Spin locks, and which cache lines bounce per fault: scenarios with the times worked out.

The machine as in ``test_rwsem_rules.py``: an RMW on an owned line 10 ns, a transfer 50 within
a cache of four CPUs, 100 within a socket of eight.
"""

from __future__ import annotations

from typing import Any

import pytest
from scenario import COSTS, MIDDLE, SHORT, ends, lock, replay
from small import LOCKS, R, W, machine, model, op, plan

from mmreplay.address_space.plan import PlanOp
from mmreplay.engine import Options, Result
from mmreplay.locking.isa import Kind, Op, Scope


def run(
    program: list[Any] | dict[PlanOp, list[Any]], threads: list[list[dict[str, Any]]],
    offsets: list[int] | None = None, locks: dict[str, Any] | None = None,
    lines: tuple[str, ...] = (), cores: int = 4, **numbers: Any,
) -> Result:  # fmt: skip
    programs = program if isinstance(program, dict) else {PlanOp.FAULT: program}
    return replay(
        plan(threads, offsets=offsets),
        model(programs, locks, lines=lines),
        machine(max(4, cores), COSTS, **numbers),
        Options(cores=cores),
    )


def spin(name: str, cost: str = SHORT) -> list[Any]:
    return [(Op.LOCK, name, W), (Op.COST, cost), (Op.UNLOCK, name, W), (Op.DONE,)]


# -- page-table locks -----------------------------------------------------------------------------


def test_faults_in_one_page_table_take_turns_at_its_lock() -> None:
    # T0 10..1010; T1's failed RMW took the line: 1060; T1 has it 1110..2110..2120.
    result = run(spin("ptl"), [[op(table=0)], [op(table=0)]], [0, 100])
    assert ends(result) == [1060, 2120]
    assert lock(result, "ptl").write_wait_ns == 1110 - 100


def test_faults_in_different_page_tables_share_no_line() -> None:
    threads = [[op(table=0), op(table=0)], [op(table=1), op(table=1)]]
    result = run(spin("ptl"), threads, [0, 100])
    assert ends(result) == [2040, 2140]
    assert lock(result, "ptl").write_wait_ns == 0


def test_an_idle_lock_costs_the_way_of_its_line() -> None:
    # T1 comes when T0 is through (1020): its RMW is a transfer, its release is not.
    result = run(spin("ptl"), [[op(table=0)], [op(table=0)]], [0, 2000])
    assert ends(result) == [1020, 2000 + 50 + 1000 + 10]


def test_a_spin_lock_holder_is_not_preempted() -> None:
    # One CPU, slice 500: T0 works on until it lets go at 1020, then makes room: T1 runs
    # 1520..2540.  Each ends when it is next on the CPU: T0 3040, T1 3540.
    result = run(spin("zone"), [[op()], [op()]], cores=1, slice_ns=500)
    assert ends(result) == [3040, 3540]
    assert lock(result, "zone").write_wait_ns == 0


def test_a_queued_lock_is_first_in_first_out_and_another_goes_to_the_nearest() -> None:
    # CPUs 0-3 share a cache, 4-7 another.  T0 (CPU 0) holds 10..5010.  T4 (CPU 4) waits from
    # 100, T1 (CPU 1) from 200.
    threads = [[op()], [op()], [], [], [op()]]
    offsets = [0, 200, 0, 0, 100]

    def order(fifo: int) -> Result:
        locks = {**LOCKS, "zone": {**LOCKS["zone"], "fifo": fifo}}
        return run(spin("zone", MIDDLE), threads, offsets, locks, cores=8)

    # T4's RMW 200, T1's 300.  T0 releases from CPU 1: 5060.  fifo: T4 5160..10160, its line:
    # 10170, T1 10270..15270..15280.
    fifo = order(1)
    assert [ends(fifo)[t] for t in (0, 1, 4)] == [5060, 15_280, 10_170]
    # Else T1: 5110..10110; T4 has fetched the line again, so the release is a transfer:
    # 10210, T4 10310..15310..15320.
    nearest = order(0)
    assert [ends(nearest)[t] for t in (0, 1, 4)] == [5060, 10_210, 15_320]
    assert lock(nearest, "zone").write_wait_ns == (5110 - 200) + (10_310 - 100)


def test_of_equally_near_waiters_the_first_gets_a_lock_without_order() -> None:
    locks = {**LOCKS, "zone": {**LOCKS["zone"], "fifo": 0}}
    result = run(spin("zone"), [[op()], [op()], [op()]], [0, 200, 100], locks)
    assert ends(result)[2] < ends(result)[1]


# -- batches: LRU, zone, memcg ------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "flushes"), [(15, 4), (31, 2), (63, 1), (64, 0)])
def test_a_batch_takes_the_lock_every_nth_time_on_each_cpu(batch: int, flushes: int) -> None:
    # lru_lock (15 and 31), zone->lock (63), page_counter (64): 63 faults of each thread.
    program = [
        (Op.BRANCH, (0, 0, 0, 0, batch), "full"),
        (Op.DONE,),
        "full",
        *spin("zone"),
    ]
    result = run(program, [[op()] * 63, [op()] * 63])
    assert lock(result, "zone").write == 2 * flushes


def test_a_global_lock_is_shared_by_all_address_spaces() -> None:
    threads = [[op(mm=0, table=0)], [op(mm=1, table=1)]]
    assert lock(run(spin("zone"), threads, [0, 100]), "zone").write_wait_ns == 1110 - 100
    assert lock(run(spin("ptl"), threads, [0, 100]), "ptl").write_wait_ns == 0


def test_a_counter_of_the_memcg_is_a_line_and_no_lock() -> None:
    # T0's store moves nothing; T1's at 1000 and T0's second at 2000 do.
    program = [(Op.TOUCH, "global.memcg", 1), (Op.COST, SHORT), (Op.DONE,)]
    threads = [[op(), op(think_cpu_ns=1000)], [op()]]
    result = run(program, threads, [0, 1000], lines=("global.memcg",))
    assert ends(result) == [2000 + 50 + 1000, 1000 + 50 + 1000]
    assert int(result.op_wait_ns.sum()) == 0


# -- lines of the mm_struct ------------------------------------------------------------------------


def readers(owner_line: str | None) -> dict[str, Any]:
    locks = {name: dict(spec) for name, spec in LOCKS.items()}
    if owner_line:
        locks["mmap_lock"]["owner_line"] = owner_line
    return locks


def test_every_reader_stores_to_the_owner_word() -> None:
    # T1's RMW moves the count's line, and its store the owner's: 50 more than without.
    program = [(Op.LOCK, "mmap_lock", R), (Op.COST, SHORT), (Op.UNLOCK, "mmap_lock", R), (Op.DONE,)]
    threads: list[list[dict[str, Any]]] = [[op()], [op()]]
    without = run(program, threads, [0, 100], readers(None))
    beside = run(program, threads, [0, 100], readers("mm.owner"))
    assert ends(without) == [1060, 1200]
    assert ends(beside) == [1060, 1250]


def test_mmap_lock_readers_take_the_line_of_mm_lock_seq_from_vma_lock_faults() -> None:
    # 6.18: the owner word and mm_lock_seq lie in one line.  T0 faults under the VMA lock: its
    # load of the sequence is a transfer after each mmap_lock reader (T1), and only then.
    fault = [
        (Op.TRY, "vma", R, "busy"), (Op.COST, SHORT), (Op.UNLOCK, "vma", R), "busy", (Op.DONE,),
    ]  # fmt: skip
    read = [(Op.LOCK, "mmap_lock", R), (Op.UNLOCK, "mmap_lock", R), (Op.DONE,)]
    threads = [[op(vma=0)] * 4, [op(PlanOp.MM_READ)] * 2, [op(vma=1)]]
    for owner_line, transfers in (("mm.3", 1), ("mm.owner", 0)):
        programs = {PlanOp.FAULT: fault, PlanOp.MM_READ: read}
        result = run(programs, threads, [1000, 0, 0], readers(owner_line))
        assert ends(result)[0] == 1000 + 4 * 1020 + 50 * transfers


def test_a_lock_of_one_thread_costs_its_two_rmws() -> None:
    locks = {
        "a": {"kind": Kind.RWSEM, "scope": Scope.FILE, "line": "file.a"},
        "b": {"kind": Kind.SPIN, "scope": Scope.FILE, "line": "file.b"},
    }
    program = [
        (Op.LOCK, "a", R), (Op.LOCK, "b", W), (Op.UNLOCK, "b", W), (Op.UNLOCK, "a", R), (Op.DONE,),
    ]  # fmt: skip
    result = run(program, [[op(file=0)], [op(file=1)]], locks=locks)
    assert ends(result) == [40, 40]
