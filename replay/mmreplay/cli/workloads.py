"""``mmreplay workloads``: list and show workload definitions."""

from __future__ import annotations

import json

import click

from mmreplay.cli.lazy import Group

FORMAT = click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True
)


@click.group(cls=Group)
def command() -> None:
    """List and show workload definitions: what is generated as a trace, or run for real."""


@command.command("list")
@FORMAT
def list_(format_: str) -> None:
    """Name the shipped workloads."""
    from mmreplay.workloads.definition import list_workloads, load_workload
    from mmreplay.workloads.listing import describe

    rows = [describe(load_workload(name)) for name in list_workloads()]
    if format_ == "json":
        click.echo(json.dumps({"schema": 1, "workloads": rows}, indent=2))
        return
    from mmreplay.report.page import table

    lines = [(row["name"], row["title"]) for row in rows]
    click.echo(table(("workload", "what it does"), lines, left=(0,), flow=1))


@command.command()
@click.argument("workload")
@click.option("--threads", type=int, metavar="N", help="Also compile it for N threads.")
@FORMAT
def show(workload: str, threads: int | None, format_: str) -> None:
    """Show WORKLOAD (a name, or the path of a .toml file), and the program it becomes."""
    from mmreplay.workloads.compiler import compile_workload
    from mmreplay.workloads.definition import load_workload
    from mmreplay.workloads.listing import describe, program_data, text

    loaded = load_workload(workload)
    program = compile_workload(loaded, threads) if threads is not None else None
    if format_ == "json":
        document = {"schema": 1, **describe(loaded)}
        if program is not None:
            document["program"] = program_data(program)
        click.echo(json.dumps(document, indent=2))
        return
    from mmreplay.report.page import fold

    click.echo(fold(text(loaded, program)))
