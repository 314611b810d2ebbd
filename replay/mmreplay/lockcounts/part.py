"""A part of a plan: some of its operations, in the same order, over the same objects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import Plan

#: The columns that have one entry for each operation.
_PER_OP = Plan._fields[Plan._fields.index("op") : Plan._fields.index("row") + 1]


def select(plan: Plan, keep: NDArray[np.bool_]) -> Plan:
    """The plan of the operations where ``keep`` (N,) is true; waits for others are dropped."""
    thread = np.repeat(np.arange(plan.n_threads), np.diff(plan.thread_first))
    kept = np.flatnonzero(keep)
    position = np.full(plan.n_ops, -1, np.int64)
    position[kept] = np.arange(len(kept))
    per_thread = np.bincount(thread[kept], minlength=plan.n_threads)
    marks = _rows(plan.mark_first, kept)
    deps = _rows(plan.dep_first, kept)
    dep_op = position[plan.dep_op[deps]]
    owner = np.repeat(np.arange(len(kept)), np.diff(plan.dep_first)[kept])
    inside = dep_op >= 0
    return plan._replace(
        **{name: getattr(plan, name)[kept] for name in _PER_OP},
        thread_first=np.concatenate([[0], np.cumsum(per_thread)]).astype(np.int64),
        thread_loop=np.full(plan.n_threads, -1, np.int64),
        mark_first=_first(np.diff(plan.mark_first)[kept]),
        mark_vma=plan.mark_vma[marks],
        mark_set=plan.mark_set[marks],
        dep_first=_first(np.bincount(owner[inside], minlength=len(kept))),
        dep_op=dep_op[inside],
    )


def _rows(first: NDArray[np.int64], kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of the kept operations' entries in a list per operation."""
    if len(kept) == 0:
        return np.zeros(0, np.int64)
    return np.concatenate([np.arange(first[k], first[k + 1]) for k in kept]).astype(np.int64)


def _first(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
