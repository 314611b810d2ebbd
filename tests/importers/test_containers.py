"""perf.data in every container reads as the plain file with the same records."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import struct
import threading
from pathlib import Path
from typing import Any

import perfwriter as pw
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_streaming import contents, soup

from mmreplay.cli.import_ import command
from mmreplay.errors import UserError
from mmreplay.importers.perf import salvage, streams
from mmreplay.importers.registry import import_trace
from mmreplay.trace.store import Trace

TABLES = ("operations", "threads", "vmas", "schedule", "locks", "gaps")


def rows(trace: Trace) -> dict[str, pl.DataFrame]:
    trace.validate()
    return {name: trace.table(name).collect() for name in TABLES}


def load(path: Path, **more: Any) -> Trace:
    return import_trace(path, path.with_name("t.mmt"), force=True, **more)


def same(trace: Trace, plain: dict[str, pl.DataFrame]) -> None:
    for name, frame in rows(trace).items():
        assert frame.equals(plain[name]), name


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def writer() -> pw.Writer:
    return soup(7, 1200)


@pytest.fixture(scope="module")
def plain(writer: pw.Writer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    return rows(load(writer.save(tmp_path_factory.mktemp("plain") / "perf.data")))


# -- compressed -------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [7, 100, 65_000])
def test_compressed(
    tmp_path: Path, writer: pw.Writer, plain: dict[str, pl.DataFrame], piece: int
) -> None:
    """Records span the pieces, wherever those are cut."""
    same(load(writer.packed(piece=piece).save(tmp_path / "perf.data")), plain)


def test_compressed2(tmp_path: Path, writer: pw.Writer, plain: dict[str, pl.DataFrame]) -> None:
    same(load(writer.packed(83).save(tmp_path / "perf.data")), plain)


def _filled(size: int) -> pw.Writer:
    """A recording whose records pack into ``size`` bytes: with noise, in records unknown to all."""
    noise = random.Random(size)
    fill = size - 400
    for _ in range(8):
        w = pw.default()
        left = fill
        while left > 0:
            w.record(61, noise.randbytes(max(0, min(left, 60_000) - 8)), pad=False)
            left -= 60_000
        for k in range(3):
            w.fault(pw.FAULT, 10_000 + 9000 * k, 100, 0x5000 + 4096 * k)
            w.sample(pw.MINOR, 13_000 + 9000 * k, 100, addr=0x5000 + 4096 * k)
        packed = w.zstd_size()
        if packed == size:
            return w
        fill += size - packed
    raise AssertionError(f"no recording of {size} packed bytes")


@pytest.mark.parametrize(
    "size", [65_504, 65_505, 65_512, 65_513, 65_519, 65_520, 65_528, 70_000, 131_054, 250_001]
)
def test_compressed2_whose_size_overflows(tmp_path: Path, size: int) -> None:
    """One write of perf 6.16, whose 16-bit size wraps, or that holds several records."""
    w = _filled(size)
    want = rows(load(w.save(tmp_path / "perf.data")))
    assert want["operations"].height == 3
    same(load(w.packed(83).save(tmp_path / "perf.data")), want)


def test_damaged_compressed_data_is_one_line(tmp_path: Path, writer: pw.Writer) -> None:
    data = bytearray(writer.packed().build())
    at = data.index(b"\x28\xb5\x2f\xfd")  # the zstd frame
    data[at : at + 4] = b"\0\0\0\0"
    with pytest.raises(UserError, match="compressed data"):
        load(written(tmp_path / "perf.data", bytes(data)))


# -- streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_pipe_format_in_a_file(
    tmp_path: Path, writer: pw.Writer, plain: dict[str, pl.DataFrame], packed: bool
) -> None:
    w = writer.packed() if packed else writer
    trace = load(written(tmp_path / "perf.data", w.pipe()))
    same(trace, plain)


@pytest.mark.parametrize("packed", [False, True])
def test_a_pipe(
    tmp_path: Path, writer: pw.Writer, plain: dict[str, pl.DataFrame], packed: bool
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    data = (writer.packed() if packed else writer).pipe()
    feeder = threading.Thread(target=lambda: fifo.write_bytes(data))
    feeder.start()
    same(load(fifo), plain)
    feeder.join()


def test_standard_input(
    tmp_path: Path,
    writer: pw.Writer,
    plain: dict[str, pl.DataFrame],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stdin:
        class buffer:
            raw = io.BytesIO(writer.pipe())

    monkeypatch.setattr("sys.stdin", Stdin)
    same(import_trace(Path("-"), tmp_path / "t.mmt"), plain)
    Stdin.buffer.raw = io.BytesIO(writer.build())
    with pytest.raises(UserError, match="not a stream"):
        import_trace(Path("-"), tmp_path / "u.mmt")
    Stdin.buffer.raw = io.BytesIO(b"")
    with pytest.raises(UserError, match="empty"):
        import_trace(Path("-"), tmp_path / "u.mmt")


def test_a_pipe_that_breaks_is_read_as_far_as_it_goes(tmp_path: Path, writer: pw.Writer) -> None:
    data = writer.pipe()
    trace = load(written(tmp_path / "perf.data", data[: -len(writer.records[-1]) - 5]))
    trace.validate()
    assert trace.header.counters["cut_bytes"] > 0
    assert any("cut" in text for text in trace.header.warnings)


def test_a_packed_pipe_that_breaks_says_so(tmp_path: Path, writer: pw.Writer) -> None:
    packed = writer.packed(piece=500)
    data = packed.pipe()
    cut = len(packed.records[-1]) - 100
    trace = load(written(tmp_path / "perf.data", data[:-100]))
    assert trace.header.counters["cut_bytes"] >= cut
    assert any("cut" in text for text in trace.header.warnings)
    assert trace.rows("operations") > 0


def test_a_packed_stream_may_lack_the_end_of_its_last_record(
    tmp_path: Path, writer: pw.Writer
) -> None:
    """perf record -z leaves it out now and then; the file itself is whole."""
    cut = pw.dataclasses.replace(writer, records=[*writer.records[:-1], writer.records[-1][:-5]])
    trace = load(cut.packed(piece=700).save(tmp_path / "perf.data"))
    left_out = len(writer.records[-1]) - 5
    assert trace.header.counters["cut_bytes"] == left_out
    assert f"{left_out} bytes of a record that was cut are left out" in trace.header.warnings
    without = pw.dataclasses.replace(writer, records=writer.records[:-1])
    same(trace, rows(load(without.save(tmp_path / "whole.data"))))


# -- directories ------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_directories(tmp_path: Path, packed: bool) -> None:
    """A ring for each thread's file, which has no rounds; equal times go by the file's number."""
    w = soup(11, 900)
    first = [record for record in w.records if struct.unpack_from("<I", record)[0] in (3, 10)][:2]
    rest = [r for r in w.records if r not in first and struct.unpack_from("<I", r)[0] != 68]
    rings = [[r for k, r in enumerate(rest) if k * 7 % 3 == ring] for ring in range(3)]
    rings = [sorted(ring, key=lambda record: _time(w, record)) for ring in rings]
    merged = sorted((_time(w, r), ring, k) for ring in range(3) for k, r in enumerate(rings[ring]))
    w.records = first + [rings[ring][k] for _, ring, k in merged]
    want = rows(load(w.save(tmp_path / "perf.data")))

    w.records = first
    if packed:
        parts = [pw.dataclasses.replace(w, records=ring).packed(piece=99).records for ring in rings]
        w.features = w.features | {27: b"\0" * 20}
    else:
        parts = rings
    folder = w.directory(tmp_path / "dir.data", parts)
    trace = load(folder)
    same(trace, want)
    assert trace.header.source.size_bytes == sum(f.stat().st_size for f in folder.iterdir())
    with pytest.raises(UserError, match="give the directory"):
        load(folder / "data")


def _time(w: pw.Writer, record: bytes) -> int:
    """Time of a record of :func:`soup`: where its sample or its trailer has it."""
    kind, _, size = struct.unpack_from("<IHH", record)
    if kind == 9:
        return int(struct.unpack_from("<Q", record, 32)[0])
    return int(struct.unpack_from("<Q", record, size - 24)[0])


def test_a_directory_of_one_file(
    tmp_path: Path, writer: pw.Writer, plain: dict[str, pl.DataFrame]
) -> None:
    """``--kcore`` writes one too."""
    same(load(writer.directory(tmp_path / "dir.data", [])), plain)


# -- byte order -------------------------------------------------------------------------------


def big(writer: pw.Writer) -> pw.Writer:
    """The same recording as a big-endian machine would have written it."""
    turned = soup(7, 1200, order=">")
    assert len(turned.records) == len(writer.records)
    return turned


@pytest.mark.parametrize("how", ["file", "packed", "pipe", "directory"])
def test_big_endian(
    tmp_path: Path, writer: pw.Writer, plain: dict[str, pl.DataFrame], how: str
) -> None:
    turned = big(writer)
    path = tmp_path / "perf.data"
    if how == "file":
        turned.save(path)
    elif how == "packed":
        turned.packed(piece=333).save(path)
    elif how == "pipe":
        written(path, turned.pipe())
    else:
        turned.directory(path, [])
    same(load(path), plain)


def test_ints_of_a_big_endian_machine(tmp_path: Path) -> None:
    """Its system calls' arguments are longs, whose lower halves come last."""

    def of(order: str) -> Trace:
        w = pw.default(order=order)
        for time, file in ((1000, 3), (2000, -1)):
            w.call(pw.MMAP_IN, time, 100, 0, 8192, 3, 2, file, 4096)
            w.call(pw.MMAP_OUT, time + 500, 100, 0x7F0000000000)
        return load(w.save(tmp_path / "perf.data"))

    want, got = of("<").operations.collect(), of(">").operations.collect()
    assert want["fd"].to_list() == [3, -1]
    assert got.equals(want)


def test_big_endian_facts(tmp_path: Path) -> None:
    def text(word: str) -> bytes:
        return struct.pack(">I", len(word) + 1) + word.encode() + b"\0"

    features = {3: text("host"), 4: text("6.1.0-18"), 7: struct.pack(">II", 8, 4), 8: text("z16")}
    w = soup(1, 50, order=">")
    w.features = features
    header = load(w.save(tmp_path / "perf.data")).header
    assert (header.kernel_release, header.machine.cpus_online) == ("6.1.0", 4)
    assert header.machine.cpu_model == "z16"


# -- cut --------------------------------------------------------------------------------------


def _killed(writer: pw.Writer) -> bytes:
    """The file as it is when the recorder is killed: no size, nothing behind the events."""
    bare = pw.dataclasses.replace(writer, with_tracing=False, features={}, data_size=0)
    return bare.build()


@pytest.mark.parametrize("packed", [False, True])
def test_a_killed_recorder(
    tmp_path: Path, writer: pw.Writer, plain: dict[str, pl.DataFrame], packed: bool
) -> None:
    other = writer.save(tmp_path / "other.data")
    w = writer.packed() if packed else writer
    path = written(tmp_path / "perf.data", _killed(w))
    trace = load(path, formats=other)
    same(trace, plain)
    assert any("did not end normally" in text for text in trace.header.warnings)
    assert any("another recording's" in text for text in trace.header.warnings)
    assert not any(str(other) in text for text in trace.header.warnings)
    with pytest.raises(UserError, match="--formats"):
        load(path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_killed_recorder_of_a_directory(tmp_path: Path, packed: bool) -> None:
    """What perf told of the processes there were is more than the samples."""
    w = soup(5, 60)
    other = w.save(tmp_path / "other.data")
    want = rows(load(other))
    ring = w.records
    idle = pw.dataclasses.replace(w, records=[])
    for _ in range(200):
        idle.mmap2(0, 1, 1, 0x400000, 4096, b"/bin/daemon")
    if packed:
        ring = w.packed(piece=99).records
    folder = tmp_path / "dir.data"
    folder.mkdir()
    (folder / "data").write_bytes(_killed(idle))
    (folder / "data.0").write_bytes(b"")
    (folder / "data.1").write_bytes(b"".join(ring))
    assert (folder / "data.1").stat().st_size < (folder / "data").stat().st_size
    trace = load(folder, formats=other)
    assert trace.rows("operations") == want["operations"].height


def test_formats_of_this_machine(
    tmp_path: Path,
    writer: pw.Writer,
    plain: dict[str, pl.DataFrame],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for ident, (system, text) in writer.formats.items():
        folder = tmp_path / "tracing" / "events" / system / f"event{ident}"
        folder.mkdir(parents=True)
        (folder / "format").write_text(text)
    monkeypatch.setattr(salvage, "TRACEFS", (tmp_path / "none", tmp_path / "tracing"))
    trace = load(written(tmp_path / "perf.data", _killed(writer)))
    same(trace, plain)
    assert any("this machine" in text for text in trace.header.warnings)
    # Another kernel's fault event has one word more: its samples do not fit.
    file = tmp_path / "tracing" / "events" / "exceptions" / "event10" / "format"
    more = "\tfield:unsigned long more;\toffset:32;\tsize:8;\tsigned:0;\n\nprint fmt"
    file.write_text(file.read_text().replace("\nprint fmt", more))
    with pytest.raises(UserError, match="do not fit"):
        load(tmp_path / "perf.data")


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, order: str) -> None:
    """With ``salvage`` it is read as far as it goes and says so, or is refused in one line.

    At every byte: test_import_is_whole.py, with a smaller file.
    """
    w = soup(3, 12, order=order)
    good, other = w.build(), w.save(tmp_path / "other.data")
    whole = load(other).rows("operations")
    start, length = struct.unpack_from(f"{order}2Q", good, 40)
    end = start + length
    read = 0
    for size in [*range(8, start, 11), *range(start, end + 8, 7), *range(end + 8, len(good), 97)]:
        path = written(tmp_path / "perf.data", good[:size])
        with pytest.raises(UserError, match=r"truncated perf\.data") as caught:
            load(path, formats=other)
        assert "\n" not in caught.value.line()
        assert "copy the whole file again" in caught.value.fix
        try:
            trace = load(path, formats=other, salvage=True)
        except UserError as error:
            assert "\n" not in error.line()
            assert size < end, error.line()
            continue
        read += 1
        assert "--salvage" in caught.value.fix
        trace.validate()
        assert trace.rows("operations") <= whole
        if size < end:
            assert any("too early" in text for text in trace.header.warnings)
        else:
            assert trace.rows("operations") == whole
    assert read > (end - start) // 14


def test_how_much_of_a_cut_file_is_missing(tmp_path: Path, writer: pw.Writer) -> None:
    good = writer.build()
    for lacks in (1, 1000):
        path = written(tmp_path / "perf.data", good[:-lacks])
        with pytest.raises(UserError, match=f"at least {lacks:,} bytes? missing") as caught:
            load(path)
        assert caught.value.where == str(path)
    # Of several files the cut one is named.
    whole = written(tmp_path / "whole.data", good)
    with pytest.raises(UserError, match="1,000 bytes missing") as caught:
        import_trace([whole, path], tmp_path / "t.mmt")
    assert caught.value.where == str(path)
    assert {file.name for file in tmp_path.iterdir()} == {"perf.data", "whole.data"}


def test_a_cut_file_on_the_command_line(tmp_path: Path, writer: pw.Writer) -> None:
    with_more = pw.dataclasses.replace(writer, features={4: b"\x04\0\0\x006.1\0"})
    path = written(tmp_path / "perf.data", with_more.build()[:-1])
    words = [str(path), "-o", str(tmp_path / "t.mmt")]
    with pytest.raises(UserError, match="truncated"):
        CliRunner().invoke(command, words, catch_exceptions=False)
    assert not (tmp_path / "t.mmt").exists()
    done = CliRunner().invoke(command, [*words, "--salvage", "--format", "json"])
    assert done.exit_code == 0
    assert any("what there is was read" in text for text in json.loads(done.stdout)["warnings"])


@pytest.mark.parametrize("left", [5, 12, -3])
@pytest.mark.parametrize("packed", [False, True])
def test_a_directory_with_a_cut_file(tmp_path: Path, packed: bool, left: int) -> None:
    """No head says how long it was, but it ends inside a record; which file is said."""
    w = soup(11, 300)
    w.records = [r for r in w.records if struct.unpack_from("<I", r)[0] != 68]
    middle = len(w.records) // 2
    parts = [w.records[10:middle], w.records[middle:]]
    if packed:
        parts = [pw.dataclasses.replace(w, records=part).packed(piece=99).records for part in parts]
        w.features = w.features | {27: b"\0" * 20}
    w.records = w.records[:10]
    folder = w.directory(tmp_path / "dir.data", parts)
    whole = load(folder).rows("operations")
    cut = folder / "data.1"
    cut.write_bytes(cut.read_bytes()[:left])
    with pytest.raises(UserError, match=r"truncated perf\.data") as caught:
        load(folder)
    assert caught.value.where == str(cut)
    assert "--salvage" in caught.value.fix
    trace = load(folder, salvage=True)
    trace.validate()
    assert 0 < trace.rows("operations") <= whole
    assert trace.header.counters["cut_bytes"] > 0
    # And where the head is in the file that was cut:
    main = folder / "data"
    main.write_bytes(main.read_bytes()[:-1])
    with pytest.raises(UserError, match="at least 1 byte missing") as caught:
        load(folder)
    assert caught.value.where == str(main)


# -- small windows ----------------------------------------------------------------------------


@given(
    seed=st.integers(0, 1 << 32),
    feed=st.integers(1 << 16, 1 << 17),
    how=st.sampled_from(["packed", "pipe", "directory", "big"]),
)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_same_bytes_however_it_is_fed(tmp_path: Path, seed: int, feed: int, how: str) -> None:
    w = soup(seed, 400, order=">" if how == "big" else "<")
    path = tmp_path / "perf.data"
    if how == "directory" and not path.exists():
        w.directory(tmp_path / f"d{seed}-{feed}", [w.records[10:200:2], w.records[11:200:2]])
        path = tmp_path / f"d{seed}-{feed}"
    elif how == "pipe":
        path = written(tmp_path / "p", w.pipe())
    else:
        path = (w.packed() if how == "packed" else w).save(tmp_path / "f")
    whole = contents(load(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "WALK_ROWS", 17)
        patch.setattr(streams, "FEED_BYTES", feed)
        assert contents(load(path)) == whole


@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_recording_without_samples_says_so(tmp_path: Path, packed: bool) -> None:
    """Formats of another recording would not help."""
    writer = pw.default()
    writer.comm(0, 100, 100, b"idle")
    writer.with_tracing = False
    writer = dataclasses.replace(writer.packed() if packed else writer, data_size=0, features={})
    path = writer.save(tmp_path / "perf.data")
    with pytest.raises(UserError, match="holds no samples") as caught:
        load(path)
    assert "record again" in caught.value.fix


def test_formats_are_checked_behind_call_chains(tmp_path: Path) -> None:
    """And of samples that have none, nothing is asked."""
    kinds = pw.TP_TYPE | pw.CALLCHAIN
    good = pw.Writer(events=[pw.Event(10, sample_type=kinds), pw.Event(5, 1, pw.SW_TYPE)])
    for k in range(5):
        good.fault(0, 1000 + k, 100, 0x7F0000001000, frames=k)
    other = good.save(tmp_path / "other.data")
    cut = dataclasses.replace(good, data_size=0, with_tracing=False)
    assert load(cut.save(tmp_path / "cut.data"), formats=other).rows("operations") == 5
    odd = dict(pw.FORMATS)
    odd[10] = ("exceptions", odd[10][1].replace("offset:24;", "offset:40;"))
    strange = dataclasses.replace(good, formats=odd).save(tmp_path / "strange.data")
    with pytest.raises(UserError, match="do not fit"):
        load(tmp_path / "cut.data", formats=strange)
    ends = pw.Writer(events=good.events, data_size=0, with_tracing=False)
    ends.sample(1, 1000, 100, addr=0x7F0000001000)
    assert load(ends.save(tmp_path / "ends.data"), formats=other).rows("operations") == 1
