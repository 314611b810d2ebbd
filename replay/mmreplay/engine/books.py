"""What the oracle counts of a replay, and the result that is made of it."""

from __future__ import annotations

import numpy as np

from mmreplay.address_space.plan import Plan, PlanOp
from mmreplay.engine.processors import Processors
from mmreplay.engine.result import DELAY_BUCKETS, Options, Result
from mmreplay.engine.summary import Totals, delay_bucket, progress_ns, summarise
from mmreplay.engine.thread import Thread
from mmreplay.locking.model import LockingModel
from mmreplay.machine.profile import Machine


class Books(Processors):
    """Operations, waits and the window that rates are taken over; see the module docstring."""

    def __init__(self, plan: Plan, model: LockingModel, machine: Machine, options: Options) -> None:
        super().__init__(plan, model, machine, options)
        kinds, n_locks = len(PlanOp), len(model.locks)
        self.reasons = np.zeros(len(model.reasons), np.int64)
        self.op_count = np.zeros(kinds, np.int64)
        self.op_busy_ns = np.zeros(kinds, np.int64)
        self.op_wait_ns = np.zeros(kinds, np.int64)
        self.op_delay = np.zeros((kinds, DELAY_BUCKETS), np.int64)
        self.thread_end_ns = np.full(plan.n_threads, -1, np.int64)
        self.op_end_ns = np.zeros(plan.n_ops, np.int64)  # plus one; 0: not yet
        self.thread_wait_ns = np.zeros((plan.n_threads, n_locks), np.int64)
        self.sleep_ns = self.dep_wait_ns = 0
        self.group_recorded = 0
        self.window_begin_ns = self.window_end_ns = self.stop_ns = -1
        self.others_left = self.setup.others_ops
        self.records: list[tuple[int, int]] = []  # of the group: (end, user time)
        self.points: list[tuple[int, int]] = []  # user time before wake points, likewise

    def record(self, thread: Thread) -> None:
        """Count a finished operation; the window opens with the first tenth of the group's."""
        done = thread.finished
        if done is None:
            return
        thread.finished = None
        self.op_count[done.kind] += 1
        self.op_busy_ns[done.kind] += done.busy_ns
        self.op_wait_ns[done.kind] += done.wait_ns
        self.op_delay[done.kind, delay_bucket(done.delay_ns)] += 1
        if not self.setup.in_group[thread.index]:
            self.others_left -= 1
            if self.others_left == 0 and self.window_end_ns < 0:
                self.window_end_ns = self.stop_ns = self.now
        else:
            self.group_recorded += 1
            self.records.append((done.end_ns, int(self.plan.think_cpu_ns[done.row])))
            self.op_end_ns[done.row] = done.end_ns + 1
            if (
                self.window_begin_ns < 0
                and self.window_end_ns < 0
                and self.group_recorded * 10 >= self.setup.group_ops
            ):
                self.window_begin_ns = self.now

    def result(self) -> Result:
        """The replay is over."""
        for thread in self.threads:
            self.record(thread)
        stop = self.stop_ns if self.stop_ns >= 0 else int(self.thread_end_ns.max())
        for cpu, running in enumerate(self.running):
            if running is None:
                self.idle_ns += max(0, stop - self.idle_since[cpu])
        last = self.window_end_ns if self.window_end_ns >= 0 else stop
        group = [(end, user) for end, user in self.records if end <= last]
        begin = self.window_begin_ns
        window = [(end, user) for end, user in group if end > begin] if begin >= 0 else []
        passed = [(end, user) for end, user in self.points if end <= last]
        seen = [(end, user) for end, user in passed if begin >= 0 and end > begin]
        return summarise(
            self.model,
            Totals(
                stats=self.stats,
                reasons=self.reasons,
                op_count=self.op_count,
                op_busy_ns=self.op_busy_ns,
                op_wait_ns=self.op_wait_ns,
                op_delay=self.op_delay,
                blame_ns=self.blame_ns,
                thread_begun=np.array([t.nth for t in self.threads], np.int64),
                thread_end_ns=self.thread_end_ns,
                thread_wait_ns=self.thread_wait_ns,
                thread_progress_ns=progress_ns(self.plan, self.op_end_ns),
                idle_ns=self.idle_ns,
                sleep_ns=self.sleep_ns,
                dep_wait_ns=self.dep_wait_ns,
                stop_ns=stop,
                window_begin_ns=begin,
                window_end_ns=self.window_end_ns,
                window_ops=len(window),
                window_user_ns=sum(user for _, user in window + seen),
                group_ops=len(group),
                group_user_ns=sum(user for _, user in group + passed),
            ),
        )
