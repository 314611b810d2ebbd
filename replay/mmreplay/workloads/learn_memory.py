"""The memory of a trace as regions of a workload: which pieces one region stands for."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.schema import OpKind
from mmreplay.workloads.learn_rows import Rows
from mmreplay.workloads.objects import Piece, What

I64 = NDArray[np.int64]

#: What pieces have in common that one region stands for; see ``_alike``.
Kind = tuple[int, int, str, int, int, bool]
#: What is rarer is not learnt.
LEAST_SEEN: Final = 4
#: A piece that stays mapped and has as many pages is a place to fault in, not a coming and going.
_LASTING_PAGES: Final = 64
#: Sizes of the regions that stand for lasting memory: shared, a thread's own, and of files.
_SHARED_BYTES: Final = "4 GiB"
_OWN_BYTES: Final = "1 GiB"
_FILE_BYTES: Final = "512 MiB"
_FILES: Final = ("", "tmpfs", "disk")
#: Memory of which so much is there, or is faulted in again and again, has its own size.
_FULL: Final = 0.5
_NORESERVE: Final = 0x4000
_ROOM: Final = 4
#: Of what is done in a kind of pieces, or of unmapping them, the share of others that makes it
#: one of all threads.
_HANDED_ON: Final = 0.05


class Regions:
    """``of`` names the region of each piece; ``tables`` what is known of each region."""

    def __init__(self, rows: Rows) -> None:
        self.r = rows
        self.tables: dict[str, dict[str, Any]] = {}
        self.files: dict[str, dict[str, Any]] = {}
        self.setup: list[str] = []
        self.once: dict[int, list[str]] = {}
        self._present, self._flipper = self._flips()
        self._of_all: set[Kind] = set()
        self.role_of: dict[str, int] = {}  # of regions that one role's threads have
        self.of = self._classes()

    def passing(self, name: str) -> bool:
        """Whether the region stands for pieces that come and go."""
        return "count" in self.tables[name]

    def lasting_own(self) -> str:
        """The region of what threads have for themselves."""
        if "own" not in self.tables:
            self._lasting("own", "", False, False)
        return "own"

    def beside(self, name: str) -> str:
        """A region like the pooled one ``name`` that nobody faults in.

        Which of the pieces that a pool stands for lose their protection is not known; were it
        the pool, its faults would end.
        """
        other = f"{name}-prot"
        if other not in self.tables:
            self.tables[other] = dict(self.tables[name])
            if name in self.setup:
                self.setup.append(other)
            for mapped in self.once.values():
                if name in mapped:
                    mapped.append(other)
        return other

    def starts_with(self, role: int, name: str) -> None:
        """The threads of ``role`` map the region before they begin."""
        role = self.r.spawned[role].parent if role in self.r.spawned else role
        mapped = self.once.setdefault(role, [])
        if name not in mapped:
            mapped.append(name)

    def _classes(self) -> list[str]:
        p = self.r.pieces
        creator = p[:, Piece.CREATOR]
        pages = np.maximum(p[:, Piece.SIZE] >> 12, 1)
        lasting = (creator < 0) | ((p[:, Piece.DIED] < 0) & (pages >= _LASTING_PAGES))
        alike = Counter(self._alike(k, int(pages[k])) for k in np.flatnonzero(~lasting).tolist())
        for k in np.flatnonzero(~lasting).tolist():
            # Mapped too rarely for a state of the chain: what is done in it is learnt all the same.
            lasting[k] = alike[self._alike(k, int(pages[k]))] < LEAST_SEEN
        made: dict[tuple[Any, ...], str] = {}
        self._handed_on(np.flatnonzero(~lasting), pages)
        live = self._live(np.where(lasting, -1, creator))
        names = []
        for k in range(len(p)):
            file = _FILES[p[k, Piece.FILE]]
            if lasting[k]:
                names.append(self._stays(k, int(pages[k]), file, made))
                continue
            key = self._alike(k, int(pages[k]))
            if key not in made:
                made[key] = self._unused(f"{file or 'piece'}-{int(pages[k])}p")
                self._passing(made[key], file, bool(key[3]), key[4])
                self.tables[made[key]]["reserve"] = key[5]
                self.tables[made[key]]["per"] = "thread" if key[0] >= 0 else "process"
            region = self.tables[made[key]]
            region["pages"] = max(region["pages"], int(pages[k]))
            region["count"] = max(region["count"], int(live[k]))
            region["faults"] += int(p[k, Piece.FAULTS])
            names.append(made[key])
        return names

    def _alike(self, k: int, pages: int) -> Kind:
        """What pieces have in common that one region stands for: role, size, file, ..."""
        p = self.r.pieces
        role = int(self.r.role_of_thread[p[k, Piece.CREATOR]])
        flags, prot = int(p[k, Piece.FLAGS]) & 1, int(p[k, Piece.PROT]) & 7
        kept = not p[k, Piece.FLAGS] & _NORESERVE
        key = role, pages.bit_length(), _FILES[p[k, Piece.FILE]], flags, prot, kept
        return (-1, *key[1:]) if key in self._of_all else key

    def _handed_on(self, passing: I64, pages: I64) -> None:
        """Which kinds of pieces are used by other threads than those that mapped them.

        Those are of the whole process; not what a thread maps for one that it starts.
        """
        r, p = self.r, self.r.pieces
        piece = r.what[:, What.PIECE]
        rows = np.flatnonzero((piece >= 0) & (r.kind != 0) & np.isin(piece, passing))
        piece = piece[rows]
        creator = p[piece, Piece.CREATOR]
        parent = np.array(
            [r.spawned[k].parent if k in r.spawned else -1 for k in range(len(r.roles))]
        )
        theirs = (creator != r.thread[rows]) & (parent[r.role[rows]] != r.role_of_thread[creator])
        ends = r.kind[rows] == OpKind.MUNMAP
        self._of_all = set()
        found: set[Kind] = set()
        for some in (np.ones(len(rows), np.bool_), ends):
            seen = np.bincount(piece[some], minlength=len(p))
            others = np.bincount(piece[some], theirs[some], len(p))
            total, handed = Counter[Kind](), Counter[Kind]()
            for k in passing.tolist():
                key = self._alike(k, int(pages[k]))
                total[key] += int(seen[k])
                handed[key] += int(others[k])
            found |= {key for key in total if handed[key] > _HANDED_ON * total[key]}
        self._of_all = found

    def _live(self, creator: I64) -> I64:
        """(pieces,) how many passing pieces of its kind its creator had when it was born."""
        p = self.r.pieces
        live = np.zeros(len(p), np.int64)
        events: list[tuple[int, int, int]] = []
        kinds: dict[int, tuple[Any, ...]] = {}
        for k in np.flatnonzero(creator >= 0).tolist():
            key = self._alike(k, max(int(p[k, Piece.SIZE] >> 12), 1))
            kinds[k] = (int(creator[k]) if key[0] >= 0 else -1, *key)
            events.append((int(p[k, Piece.BORN]), 1, k))
            if p[k, Piece.DIED] >= 0:
                events.append((int(p[k, Piece.DIED]), -1, k))
        have: Counter[tuple[Any, ...]] = Counter()
        for _, change, k in sorted(events):
            have[kinds[k]] += change
            if change > 0:
                live[k] = have[kinds[k]]
        return live

    def _stays(self, k: int, pages: int, file: str, made: dict[tuple[Any, ...], str]) -> str:
        """The region of a piece that stays mapped.

        Most of them are places to fault in, pooled.  One whose protection changes again and
        again is a region of its own size, because what is done in it depends on where.
        """
        p = self.r.pieces[k]
        flipped = p[Piece.FLIPS] >= LEAST_SEEN and self._flipper[k] > -2
        user = int(self._flipper[k] if flipped else p[Piece.USER])
        shared = user < 0 or (bool(p[Piece.SHARED]) and not flipped)
        both = bool(file) and bool(p[Piece.FLAGS] & 1)  # MAP_SHARED
        role = -1 if shared else int(self.r.role_of_thread[user])
        key: tuple[Any, ...] = ("lasting", file, shared, both)
        if flipped:
            key = (*key, role, pages.bit_length(), int(p[Piece.PROT]) & 7)
        if key not in made:
            name = f"{'shared' if shared else 'own'}{'-' if file else ''}{file}"
            name += "-through" if both else ""
            if flipped:
                name = self._unused(f"{name}-{pages}p")
            made[key] = name
            self._lasting(name, file, shared, both)
        name = made[key]
        if flipped and not shared:
            self.role_of[name] = role
        if flipped:
            region = self.tables[name]
            region["most"] = max(region.get("most", 0), pages)
            faults = min(int(p[Piece.FAULTS]), pages)
            region["opened"] = max(region.get("opened", 0), faults)
            share = float(self._present[k])
            if share > _FULL or p[Piece.FAULTS] > pages:
                region["bounded"] = True
            if region.get("bounded"):
                # where all is dropped now and then, when is chance: room until then
                room = 1 if share > _FULL else _ROOM
                region["size"] = f"{room * region['most']} pages"
                if file:
                    self.files[region["file"]]["size"] = region["size"]
            region["prot"] = int(p[Piece.PROT]) & 7
            if share > _FULL:
                region["filled"] = max(region.get("filled", 0), round(share * pages))
        if not shared:
            self.starts_with(role, name)
        return name

    def _flips(self) -> tuple[Any, Any]:
        """(pieces,) which share of the pages whose protection changes is there, and whose
        thread changes it (-1 several, -2 none)."""
        r = self.r
        flips = (r.kind == OpKind.MPROTECT) & (r.what[:, What.PIECE] >= 0)
        piece, n = r.what[flips, What.PIECE], len(r.pieces)
        pages = np.bincount(piece, r.what[flips, What.PAGES], n)
        share = np.bincount(piece, r.what[flips, What.PRESENT], n) / np.maximum(pages, 1)
        threads = np.full(n, -2)
        for k, thread in np.unique(np.stack([piece, r.thread[flips]]), axis=1).T.tolist():
            threads[k] = thread if threads[k] == -2 else -1
        return share, threads

    def _lasting(self, name: str, file: str, shared: bool, both: bool) -> None:
        size = _FILE_BYTES if file else _SHARED_BYTES if shared else _OWN_BYTES
        region: dict[str, Any] = {"size": size, "per": "process" if shared else "thread"}
        if file:
            region["file"] = f"f-{name}"
            region["shared"] = both
            self.files[f"f-{name}"] = {"size": size, "on": file}
        self.tables[name] = region
        if shared:
            self.setup.append(name)

    def _passing(self, name: str, file: str, shared: bool, prot: int) -> None:
        region: dict[str, Any] = {"pages": 1, "count": 1, "faults": 0, "prot": prot}
        if file:
            region["file"] = f"f-{name}"
            region["shared"] = shared
            self.files[f"f-{name}"] = {"size": "", "on": file, "of": name}
        self.tables[name] = region

    def _unused(self, name: str) -> str:
        word, number = name, 2
        while word in self.tables:
            word, number = f"{name}-{number}", number + 1
        return word
