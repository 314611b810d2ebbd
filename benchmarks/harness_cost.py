"""What the compiled loop of ``mmreplay measure`` costs beside the same workloads in C.

    python benchmarks/harness_cost.py [--rounds 15] [--threads 1,2] [--seconds 0.3] [--same]

Builds benchmarks/c/loops.c with gcc and has the harness's own threads begin with its functions:
same process, same mappings, same CPUs, only the loop differs.  A round is a new worker process,
which forks one process for each loop (so both lie at the same addresses), in random order.
Prints medians of operations per CPU second (times threads), and median and quartiles of the
rounds' ratios.  ``--same`` compares the harness's loop with itself, which says what such a
ratio is worth.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "replay"))

from loop_worker import Wanted  # noqa: E402
from mmreplay.hardware import facts  # noqa: E402
from mmreplay.hardware.child import Child  # noqa: E402
from mmreplay.hardware.figures import figures  # noqa: E402
from mmreplay.hardware.loop_tables import Count, Head, Row, Shot  # noqa: E402
from mmreplay.hardware.runner import RunRequest  # noqa: E402
from mmreplay.workloads.compiler import compile_workload  # noqa: E402
from mmreplay.workloads.definition import load_workload  # noqa: E402

#: Workload, path, and the function of loops.c.
CASES = (
    ("page_fault1", "vma", "page_fault1"),
    ("page_fault1", "mmap_lock", "page_fault1_populated"),
    ("mmap1", "vma", "mmap1"),
    ("malloc1", "vma", "malloc1"),
    ("tlb_flush2", "vma", "tlb_flush2"),
    ("brk1", "vma", "brk1"),
)
WARM_UP_S = 0.05


def build(folder: Path) -> str:
    """The shared object, told where the harness's tables have what."""
    words = [
        f"-D{table.__name__.upper()}_{name}={value.value}"
        for table in (Head, Row, Count, Shot)
        for name, value in table.__members__.items()
    ]
    out = folder / "loops.so"
    source = HERE / "c" / "loops.c"
    command = ["gcc", "-O2", "-Wall", "-shared", "-fPIC", *words, "-o", out, source]
    subprocess.run(command, check=True)
    return str(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--only", default="", help="workloads, separated by commas")
    parser.add_argument("--same", action="store_true")
    options = parser.parse_args()
    only = set(filter(None, options.only.split(",")))
    os.environ["PYTHONPATH"] = str(HERE)  # of the worker
    order = facts.pinning_order()
    stream = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        print("workload     path       threads     C ops/s   mmreplay  ratio  quartiles")
        for threads in (int(word) for word in options.threads.split(",")):
            for name, path, function in CASES:
                if only and name not in only:
                    continue
                program = compile_workload(load_workload(name), threads).by_path(path)  # type: ignore[arg-type]
                request = RunRequest(
                    program,
                    cpus=tuple(order[:threads]),
                    warm_up_s=WARM_UP_S,
                    seconds=options.seconds,
                )
                rates: dict[bool, list[float]] = {False: [], True: []}
                for _ in range(options.rounds):
                    pair = [False, True]
                    stream.shuffle(pair)
                    with Child("loop_worker") as worker:
                        for in_c in pair:
                            called = function if in_c and not options.same else ""
                            answer = worker.ask(Wanted(request, library, called))
                            if answer.problem:
                                sys.exit(f"{name}: {answer.problem}")
                            row = figures(program, answer)
                            cpu_s = row["user_s"] + row["system_s"]
                            rates[in_c].append(row["ops"] / cpu_s * threads)
                ratios = [a / b for a, b in zip(rates[False], rates[True], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                print(
                    f"{name:12} {path:10} {threads:7} {statistics.median(rates[True]):11,.0f}"
                    f" {statistics.median(rates[False]):10,.0f}  {middle:5.3f}"
                    f"  {low:.3f}–{high:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
