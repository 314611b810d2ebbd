"""Whether a clone3 child shares its parent's memory: told by what it does first; compiled.

sys_enter_clone3 records a pointer to the flags.  A process with page tables of its own begins
with those of its parent less what can be faulted in again (copy_page_range and
vma_needs_copy@6.18): private pages are there for reading only, code is not there.  So before
anything else it faults on the instruction behind the call, or on a write to a page that is
present (its stack, or the place for its thread id).  One that shares the parent's memory needs
neither: it begins with a system call, or with a fault on a page that nobody has touched.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mmreplay.importers import events as ev
from mmreplay.importers import syscalls as sc
from mmreplay.importers.pairing import state as ps
from mmreplay.jit import borrowing_helper
from mmreplay.schema import OpKind

_CLONE = np.int64(int(OpKind.CLONE))
_FORK = np.int64(int(OpKind.FORK))
_PRESENT: Final = 1  # X86_PF_PROT: arch/x86/include/asm/trap_pf.h@6.18
_INSTRUCTION: Final = 16  # X86_PF_INSTR


@borrowing_helper
def evidence(role: Any, bits: Any) -> Any:
    """What an event of a new process, of an error code where it has one, says: SHOWS_*."""
    if role == ev.FAULT_USER:
        return ev.SHOWS_OWN if bits & (_PRESENT | _INSTRUCTION) else ev.SHOWS_SHARED
    if role == ev.FAULT_KERNEL:
        return ev.SHOWS_OWN if bits & _PRESENT else ev.SHOWS_NOTHING
    if ev.FAULT_SOFTWARE <= role <= ev.FAULT_MAJOR:
        return ev.SHOWS_OWN  # no error code: a fork is likelier
    return ev.SHOWS_NO_FAULT if role == ev.ENTER else ev.SHOWS_NOTHING


@borrowing_helper
def child_shows(a: Any, ops: Any, t: Any, shows: Any) -> None:
    """Settle whether the process of the thread at ``t`` shares its parent's memory."""
    p = ps.procs_at(a, a[t + ps.S_PROC])
    if shows == ev.SHOWS_NOTHING or not a[p + ps.P_GUESS_OPEN]:
        return
    a[p + ps.P_GUESS_OPEN] = 0
    faults = a[ps.C_STARTS] and not a[ps.C_LOSSES]
    if shows == ev.SHOWS_OWN or (shows == ev.SHOWS_NO_FAULT and not faults):
        return
    row = a[p + ps.P_GUESS_ROW]
    mother = a[p + ps.P_GUESS_MOTHER]
    if row < a[ps.C_BASE] or a[ps.spaces_at(a, mother) + ps.A_USERS] <= 0:
        return  # the call is written already, or the memory is gone
    a[ps.spaces_at(a, mother) + ps.A_USERS] += 1
    a[ps.spaces_at(a, a[p + ps.P_GUESS_SPACE]) + ps.A_ALIAS] = mother
    a[p + ps.P_SPACE] = mother
    a[p + ps.P_BEFORE_EXEC] = mother
    a[t + ps.S_SPACE] = mother
    parent = ps.threads_at(a, a[p + ps.P_GUESS_PARENT] - 1)
    calling = a[parent + ps.S_CALL] == sc.C_CLONE3 + 1
    if calling and a[parent + ps.S_CALL_CHILD] == a[p + ps.P_PID]:
        a[parent + ps.S_CALL_CHILD_SHARES] = 1
        return
    out = ps.place(a, row)
    if ops[out + ps.O_KIND] == _FORK:
        ops[out + ps.O_KIND] = _CLONE
