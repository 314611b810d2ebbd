"""The time split: what an operation took by itself, and what it waited.

``docs/time-split.md`` states the rules and the reasons.  :func:`finalise` runs them
over the tables of a trace that is being written; :func:`split` over frames in memory.

Three passes over the operations, in batches.  Memory: four bytes an operation
(its exposure), the nested operations, the preempted spans, the counts for the quartiles,
and in memory what pass 2 found of up to :data:`KEPT_ROWS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmreplay.schema import DurationKind, Quality, SpanEnd
from mmreplay.trace.columns import polars_schema, to_arrow
from mmreplay.trace.exposure import add_exposure, new_open_set
from mmreplay.trace.header import Header
from mmreplay.trace.services import (
    DEFAULT_SERVICE_NS,
    MIN_QUIET,
    OTHER_SERVICE_NS,
    Classes,
    SplitReport,
    Tally,
    usual_services,
)
from mmreplay.trace.splitrules import (
    BOUNDED,
    TIMED,
    UNTIMED,
    divide,
    find_covered,
    find_roles,
    find_slept,
    look_inside,
    roles_by_kind,
)
from mmreplay.trace.store import read_batches
from mmreplay.trace.writer import TraceWriter, parquet_writer

#: Up to this many operations pass 3 need not look inside again (some 45 MB).
KEPT_ROWS: Final = 1 << 20
_BATCH_ROWS: Final = 1 << 18

_TIMED_KINDS: Final = (int(DurationKind.MEASURED), int(DurationKind.ESTIMATED))
_EXPOSURE_COLUMNS: Final = (
    "begin_ns",
    "duration_ns",
    "duration_kind",
    "tid",
    "address_space",
    "kind",
    "flags",
    "fault_class",
    "quality",
)
_INSIDE_COLUMNS: Final = (
    "begin_ns",
    "tid",
    "kind",
    "flags",
    "length",
    "errno",
    "fault_bits",
    "fault_class",
    "quality",
    "duration_kind",
    "duration_ns",
    "duration_corrected_ns",
    "blocked_inside_ns",
    "contention_ns",
)

__all__ = [
    "DEFAULT_SERVICE_NS",
    "MIN_QUIET",
    "OTHER_SERVICE_NS",
    "SplitReport",
    "finalise",
    "split",
]

Batches = Callable[[Sequence[str]], Iterator[pl.DataFrame]]


def finalise(writer: TraceWriter, header: Header) -> SplitReport:
    """Split the operations that ``writer`` has, just before ``writer.close(header)``.

    Sets ``service_ns``, ``wait_ns`` and ``io_ns``, adds to ``unattributed_ns`` what of
    the inside could not be split, and puts its counters into ``header.counters``.
    """
    held = writer.held("operations")
    schedule = _schedule_batches(writer)
    if held is not None:
        done, report = split(held, schedule)
        writer.replace_held("operations", done)
    else:
        file = writer.finish("operations")
        report = _rewrite(file, schedule) if file is not None else SplitReport()
    header.counters = header.counters | report.counters()
    return report


def split(
    operations: pl.DataFrame, schedule: pl.DataFrame | Iterable[pl.DataFrame] | None = None
) -> tuple[pl.DataFrame, SplitReport]:
    """The same over frames in memory: the operations with their time split, and the report."""
    parts = [schedule] if isinstance(schedule, pl.DataFrame) else schedule or []

    def batches(columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        rows = operations.select(columns)
        for first in range(0, rows.height, _BATCH_ROWS):
            yield rows.slice(first, _BATCH_ROWS)

    report = SplitReport()
    off = _OffCpu(parts)
    done = list(_split(batches, list(operations.columns), off, report, KEPT_ROWS))
    return (pl.concat(done) if done else operations), report


def _rewrite(file: Path, schedule: Iterable[pl.DataFrame]) -> SplitReport:
    """The same over a Parquet file, in its place."""

    def batches(columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        return read_batches(file, list(columns), _BATCH_ROWS)

    beside = file.with_suffix(".split")
    out = None
    report = SplitReport()
    try:
        columns = list(polars_schema("operations"))
        for batch in _split(batches, columns, _OffCpu(schedule), report):
            if out is None:
                out = parquet_writer(beside, "operations")
            out.write_table(to_arrow("operations", batch))
    finally:
        if out is not None:
            out.close()
    if out is not None:
        beside.replace(file)
    return report


def _schedule_batches(writer: TraceWriter) -> Iterable[pl.DataFrame]:
    held = writer.held("schedule")
    if held is not None:
        return [held]
    file = writer.finish("schedule")
    if file is None:
        return []
    return read_batches(file, ["tid", "off_ns", "on_ns", "reason"], _BATCH_ROWS)


def _split(
    batches: Batches, columns: list[str], off: _OffCpu, report: SplitReport, most_kept: int = 0
) -> Iterator[pl.DataFrame]:
    exposure_ns, nested = _exposure(batches, off)
    preempted = off.preempted
    report.operations = len(exposure_ns)
    report.exposed = int((exposure_ns > 0).sum())
    classes = Classes()
    kept: list[tuple[_Inside, NDArray[np.int32]]] = []
    quiet_ns, default_ns = _usual_services(
        batches, exposure_ns, nested, preempted, classes, kept, most_kept
    )
    report.classes = len(quiet_ns)
    usual_ns = np.where(quiet_ns >= 0, quiet_ns, default_ns)
    nested.rewind()
    preempted.rewind()
    first = 0
    for index, batch in enumerate(batches(columns)):
        if kept:
            inside, number = kept[index]
        else:
            inside = _inside(batch, nested, preempted)
            number = classes.numbers(inside.key)
        exposed = exposure_ns[first : first + batch.height]
        first += batch.height
        service, wait, left = divide(
            inside.state,
            exposed,
            inside.room_ns,
            inside.io_ns,
            inside.off_ns,
            inside.contended_ns,
            usual_ns[number],
        )
        asked = (inside.state == BOUNDED) | ((inside.state == TIMED) & (exposed > 0))
        report.default_service += int((asked & (quiet_ns[number] < 0)).sum())
        report.without_duration += int((inside.state == UNTIMED).sum())
        known, timed = pl.lit(pl.Series(inside.state != UNTIMED)), inside.state == TIMED
        yield batch.with_columns(
            service_ns=pl.when(known).then(pl.lit(pl.Series(service))),
            wait_ns=pl.when(known).then(pl.lit(pl.Series(wait))),
            io_ns=pl.when(pl.lit(pl.Series(timed))).then(pl.lit(pl.Series(inside.io_ns))),
            unattributed_ns=pl.when(known)
            .then(pl.col("unattributed_ns").fill_null(0) + pl.lit(pl.Series(left)))
            .otherwise("unattributed_ns"),
        )


# -- pass 1: exposure and spans ----------------------------------------------------------


class _Spans:
    """Spans of threads, sorted for :func:`find_covered`, with its cursor."""

    def __init__(self, parts: list[pl.DataFrame]) -> None:
        empty = pl.DataFrame(schema={"tid": pl.Int32, "begin": pl.Int64, "end": pl.Int64})
        spans = pl.concat([empty, *parts]).sort("tid", "begin")
        self.tids, first = np.unique(spans["tid"].to_numpy(), return_index=True)
        self.first = np.append(first, spans.height).astype(np.int64)
        self.begin = spans["begin"].to_numpy()
        self.end = spans["end"].to_numpy()
        self.rewind()

    def rewind(self) -> None:
        self.cursor = self.first[:-1].copy()

    def covered(self, batch: pl.DataFrame, duration_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        covered: NDArray[np.int64] = find_covered(
            batch["begin_ns"].to_numpy(),
            np.maximum(duration_ns, 0),
            batch["tid"].to_numpy(),
            self.tids,
            self.first,
            self.cursor,
            self.begin,
            self.end,
        )
        return covered


class _OffCpu:
    """When threads were off their CPUs: preempted spans, and ends of blocked ones."""

    def __init__(self, parts: Iterable[pl.DataFrame]) -> None:
        whole = pl.col("on_ns") > pl.col("off_ns")
        preempted, blocked = [], []
        for part in parts:
            spans = part.filter(whole).select("tid", "reason", begin="off_ns", end="on_ns")
            preempted.append(spans.filter(pl.col("reason") == int(SpanEnd.PREEMPTED)))
            blocked.append(spans.filter(pl.col("reason") == int(SpanEnd.BLOCKED)))
        self.preempted = _Spans([part.drop("reason") for part in preempted])
        ends = pl.DataFrame(schema={"tid": pl.Int32, "end": pl.Int64})
        self._ends = pl.concat([ends, *(part.select("tid", "end") for part in blocked)]).sort("end")

    def slept(self, batch: pl.DataFrame) -> NDArray[np.int64]:
        """(N,) ns from each operation's begin to the end of its last blocked span, or 0."""
        end = pl.col("begin_ns") + pl.col("duration_ns").fill_null(0)
        rows = batch.select("tid", "begin_ns", until=end).with_row_index("row").sort("until")
        found = rows.join_asof(
            self._ends,
            left_on="until",
            right_on="end",
            by="tid",
            coalesce=False,
            check_sortedness=False,
        )
        slept = (pl.col("end") - pl.col("begin_ns")).fill_null(0).clip(lower_bound=0)
        return found.sort("row").select(slept=slept)["slept"].to_numpy()


def _numbers(batch: pl.DataFrame, name: str, null: int = 0) -> NDArray[np.int64]:
    """A column as an array of its own dtype, nulls as ``null``."""
    return batch[name].fill_null(null).to_numpy()


def _exposure(batches: Batches, off: _OffCpu) -> tuple[NDArray[np.uint32], _Spans]:
    """The exposure of each operation, (N,), and the spans of nested operations."""
    rows = sum(batch.height for batch in batches(["kind"]))
    exposure_ns = np.zeros(rows, dtype=np.uint32)
    nested: list[pl.DataFrame] = []
    by_kind = roles_by_kind()
    open_ops, open_count = new_open_set()
    no_far = np.zeros((0, 2), dtype=np.int64)
    first = 0
    timed = pl.col("duration_kind").is_in(_TIMED_KINDS)
    end = pl.col("begin_ns") + pl.col("duration_ns")
    inner = (pl.col("quality") & int(Quality.NESTED_IN_SYSCALL)) != 0
    for batch in batches(_EXPOSURE_COLUMNS):
        nested.append(
            batch.filter(inner & timed & (pl.col("duration_ns") > 0)).select(
                "tid", begin="begin_ns", end=end
            )
        )
        # An upper bound reaches over the thread's think time: it proves no overlap.
        ends = batch.select(pl.when(timed).then(end).otherwise("begin_ns"))["begin_ns"]
        begins = batch["begin_ns"]
        kind, flags = batch["kind"].to_numpy(), _numbers(batch, "flags")
        open_ops = add_exposure(
            exposure_ns,
            0,
            first,
            begins.to_numpy(),
            ends.fill_null(0).to_numpy(),
            batch["tid"].to_numpy(),
            batch["address_space"].to_numpy(),
            find_roles(kind, flags, by_kind),
            find_slept(
                off.slept(batch),
                batch.select(timed)["duration_kind"].to_numpy(),
                kind,
                flags,
                batch["fault_class"].to_numpy(),
            ),
            open_ops,
            open_count,
            no_far,
        )
        first += batch.height
    return exposure_ns, _Spans(nested)


# -- pass 2: what a class costs -----------------------------------------------------------


class _Inside(NamedTuple):
    """See :func:`look_inside`; and the off-CPU time and contention inside, (N,) each."""

    key: NDArray[np.uint64]
    room_ns: NDArray[np.int64]
    io_ns: NDArray[np.int64]
    state: NDArray[np.uint8]
    still: NDArray[np.uint8]
    off_ns: NDArray[np.int64]
    contended_ns: NDArray[np.int64]


def _inside(batch: pl.DataFrame, nested: _Spans, preempted: _Spans) -> _Inside:
    duration_ns = _numbers(batch, "duration_ns", -1)
    off_ns = _numbers(batch, "blocked_inside_ns")
    contended_ns = _numbers(batch, "contention_ns")
    key, room_ns, io_ns, state, still = look_inside(
        batch["kind"].to_numpy(),
        _numbers(batch, "flags"),
        _numbers(batch, "length"),
        _numbers(batch, "errno"),
        _numbers(batch, "fault_bits"),
        batch["fault_class"].to_numpy(),
        batch["quality"].to_numpy(),
        batch["duration_kind"].to_numpy(),
        duration_ns,
        _numbers(batch, "duration_corrected_ns", -1),
        off_ns,
        contended_ns,
        nested.covered(batch, duration_ns),
        preempted.covered(batch, duration_ns),
    )
    return _Inside(key, room_ns, io_ns, state, still, off_ns, contended_ns)


def _usual_services(
    batches: Batches,
    exposure_ns: NDArray[np.uint32],
    nested: _Spans,
    preempted: _Spans,
    classes: Classes,
    kept: list[tuple[_Inside, NDArray[np.int32]]],
    most_kept: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Per class: the low quartile of its quiet operations (-1: too few), and the default.

    Fills ``kept`` with each batch's findings, unless they are more than ``most_kept`` rows.
    """
    counts = Tally()
    first = 0
    for batch in batches(_INSIDE_COLUMNS):
        inside = _inside(batch, nested, preempted)
        quiet = inside.still & (exposure_ns[first : first + batch.height] == 0)
        first += batch.height
        number = classes.numbers(inside.key)
        kept.append((inside, number))
        if first > most_kept:
            kept.clear()
        counts.add(number, inside.room_ns, (inside.state == TIMED).view(np.uint8), quiet)
    return usual_services(counts, classes.keys())
