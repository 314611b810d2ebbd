"""The engine with the shipped profile against the committed measurement of this machine.

Nothing is measured here: datasets/runs/epyc-guest-2cpu holds what was.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mmreplay.machine import load_machine
from mmreplay.resources import content_root

NAME = "epyc-guest-2cpu"
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "fit_wakeup.py"


@pytest.fixture(scope="module")
def fit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fit_wakeup", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fit_wakeup"] = module
    spec.loader.exec_module(module)
    return module


def test_the_measurement_is_there() -> None:
    assert (content_root() / "datasets" / "runs" / NAME / "machine.parquet").is_file()


@pytest.mark.slow
def test_every_row_of_the_table_is_met_within_a_factor_1_3(fit: ModuleType) -> None:
    """Faulters and mappers alone, two of each, and mixed, by both paths."""
    found = fit.ratios(load_machine(NAME), fit.measured(NAME))
    assert len(found) == 10
    off = {cell: round(ratio, 2) for cell, ratio in found.items() if not 1 / 1.3 <= ratio <= 1.3}
    assert off == {}


@pytest.mark.slow
def test_the_mixed_row_hangs_on_the_wake_up_costs(fit: ModuleType) -> None:
    """Cheap wake-ups would give another answer, so the fit is not idle."""
    machine = fit.with_wake(load_machine(NAME), waker_ns=1000.0, woken_ns=2000.0, sleep_ns=300.0)
    target = {"fill+map": fit.measured(NAME)["fill+map"]}
    assert fit.worst(fit.ratios(machine, target)) > 2


def test_wake_up_costs_lie_within_what_futex_wake_ups_allow(fit: ModuleType) -> None:
    machine = load_machine(NAME)
    for key, (low, high) in fit.bounds(NAME).items():
        number = getattr(machine, key)
        assert number.basis == "fitted"
        assert low - 1 <= number.value <= high + 1
