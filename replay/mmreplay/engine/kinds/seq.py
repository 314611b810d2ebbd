"""Sequence counts (mm_lock_seq, Lespinasse's mmap_seq, Dufour's vm_sequence): the oracle.

With ``bump_acquire`` the count is odd inside a write section.  Without, it moves by
two at the section's end, so that it is never odd.
"""

from __future__ import annotations

from mmreplay.engine.kinds.base import Line, PrivateLine


class Seq:
    """One sequence count."""

    def __init__(self, line: Line | PrivateLine) -> None:
        self.line = line
        self.value = 0

    def bump(self, cpu: int, by: int, at_ns: int) -> int:
        """Move the count; returns when the store is done."""
        self.value += by
        return self.line.store(cpu, at_ns)
