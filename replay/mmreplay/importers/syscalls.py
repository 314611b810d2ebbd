"""System calls that make operations: their kind, and where their arguments go.

Arguments are named by position, which the system-call ABI fixes; the names in the
format text have changed (``len`` became ``len_in``), the positions have not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.schema import OpKind

# Slots of an event's eight arguments for system-call entries.
ADDRESS, LENGTH, ADDRESS2, LENGTH2, PROT, FLAGS, OFFSET, FD = range(8)
_NO: Final = -1


@dataclass(frozen=True, slots=True)
class Call:
    """One system call: name, kind, target slot of each argument, x86-64 number (or -1)."""

    name: str
    kind: OpKind
    slots: tuple[int, ...]
    number: int = -1
    #: Arguments that are C ints: the upper half of the register is not theirs.
    narrow: tuple[int, ...] = ()


#: Numbers: arch/x86/entry/syscalls/syscall_64.tbl@6.18.
CALLS: Final[tuple[Call, ...]] = (
    Call("mmap", OpKind.MMAP, (ADDRESS2, LENGTH, PROT, FLAGS, FD, OFFSET), 9, (4,)),
    Call("munmap", OpKind.MUNMAP, (ADDRESS, LENGTH), 11),
    Call("mprotect", OpKind.MPROTECT, (ADDRESS, LENGTH, PROT), 10),
    Call("pkey_mprotect", OpKind.PKEY_MPROTECT, (ADDRESS, LENGTH, PROT, FLAGS), 329, (3,)),
    Call("madvise", OpKind.MADVISE, (ADDRESS, LENGTH, FLAGS), 28, (2,)),
    Call("process_madvise", OpKind.PROCESS_MADVISE, (FD, _NO, LENGTH2, FLAGS), 440, (0, 3)),
    Call("brk", OpKind.BRK, (ADDRESS2,), 12),
    Call("mremap", OpKind.MREMAP, (ADDRESS, LENGTH2, LENGTH, FLAGS, ADDRESS2), 25),
    Call("mlock", OpKind.MLOCK, (ADDRESS, LENGTH), 149),
    Call("mlock2", OpKind.MLOCK, (ADDRESS, LENGTH, FLAGS), 325, (2,)),
    Call("munlock", OpKind.MUNLOCK, (ADDRESS, LENGTH), 150),
    Call("mlockall", OpKind.MLOCKALL, (FLAGS,), 151, (0,)),
    Call("munlockall", OpKind.MUNLOCKALL, (), 152),
    Call("shmat", OpKind.SHMAT, (FD, ADDRESS2, FLAGS), 30, (0, 2)),
    Call("shmdt", OpKind.SHMDT, (ADDRESS,), 67),
    Call("mbind", OpKind.MBIND, (ADDRESS, LENGTH, _NO, _NO, _NO, FLAGS), 237, (5,)),
    Call("mseal", OpKind.MSEAL, (ADDRESS, LENGTH, FLAGS), 462),
    Call("mincore", OpKind.MINCORE, (ADDRESS, LENGTH), 27),
    Call("msync", OpKind.MSYNC, (ADDRESS, LENGTH, FLAGS), 26, (2,)),
    Call("clone", OpKind.CLONE, (FLAGS,), 56),
    Call("clone3", OpKind.CLONE, (), 435),
    Call("fork", OpKind.FORK, (), 57),
    Call("vfork", OpKind.VFORK, (), 58),
    Call("execve", OpKind.EXEC, (), 59),
    Call("execveat", OpKind.EXEC, (), 322),
    Call("get_mempolicy", OpKind.GET_MEMPOLICY, (_NO, _NO, _NO, ADDRESS, FLAGS), 239),
    Call("process_vm_readv", OpKind.PROCESS_VM, (FD,), 310, (0,)),
    Call("process_vm_writev", OpKind.PROCESS_VM, (FD,), 311, (0,)),
    Call("pkey_alloc", OpKind.PKEY, (FLAGS,), 330),
    Call("pkey_free", OpKind.PKEY, (), 331),
    Call("remap_file_pages", OpKind.REMAP_FILE_PAGES, (ADDRESS, LENGTH, PROT, _NO, FLAGS), 216),
    Call("vmsplice", OpKind.VMSPLICE, (FD,), 278, (0,)),
)
BY_NAME: Final = {call.name: index for index, call in enumerate(CALLS)}
C_MMAP: Final = BY_NAME["mmap"]
C_BRK: Final = BY_NAME["brk"]
C_SHMAT: Final = BY_NAME["shmat"]
C_CLONE: Final = BY_NAME["clone"]
C_CLONE3: Final = BY_NAME["clone3"]
C_FORK: Final = BY_NAME["fork"]
C_VFORK: Final = BY_NAME["vfork"]
C_EXECVE: Final = BY_NAME["execve"]
C_EXECVEAT: Final = BY_NAME["execveat"]
CLONE_VM: Final = 0x100
CLONE_VFORK: Final = 0x4000

#: OpKind of each call.
CALL_KIND: NDArray[np.int64] = np.array([int(call.kind) for call in CALLS], np.int64)


def present_mask(call: Call) -> int:
    """Bit k is set where the call fills argument slot k."""
    return sum(1 << slot for slot in call.slots if slot >= 0)


PRESENT: NDArray[np.int64] = np.array([present_mask(call) for call in CALLS], np.int64)

_NUMBERS: Final = 512


def number_tables() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For ``raw_syscalls``: x86-64 number -> call (or -1), and call, argument -> slot + narrow.

    The second array holds ``slot`` or ``slot + 16`` for narrow arguments, -1 for none.
    """
    by_number = np.full(_NUMBERS, -1, np.int32)
    slots = np.full((len(CALLS), 6), -1, np.int32)
    for index, call in enumerate(CALLS):
        if call.number >= 0:
            by_number[call.number] = index
        for position, slot in enumerate(call.slots):
            if slot >= 0:
                slots[index, position] = slot + (16 if position in call.narrow else 0)
    return by_number, slots
