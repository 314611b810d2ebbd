"""How fast the measured threads get on, over the same work whatever the kernel.

A stretch of time holds other operations under a slow kernel than under a fast one: a thread that
maps first and computes later computes more in it the faster its mappings are.  So two kernels
are compared over the same operations of each thread, as far as both replays came.  A rate is
their work per second of a thread, times the threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import WAKE_POINT, Plan
from mmreplay.engine.result import PROGRESS_PARTS, Result
from mmreplay.engine.summary import checkpoints

I64 = NDArray[np.int64]

#: Parts of a thread's operations that only warm caches and queues up: the first tenth.
WARM_UP: Final = PROGRESS_PARTS // 10


@dataclass(frozen=True, slots=True)
class Work:
    """What the measured threads do, by parts of their way."""

    threads: I64  # (S,) which threads of the plan
    ops: I64  # (S, PROGRESS_PARTS + 1) operations up to each part
    user_ns: I64  # (S, PROGRESS_PARTS + 1) user CPU time before them


@dataclass(frozen=True, slots=True)
class Pace:
    """What a replay's measured threads completed, and how long they took in the mean."""

    ops: int
    user_ns: int
    ns: float


def work_of(plan: Plan, group: int) -> Work:
    """The work of the threads of ``group`` (-1: all) that have operations."""
    count = np.diff(plan.thread_first)
    mine = (count > 0) & ((plan.thread_group == group) | (group < 0))
    threads = np.flatnonzero(mine)
    ops = np.concatenate([[0], np.cumsum((plan.traits & WAKE_POINT) == 0, dtype=np.int64)])
    user = np.concatenate([[0], np.cumsum(plan.think_cpu_ns, dtype=np.int64)])
    first = plan.thread_first[threads][:, None]
    upto = first + checkpoints(count[threads])
    return Work(threads, ops[upto] - ops[first], user[upto] - user[first])


def reached(work: Work, result: Result) -> I64:
    """(T,) the last part that each thread completed; of those not measured, all."""
    last = np.full(len(result.thread_progress_ns), PROGRESS_PARTS, np.int64)
    last[work.threads] = (result.thread_progress_ns[work.threads] >= 0).sum(axis=1) - 1
    return last


def pace(work: Work, result: Result, upto: I64 | None = None) -> Pace:
    """The way up to the parts ``upto`` (T,); None: as far as this replay came.

    The warm-up is left out where a thread comes further.  A thread that completed nothing in
    one of the replays compared adds nothing to either.
    """
    end = (reached(work, result) if upto is None else upto)[work.threads]
    begin = np.where(end > WARM_UP, WARM_UP, 0)
    who = np.arange(len(work.threads))
    at_ns = result.thread_progress_ns[work.threads]
    return Pace(
        ops=int((work.ops[who, end] - work.ops[who, begin]).sum()),
        user_ns=int((work.user_ns[who, end] - work.user_ns[who, begin]).sum()),
        ns=int((at_ns[who, end] - at_ns[who, begin]).sum()) / max(1, int((end > 0).sum())),
    )
