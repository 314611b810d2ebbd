"""What the user may ask of an import besides the recording and the trace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """``force``: replace a trace of that name.  ``formats``: another recording of the machine,
    for the formats of tracepoints that a cut one lacks.
    """

    force: bool = False
    formats: Path | None = None
