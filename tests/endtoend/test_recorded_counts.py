"""A program recorded here takes, replayed on its own kernel, the locks it took in truth.

The recording holds the default events and, besides them, the kernel's own account:
``mmap_lock:*``.  What a recording cannot show is left out of the comparison: the write
sections inside execve (the new image's mappings) and what happens after perf lets go of an
exiting thread.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
EVENTS = Path("/sys/kernel/tracing/events")
CALLS = ("mmap", "munmap", "mprotect", "madvise", "brk", "mremap", "clone", "clone3", "execve")

PROGRAM = """
import ctypes, mmap, threading
def work():
    for size in range(1, 60):
        m = mmap.mmap(-1, size * 8192)
        m[:] = b"x" * len(m)
        m.madvise(mmap.MADV_DONTNEED)
        m[::4096] = b"y" * (len(m) // 4096)
        m.close()
threads = [threading.Thread(target=work) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
"""


def _can_record() -> str:
    """Why recording is not possible here; empty when it is."""
    if shutil.which("perf") is None:
        return "perf is not installed"
    if os.geteuid() != 0:
        return "recording tracepoints needs root"
    if not (EVENTS / "mmap_lock").is_dir():
        return "no mmap_lock tracepoints in tracefs"
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if not (6, 17) <= release < (6, 19):
        return "the shipped models stand for Linux 6.18 and 6.1 only"
    return ""


def _mmreplay(*words: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "mmreplay", *words],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "replay")},
    ).stdout


def _counted(recording: Path) -> Counter[str]:
    """Acquisitions by (call or fault, mode), from the mmap_lock tracepoints."""
    script = subprocess.run(
        ["perf", "script", "-i", str(recording), "--ns", "-F", "tid,time,event,trace"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    inside: dict[str, str] = {}
    asked: set[str] = set()
    found: Counter[str] = Counter()
    for line in script.splitlines():
        words = line.split()
        if len(words) < 3:
            continue
        tid, event = words[0], words[2].rstrip(":")
        if "sys_enter_" in event:
            inside[tid] = event.split("sys_enter_")[1]
        elif "sys_exit_" in event:
            inside.pop(tid, None)
        elif event.endswith("start_locking"):
            asked.add(tid)
        elif event.endswith("acquire_returned"):
            if "success=true" in line and inside.get(tid) != "execve":
                down = tid not in asked and "write=false" in line
                mode = "downgrade" if down else "write" if "write=true" in line else "read"
                found[f"{inside.get(tid, 'fault')} {mode}"] += 1
            asked.discard(tid)
    return found


@pytest.mark.perf
@pytest.mark.skipif(bool(_can_record()), reason=_can_record() or "can record")
def test_replay_takes_the_locks_that_the_program_took(tmp_path: Path) -> None:
    recording, trace = tmp_path / "perf.data", tmp_path / "app.mmt"
    calls = [
        f"syscalls:sys_{end}_{call}"
        for call in CALLS
        for end in ("enter", "exit")
        if (EVENTS / "syscalls" / f"sys_{end}_{call}").is_dir()
    ]
    events = [
        "exceptions:page_fault_user",
        "exceptions:page_fault_kernel",
        "minor-faults",
        "major-faults",
        "mmap_lock:mmap_lock_start_locking",
        "mmap_lock:mmap_lock_acquire_returned",
        *calls,
    ]
    subprocess.run(
        ["perf", "record", "-q", "-d", "-k", "CLOCK_MONOTONIC", "--switch-events", "-c", "1"]
        + ["-m", "4096", "-o", str(recording)]
        + [word for event in events for word in ("-e", event)]
        + ["--", os.path.realpath(sys.executable), "-S", "-c", PROGRAM],
        check=True,
        capture_output=True,
    )
    _mmreplay("import", str(recording), "-o", str(trace))
    replay = json.loads(_mmreplay("replay", str(trace), "--kernel", "linux-6.18", "--format=json"))
    counted = _counted(recording)
    ops = {row["op"]: row["count"] for row in replay["by_op"]}
    assert replay["ops"] > 10_000
    # the kernel's account, call by call: one write section each, and a downgrade per munmap
    assert counted["mmap write"] == ops["mmap"]
    assert counted["munmap write"] == counted["munmap downgrade"] == ops["munmap"]
    assert counted["mprotect write"] == ops["mprotect"]
    # and the replay's: the same calls, brk among them, and nothing else writes
    lock = replay["locks"]["mmap_lock"]
    writes = sum(n for key, n in counted.items() if key.endswith("write") and key[:5] != "fault")
    growth = counted["fault downgrade"]  # stack growth
    assert abs(lock["write"] - writes - growth) <= 2
    downgrades = sum(n for key, n in counted.items() if key.endswith("downgrade"))
    assert abs(lock["downgrade"] - downgrades) <= 2
    # faults: one read for the first write in a VMA, one for each in kernel mode; thread exits
    # are in the replay and after perf's last event
    reads = sum(n for key, n in counted.items() if key.endswith("read"))
    assert abs(lock["read"] - ops.get("thread_exit", 0) - reads) <= max(5, reads // 10)
