"""Which operations could have waited for another one's mmap_lock: the exposed ones.

Two operations of different threads of one address space conflict when their
recorded intervals overlap and at least one of them writes.  Both are exposed then.
Readers do not expose each other.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.jit import njit

ROLE_NONE: Final = 0  # takes no lock of the memory map
ROLE_READER: Final = 1
ROLE_WRITER: Final = 2

#: Operations that have not ended: end_ns, tid, address space, role, row.  Rows of an
#: int64 array, of which the first ``open_count[0]`` are in use.
OpenSet = tuple[NDArray[np.int64], NDArray[np.int64]]


def new_open_set() -> OpenSet:
    """An empty set of open operations, to begin :func:`mark_exposed` with."""
    return np.zeros((64, 5), dtype=np.int64), np.zeros(1, dtype=np.int64)


@njit
def mark_exposed(
    exposed: NDArray[np.uint8],
    first: int,
    begin_ns: NDArray[np.int64],
    end_ns: NDArray[np.int64],
    tid: NDArray[np.int32],
    address_space: NDArray[np.uint32],
    role: NDArray[np.uint8],
    open_ops: NDArray[np.int64],
    open_count: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Mark the exposed rows of one batch, and the earlier rows that it exposes.

    Parameters
    ----------
    exposed:
        (N,) uint8 over all operations; set to 1, never cleared.
    first:
        Row of the batch's first operation.
    begin_ns, end_ns, tid, address_space, role:
        (batch,) columns in the order of ``begin_ns``; an operation without a known
        end has ``end_ns == begin_ns``.
    open_ops, open_count:
        What the batch before left open; ``open_count`` is changed in place.

    Returns
    -------
    The open operations for the next batch (``open_ops``, or a larger copy of it).
    """
    count = open_count[0]
    for row in range(len(begin_ns)):
        if role[row] == 0:
            continue
        kept = 0
        for other in range(count):
            if open_ops[other, 0] <= begin_ns[row]:
                continue  # it has ended
            if (
                open_ops[other, 2] == np.int64(address_space[row])
                and open_ops[other, 1] != np.int64(tid[row])
                and (open_ops[other, 3] == 2 or role[row] == 2)
            ):
                exposed[first + row] = 1
                exposed[open_ops[other, 4]] = 1
            if kept != other:
                for column in range(5):
                    open_ops[kept, column] = open_ops[other, column]
            kept += 1
        count = kept
        if end_ns[row] > begin_ns[row]:
            if count == len(open_ops):
                larger = np.zeros((2 * count, 5), dtype=np.int64)
                for other in range(count):
                    for column in range(5):
                        larger[other, column] = open_ops[other, column]
                open_ops = larger
            open_ops[count, 0] = end_ns[row]
            open_ops[count, 1] = np.int64(tid[row])
            open_ops[count, 2] = np.int64(address_space[row])
            open_ops[count, 3] = np.int64(role[row])
            open_ops[count, 4] = first + row
            count += 1
    open_count[0] = count
    return open_ops
