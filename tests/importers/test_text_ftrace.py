"""ftrace text, as the kernel, trace-cmd, perfetto and systrace print it."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal
from test_against_perf_script import FAULTS, LOCKS, WORKLOAD, record, syscalls

from mmreplay.errors import UserError
from mmreplay.importers.registry import import_trace
from mmreplay.schema import OpKind

#: Kernel, with tgid option: names of calls are its own, numbers have no 0x.
KERNEL = """\
# tracer: nop
#
#           TASK-PID     TGID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |        |   |||||     |         |
        my-app-2-1001    (   1000) [003] ..... 100.000001: sys_mmap(addr: 0, len: 5000, \
prot: 3, flags: 22, fd: ffffffff, off: 0)
        my-app-2-1001    (   1000) [003] ..... 100.000004: sys_mmap -> 0x7f0000000000
        my-app-2-1001    (   1000) [003] d.... 100.000010: page_fault_user: \
address=0x7f0000001000 ip=0x401000 error_code=0x6
        my-app-2-1001    (   1000) [003] d..2. 100.000020: sched_switch: prev_comm=my-app-2 \
prev_pid=1001 prev_prio=120 prev_state=S ==> next_comm=swapper/3 next_pid=0 next_prio=120
          <idle>-0       (-------) [003] d..2. 100.000050: sched_switch: prev_comm=swapper/3 \
prev_pid=0 prev_prio=120 prev_state=R ==> next_comm=my-app-2 next_pid=1001 next_prio=120
        my-app-2-1001    (   1000) [003] ..... 100.000060: sys_munmap(addr: 7f0000000000, len: 5000)
        my-app-2-1001    (   1000) [003] ..... 100.000065: sys_munmap -> 0x0
"""
#: The same as trace-cmd report prints it.
REPORT = """\
cpus=4
        my-app-2-1001  [003]   100.000001: sys_enter_mmap: addr: 0x00000000, len: 0x00005000, \
prot: 0x00000003, flags: 0x00000022, fd: 0xffffffff, off: 0x00000000
        my-app-2-1001  [003]   100.000004: sys_exit_mmap:        0x7f0000000000
        my-app-2-1001  [003]   100.000010: page_fault_user:      \
address=0x7f0000001000 ip=0x401000 error_code=0x6
        my-app-2-1001  [003]   100.000020: sched_switch:         my-app-2:1001 [120] S ==> \
swapper/3:0 [120]
          <idle>-0     [003]   100.000050: sched_switch:         swapper/3:0 [120] R ==> \
my-app-2:1001 [120]
        my-app-2-1001  [003]   100.000060: sys_enter_munmap: addr: 0x7f0000000000, len: 0x00005000
        my-app-2-1001  [003]   100.000065: sys_exit_munmap:      0x0
"""


@pytest.mark.parametrize("form", ["kernel", "trace-cmd", "perfetto", "systrace"])
def test_forms(tmp_path: Path, form: str) -> None:
    text = REPORT if form == "trace-cmd" else KERNEL
    if form == "perfetto":
        text = "TRACE:\n" + text.replace("   1000", " 1000").replace("(-------)", "(-----)")
    if form == "systrace":
        page = "<!DOCTYPE html>\n<html>\n<script>" + "var x = '<';\n" * 200_000 + "</script>\n"
        text = (
            f'{page}<script class="trace-data" type="application/text">\n{text}</script>\n</html>'
        )
    file = tmp_path / "trace.txt"
    file.write_text(text)
    trace = import_trace(file, tmp_path / "t.mmt")
    trace.validate()
    rows = trace.operations.collect()
    assert rows["kind"].to_list() == [int(OpKind.MMAP), int(OpKind.FAULT_USER), int(OpKind.MUNMAP)]
    assert rows["begin_ns"].to_list() == [0, 9_000, 59_000]
    assert rows["duration_ns"].to_list() == [3_000, 10_000, 5_000]
    assert rows["address"].to_list() == [0x7F0000000000, 0x7F0000001000, 0x7F0000000000]
    spans = trace.schedule.collect()
    assert spans.select("off_ns", "on_ns").rows() == [(19_000, 49_000)]
    assert rows["cpu"].to_list() == [3, 3, 3]
    assert set(rows["tid"]) == {1001}
    assert set(rows["pid"]) == ({1001} if form == "trace-cmd" else {1000})
    assert trace.threads.collect()["comm"].to_list() == ["my-app-2"]
    assert trace.header.source.format == "ftrace"
    assert trace.header.clock.resolution_ns == 1000


_LINE = re.compile(r"^ *(.*?) +(-?\d+)/(-?\d+) +\[(\d+)\] +(\d+\.\d+): +\w+:(\w+): ?(.*)$")


@pytest.mark.perf
def test_ftrace_says_what_perf_script_says(tmp_path: Path) -> None:
    """A recording's events, printed as the kernel prints them, are the same trace."""
    events = [*FAULTS, *syscalls(), *LOCKS, "sched:sched_switch"]
    tail = ["--", sys.executable, "-c", WORKLOAD, "20"]
    file = record(tmp_path, ["-a"], events, tail)
    fields = "comm,pid,tid,cpu,time,event,trace"
    words = ["perf", "script", "-i", str(file), "--ns", "-F", fields]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    lines = []
    for line in done.stdout.splitlines():
        match = _LINE.match(line)
        assert match, line
        comm, pid, tid, cpu, time, event, rest = match.groups()
        if int(tid) <= 0:  # -1: the thread that leaves is dead, and perf knows it no more
            comm, pid, tid = "<idle>", "-------", "0"
        what = f"{event}: {rest}"
        if event.startswith("sys_enter_"):
            numbers = re.sub(r"0x0*(?=[0-9a-f])", "", rest)
            what = f"sys_{event.removeprefix('sys_enter_')}({numbers})"
        elif event.startswith("sys_exit_"):
            what = f"sys_{event.removeprefix('sys_exit_')} -> {rest}"
        lines.append(f"{comm:>16}-{tid:<7} ({pid:>7}) [{cpu}] d..2. {time}: {what}\n")
    perf, ftrace = tmp_path / "perf.txt", tmp_path / "ftrace.txt"
    perf.write_text(done.stdout)
    ftrace.write_text("".join(lines))
    one, other = (import_trace(text, text.with_suffix(".mmt")) for text in (perf, ftrace))
    other.validate()
    assert other.header.source.format == "ftrace"
    assert one.rows("operations") > 1000
    for table in ("operations", "threads", "locks", "schedule"):
        assert_frame_equal(one.table(table).collect(), other.table(table).collect())


@pytest.mark.parametrize("form", ["-l", "--ts-diff", "stack traces"])
def test_other_forms_of_lines(tmp_path: Path, form: str) -> None:
    """What options of trace-cmd report and of tracefs print says the same."""
    plain, other = tmp_path / "plain.txt", tmp_path / "other.txt"
    text = REPORT
    if form == "-l":
        text = re.sub(r"(-\d+ +)\[003\] ", r"\1  3d..2.", REPORT)
    elif form == "--ts-diff":
        text = re.sub(r"(\d: )", r"\1(+2)     ", REPORT)
    else:
        trace = "my-app-2-1001  [003]   100.000010: <user stack trace>\n =>  <00007f5790fa09b0>\n"
        before, fault, after = REPORT.partition("error_code=0x6\n")
        text = before + fault + trace + after
    assert text != REPORT
    plain.write_text(REPORT)
    other.write_text(text)
    one, two = (import_trace(file, file.with_suffix(".mmt")) for file in (plain, other))
    assert one.rows("operations") == 3
    for table in ("operations", "threads", "schedule"):
        assert_frame_equal(one.table(table).collect(), two.table(table).collect())


#: What trace-cmd report prints of a wait, the call that moves it to another address, and the one
#: that wakes it there (libtraceevent's plugin_futex).
FUTEXES = """\
    prog-10  [000]   100.000000000: sys_enter_munmap: addr: 0x10000, len: 0x00005000
    prog-10  [000]   100.000001000: sys_exit_munmap:      0x0
    prog-10  [000]   100.000002000: sys_enter_futex:      op=FUTEX_WAIT_BITSET|FUTEX_PRIVATE_FLAG\
|FUTEX_CLOCK_REALTIME uaddr=0x7f0000001000 val=0x00000001 utime=0x00000000 val3=0xffffffff
    prog-11  [001]   100.000010000: sys_enter_futex:      op=FUTEX_CMP_REQUEUE|FUTEX_PRIVATE_FLAG\
 uaddr=0x7f0000001000 val=0 val2=10 uaddr2=0x7f0000002000 val3=0x00000001
    prog-11  [001]   100.000011000: sys_exit_futex:       0x1
    prog-12  [001]   100.000030000: sys_enter_futex:      op=FUTEX_WAKE|FUTEX_PRIVATE_FLAG \
uaddr=0x7f0000002000 val=1
    prog-12  [001]   100.000031000: sys_exit_futex:       0x1
    prog-10  [000]   100.000040000: sys_exit_futex:       0x0
    prog-10  [000]   100.000050000: sys_enter_munmap: addr: 0x10000, len: 0x00005000
    prog-10  [000]   100.000051000: sys_exit_munmap:      0x0
"""


def test_futex_calls_as_trace_cmd_prints_them(tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    file.write_text(FUTEXES)
    trace = import_trace(file, tmp_path / "t.mmt")
    trace.validate()
    assert trace.wakeups.select("tid", "waker", "off_ns", "on_ns").collect().rows() == [
        (10, 12, 2_000, 40_000)
    ]
    assert "unread_lines" not in trace.header.counters


@pytest.mark.parametrize(
    "line",
    [
        "sys_exit: id=9 ret=139638",
        "sys_enter: id=9 args=0",  # perfetto: of six arguments the last one
        "sys_exit_mmap:        __syscall_nr=9 ret=0x7f18393ce000",
        "sys_enter_mmap: nr=9 addr=0x0 len=0x2000 prot=0x3 flags=0x22 fd=0xffffffff off=0x0",
        "page_fault_user: address=0x7fb971496000 (140434446311424) ip=0x4 (4) error_code=0x6 (6)",
        "sched_switch: prev_comm=x prev_pid=0xaa1 (2721) prev_prio=0x78 (120) prev_state=0x0 (0) "
        "next_comm=python next_pid=0x265 (613) next_prio=0x8b (139)",
    ],
)
def test_raw_fields_are_refused(tmp_path: Path, line: str) -> None:
    """Of trace-cmd report -R and tracefs' option ``fields``: flags and names stand otherwise."""
    file = tmp_path / "trace.txt"
    file.write_text(f"{REPORT}        my-app-2-1001  [003]   100.000070: {line}\n")
    with pytest.raises(UserError, match="printed raw") as caught:
        import_trace(file, tmp_path / "t.mmt")
    assert "without -R" in caught.value.fix
    assert "grep -v ': sys_e'" in caught.value.fix


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ("CPU:3 [LOST 111 EVENTS]", 111),  # the kernel
        ("CPU:3 [111 EVENTS DROPPED]", 111),  # trace-cmd report
        ("CPU:3 [EVENTS DROPPED]", 1),  # how many is not known
        ("##### CPU 3 buffer started ####", 1),
        ("Lost 111 events", 111),  # bpftrace: of which CPU it does not say
    ],
)
def test_losses(tmp_path: Path, line: str, lost: int) -> None:
    before, fault, after = REPORT.partition("        my-app-2-1001  [003]   100.000060: ")
    file = tmp_path / "trace.txt"
    stack = "    my-app-2-1001  [003] 100.000055: kernel_stack:  <stack trace >\n=> x (f)\n"
    file.write_text(f"{before}{line}\n{stack}{fault}{after}")
    trace = import_trace(file, tmp_path / "t.mmt")
    trace.validate()
    assert trace.header.lost_events == lost
    gap = trace.gaps.collect().row(0, named=True)
    assert (gap["lost"], gap["end_ns"]) == (lost, 54_000)
    if line.startswith("Lost"):
        assert trace.header.counters["threads_after_gap"] == 1
    else:
        assert gap["begin_ns"] == 49_000
    assert not trace.header.capabilities.sampling
    assert any("were lost" in warning for warning in trace.header.warnings)
    assert "kernel_stack" not in {event.name for event in trace.header.events}


def test_what_was_overwritten_is_told(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    note = "# entries-in-buffer/entries-written: 7/112896   #P:4\n"
    file.write_text(KERNEL.replace("nop\n", f"nop\n#\n{note}"))
    trace = import_trace(file, tmp_path / "t.mmt")
    assert any("112,889 older events" in warning for warning in trace.header.warnings)


def test_perfetto_prints_decimal_numbers(tmp_path: Path) -> None:
    """traceconv systrace (perfetto's to_ftrace.cc): fields without a form of their own."""
    line = (
        " my_app-1001  (1000) [003] .... 100.00000{}: page_fault_user: "
        "address={} ip={} error_code={}\n"
    )
    file = tmp_path / "trace.txt"
    pages = (0x7F0000001000, 4096 * 12345)
    file.write_text("".join(line.format(k, page, 4198400, 6) for k, page in enumerate(pages)))
    rows = import_trace(file, tmp_path / "t.mmt").operations.collect()
    assert rows["address"].to_list() == list(pages)
    assert rows["ip"].to_list() == [0x401000] * 2


def _contention(begin: str, end: str) -> str:
    """A fault that waits for a lock: what is printed of the wait's begin and end."""
    head = "          my_app-1001  ( 1000) [003] .... 100.0000"
    lines = (
        "01: page_fault_user: address=139637976731648 ip=4198400 error_code=6",
        f"02: contention_begin: {begin}",
        f"08: contention_end: {end}",
        "30: page_fault_user: address=139637976735744 ip=4198400 error_code=6",
    )
    return "".join(f"{head}{line}\n" for line in lines)


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        # perfetto, signed and unsigned; older ones sort fields by when they met their names.
        ("lock_addr=-131386095423296 flags=2", "lock_addr=-131386095423296 ret=0"),
        ("lock_addr=18446612687614128320 flags=18", "lock_addr=18446612687614128320 ret=0"),
        ("flags=2 lock_addr=-131386095423296", "ret=0 lock_addr=-131386095423296"),
        # trace-cmd report -R.
        ("lock_addr=0xffff888123400cc0 flags=0x12", "lock_addr=0xffff888123400cc0 ret=0x0"),
    ],
)
def test_locks_as_fields(tmp_path: Path, begin: str, end: str) -> None:
    """The same waits as in the kernel's own text."""
    address = 18446612687614128320 if "0x" not in begin else 0xFFFF888123400CC0
    flags = "READ" if "flags=2" in begin else "READ|PERCPU"
    texts = {
        "kernel": _contention(f"{address:x} (flags={flags})", f"{address:x} (ret=0)"),
        "fields": _contention(begin, end),
    }
    traces = []
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        traces.append(import_trace(tmp_path / name, tmp_path / f"{name}.mmt"))
        traces[-1].validate()
    for table in ("operations", "threads", "locks"):
        assert_frame_equal(*(trace.table(table).collect() for trace in traces))
    lock = traces[1].locks.collect().row(0, named=True)
    assert lock["lock_address"] == address
    assert lock["wait_ns"] == 6_000


def test_lines_end_as_on_windows(tmp_path: Path) -> None:
    plain, other = tmp_path / "plain.txt", tmp_path / "other.txt"
    plain.write_text(KERNEL)
    other.write_bytes(KERNEL.replace("\n", "\r\n").encode())
    one, two = (import_trace(file, file.with_suffix(".mmt")) for file in (plain, other))
    assert one.rows("operations") == 3
    assert_frame_equal(one.operations.collect(), two.operations.collect())


@pytest.mark.parametrize("kind", ["ftrace", "perf", "strace"])
def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path, kind: str) -> None:
    text = {
        "ftrace": KERNEL[KERNEL.index("        my-app") :].encode(),
        "perf": b"my app 10/11 [1] 5.000003000: syscalls:sys_enter_munmap: addr: 0x7f00, len: 1\n"
        b"my app 10/11 [1] 5.000004000: syscalls:sys_exit_munmap: 0x0\n",
        "strace": b"100 1700000000.000001 munmap(0x7f00, 4096) = 0 <0.000001>\n" * 3,
    }[kind]
    plain, other = tmp_path / "plain", tmp_path / "other"
    plain.write_bytes(text)
    other.write_bytes(b"\xef\xbb\xbf" + text)
    one, two = (import_trace(file, file.with_suffix(".mmt")) for file in (plain, other))
    assert one.rows("operations") > 0
    for table in ("operations", "threads"):
        assert_frame_equal(one.table(table).collect(), two.table(table).collect())


def test_carriage_returns_only_are_refused_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    file.write_bytes(KERNEL.replace("\n", "\r").encode())
    with pytest.raises(UserError) as caught:
        import_trace(file, tmp_path / "t.mmt")
    assert caught.value.fix.startswith("tr '\\r' '\\n'")


@pytest.mark.parametrize("end", [b"", b" "])
def test_a_megabyte_without_a_newline_is_refused_at_once(tmp_path: Path, end: bytes) -> None:
    """Its lines' ends were lost; the look at it had taken minutes."""
    file = tmp_path / "trace.txt"
    lines = [line.encode() for line in KERNEL.splitlines()[4:]]
    file.write_bytes(end.join(lines * 1000))
    words = [sys.executable, "-m", "mmreplay", "import", str(file), "-o", str(tmp_path / "t.mmt")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "not text of perf script" in done.stderr


def test_packed_text_is_refused_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    for data, fix in (
        (gzip.compress(KERNEL.encode()), "gunzip"),
        (KERNEL.encode("utf-16"), "iconv"),
    ):
        file.write_bytes(data)
        with pytest.raises(UserError) as caught:
            import_trace(file, tmp_path / "t.mmt")
        assert fix in caught.value.fix


@pytest.mark.parametrize("kind", ["ftrace", "strace"])
@pytest.mark.parametrize("time", ["18446744073.709551", "99999999999999999999.000001"])
def test_a_time_that_cannot_be_is_none(tmp_path: Path, kind: str, time: str) -> None:
    """A damaged line: the recording would last for centuries, or begin after its end."""
    call = "100 {} munmap(0x7f00, 4096) = 0 <0.000001>\n"
    lines = "".join(call.format(f"1700000000.00000{k}") for k in range(5))
    text, bad = {
        "ftrace": (REPORT, REPORT.splitlines(True)[1].replace("100.000001", time)),
        "strace": (lines, call.format(time)),
    }[kind]
    plain, other = tmp_path / "plain", tmp_path / "other"
    plain.write_text(text)
    at = text.index("\n", len(text) // 2) + 1
    other.write_text(text[:at] + bad + text[at:])
    one, two = (import_trace(file, file.with_suffix(".mmt")) for file in (plain, other))
    for table in ("operations", "threads"):
        assert_frame_equal(one.table(table).collect(), two.table(table).collect())
    assert two.header.counters["other_lines"] == one.header.counters.get("other_lines", 0) + 1


def test_a_very_long_word_is_no_name(tmp_path: Path) -> None:
    """A byte that was lost joins a line to what follows: no name of some megabytes is kept."""
    file = tmp_path / "trace.txt"
    long = "        my-app-2-1001  [003]   100.000055: " + "x" * 300_000 + "\n"
    file.write_text(REPORT + long)
    trace = import_trace(file, tmp_path / "t.mmt")
    assert trace.rows("operations") == 3
    assert max(len(event.name) for event in trace.header.events) < 100


def test_a_busy_machine_that_was_never_idle(tmp_path: Path) -> None:
    """The kernel's own threads tell that more than one process was recorded."""
    head = "  {name}-{tid}  [001] d..1.  5.00000{k}: "
    line = head + "sched_waking: comm=x pid=7 prio=120 target_cpu=0\n"
    fault = head + "page_fault_user: address=0x1000 ip=0x1 error_code=0x6\n"
    text = fault.format(name="prog", tid=10, k=1) + line.format(name="kworker/0:1", tid=7, k=2)
    file = tmp_path / "trace"
    file.write_text(text + fault.format(name="other", tid=11, k=3))
    with pytest.raises(UserError, match="the whole machine was recorded"):
        import_trace(file, tmp_path / "t.mmt")


def test_who_records_is_no_thread_of_the_program(tmp_path: Path) -> None:
    """A machine that was never idle, as trace-cmd without -F leaves it."""
    file = tmp_path / "trace"
    file.write_text(REPORT.replace("my-app-2-1001", "trace-cmd-1002", 1).replace("<idle>-0", "x-9"))
    with pytest.raises(UserError, match="the whole machine was recorded"):
        import_trace(file, tmp_path / "t.mmt")


def test_the_latency_format_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text("# tracer: nop\n#\n# nop latency trace v1.1.5 on 6.18.44\n#  cmd pid\n")
    with pytest.raises(UserError, match="latency format") as caught:
        import_trace(file, tmp_path / "t.mmt")
    assert "nolatency-format" in caught.value.fix


#: What trace-cmd report prints of ``trace-cmd record -e page_fault_user -B calls -e munmap``.
BUFFERS = """\
cpus=2
                      w-11479 [000] 38468.301382429: page_fault_user:      \
address=0x7f22a07a8000 ip=0x5652cee5f318 error_code=0x6
calls:                w-11479 [000] 38468.301392429: sys_enter_munmap:     \
addr: 0x7f22a07a8000, len: 0x00004000
calls:                w-11479 [000] 38468.301393121: sys_exit_munmap:      0x0
"""


def test_names_of_buffers_before_lines(tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    file.write_text(BUFFERS)
    trace = import_trace(file, tmp_path / "t.mmt")
    assert trace.rows("operations") == 2
    assert trace.threads.collect()["comm"].to_list() == ["w"]
    lines = BUFFERS.splitlines(keepends=True)
    file.write_text("".join([*lines, "calls:" + lines[1][6:].replace("382429", "395500")]))
    with pytest.raises(UserError, match="two buffers tell page_fault_user"):
        import_trace(file, tmp_path / "t.mmt", force=True)
    # A name that looks like a buffer's stands behind blanks.
    file.write_text(BUFFERS.replace("calls:                w", "              calls: w"))
    trace = import_trace(file, tmp_path / "t.mmt", force=True)
    assert set(trace.threads.collect()["comm"]) == {"calls: w"}
