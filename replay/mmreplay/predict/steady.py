"""Whose progress a throughput is measured by, and what the others do meanwhile.

A replay stops when the first thread of the measured group is through.  A scaled
group often holds threads that are no workers: a main thread that starts the pool and
sleeps, threads that the recorded machine hardly ran inside the window.  If one of them
ended it, it would end anywhere.  So the group is measured by its *steady* threads,
and their rates are scaled up to all of the group's work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import WAKE_POINT, Plan, PlanOp
from mmreplay.predict.pace import Work, work_of
from mmreplay.predict.recorded import Recorded, by_class

if TYPE_CHECKING:
    from mmreplay.address_space.planner import PlanBundle

#: A steady thread is at least this busy, against the thread in the middle of the group's work.
STEADY_SHARE: Final = 0.5
#: Taken for operations of kinds without recorded service.
_SERVICE_NS: Final = 2_000.0

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """One window of a trace, ready to be measured.

    ``recorded`` and ``saturated`` are its plans for the two loads, often the same object;
    ``group`` is the index of the steady threads in them, -1 all threads.  What the steady
    threads do times ``ops_factor`` and ``user_factor`` is what the group does.
    """

    bundle: PlanBundle
    recorded: Plan
    saturated: Plan
    group: int
    ops_factor: float
    user_factor: float
    steady: int  # how many they are
    work: Work  # theirs
    idle: bool  # they, or whom they may wait for, sleep between operations
    in_turn: bool = False  # some of them began when others were through
    asleep: float = 0.0  # share of their time in which they sleep, the trace does not say what for

    def plan(self, load: str) -> Plan:
        """The plan for one load."""
        return self.saturated if load == "saturated" else self.recorded


def measured(bundle: PlanBundle, plan: Plan, group: int, times: Recorded) -> Part:
    """How ``plan`` (of ``bundle``, at the costs to be used) is measured for thread group ``group``.

    Under saturated load the steady threads never sleep but for other threads that the trace says
    they wait for; if some were through when others began, all begin together.  The other threads
    of their processes keep their pace relative to them: without recorded wake-ups it cannot be
    told what they sleep for.  A thread that waits for workers, or collects their garbage, gets
    faster with them; were it left behind, they would wait for the mappings it makes.
    """
    mine = plan.thread_group == group if group >= 0 else np.ones(plan.n_threads, np.bool_)
    points = (plan.traits & WAKE_POINT) != 0
    ops = _per_thread(plan, (~points).astype(np.float64))
    user = _per_thread(plan, plan.think_cpu_ns.astype(np.float64))
    blocked = _per_thread(plan, plan.think_blocked_ns.astype(np.float64))
    waits = _per_thread(plan, np.where(points, np.maximum(plan.sleep_ns, 0), 0).astype(np.float64))
    service = _recorded_ns(plan, times)
    busy = user + _per_thread(plan, _filled_ns(plan, times, service))
    steady = mine & (busy >= STEADY_SHARE * _middle(busy[mine])) & (ops > 0)
    if not steady.any():
        steady = mine
    rest = mine & ~steady
    if rest.any():
        apart = plan.thread_group.copy()
        apart[rest] = plan.thread_group.max(initial=0) + 1
        index = group if group >= 0 else int(apart[rest][0]) + 1
        apart[steady] = index
        plan, group = plan._replace(thread_group=apart), index
    saturated = plan
    on_the_way = busy + waits  # for other threads: that is no idle time
    alive = on_the_way + blocked
    pace = on_the_way[steady].sum() / alive[steady].sum() if alive[steady].sum() > 0 else 1.0
    offset = plan.thread_offset_ns
    in_turn = bool(offset[steady].max(initial=0) > (offset + alive)[steady].min(initial=np.inf))
    if in_turn:
        first = np.where(steady, offset[steady].min(), offset)
        saturated = plan._replace(thread_offset_ns=first)
    pids = np.array([thread.pid for thread in bundle.threads])
    late = ~steady & np.isin(pids, pids[steady]) & (blocked > 0)
    if late.any() and pace < 1:
        keep = np.ones(plan.n_threads)
        keep[late] = np.maximum(alive[late] * pace - on_the_way[late], 0) / blocked[late]
        scaled = plan.think_blocked_ns * np.repeat(keep, np.diff(plan.thread_first))
        saturated = saturated._replace(
            think_blocked_ns=scaled.astype(np.int64),
            thread_tail_blocked_ns=(plan.thread_tail_blocked_ns * keep).astype(np.int64),
        )
    return Part(
        bundle=bundle,
        recorded=plan,
        saturated=saturated,
        group=group,
        ops_factor=_ratio(ops[mine].sum(), ops[steady].sum()),
        user_factor=_ratio(user[mine].sum(), user[steady].sum()),
        steady=int(steady.sum()),
        work=work_of(plan, group, service),
        idle=in_turn or bool(blocked[steady].sum() > 0 or (points.any() and blocked.sum() > 0)),
        in_turn=in_turn,
        asleep=float(1 - pace),
    )


def _ratio(whole: float, part: float) -> float:
    return whole / part if part > 0 else 1.0


def _middle(busy: F64) -> float:
    """The busy time of the thread at which half of the work of all is reached, busiest first."""
    if not len(busy):
        return 0.0
    ordered = np.sort(busy)[::-1]
    return float(ordered[np.searchsorted(np.cumsum(ordered), 0.5 * ordered.sum())])


def _per_thread(plan: Plan, values: F64) -> F64:
    """Sums over each thread's operations, (T,)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    found: F64 = sums[plan.thread_first[1:]] - sums[plan.thread_first[:-1]]
    return found


def _recorded_ns(plan: Plan, times: Recorded) -> F64:
    """(N,) recorded service; NaN where unknown."""
    out = np.full(plan.n_ops, np.nan)
    real = np.flatnonzero(plan.row >= 0)
    out[real] = times.service_ns[plan.row[real]]
    return out


def _filled_ns(plan: Plan, times: Recorded, recorded: F64) -> F64:
    """(N,) the same; where unknown, the mean of the operation's kind."""
    _, known, service, _ = by_class(plan, times)
    mean = np.where(known > 0, service / np.maximum(known, 1), _SERVICE_NS)
    mean[PlanOp.NONE] = 0.0
    out: F64 = np.where(np.isnan(recorded), mean[plan.op.astype(np.int64)], recorded)
    return out
