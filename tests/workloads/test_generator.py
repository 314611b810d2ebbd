"""Generated traces: what is in them by hand, by the kernel's rules, and by the planner."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from generating import made, rows, workload
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreplay.address_space.planner import build_plan
from mmreplay.address_space.rules import load_rules
from mmreplay.errors import UserError
from mmreplay.schema import OpKind
from mmreplay.trace.store import Trace
from mmreplay.workloads.api import synthesise
from mmreplay.workloads.definition import (
    list_probes,
    list_workloads,
)

# -- the whole library -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_workloads())
def test_a_trace_keeps_the_schema_and_the_planner_guesses_nothing(name: str) -> None:
    found = made(name, 4, ops=3000)
    found.trace.validate()
    bundle = build_plan(found.trace, load_rules("linux-6.18"))
    silent = (
        "learnt_mappings",
        "dependencies",
        "mapping_record_matched",
        "fault_around_pages",
        "wakeups",
    )
    guessed = {k: v for k, v in bundle.counters.items() if v and k not in silent}
    assert guessed == {}
    assert bundle.plan.n_threads >= 5
    assert sum(found.counted.values()) > 0
    kinds = found.trace.operations.select(pl.col("duration_ns").null_count()).collect().item()
    assert kinds == found.rows  # no durations


@pytest.mark.parametrize("name", list_probes())
def test_a_probe_repeats_its_operation(name: str) -> None:
    found = made(name, 1, ops=6000, duration_s=0.1)
    build_plan(found.trace, load_rules("linux-6.18"))
    assert sum(found.counted.values()) > 20


@pytest.mark.parametrize("path", ["mmap_lock", "kernel"])
def test_other_paths_fault_in_no_page_from_user_mode(path: str) -> None:
    for name in ("page_fault1", "faulters-and-mappers", "pft-one-vma"):
        found = made(name, 3, path=path)
        kinds = Counter(found.trace.operations.collect()["kind"].to_list())
        assert kinds[OpKind.FAULT_USER] == 0
        wanted = OpKind.MADVISE if path == "mmap_lock" else OpKind.FAULT_KERNEL
        assert kinds[wanted] > 100
        build_plan(found.trace, load_rules("linux-6.18"))


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("allocator-arenas", "thread-pool", "process-start"):
        traces = []
        for k, seed in enumerate((5, 5, 6)):
            path = tmp_path / f"{name}-{k}.mmt"
            made(name, 3, seed=seed, output=path, ops=2000)
            files = sorted(path.glob("*.parquet"))
            traces.append([file.read_bytes() for file in files])
        assert traces[0] == traces[1]
        assert traces[0] != traces[2]


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmreplay.workloads import generator

    for name in ("thread-pool", "mmap2", "page_fault1"):
        whole = made(name, 3, ops=2000).trace
        with monkeypatch.context() as patch:
            patch.setattr(generator, "_CHUNK_ROWS", 100)
            pieces = made(name, 3, ops=2000).trace
        for table in ("operations", "vmas", "threads"):
            assert whole.table(table).collect().equals(pieces.table(table).collect())


def test_a_file_and_memory_hold_the_same(tmp_path: Path) -> None:
    stored = made("page_fault2", 2, output=tmp_path / "a.mmt").trace
    held = made("page_fault2", 2).trace
    assert stored.path is not None
    for table in ("operations", "vmas", "threads"):
        assert Trace.open(stored.path).table(table).collect().equals(held.table(table).collect())


# -- by hand --------------------------------------------------------------------------------------


def test_map_touch_unmap_by_hand() -> None:
    loop = """
        { do = "mmap", on = "memory" }, { do = "think", mean_ns = 700 },
        { do = "touch", on = "memory", counts = 1 },
        { do = "touch", on = "memory", access = "read" }, { do = "munmap", on = "memory" },
    """
    found = made(workload(loop), ops=31)
    got = rows(found)
    one = ["MMAP", *["FAULT_USER"] * 8, "MUNMAP"]
    assert [row["kind"] for row in got] == one * 3
    assert [row["think_cpu_ns"] for row in got[:3]] == [0, 700, 0]
    base = got[0]["result"]
    assert [row["address"] for row in got[1:9]] == [base + k * 4096 for k in range(8)]
    assert {row["fault_bits"] for row in got[1:9]} == {2 | 4}
    assert got[9]["address"] == base
    assert got[9]["length"] == 8 * 4096
    assert got[10]["result"] == base  # the highest gap again
    assert found.counted == {"worker": 24}
    assert found.ops == {"worker": 30}


def test_faults_follow_the_pages_state() -> None:
    """Zero page, then a write; dropped pages fault again; write access survives mprotect."""
    loop = """
        { do = "touch", on = "memory", access = "read", size = "1 page" },
        { do = "touch", on = "memory", access = "write", size = "1 page", counts = 1 },
        { do = "mprotect", on = "memory", prot = "r" },
        { do = "touch", on = "memory", access = "read", size = "1 page" },
        { do = "mprotect", on = "memory", prot = "rw" },
        { do = "touch", on = "memory", access = "write", size = "1 page" },
        { do = "madvise", on = "memory", advice = "dontneed" },
        { do = "read_into", on = "memory", size = "1 page" },
        { do = "madvise", on = "memory", advice = "dontneed" },
    """
    got = rows(made(workload(loop, once='{ do = "mmap", on = "memory" }'), ops=9))
    assert [(r["kind"], r["fault_bits"]) for r in got] == [
        ("MMAP", None),
        ("FAULT_USER", 4),
        ("FAULT_USER", 1 | 2 | 4),
        ("MPROTECT", None),
        ("MPROTECT", None),
        ("MADVISE", None),
        ("FAULT_KERNEL", 2),
        ("MADVISE", None),
    ]


def test_file_pages_come_sixteen_at_a_time_to_readers_only() -> None:
    files = '[files.data]\nsize = "64 pages"\n'
    region = '[regions.memory]\nsize = "64 pages"\nfile = "data"\n'
    once = '{ do = "mmap", on = "memory" }, '
    read = '{ do = "touch", on = "memory", access = "read" }'
    write = '{ do = "touch", on = "memory", access = "write" }'
    rest = '{ do = "think", mean_ns = 1000, counts = 1 }'
    reads = rows(made(workload(rest, regions=files + region, once=once + read)))
    assert [row["address"] % (16 * 4096) for row in reads[1:]] == [0] * 4
    writes = rows(made(workload(rest, regions=files + region, once=once + write)))
    assert len(writes) == 65
    both = rows(made(workload(rest, regions=files + region, once=once + read + ", " + write)))
    assert sum(row["fault_bits"] == 7 for row in both if row["fault_bits"]) == 64
    shared = region + "shared = true\n"
    tmpfs = rows(made(workload(rest, regions=files + shared, once=once + read + ", " + write)))
    assert len(tmpfs) == len(reads)  # tmpfs needs no notice before it is written to


def test_huge_pages_take_one_fault_for_512_pages() -> None:
    region = '[regions.memory]\nsize = "8 MiB"\n'
    rest = '{ do = "think", mean_ns = 1000, counts = 1 }'
    for advice, faults in (("hugepage", 4), ("nohugepage", 2048)):
        once = f"""{{ do = "mmap", on = "memory" }},
            {{ do = "madvise", on = "memory", advice = "{advice}" }},
            {{ do = "touch", on = "memory" }}"""
        got = rows(made(workload(rest, regions=region, once=once), ops=5000))
        assert sum(row["kind"] == "FAULT_USER" for row in got) == faults


def test_populated_pages_do_not_fault() -> None:
    loop = """
        { do = "mmap", on = "memory", populate = true },
        { do = "touch", on = "memory", counts = 1 },
        { do = "madvise", on = "memory", advice = "dontneed" },
        { do = "populate", on = "memory", by = "1 page" },
        { do = "touch", on = "memory" }, { do = "munmap", on = "memory" },
    """
    got = rows(made(workload(loop), ops=12))
    assert [row["kind"] for row in got] == ["MMAP", "MADVISE", *["MADVISE"] * 8, "MUNMAP"]
    assert got[0]["flags"] == 0x8022


@pytest.mark.parametrize("shape", ["constant", "exponential", "lognormal"])
def test_think_times_have_the_mean_that_was_asked_for(shape: str) -> None:
    sigma = ", sigma = 0.8" if shape == "lognormal" else ""
    loop = f"""{{ do = "think", mean_ns = 20000, distribution = "{shape}"{sigma}, asleep = true }},
        {{ do = "madvise", on = "memory", advice = "cold", counts = 1 }}"""
    found = made(workload(loop, once='{ do = "mmap", on = "memory" }'), ops=20_000, duration_s=10)
    think = found.trace.operations.collect()["think_blocked_ns"].to_numpy()[5:]
    # five standard errors; the deviation of the widest is 0.95 of its mean, of the exponential 1
    assert abs(think.mean() / 20000 - 1) < 5 / len(think) ** 0.5
    if shape == "constant":
        assert set(think) == {20000}


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loop", "once", "says"),
    [
        ('{ do = "munmap", on = "memory", counts = 1 }', "", "goes round for ever"),
        (
            '{ do = "touch", on = "memory", counts = 1 }',
            '{ do = "mmap", on = "memory" }',
            "for ever",
        ),
        (
            '{ do = "touch", on = "memory", counts = 1 }',
            '{ do = "mmap", on = "memory", prot = "r" }',
            r"roles.worker.loop.0 \(touch\): accesses memory that its protection",
        ),
    ],
)
def test_a_workload_that_cannot_work_is_one_line(
    loop: str, once: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        made(workload(loop, once=once), output=tmp_path / "a.mmt")
    assert list(tmp_path.iterdir()) == []


def test_limits_are_checked(tmp_path: Path) -> None:
    for options, says in (
        ({"ops": 0}, "0 operations"),
        ({"ops": 10**12, "duration_s": 10**6, "output": tmp_path / "a.mmt"}, "MiB are free"),
        ({"duration_s": 0}, "duration"),
        ({"duration_s": float("nan")}, "duration"),
        ({"seed": -1}, "seed -1"),
        ({"cpus": 0}, "0 CPUs"),
        ({"path": "vna"}, 'did you mean "vma"'),
        ({"threads": 100_000}, "choose 1 to"),
    ):
        with pytest.raises(UserError, match=says):
            synthesise("page_fault1", **{"threads": 2, **options})  # type: ignore[arg-type]
    large = workload(
        '{ do = "mmap", on = "memory", counts = 1 }, { do = "munmap", on = "memory" }',
        regions='[regions.memory]\nsize = "8 TiB"\n',
    )
    with pytest.raises(UserError, match="TiB of regions"):
        made(large, 4)
    assert list(tmp_path.iterdir()) == []


# -- properties ------------------------------------------------------------------------------------

FROM_THIRD = ', first = "2 pages"'
HEAD_OF = ', size = "3 pages"'
_RANGE = st.sampled_from(
    [
        "",
        ', size = "3 pages"',
        ', first = "2 pages"',
        ', size = ["1 page", "8 pages"]',
        ', at = "loop"',
        ', at = "next", window = "2 pages"',
        ', at = "same"',
        ', at = "last", window = "3 pages"',
    ]
)
_UNITS = st.sampled_from(
    ["", ', by = "2 pages"', ', by = "1 page", order = "scattered", units = 3']
)


@st.composite
def _step(draw: st.DrawFn) -> str:
    where = f'on = "{draw(st.sampled_from(["own", "all", "many"]))}"'
    kind = draw(
        st.sampled_from(["mmap", "touch", "munmap", "mprotect", "madvise", "mremap", "pick"])
    )
    if kind == "mmap":
        return f'{{ do = "mmap", {where}, size = ["1 page", "8 pages"] }}'
    if kind == "mremap":
        return f'{{ do = "mremap", {where}, size = ["1 page", "8 pages"] }}'
    if kind == "pick":
        return '{ do = "pick", on = "many" }'
    if kind == "munmap":
        return f'{{ do = "munmap", {where}{draw(st.sampled_from(["", FROM_THIRD, HEAD_OF]))} }}'
    more = draw(_RANGE) + draw(_UNITS)
    if kind == "touch":
        access = draw(st.sampled_from(["read", "write"]))
        return f'{{ do = "touch", {where}, access = "{access}"{more} }}'
    if kind == "mprotect":
        return f'{{ do = "mprotect", {where}, prot = "rw"{more} }}'
    advice = draw(st.sampled_from(["dontneed", "cold", "populate_write", "hugepage"]))
    return f'{{ do = "madvise", {where}, advice = "{advice}"{more} }}'


class Space:
    """What an address space holds, page by page: an independent account of a trace."""

    def __init__(self) -> None:
        self.pages: dict[int, int] = {}  # mapped page -> 0 absent, 1 read, 2 written

    def span(self, row: dict[str, Any], column: str = "length") -> range:
        assert row["address"] % 4096 == 0
        return range(row["address"] // 4096, (row["address"] + row[column]) // 4096)

    def see(self, row: dict[str, Any]) -> None:
        kind = OpKind(row["kind"])
        if kind is OpKind.MMAP:
            assert not any(page in self.pages for page in self.span(row))
            self.pages.update(dict.fromkeys(self.span(row), 0))
        elif kind is OpKind.MUNMAP:
            for page in self.span(row):
                del self.pages[page]
        elif kind is OpKind.MREMAP:
            held = [self.pages.pop(page) for page in self.span(row, "length2")]
            to = row["result"] // 4096
            count = row["length"] // 4096
            held = (held + [0] * count)[:count]
            assert not any(to + k in self.pages for k in range(count))
            self.pages.update({to + k: state for k, state in enumerate(held)})
        elif kind in (OpKind.MADVISE, OpKind.MPROTECT):
            for page in self.span(row):
                state = self.pages[page]  # mapped
                if row["flags"] == 4:
                    state = 0
                elif row["flags"] == 23:
                    state = 2
                self.pages[page] = state
        elif kind is OpKind.FAULT_USER:
            page, bits = row["address"] // 4096, row["fault_bits"]
            assert self.pages[page] == (1 if bits & 1 else 0)
            assert bits & 4
            self.pages[page] = 2 if bits & 2 else 1


@given(
    st.lists(_step(), min_size=2, max_size=8),
    st.integers(1, 4),
    st.sampled_from([None, 1, 2, 3]),
    st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_any_program_is_consistent_page_by_page(
    steps: list[str], threads: int, cpus: int | None, seed: int
) -> None:
    regions = """
[regions.own]
size = "8 pages"
[regions.all]
size = "8 pages"
per = "process"
[regions.many]
size = "8 pages"
count = 3
"""
    loop = ", ".join(
        [*steps, '{ do = "think", mean_ns = 3000, distribution = "exponential", counts = 1 }']
    )
    try:
        found = made(
            workload(loop, regions=regions), threads, seed=seed, ops=300, duration_s=0.01, cpus=cpus
        )
    except UserError as refused:  # nothing is ever mapped
        assert "does nothing" in str(refused)
        return
    space = Space()
    last = (-1, 0)
    for row in found.trace.operations.collect().iter_rows(named=True):
        assert (row["begin_ns"], row["seq"]) > last
        last = (row["begin_ns"], row["seq"])
        space.see(row)


def test_elements_are_picked_by_what_is_mapped() -> None:
    region = '[regions.memory]\nsize = "8 pages"\ncount = 3\n'
    loop = """
        { do = "repeat", times = 4, steps = [
            { do = "pick", on = "memory", how = "free" }, { do = "mmap", on = "memory" },
        ] },
        { do = "repeat", times = 4, steps = [
            { do = "pick", on = "memory", how = "mapped" },
            { do = "munmap", on = "memory", counts = 1 },
        ] },
    """
    got = rows(made(workload(loop, regions=region), ops=25))
    # the fourth finds none that is free, or mapped, and does nothing
    assert [row["kind"] for row in got] == (["MMAP"] * 3 + ["MUNMAP"] * 3) * 4


def test_next_goes_on_where_it_was() -> None:
    loop = (
        '{ do = "touch", on = "memory", at = "next", counts = 1 }, { do = "think", mean_ns = 10 }'
    )
    got = rows(made(workload(loop, once='{ do = "mmap", on = "memory" }'), ops=30))
    assert [row["address"] - got[0]["result"] for row in got[1:]] == [k * 4096 for k in range(8)]


def test_same_and_last_are_where_the_thread_was() -> None:
    region = '[regions.memory]\nsize = "8 pages"\nprot = "none"\n'
    touch = '{{ do = "touch", on = "memory", at = "{at}", if_allowed = true }}'
    drop = '{ do = "madvise", on = "memory", at = "last", window = "3 pages", advice = "dontneed" }'
    loop = f"""
        {{ do = "mprotect", on = "memory", at = "next", window = "2 pages", prot = "rw" }},
        {touch.format(at="same")}, {touch.format(at="next")}, {touch.format(at="next")},
        {drop},
        {touch.format(at="next")}, {{ do = "think", mean_ns = 10, counts = 1 }},
    """
    once = '{ do = "mmap", on = "memory" }'
    got = rows(made(workload(loop, regions=region, once=once), ops=12))
    base = got[0]["result"]
    places = [(row["kind"], (row["address"] - base) // 4096) for row in got[1:6]]
    # the third touch is of a page that is not accessible and does nothing
    want = [("MPROTECT", 0), ("FAULT_USER", 0), ("FAULT_USER", 1), ("MADVISE", 0)]
    assert places == [*want, ("FAULT_USER", 0)]


def test_what_is_unmapped_from_its_beginning_goes_on_behind() -> None:
    loop = """
        { do = "mmap", on = "memory" },
        { do = "touch", on = "memory", first = "4 pages", access = "write" },
        { do = "munmap", on = "memory", size = "2 pages" },
        { do = "touch", on = "memory", access = "write" },
        { do = "munmap", on = "memory", counts = 1 },
    """
    got = rows(made(workload(loop), ops=11))[:11]
    base = got[0]["result"] // 4096
    places = [(row["kind"], (row["address"] or 0) // 4096 - base) for row in got[1:9]]
    faults = [("FAULT_USER", k) for k in (4, 5, 6, 7)]
    again = [("MUNMAP", 0), ("FAULT_USER", 2), ("FAULT_USER", 3), ("MUNMAP", 2)]
    assert places == [*faults, *again]
    assert got[8]["length"] == 6 * 4096


def test_elements_are_picked_by_what_was_done_in_them() -> None:
    """A place is that of the element, whoever was there last."""
    region = '[regions.memory]\nsize = "2 pages"\ncount = 3\n'

    def on(how: str, do: str) -> str:
        return f'{{ do = "pick", on = "memory", how = "{how}" }}, {do}'

    touch = '{ do = "touch", on = "memory", at = "next" }'
    loop = ", ".join(
        [
            *[on("free", '{ do = "mmap", on = "memory" }')] * 3,
            *[on("untouched", touch)] * 3,  # each once
            *[on("other", touch)] * 3,  # and its second page
            *[on("mapped", '{ do = "munmap", on = "memory", counts = 1 }')] * 3,
        ]
    )
    got = rows(made(workload(loop, regions=region), ops=13))
    starts = [row["result"] for row in got[:3]]
    touched = [row["address"] for row in got[3:9]]
    assert {row["kind"] for row in got[3:9]} == {"FAULT_USER"}
    assert sorted(touched[:3]) == sorted(starts)
    assert sorted(touched[3:]) == sorted(start + 4096 for start in starts)
