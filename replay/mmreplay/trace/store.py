"""The canonical trace: a directory ``NAME.mmt/`` of Parquet files and one header.

:class:`~mmreplay.trace.writer.TraceWriter` writes it, :class:`Trace` reads it lazily.
Both hold themselves to the columns of :mod:`mmreplay.schema`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmreplay.errors import UserError
from mmreplay.schema import TRACE_TABLES
from mmreplay.trace.columns import check_columns, complete, frame, polars_schema, table_named
from mmreplay.trace.header import (
    Capabilities,
    Clock,
    Event,
    Header,
    Machine,
    Probe,
    Source,
    file_facts,
    not_allowed,
    plain_release,
    read_header,
)

if TYPE_CHECKING:  # loading polars takes 0.2 s, pyarrow 0.07 s: only where rows are wanted
    import polars as pl
    import pyarrow as pa

__all__ = [
    "Capabilities",
    "Clock",
    "Event",
    "Header",
    "Machine",
    "Probe",
    "Source",
    "Trace",
    "frame",
    "plain_release",
]


def _unreadable() -> tuple[type[Exception], ...]:
    """What pyarrow raises over a damaged file (ValueError: names that are no UTF-8)."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, ValueError, KeyError)


#: Arrow's names of types -> polars' (others: as Arrow says it).
_DTYPES: Final = {
    **{f"{sign}int{bits}": f"{sign.upper()}Int{bits}" for sign in "u" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"Int{bits}" for bits in (8, 16, 32, 64)},
    "string": "String",
    "large_string": "String",
    "string_view": "String",
    "bool": "Boolean",
    "float": "Float32",
    "double": "Float64",
}


def _stored_columns(file: Path) -> tuple[dict[str, str], int]:
    """Column name to dtype of a Parquet file, and its number of rows."""
    import pyarrow.parquet as pq

    with _reading(file), pq.ParquetFile(str(file)) as parquet:
        schema = parquet.schema_arrow
        rows = parquet.metadata.num_rows
    return {field.name: _DTYPES.get(str(field.type), str(field.type)) for field in schema}, rows


class Trace:
    """A trace that can be read: a header and lazily read tables."""

    def __init__(
        self, header: Header, tables: Mapping[str, pl.DataFrame | int], path: Path | None = None
    ) -> None:
        self.header = header
        #: The directory, or None for a trace in memory.
        self.path = path
        # A table's rows where they are in memory, else their number.
        self._tables = dict(tables)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Trace:
        """Open the directory ``path``; ``verify=False`` reads no file, as its writer may do.

        Raises
        ------
        UserError
            It is no trace, its schema is newer, a table is missing, cannot be read or is not
            what was written, or a column is missing, unknown or of another dtype.
        """
        directory = Path(path)
        if not directory.is_dir() or not (directory / "header.json").is_file():
            raise UserError(*_not_a_trace(directory), where=str(directory))
        header = read_header(directory)
        tables: dict[str, pl.DataFrame | int] = {}
        for table in TRACE_TABLES:
            file = directory / table.file
            if not file.is_file():
                if table.required or table.name in header.tables:
                    raise UserError(
                        f"the table {table.name} is missing",
                        where=str(file),
                        fix="import the recording again",
                    )
                continue
            columns, tables[table.name] = _stored_columns(file)
            check_columns(table.name, columns, str(file))
        opened = cls(header, tables, directory)
        if verify:
            opened.verify()
        return opened

    @classmethod
    def in_memory(cls, header: Header, tables: Mapping[str, pl.DataFrame]) -> Trace:
        """A trace from frames (see :func:`frame`); tables left out are empty."""
        held: dict[str, pl.DataFrame | int] = {}
        for name, rows in tables.items():
            check_columns(name, dict(rows.schema))
            held[name] = complete(name, rows, rows.columns)
        return cls(header, held)

    def rows(self, name: str) -> int:
        """How many rows a table has; none of them is read."""
        found = self._tables.get(table_named(name).name, 0)
        return found if isinstance(found, int) else found.height

    def table(self, name: str) -> pl.LazyFrame:
        """One table, lazily; empty where the trace does not have it."""
        import polars as pl

        wanted = table_named(name)
        found = self._tables.get(wanted.name)
        if found is None:
            return frame(wanted.name, []).lazy()
        if isinstance(found, pl.DataFrame):
            return found.lazy()
        assert self.path is not None
        lazy = pl.scan_parquet(self.path / wanted.file, glob=False)
        return complete(wanted.name, lazy, lazy.collect_schema().names())

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
    def wakeups(self) -> pl.LazyFrame:
        return self.table("wakeups")

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
            whole = self.table(name).select(wanted).collect()
            for first in range(0, whole.height, rows):
                yield whole.slice(first, rows)
            return
        file = self.path / table.file
        yield from read_batches(file, wanted, rows)

    def arrow_batches(
        self, name: str, columns: Sequence[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        """As :meth:`batches`, in Arrow's form, without columns that the file lacks; at least one.

        They are decoded as the reader asks for them, on its own thread.
        """
        file = None if self.path is None else self.path / table_named(name).file
        if file is not None and name in self._tables:
            yield from _arrow_batches(file, columns, rows)
            return
        import pyarrow as pa

        table = self.table(name).select(columns).collect().to_arrow()
        batches = table.combine_chunks().to_batches(rows)
        yield from batches or [pa.RecordBatch.from_pylist([], table.schema)]

    def collect(self, query: pl.LazyFrame) -> pl.DataFrame:
        """Run a query over the tables; a damaged file is a :class:`UserError`."""
        import polars as pl

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
        import hashlib

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

        self.verify()
        validate(self)


def read_batches(file: Path, columns: list[str], rows: int) -> Iterator[pl.DataFrame]:
    """The columns of a Parquet file, in frames of at most ``rows`` rows."""
    import polars as pl
    import pyarrow.parquet as pq

    with _reading(file), pq.ParquetFile(str(file)) as parquet:
        have = set(parquet.schema_arrow.names)
        here = [name for name in columns if name in have]
        dtypes = polars_schema(file.stem) if len(here) < len(columns) else {}
        missing = [pl.lit(None, dtypes[name]).alias(name) for name in columns if name not in have]
        for batch in parquet.iter_batches(batch_size=rows, columns=here):
            part = pl.from_arrow(batch)
            assert isinstance(part, pl.DataFrame)
            yield part.with_columns(missing).select(columns)


def _arrow_batches(file: Path, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _reading(file), pq.ParquetFile(str(file)) as parquet:
        schema = parquet.schema_arrow
        here = [name for name in columns if name in schema.names]
        if parquet.metadata.num_rows == 0:
            yield pa.RecordBatch.from_pylist([], pa.schema([schema.field(n) for n in here]))
        yield from parquet.iter_batches(batch_size=rows, columns=here, use_threads=False)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Tell a file that is damaged from a bug."""
    try:
        yield
    except PermissionError:
        raise not_allowed(file) from None
    except _unreadable() as error:
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
        import shlex

        return (
            "is a file, not a trace directory; import it first: "
            + shlex.join(["mmreplay", "import", path.name, "-o", f"{path.stem}.mmt"]),
        )
    return ("is not a trace (no header.json); name the NAME.mmt directory that import wrote",)
