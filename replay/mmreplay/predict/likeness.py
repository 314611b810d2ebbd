"""How far the replay of a generated trace is from that of the recording it was learnt from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

from mmreplay.predict.api import replay
from mmreplay.schema import OpKind

if TYPE_CHECKING:
    from mmreplay.trace.store import Trace

#: The kernels that both are replayed under: the last one before per-VMA locks that is deployed
#: widely, and one with them.
KERNELS: Final = ("linux-6.1", "linux-6.18")
_FAULTS: Final = (int(OpKind.FAULT_USER), int(OpKind.FAULT_KERNEL))


@dataclass(frozen=True)
class Likeness:
    """Generated against recorded, on ``cores`` CPUs at one machine's costs.

    ``throughput``: by kernel, operations a second until the last thread is through, generated
    by recorded less 1.  ``gain``: the same of the newer kernel's gain.  ``faults``: page faults
    by all operations, recorded and generated.
    """

    cores: int
    throughput: dict[str, float]
    gain: float
    faults: tuple[float, float]

    def line(self) -> str:
        """In words."""
        rates = ", ".join(f"{error:+.0%} under {name}" for name, error in self.throughput.items())
        was, now = self.faults
        return (
            f"replayed beside the recording on {self.cores} CPUs: throughput {rates};"
            f" gain {self.gain:+.1%}; {now:.0%} of the operations are faults ({was:.0%} recorded)"
        )

    def to_json(self) -> dict[str, object]:
        return {
            "cores": self.cores,
            "throughput_error": self.throughput,
            "gain_error": self.gain,
            "fault_share_recorded": self.faults[0],
            "fault_share": self.faults[1],
        }


def likeness(recorded: Trace, generated: Trace) -> Likeness:
    """Replay both whole, on as many CPUs as were recorded on, and compare.

    Raises
    ------
    UserError
        One of them cannot be replayed.
    """
    cores = recorded.header.machine.cpus_online or 4
    rates: list[list[float]] = []
    for trace in (recorded, generated):
        done = [replay(trace, kernel=name, costs="machine", cores=cores) for name in KERNELS]
        rates.append([one.ops / one.makespan_ns for one in done])
    (old, new), (made_old, made_new) = rates
    was, now = (_fault_share(trace) for trace in (recorded, generated))
    return Likeness(
        cores=cores,
        throughput=dict(zip(KERNELS, (made_old / old - 1, made_new / new - 1), strict=True)),
        gain=made_new / made_old / (new / old) - 1,
        faults=(was, now),
    )


def _fault_share(trace: Trace) -> float:
    faults = trace.operations.filter(pl.col("kind").is_in(_FAULTS)).select(pl.len()).collect()
    return float(faults.item()) / max(trace.rows("operations"), 1)
