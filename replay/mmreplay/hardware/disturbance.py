"""Which runs were disturbed: looks at the machine between the runs, and what they say.

A guest's CPUs move and have neighbours; a run beside that is no sample of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

#: CPU time that others took, and that a hypervisor withheld, as shares of the window.
OTHERS: Final = 0.10
STOLEN: Final = 0.05
#: A fixed loop took this many times as long as at its fastest: the core is shared or slow.
SLOWER: Final = 1.10
#: A cache line takes this many times as long (or short) after the run as before it.  (On a
#: 2-CPU guest it was 30 ns for a third of the time and 170 ns for the rest.)
MOVED: Final = 2.0
#: Of all groups of neighbouring runs at most this share is measured again.
AGAIN: Final = 0.1


@dataclass(frozen=True, slots=True)
class Look:
    """What a cache line takes between two CPUs (None with one), and what a fixed loop takes."""

    line_ns: float | None
    loop_ns: float


class Watch:
    """Looks at the machine before and after each run; what comes after one is before the next."""

    def __init__(self, glance: Callable[[], tuple[float | None, float]]) -> None:
        """``glance``: measures a line and a loop (:func:`mmreplay.hardware.probes.glance`)."""
        self._glance = glance
        self._look()  # compiles it, and wakes the CPUs
        self.fastest_ns = float("inf")
        self.last = self._look()

    def _look(self) -> Look:
        return Look(*self._glance())

    def again(self) -> None:
        """Look anew: something other than a run came between."""
        self.last = self._look()
        self.fastest_ns = min(self.fastest_ns, self.last.loop_ns)

    def columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Of RUNS, of the run that has just ended with ``row``."""
        before = self.last
        self.again()
        self.fastest_ns = min(self.fastest_ns, before.loop_ns)
        return {
            "line_before_ns": before.line_ns,
            "line_after_ns": self.last.line_ns,
            "loop_ratio": max(before.loop_ns, self.last.loop_ns) / self.fastest_ns,
            "disturbed": reason(row, before, self.last, self.fastest_ns),
        }


def reason(row: Mapping[str, Any], before: Look, after: Look, fastest_ns: float) -> str | None:
    """What disturbed a run, or None: the first of ``steal``, ``other programs``, ``slow CPU``,
    ``moved CPUs`` that is beyond its limit."""
    window = row["window_s"]
    if row["steal_s"] > STOLEN * window:
        return "steal"
    if row["other_cpu_s"] > OTHERS * window:
        return "other programs"
    if max(before.loop_ns, after.loop_ns) > SLOWER * fastest_ns:
        return "slow CPU"
    if before.line_ns and after.line_ns:
        low, high = sorted((before.line_ns, after.line_ns))
        if high > MOVED * low:
            return "moved CPUs"
    return None


def chosen(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One row of each repetition of a point, by repetition: undisturbed ones if there are enough.

    Of a repetition that was measured again the last undisturbed run counts, else the last.
    Disturbed repetitions are left out where two others remain, and half of all.
    """
    best: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        known = best.get(row["repetition"])
        if known is None or row.get("disturbed") is None or known.get("disturbed") is not None:
            best[row["repetition"]] = row
    found = [best[k] for k in sorted(best)]
    calm = [row for row in found if row.get("disturbed") is None]
    return calm if len(calm) >= max(2, len(found) / 2) else found
