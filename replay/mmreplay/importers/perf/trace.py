"""perf.data file -> trace directory: drives reading, pairing and writing.

Reading begins on a thread of its own as soon as its part is loaded: the other parts are loaded
while it works.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mmreplay.errors import UserError
from mmreplay.importers import events as ev
from mmreplay.importers.ahead import Ahead
from mmreplay.importers.options import Options
from mmreplay.importers.perf import data as source
from mmreplay.importers.perf import decode as pd
from mmreplay.importers.syscalls import C_FUTEX, CALLS

if TYPE_CHECKING:
    from mmreplay.importers.output.assemble import Assembler
    from mmreplay.importers.pairing import state as ps
    from mmreplay.importers.selection import Batches, Selection
    from mmreplay.trace.header import Header
    from mmreplay.trace.store import Trace
    from mmreplay.trace.writer import TraceWriter

#: Batches that are decoded, or being decoded, while one is paired, and that one: so many that
#: reading goes on while the modules that pairing needs are loaded.
_BATCHES: Final = 4

_DEFAULT_FIX: Final = (
    "record the default set: perf record -d -k CLOCK_MONOTONIC --switch-events -c 1 "
    "-e exceptions:page_fault_user -e exceptions:page_fault_kernel "
    "-e minor-faults -e major-faults "
    "-esyscalls:sys_{enter,exit}_{mmap,munmap,mprotect,madvise,brk,mremap,clone,clone3,execve} "
    "-- CMD"
)
_FAULTS: Final = (ev.FAULT_USER, ev.FAULT_KERNEL, ev.FAULT_SOFTWARE)


def config_of(rec: source.Recording) -> ps.Config:
    """What the recording holds, as pairing needs it."""
    from mmreplay.importers.pairing import state as ps

    enters = np.zeros(len(CALLS), np.uint8)
    exits = np.zeros(len(CALLS), np.uint8)
    enters[:] = rec.has(ev.RAW_ENTER)
    exits[:] = rec.has(ev.RAW_EXIT)
    for event in rec.events:
        if event.role == ev.ENTER:
            enters[event.call] = 1
        elif event.role == ev.EXIT:
            exits[event.call] = 1
    return ps.Config(
        rec.has(*_FAULTS),
        rec.has(ev.FAULT_MINOR, ev.FAULT_MAJOR),
        not any(plan.sampled for plan in rec.plans),
        enters,
        exits,
        any(plan.switch_records for plan in rec.plans) or rec.has(ev.SCHED_SWITCH),
        rec.has(ev.CONTENTION_BEGIN),
        rec.has(ev.WAKING),
    )


def import_perf_data(
    paths: list[Path], out: Path, options: Options, progress: source.Progress | None = None
) -> Trace:
    """Import a perf.data recording: a file, a stream, a directory, or several of them.

    Raises
    ------
    UserError
        The file or the output is not what it must be; nothing is left behind.
    """
    recording = source.open_recording(paths, options.formats, options.salvage)
    ahead: Ahead[tuple[Any, int]] | None = None
    try:
        if all(
            event.role in (ev.OTHER, ev.WAKING, ev.NEW_TASK) or event.call >= C_FUTEX
            for event in recording.events
        ):
            raise _nothing_in(recording)
        batches = source.batches(recording, progress, _BATCHES)
        once = any(one.size_bytes == 0 for one in recording.sources)  # streams
        if not once and options.whole:
            # A stream may keep a thread waiting for ever; and where reading ends early, what was
            # read by then, and counted, must not depend on the moment.
            ahead = Ahead(batches, _BATCHES)
            batches = iter(ahead)

        def scan() -> Iterator[tuple[Any, int]]:
            second = source.open_recording(paths, options.formats, options.salvage)
            try:
                yield from source.batches(second)
            finally:
                second.close()

        from mmreplay.importers.selection import Selection
        from mmreplay.trace.writer import TraceWriter

        selection = Selection(options, None if once else scan, recording.where)
        with TraceWriter(out, options.force) as writer:
            header = _transfer(recording, batches, writer, selection, options)
            return writer.close(header)
    finally:
        if ahead is not None:
            ahead.close()
        recording.close()


def _nothing_in(recording: source.Recording) -> UserError:
    """The error of a recording none of whose events makes an operation."""
    why = [text for plan in recording.plans for text in plan.warnings]
    if why:
        return UserError(
            f"nothing can be made of its events: {'; '.join(why)}",
            where=recording.where,
            fix="record again: mmreplay record has all that is needed",
        )
    return UserError(
        "the recording holds no page faults, memory-map system calls or lock events",
        where=recording.where,
        fix=_DEFAULT_FIX,
    )


def _transfer(
    rec: source.Recording,
    batches: Batches,
    writer: TraceWriter,
    selection: Selection,
    options: Options,
) -> Header:
    from mmreplay.importers.drive import finish_all, pair_all
    from mmreplay.importers.output.assemble import Assembler

    config = config_of(rec)
    tables = Assembler(
        writer,
        switches=config.switches,
        contention=rec.has(ev.CONTENTION_BEGIN),
        bounded=config.fault_starts and not config.fault_ends,
        stacks=rec.stacks is not None,
        load=_load,
    )
    tables.names = rec.names
    tables.probe = options.event_cost
    tables.more_vmas = options.snapshot is not None
    state = tables.start(config)
    try:
        pair_all(state, tables, _with_frames(rec, tables, batches), selection)
        if not rec.samples.sum():
            raise UserError(
                "the recording holds no events",
                where=rec.where,
                fix="check that the program ran and that perf could record it, then record again",
            )
        report = finish_all(state, tables)
    except BaseException:
        tables.abandon()
        raise
    if rec.together is not None:
        rec.notes += rec.together.check()
    selection.check(tables.operations)
    told: list[str] = []
    if options.snapshot is not None:
        from mmreplay.importers import snapshot

        told = snapshot.add(options.snapshot, writer, state, options.process)
    rec.decode_state[pd.D_T0] += selection.begin_ns
    from mmreplay.importers.perf.facts import header_of

    header = header_of(rec, state, tables, config)
    header.counters = header.counters | report
    header.capabilities.snapshot = options.snapshot is not None
    header.warnings += told
    if selection:
        header.warnings.append(selection.told())
    return header


def _load() -> None:
    """Load what the end of the import needs."""
    import mmreplay.importers.output.tables
    import mmreplay.importers.perf.facts
    import mmreplay.trace.store  # noqa: F401


def _with_frames(
    rec: source.Recording, tables: Assembler, batches: Batches
) -> Generator[tuple[Any, int], None, None]:
    """The recording's batches; frames of call chains go to their table."""
    for batch, rows in batches:
        while rec.frames:
            tables.add_frames(rec.frames.popleft())
        yield batch, rows
