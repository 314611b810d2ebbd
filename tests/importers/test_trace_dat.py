"""trace.dat of trace-cmd: versions, compressions, pages; and against trace-cmd's own report."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from pathlib import Path

import datwriter as dw
import perfwriter as pw
import pytest
from polars.testing import assert_frame_equal

from mmreplay.errors import UserError
from mmreplay.importers.registry import import_trace, sniff
from mmreplay.schema import OpKind
from mmreplay.trace.store import Trace

TRACEFS = Path("/sys/kernel/tracing/events")
SWITCH = (
    "sched",
    pw.format_text(
        "sched_switch",
        50,
        (
            ("char", "prev_comm[16]", 8, 16, 0),
            ("pid_t", "prev_pid", 24, 4, 1),
            ("int", "prev_prio", 28, 4, 1),
            ("long", "prev_state", 32, 8, 1),
            ("char", "next_comm[16]", 40, 16, 0),
            ("pid_t", "next_pid", 56, 4, 1),
            ("int", "next_prio", 60, 4, 1),
        ),
    ),
)
EXIT = ("sched", pw.format_text("sched_process_exit", 51, (("pid_t", "pid", 24, 4, 1),)))
FORMATS = [*pw.FORMATS.values(), SWITCH, EXIT]


def refused(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        import_trace(file, file.parent / "t.mmt", force=True)
    return caught.value.line()


def sample() -> dw.Writer:
    w = dw.Writer(FORMATS, {100: "my prog 1", 7: "my prog 2"})
    base = 5_000_000_000
    w.add(0, base, 100, "sys_enter_mmap", addr=0, len=8192, prot=3, flags=0x22, fd=-1)
    w.add(0, base + 2_000, 100, "sys_exit_mmap", ret=0x7F0000000000)
    w.add(0, base + 3_000, 100, "page_fault_user", address=0x7F0000000000, ip=0x4000, error_code=6)
    w.add(0, base + 9_000, 100, "sched_switch", prev_pid=100, prev_state=1, next_pid=0)
    # It comes back on another CPU, from the idle task, after more than 2^27 ns.
    later = base + 400_000_000
    w.add(1, base + 1_000, 7, "sys_enter_munmap", addr=0x1000, len=4096)
    w.add(1, later, 0, "sched_switch", prev_pid=0, prev_state=0, next_pid=100)
    w.add(1, later + 1_000, 100, "sys_enter_clone", clone_flags=0x10100)
    w.add(0, later + 2_000, 101, "sys_enter_munmap", addr=0x7F0000000000, len=4096)
    w.add(1, later + 3_000, 100, "sys_exit_clone", ret=101)
    w.add(0, later + 4_000, 101, "sys_exit_munmap", ret=0)
    w.add(0, later + 5_000, 101, "sched_process_exit", pid=101)
    return w


@pytest.mark.parametrize("form", ["6", "7", "7 zlib", "7 zstd"])
def test_a_file(tmp_path: Path, form: str) -> None:
    version, _, compression = form.partition(" ")
    file = sample().save(tmp_path / "trace.dat", int(version), compression or "none")
    assert sniff(file).name == "trace.dat"
    trace = import_trace(file, tmp_path / "t.mmt")
    trace.validate()
    rows = trace.operations.collect()
    mine = rows.filter(rows["tid"] != 7)
    wanted = [OpKind.MMAP, OpKind.FAULT_USER, OpKind.CLONE]
    assert mine["kind"].to_list()[:3] == [int(kind) for kind in wanted]
    assert mine["duration_ns"].to_list()[:3] == [2_000, 6_000, 2_000]
    assert mine["address"].to_list()[:2] == [0x7F0000000000] * 2
    assert mine["ip"].to_list()[1] == 0x4000
    munmap = rows.filter(rows["kind"] == int(OpKind.MUNMAP), rows["tid"] == 101)
    assert munmap["duration_ns"].to_list() == [2_000]
    assert munmap["pid"].to_list() == [100]
    assert trace.schedule.collect().select("off_ns", "on_ns", "cpu").rows() == [
        (9_000, 400_000_000, 0)
    ]
    comms = dict(trace.threads.collect().select("tid", "comm").rows())
    assert (comms[100], comms[7]) == ("my prog 1", "my prog 2")
    header = trace.header
    assert header.clock.name == "monotonic"
    assert header.kernel_release == "6.18.44"
    assert header.source.tool_version == "3.1.6"
    text = "".join(file.read_text("latin-1") for file in sorted((tmp_path / "t.mmt").iterdir()))
    assert "myhost" not in text


def test_processes(tmp_path: Path) -> None:
    """Nothing in the file says which process a thread belongs to but its name or the filter."""
    w = sample()
    w.names[7] = "other"
    line = refused(w.save(tmp_path / "trace.dat"))
    assert "(my prog , other)" in line
    assert "--proc-map" in line
    w.proc_maps = "64 2 /usr/bin/prog\n7f00 7f01 /usr/lib/x.so\n1000 2000 /usr/bin/prog\n"
    for version in (6, 7):
        file = w.save(tmp_path / "trace.dat", version)
        trace = import_trace(file, tmp_path / "t.mmt", force=True)
        assert set(trace.threads.collect()["pid"]) == {100}


def test_losses_and_many_pages(tmp_path: Path) -> None:
    w = dw.Writer(FORMATS)
    for k in range(2000):
        w.add(k % 3, 1_000_000 + 1_000 * k, 100 + k % 3, "page_fault_user", address=4096 * k)
    w.lost = {1: {2: 17, 3: 0}}
    trace = import_trace(w.save(tmp_path / "trace.dat"), tmp_path / "t.mmt")
    trace.validate()
    assert trace.rows("operations") == 2000
    assert trace.header.lost_events == 18  # of the second gap it is not known how many
    assert trace.gaps.collect()["lost"].to_list() == [17, 1]
    begins = trace.operations.collect()["begin_ns"]
    assert begins.to_list() == [1_000 * k for k in range(2000)]


@pytest.mark.parametrize("version", [6, 7])
def test_losses_before_an_entry_of_ftrace_itself(tmp_path: Path, version: int) -> None:
    """A stack trace (``trace-cmd record -T``) is no event, but what was lost before it is lost."""
    stack = ("ftrace", pw.format_text("kernel_stack", 4, (("int", "size", 8, 4, 1),)))
    w = dw.Writer([*FORMATS, stack])
    for k in range(1000):
        w.add(0, 1_000_000 + 1_000 * k, 100, "kernel_stack", size=1)
        w.add(0, 1_000_500 + 1_000 * k, 100, "page_fault_user", address=4096 * k)
    page = dw.pages(w.cpus[0], {})[dw.PAGE + dw.DATA :]
    assert struct.unpack_from("<xxxxH", page)[0] == 4  # the second page begins with a stack
    w.lost = {0: {1: 17}}
    trace = import_trace(w.save(tmp_path / "trace.dat", version), tmp_path / "t.mmt")
    trace.validate()
    assert trace.rows("operations") == 1000
    assert trace.header.lost_events == 17
    assert trace.gaps.collect()["lost"].to_list() == [17]
    assert not any("no format" in warning for warning in trace.header.warnings)


def test_what_is_not_read_is_refused(tmp_path: Path) -> None:
    w = sample()
    w.clock = "mono [x86-tsc]"
    assert "trace-cmd record -C mono" in refused(w.save(tmp_path / "trace.dat"))
    good = sample().save(tmp_path / "trace.dat").read_bytes()
    (tmp_path / "trace.dat").write_bytes(good.replace(b"tracing6\0\0", b"tracing6\0\1"))
    assert "big-endian" in refused(tmp_path / "trace.dat")
    (tmp_path / "trace.dat").write_bytes(good.replace(b"tracing6", b"tracing5"))
    assert "version 5" in refused(tmp_path / "trace.dat")
    with_latency = good.replace(b"flyrecord\0", b"latency  \0")
    (tmp_path / "trace.dat").write_bytes(with_latency)
    assert "latency" in refused(tmp_path / "trace.dat")


def test_hostile_files_end_soon(tmp_path: Path) -> None:
    good = sample().save(tmp_path / "good", 7).read_bytes()
    # Options that go on where they began.
    at = good.rfind(struct.pack("<HIQ", 0, 8, 0))
    offset = good.index(b"none\x001\0") + 7
    begin = good[offset : offset + 8]
    (tmp_path / "circle").write_bytes(good[: at + 6] + begin + good[at + 14 :])
    import_trace(tmp_path / "circle", tmp_path / "t.mmt", force=True).validate()
    # A kilobyte that says it becomes a gigabyte of pages.
    bomb = sample()
    packed = bomb.save(tmp_path / "good", 7, "zlib").read_bytes()
    sizes = struct.pack("<I", dw.PAGE)
    assert packed.count(sizes) >= 2
    at = packed.rfind(sizes, 0, packed.rfind(b"mono"))
    (tmp_path / "bomb").write_bytes(packed[:at] + struct.pack("<I", 1 << 30) + packed[at + 4 :])
    assert "cannot be" in refused(tmp_path / "bomb")


def test_cut_anywhere(tmp_path: Path) -> None:
    for version, compression in ((6, "none"), (7, "none"), (7, "zlib")):
        good = sample().save(tmp_path / "good", version, compression).read_bytes()
        draw = random.Random(version)
        for _ in range(40):
            (tmp_path / "cut").write_bytes(good[: draw.randrange(12, len(good))])
            with pytest.raises(UserError) as caught:
                import_trace(tmp_path / "cut", tmp_path / "t.mmt", force=True)
            assert "\n" not in caught.value.line()
            assert "copy the file again" in caught.value.fix


@pytest.mark.parametrize("buffers", [(), ("calls", "sched")])
@pytest.mark.parametrize(("version", "compression"), [(6, "none"), (7, "none"), (7, "zstd")])
def test_against_trace_cmd(
    tmp_path: Path, version: int, compression: str, buffers: tuple[str, ...]
) -> None:
    """The trace is that of the text which trace-cmd makes of the same file."""
    names = [
        *(("exceptions", f"page_fault_{mode}") for mode in ("user", "kernel")),
        *(
            ("syscalls", f"sys_{side}_{call}")
            for call in ("mmap", "munmap", "brk", "madvise", "clone")
            for side in ("enter", "exit")
        ),
        ("sched", "sched_switch"),
    ]
    if shutil.which("trace-cmd") is None:
        pytest.skip("trace-cmd is not installed")
    try:
        texts = [(s, (TRACEFS / s / name / "format").read_text()) for s, name in names]
    except OSError as error:
        pytest.skip(f"this kernel's formats cannot be read: {error}")
    w = dw.Writer(texts, {100: "my prog", 101: "my prog", 102: "my prog"})
    w.instances = {name: dw.Writer(texts) for name in buffers}
    calls, sched = (w.instances.get(name, w) for name in ("calls", "sched"))
    draw = random.Random(5)
    now = {tid: 10**10 + tid for tid in (100, 101, 102)}
    for step in range(3000):
        tid = draw.choice(list(now)) if step >= 3 else 100 + step
        time = now[tid]
        address = 0x7F0000000000 + 4096 * draw.randrange(100)
        match draw.randrange(5) if step >= 3 else 4:
            case 0:
                calls.add(tid - 100, time, tid, "sys_enter_munmap", addr=address, len=8192)
                calls.add(tid - 100, time + 700, tid, "sys_exit_munmap", ret=draw.choice([0, -22]))
            case 1:
                given = {"addr": 0, "len": 8192, "prot": 3, "flags": 0x22, "fd": -1, "off": 0}
                calls.add(tid - 100, time, tid, "sys_enter_mmap", **given)
                calls.add(tid - 100, time + 700, tid, "sys_exit_mmap", ret=address)
            case 2:
                idle = {"prev_pid": tid, "prev_state": draw.choice([0, 1, 2]), "next_pid": 0}
                sched.add(tid - 100, time, tid, "sched_switch", next_comm=b"swapper", **idle)
                back = {"prev_pid": 0, "next_pid": tid, "prev_comm": b"swapper/1"}
                sched.add(tid - 100, time + 700, 0, "sched_switch", **back)
            case _:
                what = {"address": address, "ip": 0x400000, "error_code": 6}
                w.add(tid - 100, time, tid, "page_fault_user", **what)
        now[tid] = time + draw.choice([1_000, 20_000, 300_000_000])
    file = w.save(tmp_path / "trace.dat", version, compression)
    done = subprocess.run(
        ["trace-cmd", "report", "-t", "-i", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = tmp_path / "report.txt"
    report.write_text(done.stdout)
    # Whole-machine text without process ids is refused where there are several threads.
    report.write_text("".join(_with_tgid(line) for line in done.stdout.splitlines(True)))
    one = import_trace(file, tmp_path / "dat.mmt")
    other = import_trace(report, tmp_path / "text.mmt")
    one.validate()
    assert ("calls:" in done.stdout) == bool(buffers)
    assert one.rows("operations") > 2000
    assert one.threads.collect()["comm"].unique().to_list() == ["my prog"]
    same(one, other)


def _with_tgid(line: str) -> str:
    head, bracket, rest = line.partition("[")
    return f"{head}(    100) {bracket}{rest}" if bracket and "-10" in head else line


def same(one: Trace, other: Trace) -> None:
    for table in ("operations", "schedule"):
        assert_frame_equal(one.table(table).collect(), other.table(table).collect())


@pytest.mark.parametrize("version", [6, 7])
def test_an_event_that_two_buffers_tell_counts_once(tmp_path: Path, version: int) -> None:
    """All of the buffer that has most of it."""
    w = dw.Writer(FORMATS, {100: "prog"})
    w.instances = {"more": dw.Writer(FORMATS), "calls": dw.Writer(FORMATS)}
    for k in range(4):
        fault = {"address": 0x7F0000000000 + 4096 * k, "ip": 0x4000, "error_code": 6}
        if k:
            w.add(0, 10**10 + 1000 * k, 100, "page_fault_user", **fault)
        w.instances["more"].add(0, 10**10 + 1000 * k + 200, 100, "page_fault_user", **fault)
    w.instances["calls"].add(0, 10**10 + 9000, 100, "sys_enter_munmap", addr=0x1000, len=4096)
    trace = import_trace(w.save(tmp_path / "trace.dat", version), tmp_path / "t.mmt")
    rows = trace.operations.collect()
    assert rows["begin_ns"].to_list() == [0, 1000, 2000, 3000, 8800]
    assert any("several buffers have page_fault_user" in text for text in trace.header.warnings)


@pytest.mark.parametrize("version", [6, 7])
def test_only_an_instance_has_data(tmp_path: Path, version: int) -> None:
    w = dw.Writer(FORMATS)
    w.instances = {"inst": sample()}
    w.names = sample().names
    w.cpus = {0: [], 1: []}  # of version 6 the top buffer says how many CPUs there are
    trace = import_trace(w.save(tmp_path / "trace.dat", version), tmp_path / "t.mmt")
    same(trace, import_trace(sample().save(tmp_path / "plain.dat"), tmp_path / "p.mmt"))


def test_a_buffer_with_another_clock_is_left_out(tmp_path: Path) -> None:
    w = sample()
    w.instances = {"other": dw.Writer(FORMATS, clock="[boot]")}
    w.instances["other"].add(0, 1, 100, "sys_enter_munmap", addr=0x1000, len=4096)
    trace = import_trace(w.save(tmp_path / "trace.dat", 7), tmp_path / "t.mmt")
    assert any("left out (other)" in text for text in trace.header.warnings)
    same(trace, import_trace(sample().save(tmp_path / "plain.dat"), tmp_path / "p.mmt"))
