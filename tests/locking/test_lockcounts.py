"""The models take the locks that real kernels took: counts of ``datasets/lockcounts``.

Each phase of the measurement is written down as a trace, planned, and replayed; its
acquisitions of mmap_lock (read, write, downgrade) and, where they could be observed,
of VMA locks (read, marks) must equal the counts exactly.  A phase's own counts are
those of everything up to its end less those of everything before it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import Any

import pytest

from mmreplay.address_space.planner import build_plan
from mmreplay.address_space.rules import load_rules
from mmreplay.engine import Options, simulate
from mmreplay.locking import load_model
from mmreplay.machine.loader import load_machine
from mmreplay.resources import datasets_dir
from mmreplay.workloads.phases import GROUPS, NOT_EXPRESSIBLE, Phase, record

#: counts file, kernel in it, model, root file system on a disk
KERNELS = (
    ("lockcounts.csv", "6.1.192", "linux-6.1", False),
    ("lockcounts.csv", "6.18.15", "linux-6.18", False),
    ("guest-6.18.44.csv", "6.18.44", "linux-6.18", True),
)
COLUMNS = (
    "mmap_lock_read",
    "mmap_lock_write",
    "write_downgrade",
    "vma_lock_ok",
    "vma_start_write_slow",
)
#: Phases in which a thread's exit may leak over an edge of the counting window: ±1.
THREADS = re.compile("thread|vfork")
#: Columns in which the counts hold what a child's own image did, not these operations.
OF_THE_CHILD = {"vfork_exec_wait": {"vma_lock_ok", "vma_start_write_slow"}}
#: Phases whose counts of one kernel differ from those of the same release's neighbour.
DIFFERS = {
    # the read(2) that finds the end took the lock in 6.18.15 and no more in 6.18.44
    # (fs/proc/task_mmu.c:m_start); a plan does not tell that read from the others
    "6.18.44": {"proc_smaps_small", "proc_numa_maps_small", "proc_smaps_2000vmas"},
}

Counts = dict[str, int]


def counts_of(file: str, kernel: str) -> dict[str, dict[str, str]]:
    with (datasets_dir("lockcounts") / file).open() as stream:
        return {r["phase"]: r for r in csv.DictReader(stream) if r["kernel"] == kernel}


def supported(row: dict[str, str]) -> bool:
    """Rows of calls that the kernel refused count nothing."""
    return "unsupported" not in row["notes"]


def replayed(phase: Phase, end: int, model: str) -> Counts:
    if end == 0:
        return dict.fromkeys(COLUMNS, 0)
    loaded = load_model(model)
    plan = build_plan(phase.trace, load_rules(loaded.vma_rules), window=(0, end)).plan
    result = simulate(plan, loaded, load_machine("generic-server"), Options(cores=2))
    locks = {lock.name: lock for lock in result.locks}
    mmap, vma = locks["mmap_lock"], locks.get("vma_lock")
    return {
        "mmap_lock_read": mmap.read,
        "mmap_lock_write": mmap.write,
        "write_downgrade": mmap.downgrade,
        "vma_lock_ok": vma.read if vma else 0,
        "vma_start_write_slow": vma.mark if vma else 0,
    }


def cases() -> Iterator[Any]:
    for file, kernel, model, disk in KERNELS:
        for group in GROUPS:
            yield pytest.param(file, kernel, model, disk, group, id=f"{kernel}-{group}")


@pytest.mark.parametrize(("file", "kernel", "model", "disk", "group"), list(cases()))
def test_counts_equal_the_kernels(
    file: str, kernel: str, model: str, disk: bool, group: str
) -> None:
    counted = counts_of(file, kernel)
    faults = {
        name: int(row["faults_user"])
        for name, row in counted.items()
        if name.startswith("file_") and int(row["faults_user"])
    }
    reads = {
        name: round(float(found.group(1)))
        for name, row in counted.items()
        if (found := re.search(r"read\(\) calls/op=([\d.]+)", row["notes"]))
    }
    wrong = {}
    known: dict[int, Counts] = {}
    for name, phase in record(group, faults, reads, disk).items():
        if name not in counted or name in NOT_EXPRESSIBLE or not supported(counted[name]):
            continue
        if name in DIFFERS.get(kernel, ()):
            continue
        for end in (phase.first, phase.end):
            known[end] = known.get(end) or replayed(phase, end, model)
        for column in COLUMNS:
            if counted[name][column] == "" or column in OF_THE_CHILD.get(name, ()):
                continue
            got = known[phase.end][column] - known[phase.first][column]
            want = int(counted[name][column])
            if abs(got - want) > (1 if THREADS.search(name) else 0):
                wrong[name, column] = (got, want)
    assert not wrong


@pytest.mark.parametrize(("file", "kernel", "model", "disk"), KERNELS)
def test_every_counted_phase_is_compared_or_has_a_reason(
    file: str, kernel: str, model: str, disk: bool
) -> None:
    written = {name for group in GROUPS for name in record(group)}
    counted = {name for name in counts_of(file, kernel) if ":" not in name}
    assert counted <= written | set(NOT_EXPRESSIBLE)
