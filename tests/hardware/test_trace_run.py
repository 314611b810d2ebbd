"""A recorded application performed for real: its operations, its order, its limits."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mmreplay.cli.main import cli
from mmreplay.errors import UserError
from mmreplay.hardware.child import Child
from mmreplay.hardware.loop_tables import (
    RU_MINFLT,
    RU_NVCSW,
    RU_SYSTEM_S,
    RU_SYSTEM_US,
    RU_USER_S,
    RU_USER_US,
)
from mmreplay.hardware.runs import read_runs
from mmreplay.hardware.suite import has_populate
from mmreplay.hardware.trace_build import build
from mmreplay.hardware.trace_edges import find_edges
from mmreplay.hardware.trace_program import Do, TraceProgram, Word
from mmreplay.hardware.trace_run import TraceAnswer, TraceRequest, files_of, throughput
from mmreplay.schema import FaultBits, OpKind
from mmreplay.trace.header import Header
from mmreplay.trace.store import Trace, frame
from mmreplay.workloads.api import synthesise

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="runs on x86-64 only")

ROOT = Path(__file__).parents[2]
BASE = 0x7F12_3456_7000
WRITE = int(FaultBits.USER | FaultBits.WRITE)


@pytest.fixture(scope="module")
def worker() -> Iterator[Child]:
    with Child("mmreplay.hardware.run_worker") as child:
        yield child


def performed(worker: Child, program: TraceProgram) -> TraceAnswer:
    answer = worker.ask(TraceRequest(program))
    assert isinstance(answer, TraceAnswer)
    assert answer.problem == ""
    return answer


def a_trace(rows: list[dict[str, Any]]) -> Trace:
    """Rows get times 1 µs apart."""
    given = [
        {"begin_ns": 1000 * k, "pid": 10, "address_space": 1, "think_cpu_ns": 100, **row}
        for k, row in enumerate(rows)
    ]
    threads = [
        {"tid": tid, "pid": 10, "address_space": 1, "comm": "t", "group": "t"}
        for tid in sorted({row["tid"] for row in rows})
    ]
    tables = {
        "operations": frame("operations", given),
        "threads": frame("threads", threads),
        "vmas": frame("vmas", []),
    }
    return Trace.in_memory(Header(), tables)


def mapped(tid: int, address: int, pages: int, **more: Any) -> dict[str, Any]:
    row = {"tid": tid, "kind": OpKind.MMAP, "address": address, "result": address, "fd": -1}
    return {**row, "length": pages * 4096, "prot": 3, "flags": 0x22, **more}


def touched(tid: int, address: int) -> dict[str, Any]:
    return {"tid": tid, "kind": OpKind.FAULT_USER, "address": address, "fault_bits": WRITE}


def unmapped(tid: int, address: int, pages: int) -> dict[str, Any]:
    return {"tid": tid, "kind": OpKind.MUNMAP, "address": address, "length": pages * 4096}


def test_threads_wait_for_mappings_of_others_and_unmappings_for_their_uses(worker: Child) -> None:
    """Thread 1 maps and unmaps the same range 300 times; thread 2 touches it each time."""
    rows = []
    for _ in range(300):
        rows += [mapped(1, BASE, 4), *(touched(2, BASE + 4096 * k) for k in range(4))]
        rows += [unmapped(1, BASE, 4)]
    program = build(a_trace(rows))
    answer = performed(worker, program)
    assert answer.missed == answer.failed == 0
    assert 1200 <= int(answer.usage[:, RU_MINFLT].sum()) <= 1220
    assert program.operations == len(rows)
    assert int((program.rows[:, Word.DO] == Do.AWAIT).sum()) >= 599
    assert (answer.done_ns[program.rows[:, Word.OPERATION] == 1] > 0).all()


def test_edges_are_those_of_the_map() -> None:
    # 0 maps pages 0-9 in thread 0; 1 uses page 3, 2 page 4 in thread 1; 3 unmaps in thread 0
    owner, shape = np.array([0, 1, 1, 0]), np.array([1, 0, 0, 1])
    edges = find_edges(owner, np.array([0, 3, 4, 0]), np.array([10, 4, 5, 10]), shape, 2)
    assert edges.tolist() == [[1, 0], [3, 2]]
    # what does not overlap is not ordered
    edges = find_edges(owner[:2], np.array([0, 20]), np.array([10, 30]), shape[:2], 2)
    assert edges.tolist() == []


def test_a_thread_begins_where_it_was_cloned(worker: Child) -> None:
    rows = [mapped(1, BASE, 8), touched(1, BASE)]
    rows += [{"tid": 1, "kind": OpKind.CLONE, "child": 2, "result": 2}]
    rows += [touched(2, BASE + 4096), touched(1, BASE + 8192)]
    program = build(a_trace(rows))
    assert program.threads[:, 2].tolist() == [1, 0]
    answer = performed(worker, program)
    assert answer.missed == 0
    assert int(answer.usage[:, RU_MINFLT].sum()) >= 3


def test_the_break_remaps_and_kernel_mode_faults(worker: Child) -> None:
    heap = 0x5555_0000_0000
    rows = [
        {"tid": 1, "kind": OpKind.BRK, "address2": 0, "result": heap},
        {"tid": 1, "kind": OpKind.BRK, "address": heap, "length": 8192, "address2": heap + 8192},
        touched(1, heap + 4096),
        {
            "tid": 1,
            "kind": OpKind.BRK,
            "address": heap + 4096,
            "length": 4096,
            "address2": heap + 4096,
        },
        mapped(1, BASE, 2),
        {
            "tid": 1,
            "kind": OpKind.MREMAP,
            "address": BASE,
            "length2": 8192,
            "length": 16384,
            "result": BASE + (1 << 21),
            "flags": 1,
        },
        {
            "tid": 1,
            "kind": OpKind.FAULT_KERNEL,
            "address": BASE + (1 << 21) + 12288,
            "fault_bits": int(FaultBits.WRITE),
        },
        {"tid": 1, "kind": OpKind.MADVISE, "address": BASE + (1 << 21), "length": 4096, "flags": 4},
        {"tid": 1, "kind": OpKind.MMAP, "errno": 12, "length": 1},
    ]
    program = build(a_trace(rows))
    answer = performed(worker, program)
    assert answer.failed == answer.missed == 0
    assert program.left_out == {"that failed": 1}
    assert int(answer.usage[:, RU_MINFLT].sum()) >= 2


def test_no_address_lies_outside_the_arena() -> None:
    trace = synthesise("wasm-instances", threads=2, ops=3000).trace
    for path in ("vma", "mmap_lock", "kernel"):
        program = build(trace).by_path(path)  # type: ignore[arg-type]
        low, high = program.span
        rows = program.rows[program.rows[:, Word.DO] != Do.AWAIT]
        reaches = rows[np.isin(rows[:, Word.DO], (Do.WRITE, Do.READ, Do.CALL))]
        length = np.where(reaches[:, Word.DO] == Do.CALL, reaches[:, Word.B], 1)
        assert (reaches[:, Word.A] >= low).all()
        assert (reaches[:, Word.A] + length <= high).all()
        assert all(low <= m.address and m.address + m.length <= high for m in program.mappings)


@pytest.mark.parametrize("name", ["page_fault2", "allocator-arenas", "thread-pool", "brk1"])
def test_synthetic_traces_are_performed_without_failures(worker: Child, name: str) -> None:
    trace = synthesise(name, threads=2, ops=4000).trace
    operations = trace.table("operations").collect()
    faults = int((operations["kind"] == OpKind.FAULT_USER).sum())
    program = build(trace)
    answer = performed(worker, program)
    assert answer.failed == 0
    assert answer.missed == 0
    found = int(answer.usage[:, RU_MINFLT].sum())
    assert faults * 0.9 - 5 <= found <= faults * 1.02 + 80


@pytest.mark.skipif(not has_populate(), reason="no MADV_POPULATE_WRITE")
def test_by_the_other_path_faults_are_populating_calls(worker: Child) -> None:
    program = build(
        a_trace([mapped(1, BASE, 64), *(touched(1, BASE + 4096 * k) for k in range(64))])
    )
    other = program.by_path("mmap_lock")
    assert not np.isin(other.rows[:, Word.DO], (Do.WRITE, Do.READ)).any()
    answer = performed(worker, other)
    assert answer.failed == answer.missed == 0
    assert int(answer.usage[:, RU_MINFLT].sum()) >= 64


def test_what_could_hurt_or_has_no_place_is_left_out_and_keeps_its_time() -> None:
    """MADV_HWPOISON would take memory away from the machine; a fault at 0 has failed anyway."""
    poison = {"tid": 1, "kind": OpKind.MADVISE, "address": BASE, "length": 4096, "flags": 100}
    rows = [mapped(1, BASE, 4), poison, touched(1, 0), touched(1, (1 << 47) + 4096)]
    rows += [touched(1, BASE), {"tid": 1, "kind": OpKind.MSEAL, "address": BASE, "length": 4096}]
    program = build(a_trace(rows))
    assert program.left_out == {
        "madvise of another kind": 1,
        "without an address of the process": 2,
        "of the kind MSEAL": 1,
    }
    assert program.rows[:, Word.THINK].tolist() == [100, 400]
    assert program.operations == 2


def test_saturated_load_does_not_sleep() -> None:
    rows = [{**mapped(1, BASE, 1), "think_blocked_ns": 5_000_000}, touched(1, BASE)]
    trace = a_trace(rows)
    assert build(trace, "recorded").rows[:, Word.BLOCKED].sum() == 5_000_000
    assert build(trace, "saturated").rows[:, Word.BLOCKED].sum() == 0


def test_the_window_begins_at_a_tenth_and_ends_with_the_first_thread() -> None:
    program = build(
        a_trace([mapped(1, BASE, 64), *(touched(1, BASE + 4096 * k) for k in range(9))])
    )
    done = np.arange(1, 11) * 1_000_000
    answer = TraceAnswer(done_ns=done, ended_ns=np.array([10_000_000]), thought_ns=5_000_000)
    found = throughput(program, answer)
    assert found["window_s"] == pytest.approx(0.008)
    assert found["ops"] == 8
    assert found["ops_per_s"] == pytest.approx(1000)
    assert found["useful_work"] == pytest.approx(0.5)


# -- the command -----------------------------------------------------------------------------------


def test_measure_a_trace(tmp_path: Path) -> None:
    synthesise("page_fault1", threads=2, ops=3000, output=tmp_path / "app.mmt")
    words = ["measure", "--trace", str(tmp_path / "app.mmt"), "--repetitions", "2"]
    words += ["--simulate", "epyc-zen4-guest-2cpu", "--think-scale", "2"]
    words += ["--format", "json", "-o", str(tmp_path / "r.parquet")]
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert sorted(one["path"] for one in told["simulated"]) == ["mmap_lock", "vma"]
    for one in told["simulated"]:
        assert one["ratio"] == pytest.approx(one["simulated_makespan_s"] / one["makespan_s"])
        assert 0 < one["simulated_memory_share"] <= 1
    assert [(r["workload"], r["path"], r["threads"]) for r in told["rows"]] == [
        ("app", "mmap_lock", 3),  # and the main thread, which starts them
        ("app", "vma", 3),
    ]
    for row in told["rows"]:
        assert row["makespan_s"] > 0
        assert row["useful_work"] >= 0
        assert row["ops_per_s"] > 0
        assert row["path_check"].endswith("(of page_fault1)")
    runs = read_runs(tmp_path / "r.parquet")
    assert len(runs.rows) == 4
    assert {row["failed_calls"] + row["missed_accesses"] for row in runs.rows} == {0}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--trace", "no.mmt"], "no.mmt"),
        (["mmap1", "--trace", "no.mmt"], "a trace has its own threads and operations"),
        (["--trace", "app.mmt", "--memory", "0.0001"], "are allowed; free some, raise --memory"),
        (["mmap1", "--memory", "-1"], "--memory: -1.0 GiB"),
        (["mmap1", "--think-scale", "2"], "--think-scale: only a recorded application"),
        (["--trace", "app.mmt", "--think-scale", "-1"], "--think-scale: -1.0"),
        (["--trace", "app.mmt", "--simulate", "none"], "none"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    synthesise("page_fault1", threads=1, ops=500, output="app.mmt")
    with pytest.raises(UserError) as caught:
        CliRunner().invoke(cli, ["measure", *words], catch_exceptions=False, standalone_mode=False)
    assert line in caught.value.line()
    assert "\n" not in caught.value.line()


def test_a_fault_comes_after_what_threw_its_page_away(worker: Child) -> None:
    """Thread 1 drops two pages again and again, thread 2 touches them each time."""
    rows = [mapped(1, BASE, 2)]
    for _ in range(200):
        rows += [touched(2, BASE), touched(2, BASE + 4096)]
        rows += [{**unmapped(1, BASE, 2), "kind": OpKind.MADVISE, "flags": 4}]
    answer = performed(worker, build(a_trace(rows)))
    assert int(answer.usage[:, RU_MINFLT].sum()) >= 400


def test_a_wait_for_a_thread_that_sleeps_costs_no_cpu_time(worker: Child) -> None:
    rows = [
        mapped(1, BASE, 1),
        {**touched(1, BASE), "think_blocked_ns": 300_000_000},
        unmapped(2, BASE, 1),
    ]
    answer = performed(worker, build(a_trace(rows)))
    assert answer.blocked_ns >= 250_000_000
    used_us = answer.usage[:, [RU_USER_S, RU_SYSTEM_S]].sum() * 1_000_000
    used_us += answer.usage[:, [RU_USER_US, RU_SYSTEM_US]].sum()
    assert used_us < 100_000
    assert int(answer.usage[:, RU_NVCSW].sum()) < 60


def test_think_time_is_scaled() -> None:
    rows = [mapped(1, BASE, 1), touched(1, BASE)]
    assert build(a_trace(rows)).think_ns == 200
    assert build(a_trace(rows), think_scale=2.5).think_ns == 500
    assert build(a_trace(rows), think_scale=0).think_ns == 0


def many_files() -> TraceProgram:
    """1,500 shared mappings of as many files."""
    rows = []
    for k in range(1500):
        at = BASE + 0x10000 * k
        rows += [mapped(1, at, 1, flags=1, fd=3 + k), touched(1, at), unmapped(1, at, 1)]
    program = build(a_trace(rows))
    assert len(program.files) == 1500
    return program


def test_a_program_may_have_more_than_a_thousand_files(worker: Child) -> None:
    answer = performed(worker, many_files())
    assert answer.missed == answer.failed == 0


def test_too_few_open_files_are_told_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError

    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 1024))
    monkeypatch.setattr("resource.setrlimit", refuse)
    with pytest.raises(OSError, match=r"1,024; raise it: ulimit -n 1628"):
        files_of(many_files())
