"""Where the bytes of a record stream come from where no mapped file holds them as they are."""

from __future__ import annotations

import contextlib
import mmap
from typing import Any, Final, Protocol

import numpy as np

from mmreplay.importers import perf_header as ph
from mmreplay.importers.perf_swap import whole_records
from mmreplay.importers.perf_walk import (
    R_AUXTRACE,
    R_COMPRESSED,
    R_COMPRESSED2,
    R_TRACING_DATA,
)

#: Bytes read from a file at a time.
_PIECE: Final = 1 << 20
#: A COMPRESSED2 record whose data is longer is several in one: perf gives each so much of
#: it (zstd_compress_stream_to_records in tools/perf/util/zstd.c@6.16).
_LONGEST2: Final = 65_519
_MOST2: Final = 1 << 30
#: Packed bytes that are unpacked at a time: at most 32 MiB, since a zstd block of 4 bytes
#: may stand for 128 KiB.
_SLICE: Final = 1 << 10
#: So many times as much, as long as what was unpacked last was not this many times longer
#: than packed.
_MORE: Final = 4
_DENSE: Final = 64


class Feed(Protocol):
    """Bytes in order."""

    @property
    def total_bytes(self) -> int:
        """How many bytes of the file there are to be read; 0 unknown."""

    @property
    def done_bytes(self) -> int:
        """How many of them have been read."""

    def pull(self, room: memoryview) -> int:
        """Put the next bytes into ``room``; how many, 0 at the end."""

    def close(self) -> None:
        """Give the file back."""


class FileFeed:
    """The rest of a file that can only be read in order, behind what was read of it already."""

    total_bytes = 0

    def __init__(self, file: Any, first: bytes = b"") -> None:
        self._file = file
        self._first = memoryview(first)
        self.done_bytes = 0

    def pull(self, room: memoryview) -> int:
        if self._first:
            got = min(len(self._first), len(room))
            room[:got] = self._first[:got]
            self._first = self._first[got:]
        else:
            got = self._file.readinto(room) or 0
        self.done_bytes += got
        return got

    def close(self) -> None:
        self._file.close()


class MappedFeed:
    """A part of a mapped file."""

    def __init__(self, mapped: mmap.mmap, start: int, end: int) -> None:
        self._mapped = mapped
        self._start, self._at, self._end = start, start, end
        self._released = 0

    @property
    def total_bytes(self) -> int:
        return self._end - self._start

    @property
    def done_bytes(self) -> int:
        return self._at - self._start

    def pull(self, room: memoryview) -> int:
        got = min(len(room), self._end - self._at)
        with memoryview(self._mapped) as whole:
            room[:got] = whole[self._at : self._at + got]
        self._at += got
        done = self._at - self._at % mmap.PAGESIZE
        if done - self._released >= 1 << 24:
            self._mapped.madvise(mmap.MADV_DONTNEED, self._released, done - self._released)
            self._released = done
        return got

    def close(self) -> None:
        with contextlib.suppress(BufferError):
            self._mapped.close()


class Window:
    """The bytes of a feed as a buffer to look into: what was looked at is let go."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._buffer = bytearray()
        self._at = 0

    def need(self, count: int) -> bool:
        """Have ``count`` bytes at hand; False where the feed ends before."""
        while len(self._buffer) - self._at < count:
            if self._at > _PIECE:
                del self._buffer[: self._at]
                self._at = 0
            piece = bytearray(_PIECE)
            got = self._feed.pull(memoryview(piece))
            if not got:
                return False
            self._buffer += memoryview(piece)[:got]
        return True

    def peek(self, count: int) -> bytes:
        """The next bytes, as far as they are at hand."""
        return bytes(self._buffer[self._at : self._at + count])

    def take(self, count: int) -> bytes:
        """The same, and go on behind them."""
        part = self.peek(count)
        self._at += len(part)
        return part

    def rest(self) -> bytes:
        """All that is at hand."""
        return self.take(len(self._buffer) - self._at)


class ZstdFeed:
    """The records of a stream that ``perf record -z`` wrote.

    Its COMPRESSED records hold pieces of one zstd stream, whose content is records again;
    those cut by the end of a piece go on in the next.  All other records stay what they are.
    """

    def __init__(self, feed: Feed, where: str, *, big_endian: bool, salvage: bool) -> None:
        import zstandard

        self._feed = feed
        self._window = Window(feed)
        self._where = where
        self._salvage = salvage
        self._big = big_endian
        self._error: Any = zstandard.ZstdError
        self._zstd = zstandard.ZstdDecompressor().decompressobj()
        self._packed: list[memoryview] = []
        self._slice = _SLICE
        self._ready: list[memoryview] = []
        self._partial = b""  # of a record that a later piece will end
        self._plain_left = 0  # bytes of a payload that is no record
        self._ended = False

    @property
    def total_bytes(self) -> int:
        return self._feed.total_bytes

    @property
    def done_bytes(self) -> int:
        return self._feed.done_bytes

    def close(self) -> None:
        self._feed.close()

    def pull(self, room: memoryview) -> int:
        filled = 0
        while filled < len(room):
            if self._ready:
                part = self._ready[0][: len(room) - filled]
                room[filled : filled + len(part)] = part
                filled += len(part)
                self._ready[0] = self._ready[0][len(part) :]
                if not self._ready[0]:
                    self._ready.pop(0)
            elif self._packed:
                self._unpack()
            elif self._ended or not self._next():
                break
        return filled

    def _number(self, part: bytes) -> int:
        return int.from_bytes(part, "big" if self._big else "little")

    def _next(self) -> bool:
        """Take the next record; False at the end."""
        window = self._window
        if self._plain_left:
            part = window.take(min(self._plain_left, _PIECE)) if window.need(1) else b""
            self._plain_left -= len(part)
            self._ready += [memoryview(part)] if part else []
            return bool(part) or self._end()
        if not window.need(8):
            return self._end()
        head = window.peek(8)
        kind, size = self._number(head[:4]), self._number(head[6:])
        if kind == R_COMPRESSED2:
            return self._compressed2(size)
        if size < 8:
            raise ph.damaged("a record shorter than its head", self._where)
        if not window.need(size):
            return self._end()
        record = window.take(size)
        if kind == R_COMPRESSED:
            self._packed += [memoryview(record)[8:]] if size > 8 else []
            return True
        self._ready.append(memoryview(record))
        if kind == R_AUXTRACE and size >= 16:
            self._plain_left = self._number(record[8:16])
        elif kind == R_TRACING_DATA and size >= 12:
            self._plain_left = self._number(record[8:12]) + 7 & ~7
        return True

    def _compressed2(self, size: int) -> bool:
        """A COMPRESSED2 record; False where the stream ends inside.

        Up to perf 6.17 its size, 16 bits wide, overflows where the data is longer, and no
        padding follows then; several records lie in such data.
        """
        window = self._window
        if not window.need(16):
            return self._end()
        length = self._number(window.peek(16)[8:])
        padded = 16 + length + -length % 8
        if padded < size or length > _MOST2:
            raise ph.damaged(f"a compressed record of {length} bytes in {size}", self._where)
        total = padded if padded == size else 16 + length
        if not window.need(total):
            return self._end()
        body = memoryview(window.take(total))[16 : 16 + length]
        piece = min(len(body), _LONGEST2)
        while body:
            self._packed += [body[:piece]] if piece else []
            body = body[piece:]
            if not body:
                break
            piece = self._number(bytes(body[6:8])) - 16
            body = body[16:]
            if not 0 <= piece <= len(body):
                raise ph.damaged("a compressed record that does not hold together", self._where)
        return True

    def _unpack(self) -> None:
        """Unpack a little: the more it holds, the less of it lies in memory."""
        data = self._packed[0][: self._slice]
        self._packed[0] = self._packed[0][self._slice :]
        if not self._packed[0]:
            self._packed.pop(0)
        try:
            plain = self._zstd.decompress(data)
        except self._error as error:
            if not self._salvage:
                raise ph.damaged(f"compressed data ({error})", self._where) from None
            self._packed.clear()
            self._ended = True
            return
        self._slice = _SLICE * (_MORE if len(plain) < _DENSE * len(data) else 1)
        if self._partial:
            plain = self._partial + plain
        end = int(whole_records(np.frombuffer(plain, np.uint8), self._big))
        if end < 0:
            raise ph.damaged("a compressed record shorter than its head", self._where)
        self._partial = plain[end:]
        if end:
            self._ready.append(memoryview(plain)[:end])

    def _end(self) -> bool:
        self._ended = True
        left = self._window.rest()
        if (left or self._plain_left) and not self._salvage:
            raise ph.truncated("the compressed records end inside a record", self._where)
        # The walk sees that it is no whole record, and counts it.
        self._ready += [memoryview(self._partial)] if self._partial else []
        self._partial = b""
        return bool(self._ready)
