"""Straight programs: one piece of code per class of operation.

Two operations are of one class when they run the same program, agree in every trait
that this program's conditions test, and agree in which of their objects (VMA, table, …)
they have and share with other threads.  So branches on traits disappear, for every
instruction it is known beforehand whether it is ordered, and a run of private costs
and private locks becomes one instruction.
"""
# ruff: noqa: F405

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import WAKE_POINT, MarkSet
from mmreplay.engine.layout import *  # noqa: F403
from mmreplay.engine.setup import P, line_scopes, object_scope
from mmreplay.jit import native, pointer
from mmreplay.locking.isa import (
    OP,
    TARGET,
    A,
    B,
    C,
    Count,
    FlushScope,
    Kind,
    Mode,
    Op,
    Operand,
    RuntimeBit,
    Scope,
)
from mmreplay.locking.model import LockingModel

I64 = NDArray[np.int64]
_ENDS = (Op.DONE, Op.JUMP)
_CLASS: Final = {
    Scope.MM: CLASS_MM,
    Scope.VMA: CLASS_VMA,
    Scope.TABLE: CLASS_TABLE,
    Scope.FILE: CLASS_FILE,
    Scope.ANON_ROOT: CLASS_ANON,
}
#: Which column of a packed operation numbers the objects of a scope.
COLUMN: Final = {
    Scope.MM: W_MM,
    Scope.VMA: W_VMA,
    Scope.TABLE: W_TABLE,
    Scope.FILE: W_FILE,
    Scope.ANON_ROOT: W_ANON,
    Scope.GLOBAL: W_GLOBAL,
}
#: Operations that :func:`pack` packs before it asks for the code of their new classes.
BLOCK: Final = 1 << 12
BIT_SCOPE: Final = {
    RuntimeBit.VMA_ANON_VMA: Scope.ANON_ROOT,
    RuntimeBit.VMA_DEAD: Scope.VMA,
    RuntimeBit.TABLE_PRESENT: Scope.TABLE,
}
_LOCKS = (Op.LOCK, Op.TRY, Op.UNLOCK)
_OTHER_MM = (Operand.CHILD, Operand.TARGET)
#: What one run of private steps may hold at most: costs and whole lock sections.
_MOST_ITEMS: Final = 64


@dataclass(frozen=True)
class Numbers:
    """Where the shared objects of each lock, line and bit begin to be counted."""

    instance: list[int]  # per lock of the model
    line: list[int]  # per line of the model
    value: list[int]  # per lock: its sequence, or the mark of each of its VMAs
    bit: dict[RuntimeBit, int]


@dataclass
class Code:
    """Specialised code of a model, for some classes of operation."""

    rows: list[list[int]]
    items: list[tuple[int, int, int]]  # of X_RUN: cost, Count, hold (a counter; -1 none)
    locked: list[dict[tuple[int, int], int]]  # per X_RUN: acquisitions by (lock, mode)
    source: list[int]  # per row: the instruction of the model that it (or its run) begins with


def trait_masks(model: LockingModel) -> list[int]:
    """For each program's first instruction: all traits that its conditions test."""
    # the programs lie one behind the other, and none jumps out of its own
    first = np.sort(model.entry[model.entry >= 0])
    tested = np.zeros(len(model.code), np.uint64)
    branches = model.code[:, OP] == Op.BRANCH
    conditions = model.code[branches, A]
    tested[branches] = (model.cond_traits_set | model.cond_traits_clear)[conditions]
    out = []
    for entry in model.entry.tolist():
        mask = 0
        if entry >= 0:
            later = first[first > entry]
            end = int(later[0]) if len(later) else len(tested)
            mask = int(np.bitwise_or.reduce(tested[entry:end], initial=np.uint64(0)))
        out.append(mask & ((1 << CLASS_OP_SHIFT) - 1))
    return out


def _table_walks(code: list[list[int]]) -> set[int]:
    """The instructions of the bodies of ``each tables``."""
    inside: set[int] = set()
    todo = [
        pc + 1 for pc, row in enumerate(code) if row[OP] == Op.EACH and row[A] == MarkSet.TABLES
    ]
    while todo:
        pc = todo.pop()
        if pc in inside:
            continue
        inside.add(pc)
        row = code[pc]
        if row[OP] in (Op.END, Op.DONE):
            continue
        if row[TARGET] >= 0:
            todo.append(row[TARGET])
        if row[OP] != Op.JUMP:
            todo.append(pc + 1)
    return inside


class Emitter:
    """Writes the specialised programs of one model."""

    def __init__(self, model: LockingModel, numbers: Numbers, *, many_threads: bool) -> None:
        self.model = model
        self.numbers = numbers
        self.many_threads = many_threads
        self.line_scope = line_scopes(model)
        self.code = Code([], [], [], [])
        self._source = model.code.tolist()
        self._in_tables = _table_walks(self._source)

    def emit(self, key: int) -> int:
        """Append the program of one class; returns its first instruction, -1 without one."""
        entry = int(self.model.entry[(key >> CLASS_OP_SHIFT) & 63])
        if entry < 0:
            return -1
        program = self._straighten(entry, key & ((1 << CLASS_OP_SHIFT) - 1))
        walks = any(row[OP] == Op.EACH and row[A] != MarkSet.TABLES for row in program)
        lowered = [self._lower(row, key, walks) for row in program]
        return self._place(lowered, [row[-1] for row in program])

    # -- control flow -----------------------------------------------------------------
    def _follow(self, pc: int, traits: int) -> int:
        """Skip jumps and branches whose outcome the traits decide."""
        model = self.model
        for _ in range(len(self._source) + 1):
            row = self._source[pc]
            if row[OP] == Op.JUMP:
                pc = row[TARGET]
            elif row[OP] == Op.BRANCH:
                cond = row[A]
                wanted = int(model.cond_traits_set[cond])
                holds = traits & wanted == wanted
                if not holds or traits & int(model.cond_traits_clear[cond]):
                    pc += 1
                elif self._bits(cond) or model.cond_every[cond]:
                    return pc
                else:
                    pc = row[TARGET]
            else:
                return pc
        return pc  # an empty loop: left to the engine, which never ends either

    def _bits(self, cond: int) -> int:
        return int(self.model.cond_bits_set[cond]) | int(self.model.cond_bits_clear[cond])

    def _straighten(self, entry: int, traits: int) -> list[list[int]]:
        """The instructions that these traits can reach, in order; targets are places in it.

        Behind the columns of an instruction stands its number in the model.
        """
        out: list[list[int]] = []
        placed: dict[int, int] = {}
        fixes: list[tuple[int, int]] = []  # (row of out, source instruction it goes to)
        todo = [self._follow(entry, traits)]
        while todo:
            pc = todo.pop()
            if pc in placed:
                continue
            while True:
                placed[pc] = len(out)
                row = [*self._source[pc][:5], pc]
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
                    out.append([int(Op.JUMP), -1, -1, -1, placed[pc], pc])
                    break
        for where, target in fixes:
            out[where][TARGET] = placed[target]
        return out

    # -- what is shared -----------------------------------------------------------------
    def _state(self, key: int, scope: int, operand: int) -> int:
        where = object_scope(scope)
        if where == Scope.GLOBAL:
            return SHARED_OBJECT if self.many_threads else PRIVATE
        if where == Scope.MM and operand in _OTHER_MM:
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
        writes = row[OP] in _LOCKS and row[B] == Mode.WRITE
        if writes or row[OP] == Op.DOWNGRADE:
            used.append(int(params[P["bumps"]]))
        return [x for x in used if x >= 0]

    def _ordered(self, row: list[int], key: int, walks: bool) -> int:
        op = row[OP]
        scopes: list[int] = []
        operand = Operand.NONE
        if Op.LOCK <= op <= Op.CHECK or op == Op.CONTENDED:
            if op in _LOCKS:
                operand = Operand(max(row[C], 0))
            for lock in self._used(row):
                scopes.append(int(self.model.lock_scope[lock]))
                scopes.append(self.line_scope[int(self.model.lock_line[lock])])
        elif op == Op.TOUCH:
            scopes.append(self.line_scope[row[A]])
        elif op in (Op.BRANCH, Op.SET):
            bits = row[A] if op == Op.SET else self._bits(row[A])
            scopes += [scope for bit, scope in BIT_SCOPE.items() if bits & bit]
        elif op in (Op.SLEEP, Op.FLUSH):
            return ORDERED_STEP
        if walks and any(object_scope(s) == Scope.VMA for s in scopes):
            return DYNAMIC_STEP
        if row[-1] in self._in_tables and any(object_scope(s) == Scope.TABLE for s in scopes):
            return DYNAMIC_STEP
        shared = any(self._state(key, s, operand) == SHARED_OBJECT for s in scopes)
        return ORDERED_STEP if shared else PRIVATE_STEP

    # -- instructions ------------------------------------------------------------------------
    def _lower(self, row: list[int], key: int, walks: bool) -> list[int]:
        """One instruction of the model as one of the engine's; COST stays what it is."""
        op = row[OP]
        out = [X_MODEL + op, *row[1:5], self._ordered(row, key, walks)] + [-1] * (XF - 6)
        if op in _LOCKS:
            self._lower_lock(row, key, out)
        elif op == Op.BRANCH:
            self._lower_branch(row, out)
        elif op == Op.JUMP:
            out[X_OP] = X_JUMP
        elif op == Op.COST and row[B] >= Count.PAGES_PER_VMA:
            out[X_OP] = X_SHARE
        elif op == Op.DONE:
            out[X_OP] = X_DONE
        elif op == Op.FLUSH and row[A] == FlushScope.TOUCHED:
            out[X_OP] = X_FLUSH_TOUCHED
        return out

    def _lower_branch(self, row: list[int], out: list[int]) -> None:
        cond = row[A]
        bits, every = self._bits(cond), int(self.model.cond_every[cond])
        if bits and not every and out[X_STEP] != DYNAMIC_STEP:
            for bit, scope in BIT_SCOPE.items():
                if bits == bit:
                    out[X_OP], out[X_COLUMN] = X_IF_BIT, COLUMN[scope]
                    out[X_A] = self.numbers.bit[bit]
                    out[X_B] = int(bool(int(self.model.cond_bits_set[cond]) & bit))
        elif every and not bits:
            out[X_OP], out[X_B] = X_EVERY, every

    def _lower_lock(self, row: list[int], key: int, out: list[int]) -> None:
        model, numbers = self.model, self.numbers
        op, lock, mode, operand = row[OP], row[A], row[B], row[C]
        params = model.lock_params[lock]
        kind, scope = int(model.lock_kind[lock]), object_scope(int(model.lock_scope[lock]))
        state = self._state(key, scope, operand)
        other = operand in _OTHER_MM
        seq = int(params[P["marks_by"] if kind == Kind.PIN else P["bumps"]])
        out[X_HELD], out[X_STAT] = 2 * lock + other, lock * SF
        shared = out[X_STEP] != PRIVATE_STEP
        if kind == Kind.RANGE or (kind == Kind.RWSEM and params[P["bravo_slots"]] and shared):
            out[X_OP] = X_DESIGN + op - Op.LOCK
            return
        if out[X_STEP] == PRIVATE_STEP:
            moves = mode == Mode.WRITE and params[P["bumps"]] >= 0
            if not moves and not (op == Op.TRY and kind == Kind.PIN):
                out[X_OP] = X_UNLOCK_PRIVATE if op == Op.UNLOCK else X_LOCK_PRIVATE
                out[X_C] = int(kind == Kind.SPIN)
            return
        if out[X_STEP] == DYNAMIC_STEP or state == NONE:
            return
        child = scope == Scope.MM and other and self._child(key)
        out[X_COLUMN] = W_CHILD if child else COLUMN[scope]
        if state == SHARED_OBJECT:
            out[X_INST] = numbers.instance[lock]
            out[X_LINE] = numbers.line[int(model.lock_line[lock])]
        if seq >= 0:
            where = object_scope(int(model.lock_scope[seq]))
            if self._state(key, where, operand) == NONE:
                return
            out[X_SEQ] = numbers.value[seq]
            out[X_SEQ_COLUMN] = out[X_COLUMN] if where == scope else COLUMN[where]
            if self._state(key, where, operand) == SHARED_OBJECT:
                out[X_SEQ_LINE] = numbers.line[int(model.lock_line[seq])]
            out[X_SEQ_BY] = 1 if params[P["bump_acquire"]] else 2
        if kind == Kind.RWSEM and state == SHARED_OBJECT:
            owner = int(params[P["owner_line"]])
            out[X_OWNER] = numbers.line[owner] if owner >= 0 else -1
            out[X_OP] = {Op.LOCK: X_RWSEM_LOCK, Op.TRY: X_RWSEM_TRY}.get(Op(op), X_RWSEM_UNLOCK)
        elif kind == Kind.PIN and op == Op.TRY:
            out[X_OP], out[X_C] = X_PIN_TRY, numbers.value[lock]
        elif kind == Kind.PIN and op == Op.UNLOCK and state == SHARED_OBJECT:
            out[X_OP] = X_PIN_UNLOCK
        elif kind == Kind.SPIN and op != Op.TRY and state == SHARED_OBJECT:
            out[X_OP] = X_SPIN_UNLOCK if op == Op.UNLOCK else X_SPIN_LOCK

    def _child(self, key: int) -> bool:
        return (key >> (CLASS_SHIFT + 2 * CLASS_CHILD)) & 3 != NONE

    # -- runs of private steps ------------------------------------------------------------------
    def _place(self, rows: list[list[int]], sources: list[int]) -> int:
        """Fuse runs and append; targets become places in the whole code."""
        targets = {row[X_TARGET] for row in rows if row[X_TARGET] >= 0}
        first = len(self.code.rows)
        moved: dict[int, int] = {}
        at = 0
        while at < len(rows):
            moved[at] = len(self.code.rows)
            self.code.source.append(sources[at])
            count = self._run_length(rows, at, targets)
            if count:
                self._fuse(rows[at : at + count])
                at += count
            else:
                if rows[at][X_OP] == X_SHARE:
                    self.code.items.append((rows[at][X_A], rows[at][X_B], -1))
                    rows[at][X_B] = len(self.code.items) - 1
                self.code.rows.append(rows[at])
                at += 1
        for row in self.code.rows[first:]:
            if row[X_TARGET] >= 0:
                row[X_TARGET] = moved[row[X_TARGET]] * XF
        return first * XF

    def _run_length(self, rows: list[list[int]], at: int, targets: set[int]) -> int:
        """How many rows from ``at`` on are costs and whole, unnested private lock sections."""
        whole, held, n = 0, -1, 0
        while at + n < len(rows) and n < _MOST_ITEMS:
            row = rows[at + n]
            if n and at + n in targets:
                break
            if row[X_OP] == X_LOCK_PRIVATE and held < 0:
                held = row[X_HELD]
            elif row[X_OP] == X_UNLOCK_PRIVATE and held == row[X_HELD]:
                held = -1
            elif row[X_OP] != X_MODEL + Op.COST:
                break
            n += 1
            if held < 0:
                whole = n
        return whole

    def _fuse(self, rows: list[list[int]]) -> None:
        code, hold = self.code, -1
        counts: dict[tuple[int, int], int] = {}
        first = len(code.items)
        for row in rows:
            if row[X_OP] == X_LOCK_PRIVATE:
                write = row[X_B] == Mode.WRITE
                hold = row[X_STAT] + (S_WRITE_HOLD if write else S_READ_HOLD)
                place = (row[X_A], int(write))
                counts[place] = counts.get(place, 0) + 1
            elif row[X_OP] == X_UNLOCK_PRIVATE:
                hold = -1
            else:
                code.items.append((row[X_A], row[X_B], hold))
        out = [X_RUN, len(code.locked), first, 2 * sum(counts.values()), -1, PRIVATE_STEP]
        out += [-1] * (XF - 6)
        out[X_COLUMN] = len(code.items) - first
        code.locked.append(counts)
        code.rows.append(out)


@native
def pack(  # type: ignore[no-untyped-def]
    begin, op, traits, masks, think, blocked, pages, scale, vmas, tables, mm, child, vma, table,
    file, anon, dep_first, dependents, touches, new_mm, new_vma, new_table, new_file, new_anon,
    first_private, dense, starts, known, keys, slots, words, longs,
):  # fmt: skip
    """Fill the packed operations from row ``begin`` on; number their classes.

    ``new_*`` give each object its new number: below ``first_private[CLASS_*]`` it is
    shared.  ``dense``: the dense number of each kind.  ``slots`` is a hash table, empty (-1)
    at first, whose size is a power of two; ``keys`` the keys of the classes.  ``starts``: first
    instructions of the ``known`` classes, -1 where there is no program.

    Goes by blocks, which stay in the CPU's cache until they are complete.  Returns where it
    stopped and how many classes there are: the end; or the first row of a block with
    unknown classes, which is to be packed again once their code is there; or, where ``keys``
    has too little room, -1.
    """
    size, room, count = len(slots), len(keys), known
    n = len(op)
    op, traits, masks = pointer(op), pointer(traits), pointer(masks)
    think, blocked, pages, scale = pointer(think), pointer(blocked), pointer(pages), pointer(scale)
    vmas, tables, mm, child = pointer(vmas), pointer(tables), pointer(mm), pointer(child)
    vma, table, file, anon = pointer(vma), pointer(table), pointer(file), pointer(anon)
    new_mm, new_vma, new_table = pointer(new_mm), pointer(new_vma), pointer(new_table)
    new_file, new_anon, first_private = pointer(new_file), pointer(new_anon), pointer(first_private)
    dep_first, dependents, touches = pointer(dep_first), pointer(dependents), pointer(touches)
    keys, slots, dense, starts = pointer(keys), pointer(slots), pointer(dense), pointer(starts)
    words, longs = pointer(words), pointer(longs)
    for block in range(begin, n, BLOCK):
        end = min(block + BLOCK, n)
        for row in range(block, end):
            key = np.int64(traits[row]) & masks[op[row]]
            key |= np.int64(op[row]) << CLASS_OP_SHIFT
            state = np.int64(0)
            w = row << 4
            longs[(row << 3) + O_THINK] = think[row]
            longs[(row << 3) + O_BLOCKED] = blocked[row]
            words[w + W_PAGES] = pages[row]
            words[w + W_SCALE] = scale[row]
            words[w + W_VMAS] = vmas[row]
            words[w + W_TABLES] = tables[row]
            x = mm[row]
            if x >= 0:
                x = new_mm[x]
                state |= (2 if x < first_private[CLASS_MM] else 1) << (2 * CLASS_MM)
            words[w + W_MM] = x
            x = vma[row]
            if x >= 0:
                x = new_vma[x]
                state |= (2 if x < first_private[CLASS_VMA] else 1) << (2 * CLASS_VMA)
            words[w + W_VMA] = x
            x = table[row]
            if x >= 0:
                x = new_table[x]
                state |= (2 if x < first_private[CLASS_TABLE] else 1) << (2 * CLASS_TABLE)
            words[w + W_TABLE] = x
            x = file[row]
            if x >= 0:
                x = new_file[x]
                state |= (2 if x < first_private[CLASS_FILE] else 1) << (2 * CLASS_FILE)
            words[w + W_FILE] = x
            x = anon[row]
            if x >= 0:
                x = new_anon[x]
                state |= (2 if x < first_private[CLASS_ANON] else 1) << (2 * CLASS_ANON)
            words[w + W_ANON] = x
            x = child[row]
            if x >= 0:
                x = new_mm[x]
                state |= (2 if x < first_private[CLASS_MM] else 1) << (2 * CLASS_CHILD)
            words[w + W_CHILD] = x
            key |= state << CLASS_SHIFT
            place = (key ^ (key >> 29) ^ (key >> 47)) & (size - 1)
            while slots[place] >= 0 and keys[slots[place]] != key:
                place = (place + 1) & (size - 1)
            if slots[place] < 0:
                if count == room:
                    return -1, count
                keys[count] = key
                slots[place] = count
                count += 1
            bits = dense[op[row]] << 8
            if dep_first[row + 1] > dep_first[row]:
                bits |= F_DEPS
            if dependents[row] != 0:
                bits |= F_SEEN | F_DEPENDENTS
            if touches[row] != 0:
                bits |= F_SEEN | F_TOUCHES
            if traits[row] & WAKE_POINT:
                bits |= F_POINT
            start = np.int64(0)
            if slots[place] < known:
                start = starts[slots[place]]
                if start < 0:
                    bits |= F_NO_PROGRAM
                    start = np.int64(0)
            longs[(row << 3) + O_PROGRAM] = start | (bits << 32)
        if count > known:
            return block, count
    return n, count
