"""A machine with as many CPUs as a what-if asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmreplay.machine.profile import Machine


def widened(machine: Machine, cpus: int) -> Machine:
    """``machine`` with at least ``cpus`` CPUs: whole sockets like its first are added.

    Costs stay those of the machine, and distances between the added sockets are its
    cross-socket distance, so results beyond the real CPUs are extrapolations.  A guest
    of one socket with two CPUs grows inside that socket instead (one more core, one more
    cache slot at a time), since "many sockets of two CPUs" is not what anybody buys.
    """
    have = machine.n_cpus
    if cpus <= have:
        return machine
    one_socket = len(np.unique(machine.cpu_socket)) == 1
    copies = -(-cpus // have)
    core_step = int(machine.cpu_core.max()) + 1
    llc_step = int(machine.cpu_llc.max()) + 1
    socket_step = int(machine.cpu_socket.max()) + 1
    number = np.repeat(np.arange(copies, dtype=np.int32), have)
    core = np.tile(machine.cpu_core, copies) + number * core_step
    if one_socket:
        # Up to 64 CPUs share a socket (the size of today's common server parts).
        per_socket = max(have, 64)
        socket = (np.arange(copies * have) // per_socket).astype(np.int32)
        single_cache = len(np.unique(machine.cpu_llc)) == 1
        # Up to 8 cores share a last-level cache (AMD Zen's complex), unless it had more.
        per_llc = max(have, 16)
        llc = (
            (np.arange(copies * have) // per_llc).astype(np.int32)
            if single_cache
            else np.tile(machine.cpu_llc, copies) + number * llc_step
        )
    else:
        socket = np.tile(machine.cpu_socket, copies) + number * socket_step
        llc = np.tile(machine.cpu_llc, copies) + number * llc_step
    return replace(
        machine,
        cpu_core=core.astype(np.int32),
        cpu_llc=llc.astype(np.int32),
        cpu_socket=socket.astype(np.int32),
    )
