"""``mmreplay replay``: one simulation in detail."""

from __future__ import annotations

from typing import Any

import click


@click.command("replay")
@click.argument("trace", type=click.Path())
@click.option("--kernel", metavar="K", required=True, help="Kernel release or locking model.")
@click.option("--machine", metavar="M", help="Machine profile [matched to the recording].")
@click.option("--cores", type=int, metavar="N", help="CPUs to run on [as recorded].")
@click.option("--threads", type=int, metavar="N", help="Threads of the scaled group [as recorded].")
@click.option("--scale-group", metavar="G", help="Thread group that counts and is cloned.")
@click.option("--load", default="recorded", show_default=True, help="recorded or saturated.")
@click.option("--placement", default="compact", show_default=True, help="compact or scatter.")
@click.option("--seed", type=int, default=1, show_default=True, help="Random seed.")
@click.option("--costs", help="Where costs come from: trace or machine [trace where it has them].")
@click.option("--exact", is_flag=True, help="Replay all, also beyond a million operations.")
@click.option("--format", "form", default="text", show_default=True, help="text or json.")
@click.option("-o", "--output", metavar="FILE", help="Write there instead of to stdout.")
def command(trace: str, form: str, output: str | None, **options: Any) -> None:
    """Replay TRACE once under one kernel: lock counts, waits, who blocks whom."""
    from mmreplay.predict import api
    from mmreplay.predict.checks import check_choice
    from mmreplay.report.text import replay_text
    from mmreplay.report.writers import emit, replay_object, to_json

    check_choice(form, "--format", ("text", "json"))
    found = api.replay(trace, **options)
    emit(to_json(replay_object(found)) if form == "json" else replay_text(found), output)
