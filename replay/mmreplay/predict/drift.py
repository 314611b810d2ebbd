"""Baseline drift: the trace replayed unchanged, against its own recording.

It is computed before any what-if.  Recorded waits enter only here, as what the
simulation is compared with; they are never an input to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from mmreplay.address_space.plan import Plan, PlanOp
from mmreplay.engine.result import Result
from mmreplay.predict.prediction import Drift, KindDrift
from mmreplay.predict.recorded import Recorded, by_class

#: Outside these limits what-ifs are marked as not to be trusted.  A quarter too fast or a
#: third too slow is the same error in either direction (1 / 0.75 = 1.33), about what the
#: kernel generation factor of ±15 % and a machine's run-to-run spread of ±10–15 % explain
#: together; a larger error means that costs or waits are not those of the recording.
DRIFT_LOW: Final = 0.75
DRIFT_HIGH: Final = 4 / 3
#: A ratio of waits is given where the recorded wait is at least this share of service.
_WAIT_FLOOR: Final = 0.01
#: A drift below 1 is put down to waits where they are this share of the recorded time.
_MOSTLY_WAITING: Final = 0.5
#: Times of fewer operations than this share of a kind say nothing about the kind.
_KNOWN_FLOOR: Final = 0.05


def baseline_drift(
    parts: Sequence[tuple[Plan, Result]],
    recorded: Recorded,
    kernel: str,
    cores: int,
    fix: str,
    caveats: Sequence[str] = (),
) -> Drift:
    """Compare unchanged replays (one per window) with the recording.

    Kinds of operations without recorded times are left out on both sides and named in
    the note.  ``fix`` is the recording command that would give what is missing.
    """
    size = max(PlanOp) + 1
    count = np.zeros(size, np.int64)
    known = np.zeros(size, np.int64)
    service, wait = np.zeros(size), np.zeros(size)
    busy, waited = np.zeros(size), np.zeros(size)
    think = 0.0
    for plan, result in parts:
        n, k, s, w = by_class(plan, recorded)
        count, known, service, wait = count + n, known + k, service + s, wait + w
        busy += result.op_busy_ns[:size]
        waited += result.op_wait_ns[:size]
        think += float(plan.think_cpu_ns.sum())
    usable = known > _KNOWN_FLOOR * count
    usable[PlanOp.NONE] = False
    usable &= count > 0
    kinds = []
    left_out = []
    recorded_ns = simulated_ns = 0.0
    for op in range(size):
        if count[op] == 0 or op == PlanOp.NONE:
            continue
        name = PlanOp(op).name.lower()
        if not usable[op]:
            left_out.append(name)
            continue
        grow = count[op] / known[op]  # known operations stand for all of their kind
        rec_service, rec_wait = service[op] * grow, wait[op] * grow
        recorded_ns += rec_service + rec_wait
        simulated_ns += busy[op] + waited[op]
        kinds.append(
            KindDrift(
                op=name,
                count=int(count[op]),
                recorded_wait_ns=round(rec_wait),
                simulated_wait_ns=int(waited[op]),
                wait_ratio=(
                    float(waited[op] / rec_wait)
                    if rec_wait > _WAIT_FLOOR * (rec_service + rec_wait) and rec_wait > 0
                    else None
                ),
                recorded_service_ns=round(rec_service),
                simulated_busy_ns=int(busy[op]),
                service_ratio=float(busy[op] / rec_service) if rec_service > 0 else None,
            )
        )
    kinds.sort(key=lambda k: -(k.recorded_service_ns + k.recorded_wait_ns))
    if not kinds or recorded_ns + think <= 0:
        return Drift(
            ratio=None,
            note="the recording has no durations of operations, so there is nothing to compare",
            kernel=kernel,
            cores=cores,
            trusted=False,
            fix=fix,
        )
    ratio = (simulated_ns + think) / (recorded_ns + think)
    trusted = bool(DRIFT_LOW <= ratio <= DRIFT_HIGH)
    notes = [
        f"simulated / recorded time of operations and computing, replayed unchanged on {kernel} "
        f"and {cores} CPU{'s' if cores != 1 else ''}"
    ]
    if left_out:
        notes.append(f"without {', '.join(sorted(left_out))} (no durations recorded)")
    notes += caveats
    waited_ns = sum(kind.recorded_wait_ns for kind in kinds)
    share = waited_ns / (recorded_ns + think)
    if (
        ratio < DRIFT_LOW
        and share >= _MOSTLY_WAITING
        and sum(kind.simulated_wait_ns for kind in kinds) < waited_ns
    ):
        notes.append(
            f"{100 * share:.0f} % of the recorded time was waiting, and recording itself lengthens "
            "waits: compare with an unrecorded run"
        )
    if not trusted:
        notes.append(f"outside {DRIFT_LOW:.2f} to {DRIFT_HIGH:.2f}: do not trust the predictions")
    return Drift(
        ratio=float(ratio),
        note="; ".join(notes),
        kernel=kernel,
        cores=cores,
        kinds=tuple(kinds),
        trusted=trusted,
        fix="" if trusted else fix,
    )
