"""Formats: which one a path holds, and who reads it.

A new format is one module and one entry in :data:`FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmreplay.errors import UserError

if TYPE_CHECKING:
    from mmreplay.trace.store import Trace

Progress = Callable[[int, int], None]
_HEAD: Final = 4096


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    ``sniff`` gets the path and its first bytes (none for a directory); ``read`` imports
    (path, output, force, progress) and returns the finished trace.
    """

    name: str
    sniff: Callable[[Path, bytes], bool]
    read: Callable[[Path, Path, bool, Progress | None], Trace]


def _refuse(problem: str, fix: str) -> Callable[[Path, Path, bool, Progress | None], Trace]:
    def read(path: Path, out: Path, force: bool, progress: Progress | None) -> Trace:
        raise UserError(problem, where=str(path), fix=fix)

    return read


def _perf_data(path: Path, out: Path, force: bool, progress: Progress | None) -> Trace:
    from mmreplay.importers.perf_trace import import_perf_data

    return import_perf_data(path, out, force, progress)


def _is_text(head: bytes) -> bool:
    return bool(head) and all(byte in b"\t\n\r\x1b" or byte >= 32 for byte in head)


FORMATS: Final[tuple[Format, ...]] = (
    Format(
        "perf.data",
        lambda path, head: head[:7] in (b"PERFILE", b"PERFFIL", b"2ELIFRE"),
        _perf_data,
    ),
    Format(
        "perf.data directory",
        lambda path, head: path.is_dir() and (path / "data").is_file(),
        _refuse(
            "a recording directory (perf record --threads or --kcore), which cannot be read yet",
            "record without --threads",
        ),
    ),
    Format(
        "trace.dat",
        lambda path, head: head[:10] == b"\x17\x08\x44tracing",
        _refuse("a trace.dat of trace-cmd, which cannot be read yet", "record with perf record"),
    ),
    Format(
        "trace",
        lambda path, head: path.is_dir() and (path / "header.json").is_file(),
        _refuse("is a trace already", "use it as it is: mmreplay show TRACE"),
    ),
    Format(
        "text",
        lambda path, head: _is_text(head),
        _refuse("text cannot be imported yet", "give the perf.data file that perf record wrote"),
    ),
)


def sniff(path: Path) -> Format:
    """The format of ``path``.

    Raises
    ------
    UserError
        The path does not exist, cannot be read, is empty, or is of no known format.
    """
    where = str(path)
    head = b""
    if not path.is_dir():
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD)
        except OSError as error:
            raise UserError(
                f"cannot be read ({error.strerror})",
                where=where,
                fix="give the perf.data file that perf record wrote",
            ) from None
        if not head:
            raise UserError("the file is empty", where=where, fix="record again with perf record")
    for known in FORMATS:
        if known.sniff(path, head):
            return known
    kind = "directory" if path.is_dir() else "file"
    raise UserError(
        f"a {kind} of no known format",
        where=where,
        fix="give the perf.data file that perf record wrote",
    )


def import_trace(
    path: Path, out: Path, *, force: bool = False, progress: Progress | None = None
) -> Trace:
    """Import the recording at ``path`` as the trace directory ``out`` (``NAME.mmt``).

    Parameters
    ----------
    force:
        Replace a trace of that name.
    progress:
        Called with (bytes done, bytes in all) once a window.

    Raises
    ------
    UserError
        The recording or the output is not what it must be; nothing is written then.
    """
    return sniff(path).read(path, out, force, progress)
