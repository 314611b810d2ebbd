"""Scaling out and in: a thread group with more or fewer threads, planned again.

Clones repeat the operations of a recorded thread at the same times.  Their
mappings are placed by the map's own search, ranges that only the recorded thread
used get a copy, everything else stays shared.  Where the trace says who woke whom, clones wait
for each other as their originals did (:mod:`.wakeups`).  Else what threads waited for each other
(barriers, queues) is not known, and what comes out is an **upper bound: memory map only**.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmreplay.address_space.mappings import Mappings
from mmreplay.address_space.plan import PlanOp
from mmreplay.address_space.threads import Threads, read_threads
from mmreplay.errors import UserError, closest
from mmreplay.schema import OpKind

#: Mappings above this address count for where clones are placed; the program and
#: its heap lie below (x86-64 and arm64 place mmaps in the upper half of user space).
_MMAP_AREA: int = 1 << 44
#: Thread (index in the order of the threads table), first page, end page.
PrivateRange = tuple[int, int, int]
#: Clones are placed this far below the lowest recorded mapping of that area.
_MARGIN: int = 1 << 30


def scale_group(trace: Any, group: str, n: int) -> Threads:
    """Threads of the trace with ``n`` of ``group``, for ``build_plan(threads=...)``.

    Below the recorded number the first ``n`` of the group stay (in the order of the
    threads table); above it, the recorded threads are cloned in turn.

    Raises
    ------
    UserError
        No such group, or ``n`` below 1 or above 65536.
    """
    if not 1 <= n <= 1 << 16:
        raise UserError(f"{n} threads", fix="choose 1 to 65536")
    who = read_threads(trace)
    if group not in who.group_names:
        raise UserError(
            f'no thread group "{group}"{closest(group, who.group_names)}',
            fix=f"the groups are {', '.join(who.group_names)}",
        )
    members = np.flatnonzero(who.group == who.group_names.index(group))
    copies = np.ones(who.n, np.int32)
    if n <= len(members):
        copies[members[n:]] = 0
        return replace(who, copies=copies)
    whole, rest = divmod(n, len(members))
    copies[members] = whole
    copies[members[:rest]] += 1
    clones = np.repeat(np.arange(who.n), copies - 1)
    first = np.full(who.n, -1, np.int32)
    first_of = np.concatenate([[0], np.cumsum(copies - 1)[:-1]]) + who.n
    first[copies > 1] = first_of[copies > 1]

    def both(values: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([values, values[clones]])

    return Threads(
        tid=both(who.tid),
        pid=both(who.pid),
        space=both(who.space),
        group=both(who.group),
        group_names=who.group_names,
        comm=(*who.comm, *(who.comm[t] for t in clones)),
        start_ns=both(who.start_ns),
        end_ns=both(who.end_ns),
        tail_cpu_ns=both(who.tail_cpu_ns),
        tail_blocked_ns=both(who.tail_blocked_ns),
        clone_of=np.concatenate([who.clone_of, clones.astype(np.int32)]),
        copies=copies,
        first_clone=first,
    )


def private_ranges(bundle: Any) -> list[PrivateRange]:
    """VMAs that one thread alone faulted in.

    ``bundle`` is the plan of the trace as recorded.
    """
    plan = bundle.plan
    owner = np.repeat(np.arange(plan.n_threads), np.diff(plan.thread_first))
    faults = np.flatnonzero((plan.op == PlanOp.FAULT) & (plan.vma >= 0))
    vma = plan.vma[faults]
    first_user = np.full(len(plan.vma_mm), -1, np.int64)
    first_user[vma[::-1]] = owner[faults][::-1]
    shared = np.zeros(len(plan.vma_mm), np.bool_)
    shared[vma[owner[faults] != first_user[vma]]] = True
    low = np.full(len(plan.vma_mm), np.iinfo(np.int64).max)
    high = np.full(len(plan.vma_mm), -1, np.int64)
    np.minimum.at(low, vma, plan.first_page[faults])
    np.maximum.at(high, vma, plan.last_page[faults])
    mine = np.flatnonzero((first_user >= 0) & ~shared)
    order = mine[np.lexsort((mine, first_user[mine]))]
    return [(bundle.threads[first_user[v]].index, int(low[v]), int(high[v]) + 1) for v in order]


def clone_base(trace: Any, mappings: Mappings, spaces: int) -> NDArray[np.int64]:
    """(spaces,) address below which a recording maps nothing in the mmap area."""
    base = np.full(spaces, 1 << 46, np.int64)
    lowest = (
        trace.operations.filter(
            pl.col("kind").is_in([int(OpKind.MMAP), int(OpKind.MREMAP), int(OpKind.SHMAT)])
            & pl.col("address").is_not_null()
            & (pl.col("address") > _MMAP_AREA)
            & (pl.col("address") < (1 << 47))
        )
        .group_by("address_space")
        .agg(pl.col("address").min())
        .collect()
    )
    for space, address in lowest.iter_rows():
        base[int(space)] = min(int(base[int(space)]), int(address))
    inside = (mappings.start > _MMAP_AREA) & (mappings.start < 1 << 47)
    np.minimum.at(base, mappings.space[inside], mappings.start[inside])
    aligned: NDArray[np.int64] = (base - _MARGIN) & ~np.int64((1 << 21) - 1)
    return aligned
