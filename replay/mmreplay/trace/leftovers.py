"""What writers of traces that were killed have left, told from what living ones are at.

A writer works in ``NAME.mmt.partial-*`` beside its place and holds a lock (flock) on that
directory; the kernel lets it go however the writer ends.  The next writer to the same place
removes what nobody holds.  Where the file system cannot lock directories (NFS), nothing is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path


def make(path: Path) -> tuple[Path, int]:
    """A fresh directory beside ``path`` to write a trace in, and the descriptor that holds it.

    Raises
    ------
    OSError
        It cannot be made.
    """
    while True:
        # PID for people, the random rest for two writers in one process.
        made = path.with_name(f"{path.name}.partial-{os.getpid()}-{os.urandom(4).hex()}")
        made.mkdir()
        held = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.suppress(OSError):  # it cannot be locked, so nobody will remove it
            fcntl.flock(held, fcntl.LOCK_EX)
        if made.exists():
            return made, held
        os.close(held)  # somebody cleaned between the two


def clean(path: Path) -> None:
    """Remove what killed writers to ``path`` left; put back the trace that one was replacing."""
    for left in path.parent.glob(f"{_literal(path.name)}.partial-*"):
        with contextlib.suppress(OSError):
            held = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                old = left.with_name(left.name.replace(".partial-", ".replaced-"))
                if old.is_dir() and not path.exists():
                    old.rename(path)
                remove(left)
            finally:
                os.close(held)
    for left in path.parent.glob(f"{_literal(path.name)}.replaced-*"):
        if (
            path.exists()
            and not left.with_name(left.name.replace(".replaced-", ".partial-")).exists()
        ):
            remove(left)


def remove(path: Path) -> None:
    """Remove a directory with all that lies in it, as far as that can be done."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _literal(name: str) -> str:
    """``name`` as a pattern that matches itself only."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
