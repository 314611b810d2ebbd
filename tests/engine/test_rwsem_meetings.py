"""The rwsem where three or four threads meet; marks of several VMAs.

Machine and costs are those of ``test_rwsem_rules.py``; the comments follow the rules step by step.
"""

from __future__ import annotations

from typing import Any

import pytest
from scenario import COSTS, LONG, MIDDLE, SHORT, ends, lock, replay
from small import R, W, machine, model, op, plan
from test_rwsem_rules import hold
from test_rwsem_slow_rules import run, rwsem
from test_vma_lock_rules import FAULT, protect

from mmreplay.address_space.plan import MarkSet, PlanOp
from mmreplay.engine import Options
from mmreplay.locking.isa import Op

TAKE_W, DOWN = (Op.LOCK, "mmap_lock", W), (Op.DOWNGRADE, "mmap_lock")


def downgraded(write: list[str], read: list[str]) -> list[Any]:
    """Write-locked, then read-locked, for the costs named."""
    held = [[(Op.COST, cost) for cost in costs] for costs in (write, read)]
    return [TAKE_W, *held[0], DOWN, *held[1], (Op.UNLOCK, "mmap_lock", R), (Op.DONE,)]


def test_a_reader_that_is_not_the_last_wakes_nobody() -> None:
    # T2's RMWs 250, 260.  T1 150..1150, the line is at T2: 1200, and that is all.  T0 releases by
    # 50060, wait_lock 50070, waker 51070; T2 56070..56120..57120, 57130.
    result = run((0, hold(R, LONG)), (100, hold(R, SHORT)), (200, hold(W, SHORT)), osq=0)
    assert ends(result) == [51_070, 1200, 57_130]
    assert rwsem(result).sleeps == 1


def test_queued_writers_are_served_in_the_order_they_came() -> None:
    # RMWs 150, 160 (T1), 250, 260 (T2), 350, 360 (T3).  T0 5010..5060, wait_lock 5070, wakes T1
    # only: 6070.  T1 11070..11120..12120, 12130, 12140, wakes T2 13140.. and so on, 7050 for each
    # after the first, of which 50 are for the sequence's line.
    result = run(
        (0, hold(W, MIDDLE)), (100, hold(W, SHORT)), (200, hold(W, SHORT)), (300, hold(W, SHORT)),
        osq=0,
    )  # fmt: skip
    assert ends(result) == [6070, 13_190, 20_310, 26_420]
    assert rwsem(result).sleeps == 3


@pytest.mark.parametrize("mode", [R, W])
def test_trylock_fails_on_a_free_lock_that_somebody_waits_for(mode: int) -> None:
    # T0 is through at 51070 and T1, woken, runs at 56070: WAITERS is set all the time.
    tries = [
        (Op.TRY, "mmap_lock", mode, "no"), (Op.UNLOCK, "mmap_lock", mode), (Op.DONE,),
        "no", (Op.COUNT, "failed"), (Op.DONE,),
    ]  # fmt: skip
    result = run((0, hold(R, LONG)), (100, hold(W, SHORT)), (52_000, tries))
    assert ends(result) == [51_070, 57_130, 52_050]
    assert result.reasons["failed"] == 1


def test_a_wake_up_in_vain() -> None:
    # T0 sleeps 1010..21010 and works until 31010; T1 queues (the owner is off its CPU).  T2 comes
    # at 25000, spins, looks at 31080 and has it by 31130.  T0 woke T1 meanwhile (31060, 31070,
    # 32070): it runs at 37070, fails, asleep 37420.  T2 works until 41130, sequence 41180, release
    # 41230, wait_lock 41240, waker 42240; T1 47240..47290..48290, sequence 48340, 48350.
    slow = [TAKE_W, (Op.COST, SHORT), (Op.SLEEP, "io"), (Op.COST, "tens"),
            (Op.UNLOCK, "mmap_lock", W), (Op.DONE,)]  # fmt: skip
    result = run((0, slow), (100, hold(W, SHORT)), (25_000, hold(W, "tens")))
    assert ends(result) == [32_070, 48_350, 42_240]
    assert (rwsem(result).sleeps, rwsem(result).steals) == (2, 1)


@pytest.mark.parametrize(
    ("read", "expected", "sleeps"),
    [
        ([MIDDLE, SHORT, SHORT, SHORT], [28_110, 29_240], 0),
        (["tens", SHORT, SHORT], [33_120, 39_230], 1),
    ],
)
def test_a_spinner_has_a_window_of_its_own_after_a_downgrade(
    read: list[str], expected: list[int], sleeps: int
) -> None:
    # T1 spins from 170 on T0, who downgrades 20010..20060.  T1 looks at 20080: 10.5 us more, until
    # 30580.  T0 reads for 8 us, releases 28060..28110: T1 28130..28180..29180, sequence 29230,
    # 29240.  For 12: T1 sleeps; 32060..32110, 32120, waker 33120; T1 38120..38170..39170, 39230.
    result = run((0, downgraded(["tens", "tens"], read)), (100, hold(W, SHORT)))
    assert ends(result) == expected
    assert rwsem(result).sleeps == sleeps


def test_a_downgrade_grants_all_readers_past_a_queued_writer() -> None:
    # T0 downgrades 5010..5060, wakes T1 6060 and T3 7060, reads until 8060, 8070.  T1 11060..12060,
    # 12110; T3 12060..13060, 13110, the last: wait_lock 13120, waker 14120.  T2 19120..19170..
    # 20170, sequence 20220, 20230.
    result = run(
        (0, downgraded([MIDDLE], [SHORT])), (100, hold(R, SHORT)), (200, hold(W, SHORT)),
        (300, hold(R, SHORT)), osq=0,
    )  # fmt: skip
    assert ends(result) == [8070, 12_110, 20_230, 14_120]


def test_after_a_downgrade_a_new_reader_queues_behind_the_writer_at_the_head() -> None:
    # T0 downgrades 1010..1060 and wakes nobody.  T2 at 5000: a reader owns it, so no steal; RMWs
    # 5050, 5060.  T0 51060..51110, 51120, waker 52120; T1 57120..57170..58170, sequence 58220,
    # 58230, 58240, waker 59240; T2 64240..65240, 65290.
    result = run(
        (0, downgraded([SHORT], [LONG])), (100, hold(W, SHORT)), (5000, hold(R, SHORT)), osq=0
    )
    assert ends(result) == [52_120, 59_240, 65_290]
    assert rwsem(result).steals == 0


def test_nonspinnable_sends_the_spinners_behind_the_first_away_too() -> None:
    # T1's window ends at 10670: NONSPINNABLE; its queueing takes the line by 10720.  T2, now first
    # of the OSQ, looks at 10690, leaves at once, by 10770.  T0 15010..15060, 15070, 16070; T1
    # 21070..21120..22120, 22130, 22140, 23140; T2 28140..28190..29190, sequence 29240, 29250.
    read = [(Op.LOCK, "mmap_lock", R), (Op.COST, "tens"), (Op.COST, MIDDLE),
            (Op.UNLOCK, "mmap_lock", R), (Op.DONE,)]  # fmt: skip
    result = run((0, read), (100, hold(W, SHORT)), (5000, hold(W, SHORT)))
    assert ends(result) == [16_070, 23_140, 29_250]
    assert rwsem(result).sleeps == 2


@pytest.mark.parametrize(
    ("handoff_ns", "last", "steals"),
    [(1000, [70_180, 63_110, 76_290], 1), (4_000_000, [69_220, 63_110, 63_190], 2)],
)
def test_handoff_keeps_spinners_from_stealing(
    handoff_ns: int, last: list[int], steals: int
) -> None:
    # T2 steals 52050..62050 while T1 is on its way; T1 fails at 56120, HANDOFF, asleep.  T3 spins
    # from 57070 on: T2 releases by 62100, T3 looks at 62120 and may not; its window ends at 67570:
    # it queues.  T1 (waker 63110) 68110..68160..69160, 69170, 69180, waker 70180; T3 75180..75230..
    # 76230, sequence 76280, 76290.  Without HANDOFF T3 has it at 62120..62170..63170, 63180, 63190
    # (T1 is on its way), and T1 68110..68160..69160, sequence 69210, 69220.
    result = run(
        (0, hold(R, LONG)), (100, hold(W, SHORT)), (52_000, hold(R, "tens")),
        (57_000, hold(W, SHORT)), handoff_ns=handoff_ns,
    )  # fmt: skip
    assert ends(result)[1:] == last
    assert rwsem(result).steals == steals


def test_faults_in_vmas_that_are_still_to_be_marked_run() -> None:
    # T1 marks VMA 0 first and waits there for T0 (until 5010..5060, waker 6060; T1 11060).  T2 in
    # VMA 1 at 1000: 1010..2010, 2020.  T3 in VMA 0: 1050, falls back, RMWs 1100, 1110.
    # T1: 11110, 11160, 11170; until 16170, 16220, 16230, 17230; T3 22230..23230, 23280.
    slow = [(Op.TRY, "vma", R, "no"), (Op.COST, MIDDLE), (Op.UNLOCK, "vma", R),
            "no", (Op.DONE,)]  # fmt: skip
    marks = op(PlanOp.MPROTECT, vma=0, marks=[(MarkSet.TARGETS, 0), (MarkSet.TARGETS, 1)])
    result = replay(
        plan([[op(PlanOp.MMAP, vma=0)], [marks], [op(vma=1)], [op(vma=0)]],
             offsets=[0, 100, 1000, 1000]),
        model({PlanOp.MMAP: slow, PlanOp.MPROTECT: protect(), PlanOp.FAULT: FAULT}),
        machine(4, COSTS),
        Options(cores=4),
    )  # fmt: skip
    assert ends(result) == [6060, 17_230, 2020, 23_280]
    assert lock(result, "vma").mark == 2
    assert result.reasons["fallback"] == 1
