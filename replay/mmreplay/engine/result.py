"""What a simulation returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]

#: Histogram of operation delays: log-linear, 16 buckets per power of two, 0..2^40 ns.
DELAY_BUCKETS_PER_OCTAVE = 16
DELAY_BUCKETS = 40 * DELAY_BUCKETS_PER_OCTAVE
#: How finely a thread's progress is kept.
PROGRESS_PARTS = 64


@dataclass(frozen=True, slots=True)
class Options:
    """How to replay.

    cores:
        CPUs that the replayed set may run on.
    placement:
        ``compact`` fills a cache, then a socket; ``scatter`` alternates them.
    load:
        ``recorded`` keeps blocked think; ``saturated`` sets that of the scaled group to
        zero (the group's capacity beside the others at their recorded pace).
    wrap:
        True: threads wrap at their loop point until the first thread of the scaled
        group ends (steady state, for throughput), or the others have done ``MOST_LAPS``
        times the plan's operations meanwhile.  False: every operation once (for lock
        counts and makespan).
    group:
        The scaled thread group; -1: all threads.
    """

    cores: int
    placement: Literal["compact", "scatter"] = "compact"
    load: Literal["recorded", "saturated"] = "recorded"
    wrap: bool = False
    group: int = -1
    seed: int = 1
    kernel_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class LockStats:
    """Counts and times of one lock of the model, over all its instances."""

    name: str
    kind: str
    read: int = 0
    write: int = 0
    downgrade: int = 0
    read_wait_ns: int = 0
    write_wait_ns: int = 0
    read_hold_ns: int = 0
    write_hold_ns: int = 0
    mark: int = 0  # pin locks: marks that did work
    try_failed: int = 0
    sleeps: int = 0  # waiters that went to sleep
    steals: int = 0  # acquisitions past a waiter
    handoffs: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """One simulation.  Integers are exact and equal between engine and oracle."""

    ops: int  # operations completed
    makespan_ns: int
    window_begin_ns: int
    window_end_ns: int
    window_ops: int  # of the scaled group, completed inside the window
    window_user_ns: int  # user CPU time of the scaled group completed inside the window
    locks: tuple[LockStats, ...]
    reasons: dict[str, int]  # COUNT reasons (fallback, abort, retry, ...)
    op_count: I64  # (PlanOp,)
    op_busy_ns: I64  # on CPU inside operations
    op_wait_ns: I64  # waiting for locks (spinning or sleeping)
    op_delay: I64  # (PlanOp, DELAY_BUCKETS) histogram of begin-to-end times
    blame_ns: I64  # (locks, PlanOp + 1, PlanOp): holder op (last row: hand-over), waiter op
    thread_begun: I64  # (T,) operations begun, over all laps
    thread_end_ns: I64  # (T,)
    thread_wait_ns: I64  # (T, locks)
    #: (T, PROGRESS_PARTS + 1) when a thread of the scaled group had completed j 64ths of its
    #: operations (rounded up), once; column 0: when its first think began.  -1: not reached.
    thread_progress_ns: I64
    idle_ns: int  # core time without a runnable thread
    sleep_ns: int  # thread time asleep for I/O
    wall_s: float = field(default=0.0, compare=False)
    detail: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def window_ns(self) -> int:
        return self.window_end_ns - self.window_begin_ns

    @property
    def throughput_ops_per_s(self) -> float:
        """Operations of the scaled group per second of the window."""
        return self.window_ops * 1e9 / self.window_ns if self.window_ns > 0 else 0.0

    @property
    def useful_work_rate(self) -> float:
        """User CPU seconds completed per second of the window."""
        return self.window_user_ns / self.window_ns if self.window_ns > 0 else 0.0
