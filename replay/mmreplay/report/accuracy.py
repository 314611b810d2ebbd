"""How far simulation is from measurement, as text, data and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from typing import Any, Final

from mmreplay.errors import plural
from mmreplay.fit.accuracy import Compared, gain_summary, gains, groups, regimes, worst
from mmreplay.fit.floor import floors, repeated_gains
from mmreplay.report.page import bullet, fill, table
from mmreplay.report.text import rate

_LOAD: Final = {"n_le_c": "≤ CPUs", "n_gt_c": "> CPUs"}


def accuracy_data(points: Sequence[Compared], notes: Iterable[str]) -> dict[str, Any]:
    """As JSON: the contract's ``groups`` and ``gains``, and every point."""
    where = regimes(points)
    few = [p for p in points if p.load_group == "n_le_c"]
    return {
        "schema": 1,
        "groups": groups(points),
        "gains": gains(points),
        "gain_summary": gain_summary(gains(few))
        | {"repeated_within_10_percent": repeated_gains(few)},
        "floors": floors(points),
        "points": [point_row(p, where[p]) for p in points],
        "notes": list(notes),
    }


def point_row(point: Compared, regime: str) -> dict[str, Any]:
    """One point with everything that is said of it."""
    return asdict(point) | {
        "error": point.error,
        "load_group": point.load_group,
        "regime": regime,
    }


#: What the predictors of :func:`~mmreplay.fit.floor.floors` are.
FLOORS: Final = (
    "repetition: one run predicted by another run of the same point, which no prediction can be"
    " expected to beat by much. linear, unchanged: the measured rate of the fewest threads, times"
    " the number of threads or as it is; simulation: over the same points, without knowing it."
)


def gain_text(points: Sequence[Compared]) -> str:
    """How well the gains of points with threads ≤ CPUs are met, in a sentence."""
    found = gain_summary(gains(points))
    again = repeated_gains(points)
    text = (
        "What the per-VMA path gains over the mmap_lock path, threads ≤ CPUs:"
        f" {found['within_10_percent']:.0%} of {found['n']} within 10 % of the measured gain"
        f" ({found['no_gain_within_10_percent']:.0%} would be by saying that nothing is gained"
    )
    if again is not None:
        text += f", {again:.0%} by measuring both once more"
    return text + (
        f"); {found['wrong_sign']} of {found['clear']} gains that exceed their noise have the"
        " wrong sign."
    )


def accuracy_text(points: Sequence[Compared], notes: Iterable[str]) -> str:
    """For people."""
    trained = sum(p.trained for p in points)
    parts = []
    if trained:
        parts.append(
            fill(
                f"Careful: the profile was fitted on {trained} of these {len(points)} points; their"
                " errors say how well it fits, not how well it predicts."
            )
        )
    parts.append(
        table(
            ("machine", "path", "threads", "regime", "n", "median", "p90", "bias"),
            [
                (
                    row["machine"],
                    row["path"],
                    _LOAD[row["load_group"]],
                    row["regime"],
                    str(row["n"]),
                    f"{row['median_abs_error']:.0%}",
                    f"{row['p90_abs_error']:.0%}",
                    f"{row['bias']:+.0%}",
                )
                for row in groups(points)
            ],
            left=(0, 1, 2, 3),
        )
    )
    parts.append(
        table(
            ("error of", "machine", "path", "threads", "n", "median", "p90"),
            [
                (
                    row["predictor"],
                    row["machine"],
                    row["path"],
                    _LOAD[row["load_group"]],
                    str(row["n"]),
                    f"{row['median_abs_error']:.0%}",
                    f"{row['p90_abs_error']:.0%}",
                )
                for row in floors(points)
            ],
            left=(0, 1, 2, 3),
        )
    )
    parts.append(fill(FLOORS))
    few = [p for p in points if p.load_group == "n_le_c"]
    if gains(few):
        parts.append(fill(gain_text(few)))
    parts.append(
        table(
            ("furthest off", "path", "threads", "measured", "simulated", "ratio"),
            [
                (
                    p.workload,
                    p.path,
                    str(p.threads),
                    rate(p.measured),
                    rate(p.simulated),
                    f"{p.simulated / p.measured:.2f}",
                )
                for p in worst(points)
            ],
            left=(0, 1),
        )
    )
    said = [bullet(note) for note in notes]
    if said:
        parts.append("\n".join(said))
    return "\n\n".join(parts)


# -- the picture ------------------------------------------------------------------------------

_SIZE, _MARGIN = 560, 56
_COLOURS: Final = {"vma": "#1b6ca8", "mmap_lock": "#c4512d", "kernel": "#6b8e23"}


def accuracy_svg(points: Sequence[Compared], title: str) -> str:
    """Simulated over measured rates, both logarithmic; the band is ±10 %."""
    rates = [r for p in points for r in (p.measured, p.simulated)]
    low = math.floor(math.log10(min(rates)))
    high = math.ceil(math.log10(max(rates)))
    span = max(high - low, 1)

    def at(value: float) -> float:
        return (math.log10(value) - low) / span * (_SIZE - 2 * _MARGIN)

    def x(value: float) -> float:
        return _MARGIN + at(value)

    def y(value: float) -> float:
        return _SIZE - _MARGIN - at(value)

    least, most = 10.0**low, 10.0**high
    band = " ".join(
        f"{x(a):.1f},{y(b):.1f}"
        for a, b in (
            (least, least * 1.1),
            (most, most * 1.1),
            (most, most / 1.1),
            (least, least / 1.1),
        )
    )
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIZE} {_SIZE}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{_SIZE}" height="{_SIZE}" fill="white"/>',
        f'<polygon points="{band}" fill="#e8eef2"/>',
        f'<line x1="{x(least)}" y1="{y(least)}" x2="{x(most)}" y2="{y(most)}" stroke="#888"/>',
        f'<text x="{_SIZE / 2}" y="22" text-anchor="middle" font-size="14">{escape(title)}</text>',
        f'<text x="{_SIZE / 2}" y="{_SIZE - 12}" text-anchor="middle">'
        "measured, operations/s</text>",
        f'<text transform="translate(16 {_SIZE / 2}) rotate(-90)" text-anchor="middle">'
        "simulated, operations/s</text>",
    ]
    for exponent in range(low, high + 1):
        tick = 10.0**exponent
        label = f"10<tspan dy='-4' font-size='9'>{exponent}</tspan>"
        out += [
            f'<text x="{x(tick):.1f}" y="{_SIZE - _MARGIN + 18}" text-anchor="middle">'
            f"{label}</text>",
            f'<text x="{_MARGIN - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{label}</text>',
            f'<line x1="{x(tick):.1f}" y1="{y(least)}" x2="{x(tick):.1f}" y2="{y(most)}"'
            ' stroke="#eee"/>',
            f'<line x1="{x(least)}" y1="{y(tick):.1f}" x2="{x(most)}" y2="{y(tick):.1f}"'
            ' stroke="#eee"/>',
        ]
    for p in points:
        name = escape(
            f"{p.workload}, {p.path}, {plural(p.threads, 'thread')}: {p.simulated / p.measured:.2f}"
        )
        fill_ = _COLOURS.get(p.path, "#555") if p.load_group == "n_le_c" else "none"
        out.append(
            f'<circle cx="{x(p.measured):.1f}" cy="{y(p.simulated):.1f}" r="4" fill="{fill_}"'
            f' fill-opacity="0.7" stroke="{_COLOURS.get(p.path, "#555")}"><title>{name}</title>'
            "</circle>"
        )
    for k, (path, colour) in enumerate(_COLOURS.items()):
        if any(p.path == path for p in points):
            out.append(
                f'<circle cx="{_MARGIN + 14}" cy="{_MARGIN + 14 + 18 * k}" r="4" fill="{colour}"/>'
                f'<text x="{_MARGIN + 24}" y="{_MARGIN + 18 + 18 * k}">{path}</text>'
            )
    if any(p.load_group == "n_gt_c" for p in points):
        out.append(
            f'<text x="{_MARGIN + 24}" y="{_MARGIN + 72}">hollow: more threads than CPUs</text>'
        )
    return "\n".join([*out, "</svg>"]) + "\n"
