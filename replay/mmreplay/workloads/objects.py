"""Which piece of memory each operation of a recorded trace is about.

A *piece* is what one mmap call mapped, or what was there before.  :class:`Pieces` follows
the pieces of one address space through a trace, in chunks and in compiled code.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.jit import njit
from mmreplay.schema import OpKind

I64 = NDArray[np.int64]

_MAP_FIXED: Final = 0x10
_POPULATE: Final = 0x8000
_DONTNEED, _POPULATE_READ, _POPULATE_WRITE = 4, 22, 23
#: A fault so many pages behind the one before goes on there: one may have mapped those between.
_GAP: Final = 16
#: A page fault outside every known piece founds one of this size (its aligned surroundings).
_FOUND: Final = 1 << 30


class Piece(IntEnum):
    """Columns of the pieces."""

    START = 0
    SIZE = 1  # bytes, the largest it ever had
    CREATOR = 2  # thread that mapped it, -1 was there
    PROT = 3
    FLAGS = 4
    FILE = 5  # 0 anonymous, 1 on tmpfs, 2 on a disk
    BORN = 6  # row
    DIED = 7  # row, -1 it did not
    USER = 8  # the first thread that faulted in it, -1 nobody
    SHARED = 9  # 1: others did too
    FAULTS = 10
    LOW = 11  # first and last page that faulted since all was dropped, as numbers of pages
    HIGH = 12
    PRESENT = 13  # faults since then
    FLIPS = 14  # calls of mprotect
    AT_FIRST = 15  # page where the last operation on a range of it began
    AT_END = 16
    AT_THREAD = 17  # whose operation that was, -1 nobody's


class Relation(IntEnum):
    """Where an operation on a range is, seen from the last one in the piece."""

    UNKNOWN = 0  # there was none
    SAME = 1  # it begins where that began
    NEXT = 2  # ... where that ended
    ELSEWHERE = 3
    INSIDE = 4  # it begins inside that


class What(IntEnum):
    """Columns of what is said of each row."""

    PIECE = 0  # -1 none: the row is not about memory of the space that is learnt
    WHOLE = 1  # 1: all of it, 2: its end, 3: its beginning
    PAGES = 2  # brk: the new break
    PRESENT = 3  # of them, as far as the faults tell: spread evenly between the outermost ones
    FIRST = 4  # pages of the piece before it
    LEFT = 5  # and behind it
    RELATION = 6  # Relation
    THREAD = 7  # 1: the last operation on a range of the piece was another thread's
    FRESH = 8  # 1: there was none since it was mapped


@njit
def _find(starts: I64, ends: I64, n: int, address: int) -> int:
    """Place of the range that holds ``address``, -1."""
    at = int(np.searchsorted(starts[:n], address, side="right")) - 1
    return at if at >= 0 and ends[at] > address else -1


@njit
def _remove(starts: I64, ends: I64, ids: I64, n: int, at: int) -> int:
    for k in range(at, n - 1):
        starts[k], ends[k], ids[k] = starts[k + 1], ends[k + 1], ids[k + 1]
    return n - 1


@njit
def _insert(starts: I64, ends: I64, ids: I64, n: int, start: int, end: int, number: int) -> int:
    at = np.searchsorted(starts[:n], start, side="right")
    for k in range(n, at, -1):
        starts[k], ends[k], ids[k] = starts[k - 1], ends[k - 1], ids[k - 1]
    starts[at], ends[at], ids[at] = start, end, number
    return n + 1


@njit
def _clear(
    starts: I64, ends: I64, ids: I64, n: int, pieces: I64, start: int, end: int, row: int
) -> int:
    """Nothing is mapped in [start, end) any more; of a piece cut in two the lower part stays."""
    at = np.searchsorted(starts[:n], start, side="right") - 1
    if at < 0 or ends[at] <= start:
        at += 1
    while at < n and starts[at] < end:
        if starts[at] < start:
            ends[at] = start
            at += 1
        elif ends[at] > end:
            starts[at] = end
            at += 1
        else:
            pieces[ids[at], Piece.DIED] = row
            n = _remove(starts, ends, ids, n, at)
    return n


@njit
def _relate(p: I64, what: I64, thread: int, first: int, end: int, gap: int) -> None:
    """Say where pages ``first..end`` of a piece are, seen from the last operation on it."""
    at, at_end = p[Piece.AT_FIRST], p[Piece.AT_END]
    what[What.RELATION] = Relation.ELSEWHERE
    what[What.THREAD] = int(p[Piece.AT_THREAD] != thread)
    what[What.FRESH] = int(at == at_end)
    if p[Piece.AT_THREAD] < 0:
        what[What.RELATION] = Relation.UNKNOWN
    elif first == at_end:
        what[What.RELATION] = Relation.NEXT
    elif first == at:
        what[What.RELATION] = Relation.SAME
    elif at < first < at_end:
        what[What.RELATION] = Relation.INSIDE
    elif at_end < first <= at_end + gap:
        what[What.RELATION] = Relation.NEXT
    p[Piece.AT_FIRST], p[Piece.AT_END], p[Piece.AT_THREAD] = first, end, thread


@njit
def _fill(p: I64, first: int, end: int) -> None:
    """Pages ``first..end`` of a piece are there from now on."""
    if p[Piece.PRESENT] == 0:
        p[Piece.LOW], p[Piece.HIGH] = first, end - 1
    p[Piece.LOW] = min(p[Piece.LOW], first)
    p[Piece.HIGH] = max(p[Piece.HIGH], end - 1)
    p[Piece.PRESENT] = min(p[Piece.PRESENT] + end - first, p[Piece.HIGH] + 1 - p[Piece.LOW])


@njit
def follow(
    kind: I64,
    thread: I64,
    address: I64,
    length: I64,
    length2: I64,
    result: I64,
    prot: I64,
    flags: I64,
    file: I64,
    first_row: int,
    starts: I64,
    ends: I64,
    ids: I64,
    pieces: I64,
    counts: I64,
    what: I64,
) -> None:
    """Follow the rows (``thread`` -1: not to be learnt); ``counts``: ranges, pieces."""
    n, made = counts[0], counts[1]
    for k in range(len(kind)):
        what[k, What.PIECE] = -1
        what[k, What.WHOLE :] = 0
        if thread[k] < 0:
            continue
        op, row, start = kind[k], first_row + k, address[k]
        if op == OpKind.MMAP:
            start = result[k]
            if start <= 0 or length[k] <= 0:
                continue
            end = start + ((length[k] + 4095) & -4096)
            at = _find(starts, ends, n, start)
            if flags[k] & _MAP_FIXED and at >= 0 and (starts[at] < start or ends[at] > end):
                what[k, What.PIECE] = ids[at]  # over a part of a piece: it stays one
                what[k, What.PAGES] = (end - start) >> 12
                what[k, What.FIRST] = (start - starts[at]) >> 12
                what[k, What.LEFT] = (ends[at] - end) >> 12
                _relate(pieces[ids[at]], what[k], thread[k], start >> 12, end >> 12, 0)
                continue
            n = _clear(starts, ends, ids, n, pieces, start, end, row)
            n = _insert(starts, ends, ids, n, start, end, made)
            p = pieces[made]
            p[Piece.START], p[Piece.SIZE], p[Piece.CREATOR] = start, end - start, thread[k]
            p[Piece.PROT], p[Piece.FLAGS], p[Piece.FILE] = prot[k], flags[k], file[k]
            p[Piece.BORN], p[Piece.DIED], p[Piece.USER] = row, -1, -1
            p[Piece.AT_FIRST] = p[Piece.AT_END] = start >> 12
            p[Piece.AT_THREAD] = thread[k]
            if flags[k] & _POPULATE:
                _fill(p, start >> 12, end >> 12)
            what[k, What.PIECE] = made
            what[k, What.WHOLE] = 1
            what[k, What.PAGES] = (end - start) >> 12
            made += 1
            continue
        if op == OpKind.BRK:
            what[k, What.PAGES] = result[k] >> 12  # the break itself
            continue
        if start <= 0:
            continue
        at = _find(starts, ends, n, start)
        if op == OpKind.FAULT_USER or op == OpKind.FAULT_KERNEL:
            if at < 0:  # unknown memory: the gap around it, up to an aligned piece
                low, high = start & -_FOUND, (start & -_FOUND) + _FOUND
                at = np.searchsorted(starts[:n], start, side="right")
                if at > 0:
                    low = max(low, ends[at - 1])
                if at < n:
                    high = min(high, starts[at])
                n = _insert(starts, ends, ids, n, low, high, made)
                p = pieces[made]
                p[Piece.START], p[Piece.SIZE], p[Piece.CREATOR] = low, high - low, -1
                p[Piece.PROT], p[Piece.FLAGS], p[Piece.BORN] = 3, 0x22, -1
                p[Piece.DIED] = p[Piece.USER] = p[Piece.AT_THREAD] = -1
                made += 1
                at = _find(starts, ends, n, start)
            number = ids[at]
            p = pieces[number]
            if p[Piece.USER] < 0:
                p[Piece.USER] = thread[k]
            elif p[Piece.USER] != thread[k]:
                p[Piece.SHARED] = 1
            p[Piece.FAULTS] += 1
            page = start >> 12
            _fill(p, page, page + 1)
            what[k, What.PIECE] = number
            what[k, What.PAGES] = 1
            what[k, What.FIRST] = page - (starts[at] >> 12)
            what[k, What.LEFT] = (ends[at] >> 12) - page - 1
            _relate(p, what[k], thread[k], page, page + 1, _GAP)
            continue
        if at < 0:
            continue
        number, end = ids[at], start + ((length[k] + 4095) & -4096)
        what[k, What.PIECE] = number
        what[k, What.PAGES] = (min(end, ends[at]) - start) >> 12
        first, last = start >> 12, min(end, ends[at]) >> 12
        what[k, What.FIRST] = first - (starts[at] >> 12)
        what[k, What.LEFT] = max(ends[at] - end, 0) >> 12
        what[k, What.WHOLE] = 1 if starts[at] == start else 2
        if end < ends[at]:
            what[k, What.WHOLE] = 3 if starts[at] == start else 0
        p = pieces[number]
        if p[Piece.PRESENT] > 0:
            low, high = max(start >> 12, p[Piece.LOW]), min(end >> 12, p[Piece.HIGH] + 1)
            around = p[Piece.HIGH] + 1 - p[Piece.LOW]
            if high > low:
                what[k, What.PRESENT] = (high - low) * min(p[Piece.PRESENT], around) // around
        if what[k, What.WHOLE] != 1:
            _relate(p, what[k], thread[k], first, last, 0)
        if op == OpKind.MPROTECT:
            p[Piece.FLIPS] += 1
        if op == OpKind.MADVISE:
            if flags[k] == _DONTNEED:
                p[Piece.PRESENT] -= min(p[Piece.PRESENT], what[k, What.PRESENT])
                if what[k, What.WHOLE] == 1:
                    p[Piece.AT_FIRST] = p[Piece.AT_END] = first
                    p[Piece.AT_THREAD] = thread[k]
            elif flags[k] == _POPULATE_READ or flags[k] == _POPULATE_WRITE:
                _fill(p, first, last)
        if op == OpKind.MUNMAP:
            n = _clear(starts, ends, ids, n, pieces, start, end, row)
        elif op == OpKind.MREMAP and result[k] > 0:
            what[k, What.PAGES] = length[k] >> 12
            old = start + length2[k]
            to, to_end = result[k], result[k] + length[k]
            if to != start or to_end > old:
                n = _clear(starts, ends, ids, n, pieces, start, old, row)
                n = _clear(starts, ends, ids, n, pieces, to, to_end, row)
                n = _insert(starts, ends, ids, n, to, to_end, number)
                pieces[number, Piece.DIED] = pieces[number, Piece.AT_THREAD] = -1
                pieces[number, Piece.SIZE] = max(pieces[number, Piece.SIZE], length[k])
            else:
                n = _clear(starts, ends, ids, n, pieces, to_end, old, row)
    counts[0], counts[1] = n, made


class Pieces:
    """The pieces of one address space; ``known`` are those at the start: start, size, prot,
    flags, file."""

    def __init__(self, known: I64) -> None:
        n = len(known)
        self._starts = np.zeros(n + 1024, np.int64)
        self._ends = self._starts.copy()
        self._ids = self._starts.copy()
        self._table = np.zeros((n + 1024, len(Piece)), np.int64)
        order = np.argsort(known[:, 0])
        rows = known[order]
        self._starts[:n], self._ends[:n] = rows[:, 0], rows[:, 0] + rows[:, 1]
        self._ids[:n] = np.arange(n)
        self._table[:n, Piece.START], self._table[:n, Piece.SIZE] = rows[:, 0], rows[:, 1]
        self._table[:n, Piece.PROT], self._table[:n, Piece.FLAGS] = rows[:, 2], rows[:, 3]
        self._table[:n, Piece.FILE] = rows[:, 4]
        for column in (Piece.CREATOR, Piece.BORN, Piece.DIED, Piece.USER, Piece.AT_THREAD):
            self._table[:n, column] = -1
        self._counts = np.array([n, n], np.int64)
        self._row = 0

    def add(self, columns: dict[str, Any]) -> I64:
        """What the next rows are about: (rows, :class:`What`)."""
        rows = len(columns["kind"])
        for name in ("_starts", "_ends", "_ids"):
            old = getattr(self, name)
            if len(old) < self._counts[0] + rows + 1:
                setattr(self, name, np.concatenate([old, np.zeros(len(old) + rows, np.int64)]))
        if len(self._table) < self._counts[1] + rows + 1:
            more = np.zeros((len(self._table) + rows, len(Piece)), np.int64)
            self._table = np.concatenate([self._table, more])
        what = np.empty((rows, len(What)), np.int64)
        names = (
            "kind",
            "thread",
            "address",
            "length",
            "length2",
            "result",
            "prot",
            "flags",
            "file",
        )
        follow(
            *(np.ascontiguousarray(columns[name], np.int64) for name in names),
            self._row,
            self._starts,
            self._ends,
            self._ids,
            self._table,
            self._counts,
            what,
        )
        self._row += rows
        return what

    def table(self) -> I64:
        """(pieces, :class:`Piece`)."""
        return self._table[: self._counts[1]]
