"""What a thread's next event means."""

from __future__ import annotations

from enum import IntEnum


class State(IntEnum):
    """Off-CPU threads have state ``OFF``; ``after`` says how they go on."""

    OFF = 0  # becomes runnable
    RUN = 1  # next step of its program
    FALL = 2  # has fallen asleep, unless something came first
    GRANTED = 3  # was given the lock it waits for
    RETRY = 4  # rwsem: a queued writer was woken and may try
    SPIN = 5  # rwsem: first spinner
    OSQ = 6  # rwsem: spinner behind the first
    HANDOFF_SPIN = 7  # rwsem: first waiter with HANDOFF spins on the owner
    WAKE = 8  # rwsem: second half of an unlock
    DRAINED = 9  # pin: the last reader is gone
    END = 10
    REVOKE = 12  # rwsem: a writer that has read the table of BRAVO readers
