"""How fast a recording is imported, beside ``perf script > /dev/null`` on the same file.

    python benchmarks/import_speed.py perf.data [--repeat 3]

Prints one JSON object: events, best wall seconds and events/s of both, their ratio, and
the peak of anonymous memory during the import.  The first import of the process is not
counted: it compiles or loads the compiled code.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from mmreplay.importers.registry import import_trace


def anonymous_kib() -> int:
    """Anonymous memory of this process now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    return 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, anonymous_kib())

    with tempfile.TemporaryDirectory(dir=options.file.parent) as folder:
        out = Path(folder) / "out.mmt"
        trace = import_trace(options.file, out, force=True)
        events = sum(event.samples for event in trace.header.events)
        watcher = threading.Thread(target=watch)
        watcher.start()
        walls = []
        for _ in range(options.repeat):
            begin = time.perf_counter()
            import_trace(options.file, out, force=True)
            walls.append(time.perf_counter() - begin)
        done.set()
        watcher.join()
    result = {
        "events": events,
        "import_s": round(min(walls), 3),
        "import_events_per_s": round(events / min(walls)),
        "peak_anonymous_mib": peak // 1024,
    }
    if shutil.which("perf"):
        walls = []
        for _ in range(options.repeat):
            begin = time.perf_counter()
            subprocess.run(
                ["perf", "script", "-i", str(options.file)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            walls.append(time.perf_counter() - begin)
        result["perf_script_s"] = round(min(walls), 3)
        result["times_perf_script"] = round(min(walls) / result["import_s"], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
