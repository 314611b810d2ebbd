"""Real programs, recorded, performed again for real, and simulated: do the two agree?

    python benchmarks/physical_replay.py [--traces DIR] [--only NAME,...] [--realtime] [--write]

Records each program of PROGRAMS that this machine has with ``mmreplay record`` (root), imports
it, performs its memory operations by both paths with blocked think time left out
(``--load saturated``), simulates exactly what was performed, and prints measured against
simulated makespans.  A program that computes so much that memory operations take less than
WANTED_SHARE of its CPU time has its computing scaled down, on both sides by the same factor.
``--traces DIR`` keeps the traces and takes those that are there; ``--realtime`` performs with
real-time priority, for a machine that has other work (threads that wait for each other otherwise
wait for a time slice of others, too; but a real-time writer asks a rwsem's holders for the
handoff at once, kernel/locking/rwsem.c:rwsem_try_write_lock@6.18); ``--write`` writes
docs/physical-replay.md.  The simulation uses the shipped profile and its held-out ones; none
of them was fitted to any of these programs.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "replay"))

import polars as pl  # noqa: E402

import fault_costs  # noqa: E402
from mmreplay.fit.performed import Beside, simulation_of  # noqa: E402
from mmreplay.hardware import trace_suite  # noqa: E402
from mmreplay.hardware.suite import Options  # noqa: E402
from mmreplay.trace.store import Trace  # noqa: E402

MACHINE = "epyc-zen4-guest-2cpu"
HELD_OUT = ROOT / "models" / "machines" / "heldout"
#: At least this share of the recorded busy time in memory operations; the promise is 30 %.
WANTED_SHARE = 0.4
SCALES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
PORT = "7861"


@dataclass(frozen=True)
class Program:
    """``needs``: programs that must be installed; ``beside``: what loads it meanwhile."""

    name: str
    what: str
    command: tuple[str, ...]
    needs: tuple[str, ...]
    beside: tuple[str, ...] = ()


HERE_PROGRAMS = str(HERE / "programs")
PROGRAMS = (
    Program(
        "java",
        "JVM: two threads that allocate, parallel collector",
        ("java", "-Xmx1g", "-XX:+UseParallelGC", "-cp", ".", "Alloc"),
        ("java", "javac"),
    ),
    Program(
        "node",
        "Node.js: two workers that allocate buffers and objects",
        ("node", f"{HERE_PROGRAMS}/workers.js"),
        ("node",),
    ),
    Program(
        "g++",
        "compiler: cc1plus on the standard library's templates",
        ("g++", "-O2", "-c", f"{HERE_PROGRAMS}/templates.cpp", "-o", "/dev/null"),
        ("g++",),
    ),
    Program(
        "sort",
        "sort --parallel=2 of 30 MB of words",
        ("sort", "--parallel=2", "-S", "400M", "words", "-o", "/dev/null"),
        ("sort",),
    ),
    Program(
        "python",
        "threaded Python: two threads that compress and make lists",
        (sys.executable, f"{HERE_PROGRAMS}/threads.py"),
        (),
    ),
    Program(
        "redis",
        "database server under load, with a background save",
        ("redis-server", "--port", PORT, "--save", "", "--daemonize", "no"),
        ("redis-server", "redis-benchmark", "redis-cli"),
        ("sh", f"{HERE_PROGRAMS}/redis.sh", PORT),
    ),
    Program(
        "zstd",
        "parallel compressor: zstd -T2 of 52 MB",
        ("zstd", "-q", "-f", "-T2", "-3", "text", "-o", "text.zst"),
        ("zstd",),
    ),
)


def inputs(folder: Path) -> None:
    """Words of random letters, the same ones always."""
    stream = random.Random(1)
    words = [
        bytes(stream.randrange(97, 122) for _ in range(stream.randrange(2, 10)))
        for _ in range(5000)
    ]
    text = b" ".join(stream.choice(words) for _ in range(8_000_000))
    (folder / "text").write_bytes(text)
    (folder / "words").write_bytes(text[:30_000_000].replace(b" ", b"\n"))


def recorded(program: Program, traces: Path, work: Path) -> Trace:
    """Its trace: made, unless it is there."""
    trace = traces / f"{program.name}.mmt"
    if not trace.exists():
        if not (work / "text").exists():
            inputs(work)
        data = work / f"{program.name}.data"
        mine = [sys.executable, "-m", "mmreplay"]
        env = {"PYTHONPATH": str(ROOT / "replay"), "PATH": "/usr/local/bin:/usr/bin:/bin"}
        if program.name == "java":
            source = f"{HERE_PROGRAMS}/Alloc.java"
            subprocess.run(["javac", "-d", ".", source], check=True, cwd=work)
        beside = subprocess.Popen(program.beside, cwd=work) if program.beside else None
        try:
            subprocess.run(
                [*mine, "record", "--force", "--no-estimate", "-o", data, "--", *program.command],
                check=True, cwd=work, env=env, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        finally:
            if beside is not None:
                beside.kill()
                beside.wait()
        subprocess.run([*mine, "import", data, "-o", trace], check=True, cwd=work, env=env)
    return Trace.open(trace)


def scale_for(trace: Trace) -> float:
    """The largest factor on computing that leaves memory operations their share."""
    own = trace.operations.select("address_space", "think_cpu_ns", "service_ns").collect()
    busiest = own.group_by("address_space").len().sort("len")["address_space"][-1]
    sums = own.filter(pl.col("address_space") == busiest).sum()
    think, service = int(sums["think_cpu_ns"][0] or 0), int(sums["service_ns"][0] or 0)
    for scale in SCALES:
        if service >= WANTED_SHARE * (service + think * scale):
            return scale
    return SCALES[-1]


@contextlib.contextmanager
def priority(realtime: bool) -> Iterator[None]:
    """What is started meanwhile has real-time priority, if it is wanted."""
    if realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        if realtime:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


HEAD = ("program", "path", "think x", "share", "measured ms", "spread", "simulated", "held-out")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--realtime", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    wanted = set(filter(None, options.only.split(",")))
    halves = [str(path) for path in sorted(HELD_OUT.glob(f"{MACHINE}.*.toml"))]
    with priority(options.realtime):
        state = [fault_costs.measure(5)]
    lines: list[tuple[str, ...]] = []
    named: list[Program] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        traces = (options.traces or work).resolve()
        traces.mkdir(parents=True, exist_ok=True)
        for program in PROGRAMS:
            if wanted and program.name not in wanted:
                continue
            if missing := [name for name in program.needs if not shutil.which(name)]:
                print(f"{program.name}: left out, no {', '.join(missing)}", file=sys.stderr)
                continue
            trace = recorded(program, traces, work)
            scale = scale_for(trace)
            how = Options(
                paths=("vma", "mmap_lock"),
                repetitions=options.repetitions,
                check=False,
                probe=False,
            )
            performed = trace_suite.program_of(trace, "saturated", how, None, scale)
            with priority(options.realtime):
                runs = trace_suite.measure_trace(performed, how)
            for path, why in runs.not_measured.items():
                print(f"{path}: {why}", file=sys.stderr)
            found = [
                simulation_of(name)(performed, trace.header, runs) for name in (MACHINE, *halves)
            ]
            named.append(program)
            for one, *others in zip(*found, strict=True):
                lines.append(row(program, scale, one, others))
                print("  ".join(f"{word:>12}" for word in lines[-1]), flush=True)
    with priority(options.realtime):
        state.append(fault_costs.measure(5))
    print(f"write faults and populated pages, before and after: {told(state)}")
    if options.write:
        write(named, lines, told(state), options.realtime)


def told(state: list[dict[str, list[float]]]) -> str:
    """The state of the machine in words: rows of fault_costs.py before and after."""
    middle = [[statistics.median(one[name]) for name in ("write", "populate")] for one in state]
    (fault, call), (fault_after, call_after) = middle
    return f"{fault:.0f} and {call:.0f} ns, {fault_after:.0f} and {call_after:.0f} ns"


def row(program: Program, scale: float, one: Beside, held_out: list[Beside]) -> tuple[str, ...]:
    """One line of the table: measured, and simulated by measured."""
    spread = "" if one.spread_ratio is None else f"{one.spread_ratio:.0%}"
    return (
        program.name,
        one.path,
        f"{scale:g}",
        f"{one.memory_share:.0%}",
        f"{one.makespan_s * 1e3:.1f}",
        spread,
        f"{one.ratio:.2f}",
        ", ".join(f"{other.ratio:.2f}" for other in held_out),
    )


def write(
    programs: list[Program], lines: list[tuple[str, ...]], state: str, realtime: bool
) -> None:
    """docs/physical-replay.md."""
    ratios: dict[str, list[float]] = {line[0]: [] for line in lines}
    for line in lines:
        ratios[line[0]].append(float(line[6]))
    good = [name for name, both in ratios.items() if all(abs(r - 1) <= 0.15 for r in both)]
    bad = [name for name in ratios if name not in good]
    out = [
        "# Physical replay against simulation",
        "",
        "Real programs, recorded with `mmreplay record`, performed again by `mmreplay measure",
        "--trace` and simulated: the same rows, waits and think times (`--simulate`, see",
        "[measuring](measuring.md)). Blocked think time is left out; where memory operations took",
        "less than 40 % of the recorded busy time, computing is scaled down, on both sides alike.",
        "Written by `benchmarks/physical_replay.py`",
        f"({MACHINE}, {datetime.datetime.now(datetime.UTC).date().isoformat()}).",
        "",
        "| program | what it does |",
        "|---|---|",
        *(f"| {program.name} | {program.what} |" for program in programs),
        "",
        "*share*: of the performing threads' CPU time, what memory operations took. *measured*:",
        "median makespan; *spread*: interquartile range by median. *simulated*, *held-out*:",
        "simulated",
        "by measured makespan, with the shipped profile and with those fitted to half of the",
        "synthetic workloads. No profile was fitted to any of these programs.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
        *("| " + " | ".join(line) + " |" for line in lines),
        "",
        f"Within 15 % by both paths: {', '.join(good) or 'none'}."
        + (f" Not: {', '.join(bad)}." if bad else ""),
        "",
        "What a file is in the recording is a memory file in both, with every page present: no",
        "storage is in these figures. Of several processes the busiest one is performed.",
        "Where more",
        "threads compute than there are CPUs (zstd: three on two) the scheduler decides the",
        "makespan.",
        "",
        "The machine is a guest, and its host's speed is in all of it: a write fault and a",
        "`MADV_POPULATE_WRITE` of a page (`benchmarks/fault_costs.py`) took",
        f"{state} before and after these runs.",
        "`gup` and `lru_drain` of the profile are from low quartiles of another hour (1462 and",
        "2303 ns, and reading the zero page). Its write fault (1560 ns in",
        "4 MiB) was measured beside an interpreter; in C and in these loops one takes 1100 to",
        "1300 ns there, 1400 to 1600 with much memory. Over two hours of a",
        "day the median makespans of the same recordings went with the",
        "host by a tenth (g++, redis, java by the per-VMA path) to a third (node by `mmap_lock`,",
        "zstd), and the ratios with them.",
        *(
            [
                "Other programs ran meanwhile: these runs had real-time priority, under which a",
                "writer asks for mmap_lock's handoff at once, and threads have no time slices.",
            ]
            if realtime
            else []
        ),
        "Not simulated: the futex calls by which a performing thread wakes those that wait for it.",
        "",
    ]
    (ROOT / "docs" / "physical-replay.md").write_text("\n".join(out))


if __name__ == "__main__":
    main()
