"""CPUs, the clock and the accounts of waits: what every part of the oracle acts on."""

from __future__ import annotations

from collections import deque

import numpy as np

from mmreplay.address_space.plan import Plan, PlanOp
from mmreplay.engine.kinds.base import HAND_OVER
from mmreplay.engine.result import Options
from mmreplay.engine.states import State
from mmreplay.engine.summary import LOCK_FIELDS
from mmreplay.engine.world import Thread, World
from mmreplay.locking.isa import FlushScope
from mmreplay.locking.model import LockingModel
from mmreplay.machine.profile import Machine


class Processors(World):
    """Which thread runs where, whose event is when; counters per lock and blame."""

    def __init__(self, plan: Plan, model: LockingModel, machine: Machine, options: Options) -> None:
        super().__init__(plan, model, machine, options)
        self.now = 0
        cores = self.setup.cores
        self.running: list[Thread | None] = [None] * cores
        self.cpu_mm = [-1] * cores
        self.owed_ns = [0] * cores
        self.acks_from_ns = [0] * cores  # waits for acknowledgements, not yet interrupted itself
        self.acks_until_ns = [0] * cores
        self.due_ns = [0] * cores  # when the interrupt for what is owed has come
        self.idle_since: list[int] = [0] * cores
        self.run_queue: deque[Thread] = deque()
        self.threads = [Thread(i) for i in range(plan.n_threads)]
        self.still = 0  # looks of spinners, one after the other, while all threads spun
        self.idle_ns = 0
        kinds, n_locks = len(PlanOp), len(model.locks)
        self.stats = np.zeros((n_locks, len(LOCK_FIELDS)), np.int64)
        self.blame_ns = np.zeros((n_locks, kinds + 1, kinds), np.int64)

    # -- events ------------------------------------------------------------------------
    def at(self, thread: Thread, state: State, time_ns: int | None) -> None:
        """Set the thread's next event; ``None``: somebody else will."""
        thread.state, thread.time_ns = state, time_ns

    def sooner(self, thread: Thread, time_ns: int) -> None:
        """Bring the thread's event forward."""
        if thread.time_ns is None or thread.time_ns > time_ns:
            thread.time_ns = time_ns

    # -- CPUs --------------------------------------------------------------------------
    def runnable(self, thread: Thread) -> None:
        cpu = thread.last_cpu
        if self.running[cpu] is not None:
            idle = [c for c, t in enumerate(self.running) if t is None]
            if not idle:
                thread.time_ns = None
                self.run_queue.append(thread)
                return
            cpu = idle[0]
        self.idle_ns += self.now - self.idle_since[cpu]
        self._dispatch(thread, cpu, self.now)

    def wake_costs(self) -> tuple[int, int]:
        """What a wake-up takes its waker, and until the woken one may run.

        An idle CPU is interrupted, leaves its idle state and switches.  Where there is none, the
        woken one is queued on a busy one, without an interrupt (try_to_wake_up, ttwu_queue,
        kernel/sched/core.c@6.18): taken for the cost of a context switch, without delay.
        """
        setup = self.setup
        if None in self.running:
            return setup.waker, setup.woken
        return min(setup.waker, setup.switch), 0

    def _dispatch(self, thread: Thread, cpu: int, at_ns: int) -> None:
        self.running[cpu] = thread
        thread.cpu = thread.last_cpu = cpu
        thread.slice_end_ns = at_ns + self.setup.slice
        self.cpu_mm[cpu] = int(self.plan.mm[thread.row])
        self.at(thread, thread.after, at_ns)

    def release_cpu(self, thread: Thread) -> None:
        cpu = thread.cpu
        if thread.state == State.FALL:
            thread.state = State.OFF
        self.running[cpu] = None
        thread.cpu = -1
        if self.run_queue:
            self._dispatch(self.run_queue.popleft(), cpu, self.now + self.setup.switch)
        else:
            self.idle_since[cpu] = self.now
        for lock in list(thread.owned):
            lock.owner_left_cpu()

    def need_resched(self, thread: Thread) -> bool:
        return bool(self.run_queue) and self.now >= thread.slice_end_ns

    def spin_on(self, thread: Thread, state: State) -> None:
        """A waiter that spins with preemption on: where its slice ends, another may run."""
        if self.need_resched(thread):
            thread.after = state
            self.at(thread, State.OFF, None)
            self.run_queue.append(thread)
            self.release_cpu(thread)
            return
        if self.now >= thread.slice_end_ns:
            thread.slice_end_ns = self.now + self.setup.slice
        self.at(thread, state, thread.slice_end_ns)
        self.stop_if_all_spin()

    def stop_if_all_spin(self) -> None:
        """Called where a spinner begins another slice: does anybody do anything else?

        If not, until every spinner has looked again, nobody ever will: then no thread has
        an event any more.
        """
        spinning = (State.SPIN, State.OSQ, State.REVOKE)
        self.still += 1
        for t in self.threads:
            if t.time_ns is not None and (t.state not in spinning or t.time_ns != t.slice_end_ns):
                self.still = 0
        if self.run_queue:
            self.still = 0
        if self.still > len(self.threads):
            for t in self.threads:
                t.time_ns = None

    def block(self, thread: Thread, span_ns: int) -> None:
        """Leave the CPU for a span of time."""
        thread.after = State.RUN
        self.at(thread, State.OFF, self.now + span_ns)
        self.release_cpu(thread)

    def flush(self, thread: Thread, scope: int) -> int:
        """TLB shootdown: wait for the other CPUs concerned; they owe the handler.

        ``mm``: those that run a thread of the address space; a CPU that went idle from one is
        lazy and is left out (should_flush_tlb, arch/x86/mm/tlb.c@6.18; that freeing page tables
        interrupts it once, and that takes it out of the mask, is not modelled).  ``touched``:
        those that made translations of the range since it was last flushed, whatever they
        run now.  Who waits for acknowledgements has interrupts on and serves those of others
        meanwhile (csd_lock_wait in smp_call_function_many_cond, kernel/smp.c@6.18): a handler
        costs it only what does not fit into its own wait.  An interrupt is on its way for half
        of what the wait for one target exceeds the handler by.
        """
        setup = self.setup
        if scope == FlushScope.NONE:
            return 0
        mm = int(self.plan.mm[thread.row])
        concerned = {
            cpu
            for cpu, last in enumerate(self.cpu_mm)
            if last == mm and self.running[cpu] is not None
        }
        if scope == FlushScope.TOUCHED:
            concerned = set()
            for place in self.touch_places(thread.row):
                concerned |= self.touched[place]
                self.touched[place] = set()
        concerned.discard(thread.cpu)
        targets = len(concerned)
        for cpu in concerned:
            if self.running[cpu] is not None:
                self.due_ns[cpu] = self.now + setup.flight
                self.owed_ns[cpu] += setup.handler
                self._serve(cpu)
        if targets == 0:
            return setup.flush_base
        span_ns = setup.flush_base + setup.flush_first + setup.flush_next * (targets - 1)
        self.acks_from_ns[thread.cpu] = self.now
        self.acks_until_ns[thread.cpu] = self.now + span_ns
        self._serve(thread.cpu)
        return span_ns

    def _serve(self, cpu: int) -> None:
        """What the CPU owes is done in its own wait, as far as that reaches."""
        begin = max(self.due_ns[cpu], self.acks_from_ns[cpu])
        waiting = max(0, min(self.owed_ns[cpu], self.acks_until_ns[cpu] - begin))
        self.acks_from_ns[cpu] = begin + waiting
        self.owed_ns[cpu] -= waiting

    # -- accounts ----------------------------------------------------------------------
    def stat(self, lock: int, name: str, by: int) -> None:
        self.stats[lock, LOCK_FIELDS.index(name)] += by

    def blame(self, lock: int, holder: int, waiter: int, span_ns: int) -> None:
        row = len(PlanOp) if holder == HAND_OVER else holder
        self.blame_ns[lock, row, waiter] += span_ns
