"""What a trace must have before anything is predicted from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmreplay.errors import UserError, closest, plural
from mmreplay.predict import rooms
from mmreplay.predict.recorded import (
    LOSS_LIMIT,
    LOSS_WARNING,
    UNATTRIBUTED_LIMIT,
    Quality,
    quality,
)

if TYPE_CHECKING:
    from mmreplay.trace.store import Trace

#: A longer recording is a damaged one: a single wrong time makes a thread compute for years,
#: and a replay gives it turns of some milliseconds until then.
_LONGEST_NS = 7 * 24 * 3600 * 10**9
#: Of fewer operations even the number is by chance 5 % off.
FEW_OPERATIONS = 400
#: Pages of each CPU's ring after a loss: 64 MiB.
_LARGE_RINGS = 16_384


def check_choice(value: str, option: str, known: tuple[str, ...]) -> None:
    """Raise unless ``value`` is one of ``known``."""
    if value not in known:
        raise UserError(
            f'"{value}"{closest(value, known)}', where=option, fix=f"use {', '.join(known)}"
        )


def check_replayable(trace: Trace) -> tuple[rooms.Facts, list[str]]:
    """Raise for a trace that cannot be replayed; warnings for one that can only just be."""
    where = rooms.trace_name(trace)
    command = rooms.record_command(trace)
    found = rooms.facts(trace)
    if found.faults + found.calls == 0:
        raise UserError(
            "the trace has no memory-map operations of any thread",
            where=where,
            fix=f"record faults and mappings while the program runs: {command}",
        )
    if trace.header.capabilities.sampling:
        raise UserError(
            "the recording was sampled, so operations are missing and their order means nothing",
            where=where,
            fix=f"count every event (-c 1, not -F or a larger -c): {command}",
        )
    days = (trace.header.span_ns or 0) / (24 * 3600e9)
    if (trace.header.span_ns or 0) > _LONGEST_NS:
        raise UserError(
            f"the recording's times span {days:,.0f} days: one of them is damaged, or it idled",
            where=where,
            fix="import the part that counts: mmreplay import --from SECONDS --to SECONDS",
        )
    warnings = []
    if found.faults == 0 and not trace.header.generated:
        if trace.header.capabilities.fault_duration != "none":  # they were asked for
            how = "Record while the program takes memory."
        else:
            how = f"To record them: {command}"
        warnings.append(
            "The trace has no page faults, only mappings: waits between faults and mappings are "
            f"not in it. {how}"
        )
    if found.mmaps_unseen > found.mmaps / 2:
        warnings.append(
            f"{found.mmaps_unseen:,} of {found.mmaps:,} mmap calls have no result: what was mapped "
            "where is a guess. Record the returns of system calls too (sys_exit_*)."
        )
    return found, warnings


def check_predictable(
    trace: Trace, found: rooms.Facts, threads_given: bool
) -> tuple[Quality, list[str]]:
    """Raise where gains would be guesses; warnings where they are weak."""
    where = rooms.trace_name(trace)
    command = rooms.record_command(trace)
    if found.threads < 2 and not threads_given:
        raise UserError(
            "only one thread uses the memory map, and one thread never waits for itself",
            where=where,
            fix="record the program with its threads, or scale it out with --threads",
        )
    generated = trace.header.generated
    if found.faults == 0 and not generated and trace.header.capabilities.fault_duration == "none":
        raise UserError(
            "the recording has no page-fault events, so what faults and mappings wait for each "
            "other is not in it",
            where=where,
            fix=f"record them too: {command}",
        )
    if found.mmaps_unseen > found.mmaps / 2:
        raise UserError(
            f"{found.mmaps_unseen:,} of {found.mmaps:,} mmap calls have no result, so what was "
            "mapped where is unknown",
            where=where,
            fix=f"record the returns of system calls too (sys_exit_*): {command}",
        )
    state = quality(trace)
    if not found.times or (state.unattributed_share is None and not generated):
        raise UserError(
            "the recording has no durations, so waiting cannot be told from computing",
            where=where,
            fix=f"record with them: {command}",
        )
    if state.lost_share > LOSS_LIMIT:
        raise UserError(
            f"{state.lost_share:.1%} of the events were lost (limit {LOSS_LIMIT:.0%}), so rates "
            "would be guesses",
            where=where,
            fix=f"record with larger rings: {rooms.record_command(trace, ring_pages=_LARGE_RINGS)}",
        )
    if (state.unattributed_share or 0) > UNATTRIBUTED_LIMIT:
        raise UserError(
            f"{state.unattributed_share:.0%} of the threads' busy time could not be split into "
            f"computing, service and waiting (limit {UNATTRIBUTED_LIMIT:.0%}), so gains would be "
            "guesses",
            where=where,
            fix=f"record with durations and switches: {command}",
        )
    warnings = []
    if (ops := found.faults + found.calls) < FEW_OPERATIONS:
        warnings.append(
            f"{plural(ops, 'operation')} in {trace.header.span_ns / 1e9:.3g} s tell little: record "
            "longer, or while the program takes memory."
        )
    if trace.rows("callchains"):
        warnings.append(
            "Call chains were recorded: operations took longer for it than they do, and locks were "
            "held longer. Predict from a recording without (--stacks)."
        )
    if state.lost_share > LOSS_WARNING:
        warnings.append(f"{state.lost_share:.1%} of the events were lost in the recording.")
    return state, warnings
