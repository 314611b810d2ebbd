"""The time split of operations that arrive in groups, while they are being written.

The same rules as :mod:`mmreplay.trace.timesplit`, in one pass and a short second one:
what a row shows by itself is known when its group comes (:class:`SplitRows`); exposures and
the quartiles' counts follow in the order of the operations (:meth:`SplitStream.add`); and
when all are in, :meth:`SplitStream.divide` gives each group its service and wait.  What that
needs of each operation, some 30 bytes, lies in an unnamed file, not in memory.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.jit import native
from mmreplay.trace.exposure import add_exposure, new_open_set
from mmreplay.trace.memory import cut
from mmreplay.trace.services import Classes, SplitReport, Tally, usual_services
from mmreplay.trace.splitrules import BOUNDED, MOST_NS, TIMED, UNTIMED, divide_one
from mmreplay.trace.unnamed import unnamed_file

#: Groups that may wait in memory for the groups before them; further ones wait in the file.
_MOST_PENDING: Final = 3
#: Groups that memory is made for at a time: enough for huge pages (see memory.py).
_AT_ONCE: Final = 4


class SplitRows(NamedTuple):
    """What the split needs of one group of operations, (rows,) each."""

    room_ns: NDArray[np.int64]
    shown_ns: NDArray[np.int64]  # off-CPU time that I/O does not explain, or contention
    exposure_ns: NDArray[np.uint32]
    number: NDArray[np.int32]  # of its class
    state: NDArray[np.uint8]
    before_ns: NDArray[np.int64]  # unattributed before the operation
    # from here on: not needed any more when exposures and quartiles have been counted
    still: NDArray[np.uint8]
    slept_ns: NDArray[np.uint32]  # see slept_of
    role: NDArray[np.uint8]
    begin_ns: NDArray[np.int64]
    end_ns: NDArray[np.int64]  # begin, where the duration is unknown or only bounded
    key: NDArray[np.uint64]  # of its class
    tid: NDArray[np.int32]
    address_space: NDArray[np.uint32]


_DTYPES: Final[tuple[Any, ...]] = (
    *(np.int64, np.int64, np.uint32, np.int32, np.uint8, np.int64, np.uint8, np.uint32, np.uint8),
    *(np.int64, np.int64, np.uint64, np.int32, np.uint32),
)
#: How many of the columns the second pass needs (one less, where no duration is only
#: bounded by the next event).
_LASTING: Final = 6
_ROW_BYTES: Final[int] = sum(np.dtype(dtype).itemsize for dtype in _DTYPES)
#: Of a row, before ``exposure_ns``.
_EXPOSURE_BYTES: Final = 16
#: ``still`` of a row that will be counted later.
_OWED: Final = 2


def new_rows(rows: int, groups: int) -> list[SplitRows]:
    """Memory for so many groups, in one piece."""
    arrays = iter(cut([(dtype, rows) for dtype in _DTYPES] * groups))
    return [SplitRows(*itertools.islice(arrays, len(_DTYPES))) for _ in range(groups)]


class Divided(NamedTuple):
    """The split of a group, (rows,) each; ``known`` is False where all of it is null.

    ``unattributed_ns`` is nothing where no duration is only bounded.
    """

    service_ns: NDArray[np.int64]
    wait_ns: NDArray[np.int64]
    unattributed_ns: NDArray[np.int64]
    known: NDArray[np.bool_]


@native
def _divide(own: Any, usual_ns: Any, quiet_ns: Any, out: Any, facts: Any) -> None:
    """The columns of :class:`Divided`, and (3,) rows exposed, untimed, and resting on a default.

    ``usual_ns`` and ``quiet_ns`` (classes,): what a class usually takes; -1 in the second
    where that is a default.
    """
    for row in range(len(own.state)):
        state = own.state[row]
        exposure_ns = np.int64(own.exposure_ns[row])
        number = own.number[row]
        # Of a timed operation ``shown_ns`` is what off-CPU time and contention show, of a
        # bounded one contention alone.
        shown_ns = own.shown_ns[row]
        service, wait, left_ns = divide_one(
            state, exposure_ns, own.room_ns[row], shown_ns, shown_ns, usual_ns[number]
        )
        out.service_ns[row] = service
        out.wait_ns[row] = wait
        out.unattributed_ns[row] = own.before_ns[row] + left_ns
        out.known[row] = state != UNTIMED
        facts[0] += exposure_ns > 0
        facts[1] += state == UNTIMED
        if state == BOUNDED or (state == TIMED and exposure_ns > 0):
            facts[2] += quiet_ns[number] < 0


class SplitStream:
    """See the module.  Every group but the last has ``group_rows`` rows.

    ``bounded`` says whether there are durations that are only bounded by the next event:
    else ``before_ns`` stays what it is, and is not kept.

    All methods but :meth:`take` and :meth:`divide` are one thread's at a time.
    """

    def __init__(self, directory: Path, group_rows: int, bounded: bool) -> None:
        self.report = SplitReport()
        self._group_rows = group_rows
        self._lasting = _LASTING if bounded else _LASTING - 1
        self._file = unnamed_file(directory)
        self._sizes: dict[int, int] = {}
        self._free: deque[SplitRows] = deque()
        self._pending: dict[int, SplitRows | None] = {}  # None: in the file
        self._exposed: dict[int, SplitRows] = {}  # in memory, not yet counted
        self._owed: dict[int, SplitRows] = {}  # operations that went on when theirs was
        self._lock = threading.Lock()
        self._classes = Classes()
        self._tally = Tally()
        self._open_ops, self._open_count = new_open_set()
        self._next = 0  # the first group whose exposures were not counted
        self._usual_ns: NDArray[np.int64] = np.zeros(0, np.int64)
        self._quiet_ns: NDArray[np.int64] = np.zeros(0, np.int64)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def take(self) -> SplitRows:
        """Memory for a group, to be handed back to :meth:`add`.  Safe from any thread."""
        try:
            return self._free.pop()
        except IndexError:
            first, *others = new_rows(self._group_rows, _AT_ONCE)
            self._free.extend(others)
            return first

    def add(self, group: int, rows: int, columns: SplitRows) -> None:
        """Add a group; go on as far as no group is missing."""
        self._sizes[group] = rows
        self._pending[group] = columns
        if len(self._pending) > _MOST_PENDING and group != self._next:
            self._store(group, columns, len(_DTYPES))
            self._pending[group] = None
            self._free.append(columns)
        while self._next in self._pending:
            number = self._next
            found = self._pending.pop(number)
            if found is None:
                found = self.take()
                self._load(number, found, len(_DTYPES))
            self._next += 1
            self._expose(number, found)

    # -- the file ----------------------------------------------------------------------------

    # A group's columns lie one behind the other, so that one call moves all of them.

    def _store(self, group: int, columns: SplitRows, last: int) -> None:
        self._move(os.pwritev, group, columns, last)

    def _load(self, group: int, columns: SplitRows, last: int) -> None:
        self._move(os.preadv, group, columns, last)

    def _move(
        self, move: Callable[[int, Any, int], int], group: int, columns: SplitRows, last: int
    ) -> None:
        count, at = self._sizes[group], self._place(group)
        some: Any = columns[:last]
        parts = [memoryview(column[:count]).cast("B") for column in some if count]
        while parts:
            done = move(self._file.fileno(), parts, at)
            at += done
            while parts and done >= len(parts[0]):
                done -= len(parts.pop(0))
            if parts:
                parts[0] = parts[0][done:]

    def _place(self, group: int) -> int:
        return group * self._group_rows * _ROW_BYTES

    # -- in the order of the operations ------------------------------------------------------

    def _expose(self, group: int, columns: SplitRows) -> None:
        own = self._used(group, columns)
        own.number[:] = self._classes.numbers(own.key)
        own.exposure_ns[:] = 0
        first = group * self._group_rows
        far = np.full((int(self._open_count[0]), 2), -1, np.int64)
        self._open_ops = add_exposure(
            own.exposure_ns,
            first,
            first,
            own.begin_ns,
            own.end_ns,
            own.tid,
            own.address_space,
            own.role,
            own.slept_ns,
            self._open_ops,
            self._open_count,
            far,
        )
        self._exposed[group] = columns
        for row, extra_ns in far[far[:, 0] >= 0].tolist():
            self._finish_row(row, extra_ns)
        first_open = self._next * self._group_rows
        if self._open_count[0]:
            first_open = int(self._open_ops[: self._open_count[0], 4].min())
        for number in list(self._exposed):
            settled = (number + 1) * self._group_rows <= first_open
            if settled or number <= group - _MOST_PENDING:
                self._count(number)

    def _used(self, group: int, columns: SplitRows) -> SplitRows:
        count = self._sizes[group]
        every: Any = columns
        return SplitRows(*(column[:count] for column in every))

    def _finish_row(self, row: int, extra_ns: int) -> None:
        """An operation before the current group has ended, and got so much more exposure."""
        group, at = divmod(row, self._group_rows)
        if group in self._exposed:
            exposure_ns = self._exposed[group].exposure_ns
            exposure_ns[at] = min(int(exposure_ns[at]) + extra_ns, MOST_NS)
            return
        owed = self._owed.pop(row)
        owed.exposure_ns[0] = min(int(owed.exposure_ns[0]) + extra_ns, MOST_NS)
        self._tally_rows(owed)
        place = self._place(group) + self._sizes[group] * _EXPOSURE_BYTES + 4 * at
        os.pwrite(self._file.fileno(), owed.exposure_ns.tobytes(), place)

    def _count(self, group: int) -> None:
        """Count a group for the quartiles and put away what the second pass needs of it."""
        columns = self._exposed.pop(group)
        own = self._used(group, columns)
        open_rows = self._open_ops[: self._open_count[0], 4]
        for row in open_rows[open_rows // self._group_rows == group].tolist():
            at = row % self._group_rows
            every: Any = own
            self._owed[row] = SplitRows(*(column[at : at + 1].copy() for column in every))
            own.still[at] = _OWED
        self._tally_rows(own)
        self._store(group, columns, self._lasting)
        self._free.append(columns)

    def _tally_rows(self, own: SplitRows) -> None:
        timed = (own.state == TIMED) & (own.still != _OWED)
        quiet = timed & (own.still != 0) & (own.exposure_ns == 0)
        self._tally.add(own.number, own.room_ns, timed.view(np.uint8), quiet.view(np.uint8))

    # -- when all are in ----------------------------------------------------------------------

    def settle(self) -> None:
        """All groups have been added: find what each class usually costs."""
        for row, extra_ns in self._open_ops[: self._open_count[0]][:, (4, 6)].tolist():
            self._finish_row(row, extra_ns)
        self._open_count[0] = 0
        for number in list(self._exposed):
            self._count(number)
        self._quiet_ns, default_ns = usual_services(self._tally, self._classes.keys())
        self._usual_ns = np.where(self._quiet_ns >= 0, self._quiet_ns, default_ns)
        self.report.classes = len(self._usual_ns)

    def divide(self, group: int) -> Divided:
        """The split of one group, after :meth:`settle`.  Safe from any thread."""
        columns = self.take()
        self._load(group, columns, self._lasting)
        own = self._used(group, columns)
        rows = len(own.state)
        service, wait, unattributed = (np.empty(rows, np.int64) for _ in range(3))
        out = Divided(service, wait, unattributed, np.empty(rows, np.bool_))
        facts = np.zeros(3, np.int64)
        _divide(own, self._usual_ns, self._quiet_ns, out, facts)
        with self._lock:
            self.report.operations += rows
            self.report.exposed += int(facts[0])
            self.report.without_duration += int(facts[1])
            self.report.default_service += int(facts[2])
        self._free.append(columns)
        return out
