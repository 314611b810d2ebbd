"""Think and sleep of the planned operations, gathered from the chunks of a trace."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmreplay.address_space.rows import readable
from mmreplay.jit import native

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

#: Columns of the operations table that :class:`Times` reads.
COLUMNS: Final = (
    pl.col("begin_ns"),
    *(
        pl.col(name).fill_null(0)
        for name in ("duration_ns", "think_cpu_ns", "think_blocked_ns", "preempted_ns")
    ),
    pl.col("io_ns").fill_null(-1),
    pl.col("think_cpu_ns").is_null().alias("unsplit"),
)
#: Columns of ``Times.values``, ns: user time and sleep before the operation, sleep inside it
#: (-1 unknown), its begin, time runnable but not running.
THINK, BLOCKED, SLEEP, BEGIN, PREEMPTED, COUNT = range(6)


@native
def _fill(to: I64, begin: I64, think: I64, blocked: I64, preempted: I64, sleep: I64) -> None:
    for i in range(len(begin)):
        to[i, THINK] = max(think[i], 0)
        to[i, BLOCKED] = max(blocked[i], 0)
        to[i, SLEEP] = max(sleep[i], -1)
        to[i, BEGIN] = begin[i]
        to[i, PREEMPTED] = max(preempted[i], 0)


@native
def _follow(idle_since: I64, thread: I32, begin: I64, duration: I64) -> None:
    """Of several operations of a thread the last one stays."""
    for i in range(len(begin)):
        idle_since[thread[i]] = begin[i] + duration[i]


class Times:
    """Times of rows ``first..end`` (exclusive) of the operations table, by row.

    Where the trace could not split the time between two operations, the whole gap
    since the end of the thread's previous operation counts as CPU time (an upper
    bound; counted as ``wall_fallback``).
    """

    def __init__(self, threads: int, first: int, end: int) -> None:
        self.first = first
        self.end = end
        self.values = np.empty((end - first, COUNT), np.int64)
        self.wall_fallback = 0
        self._idle_since = np.full(threads, np.iinfo(np.int64).max, np.int64)

    def add(self, frame: pl.DataFrame, first_row: int, thread: I32) -> None:
        """The next rows of the table, with the thread of each."""
        begin, duration = frame["begin_ns"].to_numpy(), frame["duration_ns"].to_numpy()
        low = max(self.first - first_row, 0)
        high = min(self.end - first_row, frame.height)
        if low < high:
            to = self.values[first_row + low - self.first : first_row + high - self.first]
            names = ("think_cpu_ns", "think_blocked_ns", "preempted_ns", "io_ns")
            parts = (begin, *(frame[name].to_numpy() for name in names))
            _fill(to, *(readable(part[low:high]) for part in parts))
            unsplit = np.flatnonzero(frame["unsplit"].to_numpy()[low:high])
            if len(unsplit):
                before = self._idle(thread, begin + duration, low + unsplit)
                gap = begin[low + unsplit] - before
                to[unsplit, THINK] = (gap.clip(0) - to[unsplit, BLOCKED]).clip(0)
                self.wall_fallback += len(unsplit)
        _follow(self._idle_since, readable(thread), readable(begin), readable(duration))

    def _idle(self, thread: I32, end: I64, rows: I64) -> I64:
        """End of the previous operation of each row's thread; far in the future where none."""
        theirs = np.zeros(len(self._idle_since), np.bool_)
        theirs[thread[rows]] = True
        at = np.flatnonzero(theirs[thread])  # all rows of these threads
        order = at[np.argsort(thread[at], kind="stable")]
        before = np.empty(len(thread), np.int64)
        before[order[1:]] = end[order[:-1]]
        fresh = np.ones(len(order), np.bool_)
        fresh[1:] = thread[order[1:]] != thread[order[:-1]]
        first = order[fresh]
        before[first] = self._idle_since[thread[first]]
        return before[rows]
