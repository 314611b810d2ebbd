"""How far simulation is from measurement: per group, per case, and of the gain between paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

LoadGroup = Literal["n_le_c", "n_gt_c"]
Regime = Literal["below", "near", "past"]

#: Share of linear scaling at which a workload counts as below saturation.
LINEAR: Final = 0.8
#: Throughput that still rises by more than this from one thread count to the next is not past it.
RISING: Final = 0.05
WORST: Final = 10
#: A simulated gain this near the measured one is met.
GAIN_BAND: Final = 0.1


@dataclass(frozen=True, slots=True)
class Compared:
    """One measured point beside its simulation; rates in operations per second."""

    machine: str
    workload: str
    path: str  # "vma", "mmap_lock" or "kernel"
    threads: int
    placement: str
    cpus: int  # that the run could use
    measured: float
    spread: float  # relative, of the repetitions
    simulated: float
    trained: bool  # the profile was fitted on this workload
    rates: tuple[float, ...] = ()  # measured, of each repetition
    numbers: tuple[int, ...] = ()  # which repetitions these are

    @property
    def error(self) -> float:
        """Simulated over measured, less 1."""
        return self.simulated / self.measured - 1

    @property
    def load_group(self) -> LoadGroup:
        return "n_le_c" if self.threads <= self.cpus else "n_gt_c"


def regimes(points: Sequence[Compared]) -> dict[Compared, Regime]:
    """Where each point stands in its own measured curve over thread counts.

    ``below``: at least 0.8 of linear scaling from the smallest thread count; ``past``:
    no more than 5 % above a smaller thread count; else ``near``.  Placements are one curve:
    more threads than CPUs cannot be pinned.
    """
    out: dict[Compared, Regime] = {}
    for curve in curves(points):
        first = curve[0]
        best = 0.0
        for point in curve:
            linear = first.measured * point.threads / first.threads
            if point.measured >= LINEAR * linear:
                out[point] = "below"
            elif point.measured > best * (1 + RISING):
                out[point] = "near"
            else:
                out[point] = "past"
            best = max(best, point.measured)
    return out


def curves(points: Sequence[Compared]) -> list[list[Compared]]:
    """The points of each machine, workload and path, by threads."""
    found: dict[tuple[str, ...], list[Compared]] = {}
    for point in points:
        found.setdefault((point.machine, point.workload, point.path), []).append(point)
    return [sorted(curve, key=lambda p: p.threads) for curve in found.values()]


def groups(points: Sequence[Compared]) -> list[dict[str, Any]]:
    """One row per machine, path, load group and regime, and one over all regimes (``all``)."""
    where = regimes(points)
    rows = []
    keys = sorted({(p.machine, p.path, p.load_group) for p in points})
    for machine, path, load in keys:
        mine = [p for p in points if (p.machine, p.path, p.load_group) == (machine, path, load)]
        for regime in ("all", "below", "near", "past"):
            chosen = [p for p in mine if regime in ("all", where[p])]
            if chosen:
                head = {"machine": machine, "path": path, "load_group": load, "regime": regime}
                rows.append(head | statistics(chosen))
    return rows


def statistics(points: Sequence[Compared]) -> dict[str, Any]:
    """``n``, median and 90th percentile of the absolute error, and the median signed one."""
    errors = np.array([p.error for p in points])
    return {
        "n": len(points),
        "median_abs_error": float(np.median(np.abs(errors))),
        "p90_abs_error": float(np.quantile(np.abs(errors), 0.9)),
        "bias": float(np.median(errors)),
    }


def gains(points: Sequence[Compared]) -> list[dict[str, Any]]:
    """What the per-VMA path gains over the mmap_lock path, measured and simulated.

    One row per machine, workload, placement and thread count that was measured by both paths.
    Measured: the median over the repetitions that both have, whose runs are neighbours in time,
    else the ratio of the medians.  ``noise``: relative spread of the measured ratio;
    ``right_sign``: null where the measured gain does not exceed it.
    """
    by_key = {(p.machine, p.workload, p.placement, p.threads, p.path): p for p in points}
    rows = []
    for key, fast in sorted(by_key.items()):
        slow = by_key.get((*key[:4], "mmap_lock"))
        if key[4] != "vma" or slow is None:
            continue
        pairs = paired_gains(fast, slow)
        simulated = fast.simulated / slow.simulated
        if len(pairs) > 1:
            low, measured, high = np.quantile(pairs, [0.25, 0.5, 0.75]).tolist()
            noise = (high - low) / measured
        else:
            measured = fast.measured / slow.measured
            noise = float(np.hypot(fast.spread, slow.spread))
        clear = abs(np.log(measured)) > noise
        rows.append(
            {
                "machine": fast.machine,
                "workload": fast.workload,
                "threads": fast.threads,
                "placement": fast.placement,
                "load_group": fast.load_group,
                "measured": measured,
                "simulated": simulated,
                "noise": noise,
                "right_sign": bool((measured > 1) == (simulated > 1)) if clear else None,
            }
        )
    return rows


def paired_gains(fast: Compared, slow: Compared) -> list[float]:
    """Measured rates of one path by those of the other, of each repetition that both have."""
    other = dict(zip(slow.numbers or range(len(slow.rates)), slow.rates, strict=True))
    mine = zip(fast.numbers or range(len(fast.rates)), fast.rates, strict=True)
    return [rate / other[k] for k, rate in mine if other.get(k)]


def gain_summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Share of gains within 10 % of the measured ones, and how many have the wrong sign.

    ``no_gain_within_10_percent``: the share that "both paths are equal" would have met.
    """
    if not rows:
        return {
            "n": 0,
            "within_10_percent": None,
            "no_gain_within_10_percent": None,
            "wrong_sign": 0,
            "clear": 0,
        }
    off = np.array([row["simulated"] / row["measured"] - 1 for row in rows])
    none = np.array([1 / row["measured"] - 1 for row in rows])
    clear = [row for row in rows if row["right_sign"] is not None]
    return {
        "n": len(rows),
        "within_10_percent": float((np.abs(off) <= GAIN_BAND).mean()),
        "no_gain_within_10_percent": float((np.abs(none) <= GAIN_BAND).mean()),
        "clear": len(clear),
        "wrong_sign": sum(not row["right_sign"] for row in clear),
    }


def worst(points: Sequence[Compared], count: int = WORST) -> list[Compared]:
    """The points that are furthest off, by factor."""
    return sorted(points, key=lambda p: -abs(float(np.log(p.simulated / p.measured))))[:count]
