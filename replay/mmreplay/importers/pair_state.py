"""What pairing remembers between windows, and the rows it hands out.

All arrays are int64 matrices, one row per thread, process, address space or output row;
the names below are their columns.  Memory is one row per tid, process and address space
seen, and one window of output.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers.binary import new_table, table_put
from mmreplay.jit import njit

# Columns of a thread.
(
    S_TID,
    S_PID,
    S_PROC,
    S_STATE,  # ALIVE, DEAD
    S_STARTED,  # its THREAD_START was given out, or it was there before
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
    S_CALL_PREEMPTED,
    S_CALL_EVENTS,
    S_CALL_CONTENTION,
    S_CALL_CPU,
    S_CALL_FLAGS,
    S_CALL_ADDRESS,
    S_CALL_CHILD,
    S_CALL_CHILD_KIND,  # 0 not seen, 1 thread, 2 process
    S_CALL_CHILD_GONE,  # the child has executed or exited meanwhile
    S_CALL_LENGTH,
    # the open fault
    S_FAULT,  # role, 0 none
    S_FAULT_ROW,
    S_FAULT_NS,
    S_FAULT_ADDRESS,
    S_FAULT_BLOCKED,
    S_FAULT_PREEMPTED,
    S_FAULT_EVENTS,
    S_FAULT_CONTENTION,
    S_FAULT_CPU,
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
    S_SIZE,
) = range(51)
STACK: Final = 4
# Columns of one open wait (contention span): address, begin, flags.
WAIT_SIZE: Final = 3
# Columns of one open mmap_lock: mm, begin of the wait, time acquired (-1 not yet), write.
HOLD_SIZE: Final = 4

ALIVE, DEAD = 1, 2
RUNNING, BLOCKED, PREEMPTED, OFF_UNKNOWN = 0, 1, 2, 3
START_FIRST_SEEN, START_FORK, START_THREAD, START_ATTACH, START_EXEC = range(5)
START_KINDS: Final = ("first_seen", "fork", "thread", "attach", "exec")

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
    P_SIZE,
) = range(10)

# Columns of an address space.
(A_USERS, A_HIGHEST, A_FAULTS, A_ALIAS, A_MAPPED, A_SIZE) = range(6)

# Columns of an operation.
(
    O_BEGIN,
    O_DURATION,
    O_DURATION_KIND,
    O_THINK,
    O_PRE_BLOCKED,
    O_PRE_PREEMPTED,
    O_PRE_EVENTS,
    O_CONTENTION,
    O_BLOCKED,
    O_PREEMPTED,
    O_EVENTS,
    O_PID,
    O_TID,
    O_SPACE,
    O_CPU,
    O_KIND,
    O_ADDRESS,
    O_LENGTH,
    O_ADDRESS2,
    O_LENGTH2,
    O_PROT,
    O_FLAGS,
    O_OFFSET,
    O_FD,
    O_RESULT,
    O_BITS,
    O_CLASS,
    O_CHILD,
    O_IP,
    O_WEIGHT,
    O_QUALITY,
    O_KNOWN,  # bits K_*: which nullable columns hold a value
    O_SIZE,
) = range(33)
#: Columns that closing an operation sets; O_QUALITY and O_KNOWN are or-ed.
CLOSING: Final = (
    O_DURATION,
    O_DURATION_KIND,
    O_CONTENTION,
    O_BLOCKED,
    O_PREEMPTED,
    O_EVENTS,
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
K_OPEN: Final = 1 << 20  # still open when its row left the window

# Columns of the other outputs.
(H_TID, H_PID, H_PARENT, H_SPACE, H_START, H_END, H_FIRST, H_LAST, H_KIND, H_COMM0, H_COMM1,
 H_TAIL_CPU, H_TAIL_BLOCKED, H_TAIL_EVENTS, H_TAIL_KNOWN, H_SIZE) = range(16)  # fmt: skip
(E_TID, E_OFF, E_ON, E_CPU, E_REASON, E_SIZE) = range(6)
(L_TID, L_SPACE, L_ADDRESS, L_FLAGS, L_MODE, L_BEGIN, L_WAIT, L_HOLD, L_SIZE) = range(9)
(V_SPACE, V_NS, V_START, V_LENGTH, V_PROT_FLAGS, V_OFFSET, V_INODE, V_DEVICE, V_NAME, V_SOURCE,
 V_SIZE) = range(11)  # fmt: skip
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
    C_BASE,  # number of the first row of the current window of operations
    C_PATCHES,
    C_THREAD_ROWS,
    C_SCHEDULE,
    C_LOCKS,
    C_VMAS,
    C_GAPS,
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
    C_SIZE,
) = range(22)

#: pid_max on 64-bit kernels (include/linux/threads.h@6.18): a larger tid is damage.
MAX_TID: Final = 4 << 20
MAX_CPU: Final = 32_768
#: Histograms of gaps between events: bins of 10 ns up to 40 µs.
BIN_NS: Final = 10
BINS: Final = 4096


class State(NamedTuple):
    """Everything pairing keeps; see the columns above."""

    count: NDArray[np.int64]
    threads: NDArray[np.int64]
    waits: NDArray[np.int64]  # (threads, STACK, WAIT_SIZE)
    holds: NDArray[np.int64]  # (threads, STACK, HOLD_SIZE)
    tid_keys: NDArray[np.uint64]
    tid_values: NDArray[np.int32]
    procs: NDArray[np.int64]
    pid_keys: NDArray[np.uint64]
    pid_values: NDArray[np.int32]
    spaces: NDArray[np.int64]
    ops: NDArray[np.int64]
    patch_rows: NDArray[np.int64]
    patches: NDArray[np.int64]
    thread_rows: NDArray[np.int64]
    schedule: NDArray[np.int64]
    locks: NDArray[np.int64]
    vmas: NDArray[np.int64]
    gaps: NDArray[np.int64]
    gap_ns: NDArray[np.int64]  # (MAX_CPU + 1,): last loss of the CPU, at [cpu + 1]
    ring_ns: NDArray[np.int64]  # (MAX_CPU + 1,): last event of the CPU
    histogram: NDArray[np.int64]  # (2, BINS): [0] mmap_lock start to acquire, [1] any gap


class Config(NamedTuple):
    """What the recording holds, as pairing needs it."""

    fault_starts: bool
    fault_ends: bool
    pair: bool  # False for sampled recordings
    enters: NDArray[np.uint8]  # (calls,)
    exits: NDArray[np.uint8]
    switches: bool


def new_state(window_rows: int) -> State:
    """The state before the first event; ``window_rows`` operations fit in one window."""
    z: Any = np.zeros
    tid_keys, tid_values = new_table(1024)
    pid_keys, pid_values = new_table(1024)
    gap_ns = np.full(MAX_CPU + 1, -1, np.int64)
    return State(
        z(C_SIZE, np.int64),
        z((1024, S_SIZE), np.int64),
        z((1024, STACK, WAIT_SIZE), np.int64),
        z((1024, STACK, HOLD_SIZE), np.int64),
        tid_keys,
        tid_values,
        z((1024, P_SIZE), np.int64),
        pid_keys,
        pid_values,
        z((1024, A_SIZE), np.int64),
        z((window_rows, O_SIZE), np.int64),
        z(4096, np.int64),
        z((4096, O_SIZE), np.int64),
        z((4096, H_SIZE), np.int64),
        z((65_536, E_SIZE), np.int64),
        z((65_536, L_SIZE), np.int64),
        z((65_536, V_SIZE), np.int64),
        z((4096, Z_SIZE), np.int64),
        gap_ns,
        gap_ns.copy(),
        z((2, BINS), np.int64),
    )


#: No event adds more rows than this to any table.
MARGIN: Final = 8


def grow(state: State) -> State:
    """The state with at least twice the room wherever a table of entities is nearly full."""
    count = state.count
    changes: dict[str, Any] = {}
    if count[C_THREADS] + MARGIN > len(state.threads):
        for name in ("threads", "waits", "holds"):
            changes[name] = _doubled(getattr(state, name))
        changes["tid_keys"], changes["tid_values"] = _rehashed(
            state.tid_keys, state.tid_values, 2 * len(state.threads)
        )
    if count[C_PROCS] + MARGIN > len(state.procs):
        changes["procs"] = _doubled(state.procs)
        changes["pid_keys"], changes["pid_values"] = _rehashed(
            state.pid_keys, state.pid_values, 2 * len(state.procs)
        )
    if count[C_SPACES] + MARGIN > len(state.spaces):
        changes["spaces"] = _doubled(state.spaces)
    return state._replace(**changes) if changes else state


def _doubled(array: NDArray[np.int64]) -> NDArray[np.int64]:
    wide = np.zeros((2 * array.shape[0], *array.shape[1:]), array.dtype)
    wide[: array.shape[0]] = array
    return wide


def _rehashed(keys: Any, values: Any, capacity: int) -> tuple[Any, Any]:
    new_keys, new_values = new_table(capacity)
    _refill(keys, values, new_keys, new_values)
    return new_keys, new_values


@njit
def _refill(keys: Any, values: Any, new_keys: Any, new_values: Any) -> None:
    for place in range(keys.shape[0]):
        if values[place] >= 0:
            table_put(new_keys, new_values, keys[place], values[place])
