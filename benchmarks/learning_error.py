"""How far the replay of a learnt workload is from that of the trace it was learnt from.

    python benchmarks/learning_error.py [TRACE.mmt ...]

Learns each shipped workload from a trace of 4 threads and generates from what was learnt;
the original is held out: another seed, half as long again, and once more with 8 threads.
With TRACEs: learns each and generates as many operations.  Both are replayed under two
kernels on several core counts at a machine profile's costs, as a whole: operations per
second until the last thread is through, the gain of the newer kernel, time waited and
acquisitions of mmap_lock per operation.  Prints the tables of docs/workloads.md.
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
Figures = dict[tuple[str, int], tuple[float, float, float]]


def replayed(trace: Trace, cores: tuple[int, ...]) -> Figures:
    """Per kernel and cores: operations/s, waited ns and mmap_lock acquisitions per operation."""
    found: Figures = {}
    for kernel in KERNELS:
        for count in cores:
            done = replay(trace, kernel=kernel, costs="machine", cores=count)
            waited = sum(blame["wait_ns"] for blame in done.blame) / done.ops
            locked = done.locks["mmap_lock"]
            taken = (locked["read"] + locked["write"]) / done.ops
            found[kernel, count] = (1e9 * done.ops / done.makespan_ns, waited, taken)
    return found


def row(name: str, was: Figures, now: Figures, errors: dict[str, list[float]]) -> str:
    """A line of the table; adds to ``errors``."""
    mine: dict[str, list[float]] = {"throughput": [], "gain": [], "locks": []}
    for point, (speed, _, taken) in was.items():
        mine["throughput"].append(now[point][0] / speed - 1)
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
            found = learn(trace, name)
            text = parse_workload(found.text, "learnt", "learnt")
            for what, more in (("as learnt", 1), ("wider", 2)):
                if more > 1 and given is not None:
                    continue
                ops = min(trace.rows("operations"), MOST_OPS) if given else OPS * 3 // 2
                made = synthesise(
                    text, threads=more * found.threads, ops=ops, duration_s=1000, seed=7
                )
                held = (
                    given
                    or synthesise(
                        name, threads=more * THREADS, ops=ops, duration_s=1000, seed=11
                    ).trace
                )
                cores = tuple(more * count for count in CORES)
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
            unit = "mmap_lock per operation" if kind == "locks" else kind
            print(f"| {unit} | {what} | {median} | {p90} | {len(size)} |")


if __name__ == "__main__":
    main()
