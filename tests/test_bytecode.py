"""Where Python may not keep bytecode, the package's own is kept in its cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "replay"
_PROGRAM = """
import sys
from mmreplay.cli.main import main
sys.argv = ["mmreplay", "models", "list"]
main()
"""


def _kept(cache: Path, **environment: str) -> dict[str, float]:
    """Bytecode in the cache after a command, by file, and when it was written."""
    subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        check=True,
        capture_output=True,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
            "PYTHONPATH": str(SOURCE),
            "PYTHONPYCACHEPREFIX": str(cache / "pythons-own"),
            "MMREPLAY_CACHE": str(cache),
            **environment,
        },
    )
    return {
        str(file.relative_to(cache)): file.stat().st_mtime
        for file in (cache / "bytecode").rglob("*.pyc")
    }


def test_it_is_kept_once_and_is_the_packages_own(tmp_path: Path) -> None:
    kept = _kept(tmp_path, PYTHONDONTWRITEBYTECODE="1")
    assert any("mmreplay/cli/models" in file for file in kept)
    assert all("mmreplay" in file for file in kept)
    assert not (tmp_path / "pythons-own").exists()
    assert _kept(tmp_path, PYTHONDONTWRITEBYTECODE="1") == kept


def test_python_keeps_it_where_it_may(tmp_path: Path) -> None:
    assert _kept(tmp_path) == {}
