"""The compiled loop equals the oracle on random plans, models and machines."""

from __future__ import annotations

from typing import Any

import numpy as np
import scenario
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenario import assert_equal, check_accounts
from small import LOCKS, R, W, machine, model, op, plan

from mmreplay.address_space.plan import WAKE_POINT, MarkSet, PlanOp, Trait
from mmreplay.engine import Options, simulate
from mmreplay.engine.oracle import simulate_oracle
from mmreplay.locking.isa import Count, FlushScope, Form, Kind, Op, Operand, RuntimeBit, Scope

ANON = int(RuntimeBit.VMA_ANON_VMA)
DEAD = int(RuntimeBit.VMA_DEAD)
TABLE = int(RuntimeBit.TABLE_PRESENT)
TRIED = int(RuntimeBit.OP_TRIED)


#: Locks in the order in which random programs take them.
ORDER = ["range", "mmap_lock", "vma", "ptl", "zone"]
RANGES = [Operand.PAGE, Operand.OP, Operand.VMA, Operand.VMA1, Operand.NODE, Operand.ALL]


@st.composite
def page_columns(draw: Any) -> dict[str, int]:
    """Ranges that overlap, touch, nest, and cross page-table nodes."""
    first = draw(st.sampled_from([0, 3, 500, 511, 512, (1 << 18) - 2, 1 << 18]))
    columns = {"first_page": first, "last_page": first + draw(st.sampled_from([-1, 0, 1, 9, 600]))}
    if draw(st.booleans()):
        start = max(0, first - draw(st.sampled_from([0, 1, 40])))
        columns["vma_first_page"] = start
        columns["vma_last_page"] = first + draw(st.sampled_from([0, 7, 700]))
    return columns


places = page_columns()


# -- random programs ------------------------------------------------------------------
costs = st.sampled_from(["a", "b", "c"]).flatmap(
    lambda name: st.sampled_from([(Op.COST, name), *((Op.COST, name, by) for by in Count)])
)


@st.composite
def bodies(draw: Any, depth: int, held: tuple[str, ...], sleep: bool, tag: list[int]) -> list[Any]:
    """A balanced piece of program; locks are taken in the order of ``ORDER``."""
    out: list[Any] = []
    for _ in range(draw(st.integers(1, 3))):
        choice = draw(st.integers(0, 13))
        tag[0] += 1
        label = f"l{tag[0]}"
        after = ORDER[max((ORDER.index(h) + 1 for h in held), default=0) :]
        if choice <= 2 or depth == 0:
            out.append(draw(costs))
        elif choice <= 6 and after:
            lock = draw(st.sampled_from(after))
            mode = R if lock == "vma" else draw(st.sampled_from([R, W]))
            if lock in ("ptl", "zone"):
                mode = W
            spin = lock in ("ptl", "zone")
            at = [draw(st.sampled_from(RANGES))] if lock == "range" else []
            inner = draw(bodies(depth - 1, (*held, lock), sleep and not spin, tag))
            if draw(st.booleans()) or lock == "vma":
                skip = draw(bodies(0, held, sleep, tag))
                out += [
                    (Op.TRY, lock, mode, *at, label),
                    *inner,
                    (Op.UNLOCK, lock, mode, *at),
                    (Op.JUMP, label + "x"),
                    label,
                    (Op.COUNT, lock),
                    *skip,
                    label + "x",
                ]
            elif lock == "mmap_lock" and mode == W:
                marks: list[Any] = [(Op.MARK, "vma")] if draw(st.booleans()) else []
                each = [
                    (Op.EACH, draw(st.sampled_from([1, 2])), label),
                    label + "n",
                    (Op.MARK, "vma"),
                    draw(costs),
                    (Op.END, label + "n"),
                    label,
                ]
                down: list[Any] = [(Op.UNLOCK, lock, W)]
                if draw(st.booleans()):
                    rest = draw(bodies(0, (*held, lock), sleep, tag))
                    down = [(Op.DOWNGRADE, lock), *rest, (Op.UNLOCK, lock, R)]
                out += [(Op.LOCK, lock, W), *marks, *each, *inner, *down]
            else:
                out += [(Op.LOCK, lock, mode, *at), *inner, (Op.UNLOCK, lock, mode, *at)]
        elif choice == 7:
            bit = draw(st.sampled_from([ANON, DEAD, TABLE, TRIED]))
            out += [(Op.BRANCH, (0, 0, bit), label), draw(costs), (Op.SET, bit), label]
        elif choice == 8:
            cond = draw(
                st.sampled_from(
                    [
                        (int(Trait.WRITE),),
                        (0, int(Trait.ANON)),
                        (0, 0, 0, 0, 3),
                        (int(Trait.WRITE), 0, 0, ANON, 2),
                    ]
                )
            )
            out += [(Op.BRANCH, cond, label), draw(costs), label]
        elif choice == 9:
            out += [
                (Op.SNAP, "mm_seq", label),
                draw(costs),
                (Op.CHECK, "mm_seq", label),
                (Op.TOUCH, "mm.3", draw(st.integers(0, 1))),
                label,
            ]
        elif choice == 10:
            out.append(
                (
                    Op.FLUSH,
                    draw(st.sampled_from([FlushScope.MM, FlushScope.TOUCHED, FlushScope.TABLES])),
                )
            )
        elif choice == 11:
            lock = draw(st.sampled_from(ORDER))
            out += [(Op.CONTENDED, lock, label), draw(costs), label]
        elif choice == 12 and "ptl" in after:
            out += [
                (Op.EACH, MarkSet.TABLES, label),
                label + "n",
                (Op.LOCK, "ptl", W),
                draw(costs),
                *([(Op.BRANCH, (0, 0, TABLE), label + "b")] if draw(st.booleans()) else []),
                *([(Op.SET, TABLE)] if draw(st.booleans()) else []),
                label + "b",
                (Op.UNLOCK, "ptl", W),
                *([(Op.CONTENDED, "vma", label)] if draw(st.booleans()) else []),
                (Op.END, label + "n"),
                label,
            ]
        elif sleep:
            out.append((Op.SLEEP, "io"))
    return out


@st.composite
def worlds(draw: Any) -> tuple[Any, ...]:
    kinds = [PlanOp.FAULT, PlanOp.MMAP, PlanOp.MUNMAP]
    tag = [0]
    programs = {k: [*draw(bodies(3, (), True, tag)), (Op.DONE,)] for k in kinds}
    forked = draw(st.sampled_from(["mmap_lock", "range"]))
    whole = [Operand.ALL] if forked == "range" else []
    fork = [
        (Op.LOCK, forked, W, *whole),
        (Op.COST, "a"),
        (Op.LOCK, forked, W, Operand.CHILD),
        (Op.COST, "b"),
        (Op.UNLOCK, forked, W, Operand.CHILD),
        (Op.UNLOCK, forked, W, *whole),
        (Op.DONE,),
    ]
    programs[PlanOp.FORK] = fork
    locks = {name: dict(spec) for name, spec in LOCKS.items()}
    locks["mmap_lock"].update(
        steal=draw(st.integers(0, 1)),
        osq=draw(st.integers(0, 1)),
        reader_spin=draw(st.integers(0, 1)),
        bump_acquire=draw(st.integers(0, 1)),
        batch=draw(st.sampled_from([1, 2, 256])),
        spin_us=draw(st.sampled_from([0, 1, 3])),
        handoff_ns=draw(st.sampled_from([0, 2000, 4_000_000])),
        bravo_slots=draw(st.sampled_from([0, 0, 1, 3, 200])),
        bravo_inhibit=draw(st.sampled_from([0, 2, 9])),
    )
    locks["range"] = {
        "kind": Kind.RANGE,
        "scope": Scope.MM,
        "line": draw(st.sampled_from(["mm.range", "mm.2"])),
        "bumps": draw(st.sampled_from(["mm_seq", -1])),
        "round": draw(st.integers(0, 2)),
        "wait": draw(st.integers(0, 1)),
        "range_cost": draw(st.integers(0, 2)),
        "ancestors": draw(st.integers(0, 1)),
    }
    for name in ("ptl", "zone"):
        locks[name]["fifo"] = draw(st.integers(0, 1))
    owner_line = draw(st.sampled_from([None, "mm.3", "mm.2"]))
    if owner_line:
        locks["mmap_lock"]["owner_line"] = owner_line
    locks["vma"]["form"] = draw(st.sampled_from(list(Form)))
    if draw(st.booleans()):
        locks["mm_seq"]["line"] = "mm.2"
    n_threads = draw(st.integers(1, 6))
    traits = st.sampled_from(
        [0, int(Trait.WRITE), int(Trait.ANON), int(Trait.WRITE | Trait.ANON | Trait.POPULATE)]
    )
    times = st.sampled_from([0, 0, 100, 1000, 7000])
    mms = draw(st.integers(1, 2))
    threads: list[list[dict[str, Any]]] = []
    rows = 0
    for t in range(n_threads):
        mm = t % mms
        mine: list[dict[str, Any]] = []
        for _ in range(draw(st.integers(0 if t else 1, 6))):
            kind = draw(st.sampled_from([*kinds, *kinds, PlanOp.FORK, PlanOp.NONE]))
            obj = draw(st.integers(0, 2)) * mms + mm
            marks = [
                (s, draw(st.integers(0, 2)) * mms + mm)
                for s in draw(st.lists(st.sampled_from([1, 2, 7, 7]), max_size=3))
            ]
            point = kind == PlanOp.NONE and draw(st.booleans())
            dependent = rows and draw(st.integers(0, 1 if point else 5)) == 0
            deps = [draw(st.integers(0, rows - 1))] if dependent else []
            own = 10 * mms + 2 * t * mms + mm
            mine.append(
                op(
                    kind,
                    mm=mm,
                    child_mm=mms if kind == PlanOp.FORK else -1,
                    traits=draw(traits) | (int(WAKE_POINT) if point else 0),
                    think_cpu_ns=draw(times),
                    think_blocked_ns=draw(times),
                    vma=draw(st.sampled_from([obj, obj, own, -1])),
                    table=draw(st.sampled_from([obj, own, -1])),
                    anon_slot=draw(st.sampled_from([obj, own, -1])),
                    pages=draw(st.integers(0, 3)),
                    tables=draw(st.integers(0, 2)),
                    sleep_ns=draw(st.sampled_from([-1, 500])),
                    **draw(places),
                    marks=marks,
                    deps=deps,
                    scale=draw(st.sampled_from([512, 1024, 1500])),
                )
            )
        # a dependency on an operation of the same or an earlier thread cannot form a cycle
        rows += len(mine)
        threads.append(mine)
    lengths = np.cumsum([0] + [len(x) for x in threads])
    groups = [draw(st.integers(0, 1)) if t else 0 for t in range(n_threads)]
    loops = [
        int(lengths[t]) if threads[t] and draw(st.booleans()) else -1 for t in range(n_threads)
    ]
    the_plan = plan(
        threads,
        offsets=[draw(times) for _ in threads],
        groups=groups,
        loops=loops,
        tails=[(draw(times), draw(times)) for _ in threads],
    )
    the_machine = machine(
        8,
        {"a": 120, "b": 900, "c": 33},
        spread=draw(st.sampled_from([0.0, 0.4])),
        slice_ns=draw(st.sampled_from([1500, 9000, 3_000_000])),
        wakes_stay=draw(st.booleans()),
        waker_ns=draw(st.sampled_from([0, 800])),
        woken_ns=draw(st.sampled_from([0, 3000])),
        sleep_ns=draw(st.sampled_from([0, 300, 2500])),
    )
    options = Options(
        cores=draw(st.sampled_from([1, 2, 3, 8])),
        wrap=draw(st.booleans()),
        placement=draw(st.sampled_from(["compact", "scatter"])),
        seed=draw(st.integers(0, 3)),
        load=draw(st.sampled_from(["recorded", "saturated"])),
        group=draw(st.sampled_from([-1, 0])),
    )
    return the_plan, model(programs, locks, lines=["mm.3"]), the_machine, options


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(worlds())
def test_compiled_equals_oracle(world: tuple[Any, ...]) -> None:
    the_plan, the_model, the_machine, options = world
    expected = simulate_oracle(the_plan, the_model, the_machine, options)
    result = simulate(the_plan, the_model, the_machine, options)
    assert_equal(result, expected)
    if not options.wrap:
        check_accounts(result)
    again = simulate(the_plan, the_model, the_machine, options)
    assert_equal(result, again)
    if not options.wrap:
        assert result.ops == int((the_plan.traits & WAKE_POINT == 0).sum())


def test_every_trait_reaches_the_compiled_loop() -> None:
    """A class of operations is told apart by each trait that its program tests."""
    for trait in Trait:
        program = [
            (Op.BRANCH, (int(trait),), "yes"), (Op.COST, "a"), (Op.DONE,),
            "yes", (Op.COST, "b"), (Op.DONE,),
        ]  # fmt: skip
        the_model = model({PlanOp.FAULT: program})
        the_machine = machine(costs={"a": 100.0, "b": 7000.0})
        the_plan = plan([[op(PlanOp.FAULT), op(PlanOp.FAULT, traits=trait)]])
        expected = simulate_oracle(the_plan, the_model, the_machine, Options(cores=1))
        assert expected.makespan_ns == 7100, trait
        assert_equal(simulate(the_plan, the_model, the_machine, Options(cores=1)), expected)


def test_a_branch_that_traits_decide_looks_at_no_bit() -> None:
    """It is no ordered step: the operation's end is one then, and pays for an interrupt."""
    traits, bit = int(Trait.WRITE), int(RuntimeBit.VMA_ANON_VMA)
    flush = [(Op.FLUSH, FlushScope.MM), (Op.DONE,)]
    plain = [(Op.BRANCH, (traits, 0, 0, bit), "l"), (Op.COST, "b"), "l", (Op.COST, "b"), (Op.DONE,)]
    the_model = model({PlanOp.FAULT: flush, PlanOp.MMAP: plain})
    shared = {"vma": 0, "anon_slot": 0}
    fault = op(PlanOp.FAULT, think_cpu_ns=100, **shared)
    the_plan = plan([[fault], [op(PlanOp.MMAP, **shared)] * 2])
    expected = scenario.replay(the_plan, the_model, machine(costs={"b": 5000.0}), Options(cores=2))
    assert int(expected.op_busy_ns[PlanOp.MMAP]) == 4 * 5000 + 400
