"""Gains predicted from recordings as a kernel before 5.19 makes them, against measured gains.

    python benchmarks/old_kernel_traces.py [--mixes 1+1,2+1] [--rounds 3] [--machine PROFILE]
        [--keep FOLDER]

Threads fault page by page beside others that map and unmap, so many as a mix says
(faulters+mappers).  The faults take mmap_lock, as
all did before per-VMA locks: populated one by one (MADV_POPULATE_WRITE), or in kernel mode
(read(2) into the page).  That is recorded with the events of 5.15 (ends of faults, system calls,
switches; no lock:contention_*).  The recording is then told as the old kernel would have made
it: each such fault is one of user mode, on 6.1.  From it the gain of 6.18 is predicted, and
measured beside it without recording: the same program whose faults are of user mode, on this
kernel, which needs per-VMA locks.  There the program that reads touches the page and still reads
it, and the one that populated reads a byte into a page that is there, which takes about as long
as the call did beside the fault: so both do the same but for the lock.

Rounds alternate between all of them.  Rates are means: all operations over all the time, because
which thread gets the lock may stay so for all of a run.  Needs root, perf, two CPUs, and Linux 6.6
or later.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from mmreplay.predict.api import predict
from mmreplay.recorder.here import tracepoints
from mmreplay.schema import FaultBits, FaultClass, OpKind
from mmreplay.trace.recording import Recording, choose_events, in_release
from mmreplay.trace.store import Trace
from mmreplay.trace.timesplit import split

OLD, NEW = "linux-6.1", "linux-6.18"
TEXT = """
schema = 1
title = "A faulter beside a mapper"
stands_for = "threads that touch fresh memory beside threads that change the map"
source = "benchmarks/old_kernel_traces.py"
counts = "pages faulted in, and pairs of mmap and munmap"
[regions.fresh]
size = "64 MiB"
[regions.present]
size = "4 KiB"
[regions.piece]
size = "64 KiB"
prot = "r"
[roles.mapper]
threads = {mappers}
loop = [ {{ do = "mmap", on = "piece" }}, {{ do = "munmap", on = "piece", counts = 1 }} ]
[roles.faulter]
threads = "rest"
once = [ {{ do = "mmap", on = "fresh" }}, {{ do = "mmap", on = "present" }} ]
loop = [
    {{ do = "repeat", times = 16384, counter = "page", steps = [ {steps} ] }},
    {{ do = "madvise", on = "fresh", advice = "dontneed" }},
]
"""
_TOUCH = '{ do = "touch", on = "fresh", access = "write", at = "page", counts = 1 }'
#: A call that takes no lock of the map: read(2) of a byte into a page that is there.
_CALL = '{ do = "read_into", on = "present" }'
_READ = '{ do = "read_into", on = "fresh", at = "page"%s }'
#: What faults under mmap_lock (text, path), and the same by the VMA's own lock.
CASES = {
    "populate": ((_TOUCH, "mmap_lock"), (f"{_TOUCH}, {_CALL}", "vma")),
    "kernel mode": ((_READ % ", counts = 1", "vma"), (f"{_TOUCH}, {_READ % ''}", "vma")),
}
ROLES = ("faulter", "mapper")


def measure(
    text: Path, path: str, threads: int, before: list[str], output: Path, seconds: float
) -> list[dict[str, float]]:
    """Rates of both roles, pages and pairs a second, in each repetition."""
    words = [sys.executable, "-m", "mmreplay", "measure", str(text), "--path", path]
    words += [
        "--threads",
        str(threads),
        "--repetitions",
        "1" if before else "5",
        "--seconds",
        str(seconds),
    ]
    words += ["--no-check", "--no-probe", "-o", str(output)]
    done = subprocess.run([*before, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return [
        {
            "faulter": row["madvise_per_s"]
            if path == "mmap_lock"
            else row["minor_faults"] / row["window_s"],
            "mapper": row["munmap_per_s"],
        }
        for row in pl.read_parquet(output).rows(named=True)
    ]


def as_recorded_before(trace: Trace) -> Trace:
    """The trace as a kernel without per-VMA locks and contention events would have made it."""
    unsplit = ("contention_ns", "service_ns", "wait_ns", "io_ns")
    rows = trace.operations.collect().with_columns(pl.lit(None, pl.Int64).alias(c) for c in unsplit)
    # Split as what they were: among the program's other faults, which are no calls, what a call
    # itself takes would pass for waiting.
    rows, _ = split(rows, trace.schedule.collect())
    kind = pl.col("kind")
    populated = (kind == int(OpKind.MADVISE)) & pl.col("flags").is_in([22, 23])
    fault = populated | (kind == int(OpKind.FAULT_KERNEL))
    bits = int(FaultBits.USER | FaultBits.WRITE)
    nothing = [c for c in ("length", "flags", "result") if c in rows.columns]
    rows = rows.with_columns(
        kind=pl.when(fault).then(int(OpKind.FAULT_USER)).otherwise(kind).cast(pl.UInt8),
        fault_bits=pl.when(fault).then(bits).otherwise("fault_bits").cast(pl.UInt8),
        fault_class=pl.when(populated)
        .then(int(FaultClass.MINOR))
        .otherwise("fault_class")
        .cast(pl.UInt8),
        **{name: pl.when(~populated).then(pl.col(name)) for name in nothing},
    )
    threads = trace.threads.collect().with_columns(group=pl.lit("other"))
    maps = rows.filter(pl.col("kind") == int(OpKind.MUNMAP))
    space = maps.group_by("address_space").len().sort("len")["address_space"][-1]
    counts = rows.filter(pl.col("address_space") == space).group_by("tid")
    sums = counts.agg(
        faulter=(pl.col("kind") == int(OpKind.FAULT_USER)).sum(),
        mapper=(pl.col("kind") == int(OpKind.MUNMAP)).sum(),
    )
    for role, other in (ROLES, ROLES[::-1]):
        # The thread that starts the others maps and faults a little, too.
        most = pl.col(role) > 0.05 * pl.col(role).max()
        tids = sums.filter(most & (pl.col(role) > pl.col(other)))["tid"].to_list()
        group = pl.when(pl.col("tid").is_in(tids)).then(pl.lit(role)).otherwise("group")
        threads = threads.with_columns(group=group)
    header = replace(trace.header, kernel_release="6.1.0", tables={})
    tables = {name: trace.table(name).collect() for name in ("vmas", "schedule")}
    return Trace.in_memory(header, {"operations": rows, "threads": threads, **tables})


def predicted(trace: Trace, machine: str | None) -> tuple[dict[str, tuple[float, float]], Any]:
    """(old, new) rates of both roles, and the drift."""
    found = {}
    for role in ROLES:
        told = predict(
            trace, to_kernel=NEW, cores=(2,), load="saturated", scale_group=role, exact=True,
            machine=machine,
        )  # fmt: skip
        rates = {row.kernel: row.throughput_ops_per_s for row in told.rows}
        each = 1 if role == "faulter" else 2  # a pair is two operations
        found[role] = rates[OLD] / each, rates[NEW] / each
    return found, told.drift


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--mixes", default="1+1,2+1,1+2,2+2", help="[%(default)s]")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=0.3)
    options.add_argument("--machine", help="machine profile [matched to the CPU]")
    options.add_argument("--keep", type=Path, help="keep recordings and runs there, or use those")
    options.add_argument("--only", choices=("measure", "predict"), help="one half, with --keep")
    given = options.parse_args()
    if tracepoints() is None:
        sys.exit("the tracepoints cannot be read; run as root")
    events = choose_events(in_release("5.15"))
    with contextlib.ExitStack() as stack:
        whole = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for mix in given.mixes.split(","):
            folder = whole / mix
            folder.mkdir(parents=True, exist_ok=True)
            if given.only != "predict":
                run(folder, mix, events, given.rounds, given.seconds)
            if given.only != "measure":
                report(folder, mix, given.machine)


def run(folder: Path, mix: str, events: Any, rounds: int, seconds: float) -> None:
    """Measure and record in turns."""
    faulters, mappers = map(int, mix.split("+"))
    threads = faulters + mappers
    table = []
    for turn in range(rounds):
        for case, sides in CASES.items():
            for side, (steps, path) in zip(("lock", "vma"), sides, strict=True):
                text = folder / "faulter-beside-mapper.toml"
                text.write_text(TEXT.format(steps=steps, mappers=mappers))
                rates = measure(text, path, threads, [], folder / "runs.parquet", seconds)
                table += [{"case": case, "side": side, "turn": turn, **one} for one in rates]
            text.write_text(TEXT.format(steps=sides[0][0], mappers=mappers))
            data = folder / f"{case.replace(' ', '-')}.{turn}.data"
            words = Recording(events, ("--",), output=str(data)).argv()
            rates = measure(text, sides[0][1], threads, words, folder / "runs.parquet", seconds)
            table += [{"case": case, "side": "recorded", "turn": turn, **one} for one in rates]
            print(f"{mix} {case}, turn {turn}", file=sys.stderr)
    pl.DataFrame(table).write_parquet(folder / "rates.parquet")


def report(folder: Path, mix: str, machine: str | None) -> None:
    """Predict from the recordings and print all beside each other."""
    rates = pl.read_parquet(folder / "rates.parquet")
    print(f"{mix:21} {'measured: lock':>15} {'vma':>8} {'gain':>6} | ", end="")
    print(f"{'simulated: lock':>15} {'vma':>8} {'gain':>6} | off")
    for case in CASES:
        old: dict[str, list[float]] = {role: [] for role in ROLES}
        new: dict[str, list[float]] = {role: [] for role in ROLES}
        drifts = []
        for data in sorted(folder.glob(f"{case.replace(' ', '-')}.*.data")):
            trace = data.with_suffix(".mmt")
            words = [sys.executable, "-m", "mmreplay", "import", str(data), "--force"]
            subprocess.run([*words, "-o", str(trace)], check=True, capture_output=True)
            found, drift = predicted(as_recorded_before(Trace.open(trace)), machine)
            drifts.append(drift.ratio)
            for role, (before, after) in found.items():
                old[role].append(before)
                new[role].append(after)
        mine = rates.filter(pl.col("case") == case)
        real = {side: mine.filter(pl.col("side") == side) for side in ("lock", "vma", "recorded")}
        for role in (*ROLES, "both"):
            which = ROLES if role == "both" else (role,)
            runs = {
                side: rows.select(pl.sum_horizontal(which)).to_series().to_list()
                for side, rows in real.items()
            }
            own = [statistics.fmean(runs[side]) for side in ("lock", "vma")]
            own += [sum(statistics.fmean(side[one]) for one in which) for side in (old, new)]
            line(case, role, own, [runs["lock"], runs["vma"]])
        print(
            f"{case:12} {len(runs['lock'])} and {len(runs['vma'])} runs; recorded: "
            f"{statistics.fmean(runs['recorded']):9,.0f} /s; drift "
            f"{', '.join(f'{ratio:.2f}' for ratio in drifts)}"
        )


def line(case: str, role: str, own: list[float], runs: list[list[float]]) -> None:
    """Measured and simulated rates, how far the simulated gain is from the measured one, and the
    measured one's standard error."""
    errors = [
        statistics.stdev(rates) / len(rates) ** 0.5 / statistics.fmean(rates)
        if len(rates) > 1
        else 0
        for rates in runs
    ]
    error = sum(one * one for one in errors) ** 0.5
    gains = own[1] / own[0], own[3] / own[2]
    print(
        f"{case:12} {role:8} {own[0]:15,.0f} {own[1]:8,.0f} {gains[0]:6.2f} | {own[2]:15,.0f} "
        f"{own[3]:8,.0f} {gains[1]:6.2f} | {gains[1] / gains[0] - 1:+.0%} (measured ±{error:.0%})"
    )


if __name__ == "__main__":
    main()
