"""``apply`` and its companions on the arrays of a map, compiled (public face: vma_map)."""

from __future__ import annotations

from mmreplay.address_space.plan import MarkSet
from mmreplay.address_space.rules import Rule
from mmreplay.address_space.vma_abi import (
    ACCESS,
    DROPPABLE,
    EINVAL,
    ENOMEM,
    EPERM,
    EXEC,
    GROWSDOWN,
    LOCKED,
    LOCKONFAULT,
    MAP_FIXED,
    MAY,
    MAYSHARE,
    MAYWRITE,
    PAGE,
    READ,
    SEALED,
    SHARED,
    SHM_EXEC,
    SHM_RDONLY,
    SPECIAL,
    STACK_LIMIT,
    SYSV,
    UFFD,
    WRITE,
    page_up,
)
from mmreplay.address_space.vma_core import (
    TARGETS,
    absorb,
    forget_guesses,
    make,
    mark,
    prepare_anon,
    unmap,
)
from mmreplay.address_space.vma_index import find, has_room, reserve_directory, set_end, set_start
from mmreplay.address_space.vma_move import (
    do_brk,
    do_clear,
    do_fork,
    do_mremap,
)
from mmreplay.address_space.vma_ops import (
    do_madvise,
    do_mlock,
    do_mlockall,
    do_mmap,
    do_mprotect,
    do_munmap,
    do_set_flag,
    do_touch_vmas,
)
from mmreplay.address_space.vma_state import (
    I64,
    LISTED,
    NONE,
    S_BRK,
    S_FLAGS,
    S_LAST,
    S_VMAS,
    V_ANON,
    V_END,
    V_FILE,
    V_FLAGS,
    V_LOCK,
    V_NEXT,
    V_ORIGIN,
    V_PGOFF,
    V_PREV,
    V_START,
    V_UID,
    Core,
    Info,
    Num,
    Status,
    Vm,
)
from mmreplay.jit import borrowing_helper
from mmreplay.schema import OpKind, UffdOp

_NONE = NONE
_OK = int(Status.OK)
_NEED_SPACE = int(Status.NEED_SPACE)
_FAILED = int(Status.FAILED)
_IGNORED = int(Status.IGNORED)
_OPERATION = int(Num.OPERATION)
_DISAGREED = int(Num.DISAGREED)
_N_UNKNOWN = int(Num.UNKNOWN_VMAS)
_N_UNKNOWN_PAGES = int(Num.UNKNOWN_PAGES)
_VMAS = int(Info.VMAS)
_FIRST_SLOT = int(Info.FIRST_SLOT)
_FIRST_UID = int(Info.FIRST_UID)
_FIRST_LOCK = int(Info.FIRST_LOCK)
_FIRST_FLAGS = int(Info.FIRST_FLAGS)
_FIRST_FILE = int(Info.FIRST_FILE)
_FIRST_ANON = int(Info.FIRST_ANON)
_FIRST_START = int(Info.FIRST_START)
_FIRST_END = int(Info.FIRST_END)
_HOLE = int(Info.HOLE)
_MULTI = int(Info.MULTI)
_ADDRESS = int(Info.ADDRESS)
_TARGET_SLOT = int(Info.TARGET_SLOT)
_TARGET_UID = int(Info.TARGET_UID)
_STACK_GROWTH = int(Info.STACK_GROWTH)
_ACCESS_ERROR = int(Info.ACCESS_ERROR)
_ERROR = int(Info.ERROR)
_NO_CHANGE = int(Info.NO_CHANGE)
_GUARD = int(Rule.STACK_GUARD_PAGES)
_REMOVED = int(MarkSet.REMOVED)
_PARENT = int(MarkSet.PARENT_VMAS)
_UNKNOWN = int(Vm.UNKNOWN)

_MMAP = int(OpKind.MMAP)
_MUNMAP = int(OpKind.MUNMAP)
_MPROTECT = int(OpKind.MPROTECT)
_PKEY_MPROTECT = int(OpKind.PKEY_MPROTECT)
_MADVISE = int(OpKind.MADVISE)
_BRK = int(OpKind.BRK)
_MREMAP = int(OpKind.MREMAP)
_MLOCK = int(OpKind.MLOCK)
_MUNLOCK = int(OpKind.MUNLOCK)
_MLOCKALL = int(OpKind.MLOCKALL)
_MUNLOCKALL = int(OpKind.MUNLOCKALL)
_FORK = int(OpKind.FORK)
_EXEC = int(OpKind.EXEC)
_PROCESS_EXIT = int(OpKind.PROCESS_EXIT)
_SHMAT = int(OpKind.SHMAT)
_SHMDT = int(OpKind.SHMDT)
_MSEAL = int(OpKind.MSEAL)
_MBIND = int(OpKind.MBIND)
_UFFD = int(OpKind.UFFD)
_UFFD_REGISTER = int(UffdOp.REGISTER)
_UFFD_UNREGISTER = int(UffdOp.UNREGISTER)
# errno values after which a part of the work may have been done
_PARTIAL_ERRORS = (1, 12, 13, 22)


@borrowing_helper
def _begin(state: Core) -> None:
    for k in range(len(state.info)):
        state.info[k] = 0
    state.info[_FIRST_SLOT] = -1
    state.info[_FIRST_UID] = -1
    state.info[_FIRST_LOCK] = -1
    state.info[_TARGET_SLOT] = -1
    state.info[_TARGET_UID] = -1
    state.numbers[_OPERATION] += 1


@borrowing_helper
def _survey(state: Core, space: int, start: int, end: int) -> None:
    """Fill VMAS, FIRST_*, HOLE and MULTI for the range as it is now."""
    info = state.info
    slot = find(state, space, start)
    at = start
    count = 0
    if slot >= 0 and state.vma[slot, V_START] < end:
        info[_FIRST_SLOT] = slot
        info[_FIRST_UID] = state.vma[slot, V_UID]
        info[_FIRST_LOCK] = state.vma[slot, V_LOCK]
        info[_FIRST_FLAGS] = state.vma[slot, V_FLAGS]
        info[_FIRST_FILE] = state.vma[slot, V_FILE]
        info[_FIRST_ANON] = state.vma[slot, V_ANON]
        info[_FIRST_START] = state.vma[slot, V_START]
        info[_FIRST_END] = state.vma[slot, V_END]
        info[_MULTI] = 1 if state.vma[slot, V_END] < end else 0
        while slot >= 0 and state.vma[slot, V_START] < end:
            if state.vma[slot, V_START] > at:
                info[_HOLE] = 1
            at = state.vma[slot, V_END]
            count += 1
            slot = state.vma[slot, V_NEXT]
    if at < end:
        info[_HOLE] = 1
    info[_VMAS] = count


@borrowing_helper
def _would_fail(
    state: Core, space: int, kind: int, start: int, end: int, flags: int, prot: int
) -> bool:
    """Whether some VMA of the range (or a hole) explains that the call failed half-way."""
    if state.info[_HOLE] != 0:
        return True
    slot = find(state, space, start)
    while slot >= 0 and state.vma[slot, V_START] < end:
        bits = state.vma[slot, V_FLAGS]
        if bits & SEALED and kind != _MLOCK:
            return True
        if kind == _MLOCK and not bits & (ACCESS | SPECIAL) and (flags == _NONE or not flags & 1):
            return True  # mlock without MLOCK_ONFAULT: flags are set, then populating fails
        if kind in (_MPROTECT, _PKEY_MPROTECT):
            wanted = 0
            if prot & 1:
                wanted |= READ
            if prot & 2:
                wanted |= WRITE
            if prot & 4:
                wanted |= EXEC
            if wanted & ~(bits >> 4) & ACCESS:
                return True
        elif kind == _MADVISE:
            if flags == 18 and (state.vma[slot, V_FILE] != 0 or bits & SHARED):
                return True
            if flags == 17 and bits & (SPECIAL | DROPPABLE):
                return True
            if flags == 23 and not bits & WRITE:
                return True
        slot = state.vma[slot, V_NEXT]
    return False


@borrowing_helper
def apply_core(
    state: Core,
    rules: I64,
    space: int,
    kind: int,
    address: int,
    length: int,
    address2: int,
    length2: int,
    prot: int,
    flags: int,
    file_offset: int,
    file_id: int,
    result: int,
) -> int:
    """See ``vma_map.apply``."""
    extra = 8
    if kind == _FORK:
        if not has_room(state, address2, state.spaces[space, S_VMAS] + 1):
            return _NEED_SPACE
        reserve_directory(state, address2, state.spaces[space, S_VMAS] + 1)
    if not has_room(state, space, extra):
        return _NEED_SPACE
    reserve_directory(state, space, extra)
    _begin(state)
    if kind == _MREMAP and length2 > 0:
        _survey(state, space, address, address + page_up(length2))
        many = 8 + 4 * state.info[_VMAS]
        if many > 12:
            if not has_room(state, space, many):
                return _NEED_SPACE
            reserve_directory(state, space, many)
    failed = result != _NONE and -4096 < result < 0
    lenient = result != _NONE and not failed
    error = 0
    if kind == _MMAP:
        if failed:
            if result == -EPERM and flags & MAP_FIXED and length > 0 and address2 > 0:
                end = address2 + page_up(length)
                if _would_fail(state, space, kind, address2, end, flags, prot):
                    unmap(state, space, address2, end)  # a sealed VMA; what was cut stays cut
            state.info[_ERROR] = -result
            return _FAILED
        placed = result
        if placed == _NONE and address != _NONE and address > 0:
            placed = address
        if placed != _NONE:
            if not flags & MAP_FIXED:  # what is placed freely lies where nothing was
                forget_guesses(state, space, placed, placed + page_up(length))
            _survey(state, space, placed, placed + page_up(length))
        elif address2 > 0:
            _survey(state, space, address2, address2 + page_up(length))
        error = do_mmap(
            state, rules, space, placed, address2, length, prot, flags, file_offset, file_id
        )
    elif kind == _BRK:
        lowered = result if result != _NONE else address2
        if _NONE < lowered < state.spaces[space, S_BRK]:
            _survey(state, space, page_up(lowered), page_up(state.spaces[space, S_BRK]))
        error = do_brk(state, rules, space, address2, result)
    elif kind == _MREMAP:
        if failed and -result != 14:
            state.info[_ERROR] = -result
            return _FAILED
        error = do_mremap(state, rules, space, address, length2, length, flags, address2, result)
        failed = False
        lenient = result != _NONE and result >= 0
    elif kind == _FORK:
        if failed:
            state.info[_ERROR] = -result
            return _FAILED
        error = do_fork(state, space, address2, _PARENT)
    elif kind in (_EXEC, _PROCESS_EXIT):
        do_clear(state, space, _REMOVED)
    elif kind in (_MLOCKALL, _MUNLOCKALL):
        if failed:
            state.info[_ERROR] = -result
            return _FAILED
        error = do_mlockall(state, rules, space, flags if kind == _MLOCKALL else 0)
    elif kind == _SHMDT:
        if failed:
            return _FAILED
        error = _detach(state, space, address)
    else:
        if address == _NONE or length == _NONE:
            return _IGNORED
        end = address + page_up(length)
        _survey(state, space, address, end)
        if failed and (
            -result not in _PARTIAL_ERRORS
            or (result == -EINVAL and kind != _MADVISE)  # arguments are checked first
            or (result != -EPERM and kind == _MUNMAP)
            or kind == _SHMAT
            or not _would_fail(state, space, kind, address, end, flags, prot)
        ):
            state.info[_ERROR] = -result
            state.info[_NO_CHANGE] = 1
            return _FAILED
        if kind == _MUNMAP:
            error = do_munmap(state, space, address, length)
        elif kind in (_MPROTECT, _PKEY_MPROTECT):
            error = do_mprotect(state, rules, space, address, length, prot, lenient)
        elif kind == _MADVISE:
            error = do_madvise(state, rules, space, address, length, flags, lenient)
        elif kind == _MLOCK:
            add = LOCKED | LOCKONFAULT if flags != _NONE and flags & 1 else LOCKED
            error = do_mlock(state, rules, space, address, length, add, lenient)
        elif kind == _MUNLOCK:
            error = do_mlock(state, rules, space, address, length, 0, lenient)
        elif kind == _MSEAL:
            error = do_set_flag(state, rules, space, address, length, SEALED, 0)
        elif kind == _UFFD and flags == _UFFD_REGISTER:
            error = do_set_flag(state, rules, space, address, length, UFFD, 0)
        elif kind == _UFFD and flags == _UFFD_UNREGISTER:
            error = do_set_flag(state, rules, space, address, length, 0, UFFD)
        elif kind == _MBIND:
            error = do_touch_vmas(state, space, address, length)
        elif kind == _SHMAT:
            error = _attach(state, space, result if lenient else address, length, flags, file_id)
        else:
            return _IGNORED
    slot = state.info[_TARGET_SLOT]
    if slot >= 0:
        state.info[_TARGET_UID] = state.vma[slot, V_UID]
    state.info[_ERROR] = error
    if error != 0 and lenient:
        state.numbers[_DISAGREED] += 1
    return _OK if error == 0 else _FAILED


@borrowing_helper
def _attach(state: Core, space: int, address: int, length: int, flags: int, file: int) -> int:
    """shmat: a shared mapping that no merge removes (its vm_ops has close)."""
    if address <= 0 or length <= 0:
        return ENOMEM
    if flags == _NONE:
        flags = 0
    bits = MAYSHARE | MAY | READ | SYSV | state.spaces[space, S_FLAGS]
    if flags & SHM_RDONLY:
        bits &= ~MAYWRITE  # do_mmap of a file that is not open for writing
    else:
        bits |= SHARED | WRITE
    if flags & SHM_EXEC:
        bits |= EXEC
    end = address + page_up(length)
    unmap(state, space, address, end)
    following = find(state, space, address)
    previous = state.spaces[space, S_LAST] if following < 0 else state.vma[following, V_PREV]
    slot = make(state, space, address, end, bits, 0, file, previous)
    mark(state, slot, 5)
    state.info[_TARGET_SLOT] = slot
    state.info[_ADDRESS] = address
    return 0


@borrowing_helper
def _detach(state: Core, space: int, address: int) -> int:
    """shmdt: every VMA of the segment that was attached at ``address``."""
    slot = find(state, space, address)
    if slot < 0 or state.vma[slot, V_START] != address or not state.vma[slot, V_FLAGS] & SYSV:
        return 22
    file = state.vma[slot, V_FILE]
    base = address - (state.vma[slot, V_PGOFF] << 12)
    _survey(state, space, address, state.vma[slot, V_END])
    while slot >= 0 and state.vma[slot, V_FILE] == file:
        following = state.vma[slot, V_NEXT]
        if state.vma[slot, V_START] - (state.vma[slot, V_PGOFF] << 12) == base:
            unmap(state, space, state.vma[slot, V_START], state.vma[slot, V_END])
        slot = following
    return 0


@borrowing_helper
def fault_core(state: Core, rules: I64, space: int, address: int, write: int, execute: int) -> int:
    """Replay a page fault; returns OK, or FAILED for a hole or a forbidden access.

    ``info``: VMAS (0 or 1), FIRST_* as before the fault, HOLE, STACK_GROWTH, ACCESS_ERROR,
    ANON_NEW.  A GROWSDOWN VMA above the address grows to it where the guard gap allows
    (mm/vma.c:expand_downwards); a first write to a private VMA gives it an anon_vma.
    """
    _begin(state)
    info = state.info
    slot = find(state, space, address)
    if slot >= 0 and state.vma[slot, V_START] > address:
        slot = _grow_stack(state, rules, slot, address)
    if slot < 0 or state.vma[slot, V_END] <= address:
        info[_HOLE] = 1
        info[_ERROR] = 14
        return _FAILED
    info[_VMAS] = 1
    info[_FIRST_SLOT] = slot
    info[_FIRST_UID] = state.vma[slot, V_UID]
    info[_FIRST_LOCK] = state.vma[slot, V_LOCK]
    info[_FIRST_START] = state.vma[slot, V_START]
    info[_FIRST_END] = state.vma[slot, V_END]
    bits = state.vma[slot, V_FLAGS]
    info[_FIRST_FLAGS] = bits
    info[_FIRST_FILE] = state.vma[slot, V_FILE]
    if info[_STACK_GROWTH] == 0:
        info[_FIRST_ANON] = state.vma[slot, V_ANON]
    if not touch_core(state, slot, write, execute):
        info[_ACCESS_ERROR] = 1
        info[_ERROR] = 14
        return _FAILED
    return _OK


@borrowing_helper
def touch_core(state: Core, slot: int, write: int, execute: int) -> bool:
    """A page of a VMA is touched: False where the VMA forbids it (an unknown one never does).

    A first write to a private VMA gives it an anon_vma.
    """
    bits = state.vma[slot, V_FLAGS]
    if write:
        if not bits & (WRITE | _UNKNOWN):
            return False
        if not bits & SHARED and state.vma[slot, V_ANON] == 0:
            prepare_anon(state, slot)
        return True
    return bool(bits & (EXEC | _UNKNOWN) if execute else bits & (ACCESS | _UNKNOWN))


@borrowing_helper
def _grow_stack(state: Core, rules: I64, slot: int, address: int) -> int:
    """expand_downwards; returns the VMA or -1."""
    if not state.vma[slot, V_FLAGS] & GROWSDOWN:
        return -1
    address &= ~(PAGE - 1)
    if address < 65536:
        return -1
    previous = state.vma[slot, V_PREV]
    if previous >= 0:
        bits = state.vma[previous, V_FLAGS]
        near = address - state.vma[previous, V_END] < rules[_GUARD] * PAGE
        if near and bits & ACCESS and not bits & GROWSDOWN:
            return -1
    pages = (state.vma[slot, V_START] - address) >> 12
    if pages > state.vma[slot, V_PGOFF] or state.vma[slot, V_END] - address > STACK_LIMIT:
        return -1
    mark(state, slot, TARGETS)
    state.info[_FIRST_ANON] = state.vma[slot, V_ANON]
    prepare_anon(state, slot)
    state.vma[slot, V_PGOFF] -= pages
    set_start(state, slot, address)
    state.info[_STACK_GROWTH] = 1
    return slot


@borrowing_helper
def lookup_core(state: Core, space: int, address: int) -> int:
    """Slot of the VMA that holds ``address``, or -1; its id is ``state.vma[slot, V_UID]``."""
    slot = find(state, space, address)
    if slot < 0 or state.vma[slot, V_START] > address:
        return -1
    return int(slot)


@borrowing_helper
def cover_core(state: Core, rules: I64, space: int, start: int, end: int) -> int:
    """Make UNKNOWN VMAs (readable, writable, no anon_vma) of every hole in [start, end).

    They extend an UNKNOWN VMA that ends where the hole begins.  Counted in ``numbers``.
    """
    start &= ~(PAGE - 1)
    end = page_up(end)
    _begin(state)
    _survey(state, space, start, end)
    room = state.info[_VMAS] + 2
    if not has_room(state, space, room):
        return _NEED_SPACE
    reserve_directory(state, space, room)
    bits = _UNKNOWN | READ | WRITE | MAY
    at = start
    while at < end:
        slot = find(state, space, at)
        top = end
        if slot >= 0:
            if state.vma[slot, V_START] <= at:
                at = state.vma[slot, V_END]
                continue
            top = min(end, state.vma[slot, V_START])
            previous = state.vma[slot, V_PREV]
        else:
            previous = state.spaces[space, S_LAST]
        state.numbers[_N_UNKNOWN_PAGES] += (top - at) >> 12
        if (
            previous >= 0
            and state.vma[previous, V_END] == at
            and state.vma[previous, V_FLAGS] == bits
        ):
            set_end(state, previous, top)
        else:
            make(state, space, at, top, bits, at >> 12, 0, previous)
            state.numbers[_N_UNKNOWN] += 1
        at = top
    return _OK


@borrowing_helper
def insert_core(
    state: Core,
    rules: I64,
    space: int,
    start: int,
    end: int,
    vm_flags: int,
    pgoff: int,
    file_id: int,
    anon: int,
) -> int:
    """Put one known VMA (exec, snapshot, MMAP2 record) in place of what is there; never merges.

    Where VMAs of the same kind are there already, the lowest grows to the known one.
    ``anon``: 1 gives a new one an anon_vma of its own, 0 none.
    """
    if not has_room(state, space, 8):
        return _NEED_SPACE
    reserve_directory(state, space, 8)
    _begin(state)
    slot = absorb(state, space, start, end, vm_flags, file_id)
    if slot >= 0:
        state.info[_TARGET_SLOT] = slot
        state.info[_TARGET_UID] = state.vma[slot, V_UID]
        return _OK
    unmap(state, space, start, end)
    following = find(state, space, start)
    previous = state.spaces[space, S_LAST] if following < 0 else state.vma[following, V_PREV]
    slot = make(state, space, start, end, vm_flags, pgoff, file_id, previous)
    state.vma[slot, V_ORIGIN] = LISTED
    if anon:
        prepare_anon(state, slot)
    state.info[_TARGET_SLOT] = slot
    state.info[_TARGET_UID] = state.vma[slot, V_UID]
    return _OK
