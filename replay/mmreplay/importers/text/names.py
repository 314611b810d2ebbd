"""Names of events in text -> what pairing knows them as."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers import events as ev
from mmreplay.importers.binary import new_table, table_put
from mmreplay.importers.names import FileName, file_name
from mmreplay.importers.syscalls import BY_NAME, CALLS, PAGED
from mmreplay.importers.text.bytes import fnv
from mmreplay.importers.text.records import RECORDS
from mmreplay.importers.text.scan import CALL_ENTER, CALL_EXIT, FILE, SCHED_EXIT, STACK

#: Different names that are counted each; what comes then is counted together.
MOST_NAMES: Final = 4096
_ROLES: Final = {
    "page_fault_user": ev.FAULT_USER,
    "page_fault_kernel": ev.FAULT_KERNEL,
    "faults": ev.FAULT_SOFTWARE,
    "page-faults": ev.FAULT_SOFTWARE,
    "minor-faults": ev.FAULT_MINOR,
    "major-faults": ev.FAULT_MAJOR,
    "contention_begin": ev.CONTENTION_BEGIN,
    "contention_end": ev.CONTENTION_END,
    "sched_switch": ev.SCHED_SWITCH,
    "sched_waking": ev.WAKING,
    "sched_wakeup": ev.WAKING,
    "task_newtask": ev.NEW_TASK,
    "sched_process_exit": SCHED_EXIT,
    "kernel_stack": STACK,
    "user_stack": STACK,
    "mmap_lock_start_locking": ev.MMAP_LOCK_START,
    "mmap_lock_acquire_returned": ev.MMAP_LOCK_ACQUIRED,
    "mmap_lock_released": ev.MMAP_LOCK_RELEASED,
    "sys_enter": ev.RAW_ENTER,
    "sys_exit": ev.RAW_EXIT,
}
_SOFTWARE: Final = frozenset((ev.FAULT_SOFTWARE, ev.FAULT_MINOR, ev.FAULT_MAJOR))
_SYSTEMS: Final = {
    "page_fault_user": "exceptions",
    "page_fault_kernel": "exceptions",
    "contention_begin": "lock",
    "contention_end": "lock",
    "sys_enter": "raw_syscalls",
    "sys_exit": "raw_syscalls",
}


def _system(event: str) -> str:
    if event.startswith(("sys_enter_", "sys_exit_")):
        return "syscalls"
    for prefix in ("mmap_lock", "sched", "task"):
        if event.startswith(f"{prefix}_"):
            return prefix
    return _SYSTEMS.get(event, "")


def describe(text: str, form: int, ftrace: bool) -> tuple[str, int, int]:
    """(name as perf writes it, role, call or -1) of an event's name in the text."""
    if form in (CALL_ENTER, CALL_EXIT):
        side = "enter" if form == CALL_ENTER else "exit"
        text = f"syscalls:sys_{side}_{text.removeprefix('sys_')}"
    if not ftrace and text in RECORDS:
        return text, RECORDS[text], -1
    text = text.removeprefix("tracepoint:")  # as bpftrace calls its probes
    system, _, event = text.rpartition(":") if ":" in text else ("", "", text)
    if (system and ":" in system) or (len(event) <= 4 and event.isalpha() and system in _ROLES):
        # modifiers: minor-faults:u, exceptions:page_fault_user:k
        system, _, event = system.rpartition(":")
    system = system or _system(event)
    name = f"{system}:{event}" if system else event
    if system == "syscalls":
        for prefix, role in (("sys_enter_", ev.ENTER), ("sys_exit_", ev.EXIT)):
            if event.startswith(prefix):
                call = BY_NAME.get(event.removeprefix(prefix), -1)
                return (name, role, call) if call >= 0 else (name, ev.OTHER, -1)
    role = _ROLES.get(event, ev.OTHER)
    if system != _system(event) or (role in (SCHED_EXIT, STACK) and not ftrace):
        role = ev.OTHER
    return name, role, -1


@dataclass(slots=True)
class Names:
    """The tables of names that the scanner reads, and what they stand for."""

    ftrace: bool
    keys: NDArray[np.uint64] = field(init=False)
    values: NDArray[np.int32] = field(init=False)
    roles: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(MOST_NAMES, np.uint8))
    calls: NDArray[np.int16] = field(default_factory=lambda: np.full(MOST_NAMES, -1, np.int16))
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(MOST_NAMES, np.int64))
    #: Event of each number: names of two forms may be one event.
    events: list[str] = field(default_factory=list)
    #: Roles that have been met.
    kinds: set[int] = field(default_factory=set)
    #: (2, calls) whose entries and returns have events of their own.
    told: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((2, len(CALLS)), np.uint8))
    #: Events whose offset is in pages.
    paged: list[int] = field(default_factory=list)
    files: list[FileName] = field(default_factory=list)
    file_keys: NDArray[np.uint64] = field(init=False)
    file_values: NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        self.keys, self.values = new_table(MOST_NAMES)
        self.file_keys, self.file_values = new_table(1024)

    def learn(self, raw: bytes, form: int) -> None:
        """Give the name that the scanner asked for a number."""
        text = raw.decode("utf-8", "replace")
        hashed = fnv(raw)
        if form == FILE:
            if 2 * len(self.files) + 4 > len(self.file_keys):
                self._grow_files()
            table_put(self.file_keys, self.file_values, hashed, len(self.files))
            self.files.append(file_name(text))
            return
        if len(self.events) < MOST_NAMES - 1:
            number = len(self.events)
            name, self.roles[number], self.calls[number] = describe(text, form, self.ftrace)
            self.events.append(name)
            if self.calls[number] >= 0:
                self.told[int(self.roles[number] == ev.EXIT), self.calls[number]] = 1
            if name.removeprefix("syscalls:sys_enter_") in PAGED:
                self.paged.append(number)
            self.kinds.add(int(self.roles[number]))
        else:  # nothing has so many events
            number = MOST_NAMES - 1
            if len(self.events) == number:
                self.events.append("other")
            if int((self.values >= 0).sum()) > len(self.values) // 2:
                self.values[:] = -1  # forget: they are asked for again
        table_put(self.keys, self.values, np.uint64(hashed ^ np.uint64(form)), number)

    def _grow_files(self) -> None:
        keys, values = new_table(2 * len(self.file_keys))
        for key, value in zip(self.file_keys, self.file_values, strict=True):
            if value >= 0:
                table_put(keys, values, key, int(value))
        self.file_keys, self.file_values = keys, values

    def software_faults(self) -> list[int | None]:
        """The role of each event by number, where it is a software event of faults."""
        roles = self.roles[: len(self.events)].tolist()
        return [role if role in _SOFTWARE else None for role in roles]

    def samples(self) -> dict[str, int]:
        """Lines of each event, in order of first appearance; records are no events."""
        found: dict[str, int] = {}
        for name, count in zip(self.events, self.counts.tolist(), strict=False):
            if name not in RECORDS and count:
                found[name] = found.get(name, 0) + count
        return found
