"""The other rooms as prediction uses them: one place to see what it depends on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final

import polars as pl

from mmreplay.address_space.plan import Plan
from mmreplay.engine.result import Options, Result
from mmreplay.errors import UserError
from mmreplay.locking.model import LockingModel
from mmreplay.machine.profile import Machine
from mmreplay.schema import OpKind

if TYPE_CHECKING:
    from mmreplay.engine import Replay
    from mmreplay.trace.store import Trace

Job = Callable[[], Result]

#: Counts of locks are exact (every operation once) up to this many operations.
EXACT_OPS: Final = 1_000_000
#: Operations that take the mmap_lock of the address space that they name, mostly another's.
REMOTE: Final = (int(OpKind.PROC_READ), int(OpKind.PROCESS_VM), int(OpKind.PROCESS_MADVISE))
#: Operations that take no lock of the memory map's by themselves.
_SILENT: Final = (int(OpKind.THREAD_START), int(OpKind.THREAD_EXIT), int(OpKind.SNAPSHOT_VMA))
#: Beginnings and ends of threads and processes: alone they are no use of the memory map.
_LIVES: Final = (
    *_SILENT,
    int(OpKind.CLONE),
    int(OpKind.FORK),
    int(OpKind.VFORK),
    int(OpKind.EXEC),
    int(OpKind.PROCESS_EXIT),
)
_FAULTS: Final = (int(OpKind.FAULT_USER), int(OpKind.FAULT_KERNEL))


def open_trace(trace: Trace | str | os.PathLike[str]) -> Trace:
    """``trace`` itself, or the trace directory of that name."""
    from mmreplay.trace.store import Trace as Stored

    return trace if isinstance(trace, Stored) else Stored.open(trace)


def trace_name(trace: Trace) -> str:
    """What outputs call the trace: its directory's name, never its path."""
    return Path(trace.path).name if trace.path is not None else "in memory"


def record_command(trace: Trace, ring_pages: int | None = None) -> str:
    """The ``perf record`` line for everything a prediction needs; of a generated trace empty."""
    if trace.header.generated:
        return ""
    from mmreplay.trace.recording import record_command as words

    return " ".join(words(trace.header, ring_pages=ring_pages))


def kernel_model(name: str, option: str) -> tuple[LockingModel, str]:
    """The model for a kernel release, model name or file, and a note (maybe empty)."""
    from mmreplay.locking import resolve_kernel

    try:
        return resolve_kernel(name)
    except UserError as error:
        if error.where:
            raise
        raise UserError(error.problem, where=option, fix=error.fix) from None


def machine_profile(name: str | None, trace: Trace, cores: int) -> tuple[Machine, str, list[str]]:
    """A machine with at least ``cores`` CPUs, its basis, and notes.

    The basis is ``given``, ``matched`` (to the recording's CPU) or ``assumed``.
    """
    from mmreplay.machine import extrapolated, load_machine, match_machine

    facts = trace.header.machine
    if name is not None:
        found, basis, notes = load_machine(name), "given", []
    else:
        found, note = match_machine(facts.cpu_model, facts.cpu_id, facts.cpus_online)
        basis, notes = "assumed" if found.assumed else "matched", [note]
    wide = extrapolated(found, cores)
    if wide.n_cpus > found.n_cpus:
        notes.append(
            f"{found.name} has {found.n_cpus} CPUs; for more its topology is continued by "
            "assumption, at the same costs."
        )
    return wide, basis, notes


def recorded_cores(trace: Trace) -> int | None:
    """CPUs that the recorded set could run on; None where the recording does not say."""
    facts = trace.header.machine
    return facts.cpus_available or facts.cpus_online


class Simulator:
    """A plan and a model, ready for any number of simulations, from any thread.

    What depends on neither the machine nor the options is computed once, when the first
    simulation begins, and kept until the last of its jobs is done.
    """

    def __init__(self, plan: Plan, model: LockingModel) -> None:
        self.plan, self.model = plan, model
        self._lock = Lock()
        self._ready: Replay | None = None
        self._jobs = 0

    def run(self, machine: Machine, options: Options) -> Result:
        """One simulation."""
        with self._lock:
            ready = self._ready
            if ready is None:
                from mmreplay.engine import Replay

                ready = self._ready = Replay(self.plan, self.model)
        return ready.run(machine, options)

    def job(self, machine: Machine, options: Options) -> Job:
        """The same for later, once."""
        self._jobs += 1

        def run() -> Result:
            try:
                return self.run(machine, options)
            finally:
                with self._lock:
                    self._jobs -= 1
                    if self._jobs == 0:
                        self._ready = None

        return run


@dataclass(frozen=True, slots=True)
class Facts:
    """What the operations table says before anything is planned."""

    ops: int
    faults: int
    calls: int  # memory-map calls: neither faults nor lives of threads and processes
    threads: int  # threads with operations of the memory map
    times: bool  # think or service time is known for some operation
    mmaps: int
    mmaps_unseen: int  # of those, without result: their sys_exit was not recorded


def facts(trace: Trace) -> Facts:
    """Counts that decide what can be predicted at all."""
    kind = pl.col("kind")
    fault, life = kind.is_in(_FAULTS), kind.is_in(_LIVES)
    mmap = kind == int(OpKind.MMAP)
    unseen = pl.col("address").is_null() & pl.col("errno").is_null()
    row = (
        trace.operations.select(
            ops=(~kind.is_in(_SILENT)).sum(),
            faults=fault.sum(),
            calls=(~fault & ~life).sum(),
            threads=pl.col("tid").filter(~life).n_unique(),
            times=(pl.col("think_cpu_ns").is_not_null() | pl.col("service_ns").is_not_null()).any(),
            mmaps=mmap.sum(),
            mmaps_unseen=(mmap & unseen).sum(),
        )
        .collect()
        .row(0, named=True)
    )
    return Facts(
        ops=int(row["ops"]),
        faults=int(row["faults"]),
        calls=int(row["calls"]),
        threads=int(row["threads"]),
        times=bool(row["times"]),
        mmaps=int(row["mmaps"]),
        mmaps_unseen=int(row["mmaps_unseen"]),
    )


def lock_relevant(trace: Trace) -> pl.DataFrame:
    """Lock-relevant time per ``pid``, ``tid`` and ``address_space``: ``ns`` and ``ops``.

    ``ns`` is the service and wait of operations in address spaces that more than one thread
    of the process uses, 0 elsewhere (a vfork child waits for nobody); ``ops`` counts all
    operations; ``home``: not only those that name another's address space.
    """
    used = (
        trace.operations.group_by("pid", "tid", "address_space")
        .agg(
            ops=pl.len().cast(pl.Int64),
            ns=pl.col("service_ns").sum() + pl.col("wait_ns").sum(),
            home=(~pl.col("kind").is_in(REMOTE)).any(),
        )
        .collect()
    )
    at_home = pl.col("tid").filter(pl.col("home")).n_unique().over("pid", "address_space")
    return used.with_columns(ns=pl.when(at_home > 1).then("ns").otherwise(0))
