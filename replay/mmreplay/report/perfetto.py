"""The trace as Perfetto's own format: TrackEvent packets with interned names, in nanoseconds.

A file is a sequence of ``TracePacket`` messages (protos/perfetto/trace/trace_packet.proto and
track_event/*.proto in the perfetto repository; docs/reference/synthetic-track-event.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmreplay.jit import helper, njit
from mmreplay.report import timeline
from mmreplay.trace.store import Trace

# Field numbers.
_PACKET = 1  # Trace
_TIMESTAMP, _SEQUENCE_ID, _TRACK_EVENT, _INTERNED, _FLAGS = 8, 10, 11, 12, 13  # TracePacket
_FIRST, _DESCRIPTOR = 87, 60
_UUID, _NAME, _PROCESS, _THREAD, _PARENT = 1, 2, 3, 4, 5  # TrackDescriptor
_PROCESS_PID, _PROCESS_NAME, _THREAD_PID, _THREAD_TID, _THREAD_NAME = 1, 6, 1, 2, 5
_NOTE, _TYPE, _NAME_IID, _TRACK_UUID = 4, 9, 10, 11  # TrackEvent
_EVENT_NAMES, _NOTE_NAMES = 2, 3  # InternedData
_NOTE_IID, _NOTE_INT, _NOTE_POINTER = 1, 4, 7  # DebugAnnotation
_BEGIN, _END, _INSTANT = 1, 2, 3  # TrackEvent.Type
_CLEARED, _NEEDED = 1, 2  # SequenceFlags
_SEQUENCE: Final = 1
#: Notes: pointers are shown in hex, the others as numbers.
_NOTES: Final = (*timeline.NUMBERS, *timeline.POINTERS)
_POINTERS_FROM: Final = len(timeline.NUMBERS)
#: No packet is longer: 13 varints of at most 10 bytes and their keys for each note.
_MOST_BYTES: Final = 64 + 24 * len(_NOTES)


def varint(value: int) -> bytes:
    """A protobuf varint; negative numbers as 64 bits."""
    value &= (1 << 64) - 1
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def number(field: int, value: int) -> bytes:
    """A varint field."""
    return varint(field << 3) + varint(value)


def message(field: int, body: bytes) -> bytes:
    """A length-delimited field: text, or a message."""
    return varint(field << 3 | 2) + varint(len(body)) + body


def text(field: int, value: str) -> bytes:
    """A text field."""
    return message(field, value.encode())


def chunks(trace: Trace, begin_ns: int, end_ns: int) -> Iterator[bytes]:
    """The file in pieces."""
    yield _tracks(trace)
    names = _Names()
    yield names.packet()
    for frame in timeline.slices(trace, begin_ns, end_ns):
        title = pl.concat_str(
            "name", pl.concat_str(pl.lit(" ("), "class", pl.lit(")")), ignore_nulls=True
        )
        yield from names.events(frame.with_columns(name=title), timeline.OPERATIONS)
    for track, frame in timeline.spans(trace, begin_ns, end_ns):
        yield from names.events(frame, track)
    for at_ns, lost in timeline.losses(trace, begin_ns, end_ns).iter_rows():
        event = number(_TYPE, _INSTANT) + text(23, f"{lost} events lost") + number(_TRACK_UUID, 0)
        yield message(_PACKET, number(_TIMESTAMP, at_ns) + _of_sequence() + message(11, event))


def _uuid(pid: int, tid: int, track: int) -> int:
    """Of a thread's track; a process has that of thread 0."""
    return (pid << 32 | tid << 2 | track) + 1


def _of_sequence(flags: int = _NEEDED) -> bytes:
    return number(_SEQUENCE_ID, _SEQUENCE) + number(_FLAGS, flags)


def _tracks(trace: Trace) -> bytes:
    found = timeline.tasks(trace)
    leaders = {task.pid: task.name for task in found if task.tid == task.pid}
    out = bytearray()
    seen: set[int] = set()
    for task in found:
        if task.pid not in seen:
            seen.add(task.pid)
            body = number(_PROCESS_PID, task.pid)
            body += text(_PROCESS_NAME, leaders.get(task.pid, task.name))
            track = number(_UUID, _uuid(task.pid, 0, 0)) + message(_PROCESS, body)
            out += message(_PACKET, message(_DESCRIPTOR, track))
        body = number(_THREAD_PID, task.pid) + number(_THREAD_TID, task.tid)
        body += text(_THREAD_NAME, task.name)
        own = _uuid(task.pid, task.tid, 0)
        track = number(_UUID, own) + number(_PARENT, _uuid(task.pid, 0, 0))
        out += message(_PACKET, message(_DESCRIPTOR, track + message(_THREAD, body)))
        for beside in (timeline.OFF, timeline.WAITS):
            track = number(_UUID, _uuid(task.pid, task.tid, beside)) + number(_PARENT, own)
            track += text(_NAME, timeline.TRACKS[beside])
            out += message(_PACKET, message(_DESCRIPTOR, track))
    return bytes(out)


class _Names:
    """Interned names of events, told before they are used."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def packet(self) -> bytes:
        """The first packet: names of the notes."""
        notes = b"".join(
            message(_NOTE_NAMES, number(1, iid) + text(2, name))
            for iid, name in enumerate(_NOTES, 1)
        )
        body = _of_sequence(_CLEARED | _NEEDED) + number(_FIRST, 1) + message(_INTERNED, notes)
        return message(_PACKET, body)

    def events(self, frame: pl.DataFrame, track: int) -> Iterator[bytes]:
        """The packets of a frame of slices."""
        if frame.height == 0:
            return
        new = [name for name in frame["name"].unique(maintain_order=True) if name not in self.known]
        if new:
            told = bytearray()
            for name in new:
                self.known[name] = len(self.known) + 1
                told += message(_EVENT_NAMES, number(1, self.known[name]) + text(2, name))
            yield message(_PACKET, _of_sequence() + message(_INTERNED, bytes(told)))
        iids = frame["name"].replace_strict(self.known, return_dtype=pl.Int64)
        columns = [_filled(frame, name) for name in _NOTES]
        values = np.stack([column for column, _ in columns], axis=1)
        known = np.stack([there for _, there in columns], axis=1)
        duration = frame["duration_ns"]
        uuid = (frame["pid"].cast(pl.Int64) * (1 << 32)) + (frame["tid"].cast(pl.Int64) * 4) + track
        out = np.empty(2 * _MOST_BYTES * frame.height, np.uint8)
        size = _encode(
            frame["begin_ns"].to_numpy(),
            duration.fill_null(-1).to_numpy(),
            (uuid + 1).to_numpy(),
            iids.to_numpy(),
            values,
            known,
            out,
        )
        yield out[:size].tobytes()


def _filled(frame: pl.DataFrame, name: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    if name not in frame.columns:
        return np.zeros(frame.height, np.int64), np.zeros(frame.height, np.bool_)
    column = frame[name]
    there = column.is_not_null().to_numpy()
    plain = column.fill_null(0).to_numpy()
    if plain.dtype == np.uint64:
        return plain.view(np.int64), there
    return plain.astype(np.int64), there


@helper
def _put(out: Any, at: Any, value: np.uint64) -> Any:
    while value > np.uint64(0x7F):
        out[at] = value & np.uint64(0x7F) | np.uint64(0x80)
        value >>= np.uint64(7)
        at += 1
    out[at] = value
    return at + 1


@helper
def _put_field(out: Any, at: Any, field: Any, value: Any) -> Any:
    at = _put(out, at, np.uint64(field << 3))
    return _put(out, at, np.uint64(value))


@helper
def _size_of(value: np.uint64) -> Any:
    size = 1
    while value > np.uint64(0x7F):
        value >>= np.uint64(7)
        size += 1
    return size


@helper
def _put_packet(out: Any, at: Any, time: Any, event: Any, size: Any) -> Any:
    """A packet around the ``size`` bytes of a TrackEvent in ``event``."""
    body = 1 + _size_of(np.uint64(time)) + 2 + 2 + 1 + _size_of(np.uint64(size)) + size
    at = _put(out, at, np.uint64(_PACKET << 3 | 2))
    at = _put(out, at, np.uint64(body))
    at = _put_field(out, at, _TIMESTAMP, time)
    at = _put_field(out, at, _SEQUENCE_ID, _SEQUENCE)
    at = _put_field(out, at, _FLAGS, _NEEDED)
    at = _put(out, at, np.uint64(_TRACK_EVENT << 3 | 2))
    at = _put(out, at, np.uint64(size))
    for k in range(size):
        out[at + k] = event[k]
    return at + size


@njit
def _encode(
    begin: Any, duration: Any, uuid: Any, iid: Any, values: Any, known: Any, out: Any
) -> Any:
    """Packets of slices (two each) and points (``duration`` -1); returns their size in bytes."""
    event = np.empty(_MOST_BYTES, np.uint8)
    note = np.empty(32, np.uint8)
    at = 0
    for row in range(begin.shape[0]):
        kind = _INSTANT if duration[row] < 0 else _BEGIN
        n = _put_field(event, 0, _TYPE, kind)
        n = _put_field(event, n, _TRACK_UUID, uuid[row])
        n = _put_field(event, n, _NAME_IID, iid[row])
        for k in range(values.shape[1]):
            if not known[row, k]:
                continue
            m = _put_field(note, 0, _NOTE_IID, k + 1)
            m = _put_field(
                note, m, _NOTE_POINTER if k >= _POINTERS_FROM else _NOTE_INT, values[row, k]
            )
            n = _put(event, n, np.uint64(_NOTE << 3 | 2))
            n = _put(event, n, np.uint64(m))
            for j in range(m):
                event[n + j] = note[j]
            n += m
        at = _put_packet(out, at, begin[row], event, n)
        if kind == _BEGIN:
            n = _put_field(event, 0, _TYPE, _END)
            n = _put_field(event, n, _TRACK_UUID, uuid[row])
            at = _put_packet(out, at, begin[row] + duration[row], event, n)
    return at
