"""docs/lock-rules.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| .+ \| `(\w+)` \| `(test_\w+)` \|$", re.MULTILINE)


def test_every_rule_names_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "lock-rules.md").read_text()
    found = ROW.findall(page)
    listed = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(found) == len(listed) - 3  # three heads
    for file, test in found:
        (path,) = (ROOT / "tests").glob(f"*/test_{file}.py")
        names = {n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}
        assert test in names, f"{path.name} has no {test}"
