"""Samples of the other events of a group (``-e '{a,b}:S'``), which only the leader's samples tell.

The kernel writes a sample of the leader with the counts of all (PERF_SAMPLE_READ,
PERF_FORMAT_GROUP).  perf makes of it a sample of each whose count has changed since
(deliver_sample_group in tools/perf/util/session.c@6.1; from 6.13 on by thread where events are
inherited).  These have the leader's time, thread and address: how many they are is true of an
event, when and where it happened is not.  So they are counted, and nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers.binary import (
    load_u16,
    load_u32,
    load_u64,
    mix,
    new_table,
    table_find,
    table_put,
)
from mmreplay.importers.perf import header as ph
from mmreplay.importers.perf.decode import STREAM_SHIFT, rehash
from mmreplay.importers.perf.layout import L_TID, read_offset, sample_offsets
from mmreplay.importers.perf.streams import Ready, Stream
from mmreplay.importers.perf.walk import CODE_MASK, RECORD
from mmreplay.jit import native

#: Columns of the table of events: where READ begins (0: it has none that counts), how it is
#: laid out, and where the thread is, if each thread has counts of its own.
(_AT, _FORMAT, _THREAD, _SIZE) = range(4)


def table_of(attrs: list[ph.Attr]) -> NDArray[np.int64] | None:
    """What the counting needs to know of each event; None where no group was read."""
    table = np.zeros((len(attrs), _SIZE), np.int64)
    for row, attr in zip(table, attrs, strict=True):
        if attr.reads_group and attr.read_format & ph.FORMAT_ID:
            thread = sample_offsets(attr)[L_TID] + 4 if attr.inherit else 0
            row[:] = read_offset(attr), attr.read_format & 0xFF, thread
    return table if table.any() else None


class GroupReads:
    """Adds what the leaders' samples of one file tell of the others to the samples of its streams.

    Parameters
    ----------
    table:
        See :func:`table_of`.
    """

    def __init__(self, table: NDArray[np.int64]) -> None:
        self._table = table
        self._keys, self._values = new_table(64)
        self._last = np.zeros(64, np.uint64)
        self._known = 0

    def count(self, ready: Ready, first: int, last: int, index: int, stream: Stream) -> None:
        """Count what ``stream``, the one of that index, has at these places of ``ready``."""
        most = self._known + (last - first) * len(self._table)
        if len(self._last) < most:
            keys, values = new_table(2 * most)
            rehash(self._keys, self._values, keys, values)
            self._keys, self._values = keys, values
            self._last = np.concatenate(
                (self._last, np.zeros(2 * most - len(self._last), np.uint64))
            )
        self._known = _count(
            stream.buffer,
            ready.positions[first:last],
            ready.codes[first:last],
            index,
            self._table,
            stream.layout.id_keys,
            stream.layout.id_values,
            self._keys,
            self._values,
            self._last,
            self._known,
            stream.samples,
        )


@native
def _count(
    buffer: Any,
    positions: Any,
    codes: Any,
    index: Any,
    table: Any,
    id_keys: Any,
    id_values: Any,
    keys: Any,
    values: Any,
    last: Any,
    known: Any,
    samples: Any,
) -> Any:
    for i in range(positions.shape[0]):
        event = np.int64(codes[i] & CODE_MASK)
        if positions[i] >> STREAM_SHIFT != index or codes[i] & RECORD:
            continue
        if table[event, _AT] == 0:
            continue
        at = positions[i] & ((1 << STREAM_SHIFT) - 1)
        end = at + np.int64(load_u16(buffer, at + 6))
        form = table[event, _FORMAT]
        thread = np.uint64(0)
        if table[event, _THREAD] > 0:
            thread = mix(np.uint64(load_u32(buffer, at + table[event, _THREAD])) + np.uint64(1))
        where = at + table[event, _AT]
        if where + 8 > end:
            continue
        members = load_u64(buffer, where)
        step = 8 * (2 + (form >> 4 & 1))  # value, id, and what was lost
        where += 8 + 8 * ((form & 1) + (form >> 1 & 1))
        if members > np.uint64(table.shape[0]) or where + step * np.int64(members) > end:
            continue
        for _ in range(np.int64(members)):
            value, ident = load_u64(buffer, where), load_u64(buffer, where + 8)
            where += step
            member = np.int64(table_find(id_keys, id_values, ident))
            if member < 0 or member == event:
                continue
            key = ident ^ thread
            place = np.int64(table_find(keys, values, key))
            if place < 0:
                place = known
                known += 1
                table_put(keys, values, key, place)
            if last[place] != value:
                last[place] = value
                samples[member] += 1
    return known
