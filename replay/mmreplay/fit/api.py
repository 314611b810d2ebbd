"""Calibration and accuracy as library calls: what ``mmreplay calibrate`` and ``accuracy`` do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from mmreplay.errors import UserError, closest
from mmreplay.fit.accuracy import Compared
from mmreplay.fit.calibrate import Calibration, Target, calibrate
from mmreplay.fit.forward import Measured, Thp, WorkloadCase, measured_points, prepare_cases
from mmreplay.fit.parameters import names_of
from mmreplay.hardware.runs import Runs, read_runs
from mmreplay.locking.model import LockingModel
from mmreplay.locking.releases import resolve_kernel
from mmreplay.machine.loader import GENERIC, load_machine, match_machine
from mmreplay.machine.profile import Machine, Topology
from mmreplay.machine.topology import cpu_arrays
from mmreplay.resources import datasets_dir, models_dir
from mmreplay.workloads.definition import Workload, list_probes, list_workloads, load_workload
from mmreplay.workloads.program import Path as Way

Progress = Callable[[str], None]
SEEDS: Final = (1, 2)
#: A directly measured number is known at least this badly.
_LEAST_SPREAD: Final = 0.05
#: What a futex wake-up tells of an rwsem's: the same path in the scheduler, another caller.
_WAKE_UPS: Final = frozenset({"wake.waker_ns", "wake.woken_ns"})
_WAKE_SPREAD: Final = 0.3
HALVES: Final = ("first", "second")


@dataclass(frozen=True)
class Prepared:
    """RUNS with the cases that simulate their points."""

    runs: Runs
    model: LockingModel
    points: tuple[Measured, ...]
    cases: dict[tuple[str, Way, int], WorkloadCase]
    notes: tuple[str, ...]

    def case(self, point: Measured) -> WorkloadCase:
        return self.cases[point.workload, point.path, point.threads]


def definition_of(name: str) -> Workload:
    """The workload that RUNS call ``name``: a shipped one."""
    if name not in [*list_workloads(), *list_probes()]:
        raise UserError(
            f'workload "{name}" is not one of the library{closest(name, list_workloads())}',
            where="RUNS",
            fix="measure workloads that ship with mmreplay, or leave it out with --only",
        )
    return load_workload(name)


def prepare(
    runs: Runs,
    *,
    only: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Generate and plan what is needed to simulate the points of ``runs``.

    ``only``: workloads to keep.  Points that no machine cost has a part in (the workload makes
    no memory operations there) are left out and named.
    """
    points = measured_points(runs)
    if only is not None:
        wanted = set(only)
        known = {p.workload for p in points}
        for name in sorted(wanted - known):
            raise UserError(
                f'no runs of "{name}"{closest(name, sorted(known))}',
                where="--only",
                fix=f"measured are {', '.join(sorted(known))}",
            )
        points = [p for p in points if p.workload in wanted]
    if not points:
        raise UserError("nothing was measured", where="RUNS", fix="run mmreplay measure first")
    model, note = resolve_kernel(str(runs.machine.get("kernel") or ""))
    # mmreplay measure switches huge pages off but where a workload asks for them
    by_system: dict[str, Thp] = {"always": "always", "never": "never"}
    thp = by_system.get(str(runs.machine.get("thp")), "madvise")
    if "thp_in_runs" in runs.machine:
        thp = "madvise"
    say = progress or (lambda _text: None)
    cases = prepare_cases(
        points,
        definition_of,
        model,
        thp=thp,
        cpus=int(runs.machine.get("cpus_allowed") or 0) or None,
        progress=lambda k, n: say(f"planning {k} of {n}"),
    )
    idle = sorted({key[0] for key, case in cases.items() if case.idle})
    notes = [note] if note else []
    notes += [f"{name}: no memory operations once it runs, left out" for name in idle]
    kept = tuple(p for p in points if p.workload not in idle)
    if not kept:
        raise UserError(
            "no run has memory operations", where="RUNS", fix="measure workloads that map or fault"
        )
    return Prepared(runs, model, kept, cases, tuple(notes))


def half_of(points: Sequence[Measured], half: str) -> list[str]:
    """Every other workload of those measured, by name: the ``first`` half has the very first.

    Probes are in neither half.
    """
    names = sorted({p.workload for p in points} - set(list_probes()))
    return names[HALVES.index(half) :: 2]


# -- calibration ------------------------------------------------------------------------------


def prior_for(runs: Runs, name: str | None) -> tuple[Machine, Topology]:
    """The profile to begin with, on the topology of the machine that was measured."""
    facts = runs.machine
    if name is not None:
        prior = load_machine(name)
    else:
        prior, _ = match_machine(facts.get("cpu_model"), facts.get("cpu_id"))
        if prior.assumed and facts.get("hypervisor") not in (None, "none"):
            guests = [m for m in map(load_machine, _shipped()) if not m.assumed]
            prior = guests[0] if guests else load_machine(GENERIC)
    topology = topology_of(facts)
    core, llc, socket = cpu_arrays(topology)
    return (
        replace(prior, cpu_core=core, cpu_llc=llc, cpu_socket=socket, topology_basis="measured"),
        topology,
    )


def _shipped() -> list[str]:
    return sorted(p.stem for p in models_dir("machines").glob("*.toml"))


def topology_of(facts: dict[str, Any]) -> Topology:
    """The topology in the provenance of RUNS, of the CPUs that the runs could use."""
    cpus = int(facts.get("cpus_allowed") or facts.get("cpus_online") or 1)
    sockets = max(1, int(facts.get("sockets") or 1))
    threads = max(1, int(facts.get("threads_per_core") or 1))
    cores = max(1, cpus // (sockets * threads))
    shared = _cpu_count(facts.get("last_level_cache_shared_by"))
    per_cache = min(cores, max(1, (shared or cpus) // threads))
    while cores % per_cache:
        per_cache -= 1
    return Topology(sockets, cores // per_cache, per_cache, threads)


def _cpu_count(text: str | None) -> int | None:
    """How many CPUs a list like ``0-3,8`` names."""
    if not text:
        return None
    count = 0
    for part in text.split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def measured_numbers(runs: Runs, machine: Machine) -> dict[str, tuple[float, float]]:
    """What probes of the machine gave directly: ``section.key`` -> (value, log-sd)."""
    known = set(names_of(machine))
    found = {}
    for probe in runs.machine.get("probes") or []:
        name, value, spread = probe["name"], float(probe["value"]), float(probe["spread"])
        if name in known and value > 0:
            least = _WAKE_SPREAD if name in _WAKE_UPS else _LEAST_SPREAD
            found[name] = (value, max(spread, least))
    return found


def with_speed(machine: Machine, runs: Runs) -> Machine:
    """Frequency by active cores as the probes measured it."""
    speeds = sorted(
        (int(p["name"].split(".")[1]), float(p["value"]))
        for p in runs.machine.get("probes") or []
        if p["name"].startswith("frequency.")
    )
    if not speeds:
        return machine
    entries = [(1, 1.0), *((n, min(1.0, v)) for n, v in speeds if n > 1)]
    return replace(
        machine,
        frequency=tuple(entries),
        frequency_basis="measured",
        frequency_source="a loop that computes, on all CPUs against alone",
    )


def calibrate_runs(
    prepared: Prepared,
    prior: Machine,
    *,
    only: Sequence[str] | None = None,
    source: str,
    seeds: Sequence[int] = SEEDS[:1],
    iterations: int = 6,
    progress: Progress | None = None,
) -> tuple[Calibration, list[Measured]]:
    """Fit ``prior`` to the points with at most as many threads as CPUs; the points used.

    Points with more threads than CPUs are for the accuracy report: what decides there is the
    scheduler, not a cost.  Probes of single operations are fitted whatever ``only`` says.
    """
    probes = set(list_probes())
    wanted = set(only) if only is not None else {p.workload for p in prepared.points} - probes
    points = [
        p for p in prepared.points if p.workload in wanted | probes and p.threads <= prior.n_cpus
    ]
    if not points:
        raise UserError(
            "no point to fit: all have more threads than CPUs, or are left out",
            where="RUNS",
            fix="measure with --threads up to the number of CPUs",
        )
    targets = [Target(prepared.case(p), p.ops_per_s, p.spread) for p in points]
    begin = with_speed(prior, prepared.runs)
    found = calibrate(
        begin,
        targets,
        measured=measured_numbers(prepared.runs, begin),
        source=source,
        seeds=seeds,
        iterations=iterations,
        progress=progress,
    )
    return replace(found, machine=replace(found.machine, fitted_on=tuple(sorted(wanted)))), points


# -- accuracy ---------------------------------------------------------------------------------


def compare(
    prepared: Prepared,
    machine: Machine,
    name: str,
    *,
    only: Iterable[str] | None = None,
    seeds: Sequence[int] = SEEDS,
) -> list[Compared]:
    """Every point of the runs beside its simulation on ``machine`` (geometric mean over seeds).

    ``name``: what the machine is called in the rows.
    """
    from concurrent.futures import ThreadPoolExecutor

    known = {p.workload for p in prepared.points}
    wanted = known - set(list_probes()) if only is None else set(only)
    points = [p for p in prepared.points if p.workload in wanted]
    cpus = int(prepared.runs.machine.get("cpus_allowed") or machine.n_cpus)

    def simulated(point: Measured) -> float:
        case = prepared.case(point)
        return float(np.exp(np.mean([np.log(case.rate(machine, seed)) for seed in seeds])))

    with ThreadPoolExecutor() as pool:
        rates = list(pool.map(simulated, points))
    return [
        Compared(
            name,
            p.workload,
            p.path,
            p.threads,
            p.placement,
            cpus,
            p.ops_per_s,
            p.spread,
            rate,
            p.workload in machine.fitted_on,
            p.rates,
            p.numbers,
        )
        for p, rate in zip(points, rates, strict=True)
    ]


def shipped_runs() -> list[tuple[str, Path]]:
    """Name and file of the measured runs that ship with the project."""
    found = sorted(datasets_dir("runs").glob("*/runs.parquet"))
    return [(path.parent.name, path) for path in found]


def held_out(name: str) -> list[Machine]:
    """The shipped profiles of a machine, each fitted on half of its workloads."""
    folder = models_dir("machines") / "heldout"
    return [
        load_machine(folder / f"{name}.{half}.toml")
        for half in HALVES
        if (folder / f"{name}.{half}.toml").exists()
    ]


def shipped_accuracy(progress: Progress | None = None) -> tuple[list[Compared], list[str]]:
    """Every shipped run against the held-out profile that was not fitted on its workload."""
    rows: list[Compared] = []
    notes: list[str] = []
    for name, path in shipped_runs():
        machines = held_out(name)
        if not machines:
            notes.append(f"{name}: no held-out profiles ship for it")
            continue
        prepared = prepare(read_runs(path), progress=progress)
        notes += [f"{name}: {note}" for note in prepared.notes]
        for machine in machines:
            fresh = {p.workload for p in prepared.points} - set(machine.fitted_on)
            fresh -= set(list_probes())
            rows += compare(prepared, machine, name, only=fresh)
    return rows, notes
