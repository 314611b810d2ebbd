"""Take the host out of a plain perf.data file, in place of every string, without moving a byte.

    python3 scrub_perf_data.py IN OUT

Dropped: host name, build-ids, wall-clock reference, BPF programs, the command that was
recorded, the list of other programs' names (saved cmdlines), kernel release suffix.
Rewritten at equal length: file names outside the system's folders, command names outside
the list below, inode and device numbers.  Everything else (events, times, addresses,
tids) stays as recorded.  Needs only the standard library.
"""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path

MAGIC = b"PERFILE2"
#: Header features that are removed altogether (tools/perf/util/header.h@6.12).
DROPPED = {
    2: "BUILD_ID",
    3: "HOSTNAME",
    25: "BPF_PROG_INFO",
    26: "BPF_BTF",
    29: "CLOCK_DATA",
}
TRACING_DATA, OSRELEASE, CMDLINE = 1, 4, 11
RECORD_MMAP, RECORD_COMM, RECORD_MMAP2 = 1, 3, 10
KEPT_NAMES = {"node", "minify-worker", "perf-exec"}
KEPT_PATHS = re.compile(rb"^(/usr/bin/|/usr/lib/|/lib/|/lib64/|\[|//anon$|/dev/zero|/memfd:)")


def same_length(text: bytes, old: bytes) -> bytes:
    """``text`` cut or padded with NUL to the length of ``old``."""
    return text[: len(old)].ljust(len(old), b"\0")


class Scrubber:
    """Rewrites one file image; counts what it touched."""

    def __init__(self, image: bytes) -> None:
        self.data = bytearray(image)
        if self.data[:8] != MAGIC or struct.unpack_from("<Q", self.data, 8)[0] != 104:
            raise SystemExit("not a plain little-endian perf.data file")
        self.data_offset, self.data_size = struct.unpack_from("<QQ", self.data, 40)
        self.inodes: dict[tuple[int, ...], int] = {}
        self.paths: dict[bytes, int] = {}
        self.counts: dict[str, int] = {}

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def run(self) -> bytes:
        self.features()
        self.records()
        return bytes(self.data)

    # -- header features -----------------------------------------------------------

    def features(self) -> None:
        bitmap = int.from_bytes(self.data[72:104], "little")
        bits = [b for b in range(256) if bitmap >> b & 1]
        table = self.data_offset + self.data_size
        kept: list[bytes] = []
        for i, bit in enumerate(bits):
            entry = bytes(self.data[table + 16 * i : table + 16 * i + 16])
            offset, size = struct.unpack("<QQ", entry)
            if bit in DROPPED:
                self.data[offset : offset + size] = bytes(size)
                bitmap &= ~(1 << bit)
                self.count(f"feature {DROPPED[bit]} removed")
                continue
            kept.append(entry)
            if bit == OSRELEASE:
                self.string(offset, lambda s: re.match(rb"\d+(\.\d+)*", s)[0])  # type: ignore[index]
            elif bit == CMDLINE:
                self.command_line(offset)
            elif bit == TRACING_DATA:
                self.saved_names(offset, size)
        packed = b"".join(kept)
        self.data[table : table + 16 * len(bits)] = packed.ljust(16 * len(bits), b"\0")
        self.data[72:104] = bitmap.to_bytes(32, "little")

    def string(self, offset: int, change) -> int:  # type: ignore[no-untyped-def]
        """Rewrite one perf header string; returns the offset behind it."""
        (size,) = struct.unpack_from("<I", self.data, offset)
        old = bytes(self.data[offset + 4 : offset + 4 + size])
        self.data[offset + 4 : offset + 4 + size] = same_length(change(old.rstrip(b"\0")), old)
        return offset + 4 + size

    def command_line(self, offset: int) -> None:
        """Keep perf's own options; blank the path of perf, the output and the program."""
        (n,) = struct.unpack_from("<I", self.data, offset)
        offset += 4
        state = {"i": 0, "program": False, "output": False}

        def change(text: bytes) -> bytes:
            state["i"] += 1
            if state["i"] == 1:
                return b"perf"
            if text == b"--":
                state["program"] = True
                return text
            if state["program"] or state["output"]:
                state["output"] = False
                return b""
            state["output"] = text == b"-o"
            return text

        for _ in range(n):
            offset = self.string(offset, change)
        self.count("command line blanked")

    def saved_names(self, offset: int, size: int) -> None:
        """Blank pids and names in the saved-cmdlines text (tracing data 0.6)."""
        d, end = self.data, offset + size
        pos = d.index(b"\0", offset + 10) + 1 + 1 + 1 + 4
        for head in (b"header_page\0", b"header_event\0"):
            assert d[pos : pos + len(head)] == head
            (n,) = struct.unpack_from("<Q", d, pos + len(head))
            pos += len(head) + 8 + n
        (n,) = struct.unpack_from("<I", d, pos)
        pos += 4
        for _ in range(n):
            pos += 8 + struct.unpack_from("<Q", d, pos)[0]
        (systems,) = struct.unpack_from("<I", d, pos)
        pos += 4
        for _ in range(systems):
            pos = d.index(b"\0", pos) + 1
            (n,) = struct.unpack_from("<I", d, pos)
            pos += 4
            for _ in range(n):
                pos += 8 + struct.unpack_from("<Q", d, pos)[0]
        pos += 4 + struct.unpack_from("<I", d, pos)[0]  # kallsyms
        pos += 4 + struct.unpack_from("<I", d, pos)[0]  # printk formats
        if pos + 8 > end:
            return
        (n,) = struct.unpack_from("<Q", d, pos)
        text = bytes(d[pos + 8 : pos + 8 + n])
        blank = re.sub(
            rb"^(\d+) (.*)$",
            lambda m: b"0" * len(m[1]) + b" " + b"x" * len(m[2]),
            text,
            flags=re.MULTILINE,
        )
        d[pos + 8 : pos + 8 + n] = blank
        self.count("saved names blanked")

    # -- records -----------------------------------------------------------------------

    def records(self) -> None:
        pos, end = self.data_offset, self.data_offset + self.data_size
        while pos < end:
            kind, misc, size = struct.unpack_from("<IHH", self.data, pos)
            if size < 8 or pos + size > end:
                raise SystemExit(f"record at {pos} of size {size}: not a plain perf.data file")
            if kind == RECORD_COMM:
                self.name(pos + 16)
            elif kind == RECORD_MMAP2:
                self.file_id(pos, misc)
                self.path(pos + 72)
            elif kind == RECORD_MMAP:
                self.path(pos + 40)
            pos += size

    def name(self, pos: int) -> None:
        end = self.data.index(b"\0", pos)
        text = bytes(self.data[pos:end])
        if text.decode(errors="replace") not in KEPT_NAMES:
            self.data[pos:end] = b"x" * len(text)
            self.count("command name blanked")

    def path(self, pos: int) -> None:
        end = self.data.index(b"\0", pos)
        text = bytes(self.data[pos:end])
        if text and not KEPT_PATHS.match(text):
            number = self.paths.setdefault(text, len(self.paths))
            new = b"/file%d" % number
            if len(new) > len(text):
                new = b"/f%d" % number
            self.data[pos:end] = same_length(new.ljust(len(text), b"_"), text)
            self.count("path replaced")

    def file_id(self, pos: int, misc: int) -> None:
        if misc & (1 << 14):  # a build-id stands here
            self.data[pos + 40 : pos + 64] = bytes(24)
            self.count("build-id removed")
            return
        major, minor, inode = struct.unpack_from("<IIQ", self.data, pos + 40)
        if inode:
            number = self.inodes.setdefault((major, minor, inode), len(self.inodes) + 1)
            struct.pack_into("<IIQQ", self.data, pos + 40, 8, 1, number, 0)


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    scrubber = Scrubber(Path(sys.argv[1]).read_bytes())
    image = scrubber.run()
    Path(sys.argv[2]).write_bytes(image)
    for what, n in sorted(scrubber.counts.items()):
        print(f"{n:6} {what}", file=sys.stderr)


if __name__ == "__main__":
    main()
