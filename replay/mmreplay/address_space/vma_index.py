"""Ordered index of the VMAs of each address space, compiled.

Two levels: an address space has a *directory* (one contiguous run of entries, ascending by
address) of *leaves*, each an ascending run of up to ``FAN`` VMAs.  A lookup is two binary
searches; an insert moves at most ``FAN`` entries, and the directory only when a leaf splits.
Neighbours are found by a linked list.  The largest gap per leaf is kept lazily for the kernel's
search for unmapped room.
"""

from __future__ import annotations

from typing import Any

from mmreplay.address_space.vma_state import (
    D_KEY,
    D_LEAF,
    FAN,
    L_GAP,
    L_LEN,
    L_NEXT,
    S_DIR,
    S_DIR_CAP,
    S_DIR_LEN,
    S_FIRST,
    S_HINT,
    S_LAST,
    S_VMAS,
    V_END,
    V_FLAGS,
    V_LEAF_OF,
    V_LOCK,
    V_MARKED,
    V_NEXT,
    V_PREV,
    V_SPACE,
    V_START,
    V_UID,
    Core,
    Info,
    Num,
)
from mmreplay.jit import borrowing_helper, inlined_helper

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


@borrowing_helper
def has_room(state: Core, space: int, vmas: int) -> bool:
    """Whether ``vmas`` more VMAs of ``space`` fit into the state whatever happens."""
    numbers = state.numbers
    leaves = vmas // (_FAN // 2) + 3
    entries = state.spaces[space, S_DIR_LEN] + leaves
    if numbers[_SLOTS_FREE] < vmas or numbers[_LEAVES_FREE] < leaves:
        return False
    if len(state.effects) < vmas + 16:
        return False
    if entries > state.spaces[space, S_DIR_CAP]:
        return bool(numbers[_DIR_USED] + 2 * entries + 16 <= len(state.directory))
    return True


@borrowing_helper
def reserve_directory(state: Core, space: int, vmas: int) -> None:
    """Move the directory of ``space`` where there is room; ``has_room`` must have said yes."""
    entries = state.spaces[space, S_DIR_LEN] + vmas // (_FAN // 2) + 3
    if entries <= state.spaces[space, S_DIR_CAP]:
        return
    base = state.numbers[_DIR_USED]
    old = state.spaces[space, S_DIR]
    for k in range(state.spaces[space, S_DIR_LEN]):
        state.directory[base + k, D_KEY] = state.directory[old + k, D_KEY]
        state.directory[base + k, D_LEAF] = state.directory[old + k, D_LEAF]
    capacity = 2 * entries + 16
    state.spaces[space, S_DIR] = base
    state.spaces[space, S_DIR_CAP] = capacity
    state.numbers[_DIR_USED] = base + capacity


@borrowing_helper
def new_slot(state: Core) -> int:
    """A free slot with a fresh vma id."""
    numbers = state.numbers
    slot = numbers[_FREE_SLOT]
    if slot >= 0:
        numbers[_FREE_SLOT] = state.vma[slot, V_NEXT]
    else:
        slot = numbers[_SLOTS_USED]
        numbers[_SLOTS_USED] += 1
    numbers[_SLOTS_FREE] -= 1
    state.vma[slot, V_UID] = state.vma[slot, V_LOCK] = numbers[_NEXT_UID]
    numbers[_NEXT_UID] += 1
    state.vma[slot, V_MARKED] = 0
    return int(slot)


@borrowing_helper
def _new_leaf(state: Core) -> int:
    numbers = state.numbers
    leaf = numbers[_FREE_LEAF]
    if leaf >= 0:
        numbers[_FREE_LEAF] = state.leaf[leaf, L_NEXT]
    else:
        leaf = numbers[_LEAVES_USED]
        numbers[_LEAVES_USED] += 1
    numbers[_LEAVES_FREE] -= 1
    state.leaf[leaf, L_LEN] = 0
    state.leaf[leaf, L_GAP] = -1
    return int(leaf)


@borrowing_helper
def _dir_find(state: Core, space: int, address: int) -> int:
    """Last directory entry whose key is <= address (0 where all are greater)."""
    base = state.spaces[space, S_DIR]
    low = 0
    high = state.spaces[space, S_DIR_LEN]
    keys = state.directory
    while high - low > 1:
        middle = (low + high) >> 1
        if keys[base + middle, D_KEY] <= address:
            low = middle
        else:
            high = middle
    return int(base + low)


@borrowing_helper
def _leaf_rank(state: Core, leaf: int, address: int) -> int:
    """Number of entries of the leaf with start <= address."""
    low = 0
    high = state.leaf[leaf, L_LEN]
    starts = state.leaf_key
    while low < high:
        middle = (low + high) >> 1
        if starts[leaf, middle] <= address:
            low = middle + 1
        else:
            high = middle
    return int(low)


@inlined_helper
def find(state: Core, space: int, address: int) -> int:
    """Slot of the first VMA that ends above ``address`` (the kernel's find_vma), -1 none."""
    hint = state.spaces[space, S_HINT]
    if hint >= 0 and state.vma[hint, V_START] <= address < state.vma[hint, V_END]:
        return int(hint)
    return int(_search(state, space, address))


@borrowing_helper
def _search(state: Core, space: int, address: int) -> int:
    if state.spaces[space, S_FIRST] < 0:
        return -1
    leaf = state.directory[_dir_find(state, space, address), D_LEAF]
    rank = _leaf_rank(state, leaf, address)
    if rank == 0:
        return int(state.leaf_slot[leaf, 0])
    slot = state.leaf_slot[leaf, rank - 1]
    if address < state.vma[slot, V_END]:
        state.spaces[space, S_HINT] = slot
        return int(slot)
    return int(state.vma[slot, V_NEXT])


@borrowing_helper
def _dirty(state: Core, slot: int) -> None:
    if slot >= 0:
        state.leaf[state.vma[slot, V_LEAF_OF], L_GAP] = -1


@borrowing_helper
def insert_after(state: Core, slot: int, previous: int) -> None:
    """Link a filled slot (start, end, space set) above ``previous`` (-1: it is the lowest)."""
    space = state.vma[slot, V_SPACE]
    start = state.vma[slot, V_START]
    following = state.spaces[space, S_FIRST] if previous < 0 else state.vma[previous, V_NEXT]
    state.vma[slot, V_NEXT] = following
    state.vma[slot, V_PREV] = previous
    if previous < 0:
        state.spaces[space, S_FIRST] = slot
    else:
        state.vma[previous, V_NEXT] = slot
    if following < 0:
        state.spaces[space, S_LAST] = slot
    else:
        state.vma[following, V_PREV] = slot
    state.spaces[space, S_VMAS] += 1

    base = state.spaces[space, S_DIR]
    if state.spaces[space, S_DIR_LEN] == 0:
        leaf = _new_leaf(state)
        state.directory[base, D_KEY] = start
        state.directory[base, D_LEAF] = leaf
        state.spaces[space, S_DIR_LEN] = 1
        entry = base
    elif previous >= 0:
        leaf = state.vma[previous, V_LEAF_OF]
        entry = -1
    else:
        entry = base
        leaf = state.directory[base, D_LEAF]
    if state.leaf[leaf, L_LEN] == _FAN:
        entry = _dir_find(state, space, state.leaf_key[leaf, 0])
        leaf = _split_leaf(state, space, entry, start)
    rank = _leaf_rank(state, leaf, start)
    for k in range(state.leaf[leaf, L_LEN], rank, -1):
        state.leaf_key[leaf, k] = state.leaf_key[leaf, k - 1]
        state.leaf_slot[leaf, k] = state.leaf_slot[leaf, k - 1]
    state.leaf_key[leaf, rank] = start
    state.leaf_slot[leaf, rank] = slot
    state.leaf[leaf, L_LEN] += 1
    state.vma[slot, V_LEAF_OF] = leaf
    if rank == 0:  # only ever in the first leaf of the space
        state.directory[base, D_KEY] = start
    state.leaf[leaf, L_GAP] = -1
    _dirty(state, following)


@borrowing_helper
def _split_leaf(state: Core, space: int, entry: int, start: int) -> int:
    """Make two leaves of a full one; returns the one that ``start`` belongs to."""
    leaf = state.directory[entry, D_LEAF]
    # Ascending and descending fills are common: leave the side that is not filled nearly full.
    if start > state.leaf_key[leaf, _FAN - 1]:
        keep = _FAN - 4
    elif start < state.leaf_key[leaf, 0]:
        keep = 4
    else:
        keep = _FAN // 2
    upper = _new_leaf(state)
    for k in range(keep, _FAN):
        slot = state.leaf_slot[leaf, k]
        state.leaf_key[upper, k - keep] = state.leaf_key[leaf, k]
        state.leaf_slot[upper, k - keep] = slot
        state.vma[slot, V_LEAF_OF] = upper
    state.leaf[upper, L_LEN] = _FAN - keep
    state.leaf[leaf, L_LEN] = keep
    state.leaf[leaf, L_GAP] = -1
    last = state.spaces[space, S_DIR] + state.spaces[space, S_DIR_LEN]
    for k in range(last, entry + 1, -1):
        state.directory[k, D_KEY] = state.directory[k - 1, D_KEY]
        state.directory[k, D_LEAF] = state.directory[k - 1, D_LEAF]
    state.directory[entry + 1, D_KEY] = state.leaf_key[upper, 0]
    state.directory[entry + 1, D_LEAF] = upper
    state.spaces[space, S_DIR_LEN] += 1
    if start > state.leaf_key[upper, 0]:
        return int(upper)
    return int(leaf)


@borrowing_helper
def remove(state: Core, slot: int) -> None:
    """Unlink a VMA and free its slot (its ``uid`` stays readable until the slot is reused)."""
    space = state.vma[slot, V_SPACE]
    leaf = state.vma[slot, V_LEAF_OF]
    rank = _leaf_rank(state, leaf, state.vma[slot, V_START]) - 1
    length = state.leaf[leaf, L_LEN] - 1
    if length == 0 or rank == 0:
        entry = _dir_find(state, space, state.vma[slot, V_START])
    else:
        entry = -1
    for k in range(rank, length):
        state.leaf_key[leaf, k] = state.leaf_key[leaf, k + 1]
        state.leaf_slot[leaf, k] = state.leaf_slot[leaf, k + 1]
    state.leaf[leaf, L_LEN] = length
    state.leaf[leaf, L_GAP] = -1
    if length == 0:
        _drop_leaf(state, space, entry)
    else:
        if rank == 0:
            state.directory[entry, D_KEY] = state.leaf_key[leaf, 0]
        if length < _FAN // 4:
            _join_leaf(state, space, _dir_find(state, space, state.leaf_key[leaf, 0]))

    previous = state.vma[slot, V_PREV]
    following = state.vma[slot, V_NEXT]
    if previous < 0:
        state.spaces[space, S_FIRST] = following
    else:
        state.vma[previous, V_NEXT] = following
    if following < 0:
        state.spaces[space, S_LAST] = previous
    else:
        state.vma[following, V_PREV] = previous
        _dirty(state, following)
    state.spaces[space, S_VMAS] -= 1
    if state.spaces[space, S_HINT] == slot:
        state.spaces[space, S_HINT] = -1
    state.vma[slot, V_NEXT] = state.numbers[_FREE_SLOT]
    state.numbers[_FREE_SLOT] = slot
    state.numbers[_SLOTS_FREE] += 1
    state.vma[slot, V_END] = state.vma[slot, V_START]


@borrowing_helper
def _drop_leaf(state: Core, space: int, entry: int) -> None:
    leaf = state.directory[entry, D_LEAF]
    last = state.spaces[space, S_DIR] + state.spaces[space, S_DIR_LEN] - 1
    for k in range(entry, last):
        state.directory[k, D_KEY] = state.directory[k + 1, D_KEY]
        state.directory[k, D_LEAF] = state.directory[k + 1, D_LEAF]
    state.spaces[space, S_DIR_LEN] -= 1
    state.leaf[leaf, L_NEXT] = state.numbers[_FREE_LEAF]
    state.numbers[_FREE_LEAF] = leaf
    state.numbers[_LEAVES_FREE] += 1


@borrowing_helper
def _join_leaf(state: Core, space: int, entry: int) -> None:
    """Append the next leaf to this one where both together fill half a leaf at most."""
    if entry + 1 >= state.spaces[space, S_DIR] + state.spaces[space, S_DIR_LEN]:
        return
    leaf = state.directory[entry, D_LEAF]
    upper = state.directory[entry + 1, D_LEAF]
    length = state.leaf[leaf, L_LEN]
    if length + state.leaf[upper, L_LEN] > _FAN // 2:
        return
    for k in range(state.leaf[upper, L_LEN]):
        slot = state.leaf_slot[upper, k]
        state.leaf_key[leaf, length + k] = state.leaf_key[upper, k]
        state.leaf_slot[leaf, length + k] = slot
        state.vma[slot, V_LEAF_OF] = leaf
    state.leaf[leaf, L_LEN] = length + state.leaf[upper, L_LEN]
    state.leaf[leaf, L_GAP] = -1
    _drop_leaf(state, space, entry + 1)


@borrowing_helper
def set_start(state: Core, slot: int, start: int) -> None:
    """Move the start of a VMA within the room between its neighbours."""
    leaf = state.vma[slot, V_LEAF_OF]
    rank = _leaf_rank(state, leaf, state.vma[slot, V_START]) - 1
    if rank == 0:
        space = state.vma[slot, V_SPACE]
        state.directory[_dir_find(state, space, state.vma[slot, V_START]), D_KEY] = start
    state.leaf_key[leaf, rank] = start
    state.vma[slot, V_START] = start
    state.leaf[leaf, L_GAP] = -1


@borrowing_helper
def set_end(state: Core, slot: int, end: int) -> None:
    """Move the end of a VMA within the room above it."""
    state.vma[slot, V_END] = end
    _dirty(state, state.vma[slot, V_NEXT])


@borrowing_helper
def clear_space(state: Core, space: int) -> None:
    """Remove every VMA of an address space."""
    base = state.spaces[space, S_DIR]
    for k in range(state.spaces[space, S_DIR_LEN]):
        leaf = state.directory[base + k, D_LEAF]
        state.leaf[leaf, L_NEXT] = state.numbers[_FREE_LEAF]
        state.numbers[_FREE_LEAF] = leaf
        state.numbers[_LEAVES_FREE] += 1
    state.spaces[space, S_DIR_LEN] = 0
    slot = state.spaces[space, S_FIRST]
    while slot >= 0:
        following = state.vma[slot, V_NEXT]
        state.vma[slot, V_END] = state.vma[slot, V_START]
        state.vma[slot, V_NEXT] = state.numbers[_FREE_SLOT]
        state.numbers[_FREE_SLOT] = slot
        state.numbers[_SLOTS_FREE] += 1
        slot = following
    state.spaces[space, S_FIRST] = -1
    state.spaces[space, S_LAST] = -1
    state.spaces[space, S_HINT] = -1
    state.spaces[space, S_VMAS] = 0


@borrowing_helper
def _gap_start(state: Core, slot: int, guard: int, grows_down: int) -> int:
    """Lowest address that the stack guard of a VMA keeps free (vm_start_gap)."""
    start = state.vma[slot, V_START]
    if state.vma[slot, V_FLAGS] & grows_down:
        return int(max(start - guard, 0))
    return int(start)


@borrowing_helper
def _leaf_gap(state: Core, leaf: int) -> int:
    """Largest free gap directly below one of the leaf's VMAs (guards ignored), kept lazily."""
    known = state.leaf[leaf, L_GAP]
    if known >= 0:
        return int(known)
    largest = 0
    for k in range(state.leaf[leaf, L_LEN]):
        slot = state.leaf_slot[leaf, k]
        previous = state.vma[slot, V_PREV]
        low = 0 if previous < 0 else state.vma[previous, V_END]
        largest = max(largest, state.vma[slot, V_START] - low)
    state.leaf[leaf, L_GAP] = largest
    return int(largest)


@borrowing_helper
def search_down(
    state: Core, space: int, length: int, low: int, high: int, guard: int, grows_down: int
) -> int:
    """Highest address of ``length`` free bytes within [low, high); -1 none.

    mm/vma.c:unmapped_area_topdown@6.18 without alignment; the guard of a GROWSDOWN VMA stays free.
    """
    base = state.spaces[space, S_DIR]
    entries = state.spaces[space, S_DIR_LEN]
    # The gap above the highest VMA below ``high``.
    slot = find(state, space, high - 1) if entries else -1
    top = high
    if slot >= 0:
        top = min(high, _gap_start(state, slot, guard, grows_down))
        below = state.vma[slot, V_PREV]
    else:
        below = state.spaces[space, S_LAST]
    floor = low if below < 0 else max(low, state.vma[below, V_END])
    if top - floor >= length:
        return int(top - length)
    if below < 0:
        return -1
    entry = _dir_find(state, space, state.vma[below, V_START])
    first = True
    while entry >= base:
        leaf = state.directory[entry, D_LEAF]
        if _leaf_gap(state, leaf) >= length:
            if first:
                rank = _leaf_rank(state, leaf, state.vma[below, V_START]) - 1
            else:
                rank = state.leaf[leaf, L_LEN] - 1
            while rank >= 0:
                slot = state.leaf_slot[leaf, rank]
                previous = state.vma[slot, V_PREV]
                floor = low if previous < 0 else max(low, state.vma[previous, V_END])
                top = min(high, _gap_start(state, slot, guard, grows_down))
                if top - floor >= length:
                    return int(top - length)
                if top <= low:
                    return -1
                rank -= 1
        first = False
        entry -= 1
    return -1


def check_index(state: Any) -> None:
    """Raise AssertionError where the index and the linked lists disagree (for tests)."""
    state = getattr(state, "core", state)
    for space in range(len(state.spaces)):
        by_list: list[int] = []
        slot, previous = int(state.spaces[space, S_FIRST]), -1
        while slot >= 0:
            assert int(state.vma[slot, V_PREV]) == previous, "prev_slot"
            assert int(state.vma[slot, V_START]) < int(state.vma[slot, V_END]), "empty VMA"
            if previous >= 0:
                assert int(state.vma[previous, V_END]) <= int(state.vma[slot, V_START]), "overlap"
            by_list.append(slot)
            slot, previous = int(state.vma[slot, V_NEXT]), slot
        assert int(state.spaces[space, S_LAST]) == previous, "space_last"
        by_leaf: list[Any] = []
        base = int(state.spaces[space, S_DIR])
        for k in range(int(state.spaces[space, S_DIR_LEN])):
            leaf = int(state.directory[base + k, D_LEAF])
            length = int(state.leaf[leaf, L_LEN])
            assert length > 0, "empty leaf"
            assert int(state.directory[base + k, D_KEY]) == int(state.leaf_key[leaf, 0]), "dir_key"
            for i in range(length):
                slot = int(state.leaf_slot[leaf, i])
                assert int(state.leaf_key[leaf, i]) == int(state.vma[slot, V_START]), "leaf_start"
                assert int(state.vma[slot, V_LEAF_OF]) == leaf, "leaf_of"
                by_leaf.append(slot)
        assert by_leaf == by_list, "order"
        assert len(by_list) == int(state.spaces[space, S_VMAS]), "space_vmas"
