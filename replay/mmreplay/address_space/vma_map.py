"""The VMA map, compiled: replays address-space operations as a kernel's rules say.

The entry points are ``apply``, ``fault``, ``lookup``, ``search``, ``cover``, ``insert`` and
``dump``.  All but the last are compiled; ``state`` is a :class:`vma_state.MapState`, ``rules`` is
``load_rules(name).vector``.  Addresses are bytes; ``NONE`` stands for null.  ``NEED_SPACE`` is
returned before anything has changed: replace the state by ``grow(state)`` and call again.
"""

from __future__ import annotations

from typing import NamedTuple

from mmreplay.address_space.vma_abi import search_core
from mmreplay.address_space.vma_apply import (
    apply_core,
    cover_core,
    fault_core,
    insert_core,
    lookup_core,
)
from mmreplay.address_space.vma_state import I64, MapState, Vm
from mmreplay.jit import lean, njit


@njit
def apply(
    state: MapState,
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
    """Replay one operation; returns a :class:`vma_state.Status`.

    Parameters
    ----------
    space:
        dense address space of the calling thread.
    kind:
        ``schema.OpKind``; kinds that leave the map alone return ``IGNORED``.
    address, length, address2, length2, prot, flags, file_offset, result:
        the trace's columns, ``NONE`` for null, but ``result`` is ``-errno`` of a failed call.
        A recorded result address is where the mapping is put; with ``NONE`` the kernel's search
        places it.  mmap: ``address2`` is the hint.  mremap: ``address``/``length2`` old,
        ``length`` new length, ``address2`` the place that MREMAP_FIXED asks for.  brk:
        ``address2`` is the break asked for, ``result`` the break returned.  fork: ``address2`` is
        the child's space, which must be empty.  shmdt: ``address``.
    file_id:
        0 anonymous, else the identity of the file, between 1 and 2**62 - 1.
        SHMAT needs one (the segment).

    ``state.info`` (see :class:`vma_state.Info`) and the first ``info[EFFECTS]`` entries of
    ``state.effect_*`` describe what was found and marked.  ``info[ERROR]`` is the errno that the
    rules expect; where the recorded result says otherwise the record wins and
    ``numbers[DISAGREED]`` counts it.
    """
    return int(
        apply_core(
            lean(state.core),
            rules,
            space,
            kind,
            address,
            length,
            address2,
            length2,
            prot,
            flags,
            file_offset,
            file_id,
            result,
        )
    )


@njit
def fault(state: MapState, rules: I64, space: int, address: int, write: int, execute: int) -> int:
    """Replay a page fault; returns OK, or FAILED for a hole or a forbidden access.

    ``info``: VMAS (0 or 1), FIRST_* as before the fault, HOLE, STACK_GROWTH, ACCESS_ERROR,
    ANON_NEW.  A GROWSDOWN VMA above the address grows to it where the guard gap allows
    (mm/vma.c:expand_downwards); a first write to a private VMA gives it an anon_vma: a mergeable
    neighbour's if there is one (mm/vma.c:find_mergeable_anon_vma), else a new one.
    """
    return int(fault_core(lean(state.core), rules, space, address, write, execute))


@njit
def lookup(state: MapState, space: int, address: int) -> int:
    """Slot of the VMA that holds ``address``, or -1; its id is ``state.uid[slot]``."""
    return int(lookup_core(lean(state.core), space, address))


@njit
def search(
    state: MapState, rules: I64, space: int, length: int, flags: int, file_id: int, file_offset: int
) -> int:
    """Address that the kernel gives a mapping without a hint (``flags``: MAP_*); -1: no room."""
    return int(
        search_core(lean(state.core), rules, space, length, flags, file_id, file_offset, False)
    )


@njit
def cover(state: MapState, rules: I64, space: int, start: int, end: int) -> int:
    """Make UNKNOWN VMAs (readable, writable, no anon_vma) of every hole in [start, end).

    They extend an UNKNOWN VMA that ends where the hole begins.  Counted in ``numbers``.
    """
    return int(cover_core(lean(state.core), rules, space, start, end))


@njit
def insert(
    state: MapState,
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

    ``anon``: 1 gives it an anon_vma, 0 none.  ``info[TARGET_SLOT]`` and ``TARGET_UID`` name it.
    """
    return int(
        insert_core(lean(state.core), rules, space, start, end, vm_flags, pgoff, file_id, anon)
    )


class Vma(NamedTuple):
    """One VMA as ``dump`` shows it."""

    start: int
    end: int
    perms: str  # as in /proc/PID/maps: rwxp
    flags: Vm
    pgoff: int
    file: int
    anon: int
    uid: int


def dump(state: MapState, space: int) -> list[Vma]:
    """All VMAs of an address space by address."""
    found: list[Vma] = []
    slot = int(state.space_first[space])
    while slot >= 0:
        flags = Vm(int(state.flags[slot]))
        perms = (
            ("r" if Vm.READ in flags else "-")
            + ("w" if Vm.WRITE in flags else "-")
            + ("x" if Vm.EXEC in flags else "-")
            + ("s" if Vm.MAYSHARE in flags else "p")
        )
        found.append(
            Vma(
                int(state.start[slot]),
                int(state.end[slot]),
                perms,
                flags,
                int(state.pgoff[slot]),
                int(state.file[slot]),
                int(state.anon[slot]),
                int(state.uid[slot]),
            )
        )
        slot = int(state.next_slot[slot])
    return found
