"""The text of a learnt workload."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from mmreplay.workloads.steps import size_bytes

if TYPE_CHECKING:
    from mmreplay.workloads.learn_memory import Regions

PROT_WORDS: Final = {0: "none", 1: "r", 2: "w", 3: "rw", 5: "rx", 7: "rwx"}


def render(
    name: str,
    regions: Regions,
    role_names: list[str],
    roles: dict[str, str],
    counts: dict[str, int],
    phases: dict[str, dict[str, int]],
    scaled: str,
) -> str:
    """A definition: regions and files that its steps name, and the roles with their chains.

    ``counts`` of a role that others start is 0.
    """
    chains = "\n".join(roles.values())
    used = set(re.findall(r'\bon = "([a-z0-9_-]+)"', chains))
    tables = regions.tables
    out = [
        "schema = 1",
        f'title = "Learnt from {name}"',
        f'stands_for = "the program that {name} is a recording of"',
        f'source = "learnt by mmreplay synth --from {name}"',
        'counts = "operations of the memory map"',
    ]
    before = [s for region in regions.setup if region in used for s in _map(region, tables[region])]
    out.append(f"setup = [ {', '.join(before)} ]\n")
    for file, what in regions.files.items():
        if any(tables[region].get("file") == file for region in used):
            size = what["size"] or f"{size_pages(tables[what['of']])} pages"
            out += [f"[files.{file}]", f'size = "{size}"', f'on = "{what["on"]}"\n']
    if not used:
        used = {regions.lasting_own()}
    for region in sorted(used):
        out += _region(region, tables[region])
    for role in roles:
        number = role_names.index(role)
        if not counts[role]:
            out += [f"[roles.{role}]", "even = true\n"]
            continue
        many: Any = '"rest"' if role == scaled else counts[role]
        own = [r for r in sorted(used & set(regions.once.get(number, []))) if r in tables]
        mapped = [s for region in own for s in _map(region, tables[region])]
        out += [f"[roles.{role}]", f"threads = {many}", f"once = [ {', '.join(mapped)} ]"]
        out.append("even = true")
        if phases[role]:
            listed = ", ".join(f"{phase} = {n}" for phase, n in phases[role].items())
            out.append(f"phases = {{ {listed} }}")
        out[-1] += "\n"
    return "\n".join([*out, chains])


def _map(region: str, what: dict[str, Any]) -> list[str]:
    """Steps that map a region before the start, with what is there already."""
    if not what.get("filled"):
        mapped = [step("mmap", on=region)]
        if what.get("opened") and not what.get("prot", 3) and not what.get("bounded"):
            # where its protection is changed first is chance; faults need somewhere to be
            size = f"{what['opened']} pages"
            mapped.append(step("mprotect", on=region, size=size, prot="rw"))
        return mapped
    filled = [step("mmap", on=region, prot="rw")]
    filled.append(step("populate", on=region, size=f"{what['filled']} pages"))
    if PROT_WORDS.get(what["prot"], "rw") != "rw":
        filled.append(step("mprotect", on=region, prot=PROT_WORDS[what["prot"]]))
    return filled


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
    passing = "count" in what
    size = f"{size_pages(what)} pages" if passing else what["size"]
    out = [f"[regions.{name}]", f'size = "{size}"']
    if passing:
        out.append(f"count = {elements(what)}")
    if what["per"] == "process" or not passing:
        out.append(f'per = "{what["per"]}"')
    prot = PROT_WORDS.get(what.get("prot", 3), "rw")
    if passing and what["faults"] and prot == "none" and not what.get("flipped"):
        prot = "rw"
    if prot != "rw":
        out.append(f'prot = "{prot}"')
    for key in ("kind", "file"):
        if key in what:
            out.append(f'{key} = "{what[key]}"')
    if what.get("shared"):
        out.append("shared = true")
    if not what.get("reserve", True):
        out.append("reserve = false")
    out[-1] += "\n"
    return out


def region_pages(region: dict[str, Any]) -> int:
    """Pages of any region."""
    return size_pages(region) if "count" in region else int(size_bytes(region["size"]) >> 12)


def size_pages(region: dict[str, Any]) -> int:
    """Pages of a region that stands for pieces that come and go.

    A chain does not know how many pages of a piece are still untouched, and touching one
    again would be no fault.  Where each piece takes one run of faults, its own size is
    enough, and where something is done at its end it must be; else there is room for more
    than any recorded piece had.
    """
    pages = int(region["pages"])
    one_run = region.get("runs", 0) <= 1.05 * region.get("maps", 0)
    if region.get("exact") or (one_run and region.get("longest", 0) <= pages):
        return pages
    return pages * (8 if pages <= 1024 else 2 if pages <= 16384 else 1)


def elements(region: dict[str, Any]) -> int:
    """How many pieces there may be at once: what was seen, and room to wander."""
    alone = region["count"] <= 1 and region["per"] == "thread"
    return 1 if alone else int(min(2 * region["count"] + 2, 4096))
