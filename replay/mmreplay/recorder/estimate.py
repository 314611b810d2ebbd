"""What a recording will cost a running process: its events, counted for two seconds."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mmreplay.errors import UserError
from mmreplay.recorder.cost import EventCost
from mmreplay.trace.recording import EventSet

SAMPLE_S: Final = 2.0
#: Above this share of the process's CPU time the recording changes what it records.
HEAVY: Final = 0.10
#: What perf says of a process that slept all the time.
_NEVER_RAN: Final = "<not counted>"
#: A context switch is two switch records.
_SWITCH_EVENTS: Final = 2


@dataclass(frozen=True, slots=True)
class Estimate:
    """Rates of a process as it runs, and what recording it adds."""

    seconds: float
    cpus_used: float
    events_per_s: float
    faults_per_s: float
    cost_ns_per_event: int
    cost_source: str
    added_cpu_ratio: float  # of the CPU time that the process takes; 0 where it takes none
    bytes_per_s: float

    def to_json(self) -> dict[str, Any]:
        """As ``mmreplay record --format json`` prints it."""
        return asdict(self)


def parse_counts(text: str) -> dict[str, float]:
    """Event name to count, of ``perf stat -x,``; events that perf cannot count are left out.

    What perf has "not counted" is 0: these events never share a counter, so nobody ran.
    """
    counts = {}
    for line in text.splitlines():
        parts = line.split(",")
        if len(parts) < 3 or line.startswith("#"):
            continue
        try:
            counts[parts[2]] = 0.0 if parts[0] == _NEVER_RAN else float(parts[0])
        except ValueError:
            continue
    return counts


def project(
    counts: Mapping[str, float], events: EventSet, seconds: float, cost: EventCost
) -> Estimate:
    """The estimate from counts of ``events``, ``task-clock`` (ms) and ``context-switches``."""
    rate = sum(times * counts.get(event, 0.0) for event, times in events.counted.items()) / seconds
    rate += _SWITCH_EVENTS * counts.get("context-switches", 0.0) / seconds
    cpus = counts.get("task-clock", 0.0) / 1000 / seconds
    faults = sum(counts.get(event, 0.0) for event in events.faults) / seconds
    added = rate * cost.ns * 1e-9
    return Estimate(
        seconds,
        cpus,
        rate,
        faults,
        cost.ns,
        cost.source,
        added / cpus if cpus else 0.0,
        rate * cost.bytes,
    )


def estimate(pids: tuple[int, ...], events: EventSet, cost: EventCost) -> Estimate:
    """Count the events of running processes for two seconds; nothing is recorded meanwhile.

    Raises
    ------
    UserError
        perf cannot count them (they ended, or are not ours to look at).
    """
    with tempfile.TemporaryDirectory(prefix="mmreplay-") as folder:
        file = Path(folder) / "counts.csv"
        words = ["perf", "stat", "-x,", "-o", str(file), "-p", ",".join(map(str, pids))]
        for event in ("task-clock", "context-switches", *events.counted):
            words += events.option(event)
        done = subprocess.run(
            [*words, "--", "sleep", str(SAMPLE_S)], capture_output=True, text=True, errors="replace"
        )
        text = file.read_text(errors="replace") if file.exists() else ""
    counts = parse_counts(text)
    if "task-clock" not in counts:
        told = done.stderr.strip().splitlines()
        raise UserError(
            f"perf cannot count events there ({told[0].strip() if told else 'it says nothing'})",
            where="--pid",
            fix="check that the process runs and that you may trace it",
        )
    return project(counts, events, SAMPLE_S, cost)
