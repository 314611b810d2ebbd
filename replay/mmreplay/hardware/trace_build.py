"""From a trace to a :class:`~mmreplay.hardware.trace_program.TraceProgram`.

Faults and calls on ranges are translated by column; what maps, moves or starts something
one by one.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.errors import UserError
from mmreplay.hardware.trace_edges import find_edges
from mmreplay.hardware.trace_program import (
    ARENA,
    NUMBERS,
    WORDS,
    Do,
    Load,
    Mapping,
    TraceProgram,
    Word,
)
from mmreplay.schema import PAGE_SIZE, FaultBits, OpKind
from mmreplay.trace.store import Trace
from mmreplay.workloads.program import MADV_POPULATE_READ, MADV_POPULATE_WRITE

I64 = NDArray[np.int64]

#: Gaps of the recorded address space are closed to this; page-table pages keep their shape.
_GAP: Final = 1 << 30
_ARENA_END: Final = 0x6000_0000_0000
_USER_END: Final = 1 << 47
_SHARED, _FIXED, _ANONYMOUS, _POPULATE = 0x1, 0x10, 0x20, 0x8000
#: MAP_* flags that are kept: SHARED, PRIVATE, ANONYMOUS, NORESERVE, POPULATE, STACK.
_KEPT_FLAGS: Final = 0x1 | 0x2 | 0x20 | 0x4000 | _POPULATE | 0x20000
#: Advice that concerns nothing but the range: NORMAL to DONTNEED, FREE to COLLAPSE, guards.
_ADVICE: Final = (*range(5), *range(8, 26), 102, 103)
#: Advice that takes pages away: DONTNEED, FREE, REMOVE, DONTNEED_LOCKED.
_DROPPING: Final = (4, 8, 9, 24)
_MAYMOVE_FIXED: Final = 3
_MSYNC_ASYNC: Final = 1
#: A recorded stack may grow so far; and so much around the break.
_STACK_GROWTH, _BREAK_GROWTH = 8 << 20, 1 << 20
_MOST_ROWS: Final = 20_000_000

_FAULTS: Final = (OpKind.FAULT_USER, OpKind.FAULT_KERNEL)
_RANGED: Final = {
    OpKind.MUNMAP: "munmap",
    OpKind.MPROTECT: "mprotect",
    OpKind.MADVISE: "madvise",
    OpKind.MLOCK: "mlock",
    OpKind.MUNLOCK: "munlock",
    OpKind.MSYNC: "msync",
}
_SINGLE: Final = (OpKind.MMAP, OpKind.BRK, OpKind.MREMAP, OpKind.CLONE, OpKind.FORK)
#: What threads and the process do here too, without a row.
_BY_ITSELF: Final = (
    OpKind.THREAD_START,
    OpKind.THREAD_EXIT,
    OpKind.PROCESS_EXIT,
    OpKind.SNAPSHOT_VMA,
)
_USED: Final = (
    *("begin_ns", "tid", "kind", "address", "length", "address2", "length2", "prot", "flags"),
    *("file_offset", "fd", "result", "errno", "fault_bits", "child"),
    *("think_cpu_ns", "think_blocked_ns"),
)
#: A row, the range that it concerns, and 1 where it changes the map there.
_Made = tuple[list[int], int, int, int]


def build(trace: Trace, load: Load = "recorded", think_scale: float = 1.0) -> TraceProgram:
    """The busiest address space of ``trace`` as a program.

    Parameters
    ----------
    load:
        ``recorded`` sleeps where the threads were blocked; ``saturated`` does not.
    think_scale:
        CPU time between operations is multiplied by it, at least 0.

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
    own = pl.col("address_space") == space
    frame = trace.table("operations").filter(own).sort("begin_ns", "seq").select(_USED).collect()
    if frame.height > _MOST_ROWS:
        raise UserError(
            f"{frame.height:,} operations; at most {_MOST_ROWS:,} are performed",
            where=where,
            fix="cut the recording into shorter ones",
        )
    columns = {
        name: frame[name].cast(pl.Int64, strict=False).fill_null(-1 if name == "fd" else 0)
        for name in _USED
    }
    arrays = {name: column.to_numpy() for name, column in columns.items()}
    arrays["think_cpu_ns"] = np.rint(arrays["think_cpu_ns"] * think_scale).astype(np.int64)
    builder = _Builder(arrays, load)
    others = int(counted["len"].sum()) - frame.height
    if others:
        builder.left_out["of other address spaces"] += others
    vmas = trace.table("vmas").filter(own).sort("ns", "start").collect().to_dicts()
    return builder.run(vmas, Path(where).name.removesuffix(".mmt"))


def _pages(size: Any) -> Any:
    """Rounded up to whole pages."""
    return -(-size // PAGE_SIZE) * PAGE_SIZE


class _Builder:
    """Arrays are by operation of the trace; ``o`` are its columns, nulls are 0 (fd: -1)."""

    def __init__(self, columns: dict[str, I64], load: Load) -> None:
        self.o = columns
        self.load = load
        n = len(columns["kind"])
        self.rows = np.zeros((n, WORDS), np.int64)
        self.low, self.high, self.shape = (np.zeros(n, np.int64) for _ in range(3))
        self.kept = np.zeros(n, bool)
        self.left_out: Counter[str] = Counter()
        self.files: dict[tuple[int, int], int] = {}  # device and inode, or fd → row
        self.sizes: list[int] = []
        self.heap_end = 0
        self.backed: dict[int, list[tuple[int, int]]] = {}  # start → (ns, row of files)
        self.starts: I64 = np.zeros(0, np.int64)
        self.ends: I64 = np.zeros(0, np.int64)
        self.moves: I64 = np.zeros(0, np.int64)

    def run(self, vmas: list[dict[str, Any]], name: str) -> TraceProgram:
        """The program."""
        o, kind = self.o, self.o["kind"]
        self._leave("that failed", o["errno"] != 0)
        good = o["errno"] == 0
        placed = (o["address"] > 0) & (o["address"] < _USER_END)
        faults = good & np.isin(kind, _FAULTS)
        ranged = good & np.isin(kind, list(_RANGED))
        advice = kind == OpKind.MADVISE
        self._leave("without an address of the process", (faults | ranged) & ~placed)
        self._leave("madvise of another kind", ranged & advice & ~np.isin(o["flags"], _ADVICE))
        faults, ranged = faults & placed, ranged & placed
        ranged &= ~advice | np.isin(o["flags"], _ADVICE)
        known = (*_FAULTS, *_RANGED, *_SINGLE, *_BY_ITSELF)
        for other in np.unique(kind[good & ~np.isin(kind, known)]):
            self._leave(f"of the kind {OpKind(int(other)).name}", good & (kind == other))
        span = self._place(self._ranges(vmas, faults | ranged))
        mappings = self._mappings(vmas, set(o["result"][kind == OpKind.MMAP].tolist()))
        self._faults(faults)
        self._ranged(ranged)
        tids, owner = np.unique(o["tid"], return_inverse=True)
        children = self._single(np.flatnonzero(good & np.isin(kind, _SINGLE)), tids.tolist())
        kept = self.kept
        if not kept.any():
            raise UserError(
                "no operation that can be performed", where=name, fix="see mmreplay show"
            )
        self.rows[:, Word.THINK] = _carried(o["think_cpu_ns"], owner, kept)
        if self.load == "recorded":
            self.rows[:, Word.BLOCKED] = _carried(o["think_blocked_ns"], owner, kept)
        table, owner = self.rows[kept], owner[kept].astype(np.int64)
        table[:, Word.OPERATION] = 1
        check_inside(table, span)
        ranges = self.low[kept], self.high[kept], self.shape[kept]
        edges = find_edges(owner, *ranges, len(tids))
        ordered, threads, order = _by_thread(table, owner, edges, len(tids))
        threads[:, 2] = [tid not in children for tid in tids.tolist()]
        return TraceProgram(
            name=name,
            rows=ordered,
            order=order,
            threads=threads,
            tids=tids.tolist(),
            mappings=mappings,
            files=self.sizes,
            span=span,
            touched_bytes=_touched(table) + sum(self.sizes),
            recorded_span_ns=int(o["begin_ns"][-1] - o["begin_ns"][0]),
            left_out=dict(self.left_out),
        )

    def _leave(self, why: str, which: NDArray[np.bool_] | None = None) -> None:
        count = 1 if which is None else int(which.sum())
        if count:
            self.left_out[why] += count

    # -- addresses -------------------------------------------------------------------------
    def _ranges(self, vmas: list[dict[str, Any]], by_address: NDArray[np.bool_]) -> I64:
        """(n, 2) every range that is mapped, touched or given, page-aligned."""
        o, kind = self.o, self.o["kind"]

        def pairs(start: I64, length: Any, which: NDArray[np.bool_]) -> I64:
            starts = start[which]
            lengths = np.broadcast_to(length, start.shape)[which]
            return np.stack([starts, starts + lengths], axis=1)

        moves = (kind == OpKind.MREMAP) & (o["address"] > 0)
        found = [
            pairs(o["address"], np.maximum(o["length"], PAGE_SIZE), by_address),
            pairs(o["address"], o["length2"], moves),
            pairs(o["result"], o["length"], (kind == OpKind.MMAP) | moves),
            pairs(
                o["address2"] - _BREAK_GROWTH,
                2 * _BREAK_GROWTH,
                (kind == OpKind.BRK) & (o["address2"] > 0),
            ),
            pairs(
                o["address2"] - o["length"],
                o["length"],
                (kind == OpKind.BRK) & (o["address2"] > 0),
            ),
            np.array(
                [
                    (v["start"] - _grown(v), v["start"] + v["length"])
                    for v in vmas
                    if 0 < v["start"] < _USER_END
                ],
                np.int64,
            ).reshape(-1, 2),
        ]
        array = np.concatenate(found)
        array = array[(array[:, 0] > 0) & (array[:, 0] < _USER_END) & (array[:, 1] <= _USER_END)]
        array[:, 0] = array[:, 0] // PAGE_SIZE * PAGE_SIZE
        array[:, 1] = _pages(array[:, 1])
        return array

    def _place(self, ranges: I64) -> tuple[int, int]:
        """Close the gaps: clusters of ranges, each at the same offset in its gigabyte."""
        if not len(ranges):
            return ARENA, ARENA
        order = np.argsort(ranges[:, 0], kind="stable")
        low = ranges[order, 0]
        reach = np.maximum.accumulate(ranges[order, 1])
        cut = np.flatnonzero(low[1:] > reach[:-1] + _GAP) + 1
        self.starts = low[np.r_[0, cut]]
        self.ends = reach[np.r_[cut - 1, len(reach) - 1]]
        at = ARENA
        moves = []
        for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True):
            at = _pages(-(-at // _GAP) * _GAP + start % _GAP)
            moves.append(at - start)
            at += end - start + _GAP
        self.moves = np.array(moves, np.int64)
        if at > _ARENA_END:
            raise UserError(
                "the recorded mappings are too large to be placed", fix="record another process"
            )
        return ARENA, at

    def _at(self, addresses: Any) -> Any:
        """Where recorded addresses are here: one, or an array."""
        k = np.searchsorted(self.starts, addresses, side="right") - 1
        inside = (k >= 0) & (addresses <= self.ends[np.maximum(k, 0)])
        if not np.all(inside):
            raise RuntimeError("a recorded address lies in no recorded range")
        return addresses + self.moves[k]

    # -- what was there --------------------------------------------------------------------
    def _file(self, key: tuple[int, int], reach: int) -> int:
        if key not in self.files:
            self.files[key] = len(self.sizes)
            self.sizes.append(0)
        row = self.files[key]
        self.sizes[row] = max(self.sizes[row], _pages(reach))
        return row

    def _mappings(self, vmas: list[dict[str, Any]], mapped: set[int]) -> list[Mapping]:
        """Those that no recorded call has made (``mapped``: starts of those that have)."""
        found = []
        for vma in vmas:
            start, length = vma["start"], vma["length"]
            if not 0 < start < _USER_END or vma["name"].startswith("[v"):
                continue
            file = -1
            if vma["inode"]:
                key = (vma["device"], vma["inode"])
                file = self._file(key, vma["file_offset"] + length)
            if vma["source"] == "mmap2" and vma["ns"] > 0:
                self.backed.setdefault(start, []).append((vma["ns"], file))
                if start in mapped:
                    continue
            offset = vma["file_offset"] if file >= 0 else 0
            shared = bool(vma["flags"] & _SHARED)
            where, size = int(self._at(start - _grown(vma))), _pages(length + _grown(vma))
            found.append(Mapping(where, size, vma["prot"] & 7, shared, file, offset))
        return found

    # -- operations --------------------------------------------------------------------------
    def _take(self, which: NDArray[np.bool_], low: I64, high: I64, shape: Any) -> None:
        self.kept[which] = True
        self.low[which], self.high[which], self.shape[which] = low, high, shape

    def _faults(self, which: NDArray[np.bool_]) -> None:
        rows, o = self.rows, self.o
        page = self._at(o["address"][which]) // PAGE_SIZE * PAGE_SIZE
        self._take(which, page, page + PAGE_SIZE, 0)
        rows[which, Word.A] = page
        rows[which, Word.C] = o["fault_bits"][which]  # no argument: what a simulation is told
        write = (o["fault_bits"] & int(FaultBits.WRITE)) != 0
        user = o["kind"] == OpKind.FAULT_USER
        rows[which & user & write, Word.DO] = Do.WRITE
        rows[which & user & ~write, Word.DO] = Do.READ
        for name, file, chosen in (("read", -2, write), ("pwrite", -3, ~write)):
            these = which & ~user & chosen
            rows[these, Word.DO], rows[these, Word.NUMBER] = Do.CALL, NUMBERS[name]
            rows[these, Word.B], rows[these, Word.F] = 1, file

    def _ranged(self, which: NDArray[np.bool_]) -> None:
        rows, o = self.rows, self.o
        where, size = self._at(o["address"][which]), _pages(o["length"][which])
        # what is thrown away is faulted in anew: a fault after that comes after it here too
        dropped = (o["kind"] == OpKind.MADVISE) & np.isin(o["flags"], _DROPPING)
        shape = (np.isin(o["kind"], (OpKind.MUNMAP, OpKind.MPROTECT)) | dropped)[which]
        self._take(which, where // PAGE_SIZE * PAGE_SIZE, _pages(where + size), shape)
        rows[which, Word.DO], rows[which, Word.A], rows[which, Word.B] = Do.CALL, where, size
        for kind, name in _RANGED.items():
            these = which & (o["kind"] == kind)
            rows[these, Word.NUMBER] = NUMBERS[name]
            if kind == OpKind.MPROTECT:
                rows[these, Word.C] = o["prot"][these] & 7
            elif kind == OpKind.MADVISE:
                rows[these, Word.C] = o["flags"][these]
            elif kind == OpKind.MSYNC:
                rows[these, Word.C] = _MSYNC_ASYNC

    def _single(self, which: NDArray[np.int64], tids: list[int]) -> set[int]:
        """The rest, one by one; returns the threads that are started."""
        index = {tid: k for k, tid in enumerate(tids)}
        started: set[int] = set()
        names = (
            *("begin_ns", "kind", "address", "length", "address2", "length2", "prot", "flags"),
            *("file_offset", "fd", "result", "child"),
        )
        for k in which.tolist():
            op = {name: int(self.o[name][k]) for name in names}
            kind, made = op["kind"], None
            if kind == OpKind.MMAP:
                made = self._mmap(op)
            elif kind == OpKind.BRK:
                made = self._brk(op)
            elif kind == OpKind.MREMAP:
                made = self._mremap(op)
            elif kind == OpKind.FORK:
                made = _new(Do.FORK), 0, 0, 0
            elif op["child"] in index and op["child"] not in started:
                started.add(op["child"])
                made = _new(Do.SPAWN, a=index[op["child"]]), 0, 0, 0
            else:
                self._leave("that start threads which did nothing")
            if made is not None:
                self.kept[k] = True
                self.rows[k], self.low[k], self.high[k], self.shape[k] = made
        return started

    def _mmap(self, op: dict[str, int]) -> _Made | None:
        result, size = op["result"], _pages(op["length"])
        if not 0 < result < _USER_END or not size:
            self._leave("that map at an unknown address")
            return None
        where, flags = int(self._at(result)), op["flags"] & _KEPT_FLAGS
        file = -1
        if not flags & _ANONYMOUS and op["fd"] >= 0:
            file = self._backing(result, op["begin_ns"], op["file_offset"] + size)
            if file < 0:
                file = self._file((-1, op["fd"]), op["file_offset"] + size)
        else:
            flags |= _ANONYMOUS
        flags |= _FIXED | (0 if flags & 3 else 2)
        offset = op["file_offset"] if file >= 0 else 0
        made = _new(Do.CALL, "mmap", where, size, op["prot"] & 7, flags, offset, file=file)
        return made, where, where + size, 1

    def _backing(self, start: int, begin_ns: int, reach: int) -> int:
        """The file that a recorder saw mapped there next; -1 unknown."""
        seen = self.backed.get(start, [])
        file = next((file for ns, file in seen if ns >= begin_ns), -1)
        if file >= 0:
            self.sizes[file] = max(self.sizes[file], _pages(reach))
        return file

    def _brk(self, op: dict[str, int]) -> _Made:
        """The break as a mapping: growing maps, shrinking unmaps, both at a fixed address."""
        new, old = op["address2"], self.heap_end
        if new and not old:  # the first that is seen: no shrinking without a growing before
            old = new - op["length"]
        self.heap_end = op["result"] or new
        low, high = _pages(min(new, old)), _pages(max(new, old))
        if not new or low >= high:  # it asks, and takes the lock all the same
            return _new(Do.CALL, "brk"), 0, 0, 0
        where = int(self._at(low))
        if new > old:
            made = _new(Do.CALL, "mmap", where, high - low, 3, 2 | _ANONYMOUS | _FIXED, file=-1)
        else:
            made = _new(Do.CALL, "munmap", where, high - low)
        return made, where, where + high - low, 1

    def _mremap(self, op: dict[str, int]) -> _Made | None:
        if not 0 < op["result"] < _USER_END or not op["length2"] or not op["address"]:
            self._leave("that move to an unknown address")
            return None
        old, new = int(self._at(op["address"])), int(self._at(op["result"]))
        before, after = _pages(op["length2"]), _pages(op["length"])
        flags = 0 if old == new else _MAYMOVE_FIXED
        made = _new(Do.CALL, "mremap", old, before, after, flags, new)
        return made, min(old, new), max(old + before, new + after), 1


def _grown(vma: dict[str, Any]) -> int:
    """Bytes below a mapping that belong to it: a stack grows."""
    return _STACK_GROWTH if vma["name"] == "[stack]" else 0


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
    """A row."""
    row = [0] * WORDS
    row[Word.DO], row[Word.NUMBER] = do, NUMBERS.get(name, 0)
    row[Word.A], row[Word.B], row[Word.C], row[Word.D], row[Word.E] = a, b, c, d, e
    row[Word.F] = file
    return row


def _carried(time_ns: I64, owner: I64, kept: NDArray[np.bool_]) -> I64:
    """Times before operations, those of operations that are left out added to the next one."""
    order = np.argsort(owner, kind="stable")
    times, who, stays = time_ns[order], owner[order], kept[order]
    total = np.cumsum(times)
    first = np.r_[True, who[1:] != who[:-1]]
    before_thread = np.maximum.accumulate(np.where(first, np.arange(len(who)), 0))
    base = (total - times)[before_thread]
    out = np.zeros_like(time_ns)
    at, mine = total[stays], who[stays]
    if len(at):
        previous = np.r_[0, at[:-1]]
        fresh = np.r_[True, mine[1:] != mine[:-1]]
        out[order[stays]] = at - np.where(fresh, base[stays], previous)
    return out


def _touched(rows: I64) -> int:
    """Bytes that the rows can make present: distinct pages, and ranges that are populated."""
    touches = np.isin(rows[:, Word.DO], (Do.WRITE, Do.READ))
    touches |= np.isin(rows[:, Word.F], (-2, -3))
    calls = rows[:, Word.DO] == Do.CALL
    populated = calls & (rows[:, Word.NUMBER] == NUMBERS["madvise"])
    populated &= np.isin(rows[:, Word.C], (MADV_POPULATE_READ, MADV_POPULATE_WRITE))
    at_once = calls & (rows[:, Word.NUMBER] == NUMBERS["mmap"])
    at_once &= (rows[:, Word.D] & _POPULATE) != 0
    locked = calls & (rows[:, Word.NUMBER] == NUMBERS["mlock"])
    pages = len(np.unique(rows[touches, Word.A] // PAGE_SIZE))
    return pages * PAGE_SIZE + int(rows[populated | at_once | locked, Word.B].sum())


def check_inside(rows: I64, span: tuple[int, int]) -> None:
    """Whatever the trace says, nothing outside the arena is reached."""
    calls = rows[:, Word.DO] == Do.CALL
    reaches = np.isin(rows[:, Word.DO], (Do.WRITE, Do.READ)) | (
        calls & (rows[:, Word.NUMBER] != NUMBERS["brk"])
    )
    length = np.where(calls, rows[:, Word.B], 1)[reaches]
    start = rows[reaches, Word.A]
    moved = rows[calls & (rows[:, Word.NUMBER] == NUMBERS["mremap"])]
    there = np.where(moved[:, Word.D] != 0, moved[:, Word.E], moved[:, Word.A])
    low = np.concatenate([start, there])
    high = np.concatenate([start + length, there + moved[:, Word.C]])
    if (length < 0).any() or (low < span[0]).any() or (high > span[1]).any():
        raise RuntimeError("an operation reaches outside the arena")


def _by_thread(table: I64, owner: I64, edges: I64, threads: int) -> tuple[I64, I64, I64]:
    """Rows of each thread together, with an AWAIT before each one that depends on another.

    Returns the rows, first and end of each thread, and the place of each row in ``table``
    (-1: an AWAIT).  ``edges`` is (m, 2): row → the row of another thread that it comes after.
    """
    order = np.argsort(owner, kind="stable")
    begins = np.searchsorted(owner[order], np.arange(threads))
    own = np.empty(len(table), np.int64)  # how many rows of its thread are done with it
    own[order] = np.arange(1, len(table) + 1) - begins[owner[order]]
    table[edges[:, 1], Word.AWAITED] = 1
    waits = np.zeros((len(edges), WORDS), np.int64)
    waits[:, Word.DO] = Do.AWAIT
    waits[:, Word.A], waits[:, Word.B] = owner[edges[:, 1]], own[edges[:, 1]]
    # a thread computes, and then waits: its time before the operation is before the first wait
    waiting, first = np.unique(edges[:, 0], return_index=True)
    for word in (Word.THINK, Word.BLOCKED):
        waits[first, word] = table[waiting, word]
        table[waiting, word] = 0
    both = np.concatenate([waits, table])
    position = np.concatenate([edges[:, 0] * 2, np.arange(len(table)) * 2 + 1])
    who = np.concatenate([owner[edges[:, 0]], owner])
    order = np.lexsort((position, who))
    bounds = np.searchsorted(who[order], np.arange(threads + 1))
    found = np.zeros((threads, 3), np.int64)
    found[:, 0], found[:, 1] = bounds[:-1], bounds[1:]
    return both[order], found, np.where(order < len(waits), -1, order - len(waits))
