"""Puts the points of wake-ups between the operations of a plan.

The time between two operations is cut at its points: each gets the on-CPU time since the one
before, and what its thread slept there for other reasons.  What it slept until it was
woken is no think time any more; it is kept as ``sleep_ns`` for later laps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.assemble import Gaps, Layout
from mmreplay.address_space.plan import WAKE_POINT, Plan
from mmreplay.address_space.threads import Threads
from mmreplay.address_space.times import BLOCKED, THINK, Times
from mmreplay.address_space.wakeups import Wakeups, spread, useful
from mmreplay.jit import borrowing_helper, native

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Inserted:
    """A plan with wake-ups, and what became of them."""

    plan: Plan
    waits: int  # points at which a thread waits for others
    left_out: int  # wake-ups of threads that the plan does not have, or beyond its end
    cyclic: int  # waits given up because they would wait for themselves


def no_points() -> Gaps:
    """A plan without wake-ups."""
    return Gaps(np.zeros(0, np.int64), np.zeros(0, np.int64))


class Points:
    """The wake-ups of a plan's part of the trace, and where their points lie.

    Parameters
    ----------
    ops:
        Records of the pass, in order of effect.
    times, window_ns, whole:
        As of :func:`mmreplay.address_space.assemble.assemble`.
    """

    def __init__(
        self,
        found: Wakeups,
        who: Threads,
        layout: Layout,
        ops: Any,
        times: Times,
        window_ns: tuple[int, int],
        whole: bool,
    ) -> None:
        place = np.full(who.n, -1, np.int64)
        place[layout.who] = np.arange(len(layout.who))
        here = (found.wake_ns >= window_ns[0]) & (found.wake_ns <= window_ns[1])
        inside = found.chosen(here)
        kept = inside.chosen((place[inside.thread] >= 0) & (place[inside.waker] >= 0))
        first, end = layout.thread_first[:-1], layout.thread_first[1:]
        if not whole:
            last = ops["row"][layout.order[end - 1]][place[kept.thread]]
            kept = kept.chosen(useful(kept.thread, kept.waker, kept.after < last, who.n))
        self.left_out = len(inside) - len(kept)
        self.waits = waits = spread(kept, who)
        self.times, self.whole, self._first = times, whole, layout.thread_first
        of = waits.wakeup

        def side(waiter: I64, waker: I64) -> I64:
            return np.where(waits.waits, waiter[of], waker[of])

        thread = place[waits.thread]
        following = np.empty(len(of), np.int64)
        _follow(
            ops, layout.order, layout.thread_first, thread, side(kept.after, kept.waker_after),
            following,
        )  # fmt: skip
        self.cpu = side(kept.cpu_ns, kept.waker_cpu_ns)
        self.blocked = side(kept.blocked_ns, kept.waker_blocked_ns)
        self.wait = np.where(waits.waits, (kept.on_ns - kept.off_ns)[of], 0)
        self._at = ops["row"][layout.order[first]] - times.first
        #: Points in the order of the plan, and the place of each point in it.
        self.order = np.lexsort((kept.wake_ns[of], following, thread))
        self.rank = np.empty_like(self.order)
        self.rank[self.order] = np.arange(len(self.order))
        self.gaps = Gaps(following[self.order], thread[self.order])

    def inserted(self, plan: Plan) -> Inserted:
        """The plan, which has the points' rows, with their times and who waits for whom."""
        if not len(self.order):
            return Inserted(plan, 0, self.left_out, 0)
        new = self.gaps.before + np.arange(len(self.order))
        tails = self._divide(plan, new)
        waiting = np.concatenate([_owners(plan), new[self.rank[self.waits.waiting]]])
        for_ = np.concatenate([plan.dep_op, new[self.rank[self.waits.for_]]])
        made, cyclic = _acyclic(
            plan._replace(
                thread_tail_cpu_ns=tails[0],
                thread_tail_blocked_ns=tails[1],
                dep_first=_first(waiting, np.ones(len(waiting), np.int64), plan.n_ops),
                dep_op=for_[np.argsort(waiting, kind="stable")],
            )
        )
        return Inserted(made, int(self.waits.waits.sum()) - cyclic, self.left_out, cyclic)

    def _divide(self, plan: Plan, new: I64) -> tuple[I64, I64]:
        """Cut the time of each gap at its points; returns the tails that are left."""
        order = self.order
        tail_cpu, tail_blocked = plan.thread_tail_cpu_ns.copy(), plan.thread_tail_blocked_ns.copy()
        first = self.gaps.moved(self._first[:-1])
        # What the part of the trace begins with was cut off the first gaps.
        cut_cpu = self.times.values[self._at, THINK] - plan.think_cpu_ns[first]
        cut_blocked = self.times.values[self._at, BLOCKED] - plan.think_blocked_ns[first]
        _divide(
            self.gaps.thread,
            self.gaps.before,
            self.cpu[order],
            self.blocked[order],
            self.wait[order],
            self.waits.waits[order],
            self._first,
            self.gaps.moved(self.gaps.before),
            new,
            cut_cpu,
            cut_blocked,
            plan.think_cpu_ns,
            plan.think_blocked_ns,
            plan.sleep_ns,
            tail_cpu,
            tail_blocked,
            self.whole,
        )
        return tail_cpu, tail_blocked


@native
def _follow(ops: Any, order: I64, first: I64, thread: I64, after: I64, following: I64) -> None:
    """The first operation of each point's thread whose row is higher than ``after``."""
    for p in range(len(thread)):
        low, high = first[thread[p]], first[thread[p] + 1]
        while low < high:
            middle = (low + high) >> 1
            if ops[order[middle]].row <= after[p]:
                low = middle + 1
            else:
                high = middle
        following[p] = low


@native
def _divide(
    thread: I64,
    following: I64,
    cpu: I64,
    blocked: I64,
    wait: I64,
    waits: NDArray[np.bool_],
    first: I64,
    old: I64,
    new: I64,
    cut_cpu: I64,
    cut_blocked: I64,
    think: I64,
    slept: I64,
    sleep: I64,
    tail_cpu: I64,
    tail_blocked: I64,
    whole: bool,
) -> None:
    """Points in order; ``old``: rows of the operations that follow, ``new``: of the points.

    ``think``, ``slept`` and ``sleep`` are columns of the plan.
    """
    done_cpu = done_blocked = np.int64(0)
    for p in range(len(thread)):
        t, k = thread[p], following[p]
        if p == 0 or thread[p - 1] != t or following[p - 1] != k:
            done_cpu = done_blocked = np.int64(0)
        at = cpu[p]
        slept_before = blocked[p]
        if k == first[t]:
            at -= cut_cpu[t]
            slept_before -= cut_blocked[t]
        behind = k == first[t + 1]
        if behind:
            left_cpu, left_blocked = tail_cpu[t], tail_blocked[t]
        else:
            left_cpu, left_blocked = think[old[p]], slept[old[p]]
        span_cpu = max(at - done_cpu, 0)
        span_blocked = max(slept_before - done_blocked, 0)
        if not behind or whole:
            span_cpu = min(span_cpu, left_cpu)
            span_blocked = min(span_blocked, left_blocked)
        think[new[p]] = span_cpu
        slept[new[p]] = span_blocked
        if waits[p]:
            sleep[new[p]] = wait[p]
        done_cpu += span_cpu
        done_blocked += span_blocked + wait[p]
        left_cpu = max(left_cpu - span_cpu, 0)
        left_blocked = max(left_blocked - span_blocked - wait[p], 0)
        if behind:
            tail_cpu[t], tail_blocked[t] = left_cpu, left_blocked
        else:
            think[old[p]], slept[old[p]] = left_cpu, left_blocked


def _owners(plan: Plan) -> I64:
    """(D,) the operation that each of the plan's dependencies belongs to."""
    return np.searchsorted(plan.dep_first, np.arange(len(plan.dep_op)), side="right") - 1


def _first(row: I64, count: I64, n: int) -> I64:
    """Where each row's list begins, of lists of ``count`` items at ``row``."""
    out = np.zeros(n + 1, np.int64)
    np.add.at(out, row + 1, count)
    return np.cumsum(out)


def _acyclic(plan: Plan) -> tuple[Plan, int]:
    """The plan without waits that would never end, and how many there were.

    The order of a recording has no cycle, but that of effects, which the other dependencies go
    by, is not quite that of time.
    """
    # Only rows that wait or are waited for matter.
    owner = _owners(plan)
    rows = np.unique(np.concatenate([owner, plan.dep_op]))
    given_up = np.zeros(len(rows), np.bool_)
    first = np.searchsorted(rows, plan.thread_first)
    _run(
        first,
        np.searchsorted(owner, np.append(rows, plan.n_ops)),
        np.searchsorted(rows, plan.dep_op),
        (plan.traits[rows] & WAKE_POINT) != 0,
        given_up,
        np.zeros(len(rows), np.bool_),
        np.full(len(rows), -1, np.int64),
        np.full(plan.n_threads, -1, np.int64),
        np.arange(plan.n_threads),
        first.copy(),
    )
    dropped = rows[given_up]
    if not len(dropped):
        return plan, 0
    kept = ~given_up[np.searchsorted(rows, owner)]
    slept, sleep = plan.think_blocked_ns.copy(), plan.sleep_ns.copy()
    slept[dropped] += np.maximum(sleep[dropped], 0)
    sleep[dropped] = -1
    fewer = plan._replace(
        dep_first=_first(owner[kept], np.ones(int(kept.sum()), np.int64), plan.n_ops),
        dep_op=plan.dep_op[kept],
        think_blocked_ns=slept,
        sleep_ns=sleep,
    )
    return fewer, len(dropped)


@borrowing_helper
def _leave(head: I64, following: I64, row: int, thread: int) -> None:
    """Take a thread off the list of those that wait for a row."""
    if head[row] == thread:
        head[row] = following[thread]
        return
    u = head[row]
    while following[u] != thread:
        u = following[u]
    following[u] = following[thread]


@native
def _run(
    first: I64,
    dep_first: I64,
    dep_op: I64,
    points: NDArray[np.bool_],
    given_up: NDArray[np.bool_],
    done: NDArray[np.bool_],
    head: I64,
    following: I64,
    work: I64,
    at: I64,
) -> None:
    """Which points' waits have to be given up (``given_up``) so that every thread ends.

    On entry ``given_up`` and ``done`` (N,) are false, ``head`` (N,), the threads that wait for
    a row, and ``following`` (T,) are -1, ``work`` (T,) is every thread, ``at`` (T+1,) ``first``.
    """
    threads = len(first) - 1
    ready = threads
    while True:
        while ready > 0:
            ready -= 1
            t = work[ready]
            while at[t] < first[t + 1]:
                row = at[t]
                missing = np.int64(-1)
                if not given_up[row]:
                    for k in range(dep_first[row], dep_first[row + 1]):
                        if not done[dep_op[k]]:
                            missing = dep_op[k]
                            break
                if missing >= 0:
                    following[t] = head[missing]
                    head[missing] = t
                    break
                done[row] = True
                at[t] = row + 1
                u = head[row]
                while u >= 0:
                    work[ready] = u
                    ready += 1
                    u = following[u]
        # Nobody can go on: let the first thread that waits at a point go on.
        for t in range(threads):
            row = at[t]
            if row < first[t + 1] and points[row] and not given_up[row]:
                given_up[row] = True
                for k in range(dep_first[row], dep_first[row + 1]):
                    if not done[dep_op[k]]:
                        _leave(head, following, dep_op[k], t)
                        break
                work[0] = t
                ready = 1
                break
        if ready == 0:
            return
