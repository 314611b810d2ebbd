"""What the bpftrace script that is shipped prints, is read as ftrace text."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

import mmreplay.recorder
from mmreplay.importers.registry import import_trace
from mmreplay.schema import OpKind

SCRIPT = Path(mmreplay.recorder.__file__).with_name("mmreplay.bt")
#: Of bpftrace 0.17 on 6.18.
PRINTED = """\
Attaching 22 probes...
# tracer: mmreplay.bt
python3-30003 (30003) [1] ..... 17133.656806111: tracepoint:exceptions:page_fault_user: \
address=0x7fd49d727000 ip=0x7fd49dfaf8bb error_code=0x6
python3-30003 (30003) [1] ..... 17133.656840502: minor-faults:
python3-30003 (30003) [1] ..... 17133.656892129: sys_enter_mmap: addr: 0x0, len: 0x801000, \
prot: 0x0, flags: 0x20022, fd: 0xffffffff, off: 0x0
python3-30003 (30003) [1] ..... 17133.656916845: tracepoint:syscalls:sys_exit_mmap: 0x7fd49ce81000
"""


def test_printed(tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    file.write_text(PRINTED)
    trace = import_trace(file, tmp_path / "t.mmt")
    trace.validate()
    fault, call = trace.operations.collect().rows(named=True)
    assert (fault["kind"], fault["duration_ns"]) == (OpKind.FAULT_USER, 34_391)
    assert (fault["address"], fault["ip"]) == (0x7FD49D727000, 0x7FD49DFAF8BB)
    assert (call["kind"], call["duration_ns"]) == (OpKind.MMAP, 24_716)
    assert (call["address"], call["length"]) == (0x7FD49CE81000, 0x801000)
    assert (call["flags"], call["fd"]) == (0x20022, -1)
    assert trace.header.clock.resolution_ns == 1


WORKLOAD = """
import mmap, sys, threading
sys.stdin.readline()
def work():
    for _ in range(10):
        area = mmap.mmap(-1, 16 * 4096)
        for page in range(0, 16 * 4096, 4096):
            area[page] = 1
        area.close()
threads = [threading.Thread(target=work) for _ in range(3)]
[t.start() for t in threads]
[t.join() for t in threads]
"""


@pytest.mark.perf
def test_a_live_process(tmp_path: Path) -> None:
    if shutil.which("bpftrace") is None:
        pytest.skip("bpftrace is not installed")
    program = subprocess.Popen([sys.executable, "-c", WORKLOAD], stdin=subprocess.PIPE, text=True)
    assert program.stdin is not None
    out = tmp_path / "trace.txt"
    errors = tmp_path / "errors"
    with out.open("wb") as stdout, errors.open("wb") as stderr:
        # A large buffer: what does not fit is lost.
        environment = os.environ | {"BPFTRACE_PERF_RB_PAGES": "1024"}
        words = ["bpftrace", str(SCRIPT), str(program.pid)]
        tracer = subprocess.Popen(words, stdout=stdout, stderr=stderr, env=environment)
    try:
        for _ in range(300):
            if b"tracer:" in out.read_bytes() or tracer.poll() is not None:
                break
            time.sleep(0.1)
        if tracer.poll() is not None or b"tracer:" not in out.read_bytes():
            pytest.skip(f"bpftrace cannot trace here: {errors.read_text()[:200]}")
        program.stdin.write("\n")
        program.stdin.close()
        program.wait(60)
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(60)
        program.kill()
        program.wait()
    if b"Lost" in out.read_bytes() + errors.read_bytes():
        pytest.skip("bpftrace lost events")
    trace = import_trace(out, tmp_path / "t.mmt")
    trace.validate()
    rows = trace.operations.collect()
    maps = rows.filter(pl.col("kind") == int(OpKind.MMAP), pl.col("length") == 16 * 4096)
    assert maps.height == 30
    assert maps["duration_ns"].null_count() == 0
    faults = rows.filter(pl.col("kind") == int(OpKind.FAULT_USER))
    assert faults.height >= 480
    assert (faults["duration_kind"] == 1).mean() > 0.98
    assert trace.rows("threads") == 4
    assert trace.threads.collect()["pid"].to_list() == [program.pid] * 4
