"""Operations that move or copy whole mappings: brk, mremap, fork, the end of an address space.

The same contract as in ``vma_ops``.
"""

from __future__ import annotations

from mmreplay.address_space.vma_abi import (
    _ADDRESS,
    _CHECKS_FIRST,
    _KIND_GROW,
    _KIND_MOVE,
    _KIND_NOOP,
    _KIND_SHRINK,
    _MANY,
    _MREMAP_KIND,
    _NEXT_ANON,
    _NO_CHANGE,
    _NONE,
    _OVERLAPPED,
    _TARGET,
    ACCOUNT,
    DONTFORK,
    EFAULT,
    EINVAL,
    ENOMEM,
    EPERM,
    HUGETLB,
    LOCK_MASK,
    LOCKED,
    MAY,
    MAYSHARE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE,
    READ,
    SEALED,
    SHARED,
    SPECIAL,
    SYSV,
    UFFD,
    WIPEONFORK,
    WRITE,
    _below,
    guarded_start,
    hint_fits,
    page_up,
    search_core,
)
from mmreplay.address_space.vma_core import (
    CREATED,
    TARGETS,
    count_conflicts,
    forget_guesses,
    make,
    mark,
    merge_new,
    populate,
    unmap,
)
from mmreplay.address_space.vma_index import clear_space, find
from mmreplay.address_space.vma_state import (
    I64,
    INHERITED,
    S_BRK,
    S_BRK_START,
    S_FIRST,
    S_FLAGS,
    S_LAST,
    S_MMAP_BASE,
    V_ANON,
    V_CHAIN,
    V_END,
    V_FILE,
    V_FLAGS,
    V_NEXT,
    V_ORIGIN,
    V_PGOFF,
    V_PREV,
    V_START,
    Core,
)
from mmreplay.jit import borrowing_helper


@borrowing_helper
def do_brk(state: Core, rules: I64, space: int, wanted: int, result: int) -> int:
    """brk(``wanted``); ``result``: the break that it returned, NONE unknown."""
    old = state.spaces[space, S_BRK]
    state.info[_NO_CHANGE] = 1
    if wanted == _NONE:
        wanted = result
    if old == _NONE:  # the break was set before the recording: learn it
        known = result if result > 0 else wanted
        if known > 0:
            state.spaces[space, S_BRK] = known
            state.info[_ADDRESS] = known
        return 0
    state.info[_ADDRESS] = old
    if wanted <= 0 or wanted == old:  # NONE is negative
        return 0
    if result not in (_NONE, wanted):  # refused: brk returns the old break
        state.spaces[space, S_BRK] = result
        state.info[_ADDRESS] = result
        return ENOMEM
    lowest = state.spaces[space, S_BRK_START]
    if lowest != _NONE and wanted < lowest:
        return ENOMEM
    new_page = page_up(wanted)
    old_page = page_up(old)
    if new_page == old_page:
        state.spaces[space, S_BRK] = wanted
        state.info[_ADDRESS] = wanted
        return 0
    if wanted < old:
        slot = find(state, space, old_page - 1)
        if (slot < 0 or state.vma[slot, V_START] >= old_page) and result == _NONE:
            return ENOMEM
        unmap(state, space, new_page, old_page)
    else:
        forget_guesses(state, space, old_page, new_page)
        following = find(state, space, old_page)
        guarded = following >= 0 and new_page + PAGE > guarded_start(state, rules, following)
        if guarded and result == _NONE:
            return ENOMEM
        if following >= 0 and state.vma[following, V_START] < new_page:
            count_conflicts(state, space, old_page, new_page)
            unmap(state, space, old_page, new_page)
        previous = _below(state, space, old_page)
        flags = READ | WRITE | MAY | ACCOUNT | state.spaces[space, S_FLAGS]
        slot = merge_new(
            state, rules, previous, -1, old_page, new_page, flags, old_page >> 12, 0, -1, True
        )
        if slot < 0:
            slot = make(state, space, old_page, new_page, flags, old_page >> 12, 0, previous)
            mark(state, slot, CREATED)
        state.info[_TARGET] = slot
        if state.spaces[space, S_FLAGS] & LOCKED:
            populate(state, space, old_page, new_page, False)
    state.info[_NO_CHANGE] = 0
    state.spaces[space, S_BRK] = wanted
    state.info[_ADDRESS] = wanted
    return 0


@borrowing_helper
def _move(
    state: Core, rules: I64, space: int, old: int, old_len: int, new: int, new_len: int, keep: bool
) -> int:
    """mm/mremap.c:move_vma with copy_vma; ``keep``: MREMAP_DONTUNMAP."""
    source = find(state, space, old)
    mark(state, source, TARGETS)
    flags = state.vma[source, V_FLAGS]
    file = state.vma[source, V_FILE]
    pgoff = state.vma[source, V_PGOFF] + ((old - state.vma[source, V_START]) >> 12)
    if file == 0 and state.vma[source, V_ANON] == 0:
        pgoff = new >> 12
    following = find(state, space, new)
    previous = state.spaces[space, S_LAST] if following < 0 else state.vma[following, V_PREV]
    anon = state.vma[source, V_ANON]
    chain = state.vma[source, V_CHAIN]
    slot = merge_new(
        state, rules, previous, following, new, new + new_len, flags, pgoff, file, source, False
    )
    if slot < 0:
        slot = make(state, space, new, new + new_len, flags, pgoff, file, previous)
        state.vma[slot, V_ANON] = anon
        state.vma[slot, V_CHAIN] = chain
        mark(state, slot, CREATED)
    state.info[_TARGET] = slot
    if keep:
        left = find(state, space, old)
        state.vma[left, V_FLAGS] &= ~LOCK_MASK
        if (
            left != slot
            and state.vma[left, V_START] == old
            and state.vma[left, V_END] == old + old_len
        ):
            state.vma[left, V_ANON] = 0
            state.vma[left, V_CHAIN] = 0
    elif old_len:
        unmap(state, space, old, old + old_len)
    if flags & LOCKED and new_len > old_len:
        populate(state, space, new + old_len, new + new_len, False)
    return 0


@borrowing_helper
def do_mremap(
    state: Core,
    rules: I64,
    space: int,
    old: int,
    old_len: int,
    new_len: int,
    flags: int,
    wish: int,
    result: int,
) -> int:
    """mremap; ``wish``: new address of MREMAP_FIXED; ``result``: recorded address or NONE."""
    if old & (PAGE - 1) or new_len <= 0:
        return EINVAL
    old_len = page_up(old_len)
    new_len = page_up(new_len)
    fixed = flags & MREMAP_FIXED != 0
    keep = flags & MREMAP_DONTUNMAP != 0
    if (fixed or keep) and not flags & MREMAP_MAYMOVE:
        return EINVAL
    if keep and old_len != new_len:
        return EINVAL
    overlaps = old + old_len > wish and wish + new_len > old
    if (fixed or keep) and (wish & (PAGE - 1) or overlaps):
        return EINVAL
    state.info[_ADDRESS] = old
    source = find(state, space, old)
    outside = source < 0 or state.vma[source, V_START] > old
    if not fixed and not keep and old_len >= new_len:
        if outside and (rules[_CHECKS_FIRST] != 0 or old_len == new_len):
            return EFAULT
        if old_len == new_len:
            state.info[_MREMAP_KIND] = _KIND_NOOP
            state.info[_NO_CHANGE] = 1
            return 0
        if state.vma[source, V_FLAGS] & SEALED:
            return EPERM
        state.info[_MREMAP_KIND] = _KIND_SHRINK
        if unmap(state, space, old + new_len, old + old_len) < 0:
            return EPERM
        return 0
    if outside:
        return EFAULT
    if state.vma[source, V_FLAGS] & SEALED:
        return EPERM
    if old_len == 0 and not state.vma[source, V_FLAGS] & (SHARED | MAYSHARE):
        return EINVAL
    if keep and state.vma[source, V_FLAGS] & SPECIAL:
        return EINVAL
    if fixed:
        return int(_move_fixed(state, rules, space, old, old_len, wish, new_len, keep))
    if old + old_len > state.vma[source, V_END]:
        return EFAULT
    if result < 0 and result != _NONE:
        return EFAULT  # for a reason that the rules do not see: nothing was moved
    if (
        new_len > old_len
        and state.vma[source, V_FLAGS] & SPECIAL
        and not state.vma[source, V_FLAGS] & HUGETLB
    ):
        return EFAULT
    if result == old and not keep and old_len:
        # it grew in place: whatever was thought to be there is gone
        count_conflicts(state, space, old + old_len, old + new_len)
        unmap(state, space, old + old_len, old + new_len)
        source = find(state, space, old)
    if (
        not keep
        and old_len
        and old + old_len == state.vma[source, V_END]
        and result in (_NONE, old)
    ):
        end = state.vma[source, V_END]
        top = old + new_len
        following = state.vma[source, V_NEXT]
        if following < 0 or state.vma[following, V_START] >= top:
            mark(state, source, TARGETS)
            pgoff = state.vma[source, V_PGOFF] + ((end - state.vma[source, V_START]) >> 12)
            locked = state.vma[source, V_FLAGS] & LOCKED
            slot = merge_new(
                state,
                rules,
                source,
                following,
                end,
                top,
                state.vma[source, V_FLAGS],
                pgoff,
                state.vma[source, V_FILE],
                source,
                False,
            )
            if slot < 0:
                return ENOMEM
            state.info[_MREMAP_KIND] = _KIND_GROW
            state.info[_TARGET] = slot
            if locked:
                populate(state, space, end, top, False)
            return 0
    if not flags & MREMAP_MAYMOVE:
        return ENOMEM
    target = result
    if target != _NONE and old < target + new_len and target < old + old_len:
        return EFAULT  # no kernel moves a mapping onto itself
    if target == _NONE:
        shared = 1 if state.vma[source, V_FLAGS] & MAYSHARE else 2
        offset = (state.vma[source, V_PGOFF] << 12) + (old - state.vma[source, V_START])
        if keep and wish > 0 and hint_fits(state, rules, space, wish, new_len):
            target = wish
        else:
            target = search_core(
                state,
                rules,
                space,
                new_len,
                shared,
                state.vma[source, V_FILE],
                offset,
                keep and wish > 0,
            )
        if target < 0:
            return ENOMEM
    return int(_move_fixed(state, rules, space, old, old_len, target, new_len, keep))


@borrowing_helper
def _move_fixed(
    state: Core, rules: I64, space: int, old: int, old_len: int, new: int, new_len: int, keep: bool
) -> int:
    """Move to a known place: clear it, shrink, and move one VMA, or since 6.17 several."""
    state.info[_MREMAP_KIND] = _KIND_MOVE
    source = find(state, space, old)
    end = old + old_len
    many = end > state.vma[source, V_END]
    if many and (old_len != new_len or rules[_MANY] == 0):
        if old_len > new_len and old + new_len <= state.vma[source, V_END]:
            many = False
        else:
            # Since 6.17 the source is checked before the target is cleared.
            if rules[_MANY] == 0:
                unmap(state, space, new, new + new_len)
            return EFAULT
    if not many:
        removed = unmap(state, space, new, new + new_len)
        if removed < 0:
            return EPERM
        state.info[_OVERLAPPED] += removed
        source = find(state, space, old)
        if source < 0 or state.vma[source, V_START] > old:
            return EFAULT  # old_len 0: the source itself was in the way
        if old_len > new_len:
            if unmap(state, space, old + new_len, end) < 0:
                return EPERM
            old_len = new_len
        _move(state, rules, space, old, old_len, new, new_len, keep)
        state.info[_ADDRESS] = new
        return 0
    at = old
    slot = source
    while at < end and slot >= 0 and state.vma[slot, V_START] < end:
        if state.vma[slot, V_FLAGS] & SEALED:
            return EPERM
        # vma_multi_allowed: nothing that places itself, or is watched, moves with others
        if state.vma[slot, V_FLAGS] & (SYSV | UFFD) and (at > old or state.vma[slot, V_END] < end):
            return EFAULT
        begin = max(at, state.vma[slot, V_START])
        top = min(end, state.vma[slot, V_END])
        target = new + (begin - old)
        removed = unmap(state, space, target, target + (top - begin))
        if removed < 0:
            return EPERM
        state.info[_OVERLAPPED] += removed
        _move(state, rules, space, begin, top - begin, target, top - begin, keep)
        at = top
        slot = find(state, space, at)
    state.info[_ADDRESS] = new
    return 0


@borrowing_helper
def do_clear(state: Core, space: int, role: int) -> None:
    """Remove a whole address space (exit, exec); every VMA is marked."""
    slot = state.spaces[space, S_FIRST]
    while slot >= 0:
        mark(state, slot, role)
        slot = state.vma[slot, V_NEXT]
    forget_space(state, space)


@borrowing_helper
def forget_space(state: Core, space: int) -> None:
    """As :func:`do_clear`, without marks."""
    clear_space(state, space)
    state.spaces[space, S_FLAGS] = 0
    state.spaces[space, S_BRK] = _NONE
    state.spaces[space, S_BRK_START] = _NONE


@borrowing_helper
def do_fork(state: Core, space: int, child: int, role: int) -> int:
    """Copy a space (mm/mmap.c:dup_mmap, mm/rmap.c:anon_vma_fork); parents are marked."""
    slot = state.spaces[space, S_FIRST]
    previous = -1
    while slot >= 0:
        mark(state, slot, role)
        flags = state.vma[slot, V_FLAGS]
        if not flags & DONTFORK:
            new = make(
                state,
                child,
                state.vma[slot, V_START],
                state.vma[slot, V_END],
                flags & ~LOCK_MASK & ~UFFD,
                state.vma[slot, V_PGOFF],
                state.vma[slot, V_FILE],
                previous,
            )
            if state.vma[slot, V_ANON] != 0 and not flags & WIPEONFORK:
                state.vma[new, V_ANON] = state.numbers[_NEXT_ANON]
                state.vma[new, V_CHAIN] = 1
                state.numbers[_NEXT_ANON] += 1
            state.vma[new, V_ORIGIN] = INHERITED
            previous = new
        slot = state.vma[slot, V_NEXT]
    state.spaces[child, S_FLAGS] = state.spaces[space, S_FLAGS] & ~LOCK_MASK
    state.spaces[child, S_BRK] = state.spaces[space, S_BRK]
    state.spaces[child, S_BRK_START] = state.spaces[space, S_BRK_START]
    state.spaces[child, S_MMAP_BASE] = state.spaces[space, S_MMAP_BASE]
    return 0
