"""What ``replay`` says about its simulations: locks, operations, who waits for whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmreplay.address_space.plan import PlanOp
from mmreplay.engine.result import LockStats, Result
from mmreplay.locking.isa import Kind
from mmreplay.locking.model import LockingModel
from mmreplay.predict import gains
from mmreplay.predict.delays import quantile_ns


def lock_table(model: LockingModel, results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    reasons: dict[str, int] = {}
    for result in results:
        for reason, times in result.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + times
    fallback = {reason: times for reason, times in reasons.items() if times}
    # Both are always there: a kernel without per-VMA locks takes none.
    locks: dict[str, dict[str, Any]] = {
        "mmap_lock": _stats([LockStats("mmap_lock", "rwsem")]),
        "vma_lock": {"read": 0, "mark": 0, "fallback": fallback},
    }
    for name, kind in zip(model.locks, model.lock_kind, strict=True):
        stats = [lock for result in results for lock in result.locks if lock.name == name]
        if name in ("vma", "vma_lock") and kind == Kind.PIN:
            locks["vma_lock"] = {
                "read": sum(lock.read for lock in stats),
                "mark": sum(lock.mark for lock in stats),
                "fallback": fallback,
            }
        elif kind != Kind.SEQ:
            locks[name] = _stats(stats)
    return locks


def _stats(stats: Sequence[LockStats]) -> dict[str, Any]:
    names = (
        "read",
        "write",
        "downgrade",
        "read_wait_ns",
        "write_wait_ns",
        "read_hold_ns",
        "write_hold_ns",
    )
    return {name: sum(int(getattr(lock, name)) for lock in stats) for name in names}


def op_table(results: Sequence[Result]) -> tuple[dict[str, Any], ...]:
    """Operations by program; ``none``: they run none (a thread is cloned, a call was refused)."""
    rows = []
    for op in PlanOp:
        count = sum(int(result.op_count[op]) for result in results)
        if not count:
            continue
        delays = np.sum([result.op_delay[op] for result in results], axis=0)
        rows.append(
            {
                "op": op.name.lower(),
                "count": count,
                "busy_ns": sum(int(result.op_busy_ns[op]) for result in results),
                "wait_ns": sum(int(result.op_wait_ns[op]) for result in results),
                "delay_p50_ns": _round(quantile_ns(delays, 0.5)),
                "delay_p99_ns": _round(quantile_ns(delays, 0.99)),
            }
        )
    return tuple(sorted(rows, key=lambda row: -row["count"]))


def _round(value: float | None) -> int | None:
    return None if value is None else round(value)


def blame_table(model: LockingModel, results: Sequence[Result]) -> tuple[dict[str, Any], ...]:
    sums: dict[tuple[str, str], int] = {}
    for charge in gains.blame(results, model.locks):
        key = (charge.holder_op, charge.waiter_op)
        sums[key] = sums.get(key, 0) + charge.wait_ns
    return tuple(
        {"holder_op": holder, "waiter_op": waiter, "wait_ns": wait_ns}
        for (holder, waiter), wait_ns in sorted(sums.items(), key=lambda item: -item[1])
    )
