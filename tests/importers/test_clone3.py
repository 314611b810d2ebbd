"""Whose memory a process has that clone3 made: its flags are not recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import perfwriter as pw
import pytest

from mmreplay.importers.registry import import_trace
from mmreplay.schema import OpKind
from mmreplay.trace.store import Trace


def _clone3(tmp_path: Path, first: Callable[[pw.Writer], None], returned: bool) -> list[Any]:
    """Rows of a clone3 whose child begins with ``first``, after or before the parent returns."""
    w = pw.default()
    w.fault(pw.FAULT, 500, 100, 0x5000)
    w.sample(pw.MINOR, 600, 100, addr=0x5000)
    w.call(pw.CLONE3_IN, 1000, 100, 0x7FFF, 88)
    w.fork(2000, 200, 100, 200, 100)
    if returned:
        w.call(pw.CLONE3_OUT, 2100, 100, 200)
    w.call(pw.CLONE3_OUT, 2500, 200, 0, pid=200)
    first(w)
    if not returned:
        w.call(pw.CLONE3_OUT, 8000, 100, 200)
    w.fault(pw.FAULT, 9000, 200, 0x9000, pid=200)
    w.exit(10_000, 200, 200)
    w.exit(11_000, 100, 100)
    trace = import_trace(w.save(tmp_path / "perf.data"), tmp_path / "t.mmt", force=True)
    assert isinstance(trace, Trace)
    return trace.operations.collect().to_dicts()


@pytest.mark.parametrize("returned", [False, True])
@pytest.mark.parametrize(
    ("first", "shared"),
    [
        (lambda w: w.fault(pw.FAULT, 3000, 200, 0x6000, 6, pid=200), True),
        (lambda w: w.fault(pw.FAULT, 3000, 200, 0x6000, 4, pid=200), True),
        (lambda w: w.call(pw.MMAP_IN, 3000, 200, 0, 4096, 3, 34, -1, 0, pid=200), True),
        (lambda w: w.fault(pw.FAULT, 3000, 200, 0x1234, 0x14, pid=200), False),
        (lambda w: w.fault(pw.FAULT, 3000, 200, 0x6000, 7, pid=200), False),
    ],
    ids=["fresh page", "read", "call", "code", "copy on write"],
)
def test_what_a_clone3_child_does_first_tells_whose_memory_it_has(
    tmp_path: Path, first: Callable[[pw.Writer], None], shared: bool, returned: bool
) -> None:
    rows = _clone3(tmp_path, first, returned)
    (made,) = (r for r in rows if r["child"] == 200)
    assert made["kind"] == (OpKind.CLONE if shared else OpKind.FORK)
    spaces = {r["address_space"] for r in rows if r["tid"] == 200}
    assert len(spaces) == 1
    assert (spaces == {made["address_space"]}) == shared
    ended = [r["tid"] for r in rows if r["kind"] == OpKind.PROCESS_EXIT]
    assert ended == ([100] if shared else [200, 100])
