"""Where the shootdown stands relative to the locks of each operation, and the VMA lock.

The wait of a thread that needs the lock grows by the time of the shootdown where the lock is
held through it, and by nothing where it is not.  Two other CPUs, one computing, one with the
waiter: 100 + 1000 + 200 where it spins; asleep its CPU is idle, lazy, and not interrupted.
"""

from __future__ import annotations

from typing import Any

import pytest
from scenario import COSTS, LONG, SHORT, ends, lock, replay
from small import LOCKS, R, W, machine, model, op, plan

from mmreplay.address_space.plan import MarkSet, PlanOp
from mmreplay.engine import Options, Result
from mmreplay.locking.isa import FlushScope, Op, RuntimeBit

FLUSH_NS = 100 + 1000 + 200
ASLEEP_NS = 100 + 1000
FLUSH = (Op.FLUSH, FlushScope.MM)
READER = [(Op.LOCK, "mmap_lock", R), (Op.COST, SHORT), (Op.UNLOCK, "mmap_lock", R), (Op.DONE,)]
WRITER = [(Op.LOCK, "mmap_lock", W), (Op.COST, SHORT), (Op.UNLOCK, "mmap_lock", W), (Op.DONE,)]
MARKER = [
    (Op.LOCK, "mmap_lock", W), (Op.EACH, MarkSet.TARGETS, "marked"), "next", (Op.MARK, "vma"),
    (Op.END, "next"), "marked", (Op.UNLOCK, "mmap_lock", W), (Op.DONE,),
]  # fmt: skip
SAME_TABLE = [(Op.LOCK, "ptl", W), (Op.COST, SHORT), (Op.UNLOCK, "ptl", W), (Op.DONE,)]

PROTECT = [  # mprotect, MAP_FIXED over mappings, fork, the move of mremap
    (Op.LOCK, "mmap_lock", W), (Op.COST, SHORT), FLUSH, (Op.UNLOCK, "mmap_lock", W), (Op.DONE,),
]  # fmt: skip
UNMAP = [  # munmap, brk and mremap that shrink
    (Op.LOCK, "mmap_lock", W), (Op.COST, SHORT), (Op.DOWNGRADE, "mmap_lock"), (Op.COST, SHORT),
    FLUSH, (Op.UNLOCK, "mmap_lock", R), (Op.DONE,),
]  # fmt: skip
ZAP_OLD = [  # MADV_DONTNEED up to 6.16
    (Op.LOCK, "mmap_lock", R), (Op.COST, SHORT), FLUSH, (Op.UNLOCK, "mmap_lock", R), (Op.DONE,),
]  # fmt: skip
ZAP_NEW = [  # from 6.17: the VMA lock is released before the flush
    (Op.TRY, "vma", R, "no"), (Op.COST, SHORT), (Op.UNLOCK, "vma", R), FLUSH, "no", (Op.DONE,),
]  # fmt: skip
ZAP_HELD = [  # what it would be if it were not
    (Op.TRY, "vma", R, "no"), (Op.COST, SHORT), FLUSH, (Op.UNLOCK, "vma", R), "no", (Op.DONE,),
]  # fmt: skip
COW = [(Op.LOCK, "ptl", W), (Op.COST, SHORT), FLUSH, (Op.UNLOCK, "ptl", W), (Op.DONE,)]


def total_wait(result: Result, name: str) -> int:
    found = lock(result, name)
    return found.read_wait_ns + found.write_wait_ns


def wait_for(program: list[Any], waiter: list[Any], name: str, *, flush: bool) -> int:
    """T0 runs the program, T1 computes on another CPU, T2 wants the lock from 100 on."""
    steps = [step for step in program if flush or step is not FLUSH]
    locks = {key: dict(spec) for key, spec in LOCKS.items()}
    locks["mmap_lock"]["osq"] = 0
    busy = [(Op.COST, LONG), (Op.DONE,)]
    marks = [(MarkSet.TARGETS, 0)]
    result = replay(
        plan(
            [
                [op(PlanOp.MADVISE_ZAP, vma=0, table=0)],
                [op(PlanOp.NONE), op(PlanOp.MLOCK)],
                [op(PlanOp.FAULT, vma=0, table=0, marks=marks)],
            ],
            offsets=[0, 0, 100],
        ),
        model({PlanOp.MADVISE_ZAP: steps, PlanOp.FAULT: waiter, PlanOp.MLOCK: busy}, locks),
        machine(4, COSTS),
        Options(cores=3),
    )
    return total_wait(result, name)


@pytest.mark.parametrize(
    ("program", "waiter", "name", "grows"),
    [
        (PROTECT, READER, "mmap_lock", ASLEEP_NS),
        (PROTECT, WRITER, "mmap_lock", ASLEEP_NS),
        (UNMAP, READER, "mmap_lock", 0),
        (UNMAP, WRITER, "mmap_lock", ASLEEP_NS),
        (ZAP_OLD, WRITER, "mmap_lock", ASLEEP_NS),
        (ZAP_NEW, MARKER, "vma", 0),
        (ZAP_HELD, MARKER, "vma", ASLEEP_NS),
        (COW, SAME_TABLE, "ptl", FLUSH_NS),
    ],
    ids=["protect-reader", "protect-writer", "unmap-reader", "unmap-writer", "dontneed-writer",
         "dontneed-6.17-marker", "held-marker", "cow-same-table"],
)  # fmt: skip
def test_who_waits_through_a_shootdown(
    program: list[Any], waiter: list[Any], name: str, grows: int
) -> None:
    without = wait_for(program, waiter, name, flush=False)
    assert without > 0
    assert wait_for(program, waiter, name, flush=True) - without == grows


def test_a_reader_does_not_wait_for_old_dontneed() -> None:
    assert wait_for(ZAP_OLD, READER, "mmap_lock", flush=True) == 0


# -- the per-VMA lock ---------------------------------------------------------------------------

FIRST_WRITE = [
    (Op.TRY, "vma", R, "busy"), (Op.TRY, "mmap_lock", R, "retry"), (Op.COST, SHORT),
    (Op.SET, RuntimeBit.VMA_ANON_VMA), (Op.UNLOCK, "mmap_lock", R), (Op.UNLOCK, "vma", R),
    (Op.DONE,),
    "retry", (Op.UNLOCK, "vma", R), (Op.COUNT, "retry"), (Op.JUMP, "slow"),
    "busy", (Op.COUNT, "busy"),
    "slow", (Op.LOCK, "mmap_lock", R), (Op.COST, SHORT), (Op.UNLOCK, "mmap_lock", R), (Op.DONE,),
]  # fmt: skip


def faults(
    programs: dict[PlanOp, list[Any]], threads: list[list[dict[str, Any]]], offsets: list[int],
    **rwsem: int,
) -> Result:  # fmt: skip
    locks = {key: dict(spec) for key, spec in LOCKS.items()}
    locks["mmap_lock"].update(rwsem)
    return replay(
        plan(threads, offsets=offsets), model(programs, locks), machine(4, COSTS), Options(cores=4)
    )


def test_a_first_write_beside_readers_only_tries_and_beside_a_waiting_writer_falls_back() -> None:
    programs = {PlanOp.FAULT: FIRST_WRITE, PlanOp.MM_READ: READER, PlanOp.MMAP: WRITER}
    long = [(Op.LOCK, "mmap_lock", R), (Op.COST, LONG), (Op.UNLOCK, "mmap_lock", R), (Op.DONE,)]
    programs[PlanOp.PROC_MAPS] = long
    readers = faults(programs, [[op(vma=0)], [op(PlanOp.PROC_MAPS)]], [5000, 0])
    assert readers.reasons == {"retry": 0, "busy": 0}
    threads = [[op(vma=0)], [op(PlanOp.PROC_MAPS)], [op(PlanOp.MMAP)]]
    writer = faults(programs, threads, [5000, 0, 100], osq=0)
    assert writer.reasons == {"retry": 1, "busy": 0}


def test_one_fallback_for_one_mark() -> None:
    protect = [
        (Op.LOCK, "mmap_lock", W), (Op.EACH, MarkSet.TARGETS, "marked"), "next", (Op.MARK, "vma"),
        (Op.END, "next"), "marked", (Op.COST, LONG), (Op.UNLOCK, "mmap_lock", W), (Op.DONE,),
    ]  # fmt: skip
    programs = {PlanOp.FAULT: FIRST_WRITE, PlanOp.MPROTECT: protect}
    marks = [(MarkSet.TARGETS, 0)]
    threads = [[op(vma=0)] * 5, [op(vma=1)] * 5, [op(PlanOp.MPROTECT, vma=0, marks=marks)]]
    result = faults(programs, threads, [1000, 60_000, 0])
    # T0 falls back once, sleeps until the writer is through, and then all its faults go well;
    # T1, in a VMA that nobody marks, comes later: never.
    assert result.reasons["busy"] == 1
    assert result.reasons["retry"] == 0


def test_a_vma_that_died_between_look_up_and_lock_is_missed() -> None:
    fault = [
        (Op.COST, SHORT), (Op.TRY, "vma", R, "miss"),
        (Op.BRANCH, (0, 0, RuntimeBit.VMA_DEAD), "dead"),
        (Op.UNLOCK, "vma", R), (Op.DONE,),
        "dead", (Op.UNLOCK, "vma", R), "miss", (Op.COUNT, "miss"), (Op.DONE,),
    ]  # fmt: skip
    unmap = [
        (Op.LOCK, "mmap_lock", W), (Op.EACH, MarkSet.REMOVED, "gone"), "next", (Op.MARK, "vma"),
        (Op.SET, RuntimeBit.VMA_DEAD), (Op.END, "next"), "gone", (Op.UNLOCK, "mmap_lock", W),
        (Op.DONE,),
    ]  # fmt: skip
    programs = {PlanOp.FAULT: fault, PlanOp.MUNMAP: unmap}
    unmaps = [op(PlanOp.MUNMAP, vma=0, marks=[(MarkSet.REMOVED, 0)])]
    # The look-up (1000) of a fault at 100 ends after the unmap, of which all marks are
    # dropped by then: the VMA is found dead.  Another VMA lives.
    result = faults(programs, [[op(vma=0)], [op(vma=1)], unmaps], [100, 100, 0])
    assert result.reasons["miss"] == 1


def test_under_the_mmap_lock_a_vma_is_locked_without_asking_for_marks() -> None:
    program = [
        (Op.LOCK, "mmap_lock", R), (Op.LOCK, "vma", R), (Op.COST, SHORT), (Op.UNLOCK, "vma", R),
        (Op.UNLOCK, "mmap_lock", R), (Op.DONE,),
    ]  # fmt: skip
    result = faults({PlanOp.FAULT: program}, [[op(vma=0)], [op(vma=0)]], [0, 5000])
    # Two RMWs of each lock; T1 fetches both lines.
    assert ends(result) == [10 + 10 + 1000 + 10 + 10, 5000 + 50 + 50 + 1000 + 10 + 10]
    assert lock(result, "vma").read == 2


def test_a_sequence_is_odd_inside_a_write_section_that_also_moves_it_at_the_acquire() -> None:
    look = [(Op.SNAP, "mm_seq", "odd"), (Op.DONE,), "odd", (Op.COUNT, "odd"), (Op.DONE,)]
    programs = {PlanOp.FAULT: look, PlanOp.MMAP: WRITER}
    threads = [[op()], [op(PlanOp.MMAP)], [op()]]
    for moves, odd in ((1, 1), (0, 0)):
        result = faults(programs, threads, [500, 0, 5000], bump_acquire=moves)
        assert result.reasons["odd"] == odd  # at 500 inside the section, at 5000 not
