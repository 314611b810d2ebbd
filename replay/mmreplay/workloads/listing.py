"""A workload and its loop program in words, and as plain data."""

from __future__ import annotations

from typing import Any

from mmreplay.errors import plural
from mmreplay.workloads.definition import Workload
from mmreplay.workloads.program import Field, FileField, Kind, Op, Program, SlotField, ThreadField

#: Columns that say nothing at these values.
_SILENT = {"REGION": -1, "AT": -1, "FILE": -1}


def describe(workload: Workload) -> dict[str, Any]:
    """The definition as plain data: what ``workloads show --format json`` prints."""
    return {
        "name": workload.name,
        "title": workload.title,
        "stands_for": workload.stands_for,
        "source": workload.source,
        "counts": workload.counts,
        "roles": {
            name: {"threads": role.threads, "steps": len(role.once) + len(role.loop)}
            for name, role in workload.roles.items()
        },
        "regions": {
            name: {
                "size_bytes": region.size,
                "per": region.per,
                "count": region.count,
                "kind": region.kind,
                "file": region.file,
                "shared": region.shared,
            }
            for name, region in workload.regions.items()
        },
        "files": {
            name: {"size_bytes": file.size, "on": file.on, "per": file.per}
            for name, file in workload.files.items()
        },
    }


def program_data(program: Program) -> dict[str, Any]:
    """What a compiled program consists of, as plain data."""
    return {
        "threads": program.started,
        "programs": len(program.threads),
        "slots": len(program.slots),
        "files_bytes": int(program.files[:, FileField.BYTES].sum()),
        "touched_bytes": program.touched_bytes,
        "code": [
            {"program": number, "role": _role(program, number), "lines": _lines(program, number)}
            for number in _distinct(program)
        ],
    }


def _distinct(program: Program) -> list[int]:
    """The first program of each role; main first."""
    first: dict[int, int] = {}
    for number, row in enumerate(program.threads):
        first.setdefault(int(row[ThreadField.ROLE]), number)
    return list(first.values())


def _role(program: Program, number: int) -> str:
    role = int(program.threads[number, ThreadField.ROLE])
    return "main" if role < 0 else program.roles[role]


def _lines(program: Program, number: int) -> list[str]:
    row = program.threads[number]
    lines = []
    for at in range(int(row[ThreadField.FIRST]), int(row[ThreadField.END])):
        columns = program.code[at]
        said = [
            f"{field.name.lower()}={int(columns[field])}"
            for field in Field
            if field not in (Field.OP, Field.SOURCE)
            and columns[field] != _SILENT.get(field.name, 0)
        ]
        lines.append(f"{at:5}  {Op(int(columns[Field.OP])).name.lower():10} {' '.join(said)}")
    return lines


def text(workload: Workload, program: Program | None = None) -> str:
    """For people: what it is, and with ``program`` its instructions (one thread of each role)."""
    out = [
        f"{workload.name}: {workload.title}",
        f"stands for  {workload.stands_for}",
        f"source      {workload.source}",
        f"counts      {workload.counts}",
    ]
    for name, role in workload.roles.items():
        many = "started by others" if role.threads is None else f"threads: {role.threads}"
        out.append(f"role        {name} ({many})")
    for name, region in workload.regions.items():
        what = region.kind if region.file is None else f"file {region.file}"
        times = f"{region.count} × " if region.count > 1 else ""
        shared = ", shared" if region.shared else ""
        out.append(
            f"region      {name}: {times}{_bytes(region.size)} per {region.per}, {what}{shared}"
        )
    if program is not None:
        slots = int((program.slots[:, SlotField.PROCESS] == 0).sum())
        out.append(
            f"compiled    {plural(program.started, 'thread')}, {slots:,} pieces of memory,"
            f" at most {_bytes(program.touched_bytes)} made present"
        )
        kinds = program.threads[:, ThreadField.KIND]
        for number in _distinct(program):
            kind = Kind(int(kinds[number])).name.lower()
            out.append(f"program {number} ({_role(program, number)}, {kind})")
            out += _lines(program, number)
    return "\n".join(out)


def _bytes(count: int) -> str:
    for unit, scale in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << scale:
            return f"{count / (1 << scale):.4g} {unit}"
    return f"{count} B"
