"""perf.data file -> trace directory: drives reading, pairing and writing; the header."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from mmreplay import __version__
from mmreplay.errors import UserError
from mmreplay.importers import events as ev
from mmreplay.importers import pair_state as ps
from mmreplay.importers import pairing
from mmreplay.importers import perf_data as source
from mmreplay.importers import perf_decode as pd
from mmreplay.importers import perf_walk as pw
from mmreplay.importers.assemble import DEFAULT_PROBE_NS, WINDOW_ROWS, Assembler
from mmreplay.importers.perf_layout import Plan
from mmreplay.importers.syscalls import CALLS
from mmreplay.trace.store import (
    Capabilities,
    Clock,
    Event,
    Header,
    Machine,
    Probe,
    Source,
    Trace,
    TraceWriter,
    plain_release,
)

#: Above this share of lost events the trace says so.
_WARN_LOST: Final = 0.001
_CLOCKS: Final = {0: "realtime", 1: "monotonic", 4: "monotonic_raw", 7: "boottime", 11: "tai"}
_DEFAULT_FIX: Final = (
    "record the default set: perf record -d -k CLOCK_MONOTONIC --switch-events -c 1 "
    "-e exceptions:page_fault_user -e exceptions:page_fault_kernel "
    "-e minor-faults -e major-faults "
    "-esyscalls:sys_{enter,exit}_{mmap,munmap,mprotect,madvise,brk,mremap,clone,clone3,execve} "
    "-- CMD"
)
_FAULTS: Final = (ev.FAULT_USER, ev.FAULT_KERNEL, ev.FAULT_SOFTWARE)
_KNOWN_TYPES: Final = frozenset(
    (*range(1, 22), *range(64, 86))  # named in the kernel's headers up to 6.18
)


def config_of(plan: Plan) -> ps.Config:
    """What the recording holds, as pairing needs it."""
    enters = np.zeros(len(CALLS), np.uint8)
    exits = np.zeros(len(CALLS), np.uint8)
    raw_enter, raw_exit = plan.has(ev.RAW_ENTER), plan.has(ev.RAW_EXIT)
    enters[:] = raw_enter
    exits[:] = raw_exit
    for event in plan.events:
        if event.role == ev.ENTER:
            enters[event.call] = 1
        elif event.role == ev.EXIT:
            exits[event.call] = 1
    return ps.Config(
        plan.has(*_FAULTS),
        plan.has(ev.FAULT_MINOR, ev.FAULT_MAJOR),
        not plan.sampled,
        enters,
        exits,
        _switches(plan),
    )


def _switches(plan: Plan) -> bool:
    return plan.switch_records or plan.has(ev.SCHED_SWITCH)


def import_perf_data(
    path: Path, out: Path, force: bool, progress: source.Progress | None = None
) -> Trace:
    """Import a plain perf.data file.

    Raises
    ------
    UserError
        The file or the output is not what it must be; nothing is left behind.
    """
    recording = source.open_recording(path)
    try:
        if all(event.role == ev.OTHER for event in recording.plan.events):
            raise UserError(
                "the recording holds no page faults, memory-map system calls or lock events",
                where=str(path),
                fix=_DEFAULT_FIX,
            )
        with TraceWriter(out, force) as writer:
            header = _transfer(recording, writer, progress)
            _finalise(writer, header)
            return writer.close(header)
    finally:
        recording.close()


def _finalise(writer: TraceWriter, header: Header) -> None:
    from mmreplay.trace.timesplit import finalise

    finalise(writer, header)


def _transfer(
    rec: source.Recording, writer: TraceWriter, progress: source.Progress | None
) -> Header:
    plan = rec.plan
    config = config_of(plan)
    contention = plan.has(ev.CONTENTION_BEGIN)
    tables = Assembler(writer, switches=config.switches, contention=contention)
    tables.names = rec.names
    state = ps.State(WINDOW_ROWS, config)
    try:
        for batch, rows in source.batches(rec, progress):
            at = 0
            while at < rows:
                at = pairing.pair(state.arena, state.ops, batch, at, rows)
                if at < rows:
                    tables.take(state)
                    state.grow()
        if not rec.samples.sum():
            raise UserError(
                "the recording holds no events",
                where=str(rec.path),
                fix="check that the program ran and that perf could record it, then record again",
            )
        slot = 0
        while slot < state.count[ps.C_THREADS]:
            slot = pairing.finish(state.arena, state.ops, slot)
            if slot < state.count[ps.C_THREADS]:
                tables.take(state)
                state.grow()
        tables.finish(state)
    except BaseException:
        tables.abandon()
        raise
    return _header(rec, state, tables, config)


def _header(rec: source.Recording, state: ps.State, tables: Assembler, config: ps.Config) -> Header:
    head, walk, count = rec.header, rec.walk_state, state.count
    t0 = max(0, int(rec.decode_state[pd.D_T0]))
    clock = Clock(name="perf", resolution_ns=head.clock_resolution_ns)
    if head.attrs[0].use_clockid:
        clock.name = _CLOCKS.get(head.attrs[0].clockid, f"clock {head.attrs[0].clockid}")
        if head.wall_and_clock_ns is not None:
            wall, at_wall = head.wall_and_clock_ns
            clock.wall_ns_at_t0 = wall + t0 - at_wall
    # The same losses are told twice: once is the larger of the two sums.
    lost = int(max(walk[pw.W_LOST], walk[pw.W_LOST_SAMPLES]))
    probe = tables.probe or (DEFAULT_PROBE_NS, "default")
    header = Header(
        t0_ns=t0,
        clock=clock,
        kernel_release=plain_release(head.os_release),
        machine=Machine(
            cpu_model=head.cpu_desc or None,
            cpu_id=head.cpuid or None,
            cpus_online=head.cpus_online or None,
            cpus_available=head.cpus_available or None,
            memory_kib=head.total_mem_kib or None,
            page_size=rec.tracing.page_size or None if rec.tracing else None,
            sockets=head.sockets,
            cores_per_socket=head.cores_per_socket,
            threads_per_core=head.threads_per_core,
        ),
        source=Source(
            format="perf.data", size_bytes=len(rec.buffer), tool_version=head.perf_version or None
        ),
        events=[
            Event(
                name=event.name,
                id=event.config if event.config < 1 << 63 else None,
                type=event.type,
                period=event.period,
                frequency=event.frequency,
                samples=int(rec.samples[index]),
                lost=int(rec.lost[index]),
            )
            for index, event in enumerate(rec.plan.events)
        ],
        lost_events=lost,
        probe=Probe(cost_ns=probe[0], method=probe[1]),
        span_ns=int(count[ps.C_LAST_NS]),
        importer_version=__version__,
    )
    header.target = rec.target  # type: ignore[assignment]
    header.capabilities = _capabilities(rec, config)
    header.counters = _counters(rec, state, tables)
    header.warnings = _warnings(rec, header, config)
    return header


def _capabilities(rec: source.Recording, config: ps.Config) -> Capabilities:
    plan = rec.plan
    duration: Any = "none"
    if config.pair and config.fault_starts:
        duration = "measured" if config.fault_ends else "upper"
    calls = config.enters | config.exits
    return Capabilities(
        fault_duration=duration,
        syscall_durations=bool(
            config.pair and calls.any() and (config.enters & config.exits).sum() == calls.sum()
        ),
        think="oncpu" if config.switches else "wall",
        switches=config.switches,
        data_mmaps=any(attr.mmap_data for attr in rec.header.attrs),
        kernel_faults=plan.has(ev.FAULT_KERNEL, ev.FAULT_SOFTWARE)
        or (plan.has(ev.FAULT_MINOR) and not config.fault_starts),
        compat_visible=plan.has(ev.RAW_ENTER),
        lock_spans=plan.has(ev.CONTENTION_BEGIN) and plan.has(ev.CONTENTION_END),
        wakeups=any(e.name in ("sched:sched_waking", "sched:sched_wakeup") for e in plan.events),
        sampling=plan.sampled,
        snapshot=False,
    )


def _counters(rec: source.Recording, state: ps.State, tables: Assembler) -> dict[str, int]:
    count, walk, decode = state.count, rec.walk_state, rec.decode_state
    values = {
        "records": rec.types.sum(),
        "rounds": walk[pw.W_ROUNDS],
        "lost_in_lost_records": walk[pw.W_LOST],
        "lost_in_lost_samples": walk[pw.W_LOST_SAMPLES],
        "malformed_records": walk[pw.W_MALFORMED] + decode[pd.D_MALFORMED],
        "unknown_event_ids": walk[pw.W_UNKNOWN_ID],
        "unknown_features": rec.header.unknown_features,
        "late_events": decode[pd.D_LATE],
        "begin_unseen": count[ps.C_BEGIN_UNSEEN],
        "end_unseen": count[ps.C_END_UNSEEN],
        "faults_without_end": count[ps.C_FAILED],
        "threads_after_gap": count[ps.C_GAP_EVENTS],
        "bad_thread_ids": count[ps.C_BAD_THREAD],
        "events_of_dead_threads": count[ps.C_DEAD_EVENT],
        "unmatched_lock_events": count[ps.C_UNMATCHED_LOCK],
        "failed_trylocks": count[ps.C_TRYLOCK_FAILED],
        "compat32_operations": tables.compat,
        "ends_written_late": sum(len(rows) for rows, _ in tables.late_patches),
    }
    result = {name: int(value) for name, value in values.items() if value}
    for kind in np.flatnonzero(rec.types).tolist():
        if kind not in _KNOWN_TYPES:
            label = f"{kind}" if kind < pw.TYPES - 1 else f"{kind}_and_above"
            result[f"unknown_records_type_{label}"] = int(rec.types[kind])
    return result


def _warnings(rec: source.Recording, header: Header, config: ps.Config) -> list[str]:
    found = [*rec.header.warnings, *rec.plan.warnings]
    total = int(rec.samples.sum())
    if header.lost_events > _WARN_LOST * (total + header.lost_events):
        share = 100 * header.lost_events / (total + header.lost_events)
        found.append(
            f"{header.lost_events} events ({share:.1f} %) were lost; record with a larger "
            "buffer (-m 4096 or more)"
        )
    one_sided = [
        call.name
        for index, call in enumerate(CALLS)
        if config.enters[index] and not config.exits[index]
    ]
    if one_sided:
        found.append(
            f"returns were not recorded for {', '.join(one_sided)}: no durations, results or "
            "mapped addresses; record sys_exit_* too"
        )
    if not config.fault_starts and not config.fault_ends:
        found.append("no page faults were recorded; add -e exceptions:page_fault_user")
    if header.capabilities.sampling:
        found.append("events were sampled, so nothing pairs; record with -c 1 instead of -F")
    if header.counters.get("compat32_operations"):
        found.append(
            "32-bit tasks: their system calls are not in syscalls:*; record raw_syscalls too"
        )
    if header.counters.get("malformed_records"):
        found.append(f"{header.counters['malformed_records']} malformed records were skipped")
    return found
