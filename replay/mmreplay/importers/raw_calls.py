"""``raw_syscalls`` to calls: which one a number means depends on the task's ABI.

A 32-bit task's numbers are another table's, and its calls are in ``raw_syscalls`` only: the
kernel leaves them out of ``syscalls:*`` (trace_get_syscall_nr in kernel/trace/trace_syscalls.c
@6.18).  What a task is shows when it executes: the kernel sets the number of the call that
returns then to the new program's own ``execve`` (set_personality_ia32 in
arch/x86/kernel/process_64.c@6.18).  Of a task that was there before, its addresses tell, and
the words of its calls: all of a 64-bit one's are never below 4 GiB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mmreplay.importers import events as ev
from mmreplay.importers.pairing.state import MAX_TID
from mmreplay.importers.syscalls import (
    CALLS,
    COMPAT,
    NARROW,
    NATIVE,
    PAGE_SHIFT,
    PAGES,
    number_tables,
)
from mmreplay.jit import borrowing_helper, native

if TYPE_CHECKING:
    from mmreplay.importers.perf.layout import EventInfo

# What is known of a process.
UNKNOWN, LOW, HIGH, _EXECUTING, IS_COMPAT, IS_NATIVE = range(6)
_FOUR_GIB: Final = np.uint64(1 << 32)
_KERNEL_HALF: Final = np.uint64(1 << 63)


class RawCalls:
    """Turns batches' RAW_ENTER and RAW_EXIT into ENTER and EXIT, in order.

    Of a native task only what ``syscalls:*`` does not tell: with both recorded each call is
    seen twice.

    Parameters
    ----------
    machine:
        ``uname -m`` of the recording machine.
    events:
        The recording's events.
    """

    def __init__(self, machine: str, events: list[EventInfo]) -> None:
        self._tables = number_tables(machine)
        self._abi = np.zeros(MAX_TID, np.uint8)  # by pid; what is never touched is no memory
        self._told = np.zeros((2, len(CALLS)), np.uint8)
        for event in events:
            if event.role in (ev.ENTER, ev.EXIT):
                self._told[int(event.role == ev.EXIT), event.call] = 1

    def name(self, batch: ev.Batch, rows: int) -> None:
        """Change the first ``rows`` of ``batch``; calls that make no operation become OTHER."""
        _name(batch, rows, self._tables, self._abi, self._told)


@borrowing_helper
def is_high(word: Any) -> Any:
    """Whether no register of a 32-bit task, and no address of its, holds that."""
    return _FOUR_GIB <= word < _KERNEL_HALF


@native
def _name(batch: Any, rows: Any, tables: Any, abi: Any, told: Any) -> None:
    for i in range(rows):
        role = np.int64(batch.role[i])
        if role == ev.FORK:
            child, parent = np.int64(batch.arg[i, 0]), np.int64(batch.arg[i, 1])
            if child != parent and 0 < child < MAX_TID and 0 < parent < MAX_TID:
                abi[child] = abi[parent]
            continue
        pid = np.int64(batch.pid[i])
        if pid <= 0 or pid >= MAX_TID:
            if role == ev.RAW_ENTER or role == ev.RAW_EXIT:
                batch.role[i] = ev.OTHER
            continue
        if role == ev.COMM and batch.arg[i, 0]:
            abi[pid] = _EXECUTING
        elif role == ev.MAPPING or ev.FAULT_USER <= role <= ev.FAULT_MAJOR:
            address = batch.arg[i, 0]
            if abi[pid] <= LOW and address < _KERNEL_HALF:
                abi[pid] = HIGH if is_high(address) else LOW
        if role != ev.RAW_ENTER and role != ev.RAW_EXIT:
            continue
        high = False
        for k in range(1 if role == ev.RAW_EXIT else 6):
            high = high or is_high(batch.arg[i, k])
        if high and abi[pid] <= LOW:
            abi[pid] = HIGH
        number = batch.arg[i, 7]
        if abi[pid] == _EXECUTING and role == ev.RAW_EXIT and batch.arg[i, 0] == 0:
            if np.int64(number) == tables.execve[COMPAT]:
                abi[pid] = IS_COMPAT
            elif np.int64(number) == tables.execve[NATIVE]:
                abi[pid] = IS_NATIVE
        which = COMPAT if abi[pid] == LOW or abi[pid] == IS_COMPAT else NATIVE
        call = np.int64(-1)
        if number < np.uint64(tables.calls.shape[1]):
            call = np.int64(tables.calls[which, np.int64(number)])
        leaves = np.int64(role == ev.RAW_EXIT)
        if call < 0 or (which == NATIVE and told[leaves, call]):
            batch.role[i] = ev.OTHER
            batch.call[i] = -1
            continue
        batch.call[i] = call
        if leaves:
            batch.role[i] = ev.EXIT
            batch.arg[i, 7] = 0
            continue
        batch.role[i] = ev.ENTER
        words = (
            batch.arg[i, 0],
            batch.arg[i, 1],
            batch.arg[i, 2],
            batch.arg[i, 3],
            batch.arg[i, 4],
            batch.arg[i, 5],
        )
        for k in range(8):
            batch.arg[i, k] = 0
        for k in range(6):
            slot = np.int64(tables.slots[which, call, k])
            if slot < 0:
                continue
            word = words[k]
            if slot & NARROW:
                low = np.int64(word & np.uint64(0xFFFFFFFF))
                word = np.uint64(low - (low >> 31 << 32))
            if slot & PAGES:
                word = word << np.uint64(PAGE_SHIFT)
            batch.arg[i, slot & 7] = word
