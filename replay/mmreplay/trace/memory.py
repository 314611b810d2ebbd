"""Arrays in huge pages, so that what is filled for the first time costs few page faults.

numpy asks the kernel for them too, from 4 MiB on (numpy/core/src/multiarray/alloc.c@2.4), but
what malloc gives it begins and ends within one.  Smaller arrays are cut from one piece.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

#: Bytes between two arrays, so that what lies at the same place of each shares no cache set.
_APART_BYTES: Final = 64
#: A huge page of most processors; a piece that takes less than half of one gets none.
_HUGE_BYTES: Final = 1 << 21


def zeros(size: int) -> NDArray[np.uint8]:
    """So many bytes of zeros."""
    if 2 * size < _HUGE_BYTES:
        return np.zeros(size, np.uint8)
    whole = -(-size // _HUGE_BYTES) * _HUGE_BYTES  # so many begin where a huge page does
    memory = mmap.mmap(-1, whole, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # kernels without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, size)


def cut(wanted: Iterable[tuple[Any, int]]) -> list[NDArray[Any]]:
    """An array of zeros for each (dtype, length), a cache line or more apart."""
    kinds = [(np.dtype(dtype), length) for dtype, length in wanted]
    sizes = [-(-kind.itemsize * length // _APART_BYTES) * _APART_BYTES for kind, length in kinds]
    memory = zeros(sum(sizes) + _APART_BYTES * len(sizes))
    arrays = []
    at = 0
    for (kind, length), size in zip(kinds, sizes, strict=True):
        arrays.append(memory[at : at + kind.itemsize * length].view(kind))
        at += size + _APART_BYTES
    return arrays
