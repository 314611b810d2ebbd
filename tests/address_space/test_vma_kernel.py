"""The VMA map against the running kernel: same calls, same VMAs, same flags, same errors."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmreplay.address_space.rules import Rule, rules_for
from mmreplay.address_space.vma_index import check_index
from mmreplay.address_space.vma_map import apply, dump, fault
from mmreplay.address_space.vma_state import NONE, Info, MapState, Vm, grow, new_state
from mmreplay.schema import OpKind

EXECUTOR = Path(__file__).with_name("kernel_executor.py")
ARENA = 0x100000000000
PAGE = 4096
PAGES = 4096
EXAMPLES = int(os.environ.get("MMREPLAY_KERNEL_EXAMPLES", "150"))

#: VmFlags of smaps (fs/proc/task_mmu.c:show_smap_vma_flags); what is missing is not compared.
VM_FLAGS = {
    "rd": Vm.READ,
    "wr": Vm.WRITE,
    "ex": Vm.EXEC,
    "sh": Vm.SHARED,
    "mr": Vm.MAYREAD,
    "mw": Vm.MAYWRITE,
    "me": Vm.MAYEXEC,
    "ms": Vm.MAYSHARE,
    "gd": Vm.GROWSDOWN,
    "lo": Vm.LOCKED,
    "lf": Vm.LOCKONFAULT,
    "hg": Vm.HUGEPAGE,
    "nh": Vm.NOHUGEPAGE,
    "dc": Vm.DONTFORK,
    "dd": Vm.DONTDUMP,
    "wf": Vm.WIPEONFORK,
    "mg": Vm.MERGEABLE,
    "rr": Vm.RANDOM,
    "sr": Vm.SEQ,
    "nr": Vm.NORESERVE,
    "ac": Vm.ACCOUNT,
    "sl": Vm.SEALED,
    "ht": Vm.HUGETLB,
}
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
COMPARED = sum(VM_FLAGS.values(), Vm(0))


@pytest.fixture(scope="module")
def kernel() -> Any:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("needs Linux on x86-64")
    with subprocess.Popen(
        [sys.executable, str(EXECUTOR)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def run_for_real(process: Any, operations: list[list[Any]], every: bool) -> Any:
    process.stdin.write(json.dumps({"operations": operations, "every": every}) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


class Replay:
    """The same operations on the map."""

    def __init__(self) -> None:
        rules = rules_for(platform.release())
        self.rules = rules.vector
        self.state: MapState = new_state(8, 64)
        self.space = 0
        self.spaces = 1

    def call(self, kind: OpKind, **args: int) -> int:
        values = [args.get(name, 0 if name == "file_id" else NONE) for name in ARGUMENTS]
        while apply(self.state, self.rules, self.space, int(kind), *values) == 1:
            self.state = grow(self.state)
        return int(self.state.info[Info.ERROR])

    def step(self, operation: list[Any], result: int) -> int:
        name, args = operation[0], operation[1:]
        if name == "mmap":
            return self.call(
                OpKind.MMAP,
                address2=args[0],
                length=args[1],
                prot=args[2],
                flags=args[3],
                file_id=args[4],
                file_offset=args[5],
            )
        if name in ("write", "read"):
            fault(self.state, self.rules, self.space, args[0], int(name == "write"), 0)
            return int(self.state.info[Info.ERROR])
        if name == "fork":
            self.call(OpKind.FORK, address2=self.spaces)
            if args[0] == 1:
                self.space = self.spaces
            self.spaces += 1
            return 0
        if name == "mremap":
            return self.call(
                OpKind.MREMAP,
                address=args[0],
                length2=args[1],
                length=args[2],
                flags=args[3],
                address2=args[4],
                result=result if result >= 0 else NONE,
            )
        if name in ("mlockall", "munlockall"):
            return self.call(OpKind[name.upper()], flags=args[0] if args else NONE)
        if name == "mprotect":
            return self.call(OpKind.MPROTECT, address=args[0], length=args[1], prot=args[2])
        if name == "mlock2":
            return self.call(OpKind.MLOCK, address=args[0], length=args[1], flags=args[2])
        kind = OpKind[name.upper()]
        flags = args[2] if name == "madvise" else NONE
        return self.call(kind, address=args[0], length=args[1], flags=flags)

    def arena(self) -> list[tuple[Any, ...]]:
        found = []
        for vma in dump(self.state, self.space):
            if ARENA <= vma.start < ARENA + PAGES * PAGE:
                offset = vma.pgoff * PAGE if vma.file else 0
                found.append(
                    (vma.start, vma.end, vma.perms, offset, vma.file, vma.flags & COMPARED)
                )
        return _renamed(found)


def _renamed(vmas: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """File identities by first appearance; addresses in pages of the arena."""
    names: dict[int, int] = {0: 0}
    out = []
    for start, end, perms, offset, file, flags in vmas:
        file = names.setdefault(file, len(names))
        out.append(((start - ARENA) // PAGE, (end - ARENA) // PAGE, perms, offset, file, Vm(flags)))
    return out


def kernel_arena(report: list[Any]) -> list[tuple[Any, ...]]:
    found = []
    for start, end, perms, offset, inode, words in report:
        flags = Vm(0)
        for word in words:
            flags |= VM_FLAGS.get(word, Vm(0))
        found.append((start, end, perms, offset if inode else 0, inode, flags))
    return _renamed(found)


def check(process: Any, operations: list[list[Any]], every: bool = True) -> None:
    answers = run_for_real(process, operations, every)
    assert answers is not None, "the executor's child died"
    replay = Replay()
    for operation, (result, report) in zip(operations, answers, strict=True):
        error = replay.step(operation, result)
        assert error == (-result if result < 0 else 0), f"{operation}: kernel {result}"
        if report is not None:
            assert replay.arena() == kernel_arena(report), operation
    check_index(replay.state)


def at(page: int) -> int:
    return ARENA + page * PAGE


page = st.integers(0, 20)
count = st.integers(1, 8)
prot = st.sampled_from([0, 1, 3, 3, 3, 5])
_KINDS = [0x22, 0x22, 0x22, 0x21, 0x02, 0x01]


@st.composite
def mappings(draw: Any) -> list[Any]:
    flags = draw(st.sampled_from(_KINDS))
    file = 0 if flags & 0x20 else draw(st.integers(1, 2))
    start = draw(page)
    # A file offset that continues the neighbour's makes merges possible.
    offset = (start + draw(st.sampled_from([0, 0, 0, 3]))) * PAGE if file else 0
    flags |= draw(st.sampled_from([0x10, 0x10, 0x10, 0x100000]))
    flags |= draw(st.sampled_from([0, 0, 0, 0, 0x4000, 0x2000, 0x8000, 0x20000]))
    return ["mmap", at(start), draw(count) * PAGE, draw(prot), flags, file, offset]


def ranged(name: str, *more: Any) -> Any:
    return st.tuples(st.just(name), page.map(at), count.map(lambda n: n * PAGE), *more).map(list)


stacks = st.tuples(st.integers(600, 606), st.integers(1, 3), st.sampled_from([0x32, 0x132])).map(
    lambda t: ["mmap", at(t[0]), t[1] * PAGE, 3, t[2] | 0x10, 0, 0]
)
touches = st.tuples(st.sampled_from(["write", "write", "read"]), page.map(at)).map(list)
below_stack = st.tuples(st.just("write"), st.integers(280, 606).map(at)).map(list)
advice = ranged(
    "madvise", st.sampled_from([0, 1, 2, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 23, 102])
)
mremaps = st.tuples(
    st.just("mremap"),
    page.map(at),
    st.integers(0, 8).map(lambda n: n * PAGE),
    count.map(lambda n: n * PAGE),
    st.sampled_from([0, 1, 3, 3, 3, 5, 7]),
    page.map(at),
).map(list)
rare = st.one_of(
    ranged("mlock"),
    ranged("munlock"),
    ranged("mlock2", st.just(1)),
    ranged("mseal", st.just(0)),
    st.sampled_from([["mlockall", 2], ["mlockall", 6], ["munlockall"]]),
    st.sampled_from([["fork", 0], ["fork", 1]]),
    stacks,
    below_stack,
)
operations = st.one_of(
    mappings(),
    mappings(),
    touches,
    ranged("munmap"),
    ranged("mprotect", prot),
    advice,
    mremaps,
    rare,
)


@pytest.mark.kernel
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(operations, min_size=2, max_size=14))
def test_map_equals_the_kernels(kernel: Any, sequence: list[list[Any]]) -> None:
    check(kernel, sequence)


@pytest.mark.kernel
def test_rules_of_this_kernel_are_known() -> None:
    assert rules_for(platform.release()).vector[Rule.STACK_GUARD_PAGES] > 0


NONE_, RW, FIXED, STACK = 0, 3, 0x32, 0x132
CASES = {
    "guards give an anon_vma": [
        ["mmap", at(0), 4 * PAGE, RW, FIXED, 0, 0],
        ["write", at(0)],
        ["mmap", at(4), 4 * PAGE, RW, FIXED, 0, 0],
        ["madvise", at(4), 4 * PAGE, 10],
        ["madvise", at(5), PAGE, 102],
        ["madvise", at(4), 4 * PAGE, 11],
    ],
    "a stack grows to its limit at most": [
        ["mmap", at(3000), PAGE, RW, STACK, 0, 0],
        ["write", at(900)],
        ["write", at(1100)],
    ],
    "PROT_GROWSDOWN from below its VMA": [
        ["mmap", at(6), PAGE, 1, STACK, 0, 0],
        ["mprotect", at(4), 3 * PAGE, 0x1000003],
        ["mprotect", at(2), 3 * PAGE, 0x1000003],
    ],
    "several VMAs are moved, and stay": [
        ["mmap", at(5), 4 * PAGE, 7, 0x11, 1, at(5) - ARENA],
        ["mmap", at(9), 4 * PAGE, 1, 0x11, 1, at(9) - ARENA],
        ["mremap", at(8), 2 * PAGE, 2 * PAGE, 7, at(0)],
    ],
    "a copy of shared memory onto itself": [
        ["mmap", at(0), 4 * PAGE, 3, 0x31, 0, 0],
        ["mremap", at(0), 0, 5 * PAGE, 3, at(0)],
    ],
    "what cannot be populated is locked first": [
        ["mmap", at(0), 8 * PAGE, NONE_, FIXED, 0, 0],
        ["mlock", at(3), 2 * PAGE],
        ["mmap", at(10), 8 * PAGE, NONE_, FIXED, 0, 0],
        ["mlock2", at(12), 2 * PAGE, 1],
    ],
    "hints are rounded down": [["mmap", at(3) + 77, PAGE, RW, 0x22, 0, 0]],
    "what is droppable is not locked": [
        ["mlockall", 2],
        ["mmap", at(0), 4 * PAGE, RW, 0x38, 0, 0],
    ],
    "what a seal stops was cut before": [
        ["mmap", at(0), 9 * PAGE, RW, FIXED, 0, 0],
        ["mseal", at(3), 5 * PAGE, 0],
        ["munmap", at(1), 4 * PAGE],
    ],
}


@pytest.mark.kernel
@pytest.mark.parametrize("name", CASES)
def test_cases_that_random_ones_rarely_meet(kernel: Any, name: str) -> None:
    check(kernel, CASES[name])


SHORT = {  # refused for their arguments, before anything is done
    "mprotect": (OpKind.MPROTECT, 3 | 0x2000000),
    "pkey_mprotect": (OpKind.PKEY_MPROTECT, 3),
}


@pytest.mark.parametrize("name", SHORT)
def test_a_call_refused_for_its_arguments_changes_nothing(name: str) -> None:
    kind, prot = SHORT[name]
    replay = Replay()
    replay.step(["mmap", at(0), 8 * PAGE, 1, FIXED, 0, 0], at(0))
    before = replay.arena()
    replay.call(kind, address=at(4), length=8 * PAGE, prot=prot, result=-22)
    assert replay.arena() == before


@pytest.mark.parametrize("flags", [1, 5])  # MREMAP_MAYMOVE, and with MREMAP_DONTUNMAP
def test_mremap_that_failed_moves_nothing_though_the_rules_see_no_reason(flags: int) -> None:
    replay = Replay()
    replay.step(["mmap", at(0), 8 * PAGE, RW, FIXED, 0, 0], at(0))
    before = dump(replay.state, replay.space)
    size = 8 * PAGE if flags & 4 else 16 * PAGE
    place = {"address": at(0), "length2": 8 * PAGE, "length": size, "flags": flags}
    assert replay.call(OpKind.MREMAP, **place, result=-14) == 14
    assert dump(replay.state, replay.space) == before


def test_shmat_maps_as_its_flags_say() -> None:
    replay = Replay()
    for page, flags in ((0, 0), (8, 0o10000), (16, 0o100000)):
        place = {"address": at(page), "result": at(page), "length": 4 * PAGE, "file_id": 7}
        replay.call(OpKind.SHMAT, flags=flags, **place)
    assert [vma[2] for vma in replay.arena()] == ["rw-s", "r--s", "rwxs"]
