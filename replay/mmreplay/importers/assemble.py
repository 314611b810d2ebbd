"""From pairing's output rows to the tables of a trace, in windows, on a thread beside.

Operations are held back for a few windows, so that most ends arrive in memory; ends that
arrive later are written over the finished file once, at the end.
"""

from __future__ import annotations

import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from mmreplay.importers import pair_state as ps
from mmreplay.importers import syscalls as sc
from mmreplay.schema import Quality
from mmreplay.trace.store import (
    TraceWriter,
    parquet_writer,
    polars_schema,
    read_batches,
    to_arrow,
)

#: Operations per window and windows held back (IMPORT §3.2: memory stays bounded).
WINDOW_ROWS: Final = 1 << 14
HELD_WINDOWS: Final = 8
_IN_FLIGHT: Final = 6
#: What one recorded event costs the recorded thread where the trace cannot say it:
#: 0.86 to 0.94 us by switching recording on and off (2-vCPU EPYC guest, 6.18, perf 6.1).
DEFAULT_PROBE_NS: Final = 900
_MIN_LOCK_GAPS: Final = 1000
_MIN_GAPS: Final = 1000

# LCB_F_*: include/trace/events/lock.h@6.18.
_LCB_SPIN, _LCB_READ, _LCB_WRITE, _LCB_RT, _LCB_PERCPU, _LCB_MUTEX = 1, 2, 4, 8, 16, 32


def estimate_probe(histogram: NDArray[np.int64]) -> tuple[int, str]:
    """(ns, method): what one event costs, from gaps between events (IMPORT §6.3).

    An uncontended mmap_lock acquisition takes some 20 ns, so the first percentile of the
    recorded gaps is one event's cost; without those the documented default is taken, but
    never more than the first percentile of all gaps within a thread, each of which
    contains the cost of one event.
    """
    lock = _first_percentile(histogram[0], _MIN_LOCK_GAPS)
    if lock is not None:
        return lock, "first percentile of mmap_lock start to acquire"
    gap = _first_percentile(histogram[1], _MIN_GAPS)
    if gap is not None and gap < DEFAULT_PROBE_NS:
        return gap, "first percentile of the gaps between events of one thread"
    return DEFAULT_PROBE_NS, "default (0.86 to 0.94 us, measured by switching recording on and off)"


def _first_percentile(bins: NDArray[np.int64], least: int) -> int | None:
    total = int(bins.sum())
    if total < least:
        return None
    place = int(np.searchsorted(np.cumsum(bins), max(1, total // 100)))
    return place * ps.BIN_NS + ps.BIN_NS // 2


def fold(comm: str) -> str:
    """A thread's group: its name with every run of digits folded to ``#``."""
    return re.sub(r"\d+", "#", comm)


def plain_name(name: str, executable: bool) -> str:
    """A mapping's name without what tells about users.

    Kernel names (``[heap]``, ``//anon``) stay; shared libraries and executables keep
    their base name; any other file is ``(file)``.
    """
    if not name or name.startswith(("[", "//")) or name in ("/dev/zero", "anon_inode:[perf_event]"):
        return name
    if name.startswith("/memfd:"):
        return "/memfd"
    if name.startswith("/SYSV"):
        return "/SYSV"
    if name.startswith(("/anon_hugepage", "/dev/shm/")):
        return "/" + name.split("/")[1]
    base = name.removesuffix(" (deleted)").rsplit("/", 1)[-1]
    if executable or re.search(r"\.so(\.|$)", base):
        return base
    return "(file)"


class Assembler:
    """Takes pairing's rows window by window and writes the tables.

    Parameters
    ----------
    writer:
        The trace that is being written.
    switches, contention:
        Whether the recording has switches (else off-CPU columns are null) and
        contention events (else ``contention_ns`` is null).
    """

    def __init__(self, writer: TraceWriter, *, switches: bool, contention: bool) -> None:
        self.writer = writer
        self.switches = switches
        self.contention = contention
        self.probe: tuple[int, str] | None = None
        self.names: list[tuple[str, str]] = []  # (as data, as code) by name id
        self.operations = 0
        self.compat = 0
        self.late_patches: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._held: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = []
        self._free: deque[NDArray[np.int64]] = deque()
        self._last = (-1, -1)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mmreplay-import")
        self._pending: list[Future[None]] = []
        self._early: dict[str, list[NDArray[np.int64]]] = {
            "vmas": [],
            "threads": [],
            "schedule": [],
            "locks": [],
            "gaps": [],
        }

    def take(self, state: ps.State, *, last: bool = False) -> None:
        """Take the finished rows out of ``state``; with ``last``, all of them."""
        count = state.count
        self._patch(state)
        rows = int(count[ps.C_OPS] - count[ps.C_BASE])
        if rows and (last or rows + ps.MARGIN + ps.PATCH_ROWS > len(state.ops)):
            self._held.append((int(count[ps.C_BASE]), state.ops[:rows], state.ops))
            count[ps.C_BASE] += rows
            # Windows go round: a row is cleared when it begins, not before.
            state.ops = self._free.popleft() if self._free else np.zeros_like(state.ops)
        while self._held and (last or len(self._held) > HELD_WINDOWS):
            self._release(state)
        for name, counter in (
            ("thread_rows", ps.C_THREAD_ROWS),
            ("schedule", ps.C_SCHEDULE),
            ("locks", ps.C_LOCKS),
            ("vmas", ps.C_VMAS),
            ("gaps", ps.C_GAPS),
        ):
            table = state.table(name)
            used = int(count[counter])
            if used and (last or used + ps.MARGIN > len(table)):
                key = "threads" if name == "thread_rows" else name
                self._early[key].append(table[:used].copy())
                count[counter] = 0
        self._write_others(state, last)

    def finish(self, state: ps.State) -> None:
        """Write the rest and wait for the thread beside."""
        try:
            self.take(state, last=True)
            for done in self._pending:
                done.result()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self.late_patches:
            self._rewrite()

    def abandon(self) -> None:
        """Stop the thread beside; what was written is the caller's to discard."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, function: Any, *arguments: Any) -> None:
        while len(self._pending) >= _IN_FLIGHT:
            self._pending.pop(0).result()
        self._pending.append(self._pool.submit(function, *arguments))

    def _patch(self, state: ps.State) -> None:
        count = int(state.count[ps.C_PATCHES])
        if not count:
            return
        rows = state.table("patch_rows")[:count, 0].copy()
        patches = state.ops[-ps.PATCH_ROWS :][:count].copy()
        state.count[ps.C_PATCHES] = 0
        closing = list(ps.CLOSING)
        for base, held, _ in self._held:
            here = (rows >= base) & (rows < base + len(held))
            if not here.any():
                continue
            at = rows[here] - base
            part = patches[here]
            held[at[:, None], closing] = part[:, closing]
            held[at, ps.O_QUALITY] |= part[:, ps.O_QUALITY]
            held[at, ps.O_KNOWN] |= part[:, ps.O_KNOWN]
            rows, patches = rows[~here], patches[~here]
        if len(rows):
            self.late_patches.append((rows, patches))

    def _release(self, state: ps.State) -> None:
        _, rows, window = self._held.pop(0)
        if self.probe is None:
            self.probe = estimate_probe(state.table("histogram").reshape(2, ps.BINS))
        spaces = state.table("spaces")[: state.count[ps.C_SPACES]].copy()
        self.operations += len(rows)
        self._submit(self._write_operations, rows, window, spaces, self.probe[0])

    def _write_operations(
        self,
        rows: NDArray[np.int64],
        window: NDArray[np.int64],
        spaces: NDArray[np.int64],
        probe_ns: int,
    ) -> None:
        # All of a 64-bit task's addresses below 4 GiB does not happen: its stack is high.
        low = (spaces[:, ps.A_HIGHEST] < 1 << 32) & (spaces[:, ps.A_FAULTS] > 0)
        low &= spaces[:, ps.A_HIGHEST] > 0
        own = rows[:, ps.O_SPACE].copy()
        if low.any():
            compat = low[own]
            self.compat += int(compat.sum())
            rows[compat, ps.O_QUALITY] |= int(Quality.COMPAT32)
        rows[:, ps.O_SPACE] = resolve_aliases(spaces)[own]
        seq, self._last = sequence(rows[:, ps.O_BEGIN], self._last)
        self.writer.write("operations", self.operations_frame(rows, seq, probe_ns))
        self._free.append(window)

    def operations_frame(
        self, rows: NDArray[np.int64], seq: NDArray[np.uint32], probe_ns: int
    ) -> pl.DataFrame:
        """The window's operations as the schema wants them."""
        known = rows[:, ps.O_KNOWN]
        has_duration = (known & ps.K_DURATION) != 0
        has_think = (known & ps.K_THINK) != 0
        inside = (known & ps.K_INSIDE) != 0
        has_result = (known & ps.K_RESULT) != 0
        duration = rows[:, ps.O_DURATION]
        events = rows[:, ps.O_EVENTS]
        corrected = np.maximum(0, duration - (events + 1) * probe_ns)
        think = np.maximum(0, rows[:, ps.O_THINK] - (rows[:, ps.O_PRE_EVENTS] + 1) * probe_ns)
        before = rows[:, ps.O_THINK] + rows[:, ps.O_PRE_BLOCKED] + rows[:, ps.O_PRE_PREEMPTED]
        result = rows[:, ps.O_RESULT]
        failed = has_result & (result < 0) & (result >= -4095)
        address = rows[:, ps.O_ADDRESS].astype(np.uint64)
        length = rows[:, ps.O_LENGTH].astype(np.uint64)
        has_length = (known & 1 << sc.LENGTH) != 0
        has_length &= address + length >= address  # else it wraps: the call's nonsense
        off = np.full(len(rows), self.switches)
        preempted = rows[:, ps.O_PREEMPTED] + np.where(has_think, rows[:, ps.O_PRE_PREEMPTED], 0)
        ip = rows[:, ps.O_IP].astype(np.uint64)

        def slot(k: int) -> NDArray[np.bool_]:
            return np.asarray((known & (1 << k)) != 0)

        none = np.zeros(len(rows), np.bool_)
        columns: dict[str, tuple[Any, Any, NDArray[np.bool_] | None]] = {
            "begin_ns": (rows[:, ps.O_BEGIN], np.int64, None),
            "seq": (seq, np.uint32, None),
            "duration_ns": (duration, np.int64, has_duration),
            "duration_kind": (rows[:, ps.O_DURATION_KIND], np.uint8, None),
            "duration_corrected_ns": (corrected, np.int64, has_duration),
            "think_cpu_ns": (think, np.int64, has_think),
            "think_blocked_ns": (rows[:, ps.O_PRE_BLOCKED], np.int64, has_think & off),
            "preempted_ns": (preempted, np.int64, off),
            "service_ns": (duration, np.int64, none),
            "wait_ns": (duration, np.int64, none),
            "io_ns": (duration, np.int64, none),
            "unattributed_ns": (np.where(has_think, 0, before), np.int64, None),
            "contention_ns": (
                rows[:, ps.O_CONTENTION],
                np.int64,
                inside if self.contention else none,
            ),
            "blocked_inside_ns": (rows[:, ps.O_BLOCKED], np.int64, inside & off),
            "inner_events": (np.minimum(events, 65_535), np.uint16, None),
            "pid": (rows[:, ps.O_PID], np.int32, None),
            "tid": (rows[:, ps.O_TID], np.int32, None),
            "address_space": (rows[:, ps.O_SPACE], np.uint32, None),
            "cpu": (rows[:, ps.O_CPU], np.int16, None),
            "kind": (rows[:, ps.O_KIND], np.uint8, None),
            "address": (address, np.uint64, slot(sc.ADDRESS)),
            "length": (length, np.uint64, has_length),
            "address2": (rows[:, ps.O_ADDRESS2], np.uint64, slot(sc.ADDRESS2)),
            "length2": (rows[:, ps.O_LENGTH2], np.uint64, slot(sc.LENGTH2)),
            "prot": (rows[:, ps.O_PROT], np.uint8, slot(sc.PROT)),
            "flags": (rows[:, ps.O_FLAGS], np.uint64, slot(sc.FLAGS)),
            "file_offset": (rows[:, ps.O_OFFSET], np.int64, slot(sc.OFFSET)),
            "fd": (rows[:, ps.O_FD], np.int32, slot(sc.FD)),
            "result": (result, np.int64, has_result),
            "errno": (np.where(failed, -result, 0), np.int16, failed),
            "fault_bits": (rows[:, ps.O_BITS], np.uint8, (known & ps.K_BITS) != 0),
            "fault_class": (rows[:, ps.O_CLASS], np.uint8, None),
            "child": (rows[:, ps.O_CHILD], np.int32, (known & ps.K_CHILD) != 0),
            "ip": (ip, np.uint64, ip != 0),
            "weight": (rows[:, ps.O_WEIGHT], np.uint32, None),
            "quality": (rows[:, ps.O_QUALITY], np.uint16, None),
        }
        return _frame(columns)

    def _write_others(self, state: ps.State, last: bool) -> None:
        alias: NDArray[np.int64] | None = None
        for table, parts in self._early.items():
            # One part stays back, so that a guess about its address space can be settled.
            while parts and (last or len(parts) > 1):
                rows = parts.pop(0)
                if alias is None:
                    alias = resolve_aliases(state.table("spaces")[: state.count[ps.C_SPACES]])
                self._submit(self._write_table, table, rows, alias)

    def _write_table(self, table: str, rows: NDArray[np.int64], alias: NDArray[np.int64]) -> None:
        make = getattr(self, f"_{table}_frame")
        self.writer.write(table, make(rows, alias))

    def _vmas_frame(self, rows: NDArray[np.int64], alias: NDArray[np.int64]) -> pl.DataFrame:
        both = rows[:, ps.V_PROT_FLAGS].astype(np.uint64)
        prot = (both & np.uint64(0xFF)).astype(np.uint8)
        names = [
            self.names[name][1 if code else 0]
            for name, code in zip(
                rows[:, ps.V_NAME].tolist(), (prot & 4).astype(bool).tolist(), strict=True
            )
        ]
        sources = np.array(ps.SOURCES, dtype=object)[rows[:, ps.V_SOURCE]]
        start = rows[:, ps.V_START].astype(np.uint64)
        return _frame(
            {
                "address_space": (alias[rows[:, ps.V_SPACE]], np.uint32, None),
                "ns": (rows[:, ps.V_NS], np.int64, None),
                "start": (start, np.uint64, None),
                "length": (rows[:, ps.V_LENGTH], np.uint64, None),
                "prot": (prot, np.uint8, None),
                "flags": (both >> np.uint64(32), np.uint32, None),
                "file_offset": (rows[:, ps.V_OFFSET], np.int64, None),
                "inode": (rows[:, ps.V_INODE], np.uint64, None),
                "device": (rows[:, ps.V_DEVICE], np.uint32, None),
                "name": (names, str, None),
                "has_anon_vma": (np.zeros(len(rows), np.bool_), np.bool_, start != start),
                "source": (sources.tolist(), str, None),
            }
        )

    def _threads_frame(self, rows: NDArray[np.int64], alias: NDArray[np.int64]) -> pl.DataFrame:
        assert self.probe is not None or not self.operations
        c = self.probe[0] if self.probe else DEFAULT_PROBE_NS
        words = rows[:, (ps.H_COMM0, ps.H_COMM1)].astype("<u8")
        comms = [
            words[i].tobytes().split(b"\0", 1)[0].decode("utf-8", "replace")
            for i in range(len(rows))
        ]
        known = rows[:, ps.H_TAIL_KNOWN] != 0
        tail = np.maximum(0, rows[:, ps.H_TAIL_CPU] - (rows[:, ps.H_TAIL_EVENTS] + 1) * c)
        return _frame(
            {
                "tid": (rows[:, ps.H_TID], np.int32, None),
                "pid": (rows[:, ps.H_PID], np.int32, None),
                "parent_tid": (rows[:, ps.H_PARENT], np.int32, rows[:, ps.H_PARENT] > 0),
                "address_space": (alias[rows[:, ps.H_SPACE]], np.uint32, None),
                "start_ns": (rows[:, ps.H_START], np.int64, rows[:, ps.H_START] >= 0),
                "end_ns": (rows[:, ps.H_END], np.int64, rows[:, ps.H_END] >= 0),
                "first_ns": (rows[:, ps.H_FIRST], np.int64, None),
                "last_ns": (
                    np.maximum(rows[:, ps.H_LAST], rows[:, ps.H_FIRST]),
                    np.int64,
                    None,
                ),
                "start_kind": ([ps.START_KINDS[k] for k in rows[:, ps.H_KIND]], str, None),
                "comm": (comms, str, None),
                "group": ([fold(comm) for comm in comms], str, None),
                "tail_cpu_ns": (tail, np.int64, known),
                "tail_blocked_ns": (rows[:, ps.H_TAIL_BLOCKED], np.int64, known & self.switches),
            }
        )

    def _schedule_frame(self, rows: NDArray[np.int64], alias: NDArray[np.int64]) -> pl.DataFrame:
        return _frame(
            {
                "tid": (rows[:, ps.E_TID], np.int32, None),
                "off_ns": (rows[:, ps.E_OFF], np.int64, None),
                "on_ns": (rows[:, ps.E_ON], np.int64, rows[:, ps.E_ON] >= 0),
                "cpu": (rows[:, ps.E_CPU], np.int16, None),
                "reason": (rows[:, ps.E_REASON], np.uint8, None),
            }
        )

    def _locks_frame(self, rows: NDArray[np.int64], alias: NDArray[np.int64]) -> pl.DataFrame:
        kinds, modes = zip(
            *(
                lock_words(int(mode), int(flags))
                for mode, flags in rows[:, (ps.L_MODE, ps.L_FLAGS)]
            ),
            strict=True,
        )
        return _frame(
            {
                "tid": (rows[:, ps.L_TID], np.int32, None),
                "address_space": (alias[rows[:, ps.L_SPACE]], np.uint32, None),
                "lock_address": (rows[:, ps.L_ADDRESS], np.uint64, None),
                "kind": (list(kinds), str, None),
                "mode": (list(modes), str, None),
                "begin_ns": (rows[:, ps.L_BEGIN], np.int64, None),
                "wait_ns": (rows[:, ps.L_WAIT], np.int64, rows[:, ps.L_WAIT] >= 0),
                "hold_ns": (rows[:, ps.L_HOLD], np.int64, rows[:, ps.L_HOLD] >= 0),
            }
        )

    def _gaps_frame(self, rows: NDArray[np.int64], alias: NDArray[np.int64]) -> pl.DataFrame:
        throttled = rows[:, ps.Z_EVENT] != ps.GAP_LOST
        return _frame(
            {
                "ring": (rows[:, ps.Z_RING], np.int32, None),
                "begin_ns": (
                    np.minimum(rows[:, ps.Z_BEGIN], rows[:, ps.Z_END]),
                    np.int64,
                    None,
                ),
                "end_ns": (rows[:, ps.Z_END], np.int64, None),
                "lost": (rows[:, ps.Z_LOST], np.uint64, None),
                "event": (["throttled" if t else None for t in throttled], str, None),
            }
        )

    def _rewrite(self) -> None:
        """Put the ends that came after their rows were written into the table."""
        rows = np.concatenate([r for r, _ in self.late_patches])
        patches = np.concatenate([p for _, p in self.late_patches])
        c = self.probe[0] if self.probe else DEFAULT_PROBE_NS
        fixed = self.operations_frame(patches, np.zeros(len(rows), np.uint32), c)
        fixed = fixed.with_columns(pl.Series("row", rows)).unique("row", keep="last")
        held = self.writer.held("operations")
        if held is not None:
            self.writer.replace_held("operations", _patched(held, fixed, 0))
            return
        file = self.writer.finish("operations")
        assert file is not None
        beside = file.with_suffix(".patched")
        base = 0
        out = None
        for batch in read_batches(file, list(polars_schema("operations")), WINDOW_ROWS):
            arrow = to_arrow(_patched(batch, fixed, base))
            base += batch.height
            if out is None:
                out = parquet_writer(beside, arrow.schema)
            out.write_table(arrow)
        if out is not None:
            out.close()
            beside.replace(file)


#: What the end of an operation decides; where the patch knows nothing the begin's stays.
_CLOSED: Final = (
    "duration_ns",
    "duration_corrected_ns",
    "contention_ns",
    "blocked_inside_ns",
    "address",
    "length",
    "result",
    "errno",
    "child",
    "duration_kind",
    "kind",
    "fault_class",
    "inner_events",
)


def _patched(batch: pl.DataFrame, fixed: pl.DataFrame, base: int) -> pl.DataFrame:
    """``batch``, whose first row is number ``base``, with the ends in ``fixed`` (by ``row``)."""
    number = pl.Series("row", np.arange(base, base + batch.height))
    joined = batch.with_columns(number).join(
        fixed, on="row", how="left", suffix="_new", maintain_order="left"
    )
    new = [pl.coalesce(pl.col(f"{name}_new"), pl.col(name)).alias(name) for name in _CLOSED]
    preempted = pl.col("preempted_ns") + pl.col("preempted_ns_new").fill_null(0)
    quality = pl.col("quality") | pl.col("quality_new").fill_null(0)
    new += [preempted.alias("preempted_ns"), quality.alias("quality")]
    return joined.with_columns(new).select(batch.columns)


def _frame(columns: dict[str, tuple[Any, Any, NDArray[np.bool_] | None]]) -> pl.DataFrame:
    arrays = {}
    for name, (values, dtype, known) in columns.items():
        if dtype is str:
            arrays[name] = pa.array(values, type=pa.large_string())
            continue
        plain = np.ascontiguousarray(values.astype(dtype, copy=False))
        arrays[name] = pa.array(plain, mask=None if known is None else ~known)
    return pl.from_arrow(pa.table(arrays))  # type: ignore[return-value]


def lock_words(mode: int, flags: int) -> tuple[str, str]:
    """(kind, mode) of a lock row: from mmap_lock events, or from LCB_F_* flags."""
    if mode != ps.MODE_SPAN:
        return "mmap_lock", "write" if mode == ps.MODE_WRITE else "read"
    word = "read" if flags & _LCB_READ else "write" if flags & _LCB_WRITE else "unknown"
    if flags & _LCB_MUTEX:
        return "mutex", word
    if flags & _LCB_SPIN:
        return "spinlock", word
    if flags & (_LCB_READ | _LCB_WRITE) and not flags & (_LCB_RT | _LCB_PERCPU):
        return "rwsem", word
    return "other", word


def sequence(
    begin: NDArray[np.int64], last: tuple[int, int]
) -> tuple[NDArray[np.uint32], tuple[int, int]]:
    """Positions among rows of equal begin; ``last`` is (begin, seq) of the row before."""
    index = np.arange(len(begin))
    starts = np.empty(len(begin), np.bool_)
    starts[0] = True
    starts[1:] = begin[1:] != begin[:-1]
    first = np.maximum.accumulate(np.where(starts, index, 0))
    seq = index - first
    if begin[0] == last[0]:
        run = first == 0
        seq[run] += last[1] + 1
    return seq.astype(np.uint32), (int(begin[-1]), int(seq[-1]))


def resolve_aliases(spaces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Address space -> the one it turned out to be (a vfork-like child's is its parent's)."""
    alias = np.arange(len(spaces))
    for space in np.flatnonzero(spaces[:, ps.A_ALIAS] >= 0).tolist():
        target = int(spaces[space, ps.A_ALIAS])
        alias[space] = alias[target]
    return alias
