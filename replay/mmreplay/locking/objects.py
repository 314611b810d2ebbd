"""Which locks an operation can have: a lock needs the VMA, file, page table or range it is of.

A lock of an object that an operation lacks would silently not be taken.  What an operation
has is what the planner gives it (``Plan.vma``, ``table``, ``file``, ``anon_slot``, its pages).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mmreplay.address_space.plan import MarkSet, PlanOp
from mmreplay.locking.declarations import LockDecl
from mmreplay.locking.flow import Code, Places, successors
from mmreplay.locking.isa import Kind, Op, Operand, Scope

#: About a process or a thread as a whole: no address, no range.
_NO_RANGE: Final = frozenset(
    {PlanOp.EXEC, PlanOp.THREAD_START, PlanOp.THREAD_EXIT, PlanOp.PKEY, PlanOp.VFORK_EXIT}
)
#: No VMA of their own; some walk several with ``each``.
_NO_VMA: Final = _NO_RANGE | {
    PlanOp.BRK_QUERY,
    PlanOp.FORK,
    PlanOp.PROCESS_EXIT,
    PlanOp.PROCESS_MADVISE,
    PlanOp.PROCESS_MADVISE_ZAP,
    PlanOp.PROC_MAPS,
    PlanOp.PROC_SMAPS,
    PlanOp.PROC_ROLLUP,
    PlanOp.PROC_PAGEMAP,
}
_LACKS: Final[dict[Scope, frozenset[PlanOp]]] = {
    Scope.VMA: _NO_VMA,
    Scope.FILE: _NO_VMA | {PlanOp.BRK_GROW},  # the heap is anonymous
    # the VMAs of these calls are gone or only looked at: the plan names no anon_vma
    Scope.ANON_ROOT: _NO_VMA
    | {
        PlanOp.MUNMAP,
        PlanOp.MPROTECT,
        PlanOp.BRK_SHRINK,
        PlanOp.MUNLOCK,
        PlanOp.MREMAP_SHRINK,
        PlanOp.MREMAP_NOOP,
        PlanOp.SHMAT,
        PlanOp.SHMDT,
    },
    Scope.TABLE: _NO_VMA
    | {
        PlanOp.MREMAP_NOOP,
        PlanOp.MADVISE_FLAGS,
        PlanOp.MADVISE_WILLNEED,
        PlanOp.MADVISE_COLLAPSE,
    },
}
#: ``each targets`` of these are pieces of the range, not VMAs.
_PIECES: Final = frozenset({PlanOp.PROC_ROLLUP, PlanOp.PROC_PAGEMAP, PlanOp.REMOTE_ACCESS})

_NEEDS: Final = {
    Scope.VMA: ("VMA", "lock it inside an each over VMAs, or take a lock of scope mm"),
    Scope.FILE: ("file", "take a lock of scope mm or global"),
    Scope.ANON_ROOT: ("anon_vma", "take a lock of scope mm, or a cost"),
    Scope.TABLE: ("page table", "take a lock of scope mm"),
}
_OF_RANGE: Final = frozenset({Operand.PAGE, Operand.OP, Operand.NODE})
_OF_VMA: Final = frozenset({Operand.VMA, Operand.VMA1})
_TAKES: Final = frozenset({Op.LOCK, Op.TRY, Op.SNAP, Op.CHECK, Op.CONTENDED})


def lacking(
    op: PlanOp, code: Code, places: Places, locks: Sequence[LockDecl]
) -> dict[tuple[str, int], str]:
    """Place -> what is wrong there: locks in the code of ``op`` whose object it lacks."""
    found: dict[tuple[str, int], str] = {}
    seen: set[tuple[int, int]] = set()
    work = [(0, 0)] if code else []
    while work:
        pc, walked = work.pop()
        if pc >= len(code) or (pc, walked) in seen:
            continue
        seen.add((pc, walked))
        row = code[pc]
        if row[0] == Op.EACH:
            work += [(pc + 1, row[1]), (row[4], 0)]
            continue
        if row[0] == Op.END:
            work += [(pc + 1, 0), (row[4], walked)]
            continue
        if row[0] in _TAKES:
            wrong = _wrong(op, locks[row[1]], row[3], walked)
            if wrong:
                found.setdefault(places[pc], wrong)
        elif row[0] == Op.MARK and not _walks_vmas(op, walked):
            what = "page tables" if walked == MarkSet.TABLES else "pieces of a range"
            found.setdefault(places[pc], f"mark: this each walks {what}; mark inside each of VMAs")
        work += [(after, walked) for after in successors(code, pc)]
    return found


def _walks_vmas(op: PlanOp, walked: int) -> bool:
    pieces = walked == MarkSet.TARGETS and op in _PIECES
    return walked not in (0, MarkSet.TABLES) and not pieces


def _wrong(op: PlanOp, lock: LockDecl, operand: int, walked: int) -> str:
    """What is wrong with taking ``lock`` in ``op`` while ``each`` walks a set (0: none)."""
    name = op.name.lower()
    scope = Scope.TABLE if lock.scope is Scope.NODE else lock.scope
    in_hand = (scope is Scope.VMA and _walks_vmas(op, walked)) or (
        scope is Scope.TABLE and walked == MarkSet.TABLES
    )
    if op in _LACKS.get(scope, ()) and not in_hand:
        what, use = _NEEDS[scope]
        return f"{lock.name} has scope {lock.scope.name.lower()}, but {name} has no {what}; {use}"
    if lock.kind is not Kind.RANGE or operand < 0:
        return ""
    at = f"@{Operand(operand).name.lower()}"
    if operand in _OF_VMA and op in _NO_VMA:
        use = "@all" if op in _NO_RANGE else "@op or @all"
        return f"{lock.name} {at}: {name} has no VMA; take {use}"
    if operand in _OF_RANGE and op in _NO_RANGE:
        return f"{lock.name} {at}: {name} has no range of addresses; take @all"
    return ""
