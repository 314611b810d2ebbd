"""Kernels of distributions: ``models/vendors.toml``, by what their release looks like."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from mmreplay.errors import UserError, closest
from mmreplay.resources import models_dir

_KEYS: Final = ("name", "match", "tells", "known", "floor", "models", "sources")


@dataclass(frozen=True, slots=True)
class Vendor:
    """One row of the table; see the file's head for what the fields mean."""

    name: str
    match: re.Pattern[str]
    tells: bool
    known: str
    floor: str
    models: Mapping[str, str]  # "5.10" → model
    sources: tuple[str, ...]


def vendor_of(release: str) -> Vendor | None:
    """The vendor that a release's looks give away; None for an upstream kernel's."""
    text = release.strip().lower()
    return next((vendor for vendor in vendors() if vendor.match.search(text)), None)


@cache
def vendors() -> tuple[Vendor, ...]:
    """The shipped table, in its order."""
    return read_vendors(models_dir("vendors.toml"))


def read_vendors(path: Path) -> tuple[Vendor, ...]:
    """Read a table.  Raises UserError where it is not one."""
    where = path.name
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read the table of vendors: {error}", where=where) from None
    rows = data.get("vendor", [])
    if not isinstance(rows, list):
        raise UserError("vendor is not a list of tables", where=where, fix="write [[vendor]]")
    return tuple(_vendor(row, where) for row in rows)


def _vendor(row: Any, where: str) -> Vendor:
    if not isinstance(row, dict):
        raise UserError("vendor is not a list of tables", where=where, fix="write [[vendor]]")
    name = str(row.get("name", "?"))
    for key in row:
        if key not in _KEYS:
            raise UserError(f'{name}: unknown key "{key}"{closest(key, _KEYS)}', where=where)
    for key in ("name", "match", "tells", "sources"):
        if key not in row:
            raise UserError(f'{name}: missing key "{key}"', where=where)
    try:
        match = re.compile(str(row["match"]))
    except re.error as error:
        raise UserError(f"{name}: match is no regular expression: {error}", where=where) from None
    return Vendor(
        name=name,
        match=match,
        tells=row["tells"] is True,
        known=str(row.get("known", "")),
        floor=str(row.get("floor", "")),
        models={str(k): str(v) for k, v in dict(row.get("models", {})).items()},
        sources=tuple(map(str, row["sources"])),
    )
