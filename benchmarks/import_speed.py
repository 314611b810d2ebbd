"""How fast a recording is imported, beside ``perf script > /dev/null`` on the same file.

    python benchmarks/import_speed.py perf.data [--repeat 5]

Whole processes, alternating with perf script, so that both meet the same neighbours; the
first import is not counted: it compiles, or loads, the compiled code.  Each import makes a
new trace; removing the one before is not part of it.  Prints one JSON object: events, median
wall and CPU seconds of both, the ratio of the medians, the median of a second import within
one process (what remains without the start), and the largest anonymous memory of an import.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_AGAIN = """
import shutil, sys, time
from pathlib import Path
from mmreplay.importers.registry import import_trace
walls = []
for _ in range(int(sys.argv[3]) + 1):
    shutil.rmtree(sys.argv[2], ignore_errors=True)
    begin = time.perf_counter()
    import_trace(Path(sys.argv[1]), Path(sys.argv[2]))
    walls.append(time.perf_counter() - begin)
print(sorted(walls[1:])[len(walls[1:]) // 2])
"""


def anonymous_kib(pid: int) -> int:
    """Anonymous memory of a process now; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(row.split()[1]) for row in text.splitlines() if row.startswith("RssAnon")), 0)


def run(command: list[str], poll_s: float) -> tuple[float, float, int]:
    """Wall and CPU seconds of a process, and the most anonymous memory seen, in KiB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_kib(process.pid)) if poll_s else 0
        if poll_s:
            time.sleep(poll_s)
        else:
            process.wait()
    wall = time.perf_counter() - begin
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, peak


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.file.parent) as folder:
        out = str(Path(folder) / "out.mmt")
        ours = [sys.executable, "-m", "mmreplay", "import", str(options.file), "-o", out]
        theirs = ["perf", "script", "-i", str(options.file)]
        with_perf = shutil.which("perf") is not None

        def import_once(poll_s: float) -> tuple[float, float, int]:
            shutil.rmtree(out, ignore_errors=True)
            return run(ours, poll_s)

        _, _, peak = import_once(0.005)
        _, _, again = import_once(0.005)
        imports, scripts = [], []
        for _ in range(options.repeat):
            imports.append(import_once(0))
            if with_perf:
                scripts.append(run(theirs, 0))
        header = json.loads((Path(out) / "header.json").read_text())
        events = sum(event["samples"] for event in header["events"])
        second = subprocess.run(
            [sys.executable, "-c", _AGAIN, str(options.file), out, str(options.repeat)],
            capture_output=True,
            text=True,
            check=True,
        )
    result = {
        "cpus": len(os.sched_getaffinity(0)),
        "events": events,
        "peak_anonymous_mib": max(peak, again) // 1024,
        "second_import_s": round(float(second.stdout), 3),
    }

    def add(name: str, runs: list[tuple[float, float, int]]) -> None:
        wall = statistics.median(one[0] for one in runs)
        result[f"{name}_wall_s"] = round(wall, 3)
        result[f"{name}_cpu_s"] = round(statistics.median(one[1] for one in runs), 3)
        result[f"{name}_events_per_s"] = round(events / wall)

    add("import", imports)
    if scripts:
        add("perf_script", scripts)
        wall = result["perf_script_wall_s"]
        result["times_perf_script"] = round(wall / result["import_wall_s"], 2)
        cpu = result["perf_script_cpu_s"] / result["import_cpu_s"]
        result["cpu_times_perf_script"] = round(cpu, 2)
        result["second_import_times_perf_script"] = round(wall / result["second_import_s"], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
