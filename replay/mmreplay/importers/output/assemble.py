"""From pairing's output rows to the tables of a trace, in groups, on threads beside.

Operations lie in a ring of groups.  A group is encoded when its last operation has ended;
if the ring comes round before that, it waits in a file, where ends are written as they come.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers import syscalls as sc
from mmreplay.importers.pairing import state as ps
from mmreplay.importers.pairing.sleepers import waking_ns
from mmreplay.trace.chunks import Column
from mmreplay.trace.parts import Parts
from mmreplay.trace.splitstream import SplitRows, SplitStream
from mmreplay.trace.unnamed import unnamed_file

if TYPE_CHECKING:
    from mmreplay.importers.names import FileName
    from mmreplay.importers.output.columns import Block, Facts
    from mmreplay.importers.stacks import Frames
    from mmreplay.trace.writer import TraceWriter

#: Operations of a group (a row group of the file), and groups in the ring (a power of two).
GROUP_ROWS = 1 << 15
RING_GROUPS: Final = 4
#: How often in a group it is looked whether groups are complete: what depends on the
#: moment does so by the operations alone, never by how the file was read.
_LOOKS: Final = 4
_MOST_THREADS: Final = 4
#: Tables, beside the operations', whose figures depend on the cost of a probe.
_OF_PROBE: Final = ("threads", "wakeups")
#: Groups that may wait to be added to the time split.
_MOST_BEHIND: Final = 4
#: Parts of the other tables that may wait to be written.
_MOST_TABLES: Final = 8
#: What one recorded event costs the recorded thread where the trace cannot say it:
#: 0.86 to 0.94 us by switching recording on and off (2-vCPU EPYC guest, 6.18, perf 6.1).
DEFAULT_PROBE_NS: Final = 900
#: What is said of a trace with 32-bit tasks whose calls were not recorded.
NO_COMPAT: Final = "32-bit tasks: their system calls are not in syscalls:*; record raw_syscalls too"
#: What it costs is told by what comes before so many operations, or by all where there are less:
#: the same however operations are grouped.
PROBE_OPERATIONS = 1 << 15
_MIN_LOCK_GAPS: Final = 1000
_MIN_GAPS: Final = 1000


def estimate_probe(histogram: NDArray[np.int64]) -> tuple[int, str]:
    """(ns, method): what one event costs, from gaps between events.

    An uncontended mmap_lock acquisition takes some 20 ns, so the first percentile of the
    recorded gaps is one event's cost; without those the documented default is taken, but
    never more than the first percentile of all gaps within a thread, each of which
    contains the cost of one event.
    """
    lock = _first_percentile(histogram[0], _MIN_LOCK_GAPS)
    if lock is not None:
        return lock, "first percentile of mmap_lock start to acquire"
    gap = _first_percentile(histogram[1], _MIN_GAPS)
    if gap is not None and gap < DEFAULT_PROBE_NS:
        return gap, "first percentile of the gaps between events of one thread"
    return DEFAULT_PROBE_NS, "default (0.86 to 0.94 us, measured by switching recording on and off)"


def _first_percentile(bins: NDArray[np.int64], least: int) -> int | None:
    total = int(bins.sum())
    if total < least:
        return None
    place = int(np.searchsorted(np.cumsum(bins), max(1, total // 100)))
    return place * ps.BIN_NS + ps.BIN_NS // 2


class _Waiting:
    """A group that is not encoded yet."""

    def __init__(self, number: int, ring: NDArray[np.int64]) -> None:
        self.number = number
        #: (rows, O_SIZE): in the ring, or in a file that nobody else sees.
        self.rows = ring
        #: Address spaces that looked like 32-bit tasks' when the group was full.
        self.low: NDArray[np.bool_] | None = None

    def move_out(self, folder: Any) -> None:
        """Make room in the ring."""
        with unnamed_file(folder) as file:
            stored: NDArray[np.int64] = np.memmap(file, np.int64, "w+", shape=self.rows.shape)
        stored[:] = self.rows
        self.rows = stored


class Assembler:
    """Takes pairing's rows and writes the tables.

    Parameters
    ----------
    writer:
        The trace that is being written.
    switches, contention:
        Whether the recording has switches (else off-CPU columns are null) and
        contention events (else ``contention_ns`` is null).
    bounded:
        Whether ends of faults are only bounded by the thread's next event.
    stacks:
        Whether the recording has call chains.
    load:
        Loads, on a thread beside, what the end of the import needs.
    """

    def __init__(
        self,
        writer: TraceWriter,
        *,
        switches: bool,
        contention: bool,
        bounded: bool,
        stacks: bool = False,
        load: Callable[[], None] = lambda: None,
    ) -> None:
        self.writer = writer
        self.switches = switches
        self.contention = contention
        self.bounded = bounded
        self._load = load
        self.probe: tuple[int, str] | None = None
        self.more_vmas = False  # a snapshot adds some when all of the recording's are in
        self.names: list[FileName] = []  # by name id
        self.operations = 0
        self.compat = 0
        self.wakings = 0
        self.waking_ns = 0
        self.split = SplitStream(writer.directory, GROUP_ROWS, bounded)
        self._parts = Parts(writer.adopt("operations"), "operations")
        self._chains = Parts(writer.adopt("callchains"), "callchains") if stacks else None
        self._turns = 0
        self._waiting: list[_Waiting] = []
        self._opened = 0  # groups that pairing was given room for
        self._filling: dict[int, Future[None]] = {}
        self._encoding: deque[Future[None]] = deque()
        self._adding: deque[Future[None]] = deque()  # to the time split
        self._blocks: deque[Block] = deque()
        threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mmreplay-import")
        # The time split, which pairing need not wait for, and the other tables, whose parts
        # stay in order, have a thread of their own each.
        self._splitting = ThreadPoolExecutor(1, thread_name_prefix="mmreplay-split")
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="mmreplay-tables")
        self._tables: deque[Future[None]] = deque()
        self._early: dict[str, deque[NDArray[np.int64]]] = {
            name: deque() for name in ("vmas", "threads", "schedule", "locks", "gaps", "wakeups")
        }

    def start(self, config: ps.Config) -> ps.State:
        """What pairing begins with."""
        state = ps.State(RING_GROUPS * GROUP_ROWS, config)
        self._open(state)
        return state

    def take(self, state: ps.State) -> None:
        """Take what is finished out of ``state``, so that pairing can go on."""
        count = state.count
        self._patch(state)
        if count[ps.C_ROOM] - count[ps.C_OPS] < ps.MARGIN:
            if count[ps.C_ROOM] >= PROBE_OPERATIONS:
                self._estimate(state)
            self._submit(state)
            self._open(state)
        self._take_others(state)

    def forget(self, state: ps.State) -> None:
        """Forget what was done so far, but for the mappings that are known; nothing was taken."""
        used = int(state.count[ps.C_VMAS])
        if used:
            self._early["vmas"].append(state.table("vmas")[:used].copy())
            state.count[ps.C_VMAS] = 0
        state.forget()

    def finish(self, state: ps.State) -> dict[str, int]:
        """Write the rest, and the columns that the whole trace decides; returns counters."""
        self._patch(state)
        self._submit(state, last=True)
        self._take_others(state, last=True)
        groups = -(-int(state.count[ps.C_OPS]) // GROUP_ROWS)
        for name in self._early:
            if name != "vmas" or not self.more_vmas:
                self._tables.append(self._beside.submit(self._complete, name))
        for filled in self._filling.values():
            filled.result()
        for added in self._adding:
            added.result()
        self.split.settle()
        late = [self._pool.submit(self._encode_late, group) for group in range(groups)]
        for done in (*self._encoding, *late, *self._tables):
            done.result()
        self._beside.submit(self.split.close)
        self.operations, size_bytes, crc32 = self._parts.close()
        self.writer.note("operations", self.operations, size_bytes, crc32)
        if self._chains is not None:
            self.writer.note("callchains", *self._chains.close())
        for pool in (self._pool, self._splitting, self._beside):
            pool.shutdown(wait=True)
        woken = {"timesplit_wakings": self.wakings, "timesplit_waking_ns": self.waking_ns}
        return self.split.report.counters() | {name: n for name, n in woken.items() if n}

    def abandon(self) -> None:
        """Stop the threads beside; what was written is the caller's to discard."""
        for pool in (self._pool, self._splitting, self._beside):
            pool.shutdown(wait=True, cancel_futures=True)
        self._parts.abandon()
        if self._chains is not None:
            self._chains.abandon()
        self.split.close()

    # -- operations ------------------------------------------------------------------------

    def _open(self, state: ps.State) -> None:
        """Give pairing room for the next step, in a new group where the last one is full."""
        count = state.count
        if count[ps.C_ROOM] == self._opened * GROUP_ROWS:
            group = self._opened
            if group >= RING_GROUPS:
                self._vacate(group - RING_GROUPS)
                count[ps.C_BASE] = (group - RING_GROUPS + 1) * GROUP_ROWS
            at = group % RING_GROUPS * GROUP_ROWS
            self._waiting.append(_Waiting(group, state.rows_of(at, GROUP_ROWS)))
            self._opened += 1
        while self._encoding and self._encoding[0].done():
            self._encoding.popleft().result()
        while len(self._adding) > _MOST_BEHIND:
            self._adding.popleft().result()
        count[ps.C_ROOM] += min(GROUP_ROWS // _LOOKS, PROBE_OPERATIONS)

    def _vacate(self, number: int) -> None:
        """Nobody may read the group's place in the ring any more."""
        for group in self._waiting:
            if group.number == number:
                group.move_out(self.writer.directory)
                return
        filled = self._filling.pop(number, None)
        if filled is not None:
            filled.result()

    def _submit(self, state: ps.State, last: bool = False) -> None:
        """Hand all complete groups to the threads beside."""
        rows = int(state.count[ps.C_OPS])
        full = [g for g in self._waiting if last or (g.number + 1) * GROUP_ROWS <= rows]
        if not full:
            return
        spaces = state.table("spaces")[: state.count[ps.C_SPACES]]
        # All of a 64-bit task's addresses below 4 GiB does not happen: its stack is high, and so
        # is what the kernel places.
        low = (spaces[:, ps.A_FAULTS] > 0) | (spaces[:, ps.A_PLACED] > 0)
        low &= spaces[:, ps.A_HIGHEST] < 1 << 32
        low &= spaces[:, ps.A_HIGHEST] > 0
        for group in full:
            if group.low is None:
                group.low = low
        open_groups = set() if last else _open_groups(state)
        if last:
            self._estimate(state)
        if open_groups is None or self.probe is None:
            return
        if not self._turns:  # not before: pairing cannot begin while others load modules
            self._beside.submit(self._load)
        alias = ps.resolve_aliases(spaces)
        waking = waking_ns(state.table("thought").reshape(2, ps.BINS))
        for group in full:
            if group.number not in open_groups:
                self._waiting.remove(group)
                count = min(GROUP_ROWS, rows - group.number * GROUP_ROWS)
                if count > 0:
                    filled = self._filling[group.number] = Future()
                    self._encoding.append(
                        self._pool.submit(
                            self._encode, self._turns, group, count, alias, waking, filled
                        )
                    )
                    self._turns += 1

    def _estimate(self, state: ps.State) -> None:
        if self.probe is None:
            self.probe = estimate_probe(state.table("histogram").reshape(2, ps.BINS))

    def _encode(
        self,
        turn: int,
        group: _Waiting,
        count: int,
        alias: NDArray[np.int64],
        waking: int,
        filled: Future[None],
    ) -> None:
        """Turn a group into columns, which ``filled`` tells, and write them.

        Its place in the ring is free then, and the time split goes on with it.
        """
        from mmreplay.importers.output.columns import chains_of, early, new_block

        try:
            assert self.probe is not None
            assert group.low is not None
            block = self._blocks.popleft() if self._blocks else new_block(GROUP_ROWS)
            split = self.split.take()
            table, facts = early(
                group.rows[:count],
                alias,
                group.low,
                self.probe[0],
                waking,
                self.switches,
                self.contention,
                self.bounded,
                block,
                split,
            )
            chains = chains_of(group.rows[:count]) if self._chains is not None else {}
        except BaseException as error:
            filled.set_exception(error)
            raise
        self._adding.append(self._splitting.submit(self._add, group.number, count, facts, split))
        filled.set_result(None)
        self._parts.write(turn, group.number, table)
        if self._chains is not None:
            self._chains.write(turn, group.number, chains)
        self._blocks.append(block)

    def _add(self, group: int, rows: int, facts: Facts, split: SplitRows) -> None:
        self.compat += facts.compat
        self.wakings += facts.wakings
        self.waking_ns += facts.waking_ns
        self.split.add(group, rows, split)

    def _encode_late(self, number: int) -> None:
        from mmreplay.importers.output.columns import late

        part = late(self.split.divide(number), self.bounded)
        self._parts.write(self._turns + number, number, part)

    def _patch(self, state: ps.State) -> None:
        """Write ends of operations that have left the ring."""
        count = int(state.count[ps.C_PATCHES])
        if not count:
            return
        rows = state.table("patch_rows")[:count, 0].copy()
        patches = state.rows_of(int(state.count[ps.C_RING]), count)
        state.count[ps.C_PATCHES] = 0
        for group in self._waiting:
            here = np.flatnonzero(rows // GROUP_ROWS == group.number)
            if not len(here):
                continue
            at = rows[here] % GROUP_ROWS
            closing = list(ps.CLOSING)
            group.rows[at[:, None], closing] = patches[here][:, closing]
            for column in (ps.O_QUALITY, ps.O_KNOWN):
                group.rows[at, column] |= patches[here, column]

    # -- the other tables ------------------------------------------------------------------

    def _take_others(self, state: ps.State, last: bool = False) -> None:
        count = state.count
        for name, counter in (
            ("thread_rows", ps.C_THREAD_ROWS),
            ("schedule", ps.C_SCHEDULE),
            ("locks", ps.C_LOCKS),
            ("vmas", ps.C_VMAS),
            ("gaps", ps.C_GAPS),
            ("wakeups", ps.C_WAKEUPS),
        ):
            table = state.table(name)
            used = int(count[counter])
            if used and (last or len(table) - used < ps.MARGIN):
                key = "threads" if name == "thread_rows" else name
                self._early[key].append(table[:used].copy())
                count[counter] = 0
        alias: NDArray[np.int64] | None = None
        for name, parts in self._early.items():
            # One part stays back, so that a guess about its address space can be settled.
            while parts and (last or len(parts) > 1):
                if alias is None:
                    alias = ps.resolve_aliases(state.table("spaces")[: count[ps.C_SPACES]])
                if name in _OF_PROBE:
                    self._estimate(state)
                done = self._beside.submit(self._write, name, parts.popleft(), alias)
                self._tables.append(done)
        while not last and len(self._tables) > _MOST_TABLES:
            self._tables.popleft().result()

    def _complete(self, name: str) -> None:
        """Nothing more comes to a table."""
        self.writer.finish(name)

    def add_frames(self, frames: Frames) -> None:
        """Frames of call chains that were not seen before."""
        self._tables.append(self._beside.submit(self._write_frames, frames))

    def _write_frames(self, frames: Frames) -> None:
        columns = frames._asdict().items()
        self.writer.write("stacks", {name: Column(values) for name, values in columns})

    def _write(self, name: str, rows: NDArray[np.int64], alias: NDArray[np.int64]) -> None:
        self.writer.write(name, self._table(name, rows, alias))

    def _table(
        self, name: str, rows: NDArray[np.int64], alias: NDArray[np.int64]
    ) -> dict[str, Column]:
        from mmreplay.importers.output import tables

        if name == "vmas":
            return tables.vmas(rows, alias, self.names)
        if name == "threads":
            assert self.probe is not None
            return tables.threads(rows, alias, self.probe[0], self.switches)
        if name == "wakeups":
            assert self.probe is not None
            return tables.wakeups(rows, self.probe[0])
        if name == "locks":
            return tables.locks(rows, alias)
        return tables.schedule(rows) if name == "schedule" else tables.gaps(rows)


def _open_groups(state: ps.State) -> set[int] | None:
    """Groups that hold an operation that has not ended.

    None while a new process may still turn out to share its parent's address space.
    """
    threads = state.table("threads")[: state.count[ps.C_THREADS]]
    procs = state.table("procs")[: state.count[ps.C_PROCS]]
    guesses = procs[procs[:, ps.P_GUESS_PARENT] > 0]
    parents = threads[guesses[:, ps.P_GUESS_PARENT] - 1]
    cloning = parents[:, ps.S_CALL] == sc.C_CLONE3 + 1
    if (cloning & (parents[:, ps.S_CALL_CHILD] == guesses[:, ps.P_PID])).any():
        return None
    calls = threads[threads[:, ps.S_CALL] != 0, ps.S_CALL_ROW]
    faults = threads[threads[:, ps.S_FAULT] != 0, ps.S_FAULT_ROW]
    groups = set((np.concatenate([calls, faults]) // GROUP_ROWS).tolist())
    made = procs[procs[:, ps.P_GUESS_OPEN] > 0, ps.P_GUESS_ROW]
    made = made[made >= state.count[ps.C_BASE]]  # else it is too late
    if len(made):
        groups.update(
            range(int(made.min()) // GROUP_ROWS, int(state.count[ps.C_ROOM]) // GROUP_ROWS + 1)
        )
    return groups
