"""Ordered index of the VMAs of each address space, compiled.

Two levels: an address space has a *directory* (one contiguous run of entries, ascending by
address) of *leaves*, each an ascending run of up to ``FAN`` VMAs.  A lookup is two binary
searches; an insert moves at most ``FAN`` entries, and the directory only when a leaf splits.
Neighbours are found by a linked list.  The largest gap per leaf is kept lazily for the kernel's
search for unmapped room.
"""

from __future__ import annotations

from typing import Any

from mmreplay.address_space.vma_state import FAN, Info, MapState, Num
from mmreplay.jit import njit

# Plain integers: numba freezes module globals.
_FAN = FAN
_FREE_SLOT = int(Num.FREE_SLOT)
_SLOTS_USED = int(Num.SLOTS_USED)
_SLOTS_FREE = int(Num.SLOTS_FREE)
_FREE_LEAF = int(Num.FREE_LEAF)
_LEAVES_USED = int(Num.LEAVES_USED)
_LEAVES_FREE = int(Num.LEAVES_FREE)
_DIR_USED = int(Num.DIR_USED)
_NEXT_UID = int(Num.NEXT_UID)
_N_INFO = int(Info.N)
_TOP = (1 << 63) - 1


@njit
def has_room(state: MapState, space: int, vmas: int) -> bool:
    """Whether ``vmas`` more VMAs of ``space`` fit into the state whatever happens."""
    numbers = state.numbers
    leaves = vmas // (_FAN // 2) + 3
    entries = state.space_dir_len[space] + leaves
    if numbers[_SLOTS_FREE] < vmas or numbers[_LEAVES_FREE] < leaves:
        return False
    if len(state.effect_uid) < vmas + 16:
        return False
    if entries > state.space_dir_cap[space]:
        return bool(numbers[_DIR_USED] + 2 * entries + 16 <= len(state.dir_key))
    return True


@njit
def reserve_directory(state: MapState, space: int, vmas: int) -> None:
    """Move the directory of ``space`` where there is room; ``has_room`` must have said yes."""
    entries = state.space_dir_len[space] + vmas // (_FAN // 2) + 3
    if entries <= state.space_dir_cap[space]:
        return
    base = state.numbers[_DIR_USED]
    old = state.space_dir[space]
    for k in range(state.space_dir_len[space]):
        state.dir_key[base + k] = state.dir_key[old + k]
        state.dir_leaf[base + k] = state.dir_leaf[old + k]
    capacity = 2 * entries + 16
    state.space_dir[space] = base
    state.space_dir_cap[space] = capacity
    state.numbers[_DIR_USED] = base + capacity


@njit
def new_slot(state: MapState) -> int:
    """A free slot with a fresh vma id."""
    numbers = state.numbers
    slot = numbers[_FREE_SLOT]
    if slot >= 0:
        numbers[_FREE_SLOT] = state.next_slot[slot]
    else:
        slot = numbers[_SLOTS_USED]
        numbers[_SLOTS_USED] += 1
    numbers[_SLOTS_FREE] -= 1
    state.uid[slot] = numbers[_NEXT_UID]
    numbers[_NEXT_UID] += 1
    state.marked[slot] = 0
    return int(slot)


@njit
def _new_leaf(state: MapState) -> int:
    numbers = state.numbers
    leaf = numbers[_FREE_LEAF]
    if leaf >= 0:
        numbers[_FREE_LEAF] = state.leaf_next[leaf]
    else:
        leaf = numbers[_LEAVES_USED]
        numbers[_LEAVES_USED] += 1
    numbers[_LEAVES_FREE] -= 1
    state.leaf_len[leaf] = 0
    state.leaf_gap[leaf] = -1
    return int(leaf)


@njit
def _dir_find(state: MapState, space: int, address: int) -> int:
    """Last directory entry whose key is <= address (0 where all are greater)."""
    base = state.space_dir[space]
    low = 0
    high = state.space_dir_len[space]
    keys = state.dir_key
    while high - low > 1:
        middle = (low + high) >> 1
        if keys[base + middle] <= address:
            low = middle
        else:
            high = middle
    return int(base + low)


@njit
def _leaf_rank(state: MapState, leaf: int, address: int) -> int:
    """Number of entries of the leaf with start <= address."""
    low = 0
    high = state.leaf_len[leaf]
    starts = state.leaf_start
    while low < high:
        middle = (low + high) >> 1
        if starts[leaf, middle] <= address:
            low = middle + 1
        else:
            high = middle
    return int(low)


@njit
def find(state: MapState, space: int, address: int) -> int:
    """Slot of the first VMA that ends above ``address`` (the kernel's find_vma), -1 none."""
    hint = state.space_hint[space]
    if hint >= 0 and state.start[hint] <= address < state.end[hint]:
        return int(hint)
    if state.space_first[space] < 0:
        return -1
    leaf = state.dir_leaf[_dir_find(state, space, address)]
    rank = _leaf_rank(state, leaf, address)
    if rank == 0:
        return int(state.leaf_slot[leaf, 0])
    slot = state.leaf_slot[leaf, rank - 1]
    if address < state.end[slot]:
        state.space_hint[space] = slot
        return int(slot)
    return int(state.next_slot[slot])


@njit
def _dirty(state: MapState, slot: int) -> None:
    if slot >= 0:
        state.leaf_gap[state.leaf_of[slot]] = -1


@njit
def insert_after(state: MapState, slot: int, previous: int) -> None:
    """Link a filled slot (start, end, space set) above ``previous`` (-1: it is the lowest)."""
    space = state.space[slot]
    start = state.start[slot]
    following = state.space_first[space] if previous < 0 else state.next_slot[previous]
    state.next_slot[slot] = following
    state.prev_slot[slot] = previous
    if previous < 0:
        state.space_first[space] = slot
    else:
        state.next_slot[previous] = slot
    if following < 0:
        state.space_last[space] = slot
    else:
        state.prev_slot[following] = slot
    state.space_vmas[space] += 1

    base = state.space_dir[space]
    if state.space_dir_len[space] == 0:
        leaf = _new_leaf(state)
        state.dir_key[base] = start
        state.dir_leaf[base] = leaf
        state.space_dir_len[space] = 1
        entry = base
    elif previous >= 0:
        leaf = state.leaf_of[previous]
        entry = -1
    else:
        entry = base
        leaf = state.dir_leaf[base]
    if state.leaf_len[leaf] == _FAN:
        entry = _dir_find(state, space, state.leaf_start[leaf, 0])
        leaf = _split_leaf(state, space, entry, start)
    rank = _leaf_rank(state, leaf, start)
    for k in range(state.leaf_len[leaf], rank, -1):
        state.leaf_start[leaf, k] = state.leaf_start[leaf, k - 1]
        state.leaf_slot[leaf, k] = state.leaf_slot[leaf, k - 1]
    state.leaf_start[leaf, rank] = start
    state.leaf_slot[leaf, rank] = slot
    state.leaf_len[leaf] += 1
    state.leaf_of[slot] = leaf
    if rank == 0:  # only ever in the first leaf of the space
        state.dir_key[base] = start
    state.leaf_gap[leaf] = -1
    _dirty(state, following)


@njit
def _split_leaf(state: MapState, space: int, entry: int, start: int) -> int:
    """Make two leaves of a full one; returns the one that ``start`` belongs to."""
    leaf = state.dir_leaf[entry]
    # Ascending and descending fills are common: leave the side that is not filled nearly full.
    if start > state.leaf_start[leaf, _FAN - 1]:
        keep = _FAN - 4
    elif start < state.leaf_start[leaf, 0]:
        keep = 4
    else:
        keep = _FAN // 2
    upper = _new_leaf(state)
    for k in range(keep, _FAN):
        slot = state.leaf_slot[leaf, k]
        state.leaf_start[upper, k - keep] = state.leaf_start[leaf, k]
        state.leaf_slot[upper, k - keep] = slot
        state.leaf_of[slot] = upper
    state.leaf_len[upper] = _FAN - keep
    state.leaf_len[leaf] = keep
    state.leaf_gap[leaf] = -1
    last = state.space_dir[space] + state.space_dir_len[space]
    for k in range(last, entry + 1, -1):
        state.dir_key[k] = state.dir_key[k - 1]
        state.dir_leaf[k] = state.dir_leaf[k - 1]
    state.dir_key[entry + 1] = state.leaf_start[upper, 0]
    state.dir_leaf[entry + 1] = upper
    state.space_dir_len[space] += 1
    if start > state.leaf_start[upper, 0]:
        return upper
    return int(leaf)


@njit
def remove(state: MapState, slot: int) -> None:
    """Unlink a VMA and free its slot (its ``uid`` stays readable until the slot is reused)."""
    space = state.space[slot]
    leaf = state.leaf_of[slot]
    rank = _leaf_rank(state, leaf, state.start[slot]) - 1
    length = state.leaf_len[leaf] - 1
    if length == 0 or rank == 0:
        entry = _dir_find(state, space, state.start[slot])
    else:
        entry = -1
    for k in range(rank, length):
        state.leaf_start[leaf, k] = state.leaf_start[leaf, k + 1]
        state.leaf_slot[leaf, k] = state.leaf_slot[leaf, k + 1]
    state.leaf_len[leaf] = length
    state.leaf_gap[leaf] = -1
    if length == 0:
        _drop_leaf(state, space, entry)
    else:
        if rank == 0:
            state.dir_key[entry] = state.leaf_start[leaf, 0]
        if length < _FAN // 4:
            _join_leaf(state, space, _dir_find(state, space, state.leaf_start[leaf, 0]))

    previous = state.prev_slot[slot]
    following = state.next_slot[slot]
    if previous < 0:
        state.space_first[space] = following
    else:
        state.next_slot[previous] = following
    if following < 0:
        state.space_last[space] = previous
    else:
        state.prev_slot[following] = previous
        _dirty(state, following)
    state.space_vmas[space] -= 1
    if state.space_hint[space] == slot:
        state.space_hint[space] = -1
    state.next_slot[slot] = state.numbers[_FREE_SLOT]
    state.numbers[_FREE_SLOT] = slot
    state.numbers[_SLOTS_FREE] += 1
    state.end[slot] = state.start[slot]


@njit
def _drop_leaf(state: MapState, space: int, entry: int) -> None:
    leaf = state.dir_leaf[entry]
    last = state.space_dir[space] + state.space_dir_len[space] - 1
    for k in range(entry, last):
        state.dir_key[k] = state.dir_key[k + 1]
        state.dir_leaf[k] = state.dir_leaf[k + 1]
    state.space_dir_len[space] -= 1
    state.leaf_next[leaf] = state.numbers[_FREE_LEAF]
    state.numbers[_FREE_LEAF] = leaf
    state.numbers[_LEAVES_FREE] += 1


@njit
def _join_leaf(state: MapState, space: int, entry: int) -> None:
    """Append the next leaf to this one where both together fill half a leaf at most."""
    if entry + 1 >= state.space_dir[space] + state.space_dir_len[space]:
        return
    leaf = state.dir_leaf[entry]
    upper = state.dir_leaf[entry + 1]
    length = state.leaf_len[leaf]
    if length + state.leaf_len[upper] > _FAN // 2:
        return
    for k in range(state.leaf_len[upper]):
        slot = state.leaf_slot[upper, k]
        state.leaf_start[leaf, length + k] = state.leaf_start[upper, k]
        state.leaf_slot[leaf, length + k] = slot
        state.leaf_of[slot] = leaf
    state.leaf_len[leaf] = length + state.leaf_len[upper]
    state.leaf_gap[leaf] = -1
    _drop_leaf(state, space, entry + 1)


@njit
def set_start(state: MapState, slot: int, start: int) -> None:
    """Move the start of a VMA within the room between its neighbours."""
    leaf = state.leaf_of[slot]
    rank = _leaf_rank(state, leaf, state.start[slot]) - 1
    if rank == 0:
        space = state.space[slot]
        state.dir_key[_dir_find(state, space, state.start[slot])] = start
    state.leaf_start[leaf, rank] = start
    state.start[slot] = start
    state.leaf_gap[leaf] = -1


@njit
def set_end(state: MapState, slot: int, end: int) -> None:
    """Move the end of a VMA within the room above it."""
    state.end[slot] = end
    _dirty(state, state.next_slot[slot])


@njit
def clear_space(state: MapState, space: int) -> None:
    """Remove every VMA of an address space."""
    base = state.space_dir[space]
    for k in range(state.space_dir_len[space]):
        leaf = state.dir_leaf[base + k]
        state.leaf_next[leaf] = state.numbers[_FREE_LEAF]
        state.numbers[_FREE_LEAF] = leaf
        state.numbers[_LEAVES_FREE] += 1
    state.space_dir_len[space] = 0
    slot = state.space_first[space]
    while slot >= 0:
        following = state.next_slot[slot]
        state.end[slot] = state.start[slot]
        state.next_slot[slot] = state.numbers[_FREE_SLOT]
        state.numbers[_FREE_SLOT] = slot
        state.numbers[_SLOTS_FREE] += 1
        slot = following
    state.space_first[space] = -1
    state.space_last[space] = -1
    state.space_hint[space] = -1
    state.space_vmas[space] = 0


@njit
def _gap_start(state: MapState, slot: int, guard: int, grows_down: int) -> int:
    """Lowest address that the stack guard of a VMA keeps free (vm_start_gap)."""
    start = state.start[slot]
    if state.flags[slot] & grows_down:
        return int(max(start - guard, 0))
    return int(start)


@njit
def _leaf_gap(state: MapState, leaf: int) -> int:
    """Largest free gap directly below one of the leaf's VMAs (guards ignored), kept lazily."""
    known = state.leaf_gap[leaf]
    if known >= 0:
        return int(known)
    largest = 0
    for k in range(state.leaf_len[leaf]):
        slot = state.leaf_slot[leaf, k]
        previous = state.prev_slot[slot]
        low = 0 if previous < 0 else state.end[previous]
        largest = max(largest, state.start[slot] - low)
    state.leaf_gap[leaf] = largest
    return int(largest)


@njit
def search_down(
    state: MapState, space: int, length: int, low: int, high: int, guard: int, grows_down: int
) -> int:
    """Highest address of ``length`` free bytes within [low, high); -1 none.

    mm/vma.c:unmapped_area_topdown@6.18 without alignment; the guard of a GROWSDOWN VMA stays free.
    """
    base = state.space_dir[space]
    entries = state.space_dir_len[space]
    # The gap above the highest VMA below ``high``.
    slot = find(state, space, high - 1) if entries else -1
    top = high
    if slot >= 0:
        top = min(high, _gap_start(state, slot, guard, grows_down))
        below = state.prev_slot[slot]
    else:
        below = state.space_last[space]
    floor = low if below < 0 else max(low, state.end[below])
    if top - floor >= length:
        return int(top - length)
    if below < 0:
        return -1
    entry = _dir_find(state, space, state.start[below])
    first = True
    while entry >= base:
        leaf = state.dir_leaf[entry]
        if _leaf_gap(state, leaf) >= length:
            if first:
                rank = _leaf_rank(state, leaf, state.start[below]) - 1
            else:
                rank = state.leaf_len[leaf] - 1
            while rank >= 0:
                slot = state.leaf_slot[leaf, rank]
                previous = state.prev_slot[slot]
                floor = low if previous < 0 else max(low, state.end[previous])
                top = min(high, _gap_start(state, slot, guard, grows_down))
                if top - floor >= length:
                    return int(top - length)
                if top <= low:
                    return -1
                rank -= 1
        first = False
        entry -= 1
    return -1


def check_index(state: MapState) -> None:
    """Raise AssertionError where the index and the linked lists disagree (for tests)."""
    for space in range(len(state.space_dir)):
        by_list: list[int] = []
        slot, previous = int(state.space_first[space]), -1
        while slot >= 0:
            assert int(state.prev_slot[slot]) == previous, "prev_slot"
            assert int(state.start[slot]) < int(state.end[slot]), "empty VMA"
            if previous >= 0:
                assert int(state.end[previous]) <= int(state.start[slot]), "overlap"
            by_list.append(slot)
            slot, previous = int(state.next_slot[slot]), slot
        assert int(state.space_last[space]) == previous, "space_last"
        by_leaf: list[Any] = []
        base = int(state.space_dir[space])
        for k in range(int(state.space_dir_len[space])):
            leaf = int(state.dir_leaf[base + k])
            length = int(state.leaf_len[leaf])
            assert length > 0, "empty leaf"
            assert int(state.dir_key[base + k]) == int(state.leaf_start[leaf, 0]), "dir_key"
            for i in range(length):
                slot = int(state.leaf_slot[leaf, i])
                assert int(state.leaf_start[leaf, i]) == int(state.start[slot]), "leaf_start"
                assert int(state.leaf_of[slot]) == leaf, "leaf_of"
                by_leaf.append(slot)
        assert by_leaf == by_list, "order"
        assert len(by_list) == int(state.space_vmas[space]), "space_vmas"
