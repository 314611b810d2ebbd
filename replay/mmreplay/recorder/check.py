"""What a finished perf.data file holds: samples and losses, by one walk over its records."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from mmreplay.errors import UserError
from mmreplay.importers.binary import load_u16, load_u32, load_u64
from mmreplay.jit import native

_HEADER: Final = struct.Struct("<8s7Q")
_LOST, _SAMPLE, _LOST_SAMPLES = 2, 9, 13
(K_RECORDS, K_SAMPLES, K_LOST, K_LOST_SAMPLES, K_DAMAGED) = range(5)


@dataclass(frozen=True, slots=True)
class Content:
    """Counts of a recording; each loss once."""

    size_bytes: int
    events: int
    records: int
    lost: int

    @property
    def lost_ratio(self) -> float:
        """Lost events as a share of all that happened."""
        return self.lost / (self.lost + self.events) if self.lost else 0.0


@native
def _count(buffer: Any, at: Any, end: Any, found: Any) -> Any:
    while at + 8 <= end:
        kind = load_u32(buffer, at)
        size = np.int64(load_u16(buffer, at + 6))
        if size < 8 or at + size > end:
            found[K_DAMAGED] = 1
            return 0
        found[K_RECORDS] += 1
        if kind == _SAMPLE:
            found[K_SAMPLES] += 1
        elif kind == _LOST and size >= 24:
            found[K_LOST] += np.int64(load_u64(buffer, at + 16))
        elif kind == _LOST_SAMPLES and size >= 16:
            found[K_LOST_SAMPLES] += np.int64(load_u64(buffer, at + 8))
        at += size
    return 0


def check(path: Path) -> Content:
    """Count what a plain perf.data file of this machine holds.

    Raises
    ------
    UserError
        perf did not finish the file, or it is damaged.
    """
    fix = "record again, and end perf with Ctrl-C or SIGINT"
    size = path.stat().st_size if path.exists() else 0
    if size < _HEADER.size:
        raise UserError("perf wrote no recording", where=str(path), fix=fix)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        magic, _, _, _, _, first, length, _ = _HEADER.unpack_from(mapped)
        if magic != b"PERFILE2" or length == 0 or first + length > size:
            raise UserError(
                "perf did not finish the recording",
                where=str(path),
                fix=f"mmreplay import reads what there is; to have all of it, {fix}",
            )
        found = np.zeros(5, np.int64)
        buffer = np.frombuffer(mapped, np.uint8)
        try:
            _count(buffer, first, first + length, found)
        finally:
            del buffer  # or the mapping cannot be closed
    if found[K_DAMAGED]:
        raise UserError("the recording holds a damaged record", where=str(path), fix=fix)
    # LOST records and LOST_SAMPLES tell the same losses twice.
    lost = int(max(found[K_LOST], found[K_LOST_SAMPLES]))
    return Content(size, int(found[K_SAMPLES]), int(found[K_RECORDS]), lost)
