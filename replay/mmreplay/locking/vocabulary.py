"""The words a locking model may use: costs, sleeps, reasons, conditions, sets.

This is the contract with the machine profiles (every cost and sleep named here has
a value there) and with the plan (every condition is a trait of an operation).  The
tables of ``docs/locking-language.md`` say the same, and a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mmreplay.address_space.plan import MarkSet, Trait
from mmreplay.locking.isa import Count, FlushScope, Mode, Operand, RuntimeBit


@dataclass(frozen=True, slots=True)
class Cost:
    """A cost: its unit ("per fault", "per page") and what work it stands for."""

    per: str
    meaning: str


#: On-CPU work in ns.  A program multiplies by ``* pages``, ``* vmas`` or ``* tables``
#: where the unit is a page, a VMA or a table.  Locks, cache-line transfers, shootdowns
#: and wake-ups are *not* in here: the engine charges them.
COSTS: Final[dict[str, Cost]] = {
    # page faults
    "fault_entry": Cost("fault", "exception entry and exit, and accounting of the fault"),
    "walk": Cost("lookup", "look one VMA up by address (maple-tree walk)"),
    "fault_common": Cost("fault", "handle_mm_fault: walk of the page-table levels, dispatch"),
    "pt_alloc": Cost("table", "allocate and clear one page-table page"),
    "pt_install": Cost("table", "link a page-table page, under the PMD lock"),
    "anon_vma": Cost("VMA", "allocate and link an anon_vma"),
    "alloc_page": Cost("page", "allocate one page and charge it, without clearing it"),
    "zero_page": Cost("page", "clear one 4 KiB page"),
    "copy_page": Cost("page", "copy one 4 KiB page (copy on write)"),
    "cold_page": Cost("page", "clear or copy one page that is in no cache: what it takes longer"),
    "set_pte": Cost("page", "re-check and set one PTE with rmap and RSS, under the PTL"),
    "alloc_huge": Cost("fault", "allocate and charge one 2 MiB page, without clearing it"),
    "zero_huge": Cost("fault", "clear one 2 MiB page"),
    "file_lookup": Cost("fault", "find a page in the page cache, trylock it, take a reference"),
    "file_around": Cost("fault", "look at the page-cache pages of fault-around's window"),
    "cold_file": Cost("page", "map and access a page-cache page in no cache: what it takes longer"),
    "file_map": Cost("page", "map one page-cache page (fault-around), under the PTL"),
    "mkwrite": Cost("fault", "tell the file system that a shared page becomes dirty"),
    "shmem_alloc": Cost("page", "allocate a shmem page and add it to its file, without clearing"),
    "io_submit": Cost("fault", "CPU time of starting a read and of the read-ahead"),
    "signal": Cost("fault", "deliver SIGSEGV/SIGBUS for a fault that failed"),
    "stack_expand": Cost("fault", "checks of a stack growth, without its tree store"),
    # batches that every Nth page pays
    "lru_batch": Cost("batch", "move one per-CPU batch to the LRU lists, under lru_lock"),
    "lru_drain": Cost("call", "move a page or two to the LRU lists at once, under lru_lock"),
    "zone_batch": Cost("batch", "refill or drain one per-CPU page list, under the zone lock"),
    "memcg_batch": Cost("batch", "charge one per-CPU stock to the memcg's counters"),
    # system calls on the map
    "syscall": Cost("call", "system-call entry and exit, argument checks"),
    "find": Cost("call", "find the first VMA of the range"),
    "gap_search": Cost("call", "search for an unmapped area"),
    "account": Cost("call", "limits, memory accounting and security hooks of a new mapping"),
    "vma_alloc": Cost("VMA", "allocate and set up one VMA"),
    "vma_free": Cost("VMA", "free one VMA"),
    "tree_store": Cost("store", "one range store into the maple tree"),
    "split": Cost("VMA", "split one VMA, without its tree store"),
    "merge": Cost("VMA", "extend or swallow one neighbour, without its tree store"),
    "detach": Cost("VMA", "take one VMA off the map"),
    "set_flags": Cost("VMA", "check and change flags or policy of one VMA"),
    "rmap_link": Cost("VMA", "insert one VMA into its anon_vma or file interval tree"),
    "rmap_unlink": Cost("VMA", "remove one VMA from its anon_vma or file interval tree"),
    "rewrite": Cost("page", "change the protection of one PTE, under the PTL"),
    "zap": Cost("page", "clear one PTE with rmap and RSS, under the PTL"),
    "free_page": Cost("page", "give one page back"),
    "free_table": Cost("table", "free one page-table page"),
    "table_gather": Cost("call", "hand page-table pages to RCU to be freed, and its callback"),
    "move_pte": Cost("page", "move one PTE to another table, under both PTLs"),
    "mlock_page": Cost("page", "move one page to or from the unevictable state"),
    "scan": Cost("page", "look at one PTE (COLD, PAGEOUT, mincore, smaps, pagemap)"),
    "madvise_common": Cost("call", "madvise: set up the walk and the gather"),
    # fork, exec, exit, threads
    "mm_alloc": Cost("call", "allocate an mm_struct and its page-table root"),
    "dup_vma": Cost("VMA", "duplicate one VMA at fork"),
    "copy_pte": Cost("page", "copy and write-protect one PTE at fork"),
    "fork_common": Cost("call", "everything of fork that is not the memory map"),
    "exec_common": Cost("call", "everything of exec that is not the old memory map"),
    "exit_common": Cost("call", "everything of an exit that is not the memory map"),
    "thread_create": Cost("call", "clone of a thread"),
    # readers
    "proc_open": Cost("call", "one read(2) of a /proc/PID file, without its lines"),
    "proc_line": Cost("VMA", "format one VMA's lines"),
    "gup": Cost("page", "find and pin one user page by the slow path"),
    "remote_copy": Cost("page", "copy to or from one page of another address space"),
    # userfaultfd
    "uffd_common": Cost("call", "ioctl checks and the context's own locks"),
    "collapse": Cost("call", "collapse one 2 MiB range: copy 512 pages, install the huge PMD"),
}

#: Off-CPU time that is not for a lock, in ns.
SLEEPS: Final[dict[str, str]] = {
    "io": "read of a page from storage (the plan's own sleep_ns is used where it is known)",
    "page_lock": "somebody else's I/O or lock on the page",
    "uffd": "user space resolves a userfaultfd fault",
}

#: What ``count`` may count.  The fallback reasons sum to the faults that took the
#: mmap_lock although the model has a finer lock (LOCKING.md 2.5).
REASONS: Final[dict[str, str]] = {
    "fallback": "faults that went by the mmap_lock",
    "abort": "VMA-lock attempts that did not get the lock (vmstat vma_lock_abort)",
    "retry": "faults that dropped the VMA lock and started again (vmstat vma_lock_retry)",
    "kernel_mode": "fault in kernel mode: never by the VMA lock",
    "no_vma": "no VMA at the address",
    "vma_busy": "the VMA was marked, or a writer was waiting for its readers",
    "no_anon_vma": "no anon_vma yet, and the kernel wants the mmap_lock for it",
    "anon_vma_trylock": "mmap_lock read-trylock for the anon_vma failed",
    "io": "the page had to be read",
    "not_anonymous": "the VMA is not anonymous",
    "access_error": "the VMA forbids the access",
    "no_map_pages": "device or special mapping",
    "hugetlb": "hugetlb VMA",
    "swap": "page not present in the table but in swap or migrating",
    "uffd": "userfaultfd is armed",
    "file_miss": "fault-around did not satisfy the read",
    "file_write": "copy or shared write of a file page",
    "multi_vma": "the range reaches over the end of its first VMA",
    "full_range": "a range lock had to take the whole address space",
    "spf_odd": "speculation: a writer was inside",
    "spf_vma_copy": "speculation: the sequence moved while the VMA was copied",
    "spf_anon_vma": "speculation: no anon_vma",
    "spf_pmd": "speculation: page table missing",
    "spf_seq": "speculation: the sequence moved before the commit",
    "spf_ptl": "speculation: page-table lock not free",
}

#: Plan traits as conditions: lower-case names (``if kernel_mode goto ...``).
TRAITS: Final[dict[str, Trait]] = {
    trait.name.lower(): trait for trait in Trait if trait.name is not None
}

#: Runtime bits as conditions and as operands of ``set``.
BITS: Final[dict[str, RuntimeBit]] = {
    "vma.anon_vma": RuntimeBit.VMA_ANON_VMA,
    "vma.dead": RuntimeBit.VMA_DEAD,
    "table.present": RuntimeBit.TABLE_PRESENT,
    "op.tried": RuntimeBit.OP_TRIED,
}

SETS: Final[dict[str, MarkSet]] = {s.name.lower(): s for s in MarkSet}
COUNTS: Final[dict[str, Count]] = {
    "pages": Count.PAGES,
    "vmas": Count.VMAS,
    "tables": Count.TABLES,
    "pages / vmas": Count.PAGES_PER_VMA,
    "pages / tables": Count.PAGES_PER_TABLE,
}
FLUSHES: Final[dict[str, FlushScope]] = {f.name.lower(): f for f in FlushScope}
MODES: Final[dict[str, Mode]] = {m.name.lower(): m for m in Mode}
OPERANDS: Final[dict[str, Operand]] = {
    f"@{o.name.lower()}": o for o in Operand if o is not Operand.NONE
}

#: The twenty words, with their forms (for messages and the manual).
WORDS: Final[dict[str, str]] = {
    "cost": "cost NAME [* pages|vmas|tables|pages / vmas|pages / tables]",
    "sleep": "sleep NAME",
    "flush": "flush mm|touched|tables|none",
    "touch": "touch LINE [write]",
    "lock": "lock LOCK read|write [@RANGE]",
    "try": "try LOCK read|write [@RANGE] else LABEL",
    "unlock": "unlock LOCK",
    "downgrade": "downgrade LOCK",
    "mark": "mark",
    "snap": "snap SEQ [else LABEL]",
    "check": "check SEQ else LABEL",
    "if": "if CONDITION... goto LABEL",
    "goto": "goto LABEL|PROGRAM",
    "each": "each SET",
    "end": "end",
    "call": "call PROGRAM [retry LABEL]",
    "retry": "retry",
    "done": "done",
    "set": "set BIT",
    "count": "count REASON",
}
