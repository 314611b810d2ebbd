"""What ``mmreplay record`` asks perf for: on kernels that have, and lack, its events."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mmreplay.cli.main import main
from mmreplay.errors import UserError
from mmreplay.recorder.api import Wanted, describe, size_of
from mmreplay.trace.recording import Recording, choose_events, in_release, in_tracefs

ALL = in_release(None)


def tracefs(folder: Path, *lacking: str) -> Path:
    """A tracing/events directory with all events of the default set but some."""
    for event in choose_events(ALL, wakeups=True, compat=True).events:
        if ":" in event and not event.startswith(lacking or ("-",)):
            (folder / event.replace(":", "/")).mkdir(parents=True)
    return folder


def test_only_what_the_machine_has(tmp_path: Path) -> None:
    """perf refuses the whole recording over one unknown event."""
    events = tracefs(tmp_path, "lock:", "syscalls:sys_enter_fork", "syscalls:sys_exit_mseal")
    chosen = choose_events(in_tracefs(events), wakeups=True)
    for event in chosen.events:
        assert ":" not in event or (events / event.replace(":", "/")).is_dir()
    assert chosen.contention == ()
    assert "fork" not in chosen.calls  # one end of a call is of no use
    assert "mseal" not in chosen.calls
    assert {"mmap", "munmap", "clone3", "execve"} <= set(chosen.calls)
    assert "task:task_newtask" in chosen.events  # clone3's flags
    without = choose_events(in_tracefs(tracefs(tmp_path / "less", "task:")))
    assert "task:task_newtask" not in without.events
    assert chosen.wakeups == ("sched:sched_waking", "syscalls:sys_enter_futex")


def test_other_architectures_have_software_events(tmp_path: Path) -> None:
    chosen = choose_events(in_tracefs(tracefs(tmp_path, "exceptions:")), light=True)
    assert chosen.faults == ("faults",)
    assert chosen.fault_ends == ()
    assert "-d" in Recording(chosen).argv()  # or they would carry no address


@pytest.mark.parametrize(
    ("release", "lacks"),
    [
        ("4.19", {"clone3", "process_madvise", "mseal", "lock:contention_begin"}),
        ("5.15.0", {"mseal", "lock:contention_begin"}),
        ("6.1", {"mseal"}),
        ("6.12", set()),
    ],
)
def test_releases(release: str, lacks: set[str]) -> None:
    events = choose_events(in_release(release)).events
    asked = {event.removeprefix("syscalls:sys_enter_") for event in events}
    assert lacks.isdisjoint(asked)
    others = {"clone3", "process_madvise", "mseal", "lock:contention_begin"} - lacks
    assert others <= asked


def test_the_parts_cost_what_they_add() -> None:
    default, light = (choose_events(ALL, light=light) for light in (False, True))
    assert set(default.events) - set(light.events) == {"minor-faults", "major-faults"}
    assert "-d" in Recording(default).argv()
    assert "-d" not in Recording(light).argv()
    more = choose_events(ALL, wakeups=True)
    assert set(more.events) - set(default.events) == {
        "sched:sched_waking",
        "syscalls:sys_enter_futex",
    }
    assert "--filter" in Recording(more).argv()
    without = choose_events(lambda event: event != "sched:sched_waking", wakeups=True)
    assert without.wakeups[:2] == ("syscalls:sys_enter_futex", "syscalls:sys_exit_futex")
    assert "syscalls:sys_exit_futex_waitv" in without.wakeups
    old = choose_events(
        lambda event: in_release("5.15")(event) and event != "sched:sched_waking", wakeups=True
    )
    assert old.wakeups == ("syscalls:sys_enter_futex", "syscalls:sys_exit_futex")
    assert "--filter" not in Recording(without).argv()
    assert not any(event.startswith("mmap_lock:") for event in more.events)


@pytest.mark.parametrize("release", [None, "5.15"])
def test_what_is_printed_is_what_is_run(release: str | None) -> None:
    """bash makes of the printed line the very arguments that record runs."""
    recording = Recording(
        choose_events(in_release(release), wakeups=True, compat=True),
        ("--", "./app", "a b", "$HOME"),
        stacks=True,
        max_size="64M",
        output="out dir/perf.data",
    )
    line = " ".join(recording.words()).replace("perf record", r"printf '%s\n'", 1)
    printed = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    words = printed.stdout.splitlines()
    expanded: list[str] = []
    for word in words:  # -eEVENT is -e EVENT
        expanded += ["-e", word[2:]] if word.startswith("-esyscalls") else [word]
    ran = recording.argv()[2:]
    assert [w for w in expanded if not w.startswith("syscalls:")] == [
        w for w in ran if not w.startswith("syscalls:")
    ]
    assert sorted(expanded) == sorted(ran)


def test_print_for_another_machine(capsys: pytest.CaptureFixture[str]) -> None:
    main(["record", "--print", "5.15", "-p", "1234", "--dependencies"])
    text = capsys.readouterr().out
    assert "lock:contention" not in text
    assert "-e sched:sched_waking" in text
    assert text.rstrip().endswith("-p 1234")
    assert max(map(len, text.splitlines())) <= 80
    main(["record", "--print", "6.12.3-amd64", "--format", "json", "--duration", "5", "--", "./a"])
    shown = json.loads(capsys.readouterr().out)
    assert "lock:contention_begin" in shown["events"]
    assert shown["command"][0].startswith("timeout -s INT 5")
    assert shown["command"][-1] == "-- ./a"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["record", *words])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    return told.err


def test_what_does_not_fit_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert "-- COMMAND, -p PID or -a" in refused(capsys)
    assert "COMMAND and --pid exclude" in refused(capsys, "-p", "1", "--", "true")
    assert "no process id" in refused(capsys, "-p", "init")
    assert "no process 99999999" in refused(capsys, "-p", "99999999")
    assert "no kernel release" in refused(capsys, "--print", "new", "-p", "1")
    assert "--keep" in refused(
        capsys, "--print", "6.1", "--keep", "64M", "--max-size", "1G", "-p", "1"
    )
    assert '"lots" is no size' in refused(capsys, "--print", "6.1", "--buffer", "lots", "-p", "1")


def test_sizes() -> None:
    assert [size_of(text, "-") for text in ("4096", "64K", "16M", "2g", "1MB")] == [
        4096,
        65536,
        16 << 20,
        2 << 30,
        1 << 20,
    ]
    for text in ("", "0", "-1M", "1.5G", "M", "1T"):
        with pytest.raises(UserError):
            size_of(text, "-")


def test_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    wanted = Wanted(program=("true",))

    def pages(**changes: str) -> int:
        return describe(replace(wanted, **changes), ALL, here_=True).ring_pages  # type: ignore[arg-type]

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert pages(buffer="1M") * page == 1 << 20
    assert pages(buffer="1000K") * page <= 1000 << 10  # a power of two, not above what was asked
    assert pages(keep="64M") * page * 4 == 64 << 20  # all CPUs together
    most = pages()
    assert most * page <= 16 << 20
    monkeypatch.setattr(os, "cpu_count", lambda: 4096)
    assert pages() < most  # or the rings would fill the memory


def test_a_duration_of_processes_is_perfs_own_sleep() -> None:
    recording = describe(Wanted(pids=(7, 8), duration_s=2.5), ALL, here_=False)
    assert recording.target == ("-p", "7,8", "--", "sleep", "2.5")
    assert describe(Wanted(whole_machine=True), ALL, here_=False).target == ("-a",)
