"""Counts against a model: a difference is found, explained, and can become a model."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mmreplay.cli.main import cli
from mmreplay.errors import UserError
from mmreplay.hardware.counting import Count, Counted
from mmreplay.locking import check_file, load_model
from mmreplay.predict import derive_model, verify
from mmreplay.predict.phase_counts import phase_counts
from mmreplay.predict.verify import compare, feature_of, select
from mmreplay.schema import FaultClass, OpKind
from mmreplay.workloads.phases import GROUPS, NOT_EXPRESSIBLE, record


def as_counted(group: str, model: str) -> list[Counted]:
    """What a kernel would count that locks exactly like ``model``."""
    phases = record(group)
    taken = phase_counts(phases, load_model(model))
    found = []
    for name, phase in phases.items():
        rows = phase.trace.operations.collect()[phase.first : phase.end]
        kinds = [int(OpKind.FAULT_USER), int(OpKind.FAULT_KERNEL)]
        faults = rows.filter(rows["kind"].is_in(kinds))
        major = int((faults["fault_class"] == int(FaultClass.MAJOR)).sum())
        c = taken[name]
        found.append(
            Counted(
                name, group, phase.ops, c.read, c.write, c.downgrade, (len(faults) - major, major)
            )
        )
    return found


def counted(groups: Sequence[str], model: str = "linux-6.18", kernel: str = "6.18.3") -> Count:
    return Count(kernel, "tracefs", [c for g in groups for c in as_counted(g, model)])


def changed(count: Count, phase: str, **values: int) -> Count:
    rows = [replace(c, **values) if c.phase == phase else c for c in count.counted]  # type: ignore[arg-type]
    return replace(count, counted=rows)


def test_equal_counts_have_no_difference() -> None:
    found = compare(counted(["mmap", "stack"]))
    assert found.model == "linux-6.18"
    assert found.differences == ()
    assert len(found.lines) == 12
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
    found = compare(counted(["anon_w_big", "madvise"], "linux-6.1"))
    lines = {line.phase: line for line in found.differences}
    rest = lines["anon_w_big_rest"]
    assert "linux-6.1" in rest.as_models
    assert "without" in verify.meaning(rest, found)
    assert "6.4" in verify.meaning(rest, found)
    assert "6.17" in verify.meaning(lines["madv_dontneed_touched"], found)
    assert found.closer is not None
    assert found.closer.differences == ()


def test_a_backport_is_called_one() -> None:
    found = compare(counted(["anon_w_big"], "linux-6.18", "6.1.9"))
    (line,) = found.differences
    assert "backport" in verify.meaning(line, found)


def test_counts_that_no_model_has_say_so() -> None:
    count = changed(counted(["mprotect"]), "mprotect_noop", read=77)
    found = compare(count)
    assert "no shipped model" in verify.meaning(found.differences[0], found)


def test_faults_that_did_not_happen_make_a_phase_incomparable() -> None:
    count = counted(["anon_w_big"])
    rows = [
        replace(c, faults=(500, 0)) if c.phase == "anon_w_big_rest" else c for c in count.counted
    ]
    found = compare(replace(count, counted=rows))
    assert "500 faults" in found.not_done["anon_w_big_rest"]
    assert [line.phase for line in found.lines] == ["anon_w_big_first"]


def test_phases_that_no_recording_holds_are_named() -> None:
    assert set(NOT_EXPRESSIBLE) <= set(compare(counted(["mprotect"])).not_done)


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
    """6.18 but for MADV_DONTNEED, which counts as in 6.1."""
    count = counted(["anon_w_big", "madvise"])
    old = {c.phase: c for c in as_counted("madvise", "linux-6.1")}
    rows = [
        old[c.phase] if c.phase.startswith(("madv_dontneed", "madv_free")) else c
        for c in count.counted
    ]
    count = replace(count, counted=rows)
    phases = {g: record(g) for g in ("anon_w_big", "madvise")}
    found = compare(count, recorded=phases)
    assert {line.phase for line in found.differences} == {
        "madv_dontneed_touched",
        "madv_dontneed_untouched",
        "madv_free_touched",
    }
    derived = derive_model.derive(found, phases, "mine")
    assert derived.base == "linux-6.18"
    assert derived.unexplained == ()
    path = tmp_path / "mine.toml"
    derive_model.write(derived, path)
    model, problems = check_file(path)
    assert problems == ()
    assert model is not None
    assert compare(count, str(path), recorded=phases).differences == ()
    assert [p.name for p in tmp_path.iterdir()] == ["mine.toml"]


def test_counts_of_another_release_extend_that_release() -> None:
    phases = {g: record(g) for g in ("anon_w_big", "brk")}
    found = compare(counted(["anon_w_big", "brk"], "linux-6.1"), recorded=phases)
    derived = derive_model.derive(found, phases, "mine")
    assert derived.unexplained == ()
    assert load_model(derived.base).kernel is not None
    assert f'extends = "{derived.base}"' in derived.text


def test_what_no_release_explains_is_said_in_the_file() -> None:
    phases = {"mprotect": record("mprotect")}
    count = changed(counted(["mprotect"]), "mprotect_noop", read=77)
    derived = derive_model.derive(compare(count, recorded=phases), phases, "mine")
    assert derived.unexplained == ("mprotect_noop",)
    assert "# mprotect_noop: not explained" in derived.text


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
        (["--kernel", "linux-6.l"], "linux-6.1"),
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
    groups = ("anon_w_vmas", "anon_r_big", "kernel_faults", "populate", "mmap", "mremap", "stack")
    try:
        found, _ = verify.run(platform.release(), groups)
    except UserError as error:
        pytest.skip(error.line())
    assert found.differences == ()
    assert len(found.lines) > 25
