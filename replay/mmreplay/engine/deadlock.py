"""Who waits for whom when a replay stands still: the message that names the circle.

A program counter has exactly one set of held locks (the static check proves it for every
shipped model), so what a thread holds is read off its program, and neither twin keeps
books for the case.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmreplay.address_space.plan import Plan, PlanOp
from mmreplay.engine.kinds.range import Round, span, widen
from mmreplay.engine.setup import P, object_of
from mmreplay.errors import UserError
from mmreplay.locking.isa import LINE, OP, TARGET, A, B, C, Kind, Mode, Op, Operand
from mmreplay.locking.model import LockingModel


@dataclass(frozen=True)
class Stalled:
    """A thread whose event never comes."""

    thread: int
    row: int  # its operation
    pc: int  # its instruction in ``model.code``; below 0: it waits to begin the operation
    mark: int = -1  # place in ``plan.mark_vma`` where EACH stands; -1 outside


@dataclass(frozen=True)
class _Claim:
    """A lock that a thread holds or waits for."""

    thread: int
    lock: int
    obj: int
    mode: int  # Mode; 2: to mark
    pc: int
    first: int  # range locks: the pages
    last: int

    def excludes(self, other: _Claim) -> bool:
        if (self.lock, self.obj) != (other.lock, other.obj):
            return False
        if self.mode == Mode.READ and other.mode == Mode.READ:
            return False
        return self.first <= other.last and other.first <= self.last


_MARKS = 2
_MODE = {Mode.READ: "read", Mode.WRITE: "write", _MARKS: "mark"}


def stuck(plan: Plan, model: LockingModel, stalled: Sequence[Stalled]) -> UserError:
    """The error for threads that wait for ever."""
    where = str(model.path)
    report = _Report(plan, model, stalled)
    circle = report.circle()
    if circle:
        steps = "; ".join(report.describe(a, b) for a, b in circle)
        locks = any(step.pc >= 0 for step, _ in circle)
        many = f"{len(circle)} threads wait for each other" if len(circle) > 1 else "a thread waits"
        return UserError(
            f"{many} for ever: {steps}",
            where=where,
            fix="let its programs take these locks in one order (declare ranks for the check)"
            if locks
            else "the plan's operations depend on each other in a circle: import the trace again",
        )
    first = report.stalled[0]
    return UserError(
        f"{len(stalled)} threads wait for ever: {report.describe(first, None)}",
        where=where,
        fix="look for a program that ends with a lock, or that nobody wakes",
    )


class _Report:
    def __init__(self, plan: Plan, model: LockingModel, stalled: Sequence[Stalled]) -> None:
        self.plan, self.model = plan, model
        self.stalled = sorted(stalled, key=lambda s: s.thread)
        self.by_thread = {s.thread: s for s in stalled}
        self.held = {s.thread: self._held(s) for s in self.stalled}
        self.wants = {s.thread: self._wanted(s) for s in self.stalled}

    # -- what a thread holds and wants ---------------------------------------------------
    def _claim(self, who: Stalled, pc: int, mode: int) -> _Claim:
        plan, model = self.plan, self.model
        lock, operand = int(model.code[pc, A]), max(0, int(model.code[pc, C]))
        if model.code[pc, OP] == Op.MARK:
            operand = int(Operand.NONE)
        scope = int(model.lock_scope[lock])
        obj = object_of(plan, who.row, scope, operand, who.mark)
        first = last = 0
        if model.lock_kind[lock] == Kind.RANGE:
            first, last = span(plan, who.row, operand)
            by_node = model.lock_params[lock][P["round"]] == Round.PT_NODE
            if by_node or operand == Operand.NODE:
                first, last = widen(first, last)
        return _Claim(who.thread, lock, obj, mode, pc, first, last)

    def _held(self, who: Stalled) -> list[_Claim]:
        """By the first way through the program that leads to where the thread stands."""
        if who.pc < 0:
            return []
        code = self.model.code
        entry = int(self.model.entry[self.plan.op[who.row]])
        todo: list[tuple[int, tuple[tuple[int, int], ...]]] = [(entry, ())]  # pc, (pc taken, mode)
        seen = set()
        while todo:
            pc, held = todo.pop(0)
            if pc == who.pc:
                return [self._claim(who, taken, mode) for taken, mode in held]
            if pc in seen:
                continue
            seen.add(pc)
            op, lock, mode = Op(code[pc, OP]), int(code[pc, A]), int(code[pc, B])
            after = held
            if op in (Op.LOCK, Op.TRY):
                after = (*held, (pc, mode))
            elif op == Op.UNLOCK:
                other = int(code[pc, C])
                after = tuple(h for h in held if (code[h[0], A], code[h[0], C]) != (lock, other))
            elif op == Op.DOWNGRADE:
                after = tuple((h, Mode.READ if code[h, A] == lock else m) for h, m in held)
            if op not in (Op.DONE, Op.JUMP):
                todo.append((pc + 1, after))
            if code[pc, TARGET] >= 0:
                todo.append((int(code[pc, TARGET]), held if op == Op.TRY else after))
        return []

    def _wanted(self, who: Stalled) -> _Claim | None:
        if who.pc < 0:
            return None
        op = self.model.code[who.pc, OP]
        if op == Op.MARK:
            return self._claim(who, who.pc, _MARKS)
        return self._claim(who, who.pc, int(self.model.code[who.pc, B])) if op == Op.LOCK else None

    # -- who is in whose way ---------------------------------------------------------------
    def _missing(self, who: Stalled) -> int:
        """The first operation that a thread waits for before it begins its own; -1 none."""
        first, last = self.plan.dep_first[who.row], self.plan.dep_first[who.row + 1]
        for dep in self.plan.dep_op[first:last].tolist():
            other = self.by_thread.get(self._owner(dep))
            if other is not None and dep >= other.row:
                return int(dep)
        return -1

    def _owner(self, row: int) -> int:
        return int(np.searchsorted(self.plan.thread_first, row, "right")) - 1

    def _blockers(self, who: Stalled) -> list[int]:
        if who.pc < 0:
            dep = self._missing(who)
            return [self._owner(dep)] if dep >= 0 else []
        want = self.wants[who.thread]
        if want is None:
            return []
        holders = [t for t, held in self.held.items() if any(want.excludes(h) for h in held)]
        if holders:
            return holders
        queued = ((t, w) for t, w in self.wants.items() if t != who.thread and w is not None)
        return [t for t, w in queued if want.excludes(w)]

    def circle(self) -> list[tuple[Stalled, Stalled]]:
        """Threads each of which waits for the next one, or nothing."""
        done: set[int] = set()
        for start in self.by_thread:
            path: list[int] = []
            if self._walk(start, path, done):
                path = path[path.index(path[-1]) :]
                return [(self.by_thread[a], self.by_thread[b]) for a, b in itertools.pairwise(path)]
        return []

    def _walk(self, start: int, path: list[int], done: set[int]) -> bool:
        """Depth first without recursion; ``path`` ends with the thread that closes the circle."""
        path.append(start)
        ways = [iter(self._blockers(self.by_thread[start]))]
        while ways:
            after = next(ways[-1], None)
            if after is None:
                ways.pop()
                done.add(path.pop())
            elif after in path:
                path.append(after)
                return True
            elif after not in done and after in self.by_thread:
                path.append(after)
                ways.append(iter(self._blockers(self.by_thread[after])))
        return False

    # -- words --------------------------------------------------------------------------------
    def _name(self, who: Stalled) -> str:
        return f"thread {who.thread} ({PlanOp(int(self.plan.op[who.row])).name.lower()})"

    def _what(self, claim: _Claim) -> str:
        line = int(self.model.code[claim.pc, LINE])
        return f"{self.model.locks[claim.lock]} ({_MODE[claim.mode]}, line {line})"

    def describe(self, who: Stalled, by: Stalled | None) -> str:
        want = self.wants[who.thread]
        if who.pc < 0:
            dep = self._missing(who)
            text = f"{self._name(who)} waits to begin operation {who.row}"
            return f"{text} until operation {dep} of thread {self._owner(dep)} is over"
        if want is None:
            line = int(self.model.code[who.pc, LINE])
            return f"{self._name(who)} stands at line {line}"
        text = f"{self._name(who)} waits for {self._what(want)}"
        if by is None:
            return f"{text}, which no thread that waits holds"
        held = next((h for h in self.held[by.thread] if want.excludes(h)), None)
        if held is None:
            return f"{text} behind {self._name(by)}"
        return f"{text}, which {self._name(by)} holds ({_MODE[held.mode]}, line {self._line(held)})"

    def _line(self, claim: _Claim) -> int:
        return int(self.model.code[claim.pc, LINE])
