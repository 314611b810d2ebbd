"""Several files: parts of one recording are merged, others are refused, what is odd is noted."""

from __future__ import annotations

import dataclasses
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import perfwriter as pw
import polars as pl
import pytest

from mmreplay.errors import UserError
from mmreplay.importers.registry import import_trace
from mmreplay.schema import OpKind
from mmreplay.trace.store import Trace

FAULTS = ["exceptions:page_fault_user", "minor-faults"]
MAPS = [f"syscalls:sys_{side}_{name}" for name in ("mmap", "munmap") for side in ("enter", "exit")]
WORK = """
import mmap, os, sys, time
if len(sys.argv) > 2:  # begins when the other does
    open(sys.argv[2], "w").close()
    while not os.path.exists(sys.argv[3]):
        time.sleep(0.01)
end = time.time() + float(sys.argv[1])
while time.time() < end:
    area = mmap.mmap(-1, 16 * 4096)
    for page in range(0, 16 * 4096, 4096):
        area[page] = 1
    area.close()
    time.sleep(0.002)
"""
PERF = ["perf", "record", "-q", "-c", "1", "-m", "256", "-d", "-k", "CLOCK_MONOTONIC"]
ODD = ("recording", "another", "counts twice", "in common", "nothing was recorded", "hosts")


def program(seconds: float, *files: Path) -> list[str]:
    """``files``: what it makes when it is there, and what the other makes that it waits for."""
    return [sys.executable, "-c", WORK, str(seconds), *map(str, files)]


def perf(output: Path, events: list[str], *more: str) -> list[str]:
    return [*PERF, *(word for event in events for word in ("-e", event)), "-o", str(output), *more]


def odd(trace: Trace) -> list[str]:
    """Warnings about the files as parts of one recording."""
    trace.validate()
    return [text for text in trace.header.warnings if any(word in text for word in ODD)]


# -- recorded here ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of one machine: sessions beside and after each other."""
    folder = tmp_path_factory.mktemp("sessions")
    if shutil.which("perf") is None:
        pytest.skip("perf is not installed")
    done = subprocess.run(
        perf(folder / "first", FAULTS + MAPS, "--", *program(0.3)), capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"perf cannot record here: {done.stderr.strip()[:200]}")
    subprocess.run(perf(folder / "second", FAULTS + MAPS, "--", *program(0.3)), check=True)
    inner = perf(folder / "maps", MAPS, "--", *program(0.3))
    subprocess.run(perf(folder / "faults", FAULTS, "--", *inner), check=True)
    own = perf(folder / "own", FAULTS, "--", *program(0.3))
    subprocess.run(perf(folder / "whole", FAULTS + MAPS, "-a", "--", *own), check=True)
    subprocess.run(
        perf(folder / "dump", FAULTS + MAPS, "--switch-output=1M", "--", *program(3.0)), check=True
    )
    here = [folder / "here-0", folder / "here-1"]
    both = [
        subprocess.Popen(
            perf(folder / f"side-{k}", FAULTS, "--", *program(0.5, *here[:: 1 - 2 * k]))
        )
        for k in (0, 1)
    ]
    assert [one.wait(300) for one in both] == [0, 0]
    running = subprocess.Popen(program(3600))
    try:
        whom = ("-p", str(running.pid), "--", "sleep", "0.3")
        for name in ("early", "late"):
            subprocess.run(perf(folder / name, FAULTS + MAPS, *whom), check=True)
    finally:
        running.kill()
        running.wait()
    return folder


def merged(folder: Path, *names: str) -> Trace:
    return import_trace([folder / name for name in names], folder / "t.mmt", force=True)


def counted(folder: Path, *names: str) -> dict[str, int]:
    """Samples by event, over the files one by one."""
    found: dict[str, int] = {}
    for name in names:
        try:
            header = import_trace(folder / name, folder / "one.mmt", force=True).header
        except UserError as error:
            if "holds no events" in error.line():  # the last dump may be empty
                continue
            raise
        for event in header.events:
            found[event.name] = found.get(event.name, 0) + event.samples
    return found


@pytest.mark.perf
def test_two_runs_are_not_one_recording(recorded: Path) -> None:
    for names in (("first", "second"), ("second", "first")):
        with pytest.raises(UserError, match="recordings of two times") as caught:
            merged(recorded, *names)
        assert "second: begins " in caught.value.line()
        assert "import each by itself" in caught.value.line()
    assert not (recorded / "t.mmt").exists()


@pytest.mark.perf
def test_sessions_of_one_process_for_different_events_are_merged(recorded: Path) -> None:
    trace = merged(recorded, "faults", "maps")
    assert odd(trace) == []
    assert {event.name: event.samples for event in trace.header.events} == counted(
        recorded, "faults", "maps"
    )
    kinds = trace.operations.collect().group_by("pid").agg(pl.col("kind").unique())
    wanted = {int(OpKind.FAULT_USER), int(OpKind.MMAP), int(OpKind.MUNMAP)}
    assert any(wanted <= set(found) for found in kinds["kind"].to_list())


@pytest.mark.perf
def test_one_event_in_two_sessions_is_noted(recorded: Path) -> None:
    (note,) = odd(merged(recorded, "whole", "own"))
    assert "have exceptions:page_fault_user, minor-faults of the same threads" in note


@pytest.mark.perf
def test_dumps_of_one_session_are_merged(recorded: Path) -> None:
    dumps = sorted(path.name for path in recorded.glob("dump.*"))
    assert len(dumps) >= 2
    trace = merged(recorded, *dumps)
    assert not [text for text in odd(trace) if "nothing was recorded" not in text]
    assert sum(event.samples for event in trace.header.events) == sum(
        counted(recorded, *dumps).values()
    )


@pytest.mark.perf
def test_two_commands_side_by_side_are_noted(recorded: Path) -> None:
    (note,) = odd(merged(recorded, "side-0", "side-1"))
    assert "no process in common" in note


@pytest.mark.perf
def test_one_process_at_two_times_is_noted(recorded: Path) -> None:
    (note,) = odd(merged(recorded, "early", "late"))
    assert "nothing was recorded for" in note
    with pytest.raises(UserError, match="recordings of two times"):
        merged(recorded, "early", "first")


@pytest.mark.perf
def test_a_file_and_its_copy_are_not_two(recorded: Path) -> None:
    shutil.copy(recorded / "first", recorded / "copy")
    with pytest.raises(UserError, match="is a copy of"):
        merged(recorded, "first", "copy")
    with pytest.raises(UserError, match="given twice"):
        merged(recorded, "first", "first")


# -- written by hand: other machines ------------------------------------------------------------


def text(value: bytes) -> bytes:
    padded = value + bytes(64 - len(value) % 64)
    return struct.pack("<I", len(padded)) + padded


def one(name: bytes = b"server", ids: int = 0) -> pw.Writer:
    """A process of two threads; ``ids`` is added to the ids of the events."""
    w = pw.default()
    for event in w.events:
        event.ids = (event.ids[0] + ids,)
    w.comm(0, 100, 100, name)
    w.comm(0, 100, 101, name)
    for k in range(20):
        w.fault(pw.FAULT, 10_000 * (k + 1), 100 + k % 2, 0x7F00_0000_0000 + 4096 * k)
    w.features |= {3: text(b"host"), 4: text(b"6.1.0"), 6: text(b"x86_64"), 10: bytes(8)}
    return w


def clock(zero_ns: int) -> bytes:
    """CLOCK_DATA of a machine that started at this time of the wall clock."""
    return struct.pack("<IIQQ", 1, 1, zero_ns + 5000, 5000)


def together(folder: Path, *writers: pw.Writer) -> Trace:
    paths = [writer.save(folder / f"{number}.data") for number, writer in enumerate(writers)]
    return import_trace(paths, folder / "t.mmt", force=True)


def parts() -> tuple[pw.Writer, pw.Writer]:
    """Two files that are of one session."""
    whole = one()
    half = len(whole.records) // 2
    return (
        dataclasses.replace(whole, records=whole.records[:half]),
        dataclasses.replace(whole, records=whole.records[half:], features=dict(whole.features)),
    )


def test_parts_of_one_session_are_merged(tmp_path: Path) -> None:
    trace = together(tmp_path, *parts())
    assert odd(trace) == []
    assert trace.rows("operations") == 20


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({4: text(b"6.1.1")}, "another kernel"),
        ({6: text(b"aarch64")}, "architecture differs"),
        ({29: clock(10**18 + 60 * 10**9)}, "another start of its machine"),
    ],
)
def test_files_of_two_machines_are_refused(
    tmp_path: Path, change: dict[int, bytes], problem: str
) -> None:
    first, other = parts()
    first.features[29] = other.features[29] = clock(10**18)
    other.features |= change
    with pytest.raises(UserError, match=problem) as caught:
        together(tmp_path, first, other)
    assert "import each by itself" in caught.value.line()
    assert not (tmp_path / "t.mmt").exists()


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({3: text(b"other-host")}, "different hosts"),
        ({10: struct.pack("<Q", 77)}, "sizes of memory"),
        ({29: clock(10**18 + 10**9)}, "1.0 s apart"),
    ],
)
def test_what_seldom_is_is_noted(tmp_path: Path, change: dict[int, bytes], note: str) -> None:
    first, other = parts()
    first.features |= {10: struct.pack("<Q", 78), 29: clock(10**18)}
    other.features |= {10: struct.pack("<Q", 78), 29: clock(10**18)} | change
    trace = together(tmp_path, first, other)
    assert [text for text in trace.header.warnings if note in text]
    assert "host" not in "".join(trace.header.warnings).replace("different hosts", "")


def test_threads_of_other_names_are_of_another_machine(tmp_path: Path) -> None:
    assert odd(together(tmp_path, one(), one(ids=1)))[0].count("counts twice")
    with pytest.raises(UserError, match=r"gives thread 100 another name than .*0\.data"):
        together(tmp_path, one(), one(b"database", ids=1))


def test_ids_are_of_one_session_or_of_two(tmp_path: Path) -> None:
    other = one(ids=1)
    other.events[3].ids = (other.events[3].ids[0] - 1,)  # which the first one has
    with pytest.raises(UserError, match=r"event ids of .* which a machine gives once"):
        together(tmp_path, one(), other)


def test_a_tracepoint_has_one_number_on_a_machine(tmp_path: Path) -> None:
    other = one(ids=1)
    system, told = other.formats.pop(10)
    other.formats[9] = (system, told.replace("ID: 10", "ID: 9"))
    other.events[0].config = 9
    with pytest.raises(UserError, match=r"another kernel .*page_fault_user has another number"):
        together(tmp_path, one(), other)
