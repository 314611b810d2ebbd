"""The per-VMA lock, spin locks, shootdowns, CPUs and accounting: scenarios checked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scenario import COSTS, LONG, MIDDLE, SHORT, assert_equal, ends, lock, replay
from small import LOCKS, R, W, machine, model, op, plan

from mmreplay.address_space.plan import MarkSet, PlanOp
from mmreplay.engine import Options, Result, simulate
from mmreplay.engine.oracle import simulate_oracle
from mmreplay.errors import UserError
from mmreplay.locking.isa import FlushScope, Form, Op, RuntimeBit

FAULT = [
    (Op.TRY, "vma", R, "busy"),
    (Op.COST, SHORT),
    (Op.UNLOCK, "vma", R),
    (Op.DONE,),
    "busy",
    (Op.COUNT, "fallback"),
    (Op.LOCK, "mmap_lock", R),
    (Op.COST, SHORT),
    (Op.UNLOCK, "mmap_lock", R),
    (Op.DONE,),
]


def protect(*after: Any, cost: str = MIDDLE) -> list[Any]:
    return [
        (Op.LOCK, "mmap_lock", W),
        (Op.EACH, MarkSet.TARGETS, "marked"),
        "next",
        (Op.MARK, "vma"),
        (Op.END, "next"),
        "marked",
        (Op.COST, cost),
        *(after or [(Op.UNLOCK, "mmap_lock", W)]),
        (Op.DONE,),
    ]


def run(
    programs: dict[PlanOp, list[Any]],
    threads: list[list[dict[str, Any]]],
    offsets: list[int] | None = None,
    cores: int = 4,
    form: Form = Form.REFCOUNT,
    costs: dict[str, float] | None = None,
    **numbers: Any,
) -> Result:
    locks = {name: dict(spec) for name, spec in LOCKS.items()}
    locks["vma"]["form"] = form
    inputs = (
        plan(threads, offsets=offsets),
        model(programs, locks),
        machine(4, costs or COSTS, **numbers),
        Options(cores=cores),
    )
    return replay(*inputs)


def writer(vmas: list[int]) -> dict[str, Any]:
    return op(PlanOp.MPROTECT, vma=vmas[0], marks=[(MarkSet.TARGETS, v) for v in vmas])


PROGRAMS = {PlanOp.FAULT: FAULT, PlanOp.MPROTECT: protect()}


def test_fault_in_another_vma_does_not_see_the_writer() -> None:
    alone = run(PROGRAMS, [[op(vma=1)], [op(vma=0)]], [100, 0])
    beside = run(PROGRAMS, [[op(vma=1)], [writer([0])]], [100, 0])
    # The sequence's line is unmodified so far: the same time, no lock of the address space.
    assert ends(beside)[0] == ends(alone)[0] == 100 + 10 + 1000 + 10
    assert beside.reasons["fallback"] == 0
    assert lock(beside, "mmap_lock").read == 0


def test_fault_in_a_marked_vma_falls_back_and_queues_behind_the_writer() -> None:
    # T1 marks: lock 10, mark 20..30, works until 5030.  T0's try at 1000 sees the mark for
    # nothing (the sequence's line is unowned), its RMW on mmap_lock: 1050, queue 1060.
    # T1 bumps the sequence (0), releases 5080, wait_lock 5090, waker 6090; T0 11090..12090,
    # and its release moves the line: 12140.
    result = run(PROGRAMS, [[op(vma=0)], [writer([0])]], [1000, 0])
    assert ends(result) == [12_140, 6090]
    assert result.reasons["fallback"] == 1
    assert lock(result, "vma").try_failed == 1
    assert lock(result, "vma").mark == 1


def test_marks_fall_together_with_the_write_section() -> None:
    for after in ((), ((Op.DOWNGRADE, "mmap_lock"), (Op.COST, LONG), (Op.UNLOCK, "mmap_lock", R))):
        programs = {PlanOp.FAULT: FAULT, PlanOp.MPROTECT: protect(*after)}
        faults = [[op(vma=v)] for v in (0, 1)]
        result = run(programs, [*faults, [writer([0, 1])]], [7000, 7000, 0])
        assert lock(result, "vma").mark == 2
        assert result.reasons["fallback"] == 0  # at 7000 the W part is over
        assert max(ends(result)[:2]) < 10_000


def test_mark_waits_for_the_faults_in_flight() -> None:
    # T0 pins 0..10 and works until 1010.  T1 has mmap_lock by 110, its mark takes the line:
    # 160, and waits; asleep 460.  T0 unpins: line 1060, wakes: 2060.  T1 runs at 7060, the
    # second RMW moves the line: 7110; works until 12110, release 10.
    result = run(PROGRAMS, [[op(vma=0)], [writer([0])]], [0, 100])
    assert ends(result) == [2060, 12_120]
    assert lock(result, "vma").write_wait_ns == 7060 - 110
    # The rwsem form spins for 10.5 us first, so the release comes in time: T1 goes on at
    # 1060, moves the line: 1110, works until 6110.
    result = run(PROGRAMS, [[op(vma=0)], [writer([0])]], [0, 100], form=Form.RWSEM)
    assert ends(result) == [1060, 6120]


def test_no_new_reader_gets_in_while_a_writer_drains() -> None:  # 6.15 on: bit 30 is set
    result = run(PROGRAMS, [[op(vma=0)], [writer([0])], [op(vma=0)]], [0, 100, 500])
    assert result.reasons["fallback"] == 1
    assert lock(result, "vma").read == 1


def test_a_writer_that_spins_for_a_vma_lock_keeps_nobody_out_before_it_queues() -> None:
    # 6.4-6.14: down_write of the VMA's rwsem sets no bit while it spins.  T2 pins at 500 (line
    # 550) beside T0 and works until 1550; T0 unpins 1010..1060, T2 1550..1600: only then T1 goes
    # on, its second RMW 1650, works until 6650, release 6660.
    threads = [[op(vma=0)], [writer([0])], [op(vma=0)]]
    result = run(PROGRAMS, threads, [0, 100, 500], form=Form.RWSEM)
    assert ends(result) == [1060, 6660, 1600]
    assert lock(result, "vma").read == 2
    assert result.reasons["fallback"] == 0
    # T0 works until 50010.  T1's window ends at 160 + 10500 = 10660: it queues (WAITERS), and T2
    # falls back at 10660, but not at 10659.
    slow = {PlanOp.MMAP: [(Op.TRY, "vma", R, "no"), (Op.COST, LONG), (Op.UNLOCK, "vma", R),
                          "no", (Op.DONE,)]}  # fmt: skip
    for begin, fallbacks in ((10_659, 0), (10_660, 1)):
        threads = [[op(PlanOp.MMAP, vma=0)], [writer([0])], [op(vma=0)]]
        result = run(PROGRAMS | slow, threads, [0, 100, begin], form=Form.RWSEM)
        assert result.reasons["fallback"] == fallbacks


def test_marking_again_costs_a_read_only() -> None:
    once = run(PROGRAMS, [[writer([0])], [op(vma=0)]], [0, 50_000])
    twice = run(PROGRAMS, [[writer([0, 0])], [op(vma=0)]], [0, 50_000])
    assert ends(once)[0] == ends(twice)[0] == 10 + 20 + 5000 + 10
    assert lock(twice, "vma").mark == 1


def test_without_a_vma_the_fault_falls_back() -> None:
    result = run(PROGRAMS, [[op(vma=-1)]])
    assert result.reasons["fallback"] == 1


def test_spin_lock_is_first_in_first_out() -> None:
    body = [(Op.LOCK, "zone", W), (Op.COST, SHORT), (Op.UNLOCK, "zone", W), (Op.DONE,)]
    # T0 10..1010; T1's and T2's failed RMWs took the line: release 1060; T1 has it with the
    # line: 1110..2110.  The line is its own, but T0... nobody touched it: 2120, T2 2170.
    result = run({PlanOp.FAULT: body}, [[op()], [op()], [op()]], [0, 100, 200])
    assert ends(result) == [1060, 2120, 3180]
    assert lock(result, "zone").write_wait_ns == (1110 - 100) + (2170 - 200)


def test_accidental_sharing_of_a_line_costs() -> None:
    touch = [(Op.TOUCH, "mm.3", 1), (Op.COST, SHORT), (Op.DONE,)]
    programs = {PlanOp.FAULT: FAULT, PlanOp.MMAP: touch}
    quiet = run(programs, [[op(vma=0)], [op(PlanOp.MMAP)]], [1000, 5000])
    noisy = run(programs, [[op(vma=0)], [op(PlanOp.MMAP)]], [1000, 0])
    # A store to the line of mm_lock_seq makes the fault's load a transfer.
    assert ends(noisy)[0] - ends(quiet)[0] == 50


def test_shootdown_waits_and_steals_from_its_targets() -> None:
    body = [(Op.FLUSH, FlushScope.MM), (Op.DONE,)]
    long = [(Op.COST, LONG), (Op.DONE,)]
    # Two targets: 100 + 1000 + 200; each pays 400 at its next ordered step, its end.
    result = run(
        {PlanOp.MUNMAP: body, PlanOp.FAULT: long},
        [[op(PlanOp.MUNMAP)], [op()], [op()]],
        [30_000, 0, 10_000],
    )
    assert ends(result) == [31_300, 50_400, 60_400]
    assert int(result.op_busy_ns[PlanOp.FAULT]) == 2 * 50_400


def test_freed_page_tables_interrupt_lazy_cpus_once() -> None:
    def end(scope: FlushScope, back_ns: int = 0) -> int:
        programs = {
            PlanOp.MUNMAP: [(Op.FLUSH, scope), (Op.DONE,)],
            PlanOp.FAULT: [(Op.COST, LONG), (Op.DONE,)],
        }
        others = [op()]
        if back_ns:  # the other thread runs once more, before the second unmapping
            others.append(op(think_blocked_ns=back_ns))
        flushes = [op(PlanOp.MUNMAP), op(PlanOp.MUNMAP, think_cpu_ns=100_000)]
        return ends(run(programs, [flushes, others], [60_000, 0]))[0]

    # T1 has left its CPU at 50000: it is lazy, and only asked where page tables are freed.
    assert end(FlushScope.MM) == 160_200
    # 100 + 1000, and it is out of the address space: the second costs 100.
    assert end(FlushScope.TABLES) == 161_200
    # T1 comes back at 70000 for 50000 and leaves again: 1000 once more.
    assert end(FlushScope.TABLES, 20_000) == 162_200


def test_who_waits_for_acknowledgements_serves_other_shootdowns_meanwhile() -> None:
    body = [(Op.FLUSH, FlushScope.MM), (Op.DONE,)]
    programs = {PlanOp.MUNMAP: body, PlanOp.FAULT: [(Op.COST, LONG), (Op.DONE,)]}
    threads = [[op(), op(PlanOp.MUNMAP)]] * 2
    # T0 waits from 50000 to 51100; its interrupt is with T1 at 50300.  T1 has 400 paid by 50900
    # and flushes; its own interrupt would be with T0 at 51200, when that is done.
    assert ends(run(programs, threads, [0, 500])) == [51_100, 52_000]
    # T1 waits too when T0's interrupt comes, and the other way round: nobody loses anything.
    assert ends(run(programs, threads, [0, 0])) == [51_100, 51_100]
    assert ends(run(programs, threads, [0, 200])) == [51_100, 51_300]


def test_more_threads_than_cpus_take_turns_by_slices() -> None:
    body = [(Op.COST, SHORT)] * 2 + [(Op.DONE,)]
    # One CPU, slice 4000: T0 runs two operations, then T1 after a switch of 500, and so on.
    result = run({PlanOp.FAULT: body}, [[op()] * 5, [op()] * 5], cores=1, slice_ns=4000)
    # T0 0-4000, T1 4500-8500, T0 9000-13000, T1 13500-17500, T0 18000-20000, T1 20500-22500.
    assert ends(result) == [20_000, 22_500]
    assert result.idle_ns == 0


def test_sleep_gives_the_cpu_to_another() -> None:
    body = [(Op.SLEEP, "io"), (Op.DONE,)]
    work = [(Op.COST, SHORT), (Op.DONE,)]
    result = run({PlanOp.FAULT: body, PlanOp.MMAP: work}, [[op()], [op(PlanOp.MMAP)]], cores=1)
    # T0 sleeps at once until 20000; T1 runs on the idle CPU.
    assert ends(result) == [20_000, 1000]
    assert result.sleep_ns == 20_000


def test_dependency_delays_and_is_no_lock_wait() -> None:
    body = [(Op.COST, SHORT), (Op.DONE,)]
    result = run({PlanOp.FAULT: body}, [[op()], [op(deps=[0])]])
    # T0 is done at 1000; T1 is woken for free and runs 5000 later.
    assert ends(result) == [1000, 7000]
    assert result.detail["dep_wait_ns"] == 6000
    assert int(result.op_wait_ns.sum()) == 0


def test_runtime_bits_are_raced_for() -> None:
    body = [
        (Op.BRANCH, (0, 0, RuntimeBit.TABLE_PRESENT), "there"),
        (Op.COUNT, "made"),
        (Op.SET, RuntimeBit.TABLE_PRESENT),
        "there",
        (Op.COST, SHORT),
        (Op.DONE,),
    ]
    result = run({PlanOp.FAULT: body}, [[op(table=0)] * 3, [op(table=0)] * 2], [0, 10])
    assert result.reasons["made"] == 1


def test_draws_are_paired_between_models_and_core_counts() -> None:
    first = model({PlanOp.FAULT: [(Op.COST, "a"), (Op.COST, "b"), (Op.DONE,)]})
    second = model({PlanOp.FAULT: [(Op.COST, "b"), (Op.COST, "a"), (Op.DONE,)]})
    the_plan = plan([[op()] * 20, [op()] * 20])
    the_machine = machine(4, {"a": 1000, "b": 3000}, spread=0.5)
    results = [
        simulate(the_plan, m, the_machine, Options(cores=c, seed=7))
        for m in (first, second)
        for c in (2, 4)
    ]
    for result in results[1:]:
        assert np.array_equal(result.op_busy_ns, results[0].op_busy_ns)
    other = simulate(the_plan, first, the_machine, Options(cores=2, seed=8))
    assert not np.array_equal(other.op_busy_ns, results[0].op_busy_ns)


def test_littles_law_and_no_wait_without_contention() -> None:
    work = [(Op.LOCK, "mmap_lock", R), (Op.COST, SHORT), (Op.UNLOCK, "mmap_lock", R), (Op.DONE,)]
    result = run({PlanOp.FAULT: work}, [[op(think_cpu_ns=500)] * 50 for _ in range(4)])
    assert int(result.op_wait_ns.sum()) == 0
    # Mean number inside operations = throughput x mean time inside (all time is think or busy).
    inside = int(result.op_busy_ns.sum())
    total = sum(ends(result))
    assert total == inside + 4 * 50 * 500


def test_window_runs_from_a_tenth_of_the_work_to_the_first_end() -> None:
    work = [(Op.COST, SHORT), (Op.DONE,)]
    inputs = (
        plan([[op()] * 20, [op()] * 40], loops=[-1, 20]),
        model({PlanOp.FAULT: work}),
        machine(4, COSTS),
        Options(cores=2, wrap=True),
    )
    result = simulate(*inputs)
    assert_equal(result, simulate_oracle(*inputs))
    assert result.window_end_ns == 20_000
    # Six of 60 operations are recorded, each at the end of the next one, at 4000.  Until 20000
    # each thread ends 16 more, but T0's end comes before T1's 20th at the same time.
    assert result.window_begin_ns == 4000
    assert result.window_ops == 16 + 15


def test_saturated_load_drops_blocked_think_of_the_group() -> None:
    work = [(Op.COST, SHORT), (Op.DONE,)]
    the_plan = plan([[op(think_blocked_ns=9000)] * 3])
    for load, expected in (("recorded", 30_000), ("saturated", 3000)):
        result = simulate(
            the_plan, model({PlanOp.FAULT: work}), machine(4, COSTS), Options(cores=1, load=load)
        )  # type: ignore[arg-type]
        assert result.makespan_ns == expected


def test_threads_that_wait_for_ever_are_an_error_of_the_model() -> None:
    leak = [(Op.LOCK, "mmap_lock", W), (Op.DONE,)]
    inputs = (plan([[op()], [op()]]), model({PlanOp.FAULT: leak}), machine(4), Options(cores=2))
    for twin in (simulate, simulate_oracle):
        with pytest.raises(UserError, match="wait for ever"):
            twin(*inputs)


def test_a_lap_that_takes_no_time_is_not_repeated() -> None:
    """Operations without a program and without think time: round and round at one instant."""
    idle = [op(PlanOp.NONE, think_cpu_ns=0)] * 2
    the_plan = plan([[op()] * 3, idle], groups=[0, 1], loops=[-1, 3])
    inputs = (the_plan, model({PlanOp.FAULT: FAULT}), machine(4))
    for twin in (simulate, simulate_oracle):
        assert twin(*inputs, Options(cores=2, wrap=True, group=0)).op_count[PlanOp.NONE] == 2


def test_a_replay_ends_though_the_measured_thread_does_not_get_on() -> None:
    """The others wrap around until they have done the plan's three operations four times."""
    slow, quick = [op(think_blocked_ns=10**12)], [op()] * 2
    the_plan = plan([slow, quick], groups=[0, 1], loops=[-1, 1])
    inputs = (the_plan, model({PlanOp.FAULT: [(Op.COST, SHORT), (Op.DONE,)]}), machine(4, COSTS))
    for twin in (simulate, simulate_oracle):
        result = twin(*inputs, Options(cores=2, wrap=True, group=0))
        # the twelfth is counted when the thirteenth ends
        assert (result.ops, result.makespan_ns) == (13, 13_000)


@pytest.mark.parametrize("cores", [0, -1, 5, 10**9])
def test_core_counts_outside_the_machine_are_refused(cores: int) -> None:
    with pytest.raises(UserError, match="cores"):
        simulate(plan([[op()]]), model({PlanOp.FAULT: FAULT}), machine(4), Options(cores=cores))


def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="munmap"):
        simulate(
            plan([[op(PlanOp.MUNMAP)]]), model({PlanOp.FAULT: FAULT}), machine(4), Options(cores=1)
        )
