"""What an anonymised trace keeps (shape, times) and what it does not (who, where)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreplay.cli.main import main
from mmreplay.errors import UserError
from mmreplay.schema import TRACE_TABLES, OpKind
from mmreplay.trace import anonymise as an
from mmreplay.trace.header import Clock, Event, Header, Machine, Source
from mmreplay.trace.store import Trace, frame
from mmreplay.trace.writer import TraceWriter

LIBRARY = 0x7F3A_1234_5000
PROGRAM = 0x55D0_AAAA_0000
STACK = 0x7FFC_0BAD_F000
HEAP_OF_JAVA = 0x5_C000_0000  # a runtime's own choice, the same in every run
MUTEX = 0xFFFF_9A3B_1234_5678


def secret() -> Trace:
    """A trace in which everything that can tell something does."""
    operations = [
        {
            "begin_ns": 0,
            "kind": OpKind.FAULT_USER,
            "tid": 7,
            "pid": 7,
            "address": LIBRARY + 0x123,
            "ip": PROGRAM + 0x40,
        },
        {
            "begin_ns": 1,
            "kind": OpKind.MMAP,
            "tid": 7,
            "pid": 7,
            "address": LIBRARY - 0x20_0000,
            "address2": 0,
            "length": 0x20_0000,
            "result": LIBRARY - 0x20_0000,
        },
        {"begin_ns": 2, "kind": OpKind.MMAP, "tid": 7, "pid": 7, "result": -12, "errno": 12},
        {"begin_ns": 3, "kind": OpKind.MUNMAP, "tid": 8, "pid": 7, "address": HEAP_OF_JAVA},
        {"begin_ns": 4, "kind": OpKind.FAULT_KERNEL, "tid": 8, "pid": 7, "address": MUTEX},
        {"begin_ns": 5, "kind": OpKind.BRK, "tid": 8, "pid": 7, "result": PROGRAM + 0x100_0000},
        {"begin_ns": 6, "kind": OpKind.MINCORE, "tid": 8, "pid": 7, "result": 1},
    ]
    threads = [
        {"tid": 7, "pid": 7, "comm": "secret-svc", "group": "secret-svc"},
        {"tid": 8, "pid": 7, "comm": "customer-12", "group": "customer-#"},
        {"tid": 9, "pid": 7, "comm": "customer-7", "group": "customer-#"},
    ]
    vmas = [
        {
            "start": LIBRARY,
            "length": 4096,
            "name": "libsecret.so.1",
            "inode": 471147114,
            "device": 9,
        },
        {"start": PROGRAM, "length": 4096, "name": "secret-svc", "inode": 471247124, "device": 9},
        {"start": STACK, "length": 4096, "name": "[stack]", "file_offset": 0x7FFF_FFFD_E000},
        {"start": LIBRARY + 8192, "length": 4096, "name": "[anon:customers]"},
        {"start": LIBRARY + 16384, "length": 4096, "name": "/dev/secret0", "inode": 5, "device": 6},
        {"start": LIBRARY - 4096, "length": 4096, "name": "//anon", "file_offset": LIBRARY},
        {"start": LIBRARY - 8192, "length": 4096, "name": "data", "inode": 3, "file_offset": 4096},
    ]
    locks = [{"tid": 8, "lock_address": MUTEX, "begin_ns": 4}]
    header = Header(
        t0_ns=123_456_789,
        clock=Clock(name="monotonic", wall_ns_at_t0=1_790_000_000_000_000_000),
        kernel_release="6.1.0",
        machine=Machine(cpu_model="CPU X", cpu_id="v,1,2", cpus_online=8, memory_kib=12_345_678),
        source=Source(format="perf.data", size_bytes=99, blake2b="abcd", tool_version="6.1.187"),
        events=[
            Event(name="minor-faults"),
            Event(name="exceptions:page_fault_user"),
            Event(name="probe_secret:charge"),
            Event(name="the customer"),
            Event(name="minor-faults:u"),
        ],
        warnings=[
            "probe_secret:charge: its fields were not recorded; the event is only counted",
            "only a part was imported, of process secretary-of-all, up to 2 s; events are counted",
        ],
    )
    tables = {"operations": operations, "threads": threads, "vmas": vmas, "locks": locks}
    return Trace.in_memory(header, {name: frame(name, rows) for name, rows in tables.items()})


def stored(trace: Trace, path: Path) -> Path:
    with TraceWriter(path) as writer:
        for table in TRACE_TABLES:
            if trace.has(table.name):
                writer.write(table.name, trace.table(table.name).collect())
        writer.close(trace.header)
    return path


def values(trace: Trace, table: str, column: str) -> list[Any]:
    return trace.table(table).collect()[column].to_list()


def test_nothing_that_tells_is_left(tmp_path: Path) -> None:
    out, _ = an.anonymise(secret(), tmp_path / "a.mmt")
    text = (tmp_path / "a.mmt" / "header.json").read_text()
    for table in TRACE_TABLES:
        if out.has(table.name):
            text += out.table(table.name).collect().write_csv()
    for word in (
        "secret",
        "customer",
        "charge",
        "471147114",
        "471247124",
        "12345678",
        "abcd",
        "179000000",
    ):
        assert word not in text
    old = secret()
    for table, rules in an.RULES.items():
        for column, rule in rules.items():
            if rule in ("address", "result", "offset"):
                before = set(values(old, table, column)) - {None, 0, 1, -12, 4096, HEAP_OF_JAVA}
                assert before.isdisjoint(values(out, table, column))
    assert out.header.t0_ns == 0
    assert out.header.clock == Clock(name="monotonic")
    assert out.header.machine.memory_kib is None


def test_what_predictions_need_stays(tmp_path: Path) -> None:
    old = secret()
    out, _ = an.anonymise(old, tmp_path / "a.mmt")
    assert out.header.kernel_release == "6.1.0"
    assert (out.header.machine.cpu_model, out.header.machine.cpus_online) == ("CPU X", 8)
    assert [event.name for event in out.header.events][:2] == [
        "minor-faults",
        "exceptions:page_fault_user",
    ]
    for table in ("operations", "threads", "vmas"):
        before, after = (trace.table(table).collect() for trace in (old, out))
        same = [name for name in before.columns if name not in an.RULES[table]]
        assert before.select(same).equals(after.select(same))
    assert values(out, "vmas", "name")[2] == "[stack]"
    results = values(out, "operations", "result")
    assert (results[2], results[6]) == (-12, 1)
    assert results[1] == values(out, "operations", "address")[1]
    assert values(out, "operations", "address")[3] == HEAP_OF_JAVA
    assert values(out, "operations", "address2")[1] == 0  # no hint stays no hint


def test_the_same_things_stay_the_same(tmp_path: Path) -> None:
    out, replaced = an.anonymise(secret(), tmp_path / "a.mmt")
    assert values(out, "operations", "address")[4] == values(out, "locks", "lock_address")[0]
    assert values(out, "threads", "group") == [
        replaced.groups["secret-svc"],
        *[replaced.groups["customer-#"]] * 2,
    ]
    comms = values(out, "threads", "comm")
    assert len(set(comms)) == 3
    assert "#" in replaced.groups["customer-#"]
    assert sorted(comms)[:2] == comms[1:]  # "customer-12" still sorts before "customer-7"
    device, inode = values(out, "vmas", "device"), values(out, "vmas", "inode")
    assert device[0] == device[1] != device[4]
    assert inode[0] != inode[1]
    assert (inode[2], device[2]) == (0, 0)
    start, offset = values(out, "vmas", "start"), values(out, "vmas", "file_offset")
    assert offset[5] == start[0]  # where its pages lay first
    assert offset[6] == 4096
    assert any("of process one, up to 2 s;" in line for line in out.header.warnings)
    assert {"minor-faults:u", "other:a"} <= {event.name for event in out.header.events}
    names = values(out, "vmas", "name")
    assert names[0].endswith(".so")
    assert names[3].startswith("[anon:")
    assert names[4].startswith("/dev/")


def test_an_unknown_column_is_a_bug(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever adds a column that can tell something says here what becomes of it."""
    for table in TRACE_TABLES:
        an._know_all(table.name, {column.name: column.dtype for column in table.columns})
    with pytest.raises(RuntimeError, match=r"no rule says whether threads\.user"):
        an._know_all("threads", {"user": "String"})


ADDRESSES = st.one_of(
    st.integers(0x55_0000_0000_00, 0x56_0000_0000_00).map(lambda a: a << 0),
    st.integers(0x7E00_0000_0000, 0x7FFF_FFFF_F000),
    st.integers(0x2000_0000_0000, 0x3000_0000_0000),
    st.integers(0, 1 << 39),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(ADDRESSES, min_size=1, max_size=12), st.integers(0, 1 << 40))
def test_the_shape_stays(addresses: list[int], seed: int) -> None:
    rows = [
        {"begin_ns": i, "kind": OpKind.FAULT_USER, "address": a} for i, a in enumerate(addresses)
    ]
    trace = Trace.in_memory(Header(), {"operations": frame("operations", rows)})
    new = an._find_addresses(trace, seed)(pl.Series("a", addresses, pl.UInt64)).to_list()
    moved = [(old, now) for old, now in zip(addresses, new, strict=True) if old >= 1 << 40]
    assert all(old == now for old, now in zip(addresses, new, strict=True) if old < 1 << 40)
    assert len({old - now for old, now in moved}) <= 1
    for old, now in moved:
        assert old - now > 0
        assert (old - now) % (1 << 30) == 0
        for bound in (1 << 40, 1 << 44, 1 << 46, 1 << 47):
            assert (old >= bound) == (now >= bound)


def test_a_mapping_across_the_bound_moves_not_at_all() -> None:
    """A sanitizer's shadow memory begins low and ends high; faults in it stay in it."""
    start, end = 0x7FFF_8000, 0x1000_7FFF_8000
    vmas = [{"start": start, "length": end - start}, {"start": LIBRARY, "length": 4096}]
    faults = [
        {"begin_ns": 0, "kind": OpKind.FAULT_USER, "address": 0x0FFF_0000_0000},
        {"begin_ns": 1, "kind": OpKind.FAULT_USER, "address": LIBRARY},
    ]
    tables = {"operations": frame("operations", faults), "vmas": frame("vmas", vmas)}
    find = an._find_addresses(Trace.in_memory(Header(), tables), 5)
    shadow, library = find(pl.Series([0x0FFF_0000_0000, LIBRARY], dtype=pl.UInt64)).to_list()
    assert shadow == 0x0FFF_0000_0000
    assert library < LIBRARY


def test_no_room_is_said() -> None:
    rows = [{"kind": OpKind.FAULT_USER, "address": (1 << 47) + 5}, {"kind": 1, "address": LIBRARY}]
    trace = Trace.in_memory(Header(), {"operations": frame("operations", rows)})
    with pytest.raises(UserError, match="leaves no room"):
        an._find_addresses(trace, None)


def test_each_copy_has_its_own_addresses(tmp_path: Path) -> None:
    one, two = (an.anonymise(secret(), tmp_path / f"{seed}.mmt", seed=seed)[0] for seed in (1, 2))
    assert values(one, "vmas", "start") != values(two, "vmas", "start")


def test_names_in_order() -> None:
    assert an.letters(3) == ["a", "b", "c"]
    many = an.letters(700)
    assert many == sorted(set(many))
    assert {len(word) for word in many} == {3}


def test_the_command_equals_the_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored(secret(), tmp_path / "own.mmt")
    out = tmp_path / "shared.mmt"
    main(["anonymise", str(path), "-o", str(out), "--format", "json"])
    told = json.loads(capsys.readouterr().out)
    _, replaced = an.anonymise(Trace.open(path), tmp_path / "b.mmt")
    assert told["groups"] == replaced.groups
    assert told["events"] == 2
    main(["show", str(out)])
    with pytest.raises(SystemExit) as ended:
        main(["anonymise", str(path), "-o", str(out)])
    assert ended.value.code == 2
    assert "add --force" in capsys.readouterr().err
