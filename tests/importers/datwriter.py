"""Writes trace.dat files by hand, version 6 and 7: trace-cmd.dat.v6(5), trace-cmd.dat.v7(5)."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from mmreplay.importers.tracing_data import Format, parse_format

PAGE = 4096
DATA = 16
HEADER_PAGE = b"""\
\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;
\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;
\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;
\tfield: char data;\toffset:16;\tsize:4080;\tsigned:0;
"""
HEADER_EVENT = b"# compressed entry header\n\ttype_len    :    5 bits\n"


def payload(form: Format, tid: int, **values: object) -> bytes:
    """An event's bytes; fields that are not given are 0."""
    size = max(one.offset + one.size for one in form.fields)
    data = bytearray(size)
    for one in form.fields:
        value = {"common_type": form.id, "common_pid": tid}.get(one.name, values.get(one.name, 0))
        if isinstance(value, bytes):
            data[one.offset : one.offset + one.size] = value.ljust(one.size, b"\0")
        elif isinstance(value, tuple):
            data[one.offset : one.offset + one.size] = struct.pack(f"<{len(value)}Q", *value)
        else:
            assert isinstance(value, int)
            masked = value & (1 << 8 * one.size) - 1
            data[one.offset : one.offset + one.size] = masked.to_bytes(one.size, "little")
    return bytes(data)


def pages(events: list[tuple[int, bytes]], lost: dict[int, int]) -> bytes:
    """Pages of one CPU; ``lost``: number of the page -> events lost before it."""
    done: list[bytes] = []
    data, begin, last = b"", 0, 0

    def close() -> None:
        commit = len(data)
        body = data
        if (missed := lost.get(len(done))) is not None:
            commit |= 1 << 31
            if missed and len(body) + 8 <= PAGE - DATA:
                commit |= 1 << 30
                body += struct.pack("<Q", missed)
        done.append((struct.pack("<QQ", begin, commit) + body).ljust(PAGE, b"\0"))

    for time, raw in events:
        padded = raw.ljust(-(-len(raw) // 4) * 4, b"\0")
        if data and len(data) + len(padded) + 20 > PAGE - DATA:
            close()
            data = b""
        if not data:
            begin = last = time
        delta = time - last
        last = time
        if delta >= 1 << 27:
            data += struct.pack("<II", (delta & (1 << 27) - 1) << 5 | 30, delta >> 27)
            delta = 0
        if len(padded) <= 28 * 4:
            data += struct.pack("<I", delta << 5 | len(padded) // 4) + padded
        else:
            data += struct.pack("<II", delta << 5, len(padded) + 4) + padded
    if data:
        close()
    return b"".join(done)


@dataclass
class Writer:
    """A file in the making: formats by (system, text), events by CPU."""

    formats: list[tuple[str, str]]
    names: dict[int, str] = field(default_factory=dict)
    clock: str = "local global [mono]"
    cpus: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    lost: dict[int, dict[int, int]] = field(default_factory=dict)
    proc_maps: str = ""
    #: Other buffers (``-B NAME``): their events, and their own clock; formats are the top one's.
    instances: dict[str, Writer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parsed = [parse_format(system, text) for system, text in self.formats]
        self.by_name = {form.name: form for form in parsed if form is not None}

    def add(self, cpu: int, time: int, tid: int, event: str, **values: object) -> None:
        raw = payload(self.by_name[event], tid, **values)
        self.cpus.setdefault(cpu, []).append((time, raw))

    def _own(self) -> bytes:
        """The formats of ftrace's own entries."""
        texts = [text.encode() for system, text in self.formats if system == "ftrace"]
        out = struct.pack("<I", len(texts))
        return out + b"".join(struct.pack("<Q", len(text)) + text for text in texts)

    def _events(self) -> bytes:
        systems: dict[str, list[bytes]] = {}
        for system, text in self.formats:
            if system != "ftrace":
                systems.setdefault(system, []).append(text.encode())
        out = struct.pack("<I", len(systems))
        for system, texts in systems.items():
            out += system.encode() + b"\0" + struct.pack("<I", len(texts))
            out += b"".join(struct.pack("<Q", len(text)) + text for text in texts)
        return out

    def _info(self) -> bytes:
        out = b""
        for name, text in ((b"header_page\0", HEADER_PAGE), (b"header_event\0", HEADER_EVENT)):
            out += name + struct.pack("<Q", len(text)) + text
        return out

    def _cmdlines(self) -> bytes:
        text = "".join(f"{tid} {name}\n" for tid, name in self.names.items()).encode()
        return struct.pack("<Q", len(text)) + text

    def _options(self) -> list[tuple[int, bytes]]:
        uname = b"Linux myhost 6.18.44-generic x86_64\0"
        maps = [(10, self.proc_maps.encode() + b"\0")] if self.proc_maps else []
        return [(4, self.clock.encode() + b"\0"), (5, uname), (9, b"3.1.6\0"), *maps]

    def _pages(self) -> list[bytes]:
        return [
            pages(self.cpus.get(cpu, []), self.lost.get(cpu, {}))
            for cpu in range(max(self.cpus, default=-1) + 1)
        ]

    def save(self, path: Path, version: int = 6, compression: str = "none") -> Path:
        head = (
            b"\x17\x08\x44tracing" + f"{version}".encode() + b"\0\0\x08" + struct.pack("<I", PAGE)
        )
        parts = self._pages()
        path.write_bytes(self._six(head, parts) if version == 6 else self._seven(head, compression))
        return path

    def _six(self, head: bytes, parts: list[bytes]) -> bytes:
        head += self._info() + self._own() + self._events()
        head += struct.pack("<II", 0, 0) + self._cmdlines() + struct.pack("<I", len(parts))
        options = self._options()
        tables = 10 + 16 * len(parts)
        size = 10 + sum(6 + len(data) for _, data in options) + 2 + tables
        size += sum(6 + 8 + len(name) + 1 for name in self.instances)
        at = -(-(len(head) + size) // PAGE) * PAGE
        first, at = at, at + len(b"".join(parts))
        body = b"".join(parts)
        for name, other in self.instances.items():
            options.append((3, struct.pack("<Q", at) + name.encode() + b"\0"))
            begin = at + PAGE
            theirs = other._pages() + [b""] * (len(parts) - len(other._pages()))
            table = b"flyrecord\0"
            for part in theirs:
                table += struct.pack("<QQ", begin, len(part))
                begin += len(part)
            body += table.ljust(PAGE, b"\0") + b"".join(theirs)
            at = begin
        head += b"options  \0"
        for option, data in options:
            head += struct.pack("<HI", option, len(data)) + data
        head += struct.pack("<H", 0) + b"flyrecord\0"
        for part in parts:
            head += struct.pack("<QQ", first, len(part))
            first += len(part)
        return head.ljust(-(-len(head) // PAGE) * PAGE, b"\0") + body

    def _seven(self, head: bytes, compression: str) -> bytes:
        packed = compression != "none"

        def section(ident: int, data: bytes) -> bytes:
            if packed and ident != 3:
                body = _pack(data, compression)
                data = struct.pack("<II", len(body), len(data)) + body
            return struct.pack("<HHIQ", ident, int(packed), 0, len(data)) + data

        head += compression.encode() + b"\0" + b"1\0"
        start = len(head)
        out = head + bytes(8)
        options = [(option, data) for option, data in self._options() if option != 4]
        for ident, data in (
            (16, self._info()),
            (17, self._own()),
            (18, self._events()),
            (21, self._cmdlines()),
        ):
            options.append((ident, struct.pack("<Q", len(out))))
            out += section(ident, data)
        for name, buffer in {"": self, **self.instances}.items():
            out = out.ljust(-(-(len(out) + 16) // PAGE) * PAGE - 16, b"\0")
            option, body = buffer._buffer(name, len(out), compression)
            options.append((3, option))
            out += section(3, body)
        first = len(out)
        text = b"".join(struct.pack("<HI", ident, len(data)) + data for ident, data in options)
        text += struct.pack("<HIQ", 0, 8, 0)
        out += section(0, text)
        return out[:start] + struct.pack("<Q", first) + out[start + 8 :]

    def _buffer(self, name: str, at: int, compression: str) -> tuple[bytes, bytes]:
        """The option of a buffer whose section is at ``at``, and what is in that."""
        packed = compression != "none"
        parts = self._pages()
        clock = self.clock.split("[")[-1].split("]")[0]
        option = struct.pack("<Q", at) + name.encode() + b"\0" + clock.encode() + b"\0"
        option += struct.pack("<II", PAGE, len(parts))
        body = b""
        for cpu, part in enumerate(parts):
            data = part
            if packed:
                data = struct.pack("<I", -(-len(part) // (2 * PAGE)))
                for first in range(0, len(part), 2 * PAGE):
                    chunk = part[first : first + 2 * PAGE]
                    small = _pack(chunk, compression)
                    data += struct.pack("<II", len(small), len(chunk)) + small
            # As trace-cmd 3.1 does: the number of chunks is not counted.
            size = len(data) - 4 if packed else len(data)
            option += struct.pack("<IQQ", cpu, at + 16 + len(body), size)
            body += data
        return option, body


def _pack(data: bytes, compression: str) -> bytes:
    if compression == "zlib":
        return zlib.compress(data)
    import zstandard

    return zstandard.ZstdCompressor().compress(data)
