"""``mmreplay locks``: lock counts of kernels against the models."""

from __future__ import annotations

import click

from mmreplay.cli.lazy import LazyGroup

COMMANDS: dict[str, tuple[str, str]] = {
    "check": ("mmreplay.cli.locks_check", "Compare a file of counts with the models."),
    "verify": (
        "mmreplay.cli.locks_verify",
        "Count the locks of the running kernel and compare with its model.",
    ),
}


@click.group(cls=LazyGroup, table=COMMANDS)
def command() -> None:
    """Compare lock counts of real kernels with the models."""
