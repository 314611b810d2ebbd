"""Write docs/accuracy.md and docs/accuracy.svg: ``mmreplay accuracy`` of the shipped runs.

python benchmarks/write_accuracy.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "replay"))

from mmreplay.fit import api
from mmreplay.fit.accuracy import Compared, groups, worst
from mmreplay.fit.floor import floors
from mmreplay.hardware.runs import read_runs
from mmreplay.report.accuracy import FLOORS, accuracy_svg, gain_text

DOCS = Path(__file__).resolve().parent.parent / "docs"
HEAD = """# Accuracy

How far simulated throughput is from measured, for every run that ships with the project. Each
machine has two profiles, each fitted on every other workload ([calibration](calibration.md)); a
workload is judged by the profile that was *not* fitted on it. Written by
`benchmarks/write_accuracy.py`; `mmreplay accuracy` prints the same.

"""


def percent(value: float) -> str:
    return f"{value:.0%}"


def machines() -> list[str]:
    lines = ["| machine | what | measured |", "|---|---|---|"]
    for name, path in api.shipped_runs():
        runs = read_runs(path)
        facts = runs.machine
        lines.append(
            f"| {name} | {facts['cpus_allowed']} CPUs, {facts['cpu_model']} ({facts['cpu_id']}),"
            f" Linux {facts['kernel']}, hypervisor {facts['hypervisor']} | {runs.created},"
            f" {len(runs.rows)} runs |"
        )
    return lines


LOADS = {"n_le_c": "≤ CPUs", "n_gt_c": "> CPUs"}


def tables(points: list[Compared]) -> list[str]:
    lines = [
        "", "| machine | path | threads | regime | points | median error | p90 | bias |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in groups(points):
        load = LOADS[row["load_group"]]
        lines.append(
            f"| {row['machine']} | {row['path']} | {load} | {row['regime']} | {row['n']} |"
            f" {percent(row['median_abs_error'])} | {percent(row['p90_abs_error'])} |"
            f" {row['bias']:+.0%} |"
        )
    lines += [
        "", gain_text([p for p in points if p.load_group == "n_le_c"]),
        "", "## Beside what", "",
        "| error of | machine | path | threads | n | median | p90 |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in floors(points):
        load = LOADS[row["load_group"]]
        lines.append(
            f"| {row['predictor']} | {row['machine']} | {row['path']} | {load} | {row['n']} |"
            f" {percent(row['median_abs_error'])} | {percent(row['p90_abs_error'])} |"
        )
    lines += [
        "", FLOORS,
        "", "## Furthest off",
        "",
        "| workload | path | threads | measured/s | simulated/s | ratio | spread of the runs |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for p in worst(points):
        lines.append(
            f"| {p.workload} | {p.path} | {p.threads} | {p.measured:,.0f} | {p.simulated:,.0f} |"
            f" {p.simulated / p.measured:.2f} | {percent(p.spread)} |"
        )
    return lines


def main() -> None:
    points, notes = api.shipped_accuracy()
    if not points:
        sys.exit("no shipped runs")
    lines = [*machines(), *tables(points), "", "![simulated over measured rates](accuracy.svg)"]
    if notes:
        lines += ["", *[f"* {note}" for note in notes]]
    (DOCS / "accuracy.md").write_text(HEAD + "\n".join(lines) + "\n")
    names = ", ".join(sorted({p.machine for p in points}))
    (DOCS / "accuracy.svg").write_text(accuracy_svg(points, f"Simulated and measured: {names}"))


if __name__ == "__main__":
    main()
