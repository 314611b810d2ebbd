"""A recorded process as rows that threads perform concurrently, at relocated addresses.

Every range that the process mapped or touched is moved into one arena that nothing else of
the performing process uses; what lies outside it is never touched.  Dependencies are those
that the memory map itself makes: an operation comes after the mapping that it needs, and an
unmapping after the last use, also across threads.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mmreplay.errors import UserError
from mmreplay.hardware.trace_edges import find_edges
from mmreplay.schema import PAGE_SIZE, FaultBits, OpKind
from mmreplay.trace.store import Trace
from mmreplay.workloads.program import MADV_POPULATE_READ, MADV_POPULATE_WRITE
from mmreplay.workloads.program import Path as Way

I64 = NDArray[np.int64]
Load = Literal["recorded", "saturated"]


class Do(IntEnum):
    """What a row does."""

    CALL = 0  # system call NUMBER with A..F; F is the row of a file where FILED is 1
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
    DONE_NS = 11  # filled in: when it was done


WORDS: Final = len(Word)
#: Where the arena lies: free in every process that does not ask for it.
ARENA: Final = 0x2000_0000_0000
#: Gaps of the recorded address space are closed to this; page-table pages keep their shape.
_GAP: Final = 1 << 30
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
_NR: Final = {**_CALLS, **_MORE}
CALL_NAMES: Final = {number: name for name, number in _NR.items() if number}
_SHARED, _FIXED, _ANONYMOUS, _NORESERVE = 0x1, 0x10, 0x20, 0x4000
#: MAP_* flags that are replayed: SHARED, PRIVATE, ANONYMOUS, NORESERVE, POPULATE, STACK.
_KEPT_FLAGS: Final = 0x1 | 0x2 | 0x20 | 0x4000 | 0x8000 | 0x20000
_MAYMOVE_FIXED: Final = 3
#: A recorded stack may grow so far.
_STACK_GROWTH: Final = 8 << 20
_MSYNC_ASYNC: Final = 1
_MOST_ROWS: Final = 20_000_000


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

    ``threads`` is (threads, 3): first row, one past its last, and whether it is there from
    the start.  ``files``: bytes of each.  ``span``: the arena.  ``touched_bytes``: an upper
    bound on memory.  ``left_out``: why → how many operations.
    """

    name: str
    rows: I64
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
                rows[which, Word.NUMBER] = _NR["madvise"]
                rows[which, Word.B], rows[which, Word.C] = PAGE_SIZE, advice
        elif path == "kernel":
            rows[writes, Word.DO] = Do.CALL
            rows[writes, Word.NUMBER] = _NR["read"]
            rows[writes, Word.F] = -2  # /dev/zero
            rows[writes, Word.B] = 1
        return TraceProgram(
            self.name,
            rows,
            self.threads,
            self.tids,
            self.mappings,
            self.files,
            self.span,
            self.touched_bytes,
            self.recorded_span_ns,
            self.left_out,
            path,
        )


def build(trace: Trace, load: Load = "recorded") -> TraceProgram:
    """The busiest address space of ``trace`` as a program.

    Parameters
    ----------
    load:
        ``recorded`` sleeps where the threads were blocked; ``saturated`` does not.

    Raises
    ------
    UserError
        Nothing in it can be performed, or it is too large.
    """
    import polars as pl

    where = str(trace.path or "the trace")
    counted = trace.table("operations").group_by("address_space").len().collect()
    if not counted.height:
        raise UserError("no operations", where=where, fix="import a recording that has some")
    space = counted.sort("len", "address_space", descending=[True, False])["address_space"][0]
    frame = (
        trace.table("operations")
        .filter(pl.col("address_space") == space)
        .sort("begin_ns", "seq")
        .collect()
    )
    if frame.height > _MOST_ROWS:
        raise UserError(
            f"{frame.height:,} operations; at most {_MOST_ROWS:,} are performed",
            where=where,
            fix="cut the recording into shorter ones",
        )
    builder = _Builder(load)
    others = int(counted["len"].sum()) - frame.height
    if others:
        builder.left_out["of other address spaces"] += others
    vmas = trace.table("vmas").filter(pl.col("address_space") == space).collect()
    return builder.run(frame, vmas, Path(where).name.removesuffix(".mmt"))


#: A row, the range that it concerns, and 1 where it changes the map there.
_Made = tuple[list[int], int, int, int]


class _Builder:
    def __init__(self, load: Load) -> None:
        self.load = load
        self.left_out: Counter[str] = Counter()
        self.files: dict[tuple[int, int], int] = {}  # device and inode, or fd → row
        self.sizes: list[int] = []
        self.heap_end = 0
        self.backed: dict[int, list[tuple[int, int]]] = {}  # start → (ns, row of files)
        self.starts: I64 = np.zeros(0, np.int64)
        self.moves: I64 = np.zeros(0, np.int64)

    def run(self, frame: Any, vmas: Any, name: str) -> TraceProgram:
        """The program; ``frame``: operations in order."""
        columns = {c: frame[c].to_list() for c in frame.columns if c in _USED}
        ranges = self._ranges(columns, vmas)
        if not len(ranges):
            raise UserError("no operation with an address", where=name, fix="see mmreplay show")
        span = self._place(ranges)
        calls = zip(columns["kind"], columns["result"], strict=True)
        mappings = self._mappings(vmas, {result for kind, result in calls if kind == OpKind.MMAP})
        tids = sorted(set(columns["tid"]))
        index = {tid: k for k, tid in enumerate(tids)}
        children = {
            child: k
            for k, (kind, child) in enumerate(zip(columns["kind"], columns["child"], strict=True))
            if kind == OpKind.CLONE and child in index
        }
        rows, who, lows, highs, shapes = [], [], [], [], []
        last: dict[int, tuple[int, int]] = {}
        for k in range(frame.height):
            op = {c: values[k] for c, values in columns.items()}
            tid = op["tid"]
            think, blocked = last.get(tid, (0, 0))
            think += op["think_cpu_ns"] or 0
            if self.load == "recorded":
                blocked += op["think_blocked_ns"] or 0
            made = self._row(op, index if children.get(op["child"]) == k else {})
            if made is None:
                last[tid] = (think, blocked)  # what is left out keeps its time
                continue
            last[tid] = (0, 0)
            row, low, high, shape = made
            row[Word.THINK], row[Word.BLOCKED], row[Word.OPERATION] = think, blocked, 1
            rows.append(row)
            who.append(index[tid])
            lows.append(low)
            highs.append(high)
            shapes.append(shape)
        if not rows:
            raise UserError(
                "no operation that can be performed", where=name, fix="see mmreplay show"
            )
        table = np.array(rows, np.int64)
        owner = np.array(who, np.int64)
        edges = find_edges(owner, np.array(lows), np.array(highs), np.array(shapes), len(tids))
        _check_inside(table, span)
        ordered, threads = _by_thread(table, owner, edges, len(tids))
        threads[:, 2] = [tid not in children for tid in tids]
        touched = table[np.isin(table[:, Word.DO], (Do.WRITE, Do.READ)), Word.A]
        populated = (table[:, Word.DO] == Do.CALL) & (table[:, Word.NUMBER] == _NR["madvise"])
        populated &= np.isin(table[:, Word.C], (MADV_POPULATE_READ, MADV_POPULATE_WRITE))
        at_once = (table[:, Word.NUMBER] == _NR["mmap"]) & (table[:, Word.D] & 0x8000 != 0)
        bytes_ = len(np.unique(touched // PAGE_SIZE)) * PAGE_SIZE + sum(self.sizes)
        bytes_ += int(table[populated | at_once, Word.B].sum())
        begins = frame["begin_ns"]
        return TraceProgram(
            name,
            ordered,
            threads,
            tids,
            mappings,
            self.sizes,
            span,
            bytes_,
            int(begins[-1] - begins[0]),
            dict(self.left_out),
        )

    # -- addresses -------------------------------------------------------------------------
    def _ranges(self, columns: dict[str, list[Any]], vmas: Any) -> I64:
        """(n, 2) every range that is mapped, touched or given, page-aligned."""
        found = []
        for kind, address, length, result, length2, address2 in zip(
            *(columns[c] for c in ("kind", "address", "length", "result", "length2", "address2")),
            strict=True,
        ):
            if kind == OpKind.MMAP and (result or -1) > 0:
                found.append((result, result + (length or 0)))
            elif kind == OpKind.BRK and address2:
                found.append((address2 - (1 << 20), address2 + (1 << 20)))
            elif address:
                found.append((address, address + (length or PAGE_SIZE)))
            if kind == OpKind.MREMAP and (result or -1) > 0:
                found.append((result, result + (length or 0)))
                found.append((address, address + (length2 or 0)))
        found += [
            (
                vma["start"] - _STACK_GROWTH * (vma["name"] == "[stack]"),
                vma["start"] + vma["length"],
            )
            for vma in vmas.to_dicts()
        ]
        array = np.array([pair for pair in found if 0 < pair[0] < 1 << 47], np.int64).reshape(-1, 2)
        array[:, 0] = array[:, 0] // PAGE_SIZE * PAGE_SIZE
        array[:, 1] = -(-array[:, 1] // PAGE_SIZE) * PAGE_SIZE
        return array

    def _place(self, ranges: I64) -> tuple[int, int]:
        """Close the gaps: clusters of ranges, each at the same offset in its gigabyte."""
        order = np.argsort(ranges[:, 0], kind="stable")
        low = ranges[order, 0]
        reach = np.maximum.accumulate(ranges[order, 1])
        cut = np.flatnonzero(low[1:] > reach[:-1] + _GAP) + 1
        starts = low[np.r_[0, cut]]
        ends = reach[np.r_[cut - 1, len(reach) - 1]]
        at = ARENA
        moves = []
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            at = -(-at // _GAP) * _GAP + start % _GAP
            moves.append(at - start)
            at += end - start + _GAP
        self.starts, self.moves = starts, np.array(moves, np.int64)
        if at > 0x6000_0000_0000:
            raise UserError("the recorded mappings are too large to be placed", fix="see show")
        return ARENA, at

    def at(self, address: int) -> int:
        """Where a recorded address is here."""
        k = int(np.searchsorted(self.starts, address, side="right")) - 1
        if k < 0:
            raise RuntimeError(f"address {address:#x} lies in no recorded range")
        return address + int(self.moves[k])

    # -- files -----------------------------------------------------------------------------
    def _file(self, key: tuple[int, int], reach: int) -> int:
        if key not in self.files:
            self.files[key] = len(self.sizes)
            self.sizes.append(0)
        row = self.files[key]
        self.sizes[row] = max(self.sizes[row], -(-reach // PAGE_SIZE) * PAGE_SIZE)
        return row

    def _mappings(self, vmas: Any, mapped: set[int]) -> list[Mapping]:
        """Those that no recorded call has made (``mapped``: starts of those that have)."""
        found = []
        for vma in vmas.sort("ns", "start").to_dicts():
            start, length = vma["start"], vma["length"]
            if not 0 < start < 1 << 47 or vma["name"].startswith("[v"):
                continue
            file = -1
            if vma["inode"]:
                key = (vma["device"], vma["inode"])
                file = self._file(key, vma["file_offset"] + length)
            if vma["source"] == "mmap2" and vma["ns"] > 0:
                self.backed.setdefault(start, []).append((vma["ns"], file))
                if start in mapped:
                    continue
            if vma["name"] == "[stack]":  # it grows: what is below it belongs to it
                start, length = start - _STACK_GROWTH, length + _STACK_GROWTH
            found.append(
                Mapping(
                    self.at(start),
                    length,
                    vma["prot"] & 7,
                    bool(vma["flags"] & _SHARED),
                    file,
                    vma["file_offset"] if file >= 0 else 0,
                )
            )
        return found

    # -- rows --------------------------------------------------------------------------------
    def _row(self, op: dict[str, Any], index: dict[int, int]) -> _Made | None:
        """What an operation becomes; None where it is left out.

        ``index``: threads by tid where the operation is what starts its child, else empty.
        """
        kind = OpKind(op["kind"])
        if op["errno"]:
            return self._leave("that failed")
        address, length = op["address"] or 0, op["length"] or 0
        if address >= 1 << 47 or (not address and kind in _RANGED):
            return self._leave("without an address of the process")
        size = -(-length // PAGE_SIZE) * PAGE_SIZE
        if kind in (OpKind.FAULT_USER, OpKind.FAULT_KERNEL):
            write = bool((op["fault_bits"] or 0) & FaultBits.WRITE)
            where = self.at(address)
            page = where // PAGE_SIZE * PAGE_SIZE
            if kind == OpKind.FAULT_USER:
                made = _new(Do.WRITE if write else Do.READ, a=page)
            elif write:
                made = _new(Do.CALL, "read", page, 1, file=-2)
            else:
                made = _new(Do.CALL, "pwrite", page, 1, file=-3)
            return made, page, page + PAGE_SIZE, 0
        if kind == OpKind.MMAP:
            return self._mmap(op)
        if kind == OpKind.BRK:
            return self._brk(op)
        if kind == OpKind.MREMAP:
            return self._mremap(op)
        if kind == OpKind.CLONE and index:
            return _new(Do.SPAWN, a=index[op["child"]]), 0, 0, 0
        if kind == OpKind.FORK:
            return _new(Do.FORK), 0, 0, 0
        if kind in _BY_ITSELF:
            return None
        name = _RANGED.get(kind)
        if name is None:
            return self._leave(f"{kind.name}: not performed")
        where = self.at(address)
        third = {
            "mprotect": (op["prot"] or 0) & 7,
            "madvise": op["flags"] or 0,
            "msync": _MSYNC_ASYNC,
        }.get(name, 0)
        shape = int(name in ("munmap", "mprotect"))
        return _new(Do.CALL, name, where, size, third), where, where + size, shape

    def _leave(self, why: str) -> _Made | None:
        self.left_out[why] += 1
        return None

    def _mmap(self, op: dict[str, Any]) -> _Made | None:
        result, size = op["result"] or 0, -(-(op["length"] or 0) // PAGE_SIZE) * PAGE_SIZE
        if result <= 0 or not size:
            return self._leave("MMAP of unknown address")
        where, flags = self.at(result), (op["flags"] or 0) & _KEPT_FLAGS
        fd = op["fd"] if op["fd"] is not None else -1
        file = -1
        if not flags & _ANONYMOUS and fd >= 0:
            file = self._backing(result, op["begin_ns"])
            if file < 0:
                file = self._file((-1, fd), (op["file_offset"] or 0) + size)
        else:
            flags |= _ANONYMOUS
        flags |= _FIXED | (0 if flags & 3 else 2)
        offset = op["file_offset"] or 0 if file >= 0 else 0
        prot = (op["prot"] or 0) & 7
        made = _new(Do.CALL, "mmap", where, size, prot, flags, offset, file=file)
        return made, where, where + size, 1

    def _backing(self, start: int, begin_ns: int) -> int:
        """The file that a recorder saw mapped there next; -1 unknown."""
        return next((file for ns, file in self.backed.get(start, []) if ns >= begin_ns), -1)

    def _brk(self, op: dict[str, Any]) -> _Made | None:
        """The break as a mapping: growing maps, shrinking unmaps, both at a fixed address."""
        new, old = op["address2"] or 0, self.heap_end
        if new and not old:  # the first that is seen: no shrinking without a growing before
            old = new - (op["length"] or 0)
        self.heap_end = op["result"] or new
        grows = new > old
        low, high = (-(-edge // PAGE_SIZE) * PAGE_SIZE for edge in (min(new, old), max(new, old)))
        if not new or low >= high:  # it asks, and takes the lock all the same
            return _new(Do.CALL, "brk"), 0, 0, 0
        where = self.at(low)
        if grows:
            flags = 2 | _ANONYMOUS | _FIXED
            made = _new(Do.CALL, "mmap", where, high - low, 3, flags, 0, file=-1)
        else:
            made = _new(Do.CALL, "munmap", where, high - low)
        return made, where, where + high - low, 1

    def _mremap(self, op: dict[str, Any]) -> _Made | None:
        result = op["result"] or 0
        if result <= 0 or not op["length2"]:
            return self._leave("MREMAP of unknown result")
        old, new = self.at(op["address"]), self.at(result)
        sizes = [-(-op[c] // PAGE_SIZE) * PAGE_SIZE for c in ("length2", "length")]
        flags = 0 if old == new else _MAYMOVE_FIXED
        made = _new(Do.CALL, "mremap", old, sizes[0], sizes[1], flags, new)
        return made, min(old, new), max(old + sizes[0], new + sizes[1]), 1


_RANGED: Final = {
    OpKind.MUNMAP: "munmap",
    OpKind.MPROTECT: "mprotect",
    OpKind.MADVISE: "madvise",
    OpKind.MLOCK: "mlock",
    OpKind.MUNLOCK: "munlock",
    OpKind.MSYNC: "msync",
}
#: What threads and the process do here too, without a row.
_BY_ITSELF: Final = frozenset(
    {OpKind.THREAD_START, OpKind.THREAD_EXIT, OpKind.PROCESS_EXIT, OpKind.SNAPSHOT_VMA}
)
_USED: Final = (
    *("begin_ns", "tid", "kind", "address", "length", "address2", "length2", "prot", "flags"),
    *("file_offset", "fd", "result", "errno", "fault_bits", "child"),
    *("think_cpu_ns", "think_blocked_ns"),
)


def _new(
    do: Do,
    name: str = "",
    a: int = 0,
    b: int = 0,
    c: int = 0,
    d: int = 0,
    e: int = 0,
    *,
    file: int = 0,
) -> list[int]:
    """A row.  ``file`` goes where each call has its file descriptor, see the loop."""
    row = [0] * WORDS
    row[Word.DO], row[Word.NUMBER] = do, _NR.get(name, 0)
    row[Word.A], row[Word.B], row[Word.C], row[Word.D], row[Word.E] = a, b, c, d, e
    row[Word.F] = file
    return row


def _check_inside(rows: I64, span: tuple[int, int]) -> None:
    """Whatever the trace says, nothing outside the arena is reached."""
    reaches = np.isin(rows[:, Word.DO], (Do.WRITE, Do.READ, Do.CALL))
    reaches &= (rows[:, Word.DO] != Do.CALL) | (rows[:, Word.NUMBER] != _NR["brk"])
    rows = rows[reaches]
    ends = [rows[:, Word.A] + np.where(rows[:, Word.DO] == Do.CALL, rows[:, Word.B], 1)]
    starts = [rows[:, Word.A]]
    moved = rows[(rows[:, Word.DO] == Do.CALL) & (rows[:, Word.NUMBER] == _NR["mremap"])]
    there = np.where(moved[:, Word.D] != 0, moved[:, Word.E], moved[:, Word.A])
    starts.append(there)
    ends.append(there + moved[:, Word.C])
    low, high = np.concatenate(starts), np.concatenate(ends)
    if (rows[:, Word.B] < 0).any() or (low < span[0]).any() or (high > span[1]).any():
        raise RuntimeError("an operation reaches outside the arena")


def _by_thread(table: I64, owner: I64, edges: I64, threads: int) -> tuple[I64, I64]:
    """Rows of each thread together, with an AWAIT before each one that depends on another.

    ``edges`` is (m, 2): row → the row of another thread that it comes after.
    """
    own = np.zeros(len(table), np.int64)  # how many rows of its thread are done with it
    for t in range(threads):
        mine = owner == t
        own[mine] = np.arange(1, int(mine.sum()) + 1)
    waits = np.zeros((len(edges), WORDS), np.int64)
    waits[:, Word.DO] = Do.AWAIT
    waits[:, Word.A], waits[:, Word.B] = owner[edges[:, 1]], own[edges[:, 1]]
    both = np.concatenate([waits, table])
    position = np.concatenate([edges[:, 0] * 2, np.arange(len(table)) * 2 + 1])
    who = np.concatenate([owner[edges[:, 0]], owner])
    order = np.lexsort((position, who))
    bounds = np.searchsorted(who[order], np.arange(threads + 1))
    found = np.zeros((threads, 3), np.int64)
    found[:, 0], found[:, 1] = bounds[:-1], bounds[1:]
    return both[order], found
