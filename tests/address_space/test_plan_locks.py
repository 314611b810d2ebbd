"""Which lock object a plan names for a VMA that is cut and merged again and again."""

from __future__ import annotations

from test_plan_rules import PAGE, WRITE, A, Tape, at, marks

from mmreplay.address_space.plan import MarkSet
from mmreplay.schema import OpKind

READ_EXEC = 5


def _protect(tape: Tape, address: int, pages: int, prot: int) -> int:
    return tape.op(OpKind.MPROTECT, address=address, length=pages * PAGE, prot=prot, result=0)


def _flips(code: int, nursery: int) -> None:
    """Pages turn writable, join their neighbour, and turn back, while another thread faults."""
    tape = Tape(2)
    tape.mmap(nursery, 8)
    first = tape.fault(nursery, WRITE, 2)
    tape.mmap(code, 8)
    tape.fault(code, WRITE)
    _protect(tape, code, 8, READ_EXEC)
    faults, calls, in_code = [first], [], []
    for k in range(1, 4):
        faults.append(tape.fault(nursery + k * PAGE, WRITE, 2))
        calls.append(_protect(tape, code, 8, 3))
        faults.append(tape.fault(nursery + (k + 4) * PAGE, WRITE, 2))
        calls.append(_protect(tape, code, 8, READ_EXEC))
        in_code.append(tape.fault(code, 5, 2))
    bundle = tape.plan()
    locks = {int(bundle.plan.vma[at(bundle, row)]) for row in faults}
    assert len(locks) == (1 if nursery < code else 2)  # what is merged has the lower one's
    assert all(locks <= {vma for _, vma in marks(bundle, row)} for row in calls)
    assert len({int(bundle.plan.vma[at(bundle, row)]) for row in in_code}) == 1


def test_faults_beside_what_is_merged_and_cut_again_meet_its_marks() -> None:
    _flips(A + 8 * PAGE, A)
    _flips(A, A + 8 * PAGE)


def test_neighbours_on_both_sides_keep_their_locks() -> None:
    tape = Tape(2)
    tape.mmap(A, 12)
    low = [tape.fault(A, WRITE, 2)]
    high, middle = [], []
    for k in range(1, 4):
        _protect(tape, A + 4 * PAGE, 4, 1)
        low.append(tape.fault(A + k * PAGE, WRITE, 2))
        high.append(tape.fault(A + (8 + k) * PAGE, WRITE, 2))
        middle.append(_protect(tape, A + 4 * PAGE, 4, 3))
    bundle = tape.plan()

    def locks(rows: list[int]) -> set[int]:
        return {int(bundle.plan.vma[at(bundle, row)]) for row in rows}

    assert len(locks(low)) == len(locks(high)) == 1
    assert locks(low) != locks(high)
    for row in middle:
        assert locks(low) | locks(high) <= {vma for _, vma in marks(bundle, row)}


def test_what_stays_of_an_unmapped_vma_keeps_its_lock() -> None:
    for cut in (lambda k: 11 - k, lambda k: k):  # from the end, from the beginning
        tape = Tape(2)
        tape.mmap(A, 12)
        faults = [tape.fault(A + 6 * PAGE, WRITE, 2)]
        calls = []
        for k in range(4):
            calls.append(tape.munmap(A + cut(k) * PAGE, 1))
            faults.append(tape.fault(A + (5 + k % 3) * PAGE, WRITE, 2))
        bundle = tape.plan()
        (lock,) = {int(bundle.plan.vma[at(bundle, row)]) for row in faults}
        gone = []
        for row in calls:
            assert lock in {vma for _, vma in marks(bundle, row)}
            gone += [vma for role, vma in marks(bundle, row) if role is MarkSet.REMOVED]
        assert lock not in gone
        assert len(set(gone)) == len(calls)


def test_locks_do_not_depend_on_where_the_kernel_put_the_map() -> None:
    """So many begin anew that some forget theirs: the same ones wherever the map lies."""

    def planned(base: int) -> tuple[list[int], list[int]]:
        tape = Tape(1)
        tape.mmap(base, 4096)
        tape.fault(base, WRITE)
        for _ in range(2):
            for k in range(800):
                page = base + (1 + 1789 * k % 4095) * PAGE
                _protect(tape, page, 1, 1)
                tape.fault(page, 4)
                _protect(tape, page, 1, 3)
        plan = tape.plan().plan
        return plan.vma.tolist(), plan.first_page.tolist()

    locks, pages = planned(A)
    for gib in (1, 5, 700):
        again, moved = planned(A - (gib << 30))
        assert moved != pages
        assert again == locks
