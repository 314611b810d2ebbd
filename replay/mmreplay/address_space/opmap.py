"""Which program of a locking model a recorded call runs: by kind, argument and error.

The tables say what the kernel does, so each line cites where that is decided.
"""

from __future__ import annotations

import errno
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import PlanOp
from mmreplay.address_space.vma_state import Vm
from mmreplay.schema import OpKind, ProcFile, UffdOp

# madvise advice, include/uapi/asm-generic/mman-common.h@6.18
MADV_DONTNEED: Final = 4
MADV_FREE: Final = 8
MADV_REMOVE: Final = 9
MADV_PAGEOUT: Final = 21
MADV_POPULATE_READ: Final = 22
MADV_POPULATE_WRITE: Final = 23
MADV_DONTNEED_LOCKED: Final = 24
MADV_COLLAPSE: Final = 25
MADV_GUARD_INSTALL: Final = 102
MADV_GUARD_REMOVE: Final = 103

# mm/madvise.c: get_lock_mode@6.18, madvise_need_mmap_write@5.10-6.14
_ADVICE: Final[dict[PlanOp, tuple[int, ...]]] = {
    PlanOp.MADVISE_ZAP: (MADV_DONTNEED, MADV_FREE, MADV_DONTNEED_LOCKED),
    PlanOp.MADVISE_READ: (20, MADV_PAGEOUT),  # 20 COLD
    PlanOp.MADVISE_REMOVE: (MADV_REMOVE,),
    PlanOp.MADVISE_WILLNEED: (3,),
    PlanOp.MADVISE_POPULATE: (MADV_POPULATE_READ, MADV_POPULATE_WRITE),
    PlanOp.MADVISE_GUARD: (MADV_GUARD_INSTALL, MADV_GUARD_REMOVE),
    PlanOp.MADVISE_COLLAPSE: (MADV_COLLAPSE,),
    PlanOp.NONE: (100, 101),  # HWPOISON, SOFT_OFFLINE: no mmap_lock
}

_KIND: Final[dict[OpKind, PlanOp]] = {
    OpKind.FAULT_USER: PlanOp.FAULT,
    OpKind.FAULT_KERNEL: PlanOp.FAULT,
    OpKind.MMAP: PlanOp.MMAP,
    OpKind.MUNMAP: PlanOp.MUNMAP,
    OpKind.MPROTECT: PlanOp.MPROTECT,
    OpKind.PKEY_MPROTECT: PlanOp.MPROTECT,
    OpKind.MADVISE: PlanOp.MADVISE_FLAGS,  # by advice, see advice_table
    OpKind.BRK: PlanOp.BRK_QUERY,  # by outcome
    OpKind.MREMAP: PlanOp.MREMAP_NOOP,  # by outcome
    OpKind.CLONE: PlanOp.NONE,  # a thread: no lock of the memory map (LOCKING 4.3)
    OpKind.EXEC: PlanOp.EXEC,
    OpKind.THREAD_START: PlanOp.THREAD_START,
    OpKind.THREAD_EXIT: PlanOp.THREAD_EXIT,
    OpKind.MLOCK: PlanOp.MLOCK,
    OpKind.SHMAT: PlanOp.SHMAT,
    OpKind.POPULATE: PlanOp.MADVISE_POPULATE,
    OpKind.SNAPSHOT_VMA: PlanOp.NONE,
    OpKind.MUNLOCK: PlanOp.MUNLOCK,
    OpKind.MLOCKALL: PlanOp.MLOCKALL,
    OpKind.MUNLOCKALL: PlanOp.MLOCKALL,
    OpKind.SHMDT: PlanOp.SHMDT,
    OpKind.MBIND: PlanOp.VMA_POLICY,
    OpKind.MSEAL: PlanOp.VMA_POLICY,
    OpKind.REMAP_FILE_PAGES: PlanOp.REMAP_FILE_PAGES,
    OpKind.PROCESS_MADVISE: PlanOp.PROCESS_MADVISE,
    OpKind.FORK: PlanOp.FORK,
    OpKind.VFORK: PlanOp.NONE,  # shares the mm; its end is VFORK_EXIT of the child
    OpKind.PROCESS_EXIT: PlanOp.PROCESS_EXIT,
    OpKind.MINCORE: PlanOp.MM_READ,
    OpKind.MSYNC: PlanOp.MM_READ,
    OpKind.GET_MEMPOLICY: PlanOp.MM_READ,
    OpKind.PROCESS_VM: PlanOp.REMOTE_ACCESS,
    OpKind.PROC_READ: PlanOp.PROC_MAPS,  # by file
    OpKind.UFFD: PlanOp.UFFD_OTHER,  # by ioctl
    OpKind.PKEY: PlanOp.PKEY,
    OpKind.VMSPLICE: PlanOp.GUP,
}

_PROC: Final[dict[ProcFile, PlanOp]] = {
    ProcFile.MAPS: PlanOp.PROC_MAPS,
    ProcFile.SMAPS: PlanOp.PROC_SMAPS,
    ProcFile.SMAPS_ROLLUP: PlanOp.PROC_ROLLUP,
    ProcFile.NUMA_MAPS: PlanOp.PROC_SMAPS,
    ProcFile.PAGEMAP: PlanOp.PROC_PAGEMAP,
    ProcFile.MEM: PlanOp.REMOTE_ACCESS,
    ProcFile.CMDLINE: PlanOp.REMOTE_ACCESS,
    ProcFile.ENVIRON: PlanOp.REMOTE_ACCESS,
}

_UFFD: Final[dict[UffdOp, PlanOp]] = {
    UffdOp.REGISTER: PlanOp.UFFD_REGISTER,
    UffdOp.UNREGISTER: PlanOp.UFFD_REGISTER,
    UffdOp.COPY: PlanOp.UFFD_COPY,
    UffdOp.ZEROPAGE: PlanOp.UFFD_COPY,
    UffdOp.CONTINUE: PlanOp.UFFD_COPY,
    UffdOp.WRITEPROTECT: PlanOp.UFFD_OTHER,
    UffdOp.MOVE: PlanOp.UFFD_MOVE,
}

#: Errors that a call returns before it takes any lock of the memory map.  With any
#: other error it has held the lock, so its program runs with the trait FAILED.
_BEFORE_LOCK: Final[dict[OpKind, tuple[int, ...]]] = {
    # mm/mmap.c:ksys_mmap_pgoff@6.18 (fget); EINVAL of a zero length and EPERM (RLIMIT_MEMLOCK, a
    # sealed VMA, execution of what is mounted noexec) come from do_mmap, under the lock
    OpKind.MMAP: (errno.EBADF, errno.ENOSYS),
    OpKind.MUNMAP: (errno.EINTR,),  # __vm_munmap@6.18: every check is under the lock
    # mm/mprotect.c:do_mprotect_pkey@6.18
    OpKind.MPROTECT: (errno.EINVAL, errno.EINTR, errno.ENOSYS),
    OpKind.PKEY_MPROTECT: (errno.EINVAL, errno.EINTR, errno.ENOSYS),
    # mm/madvise.c:madvise_should_skip@6.18
    OpKind.MADVISE: (errno.EINVAL, errno.EINTR, errno.EPERM),
    OpKind.MREMAP: (errno.EINVAL, errno.EINTR),  # mm/mremap.c:check_mremap_params@6.18
    OpKind.MLOCK: (errno.EINVAL, errno.EPERM, errno.EINTR),  # mm/mlock.c:do_mlock@6.18
    OpKind.MUNLOCK: (errno.EINTR,),  # EINVAL: apply_vma_lock_flags
    OpKind.MLOCKALL: (errno.EINVAL, errno.EPERM, errno.EINTR),
    OpKind.MUNLOCKALL: (errno.EINTR,),
    OpKind.SHMAT: (errno.EINVAL, errno.EACCES, errno.EIDRM, errno.EPERM),
    OpKind.SHMDT: (errno.EINTR,),
    OpKind.MBIND: (errno.EINVAL, errno.EPERM, errno.ENODEV, errno.ENOSYS),
    OpKind.MSEAL: (errno.EINVAL, errno.EINTR, errno.ENOSYS),
    OpKind.REMAP_FILE_PAGES: (errno.EINVAL, errno.EINTR),
    OpKind.MINCORE: (errno.EINVAL, errno.EFAULT),  # ENOMEM: a hole (mm/mincore.c:do_mincore@6.18)
    OpKind.MSYNC: (errno.EINVAL,),
    OpKind.GET_MEMPOLICY: (errno.EINVAL, errno.ENOSYS),
    # mm/madvise.c:SYSCALL process_madvise@6.18 (EFAULT: import_iovec)
    OpKind.PROCESS_MADVISE: (errno.EINVAL, errno.EBADF, errno.EPERM, errno.ESRCH, errno.EFAULT),
    OpKind.PROCESS_VM: (errno.EINVAL, errno.EPERM, errno.ESRCH),
    OpKind.UFFD: (errno.EINVAL, errno.EFAULT),
    OpKind.VMSPLICE: (errno.EINVAL, errno.EBADF),
}
#: Calls that return before the lock where their range is empty; mlock and munlock do not
#: (mm/mlock.c:do_mlock@6.18).
_EMPTY_BEFORE: Final = (
    OpKind.MPROTECT,
    OpKind.PKEY_MPROTECT,
    OpKind.MADVISE,
    OpKind.MSYNC,
    OpKind.MINCORE,
    OpKind.MBIND,
    OpKind.MSEAL,
)
#: Calls that fail before the memory map is touched, whatever the error.
_ALWAYS_BEFORE: Final = (
    OpKind.CLONE,
    OpKind.FORK,
    OpKind.VFORK,
    OpKind.EXEC,
    OpKind.PROC_READ,
    OpKind.POPULATE,
)

_KINDS: Final = 64
_ERRNOS: Final = 256
_ARGS: Final = 128


def program_table() -> NDArray[np.uint8]:
    """(64, 128) PlanOp by OpKind and by advice, file or ioctl (0 for other kinds)."""
    table = np.zeros((_KINDS, _ARGS), np.uint8)
    for kind, op in _KIND.items():
        table[kind, :] = op
    for op, advices in _ADVICE.items():
        for advice in advices:
            table[OpKind.MADVISE, advice] = op
    for advice in _ADVICE[PlanOp.MADVISE_ZAP]:
        table[OpKind.PROCESS_MADVISE, advice] = PlanOp.PROCESS_MADVISE_ZAP
    for file, op in _PROC.items():
        table[OpKind.PROC_READ, file] = op
    for ioctl, op in _UFFD.items():
        table[OpKind.UFFD, ioctl] = op
    return table


def before_lock_table() -> NDArray[np.bool_]:
    """(64, 256) by OpKind and errno: the call failed before it took a lock."""
    table = np.zeros((_KINDS, _ERRNOS), np.bool_)
    for kind, numbers in _BEFORE_LOCK.items():
        table[kind, list(numbers)] = True
    for kind in _ALWAYS_BEFORE:
        table[kind, :] = True
    table[:, errno.ENOSYS] = True
    return table


def empty_before_lock_table() -> NDArray[np.bool_]:
    """(64,) by OpKind: of an empty range the call returns before it takes a lock."""
    table = np.zeros(_KINDS, np.bool_)
    table[list(_EMPTY_BEFORE)] = True
    return table


def valid_advice_table() -> NDArray[np.bool_]:
    """(128,) by madvise's advice: known to every kernel since 5.10, whatever its configuration.

    EINVAL of such advice, where the address is aligned, comes from the VMA: under the lock
    (mm/madvise.c:madvise_behavior_valid@5.10; MERGEABLE and HUGEPAGE may be configured out).
    """
    table = np.zeros(_ARGS, np.bool_)
    table[[0, 1, 2, 3, 4, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21]] = True
    return table


def refused_flags_table() -> NDArray[np.int64]:
    """(128,) by madvise's advice that younger kernels know: vm_flags that it is refused for.

    EINVAL tells of the VMA, not of an old kernel, where one has such a flag: mm/gup.c:
    faultin_page_range, mm/madvise.c:madvise_dontneed_free_valid_vma, is_valid_guard_vma@6.18.
    """
    table = np.zeros(_ARGS, np.int64)
    special = Vm.SPECIAL | Vm.HUGETLB
    table[[MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_DONTNEED_LOCKED]] = int(Vm.SPECIAL)
    table[[MADV_GUARD_INSTALL, MADV_GUARD_REMOVE]] = int(special)
    table[MADV_GUARD_INSTALL] |= int(Vm.LOCKED)
    return table


VALID_ADVICE: Final = valid_advice_table()
REFUSED_FLAGS: Final = refused_flags_table()
PROGRAM: Final = program_table()
BEFORE_LOCK: Final = before_lock_table()
EMPTY_BEFORE_LOCK: Final = empty_before_lock_table()
