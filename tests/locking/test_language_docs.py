"""The manual says what the code knows: its tables and its example."""

from __future__ import annotations

import re
from pathlib import Path

from mmreplay.locking import check_file, list_models
from mmreplay.locking.vocabulary import BITS, COSTS, REASONS, SETS, SLEEPS, TRAITS, WORDS

MANUAL = (Path(__file__).parents[2] / "docs" / "locking-language.md").read_text()


def test_every_word_is_documented_with_its_meaning() -> None:
    for name, cost in COSTS.items():
        assert f"| `{name}` | {cost.per} | {cost.meaning} |" in MANUAL
    for table in (SLEEPS, REASONS):
        for name, meaning in table.items():
            assert f"| `{name}` | {meaning} |" in MANUAL
    for name in (*WORDS, *TRAITS, *BITS, *SETS):
        assert f"`{name}`" in MANUAL


def test_the_manual_names_no_cost_that_does_not_exist() -> None:
    costs = MANUAL.split("## Costs")[1].split("## Sleeps")[0]
    assert set(re.findall(r"^\| `(\w+)`", costs, re.MULTILINE)) == set(COSTS)


def test_the_example_passes_the_check(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", MANUAL, re.DOTALL)
    path = tmp_path / "example.toml"
    path.write_text(example)
    model, problems = check_file(path)
    assert problems == ()
    assert model is not None


def test_the_table_of_models_is_complete() -> None:
    shown = MANUAL.split("## The shipped models")[1].split("\n\n")[1]
    rows = re.findall(r"^\| `([\w.-]+)` \| (.*?) \|", shown, re.MULTILINE)
    assert rows == [(model.name, model.title) for model in list_models()]
