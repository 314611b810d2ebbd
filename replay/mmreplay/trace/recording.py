"""The ``perf record`` lines that give a trace what an analysis needs.

The default set is the cheapest that tells waits from think time; every part is
named by the capability it adds, so that what is missing becomes an exact command.
"""

from __future__ import annotations

from typing import Final

from mmreplay.trace.header import Header

#: Tracepoints of these calls, both ends.  mmap_lock:* is left out on purpose: it fires
#: inside the critical section and lengthens the waits it is meant to show.
SYSCALLS: Final = (
    "mmap,munmap,mprotect,pkey_mprotect",
    "madvise,process_madvise,brk,mremap",
    "mlock,mlock2,munlock,shmat,shmdt,mbind",
    "clone,clone3,fork,vfork,execve",
)
#: lock:contention_begin/end came with 5.19.
_CONTENTION_SINCE: Final = (5, 19)

_FAULTS: Final = ("-e exceptions:page_fault_user", "-e exceptions:page_fault_kernel")
_FAULT_ENDS: Final = ("-e minor-faults", "-e major-faults")
# The option and its value are one word: a brace list repeats the whole word.
_CALLS: Final = tuple(f"-esyscalls:sys_{{enter,exit}}_{{{calls}}}" for calls in SYSCALLS)
_CONTENTION: Final = ("-e lock:contention_begin", "-e lock:contention_end")
_WAKEUPS: Final = "-e sched:sched_waking"

#: Capability -> the options that add it, as a reader would look for them in the command.
ADDED_BY: Final[dict[str, str]] = {
    "faults": " ".join(_FAULTS),
    "fault_duration": f"-d {' '.join(_FAULT_ENDS)}",
    "syscall_durations": "-esyscalls:sys_{enter,exit}_{mmap,munmap,...}",
    "think": "--switch-events",
    "switches": "--switch-events",
    "data_mmaps": "-d",
    "kernel_faults": _FAULTS[1],
    "compat_visible": "-e raw_syscalls:sys_enter -e raw_syscalls:sys_exit",
    "lock_spans": " ".join(_CONTENTION),
    "wakeups": _WAKEUPS,
    "sampling": "-c 1 in place of -F",
}


def has_contention_events(release: str | None) -> bool:
    """Whether a kernel of that release has ``lock:contention_*``; an unknown one has."""
    if release is None:
        return True
    major, minor = release.split(".")[:2]
    return (int(major), int(minor)) >= _CONTENTION_SINCE


def record_command(
    header: Header | None = None, *, wakeups: bool = False, compat: bool = False
) -> list[str]:
    """The default recording as the words of a shell command, one option a word.

    Leaves out what the kernel of ``header`` does not have, and records what
    ``header`` recorded: a command, processes, or the whole machine.
    """
    release = header.kernel_release if header else None
    target = header.target if header else "command"
    words = ["perf record", "-d", "-k CLOCK_MONOTONIC", "--switch-events", "-c 1", "-m 4096"]
    words += [*_FAULTS, *_FAULT_ENDS, *_CALLS]
    if has_contention_events(release):
        words += _CONTENTION
    if wakeups:
        words.append(_WAKEUPS)
    if compat:
        words.append(ADDED_BY["compat_visible"])
    words.append({"pids": "-p PID", "all": "-a"}.get(target, "-- CMD"))
    return words
