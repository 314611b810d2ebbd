"""Straight programs: one piece of code per class of operation.

Two operations are of one class when they run the same program, agree in every trait
that the model's conditions test, and agree in which of their objects (VMA, table, …)
they have and share with other threads.  So branches on traits disappear, and for
every instruction it is known beforehand whether it is ordered.
"""
# ruff: noqa: F405

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmreplay.engine.layout import *  # noqa: F403
from mmreplay.engine.setup import P, Setup, object_scope
from mmreplay.jit import njit
from mmreplay.locking.isa import OP, TARGET, A, B, C, Kind, Mode, Op, Operand, RuntimeBit, Scope
from mmreplay.locking.model import LockingModel

I64 = NDArray[np.int64]
_ENDS = (Op.DONE, Op.JUMP)
_CLASS = {
    Scope.MM: CLASS_MM,
    Scope.VMA: CLASS_VMA,
    Scope.TABLE: CLASS_TABLE,
    Scope.FILE: CLASS_FILE,
    Scope.ANON_ROOT: CLASS_ANON,
}
_BIT_SCOPE = {
    RuntimeBit.VMA_ANON_VMA: Scope.ANON_ROOT,
    RuntimeBit.VMA_DEAD: Scope.VMA,
    RuntimeBit.TABLE_PRESENT: Scope.TABLE,
}


def trait_mask(model: LockingModel) -> int:
    """All traits that some condition of the model tests."""
    mask = 0
    for cond in range(len(model.cond_every)):
        mask |= int(model.cond_traits_set[cond]) | int(model.cond_traits_clear[cond])
    return mask & ((1 << CLASS_OP_SHIFT) - 1)


class Emitter:
    """Writes the specialised programs of one model and plan."""

    def __init__(self, model: LockingModel, setup: Setup) -> None:
        self.model = model
        self.setup = setup
        self.many_threads = bool(setup.shared[Scope.GLOBAL][0])
        self.out: list[list[int]] = []

    def emit(self, key: int) -> int:
        """Append the program of one class; returns its first instruction, -1 without one."""
        entry = int(self.model.entry[(key >> CLASS_OP_SHIFT) & 63])
        if entry < 0:
            return -1
        first = len(self.out)
        self._straighten(entry, key & ((1 << CLASS_OP_SHIFT) - 1))
        program = self.out[first:]
        walks = any(row[OP] == Op.EACH for row in program)
        for row in program:
            self._annotate(row, key, walks)
        return first

    # -- control flow -----------------------------------------------------------------
    def _follow(self, pc: int, traits: int) -> int:
        """Skip jumps and branches whose outcome the traits decide."""
        model = self.model
        for _ in range(len(model.code) + 1):
            row = model.code[pc]
            if row[OP] == Op.JUMP:
                pc = int(row[TARGET])
            elif row[OP] == Op.BRANCH:
                cond = int(row[A])
                wanted = int(model.cond_traits_set[cond])
                holds = traits & wanted == wanted
                if not holds or traits & int(model.cond_traits_clear[cond]):
                    pc += 1
                elif self._bits(cond) or model.cond_every[cond]:
                    return pc
                else:
                    pc = int(row[TARGET])
            else:
                return pc
        return pc  # an empty loop: left to the engine, which never ends either

    def _bits(self, cond: int) -> int:
        return int(self.model.cond_bits_set[cond]) | int(self.model.cond_bits_clear[cond])

    def _straighten(self, entry: int, traits: int) -> None:
        out, code = self.out, self.model.code
        placed: dict[int, int] = {}
        fixes: list[tuple[int, int]] = []  # (row of out, source instruction it goes to)
        todo = [self._follow(entry, traits)]
        while todo:
            pc = todo.pop()
            if pc in placed:
                continue
            while True:
                placed[pc] = len(out)
                row = [*(int(x) for x in code[pc, :5]), 0]
                out.append(row)
                if row[TARGET] >= 0:
                    target = self._follow(row[TARGET], traits)
                    fixes.append((len(out) - 1, target))
                    if target not in placed:
                        todo.append(target)
                if row[OP] in _ENDS:
                    break
                pc = self._follow(pc + 1, traits)
                if pc in placed:
                    out.append([int(Op.JUMP), -1, -1, -1, placed[pc], 0])
                    break
        for where, target in fixes:
            out[where][TARGET] = placed[target]

    # -- what is shared -----------------------------------------------------------------
    def _state(self, key: int, scope: int, operand: int) -> int:
        where = object_scope(scope)
        if where == Scope.GLOBAL:
            return SHARED_OBJECT if self.many_threads else PRIVATE
        if where == Scope.MM and operand in (Operand.CHILD, Operand.TARGET):
            child = (key >> (CLASS_SHIFT + 2 * CLASS_CHILD)) & 3
            if child != NONE:
                return child
        return (key >> (CLASS_SHIFT + 2 * _CLASS[where])) & 3

    def _used(self, row: list[int]) -> list[int]:
        """The locks that an instruction on a lock touches."""
        params, lock = self.model.lock_params[row[A]], row[A]
        used = [lock]
        if row[OP] in (Op.TRY, Op.MARK):
            used.append(int(params[P["marks_by"]]))
        writes = row[OP] in (Op.LOCK, Op.TRY, Op.UNLOCK) and row[B] == Mode.WRITE
        if writes or row[OP] == Op.DOWNGRADE:
            used.append(int(params[P["bumps"]]))
        return [x for x in used if x >= 0]

    def _annotate(self, row: list[int], key: int, walks: bool) -> None:
        op = row[OP]
        scopes: list[int] = []
        operand = Operand.NONE
        if Op.LOCK <= op <= Op.CHECK:
            if op in (Op.LOCK, Op.TRY, Op.UNLOCK):
                operand = Operand(max(row[C], 0))
            for lock in self._used(row):
                scopes.append(int(self.model.lock_scope[lock]))
                scopes.append(self.setup.line_scope[int(self.model.lock_line[lock])])
        elif op == Op.TOUCH:
            scopes.append(self.setup.line_scope[row[A]])
        elif op in (Op.BRANCH, Op.SET):
            bits = row[A] if op == Op.SET else self._bits(row[A])
            scopes += [scope for bit, scope in _BIT_SCOPE.items() if bits & bit]
        elif op in (Op.SLEEP, Op.FLUSH):
            row[5] = FL_ORDERED
            return
        if walks and any(object_scope(s) == Scope.VMA for s in scopes):
            row[5] = FL_DYNAMIC
            return
        if any(self._state(key, s, operand) == SHARED_OBJECT for s in scopes):
            row[5] = FL_ORDERED
            return
        if op in (Op.LOCK, Op.TRY, Op.UNLOCK):
            self._make_private(row, key, operand)

    def _make_private(self, row: list[int], key: int, operand: Operand) -> None:
        """A private lock without a sequence costs its atomic operations and no more."""
        lock = row[A]
        kind = self.model.lock_kind[lock]
        if row[B] == Mode.WRITE and self.model.lock_params[lock][P["bumps"]] >= 0:
            return
        if row[OP] == Op.TRY and kind == Kind.PIN:
            return
        other = operand in (Operand.CHILD, Operand.TARGET)
        row[C] = 2 * lock + other
        row[TARGET] = 1 if kind == Kind.SPIN else 0
        row[OP] = UNLOCK_PRIVATE if row[OP] == Op.UNLOCK else LOCK_PRIVATE


@njit
def classify(  # type: ignore[no-untyped-def]
    op, traits, mask, mm, child, vma, table, file, anon, s_mm, s_vma, s_table, s_file, s_anon,
    keys, slots, class_of,
):  # fmt: skip
    """Number the classes: fills ``keys`` and ``class_of``; returns how many, -1 when too many.

    ``slots`` is an empty (-1) hash table whose size is a power of two.
    """
    size = len(slots)
    count = 0
    for row in range(len(op)):
        key = np.int64(traits[row]) & mask
        key |= np.int64(op[row]) << CLASS_OP_SHIFT
        state = np.int64(0)
        x = mm[row]
        if x >= 0:
            state |= (2 if s_mm[x] else 1) << (2 * CLASS_MM)
        x = vma[row]
        if x >= 0:
            state |= (2 if s_vma[x] else 1) << (2 * CLASS_VMA)
        x = table[row]
        if x >= 0:
            state |= (2 if s_table[x] else 1) << (2 * CLASS_TABLE)
        x = file[row]
        if x >= 0:
            state |= (2 if s_file[x] else 1) << (2 * CLASS_FILE)
        x = anon[row]
        if x >= 0:
            state |= (2 if s_anon[x] else 1) << (2 * CLASS_ANON)
        x = child[row]
        if x >= 0:
            state |= (2 if s_mm[x] else 1) << (2 * CLASS_CHILD)
        key |= state << CLASS_SHIFT
        place = (key ^ (key >> 29) ^ (key >> 47)) & (size - 1)
        while slots[place] >= 0 and keys[slots[place]] != key:
            place = (place + 1) & (size - 1)
        if slots[place] < 0:
            if count == len(keys):
                return -1
            keys[count] = key
            slots[place] = count
            count += 1
        class_of[row] = slots[place]
    return count


@njit
def pack(  # type: ignore[no-untyped-def]
    class_of, starts, flags, dense, op, think, blocked, pages, scale, vma, table, mm, anon, vmas,
    tables, file, child, dep_first, dependents, out,
):  # fmt: skip
    """Fill ``out`` (N, 8): see ``layout.O_*``."""
    low = np.int64(0xFFFFFFFF)
    for row in range(len(op)):
        bits = flags[class_of[row]] | (dense[op[row]] << 8)
        if dep_first[row + 1] > dep_first[row]:
            bits |= F_DEPS
        if dependents[row]:
            bits |= F_DEPENDENTS
        out[row, O_PROGRAM] = (starts[class_of[row]] & low) | (bits << 32)
        out[row, O_THINK] = think[row]
        out[row, O_BLOCKED] = blocked[row]
        out[row, O_PAGES] = (np.int64(pages[row]) & low) | (np.int64(scale[row]) << 32)
        out[row, O_VMA] = (np.int64(vma[row]) & low) | (np.int64(table[row]) << 32)
        out[row, O_MM] = (np.int64(mm[row]) & low) | (np.int64(anon[row]) << 32)
        out[row, O_VMAS] = (np.int64(vmas[row]) & low) | (np.int64(tables[row]) << 32)
        out[row, O_FILE] = (np.int64(file[row]) & low) | (np.int64(child[row]) << 32)
