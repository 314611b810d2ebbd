"""Kernels and programs of 32 bits: mmap by other names, offsets in pages, addresses above 2 GiB."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import datwriter as dw
import perfwriter as pw
import polars as pl
import pytest
from test_against_perf_script import COMPAT, SETS, record

from mmreplay.importers.registry import import_trace
from mmreplay.schema import OpKind, Quality
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


# -- programs of 32 bits on a kernel of 64 ---------------------------------------------------------

#: A shell (10) that runs a 32-bit program by vfork and exec (11), which runs one of 64 bits; of
#: (thread, number, words, result).  91 is fchmod there, 9 link here, 192 lgetxattr there.
SESSION = [
    (10, 9, (0, 0x1000, 3, 0x22, 0xFFFF_FFFF, 0), 0x7F00_0000_0000),
    (10, 58, (), 11),
    (11, 59, (0x5600_0000_0000, 0x5600_0000_1000), None),
    (11, 11, None, 0),
    (11, 192, (0, 0x2000, 3, 0x22, 0xFFFF_FFFF, 0), 0xF7F0_0000),
    (11, 9, (0x5650_0000, 0x5650_1000, 0, 0, 0, 0), 0),
    (11, 91, (0xF7F0_0000, 0x2000, 0, 0, 0, 0), 0),
    (11, 11, (0x5650_0000, 0x5650_1000), None),
    (11, 59, None, 0),
    (11, 9, (0, 0x3000, 3, 0x22, 0xFFFF_FFFF, 0), 0x7F11_0000_0000),
    (11, 91, (3, 0x1B6, 0, 0, 0, 0), 0),
    (11, 11, (0x7F11_0000_0000, 0x3000), 0),
    (10, 11, (0x7F00_0000_0000, 0x1000), 0),
]
HEADS = {
    "ftrace": " {comm}-{tid}  [000] .....  {time:.6f}: {event}: ",
    "perf script": " {comm} {tid}/{tid} [000]  {time:.9f}: raw_syscalls:{event}: ",
}


def session(form: str, native: bool = False) -> str:
    """The session as text; ``native``: 64-bit calls have events of their own, too."""
    lines = []
    time = 1.0
    bits = {10: 64, 11: 64}

    def say(tid: int, event: str, rest: str) -> None:
        nonlocal time
        time += 0.00001
        head = HEADS[form].format(comm="sh", tid=tid, time=time, event=event)
        if event.startswith(("sys_enter_", "sys_exit_")):
            head = head.replace("raw_syscalls", "syscalls")
        lines.append(head + rest + "\n")

    for tid, number, words, result in SESSION:
        name = {9: "mmap", 11: "munmap"}.get(number, "") if native and bits[tid] == 64 else ""
        if words is not None:
            six = (*words, 0, 0, 0, 0, 0, 0)[:6]
            say(tid, "sys_enter", f"NR {number} ({', '.join(f'{word:x}' for word in six)})")
            labels = ("addr", "len", "prot", "flags", "fd", "off")[: 6 if name == "mmap" else 2]
            if name:
                told = ", ".join(f"{k}: 0x{v:x}" for k, v in zip(labels, six, strict=False))
                say(tid, f"sys_enter_{name}", told)
        else:
            bits[tid] = 32 if number == 11 else 64
        if result is not None:
            say(tid, "sys_exit", f"NR {number} = {result}")
            if name and words is not None:
                say(tid, f"sys_exit_{name}", f"0x{result:x}")
    return "".join(lines)


def session_dat() -> dw.Writer:
    """The session as trace.dat."""
    w = dw.Writer(list(pw.raw_formats().values()), {10: "sh", 11: "sh"})
    time = 1_000_000_000
    for tid, number, words, result in SESSION:
        time += 10_000
        if words is not None:
            w.add(0, time, tid, "sys_enter", id=number, args=(*words, 0, 0, 0, 0, 0, 0)[:6])
        if result is not None:
            w.add(0, time + 5000, tid, "sys_exit", id=number, ret=result)
    return w


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("form", [*HEADS, "trace.dat"])
def test_numbers_in_text_are_each_programs_own(tmp_path: Path, form: str, native: bool) -> None:
    file = tmp_path / "text"
    if form == "trace.dat":
        session_dat().save(file)
    else:
        file.write_text(session(form, native))
    trace = import_trace(file, tmp_path / "t.mmt")
    trace.validate()
    rows = trace.operations.collect().filter(~pl.col("kind").is_in([int(OpKind.THREAD_START)]))
    found = [
        (row["tid"], OpKind(row["kind"]), row["address"], row["length"])
        for row in rows.sort("begin_ns").to_dicts()
    ]
    assert found == [
        (10, OpKind.MMAP, 0x7F00_0000_0000, 0x1000),
        (10, OpKind.VFORK, None, None),
        (11, OpKind.EXEC, None, None),
        (11, OpKind.MMAP, 0xF7F0_0000, 0x2000),
        (11, OpKind.MUNMAP, 0xF7F0_0000, 0x2000),
        (11, OpKind.EXEC, None, None),
        (11, OpKind.MMAP, 0x7F11_0000_0000, 0x3000),
        (11, OpKind.MUNMAP, 0x7F11_0000_0000, 0x3000),
        (10, OpKind.MUNMAP, 0x7F00_0000_0000, 0x1000),
    ]
    compat = rows.filter((pl.col("quality") & int(Quality.COMPAT32)) != 0)
    # The call of exec belongs to the address space that it leaves.
    assert compat["kind"].to_list() == [OpKind.MMAP, OpKind.MUNMAP, OpKind.EXEC]
    assert trace.header.counters["compat32_operations"] == 3


LOW_FAULTS = """\
 prog   10/10    [000]     1.000001000: exceptions:page_fault_user: address=0x56501000 \
ip=0x56501000 error_code=0x14
 prog   10/10    [000]     1.000005000: exceptions:page_fault_user: address=0xf7f01000 \
ip=0x56501000 error_code=0x6
"""


def test_calls_that_text_lacks_are_told(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text(LOW_FAULTS)
    trace = import_trace(file, tmp_path / "t.mmt")
    assert trace.header.counters["compat32_operations"] == 2
    assert any("32-bit tasks" in text for text in trace.header.warnings)


@pytest.mark.parametrize(
    ("first", "second", "compat"),
    [
        ("0xf7f62000", "0xf7f58000", 2),
        ("0xf7f62000", "0x7f1234560000", 0),
    ],
)
def test_32_bit_programs_in_strace_are_counted(
    tmp_path: Path, first: str, second: str, compat: int
) -> None:
    file = tmp_path / "log"
    file.write_text(
        "".join(
            f"10 1700000000.00000{time} mmap(NULL, 8192, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, "
            f"0) = {address} <0.000001>\n"
            for time, address in ((1, first), (4, second))
        )
    )
    trace = import_trace(file, tmp_path / "t.mmt")
    assert trace.header.counters.get("compat32_operations", 0) == compat
    assert not any("32-bit" in text for text in trace.header.warnings)


def test_low_addresses_that_a_program_asks_for_say_nothing(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text(
        "10 1700000000.000001 mmap(0x10000, 8192, PROT_READ, MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS, "
        "-1, 0) = 0x10000 <0.000001>\n"
        "10 1700000000.000004 mmap(NULL, 8192, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS|MAP_32BIT, -1, "
        "0) = 0x41f62000 <0.000001>\n"
    )
    trace = import_trace(file, tmp_path / "t.mmt")
    assert "compat32_operations" not in trace.header.counters


# -- such programs, run here ----------------------------------------------------------------------


def build(folder: Path) -> Path:
    """A 32-bit program."""
    source, program = folder / "compat.c", folder / "compat"
    source.write_text(COMPAT)
    flags = ["-m32", "-nostdlib", "-static", "-O1", "-fno-pie", "-no-pie"]
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    built = subprocess.run(["gcc", *flags, "-o", program, source], capture_output=True, check=False)
    if built.returncode or subprocess.run([str(program)], check=False).returncode:
        pytest.skip("32-bit programs cannot be built or run here")
    return program


@pytest.mark.perf
def test_strace_of_a_32_bit_program(tmp_path: Path) -> None:
    program = build(tmp_path)
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "log"
    subprocess.run(["strace", "-f", "-ttt", "-T", "-o", log, program], check=True)
    trace = import_trace(log, tmp_path / "t.mmt")
    rows = trace.operations.collect()
    (mapped,) = rows.filter(rows["kind"] == int(OpKind.MMAP)).to_dicts()
    (unmapped,) = rows.filter(rows["kind"] == int(OpKind.MUNMAP)).to_dicts()
    assert (mapped["length"], mapped["flags"], mapped["fd"]) == (65536, 0x22, -1)
    assert mapped["address"] == unmapped["address"] >= 1 << 31
    assert trace.header.counters["compat32_operations"] >= 2


@pytest.mark.perf
@pytest.mark.parametrize("more", [[], ["syscalls:sys_enter_mmap", "syscalls:sys_exit_mmap"]])
def test_perf_script_says_what_its_perf_data_does(tmp_path: Path, more: list[str]) -> None:
    """Of a shell, a 32-bit program and one of 64 bits, by numbers or by numbers and names."""
    program = build(tmp_path)
    options, events = SETS["raw"]
    file = record(
        tmp_path, options, [*events, *more], ["--", "sh", "-c", f"{program}; /bin/true; {program}"]
    )
    words = [f"--show-{one}-events" for one in ("task", "mmap", "switch", "lost")]
    done = subprocess.run(
        ["perf", "script", "--ns", "-F", "+pid,+addr", *words, "-i", str(file)],
        capture_output=True,
        check=True,
    )
    (tmp_path / "text").write_bytes(done.stdout)
    columns = ["begin_ns", "tid", "kind", "address", "length", "duration_ns", "result", "quality"]
    calls = [OpKind.MMAP, OpKind.MUNMAP, OpKind.MPROTECT, OpKind.BRK, OpKind.EXEC, OpKind.VFORK]
    binary, text = (
        import_trace(path, tmp_path / f"{path.name}.mmt")
        .operations.collect()
        .filter(pl.col("kind").is_in([int(kind) for kind in calls]))
        .select(columns)
        .rows()
        for path in (file, tmp_path / "text")
    )
    assert text == binary
    assert len([row for row in text if row[7] & int(Quality.COMPAT32)]) >= 4
