"""Counts of the running kernel against a locking model: what differs, and what it means."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from mmreplay.errors import UserError, closest
from mmreplay.hardware.counting import Count, Counted, count_phases
from mmreplay.locking import list_models, load_model, resolve_kernel
from mmreplay.predict.phase_counts import PhaseCount, phase_counts
from mmreplay.schema import FaultClass, OpKind
from mmreplay.workloads.phases import GROUPS, NOT_EXPRESSIBLE, Phase, record

if TYPE_CHECKING:
    from mmreplay.locking.model import LockingModel

#: Which rule of the kernels a phase shows: pattern of its name -> the rule, and since when.
FEATURES: Final[tuple[tuple[str, str], ...]] = (
    (
        r"^anon_w_(big_rest|1000vmas_second|over_zero_rest)|refault|_touch$|cow_.*(rest|reuse|copy)",
        "anonymous faults under the VMA lock (6.4)",
    ),
    (
        r"^anon_w_.*first|thp_w_first|cow_child_first|mmap_touch_munmap|anon_w_over_zero_first",
        "the first write in a VMA prepares its anon_vma under the VMA lock, with a trylock of"
        " mmap_lock (6.10)",
    ),
    (r"anon_r_zero", "zero-page read faults without an anon_vma under the VMA lock (6.10)"),
    (r"thp_", "huge anonymous faults under the VMA lock (6.4)"),
    (
        r"r_cold",
        "a read that has to wait for storage retries once under mmap_lock (6.7; twice in 6.1)",
    ),
    (r"file_r_", "file faults that fault-around serves under the VMA lock (6.6)"),
    (r"file_w_|shared_anon", "file writes, copies and shmem allocation under the VMA lock (6.7)"),
    (r"hugetlb", "hugetlb faults under the VMA lock (6.9)"),
    (r"kfault", "kernel-mode faults always take mmap_lock (every release so far)"),
    (
        r"populate|vmsplice|mlock|POPULATE",
        "populating and pinning pages under mmap_lock for reading",
    ),
    (r"madv_guard", "MADV_GUARD_INSTALL and _REMOVE on the VMA lock (6.19)"),
    (
        r"madv_(dontneed|free)",
        "MADV_DONTNEED and MADV_FREE on the VMA lock where the range is one VMA (6.17)",
    ),
    (r"willneed", "MADV_WILLNEED drops mmap_lock for the file and takes it again"),
    (
        r"madv_(cold|pageout)|pagemap|proc_mem|process_vm|mincore|msync|get_mempolicy",
        "looking at a range, or at another's pages, takes mmap_lock for reading",
    ),
    (r"madv_|mbind", "advice and policy that change a VMA take mmap_lock for writing"),
    (
        r"^mmap_|mprotect|mremap_(grow_inplace|move|noop)|brk_(query|grow)",
        "changing the map takes mmap_lock for writing, once",
    ),
    (r"munmap|shrink", "munmap, and shrinking by brk or mremap, downgrade mmap_lock (4.20)"),
    (
        r"stack_grow|growsdown",
        "stack growth takes mmap_lock for writing (6.5, and backports of it)",
    ),
    (r"pthread|clone_thread", "every thread that exits takes mmap_lock for reading once"),
    (r"fork|vfork", "fork locks both maps for writing; exits read, and write from 6.1 on"),
    (r"proc_maps", "/proc/PID/maps on VMA locks (6.17)"),
    (
        r"proc_(smaps|numa)",
        "each read(2) of smaps and numa_maps takes mmap_lock, that which finds the end not in"
        " every release (VMA locks from 7.3 on)",
    ),
    (r"uffd_(un)?register", "registering with userfaultfd takes mmap_lock for writing"),
    (r"uffd_copy", "UFFDIO_COPY on the VMA lock (6.9)"),
    (r"segv", "refused accesses are delivered without mmap_lock (6.10)"),
)
_NO_FEATURE: Final = "an operation of its own"


@dataclass(frozen=True, slots=True)
class Line:
    """One phase: counted on the kernel, and what the model takes; per operation.

    ``as_models``: other shipped kernel models that take exactly what was counted, oldest
    first; looked for in groups of phases in which something differs.  ``operations``: the
    programs that the phase runs.
    """

    phase: str
    group: str
    ops: int
    counted: tuple[int, int, int]  # reads, writes, downgrades over all operations
    expected: tuple[int, int, int]
    feature: str
    as_models: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        return self.counted != self.expected


@dataclass(frozen=True, slots=True)
class Verification:
    """A whole comparison.

    ``releases``: the release that each model stands for, by name.  ``closer``: the same
    counts against a shipped model from which at most half as many phases differ, if any.
    """

    kernel: str
    model: str
    note: str
    method: str
    lines: tuple[Line, ...]
    not_done: dict[str, str] = field(default_factory=dict)
    releases: dict[str, tuple[int, int]] = field(default_factory=dict)
    closer: Verification | None = None

    @property
    def differences(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.differs)


def select(names: Sequence[str] = ()) -> dict[str, dict[str, Phase]]:
    """The groups of phases to perform: all, or those that hold one of ``names``.

    Raises
    ------
    UserError
        A name that is neither a group nor a phase.
    """
    recorded = {group: record(group) for group in GROUPS}
    known = {*recorded, *(phase for phases in recorded.values() for phase in phases)}
    for name in names:
        if name not in known and name not in NOT_EXPRESSIBLE:
            raise UserError(
                f'unknown phase or group "{name}"{closest(name, known)}',
                where="--phases",
                fix=f"groups are {', '.join(GROUPS)}",
            )
    if not names:
        return recorded
    return {g: p for g, p in recorded.items() if g in names or any(n in names for n in p)}


def compare(
    count: Count,
    kernel: str = "",
    only: Sequence[str] = (),
    recorded: Mapping[str, Mapping[str, Phase]] | None = None,
    models: Sequence[str] | None = None,
) -> Verification:
    """Hold counts against the model of their kernel.

    Parameters
    ----------
    count:
        What :func:`mmreplay.hardware.counting.count_phases` found.
    kernel:
        A model, or a release that picks one; empty: the release that was counted.
    only:
        Phases or groups to compare; empty: all that were counted.
    recorded:
        Group → phase → its recording as it was performed; None: made here.
    models:
        Models that may explain a difference; None: all shipped ones that stand for a
        kernel.
    """
    model, note = resolve_kernel(kernel or count.kernel)
    others = [
        other
        for other in (list_models() if models is None else map(load_model, models))
        if other.kernel is not None and other.name != model.name
    ]
    not_done = dict(count.not_done)
    lines: list[Line] = []
    performed: dict[str, Mapping[str, Phase]] = {}
    for group, counted in _by_group(count.counted).items():
        wanted = [c for c in counted if not only or group in only or c.phase in only]
        comparable = []
        phases = recorded[group] if recorded else as_performed(group, counted)
        performed[group] = phases
        for one in wanted:
            why = _incomparable(one, phases[one.phase])
            if why:
                not_done[one.phase] = why
            else:
                comparable.append(one)
        lines += _group_lines(comparable, phases, model, others)
    for phase, why in NOT_EXPRESSIBLE.items():
        if not only or phase in only:
            not_done.setdefault(phase, why)
    releases = {m.name: m.kernel for m in (model, *others) if m.kernel is not None}
    found = Verification(
        count.kernel, model.name, note, count.method, tuple(lines), not_done, releases
    )
    return replace(found, closer=_closer(found, performed, {m.name: m for m in others}))


def _closer(
    found: Verification,
    phases: Mapping[str, Mapping[str, Phase]],
    models: Mapping[str, LockingModel],
) -> Verification | None:
    groups = {line.group for line in found.differences}
    score = Counter(n for line in found.lines if line.group in groups for n in line.as_models)
    if not score:
        return None
    other = models[score.most_common(1)[0][0]]
    lines: list[Line] = []
    for group in dict.fromkeys(line.group for line in found.lines):
        counts = phase_counts(phases[group], other)
        for line in found.lines:
            if line.group != group:
                continue
            if line.phase not in counts:
                return None
            same = {n for n in line.as_models if n != other.name}
            if not line.differs and found.model in found.releases:
                same.add(found.model)
            as_models = tuple(sorted(same, key=found.releases.__getitem__))
            c = counts[line.phase]
            lines.append(
                replace(line, expected=(c.read, c.write, c.downgrade), as_models=as_models)
            )
    closer = replace(found, model=other.name, note="", lines=tuple(lines))
    return closer if 2 * len(closer.differences) <= len(found.differences) else None


def _group_lines(
    counted: Sequence[Counted],
    phases: Mapping[str, Phase],
    model: LockingModel,
    others: Sequence[LockingModel],
) -> list[Line]:
    if not counted:
        return []
    expected = phase_counts(phases, model)
    lines = [_line(one, expected[one.phase]) for one in counted if one.phase in expected]
    if any(line.differs for line in lines):
        explanations = {other.name: phase_counts(phases, other) for other in others}
        lines = [_explained(line, explanations) for line in lines]
    return lines


def _by_group(counted: Sequence[Counted]) -> dict[str, list[Counted]]:
    found: dict[str, list[Counted]] = {}
    for one in counted:
        found.setdefault(one.group, []).append(one)
    return found


def as_performed(group: str, counted: Sequence[Counted]) -> dict[str, Phase]:
    """The recording of a group with the faults and read(2) calls that there really were."""
    return record(
        group,
        faults={c.phase: sum(c.faults) for c in counted if c.phase.startswith("file_")},
        reads={c.phase: c.calls for c in counted if c.calls},
    )


def _incomparable(counted: Counted, phase: Phase) -> str:
    """Why a phase's counts cannot be held against its recording, or empty."""
    if counted.phase in NOT_EXPRESSIBLE:
        return NOT_EXPRESSIBLE[counted.phase]
    rows = phase.trace.operations.slice(phase.first, phase.end - phase.first)
    is_fault = pl.col("kind").is_in([int(OpKind.FAULT_USER), int(OpKind.FAULT_KERNEL)])
    fault_class = pl.col("fault_class")
    found: Any = rows.select(
        faults=(is_fault & (fault_class != int(FaultClass.FAILED))).sum(),
        major=(is_fault & (fault_class == int(FaultClass.MAJOR))).sum(),
    ).collect()
    faults, major = found["faults"].item(), found["major"].item()
    if counted.faults[1] != major:
        return f"{counted.faults[1]} faults waited for storage, {major} do in the recording"
    if sum(counted.faults) < faults:
        return f"{sum(counted.faults)} faults happened, the recording has {faults}"
    return ""


def _line(counted: Counted, expected: PhaseCount) -> Line:
    return Line(
        counted.phase,
        counted.group,
        counted.ops,
        (counted.read, counted.write, counted.downgrade),
        (expected.read, expected.write, expected.downgrade),
        feature_of(counted.phase),
        operations=tuple(op.name.lower() for op in expected.operations),
    )


def feature_of(phase: str) -> str:
    """The rule that a phase shows."""
    return next((text for pattern, text in FEATURES if re.search(pattern, phase)), _NO_FEATURE)


def _explained(line: Line, models: Mapping[str, Mapping[str, PhaseCount]]) -> Line:
    same = [
        name
        for name, counts in models.items()
        if line.phase in counts
        and (counts[line.phase].read, counts[line.phase].write, counts[line.phase].downgrade)
        == line.counted
    ]
    return replace(line, as_models=tuple(same))


def meaning(line: Line, found: Verification) -> str:
    """What a difference of ``found`` most probably is, in one sentence."""
    if not line.as_models:
        return f"no shipped model counts like this; the phase shows: {line.feature}"
    ours = found.releases.get(found.model, (0, 0))
    older = [name for name in line.as_models if found.releases[name] < ours]
    newer = [name for name in line.as_models if found.releases[name] > ours]
    if older and not newer:
        return f"as {older[-1]} counts: this kernel is without “{line.feature}”"
    if newer and not older:
        return f"as {newer[0]} counts: this kernel has “{line.feature}” already (a backport)"
    return f"as {', '.join(line.as_models)} count; the phase shows: {line.feature}"


def run(
    kernel: str = "",
    phases: Sequence[str] = (),
    report: Callable[[str], None] = lambda group: None,
) -> tuple[Verification, dict[str, dict[str, Phase]]]:
    """Perform the phases here, count, compare.

    Returns the comparison, and the recordings by group with the faults and reads that
    there were (for :func:`mmreplay.predict.derive_model.derive`).

    Raises
    ------
    UserError
        This machine cannot be counted, or an unknown kernel, model or phase.
    """
    if kernel:
        resolve_kernel(kernel)  # a slip is reported before anything is performed
    count = count_phases(select(phases), report)
    recorded = {g: as_performed(g, counted) for g, counted in _by_group(count.counted).items()}
    return compare(count, kernel, phases, recorded), recorded
