"""``mmreplay measure`` from end to end, and the file that it writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mmreplay.cli.main import cli
from mmreplay.errors import UserError
from mmreplay.hardware import facts, suite
from mmreplay.hardware.runs import Runs, check_output, read_runs, spread_ratio, summary, write_runs
from mmreplay.hardware.stability import warnings
from mmreplay.schema import RUNS
from mmreplay.workloads.definition import list_probes, load_workload

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="runs on x86-64 only")

ROOT = Path(__file__).parents[2]
SHORT = ("--repetitions", "2", "--seconds", "0.05", "--warm-up", "0.01", "--no-check")


def refused(*words: str) -> str:
    """The one line that the command ends with."""
    with pytest.raises(UserError) as caught:
        CliRunner().invoke(cli, ["measure", *words], catch_exceptions=False, standalone_mode=False)
    line = caught.value.line()
    assert "\n" not in line
    return line


def test_json_and_the_file_say_the_same(tmp_path: Path) -> None:
    output = tmp_path / "runs.parquet"
    words = ["mmap1", "page_fault1", "--threads", "1,2", *SHORT, "--format", "json"]
    result = CliRunner().invoke(cli, ["measure", *words, "-o", str(output)], catch_exceptions=False)
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert {tuple(row[k] for k in ("workload", "path", "threads")) for row in told["rows"]} == {
        (w, p, n) for w in ("mmap1", "page_fault1") for p in ("vma", "mmap_lock") for n in (1, 2)
    }
    for row in told["rows"]:
        assert row["repetitions"] == 2
        assert row["ops_per_s"] > 0
        assert row["spread_ratio"] >= 0
        assert 0 < row["fairness"] <= 1
        assert row["placement"] in ("pinned", "free")
    assert told["machine"]["kernel"]
    runs = read_runs(output)
    assert summary(runs.rows) == told["rows"]
    assert runs.machine == told["machine"]
    assert set(runs.workloads) == {"mmap1", "page_fault1"}
    frame = pl.read_parquet(output)
    assert frame.columns == [column.name for column in RUNS.columns]
    assert frame.null_count().select(c.name for c in RUNS.columns if not c.nullable).row(0) == (
        0,
    ) * sum(not c.nullable for c in RUNS.columns)
    n = len(frame)  # more than 16 where some were disturbed and measured again
    assert n >= 16
    assert frame["order"].to_list() == list(range(n))  # in the order measured
    by_point = frame.sort("workload", "path", "threads", "repetition")
    assert by_point["order"].to_list() != list(range(n))  # which is a random one


def test_nothing_that_tells_about_the_owner_is_written(tmp_path: Path) -> None:
    told = json.dumps(facts.machine_facts())
    for secret in (os.uname().nodename, os.uname().version, str(Path.home()), str(Path.cwd())):
        assert secret not in told or len(secret) < 3
    assert os.uname().release not in told or facts.machine_facts()["kernel"] == os.uname().release


def test_interrupted_runs_are_kept(tmp_path: Path) -> None:
    output = tmp_path / "runs.parquet"
    words = [sys.executable, "-m", "mmreplay", "measure", "mmap1", "--threads", "1", "--no-check"]
    words += [
        "--no-probe",
        "--path",
        "vma",
        "--repetitions",
        "1000",
        "--seconds",
        "0.05",
        "-o",
        str(output),
    ]
    terminal, end = os.openpty()  # where each run is told as it begins
    process = subprocess.Popen(
        words,
        env={**os.environ, "PYTHONPATH": str(ROOT / "replay")},
        stderr=end,
        stdout=subprocess.DEVNULL,
    )
    os.close(end)
    told = b""
    with suppress(OSError):  # the terminal's end, once the process has gone
        while part := os.read(terminal, 4096):
            told += part
            if b"\r\x1b[K3/1000 " in told and process.poll() is None:
                process.send_signal(signal.SIGINT)
                break
        while part := os.read(terminal, 4096):
            told += part
    os.close(terminal)
    assert process.wait() == 130, told
    assert b"1,000 runs" in told
    assert b"what was measured is kept" in told
    runs = read_runs(output)
    assert not runs.complete
    assert 0 < len(runs.rows) < 1000


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["no-such"], 'unknown workload "no-such"'),
        (["mmap1", "--threads", "0"], "0 threads"),
        (["mmap1", "--threads", "x"], '"x" is neither a number nor a range of threads'),
        (["mmap1", "--repetitions", "0"], "--repetitions: 0 repetitions; give 1 to 1000"),
        (["mmap1", "--seconds", "nan"], "--seconds: nan s"),
        (["mmap1", "-o", "runs.csv"], '"runs.csv" is not a .parquet file'),
        (["mmap1", "-o", "/no/such/runs.parquet"], "cannot write into /no/such"),
        (["faulters-and-mappers", "--threads", "1"], "too few for faulters-and-mappers"),
    ],
)
def test_mistakes_are_one_line(words: list[str], line: str) -> None:
    assert line in refused(*words)


def test_a_workload_that_does_not_fit_is_refused_before_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suite, "available_bytes", lambda: 512 << 20)
    line = refused("pft-one-vma", "--threads", "1")
    assert "it needs 1.0 GiB of memory, 0.2 GiB are available" in line
    plan = suite.plan([load_workload("pft-one-vma"), load_workload("mmap1")], [1], suite.Options())
    assert {point.workload for point in plan.points} == {"mmap1"}
    assert list(plan.refused) == ["pft-one-vma 1 threads"]


def test_probes_join_a_plan_with_one_thread_that_touches() -> None:
    plan = suite.plan([load_workload("mmap1")], [2], suite.Options())
    both = suite.with_probes(plan, [load_workload(name) for name in list_probes()])
    more = both.points[len(plan.points) :]
    assert both.points[: len(plan.points)] == plan.points
    assert [point.workload for point in more] == list_probes()
    assert {(point.path, point.threads) for point in more} == {("vma", 1)}
    assert set(both.texts) == {"mmap1", *list_probes()}


def test_a_kernel_without_the_other_path_and_too_many_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suite, "has_populate", lambda: False)
    assert "no MADV_POPULATE_WRITE" in refused("mmap1", "--threads", "1")
    monkeypatch.undo()
    monkeypatch.setattr(suite, "thread_limit", lambda: (100, "pids.max of the cgroup"))
    line = refused("mmap1", "--threads", "200")
    assert "200 threads are more than the system allows (pids.max of the cgroup: 100)" in line
    assert "use at most 92" in line
    monkeypatch.setattr(suite, "thread_limit", lambda: (10**6, "kernel.threads-max"))
    for wanted in ("100000", "5000", "1,4097"):
        assert "use at most 4096" in refused("mmap1", "--threads", wanted)


def test_without_permission_to_trace_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no() -> Path:
        raise UserError("no permission to use tracefs", fix="run as root")

    monkeypatch.setattr(suite.tracing, "tracefs", no)
    options = suite.Options(paths=("vma",), repetitions=1, seconds=0.02, warm_up_s=0.0)
    runs = suite.measure(suite.plan([load_workload("mmap1")], [1], options))
    assert runs.rows[0]["path_check"] == "not verified: no permission to use tracefs"
    assert any("no permission" in line for line in warnings(runs))


def test_a_process_that_is_killed_costs_its_point_only(monkeypatch: pytest.MonkeyPatch) -> None:
    ask, asked = suite._ask, []

    def dies(worker: Any, request: Any) -> Any:
        asked.append(request)
        if len(asked) == 1:
            return suite.RunAnswer(problem="its process was killed by SIGKILL (out of memory?)")
        return ask(worker, request)

    monkeypatch.setattr(suite, "_ask", dies)
    options = suite.Options(paths=("vma",), repetitions=2, seconds=0.02, warm_up_s=0.0, check=False)
    plan = suite.plan([load_workload("mmap1"), load_workload("brk1")], [1], options)
    runs = suite.measure(plan)
    assert list(runs.not_measured.values()) == [
        "its process was killed by SIGKILL (out of memory?)"
    ]
    assert {row["repetition"] for row in runs.rows} == {0, 1}
    assert len({row["workload"] for row in runs.rows}) == 1
    assert len(asked) == 1 + len(runs.rows)  # the point is not tried again


# -- the file ------------------------------------------------------------------------------------


def a_row(**changed: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for column in RUNS.columns:
        row[column.name] = {"String": "x", "Float64": 1.0}.get(column.dtype, 1)
    return {
        **row,
        "path_check": "verified",
        "other_cpu_s": 0.0,
        "steal_s": 0.0,
        "disturbed": None,
        **changed,
    }


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    runs = Runs([a_row()], {"kernel": "6.1.0"}, {"x": "0"}, {"y": "no"}, version="1")
    write_runs(runs, tmp_path / "r.parquet")
    assert read_runs(tmp_path / "r.parquet") == runs
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    good = tmp_path / "r.parquet"
    write_runs(Runs([a_row()], {}), good)
    table = pq.read_table(good)
    header = json.loads(table.schema.metadata[b"mmreplay_runs"])

    def other(name: str, table: Any) -> Path:
        pq.write_table(table, tmp_path / name)
        return tmp_path / name

    newer = json.dumps({**header, "schema": 99}).encode()
    cases = {
        other("a.parquet", table.replace_schema_metadata({b"mmreplay_runs": newer})): "schema 99",
        other("b.parquet", table.replace_schema_metadata({})): "not a RUNS file",
        other("c.parquet", table.drop_columns(["threads"])): "column threads is missing",
        tmp_path / "none.parquet": "no such file",
    }
    (tmp_path / "d.parquet").write_text("no")
    cases[tmp_path / "d.parquet"] = "not a Parquet file"
    for path, line in cases.items():
        with pytest.raises(UserError, match=line):
            read_runs(path)


def test_a_directory_that_cannot_be_written_into(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write into"):
        check_output(str(tmp_path / "none" / "r.parquet"))


def test_the_docs_have_the_columns_of_the_schema() -> None:
    text = (ROOT / "docs" / "measuring.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| `")]
    rows = [
        f"| `{c.name}` | {c.dtype} | {c.unit} | {'yes' if c.nullable else ''} | {c.meaning} |"
        for c in RUNS.columns
    ]
    assert [line for line in table if line.count("|") == 6] == rows


def test_spread() -> None:
    assert spread_ratio([1.0]) is None
    assert spread_ratio([90.0, 100.0, 110.0]) == pytest.approx(0.1)
    assert spread_ratio([100.0] * 5) == 0


def test_warnings_name_what_is_doubtful_and_what_helps() -> None:
    rows = [a_row(repetition=k, ops_per_s=rate) for k, rate in enumerate((80.0, 100.0, 120.0))]
    machine = {"cpus_by_cgroup": 0.5, "cores": 1, "threads_per_core": 1, "governor": "powersave"}
    lines = warnings(Runs([{**r, "other_cpu_s": 0.4} for r in rows], machine))
    assert any("spread 20%: the machine is noisy" in line for line in lines)
    assert any("other programs ran on 0.40 CPUs" in line for line in lines)
    assert any("quota is 0.5 CPUs" in line for line in lines)
    assert any('governor is "powersave"' in line for line in lines)
    quiet = [a_row(repetition=k, ops_per_s=100.0) for k in range(3)]
    assert warnings(Runs(quiet, {})) == []


def test_thread_counts_by_default() -> None:
    assert suite.default_threads(1) == [1, 2]
    assert suite.default_threads(2) == [1, 2, 4]
    assert suite.default_threads(12) == [1, 2, 4, 8, 12, 24]
    assert suite.default_threads(16) == [1, 2, 4, 8, 16, 32]
