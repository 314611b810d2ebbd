"""Choosing the parts of a long trace that stand for the whole."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import polars as pl

from mmreplay.errors import UserError

#: Share of a recording left out at either end: start-up and tear-down.
EDGE: float = 0.05
#: Slices that a window is compared by.
_SLICES: int = 8


def choose_windows(trace: Any, max_ops: int = 1_000_000, count: int = 5) -> list[tuple[int, int]]:
    """Up to ``count`` windows (first row, end row) of up to ``max_ops`` operations.

    A trace that fits is one window, whole.  Otherwise the first and last 5 % of the
    rows are left out, the rest is cut into windows, and those are taken whose rate
    and mix of operations change least inside (stationarity): the score is the
    variation of the rate between eight slices plus the largest shift of any kind's
    share.  Of two equal ones the earlier wins; the result is in order.

    Raises
    ------
    UserError
        ``max_ops`` or ``count`` below 1, or a trace without operations.
    """
    if max_ops < 1 or count < 1:
        raise UserError(f"{count} windows of {max_ops} operations", fix="both must be at least 1")
    total = int(trace.operations.select(pl.len()).collect().item())
    if total == 0:
        raise UserError("the trace has no operations", fix="record page faults and mmap calls")
    if total <= max_ops:
        return [(0, total)]
    low = int(total * EDGE)
    high = total - low
    size = min(max_ops, high - low)
    candidates = range(low, high - size + 1, max(size, 1))
    scored = []
    for first in candidates:
        scored.append((_unsteadiness(trace, first, first + size), first))
    chosen = sorted(sorted(scored)[:count], key=lambda item: item[1])
    return [(first, first + size) for _, first in chosen]


def _unsteadiness(trace: Any, first: int, end: int) -> float:
    frame = trace.operations.slice(first, end - first).select("begin_ns", "kind").collect()
    begin = frame["begin_ns"].to_numpy()
    kind = frame["kind"].to_numpy()
    edges = np.linspace(0, len(begin), _SLICES + 1).astype(np.int64)
    spans = np.maximum(np.diff(begin[np.minimum(edges, len(begin) - 1)]), 1)
    rate = np.diff(edges) / spans
    shares = np.array(
        [
            np.bincount(kind[a:b], minlength=256) / max(b - a, 1)
            for a, b in itertools.pairwise(edges)
        ]
    )
    variation = float(np.std(rate) / np.mean(rate)) if len(rate) else 0.0
    return variation + float((shares.max(axis=0) - shares.min(axis=0)).max())
