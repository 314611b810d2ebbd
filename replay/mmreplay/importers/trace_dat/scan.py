"""Compiled reader of ftrace's ring-buffer pages, one sequence for each CPU: events -> rows.

A page is ``u64 time, long commit, data``; commit holds the length of the data, and in its upper
bits whether events were lost before.  An event is ``5 bits type_len, 27 bits delta`` and what
type_len says (include/linux/ring_buffer.h, kernel/trace/ring_buffer.c@6.18).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mmreplay.importers import events as ev
from mmreplay.importers import syscalls as sc
from mmreplay.importers.binary import bare, load_i32, load_u16, load_u32, load_u64, table_find
from mmreplay.importers.perf import layout as pl
from mmreplay.importers.text import rows as tr
from mmreplay.importers.text.raw import name_raw, show_address
from mmreplay.importers.text.scan import SCHED_EXIT
from mmreplay.jit import borrowing_helper, native

# Columns of a CPU's sequence of pages.
(
    Q_AT,  # next event in the page
    Q_PAGE_END,  # end of the page's data
    Q_NEXT_PAGE,
    Q_END,
    Q_TIME,
    Q_EVENT,  # the event that is ready, -1: no more
    Q_LENGTH,
    Q_CPU,
    Q_LOST,  # events lost before it
    Q_BUFFER,
) = range(10)
Q_SIZE: Final = 10
#: Types of events: one index of so many for each buffer.
TYPES: Final = 1 << 16
# How pages lie.
(Y_PAGE_SIZE, Y_DATA, Y_LONG, Y_DAMAGED) = range(4)
Y_SIZE: Final = 4
_PADDING, _EXTEND, _STAMP = 29, 30, 31
_LENGTH_MASK: Final = (1 << 27) - 1
_MISSED, _STORED = 1 << 31, 1 << 30
#: An absolute time has 59 bits; the others are those of the time before.
_UPPER_BITS: Final = 0xF8 << 56
_KERNEL_HALF: Final = 1 << 63
#: Index of types that no format is known of.
UNKNOWN: Final = -1
#: And of those that are passed over: of ftrace itself, or told by another buffer.
OWN: Final = -2


@borrowing_helper
def _turn_page(buffer: Any, y: Any, q: Any, o: Any) -> Any:
    """Begin the next page; False where there is none."""
    page = q[o + Q_NEXT_PAGE]
    if page + y[Y_DATA] > q[o + Q_END]:
        return False
    q[o + Q_NEXT_PAGE] = page + y[Y_PAGE_SIZE]
    q[o + Q_TIME] = np.int64(load_u64(buffer, page))
    commit = np.int64(load_u32(buffer, page + 8))
    begin = page + y[Y_DATA]
    limit = min(page + y[Y_PAGE_SIZE], q[o + Q_END])
    end = begin + (commit & _LENGTH_MASK)
    if end > limit:
        y[Y_DAMAGED] += 1
        end = limit
    q[o + Q_AT], q[o + Q_PAGE_END] = begin, end
    if commit & _MISSED:
        lost = np.int64(1)  # how many is not always known
        if commit & _STORED and end + y[Y_LONG] <= limit:
            lost = np.int64(load_u32(buffer, end))
        q[o + Q_LOST] += max(lost, 1)
    return True


@borrowing_helper
def advance(buffer: Any, y: Any, q: Any, o: Any) -> None:
    """Make the next event of the CPU ready."""
    while True:
        at, end = q[o + Q_AT], q[o + Q_PAGE_END]
        if at + 4 > end:
            if not _turn_page(buffer, y, q, o):
                q[o + Q_EVENT] = -1
                return
            continue
        word = np.int64(load_u32(buffer, at))
        kind, delta = word & 31, word >> 5
        at += 4
        if kind == _PADDING and delta == 0:
            q[o + Q_AT] = end
            continue
        if kind == 0 or kind >= _PADDING:
            if at + 4 > end:
                y[Y_DAMAGED] += 1
                q[o + Q_AT] = end
                continue
            more = np.int64(load_u32(buffer, at))
            if kind == _EXTEND:
                q[o + Q_TIME] += delta + (more << 27)
                q[o + Q_AT] = at + 4
                continue
            if kind == _STAMP:
                upper = np.uint64(q[o + Q_TIME]) & np.uint64(_UPPER_BITS)
                q[o + Q_TIME] = np.int64(upper | np.uint64(delta + (more << 27)))
                q[o + Q_AT] = at + 4
                continue
            data, length = at + 4, more - 4
            following = at + (more + 3 & ~3)
        else:
            data, length = at, kind * 4
            following = at + length
        q[o + Q_TIME] += delta
        if length < 0 or following > end:
            y[Y_DAMAGED] += 1
            q[o + Q_AT] = end
            continue
        q[o + Q_AT] = following
        if kind == _PADDING or length < 8:  # discarded; or too short to have a thread
            continue
        q[o + Q_EVENT], q[o + Q_LENGTH] = data, length
        return


@native
def start(buffer: Any, y: Any, cpus: Any) -> None:
    """Make the first event of each CPU ready."""
    q = bare(cpus)
    for k in range(cpus.shape[0]):
        advance(buffer, y, q, k * Q_SIZE)


@native
def count(buffer: Any, y: Any, cpus: Any, index: Any, counts: Any) -> Any:
    """Count the events of each format, (buffers, events), in no order; returns those of unknown
    ones."""
    q, of_type, found = bare(cpus), bare(index), bare(counts)
    unknown = 0
    for k in range(cpus.shape[0]):
        o = k * Q_SIZE
        while q[o + Q_EVENT] >= 0:
            event = of_type[q[o + Q_BUFFER] * TYPES + load_u16(buffer, q[o + Q_EVENT])]
            if event == UNKNOWN:
                unknown += 1
            elif event >= 0:
                found[q[o + Q_BUFFER] * counts.shape[1] + event] += 1
            advance(buffer, y, q, o)
    return unknown


@borrowing_helper
def _value(buffer: Any, at: Any, size: Any, signed: Any) -> Any:
    """A field of 1, 2, 4 or 8 bytes."""
    if size == 8:
        return np.int64(load_u64(buffer, at))
    if size == 4:
        return np.int64(load_i32(buffer, at)) if signed else np.int64(load_u32(buffer, at))
    if size == 2:
        value = np.int64(load_u16(buffer, at))
        return value - 65536 if signed and value >= 32768 else value
    value = np.int64(buffer[at])
    return value - 256 if signed and value >= 128 else value


@borrowing_helper
def _name(
    x: Any, task: Any, place: Any, keys: Any, values: Any, comms: Any, rows: Any, n: Any, line: Any
) -> Any:
    """The name of a thread that has just been met; returns the number of rows made."""
    tid = task[place + tr.K_TID]
    found = table_find(keys, values, np.uint64(tid))
    if found < 0:
        return 0
    word0, word1 = comms[2 * found], comms[2 * found + 1]
    if task[place + tr.K_COMM0] == word0 and task[place + tr.K_COMM1] == word1:
        return 0
    task[place + tr.K_COMM0], task[place + tr.K_COMM1] = word0, word1
    o = tr.begin(rows, n, line, task[place + tr.K_PID], tid, -1, 0)
    rows[o + tr.C_ROLE] = ev.COMM
    rows[o + tr.C_ARG + 1], rows[o + tr.C_ARG + 2] = word0, word1
    return 1


@native
def scan(
    buffer: Any,
    y: Any,
    cpus: Any,
    x: Any,
    threads: Any,
    ring: Any,
    index: Any,
    flags: Any,
    program: Any,
    roles: Any,
    numbers: Any,
    slots: Any,
    execve: Any,
    told: Any,
    name_keys: Any,
    name_values: Any,
    name_words: Any,
    words: Any,
    rows: Any,
) -> Any:
    """Read events in order of time into ``rows``, until there is no room for another.

    Parameters
    ----------
    buffer:
        uint8: the file, or its unpacked pages.
    y, cpus:
        (Y_SIZE,) int64 and (CPUs, Q_SIZE) int64: pages, and each CPU's place in them.
    x, threads, ring, numbers, slots, execve, told, words, rows:
        As of :func:`mmreplay.importers.text.scan.scan`.
    index:
        (buffers, TYPES) int32: event of each type, or UNKNOWN, or OWN.
    flags, program:
        Of :class:`mmreplay.importers.perf.layout.Layout`.
    roles:
        (events,) int64.
    name_keys, name_values, name_words:
        Table of threads' names by tid -> number, and (names, 2) int64.

    Returns
    -------
    DONE, FULL or NEED_THREADS.
    """
    q, task, out, opened = bare(cpus), bare(threads), bare(rows), bare(ring)
    flag, step_of, of_type = bare(flags), bare(program), bare(index)
    number_of, slot_of, raw, comms = bare(numbers), bare(slots), bare(words), bare(name_words)
    own_execve, own_events = bare(execve), bare(told)
    mask = threads.shape[0] - 1
    room = rows.shape[0] - tr.MOST_ROWS
    n = 0
    chosen = -1
    while True:
        if n > room or 2 * x[tr.X_THREADS] + 8 > threads.shape[0]:
            x[tr.X_ROWS] = n
            return tr.FULL if n > room else tr.NEED_THREADS
        chosen = -1
        for k in range(cpus.shape[0]):
            if q[k * Q_SIZE + Q_EVENT] >= 0 and (
                chosen < 0 or q[k * Q_SIZE + Q_TIME] < q[chosen * Q_SIZE + Q_TIME]
            ):
                chosen = k
        if chosen < 0:
            break
        c = chosen * Q_SIZE
        at, length = q[c + Q_EVENT], q[c + Q_LENGTH]
        time, cpu, lost = q[c + Q_TIME], q[c + Q_CPU], q[c + Q_LOST]
        q[c + Q_LOST] = 0
        types = q[c + Q_BUFFER] * TYPES
        advance(buffer, y, q, c)
        x[tr.X_POSITION] += length
        event = np.int64(of_type[types + load_u16(buffer, at)])
        tid = np.int64(load_i32(buffer, at + 4))
        if time < 0 or (event < 0 and lost == 0):
            x[tr.X_SKIPPED] += 1
            continue
        if x[tr.X_T0] < 0 and time > 0:
            x[tr.X_T0] = time
        if lost > 0:
            o = tr.begin(out, n, time, 0, 0, cpu, at)
            out[o + tr.C_ROLE], out[o + tr.C_ARG] = ev.LOST, lost
            x[tr.X_LOST] += lost
            n += 1
        if event < 0:
            x[tr.X_SKIPPED] += 1
            continue
        x[tr.X_LINES] += 1
        if tid == 0:
            x[tr.X_IDLE] = 1
        role = roles[event]
        steps = flag[pl.G_SIZE * event + pl.G_FIELDS]
        if steps > 0 and length < flag[pl.G_SIZE * event + pl.G_NEED]:
            x[tr.X_UNREAD] += 1
            continue
        known = False
        place = np.int64(0)
        if 0 < tid <= tr.MAX_TID:
            place = tr.thread_at(task, mask, tid)
            known = tr.is_known(task, place)
        if not known and role != ev.SCHED_SWITCH:
            if not 0 < tid <= tr.MAX_TID or role == SCHED_EXIT:
                continue
            n += tr.meet(x, task, mask, opened, out, n, place, tid, -1, time, cpu, np.int64(-1))
            n += _name(x, task, place, name_keys, name_values, comms, out, n, time)
            known = True
        pid = task[place + tr.K_PID] if known else 0
        o = tr.begin(out, n, time, pid, tid if known else 0, cpu, at)
        for k in range(steps):
            step = (pl.MAX_FIELDS * event + k) * 4
            out[o + tr.C_ARG + step_of[step + pl.P_SLOT]] = _value(
                buffer,
                at + step_of[step + pl.P_OFFSET],
                step_of[step + pl.P_SIZE],
                step_of[step + pl.P_SIGNED],
            )
        call = flag[pl.G_SIZE * event + pl.G_CALL]
        if role == ev.FAULT_USER or role == ev.FAULT_KERNEL:
            show_address(task, place, out[o + tr.C_ARG])
        if role == ev.FAULT_USER:
            pointer = np.uint64(out[o + tr.C_ARG + 2])
            if pointer < np.uint64(_KERNEL_HALF):
                out[o + tr.C_IP] = np.int64(pointer)
            out[o + tr.C_ARG + 2] = 0
        elif role == ev.RAW_ENTER or role == ev.RAW_EXIT:
            number = out[o + tr.C_ARG + 7]
            number = number if 0 <= number < sc.NUMBERS else np.int64(-1)
            for k in range(6):
                raw[k] = np.uint64(out[o + tr.C_ARG + k])
            for k in range(tr.ARGS):
                out[o + tr.C_ARG + k] = 0
            call = name_raw(
                task, place, out, o, role, number, raw, number_of, slot_of, own_execve, own_events
            )
            role = np.int64(ev.ENTER if role == ev.RAW_ENTER else ev.EXIT)
            if call < 0:
                role = np.int64(ev.OTHER)
        elif role == SCHED_EXIT:
            out[o + tr.C_ARG], out[o + tr.C_ARG + 2] = pid, tid
            task[place + tr.K_CALL] = -1
            role = np.int64(ev.THREAD_END)
        out[o + tr.C_ROLE], out[o + tr.C_CALL], out[o + tr.C_EVENT] = role, call, event
        if known and call >= 0:
            n += tr.lives(x, task, mask, opened, place, out, n, role, call)
        n += 1
    x[tr.X_ROWS] = n
    return tr.DONE
