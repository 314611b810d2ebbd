"""Exports, read back by readers that know the formats' documents and nothing of the writers."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmreplay.cli.main import main
from mmreplay.errors import UserError
from mmreplay.report.chrome import hexadecimal
from mmreplay.report.export import export
from mmreplay.report.perfetto import number, varint
from mmreplay.schema import FaultBits, FaultClass, OpKind, SpanEnd
from mmreplay.trace.header import Clock, Header, Machine
from mmreplay.trace.store import TRACE_TABLES, Trace, frame
from mmreplay.trace.writer import TraceWriter

MAPPED = 0x7F00_0000_0000
FAULT = {"fault_bits": FaultBits.WRITE | FaultBits.USER, "fault_class": FaultClass.MINOR}


@pytest.fixture
def trace() -> Trace:
    """Two processes; a fault inside a call, a point, an off-CPU time, a wait, a loss."""
    mmap = {"kind": OpKind.MMAP, "address": MAPPED, "result": MAPPED, "length": 8192, "prot": 3}
    operations: list[dict[str, Any]] = [
        {"begin_ns": 1_000, "duration_ns": 5_001, "tid": 11, "pid": 10, "cpu": 1, **mmap},
        {
            "begin_ns": 2_345,
            "duration_ns": 1_000,
            "tid": 11,
            "pid": 10,
            "cpu": -1,
            "kind": OpKind.FAULT_KERNEL,
            "address": MAPPED + 4096,
            "wait_ns": 250,
            **FAULT,
        },
        {"begin_ns": 9_000, "tid": 20, "pid": 20, "kind": OpKind.THREAD_EXIT},
        {"begin_ns": 2_000_000_000, "tid": 20, "pid": 20, "kind": OpKind.BRK, "result": -12},
    ]
    threads = [
        {"tid": 10, "pid": 10, "comm": 'say "hi"\\', "first_ns": 0},
        {"tid": 11, "pid": 10, "comm": "worker", "first_ns": 0},
        {"tid": 20, "pid": 20, "comm": "other", "first_ns": 0},
    ]
    schedule = [
        {"tid": 11, "off_ns": 3_000, "on_ns": 4_000, "reason": SpanEnd.PREEMPTED},
        {"tid": 20, "off_ns": 5_000, "on_ns": None},
    ]
    locks = [
        {"tid": 11, "kind": "rwsem", "mode": "write", "begin_ns": 1_500, "wait_ns": 5_000},
        {"tid": 11, "kind": "mutex", "mode": "unknown", "begin_ns": 1_600, "wait_ns": None},
    ]
    vmas = [{"ns": -5, "start": MAPPED, "length": 4096, "name": "a,b", "source": "exec"}]
    gaps = [{"begin_ns": 7_000, "end_ns": 8_000, "lost": 42}]
    tables = {
        "operations": operations,
        "threads": threads,
        "schedule": schedule,
        "locks": locks,
        "vmas": vmas,
        "gaps": gaps,
    }
    header = Header(
        kernel_release="6.1.0", clock=Clock(name="monotonic"), machine=Machine(cpu_model="X")
    )
    return Trace.in_memory(header, {name: frame(name, rows) for name, rows in tables.items()})


def written(trace: Trace, style: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    export(trace, stream, style, **options)
    return stream.getvalue()


def test_chrome_is_the_documents_object(trace: Trace) -> None:
    """Required keys by phase, as the Trace Event Format document lists them."""
    found = json.loads(written(trace, "chrome"))
    assert found["displayTimeUnit"] in ("ms", "ns")
    assert found["otherData"]["kernel"] == "6.1.0"
    needed = {
        "X": {"name", "cat", "ts", "dur", "pid", "tid", "args"},
        "i": {"name", "cat", "ts", "pid", "tid", "s"},
        "b": {"name", "cat", "ts", "pid", "tid", "id"},
        "e": {"name", "cat", "ts", "pid", "tid", "id"},
        "M": {"name", "pid", "tid", "args"},
    }
    for event in found["traceEvents"]:
        assert needed[event["ph"]] <= set(event), event
        assert isinstance(event.get("ts", 0.0), float | int)
        assert event.get("dur", 0) >= 0
        assert event.get("s", "t") in ("t", "p", "g")
        assert event["name"] in ("process_name", "thread_name") or event["ph"] != "M"
    # Every asynchronous begin has its end, by category, id and name.
    open_ = {
        (e["cat"], e["id"], e["name"]): e["ts"] for e in found["traceEvents"] if e["ph"] == "b"
    }
    for event in found["traceEvents"]:
        if event["ph"] == "e":
            assert open_.pop((event["cat"], event["id"], event["name"])) < event["ts"]
    assert open_ == {}


def test_chrome_shows_what_the_trace_holds(trace: Trace) -> None:
    events = json.loads(written(trace, "chrome"))["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {10: 'say "hi"\\', 11: "worker", 20: "other"}
    mmap, fault = (event for event in events if event["ph"] == "X")
    assert (mmap["name"], mmap["cat"], mmap["pid"], mmap["tid"]) == ("mmap", "call", 10, 11)
    assert (mmap["ts"], mmap["dur"]) == (1.0, 5.001)
    assert mmap["args"] == {
        "cpu": 1,
        "length": 8192,
        "result": MAPPED,
        "address": hex(MAPPED),
        "prot": "0x3",
    }
    assert (fault["ts"], fault["dur"]) == (2.345, 1.0)
    assert fault["args"] == {
        "wait_ns": 250,
        "address": hex(MAPPED + 4096),
        "class": "minor",
        "write": True,
    }
    exit_, brk, loss = (event for event in events if event["ph"] == "i")
    assert (exit_["name"], exit_["ts"], exit_["s"]) == ("thread_exit", 9.0, "t")
    assert (brk["ts"], brk["args"]["result"]) == (2e6, -12)
    assert (loss["name"], loss["s"], loss["ts"]) == ("42 events lost", "g", 8.0)
    begun = {event["name"]: event["ts"] for event in events if event["ph"] == "b"}
    assert begun == {"worker 11: preempted": 3.0, "worker 11: rwsem (write)": 1.5}


Field = tuple[int, int | bytes]


def fields(body: bytes) -> Iterator[Field]:
    """(field number, value) of a protobuf message; varints and byte strings only."""
    at = 0

    def word() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = body[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(body):
        key = word()
        if key & 7 == 0:
            yield key >> 3, word()
        else:
            assert key & 7 == 2
            size = word()
            assert at + size <= len(body)
            yield key >> 3, body[at : at + size]
            at += size


def one(body: bytes) -> dict[int, Any]:
    return dict(fields(body))


def slices(image: bytes) -> tuple[dict[int, str], list[tuple[int, int, int, str, dict[str, int]]]]:
    """Names of tracks; and (time, type, track, name, notes) of each event, names resolved."""
    tracks: dict[int, str] = {}
    events, interned, notes = [], {}, {}
    for field, packet in fields(image):
        assert field == 1
        parts = one(packet)  # type: ignore[arg-type]
        if 60 in parts:
            track = one(parts[60])
            if 4 in track:
                tracks[track[1]] = one(track[4])[5].decode()
            elif 3 in track:
                tracks[track[1]] = one(track[3])[6].decode()
            else:
                tracks[track[1]] = f"{tracks[track[5]]}/{track[2].decode()}"
        for kind, entry in fields(parts.get(12, b"")):
            told = one(entry)  # type: ignore[arg-type]
            {2: interned, 3: notes}[kind][told[1]] = told[2].decode()
        if 11 in parts:
            assert parts[10] == 1
            event = list(fields(parts[11]))
            plain = dict(event)
            said = {}
            for annotation in (one(value) for key, value in event if key == 4):  # type: ignore[arg-type]
                said[notes[annotation[1]]] = annotation.get(4, annotation.get(7))
            name = interned.get(plain.get(10), "")
            name = name or plain.get(23, b"").decode()
            events.append((parts[8], plain[9], plain[11], name, said))
    return tracks, events  # type: ignore[return-value]


def test_perfetto_packets(trace: Trace) -> None:
    tracks, events = slices(written(trace, "perfetto"))
    assert set(tracks.values()) >= {
        "worker",
        "other",
        "worker/off the CPU",
        "worker/waits for locks",
    }
    # Ends have no name: each closes the innermost slice that is open on its track.
    shown: list[tuple[str, str, int, int | None]] = []
    open_: dict[int, list[tuple[int, str]]] = {}
    notes = {}
    for time, kind, track, name, said in sorted(events, key=lambda event: event[0]):
        title = tracks.get(track, "")
        if kind == 1:
            open_.setdefault(track, []).append((time, name))
            notes[name] = said
        elif kind == 2:
            begin, opened = open_[track].pop()
            shown.append((title, opened, begin, time - begin))
        else:
            shown.append((title, name, time, None))
    assert not any(open_.values())
    assert sorted(shown, key=lambda slice_: slice_[2]) == [
        ("worker", "mmap", 1_000, 5_001),
        ("worker/waits for locks", "rwsem (write)", 1_500, 5_000),
        ("worker", "fault_kernel (minor)", 2_345, 1_000),
        ("worker/off the CPU", "preempted", 3_000, 1_000),
        ("", "42 events lost", 8_000, None),
        ("other", "thread_exit", 9_000, None),
        ("other", "brk", 2_000_000_000, None),
    ]
    assert notes["mmap"]["address"] == MAPPED
    assert notes["mmap"]["length"] == 8192
    assert notes["fault_kernel (minor)"]["wait_ns"] == 250


def test_varints() -> None:
    """The examples of the protobuf encoding document."""
    assert number(1, 150) == bytes([0x08, 0x96, 0x01])
    assert varint(-2) == bytes.fromhex("feffffffffffffffff01")


def test_csv_is_the_table(trace: Trace) -> None:
    rows = list(csv.DictReader(io.StringIO(written(trace, "csv").decode())))
    table = trace.operations.collect()
    assert list(rows[0]) == table.columns
    assert [int(row["begin_ns"]) for row in rows] == table["begin_ns"].to_list()
    assert [row["kind"] for row in rows] == ["mmap", "fault_kernel", "thread_exit", "brk"]
    assert rows[1]["fault_class"] == "minor"
    assert rows[0]["address"] == str(MAPPED)
    assert rows[2]["duration_ns"] == ""
    (vma,) = csv.DictReader(io.StringIO(written(trace, "csv", table="vmas").decode()))
    assert (vma["name"], vma["ns"]) == ("a,b", "-5")
    with pytest.raises(UserError, match=r'"vma" \(did you mean "vmas"'):
        written(trace, "csv", table="vma")


def test_a_window(trace: Trace) -> None:
    rows = csv.DictReader(io.StringIO(written(trace, "csv", begin_ns=2_000, end_ns=9_000).decode()))
    assert [row["kind"] for row in rows] == ["fault_kernel"]
    events = json.loads(written(trace, "chrome", begin_ns=2_000, end_ns=9_000))["traceEvents"]
    assert [e["name"] for e in events if e["ph"] in "Xi"] == ["fault_kernel", "42 events lost"]
    assert [e["name"] for e in events if e["ph"] == "b"] == ["worker 11: preempted"]
    with pytest.raises(UserError, match="before it begins"):
        written(trace, "csv", begin_ns=5, end_ns=5)


def test_hexadecimal() -> None:
    values = [0, 1, 0x10, MAPPED, (1 << 64) - 1]
    import polars as pl

    shown = hexadecimal(pl.Series("a", [*values, None], pl.UInt64)).to_list()
    assert shown == [*map(hex, values), None]


def test_an_empty_trace_is_still_a_file() -> None:
    empty = Trace.in_memory(Header(), {})
    assert json.loads(written(empty, "chrome"))["traceEvents"] is not None
    slices(written(empty, "perfetto"))
    assert len(written(empty, "csv").splitlines()) == 1


def stored(trace: Trace, path: Path) -> Path:
    with TraceWriter(path) as writer:
        for table in TRACE_TABLES:
            if trace.has(table.name):
                writer.write(table.name, trace.table(table.name).collect())
        writer.close(trace.header)
    return path


def test_the_command(trace: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored(trace, tmp_path / "a.mmt")
    out = tmp_path / "a.json.gz"
    main(["export", str(path), "--format", "chrome", "-o", str(out)])
    assert gzip.decompress(out.read_bytes()) == written(trace, "chrome")
    with pytest.raises(SystemExit):
        main(["export", str(path), "--format", "chrome", "-o", str(out)])
    assert "add --force" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.partial-*"))
    main(["export", str(path), "--format", "perfetto", "-o", str(out), "--force", "--to", "1"])
    assert gzip.decompress(out.read_bytes()) == written(trace, "perfetto", end_ns=10**9)


def test_stdout_is_data(trace: Trace, tmp_path: Path) -> None:
    path = stored(trace, tmp_path / "a.mmt")
    done = subprocess.run(
        [sys.executable, "-m", "mmreplay", "export", str(path), "--format", "csv"],
        capture_output=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "replay"), "PATH": "/usr/bin"},
    )
    assert done.stdout == written(trace, "csv")
    assert done.stderr == b""
