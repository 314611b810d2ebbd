"""``strace -f -ttt -T`` logs: what they hold, by a look, and the values of their constants."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.errors import UserError
from mmreplay.importers import events as ev
from mmreplay.importers.binary import new_table, table_put
from mmreplay.importers.options import Options
from mmreplay.importers.syscalls import BY_NAME, NATIVE, number_tables
from mmreplay.importers.text import rows as tr
from mmreplay.importers.text import source, strace_files
from mmreplay.importers.text.bytes import fnv
from mmreplay.importers.text.names import MOST_NAMES
from mmreplay.importers.text.strace_scan import scan
from mmreplay.importers.text.trace import Dialect, import_text
from mmreplay.trace.store import Trace

_WHO: Final = rb"^(?:\[pid +\d+(?:<[^>\n]*>)?\] +|\d+(?:<[^>\n]*>)? +)?"
#: What -r beside -ttt, -i and -n print behind the time.
_MORE: Final = rb"(?:\(\+ *[\d.]+\) )?(?:\[[ ?\da-f]+\] )*"
_WHAT: Final = _MORE + rb"(?:\w+\(.*|<\.\.\. \w+ resumed>.*|(?:\+\+\+|---) .*)$"
#: A line with any of the times that strace prints, and with that of -ttt.
_LINE: Final = re.compile(_WHO + rb"(?:[\d:.]+ )?" + _WHAT, re.MULTILINE)
_CALL: Final = re.compile(
    _WHO + rb"(?:[\d:.]+ )?" + _MORE + rb"\w+\(.*\) += (?:-?\d|0x|\?)", re.MULTILINE
)
_END: Final = re.compile(_WHO + rb"(?:[\d:.]+ )?\+\+\+ (?:exited with|killed by) ")
_EPOCH: Final = re.compile(_WHO + rb"\d{9,11}\.\d{3,9} " + _WHAT, re.MULTILINE)
_TOOK: Final = re.compile(rb" <\d+\.\d+>$", re.MULTILINE)
_ATTACHED: Final = re.compile(rb"[Pp]rocess (\d+) attached")
#: What it is attached to before the first call (-p).
_ATTACHED_TO: Final = re.compile(
    rb"^strace: Process (\d+) attached(?: with (\d+) threads)?\r?$", re.MULTILINE
)
#: So many processes are known beforehand; the table of threads has room for them.
_MOST_ATTACHED: Final = 256
_BRACKETS: Final = re.compile(rb"^\[pid +(\d+)\] ", re.MULTILINE)
_UNNAMED: Final = re.compile(rb"^\d{9,11}\.\d", re.MULTILINE)
_NANOSECONDS: Final = re.compile(_WHO + rb"\d+\.\d{9} ", re.MULTILINE)

#: include/uapi/linux/futex.h@6.18, by number.
_FUTEX: Final = (
    *("WAIT", "WAKE", "FD", "REQUEUE", "CMP_REQUEUE", "WAKE_OP", "LOCK_PI", "UNLOCK_PI"),
    *("TRYLOCK_PI", "WAIT_BITSET", "WAKE_BITSET", "WAIT_REQUEUE_PI", "CMP_REQUEUE_PI", "LOCK_PI2"),
)
#: include/uapi/asm-generic/{mman-common,mman,errno}.h, include/uapi/linux/{mman,sched,mempolicy,
#: shm}.h@6.18: what x86, arm64, riscv and most others share.
_CONSTANTS: Final = {
    "NULL": 0,
    "PROT_NONE": 0,
    "PROT_READ": 1,
    "PROT_WRITE": 2,
    "PROT_EXEC": 4,
    "PROT_SEM": 8,
    "PROT_GROWSDOWN": 1 << 24,
    "PROT_GROWSUP": 1 << 25,
    "MAP_FILE": 0,
    "MAP_SHARED": 1,
    "MAP_PRIVATE": 2,
    "MAP_SHARED_VALIDATE": 3,
    "MAP_DROPPABLE": 8,
    "MAP_FIXED": 0x10,
    "MAP_ANONYMOUS": 0x20,
    "MAP_32BIT": 0x40,
    "MAP_GROWSDOWN": 0x100,
    "MAP_DENYWRITE": 0x800,
    "MAP_EXECUTABLE": 0x1000,
    "MAP_LOCKED": 0x2000,
    "MAP_NORESERVE": 0x4000,
    "MAP_POPULATE": 0x8000,
    "MAP_NONBLOCK": 0x10000,
    "MAP_STACK": 0x20000,
    "MAP_HUGETLB": 0x40000,
    "MAP_SYNC": 0x80000,
    "MAP_FIXED_NOREPLACE": 0x100000,
    "MAP_UNINITIALIZED": 0x4000000,
    "MREMAP_MAYMOVE": 1,
    "MREMAP_FIXED": 2,
    "MREMAP_DONTUNMAP": 4,
    "MADV_NORMAL": 0,
    "MADV_RANDOM": 1,
    "MADV_SEQUENTIAL": 2,
    "MADV_WILLNEED": 3,
    "MADV_DONTNEED": 4,
    "MADV_FREE": 8,
    "MADV_REMOVE": 9,
    "MADV_DONTFORK": 10,
    "MADV_DOFORK": 11,
    "MADV_MERGEABLE": 12,
    "MADV_UNMERGEABLE": 13,
    "MADV_HUGEPAGE": 14,
    "MADV_NOHUGEPAGE": 15,
    "MADV_DONTDUMP": 16,
    "MADV_DODUMP": 17,
    "MADV_WIPEONFORK": 18,
    "MADV_KEEPONFORK": 19,
    "MADV_COLD": 20,
    "MADV_PAGEOUT": 21,
    "MADV_POPULATE_READ": 22,
    "MADV_POPULATE_WRITE": 23,
    "MADV_DONTNEED_LOCKED": 24,
    "MADV_COLLAPSE": 25,
    "MADV_HWPOISON": 100,
    "MADV_SOFT_OFFLINE": 101,
    "MADV_GUARD_INSTALL": 102,
    "MADV_GUARD_REMOVE": 103,
    "MLOCK_ONFAULT": 1,
    "MCL_CURRENT": 1,
    "MCL_FUTURE": 2,
    "MCL_ONFAULT": 4,
    "MS_ASYNC": 1,
    "MS_INVALIDATE": 2,
    "MS_SYNC": 4,
    "SHM_RDONLY": 0o10000,
    "SHM_RND": 0o20000,
    "SHM_REMAP": 0o40000,
    "SHM_EXEC": 0o100000,
    "MPOL_MF_STRICT": 1,
    "MPOL_MF_MOVE": 2,
    "MPOL_MF_MOVE_ALL": 4,
    "MPOL_F_NODE": 1,
    "MPOL_F_ADDR": 2,
    "MPOL_F_MEMS_ALLOWED": 4,
    "CLONE_VM": 0x100,
    "CLONE_FS": 0x200,
    "CLONE_FILES": 0x400,
    "CLONE_SIGHAND": 0x800,
    "CLONE_PIDFD": 0x1000,
    "CLONE_PTRACE": 0x2000,
    "CLONE_VFORK": 0x4000,
    "CLONE_PARENT": 0x8000,
    "CLONE_THREAD": 0x10000,
    "CLONE_NEWNS": 0x20000,
    "CLONE_SYSVSEM": 0x40000,
    "CLONE_SETTLS": 0x80000,
    "CLONE_PARENT_SETTID": 0x100000,
    "CLONE_CHILD_CLEARTID": 0x200000,
    "CLONE_DETACHED": 0x400000,
    "CLONE_UNTRACED": 0x800000,
    "CLONE_CHILD_SETTID": 0x1000000,
    "CLONE_NEWCGROUP": 0x2000000,
    "CLONE_NEWUTS": 0x4000000,
    "CLONE_NEWIPC": 0x8000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
    "CLONE_IO": 0x80000000,
    "CLONE_CLEAR_SIGHAND": 1 << 32,
    "CLONE_INTO_CGROUP": 1 << 33,
    "SIGCHLD": 17,
    "ERESTARTSYS": 512,
    "ERESTARTNOINTR": 513,
    "ERESTARTNOHAND": 514,
    "ERESTART_RESTARTBLOCK": 516,
    "FUTEX_PRIVATE_FLAG": 128,
    "FUTEX_CLOCK_REALTIME": 256,
    "FUTEX_BITSET_MATCH_ANY": 0xFFFF_FFFF,
    "FUTEX2_PRIVATE": 128,
    **{f"FUTEX_{name}": number for number, name in enumerate(_FUTEX)},
    **{f"FUTEX_{name}_PRIVATE": number | 128 for number, name in enumerate(_FUTEX)},
    **{name: number for number, name in errno.errorcode.items()},
}
#: What is printed alike: calls that make threads and processes, and 32-bit programs' mmap (its
#: offset in bytes).
_SAME: Final = {"clone3": "clone", "clone2": "clone", "mmap2": "mmap", "old_mmap": "mmap"}


def looks_like(head: bytes) -> bool:
    """Whether these are the first bytes of a strace log."""
    head = head.rstrip(b"\r\n")
    lines = head.count(b"\n") + 1 - head.count(b"\n > ")  # stacks (-k)
    lines -= len(_ATTACHED.findall(head))  # lines of their own, or ones that cut another in two
    calls = _CALL.search(head) or _END.match(head)  # a thread that was killed before its first call
    return bool(calls) and len(_LINE.findall(head)) > lines // 2


def import_strace(
    paths: list[Path], out: Path, options: Options, progress: source.Progress | None
) -> Trace:
    """Import a strace log, or the files of ``strace -ff``.

    Raises
    ------
    UserError
        The log or the output is not what it must be; nothing is left behind.
    """
    file = source.open_text(paths[0]) if len(paths) == 1 else strace_files.open_files(paths)
    path = paths[0]
    try:
        head = file.head()
        calls, epoch = len(_CALL.findall(head)), len(_EPOCH.findall(head))
        if 2 * epoch < calls:
            raise UserError(
                "the calls have no time that counts on over days",
                where=str(path),
                fix="record with strace -f -ttt -T -o FILE",
            )
        if 2 * len(_TOOK.findall(head)) < calls:
            raise UserError(
                "the calls have no durations",
                where=str(path),
                fix="record with strace -f -ttt -T -o FILE",
            )
        scanner = _Scanner()
        file.restart()
        dialect = scanner.dialect(head)
        dialect.guessable = _know_processes(file, head)
        return import_text(file, dialect, out, options, progress)
    finally:
        file.close()


def _know_processes(file: source.TextFile, head: bytes) -> int:
    """Tell the scanner what is known of the processes; returns of how many threads that are named
    nowhere the process is known all the same.

    Without ``-o`` strace says to what it attached (``-p``), and names processes once there are two.
    """
    first = _LINE.search(head)
    before = head[: first.start()] if first else b""
    attached = {int(pid): int(threads or 1) for pid, threads in _ATTACHED_TO.findall(before)}
    if attached:
        for pid in list(attached)[:_MOST_ATTACHED]:
            tr.put_process(file.x, file.threads, pid)
        several = [pid for pid, threads in attached.items() if threads > 1]
        file.x[tr.X_ROOT] = (several or list(attached))[0]
        return attached[several[0]] - 1 if len(several) == 1 else 0
    if _UNNAMED.search(head):
        children = {int(found) for found in _ATTACHED.findall(head)}
        named = (int(found) for found in _BRACKETS.findall(head))
        root = next((tid for tid in named if tid not in children), 1)
        file.x[tr.X_ROOT] = file.x[tr.X_UNNAMED] = root
    return 1


class _Scanner:
    """The tables of the scanner."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.keys, self.values = new_table(MOST_NAMES)
        self.roles = np.zeros(MOST_NAMES, np.uint8)
        self.calls = np.full(MOST_NAMES, -1, np.int16)
        self.counts = np.zeros(MOST_NAMES, np.int64)
        self.slots = number_tables("x86_64").slots[NATIVE]  # by name: any machine's
        self.word_keys, self.word_values = new_table(len(_CONSTANTS))
        self.numbers = np.zeros(len(_CONSTANTS), np.int64)
        for number, (name, value) in enumerate(_CONSTANTS.items()):
            table_put(self.word_keys, self.word_values, fnv(name), number)
            self.numbers[number] = value
        self.words = np.zeros(6, np.uint64)

    def dialect(self, head: bytes) -> Dialect:
        """How the log is read, and what it can say."""
        return Dialect(
            format="strace",
            scan=self.scan,
            fault_starts=False,
            fault_ends=False,
            enters=True,
            exits=True,
            switches=False,
            contention=False,
            wakings=False,
            compat_visible=True,
            samples=self.samples,
            ordered=False,
            clock="realtime",
            resolution_ns=1 if _NANOSECONDS.search(head) else 1000,
            tell_process="start it under strace, or attach with 2> FILE instead of -o FILE: then "
            "strace says to which process it attached",
            probe=(0, "none: strace's own time is in every duration and think time"),
            warnings=[
                "strace stops a thread twice a call, for some 40 us: durations and think times are "
                "mostly strace's; order, counts, ranges and results hold"
            ],
        )

    def samples(self) -> dict[str, int]:
        """Calls of each name."""
        return dict(zip(self.names, self.counts.tolist(), strict=False))

    def scan(self, file: source.TextFile, rows: NDArray[np.int64]) -> bool:
        """Fill rows; returns whether the log is at its end."""
        used = 0
        while True:
            result: Any = scan(
                file.buffer,
                file.size_bytes,
                file.x,
                file.threads,
                file.ring,
                self.keys,
                self.values,
                self.roles,
                self.calls,
                self.counts,
                self.slots,
                self.word_keys,
                self.word_values,
                self.numbers,
                self.words,
                rows[used:],
            )
            used += int(file.x[tr.X_ROWS])
            if result == tr.NEW_NAME:
                self._learn(file.mapped[int(file.x[tr.X_NAME_AT]) : int(file.x[tr.X_NAME_END])])
            elif result == tr.NEED_THREADS:
                file.grow_threads()
            else:
                file.x[tr.X_ROWS] = used
                return bool(result == tr.DONE)
            if len(rows) - used <= tr.MOST_ROWS:
                file.x[tr.X_ROWS] = used
                return False

    def _learn(self, raw: bytes) -> None:
        name = raw.decode("ascii", "replace")
        number = len(self.names)
        if number >= MOST_NAMES:  # there are some 450 calls
            raise UserError(
                f"more than {MOST_NAMES} names of calls", fix="give the log as strace wrote it"
            )
        self.names.append(name)
        call = BY_NAME.get(_SAME.get(name, name), -1)
        self.calls[number] = call
        self.roles[number] = ev.ENTER if call >= 0 else ev.OTHER
        table_put(self.keys, self.values, fnv(raw), number)
