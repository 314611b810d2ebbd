"""Plans of processes, huge pages, stacks, the break and moved mappings, computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_plan_rules import ANON, PAGE, RW, WRITE, A, Tape, at, deps, marks, traits

from mmreplay.address_space.plan import MarkSet, PlanOp, Trait
from mmreplay.schema import OpKind

READ, PROTECTED = 4, 7
TABLE = 512 * PAGE


def processes(*spaces: int, start_ns: int | None = None) -> Tape:
    """Thread n + 1 is in address space ``spaces[n]``; all but the first start later."""
    tape = Tape(threads=len(spaces))
    for n, space in enumerate(spaces):
        tape.threads[n] |= {"pid": n + 1, "address_space": space}
    return tape


def child_of(tape: Tape, kind: OpKind, tid: int, **more: Any) -> int:
    row = tape.op(kind, child=tid, result=tid, **more)
    tape.threads[tid - 1]["start_ns"] = 1000 * (row + 1)
    return row


def test_fork_shares_pages_and_gives_the_child_anon_vmas() -> None:
    tape = processes(0, 1)
    tape.mmap(A, 4)
    tape.fault(A, WRITE)
    tape.fault(A + PAGE, WRITE)
    made = child_of(tape, OpKind.FORK, 2)
    copied = tape.fault(A, PROTECTED, tid=2, address_space=1)
    kept = tape.fault(A, PROTECTED)
    new = tape.fault(A + 2 * PAGE, WRITE, tid=2, address_space=1)
    bundle = tape.plan()
    plan = bundle.plan
    assert plan.op[at(bundle, made)] == PlanOp.FORK
    assert plan.pages[at(bundle, made)] == 2
    assert plan.child_mm[at(bundle, made)] == plan.mm[at(bundle, copied)]
    assert [s for s, _ in marks(bundle, made)] == [MarkSet.PARENT_VMAS]
    assert traits(bundle, copied) & (Trait.COW | Trait.REUSE) == Trait.COW
    assert traits(bundle, kept) & (Trait.COW | Trait.REUSE) == Trait.REUSE  # alone by now
    assert deps(bundle, copied) == [made]
    bit = int(plan.anon_slot[at(bundle, new)])
    assert plan.anon_initial[bit] == 1  # dup_mmap gave it one, before anybody can race
    assert not traits(bundle, new) & Trait.TABLE_MISSING  # fork has built the table


def test_a_child_of_an_untouched_mapping_has_no_anon_vma() -> None:
    tape = processes(0, 1)
    tape.mmap(A, 4)
    child_of(tape, OpKind.FORK, 2)
    first = tape.fault(A, WRITE, tid=2, address_space=1)
    bundle = tape.plan()
    assert traits(bundle, first) & Trait.TABLE_MISSING
    assert bundle.plan.anon_initial[bundle.plan.anon_slot[at(bundle, first)]] == 0


def test_a_vfork_child_gives_the_address_space_back() -> None:
    tape = processes(0, 0)
    tape.mmap(A, 4)
    made = child_of(tape, OpKind.VFORK, 2)
    shared = tape.fault(A, WRITE, tid=2)
    left = tape.op(OpKind.EXEC, tid=2)
    own = tape.mmap(A, 2, tid=2, address_space=1)
    later = tape.fault(A, PROTECTED)
    bundle = tape.plan()
    plan = bundle.plan
    assert traits(bundle, made) & Trait.SHARES_MM
    assert plan.op[at(bundle, left)] == PlanOp.VFORK_EXIT
    assert traits(bundle, left) & Trait.SHARES_MM
    assert plan.mm[at(bundle, shared)] == plan.mm[at(bundle, later)] != plan.mm[at(bundle, own)]
    assert deps(bundle, shared) == [made]
    assert deps(bundle, later) == [left]  # the parent sleeps until then
    assert not marks(bundle, left)


def test_a_process_that_shares_the_address_space_counts_as_its_user() -> None:
    tape = processes(0, 0)
    alone = tape.mmap(A, 4)
    made = child_of(tape, OpKind.CLONE, 2)
    both = tape.fault(A, WRITE, tid=2)
    gone = tape.munmap(A, 4)
    bundle = tape.plan()
    assert bundle.plan.n_mms == 1
    assert bundle.plan.mm_users[0] == 2
    assert traits(bundle, alone) & Trait.SINGLE_THREADED
    assert not traits(bundle, both) & Trait.SINGLE_THREADED
    assert deps(bundle, both) == [made]
    assert deps(bundle, gone) == [both]


def test_the_last_exit_waits_for_everybody_and_removes_every_vma() -> None:
    tape = Tape(threads=2)
    tape.mmap(A, 4)
    tape.mmap(A + 64 * PAGE, 4, prot=1)
    other = tape.fault(A, WRITE, tid=2)
    last = tape.op(OpKind.PROCESS_EXIT)
    bundle = tape.plan()
    assert bundle.plan.op[at(bundle, last)] == PlanOp.PROCESS_EXIT
    assert [s for s, _ in marks(bundle, last)] == [MarkSet.REMOVED] * 2
    assert deps(bundle, last) == [other]
    assert bundle.plan.pages[at(bundle, last)] == 1


@pytest.mark.parametrize(("mode", "advise", "huge"), [
    ("never", True, False), ("madvise", False, False), ("madvise", True, True),
    ("always", False, True),
])  # fmt: skip
def test_the_first_fault_of_a_whole_table_maps_a_huge_page(
    mode: Any, advise: bool, huge: bool
) -> None:
    tape = Tape()
    tape.mmap(A, 512)
    if advise:
        tape.op(OpKind.MADVISE, address=A, length=TABLE, flags=14, result=0)
    first = tape.fault(A + 5 * PAGE, WRITE)
    gone = tape.munmap(A, 512)
    bundle = tape.plan(huge_pages=mode)
    assert bool(traits(bundle, first) & Trait.HUGE) == huge
    assert bundle.plan.pages[at(bundle, first)] == (512 if huge else 1)
    assert bundle.plan.pages[at(bundle, gone)] == (512 if huge else 1)
    assert bundle.counters["huge_guessed"] == int(huge)


def test_a_second_fault_says_that_it_was_no_huge_page() -> None:
    tape = Tape()
    tape.mmap(A, 512)
    tape.fault(A, WRITE)
    second = tape.fault(A + PAGE, WRITE)
    gone = tape.munmap(A, 512)
    bundle = tape.plan(huge_pages="always")
    assert not traits(bundle, second) & (Trait.HUGE | Trait.PRESENT)
    assert bundle.plan.pages[at(bundle, gone)] == 2
    assert bundle.counters["huge_contradicted"] == 1


def test_khugepaged_is_not_guessed() -> None:
    """Its work is no operation of the program: pages it may have collapsed stay as they were."""
    tape = Tape()
    tape.mmap(A, 512)
    tape.op(OpKind.MADVISE, address=A, length=TABLE, flags=14, result=0)
    for n in range(0, 512, 2):
        tape.fault(A + n * PAGE, WRITE if n else READ, fault_class=2 if n == 0 else 1)
    bundle = tape.plan()
    assert bundle.counters["huge_guessed"] == 0
    assert (bundle.plan.pages[2:] == 1).all()


def _stack(tape: Tape, start: int, pages: int) -> None:
    tape.vmas.append(
        {
            "address_space": 0, "ns": 0, "start": start, "length": pages * PAGE, "prot": RW,
            "flags": 0x102, "name": "[stack]", "source": "exec",
        }
    )  # fmt: skip


def test_the_stack_grows_to_the_fault_below_it() -> None:
    tape = Tape()
    _stack(tape, A, 8)
    grown = tape.fault(A - 3 * PAGE, WRITE)
    inside = tape.fault(A - PAGE, WRITE)
    bundle = tape.plan()
    wanted = Trait.STACK_GROWTH | Trait.STRUCTURAL | Trait.GROWSDOWN
    assert traits(bundle, grown) & wanted == wanted
    assert [s for s, _ in marks(bundle, grown)] == [MarkSet.TARGETS]
    assert bundle.plan.vma_first_page[at(bundle, grown)] == A // PAGE - 3
    assert not traits(bundle, inside) & Trait.STACK_GROWTH
    assert bundle.counters["unknown_faults"] == 0


def test_the_guard_gap_of_the_stack_stays_free() -> None:
    tape = Tape()
    _stack(tape, A, 8)
    tape.mmap(A - 300 * PAGE, 100)
    near = tape.fault(A - 100 * PAGE, WRITE)  # 100 pages above the mapping: less than 256
    bundle = tape.plan()
    assert not traits(bundle, near) & Trait.STACK_GROWTH
    assert traits(bundle, near) & Trait.UNKNOWN_VMA
    assert bundle.counters["unknown_faults"] == 1


def test_a_thread_stack_is_a_mapping_that_does_not_grow() -> None:
    tape = Tape()
    tape.mmap(A, 512, flags=ANON | 0x20000)  # MAP_STACK
    guard = tape.op(OpKind.MPROTECT, address=A, length=PAGE, prot=0, result=0)
    used = tape.fault(A + TABLE - PAGE, WRITE)
    below = tape.fault(A + 10, WRITE, fault_class=3)
    bundle = tape.plan(huge_pages="always")
    assert traits(bundle, guard) & Trait.SPLITS
    assert not traits(bundle, used) & (Trait.GROWSDOWN | Trait.HUGE)  # VM_NOHUGEPAGE since 6.7
    assert traits(bundle, below) & Trait.ACCESS_ERROR


def test_the_break_grows_and_shrinks_its_vma() -> None:
    tape = Tape()
    query = tape.op(OpKind.BRK, address2=0, result=A)
    grown = tape.op(OpKind.BRK, address2=A + 4 * PAGE, result=A + 4 * PAGE)
    more = tape.op(OpKind.BRK, address2=A + 6 * PAGE, result=A + 6 * PAGE)
    touched = tape.fault(A + 5 * PAGE, WRITE)
    shrunk = tape.op(OpKind.BRK, address2=A + 3 * PAGE + 5, result=A + 3 * PAGE + 5)
    bundle = tape.plan()
    plan = bundle.plan
    ops = [PlanOp(int(plan.op[at(bundle, row)])) for row in (query, grown, more, shrunk)]
    assert ops == [PlanOp.BRK_QUERY, PlanOp.BRK_GROW, PlanOp.BRK_GROW, PlanOp.BRK_SHRINK]
    assert [s for s, _ in marks(bundle, grown)] == [MarkSet.CREATED]
    assert [s for s, _ in marks(bundle, more)] == [MarkSet.NEIGHBOURS]
    assert traits(bundle, more) & Trait.MERGES
    assert plan.vma[at(bundle, touched)] == plan.vma[at(bundle, shrunk)]
    assert plan.pages[at(bundle, shrunk)] == 1
    first, last = plan.first_page[at(bundle, shrunk)], plan.last_page[at(bundle, shrunk)]
    assert (first, last) == (A // PAGE + 4, A // PAGE + 5)
    assert not traits(bundle, shrunk) & Trait.HOLE


def test_mremap_moves_pages_and_their_last_users() -> None:
    tape = Tape(threads=2)
    tape.mmap(A, 4)
    tape.fault(A, WRITE)
    other = tape.fault(A + PAGE, WRITE, tid=2)
    there = A + 8 * TABLE
    moved = tape.op(
        OpKind.MREMAP, address=A, length2=4 * PAGE, length=8 * PAGE, flags=1, result=there
    )
    read = tape.fault(there + PAGE, PROTECTED, tid=2)
    gone = tape.munmap(there, 8)
    bundle = tape.plan()
    plan = bundle.plan
    assert plan.op[at(bundle, moved)] == PlanOp.MREMAP_MOVE
    assert plan.pages[at(bundle, moved)] == 2
    assert deps(bundle, moved) == [other]
    assert deps(bundle, read) == [moved]
    assert deps(bundle, gone) == [read]
    assert plan.pages[at(bundle, gone)] == 2
    assert plan.anon_slot[at(bundle, read)] == plan.anon_slot[at(bundle, other)]
    assert not traits(bundle, read) & Trait.TABLE_MISSING


def test_mremap_in_place_and_smaller() -> None:
    tape = Tape()
    tape.mmap(A, 4)
    grown = tape.op(OpKind.MREMAP, address=A, length2=4 * PAGE, length=6 * PAGE, result=A)
    smaller = tape.op(OpKind.MREMAP, address=A, length2=6 * PAGE, length=2 * PAGE, result=A)
    bundle = tape.plan()
    ops = [PlanOp(int(bundle.plan.op[at(bundle, row)])) for row in (grown, smaller)]
    assert ops == [PlanOp.MREMAP_GROW, PlanOp.MREMAP_SHRINK]
    assert bundle.plan.vma_last_page[at(bundle, smaller)] == A // PAGE + 5


def test_a_fixed_mapping_over_others_takes_their_pages_and_waits_for_their_users() -> None:
    tape = Tape(threads=2)
    tape.mmap(A, 4)
    tape.mmap(A + 4 * PAGE, 4, prot=1)
    user = tape.fault(A + PAGE, WRITE, tid=2)
    over = tape.mmap(A + PAGE, 6, flags=ANON | 0x10)
    bundle = tape.plan()
    wanted = Trait.OVERLAPS | Trait.PAGES_PRESENT | Trait.SPLITS
    assert traits(bundle, over) & wanted == wanted
    assert deps(bundle, over) == [user]
    assert bundle.plan.pages[at(bundle, over)] == 1
    assert bundle.counters["map_conflicts"] == bundle.counters["stale_pages"] == 0
    sets = [s for s, _ in marks(bundle, over)]
    assert sets.count(MarkSet.REMOVED) == 2
    assert MarkSet.CREATED in sets or MarkSet.NEIGHBOURS in sets


def test_unknown_vmas_are_counted_once_each_table() -> None:
    tape = Tape()
    rows = [tape.fault(A + n * PAGE, WRITE) for n in (0, 1, 600, 601)]
    bundle = tape.plan()
    assert bundle.counters["unknown_faults"] == 2
    assert all(traits(bundle, row) & Trait.UNKNOWN_VMA for row in rows)
    assert len(np.unique(bundle.plan.vma)) == 1  # what lies together is taken for one VMA
