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
from mmreplay.address_space.vma_locks import part, remember, rest_keeps, take_over
from mmreplay.address_space.vma_state import (
    E_LOCK,
    E_ROLE,
    E_SLOT,
    E_UID,
    I64,
    INHERITED,
    LISTED,
    V_ANON,
    V_CHAIN,
    V_END,
    V_FILE,
    V_FLAGS,
    V_LOCK,
    V_MARK_AT,
    V_MARKED,
    V_NEXT,
    V_ORIGIN,
    V_PGOFF,
    V_PREV,
    V_SPACE,
    V_START,
    V_UID,
    Core,
    Info,
    Num,
    Vm,
)
from mmreplay.jit import borrowing_helper

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
_I_CONFLICTS = int(Info.CONFLICTS)
_I_LISTED = int(Info.LISTED)
_I_INHERITED = int(Info.INHERITED)
_N_CONFLICTS = int(Num.CONFLICTS)
_ANON_MERGE = int(Rule.ANON_MERGE)
_KEEPS_ANON = int(Rule.COPY_KEEPS_ANON_VMA)

_ACCESS = int(Vm.READ | Vm.WRITE | Vm.EXEC)
_WRITE = int(Vm.WRITE)
_SHARED = int(Vm.SHARED)
_SPECIAL = int(Vm.SPECIAL)
_HUGETLB = int(Vm.HUGETLB)
_SYSV = int(Vm.SYSV)
_SEALED = int(Vm.SEALED)
_UNKNOWN = int(Vm.UNKNOWN)
_LOCKONFAULT = int(Vm.LOCKONFAULT)


@borrowing_helper
def mark(state: Core, slot: int, role: int) -> None:
    """vma_start_write: the first mark of an operation counts; REMOVED replaces a role."""
    operation = state.numbers[_OPERATION]
    if state.vma[slot, V_MARKED] == operation:
        at = state.vma[slot, V_MARK_AT]
        if role == REMOVED and at >= 0 and state.effects[at, E_ROLE] != CREATED:
            state.effects[at, E_ROLE] = REMOVED
        return
    state.vma[slot, V_MARKED] = operation
    at = state.info[_EFFECTS]
    if at >= len(state.effects):
        state.numbers[_LOST] += 1
        state.vma[slot, V_MARK_AT] = -1
        return
    state.effects[at, E_UID] = state.vma[slot, V_UID]
    state.effects[at, E_SLOT] = slot
    state.effects[at, E_LOCK] = state.vma[slot, V_LOCK]
    state.effects[at, E_ROLE] = role
    state.vma[slot, V_MARK_AT] = at
    state.info[_EFFECTS] = at + 1


@borrowing_helper
def make(
    state: Core,
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
    state.vma[slot, V_START] = start
    state.vma[slot, V_END] = end
    state.vma[slot, V_FLAGS] = flags
    state.vma[slot, V_PGOFF] = pgoff
    state.vma[slot, V_FILE] = file
    state.vma[slot, V_ANON] = 0
    state.vma[slot, V_CHAIN] = 0
    state.vma[slot, V_SPACE] = space
    state.vma[slot, V_ORIGIN] = 0
    insert_after(state, slot, previous)
    return int(slot)


@borrowing_helper
def split(state: Core, slot: int, address: int, new_below: bool) -> int:
    """Cut a VMA (mm/vma.c:__split_vma); returns the new VMA, which is the lower or upper part."""
    mark(state, slot, SPLITS)
    start = state.vma[slot, V_START]
    end = state.vma[slot, V_END]
    offset = (address - start) >> 12
    space = state.vma[slot, V_SPACE]
    if new_below:
        set_start(state, slot, address)
        new = make(
            state,
            space,
            start,
            address,
            state.vma[slot, V_FLAGS],
            state.vma[slot, V_PGOFF],
            state.vma[slot, V_FILE],
            state.vma[slot, V_PREV],
        )
        state.vma[slot, V_PGOFF] += offset
    else:
        set_end(state, slot, address)
        new = make(
            state,
            space,
            address,
            end,
            state.vma[slot, V_FLAGS],
            state.vma[slot, V_PGOFF] + offset,
            state.vma[slot, V_FILE],
            slot,
        )
    state.vma[new, V_ANON] = state.vma[slot, V_ANON]
    state.vma[new, V_CHAIN] = state.vma[slot, V_CHAIN]
    state.vma[new, V_ORIGIN] = state.vma[slot, V_ORIGIN]
    part(state, slot, new, new_below)
    mark(state, new, CREATED)
    state.info[_I_SPLITS] += 1
    return int(new)


@borrowing_helper
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


@borrowing_helper
def _fits_after(
    state: Core,
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
    if previous < 0 or state.vma[previous, V_END] != start or state.vma[previous, V_FLAGS] != flags:
        return False
    if state.vma[previous, V_FILE] != file:
        return False
    if state.vma[previous, V_PGOFF] + ((start - state.vma[previous, V_START]) >> 12) != pgoff:
        return False
    return bool(
        _anon_fits(
            rules[_ANON_MERGE],
            state.vma[previous, V_ANON],
            state.vma[previous, V_CHAIN],
            anon,
            chain,
        )
    )


@borrowing_helper
def _fits_before(
    state: Core,
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
    if (
        following < 0
        or state.vma[following, V_START] != end
        or state.vma[following, V_FLAGS] != flags
    ):
        return False
    if state.vma[following, V_FILE] != file or state.vma[following, V_PGOFF] != pgoff_end:
        return False
    return bool(
        _anon_fits(
            rules[_ANON_MERGE],
            state.vma[following, V_ANON],
            state.vma[following, V_CHAIN],
            anon,
            chain,
        )
    )


@borrowing_helper
def _share_anon(state: Core, target: int, source: int) -> None:
    """dup_anon_vma: a target without an anon_vma gets the source's."""
    if state.vma[target, V_ANON] == 0 and state.vma[source, V_ANON] != 0:
        state.vma[target, V_ANON] = state.vma[source, V_ANON]
        state.vma[target, V_CHAIN] = state.vma[source, V_CHAIN]


@borrowing_helper
def _compatible(state: Core, a: int, b: int) -> bool:
    return bool(
        state.vma[a, V_ANON] == 0
        or state.vma[b, V_ANON] == 0
        or state.vma[a, V_ANON] == state.vma[b, V_ANON]
    )


@borrowing_helper
def merge_new(
    state: Core,
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
    anon = state.vma[source, V_ANON] if source >= 0 else 0
    chain = state.vma[source, V_CHAIN] if source >= 0 else 0
    left = _fits_after(state, rules, previous, start, flags, pgoff, file, anon, chain)
    right = not just_expand and _fits_before(
        state, rules, following, end, flags, pgoff + ((end - start) >> 12), file, anon, chain
    )
    if left and right and not _compatible(state, previous, following):
        right = False
    if not left and not right:
        return -1
    if left and right and state.vma[following, V_FLAGS] & _SYSV:
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
        end = state.vma[following, V_END]
        remember(state, following)
        remove(state, following)
        set_end(state, target, end)
    elif left:
        set_end(state, target, end)
    else:
        state.vma[target, V_PGOFF] = pgoff
        set_start(state, target, start)
    return int(target)


@borrowing_helper
def _merge_existing(state: Core, rules: I64, middle: int, start: int, end: int, flags: int) -> int:
    """Merge part of a VMA that gets other flags (mm/vma.c:vma_merge_existing_range)."""
    at_left = start == state.vma[middle, V_START]
    at_right = end == state.vma[middle, V_END]
    if flags & _SPECIAL or not (at_left or at_right):
        return -1
    previous = state.vma[middle, V_PREV]
    following = state.vma[middle, V_NEXT]
    anon = state.vma[middle, V_ANON]
    chain = state.vma[middle, V_CHAIN]
    file = state.vma[middle, V_FILE]
    pgoff = state.vma[middle, V_PGOFF] + ((start - state.vma[middle, V_START]) >> 12)
    left = at_left and _fits_after(state, rules, previous, start, flags, pgoff, file, anon, chain)
    right = at_right and _fits_before(
        state, rules, following, end, flags, pgoff + ((end - start) >> 12), file, anon, chain
    )
    if left and right and not _compatible(state, previous, following):
        right = False
    if not left and not right:
        return -1
    whole = at_left and at_right
    if whole and state.vma[middle, V_FLAGS] & _SYSV:
        return -1
    if left and right and state.vma[following, V_FLAGS] & _SYSV:
        right = False
    state.info[_I_MERGES] += 1
    mark(state, middle, TARGETS)
    if right:
        mark(state, following, NEIGHBOURS)
    if left:
        mark(state, previous, NEIGHBOURS)
    if left and right:
        if state.vma[following, V_ANON] != 0:
            _share_anon(state, previous, following)
        else:
            _share_anon(state, previous, middle)
        top = state.vma[following, V_END]
        remember(state, following)
        remove(state, following)
        remember(state, middle)
        remove(state, middle)
        set_end(state, previous, top)
        return int(previous)
    if left:
        _share_anon(state, previous, middle)
        if whole:
            remember(state, middle)
            remove(state, middle)
        else:
            state.vma[middle, V_PGOFF] += (end - start) >> 12
            set_start(state, middle, end)
        set_end(state, previous, end)
        return int(previous)
    _share_anon(state, following, middle)
    if whole:
        take_over(state, following, middle)
        remove(state, middle)
    else:
        set_end(state, middle, start)
    state.vma[following, V_PGOFF] = pgoff
    set_start(state, following, start)
    return int(following)


@borrowing_helper
def modify(state: Core, rules: I64, slot: int, start: int, end: int, flags: int) -> int:
    """Give [start, end) of a VMA other flags: merge, else split (mm/vma.c:vma_modify).

    Returns the VMA that holds the range.
    """
    merged = _merge_existing(state, rules, slot, start, end, flags)
    if merged >= 0:
        return int(merged)
    if state.vma[slot, V_START] < start:
        split(state, slot, start, True)
    if state.vma[slot, V_END] > end:
        split(state, slot, end, False)
    mark(state, slot, TARGETS)
    state.vma[slot, V_FLAGS] = flags
    return slot


@borrowing_helper
def unmap(state: Core, space: int, start: int, end: int) -> int:
    """Remove [start, end) (mm/vma.c:vms_gather_munmap_vmas).

    Returns the VMAs removed, or -1 where a sealed VMA forbids it: what was cut by then stays cut.
    """
    first = find(state, space, start)
    if first < 0 or state.vma[first, V_START] >= end:
        return 0
    cut = state.vma[first, V_START] < start
    if cut:
        if state.vma[first, V_FLAGS] & _SEALED:
            return -1
        split(state, first, start, True)
    slot = first
    while slot >= 0 and state.vma[slot, V_START] < end:
        if state.vma[slot, V_FLAGS] & _SEALED:
            return -1
        if state.vma[slot, V_END] > end:
            rest = split(state, slot, end, False)
            if not cut:
                rest_keeps(state, slot, rest)
        mark(state, slot, REMOVED)
        cut = False
        slot = state.vma[slot, V_NEXT]
    removed = 0
    slot = first
    while slot >= 0 and state.vma[slot, V_START] < end:
        following = state.vma[slot, V_NEXT]
        remove(state, slot)
        removed += 1
        slot = following
    return removed


@borrowing_helper
def count_conflicts(state: Core, space: int, start: int, end: int) -> None:
    """VMAs that stand where the trace says that nothing was, by where we know them from."""
    slot = find(state, space, start)
    while slot >= 0 and state.vma[slot, V_START] < end:
        origin = state.vma[slot, V_ORIGIN]
        state.info[_I_CONFLICTS] += 1
        state.numbers[_N_CONFLICTS] += 1
        if origin == LISTED:
            state.info[_I_LISTED] += 1
        elif origin == INHERITED:
            state.info[_I_INHERITED] += 1
        slot = state.vma[slot, V_NEXT]


@borrowing_helper
def absorb(state: Core, space: int, start: int, end: int, flags: int, file: int) -> int:
    """Make one VMA of those in [start, end), without marks: the kernel is known to have merged.

    Returns the lowest, or -1 where there is none, or where they are no parts of a VMA of
    that protection and file.
    """
    first = find(state, space, start)
    slot = first
    while slot >= 0 and state.vma[slot, V_START] < end:
        same = (state.vma[slot, V_FLAGS] ^ flags) & (_ACCESS | _SHARED | _UNKNOWN) == 0
        if (
            not same
            or state.vma[slot, V_FILE] != file
            or state.vma[slot, V_START] < start
            or state.vma[slot, V_END] > end
        ):
            return -1
        slot = state.vma[slot, V_NEXT]
    if first < 0 or state.vma[first, V_START] >= end:
        return -1
    slot = state.vma[first, V_NEXT]
    while slot >= 0 and state.vma[slot, V_START] < end:
        following = state.vma[slot, V_NEXT]
        _share_anon(state, first, slot)
        remove(state, slot)
        slot = following
    state.vma[first, V_PGOFF] -= (state.vma[first, V_START] - start) >> 12
    set_start(state, first, start)
    set_end(state, first, end)
    return int(first)


@borrowing_helper
def forget_guesses(state: Core, space: int, start: int, end: int) -> None:
    """Take [start, end) out of UNKNOWN VMAs, without marks: nothing was there after all."""
    slot = find(state, space, start)
    while slot >= 0 and state.vma[slot, V_START] < end:
        following = state.vma[slot, V_NEXT]
        top = state.vma[slot, V_END]
        if not state.vma[slot, V_FLAGS] & _UNKNOWN:
            pass
        elif state.vma[slot, V_START] < start:
            set_end(state, slot, start)
            if top > end:
                bits = state.vma[slot, V_FLAGS]
                rest = make(state, space, end, top, bits, end >> 12, 0, slot)
                state.vma[rest, V_ANON] = state.vma[slot, V_ANON]
                state.vma[rest, V_CHAIN] = state.vma[slot, V_CHAIN]
        elif top > end:
            state.vma[slot, V_PGOFF] += (end - state.vma[slot, V_START]) >> 12
            set_start(state, slot, end)
        else:
            remove(state, slot)
        slot = following


@borrowing_helper
def _related(state: Core, low: int, high: int) -> bool:
    """anon_vma_compatible: two neighbours that differ at most in their protection."""
    if low < 0 or high < 0 or state.vma[low, V_END] != state.vma[high, V_START]:
        return False
    if state.vma[low, V_FILE] != state.vma[high, V_FILE]:
        return False
    if (state.vma[low, V_FLAGS] ^ state.vma[high, V_FLAGS]) & ~_ACCESS:
        return False
    return bool(
        state.vma[high, V_PGOFF]
        == state.vma[low, V_PGOFF] + ((state.vma[high, V_START] - state.vma[low, V_START]) >> 12)
    )


@borrowing_helper
def prepare_anon(state: Core, slot: int) -> None:
    """anon_vma_prepare: take a mergeable neighbour's anon_vma (next first), else a new one."""
    if state.vma[slot, V_ANON] != 0:
        return
    following = state.vma[slot, V_NEXT]
    previous = state.vma[slot, V_PREV]
    anon = 0
    if (
        following >= 0
        and state.vma[following, V_ANON] != 0
        and state.vma[following, V_CHAIN] == 0
        and _related(state, slot, following)
    ):
        anon = state.vma[following, V_ANON]
    elif (
        previous >= 0
        and state.vma[previous, V_ANON] != 0
        and state.vma[previous, V_CHAIN] == 0
        and _related(state, previous, slot)
    ):
        anon = state.vma[previous, V_ANON]
    else:
        anon = state.numbers[_NEXT_ANON]
        state.numbers[_NEXT_ANON] += 1
    state.vma[slot, V_ANON] = anon
    state.vma[slot, V_CHAIN] = 0
    state.info[_I_ANON_NEW] += 1


@borrowing_helper
def populate_vma(state: Core, slot: int, write: bool) -> None:
    """What populate_vma_page_range leaves behind: an anon_vma where it writes."""
    flags = state.vma[slot, V_FLAGS]
    if flags & _SHARED or flags & _LOCKONFAULT:
        return
    if flags & _SPECIAL and not flags & _HUGETLB:
        return
    if flags & _WRITE if write else flags & _HUGETLB and flags & _ACCESS:
        prepare_anon(state, slot)


@borrowing_helper
def populate(state: Core, space: int, start: int, end: int, strict: bool) -> bool:
    """mm_populate over a range; ``strict`` (mlock): stop where a VMA allows no access, and say so.

    Returns False where it stopped.  Holes are passed over.
    """
    state.info[_I_POPULATES] = 1
    slot = find(state, space, start)
    while slot >= 0 and state.vma[slot, V_START] < end:
        flags = state.vma[slot, V_FLAGS]
        if strict and not flags & (_ACCESS | _LOCKONFAULT | _SPECIAL):
            return False
        populate_vma(state, slot, True)
        slot = state.vma[slot, V_NEXT]
    return True
