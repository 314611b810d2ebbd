"""What a learnt text says beyond a chain: phases, waits for others, even branches, fresh faults."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mmreplay.errors import UserError
from mmreplay.predict.api import replay
from mmreplay.predict.likeness import likeness
from mmreplay.schema import OpKind
from mmreplay.trace.store import Trace
from mmreplay.workloads.api import synthesise
from mmreplay.workloads.compiler import compile_workload
from mmreplay.workloads.definition import parse_workload
from mmreplay.workloads.generator import generate_trace
from mmreplay.workloads.learn import learn
from mmreplay.workloads.learn_phases import phases

HEAD = """
schema = 1
title = "By hand"
stands_for = "a program"
source = "this test"
counts = "operations"

[regions.heap-like]
size = "512 MiB"

[regions.piece]
size = "16 pages"
"""
#: Starts up for 3,000 states of faults, then works for 4,000 of mapping and unmapping.
TWO_PHASES = (
    HEAD
    + """
[roles.worker]
threads = "rest"
once = [ { do = "mmap", on = "heap-like" } ]
phases = { start = 3000, work = 4000 }

[roles.worker.chain.fault]
phase = "start"
next = { fault = 1 }
steps = [
    { do = "think", mean_ns = 2000, distribution = "exponential" },
    { do = "touch", on = "heap-like", at = "next", counts = 1 },
]

[roles.worker.chain.map]
phase = "work"
next = { unmap = 1 }
steps = [ { do = "think", mean_ns = 20000 }, { do = "mmap", on = "piece", counts = 1 } ]

[roles.worker.chain.unmap]
phase = "work"
next = { map = 1 }
steps = [ { do = "munmap", on = "piece", counts = 1 } ]
"""
)


def kinds_of(trace: Trace) -> Counter[int]:
    return Counter(trace.operations.collect()["kind"].to_list())


def test_each_thread_goes_through_its_phases_and_ends() -> None:
    made = synthesise(parse_workload(TWO_PHASES, "two", "two"), threads=2, ops=10**6, duration_s=9)
    kinds = kinds_of(made.trace)
    assert kinds[int(OpKind.FAULT_USER)] == 6000
    assert kinds[int(OpKind.MMAP)] - 2 == kinds[int(OpKind.MUNMAP)] == 4000
    first = made.trace.operations.collect()["kind"].to_numpy()
    assert OpKind.MUNMAP not in first[:6000]
    assert made.trace.threads.collect()["end_ns"].null_count() == 0


def test_on_a_machine_the_phases_begin_anew() -> None:
    workload = parse_workload(TWO_PHASES, "two", "two")
    program = compile_workload(workload, 1, for_ever=True)
    made = generate_trace(program, None, ops=20_000, duration_s=9)
    assert made.rows == 20_000  # and not the 7,000 after which a generated thread ends


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('phase = "start"\n', "", "phase is missing"),
        ('phase = "start"', 'phase = "strat"', 'did you mean "start"'),
        ("next = { fault = 1 }", "next = { map = 1 }", "map is of another phase"),
        ("work = 4000 }", "work = 4000, end = 1 }", "end has no state"),
        ("mean_ns = 20000 }", 'mean_ns = 2, woken_by = "worker" }', "goes with asleep = true"),
        (
            "mean_ns = 20000 }",
            'mean_ns = 2, asleep = true, woken_by = "worke" }',
            'did you mean "worker"',
        ),
    ],
)
def test_mistakes_are_a_line(old: str, new: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_workload(TWO_PHASES.replace(old, new, 1), "two", "two")


def test_phases_are_found_where_rates_change_and_only_there() -> None:
    stream = np.random.default_rng(5)
    begin = np.cumsum(stream.exponential(1000, 20_000)).astype(np.int64)
    kind = stream.integers(0, 5, 20_000)
    end = int(begin[-1]) + 1
    assert phases(begin, kind, 0, end).tolist() == [0, end]
    kind[12_000:] = stream.integers(5, 8, 8_000)  # other operations
    found = phases(begin, kind, 0, end)
    assert len(found) == 3
    assert abs(np.searchsorted(begin, found[1]) - 12_000) < 200
    begin[4_000:] += 9 * (begin[4_000:] - begin[4_000]) // 10  # and before that another pace
    found = phases(begin, kind, 0, int(begin[-1]) + 1)
    assert [round(np.searchsorted(begin, edge), -3) for edge in found] == [0, 4000, 12_000, 20_000]


def test_a_program_with_a_start_up_is_learnt_with_it() -> None:
    original = synthesise(
        parse_workload(TWO_PHASES, "two", "two"), threads=4, ops=10**6, duration_s=9
    ).trace
    found = learn(original, "two")
    assert found.phases > 1
    text = parse_workload(found.text, "learnt", "learnt")
    made = synthesise(text, threads=4, ops=10**6, duration_s=9, seed=3, cpus=4).trace
    was, now = kinds_of(original), kinds_of(made)
    for kind in (OpKind.FAULT_USER, OpKind.MMAP, OpKind.MUNMAP):
        assert abs(now[int(kind)] / was[int(kind)] - 1) < 0.05
    like = likeness(original, made)
    assert max(abs(error) for error in like.throughput.values()) < 0.1
    assert abs(like.gain) < 0.05
    assert "throughput" in like.line()
    # twice as long: each phase is
    longer = parse_workload(learn(original, "two", 2 * found.rows).text, "learnt", "learnt")
    twice = kinds_of(synthesise(longer, threads=4, ops=10**6, duration_s=9, seed=3).trace)
    assert abs(twice[int(OpKind.MUNMAP)] / was[int(OpKind.MUNMAP)] - 2) < 0.1


WAITS = (
    HEAD
    + """
[roles.master]
threads = 1
once = [ { do = "mmap", on = "heap-like" } ]
loop = [
    { do = "think", mean_ns = 50000 },
    { do = "touch", on = "heap-like", at = "next", counts = 1 },
]

[roles.slave]
threads = "rest"
once = [ { do = "mmap", on = "heap-like" } ]
loop = [
    { do = "think", mean_ns = 1000000, asleep = true, woken_by = "master" },
    { do = "touch", on = "heap-like", at = "next", counts = 1 },
]
"""
)


def test_who_is_woken_waits_for_who_wakes() -> None:
    workload = parse_workload(WAITS, "waits", "waits")
    made = synthesise(workload, threads=2, ops=2000, duration_s=9).trace
    threads = dict(made.threads.select("tid", "group").collect().iter_rows())
    table = made.wakeups.collect()
    pairs = {(threads[a], threads[b]) for a, b in table.select("tid", "waker").iter_rows()}
    assert pairs == {("slave", "master")}
    rows = made.operations.collect()
    for row in table.iter_rows(named=True):
        before = rows.row(row["waker_after"], named=True)
        assert before["tid"] == row["waker"]
        assert before["begin_ns"] <= row["wake_ns"] <= before["begin_ns"] + 60_000
        assert row["waker_cpu_ns"] <= 50_000
        assert row["on_ns"] - row["off_ns"] == 1_000_000
    assert made.header.capabilities.wakeups
    # The slave's sleep is the master's work: as fast as that, and not slept a second time.
    done = replay(made, kernel="linux-6.18", costs="machine", machine="generic-server", cores=2)
    worked = sum(row["think_cpu_ns"] for row in rows.iter_rows(named=True))
    assert done.makespan_ns < 1.2 * worked


def test_what_was_a_wait_is_learnt_as_one() -> None:
    original = synthesise(
        parse_workload(WAITS, "waits", "waits"), threads=3, ops=5000, duration_s=9
    ).trace
    assert 'asleep = true, woken_by = "master"' in learn(original, "waits").text


EVEN = (
    HEAD
    + """
[roles.worker]
threads = "rest"
even = true
once = [ { do = "mmap", on = "heap-like" } ]
loop = [
    { do = "choose", of = [
        { weight = 1, steps = [ { do = "mprotect", on = "piece", prot = "rw" } ] },
        { weight = 9, steps = [ { do = "touch", on = "heap-like", at = "next", counts = 1 } ] },
        { weight = 30, steps = [
            { do = "mmap", on = "piece" },
            { do = "munmap", on = "piece", counts = 1 },
        ] },
    ] },
]
"""
)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_even_branches_are_taken_as_often_as_their_weights_say(seed: int) -> None:
    workload = parse_workload(EVEN, "even", "even")
    made = synthesise(workload, threads=1, ops=20_000, duration_s=9, seed=seed).trace
    kinds = kinds_of(made)
    rounds = kinds[int(OpKind.MUNMAP)] / 30
    assert abs(kinds[int(OpKind.FAULT_USER)] - 9 * rounds) <= 3
    # in random order all the same: how many rounds lie between two faults differs
    order = made.operations.collect()["kind"].to_numpy()
    between = np.diff(np.flatnonzero(order == OpKind.FAULT_USER))
    assert len(np.unique(between)) > 5
    same = synthesise(workload, threads=1, ops=20_000, duration_s=9, seed=seed).trace
    assert same.operations.collect().equals(made.operations.collect())


FRESH = (
    HEAD.replace("[regions.piece]", "[regions.piece]\ncount = 4")
    + """
[roles.worker]
threads = "rest"
once = [
    { do = "mmap", on = "piece" },
    { do = "pick", on = "piece", how = "next" },
    { do = "mmap", on = "piece" },
    { do = "mprotect", on = "piece", size = "12 pages", prot = "none" },
]
loop = [
    { do = "think", mean_ns = 100 },
    { do = "touch", on = "piece", first = "3 pages", size = "1 pages", FRESH },
]
"""
)


def test_a_touch_that_stands_for_a_fault_is_one_while_there_are_pages_left() -> None:
    text = FRESH.replace("FRESH", "fresh = true, if_allowed = true, counts = 1")
    made = synthesise(
        parse_workload(text, "fresh", "fresh"), threads=1, ops=10**5, duration_s=0.01
    ).trace
    rows = made.operations.collect()
    faults = rows.filter(rows["kind"] == int(OpKind.FAULT_USER))
    assert faults.height == 16 + 4  # of two elements, all pages that it may touch
    assert faults["address"].n_unique() == 20
