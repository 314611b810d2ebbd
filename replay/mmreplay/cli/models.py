"""``mmreplay models``: list, show and check locking models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from mmreplay.cli.lazy import Group
from mmreplay.errors import UserError

_FORMAT = click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Text for people, JSON for programs.",
)


@click.group(cls=Group, help="List, show, check and compare locking models.")
def command() -> None:
    pass


def describe(model: Any) -> dict[str, Any]:
    """One model as plain data: names, locks, operations, costs, sources."""
    from mmreplay.locking.view import describe as view

    return view(model)


@command.command("list")
@_FORMAT
def list_(format_: str) -> None:
    """The shipped locking models."""
    from mmreplay.locking import list_models

    rows = [
        {
            "name": model.name,
            "kernel": ".".join(map(str, model.kernel)) if model.kernel else None,
            "title": model.title,
            "locks": list(model.locks),
            "vma_rules": model.vma_rules,
        }
        for model in list_models()
    ]
    if format_ == "json":
        click.echo(json.dumps({"schema": 1, "models": rows}, indent=2))
        return
    from mmreplay.report.page import table

    lines = [(str(row["name"]), str(row["kernel"] or "design"), str(row["title"])) for row in rows]
    click.echo(table(("model", "from", "what it is"), lines, left=(0, 1), flow=2))


@command.command()
@click.argument("model")
@click.option("--code", is_flag=True, help="Also print the assembled steps.")
@_FORMAT
def show(model: str, code: bool, format_: str) -> None:
    """What MODEL (a name, a kernel release or a .toml file) consists of."""
    from mmreplay.locking import resolve_kernel
    from mmreplay.locking.view import listing, text

    loaded, note = resolve_kernel(model)
    if note:
        click.echo(note, err=True)
    if format_ == "json":
        data = describe(loaded)
        if code:
            data["code"] = listing(loaded)
        click.echo(json.dumps(data, indent=2))
        return
    from mmreplay.report.page import fold

    click.echo(fold(text(loaded)))
    if code:
        click.echo("\n".join(listing(loaded)))


@command.command()
@click.argument("before")
@click.argument("after")
@_FORMAT
def diff(before: str, after: str, format_: str) -> None:
    """What changes from model BEFORE to model AFTER, operation by operation, in words."""
    from mmreplay.locking import resolve_kernel
    from mmreplay.locking.diff import as_data

    pair = []
    for name in (before, after):
        model, note = resolve_kernel(name)
        if note:
            click.echo(note, err=True)
        pair.append(model)
    changes = changes_between(*pair)
    if format_ == "json":
        click.echo(json.dumps(as_data(pair[0], pair[1], changes), indent=2))
        return
    from mmreplay.report.page import fold

    for change in changes:
        click.echo(fold(change.text))
    if not changes:
        click.echo(f"{pair[0].name} and {pair[1].name} lock alike")


def changes_between(before: Any, after: Any) -> list[Any]:
    """The models' differences, those of their VMA rules written out."""
    from mmreplay.address_space.rules import KEYS, load_rules
    from mmreplay.locking.diff import Change
    from mmreplay.locking.diff import diff as compare

    changes = compare(before, after)
    if before.vma_rules == after.vma_rules:
        return changes
    old, new = (load_rules(model.vma_rules) for model in (before, after))
    rules = []
    for key, value in new.values:
        was = dict(old.values)[key]
        if was != value:
            words = KEYS[key].words or ()
            names = [words[v] if words else str(v) for v in (was, value)]
            rules.append(Change("", "vma_rules", names[0], f"VMA rule {key} is {names[1]}"))
    at = next(i for i, change in enumerate(changes) if change.about == "vma_rules")
    return [*changes[:at], *rules, *changes[at + 1 :]]


@command.command()
@click.argument("files", nargs=-1, required=True)
@_FORMAT
def check(files: Sequence[str], format_: str) -> None:
    """Check model FILES: every mistake with file and line; exit 2 if there is one."""
    from mmreplay.locking import check_file

    results = []
    for name in files:
        try:
            model, problems = check_file(name)
            found = [{"file": p.file, "line": p.line, "problem": p.text} for p in problems]
        except UserError as error:  # no such file, unknown model
            model, found = None, [{"file": name, "line": 0, "problem": error.problem}]
        results.append((name, model, found))
    if format_ == "json":
        rows = [
            {
                "file": name,
                "ok": not found,
                "model": model.name if model else None,
                "problems": found,
            }
            for name, model, found in results
        ]
        click.echo(json.dumps({"schema": 1, "files": rows}, indent=2))
    else:
        for name, model, found in results:
            if model is not None:
                steps = len(model.code)
                click.echo(f"{name}: ok ({model.name}, {len(model.locks)} locks, {steps} steps)")
            for p in found:
                where = f"{p['file']}:{p['line']}" if p["line"] else p["file"]
                click.echo(f"{where}: {p['problem']}", err=True)
    mistakes = sum(len(found) for _, _, found in results)
    if mistakes:
        noun = "mistake" if mistakes == 1 else "mistakes"
        raise UserError(
            f"{mistakes} {noun} in {sum(bool(f) for _, _, f in results)} of {len(files)} files"
        )
