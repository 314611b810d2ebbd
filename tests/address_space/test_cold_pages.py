"""Which faults find their pages in no cache: seen through plans of generated workloads."""

from __future__ import annotations

import functools
import operator
from pathlib import Path

import numpy as np
import pytest
from cold_twin import cold_traits
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_twin import Op

from mmreplay.address_space.cold_pages import RANGES, mark_cold
from mmreplay.address_space.plan import Plan, PlanOp, Trait
from mmreplay.address_space.plan_state import OPERATION
from mmreplay.address_space.planner import build_plan
from mmreplay.address_space.rules import load_rules
from mmreplay.workloads.compiler import compile_workload
from mmreplay.workloads.definition import load_workload
from mmreplay.workloads.generator import generate_trace

TEXT = """
schema = 1
title = "one region, touched and dropped"
stands_for = "nothing"
source = "test"
counts = "pages"
{file}
[regions.r]
size = "{size}"
{kind}
[roles.worker]
threads = "rest"
once = [ {{ do = "mmap", on = "r" }} ]
loop = [
    {{ do = "touch", on = "r", access = "{access}", counts = 1 }},
    {{ do = "madvise", on = "r", advice = "dontneed" }},
]
"""


def planned(folder: Path, size: str, access: str, kind: str = "", path: str = "vma") -> Plan:
    file = f'[files.data]\nsize = "{size}"\n' if kind else ""
    text = TEXT.format(size=size, access=access, kind=kind, file=file)
    (folder / "w.toml").write_text(text)
    program = compile_workload(load_workload(folder / "w.toml"), 1)
    trace = generate_trace(program.by_path(path), None, seed=1, ops=30_000, duration_s=10.0).trace
    return build_plan(trace, load_rules("linux-6.18")).plan


def share(plan: Plan, trait: Trait, op: PlanOp = PlanOp.FAULT) -> float:
    """Of those operations in the second half, how many have the trait."""
    mine = plan.traits[plan.op == op]
    later = mine[len(mine) // 2 :]
    return float(((later & np.uint64(int(trait))) != 0).mean())


@pytest.mark.parametrize(
    ("path", "op"), [("vma", PlanOp.FAULT), ("mmap_lock", PlanOp.MADVISE_POPULATE)]
)
def test_memory_that_is_freed_in_small_pieces_stays_warm(
    tmp_path: Path, path: str, op: PlanOp
) -> None:
    assert share(planned(tmp_path, "4 MiB", "write", path=path), Trait.COLD, op) == 0
    assert share(planned(tmp_path, "32 MiB", "write", path=path), Trait.COLD, op) == 1


def test_large_memory_is_cold_when_it_is_freed(tmp_path: Path) -> None:
    assert share(planned(tmp_path, "4 MiB", "write"), Trait.COLD, PlanOp.MADVISE_ZAP) == 0
    assert share(planned(tmp_path, "32 MiB", "write"), Trait.COLD, PlanOp.MADVISE_ZAP) == 1


def freed_after(others: int) -> bool:
    """Whether 4 pages are cold when they are freed after ``others`` were allocated elsewhere."""
    fill = [(PlanOp.FAULT, Trait.WRITE | Trait.ANON, 4, 0)]
    fill += [(PlanOp.FAULT, Trait.WRITE | Trait.ANON, 1, 512)] * others
    rows = np.zeros(len(fill) + 1, OPERATION).view(np.recarray)
    zap = (PlanOp.MADVISE_ZAP, Trait.PAGES_PRESENT | Trait.ANON, 4, 0)
    for row, (op, traits, pages, page) in zip(rows, [*fill, zap], strict=True):
        row.op, row.traits, row.pages = int(op), int(traits), pages
        row.first_page = row.last_page = page
    mark_cold(rows, len(rows), 8, np.zeros(1, np.int64), np.zeros(RANGES, np.int64))
    return bool(int(rows[-1].traits) & Trait.COLD)


def test_what_was_touched_long_ago_is_cold_when_it_is_freed() -> None:
    assert not freed_after(8)
    assert freed_after(9)


def test_the_zero_page_is_never_cold(tmp_path: Path) -> None:
    plan = planned(tmp_path, "32 MiB", "read")
    assert share(plan, Trait.COLD | Trait.COLD_FILE) == 0


def test_files_are_cold_where_their_mapping_is_large(tmp_path: Path) -> None:
    shared = 'file = "data"\nshared = true'
    small, large = (planned(tmp_path, size, "write", shared) for size in ("4 MiB", "32 MiB"))
    assert share(small, Trait.COLD_FILE) == 0
    assert share(large, Trait.COLD_FILE) == 1
    assert share(large, Trait.COLD) == 0  # it has no page of its own


def test_a_copy_of_a_file_page_is_cold_twice(tmp_path: Path) -> None:
    plan = planned(tmp_path, "32 MiB", "write", 'file = "data"')
    assert share(plan, Trait.COLD) == share(plan, Trait.COLD_FILE) == 1


OPS = [PlanOp.FAULT, PlanOp.FAULT, PlanOp.MADVISE_POPULATE, PlanOp.MUNMAP, PlanOp.MADVISE_ZAP,
       PlanOp.MPROTECT, PlanOp.PROCESS_EXIT]  # fmt: skip
TRAITS = [Trait.WRITE, Trait.ANON, Trait.SHMEM, Trait.FILE, Trait.SHARED, Trait.COW, Trait.HUGE,
          Trait.PRESENT, Trait.FIRST_IN_FILE, Trait.FAULT_AROUND, Trait.PAGES_PRESENT,
          Trait.FAILED]  # fmt: skip
some_traits = st.sets(st.sampled_from(TRAITS), max_size=5).map(
    lambda traits: functools.reduce(operator.or_, traits, Trait(0))
)
planned_ops = st.builds(
    lambda op, traits, pages, mm, last, first, more: Op(
        0, 0, mm, op=op, traits=traits, pages=pages, bounds=(0, last),
        first_page=first, last_page=first + more,
    ),
    st.sampled_from(OPS), some_traits, st.sampled_from([0, 1, 1, 3, 9]), st.integers(0, 1),
    st.sampled_from([-1, 3, 40]), st.sampled_from([0, 600]), st.sampled_from([0, 600]),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(planned_ops, max_size=60))
def test_the_pass_equals_its_twin(ops: list[Op]) -> None:
    rows = np.zeros(len(ops), OPERATION).view(np.recarray)
    for row, op in zip(rows, ops, strict=True):
        row.op, row.traits, row.pages, row.mm = int(op.op), int(op.traits), op.pages, op.mm
        row.vma_first_page, row.vma_last_page = op.bounds
        row.first_page, row.last_page = op.first_page, op.last_page
    mark_cold(rows, len(rows), 8, np.zeros(2, np.int64), np.zeros(RANGES, np.int64))
    found = [Trait(int(row.traits)) for row in rows]
    assert found == [o.traits | cold for o, cold in zip(ops, cold_traits(ops, 8), strict=True)]
