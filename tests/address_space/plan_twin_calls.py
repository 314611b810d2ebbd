"""The planner's twin, second part: calls that change the map, and processes."""

from __future__ import annotations

from typing import Any

from plan_twin import (
    ANON,
    AROUND,
    BEFORE,
    CACHE,
    COW,
    DIRTY,
    PROCESS,
    TABLE,
    ZERO,
    Faults,
    Op,
    Space,
    Table,
)
from plan_twin_map import ACCESS, MAY, PAGE, up

from mmreplay.address_space.plan import PlanOp, Trait
from mmreplay.address_space.rules import Rule
from mmreplay.address_space.vma_state import Vm
from mmreplay.schema import OpKind

EVERYWHERE = (1 << 35) - 1  # last page of 47-bit user addresses
MAP_SHARED, MAP_FIXED, MAP_ANONYMOUS, MAP_POPULATE, MAP_STACK = 1, 0x10, 0x20, 0x8000, 0x20000
ADVICE_OPS = {
    **dict.fromkeys((4, 8, 24), PlanOp.MADVISE_ZAP),
    **dict.fromkeys((9, 20, 21), PlanOp.MADVISE_READ),
    3: PlanOp.MADVISE_WILLNEED,
    **dict.fromkeys((22, 23), PlanOp.MADVISE_POPULATE),
}
MADV_FREE = 8
ZAPS = (4, 24, 9, 21)  # advice that unmaps pages at once
REMAPS = {
    "noop": PlanOp.MREMAP_NOOP,
    "shrink": PlanOp.MREMAP_SHRINK,
    "grow": PlanOp.MREMAP_GROW,
    "move": PlanOp.MREMAP_MOVE,
}


class PlanTwin(Faults):
    """See :class:`plan_twin.Faults`."""

    # -- calls -------------------------------------------------------------------------------
    def _call(self, row: dict[str, Any], space: Space, op: Op, here: int) -> None:
        kind, flags = OpKind(row["kind"]), row["flags"] or 0
        if kind is not OpKind.BRK and kind is not OpKind.MMAP and not row["length"]:
            return  # nothing to do: returns before the lock
        start = row["result"] if kind is OpKind.MMAP else row["address"]
        start = start if start is not None else 0
        end = start + up(row["length"] or 0)
        op.first_page, op.last_page = start // PAGE, max(end // PAGE, start // PAGE + 1) - 1
        vmas = space.map
        if kind is OpKind.MMAP:
            op.op = PlanOp.MMAP
            self._mmap(row, space, op, here, start, end)
        elif kind is OpKind.MUNMAP:
            op.op = PlanOp.MUNMAP
            vmas.unmap(start, end)
            self._describe(op, space, target=False, changed=vmas.found.vmas > 0)
            self._unmapped(space, op, op.first_page, op.last_page)
        elif kind is OpKind.MPROTECT:
            op.op = PlanOp.MPROTECT
            several = vmas.inside(start, end)
            if several and several[0].end < end:
                op.rewritten = sum(
                    bool(space.present(max(a.start, start) // PAGE, min(a.end, end) // PAGE - 1))
                    for a in several
                    if a.flags & ACCESS != Vm(row["prot"])
                )
            vmas.protect(start, end, Vm(row["prot"]))
            self._describe(op, space, target=False, changed=False)
            self._range_waits(space, op, op.first_page, op.last_page, False)
            self._count_pages(space, op)
            if not vmas.found.unchanged:
                space.assign(op.first_page, op.last_page + 1, here)
        elif kind is OpKind.MADVISE:
            op.op = ADVICE_OPS.get(flags, PlanOp.MADVISE_FLAGS)
            self._madvise(space, op, start, end, flags)
        elif kind in (OpKind.MLOCK, OpKind.MUNLOCK):
            op.op = PlanOp.MLOCK if kind is OpKind.MLOCK else PlanOp.MUNLOCK
            vmas.lock(start, end, Vm.LOCKED if kind is OpKind.MLOCK else Vm(0))
            self._describe(op, space, target=False, changed=False)
            if vmas.found.populates:
                op.traits |= Trait.POPULATE
                self._fill(space, op, op.first_page, op.last_page, True)
                self._list_tables(space, op, op.first_page, op.last_page)
                if op.pages:
                    op.traits |= Trait.PAGES_PRESENT
            else:
                self._count_pages(space, op)
        elif kind is OpKind.BRK:
            self._brk(row, space, op, here)
        elif kind is OpKind.MREMAP:
            self._mremap(row, space, op, here)
        else:
            raise AssertionError(kind)
        self._finish_marks(op, space)

    def _describe(self, op: Op, space: Space, *, target: bool, changed: bool) -> None:
        found = space.map.found
        if found.splits:
            op.traits |= Trait.SPLITS
        if found.merges:
            op.traits |= Trait.MERGES
            if found.vmas == 1 and not target and not changed:
                low, high = found.first_bounds
                if low < op.first_page * PAGE or high > (op.last_page + 1) * PAGE:
                    op.traits |= Trait.SPLITS
        if (found.splits or found.merges or changed) and not found.unchanged:
            op.traits |= Trait.STRUCTURAL
        if found.multi:
            op.traits |= Trait.MULTI_VMA
        if found.unchanged:
            op.traits |= Trait.NO_CHANGE
        if found.next_down:
            op.traits |= Trait.NEXT_GROWSDOWN
        op.vmas = found.vmas
        if target:
            area = found.target
            if area is not None:
                op.traits |= self._kind_of(area.flags, area.file)
                self._set_vma(op, area)
                op.bit = self._bit(op.mm, area) if area.private else None
        elif found.first is not None:
            op.traits |= self._kind_of(found.first_flags, found.first.file)
            op.vma, op.file = found.first_lock, found.first.file
            low, high = found.first_bounds
            op.bounds = low // PAGE, high // PAGE - 1
        else:
            op.traits |= Trait.HOLE

    def _count_pages(self, space: Space, op: Op) -> None:
        op.pages = space.present(op.first_page, op.last_page)
        self._list_tables(space, op, op.first_page, op.last_page)
        if op.pages:
            op.traits |= Trait.PAGES_PRESENT

    @staticmethod
    def _list_tables(space: Space, op: Op, first: int, last: int) -> None:
        tables = [space.tables[region] for region in space.regions(first, last)]
        op.tables = len(tables)
        if tables:
            op.table, *op.listed = tables

    def _fill(self, space: Space, op: Op, first: int, last: int, write: bool) -> None:
        """Populate what is mapped and absent; pays for the first table that it makes."""
        filled = 0
        for area in space.map.inside(first * PAGE, (last + 1) * PAGE):
            if not area.flags & ACCESS:
                continue
            writes = write and Vm.WRITE in area.flags
            if area.file is None:
                state = ANON if writes else ZERO
            elif area.private:
                state = ANON if writes else CACHE
            else:
                state = DIRTY if writes else CACHE
            low, high = max(first, area.start // PAGE), min(last, area.end // PAGE - 1)
            around = not writes and area.file is not None and area.file[0] != "shmem"
            for page in range(low, high + 1):
                if page // TABLE not in space.tables:
                    table = space.tables[page // TABLE] = Table(initial=True)
                    pays = op.op in (PlanOp.MADVISE_POPULATE, PlanOp.MMAP)
                    if pays and op.table is None and not self.before:
                        table.initial = False
                        table.seen.add(op.thread)
                        op.table = table
                        op.traits |= Trait.TABLE_MISSING
                if page not in space.pages:
                    begin, end = page, page + 1
                    if around:
                        begin = max(page // AROUND * AROUND, area.start // PAGE)
                        end = min((page // AROUND + 1) * AROUND, area.end // PAGE)
                    for other in range(begin, end):
                        if other not in space.pages:
                            space.pages[other] = state
                            filled += 1
                elif writes and area.private and space.pages[page] in (ZERO, CACHE):
                    space.pages[page] = state
                    filled += 1
                    op.traits |= Trait.COW
        op.pages, op.tables = filled, last // TABLE - first // TABLE + 1

    def _unmapped(self, space: Space, op: Op, first: int, last: int) -> None:
        self._range_waits(space, op, first, last, True)
        self._list_tables(space, op, first, last)
        op.pages = space.zap(first, last)
        freed = self._release(space, first, last)
        space.clear(first, last + 1)
        if op.pages:
            op.traits |= Trait.PAGES_PRESENT
        if freed:
            op.traits |= Trait.FREES_TABLES

    def _release(self, space: Space, first: int, last: int) -> int:
        """Free the tables that this call left without a VMA."""
        space.zap(first, last)
        space.forget_uses(first, last)
        above = space.map.above((last + 1) * PAGE)
        ceiling = above.start // PAGE if above is not None else 1 << 45
        below = [a.end // PAGE for a in space.map.areas if a.end <= (last + 1) * PAGE]
        floor = max(below, default=0)
        return space.free_tables(
            max(floor, first // TABLE * TABLE), min(ceiling, (last // TABLE + 1) * TABLE)
        )

    def _mmap(
        self, row: dict[str, Any], space: Space, op: Op, here: int, start: int, end: int
    ) -> None:
        flags, prot = row["flags"], row["prot"]
        bits = Vm(prot) | MAY
        if flags & MAP_STACK and self.rules[Rule.STACK_NOHUGEPAGE]:
            bits |= Vm.NOHUGEPAGE
        if flags & MAP_SHARED:
            bits |= Vm.SHARED | Vm.MAYSHARE
        elif prot & 2:
            bits |= Vm.ACCOUNT
        pgoff, file = start // PAGE, None
        if not flags & MAP_ANONYMOUS:
            pgoff, file = (row["file_offset"] or 0) // PAGE, ("file", op.mm, row["fd"])
        elif flags & MAP_SHARED:
            pgoff, file = 0, ("shmem", space.map.number("shmem"))
        space.map.place(start, end, bits, pgoff, file, bool(flags & MAP_FIXED))
        found = space.map.found
        assert found.target is not None
        if flags & MAP_POPULATE:
            for area in space.map.inside(start, end):
                if area.private and Vm.WRITE in area.flags:
                    space.map.prepare(area)
        self.counts["map_conflicts"] += found.conflicts
        self._describe(op, space, target=True, changed=True)
        if found.overlapped:
            op.traits |= Trait.OVERLAPS
        self._range_waits(space, op, op.first_page, op.last_page, True)
        if found.overlapped:
            self._list_tables(space, op, op.first_page, op.last_page)
        zapped = space.zap(op.first_page, op.last_page)
        space.forget_uses(op.first_page, op.last_page)
        if zapped and not found.overlapped:
            self.counts["stale_pages"] += zapped
            zapped = 0
        op.pages = zapped
        if zapped:
            op.traits |= Trait.PAGES_PRESENT
        if found.overlapped and space.free_tables(op.first_page, op.last_page + 1):
            op.traits |= Trait.FREES_TABLES
        space.assign(op.first_page, op.last_page + 1, here)
        if flags & MAP_POPULATE:
            op.traits |= Trait.POPULATE
            writes = Vm.WRITE in found.target.flags
            self._fill(space, op, op.first_page, op.last_page, writes)
            if writes:
                op.traits |= Trait.WRITE

    def _madvise(self, space: Space, op: Op, start: int, end: int, advice: int) -> None:
        first, last = op.first_page, op.last_page
        area = space.map.above(start)
        populates = op.op is PlanOp.MADVISE_POPULATE or advice == 102  # guards need one, too
        bit = self._bit(op.mm, area) if populates and area is not None and area.private else None
        space.map.advise(start, end, advice)
        if bit is not None and area is not None and area.anon and not bit.set:
            self._first_write(op.mm, area, bit)
        self._describe(op, space, target=False, changed=False)
        op.traits &= ~Trait.NO_CHANGE
        area = space.map.above(start)
        if space.map.found.vmas and area is not None and area.private:
            op.bit = self._bit(op.mm, area)
        self._range_waits(space, op, first, last, False)
        if op.op is PlanOp.MADVISE_POPULATE:
            op.traits |= Trait.POPULATE | (Trait.WRITE if advice == 23 else Trait(0))
            self._fill(space, op, first, last, advice == 23)
            if not op.pages:
                op.traits |= Trait.NO_CHANGE
            return
        if op.op is PlanOp.MADVISE_WILLNEED:
            kinds = [self._kind_of(a.flags, a.file) for a in space.map.inside(start, end)[1:]]
            op.again = sum(Trait.FILE in kind for kind in kinds)
        if advice == MADV_FREE:
            op.traits |= Trait.LAZY_FREE
        if advice in ZAPS:
            self._list_tables(space, op, first, last)
            op.pages = space.zap(first, last)
            if op.pages:
                op.traits |= Trait.PAGES_PRESENT
        else:
            self._count_pages(space, op)
            if op.op not in (PlanOp.MADVISE_ZAP, PlanOp.MADVISE_READ):
                op.table, op.listed = None, []

    def _brk(self, row: dict[str, Any], space: Space, op: Op, here: int) -> None:
        before, now = space.map.brk, row["result"]
        space.map.set_break(now)
        if before is None:
            self.counts["brk_unknown"] += 1
            before = now
        low, high = up(before) // PAGE, up(now) // PAGE
        found = space.map.found
        if high > low:
            op.op, op.first_page, op.last_page = PlanOp.BRK_GROW, low, high - 1
            self._describe(op, space, target=True, changed=True)
            space.assign(low, high, here)
        elif high < low:
            op.op, op.first_page, op.last_page = PlanOp.BRK_SHRINK, high, low - 1
            self._describe(op, space, target=False, changed=True)
            self._unmapped(space, op, high, low - 1)
        else:
            op.op, op.first_page, op.last_page = PlanOp.BRK_QUERY, high - 1, high - 1
            op.traits |= Trait.NO_CHANGE
        self.counts["map_conflicts"] += found.conflicts

    def _mremap(self, row: dict[str, Any], space: Space, op: Op, here: int) -> None:
        old, old_len = row["address"], up(row["length2"])
        new, new_len = row["result"], up(row["length"])
        space.map.remap(old, old_len, new, new_len)
        found = space.map.found
        op.op = REMAPS[found.remap]
        self._describe(op, space, target=False, changed=found.remap != "noop")
        first, last = old // PAGE, (old + old_len) // PAGE - 1
        there, there_last = new // PAGE, (new + new_len) // PAGE - 1
        op.first_page, op.last_page = first, last
        self.counts["map_conflicts"] += found.conflicts
        if found.remap == "shrink":
            self._unmapped(space, op, (old + new_len) // PAGE, last)
        elif found.remap == "grow":
            op.last_page = (old + new_len) // PAGE - 1
            space.assign(last + 1, op.last_page + 1, here)
        elif found.remap == "move":
            self._range_waits(space, op, first, last, True)
            self._range_waits(space, op, there, there_last, True)
            if space.zap(there, there_last):
                op.traits |= Trait.OVERLAPS
            space.forget_uses(there, there_last)
            self._list_tables(space, op, first, first + max(min(old_len, new_len) // PAGE, 1) - 1)
            op.pages = self._move(space, first, there, min(old_len, new_len) // PAGE)
            if op.pages:
                op.traits |= Trait.PAGES_PRESENT
            if self._release(space, first, last):
                op.traits |= Trait.FREES_TABLES
            space.clear(first, last + 1)
            space.assign(there, there_last + 1, here)

    @staticmethod
    def _move(space: Space, first: int, there: int, pages: int) -> int:
        moved = 0
        order = {r: k for k, r in enumerate(space.regions(first, first + pages - 1))}
        known = [p for p in range(first, first + pages) if p // TABLE in order]
        for page in sorted(known, key=lambda p: (order[p // TABLE], p)):
            to = there + page - first
            if page in space.pages or page in space.used:
                space.tables.setdefault(to // TABLE, Table(initial=True))
            if page in space.pages:
                space.pages[to] = space.pages.pop(page)
                moved += 1
            if page in space.used:
                space.used[to] = max(space.used[page], space.used.get(to, -1))
        return moved

    # -- processes ---------------------------------------------------------------------------
    def _process(self, row: dict[str, Any], space: Space, op: Op, here: int) -> None:
        kind = OpKind(row["kind"])
        assert kind in PROCESS
        child = self.thread_of.get(row["child"], -1) if row["child"] is not None else -1
        if kind in (OpKind.CLONE, OpKind.FORK, OpKind.VFORK):
            if kind is OpKind.FORK:
                self._fork(space, op, child)
            elif kind is OpKind.VFORK:
                op.traits |= Trait.SHARES_MM
                if child >= 0:
                    self.vfork_parent[child] = op.thread
            if child >= 0 and here != BEFORE:
                self.waits[child] = here
            return
        if kind is OpKind.THREAD_START:
            op.op = PlanOp.THREAD_START
            return
        parent = self.vfork_parent.pop(op.thread, None)
        if parent is not None:  # a vfork child gives the address space back
            op.op = PlanOp.VFORK_EXIT
            if kind is OpKind.EXEC:
                op.traits |= Trait.SHARES_MM
            if here != BEFORE:
                self.waits[parent] = here
        elif kind is OpKind.EXEC:
            op.op = PlanOp.EXEC
            if self.home[op.thread] == op.mm and space.users <= 1:
                space.ending = True
                op.vmas, op.tables = len(space.map.areas), len(space.tables)
                op.pages = len(space.pages)
                op.traits |= Trait.LAST_USER
                if op.pages:
                    op.traits |= Trait.PAGES_PRESENT
                self._wait_for_all(op, op.mm)
        elif kind is OpKind.THREAD_EXIT:
            op.op = PlanOp.THREAD_EXIT
            if space.users <= 1:
                op.traits |= Trait.LAST_USER
        else:
            op.op, op.last_page = PlanOp.PROCESS_EXIT, EVERYWHERE
            op.vmas, op.pages, op.tables = (
                len(space.map.areas), len(space.pages), len(space.tables),
            )  # fmt: skip
            space.map.clear()
            self._finish_marks(op, space)
            self._wait_for_all(op, op.mm)
            space.pages, space.tables, space.used, space.made = {}, {}, {}, {}
            space.old = False
            op.traits |= Trait.LAST_USER
            if op.pages:
                op.traits |= Trait.PAGES_PRESENT

    def _fork(self, space: Space, op: Op, child: int) -> None:
        op.op, op.last_page = PlanOp.FORK, EVERYWHERE
        op.vmas = len(space.map.areas)
        number = self.space_of[child] if child >= 0 else -1
        op.child_mm = number
        if number < 0 or number == op.mm:
            return
        new = self.space(number)
        if new.map.areas or new.tables:
            self.counts["fork_into_used_space"] += 1
            return
        new.map = space.map.fork(number)
        self._finish_marks(op, space)
        for page, state in space.pages.items():
            if state == ANON:
                space.pages[page] = state = COW
            op.pages += state == COW
            new.pages[page] = state
        mapped = {page // TABLE for page in space.pages}
        for region in [r for r in reversed(list(space.tables)) if r in mapped]:
            new.tables[region] = Table(True, everyone=True, huge=space.tables[region].huge)
        op.tables = len(new.tables)
        new.partner, space.partner = space, new
        new.old = space.old
        if op.pages:
            op.traits |= Trait.PAGES_PRESENT
