"""What a group's leader says of its other events (``-e '{a,b}:S'``) counts as perf counts it."""

from __future__ import annotations

from pathlib import Path

import perfwriter as pw
import pytest

from mmreplay.errors import UserError
from mmreplay.importers.registry import import_trace
from mmreplay.schema import OpKind
from mmreplay.trace.store import Trace

LEADER, MEMBER, OTHER = range(3)
ID, GROUP, LOST, TIMES = 4, 8, 16, 3


def group(
    read_format: int = ID | GROUP, *, order: str = "<", bits: int = pw.SAMPLE_ID_ALL
) -> pw.Writer:
    """``{page-faults,minor-faults,major-faults}:S -d``."""
    kinds = pw.SW_TYPE | pw.READ
    events = [
        pw.Event(config, 1, kinds, bits=bits, period=period, read_format=read_format)
        for config, period in ((2, 1), (5, 0), (6, 0))
    ]
    return pw.Writer(events=events, order=order)


def fill(w: pw.Writer) -> pw.Writer:
    """Five faults; the minor ones count up once late and once by two, the major ones never."""
    for k, minor in enumerate((0, 1, 1, 2, 4)):
        counts = {LEADER: k + 1, MEMBER: minor, OTHER: 0}
        w.sample(LEADER, 1000 + 500 * k, 100, addr=0x7000 + 4096 * k, counts=counts)
    return w


def samples(trace: Trace) -> dict[str, int]:
    trace.validate()
    return {event.name: event.samples for event in trace.header.events}


EXPECTED = {"page-faults": 5, "minor-faults": 3, "major-faults": 0}


@pytest.mark.parametrize("read_format", [ID | GROUP, ID | GROUP | LOST, ID | GROUP | LOST | TIMES])
def test_members_count_where_their_value_changed(tmp_path: Path, read_format: int) -> None:
    trace = import_trace(fill(group(read_format)).save(tmp_path / "f"), tmp_path / "t.mmt")
    assert samples(trace) == EXPECTED
    faults = trace.operations.collect()
    assert faults["kind"].to_list().count(int(OpKind.FAULT_USER)) == 5
    assert set(faults["weight"]) == {1}
    # What a group says is not when a fault ended.
    assert trace.header.capabilities.fault_duration == "upper"
    assert any(
        "minor-faults, major-faults: recorded in a group" in w for w in trace.header.warnings
    )


@pytest.mark.parametrize("how", ["packed", "packed2", "pipe", "directory", "big", "big, packed"])
def test_every_container(tmp_path: Path, how: str) -> None:
    w = fill(group(ID | GROUP | LOST, order=">" if "big" in how else "<"))
    path = tmp_path / "f"
    if "packed" in how:
        w.packed(83 if how == "packed2" else 81, piece=50).save(path)
    elif how == "pipe":
        path.write_bytes(w.pipe())
    elif how == "directory":
        records, w.records = w.records, []
        w.comm(0, 100, 100, b"program")
        w.directory(path, [records])
    else:
        w.save(path)
    assert samples(import_trace(path, tmp_path / "t.mmt")) == EXPECTED


def test_threads_count_apart_where_they_inherit(tmp_path: Path) -> None:
    """inherit_thread of Linux 6.12: an id has a count in each thread."""
    for inherit, expected in ((pw.INHERIT, 2), (0, 1)):
        w = group(bits=pw.SAMPLE_ID_ALL | inherit)
        for k, tid in enumerate((100, 101, 100)):
            w.sample(LEADER, 1000 + k, tid, addr=4096, counts={LEADER: k + 1, MEMBER: 7})
        trace = import_trace(w.save(tmp_path / "f"), tmp_path / "t.mmt", force=True)
        assert samples(trace)["minor-faults"] == expected


def test_what_a_sample_claims_is_checked(tmp_path: Path) -> None:
    """Members that do not fit, are unknown, or are the leader itself."""
    w = group()
    w.sample(LEADER, 1000, 100, addr=4096, counts={LEADER: 1, MEMBER: 1})
    at = w.records[-1].index(w.pack("Q", 2), 40)
    record = w.records[-1]
    w.records.append(record[:at] + w.pack("Q", 3) + record[at + 8 :])  # one more than there are
    w.records.append(record[:at] + w.pack("Q", 2**60) + record[at + 8 :])
    w.records.append(record[: at + 32] + w.pack("Q", 12345) + record[at + 40 :])  # no such id
    assert samples(import_trace(w.save(tmp_path / "f"), tmp_path / "t.mmt")) == {
        "page-faults": 4,
        "minor-faults": 1,
        "major-faults": 0,
    }


def test_a_recording_of_counts_only_says_why_nothing_comes_of_it(tmp_path: Path) -> None:
    w = group()
    w.events[LEADER].config = 0  # cpu-clock
    fill(w)
    with pytest.raises(UserError, match="recorded in a group") as caught:
        import_trace(w.save(tmp_path / "f"), tmp_path / "t.mmt")
    assert "mmreplay record" in (caught.value.fix or "")
