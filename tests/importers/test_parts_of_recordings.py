"""One process of a recording, a span of its time, several files of it, the state before it."""

from __future__ import annotations

import dataclasses
import random
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import perfwriter as pw
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_streaming import soup

from mmreplay.errors import UserError
from mmreplay.importers.registry import import_trace
from mmreplay.schema import DurationKind, OpKind
from mmreplay.trace.store import Trace

COLUMNS = ["begin_ns", "tid", "kind", "address", "length", "duration_ns", "result", "cpu"]
SLOW = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def load(writer: pw.Writer, folder: Path, **more: Any) -> Trace:
    trace = import_trace(writer.save(folder / "perf.data"), folder / "t.mmt", force=True, **more)
    trace.validate()
    return trace


def rows(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return frame.select(COLUMNS).rows()


# -- one process --------------------------------------------------------------------------------


@given(seed=st.integers(0, 1 << 32))
@SLOW
def test_a_process_is_as_in_the_whole(tmp_path: Path, seed: int) -> None:
    w = soup(seed, 300)
    w.comm(0, 200, 200, b"other")
    whole = load(w, tmp_path).operations.collect()
    children = load(w, tmp_path).threads.collect().filter(pl.col("start_kind") == "fork")["pid"]
    for pid in (100, 200):
        mine = load(w, tmp_path, process=str(pid)).operations.collect()
        mine = mine.filter(~pl.col("pid").is_in(children.implode()))
        assert rows(mine) == rows(whole.filter(pl.col("pid") == pid))
    named = load(w, tmp_path, process="other")
    assert rows(named.operations.collect()) == rows(mine)
    assert any("only a part was imported, of process other" in t for t in named.header.warnings)


def test_a_name_is_the_leaders(tmp_path: Path) -> None:
    w = pw.default()
    w.comm(0, 100, 100, b"server")
    w.comm(0, 100, 101, b"worker")
    w.comm(0, 200, 200, b"a-name-that-is-lo")
    w.fault(pw.FAULT, 1000, 101, 0x7F0000001000)
    w.fault(pw.FAULT, 2000, 200, 0x7F0000001000, pid=200)
    assert load(w, tmp_path, process="server").operations.collect()["tid"].to_list() == [101]
    with pytest.raises(UserError, match='no process is called "worker"') as caught:
        load(w, tmp_path, process="worker")
    assert "server" in caught.value.line()
    with pytest.raises(UserError, match="nothing is left of it: of process 7"):
        load(w, tmp_path, process="7")
    (tmp_path / "pipe").write_bytes(w.pipe())
    found = import_trace(tmp_path / "pipe", tmp_path / "p.mmt", process="server")
    assert found.rows("operations") == 1


def test_threads_without_names_are_of_their_processs_group(tmp_path: Path) -> None:
    """perf's flight recorder keeps the names of main threads only."""
    w = pw.default()
    w.comm(0, 100, 100, b"server-1")
    for tid, pid in ((100, 100), (101, 100), (300, 299)):
        w.fault(pw.FAULT, 1000 * tid, tid, 0x7F0000001000, pid=pid)
    threads = load(w, tmp_path).threads.select("tid", "comm", "group").collect()
    assert sorted(threads.rows()) == [
        (100, "server-1", "server-#"),
        (101, "", "server-#"),
        (300, "", ""),
    ]


def test_who_forks_passes_its_name_on(tmp_path: Path) -> None:
    w = pw.default()
    w.comm(0, 100, 100, b"server")
    for k, child in enumerate((200, 300, 400)):
        at = 10_000 * (k + 1)
        w.fork(at, child, 100, child, 100)
        w.fork(at + 1, child, child, child + 1, child)
        if child == 300:
            w.comm(at + 2, child, child, b"other", exec_=True)
        w.fault(pw.FAULT, at + 1000, child + 1, 0x7F0000001000, pid=child)
    found = load(w, tmp_path, process="server").operations.collect()
    faults = found.filter(pl.col("kind") == int(OpKind.FAULT_USER))
    assert faults["tid"].to_list() == [201, 401]
    assert len(load(w, tmp_path, process="other").operations.collect()) > 0


def test_a_forked_worker_by_its_id_has_a_name(tmp_path: Path) -> None:
    """Which it has from a parent that is not wanted, and passes on to its threads."""
    w = pw.default()
    w.comm(0, 100, 100, b"a-server-of-old")
    w.fork(10_000, 200, 100, 200, 100)
    w.fork(11_000, 300, 200, 300, 200)
    w.fork(12_000, 300, 300, 301, 300)
    w.fault(pw.FAULT, 13_000, 301, 0x7F0000001000, pid=300)
    w.comm(14_000, 300, 301, b"thread")
    w.exit(15_000, 300, 301)
    w.fault(pw.FAULT, 16_000, 300, 0x7F0000001000, pid=300)
    found = load(w, tmp_path, process="300").threads.collect().sort("tid")
    assert found["tid"].to_list() == [300, 301]
    assert found["comm"].to_list() == ["a-server-of-old", "thread"]


def test_of_a_child_its_threads_are_not_kept(tmp_path: Path) -> None:
    w = pw.default()
    w.fault(pw.FAULT, 1000, 100, 0x7F0000001000)
    w.fork(2000, 200, 100, 200, 100)
    w.fork(3000, 200, 200, 201, 200)
    w.comm(3500, 200, 201, b"thread")
    w.exit(4000, 200, 201)
    w.exit(5000, 200, 200)
    trace = load(w, tmp_path, process="100")
    assert trace.threads.collect()["tid"].sort().to_list() == [100, 200]


@pytest.mark.parametrize(("error", "kind"), [(0x14, OpKind.FORK), (6, OpKind.CLONE)])
def test_children_say_what_a_clone3_was(tmp_path: Path, error: int, kind: OpKind) -> None:
    w = pw.default()
    w.fault(pw.FAULT, 1000, 100, 0x7F0000001000)
    w.call(pw.CLONE3_IN, 10_000, 100, 0x1000, 88)
    w.fork(11_000, 300, 100, 300, 100)
    w.fault(pw.FAULT, 12_000, 300, 0x7F0000002000, error, pid=300)
    w.call(pw.CLONE3_OUT, 20_000, 100, 300)
    w.exit(30_000, 300, 300)
    trace = load(w, tmp_path, process="100")
    kinds = trace.operations.collect()
    assert kinds.filter(pl.col("pid") == 100)["kind"].to_list() == [OpKind.FAULT_USER, kind]
    assert OpKind.FAULT_USER not in kinds.filter(pl.col("pid") == 300)["kind"].to_list()


# -- a span of time -----------------------------------------------------------------------------


@given(seed=st.integers(0, 1 << 32), part=st.floats(0.05, 0.95))
@example(seed=591151, part=0.0546875)  # nothing begins in the middle one
@SLOW
def test_a_span_is_as_in_the_whole(tmp_path: Path, seed: int, part: float) -> None:
    w = soup(seed, 300)
    w.records = [r for r in w.records if struct.unpack_from("<I", r)[0] != 2]  # no losses
    full = load(w, tmp_path)
    whole = full.operations.collect()
    at = max(1, int(full.header.span_ns * part))
    begun = load(w, tmp_path, begin_ns=at)
    later = whole.filter(pl.col("begin_ns") >= at).with_columns(pl.col("begin_ns") - at)
    found = Counter(rows(begun.operations.collect()))
    assert not Counter(rows(later)) - found
    more = found - Counter(rows(later))  # ends of what had begun before
    unseen = begun.operations.collect().filter(
        pl.col("duration_kind") == int(DurationKind.BEGIN_UNSEEN)
    )
    assert not more - Counter(rows(unseen))
    assert begun.header.t0_ns == full.header.t0_ns + at
    assert begun.header.span_ns == full.header.span_ns - at
    early = load(w, tmp_path, end_ns=at).operations.collect()
    before = whole.filter(pl.col("begin_ns") < at)
    some = ["begin_ns", "tid", "kind", "cpu"]
    # Of a thread whose end is not seen there is no row that ends it.
    assert early.select(some).rows() == before.select(some).rows()
    try:
        both = load(w, tmp_path, begin_ns=at // 2, end_ns=at).operations.collect()
    except UserError:  # nothing began in it
        assert before.filter(pl.col("begin_ns") >= at // 2).is_empty()
    else:
        assert both["begin_ns"].max() in (None, *range(at - at // 2))


def test_threads_that_were_over_are_gone_and_mappings_stay(tmp_path: Path) -> None:
    w = pw.default()
    w.mmap2(1000, 100, 100, 0x400000, 8192, b"/usr/lib/libx.so")
    w.fork(2000, 100, 100, 101, 100)
    w.fork(2100, 100, 100, 102, 100)
    w.fault(pw.FAULT, 3000, 101, 0x7F0000001000)
    w.exit(4000, 100, 101)
    w.fault(pw.FAULT, 50_000, 102, 0x7F0000002000)
    trace = load(w, tmp_path, begin_ns=20_000)
    threads = trace.threads.collect().sort("tid")
    assert threads["tid"].to_list() == [100, 102]
    assert threads["start_kind"].to_list() == ["attach", "attach"]
    assert threads["start_ns"].to_list() == [None, None]
    assert trace.vmas.collect().select("ns", "start").rows() == [(0, 0x400000)]
    with pytest.raises(UserError, match="nothing is left of it: from 1 s on"):
        load(w, tmp_path, begin_ns=10**9)
    with pytest.raises(UserError, match="--to is not after --from"):
        load(w, tmp_path, begin_ns=10**9, end_ns=10**9)


# -- several files --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_files_of_one_recording_are_merged_by_time(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    w = pw.default()
    w.comm(0, 100, 100, b"server")
    first = len(w.records)
    for k in range(200):
        time, tid, address = 10_000 * (k + 1), 100 + k % 3, 0x7F00_0000_0000 + 4096 * k
        w.fault(pw.FAULT, time, tid, address)
        w.sample(pw.MINOR, time + 2000, tid, addr=address)
        w.call(pw.MMAP_IN, time + 3000, tid, 0, 8192, 3, 0x22, -1, 0)
        w.call(pw.MMAP_OUT, time + 5000, tid, address)
    whole = rows(load(w, tmp_path).operations.collect())
    assert len(whole) == 400
    half = [[], w.records[:first]]
    for record in w.records[first:]:
        half[draw.randrange(2)].append(record)
    parts = [
        dataclasses.replace(w, records=records).save(tmp_path / f"part-{k}")
        for k, records in enumerate(half)
    ]
    merged = import_trace(parts, tmp_path / "m.mmt")
    merged.validate()
    assert rows(merged.operations.collect()) == whole
    assert merged.header.source.size_bytes == sum(path.stat().st_size for path in parts)
    assert len(merged.header.events) == len(load(w, tmp_path).header.events)


def test_files_of_two_clocks_are_refused(tmp_path: Path) -> None:
    one, other = soup(1, 50), soup(1, 50)
    other.events[0].bits |= 1 << 25  # use_clockid
    with pytest.raises(UserError, match="another clock"):
        import_trace(
            [one.save(tmp_path / "one"), other.save(tmp_path / "other")], tmp_path / "t.mmt"
        )


# -- what was there before ------------------------------------------------------------------------

SMAPS = """\
00400000-00402000 r-xp 00001000 fe:01 1234                               /opt/me/secret-tool
Size:                  8 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0000010000 rw-p 00000000 00:00 0
Size:                 64 kB
Anonymous:            12 kB
7f0000010000-7f0000020000 rw-s 00000000 00:01 77                         /dev/zero (deleted)
Anonymous:             0 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
Anonymous:            20 kB
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


def recorded() -> pw.Writer:
    w = pw.default()
    w.comm(0, 100, 100, b"server")
    w.fault(pw.FAULT, 1000, 100, 0x7F0000001000)
    return w


@pytest.mark.parametrize("detail", [False, True])
def test_a_snapshot_is_the_state_before(tmp_path: Path, detail: bool) -> None:
    text = SMAPS
    if not detail:
        text = "".join(line + "\n" for line in SMAPS.splitlines() if "-" in line.split()[0])
    file = tmp_path / "copy"
    file.write_text(text)
    trace = load(recorded(), tmp_path, snapshot=file)
    known = trace.vmas.collect()
    assert known.select("ns", "start", "length", "prot", "flags", "name").rows() == [
        (0, 0x400000, 0x2000, 5, 2, "secret-tool"),
        (0, 0x7F0000000000, 0x10000, 3, 2, "//anon"),
        (0, 0x7F0000010000, 0x10000, 3, 1, "/dev/zero"),
        (0, 0x7FFC00000000, 0x21000, 3, 2, "[stack]"),
    ]
    told = [False, True, False, True] if detail else [None] * 4
    assert known["has_anon_vma"].to_list() == told
    assert set(known["source"]) == {"snapshot"}
    assert set(known["address_space"]) == set(trace.operations.collect()["address_space"])
    assert trace.header.capabilities.snapshot


def test_a_snapshot_of_what_changed_meanwhile(tmp_path: Path) -> None:
    """The kernel reads the map piece by piece: one mapping grew downwards, one comes twice."""
    grown = (
        "7f0000008000-7f0000030000 rw-p 00000000 00:00 0\nAnonymous: 4 kB\n"
        "7f0000028000-7f0000030000 r--p 00003000 fe:01 5                    /lib/libx.so\n"
        "7f0000028000-7f0000038000 r--p 00003000 fe:01 5                    /lib/libx.so\n"
    )
    text = SMAPS.replace("7ffc00000000-", grown + "7ffc00000000-")
    lower = "".join(f"{k}000-{k}800 ---p 0 00:00 0\n" for k in range(1, 10))
    (tmp_path / "copy").write_text(lower + text)
    trace = load(recorded(), tmp_path, snapshot=tmp_path / "copy")
    known = trace.vmas.collect()
    rows = known.select("start", "length", "file_offset", "has_anon_vma").rows()
    assert rows[9:14] == [
        (0x400000, 0x2000, 0x1000, False),
        (0x7F0000000000, 0x10000, 0, True),
        (0x7F0000010000, 0x10000, 0, False),
        (0x7F0000020000, 0x10000, 0, True),
        (0x7F0000030000, 0x8000, 0xB000, None),
    ]
    assert any("3 of 15 mappings changed" in text for text in trace.header.warnings)


def test_a_snapshot_beside_what_the_recording_knew(tmp_path: Path) -> None:
    """perf's own MMAP2 records of attached processes (-d), in one table with it; no bit is lost."""
    w = recorded()
    w.mmap2(0, 100, 100, 0x7F0000002000, 8192, b"//anon")
    w.mmap2(2000, 100, 100, 0x7FFFFFFFF000, 4096, b"/usr/lib/libx.so")
    (tmp_path / "copy").write_text(SMAPS.replace(" 77 ", f" {2**63 + 1} "))
    known = load(w, tmp_path, snapshot=tmp_path / "copy").vmas.collect()
    assert known.height == 6
    assert {0x7F0000002000, 0x7FFFFFFFF000, 0x400000, 0x7FFC00000000} <= set(known["start"])
    assert 2**63 + 1 in known["inode"].to_list()
    assert {"snapshot", "mmap2"} == set(known["source"])
    assert sorted(known["has_anon_vma"].to_list(), key=str).count(None) == 2


def test_whose_snapshot_it_is(tmp_path: Path) -> None:
    w = recorded()
    w.fault(pw.FAULT, 2000, 200, 0x7F0000001000, pid=200)
    (tmp_path / "copy").write_text(SMAPS)
    with pytest.raises(UserError, match="2 processes were there"):
        load(w, tmp_path, snapshot=tmp_path / "copy")
    assert load(w, tmp_path, snapshot=tmp_path / "copy", process="200").rows("vmas") == 4
    folder = tmp_path / "perf.data.snapshot"  # as mmreplay record leaves it
    folder.mkdir()
    for name in ("100.maps", "200.maps", "200.smaps"):
        (folder / name).write_text(SMAPS)
    (folder / "taken.json").write_text("{}")
    known = load(w, tmp_path, snapshot=folder).vmas.collect()
    assert known.height == 8
    assert known["address_space"].n_unique() == 2
    (folder / "300.maps").write_text(SMAPS)
    with pytest.raises(UserError, match="process 300 is not in the recording"):
        load(w, tmp_path, snapshot=folder)


@pytest.mark.parametrize(
    "text", ["", "nonsense\n", "2000-1000 rw-p 0 00:00 0\n", SMAPS + SMAPS, "Size: 4 kB\n"]
)
def test_what_is_no_snapshot_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "copy").write_text(text)
    with pytest.raises(UserError, match="maps"):
        load(recorded(), tmp_path, snapshot=tmp_path / "copy")
    assert not (tmp_path / "t.mmt").exists()
