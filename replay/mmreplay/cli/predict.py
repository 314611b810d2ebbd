"""``mmreplay predict``: what another kernel gains, per core count."""

from __future__ import annotations

from typing import Any

import click


@click.command("predict")
@click.argument("trace", type=click.Path())
@click.option(
    "--from", "from_kernel", metavar="K1", help="Kernel to compare with [the trace's own]."
)
@click.option("--to", "to_kernel", metavar="K2", required=True, help="Kernel to predict.")
@click.option(
    "--cores", metavar="LIST", required=True, help="Core counts: 1,2,4 or 1-8 or 1-128:x2."
)
@click.option(
    "--threads",
    metavar="LIST",
    help='Threads of the scaled group, or "cores": one per core [as recorded].',
)
@click.option(
    "--scale-group", metavar="G", help="Thread group that counts and is cloned [busiest]."
)
@click.option("--load", default="both", show_default=True, help="recorded, saturated or both.")
@click.option("--machine", metavar="M", help="Machine profile [matched to the recording].")
@click.option("--placement", default="compact", show_default=True, help="compact or scatter.")
@click.option(
    "--seeds", type=int, metavar="N", help="Random seeds a point [2, fewer for many points]."
)
@click.option("--costs", help="Where costs come from: trace or machine [trace where it has them].")
@click.option("--exact", is_flag=True, help="Replay the whole trace, not windows of it.")
@click.option(
    "--format", "form", default="text", show_default=True, help="text, json, csv or parquet."
)
@click.option("-o", "--output", metavar="FILE", help="Write there instead of to stdout.")
def command(trace: str, form: str, output: str | None, **options: Any) -> None:
    """Predict what kernel K2 gains the program in TRACE over kernel K1.

    First the baseline drift (the trace replayed unchanged, against its own recording),
    then throughput and speed-up per core count, where the time goes, and who blocks whom.
    """
    from mmreplay.predict import api
    from mmreplay.predict.checks import check_choice
    from mmreplay.predict.counts import parse_counts
    from mmreplay.predict.runner import stderr_progress
    from mmreplay.report.text import prediction_text
    from mmreplay.report.writers import FORMATS, check_output, write_prediction

    check_choice(form, "--format", FORMATS)
    check_output(form, output)
    threads = options["threads"]
    options["cores"] = parse_counts(options["cores"], "--cores", "cores")
    if threads is not None and threads != "cores":
        options["threads"] = parse_counts(threads, "--threads", "threads")
    found = api.predict(trace, progress=stderr_progress("simulating"), **options)
    write_prediction(found, form, output, prediction_text(found))
