"""The answer in words: what a prediction says, before any table."""

from __future__ import annotations

from collections.abc import Sequence

from mmreplay.errors import plural
from mmreplay.predict.gains import HAND_OVER
from mmreplay.predict.prediction import Blame, Drift, Row

#: Speed-ups closer to 1 than this are called no difference.
_SAME = 0.015
#: Those of the two loads further apart than this are both told, where threads slept this much.
_APART = 0.05
MUCH_SLEEP = 0.1


def times(value: float | None) -> str:
    """A ratio, with as many decimals as its range has: ``1.04×``, ``2.3×``, ``12×``."""
    if value is None:
        return "?"
    if value >= 9.95:
        return f"{value:.0f}×"
    near = f"{value:.2f}" if value < 1.995 else f"{value:.1f}"
    return f"{near}×"


def percent(share: float | None) -> str:
    """``63 %``, ``0.4 %``, ``-`` for nothing."""
    if share is None or share == 0:
        return "-"
    if share < 0.0005:
        return "<0.1 %"
    digits = 1 if share < 0.0995 else 0
    return f"{100 * share:.{digits}f} %"


def span(low: float | None, high: float | None) -> str:
    """A range of ratios with equal decimals, ``1.74–2.10``; empty where there is none."""
    if low is None or high is None:
        return ""
    digits = 0 if low >= 9.95 else 2 if low < 1.995 else 1
    return f"{low:.{digits}f}–{high:.{digits}f}"


def headline_row(rows: Sequence[Row], to_kernel: str) -> Row:
    """The row that the first sentence is about.

    Of the target's rows at the highest load and thread count, the one with the most cores that
    still matter: as many as there are busy threads, and more as long as they change something
    (the last busy thread gets its own, or threads that are not busy get out of the way).
    """
    mine = _strongest([row for row in rows if row.kernel == to_kernel])
    at = max((i for i, row in enumerate(mine) if row.cores <= row.busy_threads), default=0)
    while at + 1 < len(mine) and not _alike(mine[at], mine[at + 1]):
        at += 1
    return mine[at]


def _alike(a: Row, b: Row) -> bool:
    if abs(a.throughput_ops_per_s - b.throughput_ops_per_s) > _SAME * a.throughput_ops_per_s:
        return False
    if a.speedup is None or b.speedup is None:
        return True
    return abs(a.speedup - b.speedup) <= _SAME * a.speedup


def series(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that belong into one table: by load, and by thread count where cores repeat.

    Saturated load first, then ascending thread counts.
    """
    loads = sorted({row.load for row in rows}, reverse=True)  # saturated before recorded
    found = []
    for load in loads:
        mine = [row for row in rows if row.load == load]
        one_each = len({(row.cores, row.threads) for row in mine}) == len({r.cores for r in mine})
        if one_each:
            found.append(mine)
        else:
            for threads in sorted({row.threads for row in mine}):
                found.append([row for row in mine if row.threads == threads])
    return found


def place(row: Row, rows: Sequence[Row]) -> str:
    """``8 cores``, and of how many threads where ``rows`` have several thread counts a core."""
    several = sum(mine[0].load == row.load for mine in series(rows)) > 1
    return plural(row.cores, "core") + (f" with {plural(row.threads, 'thread')}" if several else "")


def _strongest(rows: Sequence[Row]) -> list[Row]:
    """The series of the highest load and thread count."""
    found = series(rows)
    first = found[0][0].load
    return max((s for s in found if s[0].load == first), key=lambda s: s[-1].threads)


def headline(
    rows: Sequence[Row],
    from_kernel: str,
    to_kernel: str,
    drift: Drift,
    asleep: float = 0.0,
    few: int | None = None,
) -> str:
    """The prediction in two or three sentences.

    ``asleep``: share of the busy threads' time in which they slept for who knows what;
    ``few``: operations of the recording, where they are too few to tell much.
    """
    row = headline_row(rows, to_kernel)
    mine = _strongest([r for r in rows if r.kernel == to_kernel])
    before = next(
        r
        for r in rows
        if r.kernel == from_kernel
        and (r.cores, r.threads, r.load) == (row.cores, row.threads, row.load)
    )
    parts = []
    if drift.ratio is not None and not drift.trusted:
        parts.append(f"Not to be trusted (baseline drift {drift.ratio:.2f}):")
    if few is not None:
        parts.append(f"From only {plural(few, 'operation')}:")
    parts.append(f"On {place(row, rows)}, {_claim(row, from_kernel)}{_range(row)}")
    others = [r for r in mine if r.cores < row.cores]
    if others and row.speedup is not None:
        other = next((r for r in others if r.basis == "measured"), None) or others[0]
        same = other.speedup is not None and abs(other.speedup - 1) < _SAME
        parts[-1] += f"; at {plural(other.cores, 'core')} " + (
            "no faster" if same else times(other.speedup)
        )
    parts[-1] += "."
    parts.append(_limit(before, from_kernel))
    if before.limiting_lock is not None:
        parts.append(_afterwards(row))
    parts.append(_with_sleep(row, rows, asleep))
    return " ".join(part for part in parts if part)


def _claim(row: Row, from_kernel: str) -> str:
    if row.speedup is None:
        return f"{row.kernel} against {from_kernel} cannot be told"
    if abs(row.speedup - 1) < _SAME:
        return f"{row.kernel} would run this program no faster than {from_kernel} "
    if row.speedup > 1:
        return f"{row.kernel} would run this program {times(row.speedup)} as fast as {from_kernel} "
    return f"{row.kernel} would run this program slower, {times(row.speedup)} of {from_kernel}, "


def _range(row: Row) -> str:
    if row.speedup is None:
        return ""
    limits = span(row.speedup_lower, row.speedup_upper)
    return f"({limits}, {row.basis})" if limits else f"({row.basis})"


def _limit(row: Row, kernel: str) -> str:
    if row.limiting_lock is None:
        return f"No lock of the memory map limits {kernel} there."
    text = (
        f"What limits {kernel} there: {row.limiting_lock} takes "
        f"{percent(row.lock_share[row.limiting_lock])} of the threads' time"
    )
    top = blame_share(row.blame, row.limiting_lock)
    if top:
        holder, share = top[0]
        who = "between holders (hand-over)" if holder == HAND_OVER else f"while {holder} holds it"
        text += f", {percent(share)} of that {who}"
    return text + "."


def _afterwards(row: Row) -> str:
    if row.limiting_lock is None:
        return f"With {row.kernel} no lock does."
    return (
        f"With {row.kernel}, {row.limiting_lock} takes "
        f"{percent(row.lock_share[row.limiting_lock])}."
    )


def _with_sleep(row: Row, rows: Sequence[Row], asleep: float) -> str:
    """Where sleep that may be waits for each other decides, what it is with that sleep."""
    kept = next(
        (
            r
            for r in rows
            if (r.kernel, r.cores, r.threads) == (row.kernel, row.cores, row.threads)
            and r.load == "recorded" != row.load
        ),
        None,
    )
    if asleep < MUCH_SLEEP or kept is None or row.speedup is None or kept.speedup is None:
        return ""
    if abs(kept.speedup / row.speedup - 1) < _APART:
        return ""
    then = "no faster" if abs(kept.speedup - 1) < _SAME else times(kept.speedup)
    return (
        f"That is if its threads never slept; with the sleep of the recording ({percent(asleep)} "
        f"of their time, what for was not recorded) it is {then}."
    )


def blame_share(charges: Sequence[Blame], lock: str) -> list[tuple[str, float]]:
    """Holders of ``lock`` with their share of the wait on it, largest first."""
    held: dict[str, int] = {}
    for charge in charges:
        if charge.lock == lock:
            held[charge.holder_op] = held.get(charge.holder_op, 0) + charge.wait_ns
    total = sum(held.values())
    if not total:
        return []
    return sorted(((op, ns / total) for op, ns in held.items()), key=lambda item: -item[1])
