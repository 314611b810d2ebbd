"""How much of a trace is simulated for one answer: windows, their size, and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mmreplay.errors import UserError

#: Operations that one prediction simulates at most, over all its simulations.
BUDGET_OPS: Final = 40_000_000
#: Bounds of a window's recorded operations.
WINDOW_OPS: Final = (20_000, 200_000)
WINDOWS: Final = 3
SEEDS: Final = 2
#: More points than this are simulated over one window, and twice that with one seed.
MANY_POINTS: Final = 48
#: Where threads are cloned, a window shrinks until its plan has no more operations than
#: this (some 250 bytes each), but not below the second number of recorded ones.
GROWN_OPS: Final = (500_000, 2_000)
#: Operations of the trace with all clones that the planner replays at most, to plan any part.
LARGEST_OPS: Final = 50_000_000


@dataclass(frozen=True, slots=True)
class Effort:
    """``windows`` by thread count: how many and of how many operations; None: the whole trace."""

    windows: Mapping[int, tuple[int, int] | None]
    seeds: int


def effort(
    points: int,
    growth: Mapping[int, float],
    *,
    seeds: int | None,
    exact: bool,
    ops: int,
) -> Effort:
    """For ``points`` (cores x threads x load) under two kernels.

    ``growth``: by thread count, operations of the plan per recorded one; ``ops``: of the trace.

    Raises
    ------
    UserError
        More threads than can be planned.
    """
    count = 1 if points > MANY_POINTS else WINDOWS
    chosen = seeds or (1 if points > 2 * MANY_POINTS else SEEDS)
    simulations = points * (2 * count * chosen + 2)
    size = max(WINDOW_OPS[0], min(WINDOW_OPS[1], BUDGET_OPS // simulations))
    windows: dict[int, tuple[int, int] | None] = {}
    for threads, factor in growth.items():
        check_growth(ops, factor, threads)
        windows[threads] = None if exact else (count, grown(size, factor))
    return Effort(windows, chosen)


def grown(size: int, factor: float) -> int:
    """The window of at most ``size`` recorded operations for plans ``factor`` times as large."""
    return min(size, max(GROWN_OPS[1], int(GROWN_OPS[0] / factor)))


def check_growth(ops: int, factor: float, threads: int) -> None:
    """Raise where a trace of ``ops`` operations cannot be scaled out by ``factor``."""
    if factor > 1 and ops * factor > LARGEST_OPS:
        most = int(threads * LARGEST_OPS / (ops * factor))
        raise UserError(
            f"{threads} threads repeat the recorded ones {ops * factor:,.0f} operations long, "
            f"more than the {LARGEST_OPS:,} that can be planned",
            where="--threads",
            fix=f"ask for at most about {max(most, 1):,}, or record a shorter run",
        )


def growth_of(group_share: float, recorded: int, counts: Sequence[int]) -> dict[int, float]:
    """Operations of a plan per recorded one, by thread count.

    ``group_share``: share of the operations that are of the scaled group's ``recorded`` threads.
    """
    return {count: 1 - group_share + group_share * count / max(recorded, 1) for count in counts}
