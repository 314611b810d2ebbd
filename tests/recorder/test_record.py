"""``mmreplay record`` with the recorders of this machine.

Skipped, with the reason, where perf, its tracepoints or the permission are missing.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmreplay.cli.main import main
from mmreplay.errors import UserError
from mmreplay.importers.registry import import_trace
from mmreplay.predict.api import predict
from mmreplay.recorder import cost, here
from mmreplay.recorder.api import Wanted, describe, record, size_limit, size_of
from mmreplay.recorder.check import check

pytestmark = pytest.mark.perf
ROOT = Path(__file__).parents[2]
PROGRAM = """
import mmap, sys, threading, time
def work():
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        area = mmap.mmap(-1, 16 * 4096)
        for page in range(0, 16 * 4096, 4096):
            area[page] = 1
        area.close()
        time.sleep(0.002)
threads = [threading.Thread(target=work) for _ in range(2)]
[t.start() for t in threads]
[t.join() for t in threads]
print("done")
"""


@pytest.fixture(scope="module", autouse=True)
def _perf_records_here() -> None:
    has = here.tracepoints()
    if has is None:
        pytest.skip("the tracepoints cannot be read")
    wanted = Wanted(program=("true",))
    reason = here._why_not_perf(has, describe(wanted, has, here_=True))
    if reason:
        pytest.skip(f"perf cannot record here: {reason}")


def program(seconds: float) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(seconds)]


@pytest.fixture
def running() -> Iterator[int]:
    """The id of a process that maps and faults until the test has ended."""
    child = subprocess.Popen(program(3600), stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    yield child.pid
    child.kill()
    child.wait()


def start(*words: str) -> subprocess.Popen[str]:
    """``mmreplay record`` in a process of its own, which can be signalled."""
    return subprocess.Popen(
        [sys.executable, "-m", "mmreplay", "record", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "replay")},
    )


def wait_until(what: str, so: Callable[[], bool]) -> None:
    """Until it is so: a busy machine takes seconds to open perf's events."""
    end = time.monotonic() + 120
    while not so():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def size_of_all(folder: Path) -> int:
    """Bytes that perf has written."""
    return sum(one.stat().st_size for one in folder.glob("app.data*") if one.is_file())


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            return
    raise AssertionError(f"it never said {word}")


def test_a_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "app.data"
    main(["record", "--dependencies", "--format", "json", "-o", str(file), "--", *program(0.3)])
    told = capfd.readouterr()
    found = json.loads(told.out)  # the program's own output went to stderr
    assert "done" in told.err
    assert found["tool"] == "perf"
    assert found["files"] == [str(file)]
    assert found["events"] > 500
    assert found["status"] == 0
    trace = import_trace(file, tmp_path / "app.mmt")
    assert sum(event.samples for event in trace.header.events) == found["events"]
    has = trace.header.capabilities
    assert (has.fault_duration, has.syscall_durations, has.think) == ("measured", True, "oncpu")
    assert has.wakeups
    assert has.data_mmaps
    assert trace.header.clock.name == "monotonic"
    assert trace.header.target == "command"


def test_light_has_no_durations(tmp_path: Path) -> None:
    file = tmp_path / "light.data"
    record(Wanted(program=tuple(program(0.2)), light=True), file)
    trace = import_trace(file, tmp_path / "light.mmt")
    has = trace.header.capabilities
    assert has.fault_duration == "upper"
    assert has.syscall_durations
    assert not has.data_mmaps
    with pytest.raises(UserError, match="could not be split"):  # as the option's help says
        predict(trace, to_kernel="linux-6.18", from_kernel="linux-6.1", cores=(2,))


def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "app.data"
    file.write_text("precious")
    with pytest.raises(UserError, match="exists; add --force"):
        record(Wanted(program=("true",)), file)
    assert file.read_text() == "precious"
    record(Wanted(program=("true",)), file, force=True)
    assert check(file).events > 10


def test_a_missing_directory_is_named_before_anything_runs(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with pytest.raises(UserError, match="nowhere: there is no such directory; make it first"):
        record(Wanted(program=("touch", str(ran))), tmp_path / "nowhere" / "app.data")
    assert not ran.exists()
    assert not (tmp_path / "nowhere").exists()


def test_a_program_that_cannot_be_run_is_named_before_perf_is(tmp_path: Path) -> None:
    file, text = tmp_path / "app.data", tmp_path / "notes.txt"
    text.write_text("no program")
    for name, why in (("/nowhere/app", "there is no such program; give"), (text, "chmod")):
        with pytest.raises(UserError, match=f"{name}: .*{why}"):
            record(Wanted(program=(str(name),)), file)
    assert not file.exists()


def test_a_recording_does_not_take_a_traces_name(tmp_path: Path) -> None:
    file = tmp_path / "my app.mmt"
    told = r"record to my app\.data, then mmreplay import 'my app\.data' -o 'my app\.mmt'"
    with pytest.raises(UserError, match=told):
        record(Wanted(program=("true",)), file)
    assert not file.exists()
    with pytest.raises(UserError, match=r"into a pipe .* --print -o - "):
        record(Wanted(program=("true",)), Path("-"))


def test_the_programs_own_status_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my app.data"
    main(["record", "-o", str(file), "--", "sh", "-c", "exit 3"])
    told = capfd.readouterr().err
    assert "the program ended with status 3" in told
    (line,) = (line for line in told.splitlines() if "next: " in line)
    _, words = line.split("next: ")
    trace = str(tmp_path / "my app.mmt")
    assert shlex.split(words) == ["mmreplay", "import", str(file), "-o", trace]
    main(["record", "--force", "-o", str(file), "--", "sh", "-c", "kill -SEGV $$"])
    assert "the program was ended by signal 11 (Seg" in capfd.readouterr().err


def test_attached_for_a_while(
    tmp_path: Path, running: int, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "app.data"
    words = ["-p", str(running), "--duration", "0.5", "--format", "json", "-o", str(file)]
    for _ in range(3):
        main(["record", "--force", *words])
        told = capfd.readouterr()
        found = json.loads(told.out)
        guess = found["estimate"]
        recorded = found["events"] / 0.5
        if guess["events_per_s"] / 4 < recorded < guess["events_per_s"] * 4:
            break  # else the process had the CPUs in only one of the two
    assert guess["faults_per_s"] > 100
    assert 0 < guess["added_cpu_ratio"] < 5
    # What takes time is said before it does, and perf ends without waiting for BPF programs.
    said = [told.err.find(word) for word in ("counting events for 2 s", "events/s", "for 0.5 s")]
    assert -1 not in said
    assert said == sorted(said)
    assert "--no-bpf-event" in found["command"]
    trace = import_trace(file, tmp_path / "app.mmt")
    assert trace.header.target == "pids"
    # What was counted beforehand is what is recorded.
    assert guess["events_per_s"] / 4 < recorded < guess["events_per_s"] * 4
    folder = Path(found["snapshot"])
    assert folder == tmp_path / "app.data.snapshot"
    maps = (folder / f"{running}.maps").read_text()
    assert "[stack]" in maps
    assert "Anonymous:" in (folder / f"{running}.smaps").read_text()
    taken = json.loads((folder / "taken.json").read_text())
    assert taken["pids"] == [running]
    assert 0 <= trace.header.t0_ns - taken["ns"] < 60e9  # just before, on the same clock


def test_ctrl_c_ends_the_recording_cleanly(tmp_path: Path, running: int) -> None:
    file = tmp_path / "app.data"
    process = start("-p", str(running), "--no-estimate", "-o", str(file))
    wait_for(process, "Ctrl-C ends it")
    # More than what perf tells of the process itself: it records.
    wait_until("perf records nothing", lambda: size_of_all(tmp_path) > 1 << 18)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert check(file).events > 50
    assert "next: mmreplay import" in told
    assert Path(f"/proc/{running}").exists()  # what was attached to goes on
    import_trace(file, tmp_path / "app.mmt").validate()


def test_a_command_is_ended_after_its_duration(tmp_path: Path) -> None:
    found = record(Wanted(program=tuple(program(60)), duration_s=2.0), tmp_path / "app.data")
    assert found.ended.stopped_by == "duration"
    assert found.content is not None
    assert found.content.events > 50


def test_the_size_is_limited(tmp_path: Path) -> None:
    """By a program that writes more than the limit while perf still writes what its rings hold."""
    busy = "import mmap\nwhile 1:\n a=mmap.mmap(-1,65536); a[0]=a[4096]=1; a.close()"
    file = tmp_path / "app.data"
    ended = record(Wanted(program=(sys.executable, "-c", busy), max_size="4M"), file).ended
    assert ended.stopped_by == "itself"
    assert 2 << 20 <= file.stat().st_size <= 4 << 20


def test_a_size_that_rings_may_exceed_is_said(tmp_path: Path) -> None:
    wanted = Wanted(program=tuple(program(30)), max_size="1M", buffer="512K")
    file = tmp_path / "app.data"
    told: list[str] = []
    record(wanted, file, say=told.append)
    rings = (512 << 10) * (os.cpu_count() or 1)
    most = (512 << 10) + rings + (256 << 10)
    assert 512 << 10 <= file.stat().st_size <= most
    assert f"the file can become {most / 1e6:,.1f} MB" in told[0]


@pytest.mark.parametrize("size", ["64K", "1M", "3M", "64M", "5G", "1000000"])
def test_perf_is_told_less_than_the_limit(size: str) -> None:
    wanted = Wanted(program=("true",), max_size=size)
    recording = describe(wanted, lambda event: True, here_=True)
    limit = size_limit(wanted, recording.ring_pages)
    assert limit is not None
    assert recording.max_size is not None
    assert size_of(recording.max_size, "") == limit.told
    assert limit.size // 2 - 1024 <= limit.told < limit.size
    rings = here.rings_bytes(recording.ring_pages)
    # Either the rings fit behind it, or they are as small as they get.
    assert limit.most <= limit.size or rings == here.rings_bytes(here.FEWEST_PAGES)


def test_flight_recorder(tmp_path: Path, running: int) -> None:
    """One dump on SIGUSR2, the last at the end; the newest events, no more than was asked for."""
    file = tmp_path / "app.data"
    words = ["--keep", "512K", "--format", "json", "--no-estimate", "-o", str(file)]
    process = start("-p", str(running), *words)
    wait_for(process, "SIGUSR2 writes")
    # perf heeds the signal once it records; its head comes just before.
    wait_until("perf does not begin", lambda: size_of_all(tmp_path) > 0)
    for _ in range(20):
        time.sleep(2.0)
        process.send_signal(signal.SIGUSR2)
        time.sleep(1.0)
        if list(tmp_path.glob("app.data.2*")):
            break
    process.send_signal(signal.SIGINT)
    out, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    found = json.loads(out)
    assert len(found["files"]) == 2
    spans = []
    for index, one in enumerate(found["files"]):
        assert Path(one).stat().st_size < 2 << 20
        trace = import_trace(Path(one), tmp_path / f"{index}.mmt")
        trace.validate()
        assert trace.header.counters.get("late_events", 0) == 0
        spans.append((trace.header.t0_ns, trace.header.t0_ns + trace.header.span_ns))
    assert spans[0][1] <= spans[1][1]
    assert not file.exists()


def test_losses_are_told_with_the_way_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    busy = (
        f"import mmap\nfor _ in range({6000}):\n a=mmap.mmap(-1,65536); a[0]=a[4096]=1; a.close()"
    )
    file = str(tmp_path / "app.data")
    main(
        [
            "record",
            "--buffer",
            "4K",
            "-o",
            file,
            "--format",
            "json",
            "--",
            sys.executable,
            "-c",
            busy,
        ]
    )
    told = capfd.readouterr()
    found: dict[str, Any] = json.loads(told.out)
    if not found["lost_events"]:
        pytest.skip("perf kept up even with one page a CPU")
    assert "--buffer 16K" in found["advice"][0]
    assert "were lost" in told.err


def only(folder: Path, *names: str) -> str:
    """A PATH of these programs alone."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not installed")
        (folder / name).symlink_to(found)
    return str(folder)


def test_strace_stands_in_and_says_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", only(tmp_path / "bin", "strace"))
    file = tmp_path / "app.txt"
    main(["record", "--format", "json", "-o", str(file), "--", *program(0.2)])
    told = capfd.readouterr()
    found = json.loads(told.out)
    assert (found["tool"], found["why_not_perf"]) == ("strace", "perf is not installed")
    assert "strace records no page faults" in told.err
    text = file.read_text()
    assert " mmap(NULL, 65536, " in text
    assert " clone" in text
    assert "read(" not in text
    with pytest.raises(UserError, match="strace cannot do that"):
        record(Wanted(program=("/bin/true",), keep="64M"), tmp_path / "b.txt")
    with pytest.raises(UserError, match="perf cannot record here: perf is not installed"):
        record(Wanted(program=("/bin/true",), tool="perf"), tmp_path / "c.txt")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="strace is not installed"):
        record(Wanted(program=("/bin/true",)), tmp_path / "d.txt")


def test_strace_attached_ends_on_time(tmp_path: Path, running: int) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    file = tmp_path / "app.txt"
    found = record(Wanted(pids=(running,), duration_s=1.0, tool="strace"), file)
    assert found.ended.stopped_by == "duration"
    assert "munmap(" in file.read_text()
    assert Path(f"/proc/{running}").exists()


@pytest.fixture
def asleep() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "60"])
    time.sleep(0.5)
    yield process.pid
    process.kill()
    process.wait()


def test_strace_without_a_call_leaves_nothing(tmp_path: Path, asleep: int) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    file = tmp_path / "app.txt"
    with pytest.raises(UserError, match="strace wrote nothing"):
        record(Wanted(pids=(asleep,), duration_s=0.5, tool="strace"), file)
    assert not file.exists()


def test_a_process_that_sleeps(
    tmp_path: Path, asleep: int, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "app.data"
    main(["record", "-p", str(asleep), "--duration", "0.5", "-o", str(file)])
    told = capfd.readouterr().err
    assert "it slept for these 2 s" in told
    assert "0 events, none lost" in told
    assert "nothing happened in that time" in told
    assert "next:" not in told


def test_perfs_refusal_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that lists an event and will not record it."""
    wanted = describe(Wanted(program=("true",)), lambda event: True, here_=True)
    odd = wanted.events.__class__(("exceptions:no_such_event",), (), (), (), (), ())
    reason = here._why_not_perf(lambda event: True, wanted.__class__(odd))
    assert "no_such_event" in reason


def test_calibrating_where_perf_cannot_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cost, "sets", lambda has: {})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="perf is not installed"):
        cost.calibrate(lambda event: True, 1)
    perf = tmp_path / "perf"
    perf.write_text(
        "#!/bin/sh\necho Error: >&2\necho 'No permission to enable x event.' >&2\nexit 1"
    )
    perf.chmod(0o755)
    with pytest.raises(UserError, match=r"cannot record here: it has no permission"):
        cost._run(["perf"])


def test_too_many_threads_for_perf() -> None:
    has = here.tracepoints()
    assert has is not None
    recording = describe(Wanted(pids=(1,)), has, here_=True)
    with pytest.raises(UserError, match=r"record the whole machine \(-a\)"):
        here.allow_events(recording, 1_000_000)


def test_calibration_measures_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    has = here.tracepoints()
    assert has is not None
    monkeypatch.setattr(cost, "sets", lambda has: {"default": _sets(has)["default"]})
    said: list[str] = []
    for attempt in range(3):
        try:
            found = cost.calibrate(has, 9, said.append, limit_s=0)
            break
        except UserError as error:  # one turn is little: other programs may slow the bare one
            if "too busy" not in error.problem or attempt == 2:
                raise
    assert next(line for line in said if "no more" in line).startswith("1 of 9 turns took")
    (default,) = found.sets
    assert 100 < found.event_ns < 50_000
    assert 1.9 < default.events_per_fault < 2.2  # start and end
    assert 4.8 < default.events_per_pair < 5.5  # four of the calls, one mapping record
    assert 40 < found.event_bytes < 200


_sets = cost.sets
