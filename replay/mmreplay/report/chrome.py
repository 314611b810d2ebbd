"""The trace as Chrome trace-event JSON, which ui.perfetto.dev and chrome://tracing open.

The object form of the "Trace Event Format" document (Google, 2016): complete events (``X``) for
operations on their thread, nestable asynchronous events (``b``, ``e``) for what may cross an
operation's end, instants (``i``), and metadata (``M``) for names.  Times are microseconds, with
the nanoseconds as fraction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import numpy as np
import polars as pl

from mmreplay.report import timeline
from mmreplay.trace.store import Trace

_HEX: Final = np.frombuffer(b"0123456789abcdef", np.uint8)
_SHIFTS: Final = np.arange(60, -1, -4).astype(np.uint64)
_OFF_CATEGORIES: Final = {timeline.OFF: "schedule", timeline.WAITS: "lock"}


def chunks(trace: Trace, begin_ns: int, end_ns: int) -> Iterator[str]:
    """The file in pieces: one object, an event a line."""
    yield '{"displayTimeUnit":"ns","otherData":' + json.dumps(_about(trace))
    yield ',"traceEvents":[\n'
    names = {task.tid: task.name for task in timeline.tasks(trace)}
    yield ",\n".join(_metadata(trace)) or '{"ph":"M","name":"process_labels","pid":0,"args":{}}'
    for frame in timeline.slices(trace, begin_ns, end_ns):
        yield ",\n" + _joined(frame.select(_operation(frame)))
    for track, frame in timeline.spans(trace, begin_ns, end_ns):
        if frame.height:
            yield ",\n" + _joined(_asynchronous(frame, track, names))
    for at_ns, lost in timeline.losses(trace, begin_ns, end_ns).iter_rows():
        event = {"ph": "i", "s": "g", "pid": 0, "tid": 0, "ts": at_ns / 1000, "cat": "loss"}
        yield ",\n" + json.dumps({**event, "name": f"{lost} events lost"})
    yield "\n]}\n"


def _about(trace: Trace) -> dict[str, str | int | None]:
    header = trace.header
    return {
        "kernel": header.kernel_release,
        "cpu": header.machine.cpu_model,
        "clock": header.clock.name,
        "t0_ns": header.t0_ns,
        "lost_events": header.lost_events,
    }


def _metadata(trace: Trace) -> Iterator[str]:
    processes = set()
    found = timeline.tasks(trace)
    leaders = {task.pid: task.name for task in found if task.tid == task.pid}
    for task in found:
        if task.pid not in processes:
            processes.add(task.pid)
            name = leaders.get(task.pid, task.name)
            yield _named("process_name", task.pid, task.pid, name)
        yield _named("thread_name", task.pid, task.tid, task.name)


def _named(what: str, pid: int, tid: int, name: str) -> str:
    event = {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}
    return json.dumps(event)


def _joined(lines: pl.DataFrame) -> str:
    return str(lines.to_series().str.join(",\n").item())


def _us(column: pl.Expr) -> pl.Expr:
    """Nanoseconds as microseconds with three places, exactly."""
    whole = (column.abs() // 1000).cast(pl.String)
    part = (column.abs() % 1000).cast(pl.String).str.zfill(3)
    sign = pl.when(column < 0).then(pl.lit("-")).otherwise(pl.lit(""))
    return pl.concat_str(sign, whole, pl.lit("."), part)


def hexadecimal(values: pl.Series) -> pl.Series:
    """``0x…`` of unsigned numbers; null stays null."""
    plain = values.fill_null(0).cast(pl.UInt64).to_numpy()
    digits = (plain[:, None] >> _SHIFTS) & np.uint64(15)
    text = _HEX[digits.astype(np.intp)].view("S16").ravel().astype("U16")
    short = pl.Series(values.name, text).str.strip_chars_start("0")
    shown = "0x" + pl.select(pl.when(short == "").then(pl.lit("0")).otherwise(short)).to_series()
    return shown.set(values.is_null(), None).rename(values.name)


def _operation(frame: pl.DataFrame) -> pl.Expr:
    arguments = [pl.concat_str(pl.lit(f',"{n}":'), n) for n in timeline.NUMBERS]
    for name in timeline.POINTERS:
        shown = pl.lit(hexadecimal(frame[name]))
        arguments.append(pl.concat_str(pl.lit(f',"{name}":"'), shown, pl.lit('"')))
    arguments.append(pl.concat_str(pl.lit(',"class":"'), "class", pl.lit('"')))
    written = pl.when("write").then(pl.lit("true")).otherwise(pl.lit("false"))
    arguments.append(
        pl.when(pl.col("write").is_not_null()).then(pl.concat_str(pl.lit(',"write":'), written))
    )
    point = pl.col("duration_ns").is_null()
    kind = (
        pl.when(point)
        .then(pl.lit('"i","s":"t"'))
        .otherwise(pl.concat_str(pl.lit('"X","dur":'), _us(pl.col("duration_ns"))))
    )
    category = pl.when(pl.col("class").is_null()).then(pl.lit("call")).otherwise(pl.lit("fault"))
    inside = pl.concat_str(arguments, ignore_nulls=True).str.slice(1)
    return pl.concat_str(
        pl.lit('{"ph":'),
        kind,
        pl.lit(',"name":"'),
        "name",
        pl.lit('","cat":"'),
        category,
        pl.lit('","pid":'),
        "pid",
        pl.lit(',"tid":'),
        "tid",
        pl.lit(',"ts":'),
        _us(pl.col("begin_ns")),
        pl.concat_str(pl.lit(',"args":{'), inside, pl.lit("}}")),
    )


def _asynchronous(frame: pl.DataFrame, track: int, names: dict[int, str]) -> pl.DataFrame:
    """A begin and an end for each span; the thread's own id keeps its spans on one track."""
    category = _OFF_CATEGORIES[track]
    shown = frame["tid"].unique().to_list()
    titles = {tid: json.dumps(f"{names.get(tid, '?')} {tid}: ")[1:-1] for tid in shown}
    title = pl.col("tid").replace_strict(titles, return_dtype=pl.String)

    def side(phase: str, at: pl.Expr) -> pl.Expr:
        return pl.concat_str(
            pl.lit(f'{{"ph":"{phase}","cat":"{category}","name":"'),
            title,
            "name",
            pl.lit('","id":"'),
            "tid",
            pl.lit('","pid":'),
            "pid",
            pl.lit(',"tid":'),
            "tid",
            pl.lit(',"ts":'),
            _us(at),
            pl.lit("}"),
        )

    begin = side("b", pl.col("begin_ns"))
    end = side("e", pl.col("begin_ns") + pl.col("duration_ns"))
    return frame.select(pl.concat_str(begin, pl.lit(",\n"), end))
