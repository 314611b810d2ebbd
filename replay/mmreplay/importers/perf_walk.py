"""Compiled walk over a perf.data record stream: (time, position, code) of what matters.

It reads headers, ids and times only; decoding comes after sorting.
Every record is proved to lie inside the stream before it is read.

A round ends with a FINISHED_ROUND record, or after so many records where there are none.
Nothing in round n+2 is older than the newest of round n (tools/perf/builtin-record.c@6.12
record__mmap_read_evlist); what is all the same counts as late and gets that time.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers.binary import bare, load_u16, load_u32, load_u64, table_find
from mmreplay.importers.perf_layout import (
    L_MIN,
    L_TIME,
    T_SIZE,
    T_TIME,
)
from mmreplay.jit import native, prefetch
from mmreplay.trace.memory import cut

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
    W_COUNT,  # entries in the output
    W_UNTIMED,  # of them at the end, still without a time
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
) = range(17)
# Results of a call.
END, FULL, SHORT_RECORD, CUT, COMPRESSED = range(5)
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


class Entries(NamedTuple):
    """What a walk found, (rows,) each, in the order of the stream."""

    times: NDArray[np.int64]  # ns
    positions: NDArray[np.int64]  # byte of the record
    codes: NDArray[np.int32]


def new_entries(rows: int) -> tuple[Entries, Entries]:
    """Room for as many, twice: those of a walk, and those that are kept of them."""
    kinds = (np.int64, np.int64, np.int32)
    times, positions, codes, *others = cut((kind, rows) for kind in kinds + kinds)
    return Entries(times, positions, codes), Entries(*others)


def new_state(start: int) -> NDArray[np.int64]:
    """The walk's state at the first byte of the stream."""
    state = np.zeros(W_SIZE, np.int64)
    state[W_POSITION] = start
    state[W_NEWEST] = -1
    state[W_PREVIOUS] = -1
    state[W_LIMIT] = -1
    state[W_EVERY] = ROUND_WITHOUT
    return state


@native
def walk(
    buffer: Any,
    end: int,
    layout: Any,
    state: Any,
    times: Any,
    positions: Any,
    codes: Any,
    types: Any,
    samples: Any,
    lost: Any,
) -> int:
    """Walk until ``end`` or until the output is full.

    Parameters
    ----------
    buffer:
        uint8 array of the stream; ``end <= len(buffer)``.
    layout:
        :class:`~mmreplay.importers.perf_layout.Layout`.
    state:
        The W_* entries, kept between calls.
    times, positions, codes:
        Output (int64, int64, int32): ns, byte of the record, code; filled from
        ``state[W_COUNT]`` on.  The last ``state[W_UNTIMED]`` wait for a time (-1).
    types:
        int64 (TYPES,): records by type.
    samples, lost:
        int64 (events,): samples and LOST_SAMPLES per event.

    Returns
    -------
    END, FULL, CUT (the record at ``state[W_POSITION]`` reaches over the end), or what is
    wrong with that record.
    """
    fixed = bare(layout.fixed)
    trailer = bare(layout.trailer)
    trailer_id = layout.trailer_id
    keys = layout.id_keys
    values = layout.id_values
    id_offset = layout.id_offset
    room = times.shape[0]
    times, positions, codes = bare(times), bare(positions), bare(codes)
    types, samples, state = bare(types), bare(samples), bare(state)
    at = state[W_POSITION]
    n = state[W_COUNT]
    newest = state[W_NEWEST]
    limit = state[W_LIMIT]
    untimed = state[W_UNTIMED]
    since = state[W_SINCE]
    last_id = np.uint64(0)
    last_event = -1
    result = END
    skip = min(state[W_SKIP], end - at)
    at += skip
    state[W_SKIP] -= skip
    while at < end:
        if n >= room:
            result = FULL
            break
        if since >= state[W_EVERY]:
            limit = state[W_PREVIOUS]
            state[W_PREVIOUS] = newest
            since = 0
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
        if kind == R_SAMPLE:
            event = 0
            if id_offset >= 0:
                if size < id_offset + 8:
                    state[W_MALFORMED] += 1
                    at += size
                    continue
                ident = load_u64(buffer, at + id_offset)
                if last_event >= 0 and ident == last_id:
                    event = last_event
                else:
                    event = table_find(keys, values, ident)
                    if event < 0:
                        state[W_UNKNOWN_ID] += 1
                        at += size
                        continue
                    last_id = ident
                    last_event = event
            if size < fixed[8 * event + L_MIN]:
                state[W_MALFORMED] += 1
                at += size
                continue
            time = load_u64(buffer, at + fixed[8 * event + L_TIME])
            if time > np.uint64(MAX_TIME):
                state[W_MALFORMED] += 1
                at += size
                continue
            samples[event] += 1
            positions[n] = at
            codes[n] = event
            n += 1
        elif kind < 64:
            body = _KNOWN_BODY[kind]
            if body < 0:  # unknown or not needed: counted above, skipped by size
                at += size
                continue
            # The trailer has the layout of the event whose id it ends with.
            own = 0
            event = -1
            if trailer_id > 0 and size >= trailer_id:
                event = table_find(keys, values, load_u64(buffer, at + size - trailer_id))
                own = 5 * max(event, 0)
            trailer_time = trailer[own + T_TIME]
            if size < body + trailer[own + T_SIZE]:
                state[W_MALFORMED] += 1
                at += size
                continue
            if kind == R_LOST_SAMPLES:
                amount = load_u64(buffer, at + 8)
                misc = load_u16(buffer, at + 4)
                # Bit 15: dropped by a filter of the user's, not lost (6.12).
                if not misc & 0x8000 and amount < np.uint64(MAX_TIME):
                    state[W_LOST_SAMPLES] += np.int64(amount)
                    if event >= 0:
                        lost[event] += np.int64(amount)
                at += size
                continue
            if kind == R_LOST:
                amount = load_u64(buffer, at + 16)
                if amount < np.uint64(MAX_TIME):
                    state[W_LOST] += np.int64(amount)
            stamp = np.int64(-1)
            if trailer_time > 0:
                time = load_u64(buffer, at + size - trailer_time)
                if time > np.uint64(MAX_TIME):
                    state[W_MALFORMED] += 1
                    at += size
                    continue
                stamp = np.int64(time)
            elif kind in (R_FORK, R_EXIT):
                time = load_u64(buffer, at + 24)
                if time <= np.uint64(MAX_TIME):
                    stamp = np.int64(time)
            positions[n] = at
            codes[n] = kind | RECORD
            n += 1
            if stamp < 0:  # gets the time of the next timed record
                times[n - 1] = -1
                untimed += 1
                at += size
                continue
            time = np.uint64(stamp)
        else:
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
            continue
        stamp = np.int64(time)
        newest = max(newest, stamp)
        if stamp == 0:
            codes[n - 1] |= SYNTHETIC
            stamp = max(limit, np.int64(0))
        elif stamp < limit:
            codes[n - 1] |= LATE
            state[W_LATE] += 1
            stamp = limit
        times[n - 1] = stamp
        for back in range(n - 1 - untimed, n - 1):
            times[back] = stamp
        untimed = 0
        since += 1
        at += size
    state[W_NEWEST] = newest
    state[W_LIMIT] = limit
    state[W_UNTIMED] = untimed
    state[W_SINCE] = since
    state[W_POSITION] = at
    state[W_COUNT] = n
    return result


@native
def keep(entries: Any, order: Any, first: Any, count: Any, kept: Any) -> None:
    """Put into ``kept`` the entries from place ``first`` of ``order`` on, and those behind them.

    ``order`` has the timed ones of the ``count`` entries; the untimed ones follow as they are.
    """
    timed = order.shape[0]
    times, positions, codes, order = (
        bare(entries.times),
        bare(entries.positions),
        bare(entries.codes),
        bare(order),
    )
    out_times, out_positions, out_codes = bare(kept.times), bare(kept.positions), bare(kept.codes)
    for place in range(first, count):
        entry = order[place] if place < timed else place
        out_times[place - first] = times[entry]
        out_positions[place - first] = positions[entry]
        out_codes[place - first] = codes[entry]
