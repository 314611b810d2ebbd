"""A trace that can be shared: what tells about the machine and its users is replaced.

The shape of every address space stays (order, distances, alignment, offsets in pages), and so do
times, sizes, flags, process ids, CPU model and kernel release: predictions are identical.  Replaced
is, each thing by the same thing everywhere,

* addresses from 1 TiB up, which the kernel chose at random: moved by one multiple of 1 GiB.  Those
  below are chosen by linkers and runtimes, are the same in every run, and tell nothing.  The
  offset of a mapping of no file is an address too: where its pages lay first;
* kernel addresses (faults, locks): numbered pages;
* names of threads, files and user-named memory: letters in the order of the names, so that whatever
  is sorted by name stays in order; inodes and devices: numbers;
* in the header: clock readings, size and hash of the recording, memory size, names of user-defined
  events.
"""

from __future__ import annotations

import copy
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmreplay.errors import UserError
from mmreplay.schema import TRACE_TABLES, OpKind
from mmreplay.trace.header import Clock, Header, Source
from mmreplay.trace.store import Trace
from mmreplay.trace.writer import TraceWriter

#: What becomes of each column that could tell something; all others are numbers of another kind.
RULES: Final[dict[str, dict[str, str]]] = {
    "operations": {
        "address": "address",
        "address2": "address",
        "ip": "address",
        "result": "result",
    },
    "threads": {"comm": "thread", "group": "thread"},
    "vmas": {
        "start": "address",
        "file_offset": "offset",
        "name": "name",
        "inode": "inode",
        "device": "device",
    },
    "locks": {"lock_address": "address"},
    "gaps": {"event": "event"},
    "stacks": {"ip": "address"},
}
#: Text and 64-bit columns that tell nothing about the machine or its users.
HARMLESS: Final[dict[str, tuple[str, ...]]] = {
    "operations": ("length", "length2", "flags"),
    "threads": ("start_kind",),
    "vmas": ("length", "source"),
    "locks": ("kind", "mode"),
    "gaps": ("lost",),
}
#: Calls whose result is an address.
_PLACING: Final = [int(kind) for kind in (OpKind.MMAP, OpKind.BRK, OpKind.MREMAP, OpKind.SHMAT)]
_RANGES: Final = [int(kind) for kind in (OpKind.MMAP, OpKind.MREMAP, OpKind.SHMAT)]
#: Where a signed column holds an address.
_WHERE: Final = {
    "result": pl.col("kind").is_in(_PLACING),
    "offset": (pl.col("inode") == 0)
    & (pl.col("device") == 0)
    & (~pl.col("name").str.starts_with("/") | (pl.col("name") == "//anon")),
}

_UNIT_SHIFT: Final = 30  # addresses move by multiples of 1 GiB: page tables stay as shared
_HIGH: Final = 1 << 40
_KERNEL: Final = 1 << 63
#: Bounds that no address may cross: of the mmap area and of clones' places in the planner
#: (address_space/scale.py), of user space on x86-64, of everybody's user space.
_BOUNDS: Final = (1 << 44, 1 << 46, 1 << 47, 1 << 63)
_LEAST_BOUNDS: Final = (1 << 47, 1 << 63)
_KERNEL_PAGES_AT: Final = 0xFFFF_8880_0000_0000 >> 12
_VSYSCALL_PAGE: Final = 0xFFFF_FFFF_FF60_0000 >> 12

#: Names that the kernel gives, or that the import has made plain already.
_KERNEL_NAME: Final = re.compile(
    r"|\[(heap|stack|stack:\d+|vdso|vvar|vvar_vclock|vsyscall|uprobes|sigpage|vectors)\]"
    r"|//anon|\(file\)|/memfd|/SYSV|/anon_hugepage|/dev(/shm|/hugepages|/zero)?"
    r"|anon_inode:\[[a-z_]+\]"
)
#: Prefixes and suffixes that say what kind of mapping it is.
_NAME_PREFIXES: Final = (
    *(
        "/anon_hugepage",
        "/dev/hugepages/",
        "/hugetlb",
        "/dev/shm/",
        "/dev/zero",
        "/memfd:",
        "/SYSV",
    ),
    *("/run/shm/", "/dev/", "[stack", "[vvar", "[vdso", "[uprobes", "[anon:", "anon_inode:", "/"),
)
#: Systems whose events are the kernel's own.
_PUBLIC_EVENTS: Final = frozenset(
    ("exceptions", "syscalls", "raw_syscalls", "lock", "mmap_lock", "sched", "kmem", "mmap", "task")
)
#: perf's own names of events that are no tracepoints; others are a user's (``name=``).
_PERF_EVENTS: Final = frozenset(
    (
        *("faults", "page-faults", "minor-faults", "major-faults", "cpu-clock", "task-clock"),
        *("context-switches", "cs", "cpu-migrations", "migrations", "alignment-faults"),
        *("emulation-faults", "dummy", "bpf-output", "cgroup-switches"),
        *("cycles", "instructions", "cache-misses", "cache-references", "branches"),
        *("branch-misses", "dTLB-load-misses", "dTLB-store-misses", "iTLB-load-misses"),
    )
)
#: What the import says of ``--process NAME``.
_PROCESS: Final = re.compile(
    r"(only a part was imported, of process )(?!\d+[,;]).*?"
    r"(?=(?:, (?:from|up to) [\d.e+]+ s[^;]*)?;)"
)
_MODIFIERS: Final = re.compile(r":[ukhIGHpPSDWeb]+")


@dataclass(slots=True)
class Replaced:
    """What was replaced; for the owner's eyes."""

    moved_bytes: int
    groups: dict[str, str]  # of threads, old to new
    thread_names: int
    mapping_names: int
    events: int
    kernel_pages: int


@dataclass(slots=True)
class _Addresses:
    """Where addresses go: unchanged below ``low``, moved down by ``by`` above."""

    low: int
    by: int
    kernel_pages: NDArray[np.uint64]

    def __call__(self, old: pl.Series) -> pl.Series:
        missing = old.is_null()
        values = old.fill_null(0).cast(pl.UInt64).to_numpy()
        new = values.copy()
        user = (values >= np.uint64(self.low)) & (values < np.uint64(_KERNEL))
        new[user] -= np.uint64(self.by)
        kernel = (values >= np.uint64(_KERNEL)) & (values >> np.uint64(12) != _VSYSCALL_PAGE)
        page = np.searchsorted(self.kernel_pages, values[kernel] >> np.uint64(12))
        new[kernel] = (page.astype(np.uint64) + np.uint64(_KERNEL_PAGES_AT)) << np.uint64(12)
        new[kernel] |= values[kernel] & np.uint64(0xFFF)
        return pl.Series(old.name, new).set(missing, None)


@dataclass(slots=True)
class _Words:
    """Old name to new, for one kind of name."""

    new: dict[str, str] = field(default_factory=dict)

    def __call__(self, old: pl.Series) -> pl.Series:
        return old.replace_strict(self.new, default=old, return_dtype=pl.String)


def letters(count: int) -> list[str]:
    """``count`` words of equal length in alphabetical order: aa, ab, ..."""
    width = 1
    while 26**width < count:
        width += 1
    words = []
    for number in range(count):
        word = ""
        for _ in range(width):
            number, digit = divmod(number, 26)
            word = chr(ord("a") + digit) + word
        words.append(word)
    return words


def thread_names(known: Iterable[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, str]]:
    """New (name, group) of each (name, group) of threads; a group stays one.

    >>> thread_names([("java", "java"), ("GC#1", "GC##"), ("GC#0", "GC##")])[("GC#1", "GC##")]
    ('task-a-1', 'task-a-#')
    """
    groups: dict[str, list[str]] = {}
    for comm, group in sorted(set(known)):
        groups.setdefault(group, []).append(comm)
    new = {}
    for word, group in zip(letters(len(groups)), sorted(groups), strict=True):
        comms = groups[group]
        width = len(str(len(comms) - 1))
        numbered = len(comms) > 1 or group != comms[0]
        for number, comm in enumerate(comms):
            own = f"task-{word}" + (f"-{number:0{width}}" if numbered else "")
            new[(comm, group)] = (own, f"task-{word}-#" if numbered else own)
    return new


def mapping_names(names: Iterable[str]) -> dict[str, str]:
    """New name of each mapping's name; the kernel's own stay."""
    own = sorted({name for name in names if not _KERNEL_NAME.fullmatch(name)})
    new = {}
    for word, name in zip(letters(len(own)), own, strict=True):
        prefix = next((prefix for prefix in _NAME_PREFIXES if name.startswith(prefix)), "")
        suffix = ".so" if re.search(r"\.so(\.|$)", name) else "]" if name.endswith("]") else ""
        new[name] = f"{prefix}{word if prefix else f'file-{word}'}{suffix}"
    return new


def event_names(names: Iterable[str]) -> dict[str, str]:
    """New name of each event that a user may have named (probes, own tracepoints, ``name=``)."""
    own = sorted(
        {
            name
            for name in names
            if not (":" in name and name.split(":")[0] in _PUBLIC_EVENTS)
            and _MODIFIERS.sub("", name) not in _PERF_EVENTS
        }
    )
    return {name: f"other:{word}" for word, name in zip(letters(len(own)), own, strict=True)}


def anonymise(
    trace: Trace, out: Path, *, force: bool = False, seed: int | None = None
) -> tuple[Trace, Replaced]:
    """Write ``trace`` anew as ``out`` without what tells about its machine and users.

    Parameters
    ----------
    seed:
        Chooses the distance that addresses move; by default a new one each time.

    Raises
    ------
    UserError
        The trace cannot be read, the output not be written, or its addresses leave no room.
    """
    for table in TRACE_TABLES:
        _know_all(table.name, {column.name: column.dtype for column in table.columns})
    addresses = _find_addresses(trace, seed)
    tasks = trace.collect(trace.threads.select("comm", "group").unique())
    mapped = trace.collect(trace.vmas.select("name", "inode", "device").unique())
    threads = thread_names(tasks.iter_rows())
    names = mapping_names(mapped["name"].to_list())
    events = event_names(event.name for event in trace.header.events)
    rules: dict[str, Callable[[pl.Series], pl.Series]] = {
        "address": addresses,
        "name": _Words(names),
        "inode": _numbers(mapped["inode"]),
        "device": _numbers(mapped["device"]),
        "event": _Words(events),
    }
    with TraceWriter(out, force) as writer:
        for table in TRACE_TABLES:
            if not trace.has(table.name):
                continue
            for batch in trace.batches(table.name):
                if table.name == "threads":
                    batch = _rename_threads(batch, threads)
                writer.write(table.name, _replace(table.name, batch, rules))
        written = writer.close(_header(trace.header, threads, names, events))
    replaced = Replaced(
        addresses.by,
        {old[1]: new[1] for old, new in threads.items()},
        len(threads),
        len(names),
        len(events),
        len(addresses.kernel_pages),
    )
    return written, replaced


def _know_all(table: str, columns: dict[str, str]) -> None:
    """Nothing new in the schema slips through unseen."""
    known = {*RULES.get(table, ()), *HARMLESS.get(table, ())}
    for name, dtype in columns.items():
        if dtype in ("String", "UInt64", "Binary") and name not in known:
            raise RuntimeError(f"no rule says whether {table}.{name} can be shared")


def _replace(
    table: str, batch: pl.DataFrame, rules: dict[str, Callable[[pl.Series], pl.Series]]
) -> pl.DataFrame:
    new = []
    for name, rule in RULES.get(table, {}).items():
        if rule == "thread":
            continue
        old = batch[name]
        if rule in ("result", "offset"):
            place = batch.select(_WHERE[rule] & (pl.col(name) >= _HIGH).fill_null(False))[:, 0]
            moved = rules["address"](old.set(~place, None).cast(pl.UInt64)).cast(pl.Int64)
            new.append(pl.select(pl.when(place).then(moved).otherwise(old).alias(name))[name])
        else:
            new.append(rules[rule](old).cast(old.dtype))
    return batch.with_columns(new)


def _rename_threads(
    batch: pl.DataFrame, new: dict[tuple[str, str], tuple[str, str]]
) -> pl.DataFrame:
    renamed = [new[key] for key in zip(batch["comm"], batch["group"], strict=True)]
    comm = pl.Series("comm", [one[0] for one in renamed], pl.String)
    group = pl.Series("group", [one[1] for one in renamed], pl.String)
    return batch.with_columns(comm, group)


def _numbers(old: pl.Series) -> Callable[[pl.Series], pl.Series]:
    """Number the values that are not 0, in order, from 1."""
    known = old.filter(old != 0).unique().sort()

    def replace(values: pl.Series) -> pl.Series:
        at = known.search_sorted(values).cast(pl.UInt64) + 1
        return pl.select(pl.when(values == 0).then(0).otherwise(at).alias(values.name)).to_series()

    return replace


def _find_addresses(trace: Trace, seed: int | None) -> _Addresses:
    low = _lower_bound(trace)
    blocks: set[int] = set()
    pages: list[NDArray[np.uint64]] = [np.zeros(0, np.uint64)]
    for table, rules in RULES.items():
        for column, rule in rules.items():
            if rule not in ("address", *_WHERE) or not trace.has(table):
                continue
            value = pl.col(column)
            rows = trace.table(table)
            if rule in _WHERE:
                rows = rows.filter(_WHERE[rule] & (value > 0))
            value = value.cast(pl.UInt64)
            user = rows.filter((value >= low) & (value < _KERNEL))
            found = trace.collect(user.select((value // (1 << _UNIT_SHIFT)).unique()))
            blocks.update(found.to_series().to_list())
            kernel = trace.collect(
                rows.filter(value >= _KERNEL).select((value // 4096).unique())
            ).to_series()
            pages.append(kernel.filter(kernel != _VSYSCALL_PAGE).to_numpy())
    by = _distance(sorted(blocks), low, seed) << _UNIT_SHIFT
    return _Addresses(low, by, np.unique(np.concatenate(pages)))


def _lower_bound(trace: Trace) -> int:
    """1 TiB, or the end of what is mapped across it: a mapping moves as a whole or not at all."""
    low = _HIGH
    ranges = [
        (trace.vmas, "start", pl.lit(True)),
        (trace.operations, "address", pl.col("kind").is_in(_RANGES) & (pl.col("result") > 0)),
    ]
    while True:
        ends = []
        for rows, start, wanted in ranges:
            end = pl.col(start) + pl.col("length")
            across = (pl.col(start) < low) & (end > low) & (pl.col("length") < _BOUNDS[-2])
            found = trace.collect(rows.filter(wanted & across).select(end.max())).item()
            ends += [found] if found is not None else []
        if not ends:
            return low
        low = (max(ends) + (1 << _UNIT_SHIFT) - 1) >> _UNIT_SHIFT << _UNIT_SHIFT


def _distance(blocks: list[int], low: int, seed: int | None) -> int:
    """GiB to move down by: any distance at which no block crosses a bound."""
    if not blocks:
        return 0
    for bounds in (_BOUNDS, _LEAST_BOUNDS):
        floors = [low >> _UNIT_SHIFT, *(bound >> _UNIT_SHIFT for bound in bounds)]
        room = min(block - max(floor for floor in floors if floor <= block) for block in blocks)
        if room > 0:
            choice = secrets.randbelow(room) if seed is None else seed % room
            return 1 + choice
    raise UserError(
        f"an address near {blocks[0] << _UNIT_SHIFT:#x} leaves no room to move the others",
        where="anonymise",
        fix="share a trace of another run",
    )


def _header(
    old: Header,
    threads: dict[tuple[str, str], tuple[str, str]],
    names: dict[str, str],
    events: dict[str, str],
) -> Header:
    new = copy.deepcopy(old)
    new.t0_ns = 0
    new.clock = Clock(name=old.clock.name, resolution_ns=old.clock.resolution_ns)
    new.machine.memory_kib = None
    new.source = Source(format=old.source.format)
    new.events = [replace(event, name=events.get(event.name, event.name)) for event in old.events]
    told = {comm: name for (comm, _), (name, _) in threads.items()} | names | events
    # A short name is in every sentence; one letter or two tell nothing.
    words = sorted((word for word in told if len(word) > 2), key=len, reverse=True)
    if words:
        pattern = re.compile("|".join(map(re.escape, words)))
        new.warnings = [pattern.sub(lambda m: told[m[0]], line) for line in old.warnings]
    new.warnings = [_PROCESS.sub(r"\1one", line) for line in new.warnings]
    new.tables = {}
    return new
