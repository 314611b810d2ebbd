"""Compiled parsers of the parts of a trace line: its head, and the arguments of its event."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mmreplay.importers import events as ev
from mmreplay.importers import syscalls as sc
from mmreplay.importers.text import rows as tr
from mmreplay.importers.text.bytes import (
    SPACE,
    decimal,
    fnv,
    hash_word,
    hexadecimal,
    integer,
    is_digit,
    seconds,
    skip_spaces,
    word_end,
)
from mmreplay.jit import borrowing_helper

# Entries of a line's head.
(H_TID, H_PID, H_CPU, H_TIME, H_COMM_END, H_CONTEXT, H_COLON) = range(7)
_MAX_CPU: Final = 32_767
_KERNEL_HALF: Final = 1 << 63
_ADDRESS, _IP, _ERROR_CODE = fnv("address"), fnv("ip"), fnv("error_code")
_MM, _WRITE, _SUCCESS = fnv("mm"), fnv("write"), fnv("success")
_CLONE_FLAGS = fnv("clone_flags")
#: Arguments of futex by position, under the names that trace-cmd prints (its plugin_futex).
_FUTEX_KEYS = tuple(fnv(word) for word in ("uaddr", "op", "val", "utime", "uaddr2", "val3"))
_VAL2 = fnv("val2")
#: Operations of futex by number (include/uapi/linux/futex.h@6.18).
_FUTEX_OPS = tuple(
    fnv(f"FUTEX_{word}")
    for word in (
        *("WAIT", "WAKE", "FD", "REQUEUE", "CMP_REQUEUE", "WAKE_OP", "LOCK_PI", "UNLOCK_PI"),
        *("TRYLOCK_PI", "WAIT_BITSET", "WAKE_BITSET", "WAIT_REQUEUE_PI", "CMP_REQUEUE_PI"),
        "LOCK_PI2",
    )
)
_FUTEX_PRIVATE, _FUTEX_REALTIME = fnv("FUTEX_PRIVATE_FLAG"), fnv("FUTEX_CLOCK_REALTIME")
_CPU, _STARTED, _LOST = fnv("CPU:"), fnv("##### CPU "), fnv("Lost ")
#: A number of lost events above this is no such number.
_MOST_LOST: Final = 1 << 40
_SPIN, _READ, _LOCK_WRITE = fnv("SPIN"), fnv("READ"), fnv("WRITE")
_RT, _PERCPU, _MUTEX = fnv("RT"), fnv("PERCPU"), fnv("MUTEX")
_LOCK_ADDR, _FLAGS = fnv("lock_addr"), fnv("flags")
_TRUE, _ONE = 116, 49  # t, 1


@borrowing_helper
def back_over_spaces(b: Any, k: Any, at: Any) -> Any:
    """The last byte at or before ``k`` that is no blank; ``at - 1`` where there is none."""
    while k >= at and b[k] == SPACE:
        k -= 1
    return k


@borrowing_helper
def back_over_digits(b: Any, k: Any, at: Any) -> Any:
    """The last byte at or before ``k`` that is no digit; ``at - 1`` where there is none."""
    while k >= at and is_digit(b[k]):
        k -= 1
    return k


@borrowing_helper
def find_time(b: Any, at: Any, end: Any) -> Any:
    """(begin, colon) of the first ``SECONDS.FRACTION:`` that a blank precedes; colon -1: none."""
    colon = at
    while colon < end:
        if b[colon] == 58:
            dot = back_over_digits(b, colon - 1, at)
            if at < dot < colon - 3 and b[dot] == 46:  # perf, ftrace: six or nine digits
                begin = back_over_digits(b, dot - 1, at)
                if begin < dot - 1 and (begin < at or b[begin] == SPACE):
                    return begin + 1, colon
        colon += 1
    return at, np.int64(-1)


@borrowing_helper
def _is_misc(b: Any, at: Any, last: Any) -> Any:
    """Whether this is what ``perf script -F +misc`` prints: K, U, KE, Sp and such."""
    if last - at > 3 or not 65 <= b[at] <= 90:
        return False
    while at <= last and (65 <= b[at] <= 90 or 97 <= b[at] <= 122):
        at += 1
    return at > last


@borrowing_helper
def _context(letter: Any) -> Any:
    """common_flags of the third of ftrace's flags: h, H, s, Z and z are interrupts
    (trace_print_lat_fmt, kernel/trace/trace_output.c@6.18)."""
    if letter == 46:  # .
        return np.int64(0)
    if letter == 115:  # s
        return np.int64(0x10)
    if letter == 104 or letter == 72 or letter == 90 or letter == 122:
        return np.int64(0x08)
    return np.int64(ev.UNKNOWN_CONTEXT)


@borrowing_helper
def parse_head(b: Any, at: Any, behind: Any, end: Any, ftrace: Any, head: Any) -> Any:
    """The head of a line into ``head`` (H_*); returns where the rest begins, -1: no such line.

    From the time, the first at or after ``behind``, backwards, because a thread's name may hold
    blanks, digits and brackets.
    """
    begin, colon = find_time(b, behind, end)
    head[H_COLON] = colon if colon >= 0 else end
    if colon < 0:
        return colon
    head[H_TIME], _ = seconds(b, begin, colon)
    if head[H_TIME] < 0:
        return np.int64(-1)
    k = back_over_spaces(b, begin - 1, at)
    head[H_CPU] = -1
    head[H_CONTEXT] = ev.UNKNOWN_CONTEXT
    if k >= at and b[k] != 93:  # flags may stand between the CPU and the time
        word = k
        while word >= at and b[word] != SPACE:
            word -= 1
        before = back_over_spaces(b, word, at)
        if not ftrace:
            if before >= at and _is_misc(b, word + 1, k):
                k = before if b[before] == 93 or is_digit(b[before]) else k
        elif before >= at and b[before] == 93:
            if k - word >= 4:
                head[H_CONTEXT] = _context(b[word + 3])
            k = before
        elif before >= at and is_digit(b[before]):  # trace-cmd report -l: CPU and flags are a word
            cpu, flags = decimal(b, word + 1, k)
            if flags > word + 1 and k - flags >= 3:
                if cpu <= np.uint64(_MAX_CPU):
                    head[H_CPU] = np.int64(cpu)
                head[H_CONTEXT] = _context(b[flags + 2])
                k = before
    if k >= at and b[k] == 93:  # [CPU]
        opening = back_over_digits(b, k - 1, at)
        if opening < at or b[opening] != 91:
            return np.int64(-1)
        cpu, _ = decimal(b, opening + 1, k)
        if cpu <= np.uint64(_MAX_CPU):
            head[H_CPU] = np.int64(cpu)
        k = back_over_spaces(b, opening - 1, at)
    head[H_PID] = -1
    if ftrace and k >= at and b[k] == 41:  # (TGID)
        stop = k
        while k >= at and b[k] != 40:
            k -= 1
        first = skip_spaces(b, k + 1, stop)
        if first < stop and is_digit(b[first]):
            value, _ = decimal(b, first, stop)
            head[H_PID] = np.int64(value)
        k = back_over_spaces(b, k - 1, at)
    stop = k + 1
    k = back_over_digits(b, k, at)
    if k + 1 >= stop:
        return np.int64(-1)
    value, _ = decimal(b, k + 1, stop)
    head[H_TID] = np.int64(value)
    if ftrace:
        head[H_COMM_END] = k
        return colon + 1 if k >= at and b[k] == 45 else np.int64(-1)
    if k > at and b[k] == 45 and (b[k - 1] == SPACE or b[k - 1] == 47):
        head[H_TID] = -head[H_TID]
        k -= 1
    if k > at and b[k] == 47:  # PID/TID
        stop = k
        k = back_over_digits(b, k - 1, at)
        value, _ = decimal(b, k + 1, stop)
        head[H_PID] = np.int64(value)
        if k >= at and b[k] == 45:
            head[H_PID] = -head[H_PID]
            k -= 1
    if k >= at and b[k] != SPACE:
        return np.int64(-1)
    head[H_COMM_END] = back_over_spaces(b, k, at) + 1
    return colon + 1


@borrowing_helper
def parse_loss(b: Any, at: Any, end: Any, x: Any) -> None:
    """Note what was lost: ``CPU:1 [LOST 12 EVENTS]`` of the kernel, ``CPU:1 [12 EVENTS DROPPED]``
    of trace-cmd, where the number may be missing, ``##### CPU 1 buffer started ####``, before
    which events were overwritten, who knows how many, or ``Lost 12 events`` of bpftrace, which
    names no CPU.  It stands before the CPU's next event."""
    cpu = np.uint64(_MAX_CPU + 1)
    if at + 4 < end and hash_word(b, at, at + 4) == _CPU:
        at += 4
    elif at + 10 < end and hash_word(b, at, at + 10) == _STARTED:
        at += 10
    elif not (at + 5 < end and hash_word(b, at, at + 5) == _LOST):
        return
    if b[at] != 76:  # L
        cpu, at = decimal(b, at, end)
    while at < end and not is_digit(b[at]):
        at += 1
    lost, _ = decimal(b, at, end)
    x[tr.X_GAP] += max(1, min(np.int64(lost), _MOST_LOST))
    x[tr.X_GAP_CPU] = np.int64(cpu) if cpu <= np.uint64(_MAX_CPU) else -1


@borrowing_helper
def lock_flags(b: Any, at: Any, end: Any) -> Any:
    """LCB_F_* (include/trace/events/lock.h@6.18) of ``SPIN|READ``, or of a number."""
    flags = np.uint64(0)
    while at < end:
        stop = at
        while stop < end and b[stop] != 124 and b[stop] != 41:
            stop += 1
        word = hash_word(b, at, stop)
        if word == _SPIN:
            flags |= np.uint64(1)
        elif word == _READ:
            flags |= np.uint64(2)
        elif word == _LOCK_WRITE:
            flags |= np.uint64(4)
        elif word == _RT:
            flags |= np.uint64(8)
        elif word == _PERCPU:
            flags |= np.uint64(16)
        elif word == _MUTEX:
            flags |= np.uint64(32)
        elif is_digit(b[at]):
            value, _, _ = integer(b, at, stop)
            flags |= value
        if stop >= end or b[stop] == 41:
            break
        at = stop + 1
    return flags


@borrowing_helper
def parse_contention(b: Any, at: Any, end: Any, rows: Any, o: Any) -> Any:
    """``0xffff8881 (flags=SPIN|READ)``, or ``flags=2 lock_addr=-131386`` as perfetto prints it,
    into the row at ``o``; returns whether the address is there."""
    value, k, digits = hexadecimal(b, at, end)
    rows[o + tr.C_ARG] = np.int64(value)
    good = digits > 0 and (k >= end or b[k] == SPACE)
    while at < end:
        key = at
        while at < end and b[at] != 61 and b[at] != SPACE:
            at += 1
        if at < end and b[at] == 61:
            if b[key] == 40:
                key += 1
            word = hash_word(b, key, at)
            at += 1
            if word == _LOCK_ADDR:
                value, k, digits = integer(b, at, end)
                rows[o + tr.C_ARG] = np.int64(value)
                good = digits > 0
            elif word == _FLAGS:
                rows[o + tr.C_ARG + 1] = np.int64(lock_flags(b, at, word_end(b, at, end)))
            at = word_end(b, at, end)
        at += 1
    return good


@borrowing_helper
def task_state(b: Any, at: Any, end: Any) -> Any:
    """prev_state as TASK_* bits, from the letters that sched_switch prints (fs of 6.18)."""
    state = np.int64(0)
    while at < end and b[at] != SPACE:
        letter = b[at]
        if letter == 83:  # S
            state |= 1
        elif letter == 68 or letter == 73:  # D, I
            state |= 2
        elif letter == 84:  # T
            state |= 4
        elif letter == 116:  # t
            state |= 8
        elif letter == 88:  # X
            state |= 16
        elif letter == 90:  # Z
            state |= 32
        elif letter == 80:  # P
            state |= 64
        elif letter == 43:  # R+: preempted
            state |= 256
        at += 1
    return state


@borrowing_helper
def parse_pairs(b: Any, at: Any, end: Any, rows: Any, o: Any, role: Any) -> Any:
    """Arguments of the form key=value into the row at ``o``.

    Returns how many of the two that the role needs were found; 4 where the address of a fault is
    printed as a symbol (some kernel address: only its half is known).
    """
    arg = o + tr.C_ARG
    found = 0
    while at < end:
        key = skip_spaces(b, at, end)
        at = key
        while at < end and b[at] != 61 and b[at] != SPACE:
            at += 1
        if at >= end or b[at] != 61:
            continue
        word = hash_word(b, key, at)
        at += 1
        stop = word_end(b, at, end)
        if role == ev.FAULT_USER or role == ev.FAULT_KERNEL:
            # The kernel's hex numbers have a 0x; perfetto prints decimal ones.
            value, after = decimal(b, at, stop)
            digits = after - at
            if after < stop or digits == 0:
                value, after, digits = hexadecimal(b, at, stop)
            number = digits > 0 and after == stop
            if word == _ADDRESS:
                found += 1 if number else 3
                rows[arg] = np.int64(value) if number else np.int64(np.uint64(_KERNEL_HALF))
            elif word == _ERROR_CODE and number:
                rows[arg + 1] = np.int64(value)
                found += 1
            elif word == _IP and number:
                rows[arg + 2] = np.int64(value)
        elif word == _MM:
            value, _, _ = hexadecimal(b, at, stop)
            rows[arg] = np.int64(value)
            found += 1
        elif word == _WRITE:
            rows[arg + 1] = 1 if b[at] == _TRUE or b[at] == _ONE else 0
            found += 1
        elif word == _SUCCESS:
            rows[arg + 2] = 1 if b[at] == _TRUE or b[at] == _ONE else 0
        at = stop
    return found


@borrowing_helper
def parse_switch(b: Any, at: Any, end: Any, rows: Any, o: Any) -> Any:
    """prev_state and next_pid into the row at ``o``; returns whether both are there.

    ``... prev_state=S ==> next_comm=NAME next_pid=11 ...``, or as trace-cmd and older perf say it,
    ``NAME:10 [120] S ==> NAME:11 [120]``; found from the right, because names may hold anything.
    """
    arrow = end - 4
    while arrow > at and not (b[arrow] == 61 and b[arrow + 1] == 61 and b[arrow + 2] == 62):
        arrow -= 1
    if arrow <= at:
        return False
    word = back_over_spaces(b, arrow - 1, at)
    while word > at and b[word - 1] != SPACE and b[word - 1] != 61:
        word -= 1
    rows[o + tr.C_ARG] = task_state(b, word, arrow)
    # The number behind the last "next_pid=" or ":".
    k = end - 1
    while k > arrow and not (
        is_digit(b[k])
        and (b[k - 1] == 58 or (b[k - 1] == 61 and b[k - 2] == 100 and b[k - 3] == 105))
    ):
        k -= 1
    value, _ = decimal(b, k, end)
    rows[o + tr.C_ARG + 1] = np.int64(value)
    return k > arrow


@borrowing_helper
def parse_waking(b: Any, at: Any, end: Any, rows: Any, o: Any, context: Any) -> Any:
    """The woken thread into the row at ``o``; returns whether it is there.

    ``comm=NAME pid=11 prio=120 ...``, or as trace-cmd and older perf say it, ``NAME:11 [120] ...``;
    found from the right, because names may hold anything.
    """
    k = end - 1
    while k > at and not (
        is_digit(b[k])
        and not is_digit(b[k - 1])
        and (
            (b[k - 1] == 61 and b[k - 2] == 100 and b[k - 3] == 105)  # id=
            or (b[k - 1] == 58 and _is_priority(b, k, end))
        )
    ):
        k -= 1
    value, _ = decimal(b, k, end)
    rows[o + tr.C_ARG] = np.int64(value)
    rows[o + tr.C_ARG + 1] = context
    return k > at


@borrowing_helper
def parse_new_task(b: Any, at: Any, end: Any, rows: Any, o: Any) -> Any:
    """``pid=11 comm=NAME clone_flags=50f00 ...`` into the row at ``o``; whether it is there.

    The flags are found from the right, because names may hold anything.
    """
    k = at
    while k < end and not is_digit(b[k]):
        k += 1
    tid, _ = decimal(b, k, end)
    rows[o + tr.C_ARG] = np.int64(tid)
    k = end - 1
    while k > at:
        if b[k] == 61:  # =
            word = k
            while word > at and b[word - 1] != SPACE:
                word -= 1
            if hash_word(b, word, k) == _CLONE_FLAGS:
                flags, _, digits = hexadecimal(b, k + 1, end)
                rows[o + tr.C_ARG + 1] = np.int64(flags)
                return digits > 0
        k -= 1
    return False


@borrowing_helper
def _is_priority(b: Any, at: Any, end: Any) -> Any:
    """Whether `` [`` follows the number."""
    while at < end and is_digit(b[at]):
        at += 1
    return at + 1 < end and b[at] == SPACE and b[at + 1] == 91


@borrowing_helper
def put_arguments(rows: Any, o: Any, call: Any, raw: Any, slots: Any) -> None:
    """Six arguments as registers hold them -> the slots of syscalls.py."""
    for k in range(6):
        slot = slots[6 * call + k]
        if slot < 0:
            continue
        word = raw[k]
        if slot & sc.NARROW:
            low = np.int64(word & np.uint64(0xFFFFFFFF))
            word = np.uint64(low - (low >> 31 << 32))
        if slot & sc.PAGES:
            word = word << np.uint64(sc.PAGE_SHIFT)
        rows[o + tr.C_ARG + (slot & 7)] = np.int64(word)


@borrowing_helper
def _futex_operation(b: Any, at: Any, end: Any) -> Any:
    """The number of ``FUTEX_WAIT|FUTEX_PRIVATE_FLAG``; unknown words count as nothing."""
    value = np.uint64(0)
    while at < end:
        stop = at
        while stop < end and b[stop] != 124:
            stop += 1
        word = hash_word(b, at, stop)
        if word == _FUTEX_PRIVATE:
            value |= np.uint64(128)
        elif word == _FUTEX_REALTIME:
            value |= np.uint64(256)
        for k in range(len(_FUTEX_OPS)):
            if word == _FUTEX_OPS[k]:
                value |= np.uint64(k)
        at = stop + 1
    return value


@borrowing_helper
def _parse_futex(b: Any, at: Any, end: Any, raw: Any) -> Any:
    """``op=FUTEX_WAKE|FUTEX_PRIVATE_FLAG uaddr=0x10 val=1`` as trace-cmd prints a futex call;
    returns whether the operation and the address are there."""
    found = 0
    while at < end:
        key = skip_spaces(b, at, end)
        stop = word_end(b, key, end)
        at = key
        while at < stop and b[at] != 61:
            at += 1
        word = hash_word(b, key, at)
        at += 1
        for k in range(6):
            if word == _FUTEX_KEYS[k] or (k == 3 and word == _VAL2):
                if k == 1:
                    raw[k] = _futex_operation(b, at, stop)
                elif at + 1 < stop and b[at + 1] == 120:  # 0x
                    raw[k], _, _ = hexadecimal(b, at, stop)
                else:
                    raw[k], _ = decimal(b, at, stop)
                found |= 1 << k
        at = stop
    return found & 3 == 3


@borrowing_helper
def parse_enter(
    b: Any, at: Any, end: Any, rows: Any, o: Any, call: Any, raw: Any, slots: Any
) -> Any:
    """A call's arguments, ``name: VALUE, name: VALUE``; returns where they end, -1: not all."""
    for k in range(6):
        raw[k] = np.uint64(0)
    if call == sc.C_FUTEX and at + 2 < end and b[at] == 111 and b[at + 2] == 61:  # op=
        good = _parse_futex(b, at, end, raw)
        put_arguments(rows, o, call, raw, slots)
        return end if good else np.int64(-1)
    n = 0
    behind = at
    if at < end and b[at] == 40:
        at += 1
    while at < end and n < 6:
        key = skip_spaces(b, at, end)
        at = key
        while at < end and b[at] != 58:
            at += 1
        if at + 1 >= end:
            break
        word = hash_word(b, key, at)
        value, at, digits = hexadecimal(b, skip_spaces(b, at + 1, end), end)
        if digits == 0:
            break
        raw[n] = value
        if call == sc.C_CLONE and word == _CLONE_FLAGS:  # its place differs by architecture
            raw[0] = value
        n += 1
        behind = at
        while at < end and b[at] != 44 and b[at] != 41:
            if b[at] == 40:  # a value explained: 0x3 (PROT_READ|PROT_WRITE)
                while at < end and b[at] != 41:
                    at += 1
            at += 1
        if at >= end or b[at] == 41:
            break
        at += 1
    put_arguments(rows, o, call, raw, slots)
    wanted = 0
    for k in range(6):
        if slots[6 * call + k] >= 0:
            wanted = k + 1
    return behind if n >= wanted or (call == sc.C_CLONE and n > 0) else np.int64(-1)


@borrowing_helper
def parse_raw(b: Any, at: Any, end: Any, role: Any, raw: Any) -> Any:
    """``NR 9 (0, 2000, ...)`` or ``NR 9 = -12``: its words into ``raw``; returns the number, -1:
    it cannot be read."""
    number, at = decimal(b, skip_spaces(b, word_end(b, at, end), end), end)
    at = skip_spaces(b, at, end)
    if number >= np.uint64(sc.NUMBERS) or at >= end:
        return np.int64(-1)
    for k in range(6):
        raw[k] = np.uint64(0)
    if role == ev.RAW_EXIT:
        raw[0], _ = decimal(b, skip_spaces(b, at + 1, end), end)
        return np.int64(number)
    for k in range(6):
        raw[k], at, _ = hexadecimal(b, skip_spaces(b, at + 1, end), end)
    return np.int64(number)


@borrowing_helper
def last_pointer(b: Any, at: Any, end: Any) -> Any:
    """The last hex number of at least eight digits that is a word of its own; 0 where none is."""
    found = np.uint64(0)
    while at < end:
        at = skip_spaces(b, at, end)
        value, after, digits = hexadecimal(b, at, end)
        if digits >= 8 and (after >= end or b[after] == SPACE):
            found = value
        at = word_end(b, at, end)
    return found
