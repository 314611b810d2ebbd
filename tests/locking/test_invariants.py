"""What holds for every shipped model, whoever meets whom: small plans, both engines.

Faults and writers of several threads are replayed on few CPUs, at times that hypothesis
chooses, by the oracle and by the compiled engine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmreplay.address_space.plan import MarkSet, Plan, PlanOp, Trait
from mmreplay.address_space.planner import build_plan
from mmreplay.address_space.rules import load_rules
from mmreplay.engine import LockStats, Options, Result, simulate
from mmreplay.engine.oracle import simulate_oracle
from mmreplay.locking import list_models
from mmreplay.locking.isa import Kind
from mmreplay.locking.model import LockingModel
from mmreplay.machine.loader import load_machine
from mmreplay.workloads.script import PG
from mmreplay.workloads.tape import PROT_READ, READ_WRITE, Tape

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from small import op, plan

MACHINE = load_machine("generic-server")
MODELS = list_models()
PER_VMA = [m for m in MODELS if m.kernel and "vma_lock" in m.locks]
ONE_LOCK = [m for m in MODELS if m.kernel and "vma_lock" not in m.locks]
SPECULATIVE = [m for m in MODELS if m.name.startswith("spf-")]
WRITE = Trait.ANON | Trait.WRITE | Trait.NEEDS_ANON_VMA
STRUCTURAL = Trait.ANON | Trait.STRUCTURAL

few = settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def by_name(models: Sequence[LockingModel]) -> Any:
    return pytest.mark.parametrize("model", models, ids=lambda m: m.name)


def lock(result: Result, name: str = "mmap_lock") -> LockStats:
    return next(one for one in result.locks if one.name == name)


def replays(plan_: Plan, model: LockingModel, cores: int, seed: int) -> list[Result]:
    """By both engines, which agree."""
    options = Options(cores=cores, seed=seed)
    found = [
        simulate_oracle(plan_, model, MACHINE, options),
        simulate(plan_, model, MACHINE, options),
    ]
    assert found[0].locks == found[1].locks
    assert found[0].reasons == found[1].reasons
    assert found[0].makespan_ns == found[1].makespan_ns
    assert found[0].ops == plan_.n_ops
    return found


def fault(page: int, vma: int, think_ns: int) -> dict[str, Any]:
    return op(
        PlanOp.FAULT,
        traits=int(WRITE),
        vma=vma,
        anon_slot=vma,
        table=vma,
        first_page=page,
        last_page=page,
        vma_first_page=1024 * vma,
        vma_last_page=1024 * vma + 1023,
        think_cpu_ns=think_ns,
    )


def write(
    kind: PlanOp, vma: int, marks: Sequence[tuple[MarkSet, int]], think: int
) -> dict[str, Any]:
    return op(
        kind,
        traits=int(STRUCTURAL | Trait.PAGES_PRESENT),
        vma=vma,
        anon_slot=vma,
        table=vma,
        first_page=1024 * vma,
        last_page=1024 * vma + 3,
        vma_first_page=1024 * vma,
        vma_last_page=1024 * vma + 1023,
        pages=4,
        think_cpu_ns=think,
        marks=[(int(which), target) for which, target in marks],
    )


@st.composite
def mixes(draw: st.DrawFn, own: bool) -> tuple[Plan, int, int, int]:
    """Faulting threads and a writer.  ``own``: the writer works on a VMA that nobody faults in.

    Returns the plan, its faults, its faulting threads and the marks on the faulted VMA.
    """
    think = st.integers(0, 4000)
    faulters = draw(st.integers(1, 3))
    threads = []
    for t in range(faulters):
        n = draw(st.integers(1, 10))
        threads.append([fault(16 * t + i, 0, draw(think)) for i in range(n)])
    target = 1 if own else 0
    kinds = st.sampled_from(
        [PlanOp.MPROTECT, PlanOp.MADVISE_FLAGS, PlanOp.MMAP, PlanOp.MREMAP_GROW]
    )
    sections = draw(st.integers(1, 8))
    threads.append(
        [
            write(draw(kinds), target, [(MarkSet.TARGETS, target)], draw(think))
            for _ in range(sections)
        ]
    )
    made = plan(threads)
    made.anon_initial[:] = 1
    made.table_initial[:] = 1
    faults = sum(map(len, threads[:-1]))
    return made, faults, faulters, 0 if own else sections


CORES = st.integers(1, 4)
SEEDS = st.integers(0, 99)


@by_name(PER_VMA)
@few
@given(mixes(own=True), CORES, SEEDS)
def test_faults_in_vmas_that_no_writer_touches_never_fall_back(model, mix, cores, seed) -> None:
    made, faults, _, _ = mix
    for result in replays(made, model, cores, seed):
        assert lock(result).read == 0
        assert lock(result, "vma_lock").read == faults
        assert sum(result.reasons.values()) == 0


@by_name(PER_VMA)
@few
@given(mixes(own=False), CORES, SEEDS)
def test_a_fault_falls_back_at_most_once_for_each_mark_and_thread(model, mix, cores, seed) -> None:
    made, faults, threads, marks = mix
    for result in replays(made, model, cores, seed):
        fallbacks = result.reasons["vma_busy"]
        assert fallbacks <= marks * threads
        assert lock(result).read == fallbacks
        assert lock(result, "vma_lock").read == faults - fallbacks
        assert lock(result, "vma_lock").mark == marks


@by_name(ONE_LOCK)
@few
@given(st.booleans().flatmap(lambda own: mixes(own=own)), CORES, SEEDS)
def test_without_vma_locks_every_fault_reads_once(model, mix, cores, seed) -> None:
    made, faults, _, _ = mix
    for result in replays(made, model, cores, seed):
        assert lock(result).read == faults


@by_name(SPECULATIVE)
@few
@given(st.booleans().flatmap(lambda own: mixes(own=own)), CORES, SEEDS)
def test_a_speculation_aborts_only_where_a_sequence_moved(model, mix, cores, seed) -> None:
    """Per VMA (Dufour) only for its own writers; per mm (Lespinasse) for any."""
    made, faults, threads, marks = mix
    sections = made.n_ops - faults
    for result in replays(made, model, cores, seed):
        aborts = sum(count for reason, count in result.reasons.items() if reason.startswith("spf_"))
        assert lock(result).read == aborts
        # a fault may meet the section that runs and one that begins before it has committed
        bound = (marks if model.name == "spf-dufour" else sections) * threads
        busy = result.reasons.get("spf_ptl", 0)  # somebody else's commit to the same table
        assert aborts - busy <= 2 * bound


@by_name(MODELS)
@few
@given(st.booleans().flatmap(lambda own: mixes(own=own)), CORES, SEEDS)
def test_every_replay_ends_and_writers_write(model, mix, cores, seed) -> None:
    made, faults, _, _ = mix
    for result in replays(made, model, cores, seed):
        taken = lock(result)
        if model.lock_kind[model.locks.index("mmap_lock")] == Kind.RWSEM:
            assert taken.write == made.n_ops - faults
        else:  # a design without one lock for all: at least one section for each operation
            assert taken.write + taken.read >= made.n_ops


# -- merges: which VMAs a mapping call marks ---------------------------------------------------


@few
@given(
    st.sampled_from([m for m in PER_VMA if m.name in ("linux-6.4", "linux-6.12", "linux-7.3")]),
    st.booleans(),
    st.booleans(),
    st.integers(2, 6),
)
def test_merging_neighbours_are_marked_and_unrelated_vmas_are_not(
    model: LockingModel, left: bool, right: bool, others: int
) -> None:
    tape = Tape()
    base = tape.reserve(64 * PG) + 8 * PG
    for k in range(others):  # unrelated: apart, or of another protection
        tape.mmap(PG, PROT_READ, at=base + (20 + 2 * k) * PG)
    tape.mmap(PG, READ_WRITE if left else PROT_READ, at=base)
    tape.mmap(PG, READ_WRITE if right else PROT_READ, at=base + 2 * PG)
    for page in (0, 2):
        tape.fault(base + page * PG)  # names their VMAs in the plan
    tape.fault(base + 20 * PG)
    tape.mmap(PG, READ_WRITE, at=base + PG)
    made = build_plan(tape.trace(), load_rules(model.vma_rules)).plan
    before, after, unrelated = made.vma[-4:-1]
    marks = range(int(made.mark_first[-2]), int(made.mark_first[-1]))
    merged = {
        int(made.mark_vma[k])
        for k in marks
        if made.mark_set[k] in (MarkSet.NEIGHBOURS, MarkSet.REMOVED)
    }
    expected = ({int(before)} if left else set()) | ({int(after)} if right else set())
    assert expected <= merged
    assert int(unrelated) not in {int(made.mark_vma[k]) for k in marks}
    if not left:
        assert int(before) not in merged
    if not right:
        assert int(after) not in merged


@pytest.mark.parametrize("name", ["linux-6.18", "spf-lespinasse", "spf-dufour"])
def test_the_threads_do_meet(name: str) -> None:
    """Without think time faults and writers of one VMA get into each other's way."""
    model = next(m for m in MODELS if m.name == name)
    faults = [fault(i, 0, 0) for i in range(60)]
    writes = [write(PlanOp.MPROTECT, 0, [(MarkSet.TARGETS, 0)], 0) for _ in range(30)]
    made = plan([faults, writes])
    made.anon_initial[:] = 1
    made.table_initial[:] = 1
    for result in replays(made, model, 2, 1):
        assert sum(result.reasons.values()) > 5
