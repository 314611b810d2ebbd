"""Every command that README and docs show is run, in order, in a scratch directory.

A fenced block marked ``console`` holds commands after ``$ `` (a trailing backslash
continues); what follows them is output and is not compared.  A block is left out
only where an HTML comment right before it says why: ``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]+?) -->\n+)?```console\n(?P<body>.*?)```", re.DOTALL
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: ``make`` sets up an environment and runs this very suite; the demo's own commands run below.
MAKE = re.compile(r"^make\b")


def commands(page: Path) -> list[str]:
    found: list[str] = []
    for block in BLOCK.finditer(page.read_text()):
        if block["why"]:
            continue
        joined = block["body"].replace("\\\n", " ")
        found += [line[2:].strip() for line in joined.splitlines() if line.startswith("$ ")]
    return found


def demo_commands() -> list[str]:
    """The recipe lines of ``make demo``, as make prints them."""
    lines = (
        subprocess.run(
            ["make", "--dry-run", "--always-make", "demo"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        .stdout.replace("\\\n", " ")
        .splitlines()
    )
    return [line.split("/bin/", 1)[1] for line in lines if "/bin/mmreplay " in line]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that looks like the checkout but can be written to."""
    place = tmp_path_factory.mktemp("checkout")
    for name in ("datasets", "models", "examples", "docs", "benchmarks", "replay"):
        if (ROOT / name).is_dir():
            (place / name).symlink_to(ROOT / name)
    (place / "build").mkdir()
    return place


def run(command: str, place: Path) -> None:
    launcher = place / "bin"
    launcher.mkdir(exist_ok=True)
    for name, words in (("mmreplay", "-m mmreplay"), ("python", "")):
        script = launcher / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        script.chmod(0o755)
    done = subprocess.run(
        command,
        shell=True,
        cwd=place,
        env={
            **os.environ,
            "PATH": f"{launcher}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "replay"),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_demo(scratch: Path) -> None:
    found = demo_commands()
    assert [c.split()[1] for c in found] == ["import", "show", "predict"]
    for command in found:
        run(command, scratch)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_page(page: Path, scratch: Path) -> None:
    if page.name == "README.md":
        assert "make demo" in commands(page)
        assert "make test" in commands(page)
    for command in commands(page):
        if not MAKE.match(command):
            run(command, scratch)
