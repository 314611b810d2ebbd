"""Spin locks (preemption is off while one is held or waited for): the oracle.

``fifo`` (qspinlock, MCS, ticket): each waiter spins on a line of its own and they take
turns.  Without (test and set): all poll the lock's line, the waiter that the release
reaches first gets it (the nearest CPU; of equals, the one that waits longest), and the
others fetch the line again, so that the next release finds it shared.
"""

from __future__ import annotations

from mmreplay.engine.kinds.base import Line, Lock, PrivateLine, Replay
from mmreplay.engine.setup import P
from mmreplay.engine.states import State
from mmreplay.engine.thread import Thread


class Spin(Lock):
    """See the module docstring.  The next waiter has the lock when the line is at its CPU."""

    def __init__(self, sim: Replay, index: int, line: Line | PrivateLine) -> None:
        super().__init__(sim, index, line)
        self.queue: list[Thread] = []
        self.fifo = bool(self.params[P["fifo"]])

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
            head = self.queue[0]
            if not self.fifo:
                distance = self.sim.setup.distance[thread.cpu]
                head = min(self.queue, key=lambda t: distance[t.cpu])
            self.queue.remove(head)
            self.leave(head)
            self.set_writer(head)
            taken = self.line.rmw(head.cpu, done)
            self.sim.at(head, State.GRANTED, taken)
            if not self.fifo:
                for other in self.queue:
                    self.line.read(other.cpu, taken)
        return done
