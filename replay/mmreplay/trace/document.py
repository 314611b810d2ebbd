"""Writes ``docs/trace-format.md`` from the schema: ``python -m mmreplay.trace.document``.

``--check`` only says whether the file is current (exit 1 when not).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any, Final, get_type_hints

from mmreplay import schema
from mmreplay.schema import TRACE_SCHEMA, TRACE_TABLES, Table
from mmreplay.trace import header as header_module
from mmreplay.trace.header import Header

TARGET: Final = Path("docs") / "trace-format.md"
_ENUMS: Final[tuple[type[IntEnum] | type[IntFlag], ...]] = (
    schema.OpKind,
    schema.DurationKind,
    schema.FaultClass,
    schema.FaultBits,
    schema.Quality,
    schema.SpanEnd,
    schema.ProcFile,
    schema.UffdOp,
)

_INTRODUCTION: Final = f"""\
# The trace format

<!-- Generated from the schema by: python -m mmreplay.trace.document.  Do not edit. -->

A trace is a directory `NAME.mmt/` of Parquet files with one `header.json`. The schema's version
is {TRACE_SCHEMA}. Times are integer nanoseconds since the header's `t0_ns`; each column's name ends
in its unit. Enumerations are append-only: a number once given keeps its meaning. Tables marked
*optional* may be absent, which reads as empty. How an operation's time is divided is in
[time-split.md](time-split.md).

Provenance is an allow-list: there is no place for a host name, user, path, command line or
build-id, and the kernel release is `x.y.z` without its local suffix.
"""


def document() -> str:
    """The whole text of ``docs/trace-format.md``."""
    lines = [_INTRODUCTION, "## header.json", ""]
    lines += _model("Header", Header)
    for name in ("Clock", "Machine", "Source", "Event", "Capabilities", "Probe", "TableFile"):
        lines += ["", f"### {name}", ""]
        lines += _model(name, getattr(header_module, name))
    for table in TRACE_TABLES:
        lines += ["", *_table(table)]
    lines += ["", "## Enumerations"]
    for enum in _ENUMS:
        lines += ["", *_enum(enum)]
    return "\n".join(lines) + "\n"


def _model(name: str, model: type[Any]) -> Iterator[str]:
    doc = " ".join((model.__doc__ or "").replace("``", "`").split())
    if name != "Header":
        yield from (doc, "")
    yield from ("| key | type | default | meaning |", "|---|---|---|---|")
    kinds = get_type_hints(model)
    for field in fields(model):
        kind = kinds[field.name]
        text = kind.__name__ if isinstance(kind, type) and "[" not in str(kind) else str(kind)
        for noise in ("mmreplay.trace.header.", "typing.", "NoneType"):
            text = text.replace(noise, "")
        text = text.replace(" | None", " or null").replace("|", "or")
        default = "required" if field.default_factory is MISSING else ""
        if field.default is not MISSING:
            default = "null" if field.default is None else f"`{json.dumps(field.default)}`"
        key = field.metadata.get("alias", field.name)
        row = f"| `{key}` | {text} | {default} | {field.metadata['description']} |"
        yield row.replace("  ", " ")


def _table(table: Table) -> Iterator[str]:
    yield f"## {table.file}"
    yield ""
    yield f"{table.meaning}{'' if table.required else ' *Optional.*'}"
    yield ""
    yield "| column | dtype | unit or enumeration | null | meaning |"
    yield "|---|---|---|---|---|"
    for column in table.columns:
        null = "yes" if column.nullable else "no"
        meaning = column.meaning.replace("|", "\\|")
        unit = column.unit or "-"
        yield f"| `{column.name}` | {column.dtype} | {unit} | {null} | {meaning} |"


def _enum(enum: type[IntEnum] | type[IntFlag]) -> Iterator[str]:
    yield f"### {enum.__name__}"
    yield ""
    yield " ".join((enum.__doc__ or "").replace("``", "`").split())
    yield ""
    yield "| number | name |"
    yield "|---|---|"
    for member in enum:
        yield f"| {int(member)} | `{member.name}` |"


def main(arguments: list[str]) -> int:
    """Write the file, or with ``--check`` compare it; run at the repository's root."""
    text = document()
    if "--check" in arguments:
        if TARGET.read_text(encoding="utf-8") == text:
            return 0
        print(f"{TARGET} is not current: run python -m mmreplay.trace.document", file=sys.stderr)
        return 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
