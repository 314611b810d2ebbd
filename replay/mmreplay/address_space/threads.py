"""The threads of a plan, and which of them a thread id stood for at a time.

Thread ids are recycled: each row of a trace's threads table is one life of a tid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.trace.arrays import column_batches, whole_columns

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

#: PID_MAX_LIMIT of 64-bit kernels (include/linux/threads.h@6.18): larger tids are searched for.
_TABLE_TIDS: Final = 4 << 20
#: Rows looked through at a time for thread ids.
_SEEN_ROWS: Final = 1 << 16


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


_TABLE: Final = (
    "tid", "pid", "address_space", "start_ns", "end_ns", "comm", "group", "tail_cpu_ns",
    "tail_blocked_ns",
)  # fmt: skip


def seen_threads(trace: Any) -> tuple[I64, int]:
    """Thread ids of the operations, and their highest address space (0 where there are none)."""
    tids: list[NDArray[Any]] = [np.zeros(0, np.int64)]
    space = 0
    for batch in column_batches(trace, "operations", ("tid", "address_space"), _SEEN_ROWS):
        tid = batch["tid"].values
        low, high = int(tid.min(initial=0)), int(tid.max(initial=0))
        if high - low < _TABLE_TIDS:
            there = np.zeros(high - low + 1, np.bool_)
            there[tid - low] = True
            tids.append(np.flatnonzero(there) + low)
        else:
            tids.append(np.unique(tid))
        space = max(space, int(batch["address_space"].values.max(initial=0)))
    return np.unique(np.concatenate(tids)).astype(np.int64), space


def read_threads(trace: Any, seen: I64 | None = None) -> Threads:
    """The threads of a trace in the order of its table; tids only in operations are added.

    ``seen``: thread ids of the operations; None: look for them.
    """
    table = whole_columns(trace, "threads", _TABLE)
    known = table["tid"].values.astype(np.int64)
    unknown = np.setdiff1d(seen_threads(trace)[0] if seen is None else seen, known)
    pid, space = _first_seen(trace, unknown)
    group, comm = table["group"], table["comm"]
    names = tuple(sorted({*group.words, *(["unknown"] if len(unknown) else [])}))
    dense = np.array([names.index(name) for name in (*group.words, *names[:1])], np.int32)

    def both(column: str, default: int) -> I64:
        ours = table[column].filled(default).astype(np.int64)
        return np.concatenate([ours, np.full(len(unknown), default, np.int64)])

    n = len(known) + len(unknown)
    return Threads(
        tid=np.concatenate([known, unknown]),
        pid=np.concatenate([table["pid"].values.astype(np.int64), pid]),
        space=np.concatenate([table["address_space"].values.astype(np.int32), space]),
        group=np.concatenate(
            [
                dense[group.values],
                np.full(len(unknown), names.index("unknown") if len(unknown) else 0, np.int32),
            ]
        ),
        group_names=names,
        comm=(*(comm.words[i] for i in comm.values.tolist()), *([""] * len(unknown))),
        start_ns=both("start_ns", -1),
        end_ns=both("end_ns", -1),
        tail_cpu_ns=both("tail_cpu_ns", 0),
        tail_blocked_ns=both("tail_blocked_ns", 0),
        clone_of=np.full(n, -1, np.int32),
        copies=np.ones(n, np.int32),
        first_clone=np.full(n, -1, np.int32),
    )


def _first_seen(trace: Any, tids: I64) -> tuple[I64, I32]:
    """Process and address space of the first operation of each thread, which all have some."""
    pid, space = np.zeros(len(tids), np.int64), np.zeros(len(tids), np.int32)
    if len(tids) == 0:
        return pid, space
    missing = np.ones(len(tids), np.bool_)
    names = ("tid", "pid", "address_space")
    for batch in column_batches(trace, "operations", names, _SEEN_ROWS):
        tid, first = np.unique(batch["tid"].values, return_index=True)
        place = np.searchsorted(tid, tids).clip(0, len(tid) - 1)
        new = missing & (tid[place] == tids)
        pid[new] = batch["pid"].values[first[place[new]]]
        space[new] = batch["address_space"].values[first[place[new]]]
        missing &= ~new
        if not missing.any():
            break
    return pid, space


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
        #: Thread by tid, -1 where there is none; the last entry stands for all that are beyond.
        self.table: I32 = np.full(1, -1, np.int32)
        in_table = len(distinct) > 0 and distinct[0] >= 0 and distinct[-1] < _TABLE_TIDS
        if in_table:
            self.table = np.full(int(distinct[-1]) + 2, -1, np.int32)
            self.table[distinct] = self._only
        #: Whether ``table`` does not tell the thread of every tid at any time.
        self.searched = len(distinct) > 0 and (not in_table or len(self._recycled) > 0)

    def at(self, tids: NDArray[Any], ns: I64) -> I32:
        """Dense thread of each tid at a time, -1 where there is none."""
        last = len(self.table) - 1
        found = self.table[np.where((tids < 0) | (tids > last), last, tids)]
        if self.searched and last == 0:
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
