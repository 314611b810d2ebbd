"""Programs as code: calls inlined, labels resolved, jumps threaded.

The result is :class:`mmreplay.locking.model.LockingModel`, whose instruction set is
:mod:`mmreplay.locking.isa`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import PlanOp
from mmreplay.errors import closest
from mmreplay.locking.declarations import OPERATIONS, Declared, check_declared
from mmreplay.locking.decode import Decoder
from mmreplay.locking.flow import Label, Row, check_flow, tidy
from mmreplay.locking.isa import PARAMS, Op
from mmreplay.locking.model import LockingModel
from mmreplay.locking.objects import lacking
from mmreplay.locking.paths import Context, Paths
from mmreplay.locking.problems import ModelError, Problem, used_by
from mmreplay.locking.source import Statement

#: All programs of a model together, after inlining.
MAX_CODE: Final = 20_000


class Emitter:
    """Writes the code of one operation."""

    def __init__(self, decoder: Decoder, budget: int) -> None:
        self.decoder = decoder
        self.rows: list[Row] = []
        self.budget = budget
        self._later: list[tuple[Label, Context, Label, Label | None]] = []

    def operation(self, context: Context) -> list[Row]:
        """Code of an operation's program; what it jumps out to comes behind it."""
        end = Label()
        self.program(context, end, None)
        while self._later:
            label, tail, after, retry = self._later.pop(0)
            label.pc = len(self.rows)
            self.program(tail, after, retry)
        end.pc = len(self.rows)
        return self.rows

    def program(self, context: Context, end: Label, retry: Label | None) -> None:
        """Code of ``context``; falling off its end goes to ``end``, retry to ``retry``."""
        labels: dict[int, Label] = {}
        tails: dict[int, tuple[Context, Label]] = {}  # by identity of the context
        count = len(context.program.statements)

        def place(index: int) -> Label:
            return end if index >= count else labels.setdefault(index, Label())

        def go(index: int, name: str) -> Label:
            if index in context.tails:
                tail = context.tails[index]
                return tails.setdefault(id(tail), (tail, Label()))[1]
            if name == "retry":
                assert retry is not None
                return retry
            if name == context.program.name:
                return place(0)
            return place(context.program.labels[name])

        for index, statement in enumerate(context.program.statements):
            if index not in context.states:
                continue
            place(index).pc = len(self.rows)
            self._statement(context, index, statement, place, go, retry)
            if index == count - 1:
                self._add(Row(Op.JUMP, target=end), statement)
        self._later += [(label, tail, end, retry) for tail, label in tails.values()]

    def _statement(
        self,
        context: Context,
        index: int,
        statement: Statement,
        place: Callable[[int], Label],
        go: Callable[[int, str], Label],
        retry: Label | None,
    ) -> None:
        decoded = context.instructions[index]
        if decoded is None:
            return
        op, a, b, c = decoded.op, decoded.a, decoded.b, decoded.c
        if decoded.word == "call":
            called = context.calls[index]
            after = Label()
            back = go(index, decoded.label) if called.retries is not None else None
            self.program(called, after, back)
            after.pc = len(self.rows)
        elif decoded.word == "retry":
            self._add(Row(Op.JUMP, target=retry), statement)
        elif op is Op.CONTENDED:
            self._jump_if(
                Row(op, a), decoded.invert, place(index + 1), go(index, decoded.label), statement
            )
        elif op is Op.BRANCH:
            self._branch(context, index, statement, place, go)
        elif op in (Op.UNLOCK, Op.DOWNGRADE):
            held = context.unlocks[index]
            self._add(Row(op, a, held.mode, held.operand), statement)
        elif op is Op.EACH:
            self._add(Row(op, a, target=place(context.ends[index] + 1)), statement)
        elif op is Op.END:
            begin = next(b for b, e in context.ends.items() if e == index)
            self._add(Row(op, target=place(begin + 1)), statement)
        else:
            assert op is not None
            target = go(index, decoded.label) if decoded.label else None
            self._add(Row(op, a, b, c, target), statement)

    def _branch(
        self,
        context: Context,
        index: int,
        statement: Statement,
        place: Callable[[int], Label],
        go: Callable[[int, str], Label],
    ) -> None:
        decision = context.branches[index]
        decoded = context.instructions[index]
        if decision is False or decoded is None or decoded.condition is None:
            return
        target = go(index, decoded.label)
        if decision is True:
            self._add(Row(Op.JUMP, target=target), statement)
            return
        row = Row(Op.BRANCH, self.decoder.names.condition(decoded.condition))
        self._jump_if(row, decoded.invert, place(index + 1), target, statement)

    def _jump_if(
        self, row: Row, invert: bool, after: Label, target: Label, statement: Statement
    ) -> None:
        """``row`` jumps to ``target``; inverted, it jumps over a jump that goes there."""
        row.target = after if invert else target
        self._add(row, statement)
        if invert:
            self._add(Row(Op.JUMP, target=target), statement)

    def _add(self, row: Row, statement: Statement) -> None:
        row.file, row.line = statement.file, statement.line
        self.rows.append(row)
        if len(self.rows) > self.budget:
            raise ModelError(
                [Problem(row.file, row.line, f"the model assembles to more than {MAX_CODE} steps")]
            )


def assemble(declared: Declared, problems: list[Problem]) -> LockingModel | None:
    """Assemble a declared model.  None when there are mistakes (in ``problems``)."""
    check_declared(declared, problems)
    decoder = Decoder(declared, problems)
    paths = Paths(declared, decoder, problems)
    for program in declared.programs.values():  # mistakes of lines that no path reaches
        for statement in program.statements:
            decoder.decode(statement)
    contexts = {name: paths.operation(name) for name in OPERATIONS if name in declared.programs}
    paths.check_order()
    paths.report()
    _unused(declared, paths, problems)
    if problems:
        return None
    code: list[list[int]] = []
    entry = np.full(len(PlanOp), -1, dtype=np.int32)
    lacks: dict[tuple[str, int], list[tuple[str, str]]] = {}
    locks = list(declared.locks.values())
    for name, context in contexts.items():
        emitter = Emitter(decoder, MAX_CODE - len(code))
        body, places = tidy(emitter.operation(context))
        check_flow(name, body, places, decoder.names.conditions, problems)
        for place, text in lacking(OPERATIONS[name], body, places, locks).items():
            lacks.setdefault(place, []).append((name, text))
        entry[OPERATIONS[name]] = base = len(code)
        code += [[*row[:4], row[4] + base if row[4] >= 0 else -1, row[5]] for row in body]
    for place, found in lacks.items():
        users = [name for name, _ in found]
        problems.append(Problem(*place, found[0][1] + used_by(users)))
    return None if problems else _model(declared, decoder, code, entry)


def _unused(declared: Declared, paths: Paths, problems: list[Problem]) -> None:
    """Programs that nothing uses and lines that no path reaches, in this file only."""
    used = {
        word
        for program in declared.programs.values()
        for statement in program.statements
        for word in statement.words[1:]
    }
    reached = paths.reached()
    for name in sorted(declared.own_programs):
        program = declared.programs[name]
        if name not in OPERATIONS and name not in used:
            near = closest(name, OPERATIONS)
            problems.append(
                Problem(program.file, program.line, f'program "{name}" is never used{near}')
            )
        elif name not in OPERATIONS and not any(s in reached for s in program.statements):
            continue  # used by a program that is itself replaced or unused
        else:
            problems += [
                Problem(s.file, s.line, "no path reaches this line")
                for s in program.statements
                if s not in reached
            ]


_TABLES: Final = ((Op.COST, "costs"), (Op.SLEEP, "sleeps"), (Op.COUNT, "reasons"))


def _model(
    declared: Declared, decoder: Decoder, code: list[list[int]], entry: NDArray[np.int32]
) -> LockingModel:
    names = decoder.names
    used: dict[str, list[str]] = {}
    for op, table in _TABLES:  # keep only what the code names, in order of first use
        every: list[str] = getattr(names, table)
        rows = [row for row in code if row[0] == op]
        kept = list(dict.fromkeys(every[row[1]] for row in rows))
        for row in rows:
            row[1] = kept.index(every[row[1]])
        used[table] = kept
    locks = list(declared.locks.values())
    position = {name: i for i, name in enumerate(names.locks)}
    params = np.zeros((len(locks), len(PARAMS)), dtype=np.int64)
    for i, lock in enumerate(locks):
        values = dict(lock.params)
        values["bumps"] = position.get(lock.bumps, -1)
        values["marks_by"] = position.get(lock.marks_by, -1)
        if lock.owner_line:
            values["owner_line"] = names.lines.index(lock.owner_line)
        params[i] = [values[key] for key in PARAMS]
    conditions = names.conditions
    digest = hashlib.sha256("".join(declared.digests).encode()).hexdigest()
    return LockingModel(
        name=declared.name,
        title=declared.title,
        kernel=declared.kernel,
        vma_rules=declared.vma_rules,
        path=declared.path,
        sha256=digest,
        code=np.array(code, dtype=np.int32).reshape(-1, 6),
        entry=entry,
        locks=tuple(names.locks),
        lock_kind=_i32(lock.kind for lock in locks),
        lock_scope=_i32(lock.scope for lock in locks),
        lock_line=_i32(names.lines.index(lock.line) for lock in locks),
        lock_rank=_i32(lock.rank for lock in locks),
        lock_params=params,
        lines=tuple(names.lines),
        costs=tuple(used["costs"]),
        sleeps=tuple(used["sleeps"]),
        reasons=tuple(used["reasons"]),
        cond_traits_set=np.array([c.traits_set for c in conditions], dtype=np.uint64),
        cond_traits_clear=np.array([c.traits_clear for c in conditions], dtype=np.uint64),
        cond_bits_set=_i32(c.bits_set for c in conditions),
        cond_bits_clear=_i32(c.bits_clear for c in conditions),
        cond_every=np.array([c.every for c in conditions], dtype=np.int64),
        default_costs={n: declared.costs[n] for n in used["costs"] if n in declared.costs},
        sources=tuple(dict.fromkeys(declared.sources)),
        notes=declared.notes,
    )


def _i32(values: Iterable[int]) -> NDArray[np.int32]:
    return np.array([int(v) for v in values], dtype=np.int32)
