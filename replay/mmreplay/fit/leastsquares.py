"""Damped Gauss-Newton for a model that is only known by running it, with a prior.

Minimises ``sum(huber(residual)) + sum((x / sd)**2)`` over x (n,), where the residuals (m,) of a
position come from the caller.  Derivatives are differences over a step that is large enough to
rise above the simulation's noise; a column that is zero at the start stays zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

#: Residuals beyond this count linearly: a workload that the model gets wrong shall not bend
#: the costs of all others.
HUBER: Final = 2.0
#: Step of the differences, in the parameters' own unit (logarithms here).
STEP: Final = 0.15
#: The longest move of one parameter in one iteration.
LONGEST: Final = 0.7
#: How many times derivatives are taken: of logarithms by logarithms they change little, and they
#: cost nearly all of the time.
DERIVATIVES: Final = 2
_MOST_TRIES: Final = 6


@dataclass(frozen=True)
class Found:
    """``position`` (n,), its residuals (m,), Jacobian (m, n) and covariance (n, n)."""

    position: F64
    residuals: F64
    jacobian: F64
    covariance: F64
    costs: tuple[float, ...]  # of each iteration, falling


def minimise(
    residuals: Callable[[F64], F64],
    columns: Callable[[F64, F64, float], F64],
    start: F64,
    sd: F64,
    *,
    iterations: int,
    tolerance: float = 1e-3,
    progress: Callable[[int, float], None] | None = None,
) -> Found:
    """The most likely position, beginning at ``start``.

    Parameters
    ----------
    residuals:
        (m,) at a position, each in units of its own standard deviation.
    columns:
        ``columns(position, residuals, step)``: (m, n) derivatives there.
    sd:
        (n,) prior standard deviations around 0.
    iterations:
        At most.
    tolerance:
        Ends when the objective falls by less than this share.
    """
    x = start.copy()
    r = residuals(x)
    best = _objective(r, x, sd)
    costs = [best]
    damping = 1e-3
    jacobian = columns(x, r, STEP)
    precision = np.diag(1 / sd**2)
    for iteration in range(iterations):
        weights = _weights(r)
        hessian = jacobian.T @ (weights[:, None] * jacobian) + precision
        gradient = jacobian.T @ (weights * r) + x / sd**2
        moved = False
        for _ in range(_MOST_TRIES):
            step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), -gradient)
            step = np.clip(step, -LONGEST, LONGEST)
            tried = residuals(x + step)
            cost = _objective(tried, x + step, sd)
            if cost < best:
                moved = True
                break
            damping = max(damping, 1e-2) * 6
        if not moved:
            break
        x, r = x + step, tried
        fall = best - cost
        best = cost
        costs.append(best)
        damping = max(damping / 10, 1e-4)
        if progress is not None:
            progress(iteration + 1, best)
        if fall < tolerance * best:
            break
        if iteration + 1 < DERIVATIVES:
            jacobian = columns(x, r, STEP)
    hessian = jacobian.T @ (_weights(r)[:, None] * jacobian) + precision
    covariance: F64 = np.linalg.inv(hessian).astype(np.float64)
    return Found(x, r, jacobian, covariance, tuple(costs))


def _weights(residuals: F64) -> F64:
    size = np.abs(residuals)
    out: F64 = np.where(size <= HUBER, 1.0, HUBER / np.maximum(size, 1e-12))
    return out


def _objective(residuals: F64, x: F64, sd: F64) -> float:
    size = np.abs(residuals)
    data = np.where(size <= HUBER, size**2, HUBER * (2 * size - HUBER))
    return float(data.sum() + ((x / sd) ** 2).sum())
