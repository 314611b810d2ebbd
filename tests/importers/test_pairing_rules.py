"""Pairing rules on hand-made recordings: each case is small enough to check by eye."""

from __future__ import annotations

import struct
from pathlib import Path

import perfwriter as pw
import polars as pl
import pytest
from loading import load, ops

from mmreplay.schema import DurationKind, FaultClass, OpKind, Quality

MS = 1_000_000


def test_fault_pairs_with_the_next_end_at_the_same_address(tmp_path: Path) -> None:
    w = pw.default()
    w.fault(pw.FAULT, 1 * MS, 100, 0x7F0000001234, error=6)
    w.sample(pw.MINOR, 1 * MS + 4000, 100, addr=0x7F0000001234)
    w.fault(pw.FAULT, 2 * MS, 100, 0x7F0000005000, error=4)
    w.sample(pw.MAJOR, 2 * MS + 90_000, 100, addr=0x7F0000005000)
    first, second = ops(load(w, tmp_path))
    assert first["kind"] == OpKind.FAULT_USER
    assert (first["begin_ns"], first["duration_ns"]) == (0, 4000)
    assert first["fault_class"] == FaultClass.MINOR
    assert (first["address"], first["fault_bits"], first["ip"]) == (0x7F0000001234, 6, 0x1234)
    assert second["fault_class"] == FaultClass.MAJOR
    assert second["duration_ns"] == 90_000
    assert first["think_cpu_ns"] is None  # nothing is known of the thread before
    probe = 900
    assert second["think_cpu_ns"] == MS - 4000 - probe
    assert first["duration_corrected_ns"] == 4000 - probe
    assert (first["duration_ns"], second["think_raw_ns"]) == (4000, MS - 4000)  # raw ones stay


def test_fault_without_end_failed(tmp_path: Path) -> None:
    w = pw.default()
    w.fault(pw.FAULT, 1 * MS, 100, 0)
    w.fault(pw.FAULT, 2 * MS, 100, 0x7F0000005000)
    w.sample(pw.MINOR, 2 * MS + 1000, 100, addr=0x7F0000005000)
    first, second = ops(load(w, tmp_path))
    assert first["fault_class"] == FaultClass.FAILED
    assert first["duration_kind"] == DurationKind.END_UNSEEN
    assert first["duration_ns"] is None
    # The signal's handler and what follows are the program's own time.
    assert second["think_cpu_ns"] == MS - 900
    assert second["unattributed_ns"] == 0


def test_time_after_a_failed_fault_is_split_by_switches(tmp_path: Path) -> None:
    w = pw.default()
    w.fault(pw.FAULT, 10_000, 100, 0)
    w.switch(15_000, 100, 100, out=True)
    w.switch(55_000, 100, 100, out=False)
    w.switch(60_000, 100, 100, out=True, preempt=True)
    w.switch(63_000, 100, 100, out=False)
    w.fault(pw.FAULT, 70_000, 100, 0x7F0000005000)
    w.sample(pw.MINOR, 71_000, 100, addr=0x7F0000005000)
    failed, second = ops(load(w, tmp_path))
    assert failed["fault_class"] == FaultClass.FAILED
    assert failed["blocked_inside_ns"] in (0, None)
    assert second["think_blocked_ns"] == 40_000
    assert second["preempted_ns"] == 3_000
    on_cpu = 60_000 - 40_000 - 3_000
    assert 0.5 * on_cpu < second["think_cpu_ns"] <= on_cpu  # less the probes' cost
    assert second["unattributed_ns"] == 0


def test_end_at_another_address_does_not_pair(tmp_path: Path) -> None:
    w = pw.default()
    w.fault(pw.FAULT, 1 * MS, 100, 0x1000)
    w.sample(pw.MINOR, 2 * MS, 100, addr=0x9000)
    first, second = ops(load(w, tmp_path))
    assert first["duration_ns"] is None
    assert second["duration_kind"] == DurationKind.BEGIN_UNSEEN
    assert second["address"] == 0x9000


def test_faults_of_two_threads_interleave(tmp_path: Path) -> None:
    w = pw.default()
    w.fault(pw.FAULT, 1000, 100, 0x1000)
    w.fault(pw.FAULT, 1100, 101, 0x1000, cpu=1)
    w.sample(pw.MINOR, 1700, 101, addr=0x1000)
    w.sample(pw.MINOR, 5000, 100, addr=0x1000)
    assert [(o["tid"], o["duration_ns"]) for o in ops(load(w, tmp_path))] == [
        (100, 4000),
        (101, 600),
    ]


def test_mmap_gets_its_address_from_the_result(tmp_path: Path) -> None:
    w = pw.default()
    w.call(pw.MMAP_IN, 1000, 100, 0, 8192, 3, 0x22, 0xFFFFFFFFFFFFFFFF, 0)
    w.call(pw.MMAP_OUT, 3000, 100, 0x7F1000000000)
    w.call(pw.MMAP_IN, 5000, 100, 0x10, 0, 3, 0x22, 3, 4096)
    w.call(pw.MMAP_OUT, 6000, 100, -22)
    good, bad = ops(load(w, tmp_path))
    assert (good["kind"], good["address"], good["length"]) == (OpKind.MMAP, 0x7F1000000000, 8192)
    assert (good["address2"], good["prot"], good["flags"], good["fd"]) == (0, 3, 0x22, -1)
    assert (good["duration_ns"], good["errno"]) == (2000, None)
    assert (bad["address"], bad["errno"], bad["result"]) == (None, 22, -22)
    assert (bad["fd"], bad["file_offset"]) == (3, 4096)


def test_fault_inside_a_system_call_is_nested(tmp_path: Path) -> None:
    w = pw.default()
    w.call(pw.MUNMAP_IN, 1000, 100, 0x1000, 4096)
    w.fault(pw.FAULT, 2000, 100, 0x5000)
    w.sample(pw.MINOR, 3000, 100, addr=0x5000)
    w.call(pw.MUNMAP_OUT, 9000, 100, 0)
    outer, inner = ops(load(w, tmp_path))
    assert outer["kind"] == OpKind.MUNMAP
    assert (outer["duration_ns"], outer["inner_events"]) == (8000, 2)
    assert outer["duration_corrected_ns"] == 8000 - 3 * 900
    assert inner["quality"] & Quality.NESTED_IN_SYSCALL
    assert (inner["think_cpu_ns"], inner["duration_ns"]) == (0, 1000)


def test_return_of_another_call_closes_the_open_one_unseen(tmp_path: Path) -> None:
    w = pw.default()
    w.call(pw.MUNMAP_IN, 1000, 100, 0x1000, 4096)
    w.call(pw.MMAP_OUT, 2000, 100, 0x7000)
    first, second = ops(load(w, tmp_path))
    assert first["duration_kind"] == DurationKind.END_UNSEEN
    assert second["duration_kind"] == DurationKind.BEGIN_UNSEEN
    assert second["quality"] & Quality.ORPHAN_EXIT
    assert second["begin_ns"] == 1000


def test_brk_range_is_between_the_breaks(tmp_path: Path) -> None:
    w = pw.default()
    for time, asked, now in ((1, 0, 0x50000), (2, 0x52000, 0x52000), (3, 0x51000, 0x51000)):
        w.call(pw.BRK_IN, time * MS, 100, asked)
        w.call(pw.BRK_OUT, time * MS + 500, 100, now)
    first, grown, shrunk = ops(load(w, tmp_path), OpKind.BRK)
    assert first["length"] is None
    assert (grown["address"], grown["length"], grown["address2"]) == (0x50000, 0x2000, 0x52000)
    assert (shrunk["address"], shrunk["length"]) == (0x51000, 0x1000)


def test_thread_by_clone_shares_the_address_space(tmp_path: Path) -> None:
    w = pw.default()
    w.call(pw.CLONE_IN, 1000, 100, 0x3D0F00, 0)
    w.fork(2000, 100, 100, 101, 100)
    w.call(pw.CLONE_OUT, 3000, 100, 101)
    w.call(pw.CLONE_OUT, 3500, 101, 0)
    w.exit(9000, 100, 101)
    w.exit(9500, 100, 100)
    trace = load(w, tmp_path)
    clone, start, gone, last, process = ops(trace)
    assert (clone["kind"], clone["child"]) == (OpKind.CLONE, 101)
    assert (start["kind"], start["tid"]) == (OpKind.THREAD_START, 101)
    assert start["quality"] & Quality.CHILD_RETURN
    assert start["address_space"] == clone["address_space"]
    assert (gone["kind"], last["kind"]) == (OpKind.THREAD_EXIT, OpKind.THREAD_EXIT)
    assert process["kind"] == OpKind.PROCESS_EXIT
    row = trace.threads.filter(pl.col("tid") == 101).collect().to_dicts()[0]
    assert (row["start_kind"], row["parent_tid"]) == ("thread", 100)
    assert (row["start_ns"], row["end_ns"]) == (1000, 8000)


@pytest.mark.parametrize(
    ("flags", "kind", "shared"),
    [(0x01200011, OpKind.FORK, False), (0x4111, OpKind.VFORK, True)],
)
def test_process_by_clone(tmp_path: Path, flags: int, kind: OpKind, shared: bool) -> None:
    w = pw.default()
    w.call(pw.CLONE_IN, 1000, 100, flags, 0)
    w.fork(2000, 200, 100, 200, 100)
    w.call(pw.CLONE_OUT, 2500, 200, 0, pid=200)
    w.comm(3000, 200, 200, b"child", exec_=True)
    w.fault(pw.FAULT, 4000, 200, 0x5000, pid=200)
    w.call(pw.CLONE_OUT, 5000, 100, 200)
    clone, start, fault = ops(load(w, tmp_path))
    assert clone["kind"] == kind
    assert (start["address_space"] == clone["address_space"]) == shared
    assert fault["address_space"] not in (clone["address_space"], start["address_space"])


def test_clone3_child_that_its_parent_waits_for_was_a_vfork(tmp_path: Path) -> None:
    w = pw.default()
    w.call(pw.CLONE3_IN, 1000, 100, 0x7FFF, 88)
    w.fork(2000, 200, 100, 200, 100)
    w.call(pw.CLONE3_OUT, 2500, 200, 0, pid=200)
    w.comm(3000, 200, 200, b"child", exec_=True)
    w.call(pw.CLONE3_OUT, 5000, 100, 200)
    w.call(pw.CLONE3_IN, 11_000, 100, 0x7FFF, 88)
    w.fork(12_000, 300, 100, 300, 100)
    w.call(pw.CLONE3_OUT, 12_100, 100, 300)
    w.call(pw.CLONE3_OUT, 12_500, 300, 0, pid=300)
    w.comm(13_000, 300, 300, b"other", exec_=True)
    vfork, first, fork, second = ops(load(w, tmp_path))
    assert vfork["kind"] == OpKind.VFORK
    assert first["address_space"] == vfork["address_space"]
    assert fork["kind"] == OpKind.FORK
    assert second["address_space"] != fork["address_space"]


def test_exec_leaves_the_old_address_space(tmp_path: Path) -> None:
    w = pw.default()
    w.fault(pw.FAULT, 500, 100, 0x5000)
    w.sample(pw.MINOR, 600, 100, addr=0x5000)
    w.call(pw.EXEC_IN, 1000, 100, 1, 2, 3)
    w.comm(2000, 100, 100, b"new", exec_=True)
    w.mmap2(2100, 100, 100, 0x400000, 8192, b"/usr/bin/secret-tool")
    w.call(pw.EXEC_OUT, 3000, 100, 0)
    w.fault(pw.FAULT, 4000, 100, 0x400000)
    w.mmap2(5000, 100, 100, 0x500000, 8192, b"/home/someone/diary.txt")
    w.mmap2(5100, 100, 100, 0x600000, 8192, b"/usr/lib/libc.so.6")
    w.mmap2(5200, 100, 100, 0x700000, 8192, b"//anon")
    trace = load(w, tmp_path)
    before, execve, after = ops(trace)
    assert execve["kind"] == OpKind.EXEC
    assert execve["address_space"] == before["address_space"]
    assert execve["duration_ns"] == 2000
    assert after["address_space"] != before["address_space"]
    vmas = trace.vmas.collect()
    assert vmas["source"].to_list() == ["exec", "mmap2", "mmap2", "mmap2"]
    assert set(vmas["address_space"]) == {after["address_space"]}
    # Names tell nothing about users.
    assert vmas["name"].to_list() == ["(file)", "(file)", "libc.so.6", "//anon"]


def test_a_thread_that_executes_takes_its_leaders_id(tmp_path: Path) -> None:
    """Its own id is no more, so the process ends with the leader's."""
    w = pw.default()
    w.call(pw.MUNMAP_IN, 500, 100, 0x1000, 4096)
    w.call(pw.MUNMAP_OUT, 600, 100, 0)
    w.fork(700, 100, 100, 101, 100)
    w.call(pw.EXEC_IN, 1000, 101, 1, 2, 3, pid=100)
    w.exit(1500, 100, 100)
    w.comm(2000, 100, 100, b"new", exec_=True)
    w.call(pw.EXEC_OUT, 3000, 100, 0)
    w.exit(5000, 100, 100)
    trace = load(w, tmp_path)
    (execve,) = ops(trace, OpKind.EXEC)
    assert (execve["tid"], execve["duration_ns"]) == (101, 2000)
    threads = trace.threads.collect()
    assert threads.filter(pl.col("tid") == 101)["end_ns"].to_list() == [2500]
    (end,) = ops(trace, OpKind.PROCESS_EXIT)
    assert end["begin_ns"] == 4500


def test_switches_split_think_and_inside(tmp_path: Path) -> None:
    w = pw.default()
    w.call(pw.MUNMAP_IN, 10_000, 100, 0x1000, 4096)
    w.switch(11_000, 100, 100, out=True)
    w.switch(15_000, 100, 100, out=False)
    w.switch(16_000, 100, 100, out=True, preempt=True)
    w.switch(18_000, 100, 100, out=False)
    w.call(pw.MUNMAP_OUT, 20_000, 100, 0)
    w.switch(30_000, 100, 100, out=True)
    w.switch(70_000, 100, 100, out=False)
    w.switch(80_000, 100, 100, out=True, preempt=True)
    w.switch(85_000, 100, 100, out=False)
    w.call(pw.MUNMAP_IN, 95_000, 100, 0x1000, 4096)
    w.call(pw.MUNMAP_OUT, 96_000, 100, 0)
    trace = load(w, tmp_path)
    first, second = ops(trace)
    assert (first["duration_ns"], first["blocked_inside_ns"]) == (10_000, 4000)
    assert first["preempted_ns"] == 2000
    assert second["think_blocked_ns"] == 40_000
    assert second["preempted_ns"] == 5000
    # 30 us on CPU less one event's cost for each of the three gaps.
    assert second["think_cpu_ns"] == 30_000 - 3 * 900
    rows = trace.schedule.collect()
    assert rows["reason"].to_list() == [0, 1, 0, 1]
    assert (rows["on_ns"] - rows["off_ns"]).to_list() == [4000, 2000, 40_000, 5000]


def test_who_first_shows_by_coming_onto_a_cpu_was_off_it(tmp_path: Path) -> None:
    w = pw.default()
    w.comm(0, 100, 100, b"runs")
    w.comm(0, 100, 200, b"sleeps")
    w.fault(0, 10_000, 100, 0x5000)
    w.switch(15_000, 100, 100, out=True)
    w.switch(500_000, 100, 200, out=False)
    for tid, now in ((200, 520_000), (100, 530_000)):
        w.call(pw.MUNMAP_IN, now, tid, 0x1000, 4096)
        w.call(pw.MUNMAP_OUT, now + 2000, tid, 0)
    slept = ops(load(w, tmp_path))[1]
    assert slept["tid"] == 200
    assert slept["think_blocked_ns"] == 490_000  # from the first event on
    assert slept["think_cpu_ns"] == 20_000 - 2 * 900
    assert slept["unattributed_ns"] == 0


def test_where_events_were_lost_nobody_knows(tmp_path: Path) -> None:
    w = pw.default()
    w.comm(0, 100, 200, b"sleeps")
    w.fault(0, 10_000, 100, 0x5000)
    w.lost(400_000, 7)
    w.switch(500_000, 100, 200, out=False)
    w.call(pw.MUNMAP_IN, 520_000, 200, 0x1000, 4096)
    w.call(pw.MUNMAP_OUT, 522_000, 200, 0)
    assert ops(load(w, tmp_path))[1]["think_cpu_ns"] is None


def test_contention_inside_an_operation(tmp_path: Path) -> None:
    w = pw.default()

    def lock(which: int, time: int, address: int, word: int) -> None:
        w.sample(which, time, 100, b"\0" * 8 + struct.pack("<QI", address, word))

    w.fault(pw.FAULT, 1000, 100, 0x5000)
    lock(pw.LOCK_IN, 2000, 0xAB0, 2)
    lock(pw.LOCK_OUT, 7000, 0xAB0, 0)
    w.sample(pw.MINOR, 9000, 100, addr=0x5000)
    lock(pw.LOCK_IN, 10_000, 0xCD0, 0x21)  # a mutex spins, then sleeps: two begins, one end
    lock(pw.LOCK_IN, 11_000, 0xCD0, 0x20)
    lock(pw.LOCK_OUT, 14_000, 0xCD0, 0)
    lock(pw.LOCK_OUT, 15_000, 0xEE0, 0)
    trace = load(w, tmp_path)
    (fault,) = ops(trace)
    assert fault["contention_ns"] == 5000
    assert fault["quality"] & Quality.CONTENDED
    locks = trace.locks.collect().to_dicts()
    assert [(r["kind"], r["mode"], r["wait_ns"]) for r in locks] == [
        ("rwsem", "read", 5000),
        ("mutex", "unknown", 4000),
    ]
    assert trace.header.counters["unmatched_lock_events"] == 1


@pytest.mark.parametrize("dynamic", [True, False])
def test_mmap_lock_in_both_layouts(tmp_path: Path, dynamic: bool) -> None:
    events = [pw.Event(50), pw.Event(51), pw.Event(52)]
    w = pw.Writer(events, pw.mmap_lock_formats(dynamic))

    def event(which: int, time: int, mm: int, write: int, success: int = 1) -> None:
        middle = struct.pack("<I", 4 << 16 | 24) if dynamic else struct.pack("<Q", 1)
        raw = b"\0" * 8 + struct.pack("<Q", mm) + middle + bytes([write, success])
        w.sample(which, time, 100, raw + b"abc\0")

    event(0, 1000, 0xA, 1)
    event(1, 1800, 0xA, 1)
    event(1, 4000, 0xA, 0)  # a downgrade
    event(2, 9000, 0xA, 0)
    event(1, 10_000, 0xB, 0)  # a trylock
    event(2, 10_500, 0xB, 0)
    event(1, 11_000, 0xB, 0, success=0)
    trace = load(w, tmp_path)
    rows = trace.locks.collect()
    assert set(rows["kind"]) == {"mmap_lock"}
    assert list(rows.select("mode", "wait_ns", "hold_ns").iter_rows()) == [
        ("write", 800, 2200),
        ("read", 0, 5000),
        ("read", 0, 500),
    ]
    assert trace.header.counters["failed_trylocks"] == 1


def test_losses_count_once_and_close_what_was_open(tmp_path: Path) -> None:
    w = pw.default()
    w.call(pw.MUNMAP_IN, 1000, 100, 0x1000, 4096)
    w.lost(5000, 40)
    w.call(pw.MUNMAP_IN, 6000, 100, 0x2000, 4096)
    w.call(pw.MUNMAP_OUT, 7000, 100, 0)
    w.lost_samples(40, which=pw.MUNMAP_IN)
    w.lost_samples(7, which=pw.MUNMAP_IN, misc=1 << 15)  # a filter's, no loss
    trace = load(w, tmp_path)
    first, second = ops(trace)
    assert first["duration_kind"] == DurationKind.END_UNSEEN
    assert second["quality"] & Quality.AFTER_GAP
    assert second["think_cpu_ns"] is None
    assert trace.header.lost_events == 40
    assert trace.header.events[pw.MUNMAP_IN].lost == 40
    gap = trace.gaps.collect().to_dicts()[0]
    assert (gap["begin_ns"], gap["end_ns"], gap["lost"]) == (0, 4000, 40)
    assert any("lost" in warning for warning in trace.header.warnings)


def test_only_software_events(tmp_path: Path) -> None:
    w = pw.Writer([pw.Event(5, 1, pw.SW_TYPE), pw.Event(6, 1, pw.SW_TYPE)], with_tracing=False)
    w.sample(0, 1000, 100, addr=0x5000)
    w.sample(1, 2000, 100, addr=0x6000, misc=1)
    trace = load(w, tmp_path)
    user, kernel = ops(trace)
    assert (user["kind"], user["fault_class"]) == (OpKind.FAULT_USER, FaultClass.MINOR)
    assert (kernel["kind"], kernel["fault_class"]) == (OpKind.FAULT_KERNEL, FaultClass.MAJOR)
    assert user["duration_kind"] == DurationKind.NONE
    assert trace.header.capabilities.fault_duration == "none"


def test_starts_only_bound_the_fault_by_the_next_event(tmp_path: Path) -> None:
    w = pw.Writer([pw.Event(10)])
    w.fault(0, 1000, 100, 0x5000)
    w.fault(0, 6000, 100, 0x6000)
    trace = load(w, tmp_path)
    first, second = ops(trace)
    assert (first["duration_kind"], first["duration_ns"]) == (DurationKind.UPPER_BOUND, 5000)
    assert second["think_cpu_ns"] is None
    assert trace.header.capabilities.fault_duration == "upper"


def test_software_start_beside_the_tracepoint_is_one_fault(tmp_path: Path) -> None:
    w = pw.Writer([pw.Event(10), pw.Event(2, 1, pw.SW_TYPE), pw.Event(5, 1, pw.SW_TYPE)])
    w.fault(0, 1000, 100, 0x5000)
    w.sample(1, 1500, 100, addr=0x5000)
    w.sample(2, 3000, 100, addr=0x5000)
    (fault,) = ops(load(w, tmp_path))
    assert (fault["duration_ns"], fault["inner_events"]) == (2000, 1)


def test_calls_without_returns(tmp_path: Path) -> None:
    w = pw.Writer([pw.Event(22)])
    w.call(0, 1000, 100, 0x1000, 4096)
    w.call(0, 3000, 100, 0x2000, 4096)
    trace = load(w, tmp_path)
    assert [o["duration_kind"] for o in ops(trace)] == [DurationKind.NONE] * 2
    assert not trace.header.capabilities.syscall_durations
    assert any("munmap" in warning for warning in trace.header.warnings)


@pytest.mark.parametrize(
    ("event", "weight", "sampling"),
    [
        (pw.Event(10, period=10), 1, False),  # -c 10 does not thin out tracepoints
        (pw.Event(5, 1, pw.SW_TYPE, period=10), 10, True),
        (pw.Event(10, bits=pw.SAMPLE_ID_ALL | pw.FREQ, period=99), 1, True),
    ],
)
def test_weight(tmp_path: Path, event: pw.Event, weight: int, sampling: bool) -> None:
    w = pw.Writer([event])
    w.fault(0, 1000, 100, 0x5000) if event.type == 2 else w.sample(0, 1000, 100, addr=0x5000)
    trace = load(w, tmp_path)
    (fault,) = ops(trace)
    assert fault["weight"] == weight
    assert trace.header.capabilities.sampling == sampling


def test_32_bit_task_is_marked(tmp_path: Path) -> None:
    w = pw.default()
    for k in range(4):
        w.fault(pw.FAULT, 1000 + 10 * k, 100, 0x8048000 + 4096 * k)
        w.fault(pw.FAULT, 1005 + 10 * k, 200, 0x7FFFF0000000 + 4096 * k, pid=200)
    marked = {o["tid"] for o in ops(load(w, tmp_path)) if o["quality"] & Quality.COMPAT32}
    assert marked == {100}


def test_tid_reused_by_a_later_thread(tmp_path: Path) -> None:
    w = pw.default()
    w.fault(pw.FAULT, 500, 100, 0x5000)
    for k in (1, 2):
        w.fork(k * 10_000, 100, 100, 101, 100)
        w.fault(pw.FAULT, k * 10_000 + 100, 101, 0x5000)
        w.sample(pw.MINOR, k * 10_000 + 200, 101, addr=0x5000)
        w.exit(k * 10_000 + 900, 100, 101)
    trace = load(w, tmp_path)
    rows = trace.threads.filter(pl.col("tid") == 101).collect()
    assert sorted(rows["start_ns"]) == [9500, 19_500]
    assert len(ops(trace, OpKind.THREAD_START)) == 2


# -- call chains ------------------------------------------------------------------------------


def test_call_chains_are_kept_once(tmp_path: Path) -> None:
    kinds = pw.TP_TYPE | pw.CALLCHAIN
    w = pw.Writer([pw.Event(10, sample_type=kinds), pw.Event(20, sample_type=kinds)])
    kernel, user = -128 & (1 << 64) - 1, -512 & (1 << 64) - 1
    one = [kernel, 0xFFFF_FFFF_8100_0000, user, 0x401000, 0x402000]
    other = [user, 0x401000, 0x403000]
    w.fault(0, 1000, 100, 0x7F0000001000, frames=one)
    w.call(1, 2000, 100, 0, 4096, 3, 0x22, -1, 0, frames=other)
    w.fault(0, 3000, 101, 0x7F0000002000, frames=one)
    w.fault(0, 4000, 100, 0x7F0000003000, frames=[user])  # none, really
    trace = load(w, tmp_path)
    rows = trace.operations.collect()
    chains = trace.table("callchains").collect()
    assert chains.rows() == [(0, 0, 1), (1000, 0, 2), (2000, 0, 1)]
    assert chains.join(rows, on=["begin_ns", "seq"]).height == 3
    assert trace.table("stacks").collect().rows() == [
        (1, 0, 0xFFFF_FFFF_8100_0000),
        (1, 1, 0x401000),
        (1, 2, 0x402000),
        (2, 0, 0x401000),
        (2, 1, 0x403000),
    ]
    assert any("call chains cost" in line for line in trace.header.warnings)
    bare = pw.default()
    bare.fault(pw.FAULT, 1000, 100, 0x7F0000001000)
    assert not any("chains" in line for line in load(bare, tmp_path).header.warnings)


def test_who_slept_through_a_loss_slept(tmp_path: Path) -> None:
    """Off its CPU before the loss and switched in behind it; another ran."""
    w = pw.default()
    for tid in (100, 101):
        w.call(pw.MUNMAP_IN, 1000 + tid, tid, 0x1000, 4096)
        w.call(pw.MUNMAP_OUT, 2000 + tid, tid, 0)
    w.switch(10_000, 100, 100, out=True)
    w.lost(5 * MS, 40)
    w.switch(9 * MS, 100, 100, out=False)
    for tid in (100, 101):
        w.call(pw.MUNMAP_IN, 9 * MS + 1000 + tid, tid, 0x2000, 4096)
        w.call(pw.MUNMAP_OUT, 9 * MS + 2000 + tid, tid, 0)
    slept, ran = ops(load(w, tmp_path))[2:]
    assert slept["quality"] & ran["quality"] & Quality.AFTER_GAP
    assert slept["think_blocked_ns"] == 9 * MS - 10_000
    assert slept["think_raw_ns"] == 10_000 - 2100 + 1100
    assert ran["think_raw_ns"] is None
