"""Wake-ups of a trace as points of its plan: by hand, and against a twin in plain Python."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_invariants import check_plan

from mmreplay.address_space.plan import WAKE_POINT, Plan, PlanOp
from mmreplay.address_space.planner import PlanBundle, build_plan
from mmreplay.address_space.points import _acyclic
from mmreplay.address_space.rules import rules_for
from mmreplay.address_space.scale import scale_group
from mmreplay.schema import DurationKind, OpKind
from mmreplay.trace.header import Capabilities, Header
from mmreplay.trace.store import Trace, frame

RULES = rules_for("6.12")


class Wake(NamedTuple):
    """``after`` and ``waker_after`` count the operations of the thread (0: before its first)."""

    thread: int
    waker: int
    wake_ns: int
    after: int
    waker_after: int
    cpu_ns: int = 0
    waker_cpu_ns: int = 0
    slept_ns: int = 100
    blocked_ns: int = 0
    waker_blocked_ns: int = 0


def trace_of(
    threads: list[list[tuple[int, int, int]]],
    wakes: list[Wake],
    groups: list[str] | None = None,
    tails: list[tuple[int, int]] | None = None,
) -> Trace:
    """Threads 100, 101, ... of (begin_ns, think_cpu_ns, think_blocked_ns); mincore, 10 ns each."""
    rows = sorted(
        (begin, t, cpu, blocked)
        for t, thread in enumerate(threads)
        for begin, cpu, blocked in thread
    )
    mine: list[list[int]] = [[] for _ in threads]
    for number, row in enumerate(rows):
        mine[row[1]].append(number)
    operations = [
        {
            "begin_ns": begin,
            "seq": number,
            "duration_ns": 10,
            "duration_kind": int(DurationKind.MEASURED),
            "think_cpu_ns": cpu,
            "think_blocked_ns": blocked,
            "preempted_ns": 0,
            "pid": 100,
            "tid": 100 + t,
            "kind": int(OpKind.MINCORE),
            "address": 0x7F00_0000_0000,
            "length": 4096,
            "result": 0,
        }
        for number, (begin, t, cpu, blocked) in enumerate(rows)
    ]

    def row_of(t: int, count: int) -> int | None:
        return mine[t][count - 1] if count else None

    table = [
        {
            "tid": 100 + w.thread,
            "off_ns": w.wake_ns - w.slept_ns,
            "wake_ns": w.wake_ns,
            "on_ns": w.wake_ns,
            "after": row_of(w.thread, w.after),
            "cpu_ns": w.cpu_ns,
            "blocked_ns": w.blocked_ns,
            "waker": 100 + w.waker,
            "waker_after": row_of(w.waker, w.waker_after),
            "waker_cpu_ns": w.waker_cpu_ns,
            "waker_blocked_ns": w.waker_blocked_ns,
        }
        for w in wakes
    ]
    names = groups or [f"group-{t}" for t in range(len(threads))]
    people = [
        {"tid": 100 + t, "pid": 100, "comm": name, "group": name, "start_kind": "attach"}
        | ({"tail_cpu_ns": tails[t][0], "tail_blocked_ns": tails[t][1]} if tails else {})
        for t, name in enumerate(names)
    ]
    return Trace.in_memory(
        Header(
            kernel_release="6.12.0",
            span_ns=1_000_000,
            capabilities=Capabilities(think="oncpu", wakeups=True),
        ),
        {
            "operations": frame("operations", operations),
            "threads": frame("threads", people),
            "wakeups": frame("wakeups", table),
        },
    )


def told(bundle: PlanBundle) -> list[list[tuple[Any, ...]]]:
    """Each thread: (what, on-CPU time, sleep, recorded wait, rows that it waits for)."""
    plan = bundle.plan
    check_plan(bundle)
    thread = np.repeat(np.arange(plan.n_threads), np.diff(plan.thread_first))
    out: list[list[tuple[Any, ...]]] = [[] for _ in range(plan.n_threads)]
    for k in range(plan.n_ops):
        deps = [
            (int(thread[d]), int(d - plan.thread_first[thread[d]]))
            for d in plan.dep_op[plan.dep_first[k] : plan.dep_first[k + 1]].tolist()
        ]
        point = bool(plan.traits[k] & WAKE_POINT)
        what = "op" if not point else "wait" if deps else "wake"
        assert not point or (plan.op[k], plan.row[k], plan.pages[k]) == (PlanOp.NONE, -1, 0)
        wait = int(plan.sleep_ns[k]) if what == "wait" else -1
        times = (int(plan.think_cpu_ns[k]), int(plan.think_blocked_ns[k]))
        out[thread[k]].append((what, *times, wait, *sorted(deps)))
    return out


def test_a_gap_is_cut_where_its_thread_woke_and_was_woken() -> None:
    # Thread 1 waits 300 ns for thread 0, after 40 ns of work and 50 ns of other sleep.
    trace = trace_of(
        [[(100, 100, 0), (900, 600, 0)], [(200, 200, 0), (1000, 140, 350)]],
        [Wake(1, 0, 700, 1, 1, cpu_ns=40, waker_cpu_ns=450, slept_ns=300, blocked_ns=50)],
    )
    bundle = build_plan(trace, RULES)
    assert told(bundle) == [
        [("op", 100, 0, -1), ("wake", 450, 0, -1), ("op", 150, 0, -1)],
        [("op", 200, 0, -1), ("wait", 40, 50, 300, (0, 1)), ("op", 100, 0, -1)],
    ]
    assert bundle.counters["wakeups"] == 1
    assert bundle.plan.n_ops == 6


def test_tails_are_cut_too() -> None:
    trace = trace_of(
        [[(100, 100, 0)], [(200, 200, 0)]],
        [Wake(1, 0, 700, 1, 1, cpu_ns=40, waker_cpu_ns=450, slept_ns=300)],
        tails=[(500, 7), (90, 320)],
    )
    bundle = build_plan(trace, RULES)
    assert told(bundle) == [
        [("op", 100, 0, -1), ("wake", 450, 0, -1)],
        [("op", 200, 0, -1), ("wait", 40, 0, 300, (0, 1))],
    ]
    assert bundle.plan.thread_tail_cpu_ns.tolist() == [50, 50]
    assert bundle.plan.thread_tail_blocked_ns.tolist() == [7, 20]


def test_a_barrier_of_a_scaled_group() -> None:
    # Thread 0 (main) waits for both workers; worker 2 arrives last and wakes worker 1.
    threads = [
        [(10, 10, 0), (2000, 10, 900)],
        [(20, 20, 0), (1500, 100, 500)],
        [(30, 30, 0), (1600, 900, 0)],
    ]
    wakes = [
        Wake(1, 2, 1000, 1, 1, waker_cpu_ns=800, slept_ns=500),
        Wake(0, 2, 1100, 1, 1, waker_cpu_ns=850, slept_ns=900),
        Wake(2, 0, 1550, 1, 1, cpu_ns=900, slept_ns=0),
    ]
    trace = trace_of(threads, wakes, ["main", "worker", "worker"])
    bundle = build_plan(trace, RULES, threads=scale_group(trace, "worker", 5))
    names = [(thread.comm, thread.tid, thread.clone) for thread in bundle.threads]
    place = {name[1:]: k for k, name in enumerate(names)}
    waits = [[item for item in thread if item[0] == "wait"] for thread in told(bundle)]
    # Worker 101 has two clones, worker 102 one: the k-th waits for the k-th, the rest for any.
    last = {clone: place[(102, clone)] for clone in (0, 1)}
    for clone, other in ((0, 0), (1, 1), (2, 0)):
        ((*_, (waker, _)),) = waits[place[(101, clone)]]
        assert waker == last[other]
    # Who is outside waits for all, and all wait for who is outside.
    ((_, _, _, _, *deps),) = waits[place[(100, 0)]]
    assert sorted(thread for thread, _ in deps) == sorted(last.values())
    for clone in (0, 1):
        ((*_, (waker, _)),) = waits[place[(102, clone)]]
        assert waker == place[(100, 0)]
    assert bundle.notes == ()


def test_threads_left_out_leave_think_time() -> None:
    trace = trace_of(
        [[(10, 10, 0)], [(20, 20, 0), (1500, 100, 500)], [(30, 30, 0), (1600, 900, 0)]],
        [Wake(1, 2, 1000, 1, 1, slept_ns=500)],
        ["main", "worker", "worker"],
    )
    bundle = build_plan(trace, RULES, threads=scale_group(trace, "worker", 1))
    assert told(bundle)[1] == [("op", 20, 0, -1), ("op", 100, 500, -1)]
    assert (bundle.counters["wakeups"], bundle.counters["wakeups_left_out"]) == (0, 1)


def test_a_window_keeps_what_matters_in_it() -> None:
    # Rows 0-5 by begin; the window is rows 2 to 4.
    threads = [[(100, 90, 0), (1100, 990, 0), (3000, 1890, 0)], [(200, 90, 0), (2000, 90, 1700)]]
    wakes = [
        Wake(1, 0, 500, 1, 1, waker_cpu_ns=390),  # before it
        Wake(1, 0, 1500, 1, 2, cpu_ns=80, waker_cpu_ns=390, slept_ns=700),
        Wake(0, 1, 2500, 2, 2, cpu_ns=900, waker_cpu_ns=490),  # nothing comes behind it
    ]
    bundle = build_plan(trace_of(threads, wakes), RULES, window=(2, 4))
    assert told(bundle) == [
        [("op", 0, 0, -1), ("wake", 390, 0, -1)],
        # It lost 890 ns of sleep to the window's begin; 700 ns of the rest are the wait.
        [("wait", 80, 0, 700, (0, 1)), ("op", 10, 110, -1)],
    ]
    assert bundle.counters["wakeups"] == 1


def test_a_wait_for_itself_is_given_up() -> None:
    def arrays(deps: dict[int, list[int]]) -> Plan:
        base = build_plan(
            trace_of([[(1, 0, 0), (3, 0, 0)], [(2, 0, 0), (4, 0, 0)]], []), RULES
        ).plan
        lists = [deps.get(k, []) for k in range(4)]
        return base._replace(
            traits=np.full(4, WAKE_POINT),
            sleep_ns=np.array([50, 60, 70, 80]),
            dep_first=np.cumsum([0, *map(len, lists)]),
            dep_op=np.array([d for one in lists for d in one], np.int64),
        )

    circle = arrays({0: [3], 2: [1]})
    plan, dropped = _acyclic(circle)
    assert dropped == 1
    assert plan.dep_op.tolist() == [1]
    assert plan.think_blocked_ns.tolist() == [50, 0, 0, 0]
    assert plan.sleep_ns.tolist() == [-1, 60, 70, 80]
    good = arrays({1: [2], 3: [1]})
    assert _acyclic(good) == (good, 0)


# -- against a twin ------------------------------------------------------------------------------


def twin(
    threads: list[list[tuple[int, int, int]]], wakes: list[Wake], tails: list[tuple[int, int]]
) -> list[list[tuple[Any, ...]]]:
    """What :func:`told` says of the whole trace, gap by gap."""
    order = sorted(range(len(wakes)), key=lambda w: wakes[w].wake_ns)
    out: list[list[tuple[Any, ...]]] = []
    where: dict[tuple[str, int], tuple[int, int]] = {}
    waits: list[tuple[int, int, int]] = []
    for t, thread in enumerate(threads):
        mine: list[tuple[Any, ...]] = []
        gaps = [*((cpu, blocked) for _, cpu, blocked in thread), tails[t]]
        for gap, (cpu, blocked) in enumerate(gaps):
            spent = slept = 0
            for number in order:
                w = wakes[number]
                for what, who, after, at, before in (
                    ("wait", w.thread, w.after, w.cpu_ns, w.blocked_ns),
                    ("wake", w.waker, w.waker_after, w.waker_cpu_ns, w.waker_blocked_ns),
                ):
                    if who != t or after != gap:
                        continue
                    worked = min(max(0, at - spent), cpu)
                    rested = min(max(0, before - slept), blocked)
                    cpu, blocked = cpu - worked, blocked - rested
                    spent, slept = spent + worked, slept + rested
                    if what == "wait":
                        slept += w.slept_ns
                        blocked = max(0, blocked - w.slept_ns)
                        waits.append((t, len(mine), number))
                    where[what, number] = t, len(mine)
                    mine.append((what, worked, rested, w.slept_ns if what == "wait" else -1))
            if gap < len(thread):
                mine.append(("op", cpu, blocked, -1))
        out.append(mine)
    for t, k, number in waits:
        out[t][k] = (*out[t][k], where["wake", number])
    return out


@st.composite
def stories(draw: Any) -> tuple[Any, ...]:
    times = st.integers(0, 300)
    threads = []
    for t in range(draw(st.integers(2, 4))):
        at, thread = 1000, []
        for _ in range(draw(st.integers(1, 4))):
            cpu, blocked = draw(times), draw(times)
            at += 4 * (100 + cpu + blocked)  # never two at once
            thread.append((at + t, cpu, blocked))
        threads.append(thread)
    wakes = []
    clock = 1000
    for _ in range(draw(st.integers(0, 8))):
        clock += draw(st.integers(1, 400))
        one, other = draw(st.permutations(range(len(threads))))[:2]

        def before(t: int, now: int = clock) -> int:
            return sum(begin <= now for begin, _, _ in threads[t])

        wakes.append(
            Wake(one, other, clock, before(one), before(other), *(draw(times) for _ in range(5)))
        )
    return threads, wakes, [(draw(times), draw(times)) for _ in threads]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(stories())
def test_points_equal_the_twin(story: tuple[Any, ...]) -> None:
    threads, wakes, tails = story
    bundle = build_plan(trace_of(threads, wakes, tails=tails), RULES)
    assert told(bundle) == twin(threads, wakes, tails)
    assert bundle.counters.get("wakeups", 0) == len(wakes)
    assert bundle.plan.thread_first[-1] == sum(map(len, threads)) + 2 * len(wakes)
