"""The text of a learnt workload."""

from __future__ import annotations

import re
from typing import Any

from mmreplay.workloads.steps import size_bytes


def render(
    name: str,
    regions: dict[str, dict[str, Any]],
    files: dict[str, dict[str, Any]],
    setup: list[str],
    once: dict[int, list[str]],
    role_names: list[str],
    roles: dict[str, str],
    counts: dict[str, int],
    scaled: str,
) -> str:
    """A definition: regions and files that its steps name, and the roles with their chains."""
    chains = "\n".join(roles.values())
    used = set(re.findall(r'\bon = "([a-z0-9_-]+)"', chains))
    out = [
        "schema = 1",
        f'title = "Learnt from {name}"',
        f'stands_for = "the program that {name} is a recording of"',
        f'source = "learnt by mmreplay synth --from {name}"',
        'counts = "operations of the memory map"',
    ]
    before = [s for region in setup if region in used for s in _map(region, regions[region])]
    out.append(f"setup = [ {', '.join(before)} ]\n")
    for file, what in files.items():
        if any(regions[region].get("file") == file for region in used):
            size = what["size"] or f"{size_pages(regions[what['of']])} pages"
            out += [f"[files.{file}]", f'size = "{size}"', f'on = "{what["on"]}"\n']
    for region in sorted(used):
        out += _region(region, regions[region])
    for role in roles:
        number = role_names.index(role)
        many: Any = '"rest"' if role == scaled else counts[role]
        here = set(re.findall(r'\bon = "([a-z0-9_-]+)"', roles[role]))
        own = [r for r in sorted(here & set(once.get(number, []))) if r in regions]
        mapped = [s for region in own for s in _map(region, regions[region])]
        out += [f"[roles.{role}]", f"threads = {many}", f"once = [ {', '.join(mapped)} ]\n"]
    return "\n".join([*out, chains])


def _map(region: str, what: dict[str, Any]) -> list[str]:
    """Steps that map a region before the start, with what is there already."""
    steps = [step("mmap", on=region)]
    if what.get("filled"):
        steps.append(step("touch", on=region, order="scattered", units=what["filled"]))
    return steps


def step(do: str, **keys: Any) -> str:
    """A step as an inline table."""
    return _table({"do": do, **keys})


def choose(branches: list[tuple[float, list[str]]]) -> str:
    """The step that takes one of several lists of steps, by weight."""
    of = [_table({"weight": float(f"{weight:.6g}"), "steps": steps}) for weight, steps in branches]
    return _table({"do": "choose", "of": of})


def _table(keys: dict[str, Any]) -> str:
    return f"{{ {', '.join(f'{key} = {_value(value)}' for key, value in keys.items())} }}"


def _value(value: Any) -> str:
    if isinstance(value, list):  # of tables
        return f"[ {', '.join(value)} ]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _region(name: str, what: dict[str, Any]) -> list[str]:
    """One region's table."""
    passing = "pages" in what
    size = f"{size_pages(what)} pages" if passing else what["size"]
    out = [f"[regions.{name}]", f'size = "{size}"']
    if passing:
        out.append(f"count = {elements(what)}")
        words = {0: "none", 1: "r", 2: "w", 5: "rx", 7: "rwx"}
        prot = words.get(what["prot"], "rw")
        # what is faulted in must be accessible from the start
        out.append(f'prot = "{"rw" if what["faults"] else prot}"')
    else:
        out.append(f'per = "{what["per"]}"')
    for key in ("kind", "file"):
        if key in what:
            out.append(f'{key} = "{what[key]}"')
    if what.get("shared"):
        out.append("shared = true")
    out[-1] += "\n"
    return out


def touched_pages(region: dict[str, Any]) -> int:
    """Pages of a thread's own region that are faulted in.

    A chain does not know how many pages of a piece are still untouched, and touching one
    again would be no fault.  Where each piece takes one run of faults, its own size is
    enough; else there is room for more than any recorded piece had.
    """
    if "pages" not in region:
        return int(size_bytes(region["size"]) >> 12) - int(region.get("tail", 0))
    pages = int(region["pages"])
    one_run = region.get("runs", 0) <= 1.05 * region.get("maps", 0)
    if one_run and region.get("longest", 0) <= pages:
        return pages
    return pages * (8 if pages <= 1024 else 2 if pages <= 16384 else 1)


def size_pages(region: dict[str, Any]) -> int:
    """Pages of a passing region, with those at its end whose protection changes."""
    return touched_pages(region) + int(region.get("tail", 0))


def elements(region: dict[str, Any]) -> int:
    """How many pieces there may be at once: what was seen, and room to wander."""
    return int(min(2 * region["count"] + 2, 4096))
