"""Which locks each kernel holds while it waits for a TLB shootdown, operation by operation.

What that means for those who wait is in tests/engine/test_shootdown_rules.py; here it is read
off the shipped models.
"""

from __future__ import annotations

import pytest

from mmreplay.address_space.plan import MarkSet, PlanOp, Trait
from mmreplay.locking import list_models, load_model
from mmreplay.locking.isa import RuntimeBit
from mmreplay.locking.walk import Walk, walk

KERNELS = [m.name for m in list_models() if m.name.startswith("linux-")]
READ, WRITE = ("mmap_lock read",), ("mmap_lock write",)
TOUCHED = Trait.ANON | Trait.PAGES_PRESENT
COW = Trait.ANON | Trait.WRITE | Trait.PRESENT | Trait.COW
FIXED = TOUCHED | Trait.OVERLAPS


def release(name: str) -> tuple[int, int]:
    major, minor = name.removeprefix("linux-").split(".")
    return int(major), int(minor)


def done(
    name: str, op: PlanOp, traits: Trait = TOUCHED, sets: dict[MarkSet, int] | None = None
) -> Walk:
    return walk(load_model(name), op, traits, sets or {}, RuntimeBit.VMA_ANON_VMA)


def under(found: Walk) -> set[tuple[str, ...]]:
    """The locks held at each flush."""
    return {held for step, held in zip(found.steps, found.under, strict=True) if step == "flush mm"}


@pytest.mark.parametrize("name", KERNELS)
def test_what_unmaps_flushes_after_the_downgrade(name: str) -> None:
    """munmap, brk and mremap that shrink; below a stack only from 6.5 on."""
    removed = {MarkSet.REMOVED: 1}
    for op in (PlanOp.MUNMAP, PlanOp.BRK_SHRINK, PlanOp.MREMAP_SHRINK):
        assert under(done(name, op, sets=removed)) == {READ}
    stack = under(done(name, PlanOp.MUNMAP, TOUCHED | Trait.NEXT_GROWSDOWN, removed))
    assert stack == {READ if release(name) >= (6, 5) else WRITE}


@pytest.mark.parametrize("name", KERNELS)
def test_what_changes_mappings_flushes_under_the_write_lock(name: str) -> None:
    """MAP_FIXED over mappings, mprotect, fork; the move of mremap under both page-table locks."""
    assert under(done(name, PlanOp.MMAP, FIXED, {MarkSet.REMOVED: 1})) == {WRITE}
    assert under(done(name, PlanOp.MPROTECT, sets={MarkSet.TARGETS: 1})) == {WRITE}
    assert under(done(name, PlanOp.FORK, sets={MarkSet.PARENT_VMAS: 2})) == {WRITE}
    assert under(done(name, PlanOp.MREMAP_MOVE)) == {(*WRITE, "ptl write")}


@pytest.mark.parametrize("name", KERNELS)
def test_madvise_flushes_under_the_read_lock_and_dontneed_under_none_from_6_17_on(
    name: str,
) -> None:
    assert under(done(name, PlanOp.MADVISE_READ)) == {READ}
    new = release(name) >= (6, 17)
    assert under(done(name, PlanOp.MADVISE_ZAP)) == {() if new else READ}
    assert under(done(name, PlanOp.MADVISE_ZAP, TOUCHED | Trait.MULTI_VMA)) == {READ}


@pytest.mark.parametrize("name", KERNELS)
def test_a_copy_on_write_flushes_under_the_page_table_lock(name: str) -> None:
    outer = ("vma_lock read",) if release(name) >= (6, 4) else READ
    assert under(done(name, PlanOp.FAULT, COW)) == {(*outer, "ptl write")}


@pytest.mark.parametrize("name", [n for n in KERNELS if release(n) >= (6, 1)])
def test_collapse_flushes_with_everything_held(name: str) -> None:
    found = under(done(name, PlanOp.MADVISE_COLLAPSE, Trait.ANON, {MarkSet.TARGETS: 1}))
    assert found == {(*WRITE, "anon_vma_lock write", "pmdl write")}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("op", [PlanOp.MUNMAP, PlanOp.MADVISE_ZAP])
def test_pages_are_freed_after_the_flush(name: str, op: PlanOp) -> None:
    steps = done(name, op, sets={MarkSet.REMOVED: 1}).steps
    free = next(i for i, step in enumerate(steps) if step.startswith("cost free_page"))
    assert steps.index("flush mm") < free


def flushes(found: Walk) -> list[str]:
    return [step for step in found.steps if step.startswith("flush ")]


@pytest.mark.parametrize("name", KERNELS)
def test_freed_page_tables_are_flushed_from_lazy_cpus_too(name: str) -> None:
    """Once, with the pages where there are any; at the end of an address space all tables go."""
    removed = {MarkSet.REMOVED: 1}
    frees = TOUCHED | Trait.FREES_TABLES
    assert flushes(done(name, PlanOp.MUNMAP, sets=removed)) == ["flush mm"]
    assert flushes(done(name, PlanOp.MUNMAP, frees, removed)) == ["flush tables"]
    empty = Trait.ANON | Trait.FREES_TABLES  # DONTNEED took the pages, and left the tables
    assert flushes(done(name, PlanOp.MUNMAP, empty, removed)) == ["flush tables"]
    assert flushes(done(name, PlanOp.MMAP, frees | Trait.OVERLAPS, removed)) == ["flush tables"]
    assert flushes(done(name, PlanOp.PROCESS_EXIT)) == ["flush tables"]
