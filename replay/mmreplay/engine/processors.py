"""CPUs, the clock and the accounts of waits: what every part of the oracle acts on."""

from __future__ import annotations

import numpy as np

from mmreplay.address_space.plan import Plan, PlanOp
from mmreplay.engine.kinds.base import HAND_OVER
from mmreplay.engine.result import Options
from mmreplay.engine.setup import HOT_NS
from mmreplay.engine.states import State
from mmreplay.engine.summary import LOCK_FIELDS
from mmreplay.engine.thread import Thread
from mmreplay.engine.world import World
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
        self.queues: list[list[Thread]] = [[] for _ in range(cores)]  # runnable, not running
        self.resched = [False] * cores  # another is to run as soon as that may be
        self.last_v_ns = [0] * cores  # the average virtual time when a thread last fell asleep
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
        """A sleeper is awake: choose its CPU, queue it there, see whether it preempts.

        The running thread goes on where it is owed CPU time and its turn is not over, or where
        another comes first (check_preempt_wakeup_fair, pick_eevdf, kernel/sched/fair.c@6.18).
        """
        cpu = self._select(thread)
        self._place(thread, cpu)
        running = self.running[cpu]
        if running is None:
            self.idle_ns += self.now - self.idle_since[cpu]
            self._dispatch(thread, cpu, self.now)
            return
        thread.time_ns = None
        self.queues[cpu].append(thread)
        if running.v_ns >= running.deadline_ns or (
            running.v_ns > self._average_v(cpu) and self._pick(cpu) is thread
        ):
            self.resched[cpu] = True
            if running.state in (State.SPIN, State.OSQ, State.REVOKE, State.HANDOFF_SPIN):
                self.sooner(running, self.now + self.setup.poll)

    def _select(self, thread: Thread) -> int:
        """select_task_rq_fair: the CPU it ran on; where that is busy, an idle one.

        Not so on a machine on which wake-ups stay (``Machine.wakes_stay``).
        """
        cpu = thread.last_cpu
        if self.setup.wakes_stay or self.running[cpu] is None or None not in self.running:
            return cpu
        return self.running.index(None)

    # -- whose turn it is (EEVDF, kernel/sched/fair.c@6.18, all threads of one weight) --------
    def _update(self, running: Thread) -> None:
        """update_curr: the running thread's virtual time is the time it ran."""
        ran = max(0, self.now - running.v_from_ns)
        running.v_ns += ran
        running.v_from_ns += ran

    def _average_v(self, cpu: int) -> int:
        """avg_vruntime: who is not beyond it is owed CPU time (entity_eligible)."""
        running = self.running[cpu]
        values = [t.v_ns for t in self.queues[cpu]]
        if running is not None:
            values.append(running.v_ns)
        return sum(values) // len(values) if values else self.last_v_ns[cpu]

    def _place(self, thread: Thread, cpu: int) -> None:
        """place_entity: what a sleeper was owed it keeps, and what it owes while that counts."""
        running = self.running[cpu]
        others = len(self.queues[cpu])
        if running is not None:
            self._update(running)
            others += 1
        average = self._average_v(cpu)
        most = self.setup.most_lag
        lag = max(-most, min(most, thread.lag_ns))
        if lag < 0 and cpu == thread.last_cpu:
            if thread.v_ns > average:
                return  # it was queued all the time (DELAY_DEQUEUE)
            lag = 0
        thread.v_ns = average - (lag * (others + 1) // others if others else 0)
        thread.deadline_ns = thread.v_ns + self.setup.base_slice

    def _pick(self, cpu: int) -> Thread:
        """pick_eevdf of those that are queued: eligible, and due first."""
        average = self._average_v(cpu)
        return min(self.queues[cpu], key=lambda t: (t.v_ns > average, t.deadline_ns, t.index))

    def schedule(self, thread: Thread) -> bool:
        """Where the running thread may be preempted: is it?

        At a tick an idle CPU takes one of those that are queued (nohz_balancer_kick).
        """
        cpu = thread.cpu
        self._update(thread)
        self.resched[cpu] = False
        over = thread.v_ns >= thread.deadline_ns
        if over:
            thread.deadline_ns = thread.v_ns + self.setup.base_slice
        ticks = self.now >= thread.slice_end_ns
        if ticks:
            thread.slice_end_ns = self.now + self.setup.slice
        if self.queues[cpu] and ticks and None in self.running:
            self._pull(self._pick(cpu), cpu, self.running.index(None), self.setup.woken)
        if not self.queues[cpu]:
            return False
        if thread.v_ns > self._average_v(cpu):
            return True
        return over and thread.deadline_ns >= self._pick(cpu).deadline_ns

    def preempt(self, thread: Thread) -> None:
        """The running thread is queued; ``after`` says how it goes on."""
        cpu = thread.cpu
        self.at(thread, State.OFF, None)
        self._update(thread)
        self.queues[cpu].append(thread)
        self._yield_cpu(thread)

    def _pull(self, thread: Thread, source: int, cpu: int, cost_ns: int) -> None:
        """An idle CPU takes a queued thread from another."""
        self.queues[source].remove(thread)
        left = thread.deadline_ns - thread.v_ns
        thread.v_ns = self.last_v_ns[cpu]
        thread.deadline_ns = thread.v_ns + left
        self.idle_ns += self.now - self.idle_since[cpu]
        self._dispatch(thread, cpu, self.now + cost_ns)

    def _pull_cold(self, cpu: int) -> None:
        """sched_balance_newidle: who has not run for a while, longest first."""
        cold = [
            (t.ran_ns, t.index, t, source)
            for source, queue in enumerate(self.queues)
            for t in queue
            if self.now - t.ran_ns >= HOT_NS
        ]
        if cold:
            _, _, thread, source = min(cold, key=lambda c: c[:2])
            self._pull(thread, source, cpu, self.setup.switch)

    def wake_costs(self, thread: Thread) -> tuple[int, int]:
        """What waking a thread takes the waker, and until it may run.

        An idle CPU is interrupted, leaves its idle state and switches.  On a busy one the woken
        thread is queued, without an interrupt (try_to_wake_up, ttwu_queue,
        kernel/sched/core.c@6.18): taken for the cost of a context switch, without delay.
        """
        setup = self.setup
        if self.running[self._select(thread)] is None:
            return setup.waker, setup.woken
        return min(setup.waker, setup.switch), 0

    def _dispatch(self, thread: Thread, cpu: int, at_ns: int) -> None:
        self.running[cpu] = thread
        self.resched[cpu] = False
        thread.cpu = thread.last_cpu = cpu
        thread.v_from_ns = at_ns
        thread.slice_end_ns = at_ns + self.setup.slice
        self.cpu_mm[cpu] = int(self.plan.mm[thread.row])
        self.at(thread, thread.after, at_ns)

    def release_cpu(self, thread: Thread) -> None:
        """The running thread waits, or has ended."""
        if thread.state == State.FALL:
            thread.state = State.OFF
        self._update(thread)
        average = self._average_v(thread.cpu)
        thread.lag_ns = average - thread.v_ns
        self.last_v_ns[thread.cpu] = average
        self._yield_cpu(thread)

    def _yield_cpu(self, thread: Thread) -> None:
        cpu = thread.cpu
        self.running[cpu] = None
        thread.ran_ns = self.now
        thread.cpu = -1
        if self.queues[cpu]:
            following = self._pick(cpu)
            self.queues[cpu].remove(following)
            self._dispatch(following, cpu, self.now + self.setup.switch)
        else:
            self.resched[cpu] = False
            self.idle_since[cpu] = self.now
            self._pull_cold(cpu)
        for lock in list(thread.owned):
            lock.owner_left_cpu()

    def need_resched(self, thread: Thread) -> bool:
        cpu = thread.cpu
        if self.resched[cpu]:
            return True
        return bool(self.queues[cpu]) and self.now >= thread.slice_end_ns

    def spin_on(self, thread: Thread, state: State) -> None:
        """A waiter that spins with preemption on: where its slice ends, another may run."""
        if self.need_resched(thread):
            thread.after = state
            self.preempt(thread)
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
        if any(self.queues):
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
        lazy and is left out (should_flush_tlb, arch/x86/mm/tlb.c@6.18).  ``tables``: page tables
        are freed, which a lazy CPU may still walk by itself: it is interrupted too, and leaves
        the address space, so not again before it runs one of its threads (flush_tlb_func; the
        wait is taken for that of a CPU that runs).  ``touched``:
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
            if last == mm and (self.running[cpu] is not None or scope == FlushScope.TABLES)
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
            elif scope == FlushScope.TABLES:
                self.cpu_mm[cpu] = -1
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
