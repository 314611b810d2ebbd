"""Kogan's range lock: mprotect of one VMA and its neighbours' pages, or the whole address space."""

from __future__ import annotations

import pytest

from mmreplay.address_space.planner import build_plan
from mmreplay.address_space.rules import load_rules
from mmreplay.engine import Options, simulate
from mmreplay.locking import load_model
from mmreplay.machine import load_machine
from mmreplay.workloads.tape import READ_WRITE, Tape

PG = 4096


def full_ranges(*changes: tuple[int, int]) -> int:
    """How many mprotects of (first page, pages) of a reserved range take the whole range.

    Its first eight pages are readable and writable and touched, as an arena's are.
    """
    t = Tape()
    arena = t.reserve(256 * PG)
    t.mprotect(arena, 8 * PG, READ_WRITE)
    t.touch(arena, 8)
    first = len(t.rows)
    for page, pages in changes:
        t.mprotect(arena + page * PG, pages * PG, READ_WRITE)
    model = load_model("range-lock")
    plan = build_plan(t.trace(), load_rules(model.vma_rules), window=(first, len(t.rows))).plan
    result = simulate(plan, model, load_machine("epyc-guest-2cpu"), Options(cores=1))
    return result.reasons["full_range"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([(8 + i, 1) for i in range(10)], 0),  # an arena grows: the boundary moves
        ([(20, 1)], 1),  # a VMA becomes three
        ([(20, 1), (8, 12)], 2),  # and three become one
    ],
)
def test_a_boundary_that_moves_keeps_the_tree(
    changes: list[tuple[int, int]], expected: int
) -> None:
    assert full_ranges(*changes) == expected
