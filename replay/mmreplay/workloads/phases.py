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
from functools import partial
from typing import Final

from mmreplay.workloads import phase_calls as calls
from mmreplay.workloads import phase_faults as faults
from mmreplay.workloads import phase_processes as processes
from mmreplay.workloads.script import Given, N, Phase, Script

__all__ = ["GROUPS", "NOT_EXPRESSIBLE", "Given", "Phase", "partly", "reason", "record", "undecided"]

#: Phases that a trace cannot hold, and why; a name that ends in ``*`` stands for all that
#: begin so.
NOT_EXPRESSIBLE: Final[dict[str, str]] = {
    "conc_*": "two threads at full speed: how often they meet depends on their speed",
}

#: Columns of a phase that a trace cannot decide, and why.
PARTLY: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "vfork_exec_wait": (
        ("vma_lock_ok", "vma_start_write_slow"),
        "the counts hold what the child's new program did",
    ),
    "fork_exit_wait": (
        ("vma_start_write_slow",),
        "one mark for each VMA of the process, whose number was not recorded",
    ),
}

#: Scripts by group: the phases of one group share their set-up.
GROUPS: Final[dict[str, Callable[[Script], None]]] = {
    "nothing": calls.nothing,
    "anon_w_big": faults.anon_w_big,
    "anon_w_vmas": faults.anon_w_vmas,
    "anon_r_big": faults.anon_r_big,
    "anon_r_vmas": faults.anon_r_vmas,
    "thp": faults.thp,
    "cow": faults.cow,
    "file_tmpfs": partial(faults.file, tag="tmpfs"),
    "file_ext4": partial(faults.file, tag="ext4"),
    "file_rootfs": partial(faults.file, tag="rootfs"),
    "cold_random": faults.cold_random,
    "cold_readahead": faults.cold_readahead,
    "shared_anon": faults.shared_anon,
    "kernel_faults": faults.kernel_faults,
    "populate": faults.populate,
    "mmap": calls.mmap,
    "mprotect": calls.mprotect,
    "madvise": calls.madvise,
    "brk": calls.brk,
    "mremap": calls.mremap,
    "stack": faults.stack,
    "threads": processes.threads,
    "proc": processes.proc,
    "remote": calls.remote,
    "fork_exit": processes.fork_exit,
    "uffd": faults.uffd,
    "segv": faults.segv,
    "misc": calls.misc,
    "process_madvise": calls.process_madvise,
    "swap": faults.swap,
    "hugetlb": faults.hugetlb,
}


def undecided(name: str, given: Given) -> str:
    """Why what was counted besides locks leaves the phase open; empty where it does not."""
    if name == "file_r_cold_ext4_readahead" and 0 < (given.major or 0) < (given.ops or 0) - 1:
        return (
            "a fault that finds its page also drops its lock where it starts the next read-ahead:"
            " a recording does not show which faults do"
        )
    return ""


def reason(name: str) -> str:
    """Why the phase ``name`` cannot be expressed; empty where it can."""
    for pattern, why in NOT_EXPRESSIBLE.items():
        if name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1])):
            return why
    return ""


def partly(name: str, column: str) -> str:
    """Why ``column`` of the phase cannot be compared; empty where it can."""
    columns, why = PARTLY.get(name.partition(":")[0], ((), ""))
    return why if column in columns else ""


def record(
    group: str,
    given: Mapping[str, Given] | None = None,
    *,
    n: int = N,
    gate: bool = False,
    disk_root: bool = False,
) -> dict[str, Phase]:
    """The phases of one group as traces.

    Parameters
    ----------
    group:
        A key of :data:`GROUPS`.
    given:
        What was counted besides locks, by phase: see :class:`Given`.
    n:
        Operations of a phase that has no number of its own.
    gate:
        The machine shows [vsyscall] in /proc/PID/maps.
    disk_root:
        Its root file system is on a disk, not a tmpfs.
    """
    script = Script(n=n, given=given or {}, gate=gate, disk_root=disk_root)
    GROUPS[group](script)
    return script.phases()
