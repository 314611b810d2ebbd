"""Direct reader of a plain, seekable perf.data file (no perf binary is needed).

container (this file's head) -> record stream in windows (:mod:`perf_walk`) -> event
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
from mmreplay.importers.assemble import plain_name
from mmreplay.importers.binary import new_table
from mmreplay.importers.perf_layout import Plan, build
from mmreplay.importers.syscalls import number_tables
from mmreplay.importers.tracing_data import TracingData, parse_tracing_data

#: Records walked before the next sort, and events decoded at a time.
WALK_ROWS: Final = 1 << 19
BATCH_ROWS: Final = 1 << 15
#: Records that may wait for older ones; beyond it the older half goes on (counted if late).
MAX_WAITING: Final = 1 << 24

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Recording:
    """An opened perf.data file."""

    path: Path
    buffer: NDArray[np.uint8]
    mapped: mmap.mmap
    header: ph.PerfHeader
    tracing: TracingData | None
    plan: Plan
    #: Names of mapped files by name id: (as data, as code), see :func:`assemble.plain_name`.
    names: list[tuple[str, str]] = field(default_factory=list)
    walk_state: NDArray[np.int64] = field(default_factory=lambda: pw.new_state(0))
    decode_state: NDArray[np.int64] = field(default_factory=pd.new_state)
    types: NDArray[np.int64] = field(default_factory=lambda: np.zeros(pw.TYPES, np.int64))
    samples: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    lost: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    target: str = "unknown"

    def close(self) -> None:
        """Unmap the file."""
        self.buffer = np.zeros(0, np.uint8)
        self.mapped.close()


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
            raise compressed(where)
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
    buffer = np.frombuffer(mapped, np.uint8)
    recording = Recording(path, buffer, mapped, header, tracing, plan)
    recording.walk_state = pw.new_state(header.data_offset)
    recording.samples = np.zeros(len(header.attrs), np.int64)
    recording.lost = np.zeros(len(header.attrs), np.int64)
    if header.attrs[0].enable_on_exec:
        recording.target = "command"
    return recording


def compressed(where: str) -> UserError:
    """The refusal of zstd-compressed recordings."""
    return UserError(
        "the recording is compressed (perf record -z), which cannot be read yet",
        where=where,
        fix="record without -z, or unpack it: perf inject -i FILE -o plain.data",
    )


def batches(recording: Recording, progress: Progress | None = None) -> Iterator[tuple[Any, int]]:
    """The recording's events in total order: (batch, rows of it in use).

    The same batch is filled again for the next window.

    Raises
    ------
    UserError
        The record stream is damaged or truncated.
    """
    rec = recording
    where = str(rec.path)
    end = rec.header.data_offset + rec.header.data_size
    layout = rec.plan.layout
    # A record has at least 8 bytes, so small files need small arrays.
    step = int(min(WALK_ROWS, rec.header.data_size // 8 + 1))
    times = np.empty(2 * step, np.int64)
    positions = np.empty(2 * step, np.int64)
    codes = np.empty(2 * step, np.int32)
    batch = ev.new_batch(int(min(BATCH_ROWS, step)))
    names = _Names(rec)
    state = rec.walk_state
    released = 0
    while True:
        waiting = int(state[pw.W_COUNT])
        if waiting + step > len(times):
            room = 2 * (waiting + step)
            times, positions, codes = (
                np.concatenate([part[:waiting], np.empty(room - waiting, part.dtype)])
                for part in (times, positions, codes)
            )
        window = waiting + step
        result = pw.walk(
            rec.buffer,
            end,
            layout,
            state,
            times[:window],
            positions[:window],
            codes[:window],
            rec.types,
            rec.samples,
            rec.lost,
        )
        _check(result, int(state[pw.W_POSITION]), end, where)
        count = int(state[pw.W_COUNT])
        # Times are mostly ordered runs, which the stable sort merges in one pass.
        order = np.argsort(times[:count], kind="stable")
        times[:count] = times[:count][order]
        positions[:count] = positions[:count][order]
        codes[:count] = codes[:count][order]
        if result == pw.END:
            ready = count
        else:
            ready = int(np.searchsorted(times[:count], state[pw.W_LIMIT], side="right"))
            if count - ready > MAX_WAITING:
                ready = count - MAX_WAITING // 2
        for first in range(0, ready, len(batch.time)):
            last = min(ready, first + len(batch.time))
            names.make_room(len(batch.time))
            rows = pd.decode(
                rec.buffer,
                layout,
                times,
                positions,
                codes,
                first,
                last,
                rec.decode_state,
                *names.arguments,
                batch,
            )
            names.read()
            yield batch, rows
        left = count - ready
        for part in (times, positions, codes):
            part[:left] = part[ready:count].copy()
        state[pw.W_COUNT] = left
        oldest = int(positions[:left].min()) if left else int(state[pw.W_POSITION])
        released = _release(rec.mapped, released, oldest)
        if progress is not None:
            progress(int(state[pw.W_POSITION]) - rec.header.data_offset, rec.header.data_size)
        if result == pw.END:
            break
    _note_target(rec)


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

    def read(self) -> None:
        names = self.recording.names
        for name_id in range(len(names), int(self.recording.decode_state[pd.D_NAMES])):
            first, last = self.places[name_id].tolist()
            text = self.recording.buffer[first:last].tobytes().decode("utf-8", "replace")
            names.append((plain_name(text, False), plain_name(text, True)))


def _check(result: int, at: int, end: int, where: str) -> None:
    if result == pw.SHORT_RECORD:
        raise ph.damaged(f"the record at byte {at} is shorter than a record can be", where)
    if result == pw.OVERRUN:
        raise ph.truncated(f"the record at byte {at} reaches over the end at {end}", where)
    if result == pw.COMPRESSED:
        raise compressed(where)


def _release(mapped: mmap.mmap, released: int, upto: int) -> int:
    """Tell the kernel that the pages before ``upto`` are done with."""
    upto -= upto % mmap.PAGESIZE
    if upto - released < 1 << 24:
        return released
    mapped.madvise(mmap.MADV_DONTNEED, released, upto - released)
    return upto


def _note_target(rec: Recording) -> None:
    """command, pids or all: from the attr and the THREAD_MAP record (pid -1: all)."""
    at = int(rec.walk_state[pw.W_THREAD_MAP])
    if rec.target == "command" or at == 0:
        return
    count, pid = struct.unpack_from("<QQ", rec.mapped, at + 8)
    rec.target = "all" if count == 1 and pid == 2**64 - 1 else "pids"
