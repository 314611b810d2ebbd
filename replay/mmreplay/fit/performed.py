"""A physically replayed application, simulated: the very operations that were performed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import Plan
from mmreplay.address_space.planner import build_plan
from mmreplay.address_space.rules import load_rules
from mmreplay.engine import Options, Replay
from mmreplay.hardware.runs import Runs, spread_ratio
from mmreplay.hardware.trace_performed import awaited, performed
from mmreplay.hardware.trace_program import TraceProgram
from mmreplay.locking.model import LockingModel
from mmreplay.locking.releases import resolve_kernel
from mmreplay.machine import extrapolated, load_machine
from mmreplay.machine.profile import Machine

if TYPE_CHECKING:
    from mmreplay.trace.header import Header

Thp = Literal["never", "madvise", "always"]
#: CPU time that performing a row takes beside its operation, ns: `row` of
#: benchmarks/fault_costs.py on the 2-CPU Zen 4 guest (a clock reading, mostly).
_ROW_NS: Final = 30


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a simulation says of a performed application.

    ``memory_share``: of the threads' CPU time, the part inside memory operations.
    ``op_count``, ``op_busy_ns`` and ``op_wait_ns`` are by
    :class:`~mmreplay.address_space.plan.PlanOp`.
    """

    makespan_s: float
    memory_share: float
    op_count: NDArray[np.int64]
    op_busy_ns: NDArray[np.int64]
    op_wait_ns: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Beside:
    """A performed application beside its simulation; medians over the repetitions.

    ``memory_share``: of the CPU time that its threads had, what was not computing.
    """

    workload: str
    path: str
    machine: str
    makespan_s: float
    spread_ratio: float | None
    memory_share: float
    simulated_makespan_s: float
    simulated_memory_share: float

    @property
    def ratio(self) -> float:
        """Simulated by measured makespan."""
        return self.simulated_makespan_s / self.makespan_s

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}

    def line(self) -> str:
        """One line for people."""
        return (
            f"simulated on {self.machine}: {self.workload} by {self.path}:"
            f" makespan {self.simulated_makespan_s:.3g} s, {self.ratio:.2f} of the measured one;"
            f" memory operations take {self.memory_share:.0%} of the CPU time,"
            f" simulated {self.simulated_memory_share:.0%}"
        )


def simulation_of(machine: str) -> Callable[[TraceProgram, Header, Runs], list[Beside]]:
    """Compares the runs of a performed application with their simulation on ``machine``.

    Raises
    ------
    UserError
        No such machine profile.
    """
    profile = load_machine(machine, option="--simulate")

    def simulate(program: TraceProgram, header: Header, runs: Runs) -> list[Beside]:
        model, _ = resolve_kernel(str(runs.machine.get("kernel") or ""))
        by_system: dict[str, Thp] = {"always": "always", "never": "never"}
        thp = by_system.get(str(runs.machine.get("thp")), "madvise")
        cores = int(runs.machine.get("cpus_allowed") or profile.n_cpus)
        found = []
        for path in dict.fromkeys(row["path"] for row in runs.rows):
            rows = [row for row in runs.rows if row["path"] == path]
            case = PerformedCase(program.by_path(path), header, model, thp=thp)
            one = case.simulate(extrapolated(profile, cores), cores)
            spans = [row["makespan_s"] for row in rows]
            cpu_s = statistics.median(row["user_s"] + row["system_s"] for row in rows)
            found.append(
                Beside(
                    workload=program.name,
                    path=path,
                    machine=profile.name,
                    makespan_s=statistics.median(spans),
                    spread_ratio=spread_ratio(spans),
                    memory_share=max(0.0, 1 - program.think_ns / 1e9 / cpu_s) if cpu_s else 0.0,
                    simulated_makespan_s=one.makespan_s,
                    simulated_memory_share=one.memory_share,
                )
            )
        return found

    return simulate


class PerformedCase:
    """A program of a physical replay, by its path, ready to be simulated on any machine.

    Threads begin when they are cloned, as they do there; those that are there from the start
    begin together.
    """

    def __init__(
        self,
        program: TraceProgram,
        header: Header,
        model: LockingModel,
        *,
        thp: Thp = "madvise",
    ) -> None:
        trace = performed(program, header)
        plan = build_plan(trace, load_rules(model.vma_rules), huge_pages=thp).plan
        plan = _after(plan, awaited(program))
        times = trace.operations.select("think_cpu_ns", "think_blocked_ns").collect()
        none = np.zeros_like(plan.thread_offset_ns)
        # begins are an order, not times: nothing of the first think time lies before the window
        self.plan = plan._replace(
            thread_offset_ns=none,
            thread_tail_cpu_ns=none,
            thread_tail_blocked_ns=none,
            think_cpu_ns=times["think_cpu_ns"].to_numpy()[plan.row] + _ROW_NS,
            think_blocked_ns=times["think_blocked_ns"].to_numpy()[plan.row],
        )
        self.replay = Replay(self.plan, model)

    def simulate(self, machine: Machine, cores: int, seed: int = 1) -> Simulated:
        """Every operation once."""
        result = self.replay.run(machine, Options(cores=cores, seed=seed))
        busy = int(result.op_busy_ns.sum())
        think = int((self.plan.think_cpu_ns - _ROW_NS).sum())
        return Simulated(
            makespan_s=result.makespan_ns / 1e9,
            memory_share=busy / (busy + think) if busy + think else 0.0,
            op_count=result.op_count,
            op_busy_ns=result.op_busy_ns,
            op_wait_ns=result.op_wait_ns,
        )


def _after(plan: Plan, edges: NDArray[np.int64]) -> Plan:
    """``plan`` with more waits: (m, 2) rows of the trace, the first comes after the second."""
    at = np.full(max(int(plan.row.max(initial=-1)), int(edges.max(initial=-1))) + 1, -1, np.int64)
    at[plan.row[plan.row >= 0]] = np.flatnonzero(plan.row >= 0)
    more = at[edges]
    more = more[(more >= 0).all(axis=1)]
    known = np.repeat(np.arange(plan.n_ops), np.diff(plan.dep_first))
    pairs = np.unique(
        np.concatenate([np.stack([known, plan.dep_op], axis=1), more]).astype(np.int64), axis=0
    )
    first = np.searchsorted(pairs[:, 0], np.arange(plan.n_ops + 1))
    return plan._replace(dep_first=first.astype(np.int64), dep_op=pairs[:, 1].copy())
