"""The files of ``strace -ff -o FILE`` (``FILE.PID``, one for each thread), merged by time.

Every call stands on one line with the time of its entry, and names no thread: the file's name does.
They become one log as ``strace -f -o`` writes it, but for calls that another thread came into.
"""

from __future__ import annotations

import mmap
import re
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.errors import UserError
from mmreplay.importers.binary import bare
from mmreplay.importers.text import source
from mmreplay.importers.text.bytes import SPACE, decimal, is_digit, line_end, seconds
from mmreplay.jit import borrowing_helper, native

# Columns of a file.
(F_AT, F_END, F_TIME, F_TID, F_BEGIN) = range(5)
F_SIZE: Final = 5
_OUT_BYTES: Final = 1 << 22
_DOT: Final = 46
#: A thread's number and the blank behind it.
_MOST_PREFIX: Final = 12
_PART: Final = re.compile(r"(.+)\.([1-9]\d{0,6})")
#: A line that names no thread, as -ff writes all of them.
_UNNAMED: Final = re.compile(rb"(?:\d+\.\d{3,9}|\d\d:\d\d:\d\d(?:\.\d+)?) ")


@borrowing_helper
def _time_of(b: Any, at: Any, end: Any) -> Any:
    """The time in ns that begins the line; -1: none does."""
    if at >= end or not is_digit(b[at]):
        return np.int64(-1)
    _, after = decimal(b, at, end)
    if after >= end or b[after] != _DOT:
        return np.int64(-1)
    value, after = seconds(b, at, end)
    return value if after < end and b[after] == SPACE and value >= 0 else np.int64(-1)


@borrowing_helper
def _record_end(buffer: Any, b: Any, at: Any, end: Any) -> Any:
    """Behind the line at ``at`` and the lines without time that follow it (stacks of ``-k``)."""
    at = min(line_end(buffer, b, at, end) + 1, end)
    while at < end and _time_of(b, at, end) < 0:
        at = min(line_end(buffer, b, at, end) + 1, end)
    return at


@native
def begin(buffer: Any, files: Any) -> None:
    """Find each file's first time."""
    b, f = bare(buffer), bare(files)
    for k in range(files.shape[0]):
        o = k * F_SIZE
        at, end = f[o + F_AT], f[o + F_END]
        if _time_of(b, at, end) < 0:
            at = _record_end(buffer, b, at, end)
        f[o + F_TIME] = f[o + F_BEGIN] = max(_time_of(b, at, end), 0)


@native
def merge(buffer: Any, files: Any, count: Any, state: Any, out: Any) -> Any:
    """Write lines in order of time into ``out``, each behind its thread's number.

    Parameters
    ----------
    buffer:
        uint8: all files, one behind the other.
    files:
        (n, F_SIZE) int64 in order of F_BEGIN; those not at their end come first.
    count:
        How many these are.
    state:
        (2,) int64: how many are left, and the bytes that the next record takes.
    out:
        uint8.

    Returns
    -------
    Bytes written: 0 where none is left, or the next record needs a larger ``out``.
    """
    b, f, o, s = bare(buffer), bare(files), bare(out), bare(state)
    n = 0
    room = out.shape[0]
    while count > 0:
        best = 0
        for k in range(1, count):
            time, least = f[k * F_SIZE + F_TIME], f[best * F_SIZE + F_TIME]
            if f[k * F_SIZE + F_BEGIN] > least:  # so do all others
                break
            if time < least or (time == least and f[k * F_SIZE + F_TID] < f[best * F_SIZE + F_TID]):
                best = k
        c = best * F_SIZE
        at, end = f[c + F_AT], f[c + F_END]
        stop = _record_end(buffer, b, at, end)
        s[1] = stop - at + _MOST_PREFIX
        if n + s[1] > room:
            break
        if _time_of(b, at, end) >= 0:
            unit = np.int64(1)
            while unit * 10 <= f[c + F_TID]:
                unit *= 10
            while unit > 0:
                o[n] = 48 + f[c + F_TID] // unit % 10
                unit //= 10
                n += 1
            o[n] = SPACE
            n += 1
        for k in range(at, stop):
            o[n] = b[k]
            n += 1
        if stop == end and b[stop - 1] != 10:  # the last line was cut
            o[n] = 10
            n += 1
        f[c + F_AT] = stop
        if stop < end:
            f[c + F_TIME] = max(_time_of(b, stop, end), 0)
            continue
        count -= 1
        for k in range(c, count * F_SIZE):
            f[k] = f[k + F_SIZE]
    s[0] = count
    return n


def open_files(paths: list[Path]) -> source.TextFile:
    """Merge the files of one ``strace -ff``, and map what that gives.

    Raises
    ------
    UserError
        They are not files of one recording, or cannot be read.
    """
    tids = [_tid(path, paths[0]) for path in paths]
    with tempfile.TemporaryFile() as joined, tempfile.TemporaryFile() as merged:
        files = np.zeros((len(paths), F_SIZE), np.int64)
        for row, path, tid in zip(files, paths, tids, strict=True):
            row[F_AT] = joined.tell()
            _append(joined, path)
            row[F_END], row[F_TID] = joined.tell(), tid
        joined.flush()
        mapped = mmap.mmap(joined.fileno(), 0, access=mmap.ACCESS_READ)
        _merge(np.frombuffer(mapped, np.uint8), files, merged)
        merged.flush()
        return source.text_file(paths[0], mmap.mmap(merged.fileno(), 0, access=mmap.ACCESS_READ))


def _tid(path: Path, first: Path) -> int:
    """The thread that a file's name names."""
    names = [_PART.fullmatch(one.name) for one in (path, first)]
    if names[0] is None or names[1] is None or names[0][1] != names[1][1]:
        raise UserError(
            "is no part of one recording with the other files",
            where=str(path),
            fix="give the FILE.PID files of one strace -ff -o FILE together, other logs each by "
            "itself",
        )
    return int(names[0][2])


def _append(joined: IO[bytes], path: Path) -> None:
    """Copy a file's lines behind the others'."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})", where=str(path), fix="check the name and rights"
        ) from None
    with file:
        if not _UNNAMED.match(file.read(64)):
            raise UserError(
                "its lines do not begin with their time",
                where=str(path),
                fix="record with strace -ff -ttt -T -o FILE, and give the FILE.PID files",
            )
        file.seek(0)
        shutil.copyfileobj(file, joined, 1 << 20)


def _merge(buffer: NDArray[np.uint8], files: NDArray[np.int64], merged: IO[bytes]) -> None:
    begin(buffer, files)
    state = np.zeros(2, np.int64)
    out = np.zeros(_OUT_BYTES, np.uint8)
    files = np.ascontiguousarray(files[np.lexsort((files[:, F_TID], files[:, F_BEGIN]))])
    count = len(files)
    while count:
        written = int(merge(buffer, files, count, state, out))
        merged.write(out[:written].data)
        count = int(state[0])
        if not written:
            out = np.zeros(2 * int(state[1]), np.uint8)
