"""Validation names table, row, column and rule of the first thing that is wrong."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from mmreplay.errors import UserError
from mmreplay.schema import DurationKind, OpKind
from mmreplay.trace.store import Header, Trace, frame

_OP = {"tid": 1, "pid": 1, "kind": int(OpKind.MMAP)}


def _trace(**tables: list[dict[str, Any]]) -> Trace:
    tables.setdefault("threads", [{"tid": 1, "pid": 1}])
    return Trace.in_memory(Header(), {name: frame(name, rows) for name, rows in tables.items()})


def test_a_sound_trace_passes() -> None:
    _trace(
        operations=[
            _OP | {"begin_ns": -5},
            _OP | {"begin_ns": 3, "address": 2**64 - 4096, "length": 4096},
            _OP | {"begin_ns": 3},
        ],
        vmas=[{"start": 4096, "length": 4096}],
        schedule=[{"tid": 1, "off_ns": 5, "on_ns": 5}],
        locks=[{"tid": 1, "wait_ns": 1}],
        gaps=[{"begin_ns": 1, "end_ns": 2}],
    ).validate()


@pytest.mark.parametrize(
    ("table", "rows", "where", "rule"),
    [
        (
            "operations",
            [_OP | {"begin_ns": 2}, _OP | {"begin_ns": 1}],
            "operations row 1",
            "begin_ns 1 breaks the order",
        ),
        (
            "operations",
            [_OP | {"seq": 4}, _OP | {"seq": 4}],
            "operations row 1",
            "ascend strictly by (begin_ns, seq)",
        ),
        ("operations", [_OP, _OP | {"kind": 200}], "row 1", "kind 200 is no OpKind"),
        ("operations", [_OP | {"duration_kind": 9}], "row 0", "is no DurationKind"),
        ("operations", [_OP | {"fault_class": 9}], "row 0", "is no FaultClass"),
        ("operations", [_OP | {"duration_ns": -3}], "row 0", "duration_ns -3 is negative"),
        (
            "operations",
            [_OP | {"duration_kind": int(DurationKind.MEASURED)}],
            "row 0",
            "duration_ns is null although duration_kind says MEASURED",
        ),
        ("operations", [_OP | {"weight": 0}], "row 0", "weight 0 is 0"),
        ("operations", [_OP | {"cpu": -2}], "row 0", "cpu -2 is below -1"),
        ("operations", [_OP | {"quality": 1 << 15}], "row 0", "unknown mark"),
        (
            "operations",
            [_OP | {"address": 2**64 - 4096, "length": 8192}],
            "row 0",
            "length 8192 reaches over the end",
        ),
        ("operations", [_OP, _OP | {"tid": 7}], "row 1", "tid 7 is not in the table of threads"),
        ("threads", [{"tid": 1, "first_ns": 5, "last_ns": 4}], "threads row 0", "before first_ns"),
        ("threads", [{"tid": 1, "start_kind": "born"}], "threads row 0", "born is none of fork"),
        ("vmas", [{"length": 4096}, {"length": 0}], "vmas row 1", "length 0 is 0"),
        ("vmas", [{"length": 4096, "source": "guess"}], "vmas row 0", "is none of exec"),
        ("schedule", [{"tid": 1, "off_ns": 5, "on_ns": 4}], "schedule row 0", "before off_ns"),
        ("schedule", [{"tid": 1, "reason": 7}], "schedule row 0", "is no SpanEnd"),
        ("schedule", [{"tid": 2}], "schedule row 0", "not in the table of threads"),
        ("locks", [{"tid": 1, "mode": "both"}], "locks row 0", "mode both is none of"),
        ("locks", [{"tid": 1, "wait_ns": -1}], "locks row 0", "wait_ns -1 is negative"),
        ("gaps", [{"begin_ns": 2, "end_ns": 1}], "gaps row 0", "end_ns 1 is before begin_ns"),
    ],
)
def test_each_rule_names_row_column_and_rule(
    table: str, rows: list[dict[str, Any]], where: str, rule: str
) -> None:
    with pytest.raises(UserError) as caught:
        _trace(**{table: rows}).validate()
    assert where in caught.value.where
    assert caught.value.where.startswith(table)
    assert rule in caught.value.problem


def test_a_null_where_none_may_be() -> None:
    rows = frame("operations", [_OP, _OP])
    rows = rows.with_columns(pid=pl.Series([1, None], dtype=pl.Int32))
    trace = Trace.in_memory(
        Header(), {"operations": rows, "threads": frame("threads", [{"tid": 1}])}
    )
    with pytest.raises(UserError, match="operations row 1: pid is null"):
        trace.validate()


def test_rows_are_counted_over_batches() -> None:
    """The row number is that of the table, also far behind the first batch."""
    count = (1 << 18) + 10
    rows = frame(
        "operations",
        {"begin_ns": range(count), "kind": [int(OpKind.MMAP)] * count, "tid": [1] * count},
    )
    late = pl.int_range(pl.len()) == count - 2
    rows = rows.with_columns(begin_ns=pl.when(late).then(0).otherwise("begin_ns"))
    trace = Trace.in_memory(
        Header(), {"operations": rows, "threads": frame("threads", [{"tid": 1}])}
    )
    with pytest.raises(UserError, match=f"row {count - 2}: begin_ns 0 breaks the order"):
        trace.validate()
