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
#: Of the time of a thread in a phase, what makes a single time before an operation a long one.
_LONG: Final = 0.005


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
    phases: int = 1
    left_out: dict[str, int] = field(default_factory=dict)


class Writer:
    def __init__(self, rows: Rows, name: str) -> None:
        self.r = rows
        self.name = name
        self.regions = Regions(rows)
        tokens = Tokens(rows, self.regions)
        self.codes, self.tokens = tokens.codes, tokens.found
        self.kept = self._kept_roles()

    def learnt(self, stretch: float = 1.0) -> Learnt:
        """``stretch``: how many times as long as recorded each phase shall be."""
        r = self.r
        learnable = self.codes >= 0
        ops = np.bincount(r.role[learnable], minlength=len(r.roles))
        roles: dict[str, str] = {}
        phases: dict[str, dict[str, int]] = {}
        for number, role in enumerate(r.roles):
            chain, phases[role] = "", {}
            if r.phases == 1 or number in r.spawned:
                chain = self._text(number, np.flatnonzero(r.role == number), None)[0]
            elif self.kept[number]:
                chain, phases[role] = self._phases(number, stretch)
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
            text=render(self.name, self.regions, r.roles, roles, counts, phases, r.roles[scaled]),
            threads=sum(counts.values()),
            rows=int(learnable.sum()),
            phases=r.phases,
            scaled_role=r.roles[scaled],
            left_out={why: n for why, n in r.left_out.items() if n},
        )

    def _kept_roles(self) -> list[bool]:
        """Of which roles there is enough for a chain."""
        known = self.codes >= 0
        seen = np.zeros((len(self.r.roles), len(self.tokens) + 1), np.int64)
        np.add.at(seen, (self.r.role[known], self.codes[known]), 1)
        return [bool(most >= LEAST_SEEN) for most in seen.max(axis=1)]

    # -- chains --------------------------------------------------------------------------
    def _phases(self, role: int, stretch: float) -> tuple[str, dict[str, int]]:
        """The chain of a role with a part for each phase, and how many states each part has."""
        r = self.r
        texts, lengths = [], {}
        for phase in range(r.phases):
            name = f"p{phase + 1}"
            text, states = self._part(role, phase, name, stretch)
            if text:
                texts.append(text)
                lengths[name] = round(states * stretch) + 1
        return "\n".join(texts), lengths

    def _others(self, role: int) -> dict[str, str]:
        """Whom a thread of a role waits for that is not there: who starts it, else the busiest."""
        r = self.r
        ops = np.bincount(r.role, minlength=len(r.roles))
        ops[role] = -1
        for one in (r.parents[role], int(np.argmax(ops))):
            if one not in (-1, role) and self.kept[one] and one not in r.spawned:
                return {"woken_by": self._word(one)}
        return {}

    def _word(self, role: int) -> str:
        return self.r.roles[role]

    def _part(self, role: int, phase: int, name: str, stretch: float) -> tuple[str, float]:
        """The part of a role's chain in a phase, and how many states a thread goes through."""
        mine = np.flatnonzero((self.r.role == role) & (self.r.phase == phase))
        text, states = self._text(role, mine, (name, phase, stretch))
        if text or not len(mine):
            return text, states
        times = _Times.of(self.r, mine, np.arange(len(mine)), len(mine))  # nothing but its time
        steps = self._enters(role, times, (name, phase, stretch))
        return _state(self._word(role), f"{name}-enter", {f"{name}-enter": 1}, steps, name), 0.0

    def _text(
        self, role: int, mine: I64, phase: tuple[str, int, float] | None
    ) -> tuple[str, float]:
        """A chain, or the part of one in a phase: its name, number, and how it is stretched.

        Empty where there is too little.
        """
        r, codes, tokens = self.r, self.codes, self.tokens
        order = mine[np.argsort(r.thread[mine], kind="stable")]
        seen = np.bincount(codes[order][codes[order] >= 0], minlength=len(tokens))
        ranked = np.argsort(-seen, kind="stable")[:_MOST_STATES]
        chosen = np.zeros(len(tokens) + 1, np.bool_)
        chosen[ranked[seen[ranked] >= (1 if phase else LEAST_SEEN)]] = True
        if not chosen.any():
            return "", 0.0
        # without what begins all over again the pages of a region would be there for ever
        chosen[:-1] |= np.array([self._renews(t) for t in tokens], np.bool_) & (seen > 0)
        keep = (codes[order] >= 0) & chosen[codes[order]]
        rare = int(((codes[order] >= 0) & ~keep).sum())
        if rare:
            r.left_out["of rare kinds"] += rare
        if not keep.any():
            return "", 0.0
        # time before rows that are left out belongs to the thread's next row that is kept
        last: I64 = np.cumsum(keep) - keep  # index among the kept ones of the next kept row
        rows = order[keep]
        times = _Times.of(r, order, last, len(rows))
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
        found = {label: tokens[token_of[label]] for label in set(states.tolist())}
        names = self._names(found, f"{phase[0]}-" if phase else "")
        nexts, firsts = self._transitions(role, states, thread[begins], names, phase)
        entering = None
        if phase:
            entering, times = times.split(np.unique(thread, return_index=True)[1])
        number_of = {word: number for number, word in names.items()}
        lines = []
        for word, state in sorted(nexts.items(), key=lambda item: item[0] not in firsts):
            steps = []
            if word in number_of:
                number = number_of[word]
                at = begins[states == number]
                of_run = np.repeat(states == number, runs) & same
                steps = self._steps(
                    tokens[token_of[number]],
                    runs[states == number],
                    self._pause(times.part(at)),
                    self._pause(times.part(of_run)) if of_run.any() else None,
                )
            elif word == "away":
                ends = sum(state["away"] for state in nexts.values() if "away" in state)
                mean = max(round(r.away_ns[role] / ends), 1)
                steps = [step("think", mean_ns=mean, asleep=True, **self._others(role))]
            elif phase and entering and word in firsts:
                steps = self._enters(role, entering, phase)
            name = phase[0] if phase else ""
            lines.append(_state(r.roles[role], word, state, steps, name))
        return "\n".join(lines), len(states) / r.role_threads[role]

    def _enters(self, role: int, times: _Times, phase: tuple[str, int, float]) -> list[str]:
        """What a thread does in a phase, on average, before its first operation there."""
        threads = self.r.role_threads[role]
        absent = self.r.absent_ns[role, phase[1]] * phase[2] / threads
        steps = []
        if absent >= 1:
            steps.append(step("think", mean_ns=round(absent), asleep=True, **self._others(role)))
        for sums, keys in ((times.cpu, {}), (times.slept, {"asleep": True})):
            if sums.sum() >= threads:
                steps.append(step("think", mean_ns=round(sums.sum() / threads), **keys))
        waits = Counter[int]()
        for waker, waited in zip(times.waker.tolist(), times.waited.tolist(), strict=True):
            waits[waker] += waited
        for waker, waited in waits.items():
            if waited >= threads:
                keys = {"asleep": True, **self._woken_by(waker)}
                steps.append(step("think", mean_ns=round(waited / threads), **keys))
        return steps

    def _woken_by(self, role: int) -> dict[str, Any]:
        if role < 0 or not self.kept[role]:
            return {}
        return {"woken_by": self._word(role)}

    def _pause(self, times: _Times) -> list[str]:
        """Steps that compute and sleep as recorded."""
        waits = []
        for waker in np.unique(times.waker[times.waited >= 1]).tolist():
            values = np.where(times.waker == waker, times.waited, 0)
            waits += _groups(values, {"asleep": True, **self._woken_by(waker)})
        cpu, slept = _groups(times.cpu, {}), _groups(times.slept, {"asleep": True})
        n = len(times.cpu)
        return [one for groups in (cpu, slept, waits) for one in _mixture(groups, n)]

    def _names(self, states: dict[int, Token], prefix: str) -> dict[int, str]:
        """What each state is called."""
        names: dict[int, str] = {}
        for state, token in sorted(states.items()):
            parts = [token.do.replace("_", "-"), token.region, token.detail.replace("_", "-")]
            word = (prefix + "-".join(part for part in parts if part))[:36].rstrip("-")
            number, tried = 2, word
            while tried in names.values() or tried in (END, _BEGIN, "away", f"{prefix}enter"):
                tried, number = f"{word}-{number}", number + 1
            names[state] = tried
        return names

    def _transitions(
        self,
        role: int,
        states: I64,
        thread: I64,
        names: dict[int, str],
        phase: tuple[str, int, float] | None,
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
        if not phase and r.away_ns[role] > _AWAY * r.role_threads[role] * r.window_ns:
            for name, n in last.items():
                nexts[name]["away"] += n
            return {**nexts, "away": first}, [first.most_common(1)[0][0]]
        for a, b in zip(states[ends].tolist(), states[starts].tolist(), strict=True):
            # a recording ends somewhere; what follows there is known from elsewhere
            if not nexts[names[a]] or (len(nexts[names[a]]) == 1 and names[a] in nexts[names[a]]):
                nexts[names[a]][names[b]] += 1
        if phase:
            enter = f"{phase[0]}-enter"
            return {**nexts, enter: first}, [enter]
        return nexts, [first.most_common(1)[0][0]]

    # -- steps ---------------------------------------------------------------------------
    def _steps(
        self, token: Token, runs: I64, lead: list[str], inner: list[str] | None
    ) -> list[str]:
        """``inner``: what comes before each repetition, None where there is none."""
        steps = [*lead, *self._operation(token, token.at, token.move)]
        if inner is None:
            return steps
        again = ", ".join([*inner, *self._operation(token, "next")])
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
        if token.do == "mprotect" and not passing and "most" not in region:
            where["on"] = self.regions.beside(token.region)
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
        where: dict[str, Any] = {"fresh": True}
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


@dataclass(frozen=True)
class _Times:
    """(n,) what comes before each of some operations, in ns, and the role that ended its wait."""

    cpu: Any
    slept: Any  # without what it waited for others
    waited: Any
    waker: Any

    @staticmethod
    def of(rows: Rows, order: I64, to: I64, n: int) -> _Times:
        """Of ``n`` operations: each of the rows in ``order`` adds to the one that ``to`` says."""
        sums = [
            np.bincount(to, x[order], n + 1)[:n] for x in (rows.think, rows.blocked, rows.waited)
        ]
        waker = np.full(n + 1, -1, np.int64)
        waits = np.flatnonzero(rows.waker[order] >= 0)
        waker[to[waits]] = rows.waker[order[waits]]
        return _Times(sums[0], sums[1] - sums[2], sums[2], waker[:n])

    def split(self, first: I64) -> tuple[_Times, _Times]:
        """The few long times, and those before the rows ``first``, by themselves; and the others.

        Drawn at random, a few long ones would make the time that a thread takes any.
        """
        least = _LONG * (self.cpu + self.slept + self.waited).sum() / len(first)

        def part(values: Any, mine: bool) -> Any:
            long = values > least
            long[first] = True
            return np.where(long == mine, values, 0)

        cpu, slept, waited = self.cpu, self.slept, self.waited
        entering, others = (
            _Times(part(cpu, mine), part(slept, mine), part(waited, mine), self.waker)
            for mine in (True, False)
        )
        return entering, others

    def part(self, which: Any) -> _Times:
        return _Times(self.cpu[which], self.slept[which], self.waited[which], self.waker[which])


def _state(role: str, word: str, follow: dict[str, int], steps: list[str], phase: str) -> str:
    """A state of a role's chain as text."""
    lines = [f"[roles.{role}.chain.{word}]"]
    if phase:
        lines.append(f'phase = "{phase}"')
    lines.append(f"next = {{ {', '.join(f'{to} = {n}' for to, n in follow.items())} }}")
    return "\n".join([*lines, "steps = [", *(f"    {one}," for one in steps), "]\n"])


def _groups(values: Any, keys: dict[str, Any]) -> list[tuple[int, str]]:
    """(how many, a step that thinks as long) of the values that are some, by quantiles."""
    some = np.sort(values[values >= 1])
    edges = [round(q * len(some)) for q in _QUANTILES]
    if len(some) and some[0] == some[-1]:
        edges = [0, len(some)]
    found = []
    for low, high in itertools.pairwise(edges):
        group = some[low:high]
        if not len(group):
            continue
        shape = {"distribution": "exponential"} if group[-1] > 2 * group[0] else {}
        mean = max(round(float(group.mean())), 1)
        found.append((len(group), step("think", mean_ns=mean, **shape, **keys)))
    return found


def _mixture(groups: list[tuple[int, str]], n: int) -> list[str]:
    """A step that is one of the groups' by their shares of ``n``, else none."""
    if not groups:
        return []
    left = n - sum(count for count, _ in groups)
    if len(groups) == 1 and not left:
        return [groups[0][1]]
    branches = [(count / n, [one]) for count, one in groups]
    return [choose([*branches, (left / n, [])] if left else branches)]
