"""Plans for one trace: per VMA rules, thread count and window."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

from mmreplay.errors import UserError, closest
from mmreplay.predict import rooms

if TYPE_CHECKING:
    from mmreplay.address_space.planner import PlanBundle
    from mmreplay.address_space.scale import PrivateRange
    from mmreplay.address_space.threads import Threads
    from mmreplay.trace.store import Trace

#: Rows of the operations table that make a plan, exclusive end.
_Span = tuple[int, int]

#: IMPORT: scaling out clones threads of the trace; waits elsewhere are not in it.
UPPER_BOUND: Final = "upper bound: memory map only"
WITH_DEPENDENCIES: Final = "with recorded dependencies"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Plans under the VMA rules named ``rules``.

    ``threads`` of the scaled group (None: as recorded); ``windows`` is (how many at most,
    operations in each at most), or None for one plan of the whole trace.
    """

    rules: str
    threads: int | None
    windows: tuple[int, int] | None


class Planner:
    """Builds plans of one trace and keeps what scaling out says about it.

    Parameters
    ----------
    trace:
        The recording.
    scale_group:
        The thread group whose throughput counts and which is cloned; None: the one
        with the most lock-relevant time.

    Raises
    ------
    UserError
        No such group.
    """

    def __init__(self, trace: Trace, scale_group: str | None) -> None:
        self.trace = trace
        sizes = _groups(trace)
        if scale_group is not None and scale_group not in sizes:
            raise UserError(
                f'no thread group "{scale_group}"{closest(scale_group, sizes)}',
                where="--scale-group",
                fix=f"one of {', '.join(sizes) or 'none: the trace has no threads'}",
            )
        #: Name of the scaled group, and its threads.
        self.group_name = scale_group if scale_group is not None else next(iter(sizes), "")
        self.group_threads, ops = sizes.get(self.group_name, (0, 0))
        #: The group's share of all operations.
        self.group_share = ops / max(sum(count for _, count in sizes.values()), 1)
        self.scope = WITH_DEPENDENCIES if trace.rows("wakeups") else UPPER_BOUND
        self.notes: list[str] = []
        self._bundles: dict[tuple[int | None, str, _Span], PlanBundle] = {}
        self._windows: dict[tuple[int, int] | None, list[_Span]] = {}
        self._private: dict[str, list[PrivateRange]] = {}

    def build(self, wanted: Iterable[Wanted]) -> None:
        """Make the plans of all ``wanted`` at once: the trace is read once per thread count."""
        from mmreplay.address_space.planner import build_plans
        from mmreplay.address_space.rules import load_rules

        missing: dict[int | None, dict[tuple[str, _Span], None]] = {}
        for one in wanted:
            for span in self._spans(one.windows):
                key = (self._count(one.threads), one.rules, span)
                if key not in self._bundles:
                    missing.setdefault(key[0], {})[key[1:]] = None
        for threads, some in missing.items():
            bundles = build_plans(
                self.trace,
                [(load_rules(rules), span) for rules, span in some],
                threads=None if threads is None else self._scaled(threads),
                private=self._private,
            )
            for (rules, span), bundle in zip(some, bundles, strict=True):
                self._bundles[threads, rules, span] = bundle
                self.notes += [note for note in bundle.notes if note not in self.notes]

    def bundles(self, wanted: Wanted) -> list[PlanBundle]:
        """The plans of ``wanted``, one per window, with what belongs to them."""
        self.build([wanted])
        threads = self._count(wanted.threads)
        return [self._bundles[threads, wanted.rules, s] for s in self._spans(wanted.windows)]

    def group_in(self, bundle: PlanBundle) -> int:
        """Dense index of the scaled group in a plan; -1: the trace has none."""
        return bundle.group_index(self.group_name) if self.group_name else -1

    def _count(self, threads: int | None) -> int | None:
        return None if threads == self.group_threads else threads

    def _spans(self, windows: tuple[int, int] | None) -> list[_Span]:
        from mmreplay.address_space.planner import count_rows
        from mmreplay.address_space.windows import choose_windows

        if windows not in self._windows:
            if windows is None:
                self._windows[None] = [(0, count_rows(self.trace))]
            else:
                count, ops = windows
                self._windows[windows] = choose_windows(self.trace, max_ops=ops, count=count)
        return self._windows[windows]

    def _scaled(self, threads: int) -> Threads:
        from mmreplay.address_space.scale import scale_group

        return scale_group(self.trace, self.group_name, threads)


def _groups(trace: Trace) -> dict[str, tuple[int, int]]:
    """Threads and operations per group, the busiest first: see :func:`rooms.lock_relevant`."""
    used = rooms.lock_relevant(trace).group_by("tid").agg(pl.col("ns").sum(), pl.col("ops").sum())
    rows = (
        trace.threads.select("tid", "group")
        .unique("tid")
        .collect()
        .join(used, on="tid", how="left")
        .group_by("group")
        .agg(threads=pl.len(), ns=pl.col("ns").sum(), ops=pl.col("ops").sum())
        .sort("ns", "ops", "group", descending=[True, True, False])
    )
    return {name: (int(threads), int(ops)) for name, threads, _, ops in rows.iter_rows()}
