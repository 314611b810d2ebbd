"""Disturbed runs are seen, measured again within bounds, and left out where enough remain."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mmreplay.fit.accuracy import Compared, gains
from mmreplay.hardware import suite
from mmreplay.hardware.disturbance import AGAIN, Look, Watch, chosen, reason
from mmreplay.hardware.runs import read_runs, write_runs
from mmreplay.workloads.definition import load_workload

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="runs on x86-64 only")

CALM = {"window_s": 1.0, "steal_s": 0.0, "other_cpu_s": 0.0}
HERE = Look(30.0, 100.0)


@pytest.mark.parametrize(
    ("row", "before", "after", "why"),
    [
        ({}, HERE, HERE, None),
        ({"steal_s": 0.06}, HERE, HERE, "steal"),
        ({"other_cpu_s": 0.2}, HERE, HERE, "other programs"),
        ({}, HERE, Look(30.0, 120.0), "slow CPU"),
        ({}, Look(30.0, 120.0), HERE, "slow CPU"),
        ({}, HERE, Look(170.0, 100.0), "moved CPUs"),
        ({}, Look(170.0, 100.0), Look(170.0, 100.0), None),  # far apart, but all the time
        ({}, Look(None, 100.0), Look(None, 100.0), None),  # one CPU
    ],
)
def test_what_disturbed_a_run(row: Any, before: Look, after: Look, why: str | None) -> None:
    assert reason({**CALM, **row}, before, after, 100.0) == why


def test_a_watch_looks_before_and_after() -> None:
    looks = iter([(1.0, 1.0), (30.0, 100.0), (31.0, 100.0), (31.0, 150.0), (32.0, 50.0)])
    watch = Watch(lambda: next(looks))
    first, second, third = (watch.columns(CALM) for _ in range(3))
    assert (first["line_before_ns"], first["line_after_ns"]) == (30.0, 31.0)
    assert first["disturbed"] is None
    assert second["loop_ratio"] == 1.5
    assert second["disturbed"] == "slow CPU"
    assert third["line_before_ns"] == 31.0
    assert third["loop_ratio"] == 3.0  # by the fastest so far, which is its own


def run(repetition: int, rate: float, disturbed: str | None = None) -> dict[str, Any]:
    return {"repetition": repetition, "ops_per_s": rate, "disturbed": disturbed}


def test_undisturbed_runs_count_where_enough_remain() -> None:
    def rates(*rows: dict[str, Any]) -> list[float]:
        return [row["ops_per_s"] for row in chosen(rows)]

    assert rates(run(1, 2.0), run(0, 1.0)) == [1.0, 2.0]
    # measured again: the undisturbed one of the two, whichever it is
    assert rates(run(0, 1.0, "steal"), run(0, 2.0), run(1, 3.0)) == [2.0, 3.0]
    assert rates(run(0, 1.0), run(0, 2.0, "steal"), run(1, 3.0)) == [1.0, 3.0]
    assert rates(run(0, 1.0, "steal"), run(0, 2.0, "steal"), run(1, 3.0)) == [2.0, 3.0]
    # still disturbed: left out if two and half of all remain
    assert rates(run(0, 1.0, "steal"), run(1, 2.0), run(2, 3.0)) == [2.0, 3.0]
    assert rates(run(0, 1.0, "steal"), run(1, 2.0, "steal"), run(2, 3.0)) == [1.0, 2.0, 3.0]


def test_paths_are_neighbours() -> None:
    options = suite.Options(repetitions=3)
    plan = suite.plan([load_workload(n) for n in ("mmap1", "brk1", "page_fault1")], [1, 2], options)
    order = suite.order_of(plan)
    assert len(order) == 3 * 6
    for repetition in range(3):
        mine = [group for k, group in order if k == repetition]
        assert {(g[0].workload, g[0].threads) for g in mine} == {
            (w, n) for w in ("mmap1", "brk1", "page_fault1") for n in (1, 2)
        }
    for _, group in order:
        assert {point.path for point in group} == {"vma", "mmap_lock"}
        assert len({(point.workload, point.threads) for point in group}) == 1
    assert len({group[0].path for _, group in order}) == 2  # neither path is always the first


def test_disturbed_groups_are_measured_again_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loops: Iterator[float] = itertools.chain([100.0, 100.0], itertools.repeat(1000.0))
    monkeypatch.setattr(suite, "glance", lambda cpus: (30.0, next(loops)))
    options = suite.Options(repetitions=2, seconds=0.02, warm_up_s=0.0, check=False)
    runs = suite.measure(suite.plan([load_workload("mmap1")], [1], options))
    # every group is disturbed: one is measured again, and a tenth of the others
    assert AGAIN < 0.5
    assert all(row["disturbed"] for row in runs.rows)
    again = [row for row in runs.rows if row["repetition"] == 0]
    assert [row["path"] for row in again[:2]] == [row["path"] for row in again[2:]]
    assert len(runs.rows) == 2 * 2 + 2
    assert [row["order"] for row in runs.rows] == list(range(6))


def test_files_without_the_columns_are_read(tmp_path: Path) -> None:
    options = suite.Options(repetitions=1, seconds=0.02, warm_up_s=0.0, check=False)
    runs = suite.measure(suite.plan([load_workload("mmap1")], [1], options))
    path = tmp_path / "runs.parquet"
    write_runs(runs, path)
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["disturbed", "loop_ratio"]), path)
    found = read_runs(path)
    assert all(row["disturbed"] is None for row in found.rows)
    assert [row["ops_per_s"] for row in found.rows] == [row["ops_per_s"] for row in runs.rows]


def test_a_gain_is_taken_from_neighbours() -> None:
    # the machine is three times as fast in one repetition, by both paths alike
    def point(path: str, rates: tuple[float, ...], numbers: tuple[int, ...]) -> Compared:
        return Compared(
            "m", "w", path, 1, "pinned", 2, sorted(rates)[1], 0.5, 1.2, False, rates, numbers
        )

    fast = point("vma", (12.0, 36.0, 12.0), (0, 1, 2))
    slow = point("mmap_lock", (30.0, 10.0, 10.0), (1, 2, 0))
    (row,) = gains([fast, slow])
    assert row["measured"] == pytest.approx(1.2)
    assert row["noise"] == pytest.approx(0.0)
