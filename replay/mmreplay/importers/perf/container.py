"""What a perf.data recording lies in: a file, a stream, a directory; whole or cut; packed or not.

Each container ends in record streams (:mod:`perf.streams`) that the rest need not tell apart.
"""

from __future__ import annotations

import mmap
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mmreplay.errors import UserError, plural
from mmreplay.importers.perf import header as ph
from mmreplay.importers.perf import walk as pw
from mmreplay.importers.perf.feeds import Feed, FileFeed, MappedFeed, Window, ZstdFeed
from mmreplay.importers.perf.layout import Plan, build
from mmreplay.importers.perf.pipe import parse_prologue
from mmreplay.importers.perf.salvage import find_formats, is_compressed
from mmreplay.importers.perf.streams import Fed, Kind, Mapped, Stream
from mmreplay.importers.perf.swap import SwapFeed
from mmreplay.importers.tracing_data import TracingData, parse_tracing_data

#: A file of ``perf record --threads`` has no FINISHED_ROUND, and seldom more than one ring.
_ROUND_OF_A_THREAD: Final = 1 << 16


@dataclass(slots=True)
class Source:
    """One opened recording: what it says of itself, and its streams."""

    where: str
    size_bytes: int
    header: ph.PerfHeader
    tracing: TracingData | None
    plan: Plan
    streams: list[Stream]
    warnings: list[str] = field(default_factory=list)

    @property
    def target(self) -> str:
        """What was recorded: ``command``, ``all``, ``pids`` or ``unknown``."""
        if self.header.attrs[0].enable_on_exec:
            return "command"
        told = {int(stream.state[pw.W_TARGET]) for stream in self.streams}
        if pw.TARGET_ALL in told:
            return "all"
        return "pids" if pw.TARGET_PIDS in told else "unknown"

    def close(self) -> None:
        """Give the files back."""
        for stream in self.streams:
            stream.close()


def open_source(path: Path, formats: Path | None = None, salvage: bool = False) -> Source:
    """Open a perf.data file, stream (``-``: standard input) or directory, and check its head.

    ``formats`` is another recording of the same machine, to take the formats of tracepoints
    from where this one was cut before its own.  ``salvage``: of a file that is shorter than
    it says, take what there is; what a killed recorder left, which does not say, is taken anyway.

    Raises
    ------
    UserError
        It cannot be read, is no perf.data recording, or lacks its end: one line, with the fix.
    """
    where = str(path)
    if where == "-":
        raw: Any = sys.stdin.buffer
        return _open_stream(raw.raw, "standard input", formats)
    try:
        if path.is_dir():
            return _open_directory(path, formats, salvage)
        file: Any = path.open("rb", buffering=0)
        if not _is_regular(file):
            return _open_stream(file, where, formats)
        with file:
            return _open_file(_map(file, where), where, formats, salvage)
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})", where=where, fix="check the name and the rights"
        ) from None


def _is_regular(file: Any) -> bool:
    mode = os.fstat(file.fileno()).st_mode
    return mode & 0o170000 == 0o100000


def _map(file: Any, where: str) -> mmap.mmap:
    """A file that begins with a head."""
    size = os.fstat(file.fileno()).st_size
    if size < 16:
        ph.byte_order(file.read(16), size, where)
        raise ph.truncated(f"only {size} bytes", where)
    return _map_any(file)


def _map_any(file: Any) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _whole_header(mapped: mmap.mmap, where: str, salvage: bool) -> ph.PerfHeader:
    """The head of a file that is as long as it says, unless ``salvage``."""
    header = ph.parse_header(mapped, where)
    if header.missing and not salvage:
        missing = plural(header.missing, "byte")
        raise ph.cut_short(f"at least {missing} missing behind its {len(mapped):,}", where)
    return header


def _open_file(mapped: mmap.mmap, where: str, formats: Path | None, salvage: bool) -> Source:
    try:
        order, header_size = ph.byte_order(mapped[:16], len(mapped), where)
        if header_size == ph.PIPE_SIZE:
            window = Window(MappedFeed(mapped, 16, len(mapped)))
            header, taken = parse_prologue(window, order, where)
            header.data_offset = 16 + taken
            header.data_size = len(mapped) - header.data_offset
        else:
            header = _whole_header(mapped, where, salvage)
        if ph.F_DIR_FORMAT in header.features:
            raise UserError(
                "one file of a recording directory (perf record --threads)",
                where=where,
                fix="give the directory that it lies in",
            )
        start, end = header.data_offset, header.data_offset + header.data_size
        packed = ph.F_COMPRESSED in header.features or (
            bool(header.cut) and is_compressed(mapped, start, end, order)
        )
        # A stream in pipe format has no end that could be checked.
        salvage = salvage or bool(header.cut) or header_size == ph.PIPE_SIZE
        source = _source(where, len(mapped), header, formats, mapped, (start, end, packed))
        kind = Kind(where, source.plan.layout, len(header.attrs), salvage)
        source.streams.append(_stream(kind, mapped, start, end, order, packed))
    except BaseException:
        mapped.close()
        raise
    return source


def _stream(
    kind: Kind, mapped: mmap.mmap, start: int, end: int, order: str, packed: bool
) -> Stream:
    if order == "<" and not packed:
        return Mapped(kind, mapped, start, end)
    feed = _unwrapped(kind, MappedFeed(mapped, start, end), order, packed)
    # perf record -z may leave out the end of its last record, though it ended normally.
    return Fed(kind._replace(salvage=True) if packed else kind, feed, start)


def _unwrapped(kind: Kind, feed: Feed, order: str, packed: bool) -> Feed:
    if packed:
        feed = ZstdFeed(feed, kind.where, big_endian=order == ">", salvage=kind.salvage)
    return SwapFeed(feed, kind.layout) if order == ">" else feed


def _open_stream(file: Any, where: str, formats: Path | None) -> Source:
    """A recording that can only be read in order."""
    window = Window(FileFeed(file))
    window.need(16)
    head = window.take(16)
    order, header_size = ph.byte_order(head, len(head), where)
    if header_size != ph.PIPE_SIZE:
        raise UserError(
            "a perf.data file, which has its head at the end, not a stream",
            where=where,
            fix="give the file's name, or record a stream: perf record -o - ...",
        )
    header, taken = parse_prologue(window, order, where)
    source = _source(where, 0, header, formats, None, None)
    kind = Kind(where, source.plan.layout, len(header.attrs), salvage=True)
    packed = ph.F_COMPRESSED in header.features
    feed = _unwrapped(kind, FileFeed(file, window.rest()), order, packed)
    source.streams.append(Fed(kind, feed, 16 + taken))
    return source


def _open_directory(path: Path, formats: Path | None, salvage: bool) -> Source:
    """What ``perf record --threads`` or ``--kcore`` wrote: ``data``, and a ``data.N`` a thread."""
    where = str(path)
    first = path / "data"
    if not first.is_file():
        raise UserError(
            "a directory without a file called data, so no recording of perf",
            where=where,
            fix="give the file or directory that perf record wrote",
        )
    found = [entry for entry in path.iterdir() if re.fullmatch(r"data\.\d+", entry.name)]
    parts = sorted(found, key=lambda entry: int(entry.suffix[1:]))
    opened: list[mmap.mmap] = []
    names: list[str] = []
    try:
        for entry in (first, *parts):
            with entry.open("rb", buffering=0) as file:
                if entry is not first and not os.fstat(file.fileno()).st_size:
                    continue
                opened.append(_map(file, str(entry)) if entry is first else _map_any(file))
                names.append(str(entry))
        main = opened[0]
        header = _whole_header(main, str(first), salvage)
        order = header.order
        ranges = [(header.data_offset, header.data_offset + header.data_size)]
        ranges += [(0, len(mapped)) for mapped in opened[1:]]
        packed = ph.F_COMPRESSED in header.features
        if header.cut and len(opened) > 1:
            rest = zip(opened[1:], ranges[1:], strict=True)
            packed = any(is_compressed(mapped, *part, order) for mapped, part in rest)
        size = sum(len(mapped) for mapped in opened)
        # The first file has what perf itself tells, which may be more than all the samples.
        rings = range(min(1, len(opened) - 1), len(opened))
        largest = max(rings, key=lambda part: ranges[part][1] - ranges[part][0])
        peek = (*ranges[largest], packed)
        source = _source(where, size, header, formats, opened[largest], peek)
        every = _ROUND_OF_A_THREAD if parts else pw.ROUND_WITHOUT
        salvage = salvage or bool(header.cut)
        kind = Kind(where, source.plan.layout, len(header.attrs), salvage, every)
        for name, mapped, part in zip(names, opened, ranges, strict=True):
            source.streams.append(_stream(kind._replace(where=name), mapped, *part, order, packed))
    except BaseException:
        for mapped in opened:
            mapped.close()
        raise
    return source


def _source(
    where: str,
    size: int,
    header: ph.PerfHeader,
    formats: Path | None,
    mapped: mmap.mmap | None,
    peek: tuple[int, int, bool] | None,
) -> Source:
    """The source without its streams; formats that a cut file lacks are found elsewhere."""
    tracing = None
    warnings = []
    if header.cut:
        warnings.append(f"{header.cut}: what there is was read")
    if ph.F_TRACING_DATA in header.features:
        try:
            tracing = parse_tracing_data(header.features[ph.F_TRACING_DATA])
        except UserError as error:
            raise UserError(error.problem, where=where, fix=error.fix) from None
    elif any(attr.type == 2 for attr in header.attrs):
        tracing, told = find_formats(header, mapped, peek, formats, where)
        warnings.append(told)
    return Source(where, size, header, tracing, build(header, tracing, where), [], warnings)
