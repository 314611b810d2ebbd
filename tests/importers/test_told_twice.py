"""Events that tell the same fault, or call, twice count once."""

from __future__ import annotations

import sys
from pathlib import Path

import perfwriter as pw
import pytest
from test_against_perf_script import WORKLOAD, record
from test_text_perf import script

from mmreplay.importers.registry import import_trace
from mmreplay.schema import OpKind
from mmreplay.trace.store import Trace

PLAIN, USER, MINOR = range(3)


def writer(*configs: int) -> pw.Writer:
    """``-d -e page-faults -e page-faults:u -e minor-faults``, or other software events."""
    return pw.Writer(events=[pw.Event(config, 1, pw.SW_TYPE) for config in configs or (2, 2, 5)])


def faults(trace: Trace) -> list[tuple[int, int]]:
    trace.validate()
    rows = trace.operations.collect()
    rows = rows.filter(rows["kind"] == int(OpKind.FAULT_USER))
    return list(rows.select("begin_ns", "duration_ns").iter_rows())


@pytest.mark.parametrize("later_ns", [0, 150])
@pytest.mark.parametrize("one_id", [False, True])
def test_two_events_of_one_fault(tmp_path: Path, later_ns: int, one_id: bool) -> None:
    """With times of their own, or with the first one's id and time as Linux 6.18 gives them."""
    if one_id and later_ns:
        return
    w = writer()
    for k in range(3):  # at one address: the second fault is no repetition of the first
        at = 1000 + 5000 * k
        w.sample(PLAIN, at, 100, addr=0x7000)
        w.sample(PLAIN if one_id else USER, at + later_ns, 100, addr=0x7000)
        w.sample(MINOR, at + 2000, 100, addr=0x7000)
    trace = import_trace(w.save(tmp_path / "f"), tmp_path / "t.mmt")
    assert faults(trace) == [(0, 2000), (5000, 2000), (10_000, 2000)]
    assert trace.header.counters["events_told_twice"] == 3
    assert any("told by another event" in text for text in trace.header.warnings)


def test_without_ends_a_repetition_ends_no_fault(tmp_path: Path) -> None:
    w = writer(2, 2)
    for at in (1000, 6000):
        w.sample(PLAIN, at, 100, addr=0x7000)
        w.sample(USER, at + 150, 100, addr=0x7000)
    assert faults(import_trace(w.save(tmp_path / "f"), tmp_path / "t.mmt"))[0] == (0, 5000)


def test_what_differs_is_no_repetition(tmp_path: Path) -> None:
    """``minor-faults:u`` beside ``minor-faults:k``; another thread, page, instruction or time."""
    w = writer(5, 5)
    w.sample(PLAIN, 1000, 100, addr=0x7000)
    w.sample(USER, 1100, 101, addr=0x7000)
    w.sample(USER, 1200, 100, addr=0x8000)
    w.sample(PLAIN, 1300, 100, addr=0x8000, ip=0x500000)
    w.sample(USER, 5_000_000, 100, addr=0x8000, ip=0x500000)
    trace = import_trace(w.save(tmp_path / "f"), tmp_path / "t.mmt")
    assert len(faults(trace)) == 5
    assert "events_told_twice" not in trace.header.counters


def test_one_of_a_kind_is_left_alone(tmp_path: Path) -> None:
    """Even where it comes twice at one time."""
    w = writer(5, 9)
    for _ in range(2):
        w.sample(PLAIN, 1000, 100, addr=0x7000)
    assert len(faults(import_trace(w.save(tmp_path / "f"), tmp_path / "t.mmt"))) == 2


SETS = {
    "starts": ["page-faults", "page-faults:u", "minor-faults", "major-faults"],
    "ends": ["exceptions:page_fault_user", "minor-faults", "minor-faults:u", "minor-faults:k"],
    "modes": ["page-faults:u", "page-faults:k", "minor-faults"],
    "calls": ["page-faults", "syscalls:sys_enter_mmap", "syscalls:sys_*_mmap"],
}


@pytest.mark.perf
@pytest.mark.parametrize("name", SETS)
def test_as_perf_records_them(tmp_path: Path, name: str) -> None:
    """As many operations as there are with each event once; from text too."""
    tail = ["--", sys.executable, "-c", WORKLOAD, "20"]
    file = record(tmp_path, ["-d"], SETS[name], tail)
    trace = import_trace(file, tmp_path / "t.mmt")
    rows = trace.operations.collect()
    keys = [column for column in rows.columns if column != "seq"]
    assert rows.select("tid", "begin_ns", "kind", "address").is_unique().all()
    assert rows.height == rows.unique(keys).height
    kinds = rows["kind"].to_list()
    assert kinds.count(int(OpKind.FAULT_USER)) > 900
    kernel = kinds.count(int(OpKind.FAULT_KERNEL))  # page_fault_user does not tell their starts
    assert trace.header.counters.get("begin_unseen", 0) < 20 + kernel * (name == "ends")
    repeated = trace.header.counters.get("events_told_twice", 0)
    assert (repeated > 50) == (name != "modes")
    if name in ("starts", "modes"):
        text = import_trace(script(file, "--ns", "-F", "+pid,+addr"), tmp_path / "u.mmt")
        same = [int(OpKind.FAULT_USER), int(OpKind.FAULT_KERNEL)]
        theirs = text.operations.collect()["kind"].to_list()
        assert [theirs.count(kind) for kind in same] == [kinds.count(kind) for kind in same]
