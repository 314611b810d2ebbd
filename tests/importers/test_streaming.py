"""Windows, groups and threads are invisible: the trace is the same however it was read."""

from __future__ import annotations

import random
from pathlib import Path

import perfwriter as pw
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmreplay.importers.output import assemble
from mmreplay.importers.perf import data as perf_data
from mmreplay.importers.perf import streams
from mmreplay.importers.registry import import_trace
from mmreplay.trace.store import Trace
from mmreplay.trace.timesplit import split


def soup(seed: int, count: int, *, ends: bool = True, order: str = "<") -> pw.Writer:
    """A recording of a few threads that do everything at once, with all that goes wrong."""
    draw = random.Random(seed)
    w = pw.default(order=order)
    if not ends:  # faults are bounded by the thread's next event only
        for which in (pw.MINOR, pw.MAJOR):
            w.events[which].config = 9  # PERF_COUNT_SW_DUMMY
    tids = [100, 101, 102, 200]
    pid_of = {100: 100, 101: 100, 102: 100, 200: 200}
    w.comm(0, 100, 100, b"program")
    w.mmap2(0, 100, 100, 0x400000, 8192, b"/usr/lib/libx.so")
    now = 1000
    for step in range(count):
        now += draw.choice([0, 1, 30, 400, 9000])
        tid = draw.choice(tids)
        pid, cpu = pid_of[tid], draw.randrange(2)
        what = draw.randrange(14)
        address = 0x7000_0000_0000 + 4096 * draw.randrange(40)
        if what < 4:
            w.fault(pw.FAULT, now, tid, address, pid=pid, cpu=cpu)
            if draw.random() < 0.8:
                now += draw.choice([300, 700, 5000, 60_000])
                w.sample(draw.choice([pw.MINOR, pw.MAJOR]), now, tid, addr=address, pid=pid)
        elif what < 6:
            w.call(pw.MMAP_IN, now, tid, 0, 8192, 3, 0x22, -1, 0, pid=pid, cpu=cpu)
        elif what < 8:
            w.call(pw.MMAP_OUT, now, tid, draw.choice([address, -12]), pid=pid, cpu=cpu)
        elif what == 8:
            w.call(pw.MUNMAP_IN, now, tid, address, 4096, pid=pid, cpu=cpu)
        elif what == 9:
            w.call(pw.MUNMAP_OUT, now, tid, 0, pid=pid, cpu=cpu)
        elif what == 10:
            w.switch(now, pid, tid, out=draw.random() < 0.5, preempt=draw.random() < 0.5)
        elif what == 11:
            w.mmap2(now, pid, tid, address, 4096, draw.choice([b"//anon", b"/home/me/x", b"/l.so"]))
        elif what == 12:
            child = 1000 + step
            w.fork(now, pid, pid, child, tid)
            w.exit(now + draw.choice([0, 5000]), pid, child)
        elif draw.random() < 0.2:
            w.lost(now, 3, cpu)
        elif draw.random() < 0.3 and now > 20_000:
            w.fault(pw.FAULT, now - 20_000, tid, address, pid=pid, cpu=cpu)  # late
        if draw.random() < 0.05:
            w.round()
    return w


def contents(trace: Trace) -> dict[str, bytes]:
    assert trace.path is not None
    return {file.name: file.read_bytes() for file in sorted(trace.path.iterdir())}


def load(
    file: Path, folder: Path, *, walk: int = 1 << 18, batch: int = 1 << 15, group: int = 64
) -> Trace:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "WALK_ROWS", walk)
        patch.setattr(perf_data, "BATCH_ROWS", batch)
        patch.setattr(assemble, "GROUP_ROWS", group)
        # Else no group is encoded before the end.
        patch.setattr(assemble, "PROBE_OPERATIONS", 256)
        patch.setattr(assemble, "_MIN_GAPS", 100)
        return import_trace(file, folder / "t.mmt", force=True)


FIXTURE = [HealthCheck.function_scoped_fixture]


@given(
    seed=st.integers(0, 1 << 32),
    walk=st.integers(1, 300),
    batch=st.integers(1, 50),
    ends=st.booleans(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=FIXTURE)
def test_the_same_bytes_however_it_is_read(
    tmp_path: Path, seed: int, walk: int, batch: int, ends: bool
) -> None:
    file = soup(seed, 700, ends=ends).save(tmp_path / "perf.data")
    whole = contents(load(file, tmp_path))
    assert contents(load(file, tmp_path, walk=walk, batch=batch)) == whole


@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=15, deadline=None, suppress_health_check=FIXTURE)
def test_groups_do_not_change_the_trace(tmp_path: Path, seed: int) -> None:
    """Groups of 64 fill the ring of four: long operations leave it before they end."""
    file = soup(seed, 1500).save(tmp_path / "perf.data")
    tables = ("operations", "threads", "vmas", "schedule", "gaps")
    whole = load(file, tmp_path, group=1 << 16)
    rows = {name: whole.table(name).collect() for name in tables}
    small = load(file, tmp_path, group=64)
    for name in tables:
        assert small.table(name).collect().equals(rows[name]), name
    assert small.header.counters == whole.header.counters
    small.validate()


@given(seed=st.integers(0, 1 << 32), ends=st.booleans())
@settings(max_examples=15, deadline=None, suppress_health_check=FIXTURE)
def test_the_split_is_that_of_the_whole_table(tmp_path: Path, seed: int, ends: bool) -> None:
    """While it is imported, or from the finished tables: the same service and wait."""
    trace = load(soup(seed, 900, ends=ends).save(tmp_path / "perf.data"), tmp_path)
    rows = trace.operations.collect()
    bare = rows.with_columns(
        service_ns=pl.lit(None, pl.Int64),
        wait_ns=pl.lit(None, pl.Int64),
        io_ns=pl.lit(None, pl.Int64),
    )
    if not ends:  # what a bounded operation could not attribute was added to the time before
        bare = bare.with_columns(unattributed_ns=pl.lit(0, pl.Int64))
        rows = rows.with_columns(unattributed_ns=pl.lit(0, pl.Int64))
    done, report = split(bare, trace.schedule.collect())
    if not ends:
        done = done.with_columns(unattributed_ns=pl.lit(0, pl.Int64))
    assert done.equals(rows)
    for name, count in report.counters().items():
        assert trace.header.counters[name] == count


@pytest.mark.parametrize("between", [1000, 300_000])
def test_an_operation_that_outlives_the_ring(tmp_path: Path, between: int) -> None:
    """A call that stays open while the rows behind it are written gets its end all the same."""
    w = pw.default()
    w.call(pw.MUNMAP_IN, 1000, 100, 0xABC000, 4096)
    for k in range(between):
        w.call(pw.MUNMAP_IN, 2000 + 2 * k, 101, 0x1000, 4096, cpu=1)
        w.call(pw.MUNMAP_OUT, 2001 + 2 * k, 101, 0, cpu=1)
    w.call(pw.MUNMAP_OUT, 9_000_000, 100, -12)
    trace = import_trace(w.save(tmp_path / "perf.data"), tmp_path / "t.mmt")
    trace.validate()
    first = trace.operations.head(1).collect().to_dicts()[0]
    assert (first["duration_ns"], first["errno"]) == (8_999_000, 12)
    assert (first["address"], first["length"]) == (0xABC000, 4096)
    # All the time the other thread held the lock for writing.
    assert first["wait_ns"] == min(9_000_000 - 1000 - 900 - 900, 2 * between - between)
    assert trace.rows("operations") == between + 1
