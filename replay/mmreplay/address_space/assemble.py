"""From the pass's columns in order of effect to the thread-major :class:`Plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmreplay.address_space.plan import SCALE_ONE, Plan, PlanOp
from mmreplay.address_space.plan_state import Out, Work
from mmreplay.address_space.rows import Threads
from mmreplay.jit import njit

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

#: Share of a thread's operations before its loop point (the engine's window begins there too).
WARM_UP: float = 0.1


@njit
def _gather(
    order: I64, first: I64, values: NDArray[Any], out_first: I64, out: NDArray[Any]
) -> None:
    """CSR rows in another order; ``out`` has the length of ``values``."""
    at = 0
    for k in range(len(order)):
        out_first[k] = at
        for j in range(first[order[k]], first[order[k] + 1]):
            out[at] = values[j]
            at += 1
    out_first[len(order)] = at


def gather(order: I64, first: I64, values: NDArray[Any]) -> tuple[I64, NDArray[Any]]:
    """The CSR lists of rows ``order``."""
    size = int((first[order + 1] - first[order]).sum()) if len(order) else 0
    out_first = np.zeros(len(order) + 1, np.int64)
    out = np.zeros(size, values.dtype)
    _gather(order, first, values, out_first, out)
    return out_first, out


def dense(values: NDArray[Any], none: int) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Numbers 0.. for the distinct values but ``none`` (-1), and the values by number."""
    some = values[values != none]
    if len(some) == 0:
        return np.full(len(values), -1, np.int32), some
    top = int(some.max())
    if top > 64 * len(values) + (1 << 16) or int(some.min()) < 0:  # sparse identities: sort
        distinct = np.unique(some)
        number = np.searchsorted(distinct, values).astype(np.int32)
        number[values == none] = -1
        return number, distinct
    seen = np.zeros(top + 2, np.bool_)  # the last entry stands for "none"
    seen[some] = True
    distinct = np.flatnonzero(seen).astype(values.dtype)
    table = np.full(top + 2, -1, np.int32)
    table[distinct] = np.arange(len(distinct), dtype=np.int32)
    return table[np.where(values == none, top + 1, values)], distinct


@dataclass(frozen=True)
class Times:
    """Times of the plan's operations, in the order of ``rows``."""

    think_cpu_ns: I64
    think_blocked_ns: I64
    sleep_ns: I64
    begin_ns: I64
    preempted_ns: I64
    wall_fallback: int  # operations whose think time is wall time


def read_times(trace: Any, row_first: int, row_end: int) -> Times:
    """Think and sleep of rows ``row_first..row_end`` (exclusive) of the operations table.

    Where the trace could not split the time between two operations, the whole gap
    since the end of the thread's previous operation counts as CPU time (an upper
    bound; counted as ``think_wall_fallback``).
    """
    lazy = trace.operations.slice(row_first, row_end - row_first).select(
        "begin_ns", "duration_ns", "think_cpu_ns", "think_blocked_ns", "io_ns", "preempted_ns",
        "tid",
    )  # fmt: skip
    frame = lazy.with_columns(
        gap=(
            pl.col("begin_ns")
            - (pl.col("begin_ns") + pl.col("duration_ns").fill_null(0)).shift(1).over("tid")
        )
        .fill_null(0)
        .clip(0)
    ).collect()
    missing = frame["think_cpu_ns"].is_null()
    cpu = frame["think_cpu_ns"].fill_null(
        (frame["gap"] - frame["think_blocked_ns"].fill_null(0)).clip(0)
    )

    def ns(column: pl.Series) -> I64:
        return column.to_numpy().astype(np.int64).clip(0)

    return Times(
        think_cpu_ns=ns(cpu),
        think_blocked_ns=ns(frame["think_blocked_ns"].fill_null(0)),
        sleep_ns=frame["io_ns"].fill_null(-1).to_numpy().astype(np.int64).clip(-1),
        begin_ns=frame["begin_ns"].to_numpy().astype(np.int64),
        preempted_ns=ns(frame["preempted_ns"].fill_null(0)),
        wall_fallback=int(missing.sum()),
    )


def loop_points(
    thread_first: I64, op: NDArray[np.uint8], ended: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Operation to continue at after a thread's last one; -1 where the thread ends.

    A thread loops from behind its warm-up (its first tenth, its start and its exec)
    unless it ended long before the window does, or its last operation ends an
    address space: those happen once.
    """
    n = len(thread_first) - 1
    loop = np.full(n, -1, np.int64)
    once = (PlanOp.THREAD_START, PlanOp.EXEC, PlanOp.VFORK_EXIT)
    last_words = (PlanOp.PROCESS_EXIT, PlanOp.EXEC, PlanOp.VFORK_EXIT)
    for t in range(n):
        first, end = int(thread_first[t]), int(thread_first[t + 1])
        if end - first < 2 or ended[t] or op[end - 1] in last_words:
            continue
        at = first + int(WARM_UP * (end - first))
        special = np.flatnonzero(np.isin(op[first:end], once))
        if len(special):
            at = max(at, first + int(special[-1]) + 1)
        if at < end:
            loop[t] = at
    return loop


def assemble(
    out: Out,
    w: Work,
    n: int,
    tables: int,
    slots: int,
    threads: Threads,
    times: Times,
    row_first: int,
    window_ns: tuple[int, int],
    whole: bool,
) -> tuple[Plan, I32, I64]:
    """The plan, its threads (index into ``threads``) and its address spaces.

    ``window_ns``: begin and end of the planned part; ``whole``: it reaches to the
    end of the trace, so the threads' tails count.
    """
    columns = {name: np.ascontiguousarray(out.ops[name][:n]) for name in out.ops.dtype.names or ()}
    marks_first = np.concatenate([[0], columns["mark_end"]]).astype(np.int64)
    deps_first = np.concatenate([[0], columns["dep_end"]]).astype(np.int64)
    order = np.lexsort((columns["row"], columns["thread"]))
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n)
    column = {name: values[order] for name, values in columns.items()}
    per_thread = np.bincount(column["thread"], minlength=threads.n)
    who = np.flatnonzero(per_thread)
    counts = per_thread[who]
    thread_first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    index = column["row"] - row_first
    cpu = times.think_cpu_ns[index]
    blocked = times.think_blocked_ns[index].copy()
    cpu = cpu.copy()
    mark_first, mark_vma = gather(order, marks_first, np.ascontiguousarray(out.marks["vma"]))
    _, mark_set = gather(order, marks_first, out.marks["set"].astype(np.uint8))
    dep_first, dep_effect = gather(order, deps_first, out.deps)
    # dense numbers for everything that the plan mentions
    both = np.concatenate([column["vma"], mark_vma])
    vma, uids = dense(both, -1)
    mm_pair, spaces = dense(np.concatenate([column["mm"], column["child_mm"]]).astype(np.int64), -1)
    mm, child_mm = mm_pair[:n], mm_pair[n:]
    file, file_ids = dense(column["file"], 0)
    table, table_ids = dense(column["table"], -1)
    anon, anon_ids = dense(column["anon_slot"], -1)
    op_vma, marked = vma[:n], vma[n:]
    vma_mm = np.zeros(len(uids), np.int32)
    owner = np.repeat(np.arange(n), np.diff(mark_first))
    vma_mm[marked] = mm[owner]
    # a fork marks VMAs of the parent, everything else its own: the mm of the row either way
    vma_mm[op_vma[op_vma >= 0]] = mm[op_vma >= 0]
    begin = times.begin_ns[index]
    starts = thread_first[:-1]
    lead = cpu[starts] + blocked[starts] + times.preempted_ns[index[starts]]
    offset = begin[starts] - lead - window_ns[0]
    # a think that began before the window: only its part inside counts
    deficit = np.maximum(-offset, 0)
    take = np.minimum(deficit, blocked[starts])
    blocked[starts] -= take
    cpu[starts] -= np.minimum(deficit - take, cpu[starts])
    ended = (threads.end_ns[who] >= 0) & (
        threads.end_ns[who] < window_ns[1] - (window_ns[1] - window_ns[0]) // 20
    )
    users = np.zeros(len(spaces), np.int32)
    pairs, _ = dense(column["thread"].astype(np.int64) * len(spaces) + mm, -1)[::-1]
    np.add.at(users, pairs % max(len(spaces), 1), 1)
    tail = np.where(whole, 1, 0)
    plan = Plan(
        thread_first=thread_first,
        thread_offset_ns=np.maximum(offset, 0),
        thread_group=threads.group[who].astype(np.int32),
        thread_loop=loop_points(thread_first, column["op"], ended),
        thread_tail_cpu_ns=threads.tail_cpu_ns[who] * tail,
        thread_tail_blocked_ns=threads.tail_blocked_ns[who] * tail,
        op=column["op"].astype(np.uint8),
        mm=mm,
        child_mm=child_mm,
        traits=column["traits"],
        think_cpu_ns=cpu,
        think_blocked_ns=blocked,
        sleep_ns=times.sleep_ns[index],
        pages=column["pages"],
        vmas=column["vmas"],
        tables=column["tables"],
        vma=op_vma,
        anon_slot=anon,
        table=table,
        file=file,
        first_page=column["first_page"],
        last_page=column["last_page"],
        vma_first_page=column["vma_first_page"],
        vma_last_page=column["vma_last_page"],
        scale=np.full(n, SCALE_ONE, np.int32),
        row=np.where(column["clone"] == 0, column["row"], -1),
        mark_first=mark_first,
        mark_vma=marked,
        mark_set=mark_set,
        dep_first=dep_first,
        dep_op=rank[dep_effect],
        vma_mm=vma_mm,
        anon_initial=w.bits["initial"][anon_ids],
        table_initial=w.table_initial[table_ids],
        mm_users=users,
        n_files=len(file_ids),
    )
    return plan, who.astype(np.int32), spaces
