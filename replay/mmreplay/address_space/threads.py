"""The threads of a plan, and which of them a thread id stood for at a time.

Thread ids are recycled: each row of a trace's threads table is one life of a tid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

#: PID_MAX_LIMIT of 64-bit kernels (include/linux/threads.h@6.18): larger tids are searched for.
_TABLE_TIDS: Final = 4 << 20


@dataclass(frozen=True)
class Threads:
    """Threads of the plan, clones behind the recorded ones."""

    tid: I64
    pid: I64
    space: I32
    group: I32
    group_names: tuple[str, ...]
    comm: tuple[str, ...]
    start_ns: I64  # -1: there before the recording
    end_ns: I64  # -1: outlived it
    tail_cpu_ns: I64
    tail_blocked_ns: I64
    clone_of: I32  # recorded thread that this one copies, -1
    copies: I32  # per recorded thread: 0 left out, 1 as recorded, k with k-1 clones
    first_clone: I32  # per recorded thread: index of its first clone

    @property
    def n(self) -> int:
        return len(self.tid)

    @property
    def n_recorded(self) -> int:
        return len(self.copies)

    @property
    def as_recorded(self) -> bool:
        """Whether every thread is there once."""
        return bool((self.copies == 1).all())


class Unlisted(Exception):
    """Operations have threads or address spaces that no other table of the trace has."""


def seen_threads(trace: Any) -> tuple[I64, int]:
    """Thread ids of the operations, and their highest address space (0 where there are none)."""
    query = trace.operations.select(
        tid=pl.col("tid").unique().implode(), space=pl.col("address_space").max()
    )
    tids, space = trace.collect(query).row(0)
    return np.array(tids, np.int64), int(space or 0)


def read_threads(trace: Any, seen: I64 | None = None) -> Threads:
    """The threads of a trace in the order of its table; tids only in operations are added.

    ``seen``: thread ids of the operations; None: look for them.
    """
    table = trace.threads.collect()
    known = table["tid"].to_numpy().astype(np.int64)
    unknown = np.setdiff1d(seen_threads(trace)[0] if seen is None else seen, known)
    extra = (
        trace.operations.filter(pl.col("tid").is_in(unknown.tolist()))
        .group_by("tid")
        .agg(pl.col("pid").first(), pl.col("address_space").first())
        .sort("tid")
        .collect()
        if len(unknown)
        else table.clear()
    )
    groups = [*table["group"].to_list(), *(["unknown"] * extra.height)]
    names = tuple(sorted(set(groups)))
    dense = {name: i for i, name in enumerate(names)}

    def both(column: str, default: int) -> I64:
        ours = [default if value is None else value for value in table[column].to_list()]
        return np.array([*ours, *([default] * extra.height)], np.int64)

    n = len(groups)
    return Threads(
        tid=np.concatenate([known, extra["tid"].to_numpy().astype(np.int64)]),
        pid=np.concatenate([table["pid"].to_numpy(), extra["pid"].to_numpy()]).astype(np.int64),
        space=np.concatenate(
            [table["address_space"].to_numpy(), extra["address_space"].to_numpy()]
        ).astype(np.int32),
        group=np.array([dense[name] for name in groups], np.int32),
        group_names=names,
        comm=(*table["comm"].to_list(), *([""] * extra.height)),
        start_ns=both("start_ns", -1),
        end_ns=both("end_ns", -1),
        tail_cpu_ns=both("tail_cpu_ns", 0),
        tail_blocked_ns=both("tail_blocked_ns", 0),
        clone_of=np.full(n, -1, np.int32),
        copies=np.ones(n, np.int32),
        first_clone=np.full(n, -1, np.int32),
    )


class Lives:
    """Looks up dense threads by (tid, time)."""

    def __init__(self, threads: Threads) -> None:
        tid = threads.tid[: threads.n_recorded]
        start = threads.start_ns[: threads.n_recorded]
        order = np.lexsort((start, tid))
        self._thread = order.astype(np.int32)
        self._start = start[order]
        distinct, first, lives = np.unique(tid[order], return_index=True, return_counts=True)
        self._tids = distinct
        self._only = self._thread[first]  # the first life
        self._recycled = distinct[lives > 1]
        self._tid = tid[order]
        self._table: I32 | None = None
        if len(distinct) and distinct[0] >= 0 and distinct[-1] < _TABLE_TIDS:
            self._table = np.full(int(distinct[-1]) + 2, -1, np.int32)
            self._table[distinct] = self._only

    def at(self, tids: NDArray[Any], ns: I64) -> I32:
        """Dense thread of each tid at a time, -1 where there is none."""
        if len(self._tids) == 0:
            return np.full(len(tids), -1, np.int32)
        if self._table is not None:
            last = len(self._table) - 1
            found = self._table[np.where((tids < 0) | (tids > last), last, tids)]
        else:
            place = np.searchsorted(self._tids, tids).clip(0, len(self._tids) - 1)
            found = np.where(self._tids[place] == tids, self._only[place], -1).astype(np.int32)
        if len(self._recycled):
            rows = np.flatnonzero(np.isin(tids, self._recycled))
            if len(rows):
                found[rows] = self._last_begun(tids[rows].astype(np.int64), ns[rows], found[rows])
        return found

    def _last_begun(self, tids: I64, ns: I64, first: I32) -> I32:
        """The latest life begun by then, else the first one."""
        n = len(self._tid)
        tid = np.concatenate([self._tid, tids])
        at = np.concatenate([self._start, ns])
        asks = np.concatenate([np.zeros(n, np.bool_), np.ones(len(tids), np.bool_)])
        order = np.lexsort((asks, at, tid))
        # position in (tid, start) order of the last life at or before each query
        before = np.cumsum(~asks[order]) - 1
        life = np.empty(len(order), np.int64)
        life[order] = before
        life = life[n:]
        same = (life >= 0) & (self._tid[life] == tids)
        return np.where(same, self._thread[life], first).astype(np.int32)
