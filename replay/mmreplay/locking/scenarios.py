"""Situations in which an operation can find itself, for walks over a model's programs.

Each is one operation with its traits, the VMAs it works on and the runtime bits that it
finds; together they visit every rule by which the shipped kernels differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mmreplay.address_space.plan import MarkSet, PlanOp, Trait
from mmreplay.locking.isa import RuntimeBit

_NO_TRAITS: Final = Trait(0)
_NO_BITS: Final = RuntimeBit(0)


@dataclass(frozen=True, slots=True)
class Scenario:
    """``fail``: locks whose ``try``, sequences whose ``check`` fails the first time."""

    name: str
    op: PlanOp
    traits: Trait = _NO_TRAITS
    sets: Mapping[MarkSet, int] = field(default_factory=dict)
    bits: RuntimeBit = _NO_BITS
    fail: frozenset[str] = frozenset()

    @property
    def operation(self) -> str:
        return self.op.name.lower()


T, P, S = Trait, PlanOp, MarkSet
_ANON: Final = T.ANON
_WRITE: Final = T.ANON | T.WRITE | T.NEEDS_ANON_VMA
_COW: Final = T.FILE | T.WRITE | T.COW | T.NEEDS_ANON_VMA
_HAS: Final = RuntimeBit.VMA_ANON_VMA


def _s(
    op: PlanOp,
    name: str,
    traits: Trait = _NO_TRAITS,
    sets: Mapping[MarkSet, int] | None = None,
    bits: RuntimeBit = _NO_BITS,
    *fail: str,
) -> Scenario:
    return Scenario(name, op, traits, sets or {}, bits, frozenset(fail))


SCENARIOS: Final[tuple[Scenario, ...]] = (
    # -- page faults -----------------------------------------------------------------------
    _s(P.FAULT, "first write of a VMA", _WRITE),
    _s(P.FAULT, "write", _WRITE, {}, _HAS),
    _s(P.FAULT, "read of a VMA never written", _ANON | T.ZERO_PAGE),
    _s(P.FAULT, "read", _ANON | T.ZERO_PAGE, {}, _HAS),
    _s(P.FAULT, "write with a new page table", _WRITE | T.TABLE_MISSING, {}, _HAS),
    _s(P.FAULT, "copy on write", _WRITE | T.PRESENT | T.COW, {}, _HAS),
    _s(P.FAULT, "write to an own write-protected page", _WRITE | T.PRESENT | T.REUSE, {}, _HAS),
    _s(P.FAULT, "huge page, first of the VMA", _WRITE | T.HUGE),
    _s(P.FAULT, "huge page", _WRITE | T.HUGE, {}, _HAS),
    _s(P.FAULT, "hugetlb", T.HUGETLB | T.WRITE, {}, _HAS),
    _s(P.FAULT, "hugetlb, first of the VMA", T.HUGETLB | T.WRITE | T.NEEDS_ANON_VMA),
    _s(P.FAULT, "swap-in", _WRITE | T.SWAP | T.NEEDS_IO, {}, _HAS),
    _s(P.FAULT, "in kernel mode", _WRITE | T.KERNEL_MODE, {}, _HAS),
    _s(P.FAULT, "file read by fault-around", T.FILE | T.FAULT_AROUND),
    _s(P.FAULT, "file read past fault-around", T.FILE),
    _s(P.FAULT, "major file read", T.FILE | T.NEEDS_IO),
    _s(P.FAULT, "file write, private, first of the VMA", _COW),
    _s(P.FAULT, "file write, private", _COW, {}, _HAS),
    _s(P.FAULT, "file write, private, over a read page", _COW | T.PRESENT, {}, _HAS),
    _s(P.FAULT, "file write, shared", T.FILE | T.SHARED | T.WRITE | T.MKWRITE),
    _s(
        P.FAULT, "file write, shared, over a read page",
        T.FILE | T.SHARED | T.WRITE | T.MKWRITE | T.PRESENT | T.REUSE,
    ),
    _s(P.FAULT, "shmem read by fault-around", T.SHMEM | T.SHARED | T.FAULT_AROUND),
    _s(P.FAULT, "shmem write", T.SHMEM | T.SHARED | T.WRITE),
    _s(
        P.FAULT, "shmem write of a new page",
        T.SHMEM | T.SHARED | T.WRITE | T.FIRST_IN_FILE,
    ),
    _s(P.FAULT, "device without map_pages", T.FILE | T.NO_MAP_PAGES),
    _s(P.FAULT, "userfaultfd, missing page", _ANON | T.UFFD | T.ZERO_PAGE, {}, _HAS),
    _s(P.FAULT, "where no VMA is", T.HOLE | T.FAILED),
    _s(P.FAULT, "that the VMA forbids", _ANON | T.ACCESS_ERROR, {}, _HAS),
    _s(P.FAULT, "that grows the stack", _WRITE | T.STACK_GROWTH, {S.TARGETS: 1}, _HAS),
    _s(P.FAULT, "write to a stack", _WRITE | T.GROWSDOWN, {}, _HAS),
    _s(P.FAULT, "in a process with one thread", _WRITE | T.SINGLE_THREADED, {}, _HAS),
    _s(P.FAULT, "write while a writer has the VMA marked", _WRITE, {}, _HAS, "vma_lock"),
    _s(P.FAULT, "first write while mmap_lock is not free", _WRITE, {}, _NO_BITS, "mmap_lock"),
    # -- mapping calls ---------------------------------------------------------------------
    _s(P.MMAP, "new VMA", _ANON | T.STRUCTURAL, {S.CREATED: 1}),
    _s(P.MMAP, "merging with both neighbours", _ANON | T.STRUCTURAL | T.MERGES, {S.NEIGHBOURS: 2}),
    _s(P.MMAP, "of a file", T.FILE | T.STRUCTURAL, {S.CREATED: 1}),
    _s(P.MMAP, "MAP_POPULATE", _ANON | T.POPULATE | T.WRITE | T.STRUCTURAL, {S.CREATED: 1}),
    _s(P.MMAP, "that fails", T.FAILED),
    _s(
        P.MMAP, "fixed over the middle of a VMA",
        _ANON | T.OVERLAPS | T.PAGES_PRESENT | T.STRUCTURAL, {S.SPLITS: 1, S.CREATED: 3},
    ),
    _s(P.MUNMAP, "whole VMA", _ANON | T.PAGES_PRESENT | T.STRUCTURAL, {S.REMOVED: 1}, _HAS),
    _s(
        P.MUNMAP, "middle of a VMA", _ANON | T.PAGES_PRESENT | T.SPLITS | T.STRUCTURAL,
        {S.SPLITS: 1, S.CREATED: 2}, _HAS,
    ),
    _s(P.MUNMAP, "hole", T.HOLE),
    _s(
        P.MUNMAP, "below a stack", _ANON | T.NEXT_GROWSDOWN | T.PAGES_PRESENT | T.STRUCTURAL,
        {S.REMOVED: 1}, _HAS,
    ),
    _s(P.MPROTECT, "whole VMA", _ANON | T.PAGES_PRESENT, {S.TARGETS: 1}, _HAS),
    _s(
        P.MPROTECT, "three VMAs", _ANON | T.PAGES_PRESENT | T.MULTI_VMA,
        {S.TARGETS: 3, S.REWRITTEN: 3}, _HAS,
    ),
    _s(
        P.MPROTECT, "middle of a VMA", _ANON | T.SPLITS | T.STRUCTURAL | T.PAGES_PRESENT,
        {S.SPLITS: 1, S.CREATED: 2}, _HAS,
    ),
    _s(P.MPROTECT, "without a change", _ANON | T.NO_CHANGE),
    _s(P.PKEY, "allocate or free"),
    _s(P.BRK_GROW, "heap", _ANON | T.STRUCTURAL, {S.NEIGHBOURS: 1}),
    _s(P.BRK_GROW, "locked heap", _ANON | T.STRUCTURAL | T.POPULATE | T.WRITE, {S.NEIGHBOURS: 1}),
    _s(
        P.BRK_SHRINK, "heap", _ANON | T.STRUCTURAL | T.PAGES_PRESENT,
        {S.SPLITS: 1, S.CREATED: 1}, _HAS,
    ),
    _s(P.BRK_QUERY, "where is the break", T.NO_CHANGE),
    _s(P.MREMAP_GROW, "in place", _ANON | T.STRUCTURAL, {S.TARGETS: 1}),
    _s(
        P.MREMAP_GROW, "locked VMA", _ANON | T.STRUCTURAL | T.POPULATE | T.WRITE,
        {S.TARGETS: 1}, _HAS,
    ),
    _s(
        P.MREMAP_SHRINK, "VMA", _ANON | T.STRUCTURAL | T.PAGES_PRESENT,
        {S.SPLITS: 1, S.CREATED: 1}, _HAS,
    ),
    _s(
        P.MREMAP_MOVE, "touched VMA", _ANON | T.PAGES_PRESENT | T.STRUCTURAL,
        {S.REMOVED: 1, S.CREATED: 1}, _HAS,
    ),
    _s(
        P.MREMAP_MOVE, "locked VMA",
        _ANON | T.PAGES_PRESENT | T.STRUCTURAL | T.POPULATE | T.WRITE,
        {S.REMOVED: 1, S.CREATED: 1}, _HAS,
    ),
    _s(P.MREMAP_NOOP, "nothing", _ANON),
    _s(P.MLOCK, "VMA", _ANON | T.POPULATE, {S.TARGETS: 1}, _HAS),
    _s(P.MUNLOCK, "VMA", _ANON, {S.TARGETS: 1}, _HAS),
    _s(P.MLOCKALL, "mlockall", T.POPULATE, {S.TARGETS: 5}),
    _s(P.MLOCKALL, "munlockall", _NO_TRAITS, {S.TARGETS: 5}),
    _s(P.SHMAT, "segment", T.SHMEM | T.STRUCTURAL, {S.CREATED: 1}),
    _s(P.SHMDT, "segment", T.SHMEM | T.STRUCTURAL | T.PAGES_PRESENT, {S.REMOVED: 1}),
    _s(P.VMA_POLICY, "mbind", _ANON, {S.TARGETS: 1}),
    _s(
        P.REMAP_FILE_PAGES, "of a shared mapping", T.SHMEM | T.SHARED | T.POPULATE,
        {S.TARGETS: 1},
    ),
    # -- madvise ---------------------------------------------------------------------------
    _s(P.MADVISE_ZAP, "touched pages", _ANON | T.PAGES_PRESENT, {}, _HAS),
    _s(P.MADVISE_ZAP, "untouched pages", _ANON, {}, _HAS),
    _s(
        P.MADVISE_ZAP, "a whole page table's pages",
        _ANON | T.PAGES_PRESENT | T.FREES_TABLES, {}, _HAS,
    ),
    _s(P.MADVISE_ZAP, "over two VMAs", _ANON | T.MULTI_VMA | T.PAGES_PRESENT, {}, _HAS),
    _s(P.MADVISE_ZAP, "with userfaultfd", _ANON | T.UFFD, {}, _HAS),
    _s(P.MADVISE_ZAP, "while a writer has the VMA marked", _ANON, {}, _HAS, "vma_lock"),
    _s(P.MADVISE_READ, "COLD", _ANON),
    _s(P.MADVISE_WILLNEED, "anonymous", _ANON),
    _s(P.MADVISE_WILLNEED, "file", T.FILE),
    _s(P.MADVISE_WILLNEED, "shmem", T.SHMEM),
    _s(P.MADVISE_REMOVE, "shmem", T.SHMEM | T.SHARED | T.PAGES_PRESENT),
    _s(P.MADVISE_FLAGS, "HUGEPAGE", _ANON, {S.TARGETS: 1}),
    _s(P.MADVISE_POPULATE, "write", _ANON | T.WRITE),
    _s(P.MADVISE_GUARD, "install", _ANON | T.NEEDS_ANON_VMA, {}, _HAS),
    _s(P.MADVISE_GUARD, "install in a VMA never written", _ANON | T.NEEDS_ANON_VMA),
    _s(P.MADVISE_COLLAPSE, "2 MiB", _ANON, {S.TARGETS: 1}, _HAS),
    _s(P.PROCESS_MADVISE, "16 elements", _NO_TRAITS, {S.TARGETS: 16}),
    _s(P.PROCESS_MADVISE_ZAP, "16 elements", _NO_TRAITS, {S.TARGETS: 16}),
    # -- processes and threads -------------------------------------------------------------
    _s(P.FORK, "seven VMAs", T.PAGES_PRESENT, {S.PARENT_VMAS: 7}),
    _s(P.EXEC, "last user of the old map", T.LAST_USER, {S.REMOVED: 4}),
    _s(P.EXEC, "the old map lives on"),
    _s(P.THREAD_START, "thread"),
    _s(P.THREAD_EXIT, "thread"),
    _s(P.PROCESS_EXIT, "four VMAs", T.LAST_USER, {S.REMOVED: 4}),
    _s(P.VFORK_EXIT, "exit"),
    _s(P.VFORK_EXIT, "exec", T.SHARES_MM),
    # -- readers ---------------------------------------------------------------------------
    _s(P.MM_READ, "mincore", _ANON),
    _s(P.PROC_MAPS, "read(2)"),
    _s(P.PROC_MAPS, "read(2) at the end", T.NO_CHANGE),
    _s(P.PROC_MAPS, "read(2) at the end, [vsyscall] mapped", T.NO_CHANGE | T.GATE_VMA),
    _s(P.PROC_SMAPS, "read(2)"),
    _s(P.PROC_SMAPS, "read(2) at the end", T.NO_CHANGE),
    _s(P.PROC_ROLLUP, "read(2)"),
    _s(P.PROC_ROLLUP, "read(2) at the end", T.NO_CHANGE),
    _s(P.PROC_PAGEMAP, "read(2)"),
    _s(P.REMOTE_ACCESS, "process_vm_readv", _ANON),
    _s(P.GUP, "mapped pages", _ANON | T.PAGES_PRESENT),
    _s(P.GUP, "unmapped pages", _ANON),
    # -- userfaultfd -----------------------------------------------------------------------
    _s(P.UFFD_REGISTER, "VMA", _ANON, {S.TARGETS: 1}),
    _s(P.UFFD_COPY, "first of the VMA", _ANON),
    _s(P.UFFD_COPY, "page", _ANON, {}, _HAS),
    _s(P.UFFD_MOVE, "page", _ANON, {}, _HAS),
    _s(P.UFFD_OTHER, "write-protect", _ANON),
)  # fmt: skip
