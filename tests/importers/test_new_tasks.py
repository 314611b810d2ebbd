"""task_newtask tells the flags that clone3 passes by a pointer."""

from __future__ import annotations

from pathlib import Path

import perfwriter as pw
import pytest

from mmreplay.importers.registry import import_trace
from mmreplay.schema import OpKind

VM, VFORK = 0x100, 0x4000
NEW_TASK = 17  # index of the event in `recorder`
FIELDS = (
    ("pid_t", "pid", 8, 4, 1),
    ("char", "comm[16]", 12, 16, 0),
    ("u64", "clone_flags", 32, 8, 0),
    ("short", "oom_score_adj", 40, 2, 1),
)


def recorder() -> pw.Writer:
    writer = pw.default()
    writer.events.append(pw.Event(70, ids=(4711,)))
    writer.formats[70] = ("task", pw.format_text("task_newtask", 70, FIELDS))
    return writer


def new_task(w: pw.Writer, time: int, parent: int, child: int, flags: int) -> None:
    raw = (
        bytes(8)
        + w.pack("i", child)
        + b"a clone_flags=0\0"
        + bytes(4)
        + w.pack("Qhhi", flags, 0, 0, 0)
    )
    w.sample(NEW_TASK, time, parent, raw)


@pytest.mark.parametrize(
    ("flags", "kind", "shared"),
    [(VM, OpKind.CLONE, True), (VM | VFORK, OpKind.VFORK, True), (0, OpKind.FORK, False)],
)
def test_flags_of_clone3(tmp_path: Path, flags: int, kind: OpKind, shared: bool) -> None:
    """The child outlives the call, so that its end tells nothing; both ends' faults are kept."""
    w = recorder()
    w.call(pw.CLONE3_IN, 1000, 100, 0x7FFF, 88)
    w.fork(2000, 200, 100, 200, 100)
    new_task(w, 2100, 100, 200, flags)
    w.call(pw.CLONE3_OUT, 2400, 100, 200)
    w.call(pw.CLONE3_OUT, 2500, 200, 0, pid=200)
    w.fault(pw.FAULT, 4000, 200, 0x5000, pid=200)
    w.exit(6000, 200, 200)
    w.fault(pw.FAULT, 8000, 100, 0x6000)
    trace = import_trace(w.save(tmp_path / "perf.data"), tmp_path / "t.mmt", force=True)
    trace.validate()
    rows = trace.operations.collect().to_dicts()
    clone = next(row for row in rows if row["pid"] == 100)
    assert clone["kind"] == kind
    assert clone["child"] == 200
    child = [row for row in rows if row["pid"] == 200]
    assert {row["address_space"] == clone["address_space"] for row in child} == {shared}
    ends = [row["kind"] for row in child].count(OpKind.PROCESS_EXIT)
    assert ends == (0 if shared else 1)  # the map lives on with the parent
    assert rows[-1]["address_space"] == clone["address_space"]


def test_flags_of_clone_are_its_own(tmp_path: Path) -> None:
    w = recorder()
    w.call(pw.CLONE_IN, 1000, 100, VM, 0)
    w.fork(2000, 200, 100, 200, 100)
    new_task(w, 2100, 100, 200, VM)
    w.call(pw.CLONE_OUT, 2400, 100, 200)
    w.call(pw.CLONE_OUT, 2500, 200, 0, pid=200)
    w.fault(pw.FAULT, 4000, 200, 0x5000, pid=200)
    trace = import_trace(w.save(tmp_path / "perf.data"), tmp_path / "t.mmt", force=True)
    rows = trace.operations.collect().to_dicts()
    assert [row["kind"] for row in rows if row["pid"] == 100] == [OpKind.CLONE]
    assert len({row["address_space"] for row in rows}) == 1


TEXT = """\
app 100/100 [000] 5.000001: syscalls:sys_enter_clone3: uargs: 0x7fff, size: 0x00000058
app 100/100 [000] 5.000002: PERF_RECORD_FORK(200:200):(100:100)
app 100/100 [000] 5.000003: task:task_newtask: pid=200 comm=a clone_flags=0 b \
clone_flags={flags:x} oom_score_adj=0
app 100/100 [000] 5.000004: syscalls:sys_exit_clone3: 0xc8
app 200/200 [001] 5.000005: syscalls:sys_exit_clone3: 0x0
app 200/200 [001] 5.000006: exceptions:page_fault_user: address=0x5000 ip=0x1234 error_code=0x6
"""


@pytest.mark.parametrize(("flags", "shared"), [(VM, True), (0, False)])
def test_text(tmp_path: Path, flags: int, shared: bool) -> None:
    path = tmp_path / "script.txt"
    path.write_text(TEXT.format(flags=flags))
    rows = import_trace(path, tmp_path / "t.mmt", force=True).operations.collect().to_dicts()
    kinds = {row["pid"]: row["kind"] for row in rows}
    assert kinds[100] == (OpKind.CLONE if shared else OpKind.FORK)
    assert (len({row["address_space"] for row in rows}) == 1) == shared
