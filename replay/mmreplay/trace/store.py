"""The canonical trace: a directory ``NAME.mmt/`` of Parquet files and one header.

:class:`TraceWriter` writes it beside its final place and renames it when it is
complete; :class:`Trace` reads it lazily.  Both hold themselves to the columns of
:mod:`mmreplay.schema`.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mmreplay.errors import UserError, closest
from mmreplay.schema import TRACE_TABLES, Table
from mmreplay.trace.header import (
    Capabilities,
    Clock,
    Event,
    Header,
    Machine,
    Probe,
    Source,
    TableFile,
    plain_release,
    read_header,
)

__all__ = [
    "Capabilities",
    "Clock",
    "Event",
    "Header",
    "Machine",
    "Probe",
    "Source",
    "Trace",
    "TraceWriter",
    "frame",
    "plain_release",
    "polars_schema",
    "table_named",
]

#: Rows of a table that a writer holds in memory before it begins to write them: an
#: operation is some 200 bytes, so about 200 MB.  What fits is written once, by polars.
HOLD_ROWS: Final = 1 << 20
#: After that, writes are gathered to row groups of at least this many rows.
_GATHER_ROWS: Final = 1 << 17
_ROW_GROUP_ROWS: Final = 1 << 18
#: Columns that a dictionary shortens; building one for the others only costs time.
_FEW_VALUES: Final = {
    *("duration_kind", "pid", "tid", "address_space", "cpu", "kind", "length", "prot", "flags"),
    *("fd", "errno", "fault_bits", "fault_class", "weight", "quality", "inner_events", "comm"),
    *("group", "start_kind", "name", "source", "reason", "mode", "lock_address", "event"),
}
_TABLES: Final = {table.name: table for table in TRACE_TABLES}
#: What :func:`frame` fills in where zero would say something else than "unknown" or "one".
_DEFAULTS: Final[dict[tuple[str, str], Any]] = {
    ("operations", "cpu"): -1,
    ("operations", "weight"): 1,
    ("schedule", "cpu"): -1,
    ("gaps", "ring"): -1,
    ("threads", "start_kind"): "first_seen",
    ("vmas", "source"): "snapshot",
    ("locks", "kind"): "other",
    ("locks", "mode"): "unknown",
}


def table_named(name: str) -> Table:
    """The schema's table of that name; a :class:`UserError` offers the closest one."""
    try:
        return _TABLES[name]
    except KeyError:
        raise UserError(
            f'a trace has no table "{name}"{closest(name, _TABLES)}',
            fix=f"the tables are {', '.join(_TABLES)}",
        ) from None


def polars_schema(name: str) -> dict[str, pl.DataType]:
    """Column name to polars dtype of a table, in the schema's order."""
    return {column.name: getattr(pl, column.dtype)() for column in table_named(name).columns}


def frame(
    table: str, rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
) -> pl.DataFrame:
    """A DataFrame with exactly the columns and dtypes of ``table``.

    Parameters
    ----------
    table:
        Name of a table of the trace, e.g. ``"operations"``.
    rows:
        Either one mapping per row or one sequence per column.  Columns left out are
        null where the schema allows it, else zero, empty, or the value that says
        "unknown" (``cpu`` -1, ``weight`` 1).  ``operations.seq``, left out, numbers the rows of
        equal ``begin_ns`` in the order given.

    Raises
    ------
    UserError
        A column that the schema does not have, or a value that its dtype cannot hold.
    """
    dtypes = polars_schema(table)
    if isinstance(rows, Mapping):
        given = {name: list(values) for name, values in rows.items()}
        lengths = {len(values) for values in given.values()}
        if len(lengths) > 1:
            raise UserError(f"columns of different lengths {sorted(lengths)}", where=table)
        count = lengths.pop() if lengths else 0
    else:
        count = len(rows)
        names: dict[str, None] = {}
        for row in rows:
            names.update(dict.fromkeys(row))
        given = {}
        for name in names:
            default = _default(table, name) if name in dtypes else None
            given[name] = [row.get(name, default) for row in rows]
    for name in given:
        if name not in dtypes:
            raise UserError(f'unknown column "{name}"{closest(name, dtypes)}', where=table)
    columns = []
    for name, dtype in dtypes.items():
        if name not in given:
            columns.append(pl.repeat(_default(table, name), count, dtype=dtype, eager=True))
            columns[-1] = columns[-1].alias(name)
            continue
        try:
            columns.append(pl.Series(name, given[name], dtype=dtype, strict=True))
        except (TypeError, OverflowError, pl.exceptions.PolarsError) as error:
            raise UserError(f"not {dtype}: {error}", where=f"{table}.{name}") from None
    result = pl.DataFrame(columns, schema=dtypes)
    if table == "operations" and "seq" not in given:
        order = pl.int_range(pl.len(), dtype=pl.UInt32).over("begin_ns")
        result = result.with_columns(seq=order).select(list(dtypes))
    return result


def _default(table: str, name: str) -> Any:
    column = next(column for column in _TABLES[table].columns if column.name == name)
    if column.nullable:
        return None
    zero: Any = {"String": "", "Boolean": False}.get(column.dtype, 0)
    return _DEFAULTS.get((table, name), zero)


def check_columns(table: str, schema: Mapping[str, pl.DataType], where: str = "") -> None:
    """Raise a :class:`UserError` unless names and dtypes are those of the schema."""
    wanted = polars_schema(table)
    label = where or table
    for name in schema:
        if name not in wanted:
            raise UserError(
                f'unknown column "{name}"{closest(name, wanted)}',
                where=label,
                fix="import the recording again",
            )
    for name, dtype in wanted.items():
        if name not in schema:
            raise UserError(
                f'column "{name}" is missing', where=label, fix="import the recording again"
            )
        if schema[name] != dtype:
            raise UserError(
                f'column "{name}" has dtype {schema[name]}, the schema says {dtype}',
                where=label,
                fix="import the recording again",
            )


class TraceWriter:
    """Writes a trace: ``write`` any number of times, then ``close`` once.

    Use it as a context manager; leaving it without ``close``, or by an exception,
    leaves nothing behind.  Rows are appended to ``PATH.partial-PID-*/`` and renamed
    to ``PATH`` by ``close``.

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
        self._gathered: dict[str, list[pl.DataFrame]] = {}
        self._finished: set[str] = set()
        self._closed = False
        if self.path.suffix != ".mmt":
            raise UserError(
                'a trace is a directory whose name ends in ".mmt"',
                where=str(self.path),
                fix=f"name it {self.path.name or 'trace'}.mmt",
            )
        self._check_free()
        parent = self.path.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            # PID for people, the random rest for two writers in one process.
            made = tempfile.mkdtemp(prefix=f"{self.path.name}.partial-{os.getpid()}-", dir=parent)
        except OSError as error:
            raise UserError(
                f"cannot write there ({error.strerror})",
                where=str(parent),
                fix="choose another output",
            ) from None
        #: Where the tables lie until ``close``.
        self.directory = Path(made)
        mask = os.umask(0)
        os.umask(mask)
        self.directory.chmod(0o777 & ~mask)  # mkdtemp makes it private

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
            writer.close()
        self._writers.clear()
        self._gathered.clear()
        shutil.rmtree(self.directory, ignore_errors=True)
        self._closed = True

    def write(self, table: str, rows: pl.DataFrame) -> None:
        """Append rows (all columns of the schema, in any order) to a table."""
        if table in self._finished or self._closed:
            raise RuntimeError(f"the table {table} is complete")
        check_columns(table, dict(rows.schema))
        if rows.height == 0 and table in self._gathered:
            return
        parts = self._gathered.setdefault(table, [])
        parts.append(rows.select(list(polars_schema(table))))
        limit = _GATHER_ROWS if table in self._writers else HOLD_ROWS
        if sum(part.height for part in parts) >= limit:
            self._flush(table)

    def held(self, table: str) -> pl.DataFrame | None:
        """All rows of a table, where they are still in memory; None where not or never written."""
        parts = self._gathered.get(table_named(table).name)
        if table in self._writers or not parts:
            return None
        return pl.concat(parts, rechunk=False)

    def replace_held(self, table: str, rows: pl.DataFrame) -> None:
        """Put ``rows`` in the place of what ``held`` gave."""
        if self.held(table) is None:
            raise RuntimeError(f"the rows of {table} are not in memory")
        check_columns(table, dict(rows.schema))
        self._gathered[table] = [rows]

    def _flush(self, table: str) -> None:
        parts = self._gathered[table]
        if not parts:
            return
        rows = to_arrow(pl.concat(parts))
        parts.clear()
        if table not in self._writers:
            self._writers[table] = parquet_writer(
                self.directory / table_named(table).file, rows.schema
            )
        self._writers[table].write_table(rows, row_group_size=_ROW_GROUP_ROWS)

    def finish(self, table: str) -> Path | None:
        """Complete a table's Parquet file, so that it can be read; None where it has no rows."""
        file = self.directory / table_named(table).file
        parts = self._gathered.get(table)
        if table in self._finished or parts is None:
            return file if table in self._finished else None
        if table in self._writers:
            self._flush(table)
            self._writers.pop(table).close()
        else:
            pl.concat(parts).write_parquet(
                file, compression="zstd", compression_level=1, row_group_size=_ROW_GROUP_ROWS
            )
            parts.clear()
        self._finished.add(table)
        return file

    def close(self, header: Header) -> Trace:
        """Write the header and put the trace in its place; returns it opened."""
        try:
            for table in TRACE_TABLES:
                if table.required and table.name not in self._gathered:
                    self.write(table.name, frame(table.name, []))
                self.finish(table.name)
            header.tables = {
                table.name: file_facts(self.directory / table.file)
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
                shutil.rmtree(old, ignore_errors=True)
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
        self._closed = True
        return Trace.open(self.path)


def file_facts(file: Path) -> TableFile:
    """Size and CRC-32 of a file, as the header keeps them."""
    crc = size = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            crc = zlib.crc32(block, crc)
            size += len(block)
    return TableFile(size_bytes=size, crc32=crc)


def to_arrow(rows: pl.DataFrame) -> pa.Table:
    """``rows`` as Arrow with the widest readable types (no string views)."""
    return rows.to_arrow(compat_level=pl.CompatLevel.oldest())


def parquet_writer(file: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet writer as traces use it: zstd level 1 (IMPORT §3.4)."""
    return pq.ParquetWriter(
        str(file),
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in schema.names if name in _FEW_VALUES],
    )


class Trace:
    """A trace that can be read: a header and lazily read tables."""

    def __init__(
        self, header: Header, tables: Mapping[str, pl.LazyFrame], path: Path | None = None
    ) -> None:
        self.header = header
        #: The directory, or None for a trace in memory.
        self.path = path
        self._tables = dict(tables)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Trace:
        """Open the directory ``path``.

        Raises
        ------
        UserError
            It is no trace, its schema is newer, a table is missing or cannot be read,
            or a column is missing, unknown or of another dtype.
        """
        directory = Path(path)
        if not directory.is_dir() or not (directory / "header.json").is_file():
            raise UserError(*_not_a_trace(directory), where=str(directory))
        header = read_header(directory)
        tables: dict[str, pl.LazyFrame] = {}
        for table in TRACE_TABLES:
            file = directory / table.file
            if not file.is_file():
                if table.required:
                    raise UserError(
                        f"the table {table.name} is missing",
                        where=str(file),
                        fix="import the recording again",
                    )
                continue
            lazy = pl.scan_parquet(file, glob=False)
            try:
                schema = dict(lazy.collect_schema())
            except (pl.exceptions.PolarsError, OSError) as error:
                raise UserError(
                    f"not a readable Parquet file ({_first_line(error)})",
                    where=str(file),
                    fix="import the recording again",
                ) from None
            check_columns(table.name, schema, str(file))
            tables[table.name] = lazy.select(list(polars_schema(table.name)))
        return cls(header, tables, directory)

    @classmethod
    def in_memory(cls, header: Header, tables: Mapping[str, pl.DataFrame]) -> Trace:
        """A trace from frames (see :func:`frame`); tables left out are empty."""
        lazy = {}
        for name, rows in tables.items():
            check_columns(name, dict(rows.schema))
            lazy[name] = rows.select(list(polars_schema(name))).lazy()
        return cls(header, lazy)

    def table(self, name: str) -> pl.LazyFrame:
        """One table, lazily; empty where the trace does not have it."""
        wanted = table_named(name)
        found = self._tables.get(name)
        return found if found is not None else frame(wanted.name, []).lazy()

    def has(self, name: str) -> bool:
        """Whether the trace has that table."""
        return table_named(name).name in self._tables

    @property
    def operations(self) -> pl.LazyFrame:
        return self.table("operations")

    @property
    def threads(self) -> pl.LazyFrame:
        return self.table("threads")

    @property
    def vmas(self) -> pl.LazyFrame:
        return self.table("vmas")

    @property
    def schedule(self) -> pl.LazyFrame:
        return self.table("schedule")

    @property
    def locks(self) -> pl.LazyFrame:
        return self.table("locks")

    @property
    def gaps(self) -> pl.LazyFrame:
        return self.table("gaps")

    def verify(self) -> None:
        """Compare the files with the checksums in the header; a :class:`UserError` names one."""
        if self.path is None:
            return
        for table in TRACE_TABLES:
            known = self.header.tables.get(table.name)
            if table.name not in self._tables or known is None:
                continue
            file = self.path / table.file
            if file_facts(file) != known:
                raise UserError(
                    "the file is not what was written (damaged or changed)",
                    where=str(file),
                    fix="import the recording again",
                )

    def batches(
        self, name: str, columns: Sequence[str] | None = None, rows: int = 1 << 18
    ) -> Iterator[pl.DataFrame]:
        """A table in order, in frames of at most ``rows`` rows: memory stays bounded.

        A damaged file is a :class:`UserError`.
        """
        table = table_named(name)
        wanted = list(columns) if columns is not None else list(polars_schema(name))
        if name not in self._tables:
            return
        if self.path is None:
            whole = self._tables[name].select(wanted).collect()
            for first in range(0, whole.height, rows):
                yield whole.slice(first, rows)
            return
        file = self.path / table.file
        yield from read_batches(file, wanted, rows)

    def collect(self, query: pl.LazyFrame) -> pl.DataFrame:
        """Run a query over the tables; a damaged file is a :class:`UserError`."""
        try:
            return query.collect(engine="streaming")
        except (pl.exceptions.PolarsError, OSError) as error:
            if self.path is None:
                raise
            raise UserError(
                f"a table cannot be read ({_first_line(error)})",
                where=str(self.path),
                fix="import the recording again",
            ) from None

    def digest(self) -> str:
        """A hash of the whole content, for cache keys (hex, 32 digits)."""
        hasher = hashlib.blake2b(digest_size=16)
        hasher.update(self.header.to_json().encode())
        for table in TRACE_TABLES:
            if table.name not in self._tables:
                continue
            hasher.update(table.name.encode())
            if self.path is not None:
                with (self.path / table.file).open("rb") as file:
                    while block := file.read(1 << 20):
                        hasher.update(block)
            else:
                buffer = io.BytesIO()
                self.table(table.name).collect().write_ipc(buffer)
                hasher.update(buffer.getvalue())
        return hasher.hexdigest()

    def validate(self) -> None:
        """Check every rule of the schema; a :class:`UserError` names column, row and rule."""
        from mmreplay.trace.validate import validate

        validate(self)


def read_batches(file: Path, columns: list[str], rows: int) -> Iterator[pl.DataFrame]:
    """The columns of a Parquet file, in frames of at most ``rows`` rows."""
    try:
        with pq.ParquetFile(str(file)) as parquet:
            for batch in parquet.iter_batches(batch_size=rows, columns=columns):
                part = pl.from_arrow(batch)
                assert isinstance(part, pl.DataFrame)
                yield part.select(columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"not a readable Parquet file ({_first_line(error)})",
            where=str(file),
            fix="import the recording again",
        ) from None


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _not_a_trace(path: Path) -> tuple[str]:
    if not path.exists():
        return (
            "there is no such trace; import a recording: mmreplay import perf.data -o NAME.mmt",
        )
    if path.is_file():
        return (
            "is a file, not a trace directory; import it first: "
            f"mmreplay import {path.name} -o {path.stem}.mmt",
        )
    return ("is not a trace (no header.json); name the NAME.mmt directory that import wrote",)
