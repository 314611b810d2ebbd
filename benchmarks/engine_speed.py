"""Speed of the compiled engine on the named plans; prints million operations per second.

Each thread faults page by page in its own VMA; every fiftieth operation is an mmap
(2 %), which write-locks mmap_lock and marks the thread's own VMA (it grows by merging).

    python benchmarks/engine_speed.py [--threads 8,64,256] [--ops 1000000] [--models A,B]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "replay"))

from mmreplay.address_space.plan import SCALE_ONE, MarkSet, Plan, PlanOp, Trait
from mmreplay.engine import Options, Replay, simulate
from mmreplay.locking.loader import load_model
from mmreplay.machine.loader import load_machine
from mmreplay.machine.topology import extrapolated

PAGES_PER_TABLE = 512


def fault_plan(threads: int, ops: int, think_ns: int = 2000, mmap_every: int = 50) -> Plan:
    """``own-vma``: faults in the thread's own VMA, one mmap in ``mmap_every`` operations."""
    each = ops // threads
    n = each * threads
    nth = np.tile(np.arange(each), threads)
    owner = np.repeat(np.arange(threads), each)
    is_map = nth % mmap_every == mmap_every - 1
    tables_each = each // PAGES_PER_TABLE + 1
    table = owner * tables_each + nth // PAGES_PER_TABLE
    traits = np.full(n, int(Trait.ANON | Trait.WRITE | Trait.NEEDS_ANON_VMA), np.uint64)
    traits[nth % PAGES_PER_TABLE == 0] |= np.uint64(int(Trait.TABLE_MISSING))
    traits[is_map] = int(Trait.MERGES)
    mark_first = np.zeros(n + 1, np.int64)
    mark_first[1:] = np.cumsum(is_map)
    zeros, minus = np.zeros(threads, np.int64), np.full(n, -1, np.int32)
    return Plan(
        thread_first=np.arange(threads + 1, dtype=np.int64) * each,
        thread_offset_ns=np.arange(threads, dtype=np.int64) * 37,
        thread_group=np.zeros(threads, np.int32), thread_loop=np.full(threads, -1, np.int64),
        thread_tail_cpu_ns=zeros, thread_tail_blocked_ns=zeros,
        op=np.where(is_map, int(PlanOp.MMAP), int(PlanOp.FAULT)).astype(np.uint8),
        mm=np.zeros(n, np.int32), child_mm=minus, traits=traits,
        think_cpu_ns=np.full(n, think_ns, np.int64), think_blocked_ns=np.zeros(n, np.int64),
        sleep_ns=np.full(n, -1, np.int64), pages=np.ones(n, np.int32), vmas=np.ones(n, np.int32),
        tables=np.ones(n, np.int32), vma=owner.astype(np.int32), anon_slot=owner.astype(np.int32),
        table=table.astype(np.int32), file=minus, first_page=np.arange(n, dtype=np.int64),
        last_page=np.arange(n, dtype=np.int64), vma_first_page=np.full(n, -1, np.int64),
        vma_last_page=np.full(n, -1, np.int64), scale=np.full(n, SCALE_ONE, np.int32),
        row=np.full(n, -1, np.int64), mark_first=mark_first,
        mark_vma=owner[is_map].astype(np.int32),
        mark_set=np.full(int(is_map.sum()), int(MarkSet.NEIGHBOURS), np.uint8),
        dep_first=np.zeros(n + 1, np.int64), dep_op=np.zeros(0, np.int64),
        vma_mm=np.zeros(threads, np.int32), anon_initial=np.zeros(threads, np.uint8),
        table_initial=np.zeros(threads * tables_each, np.uint8),
        mm_users=np.array([threads], np.int32), n_files=0,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", default="8,64,256")
    parser.add_argument("--ops", type=int, default=1_000_000)
    parser.add_argument("--models", default="linux-6.1,linux-6.18")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    machine = extrapolated(load_machine("generic-server"), 256)
    began = time.perf_counter()
    for name in arguments.models.split(","):
        model = load_model(name)
        simulate(fault_plan(2, 200), model, machine, Options(cores=2))
        print(f"# {name} ready after {time.perf_counter() - began:.1f} s")
        for threads in (int(x) for x in arguments.threads.split(",")):
            plan = fault_plan(threads, arguments.ops)
            ready, runs = [], []
            for _ in range(arguments.repeat):
                before = time.thread_time()
                replay = Replay(plan, model)
                ready.append(time.thread_time() - before)
                runs.append(replay.run(machine, Options(cores=threads)))
            million = runs[0].ops / 1e6
            loop = median(r.detail["loop_cpu_s"] for r in runs)
            print(
                f"{name:12} {threads:4} threads: {million / loop:6.2f} M ops per CPU second in the"
                f" loop, {million / (loop + median(ready)):6.2f} with getting ready,"
                f" {sum(x.sleeps for x in runs[0].locks) / runs[0].ops:.2f} sleeps an operation"
            )


if __name__ == "__main__":
    main()
