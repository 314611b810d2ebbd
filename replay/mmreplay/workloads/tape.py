"""Writing a trace by hand: one call per operation, as a recorder would have seen it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mmreplay.schema import PAGE_SIZE, DurationKind, FaultBits, FaultClass, OpKind, Quality

if TYPE_CHECKING:
    from mmreplay.trace.store import Trace

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
READ_WRITE: Final = PROT_READ | PROT_WRITE
# include/uapi/asm-generic/mman-common.h, include/uapi/linux/mman.h
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 0x1, 0x2, 0x10, 0x20
MAP_GROWSDOWN, MAP_NORESERVE, MAP_POPULATE, MAP_HUGETLB = 0x100, 0x4000, 0x8000, 0x40000

#: Where a top-down search begins; far from the stack and the heap.
MMAP_BASE: Final = 0x7F00_0000_0000
STACK_TOP: Final = 0x7FFD_0000_0000
HEAP: Final = 0x5600_0000_0000
#: Between the begins of two operations; every operation takes a tenth of it.
STEP_NS: Final = 10_000


@dataclass(frozen=True, slots=True)
class File:
    """A file that may be mapped: descriptor, inode and device as a recorder reports them."""

    name: str
    fd: int
    inode: int
    device: int


@dataclass(slots=True)
class Tape:
    """A trace in the making.  One operation at a time, in the order of time.

    ``segments``: name → (first, one past the last) row of the operations between
    :meth:`begin` and :meth:`end`.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    mappings: list[dict[str, Any]] = field(default_factory=list)
    threads: dict[int, dict[str, Any]] = field(default_factory=dict)
    segments: dict[str, tuple[int, int]] = field(default_factory=dict)
    now_ns: int = 0
    tid: int = 1
    pid: int = 1
    space: int = 0
    _taken: list[tuple[int, int]] = field(default_factory=list)  # ascending, disjoint
    _open: str = ""

    def __post_init__(self) -> None:
        self._thread(1, 1, 0, None, "exec")
        for name, start, length, prot, flags in (
            ("[heap]", HEAP, 16 * PAGE_SIZE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS),
            ("[stack]", STACK_TOP - (33 << 12), 33 << 12, READ_WRITE, MAP_PRIVATE | MAP_GROWSDOWN),
        ):
            self.mapping(start, length, prot, flags, name=name, source="exec")

    # -- rows ------------------------------------------------------------------------
    def _thread(self, tid: int, pid: int, space: int, parent: int | None, kind: str) -> None:
        self.threads[tid] = {
            "tid": tid,
            "pid": pid,
            "parent_tid": parent,
            "address_space": space,
            "start_ns": self.now_ns if parent is not None else None,
            "end_ns": None,
            "first_ns": self.now_ns,
            "last_ns": self.now_ns,
            "start_kind": kind,
            "comm": "phases",
            "group": "phases",
        }

    def mapping(
        self,
        start: int,
        length: int,
        prot: int,
        flags: int,
        *,
        name: str = "//anon",
        inode: int = 0,
        device: int = 0,
        offset: int = 0,
        source: str = "mmap2",
    ) -> None:
        """A mapping that the recorder reports by itself (exec, snapshot, MMAP2)."""
        self.mappings.append(
            {
                "address_space": self.space,
                "ns": self.now_ns if source == "mmap2" else 0,
                "start": start,
                "length": length,
                "prot": prot,
                "flags": flags,
                "file_offset": offset,
                "inode": inode,
                "device": device,
                "name": name,
                "has_anon_vma": None,
                "source": source,
            }
        )

    def op(self, kind: OpKind, **columns: Any) -> None:
        """One operation of the current thread."""
        thread = self.threads[self.tid]
        self.now_ns += STEP_NS
        self.rows.append(
            {
                "begin_ns": self.now_ns,
                "duration_ns": STEP_NS // 10,
                "duration_kind": int(DurationKind.MEASURED),
                "think_cpu_ns": STEP_NS - STEP_NS // 10,
                "think_blocked_ns": 0,
                "pid": self.pid,
                "tid": self.tid,
                "address_space": self.space,
                "cpu": 0,
                "kind": int(kind),
                "quality": int(Quality.SYNTHETIC),
                **columns,
            }
        )
        thread["last_ns"] = self.now_ns + STEP_NS // 10

    def begin(self, name: str) -> None:
        """The phase ``name`` starts here."""
        self._open = name
        self.segments[name] = (len(self.rows), len(self.rows))

    def end(self) -> None:
        """The current phase ends here."""
        self.segments[self._open] = (self.segments[self._open][0], len(self.rows))

    def trace(self) -> Trace:
        """Everything so far as a trace in memory."""
        from mmreplay.trace.header import Header
        from mmreplay.trace.store import Trace, frame

        header = Header(span_ns=self.now_ns + STEP_NS, target="synthetic", kernel_release="6.18.0")
        tables = {
            "operations": frame("operations", self.rows),
            "threads": frame("threads", list(self.threads.values())),
            "vmas": frame("vmas", self.mappings),
        }
        return Trace.in_memory(header, tables)

    # -- mapping calls ---------------------------------------------------------------
    def place(self, length: int) -> int:
        """The highest free range below the base, as the kernel's top-down search finds it."""
        top = MMAP_BASE
        for start, end in reversed(self._taken):
            if top - end >= length:
                break
            top = start
        return top - length

    def _take(self, start: int, end: int) -> None:
        self._drop(start, end)
        out: list[tuple[int, int]] = []
        for a, b in sorted([*self._taken, (start, end)]):
            if out and out[-1][1] == a:
                out[-1] = (out[-1][0], b)
            else:
                out.append((a, b))
        self._taken = out

    def _drop(self, start: int, end: int) -> None:
        out = []
        for a, b in self._taken:
            if b <= start or a >= end:
                out.append((a, b))
                continue
            if a < start:
                out.append((a, start))
            if b > end:
                out.append((end, b))
        self._taken = out

    def mmap(
        self,
        length: int,
        prot: int = READ_WRITE,
        flags: int = MAP_PRIVATE | MAP_ANONYMOUS,
        at: int | None = None,
        file: File | None = None,
        offset: int = 0,
    ) -> int:
        """mmap; ``at`` means MAP_FIXED.  Returns the address."""
        start = self.place(length) if at is None else at
        if at is not None:
            flags |= MAP_FIXED
        if file is not None:
            flags &= ~MAP_ANONYMOUS
        self._take(start, start + length)
        self.op(
            OpKind.MMAP,
            address=start,
            length=length,
            address2=at or 0,
            prot=prot,
            flags=flags,
            file_offset=offset,
            fd=file.fd if file else -1,
            result=start,
        )
        if file is not None:
            self.mapping(
                start,
                length,
                prot,
                flags & (MAP_SHARED | MAP_PRIVATE),
                name=file.name,
                inode=file.inode,
                device=file.device,
                offset=offset,
            )
        return start

    def reserve(self, length: int) -> int:
        """A PROT_NONE reservation: what is mapped into it merges with nothing outside."""
        return self.mmap(length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

    def isolated(
        self,
        length: int,
        prot: int = READ_WRITE,
        flags: int = MAP_PRIVATE | MAP_ANONYMOUS,
        file: File | None = None,
    ) -> int:
        """A mapping in the middle of a reservation of its own."""
        around = self.reserve(length + 32 * PAGE_SIZE)
        return self.mmap(length, prot, flags, around + 16 * PAGE_SIZE, file)

    def munmap(self, start: int, length: int) -> None:
        self._drop(start, start + length)
        self.op(OpKind.MUNMAP, address=start, length=length, result=0)

    def mprotect(self, start: int, length: int, prot: int) -> None:
        self.op(OpKind.MPROTECT, address=start, length=length, prot=prot, result=0)

    def madvise(self, start: int, length: int, advice: int) -> None:
        self.op(OpKind.MADVISE, address=start, length=length, flags=advice, result=0)

    def range_op(
        self, kind: OpKind, start: int, length: int, flags: int = 0, result: int = 0
    ) -> None:
        """A call on a range without further arguments."""
        self.op(kind, address=start, length=length, flags=flags, result=result)

    def process_madvise(self, advice: int, elements: int) -> None:
        """process_madvise: a recording shows the vector's length, not its elements."""
        self.op(OpKind.PROCESS_MADVISE, length2=elements, flags=advice, fd=9, result=0)

    def gate(self) -> None:
        """[vsyscall]: the fixed page that /proc/PID/maps shows after the last VMA."""
        self.mapping(
            0xFFFF_FFFF_FF60_0000, PAGE_SIZE, 4, MAP_PRIVATE, name="[vsyscall]", source="snapshot"
        )

    def brk(self, new: int, old: int) -> None:
        """brk(2); ``new`` 0 asks for the break."""
        result = new or old
        self.op(OpKind.BRK, address2=new, length=abs(result - old), result=result)

    def mremap(self, old: int, old_length: int, length: int, to: int | None = None) -> None:
        target = old if to is None else to
        flags = 0 if to is None else 3  # MREMAP_MAYMOVE | MREMAP_FIXED
        if to is not None:
            self._drop(old, old + old_length)
        elif length < old_length:
            self._drop(old + length, old + old_length)
        self._take(target, target + length)
        self.op(
            OpKind.MREMAP,
            address=old,
            length=length,
            length2=old_length,
            address2=to or 0,
            flags=flags,
            result=target,
        )

    # -- faults ------------------------------------------------------------------------
    def fault(
        self,
        address: int,
        write: bool = False,
        *,
        present: bool = False,
        kernel: bool = False,
        outcome: FaultClass = FaultClass.MINOR,
    ) -> None:
        """A page fault at ``address``."""
        bits = FaultBits.WRITE * write | FaultBits.PRESENT * present | FaultBits.USER * (not kernel)
        kind = OpKind.FAULT_KERNEL if kernel else OpKind.FAULT_USER
        self.op(kind, address=address, fault_bits=int(bits), fault_class=int(outcome))

    def write(self, address: int, **how: Any) -> None:
        self.fault(address, True, **how)

    def touch(self, start: int, pages: int) -> None:
        """First write to each of ``pages`` pages."""
        for page in range(pages):
            self.write(start + page * PAGE_SIZE)

    # -- processes and threads -----------------------------------------------------------
    def fork(self, kind: OpKind, tid: int) -> None:
        """fork, vfork or clone: ``tid`` is new and becomes a thread of the tape."""
        thread = kind is OpKind.CLONE
        space = (
            self.space
            if kind is not OpKind.FORK
            else 1 + max(t["address_space"] for t in self.threads.values())
        )
        self.op(kind, child=tid, result=tid)
        self._thread(
            tid, self.pid if thread else tid, space, self.tid, "thread" if thread else "fork"
        )

    def switch(self, tid: int) -> None:
        """The following operations are those of thread ``tid``."""
        thread = self.threads[tid]
        self.tid, self.pid, self.space = tid, thread["pid"], thread["address_space"]

    def leave(self, kind: OpKind) -> None:
        """The current thread exits; what follows belongs to its parent."""
        self.op(kind)
        thread = self.threads[self.tid]
        thread["end_ns"] = self.now_ns + STEP_NS // 10
        self.switch(thread["parent_tid"])
