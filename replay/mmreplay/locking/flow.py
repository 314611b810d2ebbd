"""Code of one operation as a graph: jump threading, and checks that need the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mmreplay.locking.decode import Condition
from mmreplay.locking.isa import Op
from mmreplay.locking.problems import Problem

Code = list[list[int]]  # rows as in isa: OP, A, B, C, TARGET, LINE
Places = list[tuple[str, int]]

#: Steps that let simulated time pass, and steps whose way out can differ next time.
_TAKES_TIME: Final = frozenset(
    {Op.COST, Op.SLEEP, Op.FLUSH, Op.TOUCH, Op.LOCK, Op.TRY, Op.UNLOCK, Op.DOWNGRADE, Op.MARK}
)
_MAY_CHANGE: Final = frozenset({Op.TRY, Op.SNAP, Op.CHECK, Op.CONTENDED})


class Label:
    """A place in the code, known once its code has been written."""

    __slots__ = ("pc",)

    def __init__(self) -> None:
        self.pc = -1


@dataclass(slots=True)
class Row:
    """One instruction on its way into the code array."""

    op: Op
    a: int = -1
    b: int = -1
    c: int = -1
    target: Label | None = None
    file: str = ""
    line: int = 0


def tidy(rows: Sequence[Row]) -> tuple[Code, Places]:
    """Resolve labels, thread jumps, drop what cannot be reached; keep each step's place."""
    code = [
        [int(r.op), r.a, r.b, r.c, r.target.pc if r.target is not None else -1, r.line]
        for r in rows
    ]
    places = [(r.file, r.line) for r in rows]
    while True:
        for pc, row in enumerate(code):
            if row[0] == Op.EACH and pc + 1 < len(code) and _closes(code[pc + 1], pc + 1):
                row[:4] = [int(Op.JUMP), -1, -1, -1]  # nothing to do for each: skip it
            row[4] = _thread(code, row[4])
        alive = _reachable(code)
        keep = [
            pc
            for pc in range(len(code))
            if alive[pc] and not (code[pc][0] == Op.JUMP and _next(alive, pc) == code[pc][4])
        ]
        if len(keep) == len(code):
            return code, places
        # A dropped step (a jump to the next one kept) is stood for by what follows it.
        stands = {}
        position = len(keep)
        kept = set(keep)
        for pc in range(len(code), -1, -1):
            if pc in kept:
                position -= 1
            stands[pc] = position
        places = [places[pc] for pc in keep]
        code = [code[pc] for pc in keep]
        for row in code:
            if row[4] >= 0:
                row[4] = stands[row[4]]


def _closes(row: list[int], pc: int) -> bool:
    return row[0] == Op.END and row[4] == pc


def _thread(code: Code, target: int) -> int:
    seen = set()
    while 0 <= target < len(code) and code[target][0] == Op.JUMP and target not in seen:
        seen.add(target)
        target = code[target][4]
    return target


def _next(alive: list[bool], pc: int) -> int:
    pc += 1
    while pc < len(alive) and not alive[pc]:
        pc += 1
    return pc


def successors(code: Code, pc: int) -> list[int]:
    """Where control may go after step ``pc``."""
    op, target = code[pc][0], code[pc][4]
    if op == Op.DONE:
        return []
    if op == Op.JUMP:
        return [target]
    return [pc + 1] if target < 0 else [pc + 1, target]


def _reachable(code: Code) -> list[bool]:
    alive = [False] * len(code)
    work = [0] if code else []
    while work:
        pc = work.pop()
        if pc < len(code) and not alive[pc]:
            alive[pc] = True
            work += successors(code, pc)
    return alive


def check_flow(
    name: str,
    code: Code,
    places: Places,
    conditions: Sequence[Condition],
    problems: list[Problem],
) -> None:
    """Every loop can end and takes time; every check follows a snap on all paths."""
    found: set[Problem] = set()
    _check_loops(name, code, places, conditions, found)
    _check_snaps(code, places, found)
    problems += sorted(found)


def _check_loops(
    name: str,
    code: Code,
    places: Places,
    conditions: Sequence[Condition],
    found: set[Problem],
) -> None:
    for loop in _loops(code):
        file, line = min(places[pc] for pc in loop)
        takes_time = any(code[pc][0] in _TAKES_TIME for pc in loop)
        exits = any(
            nxt not in loop
            for pc in loop
            if _may_change(code[pc], conditions)
            for nxt in successors(code, pc)
        )
        if not exits:
            text = f'a loop of "{name}" never ends: no try, check or runtime bit leads out of it'
            found.add(Problem(file, line, text))
        elif not takes_time:
            found.add(
                Problem(file, line, f'a loop of "{name}" takes no time: it would spin forever')
            )


def _may_change(row: list[int], conditions: Sequence[Condition]) -> bool:
    if row[0] == Op.BRANCH:
        condition = conditions[row[1]]
        return bool(condition.bits_set or condition.bits_clear or condition.every)
    return row[0] in _MAY_CHANGE


def _loops(code: Code) -> list[set[int]]:
    """Strongly connected parts with a cycle (Tarjan, iterative); each…end does not count."""

    def edges(pc: int) -> list[int]:
        out = [pc + 1] if code[pc][0] == Op.END else successors(code, pc)
        return [t for t in out if t < len(code)]

    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    loops = []
    for root in range(len(code)):
        if root in order:
            continue
        work = [(root, iter(edges(root)))]
        order[root] = low[root] = len(order)
        stack.append(root)
        on_stack.add(root)
        while work:
            pc, rest = work[-1]
            for nxt in rest:
                if nxt not in order:
                    order[nxt] = low[nxt] = len(order)
                    stack.append(nxt)
                    on_stack.add(nxt)
                    work.append((nxt, iter(edges(nxt))))
                    break
                if nxt in on_stack:
                    low[pc] = min(low[pc], order[nxt])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[pc])
                if low[pc] == order[pc]:
                    part = set()
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        part.add(member)
                        if member == pc:
                            break
                    if len(part) > 1 or pc in edges(pc):
                        loops.append(part)
    return loops


def _check_snaps(code: Code, places: Places, found: set[Problem]) -> None:
    known: dict[int, frozenset[int]] = {}
    work: list[tuple[int, frozenset[int]]] = [(0, frozenset())] if code else []
    while work:
        pc, snapped = work.pop()
        if pc >= len(code):
            continue
        before = known.get(pc)
        now = snapped if before is None else before & snapped
        if before is not None and now == before:
            continue
        known[pc] = now
        out = now | {code[pc][1]} if code[pc][0] == Op.SNAP else now
        work += [(nxt, out) for nxt in successors(code, pc)]
    for pc, snapped in known.items():
        if code[pc][0] == Op.CHECK and code[pc][1] not in snapped:
            found.add(Problem(*places[pc], "check without a snap of that sequence before it"))
