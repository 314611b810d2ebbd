"""The tutorial says what happens: its files are the shipped examples, its output is real."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmreplay.locking import check_file, load_model
from mmreplay.locking.diff import diff

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "write-a-model.md").read_text()
EXAMPLES = sorted((ROOT / "examples" / "models").glob("*.toml"))
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
OUTPUTS = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_shows_every_example_as_it_is() -> None:
    assert sorted(BLOCKS) == sorted(path.read_text() for path in EXAMPLES)
    for path in EXAMPLES:
        assert f"examples/models/{path.name}" in PAGE


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_the_examples_are_sound_and_short(path: Path) -> None:
    model, problems = check_file(path)
    assert problems == ()
    assert model is not None
    assert len(path.read_text().splitlines()) < 60


def test_the_diff_on_the_page_is_what_the_command_prints() -> None:
    changes = diff(load_model("linux-6.18"), load_model(EXAMPLES[0]))
    assert OUTPUTS[0].splitlines() == [change.text for change in changes]


def test_the_mistake_on_the_page_is_what_the_check_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = EXAMPLES[1].read_text().replace("  unlock zapping\n", "")
    (tmp_path / "bad.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    _, problems = check_file("bad.toml")
    assert str(problems[0]) == OUTPUTS[1].strip()
