"""A locking model for reading: as plain data, as text, and as a listing of its steps."""

from __future__ import annotations

from typing import Any, Final

from mmreplay.address_space.plan import MarkSet, PlanOp, Trait
from mmreplay.locking.isa import (
    LINE,
    OP,
    PARAMS,
    TARGET,
    A,
    B,
    C,
    FlushScope,
    Kind,
    Mode,
    Op,
    Operand,
    RuntimeBit,
    Scope,
)
from mmreplay.locking.model import LockingModel
from mmreplay.locking.vocabulary import COUNTS

_COUNTS: Final = {int(count): name for name, count in COUNTS.items()}

_BY_KIND: Final[dict[Kind, tuple[str, ...]]] = {
    Kind.RWSEM: (
        *PARAMS[:6],
        "bumps",
        "bump_acquire",
        "owner_line",
        "bravo_slots",
        "bravo_inhibit",
    ),
    Kind.PIN: ("form", "marks_by"),
    Kind.SPIN: ("fifo",),
    Kind.SEQ: (),
    Kind.RANGE: ("bumps", "bump_acquire", "round", "wait", "range_cost", "ancestors"),
}


def describe(model: LockingModel) -> dict[str, Any]:
    """The model as plain data (JSON of ``mmreplay models show``)."""
    locks = []
    for i, name in enumerate(model.locks):
        kind = Kind(int(model.lock_kind[i]))
        values = dict(zip(PARAMS, map(int, model.lock_params[i]), strict=True))
        params: dict[str, Any] = {key: values[key] for key in _BY_KIND[kind]}
        for key in ("bumps", "marks_by"):
            if key in params:
                params[key] = model.locks[params[key]] if params[key] >= 0 else None
        if "owner_line" in params:
            line = params["owner_line"]
            params["owner_line"] = model.lines[line] if line >= 0 else None
        locks.append(
            {
                "name": name,
                "kind": kind.name.lower(),
                "scope": Scope(int(model.lock_scope[i])).name.lower(),
                "line": model.lines[int(model.lock_line[i])],
                "rank": int(model.lock_rank[i]) if model.lock_rank[i] >= 0 else None,
                "params": params,
            }
        )
    return {
        "schema": 1,
        "name": model.name,
        "title": model.title,
        "kernel": ".".join(map(str, model.kernel)) if model.kernel else None,
        "vma_rules": model.vma_rules,
        "sha256": model.sha256,
        "locks": locks,
        "operations": [op.name.lower() for op in PlanOp if model.entry[op] >= 0],
        "costs": list(model.costs),
        "own_costs_ns": dict(model.default_costs),
        "sleeps": list(model.sleeps),
        "reasons": list(model.reasons),
        "steps": len(model.code),
        "sources": list(model.sources),
        "notes": model.notes,
    }


def text(model: LockingModel) -> str:
    """The model for people."""
    data = describe(model)
    lines = [f"{data['name']}: {data['title']}"]
    lines.append(f"kernel    {data['kernel'] or 'none (a design)'}, VMA rules {data['vma_rules']}")
    for lock in data["locks"]:
        params = ", ".join(f"{k}={v}" for k, v in lock["params"].items() if v not in (0, None))
        lines.append(
            f"lock      {lock['name']}: {lock['kind']} per {lock['scope']}, line {lock['line']}"
            + (f", rank {lock['rank']}" if lock["rank"] is not None else "")
            + (f" ({params})" if params else "")
        )
    for key in ("operations", "costs", "sleeps", "reasons"):
        lines.append(f"{key:9} {', '.join(data[key]) or 'none'}")
    lines.append(f"steps     {data['steps']}")
    lines += [f"source    {source}" for source in data["sources"]]
    if data["notes"]:
        lines.append(f"notes     {' '.join(data['notes'].split())}")
    return "\n".join(lines)


def listing(model: LockingModel) -> list[str]:
    """One line per assembled step: position, step with names, target, source line."""
    starts: dict[int, str] = {
        int(model.entry[op]): op.name.lower() for op in PlanOp if model.entry[op] >= 0
    }
    out = []
    for pc in range(len(model.code)):
        if pc in starts:
            out.append(f"{starts[pc]}:")
        target = int(model.code[pc][TARGET])
        jump = f" -> {target}" if target >= 0 else ""
        out.append(f"{pc:6d}  {step(model, pc)}{jump}  [line {int(model.code[pc][LINE])}]")
    return out


def step(model: LockingModel, pc: int) -> str:
    """One step in the language's words."""
    row = model.code[pc]
    op, a, b, c = Op(int(row[OP])), int(row[A]), int(row[B]), int(row[C])
    word = op.name.lower()
    if op is Op.COST:
        by = f" * {_COUNTS[b]}" if b > 0 else ""
        return f"cost {model.costs[a]}{by}"
    if op is Op.SLEEP:
        return f"sleep {model.sleeps[a]}"
    if op is Op.COUNT:
        return f"count {model.reasons[a]}"
    if op is Op.FLUSH:
        return f"flush {FlushScope(a).name.lower()}"
    if op is Op.TOUCH:
        return f"touch {model.lines[a]}{' write' if b else ''}"
    if op is Op.EACH:
        return f"each {MarkSet(a).name.lower()}"
    if op is Op.SET:
        return f"set {_bits(a)}"
    if op is Op.BRANCH:
        return f"if {condition(model, a)}"
    if op is Op.CONTENDED:
        return f"if contended.{model.locks[a]}"
    if op in (Op.LOCK, Op.TRY, Op.UNLOCK):
        at = f" @{Operand(c).name.lower()}" if c > 0 else ""
        return f"{word} {model.locks[a]} {Mode(b).name.lower()}{at}"
    if op in (Op.DOWNGRADE, Op.MARK, Op.SNAP, Op.CHECK):
        return f"{word} {model.locks[a]}"
    return "goto" if op is Op.JUMP else word


def condition(model: LockingModel, index: int) -> str:
    """A condition in the language's words."""
    parts = [t.name.lower() for t in Trait if t.name and int(model.cond_traits_set[index]) & t]
    parts += [
        f"!{t.name.lower()}" for t in Trait if t.name and int(model.cond_traits_clear[index]) & t
    ]
    if model.cond_bits_set[index]:
        parts.append(_bits(int(model.cond_bits_set[index])))
    if model.cond_bits_clear[index]:
        parts += [f"!{bit}" for bit in _bits(int(model.cond_bits_clear[index])).split()]
    if model.cond_every[index]:
        parts.append(f"every {int(model.cond_every[index])}")
    return " ".join(parts)


def _bits(mask: int) -> str:
    names = (bit.name for bit in RuntimeBit if mask & bit)
    return " ".join(name.lower().replace("_", ".", 1) for name in names if name)
