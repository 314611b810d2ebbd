"""Replays a scenario in both twins, and what the rule tests say of it."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmreplay.address_space.plan import Plan
from mmreplay.engine import LockStats, Options, Result, simulate
from mmreplay.engine.oracle import simulate_oracle
from mmreplay.locking.model import LockingModel
from mmreplay.machine.profile import Machine

SHORT, MIDDLE, LONG = "short", "middle", "long"
COSTS = {SHORT: 1000.0, MIDDLE: 5000.0, LONG: 50_000.0, "brief": 300.0, "tens": 10_000.0}


def assert_equal(first: Result, second: Result) -> None:
    for field in dataclasses.fields(Result):
        if field.compare:
            a, b = getattr(first, field.name), getattr(second, field.name)
            where = np.argwhere(np.asarray(a) != np.asarray(b)).tolist()
            assert np.array_equal(a, b), f"{field.name} at {where}: {a} != {b}"
    assert first.detail["dep_wait_ns"] == second.detail["dep_wait_ns"]


def check_accounts(result: Result) -> None:
    """Numbered invariants that hold for every replay (docs/engine.md)."""
    assert result.ops == int(result.op_count.sum()) == int(result.op_delay.sum())  # I1
    waits = sum(x.read_wait_ns + x.write_wait_ns for x in result.locks)
    assert int(result.blame_ns.sum()) == waits == int(result.thread_wait_ns.sum())  # I6
    assert (result.op_busy_ns >= 0).all()
    assert (result.blame_ns >= 0).all()  # I2


def replay(plan: Plan, model: LockingModel, machine: Machine, options: Options) -> Result:
    """The oracle's result; the compiled loop's is equal."""
    expected = simulate_oracle(plan, model, machine, options)
    check_accounts(expected)
    assert_equal(simulate(plan, model, machine, options), expected)
    return expected


def ends(result: Result) -> list[int]:
    return [int(x) for x in result.thread_end_ns]


def lock(result: Result, name: str) -> LockStats:
    return next(x for x in result.locks if x.name == name)
