"""The compiled loop that performs a recorded process: each thread its rows, in its order."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from numba import types

from mmreplay.hardware.loop_tables import Phase
from mmreplay.hardware.primitives import (
    call,
    clone,
    fetch_add,
    load,
    load32,
    now_ns,
    read_byte,
    spin,
    store,
    table,
    write_byte,
)
from mmreplay.hardware.trace_program import Do, Word
from mmreplay.jit import borrowing_helper, borrowing_njit, c_callback


class Top(IntEnum):
    """Words of the header."""

    PHASE = 0
    BEGAN_NS = 8
    TABLE = 16
    ROWS = 17
    SEATS = 18  # address of the first Seat
    THREADS = 19
    ENTRY = 20
    ZERO = 21
    SINK = 22
    FILES = 23
    ROUNDS = 24
    WORDS = 32


class Seat(IntEnum):
    """Words of a thread."""

    DONE = 0  # operations done: others wait for it
    STATE = 8  # 0 not begun, 1 begun, 2 ended
    TID = 9
    HEADER = 10
    FIRST = 11
    END = 12
    AT_START = 13
    STACK = 14
    FAILED = 15  # calls that returned an error, and the first: its row and errno
    ERROR_ROW = 16
    ERROR = 17
    MISSED = 18  # accesses that met no accessible page
    BLOCKED_NS = 19  # waited for other threads
    THOUGHT_NS = 20  # think time done
    ENDED_NS = 21
    SCRATCH = 24
    EPOCH = 26  # grows with each operation that others wait for: they sleep on it
    WAITERS = 27
    RATE = 28  # rounds of spinning in 2**20 ns
    USAGE = 32
    WORDS = 64


_READ, _MMAP, _PWRITE, _NANOSLEEP, _FORK, _GETRUSAGE, _EXIT_GROUP = 0, 9, 18, 35, 57, 98, 231
# as in run_loop
_CLONE_THREAD: Final = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 | 0x100000 | 0x200000
_STOP: Final = int(Phase.STOP)
_COLUMNS: Final = len(Word)
_SEAT: Final = int(Seat.WORDS) * 8
_NAP_NS: Final = 20_000_000
#: Computing is done in pieces; those this long tell the speed; one changes it by so little.
_PIECE_NS, _TELLING_NS, _INERTIA = 1_000_000, 1_000, 32
#: Threads tell themselves when they end: looking often would take their CPUs from them.
_LOOK_NS: Final = 50_000_000
#: Looks at a thread that is waited for before sleeping.
_LOOKS = 200
_FUTEX, _WAIT_PRIVATE, _WAKE_PRIVATE, _ALL = 202, 128, 129, 1 << 30


@borrowing_helper
def _sleep(seat: Any, ns: Any) -> None:
    at = seat + Seat.SCRATCH * 8
    store(at, ns // 1_000_000_000)
    store(at + 8, ns % 1_000_000_000)
    call(_NANOSLEEP, at, 0, 0, 0, 0, 0)


@borrowing_helper
def _doze(header: Any, seat: Any, ns: Any) -> Any:
    """Sleep in pieces; 0 where it is time to stop."""
    while ns > 0:
        if load(header + Top.PHASE * 8) == _STOP:
            return 0
        part = min(ns, _NAP_NS)
        _sleep(seat, part)
        ns -= part
    return 1


@borrowing_helper
def _compute(header: Any, seat: Any, ns: Any, begin: Any) -> Any:
    """Spin for ``ns`` of CPU time, in pieces; 0 where it is time to stop.

    What a round takes changes as other CPUs of the core or the host get busy, and the recorded
    time was CPU time whatever its speed: the thread's rate follows, pieces that were
    interrupted left out.
    """
    rate = load(seat + Seat.RATE * 8)
    while ns > 0:
        if load(header + Top.PHASE * 8) == _STOP:
            return 0
        part = min(ns, _PIECE_NS)
        spin((part * rate) >> 20)
        if part >= _TELLING_NS:
            now = now_ns(seat + Seat.SCRATCH * 8)
            took = now - begin
            begin = now
            if part * 2 < took * 3 < part * 4:  # within a third
                rate += rate * (part - took) // (took * _INERTIA)
        at = seat + Seat.THOUGHT_NS * 8
        store(at, load(at) + part)
        ns -= part
    store(seat + Seat.RATE * 8, rate)
    return 1


@borrowing_helper
def _wait_for(header: Any, seat: Any, thread: Any, done: Any) -> None:
    """Until a thread has done so many operations; it may not have begun yet."""
    other = load(header + Top.SEATS * 8) + thread * _SEAT
    looks = 0
    began = now_ns(seat + Seat.SCRATCH * 8)
    while load(other + Seat.DONE * 8) < done and looks < _LOOKS:
        looks += 1
    if looks == _LOOKS:
        epoch = other + Seat.EPOCH * 8
        at = seat + Seat.SCRATCH * 8
        fetch_add(other + Seat.WAITERS * 8, 1)
        while load(header + Top.PHASE * 8) != _STOP:
            seen = load32(epoch)  # before DONE: what is done later changes it
            if load(other + Seat.DONE * 8) >= done:
                break
            store(at, 0)
            store(at + 8, _NAP_NS)
            call(_FUTEX, epoch, _WAIT_PRIVATE, seen, at, 0, 0)
        fetch_add(other + Seat.WAITERS * 8, -1)
    at = seat + Seat.BLOCKED_NS * 8
    store(at, load(at) + now_ns(seat + Seat.SCRATCH * 8) - began)


@borrowing_helper
def _tell(seat: Any) -> None:
    """Those that sleep until an operation is done look again."""
    epoch = seat + Seat.EPOCH * 8
    fetch_add(epoch, 1)  # a full barrier: DONE is out before WAITERS is read
    if load(seat + Seat.WAITERS * 8) > 0:
        call(_FUTEX, epoch, _WAKE_PRIVATE, _ALL, 0, 0, 0)


@borrowing_helper
def _begin(header: Any, thread: Any) -> Any:
    """Make the thread; its id, or -EAGAIN."""
    seat = load(header + Top.SEATS * 8) + thread * _SEAT
    if load(seat + Seat.STATE * 8) != 0:
        return 0
    store(seat + Seat.STATE * 8, 1)
    made = clone(
        load(header + Top.ENTRY * 8),
        load(seat + Seat.STACK * 8),
        _CLONE_THREAD,
        seat,
        seat + Seat.TID * 8,
        0,
        seat + Seat.TID * 8,
    )
    if made < 0:
        store(seat + Seat.STATE * 8, 2)
        return -11
    return made


@borrowing_njit
def run_thread(seat: int) -> None:
    """Perform a thread's rows."""
    header = load(seat + Seat.HEADER * 8)
    rows = table(load(header + Top.TABLE * 8), load(header + Top.ROWS * 8), _COLUMNS)
    files = load(header + Top.FILES * 8)
    scratch = seat + Seat.SCRATCH * 8
    store(seat + Seat.RATE * 8, load(header + Top.ROUNDS * 8))
    done = 0
    last = now_ns(scratch)
    for k in range(load(seat + Seat.FIRST * 8), load(seat + Seat.END * 8)):
        if load(header + Top.PHASE * 8) == _STOP:
            break
        blocked = rows[k, Word.BLOCKED]
        if blocked > 0:
            if _doze(header, seat, blocked) == 0:
                break
            last = now_ns(scratch)
        if _compute(header, seat, rows[k, Word.THINK], last) == 0:
            break
        do = rows[k, Word.DO]
        a = rows[k, Word.A]
        result = 0
        if do == Do.AWAIT:
            _wait_for(header, seat, a, rows[k, Word.B])
            last = now_ns(scratch)
            rows[k, Word.DONE_NS] = last
            continue
        if do == Do.WRITE or do == Do.READ:
            missed = write_byte(a) if do == Do.WRITE else read_byte(a)
            if missed != 0:
                store(seat + Seat.MISSED * 8, load(seat + Seat.MISSED * 8) + 1)
        elif do == Do.SPAWN:
            result = _begin(header, a)
        elif do == Do.FORK:
            result = call(_FORK, 0, 0, 0, 0, 0, 0)
            if result == 0:
                call(_EXIT_GROUP, 0, 0, 0, 0, 0, 0)
        else:
            number = rows[k, Word.NUMBER]
            b = rows[k, Word.B]
            c = rows[k, Word.C]
            d = rows[k, Word.D]
            e = rows[k, Word.E]
            if number == _MMAP:
                file = rows[k, Word.F]
                fd = load(files + file * 8) if file >= 0 else -1
                result = call(number, a, b, c, d, fd, e)
            elif number == _READ:
                result = call(number, load(header + Top.ZERO * 8), a, b, 0, 0, 0)
            elif number == _PWRITE:
                result = call(number, load(header + Top.SINK * 8), a, b, 0, 0, 0)
            else:
                result = call(number, a, b, c, d, e, 0)
        if -4096 < result < 0:
            if load(seat + Seat.ERROR * 8) == 0:
                store(seat + Seat.ERROR_ROW * 8, k)
                store(seat + Seat.ERROR * 8, -result)
            store(seat + Seat.FAILED * 8, load(seat + Seat.FAILED * 8) + 1)
        last = now_ns(scratch)
        rows[k, Word.DONE_NS] = last
        done += 1
        store(seat + Seat.DONE * 8, done)
        if rows[k, Word.AWAITED] != 0:
            _tell(seat)
    call(_GETRUSAGE, 1, seat + Seat.USAGE * 8, 0, 0, 0, 0)
    store(seat + Seat.ENDED_NS * 8, now_ns(scratch))
    store(seat + Seat.STATE * 8, 2)


@c_callback(types.int64(types.int64))
def thread_main(seat: Any) -> Any:
    """What a thread of the process runs."""
    run_thread(seat)
    return 0


@borrowing_njit
def run_all(header: int, scratch: int) -> None:
    """Start the threads that are there from the start; wait until all have ended."""
    seats = load(header + Top.SEATS * 8)
    n = load(header + Top.THREADS * 8)
    store(header + Top.BEGAN_NS * 8, now_ns(scratch))
    for t in range(n):
        if load(seats + t * _SEAT + Seat.AT_START * 8) != 0:
            _begin(header, t)
    while True:
        left = 0
        begun = 0
        for t in range(n):
            state = load(seats + t * _SEAT + Seat.STATE * 8)
            left += state != 2
            begun += state == 1
        if left == 0 or (begun == 0 and load(header + Top.PHASE * 8) == _STOP):
            return
        store(scratch, 0)
        store(scratch + 8, _LOOK_NS)
        call(_NANOSLEEP, scratch, 0, 0, 0, 0, 0)


@borrowing_njit
def map_at(address: int, length: int, prot: int, flags: int, fd: int, offset: int) -> Any:
    """mmap(2)."""
    return call(_MMAP, address, length, prot, flags, fd, offset)
