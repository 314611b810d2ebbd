"""Measured points of RUNS as cases that the engine can simulate: workload → trace → plan → rate."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import PlanOp
from mmreplay.address_space.planner import PlanBundle, build_plan
from mmreplay.address_space.rules import load_rules
from mmreplay.engine import Options, Replay
from mmreplay.errors import plural
from mmreplay.hardware.disturbance import chosen
from mmreplay.hardware.runs import POINT, Runs, spread_ratio
from mmreplay.locking.model import LockingModel
from mmreplay.machine.profile import Machine
from mmreplay.workloads.compiler import compile_workload
from mmreplay.workloads.definition import Workload
from mmreplay.workloads.generator import generate_trace
from mmreplay.workloads.program import Path

#: Operations of the simulated trace: for each thread, and at most.
OPS_PER_THREAD: Final = 20_000
MOST_OPS: Final = 500_000
#: For each thread where loops are longer than that: two rounds of 128 MiB, page by page.
LONG_LOOP_OPS: Final = 66_000
#: Simulated seconds of it at most: a workload that hardly maps need not fill it.
MOST_S: Final = 0.5
#: Two rounds of a loop that maps, touches and unmaps.
_LOOPS: Final = 4
#: Fewer operations than this for each thread say nothing of their costs.
_FEW_OPS: Final = 50
#: Spread that a point measured once is taken to have.
ONCE: Final = 0.1
Thp = Literal["never", "madvise", "always"]


@dataclass(frozen=True, slots=True)
class Measured:
    """One point of RUNS: medians over its repetitions."""

    workload: str
    path: Path
    threads: int
    placement: str
    ops_per_s: float
    spread: float  # relative interquartile range
    rates: tuple[float, ...]  # of the repetitions, in their order
    numbers: tuple[int, ...] = ()  # which repetitions they are: those of two paths are neighbours

    @property
    def repetitions(self) -> int:
        return len(self.rates)


def measured_points(runs: Runs) -> list[Measured]:
    """The points of RUNS, sorted by workload, path, threads and placement.

    Those that counted nothing are left out: there is no ratio to nothing.  Disturbed runs
    count where too few others remain (:func:`~mmreplay.hardware.disturbance.chosen`).
    """
    points: dict[tuple[str, Path, int, str], list[Mapping[str, Any]]] = {}
    for row in runs.rows:
        points.setdefault(tuple(row[name] for name in POINT), []).append(row)
    found = []
    for key in sorted(points):
        rows = chosen(points[key])
        rates = tuple(row["ops_per_s"] for row in rows)
        middle = statistics.median(rates)
        if middle > 0:
            spread = spread_ratio(rates)
            numbers = tuple(row["repetition"] for row in rows)
            found.append(Measured(*key, middle, ONCE if spread is None else spread, rates, numbers))
    return found


@dataclass(frozen=True)
class WorkloadCase:
    """A workload by a path with a number of threads, ready to be replayed on any machine.

    ``weights`` (T,): what each thread of the plan counts per operation.  ``group``: the role
    that counts most; the replay ends with its first thread, the other roles go on in circles.
    ``begin_ns``: when the first thread of that role starts, everything having been set up.
    """

    workload: str
    path: Path
    threads: int
    replay: Replay = field(repr=False)
    weights: NDArray[np.float64] = field(repr=False)
    group: int
    begin_ns: int
    idle: bool  # next to no memory operations: no cost has a part in its rate

    @property
    def label(self) -> str:
        return f"{self.workload} by {self.path}, {plural(self.threads, 'thread')}"

    def rate(self, machine: Machine, seed: int) -> float:
        """Counted operations per second of the replay.

        On as many CPUs as the threads were pinned to: what a pinned thread starts stays on its CPU.
        """
        cores = min(self.threads, machine.n_cpus)
        options = Options(cores=cores, wrap=True, group=self.group, seed=seed)
        result = self.replay.run(machine, options)
        counted = float((result.thread_begun * self.weights).sum())
        return counted * 1e9 / max(result.makespan_ns - self.begin_ns, 1)


def prepare_case(
    workload: Workload,
    path: Path,
    threads: int,
    model: LockingModel,
    *,
    thp: Thp,
    cpus: int | None = None,
    seed: int = 1,
) -> WorkloadCase:
    """Generate, plan and make ready.

    ``thp``: the measured system's transparent-huge-page mode; ``cpus``: how many of its
    CPUs the threads may run on.
    """
    program = compile_workload(workload, threads, for_ever=True).by_path(path)
    for ops in (OPS_PER_THREAD, max(OPS_PER_THREAD, LONG_LOOP_OPS)):
        most = min(ops * (program.started + 1), MOST_OPS)
        made = generate_trace(program, None, seed=seed, ops=most, duration_s=MOST_S, cpus=cpus)
        bundle = build_plan(made.trace, load_rules(model.vma_rules), huge_pages=thp)
        if _loops_end(bundle, workload.started()):
            break
    plan = bundle.plan
    # the roles go on in circles, what set them up (and what they start) happens once
    going = [
        bundle.groups.index(r) for r in made.ops if r in bundle.groups and r in workload.started()
    ]
    plan = plan._replace(
        thread_loop=np.where(np.isin(plan.thread_group, going), plan.thread_loop, -1)
    )
    per_op = np.zeros(len(bundle.groups))
    counted = np.zeros(len(bundle.groups))
    for role, ops in made.ops.items():
        if role in bundle.groups and ops:
            per_op[bundle.groups.index(role)] = made.counted[role] / ops
            counted[bundle.groups.index(role)] = made.counted[role]
    group = int(counted.argmax())
    return WorkloadCase(
        workload.name,
        path,
        threads,
        Replay(plan, model),
        per_op[plan.thread_group],
        group,
        int(plan.thread_offset_ns[plan.thread_group == group].min()),
        plan.n_ops < _FEW_OPS * program.started,
    )


def _loops_end(bundle: PlanBundle, roles: Iterable[str]) -> bool:
    """Whether each thread of ``roles`` does more than fault, at least four times on average.

    Who touches a large region and then drops it has not come to that otherwise.
    """
    plan = bundle.plan
    faults = np.isin(plan.op, [PlanOp.FAULT, PlanOp.MADVISE_POPULATE])
    before = np.concatenate([[0], np.cumsum(~faults)])
    others = np.diff(before[plan.thread_first])
    means = [
        others[plan.thread_group == bundle.groups.index(role)].mean()
        for role in roles
        if role in bundle.groups
    ]
    return min(means, default=0.0) >= _LOOPS


def prepare_cases(
    points: Iterable[Measured],
    definition: Callable[[str], Workload],
    model: LockingModel,
    *,
    thp: Thp,
    cpus: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> dict[tuple[str, Path, int], WorkloadCase]:
    """The cases of all points; placements of one point share a case."""
    keys = sorted({(p.workload, p.path, p.threads) for p in points})
    done = 0

    def prepare(key: tuple[str, Path, int]) -> WorkloadCase:
        nonlocal done
        case = prepare_case(definition(key[0]), key[1], key[2], model, thp=thp, cpus=cpus)
        done += 1
        if progress is not None:
            progress(done, len(keys))
        return case

    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(keys, pool.map(prepare, keys), strict=True))
