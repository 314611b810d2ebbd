"""Calibration recovers the rates of a machine that only the engine knows."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from mmreplay.engine import Options, Replay
from mmreplay.fit.accuracy import Compared, gain_summary, gains, groups, regimes
from mmreplay.fit.calibrate import Calibration, Target, calibrate
from mmreplay.fit.floor import floors, repeated_gains
from mmreplay.fit.leastsquares import minimise
from mmreplay.fit.parameters import Parameters, number_of
from mmreplay.locking.loader import load_model
from mmreplay.machine.loader import load_machine, read_profile
from mmreplay.machine.profile import Machine, Topology
from mmreplay.machine.writer import profile_text

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from engine_speed import fault_plan


@dataclass(frozen=True)
class Faults:
    """Threads that fault in their own VMAs, one mmap in ``every`` operations."""

    kernel: str
    threads: int
    every: int

    @property
    def label(self) -> str:
        return f"{self.kernel} {self.threads} {self.every}"

    @cached_property
    def _replay(self) -> Replay:
        plan = fault_plan(self.threads, 3000 * self.threads, think_ns=50, mmap_every=self.every)
        return Replay(plan, load_model(self.kernel))

    def rate(self, machine: Machine, seed: int) -> float:
        result = self._replay.run(machine, Options(cores=machine.n_cpus, seed=seed))
        return result.ops * 1e9 / result.makespan_ns


CASES = [
    Faults(kernel, threads, every)
    for kernel in ("linux-6.1", "linux-6.18")
    for threads in (1, 2, 4)
    for every in (5, 50)
]


@pytest.fixture(scope="module")
def prior() -> Machine:
    return load_machine("epyc-guest-2cpu")


@pytest.fixture(scope="module")
def truth(prior: Machine) -> Machine:
    """Twice as slow as a whole; waking and zeroing cost something else still."""
    parameters = Parameters.of(prior, {})
    position = parameters.start
    position[-1] = np.log(2)
    for name, factor in (("wake.waker_ns", 0.5), ("costs.zero_page", 1.8)):
        position[parameters.names.index(name)] = np.log(factor)
    return parameters.machine_at(position)


@pytest.fixture(scope="module")
def found(prior: Machine, truth: Machine) -> Calibration:
    targets = [Target(case, case.rate(truth, 7), 0.02) for case in CASES]
    return calibrate(prior, targets, measured={}, source="a test", seeds=(1,), iterations=4)


@dataclass(frozen=True)
class WakeUps:
    """One wake-up after the other: how long the waker and the woken take is told together only."""

    label: str = "wake-ups"

    def rate(self, machine: Machine, seed: int) -> float:
        return 1e9 / (machine.waker_ns.value + machine.woken_ns.value)


def test_a_probed_number_that_the_runs_move_far_is_not_called_measured(prior: Machine) -> None:
    probed = {"wake.waker_ns": (10_000.0, 0.3), "wake.woken_ns": (10_000.0, 0.3)}

    def fitted(rate: float) -> Machine:
        target = Target(WakeUps(), rate, 0.01)
        return calibrate(prior, [target], measured=probed, source="runs").machine

    assert fitted(1e9 / 20_000).woken_ns.basis == "measured"
    moved = fitted(1e9 / 80_000).woken_ns
    assert moved.value > 15_000
    assert moved.basis == "fitted"
    assert "the probe gave 10000" in moved.source


def test_rates_come_close(found: Calibration) -> None:
    assert np.median(np.abs(found.before - 1)) > 0.4
    assert np.median(np.abs(found.after - 1)) < 0.05
    assert np.abs(found.after - 1).max() < 0.3
    assert 1.1 < found.common < 3


def test_what_no_run_uses_stays_at_the_prior_and_says_so(
    found: Calibration, prior: Machine
) -> None:
    fork = number_of(found.machine, "costs.fork_common")
    assert fork.value == pytest.approx(found.common * number_of(prior, "costs.fork_common").value)
    assert (fork.basis, "do not tell" in fork.source) == ("assumed", True)
    assert "costs.fork_common" not in found.identified
    # fault_entry, walk and zero_page are only ever paid together
    zero = number_of(found.machine, "costs.zero_page")
    assert zero.basis == "fitted"


def test_what_was_measured_directly_is_kept(prior: Machine, truth: Machine) -> None:
    targets = [Target(case, case.rate(truth, 7), 0.02) for case in CASES[:2]]
    direct = {"lines.line_llc_ns": (61.0, 0.05), "costs.syscall": (250.0, 0.05)}
    found = calibrate(prior, targets, measured=direct, source="a test", seeds=(1,), iterations=1)
    syscall = number_of(found.machine, "costs.syscall")
    assert syscall.value == pytest.approx(250, rel=0.1)
    assert syscall.basis in ("measured", "fitted")


def test_a_profile_comes_back_as_it_was_written(found: Calibration, tmp_path: Path) -> None:
    machine = replace(found.machine, fitted_on=("page_fault1", "brk1"))
    text = profile_text(machine, Topology(1, 1, 2, 1), "lscpu", 'made by a "test"\nof two lines')
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    again = read_profile(tmp_path / "mine.toml")
    assert again.fitted_on == ("page_fault1", "brk1")
    assert again.n_cpus == 2
    assert again.costs.keys() == machine.costs.keys()
    for name, number in machine.costs.items():
        assert again.costs[name].value == pytest.approx(number.value, rel=1e-3)
        assert again.costs[name].basis == number.basis
    assert again.waker_ns.value == pytest.approx(machine.waker_ns.value, rel=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.toml"]


def test_least_squares_on_a_problem_with_a_known_answer() -> None:
    """One residual says x + y = 2, none tells x from y: the prior shares it equally."""

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.array([(x[0] + x[1] - 2) / 0.01])

    def columns(x: np.ndarray, r: np.ndarray, step: float) -> np.ndarray:
        return np.array([[100.0, 100.0, 0.0]])

    found = minimise(residuals, columns, np.zeros(3), np.ones(3), iterations=20, tolerance=1e-12)
    assert found.position == pytest.approx([1, 1, 0], abs=1e-3)
    sd = np.sqrt(np.diag(found.covariance))
    assert sd[:2] == pytest.approx([np.sqrt(0.5)] * 2, rel=0.01)
    assert sd[2] == pytest.approx(1)
    assert all(a > b for a, b in zip(found.costs, found.costs[1:], strict=False))


def test_one_wild_case_does_not_bend_the_others(prior: Machine) -> None:
    targets = [Target(case, case.rate(prior, 7), 0.02) for case in CASES]
    targets[0] = replace(targets[0], rate=targets[0].rate * 5)
    found = calibrate(prior, targets, measured={}, source="a test", seeds=(1,), iterations=3)
    assert np.median(np.abs(found.after[1:] - 1)) < 0.05


# -- accuracy ---------------------------------------------------------------------------------


def point(
    path: str, threads: int, measured: float, simulated: float, spread: float = 0.02
) -> Compared:
    return Compared("m", "w", path, threads, "free", 4, measured, spread, simulated, False)


def test_regimes_follow_the_measured_curve() -> None:
    curve = [point("vma", n, rate, rate) for n, rate in ((1, 100), (2, 190), (4, 280), (8, 285))]
    found = regimes(curve)
    assert [found[p] for p in curve] == ["below", "below", "near", "past"]
    assert [p.load_group for p in curve] == ["n_le_c", "n_le_c", "n_le_c", "n_gt_c"]


def test_groups_count_every_point_once_beside_the_sum() -> None:
    points = [point("vma", n, 100 * n, 110 * n) for n in (1, 2, 4, 8)]
    rows = groups(points)
    everything = [row for row in rows if row["regime"] == "all"]
    assert sum(row["n"] for row in everything) == 4
    assert sum(row["n"] for row in rows) == 8
    for row in rows:
        assert row["median_abs_error"] == pytest.approx(0.1)
        assert row["bias"] == pytest.approx(0.1)


def test_gains_compare_the_two_paths_of_one_point() -> None:
    points = [
        *(point("vma", n, 100, 90) for n in (1, 2, 4)),
        point("mmap_lock", 1, 99, 100),  # equal within the noise: no sign to get right
        point("mmap_lock", 2, 50, 45),  # 2 and 2
        point("mmap_lock", 4, 50, 99),  # 2 and 0.91: the wrong sign
    ]
    rows = gains(points)
    assert [row["right_sign"] for row in rows] == [None, True, False]
    assert [row["measured"] for row in rows] == pytest.approx([100 / 99, 2, 2])
    summary = gain_summary(rows)
    assert (summary["n"], summary["clear"], summary["wrong_sign"]) == (3, 2, 1)
    assert summary["within_10_percent"] == pytest.approx(1 / 3)
    assert summary["no_gain_within_10_percent"] == pytest.approx(1 / 3)


def test_predictions_without_a_model_stand_beside_the_simulation() -> None:
    one = replace(point("vma", 1, 100, 50), rates=(100, 100, 100))
    two = replace(point("vma", 2, 160, 176), rates=(160, 200))
    errors = {row["predictor"]: (row["n"], row["median_abs_error"]) for row in floors([two, one])}
    assert errors["simulation"] == (1, pytest.approx(0.1))  # not over the point that they know
    assert errors["linear"] == (1, pytest.approx(200 / 160 - 1))
    assert errors["unchanged"] == (1, pytest.approx(1 - 100 / 160))
    assert errors["repetition"][0] == 6 + 2
    assert errors["repetition"][1] == 0


def test_gains_are_repeated_as_well_as_their_runs() -> None:
    fast, slow = point("vma", 1, 200, 200), point("mmap_lock", 1, 100, 100)
    steady = [replace(fast, rates=(200, 210)), replace(slow, rates=(100, 105))]
    wild = [replace(fast, rates=(200, 300)), replace(slow, rates=(100, 100))]
    assert repeated_gains(steady) == 1
    assert repeated_gains(wild) == 0
    assert repeated_gains([fast, slow]) is None
