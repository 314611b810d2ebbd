"""The engine in plain Python: the definition of what the compiled loop computes.

Every thread has one next event; events happen in the order of (time, thread).  A
thread is on a CPU or off; on a CPU its event is the next step of its program (or
of a lock's slow path), off it the moment at which it becomes runnable.

*Ordered* steps touch something that another thread can see (``Simulation.ordered``);
all others are private.  Preemption, interrupt time and the recording of finished
operations happen at ordered steps and, at the end of a time slice, between operations:
that is what allows the compiled twin to run ahead over private steps.  The oracle
does not run ahead: each step is an event.
"""

from __future__ import annotations

from collections import defaultdict

from mmreplay.address_space.plan import WAKE_POINT, Plan
from mmreplay.engine.books import Books
from mmreplay.engine.deadlock import Stalled, stuck
from mmreplay.engine.kinds.base import Replay
from mmreplay.engine.kinds.pin import Pin
from mmreplay.engine.kinds.range import Range
from mmreplay.engine.kinds.rwsem import Rwsem
from mmreplay.engine.result import Options, Result
from mmreplay.engine.setup import (
    GOLDEN,
    P,
    mix64,
    stream_of,
)
from mmreplay.engine.states import State
from mmreplay.engine.thread import PC_BEGIN, PC_BLOCK, PC_END, PC_THINK, Finished, Thread
from mmreplay.locking.isa import Kind, Mode, Op, Operand
from mmreplay.locking.model import LockingModel
from mmreplay.machine.profile import Machine


class Simulation(Books, Replay):
    """One replay.  See the module docstring."""

    def __init__(self, plan: Plan, model: LockingModel, machine: Machine, options: Options) -> None:
        super().__init__(plan, model, machine, options)
        self.done_ops: set[int] = set()
        self.dep_waiters: dict[int, list[Thread]] = defaultdict(list)
        for thread in self.threads:
            thread.last_cpu = thread.index % self.setup.cores
            thread.lap_ns = int(plan.thread_offset_ns[thread.index])
            thread.row = int(plan.thread_first[thread.index])
            blocked = self._enter_gap(thread)
            self.at(thread, State.OFF, int(plan.thread_offset_ns[thread.index]) + blocked)

    # -- the event loop ------------------------------------------------------------
    def run(self) -> None:
        while True:
            waiting = [t for t in self.threads if t.time_ns is not None]
            if not waiting:
                break
            thread = min(waiting, key=lambda t: (t.time_ns, t.index))
            assert thread.time_ns is not None
            assert thread.time_ns >= self.now, "time runs backwards"
            self.now = thread.time_ns
            self.event(thread)
        stalled = [
            Stalled(t.index, t.row, t.pc, t.each[0] if t.each[0] < t.each[1] else -1)
            for t in self.threads
            if t.state != State.END
        ]
        if stalled and self.stop_ns < 0:
            raise stuck(self.plan, self.model, stalled)

    def event(self, thread: Thread) -> None:
        if self.stop_ns >= 0 and not (thread.state == State.RUN and self._private(thread)):
            thread.time_ns = None  # the replay is over: only private steps are finished
            return
        lock = thread.wait_lock
        match thread.state:
            case State.OFF:
                self.runnable(thread)
            case State.RUN:
                self._step(thread)
            case State.FALL:
                thread.time_ns = None
                self.stat(lock.index, "sleeps", 1)
                self.release_cpu(thread)
            case State.GRANTED:
                lock.end_wait(thread, thread.wait_mode == Mode.WRITE)
                self.locked(thread, self.now)
            case State.RETRY | State.HANDOFF_SPIN:
                lock.retry(thread)
            case State.SPIN:
                lock.spin_event(thread)
            case State.OSQ:
                lock.osq_event(thread)
            case State.REVOKE:
                lock.bravo.event(thread)
            case State.WAKE:
                self._advance(thread, lock.wake(thread, self.now))
            case State.DRAINED:
                self._advance(thread, lock.drained(thread, self._seq_of(thread, lock.index)))

    def _point(self, thread: Thread) -> bool:
        """What happens at every ordered point; False: the step comes later."""
        self.record(thread)
        self.cpu_mm[thread.cpu] = int(self.plan.mm[thread.row])
        due = self.now >= thread.slice_end_ns or self.resched[thread.cpu]
        between = thread.pc < 0 or not thread.was_ordered
        if due and between and thread.spin_depth == 0 and self.schedule(thread):
            thread.after = State.RUN
            self.preempt(thread)
            return False
        owed = self.owed_ns[thread.cpu]
        if owed and self.now >= self.due_ns[thread.cpu]:
            self.owed_ns[thread.cpu] = 0
            if thread.pc >= 0:
                thread.busy_ns += owed
            self.at(thread, State.RUN, self.now + owed)
            return False
        return True

    # -- between operations ------------------------------------------------------------------
    def _enter_gap(self, thread: Thread) -> int:
        """Set up the think time before the thread's current row; returns the blocked part."""
        plan, t = self.plan, thread.index
        thread.pc = PC_THINK
        if thread.row == plan.thread_first[t + 1]:
            thread.in_tail = True
            thread.row = max(thread.row - 1, 0)
            thread.think_left_ns = int(plan.thread_tail_cpu_ns[t])
            blocked = int(plan.thread_tail_blocked_ns[t])
        else:
            thread.think_left_ns = int(plan.think_cpu_ns[thread.row])
            blocked = int(plan.think_blocked_ns[thread.row])
        return 0 if self.setup.no_idle[t] else blocked

    def _next_operation(self, thread: Thread) -> None:
        plan, t = self.plan, thread.index
        thread.row += 1
        if thread.row == plan.thread_first[t + 1] and self.options.wrap:
            loop = int(plan.thread_loop[t])
            # a lap that takes no time would go on for ever at one instant
            if loop >= 0 and not self.setup.in_group[t] and self.now > thread.lap_ns:
                thread.lap_ns = self.now
                thread.row = loop
                thread.first_lap = False
        thread.dep_from_ns = self._enter_gap(thread)  # until PC_BLOCK: how long
        if thread.dep_from_ns:
            thread.pc = PC_BLOCK
        else:
            thread.dep_from_ns = -1

    def _gap_step(self, thread: Thread) -> None:
        if thread.pc == PC_BLOCK:
            span, thread.dep_from_ns = thread.dep_from_ns, -1
            thread.pc = PC_THINK
            self.block(thread, span)
        elif thread.pc == PC_THINK:
            span = min(thread.think_left_ns, max(0, thread.slice_end_ns - self.now))
            thread.think_left_ns -= span
            if thread.think_left_ns == 0:
                thread.pc = PC_END if thread.in_tail else PC_BEGIN
            self.at(thread, State.RUN, self.now + span)
        elif thread.pc == PC_BEGIN:
            self._begin(thread)
        else:
            self._end(thread)

    def _begin(self, thread: Thread) -> None:
        plan, row = self.plan, thread.row
        if self._has_deps(thread):
            for dep in plan.dep_op[plan.dep_first[row] : plan.dep_first[row + 1]].tolist():
                if dep not in self.done_ops:
                    if thread.dep_from_ns < 0:
                        thread.dep_from_ns = self.now
                    self.dep_waiters[dep].append(thread)
                    thread.after = State.RUN
                    self.at(thread, State.OFF, None)
                    self.release_cpu(thread)
                    return
            if thread.dep_from_ns >= 0:
                self.dep_wait_ns += self.now - thread.dep_from_ns
            thread.dep_from_ns = -1
            thread.was_ordered = True
        else:
            thread.was_ordered = False
        if plan.traits[row] & WAKE_POINT:
            self._pass_point(thread)
            return
        thread.kind = int(plan.op[row])
        thread.begin_ns = self.now
        thread.busy_ns = thread.wait_ns = 0
        thread.tried = False
        thread.each = (0, 0)
        stream = stream_of(self.options.seed, thread.index)
        thread.draw = mix64(stream + thread.nth * GOLDEN)
        thread.nth += 1
        entry = int(self.model.entry[thread.kind])
        thread.pc = entry
        if entry < 0:
            self._finish(thread)
        self.at(thread, State.RUN, self.now)

    def _pass_point(self, thread: Thread) -> None:
        """No operation, but where its thread woke another, or was woken (``plan.WAKE_POINT``)."""
        plan, row = self.plan, thread.row
        self.op_end_ns[row] = self.now + 1
        if self.setup.in_group[thread.index]:
            self.points.append((self.now, int(plan.think_cpu_ns[row])))
        self._show_end(row)
        waits = plan.dep_first[row] < plan.dep_first[row + 1]
        span = int(plan.sleep_ns[row]) if waits and not thread.first_lap else 0
        self._next_operation(thread)
        if span > 0:
            thread.dep_from_ns = max(thread.dep_from_ns, 0) + span
            thread.pc = PC_BLOCK
        self.at(thread, State.RUN, self.now)

    def _has_deps(self, thread: Thread) -> bool:
        first = self.plan.dep_first
        return thread.first_lap and bool(first[thread.row] < first[thread.row + 1])

    def _finish(self, thread: Thread) -> None:
        """The operation is over."""
        row = thread.row
        assert thread.finished is None
        thread.finished = Finished(
            row, thread.kind, self.now, thread.busy_ns, thread.wait_ns, self.now - thread.begin_ns
        )
        self._show_end(row)
        self._next_operation(thread)
        self.at(thread, State.RUN, self.now)

    def _show_end(self, row: int) -> None:
        """Who waits for the end of a row of the plan may go on."""
        if self.analysis.has_dependents[row] and row not in self.done_ops:
            self.done_ops.add(row)
            for waiter in self.dep_waiters.pop(row, []):
                self.at(waiter, State.OFF, self.now + self.wake_costs(waiter)[1])

    def _end(self, thread: Thread) -> None:
        plan, t = self.plan, thread.index
        self.thread_end_ns[t] = self.now
        self.at(thread, State.END, None)
        self.release_cpu(thread)
        empty = plan.thread_first[t] == plan.thread_first[t + 1]
        if self.setup.in_group[t] and not empty and self.window_end_ns < 0:
            self.window_end_ns = self.now
            if self.options.wrap:
                self.stop_ns = self.now

    # -- steps ---------------------------------------------------------------------------------
    def _private(self, thread: Thread) -> bool:
        """Is the thread's next step private, and no moment to preempt it?"""
        if thread.pc < 0 and self.now >= thread.slice_end_ns:
            return False
        return not self.ordered(thread)

    def _step(self, thread: Thread) -> None:
        ordered = self.ordered(thread)
        if ordered or (thread.pc < 0 and self.now >= thread.slice_end_ns):
            if not self._point(thread):
                return
        if thread.pc < 0:
            self._gap_step(thread)
            return
        if ordered:
            thread.was_ordered = True
        self._execute(thread)

    def ordered(self, thread: Thread) -> bool:
        """Does the next step touch what another thread can see?"""
        if thread.pc < 0:
            if thread.pc == PC_BEGIN:
                # an operation without a program also ends here
                no_program = self.model.entry[self.plan.op[thread.row]] < 0
                return self._has_deps(thread) or bool(no_program)
            return thread.pc in (PC_BLOCK, PC_END)
        op, a, b, c = (int(x) for x in self.model.code[thread.pc, :4])
        match Op(op):
            case Op.DONE:
                known, row = self.analysis, thread.row
                if known.has_dependents[row] or known.touches[row]:
                    return True
                return not thread.was_ordered
            case Op.SLEEP | Op.FLUSH:
                return True
            case Op.TOUCH:
                return self._line_shared(thread, a, c)
            case (
                Op.LOCK
                | Op.TRY
                | Op.UNLOCK
                | Op.DOWNGRADE
                | Op.MARK
                | Op.SNAP
                | Op.CHECK
                | Op.CONTENDED
            ):
                if op in (Op.SNAP, Op.CHECK, Op.MARK, Op.DOWNGRADE, Op.CONTENDED):
                    c = Operand.NONE
                used = [a]
                if op in (Op.TRY, Op.MARK):
                    used.append(int(self.params[a][P["marks_by"]]))
                if op == Op.DOWNGRADE or (op in (Op.LOCK, Op.TRY, Op.UNLOCK) and b == Mode.WRITE):
                    used.append(int(self.params[a][P["bumps"]]))
                return any(
                    self._shared(thread, int(self.model.lock_scope[x]), c)
                    or self._line_shared(thread, int(self.model.lock_line[x]), c)
                    for x in used
                    if x >= 0
                )
            case Op.BRANCH if self._traits_hold(thread, a):
                bits = int(self.model.cond_bits_set[a]) | int(self.model.cond_bits_clear[a])
                return self._bits_shared(thread, bits)
            case Op.SET:
                return self._bits_shared(thread, a)
        return False

    def _execute(self, thread: Thread) -> None:
        op, a, b, c, target = (int(x) for x in self.model.code[thread.pc, :5])
        now, cpu = self.now, thread.cpu
        match Op(op):
            case Op.DONE:
                if self.analysis.touches[thread.row]:
                    for place in self.touch_places(thread.row):
                        self.touched[place].add(cpu)
                self._finish(thread)
            case Op.COST:
                self._advance(thread, now + self._cost(thread, a, b))
            case Op.SLEEP:
                recorded = int(self.plan.sleep_ns[thread.row])
                span = recorded if recorded >= 0 else int(self.setup.sleep_ns[a])
                self.sleep_ns += span
                thread.pc += 1
                self.block(thread, span)
            case Op.FLUSH:
                self._advance(thread, now + self.flush(thread, a))
            case Op.TOUCH:
                line = self._line(thread, a, c)
                self._advance(thread, line.store(cpu, now) if b == 1 else line.read(cpu, now))
            case Op.LOCK:
                self._lock(thread, a, b, c)
            case Op.TRY:
                self._try(thread, a, b, c, target)
            case Op.UNLOCK:
                self._unlock(thread, a, b, c)
            case Op.DOWNGRADE:
                at_ns = self._bump(thread, a, Operand.NONE, now, release=True)
                self._hold_end(thread, a, Mode.WRITE, False)
                self.stat(a, "downgrade", 1)
                lock = self._instance(thread, a, Operand.NONE)
                if lock is None:
                    at_ns += self.setup.atomic
                else:
                    at_ns = lock.downgrade(thread, at_ns)
                at_ns = self._store_owner(thread, a, Operand.NONE, at_ns)
                thread.held_since[(a, False)] = at_ns
                self._advance(thread, at_ns)
            case Op.MARK:
                lock = self._instance(thread, a, Operand.NONE)
                if lock is None:
                    self._advance(thread, now)
                    return
                done = lock.mark(thread, self._seq_of(thread, a), now)
                if done is not None:
                    self._advance(thread, done)
            case Op.SNAP | Op.CHECK:
                self._sequence(thread, Op(op), a, target)
            case Op.CONTENDED:
                self._contended(thread, a, target)
            case Op.BRANCH:
                self._advance(thread, now, target if self._holds(thread, a) else None)
            case Op.JUMP:
                self._advance(thread, now, target)
            case Op.EACH:
                first, last = self._marks(thread.row, a)
                thread.each = (first, last)
                self._advance(thread, now, target if first == last else None)
                if first == last:
                    thread.each = (0, 0)
            case Op.END:
                thread.each = (thread.each[0] + 1, thread.each[1])
                more = thread.each[0] < thread.each[1]
                if not more:
                    thread.each = (0, 0)
                self._advance(thread, now, target if more else None)
            case Op.SET:
                self._set_bit(thread, a)
                self._advance(thread, now)
            case Op.COUNT:
                self.reasons[a] += 1
                self._advance(thread, now)

    def _advance(self, thread: Thread, until_ns: int, target: int | None = None) -> None:
        """The step is done at ``until_ns``; the time since now was busy."""
        thread.busy_ns += until_ns - self.now
        thread.pc = thread.pc + 1 if target is None else target
        self.at(thread, State.RUN, until_ns)

    # -- single instructions --------------------------------------------------------------------
    def _lock(self, thread: Thread, a: int, mode: int, c: int) -> None:
        lock = self._instance(thread, a, c)
        done: int | None
        if lock is None:
            done = self.now + self.setup.atomic
        elif isinstance(lock, Pin):
            done = lock.lock_read(thread, self.now)
        elif self.model.lock_kind[a] == Kind.SPIN:
            thread.wait_mode = Mode.WRITE
            done = lock.lock(thread, self.now)
        elif isinstance(lock, Range):
            done = lock.lock(thread, mode, c, self.now)
        else:
            done = lock.lock(thread, mode, self.now)
        if self.model.lock_kind[a] == Kind.SPIN:
            thread.spin_depth += 1
        if done is not None:
            self.locked(thread, done)

    def locked(self, thread: Thread, at_ns: int) -> None:
        """The LOCK or TRY at the thread's program counter has succeeded."""
        _, a, mode, c = (int(x) for x in self.model.code[thread.pc, :4])
        lock = self._instance(thread, a, c)
        if isinstance(lock, Rwsem) and lock.bravo is not None:
            taken = lock.bravo.locked(thread, mode, at_ns)
            if taken is None:
                return
            at_ns = taken
        self.held(thread, at_ns)

    def held(self, thread: Thread, at_ns: int) -> None:
        """The lock at the thread's program counter is held, for good."""
        _, a, mode, c = (int(x) for x in self.model.code[thread.pc, :4])
        self.stat(a, "write" if mode == Mode.WRITE else "read", 1)
        at_ns = self._store_owner(thread, a, c, at_ns)
        if mode == Mode.WRITE:
            at_ns = self._bump(thread, a, c, at_ns, release=False)
        thread.held_since[(a, c in (Operand.CHILD, Operand.TARGET))] = at_ns
        self._advance(thread, at_ns)

    def _store_owner(self, thread: Thread, a: int, operand: int, at_ns: int) -> int:
        """rwsem_set_owner, rwsem_set_reader_owned, rwsem_clear_owner."""
        index = int(self.params[a][P["owner_line"]])
        return at_ns if index < 0 else self._line(thread, index, operand).store(thread.cpu, at_ns)

    def _try(self, thread: Thread, a: int, mode: int, c: int, target: int) -> None:
        lock = self._instance(thread, a, c)
        if lock is None:
            # a fault without a VMA has nothing to pin; other objects are private
            ok = self.model.lock_kind[a] != Kind.PIN
            done = self.now + (self.setup.atomic if ok else 0)
        elif isinstance(lock, Pin):
            ok, done = lock.try_read(thread, self._seq_of(thread, a), self.now)
        elif self.model.lock_kind[a] == Kind.SPIN:
            ok, done = lock.try_lock(thread, self.now)
        elif isinstance(lock, Range):
            ok, done = lock.try_lock(thread, mode, c, self.now)
        else:
            ok, done = lock.try_lock(thread, mode, self.now)
        if not ok:
            self.stat(a, "try_failed", 1)
            self._advance(thread, done, target)
            return
        if self.model.lock_kind[a] == Kind.SPIN:
            thread.spin_depth += 1
        self.locked(thread, done)

    def _unlock(self, thread: Thread, a: int, mode: int, c: int) -> None:
        at_ns = self.now
        if mode == Mode.WRITE:
            at_ns = self._bump(thread, a, c, at_ns, release=True)
            at_ns = self._store_owner(thread, a, c, at_ns)
        self._hold_end(thread, a, mode, c in (Operand.CHILD, Operand.TARGET))
        lock = self._instance(thread, a, c)
        done: int | None
        if lock is None:
            done = at_ns + self.setup.atomic
        elif isinstance(lock, Rwsem):
            done = lock.unlock(thread, mode, at_ns)
        else:
            done = lock.unlock(thread, at_ns)
        if self.model.lock_kind[a] == Kind.SPIN:
            thread.spin_depth -= 1
        if done is None:  # a second step wakes the waiters
            thread.busy_ns += (thread.time_ns or 0) - self.now
        else:
            self._advance(thread, done)

    def _hold_end(self, thread: Thread, a: int, mode: int, other: bool) -> None:
        held = self.now - thread.held_since[(a, other)]
        self.stat(a, "write_hold_ns" if mode == Mode.WRITE else "read_hold_ns", held)

    def _sequence(self, thread: Thread, op: Op, a: int, target: int) -> None:
        seq = self._instance(thread, a, Operand.NONE)
        value = 0 if seq is None else seq.value
        done = self.now if seq is None else seq.line.read(thread.cpu, self.now)
        if op == Op.SNAP:
            failed = value % 2 == 1 and target >= 0
            if not failed:
                thread.snaps[a] = value
        else:
            failed = value != thread.snaps.get(a, 0)
        self._advance(thread, done, target if failed else None)

    def _contended(self, thread: Thread, a: int, target: int) -> None:
        """rwsem_is_contended, spin_is_contended: a look at the queue."""
        lock = self._instance(thread, a, Operand.NONE)
        owner = int(self.params[a][P["owner_line"]])  # the queue lies on the owner's line
        line = self._line(thread, owner if owner >= 0 else int(self.model.lock_line[a]), 0)
        waits = lock is not None and lock.contended
        self._advance(thread, line.read(thread.cpu, self.now), target if waits else None)


def simulate_oracle(plan: Plan, model: LockingModel, machine: Machine, options: Options) -> Result:
    """Replay a plan; the same result as :func:`mmreplay.engine.simulate`, slowly."""
    simulation = Simulation(plan, model, machine, options)
    simulation.run()
    return simulation.result()
