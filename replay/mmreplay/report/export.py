"""Writes a trace for other tools: timeline viewers, or a table."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, Final, Literal, cast

import polars as pl

from mmreplay import schema
from mmreplay.errors import UserError, require_no_device
from mmreplay.trace.columns import table_named
from mmreplay.trace.store import Trace

Style = Literal["chrome", "perfetto", "csv"]
#: Behind every time.
_END: Final = (1 << 63) - 1
_ROWS: Final = 1 << 15
#: Columns that say when a row begins.
_WHEN: Final = {"begin_ns", "ns", "first_ns", "off_ns"}


def export(
    trace: Trace,
    stream: BinaryIO,
    style: Style,
    *,
    begin_ns: int | None = None,
    end_ns: int | None = None,
    table: str = "operations",
) -> None:
    """Write the trace, or what begins in [``begin_ns``, ``end_ns``), to a binary stream.

    Memory is bounded by a window of rows.

    Parameters
    ----------
    style:
        ``chrome``: trace-event JSON; ``perfetto``: TrackEvent packets; ``csv``: one table, with
        enumerations by name.
    table:
        Of the trace, for ``csv``.

    Raises
    ------
    UserError
        The window is empty, there is no such table, or a table cannot be read.
    """
    begin = -_END if begin_ns is None else begin_ns
    end = _END if end_ns is None else end_ns
    if begin >= end:
        raise UserError(
            f"the window ends ({end / 1e9:g} s) before it begins ({begin / 1e9:g} s)",
            where="--to",
            fix="give seconds since the recording's begin, --from less than --to",
        )
    if style == "chrome":
        from mmreplay.report.chrome import chunks as written

        for piece in written(trace, begin, end):
            stream.write(piece.encode())
    elif style == "perfetto":
        from mmreplay.report.perfetto import chunks as packets

        for part in packets(trace, begin, end):
            stream.write(part)
    else:
        _csv(trace, stream, table, begin, end)


def _csv(trace: Trace, stream: BinaryIO, name: str, begin_ns: int, end_ns: int) -> None:
    table = table_named(name)
    when = next((column.name for column in table.columns if column.name in _WHEN), None)
    named = {
        column.name: pl.col(column.name).replace_strict(
            _members(column.unit), default=None, return_dtype=pl.String
        )
        for column in table.columns
        if column.dtype == "UInt8" and _members(column.unit)
    }
    stream.write((",".join(column.name for column in table.columns) + "\n").encode())
    for batch in trace.batches(name, rows=_ROWS):
        if when is not None:
            batch = batch.filter((pl.col(when) >= begin_ns) & (pl.col(when) < end_ns))
        rows = batch.with_columns(**named)
        stream.write(rows.write_csv(include_header=False).encode())


def _members(unit: str) -> dict[int, str]:
    """Number to name of the plain enumeration that a column's unit names; {} for others."""
    found = getattr(schema, unit, None)
    if not isinstance(found, type) or not issubclass(found, IntEnum):
        return {}
    return {int(member): member.name.lower() for member in found}


@contextmanager
def opened(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A binary file that appears under its name when it is complete; ``.gz`` is compressed.

    Raises
    ------
    UserError
        The name is taken, or cannot be written.
    """
    require_no_device(path)
    if path.exists() and not force:
        raise UserError("the file exists", where=str(path), fix="add --force, or name another")
    beside = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        plain = beside.open("wb")
    except OSError as error:
        raise UserError(
            f"cannot write there ({error.strerror})", where=str(path), fix="choose another output"
        ) from None
    try:
        with plain:
            if path.suffix == ".gz":
                with gzip.GzipFile(
                    filename="", mode="wb", fileobj=plain, compresslevel=1
                ) as packed:
                    yield cast("BinaryIO", packed)
            else:
                yield plain
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
