"""Compiled scanner of ``strace -f -ttt -T`` logs: lines -> rows.

A call is one line, ``PID TIME NAME(ARGUMENTS) = RESULT <DURATION>``, or two where another thread
came between: ``NAME(ARGUMENTS <unfinished ...>``, and ``<... NAME resumed>REST) = RESULT <TIME>``.
The time is that of the entry, on a resumed line that of the return.

Without ``-o`` what strace says (``strace: Process 5 attached``) and what the program writes to its
standard error stand in the midst of lines, whose rest comes on a later line.
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
_STRACE: Final = fnv("strace: Process")
_ATTACHED, _DETACHED, _SUPERSEDED = (fnv(word) for word in ("attached", "detached", "superseded"))
_CLONE, _CLONE3, _FORK, _VFORK = (fnv(name) for name in ("clone", "clone3", "fork", "vfork"))
#: How far behind a thread's first line its parent's return from clone is looked for; half as far
#: with each one that was not found.
_LOOK_AHEAD: Final = 1 << 20
#: A name of the kernel's has 15 bytes.
_COMM_TAIL: Final = (1 << 56) - 1


@borrowing_helper
def _is_word(byte: Any) -> Any:
    return 97 <= byte <= 122 or 65 <= byte <= 90 or is_digit(byte) or byte == 95


@borrowing_helper
def _is_capital(byte: Any) -> Any:
    return 65 <= byte <= 90 or is_digit(byte) or byte == 95


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
            while at < end and _is_capital(b[at]):  # what the program wrote may follow at once
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


@borrowing_helper
def _head(b: Any, at: Any, end: Any, unnamed: Any) -> Any:
    """(thread, time in ns, next) of ``PID TIME``, ``[pid PID] TIME``, or only a time: the thread is
    ``unnamed`` then.  ``next`` is -1 where that does not begin the line."""
    k = at
    if k + 5 < end and b[k] == 91 and b[k + 1] == 112:
        k = skip_spaces(b, k + 4, end)
    value, after = decimal(b, k, end)
    tid = unnamed
    if after < end and after > k and b[after] != _DOT:
        tid = np.int64(value)
        if b[after] == _LESS:  # its name (-Y)
            while after < end and b[after] != _MORE:
                after += 1
            after = min(after + 1, end - 1)
        if b[after] == 93:
            after += 1
        k = skip_spaces(b, after, end)
    time, after = seconds(b, k, end)
    good = k < after < end and b[after] == SPACE and 0 <= tid <= tr.MAX_TID and time >= 0
    return tid, time, skip_spaces(b, after, end) if good else np.int64(-1)


@borrowing_helper
def _said(b: Any, at: Any, end: Any) -> Any:
    """Where ``strace: Process 5 attached`` or ``detached`` begins that ends the line; else its end.

    Only a last letter d is looked at closer.
    """
    if end - at < 26 or b[end - 1] != 100 or b[end - 9] != SPACE:
        return end
    word = hash_word(b, end - 8, end)
    if word != _ATTACHED and word != _DETACHED:
        return end
    k = end - 10
    while k > at and is_digit(b[k]):
        k -= 1
    first = k - 15
    return first if first >= at and hash_word(b, first, k) == _STRACE else end


@borrowing_helper
def _hidden_head(b: Any, at: Any, end: Any) -> Any:
    """Where the head begins behind what the program wrote without a newline; -1 none."""
    run = 0
    for k in range(at, end):
        if is_digit(b[k]):
            run += 1
            continue
        first: Any = -1
        if b[k] == _DOT and run >= 10:
            first = k - 10
        elif b[k] == 91 and k + 5 < end and b[k + 1] == 112 and b[k + 2] == 105:  # [pi
            first = k
        run = 0
        if first >= 0:
            _, _, behind = _head(b, first, end, 0)
            if behind >= 0:
                return first
    return np.int64(-1)


@borrowing_helper
def _rest(buffer: Any, b: Any, at: Any, end: Any) -> Any:
    """(from, to) of the line that has the rest of the call before ``at``; (-1, -1): none has.

    It comes before the next line that begins with a time.
    """
    while at < end:
        stop = line_end(buffer, b, at, end)
        last = stop - 1 if stop > at and b[stop - 1] == 13 else stop
        _, _, behind = _head(b, at, last, 0)
        if behind >= 0:
            break
        if last - at > 4 and b[last - 1] == _MORE and _said(b, at, last) == last:
            if b[last - 2] == _DOT or is_digit(b[last - 2]):
                return at, last
        at = stop + 1
    return np.int64(-1), np.int64(-1)


@borrowing_helper
def _is_unfinished(b: Any, end: Any) -> Any:
    """Whether the line ends with ``<unfinished ...>`` or the like."""
    return b[end - 1] == _MORE and b[end - 2] == _DOT


@borrowing_helper
def _is_superseded(b: Any, at: Any, end: Any) -> Any:
    """Whether it is ``+++ superseded by execve in pid 6 +++``."""
    at = min(at + 4, end)
    return hash_word(b, at, word_end(b, at, end)) == _SUPERSEDED


@borrowing_helper
def _take_over(b: Any, end: Any, task: Any, mask: Any, place: Any) -> None:
    """The thread named last on the line executes: it goes on under the id of the one at ``place``,
    its leader, and its own is no more."""
    k = end - 4
    while k > 0 and is_digit(b[k - 1]):
        k -= 1
    value, _ = decimal(b, k, end)
    other = tr.thread_at(task, mask, np.int64(value))
    task[place + tr.K_CALL] = 0
    if tr.is_known(task, other):
        for k in range(tr.K_COMM0, tr.K_SIZE):
            task[place + k] = task[other + k]
        task[other + tr.K_CALL] = -1


@borrowing_helper
def _parent(buffer: Any, b: Any, at: Any, end: Any, child: Any) -> Any:
    """The thread whose clone returns the new thread, further on in the text; -1 unknown.

    Several may be inside clone when a child's first line comes.
    """
    while at < end:
        stop = line_end(buffer, b, at, end)
        line, at = at, stop + 1
        if stop - line < 30 or b[stop - 1] == 13:
            stop -= 1
        k = stop - 1
        if k < line or b[k] != _MORE:
            continue
        k = _back_to(b, k, line, _LESS) - 1
        last = k
        while k > line and is_digit(b[k - 1]):
            k -= 1
        value, _ = decimal(b, k, last)
        if k == last or np.int64(value) != child or k - 2 < line or b[k - 2] != _EQUALS:
            continue
        tid, _, name = _head(b, line, stop, 0)
        if name < 0 or name + 5 > stop or b[name] != _LESS or b[name + 1] != _DOT:
            continue
        name = skip_spaces(b, name + 4, stop)
        word = hash_word(b, name, word_end(b, name, stop))
        if word == _CLONE or word == _CLONE3 or word == _FORK or word == _VFORK:
            return tid
    return np.int64(-1)


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
        unnamed = x[tr.X_UNNAMED]
        tid, time, name = _head(b, line, stop, unnamed)
        if name < 0:
            k = _hidden_head(b, line, stop)
            if k >= 0:
                tid, time, name = _head(b, k, stop, unnamed)
        if tid == 0 and name >= 0:
            tid = tr.a_living_thread(task, mask)
            x[tr.X_UNNAMED] = tid
        if name < 0 or tid == 0:
            x[tr.X_SKIPPED] += 1
            continue
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
                if _is_superseded(b, name, stop):
                    _take_over(b, stop, task, mask, place)
                elif tid == x[tr.X_UNNAMED]:
                    x[tr.X_UNNAMED] = 0  # lines without name are the last one's that is left
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
            ahead = at + (_LOOK_AHEAD >> min(x[tr.X_MISSED], 8))
            parent = _parent(buffer, b, at, min(end, ahead), tid)
            x[tr.X_MISSED] = 0 if parent > 0 else x[tr.X_MISSED] + 1
            n += tr.meet(x, task, mask, opened, out, n, place, tid, -1, time, -1, parent)
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
            told = _said(b, after, stop)
            k = _arguments(b, after + 1, told, call, raw, word_keys, word_values, word_numbers)
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
            if _is_unfinished(b, stop) and stop - 5 > k:
                continue
        elif roles[event] != ev.ENTER:
            task[place + tr.K_TIME] = max(time, task[place + tr.K_TIME])
            continue
        good, took = False, np.int64(-1)
        if _said(b, after, stop) == stop:
            good, took = _result(b, after, stop, raw, word_keys, word_values, word_numbers)
        if took < 0:
            rest, stop = _rest(buffer, b, at, end)
            if rest >= 0:
                at = stop + 1
                if _is_unfinished(b, stop):
                    continue
                good, took = _result(b, rest, stop, raw, word_keys, word_values, word_numbers)
        if not good:
            if took >= 0:
                x[tr.X_UNREAD] += 1
            continue
        began = task[place + tr.K_TIME]
        if took < 0:
            x[tr.X_NO_DURATION] += 1
        elif not resumed or task[place + tr.K_TIME] > 0:
            time = task[place + tr.K_TIME] + took
        task[place + tr.K_TIME] = time
        o = tr.begin(out, n, time, pid, tid, -1, line)
        out[o + tr.C_ROLE], out[o + tr.C_CALL], out[o + tr.C_EVENT] = ev.EXIT, call, event
        out[o + tr.C_ARG] = np.int64(raw[0])
        if tr.is_clone(call):
            made = tr.close_clone(x, task, mask, place, out, n, call)
            if made and not resumed:  # the child's lines may be older than this return (-ff)
                out[n * tr.WIDTH + tr.C_TIME] = began
            n += made
        elif (call == sc.C_EXECVE or call == sc.C_EXECVEAT) and raw[0] == np.uint64(0):
            n += tr.exec_row(out, n, task[place + tr.K_EXEC0], task[place + tr.K_EXEC1])
        n += 1
    x[tr.X_POSITION], x[tr.X_ROWS] = at, n
    return tr.DONE
