"""Column chunks that compiled code encodes are read by others as what they were."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmreplay.trace.chunks import MOST_DISTINCT, encode
from mmreplay.trace.parts import Parts
from mmreplay.trace.store import frame
from mmreplay.trace.writer import arrow_schema, to_arrow

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
        parts.write(number, number, groups[-1])
    parts.close()
    expected = pa.concat_tables(groups)
    with pq.ParquetFile(str(tmp_path / "a.parquet")) as file:
        assert file.read().equals(expected)
        for number, group in enumerate(groups):
            assert file.read_row_group(number).equals(group)
    read = pl.read_parquet(tmp_path / "a.parquet")
    assert read.equals(pl.DataFrame(pl.from_arrow(expected)))


@pytest.mark.parametrize("distinct", [MOST_DISTINCT, MOST_DISTINCT + 1])
@pytest.mark.parametrize("width", [pa.int32(), pa.int64()])
def test_a_dictionary_has_so_many_entries_at_most(distinct: int, width: pa.DataType) -> None:
    values = [7 * (row % distinct) - 9000 for row in range(2 * distinct)]
    chunk = encode(pa.array(values, width), True)
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
        parts.write(bits - 1, bits - 1, tables[-1])
    parts.close()
    expected = pa.concat_tables(tables)
    assert pq.read_table(tmp_path / "a.parquet").equals(expected)
    assert pl.read_parquet(tmp_path / "a.parquet").equals(pl.DataFrame(pl.from_arrow(expected)))


def test_what_is_null_has_no_influence() -> None:
    """The memory of a value that is null may hold anything."""
    known = pa.py_buffer(bytes([0b0101_1010]))
    seen = set()
    for other in (0, 77):
        values = [other if row in (0, 2, 5, 7) else row for row in range(8)]
        content = pa.array(values, pa.int64()).buffers()[1]
        column = pa.Array.from_buffers(pa.int64(), 8, [known, content], 4)
        seen.add(encode(column, True).content)
    assert len(seen) == 1
