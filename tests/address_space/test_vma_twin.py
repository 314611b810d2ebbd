"""The compiled map equals its plain twin under every rules file; the index survives many VMAs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vma_twin import PAGE, Twin

from mmreplay.address_space import vma_map
from mmreplay.address_space.rules import Rule, load_rules, names, read_rules, rules_for
from mmreplay.address_space.vma_index import check_index
from mmreplay.address_space.vma_map import Vma, dump
from mmreplay.address_space.vma_state import NONE, Info, MapState, Num, Status, Vm, grow, new_state
from mmreplay.errors import UserError
from mmreplay.schema import OpKind

BASE = 0x100000000000
ADVICE = {
    1: (Vm.RANDOM, Vm.SEQ),
    2: (Vm.SEQ, Vm.RANDOM),
    0: (Vm(0), Vm.RANDOM | Vm.SEQ),
    10: (Vm.DONTFORK, Vm(0)),
    11: (Vm(0), Vm.DONTFORK),
    14: (Vm.HUGEPAGE, Vm.NOHUGEPAGE),
    15: (Vm.NOHUGEPAGE, Vm.HUGEPAGE),
    16: (Vm.DONTDUMP, Vm(0)),
}


class Map:
    def __init__(self, rules: Any) -> None:
        self.rules = rules
        self.state: MapState = new_state(16, 64)
        self.space = 0

    def call(self, kind: OpKind, *values: int, file: int = 0) -> int:
        """address, length, address2, length2, prot, flags, file_offset."""
        padded = (*values, *([NONE] * (7 - len(values))))
        while True:
            status = vma_map.apply(
                self.state, self.rules, self.space, int(kind), *padded, file, NONE
            )
            if status != Status.NEED_SPACE:
                return int(status)
            self.state = grow(self.state)


def shape(areas: list[Any]) -> list[tuple[Any, ...]]:
    """What must agree; anon_vma identities by first appearance."""
    seen: dict[int, int] = {0: 0}
    return [
        (a.start, a.end, a.flags, a.pgoff, a.file, seen.setdefault(a.anon, len(seen)))
        for a in areas
    ]


page = st.integers(0, 16).map(lambda n: BASE + n * PAGE)
size = st.integers(1, 6).map(lambda n: n * PAGE)
steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("mmap"),
            page,
            size,
            st.sampled_from([0, 1, 3, 3]),
            st.sampled_from([0, 0, 0x4000, 0x20000]),
            st.sampled_from([0, 0, 0, 5]),
        ),
        st.tuples(st.just("write"), page),
        st.tuples(st.just("write"), page),
        st.tuples(st.just("munmap"), page, size),
        st.tuples(st.just("mprotect"), page, size, st.sampled_from([0, 1, 3])),
        st.tuples(st.just("madvise"), page, size, st.sampled_from(sorted(ADVICE))),
        st.just(("fork",)),
    ),
    min_size=1,
    max_size=25,
)


@pytest.mark.parametrize("name", names())
@settings(max_examples=100, deadline=None)
@given(steps)
def test_map_equals_its_twin(name: str, sequence: list[tuple[Any, ...]]) -> None:
    rules = load_rules(name).vector
    m = Map(rules)
    twin = Twin(
        singular=rules[Rule.ANON_MERGE] == 0,
        unaccounts=rules[Rule.MPROTECT_UNACCOUNTS] == 1,
        stack_nohuge=rules[Rule.STACK_NOHUGEPAGE] == 1,
    )
    for step in sequence:
        word, args = step[0], step[1:]
        if word == "mmap":
            start, length, prot, extra, file = args
            flags = (2 if file else 0x22) | 0x10 | extra
            offset = start - BASE
            m.call(OpKind.MMAP, NONE, length, start, NONE, prot, flags, offset, file=file)
            bits = Vm(0)
            bits |= Vm.READ if prot & 1 else Vm(0)
            bits |= Vm.WRITE if prot & 2 else Vm(0)
            bits |= Vm.NORESERVE if extra == 0x4000 else Vm(0)
            twin.mmap(start, start + length, bits, offset // PAGE, file, extra == 0x20000)
        elif word == "write":
            vma_map.fault(m.state, rules, m.space, args[0], 1, 0)
            twin.write(args[0])
        elif word == "munmap":
            m.call(OpKind.MUNMAP, *args)
            twin.munmap(args[0], args[0] + args[1])
        elif word == "mprotect":
            m.call(OpKind.MPROTECT, args[0], args[1], NONE, NONE, args[2])
            bits = [Vm(0), Vm.READ, Vm(0), Vm.READ | Vm.WRITE][args[2]]
            twin.mprotect(args[0], args[0] + args[1], bits)
        elif word == "madvise":
            m.call(OpKind.MADVISE, args[0], args[1], NONE, NONE, NONE, args[2])
            twin.advise(args[0], args[0] + args[1], *ADVICE[args[2]])
        elif m.space < 15:
            m.call(OpKind.FORK, NONE, NONE, m.space + 1)
            m.space += 1
            twin.fork()
        assert shape(dump(m.state, m.space)) == shape(twin.areas), step
    check_index(m.state)


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_index_holds_many_vmas(random: Any) -> None:
    m = Map(load_rules("linux-6.18").vector)
    present: set[int] = set()
    for _ in range(600):
        place = random.randrange(400)
        start = BASE + 2 * place * PAGE
        if place in present and random.random() < 0.5:
            m.call(OpKind.MUNMAP, start, PAGE)
            present.discard(place)
        else:
            m.call(OpKind.MMAP, NONE, PAGE, start, NONE, 3, 0x32)
            present.add(place)
    assert [v.start for v in dump(m.state, 0)] == [BASE + 2 * p * PAGE for p in sorted(present)]
    check_index(m.state)
    for place in random.sample(range(400), 50):
        slot = vma_map.lookup(m.state, 0, BASE + 2 * place * PAGE + 5)
        assert (slot >= 0) == (place in present)


def test_search_places_from_the_top_and_aligns_by_the_rules() -> None:
    two_mib = 1 << 21
    for name, lengths in (
        ("linux-6.1", []),
        ("linux-6.7", [two_mib, two_mib + PAGE]),
        ("linux-6.12", [two_mib]),
        ("linux-6.18", [two_mib]),
    ):
        m = Map(load_rules(name).vector)
        m.call(OpKind.MMAP, NONE, PAGE, 0, NONE, 0, 0x22)  # not on a 2 MiB boundary
        first = dump(m.state, 0)[0].start
        for length in (two_mib, two_mib + PAGE):
            got = vma_map.search(m.state, m.rules, 0, length, 0x22, 0, 0)
            assert got + length <= first
            if length in lengths:
                assert got % two_mib == 0
            else:
                assert got + length == first
        gap = vma_map.search(m.state, m.rules, 0, PAGE, 0x22, 0, 0)
        assert gap == first - PAGE


def test_unknown_addresses_are_covered_and_counted() -> None:
    m = Map(load_rules("linux-6.18").vector)
    m.call(OpKind.MMAP, NONE, PAGE, BASE + PAGE, NONE, 3, 0x32)
    assert vma_map.fault(m.state, m.rules, 0, BASE, 1, 0) == Status.FAILED
    assert m.state.info[Info.HOLE] == 1
    assert vma_map.cover(m.state, m.rules, 0, BASE, BASE + 4 * PAGE) == Status.OK
    found: list[Vma] = dump(m.state, 0)
    assert [(v.start - BASE) // PAGE for v in found] == [0, 1, 2]
    assert [Vm.UNKNOWN in v.flags for v in found] == [True, False, True]
    assert m.state.numbers[Num.UNKNOWN_VMAS] == 2
    assert m.state.numbers[Num.UNKNOWN_PAGES] == 3
    assert vma_map.fault(m.state, m.rules, 0, BASE, 1, 0) == Status.OK


def test_the_recorded_result_places_the_mapping_and_a_failed_call_changes_nothing() -> None:
    m = Map(load_rules("linux-6.18").vector)
    args = (NONE, PAGE, 0, NONE, 3, 0x22, NONE, 0)
    vma_map.apply(m.state, m.rules, 0, int(OpKind.MMAP), *args, BASE)
    assert dump(m.state, 0)[0].start == BASE
    status = vma_map.apply(m.state, m.rules, 0, int(OpKind.MMAP), *args, -12)
    assert status == Status.FAILED
    assert len(dump(m.state, 0)) == 1
    args = (BASE, PAGE, NONE, NONE, 1, NONE, NONE, 0)
    vma_map.apply(m.state, m.rules, 0, int(OpKind.MPROTECT), *args, -13)
    assert dump(m.state, 0)[0].perms == "rw-p"


def test_rules_of_a_release_are_the_newest_that_began_before_it() -> None:
    assert names() == ["linux-6.1", "linux-6.7", "linux-6.12", "linux-6.18"]
    assert rules_for("6.8.12-300.x86_64").name == "linux-6.7"
    assert rules_for("6.18.44").name == "linux-6.18"
    assert rules_for("5.15.0-204").name == "linux-6.1"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("anon_merge", "anon_merg", 'did you mean "anon_merge"'),
        ('"uncowed_parents"', '"uncowed_parent"', 'did you mean "uncowed_parents"'),
        ("summary", "sumary", 'did you mean "summary"'),
        ("stack_guard_pages = { value = 256,", "stack_guard_pages = { value = -1,", "-1"),
    ],
)
def test_mistakes_in_a_rules_file_are_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = Path(__file__).parents[2].joinpath("models/vma/linux-6.18.toml").read_text()
    assert old in text
    file = tmp_path / "mine.toml"
    file.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=r"mine\.toml") as caught:
        read_rules(file)
    assert words in caught.value.line()
