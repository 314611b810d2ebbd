"""What is performed is what is simulated: the same operations, order and waits."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from mmreplay.address_space.plan import PlanOp, Trait
from mmreplay.errors import UserError
from mmreplay.fit.performed import PerformedCase, simulation_of
from mmreplay.hardware.trace_build import build
from mmreplay.hardware.trace_performed import awaited, performed
from mmreplay.hardware.trace_program import Do, Word
from mmreplay.locking.releases import resolve_kernel
from mmreplay.machine import load_machine
from mmreplay.schema import FaultBits, OpKind
from mmreplay.trace.header import Header
from mmreplay.trace.store import Trace, frame
from mmreplay.trace.validate import validate

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="runs on x86-64 only")

BASE = 0x7F12_3456_7000
WRITE = int(FaultBits.USER | FaultBits.WRITE)
MAP = {"kind": OpKind.MMAP, "address": BASE, "result": BASE, "length": 16384, "prot": 3}


def recorded(*rows: dict[str, Any]) -> Trace:
    given = [
        {"begin_ns": 1000 * k, "pid": 10, "address_space": 1, "think_cpu_ns": 0, "errno": 0, **row}
        for k, row in enumerate(rows)
    ]
    threads = [
        {"tid": tid, "pid": 10, "address_space": 1} for tid in sorted({row["tid"] for row in rows})
    ]
    tables = {
        "operations": frame("operations", given),
        "threads": frame("threads", threads),
        "vmas": frame("vmas", []),
    }
    return Trace.in_memory(Header(), tables)


def mapped(tid: int, **more: Any) -> dict[str, Any]:
    return {"tid": tid, **MAP, "flags": 0x22, "fd": -1, **more}


def touched(tid: int, page: int, **more: Any) -> dict[str, Any]:
    address = BASE + 4096 * page
    return {"tid": tid, "kind": OpKind.FAULT_USER, "address": address, "fault_bits": WRITE, **more}


def unmapped(tid: int, **more: Any) -> dict[str, Any]:
    return {"tid": tid, "kind": OpKind.MUNMAP, "address": BASE, "length": 16384, **more}


def case(trace: Trace, path: Any = "vma") -> PerformedCase:
    program = build(trace, "saturated").by_path(path)
    return PerformedCase(program, Header(), resolve_kernel("6.18")[0])


ROWS = (mapped(1), touched(2, 0), touched(3, 1), touched(2, 2), unmapped(1), mapped(3))


def test_operations_are_the_recorded_ones_in_their_order() -> None:
    program = build(recorded(*ROWS), "saturated")
    trace = performed(program, Header())
    validate(trace)
    rows = trace.operations.collect()
    assert rows["tid"].to_list() == [1, 2, 3, 2, 1, 3]
    assert rows["kind"].to_list() == [int(row["kind"]) for row in ROWS]
    assert rows["fault_bits"].to_list() == [None, WRITE, WRITE, WRITE, None, None]


def test_waits_are_those_that_are_performed() -> None:
    pairs = awaited(build(recorded(*ROWS), "saturated")).tolist()
    # faults after the mapping; the unmapping after the last faults; the mapping after it
    assert sorted(pairs) == [[1, 0], [2, 0], [4, 2], [4, 3], [5, 4]]
    plan = case(recorded(*ROWS)).plan
    found = [
        [int(plan.row[k]), int(plan.row[other])]
        for k in range(plan.n_ops)
        for other in plan.dep_op[plan.dep_first[k] : plan.dep_first[k + 1]]
    ]
    assert all(pair in found for pair in pairs)


def test_a_thread_computes_before_it_waits() -> None:
    """As in the recording: while another maps what it needs, it is at its own work."""
    rows = (
        mapped(1, think_cpu_ns=700),
        touched(2, 0, think_cpu_ns=1100, think_blocked_ns=1300),
        touched(2, 1, think_cpu_ns=1700),
    )
    program = build(recorded(*rows))
    second = program.rows[program.threads[1, 0] :]
    assert second[:, Word.DO].tolist() == [Do.AWAIT, Do.WRITE, Do.WRITE]
    assert second[:, Word.THINK].tolist() == [1100, 0, 1700]
    assert second[:, Word.BLOCKED].tolist() == [1300, 0, 0]
    operations = performed(program, Header()).operations.collect()
    assert operations["think_cpu_ns"].to_list() == [700, 1100, 1700]
    assert operations["think_blocked_ns"].to_list() == [0, 1300, 0]


def test_a_wait_and_think_times_make_the_makespan() -> None:
    """Thread 2 computes 5 ms, then unmaps; thread 1 maps anew after that and 3 ms more."""
    rows = (
        mapped(1),
        unmapped(2, think_cpu_ns=5_000_000, think_blocked_ns=90_000_000),
        mapped(1, think_cpu_ns=3_000_000),
    )
    found = case(recorded(*rows)).simulate(load_machine("epyc-zen4-guest-2cpu"), 2)
    assert 5.0 <= found.makespan_s * 1e3 <= 8.1  # blocked think is left out
    assert 0 < found.memory_share < 0.05


def test_a_forked_process_exits_at_once() -> None:
    rows = (
        mapped(1),
        touched(1, 0),
        {"tid": 1, "kind": OpKind.FORK, "child": 77, "result": 77},
        touched(1, 1),
        touched(2, 2),
    )
    program = build(recorded(*rows), "saturated")
    trace = performed(program, Header())
    validate(trace)
    assert trace.operations.collect()["tid"].to_list() == [1, 1, 1, 3, 1, 2]
    assert [4, 0] not in awaited(program).tolist()
    assert [5, 0] in awaited(program).tolist()
    found = case(recorded(*rows)).simulate(load_machine("epyc-zen4-guest-2cpu"), 2)
    assert found.op_count[PlanOp.FORK] == 1
    assert found.op_count[PlanOp.FAULT] == 3


def test_by_the_other_path_faults_are_populating_calls() -> None:
    plan = case(recorded(*ROWS), "mmap_lock").plan
    assert int((plan.op == PlanOp.MADVISE_POPULATE).sum()) == 3
    plan = case(recorded(*ROWS), "kernel").plan
    faults = plan.op == PlanOp.FAULT
    assert (plan.traits[faults] & np.uint64(Trait.KERNEL_MODE) != 0).all()


def test_files_are_shared_memory_with_every_page_present() -> None:
    row = mapped(1, flags=2, fd=5, file_offset=0)
    plan = case(recorded(row, touched(1, 0), touched(1, 1, fault_bits=int(FaultBits.USER)))).plan
    faults = np.flatnonzero(plan.op == PlanOp.FAULT)
    traits = [Trait(int(plan.traits[k])) for k in faults]
    assert traits[0] & Trait.COW
    assert traits[1] & Trait.FAULT_AROUND
    assert all(t & Trait.SHMEM and not t & Trait.FIRST_IN_FILE for t in traits)


def test_an_unknown_machine_is_named_with_its_option() -> None:
    with pytest.raises(UserError, match='--simulate: unknown machine "nosuch"'):
        simulation_of("nosuch")
