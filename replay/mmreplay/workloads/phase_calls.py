"""Phases of the lock-count measurement: calls that change or read the map."""

from __future__ import annotations

from collections.abc import Callable

from mmreplay.schema import OpKind, ProcFile
from mmreplay.workloads.phase_faults import FILES
from mmreplay.workloads.script import PG, Script
from mmreplay.workloads.tape import HEAP, MAP_PRIVATE, PROT_READ, READ_WRITE

# include/uapi/asm-generic/mman-common.h
_RANDOM, _WILLNEED, _DONTNEED, _FREE, _DONTFORK = 1, 3, 4, 8, 10
_MERGEABLE, _UNMERGEABLE, _HUGEPAGE, _NOHUGEPAGE, _COLD = 12, 13, 14, 15, 20
_GUARD_INSTALL, _GUARD_REMOVE = 102, 103


def nothing(s: Script) -> None:
    """Operations that should take no lock of the memory map; no recorder reports them."""
    for name in ("empty", "empty_getppid", "futex_wake_private", "futex_wake_shared"):
        s.nothing(name)
    for name in ("proc_status", "proc_statm"):
        s.nothing(name)


def mmap(s: Script) -> None:
    t, n = s.tape, s.n
    t.reserve(4 * PG)
    t.mmap(PG, PROT_READ)
    v: list[int] = []
    s.each("mmap_anon_merge", n, lambda i: v.append(t.mmap(PG)))
    s.each("munmap_shrink_edge_untouched", n, lambda i: t.munmap(v[n - 1 - i], PG))
    u: list[int] = []
    s.each(
        "mmap_anon_nomerge", n, lambda i: u.append(t.mmap(PG, READ_WRITE if i & 1 else PROT_READ))
    )
    s.each("munmap_whole_untouched", n, lambda i: t.munmap(u[i], PG))
    f = t.reserve((2 * n + 1) * PG)

    def over(i: int) -> None:
        t.mmap(PG, at=f + (2 * i + 1) * PG)

    s.each("mmap_fixed_over_existing_split", n, over)
    w: list[int] = []
    file = FILES["tmpfs"]
    s.each(
        "mmap_file_priv",
        n,
        lambda i: w.append(t.mmap(PG, PROT_READ, MAP_PRIVATE, None, file, 8 * PG if i & 1 else 0)),
    )
    s.each("munmap_file_priv", n, lambda i: t.munmap(w[i], PG))
    h = t.isolated((2 * n + 1) * PG)
    s.each("munmap_middle_split_untouched", n, lambda i: t.munmap(h + (2 * i + 1) * PG, PG))
    k = t.isolated((2 * n + 1) * PG)
    t.touch(k, 2 * n + 1)
    s.each("munmap_middle_split_touched", n, lambda i: t.munmap(k + (2 * i + 1) * PG, PG))
    tw = t.isolated(PG)

    def cycle(i: int) -> None:
        t.mmap(PG, at=tw)
        t.write(tw)
        t.munmap(tw, PG)

    s.each("mmap_touch_munmap_cycle", n, cycle)


def mprotect(s: Script) -> None:
    t, n = s.tape, s.n
    p = t.isolated(8 * PG)
    s.each("mprotect_noop", n, lambda i: t.mprotect(p, 8 * PG, READ_WRITE))
    s.each(
        "mprotect_whole_toggle",
        n,
        lambda i: t.mprotect(p, 8 * PG, READ_WRITE if i & 1 else PROT_READ),
    )
    h = t.isolated((2 * n + 1) * PG)
    s.each("mprotect_middle_split", n, lambda i: t.mprotect(h + (2 * i + 1) * PG, PG, PROT_READ))
    s.each("mprotect_merge_back", n, lambda i: t.mprotect(h + (2 * i + 1) * PG, PG, READ_WRITE))
    w = t.isolated((n + 1) * PG)
    t.touch(w, n + 1)
    t.mprotect(w, (n + 1) * PG, PROT_READ)
    t.mprotect(w, (n + 1) * PG, READ_WRITE)
    # whether the write bit comes back with the protection is the kernel's choice: where it
    # does not, each write faults
    name = "write_fault_after_mprotect_R_RW"
    faults = min(s.of(name).faults_user or 0, n)
    s.each(name, faults, lambda i: t.write(w + i * PG, present=True))


def madvise(s: Script) -> None:
    t, n = s.tape, s.n
    p = t.isolated((n + 1) * PG)
    t.touch(p, n + 1)
    s.each("madv_dontneed_touched", n, lambda i: t.madvise(p + i * PG, PG, _DONTNEED))
    s.each("refault_after_dontneed", n, lambda i: t.write(p + i * PG), faults=True)
    s.each("madv_free_touched", n, lambda i: t.madvise(p + i * PG, PG, _FREE))
    name = "write_after_madv_free"
    faults = min(s.of(name).faults_user or 0, n)
    s.each(name, faults, lambda i: t.write(p + i * PG, present=True))
    q = t.isolated((n + 1) * PG)
    whole = (n + 1) * PG
    s.each("madv_dontneed_untouched", n, lambda i: t.madvise(q + i * PG, PG, _DONTNEED))
    d = t.reserve(8 * PG)
    t.mmap(PG, at=d + PG)
    t.mmap(PG, PROT_READ, at=d + 2 * PG)
    s.each("madv_dontneed_spanning_2vmas", n, lambda i: t.madvise(d + PG, 2 * PG, _DONTNEED))
    s.each(
        "madv_hugepage_toggle_whole",
        n,
        lambda i: t.madvise(q, whole, _NOHUGEPAGE if i & 1 else _HUGEPAGE),
    )
    s.each("madv_hugepage_noop", n, lambda i: t.madvise(q, whole, _NOHUGEPAGE))
    s.each("madv_willneed_anon", n, lambda i: t.madvise(q + i * PG, PG, _WILLNEED))
    s.each("madv_cold", n, lambda i: t.madvise(p + i * PG, PG, _COLD))
    s.each("madv_random_toggle", n, lambda i: t.madvise(q, whole, 0 if i & 1 else _RANDOM))
    s.each(
        "madv_dontfork_split", n // 2 - 1, lambda i: t.madvise(q + (2 * i + 1) * PG, PG, _DONTFORK)
    )


def brk(s: Script) -> None:
    t, n = s.tape, s.n
    b = HEAP + 16 * PG
    t.write(HEAP)  # the C library has used its heap
    t.brk(0, b)
    t.brk(b, b)
    s.each("brk_query", n, lambda i: t.brk(0, b))
    s.each("brk_grow", n, lambda i: t.brk(b + (i + 1) * PG, b + i * PG))
    s.each("brk_touch", n, lambda i: t.write(b + i * PG), faults=True)
    s.each("brk_shrink_touched", n, lambda i: t.brk(b + (n - 1 - i) * PG, b + (n - i) * PG))


def mremap(s: Script) -> None:
    t, n = s.tape, s.n
    r = t.reserve((n + 64) * PG)
    p = r + 16 * PG
    t.munmap(p, (n + 16) * PG)
    t.mmap(PG, at=p)
    t.write(p)
    s.each("mremap_grow_inplace", n, lambda i: t.mremap(p, i * PG, (i + 1) * PG), 1)
    s.each("mremap_grown_touch", n, lambda i: t.write(p + i * PG), 1, faults=True)
    s.each("mremap_shrink_touched", n, lambda i: t.mremap(p, (n + 1 - i) * PG, (n - i) * PG))
    ends = [t.isolated(PG), t.reserve(8 * PG) + 4 * PG]
    t.write(ends[0])
    t.munmap(ends[1], PG)
    s.each(
        "mremap_move_fixed_touched",
        n,
        lambda i: t.mremap(ends[i & 1], PG, PG, ends[1 - (i & 1)]),
    )
    s.each("mremap_noop", n, lambda i: t.mremap(ends[n & 1], PG, PG))


def misc(s: Script) -> None:
    t, n = s.tape, s.n
    p = t.isolated((2 * n + 1) * PG)
    t.touch(p, 2 * n + 1)

    def guard(advice: int) -> Callable[[int], None]:
        return lambda i: t.madvise(p + (2 * i + 1) * PG, PG, advice)

    s.each("madv_guard_install_1page", n, guard(_GUARD_INSTALL))
    s.each("madv_guard_remove_1page", n, guard(_GUARD_REMOVE))
    q = t.isolated(8 * PG)
    # MPOL_PREFERRED and MPOL_DEFAULT in turn
    s.each(
        "mbind_toggle_whole",
        n,
        lambda i: t.range_op(OpKind.MBIND, q, 8 * PG, 0 if i & 1 else 1),
    )
    s.each("get_mempolicy_addr", n, lambda i: t.range_op(OpKind.GET_MEMPOLICY, q, PG))
    d = t.isolated(64 * PG)
    s.each(
        "madv_mergeable_toggle",
        n,
        lambda i: t.madvise(d, 64 * PG, _UNMERGEABLE if i & 1 else _MERGEABLE),
    )


def process_madvise(s: Script) -> None:
    t = s.tape
    s.each("process_madvise_cold_16vec", s.n, lambda i: t.process_madvise(_COLD, 16))
    s.each("process_madvise_dontneed_16vec_self", s.n, lambda i: t.process_madvise(_DONTNEED, 16))


def remote(s: Script) -> None:
    t, n = s.tape, s.n
    q = t.isolated((n + 1) * PG)
    t.touch(q, n + 1)

    def one(kind: OpKind, flags: int = 0, base: int = q, length: int = PG) -> Callable[[int], None]:
        return lambda i: t.range_op(kind, base + i * PG, length, flags, result=length)

    s.each("proc_pagemap_1entry", n, one(OpKind.PROC_READ, ProcFile.PAGEMAP, length=8))
    s.each("proc_mem_pread", n, one(OpKind.PROC_READ, ProcFile.MEM, length=8))
    s.each("process_vm_readv_self", n, one(OpKind.PROCESS_VM, length=8))
    s.each("mincore_1page", n, one(OpKind.MINCORE))
    s.each("msync_1page_anon", n, one(OpKind.MSYNC))
    u = t.isolated((n + 1) * PG)
    s.each("vmsplice_gup_untouched", n, one(OpKind.VMSPLICE, base=u, length=64))
    s.each("vmsplice_gup_touched", n, one(OpKind.VMSPLICE, length=64))
