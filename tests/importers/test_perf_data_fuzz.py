"""Damaged files end in a UserError or in a valid trace: never in a crash, never in a hang.

The scanner runs in a process of its own with NUMBA_BOUNDSCHECK=1, so a read outside of
the file would be an IndexError there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import perfwriter as pw

_PROGRAM = """
import sys
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmreplay.errors import UserError
from mmreplay.importers.registry import import_trace

folder = Path(sys.argv[1])
good = (folder / "good").read_bytes()
examples = int(sys.argv[2])
outcomes = {"trace": 0, "refused": 0}
words = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([b"\\xff" * 8, b"\\xff\\xff\\xff\\x7f", b"\\0" * 8, b"\\xff\\xff", b"\\0\\0"]),
)
changes = st.lists(
    st.tuples(st.integers(0, len(good) - 8), words), min_size=1, max_size=6
)


@settings(
    max_examples=examples,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(changes, st.one_of(st.none(), st.integers(0, len(good))))
def damage(where, cut):
    data = bytearray(good)
    for at, word in where:
        data[at : at + len(word)] = word
    file = folder / "bad"
    file.write_bytes(bytes(data[:cut]))
    try:
        trace = import_trace(file, folder / "bad.mmt", force=True)
    except UserError as error:
        assert "\\n" not in error.line()
        outcomes["refused"] += 1
        return
    trace.validate()
    outcomes["trace"] += 1


damage()
print(outcomes)
assert outcomes["trace"] and outcomes["refused"]
"""


def test_damaged_files(tmp_path: Path) -> None:
    w = pw.default(features={4: b"\x08\0\0\x006.1.187\0", 13: b"\0" * 24, 29: b"\1" * 24})
    w.comm(0, 100, 100, b"program")
    w.mmap2(0, 100, 100, 0x400000, 8192, b"/usr/lib/libx.so")
    for k in range(6):
        time = 10_000 * (k + 1)
        w.fault(pw.FAULT, time, 100, 0x5000 + 4096 * k)
        w.sample(pw.MINOR, time + 900, 100, addr=0x5000 + 4096 * k)
        w.call(pw.MMAP_IN, time + 1000, 100, 0, 8192, 3, 0x22, -1, 0)
        w.switch(time + 1100, 100, 100, out=True)
        w.switch(time + 1200, 100, 100, out=False)
        w.call(pw.MMAP_OUT, time + 2000, 100, 0x7F0000000000)
        w.fork(time + 3000, 100, 100, 200 + k, 100)
        w.exit(time + 4000, 100, 200 + k)
        w.lost(time + 5000, 3)
        w.round()
    w.save(tmp_path / "good")
    environment = dict(os.environ)
    environment["NUMBA_BOUNDSCHECK"] = "1"
    source = Path(__file__).resolve().parents[2] / "replay"
    environment["PYTHONPATH"] = str(source)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path), "250"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
