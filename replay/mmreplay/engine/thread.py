"""A thread of a replay: where it is in its program, and what it waits for (the oracle's half)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from mmreplay.engine.setup import HOT_NS
from mmreplay.engine.states import State

#: Program counters that are no instruction: between two operations.
PC_THINK, PC_BEGIN, PC_BLOCK, PC_END = -1, -2, -3, -4


@dataclass
class Finished:
    """An operation that is over but not yet recorded (see :mod:`mmreplay.engine.oracle`)."""

    row: int
    kind: int
    end_ns: int
    busy_ns: int
    wait_ns: int
    delay_ns: int


@dataclass
class Thread:
    """One thread.  ``cpu`` is an index into the chosen CPUs, -1 off."""

    index: int
    cpu: int = -1
    last_cpu: int = 0
    time_ns: int | None = None
    state: State = State.OFF
    after: State = State.RUN
    slice_end_ns: int = 0
    # whose turn it is: see ``processors.py``
    v_ns: int = 0  # virtual time, as of ``v_from_ns`` where it runs
    v_from_ns: int = 0
    deadline_ns: int = 0  # in virtual time: when its turn is over
    lag_ns: int = 0  # that it was owed when it fell asleep
    ran_ns: int = -HOT_NS  # when it ran last
    spin_depth: int = 0
    # position
    row: int = 0
    nth: int = 0  # operations begun, over all laps
    first_lap: bool = True
    in_tail: bool = False
    lap_ns: int = 0  # when this lap began
    pc: int = PC_THINK
    think_left_ns: int = 0
    # the running operation
    kind: int = 0
    begin_ns: int = 0
    draw: int = 0
    was_ordered: bool = False
    tried: bool = False
    busy_ns: int = 0
    wait_ns: int = 0
    each: tuple[int, int] = (0, 0)  # position in, and end of, the list that EACH walks
    snaps: dict[int, int] = field(default_factory=dict)
    held_since: dict[tuple[int, bool], int] = field(default_factory=dict)
    owned: list[Any] = field(default_factory=list)  # rwsems held for writing
    finished: Finished | None = None
    dep_from_ns: int = -1
    # waiting
    wait_lock: Any = None
    wait_mode: int = 0
    wait_from_ns: int = 0
    charges: Counter[int] = field(default_factory=Counter)  # of the wait so far, by holder
    granted_ns: int = 0
    queued_ns: int = 0
    awake_ns: int = 0
    wake_pending: bool = False
    saw: int = 0
    spin_until_ns: int = 0
    reader_entry: bool = False
