"""Plans made together are the plans made one by one; simulations left out would say the same."""

from __future__ import annotations

import os
import threading
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from traces import worker_trace

from mmreplay.address_space import planner as room
from mmreplay.address_space.planner import PlanBundle, build_plan, build_plans
from mmreplay.address_space.rules import load_rules
from mmreplay.address_space.scale import scale_group
from mmreplay.engine.result import Options
from mmreplay.predict import api, rooms
from mmreplay.predict.planning import Planner, Wanted
from mmreplay.trace.store import Trace

OLD, NEW = "linux-6.1", "linux-6.18"


def assert_same(one: PlanBundle, other: PlanBundle) -> None:
    for name, value in one.plan._asdict().items():
        np.testing.assert_array_equal(value, getattr(other.plan, name), err_msg=name)
    for field in fields(one):
        if field.name != "plan":
            mine, theirs = getattr(one, field.name), getattr(other, field.name)
            if isinstance(mine, np.ndarray):
                np.testing.assert_array_equal(mine, theirs)
            else:
                assert mine == theirs, field.name


@pytest.fixture(scope="module")
def trace() -> Trace:
    return worker_trace(threads=3, loops=12)


@pytest.mark.parametrize("threads", [None, 2, 7])
def test_plans_of_one_reading_are_those_of_many(trace: Trace, threads: int | None) -> None:
    who = None if threads is None else scale_group(trace, "worker-#", threads)
    wanted: list[Any] = [
        (load_rules(rules), span)
        for rules in (OLD, NEW)
        for span in (None, (20, 90), (50, 200), (300, 360))
    ]
    together = build_plans(trace, wanted, threads=who, chunk=64)
    for (rules, span), bundle in zip(wanted, together, strict=True):
        assert_same(bundle, build_plan(trace, rules, window=span, threads=who, chunk=64))


def test_the_planner_is_compiled_where_ctrl_c_ends_it(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[bool] = []  # by the main thread, per call: an executor waits for its threads
    real = room.advance

    def advance(*words: Any) -> Any:
        compiled.append(threading.current_thread() is threading.main_thread())
        return real(*words)

    monkeypatch.setattr(room, "advance", advance)
    monkeypatch.setattr(room, "is_cold", lambda name: not compiled, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    wanted = [(load_rules(rules), None) for rules in (OLD, NEW)]
    build_plans(trace, wanted, chunk=64)
    assert compiled[:2] == [True, True]
    assert not any(compiled[2:])  # and then beside each other


def test_planner_reads_the_trace_once_for_all_that_is_wanted(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = room.build_plans

    def counted(*words: Any, **options: Any) -> list[PlanBundle]:
        calls.append(len(words[1]))
        return real(*words, **options)

    monkeypatch.setattr(room, "build_plans", counted)
    planner = Planner(trace, None)
    windows = [Wanted(rules, None, (2, 100)) for rules in (OLD, NEW)]
    planner.build([*windows, Wanted(NEW, 3, (2, 100)), Wanted(NEW, None, None)])
    assert calls == [5]  # two windows under each of two rules, and the whole
    for wanted in windows:
        assert len(planner.bundles(wanted)) == 2
    assert calls == [5]
    planner.build([Wanted(OLD, 6, None)])
    assert calls == [5, 1, 1]  # what is private to each thread is found once
    planner.build([Wanted(OLD, 9, None)])
    assert calls == [5, 1, 1, 1]


@pytest.mark.parametrize("kernel", [OLD, NEW])
@pytest.mark.parametrize("load", ["recorded", "saturated"])
@pytest.mark.parametrize("placement", ["compact", "scatter"])
def test_more_cores_than_threads_change_nothing(
    trace: Trace, kernel: str, load: Any, placement: Any
) -> None:
    model, _ = rooms.kernel_model(kernel, "--kernel")
    machine, _, _ = rooms.machine_profile("generic-server", trace, 64)
    simulator = rooms.Simulator(build_plan(trace, load_rules(model.vma_rules)).plan, model)
    options = Options(cores=3, placement=placement, load=load, wrap=True, group=0)
    enough = simulator.run(machine, options)
    for cores in (4, 9, 64):
        more = simulator.run(machine, replace(options, cores=cores))
        for field in fields(enough):
            if field.compare and field.name != "idle_ns":
                np.testing.assert_array_equal(
                    getattr(more, field.name), getattr(enough, field.name), err_msg=field.name
                )


def test_rows_beyond_the_threads_repeat(trace: Trace) -> None:
    found = api.predict(trace, to_kernel=NEW, cores=(3, 4, 64), load="saturated")
    for kernel in (OLD, NEW):
        rows = [
            replace(row, cores=0, basis="extrapolated")
            for row in found.rows
            if row.kernel == kernel
        ]
        assert rows[0] == rows[1] == rows[2]
    assert found.simulations == 2 * 2 + 2  # one core count, two kernels, two seeds; the factor


def test_a_simulator_gets_ready_once_for_all_its_jobs(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mmreplay.engine as engine

    made = []
    real = engine.Replay

    def counted(*words: Any) -> engine.Replay:
        made.append(words)
        return real(*words)

    monkeypatch.setattr(engine, "Replay", counted)
    api.predict(trace, to_kernel=NEW, cores=(1, 2, 3), machine="generic-server", costs="machine")
    # one plan under each kernel, and the baseline's under the recorded one
    assert len(made) == 3
