"""Waking a thread that sleeps for a lock is the lock's work: it leaves the waker's think time.

Hand-made recordings of two threads: one faults every 10 us (1 us each), the other maps.  Where
the mapper sleeps for the lock, the faulter's think time behind the fault that wakes it is 7 us
longer.
"""

from __future__ import annotations

from pathlib import Path

import perfwriter as pw
import polars as pl
import pytest
from loading import load

from mmreplay.schema import Quality
from mmreplay.trace.store import Trace
from mmreplay.trace.summary import summarise

FAULTER, MAPPER = 200, 100
THINK, FAULT, WAKING, PROBE = 9_000, 1_000, 7_000, 900
EVERY = 4  # one fault in so many wakes the mapper


def recording(
    turns: int,
    switches_at: int = 1_000,
    call_ends_before: bool = False,
    process: int = 100,
    faults: bool = False,
) -> pw.Writer:
    """``switches_at``: ns from the waking fault's end to the mapper's leaving its CPU (< 0:
    before the end).  ``process``: the mapper's, else than 100 one with memory of its own.
    ``faults``: the mapper does not map but fault.
    """
    w = pw.default()
    w.comm(0, 100, MAPPER if process == 100 else 100, b"mapper")
    w.comm(0, 100, FAULTER, b"faulter")
    events: list[tuple[int, str, int]] = []
    now = 100_000
    for turn in range(turns):
        events += [(now, "fault", turn), (now + FAULT, "minor", turn)]
        end = now + FAULT
        now = end + THINK
        if turn % EVERY == EVERY - 1:
            now += WAKING
            events += [(end - 5_000, "call", 0), (end + switches_at, "out", 0)]
            if call_ends_before:  # another thread's call: that was the waker
                events += [(end + switches_at + 10, "third", 0)]
                events += [(end + switches_at + 400, "third over", 0)]
            events += [(end + 14_000, "in", 0), (end + 15_500, "return", 0)]
    for time, what, turn in sorted(events):
        address = 0x7F0000000000 + 4096 * turn
        if what == "fault":
            w.fault(pw.FAULT, time, FAULTER, address, pid=100)
        elif what == "minor":
            w.sample(pw.MINOR, time, FAULTER, addr=address, pid=100)
        elif what in ("call", "return") and faults:
            if what == "call":
                w.fault(pw.FAULT, time, MAPPER, 0x5000, pid=process)
            else:
                w.sample(pw.MAJOR, time, MAPPER, addr=0x5000, pid=process)
        elif what in ("call", "return"):
            which = pw.MUNMAP_IN if what == "call" else pw.MUNMAP_OUT
            words = (0x5000, 4096) if what == "call" else (0,)
            w.call(which, time, MAPPER, *words, pid=process)
        elif what == "third":
            w.call(pw.MUNMAP_IN, time, 300, 0x9000, 4096, pid=100)
        elif what == "third over":
            w.call(pw.MUNMAP_OUT, time, 300, 0, pid=100)
        else:
            w.switch(time, process, MAPPER, out=what == "out")
    return w


def thinks(trace: Trace) -> pl.DataFrame:
    rows = trace.operations.filter(pl.col("tid") == FAULTER).collect()
    return rows.filter(pl.col("think_cpu_ns").is_not_null()).with_columns(
        wakes=(pl.col("quality") & int(Quality.WAKES)) != 0
    )


@pytest.mark.parametrize("switches_at", [1_000, -300])
def test_what_waking_took_is_no_think_time(tmp_path: Path, switches_at: int) -> None:
    """Also where the sleeper is still on its way off the CPU when the fault ends."""
    trace = load(recording(400, switches_at), tmp_path)
    rows = thinks(trace)
    assert rows["wakes"].sum() == 400 // EVERY - 1  # behind the last fault comes nothing
    assert rows["think_cpu_ns"].unique().to_list() == [THINK - PROBE]
    raw = rows.filter("wakes")["think_raw_ns"].unique().to_list()
    assert raw == [THINK + WAKING]  # as recorded
    counters = trace.header.counters
    assert counters["timesplit_wakings"] == 99
    assert counters["timesplit_waking_ns"] == 99 * WAKING
    found = summarise(trace)
    waits = trace.operations.select(pl.col("wait_ns").sum()).collect().item()
    assert found.time_ns["wait"] == waits + 99 * WAKING
    removed = found.correction["think_removed_ns"]
    assert removed is not None
    assert removed % PROBE == 0  # nothing but the probes'


def test_who_computes_on_when_another_falls_asleep_did_not_wake_him(tmp_path: Path) -> None:
    """Else long think times would be taken for wake-ups: a sleep more often begins in them."""
    trace = load(recording(400, switches_at=6_000), tmp_path)
    assert thinks(trace)["wakes"].sum() == 0


def test_few_wake_ups_tell_nothing(tmp_path: Path) -> None:
    trace = load(recording(80), tmp_path)  # 19 of them
    rows = thinks(trace)
    assert rows["wakes"].sum() == 19
    assert (rows["think_raw_ns"] - rows["think_cpu_ns"]).unique().to_list() == [PROBE]
    assert "timesplit_waking_ns" not in trace.header.counters


def test_who_was_woken_by_a_call_was_woken_inside(tmp_path: Path) -> None:
    trace = load(recording(400, call_ends_before=True), tmp_path)
    assert thinks(trace)["wakes"].sum() == 0


def test_sleep_in_another_address_space_is_nobody_elses(tmp_path: Path) -> None:
    trace = load(recording(400, process=900), tmp_path)
    assert thinks(trace)["wakes"].sum() == 0


def test_a_fault_that_sleeps_waits_for_a_call_or_for_io(tmp_path: Path) -> None:
    trace = load(recording(400, faults=True), tmp_path)
    assert thinks(trace)["wakes"].sum() == 0
