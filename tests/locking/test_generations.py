"""What each release brought, feature by feature: the matrix of generations, as walks.

For every situation the releases at which its locks change, each with what it takes from
then on: V the VMA lock for reading, R, W, D mmap_lock for reading, for writing, downgraded,
m marks.  The sources are cited in the models' programs.
"""

from __future__ import annotations

import pytest

from mmreplay.address_space.plan import PlanOp, Trait
from mmreplay.locking import list_models, load_model
from mmreplay.locking.isa import PARAMS, RuntimeBit
from mmreplay.locking.scenarios import SCENARIOS
from mmreplay.locking.walk import walk

KERNELS = [model for model in list_models() if model.kernel]

MATRIX: dict[str, dict[str, dict[str, str]]] = {
    "fault": {
        "write": {"5.10": "R", "6.4": "V"},
        "first write of a VMA": {"5.10": "R", "6.10": "VR"},
        "read of a VMA never written": {"5.10": "R", "6.10": "V"},
        "read": {"5.10": "R", "6.4": "V"},
        "copy on write": {"5.10": "R", "6.4": "V"},
        "huge page": {"5.10": "R", "6.4": "V"},
        "huge page, first of the VMA": {"5.10": "R", "6.10": "VR"},
        "hugetlb": {"5.10": "R", "6.6": "VR", "6.9": "V"},
        "swap-in": {"5.10": "RR", "6.4": "VRR", "6.6": "VR"},
        "in kernel mode": {"5.10": "R"},
        "file read by fault-around": {"5.10": "R", "6.6": "V"},
        "file read past fault-around": {"5.10": "R", "6.6": "VR", "6.7": "V"},
        "major file read": {"5.10": "RR", "6.6": "VRR", "6.7": "VR"},
        "file write, private": {"5.10": "R", "6.6": "VR", "6.7": "V"},
        "file write, private, first of the VMA": {"5.10": "R", "6.6": "VR"},
        "file write, private, over a read page": {"5.10": "R", "6.6": "V"},
        "file write, shared": {"5.10": "RR", "6.1": "R", "6.6": "VR", "6.7": "V"},
        "file write, shared, over a read page": {"5.10": "RR", "6.1": "R", "6.6": "VR", "6.7": "V"},
        "shmem read by fault-around": {"5.10": "R", "6.6": "V"},
        "shmem write": {"5.10": "R", "6.6": "VR", "6.7": "V"},
        "shmem write of a new page": {"5.10": "RR", "6.1": "R", "6.6": "VR", "6.7": "V"},
        "device without map_pages": {"5.10": "R", "6.6": "VR"},
        "userfaultfd, missing page": {"5.10": "RR", "6.4": "VRR", "6.6": "VR"},
        "where no VMA is": {"5.10": "R"},
        "that the VMA forbids": {"5.10": "R", "6.4": "VR", "6.10": "V"},
        "that grows the stack": {"5.10": "R", "6.1": "RWD", "6.4": "RWDm"},
    },
    "munmap": {
        "whole VMA": {"5.10": "WD", "6.4": "WDm"},
        "below a stack": {"5.10": "W", "6.4": "Wm", "6.5": "WDm"},
        "hole": {"5.10": "W"},
    },
    "mmap": {
        "merging with both neighbours": {"5.10": "W", "6.4": "Wmm"},
        "MAP_POPULATE": {"5.10": "RW", "6.4": "RWm"},
    },
    "fork": {"seven VMAs": {"5.10": "WW", "6.4": "WWmmmmmmm"}},
    "process_exit": {"four VMAs": {"5.10": "RR", "6.1": "RRRW", "6.4": "RRRWmmmm"}},
    "thread_exit": {"thread": {"5.10": "R"}},
    "madvise_zap": {
        "touched pages": {"5.10": "R", "6.17": "V"},
        "over two VMAs": {"5.10": "R", "6.17": "VR"},
        "with userfaultfd": {"5.10": "R", "6.17": "VR"},
    },
    "madvise_read": {"COLD": {"5.10": "R"}},
    "madvise_willneed": {"file": {"5.10": "RR"}, "anonymous": {"5.10": "R"}},
    "madvise_flags": {"HUGEPAGE": {"5.10": "W", "6.4": "Wm"}},
    "madvise_populate": {"write": {"5.10": "", "5.14": "R"}},
    "madvise_guard": {
        "install": {"5.10": "", "6.13": "R", "6.19": "V"},
        "install in a VMA never written": {"5.10": "", "6.13": "R", "6.19": "VR"},
    },
    "madvise_collapse": {"2 MiB": {"5.10": "", "6.1": "RRRW", "6.4": "RRRWm"}},
    "process_madvise": {"16 elements": {"5.10": "R" * 16, "6.15": "R"}},
    "process_madvise_zap": {
        "16 elements": {"5.10": "", "6.13": "R" * 16, "6.15": "R", "6.17": "V" * 16},
    },
    "proc_maps": {
        "read(2)": {"5.10": "R", "6.17": ""},
        "read(2) at the end": {"5.10": "", "6.1": "R", "6.17": ""},
        "read(2) at the end, [vsyscall] mapped": {"5.10": ""},
    },
    "proc_smaps": {"read(2)": {"5.10": "R", "7.3": ""}},
    "proc_rollup": {"read(2)": {"5.10": "R"}, "read(2) at the end": {"5.10": ""}},
    "proc_pagemap": {"read(2)": {"5.10": "R", "6.4": "RR"}},
    "remote_access": {"process_vm_readv": {"5.10": "R"}},
    "uffd_copy": {
        "first of the VMA": {"5.10": "R", "6.9": "VR"},
        "page": {"5.10": "R", "6.9": "V"},
    },
    "uffd_move": {"page": {"5.10": "", "6.7": "R", "6.9": "V"}},
    "uffd_register": {"VMA": {"5.10": "W", "6.4": "Wm"}},
}  # fmt: skip

CASES = [(op, name) for op, rows in MATRIX.items() for name in rows]


def release(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


@pytest.mark.parametrize(("operation", "name"), CASES)
def test_the_matrix_of_generations(operation: str, name: str) -> None:
    (scenario,) = [s for s in SCENARIOS if s.operation == operation and s.name == name]
    since = {release(r): what for r, what in MATRIX[operation][name].items()}
    for model in KERNELS:
        done = walk(model, scenario.op, scenario.traits, scenario.sets, scenario.bits)
        read, write, down = done.mmap_lock
        vma, marks = done.vma_lock
        took = "V" * vma + "R" * read + "W" * write + "D" * down + "m" * marks
        expected = since[max(r for r in since if model.kernel and r <= model.kernel)]
        assert took == expected, model.name


#: lock, parameter -> value from a release on
PARAMETERS: dict[tuple[str, str], dict[str, int]] = {
    ("mmap_lock", "reader_spin"): {"5.10": 1, "5.14": 0},
    ("mmap_lock", "steal"): {"5.10": 0, "5.14": 1},
    ("mmap_lock", "bump_acquire"): {"6.4": 0, "6.12": 1},
    ("vma_lock", "form"): {"6.4": 0, "6.15": 1},
}


@pytest.mark.parametrize(("lock", "key"), PARAMETERS)
def test_lock_parameters_of_generations(lock: str, key: str) -> None:
    since = {release(r): value for r, value in PARAMETERS[lock, key].items()}
    for model in KERNELS:
        assert model.kernel is not None
        if model.kernel < min(since):
            continue
        value = model.lock_params[model.locks.index(lock), PARAMS.index(key)]
        assert value == since[max(r for r in since if r <= model.kernel)], model.name


#: LRU batch, and the flush of mprotect over three VMAs: (flushes)
@pytest.mark.parametrize(
    ("name", "batch", "flushes"),
    [("linux-5.15", 15, 3), ("linux-6.1", 15, 1), ("linux-6.7", 15, 1), ("linux-6.9", 31, 1)],
)
def test_batches_and_flushes(name: str, batch: int, flushes: int) -> None:
    model = load_model(name)
    assert {15, 31} & set(model.cond_every.tolist()) == {batch}
    (scenario,) = [s for s in SCENARIOS if s.operation == "mprotect" and s.name == "three VMAs"]
    done = walk(model, scenario.op, scenario.traits, scenario.sets, scenario.bits)
    assert done.steps.count("flush mm") == flushes


@pytest.mark.parametrize("name", ["linux-6.12", "linux-6.14"])
def test_munmap_drains_the_lru_batch_before_6_14_only(name: str) -> None:
    (scenario,) = [s for s in SCENARIOS if s.operation == "munmap" and s.name == "whole VMA"]
    done = walk(load_model(name), scenario.op, scenario.traits, scenario.sets, scenario.bits)
    assert ("cost lru_batch" in done.steps) == (name == "linux-6.12")


@pytest.mark.parametrize(
    ("traits", "costs"),
    [
        (Trait.ANON, {"fault_common", "set_pte"}),  # the zero page
        (
            Trait.ANON | Trait.WRITE,
            {"fault_common", "alloc_page", "zero_page", "lru_drain", "set_pte"},
        ),
        (Trait.SHMEM | Trait.SHARED | Trait.WRITE, {"fault_common", "file_lookup", "set_pte"}),
        (Trait.ANON | Trait.WRITE | Trait.NO_CHANGE, set()),  # all is there
    ],
)
def test_a_populating_call_pays_for_what_it_fills(traits: Trait, costs: set[str]) -> None:
    done = walk(
        load_model("linux-6.18"), PlanOp.MADVISE_POPULATE, traits, {}, RuntimeBit.VMA_ANON_VMA
    )
    always = {"syscall", "madvise_common", "gup", "find"}
    paid = {step.split()[1] for step in done.steps if step.startswith("cost ")}
    assert paid - always == costs


def test_populating_drains_the_lru_batch_since_5_18() -> None:
    (scenario,) = [s for s in SCENARIOS if s.operation == "madvise_populate"]
    for name, drains in (("linux-5.15", False), ("linux-6.1", True), ("linux-6.2", True)):
        done = walk(load_model(name), scenario.op, scenario.traits, scenario.sets, scenario.bits)
        assert ("cost lru_drain" in done.steps) == drains


def test_the_shootdown_of_dontneed_moved_out_of_the_lock() -> None:
    (scenario,) = [s for s in SCENARIOS if s.name == "touched pages"]
    for name, under in (("linux-6.15", ("mmap_lock read",)), ("linux-6.17", ())):
        done = walk(load_model(name), scenario.op, scenario.traits, scenario.sets, scenario.bits)
        assert done.under[done.steps.index("flush mm")] == under


def test_map_fixed_leaves_a_gap_before_6_12_only() -> None:
    """The old range is cleared from the tree before it is zapped, later overwritten after."""
    (scenario,) = [s for s in SCENARIOS if s.name == "fixed over the middle of a VMA"]
    for name, stores in (("linux-6.10", 2), ("linux-6.12", 1)):
        done = walk(load_model(name), scenario.op, scenario.traits, scenario.sets, scenario.bits)
        assert done.costs["tree_store"] == stores
        first = done.steps.index("cost tree_store")
        assert (first < done.steps.index("flush mm")) == (stores == 2)
