"""The stream that the planner replays: operations and learnt mappings in order of effect.

Operations of a trace are sorted by their begin, but a mapping call shows its
effect at its *end*: while ``munmap`` of another thread is still on its way, an
``mmap`` that began earlier may be given the very range.  So calls that make
mappings are placed at their recorded end, all others at their begin; then what a
call is given is always free, and what it made is always there for its users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmreplay.schema import DurationKind, OpKind

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

#: Kinds of rows that are no operations.
LEARN: Final = 255  # a mapping from the trace's vmas table
THREAD_BEGIN: Final = 254
THREAD_END: Final = 253

#: ``hint`` of a row: what the name of a mapping says.
HINT_SHMEM: Final = 1
HINT_SPECIAL: Final = 2  # vdso, devices: no vm_ops->map_pages
HINT_STACK: Final = 4
HINT_HEAP: Final = 8
HINT_HUGETLB: Final = 16
HINT_OLD: Final = 32  # was there before the recording: its pages may be mapped
HINT_GATE: Final = 64  # [vsyscall]: a fixed page of the kernel, no VMA of the address space

#: Calls whose effect is placed at their recorded end.
_MAKERS: Final = (
    OpKind.MMAP,
    OpKind.MREMAP,
    OpKind.SHMAT,
    OpKind.BRK,
)

CHUNK_ROWS: Final = 1 << 18


#: One row of a chunk.  Null numbers are 0 (``bits``: 255).
ROW: Final = np.dtype(
    [
        ("begin_ns", np.int64),
        ("address", np.int64),
        ("length", np.int64),
        ("address2", np.int64),
        ("length2", np.int64),
        ("advice", np.int64),  # flags: MAP_*, MADV_*, ...
        ("file_offset", np.int64),
        ("result", np.int64),
        ("row", np.int64),  # row in the operations table; -1 for events
        ("thread", np.int32),  # dense thread, -1 for LEARN
        ("clone", np.int32),  # 0 for a recorded row, k for the k-th clone of its thread
        ("space", np.int32),
        ("file", np.int32),  # file number, -1 anonymous or unknown
        ("child", np.int32),  # dense thread of the child, -1
        ("child_space", np.int32),  # its address space, -1
        ("errno", np.int16),
        ("kind", np.uint8),
        ("prot", np.uint8),
        ("hint", np.uint8),
        ("anon", np.int8),  # LEARN: has an anon_vma 1, 0, unknown -1
        ("bits", np.uint8),
        ("fault_class", np.uint8),
        ("has_address", np.uint8),
    ],
    align=True,
)
Rows = NDArray[np.void]


@dataclass(frozen=True)
class Threads:
    """Threads of the plan, clones behind the recorded ones."""

    tid: I64
    pid: I64
    space: I32
    group: I32
    group_names: tuple[str, ...]
    comm: tuple[str, ...]
    start_ns: I64  # -1: there before the recording
    end_ns: I64  # -1: outlived it
    tail_cpu_ns: I64
    tail_blocked_ns: I64
    clone_of: I32  # recorded thread that this one copies, -1
    copies: I32  # per recorded thread: 0 left out, 1 as recorded, k with k-1 clones
    first_clone: I32  # per recorded thread: index of its first clone

    @property
    def n(self) -> int:
        return len(self.tid)

    @property
    def n_recorded(self) -> int:
        return len(self.copies)


def read_threads(trace: Any) -> Threads:
    """The threads of a trace in the order of its table; tids only in operations are added."""
    table = trace.threads.collect()
    known = table["tid"].to_numpy().astype(np.int64)
    seen = (
        trace.operations.group_by("tid")
        .agg(pl.col("pid").first(), pl.col("address_space").first())
        .sort("tid")
        .collect()
    )
    extra = seen.filter(~pl.col("tid").is_in(table["tid"].implode()))
    groups = [*table["group"].to_list(), *(["unknown"] * extra.height)]
    names = tuple(sorted(set(groups)))
    dense = {name: i for i, name in enumerate(names)}

    def both(column: str, default: int) -> I64:
        ours = table[column].fill_null(default).to_numpy().astype(np.int64)
        return np.concatenate([ours, np.full(extra.height, default, np.int64)])

    n = len(groups)
    return Threads(
        tid=np.concatenate([known, extra["tid"].to_numpy().astype(np.int64)]),
        pid=np.concatenate([table["pid"].to_numpy(), extra["pid"].to_numpy()]).astype(np.int64),
        space=np.concatenate(
            [table["address_space"].to_numpy(), extra["address_space"].to_numpy()]
        ).astype(np.int32),
        group=np.array([dense[name] for name in groups], np.int32),
        group_names=names,
        comm=(*table["comm"].to_list(), *([""] * extra.height)),
        start_ns=both("start_ns", -1),
        end_ns=both("end_ns", -1),
        tail_cpu_ns=both("tail_cpu_ns", 0),
        tail_blocked_ns=both("tail_blocked_ns", 0),
        clone_of=np.full(n, -1, np.int32),
        copies=np.ones(n, np.int32),
        first_clone=np.full(n, -1, np.int32),
    )


class Files:
    """Dense numbers for files: by (device, inode), else by (address space, descriptor)."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, ...], int] = {}
        self.guessed = 0

    def number(self, key: tuple[int, ...]) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def __len__(self) -> int:
        return len(self._numbers)


def name_hint(name: str) -> int:
    """What the name of a mapping says about the faults in it."""
    if name == "[heap]":
        return HINT_HEAP
    if name == "[vsyscall]":
        return HINT_GATE
    if name.startswith("[stack"):
        return HINT_STACK
    if name.startswith(("/anon_hugepage", "/dev/hugepages", "/hugetlb")):
        return HINT_HUGETLB
    if name.startswith(("/dev/zero", "/dev/shm/", "/memfd:", "/SYSV", "/run/shm/")):
        return HINT_SHMEM
    if name.startswith(("/dev/", "[vvar", "[vdso", "[uprobes", "anon_inode:")):
        return HINT_SPECIAL
    return 0


def read_mappings(trace: Any, files: Files) -> dict[str, NDArray[Any]]:
    """The vmas table as arrays sorted by time (stable)."""
    table = trace.vmas.collect().sort("ns", maintain_order=True)
    n = table.height
    names = table["name"].to_list()
    inode = table["inode"].to_list()
    device = table["device"].to_list()
    number = np.full(n, -1, np.int32)
    for i in range(n):
        if inode[i] or device[i]:
            number[i] = files.number((device[i], inode[i]))
        elif names[i].startswith("/") and names[i] != "//anon":
            number[i] = files.number((hash(names[i]),))
    anon = table["has_anon_vma"].cast(pl.Int8).fill_null(-1).to_numpy().astype(np.int8)
    source = table["source"].to_list()
    hint = np.array([name_hint(name) for name in names], np.uint8)
    ns = table["ns"].to_numpy().astype(np.int64)
    old = np.array([s != "exec" for s in source], np.bool_) & (ns <= 0)
    hint[old] |= HINT_OLD
    return {
        "ns": ns,
        "space": table["address_space"].to_numpy().astype(np.int32),
        "start": table["start"].to_numpy().view(np.int64),
        "length": table["length"].to_numpy().view(np.int64),
        "prot": table["prot"].to_numpy().astype(np.uint8),
        "flags": table["flags"].to_numpy().astype(np.int64),
        "offset": table["file_offset"].to_numpy().astype(np.int64),
        "file": number,
        "hint": hint,
        "anon": anon,
        "record": np.array([s == "mmap2" for s in source], np.bool_) & (ns > 0),
    }


def _numpy(frame: pl.DataFrame, name: str, dtype: Any, null: int = 0) -> NDArray[Any]:
    column = frame[name]
    if column.dtype == pl.UInt64:
        filled: NDArray[Any] = column.fill_null(0).to_numpy().view(np.int64)
        return filled.astype(dtype, copy=False)
    return column.fill_null(null).to_numpy().astype(dtype, copy=False)


class Stream:
    """Chunks of :class:`Rows` of a trace, in order of effect; memory bounded by ``chunk``."""

    def __init__(self, trace: Any, threads: Threads, *, chunk: int = CHUNK_ROWS) -> None:
        self.trace = trace
        self.threads = threads
        self.chunk = chunk
        self.files = Files()
        self.mappings = read_mappings(trace, self.files)
        self.counters: dict[str, int] = {"file_guessed": 0, "mapping_record_matched": 0}
        recorded = threads.tid[: threads.n_recorded]
        self._order = np.argsort(recorded, kind="stable")
        self._sorted = recorded[self._order]
        self._used = np.zeros(len(self.mappings["ns"]), np.bool_)

    def thread_of(self, tids: NDArray[Any]) -> I32:
        """Dense thread of each tid, -1 where unknown."""
        if len(self._sorted) == 0:
            return np.full(len(tids), -1, np.int32)
        at = np.searchsorted(self._sorted, tids).clip(0, len(self._sorted) - 1)
        return np.where(self._sorted[at] == tids, self._order[at], -1).astype(np.int32)

    def __iter__(self) -> Iterator[Rows]:
        carry: dict[str, NDArray[Any]] | None = None
        offset = 0
        events = self._thread_events()
        mapping_next = 0
        columns = [
            "begin_ns", "duration_ns", "duration_kind", "tid", "address_space", "kind",
            "address", "length", "address2", "length2", "prot", "flags", "file_offset", "fd",
            "result", "errno", "fault_bits", "fault_class", "child",
        ]  # fmt: skip
        lazy = self.trace.operations.select(columns)
        while True:
            frame = lazy.slice(offset, self.chunk).collect()
            last = frame.height < self.chunk
            part = self._convert(frame, offset)
            offset += frame.height
            if carry is not None:
                part = {k: np.concatenate([carry[k], part[k]]) for k in part}
            boundary = (
                np.iinfo(np.int64).max if last else int(frame["begin_ns"][-1])
            )  # later chunks begin at or after it
            ready = part["key"] < boundary
            carry = {k: v[~ready] for k, v in part.items()}
            out = [{k: v[ready] for k, v in part.items()}]
            # mappings learnt before the boundary
            stop = int(np.searchsorted(self.mappings["ns"], boundary, side="left"))
            out.append(self._learn(mapping_next, stop))
            mapping_next = stop
            inside = events["key"] < boundary
            out.append({k: v[inside] for k, v in events.items()})
            events = {k: v[~inside] for k, v in events.items()}
            merged = {k: np.concatenate([o[k] for o in out]) for k in out[0]}
            order = np.lexsort((merged["row"], merged["rank"], merged["key"]))
            rows = np.empty(len(order), ROW).view(np.recarray)
            for name in ROW.names or ():
                rows[name] = merged[name][order]
            yield rows
            if last:
                return

    # -- parts of the stream ---------------------------------------------------------

    def _blank(self, n: int) -> dict[str, NDArray[Any]]:
        return {
            "key": np.zeros(n, np.int64),
            "rank": np.zeros(n, np.uint8),
            "kind": np.zeros(n, np.uint8),
            "thread": np.full(n, -1, np.int32),
            "clone": np.zeros(n, np.int32),
            "space": np.zeros(n, np.int32),
            "begin_ns": np.zeros(n, np.int64),
            "address": np.zeros(n, np.int64),
            "has_address": np.ones(n, np.bool_),
            "length": np.zeros(n, np.int64),
            "address2": np.zeros(n, np.int64),
            "length2": np.zeros(n, np.int64),
            "prot": np.zeros(n, np.uint8),
            "advice": np.zeros(n, np.int64),
            "file": np.full(n, -1, np.int32),
            "file_offset": np.zeros(n, np.int64),
            "hint": np.zeros(n, np.uint8),
            "anon": np.full(n, -1, np.int8),
            "result": np.zeros(n, np.int64),
            "errno": np.zeros(n, np.int16),
            "bits": np.full(n, 255, np.uint8),
            "fault_class": np.zeros(n, np.uint8),
            "child": np.full(n, -1, np.int32),
            "child_space": np.full(n, -1, np.int32),
            "row": np.full(n, -1, np.int64),
        }

    def _thread_events(self) -> dict[str, NDArray[Any]]:
        t = self.threads
        ends = np.flatnonzero(t.end_ns >= 0)
        part = self._blank(t.n + len(ends))
        part["thread"][: t.n] = np.arange(t.n)
        part["kind"][: t.n] = THREAD_BEGIN
        part["key"][: t.n] = np.where(t.start_ns < 0, np.iinfo(np.int64).min, t.start_ns)
        part["space"][: t.n] = t.space
        part["thread"][t.n :] = ends
        part["kind"][t.n :] = THREAD_END
        part["key"][t.n :] = t.end_ns[ends]
        part["space"][t.n :] = t.space[ends]
        # beginnings come before the operations of their moment, endings after
        part["rank"][t.n :] = 2
        left_out = np.zeros(t.n, np.bool_)
        left_out[: t.n_recorded] = t.copies == 0
        keep = ~left_out[part["thread"]]
        order = np.argsort(part["key"][keep], kind="stable")
        return {k: v[keep][order] for k, v in part.items()}

    def _learn(self, first: int, stop: int) -> dict[str, NDArray[Any]]:
        m = self.mappings
        index = np.arange(first, stop)
        index = index[~self._used[first:stop]]
        part = self._blank(len(index))
        part["kind"][:] = LEARN
        part["key"] = m["ns"][index]
        part["begin_ns"] = m["ns"][index]
        for ours, theirs in (
            ("space", "space"), ("address", "start"), ("length", "length"), ("prot", "prot"),
            ("advice", "flags"), ("file", "file"), ("file_offset", "offset"), ("hint", "hint"),
            ("anon", "anon"),
        ):  # fmt: skip
            part[ours] = m[theirs][index]
        return part

    def _convert(self, frame: pl.DataFrame, offset: int) -> dict[str, NDArray[Any]]:
        n = frame.height
        part = self._blank(n)
        begin = _numpy(frame, "begin_ns", np.int64)
        kind = _numpy(frame, "kind", np.uint8)
        duration = _numpy(frame, "duration_ns", np.int64)
        measured = _numpy(frame, "duration_kind", np.uint8) == DurationKind.MEASURED
        maker = np.isin(kind, np.array(_MAKERS, np.uint8))
        end = begin + np.where(measured, duration, 0)
        part["key"] = np.where(maker, end, begin)
        part["rank"][:] = 1
        part["begin_ns"] = begin
        part["kind"] = kind
        part["row"] = np.arange(offset, offset + n, dtype=np.int64)
        part["thread"] = self.thread_of(_numpy(frame, "tid", np.int64))
        part["space"] = _numpy(frame, "address_space", np.int32)
        part["address"] = _numpy(frame, "address", np.int64)
        part["has_address"] = frame["address"].is_not_null().to_numpy()
        for name, dtype in (
            ("length", np.int64), ("address2", np.int64), ("length2", np.int64),
            ("prot", np.uint8), ("file_offset", np.int64),
            ("result", np.int64), ("errno", np.int16), ("fault_class", np.uint8),
        ):  # fmt: skip
            part[name] = _numpy(frame, name, dtype)
        # a read(2) whose result is not known has found something
        reads = (kind == OpKind.PROC_READ) & frame["result"].is_null().to_numpy()
        part["result"] = np.where(reads, 1, part["result"])
        part["advice"] = _numpy(frame, "flags", np.int64)
        part["bits"] = _numpy(frame, "fault_bits", np.uint8, 255)
        child = _numpy(frame, "child", np.int64, -1)
        part["child"] = np.where(child >= 0, self.thread_of(child), -1).astype(np.int32)
        spaces = self.threads.space
        part["child_space"] = np.where(
            part["child"] >= 0, spaces[part["child"]] if len(spaces) else -1, -1
        ).astype(np.int32)
        self._files(part, frame, end)
        return self._copies(part)

    def _files(self, part: dict[str, NDArray[Any]], frame: pl.DataFrame, end: I64) -> None:
        """Give mmap rows their file: by the MMAP2 record inside the call, else by descriptor."""
        rows = np.flatnonzero((part["kind"] == OpKind.MMAP) & (part["errno"] == 0))
        if len(rows) == 0:
            return
        m = self.mappings
        records = np.flatnonzero(m["record"] & ~self._used)
        found = np.full(len(rows), -1, np.int64)
        if len(records):
            calls = pl.DataFrame(
                {
                    "space": part["space"][rows],
                    "start": part["address"][rows],
                    "ns": part["begin_ns"][rows],
                    "at": np.arange(len(rows)),
                }
            ).sort("ns")
            learnt = pl.DataFrame(
                {
                    "space": m["space"][records],
                    "start": m["start"][records],
                    "ns": m["ns"][records],
                    "record": records,
                    "record_ns": m["ns"][records],
                }
            ).sort("ns")
            joined = calls.join_asof(
                learnt, on="ns", by=["space", "start"], strategy="forward", check_sortedness=False
            )
            hit = joined.filter(
                pl.col("record").is_not_null()
                & (pl.col("record_ns") <= pl.Series(end[rows][joined["at"].to_numpy()]))
            )
            found[hit["at"].to_numpy()] = hit["record"].to_numpy()
        matched = found >= 0
        self._used[found[matched]] = True
        self.counters["mapping_record_matched"] += int(matched.sum())
        part["file"][rows[matched]] = m["file"][found[matched]]
        part["hint"][rows[matched]] = m["hint"][found[matched]]
        map_anonymous = 0x20
        descriptor = frame["fd"].fill_null(-1).to_numpy().astype(np.int64)[rows]
        by_fd = ~matched & ((part["advice"][rows] & map_anonymous) == 0) & (descriptor >= 0)
        for at in np.flatnonzero(by_fd):
            key = (-1, int(part["space"][rows[at]]), int(descriptor[at]))
            part["file"][rows[at]] = self.files.number(key)
        self.counters["file_guessed"] += int(by_fd.sum())

    def _copies(self, part: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Leave threads out and put the rows of clones right behind the recorded ones."""
        copies = self.threads.copies
        if len(copies) == 0 or (copies == 1).all():
            return part
        times = np.where(part["thread"] >= 0, copies[part["thread"]], 1)
        take = np.repeat(np.arange(len(times)), times)
        first = np.concatenate([[0], np.cumsum(times)[:-1]]) if len(times) else np.zeros(0, int)
        part = {k: v[take] for k, v in part.items()}
        part["clone"] = (np.arange(len(take)) - first[take]).astype(np.int32)
        clones = part["clone"] > 0
        part["thread"][clones] = (
            self.threads.first_clone[part["thread"][clones]] + part["clone"][clones] - 1
        )
        return part
