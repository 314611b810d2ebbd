"""The compiled generator: threads take their turns by simulated time, each turn one operation.

:func:`generate` runs until a buffer is full or the trace is long enough and can be called
again to go on.  Nobody waits for a lock here: an operation takes a nominal time
(:data:`~mmreplay.workloads.generator_world.NOMINAL_NS`), which orders the operations of
different threads and is not written as a duration.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mmreplay.jit import borrowing_helper, borrowing_njit
from mmreplay.schema import OpKind
from mmreplay.workloads.generator_world import (
    FIRST_NS,
    FIRST_TID,
    LAST_TID,
    Cell,
    Column,
    Life,
    Status,
    Turn,
    Waits,
    awake,
    begin_life,
    leaves_cpu,
    new_call,
    new_fault,
    new_row,
    preempted,
    sink,
    stops,
    wakes,
    woken,
)
from mmreplay.workloads.interpret import (
    ENDLESS,
    FUEL,
    Live,
    State,
    advance,
    begin_program,
    draw_length,
    draw_think,
    mapped_anew,
    set_last_range,
    settle,
    slot_of,
    unit,
)
from mmreplay.workloads.memory import (
    OWN_PROT,
    PAGE,
    Memory,
    access,
    begins_later,
    forget,
    give,
    heap_start,
    is_free,
    place,
    populate,
    protect,
    share_by_fork,
    take,
)
from mmreplay.workloads.program import (
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MAP_FIXED,
    MAP_POPULATE,
    Field,
    Kind,
    Op,
    SlotField,
    ThreadField,
)

#: The same for each page that a populating call makes present; of the order of alloc_page and
#: zero_page in models/machines/epyc-guest-2cpu.toml.
_POPULATE_PAGE_NS: Final = 1_000
#: Elements of a region, and pages of each, that are looked at for one that still faults.
_TRIED: Final = 16
_TRIED_PAGES: Final = 1024
_KEEP_PROT: Final = OWN_PROT | 7 << 3
_HUGE: Final = 1 << 21
_REMOVE: Final = 9
_CLONE_FLAGS: Final = 0x3D0F00  # pthread_create: CLONE_VM|FS|FILES|SIGHAND|THREAD|SYSVSEM|...


# -- calls -------------------------------------------------------------------------------------


@borrowing_helper
def _file_mapped(w: Any, t: Any, slot: Any, start: Any, length: Any, row: Any, begin: Any) -> None:
    """A recorder reports file mappings by themselves: which file it is."""
    n = w.cells[Cell.MAPPINGS]
    w.cells[Cell.MAPPINGS] = n + 1
    m = w.mappings[n]
    m[0], m[1], m[2], m[3] = w.turns[t, Turn.SPACE], begin, start, length
    m[4], m[5] = w.code[row, Field.PROT], w.code[row, Field.FLAGS] & 3
    m[6] = start - w.live[slot, Live.ADDRESS]
    m[7] = w.slots[slot, SlotField.FILE]


@borrowing_helper
def _mmap(w: Any, t: Any, row: Any, process: Any) -> Any:
    """Returns what it counts as: 1 done, 0 nothing to do, -2 not allowed."""
    code = w.code
    slot = slot_of(w.states, t, w.regions, code[row, Field.REGION])
    length = draw_length(code, row, w.states, t)
    flags, prot = code[row, Field.FLAGS], code[row, Field.PROT]
    mapped = w.live[slot, Live.LENGTH]
    begin = w.turns[t, Turn.CLOCK]
    hint = np.int64(0)
    first = np.int64(0)
    if flags & MAP_FIXED:
        offset = code[row, Field.OFFSET]
        length = min(length, mapped - offset)
        if length <= 0:
            return 0
        start = hint = w.live[slot, Live.ADDRESS] + offset
        first = offset // PAGE
        forget(w, slot, first, first + length // PAGE, 0)
        protect(w, slot, first, first + length // PAGE, prot)
    else:
        if mapped:
            return 0
        file = w.slots[slot, SlotField.FILE]
        start = place(w, process, length, file < 0 and length % _HUGE == 0)
        take(w, process, start, start + length)
        w.live[slot, Live.ADDRESS], w.live[slot, Live.LENGTH] = start, length
        w.memory[slot, Memory.PROT] = prot
        w.memory[slot, Memory.HUGE] = 0
        mapped_anew(w.states, t, w.regions, w.live, slot, code[row, Field.REGION])
    n = new_call(w, t, OpKind.MMAP, start, length, flags, start)
    w.rows[Column.ADDRESS2, n] = hint
    w.rows[Column.PROT, n] = prot
    w.rows[Column.FD, n] = code[row, Field.FILE] + 3 if code[row, Field.FILE] >= 0 else -1
    w.rows[Column.FILE_OFFSET, n] = start - w.live[slot, Live.ADDRESS]
    if code[row, Field.FILE] >= 0:
        _file_mapped(w, t, slot, start, length, row, begin)
    if flags & MAP_POPULATE and prot:
        write = (prot & 2) != 0 and w.slots[slot, SlotField.SHARED] == 0
        made = populate(w, slot, first, first + length // PAGE, write)
        w.turns[t, Turn.CLOCK] += made * _POPULATE_PAGE_NS
    return 1


@borrowing_helper
def _munmap(w: Any, t: Any, process: Any) -> Any:
    state = w.states[t]
    slot, offset, length = state[State.SLOT], state[State.OFFSET], state[State.BYTES]
    mapped = w.live[slot, Live.LENGTH]
    if offset > 0 and offset + length != mapped:
        return 0
    start = w.live[slot, Live.ADDRESS] + offset
    forget(w, slot, offset // PAGE, (offset + length) // PAGE, 0)
    if offset == 0 and length < mapped:
        begins_later(w, slot, length // PAGE)
        w.live[slot, Live.ADDRESS] += length
        w.live[slot, Live.LENGTH] = mapped - length
    else:
        w.live[slot, Live.LENGTH] = offset
    give(w, process, start, start + length)
    new_call(w, t, OpKind.MUNMAP, start, length, 0, 0)
    return 1


@borrowing_helper
def _mremap(w: Any, t: Any, row: Any, process: Any) -> Any:
    slot = slot_of(w.states, t, w.regions, w.code[row, Field.REGION])
    length = draw_length(w.code, row, w.states, t)
    mapped = w.live[slot, Live.LENGTH]
    if mapped == 0:
        return 0
    old = start = w.live[slot, Live.ADDRESS]
    if length < mapped:
        forget(w, slot, length // PAGE, mapped // PAGE, 0)
        give(w, process, start + length, start + mapped)
    elif length > mapped:
        if is_free(w, process, start + mapped, start + length):
            take(w, process, start + mapped, start + length)
        elif w.code[row, Field.FLAGS] == 0:
            return 0
        else:
            start = place(w, process, length, False)
            take(w, process, start, start + length)
            give(w, process, old, old + mapped)
    w.live[slot, Live.ADDRESS], w.live[slot, Live.LENGTH] = start, length
    n = new_call(w, t, OpKind.MREMAP, old, length, w.code[row, Field.FLAGS], start)
    w.rows[Column.LENGTH2, n] = mapped
    w.rows[Column.ADDRESS2, n] = 0
    return 1


@borrowing_helper
def _brk(w: Any, t: Any, row: Any) -> Any:
    slot = slot_of(w.states, t, w.regions, w.code[row, Field.REGION])
    length, mapped = w.code[row, Field.LENGTH], w.live[slot, Live.LENGTH]
    base = heap_start()
    if length < mapped:
        forget(w, slot, length // PAGE, mapped // PAGE, 0)
    w.live[slot, Live.ADDRESS], w.live[slot, Live.LENGTH] = base, length
    w.memory[slot, Memory.PROT] = 3
    n = new_call(w, t, OpKind.BRK, 0, abs(length - mapped), 0, base + length)
    w.rows[Column.ADDRESS2, n] = base + length
    return 1


@borrowing_helper
def _fresh(w: Any, t: Any, row: Any, first: Any, write: Any) -> Any:
    """Bits and address of the fault at the next page that has one, from page ``first`` on.

    Looks at so many pages from there, and from the beginning, of the thread's element (of a
    region of one: of its part), then of some others that are mapped; bits are -1 where there
    is none.
    """
    state, region = w.states[t], w.code[row, Field.REGION]
    base = w.regions[state[State.REGIONS] + region, 0]
    count = w.regions[state[State.REGIONS] + region, 1]
    picked = state[State.PICKED + region]
    low, high = w.code[row, Field.OFFSET] // PAGE, w.code[row, Field.MOST] // PAGE
    if w.code[row, Field.WINDOW] == 0:  # a place in it, not a part
        high = np.int64(0)
    for k in range(min(count, _TRIED)):
        element = (picked + k) % count
        slot = base + element
        end = w.live[slot, Live.LENGTH] // PAGE
        begin = np.int64(0)
        if high > 0:  # a part of it
            begin, end = low, min(end, low + high)
        n = end - begin
        at = first - begin if k == 0 else np.int64(-1)
        for tried in range(min(n, 2 * _TRIED_PAGES)):
            at += 1
            if at >= n or tried == _TRIED_PAGES:
                at = np.int64(0)
            bits = access(w, slot, begin + at, write)
            if bits >= 0:
                state[State.PICKED + region] = element
                offset = (begin + at) * PAGE
                set_last_range(w.states, t, w.regions, w.live, slot, region, offset, offset + PAGE)
                return bits, w.live[slot, Live.ADDRESS] + offset
    return np.int64(-1), np.int64(0)


@borrowing_helper
def _on_unit(w: Any, t: Any, row: Any, op: Any, k: Any) -> Any:
    """One unit of a range operation: 1 a row was written, 0 nothing happened, -2 not allowed."""
    state = w.states[t]
    slot = state[State.SLOT]
    skip = unit(w.states, t, k)
    offset = state[State.OFFSET] + skip
    start = w.live[slot, Live.ADDRESS] + offset
    length = min(state[State.BYTES], w.live[slot, Live.LENGTH] - offset)
    if length <= 0:  # another thread has unmapped it meanwhile
        return 0
    first, end = offset // PAGE, (offset + length + PAGE - 1) // PAGE
    if op == Op.TOUCH or op == Op.READ:
        write = op == Op.READ or w.code[row, Field.FLAGS] == 1
        bits = access(w, slot, first, write)
        if bits < 0 and w.code[row, Field.TIMES] == 1:
            bits, start = _fresh(w, t, row, first, write)
        if bits < 0:
            return bits if bits == -2 and w.code[row, Field.PROT] == 0 else 0
        new_fault(w, t, OpKind.FAULT_USER if op == Op.TOUCH else OpKind.FAULT_KERNEL, start, bits)
        return 1
    flags = w.code[row, Field.FLAGS]
    if op == Op.MPROTECT:
        prot = w.code[row, Field.PROT]
        protect(w, slot, first, end, prot)
        n = new_call(w, t, OpKind.MPROTECT, start, length, 0, 0)
        w.rows[Column.PROT, n] = prot
        return 1
    new_call(w, t, OpKind.MADVISE, start, length, flags, 0)
    if flags == MADV_DONTNEED or flags == _REMOVE:
        forget(w, slot, first, end, _KEEP_PROT)
    elif flags == MADV_POPULATE_WRITE or flags == MADV_POPULATE_READ:
        made = populate(w, slot, first, end, flags == MADV_POPULATE_WRITE)
        if made == -2:
            return made
        w.turns[t, Turn.CLOCK] += made * _POPULATE_PAGE_NS
    elif flags == MADV_HUGEPAGE:
        w.memory[slot, Memory.HUGE] = 1
    elif flags == MADV_NOHUGEPAGE:
        w.memory[slot, Memory.HUGE] = 0
    return 1


# -- threads and processes ---------------------------------------------------------------------


@borrowing_helper
def _start(w: Any, t: Any, target: Any, fork: Any) -> None:
    cells, turn = w.cells, w.turns[t]
    tid = cells[Cell.NEXT_TID]
    cells[Cell.NEXT_TID] = tid + 1 if tid < LAST_TID else FIRST_TID + len(w.threads)
    n = new_row(w, t, OpKind.FORK if fork else OpKind.CLONE)
    w.rows[Column.CHILD, n] = w.rows[Column.RESULT, n] = tid
    w.rows[Column.FLAGS, n] = 0 if fork else _CLONE_FLAGS
    space, pid = turn[Turn.SPACE], turn[Turn.PID]
    if fork:
        space, pid = cells[Cell.NEXT_SPACE], tid
        cells[Cell.NEXT_SPACE] = space + 1
        ours = w.threads[t, ThreadField.PROCESS]
        theirs = w.threads[target, ThreadField.PROCESS]
        w.taken_n[theirs] = w.taken_n[ours]
        for k in range(w.taken_n[ours]):
            w.taken[theirs, k, 0], w.taken[theirs, k, 1] = w.taken[ours, k, 0], w.taken[ours, k, 1]
        first, end = (
            w.threads[target, ThreadField.COPIES],
            w.threads[target, ThreadField.COPIES_END],
        )
        for k in range(first, end):
            share_by_fork(w, w.copies[k, 0], w.copies[k, 1])
    begin_program(w.states, w.threads, target, t)
    begin_life(w, target, tid, pid, space, turn[Turn.TID], turn[Turn.CLOCK])


@borrowing_helper
def _ends(w: Any, t: Any) -> None:
    """Program ``t``, the first of the heap, is through."""
    threads, turn = w.threads, w.turns[t]
    forked = threads[t, ThreadField.KIND] == Kind.FORKED
    new_row(w, t, OpKind.PROCESS_EXIT if forked else OpKind.THREAD_EXIT)
    now = turn[Turn.CLOCK]
    w.lives[turn[Turn.LIFE], Life.END] = now
    if forked:
        for k in range(threads[t, ThreadField.COPIES], threads[t, ThreadField.COPIES_END]):
            slot = w.copies[k, 1]
            forget(w, slot, 0, w.slots[slot, SlotField.MOST] // PAGE, 0)
            w.live[slot, Live.LENGTH] = 0
        w.taken_n[threads[t, ThreadField.PROCESS]] = 0
    stops(w, Waits.ABSENT)
    parent = threads[t, ThreadField.PARENT]
    if parent >= 0 and w.turns[parent, Turn.WAITS] == Waits.JOIN:
        if w.code[w.states[parent, State.PC], Field.TARGET] == t:
            wakes(w, parent, t, now)


@borrowing_helper
def _meet(w: Any, t: Any, row: Any) -> None:
    """Program ``t``, the first of the heap, is at a barrier."""
    barrier, parties = w.code[row, Field.TARGET], w.code[row, Field.TIMES]
    w.states[t, State.PC] = row + 1
    w.arrived[barrier] += 1
    if w.arrived[barrier] < parties:
        stops(w, Waits.BARRIER)
        w.turns[t, Turn.UNIT] = barrier  # which one it waits at
        return
    w.arrived[barrier] = 0
    now = w.turns[t, Turn.CLOCK]
    for other in range(len(w.threads)):
        turn = w.turns[other]
        if turn[Turn.WAITS] == Waits.BARRIER and turn[Turn.UNIT] == barrier:
            wakes(w, other, t, now)


# -- the loop ----------------------------------------------------------------------------------


@borrowing_helper
def _instruction(w: Any, t: Any, row: Any) -> Any:
    """Do the row of a program that is the first of the heap: -2 where it is not allowed."""
    code, turn = w.code, w.turns[t]
    op = code[row, Field.OP]
    w.states[t, State.PC] = row + 1
    if op == Op.THINK:
        span = draw_think(code, row, w.states, t)
        if span > 0 and code[row, Field.TARGET]:
            turn[Turn.WOKEN_BY], turn[Turn.OFF] = code[row, Field.TARGET], turn[Turn.CLOCK]
            turn[Turn.OFF_THINK], turn[Turn.OFF_BLOCKED] = turn[Turn.THINK], turn[Turn.BLOCKED]
        turn[Turn.BLOCKED if code[row, Field.FLAGS] else Turn.THINK] += span
        turn[Turn.CLOCK] += span
        if code[row, Field.FLAGS]:
            turn[Turn.SLEEP_END] = turn[Turn.CLOCK]
        if span > 0 and code[row, Field.FLAGS] and w.cells[Cell.CPUS] > 0:
            turn[Turn.ASLEEP] = 1
        turn[Turn.COUNTED] += code[row, Field.COUNTS]
        if span > 0:
            turn[Turn.FUEL] = 0
        return 0
    process = w.threads[t, ThreadField.PROCESS]
    done = np.int64(0)
    if op == Op.MMAP:
        done = _mmap(w, t, row, process)
    elif op == Op.MREMAP:
        done = _mremap(w, t, row, process)
    elif op == Op.BRK:
        done = _brk(w, t, row)
    elif op == Op.MUNMAP:
        if settle(code, row, w.states, t, w.regions, w.live):
            done = _munmap(w, t, process)
    else:
        turn[Turn.LEFT] = settle(code, row, w.states, t, w.regions, w.live)
        turn[Turn.UNIT] = 0
    if done > 0:
        turn[Turn.COUNTED] += code[row, Field.COUNTS]
    return done


@borrowing_helper
def _units(w: Any, t: Any, row: Any) -> Any:
    """Go on with the operation in ``row`` until one of its units has written a row."""
    turn, op, counts = w.turns[t], w.code[row, Field.OP], w.code[row, Field.COUNTS]
    k, left = turn[Turn.UNIT], turn[Turn.LEFT]
    done = np.int64(0)
    while left > 0 and done == 0:
        done = _on_unit(w, t, row, op, k)
        k += 1
        left -= 1
        turn[Turn.COUNTED] += counts
        if k & 15 == 0:
            turn[Turn.FUEL] += 1
    turn[Turn.UNIT], turn[Turn.LEFT] = k, left
    return done


@borrowing_njit
def generate(w: Any, most_rows: int, most_ns: int) -> int:
    """Write rows until the buffers are full (leaving room for one turn), or it is enough.

    ``most_rows`` counts all rows so far, ``most_ns`` is a time on the trace's clock.
    Returns a :class:`Status`.
    """
    cells = w.cells
    room = w.rows.shape[1] - 2
    while True:
        if cells[Cell.HEAP] == 0:
            ended = w.turns[0, Turn.WAITS] == Waits.ABSENT
            return Status.LONG_ENOUGH if ended else Status.DEADLOCK
        if cells[Cell.TOTAL] + cells[Cell.ROWS] >= most_rows:
            return Status.LONG_ENOUGH
        if (
            cells[Cell.ROWS] >= room
            or cells[Cell.LIVES] >= len(w.lives) - 2
            or cells[Cell.MAPPINGS] >= len(w.mappings) - 2
            or cells[Cell.WAKES] >= len(w.wakes) - len(w.threads)
        ):
            return Status.FULL
        t = w.heap[0]
        turn = w.turns[t]
        if turn[Turn.WOKEN_BY] and turn[Turn.CLOCK] < most_ns:
            woken(w)
        if turn[Turn.ASLEEP] and not awake(w):
            continue
        cells[Cell.NOW] = turn[Turn.CLOCK]
        if turn[Turn.CLOCK] >= most_ns:
            return Status.LONG_ENOUGH
        if turn[Turn.LEFT] > 0:
            row = w.states[t, State.PC] - 1
            done = _units(w, t, row)
        else:
            row = advance(w.code, w.states, t, w.regions, w.live)
            turn[Turn.FUEL] += 1
            if row == ENDLESS or turn[Turn.FUEL] > FUEL:
                cells[Cell.WHO], cells[Cell.WHERE] = t, w.states[t, State.PC]
                return Status.ENDLESS
            op = w.code[row, Field.OP]
            done = np.int64(0)
            if op < Op.SPAWN and op != Op.END:
                done = _instruction(w, t, row)
            elif op == Op.END:
                _ends(w, t)
                continue
            elif op == Op.BARRIER:
                _meet(w, t, row)
                continue
            else:
                target = w.code[row, Field.TARGET]
                if w.turns[target, Turn.WAITS] != Waits.ABSENT:
                    stops(w, Waits.JOIN)  # it comes to the same row again
                    continue
                w.states[t, State.PC] = row + 1
                if op != Op.JOIN:
                    _start(w, t, target, op == Op.FORK)
        if done == -2:
            cells[Cell.WHO], cells[Cell.WHERE] = t, row
            return Status.NOT_ALLOWED
        if turn[Turn.ASLEEP]:
            sink(w)
            leaves_cpu(w, cells[Cell.NOW])
        elif not preempted(w):
            sink(w)


@borrowing_njit
def begin_main(w: Any, pid: int) -> None:
    """The main thread is there; the heap is empty (its region, where there is one)."""
    for slot in range(len(w.slots)):
        if w.slots[slot, SlotField.HEAP]:
            w.live[slot, Live.ADDRESS] = heap_start()
    # not at 0: what the trace knows at 0 was there before
    begin_life(w, 0, pid, pid, 0, 0, FIRST_NS)
