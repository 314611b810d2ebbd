"""Direct reader of perf.data files (no perf binary is needed).

container (this file's head) -> record streams in windows (:mod:`streams`) -> event
batches (:mod:`perf_decode`) -> operations (:mod:`pairing`) -> trace (:mod:`assemble`).
Memory is bounded by two rounds of the recording plus a fixed number of windows.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.errors import UserError
from mmreplay.importers import events as ev
from mmreplay.importers import perf_decode as pd
from mmreplay.importers import perf_header as ph
from mmreplay.importers import perf_walk as pw
from mmreplay.importers.binary import new_table
from mmreplay.importers.names import plain_name
from mmreplay.importers.perf_layout import Plan, build
from mmreplay.importers.streams import Ready, Stream, merge
from mmreplay.importers.syscalls import number_tables
from mmreplay.importers.tracing_data import TracingData, parse_tracing_data

#: Events decoded at a time.
BATCH_ROWS: Final = 1 << 15

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Recording:
    """An opened perf.data file."""

    path: Path
    size_bytes: int
    header: ph.PerfHeader
    tracing: TracingData | None
    plan: Plan
    streams: list[Stream]
    #: Names of mapped files by name id: (as data, as code), see :func:`names.plain_name`.
    names: list[tuple[str, str]] = field(default_factory=list)
    decode_state: NDArray[np.int64] = field(default_factory=pd.new_state)
    target: str = "unknown"

    def close(self) -> None:
        """Unmap the file."""
        for stream in self.streams:
            stream.close()

    def total(self, entry: int) -> int:
        """Sum of one W_* entry over all streams."""
        return sum(int(stream.state[entry]) for stream in self.streams)

    @property
    def types(self) -> NDArray[np.int64]:
        """(TYPES,) records by type."""
        return sum((stream.types for stream in self.streams), np.zeros(pw.TYPES, np.int64))

    @property
    def samples(self) -> NDArray[np.int64]:
        """(events,) samples of each event."""
        return sum((stream.samples for stream in self.streams), self._no_events())

    @property
    def lost(self) -> NDArray[np.int64]:
        """(events,) losses of each event, where known."""
        return sum((stream.lost for stream in self.streams), self._no_events())

    def _no_events(self) -> NDArray[np.int64]:
        return np.zeros(len(self.plan.events), np.int64)


def open_recording(path: Path) -> Recording:
    """Open and check a perf.data file's head.

    Raises
    ------
    UserError
        It cannot be read, or is not a complete plain perf.data file: one line, with the fix.
    """
    where = str(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(16)
            if size < 16:
                ph.refuse_other(head, size, where)
                raise ph.truncated(f"only {size} bytes", where)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})", where=where, fix="check the name and the rights"
        ) from None
    try:
        header = ph.parse_header(mapped, where)
        if ph.F_COMPRESSED in header.features:
            raise ph.compressed(where)
        if ph.F_DIR_FORMAT in header.features:
            raise UserError(
                "one file of a recording directory (perf record --threads)",
                where=where,
                fix="record without --threads",
            )
        tracing = None
        if ph.F_TRACING_DATA in header.features:
            try:
                tracing = parse_tracing_data(header.features[ph.F_TRACING_DATA])
            except UserError as error:
                raise UserError(error.problem, where=where, fix=error.fix) from None
        elif any(attr.type == 2 for attr in header.attrs):
            raise UserError(
                "the file lacks the format of its tracepoints (no TRACING_DATA)",
                where=where,
                fix="record again and let perf end normally (Ctrl-C)",
            )
        plan = build(header, tracing, where)
    except BaseException:
        mapped.close()
        raise
    end = header.data_offset + header.data_size
    stream = Stream(where, mapped, header.data_offset, end, plan.layout, len(header.attrs))
    recording = Recording(path, size, header, tracing, plan, [stream])
    if header.attrs[0].enable_on_exec:
        recording.target = "command"
    return recording


def batches(recording: Recording, progress: Progress | None = None) -> Iterator[tuple[Any, int]]:
    """The recording's events in total order: (batch, rows of it in use).

    The same batch is filled again for the next window.

    Raises
    ------
    UserError
        The record stream is damaged or truncated.
    """
    rec = recording
    batch = ev.new_batch(BATCH_ROWS)
    names = _Names(rec)
    total = sum(stream.end - stream.start for stream in rec.streams)
    for ready in merge(rec.streams):
        if rec.decode_state[pd.D_T0] == pw.MAX_TIME:
            _find_start(rec, ready)
        for first in range(0, ready.rows, len(batch.time)):
            last = min(ready.rows, first + len(batch.time))
            names.make_room(last - first)
            for index, stream in enumerate(rec.streams):
                pd.decode(
                    stream.buffer,
                    stream.layout,
                    ready.times,
                    ready.positions,
                    ready.codes,
                    ready.order,
                    first,
                    last,
                    index,
                    rec.decode_state,
                    *names.arguments,
                    batch,
                )
                names.read(stream)
            yield batch, last - first
        if progress is not None:
            progress(sum(stream.done_bytes for stream in rec.streams), total)
    _note_target(rec)


def _find_start(rec: Recording, ready: Ready) -> None:
    """Time 0 of the trace: the first event that has a time."""
    order = ready.order[: ready.rows]
    real = ((ready.codes[order] & pw.SYNTHETIC) == 0) & (ready.times[order] > 0)
    if real.any():
        rec.decode_state[pd.D_T0] = ready.times[order[int(np.argmax(real))]]


class _Names:
    """The decoder's table of mapped files' names, with room for the next window."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.numbers, self.slots = number_tables()
        self.keys, self.values = new_table(1024)
        self.places = np.zeros((1024, 2), np.int64)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (self.numbers, self.slots, self.keys, self.values, self.places)

    def make_room(self, rows: int) -> None:
        known = int(self.recording.decode_state[pd.D_NAMES])
        if known + rows <= len(self.places):
            return
        capacity = 2 * (known + rows)
        places = np.zeros((capacity, 2), np.int64)
        places[:known] = self.places[:known]
        keys, values = new_table(capacity)
        pd.rehash(self.keys, self.values, keys, values)
        self.keys, self.values, self.places = keys, values, places

    def read(self, stream: Stream) -> None:
        names = self.recording.names
        for name_id in range(len(names), int(self.recording.decode_state[pd.D_NAMES])):
            first, last = self.places[name_id].tolist()
            text = stream.buffer[first:last].tobytes().decode("utf-8", "replace")
            names.append((plain_name(text, False), plain_name(text, True)))


def _note_target(rec: Recording) -> None:
    """command, pids or all: from the attr and the THREAD_MAP record (pid -1: all)."""
    if rec.target == "command":
        return
    for stream in rec.streams:
        at = int(stream.state[pw.W_THREAD_MAP])
        if at:
            count, pid = struct.unpack("<QQ", stream.buffer[at + 8 : at + 24].tobytes())
            rec.target = "all" if count == 1 and pid == 2**64 - 1 else "pids"
            return
