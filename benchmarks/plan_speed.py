"""How fast a trace becomes a plan: prints operations per second, once compiled.

Each thread faults in mappings of its own; about 2 % of the operations map or unmap.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from mmreplay.address_space.planner import build_plan
from mmreplay.address_space.rules import load_rules
from mmreplay.schema import OpKind
from mmreplay.trace.store import Header, Trace, frame, polars_schema

PAGES = 98


def synthetic(ops: int, threads: int) -> Trace:
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
    return Trace.in_memory(Header(span_ns=total * 500), {"operations": data, "threads": who})


_NULLABLE = {
    "duration_ns", "duration_corrected_ns", "think_blocked_ns", "preempted_ns", "service_ns",
    "wait_ns", "io_ns", "unattributed_ns", "contention_ns", "blocked_inside_ns", "address2",
    "length2", "file_offset", "fd", "errno", "child", "ip",
}  # fmt: skip


def main() -> None:
    ops = int(float(sys.argv[1])) if len(sys.argv) > 1 else 2_000_000
    rules = load_rules("linux-6.18")
    begin = time.perf_counter()
    build_plan(synthetic(1000, 2), rules)
    print(f"first plan (compiles, or loads the cache): {time.perf_counter() - begin:.1f} s")
    for threads in (1, 8, 64):
        trace = synthetic(ops, threads)
        begin = time.perf_counter()
        bundle = build_plan(trace, rules)
        spent = time.perf_counter() - begin
        rate = bundle.plan.n_ops / spent / 1e6
        print(f"{threads:3d} threads: {bundle.plan.n_ops} operations, {rate:.2f} M ops/s")


if __name__ == "__main__":
    main()
