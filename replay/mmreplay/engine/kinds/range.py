"""Range locks: one address space, many holders, each of a range of pages.  The oracle.

One algorithm serves the designs; the parameters say where they differ.

* What conflicts: two ranges that overlap, unless both are held for reading.
  ``round = pt_node`` first widens a range to the page-table node that covers it.
* How it is taken: as a whole, or (``round = slot``, and ``pt_node`` without ancestors) from
  left to right, holding what lies left of the page that somebody else has.  Everybody
  goes from left to right, so nobody waits in a circle.
* Who comes first: ``wait = sleep`` and ``round = slot | pt_node`` are first come, first
  served: a waiter keeps later ones out of what it waits for.  Spinning on pages is not: a
  waiter is not in the list yet, and whoever finds no holder in its way passes.
* ``wait = spin``: the waiter stays on its CPU unless its slice ends and another thread is
  runnable.  Holders can be preempted and may sleep.
* ``cost``: ``per_holder``, a line transfer for every holder in the list before the range
  and one RMW on the list's head (Kogan, Dice, Issa, EuroSys '20); ``per_slot``, one RMW a
  slot of a radix tree of 9 bits a level, on lines that nobody else has (RadixVM, EuroSys '13);
  ``per_level``, one RMW on the covering node's line and one for every table below it, or
  with ``ancestors = read`` one for every level above it (CortenMM, SOSP '25).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.engine.kinds.base import Line, Lock, PrivateLine, Replay
from mmreplay.engine.setup import P
from mmreplay.engine.states import State
from mmreplay.engine.thread import Thread
from mmreplay.locking.isa import Mode, Operand

if TYPE_CHECKING:
    from mmreplay.address_space.plan import Plan

#: Bits of the page number that one level of a page table (or radix tree) resolves.
LEVEL_BITS: Final = 9
#: Levels of an x86-64 page table.
LEVELS: Final = 4
#: Last page of the largest address space (57 bits).
LAST_PAGE: Final = (1 << 45) - 1


class Round(IntEnum):
    """Parameter ``round``."""

    PAGE = 0
    SLOT = 1
    PT_NODE = 2


class Cost(IntEnum):
    """Parameter ``cost``."""

    PER_HOLDER = 0
    PER_SLOT = 1
    PER_LEVEL = 2


def span(plan: Plan, row: int, operand: int) -> tuple[int, int]:
    """First and last page of the range that an operation means by ``@operand``.

    Without a VMA ``@vma`` and ``@vma1`` are ``@op``; ``@node`` is widened by
    :func:`widen`; the range of another address space (``@child``) is all of it.
    """
    first, last = int(plan.first_page[row]), int(plan.last_page[row])
    last = max(first, last)
    if operand == Operand.PAGE:
        return first, first
    if operand in (Operand.VMA, Operand.VMA1) and plan.vma_first_page[row] >= 0:
        more = int(operand == Operand.VMA1)
        return (
            max(0, int(plan.vma_first_page[row]) - more),
            min(LAST_PAGE, int(plan.vma_last_page[row]) + more),
        )
    if operand in (Operand.ALL, Operand.CHILD, Operand.TARGET):
        return 0, LAST_PAGE
    return first, last


def covering_level(first: int, last: int) -> int:
    """Level of the lowest page-table node that covers the range; 1: a PTE table, 2 MiB."""
    level = 1
    while first >> (LEVEL_BITS * level) != last >> (LEVEL_BITS * level):
        level += 1
    return level


def widen(first: int, last: int) -> tuple[int, int]:
    """The range of the lowest page-table node that covers the range."""
    bits = LEVEL_BITS * covering_level(first, last)
    return first >> bits << bits, ((last >> bits) + 1 << bits) - 1


def slots(first: int, last: int) -> int:
    """Slots of a radix tree that a range covers: as few, hence as high, as possible."""
    count = 0
    while first <= last:
        size = 1
        while first & ((size << LEVEL_BITS) - 1) == 0 and first + (size << LEVEL_BITS) - 1 <= last:
            size <<= LEVEL_BITS
        first += size
        count += 1
    return count


def policy(params: NDArray[np.int64]) -> tuple[bool, bool]:
    """Of a range lock: is it first come, first served; is it taken from left to right?"""
    by_page, by_node = (params[P["round"]] == x for x in (Round.PAGE, Round.PT_NODE))
    leftwards = not by_page and not (by_node and params[P["ancestors"]])
    return bool(params[P["wait"]] or not by_page), bool(leftwards)


@dataclass(eq=False)
class Entry:
    """A range that a thread holds, or waits for (then ``reach < last``)."""

    thread: Thread
    first: int
    last: int
    mode: int
    kind: int  # operation of the thread
    cpu: int  # that wrote the entry
    reach: int  # last page held; first - 1: none
    seen_by: int = -1  # CPU that read the entry last

    def complete(self) -> bool:
        return self.reach == self.last

    def conflicts(self, other: Entry) -> bool:
        """Do the two ranges, held in full, exclude each other?"""
        if self.mode == Mode.READ and other.mode == Mode.READ:
            return False
        return self.first <= other.last and other.first <= self.last


class Range(Lock):
    """See the module docstring."""

    def __init__(self, sim: Replay, index: int, line: Line | PrivateLine) -> None:
        super().__init__(sim, index, line)
        self.round = Round(int(self.params[P["round"]]))
        self.cost = Cost(int(self.params[P["range_cost"]]))
        self.sleeps = bool(self.params[P["wait"]])
        self.reads_ancestors = bool(self.params[P["ancestors"]])
        self.fair, self.leftwards = policy(self.params)
        self.entries: list[Entry] = []  # in the order they came
        self.nodes: dict[tuple[int, int], Line | PrivateLine] = {}

    # -- what excludes what ------------------------------------------------------------
    def _limit(self, entry: Entry) -> int:
        """The last page that ``entry`` may hold now."""
        limit = entry.last
        earlier = True
        for other in self.entries:
            if other is entry:
                earlier = False
            elif entry.conflicts(other):
                if other.first <= other.reach and entry.first <= other.reach:
                    limit = min(limit, max(entry.first, other.first) - 1)
                if self.fair and earlier and not other.complete():
                    wanted = other.reach + 1
                    if not self.leftwards:
                        limit = entry.first - 1
                    elif max(entry.first, entry.reach + 1) <= wanted <= limit:
                        limit = wanted - 1
        return limit if self.leftwards or limit == entry.last else entry.first - 1

    def blockers(self, waiter: Thread) -> Counter[int]:
        """Holders in the way; of a waiter behind a waiter, those in the way of that one."""
        entry = next(e for e in self.entries if e.thread is waiter)
        while True:
            first, last = entry.first, entry.last
            if self.leftwards:
                first = last = entry.reach + 1
            found = [
                e
                for e in self.entries
                if entry.conflicts(e) and first <= e.reach and e.first <= last
            ]
            if found or not self.fair:
                return Counter(e.kind for e in found)
            before = self.entries[: self.entries.index(entry)]
            ahead = [e for e in before if not e.complete() and entry.conflicts(e)]
            if self.leftwards:
                ahead = [e for e in ahead if e.reach + 1 == first]
            if not ahead:
                return Counter()
            entry = ahead[0]

    # -- what it costs -------------------------------------------------------------------
    def _node(self, entry: Entry) -> Line | PrivateLine:
        """The line of the page-table node that covers the range."""
        level = covering_level(entry.first, entry.last)
        key = (level, entry.first >> (LEVEL_BITS * level))
        if key not in self.nodes:
            self.nodes[key] = type(self.line)(self.sim)
        return self.nodes[key]

    def _look(self, entry: Entry, at_ns: int) -> int:
        """Read the list as far as the range: what it finds decides whether it must wait."""
        if self.cost == Cost.PER_HOLDER:
            for other in self.entries:
                if other.first <= other.reach and other.first <= entry.last:
                    if entry.cpu not in (other.cpu, other.seen_by):
                        at_ns += int(self.sim.setup.distance[other.cpu, entry.cpu])
                        other.seen_by = entry.cpu
        return at_ns

    def _take(self, entry: Entry, at_ns: int) -> int:
        """The writes of an acquisition that found the range free."""
        atomic = self.sim.setup.atomic
        plan, row = self.sim.plan, entry.thread.row
        if self.cost == Cost.PER_HOLDER:
            return self.line.rmw(entry.cpu, at_ns)
        if self.cost == Cost.PER_SLOT:
            return at_ns + atomic * max(slots(entry.first, entry.last), int(plan.pages[row]))
        level = covering_level(entry.first, entry.last)
        if self.reads_ancestors:
            at_ns += atomic * max(0, LEVELS - level)
        elif level > 1:
            at_ns += atomic * int(plan.tables[row])
        return self._node(entry).rmw(entry.cpu, at_ns)

    def _drop(self, entry: Entry, at_ns: int) -> int:
        """The write that gives the range back."""
        if self.cost == Cost.PER_HOLDER:
            if entry.seen_by >= 0 and entry.seen_by != entry.thread.cpu:
                return at_ns + int(self.sim.setup.distance[entry.seen_by, entry.thread.cpu])
            return at_ns + self.sim.setup.atomic
        if self.cost == Cost.PER_SLOT:
            return at_ns  # plain stores to lines that it owns
        return self._node(entry).rmw(entry.thread.cpu, at_ns)

    # -- taking and dropping ---------------------------------------------------------------
    def _enter(self, thread: Thread, mode: int, operand: int) -> Entry:
        first, last = span(self.sim.plan, thread.row, operand)
        if self.round == Round.PT_NODE or operand == Operand.NODE:
            first, last = widen(first, last)
        entry = Entry(thread, first, last, mode, thread.kind, thread.cpu, first - 1)
        self.advance()
        self.entries.append(entry)
        return entry

    def _count_steal(self, entry: Entry) -> None:
        """Before ``entry`` holds anything: does it pass somebody who waits?"""
        passed = (e for e in self.entries if e is not entry and not e.complete())
        if not self.fair and any(entry.conflicts(e) for e in passed):
            self.sim.stat(self.index, "steals", 1)

    def try_lock(self, thread: Thread, mode: int, operand: int, at_ns: int) -> tuple[bool, int]:
        entry = self._enter(thread, mode, operand)
        at_ns = self._look(entry, at_ns)
        if self._limit(entry) < entry.last:
            self.entries.remove(entry)
            if self.cost == Cost.PER_LEVEL:
                at_ns = self._node(entry).read(entry.cpu, at_ns)
            return False, at_ns
        self._count_steal(entry)
        entry.reach = entry.last
        return True, self._take(entry, at_ns)

    def lock(self, thread: Thread, mode: int, operand: int, at_ns: int) -> int | None:
        entry = self._enter(thread, mode, operand)
        at_ns = self._look(entry, at_ns)
        limit = self._limit(entry)
        if limit == entry.last:
            self._count_steal(entry)
            entry.reach = limit
            return self._take(entry, at_ns)
        self.enter(thread)
        entry.reach = limit
        thread.wait_lock = self
        thread.wait_mode = Mode(mode)
        if self.fair:  # it joins a queue, and has locked what it can reach
            at_ns = self._take(entry, at_ns)
        thread.awake_ns = at_ns
        if self.sleeps:
            self.sim.at(thread, State.FALL, at_ns + self.sim.setup.fall)
        else:
            self.sim.at(thread, State.OSQ, max(at_ns, thread.slice_end_ns))
        return None

    def unlock(self, thread: Thread, at_ns: int) -> int:
        entry = next(e for e in self.entries if e.thread is thread)
        self.advance()
        done = self._drop(entry, at_ns)
        self.entries.remove(entry)
        free_at = done
        for waiter in list(self.entries):
            if waiter.complete() or not waiter.conflicts(entry):
                continue
            waiter.reach = max(waiter.reach, self._limit(waiter))
            if waiter.complete():
                done = self._grant(waiter, thread.cpu, free_at, done)
        return done

    def _grant(self, entry: Entry, cpu: int, free_at_ns: int, at_ns: int) -> int:
        """A waiter has all of its range; returns when the releasing thread goes on."""
        sim, thread = self.sim, entry.thread
        self.leave(thread)
        if self.sleeps:
            return self.wake_up(thread, State.GRANTED, at_ns)
        if thread.cpu < 0:  # preempted while it spun
            thread.after = State.GRANTED
            return at_ns
        entry.cpu = thread.cpu
        seen = max(free_at_ns, thread.awake_ns)
        if self.cost == Cost.PER_HOLDER:
            seen = self.line.rmw(thread.cpu, seen)
        elif self.cost == Cost.PER_LEVEL:
            seen = self._node(entry).rmw(thread.cpu, seen)
        else:
            seen += int(sim.setup.distance[cpu, thread.cpu])
        sim.at(thread, State.GRANTED, seen)
        return at_ns

    def osq_event(self, thread: Thread) -> None:
        """A spinning waiter's slice ends: it makes room for a thread that is runnable."""
        self.sim.spin_on(thread, State.OSQ)
