"""Runs that others measured, as RUNS: what their files say, and nothing that they do not.

=====================  =========================================================================
will-it-scale CSV      of ``runtest.py``: ``tasks,processes,processes_idle,threads,...``
will-it-scale output   of ``NAME_threads -t N``, one or more in a file, as mmtests keeps them too
pft output             of ``pft``, as mmtests keeps it: size, threads, cache line, user, system and
                       wall time, faults per CPU second, faults per second
mmtests report         of ``compare-mmtests``: ``Hmean faults/sec-4 123.45 ( 0.00%)``
CSV with a mapping     any; a TOML file says which column is which
=====================  =========================================================================
"""

from __future__ import annotations

import csv
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mmreplay.errors import UserError, closest
from mmreplay.hardware.runs import Runs
from mmreplay.schema import RUNS

_COLUMNS: Final = {column.name: column for column in RUNS.columns}
_GIVEN: Final = "as the others chose"
_NOT_CHECKED: Final = "not checked: measured by others"
_HEAD: Final = 1 << 16
_MOST_BYTES: Final = 1 << 26
_MOST_THREADS: Final = 1 << 20
#: Larger numbers are no measurements.
_MOST: Final = 1e18
_MOST_OF: Final = {"Int32": 1 << 31, "Int64": 1 << 62}

_WIS_CSV: Final = re.compile(r"^tasks,processes,processes_idle,threads,threads_idle")
_WIS_SAMPLE: Final = re.compile(r"^min:(\d{1,15}) max:(\d{1,15}) total:(\d{1,15})")
#: page_fault1_threads -t 4, page_fault1_threads-4.log, page_fault1-threads-4
_WIS_NAME: Final = re.compile(
    r"([a-z][a-z0-9_]*?[0-9])[_-](threads|processes)(?:[ _-]+(?:-t *)?(\d+))?"
)
_NUMBER: Final = r"(\d{1,15}(?:\.\d+)?)"
_PFT: Final = re.compile(
    rf"^\s*[\d.]+[kKMG]?\s+(\d{{1,8}})\s+\d+\s+{_NUMBER}s?\s+{_NUMBER}s?\s+{_NUMBER}s?\s+"
    rf"{_NUMBER}\s+{_NUMBER}\s*$"
)
_REPORT: Final = re.compile(r"^[HA]mean\s+(\S+)-(\d{1,8})\s+(.*)$")
#: What a report of pft tells besides faults per second: rates of CPU time, and seconds.
_NO_RATES: Final = ("faults/cpu", "user", "system", "elapsed")
#: ``123.45 (   0.00%)``; with ``*   1.09%*`` where the difference is significant.
_VALUE: Final = re.compile(rf"{_NUMBER}\s*(?:\(\s*-?[\d.]+%\)|\*\s*-?[\d.]+%\*)")


@dataclass(slots=True)
class Mapping:
    """What a mapping file says.

    ``columns``: RUNS column → column of the CSV.  ``values``: RUNS column → value of all rows.
    ``scale``: RUNS column → factor.  ``machine``: provenance (cpu_model, kernel, source, …).
    ``column``: which kernel of an mmtests report.
    """

    columns: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    column: str | None = None


def read_mapping(path: Path) -> Mapping:
    """The mapping in a TOML file.

    Raises
    ------
    UserError
        It cannot be read, or names what RUNS does not have.
    """
    where = str(path)
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})", where=where, fix="check the name"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"is no TOML: {error}", where=where, fix="see docs/import.md") from None
    mapping = Mapping(column=found.pop("column", None))
    for section in ("columns", "values", "scale", "machine"):
        part = found.pop(section, {})
        if not isinstance(part, dict):
            raise UserError(f'"{section}" is no table', where=where, fix=f"write [{section}]")
        setattr(mapping, section, part)
    if found:
        raise UserError(
            f'"{next(iter(found))}" means nothing here',
            where=where,
            fix="columns, values, scale, machine and column do",
        )
    for name in (*mapping.columns, *mapping.values, *mapping.scale):
        if name not in _COLUMNS:
            raise UserError(
                f'RUNS has no column "{name}"{closest(name, _COLUMNS)}',
                where=where,
                fix="see docs/import.md",
            )
    for section, part, fits in (
        ("columns", mapping.columns, lambda _, value: isinstance(value, str)),
        ("values", mapping.values, _fits),
        ("scale", mapping.scale, lambda _, value: _is_number(value)),
        ("machine", mapping.machine, lambda _, value: isinstance(value, str | int | float)),
    ):
        for name, value in part.items():
            if not fits(name, value):
                raise UserError(
                    f"{section}.{name} cannot be {value}", where=where, fix="correct it"
                )
    return mapping


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and abs(value) < _MOST
    )


def _fits(name: str, value: Any) -> bool:
    """Whether a value may stand in the column of RUNS."""
    dtype = _COLUMNS[name].dtype
    if dtype == "String":
        return isinstance(value, str)
    if not _is_number(value):
        return False
    return dtype.startswith("Float") or (int(value) == value and abs(value) < _MOST_OF[dtype])


def read_foreign(paths: Sequence[Path], mapping: Mapping | None = None) -> Runs:
    """The runs in files of others.

    Raises
    ------
    UserError
        One is of no known format, or says too little.
    """
    told = mapping or Mapping()
    rows: list[dict[str, Any]] = []
    sources = []
    seen: dict[tuple[Any, ...], int] = {}
    for path in paths:
        form, found = _rows(path, told)
        sources.append(f"{path.name} ({form})")
        for row in found:
            rows.append(_finished(row, told, str(path), len(rows), seen))
    machine = {"kernel": None, "cpu_model": None, "source": ", ".join(sources), **told.machine}
    return Runs(rows=rows, machine=machine)


def _rows(path: Path, told: Mapping) -> tuple[str, list[dict[str, Any]]]:
    """The format, and what the file says."""
    where = str(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError("is too large for a table of runs", where=where, fix="check the name")
        text = path.read_bytes().decode("utf-8-sig", "replace")
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})", where=where, fix="check the name"
        ) from None
    form, reader = "CSV with a mapping", _MAPPED
    if not told.columns:
        head = text[:_HEAD]
        known = ((name, read) for name, (sniff, read) in _FORMS.items() if sniff(head))
        form, reader = next(known, ("", _MAPPED))
    if not form:
        raise UserError(
            "no measured runs in a known format",
            where=where,
            fix="say by --mapping MAPPING.toml which column of a CSV is which (docs/import.md)",
        )
    try:
        rows = reader(text, path, told)
    except csv.Error as error:
        raise UserError(f"is no CSV: {error}", where=where, fix="check the name") from None
    if not rows:
        raise UserError(f"no run is in it ({form})", where=where, fix="give it as it was written")
    return form, rows


def _finished(
    row: dict[str, Any],
    told: Mapping,
    where: str,
    order: int,
    seen: dict[tuple[Any, ...], int],
) -> dict[str, Any]:
    """A row with all columns of RUNS: its repetition numbered, what is not known null."""
    full: dict[str, Any] = {
        **dict.fromkeys(_COLUMNS),
        "path": "vma",  # pages are touched, whatever the kernel locks for that
        "placement": _GIVEN,
        "path_check": _NOT_CHECKED,
        **{name: value for name, value in row.items() if value is not None},
        **told.values,
        "order": order,
    }
    for name in ("workload", "threads", "ops_per_s"):
        if full[name] is None:
            raise UserError(
                f"the file does not say {_WORDS[name]}",
                where=where,
                fix=f"say it in a mapping file: [values] {name} = ...",
            )
    for name, factor in told.scale.items():
        if full[name] is not None and _is_number(full[name]):
            full[name] = type(full[name])(full[name] * factor)
    rate, threads = float(full["ops_per_s"]), full["threads"]
    if not 0 <= rate < _MOST or not 0 < threads <= _MOST_THREADS:
        raise UserError(
            f"{rate:g} operations per second by {threads} threads cannot be",
            where=where,
            fix="check the mapping, and that the file is whole",
        )
    point = (full["workload"], full["path"], threads, full["placement"])
    if full["repetition"] is None:
        full["repetition"] = seen.get(point, 0)
    seen[point] = seen.get(point, 0) + 1
    return full


_WORDS: Final = {
    "workload": "which workload ran",
    "threads": "how many threads ran",
    "ops_per_s": "how many operations per second",
}


def _workload(name: str, mode: str) -> str:
    """The name of a definition; processes share no address space, and are none of them."""
    return name if mode == "threads" else f"{name}_processes"


def _will_it_scale_csv(text: str, path: Path, told: Mapping) -> list[dict[str, Any]]:
    rows = []
    reader = csv.DictReader(text.splitlines())
    for record in reader:
        tasks = _integer(record.get("tasks"))
        if not tasks:  # the line "0,0,100,0,100,0" is for the plot
            continue
        for mode in ("threads", "processes"):
            rate = _integer(record.get(mode))
            if rate is not None and rate >= 0:  # -1: it failed
                name = _workload(path.name.split(".")[0], mode)
                rows.append({"workload": name, "threads": tasks, "ops_per_s": float(rate)})
    return rows


def _will_it_scale(text: str, path: Path, told: Mapping) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    named = _WIS_NAME.search(path.name)
    warming = False
    for line in text.splitlines():
        sample = _WIS_SAMPLE.match(line)
        if sample and not warming:
            low, high, total = (int(found) for found in sample.groups())
            # It prints the counts of each second.
            row: dict[str, Any] = {
                "ops_per_s": float(total),
                "ops": total,
                "window_s": 1.0,
                "thread_min_per_s": float(low),
                "thread_max_per_s": float(high),
            }
            if named:
                row["workload"] = _workload(named[1], named[2])
                row["threads"] = _integer(named[3])
            rows.append(row)
        elif line.strip() in ("warmup", "measurement"):
            warming = line.strip() == "warmup"
        elif not sample:
            named = _WIS_NAME.search(line) or named
    return rows


def _pft(text: str, path: Path, told: Mapping) -> list[dict[str, Any]]:
    rows = []
    for line in text.splitlines():
        found = _PFT.match(line)
        if found:
            user_s, system_s, wall_s, _, rate = (float(found[k]) for k in range(2, 7))
            rows.append(
                {
                    "workload": "pft",
                    "threads": int(found[1]),
                    "ops_per_s": rate,
                    "user_s": user_s,
                    "system_s": system_s,
                    "window_s": wall_s,
                }
            )
    return rows


def _mmtests(text: str, path: Path, told: Mapping) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    heads: list[list[str]] = []
    kernels: list[str] = []
    for line in text.splitlines():
        found = _REPORT.match(line.strip())
        if not found:
            if not rows and line.split() and not _VALUE.search(line):
                heads.append(line.split())
            continue
        values = [float(value) for value in _VALUE.findall(found[3])]
        if not values:
            continue
        if not rows:
            parts = [head for head in heads[-2:] if len(head) == len(values)]
            kernels = ["-".join(words) for words in zip(*parts, strict=True)]
        at = _which(kernels, len(values), told.column, str(path))
        operation = found[1]
        if operation in _NO_RATES:
            continue
        named = _WIS_NAME.search(operation)
        name = _workload(named[1], named[2]) if named else operation
        rows.append(
            {
                "workload": "pft" if operation == "faults/sec" else name,
                "threads": int(found[2]),
                "ops_per_s": values[at],
            }
        )
    return rows


def _which(kernels: list[str], count: int, wanted: str | None, where: str) -> int:
    """The column of a report that is wanted."""
    if wanted is None and count == 1:
        return 0
    found = [at for at, name in enumerate(kernels) if wanted is not None and wanted in name]
    if len(found) == 1 and found[0] < count:
        return found[0]
    names = ", ".join(kernels) or f"{count} without names"
    raise UserError(
        f"the report compares several kernels ({names})",
        where=where,
        fix='name one in a mapping file: column = "part of its name"',
    )


def _mapped(text: str, path: Path, told: Mapping) -> list[dict[str, Any]]:
    where = str(path)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    first = lines[0] if lines else ""
    delimiter = max(",;\t", key=first.count)
    reader = csv.DictReader(lines, delimiter=delimiter)
    names = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    for name in told.columns.values():
        if name not in names:
            raise UserError(
                f'there is no column "{name}"{closest(name, names)}',
                where=where,
                fix="correct the mapping",
            )
    rows = []
    for number, record in enumerate(reader, 2):
        row: dict[str, Any] = {}
        for name, source in told.columns.items():
            raw = (record.get(source) or "").strip()
            if raw:
                row[name] = _typed(name, raw, f"{where}: row {number}")
        rows.append(row)
    return rows


def _typed(name: str, raw: str, where: str) -> Any:
    dtype = _COLUMNS[name].dtype
    if dtype == "String":
        return raw
    try:
        value = float(raw.replace(" ", "").replace("_", ""))
    except ValueError:
        value = math.nan
    if not _fits(name, value):
        raise UserError(f'"{raw[:40]}" cannot be {name}', where=where, fix="check the mapping")
    return value if dtype.startswith("Float") else int(value)


def _integer(raw: str | None) -> int | None:
    digits = (raw or "").strip()
    return int(digits) if re.fullmatch(r"-?\d{1,15}", digits) else None


_Reader = Callable[[str, Path, Mapping], list[dict[str, Any]]]
_MAPPED: Final[_Reader] = _mapped


def _any_line(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    def known(head: str) -> bool:
        return any(pattern.match(line) for line in _lines(head))

    return known


def _lines(head: str) -> Iterable[str]:
    return (line.strip() for line in head.splitlines())


_FORMS: Final[dict[str, tuple[Callable[[str], Any], _Reader]]] = {
    "will-it-scale CSV": (_WIS_CSV.match, _will_it_scale_csv),
    "will-it-scale output": (_any_line(_WIS_SAMPLE), _will_it_scale),
    "pft output": (_any_line(_PFT), _pft),
    "mmtests report": (_any_line(_REPORT), _mmtests),
}
