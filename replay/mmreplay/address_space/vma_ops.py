"""One compiled function per kind of operation on the map; ``vma_map.apply`` calls them.

Each returns 0, or the errno that the kernel's rules give (the operation may have done a part of
its work first, as the kernel's does).  ``lenient``: the trace says that the call succeeded, so
what the rules would refuse (usually a hole that an unseen mapping fills) is passed over.
"""

from __future__ import annotations

from mmreplay.address_space.rules import Rule
from mmreplay.address_space.vma_core import (
    CREATED,
    TARGETS,
    make,
    mark,
    merge_new,
    modify,
    populate,
    populate_vma,
    prepare_anon,
    unmap,
)
from mmreplay.address_space.vma_index import clear_space, find, search_down
from mmreplay.address_space.vma_state import (
    I64,
    NONE,
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
    V_PGOFF,
    V_PREV,
    V_START,
    Core,
    Info,
    MremapKind,
    Num,
    Vm,
)
from mmreplay.jit import borrowing_helper

ENOMEM = 12
EACCES = 13
EFAULT = 14
EEXIST = 17
EINVAL = 22
EPERM = 1

PAGE = 4096
PMD = 1 << 21
#: Lowest address of the search: the usual vm.mmap_min_addr.
LOWEST = 65536
#: Highest user address + 1 (four-level tables: arch/x86/include/asm/page_64_types.h).
TASK_SIZE = 0x7FFFFFFFF000

# MAP_* (include/uapi/asm-generic/mman-common.h)
MAP_TYPE = 0x0F
MAP_DROPPABLE = 0x08
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_GROWSDOWN = 0x100
MAP_LOCKED = 0x2000
MAP_NORESERVE = 0x4000
MAP_POPULATE = 0x8000
MAP_NONBLOCK = 0x10000
MAP_STACK = 0x20000
MAP_HUGETLB = 0x40000
MAP_SYNC = 0x80000
MAP_FIXED_NOREPLACE = 0x100000
MREMAP_MAYMOVE = 1
MREMAP_FIXED = 2
MREMAP_DONTUNMAP = 4
MCL_CURRENT = 1
MCL_FUTURE = 2
MCL_ONFAULT = 4
MLOCK_ONFAULT = 1

READ = int(Vm.READ)
WRITE = int(Vm.WRITE)
EXEC = int(Vm.EXEC)
ACCESS = READ | WRITE | EXEC
SHARED = int(Vm.SHARED)
MAYSHARE = int(Vm.MAYSHARE)
MAY = int(Vm.MAYREAD | Vm.MAYWRITE | Vm.MAYEXEC)
GROWSDOWN = int(Vm.GROWSDOWN)
LOCKED = int(Vm.LOCKED)
LOCK_MASK = int(Vm.LOCKED | Vm.LOCKONFAULT)
LOCKONFAULT = int(Vm.LOCKONFAULT)
HUGEPAGE = int(Vm.HUGEPAGE)
NOHUGEPAGE = int(Vm.NOHUGEPAGE)
DONTFORK = int(Vm.DONTFORK)
DONTDUMP = int(Vm.DONTDUMP)
WIPEONFORK = int(Vm.WIPEONFORK)
MERGEABLE = int(Vm.MERGEABLE)
RANDOM = int(Vm.RANDOM)
SEQ = int(Vm.SEQ)
NORESERVE = int(Vm.NORESERVE)
ACCOUNT = int(Vm.ACCOUNT)
HUGETLB = int(Vm.HUGETLB)
SPECIAL = int(Vm.SPECIAL)
SEALED = int(Vm.SEALED)
SYNC = int(Vm.SYNC)
DROPPABLE = int(Vm.DROPPABLE)
UFFD = int(Vm.UFFD)

_NONE = NONE
_ADDRESS = int(Info.ADDRESS)
_NO_CHANGE = int(Info.NO_CHANGE)
_NEXT_GROWSDOWN = int(Info.NEXT_GROWSDOWN)
_OVERLAPPED = int(Info.OVERLAPPED)
_MREMAP_KIND = int(Info.MREMAP_KIND)
_CONFLICTS = int(Info.CONFLICTS)
_TARGET = int(Info.TARGET_SLOT)
_N_CONFLICTS = int(Num.CONFLICTS)
_NEXT_FILE = int(Num.NEXT_FILE)
_NEXT_ANON = int(Num.NEXT_ANON)
_GUARD = int(Rule.STACK_GUARD_PAGES)
_THP_ANON = int(Rule.THP_ALIGN_ANON)
_THP_FILE = int(Rule.THP_ALIGN_FILE)
_STACK_NOHUGE = int(Rule.STACK_NOHUGEPAGE)
_UNACCOUNTS = int(Rule.MPROTECT_UNACCOUNTS)
_MANY = int(Rule.MREMAP_MANY_VMAS)
_CHECKS_FIRST = int(Rule.MREMAP_SHRINK_CHECKS_FIRST)
_KIND_NOOP = int(MremapKind.NOOP)
_KIND_SHRINK = int(MremapKind.SHRINK)
_KIND_GROW = int(MremapKind.GROW)
_KIND_MOVE = int(MremapKind.MOVE)


@borrowing_helper
def page_up(value: int) -> int:
    return (value + PAGE - 1) & ~(PAGE - 1)


@borrowing_helper
def prot_bits(prot: int) -> int:
    """PROT_* to READ, WRITE, EXEC."""
    bits = 0
    if prot & 1:
        bits |= READ
    if prot & 2:
        bits |= WRITE
    if prot & 4:
        bits |= EXEC
    return bits


@borrowing_helper
def _below(state: Core, space: int, address: int) -> int:
    """Highest VMA that starts below ``address`` (-1 none)."""
    slot = find(state, space, address)
    if slot < 0:
        return int(state.spaces[space, S_LAST])
    if state.vma[slot, V_START] < address:
        return int(slot)
    return int(state.vma[slot, V_PREV])


@borrowing_helper
def guarded_start(state: Core, rules: I64, slot: int) -> int:
    start = state.vma[slot, V_START]
    if state.vma[slot, V_FLAGS] & GROWSDOWN:
        return int(max(start - rules[_GUARD] * PAGE, 0))
    return int(start)


@borrowing_helper
def search_core(
    state: Core, rules: I64, space: int, length: int, flags: int, file: int, file_offset: int
) -> int:
    """Address that the kernel's top-down search gives a mapping without a hint; -1: no room.

    ``flags``: MAP_*.  mm/mmap.c:__get_unmapped_area, mm/huge_memory.c:__thp_get_unmapped_area.
    """
    guard = rules[_GUARD] * PAGE
    base = state.spaces[space, S_MMAP_BASE]
    length = page_up(length)
    offset = 0
    aligned = False
    if file == 0 and flags & MAP_TYPE != 1:
        if rules[_THP_ANON] == 1:
            aligned = length >= PMD
        elif rules[_THP_ANON] == 2:
            aligned = length >= PMD and length % PMD == 0
    elif file != 0 and rules[_THP_FILE] != 0:
        offset = file_offset
        first = (offset + PMD - 1) & ~(PMD - 1)
        end = offset + length
        aligned = end > first and end - first >= PMD
    if flags & MAP_HUGETLB:
        aligned = True
        length = (length + PMD - 1) & ~(PMD - 1)
    if aligned:
        got = search_down(state, space, length + PMD, LOWEST, base, guard, GROWSDOWN)
        if got < 0:
            got = search_down(state, space, length + PMD, base, TASK_SIZE, guard, GROWSDOWN)
        if got >= 0:
            shift = (offset - got) & (PMD - 1)
            if flags & MAP_HUGETLB:
                return int((got + PMD) & ~(PMD - 1))
            return int(got + (shift if shift else PMD))
    got = search_down(state, space, length, LOWEST, base, guard, GROWSDOWN)
    if got < 0:
        got = search_down(state, space, length, base, TASK_SIZE, guard, GROWSDOWN)
    return int(got)


@borrowing_helper
def hint_fits(state: Core, rules: I64, space: int, address: int, length: int) -> bool:
    """Whether a mapping may go where its hint says (the guard of a stack above stays free)."""
    if address < LOWEST or address > TASK_SIZE - length:
        return False
    slot = find(state, space, address)
    if slot < 0:
        return True
    return bool(address + length <= guarded_start(state, rules, slot))


@borrowing_helper
def map_flags(state: Core, rules: I64, space: int, prot: int, flags: int, file: int) -> int:
    """vm_flags of a new mapping (mm/mmap.c:do_mmap, mm/vma.c:mmap_region)."""
    bits = prot_bits(prot) | MAY | state.spaces[space, S_FLAGS]
    if flags & MAP_GROWSDOWN:
        bits |= GROWSDOWN
    if flags & MAP_LOCKED:
        bits |= LOCKED
    if flags & MAP_SYNC:
        bits |= SYNC
    if flags & MAP_STACK and rules[_STACK_NOHUGE] != 0:
        bits |= NOHUGEPAGE
    kind = flags & MAP_TYPE
    if kind == 1 or kind == 3:
        bits |= SHARED | MAYSHARE
    elif kind == MAP_DROPPABLE:
        bits |= DROPPABLE | NORESERVE | WIPEONFORK | DONTDUMP
    if flags & MAP_NORESERVE:
        bits |= NORESERVE
    if flags & MAP_HUGETLB:
        bits |= HUGETLB | SPECIAL
        bits &= ~LOCK_MASK
    if bits & (NORESERVE | SHARED | WRITE | HUGETLB) == WRITE:
        bits |= ACCOUNT
    return int(bits)


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
        if hint > 0 and hint != _NONE:
            wish = page_up(hint)
            if hint_fits(state, rules, space, wish, length):
                address = wish
        if address < 0:
            address = search_core(state, rules, space, length, flags, file, file_offset)
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
    removed = unmap(state, space, address, end)
    if removed < 0:
        return EPERM
    state.info[_OVERLAPPED] = removed
    if removed and not flags & MAP_FIXED:
        state.info[_CONFLICTS] = removed
        state.numbers[_N_CONFLICTS] += removed
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
    slot = find(state, space, address)
    scan = slot
    while scan >= 0 and state.vma[scan, V_START] < end:
        scan = state.vma[scan, V_NEXT]
    state.info[_NEXT_GROWSDOWN] = 1 if scan >= 0 and state.vma[scan, V_FLAGS] & GROWSDOWN else 0
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
    if slot < 0 or (state.vma[slot, V_START] > address and not lenient):
        return ENOMEM
    if prot & 0x01000000:  # PROT_GROWSDOWN
        if state.vma[slot, V_FLAGS] & GROWSDOWN == 0:
            return EINVAL
        address = state.vma[slot, V_START]
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
    """Flag advice, and the anon_vmas that POPULATE_WRITE leaves; other advice changes nothing."""
    if address & (PAGE - 1) or length < 0:
        return EINVAL
    end = address + page_up(length)
    if end == address or not (is_flag_advice(advice) or advice == 23):
        state.info[_NO_CHANGE] = 1
        return 0
    if advice == 23:  # MADV_POPULATE_WRITE
        return int(_populate_write(state, space, address, end))
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
    """Set or clear a flag over a range without holes (mseal, userfaultfd register)."""
    end = address + page_up(length)
    slot = find(state, space, address)
    scan = slot
    at = address
    while scan >= 0 and state.vma[scan, V_START] < end:
        if state.vma[scan, V_START] > at:
            return ENOMEM
        at = state.vma[scan, V_END]
        scan = state.vma[scan, V_NEXT]
    if at < end:
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
        if slot < 0 or state.vma[slot, V_START] >= old_page:
            return ENOMEM
        unmap(state, space, new_page, old_page)
    else:
        following = find(state, space, old_page)
        guarded = following >= 0 and new_page + PAGE > guarded_start(state, rules, following)
        if guarded and result == _NONE:
            return ENOMEM
        if following >= 0 and state.vma[following, V_START] < new_page:
            removed = unmap(state, space, old_page, new_page)
            state.info[_CONFLICTS] = removed
            state.numbers[_N_CONFLICTS] += removed
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
    if (
        new_len > old_len
        and state.vma[source, V_FLAGS] & SPECIAL
        and not state.vma[source, V_FLAGS] & HUGETLB
    ):
        return EFAULT
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
    if target == _NONE:
        shared = 1 if state.vma[source, V_FLAGS] & MAYSHARE else 2
        offset = (state.vma[source, V_PGOFF] << 12) + (old - state.vma[source, V_START])
        if keep and wish > 0 and hint_fits(state, rules, space, wish, new_len):
            target = wish
        else:
            target = search_core(
                state, rules, space, new_len, shared, state.vma[source, V_FILE], offset
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
        if old_len > new_len:
            if unmap(state, space, old + new_len, end) < 0:
                return EPERM
            old_len = new_len
        _move(state, rules, space, old, old_len, new, new_len, keep)
        state.info[_ADDRESS] = new
        return 0
    at = old
    slot = source
    while slot >= 0 and state.vma[slot, V_START] < end:
        if state.vma[slot, V_FLAGS] & SEALED:
            return EPERM
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
            previous = new
        slot = state.vma[slot, V_NEXT]
    state.spaces[child, S_FLAGS] = state.spaces[space, S_FLAGS] & ~LOCK_MASK
    state.spaces[child, S_BRK] = state.spaces[space, S_BRK]
    state.spaces[child, S_BRK_START] = state.spaces[space, S_BRK_START]
    state.spaces[child, S_MMAP_BASE] = state.spaces[space, S_MMAP_BASE]
    return 0
