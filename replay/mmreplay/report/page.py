"""How text is laid out for people: prose and tables, as wide as the page allows.

A page is as wide as ``COLUMNS`` says, else as the terminal, else 80 columns; prose and tables of
numbers never use more than 80.  A table that does not fit is folded: its column of text is
wrapped, or each row becomes a few lines of "heading value".
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

#: Columns that prose has at most, and that a page is taken to have at least.
WIDEST: Final = 80
NARROWEST: Final = 30
#: Columns that a table with a column of text has at most.
_WIDEST_LIST: Final = 120
#: A column of text is wrapped, not put below, if it has this many columns.
_FLOWS: Final = 24
_GAP: Final = "  "
#: What a line of ``name    text`` begins with.
_LABEL: Final = re.compile(r"\s*(\S+(?: \S+)? {2,})?")


def width() -> int:
    """Columns of the page."""
    return max(shutil.get_terminal_size(fallback=(WIDEST, 24)).columns, NARROWEST)


def prose() -> int:
    """Columns of prose."""
    return min(width(), WIDEST)


def _wrapped(text: str, first: str, indent: str, columns: int) -> list[str]:
    return textwrap.wrap(
        text,
        columns,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def fill(text: str, indent: str = "") -> str:
    """Prose."""
    return "\n".join(_wrapped(text, indent, indent, prose()))


def bullet(text: str, mark: str = "- ") -> str:
    """Prose with a mark in front."""
    return "\n".join(_wrapped(text, mark, " " * len(mark), prose()))


def fold(text: str) -> str:
    """Lines as they are, or wrapped: below their text where a short name is in front of it."""
    page = prose()
    lines: list[str] = []
    for line in text.splitlines():
        if len(line) <= page:
            lines.append(line)
            continue
        label = _LABEL.match(line)
        hang = label.end() if label is not None else 0
        if label is None or not label[1] or page - hang < _FLOWS:
            hang = len(line) - len(line.lstrip()) + 2
        lead = line[: len(line) - len(line.lstrip())]
        lines += _wrapped(line.strip(), lead, " " * hang, page)
    return "\n".join(lines)


def table(
    head: Sequence[str] | None,
    rows: Iterable[Sequence[str]],
    left: Sequence[int] = (),
    flow: int | None = None,
) -> str:
    """Columns as wide as their content, two spaces between; numbers to the right.

    ``left``: columns that are aligned to the left; ``flow``: the one that holds text, the last
    one.  ``head``: None for a table that needs no headings.
    """
    page = min(width(), WIDEST if flow is None else _WIDEST_LIST)
    body = [list(row) for row in rows]
    columns = len(head) if head is not None else max((len(row) for row in body), default=0)
    titles = list(head) if head is not None else [""] * columns
    every = [titles, *body] if head is not None else body
    widths = [max((len(row[i]) for row in every), default=0) for i in range(columns)]
    if sum(widths) + len(_GAP) * (columns - 1) > page:
        room = page - sum(widths[:-1]) - len(_GAP) * (columns - 1)
        if flow is None or room < _FLOWS:
            return "\n".join(_stacked(titles, body, left, flow, page))
        widths[flow] = room
    lines = []
    for row in every:
        texts = [*row]
        more: list[str] = []
        if flow is not None and len(row[flow]) > widths[flow]:
            texts[flow], *more = _wrapped(row[flow], "", "", widths[flow])
        cells = [
            text.ljust(size) if i in left or i == flow else text.rjust(size)
            for i, (text, size) in enumerate(zip(texts, widths, strict=True))
        ]
        lines.append(_GAP.join(cells).rstrip())
        indent = " " * (sum(widths[:-1]) + len(_GAP) * (columns - 1))
        lines += [indent + text for text in more]
    return "\n".join(lines)


def _stacked(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[int],
    flow: int | None,
    page: int,
) -> list[str]:
    """Each row in lines of its own: what it is about, then what there is of the rest."""
    lines = []
    for row in rows:
        if row[0]:
            lines += _wrapped(row[0] if 0 in left else f"{head[0]} {row[0]}", "", "  ", page)
        pairs: list[str] = []
        for column, (title, cell) in enumerate(zip(head[1:], row[1:], strict=True), 1):
            if cell in ("", "-"):
                continue
            if flow is not None and column == flow:
                lines += _pairs(pairs, page)
                lines += _wrapped(cell, _GAP, _GAP, page)
                pairs = []
                continue
            pair = f"{title} {cell}" if title else cell
            if pairs and len(_GAP.join([*pairs, pair])) + len(_GAP) > page:
                lines += _pairs(pairs, page)
                pairs = []
            pairs.append(pair)
        lines += _pairs(pairs, page)
    return lines


def _pairs(pairs: Sequence[str], page: int) -> list[str]:
    """A line of pairs; one that is too long by itself is wrapped."""
    line = _GAP + _GAP.join(pairs)
    if not pairs:
        return []
    return [line] if len(line) <= page else _wrapped(line.strip(), _GAP, _GAP * 2, page)
