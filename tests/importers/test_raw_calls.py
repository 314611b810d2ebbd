"""raw_syscalls on hand-made recordings: alone, of 32-bit tasks, beside the calls' own events."""

from __future__ import annotations

import struct
from pathlib import Path

import perfwriter as pw
from loading import load, ops

from mmreplay.schema import OpKind

RAW_IN, RAW_OUT = 1, 2


def raw_recorder(*more: int) -> pw.Writer:
    """Faults, raw_syscalls, and the events of further tracepoints."""
    formats = pw.FORMATS | pw.raw_formats()
    w = pw.Writer([pw.Event(config) for config in (10, 60, 61, *more)], formats)
    w.features[6] = struct.pack("<I", 8) + b"x86_64\0\0"
    return w


def test_raw_calls_pair_as_named_ones(tmp_path: Path) -> None:
    w = raw_recorder()
    w.fault(pw.FAULT, 1000, 100, 0x7F0000001234)
    w.raw_call(RAW_IN, 10_000, 100, 9, 0, 8192, 3, 0x22, 0xFFFF_FFFF, 4096)
    w.raw_call(RAW_OUT, 15_000, 100, 9, 0x7F0000005000)
    w.raw_call(RAW_IN, 20_000, 100, 0, 1, 2, 3)  # read: no operation
    w.raw_call(RAW_OUT, 21_000, 100, 0, 3)
    w.raw_call(RAW_IN, 30_000, 100, 11, 0x7F0000005000, 8192)
    w.raw_call(RAW_OUT, 32_000, 100, 11, -22)
    mapped, unmapped = ops(load(w, tmp_path), OpKind.MMAP, OpKind.MUNMAP)
    assert (mapped["address"], mapped["length"], mapped["duration_ns"]) == (
        0x7F0000005000,
        8192,
        5000,
    )
    assert (mapped["fd"], mapped["file_offset"], mapped["prot"]) == (-1, 4096, 3)
    assert (unmapped["errno"], unmapped["duration_ns"]) == (22, 2000)


def test_calls_of_32_bit_tasks_have_their_own_numbers(tmp_path: Path) -> None:
    """What a task is: its execve's return says it, else its addresses."""
    w = raw_recorder()
    w.mmap2(0, 100, 100, 0x7F00_0000_0000, 8192, b"/usr/lib/libc.so")
    w.mmap2(0, 300, 300, 0x0804_8000, 8192, b"/opt/old")
    w.raw_call(RAW_IN, 10_000, 100, 59, 0x1000, 0)
    w.comm(11_000, 100, 100, b"old", exec_=True)
    w.raw_call(RAW_OUT, 12_000, 100, 11, 0)
    for tid, time in ((100, 20_000), (300, 30_000)):
        w.sample(
            RAW_IN,
            time,
            tid,
            b"\0" * 8 + struct.pack("<7Q", 192, 0, 8192, 3, 0x22, 0xFFFF_FFFF, 2),
            pid=tid,
        )
        w.sample(
            RAW_OUT, time + 5000, tid, b"\0" * 8 + struct.pack("<2Q", 192, 0xF700_0000), pid=tid
        )
    w.raw_call(RAW_IN, 40_000, 100, 11, 0x1000, 0)  # and back to 64 bits
    w.comm(41_000, 100, 100, b"new", exec_=True)
    w.raw_call(RAW_OUT, 42_000, 100, 59, 0)
    w.raw_call(RAW_IN, 50_000, 100, 9, 0, 4096, 3, 0x22, 0xFFFF_FFFF, 0)
    w.raw_call(RAW_OUT, 52_000, 100, 9, 0x7F0000005000)
    trace = load(w, tmp_path)
    first, second, last = ops(trace, OpKind.MMAP)
    for one in (first, second):
        assert (one["address"], one["length"], one["fd"]) == (0xF700_0000, 8192, -1)
        assert one["file_offset"] == 2 * 4096
    assert (last["address"], last["length"]) == (0x7F0000005000, 4096)
    assert [op["duration_ns"] for op in ops(trace, OpKind.EXEC)] == [2000, 2000]
    assert trace.header.capabilities.compat_visible
    assert not any("raw_syscalls" in text for text in trace.header.warnings)


def test_raw_calls_beside_named_ones_tell_the_rest(tmp_path: Path) -> None:
    """A call that both tell is one operation; those of 32-bit tasks only raw_syscalls tells."""
    w = raw_recorder(22, 23)
    munmap_in, munmap_out = 3, 4
    w.fault(pw.FAULT, 1000, 100, 0x7F0000001234)
    w.fault(pw.FAULT, 2000, 300, 0x0804_8000, pid=300)
    w.call(munmap_in, 10_000, 100, 0x7F0000001000, 4096)
    w.raw_call(RAW_IN, 10_001, 100, 11, 0x7F0000001000, 4096)
    w.call(munmap_out, 12_000, 100, 0)
    w.raw_call(RAW_OUT, 12_001, 100, 11, 0)
    w.raw_call(RAW_IN, 20_000, 100, 10, 0x7F0000002000, 4096, 1)
    w.raw_call(RAW_OUT, 21_000, 100, 10, 0)
    raw = b"\0" * 8 + struct.pack("<7Q", 91, 0x0804_8000, 4096, 0, 0, 0, 0)
    w.sample(RAW_IN, 30_000, 300, raw, pid=300)
    w.sample(RAW_OUT, 31_000, 300, b"\0" * 8 + struct.pack("<2Q", 91, 0), pid=300)
    trace = load(w, tmp_path)
    found = [(op["tid"], op["duration_ns"]) for op in ops(trace, OpKind.MUNMAP)]
    assert found == [(100, 2000), (300, 1000)]
    (protected,) = ops(trace, OpKind.MPROTECT)
    assert (protected["address"], protected["duration_ns"]) == (0x7F0000002000, 1000)
