"""The ``mmreplay`` command: a thin group that imports each subcommand only when it runs."""

from __future__ import annotations

import sys
from typing import Any

import click

from mmreplay import __version__
from mmreplay.cli.lazy import LazyGroup
from mmreplay.errors import UserError

#: Subcommand -> (module, one line of help).  The help is here so that
#: ``mmreplay --help`` imports nothing but click.
COMMANDS: dict[str, tuple[str, str]] = {
    "import": ("mmreplay.cli.import_", "Turn a recording (perf.data) into a trace."),
    "show": ("mmreplay.cli.show", "Say what a trace holds and what it can support."),
    "replay": ("mmreplay.cli.replay", "Replay a trace once against one kernel, in detail."),
    "predict": ("mmreplay.cli.predict", "Predict what another kernel gains, per core count."),
    "models": ("mmreplay.cli.models", "List, show and check locking models."),
    "locks": ("mmreplay.cli.locks", "Count locks of kernels and compare with the models."),
    "machines": ("mmreplay.cli.machines", "List and show machine profiles."),
}


@click.group(
    cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="mmreplay")
def cli() -> None:
    """Predict what a program loses to the memory map's locks, and what would change it."""


def main(argv: list[str] | None = None) -> Any:
    """Entry point: a user error is one line on stderr and exit code 2; a bug its traceback."""
    try:
        return cli.main(args=argv, prog_name="mmreplay", standalone_mode=False)
    except UserError as error:
        click.echo(f"mmreplay: {error.line()}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"mmreplay: {error.format_message()}", err=True)
        sys.exit(2)
    except click.Abort:
        click.echo("mmreplay: interrupted", err=True)
        sys.exit(130)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
