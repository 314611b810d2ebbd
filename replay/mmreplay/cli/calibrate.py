"""``mmreplay calibrate``: a machine profile from measured runs."""

from __future__ import annotations

import json

import click


@click.command("calibrate")
@click.argument("runs", type=click.Path())
@click.option("-o", "--output", metavar="FILE.toml", help="Write the profile there.")
@click.option("--prior", metavar="M", help="Profile to begin with [matched to the CPU].")
@click.option("--title", metavar="TEXT", help="Title of the profile [from the CPU].")
@click.option("--only", metavar="W", multiple=True, help="Fit these workloads only.")
@click.option(
    "--half",
    type=click.Choice(["first", "second"]),
    help="Fit every other workload only, to test on the others.",
)
@click.option("--seeds", type=int, default=1, show_default=True, help="Simulations a point.")
@click.option("--iterations", type=int, default=6, show_default=True, help="At most so many.")
@click.option("--force", is_flag=True, help="Write over an existing profile.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="text or json.",
)
def command(
    runs: str,
    output: str | None,
    prior: str | None,
    title: str | None,
    only: tuple[str, ...],
    half: str | None,
    seeds: int,
    iterations: int,
    force: bool,
    form: str,
) -> None:
    """Fit a machine profile to RUNS (of mmreplay measure), through the engine.

    Costs, cache lines, wake-ups and shootdowns are searched for which the simulated rates come
    closest to the measured ones.  Numbers that the runs do not tell stay at their prior, and
    the profile says so.
    """
    from pathlib import Path

    from mmreplay.errors import UserError, require_parent
    from mmreplay.fit import api
    from mmreplay.fit.progress import progress_line
    from mmreplay.hardware.runs import read_runs
    from mmreplay.report.calibration import calibration_data, calibration_text, profile_of
    from mmreplay.report.writers import write_file

    target = Path(output) if output is not None else None
    if target is not None:
        if target.suffix != ".toml":
            raise UserError(f'"{target}" is no .toml file', where="-o", fix="name it NAME.toml")
        if target.exists() and not force:
            raise UserError("exists already", where=str(target), fix="give --force to replace it")
        require_parent(target)
    for name, value, most in (("--seeds", seeds, 100), ("--iterations", iterations, 100)):
        if not 1 <= value <= most:
            raise UserError(f"{value}", where=name, fix=f"give a number from 1 to {most}")
    if only and half:
        raise UserError("--only and --half exclude each other", where="--half", fix="give one")
    with progress_line() as say:
        measured = read_runs(Path(runs))
        begin, topology = api.prior_for(measured, prior)
        prepared = api.prepare(measured, only=only or None, progress=say)
        chosen = api.half_of(prepared.points, half) if half else None
        found, points = api.calibrate_runs(
            prepared,
            begin,
            only=chosen,
            source=f"mmreplay calibrate {Path(runs).name}",
            seeds=range(1, seeds + 1),
            iterations=iterations,
            progress=say,
        )
    profile = profile_of(found, measured, topology, Path(runs).name, title)
    if target is not None:
        write_file(target, profile.encode())
    if form == "json":
        click.echo(json.dumps(calibration_data(found, points, prepared.notes), indent=1))
    else:
        click.echo(calibration_text(found, points, prepared.notes, begin))
        if target is None:
            click.echo("Give -o FILE.toml to keep the profile.")
