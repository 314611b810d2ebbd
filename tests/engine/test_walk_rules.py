"""Walks that give way: a lock that others wait for, and one page-table lock after the other."""

from __future__ import annotations

from typing import Any

from scenario import COSTS, MIDDLE, SHORT, ends, lock, replay
from small import LOCKS, R, W, machine, model, op, plan

from mmreplay.address_space.plan import MarkSet, PlanOp
from mmreplay.engine import Options, Result
from mmreplay.locking.isa import Count, Op

#: show_smaps_rollup: after each VMA, whoever waits for mmap_lock comes first.
ROLLUP = [
    (Op.LOCK, "mmap_lock", R),
    (Op.EACH, MarkSet.TARGETS, "all"),
    "next",
    (Op.COST, MIDDLE),
    (Op.CONTENDED, "mmap_lock", "give"),
    (Op.JUMP, "on"),
    "give",
    (Op.UNLOCK, "mmap_lock", R),
    (Op.LOCK, "mmap_lock", R),
    "on",
    (Op.END, "next"),
    "all",
    (Op.UNLOCK, "mmap_lock", R),
    (Op.DONE,),
]
WRITER = [(Op.LOCK, "mmap_lock", W), (Op.COST, SHORT), (Op.UNLOCK, "mmap_lock", W), (Op.DONE,)]


def rolled_up(program: list[Any], *, writer: bool, steal: int = 0) -> Result:
    """T0 goes over three VMAs from 0 on, 5000 each; T1 wants to write at 1000."""
    locks = {key: dict(spec) for key, spec in LOCKS.items()}
    locks["mmap_lock"].update(osq=0, steal=steal)
    threads = [[op(PlanOp.PROC_ROLLUP, marks=[(3, 0), (3, 1), (3, 2)])]]
    threads.append([op(PlanOp.MMAP if writer else PlanOp.PKEY)])
    programs = {PlanOp.PROC_ROLLUP: program, PlanOp.MMAP: WRITER, PlanOp.PKEY: [(Op.DONE,)]}
    the_plan = plan(threads, offsets=[0, 1000])
    return replay(the_plan, model(programs, locks), machine(2, COSTS), Options(cores=2))


def test_a_reader_gives_way_to_a_writer_that_waits() -> None:
    alone = rolled_up(ROLLUP, writer=False)
    assert lock(alone, "mmap_lock").read == 1  # nobody waits: it is held throughout
    beside = rolled_up(ROLLUP, writer=True)
    assert lock(beside, "mmap_lock").read == 2  # given up once, at the end of the first VMA
    # behind one VMA, not three: 5000 - 1000, its wake-up (1000 + 5000 + 500), lines and atomics
    assert 4000 <= lock(beside, "mmap_lock").write_wait_ns < 4000 + 6500 + 1000


def test_a_reader_that_steals_has_it_back_before_the_writer_is_awake() -> None:
    """5.11 on: the woken writer finds it held, until its 4 ms are over (HANDOFF)."""
    beside = rolled_up(ROLLUP, writer=True, steal=1)
    assert lock(beside, "mmap_lock").read == 4
    assert lock(beside, "mmap_lock").steals == 3
    assert lock(beside, "mmap_lock").write_wait_ns >= 3 * 5000 - 1000


def test_without_a_look_the_writer_waits_for_the_whole_walk() -> None:
    stubborn = [step for step in ROLLUP if step[0] is not Op.CONTENDED]
    at = stubborn.index("give")
    del stubborn[at : at + 3]
    stuck = rolled_up(stubborn, writer=True)
    assert lock(stuck, "mmap_lock").read == 1
    assert lock(stuck, "mmap_lock").write_wait_ns >= 3 * 5000 - 1000


#: zap_pte_range: the lock of each page-table page for its share of the pages.
ZAP = [
    (Op.LOCK, "ptl", W), (Op.COST, SHORT, Count.PAGES_PER_TABLE), (Op.UNLOCK, "ptl", W),
    (Op.EACH, MarkSet.TABLES, "all"), "next",
    (Op.LOCK, "ptl", W), (Op.COST, SHORT, Count.PAGES_PER_TABLE), (Op.UNLOCK, "ptl", W),
    (Op.END, "next"), "all", (Op.DONE,),
]  # fmt: skip
SET = [(Op.LOCK, "ptl", W), (Op.COST, SHORT), (Op.UNLOCK, "ptl", W), (Op.DONE,)]


def zapped(table: int, at: int) -> Result:
    """T0 clears 12 pages of tables 0, 1 and 2 (4000 each); T1 sets an entry of one table."""
    threads = [
        [op(PlanOp.MUNMAP, pages=12, tables=3, table=0, marks=[(7, 1), (7, 2)])],
        [op(PlanOp.FAULT, table=table)],
        [op(PlanOp.FAULT, table=t, think_cpu_ns=100_000) for t in (0, 1, 2)],
    ]
    the_model = model({PlanOp.MUNMAP: ZAP, PlanOp.FAULT: SET})
    the_plan = plan(threads, offsets=[0, at, 0])
    return replay(the_plan, the_model, machine(4, COSTS), Options(cores=3))


def test_a_walk_holds_the_lock_of_one_page_table_at_a_time() -> None:
    for table in (0, 1, 2):
        # while the table is cleared: for what is left of its 4000, and no longer
        wait = lock(zapped(table, 4000 * table + 1000), "ptl").write_wait_ns
        assert 2500 <= wait <= 3500, table
        # 1000 before its turn: not at all
        if table:
            assert lock(zapped(table, 4000 * table - 2000), "ptl").write_wait_ns == 0


def test_the_shares_sum_to_the_whole() -> None:
    assert 12_000 <= ends(zapped(0, 50_000))[0] <= 12_500
