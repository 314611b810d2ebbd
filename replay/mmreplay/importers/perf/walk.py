"""Compiled walk over a perf.data record stream: the runs of what matters, ordered by time.

It reads headers, ids and times only, and keeps nothing of a record: perf writes one CPU's ring
after the other, so a stream is long runs whose times do not fall, and merging those
(:mod:`perf.runs`) is all the sorting there is.
Every record is proved to lie inside the stream before it is read.

A round ends with a FINISHED_ROUND record, or after so many records where there are none.
Nothing in round n+2 is older than the newest of round n (tools/perf/builtin-record.c@6.12
record__mmap_read_evlist); what is all the same counts as late and gets that time.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers.binary import bare, load_u16, load_u32, load_u64, table_find
from mmreplay.importers.perf.layout import (
    L_MIN,
    L_TIME,
    T_SIZE,
    T_TIME,
)
from mmreplay.jit import borrowing_helper, inlined_helper, native, prefetch

# perf_event_type: include/uapi/linux/perf_event.h@6.18.
R_MMAP, R_LOST, R_COMM, R_EXIT, R_THROTTLE, R_UNTHROTTLE, R_FORK = 1, 2, 3, 4, 5, 6, 7
R_READ, R_SAMPLE, R_MMAP2, R_LOST_SAMPLES, R_SWITCH, R_SWITCH_CPU_WIDE = 8, 9, 10, 13, 14, 15
# perf_user_event_type: tools/lib/perf/include/perf/event.h@6.18.
R_TRACING_DATA, R_FINISHED_ROUND, R_AUXTRACE, R_THREAD_MAP = 66, 68, 71, 73
R_COMPRESSED, R_COMPRESSED2 = 81, 83

#: Times above this (2^62 ns, 146 years) are no times.
MAX_TIME: Final = 1 << 62
#: Record types counted one by one; the rest is counted together in the last place.
TYPES: Final = 256

# Entries of the walk's state.
(
    W_POSITION,
    W_RUNS,  # rows of the table of runs
    W_UNTIMED,  # of them at the end, still without a time
    W_WANTED,  # entries to be found before a call ends
    W_NEWEST,  # newest time seen
    W_PREVIOUS,  # newest time seen when the last round ended
    W_LIMIT,  # nothing older than this can come any more
    W_SINCE,  # records since the last round ended
    W_EVERY,  # a round ends after so many records at the latest
    W_ROUNDS,
    W_LATE,
    W_SKIP,  # bytes of a payload outside of any record that are still to come
    W_LOST,  # sum of LOST
    W_LOST_SAMPLES,  # sum of LOST_SAMPLES that are losses
    W_MALFORMED,
    W_UNKNOWN_ID,
    W_TARGET,  # what the first THREAD_MAP record says was recorded: a TARGET_*
    W_SIZE,
) = range(18)
# Results of a call.
END, ENOUGH, FULL, SHORT_RECORD, CUT, COMPRESSED = range(6)
TARGET_NONE, TARGET_ALL, TARGET_PIDS = range(3)
#: A code: the event's index or the record's type, and these marks.
CODE_MASK: Final = 0xFFFF
RECORD: Final = 1 << 16  # no sample
LATE: Final = 1 << 17
SYNTHETIC: Final = 1 << 18  # made up by the recorder: time 0

_ALL: Final = np.uint64(2**64 - 1)  # pid -1 of a THREAD_MAP
#: Records after which a round is taken to have ended: in streams that have no
#: FINISHED_ROUND (``--threads``, simpleperf), and in those that have.
ROUND_WITHOUT: Final = 1 << 20
ROUND_WITH: Final = 1 << 24

#: How far ahead the walk asks for what it will read: over the ends of pages, where the
#: processor by itself stops.
_AHEAD_BYTES: Final = 1024
_LINE_BYTES: Final = 64
_KNOWN_BODY = np.full(64, -1, np.int64)  # smallest record (header included) that is read
for _type, _size in (
    (R_MMAP, 41),
    (R_LOST, 24),
    (R_COMM, 17),
    (R_EXIT, 32),
    (R_THROTTLE, 32),
    (R_UNTHROTTLE, 32),
    (R_FORK, 32),
    (R_MMAP2, 73),
    (R_LOST_SAMPLES, 16),
    (R_SWITCH, 8),
    (R_SWITCH_CPU_WIDE, 16),
):
    _KNOWN_BODY[_type] = _size


# Columns of the table of runs.  Of its first entry that is still to come:
(
    R_TIME,  # ns; -1: it waits for one
    R_AT,  # byte of the record; -1: none is to come
    R_CODE,
    R_LAST,  # byte of the run's last record
    R_FLOOR,  # no entry is older: what has an older time gets this one, and is marked
    R_COLUMNS,
) = range(6)
# Instead of a code: a record of which no entry is made.
BROKEN, STRANGE, UNWANTED = -1, -2, -3


def new_state(start: int) -> NDArray[np.int64]:
    """The walk's state at the first byte of the stream."""
    state = np.zeros(W_SIZE, np.int64)
    state[W_POSITION] = start
    state[W_NEWEST] = -1
    state[W_PREVIOUS] = -1
    state[W_LIMIT] = -1
    state[W_EVERY] = ROUND_WITHOUT
    return state


@inlined_helper
def entry_of(
    buffer: Any, at: Any, kind: Any, size: Any, fixed: Any, layout: Any, known: Any, event: Any
) -> Any:
    """What a record of up to type 63 is: (code, time or -1, event's id, event).

    ``known``, ``event``: the id and event of a sample before, -1 none.  The code is BROKEN,
    STRANGE or UNWANTED where no entry is made of it.
    """
    keys = layout.id_keys
    values = layout.id_values
    if kind == R_SAMPLE:
        if layout.id_offset >= 0:
            if size < layout.id_offset + 8:
                return np.int64(BROKEN), np.int64(-1), known, event
            ident = load_u64(buffer, at + layout.id_offset)
            if event < 0 or ident != known:
                found = np.int64(table_find(keys, values, ident))
                if found < 0:
                    return np.int64(STRANGE), np.int64(-1), known, event
                known = ident
                event = found
        else:
            event = np.int64(0)
        if size < fixed[8 * event + L_MIN]:
            return np.int64(BROKEN), np.int64(-1), known, event
        time = load_u64(buffer, at + fixed[8 * event + L_TIME])
        if time > np.uint64(MAX_TIME):
            return np.int64(BROKEN), np.int64(-1), known, event
        return event, np.int64(time), known, event
    body = _KNOWN_BODY[kind]
    if body < 0:  # unknown or not needed: skipped by size
        return np.int64(UNWANTED), np.int64(-1), known, event
    # The trailer has the layout of the event whose id it ends with.
    trailer = bare(layout.trailer)
    own = np.int64(0)
    if layout.trailer_id > 0 and size >= layout.trailer_id:
        ident = load_u64(buffer, at + size - layout.trailer_id)
        own = 5 * max(np.int64(0), np.int64(table_find(keys, values, ident)))
    if size < body + trailer[own + T_SIZE]:
        return np.int64(BROKEN), np.int64(-1), known, event
    if kind == R_LOST_SAMPLES:
        return np.int64(UNWANTED), np.int64(-1), known, event
    time = np.uint64(MAX_TIME) + np.uint64(1)
    if trailer[own + T_TIME] > 0:
        time = load_u64(buffer, at + size - trailer[own + T_TIME])
        if time > np.uint64(MAX_TIME):
            return np.int64(BROKEN), np.int64(-1), known, event
    elif kind == R_FORK or kind == R_EXIT:
        time = load_u64(buffer, at + 24)
    stamp = np.int64(time) if time <= np.uint64(MAX_TIME) else np.int64(-1)
    return kind | RECORD, stamp, known, event


@inlined_helper
def timed(code: Any, time: Any, floor: Any) -> Any:
    """(code with its mark, time) of an entry that may not be older than ``floor``."""
    if time == 0:
        return code | SYNTHETIC, max(floor, np.int64(0))
    if time < floor:
        return code | LATE, floor
    return code, time


@native
def walk(
    buffer: Any,
    end: int,
    layout: Any,
    state: Any,
    runs: Any,
    types: Any,
    samples: Any,
    lost: Any,
) -> int:
    """Walk until ``end``, for ``state[W_WANTED]`` entries, or until the table of runs is full.

    Parameters
    ----------
    buffer:
        uint8 array of the stream; ``end <= len(buffer)``.
    layout:
        :class:`~mmreplay.importers.perf.layout.Layout`.
    state:
        The W_* entries, kept between calls.
    runs:
        int64 (rows, R_COLUMNS): filled from row ``state[W_RUNS]`` on, in the order of the
        stream.  The last ``state[W_UNTIMED]``, of one record each, wait for a time (-1).
    types:
        int64 (TYPES,): records by type.
    samples, lost:
        int64 (events,): samples and LOST_SAMPLES per event.

    Returns
    -------
    END, ENOUGH, FULL, CUT (the record at ``state[W_POSITION]`` reaches over the end), or what
    is wrong with that record.
    """
    fixed = bare(layout.fixed)
    room = runs.shape[0]
    types, samples, state, runs = bare(types), bare(samples), bare(state), bare(runs)
    at = state[W_POSITION]
    n = state[W_RUNS]
    newest = state[W_NEWEST]
    limit = state[W_LIMIT]
    untimed = state[W_UNTIMED]
    since = state[W_SINCE]
    known = np.uint64(0)
    event = np.int64(-1)
    before = np.int64(-1)  # time of the run's entry before; -1: the next one begins another
    last = np.int64(0)
    wanted = state[W_WANTED]
    result = END
    skip = min(state[W_SKIP], end - at)
    at += skip
    state[W_SKIP] -= skip
    while at < end:
        if n >= room:
            result = FULL
            break
        if wanted <= 0:
            result = ENOUGH
            break
        if since >= state[W_EVERY]:
            limit = state[W_PREVIOUS]
            state[W_PREVIOUS] = newest
            since = 0
            if before >= 0:
                runs[(n - 1) * R_COLUMNS + R_LAST] = last
                before = np.int64(-1)
        if end - at < 8:
            result = CUT
            break
        kind = np.int64(load_u32(buffer, at))
        size = np.int64(load_u16(buffer, at + 6))
        if size < 8:
            result = SHORT_RECORD
            break
        if size > end - at:
            result = CUT
            break
        prefetch(buffer, at + _AHEAD_BYTES)
        prefetch(buffer, at + _AHEAD_BYTES + _LINE_BYTES)
        types[min(kind, TYPES - 1)] += 1
        if kind < 64:
            code, time, known, event = entry_of(buffer, at, kind, size, fixed, layout, known, event)
            if code < 0:
                if code == BROKEN:
                    state[W_MALFORMED] += 1
                elif code == STRANGE:
                    state[W_UNKNOWN_ID] += 1
                elif kind == R_LOST_SAMPLES:
                    _count_lost(buffer, at, size, layout, state, lost)
                at += size
                continue
            if kind == R_SAMPLE:
                samples[event] += 1
            elif kind == R_LOST:
                amount = load_u64(buffer, at + 16)
                if amount < np.uint64(MAX_TIME):
                    state[W_LOST] += np.int64(amount)
            wanted -= 1
            stamp = time
            if time >= 0:
                newest = max(newest, time)
                code, stamp = timed(code, time, limit)
                if time != 0 and stamp != time:
                    state[W_LATE] += 1
                for back in range(n - untimed, n):
                    runs[back * R_COLUMNS + R_TIME] = stamp
                untimed = 0
                since += 1
            if stamp < 0 or before < 0 or stamp < before:
                if before >= 0:
                    runs[(n - 1) * R_COLUMNS + R_LAST] = last
                row = n * R_COLUMNS
                runs[row + R_TIME] = stamp
                runs[row + R_AT] = at
                runs[row + R_CODE] = code
                runs[row + R_LAST] = at
                runs[row + R_FLOOR] = limit
                n += 1
                if stamp < 0:  # gets the time of the next timed record
                    untimed += 1
            before = stamp
            last = at
            at += size
            continue
        if before >= 0:  # no run reaches over a record that may have a payload behind it
            runs[(n - 1) * R_COLUMNS + R_LAST] = last
            before = np.int64(-1)
        if kind == R_FINISHED_ROUND:
            state[W_ROUNDS] += 1
            limit = state[W_PREVIOUS]
            state[W_PREVIOUS] = newest
            since = 0
            state[W_EVERY] = ROUND_WITH
        elif kind == R_THREAD_MAP and state[W_TARGET] == TARGET_NONE and size >= 24:
            state[W_TARGET] = TARGET_PIDS
            if load_u64(buffer, at + 8) == 1 and load_u64(buffer, at + 16) == _ALL:
                state[W_TARGET] = TARGET_ALL
        elif kind in (R_COMPRESSED, R_COMPRESSED2):
            result = COMPRESSED
            break
        elif kind in (R_AUXTRACE, R_TRACING_DATA):
            # A payload follows that header.size does not count.
            need = 16 if kind == R_AUXTRACE else 12
            if size < need:
                state[W_MALFORMED] += 1
                at += size
                continue
            extra = np.uint64(0)
            if kind == R_AUXTRACE:
                extra = load_u64(buffer, at + 8)
            else:
                extra = np.uint64((np.int64(load_u32(buffer, at + 8)) + 7) & ~7)
            if extra > np.uint64(MAX_TIME):
                result = CUT
                break
            skip = min(np.int64(extra), end - at - size)
            at += skip
            state[W_SKIP] = np.int64(extra) - skip
        at += size
    if before >= 0:
        runs[(n - 1) * R_COLUMNS + R_LAST] = last
    state[W_NEWEST] = newest
    state[W_LIMIT] = limit
    state[W_UNTIMED] = untimed
    state[W_SINCE] = since
    state[W_POSITION] = at
    state[W_RUNS] = n
    state[W_WANTED] = wanted
    return result


@borrowing_helper
def _count_lost(buffer: Any, at: Any, size: Any, layout: Any, state: Any, lost: Any) -> None:
    amount = load_u64(buffer, at + 8)
    misc = load_u16(buffer, at + 4)
    # Bit 15: dropped by a filter of the user's, not lost (6.12).
    if misc & 0x8000 or amount >= np.uint64(MAX_TIME):
        return
    state[W_LOST_SAMPLES] += np.int64(amount)
    if layout.trailer_id > 0 and size >= layout.trailer_id:
        ident = load_u64(buffer, at + size - layout.trailer_id)
        event = np.int64(table_find(layout.id_keys, layout.id_values, ident))
        if event >= 0:
            lost[event] += np.int64(amount)
