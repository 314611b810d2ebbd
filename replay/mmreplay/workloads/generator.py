"""Back end 1: a workload as a canonical trace.

What is recorded of a real program, its operations in order and its computing and sleeping
between them, is all there; what an operation costs is not (no durations), because that is
the machine's business: the same trace is simulated on any machine profile.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay import __version__
from mmreplay.errors import UserError, plural
from mmreplay.schema import FaultClass, OpKind, Quality
from mmreplay.workloads import generator_core as core
from mmreplay.workloads.generator_world import (
    FIRST_TID,
    Cell,
    Column,
    Life,
    Status,
    Turn,
    Wake,
    World,
)
from mmreplay.workloads.interpret import PAGE, Live, new_states
from mmreplay.workloads.memory import Memory
from mmreplay.workloads.program import Field, FileField, Kind, Op, Program, SlotField, ThreadField
from mmreplay.workloads.tape import HEAP, MAP_GROWSDOWN, READ_WRITE, STACK_TOP

if TYPE_CHECKING:
    import pyarrow as pa

    from mmreplay.trace.header import Header, Machine
    from mmreplay.trace.store import Trace

#: The kernel whose layout and faults a generated trace has; see memory.py.
KERNEL: Final = "6.18.0"
DEFAULT_OPS: Final = 200_000
DEFAULT_DURATION_S: Final = 1.0
_CHUNK_ROWS: Final = 1 << 17
#: One byte is kept for each page of each region.
_MOST_PAGES: Final = 1 << 31
#: Bytes of a trace per operation, when checking whether it fits the disk; measured: 10 to 20.
_ROW_BYTES: Final = 24
_PID: Final = FIRST_TID
_MAP_PRIVATE_ANONYMOUS: Final = 0x22

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Synthetic:
    """A generated trace and what it holds.

    ``ops``: rows of the trace by role; ``counted``: operations that the workload counts, by
    role.  Their ratio turns a replay's operations per second into the workload's.
    """

    trace: Trace
    workload: str
    threads: int
    path: str
    seed: int
    rows: int
    span_ns: int
    ops: dict[str, int] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)


def generate_trace(
    program: Program,
    output: str | Path | None,
    *,
    seed: int = 1,
    ops: int = DEFAULT_OPS,
    duration_s: float = DEFAULT_DURATION_S,
    cpus: int | None = None,
    machine: Machine | None = None,
    force: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> Synthetic:
    """Generate until ``ops`` operations or ``duration_s`` of simulated time, whichever is first.

    Parameters
    ----------
    program:
        From :func:`mmreplay.workloads.compiler.compile_workload`.
    output:
        ``NAME.mmt``, written whole or not at all; None: a trace in memory.
    seed:
        Of all random choices; the same one gives the same bytes.
    cpus:
        How many threads run at once, in turns of 4 ms; None: all.  Nothing of the turns is in
        the trace but the order of operations: what two threads do to one thing (the break of a
        process, a region that they share) they do while both run.
    machine:
        What the trace says that it was recorded on, but for the number of CPUs.
    progress:
        Called with the number of operations so far, now and then.

    Raises
    ------
    UserError
        Limits that make no sense; a workload that does nothing for ever, waits for itself,
        touches what it has no access to, or is too large; an output that cannot be written.
    """
    _check(program, seed, ops, duration_s, output)
    if cpus is not None and cpus < 1:
        raise UserError(f"{cpus} CPUs", where="cpus", fix="give a number from 1 on")
    world = new_world(program, seed, min(ops, _CHUNK_ROWS))
    if cpus is not None and cpus < program.started:
        world.cells[Cell.CPUS] = cpus
        world.cells[Cell.ON_CPU] = 1  # the main thread
    sink = _Memory() if output is None else _File(output, force)
    waits = _has_waits(program)
    with sink:
        rows = 0
        while True:
            status = int(core.generate(world, ops, round(duration_s * 1e9)))
            n = int(world.cells[Cell.ROWS])
            sink.write("operations", operations(world, n))
            sink.write("vmas", mappings(program, world, int(world.cells[Cell.MAPPINGS]), rows == 0))
            if waits:
                sink.write("wakeups", _wakeups(world, int(world.cells[Cell.WAKES])))
            rows += n
            world.cells[Cell.TOTAL] = rows
            world.cells[Cell.ROWS] = world.cells[Cell.MAPPINGS] = world.cells[Cell.WAKES] = 0
            progress(rows)
            if status == Status.LONG_ENOUGH:
                break
            if status != Status.FULL:
                raise _gone_wrong(program, world, status)
            if world.cells[Cell.LIVES] >= len(world.lives) - 2:
                world = world._replace(lives=np.concatenate([world.lives, 0 * world.lives]))
        if rows == 0:
            raise UserError(
                f"{program.name} does nothing to memory in that time",
                where="--duration",
                fix="give it longer",
            )
        span_ns = int(world.cells[Cell.NOW])
        sink.write("threads", _threads(program, world))
        trace = sink.close(_header(program, rows, span_ns, seed, cpus, machine, waits))
    return Synthetic(
        trace=trace,
        workload=program.name,
        threads=program.started,
        path=program.path,
        seed=seed,
        rows=rows,
        span_ns=span_ns,
        ops=_by_role(program, world, Turn.ROWS),
        counted=_by_role(program, world, Turn.COUNTED),
    )


def _check(program: Program, seed: int, ops: int, duration_s: float, output: Any) -> None:
    if not 0 <= seed < 2**63:
        raise UserError(f"seed {seed}", where="--seed", fix="give a number from 0 to 2^63 - 1")
    if not 1 <= ops <= 10**12:
        raise UserError(f"{ops} operations", where="--ops", fix="give a number from 1 to 10^12")
    if not 0 < duration_s <= 10**6:
        raise UserError(
            f"a duration of {duration_s} s", where="--duration", fix="give seconds, above 0"
        )
    pages = int((program.slots[:, SlotField.MOST] // PAGE).sum())
    if pages > _MOST_PAGES:
        raise UserError(
            f"{program.name} with {plural(program.started, 'thread')} has"
            f" {pages * PAGE / 2**40:.1f} TiB of regions; a trace is generated"
            f" of up to {_MOST_PAGES * PAGE >> 40} TiB",
            where=program.name,
            fix="use fewer threads or smaller regions",
        )
    if output is not None:
        place = Path(output).absolute().parent
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if ops * _ROW_BYTES > free and duration_s * 1e7 * program.started * _ROW_BYTES > free:
            raise UserError(
                f"{ops:,} operations need up to {ops * _ROW_BYTES >> 20:,} MiB, and"
                f" {free >> 20:,} MiB are free",
                where=str(output),
                fix="ask for fewer --ops or a shorter --duration",
            )


def _gone_wrong(program: Program, world: World, status: int) -> UserError:
    if status == Status.DEADLOCK:
        return UserError(
            f"{program.name}: all threads wait for each other",
            where=program.name,
            fix="check its barriers and joins",
        )
    row = int(world.cells[Cell.WHERE])
    source = program.sources[int(program.code[row, Field.SOURCE])]
    if status == Status.ENDLESS:
        return UserError(
            f"{source}: goes round for ever without doing anything",
            where=program.name,
            fix="let its loop map, touch or think",
        )
    return UserError(
        f"{source}: accesses memory that its protection does not allow",
        where=program.name,
        fix="mprotect it first, or give its region another prot",
    )


# -- the world at the start ----------------------------------------------------------------------


def new_world(program: Program, seed: int, rows: int) -> World:
    """Nothing has happened yet; room for ``rows`` operations at a time."""
    n_slots, n_programs = len(program.slots), len(program.threads)
    pages = program.slots[:, SlotField.MOST] // PAGE
    first = np.concatenate([[0], np.cumsum(pages)])
    memory = np.zeros((n_slots, len(Memory)), np.int64)
    memory[:, Memory.LOW] = 1 << 60
    memory[:, Memory.FIRST] = first[:-1]
    own = np.bincount(program.slots[:, SlotField.PROCESS])
    pieces = int(own[0] + own[1:].max(initial=0) + 2)
    mapped_files = int((program.slots[:, SlotField.FILE] >= 0).any())
    world = World(
        code=program.code.copy(),  # even branches keep their state there
        threads=program.threads,
        regions=program.regions,
        slots=program.slots,
        files=program.files,
        copies=program.copies,
        states=new_states(program, seed),
        live=np.zeros((n_slots, len(Live)), np.int64),
        memory=memory,
        pages=np.zeros(int(first[-1]), np.uint8),
        taken=np.empty((len(own), pieces, 2), np.int64),
        taken_n=np.zeros(len(own), np.int64),
        turns=np.zeros((n_programs, len(Turn)), np.int64),
        heap=np.zeros(n_programs + 1, np.int64),
        ready=np.zeros(n_programs + 1, np.int64),
        arrived=np.zeros(len(program.barriers) + 1, np.int64),
        lives=np.zeros((n_programs + 1024, len(Life)), np.int64),
        mappings=np.zeros((16 + mapped_files * rows, 8), np.int64),
        wakes=np.zeros((16 + n_programs + _has_waits(program) * rows, len(Wake)), np.int64),
        cells=np.zeros(len(Cell), np.int64),
        rows=np.zeros((len(Column), rows + 16), np.int64),
    )
    world.cells[Cell.NEXT_TID] = _PID + 1
    world.cells[Cell.NEXT_SPACE] = 1
    world.cells[Cell.LAST_BEGIN] = -1
    core.begin_main(world, _PID)
    return world


# -- tables --------------------------------------------------------------------------------------

_FAULTS: Final = (OpKind.FAULT_USER, OpKind.FAULT_KERNEL)
#: Columns that hold something, by kind.
_KNOWN: Final[dict[str, tuple[OpKind, ...]]] = {
    "address": (
        *_FAULTS,
        OpKind.MMAP,
        OpKind.MUNMAP,
        OpKind.MPROTECT,
        OpKind.MADVISE,
        OpKind.MREMAP,
    ),
    "length": (
        OpKind.MMAP,
        OpKind.MUNMAP,
        OpKind.MPROTECT,
        OpKind.MADVISE,
        OpKind.MREMAP,
        OpKind.BRK,
    ),
    "address2": (OpKind.MMAP, OpKind.MREMAP, OpKind.BRK),
    "length2": (OpKind.MREMAP,),
    "prot": (OpKind.MMAP, OpKind.MPROTECT),
    "flags": (OpKind.MMAP, OpKind.MADVISE, OpKind.MREMAP, OpKind.CLONE, OpKind.FORK),
    "file_offset": (OpKind.MMAP,),
    "fd": (OpKind.MMAP,),
    "result": (
        *(OpKind.MMAP, OpKind.MUNMAP, OpKind.MPROTECT, OpKind.MADVISE, OpKind.MREMAP, OpKind.BRK),
        *(OpKind.CLONE, OpKind.FORK),
    ),
    "fault_bits": _FAULTS,
    "child": (OpKind.CLONE, OpKind.FORK),
}
_STORED: Final = {
    "begin_ns": Column.BEGIN,
    "seq": Column.SEQ,
    "think_cpu_ns": Column.THINK,
    "think_blocked_ns": Column.BLOCKED,
    "pid": Column.PID,
    "tid": Column.TID,
    "address_space": Column.SPACE,
    "cpu": Column.CPU,
    "kind": Column.KIND,
    "address": Column.ADDRESS,
    "length": Column.LENGTH,
    "address2": Column.ADDRESS2,
    "length2": Column.LENGTH2,
    "prot": Column.PROT,
    "flags": Column.FLAGS,
    "file_offset": Column.FILE_OFFSET,
    "fd": Column.FD,
    "result": Column.RESULT,
    "fault_bits": Column.BITS,
    "child": Column.CHILD,
}
#: The same for every row.
_CONSTANT: Final = {
    "duration_kind": 0,
    "preempted_ns": 0,
    "unattributed_ns": 0,
    "inner_events": 0,
    "weight": 1,
    "quality": int(Quality.SYNTHETIC),
}


def operations(world: World, n: int) -> pa.Table:
    """The first ``n`` rows of the buffer as they lie in a trace."""
    import pyarrow as pa

    from mmreplay.trace.columns import arrow_schema

    schema = arrow_schema("operations")
    kind = world.rows[Column.KIND, :n]
    arrays = []
    for column in schema:
        dtype = column.type.to_pandas_dtype()
        if column.name in _STORED:
            values = world.rows[_STORED[column.name], :n].astype(dtype)
            known = _KNOWN.get(column.name)
            if known is None:
                arrays.append(pa.array(values, column.type))
                continue
            valid = np.zeros(256, np.bool_)
            valid[list(known)] = True
            bits = np.packbits(valid[kind], bitorder="little")
            arrays.append(
                pa.Array.from_buffers(column.type, n, [pa.py_buffer(bits), pa.py_buffer(values)])
            )
        elif column.name in _CONSTANT:
            arrays.append(pa.array(np.full(n, _CONSTANT[column.name], dtype), column.type))
        elif column.name == "fault_class":
            minor = np.isin(kind, _FAULTS) * np.uint8(FaultClass.MINOR)
            arrays.append(pa.array(minor, column.type))
        else:
            arrays.append(pa.nulls(n, column.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def mappings(program: Program, world: World, n: int, first: bool) -> Any:
    """File mappings of the buffer, and before the first ones heap and stack, as a frame."""
    from mmreplay.trace.store import frame

    rows: list[dict[str, Any]] = []
    if first:
        for name, start, length, flags in (
            ("[heap]", HEAP, 16 * PAGE, 2),
            ("[stack]", STACK_TOP - (33 << 12), 33 << 12, 2 | MAP_GROWSDOWN),
        ):
            rows.append(
                {
                    "address_space": 0,
                    "ns": 0,
                    "start": start,
                    "length": length,
                    "prot": READ_WRITE,
                    "flags": flags,
                    "name": name,
                    "source": "exec",
                }
            )
    if not n:
        return frame("vmas", rows)
    import polars as pl

    m = world.mappings[:n]
    file = m[:, 7]
    disk = program.files[file, FileField.DISK] == 1
    names = np.array(
        [
            f"{'/data/' if row[FileField.DISK] else '/memfd:'}"
            f"{program.file_names[row[FileField.NAME]]}-{number}"
            for number, row in enumerate(program.files.tolist())
        ]
    )
    found = pl.DataFrame(
        {
            "address_space": m[:, 0],
            "ns": m[:, 1],
            "start": m[:, 2],
            "length": m[:, 3],
            "prot": m[:, 4],
            "flags": m[:, 5],
            "file_offset": m[:, 6],
            "inode": file + 1001,
            "device": np.where(disk, 0x800001, 0x1),
            "name": names[file],
            "has_anon_vma": pl.Series([None] * n, dtype=pl.Boolean),
            "source": pl.Series(["mmap2"]).new_from_index(0, n),
        }
    )
    empty = frame("vmas", rows)
    return pl.concat([empty, found.cast(dict(empty.schema))])  # type: ignore[arg-type]


def _threads(program: Program, world: World) -> Any:
    import polars as pl

    from mmreplay.trace.store import frame

    lives = world.lives[: int(world.cells[Cell.LIVES])]
    who = lives[:, Life.PROGRAM]
    role = program.threads[who, ThreadField.ROLE]
    kind = program.threads[who, ThreadField.KIND]
    names = np.array([*program.roles, "main"])[role]
    index = program.threads[who, ThreadField.INDEX].astype(str)
    turns = world.turns[who]
    alive = lives[:, Life.END] < 0
    main = kind == Kind.MAIN
    n = len(lives)
    starts = pl.Series(lives[:, Life.START])
    # what lasts longer than the trace is cut there: some sleep for ever
    beyond = (turns[:, Turn.CLOCK] - world.cells[Cell.NOW]).clip(0)
    blocked = (turns[:, Turn.BLOCKED] - beyond).clip(0)
    cpu = (turns[:, Turn.THINK] - (beyond - turns[:, Turn.BLOCKED]).clip(0)).clip(0)
    # nor does a thread that nobody wakes any more take the time until the end
    blocked = np.where(turns[:, Turn.WOKEN_BY] > 0, turns[:, Turn.OFF_BLOCKED], blocked)
    return (
        pl.DataFrame(
            {
                "tid": lives[:, Life.TID],
                "pid": lives[:, Life.PID],
                "parent_tid": pl.Series(lives[:, Life.PARENT]).set(pl.Series(main), None),
                "address_space": lives[:, Life.SPACE],
                "start_ns": starts.set(pl.Series(main), None),
                "end_ns": pl.Series(lives[:, Life.END]).set(pl.Series(alive), None),
                "first_ns": lives[:, Life.FIRST],
                "last_ns": lives[:, Life.LAST],
                "start_kind": np.select(
                    [main, kind == Kind.FORKED], ["exec", "fork"], default="thread"
                ),
                "comm": np.where(main, names, np.char.add(np.char.add(names, "-"), index)),
                "group": names,
                "tail_cpu_ns": np.where(alive, cpu, 0),
                "tail_blocked_ns": np.where(alive, blocked, 0),
            }
        )
        .cast(dict(frame("threads", []).schema))  # type: ignore[arg-type]
        .select(frame("threads", []).columns)
        if n
        else frame("threads", [])
    )


def _by_role(program: Program, world: World, column: Turn) -> dict[str, int]:
    role = program.threads[:, ThreadField.ROLE]
    return {
        name: int(world.turns[role == number, column].sum())
        for number, name in enumerate(program.roles)
    }


def _has_waits(program: Program) -> bool:
    """Whether some thread sleeps until another one wakes it, ends, or comes to a barrier."""
    op = program.code[:, Field.OP]
    sleeps = (op == Op.THINK) & (program.code[:, Field.TARGET] > 0)
    return bool((sleeps | (op == Op.JOIN) | (op == Op.BARRIER)).any())


def _wakeups(world: World, n: int) -> Any:
    """The wake-ups of the buffer as a frame."""
    import polars as pl

    from mmreplay.trace.store import frame

    m = world.wakes[:n]
    after, waker_after = (
        pl.Series(m[:, column]).set(pl.Series(m[:, column] < 0), None)
        for column in (Wake.AFTER, Wake.WAKER_AFTER)
    )
    found = pl.DataFrame(
        {
            "tid": m[:, Wake.TID],
            "off_ns": m[:, Wake.OFF],
            "wake_ns": m[:, Wake.WAKE],
            "on_ns": m[:, Wake.WAKE],
            "after": after,
            "cpu_ns": m[:, Wake.THINK],
            "blocked_ns": m[:, Wake.BLOCKED],
            "waker": m[:, Wake.WAKER],
            "waker_after": waker_after,
            "waker_cpu_ns": m[:, Wake.WAKER_THINK],
            "waker_blocked_ns": m[:, Wake.WAKER_BLOCKED],
        }
    )
    return found.cast(dict(frame("wakeups", []).schema))  # type: ignore[arg-type]


def _header(
    program: Program,
    rows: int,
    span_ns: int,
    seed: int,
    cpus: int | None,
    machine: Machine | None,
    waits: bool,
) -> Header:
    from mmreplay.trace.header import Capabilities, Clock, Event, Header, Machine, Source

    online = min(cpus or program.started, program.started) if machine is None else cpus
    return Header(
        clock=Clock(name="simulated"),
        kernel_release=KERNEL,
        machine=replace(machine or Machine(), cpus_online=online, page_size=PAGE),
        source=Source(format="synthetic", tool_version=f"workload {program.name}, seed {seed}"),
        target="synthetic",
        events=[Event(name="synthetic", samples=rows)],
        capabilities=Capabilities(
            fault_duration="none",
            syscall_durations=False,
            think="oncpu",
            switches=True,
            data_mmaps=True,
            kernel_faults=True,
            compat_visible=True,
            wakeups=waits,
        ),
        span_ns=span_ns,
        warnings=[
            f"generated from the workload {program.name} for "
            f"{plural(program.started, 'thread')}: no"
            " durations, costs come from a machine profile"
        ],
        importer_version=__version__,
    )


# -- where it goes -------------------------------------------------------------------------------


class _File:
    """A trace directory."""

    def __init__(self, path: str | Path, force: bool) -> None:
        from mmreplay.trace.writer import TraceWriter

        self._writer = TraceWriter(path, force)

    def __enter__(self) -> _File:
        self._writer.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)

    def write(self, table: str, rows: Any) -> None:
        self._writer.write(table, rows)

    def close(self, header: Header) -> Trace:
        return self._writer.close(header)


class _Memory:
    """A trace in memory."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Any]] = {}

    def __enter__(self) -> _Memory:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def write(self, table: str, rows: Any) -> None:
        import polars as pl
        import pyarrow as pa

        part = pl.from_arrow(rows) if isinstance(rows, pa.Table) else rows
        self._parts.setdefault(table, []).append(part)

    def close(self, header: Header) -> Trace:
        import polars as pl

        from mmreplay.trace.store import Trace

        return Trace.in_memory(header, {t: pl.concat(parts) for t, parts in self._parts.items()})
