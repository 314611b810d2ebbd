"""Writing and reading traces: round trips, atomicity, and one clear line for bad input."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmreplay.errors import UserError
from mmreplay.schema import TRACE_SCHEMA, TRACE_TABLES
from mmreplay.trace import writer as writer_module
from mmreplay.trace.columns import polars_schema
from mmreplay.trace.store import Event, Header, Machine, Trace, frame, plain_release
from mmreplay.trace.writer import TraceWriter

_LIMITS = {
    "Int64": (-(2**63), 2**63 - 1),
    "Int32": (-(2**31), 2**31 - 1),
    "Int16": (-(2**15), 2**15 - 1),
    "UInt64": (0, 2**64 - 1),
    "UInt32": (0, 2**32 - 1),
    "UInt16": (0, 2**16 - 1),
    "UInt8": (0, 255),
}


def _values(dtype: str) -> st.SearchStrategy[Any]:
    if dtype == "String":
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    if dtype == "Boolean":
        return st.booleans()
    return st.integers(*_LIMITS[dtype])


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, pl.DataFrame]:
    """Any table with any values that its columns can hold."""
    table = draw(st.sampled_from(TRACE_TABLES))
    rows = draw(st.integers(0, 5))
    columns = {}
    for column in table.columns:
        values = _values(column.dtype)
        if column.nullable:
            values = st.none() | values
        columns[column.name] = draw(st.lists(values, min_size=rows, max_size=rows))
    return table.name, frame(table.name, columns)


@given(given_table=tables(), split_at=st.integers(0, 5))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_is_written_is_read_back(
    tmp_path: Path, given_table: tuple[str, pl.DataFrame], split_at: int
) -> None:
    name, rows = given_table
    with TraceWriter(tmp_path / "a.mmt", force=True) as writer:
        writer.write(name, rows.head(split_at))
        writer.write(name, rows.slice(split_at))
        trace = writer.close(Header())
    assert trace.table(name).collect().equals(rows, null_equal=True)
    assert dict(trace.table(name).collect_schema()) == polars_schema(name)
    batches = list(trace.batches(name, rows=2))
    assert sum(batch.height for batch in batches) == rows.height
    if batches:
        assert pl.concat(batches).equals(rows)


def test_header_round_trip(tmp_path: Path) -> None:
    header = Header(
        t0_ns=12,
        kernel_release="6.1.0",
        machine=Machine(cpu_model="A CPU", cpus_online=2),
        events=[Event(name="minor-faults", samples=7, lost=1)],
        counters={"orphan_exits": 3},
        warnings=["something"],
    )
    with TraceWriter(tmp_path / "a.mmt") as writer:
        written = writer.close(header)
    again = Trace.open(tmp_path / "a.mmt")
    assert again.header == written.header == header
    assert json.loads((tmp_path / "a.mmt" / "header.json").read_text())["schema"] == TRACE_SCHEMA


def test_many_writes_keep_their_order_when_they_spill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "HOLD_ROWS", 10)
    monkeypatch.setattr(writer_module, "_GATHER_ROWS", 4)
    rows = frame("operations", {"begin_ns": range(57), "kind": [1] * 57})
    with TraceWriter(tmp_path / "a.mmt") as writer:
        for first in range(0, 57, 3):
            writer.write("operations", rows.slice(first, 3))
        trace = writer.close(Header())
    assert trace.operations.collect().equals(rows)


def test_tables_that_were_not_written_read_as_empty(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.mmt") as writer:
        trace = writer.close(Header())
    for table in TRACE_TABLES:
        assert trace.table(table.name).collect().height == 0
        assert trace.has(table.name) == table.required


def test_in_memory_equals_on_disk(tmp_path: Path) -> None:
    rows = {
        "operations": frame("operations", [{"begin_ns": 1, "tid": 3, "kind": 1}]),
        "threads": frame("threads", [{"tid": 3, "comm": "x"}]),
    }
    memory = Trace.in_memory(Header(), rows)
    with TraceWriter(tmp_path / "a.mmt") as writer:
        for name, part in rows.items():
            writer.write(name, part)
        disk = writer.close(Header())
    for table in TRACE_TABLES:
        assert memory.table(table.name).collect().equals(disk.table(table.name).collect())


def test_digest_follows_the_content(tmp_path: Path) -> None:
    def made(name: str, begin_ns: int) -> Trace:
        with TraceWriter(tmp_path / name) as writer:
            writer.write("operations", frame("operations", [{"begin_ns": begin_ns, "kind": 1}]))
            return writer.close(Header())

    assert made("a.mmt", 1).digest() == made("b.mmt", 1).digest()
    assert made("c.mmt", 1).digest() != made("d.mmt", 2).digest()


# -- the writer leaves nothing half done ---------------------------------------------------


def _interrupted(path: Path, force: bool = False) -> None:
    with TraceWriter(path, force=force) as writer:
        writer.write("operations", frame("operations", [{"kind": 1}]))
        raise RuntimeError("stop")


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        _interrupted(tmp_path / "a.mmt")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_keeps_the_old_trace(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.mmt") as writer:
        writer.close(Header(t0_ns=1))
    with pytest.raises(RuntimeError, match="stop"):
        _interrupted(tmp_path / "a.mmt", force=True)
    assert Trace.open(tmp_path / "a.mmt").header.t0_ns == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.mmt"]


def test_forgetting_to_close_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="without close"), TraceWriter(tmp_path / "a.mmt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    one, two = TraceWriter(tmp_path / "a.mmt"), TraceWriter(tmp_path / "a.mmt")
    other = TraceWriter(tmp_path / "b.mmt")
    one.write("threads", frame("threads", [{"tid": 1}]))
    two.write("threads", frame("threads", [{"tid": 2}]))
    other.write("threads", frame("threads", [{"tid": 3}]))
    assert one.close(Header()).threads.collect()["tid"].to_list() == [1]
    with pytest.raises(UserError, match=r"exists.*--force"):
        two.close(Header())
    assert other.close(Header()).threads.collect()["tid"].to_list() == [3]
    assert Trace.open(tmp_path / "a.mmt").threads.collect()["tid"].to_list() == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mmt", "b.mmt"]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    living = TraceWriter(tmp_path / "a.mmt")
    dead = tmp_path / "a.mmt.partial-99-xyz"
    dead.mkdir()
    (dead / "operations.parquet").write_bytes(b"half")
    others = tmp_path / "b.mmt.partial-99-xyz"  # of another trace: not ours to remove
    others.mkdir()
    with TraceWriter(tmp_path / "a.mmt") as writer:
        assert not dead.exists()
        assert living.directory.is_dir()  # held by somebody
        writer.close(Header())
    living.discard()
    assert {path.name for path in tmp_path.iterdir()} == {"a.mmt", others.name}


def test_a_trace_that_a_killed_writer_was_replacing_is_put_back(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.mmt") as writer:
        writer.close(Header(t0_ns=7))
    # Killed between the two renames: the old one aside, the new one not yet in its place.
    (tmp_path / "a.mmt").rename(tmp_path / "a.mmt.replaced-99-xyz")
    (tmp_path / "a.mmt.partial-99-xyz").mkdir()
    with pytest.raises(UserError, match="the trace exists; add --force"):
        TraceWriter(tmp_path / "a.mmt")
    assert Trace.open(tmp_path / "a.mmt").header.t0_ns == 7
    assert [path.name for path in tmp_path.iterdir()] == ["a.mmt"]


def test_force_replaces_a_trace_and_nothing_else(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.mmt") as writer:
        writer.close(Header(t0_ns=1))
    with pytest.raises(UserError, match="--force"):
        TraceWriter(tmp_path / "a.mmt")
    with TraceWriter(tmp_path / "a.mmt", force=True) as writer:
        writer.close(Header(t0_ns=2))
    assert Trace.open(tmp_path / "a.mmt").header.t0_ns == 2
    (tmp_path / "mine.mmt").mkdir()
    (tmp_path / "mine.mmt" / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match="not a trace"):
        TraceWriter(tmp_path / "mine.mmt", force=True)
    assert (tmp_path / "mine.mmt" / "thesis.txt").exists()


def test_the_name_must_say_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.mmt"):
        TraceWriter(tmp_path / "trace")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    # root may write everywhere but in procfs
    for place in [Path("/proc/self"), *([tmp_path] if os.geteuid() else [])]:
        with pytest.raises(UserError, match="cannot write"):
            TraceWriter(place / "a.mmt")


def test_a_place_that_is_no_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        TraceWriter(tmp_path / "file" / "a.mmt")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_place_that_does_not_exist_is_one_line_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory; make it first"):
        TraceWriter(tmp_path / "a" / "b" / "c.mmt")
    assert list(tmp_path.iterdir()) == []


def test_writing_wrong_columns_is_refused(tmp_path: Path) -> None:
    good = frame("threads", [{"tid": 1}])
    with pytest.raises(UserError, match="tid"), TraceWriter(tmp_path / "a.mmt") as writer:
        writer.write("threads", good.with_columns(pl.col("tid").cast(pl.Int64)))
    with pytest.raises(UserError, match='"comm" is missing'):
        Trace.in_memory(Header(), {"threads": good.drop("comm")})
    with pytest.raises(UserError, match=r'no table "thread".*mean "threads"'):
        Trace.in_memory(Header(), {"thread": good})


# -- frame ---------------------------------------------------------------------------------


def test_frame_fills_what_is_left_out() -> None:
    rows = frame("operations", [{"begin_ns": 4}, {"begin_ns": 4, "address": 2**64 - 1}])
    assert rows["seq"].to_list() == [0, 1]
    assert rows["weight"].to_list() == [1, 1]
    assert rows["cpu"].to_list() == [-1, -1]
    assert rows["duration_ns"].to_list() == [None, None]
    assert rows["address"].to_list() == [None, 2**64 - 1]
    assert dict(rows.schema) == polars_schema("operations")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"begin": 1}], r'unknown column "begin" \(did you mean "begin_ns"\?\)'),
        ([{"tid": 2**31}], "operations.tid"),
        ([{"kind": -1}], "operations.kind"),
        ([{"begin_ns": 1.5}], "operations.begin_ns"),
        ([{"begin_ns": float("nan")}], "operations.begin_ns"),
        ({"begin_ns": [1, 2], "tid": [1]}, "different lengths"),
    ],
)
def test_frame_refuses_what_a_column_cannot_hold(rows: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        frame("operations", rows)


# -- opening what is not right ------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "a.mmt"
    with TraceWriter(path) as writer:
        writer.write("threads", frame("threads", [{"tid": 1, "pid": 1, "group": "g"}]))
        count = 3000
        writer.write(
            "operations",
            frame(
                "operations",
                {
                    "begin_ns": range(count),
                    "tid": [1] * count,
                    "kind": [1] * count,
                    "address": [(i * 2654435761) % 2**40 for i in range(count)],
                },
            ),
        )
        writer.close(Header())
    return path


def _edit_header(path: Path, **changes: Any) -> None:
    file = path / "header.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _error(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        Trace.open(path)
    line = caught.value.line()
    assert "\n" not in line
    assert caught.value.where
    return line


def test_not_a_trace(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "no such trace" in _error(tmp_path / "nothing")
    assert "no header.json" in _error(tmp_path)
    assert "mmreplay import file" in _error(tmp_path / "file")


def test_newer_schema(stored: Path) -> None:
    _edit_header(stored, schema=TRACE_SCHEMA + 1)
    assert "newer than this mmreplay" in _error(stored)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": "box"}, 'unknown key "host"'),
        ({"warning": []}, 'unknown key "warning" (did you mean "warnings"?)'),
        ({"machine": {"cpu_modle": "x"}}, 'did you mean "cpu_model"?'),
        ({"events": [{"name": "x", "lots": 1}]}, 'unknown key "events.0.lots" (did you mean'),
        ({"lost_events": -1}, "lost_events"),
        ({"kernel_release": "6.1.0-18-amd64"}, "kernel_release"),
        ({"schema": "one"}, "schema"),
    ],
)
def test_wrong_header_keys(stored: Path, changes: dict[str, Any], message: str) -> None:
    _edit_header(stored, **changes)
    assert message in _error(stored)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_header_that_is_no_json_object(stored: Path, text: str) -> None:
    (stored / "header.json").write_text(text)
    assert "header" in _error(stored)


def test_missing_table(stored: Path) -> None:
    """Required ones, and those that the header names."""
    for file in stored.glob("*.parquet"):
        content = file.read_bytes()
        file.unlink()
        assert f"the table {file.stem} is missing" in _error(stored)
        file.write_bytes(content)
    Trace.open(stored)


def test_a_trace_from_before_a_column_reads_it_as_null(stored: Path) -> None:
    file = stored / "operations.parquet"
    rows = pl.read_parquet(file)
    rows.drop("think_raw_ns").write_parquet(file)
    trace = Trace.open(stored, verify=False)
    assert trace.operations.collect().equals(rows.with_columns(think_raw_ns=pl.lit(None, pl.Int64)))
    (part,) = trace.batches("operations", ["tid", "think_raw_ns", "kind"])
    assert part.columns == ["tid", "think_raw_ns", "kind"]
    assert part["think_raw_ns"].null_count() == part.height > 0


def test_wrong_dtype(stored: Path) -> None:
    rows = pl.read_parquet(stored / "threads.parquet")
    rows.with_columns(pl.col("tid").cast(pl.Int64)).write_parquet(stored / "threads.parquet")
    assert 'column "tid" has dtype Int64, the schema says Int32' in _error(stored)


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.99])
def test_truncated_parquet(stored: Path, keep: float) -> None:
    file = stored / "operations.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert "operations.parquet" in _error(stored)


@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_damaged_byte_is_one_line(stored: Path, position: float, flip: int) -> None:
    damaged = stored.with_name("damaged.mmt")
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(stored, damaged)
    file = damaged / "operations.parquet"
    content = bytearray(file.read_bytes())
    content[int(position * len(content))] ^= flip
    file.write_bytes(content)
    assert "operations.parquet" in _error(damaged)


@pytest.mark.parametrize(
    ("release", "plain"),
    [
        ("6.1.0-18-amd64", "6.1.0"),
        ("6.8.12-300.x86_64", "6.8.12"),
        ("5.15", "5.15"),
        ("6.18.44+", "6.18.44"),
        ("unknown", None),
        ("", None),
    ],
)
def test_plain_release(release: str, plain: str | None) -> None:
    assert plain_release(release) == plain
    Header(kernel_release=plain)
