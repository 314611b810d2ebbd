"""The models take the locks that real kernels took: counts of ``datasets/lockcounts``.

Each phase of the measurement is written down as a trace, planned, and replayed; its
acquisitions of mmap_lock (read, write, downgrade) and, where they could be observed,
of VMA locks (read, marks) must equal the counts exactly.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmreplay.cli.locks import command
from mmreplay.cli.locks_check import as_csv, as_json
from mmreplay.cli.main import main
from mmreplay.errors import UserError
from mmreplay.lockcounts import COLUMNS, check_counts, check_kernel, read_counts
from mmreplay.lockcounts.document import document
from mmreplay.resources import datasets_dir
from mmreplay.workloads.phases import GROUPS, NOT_EXPRESSIBLE, reason, record

FOLDER = datasets_dir("lockcounts")
FILES = sorted(path.name for path in FOLDER.glob("*.csv"))
ALL = [(file, kernel) for file in FILES for kernel in read_counts(FOLDER / file)]


@pytest.mark.parametrize(("file", "kernel"), ALL)
def test_counts_equal_the_kernels(file: str, kernel: str) -> None:
    report = check_kernel(read_counts(FOLDER / file)[kernel])
    assert {row.phase: row.why for row in report.rows if row.outcome == "differs"} == {}
    assert report.count("equal") > 100


@pytest.mark.parametrize(("file", "kernel"), ALL)
def test_what_is_not_compared_has_a_reason(file: str, kernel: str) -> None:
    for phase in read_counts(FOLDER / file)[kernel]:
        assert reason(phase) or phase.partition(":")[0] in WRITTEN


WRITTEN = {name for group in GROUPS for name in record(group, n=8)}


def test_no_phase_is_both_written_and_excused() -> None:
    assert not [name for name in WRITTEN if reason(name)]
    assert set(NOT_EXPRESSIBLE) == {"conc_*"}


def rows(tmp_path: Path, kernel: str, *phases: str, **changes: str) -> Path:
    """A counts file with some rows of the shipped one, columns of the first changed."""
    path = tmp_path / "counts.csv"
    with (FOLDER / "lockcounts.csv").open() as stream:
        reader = csv.DictReader(stream)
        kept = [r for r in reader if r["kernel"] == kernel and r["phase"] in phases]
        names = list(reader.fieldnames or ())
    kept[0].update(changes)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(kept)
    return path


def test_a_difference_is_named_and_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rows(tmp_path, "6.18.15", "brk_query", mmap_lock_write="999")
    with pytest.raises(SystemExit) as stop:
        main(["locks", "check", str(path)])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert "brk_query: mmap_lock_write 1000 replayed, 999 counted" in out


def test_another_model_is_held_against_the_same_counts(tmp_path: Path) -> None:
    path = rows(tmp_path, "6.18.15", "anon_w_big_rest")
    (report,) = check_counts(read_counts(path), model="linux-6.1")
    assert report.rows[0].differences == {"mmap_lock_read": (1000, 0), "vma_lock_ok": (0, 1000)}


def test_an_unknown_phase_is_said_and_no_difference(tmp_path: Path) -> None:
    path = rows(tmp_path, "6.18.15", "brk_query", "anon_w_big_rest", phase="brk_qeury")
    text = path.read_text()
    path.write_text("\ufeff" + text, encoding="utf-8")  # as spreadsheets write it
    (report,) = check_counts(read_counts(path))
    found = {row.phase: row for row in report.rows}["brk_qeury"]
    assert found.outcome == "not compared"
    assert found.why == 'no phase of that name is known (did you mean "brk_query"?)'


def test_a_file_of_unknown_phases_only_is_refused(tmp_path: Path) -> None:
    path = rows(tmp_path, "6.18.15", "brk_query", phase="brk_qeury")
    with pytest.raises(UserError, match=r'nothing can be compared: .*did you mean "brk_query"'):
        check_counts(read_counts(path))


def test_more_operations_give_more_locks(tmp_path: Path) -> None:
    """The phases are not written for a thousand operations."""
    path = rows(tmp_path, "6.18.15", "brk_query", ops="70", mmap_lock_write="70", phase="brk_query")
    (report,) = check_counts(read_counts(path))
    assert report.rows[0].outcome == "equal"


def test_the_vsyscall_page_is_inferred_where_it_explains_all() -> None:
    counts = read_counts(FOLDER / "lockcounts.csv")
    assert check_kernel(counts["host-6.18.44"]).environment == ("[vsyscall] is mapped",)
    assert check_kernel(counts["6.18.15"]).environment == ()


def test_the_command_is_the_library_call(tmp_path: Path) -> None:
    path = rows(tmp_path, "7.3.4", "brk_query", "madv_cold", "proc_smaps_small")
    reports = check_counts(read_counts(path))
    run = CliRunner().invoke
    for format_, write in (("json", as_json), ("csv", as_csv)):
        result = run(command, ["check", str(path), "--format", format_], catch_exceptions=False)
        assert (result.exit_code, result.stdout) == (0, write(reports))
    shown = json.loads(as_json(reports))["kernels"][0]
    assert shown["equal"] == 3
    assert set(shown["phases"][0]["counted"]) == set(COLUMNS)


BAD = {
    "no column": ("kernel,phase,opps\n1,2,3\n", 'no column "ops" (did you mean "opps"?)'),
    "no rows": (None, "no rows"),
    "a word for a number": ("x", '"x" is no count'),
    "negative": ("-1", '"-1" is no count'),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_are_none_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    text, message = BAD[case]
    header = (FOLDER / "lockcounts.csv").read_text().splitlines()[0]
    path = tmp_path / "c.csv"
    if text is None:
        path.write_text(header + "\n")
    elif "\n" in text:
        path.write_text(text)
    else:
        row = ["0"] * (header.count(",") + 1)
        row[3] = text
        path.write_text(header + "\n" + ",".join(row) + "\n")
    with pytest.raises(UserError) as error:
        read_counts(path)
    assert message in error.value.line()
    assert "\n" not in error.value.line()


def test_a_missing_file_and_an_unknown_kernel_are_user_errors() -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_counts("no-such-file.csv")
    counts = read_counts(FOLDER / "lockcounts.csv")
    with pytest.raises(UserError, match=r"did you mean"):
        check_counts(counts, kernels=["6.18.5"])


def test_the_table_in_the_docs_is_what_is_counted_and_replayed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "lock-counts.md").read_text(encoding="utf-8")
    assert page == document(check_counts(read_counts(FOLDER / "lockcounts.csv")))
