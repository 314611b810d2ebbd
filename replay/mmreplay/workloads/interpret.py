"""How a loop program is read: compiled helpers that both back ends call.

:func:`advance` runs what only steers and returns the next row that does something;
:func:`settle` says which bytes an operation on a range means; :func:`unit` where its
k-th unit is; :func:`draw_think` how long a thinking lasts.  Random numbers come from one
counter-based stream per program and seed, drawn in program order, so a program takes the
same decisions in both back ends as long as none of them depends on time.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.jit import borrowing_helper, njit
from mmreplay.workloads.program import (
    LAST_WINDOW,
    MADV_DONTNEED,
    MADV_REMOVE,
    MOST_COUNTERS,
    SAME_WINDOW,
    Distribution,
    Field,
    Op,
    Order,
    Picks,
    Program,
    ThreadField,
)

I64 = NDArray[np.int64]
PAGE: Final = 4096
#: Instructions in a row that do nothing before a program is called endless.
FUEL: Final = 1 << 22
#: What :func:`advance` returns for such a program.
ENDLESS: Final = -1


class State(IntEnum):
    """Words of a program's state (a row of an int64 table)."""

    PC = 0  # the next row of code
    RNG = 1  # its stream's counter
    REGIONS = 2  # its first row of regions
    SLOT = 3  # set by settle: the slot, and below where the units are
    START = 4  # address of the first unit
    BYTES = 5  # of one unit
    UNITS = 6
    MULTIPLIER = 7  # scattered: unit k is (k * MULTIPLIER + ADD) mod UNITS
    ADD = 8
    OFFSET = 9  # of START in the slot
    CURSORS = 10  # where in this row the last range of each region begins (bytes); then its ends
    COUNTERS = 11  # as many as MOST_COUNTERS
    PICKED = COUNTERS + MOST_COUNTERS  # element of each region; behind them the last ranges


class Live(IntEnum):
    """Columns of the slots' state, which the back ends keep."""

    ADDRESS = 0
    LENGTH = 1  # bytes mapped, 0 none (heap: above the start)
    AT = 2  # where the last range in an element of several begins, bytes
    AT_END = 3  # and ends


_ONE: Final = 1 << 32
_HALF: Final = _ONE >> 1
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)


def new_states(program: Program, seed: int) -> I64:
    """(programs, words) initial states; the width is a multiple of a cache line."""
    regions = int(
        np.diff(np.append(program.threads[:, ThreadField.REGIONS], len(program.regions))).max()
    )
    width = -(-(State.PICKED + 3 * regions) // 8) * 8
    states = np.zeros((len(program.threads), width), np.int64)
    states[:, State.PC] = program.threads[:, ThreadField.FIRST]
    states[:, State.REGIONS] = program.threads[:, ThreadField.REGIONS]
    states[:, State.CURSORS] = State.PICKED + regions
    keys = np.arange(len(states), dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
    mixed = np.uint64(seed * int(_GOLDEN) % 2**64)
    states[:, State.RNG] = (keys ^ mixed).view(np.int64)
    return states


@borrowing_helper
def draw(states: I64, t: Any) -> Any:
    """The next 32 random bits of program ``t`` (SplitMix64, Steele, Lea and Flood 2014)."""
    x = np.uint64(states[t, State.RNG]) + _GOLDEN
    states[t, State.RNG] = np.int64(x)
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return np.int64((x ^ (x >> np.uint64(31))) >> np.uint64(32))


@borrowing_helper
def draw_below(states: I64, t: Any, n: Any) -> Any:
    """A number below ``n`` (at most 2**31)."""
    return (draw(states, t) * n) >> 32


@borrowing_helper
def begin_program(states: I64, threads: I64, program: Any, parent: Any) -> None:
    """Program ``program`` begins anew: counters at 0, its parent's picks, its stream goes on."""
    states[program, State.PC] = threads[program, ThreadField.FIRST]
    for k in range(MOST_COUNTERS):
        states[program, State.COUNTERS + k] = 0
    for k in range(State.PICKED, states.shape[1]):
        states[program, k] = states[parent, k]


@borrowing_helper
def slot_of(states: I64, t: Any, regions: I64, region: Any) -> Any:
    """The slot that a region's number means now."""
    return regions[states[t, State.REGIONS] + region, 0] + states[t, State.PICKED + region]


@borrowing_helper
def _last_range(states: I64, t: Any, regions: I64, live: I64, slot: Any, region: Any) -> Any:
    """Where the last range in a region began and ended: a thread's own, or the element's."""
    if regions[states[t, State.REGIONS] + region, 1] > 1:
        return live[slot, Live.AT], live[slot, Live.AT_END]
    which = states[t, State.CURSORS] + region
    # the ends are as many words behind the beginnings as those are behind the picks
    return states[t, which], states[t, which + states[t, State.CURSORS] - State.PICKED]


@borrowing_helper
def set_last_range(
    states: I64, t: Any, regions: I64, live: I64, slot: Any, region: Any, start: Any, end: Any
) -> None:
    if regions[states[t, State.REGIONS] + region, 1] > 1:
        live[slot, Live.AT], live[slot, Live.AT_END] = start, end
        return
    which = states[t, State.CURSORS] + region
    states[t, which] = start
    states[t, which + states[t, State.CURSORS] - State.PICKED] = end


@borrowing_helper
def mapped_anew(states: I64, t: Any, regions: I64, live: I64, slot: Any, region: Any) -> None:
    """Program ``t`` has mapped a region: the next range in it begins where it begins."""
    set_last_range(states, t, regions, live, slot, region, 0, 0)


@borrowing_helper
def _search(states: I64, t: Any, regions: I64, region: Any, live: I64, how: Any) -> None:
    """Pick the next element of a region that is as :class:`Picks` says."""
    first = regions[states[t, State.REGIONS] + region, 0]
    count = regions[states[t, State.REGIONS] + region, 1]
    at = states[t, State.PICKED + region]
    skip = 0 if how == Picks.MAPPED or how == Picks.UNTOUCHED else 1
    for k in range(skip, count + skip):
        other = (at + k) % count
        if (live[first + other, Live.LENGTH] == 0) == (how == Picks.FREE) and (
            how != Picks.UNTOUCHED or live[first + other, Live.AT_END] == 0
        ):
            states[t, State.PICKED + region] = other
            return


@borrowing_helper
def _evenly(code: I64, pc: Any, states: I64, t: Any) -> Any:
    """Whether a JUMP is taken: its rarer way once in each stratum of 1 / probability times.

    Where in its stratum is random (stratified sampling): the number of times is within one of
    what the probability says, and different branches are independent.
    """
    chance = code[pc, Field.TIMES]
    common = chance > _HALF
    if common:
        chance = _ONE - chance
    if code[pc, Field.MEAN_NS] < 0:
        code[pc, Field.MEAN_NS] = draw(states, t)
    code[pc, Field.LENGTH] += chance
    rare = code[pc, Field.LENGTH] > code[pc, Field.MEAN_NS]
    if rare:
        code[pc, Field.LENGTH] -= _ONE
        code[pc, Field.MEAN_NS] = draw(states, t)
    return rare != common


@borrowing_helper
def advance(code: I64, states: I64, t: Any, regions: I64, live: I64) -> Any:
    """Steer program ``t`` to its next row that does something; :data:`ENDLESS` where none is.

    The row is not stepped over: the caller adds one to ``PC`` when it is done.
    """
    pc = states[t, State.PC]
    fuel = FUEL
    while fuel > 0:
        op = code[pc, Field.OP]
        if op < Op.PICK:
            states[t, State.PC] = pc
            return pc
        fuel -= 1
        if op == Op.NEXT:
            counter = State.COUNTERS + code[pc, Field.COUNTER]
            states[t, counter] += 1
            times = code[pc, Field.TIMES]
            if times == 0 or states[t, counter] < times:
                pc = code[pc, Field.TARGET]
            else:
                states[t, counter] = 0
                pc += 1
        elif op == Op.JUMP:
            if code[pc, Field.SHAPE]:
                taken = _evenly(code, pc, states, t)
            else:
                taken = draw(states, t) < code[pc, Field.TIMES]
            if taken:
                pc = code[pc, Field.TARGET]
            else:
                pc += 1
        elif op == Op.UNMAPPED:
            slot = slot_of(states, t, regions, code[pc, Field.REGION])
            if live[slot, Live.LENGTH] == 0:
                pc = code[pc, Field.TARGET]
            else:
                pc += 1
        else:  # PICK
            region = code[pc, Field.REGION]
            count = regions[states[t, State.REGIONS] + region, 1]
            how = code[pc, Field.FLAGS]
            if how == Picks.NEXT:
                states[t, State.PICKED + region] = (states[t, State.PICKED + region] + 1) % count
            elif how == Picks.RANDOM:
                states[t, State.PICKED + region] = draw_below(states, t, count)
            else:
                _search(states, t, regions, region, live, how)
            pc += 1
    states[t, State.PC] = pc
    return ENDLESS


@borrowing_helper
def draw_length(code: I64, row: Any, states: I64, t: Any) -> Any:
    """Bytes from LENGTH to MOST, in whole pages."""
    low = code[row, Field.LENGTH]
    pages = (code[row, Field.MOST] - low) // PAGE
    if pages > 0:
        low += draw_below(states, t, pages + 1) * PAGE
    return low


@borrowing_helper
def _coprime(n: Any) -> Any:
    """A number near n / golden ratio that has no divisor in common with n."""
    m = max(1, int(n * 0.6180339887498949))
    while True:
        a, b = n, m
        while b != 0:
            a, b = b, a % b
        if a == 1:
            return m
        m += 1


@borrowing_helper
def settle(code: I64, row: Any, states: I64, t: Any, regions: I64, live: I64) -> Any:
    """Which bytes the range operation in ``row`` means; its number of units, 0: nothing to do.

    Sets SLOT, START, OFFSET, BYTES (of a unit), UNITS, and how they are scattered.
    """
    slot = slot_of(states, t, regions, code[row, Field.REGION])
    states[t, State.SLOT] = slot
    mapped = live[slot, Live.LENGTH]
    offset = code[row, Field.OFFSET]
    length = draw_length(code, row, states, t)
    if length == 0 or offset + length > mapped:
        length = mapped - offset
    if length <= 0:
        states[t, State.UNITS] = 0
        return 0
    step = code[row, Field.STEP]
    at = code[row, Field.AT]
    units = 1
    window = code[row, Field.WINDOW]
    if window > 0:
        if at < 0:
            start, end = _last_range(states, t, regions, live, slot, code[row, Field.REGION])
            ahead = (start if at == SAME_WINDOW else end) - offset
            if at == LAST_WINDOW:
                window = max(min(window, ahead), PAGE)
                ahead -= window
            if ahead < 0 or ahead >= length:  # round again
                ahead = 0
        else:
            ahead = states[t, State.COUNTERS + at] * window
            if ahead >= length:  # round again; a division is dear
                ahead = states[t, State.COUNTERS + at] % ((length + window - 1) // window) * window
        offset += ahead
        length = min(window, mapped - offset)
    op, flags, end = code[row, Field.OP], code[row, Field.FLAGS], offset + length
    drops = op == Op.MADVISE and (flags == MADV_DONTNEED or flags == MADV_REMOVE)
    whole = length == mapped
    if at == LAST_WINDOW or (drops and whole):
        end = offset
    if drops or not whole or op == Op.TOUCH or op == Op.READ:
        set_last_range(states, t, regions, live, slot, code[row, Field.REGION], offset, end)
    if 0 < step < length:
        units = (length + step - 1) // step
        length = step
    states[t, State.START] = live[slot, Live.ADDRESS] + offset
    states[t, State.OFFSET] = offset
    states[t, State.BYTES] = length
    states[t, State.MULTIPLIER] = 1
    states[t, State.ADD] = 0
    states[t, State.UNITS] = units
    most = code[row, Field.UNITS]
    if units > 1 and code[row, Field.ORDER] == Order.SCATTERED:
        states[t, State.MULTIPLIER] = _coprime(units)
        states[t, State.ADD] = draw_below(states, t, units)
    if 0 < most < units:
        return most
    return units


@borrowing_helper
def unit(states: I64, t: Any, k: Any) -> Any:
    """Offset from START of the ``k``-th unit, in bytes.

    The last unit of a range may be shorter than BYTES: the caller cuts it at the end of
    what is mapped.
    """
    multiplier = states[t, State.MULTIPLIER]
    if multiplier != 1 or states[t, State.ADD] != 0:
        k = (k * multiplier + states[t, State.ADD]) % states[t, State.UNITS]
    return k * states[t, State.BYTES]


@borrowing_helper
def draw_think(code: I64, row: Any, states: I64, t: Any) -> Any:
    """How long the thinking in ``row`` lasts, in ns.

    Exponential by inversion; lognormal with the given mean by Box and Muller (1958).
    """
    mean = code[row, Field.MEAN_NS]
    shape = code[row, Field.SHAPE]
    if shape == Distribution.CONSTANT:
        return mean
    u = (draw(states, t) + 0.5) / 4294967296.0
    if shape == Distribution.EXPONENTIAL:
        return np.int64(-np.log(u) * mean)
    sigma = code[row, Field.TIMES] / 1000.0
    angle = 2 * np.pi * (draw(states, t) / 4294967296.0)
    normal = np.sqrt(-2 * np.log(u)) * np.cos(angle)
    return np.int64(mean * np.exp(sigma * normal - 0.5 * sigma * sigma))


@njit
def decisions(code: I64, states: I64, t: int, regions: I64, live: I64, rows: I64) -> int:
    """The rows that program ``t`` comes to, none of them done: for tests and listings.

    Fills ``rows`` and returns how many there were before its end.
    """
    for n in range(len(rows)):
        row = advance(code, states, t, regions, live)
        if row < 0 or code[row, Field.OP] == Op.END:
            return n
        rows[n] = row
        states[t, State.PC] = row + 1
    return len(rows)
