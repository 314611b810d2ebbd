"""What is known of a mapping twice, or was guessed, is no conflict."""

from __future__ import annotations

from typing import Any

from test_plan_rules import ANON, PAGE, RW, WRITE, A, Tape, at, deps, traits

from mmreplay.address_space.plan import PlanOp, Trait
from mmreplay.schema import DurationKind, OpKind


def record(tape: Tape, ns: int, start: int, pages: int, **more: Any) -> None:
    """An MMAP2 record, as perf_event_mmap writes it: of the VMA after the merge."""
    tape.vmas.append(
        {
            "address_space": 0,
            "ns": ns,
            "start": start,
            "length": pages * PAGE,
            "prot": RW,
            "flags": 0x02,
            "inode": 0,
            "device": 0,
            "name": "//anon",
            "source": "mmap2",
            **more,
        }
    )


def protect(tape: Tape, start: int, pages: int, prot: int, duration_ns: int = 100) -> int:
    return tape.op(
        OpKind.MPROTECT,
        address=start,
        length=pages * PAGE,
        prot=prot,
        result=0,
        duration_ns=duration_ns,
        duration_kind=DurationKind.MEASURED,
    )


def test_the_record_of_a_merged_mapping_belongs_to_the_call_that_extended_it() -> None:
    tape = Tape(threads=2)
    tape.mmap(A, 4)
    record(tape, 1050, A, 4)
    other = tape.mmap(A + 64 * PAGE, 4, tid=2, duration_ns=3000)  # writes its record late
    tape.mmap(A + 4 * PAGE, 4)
    record(tape, 3050, A, 8)
    record(tape, 4990, A + 64 * PAGE, 4)
    cut = tape.munmap(A + 6 * PAGE, 2)
    again = tape.mmap(A + 6 * PAGE, 2)
    record(tape, 1000 * (again + 1) + 50, A, 8)
    bundle = tape.plan()
    assert bundle.counters["map_conflicts"] == 0
    assert bundle.counters["learnt_mappings"] == 0
    assert bundle.counters["mapping_record_matched"] == 4
    assert bundle.plan.vma[at(bundle, other)] != bundle.plan.vma[at(bundle, again)]
    assert traits(bundle, cut) & Trait.SPLITS or bundle.plan.vmas[at(bundle, cut)] == 1


def test_the_record_of_a_break_belongs_to_its_call() -> None:
    tape = Tape()
    tape.op(OpKind.BRK, address2=0, result=A)
    grown = tape.op(
        OpKind.BRK,
        address=A,
        length=4 * PAGE,
        address2=A + 4 * PAGE,
        result=A + 4 * PAGE,
        duration_ns=100,
        duration_kind=1,
    )
    record(tape, 1000 * (grown + 1) + 50, A, 4, name="[heap]")
    fault = tape.fault(A, WRITE)
    bundle = tape.plan()
    assert bundle.counters["learnt_mappings"] == 0
    assert bundle.plan.vma[at(bundle, fault)] == bundle.plan.vma[at(bundle, grown)]


def test_the_records_of_a_protection_belong_to_its_call() -> None:
    tape = Tape(threads=2)
    tape.mmap(A, 4)
    before = tape.fault(A, WRITE)
    protect(tape, A, 2, 1)
    record(tape, 3050, A, 2, prot=1)
    # back again it merges with all of the rest, of which another thread unmaps a part meanwhile
    protect(tape, A, 2, RW, duration_ns=1800)
    tape.munmap(A + 3 * PAGE, 1, tid=2)
    record(tape, 5200, A, 4)
    after = tape.fault(A + PAGE, WRITE)
    tape.mmap(A + 3 * PAGE, 1, tid=2)
    bundle = tape.plan()
    assert bundle.counters["learnt_mappings"] == bundle.counters["map_conflicts"] == 0
    # the VMA keeps the anon_vma that the first write gave it
    assert bundle.plan.anon_slot[at(bundle, after)] == bundle.plan.anon_slot[at(bundle, before)]


def test_a_waiting_call_has_the_last_record_of_its_range() -> None:
    tape = Tape(threads=3)
    # thread 1 waits for the lock while thread 2 gets, names and gives back the very range
    late = tape.mmap(A, 4, tid=1, flags=0x02, fd=5, duration_ns=4500)
    taken = tape.mmap(A, 4, tid=2)
    record(tape, 2050, A, 4)
    tape.munmap(A, 4, tid=2)
    record(tape, 5400, A, 4, inode=7, device=1, name="/lib/own")
    tape.mmap(A + 4 * PAGE, 2, tid=3)
    record(tape, 4050, A + 4 * PAGE, 2)
    bundle = tape.plan()
    assert bundle.counters["learnt_mappings"] == bundle.counters["map_conflicts"] == 0
    assert bundle.counters["mapping_record_matched"] == 3
    assert bundle.counters["file_guessed"] == 0
    assert traits(bundle, late) & Trait.FILE
    assert not traits(bundle, taken) & Trait.FILE


def test_a_learnt_mapping_grows_the_part_that_is_known() -> None:
    tape = Tape()
    made = tape.mmap(A, 4)
    one = tape.fault(A, WRITE)
    record(tape, 3500, A, 8)  # the kernel has merged: a call was not recorded
    tape.fault(A, WRITE)
    two = tape.fault(A + 6 * PAGE, WRITE)
    bundle = tape.plan()
    plan = bundle.plan
    assert bundle.counters["learnt_mappings"] == 1
    assert bundle.counters["unknown_faults"] == 0
    assert len({int(plan.vma[at(bundle, row)]) for row in (made, one, two)}) == 1
    assert plan.anon_slot[at(bundle, one)] == plan.anon_slot[at(bundle, two)]


def test_a_guessed_vma_gives_way_to_what_is_placed_freely() -> None:
    tape = Tape()
    tape.fault(A + 100 * PAGE, WRITE)
    made = tape.mmap(A + 8 * PAGE, 4)
    own = tape.fault(A + 8 * PAGE, WRITE)
    low = tape.fault(A, WRITE)
    high = tape.fault(A + 12 * PAGE, WRITE)
    bundle = tape.plan()
    plan = bundle.plan
    assert bundle.counters["unknown_faults"] == 1
    assert bundle.counters["map_conflicts"] == 0
    assert not traits(bundle, made) & Trait.OVERLAPS
    assert not traits(bundle, own) & Trait.UNKNOWN_VMA
    assert len({int(plan.vma[at(bundle, row)]) for row in (low, own, high)}) == 3


def test_a_fixed_mapping_does_replace_the_guess() -> None:
    tape = Tape()
    tape.fault(A + 100 * PAGE, WRITE)
    made = tape.mmap(A + 8 * PAGE, 4, flags=ANON | 0x10)
    bundle = tape.plan()
    assert traits(bundle, made) & Trait.OVERLAPS


def test_what_is_placed_over_a_known_mapping_is_a_conflict() -> None:
    tape = Tape()
    tape.mmap(A, 4)
    tape.mmap(A, 2)
    counters = tape.plan().counters
    assert counters["map_conflicts"] == counters["conflicts_called"] == 1


def test_conflicts_are_counted_by_where_the_mapping_was_known_from() -> None:
    tape = Tape(threads=2)
    tape.threads[1] |= {"pid": 2, "address_space": 1, "start_ns": 2000}
    record(tape, 0, A, 4, source="snapshot")
    record(tape, 0, A + 64 * PAGE, 4, source="snapshot")
    tape.mmap(A, 4)
    tape.op(OpKind.FORK, child=2, result=2)
    tape.mmap(A + 65 * PAGE, 4, tid=2, address_space=1)
    tape.mmap(A + 66 * PAGE, 4, tid=2, address_space=1)
    counters = tape.plan().counters
    assert counters["conflicts_listed"] == 1
    assert counters["conflicts_inherited"] == 1
    assert counters["conflicts_called"] == 1
    assert counters["map_conflicts"] == 3


def test_exec_leaves_its_space_when_the_thread_is_seen_in_the_new_one() -> None:
    tape = Tape()
    tape.mmap(A, 4)
    tape.fault(A, WRITE)
    left = tape.op(OpKind.EXEC, length=0)
    argument = tape.op(OpKind.FAULT_KERNEL, address=A + PAGE, fault_bits=0, fault_class=1)
    first = tape.mmap(A, 2, address_space=1)
    tape.fault(A, WRITE, address_space=1)
    bundle = tape.plan()
    plan = bundle.plan
    assert bundle.counters["map_conflicts"] == bundle.counters["unknown_faults"] == 0
    assert plan.op[at(bundle, left)] == PlanOp.EXEC
    assert traits(bundle, left) & (Trait.LAST_USER | Trait.PAGES_PRESENT) == (
        Trait.LAST_USER | Trait.PAGES_PRESENT
    )
    assert plan.pages[at(bundle, left)] == 1
    assert plan.mm[at(bundle, argument)] == plan.mm[at(bundle, left)]
    assert plan.mm[at(bundle, first)] != plan.mm[at(bundle, left)]
    assert deps(bundle, first) == []
