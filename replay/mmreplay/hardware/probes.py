"""Costs that a small experiment gives directly: cache lines, wake-ups, switches, shootdowns, speed.

Each is named ``section.key`` as in a machine profile, so that a calibration can begin where
measurement ends.  All pairs of CPUs that the process may use stand for their distance: two
hardware threads of a core, two cores of a cache, of a socket, of different sockets.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.hardware.primitives import call, fetch_add, load, now_ns, spin, store, write_byte
from mmreplay.jit import njit
from mmreplay.schema import PAGE_SIZE

# arch/x86/entry/syscalls/syscall_64.tbl
_MMAP, _MUNMAP, _YIELD, _MADVISE, _GETPPID, _FUTEX = 9, 11, 24, 28, 110, 202
_WAIT_PRIVATE, _WAKE_PRIVATE, _DONTNEED = 128, 129, 4
_LINE: Final = 64

#: Repetitions of everything, interleaved, so that noise hits all alike.
ROUNDS: Final = 15
#: How many pairs of CPUs stand for one distance.
PAIRS: Final = 6
_HANDOVERS, _SLEEPS, _FLUSHES, _SPINS = 5_000, 40, 300, 700_000
#: Of a glance between two runs: hand-overs, and rounds of each of its three loops.
_GLANCES, _GLANCE_SPINS = 1_000, 70_000
#: A waker waits so long after the sleeper announced itself: it sleeps by then, its CPU idle.
_PAUSE_NS: Final = 30_000
#: Threads get so long to reach their loops.
_START_S: Final = 0.003


@dataclass(frozen=True, slots=True)
class Probe:
    """A directly measured number of a profile.

    ``value`` in the profile's unit (ns; relative for ``frequency.N``); ``spread``: half the
    distance of the quartiles over the rounds, relative; ``n`` rounds.
    """

    name: str
    value: float
    spread: float
    n: int


# -- loops ------------------------------------------------------------------------------------
# ``flags``: address of cache lines: 0 start, 1 stop or announcement; ``clock``: two words.


@njit
def _syscalls(n: Any, clock: Any) -> Any:
    begin = now_ns(clock)
    for _ in range(n):
        call(_GETPPID, 0, 0, 0, 0, 0, 0)
    return now_ns(clock) - begin


@njit
def _atomics(word: Any, n: Any, clock: Any) -> Any:
    begin = now_ns(clock)
    for _ in range(n):
        fetch_add(word, 1)
    return now_ns(clock) - begin


@njit
def _hand_over(word: Any, parity: Any, rounds: Any, clock: Any) -> Any:
    """Wait until the counter has my parity, then move it on."""
    begin = now_ns(clock)
    while True:
        at = load(word)
        if at >= rounds:
            break
        if (at & 1) == parity:
            fetch_add(word, 1)
    return now_ns(clock) - begin


@njit
def _sleeper(flags: Any, n: Any, woken: Any, clock: Any) -> Any:
    for k in range(n):
        store(flags + _LINE, k + 1)
        while load(flags) == k:
            call(_FUTEX, flags, _WAIT_PRIVATE, k, 0, 0, 0)
        woken[k] = now_ns(clock)
    return 0


@njit
def _waker(flags: Any, n: Any, begin: Any, end: Any, clock: Any) -> Any:
    for k in range(n):
        while load(flags + _LINE) != k + 1:
            pass
        since = now_ns(clock)
        while now_ns(clock) - since < _PAUSE_NS:
            pass
        begin[k] = now_ns(clock)
        store(flags, k + 1)
        call(_FUTEX, flags, _WAKE_PRIVATE, 1, 0, 0, 0)
        end[k] = now_ns(clock)
    return 0


@njit
def _yields(flags: Any, n: Any, clock: Any) -> Any:
    while load(flags) == 0:
        call(_YIELD, 0, 0, 0, 0, 0, 0)
    begin = now_ns(clock)
    for _ in range(n):
        call(_YIELD, 0, 0, 0, 0, 0, 0)
    return now_ns(clock) - begin


@njit
def _zaps(flags: Any, n: Any, page: Any, clock: Any) -> Any:
    """Write to a page and drop it again: ns of the dropping only."""
    while load(flags) == 0:
        pass
    total = 0
    for _ in range(n):
        write_byte(page)
        begin = now_ns(clock)
        call(_MADVISE, page, PAGE_SIZE, _DONTNEED, 0, 0, 0)
        total += now_ns(clock) - begin
    store(flags + _LINE, 1)
    return total


@njit
def _looks(flags: Any, clock: Any) -> Any:
    """Compute until the stop flag: (rounds, ns)."""
    while load(flags) == 0:
        pass
    begin = now_ns(clock)
    rounds = 0
    while load(flags + _LINE) == 0:
        spin(20)
        rounds += 1
    return rounds, now_ns(clock) - begin


@njit
def _compute(flags: Any, rounds: Any, clock: Any) -> Any:
    while load(flags) == 0:
        pass
    begin = now_ns(clock)
    spin(rounds)
    return now_ns(clock) - begin


@njit
def _glance(word: Any, parity: Any, rounds: Any, spins: Any, clock: Any) -> Any:
    """(ns of handing a counter over ``rounds`` times, ns of the fastest of three loops)."""
    handed = _hand_over(word, parity, rounds, clock)
    best = np.int64(1) << 62
    for _ in range(3):
        begin = now_ns(clock)
        spin(spins)
        best = min(best, now_ns(clock) - begin)
    return handed, best


# -- threads ----------------------------------------------------------------------------------


class _Flags:
    """Four cache lines of zeros at a fixed address, and one for the clock of each thread."""

    def __init__(self, clocks: int) -> None:
        self._words = np.zeros((6 + clocks) * _LINE // 8, np.int64)
        self.at = (self._words.ctypes.data + _LINE - 1) // _LINE * _LINE

    def clock(self, k: int) -> int:
        return self.at + (4 + k) * _LINE

    def start(self) -> None:
        ctypes.c_int64.from_address(self.at).value = 1


_Job = Callable[[_Flags, int], Any]  # flags, address of the clock


def _together(jobs: Sequence[tuple[int, _Job]], *, start: bool = True) -> list[Any]:
    """Run each (CPU, job) in a thread pinned there; what they return."""
    flags = _Flags(len(jobs))
    results: list[Any] = [None] * len(jobs)
    ready = threading.Barrier(len(jobs) + 1)

    def body(k: int, cpu: int, job: _Job) -> None:
        os.sched_setaffinity(0, {cpu})
        ready.wait()
        results[k] = job(flags, flags.clock(k))

    threads = [
        threading.Thread(target=body, args=(k, cpu, job)) for k, (cpu, job) in enumerate(jobs)
    ]
    for thread in threads:
        thread.start()
    ready.wait()
    if start:
        threading.Event().wait(_START_S)
        flags.start()
    for thread in threads:
        thread.join()
    return results


# -- the experiments --------------------------------------------------------------------------

_Samples = dict[str, list[float]]


def _alone(cpu: int, out: _Samples) -> None:
    (ns,) = _together([(cpu, lambda _f, clock: _syscalls(5000, clock))])
    out.setdefault("costs.syscall", []).append(ns / 5000)
    (ns,) = _together([(cpu, lambda f, clock: _atomics(f.at + 2 * _LINE, 50_000, clock))])
    out.setdefault("lines.atomic_ns", []).append(ns / 50_000)
    both = _together([(cpu, lambda f, clock: _yields(f.at, 1000, clock))] * 2)
    (one,) = _together([(cpu, lambda f, clock: _yields(f.at, 1000, clock))])
    switch = max(both) / 2000 - one / 1000
    if switch > 0:
        out.setdefault("wake.switch_ns", []).append(switch)


def _pair(name: str, a: int, b: int, out: _Samples) -> None:
    """How long a written line takes from CPU to CPU: half a round trip."""
    took = _together(
        [
            (a, lambda f, clock: _hand_over(f.at + 2 * _LINE, 0, _HANDOVERS, clock)),
            (b, lambda f, clock: _hand_over(f.at + 2 * _LINE, 1, _HANDOVERS, clock)),
        ]
    )
    out.setdefault(name, []).append(max(took) / _HANDOVERS)


def _wake_up(a: int, b: int, out: _Samples) -> None:
    begin, end, woken = (np.zeros(_SLEEPS, np.int64) for _ in range(3))
    _together(
        [
            (a, lambda f, clock: _sleeper(f.at, _SLEEPS, woken, clock)),
            (b, lambda f, clock: _waker(f.at, _SLEEPS, begin, end, clock)),
        ],
        start=False,
    )
    out.setdefault("wake.waker_ns", []).append(float(np.median(end - begin)))
    out.setdefault("wake.woken_ns", []).append(float(np.median(woken - begin)))


def _shootdown(a: int, b: int, out: _Samples) -> None:
    page = int(call_mmap(2 * PAGE_SIZE))
    (alone,) = _together([(a, lambda f, clock: _zaps(f.at, _FLUSHES, page, clock))])
    beside, (rounds, ns) = _together(
        [
            (a, lambda f, clock: _zaps(f.at, _FLUSHES, page, clock)),
            (b, lambda f, clock: _looks(f.at, clock)),
        ]
    )
    quiet = _rounds_per_ns(b)
    call_munmap(page, 2 * PAGE_SIZE)
    if beside > alone:
        out.setdefault("shootdown.shootdown_first_ns", []).append((beside - alone) / _FLUSHES)
    lost = ns - rounds / quiet if quiet > 0 else 0.0
    if lost > 0:
        out.setdefault("shootdown.shootdown_handler_ns", []).append(lost / _FLUSHES)


def _rounds_per_ns(cpu: int) -> float:
    def stopped(f: _Flags, clock: int) -> Any:
        timer = threading.Timer(_START_S + 0.004, lambda: _set(f.at + _LINE))
        timer.start()
        return _looks(f.at, clock)

    ((rounds, ns),) = _together([(cpu, stopped)])
    return float(rounds / ns) if ns > 0 else 0.0  # 0: it never got to run


def _set(address: int) -> None:
    ctypes.c_int64.from_address(address).value = 1


def glance(cpus: Sequence[int]) -> tuple[float | None, float]:
    """What a cache line takes between the first two of ``cpus`` and what a fixed loop takes, ns.

    Some 5 ms.  The line is None with one CPU; the loop is the slower of the CPUs' fastest.
    """
    pair = list(cpus[:2])
    rounds = _GLANCES if len(pair) == 2 else 0

    def job(parity: int) -> _Job:
        return lambda f, clock: _glance(f.at + 2 * _LINE, parity, rounds, _GLANCE_SPINS, clock)

    before = os.sched_getaffinity(0)
    try:
        found = _together([(cpu, job(k)) for k, cpu in enumerate(pair)])
    finally:
        os.sched_setaffinity(0, before)
    line = max(handed for handed, _ in found) / rounds if rounds else None
    return line, float(max(loop for _, loop in found))


def _speed(cpus: Sequence[int], out: _Samples) -> None:
    """Speed of one core while all compute, relative to it alone."""
    (alone,) = _together([(cpus[0], lambda f, clock: _compute(f.at, _SPINS, clock))])
    job: _Job = lambda f, clock: _compute(f.at, _SPINS, clock)  # noqa: E731
    busy = _together([(cpu, job) for cpu in cpus])
    out.setdefault(f"frequency.{len(cpus)}", []).append(alone / float(np.median(busy)))


@njit
def call_mmap(size: Any) -> Any:
    """A private anonymous mapping of ``size`` bytes; its address."""
    return call(_MMAP, 0, size, 3, 0x22, -1, 0)


@njit
def call_munmap(address: Any, size: Any) -> Any:
    """Unmap it."""
    return call(_MUNMAP, address, size, 0, 0, 0, 0)


# -- which pairs ------------------------------------------------------------------------------


def distances(places: dict[int, tuple[int, int, int]]) -> dict[str, list[tuple[int, int]]]:
    """Pairs of CPUs by what a line between them costs: name in the profile -> pairs.

    ``places``: CPU -> (socket, last-level cache, core), numbers unique over the machine.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    cpus = sorted(places)
    for k, a in enumerate(cpus):
        for b in cpus[k + 1 :]:
            (s1, l1, c1), (s2, l2, c2) = places[a], places[b]
            kind = "smt" if c1 == c2 else "llc" if l1 == l2 else "socket" if s1 == s2 else "cross"
            found.setdefault(f"lines.line_{kind}_ns", []).append((a, b))
    return {name: _spaced(pairs) for name, pairs in found.items()}


def _spaced(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    step = max(1, len(pairs) // PAIRS)
    return pairs[::step][:PAIRS]


class Prober:
    """Measures in rounds, so that they can lie between the runs that they are to explain.

    A guest's CPUs move: on one the way of a cache line between its two was 30 ns or 170 ns,
    for seconds to minutes at a time.  What is measured once may hold for none of the runs.
    """

    def __init__(self, places: dict[int, tuple[int, int, int]]) -> None:
        """``places``: CPU -> (socket, last-level cache, core), as :func:`distances` has it."""
        self._pairs = distances(places)
        self._cpus = sorted(places)
        self._apart = next((self._pairs[f"lines.line_{k}_ns"][0] for k in ("llc", "socket", "cross")
                            if f"lines.line_{k}_ns" in self._pairs), None)  # fmt: skip
        self._found: _Samples = {}
        self._round({})  # compiles the loops

    def round(self) -> None:
        """Measure everything that the CPUs allow once more; some 50 ms for each pair."""
        self._round(self._found)

    def _round(self, out: _Samples) -> None:
        before = os.sched_getaffinity(0)
        try:
            _alone(self._cpus[0], out)
            for name, some in self._pairs.items():
                for a, b in some:
                    _pair(name, a, b, out)
            if self._apart is not None:
                _wake_up(*self._apart, out)
                _shootdown(*self._apart, out)
            if len(self._cpus) > 1:
                _speed(self._cpus, out)
        finally:
            os.sched_setaffinity(0, before)

    def results(self) -> list[Probe]:
        """Medians over the rounds so far.

        The waker's system call is taken off its wake-up, and half the sleeper's hand-over from
        its waking is left in.
        """
        found = dict(self._found)
        if "wake.waker_ns" in found:
            syscall = float(np.median(found["costs.syscall"]))
            found["wake.waker_ns"] = [max(value - syscall, 1.0) for value in found["wake.waker_ns"]]
        return [_summary(name, np.array(values)) for name, values in sorted(found.items())]


def probe(places: dict[int, tuple[int, int, int]], *, rounds: int = ROUNDS) -> list[Probe]:
    """So many rounds, one after the other."""
    prober = Prober(places)
    for _ in range(rounds):
        prober.round()
    return prober.results()


def _summary(name: str, values: NDArray[np.float64]) -> Probe:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return Probe(name, float(middle), float((high - low) / 2 / middle), len(values))
