"""What ``predict`` and ``replay`` return: plain values, ready for any writer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

#: Schema number of the JSON of ``replay`` and ``predict``.
REPORT_SCHEMA: Final = 1

Basis = Literal["measured", "interpolated", "extrapolated"]


@dataclass(frozen=True, slots=True)
class Blame:
    """Waiting time of ``waiter_op`` charged to the operation that held the lock meanwhile.

    ``holder_op`` is ``hand-over`` where nobody held it (a woken waiter not yet running).
    """

    lock: str
    holder_op: str
    waiter_op: str
    wait_ns: int


@dataclass(frozen=True, slots=True)
class KindDrift:
    """Baseline drift of one kind of operation; ratios are simulated ÷ recorded."""

    op: str
    count: int
    recorded_wait_ns: int
    simulated_wait_ns: int
    wait_ratio: float | None  # None: too little recorded wait to divide by
    recorded_service_ns: int
    simulated_busy_ns: int
    service_ratio: float | None


@dataclass(frozen=True, slots=True)
class Drift:
    """The trace replayed unchanged, against its own recording.

    ``ratio`` is simulated ÷ recorded of (service + wait + think on CPU); None, with the
    reason in ``note``, where durations are missing.
    """

    ratio: float | None
    note: str
    kernel: str
    cores: int
    kinds: tuple[KindDrift, ...] = ()
    trusted: bool = True
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel at one core count, thread count and load.

    ``threads`` counts the threads of the scaled group, ``busy_threads`` those of them that work
    most of the time and that it is measured by.  ``lower``/``upper`` bound
    ``throughput_ops_per_s``, ``speedup_lower``/``speedup_upper`` bound ``speedup``: the
    range over seeds and windows, widened by the kernel generation factor where the
    kernel is not the recorded one; None where there is nothing to take a range over.
    """

    kernel: str
    cores: int
    threads: int
    load: str
    throughput_ops_per_s: float
    useful_work_rate: float
    lower: float | None
    upper: float | None
    speedup: float | None
    speedup_lower: float | None
    speedup_upper: float | None
    speedup_from_locking: float | None
    speedup_from_costs: float | None
    basis: Basis
    limiting_lock: str | None
    limiting_op: str | None
    delay_p50_ns: float | None
    delay_p99_ns: float | None
    delay_p999_ns: float | None
    cpu_ns_per_op: float | None
    busy_threads: int
    lock_share: dict[str, float] = field(default_factory=dict)
    blame: tuple[Blame, ...] = ()


#: The keys of a row that are kept stable; the rest are additions.
ROW_KEYS: Final = (
    "kernel",
    "cores",
    "threads",
    "load",
    "throughput_ops_per_s",
    "useful_work_rate",
    "lower",
    "upper",
    "speedup",
    "speedup_lower",
    "speedup_upper",
    "speedup_from_locking",
    "basis",
    "limiting_lock",
    "limiting_op",
)


@dataclass(frozen=True, slots=True)
class Saturation:
    """Where more cores stop helping one kernel.

    ``cores`` is the smallest simulated count that reaches 95 % of the best throughput
    of the list; None where the largest count still gains.  ``reason`` is ``threads``
    (each busy thread has a core), the name of a lock, ``demand`` (the recorded load
    asks for no more), or ``cores`` (operations and computing cost more on more cores).
    """

    kernel: str
    load: str
    threads: int
    cores: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Process:
    """One process in a replay of every operation; all processes together are the replay.

    ``target``: the process with the most lock-relevant time.  ``end_ns``: when its last
    thread ended (summed over windows).  ``wait_ns`` is the sum of ``lock_wait_ns``.
    """

    pid: int
    name: str
    address_spaces: tuple[int, ...]
    threads: int
    target: bool
    ops: int
    end_ns: int
    wait_ns: int
    lock_wait_ns: dict[str, int]


@dataclass(frozen=True, slots=True)
class ProcessShare:
    """One process at the point that the headline is about.

    ``lock_share[kernel][lock]``: share of its threads' time spent waiting for the lock.
    """

    pid: int
    name: str
    address_spaces: tuple[int, ...]
    threads: int
    target: bool
    lock_share: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class ForeignHolder:
    """A process that takes the ``mmap_lock`` of another one, as the recording shows it.

    ``how``: what shows it.  ``hold_ns`` is None where the recording shows waits only.
    """

    pid: int
    name: str
    target_pid: int
    target: str
    how: str
    count: int
    wait_ns: int
    hold_ns: int | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """What another kernel gains, per core count."""

    trace: str
    from_kernel: str
    to_kernel: str
    machine: str
    machine_basis: str  # "given", "matched" or "assumed"
    recorded_cores: int | None
    recorded_threads: int
    group: str
    placement: str
    costs: str
    drift: Drift
    rows: tuple[Row, ...]
    saturation: tuple[Saturation, ...]
    unattributed_share: float | None
    scope: str  # "upper bound: memory map only" or "with recorded dependencies"
    processes: tuple[ProcessShare, ...]
    foreign_holders: tuple[ForeignHolder, ...]
    notes: tuple[str, ...]
    headline: str
    simulations: int
    windows: int
    window_ops: int
    seeds: int
    wall_s: float = field(default=0.0, compare=False)
    ops_simulated: int = 0


@dataclass(frozen=True, slots=True)
class Replay:
    """One simulation in detail: the numbers of ``mmreplay replay``."""

    trace: str
    kernel: str
    machine: str
    cores: int
    threads: int  # of all groups
    ops: int
    group: str  # whose rates they are; "" where there is none
    window_ns: int  # over which they are taken
    makespan_ns: int
    throughput_ops_per_s: float | None
    useful_work_rate: float | None
    baseline_drift_ratio: float | None
    baseline_drift_note: str
    locks: dict[str, dict[str, Any]]
    by_op: tuple[dict[str, Any], ...]
    blame: tuple[dict[str, Any], ...]
    processes: tuple[Process, ...]
    foreign_holders: tuple[ForeignHolder, ...]
    wall_s: float = field(compare=False)
    ops_per_s: float = field(compare=False)
    notes: tuple[str, ...] = ()
