"""The shipped recording holds no host data, and the scrubber takes it out of any file."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import struct
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from mmreplay.resources import content_root, datasets_dir

RECORDING = datasets_dir("traces") / "node-minify-workers" / "perf.data"
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "scrub_perf_data.py"
#: perf header features (tools/perf/util/header.h): host name, build-ids, wall clock.
HOST_FEATURES = {2, 3, 29}


@pytest.fixture(scope="module")
def scrub() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scrub_perf_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def features(image: bytes) -> dict[int, bytes]:
    bitmap = int.from_bytes(image[72:104], "little")
    offset, size = struct.unpack_from("<QQ", image, 40)
    out = {}
    for i, bit in enumerate(b for b in range(256) if bitmap >> b & 1):
        begin, length = struct.unpack_from("<QQ", image, offset + size + 16 * i)
        out[bit] = image[begin : begin + length]
    return out


def test_the_recording_holds_no_host_data() -> None:
    image = RECORDING.read_bytes()
    found = features(image)
    assert HOST_FEATURES & set(found) == set()
    release = found[4][4:].rstrip(b"\0")
    assert re.fullmatch(rb"\d+\.\d+\.\d+", release)
    for path in (b"/root/", b"/home/", b"/tmp/", b"/var/", b"minify.mjs"):
        assert path not in image


def test_scrubbing_again_changes_nothing(scrub: ModuleType) -> None:
    image = RECORDING.read_bytes()
    assert scrub.Scrubber(image).run() == image


def test_the_scrubber_rewrites_paths_names_and_ids_in_place(scrub: ModuleType) -> None:
    """One COMM and one MMAP2 record with host data; every length and time stays."""
    comm = struct.pack("<IHHII", 3, 0, 40, 7, 7) + b"secret-service\0\0" + bytes(8)
    name = b"/home/somebody/app.so".ljust(24, b"\0")
    mapped = struct.pack("<IHH", 10, 0, 72 + 24) + struct.pack(
        "<IIQQQIIQQII", 7, 7, 4096, 4096, 0, 253, 3, 987654, 5, 1, 2
    )
    records = comm + mapped + name
    head = b"PERFILE2" + struct.pack("<QQ", 104, 144) + struct.pack("<QQ", 104, 0)
    head += struct.pack("<QQ", 104, len(records)) + struct.pack("<QQ", 0, 0) + bytes(32)
    image = head + records
    result = scrub.Scrubber(image).run()
    assert len(result) == len(image)
    assert b"secret" not in result
    assert b"somebody" not in result
    assert struct.pack("<Q", 987654) not in result
    assert result[:104] == image[:104]
    assert result[104:120] == image[104:120]


def test_the_manifest_names_every_file_and_its_hash() -> None:
    root = content_root() / "datasets"
    entries = tomllib.loads((root / "MANIFEST.toml").read_text())["file"]
    listed = {entry["path"]: entry["sha256"] for entry in entries}
    there = {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and path.name not in ("MANIFEST.toml", "README.md", ".gitkeep")
    }
    assert there == set(listed)
    for path, digest in listed.items():
        assert hashlib.sha256((root / path).read_bytes()).hexdigest() == digest, path
