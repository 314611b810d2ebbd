"""Rows that the text scanners write: one int64 matrix, turned into event batches in order of time.

A scanner knows nothing of order or of time 0; it writes what a line says, and what follows from it
(a thread's new name, an exec, the creation of a thread), as rows in the order of the text.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mmreplay.importers import events as ev
from mmreplay.importers import syscalls as sc
from mmreplay.importers.binary import bare, mix
from mmreplay.importers.events import SYNTHETIC
from mmreplay.jit import borrowing_helper, native

# Columns of a row.
(
    C_TIME,
    C_PID,
    C_TID,
    C_CPU,
    C_EVENT,
    C_ROLE,
    C_CALL,
    C_MARK,
    C_IP,
    C_POSITION,
    C_WEIGHT,
    C_ARG,
) = range(12)
ARGS: Final = 8
WIDTH: Final = C_ARG + ARGS
#: Rows that one line may make.
MOST_ROWS: Final = 7

# Entries of a scanner's state.
(
    X_POSITION,
    X_ROWS,
    X_LINES,  # lines of events
    X_SKIPPED,  # lines of another kind: callchains, headers, blanks
    X_UNREAD,  # lines of known events whose arguments could not be read
    X_T0,  # first time that is not 0, -1 none yet
    X_THREADS,
    X_ROOT,  # process of threads whose process is unknown
    X_GUESSED,  # threads whose process was guessed
    X_IDLE,  # whether the idle task was seen: the whole machine was recorded
    X_LOST,
    X_SYMBOLS,  # addresses that were printed as symbols
    X_NAME_AT,  # the name that the scanner asks for
    X_NAME_END,
    X_NAME_FORM,
    X_NO_DURATION,  # calls whose duration is not told
    X_GAP,  # events that were lost before the next line, and on which CPU
    X_GAP_CPU,
    # How to read, set by the caller.
    X_FTRACE,
    X_END_ADDRESS,
    X_TASK_EVENTS,  # creation, names and ends of threads have lines of their own
    X_STARTS,  # starts of faults are told: ends need no mode and no instruction pointer
    X_UNNAMED,  # strace: the thread of lines that name none; 0 the one that is left
    X_MISSED,  # strace: new threads whose parent was not found, one after the other
    X_SIZE,
) = range(25)

# Why a scanner comes back: at the end, to have rows taken, a name numbered, or a table grown.
DONE, FULL, NEW_NAME, NEED_THREADS = range(4)

# Columns of a thread.
(
    K_TID,
    K_PID,
    K_COMM0,
    K_COMM1,
    K_FAULT,  # address of the last fault's start
    K_CALL,  # the call it is in + 1; -1 after its end
    K_FLAGS,  # of that call
    K_TIME,  # when it began
    K_EXEC0,  # the name that an exec will give
    K_EXEC1,
    K_GUESSED,  # whether its process was guessed
    K_RAW,  # the number of the call it is in by raw_syscalls + 1; 0 unknown
    K_ABI,  # what its numbers mean (raw_calls.py)
) = range(13)
K_SIZE: Final = 13
MAX_TID: Final = 1 << 22
_CLONE_THREAD: Final = 0x10000
#: Threads inside clone that are remembered.
OPENERS: Final = 64


@borrowing_helper
def begin(rows: Any, n: Any, time: Any, pid: Any, tid: Any, cpu: Any, at: Any) -> Any:
    """Clear row ``n`` and set who and when; returns where it begins."""
    o = n * WIDTH
    for k in range(WIDTH):
        rows[o + k] = 0
    rows[o + C_TIME] = time
    rows[o + C_PID] = pid
    rows[o + C_TID] = tid
    rows[o + C_CPU] = cpu
    rows[o + C_EVENT] = -1
    rows[o + C_CALL] = -1
    rows[o + C_MARK] = SYNTHETIC if time == 0 else 0
    rows[o + C_POSITION] = at
    rows[o + C_WEIGHT] = 1
    return o


@borrowing_helper
def thread_at(task: Any, mask: Any, tid: Any) -> Any:
    """Where the thread's columns are, or would be, in the open-addressing table."""
    row = np.int64(mix(np.uint64(tid)) & np.uint64(mask))
    at = row * K_SIZE
    while task[at + K_TID] != 0 and task[at + K_TID] != tid:
        row = (row + 1) & mask
        at = row * K_SIZE
    return at


@borrowing_helper
def new_thread(task: Any, at: Any, tid: Any, pid: Any, parent: Any) -> None:
    """Fill a thread's columns; its name and ABI are its parent's (``parent`` -1: none)."""
    for k in range(K_SIZE):
        task[at + k] = 0
    task[at + K_TID] = tid
    task[at + K_PID] = pid
    if parent >= 0:
        task[at + K_COMM0] = task[parent + K_COMM0]
        task[at + K_COMM1] = task[parent + K_COMM1]
        task[at + K_ABI] = task[parent + K_ABI]


@borrowing_helper
def is_known(task: Any, at: Any) -> Any:
    """Whether the place holds a living thread."""
    return task[at + K_TID] != 0 and task[at + K_CALL] >= 0


@borrowing_helper
def a_living_thread(task: Any, mask: Any) -> Any:
    """A thread that has not ended; 0 where none is known."""
    for row in range(mask + 1):
        if is_known(task, row * K_SIZE):
            return task[row * K_SIZE + K_TID]
    return np.int64(0)


@borrowing_helper
def is_clone(call: Any) -> Any:
    """Whether the call makes threads or processes."""
    return call == sc.C_CLONE or call == sc.C_CLONE3 or call == sc.C_FORK or call == sc.C_VFORK


@borrowing_helper
def makes_thread(task: Any, at: Any) -> Any:
    """Whether the clone that the thread is in makes a thread; clone3 may hide its flags."""
    call = task[at + K_CALL] - 1
    return call == sc.C_CLONE3 or (call == sc.C_CLONE and task[at + K_FLAGS] & _CLONE_THREAD != 0)


@borrowing_helper
def fork_row(rows: Any, o: Any, pid: Any, parent_pid: Any, tid: Any, parent_tid: Any) -> None:
    """Make the row at ``o`` the creation of a thread."""
    rows[o + C_ROLE] = ev.FORK
    rows[o + C_ARG] = pid
    rows[o + C_ARG + 1] = parent_pid
    rows[o + C_ARG + 2] = tid
    rows[o + C_ARG + 3] = parent_tid


@borrowing_helper
def open_clone(task: Any, at: Any, ring: Any, call: Any, flags: Any) -> None:
    """The thread enters clone."""
    task[at + K_CALL] = call + 1
    task[at + K_FLAGS] = flags
    ring[ring[OPENERS] % OPENERS] = task[at + K_TID]
    ring[OPENERS] += 1


@borrowing_helper
def meet(
    x: Any,
    task: Any,
    mask: Any,
    ring: Any,
    rows: Any,
    n: Any,
    at: Any,
    tid: Any,
    pid: Any,
    time: Any,
    cpu: Any,
    told: Any,
) -> Any:
    """The first line of a thread: its process and, where it can be told, its creation.

    Its parent is ``told``, where that is a thread inside clone (-1 unknown), else the newest one
    that has no child yet.  ``pid`` is -1 where the text does not say it.  Returns the number of
    rows made.
    """
    if task[at + K_TID] == 0:
        x[X_THREADS] += 1
    new_thread(task, at, tid, pid, np.int64(-1))
    made = 0
    if x[X_TASK_EVENTS] == 0:
        for back in range(OPENERS):
            entry = (ring[OPENERS] - 1 - back) % OPENERS
            parent = ring[entry]
            if parent <= 0 or (told > 0 and parent != told):
                continue
            p = thread_at(task, mask, parent)
            if task[p + K_TID] != parent or task[p + K_CALL] <= 0:
                continue
            if pid > 0 and task[p + K_PID] != pid and pid != tid:
                continue
            if pid <= 0:
                pid = task[p + K_PID] if makes_thread(task, p) else tid
            ring[entry] = 0
            new_thread(task, at, tid, pid, p)
            o = begin(rows, n, time, pid, tid, cpu, x[X_POSITION])
            fork_row(rows, o, pid, task[p + K_PID], tid, parent)
            made = 1
            break
    if pid <= 0:
        x[X_GUESSED] += 1
        task[at + K_GUESSED] = 1
        if x[X_ROOT] == 0:
            x[X_ROOT] = tid
        pid = x[X_ROOT]
    task[at + K_PID] = pid
    return made


@borrowing_helper
def close_clone(x: Any, task: Any, mask: Any, at: Any, rows: Any, n: Any, call: Any) -> Any:
    """A clone returns in the parent, by row ``n``: its child's creation goes before, where it has
    not been seen yet; returns the number of rows made besides."""
    result = rows[n * WIDTH + C_ARG]
    matches = task[at + K_CALL] == call + 1
    thread = makes_thread(task, at)
    task[at + K_CALL] = 0
    if not matches or not 0 < result <= MAX_TID:
        return 0
    child = thread_at(task, mask, result)
    if is_known(task, child):
        return 0
    if task[child + K_TID] == 0:
        x[X_THREADS] += 1
    pid = task[at + K_PID]
    new_thread(task, child, result, pid if thread else result, at)
    move_down(rows, n)
    o = n * WIDTH
    o = begin(
        rows, n, rows[o + C_TIME], pid, rows[o + C_TID], rows[o + C_CPU], rows[o + C_POSITION]
    )
    fork_row(rows, o, task[child + K_PID], pid, result, task[at + K_TID])
    return 1


@borrowing_helper
def exec_row(rows: Any, n: Any, word0: Any, word1: Any) -> Any:
    """An exec returns, by row ``n``: the new name goes before; returns the number of rows made."""
    o = n * WIDTH
    move_down(rows, n)
    o = begin(
        rows,
        n,
        rows[o + C_TIME],
        rows[o + C_PID],
        rows[o + C_TID],
        rows[o + C_CPU],
        rows[o + C_POSITION],
    )
    rows[o + C_ROLE] = ev.COMM
    rows[o + C_ARG] = 1
    rows[o + C_ARG + 1], rows[o + C_ARG + 2] = word0, word1
    return 1


@borrowing_helper
def lives(
    x: Any,
    task: Any,
    mask: Any,
    ring: Any,
    at: Any,
    rows: Any,
    n: Any,
    role: Any,
    call: Any,
) -> Any:
    """What a call, in row ``n``, tells of the life of threads; returns the number of rows made."""
    o = n * WIDTH
    if role == ev.ENTER and is_clone(call):
        open_clone(task, at, ring, call, rows[o + C_ARG + sc.FLAGS])
    elif role == ev.EXIT and is_clone(call):
        return close_clone(x, task, mask, at, rows, n, call)
    elif role == ev.EXIT and rows[o + C_ARG] == 0:
        if call == sc.C_EXECVE or call == sc.C_EXECVEAT:
            return exec_row(rows, n, task[at + K_COMM0], task[at + K_COMM1])
    return 0


@borrowing_helper
def move_down(rows: Any, n: Any) -> None:
    """Copy row ``n`` to the next."""
    for k in range(WIDTH):
        rows[(n + 1) * WIDTH + k] = rows[n * WIDTH + k]


@native
def fill(batch: Any, rows: Any, order: Any, first: Any, last: Any, t0: Any, floor: Any) -> Any:
    """Rows ``order[first:last]`` into the batch; a time below ``floor`` is raised and marked.

    Returns how many times were raised.
    """
    source = bare(rows)
    out_time, out_pid, out_tid = bare(batch.time), bare(batch.pid), bare(batch.tid)
    out_cpu, out_event, out_role = bare(batch.cpu), bare(batch.event), bare(batch.role)
    out_call, out_mark, out_weight = bare(batch.call), bare(batch.mark), bare(batch.weight)
    out_ip, arg, out_position = bare(batch.ip), bare(batch.arg), bare(batch.position)
    late = 0
    for i in range(first, last):
        o = order[i] * WIDTH
        n = i - first
        time = max(source[o + C_TIME] - t0, 0)
        mark = source[o + C_MARK]
        if time < floor:
            time = floor
            if not mark & SYNTHETIC:
                mark |= 1  # LATE
                late += 1
        out_time[n] = time
        out_pid[n] = source[o + C_PID]
        out_tid[n] = source[o + C_TID]
        out_cpu[n] = source[o + C_CPU]
        out_event[n] = source[o + C_EVENT]
        out_role[n] = source[o + C_ROLE]
        out_call[n] = source[o + C_CALL]
        out_mark[n] = mark
        out_weight[n] = source[o + C_WEIGHT]
        out_ip[n] = source[o + C_IP]
        out_position[n] = source[o + C_POSITION]
        for k in range(ARGS):
            arg[ARGS * n + k] = source[o + C_ARG + k]
    return late


@native
def put_process(x: Any, threads: Any, pid: Any) -> Any:
    """A process that the text says was there; the table needs room for it."""
    task = bare(threads)
    at = thread_at(task, threads.shape[0] - 1, pid)
    if task[at + K_TID] == 0:
        x[X_THREADS] += 1
    new_thread(task, at, pid, pid, np.int64(-1))
    return 0


@native
def rehash_threads(old: Any, new: Any) -> None:
    """Put all threads of one table into a larger, empty one (both (rows, K_SIZE))."""
    source, target = bare(old), bare(new)
    mask = new.shape[0] - 1
    for row in range(old.shape[0]):
        tid = source[row * K_SIZE + K_TID]
        if tid != 0:
            at = thread_at(target, mask, tid)
            for k in range(K_SIZE):
                target[at + k] = source[row * K_SIZE + k]


@native
def inversions(rows: Any, count: Any) -> Any:
    """How many rows are older than the row before."""
    source = bare(rows)
    found = 0
    for n in range(1, count):
        if source[n * WIDTH + C_TIME] < source[(n - 1) * WIDTH + C_TIME]:
            found += 1
    return found
