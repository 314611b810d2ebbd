"""Who waited for whom: the table ``wakeups`` as dependencies of a plan's threads.

A wake-up becomes two points in time: one in the thread that woke, so much on-CPU time after
its last operation, and one in the thread that was woken, which waits for the first
(:mod:`.points` puts them into the plan).  Clones of a scaled group wait for clones: the
k-th of one thread for the k-th of the other.  A clone whose recorded thread waited for a
thread outside the group waits for that one, too; and a thread outside that waited for one of
the group waits for all its clones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.threads import Lives, Threads
from mmreplay.jit import native
from mmreplay.trace.arrays import whole_columns

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

_TABLE: Final = (
    "tid", "off_ns", "wake_ns", "on_ns", "after", "cpu_ns", "blocked_ns", "waker", "waker_after",
    "waker_cpu_ns", "waker_blocked_ns",
)  # fmt: skip


@dataclass(frozen=True)
class Wakeups:
    """W wake-ups, ascending by ``wake_ns``; threads are dense recorded ones.

    ``after``: row of the operations table that the thread began last, -1 before its first;
    ``cpu_ns`` and ``blocked_ns``: what it did from there on.
    """

    off_ns: I64
    wake_ns: I64
    on_ns: I64
    thread: I64
    after: I64
    cpu_ns: I64
    blocked_ns: I64
    waker: I64
    waker_after: I64
    waker_cpu_ns: I64
    waker_blocked_ns: I64

    def __len__(self) -> int:
        return len(self.wake_ns)

    def chosen(self, rows: NDArray[Any]) -> Wakeups:
        """Some of them, by a mask or by positions."""
        return Wakeups(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def read_wakeups(trace: Any, who: Threads) -> Wakeups | None:
    """The wake-ups of a trace; None where it has none."""
    if not trace.has("wakeups") or trace.rows("wakeups") == 0:
        return None
    table = whole_columns(trace, "wakeups", _TABLE)
    order = np.argsort(table["wake_ns"].values, kind="stable")

    def column(name: str) -> I64:
        return table[name].at(order, -1).astype(np.int64)

    lives = Lives(who)
    off_ns, wake_ns = column("off_ns"), column("wake_ns")
    thread = lives.at(column("tid"), off_ns).astype(np.int64)
    waker = lives.at(column("waker"), wake_ns).astype(np.int64)
    found = Wakeups(
        off_ns,
        wake_ns,
        column("on_ns"),
        thread,
        column("after"),
        column("cpu_ns"),
        column("blocked_ns"),
        waker,
        column("waker_after"),
        column("waker_cpu_ns"),
        column("waker_blocked_ns"),
    )
    return found.chosen((thread >= 0) & (waker >= 0) & (thread != waker))


def useful(thread: I64, waker: I64, goes_on: NDArray[np.bool_], threads: int) -> Any:
    """(W,) which wake-ups somebody needs: who was woken has an operation later, or wakes others.

    ``goes_on`` (W,): it has an operation later.  The wake-ups ascend by time.
    """
    kept = np.zeros(len(thread), np.bool_)
    _keep_useful(thread, waker, goes_on, np.zeros(threads, np.bool_), kept)
    return kept


@native
def _keep_useful(
    thread: I64,
    waker: I64,
    goes_on: NDArray[np.bool_],
    wakes_later: NDArray[np.bool_],
    kept: NDArray[np.bool_],
) -> None:
    for w in range(len(thread) - 1, -1, -1):
        if goes_on[w] or wakes_later[thread[w]]:
            kept[w] = True
            wakes_later[waker[w]] = True


@dataclass(frozen=True)
class Waits:
    """Points of the plan's threads, and who waits for whom.

    P points: ``wakeup`` (P,) the wake-up that each stands for, ``thread`` (P,) the thread of
    ``Threads`` that it belongs to, ``waits`` (P,) whether it is where that was woken.
    D dependencies: ``waiting`` and ``for_`` (D,), points.
    """

    wakeup: I64
    thread: I64
    waits: NDArray[np.bool_]
    waiting: I64
    for_: I64


def spread(found: Wakeups, who: Threads) -> Waits:
    """The wake-ups over all clones; of threads that are left out there are none in ``found``."""
    copies, wakers = (who.copies[t].astype(np.int64) for t in (found.thread, found.waker))
    within = who.group[found.thread] == who.group[found.waker]
    wakeup, number = _repeated(copies)
    from_, from_number = _repeated(wakers)
    base = np.cumsum(wakers) - wakers  # of each wake-up's waking points
    # One of a group waits for its own copy; one that has no copies, for all of them.
    own = within | (copies > 1) | (wakers == 1)
    each = np.where(own[wakeup], 1, wakers[wakeup])
    waiting, pick = _repeated(each)
    choice = np.where(own[wakeup], number % np.maximum(wakers[wakeup], 1), 0)[waiting] + pick
    return Waits(
        wakeup=np.concatenate([wakeup, from_]),
        thread=np.concatenate(
            [
                _instance(who, found.thread[wakeup], number),
                _instance(who, found.waker[from_], from_number),
            ]
        ),
        waits=np.arange(len(wakeup) + len(from_)) < len(wakeup),
        waiting=waiting,
        for_=len(wakeup) + base[wakeup[waiting]] + choice,
    )


def _repeated(times: I64) -> tuple[I64, I64]:
    """Each index as often as ``times`` says, and which time it is."""
    index = np.repeat(np.arange(len(times)), times)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(times) - times, times)


def _instance(who: Threads, thread: I64, number: I64) -> I64:
    """The thread itself (0) or its k-th clone."""
    clone = who.first_clone[thread].astype(np.int64) + number - 1
    return np.where(number == 0, thread, clone)
