"""The compiled rules of the time split, one operation at a time.

``docs/time-split.md`` numbers the rules; the comments here name them.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.jit import helper, native, njit
from mmreplay.schema import DurationKind, FaultClass, OpKind, ProcFile, Quality, UffdOp
from mmreplay.trace.exposure import ROLE_NONE, ROLE_READER, ROLE_WRITER

UNTIMED: Final = 0
TIMED: Final = 1
BOUNDED: Final = 2
_ZERO: Final = np.int64(0)
#: Exposures are kept in 32 bits.
MOST_NS: Final = (1 << 32) - 1

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


@helper
def role_of(kind: Any, flags: Any, by_kind: Any) -> Any:
    """How one operation holds mmap_lock: not at all, for reading, for writing."""
    role = by_kind[kind]
    if kind == _MADVISE or kind == _PROCESS_MADVISE:
        role = ROLE_WRITER
        for advice in READ_ADVICE:
            if flags == advice:
                role = ROLE_READER
    elif kind == _UFFD and (flags == _UFFD_WRITERS[0] or flags == _UFFD_WRITERS[1]):
        role = ROLE_WRITER
    return role


@njit
def find_roles(
    kind: NDArray[np.uint8], flags: NDArray[np.uint64], by_kind: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """(N,) :func:`role_of` each operation."""
    role = np.empty(len(kind), dtype=np.uint8)
    for row in range(len(kind)):
        role[row] = role_of(np.int64(kind[row]), flags[row], by_kind)
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


@helper
def io_explains(what: Any, flags: Any, fault_class: Any) -> Any:
    """Rule 2: whether off-CPU time of an operation is I/O, or a wait for a child."""
    advice = what == _MADVISE or what == _PROCESS_MADVISE
    return (
        fault_class == _MAJOR
        or what == _EXEC
        or what == _MSYNC
        or what == _VFORK
        or (advice and (flags == np.uint64(_MADV_WILLNEED) or flags == np.uint64(_MADV_PAGEOUT)))
    )


@helper
def look_at(
    what: Any,
    flags: np.uint64,
    length: np.uint64,
    errno: Any,
    fault_bits: Any,
    fault_class: Any,
    quality: Any,
    how: Any,
    duration_ns: Any,
    corrected_ns: Any,
    off_ns: Any,
    contended_ns: Any,
    nested_ns: Any,
    preempted_ns: Any,
) -> Any:
    """What the rules need of one operation; a null duration comes as -1.

    Returns the class key uint64; room_ns (duration without nested operations, preemption
    and I/O); io_ns; the state (untimed, timed, bounded); and whether nothing disturbed it,
    as far as the row itself shows.
    """
    advice = what == _MADVISE or what == _PROCESS_MADVISE
    fault = what == _FAULT_USER or what == _FAULT_KERNEL
    # Rule 4: the class.
    variant = np.uint64(0)
    if fault:
        variant = np.uint64(fault_bits & 3)  # present, write
    elif advice or what == _PROC_READ or what == _UFFD:
        variant = flags & np.uint64(0xFFFF)
    elif what == _MMAP:
        if flags & np.uint64(_MAP_ANONYMOUS):
            variant |= np.uint64(1)
        if flags & np.uint64(_MAP_POPULATE):
            variant |= np.uint64(2)
    doublings = np.uint64(0)
    if not fault:
        pages = length >> np.uint64(12)
        if length & np.uint64(4095):
            pages += np.uint64(1)
        while pages:
            doublings += np.uint64(1)
            pages >>= np.uint64(1)
    failed = np.uint64(1) if errno != 0 else np.uint64(0)
    key = (
        (np.uint64(what) << np.uint64(40))
        | (np.uint64(fault_class) << np.uint64(32))
        | (failed << np.uint64(31))
        | (variant << np.uint64(8))
        | doublings
    )
    room = np.int64(0)
    io = np.int64(0)
    state = UNTIMED
    still = 0
    if duration_ns >= 0 and (how == _MEASURED or how == _ESTIMATED):
        state = TIMED
    elif duration_ns >= 0 and how == _UPPER_BOUND:
        state = BOUNDED
    if state != UNTIMED:
        # Rule 1: what is not this operation's own.
        own = corrected_ns if corrected_ns >= 0 else duration_ns
        nested = nested_ns if not quality & _NESTED else 0
        own = max(own - nested - preempted_ns, _ZERO)
        # Rule 2: off-CPU time that I/O explains.
        explained = io_explains(what, flags, fault_class)
        if explained and state == TIMED:
            io = min(max(off_ns - contended_ns, _ZERO), own)
        room = own - io
        if (
            state == TIMED
            and off_ns == 0
            and contended_ns == 0
            and preempted_ns == 0
            and not quality & _DOUBTFUL
        ):
            still = 1
    return key, room, io, state, still


@helper
def slept_of(slept_ns: Any, timed: Any, explained: Any) -> Any:
    """How much of an operation surely went by before it had its lock, in ns, as uint32.

    ``slept_ns``: from its begin to the end of its last blocked span.
    """
    if not timed or explained or slept_ns <= 0:
        return np.uint32(0)
    return np.uint32(min(slept_ns, MOST_NS))


@njit
def find_slept(
    slept_ns: NDArray[np.int64],
    timed: NDArray[np.bool_],
    kind: NDArray[np.uint8],
    flags: NDArray[np.uint64],
    fault_class: NDArray[np.uint8],
) -> NDArray[np.uint32]:
    """(N,) :func:`slept_of` each operation."""
    slept = np.empty(len(kind), np.uint32)
    for row in range(len(kind)):
        explained = io_explains(np.int64(kind[row]), flags[row], np.int64(fault_class[row]))
        slept[row] = slept_of(slept_ns[row], timed[row], explained)
    return slept


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
    """:func:`look_at` each operation: (N,) key uint64, room and io int64, state and still uint8."""
    rows = len(kind)
    key = np.empty(rows, dtype=np.uint64)
    room = np.zeros(rows, dtype=np.int64)
    io = np.zeros(rows, dtype=np.int64)
    state = np.zeros(rows, dtype=np.uint8)
    still = np.zeros(rows, dtype=np.uint8)
    for row in range(rows):
        key[row], room[row], io[row], state[row], still[row] = look_at(
            np.int64(kind[row]),
            flags[row],
            length[row],
            np.int64(errno[row]),
            np.int64(fault_bits[row]),
            np.int64(fault_class[row]),
            np.int64(quality[row]),
            np.int64(duration_kind[row]),
            duration_ns[row],
            corrected_ns[row],
            off_ns[row],
            contended_ns[row],
            nested_ns[row],
            preempted_ns[row],
        )
    return key, room, io, state, still


@native
def number_classes(
    key: NDArray[np.uint64],
    table: NDArray[np.uint64],
    numbers: NDArray[np.int32],
    count: int,
    number: NDArray[np.int32],
) -> Any:
    """Dense class numbers, (N,) into ``number``, by an open-addressing table of ``key + 1``.

    ``table`` (0: free) and ``numbers`` have a power of two of slots.  Returns the new count,
    and how many rows were done: fewer than N when the table is half full.
    """
    mask = np.uint64(len(table) - 1)
    for row in range(len(key)):
        wanted = key[row] + np.uint64(1)
        slot = ((key[row] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & mask
        while table[slot] != 0 and table[slot] != wanted:
            slot = (slot + np.uint64(1)) & mask
        if table[slot] == 0:
            if 2 * count >= len(table):
                return count, row
            table[slot] = wanted
            numbers[slot] = count
            count += 1
        number[row] = numbers[slot]
    return count, len(key)


@helper
def divide_one(
    state: Any, exposure_ns: Any, room_ns: Any, shown_ns: Any, contended_ns: Any, usual_ns: Any
) -> Any:
    """Service, wait and unattributed time inside one operation.

    ``shown_ns`` is the larger of the first two of rule 3.
    """
    service, wait, left = np.int64(0), np.int64(0), np.int64(0)
    if state == TIMED:
        # Rule 3.
        shown = max(shown_ns, min(room_ns - usual_ns, exposure_ns))
        wait = min(max(shown, _ZERO), room_ns)
        service = room_ns - wait
    elif state == BOUNDED:
        # Rule 6: the interval holds think time too; what is no service is not split.
        service = min(usual_ns, room_ns)
        wait = min(contended_ns, room_ns - service)
        left = room_ns - service - wait
    return service, wait, left


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
        shown = max(off_ns[row] - io_ns[row], contended_ns[row])
        service[row], wait[row], left[row] = divide_one(
            state[row],
            np.int64(exposure_ns[row]),
            room_ns[row],
            shown,
            contended_ns[row],
            usual_ns[row],
        )
    return service, wait, left
