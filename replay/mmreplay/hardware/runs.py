"""RUNS: what was measured, as one Parquet file with its provenance inside."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmreplay.errors import UserError, require_no_device
from mmreplay.hardware.disturbance import chosen
from mmreplay.schema import RUNS, RUNS_SCHEMA

if TYPE_CHECKING:
    import polars as pl

_KEY: Final = b"mmreplay_runs"
#: A point: what is measured again and again.
POINT: Final = ("workload", "path", "threads", "placement")
#: Columns that the first files of this schema did not have: null there.
_LATER: Final = frozenset({"line_before_ns", "line_after_ns", "loop_ratio", "disturbed"})
_AGAIN: Final = "measure again with this version"


@dataclass(frozen=True, slots=True)
class Runs:
    """Rows as :data:`mmreplay.schema.RUNS` has them, and where they come from.

    ``machine``: :func:`mmreplay.hardware.facts.machine_facts`.  ``workloads``: name → sha256
    of the definition's text.  ``not_measured``: point in words → why.  ``complete``: it
    was not interrupted.
    """

    rows: list[dict[str, Any]]
    machine: dict[str, Any]
    workloads: dict[str, str] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    complete: bool = True
    version: str = ""
    created: str = ""  # the date, UTC

    def frame(self) -> pl.DataFrame:
        """The rows with the schema's dtypes."""
        import polars as pl

        schema = {c.name: getattr(pl, c.dtype)() for c in RUNS.columns}
        return pl.DataFrame(self.rows, schema=schema, orient="row")


def check_output(output: str) -> Path:
    """``output`` as a path that can be written: refused before anything is measured."""
    path = Path(output)
    if path.suffix != ".parquet":
        raise UserError(
            f'"{output}" is not a .parquet file', where="-o", fix="name it RUNS.parquet"
        )
    require_no_device(path)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(
            f"cannot write into {path.parent}",
            where="-o",
            fix="choose a directory that you can write to",
        )
    return path


def write_runs(runs: Runs, path: Path) -> None:
    """Write the file, whole or not at all."""
    import pyarrow.parquet as pq

    table = runs.frame().to_arrow()
    header = {
        "schema": RUNS_SCHEMA,
        "version": runs.version,
        "created": runs.created,
        "complete": runs.complete,
        "machine": runs.machine,
        "workloads": runs.workloads,
        "not_measured": runs.not_measured,
    }
    table = table.replace_schema_metadata({_KEY: json.dumps(header).encode()})
    fd, name = tempfile.mkstemp(prefix=".runs-", dir=path.parent)
    os.close(fd)
    beside = Path(name)
    try:
        pq.write_table(table, beside, compression="zstd")
        beside.chmod(0o644)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def read_runs(path: Path) -> Runs:
    """The runs in a file.

    Raises
    ------
    UserError
        Not a RUNS file, one of another schema, or one with other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.is_dir():
        raise UserError("a folder, not a RUNS file", where=str(path), fix=_AGAIN)
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path), fix="measure it first") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"not a Parquet file ({str(error).splitlines()[0]})", where=str(path), fix=_AGAIN
        ) from None
    metadata = table.schema.metadata or {}
    if _KEY not in metadata:
        raise UserError("not a RUNS file of mmreplay measure", where=str(path), fix=_AGAIN)
    header = _header(metadata[_KEY], path)
    missing = [c for c in RUNS.columns if c.name not in table.column_names]
    for column in missing:
        if column.name not in _LATER:
            raise UserError(f"column {column.name} is missing", where=str(path), fix=_AGAIN)
    known = [c for c in RUNS.columns if c not in missing]
    for column in known:
        kind = _ARROW[column.dtype]
        values = table[column.name]
        if str(values.type) not in (kind, f"large_{kind}"):
            raise UserError(
                f"column {column.name} is {values.type}, not {kind}", where=str(path), fix=_AGAIN
            )
        if values.null_count and not column.nullable:
            raise UserError(
                f"{values.null_count:,} rows have no {column.name}", where=str(path), fix=_AGAIN
            )
    rows = table.select([c.name for c in known]).to_pylist()
    fewest = min((row["threads"] for row in rows), default=1)
    if fewest < 1:
        raise UserError(f"a row of {fewest} threads", where=str(path), fix=_AGAIN)
    nothing = dict.fromkeys(column.name for column in missing)
    return Runs(
        rows=[row | nothing for row in rows],
        machine=header["machine"],
        workloads=header["workloads"],
        not_measured=header["not_measured"],
        complete=header["complete"],
        version=header["version"],
        created=header["created"],
    )


#: Name in Arrow of a dtype of the schema.
_ARROW: Final = {"String": "string", "Int32": "int32", "Int64": "int64", "Float64": "double"}
_HEADER: Final = {
    "machine": dict,
    "workloads": dict,
    "not_measured": dict,
    "complete": bool,
    "version": str,
    "created": str,
}


def _header(text: bytes, path: Path) -> dict[str, Any]:
    """What the metadata says; refused where it is damaged or of another schema."""
    try:
        header = json.loads(text)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise UserError("its metadata are damaged", where=str(path), fix=_AGAIN)
    if header.get("schema") != RUNS_SCHEMA:
        raise UserError(
            f"RUNS schema {header.get('schema')}; this mmreplay reads {RUNS_SCHEMA}",
            where=str(path),
            fix=_AGAIN,
        )
    for name, kind in _HEADER.items():
        if not isinstance(header.get(name), kind):
            raise UserError(f'its metadata have no "{name}"', where=str(path), fix=_AGAIN)
    return header


def spread_ratio(values: Sequence[float]) -> float | None:
    """Interquartile range by the median; None for one value."""
    if len(values) < 2:
        return None
    middle = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle if middle else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per point, in the order of first appearance sorted by workload, path, threads.

    ``ops_per_s`` and ``fairness`` are medians over the repetitions, without disturbed ones where
    enough remain (:func:`~mmreplay.hardware.disturbance.chosen`); ``spread_ratio`` see
    :func:`spread_ratio`.  Traces have ``makespan_s`` and ``useful_work`` too.
    """
    points: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        points.setdefault(tuple(row[name] for name in POINT), []).append(row)
    found = []
    for key in sorted(points):
        group = chosen(points[key])
        rates = [row["ops_per_s"] for row in group]
        found.append(
            {
                **dict(zip(POINT, key, strict=True)),
                "ops_per_s": statistics.median(rates),
                "spread_ratio": spread_ratio(rates),
                "repetitions": len(group),
                "fairness": _median([row["fairness"] for row in group]),
                "path_check": group[0]["path_check"],
                **{
                    name: statistics.median(row[name] for row in group)
                    for name in ("makespan_s", "useful_work")
                    if group[0][name] is not None
                },
            }
        )
    return found
