"""Rows of a trace as tokens: kinds of operations on kinds of memory, at kinds of places."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.schema import FaultBits, OpKind
from mmreplay.workloads.learn_memory import Regions
from mmreplay.workloads.learn_rows import Rows
from mmreplay.workloads.learn_text import elements
from mmreplay.workloads.objects import Piece, Relation, What
from mmreplay.workloads.steps import ADVICE

I64 = NDArray[np.int64]

FAULTS: Final = (OpKind.FAULT_USER, OpKind.FAULT_KERNEL)
#: Break sizes that are told apart, and their largest, in pages.
_BREAKS, MOST_BREAK = 8, 1 << 14
#: So many places in a kind of piece are told apart, each with this share of what is done there.
_PLACES, _PLACE_SHARE = 4, 0.05
#: A kind of place where less is done is taken for the most frequent one.
_RARE: Final = 0.02
_ADVICE_NAMES: Final = {number: name for name, number in ADVICE.items()}
_PROTECTIONS: Final = {0: "none", 1: "r", 2: "w", 3: "rw", 5: "rx", 7: "rwx"}
_POPULATE: Final = 0x8000
#: Places of rows: relative to the thread's last operation there, or in the piece.
_WHOLE, _SAME, _NEXT, _END, _HEAD, _ELSEWHERE = range(6)


@dataclass(frozen=True, order=True)
class Token:
    """``region`` is a name of the text; ``pages``: of a range, 0 all; ``at`` where it is.

    ``at``: ``whole``, ``same``, ``next``, ``elsewhere``, ``first`` (``page`` pages from the
    beginning, or if negative from the end); ``end``: that and up to the end; ``head``.
    ``move``: it is in another piece than the thread's last one there; ``untouched``, ``other``.
    """

    do: str
    region: str
    detail: str = ""
    at: str = "next"
    page: int = 0
    pages: int = 0
    move: str = ""


class Tokens:
    """``codes``: for each row the number of its token, -1 where it has none."""

    def __init__(self, rows: Rows, regions: Regions) -> None:
        self.r = rows
        self.regions = regions
        names = sorted({*regions.of, regions.lasting_own(), ""})
        self._names = names
        region_of = np.array([names.index(n) for n in regions.of] or [0], np.int64)
        piece = rows.what[:, What.PIECE]
        self._region = np.where(piece >= 0, region_of[piece.clip(0)], names.index(""))
        self._touched_by_others()
        self.codes, self.found = self._tokens()
        self._look_at_runs()

    def _touched_by_others(self) -> None:
        """Passing pieces of another role are a thread's own to fault in.

        (A stack that one thread maps and another one uses; an arena whose protection another
        one changes.)  Not where the other role started the thread: then they share it in the
        text too.
        """
        r = self.r
        piece = r.what[:, What.PIECE]
        creator = r.pieces[:, Piece.CREATOR]
        passing = np.array(
            [
                self.regions.passing(name) and self.regions.tables[name]["per"] == "thread"
                for name in self.regions.of
            ],
            np.bool_,
        )
        role = np.where(passing & (creator >= 0), r.role_of_thread[creator.clip(0)], -1)
        if not len(role):
            return
        parent = np.array(
            [r.spawned[k].parent if k in r.spawned else k for k in range(len(r.roles))]
        )
        for k, name in enumerate(self.regions.of):
            role[k] = self.regions.role_of.get(name, role[k])
        others = (piece >= 0) & (role[piece.clip(0)] >= 0)
        others &= (role[piece.clip(0)] != r.role) & (role[piece.clip(0)] != parent[r.role])
        if others.any():
            self._region[others] = self._names.index(self.regions.lasting_own())
            for number in np.unique(r.role[others]).tolist():
                self.regions.starts_with(number, self.regions.lasting_own())

    # -- places --------------------------------------------------------------------------
    def _places(self) -> tuple[I64, I64]:
        """(rows,) the place, and the page where it is absolute."""
        r = self.r
        what, faults = r.what, np.isin(r.kind, FAULTS)
        # a thread knows where it was itself, and of an element of several where anybody was
        several = np.array([self._several(name) for name in self._names], np.bool_)[self._region]
        foreign = (what[:, What.THREAD] == 1) & ~several
        relation = np.where(foreign, Relation.UNKNOWN, what[:, What.RELATION])
        whole = what[:, What.WHOLE]
        # by what the piece had, not by what its region has: pieces of a kind differ in size
        near_end = what[:, What.LEFT] < what[:, What.FIRST]
        page = np.where(near_end, -what[:, What.LEFT] - what[:, What.PAGES], what[:, What.FIRST])
        place = np.full(len(r.kind), _ELSEWHERE)
        place[whole == 3] = _HEAD
        place[whole == 2] = _END
        place[faults] = _ELSEWHERE
        place[relation == Relation.SAME] = _SAME
        place[relation == Relation.NEXT] = _NEXT
        place[(whole == 1) & ~faults] = _WHOLE
        place[(r.kind == OpKind.MUNMAP) & (whole == 2)] = _END
        place[(r.kind == OpKind.MUNMAP) & (whole == 3)] = _HEAD
        # elsewhere: some pages may be frequent ones
        loose = ((place == _ELSEWHERE) | (place == _END)) & (r.kind != OpKind.MUNMAP)
        names = np.array([self._absolute(name) for name in self._names], np.bool_)
        loose &= names[self._region]
        keys = np.stack([r.kind, self._region, r.role, page], axis=1)
        known = np.zeros(len(r.kind), np.bool_)
        if loose.any():
            distinct, inverse, count = np.unique(
                keys[loose], axis=0, return_inverse=True, return_counts=True
            )
            groups = Counter[tuple[int, ...]]()
            for key, n in zip(distinct.tolist(), count.tolist(), strict=True):
                groups[tuple(key[:3])] += n
            taken = Counter[tuple[int, ...]]()
            good = np.zeros(len(distinct), np.bool_)
            for k in np.argsort(-count, kind="stable").tolist():
                group = tuple(distinct[k, :3].tolist())
                if taken[group] < _PLACES and count[k] >= _PLACE_SHARE * groups[group]:
                    taken[group] += 1
                    good[k] = True
            known[np.flatnonzero(loose)] = good[inverse.reshape(-1)]
        place[(place == _END) & ~known & (r.kind != OpKind.MUNMAP)] = _ELSEWHERE
        place[(place == _ELSEWHERE) & known] = _ELSEWHERE + 1
        # other faults go on where the last one was, or in what has just been made accessible
        place[faults & (place == _ELSEWHERE) & (relation == Relation.INSIDE)] = _SAME
        place[faults & (place == _ELSEWHERE)] = _NEXT
        return place, np.where(known, page, 0)

    def _several(self, name: str) -> bool:
        """Whether a region has elements that are picked."""
        table = self.regions.tables.get(name, {})
        return "count" in table and elements(table) > 1

    def _moves(self) -> I64:
        """(rows,) 1: in another piece than the thread's last one of the region, 2: untouched."""
        r = self.r
        several = np.array([self._several(name) for name in self._names], np.bool_)[self._region]
        several &= np.isin(r.kind, [*FAULTS, OpKind.MUNMAP, OpKind.MPROTECT, OpKind.MADVISE])
        mapped = np.array([self._several(name) for name in self._names], np.bool_)[self._region]
        mapped &= r.kind == OpKind.MMAP
        rows = np.flatnonzero(several | mapped)
        order = rows[np.lexsort((rows, self._region[rows], r.thread[rows]))]
        thread, region = r.thread[order], self._region[order]
        piece = r.what[order, What.PIECE]
        moves = np.zeros(len(r.kind), np.int64)
        changed = (piece[1:] != piece[:-1]) & (thread[1:] == thread[:-1])
        changed &= (region[1:] == region[:-1]) & several[order[1:]]
        at = order[1:][changed]
        # an element is untouched for who is the first to access it
        moves[at] = 1 + r.what[at, What.FRESH] * np.isin(r.kind[at], FAULTS)
        return moves

    def _absolute(self, name: str) -> bool:
        """Whether places in a region mean anything: in pools they do not."""
        if not name or name not in self.regions.tables:
            return False
        table = self.regions.tables[name]
        return self.regions.passing(name) or bool(table.get("bounded"))

    # -- tokens --------------------------------------------------------------------------
    def _tokens(self) -> tuple[I64, list[Token]]:
        r = self.r
        place, page = self._places()
        pages = np.maximum(r.what[:, What.PAGES], 1)
        bucket = np.zeros(len(r.kind), np.int64)
        many = ~np.isin(r.kind, FAULTS) & (r.kind != 0)
        bucket[many] = np.ceil(np.log2(pages[many])).astype(np.int64)
        breaks = r.kind == OpKind.BRK
        bucket[breaks] = _levels(r.what[breaks, What.PAGES])
        flips = np.where(r.kind == OpKind.MPROTECT, r.prot & 7, 0)
        child = np.where(r.kind == OpKind.CLONE, r.role_of_thread[r.child], 0)
        columns = [r.kind, self._region, place, page, bucket, r.flags * many, r.bits]
        key = np.stack([*columns, flips + child, self._moves()], axis=1)
        distinct, inverse = np.unique(key, axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        total = np.bincount(inverse, weights=pages).astype(np.float64)
        mean = np.maximum(np.round(total / np.bincount(inverse)), 1).astype(np.int64)
        tokens = [
            self._moved(self._token(OpKind(row[0]) if row[0] else None, row, size), row[-1])
            for row, size in zip(distinct.tolist(), mean.tolist(), strict=True)
        ]
        tokens = self._without_rare_places(tokens, np.bincount(inverse))
        found: dict[Token, int] = {}
        number = np.array(
            [-1 if token is None else found.setdefault(token, len(found)) for token in tokens]
        )
        codes = number[inverse]
        learnable = [int(k) for k in (*FAULTS, OpKind.MMAP, OpKind.MUNMAP, OpKind.MPROTECT)]
        learnable += [int(k) for k in (OpKind.MADVISE, OpKind.BRK, OpKind.MREMAP)]
        lost = Counter(r.kind[(codes < 0) & np.isin(r.kind, learnable)].tolist())
        for kind, count in lost.items():
            r.left_out[OpKind(kind).name.lower()] += count
        return codes, list(found)

    def _without_rare_places(self, tokens: list[Token | None], seen: I64) -> list[Token | None]:
        """Tokens at places where next to nothing is done become those at the most frequent one."""
        groups: dict[Token, Counter[tuple[str, int]]] = {}
        for token, n in zip(tokens, seen.tolist(), strict=True):
            if token is not None:
                groups.setdefault(replace(token, at="", page=0), Counter())[
                    token.at, token.page
                ] += n
        out: list[Token | None] = []
        for token in tokens:
            if token is not None:
                counts = groups[replace(token, at="", page=0)]
                # a run of faults begins somewhere and goes on: what counts is where it begins
                runs = token.do in ("touch", "read_into")
                total = counts.total() - runs * counts["next", 0]
                if counts[token.at, token.page] < _RARE * total:
                    at, page = counts.most_common(1)[0][0]
                    token = replace(token, at=at, page=page)
            out.append(token)
        return out

    def _moved(self, token: Token | None, move: int) -> Token | None:
        return None if token is None else replace(token, move=("", "other", "untouched")[move])

    def _token(self, kind: OpKind | None, key: list[int], pages: int) -> Token | None:
        _, region, place, page, bucket, flags, bits, other, _ = key
        name = self._names[region]
        at = ("whole", "same", "next", "end", "head", "elsewhere", "first")[place]
        if kind is OpKind.BRK:
            return Token("brk", "heap", pages=bucket)
        if kind is OpKind.CLONE and other in self.r.spawned:
            return Token("spawn", "", self.r.roles[other])
        if kind is OpKind.THREAD_EXIT and self.r.spawned:
            return Token("exit", "")
        if kind is None or not name:
            return None
        passing = self.regions.passing(name)
        if kind in FAULTS:
            write = bool(bits & FaultBits.WRITE)
            kernel = kind is OpKind.FAULT_KERNEL and write
            access = "write" if write else "read"
            return Token("read_into" if kernel else "touch", name, access, at, page)
        if kind is OpKind.MMAP:
            if not passing or place != _WHOLE:
                return None
            return Token("mmap", name, "populate" if flags & _POPULATE else "")
        if kind is OpKind.MUNMAP:
            if not passing or at not in ("whole", "end", "head"):
                return None
            return Token("munmap", name, at=at, pages=0 if at == "whole" else pages)
        if kind is OpKind.MPROTECT and other in _PROTECTIONS:
            size = 0 if at in ("whole", "end") else pages
            return Token("mprotect", name, _PROTECTIONS[other], at, page, size)
        if kind is OpKind.MADVISE and flags in _ADVICE_NAMES:
            size = 0 if at in ("whole", "end") else pages
            return Token("madvise", name, _ADVICE_NAMES[flags], at, page, size)
        return None

    def _look_at_runs(self) -> None:
        """How many faults in a row pieces take since they were mapped or all was dropped."""
        r, codes = self.r, self.codes
        order = np.argsort(r.thread, kind="stable")
        order = order[codes[order] >= 0]
        if not len(order):
            return
        kinds = [(t.do in ("touch", "read_into"), t.region) for t in self.found]
        groups = sorted(set(kinds))
        code = np.array([groups.index(kind) for kind in kinds])[codes[order]]
        thread = r.thread[order]
        first = np.ones(len(code), np.bool_)
        first[1:] = (code[1:] != code[:-1]) | (thread[1:] != thread[:-1])
        begins = np.flatnonzero(first)
        lengths = np.diff(np.append(begins, len(code)))
        seen = np.bincount(codes[order], minlength=len(self.found))
        for number, (faulting, region) in enumerate(groups):
            table = self.regions.tables.get(region)
            if table is not None and faulting:
                runs = lengths[code[begins] == number]
                table["runs"] = len(runs)
                table["longest"] = int(runs.max(initial=0))
        for token, n in zip(self.found, seen.tolist(), strict=True):
            table = self.regions.tables.get(token.region)
            if table is None:
                continue
            if token.do == "mprotect":
                table["flipped"] = True
            drops = token.do == "madvise" and token.at == "whole" and token.detail == "dontneed"
            if token.do == "mmap" or drops:
                table["maps"] = table.get("maps", 0) + n
            if (token.at in ("first", "end") and token.page < 0) or token.at in ("end", "head"):
                table["exact"] = True


def _levels(pages: Any) -> Any:
    """Break sizes above the lowest, in pages; where they are many, rounded to a few levels."""
    if not len(pages):
        return pages
    above = np.minimum(pages - pages.min(), MOST_BREAK)
    if len(np.unique(above)) > _BREAKS:
        width = max(int(above.max()) // (_BREAKS - 1), 1)
        above = above // width * width
    return above
