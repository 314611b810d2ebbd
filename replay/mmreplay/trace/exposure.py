"""How long each operation could have waited for another one's mmap_lock: its exposure.

Two operations of different threads of one address space conflict while their
recorded intervals overlap, if at least one of them writes.  Readers do not expose
each other.  The exposure of an operation is how much of it conflicting ones cover, or went
by before its last sleep for a lock was over.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.jit import native

ROLE_NONE: Final = 0  # takes no lock of the memory map
ROLE_READER: Final = 1
ROLE_WRITER: Final = 2

_MOST_NS: Final = (1 << 32) - 1

#: Operations that have not ended: end_ns, tid, address space, role, row, until when
#: their exposure is counted, and the exposure that rows before the window have got.
#: Rows of an int64 array; the first ``open_count[0]`` are in use.
OpenSet = tuple[NDArray[np.int64], NDArray[np.int64]]
_COLUMNS: Final = 7


def new_open_set() -> OpenSet:
    """An empty set of open operations, to begin :func:`add_exposure` with."""
    return np.zeros((64, _COLUMNS), dtype=np.int64), np.zeros(1, dtype=np.int64)


def add_exposure(
    exposure_ns: NDArray[np.uint32],
    window: int,
    first: int,
    begin_ns: NDArray[np.int64],
    end_ns: NDArray[np.int64],
    tid: NDArray[np.int32],
    address_space: NDArray[np.uint32],
    role: NDArray[np.uint8],
    slept_ns: NDArray[np.uint32],
    open_ops: NDArray[np.int64],
    open_count: NDArray[np.int64],
    far: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Count the exposure of one batch's rows, and of the earlier rows that it exposes.

    What operations before the window ``exposure_ns`` get is added up in ``open_ops``, and
    handed out through ``far`` when they have ended.

    Parameters
    ----------
    exposure_ns:
        (window,) uint32, added to; saturates at 4.29 s.
    window:
        Row of the operation that ``exposure_ns[0]`` is for.
    first:
        Row of the batch's first operation; the batch lies in the window.
    begin_ns, end_ns, tid, address_space, role:
        (batch,) columns in the order of ``begin_ns``; an operation without a known
        end has ``end_ns == begin_ns``.
    slept_ns:
        (batch,) what of each went by before its last sleep for a lock was over.
    open_ops, open_count:
        What the batch before left open; ``open_count`` is changed in place.
    far:
        (F, 2) output: rows before the window that have ended, and their exposure to add.
        F is at least the number of open rows before the window; unused rows stay as given.

    Returns
    -------
    The open operations for the next batch (``open_ops``, or a larger copy of it).
    """
    done = np.zeros(2, np.int64)
    while True:
        _add(
            exposure_ns,
            window,
            first,
            begin_ns,
            end_ns,
            tid,
            address_space,
            role,
            slept_ns,
            open_ops,
            open_count,
            far,
            done,
        )
        if done[0] == len(begin_ns):
            return open_ops
        open_ops = np.concatenate([open_ops, np.zeros_like(open_ops)])


@native
def _add(
    exposure_ns: NDArray[np.uint32],
    window: int,
    first: int,
    begin_ns: NDArray[np.int64],
    end_ns: NDArray[np.int64],
    tid: NDArray[np.int32],
    address_space: NDArray[np.uint32],
    role: NDArray[np.uint8],
    slept_ns: NDArray[np.uint32],
    open_ops: NDArray[np.int64],
    open_count: NDArray[np.int64],
    far: NDArray[np.int64],
    done: NDArray[np.int64],
) -> None:
    """As :func:`add_exposure`, until an operation is met that may find no room in ``open_ops``.

    ``done``: how many operations of the batch, and rows of ``far``, are done; changed in place.
    """
    count = open_count[0]
    ended = done[1]
    row = done[0]
    while row < len(begin_ns) and count < len(open_ops):
        if role[row] == 0:
            row += 1
            continue
        kept = 0
        counted = begin_ns[row] + np.int64(slept_ns[row])
        for other in range(count):
            if open_ops[other, 0] <= begin_ns[row]:  # it has ended
                if open_ops[other, 4] < window:
                    far[ended, 0] = open_ops[other, 4]
                    far[ended, 1] = open_ops[other, 6]
                    ended += 1
                continue
            if (
                open_ops[other, 2] == np.int64(address_space[row])
                and open_ops[other, 1] != np.int64(tid[row])
                and (open_ops[other, 3] == 2 or role[row] == 2)
            ):
                # Overlaps come in the order of their begin, so their union is what each
                # adds behind the end of those before it.
                until = min(open_ops[other, 0], end_ns[row])
                counted = max(counted, until)
                since = max(open_ops[other, 5], begin_ns[row])
                if until > since:
                    earlier = open_ops[other, 4] - window
                    open_ops[other, 5] = until
                    if earlier < 0:
                        open_ops[other, 6] += until - since
                    else:
                        total = np.int64(exposure_ns[earlier]) + until - since
                        exposure_ns[earlier] = min(total, _MOST_NS)
            if kept != other:
                for column in range(7):
                    open_ops[kept, column] = open_ops[other, column]
            kept += 1
        count = kept
        exposure_ns[first - window + row] = min(counted - begin_ns[row], _MOST_NS)
        if end_ns[row] > begin_ns[row]:
            open_ops[count, 0] = end_ns[row]
            open_ops[count, 1] = np.int64(tid[row])
            open_ops[count, 2] = np.int64(address_space[row])
            open_ops[count, 3] = np.int64(role[row])
            open_ops[count, 4] = first + row
            open_ops[count, 5] = counted
            open_ops[count, 6] = 0
            count += 1
        row += 1
    open_count[0] = count
    done[0] = row
    done[1] = ended
