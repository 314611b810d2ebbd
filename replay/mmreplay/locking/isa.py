"""The assembled form of locking models: what the engine and its oracle execute.

The assembler inlines every ``call`` (programs cannot recurse), so there is no
call stack at run time; ``retry`` becomes a jump; and because each program
counter has exactly one set of held locks (that is the balance check), ``held.L``
is decided at assembly as well.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final


class Op(IntEnum):
    """Instruction set.  Operands A, B, C and TARGET by column; -1 where unused."""

    DONE = 0
    COST = 1  # A cost index, B Count
    SLEEP = 2  # A sleep index
    FLUSH = 3  # A FlushScope
    TOUCH = 4  # A line index, B 1 = write
    LOCK = 5  # A lock, B Mode, C Operand
    TRY = 6  # as LOCK; TARGET where it fails
    UNLOCK = 7  # A lock, B Mode it is held in, C Operand
    DOWNGRADE = 8  # A lock
    MARK = 9  # A pin lock whose VMA (current of EACH) is marked
    SNAP = 10  # A seq lock, TARGET when odd (-1: none)
    CHECK = 11  # A seq lock, TARGET when moved since SNAP
    BRANCH = 12  # A condition index, TARGET when it holds
    JUMP = 13  # TARGET
    EACH = 14  # A MarkSet; TARGET behind the matching END when the set is empty
    END = 15  # TARGET = first instruction of the body, while elements remain
    SET = 16  # A RuntimeBit (one)
    COUNT = 17  # A reason index
    CONTENDED = 18  # A lock; TARGET where somebody waits for it


#: Columns of the code array, ``int32[n, 6]``.
OP: Final = 0
A: Final = 1
B: Final = 2
C: Final = 3
TARGET: Final = 4
LINE: Final = 5  # line in the model file, for errors and traces


class Mode(IntEnum):
    READ = 0
    WRITE = 1


class Count(IntEnum):
    """What a cost is multiplied by: a plan column."""

    ONE = 0
    PAGES = 1
    VMAS = 2
    TABLES = 3
    PAGES_PER_VMA = 4  # an even share of the pages
    PAGES_PER_TABLE = 5


class FlushScope(IntEnum):
    NONE = 0
    MM = 1  # all CPUs that run threads of the address space
    TOUCHED = 2  # only CPUs that touched the range (RadixVM)
    TABLES = 3  # as MM, and CPUs that went idle from one of them: page tables are freed


class Operand(IntEnum):
    """Which instance or range of a lock is meant (``@R``)."""

    NONE = 0
    PAGE = 1
    OP = 2
    VMA = 3
    VMA1 = 4  # one page more on each side
    NODE = 5
    ALL = 6
    CHILD = 7  # fork: the child's address space
    TARGET = 8  # remote access: the target's address space


class Kind(IntEnum):
    """Native lock kinds."""

    RWSEM = 1
    PIN = 2
    SPIN = 3
    SEQ = 4
    RANGE = 5


class Scope(IntEnum):
    """What there is one instance per."""

    MM = 1
    VMA = 2
    TABLE = 3
    FILE = 4
    ANON_ROOT = 5
    NODE = 6
    GLOBAL = 7


class RuntimeBit(IntFlag):
    """State that threads race for, or that belongs to the running operation."""

    VMA_ANON_VMA = 1
    VMA_DEAD = 2
    TABLE_PRESENT = 4
    OP_TRIED = 8


class Form(IntEnum):
    """Parameter ``form`` of a pin lock."""

    RWSEM = 0
    REFCOUNT = 1


#: Lock parameters by column of ``LockingModel.lock_params`` (int64[locks, n]).
PARAMS: Final = (
    "reader_spin",  # rwsem: readers spin optimistically (5.10)
    "steal",  # rwsem: readers may steal in the slow path
    "osq",  # rwsem: writers spin optimistically
    "spin_us",  # rwsem: 1 = the kernel's (20 + min(readers, 30)) / 2 window; 0 none; else fixed
    "handoff_ns",  # rwsem: a waiter older than this sets HANDOFF
    "batch",  # rwsem: readers granted per wake
    "form",  # pin: Form
    "marks_by",  # pin: index of the seq lock its marks compare with; -1: no marks
    "bumps",  # index of the seq lock that a write release or downgrade moves; -1
    "bump_acquire",  # 1: the seq also moves (odd) at the write acquire
    "owner_line",  # rwsem: index of the cache line that holds the owner word; -1: not modelled
    "fifo",  # spin: ticket/queue order
    "bravo_slots",  # rwsem: readers = bravo{slots}; 0 plain
    "bravo_inhibit",  # rwsem: multiple of the revocation scan
    "round",  # range: 0 page, 1 slot, 2 pt_node
    "wait",  # range: 0 spin, 1 sleep
    "range_cost",  # range: 0 per_holder, 1 per_slot, 2 per_level
    "ancestors",  # range: 0 none, 1 read
)
