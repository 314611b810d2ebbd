"""The library call behind ``mmreplay synth``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from mmreplay.errors import UserError, closest
from mmreplay.workloads.compiler import compile_workload
from mmreplay.workloads.definition import Workload, load_workload, parse_workload
from mmreplay.workloads.generator import (
    DEFAULT_DURATION_S,
    DEFAULT_OPS,
    Synthetic,
    generate_trace,
)
from mmreplay.workloads.program import Path as FaultPath

if TYPE_CHECKING:
    from mmreplay.trace.header import Machine
    from mmreplay.workloads.learn import Learnt
    from mmreplay.workloads.program import Program


def program_of(workload: Workload | str | Path, threads: int, path: FaultPath = "vma") -> Program:
    """The loop program of a workload (or the name or file of one) by one of the paths."""
    if path not in get_args(FaultPath):
        known = get_args(FaultPath)
        raise UserError(
            f'"{path}"{closest(path, known)}', where="--path", fix=f"use {', '.join(known)}"
        )
    loaded = workload if isinstance(workload, Workload) else load_workload(workload)
    return compile_workload(loaded, threads).by_path(path)


def learn_workload(
    trace: str | Path, *, ops: int | None = None, save: str | Path | None = None
) -> tuple[Workload, Learnt]:
    """The workload that a stored trace is a recording of; ``save`` writes its text there.

    ``ops``: how many operations shall be generated with as many threads as were recorded (None:
    as many as were recorded): phases become as many times as long.

    Raises
    ------
    UserError
        No such trace, nothing in it to learn from, or a file that cannot be written.
    """
    from mmreplay.trace.store import Trace
    from mmreplay.workloads.learn import learn

    opened = Trace.open(trace)
    name = Path(trace).name
    learnt = learn(opened, name, ops)
    if save is not None:
        try:
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=Path(save).parent, delete=False
            ) as beside:
                beside.write(learnt.text + "\n")
            Path(beside.name).replace(save)
        except OSError as error:
            raise UserError(
                f"cannot be written: {error.strerror}", where=str(save), fix="choose another file"
            ) from None
    return parse_workload(learnt.text, f"what was learnt from {name}", Path(name).stem), learnt


def synthesise(
    workload: Workload | str | Path,
    *,
    threads: int,
    output: str | Path | None = None,
    seed: int = 1,
    ops: int = DEFAULT_OPS,
    duration_s: float = DEFAULT_DURATION_S,
    cpus: int | None = None,
    machine: Machine | None = None,
    path: FaultPath = "vma",
    force: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> Synthetic:
    """Generate a trace; see :func:`mmreplay.workloads.generator.generate_trace`.

    ``output`` None gives a trace in memory.
    """
    return generate_trace(
        program_of(workload, threads, path),
        output,
        seed=seed,
        ops=ops,
        duration_s=duration_s,
        cpus=cpus,
        machine=machine,
        force=force,
        progress=progress,
    )
