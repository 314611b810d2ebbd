"""The records of ``perf record -z``: unpacked into whatever room there is."""

from __future__ import annotations

import io
import struct

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreplay.errors import UserError
from mmreplay.importers.perf.feeds import FileFeed, ZstdFeed

ROUND = struct.pack("<IHH", 68, 0, 8)


def record(size: int, fill: int) -> bytes:
    """A record of a type that nobody knows."""
    return struct.pack("<IHH", 61, 0, size) + bytes([fill]) * (size - 8)


class Packer:
    """What ``perf record -z`` writes, and what it stands for."""

    def __init__(self) -> None:
        self._new_frame()
        self.file = b""
        self.plain = b""
        self.cut = b""

    def _new_frame(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=1).compressobj()

    def pack(self, data: bytes, piece: int, *, ends: bool = False) -> None:
        how = zstandard.COMPRESSOBJ_FLUSH_FINISH if ends else zstandard.COMPRESSOBJ_FLUSH_BLOCK
        packed = self._zstd.compress(data) + self._zstd.flush(how)
        for first in range(0, len(packed), piece):
            part = packed[first : first + piece]
            self.file += struct.pack("<IHH", 81, 0, 8 + len(part)) + part
        if ends:
            self._new_frame()

    def records(self, sizes: list[int], piece: int, keep: int = 0, *, ends: bool = False) -> None:
        """Records; the last ``keep`` bytes of them are packed with those that follow."""
        data = b"".join(record(size, k) for k, size in enumerate(sizes))
        at = len(data) - keep
        self.pack(self.cut + data[:at], piece, ends=ends)
        self.plain += data
        self.cut = data[at:]

    def round(self) -> None:
        """A record that is not packed."""
        self.file += ROUND
        self.plain += ROUND

    def feed(self, *, salvage: bool = False) -> ZstdFeed:
        return ZstdFeed(FileFeed(io.BytesIO(self.file)), "x", big_endian=False, salvage=salvage)


def pulled(feed: ZstdFeed, rooms: list[int]) -> bytes:
    """All of it, in rooms of these sizes in turn."""
    out = b""
    turn = 0
    while True:
        room = bytearray(rooms[turn % len(rooms)])
        got = feed.pull(memoryview(room))
        if not got:
            return out
        out += room[:got]
        turn += 1


_ROOMS = st.lists(st.sampled_from([1000, 1 << 16, 500_000, 700_001, 1 << 22]), min_size=1)


@given(
    runs=st.lists(
        st.tuples(
            st.lists(st.sampled_from([8, 24, 1000, 65_528]), min_size=1, max_size=30),
            st.sampled_from([1, 3, 100, 65_000]),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    ),
    rooms=_ROOMS,
)
@settings(max_examples=60, deadline=None)
def test_the_same_records_in_any_room(
    runs: list[tuple[list[int], int, bool]], rooms: list[int]
) -> None:
    """A block of a few bytes may stand for 128 KiB, of which zstd keeps back what had no room."""
    packer = Packer()
    for sizes, piece, ends in runs:
        packer.records(sizes, piece, ends=ends)
        packer.round()
    assert pulled(packer.feed(), rooms) == packer.plain


@given(sizes=st.lists(st.integers(600_000, 1_400_000), min_size=2, max_size=4), rooms=_ROOMS)
@settings(max_examples=30, deadline=None)
def test_what_is_not_packed_comes_behind_all_before_it(sizes: list[int], rooms: list[int]) -> None:
    packer = Packer()
    for size in sizes:
        packer.records([size // 25] * 25, 65_000)
        packer.round()
    assert pulled(packer.feed(), rooms) == packer.plain


@pytest.mark.parametrize("rooms", [[1000], [500_000], [1 << 22]])
def test_a_record_that_is_cut_goes_on_behind_what_is_not_packed(rooms: list[int]) -> None:
    packer = Packer()
    packer.records([24, 400], 100, keep=300)
    first = len(packer.plain) - 400
    packer.round()
    packer.records([24], 100)
    whole = packer.plain.replace(ROUND, b"")
    assert pulled(packer.feed(), rooms) == whole[:first] + ROUND + whole[first:]


@pytest.mark.parametrize("rooms", [[1000], [1 << 16, 600_000], [1 << 22]])
def test_what_comes_before_garbage_is_salvaged(rooms: list[int]) -> None:
    """All that the pieces before hold, and as much of the piece with it in any room."""
    packer = Packer()
    packer.records([65_528] * 30, 65_000)
    packer.round()
    before = len(packer.plain)
    packer.records([65_528, 24] * 30, 65_000)
    packer.file = packer.file[:-30] + b"\xff" * 30
    got = pulled(packer.feed(salvage=True), rooms)
    assert got[:before] == packer.plain[:before]
    assert packer.plain.startswith(got)
    assert len(got) > before + 1_000_000
    assert got == pulled(packer.feed(salvage=True), [1 << 20])
    with pytest.raises(UserError, match="compressed data"):
        pulled(packer.feed(), rooms)
