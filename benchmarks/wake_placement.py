"""Do wake-ups on this machine move the woken thread to an idle CPU?

A process that sleeps on a pipe is woken by another one that computes on the CPU it ran on last.
That one computes for part of the time, a CPU being busy so much; all others are idle.  Linux as
published moves it whenever that helps (select_idle_sibling, kernel/sched/fair.c@6.18).  Where most
wake-ups stay, a profile says ``wakes_stay = true``.  Wants an idle machine, and a minute.

    python benchmarks/wake_placement.py
"""

from __future__ import annotations

import ctypes
import os
import time

ROUNDS = 200
#: Computing after the wake-up: long enough for an idle CPU to have answered.
AFTER_S = 0.3e-3


def compute(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def moved(before_s: float, nap_s: float) -> float:
    """Share of wake-ups that moved: the waker sleeps, computes, wakes, computes."""
    allowed = sorted(os.sched_getaffinity(0))
    here = allowed[0]
    wake_read, wake_write = os.pipe()
    told_read, told_write = os.pipe()
    libc = ctypes.CDLL(None)
    child = os.fork()
    if child == 0:
        for _ in range(ROUNDS):
            os.sched_setaffinity(0, {here})
            os.sched_setaffinity(0, set(allowed))
            os.read(wake_read, 1)
            os.write(told_write, bytes([libc.sched_getcpu() != here]))
        os._exit(0)
    os.sched_setaffinity(0, {here})
    count = 0
    for _ in range(ROUNDS):
        time.sleep(nap_s)
        compute(before_s)
        os.write(wake_write, b"x")
        compute(AFTER_S)
        count += os.read(told_read, 1)[0]
    os.waitpid(child, 0)
    os.sched_setaffinity(0, set(allowed))
    return count / ROUNDS


def main() -> None:
    for before_s, nap_s in ((0.3e-3, 5e-3), (0.3e-3, 0.5e-3), (0.7e-3, 0.5e-3), (2e-3, 0.5e-3)):
        busy = (before_s + AFTER_S) / (before_s + AFTER_S + nap_s)
        print(f"CPU busy {busy:4.0%}: {moved(before_s, nap_s):4.0%} of the wake-ups moved")


if __name__ == "__main__":
    main()
