"""What this machine can record with: its tracepoints, perf, strace, and the right to use them."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mmreplay.errors import UserError
from mmreplay.trace.recording import RING_PAGES, Has, Recording, in_tracefs

TRACEFS: Final = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
#: All rings together take at most this share of the machine's memory.
_RINGS_SHARE: Final = 0.05
#: No smaller rings unless asked for.
FEWEST_PAGES: Final = 128
#: Open events above which attaching takes too long and too much kernel memory: 1,352 bytes each
#: (the slab perf_event, 6.18), so 0.3 GB.
_MOST_EVENTS: Final = 200_000


@dataclass(frozen=True, slots=True)
class Tool:
    """What records, and why it is not perf where it is not."""

    name: str  # perf or strace
    why_not_perf: str = ""


def tracepoints() -> Has | None:
    """Which events this kernel has; None where its tracefs cannot be read."""
    for root in TRACEFS:
        events = root / "events"
        if os.access(events, os.R_OK | os.X_OK) and (events / "sched").is_dir():
            return in_tracefs(events)
    return None


def processes(pids: tuple[int, ...]) -> int:
    """Number of threads of the processes.

    Raises
    ------
    UserError
        One of them does not exist.
    """
    threads = 0
    for pid in pids:
        try:
            threads += sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
        except OSError:
            raise UserError(
                f"there is no process {pid}", where="--pid", fix="look it up with ps or pgrep"
            ) from None
    return threads


def ring_pages(wanted_bytes: int | None, *, total: bool = False) -> int:
    """Pages of each CPU's ring, a power of two.

    Parameters
    ----------
    wanted_bytes:
        Size asked for, of each ring or (``total``) of all together; None takes
        16 MiB each, less where all of them would take over 5 % of the memory.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    cpus = os.cpu_count() or 1
    if wanted_bytes is None:
        memory = page * os.sysconf("SC_PHYS_PAGES")
        most = int(_RINGS_SHARE * memory / cpus) // page
        pages = max(FEWEST_PAGES, min(RING_PAGES * 4096 // page, most))
    else:
        pages = max(1, wanted_bytes // (page * (cpus if total else 1)))
    return 1 << (pages.bit_length() - 1)


def rings_bytes(pages: int) -> int:
    """Size of all rings of ``pages`` together."""
    return pages * os.sysconf("SC_PAGE_SIZE") * (os.cpu_count() or 1)


def check_program(program: Sequence[str]) -> None:
    """Raise a :class:`UserError` where the command to record cannot be run (execvp(3))."""
    if program and shutil.which(program[0]) is None:
        there = Path(program[0]).exists()
        raise UserError(
            "cannot be executed" if there else "there is no such program",
            where=program[0],
            fix="make it executable (chmod +x)" if there else "give its path, or look at PATH",
        )


def perf_knows(option: str) -> bool:
    """Whether ``perf record`` of this machine has that option."""
    done = subprocess.run(
        ["perf", "record", "-h"], capture_output=True, text=True, errors="replace"
    )
    return option in (done.stdout + done.stderr).split()


def allow_events(recording: Recording, threads: int) -> None:
    """Raise this process's limit of open files to what attaching takes.

    Raises
    ------
    UserError
        There are too many threads: perf opens each event once per thread and CPU.
    """
    needed = (len(recording.events.events) + 1) * threads * (os.cpu_count() or 1) + 1024
    fix = "record the whole machine (-a), which takes an event per CPU only"
    if needed > _MOST_EVENTS:
        raise UserError(
            f"attaching to {threads} threads takes {needed:,} open events", where="--pid", fix=fix
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed <= soft:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(hard, needed)))
    except (ValueError, OSError):
        raise UserError(
            f"attaching to {threads} threads takes {needed:,} open files, the limit is {hard:,}",
            where="--pid",
            fix=f"raise it (ulimit -n {needed}), or {fix}",
        ) from None


def choose_tool(
    wanted: str, has: Has | None, recording: Recording | None, *, trial: bool = True
) -> Tool:
    """perf where it can record here, else strace.

    Parameters
    ----------
    wanted:
        ``auto``, ``perf`` or ``strace``.
    recording:
        Tried on ``true`` unless there is to be no ``trial``; None where the tracepoints cannot
        be read.

    Raises
    ------
    UserError
        Neither can, or not the one that is wanted.
    """
    reason = "it was asked for" if wanted == "strace" else _why_not_perf(has, recording, trial)
    if not reason:
        return Tool("perf")
    if wanted == "perf":
        raise UserError(f"perf cannot record here: {reason}", fix="run as root where perf is")
    if shutil.which("strace") is None:
        raise UserError(
            f"perf cannot record here ({reason}), and strace is not installed",
            fix="install perf (linux-perf or linux-tools) and run as root, or install strace",
        )
    return Tool("strace", reason)


def _why_not_perf(has: Has | None, recording: Recording | None, trial: bool = True) -> str:
    if shutil.which("perf") is None:
        return "perf is not installed"
    if has is None or recording is None:
        return "the tracepoints in /sys/kernel/tracing cannot be read, which takes root"
    if not trial:
        return ""
    with tempfile.TemporaryDirectory(prefix="mmreplay-") as folder:
        file = Path(folder) / "try.data"
        # One call stands for all: turning each on and off takes the kernel some 30 ms.
        short = replace(
            recording,
            events=replace(recording.events, calls=recording.events.calls[:1]),
            target=("--", "true"),
            output=str(file),
            keep=False,
            ring_pages=FEWEST_PAGES,
        )
        done = subprocess.run(short.argv(), capture_output=True, text=True, errors="replace")
        if done.returncode == 0 and file.exists():
            return ""
    return perfs_reason(done)


def perfs_reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why perf, which ended with an error, did not record, in a few words."""
    lines = [line.strip() for line in done.stderr.splitlines()]
    told = [line for line in lines if line and line not in ("Error:", "Warning:")]
    if told and re.match("No permission|Access to performance", told[0]):
        return "it has no permission to record tracepoints"
    return told[0].rstrip(".") if told else f"it ended with status {done.returncode}"
