"""How fast the measured threads get on, over the same work whatever the kernel.

A stretch of time holds other operations under a slow kernel than under a fast one: a thread that
maps first and computes later computes more in it the faster its mappings are.  Times of single
threads, on the other hand, tell more about whose turn it was when the replay stopped than about
the kernel: where threads share a core, or starve for a lock, all of the time counts, whoever has
it.  So what all measured threads completed counts, over all of the time, in a measure that is the
same under both kernels: what the operations and the computing before them take uncontended.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import WAKE_POINT, Plan, PlanOp
from mmreplay.engine.result import PROGRESS_PARTS, Result
from mmreplay.engine.summary import checkpoints

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

#: Parts of a thread's operations that only warm caches and queues up: the first tenth.
WARM_UP: Final = PROGRESS_PARTS // 10


@dataclass(frozen=True, slots=True)
class Work:
    """What the measured threads do."""

    plan: Plan
    threads: I64  # (S,) which threads of the plan
    service_ns: F64 | None  # (N,) recorded service, NaN where unknown; None: nowhere known


@dataclass(frozen=True, slots=True)
class Content:
    """What some stretch of all measured threads' ways holds, in sums over the threads."""

    ops: float
    user_ns: float
    idle_ns: float
    work_ns: float  # operations and computing, uncontended


@dataclass(frozen=True, slots=True)
class Pace:
    """Some work, and how long the measured threads took for it, in the mean of a thread."""

    ops: float
    user_ns: float
    ns: float


def work_of(plan: Plan, group: int, service_ns: F64 | None = None) -> Work:
    """The work of the threads of ``group`` (-1: all) that have operations."""
    mine = (np.diff(plan.thread_first) > 0) & ((plan.thread_group == group) | (group < 0))
    return Work(plan, np.flatnonzero(mine), service_ns)


def busy_means_ns(results: Iterable[Result]) -> F64:
    """(len(PlanOp),) what an operation of each kind took on CPU, over all ``results``."""
    size = max(PlanOp) + 1
    count, busy = np.zeros(size), np.zeros(size)
    for result in results:
        count += result.op_count
        busy += result.op_busy_ns
    return busy / np.maximum(count, 1)


class Ways:
    """The measured threads' ways: their idle time, computing and operations, one after the other.

    A place on a way is so many ns of these from the thread's beginning, as they take uncontended.
    """

    def __init__(self, work: Work, means_ns: F64, *, idle: bool) -> None:
        """``means_ns`` (len(PlanOp),): of operations without recorded service; ``idle``: whether
        the replays kept idle time."""
        plan = work.plan
        self.threads = work.threads
        self._first = plan.thread_first[work.threads]
        self._last = plan.thread_first[work.threads + 1]
        self._parts = self._first[:, None] + checkpoints(self._last - self._first)
        self._op = (plan.traits & WAKE_POINT) == 0
        self._user = plan.think_cpu_ns
        self._idle = plan.think_blocked_ns if idle else np.zeros(plan.n_ops, np.int64)
        service = np.where(self._op, means_ns[plan.op.astype(np.int64)], 0.0)
        if work.service_ns is not None:
            service = np.where(np.isnan(work.service_ns), service, work.service_ns)
        self._think = self._idle + self._user
        self._service = service
        self._ops_to, self._user_to = _sums(self._op), _sums(self._user)
        self._idle_to, self._way_to = _sums(self._idle), _sums(self._think + service)

    def reached_ns(self, result: Result) -> F64:
        """(S,) the place where each thread was when the replay stopped.

        Begun operations count whole, thinking before the next one as far as there was time for it.
        """
        base = self._ops_to[self._first]
        begun = base + np.minimum(
            result.thread_begun[self.threads], self._ops_to[self._last] - base
        )
        done = np.searchsorted(self._ops_to, begun)
        following = np.minimum(np.searchsorted(self._ops_to, begun, side="right") - 1, self._last)
        more = following < self._last
        think = self._think[np.where(more, following, 0)]
        most = np.where(more, self._way_to[following] - self._way_to[done] + think, 0.0)
        at_ns, part = self._progress(result, result.makespan_ns)
        seen = self._way_to[np.take_along_axis(self._parts, part[:, None], 1)[:, 0]]
        spare = result.makespan_ns - at_ns - (self._way_to[done] - seen)
        far: F64 = self._way_to[done] - self._way_to[self._first] + np.clip(spare, 0, most)
        return far

    def place_ns(self, result: Result, when_ns: int, reached_ns: F64) -> F64:
        """(S,) the place where each thread was at a moment before the replay stopped."""
        ways = self._way_to[self._parts] - self._way_to[self._first][:, None]
        who = np.arange(len(self.threads))
        at_ns, part = self._progress(result, when_ns)
        following = np.minimum(part + 1, PROGRESS_PARTS)
        later_ns = result.thread_progress_ns[self.threads, following]
        later, end = ways[who, following], later_ns
        later, end = (
            np.where(end < 0, reached_ns, later),
            np.where(end < 0, result.makespan_ns, end),
        )
        share = np.clip((when_ns - at_ns) / np.maximum(end - at_ns, 1), 0, 1)
        place: F64 = ways[who, part] + share * (later - ways[who, part])
        return place

    def _progress(self, result: Result, when_ns: int) -> tuple[I64, I64]:
        """(S,) the last part that each thread had completed at a moment, and when it had."""
        at_ns = result.thread_progress_ns[self.threads]
        part = np.maximum(((at_ns >= 0) & (at_ns <= when_ns)).sum(axis=1) - 1, 0)
        return np.take_along_axis(at_ns, part[:, None], 1)[:, 0], part

    def content(self, place_ns: F64) -> Content:
        """What the ways hold up to ``place_ns`` (S,)."""
        target = self._way_to[self._first] + place_ns
        row = np.searchsorted(self._way_to, target, side="right") - 1
        row = np.clip(row, self._first, self._last)
        inside = np.where(row < self._last, row, 0)
        into = np.where(row < self._last, target - self._way_to[row], 0.0)
        idle = np.minimum(into, self._idle[inside])
        user = np.clip(into - idle, 0, self._user[inside])
        op = np.clip((into - idle - user) / np.maximum(self._service[inside], 1.0), 0, 1)
        idle_ns = float((self._idle_to[row] - self._idle_to[self._first] + idle).sum())
        return Content(
            ops=float((self._ops_to[row] - self._ops_to[self._first] + op).sum()),
            user_ns=float((self._user_to[row] - self._user_to[self._first] + user).sum()),
            idle_ns=idle_ns,
            work_ns=float(place_ns.sum()) - idle_ns,
        )


def pace(ways: Ways, result: Result, upto_ns: F64 | None = None) -> Pace:
    """How long the work up to the places ``upto_ns`` (S,) takes at the speed of a replay.

    Time that is not idle counts in proportion to work; idle time takes what it takes.  The warm-up
    is left out, and so are threads that had not begun; who began late counts as one who ran all
    the time, where the CPUs had time for that.  By default: what was completed.
    """
    far_ns = ways.reached_ns(result)
    at_ns = result.thread_progress_ns[ways.threads]
    warm = at_ns[:, WARM_UP]
    begin_ns = int(warm[warm >= 0].min(initial=result.makespan_ns))
    if begin_ns >= result.makespan_ns:  # too short for a warm-up
        begin_ns = 0
    alive = np.maximum(result.makespan_ns - np.maximum(at_ns[:, 0], begin_ns), 0)
    before = ways.content(ways.place_ns(result, begin_ns, far_ns))
    done = ways.content(far_ns)
    told = done if upto_ns is None else ways.content(upto_ns)
    worked = done.work_ns - before.work_ns
    if worked <= 0 or told.work_ns <= 0:
        return Pace(0.0, 0.0, 0.0)
    active_ns = float(alive.sum()) - (done.idle_ns - before.idle_ns)
    ns = max(active_ns, 0.0) * told.work_ns / worked + told.idle_ns
    begun = int((alive > 0).sum())
    # As if all of them ran all the time: that many times faster, as far as there is CPU time left.
    more = begun * (result.makespan_ns - begin_ns) / float(alive.sum())
    room = 1 + result.idle_ns / done.work_ns
    return Pace(told.ops, told.user_ns, ns / begun * max(1.0, more / room))


def _sums(values: NDArray[Any]) -> NDArray[Any]:
    """(N + 1,) sums of the first so many of ``values`` (N,)."""
    out = np.zeros(len(values) + 1, np.float64 if values.dtype == np.float64 else np.int64)
    np.cumsum(values, out=out[1:])
    return out
