"""What of a recording becomes the trace: one process's part, a span of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.errors import UserError
from mmreplay.importers import events as ev
from mmreplay.importers.options import Options
from mmreplay.importers.pairing.shared import evidence
from mmreplay.importers.pairing.state import MAX_TID
from mmreplay.jit import native

Batches = Iterator[tuple[Any, int]]
#: Of a process: nothing, all, or how it began and ended (children of one that is wanted).
#: _LIFE: a child whose life is kept; _LIFE_KNOWN: and what it did first was told.
_NOTHING, _ALL, _LIFE, _LIFE_KNOWN = range(4)
#: A task's name has so many bytes at most (TASK_COMM_LEN - 1: include/linux/sched.h@6.18).
_MOST_NAME: Final = 15
_NAMED: Final = 8  # processes that an error names
_NEVER: Final = 1 << 62


class Selection:
    """See the module.

    Parameters
    ----------
    options:
        What the user asked for.
    scan:
        Reads the whole recording, to learn which processes have a name; None where it
        can be read only once.
    where:
        The recording, for errors.

    Raises
    ------
    UserError
        No process has the name, or a name cannot be looked up.
    """

    def __init__(self, options: Options, scan: Callable[[], Batches] | None, where: str) -> None:
        self.begin_ns = options.begin_ns or 0
        self.end_ns = options.end_ns if options.end_ns is not None else _NEVER
        self.process = options.process
        self.where = where
        #: Operations' processes, by pid; None: all of them.
        self._wanted: NDArray[np.uint8] | None = None
        if self.process is not None:
            pids = [int(self.process)] if self.process.isdecimal() else self._named(scan)
            self._wanted = np.zeros(MAX_TID, np.uint8)
            self._wanted[[pid for pid in pids if pid < MAX_TID]] = _ALL
            #: Two words of each thread's name; what is never touched is no memory.
            self._comms = np.zeros((MAX_TID, 2), np.uint64)

    def __bool__(self) -> bool:
        """Whether anything is left out."""
        return self._wanted is not None or self.begin_ns > 0 or self.end_ns < _NEVER

    def told(self) -> str:
        """What the trace holds, as a warning."""
        words = [] if self.process is None else [f"of process {self.process}"]
        words += [f"from {self.begin_ns / 1e9:g} s on"] if self.begin_ns else []
        words += [f"up to {self.end_ns / 1e9:g} s"] if self.end_ns < _NEVER else []
        return f"only a part was imported, {', '.join(words)}; events are counted in the whole"

    def check(self, operations: int) -> None:
        """Raise a :class:`UserError` where nothing is left."""
        if operations == 0 and self:
            raise UserError(
                f"nothing is left of it: {self.told().split(', ', 1)[1].split(';')[0]}",
                where=self.where,
                fix="see what there is without --process, --from and --to: mmreplay show",
            )

    def cut(self, batch: Any, rows: int) -> tuple[int, int, bool]:
        """Take out of ``batch`` what is not wanted, and count its times from the beginning.

        Returns how many rows come before the beginning, how many before the end, and
        whether the end has come.
        """
        times = batch.time[:rows]
        before = int(np.searchsorted(times, self.begin_ns)) if self.begin_ns else 0
        last = int(np.searchsorted(times, self.end_ns)) if self.end_ns < _NEVER else rows
        if self.begin_ns:
            np.maximum(times - self.begin_ns, 0, out=times)
        if self._wanted is not None:
            _keep(batch, last, self._wanted, self._comms)
        return min(before, last), last, last < rows

    def _named(self, scan: Callable[[], Batches] | None) -> list[int]:
        assert self.process is not None
        if scan is None:
            raise UserError(
                f'"{self.process}" cannot be looked up in what can be read only once, or in text',
                where="--process",
                fix="give the process id",
            )
        wanted = self.process.encode()[:_MOST_NAME]
        found: set[int] = set()
        known: dict[bytes, int] = {}
        now: dict[int, bytes] = {}
        forked: set[int] = set()  # what has the name from its parent, until it takes another
        for batch, rows in scan():
            leaders = (batch.role[:rows] == ev.COMM) & (batch.tid[:rows] == batch.pid[:rows])
            born = batch.role[:rows] == ev.FORK
            for row in np.flatnonzero(leaders & (batch.pid[:rows] > 0) | born).tolist():
                pid = int(batch.pid[row])
                if born[row]:  # a child has its parent's name until it takes another
                    pid, parent = int(batch.arg[row, 0]), int(batch.arg[row, 1])
                    if pid == parent or parent not in now:
                        continue
                    name = now[parent]
                    if name == wanted:
                        forked.add(pid)
                else:
                    name = batch.arg[row, 1:3].astype("<u8").tobytes().split(b"\0", 1)[0]
                    forked.discard(pid)
                    if name == wanted:
                        found.add(pid)
                now[pid] = name
                known.setdefault(name, pid)
        found |= forked
        if not found:
            names = [name.decode("utf-8", "replace") for name in list(known)[:_NAMED]]
            more = ", ..." if len(known) > _NAMED else ""
            raise UserError(
                f'no process is called "{self.process}"',
                where=self.where,
                fix=f"there are {', '.join(names)}{more}" if names else "give the process id",
            )
        return sorted(found)


@native
def _keep(batch: Any, rows: Any, wanted: Any, comms: Any) -> None:
    """Turn the events of processes that are not wanted into nobody's.

    Of the wanted ones' children their life is kept: how a clone3 call ended shows in it.
    Whom a process that is not wanted forked has its name: it goes with the FORK.
    """
    for i in range(rows):
        role = np.int64(batch.role[i])
        if role == ev.LOST or role == ev.THROTTLE:
            continue
        if role == ev.COMM:
            tid = np.int64(batch.tid[i])
            if 0 < tid < MAX_TID:
                comms[tid, 0], comms[tid, 1] = batch.arg[i, 1], batch.arg[i, 2]
        elif role == ev.FORK:
            tid, parent_tid = np.int64(batch.arg[i, 2]), np.int64(batch.arg[i, 3])
            if 0 < tid < MAX_TID and 0 < parent_tid < MAX_TID:
                comms[tid, 0], comms[tid, 1] = comms[parent_tid, 0], comms[parent_tid, 1]
                batch.arg[i, 4], batch.arg[i, 5] = comms[tid, 0], comms[tid, 1]
        pid = np.int64(batch.pid[i])
        if role == ev.FORK or role == ev.THREAD_END:
            pid = np.int64(batch.arg[i, 0])
        if pid <= 0 or pid >= MAX_TID or wanted[pid] == _ALL:
            continue
        if role == ev.FORK:
            parent = np.int64(batch.arg[i, 1])
            if 0 < parent < MAX_TID and wanted[parent] == _ALL:
                wanted[pid] = _LIFE
                continue
        elif wanted[pid] >= _LIFE and (role == ev.COMM or role == ev.THREAD_END):
            tid = np.int64(batch.tid[i])
            if role == ev.THREAD_END:
                tid = np.int64(batch.arg[i, 2])
            if tid == pid:
                continue
        elif wanted[pid] == _LIFE:
            shows = evidence(role, np.int64(batch.arg[i, 1]))
            if shows != ev.SHOWS_NOTHING and batch.tid[i] == pid:
                wanted[pid] = _LIFE_KNOWN
                batch.role[i] = ev.CHILD_SHOWS
                batch.arg[i, 0] = shows
                continue
        batch.pid[i] = 0
        batch.tid[i] = 0
        if role != ev.SCHED_SWITCH:  # whom it switches to may be wanted
            batch.role[i] = ev.OTHER
