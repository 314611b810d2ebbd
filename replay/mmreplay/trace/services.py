"""What an operation of each class usually takes: low quartiles from running counts.

Durations are counted by class and value, the value kept to :data:`BITS` binary digits:
exact up to 8.2 µs, above to one part in 4096.  Where that needs more than
:data:`MOST_ENTRIES` counts, one digit less is kept.  So memory is bounded, and the result
depends on the operations alone, not on how they are cut into batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.jit import borrowing_helper, native, prefetch
from mmreplay.schema import OpKind
from mmreplay.trace.memory import zeros
from mmreplay.trace.splitrules import number_classes

#: A class needs this many quiet operations before its low quartile is believed.
MIN_QUIET: Final = 8
#: What an operation is taken to cost where the trace shows too few of its class in quiet
#: spots, in ns.  Fault: 1.55 us, mmap+munmap: 3.78 us a pair, both by a microbenchmark
#: on a 2-vCPU EPYC guest with 6.18 (minimum of 12 and 7 runs); all others are assumed.
#: It is never taken above the low quartile of all operations of the class.
DEFAULT_SERVICE_NS: Final[dict[OpKind, int]] = {
    OpKind.FAULT_USER: 1_550,
    OpKind.FAULT_KERNEL: 1_550,
    OpKind.MMAP: 1_890,
    OpKind.MUNMAP: 1_890,
    OpKind.BRK: 1_000,
    OpKind.MREMAP: 3_000,
    OpKind.CLONE: 15_000,
    OpKind.VFORK: 50_000,
    OpKind.FORK: 100_000,
    OpKind.EXEC: 300_000,
}
#: The same for every other kind; assumed.
OTHER_SERVICE_NS: Final = 1_500

BITS: Final = 13
_LEAST_BITS: Final = 3
_FIRST_ENTRIES: Final = 1 << 16
MOST_ENTRIES: Final = 1 << 20
_ENTRY: Final = 4  # words of an entry
#: Entries are asked for so many rows before they are counted in: the table is larger than caches.
_AHEAD_ROWS: Final = 12
_CLASS_SHIFT: Final = 22  # of a key: class, exponent (6 bits), digits (16 bits)


@borrowing_helper
def _key(number: Any, room_ns: Any, bits: Any) -> Any:
    """The key of one row: class, exponent, digits, plus one."""
    digits = room_ns
    exponent = 0
    while digits >> bits:
        digits >>= 1
        exponent += 1
    return (np.int64(number) << _CLASS_SHIFT | exponent << 16 | digits) + 1


@borrowing_helper
def _slot(key: Any, mask: Any) -> Any:
    """Where in a table the search for a key begins."""
    return ((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & mask


@native
def tally(
    number: NDArray[np.int32],
    room_ns: NDArray[np.int64],
    wanted: NDArray[np.uint8],
    quiet: NDArray[np.uint8],
    first: int,
    bits: int,
    table: NDArray[np.int64],
    used: int,
) -> Any:
    """Count the wanted rows from ``first`` on by class number and ``room_ns`` (>= 0).

    ``table`` (S, 4), S a power of two, has in each entry a key (0: free), how many rows, and
    how many of them quiet.  Returns how many entries are in use and the first row that was
    not counted: less than N where the table is half full.
    """
    mask = np.uint64(len(table) - 1)
    for row in range(first, len(number)):
        ahead = row + _AHEAD_ROWS
        if ahead < len(number):
            at = _slot(_key(number[ahead], room_ns[ahead], bits), mask)
            prefetch(table, np.int64(at) * _ENTRY)
        if not wanted[row]:
            continue
        key = _key(number[row], room_ns[row], bits)
        at = _slot(key, mask)
        while table[at, 0] != 0 and table[at, 0] != key:
            at = (at + np.uint64(1)) & mask
        if table[at, 0] == 0:
            if 2 * used >= len(table):
                return used, row
            table[at, 0] = key
            used += 1
        table[at, 1] += 1
        table[at, 2] += quiet[row]
    return used, len(number)


@native
def _move(old: NDArray[np.int64], bits: int, table: NDArray[np.int64]) -> int:
    """Move all entries to an empty table, kept to ``bits`` digits; entries then in use."""
    mask = np.uint64(len(table) - 1)
    used = 0
    for entry in range(len(old)):
        if old[entry, 0] == 0:
            continue
        key = old[entry, 0] - 1
        digits = key & 0xFFFF
        if digits >> bits:
            key = (key - digits) + (1 << 16) | digits >> 1
        key += 1
        at = _slot(key, mask)
        while table[at, 0] != 0 and table[at, 0] != key:
            at = (at + np.uint64(1)) & mask
        used += table[at, 0] == 0
        table[at, 0] = key
        table[at, 1] += old[entry, 1]
        table[at, 2] += old[entry, 2]
    return used


def _new_table(entries: int) -> NDArray[np.int64]:
    return zeros(8 * _ENTRY * entries).view(np.int64).reshape(entries, _ENTRY)


class Tally:
    """Counts of durations by class; see the module."""

    def __init__(self) -> None:
        self.bits = BITS
        self._used = 0
        self._table = _new_table(_FIRST_ENTRIES)

    def add(
        self,
        number: NDArray[np.int32],
        room_ns: NDArray[np.int64],
        wanted: NDArray[np.uint8],
        quiet: NDArray[np.uint8],
    ) -> None:
        """Count the wanted rows, and of them the quiet ones; the arrays are (N,)."""
        row = 0
        while row < len(number):
            self._used, row = tally(
                number, room_ns, wanted, quiet, row, self.bits, self._table, self._used
            )
            if row < len(number):
                self._make_room()

    def _make_room(self) -> None:
        old = self._table
        size = 2 * len(old)
        if self._used >= MOST_ENTRIES and self.bits > _LEAST_BITS:
            self.bits -= 1
            size = len(old)
        self._table = _new_table(size)
        self._used = _move(old, self.bits, self._table)

    def low_quartiles(
        self, classes: int, least_quiet: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(classes,) low quartile of the quiet rows of each class, and of all its rows.

        -1 where there are fewer than ``least_quiet`` quiet rows, or no rows at all.
        """
        entries = self._table[self._table[:, 0] != 0]
        key = entries[:, 0] - 1
        number, value = key >> _CLASS_SHIFT, (key & 0xFFFF) << (key >> 16 & 63)
        order = np.argsort(key)  # as by class and value: an exponent is as small as can be
        number, value, entries = number[order], value[order], entries[order]
        return (
            _quartile(number, value, entries[:, 2], classes, least_quiet),
            _quartile(number, value, entries[:, 1], classes, 1),
        )


def _quartile(
    number: NDArray[np.int64],
    value: NDArray[np.int64],
    count: NDArray[np.int64],
    classes: int,
    least: int,
) -> NDArray[np.int64]:
    """The value at rank floor((n - 1) / 4) of each class; entries ascend by class and value."""
    low = np.full(classes, -1, np.int64)
    upto = np.cumsum(count)
    total = np.bincount(number, count, classes).astype(np.int64)
    before = np.concatenate([[0], np.cumsum(total)])[:-1]
    enough = np.flatnonzero(total >= least)
    rank = before[enough] + (total[enough] - 1) // 4
    low[enough] = value[np.searchsorted(upto, rank, side="right")]
    return low


class Classes:
    """Dense numbers for class keys, in the order they are met."""

    def __init__(self) -> None:
        self._table = np.zeros(1 << 12, dtype=np.uint64)
        self._numbers = np.zeros(1 << 12, dtype=np.int32)
        self.count = 0

    def numbers(self, key: NDArray[np.uint64]) -> NDArray[np.int32]:
        number = np.empty(len(key), dtype=np.int32)
        while True:
            self.count, done = number_classes(key, self._table, self._numbers, self.count, number)
            if done == len(key):
                return number
            self._grow()

    def keys(self) -> NDArray[np.uint64]:
        """(count,) the key of each class."""
        used = self._table != 0
        keys = np.zeros(self.count, dtype=np.uint64)
        keys[self._numbers[used]] = self._table[used] - np.uint64(1)
        return keys

    def _grow(self) -> None:
        keys = self.keys()
        size = 4 * len(self._table)
        self._table = np.zeros(size, dtype=np.uint64)
        self._numbers = np.zeros(size, dtype=np.int32)
        number = np.empty(len(keys), dtype=np.int32)
        self.count, _ = number_classes(keys, self._table, self._numbers, 0, number)


def usual_services(
    counts: Tally, keys: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Per class: the low quartile of its quiet operations (-1: too few), and the default."""
    default = _default_services(keys)
    quiet_low, low = counts.low_quartiles(len(keys), MIN_QUIET)
    return quiet_low, np.where(low >= 0, np.minimum(default, low), default)


def _default_services(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    by_kind = np.full(256, OTHER_SERVICE_NS, dtype=np.int64)
    for kind, cost in DEFAULT_SERVICE_NS.items():
        by_kind[kind] = cost
    chosen: NDArray[np.int64] = by_kind[(keys >> np.uint64(40)).astype(np.int64)]
    return chosen


@dataclass
class SplitReport:
    """What the split did; :meth:`counters` go into the header."""

    operations: int = 0
    without_duration: int = 0
    exposed: int = 0
    classes: int = 0
    default_service: int = 0

    def counters(self) -> dict[str, int]:
        """The figures by the names they have among the header's counters."""
        return {
            "timesplit_operations": self.operations,
            "timesplit_without_duration": self.without_duration,
            "timesplit_exposed": self.exposed,
            "timesplit_classes": self.classes,
            "timesplit_default_service": self.default_service,
        }
