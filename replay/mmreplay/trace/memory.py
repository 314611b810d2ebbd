"""Arrays cut from one piece of memory.

From 4 MiB on numpy asks the kernel for huge pages (numpy/core/src/multiarray/alloc.c@2.4), so
that what is filled for the first time costs few page faults; arrays by themselves are smaller.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

#: Bytes between two arrays, so that what lies at the same place of each shares no cache set.
_APART_BYTES: Final = 64


def cut(wanted: Iterable[tuple[Any, int]]) -> list[NDArray[Any]]:
    """An array of zeros for each (dtype, length), a cache line or more apart."""
    kinds = [(np.dtype(dtype), length) for dtype, length in wanted]
    sizes = [-(-kind.itemsize * length // _APART_BYTES) * _APART_BYTES for kind, length in kinds]
    memory = np.zeros(sum(sizes) + _APART_BYTES * len(sizes), np.uint8)
    arrays = []
    at = 0
    for (kind, length), size in zip(kinds, sizes, strict=True):
        arrays.append(memory[at : at + kind.itemsize * length].view(kind))
        at += size + _APART_BYTES
    return arrays
