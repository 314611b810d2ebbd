"""``mmreplay measure``: run workloads on this machine and write what they reached."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from mmreplay.errors import UserError, plural

if TYPE_CHECKING:
    from mmreplay.fit.performed import Beside
    from mmreplay.hardware.runs import Runs
    from mmreplay.hardware.suite import Options, Plan
    from mmreplay.hardware.trace_program import Load
    from mmreplay.workloads.program import Path as Way

#: What --quick measures: each kind of lock holder once, in under two minutes.
QUICK: Final = (
    "page_fault1",
    "mmap1",
    "malloc1",
    "tlb_flush2",
    "pft-one-vma",
    "faulters-and-mappers",
    "allocator-arenas",
    "ebizzy",
)
_PATHS: Final[dict[str, tuple[Way, ...]]] = {
    "vma": ("vma",),
    "mmap_lock": ("mmap_lock",),
    "kernel": ("kernel",),
    "both": ("vma", "mmap_lock"),
    "all": ("vma", "mmap_lock", "kernel"),
}
#: Runs this short say little beyond their start.
_SHORTEST_S: Final = 0.01


@click.command()
@click.argument("workloads", nargs=-1)
@click.option(
    "--threads", metavar="LIST", help="Thread counts: 1,2,4 or 1-16 or 1-16:x2 [up to 2 x CPUs]."
)
@click.option(
    "--path",
    type=click.Choice(list(_PATHS)),
    default="both",
    show_default=True,
    help="How pages are faulted in: by touching them (vma), under mmap_lock by"
    " MADV_POPULATE_WRITE, or in kernel mode by read(2).",
)
@click.option("--pin/--no-pin", default=True, show_default=True, help="A CPU for each thread.")
@click.option("--repetitions", type=int, metavar="N", help="Runs of each point [5].")
@click.option("--seconds", type=float, metavar="S", help="Window of each run [0.5].")
@click.option("--warm-up", "warm_up", type=float, metavar="S", help="Looping before it [0.1].")
@click.option("--seed", type=int, default=1, show_default=True, help="Of random decisions.")
@click.option("--trace", metavar="APP.mmt", help="Perform a recorded application instead.")
@click.option(
    "--load",
    type=click.Choice(["recorded", "saturated"]),
    default="recorded",
    show_default=True,
    help="With --trace: sleep where its threads were blocked, or do not.",
)
@click.option(
    "--think-scale",
    type=float,
    metavar="X",
    help="With --trace: multiply the CPU time between its operations by X [1].",
)
@click.option(
    "--simulate",
    metavar="MACHINE",
    help="With --trace: simulate what was performed on this machine profile, and compare.",
)
@click.option("--memory", type=float, metavar="GIB", help="Use no more than this [available].")
@click.option("--quick", is_flag=True, help="A few workloads, short windows: under 2 minutes.")
@click.option("--check/--no-check", default=True, help="Trace which locks each path takes.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Text for people, JSON for programs.",
)
@click.option(
    "--probe/--no-probe",
    default=True,
    help="Measure cache lines, wake-ups and shootdowns too, and with the whole library single"
    " operations, for mmreplay calibrate.",
)
@click.option("-o", "--output", metavar="RUNS.parquet", help="Write every run there.")
def command(
    workloads: tuple[str, ...], form: str, output: str | None, quick: bool, **given: Any
) -> None:
    """Run WORKLOAD... (names, or .toml files; all that are shipped by default) for real.

    Each point is a workload, a path, and a number of threads; it is run several times, in
    random order over all points, each time in a new process.  Ctrl-C keeps what was measured.
    """
    from mmreplay.hardware.runs import check_output, write_runs
    from mmreplay.hardware.stability import warnings

    path = check_output(output) if output else None
    options = _options(quick, given)
    memory = given["memory"]
    if memory is not None and not 0 < memory < 1 << 20:
        raise UserError(f"{memory} GiB", where="--memory", fix="give a size above 0")
    memory_bytes = None if memory is None else int(memory * 2**30)
    if given["trace"]:
        if workloads or given["threads"]:
            raise UserError(
                "a trace has its own threads and operations",
                where="--trace",
                fix="leave workloads and --threads out",
            )
        scale = _think_scale(given["think_scale"])
        runs, simulated = _trace(given, scale, options, memory_bytes)
    else:
        for name in ("think_scale", "simulate"):
            if given[name] is not None:
                raise UserError(
                    "only a recorded application is scaled or simulated here",
                    where=f"--{name.replace('_', '-')}",
                    fix="add --trace APP.mmt; mmreplay accuracy compares workloads",
                )
        simulated = []
        runs = _workloads(workloads, quick, given["threads"], options, memory_bytes)
    if not runs.rows:
        why = next(iter(runs.not_measured.items()), ("", "it was interrupted"))
        raise UserError(f"nothing was measured: {why[1]}", where=why[0])
    if path is not None:
        write_runs(runs, path)
    notes = warnings(runs)
    if form == "json":
        answer = as_json(runs, notes)
        if simulated:
            answer["simulated"] = [one.to_json() for one in simulated]
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo("\n".join([*as_text(runs, notes), *(one.line() for one in simulated)]))
    if path is not None:
        click.echo(f"{path}: {plural(len(runs.rows), 'run')}", err=True)
    if not runs.complete:
        click.echo("mmreplay: interrupted; what was measured is kept", err=True)
        sys.exit(130)


def _workloads(
    workloads: tuple[str, ...],
    quick: bool,
    threads_text: str | None,
    options: Options,
    memory_bytes: int | None,
) -> Runs:
    from mmreplay.hardware import suite
    from mmreplay.hardware.facts import pinning_order
    from mmreplay.predict.counts import parse_counts
    from mmreplay.workloads.definition import list_probes, list_workloads, load_workload

    names = workloads or (QUICK if quick else tuple(list_workloads()))
    threads = None
    if threads_text:
        # what the system allows is less, and whoever plans knows it
        threads = parse_counts(threads_text, "--threads", "threads", 1 << 30)
    if threads is None and quick:
        threads = tuple(sorted({1, len(pinning_order())}))
    plan = suite.plan([load_workload(name) for name in names], threads, options, memory_bytes)
    if options.probe and not workloads and not quick:
        plan = suite.with_probes(plan, [load_workload(name) for name in list_probes()])
    _say(plan)
    return suite.measure(plan, _Progress())


def _think_scale(given: float | None) -> float:
    if given is not None and not 0 <= given <= 1000:
        raise UserError(f"{given}", where="--think-scale", fix="give 0 to 1000")
    return 1.0 if given is None else given


def _trace(
    given: dict[str, Any], think_scale: float, options: Options, memory_bytes: int | None
) -> tuple[Runs, list[Beside]]:
    from mmreplay.hardware import trace_suite

    load: Load = given["load"]
    opened = trace_suite.open_trace(given["trace"])
    program = trace_suite.program_of(opened, load, options, memory_bytes, think_scale)
    simulation = None
    if given["simulate"] is not None:  # what is wrong with it shall be told before minutes pass
        from mmreplay.fit.performed import simulation_of

        simulation = simulation_of(given["simulate"])
    click.echo(
        f"{program.operations:,} operations of {plural(len(program.threads), 'thread')},"
        f" recorded in {program.recorded_span_ns / 1e9:.3g} s, at most"
        f" {program.touched_bytes / 2**30:.2g} GiB",
        err=True,
    )
    for why, count in program.left_out.items():
        click.echo(f"left out: {count:,} operations {why}", err=True)
    runs = trace_suite.measure_trace(program, options, _Progress())
    return runs, [] if simulation is None else simulation(program, opened.header, runs)


def _options(quick: bool, given: dict[str, Any]) -> Options:
    from mmreplay.hardware.suite import Options

    repetitions = given["repetitions"] if given["repetitions"] is not None else (3 if quick else 5)
    seconds = given["seconds"] if given["seconds"] is not None else (0.2 if quick else 0.5)
    warm_up = given["warm_up"] if given["warm_up"] is not None else (0.05 if quick else 0.1)
    if not 1 <= repetitions <= 1000:
        raise UserError(f"{repetitions} repetitions", where="--repetitions", fix="give 1 to 1000")
    for value, name, least in ((seconds, "--seconds", _SHORTEST_S), (warm_up, "--warm-up", 0.0)):
        if not least <= value <= 600:
            raise UserError(f"{value} s", where=name, fix=f"give {least} to 600")
    return Options(
        paths=_PATHS[given["path"]],
        pin=given["pin"],
        repetitions=repetitions,
        seconds=seconds,
        warm_up_s=warm_up,
        seed=given["seed"],
        check=given["check"],
        probe=given["probe"],
    )


def _say(plan: Plan) -> None:
    for label, why in plan.refused.items():
        click.echo(f"left out: {label}: {why}", err=True)
    click.echo(
        f"{plural(len(plan.points), 'point')}, {plural(plan.runs, 'run')}, about "
        f"{_duration(plan.estimate_s)}",
        err=True,
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


class _Progress:
    """One line on stderr: overwritten on a terminal, else one each half minute."""

    def __init__(self) -> None:
        self._began = self._told = time.monotonic()

    def __call__(self, done: int, total: int, label: str) -> None:
        now = time.monotonic()
        if not done:  # locks are checked first, then runs are counted anew
            self._began = now
        left = (now - self._began) / done * (total - done) if done else 0.0
        text = f"{done}/{total} {label}" + (f", {_duration(left)} left" if done else "")
        if sys.stderr.isatty():
            click.echo(f"\r\033[K{text if label else ''}", nl=False, err=True)
        elif label and now - self._told > 30:
            self._told = now
            click.echo(text, err=True)


def as_json(runs: Runs, notes: list[str]) -> dict[str, Any]:
    """The medians as plain data; ``rows`` and ``machine`` are a contract."""
    from mmreplay.hardware.runs import summary

    return {
        "schema": 1,
        "rows": summary(runs.rows),
        "machine": runs.machine,
        "not_measured": runs.not_measured,
        "complete": runs.complete,
        "warnings": notes,
    }


def as_text(runs: Runs, notes: list[str]) -> list[str]:
    """A table of medians, then what to doubt."""
    from mmreplay.hardware.runs import summary
    from mmreplay.report.page import table

    rows = summary(runs.rows)
    lines = [
        (
            row["workload"],
            row["path"],
            str(row["threads"]),
            row["placement"],
            f"{row['ops_per_s']:,.0f}",
            "" if row["spread_ratio"] is None else f"{row['spread_ratio']:.1%}",
            f"{row['fairness']:.2f}",
        )
        for row in rows
    ]
    head = ("workload", "path", "threads", "placement", "ops/s", "spread", "fairness")
    out = table(head, lines, left=(0, 1, 3)).splitlines()
    out += [
        f"{row['workload']}, {row['path']}, {plural(row['threads'], 'thread')}: makespan"
        f" {row['makespan_s']:.3g} s, {row['useful_work']:.3g} s of the program's own work a second"
        for row in rows
        if "makespan_s" in row
    ]
    verified = sum(row["path_check"].startswith(("verified", "nothing")) for row in rows)
    out.append(f"locks as the path should take them: {verified} of {len(rows)} points")
    out += [f"not measured: {label}: {why}" for label, why in runs.not_measured.items()]
    out += [f"warning: {note}" for note in notes]
    return out
