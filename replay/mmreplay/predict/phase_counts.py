"""What a locking model takes in each phase of the lock-count measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmreplay.address_space.plan import PlanOp
from mmreplay.address_space.planner import build_plan
from mmreplay.address_space.rules import load_rules
from mmreplay.engine import Options, simulate
from mmreplay.machine.loader import load_machine

if TYPE_CHECKING:
    from mmreplay.engine.result import Result
    from mmreplay.locking.model import LockingModel
    from mmreplay.workloads.phases import Phase

#: Lock counts do not depend on costs; any machine will do.
_MACHINE = "generic-server"


@dataclass(frozen=True, slots=True)
class PhaseCount:
    """Acquisitions of one phase, over all its operations.

    ``vma_read`` and ``mark`` are 0 in a model without a VMA lock.  ``operations``: the
    programs that ran.
    """

    read: int
    write: int
    downgrade: int
    vma_read: int
    mark: int
    operations: tuple[PlanOp, ...]


def phase_counts(phases: Mapping[str, Phase], model: LockingModel) -> dict[str, PhaseCount]:
    """Replay the phases of one group, once each, in one thread's order of time.

    A phase's own counts are those of everything up to its end less those of everything
    before it.  Phases whose operations ``model`` has no program for are left out.

    Parameters
    ----------
    phases:
        As :func:`mmreplay.workloads.phases.record` gives them: one trace.
    """
    rules = load_rules(model.vma_rules)
    machine = load_machine(_MACHINE)
    known: dict[int, tuple[PhaseCount, Result | None]] = {0: (PhaseCount(0, 0, 0, 0, 0, ()), None)}
    found = {}
    for name, phase in phases.items():
        for end in (phase.first, phase.end):
            if end not in known:
                plan = build_plan(phase.trace, rules, window=(0, end)).plan
                kinds = np.unique(plan.op)
                if (model.entry[kinds[kinds != PlanOp.NONE]] < 0).any():
                    break
                result = simulate(plan, model, machine, Options(cores=2))
                known[end] = (_totals(result), result)
        else:
            before, after = known[phase.first], known[phase.end]
            found[name] = _difference(after, before)
    return found


def _totals(result: Result) -> PhaseCount:
    locks = {lock.name: lock for lock in result.locks}
    mmap = locks.get("mmap_lock")
    vma = locks.get("vma_lock")
    return PhaseCount(
        mmap.read if mmap else 0,
        mmap.write if mmap else 0,
        mmap.downgrade if mmap else 0,
        vma.read if vma else 0,
        vma.mark if vma else 0,
        (),
    )


def _difference(
    after: tuple[PhaseCount, Result | None], before: tuple[PhaseCount, Result | None]
) -> PhaseCount:
    a, b = after[0], before[0]
    done = np.zeros(len(PlanOp), np.int64)
    for sign, (_, result) in ((1, after), (-1, before)):
        if result is not None:
            done[: len(result.op_count)] += sign * result.op_count
    return PhaseCount(
        a.read - b.read,
        a.write - b.write,
        a.downgrade - b.downgrade,
        a.vma_read - b.vma_read,
        a.mark - b.mark,
        tuple(PlanOp(int(op)) for op in np.nonzero(done)[0] if op != PlanOp.NONE),
    )
