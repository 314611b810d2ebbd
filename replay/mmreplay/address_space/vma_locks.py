"""Which lock object of a plan stands for a VMA where VMAs part and join again; compiled.

A plan names for each fault the lock of its VMA, and for each call those that it write-marks.
A replay comes to them at other moments than the recording did.  Were the lock the kernel's
object, whose id says which of two parts was new, a range that is cut and merged over and over
would have another lock each time; faults planned in one round would then not meet the marks of
another.  So a lock belongs to where a VMA begins: the lower part of a VMA that is cut keeps it,
and the upper gets back the one that it had before a merge swallowed it, if it had one.  Of a VMA
that is unmapped in part the rest keeps it.
"""

from __future__ import annotations

from mmreplay.address_space.vma_state import (
    E_LOCK,
    H_LOCK,
    H_SPACE,
    H_START,
    HOMES,
    V_LOCK,
    V_MARK_AT,
    V_MARKED,
    V_SPACE,
    V_START,
    V_UID,
    Core,
    Num,
)
from mmreplay.jit import borrowing_helper

_OPERATION = int(Num.OPERATION)
_ORIGIN = int(Num.ORIGIN)
_MASK = HOMES - 1
#: From here up the kernel chose at random, and an anonymised trace has all in an area moved by one
#: distance: from the first VMA there the entries, and which of them meet, are the same.
_RANDOM_FROM = 1 << 40
_AREAS = (1 << 44, 1 << 46, 1 << 47)


@borrowing_helper
def _home(state: Core, space: int, start: int) -> int:
    """The entry for a VMA that begins at ``start`` (golden-section hash; the last one stays)."""
    if start >= _RANDOM_FROM:
        area = _ORIGIN + (start >= _AREAS[0]) + (start >= _AREAS[1]) + (start >= _AREAS[2])
        if state.numbers[area] == 0:
            state.numbers[area] = start
        start -= state.numbers[area]
    key = (start >> 12) + (space << 36)
    return int(((key * -7046029254386353131) >> 40) & _MASK)


@borrowing_helper
def remember(state: Core, slot: int) -> None:
    """A merge swallows a VMA, the lower part of what is merged keeps its lock."""
    space, start = state.vma[slot, V_SPACE], state.vma[slot, V_START]
    at = _home(state, space, start)
    state.homes[at, H_START] = start
    state.homes[at, H_SPACE] = space
    state.homes[at, H_LOCK] = state.vma[slot, V_LOCK]


@borrowing_helper
def take_over(state: Core, slot: int, lower: int) -> None:
    """A merge extends a VMA downwards over ``lower``, whose lock it has from now on."""
    remember(state, slot)
    state.vma[slot, V_LOCK] = state.vma[lower, V_LOCK]


@borrowing_helper
def _rename(state: Core, slot: int, lock: int) -> None:
    """Another lock, in the mark of the running operation too."""
    state.vma[slot, V_LOCK] = lock
    at = state.vma[slot, V_MARK_AT]
    if state.vma[slot, V_MARKED] == state.numbers[_OPERATION] and at >= 0:
        state.effects[at, E_LOCK] = lock


@borrowing_helper
def exchange(state: Core, one: int, other: int) -> None:
    """Two parts of what was one VMA swap locks."""
    lock = state.vma[one, V_LOCK]
    _rename(state, one, state.vma[other, V_LOCK])
    _rename(state, other, lock)


@borrowing_helper
def part(state: Core, slot: int, new: int, new_below: bool) -> None:
    """A VMA was cut in two: ``slot``, and ``new``, which is not marked yet."""
    upper = new
    if new_below:
        exchange(state, slot, new)
        upper = slot
    space, start = state.vma[upper, V_SPACE], state.vma[upper, V_START]
    at = _home(state, space, start)
    if state.homes[at, H_START] == start and state.homes[at, H_SPACE] == space:
        state.homes[at, H_START] = 0
        _rename(state, upper, state.homes[at, H_LOCK])


@borrowing_helper
def rest_keeps(state: Core, going: int, rest: int) -> None:
    """``rest`` was cut from above ``going``, which is unmapped with all that is below it."""
    if state.vma[rest, V_LOCK] == state.vma[rest, V_UID]:  # has none of its own
        exchange(state, going, rest)
