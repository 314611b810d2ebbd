"""trace.dat -> trace: which events matter, and the text importers' pipeline behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.importers import events as ev
from mmreplay.importers.binary import new_table, table_put
from mmreplay.importers.options import Options
from mmreplay.importers.perf import header as ph
from mmreplay.importers.perf import layout as pl
from mmreplay.importers.syscalls import CALLS, number_tables
from mmreplay.importers.text import rows as tr
from mmreplay.importers.text import source
from mmreplay.importers.text.scan import SCHED_EXIT
from mmreplay.importers.text.trace import Dialect, import_text
from mmreplay.importers.trace_dat import scan as ds
from mmreplay.importers.trace_dat.reader import TraceDat, name_words, open_trace_dat
from mmreplay.importers.tracing_data import TracingData
from mmreplay.trace.store import Trace

_EXIT: Final = "sched:sched_process_exit"


def import_trace_dat(
    path: Path, out: Path, options: Options, progress: source.Progress | None
) -> Trace:
    """Import a trace.dat.

    Raises
    ------
    UserError
        The file or the output is not what it must be; nothing is left behind.
    """
    dat = open_trace_dat(path)
    file = source.text_file(path, dat.pages)
    try:
        scanner = _Scanner(dat, str(path), file.buffer)
        if len(dat.processes) == 1:
            file.x[tr.X_ROOT] = dat.processes[0]
        return import_text(file, scanner.dialect(), out, options, progress)
    finally:
        file.close()


class _Scanner:
    """The tables of the compiled reader."""

    def __init__(self, dat: TraceDat, where: str, buffer: NDArray[np.uint8]) -> None:
        self.dat = dat
        formats = list(dat.formats.values())
        # What perf would say of these events: the fields lie alike.
        kinds = ph.SAMPLE_TID | ph.SAMPLE_TIME | ph.SAMPLE_CPU | ph.SAMPLE_PERIOD | ph.SAMPLE_RAW
        attrs = [
            ph.Attr(pl.TYPE_TRACEPOINT, form.id, 1, kinds | ph.SAMPLE_ID, 0, 0, 0, (form.id + 1,))
            for form in formats
        ]
        tracing = TracingData("", False, dat.long_size, dat.page_size, dat.formats)
        self.plan = pl.build(ph.PerfHeader(attrs=attrs), tracing, where)
        self.paged = [number for number, event in enumerate(self.plan.events) if event.paged]
        self.roles: NDArray[np.int64] = self.plan.layout.flags[:, pl.G_ROLE].copy()
        self.index = np.full((max(1, len(dat.buffers)), ds.TYPES), ds.UNKNOWN, np.int32)
        for kind in dat.own_types:
            if 0 <= kind < ds.TYPES:
                self.index[:, kind] = ds.OWN
        for number, (form, event) in enumerate(zip(formats, self.plan.events, strict=True)):
            if 0 <= form.id < ds.TYPES:
                self.index[:, form.id] = number
            if event.name == _EXIT:
                self.roles[number] = SCHED_EXIT
        self.pages = np.array([dat.page_size, dat.data_offset, dat.long_size, 0], np.int64)
        self.cpus = self._sequences()
        found = np.zeros((len(self.index), max(1, len(formats))), np.int64)
        ds.start(buffer, self.pages, self.cpus)
        self.unknown = int(ds.count(buffer, self.pages, self.cpus, self.index, found))
        self.counts, self.twice = found.max(axis=0), self._tell_once(found)
        self.pages[ds.Y_DAMAGED] = 0
        self.cpus = self._sequences()
        ds.start(buffer, self.pages, self.cpus)
        self.tables = number_tables(dat.machine or "x86_64")
        self.told = np.zeros((2, len(CALLS)), np.uint8)
        for event, number in zip(self.plan.events, self.counts.tolist(), strict=False):
            if number and event.call >= 0:
                self.told[int(event.role == ev.EXIT), event.call] = 1
        self.keys, self.values = new_table(max(1, len(dat.names)))
        self.names = np.zeros((max(1, len(dat.names)), 2), np.int64)
        for number, (tid, name) in enumerate(dat.names.items()):
            table_put(self.keys, self.values, np.uint64(tid), number)
            self.names[number] = name_words(name)
        self.words = np.zeros(6, np.uint64)

    def _tell_once(self, found: NDArray[np.int64]) -> list[str]:
        """Events that several buffers have are taken from the one that has most; which these are.

        Each would be told twice else.
        """
        twice = []
        for event, form in enumerate(self.dat.formats.values()):
            has = np.flatnonzero(found[:, event])
            if len(has) > 1:
                twice.append(form.name)
                self.index[np.arange(len(found)) != found[:, event].argmax(), form.id] = ds.OWN
        return twice

    def _sequences(self) -> NDArray[np.int64]:
        cpus = np.zeros((len(self.dat.cpus), ds.Q_SIZE), np.int64)
        for row, (cpu, first, size, number) in zip(cpus, self.dat.cpus, strict=True):
            row[ds.Q_NEXT_PAGE], row[ds.Q_END], row[ds.Q_CPU] = first, first + size, cpu
            row[ds.Q_BUFFER] = number
        return cpus

    def dialect(self) -> Dialect:
        """What the file holds."""
        has = {int(role) for role in self.roles[self.counts[: len(self.roles)] > 0]}
        starts = bool(has & {ev.FAULT_USER, ev.FAULT_KERNEL})
        dialect = Dialect(
            format="trace.dat",
            scan=self.scan,
            fault_starts=starts,
            fault_ends=False,
            enters=bool(has & {ev.ENTER, ev.RAW_ENTER}),
            exits=bool(has & {ev.EXIT, ev.RAW_EXIT}),
            switches=ev.SCHED_SWITCH in has,
            contention=bool(has & {ev.CONTENTION_BEGIN, ev.CONTENTION_END}),
            wakings=ev.WAKING in has,
            samples=self.samples,
            paged=lambda: self.paged,
            kernel_faults=ev.FAULT_KERNEL in has,
            compat_visible=ev.RAW_ENTER in has,
            one_process=len(self.dat.processes) == 1,
            tell_process="record one process: trace-cmd record -F --proc-map, or -P PID --proc-map",
            clock={"mono": "monotonic"}.get(self.dat.clock, self.dat.clock or "unknown"),
            facts={"os release": self.dat.os_release, "tool version": self.dat.tool_version},
        )
        if self.unknown:
            dialect.warnings.append(f"{self.unknown:,} events have no format in the file")
        if self.dat.others:
            dialect.warnings.append(
                f"buffers were left out ({', '.join(self.dat.others[:4])}): their clock, or the "
                f"size of their pages, is not that of {self.dat.buffers[0] or 'the top one'}"
            )
        if self.twice:
            dialect.warnings.append(
                f"several buffers have {', '.join(self.twice[:4])}: taken from the one with most"
            )
        return dialect

    def samples(self) -> dict[str, int]:
        """Events of each name that are there."""
        counts = self.counts.tolist()
        return {
            event.name: number
            for event, number in zip(self.plan.events, counts, strict=False)
            if number
        }

    def scan(self, file: source.TextFile, rows: NDArray[np.int64]) -> bool:
        """Fill rows; returns whether the file is at its end."""
        used = 0
        layout = self.plan.layout
        while True:
            result: Any = ds.scan(
                file.buffer,
                self.pages,
                self.cpus,
                file.x,
                file.threads,
                file.ring,
                self.index,
                layout.flags,
                layout.program,
                self.roles,
                self.tables.calls,
                self.tables.slots,
                self.tables.execve,
                self.told,
                self.keys,
                self.values,
                self.names,
                self.words,
                rows[used:],
            )
            used += int(file.x[tr.X_ROWS])
            file.x[tr.X_ROWS] = used
            if result != tr.NEED_THREADS:
                return bool(result == tr.DONE)
            file.grow_threads()
            if len(rows) - used <= tr.MOST_ROWS:
                return False
