"""The estimate from counts, the count of losses, and the measured cost."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from mmreplay.errors import UserError
from mmreplay.recorder import cost
from mmreplay.recorder.api import advice, told
from mmreplay.recorder.check import Content, check
from mmreplay.recorder.estimate import parse_counts, project
from mmreplay.trace.recording import Recording, choose_events, in_release

EVENTS = choose_events(in_release(None))
PERF_STAT = """# started on Thu Nov 26 11:45:44 2026

500.00,msec,task-clock,500000000,100.00,0.250,CPUs utilized
1000,,context-switches,161170758,100.00,13.383,K/sec
20000,,exceptions:page_fault_user,161170758,100.00,152.888,K/sec
<not supported>,,exceptions:page_fault_kernel,0,100.00,,
18000,,minor-faults,161170758,100.00,152.888,K/sec
"""


def test_estimate_by_hand() -> None:
    counts = parse_counts(PERF_STAT)
    assert counts["task-clock"] == 500.0
    assert "exceptions:page_fault_kernel" not in counts
    found = project(counts, EVENTS, 2.0, cost.EventCost(1000, 100, "given"))
    assert found.events_per_s == (20_000 + 18_000 + 2 * 1000) / 2
    assert found.faults_per_s == 10_000
    assert found.cpus_used == 0.25
    assert found.added_cpu_ratio == pytest.approx(20_000 * 1e-6 / 0.25)
    assert found.bytes_per_s == 2e6
    assert "8.0% of the 0.25 CPUs" in told(found, light=False)[0]
    assert len(told(found, light=False)) == 1
    heavy = project(counts, EVENTS, 2.0, cost.EventCost(2000, 100, "given"))
    assert "--light costs less, but predict needs durations" in told(heavy, light=False)[1]
    assert "--light" not in told(heavy, light=True)[1]


def test_what_is_counted_stands_for_all() -> None:
    every = choose_events(in_release(None), wakeups=True, compat=True)
    counted = every.counted
    assert counted.keys() < set(every.events)
    counts = dict.fromkeys(every.events, 10.0)  # as many returns as entries, ends as begins
    found = project(counts, every, 2.0, cost.EventCost(1000, 100, "given"))
    assert found.events_per_s == 10 * len(every.events) / 2
    assert len(counted) < 0.6 * len(every.events)


def test_an_idle_process_costs_nothing() -> None:
    found = project({"task-clock": 0.0}, EVENTS, 2.0, cost.EventCost(900, 90, "given"))
    assert (found.added_cpu_ratio, found.events_per_s) == (0.0, 0.0)
    assert told(found, light=False) == ["it slept for these 2 s: what recording takes is not known"]


def test_a_process_that_sleeps_is_counted() -> None:
    counts = parse_counts(
        "<not counted>,msec,task-clock,0,100.00,,\n<not supported>,,minor-faults,0,100.00,,\n"
    )
    assert counts == {"task-clock": 0.0}


def perf_data(file: Path, *records: bytes, size: int | None = None) -> Path:
    body = b"".join(records)
    length = len(body) if size is None else size
    head = struct.pack("<8s7Q", b"PERFILE2", 104, 144, 104, 0, 104, length, 0)
    file.write_bytes(head.ljust(104, b"\0") + body)
    return file


def record(kind: int, *words: int) -> bytes:
    body = struct.pack(f"<{len(words)}Q", *words)
    return struct.pack("<IHH", kind, 0, 8 + len(body)) + body


def test_losses_are_counted_once(tmp_path: Path) -> None:
    samples = [record(9, 1, 2)] * 40
    file = perf_data(tmp_path / "a", *samples, record(2, 5, 30), record(13, 25), record(13, 10))
    assert check(file) == Content(file.stat().st_size, 40, 43, 35)
    file = perf_data(tmp_path / "b", *samples, record(2, 5, 30))  # kernels before 6.0
    assert check(file).lost == 30
    assert check(file).lost_ratio == 30 / 70


def test_unfinished_and_damaged_files_are_told(tmp_path: Path) -> None:
    whole = record(9, 1, 2)
    for file, word in (
        (tmp_path / "missing", "no recording"),
        (perf_data(tmp_path / "killed", whole, size=0), "did not finish"),
        (perf_data(tmp_path / "cut", whole, size=1000), "did not finish"),
        (perf_data(tmp_path / "short", whole, struct.pack("<IHH", 9, 0, 4)), "damaged"),
        (perf_data(tmp_path / "over", whole, struct.pack("<IHH", 9, 0, 64)), "damaged"),
    ):
        with pytest.raises(UserError, match=word):
            check(file)


def test_advice_on_losses() -> None:
    recording = Recording(EVENTS, ring_pages=4096)
    assert advice(Content(0, 100_000, 100_000, 50), recording) == []
    (line,) = advice(Content(0, 100_000, 100_000, 1000), recording)
    assert "--buffer 64M" in line
    assert "--light, which predict refuses" in line
    assert "not to be trusted" not in line
    (line,) = advice(Content(0, 100_000, 100_000, 10_000), recording)
    assert "not to be trusted" in line


def test_the_measured_cost_holds_for_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMREPLAY_CACHE", str(tmp_path))
    assert cost.known_cost().ns == cost.DEFAULT_NS
    kernel, cpu = cost.machine()
    found = cost.Calibration("2026-01-02", kernel, cpu, "6.1", 1500.0, 4000.0, 777, 88, [])
    cost.keep(found)
    assert cost.known_cost() == cost.EventCost(777, 88, "measured on this machine on 2026-01-02")
    monkeypatch.setattr(cost, "machine", lambda: (kernel, "another CPU"))
    assert cost.known_cost().ns == cost.DEFAULT_NS
    (tmp_path / "event-cost.json").write_text(json.dumps({"kernel": kernel}))
    assert cost.known_cost().ns == cost.DEFAULT_NS
