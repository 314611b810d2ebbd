"""The planner said plainly: dictionaries of pages, no chunks, no speed.

An oracle for ``planner.build_plan`` and the documentation of what a plan says.  It takes the rows
of a trace as dictionaries and yields one :class:`Op` per planned row.  Left out: clones of thread
groups, userfaultfd, hugetlb, System V memory, mlockall and /proc readers (directed tests).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from plan_twin_map import ACCESS, MAY, PAGE, Area, Map

from mmreplay.address_space.plan import MarkSet, PlanOp, Trait
from mmreplay.address_space.vma_state import Vm
from mmreplay.schema import DurationKind, FaultBits, FaultClass, OpKind

TABLE = 512  # pages that one page-table page maps
AROUND = 16  # pages that fault-around maps
ZERO, CACHE, ANON, COW, DIRTY = "zero", "cache", "anon", "cow", "dirty"
MAKERS = (OpKind.MMAP, OpKind.MREMAP, OpKind.BRK)
PROCESS = (
    OpKind.CLONE, OpKind.FORK, OpKind.VFORK, OpKind.EXEC, OpKind.THREAD_START,
    OpKind.THREAD_EXIT, OpKind.PROCESS_EXIT,
)  # fmt: skip
NOTHING = Trait(0)
BEFORE = -2  # made before the window: by no operation of the plan


@dataclass(eq=False)
class Bit:
    """Has this VMA an anon_vma?  A bit that threads race for."""

    set: bool
    initial: bool


@dataclass(eq=False)
class Table:
    """One life of a page-table page."""

    initial: bool
    seen: set[int] = field(default_factory=set)  # threads that faulted in it
    everyone: bool = False  # no thread can find it missing
    huge: bool = False


@dataclass
class Op:
    """One planned operation."""

    row: int
    thread: int
    mm: int
    op: PlanOp = PlanOp.NONE
    traits: Trait = NOTHING
    child_mm: int = -1
    first_page: int = 0
    last_page: int = 0
    pages: int = 0
    vmas: int = 0
    tables: int = 0
    vma: int | None = None  # object number
    bounds: tuple[int, int] = (-1, -1)
    bit: Bit | None = None
    table: Table | None = None
    listed: list[Table] = field(default_factory=list)  # further tables
    rewritten: int = 0
    again: int = 0  # further VMAs for which the call takes the lock anew
    file: Any = None
    marks: list[tuple[MarkSet, Any]] = field(default_factory=list)
    deps: list[int] = field(default_factory=list)  # positions in ``ops``


class Space:
    """One address space."""

    def __init__(self, map_: Map) -> None:
        self.map = map_
        self.pages: dict[int, str] = {}
        self.used: dict[int, int] = {}  # page: the last fault in it
        self.tables: dict[int, Table] = {}
        self.made: dict[int, int] = {}  # page: the call that last made it usable
        self.users = 0
        self.old = False
        self.ending = False
        self.partner: Space | None = None

    def regions(self, first: int, last: int) -> list[int]:
        """By address, or where there are fewer of them than places: the newest first."""
        low, high = first // TABLE, last // TABLE
        found = [r for r in self.tables if low <= r <= high]
        return sorted(found) if high - low < len(self.tables) else found[::-1]

    def present(self, first: int, last: int) -> int:
        return sum(first <= p <= last for p in self.pages)

    def zap(self, first: int, last: int) -> int:
        gone = [p for p in self.pages if first <= p <= last]
        for region in self.regions(first, last):
            if any(p // TABLE == region for p in self.pages):
                self.tables[region].huge = False
        for page in gone:
            del self.pages[page]
        return len(gone)

    def forget_uses(self, first: int, last: int) -> None:
        self.used = {p: op for p, op in self.used.items() if not first <= p <= last}

    def free_tables(self, floor: int, ceiling: int) -> int:
        """Tables wholly inside pages ``floor`` to ``ceiling`` (exclusive)."""
        freed = [r for r in self.tables if floor <= r * TABLE and (r + 1) * TABLE <= ceiling]
        for region in freed:
            del self.tables[region]
            self.pages = {p: s for p, s in self.pages.items() if p // TABLE != region}
            self.used = {p: o for p, o in self.used.items() if p // TABLE != region}
        return len(freed)

    def assign(self, first: int, end: int, op: int) -> None:
        for page in range(first, end):
            self.made[page] = op

    def clear(self, first: int, end: int) -> None:
        self.made = {p: op for p, op in self.made.items() if not first <= p < end}


class Faults(ABC):
    """Threads, waits and faults; :mod:`plan_twin_calls` adds the calls.

    Plans ``rows`` (as of the operations table) of ``threads`` (the table's rows).

    ``huge``: -1 never, 0 madvise, 1 always.
    """

    def __init__(
        self,
        rows: list[dict[str, Any]],
        threads: list[dict[str, Any]],
        vmas: list[dict[str, Any]],
        rules: Any,
        window: tuple[int, int],
        huge: int = 0,
    ) -> None:
        self.rules, self.huge = rules, huge
        self.ids: dict[str, int] = {}
        self.swallowed: dict[int, tuple[int, ...]] = {}
        self.spaces: dict[int, Space] = {}
        self.thread_of = {t["tid"]: i for i, t in enumerate(threads)}
        self.space_of = {i: t["address_space"] for i, t in enumerate(threads)}
        self.home: dict[int, int | None] = dict.fromkeys(range(len(threads)))
        self.alive: set[int] = set()
        self.waits: dict[int, int] = {}  # thread: operation that its next one waits for
        self.last: dict[int, int] = {}
        self.vfork_parent: dict[int, int] = {}
        self.known: dict[tuple[int, int], int] = {}
        self.bits: dict[int, Bit] = {}  # by VMA object
        self.identities: dict[tuple[int, int], Bit] = {}  # by (space, anon_vma)
        self.ops: list[Op] = []
        self.before = False  # the row comes before the window
        self.counts: Counter[str] = Counter()
        for learnt in vmas:
            self._learn(learnt)
        for _, what, at in self._in_order_of_effect(rows, threads):
            if what == 0:
                self._begins(at)
            elif what == 2:
                self._ends(at)
            else:
                self.before = at < window[0]
                self._plan(rows[at], at, window[0] <= at < window[1])

    @staticmethod
    def _in_order_of_effect(
        rows: list[dict[str, Any]], threads: list[dict[str, Any]]
    ) -> list[tuple[int, int, int]]:
        """(time, 0 begin of a thread | 1 operation | 2 end of one, index)."""
        events = [(t["start_ns"] or -1, 0, i) for i, t in enumerate(threads)]
        events += [(t["end_ns"], 2, i) for i, t in enumerate(threads) if t["end_ns"] is not None]
        for i, row in enumerate(rows):
            at = row["begin_ns"]
            if row["kind"] in MAKERS and row["duration_kind"] == DurationKind.MEASURED:
                at += row["duration_ns"]
            events.append((at, 1, i))
        return sorted(events)

    def space(self, number: int) -> Space:
        return self.spaces.setdefault(number, self._new_space(number))

    def _new_space(self, number: int) -> Space:
        return Space(Map(self.rules, self.ids, self.swallowed, number))

    def number_of(self, space: Space) -> int:
        return next(n for n, s in self.spaces.items() if s is space)

    # -- threads ---------------------------------------------------------------------------
    def _begins(self, thread: int) -> None:
        if thread in self.alive:
            return
        self.alive.add(thread)
        home = self.home[thread]
        if home is None:
            home = self.home[thread] = self.space_of[thread]
        self.space(home).users += 1

    def _ends(self, thread: int) -> None:
        if thread in self.alive:
            self.alive.discard(thread)
            home = self.home[thread]
            assert home is not None
            self.space(home).users -= 1

    def _enter(self, thread: int, number: int) -> None:
        """Where the thread is seen, there it runs; nobody is left behind after its exec."""
        home = self.home[thread]
        if home == number:
            return
        if thread in self.alive:
            if home is not None:
                old = self.space(home)
                old.users -= 1
                if old.users <= 0 and old.ending:
                    new = self._new_space(home)
                    new.users, new.partner = old.users, old.partner
                    self.spaces[home] = new
                    for other in self.spaces.values():  # share no pages with it any more
                        if other.partner is old:
                            other.partner = new
            self.space(number).users += 1
        self.home[thread] = number

    # -- what was there --------------------------------------------------------------------
    def _learn(self, row: dict[str, Any]) -> None:
        """A mapping listed at the start."""
        space = self.space(row["address_space"])
        start, end = row["start"], row["start"] + row["length"]
        flags = MAY | Vm(row["prot"])
        private = not row["flags"] & 1
        if private and row["prot"] & 2:
            flags |= Vm.ACCOUNT
        if not private:
            flags |= Vm.SHARED | Vm.MAYSHARE
        if row["name"].startswith("[stack"):
            flags |= Vm.GROWSDOWN
        area = space.map.make(start, end, flags, start // PAGE, None)
        if private and row["prot"] & 2:
            space.map.prepare(area)
        if row["name"] == "[heap]":
            space.map.brk = end
        space.old = True

    # -- waits -----------------------------------------------------------------------------
    def _wait(self, op: Op, maker: int) -> None:
        """``op`` starts after ``maker``, unless program order or an earlier wait says so."""
        if maker < 0 or self.ops[maker].thread == op.thread:
            return
        pair = op.thread, self.ops[maker].thread
        if self.known.get(pair, -1) < maker:
            self.known[pair] = maker
            op.deps.append(maker)

    def _wait_for_newest(self, op: Op, makers: list[int]) -> None:
        """Of each thread only the newest counts."""
        newest: dict[int, int] = {}
        for maker in makers:
            if maker >= 0 and self.ops[maker].thread != op.thread:
                thread = self.ops[maker].thread
                newest[thread] = max(newest.get(thread, -1), maker)
        for maker in newest.values():
            self._wait(op, maker)

    def _range_waits(self, space: Space, op: Op, first: int, last: int, users: bool) -> None:
        """For the calls that made the range and, where it goes away, for its users."""
        makers = [o for p, o in space.made.items() if first <= p <= last]
        if users:
            makers += [o for p, o in space.used.items() if first <= p <= last]
        self._wait_for_newest(op, makers)

    def _wait_for_all(self, op: Op, number: int) -> None:
        for thread, home in self.home.items():
            if thread != op.thread and home == number:
                self._wait(op, self.last.get(thread, -1))

    # -- anon_vma bits -----------------------------------------------------------------------
    def _bit(self, number: int, area: Area) -> Bit:
        """Shared by what a split cuts once an anon_vma is there."""
        mine = self.bits.get(area.uid)
        if mine is not None and (not area.anon or mine.set):
            return mine
        if area.anon:
            key = number, area.anon
            mine = self.identities.setdefault(key, Bit(True, True))
        else:
            mine = Bit(False, False)
        self.bits[area.uid] = mine
        return mine

    def _first_write(self, number: int, area: Area, bit: Bit) -> None:
        if area.anon and not any(anon == area.anon for _, anon in self.identities):
            self.identities[number, area.anon] = bit
        bit.set = True
        bit.initial |= self.before

    # -- one row -----------------------------------------------------------------------------
    def _plan(self, row: dict[str, Any], at: int, inside: bool) -> None:
        thread, number = self.thread_of[row["tid"]], row["address_space"]
        kind = row["kind"]
        if kind != OpKind.EXEC:
            self._enter(thread, number)
        op = Op(at, thread, number)
        here = len(self.ops) if inside else BEFORE
        if inside and thread in self.waits:
            self._wait(op, self.waits[thread])
        space = self.space(number)
        if kind in (OpKind.FAULT_USER, OpKind.FAULT_KERNEL):
            self._fault(row, space, op, inside, here)
        elif kind in PROCESS:
            self._process(row, space, op, here)
        else:
            self._call(row, space, op, here)
        if self.space(op.mm).users <= 1:
            op.traits |= Trait.SINGLE_THREADED
        if inside:
            self.ops.append(op)
            self.waits.pop(thread, None)
            self.last[thread] = here
        else:  # what is not planned waits for nobody, and has not waited
            for maker in op.deps:
                self.known.pop((thread, self.ops[maker].thread), None)

    def _finish_marks(self, op: Op, space: Space) -> None:
        by_set = sorted(space.map.found.marks, key=lambda entry: entry[0])
        op.marks = [(role, lock) for role, _, lock in by_set]
        op.marks += [(MarkSet.TARGETS, ("nobody's", op.mm))] * op.again
        op.marks += [(MarkSet.TABLES, table) for table in op.listed]
        op.marks += [(MarkSet.REWRITTEN, op.vma)] * op.rewritten

    def _set_vma(self, op: Op, area: Area) -> None:
        op.vma, op.file = area.lock, area.file
        op.bounds = area.start // PAGE, area.end // PAGE - 1

    @staticmethod
    def _kind_of(flags: Vm, file: Any) -> Trait:
        traits = Trait(0)
        if Vm.SHARED in flags:
            traits |= Trait.SHARED
        if file is None:
            traits |= Trait.SHMEM if Vm.SHARED in flags else Trait.ANON
        else:
            traits |= Trait.SHMEM if file[0] == "shmem" else Trait.FILE
        for flag, trait in (
            (Vm.LOCKED, Trait.LOCKED), (Vm.UNKNOWN, Trait.UNKNOWN_VMA),
            (Vm.GROWSDOWN, Trait.GROWSDOWN),
        ):  # fmt: skip
            if flag in flags:
                traits |= trait
        return traits

    @abstractmethod
    def _process(self, row: dict[str, Any], space: Space, op: Op, here: int) -> None:
        """An operation on a whole process; see ``plan_twin_calls.py``."""

    @abstractmethod
    def _call(self, row: dict[str, Any], space: Space, op: Op, here: int) -> None:
        """An operation that is no fault; see ``plan_twin_calls.py``."""

    # -- faults --------------------------------------------------------------------------------
    def _fault(self, row: dict[str, Any], space: Space, op: Op, inside: bool, here: int) -> None:
        op.op, op.vmas, op.pages = PlanOp.FAULT, 1, 1
        address, outcome = row["address"], row["fault_class"]
        known = row["fault_bits"] is not None
        bits = FaultBits(row["fault_bits"] or 0)
        write, execute = FaultBits.WRITE in bits, FaultBits.INSTRUCTION in bits
        kernel = row["kind"] == OpKind.FAULT_KERNEL
        op.traits = Trait.KERNEL_MODE if kernel else Trait(0)
        page = op.first_page = op.last_page = address // PAGE
        area = space.map.at(address)
        failed = outcome == FaultClass.FAILED
        if area is None and failed:
            beyond = space.map.above(address)
            if beyond is not None and Vm.GROWSDOWN in beyond.flags:
                op.traits |= Trait.GROWSDOWN  # a stack that could not grow so far
            op.traits |= Trait.HOLE | Trait.FAILED | (Trait.WRITE if write else Trait(0))
            op.pages = op.vmas = 0
            return
        if area is None:
            space.map.begin()
            area = space.map.grow_stack(address)
            if area is not None:
                op.traits |= Trait.STACK_GROWTH | Trait.STRUCTURAL
                self._finish_marks(op, space)
            else:
                low = address // (TABLE * PAGE) * (TABLE * PAGE)
                space.map.cover(low, low + TABLE * PAGE)
                self.counts["unknown_faults"] += 1
                area = space.map.at(address)
        assert area is not None
        state = space.pages.get(page)
        if not known:  # the page and the VMA decide
            anonymous = area.file is None and area.private
            write = Vm.WRITE in area.flags and (anonymous or state in (ZERO, CACHE, COW))
        unknown = Vm.UNKNOWN in area.flags
        if write:
            allowed = unknown or Vm.WRITE in area.flags
        elif execute:
            allowed = unknown or Vm.EXEC in area.flags
        else:
            allowed = unknown or bool(area.flags & ACCESS)
        if write:
            op.traits |= Trait.WRITE
        if failed and allowed:
            op.pages = 0
            op.traits |= Trait.FAILED
            if kernel:  # page faults were disabled: no lock
                op.op, op.vmas = PlanOp.NONE, 0
                return
            self._set_vma(op, area)
            op.bit = self._bit(op.mm, area) if area.private else None
            op.traits |= self._kind_of(area.flags, area.file)
            self._wait(op, space.made.get(page, -1))
            return
        bit = self._bit(op.mm, area) if area.private else None
        if write and allowed and area.private:
            space.map.prepare(area)
        op.traits |= self._kind_of(area.flags, area.file)
        self._set_vma(op, area)
        op.bit = bit
        if not allowed and outcome not in (FaultClass.MINOR, FaultClass.MAJOR):
            op.traits |= Trait.ACCESS_ERROR
            op.pages = 0
            return
        maker = space.made.get(page, -1)
        self._wait(op, maker)
        if bit is not None and write:
            op.traits |= Trait.NEEDS_ANON_VMA
            if not bit.set:
                self._first_write(op.mm, area, bit)
        self._touch_page(space, op, area, page, inside, here, maker, known, bits, write, outcome)

    def _touch_page(
        self, space: Space, op: Op, area: Area, page: int, inside: bool, here: int, maker: int,
        known: bool, bits: FaultBits, write: bool, outcome: int,
    ) -> None:  # fmt: skip
        old = maker == -1 and space.old
        region = page // TABLE
        made = region not in space.tables
        table = space.tables.setdefault(region, Table(initial=self.before or old))
        op.table, op.tables = table, 1
        low, high = region * TABLE, (region + 1) * TABLE
        if table.huge and known and FaultBits.PRESENT not in bits:  # it was none after all
            self.counts["huge_contradicted"] += 1
            for p in range(low, high):
                if p not in space.used:
                    space.pages.pop(p, None)
            table.huge = False
        wanted = Vm.HUGEPAGE in area.flags or (self.huge > 0 and Vm.NOHUGEPAGE not in area.flags)
        major = outcome == FaultClass.MAJOR
        if (
            made and not old and not major and self.huge >= 0 and wanted
            and Trait.ANON in op.traits and Trait.UNKNOWN_VMA not in op.traits
            and area.start // PAGE <= low and area.end // PAGE >= high
        ):  # fmt: skip
            for p in range(low, high):
                space.pages[p] = ANON if write else ZERO
            table.huge = table.everyone = True
            self.counts["huge_guessed"] += 1
            op.pages = TABLE if write else 1
            op.traits |= Trait.HUGE | (Trait(0) if write else Trait.ZERO_PAGE)
            if inside:
                space.used[page] = here
            return
        if not table.initial and not table.everyone and op.thread not in table.seen:
            op.traits |= Trait.TABLE_MISSING
        table.seen.add(op.thread)
        if inside:
            space.used[page] = here
        state = space.pages.get(page)
        present = FaultBits.PRESENT in bits
        if not known:
            present = write and state in (ZERO, CACHE, COW)
        if present and state is None:
            self.counts["present_learnt"] += 1
            state = COW if Trait.ANON in op.traits else CACHE
        elif not present and state is not None:
            self.counts["absent_unexpected"] += 1
            state = None
        if major:
            op.traits |= Trait.NEEDS_IO
        if present:
            op.traits |= Trait.PRESENT
            state = self._protected(space, op, area, page, state, write)
        else:
            state = self._absent(space, op, area, page, write, major)
        if state is not None:
            space.pages[page] = state

    def _protected(
        self, space: Space, op: Op, area: Area, page: int, state: str | None, write: bool
    ) -> str | None:
        """A fault on a page that is mapped: write protection, or spurious."""
        if not write:
            op.pages = 0
            return state
        if not area.private:
            op.traits |= Trait.REUSE
            if Trait.FILE in op.traits:
                op.traits |= Trait.MKWRITE
            return DIRTY
        relative = space.partner
        shared = state == COW and (relative is None or relative.pages.get(page) == COW)
        op.traits |= Trait.COW if state in (ZERO, CACHE) or shared else Trait.REUSE
        return ANON

    def _absent(
        self, space: Space, op: Op, area: Area, page: int, write: bool, major: bool
    ) -> str:  # fmt: skip
        backed = bool(op.traits & (Trait.FILE | Trait.SHMEM))
        own = area.file is None or area.file[0] == "shmem"
        relative = space.partner
        first = own and (relative is None or page not in relative.pages)
        if write and area.private:
            if backed:
                op.traits |= Trait.COW
            elif major:
                op.traits |= Trait.SWAP
            return ANON
        if write:
            if Trait.FILE in op.traits:
                op.traits |= Trait.MKWRITE
            elif first:
                op.traits |= Trait.FIRST_IN_FILE
            return DIRTY
        if backed:
            if Trait.SHMEM in op.traits and first:
                op.traits |= Trait.FIRST_IN_FILE
            elif not major:
                op.traits |= Trait.FAULT_AROUND
                low = max(page // AROUND * AROUND, area.start // PAGE, page // TABLE * TABLE)
                high = min((page // AROUND + 1) * AROUND, area.end // PAGE)
                missing = [p for p in range(low, high) if p not in space.pages or p == page]
                for p in missing:
                    space.pages[p] = CACHE
                op.pages = max(len(missing), 1)
            return CACHE
        if major:
            op.traits |= Trait.SWAP
            return ANON
        op.traits |= Trait.ZERO_PAGE
        return ZERO
