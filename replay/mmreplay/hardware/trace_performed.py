"""What a physical replay performs, as a trace again: so that the very same is simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.hardware.trace_program import NUMBERS, Do, TraceProgram, Word
from mmreplay.schema import FaultClass, OpKind
from mmreplay.trace.header import Header
from mmreplay.trace.store import Trace, frame

if TYPE_CHECKING:
    import polars as pl

I64 = NDArray[np.int64]

_KINDS: Final = {
    "read": OpKind.FAULT_KERNEL,
    "pwrite": OpKind.FAULT_KERNEL,
    "mmap": OpKind.MMAP,
    "munmap": OpKind.MUNMAP,
    "mprotect": OpKind.MPROTECT,
    "madvise": OpKind.MADVISE,
    "mremap": OpKind.MREMAP,
    "brk": OpKind.BRK,
    "mlock": OpKind.MLOCK,
    "munlock": OpKind.MUNLOCK,
    "msync": OpKind.MSYNC,
}
_PID: Final = 1
#: Files are memory files; the planner knows them by this name.
_FILE: Final = "/memfd:mmreplay"
_ANONYMOUS: Final = 0x20


def performed(program: TraceProgram, header: Header) -> Trace:
    """The rows of ``program`` as operations of one process, in recorded order.

    ``begin_ns`` is nothing but the order: times are the think times.  A forked process is a
    thread of its own that exits.  Faults keep their
    recorded error codes; files are shared memory with every page present.  ``header``: of
    the recording.
    """
    real = np.flatnonzero(program.order >= 0)
    real = real[np.argsort(program.order[real], kind="stable")]
    rows = program.rows[real]
    for word in (Word.THINK, Word.BLOCKED):
        rows[:, word] = _before(program, word)[real]
    owner = np.searchsorted(program.threads[:, 0], real, side="right") - 1
    at = _rows_of(rows)
    first = len(program.threads) + 1
    operations = _operations(rows, owner, first)
    threads = _threads(program, rows, owner)
    forks = np.flatnonzero(rows[:, Word.DO] == Do.FORK)
    if len(forks):
        import polars as pl

        operations = pl.concat([operations, _exits(at[forks], first)]).sort("begin_ns")
        threads = pl.concat([threads, _children(at[forks], first)])
    tables = {"operations": operations, "threads": threads, "vmas": _vmas(program, rows, at)}
    return Trace.in_memory(header, tables)


def awaited(program: TraceProgram) -> I64:
    """(m, 2): operation, and the one of another thread that it waits for.

    Both are rows of the operations of :func:`performed`.
    """
    real = program.order >= 0
    place = np.full(len(real), -1, np.int64)
    rank = np.argsort(np.argsort(program.order[real]))
    ordered = program.rows[real][np.argsort(program.order[real])]
    place[real] = _rows_of(ordered)[rank]
    waits = np.flatnonzero(~real)
    nth = np.cumsum(real)  # of each row: operations up to it
    at = np.flatnonzero(real)  # the next operation is the one that waits
    before = (
        nth[program.threads[program.rows[waits, Word.A], 0]]
        - real[program.threads[program.rows[waits, Word.A], 0]]
    )
    return np.stack(
        [place[at[nth[waits]]], place[at[before + program.rows[waits, Word.B] - 1]]], axis=1
    )


def _before(program: TraceProgram, word: Word) -> I64:
    """Time before each operation, what its thread spends before waiting for others included."""
    total = np.cumsum(program.rows[:, word])
    real = np.flatnonzero(program.order >= 0)  # the last row of a thread is one
    found = np.zeros(len(total), np.int64)
    found[real] = np.diff(total[real], prepend=0)
    return found


def _rows_of(rows: I64) -> I64:
    """The row of the operations table for each of ``rows``: a fork's child exits after it."""
    forks = rows[:, Word.DO] == Do.FORK
    found: I64 = np.arange(len(rows)) + np.cumsum(forks) - forks
    return found


def _exits(forks: I64, first: int) -> pl.DataFrame:
    """The exits of forked processes; ``forks``: rows; ``first``: thread id of the first one."""
    made = [
        {
            "begin_ns": row + 2,
            "pid": first + k,
            "tid": first + k,
            "address_space": k + 1,
            "kind": int(OpKind.PROCESS_EXIT),
            "think_cpu_ns": 0,
            "think_blocked_ns": 0,
        }
        for k, row in enumerate(forks.tolist())
    ]
    return frame("operations", made)


def _children(forks: I64, first: int) -> pl.DataFrame:
    made = [
        {
            "tid": first + k,
            "pid": first + k,
            "address_space": k + 1,
            "start_ns": row + 1,
            "end_ns": row + 2,
            "first_ns": row + 2,
            "last_ns": row + 2,
            "start_kind": "fork",
            "group": "forked",
        }
        for k, row in enumerate(forks.tolist())
    ]
    return frame("threads", made)


def _operations(rows: I64, owner: I64, first_child: int) -> pl.DataFrame:
    do = rows[:, Word.DO]
    call = do == Do.CALL
    number = rows[:, Word.NUMBER]
    kind = np.zeros(len(rows), np.int64)
    for name, is_kind in _KINDS.items():
        kind[call & (number == NUMBERS[name])] = is_kind
    kind[(do == Do.WRITE) | (do == Do.READ)] = OpKind.FAULT_USER
    kind[do == Do.SPAWN] = OpKind.CLONE
    kind[do == Do.FORK] = OpKind.FORK
    fault = np.isin(kind, (OpKind.FAULT_USER, OpKind.FAULT_KERNEL))
    mmap, mremap = kind == OpKind.MMAP, kind == OpKind.MREMAP
    ranged = ~fault & np.isin(kind, list(_KINDS.values())) & (kind != OpKind.BRK)
    a, b, c, d, e = (rows[:, word] for word in (Word.A, Word.B, Word.C, Word.D, Word.E))
    moved = np.where(d != 0, e, a)
    files = mmap & (d & _ANONYMOUS == 0)
    forked = do == Do.FORK
    child = np.where(forked, first_child - 1 + np.cumsum(forked), a + 1)
    columns: dict[str, Any] = {
        "begin_ns": _rows_of(rows) + 1,
        "duration_kind": np.zeros(len(rows), np.int64),
        "think_cpu_ns": rows[:, Word.THINK],
        "think_blocked_ns": rows[:, Word.BLOCKED],
        "pid": np.full(len(rows), _PID),
        "tid": owner + 1,
        "kind": kind,
        "address": _where(fault | ranged, a),
        "length": _where(ranged, np.where(mremap, c, b)),
        "address2": _where(mremap & (d != 0), e),
        "length2": _where(mremap, b),
        "prot": _where(mmap | (kind == OpKind.MPROTECT), c & 7),
        "flags": _where(
            mmap | mremap | (kind == OpKind.MADVISE), np.where(kind == OpKind.MADVISE, c, d)
        ),
        "file_offset": _where(files, e),
        "fd": _where(files, rows[:, Word.F]),
        "result": _where(~fault, np.where(mmap, a, np.where(mremap, moved, 0))),
        "fault_bits": _where(fault, c & 0xFF),
        "fault_class": np.where(fault, int(FaultClass.MINOR), int(FaultClass.UNKNOWN)),
        "child": _where(forked | (do == Do.SPAWN), child),
    }
    return frame("operations", {name: list(values) for name, values in columns.items()})


def _where(which: NDArray[np.bool_], values: I64) -> list[int | None]:
    return [
        value if there else None
        for value, there in zip(values.tolist(), which.tolist(), strict=True)
    ]


def _threads(program: TraceProgram, rows: I64, owner: I64) -> pl.DataFrame:
    spawned = rows[:, Word.DO] == Do.SPAWN
    at = _rows_of(rows)
    begun = dict(zip(rows[spawned, Word.A].tolist(), (at[spawned] + 1).tolist(), strict=True))
    made = []
    for k in range(len(program.threads)):
        own = np.flatnonzero(owner == k)
        start = begun.get(k)
        made.append(
            {
                "tid": k + 1,
                "pid": _PID,
                "start_ns": start,
                "first_ns": int(at[own[0]]) + 1 if len(own) else start or 0,
                "last_ns": int(at[own[-1]]) + 1 if len(own) else start or 0,
                "start_kind": "first_seen" if start is None else "thread",
                "group": "performed",
            }
        )
    return frame("threads", made)


def _vmas(program: TraceProgram, rows: I64, at: I64) -> pl.DataFrame:
    """What is there before the threads start, and what each mapping of a file maps."""
    made: list[dict[str, Any]] = [
        {
            "ns": 0,
            "source": "exec",
            "start": m.address,
            "length": m.length,
            "prot": m.prot,
            "flags": 1 if m.shared else 0,
            "file_offset": m.offset,
            "inode": m.file + 1,
            "name": _FILE if m.file >= 0 else "",
        }
        for m in program.mappings
    ]
    mapped = (rows[:, Word.DO] == Do.CALL) & (rows[:, Word.NUMBER] == NUMBERS["mmap"])
    for k in np.flatnonzero(mapped & (rows[:, Word.F] >= 0)).tolist():
        row = rows[k]
        made.append(
            {
                "ns": int(at[k]) + 1,
                "source": "mmap2",
                "start": int(row[Word.A]),
                "length": int(row[Word.B]),
                "prot": int(row[Word.C]) & 7,
                "flags": int(row[Word.D]) & 3,
                "file_offset": int(row[Word.E]),
                "inode": int(row[Word.F]) + 1,
                "name": _FILE,
            }
        )
    return frame("vmas", made)
