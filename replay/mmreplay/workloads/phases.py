"""The phases of the lock-count measurement, as traces.

``datasets/lockcounts`` holds mmap_lock acquisitions that were counted on booted kernels
while a small program performed, phase by phase, N operations of one kind.  Here the same
operations are written down as traces, set-up included, so that a locking model can be
held against the counts: plan only the phase's rows and compare.

A recording cannot hold everything that the program did; :data:`NOT_EXPRESSIBLE` says
what and why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mmreplay.schema import PAGE_SIZE, FaultClass, OpKind, ProcFile, UffdOp
from mmreplay.trace.store import Trace
from mmreplay.workloads.tape import (
    HEAP,
    MAP_ANONYMOUS,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MMAP_BASE,
    PROT_NONE,
    PROT_READ,
    READ_WRITE,
    STACK_TOP,
    File,
    Tape,
)

PG: Final = PAGE_SIZE
HUGE: Final = 2 << 20
N: Final = 1000  # operations of a phase, where it has no number of its own
AROUND: Final = 16 * PG  # fault-around window

# include/uapi/asm-generic/mman-common.h
_DONTNEED, _WILLNEED, _FREE, _RANDOM = 4, 3, 8, 1
_DONTFORK, _MERGEABLE, _UNMERGEABLE, _HUGEPAGE, _NOHUGEPAGE = 10, 12, 13, 14, 15
_COLD, _PAGEOUT, _POPULATE_READ, _POPULATE_WRITE = 20, 21, 22, 23
_GUARD_INSTALL, _GUARD_REMOVE = 102, 103

#: A small process of the measurement: VMAs that /proc files show.
_SMALL_READS: Final = {"maps": 2, "smaps": 4, "smaps_rollup": 2, "numa_maps": 2}

#: Phases of the measurement that a trace cannot hold, and why.
NOT_EXPRESSIBLE: Final[dict[str, str]] = {
    "proc_status": "reads no lock of the memory map, so no recorder reports it",
    "proc_statm": "reads no lock of the memory map, so no recorder reports it",
    "futex_wake_private": "takes no lock of the memory map; futex calls are not recorded",
    "futex_wake_shared": "takes no lock of the memory map; futex calls are not recorded",
    "process_madvise_dontneed_16vec_self": "a recording does not show the elements of an iovec",
    "process_madvise_cold_16vec": "a recording does not show the elements of an iovec",
    "write_fault_after_mprotect_R_RW": "no operation: the kernel takes no fault",
    "write_after_madv_free": "no operation: the kernel takes no fault",
    "kfault_write_tmpfs_from_untouched": (
        "half of its faults happen with page faults disabled and take no lock; a recording shows"
        " them like the others"
    ),
    "proc_maps_2000vmas": "read(2) calls differ by kernel and were not recorded",
}


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase: its trace with set-up, and the rows that count.

    ``ops``: how often the operation is done, as the counts file has it.
    """

    name: str
    trace: Trace
    first: int
    end: int
    ops: int


@dataclass(slots=True)
class _Script:
    """A tape, and how many operations each phase was counted with."""

    tape: Tape = field(default_factory=Tape)
    faults: Mapping[str, int] = field(default_factory=dict)
    reads: Mapping[str, int] = field(default_factory=dict)
    disk_root: bool = False
    ops: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, ops: int) -> int:
        """Operations of a phase: as counted (large folios save faults), else all."""
        return min(ops, self.faults.get(name, ops))

    def each(self, name: str, ops: int, step: Callable[[int], None], first: int = 0) -> None:
        """The phase ``name``: ``step(first)`` to ``step(first + ops - 1)``."""
        self.tape.begin(name)
        for i in range(first, first + self.count(name, ops)):
            step(i)
        self.tape.end()
        self.ops[name] = ops


def _anon_w_big(s: _Script) -> None:
    p = s.tape.isolated((N + 1) * PG)
    s.each("anon_w_big_first", 1, lambda i: s.tape.write(p))
    s.each("anon_w_big_rest", N, lambda i: s.tape.write(p + i * PG), 1)


def _anon_w_vmas(s: _Script) -> None:
    t = s.tape
    r = t.reserve((3 * N + 2) * PG)
    for i in range(N):
        t.mmap(2 * PG, at=r + (3 * i + 1) * PG)
    s.each("anon_w_1000vmas_first", N, lambda i: t.write(r + (3 * i + 1) * PG))
    s.each("anon_w_1000vmas_second", N, lambda i: t.write(r + (3 * i + 2) * PG))
    s.each("munmap_1000vmas_touched_each", N, lambda i: t.munmap(r + (3 * i + 1) * PG, 2 * PG))


def _anon_r_big(s: _Script) -> None:
    t = s.tape
    p = t.isolated((N + 1) * PG)
    s.each("anon_r_zero_first", 1, lambda i: t.fault(p))
    s.each("anon_r_zero_rest", N, lambda i: t.fault(p + i * PG), 1)
    s.each("anon_w_over_zero_first", 1, lambda i: t.write(p, present=True))
    s.each("anon_w_over_zero_rest", N, lambda i: t.write(p + i * PG, present=True), 1)


def _anon_r_vmas(s: _Script) -> None:
    t = s.tape
    r = t.reserve((2 * N + 1) * PG)
    for i in range(N):
        t.mmap(PG, at=r + (2 * i + 1) * PG)
    s.each("anon_r_zero_1000vmas_first", N, lambda i: t.fault(r + (2 * i + 1) * PG))


def _thp(s: _Script) -> None:
    t = s.tape
    r = t.reserve(24 * HUGE)
    a = (r + 2 * HUGE - 1) & ~(HUGE - 1)
    t.mmap(20 * HUGE, at=a)
    t.madvise(a, 20 * HUGE, _HUGEPAGE)
    s.each("thp_w_first", 1, lambda i: t.write(a))
    s.each("thp_w_rest", 19, lambda i: t.write(a + i * HUGE), 1)


def _cow(s: _Script) -> None:
    t = s.tape
    p = t.isolated((N + 1) * PG)
    t.touch(p, N + 1)

    def write(i: int) -> None:
        t.write(p + i * PG, present=True)

    t.fork(OpKind.FORK, 100)
    t.switch(100)
    s.each("cow_child_first", 1, write)
    s.each("cow_child_rest", N, write, 1)
    t.switch(1)
    s.each("cow_parent_after_child_copied(reuse)", N, write, 1)
    t.switch(100)
    t.leave(OpKind.PROCESS_EXIT)
    t.fork(OpKind.FORK, 101)
    s.each("cow_parent_copy", N, write, 1)
    t.switch(101)
    t.leave(OpKind.PROCESS_EXIT)
    t.fork(OpKind.FORK, 102)
    t.switch(102)
    t.leave(OpKind.PROCESS_EXIT)
    s.each("cow_parent_reuse_child_gone", N, write, 1)


_FILES: Final = {
    "tmpfs": File("/dev/shm/lt/data", 3, 1001, 0x19),
    "ext4": File("/data/data", 4, 1002, 0x800001),
    "rootfs": File("/dev/shm/rootfs/data", 5, 1003, 0x2),  # an initramfs is a tmpfs
}


def _file(s: _Script, tag: str) -> None:
    t, file = s.tape, _FILES["ext4" if tag == "rootfs" and s.disk_root else tag]
    span = (N + 1) * AROUND
    p = t.isolated(span, PROT_READ, MAP_PRIVATE, file)
    s.each(f"file_r_priv_first_{tag}", 1, lambda i: t.fault(p))
    s.each(f"file_r_priv_rest_{tag}", N, lambda i: t.fault(p + i * AROUND), 1)
    shared = t.isolated(span, PROT_READ, MAP_SHARED, file)
    s.each(f"file_r_shared_{tag}", N, lambda i: t.fault(shared + i * AROUND))
    q = t.isolated((N + 1) * PG, READ_WRITE, MAP_PRIVATE, file)
    s.each(f"file_w_priv_first_{tag}", 1, lambda i: t.write(q))
    s.each(f"file_w_priv_rest_{tag}", N, lambda i: t.write(q + i * PG), 1)
    w = t.isolated((N + 1) * PG, READ_WRITE, MAP_SHARED, file)
    s.each(f"file_w_shared_first_{tag}", 1, lambda i: t.write(w))
    s.each(f"file_w_shared_rest_{tag}", N, lambda i: t.write(w + i * PG), 1)
    r = t.reserve((2 * N + 1) * PG)
    for i in range(N):
        t.mmap(PG, PROT_READ, MAP_PRIVATE, r + (2 * i + 1) * PG, file, i * PG)
    s.each(f"file_r_priv_1000vmas_{tag}", N, lambda i: t.fault(r + (2 * i + 1) * PG))
    s.each(f"willneed_file_{tag}", N, lambda i: t.madvise(p + i * AROUND, PG, _WILLNEED))


def _cold(s: _Script, name: str, advice: int = 0) -> None:
    t = s.tape
    p = t.isolated(201 * AROUND, PROT_READ, MAP_PRIVATE, _FILES["ext4"])
    if advice:
        t.madvise(p, 201 * AROUND, advice)

    def read(i: int) -> None:  # without advice, the first page came with the file's metadata
        t.fault(p + i * AROUND, outcome=FaultClass.MAJOR if i or advice else FaultClass.MINOR)

    s.each(name, 200, read)


def _shared_anon(s: _Script) -> None:
    t = s.tape
    p = t.isolated((N + 1) * PG, READ_WRITE, MAP_SHARED | MAP_ANONYMOUS)
    s.each("shared_anon_w_first", 1, lambda i: t.write(p))
    s.each("shared_anon_w_rest", N, lambda i: t.write(p + i * PG), 1)


def _kernel_faults(s: _Script) -> None:
    t = s.tape
    p = t.isolated((N + 1) * PG)
    s.each("kfault_read_devzero_first", 1, lambda i: t.write(p, kernel=True))
    s.each("kfault_read_devzero_rest", N, lambda i: t.write(p + i * PG, kernel=True), 1)
    q = t.isolated((N + 1) * PG)
    s.each("kfault_write_tmpfs_from_untouched", N, lambda i: t.fault(q + i * PG, kernel=True))


def _populate(s: _Script) -> None:
    t = s.tape
    p = t.isolated((N + 1) * PG)
    s.each("populate_write_first", 1, lambda i: t.madvise(p, PG, _POPULATE_WRITE))
    s.each("populate_write_1page_rest", N, lambda i: t.madvise(p + i * PG, PG, _POPULATE_WRITE), 1)
    q = t.isolated((N + 1) * PG)
    s.each("populate_write_1000pages_1call", 1, lambda i: t.madvise(q, N * PG, _POPULATE_WRITE))
    q2 = t.isolated((N + 1) * PG)
    s.each("populate_read_1page", N, lambda i: t.madvise(q2 + i * PG, PG, _POPULATE_READ), 1)
    r = t.reserve((2 * N + 2) * PG)
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE
    s.each(
        "mmap_MAP_POPULATE_1page",
        N,
        lambda i: _ignore(t.mmap(PG, READ_WRITE, flags, r + (2 * i + 1) * PG)),
    )
    ml = t.isolated(4 * PG)

    def pair(i: int) -> None:
        t.range_op(OpKind.MLOCK, ml, 4 * PG)
        t.range_op(OpKind.MUNLOCK, ml, 4 * PG)

    s.each("mlock_1page_pair(mlock+munlock)", N, pair)


def _ignore(_value: object) -> None:
    """For calls whose result a phase does not need."""


def _mmap(s: _Script) -> None:
    t = s.tape
    t.reserve(4 * PG)
    t.mmap(PG, PROT_READ)
    v: list[int] = []
    s.each("mmap_anon_merge", N, lambda i: v.append(t.mmap(PG)))
    s.each("munmap_shrink_edge_untouched", N, lambda i: t.munmap(v[N - 1 - i], PG))
    u: list[int] = []
    s.each(
        "mmap_anon_nomerge", N, lambda i: u.append(t.mmap(PG, READ_WRITE if i & 1 else PROT_READ))
    )
    s.each("munmap_whole_untouched", N, lambda i: t.munmap(u[i], PG))
    f = t.reserve((2 * N + 1) * PG)
    s.each(
        "mmap_fixed_over_existing_split", N, lambda i: _ignore(t.mmap(PG, at=f + (2 * i + 1) * PG))
    )
    w: list[int] = []
    file = _FILES["tmpfs"]
    s.each(
        "mmap_file_priv",
        N,
        lambda i: w.append(t.mmap(PG, PROT_READ, MAP_PRIVATE, None, file, 8 * PG if i & 1 else 0)),
    )
    s.each("munmap_file_priv", N, lambda i: t.munmap(w[i], PG))
    h = t.isolated((2 * N + 1) * PG)
    s.each("munmap_middle_split_untouched", N, lambda i: t.munmap(h + (2 * i + 1) * PG, PG))
    k = t.isolated((2 * N + 1) * PG)
    t.touch(k, 2 * N + 1)
    s.each("munmap_middle_split_touched", N, lambda i: t.munmap(k + (2 * i + 1) * PG, PG))
    tw = t.isolated(PG)

    def cycle(i: int) -> None:
        t.mmap(PG, at=tw)
        t.write(tw)
        t.munmap(tw, PG)

    s.each("mmap_touch_munmap_cycle", N, cycle)


def _mprotect(s: _Script) -> None:
    t = s.tape
    p = t.isolated(8 * PG)
    s.each("mprotect_noop", N, lambda i: t.mprotect(p, 8 * PG, READ_WRITE))
    s.each(
        "mprotect_whole_toggle",
        N,
        lambda i: t.mprotect(p, 8 * PG, READ_WRITE if i & 1 else PROT_READ),
    )
    h = t.isolated((2 * N + 1) * PG)
    s.each("mprotect_middle_split", N, lambda i: t.mprotect(h + (2 * i + 1) * PG, PG, PROT_READ))
    s.each("mprotect_merge_back", N, lambda i: t.mprotect(h + (2 * i + 1) * PG, PG, READ_WRITE))


def _madvise(s: _Script) -> None:
    t = s.tape
    p = t.isolated((N + 1) * PG)
    t.touch(p, N + 1)
    s.each("madv_dontneed_touched", N, lambda i: t.madvise(p + i * PG, PG, _DONTNEED))
    s.each("refault_after_dontneed", N, lambda i: t.write(p + i * PG))
    s.each("madv_free_touched", N, lambda i: t.madvise(p + i * PG, PG, _FREE))
    q = t.isolated((N + 1) * PG)
    whole = (N + 1) * PG
    s.each("madv_dontneed_untouched", N, lambda i: t.madvise(q + i * PG, PG, _DONTNEED))
    d = t.reserve(8 * PG)
    t.mmap(PG, at=d + PG)
    t.mmap(PG, PROT_READ, at=d + 2 * PG)
    s.each("madv_dontneed_spanning_2vmas", N, lambda i: t.madvise(d + PG, 2 * PG, _DONTNEED))
    s.each(
        "madv_hugepage_toggle_whole",
        N,
        lambda i: t.madvise(q, whole, _NOHUGEPAGE if i & 1 else _HUGEPAGE),
    )
    s.each("madv_hugepage_noop", N, lambda i: t.madvise(q, whole, _NOHUGEPAGE))
    s.each("madv_willneed_anon", N, lambda i: t.madvise(q + i * PG, PG, _WILLNEED))
    s.each("madv_cold", N, lambda i: t.madvise(p + i * PG, PG, _COLD))
    s.each("madv_random_toggle", N, lambda i: t.madvise(q, whole, 0 if i & 1 else _RANDOM))
    s.each(
        "madv_dontfork_split", N // 2 - 1, lambda i: t.madvise(q + (2 * i + 1) * PG, PG, _DONTFORK)
    )


def _brk(s: _Script) -> None:
    t = s.tape
    b = HEAP + 16 * PG
    t.write(HEAP)  # the C library has used its heap
    t.brk(0, b)
    t.brk(b, b)
    s.each("brk_query", N, lambda i: t.brk(0, b))
    s.each("brk_grow", N, lambda i: t.brk(b + (i + 1) * PG, b + i * PG))
    s.each("brk_touch", N, lambda i: t.write(b + i * PG))
    s.each("brk_shrink_touched", N, lambda i: t.brk(b + (N - 1 - i) * PG, b + (N - i) * PG))


def _mremap(s: _Script) -> None:
    t = s.tape
    r = t.reserve((N + 64) * PG)
    p = r + 16 * PG
    t.munmap(p, (N + 16) * PG)
    t.mmap(PG, at=p)
    t.write(p)
    s.each("mremap_grow_inplace", N, lambda i: t.mremap(p, i * PG, (i + 1) * PG), 1)
    s.each("mremap_grown_touch", N, lambda i: t.write(p + i * PG), 1)
    s.each("mremap_shrink_touched", N, lambda i: t.mremap(p, (N + 1 - i) * PG, (N - i) * PG))
    ends = [t.isolated(PG), t.reserve(8 * PG) + 4 * PG]
    t.write(ends[0])
    t.munmap(ends[1], PG)
    s.each(
        "mremap_move_fixed_touched",
        N,
        lambda i: t.mremap(ends[i & 1], PG, PG, ends[1 - (i & 1)]),
    )
    s.each("mremap_noop", N, lambda i: t.mremap(ends[N & 1], PG, PG))


def _stack(s: _Script) -> None:
    t = s.tape
    top = STACK_TOP - (33 << 12)
    s.each("stack_grow_write", N, lambda i: t.write(top - i * PG), 1)
    r = t.reserve((N + 600) * PG)
    t.munmap(r + PG, (N + 500) * PG)
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN
    g = t.mmap(PG, READ_WRITE, flags, r + (N + 400) * PG)
    t.write(g)
    s.each("growsdown_vma_write", 100, lambda i: t.write(g - i * PG), 1)


def _thread(t: Tape, tid: int, stack: int, freed: int) -> None:
    t.fork(OpKind.CLONE, tid)
    t.switch(tid)
    t.op(OpKind.THREAD_START)
    if freed:
        t.madvise(stack, freed, _DONTNEED)  # glibc: the unused part, from the guard on
    t.leave(OpKind.THREAD_EXIT)


def _threads(s: _Script) -> None:
    t = s.tape
    size = 2052 * PG  # 8 MiB and a guard page, glibc's default
    stack = t.mmap(size, PROT_NONE)
    t.mprotect(stack + PG, size - PG, READ_WRITE)
    t.write(stack + size - PG)
    _thread(t, 1000, stack, size - 8 * PG)
    s.each(
        "pthread_create_join_cached_stack",
        200,
        lambda i: _thread(t, 1001 + i, stack, size - 8 * PG),
    )
    big = (60 << 20) + PG

    def uncached(i: int) -> None:
        base = t.mmap(big, PROT_NONE)
        t.mprotect(base + PG, big - PG, READ_WRITE)
        t.fork(OpKind.CLONE, 2001 + i)
        t.switch(2001 + i)
        t.op(OpKind.THREAD_START)
        t.write(base + big - PG)
        t.madvise(base, big - 8 * PG, _DONTNEED)
        t.leave(OpKind.THREAD_EXIT)
        t.munmap(base, big)

    s.each("pthread_create_join_uncached_stack", 200, uncached)
    own = t.isolated(16 * PG)
    t.touch(own, 16)
    s.each("clone_thread_prealloc_stack", N, lambda i: _thread(t, 3001 + i, own, 0))


def _read_all(s: _Script, name: str, times: int, file: ProcFile, reads: int) -> None:
    """One op = every read(2) of the file; the last one finds its end.

    smaps_rollup shows all at once (single_open): the read at its end takes no lock and is
    left out, because a plan does not tell it from the first.
    """
    reads = s.reads.get(name, reads)
    if file is ProcFile.SMAPS_ROLLUP:
        reads -= 1

    def all_of_it(_i: int) -> None:
        for k in range(reads):
            last = k == reads - 1
            s.tape.op(OpKind.PROC_READ, flags=int(file), length=65536, result=0 if last else 4000)

    s.each(name, times, all_of_it)


def _proc(s: _Script) -> None:
    t = s.tape
    for file, times in (("maps", 100), ("smaps", 20), ("smaps_rollup", 20), ("numa_maps", 10)):
        _read_all(s, f"proc_{file}_small", times, ProcFile[file.upper()], _SMALL_READS[file])
    r = t.reserve((2 * N + 1) * PG)
    for i in range(N):
        t.mmap(PG, at=r + (2 * i + 1) * PG)
    _read_all(s, "proc_smaps_2000vmas", 5, ProcFile.SMAPS, 404)
    _read_all(s, "proc_smaps_rollup_2000vmas", 20, ProcFile.SMAPS_ROLLUP, 2)


def _remote(s: _Script) -> None:
    t = s.tape
    q = t.isolated((N + 1) * PG)
    t.touch(q, N + 1)

    def one(kind: OpKind, flags: int = 0, base: int = q, length: int = PG) -> Callable[[int], None]:
        return lambda i: t.range_op(kind, base + i * PG, length, flags)

    s.each("proc_pagemap_1entry", N, one(OpKind.PROC_READ, ProcFile.PAGEMAP, length=8))
    s.each("proc_mem_pread", N, one(OpKind.PROC_READ, ProcFile.MEM, length=8))
    s.each("process_vm_readv_self", N, one(OpKind.PROCESS_VM, length=8))
    s.each("mincore_1page", N, one(OpKind.MINCORE))
    s.each("msync_1page_anon", N, one(OpKind.MSYNC))
    u = t.isolated((N + 1) * PG)
    s.each("vmsplice_gup_untouched", N, one(OpKind.VMSPLICE, base=u, length=64))
    s.each("vmsplice_gup_touched", N, one(OpKind.VMSPLICE, length=64))


def _fork_exit(s: _Script) -> None:
    t = s.tape
    p = t.isolated(64 * PG)
    t.touch(p, 64)

    def child(kind: OpKind, end: OpKind, base: int) -> Callable[[int], None]:
        def once(i: int) -> None:
            t.fork(kind, base + i)
            t.switch(base + i)
            t.leave(end)

        return once

    s.each("fork_exit_wait", 200, child(OpKind.FORK, OpKind.PROCESS_EXIT, 1000))
    s.each("vfork_exit_wait", 200, child(OpKind.VFORK, OpKind.PROCESS_EXIT, 2000))
    s.each("vfork_exec_wait", 50, child(OpKind.VFORK, OpKind.EXEC, 3000))


def _uffd(s: _Script) -> None:
    t = s.tape
    whole = (N + 1) * PG
    p = t.isolated(whole)
    s.each("uffd_register_whole", 1, lambda i: t.range_op(OpKind.UFFD, p, whole, UffdOp.REGISTER))
    s.each("uffd_copy_first", 1, lambda i: t.range_op(OpKind.UFFD, p, PG, UffdOp.COPY))
    s.each("uffd_copy_rest", N, lambda i: t.range_op(OpKind.UFFD, p + i * PG, PG, UffdOp.COPY), 1)
    s.each(
        "uffd_unregister_whole", 1, lambda i: t.range_op(OpKind.UFFD, p, whole, UffdOp.UNREGISTER)
    )


def _segv(s: _Script) -> None:
    t = s.tape
    p = t.reserve(16 * PG)
    h = t.reserve(64 * PG)
    t.munmap(h + 16 * PG, 16 * PG)
    ro = t.isolated(4 * PG, PROT_READ)
    bad = FaultClass.FAILED
    s.each("segv_read_protnone_vma", 200, lambda i: t.fault(p + PG, outcome=bad))
    s.each("segv_unmapped", 200, lambda i: t.fault(h + 20 * PG, outcome=bad))
    s.each("segv_write_to_readonly_vma", 200, lambda i: t.write(ro, outcome=bad))


def _misc(s: _Script) -> None:
    t = s.tape
    p = t.isolated((2 * N + 1) * PG)
    t.touch(p, 2 * N + 1)
    s.each(
        "madv_guard_install_1page", N, lambda i: t.madvise(p + (2 * i + 1) * PG, PG, _GUARD_INSTALL)
    )
    s.each(
        "madv_guard_remove_1page", N, lambda i: t.madvise(p + (2 * i + 1) * PG, PG, _GUARD_REMOVE)
    )
    q = t.isolated(8 * PG)
    bind = 0  # MPOL_DEFAULT and MPOL_PREFERRED in turn
    s.each(
        "mbind_toggle_whole",
        N,
        lambda i: t.range_op(OpKind.MBIND, q, 8 * PG, bind if i & 1 else 1),
    )
    s.each("get_mempolicy_addr", N, lambda i: t.range_op(OpKind.GET_MEMPOLICY, q, PG))
    d = t.isolated(64 * PG)
    s.each(
        "madv_mergeable_toggle",
        N,
        lambda i: t.madvise(d, 64 * PG, _UNMERGEABLE if i & 1 else _MERGEABLE),
    )


def _swap(s: _Script) -> None:
    t = s.tape
    p = t.isolated((N + 1) * PG)
    t.touch(p, N + 1)
    s.each("madv_pageout_whole_1call", 1, lambda i: t.madvise(p, (N + 1) * PG, _PAGEOUT))


def _hugetlb(s: _Script) -> None:
    t = s.tape
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB
    p = t.mmap(20 * HUGE, READ_WRITE, flags, MMAP_BASE - 64 * HUGE)
    s.each("hugetlb_w_first", 1, lambda i: t.write(p))
    s.each("hugetlb_w_rest", 19, lambda i: t.write(p + i * HUGE), 1)


#: Scripts by group: the phases of one group share their set-up.
GROUPS: Final[dict[str, Callable[[_Script], None]]] = {
    "anon_w_big": _anon_w_big,
    "anon_w_vmas": _anon_w_vmas,
    "anon_r_big": _anon_r_big,
    "anon_r_vmas": _anon_r_vmas,
    "thp": _thp,
    "cow": _cow,
    "file_tmpfs": lambda s: _file(s, "tmpfs"),
    "file_ext4": lambda s: _file(s, "ext4"),
    "file_rootfs": lambda s: _file(s, "rootfs"),
    "cold": lambda s: _cold(s, "file_r_cold_ext4_readahead"),
    "cold_random": lambda s: _cold(s, "file_r_cold_random", _RANDOM),
    "shared_anon": _shared_anon,
    "kernel_faults": _kernel_faults,
    "populate": _populate,
    "mmap": _mmap,
    "mprotect": _mprotect,
    "madvise": _madvise,
    "brk": _brk,
    "mremap": _mremap,
    "stack": _stack,
    "threads": _threads,
    "proc": _proc,
    "remote": _remote,
    "fork_exit": _fork_exit,
    "uffd": _uffd,
    "segv": _segv,
    "misc": _misc,
    "swap": _swap,
    "hugetlb": _hugetlb,
}


def record(
    group: str,
    faults: Mapping[str, int] | None = None,
    reads: Mapping[str, int] | None = None,
    disk_root: bool = False,
) -> dict[str, Phase]:
    """The phases of one group as traces.

    Parameters
    ----------
    group:
        A key of :data:`GROUPS`.
    faults:
        Faults that were counted per phase, where they are fewer than its operations
        (a large folio serves several): the trace then holds as many.
    reads:
        read(2) calls per operation of the /proc phases, where they were counted.
    disk_root:
        The root file system of the counted machine is on a disk, not a tmpfs.
    """
    script = _Script(faults=faults or {}, reads=reads or {}, disk_root=disk_root)
    GROUPS[group](script)
    trace = script.tape.trace()
    return {
        name: Phase(name, trace, first, end, script.ops[name])
        for name, (first, end) in script.tape.segments.items()
    }
