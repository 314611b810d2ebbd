"""Results per process, and who takes another process's ``mmap_lock``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from mmreplay.engine.result import Result
from mmreplay.predict import gains, rooms
from mmreplay.predict.gains import Cell
from mmreplay.predict.prediction import ForeignHolder, Process, ProcessShare
from mmreplay.schema import OpKind

if TYPE_CHECKING:
    from mmreplay.address_space.planner import PlanBundle
    from mmreplay.trace.store import Trace

_HOW: Final = {
    int(OpKind.PROC_READ): "reads /proc/PID",
    int(OpKind.PROCESS_VM): "process_vm_readv/writev",
    int(OpKind.PROCESS_MADVISE): "process_madvise",
}
#: Kinds of recorded waits that can be one for an mmap_lock.
_SLEEPING: Final = ("rwsem", "mmap_lock")


@dataclass(frozen=True, slots=True)
class People:
    """Processes of a trace: name, address spaces, and the one that matters most."""

    name: dict[int, str]  # by pid: command name of its first thread
    spaces: dict[int, tuple[int, ...]]  # by pid
    owner: dict[int, int]  # by address space: the pid with most operations in it
    target: int | None  # pid with the most lock-relevant time; None: no operations


def people(trace: Trace) -> People:
    """Who is in the trace."""
    used = rooms.lock_relevant(trace)
    ranked = (
        used.group_by("pid")
        .agg(pl.col("ns").sum(), pl.col("ops").sum())
        .sort("ns", "ops", "pid", descending=[True, True, False])
    )
    used = used.filter("home")
    owners = (
        used.group_by("address_space", "pid")
        .agg(pl.col("ops").sum())
        .sort("ops", "pid", descending=[True, False])
        .unique("address_space", keep="first", maintain_order=True)
    )
    names = (
        trace.threads.select("pid", "tid", "comm", "first_ns")
        .sort((pl.col("tid") != pl.col("pid")), "first_ns", "tid")
        .unique("pid", keep="first", maintain_order=True)
        .collect()
    )
    spaces: dict[int, tuple[int, ...]] = {}
    for pid, space in used.select("pid", "address_space").unique().sort("address_space").rows():
        spaces[pid] = (*spaces.get(pid, ()), space)
    return People(
        name=dict(zip(names["pid"], names["comm"], strict=True)),
        spaces=spaces,
        owner=dict(zip(owners["address_space"], owners["pid"], strict=True)),
        target=int(ranked["pid"][0]) if ranked.height else None,
    )


def processes(
    who: People,
    bundles: Sequence[PlanBundle],
    results: Sequence[Result],
    locks: Sequence[str],
) -> tuple[Process, ...]:
    """What each process did and waited for in replays of ``bundles``, one result each.

    The most waiting first, then the most operations.
    """
    threads: dict[int, set[tuple[int, int]]] = {}
    ops: dict[int, int] = {}
    end_ns: dict[int, int] = {}
    waits: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}
    for bundle, result in zip(bundles, results, strict=True):
        plan = bundle.plan
        counts = np.diff(plan.thread_first)
        latest: dict[int, int] = {}
        for t, thread in enumerate(bundle.threads):
            pid = thread.pid
            threads.setdefault(pid, set()).add((thread.tid, thread.clone))
            ops[pid] = ops.get(pid, 0) + int(counts[t])
            end = int(result.thread_end_ns[t])
            latest[pid] = max(latest.get(pid, 0), end if end >= 0 else result.makespan_ns)
            waits[pid] = waits.get(pid, np.zeros(len(locks), np.int64)) + result.thread_wait_ns[t]
        for pid, end in latest.items():
            end_ns[pid] = end_ns.get(pid, 0) + end
    found = [
        Process(
            pid=pid,
            name=who.name.get(pid, ""),
            address_spaces=who.spaces.get(pid, ()),
            threads=len(threads[pid]),
            target=pid == who.target,
            ops=ops[pid],
            end_ns=end_ns[pid],
            wait_ns=int(waits[pid].sum()),
            lock_wait_ns={
                name: int(ns) for name, ns in zip(locks, waits[pid], strict=True) if ns > 0
            },
        )
        for pid in threads
    ]
    return tuple(sorted(found, key=lambda p: (-p.wait_ns, -p.ops, p.pid)))


def process_shares(
    who: People,
    sides: Mapping[str, tuple[Sequence[str], Cell]],
) -> tuple[ProcessShare, ...]:
    """Thread time that each process loses to each lock, at one point of a prediction.

    ``sides``: per kernel its locks and its simulations.
    The most waiting under the first kernel first, then the most threads.
    """
    threads: dict[int, set[tuple[int, int]]] = {}
    shares: dict[int, dict[str, dict[str, float]]] = {}
    for kernel, (locks, cell) in sides.items():
        waited: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}
        alive: dict[int, int] = {}
        for (window, _), result in cell.results.items():
            part = cell.parts[window]
            spans = gains.thread_spans(part.plan(cell.load), result)
            for t, thread in enumerate(part.bundle.threads):
                pid = thread.pid
                threads.setdefault(pid, set()).add((thread.tid, thread.clone))
                waited[pid] = waited.get(pid, 0) + result.thread_wait_ns[t]
                alive[pid] = alive.get(pid, 0) + int(spans[t])
        for pid, waits in waited.items():
            shares.setdefault(pid, {})[kernel] = {
                name: float(ns / alive[pid])
                for name, ns in zip(locks, waits, strict=True)
                if ns > 0 and alive[pid] > 0
            }
    found = [
        ProcessShare(
            pid=pid,
            name=who.name.get(pid, ""),
            address_spaces=who.spaces.get(pid, ()),
            threads=len(threads[pid]),
            target=pid == who.target,
            lock_share=share,
        )
        for pid, share in shares.items()
    ]
    first = next(iter(sides))
    return tuple(
        sorted(found, key=lambda p: (-sum(p.lock_share.get(first, {}).values()), -p.threads, p.pid))
    )


def foreign_holders(trace: Trace, who: People) -> tuple[ForeignHolder, ...]:
    """Processes that take the ``mmap_lock`` of an address space that is not theirs.

    Seen in two ways: by operations on another address space, and by recorded waits for (or
    holds of) the same lock.  A holder that the recording does not contain, such as a monitor
    reading ``/proc/PID/smaps`` outside it, cannot be seen.
    """
    found = [*_by_operations(trace, who), *_by_locks(trace, who)]
    return tuple(sorted(found, key=lambda h: (-(h.hold_ns or 0) - h.wait_ns, h.pid, h.target_pid)))


def _by_operations(trace: Trace, who: People) -> list[ForeignHolder]:
    remote = (
        trace.operations.filter(pl.col("kind").is_in(rooms.REMOTE))
        .group_by("pid", "address_space", "kind", "fd")
        .agg(
            count=pl.len(),
            hold_ns=pl.col("service_ns").sum(),
            wait_ns=pl.col("wait_ns").sum().fill_null(0),
        )
        .sort("pid", "address_space", "kind", "fd")
        .collect()
    )
    sums: dict[tuple[int, int, str], list[int]] = {}
    for pid, space, kind, fd, count, hold_ns, wait_ns in remote.rows():
        target = who.owner.get(space, pid)
        # process_vm_readv and process_vm_writev name their target by pid.
        if target == pid and kind == OpKind.PROCESS_VM and fd in who.spaces:
            target = fd
        if target == pid:
            continue
        entry = sums.setdefault((pid, target, _HOW[kind]), [0, 0, 0])
        for i, value in enumerate((count, wait_ns or 0, hold_ns or 0)):
            entry[i] += value
    return [
        _holder(who, pid, target, how, count, wait_ns, hold_ns)
        for (pid, target, how), (count, wait_ns, hold_ns) in sums.items()
    ]


def _by_locks(trace: Trace, who: People) -> list[ForeignHolder]:
    """Rows of the locks table at an address that is the mmap_lock of another process."""
    rows = (
        trace.locks.filter(pl.col("kind").is_in(_SLEEPING) & (pl.col("lock_address") != 0))
        .group_by("lock_address", "kind", "address_space")
        .agg(
            count=pl.len(),
            both=pl.col("mode").is_in(["read", "write"]).all() & (pl.col("mode").n_unique() == 2),
            wait_ns=pl.col("wait_ns").sum().fill_null(0),
            hold_ns=pl.col("hold_ns").sum(),
            held=pl.col("hold_ns").is_not_null().any(),
        )
        .sort("count", "address_space", descending=[True, False])
        .collect()
    )
    # mmap_lock events carry the mm, so each is one.  Of the rwsems that an address space waits
    # for, its mmap_lock is the one that it waits for most often, if that is in both modes:
    # i_mmap_rwsem and anon_vma, which processes share, are waited for by writers.
    owner: dict[tuple[str, int], int] = {}
    busiest: dict[int, int] = {}
    for address, kind, space, _, both, *_ in rows.rows():
        if kind == "mmap_lock":
            owner.setdefault((kind, address), space)
        elif space not in busiest:
            busiest[space] = address
            if both:
                owner.setdefault((kind, address), space)
    found = []
    for address, kind, space, count, _, wait_ns, hold_ns, held in rows.rows():
        home = owner.get((kind, address), space)
        pid, target = who.owner.get(space), who.owner.get(home)
        if home == space or pid is None or target is None or pid == target:
            continue
        how = "takes the mmap_lock" if kind == "mmap_lock" else "waits for the same rwsem"
        found.append(_holder(who, pid, target, how, count, wait_ns, hold_ns if held else None))
    return found


def _holder(
    who: People, pid: int, target: int, how: str, count: int, wait_ns: int, hold_ns: int | None
) -> ForeignHolder:
    return ForeignHolder(
        pid=pid,
        name=who.name.get(pid, ""),
        target_pid=target,
        target=who.name.get(target, ""),
        how=how,
        count=count,
        wait_ns=wait_ns,
        hold_ns=hold_ns,
    )
