"""Counts against a model: a difference is found, explained, and can become a model."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mmreplay.cli.main import cli
from mmreplay.errors import UserError
from mmreplay.hardware.counting import Count, Counted
from mmreplay.lockcounts import derive, read_counts, verify
from mmreplay.lockcounts.verify import compare, feature_of, select
from mmreplay.locking import check_file, load_model
from mmreplay.resources import datasets_dir
from mmreplay.workloads.phases import GROUPS, record


@cache
def _file() -> Any:
    return read_counts(datasets_dir("lockcounts") / "lockcounts.csv")


def as_counted(group: str, kernel: str) -> list[Counted]:
    """What a booted kernel counted, as if it had been counted here."""
    found = []
    for name in record(group):
        row = _file()[kernel].get(name)
        if row is None:
            continue
        read, write, downgrade = (row.counts[c] for c in list(row.counts)[:3])
        faults = (row.faults_user or 0, row.faults_kernel, row.major or 0)
        calls = row.reads_per_op or 0
        found.append(Counted(name, group, row.ops, read, write, downgrade, *faults, calls))
    return found


def counted(groups: Sequence[str], kernel: str = "6.18.15", release: str = "6.18.3") -> Count:
    return Count(release, "tracefs", [c for g in groups for c in as_counted(g, kernel)])


def changed(count: Count, phase: str, **values: int) -> Count:
    rows = [replace(c, **values) if c.phase == phase else c for c in count.counted]  # type: ignore[arg-type]
    return replace(count, counted=rows)


def test_equal_counts_have_no_difference() -> None:
    found = compare(counted(["mmap", "stack"]))
    assert found.model == "linux-6.18"
    assert found.differences == ()
    assert len(found.lines) == 8
    assert found.not_done == {}
    assert found.closer is None


@pytest.mark.parametrize("column", ["read", "write", "downgrade"])
def test_one_acquisition_more_is_a_difference(column: str) -> None:
    count = counted(["mprotect"])
    (line,) = compare(changed(count, "mprotect_noop", **{column: 1001})).differences
    assert line.phase == "mprotect_noop"
    assert 1001 in line.counted
    assert line.expected == (0, 1000, 0)


def test_a_difference_is_explained_by_the_release_that_counts_alike() -> None:
    """Counts of 6.1 on a kernel that calls itself 6.18: nothing runs under VMA locks."""
    found = compare(counted(["anon_w_big", "madvise"], "6.1.192"))
    lines = {line.phase: line for line in found.differences}
    rest = lines["anon_w_big_rest"]
    assert "linux-6.1" in rest.as_models
    assert "without" in verify.meaning(rest, found)
    assert "(6.4)" in verify.meaning(rest, found)
    assert "6.17" in verify.meaning(lines["madv_dontneed_touched"], found)
    assert found.closer is not None
    assert found.closer.differences == ()


def test_a_backport_is_called_one() -> None:
    found = compare(counted(["anon_w_big"], "6.18.15", "6.1.9"))
    (line,) = found.differences
    assert "backport" in verify.meaning(line, found)


def test_counts_that_no_model_has_say_so() -> None:
    count = changed(counted(["mprotect"]), "mprotect_noop", read=77)
    found = compare(count)
    assert "no shipped model" in verify.meaning(found.differences[0], found)


def test_every_phase_has_a_rule_of_its_own() -> None:
    for group in GROUPS:
        for phase in record(group):
            assert feature_of(phase) != verify._NO_FEATURE, phase


def test_phases_are_selected_by_group_and_by_name() -> None:
    assert list(select(["stack", "mprotect_noop"])) == ["mprotect", "stack"]
    assert set(select()) == set(GROUPS)
    with pytest.raises(UserError, match="mprotect_noop"):
        select(["mprotect_nop"])


# -- a model from counts ------------------------------------------------------------------


def test_a_feature_that_is_missing_becomes_a_program_of_the_release_before_it(
    tmp_path: Path,
) -> None:
    """6.18 with its MADV_DONTNEED, but for /proc/PID/maps, which counts as in 6.1."""
    old = {c.phase: c for c in as_counted("proc", "6.1.192")}
    names = {"proc_maps_small"}
    count = counted(["madvise", "proc"])
    count = replace(count, counted=[old[c.phase] if c.phase in names else c for c in count.counted])
    found = compare(count)
    assert {line.phase for line in found.differences} == names
    made = derive.derive(found, "mine")
    assert made.base == "linux-6.18"
    assert made.unexplained == ()
    assert 'proc_maps = """' in made.text
    path = tmp_path / "mine.toml"
    derive.write(made, path)
    model, problems = check_file(path)
    assert problems == ()
    assert model is not None
    assert compare(count, str(path)).differences == ()
    assert [p.name for p in tmp_path.iterdir()] == ["mine.toml"]


def test_counts_of_another_release_extend_that_release() -> None:
    found = compare(counted(["anon_w_big", "brk", "segv"], "6.1.192"))
    made = derive.derive(found, "mine")
    assert made.unexplained == ()
    assert load_model(made.base).kernel is not None
    assert f'extends = "{made.base}"' in made.text


def test_what_no_release_explains_is_said_in_the_file() -> None:
    count = changed(counted(["mprotect"]), "mprotect_noop", read=77)
    made = derive.derive(compare(count), "mine")
    assert made.unexplained == ("mprotect_noop",)
    assert "# mprotect_noop: not explained" in made.text


# -- the command ------------------------------------------------------------------------------


def invoke(monkeypatch: pytest.MonkeyPatch, count: Count, *args: str) -> Any:
    monkeypatch.setattr(verify, "count_phases", lambda groups, report: count)
    return CliRunner().invoke(cli, ["locks", "verify", *args])


def test_exit_codes_and_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    count = counted(["mprotect"])
    done = invoke(monkeypatch, count, "--format", "json")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert document["model"] == "linux-6.18"
    assert all(row["equal"] for row in document["phases"])
    other = changed(count, "mprotect_noop", write=2000)
    done = invoke(monkeypatch, other, "--format", "json")
    assert done.exit_code == 1
    (row,) = [row for row in json.loads(done.stdout)["phases"] if not row["equal"]]
    assert row["counted"] == {"reads": 0, "writes": 2000, "downgrades": 0}
    assert row["model"] == {"reads": 0, "writes": 1000, "downgrades": 0}
    done = invoke(monkeypatch, other)
    assert done.exit_code == 1
    assert "2.000" in done.stdout
    assert "3 of 4 phases equal" in done.stdout
    done = invoke(monkeypatch, other, "--write", str(tmp_path / "mine.toml"))
    assert done.exit_code == 1
    assert check_file(tmp_path / "mine.toml")[1] == ()


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["--phases", "mmapp"], "mmap"),
        (["--kernel", "linux-6.l"], "models list"),
        (["--write", "model.txt"], ".toml"),
        (["--kernel", "mine.toml", "--write", "other.toml"], "shipped"),
    ],
)
def test_slips_are_reported_before_anything_is_performed(
    monkeypatch: pytest.MonkeyPatch, args: list[str], what: str
) -> None:
    def never(*_: object) -> Count:
        raise AssertionError("performed")

    monkeypatch.setattr(verify, "count_phases", never)
    done = CliRunner().invoke(cli, ["locks", "verify", *args])
    assert isinstance(done.exception, UserError)
    assert what in str(done.exception)


def test_nothing_to_compare_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    count = Count("6.18.3", "tracefs", [], {"mprotect": "refused"})
    done = invoke(monkeypatch, count)
    assert isinstance(done.exception, UserError)
    assert "refused" in str(done.exception)


@pytest.mark.kernel
@pytest.mark.perf
def test_this_kernel_takes_what_its_model_takes() -> None:
    """Groups in which stable kernels do not differ from their release."""
    groups = (
        "nothing",
        "anon_w_vmas",
        "anon_r_big",
        "kernel_faults",
        "populate",
        "mmap",
        "mremap",
        "stack",
    )
    try:
        found = verify.run(platform.release(), groups)
    except UserError as error:
        pytest.skip(error.line())
    assert found.differences == ()
    assert len(found.lines) > 25
