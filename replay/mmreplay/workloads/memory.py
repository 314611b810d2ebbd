"""The memory of a generated trace: where mappings go, which pages are there, what faults.

This is what a recording would show of Linux 6.18, so that a generated trace has the faults
that the same program has on a machine: one byte for each page of each slot, and the mapped
ranges of each process.  Everything here is a compiled helper of
:mod:`mmreplay.workloads.generator_core`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import numpy as np

from mmreplay.jit import borrowing_helper
from mmreplay.schema import FaultBits
from mmreplay.workloads.interpret import Live
from mmreplay.workloads.program import FileField, SlotField
from mmreplay.workloads.tape import HEAP, MMAP_BASE

PAGE: Final = 4096
#: Last-level page table; also a transparent huge page.
_TABLE: Final = 512
_HUGE: Final = _TABLE * PAGE
#: fault_around_bytes defaults to 64 KiB (mm/memory.c@6.18).
_AROUND: Final = 16
#: One byte per page.
MAPPED, WRITABLE, OWN_PROT, COPY = 1, 2, 4, 64
_PROT_SHIFT: Final = 3  # of the page's own protection, three bits, where OWN_PROT is set
_STATE: Final = MAPPED | WRITABLE | COPY
_READ, _WRITE = 1, 2
_WRITE_FAULT: Final = int(FaultBits.WRITE)
_WRITE_TO_PRESENT: Final = int(FaultBits.WRITE | FaultBits.PRESENT)


class Memory(IntEnum):
    """Columns of what is kept of each slot besides its address and length."""

    PROT = 0  # of pages without a protection of their own
    HUGE = 1  # MADV_HUGEPAGE
    LOW = 2  # pages outside [LOW, HIGH) have the byte 0
    HIGH = 3
    FIRST = 4  # index of its first page's byte


@borrowing_helper
def forget(w: Any, slot: Any, first: Any, end: Any, keep: Any) -> None:
    """Pages ``first..end`` of a slot are gone; of their bytes only the bits ``keep`` stay."""
    low = max(first, w.memory[slot, Memory.LOW])
    high = min(end, w.memory[slot, Memory.HIGH])
    at = w.memory[slot, Memory.FIRST]
    for page in range(low, high):
        w.pages[at + page] &= keep
    if keep == 0 and first <= w.memory[slot, Memory.LOW] and end >= w.memory[slot, Memory.HIGH]:
        w.memory[slot, Memory.LOW] = 1 << 60
        w.memory[slot, Memory.HIGH] = 0


@borrowing_helper
def begins_later(w: Any, slot: Any, pages: Any) -> None:
    """The first ``pages`` of a slot, which are forgotten, are no part of it any more."""
    low, high = w.memory[slot, Memory.LOW], w.memory[slot, Memory.HIGH]
    if low >= high:
        return
    at = w.memory[slot, Memory.FIRST]
    low = max(low, pages)
    for page in range(low, high):
        w.pages[at + page - pages] = w.pages[at + page]
    for page in range(max(low, high - pages), high):
        w.pages[at + page] = 0
    w.memory[slot, Memory.LOW] = low - pages
    w.memory[slot, Memory.HIGH] = max(high - pages, 0)


@borrowing_helper
def _reach(w: Any, slot: Any, first: Any, end: Any) -> None:
    """Bytes of pages ``first..end`` are about to be written."""
    w.memory[slot, Memory.LOW] = min(w.memory[slot, Memory.LOW], first)
    w.memory[slot, Memory.HIGH] = max(w.memory[slot, Memory.HIGH], end)


@borrowing_helper
def protect(w: Any, slot: Any, first: Any, end: Any, prot: Any) -> None:
    """mprotect of pages ``first..end``; exclusive pages keep their write access.

    mm/mprotect.c:can_change_pte_writable@6.18: a page of an anonymous mapping that is its
    own gets the write bit back with the protection, without a fault.
    """
    pages = (w.live[slot, Live.LENGTH] + PAGE - 1) // PAGE
    if first == 0 and end >= pages:
        w.memory[slot, Memory.PROT] = prot
        forget(w, slot, 0, pages, _STATE)
        return
    _reach(w, slot, first, end)
    at = w.memory[slot, Memory.FIRST]
    for page in range(first, end):
        w.pages[at + page] = (w.pages[at + page] & _STATE) | OWN_PROT | (prot << _PROT_SHIFT)


@borrowing_helper
def protection(w: Any, slot: Any, page: Any) -> Any:
    byte = np.int64(w.pages[w.memory[slot, Memory.FIRST] + page])
    if byte & OWN_PROT:
        return (byte >> _PROT_SHIFT) & 7
    return w.memory[slot, Memory.PROT]


@borrowing_helper
def _on_tmpfs(w: Any, slot: Any) -> Any:
    file = w.slots[slot, SlotField.FILE]
    return file >= 0 and w.files[file, FileField.DISK] == 0


@borrowing_helper
def access(w: Any, slot: Any, page: Any, write: Any) -> Any:
    """Access a page: -1 no fault, -2 not allowed, else the fault's error code without USER.

    mm/memory.c:handle_pte_fault@6.18 and below.
    """
    at = w.memory[slot, Memory.FIRST] + page
    byte = np.int64(w.pages[at])
    prot = protection(w, slot, page)
    if (write and not prot & _WRITE) or (not write and prot == 0):
        return -2
    if byte & MAPPED and (not write or (byte & WRITABLE and not byte & COPY)):
        return -1
    if byte & MAPPED:  # a write to a page that is mapped for reading, or shared by fork
        w.pages[at] = (byte | WRITABLE) & ~COPY
        return np.int64(_WRITE_TO_PRESENT)
    put(w, slot, page, write, prot)
    return np.int64(_WRITE_FAULT) if write else np.int64(0)


@borrowing_helper
def put(w: Any, slot: Any, page: Any, write: Any, prot: Any) -> None:
    """Map a page that is not there, and what comes with it."""
    pages = (w.live[slot, Live.LENGTH] + PAGE - 1) // PAGE
    number = w.live[slot, Live.ADDRESS] // PAGE + page
    file = w.slots[slot, SlotField.FILE]
    shared = w.slots[slot, SlotField.SHARED]
    # a shared mapping of tmpfs needs no notice before it is written to
    bits = (
        MAPPED | WRITABLE if write or (shared and prot & _WRITE and _on_tmpfs(w, slot)) else MAPPED
    )
    first, end = page, page + 1
    if file < 0 and not shared and write and w.memory[slot, Memory.HUGE]:
        block = page - number % _TABLE  # do_huge_pmd_anonymous_page
        if block >= 0 and block + _TABLE <= pages and _all_absent(w, slot, block, block + _TABLE):
            first, end = block, block + _TABLE
    elif file >= 0 and not write:  # do_fault_around
        first = max(page - number % _AROUND, 0)
        end = min(first + _AROUND, pages)
    _reach(w, slot, first, end)
    at = w.memory[slot, Memory.FIRST]
    for other in range(first, end):
        if not w.pages[at + other] & MAPPED:
            w.pages[at + other] |= bits


@borrowing_helper
def _all_absent(w: Any, slot: Any, first: Any, end: Any) -> Any:
    low = max(first, w.memory[slot, Memory.LOW])
    at = w.memory[slot, Memory.FIRST]
    for page in range(low, min(end, w.memory[slot, Memory.HIGH])):
        if w.pages[at + page] & MAPPED:
            return False
    return True


@borrowing_helper
def populate(w: Any, slot: Any, first: Any, end: Any, write: Any) -> Any:
    """Make pages present without page faults; how many were not, or -2 where not allowed."""
    count = 0
    for page in range(first, end):
        got = access(w, slot, page, write)
        if got == -2:
            return got
        if got >= 0:
            count += 1
    return count


@borrowing_helper
def share_by_fork(w: Any, source: Any, copy: Any) -> None:
    """The child's slot is a copy of the parent's; private pages are copied on the next write.

    kernel/fork.c:dup_mmap, mm/memory.c:copy_present_ptes@6.18.
    """
    w.live[copy, Live.ADDRESS] = w.live[source, Live.ADDRESS]
    w.live[copy, Live.LENGTH] = w.live[source, Live.LENGTH]
    low, high = w.memory[source, Memory.LOW], w.memory[source, Memory.HIGH]
    for column in (Memory.PROT, Memory.HUGE, Memory.LOW, Memory.HIGH):
        w.memory[copy, column] = w.memory[source, column]
    private = w.slots[source, SlotField.SHARED] == 0
    ours, theirs = w.memory[source, Memory.FIRST], w.memory[copy, Memory.FIRST]
    for page in range(low, high):
        byte = w.pages[ours + page]
        if private and byte & WRITABLE:
            byte |= COPY
            w.pages[ours + page] = byte
        w.pages[theirs + page] = byte


# -- where mappings go ------------------------------------------------------------------------


@borrowing_helper
def place(w: Any, process: Any, length: Any, aligned: Any) -> Any:
    """Where mmap finds room: the highest gap that is large enough, searched from the top.

    mm/vma.c:unmapped_area_topdown@6.18; ``aligned``: an anonymous mapping of whole 2 MiB
    begins on such a boundary (mm/huge_memory.c:__thp_get_unmapped_area@6.18).
    """
    want = length + _HUGE if aligned else length
    top = np.int64(MMAP_BASE)
    for k in range(w.taken_n[process] - 1, -1, -1):
        if top - w.taken[process, k, 1] >= want:
            break
        top = w.taken[process, k, 0]
    start = top - want
    if aligned:
        rest = -start & (_HUGE - 1)
        start += rest if rest else _HUGE
    return start


@borrowing_helper
def is_free(w: Any, process: Any, start: Any, end: Any) -> Any:
    if end > MMAP_BASE:
        return False
    for k in range(w.taken_n[process]):
        if w.taken[process, k, 0] < end and w.taken[process, k, 1] > start:
            return False
    return True


@borrowing_helper
def take(w: Any, process: Any, start: Any, end: Any) -> None:
    """[start, end) is mapped from now on; neighbours become one range."""
    taken, n = w.taken[process], w.taken_n[process]
    k = n
    while k > 0 and taken[k - 1, 0] > start:
        k -= 1
    below = k > 0 and taken[k - 1, 1] == start
    above = k < n and taken[k, 0] == end
    if below and above:
        taken[k - 1, 1] = taken[k, 1]
        for j in range(k, n - 1):
            taken[j, 0], taken[j, 1] = taken[j + 1, 0], taken[j + 1, 1]
        w.taken_n[process] = n - 1
    elif below:
        taken[k - 1, 1] = end
    elif above:
        taken[k, 0] = start
    else:
        for j in range(n, k, -1):
            taken[j, 0], taken[j, 1] = taken[j - 1, 0], taken[j - 1, 1]
        taken[k, 0], taken[k, 1] = start, end
        w.taken_n[process] = n + 1


@borrowing_helper
def give(w: Any, process: Any, start: Any, end: Any) -> None:
    """[start, end), inside one mapped range, is free from now on."""
    taken, n = w.taken[process], w.taken_n[process]
    k = 0
    while taken[k, 1] <= start:
        k += 1
    old_start, old_end = taken[k, 0], taken[k, 1]
    if old_start == start and old_end == end:
        for j in range(k, n - 1):
            taken[j, 0], taken[j, 1] = taken[j + 1, 0], taken[j + 1, 1]
        w.taken_n[process] = n - 1
    elif old_start == start:
        taken[k, 0] = end
    elif old_end == end:
        taken[k, 1] = start
    else:
        for j in range(n, k, -1):
            taken[j, 0], taken[j, 1] = taken[j - 1, 0], taken[j - 1, 1]
        taken[k, 1] = start
        taken[k + 1, 0], taken[k + 1, 1] = end, old_end
        w.taken_n[process] = n + 1


@borrowing_helper
def heap_start() -> Any:
    return np.int64(HEAP) + 16 * PAGE
