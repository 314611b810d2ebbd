"""Replays the phases of a counts file under the models and compares lock by lock."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np

from mmreplay.address_space.plan import Plan, PlanOp
from mmreplay.errors import UserError, closest
from mmreplay.lockcounts.file import COLUMNS, Counted, given
from mmreplay.lockcounts.part import select
from mmreplay.locking import load_model, resolve_kernel
from mmreplay.locking.isa import OP, C, Op, Operand
from mmreplay.locking.model import LockingModel
from mmreplay.machine.loader import load_machine
from mmreplay.machine.profile import Machine
from mmreplay.workloads.phases import GROUPS, Phase, partly, reason, record, undecided
from mmreplay.workloads.script import Given, N

_RELEASE: Final = re.compile(r"\d+\.\d+(?:\.\d+)?")
#: Any machine will do: single-threaded counts do not depend on time.
_MACHINE: Final = "generic-server"
_RWSEM: Final = COLUMNS[:3]

#: What a machine may be like that a counts file does not say: name, where it matters.
ENVIRONMENT: Final[dict[str, tuple[str, str]]] = {
    "gate": ("proc", "[vsyscall] is mapped"),
    "disk_root": ("file_rootfs", "the root file system is on a disk"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One phase of one kernel: counted and replayed, by column.

    ``outcome``: equal, differs, not compared (``why`` says the reason).
    """

    kernel: str
    phase: str
    ops: int
    counted: Mapping[str, int | None]
    replayed: Mapping[str, int | None]
    tolerance: int
    outcome: str
    why: str = ""

    @property
    def differences(self) -> dict[str, tuple[int, int]]:
        """Column → (replayed, counted), where they differ by more than is allowed."""
        out = {}
        for column in COLUMNS:
            got, want = self.replayed.get(column), self.counted.get(column)
            if got is not None and want is not None:
                allowed = self.tolerance if column == COLUMNS[0] else 0
                if abs(got - want) > allowed:
                    out[column] = (got, want)
        return out


@dataclass(frozen=True, slots=True)
class Report:
    """All phases of one kernel."""

    kernel: str
    model: str
    note: str
    environment: tuple[str, ...]
    rows: tuple[Row, ...] = field(default=())

    def count(self, outcome: str) -> int:
        return sum(row.outcome == outcome for row in self.rows)


def check_counts(
    counts: Mapping[str, Mapping[str, Counted]],
    *,
    kernels: Iterable[str] = (),
    model: str = "",
    progress: Callable[[str], None] = lambda _text: None,
) -> list[Report]:
    """Compare every kernel of a counts file, or those named.

    Parameters
    ----------
    counts:
        From :func:`~mmreplay.lockcounts.file.read_counts`.
    kernels:
        Names in the file; none: all.
    model:
        A model's name or file; empty: for each kernel the newest not newer than it.
    """
    wanted = list(kernels)
    for name in wanted:
        if name not in counts:
            raise UserError(
                f'the counts have no kernel "{name}"{closest(name, counts)}',
                fix=f"one of {', '.join(counts)}",
            )
    reports = []
    for name in wanted or counts:
        progress(f"kernel {name}")
        reports.append(check_kernel(counts[name], model=model))
    if not any(row.outcome != "not compared" for report in reports for row in report.rows):
        first = reports[0].rows[0]
        raise UserError(
            f"nothing can be compared: {first.kernel} {first.phase}: {first.why}",
            fix="the phases that are known stand in datasets/lockcounts/lockcounts.csv",
        )
    return reports


def check_kernel(rows: Mapping[str, Counted], *, model: str | LockingModel = "") -> Report:
    """Compare all phases of one kernel's rows.

    ``model``: as for :func:`check_counts`, or one that is assembled already.
    """
    kernel = next(iter(rows.values())).kernel
    chosen, note = _model(kernel, model)
    replay = _Replay(chosen, rows)
    found: dict[str, Row] = {}
    environment: list[str] = []
    for group in GROUPS:
        here = replay.group(group)
        for name, (where, meaning) in ENVIRONMENT.items():
            if group == where and _differ(here):
                other = replay.group(group, **{name: True})
                if not _differ(other):  # explains every phase of the group: the machine is so
                    here = other
                    environment.append(meaning)
        found |= here
    ordered = [found.get(phase) or _left_out(row) for phase, row in rows.items()]
    return Report(kernel, chosen.name, note, tuple(environment), tuple(ordered))


def programs(rows: Mapping[str, Counted], phase: str, model: LockingModel) -> tuple[str, ...]:
    """Names of the programs that ``phase`` runs, with what ``rows`` say of it."""
    replay = _Replay(model, rows)
    written = next(replay.written(group) for group in GROUPS if phase in _phases(group))
    plan = _plan(written[phase], model.vma_rules)
    kinds = () if plan is None else np.unique(plan.op)
    return tuple(PlanOp(int(k)).name.lower() for k in kinds if k != PlanOp.NONE)


def _differ(rows: Mapping[str, Row]) -> bool:
    return any(row.outcome == "differs" for row in rows.values())


def _left_out(row: Counted) -> Row:
    near = "" if reason(row.phase) else closest(row.phase, [n for g in GROUPS for n in _phases(g)])
    why = reason(row.phase) or f"no phase of that name is known{near}"
    return Row(row.kernel, row.phase, row.ops, row.counts, {}, 0, "not compared", why)


@cache
def _loaded(name: str) -> LockingModel:
    return load_model(name)


def _model(kernel: str, model: str | LockingModel) -> tuple[LockingModel, str]:
    if isinstance(model, LockingModel):
        return model, ""
    if model:
        return _loaded(model), ""
    release = _RELEASE.search(kernel)
    if release is None:
        raise UserError(
            f'"{kernel}" names no kernel release', fix="say which model with --model NAME"
        )
    try:
        return resolve_kernel(release.group(0))
    except UserError as error:
        fix = f"say which model with --model NAME ({error.fix})"
        raise UserError(error.problem, fix=fix) from None


@cache
def _machine() -> Machine:
    return load_machine(_MACHINE)


@cache
def _written(
    group: str, facts: tuple[tuple[str, Given], ...], n: int, environment: tuple[str, ...]
) -> dict[str, Phase]:
    return record(group, dict(facts), n=n, **dict.fromkeys(environment, True))


@cache
def _phases(group: str) -> tuple[str, ...]:
    """Names of a group's phases, whatever was counted."""
    return tuple(_written(group, (), 8, ()))


_plans: dict[tuple[int, str, str], Plan | None] = {}


def _plan(phase: Phase, rules: str) -> Plan | None:
    """The phase's operations under the VMA rules; None where it has none."""
    from mmreplay.address_space.planner import build_plan
    from mmreplay.address_space.rules import load_rules

    key = (id(phase.trace), phase.name, rules)
    if key not in _plans:
        window = (phase.first, phase.end)
        _plans[key] = (
            build_plan(phase.trace, load_rules(rules), window=window).plan
            if phase.first < phase.end
            else None
        )
    return _plans[key]


class _Replay:
    """The phases of one kernel under one model."""

    def __init__(self, model: LockingModel, rows: Mapping[str, Counted]) -> None:
        self.model = model
        self.rows = rows
        self.given = given(rows)
        self.n = _operations(rows)

    def group(self, group: str, **environment: bool) -> dict[str, Row]:
        """Rows of the group's phases that the file has."""
        names = [name for name in _phases(group) if name in self.rows]
        names += [f"{name}:child" for name in _phases(group) if f"{name}:child" in self.rows]
        if not names:
            return {}
        written = self.written(group, **environment)
        out = {}
        for name in names:
            main, _, role = name.partition(":")
            if main in written:
                out[name] = self._row(written[main], self.rows[name], role)
        return out

    def written(self, group: str, **environment: bool) -> dict[str, Phase]:
        """The group's recordings with what the rows say besides locks."""
        facts = tuple((n, self.given[n]) for n in _phases(group) if n in self.given)
        return _written(group, facts, self.n, tuple(sorted(environment)))

    def _row(self, phase: Phase, counted: Counted, role: str) -> Row:
        open_ = undecided(phase.name, self.given.get(phase.name, Given()))
        if open_:
            return Row(
                counted.kernel,
                counted.phase,
                counted.ops,
                counted.counts,
                {},
                0,
                "not compared",
                open_,
            )
        replayed: dict[str, int | None] = {}
        got = self._counts(phase, role)
        for column in COLUMNS:
            known = counted.counts.get(column) is not None
            replayed[column] = got[column] if known and not partly(phase.name, column) else None
        row = Row(
            counted.kernel,
            counted.phase,
            counted.ops,
            counted.counts,
            replayed,
            1 if phase.exits else 0,
            "equal",
        )
        if row.differences:
            return _outcome(row, "differs", _words(row))
        if counted.ops != phase.ops and phase.ops:
            why = f"counted with {counted.ops} operations, the phase has {phase.ops}"
            return _outcome(row, "differs", why)
        return row

    def _counts(self, phase: Phase, role: str) -> dict[str, int]:
        plan = _plan(phase, self.model.vma_rules)
        if plan is None:
            return dict.fromkeys(COLUMNS, 0)
        everything = np.ones(plan.n_ops, np.bool_)
        # mmap_lock was counted of one address space only, VMA locks of every process
        target = plan.mm == plan.mm[0]
        if role == "child":
            everything[: plan.thread_first[1]] = False
        counts = self._run(plan, everything)
        if not target.all():
            counts |= {k: v for k, v in self._run(plan, everything & target).items() if k in _RWSEM}
        forks = int(np.count_nonzero((plan.op == PlanOp.FORK) & everything & target))
        counts["mmap_lock_write"] -= forks * _child_locks(self.model)
        return counts

    def _run(self, plan: Plan, keep: Any) -> dict[str, int]:
        from mmreplay.engine import Options, simulate

        if not keep.any():
            return dict.fromkeys(COLUMNS, 0)
        part = plan if keep.all() else select(plan, keep)
        result = simulate(part, self.model, _machine(), Options(cores=2))
        locks = {lock.name: lock for lock in result.locks}
        mmap, vma = locks.get("mmap_lock"), locks.get("vma_lock")
        return {
            "mmap_lock_read": mmap.read if mmap else 0,
            "mmap_lock_write": mmap.write if mmap else 0,
            "write_downgrade": mmap.downgrade if mmap else 0,
            "vma_lock_ok": vma.read if vma else 0,
            "vma_start_write_slow": vma.mark if vma else 0,
        }


def _outcome(row: Row, outcome: str, why: str) -> Row:
    return Row(
        row.kernel, row.phase, row.ops, row.counted, row.replayed, row.tolerance, outcome, why
    )


def _words(row: Row) -> str:
    return ", ".join(
        f"{column} {got} replayed, {want} counted"
        for column, (got, want) in row.differences.items()
    )


def _operations(rows: Mapping[str, Counted]) -> int:
    """How many operations the program was told to do of each kind."""
    for phase in ("anon_w_big_rest", "mmap_anon_merge", "mprotect_noop", "brk_query", "madv_cold"):
        if phase in rows and rows[phase].ops > 0:
            return min(rows[phase].ops, 100_000)
    return N


def _child_locks(model: LockingModel) -> int:
    """Locks that a fork takes on the child's address space: counted apart by the kernel."""
    entry = int(model.entry[PlanOp.FORK])
    if entry < 0:
        return 0
    ends = [int(e) for e in model.entry if e > entry]
    body = model.code[entry : min(ends, default=len(model.code))]
    return int(np.count_nonzero((body[:, OP] == Op.LOCK) & (body[:, C] == Operand.CHILD)))
