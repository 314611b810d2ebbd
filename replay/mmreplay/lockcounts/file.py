"""A file of lock counts: one row for each kernel and phase, as CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmreplay.errors import UserError, closest
from mmreplay.workloads.script import Given

#: What is compared: acquisitions of mmap_lock for reading and writing, downgrades, VMA locks
#: taken for reading by faults and calls, VMA write marks that did work.
COLUMNS: Final = (
    "mmap_lock_read",
    "mmap_lock_write",
    "write_downgrade",
    "vma_lock_ok",
    "vma_start_write_slow",
)
_NUMBERS: Final = ("ops", "faults_user", "faults_kernel", *COLUMNS, "majflt")
#: Columns that may be empty or missing: not every kernel lets them be counted.
_OPTIONAL: Final = ("faults_user", "faults_kernel", "vma_lock_ok", "vma_start_write_slow", "majflt")
_CALLS: Final = re.compile(r"read\(\) calls/op=([\d.]+)")
_LARGEST: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class Counted:
    """One row: ``counts`` by column, None where the kernel could not be asked."""

    kernel: str
    phase: str
    line: int
    ops: int
    counts: Mapping[str, int | None]
    faults_user: int | None
    faults_kernel: int | None
    major: int | None
    reads_per_op: int | None
    notes: str = ""


def read_counts(path: str | Path) -> dict[str, dict[str, Counted]]:
    """Rows by kernel and phase, in the file's order.

    Raises
    ------
    UserError
        Unreadable, not CSV with the needed columns, a number that is none, a row twice,
        or no rows.
    """
    where = str(path)
    found: dict[str, dict[str, Counted]] = {}
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            _check_header(reader.fieldnames or (), where)
            for raw in reader:
                row = _row(raw, f"{where}:{reader.line_num}", reader.line_num)
                rows = found.setdefault(row.kernel, {})
                if row.phase in rows:
                    raise UserError(
                        f"{row.kernel} {row.phase} stands here again",
                        where=f"{where}:{reader.line_num}",
                        fix=f"its first row is in line {rows[row.phase].line}; keep one",
                    )
                rows[row.phase] = row
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot read the counts: {reason}",
            where=where,
            fix="give the CSV file that mmreplay locks verify -o wrote, or one like it",
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"not a CSV file: {error}", where=where, fix="see datasets/lockcounts/lockcounts.csv"
        ) from None
    if not found:
        raise UserError("no rows", where=where, fix="see datasets/lockcounts/lockcounts.csv")
    return found


def _check_header(names: Iterable[str], where: str) -> None:
    known = list(names)
    for name in ("kernel", "phase", *_NUMBERS):
        if name not in known and name not in _OPTIONAL:
            raise UserError(
                f'no column "{name}"{closest(name, known)}',
                where=f"{where}:1",
                fix="see datasets/lockcounts/lockcounts.csv",
            )


def _row(raw: Mapping[str | None, str | None], where: str, line: int) -> Counted:
    if None in raw or None in raw.values():
        raise UserError("the row has not as many fields as the header", where=where)
    text = {str(key): str(value).strip() for key, value in raw.items()}
    numbers = {name: _number(text.get(name, ""), name, where) for name in _NUMBERS}
    for name in ("kernel", "phase"):
        if not text[name]:
            raise UserError(f"the {name} is empty", where=where)
    ops = numbers["ops"]
    calls = _CALLS.search(text.get("notes", ""))
    return Counted(
        kernel=text["kernel"],
        phase=text["phase"],
        line=line,
        ops=ops if ops is not None else 0,
        counts={name: numbers[name] for name in COLUMNS},
        faults_user=numbers["faults_user"],
        faults_kernel=numbers["faults_kernel"],
        major=numbers["majflt"],
        reads_per_op=min(round(float(calls.group(1))), 1 << 20) if calls else None,
        notes=text.get("notes", ""),
    )


def _number(text: str, name: str, where: str) -> int | None:
    if text == "" and name in _OPTIONAL:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) > _LARGEST:
        raise UserError(f'{name} "{text}" is no count', where=where, fix="a whole number from 0")
    return int(text)


def given(rows: Mapping[str, Counted]) -> dict[str, Given]:
    """What the rows of one kernel say besides locks, for the phases' traces."""
    out = {}
    for phase, row in rows.items():
        child = rows.get(f"{phase}:child")
        out[phase] = Given(
            ops=row.ops,
            faults_user=row.faults_user,
            faults_kernel=row.faults_kernel,
            major=row.major,
            reads_per_op=row.reads_per_op,
            child_faults_user=child.faults_user if child else None,
            child_faults_kernel=child.faults_kernel if child else None,
        )
    return out
