"""Programs without their branches on traits: one straight piece of code per class of operation.

Two operations are of one class when they run the same program and agree in every
trait that the model's conditions test.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import Plan
from mmreplay.locking.isa import OP, TARGET, A, Op
from mmreplay.locking.model import LockingModel

_ENDS = (Op.DONE, Op.JUMP)


def _dynamic(model: LockingModel, cond: int) -> bool:
    bits = int(model.cond_bits_set[cond]) | int(model.cond_bits_clear[cond])
    return bool(bits) or bool(model.cond_every[cond])


def _traits_hold(model: LockingModel, cond: int, traits: int) -> bool:
    wanted, unwanted = int(model.cond_traits_set[cond]), int(model.cond_traits_clear[cond])
    return traits & wanted == wanted and not traits & unwanted


def _follow(model: LockingModel, pc: int, traits: int) -> int:
    """Skip jumps and branches whose outcome the traits decide."""
    for _ in range(len(model.code) + 1):
        row = model.code[pc]
        if row[OP] == Op.JUMP:
            pc = int(row[TARGET])
        elif row[OP] == Op.BRANCH:
            if not _traits_hold(model, int(row[A]), traits):
                pc += 1
            elif not _dynamic(model, int(row[A])):
                pc = int(row[TARGET])
            else:
                return pc
        else:
            return pc
    return pc  # an empty loop: left to the engine, which never ends either


def _emit(model: LockingModel, entry: int, traits: int, out: list[list[int]]) -> int:
    """Append the specialised program; returns its first instruction."""
    first = len(out)
    placed: dict[int, int] = {}
    fixes: list[tuple[int, int]] = []  # (row of out, source instruction it goes to)
    todo = [_follow(model, entry, traits)]
    while todo:
        pc = todo.pop()
        if pc in placed:
            continue
        while True:
            placed[pc] = len(out)
            row = [int(x) for x in model.code[pc]]
            out.append(row)
            if row[TARGET] >= 0:
                target = _follow(model, row[TARGET], traits)
                fixes.append((len(out) - 1, target))
                if target not in placed:
                    todo.append(target)
            if row[OP] in _ENDS:
                break
            pc = _follow(model, pc + 1, traits)
            if pc in placed:
                out.append([int(Op.JUMP), -1, -1, -1, placed[pc], row[5]])
                break
    for where, target in fixes:
        out[where][TARGET] = placed[target]
    return first


def specialise(plan: Plan, model: LockingModel) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(code, first instruction of each operation); -1 where there is no program."""
    mask = 0
    for cond in range(len(model.cond_every)):
        mask |= int(model.cond_traits_set[cond]) | int(model.cond_traits_clear[cond])
    key = (plan.traits & np.uint64(mask)) | (plan.op.astype(np.uint64) << np.uint64(56))
    classes, inverse = _classes(key)
    out: list[list[int]] = []
    starts = np.empty(len(classes), np.int64)
    for index, value in enumerate(classes.tolist()):
        entry = int(model.entry[value >> 56])
        starts[index] = -1 if entry < 0 else _emit(model, entry, value & ((1 << 56) - 1), out)
    code = np.array(out or np.zeros((0, 6)), np.int32).reshape(-1, 6)
    return code, starts[inverse]


def _classes(key: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], Any]:
    return np.unique(key, return_inverse=True)
