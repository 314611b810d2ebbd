"""Columns encoded for Parquet, without pyarrow: loading it takes as long as reading 300,000 events.

What recorded operations have in common decides how: most columns of a group hold one value
or none, many a few hundred distinct ones, and some are null in most rows.  A chunk is one
page.  Its values are numbers of a dictionary, where there are at most :data:`MOST_DISTINCT`
of them, else the bytes of the values by their place (BYTE_STREAM_SPLIT); times that ascend
are differences (DELTA_BINARY_PACKED).  It is compressed by zstd where that pays.

Encodings: https://github.com/apache/parquet-format, ``Encodings.md`` at 2.11.0; pages:
``parquet.thrift``.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.jit import borrowing_helper, native, pointer, values_at
from mmreplay.trace.memory import cut

MOST_DISTINCT: Final = 4096
_TABLE_BITS: Final = 13
#: Chunks up to this many bytes are not compressed.
_TINY_BYTES: Final = 64
#: Compression must save at least one in so many bytes.
_LEAST_SAVED: Final = 8
#: Of zstd: as fast as LZ4 on such pages (1.0 to 1.2 GB/s), and a little smaller.
_LEVEL: Final = -3
# Results of :func:`_encode`, beside the number of dictionary entries.
_NO_VALUES, _NUMBERS, _SPLIT, _DIFFERENCES, _PLAIN = range(5)


class Column(NamedTuple):
    """Values of one column."""

    values: NDArray[Any]  # (rows,) integers or truth; those that are null may be anything
    known: NDArray[Any] | None = None  # (rows,) bool, or a bit each; None: all
    nulls: int = 0
    words: Sequence[str] | None = None  # of a column of strings: ``values`` are places in it


class Chunk(NamedTuple):
    """An encoded column chunk: its pages, and what the footer says of it."""

    content: bytes
    data: int  # where in it the data page begins, behind that of the dictionary
    plain_size: int  # of the pages uncompressed, headers included
    codec: str
    encodings: tuple[str, ...]


class Wanted(NamedTuple):
    """How a column is to be encoded: ``width`` is that of Parquet's type in bytes: 4 or 8, 1
    for truth; 0 for strings.  ``ascending``: differences are small."""

    column: Column
    width: int
    nullable: bool
    ascending: bool = False


#: The table of distinct values, in words: keys, their numbers, and the values by number.
_IDS: Final = 1 << _TABLE_BITS
_FOUND: Final = 2 << _TABLE_BITS
#: Differences of a block, and of a part of it.
_BLOCK, _PART = 128, 32
#: What :func:`_encode` is told of a column, and what it says.
(_VALUES, _KIND, _KNOWN, _NULLS, _NULLABLE, _WIDTH, _ASCENDING, _TOLD) = range(8)
(_HOW, _DISTINCT, _BEGIN, _PAGE, _END, _SAID) = range(6)
#: Types of values, by their place here.
_KINDS: Final = {np.dtype(kind): number for number, kind in enumerate("bBhHiIlL")}


class _Memory:
    """What encoding chunks of up to ``rows`` values needs, used again and again."""

    def __init__(self, rows: int, columns: int) -> None:
        import zstandard

        self.rows, self.columns = rows, columns
        most = 8 * MOST_DISTINCT + 8 * rows + rows // 4 + 1024
        self.wide, self.kept, self.number, self.table, self.out = cut(
            (
                (np.int64, rows),
                (np.int64, rows),
                (np.int64, rows + 8),
                (np.int64, _FOUND + MOST_DISTINCT),
                (np.uint8, columns * most),
            )
        )
        self.zstd = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)


_OWN: Final = threading.local()


def encode(parts: Sequence[Wanted]) -> list[Chunk]:
    """The chunks of columns of equal length; the same bytes for the same values."""
    rows = len(parts[0].column.values)
    memory = getattr(_OWN, "memory", None)
    if memory is None or memory.rows < rows or memory.columns < len(parts):
        had = (memory.rows, memory.columns) if memory else (0, 0)
        memory = _OWN.memory = _Memory(max(rows, had[0]), max(len(parts), had[1]))
    told: list[int] = []
    kept: list[Any] = []  # what the addresses are of
    for (values, known, nulls, _), width, nullable, ascending in parts:
        bits = _NOTHING
        if known is not None and 0 < nulls < rows:
            bits = np.packbits(known, bitorder="little") if known.dtype == np.bool_ else known
        if values.dtype == np.bool_:  # not there: all of them are as if they were not known
            told += (0, 0, 0, rows, nullable, 1, False)
            kept.append(bits)
            continue
        values = np.ascontiguousarray(values)
        kept += (bits, values)
        told += (
            values.__array_interface__["data"][0],
            _KINDS[values.dtype],
            bits.__array_interface__["data"][0],
            nulls,
            nullable,
            width or 4,
            ascending,
        )
    said = np.empty(_SAID * len(parts), np.int64)
    _encode(
        np.array(told, np.int64),
        rows,
        memory.wide.__array_interface__["data"][0],
        memory.kept.__array_interface__["data"][0],
        memory.number,
        memory.table,
        memory.out,
        said,
    )
    pages: list[_Pages] = []
    for wanted, own in zip(parts, said.reshape(-1, _SAID).tolist(), strict=True):
        bits = kept.pop(0)
        if wanted.column.values.dtype == np.bool_:
            pages.append(_truth(wanted.column, bits, wanted.nullable))
            continue
        del kept[0]
        how, distinct, begin, page, end = own
        data = memory.out[page:end]
        words = wanted.column.words
        if words is not None and how not in (_NO_VALUES, _NUMBERS):
            pages.append(_strings(wanted.column, bits, wanted.nullable))
        elif how != _NUMBERS:
            pages.append(_Pages(how, None, data))
        elif words is None:
            pages.append(_Pages(how, memory.out[begin:page], data, distinct))
        else:
            places = memory.out[begin:page].view(np.int32).tolist()
            texts = _texts(words[place] for place in places)
            pages.append(_Pages(how, texts, data, distinct))
    return _chunks(pages, rows, memory)


class _Pages(NamedTuple):
    """A column's pages as they are encoded, not yet compressed."""

    how: int
    dictionary: Any  # bytes, or an array of them; None: there is none
    data: Any
    distinct: int = 0  # entries of the dictionary

    @property
    def all(self) -> list[Any]:
        """In their order."""
        return [self.data] if self.dictionary is None else [self.dictionary, self.data]


def _chunks(columns: list[_Pages], rows: int, memory: _Memory) -> list[Chunk]:
    """Compress all pages where that may pay, in one call, and put heads before them."""
    plain_sizes = [sum(map(len, column.all)) for column in columns]
    worth = [
        page
        for column, size in zip(columns, plain_sizes, strict=True)
        if size > _TINY_BYTES
        for page in column.all
    ]
    packed = iter(memory.zstd.multi_compress_to_buffer(worth) if worth else ())
    made = []
    for column, plain_size in zip(columns, plain_sizes, strict=True):
        plain = column.all
        codec, pages = "UNCOMPRESSED", plain
        if plain_size > _TINY_BYTES:
            found = [next(packed) for _ in plain]
            if sum(map(len, found)) * _LEAST_SAVED <= plain_size * (_LEAST_SAVED - 1):
                codec, pages = "ZSTD", found
        heads = [_data_head(len(plain[-1]), len(pages[-1]), rows, column.how)]
        if column.dictionary is not None:
            heads.insert(0, _dictionary_head(len(plain[0]), len(pages[0]), column.distinct))
        made.append(
            Chunk(
                b"".join(part for both in zip(heads, pages, strict=True) for part in both),
                len(heads[0]) + len(pages[0]) if column.dictionary is not None else 0,
                plain_size + sum(map(len, heads)),
                codec,
                _USED[column.how],
            )
        )
    return made


_USED: Final = (
    ("PLAIN", "RLE"),
    ("PLAIN", "RLE", "RLE_DICTIONARY"),
    ("RLE", "BYTE_STREAM_SPLIT"),
    ("RLE", "DELTA_BINARY_PACKED"),
    ("PLAIN", "RLE"),
)


def _truth(column: Column, bits: NDArray[np.uint8], nullable: bool) -> _Pages:
    page = _levels(column, bits) if nullable else b""
    page += np.packbits(_known_of(column, bits), bitorder="little").tobytes()
    return _Pages(_PLAIN, None, page)


def _strings(column: Column, bits: NDArray[np.uint8], nullable: bool) -> _Pages:
    """Where there are too many distinct ones for a dictionary."""
    assert column.words is not None
    page = _levels(column, bits) if nullable else b""
    words = column.words
    page += _texts(words[place] for place in _known_of(column, bits).tolist())
    return _Pages(_PLAIN, None, page)


def _texts(words: Iterable[str]) -> bytes:
    """Strings in the encoding PLAIN."""
    coded = [word.encode("utf-8", "replace") for word in words]
    return b"".join(len(word).to_bytes(4, "little") + word for word in coded)


def _known_of(column: Column, bits: NDArray[np.uint8]) -> NDArray[Any]:
    rows = len(column.values)
    if column.nulls in (0, rows):
        return column.values[: rows - column.nulls]
    chosen: NDArray[Any] = column.values[np.unpackbits(bits, count=rows, bitorder="little") != 0]
    return chosen


def _levels(column: Column, bits: NDArray[np.uint8]) -> bytes:
    rows = len(column.values)
    if column.nulls in (0, rows):
        levels = varint(rows << 1) + bytes([column.nulls == 0])
    else:
        groups = (rows + 7) >> 3
        levels = varint(groups << 1 | 1) + bits[:groups].tobytes()
    return len(levels).to_bytes(4, "little") + levels


_NOTHING: Final = np.zeros(0, np.uint8)


# -- page headers, in Thrift's compact protocol ----------------------------------------------


def varint(value: int) -> bytes:
    """A number that is not negative, seven bits a byte, the lowest first."""
    if value < 1 << 7:
        return bytes((value,))
    if value < 1 << 14:
        return bytes((value & 127 | 128, value >> 7))
    if value < 1 << 21:
        return bytes((value & 127 | 128, value >> 7 & 127 | 128, value >> 14))
    low = (value & 127 | 128, value >> 7 & 127 | 128, value >> 14 & 127 | 128)
    return bytes(low) + varint(value >> 21)


@functools.cache
def _data_rest(rows: int, how: int) -> bytes:
    """DataPageHeader: values, encodings of them and levels."""
    encoding = (0, 8, 9, 5, 0)[how]
    told = (b"\x2c\x15", varint(2 * rows), b"\x15", varint(2 * encoding))
    return b"".join((*told, b"\x15\x06\x15\x06\x00\x00"))


def _data_head(plain: int, packed: int, rows: int, how: int) -> bytes:
    """PageHeader: DATA_PAGE, its sizes, and the rest."""
    sizes = (b"\x15\x00\x15", varint(2 * plain), b"\x15", varint(2 * packed))
    return b"".join((*sizes, _data_rest(rows, how)))


def _dictionary_head(plain: int, packed: int, entries: int) -> bytes:
    """PageHeader: DICTIONARY_PAGE, its sizes; DictionaryPageHeader: entries, PLAIN."""
    return b"".join(
        (
            b"\x15\x04\x15",
            varint(2 * plain),
            b"\x15",
            varint(2 * packed),
            b"\x4c\x15",
            varint(2 * entries),
            b"\x15\x00\x00\x00",
        )
    )


# -- compiled --------------------------------------------------------------------------------


@borrowing_helper
def _put_varint(out: Any, at: Any, value: Any) -> Any:
    while value > 127:
        out[at] = value & 127 | 128
        value >>= 7
        at += 1
    out[at] = value
    return at + 1


@borrowing_helper
def _put_levels(out: Any, begin: Any, known: Any, rows: Any, nulls: Any) -> Any:
    """Definition levels, with their length in front; returns where they end."""
    at = begin + 4
    if nulls == 0 or nulls == rows:
        at = _put_varint(out, at, rows << 1)
        out[at] = nulls == 0
        at += 1
    else:
        count = (rows + 7) >> 3
        at = _put_varint(out, at, count << 1 | 1)
        for k in range(count):
            out[at + k] = known[k]
        at += count
        if rows & 7:
            out[at - 1] &= (1 << (rows & 7)) - 1
    length = at - begin - 4
    for k in range(4):
        out[begin + k] = length >> 8 * k & 255
    return at


@borrowing_helper
def _same(values: Any, count: Any) -> Any:
    """Whether all values are the first one."""
    for first in range(0, count, 1024):
        differ = np.int64(0)
        for i in range(first, min(count, first + 1024)):
            differ |= values[i] ^ values[0]
        if differ != 0:
            return False
    return True


@borrowing_helper
def _number(values: Any, count: Any, number: Any, table: Any) -> Any:
    """Number the distinct values as they come; returns how many, -1: more than allowed."""
    for k in range(1 << _TABLE_BITS):
        table[_IDS + k] = -1
    distinct = np.int64(0)
    shift = np.uint64(64 - _TABLE_BITS)
    mask = (1 << _TABLE_BITS) - 1
    for i in range(count):
        value = values[i]  # whether it is the one before is not worth a branch
        slot = np.int64((np.uint64(value) * np.uint64(0x9E3779B97F4A7C15)) >> shift)
        own = table[_IDS + slot]
        while own >= 0 and table[slot] != value:
            slot = (slot + 1) & mask
            own = table[_IDS + slot]
        if own < 0:
            if distinct == MOST_DISTINCT:
                return -1
            own = distinct
            table[_IDS + slot] = own
            table[slot] = value
            table[_FOUND + own] = value
            distinct += 1
        number[i] = own
    return distinct


@borrowing_helper
def _put_numbers(out: Any, at: Any, number: Any, count: Any, distinct: Any) -> Any:
    """The width of a number, and the numbers in one run."""
    bits = 1
    while distinct > 1 << bits:
        bits += 1
    out[at] = bits
    at += 1
    if distinct == 1:
        at = _put_varint(out, at, count << 1)
        out[at] = 0
        return at + 1
    groups = (count + 7) >> 3
    at = _put_varint(out, at, groups << 1 | 1)
    for k in range(count, 8 * groups):
        number[k] = 0
    half = 4 * bits
    for group in range(groups):
        first = 8 * group
        low, high = np.int64(0), np.int64(0)
        for k in range(4):  # four numbers are 48 bits at most
            low |= number[first + k] << bits * k
            high |= number[first + 4 + k] << bits * k
        if half & 7:  # the halves meet within a byte
            low |= (high & 15) << half
            high >>= 4
        for k in range((half + 7) >> 3):
            out[at + k] = low >> 8 * k & 255
        at += (half + 7) >> 3
        for k in range(half >> 3):
            out[at + k] = high >> 8 * k & 255
        at += half >> 3
    return at


@borrowing_helper
def _put_signed(out: Any, at: Any, value: Any) -> Any:
    """A zigzag varint."""
    left = np.uint64((value << 1) ^ (value >> 63))
    while left > np.uint64(127):
        out[at] = np.int64(left & np.uint64(127)) | 128
        left >>= np.uint64(7)
        at += 1
    out[at] = np.int64(left)
    return at + 1


@borrowing_helper
def _put_differences(out: Any, at: Any, source: Any, count: Any) -> Any:
    """DELTA_BINARY_PACKED: blocks of 128 differences, in four parts of one width each."""
    at = _put_varint(out, at, _BLOCK)
    at = _put_varint(out, at, _BLOCK // _PART)
    at = _put_varint(out, at, count)
    at = _put_signed(out, at, source[0])
    for first in range(1, count, _BLOCK):
        last = min(count, first + _BLOCK)
        least = np.int64(source[first] - source[first - 1])
        for i in range(first + 1, last):
            least = np.int64(min(least, source[i] - source[i - 1]))
        at = _put_signed(out, at, least)
        widths = at
        at += _BLOCK // _PART
        for part in range(_BLOCK // _PART):
            begin = first + part * _PART
            any_bit = np.uint64(0)
            for i in range(begin, min(last, begin + _PART)):
                any_bit |= np.uint64(source[i] - source[i - 1] - least)
            width = np.int64(0)
            while width < 64 and any_bit >> np.uint64(width) != np.uint64(0):
                width += 1
            out[widths + part] = width
            held, bits = np.uint64(0), np.int64(0)  # not yet written
            for i in range(begin, begin + _PART if begin < last else begin):
                value = np.uint64(0)
                if i < last:
                    value = np.uint64(source[i] - source[i - 1] - least)
                left = width
                while left > 0:
                    piece = left if left < 32 else np.int64(32)
                    held |= (value & np.uint64((1 << piece) - 1)) << np.uint64(bits)
                    value >>= np.uint64(piece)
                    bits += piece
                    left -= piece
                    while bits >= 8:
                        out[at] = np.int64(held & np.uint64(255))
                        held >>= np.uint64(8)
                        bits -= 8
                        at += 1
    return at


@borrowing_helper
def _copy(values: Any, rows: Any, wide: Any) -> Any:
    for i in range(rows):
        wide[i] = values[i]
    return 0


@borrowing_helper
def _widen(address: Any, kind: Any, rows: Any, wide: Any) -> Any:
    """Values of one of :data:`_KINDS` as int64."""
    if kind == 0:
        _copy(values_at(address, np.int8), rows, wide)
    elif kind == 1:
        _copy(values_at(address, np.uint8), rows, wide)
    elif kind == 2:
        _copy(values_at(address, np.int16), rows, wide)
    elif kind == 3:
        _copy(values_at(address, np.uint16), rows, wide)
    elif kind == 4:
        _copy(values_at(address, np.int32), rows, wide)
    else:
        _copy(values_at(address, np.uint32), rows, wide)
    return 0


@borrowing_helper
def _chosen(source: Any, known: Any, rows: Any, kept: Any) -> Any:
    """The values that are not null, together."""
    n = 0
    for i in range(rows):
        kept[n] = source[i]
        n += known[i >> 3] >> (i & 7) & 1
    return 0


@borrowing_helper
def _put_split(out: Any, at: Any, source: Any, count: Any, width: Any) -> Any:
    """BYTE_STREAM_SPLIT."""
    for place in range(width):
        shift = 8 * place
        for i in range(count):
            out[at + i] = source[i] >> shift & 255
        at += count
    return at


@native
def _encode(
    told: Any,
    rows: Any,
    wide: Any,
    kept: Any,
    number: Any,
    table: Any,
    out: Any,
    said: Any,
) -> None:
    """Encode a page, maybe behind a dictionary, of each of some columns.

    Parameters
    ----------
    told:
        By column, one after the other: address and type of its values; address of a bit for
        each row, where there are nulls but not only nulls; how many nulls; whether there may
        be any; bytes of a value of Parquet's type, 4 or 8; whether differences are small: they
        are encoded then, whatever the values are.
    wide, kept:
        Addresses of (rows,) int64, for what lies in between.
    number, table:
        Scratch: (rows + 8,), and the table of distinct values.
    out:
        Takes the dictionaries and pages.
    said:
        By column: how it was encoded, entries of the dictionary, and where in ``out`` that
        begins, the page begins (with its levels), and the page ends.
    """
    columns = told.shape[0] // _TOLD
    told, said = pointer(told), pointer(said)
    wide, kept = values_at(wide, np.int64), values_at(kept, np.int64)
    number, table, out = pointer(number), pointer(table), pointer(out)
    at = np.int64(0)
    for column in range(columns):
        own = column * _TOLD
        nulls, nullable, width = told[own + _NULLS], told[own + _NULLABLE], told[own + _WIDTH]
        known = values_at(told[own + _KNOWN], np.uint8)
        count = rows - nulls
        source = values_at(told[own + _VALUES], np.int64)
        begin = at
        how, distinct = np.int64(_NO_VALUES), np.int64(0)
        if count > 0:
            if told[own + _KIND] < 6:
                _widen(told[own + _VALUES], told[own + _KIND], rows, wide)
                source = wide
            if nulls > 0:
                _chosen(source, known, rows, kept)
                source = kept
            if told[own + _ASCENDING]:
                how = np.int64(_DIFFERENCES)
            else:
                distinct = np.int64(1)
                table[_FOUND] = source[0]
                if not _same(source, count):
                    distinct = np.int64(_number(source, count, number, table))
                how = np.int64(_NUMBERS if distinct >= 0 else _SPLIT)
        if how == _NUMBERS:
            for k in range(distinct):
                for byte in range(width):
                    out[at + byte] = table[_FOUND + k] >> 8 * byte & 255
                at += width
        page = at
        if nullable:
            at = _put_levels(out, at, known, rows, nulls)
        if how == _NUMBERS:
            at = _put_numbers(out, at, number, count, distinct)
        elif how == _DIFFERENCES:
            at = _put_differences(out, at, source, count)
        elif how == _SPLIT:
            at = _put_split(out, at, source, count, width)
        own = column * _SAID
        said[own + _HOW], said[own + _DISTINCT] = how, distinct
        said[own + _BEGIN], said[own + _PAGE], said[own + _END] = begin, page, at
