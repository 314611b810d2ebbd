"""Measures a recorded application: its memory operations performed here, several times."""

from __future__ import annotations

import datetime
import hashlib
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from mmreplay import __version__
from mmreplay.errors import UserError
from mmreplay.hardware import facts
from mmreplay.hardware.child import Child
from mmreplay.hardware.figures import jain
from mmreplay.hardware.loop_tables import (
    RU_MAJFLT,
    RU_MINFLT,
    RU_NIVCSW,
    RU_NVCSW,
    RU_SYSTEM_S,
    RU_SYSTEM_US,
    RU_USER_S,
    RU_USER_US,
)
from mmreplay.hardware.runs import Runs
from mmreplay.hardware.suite import (
    UNCHECKED,
    Options,
    Progress,
    Terminated,
    check_machine,
    check_paths,
    check_threads,
    interrupts,
    plan,
    room_bytes,
)
from mmreplay.hardware.trace_build import build
from mmreplay.hardware.trace_program import CALL_NAMES, Do, Load, TraceProgram, Word
from mmreplay.hardware.trace_run import (
    TraceAnswer,
    TraceRequest,
    describe_failure,
    throughput,
)
from mmreplay.schema import RUNS
from mmreplay.trace.store import Trace
from mmreplay.workloads.definition import load_workload

#: A run in which more than this share of the operations fail is not the recorded application.
_MOST_FAILED: Final = 0.05
#: Its faults are checked in place of the application's.
_LIKE: Final = "page_fault1"
_PER_S: Final = ("read", "mmap", "munmap", "mprotect", "madvise", "mremap")


def program_of(
    trace: Trace,
    load: Load,
    options: Options,
    memory_bytes: int | None,
    think_scale: float = 1.0,
) -> TraceProgram:
    """What is to be performed; refused where it does not fit.

    Raises
    ------
    UserError
        The machine or the trace does not allow it.
    """
    check_machine(options)
    program = build(trace, load, think_scale)
    check_threads(len(program.threads))
    room = room_bytes(memory_bytes)
    if program.touched_bytes > room:
        raise UserError(
            f"it needs up to {program.touched_bytes / 2**30:.1f} GiB of memory,"
            f" {max(0, room) / 2**30:.1f} GiB are allowed",
            where=program.name,
            fix="free some, raise --memory, or cut the recording",
        )
    return program


def measure_trace(
    program: TraceProgram, options: Options, progress: Progress = lambda done, total, label: None
) -> Runs:
    """Perform it by each path, several times, in random order."""
    order = [(k, path) for k in range(options.repetitions) for path in options.paths]
    stream = random.Random(options.seed)
    for first in range(0, len(order), len(options.paths)):
        part = order[first : first + len(options.paths)]
        stream.shuffle(part)
        order[first : first + len(options.paths)] = part
    runs = Runs(
        rows=[],
        machine={**facts.machine_facts(), "thp_in_runs": "as the system has it"},
        workloads={program.name: _digest(program)},
        version=__version__,
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    by_path = {path: program.by_path(path) for path in options.paths}
    complete = True
    with interrupts(), Child("mmreplay.hardware.run_worker") as worker:
        try:
            checks = _checks(options, worker, progress)
            for number, (repetition, path) in enumerate(order):
                if number % len(options.paths) == 0:
                    worker.renew()  # a new address layout, as in mmreplay.hardware.suite
                label = f"{program.name} {path}"
                if label in runs.not_measured:
                    continue
                progress(number, len(order), label)
                try:
                    answer: TraceAnswer = worker.ask(TraceRequest(by_path[path]))
                except UserError as error:
                    answer = TraceAnswer(problem=error.problem)
                problem = answer.problem or _refused(by_path[path], answer)
                if problem:
                    runs.not_measured[label] = problem
                    continue
                row = _row(by_path[path], answer)
                runs.rows.append({**row, **checks[path], "repetition": repetition, "order": number})
        except (KeyboardInterrupt, Terminated):
            complete = False
    progress(len(order), len(order), "")
    return replace(runs, complete=complete)


def _checks(options: Options, worker: Child, progress: Progress) -> dict[str, dict[str, Any]]:
    """Which locks each path takes: by a workload that faults in the same ways.

    A recorded application makes too many events for a trace buffer.
    """
    if not options.check:
        return {path: dict(UNCHECKED) for path in options.paths}
    found = check_paths(plan([load_workload(_LIKE)], [1], options), worker, progress)
    return {
        path: {**columns, "path_check": f"{columns['path_check']} (of {_LIKE})"}
        for (_, path), columns in found.items()
    }


def _digest(program: TraceProgram) -> str:
    digest = hashlib.sha256(program.rows[:, : Word.DONE_NS].tobytes())
    return digest.hexdigest()


def _refused(program: TraceProgram, answer: TraceAnswer) -> str:
    wrong = answer.failed + answer.missed
    if wrong <= _MOST_FAILED * program.operations:
        return ""
    first = f": {describe_failure(program, answer)}" if answer.failed else ""
    return f"{wrong} of {program.operations} operations failed here{first}"


def _row(program: TraceProgram, answer: TraceAnswer) -> dict[str, Any]:
    found = throughput(program, answer)
    usage = answer.usage.sum(axis=0)
    rates = found.pop("rates")
    done = program.rows[(program.rows[:, Word.OPERATION] == 1) & (answer.done_ns > 0)]
    calls = done[done[:, Word.DO] == Do.CALL, Word.NUMBER]
    by_name = {name: int((calls == number).sum()) for number, name in CALL_NAMES.items()}
    by_name["read"] = int((calls == 0).sum())
    makespan_s = found["makespan_s"] or 1.0
    per_s = {f"{name}_per_s": by_name.get(name, 0) / makespan_s for name in _PER_S}
    touches = np.isin(done[:, Word.DO], (Do.WRITE, Do.READ))
    per_s["touch_per_s"] = float(touches.sum()) / makespan_s
    per_s["spawn_per_s"] = float((done[:, Word.DO] == Do.SPAWN).sum()) / makespan_s
    per_s["fork_per_s"] = float((done[:, Word.DO] == Do.FORK).sum()) / makespan_s
    return {
        "workload": program.name,
        "path": program.path,
        "threads": len(program.threads),
        "placement": "free",
        "seed": 0,
        "warm_up_s": 0.0,
        **found,
        "fairness": jain(rates),
        "thread_min_per_s": float(rates.min()),
        "thread_max_per_s": float(rates.max()),
        **per_s,
        "brk_per_s": 0.0,
        "minor_faults": int(usage[RU_MINFLT]),
        "major_faults": int(usage[RU_MAJFLT]),
        "user_s": float(usage[RU_USER_S] + usage[RU_USER_US] / 1e6),
        "system_s": float(usage[RU_SYSTEM_S] + usage[RU_SYSTEM_US] / 1e6),
        "switches": int(usage[RU_NVCSW]),
        "preemptions": int(usage[RU_NIVCSW]),
        "failed_calls": answer.failed,
        "missed_accesses": answer.missed,
        # measured over the whole run, told for the window
        "other_cpu_s": answer.other_cpu_s * found["window_s"] / makespan_s,
        "steal_s": answer.steal_s * found["window_s"] / makespan_s,
        **{
            column.name: answer.vmstat.get(column.name.removeprefix("vmstat_"))
            for column in RUNS.columns
            if column.name.startswith("vmstat_")
        },
    }


def open_trace(path: str) -> Trace:
    """The trace directory."""
    return Trace.open(Path(path))
