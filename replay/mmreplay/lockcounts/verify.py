"""Counts of the running kernel against a locking model: what differs, and what it means."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from mmreplay.errors import UserError, closest
from mmreplay.hardware.counting import Count, count_phases
from mmreplay.lockcounts.check import check_kernel
from mmreplay.lockcounts.file import COLUMNS, Counted
from mmreplay.locking import list_models, load_model, resolve_kernel
from mmreplay.workloads.phases import GROUPS, Phase, reason, record
from mmreplay.workloads.script import Given, N

if TYPE_CHECKING:
    from mmreplay.locking.model import LockingModel

#: Phases that a recording has only where each operation faulted: they are performed all the
#: same.
_TRIED: Final = ("write_fault_after_mprotect_R_RW", "write_after_madv_free")
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
    (r"empty|futex|proc_stat", "takes no lock of the memory map"),
    (r"write_(fault_)?after", "a page that is there is written to without a fault"),
    (r"swapin", "faults on pages in swap under the VMA lock (6.6)"),
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
        r"madv_(cold|pageout)|process_madvise|pagemap|proc_mem|process_vm|mincore|msync|get_mempolicy",
        "looking at a range, or at another's pages, takes mmap_lock for reading",
    ),
    (r"madv|mbind", "advice and policy that change a VMA take mmap_lock for writing"),
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
    """One phase: counted on the kernel, and what the model takes.

    ``as_models``: other shipped kernel models that take exactly what was counted, oldest
    first; looked for in groups of phases in which something differs.
    """

    phase: str
    group: str
    ops: int
    counted: tuple[int, ...]  # reads, writes, downgrades over all operations
    expected: tuple[int, ...]
    feature: str
    as_models: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        return self.counted != self.expected


@dataclass(frozen=True, slots=True)
class Verification:
    """A whole comparison.

    ``rows``: what was counted, by phase.  ``releases``: the release that each model stands
    for, by name.  ``closer``: the same counts against a shipped model from which at most
    half as many phases differ, if any.
    """

    kernel: str
    model: str
    note: str
    method: str
    lines: tuple[Line, ...]
    rows: Mapping[str, Counted]
    not_done: Mapping[str, str]
    releases: Mapping[str, tuple[int, int]] = field(default_factory=dict)
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
    tried = {name: Given(faults_user=N) for name in _TRIED}
    recorded = {group: record(group, tried) for group in GROUPS}
    known = {*recorded, *(phase for phases in recorded.values() for phase in phases)}
    for name in names:
        if name not in known:
            why = reason(name)
            raise UserError(
                f'phase "{name}" cannot be performed: {why}'
                if why
                else f'unknown phase or group "{name}"{closest(name, known)}',
                where="--phases",
                fix=f"groups are {', '.join(GROUPS)}",
            )
    if not names:
        return recorded
    return {g: p for g, p in recorded.items() if g in names or any(n in names for n in p)}


def as_rows(count: Count) -> dict[str, Counted]:
    """Counts as rows of a counts file, by phase."""
    rows = {}
    for one in count.counted:
        locks = (one.read, one.write, one.downgrade)
        rows[one.phase] = Counted(
            kernel=count.kernel,
            phase=one.phase,
            line=0,
            ops=one.ops,
            counts=dict.fromkeys(COLUMNS) | dict(zip(COLUMNS, locks, strict=False)),
            faults_user=one.faults_user,
            faults_kernel=one.faults_kernel,
            major=one.major,
            reads_per_op=one.calls or None,
        )
    return rows


def compare(
    count: Count, kernel: str = "", only: Sequence[str] = (), models: Sequence[str] | None = None
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
    models:
        Models that may explain a difference; None: all shipped ones that stand for a
        kernel.
    """
    model, note = resolve_kernel(kernel or count.kernel)
    others = {
        other.name: other
        for other in (list_models() if models is None else map(load_model, models))
        if other.kernel is not None and other.name != model.name
    }
    groups = {c.phase: c.group for c in count.counted}
    rows = {
        phase: row
        for phase, row in as_rows(count).items()
        if not only or phase in only or groups[phase] in only
    }
    not_done = dict(count.not_done)
    lines = _lines(rows, groups, model, not_done)
    wrong = {line.group for line in lines if line.differs}
    looked_at = {phase: row for phase, row in rows.items() if groups[phase] in wrong}
    if wrong:
        same = {name: _expected(looked_at, other) for name, other in others.items()}
        lines = [
            replace(
                line,
                as_models=tuple(
                    n for n, taken in same.items() if line.counted == taken[line.phase]
                ),
            )
            if line.phase in looked_at
            else line
            for line in lines
        ]
    releases = {m.name: m.kernel for m in (model, *others.values()) if m.kernel is not None}
    found = Verification(
        count.kernel, model.name, note, count.method, tuple(lines), rows, not_done, releases
    )
    return replace(found, closer=_closer(found, groups, others))


def _lines(
    rows: Mapping[str, Counted],
    groups: Mapping[str, str],
    model: LockingModel,
    not_done: dict[str, str],
) -> list[Line]:
    lines = []
    for row in check_kernel(rows, model=model).rows if rows else ():
        if row.outcome == "not compared":
            not_done[row.phase] = row.why
            continue
        counted = tuple(row.counted[c] or 0 for c in COLUMNS[:3])
        expected = tuple(row.replayed[c] or 0 for c in COLUMNS[:3])
        group, feature = groups[row.phase], feature_of(row.phase)
        lines.append(Line(row.phase, group, row.ops, counted, expected, feature))
    return lines


def _expected(rows: Mapping[str, Counted], model: LockingModel) -> dict[str, tuple[int, ...]]:
    """Reads, writes and downgrades that a model takes, by phase."""
    return {
        row.phase: tuple(row.replayed.get(c) or 0 for c in COLUMNS[:3])
        for row in check_kernel(rows, model=model).rows
    }


def _closer(
    found: Verification, groups: Mapping[str, str], models: Mapping[str, LockingModel]
) -> Verification | None:
    wrong = {line.group for line in found.differences}
    score = Counter(n for line in found.lines if line.group in wrong for n in line.as_models)
    if not score:
        return None
    ours = found.releases.get(found.model, (0, 0))

    def nearness(name: str) -> int:
        major, minor = found.releases[name]
        return -abs(100 * (major - ours[0]) + minor - ours[1])

    other = models[max(score, key=lambda name: (score[name], nearness(name)))]
    lines = _lines(found.rows, groups, other, {})
    closer = replace(
        found,
        model=other.name,
        note="",
        lines=tuple(
            replace(line, as_models=tuple(sorted(_same(old, other.name, found), key=_by(found))))
            for line, old in zip(lines, found.lines, strict=True)
        ),
    )
    return closer if 2 * len(closer.differences) <= len(found.differences) else None


def _same(line: Line, without: str, found: Verification) -> set[str]:
    """Models that count like the kernel, other than ``without``."""
    ours = set() if line.differs or found.model not in found.releases else {found.model}
    return (set(line.as_models) | ours) - {without}


def _by(found: Verification) -> Callable[[str], tuple[int, int]]:
    return lambda name: found.releases[name]


def feature_of(phase: str) -> str:
    """The rule that a phase shows."""
    return next((text for pattern, text in FEATURES if re.search(pattern, phase)), _NO_FEATURE)


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
) -> Verification:
    """Perform the phases here, count, compare.

    Raises
    ------
    UserError
        This machine cannot be counted, or an unknown kernel, model or phase.
    """
    if kernel:
        resolve_kernel(kernel)  # a slip is reported before anything is performed
    return compare(count_phases(select(phases), report), kernel, phases)
