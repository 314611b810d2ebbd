"""Puts the points of wake-ups between the operations of a plan.

The time between two operations is cut at its points: each gets the on-CPU time since the one
before, and what its thread slept there for other reasons.  What it slept until it was
woken is no think time any more; it is kept as ``sleep_ns`` for later laps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import SCALE_ONE, WAKE_POINT, Plan, PlanOp
from mmreplay.address_space.threads import Threads
from mmreplay.address_space.times import BLOCKED, THINK, Times
from mmreplay.address_space.wakeups import Waits, Wakeups, spread, useful
from mmreplay.jit import borrowing_helper, native

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

#: What the columns of a plan hold in a point; all others 0.
_DEFAULTS: Final = {
    "op": int(PlanOp.NONE),
    "child_mm": -1,
    "traits": int(WAKE_POINT),
    "sleep_ns": -1,
    "vma": -1,
    "anon_slot": -1,
    "table": -1,
    "file": -1,
    "vma_first_page": -1,
    "vma_last_page": -1,
    "scale": SCALE_ONE,
    "row": -1,
}
_COLUMNS: Final = (
    "op", "mm", "child_mm", "traits", "think_cpu_ns", "think_blocked_ns", "sleep_ns", "pages",
    "vmas", "tables", "vma", "anon_slot", "table", "file", "first_page", "last_page",
    "vma_first_page", "vma_last_page", "scale", "row",
)  # fmt: skip


@dataclass(frozen=True)
class Inserted:
    """A plan with wake-ups, and what became of them."""

    plan: Plan
    waits: int  # points at which a thread waits for others
    left_out: int  # wake-ups of threads that the plan does not have, or beyond its end
    cyclic: int  # waits given up because they would wait for themselves


def insert_wakeups(
    plan: Plan,
    found: Wakeups,
    who: Threads,
    index: I32,
    rows: I64,
    times: Times,
    window_ns: tuple[int, int],
    whole: bool,
) -> Inserted:
    """The plan with the wake-ups of its part of the trace.

    Parameters
    ----------
    index:
        (T,) thread of ``who`` of each thread of the plan.
    rows:
        (N,) row of the operations table of each operation, of clones that of the original.
    times, window_ns, whole:
        As of :func:`mmreplay.address_space.assemble.assemble`.
    """
    place = np.full(who.n, -1, np.int64)
    place[index] = np.arange(len(index))
    here = (found.wake_ns >= window_ns[0]) & (found.wake_ns <= window_ns[1])
    inside = found.chosen(here)
    present = (place[inside.thread] >= 0) & (place[inside.waker] >= 0)
    kept = inside.chosen(present)
    if not whole:
        last = rows[plan.thread_first[1:] - 1][place[kept.thread]]
        kept = kept.chosen(useful(kept.thread, kept.waker, kept.after < last, who.n))
    left_out = len(inside) - len(kept)
    if not len(kept):
        return Inserted(plan, 0, left_out, 0)
    cuts = _Cuts(plan, kept, spread(kept, who), place, rows, times, whole)
    made, cyclic = _acyclic(cuts.insert())
    return Inserted(made, int(cuts.waits.waits.sum()) - cyclic, left_out, cyclic)


class _Cuts:
    """Where each point lies: its thread in the plan, and the operation that follows it."""

    def __init__(
        self,
        plan: Plan,
        found: Wakeups,
        waits: Waits,
        place: I64,
        rows: I64,
        times: Times,
        whole: bool,
    ) -> None:
        self.plan, self.waits, self.times, self.rows, self.whole = plan, waits, times, rows, whole
        of = waits.wakeup

        def side(waiter: I64, waker: I64) -> I64:
            return np.where(waits.waits, waiter[of], waker[of])

        self.thread = place[waits.thread]
        after = side(found.after, found.waker_after)
        self.cpu = side(found.cpu_ns, found.waker_cpu_ns)
        self.blocked = side(found.blocked_ns, found.waker_blocked_ns)
        self.wait = np.where(waits.waits, (found.on_ns - found.off_ns)[of], 0)
        # The first operation of the thread whose row is higher: rows ascend within a thread.
        stride = max(int(rows.max(initial=0)), int(after.max(initial=0))) + 2
        owner = np.repeat(np.arange(plan.n_threads), np.diff(plan.thread_first))
        self.next = np.searchsorted(
            owner * stride + rows, self.thread * stride + after, side="right"
        )
        #: Points in the order of the new plan, and the place of each point in it.
        self.order = np.lexsort((found.wake_ns[of], self.next, self.thread))
        self.rank = np.empty_like(self.order)
        self.rank[self.order] = np.arange(len(self.order))

    def insert(self) -> Plan:
        """The new plan."""
        plan, order = self.plan, self.order
        n, count = plan.n_ops, len(order)
        following = self.next[order]
        new = following + np.arange(count)
        is_old = np.ones(n + count, np.bool_)
        is_old[new] = False
        old = np.flatnonzero(is_old)
        before = np.searchsorted(self.thread[order], np.arange(plan.n_threads + 1), side="left")
        columns: dict[str, Any] = {name: _merged(plan, name, following, new) for name in _COLUMNS}
        beside = np.minimum(following, plan.thread_first[self.thread[order] + 1] - 1)
        columns["mm"][new] = plan.mm[beside]
        tails = self._divide(columns, old, new)
        waiting = np.concatenate([old[_owners(plan)], new[self.rank[self.waits.waiting]]])
        for_ = np.concatenate([old[plan.dep_op], new[self.rank[self.waits.for_]]])
        loops = plan.thread_loop >= 0
        return plan._replace(
            **columns,
            thread_first=plan.thread_first + before,
            thread_loop=np.where(loops, old[np.where(loops, plan.thread_loop, 0)], -1),
            thread_tail_cpu_ns=tails[0],
            thread_tail_blocked_ns=tails[1],
            mark_first=_first(old, np.diff(plan.mark_first), n + count),
            dep_first=_first(waiting, np.ones(len(waiting), np.int64), n + count),
            dep_op=for_[np.argsort(waiting, kind="stable")],
        )

    def _divide(self, columns: dict[str, Any], old: I64, new: I64) -> tuple[I64, I64]:
        """Cut the time of each gap at its points; returns the tails that are left."""
        plan, order = self.plan, self.order
        tail_cpu, tail_blocked = plan.thread_tail_cpu_ns.copy(), plan.thread_tail_blocked_ns.copy()
        first = plan.thread_first[:-1]
        at = self.rows[first] - self.times.first
        # What the part of the trace begins with was cut off the first gaps.
        cut_cpu = self.times.values[at, THINK] - plan.think_cpu_ns[first]
        cut_blocked = self.times.values[at, BLOCKED] - plan.think_blocked_ns[first]
        _divide(
            self.thread[order],
            self.next[order],
            self.cpu[order],
            self.blocked[order],
            self.wait[order],
            self.waits.waits[order],
            plan.thread_first,
            old,
            new,
            cut_cpu,
            cut_blocked,
            columns["think_cpu_ns"],
            columns["think_blocked_ns"],
            columns["sleep_ns"],
            tail_cpu,
            tail_blocked,
            self.whole,
        )
        return tail_cpu, tail_blocked


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
    """Points in order; ``think``, ``slept`` and ``sleep`` are columns of the new plan."""
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
            left_cpu, left_blocked = think[old[k]], slept[old[k]]
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
            think[old[k]], slept[old[k]] = left_cpu, left_blocked


def _merged(plan: Plan, name: str, following: I64, new: I64) -> NDArray[Any]:
    """A column with the points' defaults between the operations."""
    column = getattr(plan, name)
    out = np.empty(plan.n_ops + len(new), column.dtype)
    _spread(column, following, out)
    out[new] = _DEFAULTS.get(name, 0)
    return out


@native
def _spread(column: NDArray[Any], following: I64, out: NDArray[Any]) -> None:
    """Copy a column, leaving a place before each of the rows ``following``, which ascend."""
    at = 0
    for p in range(len(following)):
        for i in range(at, following[p]):
            out[i + p] = column[i]
        at = following[p]
    for i in range(at, len(column)):
        out[i + len(following)] = column[i]


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
