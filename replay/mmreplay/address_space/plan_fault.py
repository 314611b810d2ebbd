"""One page fault: its VMA, its page and its traits (LOCKING §2.4 and §3), compiled.

What the hardware's error code says wins over what the planner believes of the
page; each disagreement is counted.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from mmreplay.address_space import page_state as pages_
from mmreplay.address_space import segments as segments_
from mmreplay.address_space.mappings import HINT_SHMEM, HINT_SPECIAL
from mmreplay.address_space.page_state import (
    ABSENT,
    ANON,
    CACHE,
    COW,
    DIRTY,
    FAULT_AROUND,
    PAGES,
    REGION_SHIFT,
    ZERO,
)
from mmreplay.address_space.plan import MarkSet, PlanOp, Trait
from mmreplay.address_space.plan_state import Count, Cursor, Status, add_dep
from mmreplay.address_space.vma_apply import cover_core, fault_core, touch_core
from mmreplay.address_space.vma_core import prepare_anon
from mmreplay.address_space.vma_index import find
from mmreplay.address_space.vma_state import (
    E_LOCK,
    E_ROLE,
    NEED_SPACE,
    OWN_FILES,
    V_ANON,
    V_END,
    V_FILE,
    V_FLAGS,
    V_LOCK,
    V_SPACE,
    V_START,
    V_UID,
    Info,
    Vm,
)
from mmreplay.jit import borrowing_helper, inlined_helper
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
_T_FIRST = int(Trait.FIRST_IN_FILE)
_T_GROWSDOWN = int(Trait.GROWSDOWN)

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
_V_SYSV = int(Vm.SYSV)
_V_UNKNOWN = int(Vm.UNKNOWN)
_V_GROWSDOWN = int(Vm.GROWSDOWN)

_B_PRESENT = int(FaultBits.PRESENT)
_B_WRITE = int(FaultBits.WRITE)
_B_EXEC = int(FaultBits.INSTRUCTION)
_MAJOR = int(FaultClass.MAJOR)
_FAILED = int(FaultClass.FAILED)
_MINOR = int(FaultClass.MINOR)
_FAULT_KERNEL = int(OpKind.FAULT_KERNEL)
_OP_NONE = int(PlanOp.NONE)

_I_STACK = int(Info.STACK_GROWTH)

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

#: An unknown VMA is made for one page-table page at most.
_COVER: Final = 1 << 21


@borrowing_helper
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
    if flags & (_V_SPECIAL | _V_SYSV):  # ipc/shm.c:shm_vm_ops has no map_pages either
        t |= _T_NO_MAP
    if flags & _V_UFFD:
        t |= _T_UFFD
    if flags & _V_LOCKED:
        t |= _T_LOCKED
    if flags & _V_UNKNOWN:
        t |= _T_UNKNOWN
    if flags & _V_GROWSDOWN:
        t |= _T_GROWSDOWN
    return t


@borrowing_helper
def new_anon_slot(w, initial):
    """A fresh anon_vma bit."""
    slot = w.cursor[_SLOTS]
    w.cursor[_SLOTS] += 1
    w.bits[slot].initial = initial
    w.bits[slot].set = initial
    return np.int32(slot)


@borrowing_helper
def anon_slot_of(m, w, slot):
    """The anon_vma bit of the VMA in map slot ``slot``: shared by what a split cuts.

    A VMA object keeps its bit.  A VMA that was cut off, copied or merged after an
    anon_vma had been set uses the bit of the VMA that it got the anon_vma from.
    """
    identity = m.vma[slot, V_ANON]
    mine = w.slots[slot].bit if w.slots[slot].uid == m.vma[slot, V_UID] else np.int32(-1)
    if mine >= 0 and (identity == 0 or w.bits[mine].set):
        return mine
    if identity != 0:
        space = m.vma[slot, V_SPACE]
        if w.identities[identity].bit >= 0 and w.identities[identity].space == space:
            mine = w.identities[identity].bit
        else:  # from before the recording, or inherited over fork: it is there
            mine = new_anon_slot(w, 1)
            w.identities[identity].bit = mine
            w.identities[identity].space = space
    else:
        mine = new_anon_slot(w, 0)
    w.slots[slot].uid = m.vma[slot, V_UID]
    w.slots[slot].bit = mine
    return mine


@borrowing_helper
def lose_anon_vma(m, w, slot):
    """What MREMAP_DONTUNMAP leaves has none (mm/mremap.c:dontunmap_complete@6.18)."""
    if slot >= 0 and m.vma[slot, V_ANON] == 0:
        w.slots[slot].uid = m.vma[slot, V_UID]
        w.slots[slot].bit = new_anon_slot(w, 0)


@borrowing_helper
def anon_first_write(m, w, slot, bit, recorded_before):
    """The VMA has just got its anon_vma in recorded order."""
    identity = m.vma[slot, V_ANON]
    if identity != 0 and w.identities[identity].bit < 0:
        w.identities[identity].bit = bit
        w.identities[identity].space = m.vma[slot, V_SPACE]
    w.bits[bit].set = 1
    if recorded_before:
        w.bits[bit].initial = 1


@inlined_helper
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


@borrowing_helper
def _cow_or_reuse(p, w, space, page, state):
    """Whether a write-protect fault on a shared-or-not anonymous page copies it."""
    if state != COW:
        return False
    partner = w.spaces[space].partner
    if partner < 0:
        return False
    there = pages_.find(p, partner, page >> REGION_SHIFT)
    return there >= 0 and p.state[there, page & (PAGES - 1)] == COW


@borrowing_helper
def _first_in_file(p, w, space, page, file):
    """Whether a page of shared anonymous memory is allocated now: no relative has it mapped."""
    if file != 0 and file < OWN_FILES:
        return False  # a tmpfs file may have been written by write(2)
    partner = w.spaces[space].partner
    if partner < 0:
        return True
    there = pages_.find(p, partner, page >> REGION_SHIFT)
    return there < 0 or p.state[there, page & (PAGES - 1)] == ABSENT


@borrowing_helper
def _demote(p, slot):
    """Later faults contradict the huge page: keep only the pages that were faulted."""
    n = 0
    for i in range(PAGES):
        if p.last_use[slot, i] < 0:
            p.state[slot, i] = ABSENT
        elif p.state[slot, i] != ABSENT:
            n += 1
    p.slot[slot].n_present = n
    p.slot[slot].huge = 0


@borrowing_helper
def _around(p, m, slot, region_slot, page):
    """Fault-around: map the aligned window, as far as VMA and table reach."""
    base = p.slot[region_slot].region << REGION_SHIFT
    low = max(page & ~np.int64(FAULT_AROUND - 1), m.vma[slot, V_START] >> 12, base)
    high = min((page | (FAULT_AROUND - 1)) + 1, m.vma[slot, V_END] >> 12, base + PAGES)
    n = 0
    for q in range(low, high):
        if p.state[region_slot, q - base] == ABSENT:
            p.state[region_slot, q - base] = CACHE
            p.slot[region_slot].n_present += 1
            n += 1
    return n


_I_EFFECTS = int(Info.EFFECTS)
_MARKS = int(Cursor.MARKS)
_TARGETS = int(MarkSet.TARGETS)
MOST_PIECES = 1024  # UIO_MAXIOV, include/uapi/linux/uio.h; of what has no limit, as many
_SETS = 7


@borrowing_helper
def copy_marks(m, w, out):
    """The map's effects into the plan's marks: grouped by set, the kernel's order inside."""
    n = m.info[_I_EFFECTS]
    at = w.cursor[_MARKS]
    for mark_set in range(1, _SETS):
        for k in range(n):
            if m.effects[k, E_ROLE] == mark_set:
                out.marks[at].vma = m.effects[k, E_LOCK]
                out.marks[at].set = mark_set
                at += 1
    w.cursor[_MARKS] = at


@borrowing_helper
def vector_marks(rows, i, w, out, o, space):
    """The vector of a process_madvise: how many elements is recorded, where they are is not.

    One VMA of the space, which nothing else touches, stands for those that they lie in.
    """
    n = min(max(rows[i].length2, 1), MOST_PIECES)
    out.ops[o].vmas = n
    pieces(w, out, n, -2 - space)


@borrowing_helper
def pieces(w, out, n, vma):
    """The operation goes through its range in ``n`` pieces: as many targets, all of one VMA."""
    at = w.cursor[_MARKS]
    n = min(n, MOST_PIECES)
    for k in range(n):
        out.marks[at + k].vma = vma
        out.marks[at + k].set = _TARGETS
    w.cursor[_MARKS] = at + max(n, 0)


@borrowing_helper
def fills_anon(m, w, out, o, before, space, first):
    """A userfaultfd fill gives a private VMA its anon_vma (mm/userfaultfd.c@6.18)."""
    slot = find(m, space, first << 12)
    bit = out.ops[o].anon_slot
    if slot >= 0 and bit >= 0:
        prepare_anon(m, slot)
        if not w.bits[bit].set:
            anon_first_write(m, w, slot, bit, before)


@borrowing_helper
def before_populate(m, w, space, first):
    """A call is about to populate from ``first`` on: the bit of the VMA as it is."""
    slot = find(m, space, first << 12)
    if slot >= 0 and m.vma[slot, V_FLAGS] & _V_SHARED == 0:
        anon_slot_of(m, w, slot)


@borrowing_helper
def populated(m, w, before, space, first):
    """The call was the first write of its first VMA (mm/gup.c:faultin_page@6.18), or was not."""
    slot = find(m, space, first << 12)
    if slot < 0 or m.vma[slot, V_ANON] == 0 or w.slots[slot].uid != m.vma[slot, V_UID]:
        return
    bit = w.slots[slot].bit
    if bit >= 0 and not w.bits[bit].set:
        anon_first_write(m, w, slot, bit, before)


@borrowing_helper
def _allowed(flags, write, execute):
    """Whether a VMA with these flags allows the access (an unknown one allows all)."""
    if flags & _V_UNKNOWN:
        return True
    if write:
        return flags & _V_WRITE != 0
    if execute:
        return flags & _V_EXEC != 0
    return flags & (_V_READ | _V_WRITE | _V_EXEC) != 0


@inlined_helper
def plan_fault(rows, i, m, rules, p, s, w, out, o, inside, before, thread, space, huge):
    """Plan the fault in row ``i`` into row ``o`` of ``out``; returns a Status.

    ``before``: it comes before the window.
    """
    kind = rows[i].kind
    bits = rows[i].bits
    fault_class = rows[i].fault_class
    address = rows[i].address
    page = address >> 12
    known = bits != 255
    write = known and (bits & _B_WRITE) != 0
    execute = known and (bits & _B_EXEC) != 0
    traits = _T_KERNEL if kind == _FAULT_KERNEL else 0
    out.ops[o].first_page = page
    out.ops[o].last_page = page
    out.ops[o].vmas = 1
    out.ops[o].pages = 1
    if address < -1:
        # in the kernel half, vsyscall too: no lock (arch/x86/mm/fault.c:do_kern_addr_fault,
        # emulate_vsyscall@6.18)
        out.ops[o].op = _OP_NONE
        out.ops[o].first_page = out.ops[o].last_page = 0
        out.ops[o].pages = out.ops[o].vmas = 0
        return 0
    if address < 0:
        # null: nothing to look up
        w.counters[_C_NO_ADDRESS] += 1
        out.ops[o].traits |= np.uint64(traits | _T_UNKNOWN | _T_HOLE)
        out.ops[o].first_page = max(page, 0)
        out.ops[o].last_page = max(page, 0)
        out.ops[o].pages = 0
        out.ops[o].vmas = 0
        return 0
    above = find(m, space, address)
    in_vma = above >= 0 and m.vma[above, V_START] <= address
    if not in_vma and fault_class == _FAILED:
        if above >= 0 and m.vma[above, V_FLAGS] & _V_GROWSDOWN:
            traits |= _T_GROWSDOWN  # a stack that could not grow so far
        out.ops[o].traits |= np.uint64(traits | _T_HOLE | _T_FAILED | (_T_WRITE if write else 0))
        out.ops[o].pages = 0
        out.ops[o].vmas = 0
        return 0
    grew = False
    if not in_vma:
        if fault_core(m, rules, space, address, False, False) == NEED_SPACE:
            return _GROW_MAP
        grew = m.info[_I_STACK] == 1
        if grew:
            copy_marks(m, w, out)
        if not grew:
            low = address & ~np.int64(_COVER - 1)
            if cover_core(m, rules, space, low, low + _COVER) == NEED_SPACE:
                return _GROW_MAP
            w.counters[_C_UNKNOWN] += 1
        above = find(m, space, address)
    if not known:
        # Without error bits: the state of the page and the VMA's kind decide.
        region = pages_.find(p, space, page >> REGION_SHIFT)
        state = p.state[region, page & (PAGES - 1)] if region >= 0 else np.uint8(ABSENT)
        private_anon = m.vma[above, V_FILE] == 0 and m.vma[above, V_FLAGS] & _V_SHARED == 0
        write = m.vma[above, V_FLAGS] & _V_WRITE != 0 and (
            private_anon or state in (ZERO, CACHE, COW)
        )
    private = m.vma[above, V_FLAGS] & _V_SHARED == 0
    if fault_class == _FAILED and _allowed(m.vma[above, V_FLAGS], write, execute):
        w.counters[_C_FAILED] += 1
        out.ops[o].pages = 0
        traits |= _T_FAILED | (_T_WRITE if write else 0)
        if kind == _FAULT_KERNEL:
            # Under pagefault_disable() the kernel looks the access up in its exception
            # table and takes no lock (arch/x86/mm/fault.c:do_user_addr_fault@6.18,
            # faulthandler_disabled); the caller faults the page in by itself.
            out.ops[o].op = _OP_NONE
            out.ops[o].vmas = 0
            out.ops[o].traits |= np.uint64(traits)
            return 0
        out.ops[o].vma = m.vma[above, V_LOCK]
        out.ops[o].vma_first_page = m.vma[above, V_START] >> 12
        out.ops[o].vma_last_page = (m.vma[above, V_END] >> 12) - 1
        out.ops[o].file = m.vma[above, V_FILE]
        if private:
            out.ops[o].anon_slot = anon_slot_of(m, w, above)
        traits |= vma_traits(w, m.vma[above, V_FLAGS], m.vma[above, V_FILE])
        out.ops[o].traits |= np.uint64(traits)
        add_dep(w, out, thread, segments_.get_core(s, space, page))
        return 0
    # before the map learns of a first write: the bit belongs to the VMA as it was
    bit = anon_slot_of(m, w, above) if private else np.int32(-1)
    slot = above
    allowed = touch_core(m, slot, write, execute)
    if not known:
        w.counters[_C_WRITE] += 1
    flags = m.vma[slot, V_FLAGS]
    if write:
        traits |= _T_WRITE
    traits |= vma_traits(w, flags, m.vma[slot, V_FILE])
    if grew:
        traits |= _T_STACK | _T_STRUCTURAL
    out.ops[o].vma = m.vma[slot, V_LOCK]
    out.ops[o].vma_first_page = m.vma[slot, V_START] >> 12
    out.ops[o].vma_last_page = (m.vma[slot, V_END] >> 12) - 1
    out.ops[o].file = m.vma[slot, V_FILE]
    out.ops[o].anon_slot = bit
    # -- access ---------------------------------------------------------------------
    if not allowed:
        if fault_class in (_MINOR, _MAJOR):
            w.counters[_C_ACCESS] += 1  # it succeeded: the protection we know is stale
        else:
            out.ops[o].traits |= np.uint64(traits | _T_ACCESS)
            out.ops[o].pages = 0
            return 0
    maker = segments_.get_core(s, space, page)
    add_dep(w, out, thread, maker)
    if write and private:
        traits |= _T_NEEDS_ANON
        if not w.bits[bit].set:
            anon_first_write(m, w, slot, bit, before)
    # -- page-table page --------------------------------------------------------------
    old = maker == -1 and w.spaces[space].old != 0
    region, made = table_slot(p, w, space, page, before, old)
    table = p.slot[region].table
    out.ops[o].table = table
    out.ops[o].tables = 1
    thread_bit = np.uint64(1) << np.uint64(thread & 63)
    index = page & (PAGES - 1)
    major = fault_class == _MAJOR
    # -- huge page ----------------------------------------------------------------------
    if p.slot[region].huge and (known and bits & _B_PRESENT == 0):
        w.counters[_C_NOT_HUGE] += 1
        _demote(p, region)
    if (
        made
        and not old
        and traits & _T_ANON
        and traits & _T_UNKNOWN == 0
        and huge >= 0
        and (flags & _V_HUGEPAGE or (huge > 0 and flags & _V_NOHUGE == 0))
        and not major
        and m.vma[slot, V_START] >> 12 <= (page & ~np.int64(PAGES - 1))
        and m.vma[slot, V_END] >> 12 >= (page | (PAGES - 1)) + 1
    ):
        state = np.uint8(ANON) if write else np.uint8(ZERO)
        for q in range(PAGES):
            p.state[region, q] = state
        p.slot[region].n_present = PAGES
        p.slot[region].huge = 1
        p.slot[region].seen = ~np.uint64(0)
        w.counters[_C_HUGE] += 1
        out.ops[o].pages = PAGES if write else 1
        traits |= _T_HUGE | (0 if write else _T_ZERO)
        if inside:
            p.last_use[region, index] = o
            pages_.note_user(p, region, thread)
        out.ops[o].traits |= np.uint64(traits)
        return 0
    if w.table_initial[table] == 0 and p.slot[region].seen & thread_bit == np.uint64(0):
        traits |= _T_TABLE
    p.slot[region].seen |= thread_bit
    if inside:
        p.last_use[region, index] = o
        pages_.note_user(p, region, thread)
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
                elif state == COW and w.spaces[space].partner < 0:
                    traits |= _T_COW  # learnt from the error bits: history unknown
                else:
                    traits |= _T_REUSE
                after = np.uint8(ANON)
        else:
            out.ops[o].pages = 0  # spurious, or a NUMA hint
    elif write:
        after = np.uint8(ANON)
        if not private:
            after = np.uint8(DIRTY)
            if traits & _T_FILE:
                traits |= _T_MKWRITE
            elif traits & _T_SHMEM and _first_in_file(p, w, space, page, m.vma[slot, V_FILE]):
                traits |= _T_FIRST
        elif traits & (_T_FILE | _T_SHMEM):
            traits |= _T_COW
        elif major:
            traits |= _T_SWAP
    elif traits & (_T_FILE | _T_SHMEM):
        after = np.uint8(CACHE)
        if traits & _T_SHMEM and _first_in_file(p, w, space, page, m.vma[slot, V_FILE]):
            traits |= _T_FIRST
        elif not major and traits & _T_NO_MAP == 0:
            traits |= _T_AROUND
            filled = _around(p, m, slot, region, page)
            w.counters[_C_AROUND] += filled - 1
            out.ops[o].pages = max(filled, 1)
    elif major:
        traits |= _T_SWAP
        after = np.uint8(ANON)
    elif traits & _T_HUGETLB:
        after = np.uint8(ANON)
    else:
        traits |= _T_ZERO
        after = np.uint8(ZERO)
    pages_.put(p, region, index, after)
    out.ops[o].traits |= np.uint64(traits)
    return 0
