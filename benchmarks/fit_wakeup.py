"""Fit what a measurement cannot give directly: the costs of waking and sleeping on an rwsem.

    python benchmarks/fit_wakeup.py NAME [--write]

Simulates the contention table of benchmarks/measure_machine.py (faulters and mappers,
alone, two of each, and mixed, by the per-VMA path and by the mmap_lock path) through the
engine with the profile models/machines/NAME.toml, searches ``waker_ns``, ``woken_ns`` and
``sleep_ns`` on a grid for the smallest worst ratio to the measured medians, and prints both
tables.  The search stays within what futex wake-ups of the same run allow: between the lowest
decile after 20 us of sleep and the high quartile after 200 us.  ``--write`` puts the
found values into the profile, basis *fitted*.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from mmreplay.address_space.plan import SCALE_ONE, MarkSet, Plan, PlanOp, Trait
from mmreplay.engine import Options, simulate
from mmreplay.locking import load_model
from mmreplay.machine import Machine, load_machine
from mmreplay.machine.profile import Number

ROOT = Path(__file__).resolve().parent.parent
CASES = (
    "touch",
    "touch+touch",
    "fill",
    "fill+fill",
    "map",
    "map+map",
    "touch+map",
    "fill+map",
)
#: Operations of a faulter (and pairs of a mapper) before it starts again.
LENGTH = 8_192
TABLE_PAGES = 512


@lru_cache
def plan(case: str) -> Plan:
    """The program of one row of the table, as measure_machine.py runs it.

    Thread k works in VMA k (a mapper creates and removes VMA k), each faulter on fresh
    page tables.
    """
    roles = case.split("+")
    ops: dict[str, list[int]] = {
        k: [] for k in ("op", "traits", "pages", "vma", "anon", "table", "page")
    }
    marks: list[list[tuple[int, int]]] = []
    first = [0]
    tables = 0
    for k, role in enumerate(roles):
        for i in range(LENGTH):
            if role == "map":
                rows = (
                    (PlanOp.MMAP, 0, [(MarkSet.CREATED, k)]),
                    (PlanOp.MUNMAP, 0, [(MarkSet.REMOVED, k)]),
                )
            else:
                kind = PlanOp.FAULT if role == "touch" else PlanOp.MADVISE_POPULATE
                missing = Trait.TABLE_MISSING if i % TABLE_PAGES == 0 else 0
                tables += i % TABLE_PAGES == 0
                rows = ((kind, Trait.WRITE | Trait.ANON | Trait.NEEDS_ANON_VMA | missing, []),)
            for op, traits, marked in rows:
                ops["op"].append(op)
                ops["traits"].append(traits)
                ops["pages"].append(int(role != "map"))
                ops["vma"].append(k)
                ops["anon"].append(k)
                ops["table"].append(tables - 1 if role != "map" else -1)
                ops["page"].append((k + 1) << 30 | i)
                marks.append(marked)
        first.append(len(ops["op"]))
    n, threads = len(ops["op"]), len(roles)
    i32, i64 = np.int32, np.int64
    return Plan(
        thread_first=np.array(first, i64),
        thread_offset_ns=np.zeros(threads, i64),
        thread_group=np.arange(threads, dtype=i32),
        thread_loop=np.array(first[:-1], i64),
        thread_tail_cpu_ns=np.zeros(threads, i64),
        thread_tail_blocked_ns=np.zeros(threads, i64),
        op=np.array(ops["op"], np.uint8),
        mm=np.zeros(n, i32),
        child_mm=np.full(n, -1, i32),
        traits=np.array(ops["traits"], np.uint64),
        think_cpu_ns=np.full(n, 10, i64),  # the loop around the operation
        think_blocked_ns=np.zeros(n, i64),
        sleep_ns=np.full(n, -1, i64),
        pages=np.array(ops["pages"], i32),
        vmas=np.ones(n, i32),
        tables=np.ones(n, i32),
        vma=np.array(ops["vma"], i32),
        anon_slot=np.array(ops["anon"], i32),
        table=np.array(ops["table"], i32),
        file=np.full(n, -1, i32),
        first_page=np.array(ops["page"], i64),
        last_page=np.array(ops["page"], i64),
        vma_first_page=np.full(n, -1, i64),
        vma_last_page=np.full(n, -1, i64),
        scale=np.full(n, SCALE_ONE, i32),
        row=np.full(n, -1, i64),
        mark_first=np.cumsum([0] + [len(m) for m in marks]).astype(i64),
        mark_vma=np.array([v for m in marks for _, v in m], i32),
        mark_set=np.array([s for m in marks for s, _ in m], np.uint8),
        dep_first=np.zeros(n + 1, i64),
        dep_op=np.zeros(0, i64),
        vma_mm=np.zeros(threads, i32),
        anon_initial=np.ones(threads, np.uint8),
        table_initial=np.zeros(max(tables, 1), np.uint8),
        mm_users=np.array([threads], i32),
        n_files=0,
    )


def simulated(machine: Machine, case: str, seed: int = 1) -> dict[str, float]:
    """Operations per second by role, all threads of that role together."""
    cores = min(2, len(case.split("+")))
    result = simulate(
        plan(case),
        load_model("linux-6.18"),
        machine,
        Options(cores=cores, wrap=True, group=0, seed=seed),
    )
    seconds = result.makespan_ns / 1e9
    counts = {
        "touch": result.op_count[PlanOp.FAULT],
        "fill": result.op_count[PlanOp.MADVISE_POPULATE],
        "map": result.op_count[PlanOp.MMAP],
    }
    return {role: float(counts[role]) / seconds for role in dict.fromkeys(case.split("+"))}


def measured(name: str) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Case -> role -> (low quartile, median, high quartile) of operations per second."""
    run = json.loads((ROOT / "datasets" / "runs" / name / "machine.json").read_text())
    out: dict[str, dict[str, tuple[float, float, float]]] = {}
    for case in CASES:
        roles = case.split("+")
        out[case] = {}
        for role in dict.fromkeys(roles):
            rows = [
                run["summary"][f"table/{case}/{i}:{r}_per_s"]
                for i, r in enumerate(roles)
                if r == role
            ]
            q1, median, q3 = (sum(row[k] for row in rows) for k in ("q1", "median", "q3"))
            out[case][role] = (q1, median, q3)
    return out


def bounds(name: str) -> dict[str, tuple[float, float]]:
    """What futex wake-ups of the same run allow (falling asleep: 0.1 to 2 us)."""
    run = json.loads((ROOT / "datasets" / "runs" / name / "machine.json").read_text())
    row = run["summary"]
    call, woken = "futex_wake_call_{}us_ns", "futex_woken_{}us_ns"
    syscall = row["syscall_ns"]["q1"]
    return {
        "waker_ns": (
            row[call.format(20)]["q10"] - syscall,
            row[call.format(200)]["q3"] - syscall,
        ),
        "woken_ns": (row[woken.format(20)]["q10"], row[woken.format(200)]["q3"]),
        "sleep_ns": (100.0, 2000.0),
    }


def with_wake(machine: Machine, **values: float) -> Machine:
    """The machine with other wake-up costs."""
    return replace(
        machine,
        **{
            key: Number(value, "fitted", "benchmarks/fit_wakeup.py")
            for key, value in values.items()
        },
    )


def ratios(
    machine: Machine, target: dict[str, dict[str, tuple[float, float, float]]]
) -> dict[str, float]:
    """Simulated over measured median of every cell."""
    out = {}
    for case, cells in target.items():
        got = simulated(machine, case)
        for role, (_, median, _) in cells.items():
            out[f"{case} {role}"] = got[role] / median
    return out


def worst(found: dict[str, float]) -> float:
    return max(max(r, 1 / r) if r > 0 else math.inf for r in found.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    machine = load_machine(options.name)
    target = measured(options.name)
    # The one row where threads sleep on the lock (mappers among themselves spin).
    contended = {"fill+map": target["fill+map"]}
    limits = bounds(options.name)
    grid = list(
        itertools.product(
            np.linspace(*limits["waker_ns"], 5),
            np.linspace(*limits["woken_ns"], 5),
            (100, 300, 700, 1500),
        )
    )
    best: tuple[float, dict[str, float]] = (math.inf, {})
    for step in range(4):
        for waker, woken, sleep in grid:
            values = {
                key: float(round(np.clip(value, *limits[key])))
                for key, value in zip(limits, (waker, woken, sleep), strict=True)
            }
            score = worst(ratios(with_wake(machine, **values), contended))
            if score < best[0]:
                best = (score, values)
        print(f"pass {step}: worst ratio {best[0]:.3f} at {best[1]}")
        around = (1 - 0.25 / (step + 1), 1.0, 1 + 0.25 / (step + 1))
        grid = [
            tuple(round(v * f) for v, f in zip(best[1].values(), factors, strict=True))  # type: ignore[misc]
            for factors in itertools.product(around, repeat=3)
        ]
    fitted = with_wake(machine, **best[1])
    for cell, ratio in ratios(fitted, target).items():
        case, role = cell.split()
        q1, median, q3 = target[case][role]
        print(
            f"{cell:20} measured {median:9.0f} ({q1:.0f}-{q3:.0f}) simulated/measured {ratio:.2f}"
        )
    if options.write:
        path = machine.path
        text = path.read_text()
        source = "benchmarks/fit_wakeup.py: the contention table through the engine"
        for key, value in best[1].items():
            entry = f'{key} = {{ value = {value}, basis = "fitted", source = "{source}" }}'
            text = re.sub(rf"^{key} = .*$", entry, text, flags=re.MULTILINE)
        path.write_text(text)


if __name__ == "__main__":
    main()
