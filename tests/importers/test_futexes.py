"""Futex calls tell whom a wait was for: rules by hand, in strace's text, and of a real program."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import perfwriter as pw
import pytest
from test_against_perf_script import FAULTS, LOCKS, record, syscalls
from test_wakeups import FIELDS, call, program  # noqa: F401

from mmreplay.importers.registry import import_trace
from mmreplay.importers.syscalls import CALLS, number_tables
from mmreplay.trace.store import Trace
from mmreplay.trace.summary import missing_capabilities, summarise

WAIT, WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP, WAIT_BITSET, WAKE_BITSET = 0, 1, 3, 4, 5, 9, 10
LOCK_PI, UNLOCK_PI, PRIVATE, ALL = 6, 7, 128, 2**32 - 1
MAIN, A, B, C, D = 100, 101, 102, 103, 104
HERE, THERE = 0x7F0000001000, 0x7F0000002000
ETIMEDOUT, EAGAIN = -110, -11
FUTEX_IN, FUTEX_OUT, WAKING = 17, 18, 19  # index of the event in `recorder`


class Futexes(pw.Writer):
    """A recording with futex calls; each thread has one operation, at 10 us + its number."""

    def enter(self, time: int, tid: int, op: int, value: int = 1, *more: int, **other: Any) -> None:
        address = other.pop("address", HERE)
        words = (address, op, value, *more, *(0,) * 3)[:6]
        self.call(FUTEX_IN, time, tid, *words, **other)

    def leave(self, time: int, tid: int, result: int = 0, **other: Any) -> None:
        self.call(FUTEX_OUT, time, tid, result, **other)

    def waits(
        self, begin: int, end: int, tid: int, result: int = 0, op: int = WAIT, *more: int
    ) -> None:
        """A wait: it enters at ``begin``, sleeps 1 us later, and returns at ``end``."""
        self.enter(begin, tid, op, *more)
        self.switch(begin + 1000, 100, tid, out=True)
        self.switch(end - 1000, 100, tid, out=False)
        self.leave(end, tid, result)

    def wakes(self, begin: int, tid: int, woke: int, op: int = WAKE, *more: int) -> None:
        self.enter(begin, tid, op, *more)
        self.leave(begin + 2000, tid, woke)


def recorder(*, wakings: bool = False, returns: bool = True) -> Futexes:
    plain = pw.default()
    w = Futexes(events=plain.events)
    w.formats[71] = pw.enter("futex", 71, "uaddr", "op", "val", "utime", "uaddr2", "val3")
    w.formats[72] = pw.leave("futex", 72) if returns else pw.leave("fsync", 72)
    w.formats[70] = ("sched", pw.format_text("sched_waking", 70, FIELDS))
    for config in (71, 72, 70 if wakings else 3):
        w.events.append(pw.Event(config, ids=(4711 + config,)))
    for k, tid in enumerate((MAIN, A, B, C, D)):
        call(w, 10_000 + 10 * k, tid)
    return w


def edges(w: Futexes, tmp_path: Path) -> tuple[list[tuple[int, int]], Trace]:
    """(who waited, for whom) in order of time, of a recording that ends with an operation each."""
    w.records.sort(key=_time)  # of the two or three threads that a test tells one after the other
    trace = import_trace(w.save(tmp_path / "perf.data"), tmp_path / "t.mmt", force=True)
    trace.validate()
    rows = trace.wakeups.sort("on_ns").select("tid", "waker").collect().rows()
    return rows, trace


def _time(one: bytes) -> int:
    """A record's time: samples have it behind (id, ip, tid), the others in their trailer."""
    kind = int.from_bytes(one[:4], "little")
    if kind == 9:
        return int.from_bytes(one[32:40], "little")
    return int.from_bytes(one[-24:-16], "little")


def test_a_wake_of_n_wakes_the_n_longest_waiting(tmp_path: Path) -> None:
    w = recorder()
    w.waits(20_000, 60_000, A)
    w.waits(21_000, 70_000, B, 0, WAIT | PRIVATE)  # private or not, the same address
    w.waits(22_000, 90_000, C)
    w.wakes(50_000, MAIN, 2)
    w.wakes(80_000, D, 1)
    rows, trace = edges(w, tmp_path)
    assert rows == [(A, MAIN), (B, MAIN), (C, D)]
    first = trace.wakeups.collect().row(0, named=True)
    assert (first["off_ns"], first["wake_ns"], first["on_ns"]) == (11_000, 40_000, 49_000)
    assert (first["after"], first["waker_after"]) == (1, 0)
    # 10 us from A's call to the futex call, and one more in it, less what that event cost
    assert first["cpu_ns"] == 20_000 + 1000 - 10_010 - 1000 - 900
    found = summarise(trace).dependencies
    assert (found.waits, found.think_ns) == (3, 0)


def test_who_is_back_before_the_waking_call_returns(tmp_path: Path) -> None:
    w = recorder()
    w.waits(20_000, 55_000, A)
    w.waits(21_000, 70_000, B)
    w.enter(50_000, MAIN, WAKE)
    w.leave(58_000, MAIN, 1)  # it woke A, and nobody else
    w.wakes(60_000, C, 1)
    assert edges(w, tmp_path)[0] == [(A, MAIN), (B, C)]


def test_who_timed_out_was_woken_by_nobody(tmp_path: Path) -> None:
    w = recorder()
    w.waits(20_000, 40_000, A, ETIMEDOUT)
    w.enter(45_000, A, WAIT)  # the value has changed meanwhile
    w.leave(52_000, A, EAGAIN)
    w.waits(46_000, 70_000, B)
    w.wakes(48_000, MAIN, 1)  # A is longer there, but only B was woken
    rows, trace = edges(w, tmp_path)
    assert rows == [(B, MAIN)]
    assert summarise(trace).dependencies.think_ns == 18_000


def test_another_than_the_longest_waiting_was_woken(tmp_path: Path) -> None:
    w = recorder()
    w.waits(20_000, 90_000, A)
    w.waits(21_000, 60_000, B)  # the kernel wakes by priority first
    w.wakes(50_000, MAIN, 1)
    w.wakes(80_000, C, 1)
    assert edges(w, tmp_path)[0] == [(B, MAIN), (A, C)]


def test_bits_choose_who_is_woken(tmp_path: Path) -> None:
    w = recorder()
    w.waits(20_000, 90_000, A, 0, WAIT_BITSET, 0, 0, 0, 1)
    w.waits(21_000, 60_000, B, 0, WAIT_BITSET, 0, 0, 0, 2)
    w.wakes(50_000, MAIN, 1, WAKE_BITSET, 1, 0, 0, 2)
    w.wakes(80_000, C, 1, WAKE_BITSET, 1, 0, 0, ALL)
    assert edges(w, tmp_path)[0] == [(B, MAIN), (A, C)]


@pytest.mark.parametrize("op", [REQUEUE, CMP_REQUEUE])
def test_who_was_moved_to_another_address_is_woken_there(tmp_path: Path, op: int) -> None:
    w = recorder()
    w.waits(20_000, 60_000, A)
    w.waits(21_000, 90_000, B)
    w.waits(22_000, 95_000, C)
    w.wakes(50_000, MAIN, 3, op, 1, 2**31 - 1, THERE)  # A woken, B and C moved
    w.enter(80_000, D, WAKE, 1, address=HERE)
    w.leave(81_000, D, 0)  # nobody is left here
    w.enter(82_000, D, WAKE, 2, address=THERE)
    w.leave(83_000, D, 2)
    assert edges(w, tmp_path)[0] == [(A, MAIN), (B, D), (C, D)]


def test_one_call_wakes_at_two_addresses(tmp_path: Path) -> None:
    w = recorder()
    w.waits(20_000, 60_000, A)
    w.enter(21_000, B, WAIT, address=THERE)
    w.switch(22_000, 100, B, out=True)
    w.switch(62_000, 100, B, out=False)
    w.leave(63_000, B)
    w.wakes(50_000, MAIN, 2, WAKE_OP, 1, 1, THERE)
    assert edges(w, tmp_path)[0] == [(A, MAIN), (B, MAIN)]


def test_locks_with_priority_inheritance(tmp_path: Path) -> None:
    w = recorder()
    w.waits(20_000, 60_000, A, 0, LOCK_PI | PRIVATE)
    w.wakes(50_000, MAIN, 0, UNLOCK_PI | PRIVATE)
    assert edges(w, tmp_path)[0] == [(A, MAIN)]


def test_another_process_is_another_address(tmp_path: Path) -> None:
    w = recorder()
    w.waits(20_000, 60_000, A)
    w.enter(50_000, 200, WAKE, 1, pid=200)
    w.leave(51_000, 200, 1, pid=200)
    rows, trace = edges(w, tmp_path)
    assert rows == []
    assert trace.header.counters["futex_waits_without_waker"] == 1


@pytest.mark.parametrize("told_late", [False, True])
@pytest.mark.parametrize("wakings", [False, True])
def test_who_joins_a_thread_waits_for_its_end(
    tmp_path: Path, wakings: bool, told_late: bool
) -> None:
    w = recorder(wakings=wakings, returns=not wakings)
    w.enter(20_000, MAIN, WAIT_BITSET | 256, A, 0, 0, ALL)
    w.switch(21_000, 100, MAIN, out=True)
    w.exit(60_000 if told_late else 40_000, 100, A)
    w.switch(50_000, 100, MAIN, out=False)
    if not wakings:
        w.leave(51_000, MAIN)
    call(w, 70_000, MAIN)
    rows, trace = edges(w, tmp_path)
    if wakings and told_late:  # then the scheduler's event would have told it
        assert rows == []
        return
    assert rows == [(MAIN, A)]
    assert trace.header.counters["wakeups_by_ended_threads"] == 1
    (row,) = trace.wakeups.collect().to_dicts()
    assert row["wake_ns"] == (40_000 if told_late else 30_000)


def test_a_private_wait_for_a_number_is_no_join(tmp_path: Path) -> None:
    w = recorder()
    w.waits(20_000, 50_000, MAIN, 0, WAIT | PRIVATE, A)
    w.exit(40_000, 100, A)
    assert edges(w, tmp_path)[0] == []


WAKE2, WAIT2, WAITV, REQUEUE2 = range(4)  # of `futex2`: events behind those of `recorder`


def futex2() -> tuple[Futexes, list[int]]:
    """A recording with the newer calls too, and the entry of each; its return is the next event."""
    w = recorder()
    places = []
    for k, (name, words) in enumerate(
        (
            ("futex_wake", ("uaddr", "mask", "nr", "flags")),
            ("futex_wait", ("uaddr", "val", "mask", "flags", "timeout", "clockid")),
            ("futex_waitv", ("waiters", "nr_futexes", "flags", "timeout", "clockid")),
            ("futex_requeue", ("waiters", "flags", "nr_wake", "nr_requeue")),
        )
    ):
        enter, leave = 80 + 2 * k, 81 + 2 * k
        w.formats[enter] = pw.enter(name, enter, *words)
        w.formats[leave] = pw.leave(name, leave)
        places.append(len(w.events))
        w.events += [pw.Event(enter, ids=(4711 + enter,)), pw.Event(leave, ids=(4711 + leave,))]
    return w, places


def sleeps(w: Futexes, event: int, begin: int, end: int, tid: int, *words: int) -> None:
    """A call that sleeps; its result is the first of the words."""
    w.call(event, begin, tid, *words[1:])
    w.switch(begin + 1000, 100, tid, out=True)
    w.switch(end - 1000, 100, tid, out=False)
    w.call(event + 1, end, tid, words[0])


def test_the_newer_calls_wait_and_wake_alike(tmp_path: Path) -> None:
    w, at = futex2()
    sleeps(w, at[WAIT2], 20_000, 60_000, A, 0, HERE, 1, 1, 2 | PRIVATE, 0, 0)
    sleeps(w, at[WAIT2], 21_000, 70_000, B, 0, HERE, 1, 2, 2, 0, 0)
    w.waits(22_000, 90_000, C)  # the older call, the same address
    w.call(at[WAKE2], 50_000, MAIN, HERE, 2, 1, 2)  # the bits of B
    w.call(at[WAKE2] + 1, 52_000, MAIN, 1)
    w.wakes(55_000, D, 1)  # A is the longest waiting
    w.call(at[WAKE2], 80_000, MAIN, HERE, ALL, 1, 2)
    w.call(at[WAKE2] + 1, 82_000, MAIN, 1)
    rows, trace = edges(w, tmp_path)
    assert rows == [(A, D), (B, MAIN), (C, MAIN)]
    assert trace.header.capabilities.wakeups


def test_who_waits_for_several_is_woken_by_what_nobody_else_was(tmp_path: Path) -> None:
    w, at = futex2()
    sleeps(w, at[WAITV], 20_000, 60_000, A, 1, 0x7F00AAAA0000, 2, 0, 0, 0)  # the second of two
    w.waits(21_000, 70_000, B)
    w.wakes(40_000, MAIN, 1)  # B waits for this address
    w.enter(50_000, C, WAKE, 1, address=THERE)
    w.leave(52_000, C, 1)  # and nobody is known to wait for that
    rows, _ = edges(w, tmp_path)
    assert rows == [(A, C), (B, MAIN)]


def test_who_waits_for_several_returns_before_the_waking_call(tmp_path: Path) -> None:
    w, at = futex2()
    sleeps(w, at[WAITV], 20_000, 55_000, A, 0, 0x7F00AAAA0000, 2, 0, 0, 0)
    w.enter(50_000, MAIN, WAKE)
    w.leave(58_000, MAIN, 1)
    sleeps(w, at[WAITV], 60_000, 70_000, B, ETIMEDOUT, 0x7F00AAAA0000, 2, 0, 0, 0)
    w.waits(71_000, 90_000, C)
    sleeps(w, at[WAITV], 72_000, 80_000, B, 0, 0x7F00AAAA0000, 2, 0, 0, 0)
    w.wakes(75_000, MAIN, 1)  # taken for C's, who goes on waiting when B is back
    w.wakes(85_000, D, 1)
    assert edges(w, tmp_path)[0] == [(A, MAIN), (B, MAIN), (C, D)]


def test_a_process_wakes_who_waits_for_several_in_it_only(tmp_path: Path) -> None:
    w, at = futex2()
    sleeps(w, at[WAITV], 20_000, 60_000, A, 0, 0x7F00AAAA0000, 2, 0, 0, 0)
    w.enter(50_000, 200, WAKE, 1, pid=200)
    w.leave(51_000, 200, 1, pid=200)
    rows, trace = edges(w, tmp_path)
    assert rows == []
    assert trace.header.counters["futex_waits_without_waker"] == 1


def test_a_requeue_whose_addresses_are_not_recorded_tells_nothing(tmp_path: Path) -> None:
    """Neither whom it woke nor whom it moved; what it moved nobody is taken to have woken."""
    w, at = futex2()
    w.waits(20_000, 60_000, A)
    w.waits(21_000, 80_000, B)
    w.call(at[REQUEUE2], 50_000, MAIN, 0x7F00BBBB0000, 0, 1, 1)
    w.call(at[REQUEUE2] + 1, 52_000, MAIN, 2)
    w.enter(70_000, MAIN, WAKE, 1, address=THERE)
    w.leave(72_000, MAIN, 1)
    rows, trace = edges(w, tmp_path)
    assert rows == []
    assert trace.header.counters["futex_requeues_without_addresses"] == 1
    assert trace.header.counters["futex_waits_without_waker"] == 2
    (lack,) = [
        row for row in missing_capabilities(trace.header) if "futex_requeue" in row.consequence
    ]
    assert "sched_waking" in lack.added_by


def test_numbers_of_the_calls() -> None:
    """arch/x86/entry/syscalls, include/uapi/asm-generic/unistd.h: the newer ones are alike."""
    for machine in ("x86_64", "aarch64"):
        calls = number_tables(machine).calls
        for abi in range(2 if machine == "x86_64" else 1):
            told = [CALLS[calls[abi, number]].name for number in (449, 454, 455, 456)]
            assert told == ["futex_waitv", "futex_wake", "futex_wait", "futex_requeue"]
    compat = number_tables("x86_64").calls[1]
    assert CALLS[compat[240]].name == CALLS[compat[422]].name == "futex"


STRACE2 = """\
101 1700000000.001000 futex_wait(0x55d0, 0, FUTEX_BITSET_MATCH_ANY, FUTEX2_SIZE_U32|FUTEX2_PRIVATE,\
 NULL, CLOCK_MONOTONIC <unfinished ...>
102 1700000000.002000 futex_waitv([{val=0, uaddr=0x66d0, flags=FUTEX2_SIZE_U32}, {val=0,\
 uaddr=0x66e0, flags=FUTEX2_SIZE_U32}], 2, 0, NULL, CLOCK_MONOTONIC <unfinished ...>
100 1700000000.003000 futex_requeue([{val=0, uaddr=0x55d0, flags=FUTEX2_SIZE_U32}, {val=0,\
 uaddr=0x77d0, flags=FUTEX2_SIZE_U32}], 0, 0, 1) = 1 <0.000040>
100 1700000000.004000 futex_wake(0x77d0, 0xffffffff, 1, FUTEX2_SIZE_U32|FUTEX2_PRIVATE) = 1\
 <0.000040>
101 1700000000.004100 <... futex_wait resumed>) = 0 <0.003100>
101 1700000000.005000 futex_wake(0x66e0, 0xffffffff, 1, FUTEX2_SIZE_U32) = 1 <0.000040>
102 1700000000.005100 <... futex_waitv resumed>) = 1 <0.003100>
101 1700000000.005500 munmap(0x7f0000003000, 4096) = 0 <0.000020>
102 1700000000.005600 munmap(0x7f0000004000, 4096) = 0 <0.000020>
"""


def traced(text: str, tmp_path: Path) -> Trace:
    """The trace of a log of strace in which thread 100 starts 101 and 102 before all else."""
    file = tmp_path / "log"
    clones = "".join(
        f"100 1699999999.{k}00000 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_THREAD) = {tid} "
        "<0.000100>\n"
        for k, tid in ((1, 101), (2, 102))
    )
    file.write_text(clones + text)
    trace = import_trace(file, tmp_path / "t.mmt")
    trace.validate()
    return trace


def test_the_newer_calls_in_strace(tmp_path: Path) -> None:
    trace = traced(STRACE2, tmp_path)
    assert trace.wakeups.select("tid", "waker").collect().rows() == [(101, 100), (102, 101)]


def test_the_scheduler_knows_better(tmp_path: Path) -> None:
    """With sched_waking a wait has one waker, the one that the scheduler tells."""
    w = recorder(wakings=True)
    w.waits(20_000, 60_000, A)
    w.enter(50_000, MAIN, WAKE)
    w.sample(WAKING, 51_000, MAIN, bytes((0, 0, 1)) + bytes(21) + w.pack("iii", A, 120, 0))
    w.leave(52_000, MAIN, 1)
    rows, trace = edges(w, tmp_path)
    assert rows == [(A, MAIN)]
    assert trace.wakeups.collect()["wake_ns"].item() == 41_000


def test_losses_forget_who_waits(tmp_path: Path) -> None:
    w = recorder()
    w.enter(20_000, A, WAIT)
    w.switch(21_000, 100, A, out=True)
    w.lost(30_000, 5)
    w.wakes(50_000, MAIN, 1)
    w.switch(59_000, 100, A, out=False)
    w.leave(60_000, A)
    assert edges(w, tmp_path)[0] == []


STRACE = """\
100 1700000000.000000 munmap(0x7f0000000000, 4096) = 0 <0.000020>
101 1700000000.000100 munmap(0x7f0000001000, 4096) = 0 <0.000020>
102 1700000000.000200 munmap(0x7f0000002000, 4096) = 0 <0.000020>
101 1700000000.001000 futex(0x55d0, FUTEX_WAIT_BITSET_PRIVATE|FUTEX_CLOCK_REALTIME, 0, NULL, \
FUTEX_BITSET_MATCH_ANY <unfinished ...>
102 1700000000.002000 futex(0x55d0, FUTEX_WAIT_PRIVATE, 0, {tv_sec=0, tv_nsec=500} <unfinished ...>
102 1700000000.003000 <... futex resumed>) = -1 ETIMEDOUT (Connection timed out) <0.001000>
100 1700000000.004000 futex(0x55d0, FUTEX_WAKE_PRIVATE, 1) = 1 <0.000040>
101 1700000000.004100 <... futex resumed>) = 0 <0.003100>
101 1700000000.005100 munmap(0x7f0000003000, 4096) = 0 <0.000020>
100 1700000000.006000 futex(0x55e0, FUTEX_WAIT, 102, NULL <unfinished ...>
102 1700000000.007000 +++ exited with 0 +++
100 1700000000.007100 <... futex resumed>) = 0 <0.001100>
100 1700000000.008000 munmap(0x7f0000004000, 4096) = 0 <0.000020>
"""


def test_strace(tmp_path: Path) -> None:
    trace = traced(STRACE, tmp_path)
    assert trace.wakeups.select("tid", "waker").collect().rows() == [(101, 100), (100, 102)]
    waits = trace.wakeups.collect()
    assert (waits["on_ns"] - waits["off_ns"]).to_list() == [3_100_000, 1_100_000]
    # What was waited for another thread is no think time before the next call.
    thinks = trace.operations.collect()["think_raw_ns"].to_list()
    assert {4_980_000 - 3_100_000, 7_980_000 - 1_100_000} <= set(thinks)
    assert trace.header.capabilities.wakeups


def test_raw_syscalls_tell_it_too(tmp_path: Path) -> None:
    w = recorder(returns=False)
    w.formats.update(pw.raw_formats())
    w.events += [pw.Event(60, ids=(1,)), pw.Event(61, ids=(2,))]
    enter, leave = len(w.events) - 2, len(w.events) - 1
    w.features[6] = w.pack("I", 8) + b"x86_64\0\0"  # HEADER_ARCH
    w.raw_call(enter, 20_000, A, 202, HERE, WAIT | PRIVATE, 0)
    w.switch(21_000, 100, A, out=True)
    w.raw_call(enter, 50_000, MAIN, 202, HERE, WAKE | PRIVATE, 1)
    w.raw_call(leave, 51_000, MAIN, 202, 1)
    w.switch(55_000, 100, A, out=False)
    w.raw_call(leave, 56_000, A, 202, 0)
    del w.formats[71], w.formats[72]
    assert edges(w, tmp_path)[0] == [(A, MAIN)]


@pytest.mark.perf
def test_both_sources_tell_the_same_of_a_pipeline_and_a_barrier(
    program: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """One recording with both; what one of them tells, without the other."""
    futex = [f"syscalls:sys_{side}_futex" for side in ("enter", "exit")]
    events = [*FAULTS, "minor-faults", "major-faults", *syscalls(), *futex, *LOCKS]
    path = record(
        tmp_path,
        ["-d", "--switch-events"],
        [*events, "sched:sched_waking"],
        [str(program), "100", "32", "30"],
    )
    content = path.read_bytes()
    found = {}
    for name, hidden in (("waking", b"sys_exit_futex"), ("futex", b"sched_waking")):
        part = tmp_path / f"{name}.data"
        part.write_bytes(content.replace(hidden, hidden[:-1] + b"X"))
        trace = import_trace(part, tmp_path / f"{name}.mmt")
        trace.validate()
        rows = trace.wakeups.select("tid", "on_ns", "waker").collect().rows()
        found[name] = {(tid, on_ns): waker for tid, on_ns, waker in rows}
    waking, by_futex = found["waking"], found["futex"]
    assert len(waking) > 100
    waits = waking.keys() | by_futex.keys()
    differ = {wait for wait in waits if waking.get(wait) != by_futex.get(wait)}
    assert len(differ) <= len(waking) // 50, differ
    # Both tell that main waited for the ends of threads.
    assert {tid for tid, _ in waking} == {tid for tid, _ in by_futex}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_pipeline_by_strace(program: Path, tmp_path: Path) -> None:  # noqa: F811
    from mmreplay.recorder.run import strace_argv

    log = tmp_path / "log"
    argv = strace_argv(("--", str(program), "50", "8", "10"), str(log), dependencies=True)
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode or not log.exists():
        pytest.skip(f"strace cannot trace here: {done.stderr[:200]}")
    trace = import_trace(log, tmp_path / "t.mmt")
    trace.validate()
    assert trace.rows("wakeups") > 5  # as many as there were waits: it depends on the machine
    untold = trace.header.counters.get("futex_waits_without_waker", 0)
    assert untold <= 1 + trace.rows("wakeups") // 20


def test_a_thread_id_that_is_given_again_leaves_the_queue(tmp_path: Path) -> None:
    """Whose end was not recorded still waits there, until another process has its id."""
    w = recorder()
    w.enter(20_000, A, WAIT)
    w.switch(21_000, 100, A, out=True)
    w.waits(22_000, 80_000, B)
    w.call(FUTEX_IN, 30_000, A, HERE, WAIT, 0, 0, 0, 0, pid=300)  # the same id elsewhere
    w.enter(40_000, A, WAIT, pid=100)  # and here again
    w.waits(41_000, 90_000, C)
    w.wakes(70_000, MAIN, 3)
    rows, _ = edges(w, tmp_path)
    assert rows == [(B, MAIN), (C, MAIN)]
