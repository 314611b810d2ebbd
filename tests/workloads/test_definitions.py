"""Workload texts: what is read, what is refused and how, and the programs they become."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreplay.errors import UserError
from mmreplay.workloads import steps
from mmreplay.workloads.compiler import compile_workload, thread_counts
from mmreplay.workloads.definition import list_workloads, load_workload, parse_workload
from mmreplay.workloads.interpret import Live, decisions, new_states
from mmreplay.workloads.program import Field, Kind, Op, SlotField, ThreadField

HEAD = """
schema = 1
title = "T"
stands_for = "S"
source = "O"
counts = "C"
"""
REGION = '[regions.memory]\nsize = "16 pages"\n'
ROLE = '[roles.worker]\nthreads = "rest"\nloop = [ %s ]\n'
TOUCH = '{ do = "touch", on = "memory", counts = 1 }'


def text(loop: str = TOUCH, head: str = HEAD, regions: str = REGION, more: str = "") -> str:
    return head + regions + ROLE % loop + more


def parsed(*args: str, **kwargs: str) -> object:
    return parse_workload(text(*args, **kwargs), "w.toml", "w")


def test_the_library_is_there_and_says_what_it_is() -> None:
    names = set(list_workloads())
    family = {"page_fault1", "page_fault2", "page_fault3", "mmap1", "mmap2", "brk1", "brk2"}
    family |= {"malloc1", "malloc2", "tlb_flush1", "tlb_flush2", "tlb_flush3", "ebizzy"}
    family |= {"pft-one-vma", "pft-vma-per-thread", "allocator-arenas", "gc-heap", "thread-pool"}
    family |= {"process-start", "wasm-instances", "jit-code", "buffer-pool", "instance-sandbox"}
    assert family | {"faulters-and-mappers"} <= names
    for name in names:
        workload = load_workload(name)
        assert min(map(len, (workload.title, workload.stands_for, workload.source))) > 10


@pytest.mark.parametrize("name", list_workloads())
@pytest.mark.parametrize("threads", [2, 3, 17])
def test_every_definition_compiles(name: str, threads: int) -> None:
    program = compile_workload(load_workload(name), threads)
    code, rows = program.code, program.threads
    assert program.started == threads
    assert (code[:, Field.OP] >= 0).all()
    for row in rows:
        first, end = row[ThreadField.FIRST], row[ThreadField.END]
        mine = code[first:end]
        assert mine[-1, Field.OP] == Op.END
        jumps = np.isin(mine[:, Field.OP], [Op.NEXT, Op.JUMP, Op.UNMAPPED])
        targets = mine[jumps, Field.TARGET]
        assert ((targets >= first) & (targets < end)).all()
        used = mine[:, Field.REGION]
        regions = program.regions[row[ThreadField.REGIONS] + used[used >= 0]]
        assert (regions[:, 0] >= 0).all()  # every region that is named is somewhere
        assert (regions.sum(axis=1) <= len(program.slots)).all()
    assert (code[:, Field.COUNTS] > 0).any()
    assert (program.slots[:, SlotField.MOST] > 0).all()


def test_threads_own_what_is_per_thread_and_share_the_rest() -> None:
    program = compile_workload(load_workload("jit-code"), 8)
    started = program.threads[program.threads[:, ThreadField.KIND] == Kind.STARTED]
    names = program.region_names
    code = {
        int(program.regions[row[ThreadField.REGIONS] + names.index("code"), 0]) for row in started
    }
    nursery = {
        int(program.regions[row[ThreadField.REGIONS] + names.index("nursery"), 0])
        for row in started
    }
    assert len(code) == 1
    assert len(nursery) == 8
    roles = [program.roles[row[ThreadField.ROLE]] for row in started]
    assert roles.count("compiler") == 2  # a quarter


def test_own_parts_tile_a_shared_region() -> None:
    program = compile_workload(load_workload("pft-one-vma"), 7)
    touches = program.code[program.code[:, Field.OP] == Op.TOUCH]
    order = np.argsort(touches[:, Field.OFFSET])
    begins, lengths = touches[order, Field.OFFSET], touches[order, Field.LENGTH]
    assert begins[0] == 0
    assert (begins[1:] == begins[:-1] + lengths[:-1]).all()
    assert begins[-1] + lengths[-1] <= 1 << 30


def test_spawned_threads_use_their_parents_memory_and_forked_ones_copies() -> None:
    pool = compile_workload(load_workload("thread-pool"), 3)
    for row in pool.threads[pool.threads[:, ThreadField.KIND] == Kind.SPAWNED]:
        parent = pool.threads[row[ThreadField.PARENT]]
        mine, theirs = row[ThreadField.REGIONS], parent[ThreadField.REGIONS]
        assert (pool.regions[mine] == pool.regions[theirs]).all()
    start = compile_workload(load_workload("process-start"), 3)
    forked = start.threads[start.threads[:, ThreadField.KIND] == Kind.FORKED]
    assert sorted(forked[:, ThreadField.PROCESS]) == [1, 2, 3]
    assert len(set(start.copies[:, 1])) == len(start.copies)
    assert (start.slots[start.copies[:, 0], SlotField.PROCESS] == 0).all()
    assert (start.slots[start.copies[:, 1], SlotField.PROCESS] > 0).all()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (text(head=HEAD + "size = 3\n"), 'w.toml: unknown key "size"'),
        (text(head=HEAD.replace("title", "titel")), 'unknown key "titel" (did you mean "title"?)'),
        (text('{ do = "tuch", on = "memory", counts = 1 }'), 'do = "tuch" (did you mean "touch"?)'),
        (text('{ on = "memory" }'), 'roles.worker.loop.0: a step needs the key "do"'),
        (text('{ do = "touch", on = "memry", counts = 1 }'), '(did you mean "memory"?)'),
        (
            text('{ do = "touch", on = "memory", acces = "read", counts = 1 }'),
            'unknown key "roles.worker.loop.0.acces" (did you mean "access"?)',
        ),
        (text('{ do = "madvise", on = "memory", advice = "dontned" }'), "did you mean"),
        (text(regions='[regions.memory]\nsize = "16 KB"\n'), "regions.memory.size"),
        (text(regions='[regions.memory]\nsize = "100 B"\n'), "whole number of 4096-byte pages"),
        (text(regions='[regions.memory]\nsize = "1000 TiB"\n'), "between a page and"),
        (text(regions='[regions.memory]\nsize = "16 pages"\nfile = "f"\n'), 'no file "f"'),
        (text('{ do = "touch", on = "memory" }'), "no step counts"),
        (text('{ do = "touch", on = "memory", size = "17 pages", counts = 1 }'), "over the end"),
        (text('{ do = "touch", on = "memory", size = ["2 pages", "1 page"] }'), "goes down"),
        (text('{ do = "repeat", times = 0, steps = [] }'), "times"),
        (text('{ do = "think", mean_ns = 5, distribution = "lognormal" }'), "sigma"),
        (text('{ do = "spawn", role = "worker" }'), "roles.worker: it is started by another role"),
        (text('{ do = "brk", on = "memory", size = "1 page" }'), "not the heap"),
        (text('{ do = "pick", on = "memory" }'), "nothing to pick"),
        (text(more='[roles.other]\nthreads = "rest"\nloop = [ ' + TOUCH + " ]\n"), "more than one"),
        (text(more="[roles.other]\nloop = [ " + TOUCH + " ]\n"), "threads is missing"),
        ("schema = 1\nschema = 2\n", "not valid TOML"),
        (text(head=HEAD.replace("schema = 1", "schema = 2")), "schema"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_key(wrong: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_workload(wrong, "w.toml", "w")
    line = refused.value.line()
    assert line.startswith("w.toml: ")
    assert says in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("loop", "says"),
    [
        ('{ do = "touch", on = "memory", at = "page", counts = 1 }', 'no counter "page"'),
        ('{ do = "munmap", on = "memory", by = "1 page", counts = 1 }', "by units"),
        ('{ do = "join", role = "worker" }, ' + TOUCH, "starts no worker"),
    ],
)
def test_a_mistake_that_only_compiling_shows(loop: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        compile_workload(parse_workload(text(loop), "w.toml", "w"), 2)


def test_unknown_workloads_and_unreadable_files() -> None:
    with pytest.raises(
        UserError, match=r'unknown workload "page_falt1" \(did you mean "page_fault'
    ):
        load_workload("page_falt1")
    with pytest.raises(UserError, match="cannot be read"):
        load_workload("./there/is/none.toml")


def test_thread_counts_must_fit() -> None:
    mixed = load_workload("faulters-and-mappers")
    assert thread_counts(mixed, 2) == {"mapper": 1, "faulter": 1}
    assert thread_counts(mixed, 9) == {"mapper": 4, "faulter": 5}
    with pytest.raises(UserError, match="1 threads are too few"):
        thread_counts(mixed, 1)
    for bad in (0, -3, 1 << 20):
        with pytest.raises(UserError, match="choose 1 to"):
            thread_counts(mixed, bad)
    two = text(more="").replace('threads = "rest"', "threads = 2")
    assert thread_counts(parse_workload(two, "w.toml", "w"), 2) == {"worker": 2}
    with pytest.raises(UserError, match="exactly 2 threads, not 3"):
        thread_counts(parse_workload(two, "w.toml", "w"), 3)


@given(st.integers(2, 4096))
@settings(max_examples=50, deadline=None)
def test_all_threads_are_given_out(threads: int) -> None:
    for name in ("faulters-and-mappers", "jit-code", "buffer-pool"):
        counts = thread_counts(load_workload(name), threads)
        assert sum(counts.values()) == threads
        assert min(counts.values()) >= 1


def test_paths_change_how_pages_are_faulted_in_and_nothing_else() -> None:
    program = compile_workload(load_workload("tlb_flush2"), 2)
    touches = program.code[:, Field.OP] == Op.TOUCH
    by_lock, by_kernel = program.by_path("mmap_lock"), program.by_path("kernel")
    assert (by_lock.code[touches, Field.OP] == Op.MADVISE).all()
    assert set(by_lock.code[touches, Field.FLAGS]) == {22, 23}
    assert (by_lock.code[touches, Field.STEP] == 4096).all()
    writes = touches & (program.code[:, Field.FLAGS] == 1)  # read(2) writes to the page
    assert (by_kernel.code[writes, Field.OP] == Op.READ).all()
    assert (by_kernel.code[~writes] == program.code[~writes]).all()
    assert (by_lock.code[~touches] == program.code[~touches]).all()
    assert (program.by_path("vma").code == program.code).all()


def rows_of(loop: str, n: int, seed: int = 1) -> list[tuple[int, ...]]:
    """(op, flags) of the first rows that a thread of this loop comes to, nothing mapped."""
    program = compile_workload(parse_workload(text(loop), "w.toml", "w"), 1)
    rows = np.zeros(n, np.int64)
    live = np.zeros((len(program.slots), len(Live)), np.int64)
    done = decisions(program.code, new_states(program, seed), 1, program.regions, live, rows)
    return [tuple(program.code[row, [Field.OP, Field.FLAGS]].tolist()) for row in rows[:done]]


def test_steering_by_hand() -> None:
    inner = '{ do = "repeat", times = 3, steps = [ %s, { do = "read_into", on = "memory" } ] }'
    got = [op for op, _ in rows_of(inner % TOUCH + ', { do = "munmap", on = "memory" }', 14)]
    once = [Op.TOUCH, Op.READ] * 3 + [Op.MUNMAP]
    assert got == once + once
    either = '{ do = "if_mapped", on = "memory", steps = [ %s ], otherwise = [ %s ] }'
    got = [op for op, _ in rows_of(either % (TOUCH, '{ do = "mmap", on = "memory" }'), 2)]
    assert got == [Op.MMAP, Op.MMAP]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(0, 2**63 - 1))
@settings(max_examples=20, deadline=None)
def test_choices_follow_their_weights(weights: list[int], seed: int) -> None:
    advices = list(steps.ADVICE)[: len(weights)]
    branches = ", ".join(
        f'{{ weight = {weight}, steps = [ {{ do = "madvise", on = "memory", advice = "{advice}",'
        " counts = 1 } ] }"
        for weight, advice in zip(weights, advices, strict=True)
    )
    n = 4000
    got = [flags for _, flags in rows_of(f'{{ do = "choose", of = [ {branches} ] }}', n, seed)]
    for weight, advice in zip(weights, advices, strict=True):
        share = weight / sum(weights)
        # five standard deviations of a binomial share
        assert (
            abs(got.count(steps.ADVICE[advice]) / n - share) < 5 * (share * (1 - share) / n) ** 0.5
        )


def test_the_documentation_names_every_step_and_shows_a_valid_text() -> None:
    import re
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "workloads.md").read_text()
    for word in steps.STEPS:
        assert f"`{word}`" in page, word
    (shown,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert parse_workload(shown, "docs", "shown").regions.keys() == {"fresh", "piece"}


def test_a_chain_visits_its_states_as_a_markov_chain_does() -> None:
    """Stationary shares by hand: from a to b always, from b back with 1/4."""
    chain = """
[roles.worker]
threads = "rest"
[roles.worker.chain.a]
steps = [ { do = "touch", on = "memory", counts = 1 } ]
next = { b = 1 }
[roles.worker.chain.b]
steps = [ { do = "munmap", on = "memory" } ]
next = { a = 1, b = 3 }
"""
    program = compile_workload(parse_workload(HEAD + REGION + chain, "w.toml", "w"), 1)
    rows = np.zeros(20_000, np.int64)
    live = np.zeros((len(program.slots), len(Live)), np.int64)
    decisions(program.code, new_states(program, 3), 1, program.regions, live, rows)
    touched = program.code[rows, Field.OP] == Op.TOUCH
    assert not (touched[1:] & touched[:-1]).any()
    assert abs(touched.mean() - 0.2) < 0.01
    with pytest.raises(UserError, match=r'no state "c"'):
        parse_workload(HEAD + REGION + chain.replace("b = 1 }", "c = 1 }"), "w.toml", "w")
    with pytest.raises(UserError, match=r'unknown key "roles.worker.chain.a.stepz"'):
        parse_workload(HEAD + REGION + chain.replace("steps", "stepz", 1), "w.toml", "w")
