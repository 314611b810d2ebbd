"""Page numbers for the compiled loop, where range locks or ``flush touched`` ask for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import Plan
from mmreplay.engine.kinds.range import LAST_PAGE, LEVEL_BITS, Cost
from mmreplay.engine.setup import PAGE_BITS, Analysis, P, distinct, page_key
from mmreplay.locking.isa import OP, A, C, Kind, Op, Operand
from mmreplay.locking.model import LockingModel

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Pages:
    """Page numbers of the operations, and the keys and tables that go by them."""

    columns: I64  # (N, 4) as layout.G_*; (0, 4) where the model asks for no page
    touch_keys: I64  # as Analysis.touch_keys, with the loop's numbers of address spaces
    node_places: int  # size of the hash table of page-table nodes with a line, a power of two


def pages_of(plan: Plan, model: LockingModel, analysis: Analysis, new_mm: I32) -> Pages:
    """``new_mm``: the loop's number of each address space."""
    ranges = np.flatnonzero(model.lock_kind == Kind.RANGE)
    touches = bool(analysis.touches.any())
    columns = np.zeros((0, 4), np.int64)
    if len(ranges) or touches:
        columns = np.stack(
            [plan.first_page, plan.last_page, plan.vma_first_page, plan.vma_last_page], axis=1
        )
    keys = analysis.touch_keys
    keys = np.sort(page_key(new_mm[keys >> PAGE_BITS], keys & ((1 << PAGE_BITS) - 1)))
    nodes = sum(_nodes(plan, model, int(lock)) for lock in ranges)
    places = 1
    while places < 2 * nodes:
        places *= 2
    return Pages(columns, keys, places)


def _nodes(plan: Plan, model: LockingModel, lock: int) -> int:
    """At most so many page-table nodes have a line because of a range lock."""
    if model.lock_params[lock][P["range_cost"]] != Cost.PER_LEVEL:
        return 0
    code = model.code
    mine = np.isin(code[:, OP], (Op.LOCK, Op.TRY)) & (code[:, A] == lock)
    found = 0
    for operand in np.unique(code[mine, C]).tolist():
        first, last = spans(plan, operand)
        level = levels(first, last)
        node = (plan.mm.astype(np.int64) << 40) | (level << 37) | (first >> (LEVEL_BITS * level))
        found += len(distinct(node)) + int((plan.child_mm >= 0).sum())
    return found


def spans(plan: Plan, operand: int) -> tuple[I64, I64]:
    """First and last page of every operation's range (kinds.range.span for a whole plan)."""
    first, last = plan.first_page, np.maximum(plan.first_page, plan.last_page)
    if operand == Operand.PAGE:
        return first, first
    if operand >= Operand.ALL:
        return np.zeros_like(first), np.full_like(first, LAST_PAGE)
    if operand in (Operand.VMA, Operand.VMA1):
        more = int(operand == Operand.VMA1)
        known = plan.vma_first_page >= 0
        first = np.where(known, np.maximum(0, plan.vma_first_page - more), first)
        last = np.where(known, np.minimum(LAST_PAGE, plan.vma_last_page + more), last)
    return first, last


def levels(first: I64, last: I64) -> I64:
    """Level of the covering page-table node of each range (kinds.range.covering_level)."""
    bits = np.frexp((first ^ last).astype(np.float64))[1].astype(np.int64)
    return np.maximum(1, -(-bits // LEVEL_BITS))
