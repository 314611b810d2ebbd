"""The rows of a trace's tables, as polars and as Arrow see them.

The columns are those of :mod:`mmreplay.schema`; polars and pyarrow are loaded where rows are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mmreplay.errors import UserError, closest
from mmreplay.schema import TRACE_TABLES, Table

if TYPE_CHECKING:  # loading polars takes 0.2 s, pyarrow 0.07 s: only where rows are wanted
    import polars as pl
    import pyarrow as pa

_TABLES: Final = {table.name: table for table in TRACE_TABLES}
_ARROW: Final = {"String": "large_string", "Boolean": "bool_"}  # others: in lower case
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
    import polars as pl

    return {column.name: getattr(pl, column.dtype)() for column in table_named(name).columns}


def arrow_schema(name: str) -> pa.Schema:
    """The columns of a table as they lie in its Parquet file."""
    import pyarrow as pa

    return pa.schema(
        pa.field(
            column.name,
            getattr(pa, _ARROW.get(column.dtype, column.dtype.lower()))(),
            nullable=column.nullable,
        )
        for column in table_named(name).columns
    )


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
    import polars as pl

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


def check_columns(table: str, schema: Mapping[str, object], where: str = "") -> None:
    """Raise a :class:`UserError` unless names and dtypes (by polars' names) are the schema's.

    Columns that were added later may be missing.
    """
    wanted = {column.name: column.dtype for column in table_named(table).columns}
    later = {column.name for column in table_named(table).columns if column.later}
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
            if name in later:
                continue
            raise UserError(
                f'column "{name}" is missing', where=label, fix="import the recording again"
            )
        if str(schema[name]) != dtype:
            raise UserError(
                f'column "{name}" has dtype {schema[name]}, the schema says {dtype}',
                where=label,
                fix="import the recording again",
            )


_Rows = TypeVar("_Rows", "pl.DataFrame", "pl.LazyFrame")


def complete(table: str, rows: _Rows, have: Sequence[str]) -> _Rows:
    """All columns of ``table`` in the schema's order; those that are missing are null."""
    import polars as pl

    return rows.select(
        pl.col(name) if name in have else pl.lit(None, dtype).alias(name)
        for name, dtype in polars_schema(table).items()
    )


def to_arrow(name: str, rows: pl.DataFrame) -> pa.Table:
    """``rows`` as the table ``name`` lies in its file."""
    import polars as pl

    return rows.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(arrow_schema(name))
