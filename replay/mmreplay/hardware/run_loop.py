"""The compiled loop that performs a loop program for real: each program in a thread of its own.

Threads are made by clone(2) as pthread_create makes them, without a C library's stack
allocation (a workload that has stacks maps them itself) and without thread-local storage.
Addresses come from the kernel and are kept in the program's own table of slots, so no
operation reaches what is not its own.  Nothing here allocates, takes the GIL, or looks at
the clock between two operations.
"""

from __future__ import annotations

from typing import Any, Final

from numba import types

from mmreplay.hardware.loop_tables import (
    LINE,
    RU_MAJFLT,
    RU_MINFLT,
    RU_NIVCSW,
    RU_NVCSW,
    Count,
    Head,
    Phase,
    Row,
    Shot,
)
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
from mmreplay.jit import borrowing_helper, borrowing_njit, c_callback
from mmreplay.workloads.interpret import (
    Live,
    State,
    advance,
    begin_program,
    draw_length,
    draw_think,
    mapped_anew,
    settle,
    slot_of,
    unit,
)
from mmreplay.workloads.program import MAP_FIXED, Field, Kind, Op, ThreadField

# arch/x86/entry/syscalls/syscall_64.tbl
_READ, _MMAP, _MPROTECT, _MUNMAP, _BRK, _YIELD = 0, 9, 10, 11, 12, 24
_MREMAP, _MADVISE, _NANOSLEEP, _FORK, _WAIT4 = 25, 28, 35, 57, 61
_GETRUSAGE, _FUTEX, _SETAFFINITY, _EXIT_GROUP = 98, 202, 203, 231
_FUTEX_WAIT, _FUTEX_WAKE, _PRIVATE = 0, 1, 128
_RUSAGE_SELF, _RUSAGE_THREAD = 0, 1
_EINTR, _EAGAIN, _ENOMEM, _ECANCELED = 4, 11, 12, 125
# include/uapi/linux/sched.h: a thread as pthread_create makes it, without TLS of its own:
# VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, PARENT_SETTID, CHILD_CLEARTID
_CLONE_THREAD: Final = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 | 0x100000 | 0x200000
#: Sleep at most so long before looking whether to stop.
_NAP_NS: Final = 20_000_000
_ROW_BYTES: Final = Row.WORDS * 8
_UNBOUNDED: Final = 1 << 62
#: Plain integers: a variable of compiled code cannot be both an enumeration and a number.
_WAITING, _MEASURE, _STOP = int(Phase.WAIT), int(Phase.MEASURE), int(Phase.STOP)
_MAIN, _STARTED, _SPAWNED, _FORKED = (int(kind) for kind in Kind)
_COLUMNS: Final = len(Field)
_THREAD_COLUMNS: Final = len(ThreadField)


@borrowing_helper
def _shoot(row: Any, shot: Any) -> None:
    """Take a snapshot of a thread's counters, its usage, and the time."""
    for k in range(Count.WORDS):
        store(row + (shot + k) * 8, load(row + (Row.COUNTS + k) * 8))
    call(_GETRUSAGE, _RUSAGE_THREAD, row + (shot + Shot.USAGE) * 8, 0, 0, 0, 0)
    store(row + (shot + Shot.NS) * 8, now_ns(row + Row.SCRATCH * 8))


@borrowing_helper
def _look(header: Any, row: Any, kind: Any, phase: Any) -> Any:
    """What the phase is now; takes the snapshots that belong to a change."""
    new = load(header + Head.PHASE * 8)
    if kind == _STARTED:
        if phase < _MEASURE and new >= _MEASURE:
            _shoot(row, Row.BEGIN)
        if phase < _STOP and new == _STOP:
            _shoot(row, Row.END)
    return new


@borrowing_helper
def _failed(row: Any, pc: Any, result: Any) -> Any:
    """1 where a call failed, which is noted; else 0."""
    if result >= 0 or result < -4095:
        return 0
    _count(row, Count.FAILED, 1)
    if load(row + Row.ERROR * 8) == 0:
        store(row + Row.ERROR_ROW * 8, pc)
        store(row + Row.ERROR * 8, -result)
    return 1


@borrowing_helper
def _count(row: Any, which: Any, more: Any) -> None:
    at = row + (Row.COUNTS + which) * 8
    store(at, load(at) + more)


@borrowing_helper
def _done(row: Any, op: Any, counts: Any) -> None:
    _count(row, Count.DONE + op, 1)
    _count(row, Count.OPS, counts)


@borrowing_helper
def _on_unit(op: Any, flags: Any, prot: Any, zero: Any, start: Any, length: Any) -> Any:
    """One operation on one unit: its result, or 1 for an access that failed."""
    if op == Op.TOUCH:
        return write_byte(start) if flags else read_byte(start)
    if op == Op.READ:
        return call(_READ, zero, start, 1, 0, 0, 0)
    if op == Op.MADVISE:
        return call(_MADVISE, start, length, flags, 0, 0, 0)
    return call(_MPROTECT, start, length, prot, 0, 0, 0)


@borrowing_helper
def _mmap(code: Any, pc: Any, states: Any, t: Any, regions: Any, live: Any, header: Any) -> Any:
    """Map a slot; 0 where there is nothing to do, else the address or -errno."""
    slot = slot_of(states, t, regions, code[pc, Field.REGION])
    length = draw_length(code, pc, states, t)
    flags = code[pc, Field.FLAGS]
    offset = 0
    where = 0
    if flags & MAP_FIXED:
        offset = code[pc, Field.OFFSET]
        left = live[slot, Live.LENGTH] - offset
        if length == 0 or length > left:
            length = left
        where = live[slot, Live.ADDRESS] + offset
    elif live[slot, Live.LENGTH] != 0:
        length = 0
    if length <= 0:
        return 0
    file = code[pc, Field.FILE]
    fd = -1
    if file >= 0:
        fd = load(load(header + Head.FILES * 8) + file * 8)
    got = call(_MMAP, where, length, code[pc, Field.PROT], flags, fd, offset)
    if got > 0 and where == 0:
        live[slot, Live.ADDRESS] = got
        live[slot, Live.LENGTH] = length
        mapped_anew(states, t, regions, live, slot, code[pc, Field.REGION])
    return got


@borrowing_helper
def _munmap(states: Any, t: Any, live: Any) -> Any:
    """Unmap what :func:`settle` found; 1 where there is nothing to do."""
    slot = states[t, State.SLOT]
    offset = states[t, State.OFFSET]
    length = states[t, State.BYTES]
    mapped = live[slot, Live.LENGTH]
    if offset > 0 and offset + length != mapped:
        return 1
    # First the table: where threads share the slot, none of them looks there any more.
    if offset == 0 and length < mapped:
        live[slot, Live.LENGTH] = mapped - length
        live[slot, Live.ADDRESS] += length
    else:
        live[slot, Live.LENGTH] = offset
    return call(_MUNMAP, states[t, State.START], length, 0, 0, 0, 0)


@borrowing_helper
def _mremap(code: Any, pc: Any, states: Any, t: Any, regions: Any, live: Any) -> Any:
    """Resize a slot; 0 where there is nothing to do, else the address or -errno."""
    slot = slot_of(states, t, regions, code[pc, Field.REGION])
    length = draw_length(code, pc, states, t)
    before = live[slot, Live.LENGTH]
    if before == 0:
        return 0
    address = live[slot, Live.ADDRESS]
    got = call(_MREMAP, address, before, length, code[pc, Field.FLAGS], 0, 0)
    if got > 0:
        live[slot, Live.ADDRESS] = got
        live[slot, Live.LENGTH] = length
    return got


@borrowing_helper
def _brk(code: Any, pc: Any, states: Any, t: Any, regions: Any, live: Any) -> Any:
    """Move the break; 0, or -ENOMEM."""
    slot = slot_of(states, t, regions, code[pc, Field.REGION])
    length = code[pc, Field.LENGTH]
    wanted = live[slot, Live.ADDRESS] + length
    if call(_BRK, wanted, 0, 0, 0, 0, 0) != wanted:
        return -_ENOMEM
    live[slot, Live.LENGTH] = length
    return 0


@borrowing_helper
def _think(header: Any, row: Any, ns: Any, asleep: Any) -> None:
    """Compute or sleep; not on when it is time to stop."""
    rounds = load(header + Head.ROUNDS * 8)
    while ns > 0:
        part = min(ns, _NAP_NS)
        if asleep:
            store(row + Row.SCRATCH * 8, 0)
            store(row + (Row.SCRATCH + 1) * 8, part)
            call(_NANOSLEEP, row + Row.SCRATCH * 8, 0, 0, 0, 0, 0)
        else:
            spin((part * rounds) >> 20)
        ns -= part
        if ns > 0 and load(header + Head.PHASE * 8) == _STOP:
            return


@borrowing_helper
def _await(target: Any, kind: Any) -> Any:
    """Wait for the end of a thread or a child process; 0, or -ECANCELED where it was killed."""
    if kind == _FORKED:
        pid = load32(target + Row.TID * 8)
        if pid > 0:
            status = target + Row.STATUS * 8
            while call(_WAIT4, pid, status, 0, 0, 0, 0) == -_EINTR:
                pass
            store(target + Row.TID * 8, 0)
            if load32(status) != 0:
                return -_ECANCELED
        return 0
    while True:
        tid = load32(target + Row.TID * 8)
        if tid == 0:
            return 0
        # The kernel clears it and wakes, as for pthread_join (mm_release@6.18).
        call(_FUTEX, target + Row.TID * 8, _FUTEX_WAIT, tid, 0, 0, 0)


@borrowing_helper
def _meet(header: Any, barrier: Any, parties: Any) -> None:
    """Wait until ``parties`` threads are here, or one of them will not come any more."""
    generation = load(barrier + 8)
    if load(header + Head.ABANDONED * 8) != 0:
        return
    if fetch_add(barrier, 1) + 1 == parties:
        store(barrier, 0)
        fetch_add(barrier + 8, 1)
        call(_FUTEX, barrier + 8, _FUTEX_WAKE | _PRIVATE, 1 << 30, 0, 0, 0)
        return
    while load(barrier + 8) == generation:
        call(_FUTEX, barrier + 8, _FUTEX_WAIT | _PRIVATE, generation & 0xFFFFFFFF, 0, 0, 0)


@borrowing_helper
def _release(header: Any) -> None:
    """Let everybody go who waits at a barrier: one will not come any more."""
    store(header + Head.ABANDONED * 8, 1)
    barriers = load(header + Head.BARRIERS * 8)
    for k in range(load(header + Head.BARRIER_ROWS * 8)):
        word = barriers + k * LINE * 8 + 8
        fetch_add(word, 1)
        call(_FUTEX, word, _FUTEX_WAKE | _PRIVATE, 1 << 30, 0, 0, 0)


@borrowing_helper
def _add_usage(row: Any, who: Any) -> None:
    """Add what a thread or process that ends has used."""
    usage = row + Row.SCRATCH * 8
    call(_GETRUSAGE, who, usage, 0, 0, 0, 0)
    _count(row, Count.MINOR_FAULTS, load(usage + RU_MINFLT * 8))
    _count(row, Count.MAJOR_FAULTS, load(usage + RU_MAJFLT * 8))
    _count(row, Count.SWITCHES, load(usage + RU_NVCSW * 8))
    _count(row, Count.PREEMPTIONS, load(usage + RU_NIVCSW * 8))


@borrowing_njit
def run_program(row: int) -> None:
    """Perform the program of a row until its end, or until it is time to stop."""
    header = load(row + Row.HEADER * 8)
    rows = load(header + Head.ROWS * 8)
    code = table(load(header + Head.CODE * 8), load(header + Head.CODE_ROWS * 8), _COLUMNS)
    n = load(header + Head.THREAD_ROWS * 8)
    threads = table(load(header + Head.THREADS * 8), n, _THREAD_COLUMNS)
    states = table(load(header + Head.STATES * 8), n, load(header + Head.STATE_COLUMNS * 8))
    regions = table(load(header + Head.REGIONS * 8), load(header + Head.REGION_ROWS * 8), 2)
    live = table(
        load(header + Head.LIVE * 8),
        load(header + Head.LIVE_ROWS * 8),
        load(header + Head.LIVE_COLUMNS * 8),
    )
    copies = table(load(header + Head.COPIES * 8), load(header + Head.COPY_ROWS * 8), 2)
    barriers = load(header + Head.BARRIERS * 8)
    zero = load(header + Head.ZERO * 8)
    t = load(row + Row.PROGRAM * 8)
    kind = threads[t, ThreadField.KIND]
    loop = threads[t, ThreadField.LOOP]
    if load(row + Row.PINNED * 8) != 0:
        call(_SETAFFINITY, 0, 128, row + Row.MASK * 8, 0, 0, 0)
    phase = _WAITING
    left = _UNBOUNDED
    if kind == _STARTED:
        if load(header + Head.BUDGET * 8) > 0:
            left = load(header + Head.BUDGET * 8)
        fetch_add(header + Head.ARRIVED * 8, 1)
        while load(header + Head.PHASE * 8) == _WAITING:
            call(_YIELD, 0, 0, 0, 0, 0, 0)
    elif kind == _MAIN:
        phase = _STOP  # it never stops by itself: it waits for the others
    while True:
        if load(header + Head.PHASE * 8) != phase and kind != _MAIN:
            phase = _look(header, row, kind, phase)
            if phase == _STOP:
                break
        if left <= 0:
            _shoot(row, Row.END)
            break
        pc = advance(code, states, t, regions, live)
        if pc < 0:
            store(row + Row.ENDLESS * 8, 1)
            break
        if pc >= loop and loop >= 0:
            fetch_add(header + Head.LOOPING * 8, 1)
            loop = -1
        op = code[pc, Field.OP]
        if op == Op.END:
            break
        states[t, State.PC] = pc + 1
        counts = code[pc, Field.COUNTS]
        if op == Op.TOUCH or op == Op.READ or op == Op.MPROTECT or op == Op.MADVISE:
            units = settle(code, pc, states, t, regions, live)
            flags = code[pc, Field.FLAGS]
            prot = code[pc, Field.PROT]
            start = states[t, State.START]
            bytes_ = states[t, State.BYTES]
            end = start + live[states[t, State.SLOT], Live.LENGTH] - states[t, State.OFFSET]
            for k in range(units):
                at = start + unit(states, t, k)
                result = _on_unit(op, flags, prot, zero, at, min(bytes_, end - at))
                if op == Op.TOUCH:
                    if result != 0:
                        _count(row, Count.MISSED, 1 - prot)
                    else:
                        _done(row, op, counts)
                elif _failed(row, pc, result) == 0:
                    _done(row, op, counts)
                left -= 1
                if left <= 0:
                    break
                if load(header + Head.PHASE * 8) != phase and kind != _MAIN:
                    phase = _look(header, row, kind, phase)
                    if phase == _STOP:
                        break
            if phase == _STOP and kind != _MAIN:
                break
            continue
        left -= 1
        result = 0
        if op == Op.MMAP:
            result = _mmap(code, pc, states, t, regions, live, header)
            if result == 0:
                continue
        elif op == Op.MUNMAP:
            if settle(code, pc, states, t, regions, live) == 0:
                continue
            result = _munmap(states, t, live)
            if result == 1:
                continue
        elif op == Op.MREMAP:
            result = _mremap(code, pc, states, t, regions, live)
            if result == 0:
                continue
        elif op == Op.BRK:
            result = _brk(code, pc, states, t, regions, live)
        elif op == Op.THINK:
            ns = draw_think(code, pc, states, t)
            _think(header, row, ns, code[pc, Field.FLAGS])
        elif op == Op.BARRIER:
            _meet(header, barriers + code[pc, Field.TARGET] * LINE * 8, code[pc, Field.TIMES])
        else:  # SPAWN, FORK, JOIN
            other = code[pc, Field.TARGET]
            target = rows + other * _ROW_BYTES
            _failed(row, pc, _await(target, threads[other, ThreadField.KIND]))
            if op != Op.JOIN:
                begin_program(states, threads, other, t)
                store(target + Row.SPAWNS * 8, load(target + Row.SPAWNS * 8) + 1)
            if op == Op.SPAWN:
                result = clone(
                    load(header + Head.ENTRY * 8),
                    load(target + Row.STACK * 8),
                    _CLONE_THREAD,
                    target,
                    target + Row.TID * 8,
                    0,
                    target + Row.TID * 8,
                )
                if result < 0:
                    result = -_EAGAIN  # the only one that is not a bug here
            elif op == Op.FORK:
                result = call(_FORK, 0, 0, 0, 0, 0, 0)
                if result == 0:
                    first = threads[other, ThreadField.COPIES]
                    for k in range(first, threads[other, ThreadField.COPIES_END]):
                        for column in range(2):
                            live[copies[k, 1], column] = live[copies[k, 0], column]
                    row, t, kind, loop, left = target, other, _FORKED, -1, _UNBOUNDED
                    continue
                if result > 0:
                    store(target + Row.TID * 8, result)
        if _failed(row, pc, result) == 0:
            _done(row, op, counts)
    if kind == _FORKED:
        _add_usage(row, _RUSAGE_SELF)
        call(_EXIT_GROUP, 0, 0, 0, 0, 0, 0)
    if kind == _SPAWNED:
        _add_usage(row, _RUSAGE_THREAD)
    if kind == _STARTED:
        _release(header)


@c_callback(types.int64(types.int64))
def thread_main(row: Any) -> Any:
    """What a thread of the program runs."""
    run_program(row)
    return 0


@borrowing_njit
def spin_ns(rounds: int, scratch: int) -> Any:
    """How long so many rounds of spinning take, in ns."""
    begin = now_ns(scratch)
    spin(rounds)
    return now_ns(scratch) - begin
