"""What a workload is learnt from: the operations of one address space of a trace."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.errors import UserError
from mmreplay.schema import OpKind
from mmreplay.workloads.objects import Pieces

if TYPE_CHECKING:
    import polars as pl

    from mmreplay.trace.store import Trace


I64 = NDArray[np.int64]

#: More rows of a trace are not read.
MOST_ROWS: Final = 4_000_000
_CHUNK: Final = 1 << 18
#: A thread with less than this share of the operations of its group's busiest one is another role.
_IDLE: Final = 0.1
#: This share of the recorded time is left out at either end: start-up and tear-down.
_EDGE: Final = 0.05
_FAULTS: Final = (OpKind.FAULT_USER, OpKind.FAULT_KERNEL)
_KINDS: Final = (
    *(OpKind.MMAP, OpKind.MUNMAP, OpKind.MPROTECT),
    *(OpKind.MADVISE, OpKind.BRK, OpKind.MREMAP),
)


@dataclass
class Rows:
    """Rows of the address space that is learnt, in order; ``role`` indexes ``roles``."""

    kind: I64
    thread: I64
    role: I64
    what: I64
    prot: I64
    flags: I64
    bits: I64
    think: I64
    blocked: I64
    pieces: I64
    role_of_thread: I64
    roles: list[str]
    role_threads: list[int]
    left_out: Counter[str]


def read_rows(trace: Trace, name: str) -> Rows:
    import polars as pl

    memory = [int(k) for k in (*_FAULTS, *_KINDS)]
    sizes = (
        trace.operations.filter(pl.col("kind").is_in(memory))
        .group_by("address_space", "tid")
        .len()
        .sort("address_space", "tid")
        .collect()
    )
    if sizes.height == 0:
        raise UserError(
            "the trace has no operations to learn from", where=name, fix="record page faults"
        )
    totals = sizes.group_by("address_space").agg(pl.col("len").sum()).sort("len", "address_space")
    space = int(totals["address_space"][-1])
    mine = sizes.filter(pl.col("address_space") == space)
    tids, roles, members = _roles(trace, mine)
    total, ours = (int(table["len"].to_numpy().sum()) for table in (sizes, mine))
    left = Counter({"of other processes": total - ours})
    pieces = Pieces(_known(trace, space))
    on_tmpfs = _tmpfs_starts(trace)
    parts: list[dict[str, Any]] = []
    done = 0
    low, high = (round(edge * trace.header.span_ns) for edge in (_EDGE, 1 - _EDGE))
    columns = [
        "begin_ns",
        "tid",
        "address_space",
        "kind",
        "address",
        "length",
        "length2",
        "result",
        "prot",
    ]
    columns += ["flags", "fd", "errno", "fault_bits", "think_cpu_ns", "think_blocked_ns"]
    for batch in trace.batches("operations", columns, _CHUNK):
        if done >= MOST_ROWS:
            left[f"after the first {MOST_ROWS:,}"] += batch.height
            continue
        done += batch.height
        number = {name: _whole(batch, name) for name in columns}
        place = np.searchsorted(tids, number["tid"]).clip(0, len(tids) - 1)
        known = (tids[place] == number["tid"]) & (number["address_space"] == space)
        worked = (number["errno"] == 0) & np.isin(number["kind"], memory)
        number["thread"] = np.where(known & worked, place, -1)
        mapped_file = (number["fd"] >= 0) & ((number["flags"] & 0x20) == 0)
        disk = ~np.isin(number["result"], on_tmpfs)
        number["file"] = np.where(mapped_file, 1 + disk, 0)
        what = pieces.add(number)
        keep = (number["thread"] >= 0) & (number["begin_ns"] >= low) & (number["begin_ns"] <= high)
        part = {key: number[key][keep] for key in ("kind", "thread", "prot", "flags")}
        part |= {"what": what[keep], "bits": number["fault_bits"][keep]}
        # time before a row that is not kept belongs to the thread's next row
        part |= _times(number, keep)
        parts.append(part)
    if any(len(part["kind"]) for part in parts) and all(part["unknown"] for part in parts):
        raise UserError(
            "the trace has no think times to learn", where=name, fix="record context switches"
        )
    if not any(len(part["kind"]) for part in parts):
        raise UserError("too few operations to learn from", where=name, fix="record for longer")
    whole = {key: np.concatenate([p[key] for p in parts]) for key in parts[0] if key != "unknown"}
    return Rows(
        kind=whole["kind"],
        thread=whole["thread"],
        role=roles[whole["thread"]],
        what=whole["what"],
        prot=whole["prot"],
        flags=whole["flags"],
        bits=whole["bits"],
        think=whole["think"],
        blocked=whole["blocked"],
        pieces=pieces.table(),
        role_of_thread=roles,
        roles=[name for name, _ in members],
        role_threads=[count for _, count in members],
        left_out=left,
    )


def _whole(batch: pl.DataFrame, name: str) -> I64:
    import polars as pl

    column = batch[name]
    if name in ("think_cpu_ns", "think_blocked_ns"):
        return column.fill_null(-1).cast(pl.Int64).to_numpy()
    missing = -1 if name == "fd" else 0
    filled = column.fill_null(missing)
    values: I64 = filled.to_numpy()
    return values.view(np.int64) if values.dtype == np.uint64 else values.astype(np.int64)


def _times(number: dict[str, Any], keep: NDArray[np.bool_]) -> dict[str, Any]:
    think, blocked = number["think_cpu_ns"], number["think_blocked_ns"]
    unknown = bool((think[keep] < 0).all())
    return {
        "think": think[keep].clip(0),
        "blocked": blocked[keep].clip(0),
        "unknown": unknown,
    }


def _roles(trace: Trace, mine: pl.DataFrame) -> tuple[I64, I64, list[tuple[str, int]]]:
    """Tids (ascending), the role of each, and name and size of each role."""
    groups = dict(trace.threads.select("tid", "group").collect().iter_rows())
    tids = mine["tid"].to_numpy().astype(np.int64)
    ops = mine["len"].to_numpy().astype(np.int64)
    busiest: dict[str, int] = {}
    for tid, count in zip(tids.tolist(), ops.tolist(), strict=True):
        group = str(groups.get(tid, "threads"))
        busiest[group] = max(busiest.get(group, 0), count)
    taken: dict[tuple[str, bool], int] = {}
    names: list[str] = []
    role = np.empty(len(tids), np.int64)
    for k, (tid, count) in enumerate(zip(tids.tolist(), ops.tolist(), strict=True)):
        group = str(groups.get(tid, "threads"))
        key = (group, count < _IDLE * busiest[group])
        if key not in taken:
            taken[key] = len(names)
            names.append(_word(group + ("-idle" if key[1] else ""), names))
        role[k] = taken[key]
    lives = _lives(trace)
    sizes = []
    for number in range(len(names)):
        members = [life for tid in tids[role == number].tolist() for life in lives.get(tid, [])]
        sizes.append(max(1, _most_at_once(members)))
    return tids, role, list(zip(names, sizes, strict=True))


def _lives(trace: Trace) -> dict[int, list[tuple[int, int]]]:
    """For each tid when it was there, in ns: from, to."""
    import polars as pl

    end = max(trace.header.span_ns, 1)
    rows = trace.threads.select(
        "tid", pl.col("start_ns").fill_null(0), pl.col("end_ns").fill_null(end)
    ).collect()
    lives: dict[int, list[tuple[int, int]]] = {}
    for tid, first, last in rows.iter_rows():
        lives.setdefault(int(tid), []).append((int(first), int(last)))
    return lives


def _most_at_once(lives: list[tuple[int, int]]) -> int:
    """How many threads there were at most at a time: a role has as many."""
    changes = sorted([(first, 1) for first, _ in lives] + [(last, -1) for _, last in lives])
    return int(np.cumsum([change for _, change in changes]).max()) if changes else 0


def _word(text: str, taken: list[str]) -> str:
    """A name that the format allows and that is not taken."""
    word = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-")[:30]
    word = word if word[:1].isalpha() else f"role-{word}".rstrip("-")
    while word in taken:
        word += "x"
    return word


def _known(trace: Trace, space: int) -> I64:
    """Start, size, prot, flags and file of what is mapped at the start."""
    import polars as pl

    rows = (
        trace.vmas.filter((pl.col("address_space") == space) & (pl.col("source") != "mmap2"))
        .filter(pl.col("start") < 1 << 47)
        .select("start", "length", "prot", "flags", "inode", "name")
        .unique("start", keep="last")
        .collect()
    )
    out = [
        (
            row["start"],
            row["length"],
            row["prot"],
            row["flags"],
            0
            if not row["inode"] and not row["name"].startswith("/")
            else 1 + (not _tmpfs(row["name"])),
        )
        for row in rows.iter_rows(named=True)
    ]
    return np.array(out, np.int64).reshape(len(out), 5)


def _tmpfs(name: str) -> bool:
    return name.startswith(("/memfd:", "/dev/shm/", "/dev/zero", "/SYSV", "/run/shm/"))


def _tmpfs_starts(trace: Trace) -> I64:
    import polars as pl

    rows = trace.vmas.filter(pl.col("name").str.starts_with("/")).select("start", "name").collect()
    starts = [start for start, name in rows.iter_rows() if _tmpfs(name)]
    return np.unique(np.array(starts, np.int64))
