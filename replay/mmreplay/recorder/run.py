"""Runs the recorder to its end: by itself, after a time, or on Ctrl-C; a signal dumps.

perf and strace finish their file on SIGINT.  A terminal sends that to all three (mmreplay, the
recorder, the program); one that only mmreplay gets is passed on, and twice does no harm.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmreplay.trace.recording import FUTEXES, SYSCALLS

#: What a trace by strace lacks beside one by perf (docs/recording.md).
STRACE_LACKS: Final = (
    "strace records no page faults, no lock waits and no switches, and slows each call by some "
    "40 us: the trace shows which memory-map calls are made, but supports no prediction"
)
#: How often it is looked whether the recorder runs the program.
_LOOK_S: Final = 0.005


@dataclass(frozen=True, slots=True)
class Ended:
    """How the recorder ended; ``status`` as subprocess gives it."""

    status: int
    stopped_by: str  # itself, signal or duration


def strace_argv(target: tuple[str, ...], output: str, *, dependencies: bool = False) -> list[str]:
    """strace of ``-p PID`` or ``-- COMMAND`` with all threads, wall clock and durations, in ns;
    with ``dependencies`` also the calls that tell who waits for whom."""
    words = ["strace", "-f", "-o", output, "-I2", "-e", "signal=none"]
    words += ["--absolute-timestamps=format:unix,precision:ns", "--syscall-times=ns"]
    calls = [*",".join(SYSCALLS).split(","), *(FUTEXES if dependencies else ())]
    # "?" passes over calls that this strace does not know.
    words += ["-e", "trace=" + ",".join(f"?{call}" for call in calls)]
    if target[0] == "--":  # the other calls then cost nothing
        words.append("--seccomp-bpf")
    return [*words, *target]


def supervise(
    argv: list[str],
    *,
    duration_s: float | None = None,
    launches: bool = False,
    dumps: bool = False,
    data_on_stdout: bool = False,
) -> Ended:
    """Run the recorder and wait for its end.

    Parameters
    ----------
    argv:
        The recorder's command line.
    duration_s:
        After so long it is told to end; where it ``launches`` a program, from when that runs.
    dumps:
        Pass SIGUSR2 on, at which a flight recorder writes what it holds.
    data_on_stdout:
        The program's own output goes to stderr.
    """
    running: list[subprocess.Popen[bytes]] = []
    told: list[str] = []

    def stop(number: int, frame: Any) -> None:
        told.append("signal")
        for child in running:
            child.send_signal(signal.SIGINT)

    def dump(number: int, frame: Any) -> None:
        for child in running:
            child.send_signal(signal.SIGUSR2)

    wanted = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if dumps:
        wanted[signal.SIGUSR2] = dump
    with _handlers(wanted):
        child = subprocess.Popen(argv, stdout=sys.stderr if data_on_stdout else None)
        running.append(child)
        if told:  # before there was anyone to tell
            child.send_signal(signal.SIGINT)
        while launches and duration_s is not None and not told and child.poll() is None:
            if _runs_program(child.pid):  # perf takes half a second and more to open its events
                break
            time.sleep(_LOOK_S)
        try:
            child.wait(duration_s)
        except subprocess.TimeoutExpired:
            told.append("duration")
            child.send_signal(signal.SIGINT)
        status = child.wait()
    return Ended(status, told[0] if told else "itself")


def _runs_program(recorder: int) -> bool:
    """Whether a child of the recorder is another program by now; True where nothing tells."""
    try:
        own = Path(f"/proc/{recorder}/exe").readlink()
        children = Path(f"/proc/{recorder}/task/{recorder}/children").read_text().split()
    except OSError:
        return True
    for child in children:
        with suppress(OSError):
            if Path(f"/proc/{child}/exe").readlink() != own:
                return True
    return False


@contextmanager
def _handlers(wanted: dict[signal.Signals, Any]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
