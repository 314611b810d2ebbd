"""``mmreplay doctor``: what this machine allows, and what to do about each lack."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mmreplay.hardware.doctor import Finding

_MARKS = {"yes": "ok", "partly": "!", "no": "x"}


@click.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Text for people, JSON for programs.",
)
def command(form: str) -> None:
    """Say what this machine allows: tracing, perf, both lock paths, memory, CPUs."""
    from mmreplay.hardware.doctor import as_data, examine

    findings = examine()
    if form == "json":
        click.echo(json.dumps(as_data(findings), indent=2))
        return
    click.echo("\n".join(as_text(findings)))


def as_text(findings: list[Finding]) -> list[str]:
    """A line for each thing, and one below it for what to do."""
    from mmreplay.report.page import table

    rows = []
    for finding in findings:
        needed = f" (for {finding.needed_for})" if finding.status != "yes" else ""
        rows.append((f"{_MARKS[finding.status]:2}  {finding.name}", f"{finding.found}{needed}"))
        if finding.fix and finding.status != "yes":
            rows.append(("", finding.fix))
    return table(None, rows, left=(0,), flow=1).splitlines()
