"""BRAVO readers of an rwsem (Dice and Kogan, ATC '19): the oracle.

With the bias on, a reader publishes itself in a slot of a table that all locks share,
and does not touch the lock word.  A slot is a hash of lock and thread; where it is taken, the
reader goes the rwsem's way.  A writer takes the rwsem first; where the bias is on, it
turns it off, reads the whole table and waits for the readers of its lock that are published
there.  The bias stays off for ``inhibit`` times as long as that took; the first reader by the
rwsem's way after that turns it on again.  It begins off.

``try`` for writing fails where readers are published.  An rwsem that one thread uses has
no bias.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from mmreplay.engine.kinds.base import Lock, shares
from mmreplay.engine.setup import GOLDEN, mix64
from mmreplay.engine.states import State
from mmreplay.engine.thread import Thread
from mmreplay.locking.isa import Mode

#: Picoseconds to read one slot of the table in a scan (about 1.1 ns with hardware prefetch,
#: eight slots a line: Dice and Kogan; assumed, not measured here).
SCAN_PS: Final = 1100


class Bravo:
    """The bias of one rwsem."""

    def __init__(self, lock: Lock, slots: int, inhibit: int) -> None:
        self.lock = lock
        self.sim = lock.sim
        self.slots = slots
        self.inhibit = inhibit
        self.biased = False
        self.inhibit_until_ns = 0
        self.published: dict[int, tuple[int, int]] = {}  # thread -> slot, kind of operation
        self.revoker: Thread | None = None  # waits for the published readers
        self.began_ns = 0  # of the revocation
        self.charged_ns = 0  # the revoker's wait is charged up to here

    def slot_of(self, thread: Thread) -> int:
        lock = mix64((self.lock.index << 32) | self.lock.obj)
        return mix64(lock ^ (thread.index * GOLDEN)) % self.slots

    def publish(self, thread: Thread, at_ns: int) -> tuple[bool, int]:
        """The reader's fast path; False: the slot is taken or the bias is off."""
        if not self.biased:
            return False, at_ns
        at_ns = self.lock.line.read(thread.cpu, at_ns)
        slot = self.slot_of(thread)
        if slot in self.sim.visible_readers:
            return False, at_ns
        self.sim.visible_readers.add(slot)
        self.published[thread.index] = (slot, thread.kind)
        return True, at_ns + self.sim.setup.atomic

    def withdraw(self, thread: Thread, at_ns: int) -> None:
        """The reader's unlock: a store to its slot.  The last one lets the writer go on."""
        writer = self.revoker
        if writer is not None:
            span, self.charged_ns = self.sim.now - self.charged_ns, self.sim.now
            kinds = Counter(kind for _, kind in self.published.values())
            for holder, share in shares(span, kinds).items():
                writer.charges[holder] += share
        slot, _ = self.published.pop(thread.index)
        self.sim.visible_readers.remove(slot)
        if writer is not None and not self.published:
            for holder, share in writer.charges.items():
                self.sim.blame(self.lock.index, holder, writer.kind, share)
            writer.charges.clear()
            writer.granted_ns = self.sim.now
            if writer.cpu >= 0:
                way = int(self.sim.setup.distance[thread.cpu, writer.cpu])
                self.sim.sooner(writer, at_ns + way)

    def locked(self, thread: Thread, mode: int, at_ns: int) -> int | None:
        """After the rwsem was taken: turn the bias on (reader) or off (writer).

        None: published readers are there; the writer looks again when it has read the table.
        """
        line = self.lock.line
        if mode == Mode.READ:
            slow = thread.index not in self.published
            if slow and not self.biased and at_ns >= self.inhibit_until_ns:
                self.biased = True
                at_ns = line.store(thread.cpu, at_ns)
            return at_ns
        if not self.biased:
            return at_ns
        self.biased = False
        self.began_ns = at_ns
        scanned = line.store(thread.cpu, at_ns) + self.slots * SCAN_PS // 1000
        if not self.published:
            self._revoked(scanned)
            return scanned
        thread.wait_lock = self.lock
        thread.busy_ns += scanned - self.sim.now
        self.sim.at(thread, State.REVOKE, scanned)
        return None

    def _revoked(self, at_ns: int) -> None:
        self.inhibit_until_ns = at_ns + self.inhibit * (at_ns - self.began_ns)

    def event(self, thread: Thread) -> None:
        """The writer has read the table, or looks again."""
        if self.published:
            if self.revoker is None:
                self.revoker = thread
                thread.wait_mode = Mode.WRITE
                thread.wait_from_ns = self.charged_ns = self.sim.now
            self.sim.spin_on(thread, State.REVOKE)
            return
        if self.revoker is thread:
            self.revoker = None
            self.lock.end_wait(thread, write=True)
        self._revoked(self.sim.now)
        self.sim.held(thread, self.sim.now)
