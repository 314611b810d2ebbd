"""The compiled loop equals the oracle where many threads want the same few locks at once."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenario import check_accounts, replay
from small import LOCKS, R, W, machine, model, op, plan
from test_twins import RANGES, places

from mmreplay.address_space.plan import PlanOp
from mmreplay.engine import Options
from mmreplay.locking.isa import FlushScope, Kind, Op, Scope

KINDS = [PlanOp.FAULT, PlanOp.MMAP, PlanOp.MUNMAP, PlanOp.MPROTECT]
costs = st.sampled_from(["a", "b", "c"])


@st.composite
def sections(draw: Any, label: str) -> list[Any]:
    """One lock section: lock or try, something inside, unlock."""
    lock = draw(st.sampled_from(["range", "range", "mmap_lock", "zone"]))
    mode = W if lock == "zone" else draw(st.sampled_from([R, R, W]))
    at = [draw(st.sampled_from(RANGES))] if lock == "range" else []
    inside: list[Any] = [(Op.COST, draw(costs))]
    if lock != "zone":
        more = draw(st.sampled_from([None, "sleep", "mm", "touched", "nested"]))
        if more == "sleep":
            inside.append((Op.SLEEP, "io"))
        elif more == "nested":
            inside += [(Op.LOCK, "zone", W), (Op.COST, "c"), (Op.UNLOCK, "zone", W)]
        elif more:
            inside.append((Op.FLUSH, FlushScope[more.upper()]))
    unlock: list[Any] = [(Op.UNLOCK, lock, mode, *at)]
    if lock == "mmap_lock" and mode == W and draw(st.booleans()):
        unlock = [(Op.DOWNGRADE, lock), (Op.COST, draw(costs)), (Op.UNLOCK, lock, R)]
    if draw(st.integers(0, 3)) == 0:
        return [(Op.TRY, lock, mode, *at, label), *inside, *unlock, label]
    return [(Op.LOCK, lock, mode, *at), *inside, *unlock]


@st.composite
def crowds(draw: Any) -> tuple[Any, ...]:
    programs: dict[PlanOp, list[Any]] = {}
    for kind in KINDS:
        parts = [draw(sections(f"{kind.name}{n}")) for n in range(draw(st.integers(1, 2)))]
        programs[kind] = [*(row for part in parts for row in part), (Op.DONE,)]
    locks = {name: dict(spec) for name, spec in LOCKS.items()}
    locks["zone"]["fifo"] = draw(st.integers(0, 1))
    locks["mmap_lock"].update(
        bravo_slots=draw(st.sampled_from([1, 2, 500])),
        bravo_inhibit=draw(st.sampled_from([0, 1, 9])),
        osq=draw(st.integers(0, 1)),
        reader_spin=draw(st.integers(0, 1)),
        handoff_ns=draw(st.sampled_from([0, 2000, 4_000_000])),
    )
    locks["range"] = {
        "kind": Kind.RANGE,
        "scope": Scope.MM,
        "line": "mm.range",
        "bumps": "mm_seq",
        "bump_acquire": draw(st.integers(0, 1)),
        "round": draw(st.integers(0, 2)),
        "wait": draw(st.integers(0, 1)),
        "range_cost": draw(st.integers(0, 2)),
        "ancestors": draw(st.integers(0, 1)),
    }
    times = st.sampled_from([0, 50, 700])
    threads = [
        [
            op(
                draw(st.sampled_from(KINDS)),
                think_cpu_ns=draw(times),
                pages=draw(st.integers(0, 3)),
                tables=draw(st.integers(1, 3)),
                **draw(places),
            )
            for _ in range(draw(st.integers(1, 8)))
        ]
        for _ in range(draw(st.integers(2, 8)))
    ]
    return (
        plan(threads, offsets=[draw(times) for _ in threads]),
        model(programs, locks),
        machine(
            8,
            {"a": 120, "b": 2500, "c": 30},
            slice_ns=draw(st.sampled_from([1500, 9000, 3_000_000])),
            wakes_stay=draw(st.booleans()),
            waker_ns=draw(st.sampled_from([0, 800])),
            woken_ns=draw(st.sampled_from([0, 3000])),
            sleep_ns=draw(st.sampled_from([0, 300, 2500])),
        ),
        Options(cores=draw(st.sampled_from([1, 2, 3, 8]))),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(crowds())
def test_compiled_equals_oracle_in_a_crowd(world: tuple[Any, ...]) -> None:
    result = replay(*world)
    check_accounts(result)
    assert result.ops == world[0].n_ops
