"""Which wake-ups become dependencies between threads: by hand, in text, and of a real program."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import perfwriter as pw
import polars as pl
import pytest
from test_against_perf_script import FAULTS, LOCKS, record, syscalls

from mmreplay.importers.registry import import_trace
from mmreplay.trace.store import Trace
from mmreplay.trace.summary import summarise

FIELDS = (
    ("char", "comm[16]", 8, 16, 0),
    ("pid_t", "pid", 24, 4, 1),
    ("int", "prio", 28, 4, 1),
    ("int", "target_cpu", 32, 4, 1),
)
WAKING = 17  # index of the event in `recorder`
HARDIRQ, SOFTIRQ, NEED_RESCHED = 0x08, 0x10, 0x04
PROBE = 900


def recorder(*, ends: bool = True, name: str = "sched_waking") -> pw.Writer:
    writer = pw.default()
    writer.events.append(pw.Event(70, ids=(4711,)))
    writer.formats[70] = ("sched", pw.format_text(name, 70, FIELDS))
    if not ends:
        for event in writer.events[1:3]:
            event.config = 3  # context-switches, that nobody records
    return writer


def wake(w: pw.Writer, time: int, waker: int, woken: int, flags: int = 1, **more: Any) -> None:
    raw = bytes((0, 0, flags)) + bytes(21) + w.pack("iii", woken, 120, 0)
    w.sample(WAKING, time, waker, raw, **more)


def call(w: pw.Writer, time: int, tid: int, length_ns: int = 1000) -> None:
    w.call(pw.MUNMAP_IN, time, tid, 0x1000, 4096)
    w.call(pw.MUNMAP_OUT, time + length_ns, tid, 0)


def waits(w: pw.Writer, tmp_path: Path) -> tuple[list[dict[str, Any]], Trace]:
    trace = import_trace(w.save(tmp_path / "perf.data"), tmp_path / "t.mmt", force=True)
    trace.validate()
    return trace.wakeups.collect().to_dicts(), trace


def begin(w: pw.Writer) -> None:
    """Threads 100 and 101 with an operation each, rows 0 and 1; time 0 is at 10 us."""
    call(w, 10_000, 100)
    call(w, 20_000, 101)


def test_a_wait_says_after_what_and_for_whom(tmp_path: Path) -> None:
    w = recorder()
    begin(w)
    w.switch(30_000, 100, 101, out=True)
    w.switch(40_000, 100, 100, out=True)  # the waker sleeps, too, before it wakes
    w.switch(45_000, 100, 100, out=False)
    wake(w, 50_000, 100, 101)
    w.switch(57_000, 100, 101, out=False)
    call(w, 60_000, 101)
    call(w, 70_000, 100)
    (row,), trace = waits(w, tmp_path)
    assert row == {
        "tid": 101,
        "off_ns": 20_000,
        "wake_ns": 40_000,
        "on_ns": 47_000,
        "after": 1,
        "cpu_ns": 9_000,
        "blocked_ns": 0,
        "waker": 100,
        "waker_after": 0,
        # 29 us to the switch and 5 us from there, less the probe's cost of the switch back
        "waker_cpu_ns": 34_000 - PROBE,
        "waker_blocked_ns": 5_000,
    }
    found = summarise(trace).dependencies
    assert (found.waits, found.waited_ns, found.think_ns) == (1, 27_000, 5_000)


def test_the_first_wake_up_counts_and_a_running_thread_is_not_woken(tmp_path: Path) -> None:
    w = recorder()
    begin(w)
    wake(w, 25_000, 100, 101)  # it still runs
    w.switch(30_000, 100, 101, out=True)
    wake(w, 40_000, 100, 101)
    wake(w, 45_000, 100, 101)
    w.switch(50_000, 100, 101, out=False)
    w.switch(55_000, 100, 101, out=True, preempt=True)
    wake(w, 56_000, 100, 101)  # preempted: it waits for a CPU
    w.switch(57_000, 100, 101, out=False)
    call(w, 60_000, 101)
    (row,), _ = waits(w, tmp_path)
    assert (row["off_ns"], row["wake_ns"], row["on_ns"]) == (20_000, 30_000, 40_000)


@pytest.mark.parametrize(
    ("flags", "counted"),
    [(1, 0), (1 | NEED_RESCHED, 0), (1 | HARDIRQ, 1), (SOFTIRQ, 1)],
)
def test_interrupts_wake_for_nobody(tmp_path: Path, flags: int, counted: int) -> None:
    w = recorder()
    begin(w)
    w.switch(30_000, 100, 101, out=True)
    wake(w, 40_000, 100, 101, flags)
    w.switch(50_000, 100, 101, out=False)
    call(w, 60_000, 101)
    rows, trace = waits(w, tmp_path)
    assert len(rows) == 1 - counted
    assert trace.header.counters.get("wakeups_from_interrupts", 0) == counted


def test_waits_inside_operations_are_the_locks_own(tmp_path: Path) -> None:
    w = recorder()
    begin(w)
    w.call(pw.MUNMAP_IN, 30_000, 101, 0x1000, 4096)
    w.switch(31_000, 100, 101, out=True)
    wake(w, 40_000, 100, 101)
    w.switch(41_000, 100, 101, out=False)
    w.call(pw.MUNMAP_OUT, 42_000, 101, 0)
    w.switch(50_000, 100, 101, out=True)  # between operations, but woken from inside one
    w.call(pw.MUNMAP_IN, 51_000, 100, 0x1000, 4096)
    wake(w, 52_000, 100, 101)
    w.call(pw.MUNMAP_OUT, 53_000, 100, 0)
    w.switch(54_000, 100, 101, out=False)
    call(w, 60_000, 101)
    rows, trace = waits(w, tmp_path)
    assert rows == []
    assert trace.header.counters["wakeups_inside_operations"] == 2


def test_a_wait_for_a_kernel_lock_is_no_dependency(tmp_path: Path) -> None:
    w = recorder()
    begin(w)
    w.sample(pw.LOCK_IN, 30_000, 101, b"\0" * 8 + w.pack("QI", 0xFFFF888000001000, 2))
    w.switch(31_000, 100, 101, out=True)
    wake(w, 40_000, 100, 101)
    w.switch(41_000, 100, 101, out=False)
    w.sample(pw.LOCK_OUT, 42_000, 101, b"\0" * 8 + w.pack("Qi", 0xFFFF888000001000, 0))
    call(w, 60_000, 101)
    rows, trace = waits(w, tmp_path)
    assert rows == []
    assert trace.header.counters["wakeups_of_kernel_locks"] == 1


def test_foreign_wakers_leave_think_time(tmp_path: Path) -> None:
    w = recorder()
    begin(w)
    w.switch(30_000, 100, 101, out=True)
    wake(w, 40_000, 0, 101, pid=0)  # an interrupt in the idle task
    w.switch(50_000, 100, 101, out=False)
    call(w, 60_000, 101)
    rows, trace = waits(w, tmp_path)
    assert rows == []
    found = summarise(trace).dependencies
    assert (found.waits, found.think_ns) == (0, 20_000)


def test_a_thread_that_has_ended_wakes_who_joins_it(tmp_path: Path) -> None:
    w = recorder()
    begin(w)
    w.switch(30_000, 100, 100, out=True)
    w.exit(40_000, 100, 101)
    wake(w, 41_000, 101, 100)
    w.switch(50_000, 100, 100, out=False)
    call(w, 60_000, 100)
    (row,), trace = waits(w, tmp_path)
    assert (row["tid"], row["waker"], row["waker_after"], row["waker_cpu_ns"]) == (100, 101, 2, 0)
    assert trace.rows("threads") == 2


def test_losses_forget_the_waker(tmp_path: Path) -> None:
    w = recorder()
    begin(w)
    w.switch(30_000, 100, 101, out=True)
    wake(w, 40_000, 100, 101)
    w.lost(45_000, 7)
    w.switch(50_000, 100, 101, out=False)
    call(w, 60_000, 101)
    rows, _ = waits(w, tmp_path)
    assert rows == []


def test_without_ends_of_faults_waits_cannot_be_told_apart(tmp_path: Path) -> None:
    w = recorder(ends=False)
    w.events[pw.LOCK_IN].config = w.events[pw.LOCK_OUT].config = 20  # no contention events
    begin(w)
    w.switch(30_000, 100, 101, out=True)
    wake(w, 40_000, 100, 101)
    w.switch(50_000, 100, 101, out=False)
    call(w, 60_000, 101)
    rows, trace = waits(w, tmp_path)
    assert rows == []
    (lacking,) = [row for row in summarise(trace).missing if row.capability == "wakeups"]
    assert "minor-faults" in lacking.command
    assert "sched:sched_waking" in lacking.command


TEXT = """\
# tracer: nop
          app-1001    (   1000) [000] ..... 100.000001: sys_munmap(addr: 7f0000000000, len: 5000)
          app-1001    (   1000) [000] ..... 100.000005: sys_munmap -> 0x0
          app-1002    (   1000) [001] ..... 100.000011: sys_munmap(addr: 7f0000100000, len: 5000)
          app-1002    (   1000) [001] ..... 100.000015: sys_munmap -> 0x0
          app-1002    (   1000) [001] d..2. 100.000020: sched_switch: prev_comm=app \
prev_pid=1002 prev_prio=120 prev_state=S ==> next_comm=swapper/1 next_pid=0 next_prio=120
          app-1001    (   1000) [000] {flags} 100.000030: sched_waking: {woken}
          <idle>-0    (-------) [001] d..2. 100.000040: sched_switch: prev_comm=swapper/1 \
prev_pid=0 prev_prio=120 prev_state=R ==> next_comm=app next_pid=1002 next_prio=120
          app-1002    (   1000) [001] ..... 100.000050: sys_munmap(addr: 7f0000000000, len: 5000)
          app-1002    (   1000) [001] ..... 100.000055: sys_munmap -> 0x0
"""


@pytest.mark.parametrize(
    "woken",
    [
        "comm=a pid=7 b pid=1002 prio=120 target_cpu=001",
        "app:1002 [120]<CANT FIND FIELD success> CPU:001",
        "a:7 [1:1002 [120] CPU:001",
    ],
)
@pytest.mark.parametrize(("flags", "edges"), [("d..2.", 1), ("d.h2.", 0), ("d.s4.", 0)])
def test_ftrace_text(tmp_path: Path, woken: str, flags: str, edges: int) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(TEXT.format(flags=flags, woken=woken))
    trace = import_trace(path, tmp_path / "t.mmt")
    trace.validate()
    rows = trace.wakeups.collect().to_dicts()
    assert len(rows) == edges
    for row in rows:
        assert (row["tid"], row["waker"], row["after"], row["waker_after"]) == (1002, 1001, 1, 0)
        assert (row["off_ns"], row["wake_ns"], row["on_ns"]) == (19_000, 29_000, 39_000)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    built = tmp_path_factory.mktemp("pipeline") / "pipeline"
    source = Path(__file__).with_name("pipeline.c")
    subprocess.run(["gcc", "-O1", "-o", str(built), str(source), "-lpthread"], check=True)
    return built


@pytest.mark.perf
@pytest.mark.parametrize("text", [False, True])
def test_a_pipeline_and_a_barrier(program: Path, tmp_path: Path, text: bool) -> None:
    events = [*FAULTS, "minor-faults", "major-faults", *syscalls(), *LOCKS, "sched:sched_waking"]
    options = ["-d", "--switch-events"]
    path = record(tmp_path, options, events, [str(program), "100", "32", "30"])
    if text:
        told = tmp_path / "perf.txt"
        with told.open("w") as out:
            words = ["perf", "script", "--ns", "-i", str(path), "-F", "+addr,+pid"]
            words += ["--show-task-events", "--show-mmap-events", "--show-switch-events"]
            subprocess.run(words, stdout=out, stderr=subprocess.DEVNULL, check=True)
        path = told
    trace = import_trace(path, tmp_path / "t.mmt")
    trace.validate()
    names = trace.threads.select("tid", "comm").collect()
    by_name = (
        trace.wakeups.collect()
        .join(names, on="tid")
        .join(names, left_on="waker", right_on="tid", suffix="_waker")
    )
    pairs = set(by_name.select("comm", "comm_waker").iter_rows())
    assert ("consumer", "producer") in pairs
    assert any(a.startswith("phase") and b.startswith("phase") for a, b in pairs)
    assert not any(a.startswith("phase") != b.startswith("phase") for a, b in pairs)
    # What these threads slept they slept for each other.
    slept = trace.operations.group_by("tid").agg(pl.col("think_blocked_ns").sum()).collect()
    consumer = names.filter(pl.col("comm") == "consumer")["tid"].item()
    waited = by_name.filter(pl.col("tid") == consumer)
    waited_ns = (waited["on_ns"] - waited["off_ns"]).sum()
    slept_ns = slept.filter(pl.col("tid") == consumer)["think_blocked_ns"].item()
    assert 0.9 * slept_ns <= waited_ns <= slept_ns
