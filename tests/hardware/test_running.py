"""Loop programs run for real: what their threads did is what their text says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mmreplay.errors import UserError
from mmreplay.hardware import tracing
from mmreplay.hardware.child import Child
from mmreplay.hardware.figures import failure, figures, jain
from mmreplay.hardware.loop_tables import RU_MINFLT, Count
from mmreplay.hardware.path_check import Traced, tally, verdict
from mmreplay.hardware.runner import RunAnswer, RunRequest
from mmreplay.hardware.suite import has_populate
from mmreplay.workloads.compiler import compile_workload
from mmreplay.workloads.definition import load_workload, parse_workload
from mmreplay.workloads.program import Kind, Op, Program, ThreadField

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="runs on x86-64 only")

HEAD = """
schema = 1
title = "t"
stands_for = "a test"
source = "a test"
counts = "things"
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[Child]:
    with Child("mmreplay.hardware.run_worker") as child:
        yield child


def program(text: str, threads: int = 1) -> Program:
    return compile_workload(parse_workload(HEAD + text, "w.toml", "w"), threads)


def ran(worker: Child, p: Program, **request: Any) -> RunAnswer:
    answer = worker.ask(RunRequest(p, **{"budget": 1000, **request}))
    assert isinstance(answer, RunAnswer)
    assert answer.problem == ""
    return answer


def done(answer: RunAnswer, op: Op) -> int:
    return int(answer.total[:, Count.DONE + op].sum())


# -- counts --------------------------------------------------------------------------------------


def test_page_faults_by_getrusage_are_the_pages_touched(worker: Child) -> None:
    """1 mmap, then pages of fresh memory: each touch is one fault."""
    answer = ran(worker, compile_workload(load_workload("page_fault1"), 1), budget=5001)
    assert done(answer, Op.MMAP) == 1
    assert done(answer, Op.TOUCH) == 5000
    faults = int(answer.usage[:, RU_MINFLT].sum())
    assert 5000 <= faults <= 5010  # and the loop's own pages, once


@pytest.mark.skipif(not has_populate(), reason="no MADV_POPULATE_WRITE")
def test_by_the_other_paths_the_same_pages_are_faulted_in_by_calls(worker: Child) -> None:
    p = compile_workload(load_workload("page_fault1"), 1)
    for path, op in (("mmap_lock", Op.MADVISE), ("kernel", Op.READ)):
        answer = ran(worker, p.by_path(path), budget=2001)  # type: ignore[arg-type]
        assert done(answer, op) == 2000
        assert done(answer, Op.TOUCH) == 0
        assert int(answer.total[:, Count.OPS].sum()) == 2000
        assert int(answer.total[:, Count.FAILED].sum()) == 0
        assert 2000 <= int(answer.usage[:, RU_MINFLT].sum()) <= 2010


def test_every_operation_is_done_as_often_as_the_text_says(worker: Child) -> None:
    """One round of the loop is 34 operations; ten rounds and the mmap before them."""
    text = """
[regions.a]
size = "1 MiB"
[regions.b]
size = "16 pages"
[regions.heap]
size = "4 pages"
per = "process"
kind = "heap"
[roles.r]
threads = "rest"
once = [ { do = "mmap", on = "a" } ]
loop = [
  { do = "repeat", times = 4, counter = "k", steps = [
      { do = "touch", on = "a", at = "k", access = "write", counts = 1 },
      { do = "mprotect", on = "a", at = "k", prot = "r" },
      { do = "touch", on = "a", at = "k", access = "read" },
      { do = "mprotect", on = "a", at = "k", prot = "rw" },
  ] },
  { do = "mmap", on = "b", size = "8 pages" },
  { do = "mmap", on = "b" },
  { do = "touch", on = "b", access = "write", order = "scattered", units = 5, counts = 2 },
  { do = "mremap", on = "b", size = "16 pages" },
  { do = "madvise", on = "b", advice = "dontneed" },
  { do = "munmap", on = "b", first = "12 pages" },
  { do = "populate", on = "b", size = "2 pages", by = "1 page" },
  { do = "read_into", on = "b", first = "2 pages", size = "2 pages" },
  { do = "munmap", on = "b" },
  { do = "munmap", on = "b" },
  { do = "brk", on = "heap", size = "2 pages" },
  { do = "brk", on = "heap", size = 0 },
]
"""
    # 16 of the repeat, mmap, 5 touches, mremap, madvise, munmap, 2 populate, 2 reads, munmap,
    # 2 brk; what has nothing to do is tried, not done: an mmap and a munmap.
    rounds = 10
    answer = ran(worker, program(text), budget=1 + rounds * 33)
    expected = {
        Op.MMAP: 1 + rounds,
        Op.TOUCH: rounds * (8 + 5),
        Op.MPROTECT: rounds * 8,
        Op.MREMAP: rounds,
        Op.MADVISE: rounds * 3,
        Op.READ: rounds * 2,
        Op.MUNMAP: rounds * 2,
        Op.BRK: rounds * 2,
    }
    found = {op: done(answer, op) for op in expected}
    # The tried ones use up the budget too.
    behind = {op: expected[op] - n for op, n in found.items()}
    assert all(0 <= n <= expected[op] / rounds for op, n in behind.items()), found
    assert int(answer.total[:, Count.FAILED].sum()) == 0
    assert int(answer.total[:, Count.MISSED].sum()) == 0


def test_threads_that_are_spawned_run_and_are_joined(worker: Child) -> None:
    answer = ran(worker, compile_workload(load_workload("thread-pool"), 2), budget=60)
    kinds = compile_workload(load_workload("thread-pool"), 2).threads[:, ThreadField.KIND]
    spawned = kinds == Kind.SPAWNED
    spawns = int(answer.total[~spawned, Count.DONE + Op.SPAWN].sum()) - 2  # main's two
    touches = int(answer.total[spawned, Count.DONE + Op.TOUCH].sum())
    assert spawns >= 10
    assert 4 * (spawns - 2) <= touches <= 4 * spawns
    assert int(answer.total[spawned, Count.MINOR_FAULTS].sum()) >= touches - 8


def test_processes_that_are_forked_have_copies_of_the_memory(worker: Child) -> None:
    """32 pages of the parent's are written in each child: 32 copies at least."""
    p = compile_workload(load_workload("process-start"), 1)
    answer = ran(worker, p, budget=1200)
    forked = p.threads[:, ThreadField.KIND] == Kind.FORKED
    forks = done(answer, Op.FORK)
    assert forks >= 5
    assert int(answer.total[:, Count.MISSED].sum()) == 0
    assert int(answer.total[forked, Count.DONE + Op.MMAP].sum()) >= 8 * (forks - 1)
    assert int(answer.total[forked, Count.MINOR_FAULTS].sum()) >= 96 * (forks - 1)


def test_threads_meet_at_barriers(worker: Child) -> None:
    """Three threads, so many rounds: none is a round ahead of another."""
    text = """
[regions.a]
size = "8 pages"
[roles.r]
threads = "rest"
once = [ { do = "mmap", on = "a" } ]
loop = [
  { do = "touch", on = "a", access = "write", counts = 1 },
  { do = "barrier", name = "b" },
]
"""
    answer = ran(worker, program(text, 3), budget=0, seconds=0.05, warm_up_s=0.01)
    rounds = answer.total[1:, Count.DONE + Op.BARRIER]
    assert rounds.min() > 0
    assert rounds.max() - rounds.min() <= 1


def test_random_decisions_are_those_of_the_seed(worker: Child) -> None:
    p = compile_workload(load_workload("allocator-arenas"), 1)
    first, again, other = (ran(worker, p, seed=s).total for s in (1, 1, 2))
    ops = slice(Count.DONE, Count.DONE + len(Op))
    assert (first[:, ops] == again[:, ops]).all()
    assert (first[:, ops] != other[:, ops]).any()


@pytest.mark.parametrize("name", ["gc-heap", "jit-code", "buffer-pool", "wasm-instances", "brk1"])
def test_shipped_workloads_run_without_failures(worker: Child, name: str) -> None:
    answer = ran(
        worker,
        compile_workload(load_workload(name), 2),
        budget=0,
        seconds=0.05,
        warm_up_s=0.01,
        cpus=(min(os.sched_getaffinity(0)),) * 2,
    )
    assert int(answer.total[:, Count.FAILED].sum()) == 0
    assert int(answer.total[:, Count.MISSED].sum()) == 0
    assert (answer.window_ns[1:3] > 0).all()


# -- what goes wrong -------------------------------------------------------------------------------


def test_accesses_that_fail_are_counted_and_the_run_is_refused(worker: Child) -> None:
    text = """
[regions.a]
size = "8 pages"
prot = "none"
[roles.r]
threads = "rest"
once = [ { do = "mmap", on = "a" } ]
loop = [ { do = "touch", on = "a", access = "write", counts = 1 } ]
"""
    p = program(text)
    answer = ran(worker, p, budget=101)
    assert int(answer.total[:, Count.MISSED].sum()) == 100
    assert done(answer, Op.TOUCH) == 0
    assert "met no accessible page" in failure(p, answer)


def test_calls_that_fail_say_where_and_why(worker: Child) -> None:
    text = """
[regions.a]
size = "64 TiB"
[roles.r]
threads = "rest"
loop = [ { do = "mmap", on = "a" }, { do = "munmap", on = "a", counts = 1 } ]
"""
    p = program(text.replace("64 TiB", "32 TiB"))
    answer = ran(worker, p, budget=100)
    if int(answer.total[:, Count.FAILED].sum()):  # vm.overcommit_memory allows it, or not
        assert failure(p, answer).endswith("mmap at roles.r.loop.0 (mmap): Cannot allocate memory")


def test_a_program_that_does_nothing_is_called_endless(worker: Child) -> None:
    text = """
[regions.a]
size = "8 pages"
count = 4
[roles.r]
threads = "rest"
loop = [
  { do = "pick", on = "a" },
  { do = "if_mapped", on = "a", steps = [ { do = "munmap", on = "a", counts = 1 } ] },
]
"""
    answer = worker.ask(RunRequest(program(text), budget=10))
    assert "steers in circles" in answer.problem or "not all threads" in answer.problem


def test_a_worker_that_was_killed_is_one_line_and_the_next_request_starts_another() -> None:
    p = compile_workload(load_workload("mmap1"), 1)
    with Child("mmreplay.hardware.run_worker") as child:
        assert child.ask(RunRequest(p, budget=10)).problem == ""
        assert child._process is not None
        child._process.kill()
        with pytest.raises(UserError, match="killed by SIGKILL"):
            child.ask(RunRequest(p, budget=10))
        assert child.ask(RunRequest(p, budget=10)).problem == ""


# -- locks by path -----------------------------------------------------------------------------


def _traceable() -> bool:
    try:
        tracing.tracefs()
    except UserError:
        return False
    return os.access("/sys/kernel/tracing/instances", os.W_OK)


@pytest.mark.skipif(not _traceable() or not has_populate(), reason="needs to trace")
@pytest.mark.parametrize("name", ["page_fault1", "faulters-and-mappers"])
def test_the_kernel_takes_the_locks_of_each_path(worker: Child, name: str) -> None:
    from mmreplay.hardware.facts import per_vma_locks

    threads = 1 if name == "page_fault1" else 2
    p = compile_workload(load_workload(name), threads)
    with tracing.Instance(tracing.tracefs()) as instance:
        cpu = min(os.sched_getaffinity(0))
        instance.buffer(cpu)
        found: dict[str, Traced] = {}
        for path in ("vma", "mmap_lock", "kernel"):
            request = RunRequest(
                p.by_path(path),  # type: ignore[arg-type]
                cpus=(cpu,) * threads,
                budget=1000,
                instance=instance.path,
            )
            found[path] = worker.ask(request)
            assert found[path].problem == ""
    for path in ("mmap_lock", "kernel"):
        assert found[path].populates >= 900
        assert found[path].locked_populates == found[path].populates
        assert verdict(path, found[path], per_vma_locks()) == "verified"
    assert found["vma"].faults >= 900
    if per_vma_locks():
        assert found["vma"].locked_faults <= found["vma"].changes + 2
        assert verdict("vma", found["vma"], True) == "verified"


LINES = """
 a-7 [000] ..... 1.0: sys_enter: NR 9 (0, 1000, 3, 22, ffffffff, 0)
 a-7 [000] ..... 1.1: mmap_lock_acquire_returned: mm=0001 memcg_path=/ write=true success=true
 a-7 [000] ..... 1.2: page_fault_user: address=0x10 ip=0x0 error_code=0x6
 a-7 [000] ..... 1.3: mmap_lock_acquire_returned: mm=0001 memcg_path=/ write=false success=true
 a-7 [000] ..... 1.4: page_fault_user: address=0x10 ip=0x0 error_code=0x6
 a-7 [000] ..... 1.5: sys_enter: NR 28 (10, 1000, 17, 0, 0, 0)
 a-7 [000] ..... 1.6: mmap_lock_acquire_returned: mm=0001 memcg_path=/ write=false success=true
 a-7 [000] ..... 1.7: mmap_lock_acquire_returned: mm=0001 memcg_path=/ write=false success=true
 a-7 [000] ..... 1.8: sys_enter: NR 28 (10, 1000, 4, 0, 0, 0)
 a-7 [000] ..... 1.9: mmap_lock_acquire_returned: mm=0001 memcg_path=/ write=false success=true
 a-5 [000] ..... 2.0: page_fault_user: address=0x10 ip=0x0 error_code=0x6
"""


def test_locks_are_charged_to_the_fault_or_call_that_takes_them() -> None:
    found = tally(LINES.splitlines(), main=5)
    assert (found.faults, found.locked_faults) == (2, 1)
    assert (found.populates, found.locked_populates, found.changes) == (1, 1, 1)


def test_verdicts() -> None:
    assert verdict("vma", Traced(faults=1000, locked_faults=5, changes=5), True) == "verified"
    all_locked = Traced(faults=1000, locked_faults=1000, changes=3)
    assert "1000 of 1000 faults" in verdict("vma", all_locked, True)
    assert "no per-VMA locks" in verdict("vma", all_locked, False)
    first = Traced(faults=1000, locked_faults=1000, changes=2000)
    assert "first in its VMA" in verdict("vma", first, True)
    assert verdict("mmap_lock", Traced(populates=1000, locked_populates=1000), True) == "verified"
    assert "500 of 1000" in verdict("mmap_lock", Traced(populates=1000, locked_populates=500), True)
    beside = Traced(populates=1000, locked_populates=1000, faults=416)
    assert "416 faults beside 1000 calls" in verdict("mmap_lock", beside, True)
    beside.forks = 17  # each child has its own copies of the loop's pages
    assert verdict("mmap_lock", beside, True) == "verified"
    assert verdict("vma", Traced(problem="no"), True) == "not verified: no"


# -- figures -----------------------------------------------------------------------------------


def test_fairness() -> None:
    assert jain(np.array([5.0, 5.0, 5.0])) == pytest.approx(1)
    assert jain(np.array([9.0, 0.0, 0.0])) == pytest.approx(1 / 3)


def test_rates_are_over_each_threads_own_window() -> None:
    p = compile_workload(load_workload("mmap1"), 2)
    n = len(p.threads)
    counts = np.zeros((n, Count.WORDS), np.int64)
    counts[1:, Count.OPS] = 100, 300
    window = np.array([0, 1_000_000_000, 2_000_000_000])
    answer = RunAnswer(counts=counts, total=counts, window_ns=window, usage=np.zeros((n, 18)))
    row = figures(p, answer)
    assert row["ops_per_s"] == pytest.approx(100 + 150)
    assert row["ops"] == 400
    assert (row["thread_min_per_s"], row["thread_max_per_s"]) == (100, 150)
    assert row["fairness"] == pytest.approx(250**2 / (2 * (100**2 + 150**2)))
