"""``mmreplay locks verify``: count on the running kernel, compare with its model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmreplay.errors import UserError

if TYPE_CHECKING:
    from mmreplay.lockcounts.verify import Line, Verification

_COLUMNS = ("reads", "writes", "downgrades")


@click.command()
@click.option(
    "--kernel",
    metavar="NAME",
    default="",
    help="Model, release or .toml file to compare with; default: the running kernel's.",
)
@click.option("--phases", metavar="A,B", default="", help="Only these phases or groups of phases.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Text for people, JSON for programs.",
)
@click.option(
    "--write",
    metavar="MODEL.toml",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a model that extends the compared one by what the counts tell.",
)
def command(kernel: str, phases: str, format_: str, write: Path | None) -> None:
    """Perform memory-map operations here, count the kernel's mmap_lock acquisitions with its
    own tracepoints, and compare with the model chosen for this kernel.

    Needs permission to trace (root) and half a minute.  Exit code 0: all equal, 1: something
    differs, 2: cannot be done here.
    """
    from mmreplay.lockcounts import verify

    wanted = [name.strip() for name in phases.split(",") if name.strip()]
    if write is not None and write.suffix != ".toml":
        raise UserError(f'"{write}" is not a .toml file', where="--write", fix="name it NAME.toml")
    if write is not None and kernel.endswith(".toml"):
        raise UserError(
            "a model that is written extends a shipped one",
            where="--write",
            fix="give --kernel a shipped model, or leave it out",
        )
    found = verify.run(kernel, wanted, _progress)
    _progress("")
    if not found.lines:
        raise UserError(
            "nothing could be compared"
            + "".join(f"; {name}: {why}" for name, why in list(found.not_done.items())[:3])
        )
    if found.note:
        click.echo(found.note, err=True)
    derived = None
    if write is not None:
        from mmreplay.lockcounts import derive

        derived = derive.derive(found, write.stem)
        derive.write(derived, write)
    if format_ == "json":
        document = as_json(found)
        if derived is not None:
            document["written"] = {
                "model": str(write),
                "extends": derived.base,
                "unexplained": list(derived.unexplained),
            }
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo("\n".join(as_text(found)))
        if derived is not None:
            click.echo(
                f"{write}: extends {derived.base}; {len(derived.unexplained)} of"
                f" {len(found.lines)} phases differ from it"
            )
    if found.differences:
        sys.exit(1)


def _progress(group: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{group and 'counting: '}{group}", nl=False, err=True)


def as_json(found: Verification) -> dict[str, Any]:
    """The comparison as plain data; counts are over all operations of a phase."""
    from mmreplay.lockcounts.verify import meaning

    rows = []
    for line in found.lines:
        row: dict[str, Any] = {
            "phase": line.phase,
            "group": line.group,
            "ops": line.ops,
            "counted": dict(zip(_COLUMNS, line.counted, strict=True)),
            "model": dict(zip(_COLUMNS, line.expected, strict=True)),
            "equal": not line.differs,
        }
        if line.differs:
            row["meaning"] = meaning(line, found)
            row["counts_as"] = list(line.as_models)
        rows.append(row)
    return {
        "schema": 1,
        "kernel": found.kernel,
        "model": found.model,
        "method": found.method,
        "closer_model": found.closer.model if found.closer else None,
        "phases": rows,
        "not_done": dict(found.not_done),
    }


def as_text(found: Verification) -> list[str]:
    """What differs, per operation; then what was equal, and what was not done."""
    from mmreplay.lockcounts.verify import meaning

    n, differ = len(found.lines), len(found.differences)
    out = [f"kernel {found.kernel}, counted with {found.method}; model {found.model}"]
    if differ:
        width = max(len(line.phase) for line in found.differences)
        out.append(f"{'per operation':{width}}    reads   writes  downgrades")
    for line in found.differences:
        for what, counts in (("counted", line.counted), ("model", line.expected)):
            name = line.phase if what == "counted" else ""
            out.append(f"{name:{width}} {_numbers(line, counts)}  {what}")
        out.append(f"  {meaning(line, found)}")
    out.append(f"{n - differ} of {n} phases equal" if differ else f"all {n} phases equal the model")
    if found.closer is not None:
        closer = found.closer
        out.append(
            f"{closer.model} is closer: {len(closer.differences)} phases differ"
            f" (--kernel {closer.model})"
        )
    if found.not_done:
        out.append("not compared:")
        out += [f"  {name}: {why}" for name, why in found.not_done.items()]
    return out


def _numbers(line: Line, counts: tuple[int, ...]) -> str:
    read, write, downgrade = (count / line.ops for count in counts)
    return f"{read:8.3f} {write:8.3f} {downgrade:11.3f}"
