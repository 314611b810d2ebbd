"""A trace as a program of real operations: actions with addresses still to be placed.

The operations of a trace follow each other one at a time, whatever thread they belong
to, and so do the actions made of them.  Addresses are those of the trace; ``places``
says what each is relative to, and the process that performs them resolves it
(:mod:`mmreplay.hardware.perform`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.hardware.loop import COLUMNS, Action, Column
from mmreplay.schema import PAGE_SIZE, FaultBits, FaultClass, OpKind, ProcFile, UffdOp
from mmreplay.workloads.tape import (
    HEAP,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MMAP_BASE,
    READ_WRITE,
    STACK_TOP,
)

I64 = NDArray[np.int64]

#: Segments without effect at the start of every program: the first warms the bounds' own
#: calls, and what is counted in the second must be 0.
WARM, NOTHING = "(warm)", "(nothing)"
_SILENT_ACTIONS: Final = 100
#: Stack of a thread or vfork child, for the loop itself.
_STACK_BYTES: Final = 64 << 10
_BUFFER_BYTES: Final = 64 << 10
#: Far below all that recordings map.
_GROUND: Final = MMAP_BASE - (1 << 38)


class Place(IntEnum):
    """What a value of a program is relative to."""

    LITERAL = 0
    ARENA = 1  # mappings
    HEAP = 2
    STACK = 3
    DATA = 4  # offset in the program's data
    SLOT = 5  # index of a file descriptor
    PID = 6  # of the performing process
    PAGEMAP = 7  # offset in /proc/PID/pagemap of an arena address
    UNKNOWN = 8  # of a wanted result: any will do


class Slot(IntEnum):
    """File descriptors that a program may need."""

    ZERO = 0  # /dev/zero
    SINK = 1  # a memory file that is written to
    TMPFS = 2  # a file on tmpfs, and one on a disk, with something in every page
    DISK = 3
    PIPE_OUT = 4
    PIPE_IN = 5
    MAPS = 6
    SMAPS = 7
    SMAPS_ROLLUP = 8
    NUMA_MAPS = 9
    PAGEMAP = 10
    MEM = 11
    CMDLINE = 12
    ENVIRON = 13
    UFFD = 14
    STATUS = 15
    STATM = 16
    PIDFD = 17


# arch/x86/entry/syscalls/syscall_64.tbl
_NR: Final = {
    "read": 0,
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "brk": 12,
    "ioctl": 16,
    "pread": 17,
    "pwrite": 18,
    "mremap": 25,
    "msync": 26,
    "mincore": 27,
    "madvise": 28,
    "futex": 202,
    "getrusage": 98,
    "getppid": 110,
    "mlock": 149,
    "munlock": 150,
    "mlockall": 151,
    "munlockall": 152,
    "remap_file_pages": 216,
    "mbind": 237,
    "get_mempolicy": 239,
    "vmsplice": 278,
    "process_vm_readv": 310,
    "mlock2": 325,
    "process_madvise": 440,
    "mseal": 462,
}
CALL_NAMES: Final = {number: name for name, number in _NR.items()}
#: Calls on (address, length) whose third argument is the trace's ``flags``.
_RANGE_CALLS: Final = {
    OpKind.MADVISE: "madvise",
    OpKind.MUNLOCK: "munlock",
    OpKind.MSEAL: "mseal",
}
#: /proc files that are read from their start to their end.
_WHOLE: Final = {
    ProcFile.MAPS: Slot.MAPS,
    ProcFile.SMAPS: Slot.SMAPS,
    ProcFile.SMAPS_ROLLUP: Slot.SMAPS_ROLLUP,
    ProcFile.NUMA_MAPS: Slot.NUMA_MAPS,
    ProcFile.CMDLINE: Slot.CMDLINE,
    ProcFile.ENVIRON: Slot.ENVIRON,
}
_SILENT_FILES: Final = {"proc_status": Slot.STATUS, "proc_statm": Slot.STATM}
# include/uapi/linux/userfaultfd.h
_UFFDIO_REGISTER, _UFFDIO_UNREGISTER, _UFFDIO_COPY = 0xC020AA00, 0x8010AA01, 0xC028AA03
_MISSING: Final = 1
_FUTEX_WAKE, _FUTEX_WAKE_PRIVATE = 1, 129
_MPOL_F_ADDR: Final = 2
_MS_ASYNC: Final = 1
_RUSAGE_SELF: Final = 0
#: struct rusage: offsets of ru_minflt and ru_majflt, and its size, on 64 bits.
MINFLT, MAJFLT, _RUSAGE_BYTES = 64, 72, 144
#: Markers of segments in a recording: "begin 000012" and "end   000012".
LABEL_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class Segment:
    """The actions of one phase.

    ``begin`` and ``end``: the two actions that bound it (the performer puts there what
    its way of counting needs); ``labels``: offsets in the data of what a marker may say
    there (:data:`LABEL_BYTES` each).  ``usage``: offsets of the two getrusage results.
    """

    name: str
    ops: int
    begin: int
    end: int
    labels: tuple[int, int]
    usage: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Program:
    """Relocatable actions; see :class:`~mmreplay.hardware.loop.Column`.

    ``places`` is (n, 6), for the columns A to F; ``want`` the wanted results and
    ``want_place`` what they are relative to.  ``data`` are the words of its data,
    ``data_places`` their places.  ``span``: lowest and highest arena address.
    ``fails``: some accesses are meant to fail.
    """

    table: I64
    places: NDArray[np.uint8]
    want: I64
    want_place: NDArray[np.uint8]
    data: I64
    data_places: NDArray[np.uint8]
    segments: tuple[Segment, ...]
    span: tuple[int, int]
    fails: bool


def place_of(address: int) -> Place:
    """Which part of a synthetic trace's address space ``address`` lies in."""
    if address >= STACK_TOP - (1 << 30):
        return Place.STACK
    return Place.HEAP if HEAP <= address < HEAP + (1 << 32) else Place.ARENA


@dataclass(slots=True)
class _Builder:
    files: Mapping[int, Slot]  # the trace's file descriptors
    executable: str
    rows: list[list[int]] = field(default_factory=list)
    places: list[list[int]] = field(default_factory=list)
    want: list[tuple[int, int]] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    word_places: list[int] = field(default_factory=list)
    contexts: dict[int, int] = field(default_factory=dict)  # tid -> context
    made: dict[int, tuple[int, Action, int, int]] = field(default_factory=dict)
    idle_stacks: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    context: int = 0
    low: int = MMAP_BASE
    high: int = 0
    buffer: int = 0
    rest_of_file: bool = False  # inside the read(2) calls of one /proc file

    # -- pieces --------------------------------------------------------------------------
    def action(
        self, action: Action, *args: tuple[Place, int] | int, number: int = 0, want: Any = None
    ) -> int:
        """Append an action; plain integers are literal.  Returns its index."""
        pairs = [a if isinstance(a, tuple) else (Place.LITERAL, a) for a in args]
        pairs += [(Place.LITERAL, 0)] * (6 - len(pairs))
        self.rows.append([action, self.context, number, *(v for _, v in pairs), 0])
        self.places.append([p for p, _ in pairs])
        if want is None:
            self.want.append((Place.UNKNOWN, 0))
        else:
            self.want.append(want if isinstance(want, tuple) else (Place.LITERAL, want))
        return len(self.rows) - 1

    def call(self, name: str, *args: tuple[Place, int] | int, want: Any = None) -> int:
        return self.action(Action.SYSCALL, *args, number=_NR[name], want=want)

    def at(self, address: int, length: int = 0) -> tuple[Place, int]:
        """An address of the trace as an argument."""
        place = place_of(address)
        if place is Place.ARENA and address:
            self.low = min(self.low, address)
            self.high = max(self.high, address + length)
        return (place, address) if address else (Place.LITERAL, 0)

    def put(self, *values: tuple[Place, int] | int) -> tuple[Place, int]:
        """Words in the data; returns their address."""
        offset = 8 * len(self.words)
        for value in values:
            place, number = value if isinstance(value, tuple) else (Place.LITERAL, value)
            self.words.append(number)
            self.word_places.append(place)
        return Place.DATA, offset

    def space(self, size: int) -> tuple[Place, int]:
        return self.put(*[0] * (-(-size // 8)))

    def text(self, value: bytes) -> tuple[Place, int]:
        padded = value + bytes(8 - len(value) % 8)
        return self.put(*np.frombuffer(padded, np.int64).tolist())

    def stack(self) -> int:
        """Offset of the top of a free stack."""
        if self.idle_stacks:
            return self.idle_stacks.pop()
        return self.space(_STACK_BYTES)[1] + _STACK_BYTES - 64 & ~15

    # -- operations ----------------------------------------------------------------------
    def fault(self, row: Mapping[str, Any]) -> None:
        where = self.at(row["address"], PAGE_SIZE)
        write = bool(row["fault_bits"] & FaultBits.WRITE)
        if row["kind"] == OpKind.FAULT_USER:
            self.action(Action.STORE if write else Action.LOAD, where)
        elif write:  # one page from /dev/zero
            self.call("read", (Place.SLOT, Slot.ZERO), where, PAGE_SIZE, want=PAGE_SIZE)
        else:
            self.call("pwrite", (Place.SLOT, Slot.SINK), where, 64, 0, want=64)

    def mmap(self, row: Mapping[str, Any]) -> None:
        # Without MAP_FIXED the trace's own address is the hint: the layout stays that of
        # the trace, which a search from the top would have found too.
        fd = row["fd"]
        file = (Place.SLOT, self.files[fd]) if fd is not None and fd >= 0 else -1
        where = self.at(row["result"], row["length"])
        self.call(
            "mmap",
            where,
            row["length"],
            row["prot"],
            row["flags"],
            file,
            row["file_offset"] or 0,
            want=where,
        )

    def ranged(self, row: Mapping[str, Any]) -> None:
        name = _RANGE_CALLS[OpKind(row["kind"])]
        where = self.at(row["address"], row["length"])
        self.call(name, where, row["length"], row["flags"] or 0, want=0)

    def mprotect(self, row: Mapping[str, Any]) -> None:
        self.call("mprotect", self.at(row["address"]), row["length"], row["prot"], want=0)

    def munmap(self, row: Mapping[str, Any]) -> None:
        self.call("munmap", self.at(row["address"], row["length"]), row["length"], want=0)

    def mlock(self, row: Mapping[str, Any]) -> None:
        self.call("mlock2", self.at(row["address"]), row["length"], row["flags"] or 0, want=0)

    def brk(self, row: Mapping[str, Any]) -> None:
        new = row["address2"]
        where = self.at(new) if new else 0
        self.call("brk", where, want=where if new else None)

    def mremap(self, row: Mapping[str, Any]) -> None:
        self.call(
            "mremap",
            self.at(row["address"]),
            row["length2"],
            row["length"],
            row["flags"],
            self.at(row["address2"] or 0, row["length"]),
            want=self.at(row["result"], row["length"]),
        )

    def mincore(self, row: Mapping[str, Any]) -> None:
        self.call("mincore", self.at(row["address"]), row["length"], self._buffer(), want=0)

    def msync(self, row: Mapping[str, Any]) -> None:
        self.call("msync", self.at(row["address"]), row["length"], _MS_ASYNC, want=0)

    def mbind(self, row: Mapping[str, Any]) -> None:
        mode = row["flags"] or 0
        nodes = (self.put(1), 64) if mode else (0, 0)  # node 0
        self.call("mbind", self.at(row["address"]), row["length"], mode, *nodes, 0, want=0)

    def get_mempolicy(self, row: Mapping[str, Any]) -> None:
        where = self.at(row["address"])
        self.call("get_mempolicy", self._buffer(), 0, 0, where, _MPOL_F_ADDR, want=0)

    def ground(self, pages: int) -> None:
        """Mapped and touched pages for calls whose ranges a recording does not show."""
        where, flags = self.at(_GROUND, pages * PAGE_SIZE), MAP_PRIVATE | MAP_ANONYMOUS
        self.call("mmap", where, pages * PAGE_SIZE, READ_WRITE, flags, -1, 0, want=where)
        for k in range(pages):
            self.action(Action.STORE, self.at(_GROUND + k * PAGE_SIZE))

    def process_madvise(self, row: Mapping[str, Any]) -> None:
        """Every other page of :meth:`ground`: a recording does not show the vector."""
        elements = row["length2"]
        pairs = [(self.at(_GROUND + 2 * k * PAGE_SIZE), PAGE_SIZE) for k in range(elements)]
        vector = self.put(*(word for pair in pairs for word in pair))
        bytes_ = elements * PAGE_SIZE
        self.call(
            "process_madvise",
            (Place.SLOT, Slot.PIDFD),
            vector,
            elements,
            row["flags"],
            0,
            want=bytes_,
        )

    def process_vm(self, row: Mapping[str, Any]) -> None:
        length = row["length"]
        mine = self.put(self._buffer(), length)
        theirs = self.put(self.at(row["address"]), length)
        self.call("process_vm_readv", (Place.PID, 0), mine, 1, theirs, 1, 0, want=length)

    def vmsplice(self, row: Mapping[str, Any]) -> None:
        length = row["length"]
        vector = self.put(self.at(row["address"]), length)
        self.call("vmsplice", (Place.SLOT, Slot.PIPE_IN), vector, 1, 0, want=length)
        self.call("read", (Place.SLOT, Slot.PIPE_OUT), self._buffer(), length, want=length)

    def uffd(self, row: Mapping[str, Any]) -> None:
        where, length = self.at(row["address"]), row["length"]
        if row["flags"] == UffdOp.REGISTER:
            code, arg = _UFFDIO_REGISTER, self.put(where, length, _MISSING, 0)
        elif row["flags"] == UffdOp.UNREGISTER:
            code, arg = _UFFDIO_UNREGISTER, self.put(where, length)
        elif row["flags"] == UffdOp.COPY:
            code, arg = _UFFDIO_COPY, self.put(where, self._buffer(), length, 0, 0)
        else:
            raise ValueError(f"userfaultfd operation {row['flags']} cannot be performed")
        self.call("ioctl", (Place.SLOT, Slot.UFFD), code, arg, want=0)

    def proc_read(self, row: Mapping[str, Any]) -> None:
        file = ProcFile(row["flags"])
        if file in _WHOLE:
            if not self.rest_of_file:
                slot = (Place.SLOT, _WHOLE[file])
                self.action(Action.READ_ALL, slot, self._buffer(), _BUFFER_BYTES)
            self.rest_of_file = row["result"] != 0
            return
        where = (Place.PAGEMAP if file is ProcFile.PAGEMAP else Place.ARENA, row["address"])
        slot = (Place.SLOT, Slot.PAGEMAP if file is ProcFile.PAGEMAP else Slot.MEM)
        self.call("pread", slot, self._buffer(), row["length"], where, want=row["length"])

    def _buffer(self) -> tuple[Place, int]:
        """Page-aligned room for what calls write or read."""
        if not self.buffer:
            while 8 * len(self.words) % PAGE_SIZE:
                self.put(0)
            self.buffer = self.space(_BUFFER_BYTES)[1]
        return Place.DATA, self.buffer

    # -- threads and processes -------------------------------------------------------------
    def start(self, row: Mapping[str, Any]) -> None:
        action = {
            OpKind.FORK: Action.FORK,
            OpKind.VFORK: Action.VFORK,
            OpKind.CLONE: Action.THREAD,
        }[OpKind(row["kind"])]
        child = len(self.contexts)
        self.contexts[row["child"]] = child
        top = 0 if action is Action.FORK else self.stack()
        where = (Place.DATA, top) if top else 0
        index = self.action(action, where, number=child, want=None)
        self.made[row["child"]] = (index, action, self.context, top)

    def leave(self, row: Mapping[str, Any]) -> None:
        index, made_by, parent, top = self.made[row["tid"]]
        if row["kind"] == OpKind.EXEC:
            path = self.text(self.executable.encode())
            argv = self.put(path, 0)
            self.action(Action.EXEC, path, argv, self.put(0), want=0)
        elif made_by is Action.THREAD:
            self.action(Action.EXIT_THREAD)
        else:
            self.action(Action.EXIT_PROCESS)
        self.context = parent
        thread = made_by is Action.THREAD
        self.action(Action.WAIT_THREAD if thread else Action.WAIT_PROCESS, index)
        if top:
            self.idle_stacks.append(top)

    def nothing(self, row: Mapping[str, Any]) -> None:
        """What follows by itself from another operation."""

    def operation(self, row: Mapping[str, Any]) -> None:
        self.context = self.contexts[row["tid"]]
        if row["kind"] in _HOW:
            _HOW[OpKind(row["kind"])](self, row)
        else:
            raise ValueError(f"{OpKind(row['kind']).name} cannot be performed")

    # -- segments --------------------------------------------------------------------------------
    def usage(self) -> int:
        where = self.space(_RUSAGE_BYTES)
        self.call("getrusage", _RUSAGE_SELF, where, want=0)
        return where[1]

    def segment(self, name: str, ops: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """The actions of one phase, within its bounds."""
        number = len(self.segments)
        labels = [self.text(f"{word:5} {number:06d}".encode())[1] for word in ("begin", "end")]
        before = self.usage()
        begin = self.call("getppid")
        for row in rows:
            self.operation(row)
        for _ in range(0 if rows else _SILENT_ACTIONS):
            self.silent(name)
        end = self.call("getppid")
        usage = (before, self.usage())
        self.segments.append(Segment(name, ops, begin, end, (labels[0], labels[1]), usage))

    def silent(self, name: str) -> None:
        """A phase of calls that take no lock of the memory map: no recording has them."""
        if name == "empty_getppid" or name in (WARM, NOTHING):
            self.call("getppid")
        elif name == "futex_wake_private":
            self.call("futex", self._buffer(), _FUTEX_WAKE_PRIVATE, 1, want=0)
        elif name == "futex_wake_shared":
            self.call("futex", self._buffer(), _FUTEX_WAKE, 1, want=0)
        elif name in _SILENT_FILES:
            slot = (Place.SLOT, _SILENT_FILES[name])
            self.action(Action.READ_ALL, slot, self._buffer(), _BUFFER_BYTES)


_HOW: Final[dict[OpKind, Callable[[_Builder, Mapping[str, Any]], None]]] = {
    OpKind.FAULT_USER: _Builder.fault,
    OpKind.FAULT_KERNEL: _Builder.fault,
    OpKind.MMAP: _Builder.mmap,
    OpKind.MUNMAP: _Builder.munmap,
    OpKind.MPROTECT: _Builder.mprotect,
    OpKind.MADVISE: _Builder.ranged,
    OpKind.BRK: _Builder.brk,
    OpKind.MREMAP: _Builder.mremap,
    OpKind.MLOCK: _Builder.mlock,
    OpKind.MUNLOCK: _Builder.ranged,
    OpKind.MSEAL: _Builder.ranged,
    OpKind.MINCORE: _Builder.mincore,
    OpKind.MSYNC: _Builder.msync,
    OpKind.MBIND: _Builder.mbind,
    OpKind.GET_MEMPOLICY: _Builder.get_mempolicy,
    OpKind.PROCESS_MADVISE: _Builder.process_madvise,
    OpKind.PROCESS_VM: _Builder.process_vm,
    OpKind.VMSPLICE: _Builder.vmsplice,
    OpKind.UFFD: _Builder.uffd,
    OpKind.PROC_READ: _Builder.proc_read,
    OpKind.FORK: _Builder.start,
    OpKind.VFORK: _Builder.start,
    OpKind.CLONE: _Builder.start,
    OpKind.THREAD_START: _Builder.nothing,
    OpKind.THREAD_EXIT: _Builder.leave,
    OpKind.PROCESS_EXIT: _Builder.leave,
    OpKind.EXEC: _Builder.leave,
}


def performable(kind: int) -> bool:
    """Whether operations of this kind can be performed."""
    return kind in _HOW


def build(
    rows: Sequence[Mapping[str, Any]],
    segments: Mapping[str, tuple[int, int, int]],
    files: Mapping[int, Slot],
    executable: str,
) -> Program:
    """Make a program of a trace's operations.

    Parameters
    ----------
    rows:
        The operations in order, as columns of the operations table by name.
    segments:
        Phase name → (first row, one past the last, operations of the phase); disjoint
        and ascending.
    files:
        The trace's file descriptors → what to use for them.
    executable:
        The program that EXEC operations run.

    Raises
    ------
    ValueError
        An operation of a kind that cannot be performed.
    """
    b = _Builder(files, executable)
    main = rows[0]["tid"] if rows else 0
    b.contexts[main] = 0
    for name in (WARM, NOTHING):
        b.segment(name, _SILENT_ACTIONS, [])
    vectors = [r["length2"] for r in rows if r["kind"] == OpKind.PROCESS_MADVISE]
    if vectors:
        b.ground(2 * max(vectors))
    at = 0
    for name, (first, end, ops) in segments.items():
        for row in rows[at:first]:
            b.operation(row)
        b.context = b.contexts[rows[first]["tid"]] if first < end else 0
        b.segment(name, ops, rows[first:end])
        at = end
    for row in rows[at:]:
        b.operation(row)
    return Program(
        table=np.array(b.rows, np.int64).reshape(-1, COLUMNS),
        places=np.array(b.places, np.uint8).reshape(-1, 6),
        want=np.array([v for _, v in b.want], np.int64),
        want_place=np.array([p for p, _ in b.want], np.uint8),
        data=np.array(b.words, np.int64),
        data_places=np.array(b.word_places, np.uint8),
        segments=tuple(b.segments),
        span=(b.low, max(b.high, b.low)),
        fails=any(row["fault_class"] == FaultClass.FAILED for row in rows),
    )


def slots_used(program: Program) -> list[Slot]:
    """File descriptors that the program needs."""
    in_use = program.table[:, Column.A : Column.F + 1][program.places == Place.SLOT]
    return [Slot(int(s)) for s in np.unique(in_use)]
