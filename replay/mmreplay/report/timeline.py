"""What a trace shows on a timeline, in frames of bounded size: slices, instants, their threads.

Both timeline formats (:mod:`chrome`, :mod:`perfetto`) are written from these frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import polars as pl

from mmreplay.schema import FaultBits, FaultClass, OpKind
from mmreplay.trace.store import Trace

#: Rows of a frame.
ROWS: Final = 1 << 15
_FAULTS: Final = [int(OpKind.FAULT_USER), int(OpKind.FAULT_KERNEL)]
_OPERATION: Final = (
    *("begin_ns", "duration_ns", "pid", "tid", "kind", "cpu", "address", "length", "prot"),
    *("flags", "result", "fault_bits", "fault_class", "service_ns", "wait_ns"),
)
_KINDS: Final = {int(kind): kind.name.lower() for kind in OpKind}
_CLASSES: Final = {int(one): one.name.lower() for one in FaultClass}

#: Columns of a frame of slices that say more about a slice, and how they are written.
NUMBERS: Final = ("cpu", "length", "result", "service_ns", "wait_ns")
POINTERS: Final = ("address", "flags", "prot")
#: Tracks of a thread: operations nest; times off the CPU and waits may cross their ends.
TRACKS: Final = ("operations", "off the CPU", "waits for locks")
OPERATIONS, OFF, WAITS = range(3)


@dataclass(frozen=True, slots=True)
class Task:
    """A thread that has a track."""

    tid: int
    pid: int
    name: str


def tasks(trace: Trace) -> list[Task]:
    """Every thread once, by (pid, tid); a tid that was used again keeps its first name."""
    rows = trace.collect(
        trace.threads.sort("first_ns")
        .unique(["pid", "tid"], keep="first", maintain_order=True)
        .select("tid", "pid", "comm")
        .sort("pid", "tid")
    )
    return [Task(*row) for row in rows.iter_rows()]


def window(rows: pl.LazyFrame | pl.DataFrame, column: str, begin_ns: int, end_ns: int) -> pl.Expr:
    """Rows that begin in the window."""
    return (pl.col(column) >= begin_ns) & (pl.col(column) < end_ns)


def slices(trace: Trace, begin_ns: int, end_ns: int) -> Iterator[pl.DataFrame]:
    """Operations in order: what both formats show.

    Columns: ``begin_ns``, ``duration_ns`` (null: a point), ``pid``, ``tid``, ``name``, ``class``
    (of a fault, else null), ``write`` (whether a fault wrote, else null), and those of
    :data:`NUMBERS` and :data:`POINTERS`, null where unknown.
    """
    fault = pl.col("kind").is_in(_FAULTS)
    for batch in trace.batches("operations", list(_OPERATION), rows=ROWS):
        if batch["begin_ns"][0] >= end_ns:
            return
        rows = batch.filter((pl.col("begin_ns") >= begin_ns) & (pl.col("begin_ns") < end_ns))
        if rows.height == 0:
            continue
        yield rows.with_columns(
            name=pl.col("kind").replace_strict(_KINDS, default="unknown", return_dtype=pl.String),
            cpu=pl.when(pl.col("cpu") >= 0).then(pl.col("cpu")),
            write=pl.when(fault).then((pl.col("fault_bits") & int(FaultBits.WRITE)) != 0),
            **{
                "class": pl.when(fault).then(
                    pl.col("fault_class").replace_strict(
                        _CLASSES, default="unknown", return_dtype=pl.String
                    )
                )
            },
        )


def spans(trace: Trace, begin_ns: int, end_ns: int) -> Iterator[tuple[int, pl.DataFrame]]:
    """(track, frame) of times off the CPU and of waits for locks.

    Columns: ``begin_ns``, ``duration_ns``, ``pid``, ``tid``, ``name``.  A time off the CPU whose
    end was not seen is left out.
    """
    pids = trace.collect(
        trace.threads.select("tid", "pid", "first_ns").unique("tid", keep="first")
    ).select("tid", "pid")
    for batch in trace.batches("schedule", ["tid", "off_ns", "on_ns", "reason"], rows=ROWS):
        rows = batch.select(
            "tid",
            begin_ns="off_ns",
            duration_ns=pl.col("on_ns") - pl.col("off_ns"),
            name=pl.when(pl.col("reason") == 0)
            .then(pl.lit("blocked"))
            .otherwise(pl.lit("preempted")),
        )
        yield OFF, _of_tasks(rows, pids, begin_ns, end_ns)
    columns = ["tid", "kind", "mode", "begin_ns", "wait_ns"]
    for batch in trace.batches("locks", columns, rows=ROWS):
        rows = batch.select(
            "tid",
            "begin_ns",
            duration_ns="wait_ns",
            name=pl.concat_str("kind", pl.lit(" ("), "mode", pl.lit(")")),
        )
        yield WAITS, _of_tasks(rows, pids, begin_ns, end_ns)


def _of_tasks(rows: pl.DataFrame, pids: pl.DataFrame, begin_ns: int, end_ns: int) -> pl.DataFrame:
    within = (pl.col("begin_ns") >= begin_ns) & (pl.col("begin_ns") < end_ns)
    return (
        rows.filter(within & (pl.col("duration_ns") > 0))
        .join(pids, on="tid", how="left", maintain_order="left")
        .with_columns(pl.col("pid").fill_null(pl.col("tid")))
    )


def losses(trace: Trace, begin_ns: int, end_ns: int) -> pl.DataFrame:
    """``end_ns`` and ``lost`` of each gap in the window."""
    within = (pl.col("end_ns") >= begin_ns) & (pl.col("end_ns") < end_ns)
    return trace.collect(trace.gaps.filter(within).select("end_ns", "lost"))
