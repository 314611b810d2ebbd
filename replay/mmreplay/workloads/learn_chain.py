"""Rows of a trace as the text of Markov chains; :mod:`mmreplay.workloads.learn` says what for."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.errors import UserError
from mmreplay.workloads.definition import END
from mmreplay.workloads.learn_contexts import contexts
from mmreplay.workloads.learn_memory import LEAST_SEEN, Regions
from mmreplay.workloads.learn_rows import Rows
from mmreplay.workloads.learn_text import (
    choose,
    elements,
    region_pages,
    render,
    size_pages,
    step,
)
from mmreplay.workloads.learn_tokens import MOST_BREAK, Token, Tokens

I64 = NDArray[np.int64]

#: States of a role at most, the most frequent first.
_MOST_STATES: Final = 40
#: An advice on so many pages of pooled memory is on all that is there.
_ALL_PAGES: Final = 64
_AROUND: Final = "64 KiB"
_DROPS: Final = ("dontneed", "remove")
#: Operations that may follow each other in a run.
_RANGES: Final = ("touch", "read_into", "mprotect", "madvise")
#: Times are kept by their quantiles: means of the values between these.
_QUANTILES: Final = (0.0, 0.5, 0.9, 0.99, 1.0)
#: Of the time of a role's threads, what must be spent before and after their operations to count.
_AWAY: Final = 0.05
_BEGIN: Final = "begin"


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


class Writer:
    def __init__(self, rows: Rows, name: str) -> None:
        self.r = rows
        self.name = name
        self.regions = Regions(rows)
        tokens = Tokens(rows, self.regions)
        self.codes, self.tokens = tokens.codes, tokens.found

    def learnt(self) -> Learnt:
        r = self.r
        learnable = self.codes >= 0
        ops = np.bincount(r.role[learnable], minlength=len(r.roles))
        roles: dict[str, str] = {}
        for number, role in enumerate(r.roles):
            chain = self._chain(number)
            if chain:
                roles[role] = chain
        for number, how in r.spawned.items():
            if r.roles[number] not in roles or r.roles[how.parent] not in roles:
                raise UserError(
                    "too few operations to learn from", where=self.name, fix="record for longer"
                )
            ops[how.parent] += ops[number]
            ops[number] = 0
        scaled = int(np.argmax(ops))
        if r.roles[scaled] not in roles:
            raise UserError(
                "too few operations to learn from", where=self.name, fix="record for longer"
            )
        counts = {
            role: 0 if number in r.spawned else r.role_threads[number]
            for number, role in enumerate(r.roles)
            if role in roles
        }
        return Learnt(
            text=render(self.name, self.regions, r.roles, roles, counts, r.roles[scaled]),
            threads=sum(counts.values()),
            rows=int(learnable.sum()),
            scaled_role=r.roles[scaled],
            left_out={why: n for why, n in r.left_out.items() if n},
        )

    # -- chains --------------------------------------------------------------------------
    def _chain(self, role: int) -> str:
        """The text of a role's chain; empty where there is too little."""
        r, codes, tokens = self.r, self.codes, self.tokens
        mine = np.flatnonzero(r.role == role)
        order = mine[np.argsort(r.thread[mine], kind="stable")]
        seen = np.bincount(codes[order][codes[order] >= 0], minlength=len(tokens))
        ranked = np.argsort(-seen, kind="stable")[:_MOST_STATES]
        chosen = np.zeros(len(tokens) + 1, np.bool_)
        chosen[ranked[seen[ranked] >= LEAST_SEEN]] = True
        if not chosen.any():
            return ""
        # without what begins all over again the pages of a region would be there for ever
        chosen[:-1] |= np.array([self._renews(t) for t in tokens], np.bool_) & (seen > 0)
        keep = (codes[order] >= 0) & chosen[codes[order]]
        rare = int(((codes[order] >= 0) & ~keep).sum())
        if rare:
            r.left_out["of rare kinds"] += rare
        if not keep.any():
            return ""
        # time before rows that are left out belongs to the thread's next row that is kept
        last: I64 = np.cumsum(keep) - keep  # index among the kept ones of the next kept row
        think = np.bincount(last, r.think[order], keep.sum() + 1)[: keep.sum()]
        blocked = np.bincount(last, r.blocked[order], keep.sum() + 1)[: keep.sum()]
        rows = order[keep]
        code, thread = codes[rows], r.thread[rows]
        kinds = [(t.do, t.region, t.detail) for t in tokens]
        kind = np.array([kinds.index(one) for one in kinds])[code]
        goes_on = np.array([t.do in _RANGES and t.at == "next" and not t.move for t in tokens])
        goes_on = goes_on[code]
        same = np.zeros(len(rows), np.bool_)
        same[1:] = (kind[1:] == kind[:-1]) & (thread[1:] == thread[:-1]) & goes_on[1:]
        begins = np.flatnonzero(~same)
        runs = np.diff(np.append(begins, len(rows)))
        states, token_of = contexts(code[begins], thread[begins], runs, _MOST_STATES)
        names = self._names({label: tokens[token_of[label]] for label in set(states.tolist())})
        nexts, firsts = self._transitions(role, states, thread[begins], names)
        lines = []
        for word, state in sorted(nexts.items(), key=lambda item: item[0] not in firsts):
            follow = ", ".join(f"{to} = {n}" for to, n in state.items())
            lines.append(f"[roles.{r.roles[role]}.chain.{word}]")
            lines.append(f"next = {{ {follow} }}")
            steps = []
            if word in names.values():
                number = next(k for k, name in names.items() if name == word)
                at = begins[states == number]
                of_run = np.repeat(states == number, runs) & same
                steps = self._steps(
                    tokens[token_of[number]],
                    runs[states == number],
                    (think[at], blocked[at]),
                    (think[of_run], blocked[of_run]),
                )
            elif word == "away":
                ends = sum(state["away"] for state in nexts.values() if "away" in state)
                steps = [step("think", mean_ns=max(round(r.away_ns[role] / ends), 1), asleep=True)]
            lines.append("steps = [")
            lines += [f"    {one}," for one in steps]
            lines.append("]\n")
        return "\n".join(lines)

    def _names(self, states: dict[int, Token]) -> dict[int, str]:
        """What each state is called."""
        names: dict[int, str] = {}
        for state, token in sorted(states.items()):
            parts = [token.do.replace("_", "-"), token.region, token.detail.replace("_", "-")]
            word = "-".join(part for part in parts if part)[:36].rstrip("-")
            number, tried = 2, word
            while tried in names.values() or tried in (END, _BEGIN, "away"):
                tried, number = f"{word}-{number}", number + 1
            names[state] = tried
        return names

    def _transitions(
        self, role: int, states: I64, thread: I64, names: dict[int, str]
    ) -> tuple[dict[str, Counter[str]], list[str]]:
        """How often each state is followed by which, and the state that the chain begins with."""
        r = self.r
        nexts: dict[str, Counter[str]] = {name: Counter() for name in names.values()}
        starts = np.flatnonzero(np.append(True, thread[1:] != thread[:-1]))
        ends = np.append(starts[1:], len(thread)) - 1
        inside = np.ones(len(states), np.bool_)
        inside[ends] = False
        pairs, count = np.unique(
            np.stack([states[:-1], states[1:]])[:, inside[:-1]], axis=1, return_counts=True
        )
        for a, b, n in zip(*pairs.tolist(), count.tolist(), strict=True):
            nexts[names[a]][names[b]] = n
        first = Counter(names[s] for s in states[starts].tolist())
        last = Counter(names[s] for s in states[ends].tolist())
        if role in r.spawned:
            for name, n in last.items():
                nexts[name][END] += n
            return {**nexts, _BEGIN: first}, [_BEGIN]
        if r.away_ns[role] > _AWAY * r.role_threads[role] * r.window_ns:
            for name, n in last.items():
                nexts[name]["away"] += n
            return {**nexts, "away": first}, [first.most_common(1)[0][0]]
        for a, b in zip(states[ends].tolist(), states[starts].tolist(), strict=True):
            # a recording ends somewhere; what follows there is known from elsewhere
            if not nexts[names[a]] or (len(nexts[names[a]]) == 1 and names[a] in nexts[names[a]]):
                nexts[names[a]][names[b]] += 1
        return nexts, [first.most_common(1)[0][0]]

    # -- steps ---------------------------------------------------------------------------
    def _steps(
        self, token: Token, runs: I64, lead: tuple[Any, Any], inner: tuple[Any, Any]
    ) -> list[str]:
        steps = [*_think(*lead), *self._operation(token, token.at, token.move)]
        if len(inner[0]) == 0:
            return steps
        again = ", ".join([*_think(*inner), *self._operation(token, "next")])
        branches = []
        for weight, times in _lengths(runs - 1):
            body = f'{{ do = "repeat", times = {times}, steps = [ {again} ] }}' if times else ""
            branches.append((weight, [body] if body else []))
        if len(branches) == 1:
            return [*steps, *branches[0][1]]
        return [*steps, choose(branches)]

    def _operation(self, token: Token, at: str, move: str = "") -> list[str]:
        if token.do == "exit":
            return []
        if token.do == "spawn":
            found = [step("spawn", role=token.detail, counts=1)]
            joined = self.r.spawned[self.r.roles.index(token.detail)].joined
            return [*found, step("join", role=token.detail)] if joined else found
        if token.do == "brk":
            self.regions.tables["heap"] = {
                "size": f"{MOST_BREAK} pages",
                "per": "process",
                "kind": "heap",
            }
            size: Any = f"{token.pages} pages" if token.pages else 0
            return [step("brk", on="heap", size=size, counts=1)]
        region = self.regions.tables[token.region]
        passing = self.regions.passing(token.region)
        where: dict[str, Any] = {"on": token.region}
        first = []
        if passing and elements(region) > 1:
            first = [step("pick", **where, how="free" if token.do == "mmap" else move or "mapped")]
        match token.do:
            case "touch" | "read_into":
                where |= self._touched(token, at, region)
            case "mmap":
                where["size"] = f"{size_pages(region)} pages"
                if token.detail:
                    where["populate"] = True
            case "munmap":
                if at == "end" and size_pages(region) > token.pages:
                    where["first"] = f"{size_pages(region) - token.pages} pages"
                elif at == "head" and size_pages(region) > token.pages:
                    where["size"] = f"{token.pages} pages"
            case "mprotect":
                where |= self._range(token, at, region) | {"prot": token.detail}
            case "madvise":
                where["advice"] = token.detail
                where |= self._range(token, at, region)
            case _:
                raise AssertionError(token)
        return [*first, step(token.do, **where, counts=1)]

    def _touched(self, token: Token, at: str, region: dict[str, Any]) -> dict[str, Any]:
        """Where a fault is."""
        where: dict[str, Any] = {}
        if token.do == "touch":
            where["access"] = token.detail
        if self._flipped(token.region):
            where["if_allowed"] = True
        if at == "first":
            page = _page(token, region)
            if page:
                where["first"] = f"{page} pages"
            return where | {"size": "1 pages"}
        if not self.regions.passing(token.region) and region["per"] == "process":
            where["part"] = "own"
        where["at"] = at if at == "same" else "next"
        if region.get("file") and token.detail == "read" and where["at"] == "next":
            where |= {"window": _AROUND, "units": 1}
        return where

    def _flipped(self, region: str) -> bool:
        return bool(self.regions.tables[region].get("flipped"))

    def _renews(self, token: Token) -> bool:
        """Whether an operation is on all of a region that has its own size, and stays."""
        if token.at != "whole" or token.do not in ("madvise", "mprotect"):
            return False
        table = self.regions.tables[token.region]
        return bool(table.get("bounded")) and not self.regions.passing(token.region)

    def _range(self, token: Token, at: str, region: dict[str, Any]) -> dict[str, Any]:
        """Which pages of a region an operation on a range is about."""
        passing = self.regions.passing(token.region)
        pooled = not passing and not region.get("bounded")
        pages = min(token.pages, region_pages(region))
        own = {"part": "own"} if pooled and region["per"] == "process" else {}
        if at == "whole" or (pages == 0 and at != "end"):
            return own
        if pooled and token.do == "madvise" and at != "same":
            if pages >= _ALL_PAGES and token.detail in _DROPS:
                return own
            drops = token.detail in _DROPS
            return own | {"at": "last" if drops else "same", "window": f"{pages} pages"}
        if at in ("first", "end"):
            page = _page(token, region)
            found: dict[str, Any] = {"first": f"{page} pages"} if page else {}
            if at == "first" and page + pages < region_pages(region):
                found["size"] = f"{pages} pages"
            return found
        if at == "head":
            return {"size": f"{pages} pages"} if pages < region_pages(region) else {}
        if at == "elsewhere" and not pooled and pages < region_pages(region):
            return {"by": f"{pages} pages", "order": "scattered", "units": 1}
        return own | {"at": "same" if at == "same" else "next", "window": f"{pages} pages"}


def _page(token: Token, region: dict[str, Any]) -> int:
    """A page counted from the beginning of the region, whatever it was counted from."""
    page = token.page if token.page >= 0 else region_pages(region) + token.page
    return min(max(page, 0), region_pages(region) - 1)


def _lengths(values: I64) -> list[tuple[float, int]]:
    """(share, number) of how many more follow: exact where there are few, else by quantiles."""
    distinct, count = np.unique(values, return_counts=True)
    often = count >= 0.01 * len(values)
    if len(distinct[often]) <= 4 and count[often].sum() >= 0.98 * len(values):
        distinct, count = distinct[often], count[often]
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
