"""The machine-readable contract, key by key, on the shipped recording.

Written as somebody would who reads these outputs with a script: through the commands only.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mmreplay.cli.main import main
from mmreplay.resources import datasets_dir

RECORDING = datasets_dir("traces") / "node-minify-workers" / "perf.data"

INTEGER, NUMBER, TEXT = int, (int, float), str
RWSEM = (
    "read",
    "write",
    "downgrade",
    "read_wait_ns",
    "write_wait_ns",
    "read_hold_ns",
    "write_hold_ns",
)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("contract") / "node.mmt"
    main(["import", str(RECORDING), "-o", str(path)])
    return path


def output(capfd: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """stdout of a command, which is one JSON object and nothing else."""
    capfd.readouterr()
    main([*map(str, words), "--format", "json"])
    found = json.loads(capfd.readouterr().out, parse_constant=_no_constant)
    assert isinstance(found, dict)
    return found


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def has(found: dict[str, Any], key: str, kind: Any, *, null: bool = False) -> Any:
    """The value of ``key``, which is of ``kind`` (a bool is no number)."""
    assert key in found, key
    value = found[key]
    if value is None:
        assert null, f"{key} is null"
        return None
    assert isinstance(value, kind), key
    assert kind is bool or not isinstance(value, bool), key
    if isinstance(value, float):
        assert math.isfinite(value), key
    return value


def counter(found: dict[str, Any], key: str) -> int:
    value = has(found, key, INTEGER)
    assert value >= 0, key
    return int(value)


class TestShow:
    @pytest.fixture
    def found(self, trace: Path, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
        return output(capfd, "show", trace)

    def test_counts(self, found: dict[str, Any]) -> None:
        kinds = has(found, "ops_by_kind", dict)
        assert all(isinstance(kind, str) and count > 0 for kind, count in kinds.items())
        assert {"fault_user", "mmap", "munmap"} <= set(kinds)
        events = has(found, "events_by_name", dict)
        assert all(isinstance(name, str) and count >= 0 for name, count in events.items())
        # Each mmap was entered once, as recorded.
        assert events["syscalls:sys_enter_mmap"] == kinds["mmap"]
        assert events["exceptions:page_fault_user"] >= kinds["fault_user"] * 0.99
        assert counter(found, "lost_events") == 0
        assert counter(found, "threads") > 2
        assert counter(found, "processes") >= 1
        assert counter(found, "span_ns") > 1e8

    def test_times(self, found: dict[str, Any]) -> None:
        times = has(found, "time_ns", dict)
        for key in ("think_cpu", "think_blocked", "service", "wait", "unattributed"):
            counter(times, key)
        assert times["think_cpu"] + times["service"] < found["span_ns"] * found["threads"]

    def test_capabilities(self, found: dict[str, Any]) -> None:
        capabilities = has(found, "capabilities", dict)
        assert capabilities["fault_duration"] == "measured"
        assert capabilities["sampling"] is False


@pytest.mark.parametrize("kernel", ["linux-6.1", "linux-6.18"])
def test_replay(kernel: str, trace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = output(capfd, "replay", trace, "--kernel", kernel)
    counter(found, "schema")
    assert has(found, "trace", TEXT) == "node.mmt"
    assert has(found, "kernel", TEXT) == kernel
    has(found, "machine", TEXT)
    for key in ("cores", "threads", "ops", "window_ns", "makespan_ns"):
        assert counter(found, key) > 0, key
    assert has(found, "throughput_ops_per_s", NUMBER) > 0
    assert 0 < has(found, "useful_work_rate", NUMBER) <= found["cores"]
    assert has(found, "baseline_drift_ratio", NUMBER, null=True) > 0
    has(found, "baseline_drift_note", TEXT)

    locks = has(found, "locks", dict)
    fast = locks.pop("vma_lock")
    counter(fast, "read")
    counter(fast, "mark")
    assert all(
        isinstance(why, str) and count > 0 for why, count in has(fast, "fallback", dict).items()
    )
    assert "mmap_lock" in locks
    for lock in locks.values():
        for key in RWSEM:
            counter(lock, key)
    assert (fast["read"] > 0) == (kernel == "linux-6.18")

    by_op = has(found, "by_op", list)
    for row in by_op:
        has(row, "op", TEXT)
        for key in ("count", "busy_ns", "wait_ns"):
            counter(row, key)
        p50 = has(row, "delay_p50_ns", NUMBER)
        assert p50 <= has(row, "delay_p99_ns", NUMBER)
    assert len({row["op"] for row in by_op}) == len(by_op)
    assert sum(row["count"] for row in by_op) == found["ops"]

    blame = has(found, "blame", list)
    for row in blame:
        has(row, "holder_op", TEXT)
        has(row, "waiter_op", TEXT)
        assert counter(row, "wait_ns") > 0
    assert sum(row["wait_ns"] for row in blame) == sum(row["wait_ns"] for row in by_op)

    engine = has(found, "engine", dict)
    assert has(engine, "wall_s", NUMBER) > 0
    assert has(engine, "ops_per_s", NUMBER) > 0

    processes = has(found, "processes", list)
    for process in processes:
        counter(process, "pid")
        counter(process, "ops")
    assert sum(process["wait_ns"] for process in processes) == sum(row["wait_ns"] for row in by_op)
    assert has(found, "foreign_holders", list) == []


def test_replay_counts_every_operation_of_the_trace_once(
    trace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = output(capfd, "show", trace)["ops_by_kind"]
    found = output(capfd, "replay", trace, "--kernel", "linux-6.1")
    counts = {row["op"]: row["count"] for row in found["by_op"]}
    faults = shown.get("fault_user", 0) + shown.get("fault_kernel", 0)
    assert counts["fault"] == faults
    assert counts["mprotect"] == shown["mprotect"]
    writes = found["locks"]["mmap_lock"]["write"]
    assert writes >= shown["mmap"] + shown["munmap"]


def test_formats_that_are_not_there_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["import", str(RECORDING), "--formats", "no.data", "-o", str(tmp_path / "a.mmt")])
    assert capfd.readouterr().err.startswith("mmreplay: --formats: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("group", [[], ["models"], ["machines"], ["workloads"], ["locks"]])
def test_without_a_command_the_help_is_shown(
    group: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    main(group)
    told = capfd.readouterr()
    assert told.err == ""
    assert told.out.startswith("Usage: ")
    assert "\nCommands:\n" in told.out


def test_predict(trace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("--from", "linux-6.1", "--to", "linux-6.18", "--cores", "1,4", "--threads", "2,4")
    found = output(capfd, "predict", trace, *words)
    has(found, "baseline_drift_ratio", NUMBER, null=True)
    rows = has(found, "rows", list)
    points = set()
    for row in rows:
        points.add((row["kernel"], row["cores"], row["threads"], row["load"]))
        assert has(row, "kernel", TEXT) in ("linux-6.1", "linux-6.18")
        assert counter(row, "cores") in (1, 4)
        assert counter(row, "threads") in (2, 4)
        assert has(row, "load", TEXT) in ("recorded", "saturated")
        rate = has(row, "throughput_ops_per_s", NUMBER)
        assert rate > 0
        assert 0 <= has(row, "useful_work_rate", NUMBER) <= row["cores"] * 1.001
        low, high = (has(row, key, NUMBER, null=True) for key in ("lower", "upper"))
        assert (low is None) == (high is None)
        assert low is None or low <= rate <= high
        speedup = has(row, "speedup", NUMBER, null=True)
        low, high = (has(row, f"speedup_{key}", NUMBER, null=True) for key in ("lower", "upper"))
        assert low is None or low <= speedup <= high
        has(row, "speedup_from_locking", NUMBER, null=True)
        assert has(row, "basis", TEXT) in ("measured", "interpolated", "extrapolated")
        lock = has(row, "limiting_lock", TEXT, null=True)
        op = has(row, "limiting_op", TEXT, null=True)
        assert lock is not None or op is None
        if row["kernel"] == "linux-6.1":
            assert speedup == 1
        elif row["cores"] == 1 and row["load"] == "recorded":
            assert speedup == pytest.approx(1, abs=0.1)
    assert len(points) == len(rows) == 2 * 2 * 2 * 2
