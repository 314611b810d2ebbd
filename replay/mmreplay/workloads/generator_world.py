"""The state of a generated trace in the making: who is at what time, and the rows so far.

Compiled helpers of :mod:`mmreplay.workloads.generator_core`: the heap of the programs that
run, by their clocks, and the writing of rows.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.jit import borrowing_helper
from mmreplay.schema import FaultBits, OpKind
from mmreplay.trace.services import DEFAULT_SERVICE_NS, OTHER_SERVICE_NS
from mmreplay.workloads.program import Kind, ThreadField

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

#: How long an operation of each kind keeps its thread busy: see the time split's defaults.
NOMINAL_NS: Final = np.full(64, OTHER_SERVICE_NS, np.int64)
for _kind, _ns in DEFAULT_SERVICE_NS.items():
    NOMINAL_NS[_kind] = _ns
_USER: Final = int(FaultBits.USER)
#: Smallest and largest tid given out before they are used again (PID_MAX_LIMIT is 4 Mi).
FIRST_TID, LAST_TID = 1000, 4_000_000
FIRST_NS: Final = 1_000
#: How long a program runs while another waits for its CPU: a tick at 250 Hz, longer than the
#: scheduler's base_slice_ns (kernel/sched/fair.c@6.18).
SLICE_NS: Final = 4_000_000


class Status(IntEnum):
    """Why :func:`generate` came back."""

    FULL = 0  # the buffers; call again
    LONG_ENOUGH = 1
    ENDLESS = 2  # WHO does nothing any more, at row WHERE
    DEADLOCK = 3  # everybody waits
    NOT_ALLOWED = 4  # WHO, at row WHERE, accesses what its protection forbids


class Turn(IntEnum):
    """Columns of ``turns``: a program in time."""

    CLOCK = 0
    WAITS = 1  # Waits
    LEFT = 2  # units of the current operation still to do
    UNIT = 3  # the next of them
    TID = 4
    PID = 5
    SPACE = 6
    THINK = 7  # computed since its last operation, ns
    BLOCKED = 8  # slept or waited since then, ns
    FUEL = 9
    SINCE = 10  # waiting since
    LIFE = 11  # row of lives
    COUNTED = 12  # operations that ops_per_s counts
    ROWS = 13  # operations written
    SLICE_END = 14  # when it gives its CPU to whoever waits for one
    ASLEEP = 15  # it sleeps until its clock
    SLEEP_END = 16  # when its last sleep ends
    WOKEN_BY = 17  # 1 + the role that ends its sleep, 0 nobody does
    OFF = 18  # when that sleep began
    OFF_THINK = 19  # THINK and BLOCKED then
    OFF_BLOCKED = 20
    LAST = 21  # its last row of operations, -1 before the first


class Waits(IntEnum):
    ABSENT = 0  # not started, or ended
    RUNS = 1
    JOIN = 2  # for the end of a program
    BARRIER = 3


class Life(IntEnum):
    """Columns of ``lives``: rows of the trace's threads table."""

    TID = 0
    PID = 1
    PARENT = 2
    SPACE = 3
    START = 4
    END = 5  # -1 still there
    FIRST = 6
    LAST = 7
    PROGRAM = 8
    TAIL_THINK = 9
    TAIL_BLOCKED = 10


class Wake(IntEnum):
    """Columns of ``wakes``: rows of the trace's table of wake-ups."""

    TID = 0
    OFF = 1
    WAKE = 2
    AFTER = 3  # -1: before its first operation
    THINK = 4
    BLOCKED = 5
    WAKER = 6
    WAKER_AFTER = 7
    WAKER_THINK = 8
    WAKER_BLOCKED = 9


class Cell(IntEnum):
    """Words of ``cells``."""

    NOW = 0
    HEAP = 1  # programs in the heap
    NEXT_TID = 2
    NEXT_SPACE = 3
    ROWS = 4  # in the buffer
    TOTAL = 5  # rows before it
    LIVES = 6
    MAPPINGS = 7
    LAST_BEGIN = 8
    LAST_SEQ = 9
    WHO = 10
    WHERE = 11
    CPUS = 12  # how many run at once; 0: all
    ON_CPU = 13
    READY = 14  # programs that wait for a CPU
    READY_FIRST = 15  # the first of them in their ring
    WAKES = 16


class Column(IntEnum):
    """Columns of ``rows``; what does not apply is masked by kind when it is written."""

    BEGIN = 0
    SEQ = 1
    THINK = 2
    BLOCKED = 3
    PID = 4
    TID = 5
    SPACE = 6
    CPU = 7
    KIND = 8
    ADDRESS = 9
    LENGTH = 10
    ADDRESS2 = 11
    LENGTH2 = 12
    PROT = 13
    FLAGS = 14
    FILE_OFFSET = 15
    FD = 16
    RESULT = 17
    BITS = 18
    CHILD = 19


class World(NamedTuple):
    """Everything the generator works on; see the enumerations for the columns."""

    code: I64
    threads: I64
    regions: I64
    slots: I64
    files: I64
    copies: I64
    states: I64
    live: I64
    memory: I64
    pages: U8
    taken: I64  # (processes, pieces, 2) mapped ranges, ascending
    taken_n: I64
    turns: I64
    heap: I64  # programs that run or sleep, a binary heap by (clock, program)
    ready: I64  # programs that wait for a CPU, a ring
    arrived: I64  # at each barrier
    lives: I64
    mappings: I64  # space, ns, start, length, prot, flags, offset, file of file mappings
    wakes: I64
    cells: I64
    rows: I64  # (columns, capacity)


# -- the heap of those that run ------------------------------------------------------------------


@borrowing_helper
def before(w: Any, a: Any, b: Any) -> Any:
    x, y = w.turns[a, Turn.CLOCK], w.turns[b, Turn.CLOCK]
    return x < y or (x == y and a < b)


@borrowing_helper
def sink(w: Any) -> None:
    """Put the first of the heap where it belongs now."""
    n, k, who = w.cells[Cell.HEAP], 0, w.heap[0]
    while True:
        child = 2 * k + 1
        if child >= n:
            break
        if child + 1 < n and before(w, w.heap[child + 1], w.heap[child]):
            child += 1
        if not before(w, w.heap[child], who):
            break
        w.heap[k] = w.heap[child]
        k = child
    w.heap[k] = who


@borrowing_helper
def _queues(w: Any, who: Any) -> None:
    """Program ``who`` waits for a CPU, behind those that do already."""
    n = len(w.ready)
    w.ready[(w.cells[Cell.READY_FIRST] + w.cells[Cell.READY]) % n] = who
    w.cells[Cell.READY] += 1


@borrowing_helper
def runs(w: Any, who: Any, clock: Any) -> None:
    """Program ``who`` runs from ``clock`` on, or waits for a CPU from then on."""
    turn = w.turns[who]
    turn[Turn.WAITS] = Waits.RUNS
    turn[Turn.CLOCK] = clock
    if w.cells[Cell.CPUS] > 0:
        if w.cells[Cell.ON_CPU] >= w.cells[Cell.CPUS]:
            _queues(w, who)
            return
        w.cells[Cell.ON_CPU] += 1
        turn[Turn.SLICE_END] = clock + SLICE_NS
    _push(w, who)


@borrowing_helper
def leaves_cpu(w: Any, now: Any) -> None:
    """A CPU is free: whoever has waited longest for one goes on there."""
    cells = w.cells
    if cells[Cell.CPUS] == 0:
        return
    cells[Cell.ON_CPU] -= 1
    if cells[Cell.READY] > 0:
        who = w.ready[cells[Cell.READY_FIRST]]
        cells[Cell.READY_FIRST] = (cells[Cell.READY_FIRST] + 1) % len(w.ready)
        cells[Cell.READY] -= 1
        runs(w, who, max(w.turns[who, Turn.CLOCK], now))


@borrowing_helper
def preempted(w: Any) -> Any:
    """Whether the first of the heap had to give its CPU to another."""
    who = w.heap[0]
    clock = w.turns[who, Turn.CLOCK]
    if w.cells[Cell.READY] == 0 or clock < w.turns[who, Turn.SLICE_END]:
        return False
    _pop(w)
    _queues(w, who)
    leaves_cpu(w, clock)
    return True


@borrowing_helper
def awake(w: Any) -> Any:
    """Whether the first of the heap, which has slept, finds a CPU; else it waits for one."""
    who = w.heap[0]
    turn = w.turns[who]
    turn[Turn.ASLEEP] = 0
    if w.cells[Cell.ON_CPU] < w.cells[Cell.CPUS]:
        w.cells[Cell.ON_CPU] += 1
        turn[Turn.SLICE_END] = turn[Turn.CLOCK] + SLICE_NS
        return True
    _pop(w)
    _queues(w, who)
    return False


@borrowing_helper
def _push(w: Any, who: Any) -> None:
    k = w.cells[Cell.HEAP]
    w.cells[Cell.HEAP] = k + 1
    while k > 0 and before(w, who, w.heap[(k - 1) // 2]):
        w.heap[k] = w.heap[(k - 1) // 2]
        k = (k - 1) // 2
    w.heap[k] = who


@borrowing_helper
def _pop(w: Any) -> None:
    """Take the first out of the heap."""
    n = w.cells[Cell.HEAP] - 1
    w.cells[Cell.HEAP] = n
    w.heap[0] = w.heap[n]
    if n > 0:
        sink(w)


@borrowing_helper
def stops(w: Any, waits: Any) -> None:
    """The first of the heap does not run any more."""
    who = w.heap[0]
    w.turns[who, Turn.WAITS] = waits
    w.turns[who, Turn.SINCE] = w.turns[who, Turn.CLOCK]
    _pop(w)
    leaves_cpu(w, w.turns[who, Turn.CLOCK])


@borrowing_helper
def _note(w: Any, who: Any, by: Any, now: Any) -> None:
    """A row of the table of wake-ups: ``by`` ends the sleep of ``who``."""
    turn, waker, row = w.turns[who], w.turns[by], w.wakes[w.cells[Cell.WAKES]]
    w.cells[Cell.WAKES] += 1
    ahead = waker[Turn.CLOCK] - now
    row[Wake.TID], row[Wake.OFF], row[Wake.WAKE] = turn[Turn.TID], turn[Turn.OFF], now
    row[Wake.AFTER] = turn[Turn.LAST]
    row[Wake.THINK], row[Wake.BLOCKED] = turn[Turn.OFF_THINK], turn[Turn.OFF_BLOCKED]
    row[Wake.WAKER], row[Wake.WAKER_AFTER] = waker[Turn.TID], waker[Turn.LAST]
    row[Wake.WAKER_THINK] = max(waker[Turn.THINK] - ahead, 0)
    row[Wake.WAKER_BLOCKED] = waker[Turn.BLOCKED]


@borrowing_helper
def wakes(w: Any, who: Any, waker: Any, now: Any) -> None:
    """A program that waits for the end of another, or at a barrier, goes on; it slept until now.

    Who waits for a process is not told apart from one that sleeps: only threads are followed.
    """
    turn = w.turns[who]
    if turn[Turn.SPACE] == w.turns[waker, Turn.SPACE]:
        turn[Turn.OFF], turn[Turn.OFF_THINK] = turn[Turn.SINCE], turn[Turn.THINK]
        turn[Turn.OFF_BLOCKED] = turn[Turn.BLOCKED]
        _note(w, who, waker, now)
    turn[Turn.BLOCKED] += now - turn[Turn.SINCE]
    runs(w, who, now)


@borrowing_helper
def woken(w: Any) -> None:
    """The first of the heap slept until another thread woke it: say which, and how far that was.

    The one of the role that acts next, else of all that run in its process; where nobody
    does, it was a timer.
    """
    who, cells = w.heap[0], w.cells
    turn = w.turns[who]
    now, role = turn[Turn.CLOCK], turn[Turn.WOKEN_BY] - 1
    turn[Turn.WOKEN_BY] = 0
    best = other = np.int64(-1)
    for k in range(1, cells[Cell.HEAP]):
        one = w.heap[k]
        if w.turns[one, Turn.SLEEP_END] > now or w.turns[one, Turn.SPACE] != turn[Turn.SPACE]:
            continue
        if w.threads[one, ThreadField.ROLE] == role:
            if best < 0 or before(w, one, best):
                best = one
        elif other < 0 or before(w, one, other):
            other = one
    if best < 0:
        best = other
    if best >= 0:
        _note(w, who, best, now)


# -- rows --------------------------------------------------------------------------------------


@borrowing_helper
def _span(w: Any, t: Any, nominal: Any) -> Any:
    """How long an operation lasts: where programs take turns, from half to one and a half times.

    Programs in lockstep would be in the same order all through a turn, and what one does to
    the other would be the same each time (a murmur hash of program and row decides).
    """
    if w.cells[Cell.CPUS] == 0:
        return nominal
    x = (t << 40) + w.turns[t, Turn.ROWS] + 1
    x = (x ^ ((x >> 33) & 0x7FFFFFFF)) * -49064778989728563
    x = (x ^ ((x >> 33) & 0x7FFFFFFF)) * -4265267296055464877
    return (nominal >> 1) + ((nominal * ((x >> 40) & 0x3FF)) >> 10)


@borrowing_helper
def new_row(w: Any, t: Any, kind: Any) -> Any:
    """A new row of program ``t``; its index in the buffer.  Its thread is busy for a while."""
    turn, cells, rows = w.turns[t], w.cells, w.rows
    n = cells[Cell.ROWS]
    begin = turn[Turn.CLOCK]
    seq = cells[Cell.LAST_SEQ] + 1 if begin == cells[Cell.LAST_BEGIN] else 0
    cells[Cell.LAST_BEGIN], cells[Cell.LAST_SEQ] = begin, seq
    rows[Column.BEGIN, n] = begin
    rows[Column.SEQ, n] = seq
    rows[Column.THINK, n] = turn[Turn.THINK]
    rows[Column.BLOCKED, n] = turn[Turn.BLOCKED]
    rows[Column.PID, n] = turn[Turn.PID]
    rows[Column.TID, n] = turn[Turn.TID]
    rows[Column.SPACE, n] = turn[Turn.SPACE]
    parent = w.threads[t, ThreadField.PARENT]
    started = w.threads[t, ThreadField.KIND] <= Kind.STARTED
    cpu = max(0, (t if started else parent) - 1)
    rows[Column.CPU, n] = cpu % cells[Cell.CPUS] if cells[Cell.CPUS] > 0 else cpu
    rows[Column.KIND, n] = kind
    rows[Column.PROT, n] = 0
    rows[Column.BITS, n] = 0
    turn[Turn.THINK] = turn[Turn.BLOCKED] = 0
    turn[Turn.CLOCK] = begin + _span(w, t, NOMINAL_NS[kind])
    turn[Turn.FUEL] = 0
    turn[Turn.LAST] = cells[Cell.TOTAL] + n
    turn[Turn.ROWS] += 1
    w.lives[turn[Turn.LIFE], Life.LAST] = turn[Turn.CLOCK]
    cells[Cell.ROWS] = n + 1
    return n


@borrowing_helper
def new_call(w: Any, t: Any, kind: Any, address: Any, length: Any, flags: Any, result: Any) -> Any:
    n = new_row(w, t, kind)
    rows = w.rows
    rows[Column.ADDRESS, n] = address
    rows[Column.LENGTH, n] = length
    rows[Column.FLAGS, n] = flags
    rows[Column.RESULT, n] = result
    return n


@borrowing_helper
def new_fault(w: Any, t: Any, kind: Any, address: Any, bits: Any) -> None:
    n = new_row(w, t, kind)
    w.rows[Column.ADDRESS, n] = address
    w.rows[Column.BITS, n] = bits | (_USER if kind == OpKind.FAULT_USER else 0)


@borrowing_helper
def begin_life(w: Any, who: Any, tid: Any, pid: Any, space: Any, parent: Any, now: Any) -> None:
    """Program ``who`` begins to run as the thread ``tid``."""
    n = w.cells[Cell.LIVES]
    w.cells[Cell.LIVES] = n + 1
    life, turn = w.lives[n], w.turns[who]
    life[Life.TID], life[Life.PID], life[Life.PARENT] = tid, pid, parent
    life[Life.SPACE], life[Life.START], life[Life.END] = space, now, -1
    life[Life.FIRST] = life[Life.LAST] = now
    life[Life.PROGRAM], life[Life.TAIL_THINK], life[Life.TAIL_BLOCKED] = who, 0, 0
    turn[Turn.TID], turn[Turn.PID], turn[Turn.SPACE] = tid, pid, space
    turn[Turn.LIFE], turn[Turn.LEFT], turn[Turn.FUEL] = n, 0, 0
    turn[Turn.THINK] = turn[Turn.BLOCKED] = turn[Turn.ASLEEP] = 0
    turn[Turn.SLEEP_END] = turn[Turn.WOKEN_BY] = 0
    turn[Turn.LAST] = -1
    runs(w, who, now)
