"""Speed of the compiled engine on the named plans; prints million operations per second.

Each thread faults page by page in its own VMA; every fiftieth operation is an mmap
(2 %), which write-locks mmap_lock and marks the thread's own VMA (it grows by merging).

    python benchmarks/engine_speed.py [--threads 8,64,256] [--ops 1000000] [--model NAME]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / p) for p in ("replay", "tests/engine")]

import small  # noqa: E402

from mmreplay.address_space.plan import SCALE_ONE, MarkSet, Plan, PlanOp, Trait  # noqa: E402
from mmreplay.engine import Options, simulate  # noqa: E402
from mmreplay.locking.isa import Count, Op, RuntimeBit  # noqa: E402
from mmreplay.locking.model import LockingModel  # noqa: E402

R, W = small.R, small.W
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


def stand_in(vma_locks: bool) -> LockingModel:
    """The fault and mmap programs of a kernel without or with per-VMA locks."""
    present, have = int(RuntimeBit.TABLE_PRESENT), int(RuntimeBit.VMA_ANON_VMA)
    missing, needs = int(Trait.TABLE_MISSING), int(Trait.NEEDS_ANON_VMA)
    kernel = int(Trait.KERNEL_MODE)

    def body(tag: str) -> list[object]:
        return [
            (Op.BRANCH, (0, missing), f"{tag}table"),
            (Op.BRANCH, (0, 0, present), f"{tag}table"),
            (Op.COST, "pt_alloc"), (Op.SET, present), f"{tag}table",
            (Op.BRANCH, (0, needs), f"{tag}have"), (Op.BRANCH, (0, 0, have), f"{tag}have"),
            (Op.COST, "anon_vma"), (Op.SET, have), f"{tag}have",
            (Op.COST, "alloc"), (Op.COST, "zero", Count.PAGES), (Op.LOCK, "ptl", W),
            (Op.COST, "set_pte"), (Op.UNLOCK, "ptl", W),
        ]  # fmt: skip

    fault: list[object] = [(Op.COST, "entry")]
    if vma_locks:
        fault += [
            (Op.BRANCH, (kernel,), "mmap_path"), (Op.COST, "walk"),
            (Op.TRY, "vma", R, "busy"), *body("v"), (Op.UNLOCK, "vma", R), (Op.DONE,),
            "busy", (Op.COUNT, "abort"), "mmap_path",
        ]  # fmt: skip
    fault += [
        (Op.TRY, "mmap_lock", R, "slow"), (Op.JUMP, "got"), "slow", (Op.LOCK, "mmap_lock", R),
        "got", (Op.COST, "walk"), *body("m"), (Op.UNLOCK, "mmap_lock", R), (Op.DONE,),
    ]  # fmt: skip
    mapping = [
        (Op.COST, "entry"), (Op.LOCK, "mmap_lock", W), (Op.COST, "gap"),
        (Op.EACH, MarkSet.NEIGHBOURS, "stored"), "next",
        *([(Op.MARK, "vma")] if vma_locks else [(Op.COST, "gap")]), (Op.END, "next"), "stored",
        (Op.COST, "tree"), (Op.UNLOCK, "mmap_lock", W), (Op.DONE,),
    ]  # fmt: skip
    return small.model({PlanOp.FAULT: fault, PlanOp.MMAP: mapping})


COSTS = {"entry": 150, "walk": 60, "pt_alloc": 400, "anon_vma": 300, "alloc": 120, "zero": 90,
         "set_pte": 40, "gap": 300, "tree": 400}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", default="8,64,256")
    parser.add_argument("--ops", type=int, default=1_000_000)
    arguments = parser.parse_args()
    began = time.perf_counter()
    machine = small.machine(256, COSTS, spread=0.2)
    for name, vma_locks in (("mmap_lock", False), ("vma lock", True)):
        model = stand_in(vma_locks)
        simulate(fault_plan(2, 200), model, machine, Options(cores=2))
        print(f"# ready after {time.perf_counter() - began:.1f} s")
        for threads in (int(x) for x in arguments.threads.split(",")):
            plan = fault_plan(threads, arguments.ops)
            runs = [simulate(plan, model, machine, Options(cores=threads)) for _ in range(3)]
            wall = min(r.wall_s for r in runs)
            loop = min(r.detail["loop_s"] for r in runs)
            cpu = min(r.detail["loop_cpu_s"] for r in runs)
            ops = runs[0].ops / 1e6
            print(
                f"{name:10} {threads:4} threads: {ops / wall:6.2f} M ops/s in all,"
                f" {ops / loop:6.2f} in the loop, {ops / cpu:6.2f} per CPU second of the loop"
            )


if __name__ == "__main__":
    main()
