"""Where the bytes of a record stream come from where no mapped file holds them as they are."""

from __future__ import annotations

import contextlib
import mmap
from collections import deque
from typing import Any, Final, Protocol

import numpy as np

from mmreplay.importers.perf import header as ph
from mmreplay.importers.perf.swap import whole_records
from mmreplay.importers.perf.walk import (
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
#: The longest record.
_LONGEST: Final = 1 << 16
#: Room of a call of zstd: for what it may have kept back, and for what the last byte of a
#: piece ends, a block each (128 KiB at most); it is never filled by those.
_STEP: Final = 3 << 17
#: With what a pull begins, a record that is not whole.
_LEAST: Final = _STEP + _LONGEST


class Feed(Protocol):
    """Bytes in order."""

    @property
    def total_bytes(self) -> int:
        """How many bytes of the file there are to be read; 0 unknown."""

    @property
    def done_bytes(self) -> int:
        """How many of them have been read."""

    @property
    def cut_bytes(self) -> int:
        """How many at the end could not be unpacked, because they are cut."""

    def pull(self, room: memoryview) -> int:
        """Put the next bytes into ``room``; how many, 0 at the end."""

    def close(self) -> None:
        """Give the file back."""


class FileFeed:
    """The rest of a file that can only be read in order, behind what was read of it already."""

    total_bytes = 0
    cut_bytes = 0

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

    cut_bytes = 0

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
        self._buffer = memoryview(bytearray(_PIECE))
        self._at = self._end = 0

    def need(self, count: int) -> bool:
        """Have ``count`` bytes at hand; False where the feed ends before."""
        while self._end - self._at < count:
            if self._end == len(self._buffer) or self._at + count > len(self._buffer):
                self._make_room()
            got = self._feed.pull(self._buffer[self._end :])
            if not got:
                return False
            self._end += got
        return True

    def _make_room(self) -> None:
        """Let go what was looked at; where that is little, have twice the room."""
        left, buffer = self._buffer[self._at : self._end], self._buffer
        if 2 * len(left) > len(buffer):
            buffer = memoryview(bytearray(2 * len(buffer)))
        buffer[: len(left)] = left
        self._buffer, self._at, self._end = buffer, 0, len(left)

    def peek(self, count: int) -> memoryview:
        """The next bytes, as far as they are at hand; they hold until more are needed."""
        return self._buffer[self._at : min(self._at + count, self._end)]

    def take_view(self, count: int) -> memoryview:
        """The same, and go on behind them."""
        part = self.peek(count)
        self._at += len(part)
        return part

    def take(self, count: int) -> bytes:
        """The same, to keep."""
        return bytes(self.take_view(count))

    def rest(self) -> bytes:
        """All that is at hand."""
        return self.take(self._end - self._at)


class _Dry(Exception):
    """Nothing is left to be unpacked."""


class _Packed:
    """What zstd reads: pieces of the stream, as they come."""

    def __init__(self) -> None:
        self.pieces: deque[memoryview] = deque()

    def put(self, piece: memoryview) -> None:
        """One more; its last byte apart.

        So zstd is asked once more where a piece filled the room: it may keep back a part
        of what it unpacked, and gives that only when it reads.
        """
        self.pieces += [part for part in (piece[:-1], piece[-1:]) if part]

    def read(self, _: int) -> memoryview:
        """The next piece (an empty one would be the end of all)."""
        if not self.pieces:
            raise _Dry
        return self.pieces.popleft()


class ZstdFeed:
    """The records of a stream that ``perf record -z`` wrote.

    Its COMPRESSED records hold pieces of one zstd stream, whose content is records again;
    those cut by the end of a piece go on in the next.  All other records stay what they are.

    It is unpacked into the room given to :meth:`pull`, which gets whole records only: what
    follows a piece may be a record that is not packed.  Each call of zstd has the same room,
    so that what it loses in one that fails does not depend on how the feed is pulled.
    """

    def __init__(self, feed: Feed, where: str, *, big_endian: bool, salvage: bool) -> None:
        import zstandard

        self._feed = feed
        self._window = Window(feed)
        self._where = where
        self._salvage = salvage
        self._big = big_endian
        self._error: Any = zstandard.ZstdError
        self._packed = _Packed()
        source: Any = self._packed
        self._zstd = zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
        self._room = memoryview(b"")  # of the pull that goes on
        self._whole = 0  # bytes of it that are whole records
        self._filled = 0
        self._partial = b""  # of a record that a later piece will end
        self._spare = memoryview(b"")  # for a pull with less room than is needed
        self._left = memoryview(b"")  # of that
        self._plain_left = 0  # bytes of a payload that is no record
        self._ended = False
        self.cut_bytes = 0

    @property
    def total_bytes(self) -> int:
        return self._feed.total_bytes

    @property
    def done_bytes(self) -> int:
        return self._feed.done_bytes

    def close(self) -> None:
        self._feed.close()

    def pull(self, room: memoryview) -> int:
        if not self._left and len(room) >= _LEAST:
            return self._fill(room)
        if not self._left:
            self._spare = self._spare or memoryview(bytearray(_LEAST))
            self._left = self._spare[: self._fill(self._spare)]
        got = min(len(room), len(self._left))
        room[:got] = self._left[:got]
        self._left = self._left[got:]
        return got

    def _fill(self, room: memoryview) -> int:
        """Put whole records into ``room``; what the stream ends with may be none."""
        self._room, self._whole, self._filled = room, 0, 0
        self._put(self._partial)
        self._partial = b""
        while len(room) - self._filled >= _STEP and not self._ended:
            if self._packed.pieces:
                self._unpack()
            else:
                self._ended = not self._next()
        filled = self._filled
        if not self._ended:
            self._count_whole()
            self._partial = bytes(room[self._whole : filled])
            filled = self._whole
        self._room = memoryview(b"")
        return filled

    def _put(self, part: bytes | memoryview) -> None:
        self._room[self._filled : self._filled + len(part)] = part
        self._filled += len(part)

    def _put_plain(self, part: memoryview) -> None:
        """Put what was not packed before the record that is not whole yet."""
        self._count_whole()
        partial = bytes(self._room[self._whole : self._filled])
        self._filled = self._whole
        self._put(part)
        self._whole = self._filled
        self._put(partial)

    def _count_whole(self) -> None:
        found = np.frombuffer(self._room[self._whole : self._filled], np.uint8)
        length = int(whole_records(found, self._big))
        if length < 0:
            raise ph.damaged("a compressed record shorter than its head", self._where)
        self._whole += length

    def _unpack(self) -> None:
        try:
            self._filled += self._zstd.readinto1(self._room[self._filled : self._filled + _STEP])
        except _Dry:  # it holds the begin of something
            pass
        except self._error as error:
            if not self._salvage:
                raise ph.damaged(f"compressed data ({error})", self._where) from None
            self._ended = True

    def _number(self, part: memoryview) -> int:
        return int.from_bytes(part, "big" if self._big else "little")

    def _next(self) -> bool:
        """Take the next record; False at the end."""
        window = self._window
        if self._plain_left:
            part = window.take_view(min(self._plain_left, _LONGEST)) if window.need(1) else b""
            self._plain_left -= len(part)
            self._put_plain(memoryview(part))
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
        record = window.take_view(size)
        if kind == R_COMPRESSED:
            self._packed.put(record[8:])
            return True
        self._put_plain(record)
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
        body = window.take_view(total)[16 : 16 + length]
        piece = min(len(body), _LONGEST2)
        while body:
            self._packed.put(body[:piece])
            body = body[piece:]
            if not body:
                break
            piece = self._number(body[6:8]) - 16
            body = body[16:]
            if not 0 <= piece <= len(body):
                raise ph.damaged("a compressed record that does not hold together", self._where)
        return True

    def _end(self) -> bool:
        """Nothing follows; False."""
        self.cut_bytes = len(self._window.rest())
        if (self.cut_bytes or self._plain_left) and not self._salvage:
            raise ph.cut_short("its compressed records end inside a record", self._where)
        return False
