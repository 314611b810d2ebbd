"""Columns as arrays are the columns of the frames, null by null, however they are cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmreplay.trace.arrays import column_batches, whole_columns
from mmreplay.trace.store import Header, Trace, frame
from mmreplay.trace.writer import TraceWriter

_NUMBERS = ("begin_ns", "address", "result", "fault_bits", "tid")


def _rows(n: int) -> list[dict[str, object]]:
    return [
        {
            "begin_ns": 10 * i,
            "tid": i % 7,
            "kind": 1,
            "address": None if i % 3 == 0 else (1 << 63) + i,
            "result": -i if i % 5 else None,
            "fault_bits": None if i < 40 else i % 16,
        }
        for i in range(n)
    ]


@pytest.fixture(params=["in memory", "stored"])
def trace(request: pytest.FixtureRequest, tmp_path: Path) -> Trace:
    tables = {
        "operations": frame("operations", _rows(100)),
        "threads": frame("threads", [{"tid": t, "pid": 1, "comm": f"c{t % 2}"} for t in range(5)]),
        "vmas": frame("vmas", [{"name": "/a", "has_anon_vma": v} for v in (True, None, False)]),
    }
    if request.param == "in memory":
        return Trace.in_memory(Header(), tables)
    with TraceWriter(tmp_path / "t.mmt") as writer:
        for name, rows in tables.items():
            writer.write(name, rows)
        writer.close(Header())
    return Trace.open(tmp_path / "t.mmt")


@pytest.mark.parametrize("rows", [1, 7, 64, 100, 1000])
def test_numbers_and_nulls_are_the_frames(trace: Trace, rows: int) -> None:
    want = trace.operations.collect()
    seen = 0
    for batch in column_batches(trace, "operations", _NUMBERS, rows):
        for name in _NUMBERS:
            column = batch[name]
            there = want[name].slice(seen, len(column))
            assert column.missing().tolist() == there.is_null().to_list()
            values = there.fill_null(9).to_numpy()
            assert column.filled(9).tolist() == values.view(column.values.dtype).tolist()
            some = np.arange(0, len(column), 2)
            assert column.at(some, 9).tolist() == column.filled(9)[some].tolist()
        seen += len(batch["tid"])
    assert seen == 100


def test_words_booleans_and_a_table_that_is_not_there(trace: Trace) -> None:
    comm = whole_columns(trace, "threads", ("comm",))["comm"]
    assert [comm.words[i] for i in comm.values] == ["c0", "c1", "c0", "c1", "c0"]
    anon = whole_columns(trace, "vmas", ("has_anon_vma",))["has_anon_vma"]
    assert anon.filled(2).tolist() == [1, 2, 0]
    assert len(whole_columns(trace, "wakeups", ("tid", "after"))["after"]) == 0
