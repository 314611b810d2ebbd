"""What the compiled loop of ``mmreplay measure`` costs beside the same workloads in C.

    python benchmarks/harness_cost.py [--rounds 15] [--threads 1,2] [--seconds 0.3]

Builds benchmarks/c/workloads.c with gcc and runs it and the harness by turns, so that both
meet the same disturbances; prints medians of operations per CPU second (times threads), and
the median and quartiles of the rounds' ratios, and the ratio of the best rounds, which is what
is left on a machine that is not quiet.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "replay"))

from mmreplay.hardware import facts  # noqa: E402
from mmreplay.hardware.child import Child  # noqa: E402
from mmreplay.hardware.figures import figures  # noqa: E402
from mmreplay.hardware.runner import RunRequest  # noqa: E402
from mmreplay.workloads.compiler import compile_workload  # noqa: E402
from mmreplay.workloads.definition import load_workload  # noqa: E402

CASES = (
    ("page_fault1", "vma"),
    ("page_fault1", "mmap_lock"),
    ("mmap1", "vma"),
    ("malloc1", "vma"),
    ("tlb_flush2", "vma"),
    ("brk1", "vma"),
)
WARM_UP_S = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=0.3)
    options = parser.parse_args()
    order = facts.pinning_order()
    with tempfile.TemporaryDirectory() as folder, Child("mmreplay.hardware.run_worker") as worker:
        binary = Path(folder) / "workloads"
        source = HERE / "c" / "workloads.c"
        subprocess.run(["gcc", "-O2", "-pthread", "-o", binary, source], check=True)
        head = "workload     path       threads     C ops/s   mmreplay"
        print(f"{head}  ratio  quartiles    of the best")
        for threads in (int(word) for word in options.threads.split(",")):
            cpus = order[:threads]
            for name, path in CASES:
                program = compile_workload(load_workload(name), threads).by_path(path)  # type: ignore[arg-type]
                ours, theirs = [], []
                label = name if path == "vma" else f"{name}/{path}"
                words = [binary, label, str(threads), str(options.seconds), str(WARM_UP_S)]
                words += [str(cpu) for cpu in cpus]
                request = RunRequest(
                    program, cpus=tuple(cpus), warm_up_s=WARM_UP_S, seconds=options.seconds
                )
                for k in range(options.rounds):
                    worker.renew()  # another address layout, as each C process has
                    for who in ("c", "mmreplay") if k % 2 else ("mmreplay", "c"):
                        if who == "c":
                            done = subprocess.run(
                                words,
                                check=True,
                                capture_output=True,
                                text=True,
                                start_new_session=True,  # as the harness's process is
                            )
                            theirs.append(float(done.stdout))
                        else:
                            row = figures(program, worker.ask(request))
                            cpu_s = row["user_s"] + row["system_s"]
                            ours.append(row["ops"] / cpu_s * threads)
                ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                print(
                    f"{name:12} {path:10} {threads:7} {statistics.median(theirs):11,.0f}"
                    f" {statistics.median(ours):10,.0f}  {middle:5.3f}  {low:.3f}–{high:.3f}"
                    f"  {max(ours) / max(theirs):.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
