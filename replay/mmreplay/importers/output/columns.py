"""From pairing's rows to the columns of the table of operations, a group at a time."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers import syscalls as sc
from mmreplay.importers.binary import bare
from mmreplay.importers.pairing import state as ps
from mmreplay.jit import borrowing_helper, native
from mmreplay.schema import OPERATIONS, OpKind, Quality
from mmreplay.trace.chunks import Column
from mmreplay.trace.memory import cut
from mmreplay.trace.splitrules import (
    TIMED,
    UNTIMED,
    io_explains,
    look_at,
    role_of,
    roles_by_kind,
    slept_of,
)
from mmreplay.trace.splitstream import Divided, SplitRows

# Columns by the width of their values; each is a row of the matrix of that width.
_WIDE: Final = (
    *("duration_ns", "duration_corrected_ns", "think_cpu_ns", "think_blocked_ns"),
    *("preempted_ns", "io_ns", "contention_ns", "blocked_inside_ns", "address", "length"),
    *("address2", "length2", "flags", "file_offset", "result", "ip", "think_raw_ns"),
)
_WORDS: Final = ("seq", "pid", "fd", "child", "weight")
_HALVES: Final = ("inner_events", "cpu", "errno", "quality")
_BYTES: Final = ("duration_kind", "kind", "prot", "fault_bits", "fault_class")
_NAMES: Final = tuple(column.name for column in OPERATIONS.columns)


def _divided(bounded: bool) -> tuple[list[str], list[str]]:
    """The columns that a group shows by itself, and those that only the whole trace decides.

    The latter are encoded when the former have been.  ``unattributed_ns`` is one where
    durations are only bounded by the next event.
    """
    late = ["service_ns", "wait_ns", *(["unattributed_ns"] if bounded else [])]
    return (
        [name for name in _NAMES if name not in late],
        [name for name in _NAMES if name in late],
    )


_EARLY_LATE: Final = {bounded: _divided(bounded) for bounded in (False, True)}
# Where a column is known: bits of a mask, by columns that share one.
(
    M_ADDRESS, M_LENGTH, M_ADDRESS2, M_LENGTH2, M_PROT, M_FLAGS, M_OFFSET, M_FD,
    M_RESULT, M_BITS, M_CHILD, M_DURATION, M_THINK, M_INSIDE, M_ERRNO, M_IP, M_IO,
    M_BLOCKED, M_PREEMPTED, M_CONTENTION, M_OFF_INSIDE, M_SIZE,
) = range(22)  # fmt: skip
_KNOWN: Final = {
    "address": M_ADDRESS,
    "length": M_LENGTH,
    "address2": M_ADDRESS2,
    "length2": M_LENGTH2,
    "prot": M_PROT,
    "flags": M_FLAGS,
    "file_offset": M_OFFSET,
    "fd": M_FD,
    "result": M_RESULT,
    "fault_bits": M_BITS,
    "child": M_CHILD,
    "duration_ns": M_DURATION,
    "duration_corrected_ns": M_DURATION,
    "think_cpu_ns": M_THINK,
    "think_raw_ns": M_THINK,
    "errno": M_ERRNO,
    "ip": M_IP,
    "io_ns": M_IO,
    "think_blocked_ns": M_BLOCKED,
    "preempted_ns": M_PREEMPTED,
    "contention_ns": M_CONTENTION,
    "blocked_inside_ns": M_OFF_INSIDE,
}
_FAULT_USER: Final = int(OpKind.FAULT_USER)
_FAULT_KERNEL: Final = int(OpKind.FAULT_KERNEL)
_ZERO: Final = np.uint64(0)
_COMPAT32: Final = int(Quality.COMPAT32)
_CONTENDED: Final = int(Quality.CONTENDED)
_WAKES: Final = int(Quality.WAKES)
# Bits of O_KNOWN are masks already: the argument slots, then K_RESULT to K_INSIDE.
_CALL_BITS: Final = (1 << M_RESULT + 1) - 1 - (1 << M_ADDRESS) | 1 << M_CHILD
_SAME_BITS: Final = (1 << M_INSIDE + 1) - 1
assert (sc.ADDRESS, sc.FD) == (M_ADDRESS, M_FD)
assert (ps.K_RESULT, ps.K_INSIDE) == (1 << M_RESULT, 1 << M_INSIDE)


#: Cache lines between the columns of a matrix, so that no two of a row share a cache set.
_APART_BYTES: Final = 64


class Block(NamedTuple):
    """Memory for the columns of one group: flat matrices, a column each ``pitch`` values."""

    wide: NDArray[np.int64]
    words: NDArray[np.int32]
    halves: NDArray[np.int16]
    bytes: NDArray[np.uint8]
    bits: NDArray[np.uint8]
    counts: NDArray[np.int64]  # rows where each mask is known


class Facts(NamedTuple):
    """What is counted of a group."""

    compat: int  # operations of 32-bit tasks
    wakings: int  # operations before which a waiter was woken
    waking_ns: int  # what that took off think times


def _pitch(rows: int, itemsize: int) -> int:
    return rows + _APART_BYTES // itemsize


def new_block(rows: int) -> Block:
    """A block for groups of up to ``rows`` operations, a multiple of 64."""
    return Block(
        *cut(
            (
                (np.int64, len(_WIDE) * _pitch(rows, 8)),
                (np.int32, len(_WORDS) * _pitch(rows, 4)),
                (np.int16, len(_HALVES) * _pitch(rows, 2)),
                (np.uint8, len(_BYTES) * _pitch(rows, 1)),
                (np.uint8, M_SIZE * _pitch(rows // 8, 1)),
                (np.int64, M_SIZE),
            )
        )
    )


@borrowing_helper
def _swapped(x: Any, shift: Any, low: Any) -> Any:
    """``x`` with the bits of ``low`` in the place of those ``shift`` above them, and back."""
    differ = (x ^ x >> np.uint64(shift)) & np.uint64(low)
    return x ^ differ ^ differ << np.uint64(shift)


@borrowing_helper
def _put_masks(
    masks: Any, first: Any, last: Any, bits: Any, pitch: Any, block_row: Any, counts: Any
) -> None:
    """Turn a byte of masks for each of eight rows into a bit of each row for each mask.

    A matrix of 8 x 8 bits is transposed by swapping ever larger squares, and the bits of all
    its bytes are counted at once (Warren, Hacker's Delight, 7-3 and 5-1).
    """
    x = _swapped(masks, 7, 0x00AA00AA00AA00AA)
    x = _swapped(x, 14, 0x0000CCCC0000CCCC)
    x = _swapped(x, 28, 0x00000000F0F0F0F0)
    known = x - (x >> np.uint64(1) & np.uint64(0x5555555555555555))
    pairs = np.uint64(0x3333333333333333)
    known = (known & pairs) + (known >> np.uint64(2) & pairs)
    known = known + (known >> np.uint64(4)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    for mask in range(first, last):
        shift = np.uint64(8 * (mask - first))
        bits[mask * pitch + block_row] = x >> shift & np.uint64(255)
        counts[mask] += np.int64(known >> shift & np.uint64(255))


@native
def _fill(
    flat: Any,
    rows: Any,
    pitches: Any,
    alias: Any,
    low: Any,
    probe_ns: Any,
    waking_ns: Any,
    switches: Any,
    contention: Any,
    roles: Any,
    block: Any,
    split: Any,
) -> Any:
    """Turn ``rows`` rows of O_SIZE into columns.

    Returns how many are of 32-bit tasks, how many woke a waiter before, and what that took.

    ``pitches`` are those of the block's matrices.  ``alias`` gives each address space the
    one that it turned out to be, ``low`` is 1 where it looks like a 32-bit task's.
    """
    source = bare(flat)
    wide, words, halves = bare(block.wide), bare(block.words), bare(block.halves)
    small, bits = bare(block.bytes), bare(block.bits)
    begin_ns, end_ns = bare(split.begin_ns), bare(split.end_ns)
    room_ns, shown_ns, before_ns = (
        bare(split.room_ns),
        bare(split.shown_ns),
        bare(split.before_ns),
    )
    wide_pitch, word_pitch, half_pitch, byte_pitch, bit_pitch = pitches
    counts = block.counts
    for mask in range(M_SIZE):
        counts[mask] = 0
    compat = 0
    wakings = 0
    woke_ns = np.int64(0)
    always = 0
    if switches:
        always = 1 << M_PREEMPTED
    for block_row in range((rows + 7) // 8):
        first = 8 * block_row
        # The masks of the eight rows, a byte of each: what a column is known of is a byte, too.
        low_masks, middle_masks, high_masks = _ZERO, _ZERO, _ZERO
        for k in range(min(8, rows - first)):
            i = first + k
            row = i * ps.O_SIZE
            known = source[row + ps.O_KNOWN]
            have = known & _SAME_BITS | always
            quality = source[row + ps.O_QUALITY]
            own = source[row + ps.O_SPACE]
            if low[own]:
                quality |= _COMPAT32
                compat += 1
            has_think = known & ps.K_THINK != 0
            inside = known & ps.K_INSIDE != 0
            if has_think and switches:
                have |= 1 << M_BLOCKED
            if inside and switches:
                have |= 1 << M_OFF_INSIDE
            if inside and contention:
                have |= 1 << M_CONTENTION
            if source[row + ps.O_IP] != 0:
                have |= 1 << M_IP
            kind = source[row + ps.O_KIND]
            address, length, flags = np.uint64(source[row + ps.O_ADDRESS]), _ZERO, _ZERO
            if kind != _FAULT_USER and kind != _FAULT_KERNEL:
                length = np.uint64(source[row + ps.O_LENGTH])
                flags = np.uint64(source[row + ps.O_FLAGS])
                if address + length < address:  # a range that wraps is the call's nonsense
                    have &= ~(1 << M_LENGTH)
            result = np.int64(0)
            if known & ps.K_RESULT:
                result = source[row + ps.O_RESULT]
            fault_bits = np.int64(0)
            if known & ps.K_BITS:
                fault_bits = source[row + ps.O_BITS]
            errno = np.int64(0)
            if known & ps.K_RESULT and -4095 <= result < 0:
                errno = -result
                have |= 1 << M_ERRNO
            duration = source[row + ps.O_DURATION]
            corrected = max(0, duration - (source[row + ps.O_EVENTS] + 1) * probe_ns)
            timed = known & ps.K_DURATION != 0
            key, room, io, state, still = look_at(
                kind,
                flags,
                length,
                errno,
                fault_bits,
                source[row + ps.O_CLASS],
                quality,
                source[row + ps.O_DURATION_KIND],
                duration if timed else -1,
                corrected if timed else -1,
                source[row + ps.O_BLOCKED],
                source[row + ps.O_CONTENTION],
                source[row + ps.O_NESTED],
                source[row + ps.O_PREEMPTED],
            )
            if state == TIMED:
                have |= 1 << M_IO
            explained = io_explains(kind, flags, source[row + ps.O_CLASS])
            slept = slept_of(source[row + ps.O_SLEPT], state == TIMED, explained)
            if slept > 0:
                quality |= _CONTENDED
            preempted = source[row + ps.O_PREEMPTED]
            before = (
                source[row + ps.O_THINK]
                + source[row + ps.O_PRE_BLOCKED]
                + source[row + ps.O_PRE_PREEMPTED]
            )
            if has_think:
                preempted += source[row + ps.O_PRE_PREEMPTED]
                before = 0
            wide[0 * wide_pitch + i] = duration
            wide[1 * wide_pitch + i] = corrected
            think = max(
                0, source[row + ps.O_THINK] - (source[row + ps.O_PRE_EVENTS] + 1) * probe_ns
            )
            if quality & _WAKES:
                waking = min(think, waking_ns)
                think -= waking
                wakings += 1
                woke_ns += waking
            wide[2 * wide_pitch + i] = think
            wide[3 * wide_pitch + i] = source[row + ps.O_PRE_BLOCKED]
            wide[4 * wide_pitch + i] = preempted
            wide[5 * wide_pitch + i] = io
            wide[6 * wide_pitch + i] = source[row + ps.O_CONTENTION]
            wide[7 * wide_pitch + i] = source[row + ps.O_BLOCKED]
            wide[8 * wide_pitch + i] = source[row + ps.O_ADDRESS]
            wide[9 * wide_pitch + i] = np.int64(length)
            if known & _CALL_BITS:  # else what lies there is never looked at
                wide[10 * wide_pitch + i] = source[row + ps.O_ADDRESS2]
                wide[11 * wide_pitch + i] = source[row + ps.O_LENGTH2]
                wide[12 * wide_pitch + i] = np.int64(flags)
                wide[13 * wide_pitch + i] = source[row + ps.O_OFFSET]
                wide[14 * wide_pitch + i] = result
                words[2 * word_pitch + i] = source[row + ps.O_FD]
                words[3 * word_pitch + i] = source[row + ps.O_CHILD]
                small[2 * byte_pitch + i] = source[row + ps.O_PROT]
            wide[15 * wide_pitch + i] = source[row + ps.O_IP]
            wide[16 * wide_pitch + i] = source[row + ps.O_THINK]
            words[0 * word_pitch + i] = source[row + ps.O_SEQ]
            words[1 * word_pitch + i] = source[row + ps.O_PID]
            words[4 * word_pitch + i] = source[row + ps.O_WEIGHT]
            halves[0 * half_pitch + i] = min(source[row + ps.O_EVENTS], 65_535)
            halves[1 * half_pitch + i] = source[row + ps.O_CPU]
            halves[2 * half_pitch + i] = errno
            halves[3 * half_pitch + i] = quality
            small[0 * byte_pitch + i] = source[row + ps.O_DURATION_KIND]
            small[1 * byte_pitch + i] = kind
            small[3 * byte_pitch + i] = fault_bits
            small[4 * byte_pitch + i] = source[row + ps.O_CLASS]
            begin_ns[i] = source[row + ps.O_BEGIN]
            end_ns[i] = source[row + ps.O_BEGIN] + (duration if state == TIMED else 0)
            room_ns[i] = room
            shown_ns[i] = 0
            if state == TIMED:
                shown_ns[i] = max(source[row + ps.O_BLOCKED] - io, source[row + ps.O_CONTENTION])
            elif state != UNTIMED:
                shown_ns[i] = source[row + ps.O_CONTENTION]
            split.slept_ns[i] = slept
            before_ns[i] = before
            split.key[i] = key
            split.tid[i] = source[row + ps.O_TID]
            split.address_space[i] = alias[own]
            split.role[i] = role_of(kind, flags, roles)
            split.state[i] = state
            split.still[i] = still
            shift = np.uint64(8 * k)
            low_masks |= np.uint64(have & 255) << shift
            middle_masks |= np.uint64(have >> 8 & 255) << shift
            high_masks |= np.uint64(have >> 16 & 255) << shift
        _put_masks(low_masks, 0, 8, bits, bit_pitch, block_row, counts)
        _put_masks(middle_masks, 8, 16, bits, bit_pitch, block_row, counts)
        _put_masks(high_masks, 16, M_SIZE, bits, bit_pitch, block_row, counts)
    return compat, wakings, woke_ns


_ROLES: Final = roles_by_kind()


def early(
    rows: NDArray[np.int64],
    alias: NDArray[np.int64],
    low: NDArray[np.bool_],
    probe_ns: int,
    waking_ns: int,
    switches: bool,
    contention: bool,
    bounded: bool,
    block: Block,
    split: SplitRows,
) -> tuple[dict[str, Column], Facts]:
    """All columns but the late ones, and what was counted meanwhile.

    Parameters
    ----------
    rows:
        (N, O_SIZE) of pairing; not changed.
    alias, low:
        (spaces,) which address space each turned out to be; whether it looks like a 32-bit
        task's.
    probe_ns:
        What one event cost the recorded thread.
    waking_ns:
        What waking a waiter for the lock took its waker, after a fault's recorded end.
    switches, contention:
        Whether the recording has switches (else off-CPU columns are null) and contention
        events (else ``contention_ns`` is null).
    bounded:
        Whether durations are only bounded by the next event.
    block, split:
        Filled; the table's columns lie in ``block`` or are copies of those in ``split``.
    """
    count = len(rows)
    room = len(split.begin_ns)
    pitches = (*(_pitch(room, size) for size in (8, 4, 2, 1)), _pitch(room // 8, 1))
    facts = _fill(
        rows.reshape(-1),
        count,
        pitches,
        alias,
        low.view(np.uint8),
        probe_ns,
        waking_ns,
        switches,
        contention,
        _ROLES,
        block,
        split,
    )
    columns: dict[str, Column] = {}
    matrices: tuple[tuple[tuple[str, ...], Any], ...] = (
        (_WIDE, block.wide),
        (_WORDS, block.words),
        (_HALVES, block.halves),
        (_BYTES, block.bytes),
    )
    for names, matrix in matrices:
        pitch = len(matrix) // len(names)
        for name, values in zip(names, matrix.reshape(-1, pitch), strict=True):
            bits, nulls = None, 0
            if name in _KNOWN:
                mask = _KNOWN[name]
                nulls = count - int(block.counts[mask])
                bits = block.bits[mask * pitches[-1] : (mask + 1) * pitches[-1]]
            columns[name] = Column(values[:count], bits, nulls)
    for name, values in (
        ("begin_ns", split.begin_ns),
        ("unattributed_ns", split.before_ns),
        ("tid", split.tid),
        ("address_space", split.address_space),
    ):
        columns[name] = Column(values[:count].copy())  # the split goes on with its own
    return {name: columns[name] for name in _EARLY_LATE[bounded][0]}, Facts(*map(int, facts))


def chains_of(rows: NDArray[np.int64]) -> dict[str, Column]:
    """The call chains of the operations that have one."""
    rows = rows[rows[:, ps.O_STACK] > 0]
    columns = {"begin_ns": ps.O_BEGIN, "seq": ps.O_SEQ, "stack": ps.O_STACK}
    return {name: Column(rows[:, column]) for name, column in columns.items()}


def late(part: Divided, bounded: bool) -> dict[str, Column]:
    """The columns that only the whole trace decides."""
    nulls = len(part.known) - int(np.count_nonzero(part.known))
    columns = {
        "service_ns": Column(part.service_ns, part.known, nulls),
        "wait_ns": Column(part.wait_ns, part.known, nulls),
        "unattributed_ns": Column(part.unattributed_ns),
    }
    return {name: columns[name] for name in _EARLY_LATE[bounded][1]}
