"""Statements as instructions: operands checked against the model's names.

Everything here is decided from one line alone; what depends on the path that leads
to it (held locks, the current ``each``) is in :mod:`mmreplay.locking.paths`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mmreplay.errors import closest
from mmreplay.locking.declarations import Declared, LockDecl, line_scope
from mmreplay.locking.isa import Kind, Mode, Op, Operand, RuntimeBit, Scope
from mmreplay.locking.problems import Problem
from mmreplay.locking.source import Statement, is_name
from mmreplay.locking.vocabulary import (
    BITS,
    COSTS,
    COUNTS,
    FLUSHES,
    MODES,
    OPERANDS,
    REASONS,
    SETS,
    SLEEPS,
    TRAITS,
    WORDS,
)

_MAX_EVERY: Final = 1_000_000


@dataclass(slots=True)
class Names:
    """Index tables of the assembled model, filled as names are used."""

    locks: list[str]
    lines: list[str]
    costs: list[str] = field(default_factory=list)
    sleeps: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)

    @staticmethod
    def index(table: list[str], name: str) -> int:
        if name not in table:
            table.append(name)
        return table.index(name)

    def condition(self, condition: Condition) -> int:
        if condition not in self.conditions:
            self.conditions.append(condition)
        return self.conditions.index(condition)


@dataclass(frozen=True, slots=True)
class Condition:
    """All parts must hold.  ``every``: 0 none, N true each Nth time."""

    traits_set: int = 0
    traits_clear: int = 0
    bits_set: int = 0
    bits_clear: int = 0
    every: int = 0

    @property
    def always(self) -> bool:
        return self == Condition()


@dataclass(frozen=True, slots=True)
class Instruction:
    """One decoded statement.

    ``lock`` is the lock it works on, ``label`` where it may jump ("" none), ``held``
    the ``held.L`` parts of a condition (name, wanted).
    """

    op: Op | None  # None for call, retry, held-only forms decided later
    word: str
    a: int = -1
    b: int = -1
    c: int = -1
    lock: LockDecl | None = None
    label: str = ""
    program: str = ""
    condition: Condition | None = None
    held: tuple[tuple[str, bool], ...] = ()
    invert: bool = False  # of "every" and "contended": jump where it does not hold


class Decoder:
    """Decodes the statements of one model; mistakes go to ``problems``."""

    def __init__(self, declared: Declared, problems: list[Problem]) -> None:
        self.declared = declared
        self.problems = problems
        self.locks = declared.locks
        lines = [lock.line for lock in self.locks.values()]
        lines += [lock.owner_line for lock in self.locks.values() if lock.owner_line]
        lines += list(declared.lines)
        self.names = Names(list(self.locks), list(dict.fromkeys(lines)))
        self._decoded: dict[Statement, Instruction | None] = {}
        self._file, self._line = "", 0

    def decode(self, statement: Statement) -> Instruction | None:
        """The instruction, or None where the line has a mistake (recorded once)."""
        if statement not in self._decoded:
            self._file, self._line = statement.file, statement.line
            words = list(statement.words[1:])
            self._decoded[statement] = getattr(self, f"_{statement.op}")(words)
        return self._decoded[statement]

    # -- helpers ---------------------------------------------------------------------
    def _fail(self, text: str) -> None:
        self.problems.append(Problem(self._file, self._line, text))

    def _form(self, word: str) -> None:
        self._fail(f'the form is "{WORDS[word]}"')

    def _known(self, what: str, word: str, *tables: object) -> bool:
        known = [name for table in tables for name in table]  # type: ignore[attr-defined]
        if word in known:
            return True
        self._fail(f'unknown {what} "{word}"{closest(word, known)}')
        return False

    def _label_ok(self, label: str) -> bool:
        if is_name(label):
            return True
        self._fail(f'"{label}" is no label')
        return False

    # -- time ------------------------------------------------------------------------
    def _cost(self, words: list[str]) -> Instruction | None:
        count = " ".join(words[2:])
        if not words or (len(words) > 1 and (words[1] != "*" or not count)):
            self._form("cost")
            return None
        if not self._known("cost", words[0], COSTS, self.declared.costs):
            return None
        if count and not self._known("count", count, COUNTS):
            return None
        by = int(COUNTS[count]) if count else 0
        return Instruction(Op.COST, "cost", Names.index(self.names.costs, words[0]), by)

    def _sleep(self, words: list[str]) -> Instruction | None:
        if len(words) != 1:
            self._form("sleep")
            return None
        if not self._known("sleep", words[0], SLEEPS, self.declared.sleeps):
            return None
        return Instruction(Op.SLEEP, "sleep", Names.index(self.names.sleeps, words[0]))

    def _flush(self, words: list[str]) -> Instruction | None:
        if len(words) != 1:
            self._form("flush")
            return None
        if not self._known("flush scope", words[0], FLUSHES):
            return None
        return Instruction(Op.FLUSH, "flush", int(FLUSHES[words[0]]))

    def _touch(self, words: list[str]) -> Instruction | None:
        if not words or len(words) > 2 or (len(words) == 2 and words[1] != "write"):
            self._form("touch")
            return None
        if not self._known("cache line", words[0], self.names.lines):
            return None
        if line_scope(words[0]) is None:
            return None  # the declaration is already a problem
        index = self.names.lines.index(words[0])
        return Instruction(Op.TOUCH, "touch", index, int(len(words) == 2))

    # -- locks -----------------------------------------------------------------------
    def _lock_operands(self, word: str, words: list[str]) -> Instruction | None:
        if not words:
            self._form(word)
            return None
        if not self._known("lock", words[0], self.locks):
            return None
        lock = self.locks[words[0]]
        mode, operand = -1, Operand.NONE
        for extra in words[1:]:
            if extra.startswith("@"):
                if operand is not Operand.NONE:
                    self._form(word)
                    return None
                if not self._known("range", extra, OPERANDS):
                    return None
                operand = OPERANDS[extra]
            elif mode < 0 and word in ("lock", "try"):
                if not self._known("mode", extra, MODES):
                    return None
                mode = int(MODES[extra])
            else:
                self._form(word)
                return None
        if not self._fits(word, lock, operand):
            return None
        if word in ("lock", "try") and mode < 0:
            if lock.kind is not Kind.SPIN:
                self._fail(f'say read or write: "{WORDS[word]}"')
                return None
            mode = int(Mode.WRITE)
        if lock.kind is Kind.PIN and mode == Mode.WRITE:
            self._fail(
                f'"{lock.name}" is a pin lock: writers mark it ("mark"), they do not lock it'
            )
            return None
        index = self.names.locks.index(lock.name)
        return Instruction(None, word, index, mode, int(operand), lock)

    def _fits(self, word: str, lock: LockDecl, operand: Operand) -> bool:
        if lock.kind is Kind.SEQ:
            self._fail(f'"{lock.name}" is a sequence: use snap and check, not {word}')
            return False
        if word == "downgrade" and lock.kind is not Kind.RWSEM:
            self._fail(f'only an rwsem can be downgraded; "{lock.name}" is a {_kind(lock)} lock')
            return False
        if operand in (Operand.CHILD, Operand.TARGET):
            if lock.scope is not Scope.MM:
                self._fail(
                    f"wrong scope: @{operand.name.lower()} needs a lock of scope mm,"
                    f' "{lock.name}" has scope {lock.scope.name.lower()}'
                )
                return False
        elif operand is not Operand.NONE and lock.kind is not Kind.RANGE:
            self._fail(
                f'@{operand.name.lower()} is for range locks; "{lock.name}" is a {_kind(lock)} lock'
            )
            return False
        elif operand is Operand.NONE and lock.kind is Kind.RANGE and word in ("lock", "try"):
            self._fail(f'a range lock needs a range: "{word} {lock.name} read|write @RANGE"')
            return False
        return True

    def _lock(self, words: list[str]) -> Instruction | None:
        return _with(self._lock_operands("lock", words), Op.LOCK)

    def _try(self, words: list[str]) -> Instruction | None:
        if len(words) < 3 or words[-2] != "else" or not self._label_ok(words[-1]):
            self._form("try")
            return None
        return _with(self._lock_operands("try", words[:-2]), Op.TRY, words[-1])

    def _unlock(self, words: list[str]) -> Instruction | None:
        return _with(self._lock_operands("unlock", words), Op.UNLOCK)

    def _downgrade(self, words: list[str]) -> Instruction | None:
        return _with(self._lock_operands("downgrade", words), Op.DOWNGRADE)

    def _mark(self, words: list[str]) -> Instruction | None:
        pins = {n: k for n, k in self.locks.items() if k.kind is Kind.PIN and k.marks_by}
        if len(words) > 1:
            self._form("mark")
            return None
        if words and not self._known("lock to mark", words[0], pins):
            return None
        if not words and len(pins) != 1:
            self._fail(
                "mark needs a pin lock with marks_by in [locks]"
                if not pins
                else f"mark which one? {', '.join(pins)}"
            )
            return None
        lock = pins[words[0]] if words else next(iter(pins.values()))
        return Instruction(Op.MARK, "mark", self.names.locks.index(lock.name), lock=lock)

    def _sequence(self, word: str, words: list[str], op: Op) -> Instruction | None:
        bare = word == "snap" and len(words) == 1
        if not bare and (len(words) != 3 or words[1] != "else" or not self._label_ok(words[2])):
            self._form(word)
            return None
        sequences = [n for n, k in self.locks.items() if k.kind is Kind.SEQ]
        if not self._known("sequence", words[0], sequences):
            return None
        index = self.names.locks.index(words[0])
        return Instruction(op, word, index, label="" if bare else words[2])

    def _snap(self, words: list[str]) -> Instruction | None:
        return self._sequence("snap", words, Op.SNAP)

    def _check(self, words: list[str]) -> Instruction | None:
        return self._sequence("check", words, Op.CHECK)

    # -- control ---------------------------------------------------------------------
    def _if(self, words: list[str]) -> Instruction | None:
        if len(words) < 3 or words[-2] != "goto" or not self._label_ok(words[-1]):
            self._form("if")
            return None
        parts = words[:-2]
        if any(part.removeprefix("!").startswith("contended.") for part in parts):
            return self._contended(parts, words[-1])
        traits, bits = [0, 0], [0, 0]  # asked for, negated
        held: list[tuple[str, bool]] = []
        every, invert = 0, False
        index = 0
        while index < len(parts):
            negated = parts[index].startswith("!")
            name = parts[index].removeprefix("!")
            index += 1
            if name == "every":
                count = parts[index] if index < len(parts) else ""
                index += 1
                if every or not (count.isascii() and count.isdigit() and len(count) < 8):
                    self._fail('"every" needs a number: "if every 31 goto LABEL"')
                    return None
                every, invert = int(count), negated
                if not 1 <= every <= _MAX_EVERY:
                    self._fail(f"every {every}: from 1 to {_MAX_EVERY}")
                    return None
            elif name.startswith("held."):
                if not self._known("lock", name.removeprefix("held."), self.locks):
                    return None
                held.append((name.removeprefix("held."), not negated))
            elif name in BITS:
                bits[negated] |= int(BITS[name])
            elif name in TRAITS:
                traits[negated] |= int(TRAITS[name])
            else:
                asked = [f"{what}.{n}" for n in self.locks for what in ("held", "contended")]
                self._known("condition", name, TRAITS, BITS, asked)
                return None
        condition = Condition(traits[0], traits[1], bits[0], bits[1], every)
        if condition.traits_set & condition.traits_clear or (
            condition.bits_set & condition.bits_clear
        ):
            self._fail("the condition can never hold: it asks for something and its opposite")
            return None
        if invert and (condition != Condition(every=every) or held):
            self._fail('"!every N" must stand alone')
            return None
        return Instruction(
            Op.BRANCH,
            "if",
            label=words[-1],
            condition=condition,
            held=tuple(held),
            invert=invert,
        )

    def _contended(self, parts: list[str], label: str) -> Instruction | None:
        """``contended.LOCK``: it looks at the lock, so it is a step and not a condition."""
        name = parts[0].removeprefix("!").removeprefix("contended.")
        if len(parts) != 1:
            self._fail('"contended.LOCK" must stand alone')
            return None
        if not self._known("lock", name, self.locks):
            return None
        lock = self.locks[name]
        if lock.kind is Kind.SEQ:
            self._fail(f'"{name}" is a sequence: nobody waits for it; use snap and check')
            return None
        return Instruction(
            Op.CONTENDED,
            "if",
            self.names.locks.index(name),
            lock=lock,
            label=label,
            invert=parts[0].startswith("!"),
        )

    def _goto(self, words: list[str]) -> Instruction | None:
        if len(words) != 1 or not self._label_ok(words[0]):
            self._form("goto")
            return None
        return Instruction(Op.JUMP, "goto", label=words[0])

    def _each(self, words: list[str]) -> Instruction | None:
        if len(words) != 1:
            self._form("each")
            return None
        if not self._known("set", words[0], SETS):
            return None
        return Instruction(Op.EACH, "each", int(SETS[words[0]]))

    def _end(self, words: list[str]) -> Instruction | None:
        return self._bare("end", words, Op.END)

    def _call(self, words: list[str]) -> Instruction | None:
        if len(words) not in (1, 3) or (len(words) == 3 and words[1] != "retry"):
            self._form("call")
            return None
        if not self._known("program", words[0], self.declared.programs):
            return None
        label = words[2] if len(words) == 3 else ""
        if label and not self._label_ok(label):
            return None
        return Instruction(None, "call", label=label, program=words[0])

    def _retry(self, words: list[str]) -> Instruction | None:
        return self._bare("retry", words, None)

    def _done(self, words: list[str]) -> Instruction | None:
        return self._bare("done", words, Op.DONE)

    def _bare(self, word: str, words: list[str], op: Op | None) -> Instruction | None:
        if words:
            self._form(word)
            return None
        return Instruction(op, word)

    # -- state -----------------------------------------------------------------------
    def _set(self, words: list[str]) -> Instruction | None:
        if len(words) != 1:
            self._form("set")
            return None
        if not self._known("bit", words[0], BITS):
            return None
        bit: RuntimeBit = BITS[words[0]]
        return Instruction(Op.SET, "set", int(bit))

    def _count(self, words: list[str]) -> Instruction | None:
        if len(words) != 1:
            self._form("count")
            return None
        if not self._known("reason", words[0], REASONS, self.declared.reasons):
            return None
        return Instruction(Op.COUNT, "count", Names.index(self.names.reasons, words[0]))


def _with(instruction: Instruction | None, op: Op, label: str = "") -> Instruction | None:
    if instruction is None:
        return None
    return Instruction(
        op,
        instruction.word,
        instruction.a,
        instruction.b,
        instruction.c,
        instruction.lock,
        label,
    )


def _kind(lock: LockDecl) -> str:
    return lock.kind.name.lower()
