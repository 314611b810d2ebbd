"""What is known of arrays before they are there."""

from __future__ import annotations

from typing import Final

#: Columns of the two-dimensional arrays of named tuples, where :func:`tables` says them.
COLUMNS: Final[dict[type, dict[str, int]]] = {}


def tables(kind: type, **columns: int) -> None:
    """Say how many columns each two-dimensional array of a class of named tuples has.

    Compiled code then indexes the lean ones by shifts instead of products.
    """
    COLUMNS[kind] = columns
