"""Compiled scanner of ``strace -f -ttt -T`` logs: lines -> rows.

A call is one line, ``PID TIME NAME(ARGUMENTS) = RESULT <DURATION>``, or two where another thread
came between: ``NAME(ARGUMENTS <unfinished ...>``, and ``<... NAME resumed>REST) = RESULT <TIME>``.
The time is that of the entry, on a resumed line that of the return.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mmreplay.importers import events as ev
from mmreplay.importers import syscalls as sc
from mmreplay.importers.binary import bare, table_find
from mmreplay.importers.text import rows as tr
from mmreplay.importers.text.bytes import (
    MOST_NAME,
    SPACE,
    decimal,
    fnv,
    hash_word,
    hexadecimal,
    is_digit,
    line_end,
    seconds,
    skip_spaces,
    text_word,
    word_end,
)
from mmreplay.importers.text.fields import put_arguments
from mmreplay.jit import borrowing_helper, native

_HUGE_SHIFT: Final = fnv("MAP_HUGE_SHIFT")
_FLAGS: Final = fnv("flags")
_SLASH, _QUOTE, _BACKSLASH, _COMMA, _EQUALS, _PIPE = 47, 34, 92, 44, 61, 124
_PLUS, _MINUS, _LESS, _MORE, _DOT = 43, 45, 60, 62, 46
#: A name of the kernel's has 15 bytes.
_COMM_TAIL: Final = (1 << 56) - 1


@borrowing_helper
def _is_word(byte: Any) -> Any:
    return 97 <= byte <= 122 or 65 <= byte <= 90 or is_digit(byte) or byte == 95


@borrowing_helper
def _back_to(b: Any, k: Any, at: Any, byte: Any) -> Any:
    """The last place before ``k`` that holds the byte; ``at - 1`` where none does."""
    k -= 1
    while k >= at and b[k] != byte:
        k -= 1
    return k


@borrowing_helper
def argument_end(b: Any, at: Any, end: Any) -> Any:
    """The comma behind an argument, or the bracket that closes the call, or the end."""
    depth = 0
    while at < end:
        byte = b[at]
        if byte == _QUOTE:
            at += 1
            while at < end and b[at] != _QUOTE:
                at += 2 if b[at] == _BACKSLASH else 1
        elif byte == 40 or byte == 91 or byte == 123:
            depth += 1
        elif byte == 41 or byte == 93 or byte == 125:
            if depth == 0:
                return at
            depth -= 1
        elif byte == _COMMA and depth == 0:
            return at
        elif byte == _LESS and b[at - 1] != _LESS and at + 1 < end and b[at + 1] == _SLASH:
            while at < end and b[at] != _MORE:  # 3</a/path>
                at += 1
        at += 1
    return min(at, end)


@borrowing_helper
def number(b: Any, at: Any, end: Any, word_keys: Any, word_values: Any, word_numbers: Any) -> Any:
    """A number, a constant, or several with ``|`` between; what is unknown counts as 0."""
    value = np.uint64(0)
    while at < end:
        at = skip_spaces(b, at, end)
        if at >= end:
            break
        part = np.uint64(0)
        if is_digit(b[at]) or b[at] == _MINUS:
            if at + 1 < end and b[at] == 48 and b[at + 1] == 120:
                part, at, _ = hexadecimal(b, at, end)
            else:
                part, at = decimal(b, at, end)
            if at + 1 < end and b[at] == _LESS and b[at + 1] == _LESS:
                first = at + 2
                at = first
                while at < end and _is_word(b[at]):
                    at += 1
                shift = np.uint64(26) if hash_word(b, first, at) == _HUGE_SHIFT else np.uint64(0)
                part = part << shift
        else:
            first = at
            while at < end and _is_word(b[at]):
                at += 1
            found = table_find(word_keys, word_values, hash_word(b, first, at))
            if found >= 0:
                part = np.uint64(word_numbers[found])
        value |= part
        if at >= end or b[at] != _PIPE:
            break
        at += 1
    return value


@borrowing_helper
def _arguments(
    b: Any,
    at: Any,
    end: Any,
    call: Any,
    raw: Any,
    keys: Any,
    values: Any,
    numbers: Any,
) -> Any:
    """Arguments from ``at`` on into ``raw``; returns where they end.  Of a clone only its flags."""
    for k in range(6):
        raw[k] = np.uint64(0)
    clones = call == sc.C_CLONE
    if clones and at < end and b[at] == 123:  # clone3({flags=...
        at += 1
    position = 0
    while at < end and position < 6:
        at = skip_spaces(b, at, end)
        stop = argument_end(b, at, end)
        first = at
        while at < stop and _is_word(b[at]):
            at += 1
        key = np.uint64(0)
        if at < stop and at > first and b[at] == _EQUALS:
            key = hash_word(b, first, at)
            first = at + 1
        if not clones:
            raw[position] = number(b, first, stop, keys, values, numbers)
        elif key == _FLAGS:
            raw[0] = number(b, first, stop, keys, values, numbers)
            return stop
        position += 1
        at = stop
        if at >= end or b[at] != _COMMA:
            break
        at += 1
    return at


@borrowing_helper
def _place_bits(raw: Any) -> None:
    """strace leaves out the arguments that an operation of futex does not use."""
    command = raw[1] & np.uint64(0x7F)
    if command == np.uint64(9):  # FUTEX_WAIT_BITSET: address, operation, value, timeout, bits
        raw[5] = raw[4]
    elif command == np.uint64(10):  # FUTEX_WAKE_BITSET: address, operation, value, bits
        raw[5] = raw[3]


@borrowing_helper
def _two_addresses(b: Any, at: Any, end: Any, rows: Any, o: Any) -> None:
    """``[{val=0, uaddr=0x10, flags=...}, {val=0, uaddr=0x20, ...}]`` into the row at ``o``."""
    found = 0
    while at + 2 < end and b[at] != 93 and found < 2:  # ]
        if b[at] == _EQUALS and b[at - 1] == 114 and b[at - 2] == 100:  # uaddr=
            value, _, _ = hexadecimal(b, at + 1, end)
            rows[o + tr.C_ARG + (sc.ADDRESS2 if found else sc.ADDRESS)] = np.int64(value)
            found += 1
        at += 1


@borrowing_helper
def _program(b: Any, at: Any, end: Any, task: Any, place: Any) -> None:
    """The name that an exec of ``"/path/NAME"`` gives."""
    if at < end and b[at] != _QUOTE:  # execveat: behind the descriptor
        at = min(argument_end(b, at, end) + 2, end)
    first = min(at + 1, end)
    k = first
    while k < end and b[k] != _QUOTE:
        if b[k] == _SLASH:
            first = k + 1
        k += 2 if b[k] == _BACKSLASH else 1
    k = min(k, end)
    task[place + tr.K_EXEC0] = np.int64(text_word(b, first, k))
    tail = text_word(b, min(first + 8, k), k) & np.uint64(_COMM_TAIL)
    task[place + tr.K_EXEC1] = np.int64(tail)


@borrowing_helper
def _result(b: Any, at: Any, end: Any, raw: Any, keys: Any, values: Any, numbers: Any) -> Any:
    """(whether there is a result, duration in ns or -1): ``= RESULT <DURATION>`` at the line's end;
    the result goes to ``raw[0]``, a failed call's as the kernel returns it."""
    took = np.int64(-1)
    stop = end
    if end - 1 > at and b[end - 1] == _MORE:
        opening = _back_to(b, end - 1, at, _LESS)
        if opening > at and opening + 1 < end and is_digit(b[opening + 1]):
            took, _ = seconds(b, opening + 1, end - 1)
            stop = opening
    # The last ") = ": neither results nor explanations hold one.
    k = stop - 1
    while k > at and not (
        b[k] == _EQUALS and b[k - 1] == SPACE and k + 1 < stop and b[k + 1] == 32
    ):
        k -= 1
    k = skip_spaces(b, k + 1, stop)
    if k <= at + 1 or k >= stop or not (is_digit(b[k]) or b[k] == _MINUS or b[k] == 63):
        return False, took
    after = word_end(b, k, stop)
    unknown = b[k] == 63
    raw[0] = number(b, k, after, keys, values, numbers)
    if unknown or raw[0] == np.uint64((1 << 64) - 1):
        first = skip_spaces(b, after, stop)
        after = first
        while after < stop and _is_word(b[after]):
            after += 1
        found = table_find(keys, values, hash_word(b, first, after))
        if found >= 0 and after > first:
            raw[0] = np.uint64(0) - np.uint64(numbers[found])
        elif unknown:
            return False, took
    return True, took


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
    slots: Any,
    word_keys: Any,
    word_values: Any,
    word_numbers: Any,
    words: Any,
    rows: Any,
) -> Any:
    """Read lines from ``x[X_POSITION]`` on into ``rows``, until there is no room for another.

    Parameters as of :func:`mmreplay.importers.text.scan.scan`, and

    word_keys, word_values, word_numbers:
        Table of constants and errors by hash -> number, and by number its value.

    Returns
    -------
    DONE, FULL, NEW_NAME or NEED_THREADS, as there.
    """
    b, task, out = bare(buffer), bare(threads), bare(rows)
    opened, raw, slot_of = bare(ring), bare(words), bare(slots)
    mask = threads.shape[0] - 1
    room = rows.shape[0] - tr.MOST_ROWS
    n = 0
    at = x[tr.X_POSITION]
    while at < end:
        if n > room or 2 * x[tr.X_THREADS] + 8 > threads.shape[0]:
            x[tr.X_POSITION], x[tr.X_ROWS] = at, n
            return tr.FULL if n > room else tr.NEED_THREADS
        stop = line_end(buffer, b, at, end)
        line, at = at, stop + 1
        x[tr.X_POSITION] = line
        if stop > line and b[stop - 1] == 13:
            stop -= 1
        # PID, "[pid PID]", or nothing: the first process.
        k = line
        if k + 5 < stop and b[k] == 91 and b[k + 1] == 112:
            k = skip_spaces(b, k + 4, stop)
        value, after = decimal(b, k, stop)
        tid = x[tr.X_ROOT]
        if after < stop and after > k and b[after] != _DOT:
            tid = np.int64(value)
            if b[after] == _LESS:  # its name (-Y)
                while after < stop and b[after] != _MORE:
                    after += 1
                after = min(after + 1, stop - 1)
            if b[after] == 93:
                after += 1
            k = skip_spaces(b, after, stop)
        time, after = seconds(b, k, stop)
        if after >= stop or after == k or b[after] != SPACE or not 0 < tid <= tr.MAX_TID:
            x[tr.X_SKIPPED] += 1
            continue
        name = skip_spaces(b, after, stop)
        # The time since the last line (-r), the instruction pointer (-i), the call's number (-n).
        while name < stop and (b[name] == 91 or (b[name] == 40 and name + 1 < stop)):
            while name < stop and b[name] != 93 and b[name] != 41:
                name += 1
            name = skip_spaces(b, min(name + 1, stop), stop)
        if name >= stop:
            x[tr.X_SKIPPED] += 1
            continue
        place = tr.thread_at(task, mask, tid)
        if b[name] == _PLUS:  # +++ exited with 0 +++
            if tr.is_known(task, place):
                o = tr.begin(out, n, time, task[place + tr.K_PID], tid, -1, line)
                out[o + tr.C_ROLE] = ev.THREAD_END
                out[o + tr.C_ARG] = task[place + tr.K_PID]
                out[o + tr.C_ARG + 2] = tid
                task[place + tr.K_CALL] = -1
                n += 1
            x[tr.X_SKIPPED] += 1
            continue
        resumed = name + 5 < stop and b[name] == _LESS and b[name + 1] == _DOT
        if resumed:
            name = skip_spaces(b, name + 4, stop)
        after = name
        while after < stop and _is_word(b[after]):
            after += 1
        if (
            after == name
            or after - name > MOST_NAME
            or after >= stop
            or b[after] != (SPACE if resumed else 40)
        ):
            x[tr.X_SKIPPED] += 1  # signals, "strace: Process 5 attached"
            continue
        event = table_find(name_keys, name_values, hash_word(b, name, after))
        if event < 0:
            x[tr.X_NAME_AT], x[tr.X_NAME_END], x[tr.X_NAME_FORM] = name, after, 0
            x[tr.X_ROWS] = n
            return tr.NEW_NAME
        if x[tr.X_T0] < 0:
            x[tr.X_T0] = time
        x[tr.X_LINES] += 1
        call = np.int64(calls[event])
        if not tr.is_known(task, place):
            n += tr.meet(x, task, mask, opened, out, n, place, tid, -1, time, -1)
        pid = task[place + tr.K_PID]
        if not resumed:
            counts[event] += 1
            # Entry and the thread's return before are rounded apart.
            time = max(time, task[place + tr.K_TIME])
            task[place + tr.K_TIME] = time
            o = tr.begin(out, n, time, pid, tid, -1, line)
            out[o + tr.C_EVENT] = event
            n += 1
            if roles[event] != ev.ENTER:
                continue
            k = _arguments(b, after + 1, stop, call, raw, word_keys, word_values, word_numbers)
            if call == sc.C_FUTEX:
                _place_bits(raw)
            put_arguments(out, o, call, raw, slot_of)
            if call == sc.C_FUTEX_REQUEUE:
                _two_addresses(b, after + 1, stop, out, o)
            out[o + tr.C_ROLE], out[o + tr.C_CALL] = ev.ENTER, call
            if tr.is_clone(call):
                tr.open_clone(task, place, opened, call, out[o + tr.C_ARG + sc.FLAGS])
            elif call == sc.C_EXECVE or call == sc.C_EXECVEAT:
                _program(b, after + 1, stop, task, place)
            if stop - 5 > k and b[stop - 1] == _MORE and b[stop - 2] == _DOT:  # <unfinished ...>
                continue
        elif roles[event] != ev.ENTER:
            task[place + tr.K_TIME] = max(time, task[place + tr.K_TIME])
            continue
        good, took = _result(b, after, stop, raw, word_keys, word_values, word_numbers)
        if not good:
            if took >= 0:
                x[tr.X_UNREAD] += 1
            continue
        if took < 0:
            x[tr.X_NO_DURATION] += 1
        elif not resumed or task[place + tr.K_TIME] > 0:
            time = task[place + tr.K_TIME] + took
        task[place + tr.K_TIME] = time
        o = tr.begin(out, n, time, pid, tid, -1, line)
        out[o + tr.C_ROLE], out[o + tr.C_CALL], out[o + tr.C_EVENT] = ev.EXIT, call, event
        out[o + tr.C_ARG] = np.int64(raw[0])
        if tr.is_clone(call):
            n += tr.close_clone(x, task, mask, place, out, n, call)
        elif (call == sc.C_EXECVE or call == sc.C_EXECVEAT) and raw[0] == np.uint64(0):
            n += tr.exec_row(out, n, task[place + tr.K_EXEC0], task[place + tr.K_EXEC1])
        n += 1
    x[tr.X_POSITION], x[tr.X_ROWS] = at, n
    return tr.DONE
