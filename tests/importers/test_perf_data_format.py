"""The perf.data container: odd but valid files are read, bad ones refused in one line."""

from __future__ import annotations

import struct
from pathlib import Path

import perfwriter as pw
import polars as pl
import pytest
from click.testing import CliRunner

from mmreplay.cli.import_ import command
from mmreplay.errors import UserError
from mmreplay.importers.registry import import_trace
from mmreplay.trace.store import Trace


def run(writer: pw.Writer, tmp_path: Path) -> Trace:
    return import_trace(writer.save(tmp_path / "perf.data"), tmp_path / "t.mmt", force=True)


def two_faults(writer: pw.Writer) -> pw.Writer:
    for k in range(2):
        writer.fault(pw.FAULT, 1000 + 9000 * k, 100, 0x5000 + 4096 * k)
        writer.sample(pw.MINOR, 4000 + 9000 * k, 100, addr=0x5000 + 4096 * k)
    return writer


def durations(trace: Trace) -> list[int | None]:
    return trace.operations.collect()["duration_ns"].to_list()


@pytest.mark.parametrize("size", [64, 72, 80, 96, 104, 112, 120, 128, 136, 144, 200])
def test_attrs_of_any_size(tmp_path: Path, size: int) -> None:
    assert durations(run(two_faults(pw.default(attr_bytes=size)), tmp_path)) == [3000, 3000]


def test_unknown_records_and_features_are_skipped_and_counted(tmp_path: Path) -> None:
    w = pw.default(features={200: b"what", 40: b""})
    w.record(84, b"bpf metadata")
    w.record(22, b"\0" * 24)
    w.record(200, b"\0" * 8)
    w.record(99_999, b"")
    w.record(71, struct.pack("<Q", 16) + b"\0" * 40)  # AUXTRACE: 16 bytes follow uncounted
    w.records[-1] += b"\xff" * 16
    w.record(80, b"\0" * 76, pad=False)  # 84 bytes: not a multiple of eight
    counters = run(two_faults(w), tmp_path).header.counters
    assert counters["unknown_records_type_200"] == 1
    assert counters["unknown_records_type_255_and_above"] == 1
    assert counters["unknown_features"] == 2


def test_total_order_by_time_then_file(tmp_path: Path) -> None:
    w = pw.default()
    # Two rings, written one after the other; equal times stay in file order.
    for cpu, tid in ((1, 101), (0, 100)):
        for k in range(3):
            w.call(pw.MUNMAP_IN, 1000 + 100 * k, tid, tid, 4096, cpu=cpu)
            w.call(pw.MUNMAP_OUT, 1050 + 100 * k, tid, 0, cpu=cpu)
    w.round()
    rows = run(w, tmp_path).operations.collect()
    assert rows["begin_ns"].to_list() == [0, 0, 100, 100, 200, 200]
    assert rows["seq"].to_list() == [0, 1, 0, 1, 0, 1]
    assert rows["tid"].to_list() == [101, 100] * 3


def test_synthesised_and_untimed_records(tmp_path: Path) -> None:
    w = pw.default()
    w.comm(0, 100, 100, b"attached")
    w.mmap2(0, 100, 100, 0x400000, 4096, b"/usr/lib/libx.so.1")
    trace = run(two_faults(w), tmp_path)
    assert trace.vmas.collect()["source"].to_list() == ["snapshot"]
    assert trace.vmas.collect()["ns"].to_list() == [0]
    thread = trace.threads.collect().to_dicts()[0]
    assert (thread["start_kind"], thread["comm"], thread["start_ns"]) == (
        "attach",
        "attached",
        None,
    )


def test_without_sample_id_all_records_take_the_next_time(tmp_path: Path) -> None:
    w = pw.Writer([pw.Event(10, bits=0)])
    w.fault(0, 1000, 100, 0x5000)
    w.mmap2(0, 100, 100, 0x400000, 4096, b"//anon")
    w.fault(0, 9000, 100, 0x6000)
    assert run(w, tmp_path).vmas.collect()["ns"].to_list() == [8000]


def test_one_event_without_ids(tmp_path: Path) -> None:
    event = pw.Event(5, 1, pw.IP | pw.TID | pw.TIME | pw.ADDR, bits=0)
    w = pw.Writer([event], with_tracing=False)
    w.sample(0, 1000, 100, addr=0x5000)
    event.ids = ()
    assert run(w, tmp_path).operations.collect()["address"].to_list() == [0x5000]


def test_ids_far_apart_and_the_sample_id_in_its_old_place(tmp_path: Path) -> None:
    kinds = pw.IP | pw.TID | pw.TIME | pw.ADDR | pw.ID | pw.CPU | pw.PERIOD | pw.RAW
    w = pw.Writer([pw.Event(10, sample_type=kinds, ids=(7,)), pw.Event(22, sample_type=kinds)])
    w.events[1].ids = (7 + (1 << 62),)
    w.fault(0, 1000, 100, 0x5000)
    w.call(1, 2000, 100, 0x9000, 4096)
    assert run(w, tmp_path).operations.collect()["kind"].to_list() == [1, 4]


def test_callchains_before_raw(tmp_path: Path) -> None:
    w = pw.Writer([pw.Event(10, sample_type=pw.TP_TYPE | pw.CALLCHAIN)])
    for k, frames in enumerate((0, 3, 40)):
        w.fault(0, 1000 + 1000 * k, 100, 0x5000 + 4096 * k, frames=frames)
    assert run(w, tmp_path).operations.collect()["address"].to_list() == [0x5000, 0x6000, 0x7000]


def test_late_events_are_raised_and_counted(tmp_path: Path) -> None:
    w = pw.default()
    for k in range(3):
        w.call(pw.MUNMAP_IN, 10_000 * (k + 1), 100, 1, 4096)
        w.call(pw.MUNMAP_OUT, 10_000 * (k + 1) + 10, 100, 0)
        w.round()
    trace = run(w, tmp_path)
    assert "late_events" not in trace.header.counters
    begin = trace.operations.collect()["begin_ns"]
    assert begin.is_sorted()


def test_header_holds_facts_and_no_names(tmp_path: Path) -> None:
    def text(word: str) -> bytes:
        return struct.pack("<I", len(word) + 1) + word.encode() + b"\0"

    secret = "build-host.example"
    w = pw.default(
        features={
            3: text(secret),
            4: text("6.1.0-18-amd64"),
            5: text("6.1.187"),
            7: struct.pack("<II", 8, 4),
            8: text("Some CPU"),
            9: text("Vendor,1,2,3"),
            10: struct.pack("<Q", 1 << 20),
            11: struct.pack("<I", 2) + text("perf") + text("--secret=" + secret),
            29: struct.pack("<IIQQ", 1, 1, 5_000_000, 400),
        }
    )
    two_faults(w)
    header = run(w, tmp_path).header
    assert header.kernel_release == "6.1.0"
    assert header.machine.cpus_online == 4
    assert header.machine.cpu_model == "Some CPU"
    assert header.machine.page_size == 4096
    assert secret not in (tmp_path / "t.mmt" / "header.json").read_text()
    assert [e.samples for e in header.events][:2] == [2, 2]
    assert header.span_ns == 12_000


def test_broken_feature_is_a_warning(tmp_path: Path) -> None:
    w = two_faults(pw.default(features={12: b"\xff" * 9}))
    trace = run(w, tmp_path)
    assert any("feature section 12" in text for text in trace.header.warnings)


ROUND = struct.pack("<IHH", 68, 0, 8)
GOOD = two_faults(pw.default()).build()


def _big_claim() -> bytes:
    data = bytearray(GOOD)
    struct.pack_into("<Q", data, 32, 1 << 60)  # size of the attrs
    return bytes(data)


def _big_ids() -> bytes:
    data = bytearray(GOOD)
    (at,) = struct.unpack_from("<Q", data, 24)
    struct.pack_into("<Q", data, at + 136 + 8, 1 << 60)
    return bytes(data)


def _patched(at: int, value: bytes) -> bytes:
    return GOOD[:at] + value + GOOD[at + len(value) :]


def _short_record() -> bytes:
    w = pw.default()
    w.records.append(struct.pack("<IHH", 9, 0, 4))
    return w.build()


def _compressed() -> bytes:
    w = pw.default()
    w.record(81, b"\0" * 8)
    return w.build()


BAD = {
    "empty": (b"", "empty"),
    "text": (b"hello world\n" * 10, "text"),
    "binary": (b"\0\1\2" * 100, "known format"),
    "big-endian": (b"2ELIFREP" + b"\0" * 200, "header size 0"),
    "version 1": (b"PERFFILE" + b"\0" * 200, "version 1"),
    "newer version": (b"PERFILE3" + b"\0" * 200, "version"),
    "newer header": (_patched(8, struct.pack("<Q", 120)), "newer"),
    "a file that says it is a stream": (_patched(8, struct.pack("<Q", 16)), "damaged"),
    "magic only": (b"PERFILE2", "truncated"),
    "half a header": (GOOD[:60], "truncated"),
    "half the attrs": (GOOD[:300], "truncated"),
    "crashed recorder": (
        two_faults(pw.default(data_size=0, with_tracing=False)).build(),
        "did not end normally",
    ),
    "2^60 bytes of attrs": (_big_claim(), "truncated"),
    "2^60 ids": (_big_ids(), "truncated"),
    "short record": (_short_record(), "damaged"),
    "compressed": (_compressed(), "compressed"),
    "no formats": (two_faults(pw.default(with_tracing=False)).build(), "formats"),
    "no events": (pw.default(records=[ROUND]).build(), "no events"),
    "nothing of use": (
        pw.Writer([pw.Event(0, 0, pw.SW_TYPE)], records=[ROUND]).build(),
        "no page faults",
    ),
    "no time": (
        pw.Writer([pw.Event(5, 1, pw.IP | pw.TID | pw.ADDR)], records=[ROUND]).build(),
        "no time",
    ),
    "trace.dat": (b"\x17\x08\x44tracing6\0", "trace.dat"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    content, says = BAD[name]
    file = tmp_path / "perf.data"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        import_trace(file, tmp_path / "t.mmt")
    line = caught.value.line()
    assert says in line
    assert "\n" not in line
    assert caught.value.fix
    assert sorted(p.name for p in tmp_path.iterdir()) == ["perf.data"]


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        import_trace(tmp_path / "none", tmp_path / "t.mmt")
    with pytest.raises(UserError, match="no known format"):
        import_trace(tmp_path, tmp_path / "t.mmt")


def test_command_writes_reports_and_does_not_overwrite(tmp_path: Path) -> None:
    file = two_faults(pw.default()).save(tmp_path / "perf.data")
    out = tmp_path / "x.mmt"
    run_ = CliRunner().invoke
    done = run_(command, [str(file), "-o", str(out), "--format", "json"], catch_exceptions=False)
    report = pl.DataFrame([__import__("json").loads(done.stdout)])
    assert report["events"].to_list() == [4]
    assert report["operations"].to_list() == [2]
    with pytest.raises(UserError, match="exists"):
        run_(command, [str(file), "-o", str(out)], catch_exceptions=False)
    assert run_(command, [str(file), "-o", str(out), "--force"]).exit_code == 0
    assert Trace.open(out).operations.collect().height == 2
