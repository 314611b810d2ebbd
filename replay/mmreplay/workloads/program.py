"""The loop program: what both back ends execute.

A workload compiled for a number of threads is a handful of int64 tables, so that compiled
code can walk them: generating a trace (:mod:`mmreplay.workloads.generator`) and running on
this machine do exactly the same.

``code`` has a row per instruction (columns: :class:`Field`), ``threads`` a row per program
(:class:`ThreadField`): program 0 is the main thread (it does the set-up and starts the
others), then one for each started thread, then those that are spawned or forked.
``regions`` says which slots a program's region numbers mean, ``slots`` what each slot is
(:class:`SlotField`).  A slot is one piece of address space; a back end keeps its address
and its mapped length (0: not mapped) in a table of its own, (slots, 2).

Rules that make every program total, so that neither back end can leave its own memory:
an operation on a slot that is not mapped does nothing, and so does mmap on one that is;
ranges are cut to what is mapped; what was skipped counts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
#: ``vma``: pages are touched (per-VMA locks, where the kernel has them).  ``mmap_lock``:
#: MADV_POPULATE_WRITE/READ page by page.  ``kernel``: read(2) into each page that is written.
#: Both of the
#: latter fault under mmap_lock on every kernel.
Path = Literal["vma", "mmap_lock", "kernel"]
PATHS: Final = ("vma", "mmap_lock", "kernel")


class Op(IntEnum):
    """Instructions.  Up to BARRIER they do something; the others only steer."""

    END = 0  # this program is through
    MMAP = 1  # map the slot: LENGTH..MOST bytes, PROT, FLAGS, FILE; with MAP_FIXED from OFFSET on
    TOUCH = 2  # access one byte of each unit; FLAGS: 1 write, 0 read; TIMES: see below
    READ = 3  # read(2) one byte of /dev/zero into each unit
    MUNMAP = 4  # the range; the slot is unmapped when it was its whole length (see below)
    MPROTECT = 5  # PROT
    MADVISE = 6  # FLAGS: the advice
    MREMAP = 7  # to LENGTH..MOST bytes; FLAGS: 1 MREMAP_MAYMOVE
    BRK = 8  # break = start of the slot + LENGTH
    # MEAN_NS, SHAPE (Distribution), TIMES: sigma in thousandths; FLAGS: 1 asleep; TARGET: 1 + the
    # role that wakes it, 0 nobody does
    THINK = 9
    SPAWN = 10  # start program TARGET as a thread; waits for its previous run to end
    FORK = 11  # the same as a process with a copy of this one's memory
    JOIN = 12  # wait for the end of program TARGET
    BARRIER = 13  # number TARGET; TIMES threads meet there
    PICK = 14  # element of REGION for all that follows; FLAGS: Picks
    NEXT = 15  # COUNTER += 1; to TARGET while it is below TIMES (0: always), then it is 0 again
    JUMP = 16  # to TARGET with probability TIMES / 2**32; SHAPE 1: evenly, see below
    UNMAPPED = 17  # to TARGET where REGION's element is not mapped


class Field(IntEnum):
    """Columns of ``code``.

    Range operations (TOUCH, READ, MUNMAP, MPROTECT, MADVISE) work on the bytes
    [OFFSET, OFFSET + LENGTH) of the slot, LENGTH drawn uniformly in whole pages from
    LENGTH..MOST, 0 meaning up to the end of what is mapped.  STEP 0: one operation on the
    whole range.  STEP > 0: one operation on each unit of STEP bytes, in ORDER, UNITS of
    them at most (0: all).  WINDOW > 0: of these bytes only the window of WINDOW bytes whose
    number is counter AT, modulo the number of windows; :data:`NEXT_WINDOW`: that which begins
    where the program's last range operation on the region (of several elements: anybody's on
    the element) ended, :data:`SAME_WINDOW`: where
    it began, :data:`LAST_WINDOW`: which ends where it ended, and what follows begins where
    this one does (beyond the range: where that begins).
    Operations on all of a region do not count for that, but after mmap, or when all was
    dropped, everything begins at its beginning.
    A JUMP with SHAPE 1 keeps in MEAN_NS where in its present stratum it shall be taken (-1: not
    drawn yet) and in LENGTH how far it is: the rarer of its two ways is taken once in each.
    TOUCH and READ with TIMES 1 stand for faults: a generated trace has them at the next page
    that still faults where theirs would not, here or in another mapped element.
    An unmapping of exactly [0, mapped length) empties a slot; a smaller one at its end or
    its beginning shortens it; any other is not done.
    """

    OP = 0
    REGION = 1  # number in the program's regions, -1 none
    OFFSET = 2  # bytes
    LENGTH = 3  # bytes
    MOST = 4  # bytes
    STEP = 5  # bytes
    AT = 6  # number of a counter, -1 none, -2 NEXT_WINDOW, -3 SAME_WINDOW, -4 LAST_WINDOW
    ORDER = 7  # Order
    UNITS = 8
    PROT = 9  # PROT_*; TOUCH, READ: 1 skips pages whose protection forbids it
    FLAGS = 10  # MAP_*, MADV_*, ...: see Op
    FILE = 11  # row of files, -1 none
    TARGET = 12  # row of code, or program, or barrier, or 1 + role
    TIMES = 13
    COUNTER = 14  # number of a counter
    MEAN_NS = 15
    SHAPE = 16  # Distribution
    COUNTS = 17  # operations that ops_per_s counts: per unit, or per call where there are none
    SOURCE = 18  # row of sources: the step of the text
    WINDOW = 19  # bytes


class Picks(IntEnum):
    """How PICK chooses among the elements of a region."""

    RANDOM = 0
    NEXT = 1
    MAPPED = 2  # the present one, or the next after it, that is mapped; else the present one
    FREE = 3  # the next after the present one that is not mapped; else the present one
    UNTOUCHED = 4  # as MAPPED, of those on which there was no range operation since mmap
    OTHER = 5  # the next after the present one that is mapped


class Order(IntEnum):
    ASCENDING = 0
    SCATTERED = 1  # each unit once, far from the one before


class Distribution(IntEnum):
    CONSTANT = 0
    EXPONENTIAL = 1
    LOGNORMAL = 2  # of the given mean


class Kind(IntEnum):
    """How a program comes to run."""

    MAIN = 0
    STARTED = 1
    SPAWNED = 2
    FORKED = 3


class ThreadField(IntEnum):
    """Columns of ``threads``."""

    FIRST = 0  # its first row of code
    LOOP = 1  # first row of what it does for ever; -1 none
    END = 2  # one past its last row
    KIND = 3  # Kind
    ROLE = 4  # row of roles; -1 main
    INDEX = 5  # which thread of its role
    REGIONS = 6  # its first row of regions
    PARENT = 7  # program that starts it
    PROCESS = 8  # 0 the process itself, k the k-th forked program
    COPIES = 9  # FORKED: its rows of copies (slots that the child has copies of): first
    COPIES_END = 10  # and one past the last


class SlotField(IntEnum):
    """Columns of ``slots``."""

    MOST = 0  # bytes at most
    REGION = 1  # row of region_names
    FILE = 2  # row of files, -1 anonymous
    SHARED = 3  # 1: MAP_SHARED
    HEAP = 4  # 1: the heap
    PROCESS = 5  # as ThreadField.PROCESS
    OWNER = 6  # program whose own it is, -1: of all threads of the process


class FileField(IntEnum):
    """Columns of ``files``."""

    BYTES = 0
    DISK = 1  # 0 tmpfs
    NAME = 2  # row of file_names


#: Counters and the widest nesting of repeats.
MOST_COUNTERS: Final = 8
#: Value of AT.
NEXT_WINDOW: Final = -2
SAME_WINDOW: Final = -3
LAST_WINDOW: Final = -4
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 0x1, 0x2, 0x10, 0x20
MAP_NORESERVE, MAP_POPULATE = 0x4000, 0x8000
MADV_DONTNEED, MADV_REMOVE, MADV_HUGEPAGE, MADV_NOHUGEPAGE = 4, 9, 14, 15
MADV_POPULATE_READ, MADV_POPULATE_WRITE = 22, 23


@dataclass(frozen=True)
class Program:
    """A workload for a number of threads; see the module.

    ``copies`` is (n, 2): slot of the parent, slot of the forked child.  ``barriers`` (n,):
    how many threads meet.  ``sources``: where in the text an instruction comes from.
    ``touched_bytes``: an upper bound on the memory that its threads make present.
    """

    name: str
    threads_asked: int
    code: I64
    threads: I64
    regions: I64
    slots: I64
    files: I64
    copies: I64
    barriers: I64
    sources: tuple[str, ...]
    roles: tuple[str, ...]
    region_names: tuple[str, ...]
    file_names: tuple[str, ...]
    touched_bytes: int
    path: Path = "vma"

    @property
    def started(self) -> int:
        """Threads that are there from the start, main not counted."""
        return int((self.threads[:, ThreadField.KIND] == Kind.STARTED).sum())

    def by_path(self, path: Path) -> Program:
        """The same with every page that is touched faulted in by another path."""
        code = self.code.copy()
        touch = code[:, Field.OP] == Op.TOUCH
        if path == "mmap_lock":
            write = code[:, Field.FLAGS] == 1
            code[touch, Field.OP] = Op.MADVISE
            advice = np.where(write, MADV_POPULATE_WRITE, MADV_POPULATE_READ)
            code[touch, Field.FLAGS] = advice[touch]
        elif path == "kernel":
            touch &= code[:, Field.FLAGS] == 1  # read(2) writes: what is only read stays so
            code[touch, Field.OP] = Op.READ
            code[touch, Field.FLAGS] = 0
        return replace(self, code=code, path=path)
