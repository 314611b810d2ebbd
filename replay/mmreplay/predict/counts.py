"""Lists of core and thread counts as people write them: ``1,2,4``, ``1-8``, ``1-128:x2``."""

from __future__ import annotations

import re
from typing import Final

from mmreplay.errors import UserError

#: More cores or threads than the largest Linux machines have (CONFIG_NR_CPUS 8192@6.18).
LARGEST: Final = 8192
#: A list longer than this is a slip of the keyboard, and would simulate for hours.
LONGEST: Final = 512

_NUMBER = re.compile(r"^[+-]?\d+$")
_RANGE = re.compile(r"^(?P<first>\d+)-(?P<last>\d+)(?::(?P<times>x)?(?P<step>\d+))?$")


def parse_counts(text: str, option: str, what: str, largest: int = LARGEST) -> tuple[int, ...]:
    """Ascending distinct counts.

    Parts are separated by commas; a part is a number, ``A-B`` (every count), ``A-B:S``
    (every S-th) or ``A-B:xF`` (A, A·F, A·F², ... and B itself).

    Raises
    ------
    UserError
        An empty list, something that is no number, a count below 1 or above
        ``largest``, a reversed range, or more than :data:`LONGEST` counts.
    """
    found: set[int] = set()
    parts = [part.strip() for part in text.split(",")]
    if not text.strip() or "" in parts:
        raise UserError(
            f'"{text}" is not a list of {what}' if text.strip() else f"the list of {what} is empty",
            where=option,
            fix="write for example 1,2,4,8 or 1-128:x2",
        )
    for part in parts:
        found.update(_part(part, option, what, largest))
        if len(found) > LONGEST:
            raise UserError(
                f"more than {LONGEST} counts of {what}",
                where=option,
                fix="take steps, for example 1-1024:x2",
            )
    return tuple(sorted(found))


def check_count(value: int, option: str, what: str, largest: int = LARGEST) -> int:
    """``value`` where it is a count of ``what`` from 1 to ``largest``."""
    if not 1 <= value <= largest:
        raise UserError(f"{value} {what}", where=option, fix=f"give a number from 1 to {largest}")
    return value


def _part(part: str, option: str, what: str, largest: int) -> list[int]:
    if _NUMBER.match(part):
        return [check_count(int(part), option, what, largest)]
    match = _RANGE.match(part)
    if match is None:
        raise UserError(
            f'"{part}" is neither a number nor a range of {what}',
            where=option,
            fix="write for example 1,2,4,8 or 1-128:x2",
        )
    first = check_count(int(match["first"]), option, what, largest)
    last = check_count(int(match["last"]), option, what, largest)
    if first > last:
        raise UserError(
            f'the range "{part}" runs backwards', where=option, fix=f"write {last}-{first}"
        )
    step = int(match["step"] or 1)
    if match["times"]:
        if step < 2:
            raise UserError(f'"{part}" never grows', where=option, fix=f"write {first}-{last}:x2")
        values = []
        value = first
        while value < last:
            values.append(value)
            value *= step
        return [*values, last]
    if step < 1:
        raise UserError(f'"{part}" never grows', where=option, fix=f"write {first}-{last}:2")
    return list(range(first, last + 1, step))
