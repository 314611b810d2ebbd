"""The event batch: what every format is decoded to, and what pairing reads.

A batch is a set of equally long arrays in total order (time, then order of arrival).
``arg`` means by role:

=================  ==========================================================
role               arg[0], arg[1], ...
=================  ==========================================================
FAULT_*            address, error code (starts only)
ENTER              the eight slots of :mod:`mmreplay.importers.syscalls`
EXIT               return value
CONTENTION_*       lock address, LCB_F_* flags (begin only)
RAW_ENTER          six words of the call, -, its number
RAW_EXIT           return value; number in arg[7]
SCHED_SWITCH       prev_state, next tid
WAKING             woken tid, common_flags or UNKNOWN_CONTEXT
NEW_TASK           new tid, clone flags
MMAP_LOCK_*        mm, write, success
SWITCH             out (1) or in (0), preempted
FORK, THREAD_END   pid, parent pid, tid, parent tid; of a fork by a process that is not
                   wanted also two words of its name
COMM               exec, then two words of name
MAPPING            start, length, offset, prot | flags << 32, inode, device, name id
LOST               events lost
THROTTLE           -
CHILD_SHOWS        what a process that is not wanted, a wanted one's child, did first (SHOWS_*)
=================  ==========================================================
"""

from __future__ import annotations

import itertools
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.trace.memory import cut

OTHER: Final = 0
FAULT_USER: Final = 1
FAULT_KERNEL: Final = 2
FAULT_SOFTWARE: Final = 3  # the software event "faults": a start that knows no error code
FAULT_MINOR: Final = 4
FAULT_MAJOR: Final = 5
ENTER: Final = 6
EXIT: Final = 7
CONTENTION_BEGIN: Final = 8
CONTENTION_END: Final = 9
SCHED_SWITCH: Final = 10
MMAP_LOCK_START: Final = 11
MMAP_LOCK_ACQUIRED: Final = 12
MMAP_LOCK_RELEASED: Final = 13
RAW_ENTER: Final = 14
RAW_EXIT: Final = 15
WAKING: Final = 16
NEW_TASK: Final = 17
SWITCH: Final = 20
FORK: Final = 21
THREAD_END: Final = 22
COMM: Final = 23
MAPPING: Final = 24
LOST: Final = 25
THROTTLE: Final = 26
CHILD_SHOWS: Final = 27

#: What the first deed of a new process says about its memory: nothing; it is the parent's; it is
#: its own; it is the parent's if faults are recorded at all.
SHOWS_NOTHING, SHOWS_SHARED, SHOWS_OWN, SHOWS_NO_FAULT = range(4)

#: Roles of events that may begin an operation.
BEGINNERS: Final = frozenset(
    (FAULT_USER, FAULT_KERNEL, FAULT_SOFTWARE, FAULT_MINOR, FAULT_MAJOR, ENTER, RAW_ENTER)
)

# Marks of one event (``mark``).
LATE: Final = 1  # arrived after something later was passed on; its time was raised
SYNTHETIC: Final = 2  # made up by the recorder about the state before the recording
USER_MODE: Final = 4  # the CPU was in user mode

#: In common_flags: the event came from an interrupt (TRACE_FLAG_HARDIRQ, _SOFTIRQ and _NMI of
#: include/linux/trace_events.h@6.18), not from the thread that it interrupted.
IN_INTERRUPT: Final = 0x58
#: In place of common_flags: the recording does not tell them.
UNKNOWN_CONTEXT: Final = 0x100


class Batch(NamedTuple):
    """One window of events (see the module's table); arrays of equal length."""

    time: NDArray[np.int64]  # ns since t0
    pid: NDArray[np.int32]
    tid: NDArray[np.int32]
    cpu: NDArray[np.int32]  # -1 unknown
    event: NDArray[np.int32]  # index of the recorded event, -1 for other records
    role: NDArray[np.uint8]
    call: NDArray[np.int16]  # index into syscalls.CALLS, -1 none
    mark: NDArray[np.uint8]
    weight: NDArray[np.uint32]
    ip: NDArray[np.uint64]  # user instruction pointer, 0 unknown
    arg: NDArray[np.uint64]  # (n, 8)
    position: NDArray[np.int64]  # byte in the stream, for messages and tests
    chain: NDArray[np.int64]  # byte of the call chain's count in the stream, 0 none
    chain_hash: NDArray[np.uint64]  # of its frames
    stack: NDArray[np.int32]  # number of the call chain, 0 none; see stacks.py


_DTYPES: Final[tuple[Any, ...]] = (
    *(np.int64, np.int32, np.int32, np.int32, np.int32, np.uint8, np.int16, np.uint8, np.uint32),
    *(np.uint64, np.uint64, np.int64, np.int64, np.uint64, np.int32),
)
_ARGUMENTS: Final = 8


def new_batch(rows: int) -> Batch:
    """An empty batch with room for ``rows`` events."""
    return new_batches(rows, 1)[0]


def new_batches(rows: int, count: int) -> list[Batch]:
    """So many empty batches with room for ``rows`` events each, in one piece of memory."""
    many = [_ARGUMENTS if name == "arg" else 1 for name in Batch._fields]
    wanted = [(dtype, length * rows) for dtype, length in zip(_DTYPES, many, strict=True)]
    arrays = iter(cut(wanted * count))
    batches = (Batch(*itertools.islice(arrays, len(wanted))) for _ in range(count))
    return [batch._replace(arg=batch.arg.reshape(rows, _ARGUMENTS)) for batch in batches]
