"""Working state and output of the planner's compiled pass, and how they grow."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.vma_state import Info
from mmreplay.jit import borrowing_helper

I8 = NDArray[np.uint8]
I64 = NDArray[np.int64]


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
    # MAP_CONFLICTS by where the mapping that stood there was known from
    CONFLICTS_LISTED = 21  # a listing or record, which is older than the recording of calls
    CONFLICTS_INHERITED = 22  # a fork: the parent unmapped it meanwhile
    CONFLICTS_CALLED = 23  # a recorded call, whose undoing was not recorded (lost events)
    N = 24


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


THREAD: Final = np.dtype(
    [
        ("dep", np.int64),  # operation that its next one waits for, -1
        ("last", np.int64),  # its last operation in the plan, -1
        ("late", np.int64),  # scratch: newest operation per thread
        ("space", np.int32),  # address space it runs in; -1 not yet
        ("vfork_parent", np.int32),  # thread that waits for this vfork child, -1
        ("late_list", np.int32),  # scratch
        ("alive", np.int32),
    ]
)
SPACE: Final = np.dtype(
    [
        ("users", np.int32),  # threads alive
        ("old", np.int32),  # was running before the recording
        ("partner", np.int32),  # the space it last forked from or to, -1
        ("gate", np.int32),  # its listing ends with [vsyscall]
        ("ending", np.int32),  # its last user has called exec
    ]
)
#: key (waiter << 32 | maker), op: newest operation of maker that waiter waited for
#: (0, an own operation of thread 0: nobody waits for that)
KNOWN_PAIR: Final = np.dtype([("key", np.int64), ("op", np.int64)])
#: anon_vma bit of the VMA with that id in the map's slot
MAP_SLOT: Final = np.dtype([("uid", np.int64), ("bit", np.int64)])
#: anon_vma bit of an anon_vma identity in an address space
IDENTITY: Final = np.dtype([("bit", np.int32), ("space", np.int32)])
#: set so far in recorded order; initial: set when the plan begins
ANON_BIT: Final = np.dtype([("set", np.uint8), ("initial", np.uint8)])
OPERATION: Final = np.dtype(
    [
        ("traits", np.uint64),
        ("vma", np.int64),  # vma id
        ("file", np.int64),  # file identity, 0 none
        ("first_page", np.int64),
        ("last_page", np.int64),
        ("vma_first_page", np.int64),
        ("vma_last_page", np.int64),
        ("row", np.int64),
        ("mark_first", np.int32),
        ("mark_end", np.int32),
        ("dep_first", np.int32),
        ("dep_end", np.int32),
        ("thread", np.int32),
        ("mm", np.int32),
        ("child_mm", np.int32),
        ("pages", np.int32),
        ("vmas", np.int32),
        ("tables", np.int32),
        ("anon_slot", np.int32),
        ("table", np.int32),
        ("clone", np.int32),
        ("op", np.uint8),
    ],
    align=True,
)
#: Slots of ``Work.args`` behind the VMA map's own arguments: the break before a call; VMAs
#: in which an mprotect changes pages; what was recorded while a clone's row stands elsewhere.
A_BREAK, A_REWRITTEN, A_ADDRESS, A_ADDRESS2, A_RESULT, A_ORIGIN, A_SLOTS = range(11, 18)
MARK: Final = np.dtype([("vma", np.int64), ("set", np.int64)])


class Work(NamedTuple):
    """Few arrays, because compiled calls pass every one by value."""

    threads: NDArray[np.void]  # THREAD
    spaces: NDArray[np.void]  # SPACE
    known: NDArray[np.void]  # KNOWN_PAIR
    slots: NDArray[np.void]  # MAP_SLOT, by slot of the VMA map
    identities: NDArray[np.void]  # IDENTITY
    bits: NDArray[np.void]  # ANON_BIT
    table_initial: I8  # table.present when the plan begins, by table
    file_class: I8  # name hints of each file
    counters: I64  # (Count.N,)
    cursor: I64  # (Cursor.N,)
    args: I64  # (A_SLOTS,) arguments for the VMA map, from prepare to apply; A_* behind them


class Out(NamedTuple):
    """The plan in order of effect: N operations and one row of waste, marks, waits."""

    ops: NDArray[np.void]  # OPERATION
    marks: NDArray[np.void]  # MARK
    deps: I64


#: Entries of the table that remembers which waits are implied already.  A collision
#: only costs an edge that was not needed.
KNOWN: Final = 1 << 18


def make_work(threads: int, spaces: int, slots: int, files: NDArray[np.uint8]) -> Work:
    """Nothing known yet; ``slots`` as in the VMA map, ``files`` the name hints by file."""

    def table(n: int, dtype: np.dtype[np.void], *minus_one: str) -> NDArray[np.void]:
        new = np.zeros(n, dtype)
        for name in minus_one:
            new[name] = -1
        return new.view(np.recarray)

    return Work(
        threads=table(threads, THREAD, "dep", "last", "late", "space", "vfork_parent"),
        spaces=table(spaces, SPACE, "partner"),
        known=table(KNOWN, KNOWN_PAIR),
        slots=table(slots, MAP_SLOT, "uid", "bit"),
        identities=table(1024, IDENTITY, "bit", "space"),
        bits=table(1024, ANON_BIT),
        table_initial=np.zeros(4096, np.uint8),
        file_class=files,
        counters=np.zeros(Count.N, np.int64),
        cursor=np.zeros(Cursor.N, np.int64),
        args=np.zeros(A_SLOTS, np.int64),
    )


def make_out(n: int) -> Out:
    """Room for ``n`` operations."""
    return Out(
        ops=np.zeros(n + 1, OPERATION).view(np.recarray),
        marks=np.zeros(n // 4 + 1024, MARK).view(np.recarray),
        deps=np.zeros(n // 8 + 1024, np.int64),
    )


def grown(array: Any, need: int, *minus_one: str) -> Any:
    """A longer copy: at least ``need`` more items, at least twice the length."""
    new = np.zeros(max(2 * len(array), len(array) + need), array.dtype)
    for name in minus_one:
        new[name] = -1
    new[: len(array)] = array
    return new.view(type(array))


_I_CONFLICTS = int(Info.CONFLICTS)
_I_LISTED = int(Info.LISTED)
_I_INHERITED = int(Info.INHERITED)
_C_CONFLICTS = int(Count.MAP_CONFLICTS)
_C_LISTED = int(Count.CONFLICTS_LISTED)
_C_INHERITED = int(Count.CONFLICTS_INHERITED)
_C_CALLED = int(Count.CONFLICTS_CALLED)
_DEPS = int(Cursor.DEPS)


@borrowing_helper
def add_dep(w, out, thread, maker_op):
    """The current operation (of ``thread``) starts only after ``maker_op`` has completed.

    Left out where program order or an earlier wait of the thread implies it.
    """
    if maker_op < 0:
        return
    maker = out.ops[maker_op].thread
    if maker == thread:
        return
    key = (np.int64(thread) << 32) | np.int64(maker)
    at = ((key * np.int64(-7046029254386353131)) >> 24) & (len(w.known) - 1)
    if w.known[at].key == key and w.known[at].op >= maker_op:
        return
    w.known[at].key = key
    w.known[at].op = maker_op
    out.deps[w.cursor[_DEPS]] = maker_op
    w.cursor[_DEPS] += 1


@borrowing_helper
def note_late(w, out, n, op):
    """Remember ``op`` as a candidate wait: the newest per thread; returns the list's length."""
    thread = out.ops[op].thread
    if w.threads[thread].late < 0:
        w.threads[n].late_list = thread
        n += 1
    if op > w.threads[thread].late:
        w.threads[thread].late = op
    return n


@borrowing_helper
def flush_late(w, out, n, thread):
    """Turn the candidates into waits of the current operation."""
    for k in range(n):
        other = w.threads[k].late_list
        op = w.threads[other].late
        w.threads[other].late = -1
        add_dep(w, out, thread, op)


@borrowing_helper
def forget_deps(w, out, thread, first):
    """Take back the waits from ``first`` on: the operation is tried again or not planned."""
    for k in range(first, w.cursor[_DEPS]):
        key = (np.int64(thread) << 32) | np.int64(out.ops[out.deps[k]].thread)
        at = ((key * np.int64(-7046029254386353131)) >> 24) & (len(w.known) - 1)
        if w.known[at].key == key:
            w.known[at].key = -1
    w.cursor[_DEPS] = first


@borrowing_helper
def count_conflicts(m, w):
    """What the VMA map found in the way of the last call, by where it was known from."""
    listed, inherited = m.info[_I_LISTED], m.info[_I_INHERITED]
    w.counters[_C_CONFLICTS] += m.info[_I_CONFLICTS]
    w.counters[_C_LISTED] += listed
    w.counters[_C_INHERITED] += inherited
    w.counters[_C_CALLED] += m.info[_I_CONFLICTS] - listed - inherited
