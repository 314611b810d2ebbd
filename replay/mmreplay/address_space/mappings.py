"""Known mappings of a trace (its vmas table) as the planner reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmreplay.jit import native

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
    if name.startswith(("/dev/zero", "/dev/shm/", "/memfd:", "/SYSV", "/run/shm/")):
        return HINT_SHMEM
    if name.startswith(("/dev/", "[vvar", "[vdso", "[uprobes", "anon_inode:")):
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


def read_mappings(trace: Any) -> Mappings:
    """The vmas table.

    Files are numbered by (device, inode), else by their name where it is a path.
    """
    table = trace.vmas.sort("ns", maintain_order=True).collect()
    names = table["name"].unique(maintain_order=True)
    known = pl.DataFrame(
        {
            "name": names,
            "code": np.arange(len(names), dtype=np.int64),
            "hint": np.array([name_hint(name) for name in names], np.uint8),
            "path": [name.startswith("/") and name != "//anon" for name in names],
        },
        schema_overrides={"path": pl.Boolean},
    )
    table = table.join(known, on="name", how="left", maintain_order="left")
    by_inode = (pl.col("inode") != 0) | (pl.col("device") != 0)
    keys = table.select(
        device=pl.when(by_inode).then("device").otherwise(0),
        inode=pl.when(by_inode).then("inode").otherwise(0),
        code=pl.when(by_inode).then(-1).otherwise("code"),
        named=by_inode | pl.col("path"),
    )
    files = keys.filter("named").unique(["device", "inode", "code"], maintain_order=True)
    number = keys.join(
        files.with_row_index("number"), on=["device", "inode", "code", "named"], how="left",
        maintain_order="left",
    )["number"]  # fmt: skip
    ns = table["ns"].to_numpy().astype(np.int64)
    hint = table["hint"].to_numpy().copy()
    hint[(table["source"] != "exec").to_numpy() & (ns <= 0)] |= HINT_OLD
    return Mappings(
        ns=ns,
        space=table["address_space"].to_numpy().astype(np.int32),
        start=table["start"].to_numpy().view(np.int64),
        length=table["length"].to_numpy().view(np.int64),
        prot=table["prot"].to_numpy(),
        flags=table["flags"].to_numpy().astype(np.int64),
        offset=table["file_offset"].to_numpy(),
        file=number.cast(pl.Int32).fill_null(-1).to_numpy(),
        hint=hint,
        anon=table["has_anon_vma"].cast(pl.Int8).fill_null(-1).to_numpy(),
        record=(table["source"] == "mmap2").to_numpy() & (ns > 0),
        used=np.zeros(len(ns), np.bool_),
        files=files.height,
    )


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
    found: I64,
) -> None:
    """For each call the first record of its time, ``begin..stop``, around ``low..high``."""
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
            if start[at] <= low[i] and high[i] <= end[at]:
                found[i] = row[at]
                break
            at += 1


class Records:
    """Finds the MMAP2 record that a call wrote.

    It is of the call's space, lies within its time, and tells the VMA that the call's range
    is in after a merge (perf_event_mmap in mm/vma.c:__mmap_region, do_brk_flags@6.18).
    """

    def __init__(self, mappings: Mappings) -> None:
        rows = np.flatnonzero(mappings.record & (mappings.start >= 0))
        space = mappings.space[rows]
        self._row = rows[np.argsort(space, kind="stable")]  # by (space, ns)
        self._ns = mappings.ns[self._row]
        self._start = mappings.start[self._row]
        self._end = self._start + mappings.length[self._row]
        spaces = int(space.max(initial=-1)) + 2
        self._first = np.searchsorted(mappings.space[self._row], np.arange(spaces + 1))

    def find(self, space: I32, start: I64, end: I64, begin_ns: I64, end_ns: I64) -> I64:
        """Row of the vmas table for each call, -1 where it wrote none."""
        found = np.empty(len(space), np.int64)
        _find(
            self._first, self._ns, self._start, self._end, self._row, space, start, end, begin_ns,
            end_ns, found,
        )  # fmt: skip
        return found
