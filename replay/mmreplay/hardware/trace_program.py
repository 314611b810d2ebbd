"""A recorded process as rows that threads perform concurrently, at relocated addresses.

Every range that the process mapped or touched is moved into one arena that nothing else of
the performing process uses; what lies outside it is never touched.  Dependencies are those
that the memory map itself makes: an operation comes after the mapping that it needs, and an
unmapping after the last use, also across threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mmreplay.schema import PAGE_SIZE
from mmreplay.workloads.program import MADV_POPULATE_READ, MADV_POPULATE_WRITE
from mmreplay.workloads.program import Path as Way

I64 = NDArray[np.int64]
Load = Literal["recorded", "saturated"]


class Do(IntEnum):
    """What a row does."""

    CALL = 0  # system call NUMBER with A..E; F: its file, a row of files, -2 /dev/zero, -3 a sink
    WRITE = 1  # a byte at A
    READ = 2
    SPAWN = 3  # start thread A
    FORK = 4  # a process that ends at once
    AWAIT = 5  # thread A has done B operations


class Word(IntEnum):
    """Columns of a row."""

    DO = 0
    NUMBER = 1
    A = 2
    B = 3
    C = 4
    D = 5
    E = 6
    F = 7
    THINK = 8  # computed before it, ns
    BLOCKED = 9  # slept before it, ns
    OPERATION = 10  # 1: an operation of the trace; 0: an AWAIT
    DONE_NS = 11  # filled in: when it was done (an AWAIT: over)
    AWAITED = 12  # 1: an AWAIT of another thread waits for it


WORDS: Final = len(Word)
#: Where the arena lies: free in every process that does not ask for it.
ARENA: Final = 0x2000_0000_0000
_CALLS: Final = {
    "read": 0,
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "brk": 12,
    "pwrite": 18,
    "mremap": 25,
}
_MORE: Final = {"madvise": 28, "mlock": 149, "munlock": 150, "mincore": 27, "msync": 26}
NUMBERS: Final = {**_CALLS, **_MORE}
CALL_NAMES: Final = {number: name for name, number in NUMBERS.items() if number}


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping that is there before the threads start."""

    address: int
    length: int
    prot: int
    shared: bool
    file: int  # row of files, -1 anonymous
    offset: int


@dataclass(slots=True)
class TraceProgram:
    """What is performed.  ``rows`` is (n, :data:`WORDS`), those of a thread together.

    ``order`` (n,): the place of each row in recorded order, -1 for an AWAIT.

    ``threads`` is (threads, 3): first row, one past its last, and whether it is there from
    the start.  ``files``: bytes of each.  ``span``: the arena.  ``touched_bytes``: an upper
    bound on memory.  ``left_out``: why → how many operations.
    """

    name: str
    rows: I64
    order: I64
    threads: I64
    tids: list[int]
    mappings: list[Mapping]
    files: list[int]
    span: tuple[int, int]
    touched_bytes: int
    recorded_span_ns: int
    left_out: dict[str, int] = field(default_factory=dict)
    path: Way = "vma"

    @property
    def operations(self) -> int:
        return int(self.rows[:, Word.OPERATION].sum())

    @property
    def think_ns(self) -> int:
        """CPU time of the program itself, over all threads."""
        return int(self.rows[:, Word.THINK].sum())

    def by_path(self, path: Way) -> TraceProgram:
        """The same with the faults of user mode taken by another path."""
        rows = self.rows.copy()
        writes, reads = (rows[:, Word.DO] == do for do in (Do.WRITE, Do.READ))
        if path == "mmap_lock":
            for which, advice in ((writes, MADV_POPULATE_WRITE), (reads, MADV_POPULATE_READ)):
                rows[which, Word.DO] = Do.CALL
                rows[which, Word.NUMBER] = NUMBERS["madvise"]
                rows[which, Word.B], rows[which, Word.C] = PAGE_SIZE, advice
        elif path == "kernel":
            rows[writes, Word.DO] = Do.CALL
            rows[writes, Word.NUMBER] = NUMBERS["read"]
            rows[writes, Word.F] = -2  # /dev/zero
            rows[writes, Word.B] = 1
        return replace(self, rows=rows, path=path)
