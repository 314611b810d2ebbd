"""What the user may ask of an import besides the recording and the trace."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Options(NamedTuple):
    """Parts and helps of an import.

    ``force``: replace a trace of that name.  ``formats``: another recording of the machine,
    for the formats of tracepoints that a cut one lacks.  ``process``: name or id of the
    process that is wanted.  ``begin_ns``, ``end_ns``: only what begins in this span of the
    recording's time, counted from its first event.  ``snapshot``: copy of /proc/PID/maps or
    smaps, or a directory of them, as they were before the recording.  ``event_cost``: ns that one
    recorded event cost the recorded thread, and how that was found; else the trace tells.
    ``salvage``: take what there is of a file whose end is missing.
    """

    force: bool = False
    formats: Path | None = None
    process: str | None = None
    begin_ns: int | None = None
    end_ns: int | None = None
    snapshot: Path | None = None
    event_cost: tuple[int, str] | None = None
    salvage: bool = False

    @property
    def whole(self) -> bool:
        """Whether all of the recording is wanted."""
        return self.process is None and self.begin_ns is None and self.end_ns is None
