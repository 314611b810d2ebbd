"""Which VMAs an operation write-marks, against counts of ``__vma_start_write`` on 6.16 to 7.3.

Each case performs one phase of the counting program (1000 operations of a kind on a fixed layout)
on the map; the expected number is what kernels 6.16.3, 6.17.8, 6.18.15, 6.19.14, 7.0.13 and 7.3.4
counted for that phase: they agree in all of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from mmreplay.address_space.plan import MarkSet
from mmreplay.address_space.rules import load_rules
from mmreplay.address_space.vma_index import check_index
from mmreplay.address_space.vma_map import apply, dump, fault
from mmreplay.address_space.vma_state import NONE, Info, MapState, Num, Status, grow, new_state
from mmreplay.schema import OpKind, UffdOp

PAGE = 4096
BASE = 0x7F0000000000
N = 1000
ARGUMENTS = (
    "address",
    "length",
    "address2",
    "length2",
    "prot",
    "flags",
    "file_offset",
    "file_id",
    "result",
)
R, RW = 1, 3
ANON, FIXED, NORESERVE, POPULATE = 0x22, 0x10, 0x4000, 0x8000


class Program:
    """Calls on one address space; counts marks between ``begin`` and the end."""

    def __init__(self, rules: str = "linux-6.18") -> None:
        self.rules = load_rules(rules).vector
        self.state: MapState = new_state(2, 256)
        self.marks: Counter[MarkSet] = Counter()

    def __call__(self, kind: OpKind, **args: int) -> int:
        values = [args.get(name, 0 if name == "file_id" else NONE) for name in ARGUMENTS]
        while True:
            status = apply(self.state, self.rules, 0, int(kind), *values)
            if status != Status.NEED_SPACE:
                break
            self.state = grow(self.state)
        assert status == Status.OK
        self._count()
        return int(self.state.info[Info.ADDRESS])

    def _count(self) -> None:
        effects = int(self.state.info[Info.EFFECTS])
        ids = self.state.effect_uid[:effects].tolist()
        assert len(set(ids)) == len(ids), "a VMA is marked once per operation"
        for role in self.state.effect_role[:effects].tolist():
            self.marks[MarkSet(role)] += 1

    def touch(self, address: int) -> None:
        assert fault(self.state, self.rules, 0, address, 1, 0) == Status.OK
        self._count()

    def begin(self) -> None:
        self.marks.clear()

    def mmap(self, length: int, prot: int = RW, flags: int = ANON, **more: int) -> int:
        more.setdefault("address2", 0)
        return self(OpKind.MMAP, length=length, prot=prot, flags=flags, **more)

    def reserve(self, pages: int) -> int:
        return self.mmap(pages * PAGE, 0, ANON | NORESERVE)

    def isolated(self, pages: int) -> int:
        around = self.reserve(pages + 32)
        return self.mmap(pages * PAGE, flags=ANON | FIXED, address2=around + 16 * PAGE)


def munmap_1000vmas_touched_each(p: Program) -> None:
    base = p.reserve(3 * N + 2)
    for i in range(N):
        p.mmap(2 * PAGE, flags=ANON | FIXED, address2=base + (3 * i + 1) * PAGE)
        p.touch(base + (3 * i + 1) * PAGE)
    p.begin()
    for i in range(N):
        p(OpKind.MUNMAP, address=base + (3 * i + 1) * PAGE, length=2 * PAGE)


def mmap_map_populate_1page(p: Program) -> None:
    base = p.reserve(2 * N + 2)
    p.begin()
    for i in range(N):
        p.mmap(PAGE, flags=ANON | FIXED | POPULATE, address2=base + (2 * i + 1) * PAGE)


def _before_merge(p: Program) -> None:
    p.reserve(4)
    p.mmap(PAGE, R)


def mmap_anon_merge(p: Program) -> None:
    _before_merge(p)
    p.begin()
    for _ in range(N):
        p.mmap(PAGE)


def munmap_shrink_edge_untouched(p: Program) -> None:
    _before_merge(p)
    got = [p.mmap(PAGE) for _ in range(N)]
    p.begin()
    for address in reversed(got):
        p(OpKind.MUNMAP, address=address, length=PAGE)


def mmap_anon_nomerge(p: Program) -> None:
    _before_merge(p)
    p.begin()
    for i in range(N):
        p.mmap(PAGE, RW if i & 1 else R)


def munmap_whole_untouched(p: Program) -> None:
    _before_merge(p)
    got = [p.mmap(PAGE, RW if i & 1 else R) for i in range(N)]
    p.begin()
    for address in got:
        p(OpKind.MUNMAP, address=address, length=PAGE)


def mmap_file_priv(p: Program) -> None:
    p.begin()
    for i in range(N):
        p.mmap(PAGE, R, 2, file_id=7, file_offset=(8 if i & 1 else 0) * PAGE)


def munmap_file_priv(p: Program) -> None:
    got = [p.mmap(PAGE, R, 2, file_id=7, file_offset=(8 if i & 1 else 0) * PAGE) for i in range(N)]
    p.begin()
    for address in got:
        p(OpKind.MUNMAP, address=address, length=PAGE)


def munmap_middle_split_untouched(p: Program) -> None:
    base = p.isolated(2 * N + 1)
    p.begin()
    for i in range(N):
        p(OpKind.MUNMAP, address=base + (2 * i + 1) * PAGE, length=PAGE)


def mprotect_noop(p: Program) -> None:
    base = p.isolated(8)
    p.begin()
    for _ in range(N):
        p(OpKind.MPROTECT, address=base, length=8 * PAGE, prot=RW)


def mprotect_whole_toggle(p: Program) -> None:
    base = p.isolated(8)
    p.begin()
    for i in range(N):
        p(OpKind.MPROTECT, address=base, length=8 * PAGE, prot=RW if i & 1 else R)


def mprotect_middle_split(p: Program) -> None:
    base = p.isolated(2 * N + 1)
    p.begin()
    for i in range(N):
        p(OpKind.MPROTECT, address=base + (2 * i + 1) * PAGE, length=PAGE, prot=R)


def _toggle(p: Program, on: int, off: int) -> None:
    base = p.isolated(N + 1)
    p.begin()
    for i in range(N):
        p(OpKind.MADVISE, address=base, length=(N + 1) * PAGE, flags=off if i & 1 else on)


def madv_hugepage_toggle_whole(p: Program) -> None:
    _toggle(p, 14, 15)


def madv_random_toggle(p: Program) -> None:
    _toggle(p, 1, 0)


def madv_mergeable_toggle(p: Program) -> None:
    _toggle(p, 12, 13)


def madv_hugepage_noop(p: Program) -> None:
    base = p.isolated(N + 1)
    p(OpKind.MADVISE, address=base, length=(N + 1) * PAGE, flags=15)
    p.begin()
    for _ in range(N):
        p(OpKind.MADVISE, address=base, length=(N + 1) * PAGE, flags=15)


def madv_dontfork_split(p: Program) -> None:
    base = p.isolated(N + 1)
    p.begin()
    for i in range(N // 2 - 1):
        p(OpKind.MADVISE, address=base + (2 * i + 1) * PAGE, length=PAGE, flags=10)


def _heap(p: Program) -> int:
    heap = 0x500000
    p(OpKind.BRK, address2=heap, result=heap)
    p(OpKind.BRK, address2=heap + PAGE)
    return heap + PAGE


def brk_query(p: Program) -> None:
    _heap(p)
    p.begin()
    for _ in range(N):
        p(OpKind.BRK, address2=0)


def brk_grow(p: Program) -> None:
    heap = _heap(p)
    p.begin()
    for i in range(N):
        p(OpKind.BRK, address2=heap + (i + 1) * PAGE)


def _growing(p: Program) -> int:
    base = p.reserve(N + 64) + 16 * PAGE
    p(OpKind.MUNMAP, address=base, length=(N + 16) * PAGE)
    p.mmap(PAGE, flags=ANON | FIXED, address2=base)
    p.touch(base)
    return base


def _remap(p: Program, base: int, old: int, new: int) -> None:
    p(OpKind.MREMAP, address=base, length2=old * PAGE, length=new * PAGE, flags=0, address2=0)


def mremap_grow_inplace(p: Program) -> None:
    base = _growing(p)
    p.begin()
    for i in range(1, N + 1):
        _remap(p, base, i, i + 1)


def mremap_shrink_touched(p: Program) -> None:
    base = _growing(p)
    for i in range(1, N + 1):
        _remap(p, base, i, i + 1)
    p.begin()
    for i in range(N, 0, -1):
        _remap(p, base, i + 1, i)


def mremap_noop(p: Program) -> None:
    base = _growing(p)
    p.begin()
    for _ in range(N):
        _remap(p, base, 1, 1)


def growsdown_vma_write(p: Program) -> None:
    base = p.reserve(N + 600)
    p(OpKind.MUNMAP, address=base + PAGE, length=(N + 500) * PAGE)
    stack = p.mmap(PAGE, flags=ANON | FIXED | 0x100, address2=base + (N + 400) * PAGE)
    p.touch(stack)
    p.begin()
    for i in range(1, 101):
        p.touch(stack - i * PAGE)


def uffd_register_whole(p: Program) -> None:
    base = p.isolated(N + 1)
    p.begin()
    p(OpKind.UFFD, address=base, length=(N + 1) * PAGE, flags=int(UffdOp.REGISTER))


def uffd_unregister_whole(p: Program) -> None:
    base = p.isolated(N + 1)
    p(OpKind.UFFD, address=base, length=(N + 1) * PAGE, flags=int(UffdOp.REGISTER))
    p.begin()
    p(OpKind.UFFD, address=base, length=(N + 1) * PAGE, flags=int(UffdOp.UNREGISTER))


def mbind_toggle_whole(p: Program) -> None:
    base = p.isolated(8)
    p.begin()
    for _ in range(N):
        p(OpKind.MBIND, address=base, length=8 * PAGE)


COUNTED: dict[Callable[[Program], None], int] = {
    munmap_1000vmas_touched_each: 1000,
    mmap_map_populate_1page: 4000,
    mmap_anon_merge: 1000,
    munmap_shrink_edge_untouched: 1999,
    mmap_anon_nomerge: 1000,
    munmap_whole_untouched: 1001,
    mmap_file_priv: 1000,
    munmap_file_priv: 1000,
    munmap_middle_split_untouched: 3000,
    mprotect_noop: 0,
    mprotect_whole_toggle: 1000,
    mprotect_middle_split: 3000,
    madv_hugepage_toggle_whole: 1000,
    madv_hugepage_noop: 0,
    madv_random_toggle: 1000,
    madv_mergeable_toggle: 1000,
    madv_dontfork_split: 1497,
    brk_query: 0,
    brk_grow: 1000,
    mremap_grow_inplace: 1000,
    mremap_shrink_touched: 2000,
    mremap_noop: 0,
    growsdown_vma_write: 100,
    uffd_register_whole: 1,
    uffd_unregister_whole: 1,
    mbind_toggle_whole: 1000,
}


@pytest.mark.parametrize("phase", COUNTED, ids=lambda phase: phase.__name__)
def test_marks_equal_the_counted_ones(phase: Callable[[Program], None]) -> None:
    program = Program()
    phase(program)
    assert program.marks.total() == COUNTED[phase]
    assert program.state.numbers[Num.EFFECTS_LOST] == 0
    check_index(program.state)


def test_a_merge_names_its_neighbours() -> None:
    p = Program()
    left = p.mmap(PAGE, flags=ANON | FIXED, address2=BASE)
    p.mmap(PAGE, flags=ANON | FIXED, address2=BASE + 2 * PAGE)
    p.begin()
    p.mmap(PAGE, flags=ANON | FIXED, address2=left + PAGE)
    assert p.marks == {MarkSet.NEIGHBOURS: 2}
    assert len(dump(p.state, 0)) == 1


def test_the_vma_that_is_cut_out_is_removed_and_the_rest_is_new() -> None:
    p = Program()
    p.mmap(3 * PAGE, flags=ANON | FIXED, address2=BASE)
    before = dump(p.state, 0)[0].uid
    p.begin()
    p(OpKind.MUNMAP, address=BASE + PAGE, length=PAGE)
    assert p.marks == {MarkSet.REMOVED: 1, MarkSet.CREATED: 2}
    assert before not in [vma.uid for vma in dump(p.state, 0)]


def test_fork_marks_the_parents_vmas_in_address_order() -> None:
    p = Program()
    for i in (4, 0, 2):
        p.mmap(PAGE, flags=ANON | FIXED, address2=BASE + i * PAGE)
    p(OpKind.MADVISE, address=BASE + 2 * PAGE, length=PAGE, flags=10)
    parents = [vma.uid for vma in dump(p.state, 0)]
    p.begin()
    p(OpKind.FORK, address2=1)
    assert p.state.effect_uid[:3].tolist() == parents
    assert p.marks == {MarkSet.PARENT_VMAS: 3}
    assert [vma.start for vma in dump(p.state, 1)] == [BASE, BASE + 4 * PAGE]
    assert not set(parents) & {vma.uid for vma in dump(p.state, 1)}
