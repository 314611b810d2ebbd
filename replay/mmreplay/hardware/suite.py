"""Measures workloads on this machine: every point several times, paths beside each other."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import mmap
import os
import platform
import random
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from mmreplay import __version__
from mmreplay.errors import UserError
from mmreplay.hardware import facts, tracing
from mmreplay.hardware.child import Child
from mmreplay.hardware.disturbance import AGAIN, Watch
from mmreplay.hardware.figures import failure, figures
from mmreplay.hardware.path_check import Traced, buffers, verdict
from mmreplay.hardware.probes import ROUNDS, Prober, glance
from mmreplay.hardware.run_worker import available_bytes
from mmreplay.hardware.runner import RunAnswer, RunRequest
from mmreplay.hardware.runs import Runs
from mmreplay.workloads.compiler import MOST_THREADS, compile_workload
from mmreplay.workloads.definition import Workload
from mmreplay.workloads.program import MADV_POPULATE_WRITE, Program
from mmreplay.workloads.program import Path as Way

#: What a run takes besides its window: fork, set-up, stop.
_OVERHEAD_S: Final = 0.15
#: Operations of each thread while its locks are traced.
_CHECK_OPS: Final = 2000
#: Threads of this process and those that perform the run.
_OTHER_THREADS: Final = 8
#: Leave so much of the memory to the others.
_LEAVE_BYTES: Final = 256 << 20

UNCHECKED: Final = {
    "path_check": "not verified: it was not asked for",
    "checked_faults": None,
    "checked_under_mmap_lock": None,
}

#: (runs done, of how many, what comes next).
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure.  ``pin``: a CPU for each thread, as long as there are enough."""

    paths: tuple[Way, ...] = ("vma", "mmap_lock")
    pin: bool = True
    repetitions: int = 5
    seconds: float = 0.5
    warm_up_s: float = 0.1
    seed: int = 1
    check: bool = True
    probe: bool = False  # cache lines, wake-ups, shootdowns: what a calibration begins with


@dataclass(frozen=True, slots=True)
class Point:
    """One thing to measure.  ``cpus``: of each thread, None where they are free."""

    workload: str
    path: Way
    threads: int
    program: Program
    cpus: tuple[int, ...] | None

    @property
    def placement(self) -> str:
        return "free" if self.cpus is None else "pinned"

    @property
    def label(self) -> str:
        return f"{self.workload} {self.path} {self.threads} threads {self.placement}"


@dataclass(slots=True)
class Plan:
    """The points of a suite; ``refused``: those that this machine cannot do, and why."""

    points: list[Point]
    options: Options
    texts: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> int:
        return len(self.points) * self.options.repetitions

    @property
    def estimate_s(self) -> float:
        each = self.options.seconds + self.options.warm_up_s + _OVERHEAD_S
        checks = len({(p.workload, p.path) for p in self.points}) if self.options.check else 0
        return self.runs * each + checks * 2 * _OVERHEAD_S


def plan(
    workloads: Sequence[Workload],
    threads: Sequence[int] | None,
    options: Options,
    memory_bytes: int | None = None,
) -> Plan:
    """What to measure; refuses what cannot be done here before anything is begun.

    Parameters
    ----------
    threads:
        Thread counts; None: powers of two up to the CPUs, and twice the CPUs.
    memory_bytes:
        Use no more than this; None: what is available.

    Raises
    ------
    UserError
        Another architecture, a path that the kernel does not have, too many threads, or no
        point that fits.
    """
    check_machine(options)
    order = facts.pinning_order()
    counts = default_threads(len(order)) if threads is None else list(threads)
    check_threads(max(counts))
    found = Plan([], options)
    room = room_bytes(memory_bytes)
    for workload in workloads:
        found.texts[workload.name] = _digest(workload)
        for count in counts:
            try:
                program = compile_workload(workload, count, for_ever=True)
            except UserError as error:
                if len(workloads) == 1 and len(counts) == 1:
                    raise
                found.refused[f"{workload.name} {count} threads"] = error.problem
                continue
            needed = program.touched_bytes
            if needed > room:
                found.refused[f"{workload.name} {count} threads"] = (
                    f"it needs {needed / 2**30:.1f} GiB of memory,"
                    f" {max(0, room) / 2**30:.1f} GiB are available"
                )
                continue
            pinned = options.pin and count <= len(order)
            cpus = tuple(order[:count]) if pinned else None
            for path in options.paths:
                point = Point(workload.name, path, count, program.by_path(path), cpus)
                found.points.append(point)
    if not found.points:
        where, why = next(iter(found.refused.items()))
        raise UserError(why, where=where, fix="use fewer threads, or another workload")
    return found


def with_probes(plan_: Plan, workloads: Sequence[Workload]) -> Plan:
    """``plan_`` with probes of single operations too: one thread, pages faulted by touching."""
    options = replace(plan_.options, paths=("vma",))
    more = plan(workloads, [1], options)
    return replace(
        plan_,
        points=[*plan_.points, *more.points],
        texts=plan_.texts | more.texts,
        refused=plan_.refused | more.refused,
    )


def default_threads(cpus: int) -> list[int]:
    """1, 2, 4, ... below ``cpus``; ``cpus``; and twice as many."""
    found = [1 << k for k in range(cpus.bit_length()) if 1 << k < cpus]
    return [*found, cpus, 2 * cpus]


def room_bytes(memory_bytes: int | None) -> int:
    """Memory that runs may take."""
    room = available_bytes() - _LEAVE_BYTES
    return room if memory_bytes is None else min(room, memory_bytes)


def _digest(workload: Workload) -> str:
    return hashlib.sha256(Path(workload.path).read_bytes()).hexdigest()


def check_machine(options: Options) -> None:
    """Refuse another architecture, and a path that the kernel does not have."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise UserError(
            f"workloads cannot be run on {platform.system()} {platform.machine()}",
            fix="use Linux on x86-64",
        )
    if "mmap_lock" in options.paths and not has_populate():
        raise UserError(
            "this kernel has no MADV_POPULATE_WRITE, which Linux 5.14 brought",
            where="--path mmap_lock",
            fix="use --path vma, or --path kernel for faults in kernel mode",
        )


def has_populate() -> bool:
    """Whether madvise takes MADV_POPULATE_WRITE."""
    block = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        block.madvise(MADV_POPULATE_WRITE)
    except OSError:
        return False
    finally:
        block.close()
    return True


def thread_limit() -> tuple[int, str]:
    """How many threads may still be made, and what says so."""
    limits = [(int(Path("/proc/sys/kernel/threads-max").read_text()), "kernel.threads-max")]
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and os.geteuid():
        limits.append((soft, "ulimit -u"))
    text = ""
    with contextlib.suppress(OSError):
        text = Path("/sys/fs/cgroup/pids.max").read_text().strip()
    if text.isdigit():
        limits.append((int(text), "pids.max of the cgroup"))
    return min(limits)


def check_threads(wanted: int) -> None:
    """Refuse more threads than the system allows, or than a program is compiled for."""
    limit, name = thread_limit()
    most = max(1, min(MOST_THREADS, limit - _OTHER_THREADS))
    if wanted <= most:
        return
    if most < MOST_THREADS:
        raise UserError(
            f"{wanted} threads are more than the system allows ({name}: {limit})",
            where="--threads",
            fix=f"use at most {most}, or raise that limit",
        )
    raise UserError(f"{wanted} threads", where="--threads", fix=f"use at most {most}")


def order_of(plan: Plan) -> list[tuple[int, list[Point]]]:
    """Repetition and points of each group of neighbouring runs.

    A group is a workload with a number of threads by every path, so that what the paths differ
    by comes from runs that followed each other.  Every repetition is a random order of all
    groups, each a random order of its paths.
    """
    groups: dict[tuple[str, int, str], list[Point]] = {}
    for point in plan.points:
        groups.setdefault((point.workload, point.threads, point.placement), []).append(point)
    stream = random.Random(plan.options.seed)
    found = []
    for repetition in range(plan.options.repetitions):
        order = [list(group) for group in groups.values()]
        stream.shuffle(order)
        for group in order:
            stream.shuffle(group)
        found += [(repetition, group) for group in order]
    return found


def measure(plan: Plan, progress: Progress = lambda done, total, label: None) -> Runs:
    """Measure; what was measured before Ctrl-C or SIGTERM is returned, not lost.

    What cannot be measured here is in ``not_measured``.
    """
    options = plan.options
    runs = Runs(
        rows=[],
        machine={**facts.machine_facts(), "thp_in_runs": "only where the workload asks for it"},
        workloads=dict(plan.texts),
        not_measured=dict(plan.refused),
        version=__version__,
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    order = order_of(plan)
    complete = True
    prober = None
    with interrupts(), Child("mmreplay.hardware.run_worker") as worker:
        try:
            prober = Prober(facts.cache_places()) if options.probe else None
            checks = check_paths(plan, worker, progress) if options.check else {}
            watch = Watch(functools.partial(glance, facts.pinning_order()))
            running = _Running(plan, worker, checks, watch, runs, progress)
            probed = begun = -1
            for number, (repetition, group) in enumerate(order):
                if repetition != begun:
                    # A new address layout: what it does to a figure differs by 20 % and more,
                    # and shall show as spread.
                    worker.renew()
                    begun = repetition
                if prober is not None and number * ROUNDS // len(order) != probed:
                    probed = number * ROUNDS // len(order)
                    prober.round()
                    watch.again()
                running.group(repetition, group)
                if running.was_disturbed and running.repeated < max(1, AGAIN * number):
                    running.repeated += 1
                    running.group(repetition, group, again=True)
        except (KeyboardInterrupt, Terminated):
            complete = False
    if prober is not None:
        runs.machine["probes"] = [asdict(one) for one in prober.results()]
    progress(plan.runs, plan.runs, "")
    return replace(runs, complete=complete)


@dataclass(slots=True)
class _Running:
    """What goes from run to run.  ``failed``: points that are not tried again."""

    plan: Plan
    worker: Child
    checks: dict[tuple[str, Way], dict[str, Any]]
    watch: Watch
    runs: Runs
    progress: Progress
    failed: set[str] = field(default_factory=set)
    done: int = 0
    order: int = 0
    repeated: int = 0
    was_disturbed: bool = False  # a run of the last group

    def group(self, repetition: int, points: Sequence[Point], *, again: bool = False) -> None:
        """Run each of the points once; their rows join the runs."""
        self.was_disturbed = False
        for point in points:
            if not again:
                self.done += 1
            if point.label in self.failed:
                continue
            self.progress(self.done - 1, self.plan.runs, point.label)
            row = self._run(repetition, point)
            if row is not None:
                self.was_disturbed |= row["disturbed"] is not None
                self.runs.rows.append(row)
                self.order += 1

    def _run(self, repetition: int, point: Point) -> dict[str, Any] | None:
        options = self.plan.options
        request = RunRequest(
            point.program,
            seed=options.seed + repetition,
            cpus=point.cpus,
            warm_up_s=options.warm_up_s,
            seconds=options.seconds,
        )
        answer = _ask(self.worker, request)
        problem = answer.problem or failure(point.program, answer)
        if problem:
            self.failed.add(point.label)
            self.runs.not_measured[point.label] = problem
            return None
        row = figures(point.program, answer)
        return {
            "workload": point.workload,
            "path": point.path,
            "threads": point.threads,
            "placement": point.placement,
            "repetition": repetition,
            "order": self.order,
            "seed": request.seed,
            "warm_up_s": request.warm_up_s,
            "makespan_s": None,
            "useful_work": None,
            **row,
            **self.watch.columns(row),
            **self.checks.get((point.workload, point.path), UNCHECKED),
        }


class Terminated(Exception):
    """SIGTERM came."""


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_paths(
    plan: Plan, worker: Child, progress: Progress
) -> dict[tuple[str, Way], dict[str, Any]]:
    """For each workload and path, by its smallest point: which locks it takes.

    The values are columns of RUNS.
    """
    smallest: dict[tuple[str, Way], Point] = {}
    for point in plan.points:
        known = smallest.setdefault((point.workload, point.path), point)
        if point.threads < known.threads:
            smallest[point.workload, point.path] = point
    try:
        root = tracing.tracefs()
        with tracing.Instance(root) as instance:
            cpu = buffers(instance)
            per_vma_locks = facts.per_vma_locks()
            found = {}
            for number, (key, point) in enumerate(smallest.items()):
                progress(number, len(smallest), f"checking the locks of {key[0]} {key[1]}")
                request = RunRequest(
                    point.program,
                    seed=plan.options.seed,
                    cpus=(cpu,) * point.threads,
                    budget=_CHECK_OPS,
                    instance=instance.path,
                )
                traced = _ask(worker, request)
                if isinstance(traced, RunAnswer):
                    traced = Traced(problem=traced.problem)
                counted = point.path == "vma"
                found[key] = {
                    "path_check": verdict(point.path, traced, per_vma_locks),
                    "checked_faults": traced.faults if counted else traced.populates,
                    "checked_under_mmap_lock": (
                        traced.locked_faults if counted else traced.locked_populates
                    ),
                }
            return found
    except UserError as refused:
        why = {**UNCHECKED, "path_check": f"not verified: {refused.problem}"}
        return dict.fromkeys(smallest, why)


def _ask(worker: Child, request: RunRequest) -> Any:
    try:
        answer = worker.ask(request)
    except UserError as error:
        return RunAnswer(problem=error.problem)
    return answer
