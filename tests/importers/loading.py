"""What tests of hand-made recordings read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import perfwriter as pw
import polars as pl

from mmreplay.importers.registry import import_trace
from mmreplay.schema import OpKind
from mmreplay.trace.store import Trace


def load(writer: pw.Writer, tmp_path: Path) -> Trace:
    trace = import_trace(writer.save(tmp_path / "perf.data"), tmp_path / "t.mmt", force=True)
    trace.validate()
    return trace


def ops(trace: Trace, *kinds: OpKind) -> list[dict[str, Any]]:
    rows = trace.operations.collect()
    if kinds:
        rows = rows.filter(pl.col("kind").is_in([int(k) for k in kinds]))
    return rows.to_dicts()
