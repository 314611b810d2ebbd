"""Counts what the running kernel locks while phases of operations are performed for real."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmreplay.errors import UserError
from mmreplay.hardware import perfcount, tracing
from mmreplay.hardware.child import Child
from mmreplay.hardware.program import NOTHING, WARM, Slot, build, performable
from mmreplay.hardware.worker import Answer, Request
from mmreplay.schema import OpKind

if TYPE_CHECKING:
    from mmreplay.workloads.phases import Phase

#: Runs of a group of phases: two that agree are enough.
_MOST_RUNS: Final = 5
#: Groups that read a file from storage.
_COLD: Final = ("cold_random", "cold_readahead")
_HUGE_PAGES: Final = 24
_NR_HUGE: Final = Path("/proc/sys/vm/nr_hugepages")
_SWAPS: Final = Path("/proc/swaps")
_MEMORY_FS: Final = frozenset({"tmpfs", "ramfs", "rootfs", "devtmpfs"})
_ENDS: Final = (OpKind.THREAD_EXIT, OpKind.PROCESS_EXIT, OpKind.EXEC)
#: What the files of a recorded phase are here.
_FILES: Final = {3: Slot.TMPFS, 4: Slot.DISK}


@dataclass(frozen=True, slots=True)
class Counted:
    """mmap_lock acquisitions of one phase, over all its operations.

    ``faults_user`` and ``faults_kernel``: in the phase's own mappings; the latter is None
    where fault events cannot be seen, and then among the former.  ``major``: those that
    waited for storage.  ``calls``: read(2) calls per operation of a /proc phase, else 0.
    """

    phase: str
    group: str
    ops: int
    read: int
    write: int
    downgrade: int
    faults_user: int
    faults_kernel: int | None
    major: int
    calls: int = 0


@dataclass(slots=True)
class Count:
    """Everything that was counted.  ``not_done``: phase or group → why not."""

    kernel: str
    method: str
    counted: list[Counted] = field(default_factory=list)
    not_done: dict[str, str] = field(default_factory=dict)


def count_phases(
    groups: Mapping[str, Mapping[str, Phase]],
    report: Callable[[str], None] = lambda group: None,
) -> Count:
    """Perform the phases of each group on this machine and count.

    The process that does it is another one, and counting is limited to it.  Everything
    that is changed (a tracing instance, reserved huge pages, files) is undone, also when
    interrupted.

    Parameters
    ----------
    groups:
        Group → phase → its recording, as :func:`mmreplay.workloads.phases.record` gives it.
    report:
        Called with each group's name before it is performed.

    Raises
    ------
    UserError
        This machine cannot be counted: another architecture, no tracefs, no permission,
        a kernel without the events, or counts where nothing is done.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise UserError(
            f"phases cannot be performed on {platform.system()} {platform.machine()}",
            fix="use Linux on x86-64",
        )
    root = tracing.tracefs()
    with _terminated_as_interrupt(), contextlib.ExitStack() as stack:
        instance, ids = _counters(root, stack)
        count = Count(platform.release(), "perf" if instance is None else "tracefs")
        cpu = min(os.sched_getaffinity(0))
        if instance is not None:
            instance.buffer(cpu)
        worker = stack.enter_context(Child("mmreplay.hardware.worker"))
        for group, phases in groups.items():
            report(group)
            why = _impossible(group)
            if why:
                count.not_done[group] = why
                continue
            with _reserved_huge_pages() if group == "hugetlb" else contextlib.nullcontext():
                _count_group(count, worker, group, phases, cpu, instance, ids)
    return count


def _counters(
    root: Path, stack: contextlib.ExitStack
) -> tuple[tracing.Instance | None, dict[str, int]]:
    """A tracing instance, else (None, tracepoint numbers for perf)."""
    try:
        return stack.enter_context(tracing.Instance(root)), {}
    except UserError as refused:
        try:
            ids = perfcount.tracepoint_ids(root)
            perfcount.Counters(ids, 1)
        except (UserError, OSError):
            raise refused from None
        return None, ids


def _count_group(
    count: Count,
    worker: Child,
    group: str,
    phases: Mapping[str, Phase],
    cpu: int,
    instance: tracing.Instance | None,
    ids: dict[str, int],
) -> None:
    trace = next(iter(phases.values())).trace
    rows = trace.operations.collect().to_dicts()
    strange = sorted({row["kind"] for row in rows if not performable(row["kind"])})
    if strange:
        names = ", ".join(OpKind(kind).name for kind in strange)
        count.not_done[group] = f"performing {names} is not implemented"
        return
    request = Request(
        program=build(
            rows,
            {name: (phase.first, phase.end, phase.ops) for name, phase in phases.items()},
            _FILES,
            shutil.which("true") or sys.executable,
        ),
        cpu=cpu,
        instance=None if instance is None else instance.path,
        ids=ids,
        folder=_disk_folder(),
        huge_pages=group == "thp",
        cold=group in _COLD,
    )
    seen: dict[str, Counter[Counted]] = {name: Counter() for name in phases}
    refused: dict[str, str] = {}
    for run in range(_MOST_RUNS):
        answer: Answer = worker.ask(request)
        if answer.problem:
            count.not_done[group] = answer.problem
            return
        _take(answer, group, seen, refused)
        if run and all(n in refused or max(c.values()) > 1 for n, c in seen.items()):
            break
    for name, found in seen.items():
        phase = phases[name]
        if name in refused:
            count.not_done[name] = refused[name]
        elif name.startswith("swapin") and len(_SWAPS.read_text().splitlines()) < 2:
            count.not_done[name] = "no swap space is in use"
        elif instance is None and any(r["kind"] in _ENDS for r in rows[phase.first : phase.end]):
            count.not_done[name] = "perf counters stop before a task gives its memory map up"
        elif found.most_common(1)[0][1] == 1:
            reads = sorted(c.read for c in found)
            count.not_done[name] = f"no two of {_MOST_RUNS} runs agree (reads {reads})"
        else:
            count.counted.append(found.most_common(1)[0][0])


def _take(
    answer: Answer, group: str, seen: dict[str, Counter[Counted]], refused: dict[str, str]
) -> None:
    for number, done in enumerate(answer.performed):
        tally = answer.tallies.get(number, tracing.Tally())
        if done.name == WARM:
            continue
        if done.name == NOTHING:
            if tally.read or tally.write or tally.downgrade:
                raise UserError(
                    f"{tally.read} reads and {tally.write} writes of mmap_lock were counted"
                    " where nothing was done",
                    where=f"group {group}",
                    fix="is something else tracing or stopping this process? else report this",
                )
        elif done.refused:
            refused[done.name] = done.refused
        else:
            found = Counted(
                done.name,
                group,
                done.ops,
                tally.read,
                tally.write,
                tally.downgrade,
                done.minor + done.major if tally.user is None else tally.user,
                tally.kernel,
                done.major,
                done.reads,
            )
            seen[done.name][found] += 1


# -- what the machine has ----------------------------------------------------------------------


def _impossible(group: str) -> str:
    """Why a group of phases cannot be performed here, or empty."""
    if group == "file_rootfs":
        return "files here are on a disk and on tmpfs: see file_ext4 and file_tmpfs"
    if group in ("file_ext4", *_COLD) and _disk_folder() is None:
        return "no directory for temporary files that is on a disk (set TMPDIR)"
    if group == "hugetlb" and not os.access(_NR_HUGE, os.W_OK):
        return f"no permission to reserve huge pages ({_NR_HUGE})"
    return ""


def _disk_folder() -> Path | None:
    for name in (tempfile.gettempdir(), "/var/tmp", os.getcwd()):  # noqa: PTH109
        path = Path(name)
        if os.access(path, os.W_OK) and _file_system(path) not in _MEMORY_FS:
            return path
    return None


def _file_system(path: Path) -> str:
    """Type of the file system that ``path`` lies on (the longest mount point above it)."""
    best, kind = -1, ""
    real = path.resolve()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        mount = Path(words[4])
        if (mount == real or mount in real.parents) and len(words[4]) >= best:
            best, kind = len(words[4]), words[words.index("-") + 1]
    return kind


@contextlib.contextmanager
def _reserved_huge_pages() -> Iterator[None]:
    before = _NR_HUGE.read_text()
    try:
        with contextlib.suppress(OSError):
            _NR_HUGE.write_text(str(max(int(before), _HUGE_PAGES)))
        yield
    finally:
        _NR_HUGE.write_text(before)


@contextlib.contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C here, so that everything is undone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
