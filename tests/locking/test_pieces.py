"""Operations that go through their range in pieces and take their locks for each.

The counts of ``linux-6.18`` are those of a booted 6.18.44 (mmap_lock tracepoints); of 6.1,
which has no VMA locks and whose pagemap reads begin without the lock, from its source.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmreplay.address_space.planner import build_plan
from mmreplay.address_space.rules import load_rules
from mmreplay.engine import Options, simulate
from mmreplay.locking import load_model
from mmreplay.machine import load_machine
from mmreplay.schema import OpKind, ProcFile
from mmreplay.workloads.tape import Tape

PG = 4096
HUGE = 512 * PG
MADV_COLLAPSE = 25


def collapse(t: Tape, at: int) -> None:
    t.madvise(at, 4 * HUGE, MADV_COLLAPSE)


def pagemap(t: Tape, at: int) -> None:
    t.op(OpKind.PROC_READ, flags=int(ProcFile.PAGEMAP), length=65536, address=at, result=65536)


def little_pagemap(t: Tape, at: int) -> None:
    t.op(OpKind.PROC_READ, flags=int(ProcFile.PAGEMAP), length=8, address=at, result=8)


def other_memory(t: Tape, at: int) -> None:
    t.range_op(OpKind.PROCESS_VM, at, 2048 * PG, result=2048 * PG)


@pytest.mark.parametrize(
    ("model", "perform", "reads", "writes", "marks"),
    [
        ("linux-6.18", collapse, 9, 4, 4),
        ("linux-6.1", collapse, 9, 4, 0),
        ("linux-5.15", collapse, 0, 0, 0),
        ("linux-6.18", pagemap, 17, 0, 0),
        ("linux-6.1", pagemap, 16, 0, 0),
        ("linux-6.18", little_pagemap, 2, 0, 0),
        ("linux-6.1", little_pagemap, 1, 0, 0),
        ("linux-6.18", other_memory, 2, 0, 0),
        ("linux-6.1", other_memory, 2, 0, 0),
    ],
)
def test_each_piece_takes_its_locks(
    model: str, perform: Callable[[Tape, int], None], reads: int, writes: int, marks: int
) -> None:
    t = Tape()
    at = -(-t.isolated(6 * HUGE) // HUGE) * HUGE
    t.touch(at, 4 * 512)
    first = len(t.rows)
    perform(t, at)
    loaded = load_model(model)
    plan = build_plan(t.trace(), load_rules(loaded.vma_rules), window=(first, len(t.rows))).plan
    result = simulate(plan, loaded, load_machine("epyc-guest-2cpu"), Options(cores=1))
    locks = {lock.name: lock for lock in result.locks}
    assert (locks["mmap_lock"].read, locks["mmap_lock"].write) == (reads, writes)
    assert (locks["vma_lock"].mark if "vma_lock" in locks else 0) == marks
