"""A calendar kept by SimPy gives the compiled engine's results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmreplay.engine import Options, simulate
from mmreplay.locking.loader import load_model
from mmreplay.machine.loader import load_machine

pytest.importorskip("simpy")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from engine_speed import fault_plan
from simpy_twin import SimpyReplay, differences


@pytest.mark.parametrize("kernel", ["linux-6.1", "linux-6.18"])
@pytest.mark.parametrize(("threads", "cores"), [(3, 4), (6, 2)])
def test_simpy_gives_the_engines_results(kernel: str, threads: int, cores: int) -> None:
    plan, model, machine = (
        fault_plan(threads, 900),
        load_model(kernel),
        load_machine("generic-server"),
    )
    options = Options(cores=cores)
    twin = SimpyReplay(plan, model, machine, options)
    twin.run()
    assert twin.events > 900
    assert differences(simulate(plan, model, machine, options), twin.result()) == []
