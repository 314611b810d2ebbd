"""Damaged files end in a UserError or in a valid trace: never in a crash, never in a hang.

The readers run in a process of their own with NUMBA_BOUNDSCHECK=1, so a read outside of
the file would be an IndexError there.  MMREPLAY_FUZZ_EXAMPLES gives them more to do.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import perfwriter as pw

_PROGRAM = """
import random
import shutil
import sys
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmreplay.errors import UserError
from mmreplay.importers.registry import import_trace

folder = Path(sys.argv[1])
examples = int(sys.argv[2])
#: What is damaged, and what is imported then.
targets = [(path, path) for path in sorted(folder.glob("good-*")) if path.is_file()]
targets += [(path, path.parent) for path in sorted(folder.glob("good-*/data*"))]
good = {path: path.read_bytes() for path, _ in targets}
outcomes = {path.name: {"trace": 0, "refused": 0} for path, _ in targets}
words = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([b"\\xff" * 8, b"\\xff\\xff\\xff\\x7f", b"\\0" * 8, b"\\xff\\xff", b"\\0\\0"]),
)
changes = st.lists(st.tuples(st.integers(0, 1 << 20), words), min_size=1, max_size=6)


@settings(
    max_examples=examples,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    st.sampled_from(targets), changes, st.one_of(st.none(), st.integers(0, 1 << 20)), st.booleans()
)
def damage(target, where, cut, salvage):
    path, recording = target
    data = bytearray(good[path])
    for at, word in where:
        at %= max(1, len(data) - 8)
        data[at : at + len(word)] = word
    path.write_bytes(bytes(data[: None if cut is None else cut % len(data)]))
    try:
        trace = import_trace(
            recording,
            folder / "bad.mmt",
            force=True,
            formats=folder / "formats",
            salvage=salvage,
        )
    except UserError as error:
        assert "\\n" not in error.line()
        outcomes[path.name]["refused"] += 1
        return
    finally:
        path.write_bytes(good[path])
    trace.validate()
    outcomes[path.name]["trace"] += 1


damage()
print(outcomes)
for counts in outcomes.values():
    assert counts["trace"] and counts["refused"], outcomes
"""


def recording(order: str = "<") -> pw.Writer:
    """A little of everything that a reader looks into."""
    w = pw.default(
        order=order,
        formats=pw.FORMATS | pw.raw_formats(),
        features={4: b"\x08\0\0\x006.1.187\0", 13: b"\0" * 24, 29: b"\1" * 24},
    )
    chain = len(w.events)
    w.events += [pw.Event(10, sample_type=pw.TP_TYPE | pw.CALLCHAIN | pw.READ, ids=(7,))]
    w.events += [pw.Event(60, ids=(8,)), pw.Event(61, ids=(9,))]
    group: dict[str, Any] = {"type": 1, "sample_type": pw.SW_TYPE | pw.READ, "read_format": 4 | 8}
    leader, member, twice = range(len(w.events), len(w.events) + 3)
    w.events += [pw.Event(2, ids=(10,), **group), pw.Event(5, ids=(11,), period=0, **group)]
    w.events += [pw.Event(5, 1, pw.SW_TYPE, ids=(12,))]
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
        w.fault(chain, time + 2100, 100, 0x9000 + 4096 * k, frames=[-128 & 2**64 - 1, 2**63, k])
        w.sample(pw.MINOR, time + 2200, 100, addr=0x9000 + 4096 * k)
        w.raw_call(chain + 1, time + 2300, 100, 10, 0x5000, 4096, 1)
        w.raw_call(chain + 2, time + 2400, 100, 10, 0)
        w.sample(leader, time + 2500, 100, addr=0x5000, counts={leader: k, member: 2 * k})
        w.sample(pw.MINOR, time + 2600, 100, addr=0x5000)
        w.sample(twice, time + 2600, 100, addr=0x5000)
        w.fork(time + 3000, 100, 100, 200 + k, 100)
        w.exit(time + 4000, 100, 200 + k)
        w.lost(time + 5000, 3)
        w.round()
    return w


def environment(**more: str) -> dict[str, str]:
    source = Path(__file__).resolve().parents[2] / "replay"
    return os.environ | {"PYTHONPATH": str(source)} | more


def test_damaged_files(tmp_path: Path) -> None:
    w = recording()
    w.save(tmp_path / "formats")
    w.save(tmp_path / "good-file")
    w.packed(piece=700).save(tmp_path / "good-packed")
    w.packed(83).save(tmp_path / "good-packed2")
    (tmp_path / "good-pipe").write_bytes(w.pipe())
    (tmp_path / "good-packed-pipe").write_bytes(w.packed().pipe())
    recording(">").save(tmp_path / "good-big")
    half = len(w.records) // 2
    first = dataclasses.replace(w, records=w.records[:2])
    first.directory(tmp_path / "good-directory", [w.records[2:half], w.records[half:]])
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _PROGRAM,
            str(tmp_path),
            os.environ.get("MMREPLAY_FUZZ_EXAMPLES", "500"),
        ],
        env=environment(NUMBA_BOUNDSCHECK="1"),
        capture_output=True,
        text=True,
        timeout=None if "MMREPLAY_FUZZ_EXAMPLES" in os.environ else 900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


_CLAIMS = """
import resource
import sys
from pathlib import Path

from mmreplay.errors import UserError
from mmreplay.importers.registry import import_trace

folder = Path(sys.argv[1])
import_trace(folder / "warm", folder / "warm.mmt")
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (600 << 20), -1))
resource.setrlimit(resource.RLIMIT_CPU, (120, -1))
for path in sorted(folder.glob("claim-*")):
    try:
        import_trace(path, folder / "t.mmt", force=True)
    except UserError as error:
        print(path.name, error.line())
    else:
        raise AssertionError(path.name)
"""


def test_small_files_that_claim_much_are_refused_at_once(tmp_path: Path) -> None:
    """Within little more memory than a small import takes."""
    w = recording()
    w.save(tmp_path / "warm")
    data = w.build()
    much = struct.pack("<Q", 1 << 60)

    def claim(name: str, at: int, word: bytes = much, base: bytes = data) -> None:
        changed = base[:at] + word + base[at + len(word) :]
        (tmp_path / f"claim-{name}").write_bytes(changed)

    claim("attrs", 32)  # size of the section of attributes
    claim("attr-size", 16)
    claim("nothing-but-a-head", 48, base=data[:104])  # size of the section of events
    claim("a-hundred-bytes", 48, base=data[:100])
    place = struct.unpack_from("<Q", data, 24)[0]
    claim("ids", place + 136 + 8)
    table = sum(struct.unpack_from("<QQ", data, 40))
    claim("feature", table + 8)
    tracing = struct.unpack_from("<Q", data, table)[0]
    head = tracing + len(b"\x17\x08\x44tracing0.6\0") + 6
    claim("header-page", head + len("header_page\0"))
    # A piece of zstd whose frame claims a window of 2^60 bytes.
    packed = w.packed().build()
    frame = packed.index(b"\x28\xb5\x2f\xfd")
    claim("zstd-window", frame + 4, b"\x00\xff", base=packed)
    (tmp_path / "claim-pipe").write_bytes(
        w.pipe()[:16] + struct.pack("<IHHI", 66, 0, 12, 2**32 - 1)
    )
    done = subprocess.run(
        [sys.executable, "-c", _CLAIMS, str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == len(list(tmp_path.glob("claim-*")))
