"""The declarative part of a model file: keys, locks, costs, and inheritance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mmreplay.address_space.plan import PlanOp
from mmreplay.errors import closest
from mmreplay.locking.isa import PARAMS, Form, Kind, Scope
from mmreplay.locking.problems import ModelError, Problem
from mmreplay.locking.source import Program, SourceFile, is_name, parse_program
from mmreplay.locking.vocabulary import COSTS, REASONS, SLEEPS
from mmreplay.resources import models_dir

#: Operation names, the programs that a trace can ask for.
OPERATIONS: Final[dict[str, PlanOp]] = {
    op.name.lower(): op for op in PlanOp if op is not PlanOp.NONE
}

_TOP: Final = (
    "name",
    "title",
    "kernel",
    "extends",
    "vma_rules",
    "sources",
    "notes",
    "lines",
    "locks",
    "costs",
    "sleeps",
    "reasons",
    "programs",
)

_COMMON: Final = ("kind", "scope", "line", "rank")
_BY_KIND: Final[dict[Kind, tuple[str, ...]]] = {
    Kind.RWSEM: (
        "reader_spin",
        "steal",
        "osq",
        "spin_us",
        "handoff_ms",
        "batch",
        "bumps",
        "bump_acquire",
        "owner_line",
        "readers",
    ),
    Kind.PIN: ("form", "marks_by"),
    Kind.SPIN: ("fifo",),
    Kind.SEQ: (),
    Kind.RANGE: ("round", "wait", "cost", "ancestors", "bumps", "bump_acquire"),
}
_DEFAULTS: Final[dict[str, int]] = {
    "steal": 1,
    "osq": 1,
    "spin_us": 1,
    "handoff_ns": 4_000_000,
    "batch": 256,
    "marks_by": -1,
    "bumps": -1,
    "owner_line": -1,
    "fifo": 1,
}
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "form": ("rwsem", "refcount"),
    "round": ("page", "slot", "pt_node"),
    "wait": ("spin", "sleep"),
    "cost": ("per_holder", "per_slot", "per_level"),
    "ancestors": ("none", "read"),
}
#: Smallest and largest value of the numbers that a file may give.
_BOUNDS: Final[dict[str, tuple[int, int]]] = {
    "rank": (0, 1_000_000),
    "spin_us": (0, 1_000_000),
    "handoff_ms": (0, 1_000_000),
    "batch": (1, 1_000_000),
    "slots": (1, 1 << 20),
    "inhibit": (0, 1_000_000),
}


@dataclass(slots=True)
class LockDecl:
    """One ``[locks.NAME]`` table; names of other locks are resolved later."""

    name: str
    kind: Kind
    scope: Scope
    line: str
    rank: int
    params: dict[str, int]
    bumps: str = ""
    marks_by: str = ""
    owner_line: str = ""
    file: str = ""
    at: int = 0
    table: dict[str, Any] = field(default_factory=dict)  # as written, for models that refine it


@dataclass(slots=True)
class Declared:
    """A model file merged over what it extends; programs and locks by name."""

    path: Path
    file: str
    chain: list[str]  # file names, this one first
    digests: list[str]
    name: str = ""
    title: str = ""
    kernel: tuple[int, int] | None = None
    vma_rules: str = ""
    sources: list[str] = field(default_factory=list)
    notes: str = ""
    lines: dict[str, str] = field(default_factory=dict)
    locks: dict[str, LockDecl] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    sleeps: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    programs: dict[str, Program] = field(default_factory=dict)
    own_programs: set[str] = field(default_factory=set)
    line_of: Callable[[str, str], int] = lambda _table, _key: 0


def declare(
    source: SourceFile,
    find: Callable[[str, SourceFile], SourceFile],
    problems: list[Problem],
    above: tuple[SourceFile, ...] = (),
) -> Declared:
    """Read the declarations of ``source`` and of what it extends (``find`` locates it).

    Mistakes are appended to ``problems``; a cycle of ``extends`` raises ModelError.
    """
    if any(other.path == source.path for other in above):
        chain = " -> ".join(s.path.stem for s in (*above, source))
        raise ModelError([above[-1].problem(f"extends goes in a circle: {chain}", "", "extends")])
    data = source.data
    for key in data:
        if key not in _TOP:
            problems.append(source.problem(f'unknown key "{key}"{closest(key, _TOP)}', "", key))
    reader = _Reader(source, problems)
    declared = Declared(source.path, source.name, [source.name], [source.sha256])
    if "extends" in data:
        base_name = reader.text("extends")
        if base_name:
            base = declare(find(base_name, source), find, problems, (*above, source))
            declared = _inherit(declared, base)
    declared.line_of = source.line
    declared.name = reader.text("name") or source.path.stem
    if "name" in data and declared.name != source.path.stem and source.path.suffix == ".toml":
        problems.append(
            source.problem(
                f'name "{declared.name}" differs from the file\'s name "{source.path.stem}"',
                "",
                "name",
            )
        )
    declared.title = reader.text("title", required=True)
    declared.kernel = reader.kernel()
    if "vma_rules" in data or not declared.vma_rules:
        declared.vma_rules = _vma_rules(reader)
    declared.sources = [*reader.texts("sources"), *declared.sources]
    declared.notes = reader.text("notes")
    for name, meaning in reader.named("lines").items():
        if reader.is_text(meaning, "lines", name):
            if _line_scope(name) is None:
                problems.append(source.problem(_bad_line(name), "lines", name))
            declared.lines[name] = meaning
    _words(reader, declared)
    for name, table in reader.named("locks").items():
        lock = _lock(reader, name, table, declared.locks.get(name))
        if lock is not None:
            declared.locks[name] = lock
    for name, text in reader.named("programs").items():
        if not reader.is_text(text, "programs", name):
            continue
        if not is_name(name):
            problems.append(source.problem(f'"{name}" cannot name a program', "programs", name))
            continue
        start = source.starts.get(("programs", name), source.line("programs", name))
        declared.programs[name] = parse_program(name, text, source.name, start, problems)
        declared.own_programs.add(name)
    return declared


def _vma_rules(reader: _Reader) -> str:
    """The name of VMA rules that there are."""
    name = reader.text("vma_rules", required=True)
    known = sorted(path.stem for path in models_dir("vma").glob("*.toml"))
    if name and name not in known:
        there = ", ".join(known)
        reader.fail(
            f'unknown VMA rules "{name}"{closest(name, known)}; there are {there}', "", "vma_rules"
        )
    return name


def _inherit(child: Declared, base: Declared) -> Declared:
    child.chain += base.chain
    child.digests += base.digests
    child.vma_rules = base.vma_rules
    child.sources = list(base.sources)
    child.lines = dict(base.lines)
    child.locks = dict(base.locks)
    child.costs = dict(base.costs)
    child.sleeps = dict(base.sleeps)
    child.reasons = dict(base.reasons)
    child.programs = dict(base.programs)
    return child


def _words(reader: _Reader, declared: Declared) -> None:
    """The words that a model adds for itself: [costs], [sleeps], [reasons]."""
    for name, value in reader.named("costs").items():
        cost = reader.cost(name, value)
        if cost is not None:
            declared.costs[name] = cost
    for table, into, shared in (
        ("sleeps", declared.sleeps, SLEEPS),
        ("reasons", declared.reasons, REASONS),
    ):
        for name, meaning in reader.named(table).items():
            if not is_name(name):
                reader.fail(f'"{name}" cannot be used as a name', table, name)
            elif name in shared:
                reader.fail(f'"{name}" is already in the language', table, name)
            elif reader.is_text(meaning, table, name):
                into[name] = meaning


def _line_scope(line: str) -> Scope | None:
    prefix, dot, rest = line.partition(".")
    if not dot or not rest or prefix.upper() not in Scope.__members__:
        return None
    return Scope[prefix.upper()]


def _bad_line(line: str) -> str:
    scopes = ", ".join(s.name.lower() for s in Scope)
    return f'cache line "{line}" must be called SCOPE.NAME, with SCOPE one of {scopes}'


def line_scope(line: str) -> Scope | None:
    """The scope a cache line's name begins with (``mm.2`` → MM); None if malformed."""
    return _line_scope(line)


def _lock(reader: _Reader, name: str, table: Any, base: LockDecl | None) -> LockDecl | None:
    """One lock.  Without ``kind`` it is the inherited one, with the keys given changed."""
    where = f"locks.{name}"
    if not is_name(name) or not isinstance(table, dict):
        reader.fail(f"[locks.{name}] must be a table with a plain name", where)
        return None
    if base is not None and "kind" not in table:
        table = {**base.table, **table}
    kind = reader.choice(table, where, "kind", {k.name.lower(): k for k in Kind})
    scope = reader.choice(table, where, "scope", {s.name.lower(): s for s in Scope})
    if kind is None or scope is None:
        return None
    allowed = (*_COMMON, *_BY_KIND[kind])
    for key in table:
        if key not in allowed:
            every = {k for keys in _BY_KIND.values() for k in keys}
            what = (
                f'"{key}" is no parameter of a {kind.name.lower()} lock'
                if key in every
                else f'unknown key "{key}"'
            )
            reader.fail(f"{what}{closest(key, allowed)}", where, key)
    line = _own_line(reader, table, where, "line", scope, f"{scope.name.lower()}.{name}")
    if line is None:
        return None
    if kind is Kind.RANGE and scope is not Scope.MM:
        reader.fail(f'a range lock has scope mm, "{name}" has {scope.name.lower()}', where, "scope")
    rank = reader.number(table, where, "rank", -1)
    lock = LockDecl(name, kind, scope, line, rank, {key: _DEFAULTS.get(key, 0) for key in PARAMS})
    lock.file, lock.at = reader.source.name, reader.source.line(where)
    lock.table = dict(table)
    lock.owner_line = _own_line(reader, table, where, "owner_line", scope, "") or ""
    _params(reader, lock, table, where)
    return lock


def _own_line(
    reader: _Reader, table: Mapping[str, Any], where: str, key: str, scope: Scope, default: str
) -> str | None:
    """A cache line of the lock's own object; None (and a problem) where it is not."""
    line = table.get(key, default)
    if key not in table:
        return default
    if not isinstance(line, str) or _line_scope(line) is None:
        reader.fail(_bad_line(str(line)), where, key)
        return None
    if _line_scope(line) is not scope:
        name = where.partition(".")[2]
        reader.fail(
            f'line "{line}" does not belong to scope {scope.name.lower()}, which "{name}" has',
            where,
            key,
        )
    return line


def _params(reader: _Reader, lock: LockDecl, table: Mapping[str, Any], where: str) -> None:
    params = lock.params
    for key in ("reader_spin", "steal", "osq", "bump_acquire", "fifo"):
        if key in table:
            params[key] = reader.flag(table, where, key)
    for key, column in (("batch", "batch"), ("spin_us", "spin_us")):
        if table.get(key) == "kernel" and key == "spin_us":
            params[column] = 1
        else:
            params[column] = reader.number(table, where, key, params[column])
    if "handoff_ms" in table:
        params["handoff_ns"] = 1_000_000 * reader.number(table, where, "handoff_ms", 4)
    for key, words in _CHOICES.items():
        if key in table and key in _BY_KIND[lock.kind]:
            value = reader.choice(table, where, key, {w: i for i, w in enumerate(words)})
            params["range_cost" if key == "cost" else key] = value or 0
    if lock.kind is Kind.PIN and "form" not in table:
        params["form"] = int(Form.REFCOUNT)
    lock.bumps = reader.name_of(table, where, "bumps")
    lock.marks_by = reader.name_of(table, where, "marks_by")
    readers = table.get("readers", "plain")
    if isinstance(readers, dict) and set(readers) == {"slots", "inhibit"}:
        params["bravo_slots"] = reader.number(readers, where, "slots", 1, at="readers")
        params["bravo_inhibit"] = reader.number(readers, where, "inhibit", 0, at="readers")
    elif readers != "plain":
        reader.fail(
            'readers is "plain" or { slots = N, inhibit = N } (a BRAVO reader table)',
            where,
            "readers",
        )


class _Reader:
    """Typed access to one file's data; every mistake is recorded, none raises."""

    def __init__(self, source: SourceFile, problems: list[Problem]) -> None:
        self.source = source
        self.problems = problems

    def fail(self, text: str, table: str = "", key: str = "") -> None:
        self.problems.append(self.source.problem(text, table, key))

    def text(self, key: str, required: bool = False) -> str:
        value = self.source.data.get(key, "")
        if not isinstance(value, str):
            self.fail(f"{key} must be a text", "", key)
            return ""
        if required and not value.strip():
            self.fail(f'missing key "{key}"' if key not in self.source.data else f"{key} is empty")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.source.data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            self.fail(f"{key} must be a list of texts", "", key)
            return []
        return value

    def named(self, table: str) -> dict[str, Any]:
        value = self.source.data.get(table, {})
        if not isinstance(value, dict):
            self.fail(f"{table} must be a table", "", table)
            return {}
        return value

    def is_text(self, value: Any, table: str, key: str) -> bool:
        if isinstance(value, str):
            return True
        self.fail(f"{table}.{key} must be a text", table, key)
        return False

    def kernel(self) -> tuple[int, int] | None:
        value = self.source.data.get("kernel")
        if value is None or value == "none":
            return None
        parts = value.split(".") if isinstance(value, str) else []
        digits = [p for p in parts if p.isascii() and p.isdigit() and len(p) < 6]
        if len(parts) == 2 and len(digits) == 2:
            return int(parts[0]), int(parts[1])
        self.fail(
            'kernel must be the first release it stands for, like "6.1", or "none"', "", "kernel"
        )
        return None

    def cost(self, name: str, value: Any) -> float | None:
        if not is_name(name):
            self.fail(f'"{name}" cannot name a cost', "costs", name)
            return None
        at = ("costs", name) if ("costs", name) in self.source.lines else (f"costs.{name}", "")
        if not isinstance(value, dict):
            self.fail('a cost is { ns = N, source = "where from" }', *at)
            return None
        for key in value:
            if key not in ("ns", "source"):
                self.fail(f'unknown key "{key}"{closest(key, ("ns", "source"))}', *at)
        ns, origin = value.get("ns"), value.get("source")
        if isinstance(ns, bool) or not isinstance(ns, int | float) or not 0 <= ns <= 1e12:
            self.fail(f"the cost {name} needs ns, a number from 0 to 1e12", *at)
            return None
        if not isinstance(origin, str) or not origin.strip():
            self.fail(f"the cost {name} needs a source", *at)
        if name in COSTS:
            self.fail(f'the cost "{name}" comes from the machine; choose another name', *at)
        return float(ns)

    def choice(self, table: Mapping[str, Any], where: str, key: str, known: dict[str, Any]) -> Any:
        if key not in table:
            self.fail(f'missing key "{key}" (one of {", ".join(known)})', where)
            return None
        value = table[key]
        if not isinstance(value, str) or value not in known:
            near = closest(str(value), known)
            self.fail(f'{key} "{value}" is not one of {", ".join(known)}{near}', where, key)
            return None
        return known[value]

    def flag(self, table: Mapping[str, Any], where: str, key: str) -> int:
        value = table[key]
        if not isinstance(value, bool):
            self.fail(f"{key} must be true or false", where, key)
        return int(value is True)

    def number(
        self, table: Mapping[str, Any], where: str, key: str, default: int, at: str = ""
    ) -> int:
        if key not in table:
            return default
        value = table[key]
        low, high = _BOUNDS[key]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail(f"{key} must be a whole number from {low} to {high}", where, at or key)
            return default
        return value

    def name_of(self, table: Mapping[str, Any], where: str, key: str) -> str:
        value = table.get(key, "")
        if not isinstance(value, str):
            self.fail(f"{key} must name a seq lock", where, key)
            return ""
        return value


def check_declared(declared: Declared, problems: list[Problem]) -> None:
    """Checks over the merged model: sequences exist, programs have a purpose."""
    sequences = [lock.name for lock in declared.locks.values() if lock.kind is Kind.SEQ]
    for lock in declared.locks.values():
        for key, name in (("bumps", lock.bumps), ("marks_by", lock.marks_by)):
            if name and name not in sequences:
                near = closest(name, sequences)
                problems.append(
                    Problem(
                        lock.file,
                        lock.at,
                        f'{key} of "{lock.name}" names "{name}", which is no seq lock{near}',
                    )
                )
        if lock.marks_by and not any(
            other.bumps == lock.marks_by for other in declared.locks.values()
        ):
            problems.append(
                Problem(
                    lock.file,
                    lock.at,
                    f'nothing moves "{lock.marks_by}": the marks of "{lock.name}" would never'
                    " be dropped (some lock needs bumps)",
                )
            )
    if declared.kernel is not None:
        missing = [name for name in OPERATIONS if name not in declared.programs]
        if missing:
            problems.append(
                Problem(
                    declared.file,
                    declared.line_of("programs", ""),
                    f"a kernel's model needs a program for every operation; missing: "
                    f"{', '.join(missing)}",
                )
            )
    elif not any(name in declared.programs for name in OPERATIONS):
        problems.append(
            Problem(declared.file, 0, "the model has no program of any operation in [programs]")
        )
