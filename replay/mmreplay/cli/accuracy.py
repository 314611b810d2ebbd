"""``mmreplay accuracy``: simulated against measured rates."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from mmreplay.fit.accuracy import Compared


@click.command("accuracy")
@click.argument("runs", type=click.Path(), required=False)
@click.argument("machine", required=False)
@click.option("--only", metavar="W", multiple=True, help="These workloads only.")
@click.option(
    "--held-out", is_flag=True, help="Leave out workloads that the profile was fitted on."
)
@click.option("--plot", metavar="FILE.svg", help="Draw simulated over measured rates.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "parquet"]),
    default="text",
    show_default=True,
    help="text, json or parquet (one row per point; needs -o).",
)
@click.option("-o", "--output", metavar="FILE", help="Write there instead of to stdout.")
def command(
    runs: str | None,
    machine: str | None,
    only: tuple[str, ...],
    held_out: bool,
    plot: str | None,
    form: str,
    output: str | None,
) -> None:
    """How far the simulation is from RUNS on a MACHINE profile.

    Without arguments: every measured run that ships with mmreplay, against a profile of its
    machine that was fitted on other workloads.
    """
    from pathlib import Path

    from mmreplay.errors import UserError, require_parent
    from mmreplay.fit import api
    from mmreplay.fit.progress import progress_line
    from mmreplay.hardware.runs import read_runs
    from mmreplay.machine.loader import load_machine
    from mmreplay.report.accuracy import accuracy_data, accuracy_svg, accuracy_text
    from mmreplay.report.writers import write_file

    if form == "parquet" and output is None:
        raise UserError("Parquet is no text", where="--format", fix="give -o FILE.parquet")
    for file in (plot, output):
        if file is not None:
            require_parent(Path(file))
    with progress_line() as say:
        if runs is None:
            points, notes = api.shipped_accuracy(say)
            if not points:
                raise UserError(
                    "no measured runs ship with this mmreplay",
                    where="RUNS",
                    fix="give RUNS (mmreplay measure) and a MACHINE (mmreplay calibrate)",
                )
        else:
            if machine is None:
                raise UserError(
                    "which machine?",
                    where="MACHINE",
                    fix="give a profile of mmreplay calibrate, or one of mmreplay machines list",
                )
            profile = load_machine(machine)
            prepared = api.prepare(read_runs(Path(runs)), only=only or None, progress=say)
            notes = list(prepared.notes)
            points = api.compare(prepared, profile, profile.name)
            if held_out:
                points = [p for p in points if not p.trained]
                if not points:
                    raise UserError(
                        f"{profile.name} was fitted on all of these workloads",
                        where="--held-out",
                        fix="calibrate with --half first, say",
                    )
    if plot is not None:
        names = ", ".join(sorted({p.machine for p in points}))
        write_file(Path(plot), accuracy_svg(points, f"Simulated and measured: {names}").encode())
    if form == "parquet":
        assert output is not None
        _parquet(points, Path(output))
        return
    text = (
        json.dumps(accuracy_data(points, notes), indent=1)
        if form == "json"
        else accuracy_text(points, notes)
    )
    if output is None:
        click.echo(text)
    else:
        write_file(Path(output), f"{text}\n".encode())


def _parquet(points: list[Compared], path: Path) -> None:
    import polars as pl

    from mmreplay.fit.accuracy import regimes
    from mmreplay.report.accuracy import point_row

    where = regimes(points)
    beside = path.with_name(f".{path.name}.part")
    pl.DataFrame([point_row(p, where[p]) for p in points]).write_parquet(beside)
    beside.replace(path)
