"""perf script text: the trace is that of the perf.data, as far as the text holds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from test_against_perf_script import CALL_NAMES, SETS, WORKLOAD, available, record

from mmreplay.errors import UserError
from mmreplay.importers.registry import import_trace, sniff
from mmreplay.schema import OpKind
from mmreplay.trace.store import Trace

MAP_SHARED, MAP_PRIVATE = 1, 2
RECORDS = [f"--show-{what}-events" for what in ("task", "mmap", "switch", "lost")]
TABLES = ("operations", "threads", "vmas", "schedule", "locks", "gaps")


def script(file: Path, *options: str) -> Path:
    """What perf script prints."""
    text = file.with_suffix(".txt")
    with text.open("wb") as out:
        words = ["perf", "script", "-i", str(file), *options]
        subprocess.run(words, stdout=out, stderr=subprocess.DEVNULL, check=True)
    return text


def same(left: Trace, right: Trace, *but: str, vma_flags: int = 2**32 - 1) -> None:
    """All tables are equal, except for the columns ``but`` and other flags of VMAs."""
    for table in TABLES:
        assert left.has(table) == right.has(table), table
        if left.has(table):
            one, other = (
                trace.table(table).collect().drop(but, strict=False) for trace in (left, right)
            )
            if table == "vmas":
                kept = pl.col("flags") & vma_flags
                one, other = one.with_columns(kept), other.with_columns(kept)
            assert_frame_equal(one, other)


def write(folder: Path, text: str) -> Path:
    file = folder / "text"
    file.write_text(text)
    return file


@pytest.mark.perf
@pytest.mark.parametrize("name", [*SETS, "raw"])
def test_the_trace_is_that_of_the_recording(tmp_path: Path, name: str) -> None:
    raw = ["raw_syscalls:sys_enter", "raw_syscalls:sys_exit", "exceptions:page_fault_user"]
    options, events = ([], raw) if name == "raw" else SETS[name]
    if name == "mmap_lock":
        options = ["-a", *options]  # else its switches say departures only
    file = record(tmp_path, options, events, ["--", sys.executable, "-c", WORKLOAD, "20"])
    want = import_trace(file, tmp_path / "data.mmt")
    address = ["-F", "+addr"] if "-d" in options else []
    text = script(file, "--ns", "-F", "+pid", *address, *RECORDS)
    assert sniff(text).name == "perf script or ftrace text"
    got = import_trace(text, tmp_path / "text.mmt")
    got.validate()
    # perf script prints the instruction pointer of tracepoints in user mode only where asked, of a
    # mapping's flags whether it is shared, and nothing of an event that never happened.
    untold = {"ip"} if want.rows("locks") else {"ip", "contention_ns"}
    same(want, got, *untold, vma_flags=MAP_SHARED | MAP_PRIVATE)
    for key in ("lost_events", "span_ns", "t0_ns"):
        assert getattr(want.header, key) == getattr(got.header, key)
    count = {event.name: event.samples for event in want.header.events if event.samples}
    assert {event.name: event.samples for event in got.header.events} == count


@pytest.mark.perf
def test_fields_that_people_print(tmp_path: Path) -> None:
    names = [f"syscalls:sys_{s}_{n}" for n in CALL_NAMES for s in ("enter", "exit")]
    names = [name for name in names if available(*name.split(":"))]
    events = ["exceptions:page_fault_user", *names]
    file = record(tmp_path, ["-g"], events, ["--", sys.executable, "-c", WORKLOAD, "20"])
    calls = pl.col("kind").is_in([int(OpKind.MMAP), int(OpKind.MUNMAP), int(OpKind.MPROTECT)])
    faults = pl.col("kind") == int(OpKind.FAULT_USER)
    columns = ["begin_ns", "tid", "kind", "address", "length", "prot", "flags", "result"]
    rows = import_trace(file, tmp_path / "data.mmt").operations.collect()
    t0_ns = rows["begin_ns"].min()
    want = rows.with_columns(pl.col("begin_ns") - t0_ns)
    for fields in (
        ["--ns"],
        ["--ns", "-G"],
        ["--ns", "-F", "comm,pid,tid,cpu,time,event,trace"],
        ["--ns", "-F", "trace,event,time,tid"],
        ["--ns", "-F", "tid,time,event,trace,ip,sym,dso,symoff"],
        ["--ns", "-F", "+period,+pid", "--header"],
        [],
    ):
        got = import_trace(script(file, *fields), tmp_path / "text.mmt", force=True)
        got.validate()
        have, wanted = got.operations.collect(), want
        if "--ns" not in fields:
            assert got.header.clock.resolution_ns == 1000
            have, wanted = have.drop("begin_ns"), want.drop("begin_ns")
        some = [name for name in columns if name in have.columns]
        assert_frame_equal(have.filter(calls | faults)[some], wanted.filter(calls | faults)[some])
        if "--ns" in fields:
            measured = ["duration_ns", "duration_kind", "errno"]
            assert_frame_equal(have.filter(calls)[measured], wanted.filter(calls)[measured])


def test_event_selectors_and_modifiers(tmp_path: Path) -> None:
    text = """\
 my prog [1] x 10/11 [001] 5.000001000:          1 page-faults:u:     7f0000001000
 my prog [1] x 10/11 [001] 5.000002000:          1 minor-faults:u:     7f0000001000
 my prog [1] x 10/11 [001] 5.000003000: syscalls:sys_enter_munmap: addr: 0x7f0000001000, len: 0x2000
 my prog [1] x 10/11 [001] 5.000004500: syscalls:sys_exit_munmap: 0x0
 my prog [1] x 10/11 [001] 5.000006000: syscalls:sys_enter_mmap: nonsense
"""
    trace = import_trace(write(tmp_path, text), tmp_path / "t.mmt")
    trace.validate()
    rows = trace.operations.collect()
    assert rows["kind"].to_list() == [int(OpKind.FAULT_USER), int(OpKind.MUNMAP)]
    assert rows["duration_ns"].to_list() == [1000, 1500]
    assert rows["address"].to_list() == [0x7F0000001000] * 2
    assert rows["length"].to_list() == [None, 0x2000]
    assert trace.threads.collect()["comm"].to_list() == ["my prog [1] x"]
    assert trace.header.counters["unread_lines"] == 1
    assert any("1 lines could not be read" in line for line in trace.header.warnings)


def test_ends_of_kernel_faults_whose_starts_were_not_recorded(tmp_path: Path) -> None:
    """As ``-e exceptions:page_fault_user -e minor-faults`` records: the end tells the mode."""
    text = """\
 my prog 10/11 [001] 5.000001000: exceptions:page_fault_user: address=0x7f0000001000 ip=0x401000 \
error_code=0x6
 my prog 10/11 5.000002000: 1 minor-faults:     7f0000001000     401000 main+0x0 (/bin/prog)
 my prog 10/11 5.000003000: 1 minor-faults:     7f0000002000 ffffffff81b73c18 clear+0x28 ([kernel])
"""
    rows = import_trace(write(tmp_path, text), tmp_path / "t.mmt").operations.collect()
    assert rows.select("kind", "address").rows() == [
        (int(OpKind.FAULT_USER), 0x7F0000001000),
        (int(OpKind.FAULT_KERNEL), 0x7F0000002000),
    ]


def refused(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        import_trace(file, file.parent / "t.mmt")
    assert not (file.parent / "t.mmt").exists()
    return caught.value.line()


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    line = " prog{name} {tid} [001] 5.00000{k}000: syscalls:sys_enter_munmap: addr: 0x1, len: 0x1\n"
    whole = " swapper 0 [000] 5.000000000: sched:sched_switch: prev_state=R ==> next_pid=11\n"
    many = whole + "".join(line.format(name="abcde"[k], tid=10 + k, k=k) for k in range(5))
    assert "perf script -F +pid" in refused(write(tmp_path, many))
    ends = " prog 10/10 5.000001000: 1 minor-faults:  ffffffff81752b6a elf_load+0x28a\n"
    assert "perf script -F +addr" in refused(write(tmp_path, ends))
    back = "".join(line.format(name="", tid=10, k=9 - k) for k in range(9))
    assert "not in order of time" in refused(write(tmp_path, back))
    bare = "".join(line.format(name="", tid=10, k=k) for k in range(9)).replace(" addr: 0x1,", "")
    assert "perf script -F +trace" in refused(write(tmp_path, bare.replace(" len: 0x1", "")))
    nameless = " prog 10/10 5.000001000: address=0x1000 ip=0x2000 error_code=0x6\n"
    assert "perf script --ns -F +pid" in refused(write(tmp_path, nameless))


def test_modes_may_stand_before_the_time(tmp_path: Path) -> None:
    """perf script -F +misc; a name that looks like one is none."""
    text = """\
 KE 10/11 [001] U     5.000003000: syscalls:sys_enter_munmap: addr: 0x7f0000001000, len: 0x2000
 KE 10/11 [001] KEx   5.000004500: syscalls:sys_exit_munmap: 0x0
 4 U 10/11 K          5.000005000:          1 minor-faults:     7f0000001000
"""
    trace = import_trace(write(tmp_path, text), tmp_path / "t.mmt")
    trace.validate()
    rows = trace.operations.collect()
    assert rows["kind"].to_list() == [int(OpKind.MUNMAP), int(OpKind.FAULT_USER)]
    assert rows["tid"].to_list() == [11, 11]
    assert trace.threads.collect()["comm"].to_list() == ["4 U"]


@pytest.mark.parametrize("chains", [False, True])
def test_addresses_of_ends_beside_call_chains(tmp_path: Path, chains: bool) -> None:
    """There the number behind the event is no instruction pointer."""
    text = """\
 prog 10/10 [001] 5.000001000: exceptions:page_fault_user: address=0x7f0000001008 ip=0x400000 \
error_code=0x6
\t          400000 main+0x0 (/prog)

 prog 10/10 5.000002000:          1 minor-faults:     7f0000001008 [unknown] (//anon)
\t          400000 main+0x0 (/prog)

 prog 10/10 5.000003000:          1 minor-faults:     7f0000009000 [unknown] (//anon)
\t          400000 main+0x0 (/prog)
"""
    if not chains:
        text = "".join(line for line in text.splitlines(True) if not line.startswith("\t"))
    trace = import_trace(write(tmp_path, text), tmp_path / "t.mmt")
    rows = trace.operations.collect()
    assert rows["address"].to_list() == [
        0x7F0000001008,
        0x7F0000009000 if chains else 0x7F0000001008,
    ]
    assert any("no address" in line for line in trace.header.warnings) != chains


def test_sampled_text(tmp_path: Path) -> None:
    text = "".join(
        f" prog 10/10 5.00000{k}000:   {1 + 97 * k} page-faults:   7f0000001000 40{k}000 main\n"
        for k in range(5)
    )
    trace = import_trace(write(tmp_path, text), tmp_path / "t.mmt")
    trace.validate()
    assert trace.rows("operations") == 5
    assert trace.header.capabilities.sampling
    assert trace.header.capabilities.fault_duration == "none"
    assert any("sampled" in line for line in trace.header.warnings)


@pytest.mark.parametrize("header", [False, True])
def test_what_a_sample_stands_for(tmp_path: Path, header: bool) -> None:
    """Its period, where it is printed; else nothing is known, or what the head says."""
    line = "prog  10/10  5.00000{k}000: {period}minor-faults: 7000 400000 main (/bin/prog)\n"
    head = (
        "# event : name = minor-faults, , id = { 1 }, type = 1, size = 128, config = 0x5, "
        "{ sample_period, sample_freq } = 4000, sample_type = IP|TID|TIME, freq = 1, task = 1\n"
    )
    weights = {"  25 ": 25, "   1 ": 1, "": 1}
    for period, weight in weights.items():
        text = "".join(line.format(k=k, period=period) for k in range(9))
        trace = import_trace(write(tmp_path, head * header + text), tmp_path / "t.mmt", force=True)
        trace.validate()
        assert set(trace.operations.collect()["weight"]) == {weight}
        warnings = trace.header.warnings
        assert any("nothing pairs" in line for line in warnings) == (weight > 1 or header)
        assert any("no periods" in line for line in warnings) == (period == "")
        assert any("is not known" in line for line in warnings) == (period == "" and not header)


@pytest.mark.parametrize("cpu", ["[001] ", ""])
@pytest.mark.parametrize(
    "name", ["1.5: foo:", "d 9.123456:", "[k] 77/78 [001]", "U 3/4 K", "12345", "p (10) q", "-"]
)
def test_a_name_may_look_like_anything(tmp_path: Path, name: str, cpu: str) -> None:
    text = f"""\
{name:>16} 10/11 {cpu}5.000003000: syscalls:sys_enter_munmap: addr: 0x7f0000001000, len: 0x2000
{name:>16} 10/11 {cpu}5.000004500: syscalls:sys_exit_munmap: 0x0
"""
    trace = import_trace(write(tmp_path, text), tmp_path / "t.mmt")
    rows = trace.operations.collect()
    assert rows.select("tid", "kind", "duration_ns").rows() == [(11, int(OpKind.MUNMAP), 1500)]
    assert trace.threads.collect()["comm"].to_list() == [name]
