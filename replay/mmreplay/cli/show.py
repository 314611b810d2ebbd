"""``mmreplay show``: what a trace holds and what it can support."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmreplay.errors import plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from mmreplay.trace.store import Trace
    from mmreplay.trace.summary import Summary

_MOST_GROUPS = 12
_MOST_LOST = 4
_LABELS = {
    "think_cpu": "thinking on CPU",
    "think_blocked": "blocked outside operations",
    "service": "operations: service",
    "wait": "operations: waiting for locks",
    "io": "operations: waiting for I/O",
    "preempted": "preempted",
    "unattributed": "could not be split",
}


@click.command("show", short_help="Say what a trace holds and what it can support.")
@click.argument("trace", type=click.Path(path_type=Path), metavar="TRACE")
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="What to print on stdout.",
)
@click.option(
    "--plan",
    "planned",
    is_flag=True,
    help="Also replay its address spaces, and say what had to be guessed.",
)
def command(trace: Path, style: str, planned: bool) -> None:
    """Say what TRACE (a NAME.mmt directory) holds, and what it can and cannot support.

    For each thing it cannot support, the recording that would add it is named.
    """
    from mmreplay.trace.store import Trace
    from mmreplay.trace.summary import require_usable, summarise

    opened = Trace.open(trace)
    require_usable(opened)
    summary = summarise(opened)
    if style == "json":
        found = summary.to_json()
        if planned:
            found["plan"] = _plan(opened)
        click.echo(json.dumps(found, indent=1))
        return
    if sys.stdout.isatty():
        from rich.console import Console

        from mmreplay.report.page import prose

        print_summary(Console(width=prose(), highlight=False, emoji=False), summary, trace.name)
    else:
        click.echo(render(summary, trace.name))
    if planned:
        _echo_plan(_plan(opened))


def _plan(trace: Trace) -> dict[str, Any]:
    """What replaying the address spaces gives, under the rules of the recorded kernel."""
    from mmreplay.address_space.guesses import guesses
    from mmreplay.address_space.planner import build_plan
    from mmreplay.address_space.rules import rules_for

    rules = rules_for(trace.header.kernel_release or "0.0")
    bundle = build_plan(trace, rules)
    plan = bundle.plan
    return {
        "rules": rules.name,
        "operations": plan.n_ops - plan.n_points,
        "address_spaces": plan.n_mms,
        "vmas": len(plan.vma_mm),
        "page_tables": len(plan.table_initial),
        "files": plan.n_files,
        "marks": len(plan.mark_vma),
        "waits": len(plan.dep_op),
        "counters": {name: count for count, name, _ in guesses(bundle)},
    }


def _echo_plan(found: dict[str, Any]) -> None:
    from mmreplay.address_space.guesses import WORDS
    from mmreplay.report.page import fill, table

    click.echo(f"\nAddress spaces, replayed by the rules {found['rules']}")
    click.echo(
        fill(
            f"{found['vmas']:,} VMAs in {plural(found['address_spaces'], 'address space')}, "
            f"{found['page_tables']:,} page tables, {plural(found['files'], 'file')}; "
            f"{found['marks']:,} marks, {found['waits']:,} waits between threads"
        )
    )
    rows = [(f"{count:,}", WORDS[name]) for name, count in found["counters"].items()]
    if rows:
        click.echo(table(None, rows, flow=1))


def render(summary: Summary, name: str) -> str:
    """The summary as plain text, as wide as the page, as it looks on a pipe."""
    from rich.console import Console

    from mmreplay.report.page import prose

    page = io.StringIO()
    print_summary(
        Console(file=page, width=prose(), highlight=False, emoji=False, color_system=None),
        summary,
        name,
    )
    # rich pads lines with blanks, which would end up in files and mails.
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def print_summary(console: Console, summary: Summary, name: str) -> None:
    """Print the summary on a rich console."""
    _print_head(console, summary, name)
    _print_groups(console, summary)
    _print_operations(console, summary)
    _print_faults(console, summary)
    _print_times(console, summary)
    _print_dependencies(console, summary)
    _print_correction(console, summary)
    _print_losses(console, summary)
    _print_support(console, summary)
    if summary.warnings:
        console.print("\n[bold]Warnings[/]")
        for line in summary.warnings:
            _bullet(console, "[yellow]![/]", line)


def _print_head(console: Console, summary: Summary, name: str) -> None:
    from rich.markup import escape

    header = summary.header
    machine = header.machine
    facts = [
        f"Linux {header.kernel_release}" if header.kernel_release else "kernel unknown",
        machine.cpu_model or "CPU unknown",
    ]
    if machine.cpus_online:
        facts.append(f"{machine.cpus_online} CPUs")
    console.print(f"[bold]{escape(name)}[/]  {span(header.span_ns)}", soft_wrap=True)
    console.print(escape(" · ".join(facts)), soft_wrap=True)
    vmas = sum(summary.vmas.values())
    console.print(
        f"{plural(summary.processes, 'process', 'processes')}, "
        f"{plural(summary.threads, 'thread')}, "
        f"{plural(summary.address_spaces, 'address space')}, "
        f"{plural(summary.operations, 'operation')}, {plural(vmas, 'known VMA')}"
    )


def _print_table(
    console: Console,
    title: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: Sequence[int] = (0,),
) -> None:
    from mmreplay.report.page import table

    console.print(f"\n[bold]{title}[/]")
    console.print(table(head, rows, left), markup=False, soft_wrap=True)


def _print_groups(console: Console, summary: Summary) -> None:
    rows = [
        (
            row.group or "(unnamed)",
            *(f"{n:,}" for n in (row.threads, row.processes, row.faults, row.writers)),
            f"{row.operations:,}",
        )
        for row in summary.groups[:_MOST_GROUPS]
    ]
    rest = summary.groups[_MOST_GROUPS:]
    if rest:
        rows.append(
            (
                f"({plural(len(rest), 'group')} more)",
                f"{sum(row.threads for row in rest):,}",
                "",
                f"{sum(row.faults for row in rest):,}",
                f"{sum(row.writers for row in rest):,}",
                f"{sum(row.operations for row in rest):,}",
            )
        )
    head = ("group", "threads", "processes", "faults", "maps", "all ops")
    _print_table(console, "Threads by group", head, rows)


def _print_operations(console: Console, summary: Summary) -> None:
    seconds = summary.header.span_ns / 1e9
    rows = []
    for row in summary.kinds:
        rate = f"{row.count / seconds:,.0f}" if seconds else "-"
        timed = f"{row.timed / row.count:.0%}" if row.count else "-"
        times = (span(value) for value in (row.service_ns, row.wait_ns, row.io_ns))
        rows.append((row.kind.replace("_", " "), f"{row.count:,}", rate, timed, *times))
    head = ("kind", "count", "per s", "timed", "service", "wait", "I/O")
    _print_table(console, "Operations", head, rows)


def _print_faults(console: Console, summary: Summary) -> None:
    rows = [
        (
            row.mode,
            row.fault_class,
            f"{row.count:,}",
            f"{row.write / row.count:.0%}" if row.count else "-",
        )
        for row in summary.faults
    ]
    _print_table(console, "Faults", ("mode", "class", "count", "by writing"), rows, (0, 1))


def _print_times(console: Console, summary: Summary) -> None:
    times = summary.time_ns
    known = sum(value or 0 for value in times.values())
    attributed = summary.attributed_ratio
    note = f": {attributed:.1%} of busy time attributed" if attributed is not None else ""
    rows = []
    for key, label in _LABELS.items():
        value = times[key]
        share = f"{value / known:.1%}" if value is not None and known else ""
        rows.append((label, "unknown" if value is None else span(value), share))
    _print_table(console, f"Time of all threads{note}", ("where", "time", "share"), rows)
    count = summary.header.counters
    if count.get("timesplit_waking_ns"):
        line = (
            f"of the waiting, {span(count['timesplit_waking_ns'])} is waking threads that slept "
            f"for a lock, after the recorded end of {plural(count['timesplit_wakings'], 'fault')}"
        )
        _bullet(console, "·", line)


def _print_dependencies(console: Console, summary: Summary) -> None:
    found = summary.dependencies
    if found.waits == 0:
        return
    line = (
        f"threads waited {plural(found.waits, 'time')} for others of the trace, "
        f"{span(found.waited_ns)} together"
    )
    if found.think_ns is not None:
        line += f"; {span(found.think_ns)} of blocked time stays think time"
    console.print("\n[bold]Dependencies[/]")
    _bullet(console, "·", line)


def _print_correction(console: Console, summary: Summary) -> None:
    probe, part = summary.header.probe, summary.correction
    if not probe.cost_ns or part["duration_removed_ns"] is None:
        return
    console.print("\n[bold]Probe effect[/]")
    taken = [
        f"{span(part[f'{name}_removed_ns'])} of {span(part[f'{name}_raw_ns'])} {label}"
        for name, label in (("duration", "in operations"), ("think", "of think time"))
        if part[f"{name}_removed_ns"] is not None
    ]
    _bullet(
        console,
        "·",
        f"an event cost {probe.cost_ns:,} ns ({probe.method}); taken off: {' and '.join(taken)}",
    )
    contended = part["contended_operations"]
    if contended:
        _bullet(
            console,
            "·",
            f"{plural(contended, 'operation')} contended, longer so than unrecorded: no "
            "subtraction mends that, predictions make their own contention",
        )


def _print_losses(console: Console, summary: Summary) -> None:
    lost = summary.header.lost_events
    console.print("\n[bold]Losses[/]")
    if lost == 0 and summary.gaps == 0:
        _bullet(console, "[green]✓[/]", "no event was lost")
    else:
        _bullet(
            console,
            "[red]✗[/]",
            f"{plural(lost, 'event')} lost ({summary.lost_ratio:.2%}) in "
            f"{plural(summary.gaps, 'gap')}, {span(summary.gap_ns)} together",
        )
        for line in _where_lost(summary):
            _bullet(console, "·", line)
    odd = {name: count for name, count in summary.header.counters.items() if count}
    odd = {name: count for name, count in odd.items() if not name.startswith("timesplit_")}
    if odd:
        listed = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in odd.items())
        _bullet(console, "·", f"counted by the import: {listed}")


def _where_lost(summary: Summary) -> list[str]:
    """Which events, and the largest gaps."""
    lines = []
    which = sorted(summary.header.events, key=lambda event: -event.lost)
    named = [f"{event.name} {event.lost:,}" for event in which if event.lost]
    if named:
        more = f" and {len(named) - _MOST_LOST} other kinds" if len(named) > _MOST_LOST else ""
        lines.append(f"of them {', '.join(named[:_MOST_LOST])}{more}")
    gaps = [
        ("all CPUs" if gap.cpu < 0 else f"CPU {gap.cpu}")
        + f" {gap.begin_ns / 1e9:.6f} to {gap.end_ns / 1e9:.6f} s ({gap.lost:,})"
        for gap in summary.largest_gaps
    ]
    if gaps:
        first = "largest: " if summary.gaps > len(gaps) else ""
        lines.append(f"{first}{', '.join(gaps)}")
    return lines


def _print_support(console: Console, summary: Summary) -> None:
    from mmreplay.trace.recording import record_command

    console.print("\n[bold]The trace supports[/]")
    for line in summary.supports:
        _bullet(console, "[green]✓[/]", line)
    if not summary.missing:
        return
    console.print("\n[bold]The trace lacks[/]")
    for row in summary.missing:
        _bullet(console, "[red]✗[/]", row.consequence)
        _bullet(console, " ", f"add {row.added_by}", style="dim")
    wakeups = any(row.capability == "wakeups" for row in summary.missing)
    console.print("\n[bold]A recording that has it all[/] (leave out events that perf refuses)")
    words = record_command(summary.header, wakeups=wakeups)
    for line in shell_lines(words, console.width - 4):
        console.print("  " + line, soft_wrap=True, markup=False)


def _bullet(console: Console, mark: str, text: str, style: str = "") -> None:
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=1)
    grid.add_column(overflow="fold")
    grid.add_row(mark, escape(text), style=style)
    console.print(Padding(grid, (0, 0, 0, 2)))


def shell_lines(words: list[str], width: int = 76) -> list[str]:
    """The command over several lines of at most ``width`` where words allow it."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) + 2 > width:
            lines[-1] += " \\"
            lines.append("  " + word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


def span(ns: int | None) -> str:
    """A time with the unit that fits: ``850 ns``, ``1.23 ms``, ``12.3 s``; ``-`` unknown."""
    if ns is None:
        return "-"
    if ns == 0:
        return "0"
    for unit, scale in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if abs(ns) >= scale:
            value = ns / scale
            digits = 0 if value >= 1000 else 1 if value >= 100 else 2
            return f"{value:,.{digits}f} {unit}"
    return f"{ns} ns"
