"""Invariants of every plan, and that a plan does not depend on how the trace is read."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_invariants import check_plan
from test_plan_twin import Recording, programs

from mmreplay.address_space.planner import build_plan, build_plans
from mmreplay.address_space.rules import load_rules, names
from mmreplay.address_space.scale import scale_group


def recorded(program: list[Any], snapshot: bool) -> Recording:
    recording = Recording(snapshot)
    recording.mapped(-1)
    for who, lasts, what in program:
        recording.step(who, lasts, what)
    return recording


@settings(max_examples=25, deadline=None)
@given(programs, st.booleans(), st.sampled_from(names()), st.sampled_from([3, 17]))
def test_invariants(program: list[Any], snapshot: bool, name: str, chunk: int) -> None:
    recording = recorded(program, snapshot)
    trace, rules, total = recording.trace(), load_rules(name), len(recording.rows)
    whole = build_plan(trace, rules)
    check_plan(whole)
    assert whole.plan.n_ops == total
    halves = [(0, max(total // 2, 1)), (total // 2, total)]
    for bundle in build_plans(trace, [(rules, half) for half in halves], chunk=chunk):
        check_plan(bundle)
        assert bundle.plan.n_ops == bundle.window[1] - bundle.window[0]
    # P14: the same trace gives the same plan, however it is read
    again = build_plan(trace, rules, chunk=chunk)
    for field in whole.plan._fields:
        assert np.array_equal(getattr(whole.plan, field), getattr(again.plan, field)), field


@settings(max_examples=10, deadline=None)
@given(programs)
def test_invariants_of_clones(program: list[Any]) -> None:
    trace = recorded(program, False).trace()
    check_plan(build_plan(trace, load_rules("linux-6.18"), threads=scale_group(trace, "w", 9)))
