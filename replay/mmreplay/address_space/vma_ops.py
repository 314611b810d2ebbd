"""One compiled function per kind of operation on the map; ``vma_map.apply`` calls them.

Each returns 0, or the errno that the kernel's rules give (the operation may have done a part of
its work first, as the kernel's does).  ``lenient``: the trace says that the call succeeded, so
what the rules would refuse (usually a hole that an unseen mapping fills) is passed over.
"""

from __future__ import annotations

from mmreplay.address_space.vma_abi import (
    _ADDRESS,
    _NEXT_FILE,
    _NEXT_GROWSDOWN,
    _NO_CHANGE,
    _NONE,
    _OVERLAPPED,
    _TARGET,
    _UNACCOUNTS,
    ACCESS,
    ACCOUNT,
    DONTDUMP,
    DONTFORK,
    DROPPABLE,
    EACCES,
    EEXIST,
    EINVAL,
    ENOMEM,
    EPERM,
    GROWSDOWN,
    HUGEPAGE,
    HUGETLB,
    LOCK_MASK,
    LOCKED,
    LOCKONFAULT,
    LOWEST,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_HUGETLB,
    MAP_NONBLOCK,
    MAP_POPULATE,
    MAYSHARE,
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MERGEABLE,
    NOHUGEPAGE,
    NORESERVE,
    PAGE,
    PMD,
    PROT_GROWSDOWN,
    RANDOM,
    SEALED,
    SEQ,
    SHARED,
    SPECIAL,
    TASK_SIZE,
    WIPEONFORK,
    WRITE,
    hint_fits,
    map_flags,
    page_up,
    prot_bits,
    search_core,
)
from mmreplay.address_space.vma_core import (
    CREATED,
    TARGETS,
    count_conflicts,
    make,
    mark,
    merge_new,
    modify,
    populate,
    populate_vma,
    prepare_anon,
    unmap,
)
from mmreplay.address_space.vma_index import find
from mmreplay.address_space.vma_state import (
    I64,
    S_FIRST,
    S_FLAGS,
    S_LAST,
    V_ANON,
    V_END,
    V_FILE,
    V_FLAGS,
    V_NEXT,
    V_PREV,
    V_START,
    Core,
)
from mmreplay.jit import borrowing_helper


@borrowing_helper
def do_mmap(
    state: Core,
    rules: I64,
    space: int,
    placed: int,
    hint: int,
    length: int,
    prot: int,
    flags: int,
    file_offset: int,
    file: int,
) -> int:
    """mmap.  ``placed``: the recorded address, NONE: unknown, place it by the rules."""
    if length <= 0:
        return EINVAL
    length = page_up(length)
    if flags & MAP_HUGETLB:
        length = (length + PMD - 1) & ~(PMD - 1)
    fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0
    if placed != _NONE:
        address = placed
    elif fixed:
        address = hint
    else:
        address = -1
        wish = max(hint, 0) & ~(PAGE - 1)
        if wish:  # mm/mmap.c:round_hint_to_min
            wish = max(wish, LOWEST)
            if hint_fits(state, rules, space, wish, length):
                address = wish
        if address < 0:
            address = search_core(state, rules, space, length, flags, file, file_offset, wish != 0)
    if address < 0 or length > TASK_SIZE - address:
        return ENOMEM
    if address & (PAGE - 1):
        return EINVAL
    end = address + length
    if flags & MAP_FIXED_NOREPLACE and placed == _NONE:
        slot = find(state, space, address)
        if slot >= 0 and state.vma[slot, V_START] < end:
            return EEXIST
    bits = map_flags(state, rules, space, prot, flags, file)
    if not flags & MAP_FIXED:
        count_conflicts(state, space, address, end)
    removed = unmap(state, space, address, end)
    if removed < 0:
        return EPERM
    state.info[_OVERLAPPED] = removed
    pgoff = address >> 12
    if file != 0:
        pgoff = file_offset >> 12 if file_offset != _NONE else 0
    elif bits & (SHARED | HUGETLB):
        file = state.numbers[_NEXT_FILE]
        state.numbers[_NEXT_FILE] += 1
        pgoff = 0
    following = find(state, space, address)
    previous = state.spaces[space, S_LAST] if following < 0 else state.vma[following, V_PREV]
    slot = merge_new(state, rules, previous, following, address, end, bits, pgoff, file, -1, False)
    if slot < 0:
        slot = make(state, space, address, end, bits, pgoff, file, previous)
        mark(state, slot, CREATED)
    state.info[_ADDRESS] = address
    state.info[_TARGET] = slot
    if bits & LOCKED or flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE:
        populate(state, space, address, end, False)
    return 0


@borrowing_helper
def do_munmap(state: Core, space: int, address: int, length: int) -> int:
    if address & (PAGE - 1) or length <= 0:
        return EINVAL
    end = address + page_up(length)
    following = find(state, space, end)  # what is left of a VMA that is cut, or the next one
    grows = following >= 0 and state.vma[following, V_FLAGS] & GROWSDOWN
    state.info[_NEXT_GROWSDOWN] = 1 if grows else 0
    removed = unmap(state, space, address, end)
    if removed < 0:
        return EPERM
    if removed == 0:
        state.info[_NO_CHANGE] = 1
    return 0


@borrowing_helper
def _accounted(rules: I64, flags: int, old: int, file: int, anon: int) -> int:
    """VM_ACCOUNT after mprotect (mm/mprotect.c:mprotect_fixup)."""
    if flags & WRITE:
        if not old & (ACCOUNT | WRITE | HUGETLB | SHARED | NORESERVE):
            return flags | ACCOUNT
    elif old & ACCOUNT and file == 0 and anon == 0 and rules[_UNACCOUNTS] != 0:
        return flags & ~ACCOUNT
    return flags


@borrowing_helper
def do_mprotect(
    state: Core, rules: I64, space: int, address: int, length: int, prot: int, lenient: bool
) -> int:
    if address & (PAGE - 1):
        return EINVAL
    if length == 0:
        state.info[_NO_CHANGE] = 1
        return 0
    end = address + page_up(length)
    if end <= address:
        return ENOMEM
    slot = find(state, space, address)
    if slot >= 0 and prot & PROT_GROWSDOWN and state.vma[slot, V_START] < end:
        if state.vma[slot, V_FLAGS] & GROWSDOWN == 0:
            return EINVAL
        address = state.vma[slot, V_START]
    if slot < 0 or (state.vma[slot, V_START] > address and not lenient):
        state.info[_NO_CHANGE] = 1
        return ENOMEM
    at = address
    changed = False
    error = 0
    while slot >= 0 and state.vma[slot, V_START] < end:
        if state.vma[slot, V_START] > at and not lenient:
            error = ENOMEM
            break
        begin = max(at, state.vma[slot, V_START])
        top = min(end, state.vma[slot, V_END])
        old = state.vma[slot, V_FLAGS]
        flags = (old & ~ACCESS) | prot_bits(prot)
        if flags & ~(old >> 4) & ACCESS and not lenient:
            error = EACCES
            break
        if old & SEALED and not lenient:
            error = EPERM
            break
        if flags != old:
            changed = True
            flags = _accounted(rules, flags, old, state.vma[slot, V_FILE], state.vma[slot, V_ANON])
            slot = modify(state, rules, slot, begin, top, flags)
            if old & (WRITE | SHARED | LOCKED) == LOCKED and flags & WRITE:
                populate_vma(state, slot, True)
        at = max(top, state.vma[slot, V_END])
        slot = state.vma[slot, V_NEXT]
    if not changed:
        state.info[_NO_CHANGE] = 1
    if error == 0 and at < end and not lenient:
        error = ENOMEM
    return error


@borrowing_helper
def advised(flags: int, file: int, advice: int) -> int:
    """vm_flags after a flag advice; -1: EINVAL (mm/madvise.c:madvise_vma_behavior)."""
    if advice == 0:
        return flags & ~(RANDOM | SEQ)
    if advice == 1:
        return (flags & ~SEQ) | RANDOM
    if advice == 2:
        return (flags & ~RANDOM) | SEQ
    if advice == 10:
        return flags | DONTFORK
    if advice == 11:
        return flags & ~DONTFORK
    if advice == 12:
        if flags & (SHARED | MAYSHARE | SPECIAL | HUGETLB | DROPPABLE):
            return flags
        return flags | MERGEABLE
    if advice == 13:
        return flags & ~MERGEABLE
    if advice == 14:
        return (flags & ~NOHUGEPAGE) | HUGEPAGE
    if advice == 15:
        return (flags & ~HUGEPAGE) | NOHUGEPAGE
    if advice == 16:
        return flags | DONTDUMP
    if advice == 17:
        if (not flags & HUGETLB and flags & SPECIAL) or flags & DROPPABLE:
            return -1
        return flags & ~DONTDUMP
    if advice == 18:
        if file != 0 or flags & SHARED:
            return -1
        return flags | WIPEONFORK
    if advice == 19:
        if flags & DROPPABLE:
            return -1
        return flags & ~WIPEONFORK
    return flags


@borrowing_helper
def is_flag_advice(advice: int) -> bool:
    return bool(0 <= advice <= 2 or 10 <= advice <= 19)


@borrowing_helper
def do_madvise(
    state: Core, rules: I64, space: int, address: int, length: int, advice: int, lenient: bool
) -> int:
    """Flag advice, and the anon_vmas that POPULATE_WRITE and GUARD_INSTALL leave; no other does."""
    if address & (PAGE - 1) or length < 0:
        return EINVAL
    end = address + page_up(length)
    if end == address or not (is_flag_advice(advice) or advice in (23, 102)):
        state.info[_NO_CHANGE] = 1
        return 0
    if advice == 23:  # MADV_POPULATE_WRITE
        return int(_populate_write(state, space, address, end))
    if advice == 102:  # MADV_GUARD_INSTALL
        return int(_install_guards(state, space, address, end))
    slot = find(state, space, address)
    at = address
    changed = False
    error = 0
    while slot >= 0 and state.vma[slot, V_START] < end:
        if state.vma[slot, V_START] > at:
            error = ENOMEM
            at = state.vma[slot, V_START]
        top = min(end, state.vma[slot, V_END])
        old = state.vma[slot, V_FLAGS]
        flags = advised(old, state.vma[slot, V_FILE], advice)
        if flags < 0:
            if not lenient:
                error = EINVAL
                at = end
                break
        elif old & SEALED and advice in (10, 18) and not old & (SHARED | WRITE):
            error = EPERM  # can_madvise_modify: advice that discards a sealed read-only VMA
            at = end
            break
        elif flags != old:
            changed = True
            slot = modify(state, rules, slot, at, top, flags)
        at = max(top, state.vma[slot, V_END])
        slot = state.vma[slot, V_NEXT]
    if not changed:
        state.info[_NO_CHANGE] = 1
    if at < end:
        error = ENOMEM
    return 0 if lenient else error


@borrowing_helper
def _populate_write(state: Core, space: int, start: int, end: int) -> int:
    """madvise_populate: page after page until a hole or a VMA that cannot be written."""
    slot = find(state, space, start)
    at = start
    while at < end:
        if slot < 0 or state.vma[slot, V_START] > at:
            return ENOMEM
        flags = state.vma[slot, V_FLAGS]
        if flags & SPECIAL and not flags & HUGETLB:
            return EINVAL
        if not flags & WRITE:
            return EINVAL
        if not flags & SHARED:
            prepare_anon(state, slot)
        at = state.vma[slot, V_END]
        slot = state.vma[slot, V_NEXT]
    return 0


@borrowing_helper
def _install_guards(state: Core, space: int, start: int, end: int) -> int:
    """madvise_guard_install@6.18: page tables that are not empty ask for an anon_vma at once."""
    slot = find(state, space, start)
    at = start
    error = 0
    while slot >= 0 and state.vma[slot, V_START] < end:
        if state.vma[slot, V_START] > at:
            error = ENOMEM
        if state.vma[slot, V_FLAGS] & (SPECIAL | HUGETLB | LOCKED):
            return EINVAL
        prepare_anon(state, slot)
        at = state.vma[slot, V_END]
        slot = state.vma[slot, V_NEXT]
    return ENOMEM if at < end else error


@borrowing_helper
def _lockable(flags: int) -> bool:
    return flags & (SPECIAL | HUGETLB | DROPPABLE) == 0


@borrowing_helper
def do_mlock(
    state: Core, rules: I64, space: int, address: int, length: int, add: int, lenient: bool
) -> int:
    """mlock, mlock2 (``add``: LOCKED with or without LOCKONFAULT) and munlock (``add`` 0)."""
    length = page_up(length + (address & (PAGE - 1)))
    address &= ~(PAGE - 1)
    end = address + length
    if length == 0:
        state.info[_NO_CHANGE] = 1
        return 0
    slot = find(state, space, address)
    at = address
    changed = False
    error = 0
    if slot < 0:
        state.info[_NO_CHANGE] = 1
        return ENOMEM
    while slot >= 0 and state.vma[slot, V_START] < end:
        if state.vma[slot, V_START] > at:
            if not lenient:
                error = ENOMEM
                break
            at = state.vma[slot, V_START]
        top = min(end, state.vma[slot, V_END])
        old = state.vma[slot, V_FLAGS]
        flags = (old & ~LOCK_MASK) | add
        if flags != old and _lockable(old):
            changed = True
            slot = modify(state, rules, slot, at, top, flags)
        at = max(top, state.vma[slot, V_END])
        slot = state.vma[slot, V_NEXT]
    if error == 0 and at < end and not lenient:
        error = ENOMEM
    if not changed:
        state.info[_NO_CHANGE] = 1
    if error == 0 and add and not populate(state, space, address, end, True) and not lenient:
        error = ENOMEM
    return error


@borrowing_helper
def do_mlockall(state: Core, rules: I64, space: int, flags: int) -> int:
    """mlockall (``flags``: MCL_*) and munlockall (0): mm/mlock.c:apply_mlockall_flags."""
    default = state.spaces[space, S_FLAGS] & ~LOCK_MASK
    state.info[_NO_CHANGE] = 1
    if flags & MCL_FUTURE:
        default |= LOCKED
        if flags & MCL_ONFAULT:
            default |= LOCKONFAULT
    state.spaces[space, S_FLAGS] = default
    if flags & MCL_FUTURE and not flags & MCL_CURRENT:
        return 0
    add = 0
    if flags & MCL_CURRENT:
        add = LOCK_MASK if flags & MCL_ONFAULT else LOCKED
    slot = state.spaces[space, S_FIRST]
    while slot >= 0:
        old = state.vma[slot, V_FLAGS]
        wanted = (old & ~LOCK_MASK) | add
        if wanted != old and _lockable(old):
            state.info[_NO_CHANGE] = 0
            slot = modify(
                state, rules, slot, state.vma[slot, V_START], state.vma[slot, V_END], wanted
            )
        slot = state.vma[slot, V_NEXT]
    if add:
        populate(state, space, 0, TASK_SIZE, False)
    return 0


@borrowing_helper
def do_set_flag(
    state: Core, rules: I64, space: int, address: int, length: int, set_: int, clear: int
) -> int:
    """Set or clear a flag over a range: mseal, which wants no holes, userfaultfd register."""
    end = address + page_up(length)
    slot = find(state, space, address)
    scan = slot
    at = address
    while set_ == SEALED and scan >= 0 and state.vma[scan, V_START] < end:
        if state.vma[scan, V_START] > at:
            return ENOMEM
        at = state.vma[scan, V_END]
        scan = state.vma[scan, V_NEXT]
    if set_ == SEALED and at < end:
        return ENOMEM
    state.info[_NO_CHANGE] = 1
    while slot >= 0 and state.vma[slot, V_START] < end:
        old = state.vma[slot, V_FLAGS]
        flags = (old & ~clear) | set_
        if flags != old:
            state.info[_NO_CHANGE] = 0
            slot = modify(
                state,
                rules,
                slot,
                max(address, state.vma[slot, V_START]),
                min(end, state.vma[slot, V_END]),
                flags,
            )
        slot = state.vma[slot, V_NEXT]
    return 0


@borrowing_helper
def do_touch_vmas(state: Core, space: int, address: int, length: int) -> int:
    """Mark the VMAs of a range without changing flags (mbind, set_mempolicy_home_node)."""
    end = address + page_up(length)
    slot = find(state, space, address)
    while slot >= 0 and state.vma[slot, V_START] < end:
        mark(state, slot, TARGETS)
        slot = state.vma[slot, V_NEXT]
    return 0
