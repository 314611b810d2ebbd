"""From counters to a :class:`~mmreplay.engine.result.Result`: the same for both twins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import Plan
from mmreplay.engine.result import (
    DELAY_BUCKETS,
    DELAY_BUCKETS_PER_OCTAVE,
    PROGRESS_PARTS,
    LockStats,
    Result,
)
from mmreplay.locking.isa import Kind
from mmreplay.locking.model import LockingModel

I64 = NDArray[np.int64]

#: Columns of the counters per lock.
LOCK_FIELDS: Final = (
    "read",
    "write",
    "downgrade",
    "read_wait_ns",
    "write_wait_ns",
    "read_hold_ns",
    "write_hold_ns",
    "mark",
    "try_failed",
    "sleeps",
    "steals",
    "handoffs",
)


def delay_bucket(delay_ns: int) -> int:
    """Bucket of a delay: exact below 16 ns, then 16 buckets per power of two."""
    if delay_ns < DELAY_BUCKETS_PER_OCTAVE:
        return delay_ns
    octave = delay_ns.bit_length() - 1
    return min((octave - 3) * 16 + ((delay_ns >> (octave - 4)) - 16), DELAY_BUCKETS - 1)


def bucket_floor_ns(bucket: int) -> int:
    """Smallest delay of a bucket."""
    if bucket < DELAY_BUCKETS_PER_OCTAVE:
        return bucket
    return (16 + bucket % 16) << (bucket // 16 - 1)


@dataclass(slots=True)
class Totals:
    """What a twin has counted; shapes as in :class:`Result`."""

    stats: I64  # (locks, LOCK_FIELDS)
    reasons: I64
    op_count: I64
    op_busy_ns: I64
    op_wait_ns: I64
    op_delay: I64
    blame_ns: I64
    thread_begun: I64
    thread_end_ns: I64
    thread_wait_ns: I64
    thread_progress_ns: I64
    idle_ns: int
    sleep_ns: int
    dep_wait_ns: int
    stop_ns: int  # end of the replay
    window_begin_ns: int  # -1: never opened
    window_end_ns: int  # -1: no thread of the group ended
    window_ops: int
    window_user_ns: int
    group_ops: int  # recorded until the window's end, whether or not it opened
    group_user_ns: int


def progress_ns(plan: Plan, op_end_ns: I64) -> I64:
    """``Result.thread_progress_ns``.

    ``op_end_ns`` (N,): when each operation was over, plus one; 0 where it was not.
    """
    out = np.full((plan.n_threads, PROGRESS_PARTS + 1), -1, np.int64)
    first, count = plan.thread_first[:-1], np.diff(plan.thread_first)
    some = count > 0
    out[some, 0] = plan.thread_offset_ns[some]
    rows = first[some, None] + checkpoints(count[some])[:, 1:] - 1
    out[some, 1:] = op_end_ns[rows] - 1
    return out


def checkpoints(count: I64) -> I64:
    """(T, PROGRESS_PARTS + 1) how many of ``count`` (T,) operations make each part of the way."""
    parts = np.arange(PROGRESS_PARTS + 1, dtype=np.int64)
    ups: I64 = -(-count[:, None] * parts // PROGRESS_PARTS)
    return ups


def summarise(model: LockingModel, totals: Totals) -> Result:
    """Assemble the result."""
    locks = []
    for index, name in enumerate(model.locks):
        values = {f: int(v) for f, v in zip(LOCK_FIELDS, totals.stats[index], strict=True)}
        kind = Kind(int(model.lock_kind[index])).name.lower()
        locks.append(LockStats(name=name, kind=kind, **values))
    begin, end = totals.window_begin_ns, totals.window_end_ns
    ops, user = totals.window_ops, totals.window_user_ns
    if end < 0:
        end = totals.stop_ns
    if begin < 0 or begin >= end:  # too short for a warm-up: the whole replay
        begin, ops, user = 0, totals.group_ops, totals.group_user_ns
    detail: dict[str, Any] = {"dep_wait_ns": totals.dep_wait_ns}
    return Result(
        ops=int(totals.op_count.sum()),
        makespan_ns=totals.stop_ns,
        window_begin_ns=begin,
        window_end_ns=end,
        window_ops=ops,
        window_user_ns=user,
        locks=tuple(locks),
        reasons={n: int(v) for n, v in zip(model.reasons, totals.reasons, strict=True)},
        op_count=totals.op_count,
        op_busy_ns=totals.op_busy_ns,
        op_wait_ns=totals.op_wait_ns,
        op_delay=totals.op_delay,
        blame_ns=totals.blame_ns,
        thread_begun=totals.thread_begun,
        thread_end_ns=totals.thread_end_ns,
        thread_wait_ns=totals.thread_wait_ns,
        thread_progress_ns=totals.thread_progress_ns,
        idle_ns=totals.idle_ns,
        sleep_ns=totals.sleep_ns,
        detail=detail,
    )
