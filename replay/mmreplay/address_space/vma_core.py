"""What every operation of the map is made of, compiled: marks, splits, merges, anon_vma.

The order of ``mark`` calls is the order of the kernel's ``vma_start_write`` calls
(mm/vma.c and its callers @6.18; the sets are those of 6.12 and newer).
"""

from __future__ import annotations

from mmreplay.address_space.plan import MarkSet
from mmreplay.address_space.rules import Rule
from mmreplay.address_space.vma_index import (
    find,
    insert_after,
    new_slot,
    remove,
    set_end,
    set_start,
)
from mmreplay.address_space.vma_state import I64, Info, MapState, Num, Vm
from mmreplay.jit import njit

SPLITS = int(MarkSet.SPLITS)
REMOVED = int(MarkSet.REMOVED)
TARGETS = int(MarkSet.TARGETS)
NEIGHBOURS = int(MarkSet.NEIGHBOURS)
CREATED = int(MarkSet.CREATED)

_OPERATION = int(Num.OPERATION)
_NEXT_ANON = int(Num.NEXT_ANON)
_LOST = int(Num.EFFECTS_LOST)
_EFFECTS = int(Info.EFFECTS)
_I_SPLITS = int(Info.SPLITS)
_I_MERGES = int(Info.MERGES)
_I_ANON_NEW = int(Info.ANON_NEW)
_I_POPULATES = int(Info.POPULATES)
_ANON_MERGE = int(Rule.ANON_MERGE)
_KEEPS_ANON = int(Rule.COPY_KEEPS_ANON_VMA)

_ACCESS = int(Vm.READ | Vm.WRITE | Vm.EXEC)
_WRITE = int(Vm.WRITE)
_SHARED = int(Vm.SHARED)
_SPECIAL = int(Vm.SPECIAL)
_HUGETLB = int(Vm.HUGETLB)
_SYSV = int(Vm.SYSV)
_LOCKONFAULT = int(Vm.LOCKONFAULT)


@njit
def mark(state: MapState, slot: int, role: int) -> None:
    """vma_start_write: the first mark of an operation counts; REMOVED replaces a role."""
    operation = state.numbers[_OPERATION]
    if state.marked[slot] == operation:
        at = state.mark_at[slot]
        if role == REMOVED and at >= 0 and state.effect_role[at] != CREATED:
            state.effect_role[at] = REMOVED
        return
    state.marked[slot] = operation
    at = state.info[_EFFECTS]
    if at >= len(state.effect_uid):
        state.numbers[_LOST] += 1
        state.mark_at[slot] = -1
        return
    state.effect_uid[at] = state.uid[slot]
    state.effect_slot[at] = slot
    state.effect_role[at] = role
    state.mark_at[slot] = at
    state.info[_EFFECTS] = at + 1


@njit
def make(
    state: MapState,
    space: int,
    start: int,
    end: int,
    flags: int,
    pgoff: int,
    file: int,
    previous: int,
) -> int:
    """A new VMA above ``previous`` without an anon_vma (unmarked)."""
    slot = new_slot(state)
    state.start[slot] = start
    state.end[slot] = end
    state.flags[slot] = flags
    state.pgoff[slot] = pgoff
    state.file[slot] = file
    state.anon[slot] = 0
    state.chain[slot] = 0
    state.space[slot] = space
    insert_after(state, slot, previous)
    return slot


@njit
def split(state: MapState, slot: int, address: int, new_below: bool) -> int:
    """Cut a VMA (mm/vma.c:__split_vma); returns the new VMA, which is the lower or upper part."""
    mark(state, slot, SPLITS)
    start = state.start[slot]
    end = state.end[slot]
    offset = (address - start) >> 12
    space = state.space[slot]
    if new_below:
        set_start(state, slot, address)
        new = make(
            state,
            space,
            start,
            address,
            state.flags[slot],
            state.pgoff[slot],
            state.file[slot],
            state.prev_slot[slot],
        )
        state.pgoff[slot] += offset
    else:
        set_end(state, slot, address)
        new = make(
            state,
            space,
            address,
            end,
            state.flags[slot],
            state.pgoff[slot] + offset,
            state.file[slot],
            slot,
        )
    state.anon[new] = state.anon[slot]
    state.chain[new] = state.chain[slot]
    mark(state, new, CREATED)
    state.info[_I_SPLITS] += 1
    return new


@njit
def _anon_fits(rule: int, target_anon: int, target_chain: int, anon: int, chain: int) -> bool:
    """Whether a VMA (or new range) with ``anon`` may merge into the target.

    mm/vma.c:is_mergeable_anon_vma.  Rule 0 (to 6.15): one side without an anon_vma is well if the
    target's chain has exactly one entry.  Rule 1 (6.16+): if the side that has one has not
    inherited it over a fork.
    """
    if target_anon == anon:
        return True
    if rule == 0:
        return (anon == 0 or target_anon == 0) and target_anon != 0 and target_chain == 0
    if target_anon == 0:
        return chain == 0
    if anon == 0:
        return target_chain == 0
    return False


@njit
def _fits_after(
    state: MapState,
    rules: I64,
    previous: int,
    start: int,
    flags: int,
    pgoff: int,
    file: int,
    anon: int,
    chain: int,
) -> bool:
    """can_vma_merge_left: the range continues ``previous``."""
    if previous < 0 or state.end[previous] != start or state.flags[previous] != flags:
        return False
    if state.file[previous] != file:
        return False
    if state.pgoff[previous] + ((start - state.start[previous]) >> 12) != pgoff:
        return False
    return bool(
        _anon_fits(rules[_ANON_MERGE], state.anon[previous], state.chain[previous], anon, chain)
    )


@njit
def _fits_before(
    state: MapState,
    rules: I64,
    following: int,
    end: int,
    flags: int,
    pgoff_end: int,
    file: int,
    anon: int,
    chain: int,
) -> bool:
    """can_vma_merge_right: ``following`` continues the range."""
    if following < 0 or state.start[following] != end or state.flags[following] != flags:
        return False
    if state.file[following] != file or state.pgoff[following] != pgoff_end:
        return False
    return bool(
        _anon_fits(rules[_ANON_MERGE], state.anon[following], state.chain[following], anon, chain)
    )


@njit
def _share_anon(state: MapState, target: int, source: int) -> None:
    """dup_anon_vma: a target without an anon_vma gets the source's."""
    if state.anon[target] == 0 and state.anon[source] != 0:
        state.anon[target] = state.anon[source]
        state.chain[target] = state.chain[source]


@njit
def _compatible(state: MapState, a: int, b: int) -> bool:
    return bool(state.anon[a] == 0 or state.anon[b] == 0 or state.anon[a] == state.anon[b])


@njit
def _drop(state: MapState, slot: int) -> None:
    mark(state, slot, REMOVED)
    remove(state, slot)


@njit
def merge_new(
    state: MapState,
    rules: I64,
    previous: int,
    following: int,
    start: int,
    end: int,
    flags: int,
    pgoff: int,
    file: int,
    source: int,
    just_expand: bool,
) -> int:
    """Merge a new range into its neighbours (mm/vma.c:vma_merge_new_range).

    ``source``: the VMA that the range is a copy or an extension of, else -1.  Returns the VMA that
    now covers the range, or -1: nothing merged.
    """
    if flags & _SPECIAL:
        return -1
    anon = state.anon[source] if source >= 0 else 0
    chain = state.chain[source] if source >= 0 else 0
    left = _fits_after(state, rules, previous, start, flags, pgoff, file, anon, chain)
    right = not just_expand and _fits_before(
        state, rules, following, end, flags, pgoff + ((end - start) >> 12), file, anon, chain
    )
    if left and right and not _compatible(state, previous, following):
        right = False
    if not left and not right:
        return -1
    if left and right and state.flags[following] & _SYSV:
        right = False
    state.info[_I_MERGES] += 1
    target = previous if left else following
    mark(state, target, NEIGHBOURS)
    if source >= 0 and rules[_KEEPS_ANON] != 0:
        _share_anon(state, target, source)
    if left and right:
        # A mark of ``following`` that a merge swallows is a neighbour's, not a removal's.
        mark(state, following, NEIGHBOURS)
        _share_anon(state, target, following)
        end = state.end[following]
        remove(state, following)
        set_end(state, target, end)
    elif left:
        set_end(state, target, end)
    else:
        state.pgoff[target] = pgoff
        set_start(state, target, start)
    return int(target)


@njit
def _merge_existing(
    state: MapState, rules: I64, middle: int, start: int, end: int, flags: int
) -> int:
    """Merge part of a VMA that gets other flags (mm/vma.c:vma_merge_existing_range)."""
    at_left = start == state.start[middle]
    at_right = end == state.end[middle]
    if flags & _SPECIAL or not (at_left or at_right):
        return -1
    previous = state.prev_slot[middle]
    following = state.next_slot[middle]
    anon = state.anon[middle]
    chain = state.chain[middle]
    file = state.file[middle]
    pgoff = state.pgoff[middle] + ((start - state.start[middle]) >> 12)
    left = at_left and _fits_after(
        state, rules, previous, start, flags, pgoff, file, anon, chain
    )
    right = at_right and _fits_before(
        state, rules, following, end, flags, pgoff + ((end - start) >> 12), file, anon, chain
    )
    if left and right and not _compatible(state, previous, following):
        right = False
    if not left and not right:
        return -1
    whole = at_left and at_right
    if whole and state.flags[middle] & _SYSV:
        return -1
    if left and right and state.flags[following] & _SYSV:
        right = False
    state.info[_I_MERGES] += 1
    mark(state, middle, TARGETS)
    if right:
        mark(state, following, NEIGHBOURS)
    if left:
        mark(state, previous, NEIGHBOURS)
    if left and right:
        if state.anon[following] != 0:
            _share_anon(state, previous, following)
        else:
            _share_anon(state, previous, middle)
        top = state.end[following]
        remove(state, following)
        remove(state, middle)
        set_end(state, previous, top)
        return int(previous)
    if left:
        _share_anon(state, previous, middle)
        if whole:
            remove(state, middle)
        else:
            state.pgoff[middle] += (end - start) >> 12
            set_start(state, middle, end)
        set_end(state, previous, end)
        return int(previous)
    _share_anon(state, following, middle)
    if whole:
        remove(state, middle)
    else:
        set_end(state, middle, start)
    state.pgoff[following] = pgoff
    set_start(state, following, start)
    return int(following)


@njit
def modify(state: MapState, rules: I64, slot: int, start: int, end: int, flags: int) -> int:
    """Give [start, end) of a VMA other flags: merge, else split (mm/vma.c:vma_modify).

    Returns the VMA that holds the range.
    """
    merged = _merge_existing(state, rules, slot, start, end, flags)
    if merged >= 0:
        return merged
    if state.start[slot] < start:
        split(state, slot, start, True)
    if state.end[slot] > end:
        split(state, slot, end, False)
    mark(state, slot, TARGETS)
    state.flags[slot] = flags
    return slot


@njit
def unmap(state: MapState, space: int, start: int, end: int) -> int:
    """Remove [start, end) (mm/vma.c:vms_gather_munmap_vmas); returns the VMAs removed."""
    slot = find(state, space, start)
    if slot < 0 or state.start[slot] >= end:
        return 0
    if state.start[slot] < start:
        split(state, slot, start, True)
    removed = 0
    while slot >= 0 and state.start[slot] < end:
        if state.end[slot] > end:
            split(state, slot, end, False)
        following = state.next_slot[slot]
        _drop(state, slot)
        removed += 1
        slot = following
    return removed


@njit
def _related(state: MapState, low: int, high: int) -> bool:
    """anon_vma_compatible: two neighbours that differ at most in their protection."""
    if low < 0 or high < 0 or state.end[low] != state.start[high]:
        return False
    if state.file[low] != state.file[high]:
        return False
    if (state.flags[low] ^ state.flags[high]) & ~_ACCESS:
        return False
    return bool(
        state.pgoff[high] == state.pgoff[low] + ((state.start[high] - state.start[low]) >> 12)
    )


@njit
def prepare_anon(state: MapState, slot: int) -> None:
    """anon_vma_prepare: take a mergeable neighbour's anon_vma (next first), else a new one."""
    if state.anon[slot] != 0:
        return
    following = state.next_slot[slot]
    previous = state.prev_slot[slot]
    anon = 0
    if (
        following >= 0
        and state.anon[following] != 0
        and state.chain[following] == 0
        and _related(state, slot, following)
    ):
        anon = state.anon[following]
    elif (
        previous >= 0
        and state.anon[previous] != 0
        and state.chain[previous] == 0
        and _related(state, previous, slot)
    ):
        anon = state.anon[previous]
    else:
        anon = state.numbers[_NEXT_ANON]
        state.numbers[_NEXT_ANON] += 1
    state.anon[slot] = anon
    state.chain[slot] = 0
    state.info[_I_ANON_NEW] += 1


@njit
def populate_vma(state: MapState, slot: int, write: bool) -> None:
    """What populate_vma_page_range leaves behind: an anon_vma where it writes."""
    flags = state.flags[slot]
    if flags & _SHARED or flags & _LOCKONFAULT:
        return
    if flags & _SPECIAL and not flags & _HUGETLB:
        return
    if flags & _WRITE if write else flags & _HUGETLB and flags & _ACCESS:
        prepare_anon(state, slot)


@njit
def populate(state: MapState, space: int, start: int, end: int) -> None:
    """mm_populate over a range: stops at nothing, holes are passed over."""
    state.info[_I_POPULATES] = 1
    slot = find(state, space, start)
    while slot >= 0 and state.start[slot] < end:
        populate_vma(state, slot, True)
        slot = state.next_slot[slot]
