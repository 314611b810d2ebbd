"""Trace to plan: replay the VMA map, the pages and the threads of a trace, compiled.

:func:`build_plan` is the entry, :func:`build_plans` the same for several rules and
windows over one reading of the trace.  It streams the trace in chunks in order of
effect (:mod:`.rows`), drives the compiled pass (:mod:`.plan_core`), growing the
state where the pass asks for room, and assembles the thread-major plan.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space import page_state as pages_
from mmreplay.address_space import segments as segments_
from mmreplay.address_space.assemble import assemble, lay_out
from mmreplay.address_space.plan import Plan
from mmreplay.address_space.plan_clone import Clones
from mmreplay.address_space.plan_core import advance
from mmreplay.address_space.plan_state import (
    Count,
    Cursor,
    Out,
    Status,
    Work,
    grown,
    make_out,
    make_work,
)
from mmreplay.address_space.points import Points, no_points
from mmreplay.address_space.rows import CHUNK_ROWS, Rows, Stream
from mmreplay.address_space.rules import Rules
from mmreplay.address_space.scale import PrivateRange, clone_base, private_ranges
from mmreplay.address_space.threads import Threads, read_threads, seen_threads
from mmreplay.address_space.times import COLUMNS, Times
from mmreplay.address_space.vma_state import OWN_FILES, MapState, Num, grow, new_state
from mmreplay.address_space.wakeups import Wakeups, read_wakeups
from mmreplay.errors import UserError
from mmreplay.jit import is_cold

_PASS: Final = "mmreplay.address_space.plan_core.advance"
#: Part of every cache key: raise it when the same trace gives another plan.
PLANNER: Final = 11


@dataclass(frozen=True)
class PlanThread:
    """One thread of a plan."""

    tid: int  # of a clone: that of the thread it copies
    pid: int
    comm: str
    group: int
    clone: int  # 0 as recorded, k the k-th clone
    index: int  # of the recorded thread, in the order of the threads table


@dataclass(frozen=True)
class PlanBundle:
    """A plan and what belongs to it.

    ``counters``: everything that was guessed, learnt or not usable, by name (see
    :class:`plan_state.Count`), and ``think_wall_fallback``.  ``spaces[m]`` is the
    trace's address space of mm ``m``.
    """

    plan: Plan
    counters: dict[str, int]
    threads: tuple[PlanThread, ...]
    spaces: NDArray[np.int64]
    groups: tuple[str, ...]
    window: tuple[int, int]  # rows of the operations table, exclusive end
    window_ns: tuple[int, int]
    notes: tuple[str, ...] = field(default=())

    def group_index(self, name: str) -> int:
        """Index of a thread group; a :class:`UserError` offers the closest."""
        from mmreplay.errors import closest

        if name in self.groups:
            return self.groups.index(name)
        raise UserError(
            f'no thread group "{name}"{closest(name, self.groups)}',
            fix=f"the groups are {', '.join(self.groups)}",
        )


@dataclass
class _Pass:
    """The growing state of one pass."""

    m: MapState
    p: pages_.PageState
    s: segments_.Segments
    w: Work
    out: Out
    c: Clones

    def make_room(self, status: Status) -> None:
        """Grow what the compiled pass asked for."""
        need = int(self.w.cursor[Cursor.NEED])
        w, out = self.w, self.out
        if status == Status.GROW_MAP:
            if len(w.slots) >= len(self.m.start):
                self.m = grow(self.m)
            more = len(self.m.start) - len(w.slots)
            self.w = w._replace(slots=grown(w.slots, more, "uid", "bit"))
        elif status == Status.GROW_PAGES:
            self.p = pages_.grow_pages(self.p, need)
            self._grow_tables(need)
        elif status == Status.GROW_TABLES:
            self._grow_tables(8)
        elif status == Status.GROW_SEGMENTS:
            self.s = _grow_full(self.s)
            self.c = self.c._replace(moved=_grow_full(self.c.moved))
        elif status == Status.GROW_MARKS:
            self.out = out._replace(marks=grown(out.marks, need))
        elif status == Status.GROW_DEPS:
            self.out = out._replace(deps=grown(out.deps, need))
        elif status == Status.GROW_SLOTS:
            self.w = w._replace(bits=grown(w.bits, 8))
        elif status == Status.GROW_IDENTITIES:
            self.w = w._replace(identities=grown(w.identities, need, "bit", "space"))
        else:
            raise AssertionError(f"unknown status {status}")

    def _grow_tables(self, need: int) -> None:
        if len(self.w.table_initial) - pages_.tables_made(self.p) < need:
            self.w = self.w._replace(table_initial=grown(self.w.table_initial, need))


def _grow_full(s: segments_.Segments) -> segments_.Segments:
    return segments_.grow_segments(s) if segments_.any_full(s) else s


def count_rows(trace: Any) -> int:
    """Rows of the operations table."""
    import polars as pl

    return int(trace.operations.select(pl.len()).collect().item())


def cache_key(trace: Any, rules: Rules, **choices: object) -> str:
    """Hex key of a plan: the trace's content, the rules, the choices and the planner."""
    digest = hashlib.sha256()
    digest.update(f"planner {PLANNER}\n{trace.digest()}\n".encode())
    digest.update(rules.vector.tobytes())
    for name in sorted(choices):
        digest.update(f"{name}={choices[name]!r}\n".encode())
    return digest.hexdigest()[:32]


def build_plan(
    trace: Any,
    rules: Rules,
    *,
    window: tuple[int, int] | None = None,
    threads: Threads | None = None,
    huge_pages: Literal["never", "madvise", "always"] = "madvise",
    chunk: int = CHUNK_ROWS,
) -> PlanBundle:
    """Plan a trace, or some rows of it, under the VMA rules of a kernel range.

    Parameters
    ----------
    trace:
        A ``mmreplay.trace.store.Trace``.
    rules:
        From ``rules.load_rules`` or ``rules.rules_for``.
    window:
        Rows (first, end) of the operations table that make the plan; what comes
        before is replayed for its state only.
    threads:
        From ``scale.scale_group``, to plan with cloned or fewer threads.
    huge_pages:
        The system's transparent-huge-page mode; a trace does not tell.
    chunk:
        Rows read at a time: bounds the memory besides the plan's own.

    Raises
    ------
    UserError
        No operations, or a window outside the trace.
    """
    return build_plans(
        trace, [(rules, window)], threads=threads, huge_pages=huge_pages, chunk=chunk
    )[0]


def build_plans(
    trace: Any,
    wanted: Sequence[tuple[Rules, tuple[int, int] | None]],
    *,
    threads: Threads | None = None,
    huge_pages: Literal["never", "madvise", "always"] = "madvise",
    chunk: int = CHUNK_ROWS,
    private: dict[str, list[PrivateRange]] | None = None,
) -> list[PlanBundle]:
    """:func:`build_plan` for several rules and windows, reading the trace once.

    ``private``: the private ranges under rules of that name (:func:`private_ranges`) of
    earlier calls for the same trace; what is missing is found and added.
    """
    total = trace.rows("operations")
    if total == 0:
        raise UserError("the trace has no operations", fix="record page faults and mmap calls")
    modes = {"never": -1, "madvise": 0, "always": 1}
    if huge_pages not in modes:
        raise UserError(f'huge pages "{huge_pages}"', fix=f"use one of {', '.join(modes)}")
    spans = []
    for _, window in wanted:
        first, end = window if window is not None else (0, total)
        if not 0 <= first < end <= total:
            raise UserError(
                f"window {first}:{end} is not inside the trace", fix=f"choose rows of 0:{total}"
            )
        spans.append((first, end))
    seen, highest = seen_threads(trace)
    who = threads if threads is not None else read_threads(trace, seen)
    # Clones copy a chunk's rows: keep what is in memory at a time.
    chunk = max(chunk // max(int(who.copies.max(initial=1)), 1), 1)
    stream = Stream(trace, who, chunk=chunk, extra=COLUMNS)
    spaces = 1 + max(
        highest, int(who.space.max(initial=0)), int(stream.mappings.space.max(initial=0))
    )
    known = private if private is not None else {}
    passes = []
    for (rules, _), span in zip(wanted, spans, strict=True):
        state = _start(stream, who, spaces, _planned(trace, who, *span))
        if who.n > who.n_recorded:
            if rules.name not in known:
                known[rules.name] = private_ranges(build_plan(trace, rules))
            state.c = _clones(trace, who, spaces, stream, known[rules.name])
        passes.append(_Replay(state, rules.vector, span, modes[huge_pages]))
    wakeups = read_wakeups(trace, who)
    times = {span: Times(who.n, *span) for span in spans}
    done: dict[int, PlanBundle] = {}
    # A clone's row is changed while it is planned, so passes over clones take turns.
    workers = 1 if who.n > who.n_recorded else min(len(passes), os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, thread_name_prefix="plan") as pool:
        for rows, order in stream:
            # Compiling takes 16 s, and Ctrl-C ends it in the main thread only.
            apply = pool.map if workers > 1 and not is_cold(_PASS) else map
            for one in times.values():
                one.add(stream.columns, stream.first_row, stream.row_threads)
            going = [i for i in range(len(passes)) if i not in done]
            list(apply(lambda i: passes[i].feed(rows, order), going))  # noqa: B023
            for i in going:
                if stream.done_row >= spans[i][1]:
                    whole = spans[i][1] == total
                    one = times[spans[i]]
                    done[i] = _finish(trace, who, stream, passes[i].state, one, whole, wakeups)
            if len(done) == len(passes):
                break
    return [done[i] for i in range(len(passes))]


@dataclass
class _Replay:
    """One pass over the stream, under some rules, for one window."""

    state: _Pass
    rules: NDArray[np.int64]
    span: tuple[int, int]
    mode: int

    def feed(self, rows: Rows, order: NDArray[np.int64]) -> None:
        """Replay a chunk."""
        state = self.state
        at = 0
        while at < len(order):
            at, status = advance(
                rows, order, at, state.m.core, self.rules, state.p, state.s, state.w, state.out,
                state.c, *self.span, self.mode,
            )  # fmt: skip
            if status != Status.DONE:
                state.make_room(Status(status))


def _planned(trace: Any, who: Threads, first: int, end: int) -> int:
    """Operations that the plan will have at most, clones counted."""
    if who.as_recorded:
        return end - first
    import polars as pl

    frame = trace.operations.slice(first, end - first).group_by("tid").agg(pl.len()).collect()
    copies: dict[int, int] = {}  # a recycled tid: the most of its lives
    for tid, n in zip(who.tid.tolist(), who.copies.tolist(), strict=False):
        copies[tid] = max(n, copies.get(tid, 0))
    return sum(int(n) * copies.get(int(tid), 1) for tid, n in frame.iter_rows())


def _start(stream: Stream, who: Threads, spaces: int, planned: int) -> _Pass:
    m = new_state(spaces, max(1024, 64 * min(spaces, 64)))
    return _Pass(
        m=m,
        p=pages_.make_pages(spaces),
        s=segments_.make_segments(spaces),
        w=make_work(who.n, spaces, len(m.start), stream.mappings.file_hints()),
        out=make_out(planned),
        c=no_clones(who, spaces),
    )


def no_clones(who: Threads, spaces: int) -> Clones:
    """Nothing to place anew."""
    clones = max(who.n - who.n_recorded, 1)
    return Clones(
        n_recorded=who.n_recorded,
        clone_of=np.zeros(clones, np.int32),
        moved=segments_.make_segments(clones),
        base=np.full(spaces, 1 << 46, np.int64),
        private=segments_.make_segments(max(who.n_recorded, 1)),
    )


def _clones(
    trace: Any, who: Threads, spaces: int, stream: Stream, private: list[PrivateRange]
) -> Clones:
    clones = no_clones(who, spaces)
    clones.clone_of[:] = who.clone_of[who.n_recorded :]
    clones.base[:] = clone_base(trace, stream.mappings, spaces)
    ranges = clones.private
    for thread, low, high in private:
        if who.copies[thread] < 2:
            continue
        while segments_.any_full(ranges):
            ranges = segments_.grow_segments(ranges)
        segments_.assign(ranges, thread, low, high, 1)
    return clones._replace(private=ranges)


def _finish(
    trace: Any,
    who: Threads,
    stream: Stream,
    state: _Pass,
    times: Times,
    whole: bool,
    wakeups: Wakeups | None,
) -> PlanBundle:
    span = int(getattr(trace.header, "span_ns", 0) or 0)
    begin_ns, end_ns = times.span
    if not times.first:
        begin_ns = min(0, begin_ns)
    if whole:
        end_ns = max(end_ns, span)
    numbers = state.m.numbers
    window_ns = (begin_ns, end_ns)
    layout = lay_out(
        state.out,
        state.w,
        int(numbers[Num.NEXT_UID]),
        pages_.tables_made(state.p),
        stream.mappings.files,
        int(numbers[Num.NEXT_FILE]) - OWN_FILES,
        who,
    )
    points = None
    if wakeups is not None:
        points = Points(wakeups, who, layout, state.out.ops, times, window_ns, whole)
    gaps = points.gaps if points is not None else no_points()
    plan, spaces = assemble(state.out, state.w, layout, who, times, window_ns, whole, gaps)
    counters = {kind.name.lower(): int(state.w.counters[kind]) for kind in Count if kind != Count.N}
    counters["dependencies"] = len(plan.dep_op)
    counters |= {"wakeups": 0, "wakeups_left_out": 0, "wakeups_cyclic": 0}
    if points is not None:
        found = points.inserted(plan)
        plan = found.plan
        counters["wakeups"] = found.waits
        counters["wakeups_left_out"] = found.left_out
        counters["wakeups_cyclic"] = found.cyclic
    counters["think_wall_fallback"] = times.wall_fallback
    counters.update(stream.counters)
    rows = [
        PlanThread(
            tid=int(who.tid[t]),
            pid=int(who.pid[t]),
            comm=who.comm[t],
            group=int(who.group[t]),
            clone=int(t - who.first_clone[who.clone_of[t]] + 1) if who.clone_of[t] >= 0 else 0,
            index=int(who.clone_of[t] if who.clone_of[t] >= 0 else t),
        )
        for t in layout.who
    ]
    scaled = who.n > who.n_recorded
    notes = ("upper bound: memory map only",) if scaled and not counters.get("wakeups") else ()
    return PlanBundle(
        plan=plan,
        counters=counters,
        threads=tuple(rows),
        spaces=spaces.astype(np.int64),
        groups=who.group_names,
        window=(times.first, times.end),
        window_ns=window_ns,
        notes=notes,
    )


__all__ = ["PLANNER", "PlanBundle", "PlanThread", "build_plan", "build_plans", "cache_key"]
