"""The process that performs programs and counts: it forks once for each.

Started by :mod:`mmreplay.hardware.counting` with a pipe for requests and one for
answers.  It loads little and has one thread, so that its children are small and alike.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import select
import signal
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from mmreplay.hardware.child import pipes
from mmreplay.hardware.perfcount import Counters
from mmreplay.hardware.perform import Performed, Unable, run
from mmreplay.hardware.program import LABEL_BYTES, Program, Slot, slots_used
from mmreplay.hardware.tracing import Instance, Tally, tally

#: Size of the files that are mapped: 1002 strides of a fault-around window.
_FILE_BYTES: Final = 1002 * 16 * 4096
#: A program that takes longer than this waits for something that will not come.
_TIMEOUT_S: Final = 60
_WRITE: Final = 1  # arch/x86/entry/syscalls/syscall_64.tbl
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Request:
    """One program to perform.

    ``instance``: the tracing instance, or None to count with perf the tracepoints of
    ``ids``.  ``folder``: where a file on a disk may be made.  ``cold``: that file's
    pages are not in memory.
    """

    program: Program
    cpu: int
    instance: Path | None
    ids: Mapping[str, int] = field(default_factory=dict)
    folder: Path | None = None
    huge_pages: bool = False
    cold: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it: by segment number, and why nothing, where nothing did."""

    performed: list[Performed] = field(default_factory=list)
    tallies: dict[int, Tally] = field(default_factory=dict)
    problem: str = ""


class _Files:
    """Files for mapping, made when first needed."""

    def __init__(self) -> None:
        self._made: dict[Slot, int] = {}

    def wanted(self, request: Request) -> dict[Slot, int]:
        used = slots_used(request.program)
        if Slot.TMPFS in used and Slot.TMPFS not in self._made:
            self._made[Slot.TMPFS] = self._fill(os.memfd_create("mmreplay"))
        if Slot.DISK in used and Slot.DISK not in self._made:
            if request.folder is None:
                raise Unable("no directory on a disk to put a file in")
            with tempfile.TemporaryFile(dir=request.folder) as made:
                self._made[Slot.DISK] = self._fill(os.dup(made.fileno()))
        if request.cold:
            fd = self._made[Slot.DISK]
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return {slot: fd for slot, fd in self._made.items() if slot in used}

    @staticmethod
    def _fill(fd: int) -> int:
        chunk = bytes(1 << 20)
        left = _FILE_BYTES
        while left > 0:
            left -= os.write(fd, chunk[:left])
        return fd


def _child(request: Request, files: dict[Slot, int], ready: Callable[[], None], out: int) -> None:
    """In the forked process: perform, and say what came of it.  Does not return."""
    message: Any = "ended without a word"
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.sched_setaffinity(0, {request.cpu})
        if request.instance is not None:
            marker = os.open(request.instance / "trace_marker", os.O_WRONLY)
            counters = None

            def window(segment: int, opens: bool, label: int) -> tuple[int, ...]:
                return _WRITE, marker, label, LABEL_BYTES

        else:
            counters = Counters(dict(request.ids), len(request.program.segments))
            window = counters.window
        performed, ranges = run(
            request.program, files, window, huge_pages=request.huge_pages, ready=ready
        )
        message = (performed, ranges, counters.tallies() if counters else None)
    except (Unable, OSError) as error:
        message = str(error)
    finally:
        with contextlib.suppress(OSError), os.fdopen(out, "wb") as stream:
            pickle.dump(message, stream)
        os._exit(0)


def perform(request: Request, files: _Files) -> Answer:
    """Fork, perform, count."""
    try:
        open_files = files.wanted(request)
    except (Unable, OSError) as error:
        return Answer(problem=str(error))
    instance = (
        Instance(request.instance.parent.parent, request.instance.name)
        if (request.instance)
        else None
    )
    is_ready, go, out = os.pipe(), os.pipe(), os.pipe()

    def ready() -> None:
        os.write(is_ready[1], b"r")
        os.read(go[0], 1)

    pid = os.fork()
    if not pid:
        os.close(go[1])
        _child(request, open_files, ready, out[1])
    for fd in (is_ready[1], go[0], out[1]):
        os.close(fd)
    message: Any = "its process died"
    try:
        if os.read(is_ready[0], 1):
            if instance:
                instance.start(pid)
            os.write(go[1], b"g")
        with os.fdopen(out[0], "rb") as stream:
            message = _receive(stream, pid)
    finally:
        if instance:
            instance.stop()
        for fd in (is_ready[0], go[1]):
            os.close(fd)
        _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return Answer(problem=f"its process died of {signal.Signals(os.WTERMSIG(status)).name}")
    if isinstance(message, str):
        return Answer(problem=message)
    performed, ranges, tallies = message
    if instance:
        if instance.lost():
            return Answer(problem="the trace buffer was too small")
        tallies = tally(instance.lines(), ranges, instance.sees_faults())
    return Answer(performed, tallies)


def _receive(stream: BinaryIO, pid: int) -> Any:
    """The child's message; a child that takes too long is killed."""
    ready, _, _ = select.select([stream], [], [], _TIMEOUT_S)
    if not ready:
        os.kill(pid, signal.SIGKILL)
        return f"not finished after {_TIMEOUT_S} s"
    try:
        return pickle.load(stream)
    except EOFError:
        return "its process died"


def main() -> None:
    """Answer requests until there are no more."""
    requests, answers = pipes()
    files = _Files()
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        answer = perform(request, files)
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:  # nobody waits for it any more
            os._exit(0)
