"""The head of a perf.data file: header, attrs, ids, features; of either byte order.

Pure Python over a mapped file: a few kilobytes whatever the size of the recording.
Every count and offset is checked against the file before it is used.  A file that ends
before it should is read as far as it goes, and :attr:`PerfHeader.cut` says so.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from mmreplay.errors import UserError

MAGIC2: Final = b"PERFILE2"
MAGIC2_BIG: Final = b"2ELIFREP"
MAGIC1: Final = b"PERFFILE"
HEADER_SIZE: Final = 104
PIPE_SIZE: Final = 16
#: More events than this in one recording is no recording (perf's own limit is the fd limit).
MAX_ATTRS: Final = 65_536
MAX_IDS: Final = 4_194_304
ATTR_MIN: Final = 64  # PERF_ATTR_SIZE_VER0

# Feature bits: tools/perf/util/header.h@6.12.
F_TRACING_DATA: Final = 1
F_HOSTNAME: Final = 3
F_OSRELEASE: Final = 4
F_VERSION: Final = 5
F_ARCH: Final = 6
F_NRCPUS: Final = 7
F_CPUDESC: Final = 8
F_CPUID: Final = 9
F_TOTAL_MEM: Final = 10
F_EVENT_DESC: Final = 12
F_CPU_TOPOLOGY: Final = 13
F_AUXTRACE: Final = 18
F_CACHE: Final = 20
F_CLOCKID: Final = 23
F_DIR_FORMAT: Final = 24
F_COMPRESSED: Final = 27
F_CLOCK_DATA: Final = 29
_KNOWN_FEATURES: Final = 33

SAMPLE_IP, SAMPLE_TID, SAMPLE_TIME, SAMPLE_ADDR = 1, 2, 4, 8
SAMPLE_READ, SAMPLE_CALLCHAIN, SAMPLE_ID, SAMPLE_CPU = 16, 32, 64, 128
SAMPLE_PERIOD, SAMPLE_STREAM_ID, SAMPLE_RAW = 256, 512, 1024
SAMPLE_IDENTIFIER: Final = 1 << 16
FORMAT_ID, FORMAT_GROUP = 4, 8


@dataclass(slots=True)
class Attr:
    """The part of one ``perf_event_attr`` that is used, its ids and its name."""

    type: int
    config: int
    sample_period: int
    sample_type: int
    read_format: int
    bits: int
    clockid: int
    ids: tuple[int, ...]
    name: str = ""

    @property
    def freq(self) -> bool:
        """Sampled by frequency (``-F``) instead of by count."""
        return bool(self.bits >> 10 & 1)

    @property
    def reads_group(self) -> bool:
        """Its samples have the counts of its whole group (``-e '{a,b}:S'``)."""
        return bool(self.sample_type & SAMPLE_READ and self.read_format & FORMAT_GROUP)

    @property
    def only_counted(self) -> bool:
        """A member of such a group that is not the leader: it makes no samples of its own."""
        return self.reads_group and not self.freq and self.sample_period == 0

    @property
    def inherit(self) -> bool:
        return bool(self.bits >> 1 & 1)

    @property
    def enable_on_exec(self) -> bool:
        return bool(self.bits >> 12 & 1)

    @property
    def mmap_data(self) -> bool:
        """``-d``: MMAP2 records of data mappings."""
        return bool(self.bits >> 17 & 1)

    @property
    def sample_id_all(self) -> bool:
        return bool(self.bits >> 18 & 1)

    @property
    def use_clockid(self) -> bool:
        return bool(self.bits >> 25 & 1)

    @property
    def context_switch(self) -> bool:
        return bool(self.bits >> 26 & 1)


@dataclass(slots=True)
class PerfHeader:
    """What a perf.data file says of itself: attrs, the data section, the features found."""

    attrs: list[Attr]
    data_offset: int = 0
    data_size: int = 0
    #: ``<`` or ``>``: byte order of the file, as :mod:`struct` writes it.
    order: str = "<"
    #: Why the file is not whole, where it is not.
    cut: str = ""
    #: Bytes that it lacks at its end, at least, by what it says itself; a killed recorder's: 0.
    missing: int = 0
    features: dict[int, bytes] = field(default_factory=dict)
    os_release: str = ""
    perf_version: str = ""
    arch: str = ""
    cpu_desc: str = ""
    cpuid: str = ""
    cpus_available: int | None = None
    cpus_online: int | None = None
    total_mem_kib: int | None = None
    threads_per_core: int | None = None
    cores_per_socket: int | None = None
    sockets: int | None = None
    clockid: int | None = None
    clock_resolution_ns: int = 1
    wall_and_clock_ns: tuple[int, int] | None = None
    warnings: list[str] = field(default_factory=list)
    unknown_features: int = 0


def damaged(what: str, where: str) -> UserError:
    """The error for a file whose structure does not hold together."""
    return UserError(
        f"damaged perf.data: {what}",
        where=where,
        fix="copy the file again from where it was made, or record again",
    )


def truncated(what: str, where: str) -> UserError:
    """The error for a file that ends before its content does."""
    return UserError(
        f"truncated perf.data: {what}",
        where=where,
        fix="copy the whole file again, or record again and let perf end normally (Ctrl-C)",
    )


def cut_short(what: str, where: str) -> UserError:
    """The error for a file that ends too early, whose events up to there can be had."""
    return UserError(
        f"truncated perf.data: {what}",
        where=where,
        fix="copy the whole file again, or take what is there: --salvage",
    )


def byte_order(head: bytes, size: int, where: str) -> tuple[str, int]:
    """(byte order, header size) of a perf.data file that begins with ``head`` (16 bytes).

    Raises
    ------
    UserError
        It is no perf.data file of a known version.
    """
    magic = head[:8]
    if size == 0:
        raise UserError("the file is empty", where=where, fix="record again with perf record")
    if magic == MAGIC1:
        raise UserError(
            "a perf.data file of the old version 1 (perf before 2.6.33)",
            where=where,
            fix="record again with a newer perf",
        )
    if magic[:6] in (b"PERFIL", b"2ELIFR") and len(head) >= 8:
        if magic not in (MAGIC2, MAGIC2_BIG):
            raise UserError(
                f"a perf.data file of an unknown version ({magic.decode('ascii', 'replace')!r})",
                where=where,
                fix="record with perf record of a current kernel; version 2 (PERFILE2) is read",
            )
    elif not (MAGIC2.startswith(magic) or MAGIC2_BIG.startswith(magic)) or size >= 8:
        raise UserError(
            "not a perf.data file",
            where=where,
            fix="give the file that perf record wrote; text and trace.dat come from files only",
        )
    if len(head) < 16:
        raise truncated(f"only {size} bytes", where)
    order = "<" if magic == MAGIC2 else ">"
    header_size = struct.unpack_from(order + "Q", head, 8)[0]
    if header_size > HEADER_SIZE:
        raise UserError(
            f"a perf.data file with a header of {header_size} bytes, newer than the known "
            f"{HEADER_SIZE}",
            where=where,
            fix="record with perf record of kernel 7.0 or older, or update mmreplay",
        )
    if header_size not in (HEADER_SIZE, PIPE_SIZE):
        raise damaged(f"header size {header_size}", where)
    return order, header_size


def parse_header(data: Any, where: str) -> PerfHeader:
    """Parse the head of a seekable perf.data file.

    Parameters
    ----------
    data:
        The whole file as a bytes-like object (a memory map).
    where:
        The file's name, for errors.

    Raises
    ------
    UserError
        Not a seekable perf.data file, or one that ends before its events, with what to do.
    """
    size = len(data)
    order, header_size = byte_order(bytes(data[:16]), size, where)
    if header_size != HEADER_SIZE:
        raise damaged(f"header size {header_size}", where)
    if size < HEADER_SIZE:
        raise truncated(f"only {size} bytes of a header of {HEADER_SIZE}", where)
    attr_size, attrs_at, attrs_len, data_at, data_len = struct.unpack_from(order + "5Q", data, 16)
    attrs = _attrs(data, order, attr_size, attrs_at, attrs_len, where)
    if data_at < HEADER_SIZE or data_at > size:
        raise truncated(f"events start at byte {data_at} of {size}", where)
    header = PerfHeader(attrs, data_at, data_len, order)
    if data_len == 0:
        header.data_size = size - data_at
        header.cut = "the recorder did not end normally"
    elif data_len > size - data_at:
        header.data_size = size - data_at
        header.cut = f"the file ends {data_len - header.data_size} bytes of events too early"
    if data_len:
        _features(header, data, _bitmap(data, order), data_at + data_len)
    return header


def _bitmap(data: Any, order: str) -> int:
    """The features that there are, bit by bit: an array of the recorder's longs."""

    def joined(words: tuple[int, ...], bits: int) -> int:
        return sum(word << bits * index for index, word in enumerate(words))

    bitmap = joined(struct.unpack_from(order + "4Q", data, 72), 64)
    if order == ">" and not bitmap >> F_HOSTNAME & 1:  # which every file has: longs of 32 bits
        narrow = joined(struct.unpack_from(order + "8I", data, 72), 32)
        return narrow if narrow >> F_HOSTNAME & 1 else bitmap
    return bitmap


def _attrs(data: Any, order: str, attr_size: int, at: int, length: int, where: str) -> list[Attr]:
    size = len(data)
    if attr_size < ATTR_MIN + 16 or attr_size > 65_536:
        raise damaged(f"event attributes of {attr_size} bytes", where)
    if at > size or length > size - at:
        raise truncated(f"its event attributes end {at + length - size} bytes too late", where)
    count = length // attr_size
    if count == 0:
        raise damaged("no event attributes", where)
    if count > MAX_ATTRS:
        raise damaged(f"{count} event attributes", where)
    attrs = []
    budget = MAX_IDS
    for index in range(count):
        base = at + index * attr_size
        ids_at, ids_len = struct.unpack_from(order + "2Q", data, base + attr_size - 16)
        if ids_at > size or ids_len > size - ids_at:
            raise truncated(f"its event ids end {ids_at + ids_len - size} bytes too late", where)
        budget -= ids_len // 8
        if budget < 0:
            raise damaged(f"more than {MAX_IDS} event ids", where)
        ids = struct.unpack_from(f"{order}{ids_len // 8}Q", data, ids_at)
        attrs.append(parse_attr(bytes(data[base : base + attr_size - 16]), order, ids))
    return attrs


def parse_attr(raw: bytes, order: str, ids: tuple[int, ...]) -> Attr:
    """One ``perf_event_attr`` of any size: what it is too short for is 0."""
    raw = raw.ljust(136, b"\0")
    kind, _, config, period, sample_type, read_format, bits = struct.unpack_from(
        order + "2I5Q", raw
    )
    if order == ">":  # bit fields are laid out from the other end
        bits = int(f"{bits:064b}"[::-1], 2)
    (clockid,) = struct.unpack_from(order + "i", raw, 92)
    return Attr(kind, config, period, sample_type, read_format, bits, clockid, ids)


def _features(header: PerfHeader, data: Any, bitmap: int, at: int) -> None:
    """Read the sections that the table at ``at``, behind the events, tells of."""
    size = len(data)
    needed = at + 16 * bitmap.bit_count()
    header.missing = max(0, needed - size)
    for bit in range(256):
        if not bitmap >> bit & 1:
            continue
        if at + 16 > size:
            header.cut = header.cut or "the file ends before what follows the events"
            return
        offset, length = struct.unpack_from(header.order + "2Q", data, at)
        at += 16
        if offset > size or length > size - offset:
            header.cut = f"the file ends before feature section {bit}"
            header.missing = max(header.missing, offset + length - size)
            continue
        add_feature(header, bit, bytes(data[offset : offset + min(length, 1 << 28)]))


def add_feature(header: PerfHeader, bit: int, blob: bytes) -> None:
    """Note a feature section, and read it where it is one that is used."""
    if bit >= _KNOWN_FEATURES:
        header.unknown_features += 1
        return
    header.features[bit] = blob
    parse = _PARSERS.get(bit)
    if parse is None:
        return
    try:
        parse(header, blob)
    except (struct.error, ValueError, IndexError):
        header.warnings.append(f"feature section {bit} could not be read and was skipped")


def _string(blob: bytes, order: str, at: int = 0) -> tuple[str, int]:
    (length,) = struct.unpack_from(order + "I", blob, at)
    if at + 4 + length > len(blob):
        raise ValueError("string behind its section")
    text = blob[at + 4 : at + 4 + length].split(b"\0", 1)[0]
    return text.decode("utf-8", "replace"), at + 4 + length


def _text(name: str) -> Callable[[PerfHeader, bytes], None]:
    def parse(header: PerfHeader, blob: bytes) -> None:
        setattr(header, name, _string(blob, header.order)[0])

    return parse


def _nrcpus(header: PerfHeader, blob: bytes) -> None:
    header.cpus_available, header.cpus_online = struct.unpack_from(header.order + "2I", blob)


def _total_mem(header: PerfHeader, blob: bytes) -> None:
    (header.total_mem_kib,) = struct.unpack_from(header.order + "Q", blob)


def _clockid(header: PerfHeader, blob: bytes) -> None:
    # The section holds the clock's resolution in ns (tools/perf/util/header.c
    # write_clockid@6.12), for CLOCK_MONOTONIC 1.
    (resolution,) = struct.unpack_from(header.order + "Q", blob)
    header.clock_resolution_ns = max(1, min(resolution, 1_000_000_000))


def _clock_data(header: PerfHeader, blob: bytes) -> None:
    _, clockid, wall, clock = struct.unpack_from(header.order + "IIQQ", blob)
    header.clockid = clockid
    if wall < 1 << 63 and clock < 1 << 63:
        header.wall_and_clock_ns = (wall, clock)


def _event_desc(header: PerfHeader, blob: bytes) -> None:
    order = header.order
    count, attr_size = struct.unpack_from(order + "2I", blob)
    at = 8
    names: dict[tuple[int, ...], str] = {}
    in_order: list[str] = []
    if count > MAX_ATTRS:
        raise ValueError("too many events")
    for _ in range(count):
        at += attr_size
        (n_ids,) = struct.unpack_from(order + "I", blob, at)
        name, at = _string(blob, order, at + 4)
        if at + 8 * n_ids > len(blob):
            raise ValueError("ids behind their section")
        names[struct.unpack_from(f"{order}{n_ids}Q", blob, at)] = name
        in_order.append(name)
        at += 8 * n_ids
    for index, attr in enumerate(header.attrs):
        if attr.ids in names and attr.ids:
            attr.name = names[attr.ids]
        elif len(in_order) == len(header.attrs):
            attr.name = in_order[index]


def _cpu_topology(header: PerfHeader, blob: bytes) -> None:
    """Revision 1: sibling lists; 2 adds (core, socket) per available CPU; 3 adds dies."""
    at = 0
    lists: list[list[str]] = []
    for _ in range(2):
        (count,) = struct.unpack_from(header.order + "I", blob, at)
        at += 4
        if count > 65_536:
            raise ValueError("too many siblings")
        found = []
        for _ in range(count):
            text, at = _string(blob, header.order, at)
            found.append(text)
        lists.append(found)
    threads = [_width(text) for text in lists[1]]
    if threads:
        header.threads_per_core = max(1, max(threads))
    available = header.cpus_available or 0
    if 0 < available <= 65_536 and at + 8 * available <= len(blob):
        words = struct.unpack_from(f"{header.order}{2 * available}i", blob, at)
        pairs = {(words[2 * i], words[2 * i + 1]) for i in range(available)}
        sockets = {socket for _, socket in pairs if socket >= 0}
        if sockets:
            header.sockets = len(sockets)
            cores = len({pair for pair in pairs if pair[1] >= 0})
            header.cores_per_socket = max(1, cores // len(sockets))


def _width(cpu_list: str) -> int:
    """Number of CPUs in a list such as ``0-3,8``."""
    total = 0
    for part in cpu_list.split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


_PARSERS: Final[dict[int, Callable[[PerfHeader, bytes], None]]] = {
    F_OSRELEASE: _text("os_release"),
    F_VERSION: _text("perf_version"),
    F_ARCH: _text("arch"),
    F_NRCPUS: _nrcpus,
    F_CPUDESC: _text("cpu_desc"),
    F_CPUID: _text("cpuid"),
    F_TOTAL_MEM: _total_mem,
    F_EVENT_DESC: _event_desc,
    F_CPU_TOPOLOGY: _cpu_topology,
    F_CLOCKID: _clockid,
    F_CLOCK_DATA: _clock_data,
}
