"""Sockets, caches, cores and hyperthreads as arrays over CPUs in compact order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mmreplay.errors import UserError
from mmreplay.machine.profile import Machine, Topology

I32 = NDArray[np.int32]

#: How a topology grows past the machine that was measured (stated, not measured): cores per
#: last-level cache and per socket as of current server parts (AMD EPYC 7003: 8 cores per CCX,
#: 64 per socket).
EXTRAPOLATED_CORES_PER_LLC = 8
EXTRAPOLATED_CORES_PER_SOCKET = 64
#: More cores than any machine that runs one Linux image has.
MAX_CORES = 8192


def cpu_arrays(topology: Topology) -> tuple[I32, I32, I32]:
    """(core, cache, socket) of each CPU, int32[n].

    Compact order: a cache's cores are filled one by one before the next cache, all
    caches of a socket before the next socket; within a cache first one hyperthread of
    each core, then the siblings.  (Filling N CPUs in this order is what
    ``--placement compact`` means.)
    """
    core, llc, socket = [], [], []
    for s in range(topology.sockets):
        for c in range(topology.caches_per_socket):
            cache = s * topology.caches_per_socket + c
            for _thread in range(topology.threads_per_core):
                for k in range(topology.cores_per_cache):
                    core.append(cache * topology.cores_per_cache + k)
                    llc.append(cache)
                    socket.append(s)
    return np.array(core, np.int32), np.array(llc, np.int32), np.array(socket, np.int32)


def extrapolated(machine: Machine, cores: int) -> Machine:
    """``machine`` with at least ``cores`` CPUs.

    Returned unchanged when it has that many.  Otherwise the topology is grown by a
    stated assumption: no hyperthreads, :data:`EXTRAPOLATED_CORES_PER_LLC` cores to a
    last-level cache (or what the profile has, if more), and
    :data:`EXTRAPOLATED_CORES_PER_SOCKET` cores to a socket.  Costs stay what they are;
    ``topology_basis`` becomes ``"extrapolated"`` and a note says so.

    Raises UserError for a core count below 1 or above :data:`MAX_CORES`.
    """
    if not 1 <= cores <= MAX_CORES:
        raise UserError(
            f"{cores} cores",
            where="--cores",
            fix=f"give core counts between 1 and {MAX_CORES}",
        )
    if cores <= machine.n_cpus:
        return machine
    caches = int(machine.cpu_llc.max()) + 1
    whole_cores = int(machine.cpu_core.max()) + 1
    per_llc = max(EXTRAPOLATED_CORES_PER_LLC, whole_cores // caches)
    per_socket = max(EXTRAPOLATED_CORES_PER_SOCKET, per_llc)
    cpu = np.arange(cores, dtype=np.int32)
    return replace(
        machine,
        cpu_core=cpu,
        cpu_llc=(
            cpu // per_socket * -(-per_socket // per_llc) + cpu % per_socket // per_llc
        ).astype(np.int32),
        cpu_socket=(cpu // per_socket).astype(np.int32),
        topology_basis="extrapolated",
        notes=(
            *machine.notes,
            f"topology extrapolated from {machine.n_cpus} to {cores} CPUs: {per_llc} cores per "
            f"last-level cache, {per_socket} per socket, no hyperthreads",
        ),
    )
