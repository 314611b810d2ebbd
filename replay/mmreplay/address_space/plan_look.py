"""Calls that look at VMAs: what they find, and how often they take the lock; compiled."""

from __future__ import annotations

import numpy as np

from mmreplay.address_space.opmap import (
    MADV_COLLAPSE,
    MADV_POPULATE_WRITE,
    REFUSED_FLAGS,
    VALID_ADVICE,
)
from mmreplay.address_space.plan import PlanOp, Trait
from mmreplay.address_space.plan_fault import anon_slot_of, pieces, vma_traits
from mmreplay.address_space.vma_index import find
from mmreplay.address_space.vma_state import V_END, V_FILE, V_FLAGS, V_LOCK, V_NEXT, V_START, Vm
from mmreplay.jit import borrowing_helper
from mmreplay.schema import OpKind

_T_HOLE = int(Trait.HOLE)
_T_MULTI = int(Trait.MULTI_VMA)
_T_FILE = int(Trait.FILE)
_V_WRITE = int(Vm.WRITE)
_V_SHARED = int(Vm.SHARED)
_MADVISE = int(OpKind.MADVISE)
_PKEY_MPROTECT = int(OpKind.PKEY_MPROTECT)
_REMAP_FILE_PAGES = int(OpKind.REMAP_FILE_PAGES)
_MINCORE = int(OpKind.MINCORE)
_MSYNC = int(OpKind.MSYNC)
_WILLNEED = int(PlanOp.MADVISE_WILLNEED)
_EINVAL = 22
_MS_SYNC = 4
_ACCESS = 0xF  # PROT_READ, WRITE, EXEC, SEM
_MINCORE_PAGES = 4096  # of one lock: a byte each in a page of answers


@borrowing_helper
def look(m, w, out, o, space, first, last):
    """VMAs of a range for calls that do not change the map; returns their traits."""
    slot = find(m, space, first << 12)
    end = (last + 1) << 12
    if slot < 0 or m.vma[slot, V_START] >= end:
        return _T_HOLE
    traits = vma_traits(w, m.vma[slot, V_FLAGS], m.vma[slot, V_FILE])
    out.ops[o].vma = m.vma[slot, V_LOCK]
    out.ops[o].vma_first_page = m.vma[slot, V_START] >> 12
    out.ops[o].vma_last_page = (m.vma[slot, V_END] >> 12) - 1
    out.ops[o].file = m.vma[slot, V_FILE]
    if m.vma[slot, V_FLAGS] & _V_SHARED == 0:
        out.ops[o].anon_slot = anon_slot_of(m, w, slot)
    n = 1
    if m.vma[slot, V_END] < end:
        traits |= _T_MULTI
    slot = m.vma[slot, V_NEXT]
    while slot >= 0 and m.vma[slot, V_START] < end:
        n += 1
        slot = m.vma[slot, V_NEXT]
    out.ops[o].vmas = n
    return traits


@borrowing_helper
def begins_in_hole(m, space, page):
    """Whether no VMA holds the page."""
    slot = find(m, space, page << 12)
    return slot < 0 or m.vma[slot, V_START] > page << 12


@borrowing_helper
def refused_by_vma(rows, i, m, space):
    """Whether EINVAL came from what the call found under the lock, not from its arguments."""
    kind = rows[i].kind
    prot = np.int64(rows[i].prot)
    address, length, advice = rows[i].address, rows[i].length, rows[i].advice
    if rows[i].errno != _EINVAL:
        return False
    if kind == _REMAP_FILE_PAGES:  # mm/mmap.c@6.18: the VMA is not shared
        return prot == 0 and length > 4095
    if address & 4095 or length < 0:
        return False
    if kind == _PKEY_MPROTECT:  # mm/mprotect.c:do_mprotect_pkey@6.18: a key not allocated
        return length > 0 and prot & ~_ACCESS == 0
    if kind != _MADVISE:
        return False
    advice = min(max(advice, 0), 127)
    if VALID_ADVICE[advice] or advice == MADV_COLLAPSE:
        return True
    slot = find(m, space, address)
    while slot >= 0 and m.vma[slot, V_START] < address + length:
        flags = m.vma[slot, V_FLAGS]
        if flags & REFUSED_FLAGS[advice]:
            return True
        if advice == MADV_POPULATE_WRITE and flags & _V_WRITE == 0:
            return True
        slot = m.vma[slot, V_NEXT]
    return False


@borrowing_helper
def more_sections(rows, i, m, w, out, o, space, first, last):
    """A call that takes the lock anew for its VMAs: a target for each time but the first.

    mm/mincore.c:do_mincore ends with each VMA, or after 4,096 pages; mm/msync.c gives the lock up
    to write a shared VMA back, mm/madvise.c:madvise_willneed to read a file ahead (@6.18).
    """
    kind = rows[i].kind
    end = last + 1
    n = np.int64(0)
    if kind == _MINCORE:
        page = first
        while page < end:
            slot = find(m, space, page << 12)
            if slot < 0 or m.vma[slot, V_START] > page << 12:
                if rows[i].errno != 0 or slot < 0:
                    n += 1
                    break
                page = m.vma[slot, V_START] >> 12  # it was there: not ours to know
                continue
            top = min(m.vma[slot, V_END] >> 12, end)
            n += (top - page + _MINCORE_PAGES - 1) // _MINCORE_PAGES
            page = top
        n -= 1
    elif (kind == _MSYNC and rows[i].advice & _MS_SYNC) or out.ops[o].op == _WILLNEED:
        slot = find(m, space, first << 12)
        before = np.int64(1 if begins_in_hole(m, space, first) else 0)
        while slot >= 0 and m.vma[slot, V_START] < end << 12:
            flags = m.vma[slot, V_FLAGS]
            if kind == _MSYNC:
                if flags & _V_SHARED and m.vma[slot, V_END] < end << 12:
                    n += 1
            elif before > 0 and vma_traits(w, flags, m.vma[slot, V_FILE]) & _T_FILE:
                n += 1
            before += 1
            slot = m.vma[slot, V_NEXT]
    pieces(w, out, n, -2 - space)
