"""Of what kind a mapped file is survives an import, though its name does not."""

from __future__ import annotations

from pathlib import Path

import perfwriter as pw
import pytest

from mmreplay.address_space.mappings import read_mappings
from mmreplay.address_space.plan import Trait
from mmreplay.address_space.planner import build_plan
from mmreplay.address_space.rules import load_rules
from mmreplay.importers.names import plain_name
from mmreplay.importers.registry import import_trace
from mmreplay.trace.anonymise import anonymise
from mmreplay.trace.store import Trace

A, PAGE = 0x7F0000000000, 4096


def load(w: pw.Writer, folder: Path) -> Trace:
    return import_trace(w.save(folder / "perf.data"), folder / "t.mmt", force=True)


def planned(trace: Trace) -> tuple[int, int]:
    """(traits of the first operation, files)."""
    plan = build_plan(trace, load_rules("linux-6.18")).plan
    return int(plan.traits[0]), plan.n_files


@pytest.mark.parametrize(
    ("name", "plain", "trait"),
    [
        (b"/dev/shm/someone.1", "/dev/shm", Trait.SHMEM),
        (b"/dev/shm/deep/down (deleted)", "/dev/shm", Trait.SHMEM),
        (b"/run/shm/someone", "/dev/shm", Trait.SHMEM),
        (b"/memfd:someone (deleted)", "/memfd", Trait.SHMEM),
        (b"/SYSV00000000 (deleted)", "/SYSV", Trait.SHMEM),
        (b"/dev/zero (deleted)", "/dev/zero", Trait.SHMEM),
        (b"/dev/dri/renderD128", "/dev", Trait.NO_MAP_PAGES),
        (b"/dev/nvidiactl", "/dev", Trait.NO_MAP_PAGES),
        (b"anon_inode:[io_uring]", "anon_inode:[io_uring]", Trait.NO_MAP_PAGES),
        (b"/home/someone/diary", "(file)", Trait.FILE),
    ],
)
def test_kinds_of_files(name: bytes, plain: str, trait: Trait, tmp_path: Path) -> None:
    assert plain_name(name.decode(), False) == plain
    w = pw.default()
    w.mmap2(0, 100, 100, A, 16 * PAGE, name)
    w.fault(pw.FAULT, 2000, 100, A, error=4)
    w.sample(pw.MINOR, 3000, 100, addr=A)
    trace = load(w, tmp_path)
    assert trace.vmas.collect()["name"].to_list() == [plain]
    found, _ = planned(trace)
    assert found & trait
    if trait != Trait.FILE:
        assert trait == Trait.NO_MAP_PAGES or not found & Trait.FILE
        anonymise(trace, tmp_path / "a.mmt")
        again, _ = planned(Trace.open(tmp_path / "a.mmt"))
        assert again == found


def test_files_that_a_build_id_stands_for(tmp_path: Path) -> None:
    """perf record --buildid-mmap has no inode of what has a build-id; a name tells its file."""
    w = pw.default()
    one, two = b"/usr/lib/libone.so.1", b"/usr/lib/two/libone.so.1"
    w.mmap2(0, 100, 100, A, 16 * PAGE, one, build_id=b"1" * 20)
    w.mmap2(0, 100, 100, A + 32 * PAGE, 16 * PAGE, one, build_id=b"1" * 20)
    w.mmap2(0, 100, 100, A + 64 * PAGE, 16 * PAGE, two, build_id=b"2" * 20)
    w.mmap2(0, 100, 100, A + 96 * PAGE, 16 * PAGE, b"/data", inode=1)
    w.mmap2(0, 100, 100, A + 128 * PAGE, 16 * PAGE, b"[heap]", inode=0, build_id=b"?")
    w.fault(pw.FAULT, 2000, 100, A, error=4)
    w.sample(pw.MINOR, 3000, 100, addr=A)
    trace = load(w, tmp_path)
    known = read_mappings(trace)
    assert [known.file[known.start == A + 32 * n * PAGE].tolist() for n in range(5)] == [
        [0],
        [0],
        [1],
        [2],
        [-1],
    ]
    found, files = planned(trace)
    assert found & Trait.FILE
    assert found & Trait.FAULT_AROUND
    assert files == 1
