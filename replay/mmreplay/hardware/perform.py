"""Performs a program in the current process: resolve its addresses, then run it.

Meant for a process of its own (:mod:`mmreplay.hardware.worker` forks one for each
program), because a program maps, unmaps and forks at will, and its heap and its stack
are those of the process.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.hardware import loop
from mmreplay.hardware.loop import HEADER_BYTES, Action, Column, Header
from mmreplay.hardware.program import (
    CALL_NAMES,
    MAJFLT,
    MINFLT,
    Place,
    Program,
    Slot,
    slots_used,
)
from mmreplay.schema import PAGE_SIZE
from mmreplay.workloads.tape import HEAP, STACK_TOP

I64 = NDArray[np.int64]

#: Where mappings are placed: free in every process that does not ask for it, and at the
#: same offset within a page-table page of any level as in the trace.
_ARENA_TOP: Final = 0x3F00_0000_0000
_MMAP_BASE: Final = 0x7F00_0000_0000
#: A trace's heap, up to its first own break, and its stack as it starts.
_HEAP_IN_USE: Final = 16 * PAGE_SIZE
_STACK_PAGES: Final = 33
#: How far heap and stack may grow, at most.
_MOST_GROWTH: Final = 64 << 20
#: Mappings of files larger than this are not read in ahead of a run (LLVM's text).
_PREFAULT_MOST: Final = 16 << 20

_PR_SET_THP_DISABLE: Final = 41
_SA_SIGINFO: Final = 4
_SYS_USERFAULTFD: Final = 323
_USER_MODE_ONLY: Final = 1
_UFFDIO_API: Final = 0xC018AA3F

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD = -1, -2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sbrk.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.malloc.restype = ctypes.c_void_p


class Unable(Exception):
    """This process cannot perform the program; the text says why."""


class _SigAction(ctypes.Structure):
    """struct sigaction as glibc has it on x86-64."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True)
class Area:
    """One line of /proc/self/maps."""

    start: int
    end: int
    mode: str
    name: str


def areas() -> list[Area]:
    """The process's mappings, ascending."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split(None, 5)
        start, end = (int(x, 16) for x in words[0].split("-"))
        found.append(Area(start, end, words[1], words[5] if len(words) > 5 else ""))
    return found


def _round_up(size: int) -> int:
    return -(-size // PAGE_SIZE) * PAGE_SIZE


def _data_offset(program: Program) -> int:
    return _round_up(HEADER_BYTES + program.table.nbytes)


def _room_in_the_heap() -> None:
    """Let the C library extend its heap now, amply, and not between here and the run."""
    if not hasattr(_libc, "mallopt"):  # musl: its heap is elsewhere
        return
    _libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    _libc.mallopt(_M_TOP_PAD, 16 << 20)
    start = _libc.sbrk(0)
    for _ in range(1024):
        if _libc.sbrk(0) != start:
            return
        _libc.malloc(100 << 10)  # below the size that gets a mapping of its own


@dataclass(frozen=True, slots=True)
class Layout:
    """What the places of a program are in this process; addresses to add.

    ``ranges``: where faults of the program's own operations lie.
    """

    ranges: tuple[tuple[int, int], ...]
    arena: int
    heap: int
    stack: int
    data: int
    slots: Mapping[int, int]

    def resolve(self, values: I64, places: NDArray[np.uint8]) -> I64:
        """Values of a program as this process needs them."""
        out = values.copy()
        for place, base in (
            (Place.ARENA, self.arena),
            (Place.HEAP, self.heap),
            (Place.STACK, self.stack),
            (Place.DATA, self.data),
        ):
            out[places == place] += base
        out[places == Place.PID] = os.getpid()
        paged = places == Place.PAGEMAP
        out[paged] = (out[paged] + self.arena) // PAGE_SIZE * 8
        wanted = places == Place.SLOT
        out[wanted] = [self.slots[int(v)] for v in values[wanted]]
        return out


def _last_heap(here: Sequence[Area]) -> Area | None:
    """The VMA at the break: after a fork the heap's new part is a VMA of its own."""
    return next((area for area in reversed(here) if area.name == "[heap]"), None)


def _layout(program: Program, data: int, slots: Mapping[int, int]) -> Layout:
    delta = _ARENA_TOP - _MMAP_BASE
    low, high = (address + delta for address in program.span)
    here = areas()
    if any(area.start < high and area.end > low for area in here):
        raise Unable("the address range of the test mappings is in use")
    stack = next((a for a in here if a.name == "[stack]"), None)
    heap = _last_heap(here)
    if heap is None or heap.end - heap.start < 2 * _HEAP_IN_USE:  # little was allocated yet
        _libc.sbrk(ctypes.c_ssize_t(2 * _HEAP_IN_USE))
        heap = _last_heap(areas())
    if stack is None or heap is None or heap.end - heap.start < 2 * _HEAP_IN_USE:
        raise Unable("no [stack] in /proc/self/maps, or no [heap] of 2 x 64 KiB")
    return Layout(
        ranges=(
            (low, high),
            (heap.end - _HEAP_IN_USE, heap.end + _MOST_GROWTH),
            (stack.start - _MOST_GROWTH, stack.start),
        ),
        arena=delta,
        heap=heap.end - (HEAP + _HEAP_IN_USE),
        stack=stack.start - (STACK_TOP - _STACK_PAGES * PAGE_SIZE),
        data=data,
        slots=slots,
    )


# -- file descriptors ------------------------------------------------------------------------


def _userfaultfd() -> int:
    fd = int(_libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | _USER_MODE_ONLY))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"userfaultfd: {os.strerror(code)}")
    api = (ctypes.c_uint64 * 3)(0xAA, 0, 0)
    if _libc.ioctl(fd, ctypes.c_ulong(_UFFDIO_API), ctypes.byref(api)):
        raise OSError(ctypes.get_errno(), "userfaultfd: UFFDIO_API refused")
    return fd


def _opener(path: str, flags: int = os.O_RDONLY) -> Callable[[], int]:
    return lambda: os.open(path, flags)


_OPEN: Final[dict[Slot, Callable[[], int]]] = {
    Slot.ZERO: _opener("/dev/zero"),
    Slot.SINK: lambda: os.memfd_create("sink"),
    Slot.MAPS: _opener("/proc/self/maps"),
    Slot.SMAPS: _opener("/proc/self/smaps"),
    Slot.SMAPS_ROLLUP: _opener("/proc/self/smaps_rollup"),
    Slot.NUMA_MAPS: _opener("/proc/self/numa_maps"),
    Slot.PAGEMAP: _opener("/proc/self/pagemap"),
    Slot.MEM: _opener("/proc/self/mem", os.O_RDWR),
    Slot.CMDLINE: _opener("/proc/self/cmdline"),
    Slot.ENVIRON: _opener("/proc/self/environ"),
    Slot.STATUS: _opener("/proc/self/status"),
    Slot.STATM: _opener("/proc/self/statm"),
    Slot.UFFD: _userfaultfd,
    Slot.PIDFD: lambda: os.pidfd_open(os.getpid()),
}


def open_slots(program: Program, files: Mapping[Slot, int]) -> dict[int, int]:
    """Open what a program needs; ``files`` are open already.

    Raises
    ------
    Unable
        Something cannot be opened.
    """
    slots: dict[int, int] = {}
    for slot in slots_used(program):
        if slot in files:
            slots[slot] = files[slot]
        elif slot in (Slot.PIPE_IN, Slot.PIPE_OUT):
            if Slot.PIPE_IN not in slots:
                slots[Slot.PIPE_OUT], slots[Slot.PIPE_IN] = os.pipe()
        elif slot in _OPEN:
            try:
                slots[slot] = _OPEN[slot]()
            except OSError as error:
                raise Unable(str(error.filename or "") + f" {error.strerror}".strip()) from None
        else:
            raise Unable(f"no file for {slot.name}")
    return slots


# -- running ---------------------------------------------------------------------------------


def _prefault() -> None:
    """Bring in the process's own pages: its writable memory, and the text that it runs."""
    for area in areas():
        if area.name.startswith("[v") or not area.mode.startswith("r"):
            continue
        shared, writable = area.mode[3] == "s", area.mode[1] == "w"
        if shared or (not writable and area.end - area.start > _PREFAULT_MOST):
            continue
        loop.touch_pages(area.start, area.end, int(writable))


def step_over_failures() -> None:
    """From here on a failing access of the loop is stepped over, not fatal."""
    action = _SigAction(handler=loop.skip.address, flags=_SA_SIGINFO)
    if _libc.sigaction(signal.SIGSEGV, ctypes.byref(action), None):
        raise Unable("sigaction refused")


#: Given a segment's number, whether it is opened or closed, and the address of its label:
#: a system call's number and arguments.
Window = Callable[[int, bool, int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Performed:
    """What a segment's own calls told.

    ``refused``: the first call of the segment that failed, or empty.  ``reads``: read(2)
    calls per READ_ALL action, or 0.  ``minor`` and ``major``: faults, by getrusage.
    """

    name: str
    ops: int
    minor: int
    major: int
    reads: int
    refused: str


def run(
    program: Program,
    files: Mapping[Slot, int],
    window: Window | None = None,
    *,
    huge_pages: bool = False,
    ready: Callable[[], None] = lambda: None,
) -> tuple[list[Performed], tuple[tuple[int, int], ...]]:
    """Perform ``program`` in this process; also tells where its own faults lie.

    Parameters
    ----------
    files:
        Files that the caller has opened.
    window:
        How counting of a segment is opened and closed; None: not at all.
    huge_pages:
        Leave transparent huge pages as the system has them; else none for this process.
    ready:
        Called when everything is prepared, right before the first action.

    Raises
    ------
    Unable
        The program cannot be performed here, or its set-up failed.
    """
    slots = open_slots(program, files)
    _room_in_the_heap()
    data_at = _data_offset(program)
    block = mmap.mmap(-1, _round_up(data_at + program.data.nbytes))
    words = np.frombuffer(block, np.int64)
    base = words.ctypes.data
    layout = _layout(program, base + data_at, slots)
    if not huge_pages:
        _libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    if program.fails:
        step_over_failures()
    table = program.table.copy()
    table[:, Column.A : Column.F + 1] = layout.resolve(
        table[:, Column.A : Column.F + 1], program.places
    )
    if window is not None:
        for index, segment in enumerate(program.segments):
            for opens, row, label in (
                (True, segment.begin, segment.labels[0]),
                (False, segment.end, segment.labels[1]),
            ):
                number, *args = window(index, opens, layout.data + label)
                table[row, Column.NUMBER] = number
                table[row, Column.A : Column.A + len(args)] = args
    at = HEADER_BYTES // 8
    words[at : at + table.size] = table.ravel()
    done = words[at : at + table.size].reshape(table.shape)
    at = data_at // 8
    words[at : at + len(program.data)] = layout.resolve(program.data, program.data_places)
    words[Header.ACTIONS] = len(table)
    words[Header.TABLE] = base + HEADER_BYTES
    words[Header.THREAD_MAIN] = loop.thread_main.address
    words[Header.PID] = os.getpid()
    words[Header.BYTES] = len(block)
    wanted = layout.resolve(program.want, program.want_place)
    known = (program.want_place != Place.UNKNOWN) & (table[:, Column.ACTION] == Action.SYSCALL)
    loop.warm(base)
    _prefault()
    ready()
    loop.run(base, 0, 0)
    wrong = np.nonzero(known & (done[:, Column.RESULT] != wanted))[0]
    return _told(program, done, words[at:], wrong), layout.ranges


def _told(program: Program, done: I64, data: I64, wrong: I64) -> list[Performed]:
    inside = np.zeros(len(done), bool)
    found = []
    for segment in program.segments:
        rows = slice(segment.begin, segment.end + 1)
        inside[rows] = True
        bad = wrong[(wrong >= segment.begin) & (wrong <= segment.end)]
        calls = done[rows][done[rows, Column.ACTION] == Action.READ_ALL, Column.RESULT]
        before, after = (data[at // 8 :] for at in segment.usage)
        found.append(
            Performed(
                segment.name,
                segment.ops,
                int(after[MINFLT // 8] - before[MINFLT // 8]),
                int(after[MAJFLT // 8] - before[MAJFLT // 8]),
                int(calls.max()) if len(calls) else 0,
                _failure(done[bad[0]]) if len(bad) else "",
            )
        )
    outside = wrong[~inside[wrong]]
    if len(outside):
        raise Unable(f"setting up: {_failure(done[outside[0]])}")
    return found


def _failure(row: I64) -> str:
    name = CALL_NAMES.get(int(row[Column.NUMBER]), str(int(row[Column.NUMBER])))
    result = int(row[Column.RESULT])
    arguments = ", ".join(f"{int(v):#x}" for v in row[Column.A : Column.C + 1])
    what = os.strerror(-result) if -4096 < result < 0 else f"returned {result:#x}"
    return f"{name}({arguments}, ...): {what}"
