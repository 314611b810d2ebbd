"""The total order of a record stream, against an oracle that sorts all of it at once."""

from __future__ import annotations

import random
from pathlib import Path

import perfwriter as pw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmreplay.importers import events as ev
from mmreplay.importers.perf import data as perf_data
from mmreplay.importers.perf import streams

#: A record: its time (0 made up by the recorder, None it has none), or the end of a round.
Record = int | str | None


def oracle(records: list[Record]) -> list[tuple[int, int, int]]:
    """(time, record, mark) in order: docs/import.md, "Order", and the guess for untimed ones."""
    newest = before = limit = -1
    found: list[tuple[int, int, int]] = []
    waiting: list[int] = []
    for number, time in enumerate(records):
        if time is None:
            waiting.append(number)
        elif isinstance(time, str):
            limit, before = before, newest
        else:
            newest = max(newest, time)
            mark = ev.SYNTHETIC if time == 0 else ev.LATE if time < limit else 0
            own = max(time, limit, 0)
            found += [(own, one, 0) for one in waiting] + [(own, number, mark)]
            waiting = []
    found += [(max(newest, 0), one, 0) for one in waiting]
    return sorted(found)


def read(records: list[Record], folder: Path, timed: bool, walk: int) -> list[tuple[int, int, int]]:
    w = pw.default()
    if not timed:
        for event in w.events:
            event.bits &= ~pw.SAMPLE_ID_ALL
    for number, time in enumerate(records):
        if isinstance(time, str):
            w.round()
        elif time is None:
            w.comm(0, number + 1, number + 1, b"name")
        else:
            w.fault(pw.FAULT, time, number + 1, 4096)
    found: list[tuple[int, int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "WALK_ROWS", walk)
        patch.setattr(streams, "READY_ROWS", 64)
        recording = perf_data.open_recording(w.save(folder / "perf.data"))
        try:
            for batch, rows in perf_data.batches(recording):
                marks = batch.mark[:rows] & (ev.LATE | ev.SYNTHETIC)
                numbers = batch.tid[:rows] - 1
                columns = (batch.time[:rows], numbers, marks)
                found += zip(*(column.tolist() for column in columns), strict=True)
        finally:
            recording.close()
    return found


def rings(seed: int, rounds: int, cpus: int, steps: int, disorder: float) -> list[Record]:
    """Rounds of rings, whose times overlap; some records are too late, some made up."""
    draw = random.Random(seed)
    records: list[Record] = []
    for number in range(rounds):
        for _ in range(draw.randint(0, cpus)):
            now = 1000 + 300 * number
            for _ in range(draw.randint(0, steps)):
                now += draw.choice([0, 0, 1, 7, 40])
                other = draw.choice([0, max(1, now - 900), draw.randint(1, 3000)])
                records.append(other if draw.random() < disorder else now)
        records.append("round")
    return records


@given(
    seed=st.integers(0, 1 << 32),
    rounds=st.integers(1, 5),
    cpus=st.integers(1, 5),
    disorder=st.sampled_from([0, 0.03, 0.5, 1]),
    untimed=st.sampled_from([0, 0.05, 0.6]),
    walk=st.integers(1, 400),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_order_is_the_oracles(
    tmp_path: Path,
    seed: int,
    rounds: int,
    cpus: int,
    disorder: float,
    untimed: float,
    walk: int,
) -> None:
    records = rings(seed, rounds, cpus, 120, disorder)
    draw = random.Random(seed + 1)
    if untimed:
        records = [one if draw.random() >= untimed else None for one in records]
    wanted = oracle(records)
    begin = next((time for time, _, mark in wanted if time > 0 and not mark & ev.SYNTHETIC), 0)
    wanted = [(max(time - begin, 0), number, mark) for time, number, mark in wanted]
    assert read(records, tmp_path, untimed == 0, walk) == wanted


def test_each_record_may_be_a_run(tmp_path: Path) -> None:
    """Times that only fall: as many runs as records, more than there is room for at first."""
    records: list[Record] = [5000 - k for k in range(3000)]
    found = read(records, tmp_path, True, 1 << 17)
    assert [number for _, number, _ in found] == list(range(2999, -1, -1))
