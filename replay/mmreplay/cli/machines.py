"""``mmreplay machines``: list and show machine profiles."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from mmreplay.cli.lazy import Group
from mmreplay.errors import plural

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


@click.group(cls=Group)
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
    from mmreplay.report.page import table

    lines = [
        (row["name"], str(row["cpus"]), "assumed" if row["assumed"] else "measured", row["title"])
        for row in rows
    ]
    click.echo(table(("machine", "CPUs", "basis", "what it is"), lines, left=(0, 2), flow=3))


@command.command()
@click.argument("machine")
@FORMAT
def show(machine: str, format_: str) -> None:
    """Show every number of MACHINE (a name, or the path of a .toml file)."""
    from mmreplay.machine import load_machine

    loaded = load_machine(machine, "NAME")
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
    from mmreplay.report.page import fill, table

    click.echo(fill(f"{loaded.name}: {loaded.title}"))
    parts = (
        plural(summary["sockets"], "socket"),
        plural(summary["last_level_caches"], "last-level cache"),
        plural(summary["cores"], "core"),
        plural(summary["cpus"], "CPU"),
    )
    click.echo(fill(f"{', '.join(parts)} (topology {loaded.topology_basis})"))
    for note in loaded.notes:
        click.echo(fill(f"note: {note}"))
    for heading, rows in numbers.items():
        lines = [
            (
                name,
                f"{row['value']:g}" + (f" ±{row['spread']:.2g}" if row["spread"] else ""),
                row["basis"],
                row["source"],
            )
            for name, row in rows.items()
        ]
        click.echo(f"\n{heading}")
        click.echo(table(("number", "value", "basis", "source"), lines, left=(0, 2), flow=3))
