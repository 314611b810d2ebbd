"""Spin locks (queued, first in first out; preemption is off while one is held): the oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmreplay.engine.kinds.base import Line, Lock, PrivateLine
from mmreplay.engine.states import State

if TYPE_CHECKING:
    from mmreplay.engine.oracle import Simulation
    from mmreplay.engine.world import Thread


class Spin(Lock):
    """The next waiter has the lock when the line has moved to its CPU."""

    def __init__(self, sim: Simulation, index: int, line: Line | PrivateLine) -> None:
        super().__init__(sim, index, line)
        self.queue: list[Thread] = []

    def try_lock(self, thread: Thread, at_ns: int) -> tuple[bool, int]:
        if self.writer is not None:
            return False, self.line.read(thread.cpu, at_ns)
        done = self.line.rmw(thread.cpu, at_ns)
        self.set_writer(thread)
        return True, done

    def lock(self, thread: Thread, at_ns: int) -> int | None:
        done = self.line.rmw(thread.cpu, at_ns)
        if self.writer is None:
            self.set_writer(thread)
            return done
        self.enter(thread)
        self.queue.append(thread)
        thread.wait_lock = self
        self.sim.at(thread, State.GRANTED, None)
        return None

    def unlock(self, thread: Thread, at_ns: int) -> int:
        done = self.line.rmw(thread.cpu, at_ns)
        self.set_writer(None)
        if self.queue:
            head = self.queue.pop(0)
            self.leave(head)
            self.set_writer(head)
            self.sim.at(head, State.GRANTED, self.line.rmw(head.cpu, done))
        return done
