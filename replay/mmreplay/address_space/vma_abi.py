"""Constants of the system-call interface; where a new mapping goes and what flags it gets."""

from __future__ import annotations

from mmreplay.address_space.rules import Rule
from mmreplay.address_space.vma_index import find, search_down
from mmreplay.address_space.vma_state import (
    I64,
    NONE,
    S_FLAGS,
    S_LAST,
    S_MMAP_BASE,
    V_FLAGS,
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
#: Size that a stack may grow to: the usual RLIMIT_STACK (mm/vma.c:acct_stack_growth), which no
#: recording tells.
STACK_LIMIT = 8 << 20
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
PROT_GROWSDOWN = 0x01000000
MREMAP_MAYMOVE = 1
MREMAP_FIXED = 2
MREMAP_DONTUNMAP = 4
SHM_RDONLY = 0o10000
SHM_EXEC = 0o100000
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
MAYWRITE = int(Vm.MAYWRITE)
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
SYSV = int(Vm.SYSV)

_NONE = NONE
_ADDRESS = int(Info.ADDRESS)
_NO_CHANGE = int(Info.NO_CHANGE)
_NEXT_GROWSDOWN = int(Info.NEXT_GROWSDOWN)
_OVERLAPPED = int(Info.OVERLAPPED)
_MREMAP_KIND = int(Info.MREMAP_KIND)
_TARGET = int(Info.TARGET_SLOT)
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
    state: Core,
    rules: I64,
    space: int,
    length: int,
    flags: int,
    file: int,
    file_offset: int,
    hinted: bool,
) -> int:
    """Address that the kernel's top-down search gives a mapping; -1: no room.

    ``hinted``: a hint was given that did not fit.

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
            aligned = length >= PMD and length % PMD == 0 and not hinted
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
    if bits & (HUGETLB | DROPPABLE):
        bits &= ~LOCK_MASK
    if bits & (NORESERVE | SHARED | WRITE | HUGETLB) == WRITE:
        bits |= ACCOUNT
    return int(bits)
