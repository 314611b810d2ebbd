"""Every column of every stored artefact, and every enumeration that a column holds.

This is the one place where names, dtypes, units, nullability and meaning are
stated; stores validate against it and ``docs/trace-format.md`` is generated from
it.  Enumerations are append-only: a number once given keeps its meaning.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

TRACE_SCHEMA: Final = 1
PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
#: One last-level page-table page maps 2 MiB; its lock (PTL) covers that region.
TABLE_SHIFT: Final = 21


class OpKind(IntEnum):
    """What one row of ``operations`` is (append only)."""

    FAULT_USER = 1
    FAULT_KERNEL = 2
    MMAP = 3
    MUNMAP = 4
    MPROTECT = 5
    MADVISE = 6
    BRK = 7
    MREMAP = 8
    CLONE = 9  # clone/clone3 with CLONE_VM: a thread, or vfork-like (see flags)
    EXEC = 10
    THREAD_START = 11
    THREAD_EXIT = 12
    MLOCK = 13
    SHMAT = 14
    POPULATE = 15  # reserved: MADV_POPULATE_* is MADVISE, MAP_POPULATE is MMAP
    SNAPSHOT_VMA = 16
    MUNLOCK = 17
    MLOCKALL = 18
    MUNLOCKALL = 19
    SHMDT = 20
    MBIND = 21
    PKEY_MPROTECT = 22
    PROCESS_MADVISE = 23
    FORK = 24  # fork, or clone without CLONE_VM: a new address space
    VFORK = 25  # vfork, or clone with CLONE_VM|CLONE_VFORK
    PROCESS_EXIT = 26  # last thread gone: the address space is torn down
    MSEAL = 27
    MINCORE = 28
    MSYNC = 29
    GET_MEMPOLICY = 30
    PROCESS_VM = 31  # process_vm_readv/writev on addr/len of this address space
    PROC_READ = 32  # one read(2) of a /proc/PID file; flags: ProcFile
    UFFD = 33  # one userfaultfd ioctl; flags: UffdOp
    PKEY = 34  # pkey_alloc / pkey_free
    REMAP_FILE_PAGES = 35
    VMSPLICE = 36  # get_user_pages on addr/len


class ProcFile(IntEnum):
    """Which /proc/PID file a ``PROC_READ`` row reads (column ``flags``)."""

    MAPS = 1
    SMAPS = 2
    SMAPS_ROLLUP = 3
    NUMA_MAPS = 4
    PAGEMAP = 5
    MEM = 6
    CMDLINE = 7
    ENVIRON = 8


class UffdOp(IntEnum):
    """Which userfaultfd ioctl an ``UFFD`` row is (column ``flags``)."""

    REGISTER = 1
    UNREGISTER = 2
    COPY = 3
    ZEROPAGE = 4
    CONTINUE = 5
    WRITEPROTECT = 6
    MOVE = 7


class DurationKind(IntEnum):
    """How ``duration_ns`` was obtained."""

    NONE = 0
    MEASURED = 1
    UPPER_BOUND = 2  # the next event of the same thread
    ESTIMATED = 3
    BEGIN_UNSEEN = 4  # begin_ns is the end
    END_UNSEEN = 5


class FaultClass(IntEnum):
    """Outcome of a fault."""

    UNKNOWN = 0
    MINOR = 1
    MAJOR = 2
    FAILED = 3


class FaultBits(IntFlag):
    """x86 page-fault error code bits (arch/x86/include/asm/trap_pf.h@6.18)."""

    PRESENT = 1
    WRITE = 2
    USER = 4
    RESERVED = 8
    INSTRUCTION = 16
    PKEY = 32
    SHADOW_STACK = 64


class Quality(IntFlag):
    """Marks on one operation that say how far to trust it."""

    NESTED_IN_SYSCALL = 1
    AFTER_GAP = 2
    LATE = 4
    COMPAT32 = 8
    SYNTHETIC = 16
    ORPHAN_EXIT = 32
    MIGRATED = 64
    NEGATIVE_FIXED = 128
    CHILD_RETURN = 256
    CONTENDED = 512  # a recorded contention span, or a sleep for a lock, lies inside
    WAKES = 1024  # before it its thread woke one that slept for the lock; think_cpu_ns is without


class SpanEnd(IntEnum):
    """Why a thread left its CPU (``schedule.reason``)."""

    BLOCKED = 0
    PREEMPTED = 1


class Column(NamedTuple):
    """One column: polars dtype name, unit, whether null is allowed, meaning.

    ``later``: added since traces were first written; where a trace has no such column,
    it reads as null.
    """

    name: str
    dtype: str
    unit: str
    nullable: bool
    meaning: str
    later: bool = False


class Table(NamedTuple):
    """One Parquet file of a trace directory."""

    name: str
    required: bool
    meaning: str
    columns: tuple[Column, ...]

    @property
    def file(self) -> str:
        return f"{self.name}.parquet"


def _c(
    name: str, dtype: str, unit: str, nullable: bool, meaning: str, *, later: bool = False
) -> Column:
    assert nullable or not later
    return Column(name, dtype, unit, nullable, meaning, later)


OPERATIONS = Table(
    "operations",
    True,
    "One row per memory-map operation, sorted by (begin_ns, seq): a total order.",
    (
        _c(
            "begin_ns",
            "Int64",
            "ns since t0",
            False,
            "begin (its end, where the begin was not seen)",
        ),
        _c("seq", "UInt32", "", False, "position among rows with equal begin_ns over all threads"),
        _c("duration_ns", "Int64", "ns", True, "recorded end minus begin, as recorded"),
        _c("duration_kind", "UInt8", "DurationKind", False, "how the duration was obtained"),
        _c(
            "duration_corrected_ns",
            "Int64",
            "ns",
            True,
            "duration without the probes' cost, at least 0",
        ),
        _c(
            "think_cpu_ns",
            "Int64",
            "ns",
            True,
            "on-CPU time of the thread since its previous operation, probe-corrected",
        ),
        _c(
            "think_raw_ns",
            "Int64",
            "ns",
            True,
            "think_cpu_ns as recorded, with the probes' cost; null in traces of before",
            later=True,
        ),
        _c(
            "think_blocked_ns",
            "Int64",
            "ns",
            True,
            "voluntary off-CPU time since its previous operation",
        ),
        _c(
            "preempted_ns",
            "Int64",
            "ns",
            True,
            "time runnable but not running, before and inside the operation",
        ),
        _c(
            "service_ns",
            "Int64",
            "ns",
            True,
            "inside the operation: what it would take uncontended",
        ),
        _c("wait_ns", "Int64", "ns", True, "inside the operation: waiting for locks"),
        _c("io_ns", "Int64", "ns", True, "inside the operation: off-CPU time that I/O explains"),
        _c(
            "unattributed_ns",
            "Int64",
            "ns",
            True,
            "time before and inside the operation that could not be split",
        ),
        _c(
            "contention_ns",
            "Int64",
            "ns",
            True,
            "recorded lock contention spans inside the operation",
        ),
        _c(
            "blocked_inside_ns",
            "Int64",
            "ns",
            True,
            "recorded voluntary off-CPU time inside the operation",
        ),
        _c("inner_events", "UInt16", "", False, "recorded events inside the operation"),
        _c("pid", "Int32", "", False, "thread-group id"),
        _c("tid", "Int32", "", False, "thread id"),
        _c(
            "address_space",
            "UInt32",
            "",
            False,
            "dense id: new at fork without CLONE_VM and at exec; shared by threads",
        ),
        _c("cpu", "Int16", "", False, "CPU at the begin, -1 unknown"),
        _c("kind", "UInt8", "OpKind", False, "what it is"),
        _c(
            "address",
            "UInt64",
            "byte",
            True,
            "fault address or start of the range (mmap: the returned address)",
        ),
        _c("length", "UInt64", "byte", True, "length of the range (brk: absolute change)"),
        _c(
            "address2",
            "UInt64",
            "byte",
            True,
            "mmap: hint; mremap: new address asked for; brk: new break; mremap result is in result",
        ),
        _c(
            "length2",
            "UInt64",
            "byte",
            True,
            "mremap: old length (length is the new one); process_madvise: elements of its vector",
        ),
        _c("prot", "UInt8", "PROT_*", True, "protection asked for"),
        _c("flags", "UInt64", "raw", True, "MAP_*, MADV_*, CLONE_*, MREMAP_*, or ProcFile/UffdOp"),
        _c("file_offset", "Int64", "byte", True, "offset of a file mapping"),
        _c("fd", "Int32", "", True, "file descriptor argument"),
        _c("result", "Int64", "", True, "return value"),
        _c("errno", "Int16", "", True, "error number where the call failed"),
        _c(
            "fault_bits",
            "UInt8",
            "FaultBits",
            True,
            "x86 error code (other architectures normalised)",
        ),
        _c("fault_class", "UInt8", "FaultClass", False, "minor, major, failed, unknown"),
        _c("child", "Int32", "", True, "clone/fork: tid of the child"),
        _c("ip", "UInt64", "byte", True, "user instruction pointer"),
        _c("weight", "UInt32", "", False, "events this row stands for; 1 unless sampled"),
        _c("quality", "UInt16", "Quality", False, "marks"),
    ),
)

THREADS = Table(
    "threads",
    True,
    "One row per thread seen.",
    (
        _c("tid", "Int32", "", False, "thread id"),
        _c("pid", "Int32", "", False, "thread-group id"),
        _c("parent_tid", "Int32", "", True, "thread that created it"),
        _c("address_space", "UInt32", "", False, "address space at its first event"),
        _c(
            "start_ns",
            "Int64",
            "ns since t0",
            True,
            "creation; null when it was there before the recording",
        ),
        _c("end_ns", "Int64", "ns since t0", True, "exit; null when it outlived the recording"),
        _c("first_ns", "Int64", "ns since t0", False, "first event"),
        _c("last_ns", "Int64", "ns since t0", False, "last event"),
        _c("start_kind", "String", "", False, "fork, thread, exec, attach or first_seen"),
        _c("comm", "String", "", False, "last command name"),
        _c(
            "group",
            "String",
            "",
            False,
            "thread group: comm with digits folded, the unit that --scale-group clones",
        ),
        _c("tail_cpu_ns", "Int64", "ns", True, "on-CPU time after its last operation"),
        _c(
            "tail_blocked_ns",
            "Int64",
            "ns",
            True,
            "voluntary off-CPU time after its last operation",
        ),
    ),
)

VMAS = Table(
    "vmas",
    True,
    "Known mappings with the moment they were learnt (exec, snapshot, MMAP2 records).",
    (
        _c("address_space", "UInt32", "", False, "address space"),
        _c(
            "ns",
            "Int64",
            "ns since t0",
            False,
            "when it was learnt; at most 0 for the initial state",
        ),
        _c("start", "UInt64", "byte", False, "first address"),
        _c("length", "UInt64", "byte", False, "length"),
        _c("prot", "UInt8", "PROT_*", False, "protection"),
        _c("flags", "UInt32", "MAP_*", False, "MAP_SHARED/MAP_PRIVATE and the rest as known"),
        _c("file_offset", "Int64", "byte", False, "offset in the file"),
        _c("inode", "UInt64", "", False, "inode, 0 for anonymous"),
        _c("device", "UInt32", "", False, "(major << 20) | minor"),
        _c("name", "String", "", False, "file name, [heap], [stack], or //anon"),
        _c("has_anon_vma", "Boolean", "", True, "true/false from smaps; null unknown"),
        _c("source", "String", "", False, "exec, snapshot or mmap2"),
    ),
)

SCHEDULE = Table(
    "schedule",
    False,
    "Off-CPU spans of threads.",
    (
        _c("tid", "Int32", "", False, "thread"),
        _c("off_ns", "Int64", "ns since t0", False, "left the CPU"),
        _c("on_ns", "Int64", "ns since t0", True, "came back; null unseen"),
        _c("cpu", "Int16", "", False, "CPU it left, -1 unknown"),
        _c("reason", "UInt8", "SpanEnd", False, "blocked or preempted"),
    ),
)

LOCKS = Table(
    "locks",
    False,
    "Recorded lock waits and holds.",
    (
        _c("tid", "Int32", "", False, "waiting or holding thread"),
        _c("address_space", "UInt32", "", False, "address space of the thread"),
        _c(
            "lock_address",
            "UInt64",
            "byte",
            False,
            "kernel address of the lock (0 when anonymised)",
        ),
        _c(
            "kind",
            "String",
            "",
            False,
            "rwsem, mutex, spinlock, other (from LCB_F_* flags) or mmap_lock",
        ),
        _c("mode", "String", "", False, "read, write or unknown"),
        _c("begin_ns", "Int64", "ns since t0", False, "wait began"),
        _c("wait_ns", "Int64", "ns", True, "wait; null when its end was not seen"),
        _c("hold_ns", "Int64", "ns", True, "hold, where recorded"),
    ),
)

GAPS = Table(
    "gaps",
    False,
    "Where events were lost.",
    (
        _c("ring", "Int32", "", False, "CPU or ring of the loss, -1 unknown"),
        _c("begin_ns", "Int64", "ns since t0", False, "last event before the loss"),
        _c("end_ns", "Int64", "ns since t0", False, "time of the LOST record"),
        _c("lost", "UInt64", "events", False, "events lost"),
        _c("event", "String", "", True, "which event, where known"),
    ),
)

CALLCHAINS = Table(
    "callchains",
    False,
    "Where operations came from, of those whose call chain was recorded (perf record -g).",
    (
        _c("begin_ns", "Int64", "ns since t0", False, "begin of the operation"),
        _c("seq", "UInt32", "", False, "its seq"),
        _c("stack", "UInt32", "", False, "its call chain, in the table of stacks"),
    ),
)

STACKS = Table(
    "stacks",
    False,
    "Distinct call chains: one row per frame, innermost first.",
    (
        _c("stack", "UInt32", "", False, "call chain, from 1"),
        _c("depth", "UInt16", "", False, "0 is the innermost frame"),
        _c("ip", "UInt64", "byte", False, "instruction pointer; kernel frames come first"),
    ),
)

WAKEUPS = Table(
    "wakeups",
    False,
    "Who waited for whom: one row per blocked wait between operations that another thread of the "
    "trace ended.",
    (
        _c("tid", "Int32", "", False, "thread that waited"),
        _c("off_ns", "Int64", "ns since t0", False, "it left the CPU"),
        _c("wake_ns", "Int64", "ns since t0", False, "it was woken"),
        _c("on_ns", "Int64", "ns since t0", False, "it was back on a CPU"),
        _c("after", "Int64", "row", True, "its last operation before; null before its first"),
        _c("cpu_ns", "Int64", "ns", False, "its on-CPU time from there to off_ns, probe-corrected"),
        _c("blocked_ns", "Int64", "ns", False, "its voluntary off-CPU time from there to off_ns"),
        _c("waker", "Int32", "", False, "thread that woke it, between two operations"),
        _c("waker_after", "Int64", "row", True, "the waker's last operation before"),
        _c("waker_cpu_ns", "Int64", "ns", False, "the waker's on-CPU time from there to wake_ns"),
        _c("waker_blocked_ns", "Int64", "ns", False, "its voluntary off-CPU time likewise"),
    ),
)

TRACE_TABLES: Final = (
    OPERATIONS,
    THREADS,
    VMAS,
    SCHEDULE,
    LOCKS,
    GAPS,
    CALLCHAINS,
    STACKS,
    WAKEUPS,
)

#: Version of RUNS files.
RUNS_SCHEMA: Final = 1

RUNS = Table(
    "runs",
    True,
    "One row per repetition of a workload by a path with a number of threads, on a machine. "
    "What others measured has nulls where they did not say it.",
    (
        _c("workload", "String", "", False, "name of the definition, or of the trace"),
        _c("path", "String", "", False, "how pages are faulted in: vma, mmap_lock or kernel"),
        _c("threads", "Int32", "", False, "threads asked for"),
        _c("placement", "String", "", False, "pinned (a CPU for each thread) or free"),
        _c("repetition", "Int32", "", False, "number of the repetition, from 0"),
        _c("order", "Int32", "", False, "position among all runs of the file"),
        _c("seed", "Int64", "", True, "of the workload's random decisions"),
        _c("warm_up_s", "Float64", "s", True, "looping before the window"),
        _c("window_s", "Float64", "s", True, "measured, mean over threads"),
        _c("ops", "Int64", "", True, "what the workload counts, in the window"),
        _c("ops_per_s", "Float64", "1/s", False, "sum over threads of count by own window"),
        _c("makespan_s", "Float64", "s", True, "of a trace: until its last thread has ended"),
        _c("useful_work", "Float64", "s/s", True, "of a trace: its own CPU time by makespan"),
        _c("fairness", "Float64", "", True, "Jain's index of the rates within a role; 1: equal"),
        _c("thread_min_per_s", "Float64", "1/s", True, "rate of the slowest counting thread"),
        _c("thread_max_per_s", "Float64", "1/s", True, "rate of the fastest"),
        *(
            _c(f"{name}_per_s", "Float64", "1/s", True, f"{meaning}, by all threads")
            for name, meaning in (
                ("touch", "pages touched"),
                ("read", "read(2) into a page"),
                ("mmap", "mmap"),
                ("munmap", "munmap"),
                ("mprotect", "mprotect"),
                ("madvise", "madvise; MADV_POPULATE too"),
                ("mremap", "mremap"),
                ("brk", "brk"),
                ("spawn", "threads started"),
                ("fork", "forks"),
            )
        ),
        _c("minor_faults", "Int64", "", True, "of all threads in the window, by getrusage"),
        _c("major_faults", "Int64", "", True, "those that waited for storage"),
        _c("user_s", "Float64", "s", True, "user CPU time of the threads there from the start"),
        _c("system_s", "Float64", "s", True, "their system CPU time"),
        _c("switches", "Int64", "", True, "voluntary context switches of all threads"),
        _c("preemptions", "Int64", "", True, "involuntary context switches"),
        _c("failed_calls", "Int64", "", True, "system calls that returned an error"),
        _c("missed_accesses", "Int64", "", True, "accesses that met no accessible page"),
        _c("other_cpu_s", "Float64", "s", True, "CPU time that other processes took meanwhile"),
        _c("steal_s", "Float64", "s", True, "CPU time that a hypervisor withheld"),
        _c("line_before_ns", "Float64", "ns", True, "cache line between two CPUs, before the run"),
        _c("line_after_ns", "Float64", "ns", True, "the same after it"),
        _c("loop_ratio", "Float64", "", True, "a fixed loop beside the run by its fastest ever"),
        _c("disturbed", "String", "", True, "what disturbed the run; null: nothing that was seen"),
        *(
            _c(f"vmstat_{name}", "Int64", "", True, f"{name} of /proc/vmstat, whole machine")
            for name in (
                "pgfault",
                "pgmajfault",
                "thp_fault_alloc",
                "vma_lock_success",
                "vma_lock_abort",
                "vma_lock_retry",
                "vma_lock_miss",
                "nr_tlb_remote_flush",
            )
        ),
        _c("path_check", "String", "", False, "verified, or why not: which locks the path takes"),
        _c("checked_faults", "Int64", "", True, "faults and populating calls traced for that"),
        _c("checked_under_mmap_lock", "Int64", "", True, "those that took mmap_lock"),
    ),
)
