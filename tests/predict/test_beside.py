"""The engine is compiled in a process of its own: what it compiles, when, and how it ends."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from traces import worker_trace

from mmreplay.engine import beside
from mmreplay.engine.loop import replay
from mmreplay.engine.setup import _survey
from mmreplay.engine.specialise import pack
from mmreplay.jit.loading import Native
from mmreplay.predict.api import predict

_FUNCTIONS = (replay, _survey, pack)


@pytest.mark.skipif(not isinstance(replay, Native), reason="numba is switched")
def test_what_is_compiled_is_what_a_prediction_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for function in _FUNCTIONS:
        monkeypatch.setattr(function, "_entries", {})
    beside.compile_engine()
    compiled = [set(function._entries) for function in _FUNCTIONS]
    assert all(compiled)
    trace = worker_trace(threads=3, loops=12)
    predict(trace, from_kernel="linux-6.1", to_kernel="linux-6.18", cores=(1, 4), seeds=1)
    assert [set(function._entries) for function in _FUNCTIONS] == compiled


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled, and there are two CPUs."""
    monkeypatch.setattr(beside, "is_cold", lambda name: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


@pytest.mark.usefixtures("cold")
def test_at_the_end_the_child_is_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go, done = tmp_path / "go", tmp_path / "done"
    monkeypatch.setattr(
        beside,
        "_COMPILE",
        "import pathlib, time\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(.01)\n"
        f"time.sleep(.2); pathlib.Path({str(done)!r}).touch()",
    )
    with beside.engine_compiled():
        go.touch()
    assert done.exists()


@pytest.mark.usefixtures("cold")
def test_a_child_that_fails_is_no_matter(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(beside, "_COMPILE", "print('out'); raise SystemExit('failed')")
    with beside.engine_compiled():
        pass
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("cold")
def test_an_exception_ends_the_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    monkeypatch.setattr(
        beside,
        "_COMPILE",
        f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(600)",
    )
    children: list[Any] = []
    start = beside._child
    monkeypatch.setattr(beside, "_child", lambda: children.append(start()) or children[0])

    def interrupted() -> None:
        with beside.engine_compiled():
            while not begun.exists():
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert children[0].returncode is not None


def test_nothing_is_started_for_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setattr("mmreplay.jit.cache_dir", lambda room: str(kept))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(beside, "_COMPILE", "pass")

    def starts() -> bool:
        child = beside._child()
        return child is not None and child.wait() == 0

    assert starts()
    with monkeypatch.context() as one:
        one.setattr(os, "sched_getaffinity", lambda pid: {0})
        assert not starts()
    with monkeypatch.context() as read_only:  # root may write everywhere
        read_only.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        assert not starts()
    with monkeypatch.context() as none:  # it could not even be made
        none.setattr("mmreplay.jit.cache_dir", lambda room: "")
        assert not starts()
    (kept / "lock").touch()
    (kept / "mmreplay.engine.specialise.pack-0.o").touch()  # somebody was interrupted
    assert starts()
    (kept / "mmreplay.engine.loop.replay-0.o").touch()
    assert not starts()
