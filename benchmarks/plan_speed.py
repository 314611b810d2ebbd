"""How fast a trace becomes a plan: prints operations per second of CPU time, once compiled.

    python benchmarks/plan_speed.py [TRACE.mmt ...] [--ops 2000000] [--repeat 5]

Without a trace: synthetic ones, written to disk first, in which each thread faults in
mappings of its own and about 2 % of the operations map or unmap.  CPU time is that of all
threads of the process, polars is held to one thread, and the best of the repeats counts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("POLARS_MAX_THREADS", "1")

import numpy as np

from mmreplay.address_space.planner import build_plan
from mmreplay.address_space.rules import load_rules
from mmreplay.schema import OpKind
from mmreplay.trace.columns import polars_schema
from mmreplay.trace.store import Header, Trace, frame
from mmreplay.trace.writer import TraceWriter

PAGES = 98


def synthetic(ops: int, threads: int, path: Path) -> Trace:
    """Rounds of mmap, 98 write faults, munmap in every thread, interleaved."""
    import polars as pl

    rounds = max(ops // (threads * (PAGES + 2)), 1)
    step = np.tile(np.arange(PAGES + 2), rounds)
    turn = np.repeat(np.arange(rounds), PAGES + 2)
    n = len(step)
    step = np.repeat(step, threads)
    turn = np.repeat(turn, threads)
    thread = np.tile(np.arange(threads), n)
    base = 0x7E00_0000_0000 + (thread.astype(np.int64) << 30) + ((turn % 64) << 21)
    kind = np.where(step == 0, OpKind.MMAP, OpKind.FAULT_USER)
    kind = np.where(step == PAGES + 1, OpKind.MUNMAP, kind).astype(np.uint8)
    fault = kind == OpKind.FAULT_USER
    address = np.where(fault, base + (np.maximum(step, 1) - 1) * 4096, base).astype(np.uint64)
    template = frame("operations", [{}] if False else [])
    total = len(kind)
    columns = {
        "begin_ns": np.arange(total, dtype=np.int64) * 500,
        "tid": (thread + 1).astype(np.int32),
        "kind": kind,
        "address": address,
        "length": np.where(fault, 0, PAGES * 4096).astype(np.uint64),
        "prot": np.full(total, 3, np.uint8),
        "flags": np.full(total, 0x22, np.uint64),
        "result": np.where(kind == OpKind.MMAP, address, 0).astype(np.int64),
        "fault_bits": np.where(fault, 6, 0).astype(np.uint8),
        "fault_class": fault.astype(np.uint8),
        "think_cpu_ns": np.full(total, 400, np.int64),
    }
    types = polars_schema("operations")
    data = pl.DataFrame(
        [
            pl.Series(name, columns[name], dtype=dtype)
            if name in columns
            else pl.repeat(
                {"cpu": -1, "weight": 1, "pid": 1}.get(name, None if name in _NULLABLE else 0),
                total,
                dtype=dtype,
                eager=True,
            ).alias(name)
            for name, dtype in types.items()
        ]
    )
    assert data.columns == template.columns
    who = frame(
        "threads",
        [
            {
                "tid": t + 1,
                "pid": 1,
                "address_space": 0,
                "first_ns": 0,
                "last_ns": total * 500,
                "comm": "w",
                "group": "w",
            }
            for t in range(threads)
        ],
    )
    with TraceWriter(path) as writer:
        writer.write("operations", data)
        writer.write("threads", who)
        return writer.close(Header(span_ns=total * 500))


_NULLABLE = {
    "duration_ns", "duration_corrected_ns", "think_blocked_ns", "preempted_ns", "service_ns",
    "wait_ns", "io_ns", "unattributed_ns", "contention_ns", "blocked_inside_ns", "address2",
    "length2", "file_offset", "fd", "errno", "child", "ip",
}  # fmt: skip


def measure(trace: Trace, repeat: int) -> tuple[int, float]:
    """Operations of the plan, and the least CPU seconds to make it."""
    rules = load_rules("linux-6.18")
    spent = []
    for _ in range(repeat):
        begin = time.process_time()
        bundle = build_plan(trace, rules)
        spent.append(time.process_time() - begin)
    return bundle.plan.n_ops, min(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("traces", type=Path, nargs="*")
    parser.add_argument("--ops", type=float, default=2e6)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        build_plan(synthetic(1000, 2, Path(folder) / "small.mmt"), load_rules("linux-6.18"))
        spent = time.process_time() - begin
        print(f"first plan (compiles, or loads the cache): {spent:.1f} s of CPU time")
        for path in options.traces:
            n, spent = measure(Trace.open(path), options.repeat)
            print(f"{path.name}: {n} operations, {n / spent / 1e6:.2f} M ops/s")
        for threads in (1, 8, 64) if not options.traces else ():
            trace = synthetic(int(options.ops), threads, Path(folder) / f"{threads}.mmt")
            n, spent = measure(trace, options.repeat)
            print(f"{threads:3d} threads: {n} operations, {n / spent / 1e6:.2f} M ops/s")


if __name__ == "__main__":
    main()
