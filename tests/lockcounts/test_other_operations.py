"""A recording made here and now, replayed without its lock events, takes the locks it took.

The program (other_operations.py) does what no counts file has.  Two recorders watch it: one
sees mmap_lock:* and nothing else, the other what ``mmreplay record`` records (and the calls
that it leaves out).  Skipped, with the reason, where perf or its permissions are missing or
the running kernel is none that was read.
"""

from __future__ import annotations

import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import other_operations
import polars as pl
import pytest
from numpy.typing import NDArray

from mmreplay.address_space.plan import PlanOp
from mmreplay.address_space.planner import build_plan
from mmreplay.address_space.rules import load_rules
from mmreplay.engine import Options, simulate
from mmreplay.importers.registry import import_trace
from mmreplay.lockcounts.check import _child_locks
from mmreplay.lockcounts.part import select
from mmreplay.locking import resolve_kernel
from mmreplay.machine.loader import load_machine
from mmreplay.recorder import here
from mmreplay.recorder.api import Wanted, describe
from mmreplay.recorder.snapshot import snapshot
from mmreplay.schema import OpKind
from mmreplay.trace.store import Trace

pytestmark = pytest.mark.perf
PROGRAM = Path(other_operations.__file__)
#: Calls that mmreplay record leaves out, because few programs make them often.
LEFT_OUT = ("mincore", "msync", "get_mempolicy", "process_vm_readv", "pkey_alloc", "pkey_free")
Counts = tuple[int, int, int]
_NAMES = list(other_operations.PHASES)
AFTER_THREADS = _NAMES[_NAMES.index("threads") + 1]


@dataclass
class Recorded:
    """Of each phase: acquisitions of the program's mmap_lock, and rows of the trace."""

    trace: Trace
    counts: dict[str, Counts]
    rows: dict[str, tuple[int, int]]
    own: NDArray[np.bool_]  # of each row of the trace: on the program's own address space


def _perf(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["perf", "record", "-q", "-k", "CLOCK_MONOTONIC", *words], stderr=subprocess.PIPE
    )


def _record(folder: Path) -> tuple[Path, Path, int]:
    has = here.tracepoints()
    if has is None or shutil.which("perf") is None:
        pytest.skip("perf is not installed, or the tracepoints cannot be read")
    if not has("mmap_lock:mmap_lock_released"):
        pytest.skip("this kernel has no mmap_lock tracepoints")
    child = subprocess.Popen(
        [sys.executable, str(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    reason = here._why_not_perf(has, describe(Wanted(pids=(child.pid,)), has, here_=True))
    if reason:
        child.kill()
        pytest.skip(f"perf cannot record here: {reason}")
    locks, calls = folder / "locks.data", folder / "calls.data"
    words = list(describe(Wanted(pids=(child.pid,)), has, calls, here_=True).argv())
    extra = [
        f"-esyscalls:sys_{side}_{name}"
        for name in LEFT_OUT
        for side in ("enter", "exit")
        if has(f"syscalls:sys_{side}_{name}")
    ]
    recorders = [
        _perf(
            "-a",
            "-m",
            "2048",
            "-e",
            "mmap_lock:*",
            "-e",
            "syscalls:sys_enter_madvise",
            "-o",
            str(locks),
        ),
        subprocess.Popen([*words[:2], *extra, *words[2:]], stderr=subprocess.PIPE),
    ]
    snapshot((child.pid,), calls.with_name(calls.name + ".snapshot"))
    # perf writes a file's head when its events are open, which takes seconds on a busy machine.
    end = time.monotonic() + 120
    while time.monotonic() < end and not all(
        file.exists() and file.stat().st_size for file in (locks, calls)
    ):
        time.sleep(0.05)
    time.sleep(2)
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "done\n"
    for recorder in recorders:
        recorder.send_signal(signal.SIGINT)
        recorder.communicate()
    child.communicate("\n")
    return locks, calls, child.pid


_EVENT = re.compile(r"^\s*(\d+)/(\d+)\s+(\d+)\.(\d+):\s+(\w+):(\w+):\s+(.*)$")


def _counted(locks: Path, pid: int) -> dict[str, Counts] | None:
    """Reads, writes, downgrades of the program's own mmap_lock, by any thread of the machine;
    none where perf cannot read what it recorded."""
    done = subprocess.run(
        ["perf", "script", "--ns", "-F", "pid,tid,time,event,trace", "-i", str(locks)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "failed to process type" in done.stderr:  # perf 6.1, of a whole machine, now and then
        return None
    assert done.returncode == 0, done.stderr[-500:]
    events = sorted(
        (int(m[3]) * 10**9 + int(m[4]), int(m[1]), int(m[2]), m[6], m[7])
        for m in map(_EVENT.match, done.stdout.splitlines())
        if m
    )
    names = list(other_operations.PHASES)
    own = next(rest.split()[0] for _, p, _, name, rest in events if p == pid and "mmap" in name)
    phase = ""
    started: dict[int, bool] = {}
    writing: set[int] = set()
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for _, p, tid, name, rest in events:
        if name == "sys_enter_madvise":
            advice = int(rest.rpartition("behavior: ")[2], 16)
            if p == pid and advice >= 1000:
                phase = names[(advice - 1000) // 2] if advice % 2 == 0 else ""
            continue
        if rest.split()[0] != own:
            continue
        write = "write=true" in rest
        if name == "mmap_lock_start_locking":
            started[tid] = True
        elif name == "mmap_lock_released":
            writing.discard(tid)
        elif "success=true" in rest:
            downgrade = not started.pop(tid, False) and tid in writing and not write
            found[phase][2 if downgrade else 1 if write else 0] += 1
            if write:
                writing.add(tid)
            else:
                writing.discard(tid)
    return {name: tuple(found[name]) for name in names}  # type: ignore[misc]


#: Others read-lock the program's map now and then (khugepaged, readers of /proc): a phase that
#: they met is recorded once more, and once more.
ATTEMPTS = 3


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Recorded]:
    """The first, second and third recording, made when it is asked for."""

    @cache
    def nth(_: int) -> Recorded:
        for _ in range(ATTEMPTS):
            folder = tmp_path_factory.mktemp("recorded")
            locks, calls, pid = _record(folder)
            counts = _counted(locks, pid)
            if counts is not None:
                return _recorded(folder, calls, pid, counts)
        pytest.skip(f"perf script cannot read {ATTEMPTS} of perf's own recordings")

    return nth


def _recorded(folder: Path, calls: Path, pid: int, counts: dict[str, Counts]) -> Recorded:
    import_trace(calls, folder / "calls.mmt")
    trace = Trace.open(folder / "calls.mmt")
    rows = trace.collect(trace.operations.with_row_index("row"))
    marks = rows.filter(
        (pl.col("kind") == int(OpKind.MADVISE)) & (pl.col("flags") >= 1000) & (pl.col("pid") == pid)
    )
    at = dict(zip(marks["flags"].to_list(), marks["row"].to_list(), strict=True))
    spans = {
        name: (at[1000 + 2 * i] + 1, at[1001 + 2 * i])
        for i, name in enumerate(other_operations.PHASES)
    }
    space = rows.filter(pl.col("pid") == pid)["address_space"][0]
    own = rows["address_space"].to_numpy() == space
    return Recorded(trace, counts, spans, own)


def replayed(recorded: Recorded, phase: str) -> Counts:
    model, _ = resolve_kernel(platform.release())
    plan = build_plan(recorded.trace, load_rules(model.vma_rules), window=recorded.rows[phase]).plan
    part = select(plan, recorded.own[plan.row])
    result = simulate(part, model, load_machine("generic-server"), Options(cores=2))
    lock = next(lock for lock in result.locks if lock.name == "mmap_lock")
    forks = int(np.count_nonzero(part.op == PlanOp.FORK))
    return lock.read, lock.write - forks * _child_locks(model), lock.downgrade


def equal(found: Counts, counted: Counts, phase: str) -> bool:
    """Exactly; but the last thread is joined before it is through with exit_mm, so that its
    read may come in the next phase."""
    late = phase in ("threads", AFTER_THREADS)
    return abs(found[0] - counted[0]) <= late and found[1:] == counted[1:]


@pytest.mark.parametrize("phase", other_operations.PHASES)
def test_replayed_locks_equal_recorded_ones(
    recordings: Callable[[int], Recorded], phase: str
) -> None:
    seen = []
    for attempt in range(ATTEMPTS):
        recorded = recordings(attempt)
        seen.append((replayed(recorded, phase), recorded.counts[phase]))
        if equal(*seen[-1], phase):
            return
    pytest.fail(f"replayed and recorded: {seen}")
