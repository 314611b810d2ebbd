"""The committed format description is the one that the schema gives."""

from __future__ import annotations

from pathlib import Path

from mmreplay.schema import TRACE_TABLES
from mmreplay.trace.document import document

ROOT = Path(__file__).parents[2]


def test_the_committed_description_is_current() -> None:
    committed = (ROOT / "docs" / "trace-format.md").read_text(encoding="utf-8")
    assert committed == document(), "run python -m mmreplay.trace.document"


def test_every_column_is_described() -> None:
    text = document()
    for table in TRACE_TABLES:
        section = text.split(f"## {table.file}\n", 1)[1].split("\n## ", 1)[0]
        for column in table.columns:
            assert f"| `{column.name}` | {column.dtype} |" in section
