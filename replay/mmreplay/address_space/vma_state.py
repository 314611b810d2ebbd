"""State of the VMA map: arrays, names of their columns, growth.

Words used here and in the other ``vma_*`` modules:

*slot*
    row of a VMA in the state's arrays; recycled after the VMA is gone.
*vma id* (``uid``)
    the kernel's VMA object: unique, counts up from 0, never reused.  A split makes one new id, a
    merge keeps one and ends the others, exactly as the kernel's objects do.
*lock*
    the lock object that stands for the VMA in a plan: an id, too, but one that stays with the
    VMA's pages where VMAs part and join again (:mod:`mmreplay.address_space.vma_locks`).
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

from mmreplay.jit import tables

I64 = NDArray[np.int64]

#: Entries of one leaf of the ordered index.
FAN: Final = 64
#: "No value" for ``result``, ``address2`` and other optional arguments of ``apply``.
NONE: Final = -(1 << 63)
#: Files that the map numbers itself, from here on: shared anonymous memory.
OWN_FILES: Final = 1 << 62


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
    FAILED = (
        2  # the call failed (by the trace, or by the kernel's rules); what it did first is done
    )
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
    FIRST_START = 24  # first address of the first VMA before the call; 0 where there is none
    FIRST_END = 25  # its end
    FIRST_LOCK = 26  # lock of the first VMA before the call; -1 none
    LISTED = 27  # of the CONFLICTS, those that the vmas table listed
    INHERITED = 28  # and those that came over a fork
    N = 29


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
    ORIGIN = 16  # first address that ``vma_locks`` met in each of four areas; 0 none
    N = 20


# Columns of ``Core.vma``, ``spaces``, ``leaf``, ``directory`` and ``effects``.
V_START: Final = 0
V_END: Final = 1
V_FLAGS: Final = 2
V_PGOFF: Final = 3
V_FILE: Final = 4
V_ANON: Final = 5
V_CHAIN: Final = 6
V_SPACE: Final = 7
V_UID: Final = 8
V_NEXT: Final = 9
V_PREV: Final = 10
V_LEAF_OF: Final = 11  # leaf of the index that holds it
V_MARKED: Final = 12  # operation serial of its last write mark
V_MARK_AT: Final = 13  # its entry in the effects of that operation
V_ORIGIN: Final = 14  # where we know it from: 0 a call, or these
V_LOCK: Final = 15
_V_N: Final = 16  # 128 bytes: two cache lines a VMA

LISTED: Final = 1
INHERITED: Final = 2

S_FIRST: Final = 0
S_LAST: Final = 1
S_HINT: Final = 2  # last VMA looked up
S_VMAS: Final = 3
S_FLAGS: Final = 4
S_BRK: Final = 5
S_BRK_START: Final = 6
S_MMAP_BASE: Final = 7
S_DIR: Final = 8  # first directory entry
S_DIR_LEN: Final = 9
S_DIR_CAP: Final = 10
_S_N: Final = 16

L_LEN: Final = 0
L_GAP: Final = 1  # largest free gap below one of its VMAs; -1 to be recomputed
L_NEXT: Final = 2  # free list

D_KEY: Final = 0  # lowest start of a leaf
D_LEAF: Final = 1

E_UID: Final = 0
E_SLOT: Final = 1
E_ROLE: Final = 2
E_LOCK: Final = 3

H_START: Final = 0  # where a VMA began that a merge swallowed; 0: an empty entry
H_SPACE: Final = 1
H_LOCK: Final = 2  # its lock
#: Entries of the table of those; one that is lost costs a lock that does not come back.
HOMES: Final = 4096


class Core(NamedTuple):
    """The arrays behind a map.  Few of them, because compiled calls pass every one by value."""

    vma: I64  # (S, 16) columns V_*
    leaf_key: I64  # (L, FAN) start addresses, ascending
    leaf_slot: I64  # (L, FAN)
    leaf: I64  # (L, 4) columns L_*
    directory: I64  # (D, 2) columns D_*
    spaces: I64  # (M, 16) columns S_*
    numbers: I64  # (Num.N,)
    info: I64  # (Info.N,)
    effects: I64  # (E, 4) columns E_*
    homes: I64  # (HOMES, 4) columns H_*


tables(
    Core,
    vma=_V_N,
    leaf_key=FAN,
    leaf_slot=FAN,
    leaf=4,
    directory=2,
    spaces=_S_N,
    effects=4,
    homes=4,
)


class MapState(NamedTuple):
    """The VMA map of all address spaces.  S slots, M spaces, E effects.

    All but ``core`` are views of its columns: int64, strided.
    """

    core: Core
    # -- VMAs, by slot (S,) -----------------------------------------------------------
    start: I64  # first address
    end: I64  # one past the last address
    flags: I64  # Vm
    pgoff: I64  # pages: offset in the file; anonymous: address >> 12 where it was first mapped
    file: I64  # file id (inode); 0 anonymous
    anon: I64  # anon_vma identity; 0 none
    uid: I64  # vma id
    lock: I64  # the lock object that stands for it
    next_slot: I64  # VMA above in the same space, -1 last
    prev_slot: I64  # VMA below, -1 first
    # -- address spaces (M,) --------------------------------------------------------------
    space_first: I64  # lowest VMA, -1 none
    space_last: I64  # highest VMA
    space_vmas: I64  # number of VMAs
    space_flags: I64  # mm->def_flags: Vm.LOCKED | Vm.LOCKONFAULT after mlockall(MCL_FUTURE)
    space_brk: I64  # program break, NONE unknown
    space_brk_start: I64  # lowest break, NONE unknown
    space_mmap_base: I64  # top of the top-down search
    # -- all ------------------------------------------------------------------------------
    numbers: I64  # (Num.N,)
    info: I64  # (Info.N,) of the last call
    effect_uid: I64  # (E,) VMAs that vma_start_write marks in the last call, in the kernel's order
    effect_slot: I64  # (E,) their slots (a removed VMA's slot may be in use again)
    effect_role: I64  # (E,) plan.MarkSet
    effect_lock: I64  # (E,) their locks


#: mmap_base of x86-64 without randomisation: STACK_TOP minus the 128 MiB minimum gap
#: (arch/x86/mm/mmap.c:mmap_base@6.18).
DEFAULT_MMAP_BASE: Final = 0x7FFFF7FFF000


def _views(core: Core) -> MapState:
    vma, spaces, effects = core.vma, core.spaces, core.effects
    return MapState(
        core=core,
        start=vma[:, V_START],
        end=vma[:, V_END],
        flags=vma[:, V_FLAGS],
        pgoff=vma[:, V_PGOFF],
        file=vma[:, V_FILE],
        anon=vma[:, V_ANON],
        uid=vma[:, V_UID],
        lock=vma[:, V_LOCK],
        next_slot=vma[:, V_NEXT],
        prev_slot=vma[:, V_PREV],
        space_first=spaces[:, S_FIRST],
        space_last=spaces[:, S_LAST],
        space_vmas=spaces[:, S_VMAS],
        space_flags=spaces[:, S_FLAGS],
        space_brk=spaces[:, S_BRK],
        space_brk_start=spaces[:, S_BRK_START],
        space_mmap_base=spaces[:, S_MMAP_BASE],
        numbers=core.numbers,
        info=core.info,
        effect_uid=effects[:, E_UID],
        effect_slot=effects[:, E_SLOT],
        effect_role=effects[:, E_ROLE],
        effect_lock=effects[:, E_LOCK],
    )


def _new_core(spaces: int, slots: int) -> Core:
    leaves = slots // 8 + 2 * spaces + 16
    directory = 4 * leaves + 16 * spaces
    core = Core(
        vma=np.zeros((slots, _V_N), np.int64),
        leaf_key=np.zeros((leaves, FAN), np.int64),
        leaf_slot=np.zeros((leaves, FAN), np.int64),
        leaf=np.zeros((leaves, 4), np.int64),
        directory=np.zeros((directory, 2), np.int64),
        spaces=np.zeros((spaces, _S_N), np.int64),
        numbers=np.zeros(Num.N, np.int64),
        info=np.zeros(Info.N, np.int64),
        effects=np.zeros((slots + 64, 4), np.int64),
        homes=np.zeros((HOMES, 4), np.int64),
    )
    core.spaces[:, [S_FIRST, S_LAST, S_HINT]] = -1
    core.spaces[:, [S_BRK, S_BRK_START]] = NONE
    core.spaces[:, S_MMAP_BASE] = DEFAULT_MMAP_BASE
    core.numbers[Num.NEXT_ANON] = 1
    core.numbers[Num.NEXT_FILE] = OWN_FILES
    core.numbers[Num.FREE_SLOT] = -1
    core.numbers[Num.FREE_LEAF] = -1
    core.numbers[Num.SLOTS_FREE] = slots
    core.numbers[Num.LEAVES_FREE] = leaves
    return core


def new_state(spaces: int, slots: int = 1024) -> MapState:
    """An empty map with ``spaces`` address spaces and room for about ``slots`` VMAs."""
    if spaces < 1 or slots < 1:
        raise ValueError(f"spaces and slots must be at least 1, not {spaces} and {slots}")
    return _views(_new_core(spaces, max(slots, 64)))


def grow(state: MapState, factor: int = 2, *, spaces: int | None = None) -> MapState:
    """The same map with ``factor`` times the room (and at least ``spaces`` address spaces).

    Slots, ids and everything that a caller may hold stay valid; the arrays are new.
    """
    old = state.core
    new = _new_core(max(spaces or 0, len(old.spaces)), len(old.vma) * factor)
    if len(new.directory) < len(old.directory):
        new = new._replace(directory=np.zeros_like(old.directory))
    for name in Core._fields:
        if name != "numbers":
            source = getattr(old, name)
            getattr(new, name)[: len(source)] = source
    new.numbers[:] = old.numbers
    new.numbers[Num.SLOTS_FREE] += len(new.vma) - len(old.vma)
    new.numbers[Num.LEAVES_FREE] += len(new.leaf) - len(old.leaf)
    return _views(new)
