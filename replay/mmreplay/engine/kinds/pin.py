"""The per-VMA lock (include/linux/mmap_lock.h@6.4–7.x): the oracle.

Readers never wait: they fail and fall back to the mmap_lock.  A writer *marks*: it
waits for the readers in flight, then stores the number of the current write section
(``marks_by``, mm_lock_seq); a VMA is marked as long as the two are equal, so the end
of the write section drops all marks together.
"""

from __future__ import annotations

from mmreplay.engine.kinds.base import Line, Lock, PrivateLine, Replay
from mmreplay.engine.kinds.seq import Seq
from mmreplay.engine.setup import P
from mmreplay.engine.states import State
from mmreplay.engine.thread import Thread
from mmreplay.locking.isa import Form


class Pin(Lock):
    """See the module docstring."""

    def __init__(self, sim: Replay, index: int, line: Line | PrivateLine) -> None:
        super().__init__(sim, index, line)
        self.marked_at = -1  # value of the sequence when it was marked
        self.drainer: Thread | None = None
        self.closed_ns = 0  # since when a drainer keeps new readers out
        self.rwsem_form = int(self.params[P["form"]]) == Form.RWSEM

    def try_read(self, thread: Thread, seq: Seq | None, at_ns: int) -> tuple[bool, int]:
        """vma_start_read: two loads and, unless marked or draining, one RMW."""
        if seq is not None:
            at_ns = seq.line.read(thread.cpu, at_ns)
            if seq.value == self.marked_at:
                return False, at_ns
        if self.writer is not None or self._drains:
            return False, self.line.read(thread.cpu, at_ns)
        done = self.line.rmw(thread.cpu, at_ns)
        self.add_reader(thread.kind)
        return True, done

    @property
    def _drains(self) -> bool:
        return self.drainer is not None and self.sim.now >= self.closed_ns

    def lock_read(self, thread: Thread, at_ns: int) -> int:
        """vma_start_read_locked: under mmap_lock, so it cannot fail."""
        done = self.line.rmw(thread.cpu, at_ns)
        self.add_reader(thread.kind)
        return done

    def unlock(self, thread: Thread, at_ns: int) -> int:
        """vma_end_read; the last reader wakes the writer that drains."""
        done = self.line.rmw(thread.cpu, at_ns)
        self.drop_reader(thread.kind)
        if self.readers == 0 and self.drainer is not None:
            drainer, self.drainer = self.drainer, None
            self.leave(drainer)
            self.set_writer(drainer)
            done = self.wake_up(drainer, State.DRAINED, done)
        return done

    def mark(self, thread: Thread, seq: Seq | None, at_ns: int) -> int | None:
        """vma_start_write.  None: readers are in flight, the thread waits for them."""
        if seq is not None and seq.value == self.marked_at:
            return self.line.read(thread.cpu, at_ns)
        self.sim.stat(self.index, "mark", 1)
        done = self.line.rmw(thread.cpu, at_ns)
        if self.readers == 0:
            return self._store(thread, seq, done)
        window = 0
        if self.rwsem_form:  # down_write(&vm_lock->lock) spins first, as any rwsem
            window = (20 + min(self.readers, 30)) * 500
        self.enter(thread)
        self.drainer = thread
        # a spinner leaves no trace in the count: it keeps readers out once it is queued (WAITERS)
        self.closed_ns = done + window if self.rwsem_form else self.sim.now
        thread.wait_lock = self
        thread.awake_ns = done
        self.sim.at(thread, State.FALL, done + window + self.sim.setup.fall)
        return None

    def drained(self, thread: Thread, seq: Seq | None) -> int:
        """The drainer runs again."""
        self.set_writer(None)
        self.end_wait(thread, write=True)
        return self._store(thread, seq, self.sim.now)

    def _store(self, thread: Thread, seq: Seq | None, at_ns: int) -> int:
        if seq is not None:
            self.marked_at = seq.value
        return self.line.rmw(thread.cpu, at_ns)
