"""Call chains, each distinct one kept once: batches' chains to numbers, and their frames.

Numbers go by first occurrence in total order.  Two chains are taken for one where a 64-bit
hash of their frames agrees.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers import events as ev
from mmreplay.importers.binary import load_u64, new_table, table_find, table_put
from mmreplay.importers.perf.decode import CONTEXT, STREAM_SHIFT, rehash
from mmreplay.importers.perf.streams import Ready, Stream
from mmreplay.jit import native

#: Distinct chains that are told apart; later ones are dropped, and their operations counted.
MOST_STACKS: Final = 1 << 20


class Frames(NamedTuple):
    """Rows of the table of stacks."""

    stack: NDArray[np.uint32]
    depth: NDArray[np.uint16]
    ip: NDArray[np.uint64]


class Stacks:
    """Numbers the call chains of batches."""

    def __init__(self) -> None:
        self.count = 0
        #: Operations whose chain came after too many others.
        self.dropped = 0
        self._keys, self._values = new_table(1024)
        self._new = np.zeros(0, np.int64)

    def number(
        self, batch: ev.Batch, rows: int, ready: Ready, first: int, streams: list[Stream]
    ) -> Frames | None:
        """Fill ``batch.stack`` of the first ``rows``; the frames of chains not seen before.

        Row 0 is the entry of ``ready`` at place ``first``.
        """
        if 2 * (self.count + rows) > len(self._keys):
            keys, values = new_table(2 * (self.count + rows))
            rehash(self._keys, self._values, keys, values)
            self._keys, self._values = keys, values
        if len(self._new) < rows:
            self._new = np.zeros(len(batch.stack), np.int64)
        found, dropped = _number(batch, rows, self._keys, self._values, self.count, self._new)
        self.dropped += dropped
        if not found:
            return None
        new = self._new[:found]
        at = ready.positions[first + new] >> STREAM_SHIFT
        chains = batch.chain[new]
        counts = np.zeros(found, np.int64)
        for index, stream in enumerate(streams):
            _count(stream.buffer, index, at, chains, counts)
        ends = np.cumsum(counts)
        frames = Frames(
            np.repeat(np.arange(found, dtype=np.uint32) + np.uint32(self.count + 1), counts),
            (np.arange(ends[-1]) - np.repeat(ends - counts, counts)).astype(np.uint16),
            np.zeros(ends[-1], np.uint64),
        )
        for index, stream in enumerate(streams):
            _copy(stream.buffer, index, at, chains, ends - counts, frames.ip)
        self.count += found
        return frames


@native
def _number(batch: Any, rows: Any, keys: Any, values: Any, count: Any, new: Any) -> Any:
    found = 0
    dropped = 0
    for i in range(rows):
        batch.stack[i] = 0
        if batch.chain[i] == 0 or batch.role[i] == ev.OTHER:
            continue
        number = np.int64(table_find(keys, values, batch.chain_hash[i]))
        if number < 0:
            if count + found >= MOST_STACKS:
                dropped += 1
                continue
            number = count + found
            table_put(keys, values, batch.chain_hash[i], number)
            new[found] = i
            found += 1
        batch.stack[i] = number + 1
    return found, dropped


@native
def _count(buffer: Any, stream: Any, at: Any, chains: Any, counts: Any) -> None:
    for k in range(chains.shape[0]):
        if at[k] == stream:
            for frame in range(1, np.int64(load_u64(buffer, chains[k])) + 1):
                if load_u64(buffer, chains[k] + 8 * frame) < np.uint64(CONTEXT):
                    counts[k] += 1


@native
def _copy(buffer: Any, stream: Any, at: Any, chains: Any, starts: Any, ips: Any) -> None:
    for k in range(chains.shape[0]):
        if at[k] == stream:
            to = starts[k]
            for frame in range(1, np.int64(load_u64(buffer, chains[k])) + 1):
                ip = load_u64(buffer, chains[k] + 8 * frame)
                if ip < np.uint64(CONTEXT):
                    ips[to] = ip
                    to += 1
