"""Latency of single operations beside a thread that holds mmap_lock for long.

    python benchmarks/measure_contention.py NAME [--rounds 3] [--seconds 0.7]

One thread, on one CPU, loops mprotect over 128 MiB (the lock is held for writing), or
DONTNEED and MADV_POPULATE_WRITE of 128 MiB (held for reading); another, on another CPU,
times one kind of operation in VMAs of its own.  Pacing "paused": each operation comes after a
random pause, 0 to 8 ms beside mprotect and 0 to 60 ms beside populate (a few holds and one),
and after untimed operations that never take mmap_lock (two page faults and a MADV_DONTNEED
of nothing, by the VMA lock; of /proc, the same read), so that it finds warm caches and the
interrupts of the pause behind it.  Pacing "burst": 16 operations follow each other at once
after such a pause.  An operation on /proc is one read(2) from the file's start; the listing
does not reach the VMA that is being changed, nor does the probe's memory border on it, except
in "fault_in_merging_vma".

The two threads run under SCHED_FIFO: other work on the machine would otherwise set
need_resched at every tick and end the optimistic spinning of waiting writers (measured
beside three busy processes: munmap beside mprotect 12 ms instead of 2.4).  What depends on
their priority is left out: smaps_rollup, which gives the lock up where a writer waits; and of
"burst", everything that queues.  Not here either: faults on files (how much one of them maps
is the page cache's business).

Writes datasets/runs/NAME/contention.parquet (one row per operation kind, holder, pacing and
round: samples, p50, p90, largest) and contention.json (medians over the rounds, and what the
machine was).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

import contention_loops as cl
import hardware_loops as hw
from measure_machine import PAGE, ROOT, facts, region, together

HELD = 128 << 20
#: Operations of a window at most, and pages that a probe may use up.
MOST = 4096
HOLDERS = {"mprotect": cl.PROTECT, "populate": cl.FILL_ALL}
PACINGS = ("burst", "paused")
BURST = 16
PAUSE_NS = {"": 1_000_000, "mprotect": 8_000_000, "populate": 60_000_000}


@dataclass
class Ground:
    """Where an operation works: first address, distance, descriptor, what to unmap."""

    base: int
    step: int = 0
    fd: int = -1
    unmap: tuple[tuple[int, int], ...] = ()


def small_vmas(n: int, hint: int = 0) -> Ground:
    """n VMAs of one page that nothing was written to."""
    base = hw.call(hw.MMAP, hint, 2 * n * PAGE, 0, hw.PRIVATE_ANON, -1, 0)
    for i in range(n):
        hw.call(hw.MPROTECT, base + 2 * i * PAGE, PAGE, hw.RW)
    return Ground(base, 2 * PAGE, unmap=((base, 2 * n * PAGE),))


def fresh(pages: int, fd: int = -1) -> Ground:
    base = region(pages)
    return Ground(base, PAGE, fd, ((base, (pages + 1) * PAGE),))


def two_vmas() -> Ground:
    base = hw.mmap(4 * PAGE, hw.RW)
    hw.call(hw.MPROTECT, base + 2 * PAGE, 2 * PAGE, hw.R)
    return Ground(base + PAGE, 0, unmap=((base, 4 * PAGE),))


def touched(pages: int, fd: int = -1) -> Ground:
    ground = fresh(pages, fd)
    hw.touch(ground.base, pages, PAGE)
    return ground


def buffer(fd: int) -> Ground:
    ground = touched(16, fd)
    ground.step = 0
    return ground


class Operations:
    """What is timed: name -> (kind, how its ground is laid)."""

    def __init__(self) -> None:
        zero = os.open("/dev/zero", os.O_RDONLY)
        maps = os.open("/proc/self/maps", os.O_RDONLY)

        def listed() -> Ground:
            """A listing that begins with 4 KiB of VMAs that nothing happens to."""
            small = small_vmas(64, hint=1 << 28)
            ground = buffer(maps)
            ground.unmap += small.unmap
            return ground

        self.table = {
            "fault": (cl.FAULT, lambda: fresh(MOST)),
            "zero_page_read": (cl.ZERO_PAGE, lambda: fresh(MOST)),
            "first_write_in_vma": (cl.FIRST_WRITE, lambda: small_vmas(MOST)),
            "read_into_untouched": (cl.READ_FRESH, lambda: fresh(MOST, zero)),
            "read_into_resident": (cl.READ_RESIDENT, lambda: buffer(zero)),
            "dontneed_one_vma": (cl.DONTNEED_ONE, lambda: fresh(MOST)),
            "dontneed_two_vmas": (cl.DONTNEED_TWO, two_vmas),
            "populate_write": (cl.FILL, lambda: fresh(MOST)),
            "process_vm_readv": (cl.VM_READ, lambda: touched(MOST, os.getpid())),
            "mmap_munmap": (cl.PAIR, lambda: Ground(0)),
            "proc_maps": (cl.PROC_READ, listed),
            "fault_in_merging_vma": (cl.FAULT, lambda: Ground(0, PAGE)),
            "futex_wake": (cl.WAKE, lambda: buffer(-1)),
        }


def window(
    name: str,
    holder: str,
    paused: bool,
    seconds: float,
    cpus: list[int],
    operations: Operations,
    rng: np.random.Generator,
    held: int,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Latencies, ns, by name, and those of the holder's calls; holder "": none."""
    kind, lay = operations.table[name]
    hw.call(hw.MADVISE, held + HELD, (MOST + 64) * PAGE, hw.DONTNEED)
    hw.touch(held, HELD // PAGE, PAGE)
    guard = hw.call(hw.MPROTECT, held + HELD, 32 * PAGE, 0)
    ground = lay()
    if name == "fault_in_merging_vma":
        guard = hw.call(hw.MPROTECT, held + HELD, 32 * PAGE, hw.RW)
        ground.base = held + HELD
    assert guard == 0
    scratch = fresh(3 * MOST)
    pauses = rng.integers(0, PAUSE_NS[holder], MOST)
    if not paused:
        pauses[np.arange(MOST) % BURST > 0] = 0
    out, first = np.zeros(MOST, np.int64), np.zeros(MOST, np.int64)
    calls = np.zeros(4096, np.int64)
    local = touched(1)
    vector = np.array([local.base, 8, 0, 8], np.int64)

    def timed(control: int) -> int:
        n = cl.probe(
            kind,
            control,
            ground.base,
            ground.step,
            ground.fd,
            vector.ctypes.data,
            int(seconds * 1e9),
            pauses,
            scratch.base if paused else 0,
            out,
            first,
        )
        hw.store_flag(control + 64)
        return int(n)

    def alone(job: Callable[[int], int]) -> Callable[[int], int]:
        def first_in_first_out(control: int) -> int:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            return job(control)

        return first_in_first_out

    jobs = [(cpus[1], alone(timed))]
    if holder:
        hold = HOLDERS[holder]
        jobs.append((cpus[0], alone(lambda c: int(cl.hold(hold, c, held, HELD, calls)))))
    results = together(0, jobs)
    for base, length in (*ground.unmap, *local.unmap, *scratch.unmap):
        hw.call(hw.MUNMAP, base, length)
    held_n = results[1] if holder else 0
    n: int = results[0]  # type: ignore[assignment]
    found = {name: out[:n]}
    if kind == cl.PAIR:
        found |= {"mmap": first[:n], "munmap": (out - first)[:n]}
    return found, calls[: min(held_n, len(calls))]  # type: ignore[type-var]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--cpus", default="0,1")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    cpus = [int(c) for c in options.cpus.split(",")]
    if len(cpus) < 2 or not set(cpus) <= os.sched_getaffinity(0):
        sys.exit(f"two CPUs out of {sorted(os.sched_getaffinity(0))} are needed")
    # Above the two: it must be able to start and stop them.
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))
    # One mapping, made first and so the highest: the second part is a VMA of its own while
    # the first is read-only.
    held = hw.mmap(HELD + (MOST + 64) * PAGE)
    hw.call(hw.MADVISE, held, HELD + (MOST + 64) * PAGE, hw.NOHUGEPAGE)
    rng = np.random.default_rng(1)
    rows: list[tuple[str, str, str, int, int, float, float, float, float]] = []
    operations = Operations()
    names = [n for n in operations.table if not options.only or n in options.only.split(",")]
    window(names[0], "mprotect", False, 0.05, cpus, operations, rng, held)  # compiles
    for round_ in range(options.rounds):
        for name in names:
            for holder, paused in itertools.product(("", *HOLDERS), (False, True)):
                # A hold beside populate lasts some ten times as long.
                share = {"": 0.2, "mprotect": 1.0, "populate": 2.5}[holder]
                if not paused:
                    share /= 2
                limit = options.seconds * share
                found, calls = window(name, holder, paused, limit, cpus, operations, rng, held)
                lasted = float(np.median(calls)) if len(calls) else 0.0
                for what, got in found.items():
                    p50, p90 = np.quantile(got, (0.5, 0.9))
                    where = (what, holder or "idle", PACINGS[paused], round_, len(got))
                    rows.append((*where, float(p50), float(p90), float(got.max()), lasted))
        print(f"round {round_ + 1} of {options.rounds}", file=sys.stderr)
    vmas = len(Path("/proc/self/maps").read_text().splitlines())
    frame = pl.DataFrame(
        rows,
        schema=[
            "operation",
            "holder",
            "pacing",
            "round",
            "samples",
            "p50_ns",
            "p90_ns",
            "max_ns",
            "holder_call_ns",
        ],
        orient="row",
    )
    target = ROOT / "datasets" / "runs" / options.name
    target.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(target / "contention.parquet")
    summary: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for (name, holder, pacing), group in frame.group_by(
        "operation", "holder", "pacing", maintain_order=True
    ):
        cell = {
            key: round(statistics.median(group[key].to_list()), 1)
            for key in ("p50_ns", "p90_ns", "max_ns", "holder_call_ns", "samples")
        }
        spread = group["p50_ns"].quantile([0.25, 0.75])
        cell["p50_q1_ns"], cell["p50_q3_ns"] = (round(v, 1) for v in spread)
        summary.setdefault(str(holder), {}).setdefault(str(pacing), {})[str(name)] = cell
    document = {
        "schema": 1,
        "machine": facts(cpus),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "held_bytes": HELD,
        "pause_ns": {holder or "idle": [0, most] for holder, most in PAUSE_NS.items()},
        "burst": BURST,
        "vmas": vmas,
        "summary": summary,
    }
    (target / "contention.json").write_text(json.dumps(document, indent=1) + "\n")
    for holder, pacings in summary.items():
        for pacing, cells in pacings.items():
            for name, cell in cells.items():
                print(
                    f"{holder:9} {pacing:13} {name:22} n {cell['samples']:7.0f} p50"
                    f" {cell['p50_ns'] / 1e3:10.2f} ({cell['p50_q1_ns'] / 1e3:.2f}-"
                    f"{cell['p50_q3_ns'] / 1e3:.2f}) p90 {cell['p90_ns'] / 1e3:10.2f} us"
                    f"  hold {cell['holder_call_ns'] / 1e3:.0f}"
                )


if __name__ == "__main__":
    main()
