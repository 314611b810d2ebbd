"""Compiled scanner of ``perf script`` and ftrace text: lines -> rows.

A line is ``COMM PID/TID [CPU] FLAGS TIME: PERIOD EVENT: ARGUMENTS`` (perf script), or
``COMM-TID (TGID) [CPU] FLAGS TIME: EVENT: ARGUMENTS`` (ftrace, trace-cmd report, systrace); all
but thread, time and event may be missing.  What has no line of its own is made up from the others:
names of threads that change, execs, the creation of threads.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mmreplay.importers import events as ev
from mmreplay.importers.binary import bare, table_find
from mmreplay.importers.text import rows as tr
from mmreplay.importers.text.bytes import (
    MOST_NAME,
    SPACE,
    decimal,
    hash_word,
    hexadecimal,
    is_digit,
    line_end,
    skip_spaces,
    text_word,
    word_end,
)
from mmreplay.importers.text.fields import (
    H_COLON,
    H_COMM_END,
    H_CONTEXT,
    H_CPU,
    H_PID,
    H_TID,
    H_TIME,
    last_pointer,
    parse_contention,
    parse_enter,
    parse_head,
    parse_loss,
    parse_new_task,
    parse_pairs,
    parse_raw,
    parse_switch,
    parse_waking,
)
from mmreplay.importers.text.raw import name_raw, show_address
from mmreplay.importers.text.records import parse_record
from mmreplay.jit import borrowing_helper, native

#: How a name stood in the text: plain; ``sys_NAME(`` or ``sys_NAME ->`` as ftrace prints calls.
PLAIN, CALL_ENTER, CALL_EXIT = 0, 1, 2
#: Form of the name of a mapped file.
FILE: Final = -1
#: How fault ends say the address: first behind the event; or not, and it is the start's.
ADDRESS_FIRST, ADDRESS_OF_START = 0, 1
#: Roles that only text has: sched_process_exit, and PERF_RECORD_* (from FIRST_RECORD on).
SCHED_EXIT: Final = 41
#: A stack of the event before, no event of its own.
STACK: Final = 42
FIRST_RECORD: Final = 50
_KERNEL_HALF: Final = 1 << 63
_CLONE_THREAD: Final = 0x10000
_MOST_WEIGHT: Final = 2**32 - 1


@borrowing_helper
def _rename(b: Any, x: Any, task: Any, at: Any, rows: Any, n: Any, line: Any, head: Any) -> Any:
    """A thread's name, where it is another than before; returns the number of rows made."""
    first = line
    if x[tr.X_FTRACE] and b[line] != SPACE:  # a buffer's name, as trace-cmd report prints it
        word = word_end(b, line, head[H_COMM_END])
        if word < head[H_COMM_END] and b[word - 1] == 58:
            first = word
    first = skip_spaces(b, first, head[H_COMM_END])
    # :TID and <...> are words for a name unknown.
    if first >= head[H_COMM_END] or b[first] == 58 or b[first] == 60:
        return 0
    word0 = np.int64(text_word(b, first, head[H_COMM_END]))
    word1 = np.int64(text_word(b, min(first + 8, head[H_COMM_END]), head[H_COMM_END]))
    if task[at + tr.K_COMM0] == word0 and task[at + tr.K_COMM1] == word1:
        return 0
    task[at + tr.K_COMM0], task[at + tr.K_COMM1] = word0, word1
    if x[tr.X_TASK_EVENTS]:
        return 0
    o = tr.begin(rows, n, head[H_TIME], task[at + tr.K_PID], head[H_TID], head[H_CPU], line)
    rows[o + tr.C_ROLE] = ev.COMM
    rows[o + tr.C_ARG + 1], rows[o + tr.C_ARG + 2] = word0, word1
    return 1


@borrowing_helper
def _fault_end(
    b: Any, args: Any, stop: Any, x: Any, task: Any, at: Any, rows: Any, o: Any, role: Any
) -> Any:
    """minor-faults, major-faults, faults; returns whether its address is known."""
    value, k, digits = hexadecimal(b, args, stop)
    pointer = np.uint64(0)
    if x[tr.X_END_ADDRESS] == ADDRESS_OF_START:
        if role == ev.FAULT_SOFTWARE or task[at + tr.K_FAULT] == 0:
            return False
        rows[o + tr.C_ARG] = task[at + tr.K_FAULT]
        pointer = value
    else:
        if digits == 0:
            return False
        rows[o + tr.C_ARG] = np.int64(value)
        if x[tr.X_STARTS] == 0:
            pointer = last_pointer(b, k, stop)
    if pointer < np.uint64(_KERNEL_HALF):
        rows[o + tr.C_MARK] |= ev.USER_MODE
        rows[o + tr.C_IP] = np.int64(pointer)
    return True


@native
def scan(
    buffer: Any,
    end: Any,
    x: Any,
    threads: Any,
    ring: Any,
    name_keys: Any,
    name_values: Any,
    roles: Any,
    calls: Any,
    counts: Any,
    numbers: Any,
    slots: Any,
    execve: Any,
    told: Any,
    file_keys: Any,
    file_values: Any,
    scratch: Any,
    words: Any,
    rows: Any,
) -> Any:
    """Read lines from ``x[X_POSITION]`` on into ``rows``, until there is no room for another.

    Parameters
    ----------
    buffer, end:
        uint8, and the end of whole lines in it.
    x:
        int64, the X_* entries of :mod:`mmreplay.importers.text.rows`.
    threads:
        (power of two, K_SIZE) int64: threads by tid.
    ring:
        (OPENERS + 1,) int64: threads inside clone, and how many there have been.
    name_keys, name_values, roles, calls, counts:
        Table of event names by hash -> number, and by number its role, call and lines.
    numbers, slots, execve:
        :func:`mmreplay.importers.syscalls.number_tables`.
    told:
        (2, calls) uint8: whose entries and returns have events of their own.
    file_keys, file_values:
        Table of names of mapped files by hash -> number.
    scratch, words:
        (7,) int64 and (6,) uint64 to work in.
    rows:
        (n, WIDTH) int64.

    Returns
    -------
    DONE, FULL (take the rows and come again), NEW_NAME (number what is at X_NAME_AT), or
    NEED_THREADS (double the table).
    """
    b, task, out = bare(buffer), bare(threads), bare(rows)
    slot_of, number_of, opened = bare(slots), bare(numbers), bare(ring)
    head, raw = bare(scratch), bare(words)
    own_execve, own_events = bare(execve), bare(told)
    mask = threads.shape[0] - 1
    room = rows.shape[0] - tr.MOST_ROWS
    n = 0
    at = x[tr.X_POSITION]
    ftrace = x[tr.X_FTRACE]
    while at < end:
        if n > room or 2 * x[tr.X_THREADS] + 8 > threads.shape[0]:
            x[tr.X_POSITION], x[tr.X_ROWS] = at, n
            return tr.FULL if n > room else tr.NEED_THREADS
        stop = line_end(buffer, b, at, end)
        line, at = at, stop + 1
        x[tr.X_POSITION] = line
        if stop > line and b[stop - 1] == 13:
            stop -= 1
        rest = parse_head(b, line, line, stop, ftrace, head)
        if rest < 0:  # what looks like a time may be the thread's name
            rest = parse_head(b, line, head[H_COLON] + 1, stop, ftrace, head)
        if rest < 0:
            if ftrace:
                parse_loss(b, line, stop, x)
            x[tr.X_SKIPPED] += 1
            continue
        # The event's name; a period may stand before it.
        name = skip_spaces(b, rest, stop)
        if ftrace and name + 1 < stop:
            if b[name] == 60:  # <stack trace>: of the event before
                x[tr.X_SKIPPED] += 1
                continue
            if b[name] == 40 and b[name + 1] == 43:  # trace-cmd report --ts-diff: (+12)
                name = skip_spaces(b, word_end(b, name, stop), stop)
        after = word_end(b, name, stop)
        k = name
        while k < after and is_digit(b[k]):
            k += 1
        weight = np.int64(1)
        if k == after:
            period, _ = decimal(b, name, after)
            weight = np.int64(max(np.uint64(1), min(period, np.uint64(_MOST_WEIGHT))))
            name = skip_spaces(b, after, stop)
            after = word_end(b, name, stop)
        form = PLAIN
        args = after
        k = name
        while k < after and b[k] != 40:
            k += 1
        if k < after:
            args, after = k, k
            if ftrace:
                form = CALL_ENTER
        elif after > name and b[after - 1] == 58:
            after -= 1
        elif after + 2 < stop and b[after + 1] == 45 and b[after + 2] == 62:
            args, form = after + 3, CALL_EXIT
        if after <= name or after - name > MOST_NAME:
            x[tr.X_SKIPPED] += 1
            continue
        hashed = hash_word(b, name, after) ^ np.uint64(form)
        event = table_find(name_keys, name_values, hashed)
        if event < 0:
            x[tr.X_NAME_AT], x[tr.X_NAME_END], x[tr.X_NAME_FORM] = name, after, form
            x[tr.X_ROWS] = n
            return tr.NEW_NAME
        role = np.int64(roles[event])
        args = skip_spaces(b, args, stop)
        tid = head[H_TID]
        if role >= FIRST_RECORD:
            made = parse_record(
                b, args, stop, x, task, mask, out, n, role, line, head, file_keys, file_values
            )
            if made < 0:
                x[tr.X_ROWS] = n
                return tr.NEW_NAME
            if made and x[tr.X_T0] < 0 and head[H_TIME] > 0:
                x[tr.X_T0] = head[H_TIME]
            x[tr.X_LINES] += 1
            counts[event] += 1
            n += made
            continue
        if x[tr.X_GAP]:
            o = tr.begin(out, n, head[H_TIME], 0, 0, x[tr.X_GAP_CPU], line)
            out[o + tr.C_ROLE], out[o + tr.C_ARG] = ev.LOST, x[tr.X_GAP]
            x[tr.X_LOST] += x[tr.X_GAP]
            x[tr.X_GAP] = 0
            n += 1
        if role == STACK:
            x[tr.X_SKIPPED] += 1
            continue
        x[tr.X_LINES] += 1
        counts[event] += 1
        if tid == 0:
            x[tr.X_IDLE] = 1
        if x[tr.X_T0] < 0 and head[H_TIME] > 0:
            x[tr.X_T0] = head[H_TIME]
        good_tid = 0 < tid <= tr.MAX_TID
        if not good_tid and role != ev.SCHED_SWITCH:
            continue
        place = tr.thread_at(task, mask, tid if good_tid else 0)
        if role == ev.SCHED_SWITCH and not (good_tid and tr.is_known(task, place)):
            if not good_tid or head[H_PID] < 0:
                # That it ran is no reason to know it, but the thread that follows may be known.
                o = tr.begin(out, n, head[H_TIME], 0, 0, head[H_CPU], line)
                if parse_switch(b, args, stop, out, o):
                    out[o + tr.C_ROLE], out[o + tr.C_EVENT] = role, event
                    n += 1
                continue
        if not tr.is_known(task, place):
            pid, time, cpu = head[H_PID], head[H_TIME], head[H_CPU]
            n += tr.meet(x, task, mask, opened, out, n, place, tid, pid, time, cpu, np.int64(-1))
        elif head[H_PID] > 0:
            task[place + tr.K_PID] = head[H_PID]
        n += _rename(b, x, task, place, out, n, line, head)
        pid = task[place + tr.K_PID]
        o = tr.begin(out, n, head[H_TIME], pid, tid, head[H_CPU], line)
        out[o + tr.C_WEIGHT] = weight
        call = np.int64(calls[event])
        good = True
        if role == ev.OTHER:
            pass  # it says only that the thread ran
        elif role == ev.FAULT_USER or role == ev.FAULT_KERNEL:
            found = parse_pairs(b, args, stop, out, o, role)
            good = found >= 2
            if found > 2:
                x[tr.X_SYMBOLS] += 1
            if role == ev.FAULT_USER and out[o + tr.C_ARG + 2] > 0:
                out[o + tr.C_IP] = out[o + tr.C_ARG + 2]
            out[o + tr.C_ARG + 2] = 0
            task[place + tr.K_FAULT] = out[o + tr.C_ARG]
            show_address(task, place, out[o + tr.C_ARG])
        elif role == ev.FAULT_MINOR or role == ev.FAULT_MAJOR or role == ev.FAULT_SOFTWARE:
            good = _fault_end(b, args, stop, x, task, place, out, o, role)
            if good:
                show_address(task, place, out[o + tr.C_ARG])
        elif role == ev.ENTER:
            k = parse_enter(b, args, stop, out, o, call, raw, slot_of)
            good = k >= 0
            if good:
                pointer = last_pointer(b, k, stop)
                out[o + tr.C_IP] = np.int64(pointer) if pointer < np.uint64(_KERNEL_HALF) else 0
        elif role == ev.EXIT:
            value, _, digits = hexadecimal(b, args, stop)
            out[o + tr.C_ARG] = np.int64(value)
            good = digits > 0
        elif role == ev.RAW_ENTER or role == ev.RAW_EXIT:
            number = parse_raw(b, args, stop, role, raw)
            call = name_raw(
                task, place, out, o, role, number, raw, number_of, slot_of, own_execve, own_events
            )
            role = np.int64(ev.ENTER if role == ev.RAW_ENTER else ev.EXIT)
            if call < 0:
                role = np.int64(ev.OTHER)
        elif role == ev.CONTENTION_BEGIN or role == ev.CONTENTION_END:
            good = parse_contention(b, args, stop, out, o)
        elif role == ev.SCHED_SWITCH:
            good = parse_switch(b, args, stop, out, o)
        elif role == ev.WAKING:
            good = parse_waking(b, args, stop, out, o, head[H_CONTEXT])
        elif role == ev.NEW_TASK:
            good = parse_new_task(b, args, stop, out, o)
        elif role == SCHED_EXIT:
            if x[tr.X_TASK_EVENTS]:
                continue
            out[o + tr.C_ARG], out[o + tr.C_ARG + 2] = pid, tid
            task[place + tr.K_CALL] = -1
            role = np.int64(ev.THREAD_END)
            event = -1
        else:
            good = parse_pairs(b, args, stop, out, o, role) >= 2
        if not good:
            x[tr.X_UNREAD] += 1
            continue
        out[o + tr.C_ROLE], out[o + tr.C_CALL], out[o + tr.C_EVENT] = role, call, event
        if x[tr.X_TASK_EVENTS] == 0 and call >= 0:
            # Where nothing else tells the life of threads.
            n += tr.lives(x, task, mask, opened, place, out, n, role, call)
        n += 1
    x[tr.X_POSITION], x[tr.X_ROWS] = at, n
    return tr.DONE
