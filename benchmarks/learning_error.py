"""How far the replay of a learnt workload is from that of the trace it was learnt from.

    python benchmarks/learning_error.py [TRACE.mmt ...]

Learns each shipped workload from a trace of 4 threads and generates from what was learnt;
the original is held out: another seed, half as long again, and once more with 8 threads.
With TRACEs: learns each and generates as many operations.  Both are replayed under two
kernels on several core counts at a machine profile's costs, as a whole: operations per
second until the last thread is through (at the recorded load, and without the threads' idle
times), the gain of the newer kernel, time waited and acquisitions of mmap_lock per operation;
and the mix of operations: the share of them that would have to be of another kind.
Prints the tables of docs/workloads.md.
"""

from __future__ import annotations

import sys

import numpy as np

from mmreplay.errors import UserError
from mmreplay.predict.api import replay
from mmreplay.trace.store import Trace
from mmreplay.workloads.api import synthesise
from mmreplay.workloads.definition import list_workloads, parse_workload
from mmreplay.workloads.learn import learn

THREADS, OPS, MOST_OPS = 4, 60_000, 300_000
KERNELS = ("linux-6.1", "linux-6.18")
CORES = (2, 4)
MACHINE = "generic-server"
Figures = dict[tuple[str, int], tuple[float, float, float, float]]


def replayed(trace: Trace, cores: tuple[int, ...]) -> Figures:
    """Per kernel and cores: operations/s, waited ns and mmap_lock acquisitions per operation,
    and operations/s without idle times."""
    found: Figures = {}
    for kernel in KERNELS:
        for count in cores:
            done, busy = (
                replay(
                    trace, kernel=kernel, costs="machine", machine=MACHINE, cores=count, load=load
                )
                for load in ("recorded", "saturated")
            )
            waited = sum(blame["wait_ns"] for blame in done.blame) / done.ops
            locked = done.locks["mmap_lock"]
            taken = (locked["read"] + locked["write"]) / done.ops
            rate, most = (1e9 * one.ops / one.makespan_ns for one in (done, busy))
            found[kernel, count] = (rate, waited, taken, most)
    return found


def mix(trace: Trace) -> dict[int, float]:
    """By kind, its share of the operations."""
    kinds = trace.operations.group_by("kind").len().collect()
    return {kind: count / trace.rows("operations") for kind, count in kinds.iter_rows()}


def row(name: str, was: Figures, now: Figures, errors: dict[str, list[float]]) -> str:
    """A line of the table; adds to ``errors``."""
    mine: dict[str, list[float]] = {"throughput": [], "saturated": [], "gain": [], "locks": []}
    for point, (speed, _, taken, most) in was.items():
        mine["throughput"].append(now[point][0] / speed - 1)
        mine["saturated"].append(now[point][3] / most - 1)
        mine["locks"].append(now[point][2] - taken)
        if point[0] == KERNELS[0]:
            newer = (KERNELS[1], point[1])
            gains = [figures[newer][0] / figures[point][0] for figures in (was, now)]
            mine["gain"].append(gains[1] / gains[0] - 1)
    for what, values in mine.items():
        errors.setdefault(what, []).extend(values)
    old, new = ((kernel, max(cores for _, cores in was)) for kernel in KERNELS)
    worst = max(mine["throughput"], key=abs)
    cells = [f"{was[old][0]:,.0f}", f"{now[old][0]:,.0f}", f"{worst:+.0%}"]
    cells += [f"{f[new][0] / f[old][0]:.2f}" for f in (was, now)]
    cells += [f"{max(mine['gain'], key=abs):+.0%}"]
    cells += [f"{f[old][1]:,.0f}" for f in (was, now)] + [f"{f[new][2]:.2f}" for f in (was, now)]
    return f"| `{name}` | " + " | ".join(cells) + " |"


def main() -> None:
    head = "| trace | ops/s | learnt | worst | gain | learnt | worst | wait, ns/op | learnt |"
    print(head + " mmap_lock/op | learnt |\n|---" + "|--:" * 10 + "|")
    names = sys.argv[1:] or list_workloads()
    errors: dict[str, dict[str, list[float]]] = {"as learnt": {}, "wider": {}}
    for name in names:
        given = Trace.open(name) if sys.argv[1:] else None
        trace = given or synthesise(name, threads=THREADS, ops=OPS, duration_s=1000).trace
        try:
            ops = trace.rows("operations") if given else OPS * 3 // 2
            ops = min(ops, MOST_OPS)
            found = learn(trace, name, ops)
            text = parse_workload(found.text, "learnt", "learnt")
            for what, more in (("as learnt", 1), ("wider", 2)):
                if more > 1 and given is not None:
                    continue
                limit = ops * 11 // 10 if found.phases > 1 else ops  # phases end by themselves
                cpus = given and given.header.machine.cpus_online
                made = synthesise(
                    text,
                    threads=more * found.threads,
                    ops=limit,
                    duration_s=10**6,
                    seed=7,
                    cpus=cpus,
                )
                held = (
                    given
                    or synthesise(
                        name, threads=more * THREADS, ops=ops, duration_s=1000, seed=11
                    ).trace
                )
                cores = tuple(more * count for count in CORES)
                kinds = mix(held), mix(made.trace)
                apart = sum(abs(kinds[0].get(k, 0) - kinds[1].get(k, 0)) for k in range(64)) / 2
                errors[what].setdefault("mix", []).append(apart)
                line = row(name, replayed(held, cores), replayed(made.trace, cores), errors[what])
                if more == 1:
                    print(line, flush=True)
        except UserError as refused:
            print(f"| `{name}` | {refused.line()} |" + " |" * 9, flush=True)
    print("\n| error | held out | median | p90 | n |\n|---|---|--:|--:|--:|")
    for what, kinds in errors.items():
        for kind, values in kinds.items():
            size = np.abs(values)
            form = "{:.2f}" if kind == "locks" else "{:.1%}"
            median, p90 = (form.format(np.quantile(size, q)) for q in (0.5, 0.9))
            unit = {"locks": "mmap_lock per operation", "saturated": "throughput, saturated"}.get(
                kind, kind
            )
            print(f"| {unit} | {what} | {median} | {p90} | {len(size)} |")


if __name__ == "__main__":
    main()
