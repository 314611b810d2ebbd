"""``mmreplay machines``: list and show machine profiles."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mmreplay.machine.profile import Machine

FORMAT = click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True
)
#: Fields of a Machine that are one number each, by heading.
SCALARS = {
    "cache lines": ("atomic_ns", "line_smt_ns", "line_llc_ns", "line_socket_ns", "line_cross_ns"),
    "waking and sleeping": (
        "waker_ns",
        "woken_ns",
        "sleep_ns",
        "switch_ns",
        "slice_ns",
        "spin_poll_ns",
    ),
    "shootdown": (
        "shootdown_base_ns",
        "shootdown_first_ns",
        "shootdown_next_ns",
        "shootdown_handler_ns",
    ),
    "limits": ("zero_bytes_per_ns",),
}


@click.group()
def command() -> None:
    """List and show machine profiles: topology and costs, each number with its origin."""


def _summary(machine: Machine) -> dict[str, Any]:
    return {
        "name": machine.name,
        "title": machine.title,
        "assumed": machine.assumed,
        "cpu_model": machine.cpu_model,
        "cpu_ids": list(machine.cpu_ids),
        "cpus": machine.n_cpus,
        "cores": int(machine.cpu_core.max()) + 1,
        "last_level_caches": int(machine.cpu_llc.max()) + 1,
        "sockets": int(machine.cpu_socket.max()) + 1,
        "topology_basis": machine.topology_basis,
        "sha256": machine.sha256,
    }


def _numbers(machine: Machine) -> dict[str, dict[str, dict[str, Any]]]:
    """Heading -> name -> value, basis, source, spread."""
    tables = {
        heading: {name: getattr(machine, name) for name in names}
        for heading, names in SCALARS.items()
    }
    tables["costs"] = machine.costs
    tables["sleeps"] = machine.sleeps
    return {
        heading: {
            name: {"value": n.value, "basis": n.basis, "source": n.source, "spread": n.spread}
            for name, n in table.items()
        }
        for heading, table in tables.items()
    }


@command.command("list")
@FORMAT
def list_(format_: str) -> None:
    """Name the shipped profiles."""
    from mmreplay.machine import list_machines, load_machine

    rows = [_summary(load_machine(name)) for name in list_machines()]
    if format_ == "json":
        click.echo(json.dumps({"schema": 1, "machines": rows}, indent=2))
        return
    for row in rows:
        basis = "assumed" if row["assumed"] else "measured"
        click.echo(f"{row['name']:20} {row['cpus']:4} CPUs  {basis:9} {row['title']}")


@command.command()
@click.argument("machine")
@FORMAT
def show(machine: str, format_: str) -> None:
    """Show every number of MACHINE (a name, or the path of a .toml file)."""
    from mmreplay.machine import load_machine

    loaded = load_machine(machine)
    summary, numbers = _summary(loaded), _numbers(loaded)
    if format_ == "json":
        document = {
            "schema": 1,
            **summary,
            "notes": list(loaded.notes),
            "numbers": numbers,
            "frequency": [{"active_cores": n, "speed": s} for n, s in loaded.frequency],
        }
        click.echo(json.dumps(document, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"[bold]{loaded.name}[/bold]  {loaded.title}")
    console.print(
        f"{summary['sockets']} sockets, {summary['last_level_caches']} last-level caches, "
        f"{summary['cores']} cores, {summary['cpus']} CPUs (topology {loaded.topology_basis})"
    )
    for note in loaded.notes:
        console.print(f"note: {note}")
    for heading, rows in numbers.items():
        table = Table(title=heading, title_justify="left", box=None, pad_edge=False)
        table.add_column("number")
        table.add_column("value", justify="right")
        table.add_column("basis")
        table.add_column("source")
        for name, row in rows.items():
            spread = f" ±{row['spread']:.2g}" if row["spread"] else ""
            table.add_row(name, f"{row['value']:g}{spread}", row["basis"], row["source"])
        console.print(table)
