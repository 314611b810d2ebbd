"""trace.dat of trace-cmd, versions 6 and 7: its head, its options, and where the pages lie.

Layout: trace-cmd.dat.v6(5) and trace-cmd.dat.v7(5).
"""

from __future__ import annotations

import mmap
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from mmreplay.errors import UserError
from mmreplay.importers.tracing_data import Format, parse_format

MAGIC: Final = b"\x17\x08\x44tracing"
# Options.
(_DONE, _BUFFER, _CLOCK, _UNAME, _VERSION, _PROC_MAPS) = (0, 3, 4, 5, 9, 10)
_TSC2NSEC, _HEADER_INFO, _OWN_FORMATS, _EVENT_FORMATS, _CMDLINES = 14, 16, 17, 18, 21
_COMPRESSED: Final = 1
_MOST_CPUS: Final = 4096
_MOST_BUFFERS: Final = 64
#: Of what is not trace data, unpacked.
_MOST_BYTES: Final = 1 << 28
#: Pages shrink 5 to 30 times: a small file must not fill the disk.
_MOST_RATIO: Final = 200
_PLAUSIBLE_BYTES: Final = 1 << 16
_COMMIT: Final = re.compile(rb"commit;\s*offset:(\d+);\s*size:(\d+);")
_DATA: Final = re.compile(rb"\bdata;\s*offset:(\d+);")


@dataclass(slots=True)
class TraceDat:
    """What a file says; ``cpus``: (CPU, first byte, bytes, buffer) of its pages in ``pages``."""

    pages: mmap.mmap
    cpus: list[tuple[int, int, int, int]]
    page_size: int
    data_offset: int = 16
    long_size: int = 8
    formats: dict[int, Format] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    clock: str = ""
    tool_version: str = ""
    os_release: str = ""
    machine: str = ""
    tsc: bool = False
    #: Processes that were filtered for, where that was recorded.
    processes: list[int] = field(default_factory=list)
    #: Names of the buffers that are read: the top one has none, instances (``-B``) have.
    buffers: list[str] = field(default_factory=list)
    #: Buffers with data that are not read: they have another clock, or pages of another size.
    others: list[str] = field(default_factory=list)
    #: Types that are no tracepoints: stacks and such, which ftrace itself writes.
    own_types: set[int] = field(default_factory=set)


class _Cursor:
    """Reads numbers and strings of a part of a file, and refuses to read behind it."""

    def __init__(
        self, data: bytes | mmap.mmap, at: int, where: str, end: int | None = None
    ) -> None:
        self.data, self.at, self.where = data, at, where
        self.end = len(data) if end is None else min(end, len(data))

    def skip(self, count: int) -> None:
        if count < 0 or self.at + count > self.end:
            raise UserError(
                f"this trace.dat ends at byte {self.end}, inside what byte {self.at} begins",
                where=self.where,
                fix="copy the file again, or record again",
            )
        self.at += count

    def take(self, count: int) -> bytes:
        begin = self.at
        self.skip(count)
        return bytes(self.data[begin : self.at])

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def string(self) -> bytes:
        end = self.data.find(b"\0", self.at, self.end)
        if end < 0:
            self.take(self.end - self.at + 1)
        part = bytes(self.data[self.at : end])
        self.at = end + 1
        return part

    def text(self) -> str:
        return self.string().decode("utf-8", "replace")


def _refuse(problem: str, where: str, fix: str = "record with perf record") -> UserError:
    return UserError(problem, where=where, fix=fix)


def open_trace_dat(path: Path) -> TraceDat:
    """Read all but the pages.

    Raises
    ------
    UserError
        The file is damaged, or of a kind that is not read.
    """
    where = str(path)
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise _refuse(f"cannot be read ({error})", where, "check the name and rights") from None
    head = _Cursor(mapped, len(MAGIC), where)
    version = head.text()
    if version not in ("6", "7"):
        raise _refuse(f"trace.dat of version {version[:20]}; versions 6 and 7 are read", where)
    if head.number(1):
        raise _refuse("recorded on a big-endian machine, which is not read", where)
    head.number(1)
    page_size = head.number(4)
    if not 512 <= page_size <= 1 << 20 or page_size % 8:
        raise _refuse(f"its pages of {page_size} bytes cannot be", where, "copy the file again")
    dat = TraceDat(mapped, [], page_size)
    if version == "6":
        _read_6(dat, head)
    else:
        _read_7(dat, head)
    if dat.tsc or dat.clock in ("x86-tsc", "counter", "uptime"):
        raise _refuse(
            f"its times are not in ns (clock {dat.clock or 'x86-tsc'})",
            where,
            "record with trace-cmd record -C mono",
        )
    if not any(size for _, _, size, _ in dat.cpus):
        raise _refuse("no trace data is in it", where, "record again")
    _check_layout(dat, where)
    return dat


def _check_layout(dat: TraceDat, where: str) -> None:
    """The compiled reader relies on these."""
    if not (12 <= dat.data_offset < dat.page_size and dat.long_size in (4, 8)):
        raise _refuse("its pages have a layout that is not known", where)
    for form in dat.formats.values():
        pid = form.field("common_pid")
        if pid is not None and (pid.offset, pid.size) != (4, 4):
            raise _refuse(f"the thread id of {form.name} is not where it always was", where)
    for cpu, first, size, _ in dat.cpus:
        if first < 0 or size < 0 or first + size > len(dat.pages) or not 0 <= cpu < 32_768:
            raise _refuse(
                f"the pages of CPU {cpu} reach over its end", where, "copy the file again"
            )


def _read_6(dat: TraceDat, at: _Cursor) -> None:
    _header_info(dat, at)
    _own_types(dat, at)
    _events(dat, at)
    at.take(at.number(4))  # kallsyms
    at.take(at.number(4))  # printk
    _names(dat, at)
    cpus = at.number(4)
    kind = at.take(10)
    instances: list[tuple[str, int]] = []
    while kind == b"options  \0":
        while option := at.number(2):
            data = at.take(at.number(4))
            if option == _BUFFER:
                part = _Cursor(data, 0, at.where)
                offset = part.number(8)
                instances.append((part.text(), offset))
            else:
                _option(dat, option, data)
        kind = at.take(10)
    _pages_6(dat, "", kind, at, cpus)
    for name, offset in instances[:_MOST_BUFFERS]:
        part = _Cursor(dat.pages, offset, at.where)
        _pages_6(dat, name, part.take(10), part, cpus)


def _pages_6(dat: TraceDat, name: str, kind: bytes, at: _Cursor, cpus: int) -> None:
    """Where one buffer's pages lie."""
    if kind != b"flyrecord\0" or cpus > _MOST_CPUS:
        raise _refuse("it holds a latency trace, or is damaged", at.where)
    for cpu in range(cpus):
        offset = at.number(8)
        dat.cpus.append((cpu, offset, at.number(8), len(dat.buffers)))
    dat.buffers.append(name)


def _header_info(dat: TraceDat, at: _Cursor) -> None:
    if at.string() != b"header_page":
        raise _refuse("damaged: header_page is missing", at.where, "copy the file again")
    text = at.take(at.number(8))
    commit, data = _COMMIT.search(text), _DATA.search(text)
    if commit is None or data is None or commit[1] != b"8" or len(data[1]) > 6:
        raise _refuse("its pages have a layout that is not known", at.where)
    dat.long_size, dat.data_offset = int(commit[2][:4]), int(data[1])
    if at.string() != b"header_event":
        raise _refuse("damaged: header_event is missing", at.where, "copy the file again")
    at.take(at.number(8))


def _own_types(dat: TraceDat, at: _Cursor) -> None:
    """The formats of ftrace's own entries; none is an event of a thread."""
    for _ in range(at.number(4)):
        form = parse_format("ftrace", at.take(at.number(8)).decode("utf-8", "replace"))
        if form is not None:
            dat.own_types.add(form.id)


def _events(dat: TraceDat, at: _Cursor) -> None:
    for _ in range(at.number(4)):
        system = at.text()
        for _ in range(at.number(4)):
            form = parse_format(system, at.take(at.number(8)).decode("utf-8", "replace"))
            if form is not None:
                dat.formats[form.id] = form


def _names(dat: TraceDat, at: _Cursor) -> None:
    """Names of threads: "TID NAME" lines."""
    for line in at.take(at.number(8)).split(b"\n"):
        tid, _, name = line.partition(b" ")
        if tid.isdigit() and len(tid) < 10 and name and name != b"<...>":
            dat.names[int(tid)] = name.decode("utf-8", "replace")


def _option(dat: TraceDat, option: int, data: bytes) -> None:
    text = data.split(b"\0")[0].decode("utf-8", "replace")
    if option == _CLOCK:
        chosen = re.search(r"\[([^\]]+)\]", text)
        dat.clock = chosen[1] if chosen else text.strip()
    elif option == _UNAME:  # system, host, release, machine; the host's name is not kept
        words = text.split()
        if len(words) >= 4:
            dat.os_release, dat.machine = words[2], words[-1]
    elif option == _VERSION:
        dat.tool_version = text.strip()
    elif option == _PROC_MAPS:
        dat.processes += _filtered(text)
    elif option == _TSC2NSEC:
        dat.tsc = True


def _filtered(text: str) -> list[int]:
    """Processes of "PID COUNT COMMAND" and COUNT lines of their maps, in hex."""
    found = []
    lines = text.split("\n")
    at = 0
    while at < len(lines) and (words := re.match(r"([0-9a-f]{1,7}) ([0-9a-f]{1,5}) ", lines[at])):
        found.append(int(words[1], 16))
        at += 1 + int(words[2], 16)
    return found


def _read_7(dat: TraceDat, head: _Cursor) -> None:
    compression = head.text()
    head.string()
    if compression not in ("none", "zlib", "zstd"):
        raise _refuse(f"compressed with {compression[:20]}, which is not read", head.where)
    options = head.number(8)
    buffers: list[bytes] = []
    parts = {
        _HEADER_INFO: _header_info,
        _OWN_FORMATS: _own_types,
        _EVENT_FORMATS: _events,
        _CMDLINES: _names,
    }
    seen = {0}
    done: set[int] = set()
    while options not in seen:
        seen.add(options)
        section = _section(dat, options, compression, head.where)
        options = 0
        while section.at + 6 <= section.end:
            option, size = section.number(2), section.number(4)
            data = section.take(size)
            if option == _DONE:
                options = int.from_bytes(data[:8], "little")
                break
            if option in parts and option not in done:
                done.add(option)
                at = int.from_bytes(data[:8], "little")
                parts[option](dat, _section(dat, at, compression, head.where))
            elif option == _BUFFER:
                buffers.append(data)
            else:
                _option(dat, option, data)
    found = [_buffer(dat, _Cursor(data, 0, head.where)) for data in buffers[:_MOST_BUFFERS]]
    _choose(dat, found, compression, head.where)


def _section(dat: TraceDat, offset: int, compression: str, where: str) -> _Cursor:
    """The data of the section whose header is at ``offset``."""
    head = _Cursor(dat.pages, offset, where)
    head.number(2)
    packed = head.number(2) & _COMPRESSED
    head.number(4)
    size = head.number(8)
    if not packed:
        begin = head.at
        head.skip(size)
        return _Cursor(dat.pages, begin, where, head.at)
    return _Cursor(_unpack(*_packed(head), compression, where), 0, where)


def _packed(at: _Cursor) -> tuple[bytes, int]:
    """Packed bytes, and how many they become."""
    size, unpacked = at.number(4), at.number(4)
    return at.take(size), unpacked


def _unpack(data: bytes, size: int, compression: str, where: str) -> bytes:
    """Unpack to exactly ``size`` bytes."""
    if size > min(_MOST_BYTES, _MOST_RATIO * len(data) + _PLAUSIBLE_BYTES):
        raise _refuse(f"a part of {size:,} bytes cannot be", where, "copy the file again")
    try:
        if compression == "zlib":
            found = zlib.decompressobj().decompress(data, size + 1)
        else:
            import zstandard

            reader = zstandard.ZstdDecompressor(max_window_size=_MOST_BYTES).stream_reader(data)
            found = reader.read(size + 1)
    except Exception as error:  # zstandard's own class is only there where it is
        if type(error).__name__ not in ("error", "ZstdError"):
            raise
        raise _refuse(
            f"compressed data is damaged ({error})", where, "copy the file again"
        ) from None
    if len(found) != size:
        raise _refuse("compressed data is damaged", where, "copy the file again")
    return found


class _Buffer(NamedTuple):
    """One buffer: the top one, or an instance."""

    name: str
    clock: str
    page_size: int
    packed: bool
    cpus: list[tuple[int, int, int]]


def _buffer(dat: TraceDat, at: _Cursor) -> _Buffer:
    """The option of one buffer."""
    offset = at.number(8)
    name, clock = at.text(), at.text()
    page_size = at.number(4)
    if not 512 <= page_size <= 1 << 20 or page_size % 8:
        raise _refuse(f"its pages of {page_size} bytes cannot be", at.where, "copy the file again")
    count = at.number(4)
    if count > _MOST_CPUS:
        raise _refuse(f"{count} CPUs cannot be", at.where, "copy the file again")
    cpus = []
    for _ in range(count):
        cpu, first = at.number(4), at.number(8)
        cpus.append((cpu, first, at.number(8)))
    section = _Cursor(dat.pages, offset, at.where)
    section.number(2)
    return _Buffer(name, clock, page_size, bool(section.number(2) & _COMPRESSED), cpus)


def _choose(dat: TraceDat, buffers: list[_Buffer], compression: str, where: str) -> None:
    """Take the top buffer, and all that have its clock and size of pages; unpack where need be."""
    buffers = [buffer for buffer in buffers if any(size for _, _, size in buffer.cpus)]
    buffers.sort(key=lambda buffer: buffer.name != "")
    if not buffers:
        return
    first = buffers[0]
    dat.clock, dat.page_size = first.clock or dat.clock, first.page_size
    alike = [one for one in buffers if one[1:3] == first[1:3]]
    dat.others = [one.name for one in buffers if one not in alike]
    dat.buffers = [one.name for one in alike]
    if not any(one.packed for one in alike):
        dat.cpus = [(*cpu, n) for n, one in enumerate(alike) for cpu in one.cpus]
        return
    with tempfile.TemporaryFile() as file:
        for n, one in enumerate(alike):
            for cpu, begin, size in one.cpus:
                start = file.tell()
                if one.packed:
                    for part in _chunks(dat.pages, begin, size, compression, where):
                        file.write(part)
                else:
                    file.write(_Cursor(dat.pages, begin, where).take(size))
                dat.cpus.append((cpu, start, file.tell() - start, n))
        dat.pages = _map(file, where)


def _chunks(
    mapped: mmap.mmap, first: int, size: int, compression: str, where: str
) -> Iterator[bytes]:
    """The unpacked chunks of a CPU's pages; their count is not part of ``size`` (trace-cmd 3.1)."""
    at = _Cursor(mapped, first, where, first + 4 + size)
    if size:
        for _ in range(at.number(4)):
            yield _unpack(*_packed(at), compression, where)


def _map(file: IO[bytes], where: str) -> mmap.mmap:
    if file.tell() == 0:  # nothing can be mapped then
        file.write(bytes(512))
    file.flush()
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def name_words(name: str) -> tuple[int, int]:
    """A thread's name as two words, as events carry it."""
    raw = name.encode("utf-8", "replace")[:15].ljust(16, b"\0")
    words: Any = struct.unpack("<qq", raw)
    return int(words[0]), int(words[1])
