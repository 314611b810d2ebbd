"""What the trace itself says about time: the columns that drift and costs are taken from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmreplay.address_space.plan import Plan, PlanOp
from mmreplay.schema import DurationKind

if TYPE_CHECKING:
    from mmreplay.trace.store import Trace

F64 = NDArray[np.float64]

#: DESIGN: what could not be split, as a share of busy time, above which gains are refused.
UNATTRIBUTED_LIMIT = 0.20
#: IMPORT: losses above which conclusions about rates are refused, and warned about.
LOSS_LIMIT = 0.05
LOSS_WARNING = 0.001


@dataclass(frozen=True, slots=True)
class Recorded:
    """Recorded times by row of the operations table; NaN where unknown.

    ``service_ns`` and ``wait_ns`` are only given for operations whose both ends were seen.
    """

    service_ns: F64
    wait_ns: F64

    @property
    def known(self) -> NDArray[np.bool_]:
        return ~(np.isnan(self.service_ns) | np.isnan(self.wait_ns))


def recorded_times(trace: Trace) -> Recorded:
    """Service and wait of every operation of ``trace``, in the table's order."""
    seen = pl.col("duration_kind").is_in([int(DurationKind.MEASURED), int(DurationKind.ESTIMATED)])
    frame = trace.operations.select(
        service=pl.when(seen).then(pl.col("service_ns")).cast(pl.Float64).fill_null(float("nan")),
        wait=pl.when(seen).then(pl.col("wait_ns")).cast(pl.Float64).fill_null(float("nan")),
    ).collect()
    return Recorded(frame["service"].to_numpy(), frame["wait"].to_numpy())


@dataclass(frozen=True, slots=True)
class Quality:
    """How far a trace supports conclusions about rates."""

    busy_ns: int
    unattributed_ns: int
    unattributed_share: float | None  # None: the trace has no times at all
    lost_events: int
    lost_share: float


def quality(trace: Trace) -> Quality:
    """Shares of unattributed time and of lost events."""
    sums = trace.operations.select(
        pl.len().alias("rows"),
        *(
            pl.col(name).sum().fill_null(0).alias(name)
            for name in ("think_cpu_ns", "service_ns", "wait_ns", "unattributed_ns")
        ),
    ).collect()
    row = sums.row(0, named=True)
    unattributed = int(row["unattributed_ns"])
    busy = sum(int(row[n]) for n in ("think_cpu_ns", "service_ns", "wait_ns")) + unattributed
    lost = trace.header.lost_events
    seen = sum(event.samples for event in trace.header.events) or int(row["rows"])
    return Quality(
        busy_ns=busy,
        unattributed_ns=unattributed,
        unattributed_share=unattributed / busy if busy else None,
        lost_events=lost,
        lost_share=lost / (lost + seen) if lost else 0.0,
    )


def by_class(
    plan: Plan, recorded: Recorded
) -> tuple[NDArray[np.int64], NDArray[np.int64], F64, F64]:
    """Recorded times summed by plan operation.

    Returns ``(count, known, service_ns, wait_ns)``, each of shape ``(len(PlanOp),)``: all
    operations, those with known times, and the sums over the known ones.
    """
    size = max(PlanOp) + 1
    real = plan.row >= 0
    op = plan.op[real].astype(np.int64)
    row = plan.row[real]
    known = recorded.known[row]
    count = np.bincount(plan.op.astype(np.int64), minlength=size)
    n_known = np.bincount(op[known], minlength=size)
    service: Any = np.bincount(op[known], recorded.service_ns[row[known]], minlength=size)
    wait: Any = np.bincount(op[known], recorded.wait_ns[row[known]], minlength=size)
    return count.astype(np.int64), n_known.astype(np.int64), service, wait
