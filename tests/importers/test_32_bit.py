"""Kernels and programs of 32 bits: mmap by other names, offsets in pages, addresses above 2 GiB."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import perfwriter as pw
import pytest
from test_against_perf_script import COMPAT

from mmreplay.importers.registry import import_trace
from mmreplay.schema import OpKind
from mmreplay.trace.store import Trace

HIGH = 0xB7F0_0000
MAP_IN, MAP_OUT, BRK_IN, BRK_OUT, RAW_IN, RAW_OUT = range(6)


def enter(name: str, ident: int, *arguments: str) -> tuple[str, str]:
    fields = [("int", "__syscall_nr", 8, 4, 1)]
    fields += [("unsigned long", label, 12 + 4 * k, 4, 0) for k, label in enumerate(arguments)]
    return "syscalls", pw.format_text(f"sys_enter_{name}", ident, tuple(fields))


def leave(name: str, ident: int) -> tuple[str, str]:
    fields = (("int", "__syscall_nr", 8, 4, 1), ("long", "ret", 12, 4, 1))
    return "syscalls", pw.format_text(f"sys_exit_{name}", ident, fields)


def writer(mmap: str, **more: Any) -> pw.Writer:
    """A recording of a 32-bit kernel."""
    number = ("long", "id", 8, 4, 1)
    formats = {
        20: enter(mmap, 20, "addr", "len", "prot", "flags", "fd", "pgoff"),
        21: leave(mmap, 21),
        24: enter("brk", 24, "brk"),
        25: leave("brk", 25),
        60: (
            "raw_syscalls",
            pw.format_text("sys_enter", 60, (number, ("unsigned long", "args[6]", 12, 24, 0))),
        ),
        61: ("raw_syscalls", pw.format_text("sys_exit", 61, (number, ("long", "ret", 12, 4, 1)))),
    }
    arch = struct.pack("<I", 8) + b"i686\0\0\0\0"
    events = [pw.Event(config) for config in (20, 21, 24, 25, 60, 61)]
    return pw.Writer(events=events, formats=formats, features={6: arch}, **more)


def words(w: pw.Writer, which: int, time: int, *values: int) -> None:
    packed = b"".join(struct.pack("<I", value & 0xFFFF_FFFF) for value in values)
    head = b"\0" * 8 if which in (RAW_IN, RAW_OUT) else b"\0" * 12
    w.sample(which, time, 100, head + packed)


def check(trace: Trace) -> None:
    """A file's third page mapped above 2 GiB, one refused, and the break moved over 2 GiB."""
    trace.validate()
    rows = trace.operations.collect()
    good, bad = rows.filter(rows["kind"] == int(OpKind.MMAP)).to_dicts()
    assert (good["address"], good["length"]) == (HIGH, 8192)
    assert (good["file_offset"], good["fd"], good["result"]) == (2 * 4096, 3, HIGH)
    assert good["errno"] is None
    assert (bad["errno"], bad["address"]) == (12, None)
    moved = rows.filter(rows["kind"] == int(OpKind.BRK)).to_dicts()[-1]
    assert (moved["address"], moved["length"]) == (0x7FFF_F000, 0x2000)


@pytest.mark.parametrize("mmap", ["mmap_pgoff", "mmap2"])
def test_named_events(tmp_path: Path, mmap: str) -> None:
    w = writer(mmap)
    words(w, MAP_IN, 1000, 0, 8192, 1, 2, 3, 2)
    words(w, MAP_OUT, 2000, HIGH)
    words(w, MAP_IN, 3000, 0, 8192, 1, 2, 3, 2)
    words(w, MAP_OUT, 4000, -12)
    for time, asked, result in ((5000, 0, 0x7FFF_F000), (7000, 0x8000_1000, 0x8000_1000)):
        words(w, BRK_IN, time, asked)
        words(w, BRK_OUT, time + 1000, result)
    check(import_trace(w.save(tmp_path / "f"), tmp_path / "t.mmt"))


def test_raw_events(tmp_path: Path) -> None:
    w = writer("mmap_pgoff")
    for event in w.events[:RAW_IN]:  # else those tell the calls
        event.config = 99
    for time, result in ((1000, HIGH), (3000, -12)):
        words(w, RAW_IN, time, 192, 0, 8192, 1, 2, 3, 2)
        words(w, RAW_OUT, time + 1000, 192, result)
    for time, asked, result in ((5000, 0, 0x7FFF_F000), (7000, 0x8000_1000, 0x8000_1000)):
        words(w, RAW_IN, time, 45, asked, 0, 0, 0, 0, 0)
        words(w, RAW_OUT, time + 1000, 45, result)
    check(import_trace(w.save(tmp_path / "f"), tmp_path / "t.mmt"))


PERF = """\
 prog   10/10    [000]     1.000001000: syscalls:sys_enter_mmap_pgoff: addr: 0x00000000, len: \
0x00002000, prot: 0x00000001, flags: 0x00000002, fd: 0x00000003, pgoff: 0x00000002
 prog   10/10    [000]     1.000002000: syscalls:sys_exit_mmap_pgoff: {high}
 prog   10/10    [000]     1.000003000: syscalls:sys_enter_mmap_pgoff: addr: 0x00000000, len: \
0x00002000, prot: 0x00000001, flags: 0x00000002, fd: 0x00000003, pgoff: 0x00000002
 prog   10/10    [000]     1.000004000: syscalls:sys_exit_mmap_pgoff: 0xfffffffffffffff4
 prog   10/10    [000]     1.000005000: syscalls:sys_enter_brk: brk: 0x00000000
 prog   10/10    [000]     1.000006000: syscalls:sys_exit_brk: 0x7ffff000
 prog   10/10    [000]     1.000007000: syscalls:sys_enter_brk: brk: 0x80001000
 prog   10/10    [000]     1.000008000: syscalls:sys_exit_brk: 0x80001000
"""
RAW = """\
# arch : i686
 prog   10/10    [000]     1.000001000: raw_syscalls:sys_enter: NR 192 (0, 2000, 1, 2, 3, 2)
 prog   10/10    [000]     1.000002000: raw_syscalls:sys_exit: NR 192 = {decimal}
 prog   10/10    [000]     1.000003000: raw_syscalls:sys_enter: NR 192 (0, 2000, 1, 2, 3, 2)
 prog   10/10    [000]     1.000004000: raw_syscalls:sys_exit: NR 192 = -12
 prog   10/10    [000]     1.000005000: raw_syscalls:sys_enter: NR 45 (0, 0, 0, 0, 0, 0)
 prog   10/10    [000]     1.000006000: raw_syscalls:sys_exit: NR 45 = 2147479552
 prog   10/10    [000]     1.000007000: raw_syscalls:sys_enter: NR 45 (80001000, 0, 0, 0, 0, 0)
 prog   10/10    [000]     1.000008000: raw_syscalls:sys_exit: NR 45 = -2147479552
"""
FTRACE = """\
 prog-10    [000] ....     1.000001: sys_mmap_pgoff(addr: 0, len: 2000, prot: 1, flags: 2, fd: 3, \
pgoff: 2)
 prog-10    [000] ....     1.000002: sys_mmap_pgoff -> {high}
 prog-10    [000] ....     1.000003: sys_mmap_pgoff(addr: 0, len: 2000, prot: 1, flags: 2, fd: 3, \
pgoff: 2)
 prog-10    [000] ....     1.000004: sys_mmap_pgoff -> 0xfffffffffffffff4
 prog-10    [000] ....     1.000005: sys_brk(brk: 0)
 prog-10    [000] ....     1.000006: sys_brk -> 0x7ffff000
 prog-10    [000] ....     1.000007: sys_brk(brk: 80001000)
 prog-10    [000] ....     1.000008: sys_brk -> 0x80001000
"""
STRACE = """\
10 1700000000.000001 mmap2(NULL, 8192, PROT_READ, MAP_PRIVATE, 3, 0x2000) = 0xb7f00000 <0.000001>
10 1700000000.000003 mmap2(NULL, 8192, PROT_READ, MAP_PRIVATE, 3, 0x2000) = -1 ENOMEM \
(Cannot allocate memory) <0.000001>
10 1700000000.000005 brk(NULL) = 0x7ffff000 <0.000001>
10 1700000000.000007 brk(0x80001000) = 0x80001000 <0.000001>
"""


@pytest.mark.parametrize("text", [PERF, RAW, FTRACE, STRACE])
@pytest.mark.parametrize("high", ["0xb7f00000", "0xffffffffb7f00000"])
def test_text(tmp_path: Path, text: str, high: str) -> None:
    """A tool of 64 bits may print the long of the other kernel with its sign."""
    decimal = str(HIGH if len(high) == 10 else HIGH - 2**32)
    file = tmp_path / "text"
    file.write_text(text.format(high=high, decimal=decimal))
    check(import_trace(file, tmp_path / "t.mmt"))


@pytest.mark.perf
def test_strace_of_a_32_bit_program(tmp_path: Path) -> None:
    source, program = tmp_path / "compat.c", tmp_path / "compat"
    source.write_text(COMPAT)
    flags = ["-m32", "-nostdlib", "-static", "-O1", "-fno-pie", "-no-pie"]
    if shutil.which("gcc") is None or shutil.which("strace") is None:
        pytest.skip("gcc or strace is not installed")
    built = subprocess.run(["gcc", *flags, "-o", program, source], capture_output=True, check=False)
    if built.returncode or subprocess.run([str(program)], check=False).returncode:
        pytest.skip("32-bit programs cannot be built or run here")
    log = tmp_path / "log"
    subprocess.run(["strace", "-f", "-ttt", "-T", "-o", log, program], check=True)
    rows = import_trace(log, tmp_path / "t.mmt").operations.collect()
    (mapped,) = rows.filter(rows["kind"] == int(OpKind.MMAP)).to_dicts()
    (unmapped,) = rows.filter(rows["kind"] == int(OpKind.MUNMAP)).to_dicts()
    assert (mapped["length"], mapped["flags"], mapped["fd"]) == (65536, 0x22, -1)
    assert mapped["address"] == unmapped["address"] >= 1 << 31
