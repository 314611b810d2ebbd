"""Phases of a recording: stretches of time in which its threads do the same at the same pace.

A chain knows what follows what, not when.  A program that starts up, works and tears down is
therefore cut where the rates of its kinds of operations change, and each part is learnt by
itself.  Cuts are found one by one (binary segmentation, Scott and Knott 1974): the one that
gains most likelihood of Poisson rates that are constant between cuts.
"""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

#: The recording is looked at in so many parts with the same number of operations.
_PARTS: Final = 256
#: Phases at most, and the operations that one has at least.
_MOST, _LEAST_ROWS = 16, 256
#: Kinds of operations that are told apart, the most frequent ones.
_KINDS: Final = 48
#: Rates on the two sides of a cut differ by this share of their sum at least ...
_DIFFERS: Final = 0.2
#: ... and the likelihood gains so much for each rate, in units of the rates' own unrest.
_GAINS: Final = 4.0


def phases(begin_ns: I64, kind: I64, first_ns: int, last_ns: int) -> I64:
    """Where one phase ends and the next begins.

    Parameters
    ----------
    begin_ns, kind:
        (n,) when each operation began, ascending, and what it is (of which role, at which
        place): any number.
    first_ns, last_ns:
        The time in which they are.

    Returns
    -------
    edges:
        (phases + 1,) ns, from ``first_ns`` to ``last_ns``.
    """
    n = len(begin_ns)
    parts = min(_PARTS, n // 16)
    if parts < 2:
        return np.array([first_ns, last_ns], np.int64)
    at = np.linspace(0, n, parts + 1).astype(np.int64)
    edges = np.concatenate([[first_ns], begin_ns[at[1:-1]], [last_ns]])
    part = np.repeat(np.arange(parts), np.diff(at))
    words, inverse, count = np.unique(kind, return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(-count, kind="stable"), kind="stable")
    column = np.minimum(rank, _KINDS)[inverse]
    width = min(len(words), _KINDS + 1)
    seen = np.bincount(part * width + column, minlength=parts * width).reshape(parts, width)
    took = np.maximum(np.diff(edges), 1)
    cuts = _cuts(seen.astype(np.float64), took.astype(np.float64))
    return edges[cuts]


def _cuts(seen: F64, took: F64) -> I64:
    """(cuts,) parts at which phases begin, 0 first, and the number of parts."""
    unrest = _unrest(seen, took)
    sums = np.concatenate([np.zeros((1, seen.shape[1])), np.cumsum(seen, axis=0)])
    times = np.concatenate([[0.0], np.cumsum(took)])
    found = [0, len(took)]
    while len(found) <= _MOST:
        best, where = 0.0, -1
        for low, high in itertools.pairwise(found):
            gain, cut = _best(sums, times, low, high, unrest)
            if gain > best:
                best, where = gain, cut
        if where < 0:
            break
        found = sorted([*found, where])
    return np.array(found, np.int64)


def _best(sums: F64, times: F64, low: int, high: int, unrest: float) -> tuple[float, int]:
    """The cut inside [low, high) that gains most, and how much; -1 where none is enough."""
    if high - low < 2:
        return 0.0, -1
    inside = np.arange(low + 1, high)
    left, right = sums[inside] - sums[low], sums[high] - sums[inside]
    before, after = times[inside] - times[low], times[high] - times[inside]
    whole = _likelihood((sums[high] - sums[low])[None], np.array([times[high] - times[low]]))
    gain = _likelihood(left, before) + _likelihood(right, after) - whole
    enough = np.minimum(left.sum(axis=1), right.sum(axis=1)) >= _LEAST_ROWS
    rates = left / before[:, None], right / after[:, None]
    apart = np.abs(rates[0] - rates[1]).sum(axis=1) / (rates[0] + rates[1]).sum(axis=1)
    used = ((left + right) > 0).sum(axis=1)
    good = enough & (apart >= _DIFFERS) & (gain > _GAINS * unrest * used)
    if not good.any():
        return 0.0, -1
    at = int(np.argmax(np.where(good, gain, -1.0)))
    return float(gain[at]), int(inside[at])


def _likelihood(count: F64, time: F64) -> F64:
    """(n,) log likelihood of counts (n, kinds) at their own rates, without what is constant."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = count * np.log(count / time[:, None])
    total: F64 = np.where(count > 0, terms, 0.0).sum(axis=1)
    return total


def _unrest(seen: F64, took: F64) -> float:
    """How much more neighbouring parts differ than Poisson counts would (1: not more)."""
    both = seen[:-1] + seen[1:]
    time = took[:-1] + took[1:]
    expected = both * (took[:-1] / time)[:, None]
    spread = both * (took[:-1] / time * took[1:] / time)[:, None]
    used = spread >= 1
    if not used.any():
        return 1.0
    return max(1.0, float(np.median(((seen[:-1] - expected) ** 2 / np.maximum(spread, 1))[used])))
