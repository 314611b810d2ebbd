"""From pairing's rows to the tables beside operations: threads, VMAs, schedule, locks, gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers.names import FileName, fold
from mmreplay.importers.pairing import state as ps
from mmreplay.trace.chunks import Column

# LCB_F_*: include/trace/events/lock.h@6.18.
_LCB_SPIN, _LCB_READ, _LCB_WRITE, _LCB_RT, _LCB_PERCPU, _LCB_MUTEX = 1, 2, 4, 8, 16, 32
_LOCK_KINDS: Final = ("mmap_lock", "mutex", "spinlock", "rwsem", "other")
_LOCK_MODES: Final = ("unknown", "read", "write")
_GAPS: Final = ("throttled",)


def vmas(
    rows: NDArray[np.int64], alias: NDArray[np.int64], names: Sequence[FileName]
) -> dict[str, Column]:
    """Known mappings; ``names`` holds each file's names by name id.

    A record that holds a file's build-id in the place of its inode (perf record
    --buildid-mmap), or neither, gets the number of its name for an inode, of no device.
    """
    both = rows[:, ps.V_PROT_FLAGS].view(np.uint64)
    prot = (both & np.uint64(0xFF)).astype(np.uint8)
    # Only the names that occur: which others are known by now depends on the reading.
    chosen, place = np.unique(2 * rows[:, ps.V_NAME] + (prot >> 2 & 1), return_inverse=True)
    words = [names[one >> 1][one & 1] for one in chosen.tolist()]
    path = np.array([names[one >> 1].path for one in chosen.tolist()], np.bool_)[place]
    inode, device = rows[:, ps.V_INODE], rows[:, ps.V_DEVICE]
    inode = np.where(path & (inode == 0) & (device == 0), rows[:, ps.V_NAME] + 1, inode)
    return table_of(
        {
            "address_space": alias[rows[:, ps.V_SPACE]],
            "ns": rows[:, ps.V_NS],
            "start": rows[:, ps.V_START],
            "length": rows[:, ps.V_LENGTH],
            "prot": prot,
            "flags": both >> np.uint64(32),
            "file_offset": rows[:, ps.V_OFFSET],
            "inode": inode,
            "device": device,
            "name": words_of(place, words),
            "has_anon_vma": (np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.bool_)),
            "source": words_of(rows[:, ps.V_SOURCE], ps.SOURCES),
        },
    )


def threads(
    rows: NDArray[np.int64], alias: NDArray[np.int64], probe_ns: int, switches: bool
) -> dict[str, Column]:
    """Threads; their tails lose what their events cost."""
    words = np.ascontiguousarray(rows[:, (ps.H_COMM0, ps.H_COMM1)]).astype("<u8")
    comms = [
        words[i].tobytes().split(b"\0", 1)[0].decode("utf-8", "replace") for i in range(len(rows))
    ]
    # Who has no name of its own recorded (perf's flight recorder) began with its process's.
    pid, tid = rows[:, ps.H_PID].tolist(), rows[:, ps.H_TID].tolist()
    main = {pid[i]: comm for i, comm in enumerate(comms) if pid[i] == tid[i]}
    groups = [fold(comm or main.get(pid[i], "")) for i, comm in enumerate(comms)]
    known = rows[:, ps.H_TAIL_KNOWN] != 0
    tail = np.maximum(0, rows[:, ps.H_TAIL_CPU] - (rows[:, ps.H_TAIL_EVENTS] + 1) * probe_ns)
    return table_of(
        {
            "tid": rows[:, ps.H_TID],
            "pid": rows[:, ps.H_PID],
            "parent_tid": (rows[:, ps.H_PARENT], rows[:, ps.H_PARENT] > 0),
            "address_space": alias[rows[:, ps.H_SPACE]],
            "start_ns": (rows[:, ps.H_START], rows[:, ps.H_START] >= 0),
            "end_ns": (rows[:, ps.H_END], rows[:, ps.H_END] >= 0),
            "first_ns": rows[:, ps.H_FIRST],
            "last_ns": np.maximum(rows[:, ps.H_LAST], rows[:, ps.H_FIRST]),
            "start_kind": words_of(rows[:, ps.H_KIND], ps.START_KINDS),
            "comm": words_of(np.arange(len(comms)), comms),
            "group": words_of(np.arange(len(groups)), groups),
            "tail_cpu_ns": (tail, known),
            "tail_blocked_ns": (rows[:, ps.H_TAIL_BLOCKED], known & switches),
        },
    )


def schedule(rows: NDArray[np.int64]) -> dict[str, Column]:
    """Off-CPU spans."""
    return table_of(
        {
            "tid": rows[:, ps.E_TID],
            "off_ns": rows[:, ps.E_OFF],
            "on_ns": (rows[:, ps.E_ON], rows[:, ps.E_ON] >= 0),
            "cpu": rows[:, ps.E_CPU],
            "reason": rows[:, ps.E_REASON],
        },
    )


def locks(rows: NDArray[np.int64], alias: NDArray[np.int64]) -> dict[str, Column]:
    """Lock waits and holds."""
    kind, mode = lock_words(rows[:, ps.L_MODE], rows[:, ps.L_FLAGS])
    return table_of(
        {
            "tid": rows[:, ps.L_TID],
            "address_space": alias[rows[:, ps.L_SPACE]],
            "lock_address": rows[:, ps.L_ADDRESS],
            "kind": words_of(kind, _LOCK_KINDS),
            "mode": words_of(mode, _LOCK_MODES),
            "begin_ns": rows[:, ps.L_BEGIN],
            "wait_ns": (rows[:, ps.L_WAIT], rows[:, ps.L_WAIT] >= 0),
            "hold_ns": (rows[:, ps.L_HOLD], rows[:, ps.L_HOLD] >= 0),
        },
    )


def wakeups(rows: NDArray[np.int64], probe_ns: int) -> dict[str, Column]:
    """Who waited for whom; on-CPU times lose what the events in them cost."""

    def on_cpu(total: int, events: int) -> NDArray[np.int64]:
        corrected: NDArray[np.int64] = rows[:, total] - rows[:, events] * probe_ns
        return np.maximum(0, corrected)

    return table_of(
        {
            "tid": rows[:, ps.W_TID],
            "off_ns": rows[:, ps.W_OFF],
            "wake_ns": rows[:, ps.W_WAKE],
            "on_ns": rows[:, ps.W_ON],
            "after": (rows[:, ps.W_ROW], rows[:, ps.W_ROW] >= 0),
            "cpu_ns": on_cpu(ps.W_CPU, ps.W_EVENTS),
            "blocked_ns": rows[:, ps.W_BLOCKED],
            "waker": rows[:, ps.W_WAKER],
            "waker_after": (rows[:, ps.W_WAKER_ROW], rows[:, ps.W_WAKER_ROW] >= 0),
            "waker_cpu_ns": on_cpu(ps.W_WAKER_CPU, ps.W_WAKER_EVENTS),
            "waker_blocked_ns": rows[:, ps.W_WAKER_BLOCKED],
        },
    )


def lock_words(
    mode: NDArray[np.int64], flags: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(kind, mode) as places in the words above: from mmap_lock events, or from LCB_F_* flags."""
    way = np.where(flags & _LCB_READ, 1, np.where(flags & _LCB_WRITE, 2, 0))
    sleeps = ((flags & (_LCB_READ | _LCB_WRITE)) != 0) & ((flags & (_LCB_RT | _LCB_PERCPU)) == 0)
    kind = np.where(sleeps, 3, 4)
    kind = np.where(flags & _LCB_SPIN, 2, kind)
    kind = np.where(flags & _LCB_MUTEX, 1, kind)
    own = mode != ps.MODE_SPAN
    kind = np.where(own, 0, kind)
    way = np.where(own, np.where(mode == ps.MODE_WRITE, 2, 1), way)
    return kind, way


def gaps(rows: NDArray[np.int64]) -> dict[str, Column]:
    """Where events were lost, or recording was throttled."""
    throttled = rows[:, ps.Z_EVENT] != ps.GAP_LOST
    return table_of(
        {
            "ring": rows[:, ps.Z_RING],
            "begin_ns": np.minimum(rows[:, ps.Z_BEGIN], rows[:, ps.Z_END]),
            "end_ns": rows[:, ps.Z_END],
            "lost": rows[:, ps.Z_LOST],
            "event": Column(
                np.zeros(len(rows), np.int64),
                throttled,
                int(np.count_nonzero(~throttled)),
                _GAPS,
            ),
        },
    )


def words_of(index: NDArray[Any], words: Sequence[str]) -> Column:
    """Each word once: Parquet's dictionary, and what is held until it is written, want that."""
    places: dict[str, int] = {}
    own = np.array([places.setdefault(word, len(places)) for word in words], np.int64)
    return Column(own[index], words=list(places))


def table_of(columns: dict[str, Any]) -> dict[str, Column]:
    """From arrays, (array, known), or finished columns."""
    found = {}
    for name, given in columns.items():
        if not isinstance(given, Column):
            values, known = given if isinstance(given, tuple) else (given, None)
            nulls = 0 if known is None else len(known) - int(np.count_nonzero(known))
            given = Column(np.asarray(values), known, nulls)
        found[name] = given
    return found
