"""The TRACING_DATA blob of perf.data (and the head of trace.dat): event format texts.

Events are always decoded by this text, since field offsets are
not stable between kernels.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from mmreplay.errors import UserError

_MAGIC = b"\x17\x08\x44tracing"
_FIELD = re.compile(
    r"field:\s*(?P<decl>[^;]*);\s*offset:\s*(?P<offset>\d+);\s*size:\s*(?P<size>\d+);"
    r"(?:\s*signed:\s*(?P<signed>-?\d+);)?"
)
_NAME = re.compile(r"(\w+)\s*(\[[^\]]*\])?\s*$")


class Field(NamedTuple):
    """One field of an event: byte offset and size within RAW, signedness.

    ``dynamic`` is ``"data_loc"`` or ``"rel_loc"`` where the field holds a reference
    (u32: length << 16 | offset) instead of the value.
    """

    name: str
    offset: int
    size: int
    signed: bool
    dynamic: str = ""
    array: bool = False


class Format(NamedTuple):
    """One event format: system, name, id (``attr.config`` of the tracepoint), fields."""

    system: str
    name: str
    id: int
    fields: tuple[Field, ...]

    def field(self, name: str) -> Field | None:
        """The field of that name, or None."""
        return next((f for f in self.fields if f.name == name), None)


class TracingData(NamedTuple):
    """What the blob says: page size, size of a user long, and the formats by id."""

    version: str
    big_endian: bool
    long_size: int
    page_size: int
    formats: dict[int, Format]


def parse_format(system: str, text: str) -> Format | None:
    """One format text; None where it has no name, no id or no field."""
    name = re.search(r"^name:\s*(\S+)", text, re.MULTILINE)
    ident = re.search(r"^ID:\s*(\d+)", text, re.MULTILINE)
    if name is None or ident is None:
        return None
    fields = []
    body = text.split("print fmt:", 1)[0]
    for match in _FIELD.finditer(body):
        decl = match["decl"].strip()
        found = _NAME.search(decl)
        if found is None:
            continue
        dynamic = ""
        if decl.startswith("__data_loc"):
            dynamic = "data_loc"
        elif decl.startswith("__rel_loc"):
            dynamic = "rel_loc"
        fields.append(
            Field(
                found[1],
                int(match["offset"]),
                int(match["size"]),
                match["signed"] not in (None, "0"),
                dynamic,
                found[2] is not None,
            )
        )
    return Format(system, name[1], int(ident[1]), tuple(fields))


class _Cursor:
    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        self.at = 0
        self.order = "<"

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.blob):
            raise UserError(
                "the event formats inside the file are cut or damaged (TRACING_DATA)",
                fix="record again, or copy the file again from where it was made",
            )
        part = self.blob[self.at : self.at + count]
        self.at += count
        return part

    def u32(self) -> int:
        return int(struct.unpack(self.order + "I", self.take(4))[0])

    def u64(self) -> int:
        return int(struct.unpack(self.order + "Q", self.take(8))[0])

    def string(self) -> str:
        end = self.blob.find(b"\0", self.at)
        if end < 0:
            self.take(len(self.blob) + 1)
        part = self.blob[self.at : end]
        self.at = end + 1
        return part.decode("utf-8", "replace")


def parse_tracing_data(blob: bytes) -> TracingData:
    """Parse the blob.

    Raises
    ------
    UserError
        It is no TRACING_DATA, or is cut.
    """
    cursor = _Cursor(blob)
    if cursor.take(len(_MAGIC)) != _MAGIC:
        raise UserError(
            "the event formats inside the file are damaged (no tracing magic)", fix="record again"
        )
    version = cursor.string()
    big_endian = cursor.take(1) != b"\0"
    long_size = cursor.take(1)[0]
    cursor.order = ">" if big_endian else "<"
    page_size = cursor.u32()
    for _ in range(2):  # header_page, header_event
        cursor.string()
        cursor.take(cursor.u64())
    formats: dict[int, Format] = {}

    def add(system: str, text: bytes) -> None:
        parsed = parse_format(system, text.decode("utf-8", "replace"))
        if parsed is not None:
            formats[parsed.id] = parsed

    for _ in range(cursor.u32()):
        add("ftrace", cursor.take(cursor.u64()))
    for _ in range(cursor.u32()):
        system = cursor.string()
        for _ in range(cursor.u32()):
            add(system, cursor.take(cursor.u64()))
    return TracingData(version, big_endian, long_size, page_size, formats)
