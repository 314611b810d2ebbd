"""``mmreplay export``: a trace for a timeline viewer, or as a table."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

import click

from mmreplay.errors import UserError


@click.command("export", short_help="Write a trace for a timeline viewer, or as CSV.")
@click.argument("trace", type=click.Path(path_type=Path), metavar="TRACE")
@click.option(
    "--format",
    "style",
    type=click.Choice(["chrome", "perfetto", "csv"]),
    required=True,
    help="chrome: trace-event JSON; perfetto: its own format, smaller; csv: one table.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write; a name that ends in .gz is compressed.  [default: stdout]",
)
@click.option("--force", is_flag=True, help="Replace a file of that name.")
@click.option("--from", "from_s", type=float, help="Leave out what begins before SECONDS.")
@click.option("--to", "to_s", type=float, help="Leave out what begins at SECONDS or later.")
@click.option("--table", default="operations", show_default=True, help="Table for csv.")
def command(
    trace: Path,
    style: Literal["chrome", "perfetto", "csv"],
    output: Path | None,
    force: bool,
    from_s: float | None,
    to_s: float | None,
    table: str,
) -> None:
    """Write TRACE for ui.perfetto.dev or chrome://tracing, or one of its tables as CSV.

    Times count from the recording's begin.  On a timeline operations nest on their threads; times
    off the CPU and waits for locks have tracks of their own.
    """
    from mmreplay.report.export import export, opened
    from mmreplay.trace.store import Trace

    source = Trace.open(trace)
    window = {
        "begin_ns": None if from_s is None else round(from_s * 1e9),
        "end_ns": None if to_s is None else round(to_s * 1e9),
    }
    if output is not None:
        with opened(output, force=force) as stream:
            export(source, stream, style, table=table, **window)
        return
    if style == "perfetto" and sys.stdout.isatty():
        raise UserError("packets are not for a terminal", where="--format", fix="add -o FILE")
    try:
        export(source, sys.stdout.buffer, style, table=table, **window)
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # head(1) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
