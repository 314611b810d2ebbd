"""``mmreplay anonymise``: a copy of a trace that can be shared."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("anonymise", short_help="Copy a trace without what tells about its owner.")
@click.argument("trace", type=click.Path(path_type=Path), metavar="TRACE")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The trace to write, NAME.mmt.",
)
@click.option("--force", is_flag=True, help="Replace a trace of that name.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to report.",
)
def command(trace: Path, output: Path, force: bool, style: str) -> None:
    """Copy TRACE so that it can be shared: predictions from the copy are the same.

    The shape of the address spaces, times, process ids, CPU model and kernel release stay.
    Addresses are moved; names of threads and files, inodes, events of your own, and clock readings
    are replaced.  The new names are reported, for you to find your threads again.
    """
    from mmreplay.trace.anonymise import anonymise
    from mmreplay.trace.store import Trace

    opened = Trace.open(trace)
    _, replaced = anonymise(opened, output, force=force)
    if style == "json":
        found = {
            "schema": 1,
            "trace": str(output),
            "groups": replaced.groups,
            "thread_names": replaced.thread_names,
            "mapping_names": replaced.mapping_names,
            "events": replaced.events,
            "kernel_pages": replaced.kernel_pages,
        }
        click.echo(json.dumps(found))
        return
    click.echo(
        f"{output}: addresses moved; new names for {replaced.thread_names} names of threads, "
        f"{replaced.mapping_names} of mappings, {replaced.events} of events"
    )
    for old, new in replaced.groups.items():
        click.echo(f"  {old} -> {new}")
