"""What pairing remembers between windows, and the rows it hands out.

All arrays are int64 matrices, one row per thread, process, address space or output row;
the names below are their columns.  Memory is one row per tid, process and address space
seen, and a ring of operations.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers import syscalls as sc
from mmreplay.importers.binary import bare, mix
from mmreplay.jit import borrowing_helper, native
from mmreplay.trace.memory import zeros

# Columns of a thread.
(
    S_TID,
    S_PID,
    S_PROC,
    S_STATE,  # ALIVE, DEAD
    S_STARTED,  # its THREAD_START was given out, or it was there before; 2: P_GUESS_OPEN, too
    S_LAST_NS,
    S_LAST_CPU,
    S_RUN,  # RUNNING, BLOCKED, PREEMPTED, OFF_UNKNOWN
    S_ACCOUNTED_NS,
    S_OFF_NS,
    S_OFF_CPU,
    S_PRE_CPU,
    S_PRE_BLOCKED,
    S_PRE_PREEMPTED,
    S_PRE_EVENTS,
    S_PRE_KNOWN,
    S_AFTER_GAP,
    # the open system call
    S_CALL,  # call + 1, 0 none
    S_CALL_ROW,
    S_CALL_NS,
    S_CALL_BLOCKED,
    S_CALL_SLEPT,  # from its begin to the end of its last blocked span
    S_CALL_PREEMPTED,
    S_CALL_EVENTS,
    S_CALL_CONTENTION,
    S_CALL_CPU,
    S_CALL_FLAGS,
    S_CALL_ADDRESS,
    S_CALL_CHILD,
    S_CALL_CHILD_KIND,  # 0 not seen, 1 thread, 2 process
    S_CALL_CHILD_GONE,  # the child has executed or exited meanwhile
    S_CALL_CHILD_SHARES,  # what the child did first shows that it shares the memory
    S_CALL_LENGTH,
    S_CALL_NESTED,  # time of faults inside it
    # the open fault
    S_FAULT,  # role, 0 none
    S_FAULT_ROW,
    S_FAULT_NS,
    S_FAULT_ADDRESS,
    S_FAULT_BLOCKED,
    S_FAULT_SLEPT,
    S_FAULT_PREEMPTED,
    S_FAULT_EVENTS,
    S_FAULT_CONTENTION,
    S_FAULT_CPU,
    S_FAULT_END,  # when the fault that was its last operation ended; 0: another was
    # open waits and holds
    S_WAITS,
    S_HOLDS,
    # for the table of threads
    S_PARENT,
    S_SPACE,
    S_START_NS,
    S_END_NS,
    S_FIRST_NS,
    S_START_KIND,
    S_COMM0,
    S_COMM1,
    S_ROW,  # its last operation + 1, 0 none
    # who ended its blocked time
    S_WAKE_NS,  # 0: nobody yet
    S_WAKER,
    S_WAKER_ROW,
    S_WAKER_CPU,
    S_WAKER_EVENTS,
    S_WAKER_BLOCKED,
    # the open futex call, and its place among those of its bucket; see pair_futex.py
    S_FUTEX,  # FUTEX_*
    S_FUTEX_OP,
    S_FUTEX_KEY,
    S_FUTEX_KEY2,
    S_FUTEX_VALUE,
    S_FUTEX_VALUE2,
    S_FUTEX_BITS,
    S_FUTEX_NS,
    S_FUTEX_NEXT,  # slot + 1
    S_FUTEX_BEFORE,
    S_FUTEX_GIVEN,  # of a waker: who has returned already
    # who woke it, as it was then; of a waker, itself
    S_MARK_NS,  # 0: nobody yet
    S_MARK_TID,
    S_MARK_ROW,
    S_MARK_CPU,
    S_MARK_EVENTS,
    S_MARK_BLOCKED,
    # its last sleep in a futex call
    S_NAP_OFF,
    S_NAP_ON,  # 0: it has not slept
    S_NAP_ROW,
    S_NAP_CPU,
    S_NAP_EVENTS,
    S_NAP_BLOCKED,
    S_SIZE,
) = range(86)
STACK: Final = 4
# Columns of one open wait (contention span): address, begin, flags.
WAIT_SIZE: Final = 3
# Columns of one open mmap_lock: mm, begin of the wait, time acquired (-1 not yet), write.
HOLD_SIZE: Final = 4

ALIVE, DEAD = 1, 2
RUNNING, BLOCKED, PREEMPTED, OFF_UNKNOWN = 0, 1, 2, 3
START_FIRST_SEEN, START_FORK, START_THREAD, START_ATTACH, START_EXEC = range(5)
#: S_START_KIND of a thread that is over and belongs to no table.
START_FORGOTTEN: Final = -1
START_KINDS: Final = ("first_seen", "fork", "thread", "attach", "exec")

#: S_FUTEX: none; waits; wakes; waits, and only the end of a thread may tell who woke it.
FUTEX_NONE, FUTEX_WAITS, FUTEX_WAKES, FUTEX_JOINS = range(4)
FUTEX_BUCKETS: Final = 4096

# Columns of a process.
(
    P_PID,
    P_SPACE,
    P_BEFORE_EXEC,  # the address space that the last exec left
    P_LIVE,
    P_BREAK,
    P_EXEC_THREAD,  # slot + 1 of the thread inside execve
    P_EXECUTING,  # between the exec and the first user-mode event
    P_GUESS_PARENT,  # slot + 1 of the thread whose clone3 made it, until known
    P_GUESS_SPACE,
    P_GUESS_OPEN,  # 1 until the child's first deed tells whether it shares the parent's memory
    P_GUESS_ROW,  # the operation that made it
    P_GUESS_MOTHER,  # the parent's address space then
    P_SIZE,
) = range(13)

# Columns of an address space.
(
    A_USERS,
    A_HIGHEST,
    A_FAULTS,
    A_ALIAS,
    A_MAPPED,
    A_PLACED,
    # the thread that went to sleep for its lock last, until its waker is known; see sleepers.py
    A_SLEEPER,  # tid, 0 none
    A_SLEEP_SINCE,  # begin of its operation
    A_SLEEP_OFF,
    A_SLEEP_ON,
    A_SIZE,
) = range(11)

# Columns of an operation; those behind O_KNOWN are of system calls only.
(
    O_BEGIN,
    O_SEQ,
    O_DURATION,
    O_DURATION_KIND,
    O_THINK,
    O_PRE_BLOCKED,
    O_PRE_PREEMPTED,
    O_PRE_EVENTS,
    O_CONTENTION,
    O_BLOCKED,
    O_SLEPT,
    O_PREEMPTED,
    O_EVENTS,
    O_NESTED,
    O_PID,
    O_TID,
    O_SPACE,
    O_CPU,
    O_KIND,
    O_ADDRESS,
    O_BITS,
    O_CLASS,
    O_IP,
    O_WEIGHT,
    O_QUALITY,
    O_KNOWN,  # bits K_*: which nullable columns hold a value
    O_LENGTH,
    O_FLAGS,
    O_ADDRESS2,
    O_LENGTH2,
    O_PROT,
    O_OFFSET,
    O_FD,
    O_RESULT,
    O_CHILD,
    O_STACK,
    O_SIZE,
) = range(37)
#: Columns that closing an operation sets; O_QUALITY and O_KNOWN are or-ed.
CLOSING: Final = (
    O_DURATION,
    O_DURATION_KIND,
    O_CONTENTION,
    O_BLOCKED,
    O_SLEPT,
    O_PREEMPTED,
    O_EVENTS,
    O_NESTED,
    O_KIND,
    O_ADDRESS,
    O_LENGTH,
    O_RESULT,
    O_CLASS,
    O_CHILD,
)
# Bits of O_KNOWN; bits 0 to 7 are the argument slots of syscalls.py.
K_ADDRESS, K_LENGTH = 1, 2
K_RESULT, K_BITS, K_CHILD, K_DURATION, K_THINK, K_INSIDE = 256, 512, 1024, 2048, 4096, 8192

# Columns of the other outputs.
(H_TID, H_PID, H_PARENT, H_SPACE, H_START, H_END, H_FIRST, H_LAST, H_KIND, H_COMM0, H_COMM1,
 H_TAIL_CPU, H_TAIL_BLOCKED, H_TAIL_EVENTS, H_TAIL_KNOWN, H_SIZE) = range(16)  # fmt: skip
(E_TID, E_OFF, E_ON, E_CPU, E_REASON, E_SIZE) = range(6)
(L_TID, L_SPACE, L_ADDRESS, L_FLAGS, L_MODE, L_BEGIN, L_WAIT, L_HOLD, L_SIZE) = range(9)
(V_SPACE, V_NS, V_START, V_LENGTH, V_PROT_FLAGS, V_OFFSET, V_INODE, V_DEVICE, V_NAME, V_SOURCE,
 V_SIZE) = range(11)  # fmt: skip
(W_TID, W_OFF, W_WAKE, W_ON, W_ROW, W_CPU, W_EVENTS, W_BLOCKED, W_WAKER, W_WAKER_ROW,
 W_WAKER_CPU, W_WAKER_EVENTS, W_WAKER_BLOCKED, W_SIZE) = range(14)  # fmt: skip
(Z_RING, Z_BEGIN, Z_END, Z_LOST, Z_EVENT, Z_SIZE) = range(6)
SOURCES: Final = ("snapshot", "exec", "mmap2")
#: L_MODE of an mmap_lock hold; contention spans carry 0 and say it in L_FLAGS.
MODE_SPAN, MODE_READ, MODE_WRITE = 0, 1, 2
#: Z_EVENT of a loss; anything else is a throttling.
GAP_LOST: Final = 25

# Counters.
(
    C_THREADS,
    C_PROCS,
    C_SPACES,
    C_OPS,
    C_RING,  # rows of the ring of operations
    C_BASE,  # number of the first row that is still in the ring
    C_ROOM,  # number of the row before which pairing must stop
    C_BEGIN_NS,  # begin and seq of the last row
    C_SEQ,
    C_PATCHES,
    C_THREAD_ROWS,
    C_SCHEDULE,
    C_LOCKS,
    C_VMAS,
    C_GAPS,
    C_WAKEUPS,
    C_LAST_NS,
    C_NEGATIVE,
    C_BEGIN_UNSEEN,
    C_END_UNSEEN,
    C_FAILED,
    C_BAD_THREAD,
    C_DEAD_EVENT,
    C_UNMATCHED_LOCK,
    C_TRYLOCK_FAILED,
    C_GAP_EVENTS,
    C_WAKE_INTERRUPT,
    C_WAKE_INSIDE,
    C_WAKE_LOCK,
    C_WAKE_UNTOLD,
    C_WAKE_UNCLEAR,
    C_FUTEX_UNKNOWN,
    C_FUTEX_JOINS,
    C_FUTEX_BLIND,
    C_LOSSES,
    # what the recording holds (Config)
    C_STARTS,
    C_ENDS,
    C_PAIR,
    C_SWITCHES,
    C_SPANS,
    C_WAKINGS,
    C_FUTEXES,
    C_STACK,  # call chain of the event at hand
    C_SIZE,
) = range(44)

#: pid_max on 64-bit kernels (include/linux/threads.h@6.18): a larger tid is damage.
MAX_TID: Final = 4 << 20
MAX_CPU: Final = 32_768
#: Histograms of gaps between events: bins of 10 ns up to 40 µs.
BIN_NS: Final = 10
BINS: Final = 4096


class Config(NamedTuple):
    """What the recording holds, as pairing needs it."""

    fault_starts: bool
    fault_ends: bool
    pair: bool  # False for sampled recordings
    enters: NDArray[np.uint8]  # (calls,)
    exits: NDArray[np.uint8]
    switches: bool
    lock_spans: bool
    wakings: bool = False


#: Tables of the arena: name -> (columns, rows at first).  Compiled code takes one array and
#: row numbers: a dozen arrays passed to each helper cost it a microsecond an event.
TABLES: Final[dict[str, tuple[int, int]]] = {
    "threads": (S_SIZE, 1024),
    "waits": (STACK * WAIT_SIZE, 1024),
    "holds": (STACK * HOLD_SIZE, 1024),
    "tids": (2, 4096),
    "procs": (P_SIZE, 1024),
    "pids": (2, 4096),
    "spaces": (A_SIZE, 1024),
    "patch_rows": (1, 4096),
    "thread_rows": (H_SIZE, 4096),
    "schedule": (E_SIZE, 1 << 14),
    "locks": (L_SIZE, 1 << 14),
    "vmas": (V_SIZE, 1 << 14),
    "gaps": (Z_SIZE, 4096),
    "wakeups": (W_SIZE, 1 << 14),
    "gap_ns": (1, MAX_CPU + 1),  # last loss of the CPU, at [cpu + 1]
    "ring_ns": (1, MAX_CPU + 1),  # last event of the CPU
    "histogram": (1, 2 * BINS),  # mmap_lock start to acquire; any gap
    "thought": (1, 2 * BINS),  # think time behind faults: usual; with waking a waiter
    "exits": (1, 64),  # whether the call's returns were recorded
    "futexes": (2, FUTEX_BUCKETS),  # first and last thread of the bucket: slot + 1
}
(
    B_THREADS,
    B_WAITS,
    B_HOLDS,
    B_TIDS,
    B_PROCS,
    B_PIDS,
    B_SPACES,
    B_PATCH_ROWS,
    B_THREAD_ROWS,
    B_SCHEDULE,
    B_LOCKS,
    B_VMAS,
    B_GAPS,
    B_WAKEUPS,
    B_GAP_NS,
    B_RING_NS,
    B_HISTOGRAM,
    B_THOUGHT,
    B_EXITS,
    B_FUTEXES,
) = range(C_SIZE, C_SIZE + 20)  # entries of the arena that hold where each table begins
N_FIRST: Final = C_SIZE + 20  # from here on: rows of each table, in the same order
_HEAD: Final = N_FIRST + 20
#: Rows behind the ring of operations that take the ends of rows that have left it.
PATCH_ROWS: Final = 4096


class State:
    """Everything pairing keeps: one arena of int64, and the ring of operations.

    ``arena`` begins with the counters (C_*), the places of the tables (B_*) and their
    rows.  ``ops`` holds rows of O_SIZE, ring + PATCH_ROWS of them: operation ``r`` is row
    ``r % ring`` (a power of two) until ``C_BASE`` has passed it.  Both are flat, so that
    compiled code can take them as bare pointers.
    """

    def __init__(self, ring_rows: int, config: Config) -> None:
        self.rows = {name: rows for name, (_, rows) in TABLES.items()}
        self.arena = self._arena()
        self.ops = zeros(8 * (ring_rows + PATCH_ROWS) * O_SIZE).view(np.int64)
        self.arena[C_RING] = ring_rows
        self.arena[C_BEGIN_NS] = -1
        self.table("gap_ns")[:] = -1
        self.table("ring_ns")[:] = -1
        self.arena[C_STARTS] = config.fault_starts
        self.arena[C_ENDS] = config.fault_ends
        self.arena[C_PAIR] = config.pair
        self.arena[C_SWITCHES] = config.switches
        self.arena[C_SPANS] = config.lock_spans
        self.arena[C_WAKINGS] = config.wakings
        self.arena[C_FUTEXES] = sc.tells_futexes(config.enters, config.exits)
        self.table("exits")[: len(config.exits), 0] = config.exits

    @property
    def count(self) -> NDArray[np.int64]:
        """The counters."""
        return self.arena[:C_SIZE]

    def table(self, name: str) -> NDArray[np.int64]:
        """One table as (rows, columns)."""
        index = list(TABLES).index(name)
        columns, rows = TABLES[name][0], self.rows[name]
        at = int(self.arena[C_SIZE + index])
        return self.arena[at : at + rows * columns].reshape(rows, columns)

    def rows_of(self, first: int, count: int) -> NDArray[np.int64]:
        """(count, O_SIZE) rows of ``ops`` from ``first`` on; behind the ring lie the patches."""
        return self.ops[first * O_SIZE : (first + count) * O_SIZE].reshape(count, O_SIZE)

    def grow(self) -> None:
        """Double the tables of threads, processes and spaces that are nearly full."""
        count = self.count
        wanted = dict(self.rows)
        for names, hashed, used in (
            (("threads", "waits", "holds"), "tids", count[C_THREADS]),
            (("procs",), "pids", count[C_PROCS]),
            (("spaces",), "", count[C_SPACES]),
        ):
            if self.rows[names[0]] - used < MARGIN:
                for name in names:
                    wanted[name] = 2 * self.rows[name]
                if hashed:
                    wanted[hashed] = 2 * self.rows[hashed]
        if wanted == self.rows:
            return
        old = {name: self.table(name) for name in TABLES}
        counters = self.count
        before, self.rows = self.rows, wanted
        self.arena = self._arena()
        self.arena[:C_SIZE] = counters
        for index, name in enumerate(TABLES):
            if name in ("tids", "pids") and wanted[name] != before[name]:
                _refill(old[name], self.arena, C_SIZE + index)
            else:
                self.table(name)[: before[name]] = old[name]

    def forget(self) -> None:
        """Begin here: keep who is there and what he does, none of what was done.

        What is open is left: its end will come without a begin.  The known mappings must
        have been taken.
        """
        threads = self.table("threads")[: self.count[C_THREADS]]
        for column in (
            S_CALL,
            S_FAULT,
            S_WAITS,
            S_HOLDS,
            S_AFTER_GAP,
            S_FIRST_NS,
            S_ROW,
            S_WAKE_NS,
            S_FUTEX,
            S_FAULT_END,
        ):
            threads[:, column] = 0
        for column in (S_PRE_CPU, S_PRE_BLOCKED, S_PRE_PREEMPTED, S_PRE_EVENTS, S_PRE_KNOWN):
            threads[:, column] = 0
        threads[threads[:, S_RUN] == RUNNING, S_OFF_NS] = -1
        alive = threads[:, S_STATE] == ALIVE
        threads[:, S_START_NS] = -1
        threads[:, S_START_KIND] = np.where(alive, START_ATTACH, START_FORGOTTEN)
        for name in ("gap_ns", "ring_ns"):
            self.table(name)[:] = -1
        self.table("histogram")[:] = 0
        self.table("thought")[:] = 0
        self.table("futexes")[:] = 0
        self.table("spaces")[:, A_SLEEPER] = 0
        count = self.count
        for counter in (C_OPS, C_PATCHES, C_SEQ, C_THREAD_ROWS, C_SCHEDULE, C_LOCKS, C_GAPS):
            count[counter] = 0
        count[C_WAKEUPS] = 0
        count[C_NEGATIVE : C_LOSSES + 1] = 0
        count[C_BEGIN_NS] = -1

    def _arena(self) -> NDArray[np.int64]:
        at = _HEAD
        places = []
        for name, (columns, _) in TABLES.items():
            places.append(at)
            at += columns * self.rows[name]
        arena = zeros(8 * at).view(np.int64)
        arena[C_SIZE : C_SIZE + len(places)] = places
        arena[N_FIRST : N_FIRST + len(places)] = list(self.rows.values())
        return arena


def resolve_aliases(spaces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Address space -> the one it turned out to be (a vfork-like child's is its parent's)."""
    alias = np.arange(len(spaces))
    for space in np.flatnonzero(spaces[:, A_ALIAS] >= 0).tolist():
        target = int(spaces[space, A_ALIAS])
        alias[space] = alias[target]
    return alias


#: No event adds more rows than this to any table.
MARGIN: Final = 8


@borrowing_helper
def place(a: Any, row: int) -> Any:
    """Where the columns of operation ``row`` begin in the ring."""
    return (row & (a[C_RING] - 1)) * O_SIZE


@borrowing_helper
def threads_at(a: Any, slot: int) -> Any:
    """Where the thread's columns begin in the arena."""
    return a[B_THREADS] + slot * S_SIZE


@borrowing_helper
def procs_at(a: Any, proc: int) -> Any:
    """Where the process's columns begin in the arena."""
    return a[B_PROCS] + proc * P_SIZE


@borrowing_helper
def spaces_at(a: Any, space: int) -> Any:
    """Where the address space's columns begin in the arena."""
    return a[B_SPACES] + space * A_SIZE


@borrowing_helper
def rows_of(a: Any, base: int) -> Any:
    """Rows of the table whose place is in ``a[base]``."""
    return a[base - C_SIZE + N_FIRST]


@borrowing_helper
def _place(a: Any, base: int, key: int) -> Any:
    """Where the key is, or where it would go, in an open-addressing table of (key, value)."""
    mask = rows_of(a, base) - 1
    row = np.int64(mix(np.uint64(key)) & np.uint64(mask))
    at = a[base] + 2 * row
    while a[at] != 0 and a[at] != key:
        row = (row + 1) & mask
        at = a[base] + 2 * row
    return at


@borrowing_helper
def tid_find(a: Any, tid: int) -> Any:
    """Slot of the thread, or -1."""
    at = _place(a, B_TIDS, tid)
    return a[at + 1] if a[at] else -1


@borrowing_helper
def tid_put(a: Any, tid: int, slot: int) -> None:
    """Set the slot of the thread."""
    at = _place(a, B_TIDS, tid)
    a[at] = tid
    a[at + 1] = slot


@borrowing_helper
def pid_find(a: Any, pid: int) -> Any:
    """Slot of the process, or -1."""
    at = _place(a, B_PIDS, pid)
    return a[at + 1] if a[at] else -1


@borrowing_helper
def pid_put(a: Any, pid: int, slot: int) -> None:
    """Set the slot of the process."""
    at = _place(a, B_PIDS, pid)
    a[at] = pid
    a[at + 1] = slot


@native
def _refill(old: Any, arena: Any, base: int) -> None:
    a = bare(arena)
    for row in range(old.shape[0]):
        if old[row, 0] != 0:
            at = _place(a, base, old[row, 0])
            a[at] = old[row, 0]
            a[at + 1] = old[row, 1]
