"""How far the replay of a learnt workload is from that of the trace it was learnt from.

    python benchmarks/learning_error.py [TRACE.mmt ...]

Generates a trace of each shipped workload (or takes those given), learns it, generates
again, and replays both under linux-6.1 at a machine profile's costs.  Prints throughput,
waiting time per operation, and the ratios: the table of docs/workloads.md.
"""

from __future__ import annotations

import sys

from mmreplay.errors import UserError
from mmreplay.predict.api import replay
from mmreplay.trace.store import Trace
from mmreplay.workloads.api import synthesise
from mmreplay.workloads.definition import list_workloads, parse_workload
from mmreplay.workloads.learn import learn

THREADS, OPS = 4, 60_000


def row(name: str, trace: Trace, cores: int) -> str:
    found = learn(trace, name)
    again = parse_workload(found.text, "learnt", "learnt")
    made = synthesise(again, threads=found.threads, ops=OPS, duration_s=1000, seed=7).trace
    figures = []
    for one in (trace, made):
        done = replay(one, kernel="linux-6.1", costs="machine", cores=cores)
        waited = sum(blame["wait_ns"] for blame in done.blame) / one.rows("operations")
        figures.append((done.throughput_ops_per_s, waited))
    (was, waited), (now, waits) = figures
    speed = f"{was:,.0f} | {now:,.0f} | {now / was - 1:+.0%}"
    return f"| `{name}` | {speed} | {waited:,.0f} | {waits:,.0f} |"


def main() -> None:
    traces = [(path, Trace.open(path), 2) for path in sys.argv[1:]]
    if not traces:
        for name in list_workloads():
            made = synthesise(name, threads=THREADS, ops=OPS, duration_s=1.0)
            traces.append((name, made.trace, THREADS))
    print("| trace | ops/s | learnt | | wait, ns/op | learnt |\n|---|--:|--:|--:|--:|--:|")
    for name, trace, cores in traces:
        try:
            print(row(name, trace, cores), flush=True)
        except UserError as refused:
            print(f"| `{name}` | {refused.line()} |", flush=True)


if __name__ == "__main__":
    main()
