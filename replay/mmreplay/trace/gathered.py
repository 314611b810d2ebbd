"""Rows of a table that come in small parts, gathered to row groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.trace.chunks import Column
from mmreplay.trace.parts import Parts

#: Rows of a row group, at least, but for the last one.
_GROUP_ROWS: Final = 1 << 16


class Gathered:
    """The file of one table.  What is unknown in a column is told by truth, not by bits."""

    def __init__(self, target: Path, table: str) -> None:
        self._parts = Parts(target, table)
        self._waiting: list[Mapping[str, Column]] = []
        self._rows = 0
        self._groups = 0

    def write(self, rows: Mapping[str, Column]) -> None:
        """Append rows; none of no columns."""
        if rows:
            self._waiting.append(rows)
            self._rows += len(next(iter(rows.values())).values)
        if self._rows >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting, self._rows = self._waiting, [], 0
        if waiting:
            together = {name: _together([part[name] for part in waiting]) for name in waiting[0]}
            self._parts.write(self._groups, self._groups, together)
            self._groups += 1

    def close(self) -> tuple[int, int, int]:
        """Write the rest; returns rows, size and CRC-32 of the file."""
        self._flush()
        return self._parts.close()

    def abandon(self) -> None:
        """Give the file up."""
        self._parts.abandon()


def _together(parts: list[Column]) -> Column:
    nulls = sum(part.nulls for part in parts)
    known = None
    if nulls:
        known = np.concatenate(
            [
                np.ones(len(part.values), np.bool_) if part.known is None else part.known
                for part in parts
            ]
        )
    if parts[0].words is None:
        return Column(_one_after_another([part.values for part in parts]), known, nulls)
    places: dict[str, int] = {}  # of each word, once
    values = []
    for part in parts:
        own = [places.setdefault(word, len(places)) for word in part.words or ()]
        values.append(np.array(own, np.int64)[part.values] if own else part.values)
    return Column(np.concatenate(values), known, nulls, list(places))


def _one_after_another(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Integers of several kinds keep their 64 bits: numpy would make them floats."""
    if len({part.dtype for part in parts}) > 1:
        parts = [part.astype(np.int64) for part in parts]
    return np.concatenate(parts)
