"""A locking model after assembly: plain arrays and names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class LockingModel:
    """One kernel generation or design, ready for the engine.

    ``code`` has one row per instruction (columns in :mod:`mmreplay.locking.isa`);
    ``entry[PlanOp]`` is the first instruction of that operation's program, or -1
    where the model has none (the engine refuses a plan that needs it).
    """

    name: str
    title: str
    kernel: tuple[int, int] | None  # first release it stands for; None for designs
    vma_rules: str  # name in models/vma/
    path: Path
    sha256: str  # over the file and everything it extends
    code: I32  # (n, 6)
    entry: I32  # (len(PlanOp),)
    locks: tuple[str, ...]
    lock_kind: I32  # Kind
    lock_scope: I32  # Scope
    lock_line: I32  # index into lines; every instance of a lock has its own copy of the line
    lock_rank: I32  # declared order; -1 none
    lock_params: I64  # (locks, len(PARAMS))
    lines: tuple[str, ...]  # names of cache lines, "mm.2"; equal names of one instance share a line
    costs: tuple[str, ...]
    sleeps: tuple[str, ...]
    reasons: tuple[str, ...]
    # conditions, one row each; all parts of a row must hold
    cond_traits_set: U64
    cond_traits_clear: U64
    cond_bits_set: I32  # RuntimeBit
    cond_bits_clear: I32
    cond_every: I64  # 0: no such part; N: true on every Nth evaluation per (core, instruction)
    default_costs: dict[str, float] = field(default_factory=dict)  # ns, model-local costs
    sources: tuple[str, ...] = ()
    notes: str = ""
