"""Compiled code that is loaded without numba: its results, and its cache."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = '''
"""Written by a test."""
import sys
from typing import NamedTuple

import numpy as np

from mmreplay.jit import borrowing_helper, native


class Pair(NamedTuple):
    left: np.ndarray
    right: np.ndarray


@borrowing_helper
def twice(value):
    return 2 * value


@native
def add(pair, table, scale, mask):
    for i in range(pair.left.shape[0]):
        pair.left[i] += twice(np.int64(pair.right[i])) * scale + table[i, 1]
    if mask >> np.uint64(63):
        return -1, pair.left.shape[0]
    return table.shape[0], table.shape[1]


@native
def nothing(values):
    values[0] = 7


pair = Pair(np.arange(4), np.arange(4, dtype=np.uint8))
table = np.arange(8, dtype=np.int32).reshape(4, 2)
table.flags.writeable = False
print(add(pair, table, 10, np.uint64(1)), add(pair, table, True, np.uint64(1 << 63)))
print(pair.left.tolist(), nothing(pair.left), pair.left.tolist())
for wrong in (table[::2], table.T, 1.5, [1]):
    try:
        nothing(wrong)
    except TypeError as error:
        print(error)
print("numba" in sys.modules, "llvmlite" in sys.modules)
'''


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that calls compiled code; the room ``importers`` has its cache."""
    file = tmp_path / "program.py"
    text = _PROGRAM.replace("\nclass", '\n__name__ = "mmreplay.importers.program"\n\n\nclass', 1)
    file.write_text(text)
    return file


def _run(
    program: Path, before: str = "", stderr: int = subprocess.PIPE, **changed: str
) -> list[str]:
    source = Path(__file__).parents[1] / "replay"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")},
        "MMREPLAY_CACHE": str(program.parent / "cache"),
        "PYTHONPATH": str(source),
        **changed,
    }
    told = f"import runpy\n{before}\nrunpy.run_path({str(program)!r})"
    done = subprocess.run(
        [sys.executable, "-c", told],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_code_from_the_cache_does_the_same_without_numba(program: Path) -> None:
    first, second = _run(program), _run(program)
    left = [i + 20 * i + 2 * i + 1 + 2 * i + 2 * i + 1 for i in range(4)]
    assert first[0] == "(4, 2) (-1, 4)"
    assert first[1] == f"{left} None {[7, *left[1:]]}"
    assert first[2:-1] == ["compiled code takes C-contiguous arrays"] * 2 + [
        "compiled code takes no float",
        "compiled code takes no list",
    ]
    assert first[-1] == "True True"
    plain = platform.machine() == "x86_64"
    assert second == [*first[:-1], "False False" if plain else "False True"]
    # What is not plain enough LLVM links.
    refuse = "from mmreplay.jit import linking; linking._MACHINE = 0"
    assert _run(program, refuse) == [*first[:-1], "False True"]


def test_who_looks_is_told_once_that_it_compiles(program: Path) -> None:
    terminal, end = os.openpty()
    try:
        _run(program, stderr=end)
        assert os.read(terminal, 4096).splitlines() == [
            b"mmreplay: compiling (only the first time)"
        ]
        _run(program, stderr=end)
    finally:
        os.close(end)
    with pytest.raises(OSError, match="error"):  # nothing more came
        os.read(terminal, 4096)
    os.close(terminal)


def test_who_looks_is_told_where_nothing_is_kept(program: Path) -> None:
    terminal, end = os.openpty()
    first = _run(program, stderr=end, MMREPLAY_CACHE="/dev/null/cache")
    assert b"each time: MMREPLAY_CACHE=DIR" in os.read(terminal, 4096)
    os.close(end)
    os.close(terminal)
    home = program.parent / "home"
    assert _run(program, MMREPLAY_CACHE="", XDG_CACHE_HOME="", HOME=str(home)) == first
    assert list((home / ".cache" / "mmreplay").rglob("*.o"))  # empty is as good as unset


def test_damaged_code_is_compiled_again(program: Path) -> None:
    first = _run(program)
    files = list((program.parent / "cache").rglob("*.o"))
    assert len(files) == 2  # one of each function: True and 10 are both integers
    for file, damage in zip(files, (b"", file_damaged(files[1])), strict=True):
        file.write_bytes(damage)
    assert _run(program) == first
    assert _run(program)[-1].startswith("False")


def file_damaged(file: Path) -> bytes:
    """The file's content with one bit turned."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)
