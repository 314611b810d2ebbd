"""Column chunks that compiled code encodes are read by others as what they were."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmreplay.schema import VMAS
from mmreplay.trace.chunks import MOST_DISTINCT, Column, Wanted, encode
from mmreplay.trace.columns import arrow_schema, frame, polars_schema, to_arrow
from mmreplay.trace.gathered import Gathered
from mmreplay.trace.parts import Parts


def _columns(table: pa.Table) -> dict[str, Column]:
    found = {}
    for name in table.schema.names:
        one = table.column(name).combine_chunks()
        known = one.is_valid().to_numpy(zero_copy_only=False)
        if one.null_count and len(known) % 3 == 0:  # either way
            known = np.packbits(known, bitorder="little")
        found[name] = Column(one.fill_null(0).to_numpy(), known, one.null_count)
    return found


_SCHEMA = arrow_schema("operations")
_ROWS = (1, 7, 8, 65, 5003)


def _limits(kind: pa.DataType) -> tuple[int, int]:
    bits = kind.bit_width
    if str(kind).startswith("u"):
        return 0, (1 << bits) - 1
    return -(1 << bits - 1), (1 << bits - 1) - 1


def _column(field: pa.Field, rows: int, distinct: int, nulls: float, seed: int) -> pa.Array:
    draw = random.Random(f"{field.name} {seed}")
    low, high = _limits(field.type)
    chosen = [draw.randint(low, high) for _ in range(min(distinct, rows))]
    chosen[: len(chosen) // 2] = [low, high][: len(chosen) // 2]
    values: list[int | None] = draw.choices(chosen, k=rows)
    if distinct > rows:
        values = [*chosen]
    if field.nullable:
        values = [None if draw.random() < nulls else value for value in values]
    return pa.array(values, field.type)


@pytest.mark.parametrize("nulls", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("distinct", [1, 2, 3, 300, 1 << 20])
def test_every_kind_of_column(tmp_path: Path, distinct: int, nulls: float) -> None:
    parts = Parts(tmp_path / "a.parquet", "operations")
    groups = []
    for number, rows in enumerate(_ROWS):
        columns = [_column(field, rows, distinct, nulls, number) for field in _SCHEMA]
        groups.append(pa.Table.from_arrays(columns, schema=_SCHEMA))
        parts.write(number, number, _columns(groups[-1]))
    parts.close()
    expected = pa.concat_tables(groups)
    with pq.ParquetFile(str(tmp_path / "a.parquet")) as file:
        assert file.read().equals(expected)
        for number, group in enumerate(groups):
            assert file.read_row_group(number).equals(group)
    read = pl.read_parquet(tmp_path / "a.parquet")
    assert read.equals(pl.DataFrame(pl.from_arrow(expected)))


@pytest.mark.parametrize("distinct", [MOST_DISTINCT, MOST_DISTINCT + 1])
@pytest.mark.parametrize("width", [4, 8])
def test_a_dictionary_has_so_many_entries_at_most(distinct: int, width: int) -> None:
    values = [7 * (row % distinct) - 9000 for row in range(2 * distinct)]
    (chunk,) = encode([Wanted(Column(np.array(values)), width, True)])
    assert ("RLE_DICTIONARY" in chunk.encodings) == (distinct == MOST_DISTINCT)


def test_numbers_of_every_width(tmp_path: Path) -> None:
    """2 to 4096 distinct values, met in an order that is not theirs."""
    parts = Parts(tmp_path / "a.parquet", "operations")
    tables = []
    for bits in range(1, 13):
        values = [row * 2_654_435_761 % (1 << bits) for row in range((1 << bits) + 5)]
        rows = {name: [row % 2 for row in values] for name in ("cpu", "kind")}
        begins = {"begin_ns": sorted(values), "address": values, "duration_ns": values}
        tables.append(to_arrow("operations", frame("operations", {**rows, **begins})))
        parts.write(bits - 1, bits - 1, _columns(tables[-1]))
    parts.close()
    expected = pa.concat_tables(tables)
    assert pq.read_table(tmp_path / "a.parquet").equals(expected)
    assert pl.read_parquet(tmp_path / "a.parquet").equals(pl.DataFrame(pl.from_arrow(expected)))


def test_what_is_null_has_no_influence() -> None:
    """The memory of a value that is null may hold anything."""
    known = np.array([0b0101_1010], np.uint8)
    seen = set()
    for other in (0, 77):
        values = [other if row in (0, 2, 5, 7) else row for row in range(8)]
        (chunk,) = encode([Wanted(Column(np.array(values), known, 4), 8, True)])
        seen.add(chunk.content)
    assert len(seen) == 1


@pytest.mark.parametrize("distinct", [1, 3, MOST_DISTINCT, MOST_DISTINCT + 1])
def test_strings_and_truth(tmp_path: Path, distinct: int) -> None:
    """Names that repeat, too many different ones for a dictionary, and none; in several parts."""
    writer = Gathered(tmp_path / "a.parquet", "vmas")
    expected: list[dict[str, object]] = []
    for part in range(2):
        words = [f"näme {part} {place % 4000}" * (place % 3) for place in range(distinct)]
        rows = distinct + 13
        truth = [(None, False, True)[row % 3] for row in range(rows)]
        numbers = Column(np.arange(rows))
        writer.write(
            {
                **dict.fromkeys((column.name for column in VMAS.columns), numbers),
                "prot": Column(np.arange(rows) % 256),
                "name": Column(np.arange(rows) % distinct, words=words),
                "source": Column(np.zeros(rows, np.int64), words=["mmap2"]),
                "has_anon_vma": Column(
                    np.array([bool(one) for one in truth]),
                    np.array([one is not None for one in truth]),
                    truth.count(None),
                ),
            }
        )
        expected += [
            {
                "ns": row,
                "name": words[row % distinct],
                "source": "mmap2",
                "has_anon_vma": truth[row],
            }
            for row in range(rows)
        ]
    assert writer.close()[0] == len(expected)
    read = pl.read_parquet(tmp_path / "a.parquet")
    assert dict(read.schema) == polars_schema("vmas")
    assert read.select("ns", "name", "source", "has_anon_vma").to_dicts() == expected
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["name"].to_pylist() == [row["name"] for row in expected]
    assert table["has_anon_vma"].to_pylist() == [row["has_anon_vma"] for row in expected]


@pytest.mark.parametrize("rows", [1, 2, 32, 33, 128, 129, 130, 5000])
@pytest.mark.parametrize("step", [0, 1, 1000, 1 << 40, 1 << 63])
def test_differences_of_every_width(tmp_path: Path, rows: int, step: int) -> None:
    """Times that ascend, do not, or leap over the whole range."""
    draw = random.Random(f"{rows} {step}")
    low, high = -(1 << 63), (1 << 63) - 1
    values = [max(low, min(high, draw.randint(-step // 8, step))) for _ in range(rows)]
    parts = Parts(tmp_path / "a.parquet", "callchains")
    other = Column(np.zeros(rows, np.int64))
    begin = Column(np.array(values, np.int64))
    parts.write(0, 0, {"begin_ns": begin, "seq": other, "stack": other})
    parts.close()
    assert pq.read_table(tmp_path / "a.parquet")["begin_ns"].to_pylist() == values
    assert pl.read_parquet(tmp_path / "a.parquet")["begin_ns"].to_list() == values
