"""Parts of a Parquet file encoded apart read as one table."""

from __future__ import annotations

import random
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmreplay.trace.chunks import Column
from mmreplay.trace.columns import arrow_schema, to_arrow
from mmreplay.trace.parts import Parts
from mmreplay.trace.store import frame

_COLUMNS = arrow_schema("operations").names


def _table(seed: int, rows: int) -> pa.Table:
    draw = random.Random(seed)

    def number(most: int) -> int:
        return draw.choice([0, 1, draw.randrange(most)])

    columns: dict[str, list[int | None]] = {
        "begin_ns": sorted(draw.randrange(1 << 40) for _ in range(rows)),
        "duration_ns": [draw.choice([None, number(1 << 50)]) for _ in range(rows)],
        "address": [draw.choice([None, number(1 << 64)]) for _ in range(rows)],
        "cpu": [draw.choice([-1, number(1 << 15)]) for _ in range(rows)],
        "errno": [draw.choice([None, number(1 << 12)]) for _ in range(rows)],
        "kind": [number(20) for _ in range(rows)],
        "wait_ns": [draw.choice([None, number(1 << 30)]) for _ in range(rows)],
    }
    return to_arrow("operations", frame("operations", columns))


def columns_of(table: pa.Table) -> dict[str, Column]:
    """The columns of an Arrow table of integers."""
    found = {}
    for name in table.schema.names:
        one = table.column(name).combine_chunks()
        known = one.is_valid().to_numpy(zero_copy_only=False)
        found[name] = Column(one.fill_null(0).to_numpy(), known, one.null_count)
    return found


def _write(path: Path, table: pa.Table, order: list[int], threads: int) -> tuple[int, int, int]:
    """Groups of 10 rows, in two parts each, encoded in ``order``."""
    late = ["wait_ns", "kind"]
    early = [name for name in _COLUMNS if name not in late]
    parts = Parts(path, "operations")
    with ThreadPoolExecutor(threads) as pool:
        done = []
        for place in order:
            group, second = divmod(place, 2)
            columns = late if second else early
            part = columns_of(table.slice(10 * group, 10).select(columns))
            done.append(pool.submit(parts.write, place, group, part))
        for one in done:
            one.result()
    return parts.close()


@given(
    rows=st.integers(1, 64),
    seed=st.integers(0, 1 << 30),
    threads=st.integers(1, 4),
    shuffle=st.randoms(use_true_random=False),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_parts_read_as_what_was_written(
    tmp_path: Path, rows: int, seed: int, threads: int, shuffle: random.Random
) -> None:
    table = _table(seed, rows)
    order = list(range(2 * -(-rows // 10)))
    path, again = tmp_path / "a.parquet", tmp_path / "b.parquet"
    facts = _write(path, table, order, 1)
    content = path.read_bytes()
    assert facts == (rows, len(content), zlib.crc32(content))
    shuffle.shuffle(order)
    _write(again, table, order, threads)
    assert again.read_bytes() == content  # whoever encoded what, and when

    with pq.ParquetFile(str(path)) as file:
        assert file.schema_arrow.equals(arrow_schema("operations"))
        assert file.read().equals(table)
        begins = table["begin_ns"].to_pylist()
        for group in range(file.num_row_groups):
            known = file.metadata.row_group(group).column(0).statistics
            own = begins[10 * group : 10 * group + 10]
            assert (known.min, known.max) == (min(own), max(own))
    expected = pl.from_arrow(table)
    assert isinstance(expected, pl.DataFrame)
    assert pl.read_parquet(path).equals(expected)
    middle = begins[rows // 2]
    wanted = pl.scan_parquet(path).filter(pl.col("begin_ns") >= middle).select("kind", "wait_ns")
    assert wanted.collect().equals(
        expected.filter(pl.col("begin_ns") >= middle).select("kind", "wait_ns")
    )


def test_no_groups_at_all(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "a.parquet", "operations")
    assert parts.close()[0] == 0
    assert pl.read_parquet(tmp_path / "a.parquet").columns == _COLUMNS


def test_a_group_that_lacks_a_column_is_a_bug(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "a.parquet", "operations")
    parts.write(0, 0, columns_of(_table(1, 5).select(_COLUMNS[:-1])))
    with pytest.raises(KeyError):
        parts.close()
