"""Which of a thread's sleep before an operation was a wait for another thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mmreplay.trace.store import Trace

I64 = NDArray[np.int64]


def waits(trace: Trace, tids: I64, roles: I64, thread: I64, row: I64) -> tuple[I64, I64]:
    """The recorded wake-ups as times before operations.

    Parameters
    ----------
    tids, roles:
        Ascending tids of the threads, and the role of each.
    thread, row:
        (n,) of each operation that is learnt: place of its tid, and its row of the trace.

    Returns
    -------
    waited, waker:
        (n,) ns that its thread slept before it until one of ``tids`` woke it, and the role of
        who ended the longest of these sleeps, -1 where there was none.
    """
    import polars as pl

    waited, waker = np.zeros(len(row), np.int64), np.full(len(row), -1, np.int64)
    if not trace.has("wakeups") or not len(row):
        return waited, waker
    known = pl.col("tid").is_in(tids.tolist()) & pl.col("waker").is_in(tids.tolist())
    table = trace.wakeups.filter(known).select(
        "tid", "waker", pl.col("after").fill_null(-1), took=pl.col("on_ns") - pl.col("off_ns")
    )
    found = table.sort("took").collect()
    if not found.height:
        return waited, waker
    who, by, after, took = (found[name].to_numpy() for name in ("tid", "waker", "after", "took"))
    place = np.searchsorted(tids, who)
    order = np.lexsort((row, thread))
    stride = int(max(row.max(), after.max())) + 2
    at = np.searchsorted(thread[order] * stride + row[order], place * stride + after, side="right")
    inside = at < len(order)
    inside[inside] = thread[order[at[inside]]] == place[inside]
    to = order[at[inside]]
    np.add.at(waited, to, took[inside])
    waker[to] = roles[np.searchsorted(tids, by[inside])]  # the last one written is the longest
    return waited, waker
