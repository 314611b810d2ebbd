"""Events that tell the same thing twice: ``-e page-faults -e page-faults:u`` in one recording.

The kernel writes a sample for each of them, one behind the other.  The first one counts.  Linux
6.18 gives the second the first one's id and time, too (both were seen to be equal), older ones
its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Final

import numpy as np

from mmreplay.importers import events as ev
from mmreplay.importers.binary import mix
from mmreplay.jit import native

#: Samples of one moment are written without anything else of the thread between, but an interrupt
#: may come; what is further apart has happened twice.
MOST_NS: Final = 1_000_000
#: What is remembered of the last event of each thread and kind: its content, which events told
#: it, and when.
(_CONTENT, _EVENTS, _TIME, _SIZE) = range(4)
#: A thread's place is given by the last bits of its id.
_THREADS: Final = 1 << 16
#: Events of one kind that are told apart.
_MOST: Final = 64


class Twice:
    """Leaves the repetitions out of batches; :meth:`know` first.

    Parameters
    ----------
    least:
        So many events must tell the same thing, for it to be looked at: 1 where they may have
        one name.
    """

    def __init__(self, least: int = 2) -> None:
        self._least = least
        self._kinds = np.full(0, -1, np.int32)
        self._bits = np.zeros(0, np.uint64)
        self._last = np.zeros((0, _THREADS, _SIZE), np.uint64)
        #: Repetitions by event.
        self.dropped = np.zeros(0, np.int64)

    def know(self, kinds: Sequence[Hashable]) -> None:
        """What each event tells (None: it does not matter); more may follow later, in order."""
        if len(kinds) == len(self._kinds):
            return
        several: dict[Hashable, int] = {}
        met: dict[Hashable, int] = {}
        self._kinds = np.full(len(kinds), -1, np.int32)
        self._bits = np.zeros(len(kinds), np.uint64)
        for kind in kinds:
            if kind is not None:
                met[kind] = met.get(kind, 0) + 1
                if met[kind] == self._least:
                    several[kind] = len(several)
        met.clear()
        for event, kind in enumerate(kinds):
            place = met[kind] = met.get(kind, -1) + 1
            if kind in several and place < _MOST:
                self._kinds[event] = several[kind]
                self._bits[event] = 1 << place
        self._last = np.zeros((len(several), _THREADS, _SIZE), np.uint64)
        self.dropped = np.concatenate(
            (self.dropped, np.zeros(len(kinds) - len(self.dropped), np.int64))
        )

    def leave_out(self, batch: ev.Batch, rows: int) -> None:
        """Make the repetitions among the first ``rows`` nobody's events."""
        if len(self._last):
            _leave_out(batch, rows, self._kinds, self._bits, self._last, self.dropped)

    @property
    def count(self) -> int:
        """How many events were left out."""
        return int(self.dropped.sum())

    def told(self, names: Sequence[str]) -> list[str]:
        """A warning for each event that was left out, or in part."""
        return [
            f"{name}: {count:,} of its events had been told by another event already; they count "
            "once"
            for name, count in zip(names, self.dropped.tolist(), strict=False)
            if count
        ]


@native
def _leave_out(batch: Any, rows: Any, kinds: Any, bits: Any, last: Any, dropped: Any) -> None:
    for i in range(rows):
        event = np.int64(batch.event[i])
        if event < 0 or event >= kinds.shape[0] or kinds[event] < 0:
            continue
        tid = np.int64(batch.tid[i]) & (_THREADS - 1)
        content = mix(np.uint64(batch.tid[i]) + mix(np.uint64(batch.mark[i] & ev.USER_MODE)))
        content = mix(content ^ batch.ip[i])
        for k in range(8):
            content = mix(content ^ batch.arg[i, k])
        now = np.uint64(batch.time[i])
        kind = np.int64(kinds[event])
        since = now - last[kind, tid, _TIME]
        same = last[kind, tid, _EVENTS] != 0 and last[kind, tid, _CONTENT] == content
        other = last[kind, tid, _EVENTS] & bits[event] == 0 and since <= np.uint64(MOST_NS)
        if same and (other or since == 0):
            last[kind, tid, _EVENTS] |= bits[event]
            batch.role[i] = ev.OTHER
            batch.call[i] = -1
            batch.pid[i] = 0
            dropped[event] += 1
            continue
        last[kind, tid, _CONTENT] = content
        last[kind, tid, _EVENTS] = bits[event]
        last[kind, tid, _TIME] = now
