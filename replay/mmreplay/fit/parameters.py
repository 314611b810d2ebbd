"""The numbers of a machine profile as one vector, with what is believed of each beforehand.

Everything is in logarithms: a number is its prior value times ``exp(common + own)``.  The
*common* factor is shared by all times (one machine is slower than another as a whole);
``own`` is what this number differs by beyond that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.machine.profile import Machine, Number
from mmreplay.machine.writer import SECTIONS

F64 = NDArray[np.float64]

#: Log-standard-deviation of a number's own factor, by the basis that the prior gives it:
#: what two measured profiles of one vendor differ by, and for what nobody measured a factor
#: of nearly 2 either way.
PRIOR_SD: Final = {"measured": 0.2, "fitted": 0.35, "assumed": 0.6}
#: Of the common factor: machines of one decade.
COMMON_SD: Final = 0.4
#: Not fitted: what has no bearing on a rate (or is a policy of the kernel, not a cost).
_FIXED: Final = frozenset({"wake.slice_ns", "lines.line_smt_ns"})
#: Speeds, which fall as times rise.
_SPEEDS: Final = frozenset({"limits.zero_bytes_per_ns"})
#: Uncertainty that the runs leave a number, as a share of the prior's: up to this it is
#: identified.  Beyond, a number that the runs use is known only together with others (their
#: sum is, say); the others they do not tell at all.
IDENTIFIED: Final = 0.7


def names_of(machine: Machine) -> list[str]:
    """``section.key`` of every number that can be fitted, in the order of the file."""
    found = [f"costs.{name}" for name in machine.costs]
    for section, keys in SECTIONS.items():
        found += [f"{section}.{key}" for key in keys]
    return [name for name in found if name not in _FIXED]


def number_of(machine: Machine, name: str) -> Number:
    """The number called ``section.key``."""
    section, key = name.split(".")
    number = machine.costs[key] if section == "costs" else getattr(machine, key)
    assert isinstance(number, Number)
    return number


def with_numbers(machine: Machine, numbers: Mapping[str, Number]) -> Machine:
    """``machine`` with other numbers, by ``section.key``."""
    costs = dict(machine.costs)
    scalars: dict[str, Any] = {}
    for name, number in numbers.items():
        section, key = name.split(".")
        if section == "costs":
            costs[key] = number
        else:
            scalars[key] = number
    return replace(machine, costs=costs, **scalars)


@dataclass(frozen=True)
class Parameters:
    """The prior of ``names`` (n,); positions are vectors (n + 1,): own factors, then the common."""

    machine: Machine
    names: tuple[str, ...]
    prior: F64  # (n,) values
    sd: F64  # (n + 1,)
    direction: F64  # (n,) of the common factor: +1 times, -1 speeds, 0 what was measured here

    @classmethod
    def of(cls, machine: Machine, measured: Mapping[str, tuple[float, float]]) -> Parameters:
        """Priors from a profile; ``measured``: name -> (value, log-sd) that replace them."""
        names = names_of(machine)
        values, spreads = [], []
        for name in names:
            number = number_of(machine, name)
            value, spread = measured.get(name, (number.value, PRIOR_SD[number.basis]))
            values.append(value)
            spreads.append(spread)
        return cls(
            machine,
            tuple(names),
            np.array(values),
            np.array([*spreads, COMMON_SD]),
            np.array([0.0 if n in measured else -1.0 if n in _SPEEDS else 1.0 for n in names]),
        )

    @property
    def start(self) -> F64:
        return np.zeros(len(self.names) + 1)

    def values(self, position: F64) -> F64:
        """(n,) values at ``position``."""
        out: F64 = self.prior * np.exp(position[:-1] + self.direction * position[-1])
        return out

    def machine_at(self, position: F64) -> Machine:
        """The profile there, for the engine: basis and source are those of the prior."""
        values = self.values(position).tolist()
        numbers = {
            name: replace(number_of(self.machine, name), value=value)
            for name, value in zip(self.names, values, strict=True)
        }
        return with_numbers(self.machine, numbers)

    def common_column(self, columns: F64) -> F64:
        """Sensitivity to the common factor from that to each own factor: (m, n) -> (m,)."""
        out: F64 = columns @ self.direction
        return out

    def remaining(self, covariance: F64) -> F64:
        """(n,) Uncertainty of each own factor as a share of the prior's: 1 nothing learnt."""
        out: F64 = np.sqrt(np.maximum(np.diag(covariance)[:-1], 0)) / self.sd[:-1]
        return out

    def uncertainty(self, covariance: F64) -> F64:
        """(n,) Log-standard-deviation of each value: its own factor and the common one."""
        n = len(self.names)
        own, common, both = np.diag(covariance)[:n], covariance[n, n], covariance[:n, n]
        out: F64 = np.sqrt(np.maximum(own + common + 2 * self.direction * both, 0))
        return out
