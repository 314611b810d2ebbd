"""Predictions and replays as text for people: readable piped, and without colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mmreplay.errors import plural
from mmreplay.predict.explain import blame_share, headline_row, percent, place, series, span, times
from mmreplay.predict.prediction import (
    Drift,
    ForeignHolder,
    Prediction,
    Process,
    ProcessShare,
    Replay,
    Row,
)
from mmreplay.report.page import bullet, fill, table

_BAR: Final = 16
#: Tables longer than this show their first, last and evenly spread rows.
_LONGEST: Final = 24
#: What runs no locking program: a thread is cloned, a call was refused.
_NO_LOCK: Final = "(no lock)"
#: Processes that a table shows.
_PROCESSES: Final = 8


def rate(value: float) -> str:
    """``412 k``, ``1.25 M``: three digits and a unit prefix."""
    for limit, divide, unit in ((1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e3, 1e3, " k")):
        if value >= limit * 0.9995:
            scaled = value / divide
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def duration(ns: float | None) -> str:
    """``3.1 µs``: three digits and a unit."""
    if ns is None:
        return "-"
    for limit, divide, unit in ((1e9, 1e9, "s"), (1e6, 1e6, "ms"), (1e3, 1e3, "µs")):
        if ns >= limit * 0.9995:
            scaled = ns / divide
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {unit}"
    return f"{ns:.0f} ns"


def bar(old: float, new: float, most: float, width: int = _BAR) -> str:
    """``█████▒▒▒``: what the old kernel reaches, and what the new one adds (``-``: loses)."""
    if most <= 0:
        return ""
    first = round(width * min(old, new) / most)
    whole = round(width * max(old, new) / most)
    return "█" * first + ("▒" if new >= old else "-") * (whole - first)


def drift_text(drift: Drift) -> str:
    """The line (or lines) about baseline drift."""
    if drift.ratio is None:
        text = f"Baseline drift: unknown; {drift.note}."
        return fill(text) + (f"\n{fill('To mend: ' + drift.fix)}" if drift.fix else "")
    text = f"Baseline drift: {drift.ratio:.2f} ({drift.note})."
    waits = [
        f"{kind.op} {kind.wait_ratio:.2f}" for kind in drift.kinds if kind.wait_ratio is not None
    ]
    if waits:
        text += f" Waits alone: {', '.join(waits[:5])}."
    elif drift.kinds:
        text += " Waits alone: too little was recorded to compare."
    return fill(text)


def prediction_text(prediction: Prediction) -> str:
    """The whole text of ``mmreplay predict``."""
    blocks = [fill(prediction.headline), drift_text(prediction.drift)]
    found = series(prediction.rows)
    for rows in found:
        pairs = _pairs(prediction, rows)
        several = sum(mine[0].load == rows[0].load for mine in found) > 1
        of = f" with {plural(rows[0].threads, 'thread')}" if several else ""
        if any(_as_before(rows, mine) for mine in found):
            blocks.append(fill(f"The recorded load{of} is the same: the threads are never idle."))
            blocks.append(_delay_block(prediction, pairs, of))
            continue
        blocks.append(_load_block(prediction, pairs))
        if rows[0].load == found[0][0].load:
            blocks.append(_lock_block(prediction, pairs, of))
        if rows[0].load == found[-1][0].load:
            blocks.append(_delay_block(prediction, pairs, of))
    blocks += [block for block in (_who(prediction), _shares(prediction)) if block]
    blocks += foreign_text(prediction.foreign_holders)
    if prediction.notes:
        blocks.append("\n".join(bullet(note) for note in prediction.notes))
    return "\n\n".join(blocks) + "\n"


_LOADS: Final = {
    "saturated": "Saturated load (never idle: capacity)",
    "recorded": "Recorded load (idle times kept: latency)",
}


def _as_before(rows: list[Row], first: list[Row]) -> bool:
    """The recorded load is the saturated one: nothing in the trace is ever idle."""
    return (rows[0].load, first[0].load) == ("recorded", "saturated") and [
        (row.cores, row.threads, row.throughput_ops_per_s) for row in rows
    ] == [(row.cores, row.threads, row.throughput_ops_per_s) for row in first]


def _pairs(p: Prediction, rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """(old kernel's row, new kernel's row) of one series, by core count."""
    old = {row.cores: row for row in rows if row.kernel == p.from_kernel}
    new = {row.cores: row for row in rows if row.kernel == p.to_kernel}
    return [(old[cores], new[cores]) for cores in sorted(new)]


def _thinned(pairs: list[tuple[Row, Row]]) -> list[tuple[Row, Row]]:
    if len(pairs) <= _LONGEST:
        return pairs
    last = len(pairs) - 1
    keep = sorted({round(i * last / (_LONGEST - 1)) for i in range(_LONGEST)})
    return [pairs[i] for i in keep]


def _threads(pairs: list[tuple[Row, Row]]) -> str:
    counts = {(new.threads, new.busy_threads) for _, new in pairs}
    if len({threads for threads, _ in counts}) > 1:
        return "as many threads as cores"
    threads, busy = counts.pop()
    return plural(threads, "thread") + (f" ({busy} busy)" if busy < threads else "")


def _load_block(p: Prediction, every: list[tuple[Row, Row]]) -> str:
    load = every[0][1].load
    pairs = _thinned(every)
    most = max(max(a.throughput_ops_per_s, b.throughput_ops_per_s) for a, b in pairs)
    group = f' of group "{p.group}"' if p.group else ""
    title = f"{_LOADS[load]}, {_threads(every)}{group}; operations per second:"
    rows = []
    for a, b in pairs:
        rows.append(
            (
                str(b.cores),
                rate(a.throughput_ops_per_s),
                rate(b.throughput_ops_per_s),
                times(b.speedup),
                span(b.speedup_lower, b.speedup_upper),
                b.basis,
                bar(a.throughput_ops_per_s, b.throughput_ops_per_s, most),
            )
        )
    head = ("cores", _short(p.from_kernel), _short(p.to_kernel), "faster", "range", "basis", "")
    lines = [fill(title), table(head, rows, left=(5, 6))]
    if len(pairs) < len(every):
        lines.append(f"({len(pairs)} of {len(every)} core counts; --format json has all)")
    stops = [s for s in p.saturation if (s.load, s.threads) == (load, every[0][1].threads)]
    if stops:
        lines.append(fill(" ".join(_saturation_words(s.kernel, s.cores, s.reason) for s in stops)))
    return "\n".join(lines)


def _pairs_of_times(a: float | None, b: float | None) -> str:
    return f"{duration(a)} → {duration(b)}"


def _delay_block(p: Prediction, pairs: list[tuple[Row, Row]], of: str) -> str:
    """How long operations take, and what CPU time they cost the kernel."""
    rows = [
        (
            str(b.cores),
            _pairs_of_times(a.delay_p50_ns, b.delay_p50_ns),
            _pairs_of_times(a.delay_p99_ns, b.delay_p99_ns),
            _pairs_of_times(a.delay_p999_ns, b.delay_p999_ns),
        )
        for a, b in _thinned(pairs)
    ]
    load = pairs[0][1].load
    title = f"How long an operation takes at the {load} load{of}, {p.from_kernel} → {p.to_kernel}:"
    return f"{fill(title)}\n{table(('cores', 'p50', 'p99', 'p99.9'), rows)}"


def _lock_block(p: Prediction, every: list[tuple[Row, Row]], of: str) -> str:
    """Share of the scaled group's thread time lost to each lock."""
    pairs = _thinned(every)
    most: dict[str, float] = {}
    for pair in pairs:
        for row in pair:
            for name, share in row.lock_share.items():
                most[name] = max(most.get(name, 0.0), share)
    locks = sorted((n for n in most if most[n] >= 0.005), key=lambda n: -most[n])[:3]
    if not locks:
        return "No lock takes half a percent of the threads' time."
    rows = [
        (
            str(b.cores),
            *(
                f"{percent(a.lock_share.get(n, 0.0))} → {percent(b.lock_share.get(n, 0.0))}"
                for n in locks
            ),
        )
        for a, b in pairs
    ]
    title = (
        f"Thread time lost waiting for locks at the {pairs[0][1].load} load{of}, "
        f"{p.from_kernel} → {p.to_kernel}:"
    )
    return f"{fill(title)}\n{table(('cores', *locks), rows)}"


def _short(kernel: str) -> str:
    return kernel if len(kernel) <= 14 else kernel[:13] + "…"


def _saturation_words(kernel: str, cores: int | None, reason: str | None) -> str:
    if cores is None:
        return f"{kernel} still gains at the last core count."
    why = {
        "threads": "each busy thread has one",
        "demand": "the recorded load asks for no more",
        "cores": "what runs on them costs more",
    }.get(reason or "", f"{reason} is the limit")
    return f"{kernel} stops gaining at {plural(cores, 'core')}: {why}."


def _who(p: Prediction) -> str:
    target = headline_row(p.rows, p.to_kernel)
    same = [
        r
        for r in p.rows
        if (r.cores, r.threads, r.load) == (target.cores, target.threads, target.load)
    ]
    lines = [fill(f"Who blocks whom on {place(target, p.rows)} (share of all waiting):")]
    rows = []
    for row in same:
        total = sum(charge.wait_ns for charge in row.blame)
        if row.lock_share and total and max(row.lock_share.values()) >= 0.001:
            for charge in row.blame[:4]:
                share = charge.wait_ns / total
                if share >= 0.02:
                    rows.append(
                        (
                            row.kernel,
                            charge.lock,
                            charge.holder_op,
                            charge.waiter_op,
                            percent(share),
                            bar(share, share, 1.0),
                        )
                    )
    if not rows:
        return ""
    head = ("kernel", "lock", "held by", "waiting", "share", "")
    lines.append(table(head, rows, left=(0, 1, 2, 3, 5)))
    return "\n".join(lines)


def _shares(p: Prediction) -> str:
    """Thread time that each process loses to locks, where there are several."""
    if len(p.processes) < 2:
        return ""
    kernels = list(dict.fromkeys((p.from_kernel, p.to_kernel)))

    def lost(process: ProcessShare, kernel: str) -> float:
        return sum(process.lock_share.get(kernel, {}).values())

    shown = p.processes[:_PROCESSES]
    rows = [
        (
            f"{process.name}{' *' if process.target else ''}",
            str(process.pid),
            str(process.threads),
            " → ".join(percent(lost(process, kernel)) for kernel in kernels),
        )
        for process in shown
    ]
    row = headline_row(p.rows, p.to_kernel)
    title = (
        f"Thread time that each process loses to locks on {place(row, p.rows)}, "
        f"{' → '.join(kernels)} (* most lock-relevant):"
    )
    head = ("process", "pid", "threads", "lost")
    return "\n".join([fill(title), table(head, rows, left=(0,)), *_others(p.processes)])


def _others(every: Sequence[object]) -> list[str]:
    more = len(every) - _PROCESSES
    return [f"({more} more; --format json has all)"] if more > 0 else []


def foreign_text(holders: Sequence[ForeignHolder]) -> list[str]:
    """Blocks about processes that take another one's mmap_lock; none where there are none."""
    if not holders:
        return []
    rows = [
        (
            f"{holder.name} ({holder.pid})",
            f"{holder.target} ({holder.target_pid})",
            holder.how,
            f"{holder.count:,}",
            duration(holder.hold_ns) if holder.hold_ns is not None else "-",
            duration(holder.wait_ns) if holder.wait_ns else "-",
        )
        for holder in holders[:_PROCESSES]
    ]
    head = ("process", "takes that of", "seen by", "count", "held", "waited")
    title = "Foreign holders: processes that take another one's mmap_lock, as recorded:"
    return ["\n".join([fill(title), table(head, rows, left=(0, 1, 2)), *_others(holders)])]


def _processes(processes: Sequence[Process]) -> str:
    """What each process did, where there are several."""
    if len(processes) < 2:
        return ""
    rows = []
    for process in processes[:_PROCESSES]:
        most = max(process.lock_wait_ns, key=lambda n: process.lock_wait_ns[n], default="")
        rows.append(
            (
                f"{process.name}{' *' if process.target else ''}",
                str(process.pid),
                str(process.threads),
                f"{process.ops:,}",
                duration(process.end_ns),
                duration(process.wait_ns) if process.wait_ns else "-",
                most,
            )
        )
    head = ("process", "pid", "threads", "ops", "done after", "wait", "most for")
    title = f"{len(processes)} processes, by waiting (* most lock-relevant):"
    return "\n".join([fill(title), table(head, rows, left=(0, 6)), *_others(processes)])


def _rates(replay: Replay) -> str:
    """Rates are those of the scaled group while it works, not of all until the end."""
    who = f'Group "{replay.group}"' if replay.group else "They"
    if replay.throughput_ops_per_s is None or replay.useful_work_rate is None:
        return "No rates."
    return (
        f"{who}: {rate(replay.throughput_ops_per_s)} operations/s, "
        f"{replay.useful_work_rate:.2f} CPUs of useful work, until the first busy thread is "
        f"through ({duration(replay.window_ns)})."
    )


def replay_text(replay: Replay) -> str:
    """The whole text of ``mmreplay replay``."""
    blocks = [
        fill(
            f"{replay.ops:,} operations of {plural(replay.threads, 'thread')} on "
            f"{plural(replay.cores, 'core')} of {replay.machine} under {replay.kernel}: all done "
            f"after {duration(replay.makespan_ns)}. {_rates(replay)}"
        ),
        fill(
            "Baseline drift: "
            + (
                "unknown"
                if replay.baseline_drift_ratio is None
                else f"{replay.baseline_drift_ratio:.2f}"
            )
            + f" ({replay.baseline_drift_note})."
        ),
    ]
    locks = []
    for name, lock in replay.locks.items():
        if "fallback" in lock:
            reasons = ", ".join(f"{why} {count:,}" for why, count in lock["fallback"].items())
            locks.append((name, f"{lock['read']:,}", "", "", "", "", f"marks {lock['mark']:,}"))
            if reasons:
                blocks.append(fill(f"Left the fast path: {reasons}."))
            continue
        if not any(lock.values()):
            continue
        locks.append(
            (
                name,
                f"{lock['read']:,}",
                f"{lock['write']:,}",
                duration(lock["read_wait_ns"]) if lock["read_wait_ns"] else "-",
                duration(lock["write_wait_ns"]) if lock["write_wait_ns"] else "-",
                duration(lock["read_hold_ns"] + lock["write_hold_ns"]),
                f"downgrades {lock['downgrade']:,}" if lock["downgrade"] else "",
            )
        )
    if locks:
        head = ("lock", "reads", "writes", "read wait", "write wait", "held", "")
        blocks.insert(2, "Locks, over all operations:\n" + table(head, locks, left=(0, 6)))
    ops = [
        (
            _NO_LOCK if entry["op"] == "none" else entry["op"],
            f"{entry['count']:,}",
            duration(entry["busy_ns"]),
            duration(entry["wait_ns"]) if entry["wait_ns"] else "-",
            duration(entry["delay_p50_ns"]),
            duration(entry["delay_p99_ns"]),
        )
        for entry in replay.by_op
    ]
    columns = ("operation", "count", "busy", "wait", "delay p50", "delay p99")
    blocks.append(table(columns, ops, left=(0,)))
    total = sum(charge["wait_ns"] for charge in replay.blame)
    if total:
        rows = [
            (c["holder_op"], c["waiter_op"], duration(c["wait_ns"]), percent(c["wait_ns"] / total))
            for c in replay.blame[:8]
        ]
        blocks.append(
            "Who blocks whom:\n" + table(("held by", "waiting", "wait", "share"), rows, left=(0, 1))
        )
    people = _processes(replay.processes)
    blocks += [people] if people else []
    blocks += foreign_text(replay.foreign_holders)
    if replay.notes:
        blocks.append("\n".join(bullet(note) for note in replay.notes))
    return "\n\n".join(blocks) + "\n"


__all__ = ["blame_share", "duration", "prediction_text", "rate", "replay_text"]
