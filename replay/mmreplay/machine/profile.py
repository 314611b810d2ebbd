"""The machine profile in memory.  Files are ``models/machines/NAME.toml``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Number:
    """One number of a profile with where it comes from."""

    value: float
    basis: str  # "measured", "fitted" or "assumed"
    source: str  # script, publication or reasoning
    spread: float = 0.0  # log-standard-deviation of single draws (costs only)


@dataclass(frozen=True, slots=True)
class Topology:
    """How the CPUs of a machine are arranged; every count at least 1."""

    sockets: int
    caches_per_socket: int
    cores_per_cache: int
    threads_per_core: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Topology and costs.  All times in ns; CPUs are numbered 0..n-1 in compact order.

    ``cpu_core``, ``cpu_llc``, ``cpu_socket`` give for each CPU its physical core,
    last-level cache and socket.
    """

    name: str
    title: str
    path: Path
    sha256: str
    assumed: bool  # the whole profile is a generic assumption
    cpu_model: str
    cpu_core: NDArray[np.int32]
    cpu_llc: NDArray[np.int32]
    cpu_socket: NDArray[np.int32]
    costs: dict[str, Number]  # ns per unit (operation, page, VMA, table)
    sleeps: dict[str, Number]  # ns of off-CPU time: io, ...
    # cache lines
    atomic_ns: Number  # read-modify-write on a line this CPU owns
    line_smt_ns: Number  # transfer between hyperthreads of a core
    line_llc_ns: Number  # within a last-level cache
    line_socket_ns: Number  # between caches of a socket
    line_cross_ns: Number  # between sockets
    # waking and sleeping
    waker_ns: Number  # what a wake-up costs the waker, while it still holds its context
    woken_ns: Number  # from the wake-up until the woken runs
    sleep_ns: Number  # from the decision to sleep until the CPU is free
    switch_ns: Number  # context switch
    slice_ns: Number  # scheduling slice
    spin_poll_ns: Number  # one round of optimistic spinning
    # shootdowns
    shootdown_base_ns: Number  # local flush and set-up
    shootdown_first_ns: Number  # first remote target, until its ack
    shootdown_next_ns: Number  # each further target
    shootdown_handler_ns: Number  # stolen from each target
    # limits
    zero_bytes_per_ns: Number  # page-zeroing bandwidth of a node
    frequency: tuple[tuple[int, float], ...]  # (active cores up to, speed relative to one core)
    # where it comes from
    cpu_ids: tuple[str, ...] = ()  # vendor,family,model,stepping as perf records them
    topology_basis: str = "measured"  # or "assumed", "extrapolated"
    notes: tuple[str, ...] = ()
    frequency_basis: str = "assumed"  # of all its speeds
    frequency_source: str = ""
    wakes_stay: bool = False  # a woken thread queues where it ran though other CPUs are idle
    fitted_on: tuple[str, ...] = ()  # workloads whose measured runs its numbers were fitted on

    @property
    def n_cpus(self) -> int:
        return len(self.cpu_core)
