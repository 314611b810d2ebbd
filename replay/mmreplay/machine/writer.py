"""Writes a :class:`Machine` as a profile file (the form that :mod:`.loader` reads)."""

from __future__ import annotations

import json
from typing import Final

from mmreplay.machine.loader import SCHEMA, LimitsFile, LinesFile, ShootdownFile, WakeFile
from mmreplay.machine.profile import Machine, Number, Topology

#: Sections whose numbers are fields of a Machine.
SECTIONS: Final = {
    "lines": tuple(LinesFile.model_fields),
    "wake": tuple(WakeFile.model_fields),
    "shootdown": tuple(ShootdownFile.model_fields),
    "limits": tuple(LimitsFile.model_fields),
}


def profile_text(machine: Machine, topology: Topology, origin: str, comment: str = "") -> str:
    """The profile of ``machine`` as TOML.

    ``topology`` with its ``origin`` (measured, from whatever it was read); ``comment``: lines
    for the head of the file.
    """
    words = [f"# {line}".rstrip() for line in comment.splitlines()]
    words += [
        f"schema = {SCHEMA}",
        f"title = {_text(machine.title)}",
        f"assumed = {str(machine.assumed).lower()}",
        f"cpu_model = {_text(machine.cpu_model)}",
        f"cpu_ids = {_texts(machine.cpu_ids)}",
        f"notes = {_texts(machine.notes)}",
    ]
    if machine.wakes_stay:
        words.append("wakes_stay = true")
    if machine.fitted_on:
        words.append(f"fitted_on = {_texts(machine.fitted_on)}")
    words += ["", "[topology]"]
    for name in ("sockets", "caches_per_socket", "cores_per_cache", "threads_per_core"):
        words.append(_line(name, Number(getattr(topology, name), "measured", origin)))
    for section, numbers in (("costs", machine.costs), ("sleeps", machine.sleeps)):
        words += ["", f"[{section}]", *(_line(name, n) for name, n in numbers.items())]
    for section, names in SECTIONS.items():
        words += ["", f"[{section}]", *(_line(name, getattr(machine, name)) for name in names)]
    for active, speed in machine.frequency:
        words += ["", "[[frequency]]", f"active_cores = {active}"]
        words.append(
            _line("speed", Number(speed, machine.frequency_basis, machine.frequency_source))
        )
    return "\n".join(words) + "\n"


def _line(name: str, number: Number) -> str:
    value = f"{number.value:.0f}" if number.value >= 1000 else f"{number.value:.4g}"
    spread = f", spread = {number.spread:.3g}" if number.spread else ""
    source = _text(number.source)
    return f'{name} = {{ value = {value}, basis = "{number.basis}"{spread}, source = {source} }}'


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _texts(texts: tuple[str, ...]) -> str:
    return "[" + ", ".join(map(_text, texts)) + "]"
