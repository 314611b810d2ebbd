"""Replay the scenarios of benchmarks/measure_contention.py and compare the latencies.

    PYTHONPATH=replay python benchmarks/check_contention.py NAME [--model linux-6.18]

Each row is written as a trace (set-up, a thread that holds mmap_lock, a thread that probes),
planned and replayed on two cores with the profile models/machines/NAME.toml; medians of the
probe's operations stand beside those in datasets/runs/NAME/contention.json.  Prints both,
their ratio, and the rank correlation over all rows.  Operations that queue are compared
after pauses, those that never do in bursts: the holder sweeps the caches, which the engine
does not know.  Then the same for the rows of datasets/published/contention-6.18.csv.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmreplay.address_space.plan import Plan, PlanOp
from mmreplay.address_space.planner import build_plan
from mmreplay.address_space.rules import load_rules
from mmreplay.engine import Options, simulate
from mmreplay.engine.summary import bucket_floor_ns
from mmreplay.locking import load_model
from mmreplay.locking.model import LockingModel
from mmreplay.machine import Machine, load_machine
from mmreplay.schema import OpKind, ProcFile
from mmreplay.workloads.tape import (
    PROT_NONE,
    PROT_READ,
    READ_WRITE,
    Tape,
)

ROOT = Path(__file__).resolve().parent.parent
PG = 4096
HELD = 128 << 20
BURST = 16
PAUSE_NS = {"mprotect": 8_000_000, "populate": 60_000_000}
_DONTNEED, _POPULATE_WRITE = 4, 23
#: Probe operations of one replay.
LENGTH = {"burst": 512, "paused": 256}
#: With a guard each, and the rest: 83 VMAs, the lines of 4 KiB of /proc/PID/maps.
_MAPPINGS = 36

Step = Callable[[int], None]


@dataclass(frozen=True)
class Row:
    """A probe: lays its ground, gives the i-th operation; what the engine calls it."""

    lay: Callable[[Tape, int], Step]
    op: PlanOp
    then: PlanOp | None = None  # the second half of a pair
    merging: bool = False


def _fresh(kernel: bool = False, write: bool = True) -> Callable[[Tape, int], Step]:
    def lay(t: Tape, held: int) -> Step:
        p = t.isolated((1 << 14) * PG)
        t.write(p + ((1 << 14) - 1) * PG)
        return lambda i: t.fault(p + i * PG, write, kernel=kernel)

    return lay


def _first_write(t: Tape, held: int) -> Step:
    n = LENGTH["burst"]
    r = t.reserve(2 * (n + 1) * PG)
    for i in range(n):
        t.mmap(PG, at=r + (2 * i + 1) * PG)
    return lambda i: t.write(r + (2 * (i % n) + 1) * PG)


def _dontneed_one(t: Tape, held: int) -> Step:
    p = t.isolated(LENGTH["burst"] * PG)
    t.write(p)

    def step(i: int) -> None:
        t.write(p + i * PG)
        t.madvise(p + i * PG, PG, _DONTNEED)

    return step


def _dontneed_two(t: Tape, held: int) -> Step:
    p = t.isolated(4 * PG)
    t.mprotect(p + 2 * PG, 2 * PG, PROT_READ)
    return lambda i: t.madvise(p + PG, 2 * PG, _DONTNEED)


def _populate(t: Tape, held: int) -> Step:
    p = t.isolated(LENGTH["burst"] * PG)
    t.write(p)
    return lambda i: t.madvise(p + i * PG, PG, _POPULATE_WRITE)


def _remote(t: Tape, held: int) -> Step:
    p = t.isolated(LENGTH["burst"] * PG)
    t.touch(p, LENGTH["burst"])
    return lambda i: t.range_op(OpKind.PROCESS_VM, p + i * PG, 8, result=8)


def _pair(t: Tape, held: int) -> Step:
    def step(i: int) -> None:
        p = t.mmap(65536, PROT_READ)
        t.munmap(p, 65536)

    return step


def _proc(file: ProcFile) -> Callable[[Tape, int], Step]:
    def lay(t: Tape, held: int) -> Step:
        return lambda i: t.op(OpKind.PROC_READ, flags=int(file), length=65536, result=4000)

    return lay


ROWS = {
    "fault": Row(_fresh(), PlanOp.FAULT),
    "zero_page_read": Row(_fresh(write=False), PlanOp.FAULT),
    "first_write_in_vma": Row(_first_write, PlanOp.FAULT),
    "read_into_untouched": Row(_fresh(kernel=True), PlanOp.FAULT),
    "dontneed_one_vma": Row(_dontneed_one, PlanOp.MADVISE_ZAP),
    "dontneed_two_vmas": Row(_dontneed_two, PlanOp.MADVISE_ZAP),
    "populate_write": Row(_populate, PlanOp.MADVISE_POPULATE),
    "process_vm_readv": Row(_remote, PlanOp.REMOTE_ACCESS),
    "mmap_munmap": Row(_pair, PlanOp.MMAP, PlanOp.MUNMAP),
    "proc_maps": Row(_proc(ProcFile.MAPS), PlanOp.PROC_MAPS),
    "fault_in_merging_vma": Row(
        lambda t, held: lambda i: t.write(held + HELD + i * PG), PlanOp.FAULT, merging=True
    ),
}
#: Rows of the measurement that are no operation of the memory map: no recording has them.
NOT_RECORDED = ("read_into_resident", "futex_wake")


def plan(name: str, holder: str, paused: bool, rules: str) -> Plan:
    """The plan of one row.  Thread 0 holds and goes round for ever, thread 1 probes."""
    row = ROWS[name]
    t = Tape()
    for _ in range(_MAPPINGS):
        t.isolated(PG)
    held = t.isolated(HELD + (LENGTH["burst"] + 64) * PG)
    t.madvise(held, HELD, _POPULATE_WRITE)
    if not row.merging:
        t.mprotect(held + HELD, 32 * PG, PROT_NONE)
    step = row.lay(t, held)
    warm = t.isolated((LENGTH["paused"] + 1) * PG)
    t.write(warm + LENGTH["paused"] * PG)
    t.fork(OpKind.CLONE, 2)
    first = len(t.rows)
    n = LENGTH["paused" if paused else "burst"]
    rng = np.random.default_rng(1)
    pauses = rng.integers(0, PAUSE_NS[holder], n)
    if not paused:
        pauses[np.arange(n) % BURST > 0] = 0

    def hold(call: Callable[[], None]) -> None:
        t.switch(1)
        begin = len(t.rows)
        call()
        _think(t, begin, 10)

    if holder == "mprotect":
        hold(lambda: t.mprotect(held, HELD, PROT_READ))
    else:
        hold(lambda: t.madvise(held, HELD, _DONTNEED))
        hold(lambda: t.madvise(held, HELD, _POPULATE_WRITE))
    t.switch(2)
    for i in range(n):
        begin = len(t.rows)
        if paused and row.op == PlanOp.FAULT:
            t.madvise(warm, PG, _DONTNEED)
        elif paused:
            t.write(warm + i * PG)
        step(i)
        _think(t, begin, 100)
        t.rows[begin]["think_cpu_ns"] = int(pauses[i]) + 100
    if holder == "mprotect":
        hold(lambda: t.mprotect(held, HELD, READ_WRITE))
    for thread, group in ((1, "holder"), (2, "probe")):
        t.threads[thread]["group"] = group
    bundle = build_plan(t.trace(), load_rules(rules), window=(first, len(t.rows)))
    made = bundle.plan
    loop = np.full(made.n_threads, -1, np.int64)
    loop[0] = made.thread_first[0]
    made = made._replace(thread_loop=loop)
    return made._replace(thread_group=np.arange(made.n_threads, dtype=np.int32))


def _think(t: Tape, begin: int, ns: int) -> None:
    for row in t.rows[begin:]:
        row["think_cpu_ns"] = ns
        row["think_blocked_ns"] = 0


def median_ns(delays: NDArray[np.int64], without: int = 0) -> float:
    """Median of a histogram of delays; the ``without`` longest are left out."""
    total = int(delays.sum()) - without
    bucket = int(np.searchsorted(np.cumsum(delays), (total + 1) // 2))
    low, high = bucket_floor_ns(bucket), bucket_floor_ns(bucket + 1)
    return (low + high) / 2


def replayed(name: str, holder: str, paused: bool, machine: Machine, model: str) -> float:
    """Median latency of a row, ns; of a pair, the sum of two medians."""
    loaded = load_model(model)
    made = plan(name, holder, paused, loaded.vma_rules)
    return _probe_median_ns(name, made, loaded, machine, wrap=True)


def _probe_median_ns(
    name: str, made: Plan, model: LockingModel, machine: Machine, wrap: bool
) -> float:
    probe = made.n_threads - 1
    result = simulate(made, model, machine, Options(cores=2, wrap=wrap, group=probe))
    row = ROWS[name]
    first, end = made.thread_first[probe], made.thread_first[probe + 1]
    total = 0.0
    for op in (row.op, row.then):
        if op is not None:
            mine = int((made.op[first:end] == op).sum())
            # The holder's own calls of the same kind take milliseconds: they are the longest.
            total += median_ns(result.op_delay[op], int(result.op_count[op]) - mine)
    return total


def rank_correlation(found: dict[Any, tuple[float, float]]) -> float:
    """Spearman's; ties share their mean rank."""
    want, got = (pl.Series([pair[k] for pair in found.values()]).rank() for k in (0, 1))
    return float(np.corrcoef(want, got)[0, 1])


def measured(name: str) -> dict[str, Any]:
    path = ROOT / "datasets" / "runs" / name / "contention.json"
    summary: dict[str, Any] = json.loads(path.read_text())["summary"]
    return summary


#: Operations that take mmap_lock in neither mode: they never queue.
UNLOCKED = ("fault", "zero_page_read", "dontneed_one_vma", "proc_maps")


def pacing_of(row: str, holder: str) -> str:
    """What queues comes after pauses; what does not comes in bursts."""
    if holder == "populate":
        return "paused" if row == "mmap_munmap" else "burst"
    return "burst" if row in UNLOCKED else "paused"


def compare(name: str, model: str = "linux-6.18") -> dict[tuple[str, str], tuple[float, float]]:
    """(holder, row) → (measured, replayed), ns."""
    machine = load_machine(name)
    cells = measured(name)
    out = {}
    for holder in PAUSE_NS:
        for row in ROWS:
            pacing = pacing_of(row, holder)
            got = replayed(row, holder, pacing == "paused", machine, model)
            out[holder, row] = (cells[holder][pacing][row]["p50_ns"], got)
    return out


#: datasets/published/contention-6.18.csv: one hold of the mprotect there, ns.
PUBLISHED_HOLD_NS = 5_000_000
#: Rows there whose p50 is near idle and whose p90 lies above a hold: taken back to back.
BACK_TO_BACK = ("dontneed_two_vmas", "populate_write")
#: The cost that sets an operation of the publication apart from the others.
OWN_COST = {
    "dontneed_two_vmas": "madvise_common",
    "populate_write": "gup",
    "process_vm_readv": "remote_copy",
    "proc_maps": "proc_line",
}


def alone(name: str, machine: Machine, model: str) -> float:
    """Median latency of a row with an idle holder, ns."""
    loaded = load_model(model)
    made = plan(name, "mprotect", False, loaded.vma_rules)
    think = made.think_cpu_ns.copy()
    think[: made.thread_first[1]] = 0
    blocked = made.think_blocked_ns.copy()
    blocked[: made.thread_first[1]] = 10**15
    made = made._replace(think_cpu_ns=think, think_blocked_ns=blocked)
    return _probe_median_ns(name, made, loaded, machine, wrap=False)


def published_machine(published: pl.DataFrame, base: str, model: str) -> Machine:
    """The publication's machine, from its idle column and its hold; no contended row is used.

    All costs of the machine of the same kind times the median ratio of the idle rows, then the
    cost of OWN_COST so that the idle row is met, and that of a page in mprotect from the hold.
    """
    machine = load_machine(base)
    idle = {
        row["operation"]: 1000 * row["idle_p50_us"]
        for row in published.iter_rows(named=True)
        if row["operation"] in ROWS
    }
    times = float(np.median([ns / alone(row, machine, model) for row, ns in idle.items()]))
    costs = {k: replace(c, value=c.value * times) for k, c in machine.costs.items()}
    costs["rewrite"] = replace(costs["rewrite"], value=PUBLISHED_HOLD_NS * PG / HELD)
    machine = replace(machine, costs=costs)
    for row, cost in OWN_COST.items():
        units = 83 if row == "proc_maps" else 1  # lines of a read
        more = (idle[row] - alone(row, machine, model)) / units
        own = replace(costs[cost], value=max(1.0, costs[cost].value + more))
        costs = {**costs, cost: own}
    return replace(machine, costs=costs)


def compare_published(
    name: str = "epyc-guest-2cpu", model: str = "linux-6.18"
) -> dict[tuple[str, str], tuple[float, float]]:
    """(holder, row) → (published, replayed), ns, with ``published_machine``."""
    rows = pl.read_csv(ROOT / "datasets" / "published" / "contention-6.18.csv")
    machine = published_machine(rows, name, model)
    out = {}
    for row in rows.iter_rows(named=True):
        what, holder = row["operation"], row["holder"]
        if what in ROWS:
            paused = what not in UNLOCKED and what not in BACK_TO_BACK
            got = replayed(what, holder, paused, machine, model)
            out[holder, what] = (1000 * row["contended_p50_us"], got)
    return out


def show(found: dict[tuple[str, str], tuple[float, float]]) -> None:
    for (holder, row), (want, got) in found.items():
        print(
            f"{holder:9} {row:22} measured {want / 1e3:10.2f}  replayed {got / 1e3:10.2f}"
            f"  ratio {got / want:.2f}"
        )
    print(f"rank correlation {rank_correlation(found):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("--model", default="linux-6.18")
    options = parser.parse_args()
    show(compare(options.name, options.model))
    print("published rows")
    show(compare_published(model=options.model))


if __name__ == "__main__":
    main()
