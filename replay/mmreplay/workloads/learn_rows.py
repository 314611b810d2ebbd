"""What a workload is learnt from: the operations of one address space of a trace."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.errors import UserError
from mmreplay.schema import OpKind
from mmreplay.trace.services import DEFAULT_SERVICE_NS, OTHER_SERVICE_NS
from mmreplay.workloads.learn_phases import phases
from mmreplay.workloads.learn_waits import waits
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
#: This share of the recorded time is left out at either end where there is one phase.
_EDGE: Final = 0.05
#: Threads that come and go live for a smaller share of the recorded time, and are so many.
_SHORT, _LEAST_LIVES = 0.25, 8
_MOSTLY: Final = 0.8
_FAULTS: Final = (OpKind.FAULT_USER, OpKind.FAULT_KERNEL)
_KINDS: Final = (
    *(OpKind.MMAP, OpKind.MUNMAP, OpKind.MPROTECT),
    *(OpKind.MADVISE, OpKind.BRK, OpKind.MREMAP),
)


@dataclass
class Rows:
    """Rows of the address space that is learnt, in order; ``role`` indexes ``roles``."""

    kind: I64  # 0: nothing to learn but the time before it
    thread: I64
    role: I64
    what: I64
    prot: I64
    flags: I64
    bits: I64
    think: I64
    blocked: I64
    waited: I64  # of it, until another thread of the trace woke this one
    waker: I64  # role of that, -1 none
    phase: I64
    pieces: I64
    role_of_thread: I64
    roles: list[str]
    role_threads: list[int]
    left_out: Counter[str]
    begin: I64
    child: I64
    spawned: dict[int, Spawned]
    away_ns: list[float]
    window_ns: int
    phases: int
    absent_ns: Any  # (roles, phases) how long threads that begin in a phase were not there, in all
    parents: list[int]  # role of most of the threads that started those of a role, -1 unknown


@dataclass(frozen=True)
class Spawned:
    """A role that comes and goes: who starts it (a role), and whether it waits for the end."""

    parent: int
    joined: bool


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
    lives = _lives(trace)
    spawned = _spawned(lives, tids, roles, trace.header.span_ns)
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
    columns += ["flags", "fd", "errno", "fault_bits", "think_cpu_ns", "think_blocked_ns", "child"]
    columns += ["duration_ns"]
    for batch in trace.batches("operations", columns, _CHUNK):
        if done >= MOST_ROWS:
            left[f"after the first {MOST_ROWS:,}"] += batch.height
            continue
        done += batch.height
        number = {name: _whole(batch, name) for name in columns}
        place = np.searchsorted(tids, number["tid"]).clip(0, len(tids) - 1)
        known = (tids[place] == number["tid"]) & (number["address_space"] == space)
        worked = number["errno"] == 0
        number["thread"] = np.where(known & worked & np.isin(number["kind"], memory), place, -1)
        mapped_file = (number["fd"] >= 0) & ((number["flags"] & 0x20) == 0)
        disk = ~np.isin(number["result"], on_tmpfs)
        number["file"] = np.where(mapped_file, 1 + disk, 0)
        what = pieces.add(number)
        keep = known
        number["kind"] = np.where(worked, number["kind"], 0)  # only its time counts
        part = {key: number[key][keep] for key in ("kind", "prot", "flags", "child")}
        part["thread"] = place[keep]
        part["begin"] = number["begin_ns"][keep]
        part["row"] = done - batch.height + np.flatnonzero(keep)
        part |= {"what": what[keep], "bits": number["fault_bits"][keep]}
        part |= _times(number, keep)
        parts.append(part)
    if any(len(part["kind"]) for part in parts) and all(part["unknown"] for part in parts):
        raise UserError(
            "the trace has no think times to learn", where=name, fix="record context switches"
        )
    if not any(np.isin(part["kind"], memory).any() for part in parts):
        raise UserError("too few operations to learn from", where=name, fix="record for longer")
    whole = {key: np.concatenate([p[key] for p in parts]) for key in parts[0] if key != "unknown"}
    whole["waited"], whole["waker"] = waits(trace, tids, roles, whole["thread"], whole["row"])
    whole["waited"] = np.minimum(whole["waited"], whole["blocked"])
    # who is waited for does as much in less time where operations take less
    pace = _pace(whole)
    saved = np.round(whole["waited"] * (1 - pace)).astype(np.int64)
    whole["waited"] -= saved
    whole["blocked"] -= saved
    edges = _phases(whole, roles, memory)
    if not ((edges > low) & (edges < high)).any():  # start-up and tear-down of one phase
        edges = edges[[0, -1]]
    whole["phase"] = np.searchsorted(edges[1:-1], whole["begin"], side="right")
    if len(edges) == 2:
        middle = (whole["begin"] >= low) & (whole["begin"] <= high)
        if not np.isin(whole["kind"][middle], memory).any():
            raise UserError("too few operations to learn from", where=name, fix="record for longer")
        whole = {key: values[middle] for key, values in whole.items()}
    spawned = {role: parent for role, parent in spawned.items() if _seen(whole, roles, role)}
    members_of = [
        [life for tid in tids[roles == k].tolist() for life in lives.get(tid, [])]
        for k in range(len(members))
    ]
    counts = [max(1, _most_at_once(lives_)) for lives_ in members_of]
    for role, parent in spawned.items():
        spawned[role] = replace(parent, joined=_joined(whole, tids, roles, role, lives))
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
        waited=whole["waited"],
        waker=whole["waker"],
        phase=whole["phase"],
        pieces=pieces.table(),
        role_of_thread=roles,
        roles=members,
        role_threads=counts,
        left_out=left,
        begin=whole["begin"],
        child=np.searchsorted(tids, whole["child"]).clip(0, len(tids) - 1),
        spawned=spawned,
        away_ns=_away(whole, roles, counts, high - low),
        window_ns=high - low,
        phases=len(edges) - 1,
        absent_ns=_absent(whole, roles, len(members), len(edges) - 1, int(edges[0])),
        parents=_parents(lives, tids, roles, len(members)),
    )


def _phases(whole: dict[str, I64], roles: I64, memory: list[int]) -> I64:
    """(phases + 1,) ns: where the program begins to do something else."""
    used = np.isin(whole["kind"], memory)
    begin, kind = whole["begin"][used], whole["kind"][used]
    span = int(whole["begin"].min()), int(whole["begin"].max()) + 1
    return phases(begin, roles[whole["thread"][used]] * 64 + kind, *span)


def _pace(whole: dict[str, I64]) -> float:
    """The time that threads are busy in a generated trace, by that in the recording, at most 1.

    A recorded operation takes what recording, contention and the machine made of it, a
    generated one :data:`~mmreplay.trace.services.DEFAULT_SERVICE_NS`.
    """
    known = whole["took"] >= 0
    think = int(whole["think"][known].sum())
    nominal = np.full(64, OTHER_SERVICE_NS, np.int64)
    for kind, ns in DEFAULT_SERVICE_NS.items():
        nominal[kind] = ns
    busy = think + int(nominal[whole["kind"][known]].sum())
    return min(1.0, busy / max(think + int(whole["took"][known].sum()), 1)) if known.any() else 1.0


def _absent(whole: dict[str, I64], roles: I64, n: int, phases: int, start_ns: int) -> Any:
    """(roles, phases) time before its first operation that a thread neither ran nor slept, ns."""
    found = np.zeros((n, phases))
    _, first = np.unique(whole["thread"], return_index=True)
    lead = whole["begin"] - whole["think"] - whole["blocked"] - start_ns
    where = roles[whole["thread"][first]], whole["phase"][first]
    np.add.at(found, where, np.maximum(lead[first], 0))
    return found


def _parents(lives: Lives, tids: I64, roles: I64, n: int) -> list[int]:
    """By role: the role of most of those that started its threads, -1 where it is not known."""
    role_of = dict(zip(tids.tolist(), roles.tolist(), strict=True))
    found: list[Counter[int]] = [Counter() for _ in range(n)]
    for tid, role in role_of.items():
        for life in lives.get(tid, []):
            found[role][role_of.get(life.parent, -1)] += 1
    return [one.most_common(1)[0][0] if one else -1 for one in found]


def _whole(batch: pl.DataFrame, name: str) -> I64:
    import polars as pl

    column = batch[name]
    if name in ("think_cpu_ns", "think_blocked_ns", "duration_ns"):
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
        "took": number["duration_ns"][keep],
        "unknown": unknown,
    }


def _roles(trace: Trace, mine: pl.DataFrame) -> tuple[I64, I64, list[str]]:
    """Tids (ascending), the role of each, and the name of each role."""
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
    return tids, role, names


def _spawned(lives: Lives, tids: I64, roles: I64, span_ns: int) -> dict[int, Spawned]:
    """Roles whose threads come and go while those of one other role stay.

    The text has one such thread at a time for each of those that start them; where there
    are more the role is one whose threads stay.
    """
    found = {}
    role_of = dict(zip(tids.tolist(), roles.tolist(), strict=True))
    for role in np.unique(roles).tolist():
        mine = [life for tid in tids[roles == role].tolist() for life in lives.get(tid, [])]
        short = [one for one in mine if one.started and one.last - one.first < _SHORT * span_ns]
        parents = Counter(role_of.get(one.parent, -1) for one in short)
        if len(short) < max(_LEAST_LIVES, 0.9 * len(mine)) or not parents:
            continue
        parent, _ = parents.most_common(1)[0]
        together = max(
            _most_at_once([one for one in short if one.parent == tid])
            for tid in {one.parent for one in short}
        )
        if parent not in (-1, role) and together == 1:
            found[role] = Spawned(parent, False)
    return {role: how for role, how in found.items() if how.parent not in found}


def _seen(whole: dict[str, I64], roles: I64, role: int) -> bool:
    """Whether the beginning and the end of a role's threads were recorded as operations."""
    mine = roles[whole["thread"]] == role
    return int((mine & (whole["kind"] == OpKind.THREAD_EXIT)).sum()) >= _LEAST_LIVES


def _joined(whole: dict[str, I64], tids: I64, roles: I64, role: int, lives: Lives) -> bool:
    """Whether those who started a thread do nothing more until it has ended.

    Their waiting is then in the joining: their time asleep before what follows is none.
    """
    ends = {tid: [one.last for one in lives.get(tid, [])] for tid in tids.tolist()}
    order = np.argsort(whole["thread"], kind="stable")
    thread, kind = whole["thread"][order], whole["kind"][order]
    child = np.searchsorted(tids, whole["child"][order]).clip(0, len(tids) - 1)
    clones = np.flatnonzero((kind == OpKind.CLONE) & (roles[child] == role))
    clones = clones[clones + 1 < len(order)]
    clones = clones[thread[clones] == thread[clones + 1]]
    begin = whole["begin"][order]
    after = np.array(
        [
            any(begin[k] <= end <= begin[k + 1] for end in ends[int(tids[child[k]])])
            for k in clones.tolist()
        ]
    )
    if not len(after) or after.mean() < _MOSTLY:
        return False
    follows = order[clones[after] + 1]
    whole["blocked"][follows] = whole["waited"][follows] = 0
    whole["waker"][follows] = -1
    return True


def _away(whole: dict[str, I64], roles: I64, counts: list[int], window_ns: int) -> list[float]:
    """By role: how long in all its threads do nothing before their first or after their last
    operation, because they are not there (yet, any more) or wait, ns."""
    there = np.zeros(len(counts))
    order = np.argsort(whole["thread"], kind="stable")
    thread = whole["thread"][order]
    first = np.flatnonzero(np.append(True, thread[1:] != thread[:-1]))
    last = np.append(first[1:], len(order)) - 1
    begin = whole["begin"][order]
    lead = (whole["think"] + whole["blocked"])[order][first]
    np.add.at(there, roles[thread[first]], np.minimum(begin[last] - begin[first] + lead, window_ns))
    return [max(n * window_ns - t, 0.0) for n, t in zip(counts, there.tolist(), strict=True)]


@dataclass(frozen=True)
class Life:
    """When a thread was there, in ns; who started it; ``started``: in the recording."""

    first: int
    last: int
    parent: int
    started: bool


Lives = dict[int, list[Life]]


def _lives(trace: Trace) -> Lives:
    """By tid."""
    import polars as pl

    end = max(trace.header.span_ns, 1)
    rows = trace.threads.select(
        "tid",
        pl.col("start_ns").fill_null(0),
        pl.col("end_ns").fill_null(end),
        pl.col("parent_tid").fill_null(-1),
        (pl.col("start_ns").is_not_null() & pl.col("end_ns").is_not_null()).alias("started"),
    ).collect()
    lives: Lives = {}
    for tid, first, last, parent, started in rows.iter_rows():
        lives.setdefault(int(tid), []).append(Life(int(first), int(last), int(parent), started))
    return lives


def _most_at_once(lives: list[Life]) -> int:
    """How many threads there were at most at a time: a role has as many."""
    changes = sorted([(one.first, 1) for one in lives] + [(one.last, -1) for one in lives])
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
