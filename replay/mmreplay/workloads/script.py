"""What a phase of the lock-count measurement is written with: a tape and what was counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mmreplay.schema import PAGE_SIZE
from mmreplay.trace.store import Trace
from mmreplay.workloads.tape import Tape

PG: Final = PAGE_SIZE
HUGE: Final = 2 << 20
#: Operations of a phase, where it has no number of its own.
N: Final = 1000
#: Fault-around window: fault_around_bytes, mm/memory.c@6.18.
AROUND: Final = 16 * PG


@dataclass(frozen=True, slots=True)
class Given:
    """What the measurement says of a phase besides its locks; None where it does not.

    Faults and read(2) calls depend on things that a trace does not decide (large folios,
    how many lines fit a buffer), so a trace takes them as they were counted.
    """

    ops: int | None = None
    faults_user: int | None = None
    faults_kernel: int | None = None
    major: int | None = None
    reads_per_op: int | None = None  # read(2) calls, the one that finds the end included
    child_faults_user: int | None = None  # of these, the children's
    child_faults_kernel: int | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase: its trace with set-up, and the rows that count.

    ``ops``: how often the operation is done.  ``exits``: threads that end in it; their last
    acquisition may fall over an edge of the counting window.
    """

    name: str
    trace: Trace
    first: int
    end: int
    ops: int
    exits: int = 0


@dataclass(slots=True)
class Script:
    """A tape, and how many operations each phase has.

    ``gate``: the machine shows [vsyscall] in /proc/PID/maps.  ``disk_root``: its root file
    system is on a disk, not a tmpfs.
    """

    n: int = N
    given: Mapping[str, Given] = field(default_factory=dict)
    gate: bool = False
    disk_root: bool = False
    tape: Tape = field(default_factory=Tape)
    ops: dict[str, int] = field(default_factory=dict)
    exits: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tape.isolated(PG)  # the program's calibration page, above all that it maps later
        if self.gate:
            self.tape.gate()

    def of(self, name: str) -> Given:
        return self.given.get(name, Given())

    def each(
        self,
        name: str,
        ops: int,
        step: Callable[[int], None],
        first: int = 0,
        *,
        faults: bool = False,
        exits: int = 0,
    ) -> None:
        """The phase ``name``: ``step(first)`` to ``step(first + ops - 1)``.

        ``faults``: each operation is one user fault, so there are as many as were counted
        (a large folio serves several touches).  ``exits``: threads that end in each.
        """
        done = ops
        counted = self.of(name).faults_user
        if faults and counted is not None:
            done = min(ops, counted)
        self.tape.begin(name)
        for i in range(first, first + done):
            step(i)
        self.tape.end()
        self.ops[name] = ops
        self.exits[name] = exits * ops

    def nothing(self, name: str) -> None:
        """A phase that performs no operation of the memory map."""
        self.each(name, 0, lambda _i: None)

    def phases(self) -> dict[str, Phase]:
        """All phases written so far."""
        trace = self.tape.trace()
        return {
            name: Phase(name, trace, first, end, self.ops[name], self.exits[name])
            for name, (first, end) in self.tape.segments.items()
        }
