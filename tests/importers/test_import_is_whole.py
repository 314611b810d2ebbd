"""An import is whole or is not there, whatever ends it and whatever runs beside it."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import perfwriter as pw
import pytest
from test_perf_data_fuzz import environment
from test_streaming import contents, soup

from mmreplay.errors import UserError
from mmreplay.importers.registry import import_trace
from mmreplay.trace.store import Trace


def small() -> pw.Writer:
    w = pw.Writer([pw.Event(10), pw.Event(5, 1, pw.SW_TYPE)], {10: pw.FORMATS[10]}, attr_bytes=64)
    for k in range(2):
        w.fault(0, 10_000 * k + 1, 100, 0x5000 + 4096 * k)
        w.sample(1, 10_000 * k + 900, 100, addr=0x5000 + 4096 * k)
    return w


@pytest.mark.parametrize("how", ["file", "packed", "pipe"])
def test_truncation_at_every_byte(tmp_path: Path, how: str) -> None:
    w = small()
    other = w.save(tmp_path / "other")
    whole = {"file": w.build(), "packed": w.packed().build(), "pipe": w.pipe()}[how]
    outcomes = {"trace": 0, "refused": 0}
    cut, out = tmp_path / "cut", tmp_path / "t.mmt"
    for size, salvage in itertools.product(range(len(whole)), [False, True]):
        cut.write_bytes(whole[:size])
        try:
            trace = import_trace(cut, out, force=True, formats=other, salvage=salvage)
        except UserError as error:
            assert "\n" not in error.line()
            outcomes["refused"] += 1
            continue
        trace.validate()
        assert salvage or how == "pipe"
        assert trace.rows("operations") <= 2
        outcomes["trace"] += 1
    assert outcomes["trace"]
    assert outcomes["refused"]
    # What is refused leaves nothing, and what is read replaces what was there before.
    assert {path.name for path in tmp_path.iterdir()} == {"other", "cut", "t.mmt"}


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """No trace, and nothing that could be taken for one; the next import goes through."""
    data = soup(1, 4000).pipe()
    out = tmp_path / "t.mmt"
    process = subprocess.Popen(
        [sys.executable, "-m", "mmreplay", "import", "-", "-o", str(out)],
        stdin=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None
    process.stdin.write(data[: len(data) // 2])
    process.stdin.flush()
    while not list(tmp_path.iterdir()) and process.poll() is None:
        time.sleep(0.02)  # until it writes
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    for left in tmp_path.iterdir():
        with pytest.raises(UserError):
            Trace.open(left)
    (tmp_path / "data").write_bytes(data)
    import_trace(tmp_path / "data", out).validate()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "t.mmt"}  # it cleans up


@pytest.mark.parametrize("room", [1, 1000, 4096, 40_000])
def test_a_disk_that_takes_no_more(tmp_path: Path, room: int) -> None:
    """One line says so and nothing is half-written (a limit of file sizes stands for the disk)."""
    soup(1, 4000).save(tmp_path / "data")
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, 2 * ({room},));"
        f"from mmreplay.cli.main import main; main(['import', {str(tmp_path / 'data')!r},"
        f" '-o', {str(tmp_path / 't.mmt')!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "File too large; " in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_two_at_once(tmp_path: Path) -> None:
    files = [soup(seed, 3000).save(tmp_path / f"{seed}.data") for seed in (1, 2)]
    alone = [contents(import_trace(file, file.with_suffix(".mmt"))) for file in files]
    for _ in range(3):
        found: dict[int, dict[str, bytes]] = {}

        def load(k: int, found: dict[int, dict[str, bytes]] = found) -> None:
            out = tmp_path / f"again-{k}.mmt"
            found[k] = contents(import_trace(files[k], out, force=True))

        both = [threading.Thread(target=load, args=(k,)) for k in range(2)]
        for one in both:
            one.start()
        for one in both:
            one.join()
        assert [found[0], found[1]] == alone
