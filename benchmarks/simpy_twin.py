"""The same replay on SimPy's event loop: is the compiled engine right, and how much faster is it?

The engine's plain-Python definition (:mod:`mmreplay.engine.oracle`) says what each event does
and when the next one is due; here SimPy keeps the calendar and calls it.  Every field of the
result must equal the compiled engine's; then the times are printed, and beside them those of
SimPy alone: as many timeouts of one process, which do nothing, as this replay has events.

    python benchmarks/simpy_twin.py [--threads 8,64] [--ops 20000] [--models A,B]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Generator
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import simpy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "replay"))

from engine_speed import fault_plan
from mmreplay.address_space.plan import Plan
from mmreplay.engine import Options, Replay, Result
from mmreplay.engine.oracle import Simulation
from mmreplay.engine.states import State
from mmreplay.engine.thread import Thread
from mmreplay.locking.loader import load_model
from mmreplay.locking.model import LockingModel
from mmreplay.machine.loader import load_machine
from mmreplay.machine.profile import Machine
from mmreplay.machine.topology import extrapolated


class Moment(simpy.Event):
    """A thread's next event.  Those of one instant happen in the order of the threads."""

    def __init__(self, env: simpy.Environment, thread: Thread, then: Any) -> None:
        super().__init__(env)
        self.thread = thread
        self.callbacks.append(then)
        self._ok, self._value = True, None
        env.schedule(self, priority=thread.index, delay=thread.time_ns - env.now)


class SimpyReplay(Simulation):
    """The oracle's threads and locks on a :class:`simpy.Environment`; one unit of time is 1 ns."""

    def __init__(self, plan: Plan, model: LockingModel, machine: Machine, options: Options) -> None:
        self.env = simpy.Environment()
        self.events = 0
        super().__init__(plan, model, machine, options)

    def at(self, thread: Thread, state: State, time_ns: int | None) -> None:
        super().at(thread, state, time_ns)
        if time_ns is not None:
            Moment(self.env, thread, self._happen)

    def sooner(self, thread: Thread, time_ns: int) -> None:
        before = thread.time_ns
        super().sooner(thread, time_ns)
        if thread.time_ns != before:
            Moment(self.env, thread, self._happen)

    def _happen(self, moment: Moment) -> None:
        thread = moment.thread
        if thread.time_ns == self.env.now:  # else it was cancelled, or brought forward
            self.now = thread.time_ns
            self.events += 1
            self.event(thread)

    def run(self) -> None:
        self.env.run()
        super().run()  # nothing is left to do, unless threads are stuck: it says which


def bare_timeouts(count: int) -> float:
    """CPU seconds that SimPy takes for ``count`` timeouts of one process."""

    def process(env: simpy.Environment) -> Generator[simpy.Event, None, None]:
        for _ in range(count):
            yield env.timeout(1)

    env = simpy.Environment()
    env.process(process(env))
    before = time.thread_time()
    env.run()
    return time.thread_time() - before


def differences(found: Result, expected: Result) -> list[str]:
    """Names of the fields that differ (the engine's own times and speeds aside)."""
    return [
        field.name
        for field in fields(Result)
        if field.compare
        and not np.array_equal(getattr(found, field.name), getattr(expected, field.name))
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", default="8,64")
    parser.add_argument("--ops", type=int, default=20_000)
    parser.add_argument("--models", default="linux-6.1,linux-6.18")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    machine = extrapolated(load_machine("generic-server"), 256)
    print("model         threads   SimPy k ops/s   bare timeouts k ops/s   engine M ops/s   ratio")
    for name in arguments.models.split(","):
        model = load_model(name)
        for threads in (int(x) for x in arguments.threads.split(",")):
            plan, options = fault_plan(threads, arguments.ops), Options(cores=threads)
            replay = Replay(plan, model)
            engine_s, simpy_s, bare_s = [], [], []
            for _ in range(arguments.repeat):
                fast = replay.run(machine, options)
                engine_s.append(fast.detail["loop_cpu_s"])
                twin = SimpyReplay(plan, model, machine, options)
                before = time.thread_time()
                twin.run()
                simpy_s.append(time.thread_time() - before)
                wrong = differences(fast, twin.result())
                if wrong:
                    sys.exit(f"{name}, {threads} threads: SimPy and the engine differ in {wrong}")
                bare_s.append(bare_timeouts(twin.events))
            engine, slow, bare = (fast.ops / median(x) for x in (engine_s, simpy_s, bare_s))
            print(
                f"{name:12} {threads:8} {slow / 1e3:15.1f} {bare / 1e3:23.1f} {engine / 1e6:16.2f}"
                f" {engine / slow:7.0f} ({engine / bare:.0f} against bare timeouts)"
            )


if __name__ == "__main__":
    main()
