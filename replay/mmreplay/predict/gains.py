"""From simulations to numbers: throughput, speed-up, ranges, who waits for whom."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import Plan, PlanOp
from mmreplay.engine.result import Result
from mmreplay.predict.delays import quantile_ns
from mmreplay.predict.prediction import Blame, Row, Saturation

#: DESIGN "Machine": a kernel differs from another in more than its locks; costs of a kernel
#: that the trace was not recorded on are known to this factor, up or down.
KERNEL_FACTOR_SPREAD = 0.15
#: A lock that takes less of the threads' time than this limits nothing.
SHARE_FLOOR = 0.01
#: Saturated: this share of the list's best throughput is reached.
SATURATION_SHARE = 0.95
HAND_OVER = "hand-over"

#: (window, seed): simulations with equal keys use the same draws and are paired.
Pair = tuple[int, int]


@dataclass(slots=True)
class Cell:
    """All simulations of one kernel at one core count, thread count and load."""

    plans: Mapping[int, Plan]  # by window
    results: dict[Pair, Result] = field(default_factory=dict)
    #: The same with all kernel costs 15 % lower and higher, for some of the pairs.
    cheaper: dict[Pair, Result] = field(default_factory=dict)
    dearer: dict[Pair, Result] = field(default_factory=dict)
    #: This kernel's locks with the other kernel's costs; empty where the costs are equal.
    locking_only: dict[Pair, Result] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for _, seed in self.results})

    @property
    def windows(self) -> list[int]:
        return sorted({window for window, _ in self.results})


def pooled_throughput(results: Iterable[Result]) -> float:
    """Operations of the scaled group per second over several windows."""
    ops = ns = 0
    for result in results:
        ops += result.window_ops
        ns += result.window_ns
    return ops * 1e9 / ns if ns > 0 else 0.0


def pooled_useful(results: Iterable[Result]) -> float:
    """User CPU seconds per second over several windows."""
    user = ns = 0
    for result in results:
        user += result.window_user_ns
        ns += result.window_ns
    return user / ns if ns > 0 else 0.0


def throughput(cell: Cell) -> float:
    """Mean over seeds of the throughput pooled over windows."""
    per_seed = [
        pooled_throughput([cell.results[w, seed] for w in cell.windows]) for seed in cell.seeds
    ]
    return math.fsum(per_seed) / len(per_seed)


def useful_work_rate(cell: Cell) -> float:
    """Mean over seeds of the useful work rate pooled over windows."""
    per_seed = [pooled_useful([cell.results[w, seed] for w in cell.windows]) for seed in cell.seeds]
    return math.fsum(per_seed) / len(per_seed)


def throughput_range(cell: Cell) -> tuple[float | None, float | None]:
    """Lowest and highest throughput; ``(None, None)`` where there is a single simulation."""
    values = [result.throughput_ops_per_s for result in cell.results.values()]
    low, high = _factor_effect(cell, lambda r: r.throughput_ops_per_s)
    if len(values) < 2 and (low, high) == (1.0, 1.0):
        return None, None
    centre = throughput(cell)
    return min([*values, centre]) * low, max([*values, centre]) * high


def rate(result: Result) -> float:
    """What a speed-up is the ratio of: useful work, or operations where none was recorded."""
    return result.useful_work_rate if result.window_user_ns > 0 else result.throughput_ops_per_s


def speedup(old: Cell, new: Cell, results: Mapping[Pair, Result] | None = None) -> float | None:
    """Ratio of the rates, paired by seed: pooled over windows, then the mean over seeds."""
    over = results if results is not None else new.results
    ratios = []
    for seed in sorted({seed for _, seed in over} & set(old.seeds)):
        windows = [w for w in new.windows if (w, seed) in over]
        before = [old.results[w, seed] for w in windows]
        after = [over[w, seed] for w in windows]
        work = all(r.window_user_ns > 0 for r in (*before, *after))
        pooled = pooled_useful if work else pooled_throughput
        if pooled(before) > 0:
            ratios.append(pooled(after) / pooled(before))
    return math.fsum(ratios) / len(ratios) if ratios else None


def speedup_range(old: Cell, new: Cell) -> tuple[float | None, float | None]:
    """Lowest and highest paired ratio over seeds and windows, times the kernel factor's effect."""
    ratios = [
        rate(new.results[pair]) / rate(old.results[pair])
        for pair in new.results
        if pair in old.results and rate(old.results[pair]) > 0
    ]
    centre = speedup(old, new)
    # Only the two kernels' relation counts: the factor is on the one that was not recorded.
    new_low, new_high = _factor_effect(new, rate)
    old_low, old_high = _factor_effect(old, rate)
    if new.cheaper:
        low, high = new_low, new_high
    else:
        low, high = 1 / old_high, 1 / old_low
    if centre is None or (len(ratios) < 2 and (low, high) == (1.0, 1.0)):
        return None, None
    return min([*ratios, centre]) * low, max([*ratios, centre]) * high


def _factor_effect(cell: Cell, value: object) -> tuple[float, float]:
    """How much the kernel factor can lower and raise a rate: (at most 1, at least 1)."""
    assert callable(value)
    effects = [1.0]
    for varied in (cell.cheaper, cell.dearer):
        for pair, result in varied.items():
            base = value(cell.results[pair])
            if base > 0:
                effects.append(value(result) / base)
    return min(effects), max(effects)


def lock_shares(cell: Cell, locks: Sequence[str], group: int) -> dict[str, float]:
    """Share of the scaled group's thread time spent waiting for each lock."""
    waited = np.zeros(len(locks))
    alive = 0.0
    for (window, _), result in cell.results.items():
        plan = cell.plans[window]
        mine = plan.thread_group == group if group >= 0 else np.ones(plan.n_threads, bool)
        waited += result.thread_wait_ns[mine].sum(axis=0)
        alive += float(thread_spans(plan, result)[mine].sum())
    return {name: float(waited[i] / alive) if alive else 0.0 for i, name in enumerate(locks)}


def thread_spans(plan: Plan, result: Result) -> NDArray[np.int64]:
    """(T,) ns from each thread's begin to its end, or to where the replay stopped."""
    end = np.where(result.thread_end_ns < 0, result.makespan_ns, result.thread_end_ns)
    spans: NDArray[np.int64] = np.maximum(end - plan.thread_offset_ns, 0)
    return spans


def blame(results: Iterable[Result], locks: Sequence[str]) -> tuple[Blame, ...]:
    """Non-zero charges, largest first; they sum to the total wait of all operations."""
    parts = [result.blame_ns for result in results]
    if not parts:
        return ()
    total = np.sum(parts, axis=0)
    charges = [
        Blame(locks[lock], op_name(holder), op_name(waiter), int(total[lock, holder, waiter]))
        for lock, holder, waiter in zip(*np.nonzero(total), strict=True)
    ]
    return tuple(sorted(charges, key=lambda b: (-b.wait_ns, b.lock, b.holder_op, b.waiter_op)))


def op_name(op: int) -> str:
    """Name of a plan operation; the row behind the last one is ``hand-over``."""
    return PlanOp(op).name.lower() if op <= max(PlanOp) else HAND_OVER


def limiting(
    shares: Mapping[str, float], charges: Sequence[Blame]
) -> tuple[str | None, str | None]:
    """The lock that takes most thread time, and the operation that holds it meanwhile.

    ``(None, None)`` where no lock takes :data:`SHARE_FLOOR` of the threads' time.
    """
    if not shares:
        return None, None
    lock = max(shares, key=lambda name: shares[name])
    if shares[lock] < SHARE_FLOOR:
        return None, None
    held: dict[str, int] = {}
    for charge in charges:
        if charge.lock == lock and charge.holder_op != HAND_OVER:
            held[charge.holder_op] = held.get(charge.holder_op, 0) + charge.wait_ns
    return lock, max(held, key=lambda op: held[op]) if held else None


def delay_quantiles(cell: Cell, levels: Sequence[float]) -> list[float | None]:
    """Quantiles of the begin-to-end time of all operations of the memory map."""
    total = sum(r.op_delay[1:].sum(axis=0) for r in cell.results.values())
    return [quantile_ns(np.asarray(total, np.int64), level) for level in levels]


def cpu_ns_per_op(cell: Cell) -> float | None:
    """Kernel CPU time per operation of the memory map."""
    count = sum(int(r.op_count[1:].sum()) for r in cell.results.values())
    busy = sum(int(r.op_busy_ns[1:].sum()) for r in cell.results.values())
    return busy / count if count else None


def saturation(rows: Sequence[Row]) -> Saturation:
    """Where more cores stop helping: ``rows`` of one kernel, load and thread count by cores."""
    best = max(row.throughput_ops_per_s for row in rows)
    reached = next(r for r in rows if r.throughput_ops_per_s >= SATURATION_SHARE * best)
    first = rows[0]
    if reached is rows[-1]:
        return Saturation(first.kernel, first.load, first.threads, None, None)
    if reached.limiting_lock is not None and reached.cores < reached.threads:
        reason = reached.limiting_lock
    elif reached.cores >= reached.threads:
        reason = "threads"
    elif reached.load == "recorded":
        reason = "demand"
    else:
        reason = reached.limiting_lock or "cores"
    return Saturation(first.kernel, first.load, first.threads, reached.cores, reason)
