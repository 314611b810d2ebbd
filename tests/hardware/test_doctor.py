"""``mmreplay doctor``: each lack is found, and comes with what to do about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmreplay.cli.main import cli
from mmreplay.errors import UserError
from mmreplay.hardware import doctor


def test_text_and_json_have_the_same_findings() -> None:
    text = CliRunner().invoke(cli, ["doctor"], catch_exceptions=False).stdout
    told = json.loads(
        CliRunner().invoke(cli, ["doctor", "--format", "json"], catch_exceptions=False).stdout
    )
    assert {f["name"] for f in told["findings"]} == {f.name for f in doctor.examine()}
    assert all(f["name"] in text for f in told["findings"])
    assert all(f["fix"] for f in told["findings"] if f["status"] != "yes")
    assert told["machine"]["cpus_allowed"] >= 1


def test_each_lack_has_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed() -> Path:
        raise UserError("no permission to use /sys/kernel/tracing", fix="run as root")

    monkeypatch.setattr(doctor.tracing, "tracefs", closed)
    monkeypatch.setattr(doctor, "has_populate", lambda: False)
    monkeypatch.setattr(doctor, "available_bytes", lambda: 1 << 29)
    monkeypatch.setattr(doctor, "thread_limit", lambda: (9, "pids.max of the cgroup"))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.facts, "per_vma_locks", lambda: False)
    monkeypatch.setattr(doctor.facts, "cgroup_cpus", lambda: 0.5)
    monkeypatch.setattr(doctor.facts, "kernel_config", lambda: {"CONFIG_LOCKDEP": "y"})
    found = {f.name: f for f in doctor.examine()}
    wanted = {
        "tracefs": ("no", "run as root"),
        "MADV_POPULATE_WRITE": ("no", "use --path kernel"),
        "memory": ("partly", "memory.max"),
        "threads": ("partly", "raise pids.max of the cgroup to"),
        "perf": ("no", "install perf"),
        "perf events": ("no", "run as root"),
        "per-VMA locks": ("no", "boot Linux 6.4 or newer"),
        "CPUs": ("partly", "raise cpu.max"),
        "kernel configuration": ("partly", "slower than those that are deployed"),
    }
    for name, (status, fix) in wanted.items():
        assert found[name].status == status
        assert fix in found[name].fix
