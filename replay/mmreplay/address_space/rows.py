"""The stream that the planner replays: operations and learnt mappings in order of effect.

Operations of a trace are sorted by their begin, but a mapping call shows its
effect at its *end*: while ``munmap`` of another thread is still on its way, an
``mmap`` that began earlier may be given the very range.  So calls that make
mappings are placed at their recorded end, all others at their begin; then what a
call is given is always free, and what it made is always there for its users.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.mappings import Records, read_mappings
from mmreplay.address_space.threads import Lives, Threads
from mmreplay.jit import native
from mmreplay.schema import DurationKind, OpKind
from mmreplay.trace.arrays import Column, column_batches, is_known

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

#: Kinds of rows that are no operations.
LEARN: Final = 255  # a mapping from the trace's vmas table
THREAD_BEGIN: Final = 254
THREAD_END: Final = 253

#: Calls whose effect is placed at their recorded end.
_MAKERS: Final = (
    OpKind.MMAP,
    OpKind.MREMAP,
    OpKind.SHMAT,
    OpKind.BRK,
)
#: Rows read at a time: the row groups that traces are written in.
CHUNK_ROWS: Final = 1 << 16
_MAP_ANONYMOUS: Final = 0x20
_FILE_INSIDE: Final = 0x40001  # MAP_SHARED, MAP_HUGETLB: a file of the kernel's own if anonymous
_NEVER: Final = np.iinfo(np.int64).max
_IS_MAKER: Final = np.isin(np.arange(256), _MAKERS)
_FAULT_KERNEL: Final = int(OpKind.FAULT_KERNEL)
_PROC_READ: Final = int(OpKind.PROC_READ)
_MEASURED: Final = int(DurationKind.MEASURED)

#: One row of a chunk.  Null numbers are 0 (``bits``: 255, ``address``: -1).
ROW: Final = np.dtype(
    [
        ("address", np.int64),
        ("row", np.int64),  # row in the operations table; -1 for events
        ("thread", np.int32),  # dense thread, -1 for LEARN
        ("clone", np.int32),  # 0 for a recorded row, k for the k-th clone of its thread
        ("space", np.int32),
        ("kind", np.uint8),
        ("bits", np.uint8),
        ("fault_class", np.uint8),
        ("prot", np.uint8),
        # the rest is 0 for faults
        ("length", np.int64),
        ("address2", np.int64),
        ("length2", np.int64),
        ("advice", np.int64),  # flags: MAP_*, MADV_*, ...
        ("file_offset", np.int64),
        ("result", np.int64),
        ("file", np.int32),  # file number, -1 anonymous or unknown
        ("child", np.int32),  # dense thread of the child, -1
        ("child_space", np.int32),  # its address space, -1
        ("errno", np.int16),
        ("hint", np.uint8),
        ("anon", np.int8),  # LEARN: has an anon_vma 1, 0, unknown -1
    ],
    align=True,
)
Rows = NDArray[np.void]

#: Columns read for every row, and those of system calls only.
_EVERY: Final = ("begin_ns", "tid", "address_space", "kind", "address", "fault_bits", "fault_class")
_CALLS: Final = (
    "duration_ns", "duration_kind", "length", "address2", "length2", "prot", "flags",
    "file_offset", "result", "errno",
)  # fmt: skip


@native
def _fill(
    rows: Any,
    first_row: int,
    table: I32,
    tid: I32,
    kind: U8,
    space: NDArray[np.uint32],
    address: tuple[I64, U8],
    bits: tuple[U8, U8],
    fault_class: U8,
    thread: I32,
    begin: I64,
    of_calls: tuple[tuple[NDArray[Any], U8], ...],
    calls: I64,
    end: I64,
) -> int:
    """Fill the rows of a chunk but for files and children; returns how many are ``calls``.

    ``table``: thread by tid, its last entry for all others.  Pairs are values and which are known;
    ``of_calls``: of the columns _CALLS.  ``thread``: of each row; ``calls`` and ``end``: which
    rows, and when they end as recorded.  The rows come with what was in them before.
    """
    duration, duration_kind, length, address2, length2, prot, flags, offset, result, errno = (
        of_calls
    )
    last = len(table) - 1
    n = 0
    for i in range(len(kind)):
        who = np.int64(tid[i])
        who = np.int64(table[who if 0 <= who < last else last])
        thread[i] = who
        was_call = rows[i].kind > _FAULT_KERNEL
        rows[i].row = first_row + i
        rows[i].thread = who
        rows[i].kind = kind[i]
        rows[i].space = space[i]
        rows[i].address = address[0][i] if is_known(address[1], i) else -1
        rows[i].bits = bits[0][i] if is_known(bits[1], i) else 255
        rows[i].fault_class = fault_class[i]
        is_call = kind[i] > _FAULT_KERNEL
        if is_call:
            rows[i].length = length[0][i] if is_known(length[1], i) else 0
            rows[i].address2 = address2[0][i] if is_known(address2[1], i) else 0
            rows[i].length2 = length2[0][i] if is_known(length2[1], i) else 0
            rows[i].prot = prot[0][i] if is_known(prot[1], i) else 0
            rows[i].advice = flags[0][i] if is_known(flags[1], i) else 0
            rows[i].file_offset = offset[0][i] if is_known(offset[1], i) else 0
            # a read(2) whose result is not known has found something
            unknown = 1 if kind[i] == _PROC_READ else 0
            rows[i].result = result[0][i] if is_known(result[1], i) else unknown
            rows[i].errno = errno[0][i] if is_known(errno[1], i) else 0
            rows[i].file = -1
            rows[i].child = -1
            rows[i].child_space = -1
            end[n] = begin[i]
            if duration_kind[0][i] == _MEASURED and is_known(duration[1], i):
                end[n] += duration[0][i]
            calls[n] = i
            n += 1
        elif was_call:
            rows[i].length = 0
            rows[i].address2 = 0
            rows[i].length2 = 0
            rows[i].prot = 0
            rows[i].advice = 0
            rows[i].file_offset = 0
            rows[i].result = 0
            rows[i].errno = 0
            rows[i].file = 0
            rows[i].child = 0
            rows[i].child_space = 0
        if was_call:
            rows[i].hint = 0
            rows[i].anon = 0
    return n


class Stream:
    """Chunks of (:class:`ROW` rows, their order of effect); memory bounded by ``chunk``.

    A chunk is valid until the next one is asked for.

    ``extra``: columns that the reader wants to find in ``columns`` besides.
    """

    def __init__(
        self,
        trace: Any,
        threads: Threads,
        *,
        chunk: int = CHUNK_ROWS,
        extra: tuple[str, ...] = (),
    ) -> None:
        self.trace = trace
        self.threads = threads
        self.chunk = chunk
        self.lives = Lives(threads)
        self.mappings = read_mappings(trace)
        self.counters: dict[str, int] = {"file_guessed": 0, "mapping_record_matched": 0}
        self._records = Records(self.mappings)
        self._descriptors: dict[int, int] = {}
        self._buffer = np.zeros(0, ROW)
        self._learnt = 0  # mappings before this one have been passed on
        self._names = tuple(dict.fromkeys((*_EVERY, *_CALLS, "fd", "child", *extra)))
        #: What was read last: columns, the number of their first row, the thread of each row.
        self.columns: dict[str, Column] = {}
        self.first_row = 0
        self.row_threads: I32 = np.zeros(0, np.int32)
        #: Every operation before this row has been passed on.
        self.done_row = 0

    def __iter__(self) -> Iterator[tuple[Rows, I64]]:
        events, event_key = self._thread_events()
        held = np.zeros(0, ROW)  # rows whose effect comes after what was read so far
        held_key = np.zeros(0, np.int64)
        total = self.trace.rows("operations")
        for columns in column_batches(self.trace, "operations", self._names, self.chunk):
            self.columns = columns
            begin = columns["begin_ns"].values
            n = len(begin)
            last = self.first_row + n >= total
            # later chunks begin at or after it
            limit = _NEVER if last else int(begin[-1])
            m0, self._learnt = self._learnt, int(np.searchsorted(self.mappings.ns, limit))
            e = len(event_key) if last else int(np.searchsorted(event_key, limit))
            # first the operations of the chunk, then the few that are placed among them
            rows = self._room(n + len(held) + e + self._learnt - m0)
            key, late = self._convert(rows[:n], begin)
            # those that begin at the limit: the chunk's last rows, as they ascend
            late = np.union1d(late, np.arange(np.searchsorted(begin, limit), n))
            learn, learn_ns = self._learn(m0, self._learnt)
            at = n
            for part in (held, events[:e], learn):
                rows[at : at + len(part)] = part
                at += len(part)
            few = np.concatenate([late, np.arange(n, at)])
            few_key = np.concatenate([key[late], held_key, event_key[:e], learn_ns])
            ready = np.ones(len(few), np.bool_) if last else few_key < limit
            held = rows.take(few[~ready])
            held_key = few_key[~ready]
            events, event_key = events[e:], event_key[e:]
            self.done_row = int(held["row"].min(initial=self.first_row + n))
            order = _merged(late, begin, self.first_row, rows, few[ready], few_key[ready])
            yield self._copies(rows, order)
            self.first_row += n

    # -- parts of the stream ---------------------------------------------------------

    def _room(self, n: int) -> Rows:
        """``n`` rows, in the memory of the chunk before."""
        if len(self._buffer) < n:
            self._buffer = np.zeros(n + n // 8, ROW)
        return self._buffer[:n]

    def _thread_events(self) -> tuple[Rows, I64]:
        """Beginnings and ends of threads by time, and when they are."""
        t = self.threads
        left_out = np.zeros(t.n, np.bool_)
        left_out[: t.n_recorded] = t.copies == 0
        begins = np.flatnonzero(~left_out)
        ends = np.flatnonzero(~left_out & (t.end_ns >= 0))
        who = np.concatenate([begins, ends])
        rows = np.zeros(len(who), ROW)
        rows["thread"] = who
        rows["space"] = t.space[who]
        rows["row"] = -1
        rows["kind"] = np.where(np.arange(len(who)) < len(begins), THREAD_BEGIN, THREAD_END)
        began = np.where(t.start_ns < 0, np.iinfo(np.int64).min, t.start_ns)
        key = np.concatenate([began[begins], t.end_ns[ends]])
        order = np.argsort(key, kind="stable")
        return rows[order], key[order]

    def _learn(self, first: int, stop: int) -> tuple[Rows, I64]:
        """Mappings ``first..stop`` that no call made, and when they were learnt."""
        m = self.mappings
        index = first + np.flatnonzero(~m.used[first:stop])
        rows = np.zeros(len(index), ROW)
        rows["kind"] = LEARN
        rows["thread"] = -1
        rows["row"] = -1
        for ours, theirs in (
            ("space", m.space), ("address", m.start), ("length", m.length), ("prot", m.prot),
            ("advice", m.flags), ("file", m.file), ("file_offset", m.offset), ("hint", m.hint),
            ("anon", m.anon),
        ):  # fmt: skip
            rows[ours] = theirs[index]
        return rows, m.ns[index]

    def _convert(self, rows: Rows, begin: I64) -> tuple[I64, I64]:
        """Fill ``rows``; returns when each takes effect, ns, and which do not as they begin."""
        columns = self.columns
        kind, tid = columns["kind"].values, columns["tid"].values
        self.row_threads = np.empty(len(rows), np.int32)
        calls, end = np.empty((2, len(rows)), np.int64)
        n = _fill(
            rows, self.first_row, self.lives.table, tid, kind, columns["address_space"].values,
            columns["address"].pair, columns["fault_bits"].pair, columns["fault_class"].values,
            self.row_threads, begin, tuple(columns[name].pair for name in _CALLS), calls, end,
        )  # fmt: skip
        if self.lives.searched:
            self.row_threads[:] = self.lives.at(tid, begin)
            rows["thread"] = self.row_threads
        at, end = calls[:n], end[:n]
        self._children(rows, at, columns["child"].at(at, -1), end)
        self._files(rows, at, columns["fd"].at(at, -1), begin[at], end)
        makes = np.flatnonzero(_IS_MAKER[kind[at]] & (end != begin[at]))
        late = at[makes]
        if len(late):
            begin = begin.copy()
            begin[late] = end[makes]
        return begin, late

    def _children(self, rows: Rows, calls: I64, tid: NDArray[Any], end: I64) -> None:
        """The thread that each call made, and its address space."""
        made = np.flatnonzero(tid >= 0)
        child = self.lives.at(tid[made], end[made])
        rows["child"][calls[made]] = child
        known = child >= 0
        rows["child_space"][calls[made[known]]] = self.threads.space[child[known]]

    def _files(
        self, rows: Rows, calls: I64, descriptor: NDArray[Any], begin: I64, end: I64
    ) -> None:
        """Take out the MMAP2 records that calls wrote; give mmap rows their file.

        It is that of the record, else one for each descriptor of the process.
        """
        m = self.mappings
        kind = rows["kind"][calls]
        protects = (kind == OpKind.MPROTECT) | (kind == OpKind.PKEY_MPROTECT)
        makes = np.isin(kind, (OpKind.MMAP, OpKind.BRK, OpKind.SHMAT))
        makes &= rows["errno"][calls] == 0
        which = np.flatnonzero(protects | makes)
        at = calls[which]
        start, flags = rows["address"][at], rows["advice"][at]
        maps = kind[which] == OpKind.MMAP
        of_file = np.where(flags & _MAP_ANONYMOUS == 0, 1, np.where(flags & _FILE_INSIDE, -1, 0))
        found = self._records.find(
            rows["space"][at],
            start,
            start + np.maximum(rows["length"][at], 1),
            begin[which],
            end[which],
            makes[which],
            np.where(maps, of_file, -1).astype(np.int8),
        )
        which, at, found = which[maps], at[maps], found[maps]
        matched = found >= 0
        self.counters["mapping_record_matched"] += int(matched.sum())
        rows["file"][at[matched]] = m.file[found[matched]]
        rows["hint"][at[matched]] = m.hint[found[matched]]
        guess = ~matched & ((rows["advice"][at] & _MAP_ANONYMOUS) == 0) & (descriptor[which] >= 0)
        if guess.any():
            at = at[guess]
            key = (rows["space"][at].astype(np.int64) << 32) | descriptor[which][guess]
            distinct, first, number = np.unique(key, return_index=True, return_inverse=True)
            known = self._descriptors
            for one in distinct[np.argsort(first)].tolist():  # whatever the chunks
                if one not in known:
                    known[one] = m.files
                    m.files += 1
            rows["file"][at] = np.array([known[one] for one in distinct.tolist()], np.int32)[number]
            self.counters["file_guessed"] += len(at)

    def _copies(self, rows: Rows, order: I64) -> tuple[Rows, I64]:
        """Leave threads out and put the rows of clones right behind the recorded ones."""
        if self.threads.as_recorded:
            return rows, order
        rows = rows[order]
        operation = (rows["row"] >= 0) & (rows["thread"] >= 0)
        times = np.ones(len(rows), np.int64)
        times[operation] = self.threads.copies[rows["thread"][operation]]
        take = np.repeat(np.arange(len(times)), times)
        nth = np.arange(len(take)) - np.repeat(np.cumsum(times) - times, times)
        rows = rows[take]
        rows["clone"] = nth
        clones = nth > 0
        rows["thread"][clones] = (
            self.threads.first_clone[rows["thread"][clones]] + rows["clone"][clones] - 1
        )
        return rows, np.arange(len(rows))


def _merged(late: I64, begin: I64, first_row: int, rows: Rows, few: I64, few_key: I64) -> I64:
    """Order of the ``few`` and of all rows but ``late``, which ascend by ``begin``.

    At one moment: beginnings of threads and learnt mappings, operations by row, ends of threads.
    """
    kind = rows["kind"][few]
    row = rows["row"][few]
    rank = np.where(row >= 0, 1, np.where(kind == THREAD_END, 2, 0))
    by_time = np.lexsort((row, rank, few_key))
    few, few_key, row, rank = few[by_time], few_key[by_time], row[by_time], rank[by_time]
    # where each goes among all rows of the chunk, then among those that are not late
    low = np.searchsorted(begin, few_key, side="left")
    high = np.searchsorted(begin, few_key, side="right")
    place = np.where(rank == 0, low, np.where(rank == 1, (row - first_row).clip(low, high), high))
    order = np.empty(len(begin) - len(late) + len(few), np.int64)
    _merge(late, place, few, len(begin), order)
    return order


@native
def _merge(late: I64, place: I64, few: I64, n: int, order: I64) -> None:
    """Rows 0..n without ``late``, with ``few[k]`` before row ``place[k]``; all ascend."""
    at = k = skipped = 0
    for i in range(n + 1):
        while k < len(few) and place[k] == i:
            order[at] = few[k]
            at += 1
            k += 1
        if skipped < len(late) and late[skipped] == i:
            skipped += 1
        elif i < n:
            order[at] = i
            at += 1
