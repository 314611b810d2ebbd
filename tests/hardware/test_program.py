"""Recordings as programs, and what performing them does (no counting here)."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmreplay.hardware.loop import Action, Column
from mmreplay.hardware.perform import Performed, Unable, run
from mmreplay.hardware.program import NOTHING, WARM, Place, Program, build, slots_used
from mmreplay.schema import PAGE_SIZE, FaultClass, OpKind
from mmreplay.workloads.phases import GROUPS, record
from mmreplay.workloads.tape import Tape

Script = Callable[[Tape], None]


def program(script: Script) -> Program:
    tape = Tape()
    script(tape)
    rows = tape.trace().operations.collect().to_dicts()
    segments = {name: (a, b, b - a) for name, (a, b) in tape.segments.items()}
    return build(rows, segments, {}, "/bin/true")


def performed(script: Script) -> list[Performed] | str:
    """Perform in a child, as always; its word, or why it could not."""
    made = program(script)
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        message: Any = "died"
        try:
            message = run(made, {})[0]
        except Unable as error:
            message = str(error)
        finally:
            with os.fdopen(write_end, "wb") as out:
                pickle.dump(message, out)
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as stream:
        answer: list[Performed] | str = pickle.load(stream)
    os.waitpid(child, 0)
    return answer


@pytest.fixture(autouse=True)
def _linux() -> None:
    if os.uname().sysname != "Linux" or os.uname().machine != "x86_64":
        pytest.skip("performs operations on Linux on x86-64 only")


def phase(tape: Tape, *steps: Callable[[], object]) -> None:
    tape.begin("phase")
    for step in steps:
        step()
    tape.end()


@pytest.mark.parametrize("group", list(GROUPS))
def test_every_recorded_group_becomes_a_program(group: str) -> None:
    phases = record(group)
    trace = next(iter(phases.values())).trace
    rows = trace.operations.collect().to_dicts()
    made = build(
        rows,
        {name: (p.first, p.end, p.ops) for name, p in phases.items()},
        {3: 2, 4: 3, 5: 3},  # type: ignore[dict-item]
        "/bin/true",
    )
    assert [s.name for s in made.segments] == [WARM, NOTHING, *phases]
    assert [s.ops for s in made.segments[2:]] == [p.ops for p in phases.values()]
    # Segments follow each other and do not overlap.
    bounds = [b for s in made.segments for b in (s.begin, s.end)]
    assert bounds == sorted(bounds)
    # Every context but the first is made once, and every exit is waited for.
    kinds = made.table[:, Column.ACTION]
    makes = np.isin(kinds, (Action.FORK, Action.THREAD, Action.VFORK))
    waits = np.isin(kinds, (Action.WAIT_PROCESS, Action.WAIT_THREAD))
    exits = np.isin(kinds, (Action.EXIT_PROCESS, Action.EXIT_THREAD, Action.EXEC))
    assert sorted(made.table[makes, Column.NUMBER]) == list(range(1, makes.sum() + 1))
    assert waits.sum() == exits.sum()
    slots_used(made)


def test_an_operation_that_cannot_be_performed_is_an_error() -> None:
    def script(t: Tape) -> None:
        t.mmap(PAGE_SIZE)
        t.op(OpKind.SHMAT, address=0, length=PAGE_SIZE)

    with pytest.raises(ValueError, match="SHMAT"):
        program(script)


def test_addresses_are_told_from_numbers() -> None:
    def script(t: Tape) -> None:
        p = t.isolated(4 * PAGE_SIZE)
        t.mprotect(p, PAGE_SIZE, 1)

    made = program(script)
    row = np.nonzero(made.table[:, Column.NUMBER] == 10)[0][0]
    assert list(made.places[row][:3]) == [Place.ARENA, Place.LITERAL, Place.LITERAL]
    assert made.span[0] < made.table[row, Column.A] < made.span[1]


@pytest.mark.kernel
def test_faults_happen_where_the_recording_has_them() -> None:
    def script(t: Tape) -> None:
        p = t.isolated(64 * PAGE_SIZE)
        phase(t, lambda: t.touch(p, 64))

    done = performed(script)
    assert isinstance(done, list)
    assert [d.minor for d in done] == [0, 0, 64]
    assert not any(d.refused for d in done)


@pytest.mark.kernel
def test_threads_and_processes_take_turns_as_recorded() -> None:
    """A child of fork works on its own copy, a thread and a vfork child on the parent's."""

    def script(t: Tape) -> None:
        p = t.isolated(8 * PAGE_SIZE)
        t.touch(p, 8)
        t.begin("phase")
        for kind, end, tid in (
            (OpKind.FORK, OpKind.PROCESS_EXIT, 10),
            (OpKind.CLONE, OpKind.THREAD_EXIT, 11),
            (OpKind.VFORK, OpKind.PROCESS_EXIT, 12),
            (OpKind.VFORK, OpKind.EXEC, 13),
        ):
            t.fork(kind, tid)
            t.switch(tid)
            if kind is not OpKind.FORK:
                t.madvise(p, PAGE_SIZE, 4)
            t.leave(end)
            if kind is not OpKind.FORK:
                t.write(p)  # gone by what the child did
        t.end()

    done = performed(script)
    assert isinstance(done, list)
    assert done[-1].refused == ""
    assert done[-1].minor >= 3


@pytest.mark.kernel
def test_refused_accesses_are_stepped_over_where_they_are_meant_to_fail() -> None:
    def script(t: Tape) -> None:
        p = t.isolated(4 * PAGE_SIZE, 1)
        q = t.isolated(4 * PAGE_SIZE)
        phase(
            t,
            lambda: t.write(p, outcome=FaultClass.FAILED),
            lambda: t.fault(p - 64 * PAGE_SIZE, outcome=FaultClass.FAILED),
            lambda: t.write(q),
        )

    done = performed(script)
    assert isinstance(done, list)
    assert done[-1].minor == 1


@pytest.mark.kernel
def test_a_call_that_the_kernel_refuses_names_itself() -> None:
    def script(t: Tape) -> None:
        p = t.isolated(4 * PAGE_SIZE)
        phase(t, lambda: t.madvise(p, PAGE_SIZE, 99))

    done = performed(script)
    assert isinstance(done, list)
    assert "madvise" in done[-1].refused
    assert "Invalid argument" in done[-1].refused


@pytest.mark.kernel
def test_a_refused_set_up_is_no_phase() -> None:
    def script(t: Tape) -> None:
        p = t.isolated(4 * PAGE_SIZE)
        t.madvise(p, PAGE_SIZE, 99)
        phase(t, lambda: t.write(p))

    assert "setting up: madvise" in str(performed(script))
