"""From simulations to numbers: throughput, speed-up, ranges, who waits for whom."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import Plan, PlanOp
from mmreplay.engine.result import Result
from mmreplay.predict.delays import quantile_ns
from mmreplay.predict.prediction import Blame, Row, Saturation
from mmreplay.predict.steady import Part

#: DESIGN "Machine": a kernel differs from another in more than its locks; costs of a kernel
#: that the trace was not recorded on are known to this factor, up or down.
KERNEL_FACTOR_SPREAD = 0.15
#: A lock that takes less of the threads' time than this limits nothing.
SHARE_FLOOR = 0.01
#: A lock that takes less of it where more cores no longer help is not why they do not.
LIMIT_SHARE = 0.1
#: Saturated: this share of the list's best throughput is reached.
SATURATION_SHARE = 0.95
HAND_OVER = "hand-over"

#: (window, seed): simulations with equal keys use the same draws and are paired.
Pair = tuple[int, int]


@dataclass(slots=True)
class Cell:
    """All simulations of one kernel at one core count, thread count and load."""

    parts: Mapping[int, Part]  # by window
    load: str = "recorded"
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


def ops_ns(part: Part, result: Result) -> float:
    """Operations of the group in the window, times 1e9: over ns that is a rate per second."""
    return result.window_ops * 1e9 * part.ops_factor


def user_ns(part: Part, result: Result) -> float:
    """User CPU time of the group in the window."""
    return result.window_user_ns * part.user_factor


Value = Callable[[Part, Result], float]


def pooled(parts: Mapping[int, Part], results: Mapping[int, Result], value: Value) -> float:
    """``value`` per nanosecond over several windows."""
    total = ns = 0.0
    for window, result in results.items():
        total += value(parts[window], result)
        ns += result.window_ns
    return total / ns if ns > 0 else 0.0


def _mean_over_seeds(cell: Cell, value: Value) -> float:
    per_seed = [
        pooled(cell.parts, {w: cell.results[w, seed] for w in cell.windows}, value)
        for seed in cell.seeds
    ]
    return math.fsum(per_seed) / len(per_seed)


def throughput(cell: Cell) -> float:
    """Operations of the group per second: mean over seeds, pooled over windows."""
    return _mean_over_seeds(cell, ops_ns)


def useful_work_rate(cell: Cell) -> float:
    """User CPU seconds of the group per second: mean over seeds, pooled over windows."""
    return _mean_over_seeds(cell, user_ns)


def throughput_range(cell: Cell) -> tuple[float | None, float | None]:
    """Lowest and highest throughput; ``(None, None)`` where there is a single simulation."""
    values = [
        result.throughput_ops_per_s * cell.parts[window].ops_factor
        for (window, _), result in cell.results.items()
    ]
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
        before = {w: old.results[w, seed] for w in windows}
        after = {w: over[w, seed] for w in windows}
        work = all(r.window_user_ns > 0 for r in (*before.values(), *after.values()))
        value = user_ns if work else ops_ns
        base = pooled(old.parts, before, value)
        if base > 0:
            ratios.append(pooled(new.parts, after, value) / base)
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


def lock_shares(cell: Cell, locks: Sequence[str]) -> dict[str, float]:
    """Share of the measured threads' time spent waiting for each lock."""
    waited = np.zeros(len(locks))
    alive = 0.0
    for (window, _), result in cell.results.items():
        part = cell.parts[window]
        plan = part.plan(cell.load)
        mine = np.ones(plan.n_threads, bool)
        if part.group >= 0:
            mine = plan.thread_group == part.group
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


def saturation(rows: Sequence[Row], capacity: Sequence[Row] = ()) -> Saturation:
    """Where more cores stop helping: ``rows`` of one kernel, load and thread count by cores.

    ``capacity``: the same at saturated load, which tells whether a recorded load that stops
    growing has met a limit or asks for no more.
    """
    best = max(row.throughput_ops_per_s for row in rows)
    reached = next(r for r in rows if r.throughput_ops_per_s >= SATURATION_SHARE * best)
    first, last = rows[0], rows[-1]
    if reached is last:
        return Saturation(first.kernel, first.load, first.threads, None, None)
    able = next((r.throughput_ops_per_s for r in capacity if r.cores == reached.cores), 0.0)
    lock = last.limiting_lock
    if able * SATURATION_SHARE > reached.throughput_ops_per_s:
        reason = "demand"
    elif reached.cores >= reached.busy_threads:
        reason = "threads"
    elif lock is not None and last.lock_share.get(lock, 0.0) >= LIMIT_SHARE:
        reason = lock
    else:
        reason = "demand" if reached.load == "recorded" else "cores"
    return Saturation(first.kernel, first.load, first.threads, reached.cores, reason)
