"""The process that runs loop programs: small, single-threaded, it forks one for each run."""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from mmreplay.errors import UserError
from mmreplay.hardware import runner
from mmreplay.hardware.child import pipes
from mmreplay.hardware.path_check import Traced, trace
from mmreplay.hardware.runner import RunAnswer, RunRequest
from mmreplay.hardware.trace_run import TraceAnswer, TraceRequest, files_of
from mmreplay.hardware.trace_run import run as run_trace
from mmreplay.schema import PAGE_SIZE
from mmreplay.workloads.program import FileField, Program

#: Files are kept for the next run up to this share of the memory that is free.
_KEEP_SHARE: Final = 0.2


class Files:
    """Files to map, filled, made when first needed and kept for the next run."""

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._made: dict[tuple[int, int, int], int] = {}

    def wanted(self, program: Program) -> list[int]:
        """Open files in the order of ``program.files``."""
        rows = [(int(r[FileField.BYTES]), int(r[FileField.DISK])) for r in program.files]
        keys = [(*row, rows[:k].count(row)) for k, row in enumerate(rows)]
        total = sum(key[0] for key in self._made) + sum(k[0] for k in keys if k not in self._made)
        if total > self._keep_bytes:
            for key in [key for key in self._made if key not in keys]:
                os.close(self._made.pop(key))
        for key in keys:
            if key not in self._made:
                self._made[key] = self._make(key[0], bool(key[1]))
        return [self._made[key] for key in keys]

    @staticmethod
    def _make(size: int, disk: bool) -> int:
        if not disk:
            fd = os.memfd_create("mmreplay")
            os.posix_fallocate(fd, 0, size)  # every page present
            return fd
        with tempfile.TemporaryFile() as made:
            fd = os.dup(made.fileno())
        left = size
        while left > 0:
            left -= os.write(fd, bytes(min(left, 1 << 20)))
        return fd


def _to_take(touched_bytes: int) -> int:
    return max(PAGE_SIZE, min(touched_bytes, int(available_bytes() * _KEEP_SHARE)))


def _take_once(size: int) -> None:
    """Take memory and give it back: pages that a host has never backed are slow once."""
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    block.close()


class Server:
    """Answers requests one after the other."""

    def __init__(self) -> None:
        self._files = Files(int(available_bytes() * _KEEP_SHARE))
        self._zero = os.open("/dev/zero", os.O_RDONLY)
        self._rounds = runner.calibrate()
        self._taken = 0

    def answer(self, request: RunRequest | TraceRequest) -> RunAnswer | TraceAnswer | Traced:
        """Run once."""
        if isinstance(request, TraceRequest):
            return self._trace(request)
        try:
            fds = self._files.wanted(request.program)
            size = _to_take(request.program.touched_bytes)
            if size > self._taken and not request.budget:
                _take_once(size)
                self._taken = size
            if request.instance is not None:
                return trace(request, fds, self._zero, self._rounds)
            return runner.run(request, fds, self._zero, self._rounds)
        except (OSError, UserError) as error:
            return RunAnswer(problem=str(error))

    def _trace(self, request: TraceRequest) -> TraceAnswer:
        try:
            fds = files_of(request.program)  # anew each time: what was written stays in them
            try:
                # before each run: what has been free for seconds, a host may have taken back
                _take_once(_to_take(request.program.touched_bytes))
                return run_trace(request, fds, self._zero, self._rounds)
            finally:
                for fd in fds:
                    os.close(fd)
        except OSError as error:
            return TraceAnswer(problem=str(error))


def available_bytes() -> int:
    """Memory that can be had without swapping, here and by the cgroup's limit."""
    text = Path("/proc/meminfo").read_text()
    words: dict[str, Any] = dict(line.split(":", 1) for line in text.splitlines())
    found = int(words["MemAvailable"].split()[0]) << 10
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        text = limit.read_text().strip()
        if text != "max":
            found = min(found, int(text) - int(used.read_text()))
    except (OSError, ValueError):
        pass
    return max(0, found)


def main() -> None:
    """Answer requests until there are no more."""
    requests, answers = pipes()
    server = Server()
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        answer = server.answer(replace(request))
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:  # nobody waits for it any more
            os._exit(0)
