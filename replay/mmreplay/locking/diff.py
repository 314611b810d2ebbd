"""What two locking models do differently, operation by operation, in words.

The programs are walked in the same situations (:mod:`.scenarios`) and compared by what they
take, in which order and what runs under it; a change that several situations share is said
once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mmreplay.address_space.plan import PlanOp
from mmreplay.locking.isa import A, Kind, Op, Scope
from mmreplay.locking.model import LockingModel
from mmreplay.locking.scenarios import SCENARIOS, Scenario
from mmreplay.locking.view import describe, step
from mmreplay.locking.walk import Walk, walk


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.  ``operation`` is empty for the declarations.

    ``about``: locks, reason, marks, inner, under, costs, lines, sleeps, order, every,
    batches, steps, presence, lock, cost, vma_rules.  ``scenarios``: where it shows; empty:
    wherever the operation runs.
    """

    operation: str
    about: str
    before: str
    after: str
    scenarios: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One line in words."""
        where = "; ".join(self.scenarios)
        head = f"{self.operation}{f' ({where})' if where else ''}: " if self.operation else ""
        return f"{head}{_SENTENCES[self.about](self.before, self.after)}"


def _now(before: str, after: str) -> str:
    return f"{after}; before: {before}"


def _parts(before: str, after: str) -> str:
    words = []
    if after:
        words.append(f"also {after}")
    if before:
        words.append(f"no longer {before}")
    return "; ".join(words)


_SENTENCES: Final[dict[str, Callable[[str, str], str]]] = {
    "locks": lambda b, a: f"takes {a}; before: {b}",
    "reason": lambda b, a: f"still {a}; before: {b}",
    "marks": lambda b, a: f"marks {a}; before: {b}",
    "inner": lambda b, a: f"inside: {_parts(b, a)}",
    "under": lambda b, a: f"{a}; before: {b}",
    "costs": lambda b, a: f"work: {_parts(b, a)}",
    "lines": lambda b, a: f"cache lines: {_parts(b, a)}",
    "sleeps": lambda b, a: f"sleeps for {a}; before: {b}",
    "order": _now,
    "batches": lambda b, a: f"per-CPU batches: {_parts(b, a)}",
    "every": lambda b, a: f"batches end every {a or 'never'} pages; before: {b or 'never'}",
    "steps": lambda b, a: "other steps or conditions, with the same locks, costs and order",
    "presence": _now,
    "lock": lambda b, a: f"{a}" if not b else f"{b} → {a}" if a else f"{b} is gone",
    "cost": _parts,
    "vma_rules": _now,
}


def diff(a: LockingModel, b: LockingModel) -> list[Change]:
    """Changes from ``a`` to ``b``: declarations first, then operations in their order."""
    changes = _locks(a, b)
    if a.vma_rules != b.vma_rules:
        changes.append(Change("", "vma_rules", a.vma_rules, f"VMA rules {b.vma_rules}"))
    own_a = {f"{name} {ns:g} ns" for name, ns in a.default_costs.items()}
    own_b = {f"{name} {ns:g} ns" for name, ns in b.default_costs.items()}
    if own_a != own_b:
        changes.append(Change("", "cost", _list(own_a - own_b), _list(own_b - own_a)))
    for op in PlanOp:
        if op is not PlanOp.NONE:
            changes += _operation(a, b, op)
    return changes


# -- declarations -------------------------------------------------------------------------


def _locks(a: LockingModel, b: LockingModel) -> list[Change]:
    before, after = ({lock["name"]: lock for lock in describe(m)["locks"]} for m in (a, b))
    changes = []
    for name in [*before, *(n for n in after if n not in before)]:
        old, new = before.get(name), after.get(name)
        if old is None and new is not None:
            changes.append(Change("", "lock", "", f"lock {name} added: {_lock_words(new)}"))
        elif new is None and old is not None:
            changes.append(Change("", "lock", f"lock {name} ({_lock_words(old)})", ""))
        elif old is not None and new is not None:
            if old["kind"] != new["kind"]:
                changes.append(
                    Change("", "lock", f"lock {name}: {_lock_words(old)}", _lock_words(new))
                )
                continue
            for key in ("scope", "line", "rank"):
                if old[key] != new[key]:
                    changes.append(
                        Change(
                            "", "lock", f"lock {name}: {key} {_value(old[key])}", _value(new[key])
                        )
                    )
            for key, value in new["params"].items():
                if old["params"].get(key) != value:
                    was = _value(old["params"].get(key), key)
                    changes.append(
                        Change("", "lock", f"lock {name}: {key} {was}", _value(value, key))
                    )
    return changes


def _lock_words(lock: dict[str, Any]) -> str:
    params = ", ".join(
        f"{key} {_value(value, key)}"
        for key, value in lock["params"].items()
        if value not in (0, None)
    )
    return f"{lock['kind']} per {lock['scope']}, line {lock['line']}" + (
        f" ({params})" if params else ""
    )


_FLAGS: Final = ("reader_spin", "steal", "osq", "bump_acquire", "fifo")
_CHOICES: Final = {
    "form": ("rwsem", "refcount"),
    "round": ("page", "slot", "pt_node"),
    "wait": ("spin", "sleep"),
    "range_cost": ("per_holder", "per_slot", "per_level"),
    "ancestors": ("none", "read"),
    "spin_us": ("0", "kernel"),
}


def _value(value: Any, key: str = "") -> str:
    if value is None:
        return "none"
    if key in _FLAGS:
        return "true" if value else "false"
    if key in _CHOICES and 0 <= value < len(_CHOICES[key]):
        return str(_CHOICES[key][value])
    return str(value)


# -- operations ------------------------------------------------------------------------------


def _operation(a: LockingModel, b: LockingModel, op: PlanOp) -> list[Change]:
    name = op.name.lower()
    has_a, has_b = a.entry[op] >= 0, b.entry[op] >= 0
    if not has_a and not has_b:
        return []
    if has_a != has_b:
        words = ("no program", "has a program")
        return [Change(name, "presence", words[has_a], words[has_b])]
    scenarios = [scenario for scenario in SCENARIOS if scenario.op is op]
    found: dict[tuple[str, str, str], list[str]] = {}
    for scenario in scenarios:
        for about, before, after in _compare(a, b, scenario):
            found.setdefault((about, before, after), []).append(scenario.name)
    changes = [
        Change(name, about, before, after, () if len(where) == len(scenarios) else tuple(where))
        for (about, before, after), where in found.items()
    ]
    every = _batches(a, op), _batches(b, op)
    if every[0] != every[1]:
        changes.append(Change(name, "every", _list(every[0]), _list(every[1])))
    if not changes and _text(a, op) != _text(b, op):
        changes.append(Change(name, "steps", "", ""))
    return changes


def _compare(a: LockingModel, b: LockingModel, s: Scenario) -> list[tuple[str, str, str]]:
    before, after = (walk(m, s.op, s.traits, s.sets, s.bits, s.fail) for m in (a, b))
    found = []
    old, new = _taken(before, _outer(a)), _taken(after, _outer(b))
    marks = _marks(before), _marks(after)
    if old != new:
        found.append(("locks", old + _because(before), new + _because(after)))
    elif before.reasons != after.reasons:
        found.append(("reason", new + _because(before), new + _because(after)))
    if marks[0] != marks[1]:
        found.append(("marks", *marks))
    for about, words in (("sleeps", _slept), ("under", _flushes)):
        if words(before) != words(after):
            found.append((about, words(before), words(after)))
    inner = _inner(before, _outer(a)), _inner(after, _outer(b))
    if old == new:
        moved = _order(before, _outer(a)), _order(after, _outer(b))
        changed = moved[0].keys() & moved[1].keys()
        first_ = {k: moved[0][k] for k in changed if moved[0][k] != moved[1][k]}
        if first_:
            found.append(
                (
                    "order",
                    ", ".join(f"{k} {v}" for k, v in sorted(first_.items())),
                    ", ".join(f"{k} {moved[1][k]}" for k in sorted(first_)),
                )
            )
    ends = _batch(a, s, before), _batch(b, s, after)
    for about, (first, second) in (
        ("inner", inner),
        ("costs", (before.costs, after.costs)),
        ("lines", (_touched(before), _touched(after))),
        ("batches", ends),
    ):
        gone, new_ = first - second, second - first
        if gone or new_:
            found.append((about, _counted(gone), _counted(new_)))
    return found


def _outer(model: LockingModel) -> frozenset[str]:
    """Locks that decide who waits for whom: of the address space and of VMAs, but no leaves."""
    return frozenset(
        name
        for name, kind, scope in zip(model.locks, model.lock_kind, model.lock_scope, strict=True)
        if kind != Kind.SPIN and scope in (Scope.MM, Scope.VMA)
    )


def _taken(w: Walk, outer: frozenset[str]) -> str:
    """The outer locks it takes, in order of the first time."""
    found: Counter[str] = Counter()
    for text in w.steps:
        words = text.split()
        if words[0] in ("lock", "try") and words[1] in outer:
            at = "".join(f" {word}" for word in words[3:] if word.startswith("@"))
            found[f"{words[1]}{at} for {'reading' if words[2] == 'read' else 'writing'}"] += 1
        elif words[0] == "downgrade":
            found[f"a downgrade of {words[1]}"] += 1
    refused = Counter(
        {f"{lock} for reading": n for (lock, what), n in w.locks.items() if what == "try_failed"}
    )
    taken = found - refused
    parts = [
        f"{name} {taken[name]} times" if taken[name] > 1 else name for name in found if taken[name]
    ]
    return ", ".join(parts) or "no lock of the map"


def _because(w: Walk) -> str:
    return f" (fallback {_list(w.reasons)})" if w.reasons else ""


def _marks(w: Walk) -> str:
    n = sum(count for (_, what), count in w.locks.items() if what == "mark")
    return f"{n} {'VMA' if n == 1 else 'VMAs'}" if n else "none"


def _inner(w: Walk, outer: frozenset[str]) -> Counter[str]:
    """Locks inside the outer ones: page tables, reverse maps, LRU and zone."""
    return Counter(
        {
            lock: count
            for (lock, what), count in w.locks.items()
            if lock not in outer and what in ("read", "write")
        }
    )


def _order(w: Walk, outer: frozenset[str]) -> dict[str, str]:
    """Under which outer locks each cost is spent, where that is one set throughout."""
    found: dict[str, set[str]] = {}
    for text, under in zip(w.steps, w.under, strict=True):
        if text.startswith("cost "):
            held = [lock for lock in under if lock.split()[0] in outer]
            where = f"under {', '.join(held)}" if held else "under no lock of the map"
            found.setdefault(text.split()[1], set()).add(where)
    return {name: where.pop() for name, where in found.items() if len(where) == 1}


def _batch(model: LockingModel, s: Scenario, usual: Walk) -> Counter[str]:
    """What the operation also does where it ends its CPU's batches."""
    ends = walk(model, s.op, s.traits, s.sets, s.bits, s.fail, batches=True)
    return Counter(ends.steps) - Counter(usual.steps)


def _touched(w: Walk) -> Counter[str]:
    return Counter(text.removeprefix("touch ") for text in w.steps if text.startswith("touch "))


def _slept(w: Walk) -> str:
    return _counted(w.sleeps) or "nothing"


def _flushes(w: Walk) -> str:
    """Under which locks TLB shootdowns are waited for."""
    found = [
        f"{step_} under {', '.join(under)}" if under else f"{step_} under nothing"
        for step_, under in zip(w.steps, w.under, strict=True)
        if step_.startswith("flush ")
    ]
    return _counted(Counter(found)) or "no flush"


def _counted(items: Counter[str], sort: bool = True) -> str:
    return ", ".join(
        f"{name} {count} times" if count > 1 else name
        for name, count in (sorted(items.items()) if sort else items.items())
    )


def _list(items: Iterable[object]) -> str:
    return ", ".join(map(str, sorted(map(str, items))))


# -- the code itself ---------------------------------------------------------------------------


def _body(model: LockingModel, op: PlanOp) -> range:
    entry = int(model.entry[op])
    ends = [int(e) for e in model.entry if e > entry]
    return range(entry, min(ends, default=len(model.code)))


def _batches(model: LockingModel, op: PlanOp) -> set[int]:
    rows = model.code[list(_body(model, op))]
    conditions = rows[rows[:, 0] == Op.BRANCH, A]
    return {int(n) for n in np.unique(model.cond_every[conditions]) if n}


def _text(model: LockingModel, op: PlanOp) -> list[str]:
    body = _body(model, op)
    return [
        f"{step(model, pc)} {int(model.code[pc][4]) - body.start if model.code[pc][4] >= 0 else ''}"
        for pc in body
    ]


def as_data(a: LockingModel, b: LockingModel, changes: Iterable[Change]) -> dict[str, Any]:
    """The changes as plain data (JSON of ``mmreplay models diff``)."""
    return {
        "schema": 1,
        "before": a.name,
        "after": b.name,
        "changes": [
            {
                "operation": change.operation or None,
                "about": change.about,
                "scenarios": list(change.scenarios),
                "before": change.before,
                "after": change.after,
                "text": change.text,
            }
            for change in changes
        ],
    }


__all__ = ["Change", "as_data", "diff"]
