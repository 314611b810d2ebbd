"""The ``mmreplay`` command: a thin group that imports each subcommand only when it runs."""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
from pathlib import Path
from typing import Any, Final

import click

from mmreplay import __version__
from mmreplay.cli.lazy import LazyGroup
from mmreplay.errors import UserError

#: Subcommand -> (module, one line of help).  The help is here so that
#: ``mmreplay --help`` imports nothing but click.
COMMANDS: dict[str, tuple[str, str]] = {
    "record": ("mmreplay.cli.record", "Record a program with the right events."),
    "import": ("mmreplay.cli.import_", "Turn a recording (perf.data) into a trace."),
    "show": ("mmreplay.cli.show", "Say what a trace holds and what it can support."),
    "anonymise": ("mmreplay.cli.anonymise", "Copy a trace without what tells about its owner."),
    "export": ("mmreplay.cli.export", "Write a trace for a timeline viewer, or as CSV."),
    "replay": ("mmreplay.cli.replay", "Replay a trace once against one kernel, in detail."),
    "predict": ("mmreplay.cli.predict", "Predict what another kernel gains, per core count."),
    "measure": ("mmreplay.cli.measure", "Run workloads on this machine."),
    "doctor": ("mmreplay.cli.doctor", "Say what this machine allows, and what to do."),
    "calibrate": ("mmreplay.cli.calibrate", "Fit a machine profile to measured runs."),
    "accuracy": ("mmreplay.cli.accuracy", "How far the simulation is from measured runs."),
    "models": ("mmreplay.cli.models", "List, show, check and compare locking models."),
    "locks": ("mmreplay.cli.locks", "Compare lock counts of real kernels with the models."),
    "synth": ("mmreplay.cli.synth", "Generate a trace from a workload."),
    "workloads": ("mmreplay.cli.workloads", "List and show workload definitions."),
    "machines": ("mmreplay.cli.machines", "List and show machine profiles."),
}

#: What a full or failing disk answers, wherever it is met; the file may be one of Arrow's or
#: Polars's making, so that only the top sees all of them.
_DISK: Final = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some of the quota, or write to another disk",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or write less",
    errno.EROFS: "write to another place",
    errno.EIO: "look at the kernel's log (dmesg)",
}

#: So many new objects are looked at for garbage together; Python's own 700 are few.
_MADE_BEFORE_GARBAGE: Final = 100_000


@click.group(
    cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="mmreplay")
def cli() -> None:
    """Predict what a program loses to the memory map's locks, and what would change it."""


def main(argv: list[str] | None = None) -> Any:
    """Entry point: a user error is one line on stderr and exit code 2; a bug its traceback."""
    # What modules are made of stays: nothing is won by looking for garbage in it meanwhile.
    gc.set_threshold(_MADE_BEFORE_GARBAGE)
    if sys.stdout is None:  # closed by who started us: what is printed goes nowhere, as print's
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # latin-1 and such: what they lack becomes "?"
    try:
        result = cli.main(args=argv, prog_name="mmreplay", standalone_mode=False)
        if argv is None:
            _leave()
        return result
    except UserError as error:
        click.echo(f"mmreplay: {error.line()}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"mmreplay: {_line(error)}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"mmreplay: {where}{error.strerror}; {_DISK[error.errno]}", err=True)
        sys.exit(2)
    except click.Abort:
        click.echo("mmreplay: interrupted", err=True)
        sys.exit(130)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)


def _leave() -> None:
    """End the process at once: nobody needs what modules and tables are made of taken apart.

    That takes 6 ms of an import, more where numba was loaded.  What cannot be flushed is left
    to the usual end, which says so.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return
    os._exit(0)


def _line(error: click.ClickException) -> str:
    """What the parser of the command line refused: what, where and the fix, in one line."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context else "mmreplay"
    fix = f"see {path} --help"
    problem = error.format_message()
    if type(error) is click.BadParameter and error.param is not None:
        wanted = error.param.type
        if isinstance(wanted, click.types.IntParamType):
            fix = "give one whole number, for example 4"
        elif isinstance(wanted, click.types.FloatParamType):
            fix = "give a number, for example 2.5"
        problem = f"{error.param.get_error_hint(context)}: {error.message}".replace("'", "")
    return UserError(problem.rstrip("."), fix=fix).line()


if __name__ == "__main__":
    main()
