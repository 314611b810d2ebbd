"""The ``perf record`` lines that give a trace what an analysis needs.

One description of a recording (:class:`Recording`) is both printed for people and run by
``mmreplay record``.  The default set is the cheapest that tells waits from think time; every
part is named by the capability it adds, so that what is missing becomes an exact command.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmreplay.trace.header import Header

#: Whether a kernel has an event, named as ``system:event``.
Has = Callable[[str], bool]

#: Tracepoints of these calls, both ends; a line of the command each.  mmap_lock:* is left out on
#: purpose: it fires inside the critical section and lengthens the waits it is meant to show.
SYSCALLS: Final = (
    "mmap,munmap,mprotect,pkey_mprotect",
    "madvise,process_madvise,brk,mremap",
    "mlock,mlock2,munlock,mlockall,munlockall",
    "shmat,shmdt,mbind,remap_file_pages,mseal",
    "clone,clone3,fork,vfork,execve,execveat",
)
#: First release that has the call or the event; all others are older than any kernel still run
#: (arch/x86/entry/syscalls/syscall_64.tbl and include/trace/events/lock.h of these releases).
_SINCE: Final = {
    "mlock2": (4, 4),
    "pkey_mprotect": (4, 9),
    "clone3": (5, 3),
    "process_madvise": (5, 10),
    "mseal": (6, 10),
    "futex_waitv": (5, 16),
    "futex_wait": (6, 7),
    "futex_wake": (6, 7),
    "futex_requeue": (6, 7),
    "lock:contention_begin": (5, 19),
    "lock:contention_end": (5, 19),
}

_FAULTS: Final = ("exceptions:page_fault_user", "exceptions:page_fault_kernel")
#: The start of a fault on architectures without the tracepoints: no error code, so no read/write.
_PORTABLE_FAULT: Final = "faults"
_FAULT_ENDS: Final = ("minor-faults", "major-faults")
_CONTENTION: Final = ("lock:contention_begin", "lock:contention_end")
#: The flags of clone3, which the call passes by a pointer; an event for each new task.
_NEW_TASK: Final = "task:task_newtask"
_WAKEUPS: Final = "sched:sched_waking"
#: The same by the calls of who waits and who wakes, where the scheduler's event is missing.
FUTEXES: Final = ("futex", "futex_waitv", "futex_wait", "futex_wake", "futex_requeue")
_FUTEX: Final = tuple(
    f"syscalls:sys_{side}_{call}" for call in FUTEXES for side in ("enter", "exit")
)
#: Event -> what perf is to pass on of it.  Beside sched_waking, of futex only waits for futexes
#: that are not private: who joins a thread waits so, and from 6.16 on perf loses that thread's
#: last wake-up.
_FILTERS: Final = {_FUTEX[0]: "!(op & 128)"}
_COMPAT: Final = ("raw_syscalls:sys_enter", "raw_syscalls:sys_exit")
#: Pages of each CPU's ring: 16 MiB; four pages lost 17 % of the events.
RING_PAGES: Final = 4096


def _each(*events: str) -> str:
    return " ".join(f"-e {event}" for event in events)


#: Capability -> the options that add it, as a reader would look for them in the command.
ADDED_BY: Final[dict[str, str]] = {
    "faults": _each(*_FAULTS),
    "fault_duration": f"-d {_each(*_FAULT_ENDS)}",
    "syscall_durations": "-esyscalls:sys_{enter,exit}_{mmap,munmap,...}",
    "think": "--switch-events",
    "switches": "--switch-events",
    "data_mmaps": "-d",
    "kernel_faults": _each(_FAULTS[1]),
    "compat_visible": _each(*_COMPAT),
    "lock_spans": _each(*_CONTENTION),
    "wakeups": _each(_WAKEUPS, _FUTEX[0]),
    "sampling": "-c 1 in place of -F",
}


@dataclass(frozen=True, slots=True)
class EventSet:
    """The events of a recording, by what they are for."""

    faults: tuple[str, ...]
    fault_ends: tuple[str, ...]
    calls: tuple[str, ...]  # names of system calls, recorded at both ends
    contention: tuple[str, ...]
    wakeups: tuple[str, ...]
    compat: tuple[str, ...]
    tasks: tuple[str, ...] = ()

    @property
    def events(self) -> tuple[str, ...]:
        """All of them, as perf names them."""
        calls = (f"syscalls:sys_{side}_{call}" for call in self.calls for side in ("enter", "exit"))
        return (*self.faults, *self.fault_ends, *calls, *self.others)

    @property
    def counted(self) -> dict[str, int]:
        """Those that must be counted to know how many all are, and how many each stands for.

        A call's entry and return are as many, and so are a wait's begin and end; the kernel takes
        some 30 ms to turn each tracepoint on, and the same to turn it off.
        """
        found = dict.fromkeys((*self.faults, *self.fault_ends, *self.tasks, *self.wakeups), 1)
        found |= dict.fromkeys((f"syscalls:sys_enter_{call}" for call in self.calls), 2)
        return found | dict.fromkeys((*self.contention[:1], *self.compat[:1]), 2)

    @property
    def others(self) -> tuple[str, ...]:
        """All but faults and system calls."""
        return (*self.contention, *self.tasks, *self.wakeups, *self.compat)

    def option(self, event: str) -> tuple[str, ...]:
        """The options that record one of the events."""
        if _WAKEUPS in self.wakeups and event in _FILTERS:
            return ("-e", event, "--filter", _FILTERS[event])
        return ("-e", event)

    @property
    def addresses(self) -> bool:
        """Whether perf must add addresses (``-d``): software events carry them only so."""
        return bool(self.fault_ends) or _PORTABLE_FAULT in self.faults


def choose_events(
    has: Has, *, light: bool = False, wakeups: bool = False, compat: bool = False
) -> EventSet:
    """The events to record on a kernel: perf refuses the whole recording over one unknown.

    Parameters
    ----------
    has:
        :func:`in_release` or :func:`in_tracefs`.
    light:
        Without the ends of faults, 0.65 us a fault cheaper: counts and order, no waits.
    wakeups:
        With who woke whom: by ``sched_waking``, else by ``futex`` calls.
    compat:
        With the system calls of 32-bit tasks.
    """
    starts = tuple(filter(has, _FAULTS)) or (_PORTABLE_FAULT,)
    calls = tuple(
        call
        for group in SYSCALLS
        for call in group.split(",")
        if has(f"syscalls:sys_enter_{call}") and has(f"syscalls:sys_exit_{call}")
    )
    contention = _CONTENTION if all(map(has, _CONTENTION)) else ()
    waking = tuple(filter(has, (_WAKEUPS, _FUTEX[0]) if has(_WAKEUPS) else _FUTEX))
    return EventSet(
        starts,
        () if light else _FAULT_ENDS,
        calls,
        contention,
        waking if wakeups else (),
        _COMPAT if compat and all(map(has, _COMPAT)) else (),
        (_NEW_TASK,) if has(_NEW_TASK) else (),
    )


def in_release(release: str | None) -> Has:
    """What an x86-64 kernel of that release has; an unknown one (None) has everything."""
    if release is None:
        return lambda event: True
    major, minor = (int(part) for part in release.split(".")[:2])

    def has(event: str) -> bool:
        call = event.removeprefix("syscalls:sys_enter_").removeprefix("syscalls:sys_exit_")
        return (major, minor) >= _SINCE.get(call, (0, 0))

    return has


def in_tracefs(events: Path) -> Has:
    """What the kernel has whose ``tracing/events`` directory is ``events``."""
    return lambda event: (events / event.replace(":", "/")).is_dir()


def has_contention_events(release: str | None) -> bool:
    """Whether a kernel of that release has ``lock:contention_*``; an unknown one has."""
    return in_release(release)(_CONTENTION[0])


@dataclass(frozen=True, slots=True)
class Recording:
    """One ``perf record``: what it records, of whom, and where to."""

    events: EventSet
    target: tuple[str, ...] = ("--", "CMD")
    stacks: bool = False
    ring_pages: int = RING_PAGES
    #: Keep what fits the rings only, and write it on SIGUSR2 and at the end.
    keep: bool = False
    max_size: str | None = None
    output: str | None = None
    #: Without perf's thread that waits for BPF programs, for whose end perf's own may wait a
    #: second (``--no-bpf-event``, perf 5.1).
    no_bpf: bool = False

    def words(self) -> list[str]:
        """The shell command, an option and its value a word; the calls as brace lists of bash."""
        words = ["perf record"]
        words += [" ".join(map(shlex.quote, option)) for option in self._options()]
        words += [f"-e {event}" for event in (*self.events.faults, *self.events.fault_ends)]
        for group in SYSCALLS:
            calls = [call for call in group.split(",") if call in self.events.calls]
            # The option and its value are one word: a brace list repeats the whole word.
            if calls:
                listed = f"{{{','.join(calls)}}}" if len(calls) > 1 else calls[0]
                words.append(f"-esyscalls:sys_{{enter,exit}}_{listed}")
        words += [shlex.join(self.events.option(event)) for event in self.events.others]
        return [*words, shlex.join(self.target)]

    def argv(self) -> list[str]:
        """The same as arguments, to be run."""
        words = ["perf", "record"]
        for option in self._options():
            words += option
        for event in self.events.events:
            words += self.events.option(event)
        return [*words, *self.target]

    def _options(self) -> list[tuple[str, ...]]:
        # -B: perf would read all it has written once more, for build-ids that nobody asks for.
        options: list[tuple[str, ...]] = [("-B",)]
        if self.events.addresses:
            options.append(("-d",))
        options += [("-k", "CLOCK_MONOTONIC"), ("--switch-events",), ("-c", "1")]
        options.append(("-m", str(self.ring_pages)))
        if self.no_bpf:
            options.append(("--no-bpf-event",))
        if self.stacks:
            options.append(("-g",))
        if self.keep:
            options += [("--overwrite",), ("--switch-output",)]
        if self.max_size is not None:
            options.append(("--max-size", self.max_size))
        if self.output is not None:
            options.append(("-o", self.output))
        return options


def record_command(
    header: Header | None = None,
    *,
    wakeups: bool = False,
    compat: bool = False,
    ring_pages: int | None = None,
) -> list[str]:
    """The default recording as the words of a shell command, one option a word.

    Leaves out what the kernel of ``header`` does not have, and records what
    ``header`` recorded: a command, processes, or the whole machine.
    """
    release = header.kernel_release if header else None
    events = choose_events(in_release(release), wakeups=wakeups, compat=compat)
    targets = {"pids": ("-p", "PID"), "all": ("-a",)}
    target = targets.get(header.target if header else "command", ("--", "CMD"))
    return Recording(events, target, ring_pages=ring_pages or RING_PAGES).words()
