# ruff: noqa: E501
"""The shipped models, operation by operation: what each takes when nobody is in the way.

The expected numbers are those of the counts in ``datasets/lockcounts`` and, where no
count exists, of the kernel sources that the models cite.
"""

from __future__ import annotations

import pytest

from mmreplay.address_space.plan import MarkSet, PlanOp, Trait
from mmreplay.locking import list_models, load_model
from mmreplay.locking.isa import RuntimeBit
from mmreplay.locking.walk import walk

OLD, NEW = load_model("linux-6.1"), load_model("linux-6.18")
ANON = Trait.ANON
FIRST = ANON | Trait.WRITE | Trait.NEEDS_ANON_VMA
HAS = RuntimeBit.VMA_ANON_VMA
P, S = PlanOp, MarkSet

#: operation, traits, sets, bits -> mmap_lock (read, write, downgrade) under 6.1 and 6.18,
#: then VMA lock (read, marks) under 6.18
CASES = {
    "first write of a VMA": (P.FAULT, FIRST, {}, 0, (1, 0, 0), (1, 0, 0), (1, 0)),
    "later write": (P.FAULT, FIRST, {}, HAS, (1, 0, 0), (0, 0, 0), (1, 0)),
    "zero page": (P.FAULT, ANON | Trait.ZERO_PAGE, {}, 0, (1, 0, 0), (0, 0, 0), (1, 0)),
    "new table": (P.FAULT, FIRST | Trait.TABLE_MISSING, {}, HAS, (1, 0, 0), (0, 0, 0), (1, 0)),
    "copy on write": (
        P.FAULT, FIRST | Trait.PRESENT | Trait.COW, {}, HAS, (1, 0, 0), (0, 0, 0), (1, 0),
    ),
    "huge, first": (P.FAULT, FIRST | Trait.HUGE, {}, 0, (1, 0, 0), (1, 0, 0), (1, 0)),
    "hugetlb": (P.FAULT, Trait.HUGETLB | Trait.WRITE, {}, 0, (1, 0, 0), (0, 0, 0), (1, 0)),
    "kernel mode": (P.FAULT, FIRST | Trait.KERNEL_MODE, {}, 0, (1, 0, 0), (1, 0, 0), (0, 0)),
    "file, around": (P.FAULT, Trait.FILE | Trait.FAULT_AROUND, {}, 0, (1, 0, 0), (0, 0, 0), (1, 0)),
    "file, major": (P.FAULT, Trait.FILE | Trait.NEEDS_IO, {}, 0, (2, 0, 0), (1, 0, 0), (1, 0)),
    "file, shared write": (
        P.FAULT, Trait.FILE | Trait.SHARED | Trait.WRITE | Trait.MKWRITE, {}, 0,
        (1, 0, 0), (0, 0, 0), (1, 0),
    ),
    "file, private write, first": (
        P.FAULT, Trait.FILE | Trait.WRITE | Trait.COW | Trait.NEEDS_ANON_VMA, {}, 0,
        (1, 0, 0), (1, 0, 0), (1, 0),
    ),
    "device": (P.FAULT, Trait.FILE | Trait.NO_MAP_PAGES, {}, 0, (1, 0, 0), (1, 0, 0), (1, 0)),
    "userfaultfd": (
        P.FAULT, ANON | Trait.UFFD | Trait.ZERO_PAGE, {}, 0, (2, 0, 0), (1, 0, 0), (1, 0),
    ),
    "no VMA": (P.FAULT, Trait.HOLE | Trait.FAILED, {}, 0, (1, 0, 0), (1, 0, 0), (0, 0)),
    "access error": (P.FAULT, ANON | Trait.ACCESS_ERROR, {}, 0, (1, 0, 0), (0, 0, 0), (1, 0)),
    "stack growth": (
        P.FAULT, FIRST | Trait.STACK_GROWTH, {S.TARGETS: 1}, HAS, (1, 1, 1), (1, 1, 1), (0, 1),
    ),
    "mmap": (P.MMAP, ANON, {S.CREATED: 1}, 0, (0, 1, 0), (0, 1, 0), (0, 1)),
    "mmap, merge of two": (P.MMAP, ANON, {S.NEIGHBOURS: 2}, 0, (0, 1, 0), (0, 1, 0), (0, 2)),
    "mmap, MAP_POPULATE": (
        P.MMAP, ANON | Trait.POPULATE | Trait.WRITE, {S.CREATED: 1}, 0,
        (1, 1, 0), (1, 1, 0), (0, 1),
    ),
    "mmap, failed": (P.MMAP, Trait.FAILED, {}, 0, (0, 1, 0), (0, 1, 0), (0, 0)),
    "mmap, fixed over a middle": (
        P.MMAP, ANON | Trait.OVERLAPS, {S.SPLITS: 1, S.CREATED: 3}, 0,
        (0, 1, 0), (0, 1, 0), (0, 4),
    ),
    "munmap": (P.MUNMAP, ANON, {S.REMOVED: 1}, HAS, (0, 1, 1), (0, 1, 1), (0, 1)),
    "munmap of a middle": (
        P.MUNMAP, ANON | Trait.PAGES_PRESENT | Trait.SPLITS, {S.SPLITS: 1, S.CREATED: 2}, HAS,
        (0, 1, 1), (0, 1, 1), (0, 3),
    ),
    "munmap of a hole": (P.MUNMAP, Trait.HOLE, {}, 0, (0, 1, 0), (0, 1, 0), (0, 0)),
    "munmap below a stack": (
        P.MUNMAP, ANON | Trait.NEXT_GROWSDOWN, {S.REMOVED: 1}, 0, (0, 1, 0), (0, 1, 1), (0, 1),
    ),
    "mprotect": (P.MPROTECT, ANON, {S.TARGETS: 1}, HAS, (0, 1, 0), (0, 1, 0), (0, 1)),
    "mprotect, no change": (P.MPROTECT, ANON | Trait.NO_CHANGE, {}, 0, (0, 1, 0), (0, 1, 0), (0, 0)),
    "DONTNEED": (P.MADVISE_ZAP, ANON | Trait.PAGES_PRESENT, {}, HAS, (1, 0, 0), (0, 0, 0), (1, 0)),
    "DONTNEED over two VMAs": (
        P.MADVISE_ZAP, ANON | Trait.MULTI_VMA, {}, HAS, (1, 0, 0), (1, 0, 0), (1, 0),
    ),
    "DONTNEED, userfaultfd": (
        P.MADVISE_ZAP, ANON | Trait.UFFD, {}, HAS, (1, 0, 0), (1, 0, 0), (1, 0),
    ),
    "COLD": (P.MADVISE_READ, ANON, {}, 0, (1, 0, 0), (1, 0, 0), (0, 0)),
    "REMOVE": (P.MADVISE_REMOVE, Trait.SHMEM | Trait.SHARED, {}, 0, (2, 0, 0), (2, 0, 0), (0, 0)),
    "WILLNEED, anonymous": (P.MADVISE_WILLNEED, ANON, {}, 0, (1, 0, 0), (1, 0, 0), (0, 0)),
    "WILLNEED, file": (P.MADVISE_WILLNEED, Trait.FILE, {}, 0, (2, 0, 0), (2, 0, 0), (0, 0)),
    "WILLNEED, shmem": (P.MADVISE_WILLNEED, Trait.SHMEM, {}, 0, (1, 0, 0), (1, 0, 0), (0, 0)),
    "HUGEPAGE": (P.MADVISE_FLAGS, ANON, {S.TARGETS: 1}, 0, (0, 1, 0), (0, 1, 0), (0, 1)),
    "POPULATE_WRITE": (
        P.MADVISE_POPULATE, ANON | Trait.WRITE, {}, 0, (1, 0, 0), (1, 0, 0), (0, 0),
    ),
    "GUARD_INSTALL": (P.MADVISE_GUARD, ANON, {}, HAS, (0, 0, 0), (1, 0, 0), (0, 0)),
    "COLLAPSE": (P.MADVISE_COLLAPSE, ANON, {S.TARGETS: 1}, HAS, (3, 1, 0), (3, 1, 0), (0, 1)),
    "brk, grow": (P.BRK_GROW, ANON, {S.NEIGHBOURS: 1}, 0, (0, 1, 0), (0, 1, 0), (0, 1)),
    "brk, shrink": (P.BRK_SHRINK, ANON, {S.SPLITS: 1, S.CREATED: 1}, 0, (0, 1, 1), (0, 1, 1), (0, 2)),
    "brk, query": (P.BRK_QUERY, Trait.NO_CHANGE, {}, 0, (0, 1, 0), (0, 1, 0), (0, 0)),
    "mremap, grow": (P.MREMAP_GROW, ANON, {S.TARGETS: 1}, 0, (0, 1, 0), (0, 1, 0), (0, 1)),
    "mremap, shrink": (
        P.MREMAP_SHRINK, ANON, {S.SPLITS: 1, S.CREATED: 1}, 0, (0, 1, 1), (0, 1, 1), (0, 2),
    ),
    "mremap, move": (
        P.MREMAP_MOVE, ANON | Trait.PAGES_PRESENT, {S.REMOVED: 1, S.CREATED: 1}, HAS,
        (0, 1, 0), (0, 1, 0), (0, 2),
    ),
    "mremap, nothing": (P.MREMAP_NOOP, ANON, {}, 0, (0, 1, 0), (0, 1, 0), (0, 0)),
    "mlock": (P.MLOCK, ANON | Trait.POPULATE, {S.TARGETS: 1}, HAS, (1, 1, 0), (1, 1, 0), (0, 1)),
    "munlock": (P.MUNLOCK, ANON, {S.TARGETS: 1}, HAS, (0, 1, 0), (0, 1, 0), (0, 1)),
    "mlockall": (P.MLOCKALL, Trait.POPULATE, {S.TARGETS: 5}, 0, (1, 1, 0), (1, 1, 0), (0, 5)),
    "munlockall": (P.MLOCKALL, Trait(0), {S.TARGETS: 5}, 0, (0, 1, 0), (0, 1, 0), (0, 5)),
    "fork": (P.FORK, Trait.PAGES_PRESENT, {S.PARENT_VMAS: 7}, 0, (0, 2, 0), (0, 2, 0), (0, 7)),
    "exec": (P.EXEC, Trait.LAST_USER, {}, 0, (2, 1, 0), (2, 1, 0), (0, 0)),
    "exec, other users": (P.EXEC, Trait(0), {}, 0, (1, 0, 0), (1, 0, 0), (0, 0)),
    "thread start": (P.THREAD_START, Trait(0), {}, 0, (0, 0, 0), (0, 0, 0), (0, 0)),
    "thread exit": (P.THREAD_EXIT, Trait(0), {}, 0, (1, 0, 0), (1, 0, 0), (0, 0)),
    "thread exit, the last one's": (  # of process exit below it is the exit_mm
        P.THREAD_EXIT, Trait.LAST_USER, {}, 0, (0, 0, 0), (0, 0, 0), (0, 0),
    ),
    "process exit": (P.PROCESS_EXIT, Trait.LAST_USER, {S.REMOVED: 4}, 0, (3, 1, 0), (3, 1, 0), (0, 4)),
    "vfork child exits": (P.VFORK_EXIT, Trait(0), {}, 0, (2, 0, 0), (2, 0, 0), (0, 0)),
    "vfork child execs": (P.VFORK_EXIT, Trait.SHARES_MM, {}, 0, (1, 0, 0), (1, 0, 0), (0, 0)),
    "shmat": (P.SHMAT, Trait.SHMEM, {S.CREATED: 1}, 0, (0, 1, 0), (0, 1, 0), (0, 1)),
    "shmdt": (P.SHMDT, Trait.SHMEM, {S.REMOVED: 1}, 0, (0, 1, 0), (0, 1, 0), (0, 1)),
    "mbind": (P.VMA_POLICY, ANON, {S.TARGETS: 1}, 0, (0, 1, 0), (0, 1, 0), (0, 1)),
    "pkey_alloc": (P.PKEY, Trait(0), {}, 0, (0, 1, 0), (0, 1, 0), (0, 0)),
    "mincore": (P.MM_READ, ANON, {}, 0, (1, 0, 0), (1, 0, 0), (0, 0)),
    "maps": (P.PROC_MAPS, Trait(0), {}, 0, (1, 0, 0), (0, 0, 0), (0, 0)),
    "smaps": (P.PROC_SMAPS, Trait(0), {}, 0, (1, 0, 0), (1, 0, 0), (0, 0)),
    "smaps_rollup": (P.PROC_ROLLUP, Trait(0), {}, 0, (1, 0, 0), (1, 0, 0), (0, 0)),
    "smaps_rollup, at its end": (P.PROC_ROLLUP, Trait.NO_CHANGE, {}, 0, (0, 0, 0), (0, 0, 0), (0, 0)),
    "pagemap": (P.PROC_PAGEMAP, Trait(0), {}, 0, (1, 0, 0), (2, 0, 0), (0, 0)),
    "process_vm_readv": (P.REMOTE_ACCESS, ANON, {}, 0, (1, 0, 0), (1, 0, 0), (0, 0)),
    "pin, mapped": (P.GUP, ANON | Trait.PAGES_PRESENT, {}, 0, (0, 0, 0), (0, 0, 0), (0, 0)),
    "pin, not mapped": (P.GUP, ANON, {}, 0, (1, 0, 0), (1, 0, 0), (0, 0)),
    "uffd register": (P.UFFD_REGISTER, ANON, {S.TARGETS: 1}, 0, (0, 1, 0), (0, 1, 0), (0, 1)),
    "uffd copy, first": (P.UFFD_COPY, ANON, {}, 0, (1, 0, 0), (1, 0, 0), (1, 0)),
    "uffd copy": (P.UFFD_COPY, ANON, {}, HAS, (1, 0, 0), (0, 0, 0), (1, 0)),
    "uffd write-protect": (P.UFFD_OTHER, ANON, {}, 0, (1, 0, 0), (1, 0, 0), (0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_acquisitions(case: str) -> None:
    op, traits, sets, bits, old, new, vma = CASES[case]
    assert walk(OLD, op, traits, sets, RuntimeBit(bits)).mmap_lock == old
    done = walk(NEW, op, traits, sets, RuntimeBit(bits))
    assert done.mmap_lock == new
    assert done.vma_lock == vma


@pytest.mark.parametrize("model", [OLD, NEW], ids=lambda m: m.name)
def test_every_operation_has_a_program_that_ends(model) -> None:
    for op in PlanOp:
        if op is PlanOp.NONE:
            assert model.entry[op] == -1
            continue
        for traits in (Trait(0), *Trait, Trait.ANON | Trait.WRITE | Trait.PAGES_PRESENT):
            for count in (0, 2):
                walk(model, op, traits, dict.fromkeys(MarkSet, count))


def test_a_write_waits_for_its_anon_vma_once() -> None:
    first = walk(NEW, P.FAULT, FIRST)
    assert first.bits & HAS
    assert walk(NEW, P.FAULT, FIRST, bits=first.bits).mmap_lock == (0, 0, 0)


def test_a_new_table_is_made_once() -> None:
    first = walk(NEW, P.FAULT, FIRST | Trait.TABLE_MISSING, bits=HAS)
    assert first.costs["pt_alloc"] == 1
    assert first.bits & RuntimeBit.TABLE_PRESENT
    again = walk(NEW, P.FAULT, FIRST | Trait.TABLE_MISSING, bits=first.bits)
    assert again.costs["pt_alloc"] == 0


def test_a_marked_vma_sends_the_fault_to_mmap_lock() -> None:
    done = walk(NEW, P.FAULT, FIRST, bits=HAS, fail=frozenset({"vma_lock"}))
    assert done.mmap_lock == (1, 0, 0)
    assert dict(done.reasons) == {"vma_busy": 1}


def test_a_refused_trylock_for_the_anon_vma_starts_again_without_sleeping() -> None:
    for traits in (FIRST, FIRST | Trait.NEEDS_IO | Trait.SWAP):
        done = walk(NEW, P.FAULT, traits, fail=frozenset({"mmap_lock"}))
        assert done.reasons["anon_vma_trylock"] == 1
        assert done.locks["vma_lock", "read"] == 1
        # a page that must be read is then waited for once, from under mmap_lock
        assert done.sleeps["io"] == (1 if traits & Trait.NEEDS_IO else 0)
        assert done.mmap_lock == (2 if traits & Trait.NEEDS_IO else 1, 0, 0)


def test_a_failed_trylock_queues_for_mmap_lock() -> None:
    done = walk(OLD, P.FAULT, FIRST, bits=HAS, fail=frozenset({"mmap_lock"}))
    assert done.mmap_lock == (1, 0, 0)
    assert done.locks["mmap_lock", "try_failed"] == 1


def test_each_fallback_is_counted_once_with_its_reason() -> None:
    for traits, reason in (
        (FIRST | Trait.KERNEL_MODE, "kernel_mode"),
        (Trait.HOLE, "no_vma"),
        (FIRST | Trait.STACK_GROWTH, "no_vma"),
        (Trait.FILE | Trait.NEEDS_IO, "io"),
        (Trait.FILE | Trait.NO_MAP_PAGES, "no_map_pages"),
        (ANON | Trait.UFFD | Trait.ZERO_PAGE, "uffd"),
    ):
        assert dict(walk(NEW, P.FAULT, traits, bits=HAS).reasons) == {reason: 1}


def test_models_are_listed_by_release() -> None:
    names = [model.name for model in list_models()]
    assert names[0] == "linux-5.10"
    assert "linux-6.18" in names
    kernels = [model.kernel for model in list_models() if model.kernel]
    assert kernels == sorted(kernels)
