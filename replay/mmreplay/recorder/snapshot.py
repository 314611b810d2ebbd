"""The address space of a running process, copied before it is recorded."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Final

from mmreplay.errors import UserError

#: Copied as they are: maps is cheap and whole; smaps says where pages are anonymous.
FILES: Final = ("maps", "smaps")


def snapshot(pids: tuple[int, ...], folder: Path) -> None:
    """Write ``folder/PID.maps`` and ``folder/PID.smaps`` of each process.

    ``folder/taken.json`` says when, on CLOCK_MONOTONIC, the recording's clock.  Reading smaps
    walks the page tables under mmap_lock, taken for reading, once.

    Raises
    ------
    UserError
        A process is gone, or not ours to look at.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for pid in pids:
        for name in FILES:
            try:
                text = Path(f"/proc/{pid}/{name}").read_bytes()
                (folder / f"{pid}.{name}").write_bytes(text)
            except OSError as error:
                shutil.rmtree(folder, ignore_errors=True)
                raise UserError(
                    f"/proc/{pid}/{name} cannot be read ({error.strerror})",
                    where="--pid",
                    fix="check that the process runs, and run as root or as its owner",
                ) from None
    taken = {"clock": "CLOCK_MONOTONIC", "ns": time.monotonic_ns(), "pids": list(pids)}
    (folder / "taken.json").write_text(json.dumps(taken) + "\n")
