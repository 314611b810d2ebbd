"""Performs a recorded process once, in a process forked for it, and tells what came of it."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import select
import signal
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.hardware import trace_loop
from mmreplay.hardware.loop_tables import RU_WORDS, Phase
from mmreplay.hardware.perform import areas
from mmreplay.hardware.primitives import survive_failures
from mmreplay.hardware.runner import Ended, Meter, begin_child, own_stacks
from mmreplay.hardware.trace_loop import Seat, Top
from mmreplay.hardware.trace_program import CALL_NAMES, Do, TraceProgram, Word
from mmreplay.schema import PAGE_SIZE

I64 = NDArray[np.int64]

#: A run that takes this many times the recording's time, and a minute, hangs.
_PATIENCE: Final = 20
_MINUTE_S: Final = 60.0
#: Open files of the worker beside those of the recording.
_OTHER_FILES: Final = 128
#: Of each thread, operations before which throughput is not looked at.
_WARM_UP_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One run; ``cpus``: those that its threads may use, None all."""

    program: TraceProgram
    cpus: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class TraceAnswer:
    """What came of it.  ``done_ns``: when each row was done, since the start (0: never)."""

    problem: str = ""
    done_ns: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    ended_ns: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    thought_ns: int = 0
    blocked_ns: int = 0
    failed: int = 0
    missed: int = 0
    error: tuple[int, int] = (0, 0)
    usage: I64 = field(default_factory=lambda: np.zeros((0, RU_WORDS), np.int64))
    vmstat: dict[str, int] = field(default_factory=dict)
    other_cpu_s: float = 0.0
    steal_s: float = 0.0


class _Block:
    """The shared mapping: header, seats, table, file descriptors."""

    def __init__(self, program: TraceProgram, fds: Sequence[int], zero: int, rounds: int) -> None:
        n = len(program.threads)
        size = Top.WORDS + n * Seat.WORDS + program.rows.size + len(fds) + 8
        self.memory = mmap.mmap(-1, -(-size * 8 // PAGE_SIZE) * PAGE_SIZE)
        words = np.frombuffer(self.memory, np.int64)
        self.base = base = words.ctypes.data
        self.head = words[: Top.WORDS]
        at = Top.WORDS + n * Seat.WORDS
        self.seats = words[Top.WORDS : at].reshape(n, Seat.WORDS)
        self.rows = words[at : at + program.rows.size].reshape(program.rows.shape)
        self.rows[:] = program.rows
        files = at + program.rows.size
        words[files : files + len(fds)] = fds
        self.head[Top.TABLE], self.head[Top.ROWS] = base + at * 8, len(program.rows)
        self.head[Top.SEATS], self.head[Top.THREADS] = base + Top.WORDS * 8, n
        self.head[Top.ENTRY] = trace_loop.thread_main.address
        self.head[Top.ZERO], self.head[Top.FILES] = zero, base + files * 8
        self.head[Top.ROUNDS] = rounds
        self.seats[:, Seat.HEADER] = base
        self.seats[:, Seat.FIRST : Seat.AT_START + 1] = program.threads

    def touch(self) -> None:
        for at in range(0, len(self.memory), PAGE_SIZE):
            self.memory[at]


def _child(request: TraceRequest, block: _Block, fds: Sequence[int]) -> None:
    """In the forked process: map what was there, run.  Does not return."""
    code = 1
    try:
        program = request.program
        begin_child(request.cpus)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
        stacks, stack = own_stacks(len(program.threads))
        block.seats[:, Seat.STACK] = stack
        block.head[Top.SINK] = os.memfd_create("sink")
        low, high = program.span
        if any(area.start < high and area.end > low for area in areas()):
            raise RuntimeError("the arena is in use")
        for m in program.mappings:
            flags = (1 if m.shared else 2) | (0x20 if m.file < 0 else 0) | 0x4000 | 0x10
            fd = fds[m.file] if m.file >= 0 else -1
            trace_loop.map_at(m.address, m.length, m.prot, flags, fd, m.offset)
        survive_failures()
        block.touch()
        scratch = np.zeros(2, np.int64)
        trace_loop.run_all(block.base, scratch.ctypes.data)
        code = 0
        del stacks
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def run(request: TraceRequest, fds: Sequence[int], zero: int, rounds: int) -> TraceAnswer:
    """Fork, perform, read what the threads left."""
    block = _Block(request.program, fds, zero, rounds)
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        _child(request, block, fds)
    try:
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        meter = Meter(pid)
        limit = _MINUTE_S + _PATIENCE * request.program.recorded_span_ns / 1e9
        _wait(pid, limit)
        meter.stop()
        return _told(request.program, block, meter)
    except Ended as ended:
        return TraceAnswer(problem=str(ended))
    finally:
        block.head[Top.PHASE] = Phase.STOP
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _wait(pid: int, limit_s: float) -> None:
    """Until the process has ended; asleep, as looking now and then would take its CPUs."""
    fd = os.pidfd_open(pid)
    try:
        waiter = select.poll()  # select() takes no descriptor above 1023
        waiter.register(fd, select.POLLIN)
        if not waiter.poll(limit_s * 1000):
            raise Ended(f"not finished after {limit_s:.0f} s")
    finally:
        os.close(fd)


def _told(program: TraceProgram, block: _Block, meter: Meter) -> TraceAnswer:
    began = int(block.head[Top.BEGAN_NS])
    seats = block.seats
    done = block.rows[:, Word.DONE_NS].copy()
    done[done > 0] -= began
    if not began or not (seats[:, Seat.STATE] == 2).all():
        raise Ended("its process ended before its threads")
    first = np.flatnonzero(seats[:, Seat.ERROR])
    error = (0, 0)
    if len(first):
        seat = seats[first[0]]
        error = int(seat[Seat.ERROR_ROW]), int(seat[Seat.ERROR])
    return TraceAnswer(
        done_ns=done,
        ended_ns=seats[:, Seat.ENDED_NS] - began,
        thought_ns=int(seats[:, Seat.THOUGHT_NS].sum()),
        blocked_ns=int(seats[:, Seat.BLOCKED_NS].sum()),
        failed=int(seats[:, Seat.FAILED].sum()),
        missed=int(seats[:, Seat.MISSED].sum()),
        error=error,
        usage=seats[:, Seat.USAGE : Seat.USAGE + RU_WORDS].copy(),
        vmstat=meter.vmstat,
        other_cpu_s=meter.other_s,
        steal_s=meter.steal_s,
    )


def throughput(program: TraceProgram, answer: TraceAnswer) -> dict[str, Any]:
    """Operations per second, useful work rate and makespan of a run.

    The window is that of a prediction: from when a tenth of the operations is done until the
    first thread that is there from the start and has at least a tenth of the busiest one's
    operations has ended.  ``useful_work``: CPU seconds of the program itself by second, over
    the makespan.
    """
    operations = program.rows[:, Word.OPERATION] == 1
    times = np.sort(answer.done_ns[operations & (answer.done_ns > 0)])
    sizes = np.array(
        [int(operations[first:end].sum()) for first, end, _ in program.threads], np.int64
    )
    counted = (program.threads[:, 2] == 1) & (sizes >= 0.1 * sizes.max())
    if not counted.any():
        counted = sizes == sizes.max()
    begin = int(times[int(_WARM_UP_SHARE * len(times))]) if len(times) else 0
    end = int(answer.ended_ns[counted].min())
    makespan_s = float(answer.ended_ns.max()) / 1e9
    if end <= begin:
        begin, end = 0, int(answer.ended_ns.max())
    inside = int(((times >= begin) & (times < end)).sum())
    return {
        "window_s": (end - begin) / 1e9,
        "ops": inside,
        "ops_per_s": inside / ((end - begin) / 1e9) if end > begin else 0.0,
        "makespan_s": makespan_s,
        "useful_work": answer.thought_ns / 1e9 / makespan_s if makespan_s else 0.0,
        "rates": sizes[counted] / np.maximum(1, answer.ended_ns[counted]) * 1e9,
    }


def describe_failure(program: TraceProgram, answer: TraceAnswer) -> str:
    """The first call that failed, in words."""
    row = program.rows[answer.error[0]]
    what = CALL_NAMES.get(int(row[Word.NUMBER]), Do(int(row[Word.DO])).name.lower())
    return f"{what}: {os.strerror(answer.error[1])}"


def files_of(program: TraceProgram) -> list[int]:
    """Memory files of the recorded files' sizes, every page present.

    Raises
    ------
    OSError
        They take more memory, or more open files, than there may be.
    """
    _allow_open_files(len(program.files) + _OTHER_FILES)
    fds: list[int] = []
    try:
        for size in program.files:
            fds.append(os.memfd_create("mmreplay"))
            if size:
                os.posix_fallocate(fds[-1], 0, size)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds


def _allow_open_files(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed <= soft:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(hard, needed)))
    except (ValueError, OSError):
        raise OSError(
            f"its files take {needed:,} open ones, the limit is {hard:,}; raise it: "
            f"ulimit -n {needed}"
        ) from None
