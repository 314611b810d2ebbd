"""From the pass's records in order of effect to the thread-major :class:`Plan`."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.cold_pages import CACHED_PAGES, RANGES, mark_cold
from mmreplay.address_space.plan import SCALE_ONE, WAKE_POINT, MarkSet, Plan, PlanOp
from mmreplay.address_space.plan_state import Cursor, Out, Work
from mmreplay.address_space.threads import Threads
from mmreplay.address_space.times import BLOCKED, SLEEP, THINK, Times
from mmreplay.address_space.times import COUNT as _TIMES
from mmreplay.address_space.vma_state import OWN_FILES
from mmreplay.jit import borrowing_helper, native, prefetch

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

#: Share of a thread's operations before its loop point (the engine's window begins there too).
WARM_UP: float = 0.1
#: Operations that a thread does not repeat, and those that end an address space.
_ONCE: Final = np.isin(np.arange(256), (PlanOp.THREAD_START, PlanOp.EXEC, PlanOp.VFORK_EXIT))
_LAST_WORDS: Final = np.isin(np.arange(256), (PlanOp.PROCESS_EXIT, PlanOp.EXEC, PlanOp.VFORK_EXIT))

# Objects that a plan numbers densely, each kind in ascending order of its identity.
_VMA, _MM, _FILE, _TABLE, _ANON, _KINDS = range(6)
_IN_TABLES: Final = int(MarkSet.TABLES)
# Rows of the two blocks of columns that _cut fills; the first narrow ones are the objects.
_FIRST_PAGE, _LAST_PAGE, _VMA_FIRST, _VMA_LAST, _ROW, _THINK, _BLOCKED, _SLEEP, _WIDE = range(9)
_WAKE: Final = np.uint64(WAKE_POINT)
_NO_OP: Final = int(PlanOp.NONE)
# Rounds before a record is used, and words of a cache line.
_SOON, _LINE = 16, 8
_CHILD, _PAGES, _VMAS, _TABLES, _NARROW = range(_KINDS, _KINDS + 5)


@borrowing_helper
def _identity(vma: int, vmas: int) -> int:
    """Of a marked VMA; -2 - space stands for VMAs of that space that are not known."""
    return vma if vma >= 0 else vmas - 2 - vma


@native
def _survey(
    ops: Any,
    n: int,
    marks: Any,
    n_marks: int,
    vmas: int,
    files: int,
    base: I64,
    number: I32,
    first: I64,
) -> None:
    """Number the objects that the plan mentions and count the operations of each thread.

    ``base`` (6,): where each kind begins in ``number``, which is -1 on entry and holds in
    the end the dense number of each object, -1 of those not mentioned.  ``first`` (T+1,),
    zeros on entry: in the end where each thread begins.  ``vmas``: VMA ids given out,
    ``files``: the first number of files that the map made.
    """
    for o in range(n):
        first[ops[o].thread + 1] += 1
        number[base[_MM] + ops[o].mm] = 0
        if ops[o].child_mm >= 0:
            number[base[_MM] + ops[o].child_mm] = 0
        if ops[o].vma >= 0:
            number[base[_VMA] + ops[o].vma] = 0
        file = ops[o].file
        if file > 0:
            number[base[_FILE] + (file if file < OWN_FILES else file - OWN_FILES + files)] = 0
        if ops[o].table >= 0:
            number[base[_TABLE] + ops[o].table] = 0
        if ops[o].anon_slot >= 0:
            number[base[_ANON] + ops[o].anon_slot] = 0
    for k in range(n_marks):
        if marks[k].set == _IN_TABLES:
            number[base[_TABLE] + marks[k].vma] = 0
        else:
            number[_identity(marks[k].vma, vmas)] = 0
    for kind in range(_KINDS):
        count = 0
        for i in range(base[kind], base[kind + 1]):
            if number[i] == 0:
                number[i] = count
                count += 1
    for t in range(len(first) - 1):
        first[t + 1] += first[t]


@native
def _by_thread(ops: Any, n: int, first: I64, place: I64, order: I64) -> None:
    """Positions of operations 0..n by (thread, row).

    A counting sort, then insertion: in order of effect the rows of a thread ascend but
    for faults inside calls.  ``place`` (T,): scratch.
    """
    for t in range(len(place)):
        place[t] = first[t]
    for o in range(n):
        thread = ops[o].thread
        row = ops[o].row
        k = place[thread]
        place[thread] = k + 1
        while k > first[thread] and ops[order[k - 1]].row > row:
            order[k] = order[k - 1]
            k -= 1
        order[k] = o


@native
def _cut(
    ops: Any,
    words: I64,
    order: I64,
    gaps: I64,
    beside: I64,
    rank: I64,
    marks: Any,
    deps: I64,
    vmas: int,
    files: int,
    base: I64,
    number: I32,
    first_row: int,
    times: I64,
    wide: I64,
    narrow: I32,
    traits: NDArray[np.uint64],
    op: NDArray[np.uint8],
    mark_first: I64,
    mark_vma: I32,
    mark_set: NDArray[np.uint8],
    dep_first: I64,
    dep_op: I64,
    vma_mm: I32,
) -> None:
    """The columns and lists of records ``order``, and the address space of each VMA.

    Before record ``order[gaps[p]]`` a row is left for point p, and filled but for its times; its
    address space is that of record ``order[beside[p]]``.  ``rank``: scratch, a number a record.
    With many threads each record is elsewhere in memory, and its times again; they are
    asked for some rounds before.  ``words``: the memory of ``ops``.  A fork marks VMAs of the
    parent, everything else its own: the mm of the row either way.
    """
    n = len(order)
    size = len(words) // len(ops)
    m = 0
    d = 0
    p = 0
    for at in range(n):
        while p < len(gaps) and gaps[p] <= at:
            p += 1
        rank[order[at]] = at + p
    p = 0
    for at in range(n + 1):
        while p < len(gaps) and gaps[p] <= at:
            k = at + p
            traits[k] = _WAKE
            op[k] = _NO_OP
            for i in range(_WIDE):
                wide[i, k] = -1
            for i in range(_NARROW):
                narrow[i, k] = -1
            for i in (_FIRST_PAGE, _LAST_PAGE, _THINK, _BLOCKED):
                wide[i, k] = 0
            for i in (_PAGES, _VMAS, _TABLES):
                narrow[i, k] = 0
            narrow[_MM, k] = number[base[_MM] + ops[order[beside[p]]].mm]
            mark_first[k] = m
            dep_first[k] = d
            p += 1
        if at == n:
            break
        k = at + p
        o = order[at]
        if at + _SOON < n:
            there = order[at + _SOON] * size
            prefetch(words, there)
            prefetch(words, there + _LINE)
            prefetch(words, there + size - 1)
            row = ops[order[at + _SOON // 2]].row - first_row
            prefetch(times, row * _TIMES)
        traits[k] = ops[o].traits
        op[k] = ops[o].op
        wide[_FIRST_PAGE, k] = ops[o].first_page
        wide[_LAST_PAGE, k] = ops[o].last_page
        wide[_VMA_FIRST, k] = ops[o].vma_first_page
        wide[_VMA_LAST, k] = ops[o].vma_last_page
        row = ops[o].row
        wide[_ROW, k] = row if ops[o].clone == 0 else -1
        wide[_THINK, k] = times[row - first_row, THINK]
        wide[_BLOCKED, k] = times[row - first_row, BLOCKED]
        wide[_SLEEP, k] = times[row - first_row, SLEEP]
        narrow[_PAGES, k] = ops[o].pages
        narrow[_VMAS, k] = ops[o].vmas
        narrow[_TABLES, k] = ops[o].tables
        mm = number[base[_MM] + ops[o].mm]
        narrow[_MM, k] = mm
        child = ops[o].child_mm
        narrow[_CHILD, k] = number[base[_MM] + child] if child >= 0 else -1
        vma = ops[o].vma
        narrow[_VMA, k] = -1
        if vma >= 0:
            narrow[_VMA, k] = number[base[_VMA] + vma]
            vma_mm[number[base[_VMA] + vma]] = mm
        table = ops[o].table
        narrow[_TABLE, k] = number[base[_TABLE] + table] if table >= 0 else -1
        anon = ops[o].anon_slot
        narrow[_ANON, k] = number[base[_ANON] + anon] if anon >= 0 else -1
        narrow[_FILE, k] = -1
        file = ops[o].file
        if file > 0:
            file = file if file < OWN_FILES else file - OWN_FILES + files
            narrow[_FILE, k] = number[base[_FILE] + file]
        mark_first[k] = m
        dep_first[k] = d
        for i in range(ops[o].mark_first, ops[o].mark_end):
            mark_set[m] = marks[i].set
            if marks[i].set == _IN_TABLES:
                mark_vma[m] = number[base[_TABLE] + marks[i].vma]
            else:
                mark_vma[m] = number[_identity(marks[i].vma, vmas)]
                vma_mm[mark_vma[m]] = mm
            m += 1
        for i in range(ops[o].dep_first, ops[o].dep_end):
            dep_op[d] = rank[deps[i]]
            d += 1
    mark_first[n + p] = m
    dep_first[n + p] = d


def loop_points(thread_first: I64, op: NDArray[np.uint8], ended: NDArray[np.bool_]) -> I64:
    """Operation to continue at after a thread's last one; -1 where the thread ends.

    A thread loops from behind its warm-up (its first tenth, its start and its exec)
    unless it ended long before the window does or came late, or its last operation
    ends an address space: those happen once.
    """
    first, end = thread_first[:-1], thread_first[1:]
    at = first + (WARM_UP * (end - first)).astype(np.int64)
    once = np.flatnonzero(_ONCE[op])
    owner = np.searchsorted(thread_first, once, side="right") - 1
    np.maximum.at(at, owner, once + 1)
    loops = (end - first >= 2) & ~ended & (at < end) & ~_LAST_WORDS[op[end - 1]]
    return np.where(loops, at, -1)


class Layout(NamedTuple):
    """N operations by (thread, row), T threads, and the numbers of what they mention."""

    order: I64  # (N,) records, in order of effect
    thread_first: I64  # (T+1,)
    who: I64  # (T,) index into ``Threads``
    base: I64  # where each kind of object begins in ``number``
    number: I32  # of each object, -1 where it is not mentioned
    vmas: int  # VMA ids given out
    files: int  # first number of files that the map made


class Gaps(NamedTuple):
    """P points between the operations of a layout, by thread and then by operation.

    Before the operation at a position (N+1 at most: the end) of ``Layout.order`` there are the
    points of its thread before it, and those of the thread before behind its last one.
    """

    before: I64  # (P,) position of the operation that follows; the thread's end behind its last one
    thread: I64  # (P,) thread of the layout

    def moved(self, at: I64) -> I64:
        """Rows of the plan that operations at these positions have."""
        rows: I64 = at + np.searchsorted(self.before, at, side="right")
        return rows


def lay_out(
    out: Out, w: Work, uids: int, tables: int, files: int, own_files: int, threads: Threads
) -> Layout:
    """Order the pass's records, and complete their traits (``cold_pages``).

    ``uids``, ``tables``, ``files``, ``own_files``: VMA ids, page-table pages, file numbers
    and files of the map given out.
    """
    n = int(w.cursor[Cursor.OUT])
    sizes = [uids + len(w.spaces), len(w.spaces), files + 1 + own_files, tables, len(w.bits)]
    base = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    number = np.full(base[-1], -1, np.int32)
    every = np.zeros(threads.n + 1, np.int64)
    order = np.empty(n, np.int64)
    held, filled = np.zeros(len(w.spaces), np.int64), np.zeros(RANGES, np.int64)
    mark_cold(out.ops, n, CACHED_PAGES, held, filled)
    n_marks = int(w.cursor[Cursor.MARKS])
    _survey(out.ops, n, out.marks, n_marks, uids, files + 1, base, number, every)
    _by_thread(out.ops, n, every, np.empty(threads.n, np.int64), order)
    who = np.flatnonzero(np.diff(every))
    return Layout(order, np.append(every[who], n), who, base, number, uids, files + 1)


def assemble(
    out: Out,
    w: Work,
    layout: Layout,
    threads: Threads,
    times: Times,
    window_ns: tuple[int, int],
    whole: bool,
    points: Gaps,
) -> tuple[Plan, I64]:
    """The plan and its address spaces.

    ``window_ns``: begin and end of the planned part; ``whole``: it reaches to the end of the
    trace, so the threads' tails count; ``points``: where rows are left for points.
    """
    order, base, number, who = layout.order, layout.base, layout.number, layout.who
    gaps = points.before
    n, rows = len(order), len(order) + len(gaps)
    n_marks, n_deps = int(w.cursor[Cursor.MARKS]), int(w.cursor[Cursor.DEPS])
    wide = np.empty((_WIDE, rows), np.int64)
    narrow = np.empty((_NARROW, rows), np.int32)
    traits = np.empty(rows, np.uint64)
    op = np.empty(rows, np.uint8)
    words = out.ops.view(np.ndarray).view(np.int64)
    objects = [np.flatnonzero(number[base[kind] : base[kind + 1]] >= 0) for kind in range(_KINDS)]
    mark_first, dep_first = np.empty((2, rows + 1), np.int64)
    mark_vma, mark_set = np.empty(n_marks, np.int32), np.empty(n_marks, np.uint8)
    dep_op = np.empty(n_deps, np.int64)
    vma_mm = np.zeros(len(objects[_VMA]), np.int32)
    _cut(
        out.ops, words, order, gaps, np.minimum(gaps, layout.thread_first[points.thread + 1] - 1),
        np.empty(n, np.int64), out.marks, out.deps, layout.vmas, layout.files, base, number,
        times.first, times.values, wide, narrow, traits, op, mark_first, mark_vma, mark_set,
        dep_first, dep_op, vma_mm,
    )  # fmt: skip
    starts = layout.thread_first[:-1]
    # think time before the window began does not count
    cpu, blocked = wide[_THINK], wide[_BLOCKED]
    at = points.moved(starts)
    recorded = np.where(threads.clone_of[who] >= 0, threads.clone_of[who], who)
    lead = cpu[at] + blocked[at] + times.begins[recorded, 1]
    offset = times.begins[recorded, 0] - lead - window_ns[0]
    deficit = np.maximum(-offset, 0)
    take = np.minimum(deficit, blocked[at])
    blocked[at] -= take
    cpu[at] -= np.minimum(deficit - take, cpu[at])
    # gone long before the window ends, or not there for half of it: a thread that came and went
    span, end = window_ns[1] - window_ns[0], threads.end_ns[who] - window_ns[0]
    ended = (threads.end_ns[who] >= 0) & (
        (end < span - span // 20) | (end - np.maximum(offset, 0) < span // 2)
    )
    tail = 1 if whole else 0
    loop = loop_points(
        layout.thread_first, op if rows == n else np.delete(op, gaps + np.arange(len(gaps))), ended
    )
    thread_first = layout.thread_first + np.searchsorted(points.thread, np.arange(len(who) + 1))
    plan = Plan(
        thread_first=thread_first,
        thread_offset_ns=np.maximum(offset, 0),
        thread_group=threads.group[who].astype(np.int32),
        thread_loop=np.where(loop >= 0, points.moved(loop), -1),
        thread_tail_cpu_ns=threads.tail_cpu_ns[who] * tail,
        thread_tail_blocked_ns=threads.tail_blocked_ns[who] * tail,
        op=op,
        mm=narrow[_MM],
        child_mm=narrow[_CHILD],
        traits=traits,
        think_cpu_ns=cpu,
        think_blocked_ns=blocked,
        sleep_ns=wide[_SLEEP],
        pages=narrow[_PAGES],
        vmas=narrow[_VMAS],
        tables=narrow[_TABLES],
        vma=narrow[_VMA],
        anon_slot=narrow[_ANON],
        table=narrow[_TABLE],
        file=narrow[_FILE],
        first_page=wide[_FIRST_PAGE],
        last_page=wide[_LAST_PAGE],
        vma_first_page=wide[_VMA_FIRST],
        vma_last_page=wide[_VMA_LAST],
        scale=np.full(rows, SCALE_ONE, np.int32),
        row=wide[_ROW],
        mark_first=mark_first,
        mark_vma=mark_vma,
        mark_set=mark_set,
        dep_first=dep_first,
        dep_op=dep_op,
        vma_mm=vma_mm,
        anon_initial=w.bits["initial"][objects[_ANON]],
        table_initial=w.table_initial[objects[_TABLE]],
        mm_users=_users(thread_first, narrow[_MM], len(objects[_MM])),
        n_files=len(objects[_FILE]),
    )
    return plan, objects[_MM]


def _users(thread_first: I64, mm: I32, spaces: int) -> I32:
    """(spaces,) threads that use each address space."""
    starts = np.zeros(len(mm), np.bool_)
    starts[thread_first[:-1]] = True
    starts[1:] |= mm[1:] != mm[:-1]
    at = np.flatnonzero(starts)
    thread = np.searchsorted(thread_first, at, side="right") - 1
    pairs = np.unique(thread * max(spaces, 1) + mm[at])
    return np.bincount(pairs % max(spaces, 1), minlength=spaces).astype(np.int32)
