"""Fits a machine profile to measured rates, through the engine.

Which numbers the runs tell apart is part of the answer: a number that they leave nearly as
uncertain as it was keeps its prior value (times the common factor of all times) and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mmreplay.fit.leastsquares import Found, minimise
from mmreplay.fit.parameters import (
    IDENTIFIED,
    Parameters,
    number_of,
    with_numbers,
)
from mmreplay.machine.profile import Machine, Number

F64 = NDArray[np.float64]

#: Log-standard-deviation of what no choice of costs mends: the model's own error.
MODEL_SD: Final = 0.05
#: More than this many standard deviations from its prior, a number deserves a look.
_FAR: Final = 2.5


class Case(Protocol):
    """A measured rate that can be simulated."""

    @property
    def label(self) -> str:
        """What it is, for messages."""

    def rate(self, machine: Machine, seed: int) -> float:
        """Operations per second, as the workload counts them; may run in several threads."""


@dataclass(frozen=True)
class Target:
    """``rate`` measured (operations per second) with its relative spread."""

    case: Case
    rate: float
    spread: float

    @property
    def sd(self) -> float:
        """Log-standard-deviation of simulated over measured."""
        return math.hypot(self.spread, MODEL_SD)


@dataclass(frozen=True)
class Calibration:
    """What a fit found.

    ``machine`` holds the fitted numbers; ``uncertainty`` by ``section.key``: log-standard-
    deviation; ``identified``: names that the runs have told; ``far``: names more than
    2.5 prior standard deviations away; ``before`` and ``after``: simulated over measured
    (m,), in the order of the targets; ``common``: the factor of all times.
    """

    machine: Machine
    uncertainty: dict[str, float]
    identified: tuple[str, ...]
    far: tuple[str, ...]
    before: F64
    after: F64
    common: float
    found: Found


def calibrate(
    prior: Machine,
    targets: Sequence[Target],
    *,
    measured: Mapping[str, tuple[float, float]],
    source: str,
    seeds: Sequence[int] = (1, 2),
    iterations: int = 6,
    workers: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Calibration:
    """The profile under which the engine's rates come closest to the measured ones.

    Parameters
    ----------
    prior:
        Where the search begins, and what each number is believed to be (by its basis, see
        :data:`~mmreplay.fit.parameters.PRIOR_SD`).
    measured:
        Numbers that were measured directly: ``section.key`` -> (value, log-sd).
    source:
        For the fitted numbers' entries in the profile.
    seeds:
        Simulations of each case; their mean log-rate counts.
    """
    say = progress or (lambda _text: None)
    parameters = Parameters.of(prior, measured)
    wanted = np.log([target.rate for target in targets])
    sd = np.array([target.sd for target in targets])
    n = len(parameters.names)

    with ThreadPoolExecutor(workers) as pool:

        def log_rates(machine: Machine, which: Sequence[int]) -> F64:
            jobs = [
                pool.submit(targets[k].case.rate, machine, seed) for k in which for seed in seeds
            ]
            rates = np.array([max(job.result(), 1e-9) for job in jobs])
            out: F64 = np.log(rates).reshape(len(which), len(seeds)).mean(axis=1)
            return out

        everything = range(len(targets))
        touches = np.ones((len(targets), n), np.bool_)
        first = True

        def residuals(x: F64) -> F64:
            out: F64 = (log_rates(parameters.machine_at(x), everything) - wanted) / sd
            return out

        def columns(x: F64, r: F64, step: float) -> F64:
            nonlocal first
            own = np.zeros((len(targets), n))
            for j in range(n):
                which = np.flatnonzero(touches[:, j]).tolist()
                if not which:
                    continue
                beside = x.copy()
                beside[j] += step
                moved = (log_rates(parameters.machine_at(beside), which) - wanted[which]) / sd[
                    which
                ]
                own[which, j] = (moved - r[which]) / step
                if j % 10 == 9:
                    say(f"derivatives {j + 1} of {n}")
            if first:  # draws are paired: what a number has no part in stays the same exactly
                touches[:] = own != 0
                first = False
            return np.column_stack([own, parameters.common_column(own)])

        found = minimise(
            residuals,
            columns,
            parameters.start,
            parameters.sd,
            iterations=iterations,
            progress=lambda k, cost: say(f"iteration {k}: misfit {cost:.1f}"),
        )
        before = np.exp(log_rates(parameters.machine_at(parameters.start), everything) - wanted)
        remaining = parameters.remaining(found.covariance)
        machine = _profile(parameters, found, remaining, measured, source)
        after = np.exp(log_rates(machine, everything) - wanted)
    spread = parameters.uncertainty(found.covariance)
    own = np.abs(found.position[:-1]) / parameters.sd[:-1]
    names = np.array(parameters.names)
    return Calibration(
        machine=machine,
        uncertainty=dict(zip(parameters.names, spread.tolist(), strict=True)),
        identified=tuple(names[remaining < IDENTIFIED].tolist()),
        far=tuple(names[own > _FAR].tolist()),
        before=before,
        after=after,
        common=float(np.exp(found.position[-1])),
        found=found,
    )


def _profile(
    parameters: Parameters,
    found: Found,
    remaining: F64,
    measured: Mapping[str, tuple[float, float]],
    source: str,
) -> Machine:
    """The profile: what the runs told, and the others at their prior."""
    used = (found.jacobian[:, :-1] != 0).any(axis=0)
    values = parameters.values(found.position)  # those not used are at the prior, by the fit
    spread = parameters.uncertainty(found.covariance)
    prior, prior_of = parameters.machine, parameters.prior
    numbers: dict[str, Number] = {}
    for j, name in enumerate(parameters.names):
        old = number_of(prior, name)
        basis, why = "fitted", f"{source}, ±{spread[j]:.0%}"
        if remaining[j] >= IDENTIFIED:
            stayed = abs(found.position[j]) <= parameters.sd[j]
            if name in measured and stayed:
                basis, why = "measured", f"{source}, measured directly"
            elif name in measured:
                why = f"{source}, known only together with others; the probe gave {prior_of[j]:.5g}"
            elif used[j]:
                why += ", known only together with others"
            else:
                factor = math.exp(parameters.direction[j] * found.position[-1])
                basis = "assumed"
                why = f"{source} do not tell: {prior.name} times {factor:.2f}, common to all"
        numbers[name] = Number(float(values[j]), basis, why, old.spread)
    return with_numbers(prior, numbers)
