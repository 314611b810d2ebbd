"""Which operation must come after which of another thread: what the memory map itself orders."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmreplay.jit import njit

I64 = NDArray[np.int64]


def find_edges(owner: I64, low: I64, high: I64, shape: I64, threads: int) -> I64:
    """(m, 2): row, and the row of another thread that it comes after.

    Rows are in recorded order.  A row that changes the map on [low, high) (``shape`` 1)
    comes after the last uses and changes there; a use comes after the last change.  Of each
    other thread only the last such row is an edge, and none that an earlier row of the same
    thread has waited for already.
    """
    points = np.unique(np.concatenate([low, high]))
    first = np.searchsorted(points, low)
    end = np.searchsorted(points, high)
    out = np.zeros((max(16, 4 * len(owner)), 2), np.int64)
    n = _edges(
        owner.astype(np.int64),
        first.astype(np.int64),
        end.astype(np.int64),
        shape.astype(np.int64),
        np.full((len(points), 3), -1, np.int64),
        np.full((threads, threads), -1, np.int64),
        np.full(threads, -1, np.int64),
        out,
    )
    return out[:n]


@njit
def _edges(
    owner: I64,
    first: I64,
    end: I64,
    shape: I64,
    pieces: I64,  # per piece of address space: last change, last use, last use by another thread
    seen: I64,  # (thread, thread): the last row of the second that the first waited for
    wanted: I64,  # scratch, per thread
    out: I64,
) -> int:
    n = 0
    for k in range(len(owner)):
        me = owner[k]
        wanted[:] = -1
        for piece in range(first[k], end[k]):
            for column in range(3 if shape[k] else 1):
                before = pieces[piece, column]
                if before >= 0 and owner[before] != me:
                    wanted[owner[before]] = max(wanted[owner[before]], before)
            if shape[k]:
                pieces[piece, 0] = k
                pieces[piece, 1] = pieces[piece, 2] = -1
            else:
                last = pieces[piece, 1]
                if last >= 0 and owner[last] != me:
                    pieces[piece, 2] = last
                pieces[piece, 1] = k
        for other in range(len(wanted)):
            row = wanted[other]
            if row > seen[me, other] and n < len(out):
                seen[me, other] = row
                out[n, 0], out[n, 1] = k, row
                n += 1
    return n
