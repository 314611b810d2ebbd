"""Costs from the trace: how much an operation costs here, against the machine profile.

The machine profile says how an operation's time is split over its steps; the trace
says how long the operation took.  Per class of operations the factor

    (recorded mean service - fixed) ÷ (simulated mean service - fixed), alone on one core

goes into ``plan.scale``, so costs come from the recording and their split from the
machine.  *Fixed* is what no factor changes: accesses to lock words, shootdowns.  Means,
because the time of a class is what a replay has to keep: service has a long tail (cold
memory, host faults of a guest), and in recordings of six programs on a 2-vCPU guest the
median told between 13 % and 106 % of it.  The slowest hundredth of a class counts as its
99th percentile: single stalls are not what its operations cost.

Recorded *waits* are never used: service is what the operation would have taken
uncontended (see the time split of the trace).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import SCALE_ONE, MarkSet, Plan, PlanOp, Trait
from mmreplay.engine.result import Result
from mmreplay.predict.recorded import Recorded

#: A factor beyond these says that the class is not what the machine's costs describe.
LARGEST_FACTOR: Final = 32.0
#: Values above this quantile of a class count as the quantile.
_STALLS: Final = 0.99
#: Fewer recorded operations than this give no factor of their own.
_ENOUGH: Final = 20
#: Operations simulated alone per class.
_SAMPLE: Final = 256
#: Traits that change what an operation costs, not what it locks.
_COSTLY: Final = np.uint64(
    Trait.KERNEL_MODE
    | Trait.WRITE
    | Trait.ANON
    | Trait.FILE
    | Trait.SHMEM
    | Trait.HOLE
    | Trait.ACCESS_ERROR
    | Trait.TABLE_MISSING
    | Trait.NEEDS_IO
    | Trait.PRESENT
    | Trait.COW
    | Trait.REUSE
    | Trait.ZERO_PAGE
    | Trait.FAULT_AROUND
    | Trait.HUGE
    | Trait.HUGETLB
    | Trait.SWAP
    | Trait.STACK_GROWTH
    | Trait.STRUCTURAL
    | Trait.OVERLAPS
    | Trait.POPULATE
    | Trait.MULTI_VMA
    | Trait.NO_CHANGE
    | Trait.PAGES_PRESENT
    | Trait.FREES_TABLES
    | Trait.FAILED
)

_NONE: Final[NDArray[np.int32]] = np.zeros(0, np.int32)

Simulate = Callable[[Plan], Result]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Factors by class; ``keys`` ascending.  ``by_op[PlanOp]`` serves classes not seen."""

    keys: NDArray[np.uint64]
    factors: NDArray[np.float64]
    by_op: NDArray[np.float64]
    classes: int  # classes with a factor of their own
    clipped: int  # of those, at the limits
    covered_share: float  # operations whose class has a factor of its own

    def apply(self, plan: Plan) -> Plan:
        """``plan`` with its ``scale`` set; operations of unknown classes keep the machine's."""
        factor = self.by_op[plan.op.astype(np.int64)]
        if len(self.keys):
            keys = class_keys(plan)
            at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            factor = np.where(self.keys[at] == keys, self.factors[at], factor)
        scale = np.rint(factor * SCALE_ONE).astype(np.int32)
        return plan._replace(scale=scale)


def class_keys(plan: Plan) -> NDArray[np.uint64]:
    """The cost class of every operation: program, costly traits, magnitude of pages."""
    magnitude = np.zeros(plan.n_ops, np.uint64)
    many = plan.pages > 1
    magnitude[many] = np.minimum(np.log2(plan.pages[many]), 31).astype(np.uint64)
    op = plan.op.astype(np.uint64)
    keys: NDArray[np.uint64] = (
        (op << np.uint64(56)) | (magnitude << np.uint64(50)) | (plan.traits & _COSTLY)
    )
    return keys


def first_in_vma(plan: Plan) -> NDArray[np.bool_]:
    """(N,) whether an operation is the first, by the recording, to want its VMA's anon_vma."""

    def has(trait: Trait) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (plan.traits & np.uint64(trait)) != 0
        return found

    # as in models/locking: page faults and guards say so, calls that populate and copies do not
    populates = has(Trait.WRITE) & (has(Trait.POPULATE) | (plan.op == PlanOp.MADVISE_POPULATE))
    copies = plan.op == PlanOp.UFFD_COPY
    able = has(Trait.NEEDS_ANON_VMA) | (~has(Trait.SHARED) & (populates | copies))
    wants = np.flatnonzero(able & (plan.anon_slot >= 0))
    first = np.full(len(plan.anon_initial), np.iinfo(np.int64).max)
    np.minimum.at(first, plan.anon_slot[wants], plan.row[wants])
    out = np.zeros(plan.n_ops, np.bool_)
    out[wants] = plan.row[wants] == first[plan.anon_slot[wants]]
    return out


def alone(
    plan: Plan, rows: NDArray[np.int64], opens: NDArray[np.bool_] | None = None, scale: int = 1
) -> Plan:
    """The operations ``rows`` of ``plan`` one after the other in one thread, nothing between.

    No think time, no I/O sleep, no dependencies, all costs ``scale`` times the machine's: what
    is left is service.  ``opens`` (:func:`first_in_vma`): who of them sets up an anon_vma; the
    others find it.
    """
    count = len(rows)
    first, last = plan.mark_first[rows], plan.mark_first[rows + 1]
    lengths = last - first
    mark_first = np.zeros(count + 1, np.int64)
    np.cumsum(lengths, out=mark_first[1:])
    picked = np.repeat(first - mark_first[:-1], lengths) + np.arange(mark_first[-1])
    zeros = np.zeros(count, np.int64)
    # Only the objects that these operations mean: a replay of few costs little.
    walked, of_tables = plan.mark_vma[picked], plan.mark_set[picked] == MarkSet.TABLES
    objects, vma, mark_vma = _fewer(plan.vma[rows], np.where(of_tables, -1, walked))
    spaces, mm, child_mm = _fewer(plan.mm[rows], plan.child_mm[rows])
    slots, anon_slot, _ = _fewer(plan.anon_slot[rows])
    tables, table, mark_table = _fewer(plan.table[rows], np.where(of_tables, walked, -1))
    files, file, _ = _fewer(plan.file[rows])
    anon = plan.anon_initial[slots]
    if opens is not None:
        new = np.zeros(len(slots), np.bool_)
        new[anon_slot[opens[rows]]] = True
        anon = np.where(new, anon, np.uint8(1))
    return plan._replace(
        thread_first=np.array([0, count], np.int64),
        thread_offset_ns=np.zeros(1, np.int64),
        thread_group=np.zeros(1, np.int32),
        thread_loop=np.full(1, -1, np.int64),
        thread_tail_cpu_ns=np.zeros(1, np.int64),
        thread_tail_blocked_ns=np.zeros(1, np.int64),
        op=plan.op[rows],
        mm=mm,
        child_mm=child_mm,
        traits=plan.traits[rows],
        think_cpu_ns=zeros,
        think_blocked_ns=zeros.copy(),
        sleep_ns=zeros.copy(),
        pages=plan.pages[rows],
        vmas=plan.vmas[rows],
        tables=plan.tables[rows],
        vma=vma,
        anon_slot=anon_slot,
        table=table,
        file=file,
        first_page=plan.first_page[rows],
        last_page=plan.last_page[rows],
        vma_first_page=plan.vma_first_page[rows],
        vma_last_page=plan.vma_last_page[rows],
        scale=np.full(count, scale * SCALE_ONE, np.int32),
        row=plan.row[rows],
        mark_first=mark_first,
        mark_vma=np.where(of_tables, mark_table, mark_vma),
        mark_set=plan.mark_set[picked],
        dep_first=np.zeros(count + 1, np.int64),
        dep_op=np.zeros(0, np.int64),
        vma_mm=np.searchsorted(spaces, plan.vma_mm[objects]).astype(np.int32),
        anon_initial=anon,
        table_initial=plan.table_initial[tables],
        mm_users=plan.mm_users[spaces],
        n_files=len(files),
    )


def _fewer(
    used: NDArray[np.int32], more: NDArray[np.int32] = _NONE
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """The objects that two columns name (-1: none), and the columns renumbered."""
    both = np.concatenate([used, more])
    objects = np.unique(both[both >= 0]).astype(np.int64)
    new = np.where(both >= 0, np.searchsorted(objects, both), -1).astype(np.int32)
    return objects, new[: len(used)], new[len(used) :]


def calibrate(plan: Plan, recorded: Recorded, simulate: Simulate) -> Calibration:
    """Factors from the operations of ``plan`` with known service.

    Parameters
    ----------
    plan:
        The unchanged trace under the rules of the recorded kernel.
    recorded:
        Recorded times by row of the trace.
    simulate:
        Replays a one-thread plan on one core under the recorded kernel's model.
    """
    size = max(PlanOp) + 1
    by_op = np.ones(size)
    service = np.full(plan.n_ops, np.nan)
    real = plan.row >= 0
    service[real] = recorded.service_ns[plan.row[real]]
    usable = np.flatnonzero(~np.isnan(service) & (plan.op != PlanOp.NONE))
    keys = class_keys(plan)
    first = first_in_vma(plan)
    known: list[int] = []
    factors: list[float] = []
    clipped = covered = 0
    if len(usable):
        order = usable[np.argsort(keys[usable], kind="stable")]
        starts = np.flatnonzero(np.r_[True, np.diff(keys[order].astype(np.int64)) != 0])
        groups = np.split(order, starts[1:])
        totals = np.zeros((size, 2))
        for group in groups:
            if len(group) < _ENOUGH:
                continue
            raw = _factor(plan, group, first, service, simulate)
            if raw is None:
                continue
            factor = min(max(raw, 1 / LARGEST_FACTOR), LARGEST_FACTOR)
            clipped += factor != raw
            covered += len(group)
            known.append(int(keys[group[0]]))
            factors.append(factor)
            op = int(plan.op[group[0]])
            totals[op] += len(group) * np.log(factor), len(group)
        seen = totals[:, 1] > 0
        by_op[seen] = np.exp(totals[seen, 0] / totals[seen, 1])
    return Calibration(
        keys=np.array(known, np.uint64),
        factors=np.array(factors, np.float64),
        by_op=by_op,
        classes=len(known),
        clipped=clipped,
        covered_share=covered / max(1, plan.n_ops - plan.n_points),
    )


def _factor(
    plan: Plan,
    rows: NDArray[np.int64],
    first: NDArray[np.bool_],
    service: NDArray[np.float64],
    simulate: Simulate,
) -> float | None:
    known = service[rows]
    recorded = float(np.minimum(known, np.quantile(known, _STALLS)).mean())
    sample = _spread(rows, first)
    op = int(plan.op[rows[0]])
    means = []
    for scale in (1, 2):
        result = simulate(alone(plan, sample, first, scale))
        count = int(result.op_count[op])
        if count == 0 or recorded <= 0:
            return None
        means.append(float(result.op_busy_ns[op]) / count)
    scaled = means[1] - means[0]
    return (recorded - means[0]) / scaled + 1 if scaled > 0 else None


def _spread(rows: NDArray[np.int64], first: NDArray[np.bool_]) -> NDArray[np.int64]:
    """At most :data:`_SAMPLE` of ``rows``, with the same share of ``first`` ones."""
    count = min(len(rows), _SAMPLE)
    apart = rows[np.argsort(first[rows], kind="stable")]
    return np.sort(apart[np.arange(count) * len(rows) // count])
