"""Compiled parsers of what ``perf script --show-*-events`` prints besides events."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mmreplay.importers import events as ev
from mmreplay.importers.binary import table_find
from mmreplay.importers.text import rows as tr
from mmreplay.importers.text.bytes import (
    MOST_NAME,
    SPACE,
    decimal,
    hash_word,
    hexadecimal,
    is_digit,
    skip_spaces,
    text_word,
    word_end,
)
from mmreplay.importers.text.fields import H_CPU, H_PID, H_TID, H_TIME
from mmreplay.jit import borrowing_helper

#: Roles of records, by the word that perf prints.
R_FORK, R_EXIT, R_COMM, R_MMAP, R_SWITCH, R_LOST = 50, 51, 52, 53, 54, 55
RECORDS: Final = {
    "PERF_RECORD_FORK": R_FORK,
    "PERF_RECORD_EXIT": R_EXIT,
    "PERF_RECORD_COMM": R_COMM,
    "PERF_RECORD_MMAP": R_MMAP,
    "PERF_RECORD_MMAP2": R_MMAP,
    "PERF_RECORD_SWITCH": R_SWITCH,
    "PERF_RECORD_SWITCH_CPU_WIDE": R_SWITCH,
    "PERF_RECORD_LOST": R_LOST,
}
_MAP_SHARED, _MAP_PRIVATE = 1, 2


@borrowing_helper
def _know(x: Any, task: Any, mask: Any, tid: Any, pid: Any) -> Any:
    """The thread's place, with its process; made where it is new."""
    at = tr.thread_at(task, mask, tid)
    if task[at + tr.K_TID] == 0:
        x[tr.X_THREADS] += 1
        tr.new_thread(task, at, tid, pid, -1)
    task[at + tr.K_PID] = pid
    return at


@borrowing_helper
def _fork_or_exit(
    b: Any, at: Any, end: Any, x: Any, task: Any, mask: Any, rows: Any, o: Any
) -> Any:
    """``(PID:TID):(PPID:PTID)`` into the row; returns how many numbers there were."""
    found = 0
    while at < end and found < 4:
        if is_digit(b[at]) or b[at] == 45:
            value, at = decimal(b, at, end)
            # The row wants pid, parent pid, tid, parent tid.
            rows[o + tr.C_ARG + (found & 1) * 2 + (found >> 1)] = np.int64(value)
            found += 1
        at += 1
    return found


@borrowing_helper
def _mapping(b: Any, at: Any, end: Any, rows: Any, o: Any) -> Any:
    """``PID/TID: [0xSTART(0xLEN) @ OFFSET MAJ:MIN INO GEN]: PROT NAME``; returns where NAME is."""
    value, k = decimal(b, at, end)
    rows[o + tr.C_PID] = np.int64(value)
    value, k = decimal(b, k + 1, end)
    rows[o + tr.C_TID] = np.int64(value)
    while k < end and b[k] != 91:
        k += 1
    value, k, _ = hexadecimal(b, k + 1, end)
    rows[o + tr.C_ARG] = np.int64(value)
    value, k, digits = hexadecimal(b, k + 1, end)
    rows[o + tr.C_ARG + 1] = np.int64(value)
    while k < end and b[k] != 64:
        k += 1
    value, k, _ = hexadecimal(b, skip_spaces(b, k + 1, end), end)
    rows[o + tr.C_ARG + 2] = np.int64(value)
    k = skip_spaces(b, k, end)
    if k < end and b[k] != 60 and b[k] != 93:  # else a build-id, or the end
        major, k, _ = hexadecimal(b, k, end)
        minor, k, _ = hexadecimal(b, k + 1, end)
        value, k = decimal(b, skip_spaces(b, k, end), end)
        rows[o + tr.C_ARG + 4] = np.int64(value)
        device = (major & np.uint64(0xFFF)) << np.uint64(20) | (minor & np.uint64(0xFFFFF))
        rows[o + tr.C_ARG + 5] = np.int64(device)
    while k < end and b[k] != 93:
        k += 1
    if digits == 0 or k >= end:
        return np.int64(-1)
    k = skip_spaces(b, k + 2, end)
    first = k
    prot, flags = 0, _MAP_PRIVATE
    while k < end and b[k] != SPACE:
        if b[k] == 114:
            prot |= 1
        elif b[k] == 119:
            prot |= 2
        elif b[k] == 120:
            prot |= 4
        elif b[k] == 115:
            flags = _MAP_SHARED
        k += 1
    if k == first + 1:  # MMAP says no protection: data maps are read-write, the rest code
        prot = 5 if b[first] == 120 else 3
    rows[o + tr.C_ARG + 3] = prot | flags << 32
    return min(k + 1, end)


@borrowing_helper
def parse_record(
    b: Any,
    at: Any,
    end: Any,
    x: Any,
    task: Any,
    mask: Any,
    rows: Any,
    n: Any,
    role: Any,
    line: Any,
    head: Any,
    file_keys: Any,
    file_values: Any,
) -> Any:
    """One record into row ``n``; returns rows made, or -1: the name of a mapped file is new."""
    o = tr.begin(rows, n, head[H_TIME], head[H_PID], head[H_TID], head[H_CPU], line)
    if role == R_FORK or role == R_EXIT:
        if _fork_or_exit(b, at, end, x, task, mask, rows, o) < 4:
            x[tr.X_UNREAD] += 1
            return 0
        rows[o + tr.C_ROLE] = ev.FORK if role == R_FORK else ev.THREAD_END
        pid, tid = rows[o + tr.C_ARG], rows[o + tr.C_ARG + 2]
        if role == R_FORK and 0 < tid <= tr.MAX_TID:
            place = _know(x, task, mask, tid, pid)
            parent = tr.thread_at(task, mask, max(rows[o + tr.C_ARG + 3], 1))
            tr.new_thread(task, place, tid, pid, parent if parent != place else np.int64(-1))
        return 1
    if role == R_LOST:
        value, _ = decimal(b, skip_spaces(b, word_end(b, at, end), end), end)
        rows[o + tr.C_ARG] = np.int64(value)
        rows[o + tr.C_ROLE] = ev.LOST
        x[tr.X_LOST] += np.int64(value)
        return 1
    if role == R_SWITCH:
        if not 0 < head[H_TID] <= tr.MAX_TID:
            return 0
        place = tr.thread_at(task, mask, head[H_TID])
        if head[H_PID] > 0:
            place = _know(x, task, mask, head[H_TID], head[H_PID])
        if task[place + tr.K_TID] == 0:
            return 0
        out = at < end and b[at] == 79  # OUT
        word = skip_spaces(b, word_end(b, at, end), end)
        rows[o + tr.C_PID] = task[place + tr.K_PID]
        rows[o + tr.C_ARG] = 1 if out else 0
        rows[o + tr.C_ARG + 1] = 1 if out and word < end and b[word] == 112 else 0  # preempt
        rows[o + tr.C_ROLE] = ev.SWITCH
        return 1
    if role == R_COMM:
        # "COMM exec: NAME:PID/TID" or "COMM: NAME:PID/TID", from the right: it may hold anything.
        exec_ = b[at - 2] != 58 and at + 5 < end and b[at] == 101 and b[at + 4] == 58
        first = skip_spaces(b, at + 5, end) if exec_ else at
        k = end - 1
        while k > first and is_digit(b[k]):
            k -= 1
        slash = k
        k -= 1
        while k > first and is_digit(b[k]):
            k -= 1
        if k <= first or b[slash] != 47 or b[k] != 58:
            x[tr.X_UNREAD] += 1
            return 0
        pid, _ = decimal(b, k + 1, slash)
        tid, _ = decimal(b, slash + 1, end)
        rows[o + tr.C_PID], rows[o + tr.C_TID] = np.int64(pid), np.int64(tid)
        rows[o + tr.C_ARG] = 1 if exec_ else 0
        rows[o + tr.C_ARG + 1] = np.int64(text_word(b, first, k))
        rows[o + tr.C_ARG + 2] = np.int64(text_word(b, min(first + 8, k), k))
        rows[o + tr.C_ROLE] = ev.COMM
        if not 0 < np.int64(tid) <= tr.MAX_TID:
            return 0
        place = _know(x, task, mask, np.int64(tid), np.int64(pid))
        task[place + tr.K_COMM0], task[place + tr.K_COMM1] = (
            rows[o + tr.C_ARG + 1],
            rows[o + tr.C_ARG + 2],
        )
        return 1
    name = _mapping(b, at, end, rows, o)
    if name < 0 or end - name > MOST_NAME:
        x[tr.X_UNREAD] += 1
        return 0
    found = table_find(file_keys, file_values, hash_word(b, name, end))
    if found < 0:
        x[tr.X_NAME_AT], x[tr.X_NAME_END], x[tr.X_NAME_FORM] = name, end, -1
        return np.int64(-1)
    rows[o + tr.C_ARG + 6] = found
    rows[o + tr.C_ROLE] = ev.MAPPING
    if 0 < rows[o + tr.C_TID] <= tr.MAX_TID and rows[o + tr.C_PID] > 0:
        _know(x, task, mask, rows[o + tr.C_TID], rows[o + tr.C_PID])
    return 1
