"""The time split: what an operation took by itself, and what it waited.

``docs/time-split.md`` states the rules and the reasons.  :func:`finalise` runs them
over the tables of a trace that is being written; :func:`split` over frames in memory.

Three passes over the operations in batches.  Memory: one byte an operation
(was it exposed), the nested operations, the preempted spans, and at most
:data:`QUIET_ROWS` samples for the quartiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmreplay.schema import (
    OPERATIONS,
    SCHEDULE,
    DurationKind,
    FaultClass,
    OpKind,
    Quality,
    SpanEnd,
    UffdOp,
)
from mmreplay.trace.exposure import (
    ROLE_NONE,
    ROLE_READER,
    ROLE_WRITER,
    mark_exposed,
    new_open_set,
)
from mmreplay.trace.store import (
    Header,
    TraceWriter,
    parquet_writer,
    polars_schema,
    read_batches,
    to_arrow,
)

#: A class needs this many quiet operations before its low quartile is believed.
MIN_QUIET: Final = 8
#: At most this many quiet operations are kept for the quartiles; beyond it every other one goes.
QUIET_ROWS: Final = 1 << 22
_BATCH_ROWS: Final = 1 << 18

#: What an operation is taken to cost where the trace shows none of its class in a quiet
#: spot, in ns.  Fault: 1.55 us, mmap+munmap: 3.78 us a pair, both by a microbenchmark
#: on a 2-vCPU EPYC guest with 6.18 (minimum of 12 and 7 runs); major faults without their I/O;
#: all others are assumed.  It is never taken above the low quartile of all operations of the class.
DEFAULT_SERVICE_NS: Final[dict[OpKind, int]] = {
    OpKind.FAULT_USER: 1_550,
    OpKind.FAULT_KERNEL: 1_550,
    OpKind.MMAP: 1_890,
    OpKind.MUNMAP: 1_890,
    OpKind.MPROTECT: 1_500,
    OpKind.PKEY_MPROTECT: 1_500,
    OpKind.MADVISE: 1_500,
    OpKind.PROCESS_MADVISE: 1_500,
    OpKind.BRK: 1_000,
    OpKind.MREMAP: 3_000,
    OpKind.MLOCK: 1_500,
    OpKind.MUNLOCK: 1_500,
    OpKind.CLONE: 15_000,
    OpKind.FORK: 100_000,
    OpKind.VFORK: 50_000,
    OpKind.EXEC: 300_000,
}
_OTHER_SERVICE_NS: Final = 1_500

# include/uapi/asm-generic/mman-common.h and mman.h @6.18
_MAP_ANONYMOUS: Final = 0x20
_MAP_POPULATE: Final = 0x8000
_MADV_WILLNEED: Final = 3
_MADV_PAGEOUT: Final = 21

_TIMED: Final = (int(DurationKind.MEASURED), int(DurationKind.ESTIMATED))
_FAULTS: Final = (int(OpKind.FAULT_USER), int(OpKind.FAULT_KERNEL))
_ADVICE: Final = (int(OpKind.MADVISE), int(OpKind.PROCESS_MADVISE))
_FLAGGED: Final = (*_ADVICE, int(OpKind.PROC_READ), int(OpKind.UFFD))
#: Off-CPU inside these is not a lock's: reading the new program, writing back, the child's exec.
_BLOCKING_KINDS: Final = (int(OpKind.EXEC), int(OpKind.MSYNC), int(OpKind.VFORK))
_DOUBTFUL: Final = int(Quality.AFTER_GAP | Quality.LATE | Quality.NEGATIVE_FIXED)


@dataclass
class SplitReport:
    """What the split did; :meth:`counters` go into the header."""

    operations: int = 0
    without_duration: int = 0
    exposed: int = 0
    classes: int = 0
    default_service: int = 0

    def counters(self) -> dict[str, int]:
        return {
            "timesplit_operations": self.operations,
            "timesplit_without_duration": self.without_duration,
            "timesplit_exposed": self.exposed,
            "timesplit_classes": self.classes,
            "timesplit_default_service": self.default_service,
        }


def finalise(writer: TraceWriter, header: Header) -> SplitReport:
    """Split the operations that ``writer`` has, just before ``writer.close(header)``.

    Seals the writer, replaces ``service_ns``, ``wait_ns``, ``io_ns``, adds to
    ``unattributed_ns`` what of the inside could not be split, and puts its counters
    into ``header.counters``.
    """
    directory = writer.seal()
    file = directory / OPERATIONS.file
    columns = list(polars_schema("operations"))

    def batches(wanted: list[str] | None) -> Iterator[pl.DataFrame]:
        return read_batches(file, wanted or columns, _BATCH_ROWS)

    preempted = _preempted_spans(_schedule_batches(directory))
    beside = file.with_suffix(".split")
    out = None
    report = SplitReport()
    try:
        for batch in _split(batches, preempted, report):
            rows = to_arrow(batch)
            if out is None:
                out = parquet_writer(beside, rows.schema)
            out.write_table(rows)
    finally:
        if out is not None:
            out.close()
    if out is not None:
        beside.replace(file)
    header.counters = header.counters | report.counters()
    return report


def split(
    operations: pl.DataFrame, schedule: pl.DataFrame | None = None
) -> tuple[pl.DataFrame, SplitReport]:
    """The same over frames in memory: operations with their time split, and the report."""

    def batches(wanted: list[str] | None) -> Iterator[pl.DataFrame]:
        rows = operations.select(wanted) if wanted else operations
        for first in range(0, rows.height, _BATCH_ROWS):
            yield rows.slice(first, _BATCH_ROWS)

    report = SplitReport()
    preempted = _preempted_spans([schedule] if schedule is not None else [])
    parts = list(_split(batches, preempted, report))
    return (pl.concat(parts) if parts else operations), report


def _schedule_batches(directory: Path) -> Iterable[pl.DataFrame]:
    file = directory / SCHEDULE.file
    if not file.is_file():
        return []
    return read_batches(file, ["tid", "off_ns", "on_ns", "reason"], _BATCH_ROWS)


def _split(
    batches: Callable[[list[str] | None], Iterator[pl.DataFrame]],
    preempted: pl.DataFrame,
    report: SplitReport,
) -> Iterator[pl.DataFrame]:
    exposed, nested = _exposure(batches)
    report.operations = len(exposed)
    report.exposed = int(exposed.sum())
    services = _class_services(batches, exposed, nested, preempted)
    report.classes = services.height
    first = 0
    for batch in batches(None):
        flags = pl.Series("exposed", exposed[first : first + batch.height], dtype=pl.Boolean)
        first += batch.height
        worked = _inside(batch, flags, nested, preempted).join(
            services, on="class", how="left", maintain_order="left"
        )
        done = worked.with_columns(
            service=pl.coalesce("quiet_service", "default_service", _default_service())
        ).with_columns(*_rules())
        report.without_duration += int(
            done.select((~pl.col("timed") & ~pl.col("bounded")).sum()).item()
        )
        used_default = (
            pl.col("quiet_service").is_null()
            & (pl.col("bounded") | (pl.col("timed") & pl.col("exposed")))
        ).sum()
        report.default_service += int(done.select(used_default).item())
        yield done.with_columns(
            service_ns="new_service",
            wait_ns="new_wait",
            io_ns="new_io",
            unattributed_ns="new_unattributed",
        ).select(batch.columns)


# -- pass 1: exposure and spans ----------------------------------------------------------


def _exposure(
    batches: Callable[[list[str] | None], Iterator[pl.DataFrame]],
) -> tuple[NDArray[np.uint8], pl.DataFrame]:
    """One byte per operation (1: exposed), and the spans of nested operations."""
    parts: list[NDArray[np.uint8]] = []
    nested: list[pl.DataFrame] = []
    columns = [
        "begin_ns",
        "duration_ns",
        "tid",
        "address_space",
        "kind",
        "flags",
        "quality",
        "duration_kind",
    ]
    for batch in batches(columns):
        parts.append(np.zeros(batch.height, dtype=np.uint8))
        inner = (pl.col("quality") & int(Quality.NESTED_IN_SYSCALL)) != 0
        nested.append(
            batch.filter(inner & (pl.col("duration_ns") > 0) & _timed()).select(
                "tid", begin="begin_ns", end=pl.col("begin_ns") + pl.col("duration_ns")
            )
        )
    exposed = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint8)
    open_ops, open_count = new_open_set()
    first = 0
    for batch in batches(columns):
        # An upper bound reaches over the thread's think time: it proves no overlap.
        duration = pl.when(_timed()).then(pl.col("duration_ns")).otherwise(0).fill_null(0)
        cut = batch.select(
            "begin_ns",
            "tid",
            "address_space",
            end=pl.col("begin_ns") + duration,
            role=_role(),
        )
        open_ops = mark_exposed(
            exposed,
            first,
            cut["begin_ns"].to_numpy(),
            cut["end"].to_numpy(),
            cut["tid"].to_numpy(),
            cut["address_space"].to_numpy(),
            cut["role"].to_numpy(),
            open_ops,
            open_count,
        )
        first += batch.height
    empty = pl.DataFrame(schema={"tid": pl.Int32, "begin": pl.Int64, "end": pl.Int64})
    return exposed, _cumulated(pl.concat([empty, *nested]))


def _timed() -> pl.Expr:
    return pl.col("duration_kind").is_in(_TIMED) & pl.col("duration_ns").is_not_null()


#: Advice that holds mmap_lock for reading only (mm/madvise.c madvise_need_mmap_write@6.12;
#: guard pages: get_lock_mode@6.18); all other advice changes VMAs and writes.
_READ_ADVICE: Final = (3, 4, 8, 9, 20, 21, 22, 23, 24, 25, 102, 103)
_LOCK_FREE: Final = tuple(
    int(kind)
    for kind in (
        OpKind.CLONE,
        OpKind.VFORK,
        OpKind.THREAD_START,
        OpKind.THREAD_EXIT,
        OpKind.SNAPSHOT_VMA,
    )
)
_WRITERS: Final = tuple(
    int(kind)
    for kind in (
        OpKind.MMAP,
        OpKind.MUNMAP,
        OpKind.MPROTECT,
        OpKind.PKEY_MPROTECT,
        OpKind.BRK,
        OpKind.MREMAP,
        OpKind.EXEC,
        OpKind.MLOCK,
        OpKind.MUNLOCK,
        OpKind.MLOCKALL,
        OpKind.MUNLOCKALL,
        OpKind.SHMAT,
        OpKind.SHMDT,
        OpKind.MBIND,
        OpKind.FORK,
        OpKind.PROCESS_EXIT,
        OpKind.MSEAL,
        OpKind.PKEY,
        OpKind.REMAP_FILE_PAGES,
    )
)


def _role() -> pl.Expr:
    kind, flags = pl.col("kind"), pl.col("flags").fill_null(0)
    advice = kind.is_in(_ADVICE) & ~flags.is_in(_READ_ADVICE)
    uffd = (kind == int(OpKind.UFFD)) & flags.is_in((int(UffdOp.REGISTER), int(UffdOp.UNREGISTER)))
    return (
        pl.when(kind.is_in(_LOCK_FREE))
        .then(ROLE_NONE)
        .when(kind.is_in(_WRITERS) | advice | uffd)
        .then(ROLE_WRITER)
        .otherwise(ROLE_READER)
        .cast(pl.UInt8)
    )


def _preempted_spans(batches: Iterable[pl.DataFrame]) -> pl.DataFrame:
    empty = pl.DataFrame(schema={"tid": pl.Int32, "begin": pl.Int64, "end": pl.Int64})
    wanted = (pl.col("reason") == int(SpanEnd.PREEMPTED)) & (pl.col("on_ns") > pl.col("off_ns"))
    parts = [batch.filter(wanted).select("tid", begin="off_ns", end="on_ns") for batch in batches]
    return _cumulated(pl.concat([empty, *parts]))


def _cumulated(spans: pl.DataFrame) -> pl.DataFrame:
    """Spans sorted by begin, with the covered time of the thread before each."""
    length = pl.col("end") - pl.col("begin")
    return spans.sort("begin", maintain_order=True).with_columns(
        before=(length.cum_sum() - length).over("tid")
    )


def _covered(batch: pl.DataFrame, spans: pl.DataFrame) -> pl.Series:
    """How much of each operation the thread's spans cover, in ns."""
    if spans.height == 0:
        return pl.zeros(batch.height, dtype=pl.Int64, eager=True)

    def until(moment: pl.Expr) -> pl.Series:
        points = batch.select("tid", at=moment).with_row_index("row").sort("at")
        found = points.join_asof(
            spans, left_on="at", right_on="begin", by="tid", check_sortedness=False
        )
        part = pl.min_horizontal("at", "end") - pl.col("begin") + pl.col("before")
        return found.select("row", part=part.fill_null(0)).sort("row")["part"]

    end = pl.col("begin_ns") + pl.col("duration_ns").fill_null(0)
    return until(end) - until(pl.col("begin_ns"))


# -- pass 2: what a class costs -----------------------------------------------------------


def _class() -> pl.Expr:
    """The operation's class, packed: kind, fault class, failed, variant, log2 of its pages."""
    kind, flags = pl.col("kind"), pl.col("flags").fill_null(0)
    mmap_variant = ((flags & _MAP_ANONYMOUS) != 0).cast(pl.UInt64) + (
        (flags & _MAP_POPULATE) != 0
    ).cast(pl.UInt64) * 2
    variant = (
        pl.when(kind.is_in(_FAULTS))
        .then(pl.col("fault_bits").fill_null(0).cast(pl.UInt64) & 3)  # present, write
        .when(kind.is_in(_FLAGGED))
        .then(flags & 0xFFFF)
        .when(kind == int(OpKind.MMAP))
        .then(mmap_variant)
        .otherwise(0)
    )
    pages = (pl.col("length").fill_null(0) + 4095) // 4096
    doublings = (
        pl.when(kind.is_in(_FAULTS) | (pages == 0))
        .then(0)
        .otherwise(pages.cast(pl.Float64).log(2).floor() + 1)
        .cast(pl.UInt64)
    )
    failed = (pl.col("errno").fill_null(0) != 0).cast(pl.UInt64)
    return (
        kind.cast(pl.UInt64) * 2**40
        + pl.col("fault_class").cast(pl.UInt64) * 2**32
        + failed * 2**31
        + variant * 2**8
        + doublings
    )


def _inside(
    batch: pl.DataFrame, exposed: pl.Series, nested: pl.DataFrame, preempted: pl.DataFrame
) -> pl.DataFrame:
    """The batch with what the rules need: class, room, off-CPU, contention, I/O."""
    is_nested = (pl.col("quality") & int(Quality.NESTED_IN_SYSCALL)) != 0
    duration = pl.coalesce("duration_corrected_ns", "duration_ns").clip(0)
    off = pl.col("blocked_inside_ns").fill_null(0)
    contended = pl.col("contention_ns").fill_null(0)
    advice_io = pl.col("kind").is_in(_ADVICE) & pl.col("flags").fill_null(0).is_in(
        (_MADV_WILLNEED, _MADV_PAGEOUT)
    )
    explained = (
        (pl.col("fault_class") == int(FaultClass.MAJOR))
        | pl.col("kind").is_in(_BLOCKING_KINDS)
        | advice_io
    )
    return (
        batch.with_columns(
            exposed,
            _covered(batch, nested).alias("nested"),
            _covered(batch, preempted).alias("preempted"),
        )
        .with_columns(
            timed=_timed(),
            bounded=(pl.col("duration_kind") == int(DurationKind.UPPER_BOUND))
            & pl.col("duration_ns").is_not_null(),
            # A nested operation's own span is among the nested spans.
            nested=pl.when(is_nested).then(0).otherwise("nested"),
            off=off,
            contended=contended,
            **{"class": _class()},
        )
        .with_columns(room=(duration - pl.col("nested") - pl.col("preempted")).clip(0))
        .with_columns(
            new_io=pl.when(explained & pl.col("timed"))
            .then(pl.min_horizontal((off - contended).clip(0), "room"))
            .otherwise(0)
        )
        .with_columns(room=pl.col("room") - pl.col("new_io"))
    )


def _class_services(
    batches: Callable[[list[str] | None], Iterator[pl.DataFrame]],
    exposed: NDArray[np.uint8],
    nested: pl.DataFrame,
    preempted: pl.DataFrame,
) -> pl.DataFrame:
    """Per class: ``quiet_service`` (null: too few quiet operations) and ``default_service``."""
    kept: list[pl.DataFrame] = []
    rows, stride, first = 0, 1, 0
    quiet = (
        ~pl.col("exposed")
        & (pl.col("off") == 0)
        & (pl.col("contended") == 0)
        & (pl.col("preempted") == 0)
        & ((pl.col("quality") & _DOUBTFUL) == 0)
    )
    for batch in batches(None):
        flags = pl.Series("exposed", exposed[first : first + batch.height], dtype=pl.Boolean)
        first += batch.height
        part = (
            _inside(batch, flags, nested, preempted)
            .filter("timed")
            .select("class", "kind", "room", quiet=quiet)
            .gather_every(stride)
        )
        kept.append(part)
        rows += part.height
        while rows > QUIET_ROWS:
            kept = [pl.concat(kept).gather_every(2)]
            rows, stride = kept[0].height, stride * 2
    empty = {
        "class": pl.UInt64,
        "quiet_service": pl.Int64,
        "default_service": pl.Int64,
    }
    if not kept:
        return pl.DataFrame(schema=empty)
    low = pl.col("room").quantile(0.25, interpolation="lower").cast(pl.Int64)
    quiet_low = pl.col("room").filter("quiet").quantile(0.25, interpolation="lower").cast(pl.Int64)
    return (
        pl.concat(kept)
        .group_by("class")
        .agg(
            quiet_service=pl.when(pl.col("quiet").sum() >= MIN_QUIET).then(quiet_low),
            default_service=pl.min_horizontal(_default_service().first(), low),
        )
        .select(list(empty))
        .sort("class")
    )


def _default_service() -> pl.Expr:
    return pl.col("kind").replace_strict(
        {int(kind): cost for kind, cost in DEFAULT_SERVICE_NS.items()},
        default=_OTHER_SERVICE_NS,
        return_dtype=pl.Int64,
    )


# -- pass 3: the split --------------------------------------------------------------------


def _rules() -> list[pl.Expr]:
    """``new_service``, ``new_wait``, ``new_io``, ``new_unattributed`` (docs/time-split.md)."""
    timed, bounded, room = pl.col("timed"), pl.col("bounded"), pl.col("room")
    known = pl.col("off") - pl.col("new_io")
    excess = pl.when("exposed").then(room - pl.col("service")).otherwise(0)
    wait = pl.max_horizontal(known, "contended", excess).clip(0, room)
    at_most = pl.min_horizontal("service", room)
    bounded_wait = pl.min_horizontal("contended", room - at_most)
    inside = pl.when(bounded).then(room - at_most - bounded_wait).otherwise(0)
    return [
        pl.when(timed)
        .then(room - wait)
        .when(bounded)
        .then(at_most)
        .otherwise(None)
        .alias("new_service"),
        pl.when(timed).then(wait).when(bounded).then(bounded_wait).alias("new_wait"),
        pl.when(timed).then("new_io").alias("new_io"),
        pl.when(timed | bounded)
        .then(pl.col("unattributed_ns").fill_null(0) + inside)
        .otherwise("unattributed_ns")
        .alias("new_unattributed"),
    ]
