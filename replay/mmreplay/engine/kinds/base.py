"""What all lock kinds of the oracle share: cache lines, holders, waiters and blame."""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

from numpy.typing import NDArray

from mmreplay.address_space.plan import Plan
from mmreplay.engine.setup import Setup
from mmreplay.engine.states import State
from mmreplay.engine.thread import Thread

#: Row of the blame matrix for time in which a waiter waits and nobody holds the lock.
HAND_OVER = -1


class Replay(Protocol):
    """What a lock sees of the replay that it is part of (:mod:`mmreplay.engine.oracle`)."""

    now: int
    plan: Plan
    setup: Setup
    params: NDArray[Any]
    thread_wait_ns: NDArray[Any]
    visible_readers: set[int]

    def at(self, thread: Thread, state: State, time_ns: int | None) -> None:
        """The thread's next event."""

    def sooner(self, thread: Thread, time_ns: int) -> None:
        """Its next event comes no later than that."""

    def locked(self, thread: Thread, at_ns: int) -> None:
        """It has the lock that it waited for."""

    def held(self, thread: Thread, at_ns: int) -> None:
        """Its LOCK or TRY has succeeded: on with the program."""

    def need_resched(self, thread: Thread) -> bool:
        """Whether somebody else is to have its CPU."""

    def spin_on(self, thread: Thread, state: State) -> None:
        """It spins on."""

    def stop_if_all_spin(self) -> None:
        """End a replay in which nobody can go on."""

    def wake_costs(self, thread: Thread) -> tuple[int, int]:
        """What waking it takes: of its waker's time, and until it is runnable, ns."""

    def stat(self, lock: int, name: str, by: int) -> None:
        """Add to a lock's count or sum."""

    def blame(self, lock: int, holder: int, waiter: int, span_ns: int) -> None:
        """Kind ``waiter`` waited so long for kind ``holder``."""


class Line:
    """A cache line that several CPUs touch.

    A read-modify-write moves the line to the CPU and queues behind the transfer
    before it; reads of one version run at the same time.
    """

    def __init__(self, sim: Replay) -> None:
        self.sim = sim
        self.owner = -1  # CPU that wrote it last
        self.last_reader = -1  # CPU that fetched it last since then
        self.readers: set[int] = set()  # CPUs that hold the current version
        self.free_at_ns = 0

    def rmw(self, core: int, at_ns: int) -> int:
        """Atomic read-modify-write; returns when it is done."""
        return self._write(core, at_ns, self.sim.setup.atomic)

    def store(self, core: int, at_ns: int) -> int:
        """Plain store: free on a line that the CPU owns alone."""
        return self._write(core, at_ns, 0)

    def _write(self, core: int, at_ns: int, owned_ns: int) -> int:
        distance = self.sim.setup.distance
        begin = max(at_ns, self.free_at_ns)
        if self.owner < 0:
            cost = owned_ns
        elif self.owner != core:
            cost = int(distance[self.owner, core])
        elif self.last_reader >= 0 and self.last_reader != core:
            cost = int(distance[self.last_reader, core])
        else:
            cost = owned_ns
        self.owner, self.last_reader = core, -1
        self.readers.clear()
        self.free_at_ns = begin + cost
        return self.free_at_ns

    def read(self, core: int, at_ns: int) -> int:
        """Load; returns when the value is there."""
        if self.owner < 0 or self.owner == core or core in self.readers:
            return at_ns
        self.readers.add(core)
        self.last_reader = core
        return max(at_ns, self.free_at_ns) + int(self.sim.setup.distance[self.owner, core])


class PrivateLine:
    """A cache line that one thread touches: never contended."""

    def __init__(self, sim: Replay) -> None:
        self.atomic_ns = sim.setup.atomic

    def rmw(self, core: int, at_ns: int) -> int:
        return at_ns + self.atomic_ns

    def store(self, core: int, at_ns: int) -> int:
        return at_ns

    def read(self, core: int, at_ns: int) -> int:
        return at_ns


def shares(span_ns: int, by_kind: Counter[int]) -> dict[int, int]:
    """Split a span of time over kinds of operation by the number of their threads.

    What integer division leaves goes to the lowest kind, so that shares always sum to
    the span; nobody: hand-over.
    """
    kinds = sorted(kind for kind, count in by_kind.items() if count)
    if not kinds:
        return {HAND_OVER: span_ns}
    total = sum(by_kind.values())
    out = {kind: span_ns * by_kind[kind] // total for kind in kinds}
    out[kinds[0]] += span_ns - sum(out.values())
    return out


class Lock:
    """One instance of a lock: who holds it, who waits, and who is to blame."""

    def __init__(self, sim: Replay, index: int, line: Line | PrivateLine) -> None:
        self.sim = sim
        self.index = index  # of the lock in the model
        self.obj = 0  # that it belongs to: its number among the shared ones of its scope
        self.params = sim.params[index]
        self.line = line
        self.writer: Thread | None = None
        self.readers = 0
        self.readers_by_kind: Counter[int] = Counter()
        self.waiting: dict[int, Thread] = {}
        self.last_ns = 0
        self.writer_kind = 0

    # -- holders --------------------------------------------------------------
    @property
    def free(self) -> bool:
        return self.writer is None and self.readers == 0

    @property
    def contended(self) -> bool:
        """Does anybody wait for it?"""
        return bool(self.waiting)

    def add_reader(self, kind: int) -> None:
        self.advance()
        self.readers += 1
        self.readers_by_kind[kind] += 1

    def drop_reader(self, kind: int) -> None:
        self.advance()
        self.readers -= 1
        self.readers_by_kind[kind] -= 1

    def set_writer(self, thread: Thread | None) -> None:
        self.advance()
        self.writer = thread
        if thread is not None:
            self.writer_kind = thread.kind

    # -- blame ------------------------------------------------------------------
    def blockers(self, waiter: Thread) -> Counter[int]:
        """Kinds of operation that the waiter waits for now, with the number of their threads."""
        if self.writer is not None:
            return Counter({self.writer_kind: 1})
        return self.readers_by_kind

    def advance(self) -> None:
        """Charge the time since the last change to whoever held the lock in it.

        The charges of a waiter are booked when it gets the lock: a replay that stops
        before (``wrap``) books neither the wait nor its blame.
        """
        span = self.sim.now - self.last_ns
        self.last_ns = self.sim.now
        if span:
            for waiter in self.waiting.values():
                for holder, share in shares(span, self.blockers(waiter)).items():
                    waiter.charges[holder] += share

    def enter(self, thread: Thread) -> None:
        """The thread starts to wait for this lock."""
        self.advance()
        self.waiting[thread.index] = thread
        thread.wait_from_ns = thread.granted_ns = self.sim.now

    def leave(self, thread: Thread) -> None:
        """The thread has been given the lock (it may not run yet)."""
        self.advance()
        del self.waiting[thread.index]
        for holder, share in thread.charges.items():
            self.sim.blame(self.index, holder, thread.kind, share)
        thread.charges.clear()
        thread.granted_ns = self.sim.now

    def end_wait(self, thread: Thread, write: bool) -> None:
        """The thread runs again, holding the lock."""
        sim = self.sim
        sim.blame(self.index, HAND_OVER, thread.kind, sim.now - thread.granted_ns)
        wait = sim.now - thread.wait_from_ns
        thread.wait_ns += wait
        sim.thread_wait_ns[thread.index, self.index] += wait
        sim.stat(self.index, "write_wait_ns" if write else "read_wait_ns", wait)

    # -- waking --------------------------------------------------------------------
    def wake_up(self, thread: Thread, state: State, at_ns: int) -> int:
        """Wake one sleeper.  One that is still falling asleep goes on at once, for free."""
        if thread.cpu < 0:
            waker_ns, woken_ns = self.sim.wake_costs(thread)
            at_ns += waker_ns
            thread.after = state
            self.sim.at(thread, State.OFF, at_ns + woken_ns)
        else:
            self.sim.at(thread, state, max(at_ns, thread.awake_ns))
        return at_ns
