"""Synthetic traces: workers that map, touch and unmap, as an allocator under load does."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from mmreplay.schema import DurationKind, FaultBits, FaultClass, OpKind
from mmreplay.trace.columns import polars_schema
from mmreplay.trace.header import Capabilities, Event, Header, Machine
from mmreplay.trace.store import Trace, frame

PRIVATE_ANONYMOUS = 0x22
READ_WRITE = 3
BASE = 0x7F00_0000_0000


def worker_trace(
    threads: int = 4,
    loops: int = 30,
    pages: int = 8,
    think_ns: int = 2_000,
    blocked_ns: int = 0,
    *,
    kernel: str | None = "6.1.0",
    cpus: int | None = 2,
    faults: bool = True,
    durations: bool = True,
    times: bool = True,
    **capabilities: Any,
) -> Trace:
    """Each thread maps ``pages`` pages of its own, writes to each, and unmaps them again."""
    body = [OpKind.MMAP, *([OpKind.FAULT_USER] * pages if faults else []), OpKind.MUNMAP]
    per_thread = loops * len(body)
    kind = np.tile(np.array(body, np.uint8), loops * threads)
    tid = np.repeat(np.arange(threads), per_thread)
    page = np.tile(np.array([0, *(range(pages) if faults else []), 0]), loops * threads)
    service = np.where(kind == OpKind.FAULT_USER, 1_200, 1_900)
    step = think_ns + blocked_ns + service
    end = np.cumsum(step.reshape(threads, per_thread), axis=1).ravel()
    begin = end - service + tid  # never two at once
    fault = kind == OpKind.FAULT_USER
    start = (BASE + tid.astype(np.uint64) * (1 << 30)).astype(np.uint64)
    n = len(kind)
    columns: dict[str, Any] = {
        "begin_ns": begin,
        "seq": np.zeros(n),
        "duration_kind": np.full(n, DurationKind.MEASURED if durations else DurationKind.NONE),
        "pid": np.full(n, 100),
        "tid": 100 + tid,
        "address_space": np.zeros(n),
        "cpu": tid % (cpus or 1),
        "kind": kind,
        "address": start + (page * 4096).astype(np.uint64),
        "fault_class": np.where(fault, int(FaultClass.MINOR), 0),
        "weight": np.ones(n),
        "quality": np.zeros(n),
        "inner_events": np.zeros(n),
    }
    rows = pl.DataFrame(columns).with_columns(
        length=pl.when(pl.lit(pl.Series(~fault))).then(pages * 4096),
        prot=pl.when(pl.col("kind") == int(OpKind.MMAP)).then(READ_WRITE),
        flags=pl.when(pl.col("kind") == int(OpKind.MMAP)).then(PRIVATE_ANONYMOUS),
        fd=pl.when(pl.col("kind") == int(OpKind.MMAP)).then(-1),
        result=pl.when(pl.col("kind") == int(OpKind.MMAP)).then(pl.col("address")).otherwise(0),
        fault_bits=pl.when(pl.lit(pl.Series(fault))).then(int(FaultBits.WRITE | FaultBits.USER)),
    )
    if durations:
        rows = rows.with_columns(
            duration_ns=pl.lit(pl.Series(service)),
            duration_corrected_ns=pl.lit(pl.Series(service)),
            service_ns=pl.lit(pl.Series(service)),
            wait_ns=0,
            io_ns=0,
        )
    if times:
        rows = rows.with_columns(
            think_cpu_ns=think_ns, think_blocked_ns=blocked_ns, preempted_ns=0, unattributed_ns=0
        )
    schema = polars_schema("operations")
    rows = rows.with_columns(
        pl.lit(None, dtype).alias(name) for name, dtype in schema.items() if name not in rows
    )
    rows = rows.select(pl.col(name).cast(dtype) for name, dtype in schema.items())
    rows = rows.sort("begin_ns", "tid")
    rows = rows.with_columns(
        seq=pl.int_range(pl.len(), dtype=pl.UInt32).over("begin_ns").cast(pl.UInt32)
    )
    span = int(rows["begin_ns"].max() or 0) + 10_000
    people = [
        {
            "tid": 100 + t,
            "pid": 100,
            "address_space": 0,
            "first_ns": 0,
            "last_ns": span,
            "start_kind": "thread",
            "comm": f"worker-{t}",
            "group": "worker-#",
            "tail_cpu_ns": 0,
            "tail_blocked_ns": 0,
        }
        for t in range(threads)
    ]
    header = Header(
        kernel_release=kernel,
        machine=Machine(cpu_model="Synthetic", cpus_online=cpus),
        target="synthetic",
        events=[Event(name="synthetic", samples=n)],
        capabilities=Capabilities(
            **{
                "fault_duration": "measured" if durations else "none",
                "syscall_durations": durations,
                "think": "oncpu" if times else "wall",
                "switches": times,
                **capabilities,
            }
        ),
        span_ns=span,
    )
    return Trace.in_memory(header, {"operations": rows, "threads": frame("threads", people)})


def change(trace: Trace, **columns: pl.Expr) -> Trace:
    """``trace`` with columns of its operations replaced."""
    schema = polars_schema("operations")
    rows = trace.operations.collect().with_columns(
        expression.cast(schema[name]).alias(name) for name, expression in columns.items()
    )
    return Trace.in_memory(trace.header, {"operations": rows, "threads": trace.threads.collect()})


def beside(first: Trace, second: Trace, *more: dict[str, Any]) -> Trace:
    """Two traces as two processes of one: the second's pid, tids and address space are moved.

    ``more``: rows of the locks table.
    """
    schema = polars_schema("operations")
    moved = second.operations.collect().with_columns(
        pid=pl.lit(200), tid=pl.col("tid") + 100, address_space=pl.lit(1), cpu=pl.col("cpu")
    )
    rows = pl.concat(
        [
            part.select(pl.col(name).cast(dtype) for name, dtype in schema.items())
            for part in (first.operations.collect(), moved)
        ]
    ).sort("begin_ns", "tid")
    rows = rows.with_columns(
        seq=pl.int_range(pl.len(), dtype=pl.UInt32).over("begin_ns").cast(pl.UInt32)
    )
    people = polars_schema("threads")
    others = second.threads.collect().with_columns(
        pid=pl.lit(200),
        tid=pl.col("tid") + 100,
        address_space=pl.lit(1),
        comm=pl.lit("other"),
        group=pl.lit("other"),
    )
    threads = pl.concat(
        [
            part.select(pl.col(name).cast(dtype) for name, dtype in people.items())
            for part in (first.threads.collect(), others)
        ]
    )
    tables = {"operations": rows, "threads": threads}
    if more:
        tables["locks"] = frame("locks", list(more))
    return Trace.in_memory(first.header, tables)


def waited(tid: int, space: int, address: int, mode: str, wait_ns: int = 5_000) -> dict[str, Any]:
    """One recorded wait for a rwsem."""
    return {
        "tid": tid,
        "address_space": space,
        "lock_address": address,
        "kind": "rwsem",
        "mode": mode,
        "begin_ns": 1_000,
        "wait_ns": wait_ns,
        "hold_ns": None,
    }
