"""Compiled decode: sorted positions of perf records -> one event batch."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers import events as ev
from mmreplay.importers.binary import (
    bare,
    load_i32,
    load_u16,
    load_u32,
    load_u64,
    mix,
    table_find,
    table_put,
)
from mmreplay.importers.perf.layout import (
    G_CALL,
    G_CHAIN,
    G_FIELDS,
    G_NEED,
    G_READ_FORMAT,
    G_ROLE,
    G_SAMPLE_TYPE,
    G_SIZE,
    G_WEIGHT,
    L_ADDR,
    L_CPU,
    L_IP,
    L_PERIOD,
    L_RAW,
    L_TID,
    MAX_FIELDS,
    P_OFFSET,
    P_SIGNED,
    P_SIZE,
    P_SLOT,
    T_CPU,
    T_SIZE,
    T_TID,
)
from mmreplay.importers.perf.walk import (
    CODE_MASK,
    LATE,
    MAX_TIME,
    R_COMM,
    R_EXIT,
    R_FORK,
    R_LOST,
    R_MMAP,
    R_MMAP2,
    R_SWITCH,
    R_SWITCH_CPU_WIDE,
    R_THROTTLE,
    RECORD,
    SYNTHETIC,
)
from mmreplay.jit import borrowing_helper, native, prefetch

# Entries of the decoder's state.
(D_T0, D_MALFORMED, D_NAMES, D_SIZE) = range(4)
#: A position: the stream in the upper bits, the byte in its buffer in the lower ones.
STREAM_SHIFT: Final = 48
#: Records are asked for so many rows before they are decoded: by time they lie here and there.
_AHEAD_ROWS: Final = 8
_LINE_BYTES: Final = 64
_KERNEL_HALF: Final = 1 << 63
#: From here on an entry of a call chain says where the next ones are (PERF_CONTEXT_MAX:
#: include/uapi/linux/perf_event.h@6.18).
CONTEXT: Final = 2**64 - 4095
_SAMPLE_READ: Final = 16
_SAMPLE_CALLCHAIN: Final = 32
_MAX_CPU: Final = 32_767
#: Where a record that is no sample gets its role; 0 elsewhere.
_ROLE_OF = np.zeros(64, np.uint8)
for _type, _role in (
    (R_MMAP, ev.MAPPING),
    (R_MMAP2, ev.MAPPING),
    (R_COMM, ev.COMM),
    (R_FORK, ev.FORK),
    (R_EXIT, ev.THREAD_END),
    (R_LOST, ev.LOST),
    (R_THROTTLE, ev.THROTTLE),
    (R_SWITCH, ev.SWITCH),
    (R_SWITCH_CPU_WIDE, ev.SWITCH),
):
    _ROLE_OF[_type] = _role


def new_state() -> NDArray[np.int64]:
    """The decoder's state before the first event."""
    state = np.zeros(D_SIZE, np.int64)
    state[D_T0] = MAX_TIME  # until an event with a time is seen
    return state


@borrowing_helper
def _chain_at(
    buffer: Any, at: Any, size: Any, start: Any, sample_type: Any, read_format: Any
) -> Any:
    """Byte of what follows READ, or -1 where it does not fit."""
    where = at + start
    end = at + size
    if sample_type & _SAMPLE_READ:
        times = (read_format & 1) + (read_format >> 1 & 1)
        per = 1 + (read_format >> 2 & 1) + (read_format >> 4 & 1)
        if read_format & 8:  # PERF_FORMAT_GROUP
            if where + 8 > end:
                return -1
            members = load_u64(buffer, where)
            if members > np.uint64(size):
                return -1
            where += 8 + 8 * times + 8 * per * np.int64(members)
        else:
            where += 8 * times + 8 * per
    return where if where <= end else -1


@borrowing_helper
def _raw_at(buffer: Any, at: Any, size: Any, start: Any, sample_type: Any, read_format: Any) -> Any:
    """Byte of the RAW size word behind READ and CALLCHAIN, or -1 where they do not fit."""
    where = _chain_at(buffer, at, size, start, sample_type, read_format)
    end = at + size
    if where < 0:
        return -1
    if sample_type & _SAMPLE_CALLCHAIN:
        if where + 8 > end:
            return -1
        frames = load_u64(buffer, where)
        if frames > np.uint64(size):
            return -1
        where += 8 + 8 * np.int64(frames)
    return where if where + 4 <= end else -1


@borrowing_helper
def _chain_of(buffer: Any, where: Any, end: Any) -> Any:
    """(where, hash of the frames) of a call chain; (0, 0) of one without frames."""
    hashed = np.uint64(0xCBF29CE484222325)
    frames = 0
    if where >= 0 and where + 8 <= end:
        count = load_u64(buffer, where)
        if count < np.uint64((end - where) >> 3):
            for k in range(1, np.int64(count) + 1):
                ip = load_u64(buffer, where + 8 * k)
                if ip < np.uint64(CONTEXT):
                    hashed = mix(hashed ^ ip)
                    frames += 1
    if frames == 0:
        return 0, np.uint64(0)
    return where, hashed


@borrowing_helper
def _text_word(buffer: Any, at: Any, end: Any) -> Any:
    """Up to eight bytes of a NUL-terminated text, padded with zeros."""
    word = np.uint64(0)
    for k in range(8):
        if at + k >= end or buffer[at + k] == 0:
            break
        word |= np.uint64(buffer[at + k]) << np.uint64(8 * k)
    return word


@borrowing_helper
def _field(buffer: Any, at: Any, size: Any, signed: Any) -> Any:
    if size == 8:
        return load_u64(buffer, at)
    if size == 4:
        if signed:
            return np.uint64(np.int64(load_i32(buffer, at)))
        return np.uint64(load_u32(buffer, at))
    if size == 2:
        return np.uint64(load_u16(buffer, at))
    return np.uint64(buffer[at])


@native
def decode(
    buffer: Any,
    layout: Any,
    times: Any,
    positions: Any,
    codes: Any,
    first: Any,
    last: Any,
    stream: Any,
    first_event: Any,
    state: Any,
    name_keys: Any,
    name_values: Any,
    name_places: Any,
    batch: Any,
) -> None:
    """Decode what ``stream`` has of the entries ``first`` to ``last`` into ``batch``.

    Parameters
    ----------
    buffer, layout:
        As for :func:`mmreplay.importers.perf.walk.walk`, which has proved that each record
        lies in the buffer and holds its fixed part.
    times, positions, codes:
        Entries in total order (:class:`mmreplay.importers.perf.streams.Ready`); ``first`` goes to
        row 0.
    first_event:
        What the batch calls the stream's first event.
    state:
        int64, the D_* entries.
    name_keys, name_values, name_places:
        Table of file names by hash, and (names, 2) byte ranges of each name's first
        occurrence; the caller leaves room for ``last - first`` more.
    batch:
        :class:`mmreplay.importers.events.Batch` with room for the entries.

    Malformed records are counted, and leave a row of role OTHER with process id 0.
    """
    fixed, flags, program = bare(layout.fixed), bare(layout.flags), bare(layout.program)
    trailer, trailer_id = bare(layout.trailer), layout.trailer_id
    times, positions, codes = bare(times), bare(positions), bare(codes)
    out_time, out_pid, out_tid = bare(batch.time), bare(batch.pid), bare(batch.tid)
    out_cpu, out_event, out_role = bare(batch.cpu), bare(batch.event), bare(batch.role)
    out_call, out_mark, out_weight = bare(batch.call), bare(batch.mark), bare(batch.weight)
    out_ip, arg, out_position = bare(batch.ip), bare(batch.arg), bare(batch.position)
    out_chain, out_hash = bare(batch.chain), bare(batch.chain_hash)
    t0 = state[D_T0]
    for i in range(first, last):
        ahead = positions[min(i + _AHEAD_ROWS, last - 1)] & ((1 << STREAM_SHIFT) - 1)
        prefetch(buffer, ahead)
        prefetch(buffer, ahead + _LINE_BYTES)
        at = positions[i]
        if at >> STREAM_SHIFT != stream:
            continue
        at &= (1 << STREAM_SHIFT) - 1
        n = i - first
        mark = 0
        if codes[i] & LATE:
            mark = ev.LATE
        elif codes[i] & SYNTHETIC:
            mark = ev.SYNTHETIC
        code = np.int64(codes[i] & CODE_MASK)
        out_time[n] = max(times[i] - t0, 0)
        misc = np.int64(load_u16(buffer, at + 4))
        size = np.int64(load_u16(buffer, at + 6))
        for k in range(8):
            arg[8 * n + k] = 0
        out_chain[n] = 0
        out_pid[n] = 0
        out_tid[n] = 0
        out_role[n] = 0
        out_cpu[n] = -1
        out_mark[n] = 0
        out_ip[n] = 0
        out_weight[n] = 1
        out_call[n] = -1
        out_event[n] = -1
        cpu = -1
        if not codes[i] & RECORD:
            if misc & 7 == 2:
                mark |= ev.USER_MODE
            event = 8 * code
            role = flags[G_SIZE * code + G_ROLE]
            pid = load_i32(buffer, at + fixed[event + L_TID])
            tid = load_i32(buffer, at + fixed[event + L_TID] + 4)
            if fixed[event + L_CPU] >= 0:
                value = load_u32(buffer, at + fixed[event + L_CPU])
                cpu = np.int64(value) if value <= np.uint32(_MAX_CPU) else -1
            weight = np.uint64(flags[G_SIZE * code + G_WEIGHT])
            if fixed[event + L_PERIOD] >= 0:
                weight = load_u64(buffer, at + fixed[event + L_PERIOD])
            out_weight[n] = np.uint32(max(np.uint64(1), min(weight, np.uint64(0xFFFFFFFF))))
            if fixed[event + L_IP] >= 0:
                ip = load_u64(buffer, at + fixed[event + L_IP])
                if ip < np.uint64(_KERNEL_HALF):
                    out_ip[n] = ip
            steps = flags[G_SIZE * code + G_FIELDS]
            if steps > 0:
                raw = fixed[event + L_RAW]
                where = at + raw
                if raw < 0:
                    where = _raw_at(
                        buffer,
                        at,
                        size,
                        -raw,
                        flags[G_SIZE * code + G_SAMPLE_TYPE],
                        flags[G_SIZE * code + G_READ_FORMAT],
                    )
                length = np.int64(0)
                if where >= 0:
                    length = np.int64(load_u32(buffer, where))
                if (
                    where < 0
                    or where + 4 + length > at + size
                    or length < flags[G_SIZE * code + G_NEED]
                ):
                    state[D_MALFORMED] += 1
                    continue
                for k in range(steps):
                    step = (MAX_FIELDS * code + k) * 4
                    arg[8 * n + program[step + P_SLOT]] = _field(
                        buffer,
                        where + 4 + program[step + P_OFFSET],
                        program[step + P_SIZE],
                        program[step + P_SIGNED],
                    )
            if flags[G_SIZE * code + G_CHAIN] > 0:
                where = _chain_at(
                    buffer,
                    at,
                    size,
                    flags[G_SIZE * code + G_CHAIN],
                    flags[G_SIZE * code + G_SAMPLE_TYPE],
                    flags[G_SIZE * code + G_READ_FORMAT],
                )
                out_chain[n], out_hash[n] = _chain_of(buffer, where, at + size)
            call = flags[G_SIZE * code + G_CALL]
            if role == ev.FAULT_USER:
                out_ip[n] = (
                    arg[8 * n + 2] if arg[8 * n + 2] < np.uint64(_KERNEL_HALF) else np.uint64(0)
                )
                arg[8 * n + 2] = 0
            elif role == ev.FAULT_SOFTWARE or role == ev.FAULT_MINOR or role == ev.FAULT_MAJOR:
                arg[8 * n + 0] = load_u64(buffer, at + fixed[event + L_ADDR])
            out_call[n] = call
            out_event[n] = first_event + code
        else:
            kind = code
            role = np.int64(_ROLE_OF[kind])
            own = np.int64(0)
            if trailer_id > 0:
                ident = load_u64(buffer, at + size - trailer_id)
                own = 5 * max(np.int64(0), table_find(layout.id_keys, layout.id_values, ident))
            end = at + size - trailer[own + T_SIZE]
            pid = np.int32(-1)
            tid = np.int32(-1)
            if trailer[own + T_TID] > 0:
                pid = load_i32(buffer, at + size - trailer[own + T_TID])
                tid = load_i32(buffer, at + size - trailer[own + T_TID] + 4)
            if trailer[own + T_CPU] > 0:
                value = load_u32(buffer, at + size - trailer[own + T_CPU])
                cpu = np.int64(value) if value <= np.uint32(_MAX_CPU) else -1
            if role == ev.SWITCH:
                arg[8 * n + 0] = misc >> 13 & 1
                arg[8 * n + 1] = misc >> 14 & 1
            elif role == ev.FORK or role == ev.THREAD_END:
                arg[8 * n + 0] = np.uint64(np.int64(load_i32(buffer, at + 8)))
                arg[8 * n + 1] = np.uint64(np.int64(load_i32(buffer, at + 12)))
                arg[8 * n + 2] = np.uint64(np.int64(load_i32(buffer, at + 16)))
                arg[8 * n + 3] = np.uint64(np.int64(load_i32(buffer, at + 20)))
            elif role == ev.LOST:
                arg[8 * n + 0] = load_u64(buffer, at + 16)
            elif role == ev.COMM:
                pid = load_i32(buffer, at + 8)
                tid = load_i32(buffer, at + 12)
                arg[8 * n + 0] = misc >> 13 & 1
                arg[8 * n + 1] = _text_word(buffer, at + 16, end)
                if arg[8 * n + 1] >> np.uint64(56) != 0:
                    arg[8 * n + 2] = _text_word(buffer, at + 24, end)
            elif role == ev.MAPPING:
                pid = load_i32(buffer, at + 8)
                tid = load_i32(buffer, at + 12)
                arg[8 * n + 0] = load_u64(buffer, at + 16)
                arg[8 * n + 1] = load_u64(buffer, at + 24)
                arg[8 * n + 2] = load_u64(buffer, at + 32)
                name = at + 40
                if kind == R_MMAP2:
                    arg[8 * n + 3] = np.uint64(load_u32(buffer, at + 64)) | (
                        np.uint64(load_u32(buffer, at + 68)) << np.uint64(32)
                    )
                    if not misc & 0x4000:  # else a build-id lies there
                        arg[8 * n + 4] = load_u64(buffer, at + 48)
                        arg[8 * n + 5] = np.uint64(
                            (load_u32(buffer, at + 40) & 0xFFF) << 20
                            | (load_u32(buffer, at + 44) & 0xFFFFF)
                        )
                    name = at + 72
                else:  # MMAP says no protection: data maps are read-write, the rest code
                    arg[8 * n + 3] = np.uint64(3 if misc & 0x2000 else 5) | np.uint64(2 << 32)
                hashed = np.uint64(0xCBF29CE484222325)
                stop = name
                while stop < end and buffer[stop] != 0:
                    hashed = (hashed ^ np.uint64(buffer[stop])) * np.uint64(0x100000001B3)
                    stop += 1
                hashed = mix(hashed)
                found = table_find(name_keys, name_values, hashed)
                if found < 0:
                    found = state[D_NAMES]
                    state[D_NAMES] += 1
                    name_places[found, 0] = name
                    name_places[found, 1] = stop
                    table_put(name_keys, name_values, hashed, found)
                arg[8 * n + 6] = np.uint64(found)
            if role == 0:
                continue
        out_pid[n] = pid
        out_tid[n] = tid
        out_cpu[n] = cpu
        out_role[n] = role
        out_mark[n] = mark
        out_position[n] = at


@native
def rehash(keys: Any, values: Any, new_keys: Any, new_values: Any) -> None:
    """Put all of one table into a larger, empty one."""
    for place in range(keys.shape[0]):
        if values[place] >= 0:
            table_put(new_keys, new_values, keys[place], values[place])
