"""Rows of a trace as the text of Markov chains; :mod:`mmreplay.workloads.learn` says what for."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.errors import UserError
from mmreplay.schema import FaultBits, OpKind
from mmreplay.workloads.learn_rows import Rows
from mmreplay.workloads.learn_text import choose, elements, render, size_pages, step, touched_pages
from mmreplay.workloads.objects import Piece, What
from mmreplay.workloads.steps import ADVICE

if TYPE_CHECKING:
    pass

I64 = NDArray[np.int64]

#: States of a role at most, the most frequent first; each must have been seen so often.
_MOST_STATES: Final = 40
_LEAST_SEEN: Final = 4
#: A piece that stays mapped and has as many pages is a place to fault in, not a coming and going.
_LASTING_PAGES: Final = 64
#: Sizes of the regions that stand for lasting memory: shared, a thread's own, and of files.
_SHARED_BYTES: Final = "4 GiB"
_OWN_BYTES: Final = "1 GiB"
_FILE_BYTES: Final = "512 MiB"
_FILES: Final = ("", "tmpfs", "disk")
_AROUND: Final = "64 KiB"
#: Break sizes that are told apart, and their largest, in pages.
_BREAKS, _MOST_BREAK = 8, 1 << 14
#: Protections that stand for the recorded ones.
_PROTECTIONS: Final = ("none", "r", "w", "rw", "rx", "rwx")
_MOST_FLIPPED: Final = 4096
#: Memory of which a smaller share is present when its protection changes is being opened.
_OPENED: Final = 0.05
#: An advice on so many pages of lasting memory is on all that is there.
_ALL_PAGES: Final = 64
_ADVICE_NAMES: Final = {number: name for name, number in ADVICE.items()}
#: Times are kept by their quantiles: means of the values between these.
_QUANTILES: Final = (0.0, 0.5, 0.9, 0.99, 1.0)
_FAULTS: Final = (OpKind.FAULT_USER, OpKind.FAULT_KERNEL)


@dataclass(frozen=True)
class Learnt:
    """A learnt workload.

    ``text`` is its definition; ``threads`` how many were recorded; ``left_out``: operations
    that the text does not stand for, by why.
    """

    text: str
    threads: int
    rows: int
    scaled_role: str
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, order=True)
class _Token:
    """A kind of operation on a kind of memory; ``region`` is a name of the text."""

    do: str
    region: str
    detail: tuple[Any, ...] = ()


class Writer:
    def __init__(self, rows: Rows, name: str) -> None:
        self.r = rows
        self.name = name
        self.regions: dict[str, dict[str, Any]] = {}
        self.files: dict[str, dict[str, Any]] = {}
        self.setup: list[str] = []
        self.once: dict[int, list[str]] = {}
        self.of_piece = self._classes()
        self.present: dict[_Token, float] = {}
        self.role = 0  # whose chain is being written

    def learnt(self) -> Learnt:
        codes, tokens = self._tokens()
        ops = np.bincount(self.r.role, minlength=len(self.r.roles))
        scaled = int(np.argmax(ops))
        roles: dict[str, str] = {}
        for number, role in enumerate(self.r.roles):
            chain = self._chain(number, codes, tokens)
            if chain:
                roles[role] = chain
        if self.r.roles[scaled] not in roles:
            raise UserError(
                "too few operations to learn from", where=self.name, fix="record for longer"
            )
        counts = {
            role: count
            for role, count in zip(self.r.roles, self.r.role_threads, strict=True)
            if role in roles
        }
        return Learnt(
            text=self._text(roles, counts, self.r.roles[scaled]),
            threads=sum(counts.values()),
            rows=len(self.r.kind),
            scaled_role=self.r.roles[scaled],
            left_out={why: n for why, n in self.r.left_out.items() if n},
        )

    # -- memory --------------------------------------------------------------------------
    def _classes(self) -> list[str]:
        """The region that stands for each piece."""
        r, p = self.r, self.r.pieces
        creator = p[:, Piece.CREATOR]
        pages = np.maximum(p[:, Piece.SIZE] >> 12, 1)
        lasting = (creator < 0) | ((p[:, Piece.DIED] < 0) & (pages >= _LASTING_PAGES))
        role_of_thread = r.role_of_thread
        alike = Counter(self._alike(k, int(pages[k])) for k in np.flatnonzero(~lasting).tolist())
        for k in np.flatnonzero(~lasting).tolist():
            # Mapped too rarely for a state of the chain: what is done in it is learnt all the same.
            lasting[k] = alike[self._alike(k, int(pages[k]))] < _LEAST_SEEN
        made: dict[tuple[Any, ...], str] = {}
        live = self._live(np.where(lasting, -1, creator))
        first_user = p[:, Piece.USER]
        names = []
        for k in range(len(p)):
            file = _FILES[p[k, Piece.FILE]]
            if lasting[k]:
                shared = bool(p[k, Piece.SHARED]) or first_user[k] < 0
                both = bool(file) and bool(p[k, Piece.FLAGS] & 1)  # MAP_SHARED
                key: tuple[Any, ...] = ("lasting", file, shared, both)
                if key not in made:
                    made[key] = f"{'shared' if shared else 'own'}{'-' if file else ''}{file}"
                    made[key] += "-through" if both else ""
                    self._lasting(made[key], file, shared, both)
                if not shared:
                    self._once(int(role_of_thread[first_user[k]]), made[key])
            else:
                key = self._alike(k, int(pages[k]))
                if key not in made:
                    made[key] = f"m{len(made)}-{2 ** key[1]}"
                    self._passing(made[key], file, bool(key[3]), key[4])
                region = self.regions[made[key]]
                region["pages"] = max(region["pages"], int(pages[k]))
                region["count"] = max(region["count"], int(live[k]))
                region["faults"] += int(p[k, Piece.FAULTS])
            names.append(made[key])
        return names

    def _alike(self, k: int, pages: int) -> tuple[int, int, str, int, int]:
        """What pieces have in common that one region stands for: role, size, file, ..."""
        p = self.r.pieces
        role = int(self.r.role_of_thread[p[k, Piece.CREATOR]])
        flags, prot = int(p[k, Piece.FLAGS]) & 1, int(p[k, Piece.PROT]) & 7
        return role, pages.bit_length(), _FILES[p[k, Piece.FILE]], flags, prot

    def _live(self, creator: I64) -> I64:
        """(pieces,) how many passing pieces its creator had when it was born."""
        p = self.r.pieces
        live = np.zeros(len(p), np.int64)
        events: list[tuple[int, int, int]] = []
        for k in np.flatnonzero(creator >= 0).tolist():
            events.append((int(p[k, Piece.BORN]), 1, k))
            if p[k, Piece.DIED] >= 0:
                events.append((int(p[k, Piece.DIED]), -1, k))
        have: Counter[int] = Counter()
        for _, change, k in sorted(events):
            have[int(creator[k])] += change
            if change > 0:
                live[k] = have[int(creator[k])]
        return live

    def _lasting(self, name: str, file: str, shared: bool, both: bool) -> None:
        size = _FILE_BYTES if file else _SHARED_BYTES if shared else _OWN_BYTES
        region: dict[str, Any] = {"size": size, "per": "process" if shared else "thread"}
        if file:
            region["file"] = f"f-{name}"
            region["shared"] = both
            self.files[f"f-{name}"] = {"size": size, "on": file}
        self.regions[name] = region
        if shared:
            self.setup.append(name)

    def _once(self, role: int, name: str) -> None:
        mapped = self.once.setdefault(role, [])
        if name not in mapped:
            mapped.append(name)

    def _passing(self, name: str, file: str, shared: bool, prot: int) -> None:
        region: dict[str, Any] = {"pages": 1, "count": 1, "faults": 0, "prot": prot}
        if file:
            region["file"] = f"f-{name}"
            region["shared"] = shared
            self.files[f"f-{name}"] = {"size": "", "on": file, "of": name}
        self.regions[name] = region

    # -- operations ----------------------------------------------------------------------
    def _tokens(self) -> tuple[I64, list[_Token]]:
        """For each row the number of its token, -1 where it has none."""
        r = self.r
        found: dict[_Token, int] = {}
        codes = np.full(len(r.kind), -1, np.int64)
        # rows that agree in all that decides the token are looked at once
        elsewhere = self._touched_by_others()
        region_names = sorted({*self.of_piece, "own"} if elsewhere.any() else set(self.of_piece))
        region_of = np.array([region_names.index(n) for n in self.of_piece] or [0], np.int64)
        piece = r.what[:, What.PIECE]
        region = np.where(piece >= 0, region_of[piece.clip(0)], -1)
        if elsewhere.any():
            region[elsewhere] = region_names.index("own")
        bucket = np.zeros(len(r.kind), np.int64)
        pages = np.maximum(r.what[:, What.PAGES], 1)
        many = ~np.isin(r.kind, _FAULTS)
        bucket[many] = np.ceil(np.log2(pages[many])).astype(np.int64)
        breaks = r.kind == OpKind.BRK
        bucket[breaks] = _levels(r.what[breaks, What.PAGES])
        key = np.stack(
            [r.kind, region, r.what[:, What.WHOLE], bucket, r.flags * many, r.bits], axis=1
        )
        distinct, inverse = np.unique(key, axis=0, return_inverse=True)
        number = np.full(len(distinct), -1, np.int64)
        for k, (kind, where, whole, size, flags, bits) in enumerate(distinct.tolist()):
            token = self._token(
                OpKind(kind), region_names[where] if where >= 0 else "", whole, size, flags, bits
            )
            if token is not None:
                number[k] = found.setdefault(token, len(found))
        codes = number[inverse.reshape(-1)]
        self._look_at_runs(codes, list(found))
        lost = Counter(OpKind(k).name.lower() for k in r.kind[codes < 0].tolist())
        for kind_name, count in lost.items():
            self.r.left_out[kind_name] += count
        return codes, list(found)

    def _touched_by_others(self) -> NDArray[np.bool_]:
        """Rows that are about a passing piece of another role: theirs to fault in, as their own.

        (A stack that one thread maps and another one uses.)
        """
        r = self.r
        piece = r.what[:, What.PIECE]
        creator = r.pieces[:, Piece.CREATOR]
        passing = np.array(["pages" in self.regions[name] for name in self.of_piece], np.bool_)
        role = np.where(passing & (creator >= 0), r.role_of_thread[creator.clip(0)], -1)
        found: NDArray[np.bool_] = (piece >= 0) & (role[piece.clip(0)] >= 0)
        found &= role[piece.clip(0)] != r.role
        if found.any():
            if "own" not in self.regions:
                self._lasting("own", "", False, False)
            for number in np.unique(r.role[found]).tolist():
                self._once(number, "own")
        return found

    def _look_at_runs(self, codes: I64, tokens: list[_Token]) -> None:
        """How many faults in a row pieces take, and how much of what is flipped is present."""
        r = self.r
        order = np.argsort(r.thread, kind="stable")
        order = order[codes[order] >= 0]
        code, thread = codes[order], r.thread[order]
        first = np.ones(len(code), np.bool_)
        first[1:] = (code[1:] != code[:-1]) | (thread[1:] != thread[:-1])
        begins = np.flatnonzero(first)
        lengths = np.diff(np.append(begins, len(code)))
        for number, token in enumerate(tokens):
            region = self.regions.get(token.region, {})
            runs = lengths[code[begins] == number]
            if token.do in ("touch", "read_into"):
                region["runs"] = region.get("runs", 0) + len(runs)
                region["longest"] = max(region.get("longest", 0), int(runs.max(initial=0)))
            elif token.do == "mmap":
                region["maps"] = region.get("maps", 0) + int(runs.sum())
            elif token.do == "mprotect":
                rows = codes == number
                pages = r.what[rows, What.PAGES].sum()
                self.present[token] = float(r.what[rows, What.PRESENT].sum() / max(pages, 1))

    def _token(
        self, kind: OpKind, region: str, whole: int, bucket: int, flags: int, bits: int
    ) -> _Token | None:
        if kind is OpKind.BRK:
            return _Token("brk", "heap", (bucket,))
        if not region:
            return None
        if kind in _FAULTS:
            write = bool(bits & FaultBits.WRITE)
            kernel = kind is OpKind.FAULT_KERNEL and write
            return _Token(
                "read_into" if kernel else "touch", region, ("write" if write else "read",)
            )
        if kind is OpKind.MMAP:
            passing = "pages" in self.regions[region]
            return _Token("mmap", region, (bool(flags & 0x8000),)) if passing and whole else None
        if kind is OpKind.MUNMAP:
            passing = "pages" in self.regions[region]
            if not passing:
                return None
            return _Token("munmap", region, () if whole == 1 else (1 << bucket,))
        if kind is OpKind.MPROTECT:
            pages = min(1 << bucket, _MOST_FLIPPED)
            if self.regions[region].get("per") != "process":
                tail = self.regions[region].get("tail", 0)
                self.regions[region]["tail"] = max(tail, pages)
            return _Token("mprotect", region, (pages,))
        if kind is OpKind.MADVISE and flags in _ADVICE_NAMES:
            size = 0 if whole and "pages" in self.regions[region] else 1 << bucket
            return _Token("madvise", region, (_ADVICE_NAMES[flags], size))
        return None

    # -- chains --------------------------------------------------------------------------
    def _chain(self, role: int, codes: I64, tokens: list[_Token]) -> str:
        """The text of a role's chain; empty where there is too little."""
        r = self.r
        self.role = role
        mine = np.flatnonzero(r.role == role)
        order = mine[np.argsort(r.thread[mine], kind="stable")]
        seen = np.bincount(codes[order][codes[order] >= 0], minlength=len(tokens))
        ranked = np.argsort(-seen, kind="stable")[:_MOST_STATES]
        chosen = np.zeros(len(tokens), np.bool_)
        chosen[ranked[seen[ranked] >= _LEAST_SEEN]] = True
        keep = (codes[order] >= 0) & chosen[codes[order].clip(0)]
        rare = int(((codes[order] >= 0) & ~keep).sum())
        if rare:
            r.left_out["of rare kinds"] += rare
        if not keep.any():
            return ""
        # time before rows that are left out belongs to the thread's next row that is kept
        last = np.cumsum(keep) - keep  # index among the kept ones of the next kept row
        think = np.bincount(last, r.think[order], keep.sum() + 1)[: keep.sum()]
        blocked = np.bincount(last, r.blocked[order], keep.sum() + 1)[: keep.sum()]
        rows = order[keep]
        code, thread = codes[rows], r.thread[rows]
        same = np.zeros(len(rows), np.bool_)
        faulting = np.array([t.do in ("touch", "read_into") for t in tokens])
        same[1:] = (code[1:] == code[:-1]) & (thread[1:] == thread[:-1]) & faulting[code[1:]]
        begins = np.flatnonzero(~same)
        runs = np.diff(np.append(begins, len(rows)))
        states = code[begins]
        nexts: dict[int, Counter[int]] = {}
        for k in range(len(begins)):
            following = k + 1
            if following == len(begins) or thread[begins[following]] != thread[begins[k]]:
                # a thread's last operation is followed by its first one
                following = int(np.searchsorted(thread[begins], thread[begins[k]]))
            nexts.setdefault(int(states[k]), Counter())[int(states[following])] += 1
        lines = []
        for state in sorted(nexts, key=lambda s: -seen[s]):
            at = begins[states == state]
            inner = np.flatnonzero(same & (code == state))
            steps = self._steps(
                tokens[state],
                runs[states == state],
                (think[at], blocked[at]),
                (think[inner], blocked[inner]),
            )
            follow = ", ".join(f"s{t} = {n}" for t, n in sorted(nexts[state].items()))
            lines.append(f"[roles.{r.roles[role]}.chain.s{state}]  # {tokens[state].do}")
            lines.append(f"next = {{ {follow} }}")
            lines.append("steps = [")
            lines += [f"    {step}," for step in steps]
            lines.append("]\n")
        return "\n".join(lines)

    def _steps(
        self, token: _Token, runs: I64, lead: tuple[Any, Any], inner: tuple[Any, Any]
    ) -> list[str]:
        steps = [*_think(*lead), *self._operation(token)]
        if len(inner[0]) == 0:
            return steps
        again = ", ".join([*_think(*inner), *self._operation(token)])
        branches = []
        for weight, times in _lengths(runs - 1):
            body = f'{{ do = "repeat", times = {times}, steps = [ {again} ] }}' if times else ""
            branches.append(f"{{ weight = {weight:.6g}, steps = [ {body} ] }}")
        return [*steps, f'{{ do = "choose", of = [ {", ".join(branches)} ] }}']

    def _operation(self, token: _Token) -> list[str]:
        region = self.regions.get(token.region, {})
        passing = "pages" in region
        where: dict[str, Any] = {"on": token.region}
        first = []
        if passing and elements(region) > 1:
            first = [step("pick", **where, how="free" if token.do == "mmap" else "mapped")]
        match token.do:
            case "brk":
                self.regions["heap"] = {
                    "size": f"{_MOST_BREAK} pages",
                    "per": "process",
                    "kind": "heap",
                }
                (level,) = token.detail
                size: Any = f"{level} pages" if level else 0
                return [step("brk", on="heap", size=size, counts=1)]
            case "touch" | "read_into":
                if token.do == "touch":
                    where["access"] = token.detail[0]
                if not passing and region["per"] == "process":
                    where["part"] = "own"
                where["at"] = "next"
                if region.get("tail"):
                    where["size"] = f"{touched_pages(region)} pages"
                if region.get("file") and token.detail[0] == "read":
                    where |= {"window": _AROUND, "units": 1}
            case "mmap":
                where["size"] = f"{size_pages(region)} pages"
                if token.detail[0]:
                    where["populate"] = True
            case "munmap":
                if token.detail and size_pages(region) > token.detail[0]:
                    where["first"] = f"{size_pages(region) - token.detail[0]} pages"
            case "mprotect":
                where = self._flipped(token)
                flips = (step("mprotect", **where, prot=p, counts=1) for p in _PROTECTIONS)
                return [*first, choose([(1.0, [one]) for one in flips])]
            case "madvise":
                advice, pages = token.detail
                where["advice"] = advice
                everything = pages == 0 or (not passing and pages >= _ALL_PAGES)
                if not everything and not (passing and pages >= region["pages"]):
                    where["size"] = f"{pages} pages"
                elif not passing and region["per"] == "process":
                    where["part"] = "own"
            case _:
                raise AssertionError(token)
        return [*first, step(token.do, **where, counts=1)]

    def _flipped(self, token: _Token) -> dict[str, Any]:
        """Which pages change their protection: never some that are touched.

        Where they were not there yet (memory that is opened step by step) they are the end
        of a thread's own memory; else a region beside, of which as many are there as were
        found to be.
        """
        (pages,) = token.detail
        region = self.regions[token.region]
        per = region.get("per", "thread")
        present = self.present.get(token, 0.0)
        if per != "process" and present < _OPENED:
            return {
                "on": token.region,
                "first": f"{touched_pages(region)} pages",
                "size": f"{pages} pages",
            }
        name = f"{token.region}-flip{pages}"
        size = f"{pages} pages"
        self.regions[name] = {"size": size, "per": per, "filled": round(present * pages)}
        if per == "thread":
            self._once(self.role, name)
        elif name not in self.setup:
            self.setup.append(name)
        return {"on": name}

    # -- the text ------------------------------------------------------------------------
    def _text(self, roles: dict[str, str], counts: dict[str, int], scaled: str) -> str:
        return render(
            self.name,
            self.regions,
            self.files,
            self.setup,
            self.once,
            self.r.roles,
            roles,
            counts,
            scaled,
        )


def _levels(pages: Any) -> Any:
    """Break sizes above the lowest, in pages; where they are many, rounded to a few levels."""
    if not len(pages):
        return pages
    above = np.minimum(pages - pages.min(), _MOST_BREAK)
    if len(np.unique(above)) > _BREAKS:
        width = max(int(above.max()) // (_BREAKS - 1), 1)
        above = above // width * width
    return above


def _lengths(values: I64) -> list[tuple[float, int]]:
    """(share, number) of how many more follow: exact where there are few, else by quantiles."""
    distinct, count = np.unique(values, return_counts=True)
    if len(distinct) <= 6:
        return [(float(c / len(values)), int(v)) for v, c in zip(distinct, count, strict=True)]
    ordered = np.sort(values)
    out = []
    for part in np.array_split(ordered, 6):
        # between two whole numbers, so that the mean is kept
        low = int(np.floor(part.mean()))
        high_share = float(part.mean()) - low
        share = len(part) / len(values)
        out += [(share * (1 - high_share), low), (share * high_share, low + 1)]
    return [(share, number) for share, number in out if share > 1e-9]


def _think(cpu: Any, blocked: Any) -> list[str]:
    return [*_mixture(cpu, False), *_mixture(blocked, True)]


def _mixture(values: Any, asleep: bool) -> list[str]:
    """Steps that think as long as ``values`` say: quantile groups, each by its mean."""
    values = np.asarray(values, np.float64)
    some = np.sort(values[values >= 1])
    if not len(some):
        return []

    def think(group: Any) -> str:
        keys: dict[str, Any] = {"mean_ns": max(round(float(group.mean())), 1)}
        if group[-1] > 2 * group[0]:
            keys["distribution"] = "exponential"
        return step("think", **keys, **({"asleep": True} if asleep else {}))

    edges = [round(q * len(some)) for q in _QUANTILES]
    groups = [some[a:b] for a, b in itertools.pairwise(edges) if b > a]
    if len(some) == len(values) and some[0] == some[-1]:
        return [think(some)]
    branches = [(len(group) / len(values), [think(group)]) for group in groups]
    if len(some) < len(values):
        branches.append((1 - len(some) / len(values), []))
    return [choose(branches)]
