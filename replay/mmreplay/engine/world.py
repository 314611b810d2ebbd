"""What a replay acts on: the objects that operations mean (the oracle's half).

An object is one instance of a scope: an address space, a VMA, a page-table page, a file, an
anon_vma slot.  Locks, cache lines and runtime bits belong to objects.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final, cast

import numpy as np

from mmreplay.address_space.plan import Plan
from mmreplay.engine.kinds.base import Line, Lock, PrivateLine, Replay
from mmreplay.engine.kinds.pin import Pin
from mmreplay.engine.kinds.range import Range
from mmreplay.engine.kinds.rwsem import Rwsem
from mmreplay.engine.kinds.seq import Seq
from mmreplay.engine.kinds.spin import Spin
from mmreplay.engine.result import Options
from mmreplay.engine.setup import (
    COST_BITS,
    DRAW_BITS,
    MASK64,
    MIX1,
    P,
    Setup,
    analyse,
    line_scopes,
    object_of,
    object_scope,
    page_key,
    prepare,
)
from mmreplay.engine.thread import Thread
from mmreplay.locking.isa import Count, Kind, Operand, RuntimeBit, Scope
from mmreplay.locking.model import LockingModel
from mmreplay.machine.profile import Machine

_FACTORY: Final[dict[Kind, type[Lock]]] = {
    Kind.RWSEM: Rwsem,
    Kind.PIN: Pin,
    Kind.SPIN: Spin,
    Kind.RANGE: Range,
}


class World:
    """The inputs of a replay and its objects, made when they are first meant."""

    def __init__(self, plan: Plan, model: LockingModel, machine: Machine, options: Options) -> None:
        self.plan, self.model, self.options = plan, model, options
        self.analysis = analyse(plan, model)
        self.setup: Setup = prepare(plan, model, machine, options)
        self.line_scope = line_scopes(model)
        self.params = model.lock_params
        self.locks: dict[tuple[int, int], Any] = {}
        self.lines: dict[tuple[int, int], Line | PrivateLine] = {}
        self.bits = {
            Scope.ANON_ROOT: plan.anon_initial.astype(bool).tolist(),
            Scope.TABLE: plan.table_initial.astype(bool).tolist(),
            Scope.VMA: [False] * len(plan.vma_mm),
        }
        self.visible_readers: set[int] = set()  # slots of the table of BRAVO readers
        self.every: Counter[tuple[int, int]] = Counter()
        #: CPUs that may hold translations of a page, by position in ``analysis.touch_keys``
        self.touched: list[set[int]] = [set() for _ in self.analysis.touch_keys]

    def _marks(self, row: int, which: int) -> tuple[int, int]:
        """Where the operation's list for one MarkSet begins and ends."""
        plan = self.plan
        rows = range(int(plan.mark_first[row]), int(plan.mark_first[row + 1]))
        found = [k for k in rows if plan.mark_set[k] == which]
        return (found[0], found[-1] + 1) if found else (0, 0)

    def touch_places(self, row: int) -> range:
        """Positions in ``touched`` of the pages of an operation's range."""
        plan, keys = self.plan, self.analysis.touch_keys
        bounds = page_key(
            plan.mm[[row, row]], np.array([plan.first_page[row], plan.last_page[row]])
        )
        first = np.searchsorted(keys, bounds[0], "left")
        return range(int(first), int(np.searchsorted(keys, bounds[1], "right")))

    def _object(self, thread: Thread, scope: int, operand: int) -> int:
        """Number of the object of ``scope`` that the running operation means; -1 none."""
        mark = thread.each[0] if thread.each[0] < thread.each[1] else -1
        return object_of(self.plan, thread.row, scope, operand, mark)

    def _shared(self, thread: Thread, scope: int, operand: int) -> bool:
        obj = self._object(thread, scope, operand)
        return obj >= 0 and bool(self.analysis.shared[object_scope(scope)][obj])

    def _line_shared(self, thread: Thread, line: int, operand: int) -> bool:
        return self._shared(thread, self.line_scope[line], operand)

    def _line(self, thread: Thread, line: int, operand: int) -> Line | PrivateLine:
        obj = self._object(thread, self.line_scope[line], operand)
        if not self._line_shared(thread, line, operand):
            return PrivateLine(cast(Replay, self))
        if (line, obj) not in self.lines:
            self.lines[(line, obj)] = Line(cast(Replay, self))
        return self.lines[(line, obj)]

    def _instance(self, thread: Thread, a: int, operand: int) -> Any:
        """The lock instance; None where the operation has no such object.

        A lock object that one thread uses is never contended, so an instance of
        kind rwsem or spin that is private is None too.
        """
        scope, kind = int(self.model.lock_scope[a]), int(self.model.lock_kind[a])
        obj = self._object(thread, scope, operand)
        if obj < 0:
            return None
        key = (a, obj)
        if key not in self.locks:
            line = self._line(thread, int(self.model.lock_line[a]), operand)
            if kind == Kind.SEQ:
                self.locks[key] = Seq(line)
            else:
                factory = _FACTORY[Kind(kind)]
                made: Lock = factory(cast(Replay, self), a, line)
                shared = self.analysis.shared[object_scope(scope)]
                made.obj = int(shared[:obj].sum())
                if isinstance(made, Rwsem) and not shared[obj]:
                    made.bravo = None
                self.locks[key] = made
        return self.locks[key]

    def _seq_of(self, thread: Thread, a: int) -> Seq | None:
        """The sequence that a pin lock's marks compare with."""
        index = int(self.params[a][P["marks_by"]])
        found = None if index < 0 else self._instance(thread, index, Operand.NONE)
        assert found is None or isinstance(found, Seq)
        return found

    def _bit_place(self, thread: Thread, bit: int) -> tuple[Scope, int]:
        scope = {
            RuntimeBit.VMA_ANON_VMA: Scope.ANON_ROOT,
            RuntimeBit.VMA_DEAD: Scope.VMA,
            RuntimeBit.TABLE_PRESENT: Scope.TABLE,
        }[RuntimeBit(bit)]
        return scope, self._object(thread, scope, Operand.NONE)

    def _bits_shared(self, thread: Thread, bits: int) -> bool:
        for bit in RuntimeBit:
            if bits & bit and bit != RuntimeBit.OP_TRIED:
                scope, _ = self._bit_place(thread, bit)
                if self._shared(thread, scope, Operand.NONE):
                    return True
        return False

    def _bit(self, thread: Thread, bit: int) -> bool:
        if bit == RuntimeBit.OP_TRIED:
            return thread.tried
        scope, obj = self._bit_place(thread, bit)
        return obj >= 0 and self.bits[scope][obj]

    def _set_bit(self, thread: Thread, bit: int) -> None:
        if bit == RuntimeBit.OP_TRIED:
            thread.tried = True
            return
        scope, obj = self._bit_place(thread, bit)
        if obj >= 0:
            self.bits[scope][obj] = True

    def _cost(self, thread: Thread, cost: int, count: int) -> int:
        plan, setup, row = self.plan, self.setup, thread.row
        units, parts = 1, 1
        match Count(count):
            case Count.PAGES | Count.PAGES_PER_VMA | Count.PAGES_PER_TABLE:
                units = int(plan.pages[row])
            case Count.VMAS:
                units = int(plan.vmas[row])
            case Count.TABLES:
                units = int(plan.tables[row])
        if count in (Count.PAGES_PER_VMA, Count.PAGES_PER_TABLE):
            per = plan.vmas if count == Count.PAGES_PER_VMA else plan.tables
            parts = max(int(per[row]), 1)
        x = ((thread.draw ^ int(setup.cost_key[cost])) * MIX1) & MASK64
        draw = int(setup.cost_draw[cost, x >> 56])
        value = (int(setup.cost_q[cost]) * units * int(plan.scale[row]) >> 10) // parts
        return (value * draw >> DRAW_BITS) >> COST_BITS

    def _traits_hold(self, thread: Thread, cond: int) -> bool:
        """Where they do not, a condition does not hold, whatever the bits are."""
        traits = int(self.plan.traits[thread.row])
        wanted = int(self.model.cond_traits_set[cond])
        return traits & wanted == wanted and not traits & int(self.model.cond_traits_clear[cond])

    def _holds(self, thread: Thread, cond: int) -> bool:
        model = self.model
        if not self._traits_hold(thread, cond):
            return False
        for bit in RuntimeBit:
            if int(model.cond_bits_set[cond]) & bit and not self._bit(thread, bit):
                return False
            if int(model.cond_bits_clear[cond]) & bit and self._bit(thread, bit):
                return False
        every = int(model.cond_every[cond])
        if every:
            self.every[(thread.cpu, cond)] += 1
            return self.every[(thread.cpu, cond)] % every == 0
        return True

    def _bump(self, thread: Thread, a: int, c: int, at_ns: int, *, release: bool) -> int:
        """Move the sequence that a write section of lock ``a`` moves; returns when done."""
        index = int(self.params[a][P["bumps"]])
        at_acquire = bool(self.params[a][P["bump_acquire"]])
        if index < 0 or not (release or at_acquire):
            return at_ns
        seq = self._instance(thread, index, c)
        return at_ns if seq is None else int(seq.bump(thread.cpu, 1 if at_acquire else 2, at_ns))
