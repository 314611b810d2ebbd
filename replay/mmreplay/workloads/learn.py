"""A workload learnt from a recorded trace, as a text that both back ends execute.

Each thread group becomes a role whose steps follow a Markov chain.  Its states are kinds of
operations on kinds of memory; page faults of one kind in a row are one state with the
distribution of their number.  What is kept of each state: how often it follows which other,
the computing and sleeping before it, sizes, and whether the memory is the thread's own or
shared.  What the chain does not keep is in ``docs/workloads.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmreplay.workloads.learn_chain import Learnt, Writer
from mmreplay.workloads.learn_rows import read_rows

if TYPE_CHECKING:
    from mmreplay.trace.store import Trace

__all__ = ["Learnt", "learn"]


def learn(trace: Trace, name: str = "trace", ops: int | None = None) -> Learnt:
    """Learn a workload from the address space of ``trace`` with the most operations.

    ``ops``: how many operations shall be generated: where the recording has phases, each
    becomes as many times as long.  None: as many as were recorded.

    Raises
    ------
    UserError
        The trace has no operations of the memory map, or no think times to learn.
    """
    rows = read_rows(trace, name)
    writer = Writer(rows, name)
    recorded = int((writer.codes >= 0).sum())
    return writer.learnt(ops / recorded if ops and recorded else 1.0)
