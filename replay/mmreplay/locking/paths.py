"""Which locks are held at every line: the check that makes a model executable.

Every line of every inlined program is reached with exactly one set of held locks and
inside at most one ``each`` — like the operand stack of a bytecode verifier.  Where two
paths disagree, the mistake names both.  Because the set is unique, ``held.LOCK`` and
the mode of ``unlock`` are known at assembly.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Final

from mmreplay.errors import closest
from mmreplay.locking.declarations import Declared, LockDecl
from mmreplay.locking.decode import Condition, Decoder, Instruction
from mmreplay.locking.isa import Kind, Mode, Op, Operand, Scope
from mmreplay.locking.problems import Problem, used_by
from mmreplay.locking.source import Program, Statement

#: Calls nested deeper than this are refused (recursion is refused by name before).
MAX_DEPTH: Final = 32
_SHOWN_JUMPS: Final = 6


@dataclass(frozen=True, slots=True, order=True)
class Held:
    """One lock held: its name, mode and operand; ``at``: where it was taken."""

    lock: str
    mode: int
    operand: int
    at: str = field(default="", compare=False)

    def __str__(self) -> str:
        at = f" @{Operand(self.operand).name.lower()}" if self.operand else ""
        return f"{self.lock}{at} ({Mode(self.mode).name.lower()})"


HeldSet = tuple[Held, ...]


def show(held: HeldSet) -> str:
    return ", ".join(f"{h} taken at {h.at}" if h.at else str(h) for h in held) or "nothing"


@dataclass(frozen=True, slots=True)
class State:
    """What is true before a statement.

    ``each``: index of the enclosing ``each`` in this program, -1 for one of a caller,
    None outside.  ``via``: lines of the jumps that led here, for messages.
    """

    held: HeldSet
    each: int | None
    via: tuple[int, ...] = ()

    @property
    def walks(self) -> bool:
        return self.each is not None


@dataclass(slots=True)
class Context:
    """One program under one set of held locks: the states of its lines, and its ways out."""

    program: Program
    entry: State
    instructions: list[Instruction | None]
    ends: dict[int, int]  # each -> end
    states: dict[int, State] = field(default_factory=dict)
    falls_off: State | None = None
    retries: State | None = None
    calls: dict[int, Context] = field(default_factory=dict)
    tails: dict[int, Context] = field(default_factory=dict)  # goto PROGRAM, if ... goto PROGRAM
    unlocks: dict[int, Held] = field(default_factory=dict)
    branches: dict[int, bool | None] = field(default_factory=dict)  # held.L decided: None left


class Paths:
    """Follows every path of a model's programs; mistakes go to ``problems``."""

    def __init__(self, declared: Declared, decoder: Decoder, problems: list[Problem]) -> None:
        self.declared = declared
        self.decoder = decoder
        self.problems = problems
        self._contexts: dict[tuple[str, HeldSet, bool], Context] = {}
        self._operations: dict[str, Context] = {}
        #: mistake -> programs as they were entered in which it was made
        self._found: dict[Problem, set[int]] = {}
        self._open: list[Context] = []
        #: (held, waited for) and where, the first time
        self._waits: dict[tuple[str, str], Statement] = {}
        self._stack: list[str] = []

    # -- entry points ------------------------------------------------------------------
    def operation(self, name: str) -> Context:
        """Analyse the program of an operation, entered with no lock held."""
        context = self._operations[name] = self._analyse(name, State((), None))
        program = context.program
        if context.falls_off is not None:
            line = program.statements[-1].line if program.statements else program.line
            self._fail(
                program.file, line, f'"{name}" runs off its end; an operation ends with done'
            )
        if context.retries is not None:
            self._fail(
                program.file,
                context.retries.via[-1] if context.retries.via else program.line,
                f'retry outside of a called program (in "{name}")',
            )
        return context

    def check_order(self) -> None:
        """No two programs may wait for locks in opposite orders, whether or not they have ranks.

        Waits against the ranks have been reported where they stand.
        """
        ranks = {name: lock.rank for name, lock in self.declared.locks.items()}
        graph: dict[str, list[str]] = {}
        for first, then in self._waits:
            if ranks[first] < 0 or ranks[then] < 0 or ranks[first] < ranks[then]:
                graph.setdefault(first, []).append(then)
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            ring: list[str] = error.args[1][::-1]  # held, then waited for
            hops = {hop: self._waits[hop] for hop in pairwise(ring)}
            steps = [
                f"{then} under {one} ({at.file}:{at.line})" for (one, then), at in hops.items()
            ]
            last = hops[ring[-2], ring[-1]]
            self._fail(
                last.file,
                last.line,
                f"lock order: {', '.join(steps)}: threads that do this at once deadlock; take them"
                " in one order, use try, or declare ranks",
            )

    def report(self) -> None:
        """The mistakes found go to ``problems``: each once, with the operations that make it."""
        users = {name: self._within(context) for name, context in self._operations.items()}
        for problem, where in self._found.items():
            names = [name for name, inside in users.items() if inside & where]
            text = problem.text + used_by(names)
            self.problems.append(Problem(problem.file, problem.line, text))
        self._found.clear()

    def _within(self, context: Context) -> set[int]:
        """Identities of a context and all that it enters."""
        seen: set[int] = set()
        work = [context]
        while work:
            one = work.pop()
            if id(one) not in seen:
                seen.add(id(one))
                work += [*one.calls.values(), *one.tails.values()]
        return seen

    def reached(self) -> set[Statement]:
        """Statements that some path reaches."""
        return {
            context.program.statements[index]
            for context in self._contexts.values()
            for index in context.states
        }

    # -- one program -------------------------------------------------------------------
    def _analyse(self, name: str, entry: State) -> Context:
        key = (name, entry.held, entry.walks)
        if key in self._contexts:
            return self._contexts[key]
        program = self.declared.programs[name]
        instructions = [self.decoder.decode(s) for s in program.statements]
        start = State(entry.held, -1 if entry.walks else None)
        context = Context(program, start, instructions, self._match(program, instructions))
        self._contexts[key] = context
        self._stack.append(name)
        self._open.append(context)
        work: list[int] = []
        self._reach(context, 0, start, 0, work)
        while work:
            index = work.pop()
            self._step(context, index, work)
        self._stack.pop()
        self._open.pop()
        return context

    def _match(self, program: Program, instructions: list[Instruction | None]) -> dict[int, int]:
        ends: dict[int, int] = {}
        open_at: int | None = None
        for index, (statement, decoded) in enumerate(
            zip(program.statements, instructions, strict=True)
        ):
            if statement.op == "each":
                if open_at is not None:
                    self._at(statement, "each inside each: one set is walked at a time")
                open_at = index
            elif statement.op == "end" and decoded is not None:
                if open_at is None:
                    self._at(statement, "end without each")
                else:
                    ends[open_at] = index
                    open_at = None
        if open_at is not None:
            self._at(program.statements[open_at], "each without end")
        return ends

    def _inside(self, context: Context, index: int) -> int | None:
        """The ``each`` around statement ``index`` (its own each is outside of itself)."""
        for begin, end in context.ends.items():
            if begin < index <= end:
                return begin
        return context.entry.each

    def _reach(
        self, context: Context, index: int, state: State, line: int, work: list[int]
    ) -> None:
        """Statement ``index`` (or the end) is reached with ``state`` from ``line``."""
        if self._leaves(context, self._inside(context, index), state, line):
            return
        if index >= len(context.program.statements):
            context.falls_off = self._join(context, context.falls_off, state, line)
            return
        statement = context.program.statements[index]
        inside = self._inside(context, index)
        if inside != state.each:
            if inside is not None and inside != -1:
                self._fail(
                    statement.file,
                    line,
                    f"jumps into the each at line {context.program.statements[inside].line}",
                )
                return
            state = replace(state, each=inside)
        before = context.states.get(index)
        if before is None:
            context.states[index] = state
            work.append(index)
        else:
            self._join(context, before, state, statement.line)

    def _leaves(self, context: Context, inside: int | None, state: State, line: int) -> bool:
        """A jump out of an ``each``, whose VMA would stay the current one: refused."""
        if state.each is None or state.each < 0 or inside == state.each:
            return False
        begin = context.program.statements[state.each].line
        self._fail(
            context.program.file,
            line,
            f"jumps out of the each at line {begin}: it ends at its end; go to a label before that",
        )
        return True

    def _join(self, context: Context, before: State | None, state: State, line: int) -> State:
        if before is None:
            return state
        if before.held != state.held:
            self._fail(
                context.program.file,
                line,
                f"two paths meet with different locks held: {_path(before)} holds"
                f" {show(before.held)}; {_path(state)} holds {show(state.held)}",
            )
        return before

    # -- one statement -----------------------------------------------------------------
    def _step(self, context: Context, index: int, work: list[int]) -> None:
        statement = context.program.statements[index]
        decoded = context.instructions[index]
        state = context.states[index]
        if decoded is None:  # a mistake already: carry on as if it were not there
            self._reach(context, index + 1, state, statement.line, work)
            return
        jump = replace(state, via=(*state.via, statement.line)[-_SHOWN_JUMPS:])
        op = decoded.op
        after: State | None = state
        if op in (Op.LOCK, Op.TRY):
            held = self._acquire(statement, decoded, state)
            after = replace(state, held=held)
            if op is Op.TRY:
                self._jump(context, index, decoded.label, jump, work)
        elif op in (Op.UNLOCK, Op.DOWNGRADE):
            after = self._release(context, index, statement, decoded, state)
        elif op is Op.MARK:
            self._mark(statement, decoded, state)
        elif op is Op.SLEEP:
            self._may_block(statement, state, "sleep")
        elif op in (Op.SNAP, Op.CHECK, Op.CONTENDED):
            if decoded.label:
                self._jump(context, index, decoded.label, jump, work)
        elif op is Op.BRANCH:
            after = self._branch(context, index, decoded, state, jump, work)
        elif op is Op.JUMP:
            self._jump(context, index, decoded.label, jump, work)
            after = None
        elif op is Op.EACH:
            after = self._each(context, index, statement, state, jump, work)
        elif op is Op.END:
            after = self._end(context, index, statement, state)
        elif op is Op.DONE:
            if state.held:
                self._at(statement, f"done while {show(state.held)} is held ({_path(state)})")
            after = None
        elif decoded.word == "retry":
            self._jump(context, index, "retry", jump, work)
            after = None
        elif decoded.word == "call":
            after = self._call(context, index, statement, decoded, state, work)
        if after is not None:
            self._reach(context, index + 1, after, statement.line, work)

    def _jump(
        self, context: Context, index: int, label: str, state: State, work: list[int]
    ) -> None:
        """Go to a label of this program, to its beginning, or on into another program."""
        program = context.program
        statement = program.statements[index]
        if label == "retry":
            if not self._leaves(context, context.entry.each, state, statement.line):
                context.retries = self._join(context, context.retries, state, statement.line)
        elif label in program.labels:
            self._reach(context, program.labels[label], state, statement.line, work)
        elif label == program.name:
            self._reach(context, 0, state, statement.line, work)
        elif label in self.declared.programs:
            if self._leaves(context, context.entry.each, state, statement.line):
                return
            tail = self._enter(statement, label, state)
            if tail is None:
                return
            context.tails[index] = tail
            if tail.falls_off is not None:
                context.falls_off = self._join(
                    context, context.falls_off, _along(state, tail.falls_off), statement.line
                )
            if tail.retries is not None:
                context.retries = self._join(
                    context, context.retries, _along(state, tail.retries), statement.line
                )
        else:
            known = [*program.labels, *self.declared.programs, "retry"]
            self._at(
                statement,
                f'no label or program "{label}" in reach of "{program.name}"'
                f"{closest(label, known)}",
            )

    def _enter(self, statement: Statement, name: str, state: State) -> Context | None:
        if name in self._stack:
            chain = " -> ".join([*self._stack[self._stack.index(name) :], name])
            self._at(statement, f"programs cannot call themselves: {chain}")
            return None
        if len(self._stack) >= MAX_DEPTH:
            self._at(statement, f"calls nested deeper than {MAX_DEPTH}")
            return None
        return self._analyse(name, state)

    def _call(
        self,
        context: Context,
        index: int,
        statement: Statement,
        decoded: Instruction,
        state: State,
        work: list[int],
    ) -> State | None:
        called = self._enter(statement, decoded.program, state)
        if called is None:
            return state
        context.calls[index] = called
        if called.retries is not None:
            if decoded.label:
                via = (*state.via, statement.line)[-_SHOWN_JUMPS:]
                back = State(called.retries.held, state.each, via)
                self._jump(context, index, decoded.label, back, work)
            else:
                self._at(
                    statement,
                    f'"{decoded.program}" can retry: say where to,'
                    f' "call {decoded.program} retry LABEL"',
                )
        if called.falls_off is None:
            return None
        return replace(state, held=called.falls_off.held)

    def _branch(
        self,
        context: Context,
        index: int,
        decoded: Instruction,
        state: State,
        jump: State,
        work: list[int],
    ) -> State | None:
        """``held.L`` is decided here; the rest of the condition stays for run time."""
        locks = {h.lock for h in state.held}
        if any((name in locks) is not wanted for name, wanted in decoded.held):
            context.branches[index] = False
            return state
        assert decoded.condition is not None
        always = decoded.condition == Condition()
        context.branches[index] = True if always else None
        self._jump(context, index, decoded.label, jump, work)
        return None if always else state

    def _each(
        self,
        context: Context,
        index: int,
        statement: Statement,
        state: State,
        jump: State,
        work: list[int],
    ) -> State | None:
        if state.walks:
            if state.each == -1:
                self._at(statement, "each inside each: one set is walked at a time")
            return None
        end = context.ends.get(index)
        if end is None:
            return None
        self._reach(context, end + 1, jump, statement.line, work)  # the empty set
        return replace(state, each=index)

    def _end(
        self, context: Context, index: int, statement: Statement, state: State
    ) -> State | None:
        begin = next((b for b, e in context.ends.items() if e == index), None)
        if begin is None:
            return None
        entry = context.states.get(begin)
        if entry is not None and entry.held != state.held:
            self._at(
                statement,
                f"each must leave the locks as it found them: holds {show(entry.held)} before,"
                f" {show(state.held)} after",
            )
        return replace(state, each=context.entry.each)

    # -- locks ---------------------------------------------------------------------------
    def _acquire(self, statement: Statement, decoded: Instruction, state: State) -> HeldSet:
        lock = decoded.lock
        assert lock is not None
        new = Held(lock.name, decoded.b, decoded.c, f"{statement.file}:{statement.line}")
        same = [
            h for h in state.held if h.lock == lock.name and _place(h, lock) == _place(new, lock)
        ]
        if same:
            self._at(statement, f"{same[0]} is already held: a deadlock with itself")
            return state.held
        if decoded.op is Op.LOCK:
            if lock.kind is not Kind.SPIN and (
                lock.kind is not Kind.RANGE or lock.params["wait"] == 1
            ):
                self._may_block(statement, state, f"lock {lock.name}")
            self._in_order(statement, lock.name, lock.rank, state, new.operand)
            for held in state.held:
                if held.lock != lock.name:
                    self._waits.setdefault((held.lock, lock.name), statement)
        if (
            lock.scope is Scope.MM
            and new.operand == Operand.CHILD
            and self._stack
            and self._stack[0] != "fork"
        ):
            self._at(statement, f'wrong scope: only fork has a child ("{self._stack[0]}")')
        return tuple(sorted((*state.held, new)))

    def _in_order(
        self, statement: Statement, name: str, rank: int, state: State, operand: int = 0
    ) -> None:
        if rank < 0:
            return
        for held in state.held:
            other = self.declared.locks[held.lock].rank
            nested = held.lock == name and held.operand != operand
            if other > rank or (other == rank and not nested):
                self._at(
                    statement,
                    f"lock order: {name} (rank {rank}) is waited for while {held}"
                    f" (rank {other}) is held; use try, or take them in order of rank",
                )

    def _may_block(self, statement: Statement, state: State, what: str) -> None:
        for held in state.held:
            lock = self.declared.locks[held.lock]
            if lock.kind is Kind.SPIN:
                self._at(statement, f'"{what}" may sleep while the spin lock {held.lock} is held')

    def _release(
        self,
        context: Context,
        index: int,
        statement: Statement,
        decoded: Instruction,
        state: State,
    ) -> State:
        lock = decoded.lock
        assert lock is not None
        candidates = [h for h in state.held if h.lock == lock.name]
        exact = [h for h in candidates if h.operand == decoded.c]
        if decoded.c == Operand.NONE and not exact and len(candidates) == 1:
            exact = candidates
        if not exact:
            self._at(
                statement,
                f"{decoded.word} {lock.name}, which is not held here"
                f" (held: {show(state.held)}; {_path(state)})",
            )
            return state
        held = exact[0]
        rest = [h for h in state.held if h is not held]
        if decoded.op is Op.DOWNGRADE:
            if held.mode != Mode.WRITE:
                self._at(statement, f"downgrade of {held}: it is not held for writing")
            rest.append(replace(held, mode=int(Mode.READ)))
        context.unlocks[index] = held
        return replace(state, held=tuple(sorted(rest)))

    def _mark(self, statement: Statement, decoded: Instruction, state: State) -> None:
        pin = decoded.lock
        assert pin is not None
        if not state.walks:
            self._at(statement, "mark outside of each: there is no current VMA")
        self._may_block(statement, state, "mark")
        owners = [n for n, k in self.declared.locks.items() if k.bumps == pin.marks_by]
        if not any(h.lock in owners and h.mode == Mode.WRITE for h in state.held):
            self._at(
                statement,
                f"mark needs {' or '.join(owners) or 'a lock that bumps ' + pin.marks_by}"
                f" held for writing: its release is what drops the mark"
                f" (held: {show(state.held)})",
            )
        self._in_order(statement, pin.name, pin.rank, state)

    # -- messages --------------------------------------------------------------------------
    def _at(self, statement: Statement, text: str) -> None:
        """A mistake in a line; where it lies in an extended model, also what led there."""
        programs = self.declared.programs
        own = [programs[name] for name in self._stack if name in self.declared.own_programs]
        if own and own[-1].file != statement.file:
            text += f"; reached from {own[-1].name} ({own[-1].file}:{own[-1].line})"
        self._fail(statement.file, statement.line, text)

    def _fail(self, file: str, line: int, text: str) -> None:
        """A mistake of the program at hand; of a line, each kind (its first words) once."""
        new = Problem(file, line, text)
        known = next((old for old in self._found if _alike(old, new)), new)
        where = id(self._open[-1]) if self._open else 0
        self._found.setdefault(known, set()).add(where)


def _alike(one: Problem, other: Problem) -> bool:
    same = (one.file, one.line) == (other.file, other.line)
    return same and one.text.split()[:2] == other.text.split()[:2]


def _place(held: Held, lock: LockDecl) -> int:
    """What one thread may hold once: all ranges of a range lock lie in one address space."""
    if lock.kind is Kind.RANGE and held.operand not in (Operand.CHILD, Operand.TARGET):
        return int(Operand.NONE)
    return held.operand


def _along(state: State, out: State) -> State:
    """The way out of a program that was entered from ``state``."""
    return State(out.held, state.each, (*state.via, *out.via)[-_SHOWN_JUMPS:])


def _path(state: State) -> str:
    if not state.via:
        return "the straight path"
    return "the path by line " + ", ".join(map(str, state.via))
