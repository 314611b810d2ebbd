"""From the counters of a run to a row of RUNS."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.hardware.loop_tables import (
    RU_MAJFLT,
    RU_MINFLT,
    RU_NIVCSW,
    RU_NVCSW,
    RU_SYSTEM_S,
    RU_SYSTEM_US,
    RU_USER_S,
    RU_USER_US,
    Count,
)
from mmreplay.hardware.runner import RunAnswer, describe_error
from mmreplay.schema import RUNS
from mmreplay.workloads.program import Kind, Op, Program, ThreadField

_PER_S: Final = {
    "touch": Op.TOUCH,
    "read": Op.READ,
    "mmap": Op.MMAP,
    "munmap": Op.MUNMAP,
    "mprotect": Op.MPROTECT,
    "madvise": Op.MADVISE,
    "mremap": Op.MREMAP,
    "brk": Op.BRK,
    "spawn": Op.SPAWN,
    "fork": Op.FORK,
}
#: A run in which more than this share of the calls fail is no measurement of the workload.
_MOST_FAILED: Final = 0.01


def failure(program: Program, answer: RunAnswer) -> str:
    """Why a run that went through says nothing about its workload, or empty."""
    failed, missed = (int(answer.total[:, c].sum()) for c in (Count.FAILED, Count.MISSED))
    done = int(answer.total[:, Count.DONE : Count.DONE + len(Op)].sum())
    if failed > _MOST_FAILED * (done + failed):
        row, error = next(pair for pair in answer.errors.tolist() if pair[1])
        return (
            f"{failed} of {done + failed} operations failed: {describe_error(program, row, error)}"
        )
    if missed > _MOST_FAILED * (done + missed):
        return f"{missed} accesses met no accessible page: see the protections of its regions"
    return ""


def jain(rates: NDArray[np.float64]) -> float:
    """Jain's fairness index, (Σx)² / (n Σx²): 1 all equal, 1/n one has it all.

    R. Jain, D. Chiu, W. Hawe, DEC-TR-301 (1984).
    """
    squares = float((rates**2).sum())
    return float(rates.sum()) ** 2 / (len(rates) * squares) if squares else 1.0


def figures(program: Program, answer: RunAnswer) -> dict[str, Any]:
    """The columns of RUNS that a run gives.

    Rates of threads that are there from the start are over each one's own window; what
    spawned threads and forked processes did is over the mean window.
    """
    kinds, roles = (program.threads[:, c] for c in (ThreadField.KIND, ThreadField.ROLE))
    started = kinds == Kind.STARTED
    window_s = answer.window_ns / 1e9
    mean_s = float(window_s[started].mean())
    counts = answer.counts

    def rates(column: int) -> NDArray[np.float64]:
        own = np.where(started, window_s, mean_s)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(own > 0, counts[:, column] / own, 0.0)

    counted = rates(Count.OPS)
    by_role = [counted[started & (roles == role)] for role in np.unique(roles[started])]
    by_role = [role for role in by_role if role.any()] or [np.zeros(1)]
    each = np.concatenate(by_role)
    usage = answer.usage[started].sum(axis=0)
    children = counts[~started].sum(axis=0)
    return {
        "window_s": mean_s,
        "ops": int(counts[:, Count.OPS].sum()),
        "ops_per_s": float(counted.sum()),
        "fairness": min(jain(role) for role in by_role),
        "thread_min_per_s": float(each.min()),
        "thread_max_per_s": float(each.max()),
        **{f"{name}_per_s": float(rates(Count.DONE + op).sum()) for name, op in _PER_S.items()},
        "minor_faults": int(usage[RU_MINFLT] + children[Count.MINOR_FAULTS]),
        "major_faults": int(usage[RU_MAJFLT] + children[Count.MAJOR_FAULTS]),
        "user_s": float(usage[RU_USER_S] + usage[RU_USER_US] / 1e6),
        "system_s": float(usage[RU_SYSTEM_S] + usage[RU_SYSTEM_US] / 1e6),
        "switches": int(usage[RU_NVCSW] + children[Count.SWITCHES]),
        "preemptions": int(usage[RU_NIVCSW] + children[Count.PREEMPTIONS]),
        "failed_calls": int(counts[:, Count.FAILED].sum()),
        "missed_accesses": int(counts[:, Count.MISSED].sum()),
        "other_cpu_s": answer.other_cpu_s,
        "steal_s": answer.steal_s,
        **{
            column.name: answer.vmstat.get(column.name.removeprefix("vmstat_"))
            for column in RUNS.columns
            if column.name.startswith("vmstat_")
        },
    }
