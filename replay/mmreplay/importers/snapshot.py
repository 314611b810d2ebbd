"""A copy of /proc/PID/maps or smaps: the address space before the recording.

Format: fs/proc/task_mmu.c@6.18 (show_map_vma, show_smap); of smaps only ``Anonymous`` is
read, which says whether a mapping has pages of its own, and so an anon_vma.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from mmreplay.errors import UserError
from mmreplay.importers.names import plain_name
from mmreplay.importers.output.tables import table_of, words_of
from mmreplay.importers.pairing import state as ps
from mmreplay.trace.chunks import Column
from mmreplay.trace.writer import TraceWriter

_LINE: Final = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-])([w-])([x-])([ps]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)"
    r"(?: +(.*))?"
)
_ANONYMOUS: Final = re.compile(r"Anonymous: +(\d+) kB")
_DETAIL: Final = re.compile(r"[A-Za-z_]+: ")
_NAME: Final = re.compile(r"(\d+)\.s?maps")
_KERNEL_HALF: Final = 1 << 63
_SHARED, _PRIVATE = 1, 2  # MAP_*
#: Where more mappings than this share begin before the end of the one before, it is no copy.
_MOST_MOVED: Final = 1 / 4
_FIX: Final = "give a copy of /proc/PID/maps or /proc/PID/smaps"


@dataclass(slots=True)
class Mapping:
    """One mapping."""

    start: int
    end: int
    prot: int
    flags: int
    offset: int
    device: int
    inode: int
    name: str
    has_anon_vma: bool | None = None

    def cut(self, start: int) -> None:
        """Leave out what lies before ``start``; nothing may remain."""
        if start > self.start:
            if self.inode:
                self.offset = (self.offset + start - self.start) % (1 << 63)
            self.start = start


class Snapshot(NamedTuple):
    """One process's mappings, and how many of them changed while they were read."""

    pid: int | None
    mappings: list[Mapping]
    moved: int


def read_snapshots(path: Path) -> list[Snapshot]:
    """The snapshot of each file: one, or those that ``mmreplay record`` left.

    The process is that of the file's name (``PID.maps``, ``PID.smaps``), else None.

    Raises
    ------
    UserError
        A file cannot be read, or is something else.
    """
    if path.is_dir():
        files = {file.stem: file for file in sorted(path.glob("*.maps"))}
        files |= {file.stem: file for file in sorted(path.glob("*.smaps"))}
        chosen = [file for stem, file in sorted(files.items()) if stem.isdecimal()]
        if not chosen:
            raise UserError("holds no PID.maps or PID.smaps", where=str(path), fix=_FIX)
    else:
        chosen = [path]
    found = []
    for file in chosen:
        name = _NAME.fullmatch(file.name)
        found.append(Snapshot(int(name[1]) if name else None, *_read(file)))
    return found


def _read(file: Path) -> tuple[list[Mapping], int]:
    """The mappings, and how many changed meanwhile.

    The kernel holds the map still for a page of text only: a mapping may come twice, or have
    grown to where the one before lay.  Of such a one counts what lies behind that.
    """
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(file), fix=_FIX) from None
    found: list[Mapping] = []
    last = moved = 0
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is not None:
            mapping = _mapping(match)
            if not mapping.start < mapping.end < 1 << 64:
                raise UserError(f"line {number} is no mapping", where=str(file), fix=_FIX)
            moved += mapping.start < last
            mapping.cut(last)
            last = max(last, mapping.end)
            found.append(mapping)
            continue
        anonymous = _ANONYMOUS.match(line)
        if anonymous and found:
            found[-1].has_anon_vma = int(anonymous[1]) > 0
        elif line and not (found and _DETAIL.match(line)):
            raise UserError(f"line {number} is no mapping", where=str(file), fix=_FIX)
    if moved > _MOST_MOVED * len(found):
        raise UserError("its mappings are out of order", where=str(file), fix=_FIX)
    found = [mapping for mapping in found if mapping.start < min(mapping.end, _KERNEL_HALF)]
    if not found:
        raise UserError("holds no mapping", where=str(file), fix=_FIX)
    return found, moved


def _mapping(match: re.Match[str]) -> Mapping:
    prot = sum(bit for bit, word in ((1, match[3]), (2, match[4]), (4, match[5])) if word != "-")
    name = (match[11] or "").strip()
    return Mapping(
        start=int(match[1], 16),
        end=int(match[2], 16),
        prot=prot,
        flags=_SHARED if match[6] == "s" else _PRIVATE,
        offset=int(match[7], 16) % (1 << 63),
        device=(int(match[8], 16) & 0xFFF) << 20 | int(match[9], 16) & 0xFFFFF,
        inode=int(match[10]) % (1 << 64),
        name=plain_name(name, bool(prot & 4)) if name else "//anon",
    )


def place(
    found: list[Snapshot], state: ps.State, process: str | None, where: str
) -> list[tuple[int, list[Mapping]]]:
    """(address space, its mappings): of the process of that id, before it did anything.

    Raises
    ------
    UserError
        The recording does not have the process, or it is not clear which one is meant.
    """
    threads = state.table("threads")[: state.count[ps.C_THREADS]]
    leaders = threads[(threads[:, ps.S_TID] == threads[:, ps.S_PID]) & (threads[:, ps.S_TID] > 0)]
    spaces = {int(row[ps.S_PID]): int(row[ps.S_SPACE]) for row in leaders}
    there = [int(row[ps.S_PID]) for row in leaders if row[ps.S_START_NS] < 0]
    placed = []
    for given, mappings, _ in found:
        pid = given
        if pid is None and process is not None and process.isdecimal():
            pid = int(process)
        if pid is None and len(there) == 1:
            pid = there[0]
        if pid is None:
            raise UserError(
                f"{len(there)} processes were there when the recording began: whose is it?",
                where=where,
                fix="name the file PID.maps or PID.smaps, or add --process PID",
            )
        if pid not in spaces:
            raise UserError(
                f"process {pid} is not in the recording",
                where=where,
                fix="give the snapshot of a recorded process",
            )
        placed.append((spaces[pid], mappings))
    return placed


def add(path: Path, writer: TraceWriter, state: ps.State, process: str | None) -> list[str]:
    """Write the mappings of the snapshot at ``path`` to the trace's known ones.

    Returns what is to be said of it.
    """
    alias = ps.resolve_aliases(state.table("spaces")[: state.count[ps.C_SPACES]])
    found = read_snapshots(path)
    for space, mappings in place(found, state, process, str(path)):
        writer.write("vmas", _columns(int(alias[space]), mappings))
    moved, known = sum(one.moved for one in found), sum(len(one.mappings) for one in found)
    if not moved:
        return []
    return [f"{moved} of {known:,} mappings changed while the snapshot was taken"]


def _columns(space: int, mappings: Sequence[Mapping]) -> dict[str, Column]:
    """The mappings as known ones of an address space."""
    words = sorted({one.name for one in mappings})
    return table_of(
        {
            "address_space": np.full(len(mappings), space),
            "ns": np.zeros(len(mappings), np.int64),
            "start": np.array([one.start for one in mappings], np.uint64),
            "length": np.array([one.end - one.start for one in mappings], np.uint64),
            "prot": np.array([one.prot for one in mappings]),
            "flags": np.array([one.flags for one in mappings]),
            "file_offset": np.array([one.offset for one in mappings]),
            "inode": np.array([one.inode for one in mappings], np.uint64),
            "device": np.array([one.device for one in mappings]),
            "name": words_of(np.array([words.index(one.name) for one in mappings]), words),
            "has_anon_vma": (
                np.array([bool(one.has_anon_vma) for one in mappings], np.bool_),
                np.array([one.has_anon_vma is not None for one in mappings], np.bool_),
            ),
            "source": words_of(np.zeros(len(mappings), np.int64), ps.SOURCES),
        },
    )
