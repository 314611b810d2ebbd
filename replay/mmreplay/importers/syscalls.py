"""System calls that make operations: their kind, and where their arguments go.

Arguments are named by position, which the system-call ABI fixes; the names in the
format text have changed (``len`` became ``len_in``), the positions have not.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers.events import ENTER
from mmreplay.schema import OpKind

# Slots of an event's eight arguments for system-call entries.
ADDRESS, LENGTH, ADDRESS2, LENGTH2, PROT, FLAGS, OFFSET, FD = range(8)
_NO: Final = -1


class Call(NamedTuple):
    """One system call: name, kind (None: it makes no operation), target slot of each argument."""

    name: str
    kind: OpKind | None
    slots: tuple[int, ...]
    #: Arguments that are C ints: the upper half of the register is not theirs.
    narrow: tuple[int, ...] = ()


CALLS: Final[tuple[Call, ...]] = (
    Call("mmap", OpKind.MMAP, (ADDRESS2, LENGTH, PROT, FLAGS, FD, OFFSET), (4,)),
    Call("munmap", OpKind.MUNMAP, (ADDRESS, LENGTH)),
    Call("mprotect", OpKind.MPROTECT, (ADDRESS, LENGTH, PROT)),
    Call("pkey_mprotect", OpKind.PKEY_MPROTECT, (ADDRESS, LENGTH, PROT, FLAGS), (3,)),
    Call("madvise", OpKind.MADVISE, (ADDRESS, LENGTH, FLAGS), (2,)),
    Call("process_madvise", OpKind.PROCESS_MADVISE, (FD, _NO, LENGTH2, FLAGS), (0, 3)),
    Call("brk", OpKind.BRK, (ADDRESS2,)),
    Call("mremap", OpKind.MREMAP, (ADDRESS, LENGTH2, LENGTH, FLAGS, ADDRESS2)),
    Call("mlock", OpKind.MLOCK, (ADDRESS, LENGTH)),
    Call("mlock2", OpKind.MLOCK, (ADDRESS, LENGTH, FLAGS), (2,)),
    Call("munlock", OpKind.MUNLOCK, (ADDRESS, LENGTH)),
    Call("mlockall", OpKind.MLOCKALL, (FLAGS,), (0,)),
    Call("munlockall", OpKind.MUNLOCKALL, ()),
    Call("shmat", OpKind.SHMAT, (FD, ADDRESS2, FLAGS), (0, 2)),
    Call("shmdt", OpKind.SHMDT, (ADDRESS,)),
    Call("mbind", OpKind.MBIND, (ADDRESS, LENGTH, _NO, _NO, _NO, FLAGS), (5,)),
    Call("mseal", OpKind.MSEAL, (ADDRESS, LENGTH, FLAGS)),
    Call("mincore", OpKind.MINCORE, (ADDRESS, LENGTH)),
    Call("msync", OpKind.MSYNC, (ADDRESS, LENGTH, FLAGS), (2,)),
    Call("clone", OpKind.CLONE, (FLAGS,)),
    Call("clone3", OpKind.CLONE, ()),
    Call("fork", OpKind.FORK, ()),
    Call("vfork", OpKind.VFORK, ()),
    Call("execve", OpKind.EXEC, ()),
    Call("execveat", OpKind.EXEC, ()),
    Call("get_mempolicy", OpKind.GET_MEMPOLICY, (_NO, _NO, _NO, ADDRESS, FLAGS)),
    Call("process_vm_readv", OpKind.PROCESS_VM, (FD,), (0,)),
    Call("process_vm_writev", OpKind.PROCESS_VM, (FD,), (0,)),
    Call("pkey_alloc", OpKind.PKEY, (FLAGS,)),
    Call("pkey_free", OpKind.PKEY, ()),
    Call("remap_file_pages", OpKind.REMAP_FILE_PAGES, (ADDRESS, LENGTH, PROT, _NO, FLAGS)),
    Call("vmsplice", OpKind.VMSPLICE, (FD,), (0,)),
    # No operations: they tell who waits for whom (:mod:`pairing.futex`); the last.
    Call("futex", None, (ADDRESS, FLAGS, LENGTH, LENGTH2, ADDRESS2, PROT), (1, 2, 5)),
    Call("futex_wake", None, (ADDRESS, PROT, LENGTH, FLAGS), (2, 3)),
    Call("futex_wait", None, (ADDRESS, LENGTH, PROT, FLAGS), (3,)),
    Call("futex_waitv", None, ()),
    Call("futex_requeue", None, (_NO, FLAGS, LENGTH, LENGTH2), (1, 2, 3)),
)
BY_NAME: Final = {call.name: index for index, call in enumerate(CALLS)}
C_MMAP: Final = BY_NAME["mmap"]
#: Names of mmap whose offset is in pages: as 32-bit kernels have it (x86 and most others; powerpc
#: and others).
PAGED: Final = ("mmap_pgoff", "mmap2")
PAGE_SHIFT: Final = 12
BY_NAME.update(dict.fromkeys(PAGED, C_MMAP))
C_BRK: Final = BY_NAME["brk"]
C_SHMAT: Final = BY_NAME["shmat"]
C_CLONE: Final = BY_NAME["clone"]
C_CLONE3: Final = BY_NAME["clone3"]
C_FORK: Final = BY_NAME["fork"]
C_VFORK: Final = BY_NAME["vfork"]
C_EXECVE: Final = BY_NAME["execve"]
C_EXECVEAT: Final = BY_NAME["execveat"]
#: The first of the calls of futexes; all behind it are.
C_FUTEX: Final = BY_NAME["futex"]
#: 32-bit kernels' futex with the old timeout, and its name in 32-bit programs.
BY_NAME.update(futex_time32=C_FUTEX, futex_time64=C_FUTEX)
C_FUTEX_WAKE: Final = BY_NAME["futex_wake"]
C_FUTEX_WAIT: Final = BY_NAME["futex_wait"]
C_FUTEX_WAITV: Final = BY_NAME["futex_waitv"]
C_FUTEX_REQUEUE: Final = BY_NAME["futex_requeue"]
CLONE_VM: Final = 0x100
CLONE_VFORK: Final = 0x4000

#: OpKind of each call, 0 of one that makes no operation.
CALL_KIND: NDArray[np.int64] = np.array([int(call.kind or 0) for call in CALLS], np.int64)


def tells_futexes(enters: NDArray[np.uint8], exits: NDArray[np.uint8]) -> bool:
    """Whether both ends of a call of futexes were recorded; (calls,) each."""
    return bool((enters[C_FUTEX:] & exits[C_FUTEX:]).any())


def offsets_in_bytes(batch: Any, rows: int, paged: Collection[int]) -> None:
    """Change the offsets, in pages, of the batch's events that are ``paged`` to bytes."""
    if paged:
        events, roles = batch.event[:rows], batch.role[:rows]
        chosen = np.flatnonzero(np.isin(events, list(paged)) & (roles == ENTER))
        batch.arg[chosen, OFFSET] <<= np.uint64(PAGE_SHIFT)


def present_mask(call: Call) -> int:
    """Bit k is set where the call fills argument slot k."""
    return sum(1 << slot for slot in call.slots if slot >= 0)


PRESENT: NDArray[np.int64] = np.array([present_mask(call) for call in CALLS], np.int64)


def _numbers(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in (one.split("=") for one in text.split())}


#: Numbers of the calls, which ``raw_syscalls`` tells: arch/x86/entry/syscalls/syscall_64.tbl,
#: syscall_32.tbl (its ``mmap2``; the old ``mmap`` keeps its arguments in memory) and
#: include/uapi/asm-generic/unistd.h, all @6.18.
_X86_64: Final = _numbers("""
    mmap=9 munmap=11 mprotect=10 pkey_mprotect=329 madvise=28 process_madvise=440 brk=12
    mremap=25 mlock=149 mlock2=325 munlock=150 mlockall=151 munlockall=152 shmat=30 shmdt=67
    mbind=237 mseal=462 mincore=27 msync=26 clone=56 clone3=435 fork=57 vfork=58 execve=59
    execveat=322 get_mempolicy=239 process_vm_readv=310 process_vm_writev=311 pkey_alloc=330
    pkey_free=331 remap_file_pages=216 vmsplice=278 futex=202 futex_waitv=449 futex_wake=454
    futex_wait=455 futex_requeue=456
""")
_I386: Final = _numbers("""
    mmap=192 munmap=91 mprotect=125 pkey_mprotect=380 madvise=219 process_madvise=440 brk=45
    mremap=163 mlock=150 mlock2=376 munlock=151 mlockall=152 munlockall=153 shmat=397 shmdt=398
    mbind=274 mseal=462 mincore=218 msync=144 clone=120 clone3=435 fork=2 vfork=190 execve=11
    execveat=358 get_mempolicy=275 process_vm_readv=347 process_vm_writev=348 pkey_alloc=381
    pkey_free=382 remap_file_pages=257 vmsplice=316 futex=240 futex_time64=422 futex_waitv=449
    futex_wake=454 futex_wait=455 futex_requeue=456
""")
_GENERIC: Final = _numbers("""
    munmap=215 mprotect=226 pkey_mprotect=288 madvise=233 process_madvise=440 brk=214 mremap=216
    mlock=228 mlock2=284 munlock=229 mlockall=230 munlockall=231 shmat=196 shmdt=197 mbind=235
    mseal=462 mincore=232 msync=227 clone=220 clone3=435 execve=221 execveat=281
    get_mempolicy=236 process_vm_readv=270 process_vm_writev=271 pkey_alloc=289 pkey_free=290
    remap_file_pages=234 vmsplice=75 mmap=222 futex=98 futex_waitv=449 futex_wake=454
    futex_wait=455 futex_requeue=456
""")
#: Machine, as ``uname -m`` says it -> (numbers of its own tasks, of its 32-bit tasks).
_MACHINES: Final[dict[str, tuple[dict[str, int], dict[str, int]]]] = {
    "x86_64": (_X86_64, _I386),
    "i386": (_I386, {}),
    "i686": (_I386, {}),
    "aarch64": (_GENERIC, {}),
    "riscv64": (_GENERIC, {}),
    "loongarch64": (_GENERIC, {}),
}
NATIVE, COMPAT = 0, 1
NUMBERS: Final = 512
#: Marks of an argument's slot in :class:`NumberTables`.
NARROW, PAGES = 16, 32


class NumberTables(NamedTuple):
    """Numbers to calls on one machine; the first axis is NATIVE or COMPAT."""

    calls: NDArray[np.int32]  # (2, NUMBERS): call, or -1
    slots: NDArray[np.int32]  # (2, calls, 6): slot of each argument and its marks, or -1
    #: execve, whose return tells what the new program is: each ABI's own number.
    execve: NDArray[np.int64]  # (2,): number, or -1


def number_tables(machine: str) -> NumberTables:
    """The tables of ``machine`` (``uname -m``); of an unknown one, no number is known."""
    numbers = np.full((2, NUMBERS), -1, np.int32)
    slots = np.full((2, len(CALLS), 6), -1, np.int32)
    execve = np.full(2, -1, np.int64)
    for abi, known in enumerate(_MACHINES.get(machine, ({}, {}))):
        execve[abi] = known.get("execve", -1)
        for name, number in known.items():
            index = BY_NAME[name]
            numbers[abi, number] = index
            for position, slot in enumerate(CALLS[index].slots):
                if slot >= 0:
                    mark = NARROW if position in CALLS[index].narrow else 0
                    if known is _I386 and slot == OFFSET:
                        mark |= PAGES  # mmap2 counts in pages
                    slots[abi, index, position] = slot | mark
    return NumberTables(numbers, slots, execve)
