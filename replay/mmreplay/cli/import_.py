"""``mmreplay import``: a recording to a trace."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click


@click.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The trace to write, NAME.mmt; default: the file's name with .mmt.",
)
@click.option("--force", is_flag=True, help="Replace a trace of that name.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to report.",
)
def command(file: Path, output: Path | None, force: bool, format_: str) -> None:
    """Turn a recording (perf.data) into a trace."""
    from mmreplay.importers.registry import import_trace

    out = output if output is not None else Path(f"{file.stem or 'trace'}.mmt")
    started = time.perf_counter()
    trace = import_trace(file, out, force=force, progress=_progress())
    wall_s = time.perf_counter() - started
    header = trace.header
    report: dict[str, Any] = {
        "schema": header.schema_,
        "trace": str(out),
        "source": str(file),
        "format": header.source.format,
        "events": sum(event.samples for event in header.events),
        "lost_events": header.lost_events,
        "operations": trace.rows("operations"),
        "threads": trace.rows("threads"),
        "span_ns": header.span_ns,
        "counters": header.counters,
        "warnings": header.warnings,
        "wall_s": round(wall_s, 3),
    }
    for warning in header.warnings:
        click.echo(f"mmreplay: {warning}", err=True)
    if format_ == "json":
        click.echo(json.dumps(report))
        return
    click.echo(
        f"{out}: {report['operations']:,} operations of {report['threads']:,} threads from "
        f"{report['events']:,} events in {wall_s:.1f} s; {header.lost_events:,} lost"
    )


def _progress() -> Any:
    """A bar on stderr where that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task("import", total=None)
    bar.start()

    def show(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if done >= total:
            bar.stop()

    return show
