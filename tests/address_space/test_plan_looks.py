"""Calls that look at VMAs: how often they take the lock, and which errors come from under it.

What the kernel counts is in tests/lockcounts/other_operations.py, phases looks_across_vmas,
stuck_stacks, refused_under_the_lock and guards; here are the same cases by hand.
"""

from __future__ import annotations

import pytest
from test_plan_rules import ANON, PAGE, WRITE, A, Tape, at, marks, traits

from mmreplay.address_space.plan import PlanOp, Trait
from mmreplay.engine import Options, simulate
from mmreplay.locking import load_model
from mmreplay.machine.loader import load_machine
from mmreplay.schema import FaultClass, OpKind

READ_USER = 5
SHARED_ANON = 0x21
FILE = 0x2
HIGH = (1 << 64) - 4096  # in the kernel half
COLLAPSE, POPULATE_WRITE, INSTALL, REMOVE = 25, 23, 102, 103


def counts(tape: Tape, row: int, kernel: str = "linux-6.18") -> tuple[int, int, int]:
    """Reads, writes and downgrades of mmap_lock by row ``row``."""
    plan = tape.plan(window=(row, row + 1)).plan
    result = simulate(plan, load_model(kernel), load_machine("generic-server"), Options(cores=1))
    lock = next(lock for lock in result.locks if lock.name == "mmap_lock")
    return lock.read, lock.write, lock.downgrade


def striped(tape: Tape, flags: int = ANON, **more: int) -> None:
    """Three VMAs of two pages each, then a hole."""
    tape.mmap(A, 6, flags=flags, **more)
    tape.op(OpKind.MPROTECT, address=A + 2 * PAGE, length=2 * PAGE, prot=1, result=0)


def looked(tape: Tape, kind: OpKind, page: int, pages: int, errno: int = 0, flags: int = 0) -> int:
    row = tape.op(
        kind,
        address=A + page * PAGE,
        length=pages * PAGE,
        flags=flags,
        result=-errno,
        errno=errno or None,
    )
    tape.fault(A, WRITE)
    return row


def test_mincore_takes_the_lock_for_each_vma() -> None:
    tape = Tape()
    striped(tape)
    every = looked(tape, OpKind.MINCORE, 0, 6)
    part = looked(tape, OpKind.MINCORE, 1, 2)
    to_hole = looked(tape, OpKind.MINCORE, 3, 6, errno=12)
    hole = looked(tape, OpKind.MINCORE, 6, 1, errno=12)
    assert [counts(tape, r)[0] for r in (every, part, to_hole, hole)] == [3, 2, 3, 1]


def test_mincore_takes_the_lock_for_each_16_mib() -> None:
    tape = Tape()
    tape.mmap(A, 10_000)
    row = looked(tape, OpKind.MINCORE, 0, 10_000)
    assert counts(tape, row) == (3, 0, 0)


def test_msync_takes_the_lock_again_after_each_vma_that_it_writes_back() -> None:
    tape = Tape()
    striped(tape, flags=SHARED_ANON)
    sync = looked(tape, OpKind.MSYNC, 0, 6, flags=4)
    short = looked(tape, OpKind.MSYNC, 0, 3, flags=4)
    later = looked(tape, OpKind.MSYNC, 0, 6, flags=1)  # MS_ASYNC
    assert [counts(tape, r)[0] for r in (sync, short, later)] == [3, 2, 1]


def test_willneed_takes_the_lock_again_for_each_vma_of_a_file() -> None:
    tape = Tape()
    striped(tape, flags=FILE, fd=3, file_offset=0)
    every = looked(tape, OpKind.MADVISE, 0, 6, flags=3)
    beyond = looked(tape, OpKind.MADVISE, 4, 6, errno=12, flags=3)
    assert [counts(tape, r)[0] for r in (every, beyond)] == [4, 2]


def refused(tape: Tape, kind: OpKind, errno: int = 22, page: int = 0, **columns: int) -> int:
    where = {"address": A + page * PAGE, "length": 2 * PAGE} | columns
    return tape.op(kind, errno=errno, result=-errno, **where)


@pytest.mark.parametrize(
    ("kind", "columns", "under"),
    [
        (OpKind.PKEY_MPROTECT, {"prot": 1}, True),  # the key is not allocated
        (OpKind.PKEY_MPROTECT, {"prot": 64}, False),
        (OpKind.PKEY_MPROTECT, {"prot": 1, "address": A + 1}, False),
        (OpKind.MPROTECT, {"prot": 1}, False),
        (OpKind.MADVISE, {"flags": COLLAPSE}, True),
        (OpKind.MADVISE, {"flags": POPULATE_WRITE}, False),  # writable: the kernel knew it not
        (OpKind.MADVISE, {"flags": POPULATE_WRITE, "page": 1}, True),
        (OpKind.MADVISE, {"flags": INSTALL}, False),
        (OpKind.MADVISE, {"flags": INSTALL, "page": 4}, True),  # locked
        (OpKind.MADVISE, {"flags": REMOVE, "page": 4}, False),
        (OpKind.REMAP_FILE_PAGES, {"prot": 0}, True),
        (OpKind.REMAP_FILE_PAGES, {"prot": 1}, False),
        (OpKind.MUNLOCK, {}, True),
        (OpKind.MLOCK, {}, False),
        (OpKind.MMAP, {"errno": 1, "address2": A, "flags": 0x32, "prot": 3}, True),
        (OpKind.MMAP, {"errno": 9, "address2": A, "flags": 0x12, "prot": 3}, False),
        (OpKind.PROCESS_MADVISE, {"errno": 14, "length2": 2, "flags": 20}, False),
    ],
)
def test_errors_from_under_the_lock(kind: OpKind, columns: dict[str, int], under: bool) -> None:
    tape = Tape()
    striped(tape)
    tape.op(OpKind.MLOCK, address=A + 4 * PAGE, length=2 * PAGE, result=0)
    row = refused(tape, kind, **columns)
    tape.fault(A, WRITE)
    assert (sum(counts(tape, row)) > 0) is under


def test_a_remapping_that_is_refused_takes_the_lock_it_looks_up_under() -> None:
    tape = Tape()
    striped(tape)
    row = refused(tape, OpKind.REMAP_FILE_PAGES, prot=0)
    tape.fault(A, WRITE)
    assert counts(tape, row, "linux-6.10") == (0, 1, 0)
    assert counts(tape, row, "linux-6.12") == (1, 0, 0)


def test_advice_from_a_hole_on_is_not_by_the_vma_lock() -> None:
    tape = Tape()
    striped(tape)
    row = tape.op(OpKind.MADVISE, address=A - PAGE, length=2 * PAGE, flags=4, result=-12, errno=12)
    tape.fault(A, WRITE)
    assert counts(tape, row) == (1, 0, 0)


def test_a_stack_that_cannot_grow_is_found_out_under_the_write_lock() -> None:
    tape = Tape()
    tape.mmap(A, 2, flags=ANON | 0x100)
    row = tape.fault(A - 5 * PAGE, WRITE, fault_class=FaultClass.FAILED)
    below = tape.fault(A + 9 * PAGE, WRITE, fault_class=FaultClass.FAILED)
    assert Trait.GROWSDOWN in traits(tape.plan(), row)
    assert counts(tape, row) == (1, 1, 0)
    assert counts(tape, row, "linux-6.1") == (1, 1, 0)
    assert counts(tape, row, "linux-5.15") == (1, 0, 0)
    assert counts(tape, below) == (1, 0, 0)


def test_removing_guards_asks_for_no_anon_vma() -> None:
    tape = Tape()
    tape.mmap(A, 4)
    columns = {"address": A, "length": PAGE, "result": 0}
    remove = tape.op(OpKind.MADVISE, flags=REMOVE, **columns)
    install = tape.op(OpKind.MADVISE, flags=INSTALL, **columns)
    bundle = tape.plan()
    assert Trait.NEEDS_ANON_VMA not in traits(bundle, remove)
    assert Trait.NEEDS_ANON_VMA in traits(bundle, install)
    for kernel in ("linux-6.13", "linux-6.19"):
        taken = []
        for row in (remove, install):
            plan = tape.plan(window=(row, row + 1)).plan
            machine = load_machine("generic-server")
            result = simulate(plan, load_model(kernel), machine, Options(cores=1))
            taken.append(sum(lock.write for lock in result.locks if lock.name == "anon_vma_lock"))
        assert taken == [0, 1]


def test_a_fault_in_the_kernel_half_takes_no_lock() -> None:
    tape = Tape()
    tape.mmap(A, 4)
    row = tape.fault(HIGH, READ_USER, fault_class=FaultClass.FAILED)
    tape.fault(A, WRITE)
    bundle = tape.plan()
    assert bundle.plan.op[at(bundle, row)] == PlanOp.NONE
    assert marks(bundle, row) == []


def test_shrinking_over_a_hole_takes_no_second_lock() -> None:
    tape = Tape()
    tape.mmap(A, 2)
    row = tape.op(
        OpKind.MREMAP, address=A, length2=8 * PAGE, length=2 * PAGE, flags=0, result=A, address2=0
    )
    tape.fault(A, WRITE)
    assert counts(tape, row) == (0, 1, 0)
