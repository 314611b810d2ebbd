"""The memory that a running loop program keeps itself in: one shared mapping.

A header (:class:`Head`), then a row of words for each program (:class:`Row`), on cache
lines of its own; then the tables of the program.  The process that started it sees them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

LINE: Final = 8  # words of a cache line


class Phase(IntEnum):
    """What :attr:`Head.PHASE` says."""

    WAIT = 0  # started threads wait here until all are there
    WARM = 1
    MEASURE = 2
    STOP = 3


class Head(IntEnum):
    """Words of the header; those that change are alone on their line."""

    PHASE = 0
    ARRIVED = 8  # started threads that run
    LOOPING = 16  # started threads that do their loop
    ABANDONED = 17  # 1: a thread has ended, and nobody waits at barriers any more
    CODE = 24  # addresses, and numbers of rows and columns
    CODE_ROWS = 25
    THREADS = 26
    THREAD_ROWS = 27
    STATES = 28
    STATE_COLUMNS = 29
    REGIONS = 30
    REGION_ROWS = 31
    LIVE = 32
    LIVE_ROWS = 33
    LIVE_COLUMNS = 34
    COPIES = 35
    COPY_ROWS = 36
    BARRIERS = 37  # a line each: how many are there, generation
    BARRIER_ROWS = 38
    FILES = 39  # file descriptors
    ROWS = 40  # address of the first Row
    ENTRY = 41  # address of the function that a thread starts with
    ZERO = 42  # file descriptor of /dev/zero
    ROUNDS = 43  # of spinning, in 1 / 2**20 ns
    BUDGET = 44  # operations after which a started thread ends; 0 none
    WORDS = 48


class Row(IntEnum):
    """Words of one program's row."""

    TID = 0  # low half: of its thread, 0 when that has ended
    STATUS = 1  # that its process ended with
    HEADER = 2  # address
    PROGRAM = 3
    ERROR_ROW = 4  # row of code of its first failed call
    ERROR = 5  # and its errno
    ENDLESS = 6  # 1: its code steers in circles
    SPAWNS = 7  # times it was started
    COUNTS = 8  # what is counted; Count says in which order
    BEGIN = 48  # the same when measuring began, with the time and getrusage(2)
    END = 112
    SCRATCH = 176  # for getrusage
    STACK = 200  # top of its stack
    PINNED = 201  # 1: to the CPUs of MASK
    MASK = 208  # 1024 CPUs
    WORDS = 224


class Count(IntEnum):
    """Counters, from :attr:`Row.COUNTS` on."""

    OPS = 0  # by the columns COUNTS
    FAILED = 1  # calls that returned an error
    MISSED = 2  # accesses that failed
    MINOR_FAULTS = 3  # of threads and processes that were started and have ended
    MAJOR_FAULTS = 4
    SWITCHES = 5
    PREEMPTIONS = 6
    DONE = 8  # operations done of each Op
    WORDS = 32


class Shot(IntEnum):
    """Words of a snapshot (:attr:`Row.BEGIN`, :attr:`Row.END`)."""

    COUNTS = 0
    NS = 32
    USAGE = 34  # struct rusage, 18 words
    WORDS = 64


# struct rusage in words (include/uapi/linux/resource.h, 64 bits)
RU_USER_S, RU_USER_US, RU_SYSTEM_S, RU_SYSTEM_US = 0, 1, 2, 3
RU_MINFLT, RU_MAJFLT, RU_NVCSW, RU_NIVCSW, RU_WORDS = 8, 9, 16, 17, 18
