"""Formats: which one a path holds, and who reads it.

A new format is one module and one entry in :data:`FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from mmreplay.errors import UserError
from mmreplay.importers.options import Options

if TYPE_CHECKING:
    from mmreplay.trace.store import Trace

Progress = Callable[[int, int], None]
_HEAD: Final = 4096


Reader = Callable[[list[Path], Path, Options, "Progress | None"], "Trace"]


class Format(NamedTuple):
    """One format.

    ``sniff`` gets the path and its first bytes (none for a directory); ``read`` imports
    (paths, output, options, progress) and returns the finished trace.
    """

    name: str
    sniff: Callable[[Path, bytes], bool]
    read: Reader


def _refuse(problem: str, fix: str) -> Reader:
    def read(
        paths: list[Path], out: Path, options: Options, progress: Progress | None = None
    ) -> Trace:
        raise UserError(problem, where=str(paths[0]), fix=fix)

    return read


def _perf_data(
    paths: list[Path], out: Path, options: Options, progress: Progress | None = None
) -> Trace:
    from mmreplay.importers.perf.trace import import_perf_data

    return import_perf_data(paths, out, options, progress)


def _trace_text(
    paths: list[Path], out: Path, options: Options, progress: Progress | None = None
) -> Trace:
    from mmreplay.importers.text.perf import import_trace_text

    return import_trace_text(_only(paths), out, options, progress)


def _strace(
    paths: list[Path], out: Path, options: Options, progress: Progress | None = None
) -> Trace:
    from mmreplay.importers.text.strace import import_strace

    return import_strace(paths, out, options, progress)


def _is_strace(path: Path, head: bytes) -> bool:
    if not _is_text(head):
        return False
    from mmreplay.importers.text.strace import looks_like

    return looks_like(head)


def _trace_dat(
    paths: list[Path], out: Path, options: Options, progress: Progress | None = None
) -> Trace:
    from mmreplay.importers.trace_dat.trace import import_trace_dat

    return import_trace_dat(_only(paths), out, options, progress)


def _only(paths: list[Path]) -> Path:
    if len(paths) > 1:
        raise UserError(
            "such a recording is one file",
            where=str(paths[1]),
            fix="import each by itself",
        )
    return paths[0]


def _is_trace_text(path: Path, head: bytes) -> bool:
    """Lines of perf script or ftrace, maybe behind a long header."""
    if not _is_text(head):
        return False
    from mmreplay.importers.text.perf import looks_like
    from mmreplay.importers.text.source import open_text

    text = open_text(path)
    try:
        return bool(looks_like(text.head()))
    finally:
        text.close()


def _is_text(head: bytes) -> bool:
    return bool(head) and all(byte in b"\t\n\r\x1b" or byte >= 32 for byte in head)


#: What gzip, zstd, xz, bzip2 and zip begin with.
_PACKED: Final = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh", b"PK\x03\x04")

FORMATS: Final[tuple[Format, ...]] = (
    Format(
        "perf.data",
        lambda path, head: (
            head[:7] in (b"PERFILE", b"PERFFIL", b"2ELIFRE")
            or str(path) == "-"
            or (path.is_dir() and (path / "data").is_file())
        ),
        _perf_data,
    ),
    Format(
        "trace.dat",
        lambda path, head: head[:10] == b"\x17\x08\x44tracing",
        _trace_dat,
    ),
    Format(
        "trace",
        lambda path, head: path.is_dir() and (path / "header.json").is_file(),
        _refuse("is a trace already", "use it as it is: mmreplay show TRACE"),
    ),
    Format(
        "compressed",
        lambda path, head: head.startswith(_PACKED),
        _refuse("is compressed", "unpack it first: gunzip, zstd -d, xz -d, bunzip2 or unzip"),
    ),
    Format(
        "UTF-16",
        lambda path, head: head[:2] in (b"\xff\xfe", b"\xfe\xff"),
        _refuse("is text in UTF-16", "iconv -f UTF-16 -t UTF-8 FILE > OTHER, and import that"),
    ),
    Format(
        "text without newlines",
        lambda path, head: b"\r" in head and b"\n" not in head and _is_text(head),
        _refuse(
            "its lines end with a carriage return only",
            "tr '\\r' '\\n' < FILE > OTHER, and import that",
        ),
    ),
    Format(
        "ftrace latency format",
        lambda path, head: b"latency trace v1." in head,
        _refuse(
            "ftrace's latency format, without process ids and points in time",
            "echo nolatency-format > trace_options, and read the trace again",
        ),
    ),
    Format(
        "part of a recording",
        lambda path, head: path.name.startswith("data.") and (path.parent / "data").is_file(),
        _refuse(
            "one file of a recording directory (perf record --threads)",
            "give the directory that it lies in",
        ),
    ),
    Format("strace log", _is_strace, _strace),
    Format("perf script or ftrace text", _is_trace_text, _trace_text),
    Format(
        "text",
        lambda path, head: _is_text(head),
        _refuse(
            "not text of perf script, ftrace, trace-cmd report or strace",
            "give one of these, or the perf.data file that perf record wrote; measured runs go to "
            "-o RUNS.parquet",
        ),
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
    if path.is_fifo():  # it would not give its head again; what comes through one is perf.data
        head = b"PERFILE"
    elif where != "-" and not path.is_dir():
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
    paths: Path | Sequence[Path],
    out: Path,
    *,
    force: bool = False,
    formats: Path | None = None,
    process: str | None = None,
    begin_ns: int | None = None,
    end_ns: int | None = None,
    snapshot: Path | None = None,
    event_cost: tuple[int, str] | None = None,
    salvage: bool = False,
    progress: Progress | None = None,
) -> Trace:
    """Import the recording at ``paths`` as the trace directory ``out`` (``NAME.mmt``).

    Parameters
    ----------
    paths:
        A file, a directory, ``-`` for standard input, or several files of one recording.
    force:
        Replace a trace of that name.
    formats:
        Another recording of the machine, for the formats that a cut recording lacks.
    process:
        Name or id of the only process that is wanted.
    begin_ns, end_ns:
        Only what begins in this span of time, counted from the recording's first event.
    event_cost:
        (ns, method): what one recorded event cost the recorded thread; else the trace tells.
    snapshot:
        Copy of /proc/PID/maps or smaps from before the recording, or a directory of them.
    salvage:
        Take what there is of a perf.data file whose end is missing.
    progress:
        Called with (bytes done, bytes in all, 0 unknown) once a window.

    Raises
    ------
    UserError
        The recording or the output is not what it must be; nothing is written then.
    """
    found = [paths] if isinstance(paths, Path) else list(paths)
    kinds = {path: sniff(path) for path in found}
    first = kinds[found[0]]
    for path, kind in kinds.items():
        if kind is not first:
            raise UserError(
                f"is {kind.name}, but {found[0]} is {first.name}",
                where=str(path),
                fix="import files of one recording together, others apart",
            )
    if begin_ns is not None and end_ns is not None and end_ns <= begin_ns:
        raise UserError("--to is not after --from", where="--to", fix="give a later time")
    options = Options(force, formats, process, begin_ns, end_ns, snapshot, event_cost, salvage)
    return first.read(found, out, options, progress)
