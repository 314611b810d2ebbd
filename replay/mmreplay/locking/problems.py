"""Mistakes in a model file: where and what, collected so that a check can show all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mmreplay.errors import UserError


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake: the file as the user named it, a line (0: the whole file), the text."""

    file: str
    line: int
    text: str

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


_SHOWN_USERS: Final = 3


def used_by(operations: Sequence[str]) -> str:
    """``"; used by 5 operations: mmap, munmap, brk_grow and 2 more"``; empty for a single one."""
    if len(operations) < 2:
        return ""
    shown = ", ".join(operations[:_SHOWN_USERS])
    rest = len(operations) - _SHOWN_USERS
    more = f" and {rest} more" if rest > 0 else ""
    return f"; used by {len(operations)} operations: {shown}{more}"


class ModelError(UserError):
    """A model file with mistakes: the first is the message, ``problems`` has them all."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        first = self.problems[0]
        rest = len(self.problems) - 1
        more = f"and {rest} more; see mmreplay models check {first.file}" if rest else ""
        super().__init__(first.text, where=first.where, fix=more)
