"""What makes measurements doubtful, in a line each, with what to do about it."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mmreplay.hardware.facts import DEBUGGING
from mmreplay.hardware.runs import Runs, summary

#: Spread (interquartile range by median) above which a point is called noisy; pyperf warns at
#: a standard deviation of 10 % of the mean.
NOISY: Final = 0.10
#: CPU time of others, or withheld, as a share of the CPUs that the threads could have used.
DISTURBED: Final = 0.05
#: Shorter windows say little.
_SHORT_S: Final = 0.05
_MOST_LINES: Final = 6


def warnings(runs: Runs) -> list[str]:
    """The worst points first, then what holds for the machine."""
    return [*_noisy(runs.rows), *_disturbed(runs.rows), *_odd(runs.rows), *machine_notes(runs)]


def _noisy(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [r for r in summary(rows) if (r["spread_ratio"] or 0) > NOISY]
    found.sort(key=lambda row: -row["spread_ratio"])
    lines = [
        f"{r['workload']} {r['path']} {r['threads']} threads: spread {r['spread_ratio']:.0%}: the"
        " machine is noisy; close other programs, or use more --repetitions or --seconds"
        for r in found[:_MOST_LINES]
    ]
    if len(found) > _MOST_LINES:
        lines.append(f"{len(found) - _MOST_LINES} more points spread over {NOISY:.0%}")
    return lines


def _disturbed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    # A thread that slept through the window has one of nothing; the CPU time is of the whole.
    windows = sum(max(row["window_s"], _SHORT_S) for row in rows)
    for column, who in (
        ("other_cpu_s", "other programs ran on {share:.2f} CPUs meanwhile; end them"),
        ("steal_s", "the hypervisor withheld {share:.2f} CPUs; use a dedicated machine"),
    ):
        share = sum(row[column] for row in rows) / windows if windows else 0.0
        if share > DISTURBED:
            lines.append(who.format(share=share))
    reasons = Counter(row["disturbed"] for row in rows if row.get("disturbed"))
    if sum(reasons.values()) > DISTURBED * len(rows):
        what = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
        lines.append(
            f"{sum(reasons.values())} of {len(rows)} runs were disturbed ({what}); they count"
            " where too few others remain: measure again when the machine is idle"
        )
    return lines


def _odd(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    empty: dict[str, int] = defaultdict(int)
    for row in rows:
        if row["ops"] == 0:
            empty[f"{row['workload']} {row['path']} {row['threads']} threads"] += 1
    for label, times in list(empty.items())[:_MOST_LINES]:
        lines.append(f"{label}: nothing was counted in {times} windows; use more --seconds")
    short = [row for row in rows if row["window_s"] < _SHORT_S]
    if short:
        lines.append(f"{len(short)} windows were shorter than {_SHORT_S:g} s; use more --seconds")
    swapped = statistics.fmean(row["major_faults"] for row in rows) if rows else 0
    if swapped > 10:
        lines.append(f"{swapped:.0f} faults a run waited for storage; is memory short?")
    unverified = {row["path_check"] for row in rows if row["path_check"].startswith("not verified")}
    lines += [f"locks by path: {text}" for text in sorted(unverified)[:3]]
    return lines


def machine_notes(runs: Runs) -> list[str]:
    """What the machine itself does to the figures."""
    machine = runs.machine
    most = max((row["threads"] for row in runs.rows), default=0)
    lines = []
    quota = machine.get("cpus_by_cgroup")
    if quota is not None and most > quota:
        lines.append(
            f"the cgroup's quota is {quota:g} CPUs: points with more threads are throttled"
        )
    if machine.get("threads_per_core", 1) > 1 and most > machine["cores"]:
        lines.append(
            f"beyond {machine['cores']} threads two of them share a core (SMT):"
            " expect less than a core's work from each"
        )
    if machine.get("governor") not in (None, "performance"):
        lines.append(
            f'the CPU governor is "{machine["governor"]}": set it to performance for steady clocks'
        )
    if machine.get("hypervisor") not in (None, "none"):
        lines.append(f"a guest ({machine['hypervisor']}): the host's load is part of the figures")
    config = machine.get("kernel_config") or {}
    slow = [key for key in DEBUGGING if key in config]
    if slow:
        lines.append(f"the kernel checks itself ({', '.join(slow)}): it is slower than others")
    return lines
