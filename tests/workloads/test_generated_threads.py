"""Generated traces of threads and processes that start, end, and wait for each other."""

from __future__ import annotations

import polars as pl
import pytest
from generating import made, rows, workload

from mmreplay.errors import UserError
from mmreplay.schema import OpKind


def test_a_spawned_thread_lives_once_and_its_parent_waits() -> None:
    task = """[roles.task]
        once = [ { do = "touch", on = "memory" }, { do = "think", mean_ns = 5000 } ]
    """
    loop = """
        { do = "mmap", on = "memory" },
        { do = "spawn", role = "task" }, { do = "join", role = "task" },
        { do = "munmap", on = "memory", counts = 1 },
    """
    found = made(workload(loop, more=task), ops=100)
    parents, tasks = rows(found), rows(found, "task")
    assert [row["kind"] for row in parents[:3]] == ["MMAP", "CLONE", "MUNMAP"]
    assert [row["kind"] for row in tasks[:9]] == [*["FAULT_USER"] * 8, "THREAD_EXIT"]
    assert parents[2]["think_blocked_ns"] >= 5000 + 8 * 1550
    assert parents[2]["begin_ns"] >= tasks[8]["begin_ns"]
    lives = found.trace.threads.filter(pl.col("group") == "task").collect()
    children = [row["child"] for row in parents if row["kind"] == "CLONE"]
    assert lives["tid"].to_list() == children
    assert len(set(children)) == len(children)
    woken = found.trace.wakeups.collect()
    ends = found.trace.operations.collect()["tid"].gather(woken["waker_after"]).to_list()
    assert woken["waker"].to_list() == ends == children[: woken.height]
    assert set(woken["tid"]) == {parents[0]["tid"]}
    assert found.trace.header.capabilities.wakeups


def test_a_forked_process_copies_on_write() -> None:
    child = '[roles.child]\nonce = [ { do = "touch", on = "memory" } ]\n'
    loop = """
        { do = "fork", role = "child" }, { do = "join", role = "child" },
        { do = "touch", on = "memory", counts = 1 },
    """
    once = '{ do = "mmap", on = "memory" }, { do = "touch", on = "memory" }'
    found = made(workload(loop, once=once, more=child), ops=60)
    parent, theirs = rows(found), rows(found, "child")
    copies = [("FAULT_USER", 7)] * 8
    assert [(r["kind"], r["fault_bits"]) for r in theirs[:9]] == [*copies, ("PROCESS_EXIT", None)]
    assert [(r["kind"], r["fault_bits"]) for r in parent[9:18]] == [("FORK", None), *copies]
    assert theirs[0]["address_space"] != parent[0]["address_space"]
    assert theirs[0]["pid"] == theirs[0]["tid"] != parent[0]["pid"]


def test_a_barrier_holds_all_threads() -> None:
    loop = """
        { do = "think", mean_ns = 10000, distribution = "exponential" },
        { do = "barrier", name = "b" },
        { do = "madvise", on = "memory", advice = "cold", counts = 1 },
    """
    found = made(workload(loop, once='{ do = "mmap", on = "memory" }'), 5, ops=200)
    calls = found.trace.operations.filter(pl.col("kind") == int(OpKind.MADVISE)).collect()
    for first in range(0, calls.height - 5, 5):  # each round is complete before the next
        assert calls["tid"][first : first + 5].n_unique() == 5
    woken = found.trace.wakeups.collect().with_columns(pl.col("wake_ns").rank("dense").alias("n"))
    for _, one in woken.group_by("n"):  # the last to come wakes the other four
        assert one.height == 4
        assert one["waker"].n_unique() == 1
        assert one["waker"][0] not in one["tid"].to_list()
        assert (one["off_ns"] <= one["wake_ns"]).all()


def test_no_more_threads_run_at_once_than_there_are_cpus() -> None:
    """Three threads take turns of 4 ms on two CPUs, and each gets as much of them."""
    found = made("brk1", 3, ops=60_000, duration_s=0.5, cpus=2)
    table = found.trace.operations.filter(pl.col("kind") == int(OpKind.BRK)).collect()
    turns = table.group_by(pl.col("begin_ns") // 500_000).agg(pl.col("tid").n_unique())
    assert turns["tid"].max() == 3  # where one turn ends in the middle
    assert turns["tid"].median() == 2
    shares = table["tid"].value_counts()["count"]
    assert shares.max() < 1.4 * shares.min()  # type: ignore[operator]
    assert set(table["cpu"]) == {0, 1}
    moved = table["result"] != table["result"].shift(1)
    assert 0.5 <= moved.mean() <= 0.7  # type: ignore[operator]


def test_who_sleeps_or_waits_at_a_barrier_leaves_the_cpu() -> None:
    loop = """
        { do = "think", mean_ns = 100000, asleep = true },
        { do = "barrier", name = "b" },
        { do = "madvise", on = "memory", advice = "cold", counts = 1 },
    """
    once = '{ do = "mmap", on = "memory" }'
    alone, shared = (
        made(workload(loop, once=once), 4, ops=10**6, cpus=cpus).trace.operations.collect()
        for cpus in (4, 1)
    )
    rounds = [t.filter(pl.col("kind") == int(OpKind.MADVISE)) for t in (alone, shared)]
    assert rounds[1].height == pytest.approx(rounds[0].height, rel=0.1)
    assert shared["think_blocked_ns"].sum() == pytest.approx(
        alone["think_blocked_ns"].sum(), rel=0.1
    )


def test_threads_that_wait_for_each_other_are_found() -> None:
    b, c = (f'{{ do = "barrier", name = "{name}" }}' for name in "bc")
    other = f"[roles.other]\nthreads = 1\nloop = [ {b}, {c} ]\n"
    loop = f'{c}, {b}, {{ do = "munmap", on = "memory", counts = 1 }}'
    with pytest.raises(UserError, match="all threads wait for each other"):
        made(workload(loop, more=other), 2)


def test_a_role_that_is_started_may_be_a_chain_with_an_end() -> None:
    chain = """
[roles.task.chain.works]
next = { works = 3, end = 1 }
steps = [ { do = "think", mean_ns = 1000, counts = 1 } ]
"""
    loop = '{ do = "spawn", role = "task" }, { do = "join", role = "task" }'
    found = made(workload(loop, more="[roles.task]\n" + chain), ops=200)
    assert sum(row["kind"] == "THREAD_EXIT" for row in rows(found, "task")) > 50
    for wrong in ("next = { works = 3 }", "next = { works = 3, ends = 1 }"):
        with pytest.raises(UserError, match=r"does not end|no state \"ends\""):
            workload(
                loop, more="[roles.task]\n" + chain.replace("next = { works = 3, end = 1 }", wrong)
            )


def test_what_lasts_longer_than_the_trace_is_cut() -> None:
    loop = '{ do = "mmap", on = "memory" }, { do = "munmap", on = "memory", counts = 1 }'
    sleeper = """
[roles.sleeper]
threads = 1
loop = [ { do = "think", mean_ns = 1000000000, asleep = true, counts = 1 } ]
"""
    trace = made(workload(loop, more=sleeper), 2, ops=100).trace
    tails = trace.threads.select("tail_blocked_ns").collect()["tail_blocked_ns"]
    assert 0 < tails.max() <= trace.header.span_ns < 10**6
