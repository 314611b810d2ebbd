"""``mmreplay locks check``: what kernels were counted to lock, against the models."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mmreplay.lockcounts import Report


@click.command()
@click.argument("counts")
@click.option(
    "--kernel",
    "kernels",
    multiple=True,
    help="Only this kernel of the file; may be given several times.",
)
@click.option(
    "--model",
    default="",
    help="Compare with this model (name or .toml file) instead of each kernel's own.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json", "csv"]),
    default="text",
    show_default=True,
    help="Text for people, JSON and CSV for programs.",
)
def command(counts: str, kernels: Sequence[str], model: str, format_: str) -> None:
    """Replay every phase of COUNTS (a CSV file) and compare lock by lock.

    Each phase is written as a trace, planned and replayed under the kernel's model;
    acquisitions must be equal.  Exit code 1 where one differs.
    """
    from mmreplay.lockcounts import check_counts, read_counts

    reports = check_counts(
        read_counts(counts),
        kernels=kernels,
        model=model,
        progress=lambda text: click.echo(text, err=True),
    )
    write = {"text": as_text, "json": as_json, "csv": as_csv}[format_]
    click.echo(write(reports), nl=False)
    if any(report.count("differs") for report in reports):
        sys.exit(1)


def as_text(reports: Sequence[Report]) -> str:
    """A line for each kernel, then every difference, then what is not compared."""
    lines = []
    width = max(len(report.kernel) for report in reports)
    for report in reports:
        lines.append(
            f"{report.kernel:{width}}  {report.model}: {report.count('equal')} phases equal,"
            f" {report.count('differs')} differ, {report.count('not compared')} not compared"
            + "".join(f"; {fact} (inferred)" for fact in report.environment)
        )
    for report in reports:
        for row in report.rows:
            if row.outcome == "differs":
                lines.append(f"{report.kernel} {row.phase}: {row.why}")
    reasons: dict[str, list[str]] = {}
    for report in reports:
        for row in report.rows:
            if row.outcome == "not compared":
                phases = reasons.setdefault(row.why, [])
                if row.phase not in phases:
                    phases.append(row.phase)
    for why, phases in reasons.items():
        lines.append(f"not compared: {', '.join(phases)}: {why}")
    return "\n".join(lines) + "\n"


def as_json(reports: Sequence[Report]) -> str:
    """Every row with both counts."""
    data = {
        "schema": 1,
        "kernels": [
            {
                "kernel": report.kernel,
                "model": report.model,
                "note": report.note,
                "environment": list(report.environment),
                "equal": report.count("equal"),
                "differs": report.count("differs"),
                "not_compared": report.count("not compared"),
                "phases": [
                    {
                        "phase": row.phase,
                        "ops": row.ops,
                        "outcome": row.outcome,
                        "why": row.why,
                        "tolerance": row.tolerance,
                        "counted": dict(row.counted),
                        "replayed": dict(row.replayed),
                    }
                    for row in report.rows
                ],
            }
            for report in reports
        ],
    }
    return json.dumps(data, indent=2) + "\n"


def as_csv(reports: Sequence[Report]) -> str:
    """One line for each kernel and phase; both counts of each column."""
    from mmreplay.lockcounts import COLUMNS

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    pairs = [f"{name}_{side}" for name in COLUMNS for side in ("counted", "replayed")]
    writer.writerow(["kernel", "model", "phase", "ops", "outcome", *pairs, "why"])
    for report in reports:
        for row in report.rows:
            counts = [
                side.get(name) if side.get(name) is not None else ""
                for name in COLUMNS
                for side in (row.counted, row.replayed)
            ]
            writer.writerow(
                [report.kernel, report.model, row.phase, row.ops, row.outcome, *counts, row.why]
            )
    return out.getvalue()
