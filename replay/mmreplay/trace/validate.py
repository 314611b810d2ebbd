"""Checks every rule that a trace's tables must keep; reads in batches.

Columns and dtypes are checked when a trace is opened; here come the rows: nulls,
ranges, enumerations, order, and references between tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Final, Protocol

import polars as pl

from mmreplay.errors import UserError
from mmreplay.schema import TRACE_TABLES, DurationKind, FaultClass, OpKind, Quality, SpanEnd

_ENUMS: Final[dict[tuple[str, str], type[IntEnum]]] = {
    ("operations", "kind"): OpKind,
    ("operations", "duration_kind"): DurationKind,
    ("operations", "fault_class"): FaultClass,
    ("schedule", "reason"): SpanEnd,
}
_WORDS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("threads", "start_kind"): ("fork", "thread", "exec", "attach", "first_seen"),
    ("vmas", "source"): ("exec", "snapshot", "mmap2"),
    ("locks", "kind"): ("rwsem", "mutex", "spinlock", "other", "mmap_lock"),
    ("locks", "mode"): ("read", "write", "unknown"),
}
_NOT_NEGATIVE: Final[dict[str, tuple[str, ...]]] = {
    "operations": (
        "duration_ns",
        "duration_corrected_ns",
        "think_cpu_ns",
        "think_blocked_ns",
        "preempted_ns",
        "service_ns",
        "wait_ns",
        "io_ns",
        "unattributed_ns",
        "contention_ns",
        "blocked_inside_ns",
        "pid",
        "tid",
    ),
    "threads": ("pid", "tid", "tail_cpu_ns", "tail_blocked_ns"),
    "schedule": ("tid",),
    "locks": ("tid", "wait_ns", "hold_ns"),
    "wakeups": (
        "tid",
        "after",
        "cpu_ns",
        "blocked_ns",
        "waker",
        "waker_after",
        "waker_cpu_ns",
        "waker_blocked_ns",
    ),
}
_ALL_MARKS: Final = sum(int(mark) for mark in Quality)

#: A column, the condition under which a row of it is wrong, and what is wrong then.
_Rule = tuple[str, pl.Expr, str]


class Tables(Protocol):
    """What is checked: a trace's tables, read in batches (see ``Trace``)."""

    def has(self, name: str) -> bool: ...

    def batches(
        self, name: str, columns: Sequence[str] | None = None
    ) -> Iterator[pl.DataFrame]: ...


def validate(trace: Tables) -> None:
    """Raise a :class:`UserError` for the first rule broken, table by table."""
    tids = _thread_ids(trace)
    for table in TRACE_TABLES:
        if not trace.has(table.name):
            continue
        first_row = 0
        last: tuple[int, int] | None = None
        for batch in trace.batches(table.name):
            rules = [
                (
                    column.name,
                    pl.col(column.name).is_null(),
                    "is null, which the schema does not allow",
                )
                for column in table.columns
                if not column.nullable
            ]
            rules += _rules(table.name)
            if "tid" in batch.columns and table.name != "threads":
                unknown = ~pl.col("tid").is_in(tids.implode())
                rules.append(("tid", unknown, "is not in the table of threads"))
            if table.name == "operations" and batch.height:
                rules.append(_order(last))
                last = int(batch["begin_ns"][-1]), int(batch["seq"][-1])
            _check(table.name, batch, rules, first_row)
            first_row += batch.height


def _thread_ids(trace: Tables) -> pl.Series:
    parts = [batch["tid"].unique() for batch in trace.batches("threads", ["tid"])]
    return pl.concat(parts).unique() if parts else pl.Series("tid", [], dtype=pl.Int32)


def _rules(table: str) -> Iterator[_Rule]:
    for (name, column), enum in _ENUMS.items():
        if name == table:
            values = [int(value) for value in enum]
            yield (column, ~pl.col(column).is_in(values), f"is no {enum.__name__}")
    for (name, column), words in _WORDS.items():
        if name == table:
            yield (column, ~pl.col(column).is_in(words), f"is none of {_or(words)}")
    for column in _NOT_NEGATIVE.get(table, ()):
        yield (column, pl.col(column) < 0, "is negative")
    if table == "operations":
        yield ("weight", pl.col("weight") == 0, "is 0; an event stands for at least itself")
        yield ("cpu", pl.col("cpu") < -1, "is below -1 (unknown)")
        yield (
            "quality",
            (pl.col("quality").cast(pl.UInt32) & (0xFFFF - _ALL_MARKS)) != 0,
            "has an unknown mark",
        )
        measured = pl.col("duration_kind") == int(DurationKind.MEASURED)
        yield (
            "duration_ns",
            measured & pl.col("duration_ns").is_null(),
            "is null although duration_kind says MEASURED",
        )
        end = pl.col("address").cast(pl.Int128) + pl.col("length").cast(pl.Int128)
        yield ("length", end > 2**64, "reaches over the end of the address space")
    elif table == "threads":
        yield ("last_ns", pl.col("last_ns") < pl.col("first_ns"), "is before first_ns")
        yield ("end_ns", pl.col("end_ns") < pl.col("start_ns"), "is before start_ns")
    elif table == "vmas":
        yield ("length", pl.col("length") == 0, "is 0")
        end = pl.col("start").cast(pl.Int128) + pl.col("length").cast(pl.Int128)
        yield ("length", end > 2**64, "reaches over the end of the address space")
    elif table == "schedule":
        yield ("on_ns", pl.col("on_ns") < pl.col("off_ns"), "is before off_ns")
    elif table == "wakeups":
        yield ("wake_ns", pl.col("wake_ns") < pl.col("off_ns"), "is before off_ns")
        yield ("on_ns", pl.col("on_ns") < pl.col("wake_ns"), "is before wake_ns")
    elif table == "gaps":
        yield ("end_ns", pl.col("end_ns") < pl.col("begin_ns"), "is before begin_ns")


def _check(table: str, batch: pl.DataFrame, rules: Sequence[_Rule], first_row: int) -> None:
    """Raise for the first rule broken; one query finds whether there is one."""
    # A comparison with null is null: only what is known to be wrong counts.
    wrong = [bad.fill_null(False) for _, bad, _ in rules]
    found = batch.select(bad.any().alias(str(k)) for k, bad in enumerate(wrong)).row(0)
    if True in found:
        k = found.index(True)
        column, _, rule = rules[k]
        row = batch.select(wrong[k].alias("bad"))["bad"].arg_true()[0]
        raise _broken(table, column, first_row + row, batch[column][row], rule)


def _order(last: tuple[int, int] | None) -> _Rule:
    begin, seq = pl.col("begin_ns"), pl.col("seq")
    before_begin = begin.shift(1, fill_value=last[0] if last else None)
    before_seq = seq.shift(1, fill_value=last[1] if last else None)
    bad = (begin < before_begin) | ((begin == before_begin) & (seq <= before_seq))
    return "begin_ns", bad, "breaks the order: rows ascend strictly by (begin_ns, seq)"


def _broken(table: str, column: str, row: int, value: object, rule: str) -> UserError:
    shown = "" if value is None else f" {value}"
    return UserError(
        f"{column}{shown} {rule}", where=f"{table} row {row}", fix="import the recording again"
    )


def _or(words: Iterable[str]) -> str:
    return ", ".join(words)
