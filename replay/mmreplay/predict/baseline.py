"""What comes before any what-if: the machine, costs of the trace, and the drift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from mmreplay.address_space.plan import Plan
from mmreplay.engine.result import Options
from mmreplay.errors import UserError
from mmreplay.locking.model import LockingModel
from mmreplay.machine.profile import Machine
from mmreplay.predict import rooms
from mmreplay.predict.calibration import LARGEST_FACTOR, Calibration, calibrate
from mmreplay.predict.checks import check_choice
from mmreplay.predict.drift import baseline_drift
from mmreplay.predict.planning import Planner, Wanted
from mmreplay.predict.prediction import Drift
from mmreplay.predict.recorded import Recorded, recorded_times
from mmreplay.predict.runner import run_all

if TYPE_CHECKING:
    from mmreplay.trace.store import Trace

Costs = Literal["trace", "machine"]

#: Windows of a large trace (how many, operations each) that the drift is measured over.
DRIFT_WINDOWS: Final = (3, 300_000)


@dataclass(frozen=True, slots=True)
class Ground:
    """What is decided before anything is planned."""

    machine: Machine
    machine_basis: str
    recorded: Recorded
    model: LockingModel | None  # of the recorded kernel; None where unknown
    cores: int | None  # that the recorded set could run on
    costs: Costs
    command: str  # the recording that would have all that is missing
    notes: tuple[str, ...]
    drift: Drift | None  # why there is none; None: it can be measured
    wanted: Wanted | None  # the plans that it is measured with


@dataclass(frozen=True, slots=True)
class Baseline:
    """The trace replayed unchanged, against its own recording."""

    drift: Drift
    calibration: Calibration | None
    notes: tuple[str, ...]

    def priced(self, plan: Plan) -> Plan:
        """``plan`` at the costs of the recording, where they are known."""
        return self.calibration.apply(plan) if self.calibration is not None else plan


def ground(
    trace: Trace, machine_name: str | None, costs: Costs | None, cores: int, *, exact: bool
) -> Ground:
    """Machine with at least ``cores`` CPUs, recorded kernel, and where costs come from."""
    if costs is not None:
        check_choice(costs, "--costs", ("trace", "machine"))
    recorded = recorded_times(trace)
    command = rooms.record_command(trace)
    here = rooms.recorded_cores(trace)
    machine, basis, notes = rooms.machine_profile(machine_name, trace, max(cores, here or 1))
    measured = bool(recorded.known.any())
    if costs == "trace" and not measured:
        raise UserError(
            "the recording has no durations to take costs from",
            where="--costs",
            fix=f"use --costs machine, or record again: {command}",
        )
    chosen: Costs = costs or ("trace" if measured else "machine")
    release = trace.header.kernel_release
    model = None
    reason = "the recording does not name its kernel"
    if release is not None:
        try:
            model, _ = rooms.kernel_model(release, "recorded kernel")
        except UserError as error:
            reason = error.problem
    drift = wanted = None
    if model is None or here is None:
        if model is not None:
            reason = "the recording does not say on how many CPUs it ran"
        drift = Drift(None, reason, release or "unknown", here or 0, trusted=False, fix=command)
        if costs == "trace":
            raise UserError(
                f"costs cannot be taken from the trace: {reason}",
                where="--costs",
                fix="use --costs machine",
            )
        chosen = "machine"
    else:
        whole = exact or len(recorded.service_ns) <= rooms.EXACT_OPS
        wanted = Wanted(model.vma_rules, None, None if whole else DRIFT_WINDOWS)
    return Ground(
        machine, basis, recorded, model, here, chosen, command, tuple(notes), drift, wanted
    )


def baseline(base: Ground, planner: Planner) -> Baseline:
    """Calibrate the costs and measure the drift."""
    if base.drift is not None:
        return Baseline(base.drift, None, base.notes)
    assert base.model is not None
    assert base.cores is not None
    assert base.wanted is not None
    model, machine, cores = base.model, base.machine, base.cores
    notes = list(base.notes)
    plans = [bundle.plan for bundle in planner.bundles(base.wanted)]
    calibration = None
    if base.costs == "trace":
        plan = max(plans, key=lambda candidate: candidate.n_ops)
        calibration = calibrate(
            plan,
            base.recorded,
            lambda alone: rooms.Simulator(alone, model).run(machine, Options(cores=1)),
        )
        plans = [calibration.apply(candidate) for candidate in plans]
        if calibration.clipped:
            notes.append(
                f"{calibration.clipped} of {calibration.classes} classes of operations took more "
                f"than {LARGEST_FACTOR:.0f} times longer or shorter than the machine profile says; "
                "their cost was cut off there."
            )
    results = run_all(
        {
            i: rooms.Simulator(plan, model).job(machine, Options(cores=cores))
            for i, plan in enumerate(plans)
        }
    )
    drift = baseline_drift(
        [(plan, results[i]) for i, plan in enumerate(plans)],
        base.recorded,
        model.name,
        cores,
        base.command,
    )
    return Baseline(drift, calibration, tuple(notes))
