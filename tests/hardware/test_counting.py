"""Counting on the running kernel: what it takes, and that nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mmreplay.errors import UserError
from mmreplay.hardware import counting, tracing
from mmreplay.hardware.counting import count_phases
from mmreplay.workloads.phases import record

pytestmark = [pytest.mark.kernel, pytest.mark.perf]


@pytest.fixture
def instances() -> Path:
    try:
        root = tracing.tracefs()
        with tracing.Instance(root):
            pass
    except UserError as error:
        pytest.skip(error.line())
    return root / "instances"


def test_writers_and_forks_are_counted_to_the_last(instances: Path) -> None:
    """Counts that are the same in every kernel with the tracepoints (LWN 906852, and the
    shipped counts of ten kernels)."""
    mine = instances / f"mmreplay-{os.getpid()}"  # others may trace beside this test
    seen = []
    found = count_phases(
        {"mmap": record("mmap"), "threads": record("threads")},
        lambda _: seen.append(mine.is_dir()),
    )
    counts = {c.phase: (c.read, c.write, c.downgrade) for c in found.counted}
    assert counts["mmap_anon_merge"] == (0, 1000, 0)
    assert counts["munmap_whole_untouched"] == (0, 1000, 1000)
    assert counts["mmap_fixed_over_existing_split"] == (0, 1000, 0)
    assert counts["clone_thread_prealloc_stack"] == (1000, 0, 0)
    assert found.not_done == {}
    assert any(seen)
    assert not mine.exists()


def test_perf_counts_the_same_where_no_instance_can_be_made(
    instances: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = {g: record(g) for g in ("mprotect", "cow", "threads")}
    wanted = {c.phase: c for c in count_phases(groups).counted}

    def refused(self: tracing.Instance) -> None:
        raise UserError("no instance")

    monkeypatch.setattr(tracing.Instance, "__enter__", refused)
    found = count_phases(groups)
    assert found.method == "perf"
    assert len(found.counted) == 5 + 5
    for one in found.counted:
        seen = wanted[one.phase]
        faults = seen.faults_user + (seen.faults_kernel or 0)
        assert replace(seen, faults_user=faults, faults_kernel=None) == one
    assert set(found.not_done) == set(groups["threads"])  # exits are not seen


def test_a_kernel_without_what_is_needed_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting.platform, "machine", lambda: "riscv64")
    with pytest.raises(UserError, match="riscv64"):
        count_phases({})


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_count_leaves_nothing_behind(instances: Path, how: int) -> None:
    code = (
        "from mmreplay.hardware.counting import count_phases\n"
        "from mmreplay.workloads.phases import record\n"
        "g = {str(i): record('threads') for i in range(50)}\n"
        "count_phases(g, lambda name: print(name, flush=True))\n"
    )
    package = str(Path(counting.__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": package},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"0\n"
    assert process.stdout.readline() == b"1\n"
    mine = instances / f"mmreplay-{process.pid}"
    assert mine.is_dir()
    process.send_signal(how)
    process.wait(30)
    process.stdout.close()
    assert process.returncode != 0
    deadline = time.monotonic() + 5
    while mine.is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not mine.is_dir()


def test_what_a_killed_process_left_is_removed_by_the_next(instances: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    stale = instances / f"mmreplay-{gone.pid}"
    stale.mkdir()
    with tracing.Instance(instances.parent):
        assert not stale.exists()
