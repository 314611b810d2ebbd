"""The header of a trace from a perf.data file: facts, capabilities, counters, warnings."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mmreplay import __version__
from mmreplay.importers import events as ev
from mmreplay.importers.output.assemble import DEFAULT_PROBE_NS, NO_COMPAT, Assembler
from mmreplay.importers.pairing import state as ps
from mmreplay.importers.pairing import wakeups as pair_wakeups
from mmreplay.importers.perf import data as source
from mmreplay.importers.perf import decode as pd
from mmreplay.importers.perf import walk as pw
from mmreplay.importers.syscalls import CALL_KIND, CALLS, tells_futexes
from mmreplay.trace.header import (
    Capabilities,
    Clock,
    Event,
    Header,
    Machine,
    Probe,
    Source,
    plain_release,
)

#: Above this share of lost events the trace says so.
_WARN_LOST: Final = 0.001
_CLOCKS: Final = {0: "realtime", 1: "monotonic", 4: "monotonic_raw", 7: "boottime", 11: "tai"}
_KNOWN_TYPES: Final = frozenset(
    (*range(1, 22), *range(64, 86))  # named in the kernel's headers up to 6.18
)


def header_of(
    rec: source.Recording, state: ps.State, tables: Assembler, config: ps.Config
) -> Header:
    """The header of the trace, from what the recording says and what the import counted."""
    head, count = rec.header, state.count
    t0 = int(rec.decode_state[pd.D_T0])
    t0 = 0 if t0 == pw.MAX_TIME else t0
    clock = Clock(name="perf", resolution_ns=head.clock_resolution_ns)
    if head.attrs[0].use_clockid:
        clock.name = _CLOCKS.get(head.attrs[0].clockid, f"clock {head.attrs[0].clockid}")
        if head.wall_and_clock_ns is not None:
            wall, at_wall = head.wall_and_clock_ns
            clock.wall_ns_at_t0 = wall + t0 - at_wall
    # The same losses are told twice: once is the larger of the two sums.
    lost = max(rec.total(pw.W_LOST), rec.total(pw.W_LOST_SAMPLES))
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
            page_size=_page_size(rec),
            sockets=head.sockets,
            cores_per_socket=head.cores_per_socket,
            threads_per_core=head.threads_per_core,
        ),
        source=Source(
            format="perf.data",
            size_bytes=sum(one.size_bytes for one in rec.sources) or None,
            tool_version=head.perf_version or None,
        ),
        events=_events(rec),
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


def _page_size(rec: source.Recording) -> int | None:
    sizes = [one.tracing.page_size for one in rec.sources if one.tracing is not None]
    return next((size for size in sizes if size > 0), None)


def _events(rec: source.Recording) -> list[Event]:
    """All events; what several files have in common once."""
    found: dict[tuple[str, str, int], Event] = {}
    for event, samples, lost in zip(rec.events, rec.samples, rec.lost, strict=True):
        one = found.setdefault(
            (event.name, event.type, event.config),
            Event(
                name=event.name,
                id=event.config if event.config < 1 << 63 else None,
                type=event.type,
                period=event.period,
                frequency=event.frequency,
            ),
        )
        one.samples += int(samples)
        one.lost += int(lost)
    return list(found.values())


def _capabilities(rec: source.Recording, config: ps.Config) -> Capabilities:
    duration: Any = "none"
    if config.pair and config.fault_starts:
        duration = "measured" if config.fault_ends else "upper"
    calls = (config.enters | config.exits) & (CALL_KIND > 0)
    return Capabilities(
        fault_duration=duration,
        syscall_durations=bool(
            config.pair
            and calls.any()
            and (config.enters & config.exits & calls).sum() == calls.sum()
        ),
        think="oncpu" if config.switches else "wall",
        switches=config.switches,
        data_mmaps=any(attr.mmap_data for one in rec.sources for attr in one.header.attrs),
        kernel_faults=rec.has(ev.FAULT_KERNEL, ev.FAULT_SOFTWARE)
        or (rec.has(ev.FAULT_MINOR) and not config.fault_starts),
        compat_visible=rec.has(ev.RAW_ENTER),
        lock_spans=rec.has(ev.CONTENTION_BEGIN) and rec.has(ev.CONTENTION_END),
        wakeups=config.wakings or tells_futexes(config.enters, config.exits),
        sampling=not config.pair,
        snapshot=False,
    )


def _counters(rec: source.Recording, state: ps.State, tables: Assembler) -> dict[str, int]:
    count, types = state.count, rec.types
    values = {
        "records": types.sum(),
        "rounds": rec.total(pw.W_ROUNDS),
        "lost_in_lost_records": rec.total(pw.W_LOST),
        "lost_in_lost_samples": rec.total(pw.W_LOST_SAMPLES),
        "malformed_records": rec.total(pw.W_MALFORMED) + rec.decode_state[pd.D_MALFORMED],
        "unknown_event_ids": rec.total(pw.W_UNKNOWN_ID),
        "unknown_features": sum(one.header.unknown_features for one in rec.sources),
        "cut_bytes": sum(stream.cut_bytes for stream in rec.streams),
        "late_events": rec.total(pw.W_LATE),
        "begin_unseen": count[ps.C_BEGIN_UNSEEN],
        "end_unseen": count[ps.C_END_UNSEEN],
        "faults_without_end": count[ps.C_FAILED],
        "threads_after_gap": count[ps.C_GAP_EVENTS],
        "bad_thread_ids": count[ps.C_BAD_THREAD],
        "events_of_dead_threads": count[ps.C_DEAD_EVENT],
        "unmatched_lock_events": count[ps.C_UNMATCHED_LOCK],
        "failed_trylocks": count[ps.C_TRYLOCK_FAILED],
        "compat32_operations": tables.compat,
        "events_told_twice": rec.twice.count if rec.twice is not None else 0,
        "operations_without_stack": rec.stacks.dropped if rec.stacks is not None else 0,
        **pair_wakeups.counters(count),
    }
    result = {name: int(value) for name, value in values.items() if value}
    for kind in np.flatnonzero(types).tolist():
        if kind not in _KNOWN_TYPES:
            label = f"{kind}" if kind < pw.TYPES - 1 else f"{kind}_and_above"
            result[f"unknown_records_type_{label}"] = int(types[kind])
    return result


def _warnings(rec: source.Recording, header: Header, config: ps.Config) -> list[str]:
    found = list(rec.notes)
    for one in rec.sources:
        told = [*one.warnings, *one.header.warnings, *one.plan.warnings]
        found += [text for text in told if text not in found]
    if header.counters.get("cut_bytes"):
        found.append(f"{header.counters['cut_bytes']} bytes of a record that was cut are left out")
    if rec.twice is not None:
        found += rec.twice.told([event.name for event in rec.events])
    total = int(rec.samples.sum())
    if header.lost_events > _WARN_LOST * (total + header.lost_events):
        share = 100 * header.lost_events / (total + header.lost_events)
        found.append(
            f"{header.lost_events:,} events ({share:.1f} %) were lost; record with a larger "
            "buffer (-m 4096 or more)"
        )
    one_sided = [
        call.name
        for index, call in enumerate(CALLS)
        if call.kind and config.enters[index] and not config.exits[index]
    ]
    if one_sided:
        found.append(
            f"returns were not recorded for {', '.join(one_sided)}: no durations, results or "
            "mapped addresses; record sys_exit_* too"
        )
    if rec.stacks is not None:
        found.append(
            "call chains cost the recorded thread 2 to 3 us an event, which is not taken off: "
            "durations are too long; predict from a recording without (-g, --stacks)"
        )
    if not config.fault_starts and not config.fault_ends:
        found.append("no page faults were recorded; add -e exceptions:page_fault_user")
    if header.capabilities.sampling:
        found.append(
            "events were sampled, so nothing pairs; count every event (-c 1, not -F or a larger -c)"
        )
    if header.counters.get("compat32_operations") and not header.capabilities.compat_visible:
        found.append(NO_COMPAT)
    if header.counters.get("malformed_records"):
        found.append(f"{header.counters['malformed_records']} malformed records were skipped")
    return found
