"""Phases of the lock-count measurement: threads, processes and /proc files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mmreplay.schema import OpKind, ProcFile
from mmreplay.workloads.script import PG, Script
from mmreplay.workloads.tape import PROT_NONE, READ_WRITE, Tape

_DONTNEED: Final = 4  # include/uapi/asm-generic/mman-common.h
#: read(2) calls per listing of a small process, the one that finds the end included.
_SMALL_READS: Final = {"maps": 2, "smaps": 4, "smaps_rollup": 2, "numa_maps": 2}
#: What glibc 2.36 leaves of a thread's stack when it ends: the pages in use stay.
_KEPT: Final = 8 * PG


def _thread(t: Tape, tid: int, stack: int, freed: int) -> None:
    t.fork(OpKind.CLONE, tid)
    t.switch(tid)
    t.op(OpKind.THREAD_START)
    if freed:
        t.madvise(stack, freed, _DONTNEED)  # glibc: the unused part, from the guard on
    t.leave(OpKind.THREAD_EXIT)


def threads(s: Script) -> None:
    t, n = s.tape, s.n
    size = 2052 * PG  # 8 MiB and a guard page, glibc's default
    stack = t.mmap(size, PROT_NONE)
    t.mprotect(stack + PG, size - PG, READ_WRITE)
    t.write(stack + size - PG)
    _thread(t, 1000, stack, size - _KEPT)
    s.each(
        "pthread_create_join_cached_stack",
        200,
        lambda i: _thread(t, 1001 + i, stack, size - _KEPT),
        exits=1,
    )
    big = (60 << 20) + PG  # more than glibc keeps: 40 MiB

    def uncached(i: int) -> None:
        base = t.mmap(big, PROT_NONE)
        t.mprotect(base + PG, big - PG, READ_WRITE)
        t.write(base + big - PG)  # glibc fills in the thread's descriptor
        _thread(t, 2001 + i, base, big - _KEPT)
        if i == 0:
            t.munmap(stack, size)  # the cache is over its limit: the older stack goes too
        t.munmap(base, big)

    s.each("pthread_create_join_uncached_stack", 200, uncached, exits=1)
    own = t.isolated(16 * PG)
    t.touch(own, 16)
    s.each("clone_thread_prealloc_stack", n, lambda i: _thread(t, 5001 + i, own, 0), exits=1)


def _read_all(s: Script, name: str, times: int, file: ProcFile, reads: int) -> None:
    """One op = every read(2) of the file; the last one finds its end."""
    counted = s.of(name).reads_per_op
    calls = reads if counted is None else counted

    def all_of_it(_i: int) -> None:
        for k in range(calls):
            result = 0 if k == calls - 1 else 4000
            s.tape.op(OpKind.PROC_READ, flags=int(file), length=65536, result=result)

    s.each(name, times, all_of_it)


def proc(s: Script) -> None:
    t = s.tape
    for file, times in (("maps", 100), ("smaps", 20), ("smaps_rollup", 20), ("numa_maps", 10)):
        _read_all(s, f"proc_{file}_small", times, ProcFile[file.upper()], _SMALL_READS[file])
    r = t.reserve((2 * s.n + 1) * PG)
    for i in range(s.n):
        t.mmap(PG, at=r + (2 * i + 1) * PG)
    _read_all(s, "proc_maps_2000vmas", 20, ProcFile.MAPS, 26)
    _read_all(s, "proc_smaps_2000vmas", 5, ProcFile.SMAPS, 404)
    _read_all(s, "proc_smaps_rollup_2000vmas", 20, ProcFile.SMAPS_ROLLUP, 2)


def fork_exit(s: Script) -> None:
    t = s.tape
    p = t.isolated(64 * PG)
    t.touch(p, 64)
    name = "fork_exit_wait"
    given, times = s.of(name), 200

    def share(counted: int | None, children: int | None, mine: bool) -> int:
        """Faults per fork of the parent or of the child, as they were counted."""
        theirs = children or 0
        return round(((counted or 0) - theirs if mine else theirs) / times)

    own = share(given.faults_user, given.child_faults_user, True)
    own_kernel = share(given.faults_kernel, given.child_faults_kernel, True)
    others = share(given.faults_user, given.child_faults_user, False)
    others_kernel = share(given.faults_kernel, given.child_faults_kernel, False)

    def copies(user: int, kernel: int) -> None:
        """Writes to pages that the fork has write-protected: stack and data of the C library."""
        for k in range(user + kernel):
            t.write(p + k * PG, present=True, kernel=k >= user)

    def forked(i: int) -> None:
        t.fork(OpKind.FORK, 1000 + i)
        t.switch(1000 + i)
        copies(others, others_kernel)
        t.leave(OpKind.PROCESS_EXIT)
        copies(own, own_kernel)

    def vforked(end: OpKind, base: int) -> Callable[[int], None]:
        def once(i: int) -> None:
            t.fork(OpKind.VFORK, base + i)
            t.switch(base + i)
            t.leave(end)

        return once

    s.each(name, times, forked, exits=1)
    s.each("vfork_exit_wait", 200, vforked(OpKind.PROCESS_EXIT, 2000), exits=1)
    s.each("vfork_exec_wait", 50, vforked(OpKind.EXEC, 3000), exits=1)
