"""``mmreplay import``: a recording to a trace."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from mmreplay.errors import plural

#: bpftrace prints a line in 10 us, strace stops a thread for 40: no event costs more.
_LARGEST_COST_NS = 100_000
#: After so long who waits for the interpreter may have it.
_SWITCH_S = 0.0002
#: Modules of numpy that do nothing but add help texts.
_HELP_TEXTS = ("numpy._core._add_newdocs", "numpy._core._add_newdocs_scalars")
#: Modules of it that only say types, for which any class will do while running.
_TYPES = ("numpy._typing", "numpy.typing")
#: mallopt's (malloc.h of glibc), and up to which size freed memory is kept.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 4 << 20


@click.command(name="import")
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The trace to write, NAME.mmt; default: the first file's name with .mmt.",
)
@click.option("--force", is_flag=True, help="Replace a trace of that name.")
@click.option(
    "--formats",
    type=click.Path(path_type=Path, exists=True),
    help="Another recording of the same machine: the formats of tracepoints that a recording "
    "cut short lacks.",
)
@click.option(
    "--salvage",
    is_flag=True,
    help="Of a perf.data file whose end is missing take what there is.  [what a killed perf left "
    "is taken without it]",
)
@click.option("--process", metavar="NAME|PID", help="Only this process.")
@click.option(
    "--from",
    "begin_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help="Only from this time of the recording on.",
)
@click.option(
    "--to",
    "end_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="Only up to this time of the recording.",
)
@click.option(
    "--snapshot",
    type=click.Path(path_type=Path),
    help="A copy of /proc/PID/maps or smaps from before the recording, or the directory of them "
    "that mmreplay record made.",
)
@click.option(
    "--event-cost",
    metavar="NS",
    help='What one recorded event cost the recorded thread, or "calibrated": as mmreplay record '
    "--calibrate measured on this machine.  [told by the recording]",
)
@click.option(
    "--mapping",
    type=click.Path(path_type=Path),
    help="For a CSV of measured runs: a TOML file that says which column is which.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to report.",
)
def command(
    files: tuple[Path, ...],
    output: Path | None,
    force: bool,
    formats: Path | None,
    salvage: bool,
    process: str | None,
    begin_s: float | None,
    end_s: float | None,
    snapshot: Path | None,
    event_cost: str | None,
    mapping: Path | None,
    format_: str,
) -> None:
    """Turn a recording into a trace.

    FILE is what perf record wrote: a file, a directory (--threads), or - for a stream on
    standard input (perf record -o -).  Several files must be of one recording.  Text of perf
    script, ftrace and strace is read too; measured runs of others become RUNS (-o RUNS.parquet).
    """
    if mapping is not None or (output is not None and output.suffix == ".parquet"):
        _runs(files, output, force, mapping, format_)
        return
    _start_lightly()
    from mmreplay.importers.registry import import_trace

    name = files[0].stem if str(files[0]) != "-" else ""
    out = output if output is not None else Path(f"{name or 'trace'}.mmt")
    started = time.perf_counter()
    with _bar() as progress:
        trace = import_trace(
            files,
            out,
            force=force,
            formats=formats,
            process=process,
            begin_ns=None if begin_s is None else round(begin_s * 1e9),
            end_ns=None if end_s is None else round(end_s * 1e9),
            snapshot=snapshot,
            event_cost=_event_cost(event_cost),
            salvage=salvage,
            progress=progress,
        )
    wall_s = time.perf_counter() - started
    header = trace.header
    report: dict[str, Any] = {
        "schema": header.schema_,
        "trace": str(out),
        "source": " ".join(str(file) for file in files),
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
        import json

        click.echo(json.dumps(report))
        return
    click.echo(
        f"{out}: {plural(report['operations'], 'operation')} of "
        f"{plural(report['threads'], 'thread')} from {plural(report['events'], 'event')} "
        f"in {wall_s:.1f} s; {header.lost_events:,} lost"
    )


def _event_cost(text: str | None) -> tuple[int, str] | None:
    """(ns, method) of the option."""
    from mmreplay.errors import UserError

    if text is None:
        return None
    if text == "calibrated":
        from mmreplay.recorder.cost import calibrated_cost

        cost = calibrated_cost()
        if cost is None:
            raise UserError(
                "nothing was measured on this kernel and CPU",
                where="--event-cost",
                fix="run mmreplay record --calibrate, or give ns",
            )
        return cost.ns, f"mmreplay record --calibrate, {cost.source}"
    if not text.isdecimal() or int(text) > _LARGEST_COST_NS:
        raise UserError(
            f'"{text}" is no cost of an event',
            where="--event-cost",
            fix=f'give ns, 0 to {_LARGEST_COST_NS}, or "calibrated"',
        )
    return int(text), "given with --event-cost"


def _runs(
    files: tuple[Path, ...], output: Path | None, force: bool, mapping: Path | None, format_: str
) -> None:
    """Measured runs of others to a RUNS file."""
    from mmreplay.errors import UserError
    from mmreplay.hardware.foreign import read_foreign, read_mapping
    from mmreplay.hardware.runs import check_output, summary, write_runs

    out = check_output(str(output or f"{files[0].stem}.parquet"))
    if out.exists() and not force:
        raise UserError("exists already", where=str(out), fix="add --force to replace it")
    told = read_mapping(mapping) if mapping is not None else None
    runs = read_foreign(files, told)
    write_runs(runs, out)
    points = summary(runs.rows)
    if format_ == "json":
        import json

        report = {"schema": 1, "runs": str(out), "machine": runs.machine, "points": points}
        click.echo(json.dumps(report))
        return
    click.echo(f"{out}: {plural(len(runs.rows), 'run')} of {plural(len(points), 'point')}")


class _AnyName(types.ModuleType):
    """Has every name."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return list


def _start_lightly() -> None:
    """Before numpy is loaded: what costs an import more than it is good for.

    Threads of a linear algebra library that is never called (they spin at first), help texts of
    its functions and words for its types (11 of 58 ms to load it), giving memory back to the
    kernel between two windows, which must then clear it anew, and waiting 5 ms for whoever runs
    Python, which a thread beside needs for microseconds only.
    """
    if "numpy" not in sys.modules:
        sys.modules.update({name: types.ModuleType(name) for name in _HELP_TEXTS})
        sys.modules.update({name: _AnyName(name) for name in _TYPES})
    sys.setswitchinterval(_SWITCH_S)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with contextlib.suppress(AttributeError):  # other C libraries than glibc
        set_option = ctypes.CDLL(None).mallopt
        set_option(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        set_option(_M_TRIM_THRESHOLD, 16 * _KEPT_BYTES)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr where that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("import", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
