"""Writes a trace: a directory ``NAME.mmt/`` of Parquet files and one header.

It is written beside its final place and renamed when it is complete.  Nothing here loads
polars: an import of a recording does without it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from mmreplay.errors import UserError, require_parent
from mmreplay.schema import TRACE_TABLES
from mmreplay.trace import leftovers
from mmreplay.trace.chunks import Column
from mmreplay.trace.columns import arrow_schema, check_columns, complete, table_named, to_arrow
from mmreplay.trace.gathered import Gathered

if TYPE_CHECKING:  # an import of a recording loads none of them, or late
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mmreplay.trace.header import Header
    from mmreplay.trace.store import Trace

#: Rows of a table that a writer holds in memory before it begins to write them, where
#: they come as polars frames: an operation is some 200 bytes, so about 200 MB.
HOLD_ROWS: Final = 1 << 20
#: Writes are gathered to row groups of at least this many rows.
_GATHER_ROWS: Final = 1 << 16
_ROW_GROUP_ROWS: Final = 1 << 18
#: How operations are encoded, by measurement on 6 million of them: half the time of zstd
#: and dictionaries wherever those shrink, and as many bytes.
_ASCENDING: Final = ("begin_ns",)
_NOISY: Final = (
    *("duration_ns", "duration_corrected_ns", "think_cpu_ns", "think_raw_ns", "service_ns"),
    "wait_ns",
    *("inner_events", "kind", "fault_class"),
)
_FEW_VALUES: Final = (
    *("think_blocked_ns", "preempted_ns", "io_ns", "unattributed_ns", "contention_ns"),
    *("blocked_inside_ns", "address", "length", "address2", "prot", "flags", "file_offset"),
    *("fd", "errno", "result", "ip"),
)
_ENCODINGS: Final = {
    **dict.fromkeys(_ASCENDING, "DELTA_BINARY_PACKED"),
    **dict.fromkeys(_NOISY, "BYTE_STREAM_SPLIT"),
}


def parquet_options(name: str) -> dict[str, Any]:
    """Options of :class:`pyarrow.parquet.ParquetWriter` for a table."""
    columns = table_named(name).columns
    options: dict[str, Any] = {
        "compression": "lz4",
        "write_statistics": [column.name for column in columns if column.name == "begin_ns"],
        "use_dictionary": [column.name for column in columns if column.dtype == "String"],
        "store_schema": False,  # Parquet's own types say all there is
        "write_batch_size": 1 << 14,
    }
    if name == "operations":
        options["use_dictionary"] = list(_FEW_VALUES)
        options["column_encoding"] = _ENCODINGS
    return options


def parquet_writer(file: Path, name: str, schema: pa.Schema | None = None) -> pq.ParquetWriter:
    """A writer of a table's Parquet file; words may come as dictionaries, by ``schema``."""
    import pyarrow.parquet as pq

    return pq.ParquetWriter(str(file), schema or arrow_schema(name), **parquet_options(name))


class TraceWriter:
    """Writes a trace: ``write`` any number of times, then ``close`` once.

    Use it as a context manager; leaving it without ``close``, or by an exception,
    leaves nothing behind.  Rows are appended to ``PATH.partial-PID-*/`` and renamed
    to ``PATH`` by ``close``.  What a killed writer to ``PATH`` left is removed first.

    Parameters
    ----------
    path:
        The trace to make; its name ends in ``.mmt``.
    force:
        Replace a trace of that name.  Anything else of that name is never touched.

    Raises
    ------
    UserError
        The name is taken, does not end in ``.mmt``, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], force: bool = False) -> None:
        self.path = Path(path)
        self._force = force
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._held: dict[str, list[pl.DataFrame]] = {}
        self._gathered: dict[str, list[pa.Table]] = {}
        self._finished: set[str] = set()
        self._columns: dict[str, Gathered] = {}
        self._facts: dict[str, tuple[int, int, int]] = {}
        self._closed = False
        if self.path.suffix != ".mmt":
            raise UserError(
                'a trace is a directory whose name ends in ".mmt"',
                where=str(self.path),
                fix=f"name it {self.path.name or 'trace'}.mmt",
            )
        require_parent(self.path)
        try:
            leftovers.clean(self.path)
            self._check_free()
            made, self._held_fd = leftovers.make(self.path)
        except OSError as error:
            raise UserError(
                f"cannot write there ({error.strerror})",
                where=str(self.path.parent),
                fix="choose another output",
            ) from None
        #: Where the tables lie until ``close``.
        self.directory = made

    def _check_free(self) -> None:
        if not self.path.exists():
            return
        ours = (self.path / "header.json").is_file()
        if not ours:
            raise UserError(
                "exists and is not a trace", where=str(self.path), fix="choose another output"
            )
        if not self._force:
            raise UserError("the trace exists", where=str(self.path), fix="add --force")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._closed:
            return
        self.discard()
        if kind is None:
            raise RuntimeError("TraceWriter was left without close(header)")

    def discard(self) -> None:
        """Forget everything that was written."""
        for writer in self._writers.values():
            with contextlib.suppress(OSError):  # a full disk does not take what is left
                writer.close()
        for columns in self._columns.values():
            columns.abandon()
        self._writers.clear()
        self._columns.clear()
        self._gathered.clear()
        self._held.clear()
        leftovers.remove(self.directory)
        self._let_be()

    def _let_be(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._held_fd)

    def write(self, table: str, rows: pl.DataFrame | pa.Table | Mapping[str, Column]) -> None:
        """Append rows (all columns of the schema) to a table; one table takes one kind of rows.

        What comes as an Arrow table goes to the file as it comes; polars frames, whose
        columns may be in any order, are held in memory up to :data:`HOLD_ROWS`.
        """
        if table in self._finished or self._closed:
            raise RuntimeError(f"the table {table} is complete")
        if isinstance(rows, Mapping):
            if table not in self._columns:
                file = self.adopt(table)
                self._finished.discard(table)
                self._columns[table] = Gathered(file, table)
            self._columns[table].write(rows)
            return
        import pyarrow as pa

        if isinstance(rows, pa.Table):
            arrow = rows
        else:
            check_columns(table, dict(rows.schema))
            rows = complete(table, rows, rows.columns)
            if rows.height == 0 and table in self._gathered:
                return
            if table not in self._writers:
                parts = self._held.setdefault(table, [])
                parts.append(rows)
                self._gathered.setdefault(table, [])
                if sum(part.height for part in parts) < HOLD_ROWS:
                    return
                self._let_go(table)
                self._flush(table)
                return
            arrow = to_arrow(table, rows)
        gathered = self._gathered.setdefault(table, [])
        gathered.append(arrow)
        if sum(part.num_rows for part in gathered) >= _GATHER_ROWS:
            self._flush(table)

    def held(self, table: str) -> pl.DataFrame | None:
        """All rows of a table, where they are still in memory; None where not or never written."""
        parts = self._held.get(table_named(table).name)
        if not parts:
            return None
        import polars as pl

        return pl.concat(parts, rechunk=False)

    def replace_held(self, table: str, rows: pl.DataFrame) -> None:
        """Put ``rows`` in the place of what ``held`` gave."""
        if self.held(table) is None:
            raise RuntimeError(f"the rows of {table} are not in memory")
        check_columns(table, dict(rows.schema))
        self._held[table] = [rows]

    def adopt(self, table: str) -> Path:
        """Where the caller puts the whole Parquet file of a table before ``close``."""
        if table in self._gathered or table in self._finished:
            raise RuntimeError(f"the table {table} was written already")
        self._finished.add(table)
        self._gathered[table] = []
        return self.directory / table_named(table).file

    def note(self, table: str, rows: int, size_bytes: int, crc32: int) -> None:
        """What the caller knows of the file that :meth:`adopt` gave the name of."""
        self._facts[table] = (rows, size_bytes, crc32)

    def _let_go(self, table: str) -> None:
        """Pass what is held on to the file's writer."""
        for part in self._held.pop(table, []):
            self._gathered[table].append(to_arrow(table, part))

    def _flush(self, table: str) -> None:
        import pyarrow as pa

        parts = self._gathered[table]
        rows = pa.concat_tables(parts).unify_dictionaries() if parts else None
        parts.clear()
        if table not in self._writers:
            file = self.directory / table_named(table).file
            self._writers[table] = parquet_writer(
                file, table, None if rows is None else rows.schema
            )
        if rows is not None:
            self._writers[table].write_table(rows, row_group_size=_ROW_GROUP_ROWS)

    def finish(self, table: str) -> Path | None:
        """Complete a table's Parquet file, so that it can be read; None where it has no rows."""
        file = self.directory / table_named(table).file
        if table in self._columns:
            self.note(table, *self._columns.pop(table).close())
            self._finished.add(table)
        if table in self._finished or table not in self._gathered:
            return file if table in self._finished else None
        self._let_go(table)
        self._flush(table)
        self._writers.pop(table).close()
        self._finished.add(table)
        return file

    def close(self, header: Header) -> Trace:
        """Write the header and put the trace in its place; returns it opened."""
        from mmreplay.trace.header import file_facts

        try:
            for table in TRACE_TABLES:
                if table.required and table.name not in self._gathered:
                    self.write(table.name, {})
                self.finish(table.name)
            header.tables = {
                table.name: file_facts(self.directory / table.file, self._facts.get(table.name))
                for table in TRACE_TABLES
                if (self.directory / table.file).is_file()
            }
            (self.directory / "header.json").write_text(header.to_json(), encoding="utf-8")
            self._check_free()
            old = None
            if self.path.exists():
                old = self.directory.with_name(
                    self.directory.name.replace(".partial-", ".replaced-")
                )
                self.path.rename(old)
            try:
                self.directory.rename(self.path)
            except OSError:
                if old is not None and not self.path.exists():
                    old.rename(self.path)
                raise
            if old is not None:
                leftovers.remove(old)
        except OSError as error:
            self.discard()
            raise UserError(
                f"cannot write the trace ({error.strerror})",
                where=str(self.path),
                fix="choose another output",
            ) from None
        except BaseException:
            self.discard()
            raise
        self._let_be()
        from mmreplay.trace.store import Trace

        if header.tables.keys() <= self._facts.keys():
            return Trace(header, {name: self._facts[name][0] for name in header.tables}, self.path)
        return Trace.open(self.path, verify=False)
