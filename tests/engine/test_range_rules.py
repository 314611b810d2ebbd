"""Range locks and flushes by what was touched: scenarios with the expected times worked out.

The machine as in ``test_rwsem_rules.py``: an RMW on an owned line 10 ns, a line transfer 50, a
wake-up 1000 for the waker and 5000 until the woken runs, 300 to fall asleep.
"""

from __future__ import annotations

from typing import Any

import pytest
from scenario import COSTS, LONG, MIDDLE, SHORT, ends, lock, replay
from small import R, W, machine, model, op, plan

from mmreplay.address_space.plan import PlanOp, Trait
from mmreplay.engine import Options, Result
from mmreplay.locking.isa import FlushScope, Kind, Op, Operand, Scope

KOGAN = {"round": 0, "wait": 0, "range_cost": 0}
TREE = {"round": 0, "wait": 1, "range_cost": 0}
RADIX = {"round": 1, "wait": 0, "range_cost": 1}
ADV = {"round": 2, "wait": 0, "range_cost": 2, "ancestors": 0}
RW = {"round": 2, "wait": 0, "range_cost": 2, "ancestors": 1}
GIB = 1 << 18  # pages


def body(mode: int, cost: str, operand: Operand = Operand.OP) -> list[Any]:
    return [
        (Op.LOCK, "range", mode, operand),
        (Op.COST, cost),
        (Op.UNLOCK, "range", mode, operand),
        (Op.DONE,),
    ]


def run(
    params: dict[str, int], *threads: tuple[int, list[Any], dict[str, Any]], cores: int = 4,
    **numbers: Any,
) -> Result:  # fmt: skip
    """Each thread: when it begins, the program of its one operation, and its columns."""
    kinds = list(PlanOp)[1 : len(threads) + 1]
    locks = {
        "range": {
            "kind": Kind.RANGE, "scope": Scope.MM, "line": "mm.range", "bumps": "mm_seq", **params,
        },
        "mm_seq": {"kind": Kind.SEQ, "scope": Scope.MM, "line": "mm.3"},
    }  # fmt: skip
    return replay(
        plan(
            [[op(kind, **columns)] for kind, (_, _, columns) in zip(kinds, threads, strict=True)],
            offsets=[begin for begin, _, _ in threads],
        ),
        model({kind: t[1] for kind, t in zip(kinds, threads, strict=True)}, locks),
        machine(4, COSTS, **numbers),
        Options(cores=cores),
    )


def pages(first: int, last: int | None = None, **more: Any) -> dict[str, Any]:
    return {"first_page": first, "last_page": first if last is None else last, **more}


# -- Kogan's list ---------------------------------------------------------------------------


def test_disjoint_ranges_of_a_list_run_side_by_side() -> None:
    # T0: CAS 10..1010.  T1 at 100 reads T0's entry 150, CAS on the head 200..1200.  T0's
    # release marks its entry, which T1 has read: 1060.  Nobody read T1's: 1210, but first its
    # write release moves the sequence: T0's stored it first (at 1010), so 50.
    result = run(KOGAN, (0, body(W, SHORT), pages(0, 9)), (100, body(W, SHORT), pages(10, 19)))
    assert ends(result) == [1060, 1260]
    assert lock(result, "range").write_wait_ns == 0
    assert lock(result, "range").steals == 0


def test_overlapping_writers_of_a_list_spin_one_after_the_other() -> None:
    # T1 reads T0's entry: 150, and spins.  T0 releases 1010..1060; T1's CAS moves the head:
    # 1110..2110, the sequence's line 2160, its own entry 2170.
    result = run(KOGAN, (0, body(W, SHORT), pages(0, 9)), (100, body(W, SHORT), pages(9, 19)))
    assert ends(result) == [1060, 2170]
    assert lock(result, "range").write_wait_ns == 1110 - 100
    assert lock(result, "range").sleeps == 0
    fault, mmap, nobody = int(PlanOp.FAULT), int(PlanOp.MMAP), len(PlanOp)
    assert int(result.blame_ns[0, fault, mmap]) == 1010 - 100
    assert int(result.blame_ns[0, nobody, mmap]) == 1110 - 1010


def test_readers_of_a_list_overlap() -> None:
    result = run(KOGAN, (0, body(R, SHORT), pages(0, 9)), (100, body(R, SHORT), pages(0, 9)))
    assert ends(result) == [1060, 1210]
    assert lock(result, "range").read == 2
    assert lock(result, "range").read_wait_ns == 0


def test_the_list_is_read_only_as_far_as_the_range() -> None:
    # T1's range lies before T0's: it never reads T0's entry.
    result = run(KOGAN, (0, body(R, SHORT), pages(50)), (100, body(R, SHORT), pages(10)))
    assert ends(result) == [1020, 1160]


def test_a_reader_of_a_list_passes_a_waiting_writer() -> None:
    threads = (
        (0, body(R, MIDDLE), pages(0, 9)),
        (100, body(W, SHORT), pages(0, 9)),
        (1000, body(R, MIDDLE), pages(0, 9)),
    )
    result = run(KOGAN, *threads)
    assert lock(result, "range").steals == 1
    assert lock(result, "range").read_wait_ns == 0
    # T2 reads T0's entry, which T1 read last: 1050, CAS 1100..6100, release 6110: T1's CAS
    # moves the head: 6160.  Its blame: T0 alone until 1000, both until T0's release at 5010,
    # T2 until 6100, and the head's way.
    assert ends(result)[1] == 6160 + 1000 + 10
    fault, mmap, munmap, nobody = 1, 2, 3, len(PlanOp)
    alone, both = 1000 - 100, 5010 - 1000
    assert int(result.blame_ns[0, fault, mmap]) == alone + both // 2
    assert int(result.blame_ns[0, munmap, mmap]) == both // 2 + 6100 - 5010
    assert int(result.blame_ns[0, nobody, mmap]) == 60


def test_try_fails_on_an_overlap_only() -> None:
    program = [
        (Op.TRY, "range", W, Operand.OP, "no"),
        (Op.UNLOCK, "range", W, Operand.OP),
        "no",
        (Op.COST, SHORT),
        (Op.DONE,),
    ]
    held = (0, body(W, SHORT), pages(0, 9))
    result = run(KOGAN, held, (100, program, pages(9)), (100, program, pages(20)))
    assert lock(result, "range").try_failed == 1
    assert lock(result, "range").write == 2
    # T1: read T0's entry 150, fails.
    assert ends(result)[1] == 1150


def test_ranges_of_the_operands() -> None:
    vma = {"vma_first_page": 100, "vma_last_page": 199}

    def waits(operand: Operand, page: int, **columns: Any) -> bool:
        result = run(
            KOGAN,
            (0, body(W, SHORT, operand), pages(150, 160, **columns)),
            (100, body(W, SHORT), pages(page)),
        )
        return lock(result, "range").write_wait_ns > 0

    assert [waits(Operand.PAGE, p) for p in (149, 150, 151)] == [False, True, False]
    assert [waits(Operand.OP, p) for p in (149, 150, 160, 161)] == [False, True, True, False]
    assert [waits(Operand.VMA, p, **vma) for p in (99, 100, 199, 200)] == [False, True, True, False]
    assert [waits(Operand.VMA1, p, **vma) for p in (98, 99, 200, 201)] == [False, True, True, False]
    assert [waits(Operand.VMA, p) for p in (149, 150, 160, 161)] == [False, True, True, False]
    assert [waits(Operand.NODE, p) for p in (0, 511, 512)] == [True, True, False]
    assert waits(Operand.ALL, 1 << 35)


def test_release_of_a_write_moves_the_sequence_and_a_read_does_not() -> None:
    check = [
        (Op.SNAP, "mm_seq"),
        (Op.COST, MIDDLE),
        (Op.CHECK, "mm_seq", "moved"),
        (Op.DONE,),
        "moved",
        (Op.COUNT, "moved"),
        (Op.DONE,),
    ]
    for mode, moved in ((R, 0), (W, 1)):
        result = run(KOGAN, (0, check, pages(0)), (100, body(mode, SHORT), pages(0)))
        assert result.reasons["moved"] == moved


def test_a_spinning_waiter_makes_room_when_its_slice_ends() -> None:
    # Two CPUs.  T0 holds the range on one; on the other T1 spins from 110 on until its slice ends
    # at 2100, then T3 (ready at 200) runs 2600..3600 after a switch.
    def hold(cost: str) -> list[Any]:
        lock_all = (Op.LOCK, "range", W, Operand.ALL)
        return [lock_all, (Op.COST, cost), (Op.UNLOCK, "range", W, Operand.ALL), (Op.DONE,)]

    work = [(Op.COST, SHORT), (Op.DONE,)]
    result = run(
        KOGAN, (0, hold(LONG), pages(0)), (100, hold(SHORT), pages(0)),
        (100_000, [(Op.DONE,)], pages(0)), (200, work, pages(0)), cores=2, slice_ns=2000,
    )  # fmt: skip
    assert lock(result, "range").sleeps == 0
    assert ends(result)[3] == 3600


def test_who_holds_a_range_makes_room_between_operations() -> None:
    # One CPU, slice 4000: T0 holds the range 10..5010 and lets go at 5020; T1 runs 5520..10540.
    # Each ends when it is next on the CPU.
    program = [
        (Op.LOCK, "range", W, Operand.ALL),
        *[(Op.COST, SHORT)] * 5,
        (Op.UNLOCK, "range", W, Operand.ALL),
        (Op.DONE,),
    ]
    result = run(KOGAN, (0, program, pages(0)), (100, program, pages(0)), cores=1, slice_ns=4000)
    assert lock(result, "range").write_wait_ns == 0
    assert ends(result) == [11_040, 11_540]


# -- an interval tree, first come first served ----------------------------------------------------


def test_waiters_of_a_tree_sleep_and_take_turns() -> None:
    # T0 10..1010.  T1 reads T0's entry 150, enters the tree 200, asleep 500.  T2, a reader,
    # comes last: reads T0's entry 250, enters 300, asleep 600.  T0 releases 1060, waker 2060:
    # T1 runs 7060..8060, the sequence 8110, its entry 8120, waker 9120; T2 14120..15120.
    result = run(
        TREE,
        (0, body(W, SHORT), pages(0, 9)),
        (100, body(W, SHORT), pages(0, 9)),
        (200, body(R, SHORT), pages(0, 9)),
    )
    assert ends(result) == [2060, 9120, 15_130]
    assert lock(result, "range").sleeps == 2


def test_a_reader_of_a_tree_does_not_pass_a_waiting_writer() -> None:
    threads = (
        (0, body(R, MIDDLE), pages(0, 9)),
        (100, body(W, SHORT), pages(0, 9)),
        (1000, body(R, SHORT), pages(0, 9)),
        (1000, body(R, SHORT), pages(10)),
    )
    result = run(TREE, *threads)
    assert lock(result, "range").steals == 0
    # T2 waits for the writer that waits for T0: T0 is to blame until it is gone.
    fault, munmap = int(PlanOp.FAULT), int(PlanOp.MUNMAP)
    assert int(result.blame_ns[0, fault, munmap]) == 5010 - 1000
    assert lock(result, "range").read_wait_ns == ends(result)[2] - 10 - 1000 - 1000


def test_a_grant_while_falling_asleep_is_free() -> None:
    # T1 enters the tree by 200 and would be asleep at 500; T0 is done at 360.
    result = run(TREE, (0, body(R, "brief"), pages(0)), (100, body(W, SHORT), pages(0)))
    assert ends(result) == [360, 360 + 1000 + 10]
    assert lock(result, "range").sleeps == 0


# -- slots of a radix tree ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "slots"),
    [
        (0, 0, 1),
        (0, 9, 10),
        (0, 511, 1),
        (1, 512, 512),
        (0, 512, 2),
        (511, 1024, 3),
        (0, GIB - 1, 1),
    ],
)
def test_a_slot_costs_one_rmw(first: int, last: int, slots: int) -> None:
    result = run(RADIX, (0, body(W, SHORT), pages(first, last)))
    assert ends(result) == [10 * slots + 1000]
    other = (50_000, body(W, SHORT), pages(GIB))  # another thread: the lock is shared
    assert ends(run(RADIX, (0, body(W, SHORT), pages(first, last)), other))[0] == 10 * slots + 1000


def test_filled_pages_have_slots_of_their_own() -> None:
    result = run(RADIX, (0, body(W, SHORT), pages(0, 511, pages=100)))
    assert ends(result) == [1000 + 1000]


def test_slots_are_locked_from_left_to_right() -> None:
    # T0 holds page 5.  T1 wants 0..9: it gets 0..4 and waits at 5.  So T2 waits for page 3
    # and T3 does not wait for page 7.
    threads = (
        (0, body(W, MIDDLE), pages(5)),
        (100, body(W, SHORT), pages(0, 9)),
        (1000, body(W, SHORT), pages(3)),
        (1000, body(W, SHORT), pages(7)),
    )
    result = run(RADIX, *threads)
    # T0 10..5010.  T1 sees that after 50: 5060..6060.  T2 6110..7110, T3 1010..2010.
    # (Write releases also move the sequence: T3 is first, then a transfer each.)
    assert ends(result) == [5060, 6110 + 50, 7210 + 50, 2010]
    fault, mmap, munmap = int(PlanOp.FAULT), int(PlanOp.MMAP), int(PlanOp.MUNMAP)
    assert int(result.blame_ns[0, fault, mmap]) == 5010 - 100
    assert int(result.blame_ns[0, mmap, munmap]) == 6110 - 1000


# -- page-table nodes ---------------------------------------------------------------------------


@pytest.mark.parametrize("params", [ADV, RW])
def test_operations_in_different_nodes_run_side_by_side(params: dict[str, int]) -> None:
    alone = run(params, (0, body(W, SHORT), pages(0)), (50_000, body(W, SHORT), pages(512)))
    beside = run(params, (0, body(W, SHORT), pages(0)), (0, body(W, SHORT), pages(512)))
    assert lock(beside, "range").write_wait_ns == 0
    # Each node has a line of its own; only the sequence moves between the two.
    assert ends(beside)[0] == ends(alone)[0]
    assert ends(beside)[1] == ends(beside)[0] + 50


@pytest.mark.parametrize(("params", "more"), [(ADV, 0), (RW, 30)])
def test_operations_in_one_node_take_turns(params: dict[str, int], more: int) -> None:
    # T0: (three levels above) and the node: 10..1010, release: T1 joined the node's queue, so
    # the line is away: 1060, T1 has it 1110..2110; the sequence 2160, the node 2170.
    result = run(params, (0, body(W, SHORT), pages(0)), (100, body(W, SHORT), pages(100)))
    assert ends(result) == [1060 + more, 2170 + more]
    assert lock(result, "range").write_wait_ns == 1110 + more - 100


def test_a_range_across_a_gibibyte_takes_the_node_above() -> None:
    # Pages GIB-1 and GIB lie in different 1 GiB nodes: the level-3 node covers both, and
    # with it a fault anywhere in its 512 GiB.
    across = pages(GIB - 1, GIB, tables=2)
    result = run(ADV, (0, body(W, SHORT), across), (100, body(W, SHORT), pages(100 * GIB)))
    assert lock(result, "range").write_wait_ns > 0
    # The node and its two tables: 10 + 2 x 10.
    alone = run(ADV, (0, body(W, SHORT), across), (50_000, body(W, SHORT), pages(100 * GIB)))
    assert ends(alone)[0] == 30 + 1000 + 10
    result = run(RW, (0, body(W, SHORT), across), (50_000, body(W, SHORT), pages(100 * GIB)))
    assert ends(result)[0] == 10 + 10 + 1000 + 10  # one level above


def test_adv_locks_descendants_in_order_and_rw_waits_above() -> None:
    # T0 works in the second 2 MiB.  T1 wants 0..1023 (the level-2 node).  adv: it has the
    # first 2 MiB and waits at the second, so T2 in the third goes on.  rw: T1 queues at the
    # level-2 node, and T2, which must read-lock that node, queues behind it.
    threads = (
        (0, body(W, MIDDLE), pages(600)),
        (100, body(W, SHORT), pages(0, 1600, tables=4)),
        (1000, body(W, SHORT), pages(1100)),
        (1000, body(W, SHORT), pages(3)),
    )
    adv, rw = run(ADV, *threads), run(RW, *threads)
    assert ends(adv)[2] < 3000
    assert ends(adv)[3] > 6000
    assert min(ends(rw)[1:]) > 6000


# -- shootdowns by what was touched ---------------------------------------------------------------


def flush_world(scope: FlushScope, *extra: dict[str, Any]) -> Result:
    """T0 unmaps pages 0..9 at 10000; T1 has faulted page 5, T2 page 50, T3 nothing there."""
    busy = [(Op.COST, LONG), (Op.DONE,)]
    return replay(
        plan(
            [
                [op(PlanOp.MUNMAP, **pages(0, 9))],
                [op(PlanOp.FAULT, **pages(5)), op(PlanOp.MMAP, **pages(70))],
                [op(PlanOp.FAULT, **pages(50)), op(PlanOp.MMAP, **pages(70))],
                [op(PlanOp.MMAP, **pages(70))],
            ],
            offsets=[10_000, 0, 0, 0],
        ),
        model(
            {
                PlanOp.MUNMAP: [(Op.FLUSH, scope), (Op.DONE,)],
                PlanOp.FAULT: [(Op.COST, SHORT), (Op.DONE,)],
                PlanOp.MMAP: busy,
            }
        ),
        machine(4, COSTS),
        Options(cores=4),
    )


def test_flush_touched_asks_only_cpus_that_faulted_in_the_range() -> None:
    # base 100, first 1000, each further 200; the handler 400 at a target.
    assert ends(flush_world(FlushScope.MM)) == [11_500, 51_400, 51_400, 50_400]
    assert ends(flush_world(FlushScope.TOUCHED)) == [11_100, 51_400, 51_000, 50_000]


def test_a_flush_forgets_what_was_touched() -> None:
    fault = [(Op.COST, SHORT), (Op.DONE,)]
    unmap = [(Op.FLUSH, FlushScope.TOUCHED), (Op.DONE,)]
    unmaps = [op(PlanOp.MUNMAP, **pages(0, 9))] * 2
    result = replay(
        plan([unmaps, [op(PlanOp.FAULT, **pages(5))]], offsets=[5000, 0]),
        model({PlanOp.FAULT: fault, PlanOp.MUNMAP: unmap}),
        machine(4, COSTS),
        Options(cores=4),
    )
    # The second flush is local: the base only.  (T1 has ended: nobody pays a handler.)
    assert ends(result) == [5000 + 1100 + 100, 1000]


def test_a_populated_range_is_touched_all_over() -> None:
    fill = op(PlanOp.MADVISE_POPULATE, traits=int(Trait.POPULATE), **pages(0, 99, pages=100))
    fault = op(PlanOp.FAULT, **pages(50))
    unmap = op(PlanOp.MUNMAP, **pages(40, 60))
    programs = {
        PlanOp.FAULT: [(Op.COST, SHORT), (Op.DONE,)],
        PlanOp.MADVISE_POPULATE: [(Op.COST, SHORT), (Op.DONE,)],
        PlanOp.MUNMAP: [(Op.FLUSH, FlushScope.TOUCHED), (Op.DONE,)],
    }
    result = replay(
        plan([[unmap], [fill], [fault]], offsets=[5000, 0, 0]),
        model(programs),
        machine(4, COSTS),
        Options(cores=4),
    )
    assert ends(result)[0] == 5000 + 100 + 1000 + 200
