"""Waits of recordings without contention events: those of the same recording that has them.

A thread maps and unmaps beside one that populates 4 MiB at a time under mmap_lock, recorded
for real.  Skipped, with the reason, where perf cannot record that.
"""

from __future__ import annotations

import sys

import polars as pl
import pytest

from mmreplay.importers.registry import import_trace
from mmreplay.recorder import here
from mmreplay.recorder.api import Wanted, describe, record
from mmreplay.schema import OpKind, Quality
from mmreplay.trace.timesplit import split

pytestmark = pytest.mark.perf
#: ctypes lets the GIL go during the calls.
PROGRAM = """
import ctypes, threading, time
libc = ctypes.CDLL(None)
word = ctypes.c_size_t
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, word, ctypes.c_int, ctypes.c_int, ctypes.c_int, word]
libc.munmap.argtypes = [ctypes.c_void_p, word]
libc.madvise.argtypes = [ctypes.c_void_p, word, ctypes.c_int]
SIZE = 4 << 20
end = time.monotonic() + 0.6
def populate():
    area = libc.mmap(None, SIZE, 3, 0x22, -1, 0)
    libc.madvise(area, SIZE, 15)  # no huge pages
    while time.monotonic() < end:
        assert libc.madvise(area, SIZE, 23) == 0  # MADV_POPULATE_WRITE
        libc.madvise(area, SIZE, 4)
def change():
    while time.monotonic() < end:
        libc.munmap(libc.mmap(None, 4096, 3, 0x22, -1, 0), 4096)
threads = [threading.Thread(target=one) for one in (populate, change)]
[t.start() for t in threads]
[t.join() for t in threads]
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Operations of the mapping thread as imported, and split without contention events."""
    has = here.tracepoints()
    if has is None:
        pytest.skip("the tracepoints cannot be read")
    wanted = Wanted(program=(sys.executable, "-c", PROGRAM))
    reason = here._why_not_perf(has, describe(wanted, has, here_=True))
    if reason:
        pytest.skip(f"perf cannot record here: {reason}")
    if not has("lock:contention_begin"):
        pytest.skip("this kernel has no contention events to compare with (Linux 5.19)")
    folder = tmp_path_factory.mktemp("old")
    outcome = record(wanted, folder / "both.data")
    if outcome.content is None or outcome.content.lost:
        pytest.skip("perf lost events: the machine is too busy")
    trace = import_trace(folder / "both.data", folder / "both.mmt")
    rows = trace.operations.collect()
    bare = rows.with_columns(
        pl.lit(None, pl.Int64).alias(name)
        for name in ("contention_ns", "service_ns", "wait_ns", "io_ns")
    )
    without, _ = split(bare, trace.schedule.collect())
    maps = rows.filter(pl.col("kind") == int(OpKind.MUNMAP)).group_by("tid").len()
    mapper = pl.col("tid") == maps.sort("len")["tid"][-1]
    if not rows.filter(mapper)["contention_ns"].sum():
        pytest.skip("nothing contended: the threads had no two CPUs")
    return rows.filter(mapper), without.filter(mapper)


def test_waits_are_the_same_without_contention_events(
    recorded: tuple[pl.DataFrame, pl.DataFrame],
) -> None:
    """Within 5 % in sum; and what was seen of the waits is in them, not in the service."""
    with_events, without = recorded
    wait, bare = with_events["wait_ns"].sum(), without["wait_ns"].sum()
    assert bare == pytest.approx(wait, rel=0.05)
    assert bare >= 0.95 * with_events["contention_ns"].sum()


def test_true_waits_are_in_no_think_time(recorded: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    """Each contention span lies inside an operation, and those are marked without it too."""
    with_events, _ = recorded
    contended = with_events.filter(pl.col("contention_ns") > 0)
    # Of an operation that waited, at least the wait that the kernel saw is not service.
    own = contended["service_ns"].sum()
    assert own + contended["contention_ns"].sum() <= 1.05 * contended["duration_ns"].sum()
    slept = with_events.filter(pl.col("blocked_inside_ns") > 0)
    assert slept.height
    assert slept.filter((pl.col("quality") & int(Quality.CONTENDED)) == 0).is_empty()
