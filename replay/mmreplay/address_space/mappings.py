"""Known mappings of a trace (its vmas table) as the planner reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.jit import native
from mmreplay.trace.arrays import whole_columns

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

#: ``hint`` of a row: what the name of a mapping says.
HINT_SHMEM: Final = 1
HINT_SPECIAL: Final = 2  # vdso, devices: no vm_ops->map_pages
HINT_STACK: Final = 4
HINT_HEAP: Final = 8
HINT_HUGETLB: Final = 16
HINT_OLD: Final = 32  # was there before the recording: its pages may be mapped
HINT_GATE: Final = 64  # [vsyscall]: a fixed page of the kernel, no VMA of the address space


def name_hint(name: str) -> int:
    """What the name of a mapping says about the faults in it."""
    if name == "[heap]":
        return HINT_HEAP
    if name == "[vsyscall]":
        return HINT_GATE
    if name.startswith("[stack"):
        return HINT_STACK
    if name.startswith(("/anon_hugepage", "/dev/hugepages", "/hugetlb")):
        return HINT_HUGETLB
    if name.startswith(("/dev/zero", "/dev/shm", "/memfd", "/SYSV", "/run/shm/", "[anon_shmem:")):
        return HINT_SHMEM
    if name == "/dev" or name.startswith(("/dev/", "[vvar", "[vdso", "[uprobes", "anon_inode:")):
        return HINT_SPECIAL
    return 0


@dataclass
class Mappings:
    """Rows of the vmas table by time (stable), and the files that they name."""

    ns: I64
    space: I32
    start: I64
    length: I64
    prot: NDArray[np.uint8]
    flags: I64
    offset: I64
    file: I32  # file number, -1 none
    hint: NDArray[np.uint8]
    anon: NDArray[np.int8]  # has an anon_vma 1, 0, unknown -1
    record: NDArray[np.bool_]  # an MMAP2 record of a call, not the state at the start
    used: NDArray[np.bool_]  # a call of the trace made it: nothing to learn
    files: int  # numbers given out so far

    def __len__(self) -> int:
        return len(self.ns)

    def file_hints(self) -> NDArray[np.uint8]:
        """(files,) the hints of the names of each file."""
        hints = np.zeros(max(self.files, 1), np.uint8)
        known = self.file >= 0
        np.bitwise_or.at(hints, self.file[known], self.hint[known])
        return hints


_TABLE: Final = (
    "ns", "address_space", "start", "length", "prot", "flags", "file_offset", "device", "inode",
    "name", "source", "has_anon_vma",
)  # fmt: skip


def read_mappings(trace: Any) -> Mappings:
    """The vmas table.

    Files are numbered by (device, inode), else by their name where it is a path.
    """
    table = whole_columns(trace, "vmas", _TABLE)
    order = np.argsort(table["ns"].values, kind="stable")

    def column(name: str) -> NDArray[Any]:
        return table[name].values[order]

    names, sources = table["name"].words, table["source"].words
    hints = np.array([name_hint(name) for name in names], np.uint8)
    path = np.array([name.startswith("/") and name != "//anon" for name in names], np.bool_)
    ns, code, source = column("ns"), column("name").astype(np.int64), column("source")
    hint = hints[code]
    of_exec, of_record = (
        source == (sources.index(word) if word in sources else -1) for word in ("exec", "mmap2")
    )
    hint[~of_exec & (ns <= 0)] |= HINT_OLD
    file, files = _files(column("device").astype(np.int64), column("inode"), code, path[code])
    return Mappings(
        ns=ns,
        space=column("address_space").astype(np.int32),
        start=column("start"),
        length=column("length"),
        prot=column("prot"),
        flags=column("flags").astype(np.int64),
        offset=column("file_offset"),
        file=file,
        hint=hint,
        anon=table["has_anon_vma"].filled(0).astype(np.int8)[order]
        - table["has_anon_vma"].missing()[order],
        record=of_record & (ns > 0),
        used=np.zeros(len(ns), np.bool_),
        files=files,
    )


def _files(device: I64, inode: I64, code: I64, path: NDArray[np.bool_]) -> tuple[I32, int]:
    """The file of each row, numbered as they come, -1 none; and how many there are."""
    by_inode = (inode != 0) | (device != 0)
    named = np.flatnonzero(by_inode | path)
    keys = (
        np.where(by_inode, device, 0)[named],
        np.where(by_inode, inode, 0)[named],
        np.where(by_inode, -1, code)[named],
    )
    by_key = np.lexsort(keys)  # equal keys in their order
    fresh = np.ones(len(named), np.bool_)
    for key in keys:
        fresh[1:] &= key[by_key[1:]] == key[by_key[:-1]]
    fresh[1:] = ~fresh[1:]
    first = by_key[fresh]  # the first row of each file
    number = np.empty(len(first), np.int32)
    number[np.argsort(first)] = np.arange(len(first))
    file = np.full(len(device), -1, np.int32)
    file[named[by_key]] = number[np.cumsum(fresh) - 1]
    return file, len(first)


#: Records of the space within the call's time that are looked at: other threads map too.
_TRIED: Final = 4096


@native
def _find(
    first: I64,
    ns: I64,
    start: I64,
    end: I64,
    row: I64,
    space: I32,
    low: I64,
    high: I64,
    begin: I64,
    stop: I64,
    whole: NDArray[np.bool_],
    file: NDArray[np.int8],
    of_file: NDArray[np.bool_],
    used: NDArray[np.bool_],
    found: I64,
) -> None:
    """Mark ``used`` the records of each call's time that it may have written; find the last one.

    By call: ``low..high`` its range, ``begin..stop`` its time, ``whole``: its record holds
    the range (else: meets it), ``file``: what is found has one 1, has none 0, either -1.
    ``of_file``: by record, as ``row``.
    """
    for i in range(len(space)):
        found[i] = -1
        if space[i] >= len(first) - 1:
            continue
        at = first[space[i]]
        last = first[space[i] + 1]
        top = last
        while at < top:
            middle = (at + top) >> 1
            if ns[middle] < begin[i]:
                at = middle + 1
            else:
                top = middle
        last = min(last, at + _TRIED)
        while at < last and ns[at] <= stop[i]:
            holds = start[at] <= low[i] and high[i] <= end[at]
            meets = start[at] < high[i] and low[i] < end[at]
            if holds or (meets and not whole[i]):
                used[row[at]] = True
                if file[i] < 0 or (file[i] > 0) == of_file[at]:
                    found[i] = row[at]
            at += 1


class Records:
    """Finds the MMAP2 records that calls wrote.

    They are of the call's space and lie within its time.  One of a call that maps tells the VMA
    that the call's range is in after a merge (perf_event_mmap in mm/vma.c:__mmap_region,
    do_brk_flags@6.18); those of a call that protects tell each VMA of its range
    (mm/mprotect.c:mprotect_fixup@6.18).  While a call waits, its range may be mapped and unmapped
    by others: their records fit as well, and its own is the last but for merges with it.
    """

    def __init__(self, mappings: Mappings) -> None:
        self._used = mappings.used
        rows = np.flatnonzero(mappings.record & (mappings.start >= 0))
        space = mappings.space[rows]
        self._row = rows[np.argsort(space, kind="stable")]  # by (space, ns)
        self._ns = mappings.ns[self._row]
        self._start = mappings.start[self._row]
        self._end = self._start + mappings.length[self._row]
        self._of_file = mappings.file[self._row] >= 0
        spaces = int(space.max(initial=-1)) + 2
        self._first = np.searchsorted(mappings.space[self._row], np.arange(spaces + 1))

    def find(
        self,
        space: I32,
        start: I64,
        end: I64,
        begin_ns: I64,
        end_ns: I64,
        whole: NDArray[np.bool_],
        file: NDArray[np.int8],
    ) -> I64:
        """Row of the vmas table for each call, -1 where it wrote none; these are used then.

        ``whole``: the record holds all of the call's range (else: some); ``file``: it has
        one 1, has none 0, either -1.
        """
        found = np.empty(len(space), np.int64)
        _find(
            self._first, self._ns, self._start, self._end, self._row, space, start, end, begin_ns,
            end_ns, whole, file, self._of_file, self._used, found,
        )  # fmt: skip
        return found
