"""States of a chain that depend on what came before: one token, several states."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]

_ROUNDS: Final = 2
#: A predecessor counts that is before so many of a state's occurrences, and this share of them.
_LEAST, _SHARE = 16, 0.05
#: States are told apart by their predecessors where what follows differs by so much (total
#: variation distance), or the mean length of a run by this factor.
_DIFFERS, _FACTOR = 0.3, 1.5


def contexts(tokens: I64, thread: I64, runs: I64, most: int) -> tuple[I64, dict[int, int]]:
    """Tell occurrences of a token apart by what came before, where that matters.

    Parameters
    ----------
    tokens, thread, runs:
        (n,) a role's tokens in order, thread by thread; ``runs`` how often each was repeated.
    most:
        States at most.

    Returns
    -------
    labels, token_of:
        (n,) the state of each occurrence, and the token of each state.
    """
    labels = tokens.copy()
    token_of = {token: token for token in np.unique(tokens).tolist()}
    begins = np.append(True, thread[1:] != thread[:-1])
    for _ in range(_ROUNDS):
        before = np.where(begins, -1, np.roll(labels, 1))
        after = np.where(np.roll(begins, -1), -1, np.roll(labels, -1))
        found = labels.copy()
        for label in sorted(token_of, key=lambda one: -int((labels == one).sum())):
            where = np.flatnonzero(labels == label)
            words, inverse, count = np.unique(
                before[where], return_inverse=True, return_counts=True
            )
            often = np.flatnonzero((count >= max(_LEAST, _SHARE * len(where))) & (words >= 0))
            if len(often) < 2 or len(token_of) + len(often) - 1 > most:
                continue
            parts = [where[inverse == k] for k in often]
            if not _differ(parts, after, runs):
                continue
            for part in sorted(parts, key=len)[:-1]:
                new = max(token_of) + 1
                token_of[new] = token_of[label]
                found[part] = new
        labels = found
    return labels, token_of


def _differ(parts: list[I64], after: I64, runs: I64) -> bool:
    """Whether what follows the occurrences in each part, or how long they last, differs."""
    words, places = np.unique(np.concatenate([after[part] for part in parts]), return_inverse=True)
    shares, at = [], 0
    for part in parts:
        counts = np.bincount(places[at : at + len(part)], minlength=len(words))
        shares.append(counts / len(part))
        at += len(part)
    lengths = np.array([runs[part].mean() for part in parts])
    if lengths.max() > _FACTOR * lengths.min():
        return True
    table = np.array(shares)
    return bool(max(np.abs(a - b).sum() / 2 for a in table for b in table) > _DIFFERS)
