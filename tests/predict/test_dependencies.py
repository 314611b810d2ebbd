"""A consumer behind a producer that mmap_lock holds up: what another kernel does for it."""

from __future__ import annotations

from typing import Any

import pytest

from mmreplay.address_space.planner import build_plan
from mmreplay.address_space.rules import load_rules
from mmreplay.engine import Options, Replay
from mmreplay.locking.loader import load_model
from mmreplay.machine.loader import load_machine
from mmreplay.machine.topology import extrapolated
from mmreplay.predict import api
from mmreplay.predict.planning import UPPER_BOUND, WITH_DEPENDENCIES
from mmreplay.schema import DurationKind, FaultBits, FaultClass, OpKind
from mmreplay.trace.header import Capabilities, Header, Machine
from mmreplay.trace.store import Trace, frame

AREA = 0x7F00_0000_0000
ITEMS, PAGES = 20, 50
FAULT_NS, THINK_NS = 6000, 500  # as on a kernel where each fault waits for the mappers
PRODUCER, CONSUMER, MAPPERS = 100, 101, (102, 103)


def pipeline(wakeups: bool) -> Trace:
    """The producer writes to PAGES pages for each item; two threads map and unmap beside it."""
    item_ns = PAGES * (FAULT_NS + THINK_NS)
    rows: list[dict[str, Any]] = []

    def add(tid: int, kind: OpKind, begin: int, **more: Any) -> None:
        rows.append(
            {
                "begin_ns": begin,
                "tid": tid,
                "pid": 100,
                "kind": int(kind),
                "duration_ns": FAULT_NS,
                "duration_kind": int(DurationKind.MEASURED),
                "think_cpu_ns": THINK_NS,
                "think_blocked_ns": 0,
                "preempted_ns": 0,
                "service_ns": 1000,
                "wait_ns": FAULT_NS - 1000,
                "io_ns": 0,
                "unattributed_ns": 0,
                **more,
            }
        )

    for item in range(ITEMS):
        for page in range(PAGES):
            begin = item * item_ns + page * (FAULT_NS + THINK_NS) + THINK_NS
            add(
                PRODUCER,
                OpKind.FAULT_USER,
                begin,
                address=AREA + ((item * PAGES + page) << 12),
                fault_bits=int(FaultBits.WRITE | FaultBits.USER),
                fault_class=int(FaultClass.MINOR),
            )
        add(
            CONSUMER,
            OpKind.MINCORE,
            (item + 1) * item_ns + 2000,
            address=AREA,
            length=4096,
            result=0,
            think_blocked_ns=item_ns - FAULT_NS,
        )
    for k, tid in enumerate(MAPPERS):
        span = 2 * (FAULT_NS + THINK_NS)
        for loop in range(ITEMS * item_ns // span):
            begin = loop * span + 10 + k
            place = {"address": AREA + (1 << 32) * (1 + k), "length": 4 << 12}
            call = {"prot": 3, "flags": 0x22, "fd": -1, "result": place["address"]}
            add(tid, OpKind.MMAP, begin, **place, **call)
            add(tid, OpKind.MUNMAP, begin + FAULT_NS + THINK_NS, **place, result=0)
    rows.sort(key=lambda row: row["begin_ns"])
    mine = {tid: [k for k, row in enumerate(rows) if row["tid"] == tid] for tid in (100, 101)}
    waits = [
        {
            "tid": CONSUMER,
            "off_ns": item * item_ns + FAULT_NS,
            "wake_ns": (item + 1) * item_ns,
            "on_ns": (item + 1) * item_ns,
            "after": mine[CONSUMER][item - 1] if item else None,
            "cpu_ns": 0,
            "blocked_ns": 0,
            "waker": PRODUCER,
            "waker_after": mine[PRODUCER][(item + 1) * PAGES - 1],
            "waker_cpu_ns": 0,
            "waker_blocked_ns": 0,
        }
        for item in range(ITEMS)
    ]
    names = {PRODUCER: "producer", CONSUMER: "consumer", 102: "mapper", 103: "mapper"}
    header = Header(
        kernel_release="6.1.0",
        span_ns=ITEMS * item_ns + 10_000,
        machine=Machine(cpus_online=4),
        capabilities=Capabilities(
            fault_duration="measured",
            syscall_durations=True,
            think="oncpu",
            switches=True,
            wakeups=wakeups,
        ),
    )
    known = {"start": AREA, "length": 1 << 30, "prot": 3, "flags": 0x22, "source": "snapshot"}
    tables = {
        "operations": [row | {"seq": k} for k, row in enumerate(rows)],
        "threads": [
            {"tid": tid, "pid": 100, "comm": name, "group": name, "start_kind": "attach"}
            for tid, name in names.items()
        ],
        "vmas": [known],
        **({"wakeups": waits} if wakeups else {}),
    }
    return Trace.in_memory(header, {name: frame(name, some) for name, some in tables.items()})


def ends(trace: Trace, kernel: str) -> dict[str, float]:
    """When each thread group ended, in ms."""
    model = load_model(kernel)
    bundle = build_plan(trace, load_rules(model.vma_rules))
    machine = extrapolated(load_machine("epyc-zen4-guest-2cpu"), 4)
    result = Replay(bundle.plan, model).run(machine, Options(cores=4, wrap=False))
    return {
        thread.comm: int(end) / 1e6
        for thread, end in zip(bundle.threads, result.thread_end_ns, strict=True)
    }


def test_a_faster_producer_lets_its_consumer_end_earlier() -> None:
    trace = pipeline(wakeups=True)
    old, new = ends(trace, "linux-6.1"), ends(trace, "linux-6.18")
    assert new["producer"] < 0.8 * old["producer"]  # its faults no longer wait for the mappers
    for times in (old, new):
        assert times["consumer"] == pytest.approx(times["producer"], abs=0.2)


def test_without_wakeups_the_consumer_is_as_slow_as_it_was() -> None:
    trace = pipeline(wakeups=False)
    old, new = ends(trace, "linux-6.1"), ends(trace, "linux-6.18")
    assert new["producer"] < 0.8 * old["producer"]
    assert new["consumer"] == pytest.approx(old["consumer"], rel=0.1)  # its own few waits


@pytest.mark.parametrize(("wakeups", "scope"), [(True, WITH_DEPENDENCIES), (False, UPPER_BOUND)])
def test_predictions_say_whether_they_have_them(wakeups: bool, scope: str) -> None:
    found = api.predict(
        pipeline(wakeups),
        to_kernel="linux-6.18",
        cores=[4],
        scale_group="consumer",
        machine="epyc-zen4-guest-2cpu",
        seeds=1,
    )
    assert found.scope == scope
    gain = max(row.speedup or 0 for row in found.rows if row.load == "recorded")
    assert gain > 3 if wakeups else gain < 1.2
