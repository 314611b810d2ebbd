"""One Parquet file whose row groups and columns are encoded apart, on several threads.

Parquet wants all columns of a row group at once and the groups in order.  Here some
columns are known long before the others, and some groups before those in front of them;
so each part is encoded for itself (:mod:`mmreplay.trace.chunks`), the column chunks are
appended to the file in an order that the caller gives, and the footer at the end says where
each one lies.  Times of beginning have statistics.
The result does not show which thread encoded what.

Footer: https://github.com/apache/parquet-format, ``parquet.thrift`` at 2.11.0, in Thrift's
compact protocol.
"""

from __future__ import annotations

import contextlib
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from mmreplay import schema
from mmreplay.trace import chunks as encoded
from mmreplay.trace.chunks import Column, Wanted, varint

_MAGIC: Final = b"PAR1"
#: Enumerations of parquet.thrift.
_TYPES: Final = {"BOOLEAN": 0, "INT32": 1, "INT64": 2, "FLOAT": 4, "DOUBLE": 5, "BYTE_ARRAY": 6}
_ENCODINGS: Final = {
    "PLAIN": 0,
    "PLAIN_DICTIONARY": 2,
    "RLE": 3,
    "BIT_PACKED": 4,
    "DELTA_BINARY_PACKED": 5,
    "DELTA_LENGTH_BYTE_ARRAY": 6,
    "DELTA_BYTE_ARRAY": 7,
    "RLE_DICTIONARY": 8,
    "BYTE_STREAM_SPLIT": 9,
}
_CODECS: Final = {"UNCOMPRESSED": 0, "SNAPPY": 1, "GZIP": 2, "ZSTD": 6, "LZ4": 7}
#: Type of the schema -> (physical type, ConvertedType, integer bits, signed).
_INTEGERS: Final = {
    "UInt8": ("INT32", 11, 8, False),
    "UInt16": ("INT32", 12, 16, False),
    "UInt32": ("INT32", 13, 32, False),
    "UInt64": ("INT64", 14, 64, False),
    "Int8": ("INT32", 15, 8, True),
    "Int16": ("INT32", 16, 16, True),
    "Int32": ("INT32", 17, 32, True),
    "Int64": ("INT64", 18, 64, True),
}
_UTF8: Final = 0  # ConvertedType
#: The column whose times ascend, or nearly, and that has statistics.
_TIMES: Final = "begin_ns"
_WIDTHS: Final = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "BYTE_ARRAY": 0}
_TABLES: Final = {table.name: table for table in schema.TRACE_TABLES}


def _physical(column: schema.Column) -> str:
    if column.dtype in _INTEGERS:
        return _INTEGERS[column.dtype][0]
    return {"String": "BYTE_ARRAY", "Boolean": "BOOLEAN"}[column.dtype]


class _Chunk(NamedTuple):
    """What the footer says of one column chunk; places are those in its part."""

    name: str
    begin: int
    data: int  # where its first data page begins
    size: int
    plain_size: int
    values: int
    head: bytes  # the first fields of ColumnMetaData: type, encodings, name, codec
    statistics: tuple[int, int] | None  # least and greatest, of int64 columns that have them


class Parts:
    """The file of one table."""

    def __init__(self, target: Path, table: str) -> None:
        self._columns = {column.name: column for column in _TABLES[table].columns}
        self._kinds = {name: _physical(column) for name, column in self._columns.items()}
        self._file = target.open("wb")
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[int, int, list[_Chunk], bytes]] = {}
        self._turn = 0
        self._size = self._crc = 0
        self._rows: dict[int, int] = {}
        #: By row group and column: where its part begins in the file, and the chunk in the part.
        self._placed: dict[int, dict[str, tuple[int, _Chunk]]] = {}
        self._groups: dict[int, bytes] = {}  # what the footer says of those that are complete
        self._heads: dict[tuple[Any, ...], bytes] = {}
        self._append(_MAGIC)

    def write(self, turn: int, group: int, part: Mapping[str, Column]) -> None:
        """Encode ``part`` as (some columns of) row group ``group``; safe from any thread.

        It is appended when all parts with a lower ``turn`` have been; turns begin at 0.
        """
        chunks: list[_Chunk] = []
        content: list[bytes] = []
        size = 0
        rows = max((len(column.values) for column in part.values()), default=0)
        if rows:  # a row group without rows is none
            fields = [self._columns[name] for name in part]
            made = encoded.encode(
                [
                    Wanted(
                        part[field.name],
                        _WIDTHS[self._kinds[field.name]],
                        field.nullable,
                        field.name == _TIMES,
                    )
                    for field in fields
                ]
            )
            for field, chunk in zip(fields, made, strict=True):
                chunks.append(self._described(field, part[field.name], chunk, size))
                content.append(chunk.content)
                size += len(chunk.content)
        whole = b"".join(content)
        with self._lock:
            self._waiting[turn] = group, rows, chunks, whole
            while self._turn in self._waiting:
                self._place(*self._waiting.pop(self._turn))
                self._turn += 1

    def _described(
        self, field: schema.Column, column: Column, made: encoded.Chunk, begin: int
    ) -> _Chunk:
        """What the footer says of a chunk at ``begin`` of its part."""
        values = column.values
        times = field.name == _TIMES
        statistics = (int(values.min()), int(values.max())) if times else None
        key = (field.name, self._kinds[field.name], made.codec, made.encodings)
        head = self._heads.get(key) or self._heads.setdefault(key, _head(*key))
        return _Chunk(
            field.name,
            begin,
            begin + made.data,
            len(made.content),
            made.plain_size,
            len(values),
            head,
            statistics,
        )

    def _place(self, group: int, rows: int, chunks: list[_Chunk], content: bytes) -> None:
        if not chunks:
            return
        placed = self._placed.setdefault(group, {})
        for chunk in chunks:
            placed[chunk.name] = (self._size, chunk)
        self._rows[group] = rows
        self._append(content)
        if len(placed) == len(self._columns):
            del self._placed[group]
            self._groups[group] = _row_group([placed[name] for name in self._columns], rows)

    def _append(self, content: bytes) -> None:
        self._file.write(content)
        self._crc = zlib.crc32(content, self._crc)
        self._size += len(content)

    def close(self) -> tuple[int, int, int]:
        """Write the footer; returns rows, size and CRC-32 of the file.

        All threads have finished writing.  Each group must have got all its columns.
        """
        groups = [self._groups[group] for group in sorted(self._rows)]
        text = _footer(list(self._columns.values()), sum(self._rows.values()), groups)
        self._append(text + len(text).to_bytes(4, "little") + _MAGIC)
        self._file.close()
        return sum(self._rows.values()), self._size, self._crc

    def abandon(self) -> None:
        """Give the file up."""
        with contextlib.suppress(OSError):  # a full disk does not take what was not written yet
            self._file.close()


_TRUE, _FALSE, _BYTE, _I32, _I64, _BINARY, _LIST, _STRUCT = 1, 2, 3, 5, 6, 8, 9, 12


class _Compact:
    """Thrift's compact protocol, as far as a footer needs it."""

    def __init__(self) -> None:
        self.out = bytearray()
        self._last = [0]

    def _varint(self, value: int) -> None:
        self.out += varint(value)

    def _head(self, field: int, kind: int) -> None:
        self.out.append(field - self._last[-1] << 4 | kind)
        self._last[-1] = field

    def integer(self, field: int, value: int, kind: int = _I64) -> None:
        self._head(field, kind)
        self._varint(value << 1 ^ value >> 63)

    def byte(self, field: int, value: int) -> None:
        self._head(field, _BYTE)
        self.out.append(value)

    def truth(self, field: int, value: bool) -> None:
        self._head(field, _TRUE if value else _FALSE)

    def binary(self, field: int, value: bytes) -> None:
        self._head(field, _BINARY)
        self._varint(len(value))
        self.out += value

    def binaries(self, field: int, values: Sequence[bytes]) -> None:
        self.items(field, _BINARY, len(values))
        for value in values:
            self._varint(len(value))
            self.out += value

    def integers(self, field: int, values: Sequence[int]) -> None:
        self.items(field, _I32, len(values))
        for value in values:
            self._varint(value << 1)

    def items(self, field: int, kind: int, count: int) -> None:
        """The head of a list; its ``count`` elements follow."""
        self._head(field, _LIST)
        if count < 15:
            self.out.append(count << 4 | kind)
        else:
            self.out.append(0xF0 | kind)
            self._varint(count)

    def begin(self, field: int = 0) -> None:
        """A struct: of a field, or (0) the next element of a list."""
        if field:
            self._head(field, _STRUCT)
        self._last.append(0)

    def end(self) -> None:
        self._last.pop()
        self.out.append(0)


def _head(name: str, kind: str, codec: str, encodings: Sequence[str]) -> bytes:
    """The first four fields of ColumnMetaData."""
    t = _Compact()
    t.integer(1, _TYPES[kind], _I32)
    t.integers(2, [_ENCODINGS[encoding] for encoding in encodings])
    t.binaries(3, (name.encode(),))
    t.integer(4, _CODECS[codec], _I32)
    return bytes(t.out)


def _footer(columns: Sequence[schema.Column], rows: int, groups: Sequence[bytes]) -> bytes:
    """FileMetaData."""
    t = _Compact()
    t.integer(1, 2, _I32)
    t.items(2, _STRUCT, 1 + len(columns))
    t.begin()
    t.binary(4, b"schema")
    t.integer(5, len(columns), _I32)
    t.end()
    for column in columns:
        _element(t, column)
    t.integer(3, rows)
    t.items(4, _STRUCT, len(groups))
    for group in groups:
        t.out += group
    t.binary(6, b"mmreplay")
    t.items(7, _STRUCT, len(columns))  # statistics are ordered by the column's type
    for _ in columns:
        t.begin()
        t.begin(1)
        t.end()
        t.end()
    t.out.append(0)
    return bytes(t.out)


def _row_group(placed: Sequence[tuple[int, _Chunk]], rows: int) -> bytes:
    """RowGroup, an element of a list: by column, how far it was moved, and the chunk.

    Field by field, as :class:`_Compact` would: each of its heads is known.
    """
    parts = [b"\x19", _count_of_structs(len(placed))]
    for moved, chunk in placed:
        parts += (
            b"\x26\x00\x1c",  # ColumnChunk: file_offset 0; meta_data
            chunk.head,
            b"\x16",
            varint(2 * chunk.values),
            b"\x16",
            varint(2 * chunk.plain_size),
            b"\x16",
            varint(2 * chunk.size),
            b"\x26",
            varint(2 * (moved + chunk.data)),
        )
        if chunk.begin != chunk.data:
            parts += (b"\x26", varint(2 * (moved + chunk.begin)))
        if chunk.statistics is not None:
            least, greatest = (n.to_bytes(8, "little", signed=True) for n in chunk.statistics)
            head = b"\x1c" if chunk.begin != chunk.data else b"\x3c"
            parts += (head, b"\x58\x08", greatest, b"\x18\x08", least, b"\x00")
        parts.append(b"\x00\x00")
    parts += (
        b"\x16",
        varint(2 * sum(chunk.plain_size for _, chunk in placed)),
        b"\x16",
        varint(2 * rows),
        b"\x26",
        varint(2 * min(moved + chunk.begin for moved, chunk in placed)),
        b"\x16",
        varint(2 * sum(chunk.size for _, chunk in placed)),
        b"\x00",
    )
    return b"".join(parts)


def _count_of_structs(count: int) -> bytes:
    return bytes([count << 4 | _STRUCT]) if count < 15 else b"\xfc" + varint(count)


def _element(t: _Compact, column: schema.Column) -> None:
    t.begin()
    t.integer(1, _TYPES[_physical(column)], _I32)
    t.integer(3, 1 if column.nullable else 0, _I32)
    t.binary(4, column.name.encode())
    if column.dtype == "String":
        t.integer(6, _UTF8, _I32)
        t.begin(10)
        t.begin(1)
        t.end()
        t.end()
    elif column.dtype in _INTEGERS:
        _, converted, bits, signed = _INTEGERS[column.dtype]
        t.integer(6, converted, _I32)
        t.begin(10)
        t.begin(10)
        t.byte(1, bits)
        t.truth(2, signed)
        t.end()
        t.end()
    t.end()
