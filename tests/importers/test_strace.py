"""strace logs: every call of the log is an operation, with what the log says of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from test_against_perf_script import WORKLOAD

from mmreplay.errors import UserError
from mmreplay.importers.registry import import_trace, sniff
from mmreplay.recorder.run import strace_argv
from mmreplay.schema import OpKind
from mmreplay.trace.store import Trace

COLUMNS = ["begin_ns", "duration_ns", "tid", "kind", "address", "length", "prot", "flags", "result"]


def load(folder: Path, text: str) -> Trace:
    file = folder / "log"
    file.write_text(text)
    trace = import_trace(file, folder / "log.mmt", force=True)
    trace.validate()
    return trace


def rows(trace: Trace, *kinds: OpKind) -> list[tuple[object, ...]]:
    chosen = trace.operations.collect().filter(pl.col("kind").is_in([int(k) for k in kinds]))
    return chosen.select(COLUMNS).rows()


LOG = """\
100 1700000000.000000 execve("/usr/bin/a \\"b, c/prog", ["x", "y)"], 0x7ffe /* 3 vars */) \
= 0 <0.000200>
100 1700000000.001000 mmap(NULL, 8192, PROT_READ|PROT_WRITE, \
MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB|21<<MAP_HUGE_SHIFT, -1, 0) = 0x7f0000000000 <0.000010>
100 1700000000.001100 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 3</tmp/a,b(c)>, 0x1000) = \
-1 ENOMEM (Cannot allocate memory) <0.000002>
100 1700000000.001200 clone3({flags=CLONE_VM|CLONE_THREAD|CLONE_SIGHAND, stack=0x7f} \
<unfinished ...>
101 1700000000.001250 madvise(0x7f0000000000, 4096, MADV_DONTNEED <unfinished ...>
100 1700000000.001260 <... clone3 resumed> => {parent_tid=[101]}, 88) = 101 <0.000055>
100 1700000000.001270 --- SIGCHLD {si_signo=SIGCHLD, si_pid=9} ---
101 1700000000.001280 <... madvise resumed>) = 0 <0.000025>
101 1700000000.001300 futex(0x7f, FUTEX_WAIT, 2, NULL <unfinished ...>
100 1700000000.001400 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD) = 102 <0.000100>
102 1700000000.001600 munmap(0x7f0000000000, 8192 <unfinished ...>
100 1700000000.001700 exit_group(0) = ?
101 1700000000.001710 <... futex resumed>) = ? <unavailable>
101 1700000000.001720 +++ exited with 0 +++
100 1700000000.001730 +++ exited with 0 +++
102 1700000000.001740 +++ killed by SIGKILL +++
"""


@pytest.mark.parametrize("option", ["-i", "-n", "-r", "-k", "-Y"])
def test_what_options_print_before_a_call(tmp_path: Path, option: str) -> None:
    """Instruction pointer, number, time since the last line, stacks, and the thread's name."""
    time = r"(?m)^(\d+ [\d.]+) "
    text = {
        "-i": re.sub(time, r"\1 [00007f2a75a72ad7] ", LOG),
        "-n": re.sub(time, r"\1 [   9] ", LOG),
        "-r": re.sub(time, r"\1 (+     0.000507) ", LOG),
        "-k": LOG.replace(">\n", ">\n > /usr/lib/libc.so.6(__libc_start_main+0x85) [0x27305]\n"),
        "-Y": re.sub(r"(?m)^(\d+) ", r"\1<my wk-2> ", LOG),
    }[option]
    assert text != LOG
    plain, other = load(tmp_path, LOG), load(tmp_path, text)
    assert plain.operations.collect().equals(other.operations.collect())


def test_calls_threads_and_processes(tmp_path: Path) -> None:
    trace = load(tmp_path, LOG)
    private = 2 | 0x20 | 0x40000 | 21 << 26
    assert rows(trace, OpKind.MMAP) == [
        (1_000_000, 10_000, 100, 3, 0x7F0000000000, 8192, 3, private, 0x7F0000000000),
        (1_100_000, 2_000, 100, 3, None, 4096, 1, 2, -12),
    ]
    assert rows(trace, OpKind.MADVISE) == [
        (1_250_000, 25_000, 101, int(OpKind.MADVISE), 0x7F0000000000, 4096, None, 4, 0)
    ]
    assert rows(trace, OpKind.MUNMAP) == [
        (1_600_000, None, 102, int(OpKind.MUNMAP), 0x7F0000000000, 8192, None, None, None)
    ]
    clones = rows(trace, OpKind.CLONE, OpKind.FORK)
    assert [(row[1], row[8]) for row in clones] == [(60_000 - 5_000, 101), (100_000, 102)]
    threads = trace.threads.collect().sort("tid")
    assert threads["pid"].to_list() == [100, 100, 102]
    assert threads["comm"].to_list() == ["prog"] * 3
    spaces = threads["address_space"].to_list()
    assert spaces == [0, 1, 2]  # before the exec, after it, of the child
    assert threads["end_ns"].to_list() == [1_730_000, 1_720_000, 1_740_000]
    assert trace.header.clock.name == "realtime"
    assert trace.header.capabilities.syscall_durations


def test_without_a_file_the_first_process_is_unnamed_while_alone(tmp_path: Path) -> None:
    text = """\
1700000000.000001 munmap(0x1000, 4096) = 0 <0.000001>
strace: Process 8 attached
[pid     8] 1700000000.000003 munmap(0x1000, 4096) = 0 <0.000001>
[pid     7] 1700000000.000005 munmap(0x2000, 4096) = 0 <0.000001>
"""
    trace = load(tmp_path, text)
    assert trace.operations.collect()["tid"].to_list() == [7, 8, 7]


@pytest.mark.parametrize(
    "line",
    [
        "7 munmap(0x1000, 4096) = 0 <0.000001>",
        "7 12:00:00 munmap(0x1000, 4096) = 0 <0.000001>",
        "7 12:00:00.000001 munmap(0x1000, 4096) = 0 <0.000001>",
        "munmap(0x1000, 4096) = 0",
        "7 1700000000.000001 munmap(0x1000, 4096) = 0",
    ],
)
def test_logs_without_times_say_how_to_record(tmp_path: Path, line: str) -> None:
    file = tmp_path / "log"
    file.write_text(f"{line}\n" * 20)
    assert sniff(file).name == "strace log"
    with pytest.raises(UserError, match="strace -f -ttt -T"):
        import_trace(file, tmp_path / "t.mmt")
    assert not (tmp_path / "t.mmt").exists()


_DONE = re.compile(
    r"^(\d+) +(\d+)\.(\d+) (?:<\.\.\. )?(\w+)(?:\(| resumed>)(.*) = (\S+).*<([\d.]+)>$"
)
_KINDS = {
    "mmap": OpKind.MMAP,
    "munmap": OpKind.MUNMAP,
    "mprotect": OpKind.MPROTECT,
    "brk": OpKind.BRK,
    "madvise": OpKind.MADVISE,
}


def test_what_mmreplay_records_with_strace(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "strace.txt"
    words = strace_argv(("--", sys.executable, "-c", WORKLOAD, "5"), str(log))
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"strace cannot trace here: {done.stderr[:200]}")
    trace = import_trace(log, tmp_path / "t.mmt")
    trace.validate()
    assert trace.header.clock.resolution_ns == 1
    rows = trace.operations.collect()
    maps = rows.filter(pl.col("kind") == int(OpKind.MMAP), pl.col("length") == 16 * 4096)
    assert maps.height >= 15
    assert maps["duration_ns"].null_count() == 0


def test_a_real_log(tmp_path: Path) -> None:
    """Each finished call, told from its line by other means, is one operation."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "log"
    words = ["strace", "-f", "-ttt", "-T", "-o", str(log), sys.executable, "-c", WORKLOAD, "20"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"strace cannot trace here: {done.stderr[:200]}")
    want = []
    for line in log.read_text(errors="replace").splitlines():
        match = _DONE.match(line)
        if match and match[4] in _KINDS:
            result = int(match[6], 0)
            failed = re.search(r"= -1 (E\w+)", line)
            took = int(match[7].replace(".", "")) * 1000
            want.append((int(match[1]), int(_KINDS[match[4]]), took, None if failed else result))
    trace = import_trace(log, tmp_path / "t.mmt")
    trace.validate()
    kinds = [int(kind) for kind in _KINDS.values()]
    have = trace.operations.collect().filter(pl.col("kind").is_in(kinds))
    got = []
    for row in have.iter_rows(named=True):
        if row["duration_ns"] is not None:
            result = None if row["errno"] else row["result"]
            got.append((row["tid"], row["kind"], row["duration_ns"], result))
    assert len(want) > 150
    assert sorted(got, key=repr) == sorted(want, key=repr)
    maps = have.filter(pl.col("kind") == int(OpKind.MMAP), pl.col("length") == 16 * 4096)
    assert maps.height >= 60  # what the workload maps
    assert (maps["prot"] == 3).all()
    assert (maps["flags"] == 0x21).all()
    threads = trace.threads.collect()
    assert "python" in " ".join(threads["comm"])
    assert threads["end_ns"].null_count() == 0
