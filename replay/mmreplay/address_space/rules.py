"""VMA rules of a kernel range: ``models/vma/*.toml`` to one integer vector.

A file has ``name``, ``first_release`` and ``last_release`` (``""``: open end), and one ``[rules]``
table whose keys are those of :data:`KEYS`; a rule is a table ``{value = ..., source = "..."}``.
Unknown keys, missing rules and values out of range are :class:`UserError` with the closest word.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.errors import UserError, closest
from mmreplay.resources import models_dir


class Rule(IntEnum):
    """Index into the rules vector."""

    STACK_GUARD_PAGES = 0
    ANON_MERGE = 1
    THP_ALIGN_ANON = 2
    THP_ALIGN_FILE = 3
    STACK_NOHUGEPAGE = 4
    MPROTECT_UNACCOUNTS = 5
    MREMAP_MANY_VMAS = 6
    COPY_KEEPS_ANON_VMA = 7
    MREMAP_SHRINK_CHECKS_FIRST = 8
    N = 9


@dataclass(frozen=True, slots=True)
class _Key:
    index: Rule
    words: tuple[str, ...]  # allowed words, whose position is the value; empty: an integer
    low: int = 0
    high: int = 1 << 20


_BOOL: Final = ("false", "true")

#: Every rule: key in the file, its values, and where it is used.
KEYS: Final[dict[str, _Key]] = {
    # pages kept free below a stack (mm/mmap.c:stack_guard_gap)
    "stack_guard_pages": _Key(Rule.STACK_GUARD_PAGES, ()),
    # which anon_vmas of neighbours may become one (is_mergeable_anon_vma)
    "anon_merge": _Key(Rule.ANON_MERGE, ("singular", "uncowed_parents")),
    # which private anonymous mappings without a hint are placed on 2 MiB boundaries
    "thp_align_anonymous": _Key(Rule.THP_ALIGN_ANON, ("none", "large", "multiples")),
    # the same for mappings of regular files (file systems that use thp_get_unmapped_area)
    "thp_align_file": _Key(Rule.THP_ALIGN_FILE, _BOOL),
    # MAP_STACK sets VM_NOHUGEPAGE
    "map_stack_nohugepage": _Key(Rule.STACK_NOHUGEPAGE, _BOOL),
    # mprotect to read-only drops VM_ACCOUNT of an untouched anonymous VMA
    "mprotect_unaccounts": _Key(Rule.MPROTECT_UNACCOUNTS, _BOOL),
    # mremap(MREMAP_FIXED) with equal lengths moves several VMAs
    "mremap_many_vmas": _Key(Rule.MREMAP_MANY_VMAS, _BOOL),
    # mremap onto an untouched neighbour hands it the moved VMA's anon_vma
    "copy_keeps_anon_vma": _Key(Rule.COPY_KEEPS_ANON_VMA, _BOOL),
    # mremap that shrinks fails where no VMA is at the old address
    "mremap_shrink_checks_first": _Key(Rule.MREMAP_SHRINK_CHECKS_FIRST, _BOOL),
}

_TOP: Final = ("name", "summary", "first_release", "last_release", "rules")


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules of one kernel range.  ``vector``: int64, shape (Rule.N,), for compiled code."""

    name: str
    summary: str
    first_release: tuple[int, int]
    last_release: tuple[int, int] | None
    values: tuple[tuple[str, int], ...]
    sources: tuple[tuple[str, str], ...]

    @property
    def vector(self) -> NDArray[np.int64]:
        out = np.zeros(Rule.N, np.int64)
        for key, value in self.values:
            out[KEYS[key].index] = value
        return out


def _release(text: Any, where: str) -> tuple[int, int]:
    match = re.match(r"^(\d+)\.(\d+)", text) if isinstance(text, str) else None
    if match is None:
        raise UserError(
            f"{text!r} is not a kernel release", where=where, fix='write for example "6.18"'
        )
    return int(match[1]), int(match[2])


def _value(key: str, raw: Any, where: str) -> tuple[int, str]:
    known = KEYS[key]
    if not isinstance(raw, dict) or set(raw) != {"value", "source"}:
        raise UserError(
            f"rule {key} needs a value and a source",
            where=where,
            fix=f'write {key} = {{ value = ..., source = "function@version" }}',
        )
    value, source = raw["value"], raw["source"]
    if not isinstance(source, str) or not source.strip():
        raise UserError(f"rule {key} has no source", where=where, fix="cite where it comes from")
    if known.words:
        word = str(value).lower() if isinstance(value, bool) else value
        if word not in known.words:
            raise UserError(
                f"rule {key} is {value!r}{closest(str(value), known.words)}",
                where=where,
                fix=f"use one of {', '.join(known.words)}",
            )
        return known.words.index(word), source
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"rule {key} is {value!r}, not an integer", where=where, fix="mend it")
    if not known.low <= value <= known.high:
        raise UserError(
            f"rule {key} is {value}", where=where, fix=f"use {known.low} to {known.high}"
        )
    return value, source


def read_rules(path: Path) -> Rules:
    """Read one file of VMA rules."""
    where = path.name
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})", where=str(path), fix="check the path"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"is not TOML: {error}", where=where, fix="mend the syntax") from None
    for key in data:
        if key not in _TOP:
            raise UserError(f"unknown key {key!r}{closest(key, _TOP)}", where=where, fix="mend it")
    for key in ("name", "first_release", "rules"):
        if key not in data:
            raise UserError(f"key {key!r} is missing", where=where, fix="add it")
    table = data["rules"]
    if not isinstance(table, dict):
        raise UserError("rules is not a table", where=where, fix="write [rules]")
    for key in table:
        if key not in KEYS:
            raise UserError(f"unknown rule {key!r}{closest(key, KEYS)}", where=where, fix="mend it")
    missing = [key for key in KEYS if key not in table]
    if missing:
        raise UserError(f"rule {missing[0]!r} is missing", where=where, fix="add it")
    values = {key: _value(key, table[key], where) for key in KEYS}
    last = data.get("last_release", "")
    return Rules(
        name=str(data["name"]),
        summary=str(data.get("summary", "")),
        first_release=_release(data["first_release"], where),
        last_release=_release(last, where) if last else None,
        values=tuple((key, value[0]) for key, value in values.items()),
        sources=tuple((key, value[1]) for key, value in values.items()),
    )


def names() -> list[str]:
    """Names of the shipped rules, oldest kernel first."""
    found = [read_rules(path) for path in models_dir("vma").glob("*.toml")]
    return [rules.name for rules in sorted(found, key=lambda rules: rules.first_release)]


def load_rules(name: str) -> Rules:
    """The shipped rules called ``name``."""
    path = models_dir("vma") / f"{name}.toml"
    if not path.is_file():
        known = names()
        raise UserError(
            f"unknown VMA rules {name!r}{closest(name, known)}", fix=f"use {', '.join(known)}"
        )
    return read_rules(path)


def rules_for(release: str) -> Rules:
    """The rules of a kernel release: the newest range that begins at or before it."""
    wanted = _release(release, "kernel")
    loaded = [load_rules(name) for name in names()]
    fitting = [rules for rules in loaded if rules.first_release <= wanted]
    return fitting[-1] if fitting else loaded[0]
