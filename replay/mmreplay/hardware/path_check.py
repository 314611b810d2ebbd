"""Checks by tracing which locks a path of faulting takes: a short run, event by event."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from mmreplay.hardware import runner
from mmreplay.hardware.runner import RunRequest
from mmreplay.hardware.tracing import Instance
from mmreplay.workloads.program import MADV_POPULATE_READ, MADV_POPULATE_WRITE

# arch/x86/entry/syscalls/syscall_64.tbl
_READ, _MMAP, _MPROTECT, _MUNMAP, _BRK, _MREMAP, _MADVISE = 0, 9, 10, 11, 12, 25, 28
_FORKS: Final = (56, 57)
_CHANGES: Final = (_MMAP, _MPROTECT, _MUNMAP, _BRK, _MREMAP, *_FORKS)
#: Faults on pages of the loop itself, at most so many; and in each process that is forked.
_STRAY, _STRAY_IN_CHILD = 64, 48
_LINE: Final = re.compile(
    r"-(?P<tid>\d+) +(?:\( *[\d-]+\) +)?\[\d+\][^:]*: (?P<event>\w+): (?P<rest>.*)"
)
_SYS_ENTER: Final = re.compile(r"NR (?P<number>\d+) \((?P<arguments>[^)]*)\)")


@dataclass(slots=True)
class Traced:
    """What was traced, over the threads of the program (its main thread not counted).

    ``faults``: page faults in user mode, ``locked_faults`` those that took mmap_lock.
    ``populates``: calls that fault a page in for the caller (MADV_POPULATE, read into a
    page), ``locked_populates`` those that took it.  ``changes``: calls that change VMAs, forks
    among them.
    """

    problem: str = ""
    faults: int = 0
    locked_faults: int = 0
    populates: int = 0
    locked_populates: int = 0
    changes: int = 0
    forks: int = 0
    sees_faults: bool = True


@dataclass(slots=True)
class _Task:
    doing: str = ""  # fault, populate or nothing of interest
    counted: bool = field(default=False)


def tally(lines: Iterable[str], main: int) -> Traced:
    """Count from the lines of a tracefs ``trace`` file; ``main``: id of the main thread."""
    found = Traced()
    tasks: dict[int, _Task] = {}
    for line in lines:
        match = _LINE.search(line)
        if match is None:
            continue
        tid = int(match["tid"])
        if tid == main:
            continue
        task = tasks.setdefault(tid, _Task())
        event = match["event"]
        if event == "sys_enter":
            task.doing, task.counted = _call(match["rest"], found), False
        elif event == "page_fault_user":
            task.doing, task.counted = "fault", False
            found.faults += 1
        elif event == "mmap_lock_acquire_returned" and "write=false" in match["rest"]:
            if not task.counted:
                task.counted = True
                found.locked_faults += task.doing == "fault"
                found.locked_populates += task.doing == "populate"
    return found


def _call(rest: str, found: Traced) -> str:
    call = _SYS_ENTER.search(rest)
    if call is None:
        return ""
    number = int(call["number"])
    found.changes += number in _CHANGES
    found.forks += number in _FORKS
    populates = number == _READ
    if number == _MADVISE:
        advice = int(call["arguments"].split(",")[2], 16)
        populates = advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE)
    found.populates += populates
    return "populate" if populates else ""


def trace(request: RunRequest, fds: list[int], zero: int, rounds: int) -> Traced:
    """Run with a budget while the tracing instance of the request records, and count."""
    assert request.instance is not None
    instance = Instance(request.instance.parent.parent, request.instance.name)
    main = 0

    def started(pid: int) -> None:
        nonlocal main
        main = pid
        instance.start(pid)

    try:
        answer = runner.run(request, fds, zero, rounds, started)
    finally:
        instance.stop()
    if answer.problem:
        return Traced(problem=answer.problem)
    if instance.lost():
        return Traced(problem="the trace buffer was too small")
    found = tally(instance.lines(), main)
    found.sees_faults = instance.sees_faults()
    return found


def verdict(path: str, found: Traced, per_vma_locks: bool | None) -> str:
    """``verified``, or why not, in words.

    By the path ``vma`` a fault takes mmap_lock only where it must: the first in a new or
    changed VMA (lock_vma_under_rcu and vmf_anon_prepare@6.18).  By the others, each call
    that populates takes it.
    """
    if found.problem:
        return f"not verified: {found.problem}"
    if not found.sees_faults:
        return "not verified: this kernel has no events of page faults"
    if path == "vma":
        if found.faults <= _STRAY:
            return "nothing to verify: no page faults"
        free = found.faults - found.locked_faults
        if found.locked_faults <= found.changes + _STRAY:
            if free <= _STRAY and found.locked_faults > _STRAY:
                return "verified: each fault is the first in its VMA and takes mmap_lock"
            return "verified"
        if per_vma_locks is False:
            return "not verified: this kernel has no per-VMA locks"
        return f"not verified: {found.locked_faults} of {found.faults} faults took mmap_lock"
    if found.populates == 0:
        return "nothing to verify: no page faults"
    if found.locked_populates < found.populates * 0.99:
        return f"not verified: {found.locked_populates} of {found.populates} calls took mmap_lock"
    stray = _STRAY + found.forks * _STRAY_IN_CHILD
    if found.faults > found.populates * 0.01 + stray:
        return f"not verified: {found.faults} faults beside {found.populates} calls"
    return "verified"


def buffers(instance: Instance) -> int:
    """Make room on the CPU that a check is to run on, and say which that is."""
    cpu = min(os.sched_getaffinity(0))
    instance.buffer(cpu)
    return cpu
