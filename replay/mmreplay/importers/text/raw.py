"""``raw_syscalls`` in text and trace.dat: which call a number means, told line by line.

As :mod:`mmreplay.importers.raw_calls` does for perf.data, but while lines are read, because there
calls tell what becomes of threads; and an exec, which has no record of its own, shows in the
number that it returns with: the new program's own ``execve``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmreplay.importers import events as ev
from mmreplay.importers import syscalls as sc
from mmreplay.importers.raw_calls import HIGH, IS_COMPAT, IS_NATIVE, LOW, is_high
from mmreplay.importers.text import rows as tr
from mmreplay.importers.text.fields import put_arguments
from mmreplay.jit import borrowing_helper

_CALLS = len(sc.CALLS)
_KERNEL_HALF = 1 << 63


@borrowing_helper
def show_address(task: Any, at: Any, address: Any) -> None:
    """The thread at ``at`` faulted there: all addresses of a 32-bit task are below 4 GiB."""
    if task[at + tr.K_ABI] <= LOW and np.uint64(address) < np.uint64(_KERNEL_HALF):
        task[at + tr.K_ABI] = HIGH if is_high(np.uint64(address)) else LOW


@borrowing_helper
def name_raw(
    task: Any,
    at: Any,
    rows: Any,
    o: Any,
    role: Any,
    number: Any,
    raw: Any,
    numbers: Any,
    slots: Any,
    execve: Any,
    told: Any,
) -> Any:
    """The call that the thread at ``at`` enters or leaves by ``number``, its arguments or result
    (``raw``) into the row at ``o``; -1: none of interest, or its own events tell it.

    ``numbers``, ``slots`` and ``execve`` are those of :func:`syscalls.number_tables`, ``told``
    (2, calls) says which entries and returns have events of their own.
    """
    if number < 0:
        return number
    leaves = role == ev.RAW_EXIT
    high = False
    for k in range(1 if leaves else 6):
        high = high or is_high(raw[k])
    if high and task[at + tr.K_ABI] <= LOW:
        task[at + tr.K_ABI] = HIGH
    abi = task[at + tr.K_ABI]
    which = sc.COMPAT if abi == LOW or abi == IS_COMPAT else sc.NATIVE
    inside = task[at + tr.K_RAW]
    task[at + tr.K_RAW] = 0 if leaves else number + 1
    if leaves and raw[0] == 0:
        # Of the first program its exec's return is all there is.
        executes = inside == 0 and abi <= LOW
        if inside > 0:
            call = numbers[which * sc.NUMBERS + inside - 1]
            executes = call == sc.C_EXECVE or call == sc.C_EXECVEAT
        if executes and number == execve[sc.COMPAT]:
            which = sc.COMPAT
            task[at + tr.K_ABI] = IS_COMPAT if inside > 0 else LOW
        elif executes and number == execve[sc.NATIVE]:
            which = sc.NATIVE
            task[at + tr.K_ABI] = IS_NATIVE
    call = np.int64(numbers[which * sc.NUMBERS + number])
    if call < 0 or (which == sc.NATIVE and told[(_CALLS if leaves else 0) + call] != 0):
        return np.int64(-1)
    if leaves:
        rows[o + tr.C_ARG] = np.int64(raw[0])
    else:
        put_arguments(rows, o, which * _CALLS + call, raw, slots)
    return call
