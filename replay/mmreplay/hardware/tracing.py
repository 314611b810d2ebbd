"""A tracefs instance of our own: mmap_lock events of chosen processes, counted.

An instance has its own buffers, filters and switches; other users of tracing on the
machine neither see it nor are disturbed.  It is removed when the block that made it
ends; one that a killed process left behind is removed by the next.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mmreplay.errors import UserError

_PREFIX: Final = "mmreplay-"
_LOCK_EVENTS: Final = (
    "mmap_lock_start_locking",
    "mmap_lock_acquire_returned",
    "mmap_lock_released",
)
_FAULT_EVENTS: Final = ("page_fault_user", "page_fault_kernel")
_SYSCALL_EVENT: Final = "sys_enter"
#: One CPU's buffer: a phase group makes up to 60,000 events of about 50 bytes.
_BUFFER_KB: Final = 16384


def tracefs() -> Path:
    """Where tracefs is mounted, with the mmap_lock events readable.

    Raises
    ------
    UserError
        Not mounted, not permitted, or a kernel without the events.
    """
    for root in (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing")):
        try:
            if (root / "instances").is_dir():
                break
        except PermissionError:
            raise UserError(
                f"no permission to use {root}",
                fix=f"run as root, or let a group in: mount -o remount,mode=750,gid=GROUP {root}",
            ) from None
    else:
        if os.geteuid():
            raise UserError(
                "tracefs cannot be seen (it is closed to this user, or not mounted)",
                fix="run as root",
            )
        raise UserError("tracefs is not mounted", fix="mount -t tracefs nodev /sys/kernel/tracing")
    if not (root / "events" / "mmap_lock").is_dir():
        raise UserError(
            "this kernel has no mmap_lock tracepoints",
            fix="they exist since Linux 5.11 where CONFIG_TRACING is set; on an older kernel"
            " datasets/lockcounts shows what was counted with kprobes",
        )
    return root


@dataclass(slots=True)
class Tally:
    """Acquisitions of one segment, in the address space of the process that marked it.

    ``user`` and ``kernel``: faults in the program's own mappings, None where they could not
    be seen.  ``foreign``: faults elsewhere, as a process has them on pages of its own that a
    fork has write-protected; ``foreign_read`` are the reads that they took, not in ``read``.
    """

    read: int = 0
    write: int = 0
    downgrade: int = 0
    read_failed: int = 0
    user: int | None = None
    kernel: int | None = None
    foreign: int = 0
    foreign_read: int = 0


class Instance:
    """A tracing instance.  Use as a context manager."""

    def __init__(self, root: Path, name: str = "") -> None:
        self.path = root / "instances" / (name or f"{_PREFIX}{os.getpid()}")

    def __enter__(self) -> Instance:
        self._remove_stale()
        try:
            self.path.mkdir()
        except OSError as error:
            raise UserError(
                f"cannot make a tracing instance: {error.strerror}",
                where=str(self.path.parent),
                fix="run as root",
            ) from None
        try:
            self._set_up()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _set_up(self) -> None:
        self.write("tracing_on", "0")
        self.write("options/overwrite", "0")
        self.write("options/event-fork", "1")
        for name in _LOCK_EVENTS:
            self.write(f"events/mmap_lock/{name}/enable", "1")
        # Without these (CONFIG_FTRACE_SYSCALLS), a fault on a page that is not the
        # program's own is counted as if it were.
        with contextlib.suppress(OSError):
            self.write(f"events/raw_syscalls/{_SYSCALL_EVENT}/enable", "1")
            for name in _FAULT_EVENTS:
                self.write(f"events/exceptions/{name}/enable", "1")

    def _remove_stale(self) -> None:
        for path in self.path.parent.glob(f"{_PREFIX}*"):
            owner = path.name.removeprefix(_PREFIX)
            if owner.isdigit() and not Path("/proc", owner).exists():
                with contextlib.suppress(OSError):
                    path.rmdir()

    def write(self, name: str, text: str) -> None:
        fd = os.open(self.path / name, os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def buffer(self, cpu: int) -> None:
        """Make room for what one CPU will record."""
        self.write(f"per_cpu/cpu{cpu}/buffer_size_kb", str(_BUFFER_KB))

    def start(self, pid: int) -> None:
        """Forget what was recorded; from now on record ``pid`` and its children."""
        os.close(os.open(self.path / "trace", os.O_WRONLY | os.O_TRUNC))
        self.write("set_event_pid", str(pid))
        self.write("tracing_on", "1")

    def stop(self) -> None:
        self.write("tracing_on", "0")

    def sees_faults(self) -> bool:
        switches = [self.path / f"events/exceptions/{name}/enable" for name in _FAULT_EVENTS]
        return all(s.exists() and s.read_text().startswith("1") for s in switches)

    def lines(self) -> Iterator[str]:
        with (self.path / "trace").open(errors="replace") as stream:
            yield from stream

    def lost(self) -> int:
        """Events that did not fit since the last start."""
        total = 0
        for stats in self.path.glob("per_cpu/cpu*/stats"):
            for line in stats.read_text().splitlines():
                if line.startswith(("overrun:", "dropped events:", "commit overrun:")):
                    total += int(line.split(":")[1])
        return total

    def remove(self) -> None:
        """Remove the instance; what still records into it loses it."""
        with contextlib.suppress(OSError):
            self.write("tracing_on", "0")
        for _ in range(100):  # a process that was killed holds it a little longer
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.02)
            else:
                return


_LINE: Final = re.compile(
    r"-(?P<pid>\d+) +(?:\( *[\d-]+\) +)?\[\d+\][^:]*: (?P<event>\w+): (?P<rest>.*)"
)
_LOCK: Final = re.compile(r"mm=(?P<mm>\S+).* write=(?P<write>\w+)(?: success=(?P<success>\w+))?")
_MARKER: Final = "tracing_mark_write"
_ADDRESS: Final = re.compile(r"address=(?:0x)?(?P<address>[0-9a-f]+)")


@dataclass(slots=True)
class _Task:
    """``foreign``: in a fault outside the program's mappings, and it took nothing yet."""

    pending: bool = False
    foreign: bool = False
    held: list[str] = field(default_factory=list)  # mm's held for writing


class _Tallier:
    """Follows a trace line by line; see :func:`tally`."""

    def __init__(self, own: Iterable[tuple[int, int]], faults: bool) -> None:
        self.found: dict[int, Tally] = {}
        self._own = list(own)
        self._faults = faults
        self._tasks: dict[str, _Task] = {}
        self._main = ("", "")  # mm and process
        self._copies: dict[str, str] = {}  # mm -> its process
        self._now: Tally | None = None
        self._marked_by = ""

    def line(self, line: str) -> None:
        match = _LINE.search(line)
        if match is None:
            return
        event, pid = match["event"], match["pid"]
        task = self._tasks.setdefault(pid, _Task())
        if event == _MARKER:
            self._mark(pid, *match["rest"].split())
        elif event == _SYSCALL_EVENT:
            task.foreign = False
        elif event in _FAULT_EVENTS:
            self._fault(task, event, match["rest"])
        elif lock := _LOCK.search(match["rest"]):
            self._lock(event, pid, task, lock)

    def _mark(self, pid: str, word: str, number: str) -> None:
        if word == "begin":
            zero = 0 if self._faults else None
            self._now = self.found.setdefault(int(number), Tally(user=zero, kernel=zero))
            self._marked_by = pid
        else:
            self._now = None

    def _fault(self, task: _Task, event: str, rest: str) -> None:
        where = _ADDRESS.search(rest)
        if where is None:
            return
        address = int(where["address"], 16)
        task.foreign = not any(low <= address < high for low, high in self._own)
        now = self._now
        if now is None:
            return
        if task.foreign:
            now.foreign += 1
        elif event == "page_fault_user":
            now.user = (now.user or 0) + 1
        else:
            now.kernel = (now.kernel or 0) + 1

    def _lock(self, event: str, pid: str, task: _Task, lock: re.Match[str]) -> None:
        mm, write = lock["mm"], lock["write"] == "true"
        if event == "mmap_lock_start_locking":
            task.pending = True
        elif event == "mmap_lock_released":
            if write and mm in task.held:
                task.held.remove(mm)
        elif event == "mmap_lock_acquire_returned":
            started, task.pending = task.pending, False
            owner = self._owner(mm, write, pid, task)
            success = lock["success"] != "false"
            if write and success:
                task.held.append(mm)
            if not started and mm in task.held and not write:
                task.held.remove(mm)
            if self._now is not None and owner == self._marked_by:
                self._count(self._now, task, started, write, success)

    def _owner(self, mm: str, write: bool, pid: str, task: _Task) -> str:
        """The process whose address space ``mm`` is; empty where it is none of the program's.

        A fork locks the copy while it holds the original.  The kernel reuses an mm's
        address: the mm that yet another process locks is another one.
        """
        if not self._main[0]:
            self._main = (mm, pid)
        if mm == self._main[0]:
            return self._main[1]
        if write and any(held == self._main[0] or held in self._copies for held in task.held):
            self._copies[mm] = ""  # its process has not been seen yet
            return ""
        if self._copies.get(mm) == "":
            self._copies[mm] = pid
        return pid if self._copies.get(mm) == pid else ""

    @staticmethod
    def _count(now: Tally, task: _Task, started: bool, write: bool, success: bool) -> None:
        if not success:
            now.read_failed += not write
        elif write:
            now.write += 1
        elif not started:
            now.downgrade += 1
        elif task.foreign:
            task.foreign = False
            now.foreign_read += 1
        else:
            now.read += 1


def tally(
    lines: Iterable[str], own: Iterable[tuple[int, int]] = (), faults: bool = True
) -> dict[int, Tally]:
    """Count the acquisitions between markers; segment number → counts.

    Of each segment, the locks of one address space count: that of the process which wrote
    its markers (its threads and vfork children lock it too).  A downgrade is reported as an
    acquisition for reading without a start.

    Parameters
    ----------
    lines:
        A ``trace`` file of tracefs.
    own:
        Address ranges in which faults are the program's own.
    faults:
        Fault events were recorded.
    """
    tallier = _Tallier(own, faults)
    for line in lines:
        tallier.line(line)
    return tallier.found
