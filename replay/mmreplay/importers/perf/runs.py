"""Compiled merge of a stream's runs: (time, position, code) of its entries in total order.

The order is by (time, place in the stream).  A run's records are looked at again, one by one,
as they come: of what waits for older ones only the runs are kept, whatever their length.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers.binary import bare, load_u16, load_u32
from mmreplay.importers.perf.walk import (
    R_AT,
    R_CODE,
    R_COLUMNS,
    R_FLOOR,
    R_LAST,
    R_TIME,
    entry_of,
    timed,
)
from mmreplay.jit import borrowing_helper, inlined_helper, native, prefetch

#: How far ahead of a run's place its records are asked for.
_AHEAD_BYTES: Final = 512
#: Columns that are places in the stream.
PLACES: Final = [R_AT, R_LAST]
#: Behind every time.
NEVER: Final = (1 << 63) - 1


def new_runs(rows: int) -> NDArray[np.int64]:
    """An empty table of runs."""
    return np.empty((rows, R_COLUMNS), np.int64)


@inlined_helper
def _older(runs: Any, one: Any, other: Any) -> Any:
    """Whether run ``one`` has the next entry of the two."""
    mine, its = runs[one * R_COLUMNS + R_TIME], runs[other * R_COLUMNS + R_TIME]
    return mine < its or (mine == its and one < other)


@borrowing_helper
def _sink(heap: Any, size: Any, place: Any, runs: Any) -> None:
    """Bring the run at ``place`` down to where no older one is below it."""
    run = heap[place]
    child = 2 * place + 1
    while child < size:
        if child + 1 < size and _older(runs, heap[child + 1], heap[child]):
            child += 1
        if not _older(runs, heap[child], run):
            break
        heap[place] = heap[child]
        place = child
        child = 2 * place + 1
    heap[place] = run


@native
def order(runs: Any, count: int, heap: Any) -> None:
    """Make ``heap`` (int64, at least ``count``) of the first ``count`` runs, oldest on top."""
    runs, heap = bare(runs), bare(heap)
    for run in range(count):
        heap[run] = run
    for place in range(count // 2 - 1, -1, -1):
        _sink(heap, count, place, runs)


@native
def merge(
    buffer: Any,
    end: int,
    layout: Any,
    runs: Any,
    heap: Any,
    size: int,
    limit: int,
    times: Any,
    positions: Any,
    codes: Any,
) -> Any:
    """The next entries that are older than ``limit``, as many as there is room for.

    Parameters
    ----------
    buffer, end, layout, runs:
        As for :func:`mmreplay.importers.perf.walk.walk`, which has found the runs; what was
        taken of them is marked in ``runs``.
    heap, size:
        As :func:`order` made it, and how many runs are left in it.
    times, positions, codes:
        Output (int64, int64, int32): ns, byte of the record, code.

    Returns
    -------
    (entries, runs left in the heap)
    """
    fixed = bare(layout.fixed)
    room = times.shape[0]
    runs, heap = bare(runs), bare(heap)
    times, positions, codes = bare(times), bare(positions), bare(codes)
    n = 0
    known = np.uint64(0)
    event = np.int64(-1)
    while n < room and size > 0:
        run = heap[0]
        row = run * R_COLUMNS
        time, at, code = runs[row + R_TIME], runs[row + R_AT], runs[row + R_CODE]
        if time >= limit:
            break
        last, floor = runs[row + R_LAST], runs[row + R_FLOOR]
        # As long as no other run has an older entry.
        stop = limit
        if size > 1:
            rival = heap[1]
            if size > 2 and _older(runs, heap[2], rival):
                rival = heap[2]
            stop = min(stop, runs[rival * R_COLUMNS + R_TIME] + (run < rival))
        while True:
            times[n] = time
            positions[n] = at
            codes[n] = code
            n += 1
            code = np.int64(-1)
            while code < 0 and at < last:
                here = np.int64(load_u16(buffer, at + 6))
                at += here
                # The walk has seen all this; but who writes into a file that is being read?
                if here < 8 or at > last:
                    break
                kind = np.int64(load_u32(buffer, at))
                here = np.int64(load_u16(buffer, at + 6))
                if kind >= 64 or here > end - at:
                    break
                prefetch(buffer, at + _AHEAD_BYTES)
                code, time, known, event = entry_of(
                    buffer, at, kind, here, fixed, layout, known, event
                )
            if code < 0:
                break
            code, time = timed(code, time, floor)
            if n >= room or time >= stop:
                break
        if code < 0:
            runs[row + R_AT] = -1
            size -= 1
            heap[0] = heap[size]
        else:
            runs[row + R_TIME], runs[row + R_AT], runs[row + R_CODE] = time, at, code
        if size > 0:
            _sink(heap, size, np.int64(0), runs)
    return n, size


@native
def drop_taken(runs: Any, count: int) -> Any:
    """Bring those of the first ``count`` runs that have entries to come to the front.

    Returns
    -------
    (how many they are, byte of the oldest record that is to come, or the largest integer)
    """
    runs = bare(runs)
    kept = 0
    oldest = np.int64(NEVER)
    for run in range(count):
        at = runs[run * R_COLUMNS + R_AT]
        if at < 0:
            continue
        oldest = min(oldest, at)
        if kept < run:
            for column in range(R_COLUMNS):
                runs[kept * R_COLUMNS + column] = runs[run * R_COLUMNS + column]
        kept += 1
    return kept, oldest
