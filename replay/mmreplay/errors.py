"""The only two error families: what a user can cause, and bugs.

A :class:`UserError` is one line that says what is wrong, where, and what to do
about it; the command line prints it and exits with code 2.  Everything else is
a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final


class UserError(Exception):
    """An error that a user caused and can mend.

    Parameters
    ----------
    problem:
        What is wrong, with the offending value, in one line.
    where:
        The file (with line), option, column or row it concerns; may be empty.
    fix:
        What to do about it; may be empty only when the problem says it.
    """

    def __init__(self, problem: str, *, where: str = "", fix: str = "") -> None:
        self.problem = problem
        self.where = where
        self.fix = fix
        super().__init__(self.line())

    def line(self) -> str:
        """The whole error as one line: ``where: problem; fix``."""
        text = f"{self.where}: {self.problem}" if self.where else self.problem
        if self.fix:
            text = f"{text}; {self.fix}"
        return " ".join(text.split())


#: Characters that are taken for one another, by eye or by finger.
_ALIKE: Final = str.maketrans("lIOo", "1100")


def closest(word: str, known: Iterable[str]) -> str:
    """``' (did you mean "x"?)'`` for the known word nearest to ``word``, or ``''``.

    Of equally near ones (``linux-6.l``: 6.1 or 6.9) it is the one that looks alike, then the first.
    """
    import difflib

    words = list(known)
    near = difflib.get_close_matches(word, words, n=9, cutoff=0.5)
    if not near:
        return ""

    def likeness(other: str) -> tuple[float, float]:
        match, plain = difflib.SequenceMatcher(), word.translate(_ALIKE)
        match.set_seqs(other, word)
        exact = match.ratio()
        match.set_seqs(other.translate(_ALIKE), plain)
        return exact, match.ratio()

    return f' (did you mean "{max(sorted(near, key=words.index), key=likeness)}"?)'


def plural(count: int, one: str, many: str = "") -> str:
    """``1 thread``, ``1,200 threads``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def require_parent(output: Path) -> None:
    """Raise a :class:`UserError` unless ``output`` is to lie in a directory that exists."""
    parent = output.absolute().parent
    if not parent.exists():
        raise UserError("there is no such directory", where=str(parent), fix="make it first")
    if not parent.is_dir():
        raise UserError(
            "cannot write there (not a directory)", where=str(parent), fix="choose another output"
        )
    require_no_device(output)


def require_no_device(output: Path) -> None:
    """Raise a :class:`UserError` where ``output`` is a device or a pipe.

    Results are written beside their name and renamed: that would replace it, be it
    ``/dev/stdout``.
    """
    odd = output.exists() and not (output.is_file() or output.is_dir())
    _, *above = output.absolute().parts
    if odd or above[:1] == ["proc"] or (above[:1] == ["dev"] and above[1:2] != ["shm"]):
        raise UserError(
            "cannot write there (a device, a pipe or a kernel's name, not a file)",
            where=str(output),
            fix="name a file, or leave the name out where the result can go to stdout",
        )
