"""BRAVO readers: scenarios with the expected times worked out.

The machine as in ``test_rwsem_rules.py``.  A table of 1000 slots is read in 1100 ns.
"""

from __future__ import annotations

from typing import Any

from scenario import COSTS, LONG, MIDDLE, SHORT, ends, lock, replay
from small import LOCKS, R, W, machine, model, op, plan
from test_rwsem_rules import hold

from mmreplay.address_space.plan import PlanOp
from mmreplay.engine import Options, Result
from mmreplay.locking.isa import Op

FAULT, MMAP, MUNMAP = int(PlanOp.FAULT), int(PlanOp.MMAP), int(PlanOp.MUNMAP)
NOBODY = len(PlanOp)


def run(*threads: tuple[int, list[Any]] | list[tuple[int, list[Any]]], slots: int = 1000) -> Result:
    """Each thread: (begin, program) or a list of them; the nth program is the nth operation."""
    lists = [t if isinstance(t, list) else [t] for t in threads]
    programs: dict[PlanOp, list[Any]] = {}
    rows: list[list[dict[str, Any]]] = []
    for steps in lists:
        rows.append([])
        for begin, program in steps:
            kind = list(PlanOp)[1 + len(programs)]
            programs[kind] = program
            rows[-1].append(op(kind, think_blocked_ns=begin))
    locks = {name: dict(spec) for name, spec in LOCKS.items()}
    locks["mmap_lock"].update(bravo_slots=slots, bravo_inhibit=9)
    return replay(plan(rows), model(programs, locks), machine(4, COSTS), Options(cores=4))


def test_the_first_reader_turns_the_bias_on_and_the_second_writes_no_shared_line() -> None:
    # T0 by the rwsem 10..1010.  T1 loads the line 150, CAS on its slot 160..1160, and is
    # done.  T0's release finds the line shared: 1060.
    result = run((0, hold(R, SHORT)), (100, hold(R, SHORT)))
    assert ends(result) == [1060, 1160]
    assert lock(result, "mmap_lock").read == 2


def test_a_biased_reader_costs_one_private_rmw() -> None:
    # As before; T1's second time, 5000 after the first: its copy of the line is stale
    # since T0's release: 6160, 6210, 6220..7220; its third: 12220, 12230..13230.
    result = run((0, hold(R, SHORT)), [(100, hold(R, SHORT)), *[(5000, hold(R, SHORT))] * 2])
    assert ends(result) == [1060, 13_230]


def test_a_writer_revokes_the_bias_and_inhibits_it() -> None:
    # T0 reads until 1020: the bias is on.  T1 takes the rwsem by 2050, reads the table until
    # 3150, holds until 4150..4160.  No bias until 3150 + 9 x 1100 = 13050.
    late = [(5000, hold(R, SHORT)), (2000, hold(R, SHORT)), (6000, hold(R, SHORT))]
    result = run((0, hold(R, SHORT)), (2000, hold(W, SHORT)), late)
    assert ends(result)[:2] == [1020, 4160]
    # T2 by the rwsem at 5050..6050..6060; at 8060..8070..9070..9080; at 15080 the window is
    # over: 15090, turns the bias on, 16090..16100.
    assert ends(result)[2] == 16_100
    # A reader after that publishes itself: the load of the line, the slot.
    last = (20_000, hold(R, SHORT))
    result = run((0, hold(R, SHORT)), (2000, hold(W, SHORT)), late, last)
    assert ends(result)[3] == 20_000 + 50 + 10 + 1000
    # Without the third read nobody has turned it on: by the rwsem, which T2 had.
    result = run((0, hold(R, SHORT)), (2000, hold(W, SHORT)), late[:2], last)
    assert ends(result)[3] == 20_000 + 50 + 1000 + 10


def test_a_second_writer_pays_nothing_while_the_bias_is_off() -> None:
    writes = [(2000, hold(W, SHORT)), (1000, hold(W, SHORT))]
    result = run((0, hold(R, SHORT)), writes)
    assert ends(result)[1] == 4160 + 1000 + 10 + 1000 + 10


def test_a_writer_waits_for_published_readers() -> None:
    # T1 is published 160..50160.  T2 takes the rwsem by 2050, has read the table by 3150 and
    # spins; T1's store reaches it at 50210: holds until 51210..51220.
    result = run((0, hold(R, SHORT)), (100, hold(R, LONG)), (2000, hold(W, SHORT)))
    assert ends(result) == [1060, 50_160, 51_220]
    found = lock(result, "mmap_lock")
    assert found.write_wait_ns == 50_210 - 3150
    assert found.sleeps == 0
    assert int(result.blame_ns[0, MMAP, MUNMAP]) == 50_160 - 3150
    assert int(result.blame_ns[0, NOBODY, MUNMAP]) == 50


def test_the_wait_counts_for_the_inhibition() -> None:
    # As above: the bias may come back 9 x (50210 - 2050) after 50210, at 483650.
    readers = ((0, hold(R, SHORT)), (100, hold(R, LONG)))
    for when, biased in ((480_000, False), (484_000, True)):
        again = [(when, hold(R, SHORT)), (1000, hold(R, SHORT))]
        result = run(*readers, (2000, hold(W, SHORT)), again)
        # by the rwsem: 50, 1000, 10; then biased 10 + 1000, else 10 + 1000 + 10
        assert ends(result)[3] == when + 1060 + 1000 + (1010 if biased else 1020)


def test_new_readers_queue_behind_a_writer_that_waits_for_published_ones() -> None:
    # T3 comes when T2 has turned the bias off: it sleeps until T2 is done (51210 release,
    # its line is T3's: 51260, wait_lock 51270, waker 52270): 57270..58270.
    result = run(
        (0, hold(R, SHORT)), (100, hold(R, LONG)), (2000, hold(W, SHORT)), (4000, hold(R, SHORT))
    )
    assert ends(result)[2] == 52_270
    assert ends(result)[3] == 58_270 + 50
    # T3 waits for T2, which holds the rwsem, not for T1.
    assert int(result.blame_ns[0, MUNMAP, int(PlanOp.MPROTECT)]) == 51_210 - 4000


def test_biased_readers_pass_a_writer_that_queues() -> None:
    # T0 reads by the rwsem until 50010; T1 waits for it.  T2 loads the line (250), publishes
    # itself 260..1260.
    result = run((0, hold(R, LONG)), (100, hold(W, SHORT)), (200, hold(R, SHORT)))
    assert ends(result)[2] == 1260
    assert lock(result, "mmap_lock").read_wait_ns == 0


def test_a_reader_whose_slot_is_taken_goes_by_the_rwsem() -> None:
    # One slot: T1 has it, T2 adds itself to the rwsem: the line was loaded by both: 2050
    # (load), 2100 (RMW)..3100..3110.
    result = run((0, hold(R, SHORT)), (100, hold(R, LONG)), (2000, hold(R, SHORT)), slots=1)
    assert ends(result) == [1060, 50_160, 3110]


def test_trylock_for_writing_fails_where_readers_are_published() -> None:
    program = [
        (Op.TRY, "mmap_lock", W, "no"),
        (Op.UNLOCK, "mmap_lock", W),
        "no",
        (Op.COST, SHORT),
        (Op.DONE,),
    ]
    published = run((0, hold(R, SHORT)), (100, hold(R, MIDDLE)), (2000, program))
    assert lock(published, "mmap_lock").try_failed == 1
    none = run((0, hold(R, SHORT)), (2000, program))
    assert lock(none, "mmap_lock").try_failed == 0
    # It pays for the scan: 2050, 3150, released 3160.
    assert ends(none)[1] == 3160 + 1000


def test_downgrade_leaves_an_ordinary_reader() -> None:
    program = [
        (Op.LOCK, "mmap_lock", W),
        (Op.DOWNGRADE, "mmap_lock"),
        (Op.COST, MIDDLE),
        (Op.UNLOCK, "mmap_lock", R),
        (Op.DONE,),
    ]
    # T1: 2050, scan 3150, downgrade 3160, reads until 8160, released 8170.
    result = run((0, hold(R, SHORT)), (2000, program))
    assert ends(result)[1] == 8170


def test_a_lock_of_one_thread_has_no_bias() -> None:
    result = run([(0, hold(R, SHORT)), (0, hold(W, SHORT))])
    assert ends(result) == [2 * (10 + 1000 + 10)]
