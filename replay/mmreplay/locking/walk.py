"""Follows one operation's program with nobody else around: what it takes, in which order.

A look at the programs alone, without plan, machine and engine: an uncontended operation's
acquisitions are decided by its traits, the runtime bits and the sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmreplay.address_space.plan import MarkSet, PlanOp, Trait
from mmreplay.locking.isa import OP, TARGET, A, B, C, Kind, Mode, Op, Operand, RuntimeBit
from mmreplay.locking.model import LockingModel
from mmreplay.locking.view import step

NO_TRAITS, NO_BITS = Trait(0), RuntimeBit(0)

#: Steps that say nothing by themselves.
_SILENT = frozenset({Op.JUMP, Op.BRANCH, Op.EACH, Op.END, Op.DONE, Op.SET})


class EndlessError(RuntimeError):
    """The program did not end within the steps allowed: a bug of the model or the check."""


@dataclass
class Walk:
    """What one operation did: counts by (lock, what), reasons, costs, bits at its end.

    ``steps``: the words of its steps in order, ``under``: the locks held at each.
    """

    locks: Counter[tuple[str, str]] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    costs: Counter[str] = field(default_factory=Counter)
    sleeps: Counter[str] = field(default_factory=Counter)
    bits: RuntimeBit = NO_BITS
    held: list[tuple[int, int, int]] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    under: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def mmap_lock(self) -> tuple[int, int, int]:
        """Acquisitions of mmap_lock: read, write, downgrade."""
        read, write, down = (
            self.locks["mmap_lock", what] for what in ("read", "write", "downgrade")
        )
        return read, write, down

    @property
    def vma_lock(self) -> tuple[int, int]:
        """Acquisitions for reading, and marks that did work."""
        return self.locks["vma_lock", "read"], self.locks["vma_lock", "mark"]


def walk(
    model: LockingModel,
    op: PlanOp,
    traits: Trait = NO_TRAITS,
    sets: Mapping[MarkSet, int] | None = None,
    bits: RuntimeBit = NO_BITS,
    fail: frozenset[str] = frozenset(),
    wanted: frozenset[str] = frozenset(),
    limit: int = 10_000,
    batches: bool = False,
) -> Walk:
    """Walk the program of ``op``.

    Parameters
    ----------
    sets:
        Elements of each set that ``each`` walks; each is another VMA.
    bits:
        Runtime bits that are set when the operation begins.
    fail:
        Locks whose ``try`` and sequences whose ``check`` fail the first time.
    wanted:
        Locks that somebody else waits for: those are contended.
    batches:
        ``every N`` holds each time: what an operation does that ends a per-CPU batch.

    Raises
    ------
    ValueError
        The model has no program for ``op``.
    EndlessError
        More than ``limit`` steps.
    """
    sizes = dict(sets or {})
    out = Walk(bits=bits & ~RuntimeBit.OP_TRIED)
    refused = set(fail)
    left = 0
    serial = 0  # every element of every set is another VMA
    marked: set[int] = set()
    pc = int(model.entry[op])
    if pc < 0:
        raise ValueError(f"{model.name} has no program for {op.name.lower()}")
    for _ in range(limit):
        row = model.code[pc]
        kind, a, b, target = Op(int(row[OP])), int(row[A]), int(row[B]), int(row[TARGET])
        nxt = pc + 1
        if kind not in _SILENT:
            out.steps.append(step(model, pc))
            out.under.append(_names(model, out))
        if kind is Op.DONE:
            assert not out.held, f"{op.name} ends holding {out.held}"
            return out
        if kind is Op.JUMP:
            nxt = target
        elif kind is Op.COST:
            out.costs[model.costs[a]] += 1
        elif kind is Op.SLEEP:
            assert not _spinning(model, out), "sleeps under a spin lock"
            out.sleeps[model.sleeps[a]] += 1
        elif kind is Op.COUNT:
            out.reasons[model.reasons[a]] += 1
        elif kind in (Op.TRY, Op.CHECK) and model.locks[a] in refused:
            refused.discard(model.locks[a])
            out.locks[model.locks[a], "try_failed" if kind is Op.TRY else "moved"] += 1
            nxt = target
        elif kind is Op.CONTENDED:
            nxt = target if model.locks[a] in wanted else nxt
        elif kind in (Op.LOCK, Op.TRY):
            out.locks[model.locks[a], Mode(b).name.lower()] += 1
            out.held.append((a, int(row[C]), b))
        elif kind is Op.UNLOCK:
            out.held.remove((a, int(row[C]), b))
        elif kind is Op.DOWNGRADE:
            out.locks[model.locks[a], "downgrade"] += 1
            at = next(i for i, (lock, _, _) in enumerate(out.held) if lock == a)
            out.held[at] = (a, out.held[at][1], int(Mode.READ))
        elif kind is Op.BRANCH:
            nxt = target if _holds(model, a, traits, out.bits, batches) else nxt
        elif kind is Op.EACH:
            left = sizes.get(MarkSet(a), 0)
            nxt = nxt if left else target
            serial += 1
        elif kind is Op.END:
            left -= 1
            serial += 1
            nxt = target if left else nxt
        elif kind is Op.MARK:
            if serial not in marked:
                marked.add(serial)
                out.locks[model.locks[a], "mark"] += 1
        elif kind is Op.SET:
            out.bits |= RuntimeBit(a)
        pc = nxt
    raise EndlessError(f"{model.name}: {op.name.lower()} does not end")


def _names(model: LockingModel, out: Walk) -> tuple[str, ...]:
    """Locks held, as the language writes them."""
    return tuple(
        f"{model.locks[lock]} {Mode(mode).name.lower()}"
        + (f" @{Operand(operand).name.lower()}" if operand > 0 else "")
        for lock, operand, mode in out.held
    )


def _holds(model: LockingModel, index: int, traits: Trait, bits: RuntimeBit, batches: bool) -> bool:
    if model.cond_every[index] and not batches:
        return False  # the common case between two batches
    wanted, refused = int(model.cond_traits_set[index]), int(model.cond_traits_clear[index])
    on, off = int(model.cond_bits_set[index]), int(model.cond_bits_clear[index])
    return (
        int(traits) & wanted == wanted
        and int(traits) & refused == 0
        and int(bits) & on == on
        and int(bits) & off == 0
    )


def _spinning(model: LockingModel, out: Walk) -> bool:
    return any(model.lock_kind[lock] == Kind.SPIN for lock, _, _ in out.held)
