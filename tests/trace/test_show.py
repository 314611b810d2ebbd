"""``mmreplay show``: its JSON contract, its text, and one clear line for what it cannot show."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mmreplay.cli.main import main
from mmreplay.schema import DurationKind, FaultBits, FaultClass, OpKind
from mmreplay.trace.recording import record_command
from mmreplay.trace.store import Capabilities, Event, Header, Probe, Trace, frame
from mmreplay.trace.summary import summarise
from mmreplay.trace.writer import TraceWriter

MEASURED = int(DurationKind.MEASURED)
FULL = Capabilities(
    fault_duration="measured",
    syscall_durations=True,
    think="oncpu",
    switches=True,
    data_mmaps=True,
    kernel_faults=True,
    lock_spans=True,
    wakeups=True,
)


def _rows() -> dict[str, list[dict[str, Any]]]:
    fault = {
        "kind": int(OpKind.FAULT_USER),
        "duration_ns": 1000,
        "duration_kind": MEASURED,
        "fault_class": int(FaultClass.MINOR),
        "service_ns": 900,
        "wait_ns": 100,
        "io_ns": 0,
        "think_cpu_ns": 5000,
        "think_blocked_ns": 0,
        "preempted_ns": 7,
        "pid": 10,
        "address_space": 1,
    }
    write = {"fault_bits": int(FaultBits.WRITE | FaultBits.USER)}
    return {
        "operations": [
            fault | write | {"begin_ns": 0, "tid": 10},
            fault | {"begin_ns": 10, "tid": 11, "weight": 3},
            fault | {"begin_ns": 20, "tid": 12, "kind": int(OpKind.FAULT_KERNEL)},
            {
                "begin_ns": 30,
                "tid": 20,
                "pid": 20,
                "address_space": 2,
                "kind": int(OpKind.MUNMAP),
                "length": 4096,
                "unattributed_ns": 400,
            },
        ],
        "threads": [
            {"tid": 10, "pid": 10, "comm": "app", "group": "app", "address_space": 1},
            {"tid": 11, "pid": 10, "comm": "w-1", "group": "w-#", "tail_cpu_ns": 50},
            {"tid": 12, "pid": 10, "comm": "w-2", "group": "w-#", "tail_blocked_ns": 60},
            {"tid": 20, "pid": 20, "comm": "[bold]x", "group": "[bold]x"},
        ],
        "vmas": [{"start": 4096, "length": 4096, "source": "exec", "address_space": 1}],
        "gaps": [{"begin_ns": 5, "end_ns": 9, "lost": 2}],
    }


def _header(**more: Any) -> Header:
    return Header(
        kernel_release="6.1.0",
        span_ns=2_000_000_000,
        target="command",
        events=[
            Event(name="exceptions:page_fault_user", samples=98, lost=2),
            Event(name="minor-faults", samples=98),
        ],
        lost_events=2,
        capabilities=more.pop("capabilities", FULL),
        **more,
    )


def _store(path: Path, header: Header, tables: dict[str, list[dict[str, Any]]]) -> Path:
    with TraceWriter(path) as writer:
        for name, rows in tables.items():
            writer.write(name, frame(name, rows))
        writer.close(header)
    return path


def _show(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["show", *arguments])
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["show", *arguments])
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_the_json_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _store(tmp_path / "a.mmt", _header(), _rows())
    shown = json.loads(_show(capsys, str(path), "--format", "json"))
    assert shown["ops_by_kind"] == {"fault_user": 4, "fault_kernel": 1, "munmap": 1}
    assert shown["events_by_name"] == {"exceptions:page_fault_user": 98, "minor-faults": 98}
    assert shown["lost_events"] == 2
    assert shown["threads"] == 4
    assert shown["processes"] == 2
    assert shown["span_ns"] == 2_000_000_000
    assert shown["time_ns"] == {
        "think_cpu": 3 * 5000 + 50,
        "think_blocked": 60,
        "service": 2700,
        "wait": 300,
        "io": 0,
        "preempted": 21,
        "unattributed": 400,
    }
    assert shown["capabilities"] == asdict(FULL)
    assert shown["address_spaces"] == 3
    assert shown["vmas_by_source"] == {"exec": 1}
    assert shown["missing"] == []
    busy = 15_050 + 2700 + 300 + 400
    assert shown["attributed_ratio"] == pytest.approx(1 - 400 / busy)
    faults = {(row["mode"], row["fault_class"]): row for row in shown["faults"]}
    assert faults["user", "minor"]["count"] == 4
    assert faults["user", "minor"]["write"] == 1
    assert faults["kernel", "minor"]["count"] == 1
    groups = {row["group"]: row for row in shown["groups"]}
    assert groups["w-#"]["threads"] == 2
    assert groups["w-#"]["faults"] == 4


def test_the_command_equals_the_library_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _store(tmp_path / "a.mmt", _header(), _rows())
    shown = json.loads(_show(capsys, str(path), "--format", "json"))
    assert shown == json.loads(json.dumps(summarise(Trace.open(path)).to_json()))


def test_text_fits_80_columns_and_says_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _store(tmp_path / "a.mmt", _header(), _rows())
    text = _show(capsys, str(path))
    assert max(map(len, text.splitlines())) <= 80
    assert not any(line.endswith(" ") for line in text.splitlines())
    assert "\x1b" not in text
    assert "2 processes, 4 threads, 3 address spaces" in text
    assert "[bold]x" in text
    assert "2 events lost (1.01%) in 1 gap" in text
    assert "perf record" not in text  # nothing is missing


def test_plan_shows_what_had_to_be_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(_store(tmp_path / "x.mmt", _header(), _rows()))
    found = json.loads(_show(capsys, path, "--plan", "--format", "json"))["plan"]
    assert found["operations"] == len(_rows()["operations"])
    assert found["counters"]["fault_without_address"] > 0
    text = _show(capsys, path, "--plan")
    assert f"replayed by the rules {found['rules']}" in text
    assert "faults without an address" in text
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "plan" not in json.loads(_show(capsys, path, "--format", "json"))


def test_unknown_times_are_not_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fault = {"kind": int(OpKind.FAULT_USER), "tid": 1}
    path = _store(
        tmp_path / "a.mmt",
        _header(capabilities=Capabilities()),
        {"operations": [fault], "threads": [{"tid": 1}]},
    )
    shown = json.loads(_show(capsys, str(path), "--format", "json"))
    assert shown["time_ns"]["service"] is None
    assert shown["time_ns"]["think_cpu"] is None
    assert shown["attributed_ratio"] is None
    text = _show(capsys, str(path))
    assert "unknown" in text
    assert "one thread only" in text


def test_the_probe_effect_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"tid": 1, "pid": 1, "kind": int(OpKind.FAULT_USER), "duration_kind": 1}
    rows = [
        own | {"duration_ns": 5000, "duration_corrected_ns": 3500, "quality": 512},
        own | {"duration_ns": 2000, "duration_corrected_ns": 500, "begin_ns": 9000}
        | {"think_raw_ns": 4000, "think_cpu_ns": 3200},
    ]  # fmt: skip
    probe = Probe(cost_ns=750, method="given with --event-cost")
    header = _header(probe=probe)
    path = _store(
        tmp_path / "a.mmt", header, {"operations": rows, "threads": [{"tid": 1, "pid": 1}]}
    )
    found = json.loads(_show(capsys, str(path), "--format", "json"))["probe"]
    assert found == {
        "cost_ns": 750,
        "method": "given with --event-cost",
        "duration_removed_ns": 3000,
        "duration_raw_ns": 7000,
        "think_removed_ns": 800,
        "think_raw_ns": 4000,
        "contended_operations": 1,
    }
    text = " ".join(_show(capsys, str(path)).split())
    assert "an event cost 750 ns (given with --event-cost); taken off: 3.00 µs of 7.00 µs" in text
    assert "1 operation contended" in text


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        ({"fault_duration": "none"}, ["-d", "-e minor-faults", "-e major-faults"]),
        ({"fault_duration": "upper"}, ["-d", "-e minor-faults", "-e major-faults"]),
        ({"syscall_durations": False}, ["-esyscalls:sys_{enter,exit}_{mmap,munmap,"]),
        ({"switches": False, "think": "wall"}, ["--switch-events"]),
        ({"lock_spans": False}, ["-e lock:contention_begin -e lock:contention_end"]),
        ({"kernel_faults": False}, ["-e exceptions:page_fault_kernel"]),
        ({"wakeups": False}, ["-e sched:sched_waking"]),
        ({"sampling": True}, ["-c 1"]),
    ],
)
def test_what_is_missing_comes_with_its_recording(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    lacking: dict[str, Any],
    words: list[str],
) -> None:
    capabilities = replace(FULL, **lacking)
    path = _store(tmp_path / "a.mmt", _header(capabilities=capabilities), _rows())
    (missing,) = json.loads(_show(capsys, str(path), "--format", "json"))["missing"]
    text = " ".join(_show(capsys, str(path)).replace("\\\n", " ").split())
    for word in words:
        assert word in missing["command"]
        assert " ".join(word.split()) in text
    assert missing["command"].startswith("perf record ")
    assert missing["command"].endswith("-- CMD")


def test_the_command_fits_the_recording() -> None:
    old = " ".join(record_command(Header(kernel_release="5.15.0", target="pids")))
    assert "lock:contention" not in old  # came with 5.19
    assert old.endswith("-p PID")
    assert record_command(Header(kernel_release="6.1.0", target="all"))[-1] == "-a"


def test_bash_reads_the_command_as_meant() -> None:
    """Brace lists repeat a whole word: no event may end up as the command to run."""
    line = " ".join(record_command()).replace("perf record", "printf '%s\\n'", 1)
    words = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert "-esyscalls:sys_enter_mmap" in words
    assert "-esyscalls:sys_exit_execve" in words
    before_command = words[: words.index("--")]
    for previous, word in pairwise(before_command):
        takes_value = previous in {"-e", "-k", "-c", "-m"}
        assert word.startswith("-") != takes_value, f"{previous} {word}"


def test_heavy_losses_and_unattributed_time_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _rows()
    rows["operations"][3]["unattributed_ns"] = 1_000_000
    header = _header(warnings=["the clock jumped"])
    header.lost_events = 20
    path = _store(tmp_path / "a.mmt", header, rows)
    text = " ".join(_show(capsys, str(path)).split())
    assert "the clock jumped" in text
    assert "rates are not to be trusted" in text
    assert "gains will be refused" in text


def test_no_threads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _store(tmp_path / "a.mmt", _header(), {})
    line = _refused(capsys, str(path))
    assert "no threads" in line
    assert "perf record" in line


def test_no_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Calls alone, as strace has them, are shown; what is missing is said first."""
    rows = _rows()
    tables = {"threads": rows["threads"], "operations": rows["operations"][3:]}
    header = _header(capabilities=replace(FULL, fault_duration="none"))
    path = _store(tmp_path / "a.mmt", header, tables)
    text = _show(capsys, str(path))
    assert "munmap" in text
    lacks = text[text.index("The trace lacks") :]
    assert lacks.splitlines()[1].startswith("  ✗ no page faults")
    assert "-e exceptions:page_fault_user" in lacks
    path = _store(tmp_path / "asked.mmt", _header(), tables)  # the events were recorded
    text = _show(capsys, str(path))
    lacks = text[text.index("The trace lacks") :]
    assert lacks.splitlines()[1].startswith("  ✗ no page fault happened")
    assert "add a time in which the program takes memory" in lacks
    path = _store(tmp_path / "b.mmt", _header(), tables | {"operations": []})
    assert "no page fault and no memory-map call" in _refused(capsys, str(path))


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such trace" in _refused(capsys, str(tmp_path / "no.mmt"))
    path = _store(tmp_path / "a.mmt", _header(), _rows())
    file = path / "operations.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "operations.parquet" in _refused(capsys, str(path))
    file.unlink()
    assert "operations is missing" in _refused(capsys, str(path))
    assert "--format" in _refused(capsys, str(path), "--format", "yaml")
    assert "TRACE" in _refused(capsys)


def test_a_file_that_others_own_is_not_called_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _store(tmp_path / "a.mmt", _header(), _rows())

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    for what in ("pyarrow.parquet.ParquetFile", "pathlib.Path.read_text"):
        with monkeypatch.context() as others:
            others.setattr(what, refuse)
            assert "no permission to read it; ask its owner" in _refused(capsys, str(path))


def test_what_a_terminal_cannot_show_is_replaced(tmp_path: Path) -> None:
    path = _store(tmp_path / "a.mmt", _header(), _rows())
    done = subprocess.run(
        [sys.executable, "-m", "mmreplay", "show", str(path)],
        capture_output=True,
        check=False,
        env={
            "PYTHONPATH": str(Path(__file__).parents[2] / "replay"),
            "PATH": "/usr/bin",
            "PYTHONIOENCODING": "latin-1",
        },
    )
    assert done.stderr == b""
    assert b"  ? waits of page faults" in done.stdout


def test_stdout_is_data_in_a_pipe(tmp_path: Path) -> None:
    path = _store(tmp_path / "a.mmt", _header(), _rows())
    done = subprocess.run(
        [sys.executable, "-m", "mmreplay", "show", str(path), "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "replay"), "PATH": "/usr/bin"},
    )
    assert json.loads(done.stdout)["threads"] == 4
    assert done.stderr == ""


@pytest.mark.parametrize("waking", [True, False])
def test_wakeups_by_futex_calls_do_not_show_all_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], waking: bool
) -> None:
    header = _header()
    names = ["syscalls:sys_enter_futex", "syscalls:sys_exit_futex"]
    names += ["sched:sched_waking"] * waking
    header.events += [Event(name=name) for name in names]
    text = " ".join(_show(capsys, str(_store(tmp_path / "a.mmt", header, _rows()))).split())
    assert ("waits for pipes, sockets, eventfd" in text) != waking
    assert ("-e sched:sched_waking" in text) != waking


def test_losses_are_told_by_event_and_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = _header()
    header.lost_events = 30
    header.events += [Event(name=f"e{k}", lost=k) for k in range(6)]
    rows = _rows()
    rows["gaps"] = [
        {"begin_ns": 10**6 * k, "end_ns": 10**6 * k + 500_000, "lost": 10 - k, "ring": k % 2}
        for k in range(7)
    ]
    path = _store(tmp_path / "a.mmt", header, rows)
    text = " ".join(_show(capsys, str(path)).split())
    assert "of them e5 5, e4 4, e3 3, exceptions:page_fault_user 2 and 2 other kinds" in text
    assert "largest: CPU 0 0.000000 to 0.000500 s (10), CPU 1 0.001000" in text
    found = json.loads(_show(capsys, str(path), "--format", "json"))
    assert [gap["lost"] for gap in found["largest_gaps"]] == [10, 9, 8, 7, 6]
