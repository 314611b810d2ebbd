"""State of the VMA map: arrays, names of their columns, growth.

Words used here and in the other ``vma_*`` modules:

*slot*
    row of a VMA in the state's arrays; recycled after the VMA is gone.
*vma id* (``uid``)
    the kernel's VMA object, i.e. its lock: unique, counts up from 0, never reused.  A split makes
    one new id, a merge keeps one and ends the others, exactly as the kernel's objects do.
*space*
    dense index of an address space, the ``address_space`` of a trace.

Addresses and lengths are bytes (int64), ``pgoff`` is pages.  The compiled functions never
allocate: where room may run out they return :data:`NEED_SPACE` *before* changing anything, the
caller replaces the state by :func:`grow` and calls again.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

I8 = NDArray[np.int8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

#: Entries of one leaf of the ordered index.
FAN: Final = 64
#: "No value" for ``result``, ``address2`` and other optional arguments of ``apply``.
NONE: Final = -(1 << 63)


class Vm(IntFlag):
    """Flags of a VMA (own layout; the names are those of include/linux/mm.h without ``VM_``)."""

    READ = 1 << 0
    WRITE = 1 << 1
    EXEC = 1 << 2
    SHARED = 1 << 3
    MAYREAD = 1 << 4
    MAYWRITE = 1 << 5
    MAYEXEC = 1 << 6
    MAYSHARE = 1 << 7
    GROWSDOWN = 1 << 8
    LOCKED = 1 << 9
    LOCKONFAULT = 1 << 10
    HUGEPAGE = 1 << 11
    NOHUGEPAGE = 1 << 12
    DONTFORK = 1 << 13  # VM_DONTCOPY
    DONTDUMP = 1 << 14
    WIPEONFORK = 1 << 15
    MERGEABLE = 1 << 16  # KSM
    RANDOM = 1 << 17  # VM_RAND_READ
    SEQ = 1 << 18  # VM_SEQ_READ
    NORESERVE = 1 << 19
    ACCOUNT = 1 << 20
    HUGETLB = 1 << 21
    SPECIAL = 1 << 22  # any of VM_IO, VM_DONTEXPAND, VM_PFNMAP, VM_MIXEDMAP: never merged
    SEALED = 1 << 23
    SYNC = 1 << 24
    DROPPABLE = 1 << 25
    UFFD = 1 << 26  # userfaultfd armed
    SYSV = 1 << 27  # System V shared memory: vm_ops->close forbids that a merge removes it
    UNKNOWN = 1 << 28  # guessed by cover(): nothing is known of it but its pages


class Status(IntEnum):
    """What ``apply`` and ``fault`` return."""

    OK = 0
    NEED_SPACE = 1  # nothing was changed: grow the state and call again
    FAILED = 2  # the call failed (by the trace, or by the kernel's rules); what it did first is done
    IGNORED = 3  # this kind does not change the map


NEED_SPACE: Final = int(Status.NEED_SPACE)


class Info(IntEnum):
    """Index into ``MapState.info``: what the last ``apply`` or ``fault`` found and did."""

    EFFECTS = 0  # entries in effect_uid/effect_slot/effect_role
    VMAS = 1  # VMAs that overlapped the range before the call
    FIRST_SLOT = 2  # slot of the first of them; -1 none.  Fault: the VMA of the fault
    FIRST_UID = 3  # its id
    FIRST_FLAGS = 4  # its flags before the call
    FIRST_FILE = 5  # its file id before the call
    FIRST_ANON = 6  # its anon_vma before the call (0: none)
    SPLITS = 7  # VMAs that were cut
    MERGES = 8  # VMAs that were merged away or extended by a merge
    HOLE = 9  # 1: the range has unmapped pages (fault: no VMA at the address)
    MULTI = 10  # 1: the range reaches over the end of its first VMA
    NO_CHANGE = 11  # 1: nothing changed in the map
    NEXT_GROWSDOWN = 12  # 1: the VMA after an unmapped range grows down
    OVERLAPPED = 13  # VMAs that a fixed mapping (or the target of mremap) replaced
    ADDRESS = 14  # resulting address (mmap, mremap), or new break (brk)
    TARGET_SLOT = 15  # slot that now covers the first page of the result; -1 none
    TARGET_UID = 16  # its id
    STACK_GROWTH = 17  # fault: 1 where a GROWSDOWN VMA was extended to the address
    ACCESS_ERROR = 18  # fault: 1 where the VMA forbids the access
    ANON_NEW = 19  # VMAs that got an anon_vma in this call
    MREMAP_KIND = 20  # see MremapKind
    ERROR = 21  # the errno that the rules expect (0: success)
    CONFLICTS = 22  # VMAs that stood where the trace says that a new mapping was placed freely
    POPULATES = 23  # 1: pages are populated after the write section
    N = 24


class MremapKind(IntEnum):
    """``info[Info.MREMAP_KIND]``."""

    NONE = 0
    NOOP = 1
    SHRINK = 2
    GROW = 3  # in place
    MOVE = 4


class Num(IntEnum):
    """Index into ``MapState.numbers``: counters of the whole state."""

    NEXT_UID = 0
    NEXT_ANON = 1  # anon_vma identities count up from 1; 0 means none
    NEXT_FILE = 2  # file identities that the map makes itself (shared anonymous memory)
    OPERATION = 3  # serial of the current call
    FREE_SLOT = 4  # head of the list of free slots (linked by ``next_slot``), -1 none
    SLOTS_USED = 5  # slots never used so far begin here
    SLOTS_FREE = 6  # free slots in all
    FREE_LEAF = 7
    LEAVES_USED = 8
    LEAVES_FREE = 9
    DIR_USED = 10  # directory entries handed out
    UNKNOWN_VMAS = 11  # VMAs that cover() made
    UNKNOWN_PAGES = 12  # their pages
    CONFLICTS = 13  # VMAs overwritten although the call was no fixed one
    DISAGREED = 14  # calls whose recorded result is not the one the rules expect
    EFFECTS_LOST = 15  # never counts in a correct program: effects buffer was too small
    N = 16


class MapState(NamedTuple):
    """The VMA map of all address spaces.  S slots, L leaves, D directory entries, M spaces."""

    # -- VMAs, by slot (S,) -----------------------------------------------------------
    start: I64  # first address
    end: I64  # one past the last address
    flags: I64  # Vm
    pgoff: I64  # pages: offset in the file; anonymous: address >> 12 where it was first mapped
    file: I64  # file id (inode); 0 anonymous
    anon: I64  # anon_vma identity; 0 none
    chain: I8  # 1: anon_vma chain is longer than one (inherited over fork)
    space: I32  # address space
    uid: I64  # vma id: the lock object
    next_slot: I32  # VMA above in the same space, -1 last (or the free list)
    prev_slot: I32  # VMA below, -1 first
    leaf_of: I32  # leaf of the index that holds it
    marked: I64  # operation serial of its last write mark
    mark_at: I32  # its entry in the effects of that operation
    # -- ordered index ------------------------------------------------------------------
    leaf_start: I64  # (L, FAN) start addresses, ascending
    leaf_slot: I32  # (L, FAN)
    leaf_len: I32  # (L,)
    leaf_gap: I64  # (L,) largest free gap below one of its VMAs; -1 to be recomputed
    leaf_next: I32  # (L,) free list
    dir_key: I64  # (D,) lowest start of a leaf
    dir_leaf: I32  # (D,)
    # -- address spaces (M,) --------------------------------------------------------------
    space_dir: I64  # first directory entry
    space_dir_len: I64
    space_dir_cap: I64
    space_first: I32  # lowest VMA, -1 none
    space_last: I32  # highest VMA
    space_hint: I32  # last VMA looked up
    space_vmas: I64  # number of VMAs
    space_flags: I64  # mm->def_flags: Vm.LOCKED | Vm.LOCKONFAULT after mlockall(MCL_FUTURE)
    space_brk: I64  # program break, NONE unknown
    space_brk_start: I64  # lowest break, NONE unknown
    space_mmap_base: I64  # top of the top-down search
    # -- all ------------------------------------------------------------------------------
    numbers: I64  # (Num.N,)
    info: I64  # (Info.N,) of the last call
    effect_uid: I64  # (E,) VMAs that vma_start_write marks in the last call, in the kernel's order
    effect_slot: I32  # (E,) their slots (a removed VMA's slot may be in use again)
    effect_role: I8  # (E,) plan.MarkSet


#: mmap_base of x86-64 without randomisation: STACK_TOP minus the 128 MiB minimum gap
#: (arch/x86/mm/mmap.c:mmap_base@6.18).
DEFAULT_MMAP_BASE: Final = 0x7FFFF7FFF000

_BY_SLOT: Final = (
    "start end flags pgoff file anon chain space uid next_slot prev_slot leaf_of marked mark_at"
).split()
_BY_LEAF: Final = "leaf_start leaf_slot leaf_len leaf_gap leaf_next".split()
_BY_DIR: Final = "dir_key dir_leaf".split()
_BY_EFFECT: Final = "effect_uid effect_slot effect_role".split()


def new_state(spaces: int, slots: int = 1024) -> MapState:
    """An empty map with ``spaces`` address spaces and room for about ``slots`` VMAs."""
    if spaces < 1 or slots < 1:
        raise ValueError(f"spaces and slots must be at least 1, not {spaces} and {slots}")
    slots = max(slots, 64)
    leaves = slots // 8 + 2 * spaces + 16
    directory = 4 * leaves + 16 * spaces
    effects = slots + 64

    def i64(*shape: int) -> I64:
        return np.zeros(shape, np.int64)

    def i32(*shape: int) -> I32:
        return np.zeros(shape, np.int32)

    numbers = i64(Num.N)
    numbers[Num.NEXT_ANON] = 1
    numbers[Num.NEXT_FILE] = 1 << 62
    numbers[Num.FREE_SLOT] = -1
    numbers[Num.FREE_LEAF] = -1
    numbers[Num.SLOTS_FREE] = slots
    numbers[Num.LEAVES_FREE] = leaves
    return MapState(
        start=i64(slots),
        end=i64(slots),
        flags=i64(slots),
        pgoff=i64(slots),
        file=i64(slots),
        anon=i64(slots),
        chain=np.zeros(slots, np.int8),
        space=i32(slots),
        uid=i64(slots),
        next_slot=i32(slots),
        prev_slot=i32(slots),
        leaf_of=i32(slots),
        marked=i64(slots),
        mark_at=i32(slots),
        leaf_start=i64(leaves, FAN),
        leaf_slot=i32(leaves, FAN),
        leaf_len=i32(leaves),
        leaf_gap=i64(leaves),
        leaf_next=i32(leaves),
        dir_key=i64(directory),
        dir_leaf=i32(directory),
        space_dir=i64(spaces),
        space_dir_len=i64(spaces),
        space_dir_cap=i64(spaces),
        space_first=np.full(spaces, -1, np.int32),
        space_last=np.full(spaces, -1, np.int32),
        space_hint=np.full(spaces, -1, np.int32),
        space_vmas=i64(spaces),
        space_flags=i64(spaces),
        space_brk=np.full(spaces, NONE, np.int64),
        space_brk_start=np.full(spaces, NONE, np.int64),
        space_mmap_base=np.full(spaces, DEFAULT_MMAP_BASE, np.int64),
        numbers=numbers,
        info=i64(Info.N),
        effect_uid=i64(effects),
        effect_slot=i32(effects),
        effect_role=np.zeros(effects, np.int8),
    )


def grow(state: MapState, factor: int = 2, *, spaces: int | None = None) -> MapState:
    """The same map with ``factor`` times the room (and at least ``spaces`` address spaces).

    Slots, ids and everything that a caller may hold stay valid; the arrays are new.
    """
    wanted = max(spaces or 0, len(state.space_dir))
    bigger = new_state(wanted, len(state.start) * factor)
    for name in (*_BY_SLOT, *_BY_LEAF, *_BY_DIR, *_BY_EFFECT):
        old, new = getattr(state, name), getattr(bigger, name)
        if len(new) < len(old):
            new = np.zeros_like(old)
            bigger = bigger._replace(**{name: new})
        new[: len(old)] = old
    for name in MapState._fields:
        if name.startswith("space_"):
            old = getattr(state, name)
            getattr(bigger, name)[: len(old)] = old
    bigger.info[:] = state.info
    bigger.numbers[:] = state.numbers
    bigger.numbers[Num.SLOTS_FREE] += len(bigger.start) - len(state.start)
    bigger.numbers[Num.LEAVES_FREE] += len(bigger.leaf_len) - len(state.leaf_len)
    return bigger
