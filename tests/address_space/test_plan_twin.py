"""Plans equal those of the plain twin: random programs of several threads and processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cold_twin import cold_traits
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plan_twin import Op
from plan_twin_calls import PlanTwin

from mmreplay.address_space.cold_pages import CACHED_PAGES
from mmreplay.address_space.plan import MarkSet, PlanOp, Trait
from mmreplay.address_space.planner import PlanBundle, build_plan
from mmreplay.address_space.rules import load_rules, names
from mmreplay.schema import DurationKind, OpKind
from mmreplay.trace.store import Header, Trace, frame

PAGE = 4096
A = 0x7F00_0000_0000  # a page-table page begins here
LOW = A - 16 * PAGE  # the arena: 32 pages around it
HUGE = A + (1 << 24)  # 4 MiB for huge pages
STACK = A + (1 << 30)
HEAP = 0x5555_0000_0000
STEP_NS = 10_000

COLUMNS = {
    "duration_ns": None,
    "duration_kind": DurationKind.NONE,
    **dict.fromkeys(("address", "length", "address2", "length2", "prot", "flags", "fault_bits")),
    **dict.fromkeys(("file_offset", "fd", "result", "errno", "child")),
    "fault_class": 0,
}
NULL_IS_0 = ("length", "prot", "flags", "fault_class")


class Recording:
    """A program of three threads, a forked child and a vfork child, and what perf saw of it."""

    def __init__(self, snapshot: bool) -> None:
        self.rows: list[dict[str, Any]] = []
        self.vmas: list[dict[str, Any]] = []
        self.threads = [
            self._thread(tid, pid, space)
            for tid, pid, space in ((1, 1, 0), (2, 1, 0), (3, 1, 0), (4, 4, 1), (5, 5, 0))
        ]
        self.where = {1: 0, 2: 0}  # running threads and their address spaces
        self.gone: set[int] = set()
        self.now = 0
        if snapshot:
            self._listed(LOW, 6, 3, "")
            self._listed(STACK, 4, 3, "[stack]")
            self._listed(HEAP, 4, 3, "[heap]")

    @staticmethod
    def _thread(tid: int, pid: int, space: int) -> dict[str, Any]:
        return {
            "tid": tid, "pid": pid, "address_space": space, "first_ns": 0, "last_ns": 1 << 40,
            "start_ns": None, "end_ns": None, "comm": "w", "group": "w",
        }  # fmt: skip

    def _listed(self, start: int, pages: int, prot: int, name: str) -> None:
        self.vmas.append(
            {
                "address_space": 0, "ns": 0, "start": start, "length": pages * PAGE, "prot": prot,
                "flags": 2, "name": name, "source": "snapshot",
            }
        )  # fmt: skip

    def op(self, tid: int, kind: OpKind, lasts: int = 0, **columns: Any) -> None:
        """A row; mapping calls show their effect ``lasts`` steps later."""
        self.now += 100
        row = {
            **COLUMNS, "begin_ns": self.now, "tid": tid, "pid": 1,
            "address_space": self.where[tid], "kind": kind, "think_cpu_ns": 10, **columns,
        }  # fmt: skip
        for name in NULL_IS_0:
            row[name] = row[name] or 0
        if lasts:
            row["duration_ns"], row["duration_kind"] = lasts * STEP_NS, DurationKind.MEASURED
        self.rows.append(row)

    def mapped(self, fd: int) -> None:
        """Most of the arena is there before anything else happens."""
        self.do_mmap(2, 0, LOW + 2 * PAGE, 28, 3, 0x32, fd)

    def step(self, who: int, lasts: int, what: tuple[Any, ...]) -> None:
        """One thing that some running thread does."""
        self.now = (self.now // STEP_NS + 1) * STEP_NS
        running = sorted(self.where)
        tid = running[who % len(running)]
        getattr(self, "do_" + what[0])(tid, lasts, *what[1:])

    # -- what threads do -----------------------------------------------------------------
    def do_mmap(
        self, tid: int, lasts: int, start: int, pages: int, prot: int, flags: int, fd: int
    ) -> None:
        if fd >= 0:
            flags &= ~0x20
        self.op(
            tid, OpKind.MMAP, lasts, address=start, address2=0, length=pages * PAGE, prot=prot,
            flags=flags, fd=fd, file_offset=start - LOW, result=start,
        )  # fmt: skip

    def do_huge(self, tid: int, lasts: int, advise: bool) -> None:
        self.do_mmap(tid, 0, HUGE, 1024, 3, 0x32, -1)
        if advise:
            self.do_madvise(tid, 0, HUGE, 1024, 14)

    def do_munmap(self, tid: int, lasts: int, start: int, pages: int) -> None:
        self.op(tid, OpKind.MUNMAP, address=start, length=pages * PAGE, result=0)

    def do_mprotect(self, tid: int, lasts: int, start: int, pages: int, prot: int) -> None:
        self.op(tid, OpKind.MPROTECT, address=start, length=pages * PAGE, prot=prot, result=0)

    def do_madvise(self, tid: int, lasts: int, start: int, pages: int, advice: int) -> None:
        self.op(tid, OpKind.MADVISE, address=start, length=pages * PAGE, flags=advice, result=0)

    def do_mlock(self, tid: int, lasts: int, start: int, pages: int, lock: bool) -> None:
        kind = OpKind.MLOCK if lock else OpKind.MUNLOCK
        self.op(tid, kind, address=start, length=pages * PAGE, result=0)

    def do_brk(self, tid: int, lasts: int, bytes_: int) -> None:
        self.op(tid, OpKind.BRK, lasts, address2=HEAP + bytes_, result=HEAP + bytes_)

    def do_mremap(
        self, tid: int, lasts: int, start: int, pages: int, wanted: int, to: int, touch: bool
    ) -> None:
        """Of a mapping made just before, as a program that knows what it has does."""
        self.do_mmap(tid, 0, start, pages, 3, 0x32, -1)
        if touch:
            self.do_fault(tid, 0, start, 6, 1, False)
        there = start if to == start else max(to, start + max(pages, wanted) * PAGE)
        if there == start and wanted > pages:
            self.do_munmap(tid, 0, start + pages * PAGE, wanted - pages)
        moves = there != start
        self.op(
            tid, OpKind.MREMAP, address=start, length2=pages * PAGE, length=wanted * PAGE,
            flags=3 if moves else 1, address2=there if moves else 0, result=there,
        )  # fmt: skip

    def do_fault(
        self, tid: int, lasts: int, address: int, bits: int | None, outcome: int, kernel: bool
    ) -> None:
        kind = OpKind.FAULT_KERNEL if kernel else OpKind.FAULT_USER
        self.op(tid, kind, address=address + 8, fault_bits=bits, fault_class=outcome)

    def do_child(self, tid: int, lasts: int, kind: OpKind) -> None:
        child = {OpKind.CLONE: 3, OpKind.FORK: 4, OpKind.VFORK: 5}[kind]
        if child in self.where or child in self.gone or self.where[tid] != 0:
            return
        self.op(tid, kind, child=child, result=child)
        self.threads[child - 1]["start_ns"] = self.now
        self.where[child] = 1 if kind is OpKind.FORK else 0
        self.op(child, OpKind.THREAD_START)

    def do_exec(self, tid: int, lasts: int) -> None:
        if tid in (4, 5) and self.where[tid] < 2:
            self.op(tid, OpKind.EXEC)
            self.where[tid] = tid - 2

    def do_exit(self, tid: int, lasts: int) -> None:
        if tid < 3:
            return
        process = tid == 4 or (tid == 5 and self.where[5] != 0)
        self.op(tid, OpKind.PROCESS_EXIT if process else OpKind.THREAD_EXIT)
        self.now += 100
        self.threads[tid - 1]["end_ns"] = self.now
        del self.where[tid]
        self.gone.add(tid)

    def trace(self) -> Trace:
        tables = {
            "operations": frame("operations", self.rows),
            "threads": frame("threads", self.threads),
            "vmas": frame("vmas", self.vmas),
        }
        return Trace.in_memory(Header(span_ns=self.now + STEP_NS), tables)


page = st.integers(0, 31).map(lambda n: LOW + n * PAGE)
size = st.integers(1, 9)
anonymous = st.sampled_from([0x22, 0x22, 0x22, 0x32, 0x32, 0x21, 0x20022, 0x8022])


def weighted(*choices: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """One of the strategies, each so many times as likely."""
    return st.sampled_from([s for n, s in choices for _ in range(n)]).flatmap(lambda s: s)


def offsets(base: int, low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high).map(lambda n: base + n * PAGE)


touched = weighted(
    (12, page), (3, offsets(HUGE, 0, 1023)), (1, offsets(STACK, -40, 3)), (1, offsets(HEAP, 0, 9))
)
fault = st.tuples(
    st.just("fault"),
    touched,
    st.sampled_from([None, 4, 4, 6, 6, 6, 5, 7, 7, 20]),
    st.sampled_from([1] * 10 + [2, 3, 0]),
    st.sampled_from([False] * 4 + [True]),
)
prot = st.sampled_from([0, 1, 3, 3, 3, 5])
descriptor = st.sampled_from([-1, -1, -1, 7, 8])
advice = st.sampled_from([4, 4, 8, 3, 10, 14, 15, 1, 20, 21, 22, 23])
child = st.sampled_from([OpKind.CLONE, OpKind.FORK, OpKind.FORK, OpKind.VFORK])
whats = weighted(
    (40, fault),
    (6, st.tuples(st.just("mmap"), page, size, prot, anonymous, descriptor)),
    (5, st.tuples(st.just("munmap"), page, size)),
    (5, st.tuples(st.just("mprotect"), page, size, st.sampled_from([0, 1, 3, 5]))),
    (6, st.tuples(st.just("madvise"), page, size, advice)),
    (2, st.tuples(st.just("mlock"), page, size, st.booleans())),
    (3, st.tuples(st.just("brk"), st.integers(1, 9 * PAGE))),
    (3, st.tuples(st.just("mremap"), page, size, size, page, st.booleans())),
    (2, st.tuples(st.just("huge"), st.booleans())),
    (4, st.tuples(st.just("child"), child)),
    (1, st.just(("exec",))),
    (1, st.just(("exit",))),
)
programs = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([0, 0, 0, 1, 2]), whats), min_size=15, max_size=60
)


class Same:
    """A one-to-one correspondence that is found while it is checked."""

    def __init__(self) -> None:
        self.there: dict[int, Any] = {}
        self.back: dict[Any, int] = {}

    def __call__(self, number: int, thing: Any) -> bool:
        if number < 0 or thing is None:
            return number < 0 and thing is None
        return (
            self.there.setdefault(number, thing) == thing
            and self.back.setdefault(thing, number) == number
        )


def compare(bundle: PlanBundle, ops: list[Op]) -> None:
    """Every column of a plan, objects up to their numbers."""
    plan = bundle.plan
    assert plan.n_ops == len(ops)
    vmas, bits, tables, files, mms = Same(), Same(), Same(), Same(), Same()
    place = {int(row): k for k, row in enumerate(plan.row)}
    for op, cold in zip(ops, cold_traits(ops, CACHED_PAGES), strict=True):
        k = place[op.row]
        thread = int(np.searchsorted(plan.thread_first, k, side="right")) - 1
        assert bundle.threads[thread].index == op.thread
        where = f"row {op.row}"
        assert PlanOp(int(plan.op[k])) == op.op, where
        assert Trait(int(plan.traits[k])) == op.traits | cold, where
        for name in ("pages", "vmas", "tables", "first_page", "last_page"):
            assert (name, int(getattr(plan, name)[k])) == (name, getattr(op, name)), where
        bounds = int(plan.vma_first_page[k]), int(plan.vma_last_page[k])
        assert bounds == op.bounds, where
        assert vmas(int(plan.vma[k]), op.vma), where
        assert bits(int(plan.anon_slot[k]), op.bit), where
        assert tables(int(plan.table[k]), op.table), where
        assert files(int(plan.file[k]), op.file), where
        assert mms(int(plan.mm[k]), op.mm), where
        assert mms(int(plan.child_mm[k]), op.child_mm if op.child_mm >= 0 else None), where
        span = slice(int(plan.mark_first[k]), int(plan.mark_first[k + 1]))
        assert [MarkSet(int(s)) for s in plan.mark_set[span]] == [s for s, _ in op.marks], where
        for number, (which, thing) in zip(plan.mark_vma[span].tolist(), op.marks, strict=True):
            assert (tables if which is MarkSet.TABLES else vmas)(number, thing), where
        deps = plan.dep_op[plan.dep_first[k] : plan.dep_first[k + 1]]
        assert sorted(plan.row[deps].tolist()) == sorted(ops[d].row for d in op.deps), where
    assert len(plan.anon_initial) == len(bits.there)
    assert all(plan.anon_initial[n] == bit.initial for n, bit in bits.there.items())
    assert len(plan.table_initial) == len(tables.there)
    assert all(plan.table_initial[n] == table.initial for n, table in tables.there.items())
    assert len(plan.vma_mm) == len(vmas.there)
    assert plan.n_files == len(files.there)


@pytest.mark.parametrize("name", names())
@settings(max_examples=60, deadline=None)
@given(
    program=programs,
    snapshot=st.booleans(),
    mapped=st.sampled_from([None, -1, -1, -1, 7]),
    mode=st.sampled_from(["never", "madvise", "always"]),
    cut=st.one_of(st.none(), st.tuples(st.floats(0, 1), st.floats(0, 1))),
    chunk=st.sampled_from([3, 1 << 18]),
)
@example(  # populating over what it unmaps, and a table further on
    program=[
        (0, 0, ("fault", LOW, None, 1, False)),
        (0, 0, ("mmap", LOW + 15 * PAGE, 2, 1, 0x8022, -1)),
    ],
    snapshot=False,
    mapped=-1,
    mode="never",
    cut=None,
    chunk=1 << 18,
)
def test_plan_equals_its_twin(
    name: str, program: list[Any], snapshot: bool, mapped: Any, mode: Any, cut: Any, chunk: int
) -> None:
    recording = Recording(snapshot)
    if mapped is not None:
        recording.mapped(mapped)
    for who, lasts, what in program:
        recording.step(who, lasts, what)
    total = len(recording.rows)
    window = (0, total)
    if cut is not None:
        first = min(int(cut[0] * total), total - 1)
        window = first, first + max(int(cut[1] * (total - first)), 1)
    rules = load_rules(name)
    bundle = build_plan(recording.trace(), rules, window=window, huge_pages=mode, chunk=chunk)
    huge = {"never": -1, "madvise": 0, "always": 1}[mode]
    twin = PlanTwin(
        recording.rows, recording.threads, recording.vmas, rules.vector, window, huge
    )  # fmt: skip
    compare(bundle, twin.ops)
    if window == (0, total):
        for counter in (
            "unknown_faults", "map_conflicts", "stale_pages", "present_learnt",
            "absent_unexpected", "huge_guessed", "huge_contradicted", "brk_unknown",
        ):  # fmt: skip
            assert bundle.counters[counter] == twin.counts[counter], counter
