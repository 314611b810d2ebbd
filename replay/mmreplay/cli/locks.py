"""``mmreplay locks``: lock counts of kernels against the models."""

from __future__ import annotations

import click

from mmreplay.cli.lazy import LazyGroup

COMMANDS: dict[str, tuple[str, str]] = {
    "verify": (
        "mmreplay.cli.locks_verify",
        "Count the locks of the running kernel and compare with its model.",
    ),
}


@click.group(cls=LazyGroup, table=COMMANDS)
def command() -> None:
    """Hold the locks that kernels take against the locking models."""
