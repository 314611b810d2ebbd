"""``mmreplay models``: equal to the library, JSON for programs, exit 2 on mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmreplay.cli.main import main
from mmreplay.cli.models import command
from mmreplay.locking import check_file, list_models, load_model
from mmreplay.locking.view import describe


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_list_is_the_librarys_list() -> None:
    rows = json.loads(run("list", "--format", "json"))["models"]
    assert [row["name"] for row in rows] == [model.name for model in list_models()]
    text = run("list")
    assert all(row["name"] in text for row in rows)


def test_show_is_the_librarys_description() -> None:
    shown = json.loads(run("show", "linux-6.18", "--format", "json"))
    assert shown == describe(load_model("linux-6.18"))
    assert {lock["name"] for lock in shown["locks"]} >= {"mmap_lock", "vma_lock", "ptl"}


def test_show_lists_the_steps() -> None:
    text = run("show", "linux-6.18", "--code")
    assert "try vma_lock read" in text
    assert "if kernel_mode" in text


def test_check_passes_the_shipped_models() -> None:
    rows = json.loads(run("check", "linux-6.1", "linux-6.18", "--format", "json"))["files"]
    assert [row["ok"] for row in rows] == [True, True]


def test_check_shows_every_mistake_and_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        'title = "x"\nvma_rules = "r"\n[programs]\nfault = "cost nope"\nmmap = "sleep nope"\n'
    )
    with pytest.raises(SystemExit) as stop:
        main(["models", "check", str(path), "linux-6.1"])
    assert stop.value.code == 2
    output = capsys.readouterr()
    _, problems = check_file(path)
    assert len(problems) > 1
    for problem in problems:
        assert str(problem) in output.err
    assert "linux-6.1: ok" in output.out


def test_an_unknown_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["models", "show", "linus-6.18"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert 'did you mean "linux-6.18"' in error
