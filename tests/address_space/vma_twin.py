"""The rules of the VMA map said plainly: a sorted list of VMAs, no index, no speed.

An oracle for the compiled map under every rules file, also those of kernels that do not run here.
It cuts first and merges afterwards, unlike the map (and the kernel), which try to merge first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mmreplay.address_space.vma_state import Vm

PAGE = 4096
ACCESS = Vm.READ | Vm.WRITE | Vm.EXEC
MAY = Vm.MAYREAD | Vm.MAYWRITE | Vm.MAYEXEC
LOCK = Vm.LOCKED | Vm.LOCKONFAULT


@dataclass
class Area:
    start: int
    end: int
    flags: Vm
    pgoff: int
    file: int
    anon: int = 0
    inherited: bool = False  # its anon_vma chain reaches over a fork


class Twin:
    def __init__(self, *, singular: bool, unaccounts: bool, stack_nohuge: bool) -> None:
        self.singular = singular
        self.unaccounts = unaccounts
        self.stack_nohuge = stack_nohuge
        self.areas: list[Area] = []
        self.anons = 0

    # -- helpers -----------------------------------------------------------------------
    def _cut(self, address: int) -> None:
        for i, area in enumerate(self.areas):
            if area.start < address < area.end:
                upper = replace(
                    area, start=address, pgoff=area.pgoff + (address - area.start) // PAGE
                )
                area.end = address
                self.areas.insert(i + 1, upper)
                return

    def _inside(self, start: int, end: int) -> list[Area]:
        return [a for a in self.areas if a.start < end and start < a.end]

    def _continuous(self, low: Area, high: Area) -> bool:
        return (
            low.end == high.start
            and low.file == high.file
            and low.pgoff + (low.end - low.start) // PAGE == high.pgoff
        )

    def _anon_fits(self, neighbour: Area, piece: Area) -> bool:
        if neighbour.anon == piece.anon:
            return True
        if neighbour.anon and piece.anon:
            return False
        if self.singular:
            return neighbour.anon != 0 and not neighbour.inherited
        return not (neighbour if neighbour.anon else piece).inherited

    def _merge(self, piece: Area) -> Area:
        """Join a piece with its neighbours where the rules allow; left wins over right."""
        at = next(i for i, a in enumerate(self.areas) if a is piece)
        left = self.areas[at - 1] if at else None
        right = self.areas[at + 1] if at + 1 < len(self.areas) else None

        def fits(low: Area, high: Area, neighbour: Area) -> bool:
            same = low.flags == high.flags and Vm.SPECIAL not in low.flags
            return same and self._continuous(low, high) and self._anon_fits(neighbour, piece)

        if left is not None and not fits(left, piece, left):
            left = None
        if right is not None and not fits(piece, right, right):
            right = None
        if left is not None and right is not None and left.anon and right.anon:
            right = right if left.anon == right.anon else None
        joined = [a for a in (left, piece, right) if a is not None]
        keeper = next((a for a in (left, right, piece) if a is not None and a.anon), joined[0])
        whole = replace(joined[0], end=joined[-1].end, anon=keeper.anon, inherited=keeper.inherited)
        first = next(i for i, a in enumerate(self.areas) if a is joined[0])
        self.areas[first : first + len(joined)] = [whole]
        return whole

    def _change(self, start: int, end: int, flags: Callable[[Area], Vm]) -> None:
        """Other flags for the part of each VMA inside the range, from low to high."""
        at = start
        while at < end:
            area = next((a for a in self.areas if a.end > at), None)
            if area is None or area.start >= end:
                return
            begin, top = max(at, area.start), min(end, area.end)
            wanted = flags(area)
            if wanted != area.flags:
                self._cut(begin)
                self._cut(top)
                area = next(a for a in self.areas if a.start == begin)
                area.flags = wanted
                top = max(top, self._merge(area).end)
            at = top

    def _prepare(self, area: Area) -> None:
        if area.anon:
            return
        at = next(i for i, a in enumerate(self.areas) if a is area)
        right = self.areas[at + 1] if at + 1 < len(self.areas) else None
        left = self.areas[at - 1] if at else None
        for low, high, other in ((area, right, right), (left, area, left)):
            if low is None or high is None or other is None:
                continue
            alike = not (low.flags ^ high.flags) & ~ACCESS
            if alike and self._continuous(low, high) and other.anon and not other.inherited:
                area.anon = other.anon
                return
        self.anons += 1
        area.anon = self.anons

    # -- operations ---------------------------------------------------------------------
    def munmap(self, start: int, end: int) -> None:
        self._cut(start)
        self._cut(end)
        self.areas = [a for a in self.areas if not (start <= a.start < end)]

    def mmap(self, start: int, end: int, flags: Vm, pgoff: int, file: int, stack: bool) -> None:
        self.munmap(start, end)
        flags |= MAY
        if stack and self.stack_nohuge:
            flags |= Vm.NOHUGEPAGE
        if flags & (Vm.NORESERVE | Vm.SHARED | Vm.WRITE) == Vm.WRITE:
            flags |= Vm.ACCOUNT
        area = Area(start, end, flags, pgoff if file else start // PAGE, file)
        self.areas = sorted([*self.areas, area], key=lambda a: a.start)
        self._merge(area)

    def mprotect(self, start: int, end: int, access: Vm) -> None:
        def flags(area: Area) -> Vm:
            wanted = (area.flags & ~ACCESS) | access
            if wanted == area.flags:
                return wanted
            if Vm.WRITE in access:
                fixed = Vm.ACCOUNT | Vm.WRITE | Vm.SHARED | Vm.NORESERVE
                if not area.flags & fixed:
                    wanted |= Vm.ACCOUNT
            elif self.unaccounts and not area.file and not area.anon:
                wanted &= ~Vm.ACCOUNT
            return wanted

        at = start
        while at < end:  # up to the first hole
            area = next((a for a in self.areas if a.start <= at < a.end), None)
            if area is None:
                break
            at = area.end
        self._change(start, min(at, end), flags)

    def advise(self, start: int, end: int, add: Vm, drop: Vm) -> None:
        self._change(start, end, lambda area: (area.flags & ~drop) | add)

    def write(self, address: int) -> None:
        for area in self.areas:
            if area.start <= address < area.end:
                if Vm.WRITE in area.flags and Vm.SHARED not in area.flags:
                    self._prepare(area)
                return

    def fork(self) -> None:
        """Go on as the child."""
        kept = [a for a in self.areas if Vm.DONTFORK not in a.flags]
        for area in kept:
            if area.anon and Vm.WIPEONFORK not in area.flags:
                self.anons += 1
                area.anon, area.inherited = self.anons, True
            else:
                area.anon, area.inherited = 0, False
        self.areas = kept
