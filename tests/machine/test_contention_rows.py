"""Latencies beside a thread that holds mmap_lock for long: replayed against measured ones.

The measurements are committed (datasets/runs, datasets/published); the costs come from the
profile, which other measurements of the machine gave (benchmarks/derive_profile.py,
benchmarks/fit_wakeup.py; the publication's idle latencies): none was fitted to these rows.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "check_contention.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_contention", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_contention"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_measured_row_is_met_within_a_factor_of_two(check: ModuleType) -> None:
    found = check.compare("epyc-zen4-guest-2cpu")
    assert len(found) == 22
    assert check.rank_correlation(found) >= 0.9
    off = {row: got / want for row, (want, got) in found.items() if not 0.5 <= got / want <= 2}
    assert off == {}


@pytest.mark.slow
def test_the_rows_measured_elsewhere_are_met_with_a_profile_from_their_idle_column(
    check: ModuleType,
) -> None:
    found = check.compare_published()
    assert len(found) == 12
    assert check.rank_correlation(found) >= 0.9
    off = {row: got / want for row, (want, got) in found.items() if not 0.5 <= got / want <= 2}
    assert off == {}
