"""A calibration as text, as data, and as a profile file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mmreplay.fit.calibrate import Calibration
from mmreplay.fit.forward import Measured
from mmreplay.fit.parameters import number_of
from mmreplay.hardware.runs import Runs
from mmreplay.machine.profile import Machine, Topology
from mmreplay.machine.writer import profile_text
from mmreplay.report.page import bullet, fill, table


def profile_of(
    found: Calibration, runs: Runs, topology: Topology, source: str, title: str | None
) -> str:
    """The profile file."""
    facts = runs.machine
    cpus = facts.get("cpus_allowed") or facts.get("cpus_online")
    kind = "machine" if facts.get("hypervisor") in (None, "none") else "guest"
    machine = replace(
        found.machine,
        title=title or f"{cpus}-CPU {kind}, {facts.get('cpu_model') or 'unknown CPU'}",
        assumed=False,
        cpu_model=str(facts.get("cpu_model") or ""),
        cpu_ids=(str(facts["cpu_id"]),) if facts.get("cpu_id") else (),
        notes=(
            f"fitted to {source} of {runs.created}: Linux {facts.get('kernel')}, THP"
            f" {facts.get('thp')}, hypervisor {facts.get('hypervisor')}",
        ),
    )
    comment = (
        f"Written by mmreplay calibrate from {source}.\n"
        "fitted: found through the engine; measured: given by a probe; assumed: the runs do not"
        " tell."
    )
    return profile_text(machine, topology, "as the system under test showed it", comment)


def calibration_data(
    found: Calibration, points: Sequence[Measured], notes: Iterable[str]
) -> dict[str, Any]:
    """As JSON."""
    return {
        "schema": 1,
        "common_factor": found.common,
        "before": _errors(found.before),
        "after": _errors(found.after),
        "numbers": [
            {
                "name": name,
                "value": number_of(found.machine, name).value,
                "basis": number_of(found.machine, name).basis,
                "uncertainty": spread,
                "identified": name in found.identified,
                "source": number_of(found.machine, name).source,
            }
            for name, spread in found.uncertainty.items()
        ],
        "far_from_prior": list(found.far),
        "points": [
            {
                "workload": p.workload,
                "path": p.path,
                "threads": p.threads,
                "placement": p.placement,
                "measured_ops_per_s": p.ops_per_s,
                "before": float(before),
                "after": float(after),
            }
            for p, before, after in zip(points, found.before, found.after, strict=True)
        ],
        "notes": list(notes),
    }


def _errors(ratios: Any) -> dict[str, Any]:
    off = np.abs(np.asarray(ratios) - 1)
    return {
        "n": len(off),
        "median_abs_error": float(np.median(off)),
        "p90_abs_error": float(np.quantile(off, 0.9)),
    }


def calibration_text(
    found: Calibration, points: Sequence[Measured], notes: Iterable[str], prior: Machine
) -> str:
    """For people: how well it fits, what was learnt, what was not."""
    before, after = _errors(found.before), _errors(found.after)
    names = list(found.uncertainty)
    fitted = [n for n in names if number_of(found.machine, n).basis == "fitted"]
    untold = [n for n in names if number_of(found.machine, n).basis == "assumed"]
    parts = [
        fill(
            f"{len(points)} points. Simulated against measured: median error"
            f" {before['median_abs_error']:.0%}, p90 {before['p90_abs_error']:.0%} with"
            f" {prior.name}; {after['median_abs_error']:.0%} and {after['p90_abs_error']:.0%}"
            f" fitted (of the points fitted on). All times {found.common:.2f} times those of"
            f" {prior.name}."
        ),
        table(
            ("number", "before", "fitted", "±", "told"),
            [
                (
                    name,
                    _value(number_of(prior, name).value),
                    _value(number_of(found.machine, name).value),
                    f"{found.uncertainty[name]:.0%}",
                    "by itself" if name in found.identified else "with others",
                )
                for name in sorted(
                    fitted, key=lambda n: (n not in found.identified, found.uncertainty[n])
                )
            ],
            left=(0, 4),
        ),
    ]
    untold = [name.partition(".")[2] for name in untold]
    if untold:
        parts.append(fill(f"Not told by these runs, at the prior: {', '.join(untold)}."))
    if found.far:
        parts.append(fill(f"Far from the prior, worth a look: {', '.join(found.far)}."))
    off = sorted(
        zip(points, found.after, strict=True), key=lambda pair: -abs(float(np.log(pair[1])))
    )
    parts.append(
        table(
            ("worst fitted", "path", "threads", "simulated ÷ measured"),
            [(p.workload, p.path, str(p.threads), f"{ratio:.2f}") for p, ratio in off[:8]],
            left=(0, 1),
        )
    )
    said = [bullet(note) for note in notes]
    if said:
        parts.append("\n".join(said))
    return "\n\n".join(parts)


def _value(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
