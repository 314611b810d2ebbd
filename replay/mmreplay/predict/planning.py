"""Plans for one trace: per VMA rules, thread count and window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

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
        #: Name of the scaled group, its dense index in plans, and its threads with operations.
        self.group_name = scale_group if scale_group is not None else next(iter(sizes), "")
        self.group = 0
        self.group_threads = sizes.get(self.group_name, 0)
        self.scope = WITH_DEPENDENCIES if trace.header.capabilities.wakeups else UPPER_BOUND
        self.notes: list[str] = []

    def plans(self, rules: str, threads: int | None, windows: tuple[int, int] | None) -> list[Plan]:
        """Plans under the VMA rules named ``rules``.

        ``threads`` of the scaled group (None: as recorded); ``windows`` is (how many at most,
        operations in each at most), or None for one plan of the whole trace.
        """
        raise NotImplementedError


def _group_sizes(trace: Trace) -> dict[str, int]:
    """Threads with operations per group, the group with most operations first."""
    ops = trace.operations.group_by("tid").agg(ops=pl.len())
    rows = (
        trace.threads.select("tid", "group")
        .unique("tid")
        .join(ops, on="tid")
        .group_by("group")
        .agg(threads=pl.len(), ops=pl.col("ops").sum())
        .sort("ops", "group", descending=[True, False])
        .collect()
    )
    return {name: int(threads) for name, threads, _ in rows.iter_rows()}
