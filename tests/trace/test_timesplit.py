"""The rules of docs/time-split.md on cases small enough to compute by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreplay.schema import DurationKind, FaultClass, OpKind, Quality, SpanEnd
from mmreplay.trace import services, timesplit
from mmreplay.trace import writer as writer_module
from mmreplay.trace.store import Header, frame
from mmreplay.trace.timesplit import DEFAULT_SERVICE_NS, finalise, split
from mmreplay.trace.writer import TraceWriter

FAULT = int(OpKind.FAULT_USER)
MMAP = int(OpKind.MMAP)
MUNMAP = int(OpKind.MUNMAP)
MADVISE = int(OpKind.MADVISE)
MEASURED = int(DurationKind.MEASURED)
UPPER = int(DurationKind.UPPER_BOUND)


def _op(begin_ns: int, duration_ns: int | None, kind: int = MMAP, **more: Any) -> dict[str, Any]:
    known = DurationKind.NONE if duration_ns is None else DurationKind.MEASURED
    return {
        "begin_ns": begin_ns,
        "duration_ns": duration_ns,
        "duration_kind": int(known),
        "tid": 1,
        "pid": 1,
        "kind": kind,
        **({"length": 4096} if kind != FAULT else {}),
        **more,
    }


def _quiet(*durations_ns: int, kind: int = MMAP, **more: Any) -> list[dict[str, Any]]:
    """Operations of thread 1 far apart from everything, to give a class its quartile."""
    return [
        _op(-(10**9) + index * 10**6, duration, kind, **more)
        for index, duration in enumerate(durations_ns)
    ]


#: Nine quiet operations: the low quartile is the value at rank (9-1)//4 = 2, so 1200.
NINE = (1000, 1100, 1200, 1300, 1400, 1500, 1600, 1700, 1800)


def _split(
    rows: list[dict[str, Any]], schedule: list[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    ordered = sorted(rows, key=lambda row: row["begin_ns"])
    done, _ = split(frame("operations", ordered), frame("schedule", schedule) if schedule else None)
    return [row for row in done.iter_rows(named=True) if row["begin_ns"] >= 0]


def _parts(row: dict[str, Any]) -> tuple[int | None, int | None, int | None, int | None]:
    return row["service_ns"], row["wait_ns"], row["io_ns"], row["unattributed_ns"]


def test_alone_everything_is_service() -> None:
    """No other thread, nothing recorded: 5,000 ns is what it took, however slow the class."""
    (row,) = _split([*_quiet(*NINE), _op(0, 5000)])
    assert _parts(row) == (5000, 0, 0, 0)


def test_exposed_operations_wait_what_exceeds_the_low_quartile() -> None:
    one, two = _split([*_quiet(*NINE), _op(0, 5000), _op(0, 4000, tid=2)])
    assert _parts(one) == (1200, 3800, 0, 0)
    assert _parts(two) == (1200, 2800, 0, 0)


def test_nobody_waits_longer_than_the_others_were_there() -> None:
    """The other overlaps by 2,000 ns: the rest of what exceeds the class is service."""
    one, two = _split([*_quiet(*NINE), _op(0, 5000), _op(3000, 9000, tid=2)])
    assert _parts(one) == (3000, 2000, 0, 0)
    assert _parts(two) == (7000, 2000, 0, 0)


def test_overlaps_of_several_are_counted_once() -> None:
    """[100, 1100) and [600, 1600) cover 1,500 ns of [0, 5000), and [4000, 9000) 1,000 more."""
    rows = [_op(0, 5000), _op(100, 1000, tid=2), _op(600, 1000, tid=3), _op(4000, 5000, tid=4)]
    one = _split([*_quiet(*NINE), *rows])[0]
    assert _parts(one) == (2500, 2500, 0, 0)


def test_an_exposed_operation_faster_than_its_class_waited_nothing() -> None:
    one, _ = _split([*_quiet(*NINE), _op(0, 900), _op(0, 3000, tid=2)])
    assert _parts(one) == (900, 0, 0, 0)


def test_faults_do_not_expose_each_other() -> None:
    rows = _split([*_quiet(*NINE, kind=FAULT), _op(0, 5000, FAULT), _op(9, 4000, FAULT, tid=2)])
    assert [_parts(row) for row in rows] == [(5000, 0, 0, 0), (4000, 0, 0, 0)]


def test_a_writer_exposes_a_fault_and_the_fault_the_writer() -> None:
    rows = [*_quiet(*NINE, kind=FAULT), _op(0, 5000, FAULT), _op(1000, 2000, MUNMAP, tid=2)]
    fault, munmap = _split([*rows, _op(3000, 9000, MUNMAP, tid=3)])[:2]
    assert _parts(fault) == (1200, 3800, 0, 0)
    # No quiet munmap: the default, 1,890 ns, but at most the class's own low quartile, 2,000.
    assert _parts(munmap) == (1890, 110, 0, 0)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"begin_ns": 5000}, "begins when the first has ended"),
        ({"tid": 1}, "is of the same thread"),
        ({"address_space": 4}, "is of another address space"),
        ({"kind": int(OpKind.CLONE)}, "takes no mmap_lock"),
        ({"kind": MADVISE, "flags": 4, "tid": 2}, "is MADV_DONTNEED, a reader beside a reader"),
        ({"duration_ns": None, "duration_kind": 0, "begin_ns": -1}, "has no known end"),
    ],
)
def test_what_does_not_expose(other: dict[str, Any], what: str) -> None:
    first = _op(0, 5000, FAULT)
    row = _split([*_quiet(*NINE, kind=FAULT), first, _op(100, 3000, MMAP, tid=2) | other])[0]
    assert _parts(row) == (5000, 0, 0, 0), what


def test_advice_that_changes_vmas_exposes() -> None:
    huge = _op(0, 5000, MADVISE, tid=2, flags=14)  # MADV_HUGEPAGE
    row = _split([*_quiet(*NINE, kind=FAULT), _op(0, 5000, FAULT), huge])[0]
    assert _parts(row) == (1200, 3800, 0, 0)


def test_contention_counts_without_exposure() -> None:
    """The holder may be outside the recording: the span says that it was there."""
    (row,) = _split([*_quiet(*NINE), _op(0, 5000, contention_ns=700)])
    assert _parts(row) == (4300, 700, 0, 0)


def test_the_largest_of_the_three_is_the_wait() -> None:
    beside = _op(0, 100_000, MUNMAP, tid=2)
    for off, contention, wait in ((0, 700, 3800), (4100, 700, 4100), (4100, 4300, 4300)):
        first = _op(0, 5000, blocked_inside_ns=off, contention_ns=contention)
        row = _split([*_quiet(*NINE), first, beside])[0]
        assert _parts(row) == (5000 - wait, wait, 0, 0)


def test_a_wait_is_never_longer_than_the_operation() -> None:
    (row,) = _split([_op(0, 5000, contention_ns=6000, blocked_inside_ns=7000)])
    assert _parts(row) == (0, 5000, 0, 0)


def test_off_cpu_of_a_minor_fault_is_a_wait_of_a_major_fault_io() -> None:
    fault = {"kind": FAULT, "blocked_inside_ns": 40_000}
    minor = _op(0, 50_000, **fault, fault_class=int(FaultClass.MINOR))
    major = _op(0, 50_000, **fault, fault_class=int(FaultClass.MAJOR))
    assert _parts(_split([minor])[0]) == (10_000, 40_000, 0, 0)
    assert _parts(_split([major])[0]) == (10_000, 0, 40_000, 0)


def test_contention_inside_a_major_fault_is_not_io() -> None:
    major = _op(
        0,
        50_000,
        FAULT,
        fault_class=int(FaultClass.MAJOR),
        blocked_inside_ns=40_000,
        contention_ns=15_000,
    )
    assert _parts(_split([major])[0]) == (10_000, 15_000, 25_000, 0)


@pytest.mark.parametrize("kind", [OpKind.EXEC, OpKind.MSYNC, OpKind.VFORK])
def test_calls_that_block_for_other_reasons(kind: OpKind) -> None:
    (row,) = _split([_op(0, 50_000, int(kind), blocked_inside_ns=40_000)])
    assert _parts(row) == (10_000, 0, 40_000, 0)


def test_preemption_inside_is_neither_service_nor_wait() -> None:
    beside = _op(1, 100_000, MUNMAP, tid=2)
    spans = [
        {"tid": 1, "off_ns": 1000, "on_ns": 2500, "reason": int(SpanEnd.PREEMPTED)},
        {"tid": 1, "off_ns": 4900, "on_ns": 9000, "reason": int(SpanEnd.PREEMPTED)},
        {"tid": 1, "off_ns": 2600, "on_ns": 2700, "reason": int(SpanEnd.BLOCKED)},
        {"tid": 2, "off_ns": 0, "on_ns": 5000, "reason": int(SpanEnd.PREEMPTED)},
        {"tid": 1, "off_ns": 9500, "on_ns": None, "reason": int(SpanEnd.PREEMPTED)},
    ]
    # Inside [0, 5000): 1,500 + 100 ns.  Room 3,400 less the class's 1,200.
    row = _split([*_quiet(*NINE), _op(0, 5000), beside], spans)[0]
    assert _parts(row) == (1200, 2200, 0, 0)


def test_what_went_by_before_the_last_sleep_was_over_is_waiting() -> None:
    """Spinning before a sleep and between two: the other was there for 1,000 ns only."""
    slow = _op(0, 20_000, blocked_inside_ns=6000)
    spans = [
        {"tid": 1, "off_ns": 5000, "on_ns": 8000, "reason": int(SpanEnd.BLOCKED)},
        {"tid": 1, "off_ns": 11_000, "on_ns": 14_000, "reason": int(SpanEnd.BLOCKED)},
        {"tid": 1, "off_ns": 30_000, "on_ns": 31_000, "reason": int(SpanEnd.BLOCKED)},
        {"tid": 2, "off_ns": 15_000, "on_ns": 19_000, "reason": int(SpanEnd.BLOCKED)},
    ]
    rows = [*_quiet(*NINE), slow, _op(0, 1000, tid=2)]
    assert _parts(_split(rows)[0]) == (14_000, 6000, 0, 0)  # without the spans: the sleeps alone
    assert _parts(_split(rows, spans)[0]) == (6000, 14_000, 0, 0)


def test_sleeps_that_io_explains_expose_nothing() -> None:
    slow = _op(0, 20_000, FAULT, blocked_inside_ns=3000, fault_class=int(FaultClass.MAJOR))
    span = {"tid": 1, "off_ns": 9000, "on_ns": 12_000, "reason": int(SpanEnd.BLOCKED)}
    assert _parts(_split([slow], [span])[0]) == (17_000, 0, 3000, 0)


def test_nested_operations_are_counted_once() -> None:
    """A fault inside a call: the call's room is what the fault leaves."""
    nested = _op(1000, 1500, FAULT, quality=int(Quality.NESTED_IN_SYSCALL))
    call, fault = _split([_op(0, 5000, int(OpKind.EXEC)), nested])
    assert _parts(call) == (3500, 0, 0, 0)
    assert _parts(fault) == (1500, 0, 0, 0)


def test_the_corrected_duration_is_what_is_split() -> None:
    (row,) = _split([_op(0, 5000, duration_corrected_ns=4100, contention_ns=100)])
    assert _parts(row) == (4000, 100, 0, 0)


def test_upper_bounds_leave_the_rest_unattributed() -> None:
    bounded = _op(0, 20_000, FAULT, contention_ns=300, unattributed_ns=50)
    bounded["duration_kind"] = UPPER
    (row,) = _split([*_quiet(*NINE, kind=FAULT), bounded])
    assert _parts(row) == (1200, 300, None, 50 + 18_500)


def test_an_upper_bound_without_any_measured_one_takes_the_default() -> None:
    bounded = _op(0, 20_000, FAULT) | {"duration_kind": UPPER}
    short = _op(30_000, 1000, FAULT) | {"duration_kind": UPPER}
    first, second = _split([bounded, short])
    default = DEFAULT_SERVICE_NS[OpKind.FAULT_USER]
    assert _parts(first) == (default, 0, None, 20_000 - default)
    assert _parts(second) == (1000, 0, None, 0)


def test_without_a_duration_nothing_is_known() -> None:
    (row,) = _split([*_quiet(*NINE), _op(0, None, unattributed_ns=9)])
    assert _parts(row) == (None, None, None, 9)


@pytest.mark.parametrize(
    "other_class",
    [
        {"length": 1 << 20},
        {"flags": 0x20},
        {"errno": 12},
        {"kind": int(OpKind.FAULT_KERNEL), "length": None},
    ],
)
def test_classes_do_not_mix(other_class: dict[str, Any]) -> None:
    """Nine slow operations of another class do not change what this one's are compared with."""
    slow = [row | other_class for row in _quiet(*(90_000 + n for n in NINE))]
    shifted = [row | {"begin_ns": row["begin_ns"] + 500_000} for row in slow]
    row = _split([*_quiet(*NINE), *shifted, _op(0, 5000), _op(0, 9000, tid=2)])[0]
    assert _parts(row) == (1200, 3800, 0, 0)


def test_sizes_within_a_power_of_two_are_one_class() -> None:
    rows = [row | {"length": 5 * 4096} for row in _quiet(*NINE)]
    beside = _op(0, 9000, MUNMAP, tid=2)
    row = _split([*rows, _op(0, 5000) | {"length": 7 * 4096}, beside])[0]
    assert _parts(row) == (1200, 3800, 0, 0)


def test_disturbed_operations_do_not_enter_the_quartile() -> None:
    """Seven quiet ones are too few, and the fast but doubtful ones do not make up for it."""
    doubtful = [row | {"quality": int(Quality.AFTER_GAP)} for row in _quiet(*[500] * 30)]
    shifted = [row | {"begin_ns": row["begin_ns"] + 500_000} for row in doubtful]
    ops = frame(
        "operations",
        sorted(
            [*_quiet(*NINE[:7]), *shifted, _op(0, 5000), _op(0, 6000, tid=2)],
            key=lambda row: row["begin_ns"],
        ),
    )
    done, report = split(ops)
    # The default is 1,890 but never above the class's low quartile over all: 500.
    # 5,000 - 500 and 6,000 - 500 exceed it; the second's exposure is 5,000.
    assert done.filter(pl.col("begin_ns") == 0)["service_ns"].to_list() == [500, 1000]
    assert report.default_service == 2
    _, with_eight = split(ops.filter(pl.col("tid") == 1))
    assert with_eight.default_service == 0  # nothing exposed, nothing asked for


def test_no_operations_at_all() -> None:
    empty = frame("operations", [])
    done, report = split(empty)
    assert done.equals(empty)
    assert report.operations == 0


# -- against a plain reading of the rules -------------------------------------------------


@st.composite
def _operations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Operations of a few threads; those of one thread follow each other."""
    rows: list[dict[str, Any]] = []
    for tid in range(1, draw(st.integers(1, 4)) + 1):
        at = draw(st.integers(0, 20))
        for _ in range(draw(st.integers(0, 6))):
            duration = draw(st.integers(1, 30))
            rows.append(
                _op(
                    at,
                    duration,
                    draw(st.sampled_from([FAULT, MMAP, int(OpKind.CLONE)])),
                    tid=tid,
                    address_space=draw(st.integers(0, 1)),
                    blocked_inside_ns=draw(st.integers(0, 12)),
                    contention_ns=draw(st.integers(0, 12)),
                )
            )
            at += duration + draw(st.integers(0, 10))
    return sorted(rows, key=lambda row: row["begin_ns"])


def _exposure_ns(rows: list[dict[str, Any]], one: dict[str, Any]) -> int:
    """Rule 3's definition, nanosecond by nanosecond."""
    covered: set[int] = set()
    for other in rows:
        if other["tid"] == one["tid"] or other["address_space"] != one["address_space"]:
            continue
        kinds = {one["kind"], other["kind"]}
        if int(OpKind.CLONE) not in kinds and MMAP in kinds:
            covered |= set(range(other["begin_ns"], other["begin_ns"] + other["duration_ns"]))
    return len(covered & set(range(one["begin_ns"], one["begin_ns"] + one["duration_ns"])))


@given(rows=_operations())
@settings(max_examples=150, deadline=None)
def test_exposure_equals_its_definition_and_time_is_conserved(
    rows: list[dict[str, Any]],
) -> None:
    # With service at 0 by default the wait is what was recorded or the whole exposure.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "DEFAULT_SERVICE_NS", dict.fromkeys(OpKind, 0))
        patch.setattr(services, "MIN_QUIET", len(rows) + 1)
        done, report = split(frame("operations", rows))
    exposures = [_exposure_ns(rows, row) for row in rows]
    assert report.exposed == sum(exposure > 0 for exposure in exposures)
    for row, exposure, parts in zip(rows, exposures, done.iter_rows(named=True), strict=True):
        recorded = max(row["blocked_inside_ns"], row["contention_ns"])
        assert parts["wait_ns"] == min(max(recorded, exposure), row["duration_ns"])
        assert parts["service_ns"] == row["duration_ns"] - parts["wait_ns"]


@given(rows=_operations(), batch=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_batches_do_not_change_the_answer(rows: list[dict[str, Any]], batch: int) -> None:
    whole = split(frame("operations", rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timesplit, "_BATCH_ROWS", batch)
        patch.setattr(timesplit, "KEPT_ROWS", 7)
        assert split(frame("operations", rows))[0].equals(whole[0])


# -- on the trace that is being written ----------------------------------------------------


@pytest.mark.parametrize("hold", [1000, 5])
def test_finalise_rewrites_what_the_writer_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: int
) -> None:
    """The same in memory and when the rows were spilled to disk."""
    monkeypatch.setattr(writer_module, "HOLD_ROWS", hold)
    rows = [*_quiet(*NINE), _op(0, 5000), _op(1, 9000, tid=2)]
    spans = [
        {"tid": 1, "off_ns": 1000 + n, "on_ns": 1001 + n, "reason": int(SpanEnd.PREEMPTED)}
        for n in range(0, 100, 10)
    ]
    ops, schedule = frame("operations", rows), frame("schedule", spans)
    header = Header(counters={"orphan_exits": 2})
    with TraceWriter(tmp_path / "a.mmt") as writer:
        for first in range(0, ops.height, 4):
            writer.write("operations", ops.slice(first, 4))
        writer.write("schedule", schedule)
        finalise(writer, header)
        trace = writer.close(header)
    assert trace.operations.collect().equals(split(ops, schedule)[0])
    assert trace.schedule.collect().equals(schedule)
    first = trace.operations.filter(pl.col("begin_ns") == 0).collect().row(0, named=True)
    assert _parts(first) == (1200, 3790, 0, 0)
    assert trace.header.counters["orphan_exits"] == 2
    assert trace.header.counters["timesplit_exposed"] == 2
    assert sorted(path.suffix for path in (tmp_path / "a.mmt").iterdir()) == [
        ".json",
        *[".parquet"] * 4,
    ]


def test_finalise_without_operations(tmp_path: Path) -> None:
    header = Header()
    with TraceWriter(tmp_path / "a.mmt") as writer:
        finalise(writer, header)
        writer.close(header).validate()
