"""Plans for one trace: per VMA rules, thread count and window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from mmreplay.address_space.plan import Plan
from mmreplay.errors import UserError, closest

if TYPE_CHECKING:
    from mmreplay.trace.store import Trace

#: IMPORT: scaling out clones threads of the trace; waits elsewhere are not in it.
UPPER_BOUND: Final = "upper bound: memory map only"
WITH_DEPENDENCIES: Final = "with recorded dependencies"


class Planner:
    """Builds plans of one trace and keeps what scaling out says about it.

    Parameters
    ----------
    trace:
        The recording.
    scale_group:
        The thread group whose throughput counts and which is cloned; None: the one
        with the most operations.

    Raises
    ------
    UserError
        No such group.
    """

    def __init__(self, trace: Trace, scale_group: str | None) -> None:
        self.trace = trace
        sizes = _group_sizes(trace)
        if scale_group is not None and scale_group not in sizes:
            raise UserError(
                f'no thread group "{scale_group}"{closest(scale_group, sizes)}',
                where="--scale-group",
                fix=f"one of {', '.join(sizes) or 'none: the trace has no threads'}",
            )
        #: Name of the scaled group, its threads, and (set below) its dense index in plans.
        self.group_name = scale_group if scale_group is not None else next(iter(sizes), "")
        self.group_threads = sizes.get(self.group_name, 0)
        self.group = -1  # until the first plan
        self.scope = WITH_DEPENDENCIES if trace.header.capabilities.wakeups else UPPER_BOUND
        self.notes: list[str] = []

    def plans(self, rules: str, threads: int | None, windows: tuple[int, int] | None) -> list[Plan]:
        """Plans under the VMA rules named ``rules``.

        ``threads`` of the scaled group (None: as recorded); ``windows`` is (how many at most,
        operations in each at most), or None for one plan of the whole trace.
        """
        from mmreplay.address_space.planner import build_plan
        from mmreplay.address_space.rules import load_rules

        spans: list[tuple[int, int] | None] = [None]
        if windows is not None:
            spans = self._windows(*windows)
        who = None
        if threads is not None and threads != self.group_threads:
            who = self._scaled(threads)
        plans = []
        for span in spans:
            bundle = build_plan(self.trace, load_rules(rules), window=span, threads=who)
            self.group = bundle.group_index(self.group_name) if self.group_name else -1
            self.notes += [note for note in bundle.notes if note not in self.notes]
            plans.append(bundle.plan)
        return plans

    def _windows(self, count: int, ops: int) -> list[tuple[int, int] | None]:
        from mmreplay.address_space.windows import choose_windows

        return [*choose_windows(self.trace, max_ops=ops, count=count)]

    def _scaled(self, threads: int) -> Any:
        from mmreplay.address_space.scale import scale_group

        return scale_group(self.trace, self.group_name, threads)


def _group_sizes(trace: Trace) -> dict[str, int]:
    """Threads per group, the group with most operations first."""
    ops = trace.operations.group_by("tid").agg(ops=pl.len())
    rows = (
        trace.threads.select("tid", "group")
        .unique("tid")
        .join(ops, on="tid", how="left")
        .group_by("group")
        .agg(threads=pl.len(), ops=pl.col("ops").sum())
        .sort("ops", "group", descending=[True, False])
        .collect()
    )
    return {name: int(threads) for name, threads, _ in rows.iter_rows()}
