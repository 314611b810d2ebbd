"""The numbered invariants of a plan (docs/address-space.md), checked on any plan."""

from __future__ import annotations

import numpy as np

from mmreplay.address_space.plan import MarkSet, Plan, PlanOp, Trait
from mmreplay.address_space.planner import PlanBundle


def _owner(first: np.ndarray) -> np.ndarray:
    """Which list each entry is in."""
    return np.repeat(np.arange(len(first) - 1), np.diff(first))


def check_plan(bundle: PlanBundle) -> None:
    """Raises AssertionError with the number of what does not hold."""
    plan = bundle.plan
    _each_operation_once(bundle)
    _lists(plan)
    _waits(plan)
    _objects(plan)
    _traits(plan)
    _tables(plan)


def _each_operation_once(bundle: PlanBundle) -> None:
    plan = bundle.plan
    rows = plan.row[plan.row >= 0]
    assert len(np.unique(rows)) == len(rows), "P1: an operation is planned twice"
    first, end = bundle.window
    assert not len(rows) or (first <= rows.min() and rows.max() < end), "P1: outside the window"
    thread = _owner(plan.thread_first)
    assert len(thread) == plan.n_ops, "P2: an operation without a thread"
    assert (np.diff(plan.thread_first) > 0).all(), "P2: a thread without operations"
    same = thread[1:] == thread[:-1]
    recorded = (plan.row[1:] >= 0) & (plan.row[:-1] >= 0)
    assert (np.diff(plan.row)[same & recorded] > 0).all(), "P2: program order"
    for name in ("think_cpu_ns", "think_blocked_ns", "pages", "vmas", "tables"):
        assert (getattr(plan, name) >= 0).all(), f"P3: {name}"


def _lists(plan: Plan) -> None:
    for first, values in ((plan.mark_first, plan.mark_vma), (plan.dep_first, plan.dep_op)):
        assert (first[0], first[-1]) == (0, len(values)), "P4: lists cover their entries"
        assert (np.diff(first) >= 0).all(), "P4: lists ascend"
    op = _owner(plan.mark_first)
    same = op[1:] == op[:-1]
    assert (np.diff(plan.mark_set.astype(np.int64))[same] >= 0).all(), "P5: marks by set"
    each = (PlanOp.PROCESS_MADVISE, PlanOp.PROCESS_MADVISE_ZAP)  # one VMA stands for all
    again = (PlanOp.MADVISE_WILLNEED, PlanOp.MM_READ)
    vector = np.isin(plan.op, each + again)[op]
    tables, rewritten = (plan.mark_set == kind for kind in (MarkSet.TABLES, MarkSet.REWRITTEN))
    pairs = np.stack([op, plan.mark_vma.astype(np.int64)])
    # Of the rewritten ones only the number counts.
    for kind in (~vector & ~tables & ~rewritten, tables):
        once = pairs[:, kind]
        assert np.unique(once, axis=1).shape == once.shape, "P5: a VMA is marked once per call"
    assert (plan.vma_mm[plan.mark_vma] == plan.mm[op])[~tables].all(), "P5: marks in the own space"
    recorded = plan.row[op] >= 0  # a clone repeats what it cannot place anew
    removed = plan.mark_vma[recorded & (plan.mark_set == MarkSet.REMOVED)]
    assert len(np.unique(removed)) == len(removed), "P6: a VMA goes once"


def _waits(plan: Plan) -> None:
    thread = _owner(plan.thread_first)
    op = _owner(plan.dep_first)
    assert (thread[plan.dep_op] != thread[op]).all(), "P7: a wait for the own thread"
    # Kahn's algorithm over program order and waits: no circle
    before = np.bincount(op, minlength=plan.n_ops)
    before[1:] += thread[1:] == thread[:-1]
    order = np.argsort(plan.dep_op, kind="stable")
    waiters, start = op[order], np.searchsorted(plan.dep_op[order], np.arange(plan.n_ops + 1))
    ready = np.flatnonzero(before == 0).tolist()
    done = 0
    while ready:
        k = ready.pop()
        done += 1
        after = waiters[start[k] : start[k + 1]].tolist()
        if k + 1 < plan.n_ops and thread[k + 1] == thread[k]:
            after.append(k + 1)
        for other in after:
            before[other] -= 1
            if before[other] == 0:
                ready.append(other)
    assert done == plan.n_ops, "P8: operations wait for each other in a circle"


def _objects(plan: Plan) -> None:
    sizes = {
        "vma": len(plan.vma_mm), "anon_slot": len(plan.anon_initial),
        "table": len(plan.table_initial), "file": plan.n_files, "mm": plan.n_mms,
    }  # fmt: skip
    for name, size in sizes.items():
        values = getattr(plan, name)
        assert ((values >= -1) & (values < size)).all(), f"P9: {name} out of range"
    own = plan.vma >= 0
    assert (plan.vma_mm[plan.vma[own]] == plan.mm[own]).all(), "P9: a VMA of another space"
    fault = own & (plan.op == PlanOp.FAULT)
    low, high = plan.vma_first_page[fault], plan.vma_last_page[fault]
    page = plan.first_page[fault]
    assert ((low <= page) & (page <= high)).all(), "P10: a fault outside its VMA"
    assert (plan.first_page <= plan.last_page).all(), "P10: ranges"


def _traits(plan: Plan) -> None:
    def has(trait: Trait) -> np.ndarray:
        return (plan.traits & np.uint64(int(trait))) != 0

    kinds = sum(has(t).astype(np.int64) for t in (Trait.ANON, Trait.FILE, Trait.SHMEM))
    assert (kinds <= 1).all(), "P11: a VMA of two kinds"
    assert (plan.vma[has(Trait.HOLE)] == -1).all(), "P11: a hole has no VMA"
    cut = (has(Trait.SPLITS) | has(Trait.MERGES)) & ~has(Trait.NO_CHANGE)
    assert has(Trait.STRUCTURAL)[cut].all(), "P12: a split or merge changes the tree"
    needs = has(Trait.NEEDS_ANON_VMA)
    assert (plan.anon_slot[needs] >= 0).all(), "P12: an anon_vma bit to look at"
    installs = plan.op == PlanOp.MADVISE_GUARD
    assert (has(Trait.WRITE) | installs)[needs].all(), (
        "P12: only writes and guards want an anon_vma"
    )
    outcomes = (Trait.COW, Trait.REUSE, Trait.ZERO_PAGE, Trait.FAULT_AROUND)
    fault = plan.op == PlanOp.FAULT
    several = sum(has(t).astype(np.int64) for t in outcomes)
    assert (several[fault] <= 1).all(), "P12: one outcome of a fault"


def _tables(plan: Plan) -> None:
    missing = np.flatnonzero((plan.traits & np.uint64(int(Trait.TABLE_MISSING))) != 0)
    assert (plan.table[missing] >= 0).all(), "P13: a table to look at"
    assert (plan.table_initial[plan.table[missing]] == 0).all(), "P13: it was there before"
    thread = _owner(plan.thread_first)
    pairs = np.stack([plan.table[missing].astype(np.int64), thread[missing]])
    assert np.unique(pairs, axis=1).shape == pairs.shape, "P13: a thread misses a table once"
