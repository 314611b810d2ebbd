"""A trace in text: its file, how it is to be read, and its events in order of time.

The file is mapped and scanned in windows.  Lines are nearly in order; what is out of it is sorted
within a time (:data:`LAG_NS`), and what comes later still gets the time of what was passed on.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.errors import UserError
from mmreplay.importers import events as ev
from mmreplay.importers.text import rows as tr

#: Events decoded at a time.
BATCH_ROWS: Final = 1 << 15
_WINDOW_ROWS: Final = 1 << 16
#: How far lines may be out of order.
LAG_NS: Final = 50_000_000
_HEAD: Final = 1 << 20
#: The byte order mark of UTF-8, which has none to tell.
_MARK: Final = b"\xef\xbb\xbf"
_LONG: Final = re.compile(rb"[^\n]{4096,}")
_RELEASE_BYTES: Final = 1 << 24

Progress = Callable[[int, int], None]
#: Fills rows from the mapped text; returns whether it is at the end.
Scan = Callable[["TextFile", NDArray[np.int64]], bool]


@dataclass(slots=True)
class TextFile:
    """A mapped text and what scanning found so far."""

    path: Path
    mapped: mmap.mmap
    buffer: NDArray[np.uint8]
    x: NDArray[np.int64]
    threads: NDArray[np.int64]
    ring: NDArray[np.int64]
    start: int = 0  # where the trace begins; what is before is a page around it
    late: int = 0
    inversions: int = 0
    last_ns: int = -1
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return len(self.buffer)

    def close(self) -> None:
        """Unmap the file."""
        self.buffer = np.zeros(0, np.uint8)
        with contextlib.suppress(BufferError):  # an error's traceback may still hold it
            self.mapped.close()

    def head(self) -> bytes:
        """The first megabyte without very long lines, for a look at how it is written.

        Looking takes time by the square of a line's length, and no line of a trace is that long.
        """
        return _LONG.sub(b"", self.mapped[self.start : self.start + _HEAD])

    def restart(self) -> None:
        """Forget what scanning found."""
        self.x[:] = 0
        self.x[tr.X_T0] = -1
        self.x[tr.X_POSITION] = self.start
        self.threads[:] = 0
        self.ring[:] = 0
        self.late = self.inversions = 0
        self.last_ns = -1

    def grow_threads(self) -> None:
        """Double the table of threads."""
        larger = np.zeros((2 * len(self.threads), tr.K_SIZE), np.int64)
        tr.rehash_threads(self.threads, larger)
        self.threads = larger


def open_text(path: Path) -> TextFile:
    """Map a text file.

    Raises
    ------
    UserError
        It cannot be read, or is empty.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise UserError("the file is empty", where=str(path), fix="record again")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})", where=str(path), fix="check the name and rights"
        ) from None
    text = text_file(path, mapped)
    text.start = _behind_page(mapped)
    text.restart()
    return text


def text_file(path: Path, mapped: mmap.mmap) -> TextFile:
    """A mapped file of which nothing has been read."""
    x = np.zeros(tr.X_SIZE, np.int64)
    threads = np.zeros((1024, tr.K_SIZE), np.int64)
    ring = np.zeros(tr.OPENERS + 1, np.int64)
    file = TextFile(path, mapped, np.frombuffer(mapped, np.uint8), x, threads, ring)
    file.restart()
    return file


def _behind_page(mapped: mmap.mmap) -> int:
    """Where the trace begins: what systrace wraps into a web page, or behind a byte order mark."""
    if mapped[:3] == _MARK:
        return len(_MARK)
    if not mapped[:256].lstrip().lower().startswith((b"<!doctype", b"<html")):
        return 0
    return max(0, mapped.find(b'class="trace-data"'))


def batches(
    file: TextFile, scan: Scan, progress: Progress | None = None
) -> Generator[tuple[Any, int], None, None]:
    """The events in total order: (batch, rows of it in use); the batch is filled anew each time.

    The next window is scanned on a thread beside, while the last one is used.
    """
    batch = ev.new_batch(BATCH_ROWS)
    windows = [np.zeros((_WINDOW_ROWS, tr.WIDTH), np.int64) for _ in range(2)]
    held = windows[0][:0]
    newest = -1
    released = turn = 0
    with ThreadPoolExecutor(1, thread_name_prefix="mmreplay-scan") as beside:

        def start(window: NDArray[np.int64]) -> Future[tuple[bool, int, int, int]]:
            def work() -> tuple[bool, int, int, int]:
                at_end = scan(file, window)
                x = file.x
                return at_end, int(x[tr.X_ROWS]), int(x[tr.X_T0]), int(x[tr.X_POSITION])

            return beside.submit(work)

        running = start(windows[0])
        at_end = False
        while not at_end:
            at_end, count, t0, position = running.result()
            fresh = windows[turn][:count]
            turn = 1 - turn
            if not at_end:
                running = start(windows[turn])
            back = int(tr.inversions(fresh, count))
            file.inversions += back
            rows = fresh
            if len(held) or back or (count and rows[0, tr.C_TIME] < newest):
                rows = np.concatenate([held, fresh])
                order = np.argsort(rows[:, tr.C_TIME], kind="stable")
            else:
                order = np.arange(count)
            ready = len(rows)
            if ready:
                newest = max(newest, int(rows[order[-1], tr.C_TIME]))
            if not at_end and file.inversions:
                times = rows[order, tr.C_TIME]
                ready = int(np.searchsorted(times, newest - LAG_NS, side="right"))
            for first in range(0, ready, BATCH_ROWS):
                last = min(ready, first + BATCH_ROWS)
                floor = max(file.last_ns, 0)
                file.late += tr.fill(batch, rows, order, first, last, max(0, t0), floor)
                file.last_ns = int(batch.time[last - first - 1])
                yield batch, last - first
            held = rows[order[ready:]].copy()
            released = _release(file.mapped, released, position)
            if progress is not None:
                progress(position, file.size_bytes)


def _release(mapped: mmap.mmap, released: int, upto: int) -> int:
    """Tell the kernel that the pages before ``upto`` are done with."""
    upto -= upto % mmap.PAGESIZE
    if upto - released < _RELEASE_BYTES:
        return released
    mapped.madvise(mmap.MADV_DONTNEED, released, upto - released)
    return upto


_FACTS: Final = "os release|perf version|arch|nrcpus online|nrcpus avail|cpudesc|cpuid|total memory"
_FACT: Final = re.compile(rf"^# ({_FACTS}) : (.+)$", re.MULTILINE)


def header_facts(head: bytes) -> dict[str, str]:
    """What ``perf script --header`` says of the machine; never its name or a command line."""
    return dict(_FACT.findall(head.decode("utf-8", "replace")))
