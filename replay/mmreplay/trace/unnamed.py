"""Files that nobody else sees: they have no name, and are gone when they are closed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO


def unnamed_file(directory: Path) -> IO[bytes]:
    """An empty file in ``directory``, to be written and read.

    As :func:`tempfile.TemporaryFile`, which what cannot make such files (NFS) is left to:
    loading that module, with the compressions that it never uses, takes 6 ms (-X importtime).

    Raises
    ------
    OSError
        It cannot be made.
    """
    try:
        return os.fdopen(os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600), "w+b")
    except (OSError, AttributeError):
        import tempfile

        return tempfile.TemporaryFile(dir=directory)
