"""Writes perf.data files by hand, for the odd cases that no recording shows."""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

IP, TID, TIME, ADDR, READ, CALLCHAIN = 1, 2, 4, 8, 16, 32
ID, CPU, PERIOD, STREAM_ID, RAW, IDENTIFIER = 64, 128, 256, 512, 1024, 1 << 16
TP_TYPE = IDENTIFIER | IP | TID | TIME | ADDR | CPU | PERIOD | RAW
SW_TYPE = IDENTIFIER | IP | TID | TIME | ADDR
SAMPLE_ID_ALL, INHERIT, CONTEXT_SWITCH, FREQ, MMAP_DATA = 1 << 18, 2, 1 << 26, 1 << 10, 1 << 17

COMMON = (
    ("unsigned short", "common_type", 0, 2, 0),
    ("unsigned char", "common_flags", 2, 1, 0),
    ("unsigned char", "common_preempt_count", 3, 1, 0),
    ("int", "common_pid", 4, 4, 1),
)


def format_text(name: str, ident: int, fields: tuple[tuple[str, str, int, int, int], ...]) -> str:
    """A tracefs format text."""
    lines = "".join(
        f"\tfield:{decl} {label};\toffset:{offset};\tsize:{size};\tsigned:{signed};\n"
        for decl, label, offset, size, signed in COMMON + fields
    )
    return f'name: {name}\nID: {ident}\nformat:\n{lines}\nprint fmt: ""\n'


def enter(name: str, ident: int, *arguments: str) -> tuple[str, str]:
    """System and format of a syscall entry."""
    fields = [("int", "__syscall_nr", 8, 4, 1)]
    fields += [("unsigned long", label, 16 + 8 * k, 8, 0) for k, label in enumerate(arguments)]
    return "syscalls", format_text(f"sys_enter_{name}", ident, tuple(fields))


def leave(name: str, ident: int) -> tuple[str, str]:
    """System and format of a syscall return."""
    fields = (("int", "__syscall_nr", 8, 4, 1), ("long", "ret", 16, 8, 1))
    return "syscalls", format_text(f"sys_exit_{name}", ident, fields)


FORMATS: dict[int, tuple[str, str]] = {
    10: (
        "exceptions",
        format_text(
            "page_fault_user",
            10,
            (
                ("unsigned long", "address", 8, 8, 0),
                ("unsigned long", "ip", 16, 8, 0),
                ("unsigned long", "error_code", 24, 8, 0),
            ),
        ),
    ),
    20: enter("mmap", 20, "addr", "len", "prot", "flags", "fd", "off"),
    21: leave("mmap", 21),
    22: enter("munmap", 22, "addr", "len"),
    23: leave("munmap", 23),
    24: enter("brk", 24, "brk"),
    25: leave("brk", 25),
    30: enter("clone", 30, "clone_flags", "newsp"),
    31: leave("clone", 31),
    32: enter("clone3", 32, "uargs", "size"),
    33: leave("clone3", 33),
    34: enter("execve", 34, "filename", "argv", "envp"),
    35: leave("execve", 35),
    40: (
        "lock",
        format_text(
            "contention_begin",
            40,
            (("void *", "lock_addr", 8, 8, 0), ("unsigned int", "flags", 16, 4, 0)),
        ),
    ),
    41: (
        "lock",
        format_text(
            "contention_end", 41, (("void *", "lock_addr", 8, 8, 0), ("int", "ret", 16, 4, 1))
        ),
    ),
}


def raw_formats() -> dict[int, tuple[str, str]]:
    """``raw_syscalls``: the number, and six words or the result."""
    number = ("long", "id", 8, 8, 1)
    return {
        60: (
            "raw_syscalls",
            format_text("sys_enter", 60, (number, ("unsigned long", "args[6]", 16, 48, 0))),
        ),
        61: ("raw_syscalls", format_text("sys_exit", 61, (number, ("long", "ret", 16, 8, 1)))),
    }


def mmap_lock_formats(dynamic: bool) -> dict[int, tuple[str, str]]:
    """The three mmap_lock formats in the old (dynamic string) or the new layout."""
    found = {}
    for ident, name, has_success in (
        (50, "start_locking", False),
        (51, "acquire_returned", True),
        (52, "released", False),
    ):
        at = 20 if dynamic else 24
        fields = [("struct mm_struct *", "mm", 8, 8, 0)]
        if dynamic:
            fields.append(("__data_loc char[]", "memcg_path", 16, 4, 0))
        else:
            fields.append(("u64", "memcg_id", 16, 8, 0))
        fields.append(("bool", "write", at, 1, 0))
        if has_success:
            fields.append(("bool", "success", at + 1, 1, 0))
        found[ident] = ("mmap_lock", format_text(f"mmap_lock_{name}", ident, tuple(fields)))
    return found


@dataclass
class Event:
    """One attr."""

    config: int
    type: int = 2
    sample_type: int = TP_TYPE
    bits: int = SAMPLE_ID_ALL | INHERIT
    period: int = 1
    read_format: int = 4
    ids: tuple[int, ...] = ()


@dataclass
class Writer:
    """Collects records; :meth:`save` writes the file."""

    events: list[Event] = field(default_factory=list)
    formats: dict[int, tuple[str, str]] = field(default_factory=lambda: dict(FORMATS))
    attr_bytes: int = 136
    records: list[bytes] = field(default_factory=list)
    with_tracing: bool = True
    features: dict[int, bytes] = field(default_factory=dict)
    data_size: int | None = None
    order: str = "<"

    def __post_init__(self) -> None:
        for index, event in enumerate(self.events):
            if not event.ids:
                event.ids = (46_560 + 1_000_003 * index,)

    def pack(self, form: str, *values: int) -> bytes:
        return struct.pack(self.order + form, *values)

    # records ---------------------------------------------------------------
    def record(self, kind: int, body: bytes, misc: int = 0, pad: bool = True) -> None:
        if pad:
            body += b"\0" * (-len(body) % 8)
        self.records.append(self.pack("IHH", kind, misc, 8 + len(body)) + body)

    def trailer(self, pid: int, tid: int, time: int, cpu: int = 0, which: int = 0) -> bytes:
        event = self.events[which]
        if not event.bits & SAMPLE_ID_ALL:
            return b""
        kinds, out = event.sample_type, b""
        if kinds & TID:
            out += self.pack("ii", pid, tid)
        if kinds & TIME:
            out += self.pack("Q", time)
        if kinds & ID:
            out += self.pack("Q", event.ids[0])
        if kinds & CPU:
            out += self.pack("II", cpu, 0)
        if kinds & IDENTIFIER:
            out += self.pack("Q", event.ids[0])
        return out

    def sample(
        self,
        which: int,
        time: int,
        tid: int,
        raw: bytes = b"",
        *,
        pid: int = 100,
        cpu: int = 0,
        addr: int = 0,
        ip: int = 0x400000,
        period: int = 1,
        misc: int = 2,
        frames: int | list[int] = 0,
        counts: dict[int, int] | None = None,
    ) -> None:
        """``counts``: what PERF_SAMPLE_READ has, by event, if the event reads its group."""
        event = self.events[which]
        kinds, out = event.sample_type, b""
        chain = [0x11111111] * frames if isinstance(frames, int) else frames
        for bit, packed in (
            (IDENTIFIER, self.pack("Q", event.ids[0])),
            (IP, self.pack("Q", ip)),
            (TID, self.pack("ii", pid, tid)),
            (TIME, self.pack("Q", time)),
            (ADDR, self.pack("Q", addr)),
            (ID, self.pack("Q", event.ids[0])),
            (CPU, self.pack("II", cpu, 0)),
            (PERIOD, self.pack("Q", period)),
            (READ, self.counts(event, counts or {})),
            (CALLCHAIN, self.pack(f"Q{len(chain)}Q", len(chain), *chain)),
        ):
            if kinds & bit:
                out += packed
        if kinds & RAW:
            if event.type == 2:  # common_type
                raw = self.pack("H", event.config) + raw[2:]
            size = len(raw) + (-(len(raw) + 4) % 8)
            out += self.pack("I", size) + raw + b"\0" * (size - len(raw))
        self.record(9, out, misc)

    def counts(self, event: Event, counts: dict[int, int]) -> bytes:
        """The body of READ with PERF_FORMAT_GROUP and ID: the times are 0, nothing was lost."""
        form = event.read_format
        if not form & 8:
            return self.pack("Q", 1) + b"\0" * 8 * (form & 31).bit_count()
        out = self.pack("Q", len(counts)) + b"\0" * 8 * (form & 3).bit_count()
        for which, value in counts.items():
            out += self.pack("QQ", value, self.events[which].ids[0]) + b"\0" * (8 * (form >> 4 & 1))
        return out

    def fault(
        self, which: int, time: int, tid: int, address: int, error: int = 6, **more: Any
    ) -> None:
        self.sample(which, time, tid, b"\0" * 8 + self.pack("QQQ", address, 0x1234, error), **more)

    def call(self, which: int, time: int, tid: int, *words: int, **more: Any) -> None:
        """A syscall entry (its arguments) or return (one signed word)."""
        packed = b"".join(self.pack("Q", word & (1 << 64) - 1) for word in words)
        self.sample(which, time, tid, b"\0" * 16 + packed, **more)

    def raw_call(self, which: int, time: int, tid: int, number: int, *words: int) -> None:
        """A raw_syscalls entry (its arguments) or return (one word)."""
        packed = b"".join(self.pack("Q", word & (1 << 64) - 1) for word in (number, *words))
        more = 0 if len(words) == 1 else 6 - len(words)
        self.sample(which, time, tid, b"\0" * 8 + packed + b"\0" * 8 * more)

    def fork(self, time: int, pid: int, ppid: int, tid: int, ptid: int) -> None:
        body = self.pack("iiiiQ", pid, ppid, tid, ptid, time)
        self.record(7, body + self.trailer(ppid, ptid, time))

    def exit(self, time: int, pid: int, tid: int) -> None:
        body = self.pack("iiiiQ", pid, pid, tid, tid, time)
        self.record(4, body + self.trailer(pid, tid, time))

    def comm(self, time: int, pid: int, tid: int, name: bytes, exec_: bool = False) -> None:
        text = name + b"\0" * (8 - len(name) % 8)
        body = self.pack("ii", pid, tid) + text
        self.record(3, body + self.trailer(pid, tid, time), 1 << 13 if exec_ else 0)

    def mmap2(
        self,
        time: int,
        pid: int,
        tid: int,
        start: int,
        length: int,
        name: bytes,
        *,
        inode: int = 77,
        build_id: bytes = b"",
    ) -> None:
        """With a build-id where perf record --buildid-mmap writes one: over the inode."""
        text = name + b"\0" * (8 - len(name) % 8)
        body = self.pack("iiQQQIIQQII", pid, tid, start, length, 0, 8, 1, inode, 0, 3, 2) + text
        if build_id:
            told = bytes([len(build_id), 0, 0, 0]) + build_id.ljust(20, b"\0")
            body = body[:32] + told + body[56:]
        self.record(10, body + self.trailer(pid, tid, time), 0x4000 if build_id else 0)

    def switch(self, time: int, pid: int, tid: int, out: bool, preempt: bool = False) -> None:
        misc = (1 << 13 if out else 0) | (1 << 14 if preempt else 0)
        self.record(14, self.trailer(pid, tid, time), misc)

    def lost(self, time: int, count: int, cpu: int = 0) -> None:
        body = self.pack("QQ", self.events[0].ids[0], count)
        self.record(2, body + self.trailer(100, 100, time, cpu))

    def lost_samples(self, count: int, which: int = 0, misc: int = 0) -> None:
        body = self.pack("Q", count)
        tail = self.trailer(0, 0, 0)[:-8] + self.pack("Q", self.events[which].ids[0])
        self.record(13, body + tail, misc)

    def round(self) -> None:
        self.record(68, b"")

    # file --------------------------------------------------------------------
    def attr(self, event: Event) -> bytes:
        bits = event.bits
        if self.order == ">":  # bit fields begin at the other end
            bits = int(f"{bits:064b}"[::-1], 2)
        body = self.pack(
            "IIQQQQQ",
            event.type,
            self.attr_bytes,
            event.config,
            event.period,
            event.sample_type,
            event.read_format,
            bits,
        )
        return body.ljust(self.attr_bytes, b"\0")[: self.attr_bytes]

    def tracing(self) -> bytes:
        out = b"\x17\x08\x44tracing0.6\0" + bytes([self.order == ">", 8]) + self.pack("I", 4096)
        for name in (b"header_page\0", b"header_event\0"):
            out += name + self.pack("Q", 0)
        out += self.pack("I", 0)
        systems: dict[str, list[str]] = {}
        for system, text in self.formats.values():
            systems.setdefault(system, []).append(text)
        out += self.pack("I", len(systems))
        for system, texts in systems.items():
            out += system.encode() + b"\0" + self.pack("I", len(texts))
            for text in texts:
                out += self.pack("Q", len(text)) + text.encode()
        return out + self.pack("II", 0, 0) + self.pack("Q", 0)

    def build(self) -> bytes:
        ids = b"".join(self.pack(f"{len(e.ids)}Q", *e.ids) for e in self.events)
        at_ids = 104
        at_attrs = at_ids + len(ids)
        attrs, place = b"", at_ids
        for event in self.events:
            attrs += self.attr(event) + self.pack("QQ", place, 8 * len(event.ids))
            place += 8 * len(event.ids)
        at_data = at_attrs + len(attrs)
        data = b"".join(self.records)
        features = dict(self.features)
        if self.with_tracing:
            features[1] = self.tracing()
        place = at_data + len(data) + 16 * len(features)
        table, blobs, bitmap = b"", b"", 0
        for bit in sorted(features):
            bitmap |= 1 << bit
            table += self.pack("QQ", place, len(features[bit]))
            blobs += features[bit]
            place += len(features[bit])
        size = len(data) if self.data_size is None else self.data_size
        head = (b"PERFILE2" if self.order == "<" else b"2ELIFREP") + self.pack(
            "QQ", 104, self.attr_bytes + 16
        )
        head += self.pack("QQQQQQ", at_attrs, len(attrs), at_data, size, 0, 0)
        head += self.pack("4Q", *(bitmap >> 64 * word & 2**64 - 1 for word in range(4)))
        return head + ids + attrs + data + table + blobs

    def pipe(self) -> bytes:
        """The same in pipe format: what the file's head says comes as records."""
        out = [b"PERFILE2" if self.order == "<" else b"2ELIFREP", self.pack("Q", 16)]
        for event in self.events:
            body = self.attr(event) + self.pack(f"{len(event.ids)}Q", *event.ids)
            out.append(self.pack("IHH", 64, 0, 8 + len(body)) + body)
        for bit, blob in self.features.items():
            body = self.pack("Q", bit) + blob
            out.append(self.pack("IHH", 80, 0, 8 + len(body)) + body)
        if self.with_tracing:
            text = self.tracing()
            out.append(self.pack("IHHI", 66, 0, 12, len(text)) + text + b"\0" * (-len(text) % 8))
        return b"".join(out + self.records)

    def packed(self, kind: int = 81, piece: int = 65_000) -> Writer:
        """As with ``-z``: records of the kernel in pieces of one zstd stream, cut anywhere."""
        zstd = zstandard.ZstdCompressor(level=1).compressobj()
        records: list[bytes] = []
        run: list[bytes] = []

        def flush() -> None:
            data = zstd.compress(b"".join(run)) + zstd.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
            run.clear()
            if kind == 83:
                records.append(self._compressed2(data))
                return
            for first in range(0, len(data), piece):
                part = data[first : first + piece]
                records.append(self.pack("IHH", 81, 0, 8 + len(part)) + part)

        for record in self.records:
            if struct.unpack_from(self.order + "I", record)[0] < 64:
                run.append(record)
                continue
            if run:
                flush()
            records.append(record)
        if run:
            flush()
        features = self.features | {27: self.pack("5I", 1, 1, 1, 10, 1 << 20)}
        return dataclasses.replace(self, records=records, features=features)

    def zstd_size(self) -> int:
        """How many packed bytes :meth:`packed` makes of records of the kernel."""
        zstd = zstandard.ZstdCompressor(level=1).compressobj()
        data = zstd.compress(b"".join(self.records))
        return len(data) + len(zstd.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))

    def _compressed2(self, data: bytes) -> bytes:
        """One write of perf 6.16, whose 16-bit size overflows."""
        most = 65_519
        body = data[:most]
        for first in range(most, len(data), most):
            part = data[first : first + most]
            body += self.pack("IHHQ", 83, 0, 16 + len(part), 0xDEAD) + part
        total = 16 + len(body)
        aligned = total + -total % 8
        padding = b"\0" * (aligned - total if aligned < 1 << 16 else 0)
        return self.pack("IHHQ", 83, 0, aligned & 0xFFFF, len(body)) + body + padding

    def directory(self, path: Path, parts: list[list[bytes]]) -> Path:
        """As with ``--threads``: the records of the writer, and a file for each of ``parts``."""
        path.mkdir()
        features = self.features | {24: self.pack("Q", 1)}
        dataclasses.replace(self, features=features).save(path / "data")
        for number, records in enumerate(parts):
            (path / f"data.{number}").write_bytes(b"".join(records))
        return path

    def save(self, path: Path) -> Path:
        path.write_bytes(self.build())
        return path


#: Indexes of :func:`default`'s events.
FAULT, MINOR, MAJOR, MMAP_IN, MMAP_OUT, MUNMAP_IN, MUNMAP_OUT = range(7)
CLONE_IN, CLONE_OUT, CLONE3_IN, CLONE3_OUT, EXEC_IN, EXEC_OUT, LOCK_IN, LOCK_OUT = range(7, 15)
BRK_IN, BRK_OUT = 15, 16


def default(**more: Any) -> Writer:
    """A recording with the default set of events (indexes above)."""
    bits = SAMPLE_ID_ALL | INHERIT | CONTEXT_SWITCH
    events = [Event(10, bits=bits), Event(5, 1, SW_TYPE), Event(6, 1, SW_TYPE)]
    order = (20, 21, 22, 23, 30, 31, 32, 33, 34, 35, 40, 41, 24, 25)
    events += [Event(config) for config in order]
    return Writer(events, **more)
