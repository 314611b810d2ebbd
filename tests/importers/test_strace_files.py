"""The files of ``strace -ff``, given together, are one log."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal
from test_against_perf_script import WORKLOAD
from test_strace import COLUMNS

from mmreplay.errors import UserError
from mmreplay.importers.registry import import_trace
from mmreplay.trace.store import Trace

MAP = "mmap(NULL, {}, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f0000000000 <0.000002>\n"
THREAD = "clone3({flags=CLONE_VM|CLONE_THREAD} => {parent_tid=[12]}, 88) = 12 <0.000050>\n"
#: By thread: its lines.
FILES = {
    9: "1700000000.000001 "
    + MAP.format(4096)
    + " > /usr/lib/libc.so.6(mmap+0x10) [0x27305]\n"
    + "1700000000.000010 "
    + THREAD
    + "1700000000.000090 "
    + MAP.format(8192),
    12: "1700000000.000040 " + MAP.format(12288) + "1700000000.000090 " + MAP.format(16384),
    # Killed before its first call; the other's last line has no end.
    13: "1700000000.000095 +++ killed by SIGKILL +++\n",
    14: "1700000000.000095 +++ exited with 0 +++",
}


def write(folder: Path, files: dict[int, str]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"log.{tid}" for tid in files]
    for path, text in zip(paths, files.values(), strict=True):
        path.write_text(text)
    return paths


def same(one: Trace, other: Trace) -> None:
    for table in ("operations", "threads", "wakeups"):
        assert_frame_equal(one.table(table).collect(), other.table(table).collect())


def test_lines_come_in_order_of_time(tmp_path: Path) -> None:
    paths = write(tmp_path / "parts", FILES)
    trace = import_trace(paths, tmp_path / "t.mmt")
    trace.validate()
    rows = trace.operations.collect().select(COLUMNS[0], "tid", "length", "child").rows()
    assert rows == [
        (0, 9, 4096, None),
        (9_000, 9, None, 12),
        (39_000, 12, None, None),  # it begins
        (39_000, 12, 12288, None),
        (89_000, 9, 8192, None),  # at one time the lower number comes first
        (89_000, 12, 16384, None),
    ]
    assert dict(trace.threads.collect().select("tid", "pid").rows()) == {9: 9, 12: 9}
    # Which order the files are given in makes no difference.
    same(trace, import_trace(paths[::-1], tmp_path / "u.mmt"))


def test_a_line_longer_than_any_room(tmp_path: Path) -> None:
    said = "x" * 9_000_000
    long = f'1700000000.000099 write(1, "{said}", 9000000) = 9000000 <0.000001>\n'
    first = "1700000000.000098 " + MAP.format(4096)
    trace = import_trace(write(tmp_path / "parts", {**FILES, 15: first + long}), tmp_path / "t.mmt")
    assert {event.name: event.samples for event in trace.header.events} == {
        "mmap": 5,
        "clone3": 1,
        "write": 1,
    }


def test_what_is_no_part_is_refused(tmp_path: Path) -> None:
    one, two, *_ = write(tmp_path / "parts", FILES)

    def refused(*paths: Path) -> str:
        with pytest.raises(UserError) as caught:
            import_trace(list(paths), tmp_path / "t.mmt")
        assert "strace -ff" in caught.value.fix
        return str(caught.value)

    other = one.with_name("other.12")
    other.write_text(two.read_text())
    assert "no part of one recording" in refused(one, other)
    unnumbered = one.with_name("log")
    unnumbered.write_text(two.read_text())
    assert "no part of one recording" in refused(one, unnumbered)
    # A log of several threads.
    two.write_text("".join(f"12 {line}\n" for line in FILES[12].splitlines()))
    assert "do not begin with their time" in refused(one, two)
    # Times of a day.
    for path in (one, two):
        path.write_text("12:34:56.000001 " + MAP.format(4096))
    with pytest.raises(UserError, match="no time that counts on") as caught:
        import_trace([one, two], tmp_path / "t.mmt")
    assert "-ttt -T" in caught.value.fix
    assert not list(tmp_path.glob("t.mmt*"))


PROGRAM = WORKLOAD + "\nimport subprocess\nfor _ in range(3): subprocess.run(['true'])\n"


@pytest.mark.parametrize("options", [[], ["-k"]])
def test_a_real_recording(tmp_path: Path, options: list[str]) -> None:
    """The trace is that of what strace's own tool makes of the files."""
    if shutil.which("strace") is None or shutil.which("strace-log-merge") is None:
        pytest.skip("strace is not installed")
    words = ["strace", "-ff", "-ttt", "-T", *options, "-o", str(tmp_path / "log")]
    command = [sys.executable, "-c", PROGRAM, "20"]
    done = subprocess.run([*words, *command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"strace cannot trace here: {done.stderr[:200]}")
    paths = sorted(tmp_path.glob("log.*"))
    assert len(paths) > 4
    trace = import_trace(paths, tmp_path / "t.mmt")
    trace.validate()
    words = ["strace-log-merge", str(tmp_path / "log")]
    (tmp_path / "merged").write_bytes(subprocess.run(words, capture_output=True, check=True).stdout)
    other = import_trace(tmp_path / "merged", tmp_path / "merged.mmt")
    assert trace.rows("operations") > 200
    same(trace, other)
    assert trace.header.counters.get("threads_of_guessed_processes", 0) <= 1
