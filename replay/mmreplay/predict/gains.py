"""From simulations to numbers: throughput, speed-up, ranges, who waits for whom."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import Plan, PlanOp
from mmreplay.engine.result import Result
from mmreplay.predict.delays import quantile_ns
from mmreplay.predict.pace import Pace, Ways, busy_means_ns, pace
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
    #: How fast the measured threads got on in each simulation, by ``id`` (:func:`together`).
    paces: dict[int, Pace] = field(default_factory=dict)
    cores: float = math.inf  # that there are for the group to compute on

    def simulations(self) -> Iterator[tuple[Pair, Result]]:
        """All: as they are, with other costs, with the other kernel's costs."""
        for results in (self.results, self.cheaper, self.dearer, self.locking_only):
            yield from results.items()


@dataclass(frozen=True, slots=True)
class Amount:
    """Work that the group completes in some time."""

    done: float
    ns: float

    @property
    def per_ns(self) -> float:
        return self.done / self.ns if self.ns > 0 else 0.0


Value = Callable[[Part, Pace], Amount]


def ops(part: Part, pace: Pace) -> Amount:
    """Operations of the group."""
    return Amount(pace.ops * part.ops_factor, pace.ns)


def user(part: Part, pace: Pace) -> Amount:
    """User CPU time of the group, ns."""
    return Amount(pace.user_ns * part.user_factor, pace.ns)


def possible(value: Value, part: Part, pace: Pace, cores: float) -> Amount:
    """``value``, at most as far as ``cores`` can get.

    What the busy threads do is scaled up to the group: where its others hardly ran meanwhile, that
    can be more computing than there are cores for.
    """
    some, computing = value(part, pace), user(part, pace)
    if computing.per_ns <= cores:
        return some
    return Amount(some.done * cores / computing.per_ns, some.ns)


def pooled(amounts: Iterable[Amount]) -> float:
    """Work per ns over several windows."""
    some = list(amounts)
    return Amount(math.fsum(a.done for a in some), math.fsum(a.ns for a in some)).per_ns


def together(*cells: Cell) -> None:
    """Let the cells be compared: each pair's rates told in work that all its replays completed."""
    by_pair: dict[Pair, list[tuple[Cell, Result]]] = {}
    for cell in cells:
        for pair, result in cell.simulations():
            by_pair.setdefault(pair, []).append((cell, result))
    for (window, _), some in by_pair.items():
        means = busy_means_ns(result for _, result in some)
        idle = cells[0].load == "recorded"
        ways = {id(cell): Ways(cell.parts[window].work, means, idle=idle) for cell, _ in some}
        far = np.minimum.reduce([ways[id(cell)].reached_ns(result) for cell, result in some])
        for cell, result in some:
            cell.paces[id(result)] = pace(ways[id(cell)], result, far)


def amount(cell: Cell, pair: Pair, result: Result, value: Value) -> Amount:
    """One replay's work of one pair."""
    if id(result) not in cell.paces:
        together(cell)
    return possible(value, cell.parts[pair[0]], cell.paces[id(result)], cell.cores)


def _mean_over_seeds(cell: Cell, value: Value, results: Mapping[Pair, Result]) -> float:
    per_seed = [
        pooled(
            amount(cell, pair, result, value) for pair, result in results.items() if pair[1] == s
        )
        for s in sorted({seed for _, seed in results})
    ]
    return math.fsum(per_seed) / len(per_seed) if per_seed else 0.0


def throughput(cell: Cell) -> float:
    """Operations of the group per second: mean over seeds, pooled over windows."""
    return 1e9 * _mean_over_seeds(cell, ops, cell.results)


def useful_work_rate(cell: Cell) -> float:
    """User CPU seconds of the group per second: mean over seeds, pooled over windows."""
    return _mean_over_seeds(cell, user, cell.results)


def throughput_range(cell: Cell) -> tuple[float | None, float | None]:
    """Lowest and highest throughput; ``(None, None)`` where there is a single simulation."""
    values = [1e9 * amount(cell, p, r, ops).per_ns for p, r in cell.results.items()]
    low, high = _factor_effect(cell, ops)
    if len(values) < 2 and (low, high) == (1.0, 1.0):
        return None, None
    centre = throughput(cell)
    return min([*values, centre]) * low, max([*values, centre]) * high


def measure(*cells: Cell) -> Value:
    """What a speed-up is the ratio of: useful work, or operations where some did none."""
    works = all(
        amount(cell, pair, result, user).per_ns > 0
        for cell in cells
        for pair, result in cell.results.items()
    )
    return user if works else ops


def speedup(old: Cell, new: Cell, results: Mapping[Pair, Result] | None = None) -> float | None:
    """Ratio of the rates (means over seeds, pooled over windows); of ``new``'s base results
    or of other ``results`` of its plans, against the same windows and seeds of ``old``.
    """
    over = new.results if results is None else results
    value = measure(old, new)
    pairs = over.keys() & old.results.keys()
    base = _mean_over_seeds(old, value, {pair: old.results[pair] for pair in pairs})
    if base <= 0:
        return None
    return _mean_over_seeds(new, value, {pair: over[pair] for pair in pairs}) / base


def speedup_range(old: Cell, new: Cell) -> tuple[float | None, float | None]:
    """Lowest and highest paired ratio over seeds and windows, times the kernel factor's effect."""
    value = measure(old, new)
    ratios = []
    for pair, result in new.results.items():
        if pair in old.results:
            before = amount(old, pair, old.results[pair], value).per_ns
            if before > 0:
                ratios.append(amount(new, pair, result, value).per_ns / before)
    centre = speedup(old, new)
    # Only the two kernels' relation counts: the factor is on the one that was not recorded.
    new_low, new_high = _factor_effect(new, value)
    old_low, old_high = _factor_effect(old, value)
    if new.cheaper:
        low, high = new_low, new_high
    else:
        low, high = 1 / old_high, 1 / old_low
    if centre is None or (len(ratios) < 2 and (low, high) == (1.0, 1.0)):
        return None, None
    return min([*ratios, centre]) * low, max([*ratios, centre]) * high


def _factor_effect(cell: Cell, value: Value) -> tuple[float, float]:
    """How much the kernel factor can lower and raise a rate: (at most 1, at least 1)."""
    effects = [1.0]
    for varied in (cell.cheaper, cell.dearer):
        for pair, result in varied.items():
            base = amount(cell, pair, cell.results[pair], value).per_ns
            if base > 0:
                effects.append(amount(cell, pair, result, value).per_ns / base)
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


def starves(cell: Cell) -> bool:
    """Was any of its replays ended before a measured thread was through?"""
    return any(
        result.thread_progress_ns[cell.parts[window].work.threads, -1].max(initial=-1) < 0
        for (window, _), result in cell.results.items()
    )


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
    enough = SATURATION_SHARE * best  # with less at the most cores, more of them do harm
    reached = next(r for r in rows if r.throughput_ops_per_s >= enough)
    first, last = rows[0], rows[-1]
    if reached is last:
        return Saturation(first.kernel, first.load, first.threads, None, None)
    able = next((r.throughput_ops_per_s for r in capacity if r.cores == reached.cores), 0.0)
    lock = last.limiting_lock
    if able * SATURATION_SHARE > reached.throughput_ops_per_s:
        reason = "demand"
    elif reached.cores >= reached.busy_threads and last.throughput_ops_per_s >= enough:
        reason = "threads"
    elif lock is not None and last.lock_share.get(lock, 0.0) >= LIMIT_SHARE:
        reason = lock
    else:
        reason = "demand" if reached.load == "recorded" else "cores"
    return Saturation(first.kernel, first.load, first.threads, reached.cores, reason)
