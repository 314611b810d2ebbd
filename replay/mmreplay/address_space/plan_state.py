"""Working state and output of the planner's compiled pass, and how they grow."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.jit import njit

I8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]


class Count(IntEnum):
    """Counters of what the planner guessed, learnt or could not use; names are public."""

    UNKNOWN_FAULTS = 0  # faults at addresses of no known VMA: one was made
    FAULT_WITHOUT_ADDRESS = 1
    WRITE_GUESSED = 2  # no error bits: read or write guessed from the VMA
    PRESENT_LEARNT = 3  # a fault found a page mapped that the trace never mapped
    ABSENT_UNEXPECTED = 4  # a page thought mapped was not (reclaim, fault-around guess)
    COW_GUESSED = 5  # write-protect fault on a page of unknown history
    ACCESS_CONTRADICTED = 6  # a fault succeeded that the VMA's protection forbids
    FAILED_IN_VMA = 7  # a fault failed although the VMA allows the access
    HUGE_GUESSED = 8  # first fault of a region taken for a huge page
    HUGE_CONTRADICTED = 9  # later faults show that it was not
    TABLE_ASSUMED = 10  # page-table pages assumed to be there from before
    ANON_ASSUMED = 11  # VMAs assumed to have an anon_vma from before
    FAULT_AROUND_PAGES = 12  # pages assumed mapped by fault-around
    CALLS_DISAGREED = 13  # calls whose recorded result the rules do not expect
    MAP_CONFLICTS = 14  # mappings found where a new one was placed freely
    STALE_PAGES = 15  # pages thought mapped under a new mapping
    BRK_UNKNOWN = 16  # brk without a known break before it
    FORK_INTO_USED_SPACE = 17
    LEARNT_MAPPINGS = 18  # rows of the vmas table that were applied
    CLONE_RANGES = 19  # private ranges placed anew for cloned threads
    DEPENDENCIES = 20
    N = 21


class Cursor(IntEnum):
    """Positions in the output."""

    OUT = 0  # operations written
    MARKS = 1
    DEPS = 2
    SLOTS = 3  # anon_vma slots handed out
    NEED = 4  # what the pass wants grown: number of items
    N = 5


class Status(IntEnum):
    """Why the pass stopped; all but DONE: grow and call again."""

    DONE = 0
    GROW_MAP = 1
    GROW_PAGES = 2
    GROW_SEGMENTS = 3
    GROW_MARKS = 4
    GROW_DEPS = 5
    GROW_SLOTS = 6
    GROW_TABLES = 7
    GROW_IDENTITIES = 8


class Work(NamedTuple):
    """T threads, M address spaces, S map slots, A anon slots, B tables, I anon identities."""

    thread_space: I32  # (T,) address space it runs in; -1 not yet
    thread_alive: I8
    thread_dep: I64  # (T,) operation that its next one waits for, -1
    thread_last: I64  # (T,) its last operation in the plan, -1
    vfork_parent: I32  # (T,) thread that waits for this vfork child, -1
    users: I32  # (M,) threads alive
    space_old: I8  # (M,) was running before the recording
    partner: I32  # (M,) the space it last forked from or to, -1
    known_key: I64  # (K,) (waiter << 32 | maker): ...
    known_op: I64  # (K,) ... newest operation of maker that waiter waited for
    slot_uid: I64  # (S,) vma id that slot_anon belongs to
    slot_anon: I32  # (S,) its anon_vma slot
    identity_slot: I32  # (I,) anon_vma slot of an anon_vma identity, -1
    identity_space: I32  # (I,)
    anon_set: I8  # (A,) set so far in recorded order
    anon_initial: I8  # (A,)
    table_initial: I8  # (B,)
    file_class: I8  # (F,) name hints of each file
    late: I64  # (T,) scratch: newest operation per thread
    late_list: I32  # (T,) scratch
    counters: I64  # (Count.N,)
    cursor: I64  # (Cursor.N,)


class Out(NamedTuple):
    """Columns in order of effect; N operations and one row of waste."""

    thread: I32
    op: I8
    mm: I32
    child_mm: I32
    traits: U64
    pages: I32
    vmas: I32
    tables: I32
    vma: I64  # vma id
    anon_slot: I32
    table: I32
    file: I64  # file identity, 0 none
    first_page: I64
    last_page: I64
    row: I64
    copy: I32
    mark_first: I64  # (N+2,)
    mark_vma: I64
    mark_set: I8
    dep_first: I64  # (N+2,)
    dep_op: I64


class Options(NamedTuple):
    """What the pass is to do, as plain numbers."""

    row_first: int  # rows of the trace that make the plan ...
    row_end: int  # ... exclusive
    huge: int  # 0: huge pages only with MADV_HUGEPAGE, 1: always, -1: never


#: Entries of the table that remembers which waits are implied already.  A collision
#: only costs an edge that was not needed.
KNOWN: Final = 1 << 18


def make_work(threads: int, spaces: int, slots: int, files: NDArray[np.uint8]) -> Work:
    """Nothing known yet; ``slots`` as in the VMA map, ``files`` the name hints by file."""
    return Work(
        thread_space=np.full(threads, -1, np.int32),
        thread_alive=np.zeros(threads, np.uint8),
        thread_dep=np.full(threads, -1, np.int64),
        thread_last=np.full(threads, -1, np.int64),
        vfork_parent=np.full(threads, -1, np.int32),
        users=np.zeros(spaces, np.int32),
        space_old=np.zeros(spaces, np.uint8),
        partner=np.full(spaces, -1, np.int32),
        known_key=np.full(KNOWN, -1, np.int64),
        known_op=np.full(KNOWN, -1, np.int64),
        slot_uid=np.full(slots, -1, np.int64),
        slot_anon=np.full(slots, -1, np.int32),
        identity_slot=np.full(1024, -1, np.int32),
        identity_space=np.full(1024, -1, np.int32),
        anon_set=np.zeros(1024, np.uint8),
        anon_initial=np.zeros(1024, np.uint8),
        table_initial=np.zeros(4096, np.uint8),
        file_class=files,
        late=np.full(threads, -1, np.int64),
        late_list=np.zeros(threads, np.int32),
        counters=np.zeros(Count.N, np.int64),
        cursor=np.zeros(Cursor.N, np.int64),
    )


def make_out(n: int) -> Out:
    """Room for ``n`` operations."""

    def full(dtype: type, value: int, extra: int = 1) -> NDArray[np.generic]:
        return np.full(n + extra, value, dtype)

    return Out(
        thread=full(np.int32, -1),  # type: ignore[arg-type]
        op=full(np.uint8, 0),  # type: ignore[arg-type]
        mm=full(np.int32, 0),  # type: ignore[arg-type]
        child_mm=full(np.int32, -1),  # type: ignore[arg-type]
        traits=full(np.uint64, 0),  # type: ignore[arg-type]
        pages=full(np.int32, 0),  # type: ignore[arg-type]
        vmas=full(np.int32, 0),  # type: ignore[arg-type]
        tables=full(np.int32, 0),  # type: ignore[arg-type]
        vma=full(np.int64, -1),  # type: ignore[arg-type]
        anon_slot=full(np.int32, -1),  # type: ignore[arg-type]
        table=full(np.int32, -1),  # type: ignore[arg-type]
        file=full(np.int64, 0),  # type: ignore[arg-type]
        first_page=full(np.int64, 0),  # type: ignore[arg-type]
        last_page=full(np.int64, 0),  # type: ignore[arg-type]
        row=full(np.int64, -1),  # type: ignore[arg-type]
        copy=full(np.int32, 0),  # type: ignore[arg-type]
        mark_first=full(np.int64, 0, 2),  # type: ignore[arg-type]
        mark_vma=np.zeros(n // 4 + 1024, np.int64),
        mark_set=np.zeros(n // 4 + 1024, np.uint8),
        dep_first=full(np.int64, 0, 2),  # type: ignore[arg-type]
        dep_op=np.zeros(n // 8 + 1024, np.int64),
    )


def grown(array: NDArray[np.generic], need: int, fill: int = 0) -> NDArray[np.generic]:
    """A longer copy: at least ``need`` more items, at least twice the length."""
    new = np.full(max(2 * len(array), len(array) + need), fill, array.dtype)
    new[: len(array)] = array
    return new


_OUT = int(Cursor.OUT)
_DEPS = int(Cursor.DEPS)


@njit
def add_dep(w, out, thread, maker_op):
    """The current operation (of ``thread``) starts only after ``maker_op`` has completed.

    Left out where program order or an earlier wait of the thread implies it.
    """
    if maker_op < 0:
        return
    maker = out.thread[maker_op]
    if maker == thread:
        return
    key = (np.int64(thread) << 32) | np.int64(maker)
    at = ((key * np.int64(-7046029254386353131)) >> 24) & (len(w.known_key) - 1)
    if w.known_key[at] == key and w.known_op[at] >= maker_op:
        return
    w.known_key[at] = key
    w.known_op[at] = maker_op
    out.dep_op[w.cursor[_DEPS]] = maker_op
    w.cursor[_DEPS] += 1


@njit
def note_late(w, out, n, op):
    """Remember ``op`` as a candidate wait: the newest per thread; returns the list's length."""
    thread = out.thread[op]
    if w.late[thread] < 0:
        w.late_list[n] = thread
        n += 1
    if op > w.late[thread]:
        w.late[thread] = op
    return n


@njit
def flush_late(w, out, n, thread):
    """Turn the candidates into waits of the current operation."""
    for k in range(n):
        other = w.late_list[k]
        op = w.late[other]
        w.late[other] = -1
        add_dep(w, out, thread, op)


@njit
def forget_deps(w, out, thread, first):
    """Take back the waits from ``first`` on: the operation is tried again, or is not in the plan."""
    for k in range(first, w.cursor[_DEPS]):
        key = (np.int64(thread) << 32) | np.int64(out.thread[out.dep_op[k]])
        at = ((key * np.int64(-7046029254386353131)) >> 24) & (len(w.known_key) - 1)
        if w.known_key[at] == key:
            w.known_key[at] = -1
    w.cursor[_DEPS] = first
