"""Measured runs of others become RUNS with what they say and nothing more."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmreplay.cli.main import cli
from mmreplay.errors import UserError
from mmreplay.hardware.foreign import Mapping, read_foreign, read_mapping
from mmreplay.hardware.runs import Runs, read_runs, summary, write_runs
from mmreplay.schema import RUNS

WIS_CSV = """\
tasks,processes,processes_idle,threads,threads_idle,linear
0,0,100,0,100,0
1,1000,93.75,900,93.70,1000
2,1990,87.50,1200,87.51,2000
4,-1,75.00,1100,75.02,4000
"""
WIS_OUTPUT = """\
testcase:Anonymous memory page fault
warmup
min:1 max:2 total:3
measurement
min:100 max:140 total:480
min:110 max:150 total:520
average:500
"""
PFT = """\
  Gb Rep Thr CLine  User      System     Wall      flt/cpu/s fault/wsec
  1    1   1    0.05s      0.95s      1.02s   262144.5   257000.25
  1    4   1    0.10s      3.95s      1.10s    64727.1   238312.73
  1    4   1    0.11s      3.90s      1.08s    65372.1   242725.93
"""
MMTESTS = """\
pft faults
                                       6.3.0                  6.4.0
                                     vanilla                vanilla
Min       faults/sec-1   250000.0000 (   0.00%)   255000.0000 (   2.00%)
Amean     system-1          1.0300 (   0.00%)        1.0200 (   0.97%)
Hmean     faults/cpu-1   260000.0000 (   0.00%)   261000.0000 (   0.38%)
Hmean     faults/sec-1   257000.2500 (   0.00%)   258000.5000 (   0.39%)
Hmean     faults/sec-4   238312.7300 (   0.00%)   700000.0000 * 193.73%*
Amean     page_fault1-threads-4    500.0 (   0.00%)    900.0 (  80.00%)
"""


def points(runs: Runs) -> list[tuple[object, ...]]:
    names = ("workload", "threads", "repetition", "ops_per_s")
    return [tuple(row[name] for name in names) for row in runs.rows]


def load(folder: Path, name: str, text: str, mapping: str | None = None) -> Runs:
    file = folder / name
    file.write_text(text)
    told = None
    if mapping is not None:
        (folder / "mapping.toml").write_text(mapping)
        told = read_mapping(folder / "mapping.toml")
    return read_foreign([file], told)


def test_will_it_scale(tmp_path: Path) -> None:
    assert points(load(tmp_path, "page_fault1.csv", WIS_CSV)) == [
        ("page_fault1", 1, 0, 900.0),
        ("page_fault1_processes", 1, 0, 1000.0),
        ("page_fault1", 2, 0, 1200.0),
        ("page_fault1_processes", 2, 0, 1990.0),
        ("page_fault1", 4, 0, 1100.0),
    ]
    runs = load(tmp_path, "page_fault1_threads-4.log", WIS_OUTPUT)
    assert points(runs) == [("page_fault1", 4, 0, 480.0), ("page_fault1", 4, 1, 520.0)]
    assert runs.rows[1]["thread_min_per_s"] == 110
    named = f"./brk1_processes -t 8 -s 5\n{WIS_OUTPUT}"
    assert points(load(tmp_path, "log", named))[0] == ("brk1_processes", 8, 0, 480.0)
    with pytest.raises(UserError, match="which workload"):
        load(tmp_path, "log", WIS_OUTPUT)
    told = '[values]\nworkload = "brk1"\nthreads = 2\n'
    assert points(load(tmp_path, "log", WIS_OUTPUT, told))[1] == ("brk1", 2, 1, 520.0)


def test_pft(tmp_path: Path) -> None:
    runs = load(tmp_path, "pft-4.log", PFT)
    assert points(runs) == [
        ("pft", 1, 0, 257000.25),
        ("pft", 4, 0, 238312.73),
        ("pft", 4, 1, 242725.93),
    ]
    row = runs.rows[1]
    assert (row["user_s"], row["system_s"], row["window_s"]) == (0.10, 3.95, 1.10)
    assert row["fairness"] is None
    assert row["path_check"] == "not checked: measured by others"


def test_mmtests_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"6\.3\.0-vanilla, 6\.4\.0-vanilla"):
        load(tmp_path, "report", MMTESTS)
    assert points(load(tmp_path, "report", MMTESTS, 'column = "6.4.0"')) == [
        ("pft", 1, 0, 258000.5),
        ("pft", 4, 0, 700000.0),
        ("page_fault1", 4, 0, 900.0),
    ]


MAPPING = """
[columns]
workload = "test"
threads = "tasks"
ops_per_s = "kops"
[values]
placement = "pinned"
[scale]
ops_per_s = 1000
[machine]
kernel = "6.4"
cpu_model = "Some CPU"
source = "https://example.org/table"
"""


def test_any_csv_with_a_mapping(tmp_path: Path) -> None:
    runs = load(
        tmp_path, "t.csv", "\ufefftest;tasks;kops\n# note\nmmap1;1;2.5\nmmap1;8;1.25\n", MAPPING
    )
    assert points(runs) == [("mmap1", 1, 0, 2500.0), ("mmap1", 8, 0, 1250.0)]
    assert {row["placement"] for row in runs.rows} == {"pinned"}
    out = tmp_path / "runs.parquet"
    write_runs(runs, out)
    again = read_runs(out)
    assert again.rows == runs.rows
    assert again.machine["kernel"] == "6.4"
    assert again.machine["source"] == "https://example.org/table"
    assert [point["ops_per_s"] for point in summary(again.rows)] == [2500.0, 1250.0]
    for row in again.rows:
        assert all(row[c.name] is not None for c in RUNS.columns if not c.nullable)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("[columns]\nthread = 't'", 'did you mean "threads"'),
        ("[columns]\nthreads = 3", "columns.threads cannot be 3"),
        ("[values]\nthreads = 'x'", "values.threads cannot be x"),
        ("[scale]\nops_per_s = nan", "scale.ops_per_s cannot be nan"),
        ("[machine]\nday = 2020-01-01", "machine.day cannot be"),
        ("colum = 'x'", '"colum" means nothing'),
        ("columns = 3", "is no table"),
        ("[[", "is no TOML"),
        ("[columns]\nthreads = 'task'", 'did you mean "tasks"'),
        ("[columns]\nworkload = 'test'\nthreads = 'kops'", "cannot be threads"),
    ],
)
def test_mappings_that_cannot_be(tmp_path: Path, mapping: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, "t.csv", "test,tasks,kops\nmmap1,1,2.5\n", mapping)
    assert message in caught.value.line()


def test_command(tmp_path: Path) -> None:
    log = tmp_path / "page_fault1_threads-4.log"
    log.write_text(WIS_OUTPUT)
    out = tmp_path / "runs.parquet"
    words = ["import", str(log), "-o", str(out), "--format", "json"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    (point,) = json.loads(done.stdout)["points"]
    assert (point["ops_per_s"], point["repetitions"]) == (500.0, 2)
    assert isinstance(CliRunner().invoke(cli, words).exception, UserError)
    assert CliRunner().invoke(cli, [*words, "--force"]).exit_code == 0


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from([("page_fault1.csv", WIS_CSV), ("brk1_threads-2", WIS_OUTPUT), ("p", PFT)])
    | st.sampled_from([("m", MMTESTS), ("t.csv", "test,tasks,kops\nmmap1,1,2.5\n")]),
    st.lists(
        st.tuples(
            st.floats(0, 1, exclude_max=True),
            st.integers(0, 6),
            st.sampled_from(
                ["", ",", "\n", "-", "9" * 400, "1e400", '"', "\0", "nan", " ", "(", "."]
            )
            | st.text(max_size=3),
        ),
        max_size=6,
    ),
    st.booleans(),
)
def test_damaged(
    tmp_path: Path, good: tuple[str, str], edits: list[tuple[float, int, str]], mapped: bool
) -> None:
    name, text = good
    for where, goes, piece in edits:
        at = int(where * len(text))
        text = text[:at] + piece + text[at + goes :]
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    (tmp_path / "mapping.toml").write_text(MAPPING if mapped else 'column = "6.3"')
    try:
        runs = read_foreign([tmp_path / name], read_mapping(tmp_path / "mapping.toml"))
    except UserError as error:
        assert "\n" not in error.line()
        return
    write_runs(runs, tmp_path / "runs.parquet")
    assert read_runs(tmp_path / "runs.parquet").rows == runs.rows


def test_a_folder_is_no_runs_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a folder, not a RUNS file"):
        read_runs(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("threads", pa.array(["1"]), "column threads is string, not int32"),
        ("threads", pa.array([None], pa.int32()), "1 rows have no threads"),
        ("threads", pa.array([-1], pa.int32()), "a row of -1 threads"),
        ("ops_per_s", pa.array([1], pa.int64()), "column ops_per_s is int64, not double"),
        (None, b"{junk", "its metadata are damaged"),
        (None, b"[1]", "its metadata are damaged"),
        (None, b'{"schema": 99}', "RUNS schema 99; this mmreplay reads 1"),
        (None, b'{"schema": 1}', 'its metadata have no "machine"'),
    ],
)
def test_damaged_runs_are_refused_in_a_line(
    tmp_path: Path, column: str | None, value: Any, complaint: str
) -> None:
    (tmp_path / "mmap1.csv").write_text("name,n,rate\nmmap1,2,100.0\n")
    told = Mapping(columns={"workload": "name", "threads": "n", "ops_per_s": "rate"})
    path = tmp_path / "runs.parquet"
    write_runs(read_foreign([tmp_path / "mmap1.csv"], told), path)
    table = pq.read_table(path)
    if column is None:
        table = table.replace_schema_metadata({b"mmreplay_runs": value})
    else:
        at = table.column_names.index(column)
        table = table.set_column(at, column, value)
    pq.write_table(table, path)
    with pytest.raises(UserError, match=re.escape(complaint)) as refused:
        read_runs(path)
    assert "\n" not in refused.value.line()
