"""Plans of small traces, computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmreplay.address_space.plan import MarkSet, PlanOp, Trait
from mmreplay.address_space.planner import PlanBundle, build_plan
from mmreplay.address_space.rules import load_rules
from mmreplay.address_space.scale import scale_group
from mmreplay.errors import UserError
from mmreplay.schema import DurationKind, FaultClass, OpKind
from mmreplay.trace.store import Header, Trace, frame

A = 0x7F00_0000_0000
PAGE = 4096
RW = 3
ANON = 0x22  # MAP_PRIVATE | MAP_ANONYMOUS
READ, WRITE, PRESENT = 4, 6, 1


class Tape:
    """Writes one operation after another, 1000 ns apart."""

    def __init__(self, threads: int = 1) -> None:
        self.rows: list[dict[str, Any]] = []
        self.vmas: list[dict[str, Any]] = []
        self.threads = [
            {
                "tid": t,
                "pid": 1,
                "address_space": 0,
                "first_ns": 0,
                "last_ns": 1 << 40,
                "comm": "w",
                "group": "w",
            }
            for t in range(1, threads + 1)
        ]

    def op(self, kind: OpKind, tid: int = 1, **columns: Any) -> int:
        self.rows.append(
            {
                "begin_ns": 1000 * (len(self.rows) + 1),
                "pid": 1,
                "tid": tid,
                "address_space": 0,
                "kind": kind,
                "think_cpu_ns": 10,
                "think_blocked_ns": 0,
                **columns,
            }
        )
        return len(self.rows) - 1

    def mmap(self, address: int, pages: int, tid: int = 1, prot: int = RW, **more: Any) -> int:
        columns = {
            "address": address,
            "length": pages * PAGE,
            "address2": 0,
            "prot": prot,
            "flags": ANON,
            "result": address,
            "duration_ns": 100,
            "duration_kind": DurationKind.MEASURED,
            **more,
        }
        return self.op(OpKind.MMAP, tid, **columns)

    def fault(self, address: int, bits: int | None, tid: int = 1, **more: Any) -> int:
        columns = {"fault_class": FaultClass.MINOR, **more}
        return self.op(OpKind.FAULT_USER, tid, address=address, fault_bits=bits, **columns)

    def munmap(self, address: int, pages: int, tid: int = 1) -> int:
        return self.op(OpKind.MUNMAP, tid, address=address, length=pages * PAGE, result=0)

    def trace(self) -> Trace:
        tables = {
            "operations": frame("operations", self.rows),
            "threads": frame("threads", self.threads),
            "vmas": frame("vmas", self.vmas),
        }
        return Trace.in_memory(Header(span_ns=1000 * (len(self.rows) + 1)), tables)

    def plan(self, **choices: Any) -> PlanBundle:
        return build_plan(self.trace(), load_rules("linux-6.18"), **choices)


def at(bundle: PlanBundle, row: int) -> int:
    """Row of the plan that stands for row ``row`` of the trace."""
    (found,) = np.flatnonzero(bundle.plan.row == row)
    return int(found)


def traits(bundle: PlanBundle, row: int) -> Trait:
    return Trait(int(bundle.plan.traits[at(bundle, row)]))


def deps(bundle: PlanBundle, row: int) -> list[int]:
    """Rows of the trace that ``row`` waits for."""
    plan, k = bundle.plan, at(bundle, row)
    return sorted(int(plan.row[d]) for d in plan.dep_op[plan.dep_first[k] : plan.dep_first[k + 1]])


def marks(bundle: PlanBundle, row: int) -> list[tuple[MarkSet, int]]:
    plan, k = bundle.plan, at(bundle, row)
    span = slice(plan.mark_first[k], plan.mark_first[k + 1])
    return [
        (MarkSet(int(s)), int(v))
        for s, v in zip(plan.mark_set[span], plan.mark_vma[span], strict=True)
    ]


def test_anonymous_faults() -> None:
    tape = Tape()
    tape.mmap(A, 4)
    first = tape.fault(A, WRITE)
    zero = tape.fault(A + PAGE, READ)
    over_zero = tape.fault(A + PAGE, WRITE | PRESENT)
    again = tape.fault(A + 2 * PAGE, WRITE)
    bundle = tape.plan()
    common = Trait.ANON | Trait.WRITE | Trait.NEEDS_ANON_VMA | Trait.SINGLE_THREADED
    assert traits(bundle, first) == common | Trait.TABLE_MISSING
    assert traits(bundle, zero) == Trait.ANON | Trait.ZERO_PAGE | Trait.SINGLE_THREADED
    assert traits(bundle, over_zero) == common | Trait.PRESENT | Trait.COW
    assert traits(bundle, again) == common
    plan = bundle.plan
    assert len({int(plan.vma[at(bundle, r)]) for r in range(5)}) == 1
    assert list(plan.anon_initial) == [0]
    assert list(plan.table_initial) == [0]


def test_unmap_waits_for_the_last_use_of_each_other_thread() -> None:
    tape = Tape(threads=3)
    made = tape.mmap(A, 8)
    mine = tape.fault(A, WRITE, tid=1)
    other = tape.fault(A + PAGE, WRITE, tid=2)
    tape.fault(A + 2 * PAGE, WRITE, tid=3)
    last = tape.fault(A + 3 * PAGE, WRITE, tid=3)
    gone = tape.munmap(A, 8, tid=1)
    bundle = tape.plan()
    assert deps(bundle, mine) == []
    assert deps(bundle, other) == [made]
    assert deps(bundle, last) == []  # its thread has waited for the mmap before
    assert deps(bundle, gone) == [other, last]
    assert bundle.plan.pages[at(bundle, gone)] == 4
    assert traits(bundle, gone) & (Trait.PAGES_PRESENT | Trait.FREES_TABLES | Trait.STRUCTURAL) == (
        Trait.PAGES_PRESENT | Trait.FREES_TABLES | Trait.STRUCTURAL
    )
    assert [s for s, _ in marks(bundle, gone)] == [MarkSet.REMOVED]


def test_a_new_life_of_a_region_has_a_new_table_and_vma() -> None:
    tape = Tape()
    tape.mmap(A, 8)
    one = tape.fault(A, WRITE)
    tape.munmap(A, 8)
    tape.mmap(A, 8)
    two = tape.fault(A, WRITE)
    plan = (bundle := tape.plan()).plan
    assert plan.table[at(bundle, one)] != plan.table[at(bundle, two)]
    assert plan.vma[at(bundle, one)] != plan.vma[at(bundle, two)]
    assert traits(bundle, two) & Trait.TABLE_MISSING


def test_an_operation_knows_the_bounds_of_the_vma_it_finds() -> None:
    tape = Tape()
    made = tape.mmap(A, 8)
    grown = tape.mmap(A + 8 * PAGE, 2)  # merges: leaves one VMA of ten pages
    cut = tape.op(OpKind.MPROTECT, address=A + 4 * PAGE, length=PAGE, prot=1, result=0)
    low = tape.fault(A + PAGE, WRITE)
    advice = tape.op(OpKind.MADVISE, address=A + 6 * PAGE, length=PAGE, flags=4, result=0)
    gone = tape.munmap(A + 5 * PAGE, 5)
    hole = tape.munmap(A + 5 * PAGE, 5)
    bundle = tape.plan()

    def bounds(row: int) -> tuple[int, int]:
        plan, k = bundle.plan, at(bundle, row)
        return int(plan.vma_first_page[k]), int(plan.vma_last_page[k])

    first = A // PAGE
    assert bounds(made) == (first, first + 7)
    assert bounds(grown) == bounds(cut) == (first, first + 9)
    assert bounds(low) == (first, first + 3)
    assert bounds(advice) == bounds(gone) == (first + 5, first + 9)
    assert bounds(hole) == (-1, -1)


def test_split_after_the_first_write_shares_the_anon_vma_bit() -> None:
    tape = Tape()
    tape.mmap(A, 8)
    one = tape.fault(A, WRITE)
    cut = tape.op(OpKind.MPROTECT, address=A + 4 * PAGE, length=PAGE, prot=1, result=0)
    low = tape.fault(A + PAGE, WRITE)
    high = tape.fault(A + 6 * PAGE, WRITE)
    plan = (bundle := tape.plan()).plan
    slots = [int(plan.anon_slot[at(bundle, r)]) for r in (one, low, high)]
    assert len(set(slots)) == 1
    assert plan.vma[at(bundle, low)] != plan.vma[at(bundle, high)]
    assert traits(bundle, cut) & Trait.SPLITS


def test_merged_mmap_of_another_thread_is_no_reason_to_wait() -> None:
    tape = Tape(threads=2)
    tape.mmap(A, 4, tid=1)
    tape.mmap(A - 4 * PAGE, 4, tid=2)  # the kernel makes one VMA of the two
    own = tape.fault(A, WRITE, tid=1)
    foreign = tape.fault(A - PAGE, WRITE, tid=1)
    bundle = tape.plan()
    plan = bundle.plan
    assert plan.vma[at(bundle, own)] == plan.vma[at(bundle, foreign)]
    assert deps(bundle, own) == []
    assert deps(bundle, foreign) == [1]


def test_mmap_that_began_before_the_munmap_it_profits_from() -> None:
    tape = Tape(threads=2)
    tape.mmap(A, 4, tid=1)
    # thread 2 begins first, but gets the range that thread 1 unmaps meanwhile
    late = tape.mmap(A, 4, tid=2, duration_ns=5000)
    tape.munmap(A, 4, tid=1)
    bundle = tape.plan()
    assert bundle.counters["map_conflicts"] == 0
    assert not traits(bundle, late) & Trait.OVERLAPS


@pytest.mark.parametrize(
    ("advice", "op"),
    [
        (4, PlanOp.MADVISE_ZAP),
        (8, PlanOp.MADVISE_ZAP),
        (3, PlanOp.MADVISE_WILLNEED),
        (14, PlanOp.MADVISE_FLAGS),
        (20, PlanOp.MADVISE_READ),
        (23, PlanOp.MADVISE_POPULATE),
        (25, PlanOp.MADVISE_COLLAPSE),
        (100, PlanOp.NONE),
        (102, PlanOp.MADVISE_GUARD),
    ],
)
def test_advice(advice: int, op: PlanOp) -> None:
    tape = Tape()
    tape.mmap(A, 4)
    row = tape.op(OpKind.MADVISE, address=A, length=PAGE, flags=advice, result=0)
    bundle = tape.plan()
    assert bundle.plan.op[at(bundle, row)] == op


def test_a_populating_call_makes_the_anon_vma_where_it_is_the_first_to_write() -> None:
    tape = Tape()
    tape.mmap(A, 4)
    read, write, again = (
        tape.op(OpKind.MADVISE, address=A, length=PAGE, flags=advice, result=0)
        for advice in (22, 23, 23)  # POPULATE_READ, POPULATE_WRITE
    )
    bundle = tape.plan()
    assert list(bundle.plan.anon_initial) == [0]
    assert {int(bundle.plan.anon_slot[at(bundle, r)]) for r in (read, write, again)} == {0}
    nothing = [bool(traits(bundle, row) & Trait.NO_CHANGE) for row in (read, write, again)]
    assert nothing == [False, False, True]
    assert traits(bundle, write) & Trait.COW  # in the place of the zero page


def test_failed_calls_run_their_program_only_after_the_lock() -> None:
    tape = Tape()
    before = tape.op(OpKind.MPROTECT, address=A, length=PAGE, prot=1, result=-22, errno=22)
    under = tape.op(OpKind.MPROTECT, address=A, length=PAGE, prot=1, result=-12, errno=12)
    bundle = tape.plan()
    assert bundle.plan.op[at(bundle, before)] == PlanOp.NONE
    assert bundle.plan.op[at(bundle, under)] == PlanOp.MPROTECT
    assert traits(bundle, under) & Trait.FAILED


@pytest.mark.parametrize(
    ("kind", "op"),
    [
        (OpKind.MPROTECT, PlanOp.NONE),
        (OpKind.MADVISE, PlanOp.NONE),
        (OpKind.MSYNC, PlanOp.NONE),
        (OpKind.MINCORE, PlanOp.NONE),
        (OpKind.MBIND, PlanOp.NONE),
        (OpKind.MSEAL, PlanOp.NONE),
        (OpKind.MLOCK, PlanOp.MUNLOCK),  # the lock for writing, but nothing to populate
        (OpKind.MUNLOCK, PlanOp.MUNLOCK),
    ],
)
def test_a_call_on_nothing(kind: OpKind, op: PlanOp) -> None:
    """As counted on 6.18.44."""
    tape = Tape()
    tape.mmap(A, 4)
    row = tape.op(kind, address=A, length=0, flags=4, prot=RW)
    assert tape.plan().plan.op[row] == op


def test_guards_make_the_anon_vma() -> None:
    """Of a VMA that has none yet: under mmap_lock, also where the VMA lock would do (6.19)."""
    tape = Tape()
    tape.mmap(A, 8)
    guard = tape.op(OpKind.MADVISE, address=A, length=PAGE, flags=102)
    write = tape.fault(A + 4 * PAGE, WRITE)
    bundle = tape.plan()
    assert list(bundle.plan.anon_initial) == [0]
    assert {int(bundle.plan.anon_slot[row]) for row in (guard, write)} == {0}


def test_map_nonblock_undoes_map_populate() -> None:
    tape = Tape()
    tape.mmap(A, 4, flags=ANON | 0x8000)
    tape.mmap(A + 64 * PAGE, 4, flags=ANON | 0x8000 | 0x10000)
    bundle = tape.plan()
    assert [bool(traits(bundle, row) & Trait.POPULATE) for row in (0, 1)] == [True, False]


@pytest.mark.parametrize(
    ("advice", "address", "op"),
    [
        (9, A, PlanOp.MADVISE_REMOVE),  # known since ever and aligned: the VMA forbids it
        (20, A, PlanOp.MADVISE_READ),
        (9, A + 1, PlanOp.NONE),
        (12, A, PlanOp.NONE),  # may be configured out
        (999, A, PlanOp.NONE),
    ],
)
def test_an_advice_that_the_vma_refuses_has_held_the_lock(
    advice: int, address: int, op: PlanOp
) -> None:
    tape = Tape()
    tape.mmap(A, 4)
    row = tape.op(OpKind.MADVISE, address=address, length=PAGE, flags=advice, result=-22, errno=22)
    bundle = tape.plan()
    assert bundle.plan.op[at(bundle, row)] == op


def test_what_dontunmap_leaves_has_no_anon_vma() -> None:
    tape = Tape()
    tape.mmap(A, 2)
    before = tape.fault(A, WRITE)
    to = A + 64 * PAGE
    tape.op(OpKind.MREMAP, address=A, length=2 * PAGE, length2=2 * PAGE, flags=5, result=to)
    moved, left = tape.fault(to + PAGE, WRITE), tape.fault(A, WRITE)
    bundle = tape.plan()
    slot = {row: int(bundle.plan.anon_slot[at(bundle, row)]) for row in (before, moved, left)}
    assert slot[before] == slot[moved] != slot[left]


def test_segments_of_system_v_have_no_map_pages() -> None:
    tape = Tape()
    tape.op(OpKind.SHMAT, address=A, length=4 * PAGE, flags=0, result=A)
    row = tape.fault(A, WRITE)
    bundle = tape.plan()
    assert traits(bundle, row) & Trait.NO_MAP_PAGES
    assert traits(bundle, row) & Trait.SHMEM


def test_detaching_a_segment_takes_all_of_its_pages_away() -> None:
    tape = Tape()
    again = []
    for _ in range(2):
        place = {"address": A, "length": 4 * PAGE, "flags": 0, "result": A}
        begin = 1000 * (len(tape.rows) + 1)
        tape.op(OpKind.SHMAT, **place, duration_ns=100, duration_kind=DurationKind.MEASURED)
        tape.vmas.append(  # the record that the call wrote
            {"address_space": 0, "ns": begin + 50, "start": A, "length": 4 * PAGE, "prot": RW}
            | {"flags": 1, "inode": len(again) + 9, "device": 1, "name": "/SYSV", "source": "mmap2"}
        )
        for page in range(3):
            tape.fault(A + page * PAGE, WRITE)
        again.append(tape.op(OpKind.SHMDT, address=A, result=0))
    bundle = tape.plan()
    for row in again:
        assert bundle.plan.pages[at(bundle, row)] == 3
        assert bundle.plan.last_page[at(bundle, row)] == (A >> 12) + 3
    assert bundle.counters["stale_pages"] == bundle.counters["learnt_mappings"] == 0
    assert bundle.counters["map_conflicts"] == 0


@pytest.mark.parametrize("flags", [0, 0x10000])
def test_remap_file_pages_fills_the_range_unless_told_not_to(flags: int) -> None:
    tape = Tape()
    tape.mmap(A, 4, flags=0x21)
    row = tape.op(OpKind.REMAP_FILE_PAGES, address=A, length=PAGE, flags=flags, result=0)
    bundle = tape.plan()
    assert bundle.plan.op[at(bundle, row)] == PlanOp.REMAP_FILE_PAGES
    assert bool(traits(bundle, row) & Trait.POPULATE) == (flags == 0)


def test_unknown_addresses_are_counted_and_holes_are_not_mapped() -> None:
    tape = Tape()
    guess = tape.fault(A, WRITE)
    hole = tape.fault(A + (1 << 30), READ, fault_class=FaultClass.FAILED)
    bundle = tape.plan()
    assert traits(bundle, guess) & Trait.UNKNOWN_VMA
    assert bundle.counters["unknown_faults"] == 1
    assert traits(bundle, hole) & Trait.HOLE
    assert bundle.plan.vma[at(bundle, hole)] == -1


@pytest.mark.parametrize(
    ("kind", "prot", "hole", "op", "traits_expected"),
    [
        # write(2) from an untouched page: the copy runs under pagefault_disable()
        (OpKind.FAULT_KERNEL, RW, False, PlanOp.NONE, Trait.FAILED | Trait.KERNEL_MODE),
        (OpKind.FAULT_KERNEL, RW, True, PlanOp.FAULT, Trait.HOLE | Trait.KERNEL_MODE),
        (OpKind.FAULT_KERNEL, 0, False, PlanOp.FAULT, Trait.ACCESS_ERROR | Trait.KERNEL_MODE),
        (OpKind.FAULT_USER, RW, False, PlanOp.FAULT, Trait.FAILED),  # SIGBUS
        (OpKind.FAULT_USER, RW, True, PlanOp.FAULT, Trait.HOLE),
        (OpKind.FAULT_USER, 0, False, PlanOp.FAULT, Trait.ACCESS_ERROR),
    ],
)
@pytest.mark.parametrize("bits", [READ, WRITE])
def test_failed_faults_lock_unless_page_faults_were_disabled(
    kind: OpKind, prot: int, hole: bool, op: PlanOp, traits_expected: Trait, bits: int
) -> None:
    tape = Tape()
    tape.mmap(A, 4, prot=prot)
    failed = tape.op(
        kind,
        address=A + (1 << 30) if hole else A,
        fault_bits=bits if kind is OpKind.FAULT_USER else bits & ~4,
        fault_class=FaultClass.FAILED,
        duration_kind=DurationKind.END_UNSEEN,
    )
    retried = tape.op(kind, address=A, fault_bits=bits, fault_class=FaultClass.MINOR)
    bundle = tape.plan()
    assert bundle.plan.op[at(bundle, failed)] == op
    assert traits(bundle, failed) & traits_expected == traits_expected
    assert bundle.plan.pages[at(bundle, failed)] == 0
    # a failed fault maps no page, makes no table and gives the VMA no anon_vma
    assert bundle.plan.op[at(bundle, retried)] == PlanOp.FAULT
    assert not traits(bundle, retried) & Trait.PRESENT
    assert traits(bundle, retried) & Trait.TABLE_MISSING
    assert not bundle.plan.anon_initial.any()


@pytest.mark.parametrize("source", ["mmap2", "snapshot"])
def test_a_mapping_recorded_as_anonymous_is_no_file(source: str) -> None:
    """perf calls the mappings of MAP_ANONYMOUS //anon: that is no path."""
    tape = Tape()
    tape.vmas.append(
        {
            "address_space": 0,
            "ns": 0 if source == "snapshot" else 1050,
            "start": A,
            "length": 4 * PAGE,
            "prot": RW,
            "flags": 0x02,
            "inode": 0,
            "device": 0,
            "name": "//anon",
            "source": source,
        }
    )
    if source == "mmap2":
        tape.mmap(A, 4)
    fault = tape.fault(A, WRITE)
    bundle = tape.plan()
    assert traits(bundle, fault) & Trait.ANON
    assert not traits(bundle, fault) & (Trait.FILE | Trait.COW)
    assert bundle.plan.n_files == 0


def test_clones_map_and_fault_in_ranges_of_their_own() -> None:
    tape = Tape(threads=1)
    tape.mmap(A, 4)
    tape.fault(A, WRITE)
    tape.munmap(A, 4)
    trace = tape.trace()
    bundle = build_plan(
        trace, load_rules("linux-6.18"), threads=scale_group(trace, "w", 3), huge_pages="never"
    )
    plan = bundle.plan
    assert plan.n_threads == 3
    assert plan.n_ops == 9
    pages = [int(plan.first_page[plan.thread_first[t] + 1]) for t in range(3)]
    assert len(set(pages)) == 3
    assert len(plan.dep_op) == 0
    assert bundle.notes == ("upper bound: memory map only",)


def test_bad_arguments() -> None:
    tape = Tape()
    with pytest.raises(UserError, match="no operations"):
        tape.plan()
    tape.mmap(A, 1)
    with pytest.raises(UserError, match="window"):
        tape.plan(window=(0, 9))
    with pytest.raises(UserError, match='did you mean "w"'):
        scale_group(tape.trace(), "ww", 2)
    with pytest.raises(UserError, match="threads"):
        scale_group(tape.trace(), "w", 0)
