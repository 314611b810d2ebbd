"""A model file as text: TOML with the line of every key, and programs as statements."""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mmreplay.errors import closest
from mmreplay.locking.problems import ModelError, Problem
from mmreplay.locking.vocabulary import WORDS

#: A model file is a page or two; anything larger is not one.
MAX_BYTES: Final = 1 << 20

_HEADER: Final = re.compile(r"^\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$")
_KEY: Final = re.compile(r"""^\s*("[^"]*"|'[^']*'|[A-Za-z0-9_.\-]+)\s*=\s*(.*)$""")
_NAME: Final = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


@dataclass(frozen=True, slots=True)
class Statement:
    """One line of a program: its words without the comment, and where it stands."""

    words: tuple[str, ...]
    file: str
    line: int

    @property
    def op(self) -> str:
        return self.words[0]


@dataclass(slots=True)
class Program:
    """A program text: statements, and labels as indices into them."""

    name: str
    file: str
    line: int
    statements: list[Statement] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    label_lines: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class SourceFile:
    """One parsed file: its data, the line of each key and its sha256."""

    path: Path
    name: str  # the path as the user gave it
    data: dict[str, Any]
    lines: dict[tuple[str, str], int]
    starts: dict[tuple[str, str], int]  # first line of the text of a multi-line string
    sha256: str

    def line(self, table: str, key: str = "") -> int:
        """The line of a key, else of its table, else 0."""
        return self.lines.get((table, key), self.lines.get((table, ""), 0))

    def problem(self, text: str, table: str = "", key: str = "") -> Problem:
        return Problem(self.name, self.line(table, key), text)


def _unquote(key: str) -> str:
    return key[1:-1] if len(key) > 1 and key[0] in "\"'" else key


_Lines = dict[tuple[str, str], int]


def _key_lines(text: str) -> tuple[_Lines, _Lines]:
    """(table, key) -> line, found by a scan that knows headers and multi-line strings.

    The second map has, for multi-line strings, the line where their text begins.
    """
    lines: _Lines = {}
    starts: _Lines = {}
    table = ""
    inside = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if inside:
            if inside in line:
                inside = ""
            continue
        header = _HEADER.match(line)
        if header:
            table = ".".join(_unquote(part.strip()) for part in header.group(1).split("."))
            lines.setdefault((table, ""), number)
            continue
        pair = _KEY.match(line)
        if pair:
            key = (table, _unquote(pair.group(1)))
            lines.setdefault(key, number)
            value = pair.group(2)
            for quote in ('"""', "'''"):
                if value.startswith(quote):
                    starts.setdefault(key, number if value[3:] else number + 1)
                    if quote not in value[3:]:
                        inside = quote
    return lines, starts


def read_source(path: Path, name: str | None = None) -> SourceFile:
    """Read and parse one file.  Raises ModelError (not TOML, too large, unreadable)."""
    name = str(path) if name is None else name
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError([Problem(name, 0, "larger than 1 MiB: not a locking model")])
        raw = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelError([Problem(name, 0, f"cannot read the model: {reason}")]) from None
    return parse_source(raw, path, name)


def parse_source(raw: bytes, path: Path, name: str) -> SourceFile:
    """Parse the bytes of a file.  Raises ModelError."""
    try:
        text = raw.decode()
        data = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ModelError([Problem(name, line, "not UTF-8 text")]) from None
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(found.group(1)) if found else 0
        text = re.sub(r"\s*\(at [^)]*\)", "", str(error))
        raise ModelError([Problem(name, line, f"not valid TOML: {text}")]) from None
    except RecursionError:
        raise ModelError([Problem(name, 0, "not valid TOML: nested too deeply")]) from None
    lines, starts = _key_lines(text)
    return SourceFile(path, name, data, lines, starts, hashlib.sha256(raw).hexdigest())


def parse_program(name: str, text: str, file: str, line: int, problems: list[Problem]) -> Program:
    """Split a program text, which begins at ``line``, into statements and labels.

    Unknown words and bad labels are appended to ``problems``.
    """
    program = Program(name, file, line)
    for offset, raw in enumerate(text.split("\n")):
        at = line + offset
        words = raw.split("#", 1)[0].split()
        if not words:
            continue
        if words[0].startswith("."):
            _label(program, words, at, problems)
            continue
        if words[0] not in WORDS:
            problems.append(
                Problem(file, at, f'unknown word "{words[0]}"{closest(words[0], WORDS)}')
            )
            continue
        program.statements.append(Statement(tuple(words), file, at))
    return program


def _label(program: Program, words: list[str], at: int, problems: list[Problem]) -> None:
    label = words[0][1:].removesuffix(":")
    if len(words) > 1 or not words[0].endswith(":") or not _NAME.match(label):
        problems.append(Problem(program.file, at, f'a label is ".name:", not "{" ".join(words)}"'))
    elif label in program.labels:
        first = program.label_lines[label]
        problems.append(
            Problem(program.file, at, f'label "{label}" is already defined at line {first}')
        )
    elif label in (program.name, "retry"):
        taken = "the way out of a called program" if label == "retry" else "its program"
        problems.append(Problem(program.file, at, f'label "{label}" has the name of {taken}'))
    else:
        program.labels[label] = len(program.statements)
        program.label_lines[label] = at


def is_name(word: str) -> bool:
    """Whether ``word`` may name a lock, program, cost or label."""
    return bool(_NAME.match(word))
