"""``mmreplay synth``: a workload as a trace."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mmreplay.workloads.generator import Synthetic


@click.command("synth")
@click.argument("workload", required=False)
@click.option("--from", "source", metavar="TRACE", help="Learn the workload from a trace.")
@click.option("--save", metavar="FILE.toml", help="With --from: also write what was learnt.")
@click.option("-o", "--output", metavar="NAME.mmt", required=True, help="Trace to write.")
@click.option("--threads", type=int, help="Threads to generate [4; with --from: as recorded].")
@click.option("--seed", type=int, default=1, show_default=True, help="Random seed.")
@click.option("--ops", type=int, default=200_000, show_default=True, help="Most operations.")
@click.option("--duration", type=float, default=1.0, show_default=True, help="Most seconds.")
@click.option(
    "--path",
    default="vma",
    show_default=True,
    help="How pages are faulted in: vma, mmap_lock or kernel.",
)
@click.option("--force", is_flag=True, help="Replace a trace of that name.")
@click.option("--format", "form", default="text", show_default=True, help="text or json.")
def command(
    workload: str | None, source: str | None, save: str | None, form: str, **options: Any
) -> None:
    """Generate a trace from WORKLOAD (see mmreplay workloads list, or a .toml file).

    With --from a workload is learnt from a recorded trace, so that longer traces or ones
    with more threads can be generated.

    It ends at --ops or --duration, whichever is first.  It has no durations: what an
    operation costs comes from the machine profile that it is replayed on.
    """
    from mmreplay.errors import UserError, closest
    from mmreplay.workloads.api import learn_workload, synthesise

    if form not in ("text", "json"):
        raise UserError(
            f'"{form}"{closest(form, ("text", "json"))}', where="--format", fix="use text or json"
        )

    if (workload is None) == (source is None):
        raise UserError("give either a WORKLOAD or --from TRACE", fix="see mmreplay workloads list")
    if save is not None and source is None:
        raise UserError("there is nothing learnt to save", where="--save", fix="add --from TRACE")

    def progress(rows: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{rows:,} operations", nl=False, err=True)

    duration_s = options.pop("duration")
    left: dict[str, int] = {}
    what: Any = workload
    if source is not None:
        what, learnt = learn_workload(source, save=save)
        left = learnt.left_out
        options["threads"] = options["threads"] or learnt.threads
    options["threads"] = 4 if options["threads"] is None else options["threads"]
    made = synthesise(what, duration_s=duration_s, progress=progress, **options)
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)
    if form == "json":
        click.echo(json.dumps({**as_data(made), "not_learnt": left}, indent=2))
        return
    click.echo(as_text(made))
    if left:
        listed = ", ".join(f"{count:,} {why}" for why, count in left.items())
        click.echo(f"  recorded but not learnt: {listed}")


def as_data(made: Synthetic) -> dict[str, Any]:
    """What ``--format json`` prints."""
    return {
        "schema": 1,
        "trace": str(made.trace.path),
        "workload": made.workload,
        "threads": made.threads,
        "path": made.path,
        "seed": made.seed,
        "operations": made.rows,
        "span_ns": made.span_ns,
        "roles": [
            {"role": role, "operations": ops, "counted": made.counted[role]}
            for role, ops in made.ops.items()
        ],
    }


def as_text(made: Synthetic) -> str:
    """The same for people."""
    lines = [
        f"{made.trace.path}: {made.workload}, {made.threads} threads,"
        f" {made.rows:,} operations in {made.span_ns / 1e6:,.1f} ms (nominal)"
    ]
    for role, ops in made.ops.items():
        lines.append(f"  {role}: {ops:,} operations, {made.counted[role]:,} counted")
    return "\n".join(lines)
