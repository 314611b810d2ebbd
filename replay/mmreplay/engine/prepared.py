"""A plan and a model made ready for the compiled loop, once for any number of replays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import MarkSet, Plan, PlanOp
from mmreplay.engine.layout import (
    CLASS_ANON,
    CLASS_FILE,
    CLASS_MM,
    CLASS_TABLE,
    CLASS_VMA,
    XF,
)
from mmreplay.engine.pages import Pages, pages_of
from mmreplay.engine.setup import SCOPES, Analysis, analyse, line_scopes, object_scope
from mmreplay.engine.specialise import (
    BIT_SCOPE,
    Code,
    Emitter,
    Numbers,
    pack,
    trait_masks,
)
from mmreplay.locking.isa import Kind, RuntimeBit, Scope
from mmreplay.locking.model import LockingModel

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

_CLASS: Final = {
    CLASS_MM: Scope.MM,
    CLASS_VMA: Scope.VMA,
    CLASS_TABLE: Scope.TABLE,
    CLASS_FILE: Scope.FILE,
    CLASS_ANON: Scope.ANON_ROOT,
}


@dataclass(frozen=True)
class Prepared:
    """What the loop walks; nothing in it changes during a replay."""

    plan: Plan
    model: LockingModel
    analysis: Analysis
    kinds: I64  # PlanOp of each dense number
    size: dict[Scope, int]  # objects of each scope
    shared: dict[Scope, int]  # how many of them are shared: these have the lowest numbers
    numbers: Numbers
    n_instances: int
    n_lines: int
    n_values: int
    code: Code
    rows: I64  # (instructions, XF), addresses not yet bound
    longs: I64  # (8 * N,) packed operations; behind them the page columns
    mark_vma: I32
    bits: NDArray[np.uint8]  # runtime bits at the start
    tails: I64  # (T, 2) tail think: on CPU, blocked
    loops: I64  # (T,) -2: without operations
    pages: Pages


def prepare_replay(plan: Plan, model: LockingModel) -> Prepared:
    """Number objects by whether they are shared, specialise the programs, pack the operations."""
    analysis = analyse(plan, model)
    size = {scope: len(flags) for scope, flags in analysis.shared.items()}
    shared = {scope: int(flags.sum()) for scope, flags in analysis.shared.items()}
    new = {scope: _renumbered(analysis.shared[scope], shared[scope]) for scope in SCOPES}
    numbers, n_instances, n_lines, n_values = _count(model, size, shared)
    emitter = Emitter(model, numbers, many_threads=plan.n_threads > 1)
    pages = pages_of(plan, model, analysis, new[Scope.MM])
    longs = _operations(plan, model, analysis, emitter, new, shared, pages)
    loops = plan.thread_loop.astype(np.int64)
    loops[np.diff(plan.thread_first) == 0] = -2  # without operations: its end ends nothing
    initial = {
        RuntimeBit.VMA_ANON_VMA: plan.anon_initial,
        RuntimeBit.VMA_DEAD: np.zeros(len(plan.vma_mm), np.uint8),
        RuntimeBit.TABLE_PRESENT: plan.table_initial,
    }
    bits = np.zeros(sum(len(part) for part in initial.values()), np.uint8)
    for bit, part in initial.items():
        bits[numbers.bit[bit] + new[BIT_SCOPE[bit]]] = part
    return Prepared(
        plan=plan,
        model=model,
        analysis=analysis,
        kinds=analysis.kinds,
        size=size,
        shared=shared,
        numbers=numbers,
        n_instances=n_instances,
        n_lines=n_lines,
        n_values=n_values,
        code=emitter.code,
        rows=np.array(emitter.code.rows, np.int64).reshape(-1, XF),
        longs=longs,
        mark_vma=_marks(plan, new),
        bits=bits,
        tails=np.stack([plan.thread_tail_cpu_ns, plan.thread_tail_blocked_ns], axis=1),
        loops=loops,
        pages=pages,
    )


def _marks(plan: Plan, new: dict[Scope, I32]) -> I32:
    """New numbers of what EACH walks: VMAs as they are, page-table pages as -2 - number."""
    tables = plan.mark_set == MarkSet.TABLES
    out = np.empty(len(plan.mark_vma), np.int32)
    out[~tables] = new[Scope.VMA][plan.mark_vma[~tables]]
    out[tables] = -2 - new[Scope.TABLE][plan.mark_vma[tables]]
    return out


def _renumbered(shared: NDArray[np.bool_], n_shared: int) -> I32:
    """New number of each object: the shared ones first, each part in order."""
    rank = np.cumsum(shared, dtype=np.int64)
    out = np.where(shared, rank - 1, n_shared + np.arange(len(shared)) - rank)
    return out.astype(np.int32)


def _count(
    model: LockingModel, size: dict[Scope, int], shared: dict[Scope, int]
) -> tuple[Numbers, int, int, int]:
    instance, value = [], []
    instances = values = 0
    for kind, scope in zip(model.lock_kind.tolist(), model.lock_scope.tolist(), strict=True):
        instance.append(instances)
        value.append(values)
        if kind != Kind.SEQ:
            instances += shared[object_scope(scope)]
        if kind in (Kind.SEQ, Kind.PIN):
            values += size[object_scope(scope)]
    line, lines = [], 0
    for scope in line_scopes(model):
        line.append(lines)
        lines += shared[scope]
    bit, bits = {}, 0
    for runtime_bit, scope in BIT_SCOPE.items():
        bit[runtime_bit] = bits
        bits += size[scope]
    return Numbers(instance, line, value, bit), instances, lines, values


def _operations(
    plan: Plan,
    model: LockingModel,
    analysis: Analysis,
    emitter: Emitter,
    new: dict[Scope, I32],
    shared: dict[Scope, int],
    pages: Pages,
) -> I64:
    first_private = np.array([shared[_CLASS[c]] for c in sorted(_CLASS)], np.int64)
    masks = np.array(trait_masks(model), np.int64)
    longs = np.empty(8 * plan.n_ops + pages.columns.size, np.int64)
    longs[8 * plan.n_ops :] = pages.columns.ravel()
    dense = np.zeros(len(PlanOp), np.int64)
    dense[analysis.kinds] = np.arange(len(analysis.kinds))
    keys = np.zeros(1 << 10, np.int64)
    slots = np.full(4 * len(keys), -1, np.int32)
    emitted: dict[int, int] = {}
    starts = np.zeros(0, np.int64)
    at = 0
    while True:
        stopped, count = pack(
            at, plan.op, plan.traits, masks, plan.think_cpu_ns, plan.think_blocked_ns, plan.pages,
            plan.scale, plan.vmas, plan.tables, plan.mm, plan.child_mm, plan.vma, plan.table,
            plan.file, plan.anon_slot, plan.dep_first, analysis.has_dependents.view(np.uint8),
            analysis.touches.view(np.uint8),
            new[Scope.MM], new[Scope.VMA], new[Scope.TABLE], new[Scope.FILE],
            new[Scope.ANON_ROOT], first_private, dense, starts, len(starts), keys, slots,
            longs.view(np.int32), longs,
        )  # fmt: skip
        if stopped < 0:  # all anew, with more room
            keys = np.zeros(8 * len(keys), np.int64)
            slots = np.full(4 * len(keys), -1, np.int32)
            starts, at = starts[:0], 0
        elif stopped < plan.n_ops:
            found = keys[:count].tolist()
            for key in found[len(starts) :]:
                if key not in emitted:
                    emitted[key] = emitter.emit(key)
            starts, at = np.array([emitted[key] for key in found], np.int64), stopped
        else:
            return longs
