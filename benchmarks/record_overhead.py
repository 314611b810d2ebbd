"""The table of docs/recording.md: what each event set of mmreplay record adds here.

    python benchmarks/record_overhead.py [--turns 15] [--runs 3]

Each run is one ``mmreplay record --calibrate``: in turns, the same loops (first writes to pages;
mmap and munmap of a page) bare and recorded with each event set, the least CPU time of a
thread per operation over the turns, because other programs only ever add to it.  The table
has the median over the runs, and the spread of what the default adds.  Needs root and perf.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from mmreplay.recorder.cost import calibrate
from mmreplay.recorder.here import tracepoints


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--turns", type=int, default=15)
    options.add_argument("--runs", type=int, default=3)
    given = options.parse_args()
    has = tracepoints()
    if has is None:
        sys.exit("the tracepoints cannot be read; run as root")
    runs = [calibrate(has, given.turns) for _ in range(given.runs)]
    first = runs[0]
    print(f"{first.cpu}, Linux {first.kernel.split('-')[0]}, perf {first.perf}, {first.day}\n")
    print("| event set | events a fault | ns a fault | added | events a call | ns a call | added |")
    print("|---|---|---|---|---|---|---|")
    fault = statistics.median(run.bare_fault_ns for run in runs)
    call = statistics.median(run.bare_pair_ns for run in runs) / 2
    print(f"| not recorded | | {fault:,.0f} | | | {call:,.0f} | |")
    for k, one in enumerate(first.sets):
        sets = [run.sets[k] for run in runs]
        row = [
            f"{one.events_per_fault:.0f}",
            f"{statistics.median(s.fault_ns for s in sets):,.0f}",
            f"{statistics.median(s.fault_added_ns for s in sets):,.0f}",
            f"{one.events_per_pair / 2:.0f}",
            f"{statistics.median(s.pair_ns for s in sets) / 2:,.0f}",
            f"{statistics.median(s.pair_added_ns for s in sets) / 2:,.0f}",
        ]
        print(f"| `{one.name}` | {' | '.join(row)} |")
    default = [s for run in runs for s in run.sets if s.name == "default"]
    added = sorted(s.fault_added_ns for s in default)
    print(f"\ndefault, a fault: {added[0]:,.0f} to {added[-1]:,.0f} ns added")
    print(f"one event: {sorted(run.event_ns for run in runs)} ns")


if __name__ == "__main__":
    main()
