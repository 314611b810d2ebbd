"""``mmreplay synth``: a workload as a trace."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from mmreplay.errors import plural

#: A recording of more operations is replayed beside what was learnt only where that is asked for.
_MOST_CHECKED = 200_000
_FOR_EVER_S = 1e6
#: How much the operations of a trace with phases may differ from what was asked for.
_ROOM = 0.1

if TYPE_CHECKING:
    from mmreplay.predict.likeness import Likeness
    from mmreplay.workloads.generator import Synthetic
    from mmreplay.workloads.learn import Learnt


@click.command("synth")
@click.argument("workload", required=False)
@click.option("--from", "source", metavar="TRACE", help="Learn the workload from a trace.")
@click.option("--save", metavar="FILE.toml", help="With --from: also write what was learnt.")
@click.option("-o", "--output", metavar="NAME.mmt", required=True, help="Trace to write.")
@click.option("--threads", type=int, help="Threads to generate [4; with --from: as recorded].")
@click.option("--seed", type=int, default=1, show_default=True, help="Random seed.")
@click.option(
    "--ops",
    type=int,
    help="Most operations [200000; with --from: as recorded, for each thread].",
)
@click.option(
    "--duration", type=float, help="Most seconds [1; with --from: until it has that many]."
)
@click.option(
    "--check/--no-check",
    default=None,
    help="With --from: replay what was learnt beside the recording, and say how far it is off"
    " [up to 200000 operations].",
)
@click.option(
    "--path",
    default="vma",
    show_default=True,
    help="How pages are faulted in: vma, mmap_lock or kernel.",
)
@click.option("--force", is_flag=True, help="Replace a trace of that name.")
@click.option("--format", "form", default="text", show_default=True, help="text or json.")
def command(
    workload: str | None,
    source: str | None,
    save: str | None,
    check: bool | None,
    form: str,
    **options: Any,
) -> None:
    """Generate a trace from WORKLOAD (see mmreplay workloads list, or a .toml file).

    With --from a workload is learnt from a recorded trace, so that longer traces or ones
    with more threads can be generated.

    It ends at --ops or --duration, whichever is first.  It has no durations: what an
    operation costs comes from the machine profile that it is replayed on.
    """
    from mmreplay.errors import UserError, closest
    from mmreplay.workloads.api import synthesise

    if form not in ("text", "json"):
        raise UserError(
            f'"{form}"{closest(form, ("text", "json"))}', where="--format", fix="use text or json"
        )

    if (workload is None) == (source is None):
        raise UserError("give either a WORKLOAD or --from TRACE", fix="see mmreplay workloads list")
    if save is not None and source is None:
        raise UserError("there is nothing learnt to save", where="--save", fix="add --from TRACE")
    if check is not None and source is None:
        raise UserError("there is nothing learnt to check", where="--check", fix="add --from TRACE")

    def progress(rows: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{rows:,} operations", nl=False, err=True)

    duration_s = options.pop("duration")
    left: dict[str, int] = {}
    what: Any = workload
    learnt = None
    if source is None:
        options |= {k: v for k, v in (("threads", 4), ("ops", 200_000)) if options[k] is None}
        duration_s = 1.0 if duration_s is None else duration_s
    else:
        learnt = _Learnt(source, save, options)
        what, left = learnt.workload, learnt.found.left_out
        duration_s = _FOR_EVER_S if duration_s is None else duration_s
    made = synthesise(what, duration_s=duration_s, progress=progress, **options)
    like, why = None, "it is long; --check does it all the same"
    if learnt is not None and check is not False:
        try:
            like = learnt.likeness(options["seed"], asked=bool(check))
        except UserError as refused:  # the trace is there all the same
            why = refused.problem
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)
    if form == "json":
        beside = {"not_learnt": left, "likeness": None if like is None else like.to_json()}
        click.echo(json.dumps(as_data(made) | beside, indent=2))
        return
    click.echo(as_text(made))
    if left:
        listed = ", ".join(f"{count:,} {why}" for why, count in left.items())
        click.echo(f"  recorded but not learnt: {listed}")
    if like is not None:
        click.echo(f"  {like.line()}")
    elif learnt is not None and check is not False:
        click.echo(f"  not replayed beside the recording: {why}")


class _Learnt:
    """What was learnt of a recording; completes ``options`` as recorded."""

    def __init__(self, source: str, save: str | None, options: dict[str, Any]) -> None:
        from mmreplay.trace.store import Trace
        from mmreplay.workloads.api import learn_workload

        self.recorded = Trace.open(source)
        self.source = source
        self.workload, self.found = learn_workload(source, save=save)
        machine = self.recorded.header.machine
        wider = (options["threads"] or self.found.threads) / self.found.threads
        if options["ops"] is None:
            options["ops"] = _most(self.found, wider)
        elif self.found.phases > 1:
            ops = max(1, round(options["ops"] / wider * (1 - _ROOM / 2)))
            self.workload, self.found = learn_workload(source, ops=ops, save=save)
        if options["threads"] is None:
            options["threads"] = self.found.threads
        if machine.cpus_online is not None:
            options["cpus"] = max(1, round(machine.cpus_online * wider))
        options["machine"] = machine

    def likeness(self, seed: int, *, asked: bool) -> Likeness | None:
        """As many operations and threads as recorded, replayed beside the recording."""
        from mmreplay.predict.likeness import likeness
        from mmreplay.workloads.api import learn_workload, synthesise

        if not asked and self.recorded.rows("operations") > _MOST_CHECKED:
            return None
        workload, found = learn_workload(self.source)
        machine = self.recorded.header.machine
        made = synthesise(
            workload,
            threads=found.threads,
            seed=seed,
            ops=_most(found, 1.0),
            duration_s=_FOR_EVER_S,
            cpus=machine.cpus_online,
            machine=machine,
        )
        return likeness(self.recorded, made.trace)


def _most(found: Learnt, wider: float) -> int:
    """When to stop: phases end by themselves, with a few operations more or less."""
    return max(1, round(found.rows * wider * (1 + _ROOM if found.phases > 1 else 1)))


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
        f"{made.trace.path}: {made.workload}, {plural(made.threads, 'thread')},"
        f" {made.rows:,} operations in {made.span_ns / 1e6:,.1f} ms (nominal)"
    ]
    for role, ops in made.ops.items():
        lines.append(f"  {role}: {ops:,} operations, {made.counted[role]:,} counted")
    return "\n".join(lines)
