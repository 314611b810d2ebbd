"""A replay that stands still stops with the circle named, in both twins alike."""

from __future__ import annotations

from typing import Any

import pytest
from scenario import COSTS, SHORT, replay
from small import LOCKS, R, W, machine, model, op, plan

from mmreplay.address_space.plan import MarkSet, PlanOp
from mmreplay.engine import Options, simulate
from mmreplay.engine.oracle import simulate_oracle
from mmreplay.errors import UserError
from mmreplay.locking.isa import Kind, Op, Operand, Scope

RANGE = {"kind": Kind.RANGE, "scope": Scope.MM, "line": "mm.range"}


def message(
    programs: dict[PlanOp, list[Any]], threads: list[list[dict[str, Any]]],
    offsets: list[int] | None = None, cores: int = 4, **range_params: int,
) -> str:  # fmt: skip
    """What both twins say; lines are the numbers of the instructions."""
    locks = {**LOCKS, "range": {**RANGE, **range_params}}
    inputs = (
        plan(threads, offsets=offsets),
        model(programs, locks),
        machine(4, COSTS),
        Options(cores=cores),
    )
    said = []
    for twin in (simulate_oracle, simulate):
        with pytest.raises(UserError) as raised:
            twin(*inputs)
        said.append(str(raised.value))
    assert said[0] == said[1]
    return said[0]


def test_two_locks_in_two_orders() -> None:
    ptl_first = [
        (Op.LOCK, "mmap_lock", W), (Op.COST, SHORT), (Op.LOCK, "vma", R), (Op.LOCK, "ptl", W),
        (Op.UNLOCK, "ptl", W), (Op.UNLOCK, "vma", R), (Op.UNLOCK, "mmap_lock", W), (Op.DONE,),
    ]  # fmt: skip
    map_first = [
        (Op.LOCK, "ptl", W), (Op.COST, SHORT), (Op.LOCK, "mmap_lock", R),
        (Op.UNLOCK, "mmap_lock", R), (Op.UNLOCK, "ptl", W), (Op.DONE,),
    ]  # fmt: skip
    said = message(
        {PlanOp.MUNMAP: ptl_first, PlanOp.FAULT: map_first},
        [[op(PlanOp.MUNMAP, table=0, vma=0)], [op(table=0, vma=1)], [op(PlanOp.NONE)]],
    )
    assert "2 threads wait for each other for ever" in said
    assert (
        "thread 0 (munmap) waits for ptl (write, line 3), which thread 1 (fault) holds"
        " (write, line 8)" in said
    )
    assert (
        "thread 1 (fault) waits for mmap_lock (read, line 10), which thread 0 (munmap) holds"
        " (write, line 0)" in said
    )


def test_a_writer_that_marks_and_a_fault_that_wants_the_mmap_lock() -> None:
    # The fault waits for mmap_lock under the VMA lock, where the kernel only tries.
    fault = [
        (Op.TRY, "vma", R, "busy"), (Op.COST, SHORT), (Op.LOCK, "mmap_lock", R),
        (Op.UNLOCK, "mmap_lock", R), (Op.UNLOCK, "vma", R), "busy", (Op.DONE,),
    ]  # fmt: skip
    protect = [
        (Op.LOCK, "mmap_lock", W), (Op.EACH, MarkSet.TARGETS, "marked"), "next",
        (Op.MARK, "vma"), (Op.END, "next"), "marked", (Op.UNLOCK, "mmap_lock", W), (Op.DONE,),
    ]  # fmt: skip
    marks = [(MarkSet.TARGETS, 0), (MarkSet.TARGETS, 1)]
    said = message(
        {PlanOp.FAULT: fault, PlanOp.MPROTECT: protect},
        [[op(vma=1)], [op(PlanOp.MPROTECT, vma=0, marks=marks)]],
        [0, 100],
    )
    assert "thread 1 (mprotect) waits for vma (mark, line 8), which thread 0 (fault) holds" in said
    assert "thread 0 (fault) waits for mmap_lock (read, line 2)" in said


def test_three_in_a_circle() -> None:
    def two(first: str, second: str) -> list[Any]:
        return [
            (Op.LOCK, first, W), (Op.COST, SHORT), (Op.LOCK, second, W), (Op.UNLOCK, second, W),
            (Op.UNLOCK, first, W), (Op.DONE,),
        ]  # fmt: skip

    programs = {
        PlanOp.FAULT: two("ptl", "zone"),
        PlanOp.MMAP: two("zone", "mmap_lock"),
        PlanOp.MUNMAP: two("mmap_lock", "ptl"),
    }
    said = message(programs, [[op(table=0)], [op(PlanOp.MMAP)], [op(PlanOp.MUNMAP, table=0)]])
    assert "3 threads wait for each other" in said
    for name in ("ptl", "zone", "mmap_lock"):
        assert f"waits for {name} (write, line" in said


def test_a_lock_taken_twice_by_one_thread() -> None:
    twice = [(Op.LOCK, "zone", W), (Op.LOCK, "zone", W), (Op.DONE,)]
    said = message({PlanOp.FAULT: twice}, [[op()], [op(PlanOp.NONE)]])
    assert "thread 0 (fault) waits for zone (write, line 1), which thread 0 (fault) holds" in said


def test_a_program_that_ends_with_a_lock() -> None:
    leak = [(Op.LOCK, "mmap_lock", W), (Op.DONE,)]
    said = message({PlanOp.FAULT: leak}, [[op()], [op()]])
    assert "1 threads wait for ever: thread 1 (fault) waits for mmap_lock (write, line 0)" in said
    assert "which no thread that waits holds" in said


@pytest.mark.parametrize("wait", [0, 1])
def test_ranges_that_overlap(wait: int) -> None:
    def both(first: str, second: str) -> list[Any]:
        at = {"range": [Operand.OP], "zone": []}
        return [
            (Op.LOCK, first, W, *at[first]), (Op.COST, SHORT), (Op.LOCK, second, W, *at[second]),
            (Op.UNLOCK, second, W, *at[second]), (Op.UNLOCK, first, W, *at[first]), (Op.DONE,),
        ]  # fmt: skip

    programs = {PlanOp.FAULT: both("range", "zone"), PlanOp.MMAP: both("zone", "range")}
    here = {"first_page": 5, "last_page": 9}
    overlapping = [[op(**here)], [op(PlanOp.MMAP, first_page=9, last_page=12)]]
    said = message(programs, overlapping, wait=wait)
    assert "waits for range (write, line 8), which thread 0 (fault) holds (write, line 0)" in said
    disjoint = [[op(**here)], [op(PlanOp.MMAP, first_page=10, last_page=12)]]
    locks = {**LOCKS, "range": {**RANGE, "wait": wait}}
    replay(plan(disjoint), model(programs, locks), machine(4, COSTS), Options(cores=4))


def test_a_plan_whose_dependencies_go_in_a_circle() -> None:
    body = [(Op.COST, SHORT), (Op.DONE,)]
    said = message(
        {PlanOp.FAULT: body, PlanOp.MUNMAP: body},
        [[op(deps=[3]), op()], [op(), op(PlanOp.MUNMAP, deps=[1])]],
    )
    assert "2 threads wait for each other for ever" in said
    assert "thread 0 (fault) waits to begin operation 0 until operation 3 of thread 1" in said
    assert "thread 1 (munmap) waits to begin operation 3 until operation 1 of thread 0" in said
    assert "depend on each other in a circle" in said


def test_a_dependency_and_a_lock_in_one_circle() -> None:
    holds = [(Op.LOCK, "zone", W), (Op.COST, SHORT), (Op.UNLOCK, "zone", W), (Op.DONE,)]
    leaks = [(Op.LOCK, "zone", W), (Op.DONE,)]
    said = message(
        {PlanOp.FAULT: holds, PlanOp.MMAP: leaks},
        [[op(PlanOp.MMAP), op()], [op(deps=[1])]],
    )
    assert "thread 0 (fault) waits for zone (write, line 0)" in said
