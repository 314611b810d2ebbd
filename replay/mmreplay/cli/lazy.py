"""Command groups: what they do without a command; one imports its commands only when they run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from mmreplay.errors import UserError, closest


class Group(click.Group):
    """A group that prints its help where no command is given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])


class LazyGroup(Group):
    """A group whose subcommands are imported on use; help text comes from a table.

    Parameters
    ----------
    table:
        Subcommand → (module that has it as ``command``, one line of help), so that
        ``--help`` imports nothing but click.
    """

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        command = importlib.import_module(self.table[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.table and not args[0].startswith("-"):
            raise UserError(
                f'unknown command "{args[0]}"{closest(args[0], self.table)}',
                fix=f"see {ctx.command_path} --help",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])
