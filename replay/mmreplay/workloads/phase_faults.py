"""Phases of the lock-count measurement: page faults of every kind."""

from __future__ import annotations

from typing import Final

from mmreplay.schema import FaultClass, OpKind, UffdOp
from mmreplay.workloads.script import AROUND, HUGE, PG, Script
from mmreplay.workloads.tape import (
    MAP_ANONYMOUS,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MMAP_BASE,
    PROT_READ,
    READ_WRITE,
    STACK_TOP,
    File,
)

# include/uapi/asm-generic/mman-common.h
_RANDOM, _WILLNEED, _HUGEPAGE, _PAGEOUT = 1, 3, 14, 21
_POPULATE_READ, _POPULATE_WRITE = 22, 23

FILES: Final = {
    "tmpfs": File("/dev/shm/lt/data", 3, 1001, 0x19),
    "ext4": File("/data/data", 4, 1002, 0x800001),
    "rootfs": File("/dev/shm/rootfs/data", 5, 1003, 0x2),  # an initramfs is a tmpfs
}


def anon_w_big(s: Script) -> None:
    p = s.tape.isolated((s.n + 1) * PG)
    s.each("anon_w_big_first", 1, lambda i: s.tape.write(p))
    s.each("anon_w_big_rest", s.n, lambda i: s.tape.write(p + i * PG), 1, faults=True)


def anon_w_vmas(s: Script) -> None:
    t, n = s.tape, s.n
    r = t.reserve((3 * n + 2) * PG)
    for i in range(n):
        t.mmap(2 * PG, at=r + (3 * i + 1) * PG)
    s.each("anon_w_1000vmas_first", n, lambda i: t.write(r + (3 * i + 1) * PG))
    s.each("anon_w_1000vmas_second", n, lambda i: t.write(r + (3 * i + 2) * PG))
    s.each("munmap_1000vmas_touched_each", n, lambda i: t.munmap(r + (3 * i + 1) * PG, 2 * PG))


def anon_r_big(s: Script) -> None:
    t, n = s.tape, s.n
    p = t.isolated((n + 1) * PG)
    s.each("anon_r_zero_first", 1, lambda i: t.fault(p))
    s.each("anon_r_zero_rest", n, lambda i: t.fault(p + i * PG), 1, faults=True)
    s.each("anon_w_over_zero_first", 1, lambda i: t.write(p, present=True))
    s.each("anon_w_over_zero_rest", n, lambda i: t.write(p + i * PG, present=True), 1, faults=True)


def anon_r_vmas(s: Script) -> None:
    t = s.tape
    r = t.reserve((2 * s.n + 1) * PG)
    for i in range(s.n):
        t.mmap(PG, at=r + (2 * i + 1) * PG)
    s.each("anon_r_zero_1000vmas_first", s.n, lambda i: t.fault(r + (2 * i + 1) * PG))


def thp(s: Script) -> None:
    t = s.tape
    r = t.reserve(24 * HUGE)
    a = (r + 2 * HUGE - 1) & ~(HUGE - 1)
    t.mmap(20 * HUGE, at=a)
    t.madvise(a, 20 * HUGE, _HUGEPAGE)
    s.each("thp_w_first", 1, lambda i: t.write(a))
    s.each("thp_w_rest", 19, lambda i: t.write(a + i * HUGE), 1)


def cow(s: Script) -> None:
    t, n = s.tape, s.n
    p = t.isolated((n + 1) * PG)
    t.touch(p, n + 1)

    def write(i: int) -> None:
        t.write(p + i * PG, present=True)

    def child_comes_and_goes(tid: int) -> None:
        t.fork(OpKind.FORK, tid)
        t.switch(tid)
        t.leave(OpKind.PROCESS_EXIT)

    t.fork(OpKind.FORK, 100)
    t.switch(100)
    s.each("cow_child_first", 1, write)
    s.each("cow_child_rest", n, write, 1, faults=True)
    t.switch(1)
    s.each("cow_parent_after_child_copied(reuse)", n, write, 1, faults=True)
    t.switch(100)
    t.leave(OpKind.PROCESS_EXIT)
    t.fork(OpKind.FORK, 101)
    s.each("cow_parent_copy", n, write, 1, faults=True)
    t.switch(101)
    t.leave(OpKind.PROCESS_EXIT)
    child_comes_and_goes(102)
    s.each("cow_parent_reuse_child_gone", n, write, 1, faults=True)


def file(s: Script, tag: str) -> None:
    t, n = s.tape, s.n
    data = FILES["ext4" if tag == "rootfs" and s.disk_root else tag]
    span = (n + 1) * AROUND
    p = t.isolated(span, PROT_READ, MAP_PRIVATE, data)
    s.each(f"file_r_priv_first_{tag}", 1, lambda i: t.fault(p))
    s.each(f"file_r_priv_rest_{tag}", n, lambda i: t.fault(p + i * AROUND), 1, faults=True)
    shared = t.isolated(span, PROT_READ, MAP_SHARED, data)
    s.each(f"file_r_shared_{tag}", n, lambda i: t.fault(shared + i * AROUND), faults=True)
    q = t.isolated((n + 1) * PG, READ_WRITE, MAP_PRIVATE, data)
    s.each(f"file_w_priv_first_{tag}", 1, lambda i: t.write(q))
    s.each(f"file_w_priv_rest_{tag}", n, lambda i: t.write(q + i * PG), 1, faults=True)
    w = t.isolated((n + 1) * PG, READ_WRITE, MAP_SHARED, data)
    s.each(f"file_w_shared_first_{tag}", 1, lambda i: t.write(w))
    s.each(f"file_w_shared_rest_{tag}", n, lambda i: t.write(w + i * PG), 1, faults=True)
    r = t.reserve((2 * n + 1) * PG)
    for i in range(n):
        t.mmap(PG, PROT_READ, MAP_PRIVATE, r + (2 * i + 1) * PG, data, i * PG)
    s.each(f"file_r_priv_1000vmas_{tag}", n, lambda i: t.fault(r + (2 * i + 1) * PG), faults=True)
    s.each(f"willneed_file_{tag}", n, lambda i: t.madvise(p + i * AROUND, PG, _WILLNEED))


def cold_random(s: Script) -> None:
    _cold(s, "file_r_cold_ext4_random_1page", 200, _RANDOM)


def cold_readahead(s: Script) -> None:
    # the first window was read in with the file's metadata
    _cold(s, "file_r_cold_ext4_readahead", 199)


def _cold(s: Script, name: str, major: int, advice: int = 0) -> None:
    """Reads of a file that is not in the page cache, as many of them major as were counted."""
    t = s.tape
    p = t.isolated(201 * AROUND, PROT_READ, MAP_PRIVATE, FILES["ext4"])
    if advice:
        t.madvise(p, 201 * AROUND, advice)
    counted = s.of(name).major
    cached = 200 - (major if counted is None else min(counted, 200))

    def read(i: int) -> None:
        t.fault(p + i * AROUND, outcome=FaultClass.MINOR if i < cached else FaultClass.MAJOR)

    s.each(name, 200, read)


def shared_anon(s: Script) -> None:
    t = s.tape
    p = t.isolated((s.n + 1) * PG, READ_WRITE, MAP_SHARED | MAP_ANONYMOUS)
    s.each("shared_anon_w_first", 1, lambda i: t.write(p))
    s.each("shared_anon_w_rest", s.n, lambda i: t.write(p + i * PG), 1, faults=True)


def kernel_faults(s: Script) -> None:
    t, n = s.tape, s.n
    p = t.isolated((n + 1) * PG)
    s.each("kfault_read_devzero_first", 1, lambda i: t.write(p, kernel=True))
    s.each("kfault_read_devzero_rest", n, lambda i: t.write(p + i * PG, kernel=True), 1)
    q = t.isolated((n + 1) * PG)
    name = "kfault_write_tmpfs_from_untouched"
    # a write(2) may first copy with page faults disabled (that fault fails and takes no lock)
    # and fault the page in then (fault_in_readable); older kernels fault it in at once
    faults = s.of(name).faults_kernel
    tries = 1 if faults is None else max(1, round(faults / n))

    def copy(i: int) -> None:
        for _ in range(tries - 1):
            t.fault(q + i * PG, kernel=True, outcome=FaultClass.FAILED)
        t.fault(q + i * PG, kernel=True)

    s.each(name, n, copy)


def populate(s: Script) -> None:
    t, n = s.tape, s.n
    p = t.isolated((n + 1) * PG)
    s.each("populate_write_first", 1, lambda i: t.madvise(p, PG, _POPULATE_WRITE))
    s.each("populate_write_1page_rest", n, lambda i: t.madvise(p + i * PG, PG, _POPULATE_WRITE), 1)
    q = t.isolated((n + 1) * PG)
    s.each("populate_write_1000pages_1call", 1, lambda i: t.madvise(q, n * PG, _POPULATE_WRITE))
    q2 = t.isolated((n + 1) * PG)
    s.each("populate_read_1page", n, lambda i: t.madvise(q2 + i * PG, PG, _POPULATE_READ), 1)
    r = t.reserve((2 * n + 2) * PG)
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE

    def mapped(i: int) -> None:
        t.mmap(PG, READ_WRITE, flags, r + (2 * i + 1) * PG)

    s.each("mmap_MAP_POPULATE_1page", n, mapped)
    ml = t.isolated(4 * PG)

    def pair(i: int) -> None:
        t.range_op(OpKind.MLOCK, ml, 4 * PG)
        t.range_op(OpKind.MUNLOCK, ml, 4 * PG)

    s.each("mlock_1page_pair(mlock+munlock)", n, pair)


def stack(s: Script) -> None:
    t, n = s.tape, s.n
    top = STACK_TOP - (33 << 12)
    s.each("stack_grow_write", n, lambda i: t.write(top - i * PG), 1)
    r = t.reserve((n + 600) * PG)
    t.munmap(r + PG, (n + 500) * PG)
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN
    g = t.mmap(PG, READ_WRITE, flags, r + (n + 400) * PG)
    t.write(g)
    s.each("growsdown_vma_write", 100, lambda i: t.write(g - i * PG), 1)


def uffd(s: Script) -> None:
    t, n = s.tape, s.n
    whole = (n + 1) * PG
    p = t.isolated(whole)
    s.each("uffd_register_whole", 1, lambda i: t.range_op(OpKind.UFFD, p, whole, UffdOp.REGISTER))
    s.each("uffd_copy_first", 1, lambda i: t.range_op(OpKind.UFFD, p, PG, UffdOp.COPY))
    s.each("uffd_copy_rest", n, lambda i: t.range_op(OpKind.UFFD, p + i * PG, PG, UffdOp.COPY), 1)
    s.each(
        "uffd_unregister_whole", 1, lambda i: t.range_op(OpKind.UFFD, p, whole, UffdOp.UNREGISTER)
    )


def segv(s: Script) -> None:
    t = s.tape
    p = t.reserve(16 * PG)
    h = t.reserve(64 * PG)
    t.munmap(h + 16 * PG, 16 * PG)
    ro = t.isolated(4 * PG, PROT_READ)
    bad = FaultClass.FAILED
    s.each("segv_read_protnone_vma", 200, lambda i: t.fault(p + PG, outcome=bad))
    s.each("segv_unmapped", 200, lambda i: t.fault(h + 20 * PG, outcome=bad))
    s.each("segv_write_to_readonly_vma", 200, lambda i: t.write(ro, outcome=bad))


def swap(s: Script) -> None:
    t, n = s.tape, s.n
    p = t.isolated((n + 1) * PG)
    t.touch(p, n + 1)
    s.each("madv_pageout_whole_1call", 1, lambda i: t.madvise(p, (n + 1) * PG, _PAGEOUT))
    name = "swapin_write_faults"
    major = s.of(name).major or 0  # read-ahead decides how many find their page already read

    def write(i: int) -> None:
        t.write(p + i * PG, outcome=FaultClass.MAJOR if i < major else FaultClass.MINOR)

    s.each(name, n, write, faults=True)


def hugetlb(s: Script) -> None:
    t = s.tape
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB
    p = t.mmap(20 * HUGE, READ_WRITE, flags, MMAP_BASE - 64 * HUGE)
    s.each("hugetlb_w_first", 1, lambda i: t.write(p))
    s.each("hugetlb_w_rest", 19, lambda i: t.write(p + i * HUGE), 1)
