"""One page fault: its VMA, its page and its traits (LOCKING §2.4 and §3), compiled.

What the hardware's error code says wins over what the planner believes of the
page; each disagreement is counted.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from mmreplay.address_space import page_state as pages_
from mmreplay.address_space import segments as segments_
from mmreplay.address_space.page_state import (
    ABSENT,
    ANON,
    CACHE,
    COW,
    DIRTY,
    PAGES,
    REGION_SHIFT,
    ZERO,
)
from mmreplay.address_space.plan import Trait
from mmreplay.address_space.plan_state import Count, Cursor, Status, add_dep
from mmreplay.address_space.rows import HINT_SHMEM, HINT_SPECIAL
from mmreplay.address_space.vma_index import find
from mmreplay.address_space.vma_map import cover, fault
from mmreplay.address_space.vma_state import NEED_SPACE, Info, Num, Vm
from mmreplay.jit import njit
from mmreplay.schema import FaultBits, FaultClass, OpKind

# numba freezes module globals: plain integers
_T_KERNEL = int(Trait.KERNEL_MODE)
_T_WRITE = int(Trait.WRITE)
_T_ANON = int(Trait.ANON)
_T_FILE = int(Trait.FILE)
_T_SHMEM = int(Trait.SHMEM)
_T_SHARED = int(Trait.SHARED)
_T_HOLE = int(Trait.HOLE)
_T_ACCESS = int(Trait.ACCESS_ERROR)
_T_NEEDS_ANON = int(Trait.NEEDS_ANON_VMA)
_T_TABLE = int(Trait.TABLE_MISSING)
_T_IO = int(Trait.NEEDS_IO)
_T_PRESENT = int(Trait.PRESENT)
_T_COW = int(Trait.COW)
_T_REUSE = int(Trait.REUSE)
_T_ZERO = int(Trait.ZERO_PAGE)
_T_AROUND = int(Trait.FAULT_AROUND)
_T_HUGE = int(Trait.HUGE)
_T_HUGETLB = int(Trait.HUGETLB)
_T_SWAP = int(Trait.SWAP)
_T_NO_MAP = int(Trait.NO_MAP_PAGES)
_T_UFFD = int(Trait.UFFD)
_T_STACK = int(Trait.STACK_GROWTH)
_T_LOCKED = int(Trait.LOCKED)
_T_FAILED = int(Trait.FAILED)
_T_MKWRITE = int(Trait.MKWRITE)
_T_UNKNOWN = int(Trait.UNKNOWN_VMA)
_T_STRUCTURAL = int(Trait.STRUCTURAL)

_V_READ = int(Vm.READ)
_V_WRITE = int(Vm.WRITE)
_V_EXEC = int(Vm.EXEC)
_V_SHARED = int(Vm.SHARED)
_V_LOCKED = int(Vm.LOCKED)
_V_HUGEPAGE = int(Vm.HUGEPAGE)
_V_NOHUGE = int(Vm.NOHUGEPAGE)
_V_HUGETLB = int(Vm.HUGETLB)
_V_SPECIAL = int(Vm.SPECIAL)
_V_UFFD = int(Vm.UFFD)
_V_UNKNOWN = int(Vm.UNKNOWN)

_B_PRESENT = int(FaultBits.PRESENT)
_B_WRITE = int(FaultBits.WRITE)
_B_EXEC = int(FaultBits.INSTRUCTION)
_MAJOR = int(FaultClass.MAJOR)
_FAILED = int(FaultClass.FAILED)
_MINOR = int(FaultClass.MINOR)
_FAULT_KERNEL = int(OpKind.FAULT_KERNEL)

_I_FIRST = int(Info.FIRST_SLOT)
_I_STACK = int(Info.STACK_GROWTH)
_I_ACCESS = int(Info.ACCESS_ERROR)
_NEXT_ANON = int(Num.NEXT_ANON)

_C_UNKNOWN = int(Count.UNKNOWN_FAULTS)
_C_NO_ADDRESS = int(Count.FAULT_WITHOUT_ADDRESS)
_C_WRITE = int(Count.WRITE_GUESSED)
_C_PRESENT = int(Count.PRESENT_LEARNT)
_C_ABSENT = int(Count.ABSENT_UNEXPECTED)
_C_COW = int(Count.COW_GUESSED)
_C_ACCESS = int(Count.ACCESS_CONTRADICTED)
_C_FAILED = int(Count.FAILED_IN_VMA)
_C_HUGE = int(Count.HUGE_GUESSED)
_C_NOT_HUGE = int(Count.HUGE_CONTRADICTED)
_C_TABLE = int(Count.TABLE_ASSUMED)
_C_AROUND = int(Count.FAULT_AROUND_PAGES)
_SLOTS = int(Cursor.SLOTS)
_GROW_MAP = int(Status.GROW_MAP)

#: Files that the map numbers itself are shared anonymous memory.
OWN_FILES: Final = 1 << 62
#: fault_around_bytes, mm/memory.c@6.18: 64 KiB, aligned.
FAULT_AROUND: Final = 16
#: An unknown VMA is made for one page-table page at most.
_COVER: Final = 1 << 21


@njit
def vma_traits(w, flags, file):
    """Traits that the VMA's kind gives to every operation on it."""
    t = 0
    if flags & _V_SHARED:
        t |= _T_SHARED
    if flags & _V_HUGETLB:
        t |= _T_HUGETLB
    elif file == 0:
        t |= _T_SHMEM if flags & _V_SHARED else _T_ANON
    elif file >= OWN_FILES:
        t |= _T_SHMEM
    else:
        hint = w.file_class[file - 1] if file <= len(w.file_class) else 0
        t |= _T_SHMEM if hint & HINT_SHMEM else _T_FILE
        if hint & HINT_SPECIAL:
            t |= _T_NO_MAP
    if flags & _V_SPECIAL:
        t |= _T_NO_MAP
    if flags & _V_UFFD:
        t |= _T_UFFD
    if flags & _V_LOCKED:
        t |= _T_LOCKED
    if flags & _V_UNKNOWN:
        t |= _T_UNKNOWN
    return t


@njit
def new_anon_slot(w, initial):
    """A fresh anon_vma bit."""
    slot = w.cursor[_SLOTS]
    w.cursor[_SLOTS] += 1
    w.anon_initial[slot] = initial
    w.anon_set[slot] = initial
    return np.int32(slot)


@njit
def anon_slot_of(m, w, slot):
    """The anon_vma bit of the VMA in map slot ``slot``: see the rules in docs/address-space.md.

    A VMA object keeps its bit.  A VMA that was cut off, copied or merged after an
    anon_vma had been set uses the bit of the VMA that it got the anon_vma from.
    """
    identity = m.anon[slot]
    mine = w.slot_anon[slot] if w.slot_uid[slot] == m.uid[slot] else np.int32(-1)
    if mine >= 0 and (identity == 0 or w.anon_set[mine]):
        return mine
    if identity != 0:
        space = m.space[slot]
        if w.identity_slot[identity] >= 0 and w.identity_space[identity] == space:
            mine = w.identity_slot[identity]
        else:  # from before the recording, or inherited over fork: it is there
            mine = new_anon_slot(w, 1)
            w.identity_slot[identity] = mine
            w.identity_space[identity] = space
    else:
        mine = new_anon_slot(w, 0)
    w.slot_uid[slot] = m.uid[slot]
    w.slot_anon[slot] = mine
    return mine


@njit
def anon_first_write(m, w, slot, bit, recorded_before):
    """The VMA has just got its anon_vma in recorded order."""
    identity = m.anon[slot]
    if identity != 0 and w.identity_slot[identity] < 0:
        w.identity_slot[identity] = bit
        w.identity_space[identity] = m.space[slot]
    w.anon_set[bit] = 1
    if recorded_before:
        w.anon_initial[bit] = 1


@njit
def table_slot(p, w, space, page, before, old):
    """(region slot, made): the page's table; a new one starts absent unless it was before."""
    n = p.meta[2]
    slot = pages_.make(p, space, page >> REGION_SHIFT)
    made = p.meta[2] > n
    if made:
        w.table_initial[n] = 1 if (before or old) else 0
        if old:
            w.counters[_C_TABLE] += 1
    return slot, made


@njit
def _cow_or_reuse(p, w, space, page, state):
    """Whether a write-protect fault on a shared-or-not anonymous page copies it."""
    if state != COW:
        return False
    partner = w.partner[space]
    if partner < 0:
        return False
    there = pages_.find(p, partner, page >> REGION_SHIFT)
    return there >= 0 and p.state[there, page & (PAGES - 1)] == COW


@njit
def _demote(p, slot):
    """Later faults contradict the huge page: keep only the pages that were faulted."""
    n = 0
    for i in range(PAGES):
        if p.last_use[slot, i] < 0:
            p.state[slot, i] = ABSENT
        elif p.state[slot, i] != ABSENT:
            n += 1
    p.n_present[slot] = n
    p.huge[slot] = 0


@njit
def _around(p, m, slot, region_slot, page):
    """Fault-around: map the aligned window, as far as VMA and table reach."""
    base = p.region[region_slot] << REGION_SHIFT
    low = max(page & ~np.int64(FAULT_AROUND - 1), m.start[slot] >> 12, base)
    high = min((page | (FAULT_AROUND - 1)) + 1, m.end[slot] >> 12, base + PAGES)
    n = 0
    for q in range(low, high):
        if p.state[region_slot, q - base] == ABSENT:
            p.state[region_slot, q - base] = CACHE
            p.n_present[region_slot] += 1
            n += 1
    return n


@njit
def plan_fault(rows, i, m, rules, p, s, w, out, o, inside, thread, space, options):
    """Plan the fault in row ``i`` into row ``o`` of ``out``; returns a Status."""
    kind = rows.kind[i]
    bits = rows.bits[i]
    fault_class = rows.fault_class[i]
    address = rows.address[i]
    page = address >> 12
    known = bits != 255
    write = known and (bits & _B_WRITE) != 0
    execute = known and (bits & _B_EXEC) != 0
    traits = _T_KERNEL if kind == _FAULT_KERNEL else 0
    out.first_page[o] = page
    out.last_page[o] = page
    out.vmas[o] = 1
    out.pages[o] = 1
    if not rows.has_address[i] or address < 0:
        # null, or in the kernel half (vsyscall): nothing to look up
        w.counters[_C_NO_ADDRESS] += 1
        out.traits[o] |= np.uint64(traits | _T_UNKNOWN | _T_HOLE)
        out.first_page[o] = max(page, 0)
        out.last_page[o] = max(page, 0)
        out.pages[o] = 0
        out.vmas[o] = 0
        return 0
    above = find(m, space, address)
    in_vma = above >= 0 and m.start[above] <= address
    if not in_vma and fault_class == _FAILED:
        out.traits[o] |= np.uint64(traits | _T_HOLE | _T_FAILED | (_T_WRITE if write else 0))
        out.pages[o] = 0
        out.vmas[o] = 0
        return 0
    grew = False
    if not in_vma:
        if fault(m, rules, space, address, False, False) == NEED_SPACE:
            return _GROW_MAP
        grew = m.info[_I_STACK] == 1
        if not grew:
            low = address & ~np.int64(_COVER - 1)
            if cover(m, rules, space, low, low + _COVER) == NEED_SPACE:
                return _GROW_MAP
            w.counters[_C_UNKNOWN] += 1
        above = find(m, space, address)
    if not known:
        # Without error bits: the state of the page and the VMA's kind decide.
        region = pages_.find(p, space, page >> REGION_SHIFT)
        state = p.state[region, page & (PAGES - 1)] if region >= 0 else np.uint8(ABSENT)
        private_anon = m.file[above] == 0 and m.flags[above] & _V_SHARED == 0
        write = m.flags[above] & _V_WRITE != 0 and (private_anon or state in (ZERO, CACHE, COW))
    private = m.flags[above] & _V_SHARED == 0
    # before the map learns of a first write: the bit belongs to the VMA as it was
    bit = anon_slot_of(m, w, above) if private else np.int32(-1)
    if fault(m, rules, space, address, write, execute) == NEED_SPACE:
        return _GROW_MAP
    if not known:
        w.counters[_C_WRITE] += 1
    slot = np.int64(m.info[_I_FIRST])
    flags = m.flags[slot]
    if write:
        traits |= _T_WRITE
    traits |= vma_traits(w, flags, m.file[slot])
    if grew:
        traits |= _T_STACK | _T_STRUCTURAL
    out.vma[o] = m.uid[slot]
    out.file[o] = m.file[slot]
    out.anon_slot[o] = bit
    # -- access ---------------------------------------------------------------------
    if m.info[_I_ACCESS] == 1:
        if fault_class in (_MINOR, _MAJOR):
            w.counters[_C_ACCESS] += 1  # it succeeded: the protection we know is stale
        else:
            out.traits[o] |= np.uint64(traits | _T_ACCESS)
            out.pages[o] = 0
            return 0
    maker = segments_.get(s, space, page)
    add_dep(w, out, thread, maker)
    if fault_class == _FAILED:
        w.counters[_C_FAILED] += 1
        out.traits[o] |= np.uint64(traits | _T_FAILED)
        out.pages[o] = 0
        return 0
    if write and private:
        traits |= _T_NEEDS_ANON
        if not w.anon_set[bit]:
            anon_first_write(m, w, slot, bit, not inside)
    # -- page-table page --------------------------------------------------------------
    old = maker == -1 and w.space_old[space] != 0
    region, made = table_slot(p, w, space, page, not inside, old)
    table = p.table[region]
    out.table[o] = table
    out.tables[o] = 1
    thread_bit = np.uint64(1) << np.uint64(thread & 63)
    index = page & (PAGES - 1)
    major = fault_class == _MAJOR
    # -- huge page ----------------------------------------------------------------------
    if p.huge[region] and (known and bits & _B_PRESENT == 0):
        w.counters[_C_NOT_HUGE] += 1
        _demote(p, region)
    if (
        made
        and not old
        and traits & _T_ANON
        and traits & _T_UNKNOWN == 0
        and options.huge >= 0
        and (flags & _V_HUGEPAGE or (options.huge > 0 and flags & _V_NOHUGE == 0))
        and not major
        and m.start[slot] >> 12 <= (page & ~np.int64(PAGES - 1))
        and m.end[slot] >> 12 >= (page | (PAGES - 1)) + 1
    ):
        state = np.uint8(ANON) if write else np.uint8(ZERO)
        p.state[region, :] = state
        p.n_present[region] = PAGES
        p.huge[region] = 1
        p.seen[region] = ~np.uint64(0)
        w.counters[_C_HUGE] += 1
        out.pages[o] = PAGES if write else 1
        traits |= _T_HUGE | (0 if write else _T_ZERO)
        if inside:
            p.last_use[region, index] = o
        out.traits[o] |= np.uint64(traits)
        return 0
    if w.table_initial[table] == 0 and p.seen[region] & thread_bit == np.uint64(0):
        traits |= _T_TABLE
    p.seen[region] |= thread_bit
    if inside:
        p.last_use[region, index] = o
    # -- the page -----------------------------------------------------------------------
    state = p.state[region, index]
    if known:
        present = bits & _B_PRESENT != 0
        if present and state == ABSENT:
            w.counters[_C_PRESENT] += 1
            if write and private:
                w.counters[_C_COW] += 1
            state = np.uint8(COW) if traits & _T_ANON else np.uint8(CACHE)
            pages_.put(p, region, index, state)
        elif not present and state != ABSENT:
            w.counters[_C_ABSENT] += 1
            state = np.uint8(ABSENT)
            pages_.put(p, region, index, state)
    else:
        present = state != ABSENT and write and state in (ZERO, CACHE, COW)
        if not present and state != ABSENT:
            w.counters[_C_ABSENT] += 1
            state = np.uint8(ABSENT)
            pages_.put(p, region, index, state)
    if major:
        traits |= _T_IO
    after = state
    if present:
        traits |= _T_PRESENT
        if write:
            if not private:
                traits |= _T_REUSE
                after = np.uint8(DIRTY)
                if traits & _T_FILE:
                    traits |= _T_MKWRITE
            else:
                if state in (ZERO, CACHE) or _cow_or_reuse(p, w, space, page, state):
                    traits |= _T_COW
                elif state == COW and w.partner[space] < 0:
                    traits |= _T_COW  # learnt from the error bits: history unknown
                else:
                    traits |= _T_REUSE
                after = np.uint8(ANON)
        else:
            out.pages[o] = 0  # spurious, or a NUMA hint
    elif write:
        after = np.uint8(ANON)
        if not private:
            after = np.uint8(DIRTY)
            if traits & _T_FILE:
                traits |= _T_MKWRITE
        elif traits & (_T_FILE | _T_SHMEM):
            traits |= _T_COW
        elif major:
            traits |= _T_SWAP
    elif traits & (_T_FILE | _T_SHMEM):
        after = np.uint8(CACHE)
        if not major and traits & _T_NO_MAP == 0:
            traits |= _T_AROUND
            filled = _around(p, m, slot, region, page)
            w.counters[_C_AROUND] += filled - 1
            out.pages[o] = max(filled, 1)
    elif major:
        traits |= _T_SWAP
        after = np.uint8(ANON)
    elif traits & _T_HUGETLB:
        after = np.uint8(ANON)
    else:
        traits |= _T_ZERO
        after = np.uint8(ZERO)
    pages_.put(p, region, index, after)
    out.traits[o] |= np.uint64(traits)
    return 0
