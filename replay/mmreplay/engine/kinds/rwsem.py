"""rwsem (kernel/locking/rwsem.c@6.2–6.18): the oracle.

The lock word's bits are fields here: WRITER_LOCKED is ``writer``, the reader count
``readers``, WAITERS "the queue is not empty", HANDOFF ``handoff``; the owner word is
``writer``, ``reader_owned`` and ``nonspinnable``.  A reader's transient bias in the
slow path is not seen by others: each decision is one instant.
"""

from __future__ import annotations

from mmreplay.engine.kinds.base import Line, Lock, PrivateLine, Replay
from mmreplay.engine.kinds.bravo import Bravo
from mmreplay.engine.setup import P
from mmreplay.engine.states import State
from mmreplay.engine.thread import Thread
from mmreplay.locking.isa import Mode

#: How a spinner saw the owner last.
SAW_NOTHING, SAW_READER, SAW_WRITER = 0, 1, 2


class Rwsem(Lock):
    """See the module docstring.  Method names are those of the kernel's functions."""

    def __init__(self, sim: Replay, index: int, line: Line | PrivateLine) -> None:
        super().__init__(sim, index, line)
        self.handoff = False
        self.nonspinnable = False
        self.reader_owned = False
        self.queue: list[Thread] = []  # wait_list
        self.osq: list[Thread] = []  # spinners; the first one polls
        self.steal = bool(self.params[P["steal"]])
        self.reader_spin = bool(self.params[P["reader_spin"]])
        self.optimistic = bool(self.params[P["osq"]])
        self.spin_us = int(self.params[P["spin_us"]])
        self.handoff_ns = int(self.params[P["handoff_ns"]])
        self.batch = max(1, int(self.params[P["batch"]]))
        slots = int(self.params[P["bravo_slots"]])
        inhibit = int(self.params[P["bravo_inhibit"]])
        self.bravo = Bravo(self, slots, inhibit) if slots else None

    @property
    def contended(self) -> bool:
        """rwsem_is_contended: the wait list is not empty; spinners do not count."""
        return bool(self.queue)

    # -- taking and dropping -----------------------------------------------------
    def _take_read(self, kind: int, at_ns: int) -> None:
        self.add_reader(kind)
        if not self.reader_owned:
            self.reader_owned = True
            self._notify_spinner(at_ns)

    def _take_write(self, thread: Thread) -> None:
        """Becoming the owner overwrites the owner word: NONSPINNABLE is gone."""
        self.set_writer(thread)
        self.reader_owned = False
        self.nonspinnable = False
        thread.owned.append(self)

    def try_lock(self, thread: Thread, mode: int, at_ns: int) -> tuple[bool, int]:
        """down_read_trylock, down_write_trylock: plain load, then one CAS."""
        if self.bravo is not None:
            if mode == Mode.WRITE and self.bravo.published:
                return False, self.line.read(thread.cpu, at_ns)
            if mode == Mode.READ:
                published, at_ns = self.bravo.publish(thread, at_ns)
                if published:
                    return True, at_ns
        open_ = self.writer is None and not self.queue and (mode == Mode.READ or self.readers == 0)
        if not open_:
            return False, self.line.read(thread.cpu, at_ns)
        done = self.line.rmw(thread.cpu, at_ns)
        if mode == Mode.READ:
            self._take_read(thread.kind, done)
        else:
            self._take_write(thread)
        return True, done

    def lock(self, thread: Thread, mode: int, at_ns: int) -> int | None:
        """down_read, down_write.  Returns when it is held, or None: the thread waits."""
        if self.bravo is not None and mode == Mode.READ:
            published, at_ns = self.bravo.publish(thread, at_ns)
            if published:
                return at_ns
        done = self.line.rmw(thread.cpu, at_ns)
        if self.writer is None and not self.queue and (mode == Mode.READ or self.readers == 0):
            if mode == Mode.READ:
                self._take_read(thread.kind, done)
            else:
                self._take_write(thread)
            return done
        if mode == Mode.READ:
            return self._read_slow(thread, done)
        self.enter(thread)
        thread.wait_mode = Mode.WRITE
        if self.optimistic and self._can_spin(thread):
            self._join_osq(thread, done)
        else:
            self._queue(thread, done)
        return None

    def _read_slow(self, thread: Thread, at_ns: int) -> int | None:
        """rwsem_down_read_slowpath."""
        thread.wait_mode = Mode.READ
        if self.reader_spin:  # 5.10
            if self._can_spin(thread):
                self.enter(thread)
                self._join_osq(thread, at_ns)
                return None
        elif self.steal and self.writer is None:
            count = self.readers + 1
            if not (self.reader_owned and count > 1) and not self.handoff:
                self.sim.stat(self.index, "steals", 1)
                self._take_read(thread.kind, at_ns)
                if count == 1 and self.queue:
                    at_ns = self._mark_wake(thread, at_ns, read_owned=True)
                return at_ns
        self.enter(thread)
        self._queue(thread, at_ns)
        return None

    def unlock(self, thread: Thread, mode: int, at_ns: int) -> int | None:
        """up_read, up_write.  None: the wake-up of waiters comes as a step of its own."""
        if mode == Mode.READ and self.bravo is not None and thread.index in self.bravo.published:
            self.bravo.withdraw(thread, at_ns)
            return at_ns
        done = self.line.rmw(thread.cpu, at_ns)
        if mode == Mode.READ:
            self.drop_reader(thread.kind)
            if self.readers:
                return done
            if self.queue:
                self.nonspinnable = False
        else:
            self.set_writer(None)
            thread.owned.remove(self)
            self.reader_owned = False
            self._notify_handoff_spinner(done)
        self._notify_spinner(done)
        if not self.queue:
            return done
        thread.wait_lock = self
        self.sim.at(thread, State.WAKE, self.line.rmw(thread.cpu, done))
        return None

    def downgrade(self, thread: Thread, at_ns: int) -> int:
        """downgrade_write: queued readers join only when one of them is first."""
        done = self.line.rmw(thread.cpu, at_ns)
        self.set_writer(None)
        thread.owned.remove(self)
        self.add_reader(thread.kind)
        self.reader_owned = True
        self._notify_spinner(done)
        self._notify_handoff_spinner(done)
        if self.queue:
            done = self._mark_wake(thread, done, read_owned=True)
        return done

    # -- waking ------------------------------------------------------------------
    def wake(self, thread: Thread, at_ns: int) -> int:
        """rwsem_wake: the second half of an unlock that saw WAITERS."""
        return self._mark_wake(thread, at_ns) if self.queue else at_ns

    def _mark_wake(
        self, waker: Thread, at_ns: int, *, read_owned: bool = False, any_: bool = True
    ) -> int:
        """rwsem_mark_wake; returns when the waker is through with its wake-ups.

        ``read_owned``: the waker holds it for reading; not ``any_``: readers only.
        """
        head = self.queue[0]
        if head.wait_mode == Mode.WRITE:
            if read_owned or not any_ or head.wake_pending:
                return at_ns
            head.wake_pending = True
            return self.wake_up(head, State.RETRY, at_ns)
        if self.writer is not None:  # a writer stole it in between
            if self.sim.now - head.queued_ns > self.handoff_ns and not self.handoff:
                self.handoff = True
                self.sim.stat(self.index, "handoffs", 1)
            return at_ns
        granted = [t for t in self.queue if t.wait_mode == Mode.READ][: self.batch]
        self.handoff = False
        for reader in granted:
            self.queue.remove(reader)
            self.leave(reader)
            self._take_read(reader.kind, at_ns)
        for reader in granted:  # wake_up_q: one after the other
            if reader is waker:
                waker.state = State.GRANTED
            else:
                at_ns = self.wake_up(reader, State.GRANTED, at_ns)
        return at_ns

    # -- the queue -----------------------------------------------------------------
    def _queue(self, thread: Thread, at_ns: int) -> None:
        """Append, wake whom the lock's state allows, try (writers), fall asleep."""
        thread.wake_pending = False
        thread.queued_ns = self.sim.now
        thread.wait_lock = self  # it may grant itself the lock: readers left over by a batch
        first = not self.queue
        self.queue.append(thread)
        at_ns = self.line.rmw(thread.cpu, at_ns)
        thread.state = State.FALL
        if (thread.wait_mode == Mode.READ or not first) and self.writer is None:
            if self.readers:
                at_ns = self._mark_wake(thread, at_ns, any_=False)
            else:
                self.nonspinnable = False
                at_ns = self._mark_wake(thread, at_ns)
            if thread.state == State.GRANTED:
                self.sim.at(thread, State.GRANTED, at_ns)
                return
        if thread.wait_mode == Mode.WRITE:
            if thread.wake_pending:  # cannot be: a first waiter does not cond-wake itself
                return
            self.try_write_lock(thread, at_ns)
        else:
            self._fall_asleep(thread, at_ns)

    def _fall_asleep(self, thread: Thread, at_ns: int) -> None:
        thread.awake_ns = at_ns
        thread.wait_lock = self
        self.sim.at(thread, State.FALL, at_ns + self.sim.setup.fall)

    def try_write_lock(self, thread: Thread, at_ns: int) -> None:
        """rwsem_try_write_lock of a queued writer, and what follows when it fails."""
        thread.wait_lock = self
        first = self.queue[0] is thread
        if self.free and (first or not self.handoff):
            if not first:
                self.sim.stat(self.index, "steals", 1)
            self.queue.remove(thread)
            if first:
                self.handoff = False
            self.leave(thread)
            self._take_write(thread)
            self.sim.at(thread, State.GRANTED, at_ns)
            return
        waited = self.sim.now - thread.queued_ns
        if first and not self.free and not self.handoff and waited > self.handoff_ns:
            self.handoff = True
            self.sim.stat(self.index, "handoffs", 1)
        owner = self.writer
        spins = self.handoff and first and owner is not None and owner.cpu >= 0
        if spins and not self.sim.need_resched(thread):
            self.sim.at(thread, State.HANDOFF_SPIN, None)  # spins until the owner is done
        else:
            self._fall_asleep(thread, at_ns)

    def retry(self, thread: Thread) -> None:
        """A queued writer runs again: a wake-up only means that it may try."""
        thread.wake_pending = False
        self.try_write_lock(thread, self.line.rmw(thread.cpu, self.sim.now))

    def _notify_handoff_spinner(self, at_ns: int) -> None:
        if self.queue and self.queue[0].state == State.HANDOFF_SPIN:
            self.sim.sooner(self.queue[0], at_ns + self.sim.setup.poll)

    # -- optimistic spinning -----------------------------------------------------------
    def _can_spin(self, thread: Thread) -> bool:
        """rwsem_can_spin_on_owner."""
        if self.nonspinnable or self.sim.need_resched(thread):
            return False
        return self.writer is None or self.writer.cpu >= 0

    def _join_osq(self, thread: Thread, at_ns: int) -> None:
        thread.wait_lock = self
        thread.saw = SAW_NOTHING
        thread.reader_entry = self.reader_owned
        self.osq.append(thread)
        if self.osq[0] is thread:
            self.sim.at(thread, State.SPIN, at_ns + self.sim.setup.poll)
        else:
            self.sim.at(thread, State.OSQ, max(at_ns, thread.slice_end_ns))

    def _leave_osq(self, thread: Thread, at_ns: int) -> None:
        was_head = self.osq[0] is thread
        self.osq.remove(thread)
        if was_head and self.osq:
            head = self.osq[0]
            self.sim.at(head, State.SPIN, at_ns + self.sim.setup.poll)

    def _notify_spinner(self, at_ns: int) -> None:
        if self.osq:
            self.sim.sooner(self.osq[0], at_ns + self.sim.setup.poll)

    def owner_left_cpu(self) -> None:
        """The writer was preempted or sleeps: spinners look again."""
        self._notify_spinner(self.sim.now)
        self._notify_handoff_spinner(self.sim.now)

    def osq_event(self, thread: Thread) -> None:
        """A spinner behind the first: leaves only for the scheduler's sake."""
        if self.sim.need_resched(thread):
            self._leave_osq(thread, self.sim.now)
            self._queue(thread, self.sim.now)
        else:
            thread.slice_end_ns = self.sim.now + self.sim.setup.slice
            self.sim.at(thread, State.OSQ, thread.slice_end_ns)
            self.sim.stop_if_all_spin()

    def spin_event(self, thread: Thread) -> None:
        """One look of the first spinner at the lock and its owner."""
        sim, now = self.sim, self.sim.now
        if self._spinner_may_take(thread):
            self._spinner_takes(thread)
            return
        leave = sim.need_resched(thread) or self.nonspinnable
        deadline = None
        if not leave and self.writer is not None:
            thread.saw = SAW_WRITER
            leave = self.writer.cpu < 0
        elif not leave and self.reader_owned:
            if thread.saw != SAW_READER:
                thread.saw = SAW_READER
                thread.spin_until_ns = now + self._window()
            if thread.wait_mode == Mode.WRITE:
                deadline = thread.spin_until_ns
                if now >= deadline:
                    self.nonspinnable = True
                    leave = True
        elif not leave:
            thread.saw = SAW_NOTHING
        if leave:
            self._leave_osq(thread, now)
            if thread.wait_mode == Mode.READ and self._reader_phase(thread):
                self._reader_takes(thread)
            else:
                self._queue(thread, now)
            return
        self.line.read(thread.cpu, now)
        renewed = thread.slice_end_ns <= now
        if renewed:
            thread.slice_end_ns = now + sim.setup.slice
        again = thread.slice_end_ns
        if deadline is not None:
            again = min(again, deadline)
        sim.at(thread, State.SPIN, again)
        if renewed:
            sim.stop_if_all_spin()

    def _window(self) -> int:
        """rwsem_rspin_threshold: (20 + min(readers, 30)) / 2 µs."""
        if self.spin_us == 1:
            return (20 + min(self.readers, 30)) * 500
        return self.spin_us * 1000

    def _spinner_may_take(self, thread: Thread) -> bool:
        if self.handoff or self.writer is not None:
            return False
        return thread.wait_mode == Mode.READ or self.readers == 0

    def _spinner_takes(self, thread: Thread) -> None:
        if self.queue:
            self.sim.stat(self.index, "steals", 1)
        if thread.wait_mode == Mode.READ:
            self._leave_osq(thread, self.sim.now)
            self._reader_takes(thread)
            return
        done = self.line.rmw(thread.cpu, self.sim.now)
        self._leave_osq(thread, done)
        self.leave(thread)
        self._take_write(thread)
        self.end_wait(thread, write=True)
        self.sim.locked(thread, done)

    def _reader_phase(self, thread: Thread) -> bool:
        """5.10: the owner changed to readers since this reader came."""
        return (
            self.writer is None
            and not self.handoff
            and self.reader_owned
            and not thread.reader_entry
        )

    def _reader_takes(self, thread: Thread) -> None:
        """5.10: a reader gets in by spinning, and wakes the readers that queue."""
        done = self.line.rmw(thread.cpu, self.sim.now)
        self.leave(thread)
        self._take_read(thread.kind, done)
        self.end_wait(thread, write=False)
        if self.queue:
            done = self._mark_wake(thread, done, any_=False)
        self.sim.locked(thread, done)
