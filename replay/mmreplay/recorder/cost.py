"""What one recorded event costs the recorded thread, and its measurement on this machine.

The same loops run bare and under each event set, in turns; the least CPU time of many rounds is
compared, because other programs only ever add to it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

from mmreplay.errors import UserError
from mmreplay.recorder import loops
from mmreplay.recorder.here import perfs_reason
from mmreplay.resources import cache_base
from mmreplay.trace.recording import EventSet, Has, Recording, choose_events

#: 0.86 to 0.94 us by switching recording on and off (2-vCPU EPYC guest, 6.18, perf 6.1).
DEFAULT_NS: Final = 900
#: 48 (software event) to 104 (MMAP2) bytes of the same recordings.
DEFAULT_BYTES: Final = 90
_FAULT_ROUNDS, _PAIR_ROUNDS = 10, 10
_LOOPS: Final = Path(loops.__file__)


@dataclass(frozen=True, slots=True)
class EventCost:
    """Cost of one recorded event, and where the number comes from."""

    ns: int
    bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class SetCost:
    """One event set on the two loops; times in ns per fault, or per mmap and munmap."""

    name: str
    fault_ns: float
    fault_added_ns: float
    events_per_fault: float
    bytes_per_fault: float
    pair_ns: float
    pair_added_ns: float
    events_per_pair: float
    bytes_per_pair: float
    event_ns: float | None  # None: the set adds nothing, or less than nothing


@dataclass(frozen=True, slots=True)
class Calibration:
    """What :func:`calibrate` found."""

    day: str
    kernel: str
    cpu: str
    perf: str
    bare_fault_ns: float
    bare_pair_ns: float
    event_ns: int
    event_bytes: int
    sets: list[SetCost]

    def to_json(self) -> dict[str, Any]:
        """As ``mmreplay record --calibrate --format json`` prints it."""
        return {"schema": 1, **asdict(self)}


def machine() -> tuple[str, str]:
    """Kernel release and CPU model: what a cost holds for."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return platform.release(), model


def _store() -> Path:
    return cache_base() / "event-cost.json"


def calibrated_cost() -> EventCost | None:
    """The cost that ``--calibrate`` last measured on this kernel and CPU; None where it did not."""
    kernel, cpu = machine()
    try:
        kept = json.loads(_store().read_text())
        if (kept["kernel"], kept["cpu"]) == (kernel, cpu):
            ns, size = int(kept["event_ns"]), int(kept["event_bytes"])
            return EventCost(ns, size, f"measured on this machine on {kept['day']}")
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def known_cost() -> EventCost:
    """:func:`calibrated_cost`, else the default."""
    return calibrated_cost() or EventCost(
        DEFAULT_NS, DEFAULT_BYTES, "assumed; mmreplay record --calibrate measures it here"
    )


def keep(calibration: Calibration) -> None:
    """Remember the cost for later estimates; a cache that cannot be written is left alone."""
    file = _store()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(calibration.to_json()))
        beside.replace(file)
    except OSError:
        pass


def sets(has: Has) -> dict[str, tuple[EventSet, bool]]:
    """The event sets of ``mmreplay record`` by name, and whether with stacks."""
    return {
        "light": (choose_events(has, light=True), False),
        "default": (choose_events(has), False),
        "dependencies": (choose_events(has, wakeups=True), False),
        "stacks": (choose_events(has), True),
    }


def calibrate(
    has: Has,
    rounds: int,
    progress: Callable[[str], None] | None = None,
    limit_s: float | None = None,
) -> Calibration:
    """Measure the cost of an event with ``rounds`` turns of all sets.

    No turn begins after ``limit_s``: perf takes seconds to open the events of a set where other
    programs keep the CPUs busy (each waits for all CPUs).

    Raises
    ------
    UserError
        perf cannot record here.
    """
    if shutil.which("perf") is None:
        raise UserError(
            "perf is not installed", where="--calibrate", fix="install linux-perf or linux-tools"
        )
    chosen = sets(has)
    bare: list[dict[str, float]] = []
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    begin = time.monotonic()

    def say(text: str) -> None:
        if progress is not None:
            progress(text)

    with tempfile.TemporaryDirectory(prefix="mmreplay-") as folder:
        files = {name: Path(folder) / f"{name}.data" for name in chosen}
        for turn in range(rounds):
            if turn and limit_s is not None and time.monotonic() - begin > limit_s:
                say(f"{turn} of {rounds} turns took {time.monotonic() - begin:.0f} s: no more")
                break
            say(f"turn {turn + 1} of {rounds}: not recorded")
            bare.append(_run([]))
            for name, (events, stacks) in chosen.items():
                say(f"turn {turn + 1} of {rounds}: {name}")
                recording = Recording(events, ("--",), stacks=stacks, output=str(files[name]))
                runs[name].append(_run(recording.argv()))
        counts = {}
        for name, (events, stacks) in chosen.items():
            say(f"counting events: {name}")
            counts[name] = _per_operation(events, stacks, files[name])
    base = _least(bare)
    found = []
    for name, one in runs.items():
        least = _least(one)
        added = {key: least[key] - base[key] for key in base}
        fault, pair = counts[name]
        count = fault[0] + pair[0]
        total = added["fault_ns"] + added["pair_ns"]
        found.append(
            SetCost(
                name,
                round(least["fault_ns"], 1),
                round(added["fault_ns"], 1),
                round(fault[0], 2),
                round(fault[1], 1),
                round(least["pair_ns"], 1),
                round(added["pair_ns"], 1),
                round(pair[0], 2),
                round(pair[1], 1),
                round(total / count, 1) if total > 0 else None,
            )
        )
    default = next(one for one in found if one.name == "default")
    if default.event_ns is None:
        raise UserError(
            "the loops were not slower while recorded: the machine is too busy to measure on",
            where="--calibrate",
            fix="run it again when less else runs",
        )
    fault, pair = counts["default"]
    kernel, cpu = machine()
    return Calibration(
        date.today().isoformat(),
        kernel,
        cpu,
        _perf_version(),
        round(base["fault_ns"], 1),
        round(base["pair_ns"], 1),
        round(default.event_ns),
        round((fault[1] + pair[1]) / (fault[0] + pair[0])),
        found,
    )


def _run(
    words: list[str], fault_rounds: int = _FAULT_ROUNDS, pair_rounds: int = _PAIR_ROUNDS
) -> dict[str, float]:
    program = [sys.executable, "-S", "-E", str(_LOOPS), str(fault_rounds), str(pair_rounds)]
    done = subprocess.run([*words, *program], capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise UserError(
            f"perf cannot record here: {perfs_reason(done)}",
            where="--calibrate",
            fix="run as root where perf is",
        )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _least(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: min(run[key] for run in runs) for key in ("fault_ns", "pair_ns")}


def _per_operation(
    events: EventSet, stacks: bool, file: Path
) -> tuple[tuple[float, float], tuple[float, float]]:
    """(events, bytes) per fault and per pair, from what recordings without loops and with one have
    less than ``file``, which has both; it is overwritten."""
    from mmreplay.recorder.check import check

    words = Recording(events, ("--",), stacks=stacks, output=str(file)).argv()
    held = [check(file)]
    for fault_rounds in (0, 2):
        _run(words, fault_rounds, 0)
        held.append(check(file))
    faults, pairs = [], []
    for both, none, some in zip(*((one.records, one.size_bytes) for one in held), strict=True):
        faults.append((some - none) / (2 * loops.PAGES))
        of_pairs = both - none - _FAULT_ROUNDS * loops.PAGES * faults[-1]
        pairs.append(of_pairs / (_PAIR_ROUNDS * loops.PAIRS))
    return (faults[0], faults[1]), (pairs[0], pairs[1])


def _perf_version() -> str:
    done = subprocess.run(["perf", "--version"], capture_output=True, text=True, errors="replace")
    return done.stdout.strip().removeprefix("perf version ")
