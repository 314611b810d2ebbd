"""Reads ``models/machines/NAME.toml`` into a :class:`Machine`.

Every number of a profile is a table ``{ value, basis, source }`` with an optional
``spread``; nothing has a default, so a profile cannot be silently incomplete.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mmreplay.errors import UserError, closest
from mmreplay.machine.profile import Machine, Number, Topology
from mmreplay.machine.topology import MAX_CORES, cpu_arrays
from mmreplay.resources import models_dir

SCHEMA: Final = 1
#: The profile that stands in for a machine we have no profile of.
GENERIC: Final = "generic-server"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NumberFile(_Strict):
    value: float
    basis: Literal["measured", "fitted", "assumed"]
    source: str = Field(min_length=1)
    spread: float = 0.0

    @field_validator("value", mode="before")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{value!r} is not a number")
        if not math.isfinite(value) or value <= 0:
            raise ValueError(f"{value} is not a positive finite number")
        return value

    @field_validator("spread")
    @classmethod
    def _spread(cls, value: float) -> float:
        if not math.isfinite(value) or not 0 <= value <= 3:
            raise ValueError(f"spread {value} is not between 0 and 3")
        return value

    def number(self) -> Number:
        return Number(float(self.value), self.basis, self.source, self.spread)


class TopologyFile(_Strict):
    sockets: NumberFile
    caches_per_socket: NumberFile
    cores_per_cache: NumberFile
    threads_per_core: NumberFile

    @model_validator(mode="after")
    def _whole(self) -> TopologyFile:
        total = 1
        for name in type(self).model_fields:
            value = getattr(self, name).value
            if value != int(value):
                raise ValueError(f"{name}: {value} is not a whole number")
            total *= int(value)
        if total > MAX_CORES:
            raise ValueError(f"{total} CPUs are more than {MAX_CORES}")
        return self


class LinesFile(_Strict):
    atomic_ns: NumberFile
    line_smt_ns: NumberFile
    line_llc_ns: NumberFile
    line_socket_ns: NumberFile
    line_cross_ns: NumberFile


class WakeFile(_Strict):
    waker_ns: NumberFile
    woken_ns: NumberFile
    sleep_ns: NumberFile
    switch_ns: NumberFile
    slice_ns: NumberFile
    spin_poll_ns: NumberFile


class ShootdownFile(_Strict):
    shootdown_base_ns: NumberFile
    shootdown_first_ns: NumberFile
    shootdown_next_ns: NumberFile
    shootdown_handler_ns: NumberFile


class LimitsFile(_Strict):
    zero_bytes_per_ns: NumberFile


class FrequencyFile(_Strict):
    """Speed relative to one busy core, while at most ``active_cores`` are busy."""

    active_cores: int = Field(ge=1, le=MAX_CORES)
    speed: NumberFile


class ProfileFile(_Strict):
    schema_: Literal[1] = Field(alias="schema")
    title: str = Field(min_length=1)
    assumed: bool
    cpu_model: str
    cpu_ids: tuple[str, ...]
    notes: tuple[str, ...] = ()
    topology: TopologyFile
    costs: dict[str, NumberFile]
    sleeps: dict[str, NumberFile]
    lines: LinesFile
    wake: WakeFile
    shootdown: ShootdownFile
    limits: LimitsFile
    frequency: tuple[FrequencyFile, ...] = ()
    wakes_stay: bool = False
    fitted_on: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> ProfileFile:
        if not self.costs:
            raise ValueError("costs: no cost at all")
        active = [entry.active_cores for entry in self.frequency]
        if active != sorted(set(active)):
            raise ValueError("frequency: active_cores must rise from entry to entry")
        return self


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that the table at ``location`` may have (for the closest match)."""
    here: Any = model
    for part in location:
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = here.model_fields.get(str(part))
            here = field.annotation if field else None
        args = getattr(here, "__args__", ())
        models = [a for a in args if isinstance(a, type) and issubclass(a, BaseModel)]
        if models:
            here = models[0]
    if isinstance(here, type) and issubclass(here, BaseModel):
        return [field.alias or name for name, field in here.model_fields.items()]
    return []


def _refuse(path: Path, error: ValidationError) -> UserError:
    first = error.errors()[0]
    location = first["loc"]
    key = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        known = _known_keys(ProfileFile, location[:-1])
        word = str(location[-1])
        return UserError(
            f'unknown key "{key}"{closest(word, known)}',
            where=str(path),
            fix="remove it or correct its name",
        )
    if first["type"] == "missing":
        return UserError(f'key "{key}" is missing', where=str(path), fix="add it")
    message = first["msg"].removeprefix("Value error, ")
    return UserError(
        f"{key}: {message}" if key else message,
        where=str(path),
        fix="see docs/machine-profiles.md",
    )


def read_profile(path: Path) -> Machine:
    """The profile in ``path``; UserError with file and key when it is not a valid one."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}", where=str(path), fix="see mmreplay machines list"
        ) from None
    try:
        document = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"not valid TOML: {error}", where=str(path), fix="mend the syntax"
        ) from None
    try:
        profile = ProfileFile.model_validate(document)
    except ValidationError as error:
        raise _refuse(path, error) from None
    t = profile.topology
    topology = Topology(
        sockets=int(t.sockets.value),
        caches_per_socket=int(t.caches_per_socket.value),
        cores_per_cache=int(t.cores_per_cache.value),
        threads_per_core=int(t.threads_per_core.value),
    )
    core, llc, socket = cpu_arrays(topology)
    bases = {getattr(t, name).basis for name in TopologyFile.model_fields}
    sections = (profile.lines, profile.wake, profile.shootdown, profile.limits)
    scalars = {
        name: getattr(section, name).number()
        for section in sections
        for name in type(section).model_fields
    }
    return Machine(
        name=path.stem,
        title=profile.title,
        path=path,
        sha256=hashlib.sha256(raw).hexdigest(),
        assumed=profile.assumed,
        cpu_model=profile.cpu_model,
        cpu_core=core,
        cpu_llc=llc,
        cpu_socket=socket,
        costs={name: entry.number() for name, entry in profile.costs.items()},
        sleeps={name: entry.number() for name, entry in profile.sleeps.items()},
        frequency=tuple((e.active_cores, float(e.speed.value)) for e in profile.frequency),
        cpu_ids=profile.cpu_ids,
        topology_basis="assumed" if "assumed" in bases else "measured",
        notes=profile.notes,
        frequency_basis=profile.frequency[0].speed.basis if profile.frequency else "assumed",
        frequency_source=profile.frequency[0].speed.source if profile.frequency else "",
        wakes_stay=profile.wakes_stay,
        fitted_on=profile.fitted_on,
        **scalars,
    )


def list_machines() -> list[str]:
    """Names of the shipped profiles, sorted."""
    return sorted(p.stem for p in models_dir("machines").glob("*.toml"))


def load_machine(name_or_path: str | Path, option: str = "--machine") -> Machine:
    """A shipped profile by name, or any profile by the path of its ``.toml`` file.

    ``option``: which option names it, for the error.
    """
    text = str(name_or_path)
    if text.endswith(".toml") or "/" in text:
        return read_profile(Path(text))
    names = list_machines()
    if text not in names:
        raise UserError(
            f'unknown machine "{text}"{closest(text, names)}',
            where=option,
            fix=f"choose one of {', '.join(names)}, or give the path of a profile",
        )
    return read_profile(models_dir("machines") / f"{text}.toml")


def match_machine(
    cpu_model: str | None, cpu_id: str | None = None, cpus: int | None = None
) -> tuple[Machine, str]:
    """The profile for a recording's CPU, and one line that says how it was chosen.

    ``cpu_id`` is perf's ``vendor,family,model,stepping``; ``cpu_model`` the name of
    /proc/cpuinfo.  A shipped measured profile whose ids or model name match is taken
    (the stepping is not compared); otherwise the generic profile, basis *assumed*.
    """
    for name in list_machines():
        machine = load_machine(name)
        if machine.assumed:
            continue
        by_id = cpu_id is not None and _family(cpu_id) in {_family(i) for i in machine.cpu_ids}
        by_name = cpu_id is None and bool(cpu_model) and cpu_model == machine.cpu_model
        if not (by_id or by_name):
            continue
        what = f"CPU id {cpu_id}" if by_id else f'CPU model "{cpu_model}"'
        note = f"machine {name}: matched by {what}"
        if cpus is not None and cpus != machine.n_cpus:
            note += f", measured on {machine.n_cpus} CPUs, recorded on {cpus}"
        return machine, note
    known = cpu_id or cpu_model or "not recorded"
    return (
        load_machine(GENERIC),
        f"machine {GENERIC}: assumed, no profile matches the recording's CPU ({known}); "
        "choose one with --machine",
    )


def _family(cpu_id: str) -> tuple[str, ...]:
    """Vendor, family and model of a CPU id; the stepping does not change costs."""
    return tuple(cpu_id.split(",")[:3])
