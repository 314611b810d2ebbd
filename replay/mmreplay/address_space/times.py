"""Think and sleep of the planned operations, gathered from the chunks of a trace."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.jit import native
from mmreplay.schema import OpKind
from mmreplay.trace.arrays import Column, is_known

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

#: Columns of the operations table that :class:`Times` reads.
COLUMNS: Final = (
    "begin_ns", "kind", "duration_ns", "think_cpu_ns", "think_blocked_ns", "preempted_ns", "io_ns",
)  # fmt: skip
#: Columns of ``Times.values``, ns: user time and sleep before the operation, sleep inside it
#: (-1 unknown).
THINK, BLOCKED, SLEEP, COUNT = range(4)
_NEVER: Final = np.iinfo(np.int64).max
_SNAPSHOT: Final = int(OpKind.SNAPSHOT_VMA)


def readable(values: NDArray[Any]) -> NDArray[Any]:
    """For compiled code, which is compiled anew where an array may be written to."""
    values = np.ascontiguousarray(values).view()
    values.flags.writeable = False
    return values


@native
def _fill(
    to: I64,
    low: int,
    thread: I32,
    kind: U8,
    begin: I64,
    think: I64,
    think_known: U8,
    blocked: I64,
    blocked_known: U8,
    preempted: I64,
    preempted_known: U8,
    sleep: I64,
    sleep_known: U8,
    first: I64,
    unsplit: I64,
) -> int:
    """Rows from ``low`` on; returns how many have no ``think`` (and which, from ``low``)."""
    n = 0
    for k in range(len(to)):
        i = low + k
        if is_known(think_known, i):
            to[k, THINK] = max(think[i], 0)
        else:
            to[k, THINK] = 0
            unsplit[n] = k
            n += 1
        to[k, BLOCKED] = max(blocked[i], 0) if is_known(blocked_known, i) else 0
        to[k, SLEEP] = max(sleep[i], -1) if is_known(sleep_known, i) else -1
        who = thread[i]
        if who >= 0 and first[who, 0] == _NEVER and kind[i] != _SNAPSHOT:
            first[who, 0] = begin[i]
            first[who, 1] = max(preempted[i], 0) if is_known(preempted_known, i) else 0
    return n


@native
def _follow(idle_since: I64, thread: I32, begin: I64, duration: I64, duration_known: U8) -> None:
    """Of several operations of a thread the last one stays."""
    for i in range(len(begin)):
        took = duration[i] if is_known(duration_known, i) else 0
        idle_since[thread[i]] = begin[i] + took


class Times:
    """Times of rows ``first..end`` (exclusive) of the operations table, by row.

    ``begins`` (threads, 2): of each thread's first operation among them, when it begins and how
    long before the thread was runnable but not running, ns.  ``span``: when the first of all
    rows begins, and the last.

    Where the trace could not split the time between two operations, the whole gap
    since the end of the thread's previous operation counts as CPU time (an upper
    bound; counted as ``wall_fallback``).
    """

    def __init__(self, threads: int, first: int, end: int) -> None:
        self.first = first
        self.end = end
        self.values = np.empty((end - first, COUNT), np.int64)
        self.begins = np.full((threads, 2), _NEVER, np.int64)
        self.span = (0, 0)
        self.wall_fallback = 0
        self._idle_since = np.full(threads, _NEVER, np.int64)

    def add(self, columns: dict[str, Column], first_row: int, thread: I32) -> None:
        """The next rows of the table, with the thread of each."""
        begin, duration = columns["begin_ns"].values, columns["duration_ns"]
        low = max(self.first - first_row, 0)
        high = min(self.end - first_row, len(begin))
        thread = readable(thread)
        if low < high:
            at = first_row + low - self.first
            to = self.values[at : at + high - low]
            self.span = (self.span[0] if at else int(begin[low]), int(begin[high - 1]))
            names = ("think_cpu_ns", "think_blocked_ns", "preempted_ns", "io_ns")
            unsplit = np.empty(high - low, np.int64)
            n = _fill(
                to, low, thread, columns["kind"].values, begin,
                *(part for name in names for part in columns[name][:2]), self.begins, unsplit,
            )  # fmt: skip
            if n:
                unsplit = unsplit[:n]
                before = self._idle(thread, begin + duration.filled(0), low + unsplit)
                gap = begin[low + unsplit] - before
                to[unsplit, THINK] = (gap.clip(0) - to[unsplit, BLOCKED]).clip(0)
                self.wall_fallback += n
        _follow(self._idle_since, thread, begin, duration.values, duration.known)

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
