"""Event by event against ``perf script --ns`` on recordings made here and now.

Skipped, with the reason, where perf, its tracepoints or the permission are missing.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmreplay.importers import events as ev
from mmreplay.importers.perf import data as perf_data
from mmreplay.importers.perf import header as ph
from mmreplay.importers.perf.layout import EventInfo
from mmreplay.importers.registry import import_trace
from mmreplay.importers.syscalls import CALLS, number_tables
from mmreplay.schema import OpKind, Quality
from mmreplay.trace.store import Trace

pytestmark = pytest.mark.perf
TRACEFS = Path("/sys/kernel/tracing/events")

WORKLOAD = """
import mmap, subprocess, sys, threading
def work():
    for _ in range(int(sys.argv[1])):
        area = mmap.mmap(-1, 16 * 4096)
        for page in range(0, 16 * 4096, 4096):
            area[page] = 1
        area.close()
threads = [threading.Thread(target=work) for _ in range(3)]
[t.start() for t in threads]
subprocess.run(["true"])
[t.join() for t in threads]
"""
CALL_NAMES = [
    "mmap",
    "munmap",
    "mprotect",
    "madvise",
    "brk",
    "mremap",
    "clone",
    "clone3",
    "fork",
    "vfork",
    "execve",
    "mlock",
    "mlock2",
]


def available(system: str, name: str) -> bool:
    return (TRACEFS / system / name).is_dir()


def syscalls() -> list[str]:
    return [
        f"syscalls:sys_{side}_{name}"
        for name in CALL_NAMES
        for side in ("enter", "exit")
        if available("syscalls", f"sys_{side}_{name}")
    ]


FAULTS = ["exceptions:page_fault_user", "exceptions:page_fault_kernel"]
LOCKS = ["lock:contention_begin", "lock:contention_end"]
SETS = {
    "default": (
        ["-d", "-k", "CLOCK_MONOTONIC", "--switch-events"],
        [*FAULTS, "minor-faults", "major-faults", *syscalls(), *LOCKS],
    ),
    "light": (["--switch-events"], [*FAULTS, *syscalls()]),
    "software": (["-d"], ["faults", "minor-faults", "major-faults"]),
    "mmap_lock": (
        ["-d"],
        [
            *FAULTS,
            *(
                f"mmap_lock:mmap_lock_{n}"
                for n in ("start_locking", "acquire_returned", "released")
            ),
            "sched:sched_switch",
        ],
    ),
    "raw": (
        ["-d"],
        [*FAULTS, "minor-faults", "raw_syscalls:sys_enter", "raw_syscalls:sys_exit"],
    ),
    "callchains": (["-g"], [FAULTS[0], "syscalls:sys_enter_mmap", "syscalls:sys_exit_mmap"]),
}


def record(folder: Path, options: list[str], events: list[str], tail: list[str]) -> Path:
    """Record with perf; the option ``-o -`` makes it a stream.

    perf 6.1 cannot read all that it records of a whole machine with -z (two of seven): what its
    script gives up on is recorded once more, up to five times.
    """
    if shutil.which("perf") is None:
        pytest.skip("perf is not installed")
    file = folder / "perf.data"
    words = ["perf", "record", "-q", "-c", "1", "-m", "2048", *options]
    if "-o" not in options:
        words += ["-o", str(file)]
    for event in events:
        words += ["-e", event]
    for _ in range(5):
        if file.is_dir():
            shutil.rmtree(file)
        with (folder / "stream").open("wb") as out:
            done = subprocess.run([*words, *tail], stdout=out, stderr=subprocess.PIPE, check=False)
        if "-o" in options:
            (folder / "stream").rename(file)
        if not file.exists() or (file.is_file() and not file.stat().st_size):
            pytest.skip(f"perf cannot record here: {done.stderr.decode().strip()[:200]}")
        told = complaint(file) if "-a" in options else ""
        if not told:
            return file
        import_trace(file, folder / "unread.mmt", force=True).validate()
    pytest.skip(f"perf script cannot read five of perf's own recordings: {told}")


def complaint(file: Path) -> str:
    """Why perf script gives up on a file, empty where it does not."""
    done = subprocess.run(
        ["perf", "script", "-i", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    told = done.stderr.decode(errors="replace")
    return told[-500:] if "failed to process type" in told else ""


_LINE = re.compile(
    r"^\s*(?P<comm>.{1,16}?)\s+(?P<pid>-?\d+)/(?P<tid>-?\d+)\s+(?:\[(?P<cpu>\d+)\]\s+)?"
    r"(?P<s>\d+)\.(?P<ns>\d{9}):\s+(?P<event>\S+):(?P<rest>(?:\s.*)?)$"
)


#: time, pid, tid, cpu (-1: not recorded), event
Key = tuple[int, int, int, int, str]


def fields(file: Path) -> list[str]:
    """Options of perf script, which refuses a field that an event of the type lacks."""
    recording = perf_data.open_recording(file)
    words = []
    for kind, name, last in ((2, "trace", "trace"), (1, "sw", "addr")):
        attrs = [attr for attr in recording.header.attrs if attr.type == kind]
        if attrs:
            chosen = ["comm", "pid", "tid", "time", "event", last]
            if all(attr.sample_type & ph.SAMPLE_CPU for attr in attrs):
                chosen.append("cpu")
            words += ["-F", f"{name}:{','.join(chosen)}"]
    recording.close()
    return words


def printed(file: Path) -> list[tuple[Key, str]]:
    """Each event and its arguments, as perf script prints them."""
    done = subprocess.run(
        ["perf", "script", "-i", str(file), "--ns", "-G", *fields(file)],
        capture_output=True,
        text=True,
        check=False,
        errors="replace",
    )
    assert done.returncode == 0, done.stderr[-500:]
    rows = []
    for line in done.stdout.splitlines():
        if not line.strip():
            continue
        match = _LINE.match(line)
        assert match, line
        stamp = int(match["s"]) * 10**9 + int(match["ns"])
        cpu = int(match["cpu"] or -1)
        key = (stamp, int(match["pid"]), int(match["tid"]), cpu, match["event"])
        rows.append((key, match["rest"]))
    return rows


def decoded(file: Path) -> Iterator[tuple[Key, EventInfo, Any]]:
    """The same as the importer decodes them."""
    recording = perf_data.open_recording(file)
    try:
        for batch, rows in perf_data.batches(recording):
            t0 = int(recording.decode_state[0])
            for i in np.flatnonzero(batch.event[:rows] >= 0).tolist():
                info = recording.events[batch.event[i]]
                if info.role in (ev.RAW_ENTER, ev.RAW_EXIT):
                    role, call = int(batch.role[i]), int(batch.call[i])
                    info = dataclasses.replace(info, role=role, call=call)
                stamp = int(batch.time[i]) + t0
                pid, tid, cpu = (int(column[i]) for column in (batch.pid, batch.tid, batch.cpu))
                arguments = [int(value) for value in batch.arg[i]]
                yield (stamp, pid, tid, cpu, info.name), info, arguments
    finally:
        recording.close()


def same_arguments(info: EventInfo, arg: list[int], rest: str) -> bool:
    """Whether the printed arguments are the decoded ones, for the roles that pairing reads."""
    if info.role in (ev.FAULT_USER, ev.FAULT_KERNEL):
        # perf prints addresses inside known symbols by name
        found = re.search(r"address=(\S+) .*error_code=0x([0-9a-f]+)", rest)
        assert found, rest
        named = not found[1].startswith("0x")
        return arg[1] == int(found[2], 16) and (named or arg[0] == int(found[1], 16))
    if info.role in (ev.FAULT_MINOR, ev.FAULT_MAJOR, ev.FAULT_SOFTWARE):
        return arg[0] == int(rest.split()[0], 16)
    if info.name.startswith("raw_syscalls"):
        return same_raw(info, arg, rest)
    if info.role == ev.EXIT:
        return arg[0] == int(rest.split()[0], 16)
    if info.role == ev.ENTER:
        values = [int(word, 16) for word in re.findall(r": (0x[0-9a-f]+)", rest)]
        call = CALLS[info.call]
        for position, slot in enumerate(call.slots):
            mask = 0xFFFF_FFFF if position in call.narrow else (1 << 64) - 1
            if slot >= 0 and arg[slot] & mask != values[position] & mask:
                return False
        return True
    if info.role == ev.CONTENTION_BEGIN:
        words = {"SPIN": 1, "READ": 2, "WRITE": 4, "RT": 8, "PERCPU": 16, "MUTEX": 32}
        found = re.search(r"flags=([A-Z|0-9x]*)", rest)
        assert found, rest
        wanted = sum(words.get(word, 0) for word in found[1].split("|"))
        return arg[1] == wanted and f"{arg[0]:x}" in rest
    if info.role in (ev.MMAP_LOCK_START, ev.MMAP_LOCK_ACQUIRED, ev.MMAP_LOCK_RELEASED):
        good = ("write=true" in rest) == bool(arg[1]) and f"{arg[0]:x}" in rest
        if info.role == ev.MMAP_LOCK_ACQUIRED:
            good = good and ("success=true" in rest) == bool(arg[2])
        return good
    if info.role == ev.SCHED_SWITCH:
        return f"next_pid={arg[1]} " in rest
    return True


def same_raw(info: EventInfo, arg: list[int], rest: str) -> bool:
    found = re.fullmatch(r"\s+NR (-?\d+) (?:\((.*)\)|= (-?\d+))", rest)
    assert found, rest
    native, _ = number_tables(platform.machine()).calls
    number = int(found[1])
    if info.role == ev.OTHER:
        return not 0 <= number < len(native) or bool(native[number] < 0)
    if native[number] != info.call:
        return False
    if info.role == ev.EXIT:
        return arg[0] == int(found[3]) & (1 << 64) - 1
    words = [int(word, 16) for word in found[2].split(", ")]
    call = CALLS[info.call]
    for position, slot in enumerate(call.slots):
        mask = 0xFFFF_FFFF if position in call.narrow else (1 << 64) - 1
        if slot >= 0 and arg[slot] & mask != words[position] & mask:
            return False
    return True


def compare(file: Path) -> int:
    """Number of events, all equal to those of perf script."""
    theirs = printed(file)
    ours = list(decoded(file))
    assert len(ours) == len(theirs)
    # perf orders equal times by its own heap: compare as multisets, arguments included.
    by_key: dict[Key, list[str]] = {}
    for key, rest in theirs:
        by_key.setdefault(key, []).append(rest)
    for key, info, arg in ours:
        rests = by_key[key]
        at = next((k for k, rest in enumerate(rests) if same_arguments(info, arg, rest)), None)
        assert at is not None, (key, arg, rests)
        rests.pop(at)
    assert not any(by_key.values())
    assert [row[0][0] for row in ours] == [row[0][0] for row in theirs]
    return len(ours)


@pytest.mark.parametrize("name", SETS)
def test_every_event_is_perf_scripts(tmp_path: Path, name: str) -> None:
    options, events = SETS[name]
    file = record(tmp_path, options, events, ["--", sys.executable, "-c", WORKLOAD, "20"])
    assert compare(file) > 1000
    trace = import_trace(file, tmp_path / "t.mmt")
    trace.validate()
    assert trace.header.target == "command"
    if name == "default":
        rows = trace.operations.collect()
        faults = rows.filter(rows["kind"].is_in([1, 2]))
        measured = faults.filter(faults["duration_kind"] == 1).height
        assert measured >= 0.99 * (
            faults.height - trace.header.counters.get("faults_without_end", 0)
        )
        # Each event of a pair is used once.
        count = {event.name: event.samples for event in trace.header.events}
        ends = count["minor-faults"] + count["major-faults"]
        assert abs(measured - ends) <= trace.header.counters.get("begin_unseen", 0)
        maps = rows.filter(rows["kind"] == 3)
        assert maps.height == count["syscalls:sys_enter_mmap"]


def test_call_chains(tmp_path: Path) -> None:
    """Frame by frame: the kernel's as they are, users' within their page (perf prints them
    relative to their file)."""
    options, events = SETS["callchains"]
    file = record(tmp_path, options, events, ["--", sys.executable, "-c", WORKLOAD, "20"])
    done = subprocess.run(
        ["perf", "script", "-i", str(file), "--ns", "-F", "comm,pid,tid,time,event,ip"],
        capture_output=True,
        text=True,
        check=False,
    )
    theirs: list[tuple[int, int, list[int]]] = []
    for line in done.stdout.splitlines():
        match = _LINE.match(line)
        if match:
            stamp = int(match["s"]) * 10**9 + int(match["ns"])
            theirs.append((stamp, int(match["tid"]), []))
        elif line.strip():
            theirs[-1][2].append(int(line, 16))
    trace = import_trace(file, tmp_path / "t.mmt")
    trace.validate()
    frames: dict[int, list[int]] = {}
    for stack, depth, ip in trace.table("stacks").collect().iter_rows():
        assert depth == len(frames.setdefault(stack, []))
        frames[stack].append(ip)
    assert len({tuple(chain) for chain in frames.values()}) == len(frames)
    rows = trace.operations.collect().join(
        trace.table("callchains").collect(), on=["begin_ns", "seq"], how="inner"
    )
    assert rows.height > 1000
    by_key: dict[tuple[int, int], list[list[int]]] = {}
    for stamp, tid, chain in theirs:
        by_key.setdefault((stamp - trace.header.t0_ns, tid), []).append(seen(chain))
    for begin, tid, stack in rows.select("begin_ns", "tid", "stack").iter_rows():
        assert seen(frames[stack]) in by_key[begin, tid]


def seen(chain: list[int]) -> list[int]:
    return [ip if ip >> 63 else ip & 0xFFF for ip in chain]


COMPAT = """
static int call(int n, int a, int b, int c, int d, int e) {
    int r;
    __asm__ volatile("push %%ebp; xor %%ebp, %%ebp; int $0x80; pop %%ebp"
                     : "=a"(r) : "0"(n), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
    return r;
}
void _start(void) {
    volatile char *area = (char *)call(192, 0, 65536, 3, 0x22, -1);
    for (int i = 0; i < 65536; i += 4096) area[i] = 1;
    call(91, (int)area, 65536, 0, 0, 0);
    call(1, 0, 0, 0, 0, 0);
}
"""


def test_a_32_bit_program(tmp_path: Path) -> None:
    source, program = tmp_path / "compat.c", tmp_path / "compat"
    source.write_text(COMPAT)
    words = ["-m32", "-nostdlib", "-static", "-O1", "-fno-pie", "-no-pie"]
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    built = subprocess.run(
        ["gcc", *words, "-o", str(program), str(source)], capture_output=True, check=False
    )
    if built.returncode or subprocess.run([str(program)], check=False).returncode:
        pytest.skip("32-bit programs cannot be built or run here")
    options, events = SETS["raw"]
    file = record(tmp_path, options, events, ["--", "sh", "-c", f"{program}; true"])
    trace = import_trace(file, tmp_path / "t.mmt")
    trace.validate()
    rows = trace.operations.collect()
    rows = rows.filter((rows["quality"] & int(Quality.COMPAT32)) != 0)
    (mapped,) = rows.filter(rows["kind"] == int(OpKind.MMAP)).to_dicts()
    (unmapped,) = rows.filter(rows["kind"] == int(OpKind.MUNMAP)).to_dicts()
    assert (mapped["length"], mapped["flags"], mapped["fd"]) == (65536, 0x22, -1)
    assert (unmapped["address"], unmapped["length"]) == (mapped["address"], 65536)
    assert unmapped["duration_ns"] > 0
    first, last = mapped["address"], mapped["address"] + 65536
    inside = rows.filter((rows["address"] >= first) & (rows["address"] < last))
    assert inside.filter(inside["kind"] == int(OpKind.FAULT_USER)).height == 16


CONTAINERS = {
    "compressed": ["-z"],
    "pipe": ["-o", "-"],
    "pipe, compressed": ["-o", "-", "-z"],
    "threads": ["--threads"],
    "threads, compressed": ["--threads", "-z"],
    "threads of several rings": ["--threads=package", "-a"],
    "whole machine, compressed": ["-a", "-z"],
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container(tmp_path: Path, name: str) -> None:
    options, events = SETS["default"]
    tail = ["--", sys.executable, "-c", WORKLOAD, "20"]
    file = record(tmp_path, [*options, *CONTAINERS[name]], events, tail)
    assert compare(file) > 1000
    trace = import_trace(file, tmp_path / "t.mmt")
    trace.validate()
    assert trace.header.counters.get("late_events", 0) == 0
    assert trace.header.counters.get("cut_bytes", 0) == 0
    assert trace.header.kernel_release == platform.release().split("-")[0]
    assert trace.header.machine.page_size == 4096
    if file.is_file() and "-o" in CONTAINERS[name]:
        done = subprocess.run(
            [sys.executable, "-m", "mmreplay", "import", "-", "-o", str(tmp_path / "s.mmt")],
            stdin=file.open("rb"),
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "replay")},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        again = Trace.open(tmp_path / "s.mmt")
        assert again.operations.collect().equals(trace.operations.collect())


@pytest.mark.parametrize("how", ["plain", *CONTAINERS])
@pytest.mark.parametrize("leader", ["page-faults", "exceptions:page_fault_user"])
def test_a_group_is_counted_as_perf_script_does(tmp_path: Path, leader: str, how: str) -> None:
    """A line for each event of the group that has changed since its leader's last sample."""
    file = record(
        tmp_path,
        ["-d", *CONTAINERS.get(how, [])],
        [f"{{{leader},minor-faults,major-faults}}:S"],
        ["--", sys.executable, "-c", WORKLOAD, "20"],
    )
    done = subprocess.run(
        ["perf", "script", "-i", str(file), "-F", "event"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    theirs = collections.Counter(line.strip().removesuffix(":") for line in done.stdout.split("\n"))
    trace = import_trace(file, tmp_path / "t.mmt")
    ours = {event.name: event.samples for event in trace.header.events}
    assert ours[leader] > 300
    assert ours["minor-faults"] > 300
    for name in (leader, "minor-faults", "major-faults"):
        assert ours[name] == theirs[name], name


@pytest.mark.parametrize("options", [[], ["-z"], ["--threads"]])
def test_a_killed_recorder(tmp_path: Path, options: list[str]) -> None:
    """What perf had written when it was killed is there; it ends, and says where it does."""
    if shutil.which("perf") is None:
        pytest.skip("perf is not installed")
    file = tmp_path / "perf.data"
    words = ["perf", "record", "-q", "-c", "1", "-m", "256", "--switch-events", *options]
    for event in (FAULTS[0], "syscalls:sys_enter_munmap", "syscalls:sys_exit_munmap"):
        words += ["-e", event]
    program = subprocess.Popen([sys.executable, "-c", WORKLOAD, "1000000"])
    # perf opens the threads that are there: one that starts meanwhile is not recorded.
    tasks = Path(f"/proc/{program.pid}/task")
    while program.poll() is None and len(list(tasks.iterdir())) < 4:
        time.sleep(0.01)
    recorder = subprocess.Popen(
        [*words, "-o", str(file), "-p", str(program.pid)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        size = 0
        for _ in range(1200):  # opening the events takes long on a busy machine
            time.sleep(0.05)
            parts = file.glob("data*") if file.is_dir() else [file]
            size = sum(part.stat().st_size for part in parts if part.exists())
            if size > 1 << 18 or recorder.poll() is not None:
                break
        recorder.kill()
        _, told = recorder.communicate()
    finally:
        program.kill()
        program.wait()
    if size <= 1 << 18:
        pytest.skip(f"perf cannot record here: {told.decode().strip()[:200]}")
    trace = import_trace(file, tmp_path / "t.mmt")
    trace.validate()
    assert trace.rows("operations") > 1000
    assert any("did not end normally" in text for text in trace.header.warnings)


def test_attached(tmp_path: Path) -> None:
    program = subprocess.Popen([sys.executable, "-c", WORKLOAD, "1000000"])
    try:
        time.sleep(0.5)
        options = ["-d", "-p", str(program.pid)]
        events = [*FAULTS, "minor-faults", "syscalls:sys_enter_mmap", "syscalls:sys_exit_mmap"]
        file = record(tmp_path, options, events, ["--", "sleep", "0.2"])
    finally:
        program.kill()
        program.wait()
    assert compare(file) > 100
    trace = import_trace(file, tmp_path / "t.mmt")
    trace.validate()
    assert trace.header.target == "pids"
    assert "snapshot" in set(trace.vmas.collect()["source"])


def test_whole_machine(tmp_path: Path) -> None:
    options = ["-a", "-d", "-k", "CLOCK_MONOTONIC", "--switch-events"]
    tail = ["--", sys.executable, "-c", WORKLOAD, "10"]
    file = record(tmp_path, options, [*FAULTS, "minor-faults", *syscalls()], tail)
    assert compare(file) > 1000
    trace = import_trace(file, tmp_path / "t.mmt")
    trace.validate()
    assert trace.header.target == "all"


@pytest.mark.parametrize("program", [["sort", "--parallel=2"], ["xz", "-T2", "-0"], ["java"]])
def test_real_programs(tmp_path: Path, program: list[str]) -> None:
    if shutil.which(program[0]) is None:
        pytest.skip(f"{program[0]} is not installed")
    data = tmp_path / "input"
    data.write_bytes(b"".join(b"%d\n" % (k * 7919 % 100_003) for k in range(200_000)))
    tail = ["java", "-version"] if program == ["java"] else [*program, "-k", str(data)]
    if program[0] == "sort":
        tail = [*program, "-o", str(tmp_path / "out"), str(data)]
    options, events = SETS["default"]
    file = record(tmp_path, options, events, ["--", *tail])
    assert compare(file) > 200
    trace = import_trace(file, tmp_path / "t.mmt")
    trace.validate()
