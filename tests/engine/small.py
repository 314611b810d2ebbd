"""Small plans, models and machines for the engine's tests.

``model`` is a tiny assembler: it emits the instruction arrays directly, one tuple
per instruction, with labels as strings.  It knows nothing that the engine does not
document, so a test reads like the program it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmreplay.address_space.plan import SCALE_ONE, MarkSet, Plan, PlanOp, Trait
from mmreplay.locking.isa import (
    PARAMS,
    Count,
    FlushScope,
    Form,
    Kind,
    Mode,
    Op,
    Operand,
    RuntimeBit,
    Scope,
)
from mmreplay.locking.model import LockingModel
from mmreplay.machine.profile import Machine, Number

R, W = Mode.READ, Mode.WRITE
MMAP_LOCK = {"kind": Kind.RWSEM, "scope": Scope.MM, "line": "mm.2", "bumps": "mm_seq"}
MM_SEQ = {"kind": Kind.SEQ, "scope": Scope.MM, "line": "mm.3"}
VMA = {
    "kind": Kind.PIN,
    "scope": Scope.VMA,
    "line": "vma.2",
    "marks_by": "mm_seq",
    "form": Form.REFCOUNT,
}
PTL = {"kind": Kind.SPIN, "scope": Scope.TABLE, "line": "table.0"}
ZONE = {"kind": Kind.SPIN, "scope": Scope.GLOBAL, "line": "global.zone"}
LOCKS = {"mmap_lock": MMAP_LOCK, "mm_seq": MM_SEQ, "vma": VMA, "ptl": PTL, "zone": ZONE}

DEFAULTS = {
    "reader_spin": 0,
    "steal": 1,
    "osq": 1,
    "spin_us": 1,
    "handoff_ns": 4_000_000,
    "batch": 256,
    "form": 0,
    "marks_by": -1,
    "bumps": -1,
    "owner_line": -1,
    "bump_acquire": 0,
    "fifo": 1,
}


def model(
    programs: dict[PlanOp, Sequence[Any]],
    locks: dict[str, dict[str, Any]] | None = None,
    lines: Sequence[str] = (),
) -> LockingModel:
    """Assemble programs: tuples (Op, operands…), strings are labels.

    COST name [Count] · SLEEP name · FLUSH scope · TOUCH line write · LOCK/TRY/UNLOCK
    lock mode [operand] (TRY: label last) · MARK/SNAP/CHECK/CONTENDED lock [label] · BRANCH
    (set, clear, bits set, bits clear, every) label · EACH set label · COUNT reason.
    """
    locks = LOCKS if locks is None else locks
    names = list(locks)
    line_names: list[str] = []
    for spec in locks.values():
        for line in (spec["line"], spec.get("owner_line")):
            if line is not None and line not in line_names:
                line_names.append(line)
    line_names += [x for x in lines if x not in line_names]
    params = np.zeros((len(names), len(PARAMS)), np.int64)
    for i, spec in enumerate(locks.values()):
        values = {**DEFAULTS, **{k: v for k, v in spec.items() if k in PARAMS}}
        for key, value in values.items():
            if key in ("marks_by", "bumps") and isinstance(value, str):
                value = names.index(value)
            if key == "owner_line" and isinstance(value, str):
                value = line_names.index(value)
            params[i, PARAMS.index(key)] = value
    costs: list[str] = []
    sleeps: list[str] = []
    reasons: list[str] = []
    conds: list[tuple[int, ...]] = []

    def number(of: list[Any], item: Any) -> int:
        if item not in of:
            of.append(item)
        return of.index(item)

    code: list[list[Any]] = []
    entry = np.full(len(PlanOp), -1, np.int32)
    for plan_op, program in programs.items():
        entry[plan_op] = len(code)
        labels: dict[str, int] = {}
        body: list[tuple[Any, ...]] = []
        for item in program:
            if isinstance(item, str):
                labels[item] = len(code) + len(body)
            else:
                body.append(item)
        for op, *args in body:
            row: list[Any] = [int(op), -1, -1, -1, -1, len(code)]
            match op:
                case Op.COST:
                    row[1] = number(costs, args[0])
                    row[2] = int(args[1]) if len(args) > 1 else int(Count.ONE)
                case Op.SLEEP:
                    row[1] = number(sleeps, args[0])
                case Op.FLUSH:
                    row[1] = int(args[0])
                case Op.TOUCH:
                    row[1], row[2] = line_names.index(args[0]), int(args[1])
                case Op.LOCK | Op.UNLOCK:
                    row[1], row[2] = names.index(args[0]), int(args[1])
                    row[3] = int(args[2]) if len(args) > 2 else 0
                case Op.TRY:
                    row[1], row[2] = names.index(args[0]), int(args[1])
                    row[3] = int(args[2]) if len(args) > 3 else 0
                    row[4] = labels[args[-1]]
                case Op.DOWNGRADE | Op.MARK:
                    row[1] = names.index(args[0])
                case Op.SNAP | Op.CHECK | Op.CONTENDED:
                    row[1] = names.index(args[0])
                    row[4] = labels[args[1]] if len(args) > 1 else -1
                case Op.BRANCH:
                    row[1] = number(conds, tuple(int(x) for x in (*args[0], 0, 0, 0, 0, 0)[:5]))
                    row[4] = labels[args[1]]
                case Op.JUMP:
                    row[4] = labels[args[0]]
                case Op.EACH | Op.END:
                    if op == Op.EACH:
                        row[1] = int(args[0])
                    row[4] = labels[args[-1]]
                case Op.SET:
                    row[1] = int(args[0])
                case Op.COUNT:
                    row[1] = number(reasons, args[0])
            code.append(row)
    cond = np.array(conds or np.zeros((0, 5)), np.int64).reshape(-1, 5)
    return LockingModel(
        name="small",
        title="",
        kernel=None,
        vma_rules="",
        path=Path("small.toml"),
        sha256="",
        code=np.array(code, np.int32).reshape(-1, 6),
        entry=entry,
        locks=tuple(names),
        lock_kind=np.array([s["kind"] for s in locks.values()], np.int32),
        lock_scope=np.array([s["scope"] for s in locks.values()], np.int32),
        lock_line=np.array([line_names.index(s["line"]) for s in locks.values()], np.int32),
        lock_rank=np.full(len(names), -1, np.int32),
        lock_params=params,
        lines=tuple(line_names),
        costs=tuple(costs),
        sleeps=tuple(sleeps),
        reasons=tuple(reasons),
        cond_traits_set=cond[:, 0].astype(np.uint64),
        cond_traits_clear=cond[:, 1].astype(np.uint64),
        cond_bits_set=cond[:, 2].astype(np.int32),
        cond_bits_clear=cond[:, 3].astype(np.int32),
        cond_every=cond[:, 4].copy(),
        default_costs=dict.fromkeys(costs, 100.0),
    )


def machine(
    cpus: int = 4, costs: dict[str, float] | None = None, spread: float = 0.0, **numbers: Any
) -> Machine:
    """A machine of round numbers; override any of them by name."""

    def n(value: float, s: float = 0.0) -> Number:
        return Number(float(value), "assumed", "test", s)

    values: dict[str, Any] = {
        "atomic_ns": 10,
        "line_smt_ns": 20,
        "line_llc_ns": 50,
        "line_socket_ns": 100,
        "line_cross_ns": 200,
        "waker_ns": 1000,
        "woken_ns": 5000,
        "sleep_ns": 300,
        "switch_ns": 500,
        "slice_ns": 3_000_000,
        "spin_poll_ns": 20,
        "shootdown_base_ns": 100,
        "shootdown_first_ns": 1000,
        "shootdown_next_ns": 200,
        "shootdown_handler_ns": 400,
        "zero_bytes_per_ns": 10,
    }
    stay = bool(numbers.pop("wakes_stay", False))
    values.update(numbers)
    ids = np.arange(cpus, dtype=np.int32)
    return Machine(
        name="small",
        title="",
        path=Path("small-machine.toml"),
        sha256="",
        assumed=True,
        cpu_model="",
        cpu_core=ids,
        cpu_llc=(ids // 4).astype(np.int32),
        cpu_socket=(ids // 8).astype(np.int32),
        costs={k: n(v, spread) for k, v in (costs or {}).items()},
        sleeps={"io": n(20_000)},
        frequency=((cpus, 1.0),),
        wakes_stay=stay,
        **{k: n(v) for k, v in values.items()},
    )


def op(kind: PlanOp = PlanOp.FAULT, **columns: Any) -> dict[str, Any]:
    """One operation; see :class:`Plan` for the columns.  ``marks``: (set, VMA or table) pairs."""
    return {"op": int(kind), **columns}


COLUMNS: dict[str, tuple[Any, int]] = {
    "mm": (np.int32, 0),
    "child_mm": (np.int32, -1),
    "traits": (np.uint64, 0),
    "think_cpu_ns": (np.int64, 0),
    "think_blocked_ns": (np.int64, 0),
    "sleep_ns": (np.int64, -1),
    "pages": (np.int32, 1),
    "vmas": (np.int32, 1),
    "tables": (np.int32, 1),
    "vma": (np.int32, -1),
    "anon_slot": (np.int32, -1),
    "table": (np.int32, -1),
    "file": (np.int32, -1),
    "first_page": (np.int64, 0),
    "last_page": (np.int64, 0),
    "vma_first_page": (np.int64, -1),
    "vma_last_page": (np.int64, -1),
    "scale": (np.int32, SCALE_ONE),
    "row": (np.int64, -1),
}


def plan(
    threads: Sequence[Sequence[dict[str, Any]]],
    offsets: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
    loops: Sequence[int] | None = None,
    tails: Sequence[tuple[int, int]] | None = None,
) -> Plan:
    """A plan of one list of operations per thread (``deps``: rows of the whole plan)."""
    ops = [x for thread in threads for x in thread]
    count = len(threads)
    first = np.cumsum([0] + [len(t) for t in threads]).astype(np.int64)
    columns = {
        name: np.array([x.get(name, default) for x in ops], dtype)
        for name, (dtype, default) in COLUMNS.items()
    }
    marks = [sorted(x.get("marks", ())) for x in ops]
    deps = [list(x.get("deps", ())) for x in ops]

    def csr(lists: Sequence[Sequence[Any]]) -> Any:
        return np.cumsum([0] + [len(x) for x in lists]).astype(np.int64)

    def top(name: str) -> int:
        return int(columns[name].max(initial=-1)) + 1

    mark_vma = np.array([v for x in marks for _, v in x], np.int32)
    mark_set = np.array([s for x in marks for s, _ in x], np.uint8)
    tables = mark_vma[mark_set == MarkSet.TABLES]
    vmas = max(top("vma"), int(mark_vma[mark_set != MarkSet.TABLES].max(initial=-1)) + 1)
    mms = max(top("mm"), top("child_mm"))
    zeros = np.zeros(count, np.int64)
    return Plan(
        thread_first=first,
        thread_offset_ns=np.array(offsets, np.int64) if offsets is not None else zeros.copy(),
        thread_group=np.array(groups if groups is not None else [0] * count, np.int32),
        thread_loop=np.array(loops if loops is not None else [-1] * count, np.int64),
        thread_tail_cpu_ns=np.array([t[0] for t in tails], np.int64) if tails else zeros.copy(),
        thread_tail_blocked_ns=np.array([t[1] for t in tails], np.int64) if tails else zeros.copy(),
        op=np.array([x["op"] for x in ops], np.uint8),
        **columns,
        mark_first=csr(marks),
        mark_vma=mark_vma,
        mark_set=mark_set,
        dep_first=csr(deps),
        dep_op=np.array([d for x in deps for d in x], np.int64),
        vma_mm=np.zeros(vmas, np.int32),
        anon_initial=np.zeros(top("anon_slot"), np.uint8),
        table_initial=np.zeros(max(top("table"), int(tables.max(initial=-1)) + 1), np.uint8),
        mm_users=np.ones(mms, np.int32),
        n_files=top("file"),
    )


__all__ = ["FlushScope", "Operand", "RuntimeBit", "Trait", "machine", "model", "op", "plan"]
