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


THREAD = "CLONE_VM|CLONE_THREAD|CLONE_SIGHAND"
#: Without -o: lines cut by what strace says, and by what the program writes.
MIXED = f"""\
1700000000.000001 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLDstrace: Process 8 attached
, child_tidptr=0x7f) = 8 <0.000050>
[pid     8] 1700000000.000070 mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, -1, 0ready, x = 3
 <unfinished ...>
[pid     7] 1700000000.000071 clone3({{flags={THREAD}, stack=0x7f}}strace: Process 9 attached
strace: Process 12 attached
 => {{parent_tid=[9]}}, 88) = 9 <0.000030>
[pid     8] 1700000000.000090 <... mmap resumed>) = 0x7f0000000000 <0.000020>
 50 %[pid     9] 1700000000.000110 munmap(0x1000, 4096strace: Process 13 attached
 <unfinished ...>
[pid     7] 1700000000.000120 mprotect(0x5000, 4096, PROT_READdone 2 of 3
done: 4 = 4
) = 0 <0.000004>
[pid     9] 1700000000.000130 <... munmap resumed>) = 0 <0.000020>
[pid     7] 1700000000.000140 getpid() = 7 <0.000001>
"""


def test_lines_that_were_cut_are_put_together(tmp_path: Path) -> None:
    """What stands in the midst of them is strace's own, or what the program wrote."""
    trace = load(tmp_path, MIXED)
    assert rows(trace, OpKind.FORK, OpKind.CLONE) == [
        (0, 50_000, 7, int(OpKind.FORK), None, None, None, 0x1000011, 8),
        (70_000, 30_000, 7, int(OpKind.CLONE), None, None, None, 0x10900, 9),
    ]
    assert rows(trace, OpKind.MMAP, OpKind.MUNMAP, OpKind.MPROTECT) == [
        (69_000, 20_000, 8, int(OpKind.MMAP), 0x7F0000000000, 8192, 1, 2, 0x7F0000000000),
        (109_000, 20_000, 9, int(OpKind.MUNMAP), 0x1000, 4096, None, None, 0),
        (119_000, 4000, 7, int(OpKind.MPROTECT), 0x5000, 4096, 1, None, 0),
    ]
    threads = trace.threads.collect()
    assert dict(threads.select("tid", "pid").rows()) == {7: 7, 8: 8, 9: 7}
    assert threads["address_space"].n_unique() == 2


def test_the_parent_is_whose_clone_returns_the_child(tmp_path: Path) -> None:
    """Two processes make threads at one time, and the threads run first."""
    trace = load(
        tmp_path,
        f"""\
7 1700000000.000001 fork() = 8 <0.000001>
7 1700000000.000010 clone3({{flags={THREAD}}} <unfinished ...>
8 1700000000.000011 clone3({{flags={THREAD}}} <unfinished ...>
9 1700000000.000020 munmap(0x1000, 4096) = 0 <0.000001>
10 1700000000.000021 munmap(0x1000, 4096) = 0 <0.000001>
7 1700000000.000030 <... clone3 resumed> => {{parent_tid=[9]}}, 88) = 9 <0.000020>
8 1700000000.000031 <... clone3 resumed> => {{parent_tid=[10]}}, 88) = 10 <0.000020>
""",
    )
    assert dict(trace.threads.collect().select("tid", "pid").rows()) == {7: 7, 8: 8, 9: 7, 10: 8}
    made = trace.operations.collect().filter(pl.col("kind") == int(OpKind.CLONE))
    assert made.select("tid", "child").rows() == [(7, 9), (8, 10)]


def test_merged_files_of_ff_say_the_child_after_its_first_calls(tmp_path: Path) -> None:
    """strace-log-merge sorts whole calls by their begin: a vfork ends long after its child's."""
    trace = load(
        tmp_path,
        """\
7 1700000000.000001 vfork() = 8 <0.000050>
8 1700000000.000010 munmap(0x1000, 4096) = 0 <0.000001>
8 1700000000.000020 execve("/bin/other", ["other"], 0x7f /* 3 vars */) = 0 <0.000020>
8 1700000000.000060 +++ exited with 0 +++
""",
    )
    threads = trace.threads.collect()
    assert threads.select("tid", "start_kind").rows() == [(7, "first_seen"), (8, "fork")]
    (inside,) = trace.operations.collect().filter(pl.col("kind") == int(OpKind.MUNMAP)).to_dicts()
    (made,) = trace.operations.collect().filter(pl.col("kind") == int(OpKind.VFORK)).to_dicts()
    assert inside["address_space"] == made["address_space"]


def test_lines_without_a_name_are_the_last_ones_that_is_left(tmp_path: Path) -> None:
    """A daemon: its parent ends, and it is alone."""
    trace = load(
        tmp_path,
        """\
1700000000.000001 munmap(0x1000, 4096) = 0 <0.000001>
1700000000.000003 clone(child_stack=NULL, flags=SIGCHLDstrace: Process 8 attached
) = 8 <0.000005>
[pid     7] 1700000000.000010 +++ exited with 0 +++
1700000000.000020 munmap(0x2000, 4096) = 0 <0.000001>
1700000000.000030 +++ exited with 0 +++
""",
    )
    unmapped = rows(trace, OpKind.MUNMAP)
    assert [(row[2], row[4]) for row in unmapped] == [(7, 0x1000), (8, 0x2000)]
    assert trace.threads.collect()["end_ns"].to_list() == [9000, 29_000]
    assert not any("which process" in text for text in trace.header.warnings)


def test_a_thread_that_executes_goes_on_as_its_leader(tmp_path: Path) -> None:
    trace = load(
        tmp_path,
        f"""\
7 1700000000.000001 clone3({{flags={THREAD}}}, 88) = 8 <0.000001>
8 1700000000.000010 execve("/bin/other", ["other"], 0x7f /* 3 vars */ <unfinished ...>
7 1700000000.000020 +++ superseded by execve in pid 8 +++
7 1700000000.000021 <... execve resumed>) = 0 <0.000011>
7 1700000000.000030 munmap(0x1000, 4096) = 0 <0.000001>
7 1700000000.000040 +++ exited with 0 +++
""",
    )
    (executed,) = rows(trace, OpKind.EXEC)
    assert executed[:3] == (9000, 11_000, 8)
    threads = trace.threads.collect()
    assert threads.select("tid", "pid", "end_ns", "comm").rows() == [
        (7, 7, 19_000, ""),
        (7, 7, 39_000, "other"),
        (8, 7, 20_000, ""),
    ]
    assert len(rows(trace, OpKind.PROCESS_EXIT)) == 1
    assert trace.header.counters["threads_of_guessed_processes"] == 1


def test_what_strace_attached_to_says_the_processes(tmp_path: Path) -> None:
    """Threads that were there have no other line that says whose they are."""
    calls = """\
[pid    21] 1700000000.000001 munmap(0x1000, 4096) = 0 <0.000001>
[pid    22] 1700000000.000002 munmap(0x1000, 4096) = 0 <0.000001>
[pid    30] 1700000000.000003 munmap(0x1000, 4096) = 0 <0.000001>
[pid    20] 1700000000.000004 munmap(0x1000, 4096) = 0 <0.000001>
"""
    said = "strace: Process 30 attached\nstrace: Process 20 attached with 3 threads\n"
    trace = load(tmp_path, said + calls)
    assert dict(trace.threads.collect().select("tid", "pid").rows()) == {
        20: 20,
        21: 20,
        22: 20,
        30: 30,
    }
    assert not any("which process" in text for text in trace.header.warnings)
    alone = load(tmp_path, "strace: Process 30 attached\n" + f"{calls.splitlines()[0][12:]}\n" * 3)
    assert alone.threads.collect()["tid"].to_list() == [30]
    warned = load(tmp_path, calls.replace("[pid    ", "").replace("]", ""))  # -o FILE
    assert any("2> FILE" in text for text in warned.header.warnings)


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


#: Forks, a vfork, threads that spawn, and a daemon that outlives them.
FAMILY = """
import mmap, os, subprocess, threading
def work():
    for _ in range(20):
        mmap.mmap(-1, 1 << 16).close()
    subprocess.run(["true"])
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
children = []
for _ in range(3):
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
if not os.fork():
    os.close(1)
    os.read(0, 1)
    work()
"""


def test_a_real_log_without_a_file_says_the_same(tmp_path: Path) -> None:
    """The same program traced with ``2> FILE`` and with ``-o FILE``."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    file, mixed = tmp_path / "file", tmp_path / "mixed"
    common = ["strace", "-f", "-ttt", "-T"]
    program = [sys.executable, "-S", "-c", FAMILY]
    with mixed.open("wb") as target:
        for words, error in (([*common, "-o", str(file)], None), (common, target)):
            done = subprocess.run(
                words + program, stdin=subprocess.DEVNULL, stderr=error, check=False
            )
            if done.returncode != 0:
                pytest.skip("strace cannot trace here")
    assert b"attached\n" in mixed.read_bytes()
    told = []
    for log in (file, mixed):
        trace = import_trace(log, tmp_path / f"{log.name}.mmt")
        trace.validate()
        operations = trace.operations.collect()
        made = operations.filter(pl.col("kind").is_in([9, 10, 24, 25]))
        assert made["duration_ns"].null_count() == 0
        threads = trace.threads.collect()
        sizes = threads.group_by("pid").len()["len"].sort().to_list()
        ends = [OpKind.THREAD_EXIT, OpKind.PROCESS_EXIT, OpKind.THREAD_START]
        counts = [len(rows(trace, kind)) for kind in ends]
        spaces = operations["address_space"].n_unique()
        told.append((made["kind"].value_counts().sort("kind").rows(), sizes, counts, spaces))
        assert not any("which process" in text for text in trace.header.warnings)
    assert told[0] == told[1]


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
