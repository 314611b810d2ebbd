"""The compiled rules of the time split, one operation at a time.

``docs/time-split.md`` numbers the rules; the comments here name them.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.jit import njit
from mmreplay.schema import DurationKind, FaultClass, OpKind, ProcFile, Quality, UffdOp
from mmreplay.trace.exposure import ROLE_NONE, ROLE_READER, ROLE_WRITER

UNTIMED: Final = 0
TIMED: Final = 1
BOUNDED: Final = 2

# include/uapi/asm-generic/mman-common.h and mman.h @6.18
_MAP_ANONYMOUS: Final = 0x20
_MAP_POPULATE: Final = 0x8000
_MADV_WILLNEED: Final = 3
_MADV_PAGEOUT: Final = 21

_FAULT_USER: Final = int(OpKind.FAULT_USER)
_FAULT_KERNEL: Final = int(OpKind.FAULT_KERNEL)
_MMAP: Final = int(OpKind.MMAP)
_MADVISE: Final = int(OpKind.MADVISE)
_PROCESS_MADVISE: Final = int(OpKind.PROCESS_MADVISE)
_PROC_READ: Final = int(OpKind.PROC_READ)
_UFFD: Final = int(OpKind.UFFD)
_EXEC: Final = int(OpKind.EXEC)
_MSYNC: Final = int(OpKind.MSYNC)
_VFORK: Final = int(OpKind.VFORK)
_MAJOR: Final = int(FaultClass.MAJOR)
_MEASURED: Final = int(DurationKind.MEASURED)
_ESTIMATED: Final = int(DurationKind.ESTIMATED)
_UPPER_BOUND: Final = int(DurationKind.UPPER_BOUND)
_NESTED: Final = int(Quality.NESTED_IN_SYSCALL)
_DOUBTFUL: Final = int(Quality.AFTER_GAP | Quality.LATE | Quality.NEGATIVE_FIXED)
_PROC_FILES: Final = max(int(file) for file in ProcFile)

#: Advice that holds mmap_lock for reading only (mm/madvise.c madvise_need_mmap_write@6.12;
#: guard pages: get_lock_mode@6.18); all other advice changes VMAs and writes.
READ_ADVICE: Final = np.array((3, 4, 8, 9, 20, 21, 22, 23, 24, 25, 102, 103), dtype=np.uint64)
_UFFD_WRITERS: Final = (int(UffdOp.REGISTER), int(UffdOp.UNREGISTER))
_LOCK_FREE: Final = (
    OpKind.CLONE,
    OpKind.VFORK,
    OpKind.THREAD_START,
    OpKind.THREAD_EXIT,
    OpKind.SNAPSHOT_VMA,
)
_WRITERS: Final = (
    OpKind.MMAP,
    OpKind.MUNMAP,
    OpKind.MPROTECT,
    OpKind.PKEY_MPROTECT,
    OpKind.BRK,
    OpKind.MREMAP,
    OpKind.EXEC,
    OpKind.MLOCK,
    OpKind.MUNLOCK,
    OpKind.MLOCKALL,
    OpKind.MUNLOCKALL,
    OpKind.SHMAT,
    OpKind.SHMDT,
    OpKind.MBIND,
    OpKind.FORK,
    OpKind.PROCESS_EXIT,
    OpKind.MSEAL,
    OpKind.PKEY,
    OpKind.REMAP_FILE_PAGES,
)


def roles_by_kind() -> NDArray[np.uint8]:
    """(256,) role of each kind; madvise and userfaultfd depend on their flags as well."""
    roles = np.full(256, ROLE_READER, dtype=np.uint8)
    for kind in _LOCK_FREE:
        roles[kind] = ROLE_NONE
    for kind in _WRITERS:
        roles[kind] = ROLE_WRITER
    return roles


@njit
def find_roles(
    kind: NDArray[np.uint8], flags: NDArray[np.uint64], by_kind: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """(N,) how each operation holds mmap_lock: not at all, for reading, for writing."""
    role = np.empty(len(kind), dtype=np.uint8)
    for row in range(len(kind)):
        role[row] = by_kind[kind[row]]
        if kind[row] in (_MADVISE, _PROCESS_MADVISE):
            role[row] = ROLE_WRITER
            for advice in READ_ADVICE:
                if flags[row] == advice:
                    role[row] = ROLE_READER
        elif kind[row] == _UFFD and (
            flags[row] == _UFFD_WRITERS[0] or flags[row] == _UFFD_WRITERS[1]
        ):
            role[row] = ROLE_WRITER
    return role


@njit
def find_covered(
    begin_ns: NDArray[np.int64],
    duration_ns: NDArray[np.int64],
    tid: NDArray[np.int32],
    tids: NDArray[np.int32],
    first: NDArray[np.int64],
    cursor: NDArray[np.int64],
    span_begin: NDArray[np.int64],
    span_end: NDArray[np.int64],
) -> NDArray[np.int64]:
    """(N,) ns of each operation that spans of its own thread cover.

    Spans are sorted by thread (``tids`` ascending, thread ``i`` has spans
    ``first[i]:first[i + 1]``) and by begin, and do not overlap within a thread.
    ``cursor`` (T,) starts as ``first[:-1]`` and carries over to the next batch:
    operations come in the order of their begin.
    """
    covered = np.zeros(len(begin_ns), dtype=np.int64)
    if len(tids) == 0:
        return covered
    for row in range(len(begin_ns)):
        thread, above = 0, len(tids)
        while thread < above:
            middle = (thread + above) // 2
            if tids[middle] < tid[row]:
                thread = middle + 1
            else:
                above = middle
        if thread == len(tids) or tids[thread] != tid[row]:
            continue
        last = first[thread + 1]
        at = cursor[thread]
        while at < last and span_end[at] <= begin_ns[row]:
            at += 1
        cursor[thread] = at
        end = begin_ns[row] + duration_ns[row]
        while at < last and span_begin[at] < end:
            covered[row] += min(end, span_end[at]) - max(begin_ns[row], span_begin[at])
            at += 1
    return covered


@njit
def look_inside(
    kind: NDArray[np.uint8],
    flags: NDArray[np.uint64],
    length: NDArray[np.uint64],
    errno: NDArray[np.int16],
    fault_bits: NDArray[np.uint8],
    fault_class: NDArray[np.uint8],
    quality: NDArray[np.uint16],
    duration_kind: NDArray[np.uint8],
    duration_ns: NDArray[np.int64],
    corrected_ns: NDArray[np.int64],
    off_ns: NDArray[np.int64],
    contended_ns: NDArray[np.int64],
    nested_ns: NDArray[np.int64],
    preempted_ns: NDArray[np.int64],
) -> Any:
    """What the rules need of each operation; a null duration comes as -1.

    Returns (N,) arrays: class key uint64; room_ns int64 (duration without nested
    operations, preemption and I/O); io_ns int64; state uint8 (untimed, timed, bounded);
    still uint8 (1: nothing disturbed it, as far as the row itself shows).
    """
    rows = len(kind)
    key = np.empty(rows, dtype=np.uint64)
    room = np.zeros(rows, dtype=np.int64)
    io = np.zeros(rows, dtype=np.int64)
    state = np.zeros(rows, dtype=np.uint8)
    still = np.zeros(rows, dtype=np.uint8)
    for row in range(rows):
        what = kind[row]
        advice = what in (_MADVISE, _PROCESS_MADVISE)
        fault = what in (_FAULT_USER, _FAULT_KERNEL)
        # Rule 4: the class.
        variant = np.uint64(0)
        if fault:
            variant = np.uint64(fault_bits[row] & 3)  # present, write
        elif advice or what in (_PROC_READ, _UFFD):
            variant = flags[row] & np.uint64(0xFFFF)
        elif what == _MMAP:
            if flags[row] & np.uint64(_MAP_ANONYMOUS):
                variant |= np.uint64(1)
            if flags[row] & np.uint64(_MAP_POPULATE):
                variant |= np.uint64(2)
        doublings = np.uint64(0)
        if not fault:
            pages = length[row] >> np.uint64(12)
            if length[row] & np.uint64(4095):
                pages += np.uint64(1)
            while pages:
                doublings += np.uint64(1)
                pages >>= np.uint64(1)
        failed = np.uint64(1) if errno[row] != 0 else np.uint64(0)
        key[row] = (
            (np.uint64(what) << np.uint64(40))
            | (np.uint64(fault_class[row]) << np.uint64(32))
            | (failed << np.uint64(31))
            | (variant << np.uint64(8))
            | doublings
        )
        if duration_ns[row] < 0:
            continue
        how = duration_kind[row]
        if how in (_MEASURED, _ESTIMATED):
            state[row] = TIMED
        elif how == _UPPER_BOUND:
            state[row] = BOUNDED
        else:
            continue
        # Rule 1: what is not this operation's own.
        own = corrected_ns[row] if corrected_ns[row] >= 0 else duration_ns[row]
        nested = nested_ns[row] if not quality[row] & _NESTED else 0
        own = max(own - nested - preempted_ns[row], 0)
        # Rule 2: off-CPU time that I/O explains.
        explained = (
            fault_class[row] == _MAJOR
            or what in (_EXEC, _MSYNC, _VFORK)
            or (
                advice
                and (
                    flags[row] == np.uint64(_MADV_WILLNEED)
                    or flags[row] == np.uint64(_MADV_PAGEOUT)
                )
            )
        )
        if explained and state[row] == TIMED:
            io[row] = min(max(off_ns[row] - contended_ns[row], 0), own)
        room[row] = own - io[row]
        if (
            state[row] == TIMED
            and off_ns[row] == 0
            and contended_ns[row] == 0
            and preempted_ns[row] == 0
            and not quality[row] & _DOUBTFUL
        ):
            still[row] = 1
    return key, room, io, state, still


@njit
def number_classes(
    key: NDArray[np.uint64], table: NDArray[np.uint64], numbers: NDArray[np.int32], count: int
) -> Any:
    """Dense class numbers by an open-addressing table of ``key + 1`` (0: free).

    ``table`` and ``numbers`` have a power of two of slots.  Returns the (N,) numbers, the
    new count, and how many rows were done: fewer than N when the table is half full.
    """
    number = np.empty(len(key), dtype=np.int32)
    mask = np.uint64(len(table) - 1)
    for row in range(len(key)):
        wanted = key[row] + np.uint64(1)
        slot = ((key[row] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & mask
        while table[slot] != 0 and table[slot] != wanted:
            slot = (slot + np.uint64(1)) & mask
        if table[slot] == 0:
            if 2 * count >= len(table):
                return number, count, row
            table[slot] = wanted
            numbers[slot] = count
            count += 1
        number[row] = numbers[slot]
    return number, count, len(key)


@njit
def group_by_class(
    number: NDArray[np.int32],
    room: NDArray[np.int64],
    wanted: NDArray[np.uint8],
    classes: int,
) -> Any:
    """Values of the wanted rows grouped by class: (first (classes + 1,), values)."""
    first = np.zeros(classes + 1, dtype=np.int64)
    for row in range(len(number)):
        if wanted[row]:
            first[number[row] + 1] += 1
    for one in range(classes):
        first[one + 1] += first[one]
    at = first[:-1].copy()
    values = np.empty(first[classes], dtype=np.int64)
    for row in range(len(number)):
        if wanted[row]:
            values[at[number[row]]] = room[row]
            at[number[row]] += 1
    return first, values


@njit
def divide(
    state: NDArray[np.uint8],
    exposure_ns: NDArray[np.uint32],
    room_ns: NDArray[np.int64],
    io_ns: NDArray[np.int64],
    off_ns: NDArray[np.int64],
    contended_ns: NDArray[np.int64],
    usual_ns: NDArray[np.int64],
) -> Any:
    """Service, wait and unattributed time inside each operation, (N,) int64 each.

    ``usual_ns`` is the service of the operation's class (rule 5).
    """
    rows = len(state)
    service = np.zeros(rows, dtype=np.int64)
    wait = np.zeros(rows, dtype=np.int64)
    left = np.zeros(rows, dtype=np.int64)
    for row in range(rows):
        room = room_ns[row]
        if state[row] == TIMED:
            # Rule 3.
            shown = max(off_ns[row] - io_ns[row], contended_ns[row])
            shown = max(shown, min(room - usual_ns[row], np.int64(exposure_ns[row])))
            wait[row] = min(max(shown, 0), room)
            service[row] = room - wait[row]
        elif state[row] == BOUNDED:
            # Rule 6: the interval holds think time too; what is no service is not split.
            service[row] = min(usual_ns[row], room)
            wait[row] = min(contended_ns[row], room - service[row])
            left[row] = room - service[row] - wait[row]
    return service, wait, left
