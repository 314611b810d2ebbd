"""VMAs said plainly, for the planner's twin: a sorted list of objects, no index, no speed.

Unlike :mod:`vma_twin` it knows which *object* survives a split or merge and which are
write-marked, in the kernel's order (mm/vma.c@6.18).  It believes what a trace records: a call
that succeeded did so, whatever the map held.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmreplay.address_space.plan import MarkSet
from mmreplay.address_space.rules import Rule
from mmreplay.address_space.vma_state import HOMES, Vm

PAGE = 4096
ACCESS = Vm.READ | Vm.WRITE | Vm.EXEC
MAY = Vm.MAYREAD | Vm.MAYWRITE | Vm.MAYEXEC
LOCK = Vm.LOCKED | Vm.LOCKONFAULT
NO_FLAGS = Vm(0)
OLD_MERGE = 0  # anon_merge = "singular"
ADVICE = {
    0: (Vm(0), Vm.RANDOM | Vm.SEQ),
    1: (Vm.RANDOM, Vm.SEQ),
    2: (Vm.SEQ, Vm.RANDOM),
    10: (Vm.DONTFORK, Vm(0)),
    11: (Vm(0), Vm.DONTFORK),
    14: (Vm.HUGEPAGE, Vm.NOHUGEPAGE),
    15: (Vm.NOHUGEPAGE, Vm.HUGEPAGE),
    16: (Vm.DONTDUMP, Vm(0)),
}


def up(value: int) -> int:
    return -(-value // PAGE) * PAGE


@dataclass(eq=False)
class Area:
    """One VMA object."""

    start: int
    end: int
    flags: Vm
    pgoff: int
    file: Any  # None: anonymous
    uid: int
    lock: int  # its lock object: the number of the VMA that began here before
    anon: int = 0
    inherited: bool = False  # its anon_vma came over a fork

    @property
    def private(self) -> bool:
        return Vm.SHARED not in self.flags


@dataclass
class Found:
    """What one call met and did."""

    vmas: int = 0
    first: Area | None = None
    first_bounds: tuple[int, int] = (-1, -1)
    first_flags: Vm = NO_FLAGS
    first_lock: int = 0
    splits: int = 0
    merges: int = 0
    multi: bool = False
    unchanged: bool = False
    next_down: bool = False
    overlapped: int = 0
    conflicts: int = 0
    target: Area | None = None
    populates: bool = False
    remap: str = "noop"
    marks: list[tuple[MarkSet, Area, int]] = field(default_factory=list)  # and its lock


class Map:
    """The VMAs of one address space.  ``ids`` hands out object and anon_vma numbers.

    ``swallowed``: (space, start, lock) of VMAs that a merge took, by place in the table.
    """

    def __init__(
        self, rules: Any, ids: dict[str, int], swallowed: dict[int, tuple[int, ...]], space: int
    ) -> None:
        self.rules = rules
        self.ids = ids
        self.swallowed = swallowed
        self.space = space
        self.areas: list[Area] = []
        self.brk: int | None = None
        self.found = Found()

    # -- look-ups ------------------------------------------------------------------------
    def at(self, address: int) -> Area | None:
        return next((a for a in self.areas if a.start <= address < a.end), None)

    def above(self, address: int) -> Area | None:
        """The VMA that holds the address, else the next one."""
        return next((a for a in self.areas if a.end > address), None)

    def inside(self, start: int, end: int) -> list[Area]:
        return [a for a in self.areas if a.start < end and start < a.end]

    def beside(self, area: Area, step: int) -> Area | None:
        at = self.areas.index(area) + step
        return self.areas[at] if 0 <= at < len(self.areas) else None

    def begin(self, start: int = 0, end: int = 0) -> Found:
        """A call on a range: note what is there."""
        found = self.found = Found()
        here = self.inside(start, end)
        found.vmas = len(here)
        if here:
            found.first = here[0]
            found.first_bounds = here[0].start, here[0].end
            found.first_flags = here[0].flags
            found.first_lock = here[0].lock
            found.multi = here[0].end < end
        return found

    # -- objects -------------------------------------------------------------------------
    def number(self, what: str) -> int:
        self.ids[what] = self.ids.get(what, 0) + 1
        return self.ids[what]

    def make(self, start: int, end: int, flags: Vm, pgoff: int, file: Any) -> Area:
        number = self.number("vma")
        area = Area(start, end, flags, pgoff, file, number, number)
        self.areas = sorted([*self.areas, area], key=lambda a: a.start)
        return area

    def mark(self, area: Area, role: MarkSet) -> None:
        """vma_start_write: once per call; what is removed in the end counts as removed."""
        for i, (had, marked, lock) in enumerate(self.found.marks):
            if marked is area:
                if role is MarkSet.REMOVED and had is not MarkSet.CREATED:
                    self.found.marks[i] = (role, area, lock)
                return
        self.found.marks.append((role, area, area.lock))

    def split(self, area: Area, address: int, new_below: bool) -> None:
        """The new object is the lower or the upper part."""
        self.mark(area, MarkSet.SPLITS)
        offset = (address - area.start) // PAGE
        if new_below:
            start, area.start = area.start, address
            new = self.make(start, address, area.flags, area.pgoff, area.file)
            area.pgoff += offset
            self._exchange(area, new)
        else:
            end, area.end = area.end, address
            new = self.make(address, end, area.flags, area.pgoff + offset, area.file)
        *place, lock = self.swallowed.get(self._home(address), (0, 0, 0))
        if place == [self.space, address]:
            del self.swallowed[self._home(address)]
            self._relock(area if new_below else new, lock)
        new.anon, new.inherited = area.anon, area.inherited
        self.mark(new, MarkSet.CREATED)
        self.found.splits += 1

    def _home(self, start: int) -> int:
        if start >= 1 << 40:
            area = sum(start >= bound for bound in (1 << 44, 1 << 46, 1 << 47))
            start -= self.ids.setdefault(f"origin {area}", start)
        key = (start // PAGE + (self.space << 36)) * 0x9E3779B97F4A7C15
        return (key >> 40) % HOMES

    def swallow(self, area: Area) -> None:
        """A merge takes the VMA in; should it be cut off again, it has its lock back."""
        self.swallowed[self._home(area.start)] = self.space, area.start, area.lock
        self.areas.remove(area)

    def _relock(self, area: Area, lock: int) -> None:
        """Another lock, in the call's mark too."""
        area.lock = lock
        marks = self.found.marks
        marks[:] = [(role, a, lock if a is area else had) for role, a, had in marks]

    def _exchange(self, one: Area, other: Area) -> None:
        lock = one.lock
        self._relock(one, other.lock)
        self._relock(other, lock)

    def prepare(self, area: Area) -> None:
        """The first write: a neighbour's anon_vma where the two could merge, else a new one."""
        if area.anon:
            return
        right, left = self.beside(area, 1), self.beside(area, -1)
        for low, high, other in ((area, right, right), (left, area, left)):
            if low is None or high is None or other is None:
                continue
            alike = not (low.flags ^ high.flags) & ~ACCESS and low.file == high.file
            joined = low.end == high.start and (
                low.pgoff + (low.end - low.start) // PAGE == high.pgoff
            )
            if alike and joined and other.anon and not other.inherited:
                area.anon = other.anon
                return
        area.anon, area.inherited = self.number("anon"), False

    # -- merging -------------------------------------------------------------------------
    def _anon_fits(self, into: Area, anon: int, inherited: bool) -> bool:
        if into.anon == anon:
            return True
        if into.anon and anon:
            return False
        if self.rules[Rule.ANON_MERGE] == OLD_MERGE:
            return into.anon != 0 and not into.inherited
        return not (into.inherited if into.anon else inherited)

    def _sides(
        self, left: Area | None, right: Area | None, piece: Area
    ) -> tuple[Area | None, Area | None]:
        """The neighbours that ``piece`` (flags, place and anon_vma to be) may merge with."""

        def fits(low: Area, high: Area, into: Area) -> bool:
            return (
                low.end == high.start
                and low.flags == high.flags
                and low.file == high.file
                and low.pgoff + (low.end - low.start) // PAGE == high.pgoff
                and self._anon_fits(into, piece.anon, piece.inherited)
            )

        if left is not None and not fits(left, piece, left):
            left = None
        if right is not None and not fits(piece, right, right):
            right = None
        if left and right and left.anon and right.anon and left.anon != right.anon:
            right = None
        return left, right

    @staticmethod
    def _hand_over(into: Area, source: Area) -> None:
        if not into.anon and source.anon:
            into.anon, into.inherited = source.anon, source.inherited

    def add(
        self, start: int, end: int, flags: Vm, pgoff: int, file: Any, source: Area | None = None,
        *, only_left: bool = False,
    ) -> Area | None:  # fmt: skip
        """Merge a new range into its neighbours; None: it stands alone (nothing is made)."""
        piece = Area(start, end, flags, pgoff, file, 0, 0)
        if source is not None:
            piece.anon, piece.inherited = source.anon, source.inherited
        right = self.above(start)
        below = [a for a in self.areas if a.start < start]
        left, right = self._sides(below[-1] if below else None, right, piece)
        if only_left:
            right = None
        into = left or right
        if into is None:
            return None
        self.found.merges += 1
        self.mark(into, MarkSet.NEIGHBOURS)
        if source is not None and self.rules[Rule.COPY_KEEPS_ANON_VMA]:
            self._hand_over(into, source)
        if left and right:
            self.mark(right, MarkSet.NEIGHBOURS)
            self._hand_over(into, right)
            self.swallow(right)
            into.end = right.end
        elif left:
            into.end = end
        else:
            into.start, into.pgoff = start, pgoff
        return into

    def modify(self, area: Area, start: int, end: int, flags: Vm) -> Area:
        """Other flags for a part of a VMA: merge it with neighbours, else cut it out."""
        pgoff = area.pgoff + (start - area.start) // PAGE
        piece = Area(start, end, flags, pgoff, area.file, 0, 0, area.anon, area.inherited)
        left = self.beside(area, -1) if start == area.start else None
        right = self.beside(area, 1) if end == area.end else None
        left, right = self._sides(left, right, piece)
        whole = (start, end) == (area.start, area.end)
        if left or right:
            self.found.merges += 1
            self.mark(area, MarkSet.TARGETS)
            if right:
                self.mark(right, MarkSet.NEIGHBOURS)
            if left:
                self.mark(left, MarkSet.NEIGHBOURS)
        if left and right:
            self._hand_over(left, right if right.anon else area)
            self.swallow(right)
            self.swallow(area)
            left.end = right.end
            return left
        if left:
            self._hand_over(left, area)
            if whole:
                self.swallow(area)
            else:
                area.pgoff += (end - start) // PAGE
                area.start = end
            left.end = end
            return left
        if right:
            self._hand_over(right, area)
            if whole:
                self.swallow(right)  # which begins where the other did, with its lock
                self.areas = [right if a is area else a for a in self.areas]
                right.lock = area.lock
            else:
                area.end = start
            right.start, right.pgoff = start, pgoff
            return right
        if area.start < start:
            self.split(area, start, True)
        if area.end > end:
            self.split(area, end, False)
        self.mark(area, MarkSet.TARGETS)
        area.flags = flags
        return area

    # -- calls ---------------------------------------------------------------------------
    def remove(self, start: int, end: int) -> int:
        """munmap; returns the VMAs that went."""
        here = self.inside(start, end)
        begins = {area: area.start for area in here}
        for area in here:
            if area.start < start:
                self.split(area, start, True)
            whole = area.start == begins[area]
            if area.end > end:
                self.split(area, end, False)
                rest = self.beside(area, 1)
                assert rest is not None
                if whole and rest.lock == rest.uid:
                    self._exchange(area, rest)  # what stays keeps it
            self.mark(area, MarkSet.REMOVED)
        for area in here:
            self.areas.remove(area)
        return len(here)

    def forget_guesses(self, start: int, end: int) -> None:
        """What is placed freely lies where nothing was: guessed VMAs there give way."""
        for area in self.inside(start, end):
            if Vm.UNKNOWN not in area.flags:
                continue
            low, high = area.start < start, area.end > end
            if low and high:
                rest = self.make(end, area.end, area.flags, end // PAGE, None)
                rest.anon, rest.inherited = area.anon, area.inherited
                area.end = start
            elif low:
                area.end = start
            elif high:
                area.pgoff += (end - area.start) // PAGE
                area.start = end
            else:
                self.areas.remove(area)

    def place(
        self, start: int, end: int, flags: Vm, pgoff: int, file: Any, fixed: bool
    ) -> None:  # fmt: skip
        """mmap at the recorded address."""
        if not fixed:
            self.forget_guesses(start, end)
        found = self.begin(start, end)
        found.overlapped = self.remove(start, end)
        found.conflicts = 0 if fixed else found.overlapped
        found.target = self.add(start, end, flags, pgoff, file)
        if found.target is None:
            found.target = self.make(start, end, flags, pgoff, file)
            self.mark(found.target, MarkSet.CREATED)

    def unmap(self, start: int, end: int) -> None:
        found = self.begin(start, end)
        after = self.above(end)
        found.next_down = after is not None and Vm.GROWSDOWN in after.flags
        found.unchanged = self.remove(start, end) == 0

    def change(self, start: int, end: int, flags: Any) -> None:
        """Other flags for each VMA of a range, from low to high."""
        found = self.found
        found.unchanged = True
        at = start
        while at < end:
            area = self.above(at)
            if area is None or area.start >= end:
                return
            begin, top = max(at, area.start), min(end, area.end)
            wanted = flags(area)
            if wanted != area.flags:
                found.unchanged = False
                area = self.modify(area, begin, top, wanted)
            at = max(top, area.end)

    def protect(self, start: int, end: int, access: Vm) -> None:
        self.begin(start, end)

        def flags(area: Area) -> Vm:
            wanted = (area.flags & ~ACCESS) | access
            if wanted == area.flags:
                return wanted
            if Vm.WRITE in access:
                if not area.flags & (Vm.ACCOUNT | Vm.WRITE | Vm.SHARED | Vm.NORESERVE):
                    wanted |= Vm.ACCOUNT
            elif self.rules[Rule.MPROTECT_UNACCOUNTS] and area.file is None and not area.anon:
                wanted &= ~Vm.ACCOUNT
            return wanted

        self.change(start, end, flags)

    def advise(self, start: int, end: int, advice: int) -> None:
        found = self.begin(start, end)
        found.unchanged = True
        if advice in ADVICE:
            add, drop = ADVICE[advice]
            self.change(start, end, lambda area: (area.flags & ~drop) | add)
        elif advice == 23:  # POPULATE_WRITE
            at = start
            for area in self.inside(start, end):
                if area.start > at or Vm.WRITE not in area.flags:
                    return
                if area.private:
                    self.prepare(area)
                at = area.end
        elif advice == 102:  # GUARD_INSTALL
            for area in self.inside(start, end):
                if Vm.LOCKED in area.flags:
                    return
                self.prepare(area)

    def lock(self, start: int, end: int, add: Vm) -> None:
        found = self.begin(start, end)
        self.change(start, end, lambda area: (area.flags & ~LOCK) | add)
        if add and self.above(start) is not None:
            found.populates = True
            for area in self.inside(start, end):
                if not area.flags & (ACCESS | Vm.LOCKONFAULT):
                    return
                if area.private and Vm.WRITE in area.flags:
                    self.prepare(area)

    def set_break(self, wanted: int) -> None:
        """brk that returned ``wanted``."""
        old = self.brk
        self.begin()
        self.found.unchanged = True
        self.brk = wanted
        if old is None or up(old) == up(wanted):
            return
        self.found.unchanged = False
        if wanted < old:
            unmapped = self.begin(up(wanted), up(old))
            self.remove(up(wanted), up(old))
            unmapped.unchanged = False
            return
        start, end = up(old), up(wanted)
        self.forget_guesses(start, end)
        self.found.conflicts = self.remove(start, end)
        flags = Vm.READ | Vm.WRITE | MAY | Vm.ACCOUNT
        area = self.add(start, end, flags, start // PAGE, None, only_left=True)
        if area is None:
            area = self.make(start, end, flags, start // PAGE, None)
            self.mark(area, MarkSet.CREATED)
        self.found.target = area

    def remap(self, old: int, old_len: int, new: int, new_len: int) -> None:
        """mremap(MAYMOVE) that returned ``new``; lengths are whole pages."""
        found = self.begin(old, old + old_len)
        source = self.at(old)
        if source is None:
            return
        if new == old and new_len <= old_len:
            found.unchanged = new_len == old_len
            if new_len < old_len:
                found.remap = "shrink"
                self.remove(old + new_len, old + old_len)
            return
        if old + old_len > source.end:
            return  # several VMAs: not with different lengths
        if new == old:
            found.remap = "grow"
            found.conflicts = self.remove(old + old_len, old + new_len)
            source = self.at(old)
            assert source is not None
            self.mark(source, MarkSet.TARGETS)
            pgoff = source.pgoff + (source.end - source.start) // PAGE
            found.target = self.add(
                source.end, old + new_len, source.flags, pgoff, source.file, source
            )
            return
        found.remap = "move"
        found.overlapped = self.remove(new, new + new_len)
        if old_len > new_len:
            self.remove(old + new_len, old + old_len)
            old_len = new_len
        source = self.at(old)
        assert source is not None
        self.mark(source, MarkSet.TARGETS)
        pgoff = source.pgoff + (old - source.start) // PAGE
        if source.file is None and not source.anon:
            pgoff = new // PAGE
        target = self.add(new, new + new_len, source.flags, pgoff, source.file, source)
        if target is None:
            target = self.make(new, new + new_len, source.flags, pgoff, source.file)
            target.anon, target.inherited = source.anon, source.inherited
            self.mark(target, MarkSet.CREATED)
        found.target = target
        self.remove(old, old + old_len)

    def grow_stack(self, address: int) -> Area | None:
        """The stack above an address grows to it, where the guard gap stays free."""
        address = address // PAGE * PAGE
        area = self.above(address)
        if area is None or Vm.GROWSDOWN not in area.flags or address < 65536:
            return None
        gap = int(self.rules[Rule.STACK_GUARD_PAGES]) * PAGE
        below = self.beside(area, -1)
        if below is not None and below.flags & ACCESS and address - below.end < gap:
            if Vm.GROWSDOWN not in below.flags:
                return None
        if area.end - address > 8 << 20:  # the usual RLIMIT_STACK
            return None
        self.mark(area, MarkSet.TARGETS)
        self.prepare(area)
        area.pgoff -= (area.start - address) // PAGE
        area.start = address
        return area

    def cover(self, start: int, end: int) -> None:
        """Nothing is known of a range: every hole in it becomes an unknown VMA."""
        flags = Vm.UNKNOWN | Vm.READ | Vm.WRITE | MAY
        at = start
        while at < end:
            area = self.above(at)
            if area is not None and area.start <= at:
                at = area.end
                continue
            top = end if area is None else min(end, area.start)
            below = [a for a in self.areas if a.end == at and a.flags == flags]
            if below:
                below[0].end = top
            else:
                self.make(at, top, flags, at // PAGE, None)
            at = top

    def fork(self, space: int) -> Map:
        """The child; every VMA of the parent is marked."""
        self.begin()
        child = Map(self.rules, self.ids, self.swallowed, space)
        child.brk = self.brk
        for area in self.areas:
            self.mark(area, MarkSet.PARENT_VMAS)
            if Vm.DONTFORK in area.flags:
                continue
            new = child.make(area.start, area.end, area.flags & ~LOCK, area.pgoff, area.file)
            if area.anon and Vm.WIPEONFORK not in area.flags:
                new.anon, new.inherited = self.number("anon"), True
        return child

    def clear(self) -> None:
        """exit: every VMA is marked and goes."""
        self.begin()
        for area in self.areas:
            self.mark(area, MarkSet.REMOVED)
        self.areas = []
        self.brk = None
