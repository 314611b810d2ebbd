"""The plan: what the engine walks without searching.

A plan is a bundle of numpy arrays, thread-major: the operations of thread ``t``
are rows ``thread_first[t]:thread_first[t + 1]`` in program order.  It is built
from a trace by replaying the VMA map under the rules of a kernel range, and it
holds nothing that two threads can race for: those are runtime bits, to which the
plan only gives slots (``anon_slot``, ``table``).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

I8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]


class PlanOp(IntEnum):
    """Which program of a locking model an operation runs (append only).

    The lower-case name is the program's name in ``models/locking/*.toml``.
    """

    NONE = 0  # takes no lock of the memory map
    FAULT = 1
    MMAP = 2
    MUNMAP = 3
    MPROTECT = 4
    MADVISE_ZAP = 5  # DONTNEED, DONTNEED_LOCKED, FREE
    MADVISE_READ = 6  # COLD, PAGEOUT (holds mmap_lock for reading)
    MADVISE_WILLNEED = 7
    MADVISE_FLAGS = 8  # all advice that changes VMA flags or name
    MADVISE_POPULATE = 9  # POPULATE_READ, POPULATE_WRITE
    MADVISE_GUARD = 10  # GUARD_INSTALL, GUARD_REMOVE
    MADVISE_COLLAPSE = 11
    BRK_GROW = 12
    BRK_SHRINK = 13
    BRK_QUERY = 14
    MREMAP_GROW = 15  # in place
    MREMAP_SHRINK = 16
    MREMAP_MOVE = 17
    MREMAP_NOOP = 18
    MLOCK = 19
    MUNLOCK = 20
    MLOCKALL = 21  # and munlockall
    FORK = 22
    EXEC = 23
    THREAD_START = 24
    THREAD_EXIT = 25
    PROCESS_EXIT = 26
    SHMAT = 27
    SHMDT = 28
    VMA_POLICY = 29  # mbind, set_mempolicy_home_node, mseal: write-locks, changes VMA data
    PKEY = 30  # pkey_alloc, pkey_free
    PROCESS_MADVISE = 31
    MM_READ = 32  # mincore, msync, get_mempolicy: one read of mmap_lock
    PROC_MAPS = 33
    PROC_SMAPS = 34  # smaps and numa_maps: one read(2)
    PROC_ROLLUP = 35
    PROC_PAGEMAP = 36
    REMOTE_ACCESS = 37  # process_vm_*, /proc/PID/mem, ptrace: get_user_pages slow path
    GUP = 38  # pin of own pages (vmsplice, O_DIRECT) that misses the fast path
    UFFD_REGISTER = 39
    UFFD_COPY = 40  # COPY, ZEROPAGE, CONTINUE
    UFFD_OTHER = 41  # WRITEPROTECT
    VFORK_EXIT = 42  # exec or exit of a vfork child releases the parent's mm
    PROCESS_MADVISE_ZAP = 43  # process_madvise(DONTNEED, FREE): only of the caller's own mm
    UFFD_MOVE = 44
    REMAP_FILE_PAGES = 45
    MADVISE_REMOVE = 46  # punches a hole into the file: gives mmap_lock up and takes it again


class Trait(IntFlag):
    """Static facts of one operation; lower-case names are the language's conditions."""

    KERNEL_MODE = 1 << 0  # fault taken in kernel mode on a user address
    WRITE = 1 << 1
    ANON = 1 << 2  # the VMA is private anonymous
    FILE = 1 << 3  # the VMA maps a file (not shmem)
    SHMEM = 1 << 4  # shared anonymous, tmpfs, memfd
    SHARED = 1 << 5  # MAP_SHARED
    HOLE = 1 << 6  # no VMA at the address / in the range
    ACCESS_ERROR = 1 << 7  # the VMA forbids the access
    NEEDS_ANON_VMA = 1 << 8  # will want an anon_vma if the VMA has none (runtime bit)
    TABLE_MISSING = 1 << 9  # the page-table page may be missing (runtime bit table.present)
    NEEDS_IO = 1 << 10  # major: page not in memory
    PRESENT = 1 << 11  # a page is mapped already (write-protect fault)
    COW = 1 << 12  # copies a page
    REUSE = 1 << 13  # write-protect fault that reuses the page
    ZERO_PAGE = 1 << 14  # read fault served by the zero page
    FAULT_AROUND = 1 << 15  # file read fault that fault-around satisfies
    HUGE = 1 << 16  # transparent huge page
    HUGETLB = 1 << 17
    SWAP = 1 << 18
    NO_MAP_PAGES = 1 << 19  # device or special mapping without vm_ops->map_pages
    UFFD = 1 << 20  # userfaultfd is armed on the VMA
    STACK_GROWTH = 1 << 21  # address below a GROWSDOWN VMA that grows to it
    NEXT_GROWSDOWN = 1 << 22  # the VMA after an unmapped range grows down
    STRUCTURAL = 1 << 23  # splits or merges: changes the tree of VMAs
    SPLITS = 1 << 24  # a VMA is cut
    # one is extended by a merge, or swallowed.  With SPLITS: a boundary moves, the part that
    # changed went to its neighbour, and there are as many VMAs as before
    MERGES = 1 << 25
    OVERLAPS = 1 << 26  # MAP_FIXED over existing mappings
    POPULATE = 1 << 27  # populates pages after the write section (MAP_POPULATE, mlock)
    MULTI_VMA = 1 << 28  # the range reaches over the end of its first VMA
    # changes nothing (mprotect to the same protection, read(2) at the end, MADV_POPULATE_* of
    # pages that are there)
    NO_CHANGE = 1 << 29
    PAGES_PRESENT = 1 << 30  # something is mapped in the range: there is something to flush
    FREES_TABLES = 1 << 31
    LOCKED = 1 << 32  # VM_LOCKED
    SINGLE_THREADED = 1 << 33  # the address space has one user: no remote shootdown
    FAILED = 1 << 34  # the call returned an error after taking its locks
    SHARES_MM = 1 << 35  # fork-like op that shares the address space (vfork)
    FIRST_IN_FILE = 1 << 36  # the page of shared memory is not yet in its file: it is allocated
    MKWRITE = 1 << 37  # shared file write that must notify the file system
    LAST_USER = 1 << 38  # the last thread of its address space (exit)
    UNKNOWN_VMA = 1 << 39  # the VMA was guessed (counted)
    GATE_VMA = 1 << 40  # /proc/PID/maps and smaps end with [vsyscall]
    GROWSDOWN = 1 << 41  # the VMA is a stack (VM_GROWSDOWN)
    # the pages that it allocates, or the struct pages of those that it frees, are in no cache
    COLD = 1 << 42  # (``cold_pages``)
    COLD_FILE = 1 << 43  # nor are the pages of the file that it maps or copies
    LAZY_FREE = 1 << 44  # MADV_FREE: the pages stay until memory is short


#: In ``traits`` of a row NONE: no operation, but a point in its thread's time at which it woke
#: another thread, or (a row with ``dep_op``) was woken.  It takes no time and is counted nowhere;
#: only the user time before it is.  ``sleep_ns`` is the recorded wait, slept where the thread
#: comes by again after its loop point: the wake-ups of the recording are for its first lap.
WAKE_POINT: Final = np.uint64(1 << 63)


class MarkSet(IntEnum):
    """The sets that ``each SET`` walks: lists of each operation, of VMAs but for TABLES."""

    SPLITS = 1  # VMAs that are cut in two (the parts that stay)
    REMOVED = 2  # VMAs that disappear (or whose middle does)
    # VMAs whose data change in place; process_madvise: elements of its vector; mincore, msync,
    # WILLNEED: the times that the lock is taken anew
    TARGETS = 3
    NEIGHBOURS = 4  # prev/next that a merge extends or swallows
    # new VMAs (invisible until stored), or what stays of one that was cut in two
    CREATED = 5
    PARENT_VMAS = 6  # fork: every VMA of the parent, in address order
    TABLES = 7  # page-table pages of the range but the first, which is ``table``
    REWRITTEN = 8  # mprotect of several VMAs: those in which it changes pages that are mapped


#: ``scale`` is fixed point: this is 1.0.
SCALE_ONE: Final = 1024


class Plan(NamedTuple):
    """See the module docstring.  T threads, N operations, M address spaces."""

    # -- threads ---------------------------------------------------------------
    thread_first: I64  # (T+1,) first operation of each thread
    thread_offset_ns: I64  # (T,) when the thread's first think begins, from the window's start
    thread_group: I32  # (T,) dense thread-group index
    thread_loop: I64  # (T,) operation to continue at after the last one; -1: ends
    thread_tail_cpu_ns: I64  # (T,) user time after the last operation
    thread_tail_blocked_ns: I64  # (T,)
    # -- operations, thread-major ----------------------------------------------
    op: I8  # (N,) PlanOp
    mm: I32  # (N,) address space, 0..M-1
    child_mm: I32  # (N,) fork: the child's address space; else -1
    traits: U64  # (N,) Trait
    think_cpu_ns: I64  # (N,) user time before the operation
    think_blocked_ns: I64  # (N,) sleeping before the operation (before think_cpu_ns is spent)
    sleep_ns: I64  # (N,) recorded I/O sleep inside; -1 unknown (the machine's value is used)
    pages: I32  # (N,) pages filled, zapped or rewritten
    vmas: I32  # (N,) VMAs in the range
    tables: I32  # (N,) page-table pages in the range
    vma: I32  # (N,) lock object of the (first) VMA (``vma_locks``); -1 none
    anon_slot: I32  # (N,) slot of that VMA's anon_vma bit; -1 none
    table: I32  # (N,) page-table page of the (first) address; -1 none
    file: I32  # (N,) file of the VMA (i_mmap_rwsem); -1 none
    first_page: I64  # (N,) address >> 12 of the range
    last_page: I64  # (N,) last page of the range, inclusive
    vma_first_page: I64  # (N,) first page of the VMA ``vma`` as the operation finds it (mmap,
    # brk growth: leaves it); -1 none
    vma_last_page: I64  # (N,) its last page, inclusive; -1 none
    scale: I32  # (N,) factor on this operation's costs, SCALE_ONE = 1.0
    row: I64  # (N,) row of the trace's operations table; -1 for cloned or synthetic
    # -- lists per operation (CSR) -----------------------------------------------
    mark_first: I64  # (N+1,)
    mark_vma: I32  # VMA lock object; in the set TABLES: page-table page
    mark_set: I8  # MarkSet; the entries of one operation are grouped by set, ascending
    dep_first: I64  # (N+1,)
    dep_op: I64  # operation (row of this plan) that must have completed before this one starts
    # -- objects -------------------------------------------------------------------
    vma_mm: I32  # (V,) address space of each VMA lock object
    anon_initial: I8  # (A,) anon_vma bit at the start
    table_initial: I8  # (B,) table.present bit at the start
    mm_users: I32  # (M,) threads that use each address space
    n_files: int

    @property
    def n_threads(self) -> int:
        return len(self.thread_offset_ns)

    @property
    def n_ops(self) -> int:
        return len(self.op)

    @property
    def n_points(self) -> int:
        """Rows that are no operations but points of wake-ups."""
        return int(np.count_nonzero(self.traits & WAKE_POINT))

    @property
    def n_mms(self) -> int:
        return len(self.mm_users)
