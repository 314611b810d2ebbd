"""What an error is to be compared with: repetition itself, and predictions without a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import Any, Final

import numpy as np

from mmreplay.fit.accuracy import GAIN_BAND, Compared, curves, paired_gains

#: What is predicted by: another single run of the same point; the simulation; the rate of the
#: fewest threads times their number; that rate as it is.
PREDICTORS: Final = ("repetition", "simulation", "linear", "unchanged")


def floors(points: Sequence[Compared]) -> list[dict[str, Any]]:
    """One row per machine, path, load group and predictor: ``n``, median and p90 of the error.

    ``linear`` and ``unchanged`` know the measured rate of the workload's smallest thread count,
    which the simulation does not, and say nothing of that one; ``simulation`` is counted over
    the points that they are counted over, so that the three can be compared.
    """
    errors: dict[tuple[str, str, str, str], list[float]] = {}
    for curve in curves(points):
        first = curve[0]
        for p in curve:
            key = (p.machine, p.path, p.load_group)
            repeated = [a / b - 1 for a, b in permutations(p.rates, 2)]
            errors.setdefault((*key, "repetition"), []).extend(repeated)
            if p.threads == first.threads:
                continue
            linear = first.measured * p.threads / first.threads
            for name, value in (
                ("simulation", p.simulated),
                ("linear", linear),
                ("unchanged", first.measured),
            ):
                errors.setdefault((*key, name), []).append(value / p.measured - 1)
    rows = []
    for group in sorted({key[:3] for key in errors}):
        for name in PREDICTORS:
            found = np.abs(errors.get((*group, name), []))
            if len(found):
                rows.append(
                    {
                        "machine": group[0],
                        "path": group[1],
                        "load_group": group[2],
                        "predictor": name,
                        "n": len(found),
                        "median_abs_error": float(np.median(found)),
                        "p90_abs_error": float(np.quantile(found, 0.9)),
                    }
                )
    return rows


def repeated_gains(points: Iterable[Compared]) -> float | None:
    """Share of gains that a second measurement, one run by each path, would meet within 10 %.

    Over all pairs of different repetitions of each point; None where nothing was repeated.
    """
    by_key = {(p.machine, p.workload, p.placement, p.threads, p.path): p for p in points}
    met = []
    for key, fast in by_key.items():
        slow = by_key.get((*key[:4], "mmap_lock"))
        if key[4] != "vma" or slow is None:
            continue
        found = paired_gains(fast, slow)
        met += [abs(a / b - 1) <= GAIN_BAND for a, b in permutations(found, 2)]
    return float(np.mean(met)) if met else None
