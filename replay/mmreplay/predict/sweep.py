"""The grid of simulations behind one prediction, and what each row of it says."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mmreplay.engine.result import Options, Result
from mmreplay.locking.model import LockingModel
from mmreplay.machine.profile import Machine
from mmreplay.predict import gains, rooms
from mmreplay.predict.gains import KERNEL_FACTOR_SPREAD, Cell
from mmreplay.predict.prediction import Basis, Row
from mmreplay.predict.runner import Progress, run_all
from mmreplay.predict.steady import Part

Load = Literal["recorded", "saturated"]
Placement = Literal["compact", "scatter"]


@dataclass(frozen=True, slots=True)
class Side:
    """One kernel of the comparison."""

    model: LockingModel
    recorded: bool  # it is the kernel the trace was recorded on
    parts: Mapping[int, Mapping[int, Part]]  # by thread count, then window


@dataclass(frozen=True, slots=True)
class Grid:
    """What is simulated."""

    machine: Machine
    cores: Sequence[int]
    threads: Sequence[int]
    pairs: Mapping[int, Sequence[int]] | None  # threads by cores (``--threads cores``); or None
    loads: Sequence[Load]
    seeds: Sequence[int]
    placement: Placement

    def points(self) -> list[tuple[int, int, Load]]:
        """(threads, cores, load) in output order."""
        return [
            (threads, cores, load)
            for load in self.loads
            for threads in self.threads
            for cores in self.cores
            if self.pairs is None or threads in self.pairs[cores]
        ]


def same_costs(model: LockingModel, other: LockingModel, machine: Machine) -> LockingModel | None:
    """``model``'s locks with ``other``'s costs; None where their costs are the same already.

    Costs that the machine profile gives are the machine's under every kernel; only
    costs local to a model can differ.
    """
    changed = {
        name: other.default_costs[name]
        for name, value in model.default_costs.items()
        if name not in machine.costs and other.default_costs.get(name, value) != value
    }
    if not changed:
        return None
    return replace(model, default_costs={**model.default_costs, **changed})


def simulate_grid(
    old: Side, new: Side, grid: Grid, progress: Progress | None = None
) -> tuple[dict[Hashable, Cell], int, int]:
    """Every cell, by ``(side, threads, cores, load)`` with side ``"old"`` or ``"new"``.

    Also returns how many simulations and operations that took.  The kernel generation factor is
    simulated for the first window and seed: on the target, unless the target is the recorded
    kernel and the other is not.
    """
    same = old.model.sha256 == new.model.sha256
    vary_old = new.recorded and not old.recorded and not same
    vary_new = not new.recorded and not same
    alike = None if same else same_costs(new.model, old.model, grid.machine)
    idle = {
        threads: any(part.idle for part in old.parts[threads].values()) for threads in grid.threads
    }

    work = _Work(grid)

    points = grid.points()
    for threads, cores, load in points:
        # Without idle time the two loads are one simulation.
        if load == "saturated" and not idle[threads] and (threads, cores, "recorded") in points:
            continue
        for name, side in (("old", old), ("new", new)):
            if same and name == "new":
                continue
            for window, part in side.parts[threads].items():
                for seed in grid.seeds:
                    key = (name, threads, cores, load, "base", window, seed)
                    work.add(key, part, side.model, cores, load, seed)
                    if alike is not None and name == "new":
                        key = (name, threads, cores, load, "locking", window, seed)
                        work.add(key, part, alike, cores, load, seed)
            if (name == "old" and vary_old) or (name == "new" and vary_new):
                window, part = next(iter(side.parts[threads].items()))
                for kind, factor in (
                    ("cheaper", 1 - KERNEL_FACTOR_SPREAD),
                    ("dearer", 1 + KERNEL_FACTOR_SPREAD),
                ):
                    key = (name, threads, cores, load, kind, window, grid.seeds[0])
                    work.add(key, part, side.model, cores, load, grid.seeds[0], factor)
    results = work.run(progress)
    cells: dict[Hashable, Cell] = {}
    for whole, result in results.items():
        assert isinstance(whole, tuple)
        name, threads, cores, load, kind, window, seed = whole
        side = old if name == "old" else new
        cell = cells.setdefault(
            (name, threads, cores, load), Cell(side.parts[threads], load, cores=cores)
        )
        _slot(cell, kind)[window, seed] = result
    for threads, cores, load in points:
        for name in ("old", "new"):
            cells.setdefault(
                (name, threads, cores, load),
                cells[_stand_in("old" if same else name, threads, cores, load, cells)],
            )
        gains.together(cells["old", threads, cores, load], cells["new", threads, cores, load])
    return cells, work.simulations, work.ops


class _Work:
    """Simulations to do: none twice, and those of one plan and model one after the other."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._jobs: dict[rooms.Simulator, dict[Options, rooms.Job]] = {}
        self._simulators: dict[tuple[int, int], rooms.Simulator] = {}
        self._wanted: dict[Hashable, tuple[rooms.Simulator, Options]] = {}
        self.simulations = self.ops = 0

    def add(
        self,
        key: Hashable,
        part: Part,
        model: LockingModel,
        cores: int,
        load: Load,
        seed: int,
        kernel_factor: float = 1.0,
    ) -> None:
        """``key``'s result is that of ``part`` under ``model``."""
        plan = part.plan(load)
        wanted = Options(
            # Each thread has a CPU of its own then, and more of them change nothing.
            cores=min(cores, plan.n_threads),
            placement=self._grid.placement,
            load=load,
            wrap=True,
            group=part.group,
            seed=seed,
            kernel_factor=kernel_factor,
        )
        simulator = self._simulators.setdefault((id(plan), id(model)), rooms.Simulator(plan, model))
        self._wanted[key] = simulator, wanted
        jobs = self._jobs.setdefault(simulator, {})
        if wanted not in jobs:
            jobs[wanted] = simulator.job(self._grid.machine, wanted)

    def run(self, progress: Progress | None) -> dict[Hashable, Result]:
        """All results, by key."""
        jobs = {(s, o): job for s, some in self._jobs.items() for o, job in some.items()}
        done = run_all(jobs, progress)
        self.simulations = len(done)
        self.ops = sum(result.ops for result in done.values())
        return {key: done[wanted] for key, wanted in self._wanted.items()}


def _stand_in(
    name: str, threads: int, cores: int, load: str, cells: Mapping[Hashable, Cell]
) -> Hashable:
    key = (name, threads, cores, load)
    return key if key in cells else (name, threads, cores, "recorded")


def _slot(cell: Cell, kind: str) -> dict[tuple[int, int], Result]:
    return {
        "base": cell.results,
        "cheaper": cell.cheaper,
        "dearer": cell.dearer,
        "locking": cell.locking_only,
    }[kind]


def rows_of(
    old: Side,
    new: Side,
    grid: Grid,
    cells: Mapping[Hashable, Cell],
    recorded_cores: int | None,
    recorded_threads: int,
    measured: bool,
) -> list[Row]:
    """One row per kernel and point.  ``measured``: the recording has durations."""
    rows = []
    same = old.model.sha256 == new.model.sha256
    for threads, cores, load in grid.points():
        before = cells["old", threads, cores, load]
        after = cells["new", threads, cores, load]
        for side, cell in ((old, before),) if same else ((old, before), (new, after)):
            basis = _basis(side, cores, threads, load, recorded_cores, recorded_threads, measured)
            rows.append(_row(side, cell, before, side is new, cores, threads, load, basis))
    return rows


def _basis(
    side: Side,
    cores: int,
    threads: int,
    load: str,
    recorded_cores: int | None,
    recorded_threads: int,
    measured: bool,
) -> Basis:
    if recorded_cores is None or cores > recorded_cores or threads > recorded_threads:
        return "extrapolated"
    here = cores == recorded_cores and threads == recorded_threads and load == "recorded"
    return "measured" if side.recorded and here and measured else "interpolated"


def _row(
    side: Side,
    cell: Cell,
    before: Cell,
    target: bool,
    cores: int,
    threads: int,
    load: str,
    basis: Basis,
) -> Row:
    locks = side.model.locks
    shares = gains.lock_shares(cell, locks)
    charges = gains.blame(cell.results.values(), locks)
    lock, op = gains.limiting(shares, charges)
    lower, upper = gains.throughput_range(cell)
    p50, p99, p999 = gains.delay_quantiles(cell, (0.5, 0.99, 0.999))
    if target:
        ratio = gains.speedup(before, cell)
        low, high = gains.speedup_range(before, cell)
        locking = gains.speedup(before, cell, cell.locking_only) if cell.locking_only else ratio
        costs = ratio / locking if ratio is not None and locking else None
    else:
        # The kernel that gains are counted from: 1 by definition, so without a range.
        ratio, low, high, locking, costs = 1.0, None, None, 1.0, 1.0
    return Row(
        kernel=side.model.name,
        cores=cores,
        threads=threads,
        load=load,
        throughput_ops_per_s=gains.throughput(cell),
        useful_work_rate=gains.useful_work_rate(cell),
        lower=lower,
        upper=upper,
        speedup=ratio,
        speedup_lower=low,
        speedup_upper=high,
        speedup_from_locking=locking,
        speedup_from_costs=costs,
        basis=basis,
        limiting_lock=lock,
        limiting_op=op,
        delay_p50_ns=p50,
        delay_p99_ns=p99,
        delay_p999_ns=p999,
        cpu_ns_per_op=gains.cpu_ns_per_op(cell),
        busy_threads=max(part.steady for part in cell.parts.values()),
        lock_share={name: share for name, share in shares.items() if share > 0},
        blame=charges,
    )
