"""The header of a trace: what was recorded, on what, and what was lost.

Provenance is an allow-list: CPU model, topology, and the kernel release as
``x.y.z``.  There is no place for a host name, user, path, command line or
build-id, so none can leak.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mmreplay.errors import UserError, closest
from mmreplay.schema import TRACE_SCHEMA

_RELEASE = re.compile(r"^\d+\.\d+(\.\d+)?$")
_LEADING_RELEASE = re.compile(r"^(\d+\.\d+(?:\.\d+)?)")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Clock(_Strict):
    """The clock of the recording; ``begin_ns`` and its like count from ``Header.t0_ns`` on it."""

    name: str = Field(
        default="unknown", description="CLOCK_MONOTONIC, perf (local_clock), simulated, or unknown"
    )
    resolution_ns: int = Field(default=1, ge=1, description="1, or 1000 for text with microseconds")
    wall_ns_at_t0: int | None = Field(
        default=None, description="wall clock at t0; null where the recording does not tie the two"
    )


class Machine(_Strict):
    """The recording machine; null where the recording does not say."""

    cpu_model: str | None = Field(default=None, description="model name")
    cpu_id: str | None = Field(
        default=None, description="vendor, family, model, stepping, as perf writes it"
    )
    cpus_online: int | None = Field(default=None, ge=1, description="CPUs online")
    cpus_available: int | None = Field(default=None, ge=1, description="CPUs present")
    memory_kib: int | None = Field(default=None, ge=1, description="main memory")
    page_size: int | None = Field(default=None, ge=1, description="base page, in bytes")
    sockets: int | None = Field(default=None, ge=1, description="packages")
    cores_per_socket: int | None = Field(default=None, ge=1, description="physical cores of one")
    threads_per_core: int | None = Field(default=None, ge=1, description="2 with SMT")


class Source(_Strict):
    """The file that was imported."""

    format: str = Field(default="synthetic", description="perf.data, synthetic, ...")
    size_bytes: int | None = Field(default=None, ge=0, description="size of the file")
    blake2b: str | None = Field(default=None, description="hash of the file")
    tool_version: str | None = Field(default=None, description="version of the recording tool")


class Event(_Strict):
    """One recorded event.

    ``type`` is perf's name of the event's type (``tracepoint``, ``software``, ...);
    ``id`` its number within the type (``attr.config``); exactly one of ``period``
    and ``frequency`` is set where the recording says how it sampled.
    """

    name: str = Field(description="as recorded, such as exceptions:page_fault_user")
    id: int | None = Field(default=None, description="number within the type")
    type: str | None = Field(default=None, description="tracepoint, software, ...")
    period: int | None = Field(
        default=None, ge=0, description="one sample every so many; 1 records all"
    )
    frequency: int | None = Field(
        default=None, ge=0, description="samples a second asked for; null when counting"
    )
    samples: int = Field(default=0, ge=0, description="samples in the recording")
    lost: int = Field(default=0, ge=0, description="of this event, where known")


class Capabilities(_Strict):
    """What the recording can support."""

    fault_duration: Literal["measured", "upper", "none"] = Field(
        default="none",
        description="both ends of a fault seen, only bounded by the next event, or unknown",
    )
    syscall_durations: bool = Field(
        default=False, description="both ends of the memory-map calls were recorded"
    )
    think: Literal["oncpu", "wall"] = Field(
        default="wall", description="think time is on-CPU time (switches recorded), or wall time"
    )
    switches: bool = Field(default=False, description="context switches were recorded")
    data_mmaps: bool = Field(default=False, description="data mappings were recorded as MMAP2 (-d)")
    kernel_faults: bool = Field(default=False, description="faults in kernel mode were recorded")
    compat_visible: bool = Field(
        default=False, description="system calls of 32-bit tasks would be seen"
    )
    lock_spans: bool = Field(default=False, description="lock:contention_* was recorded")
    wakeups: bool = Field(default=False, description="wake-ups were recorded")
    sampling: bool = Field(
        default=False,
        description="sampled (-F, or a period above 1): counts are estimates, nothing pairs",
    )
    snapshot: bool = Field(
        default=False, description="the initial state came from a snapshot of /proc/PID/smaps"
    )


class Probe(_Strict):
    """What one recorded event costs the recorded thread, and how that was found."""

    cost_ns: int = Field(
        default=0, ge=0, description="what one recorded event costs the recorded thread"
    )
    method: str = Field(default="none", description="how the cost was found")


class TableFile(_Strict):
    """Size and CRC-32 of one table's file, so that damage is found before it is believed."""

    size_bytes: int = Field(ge=0, description="size of the Parquet file")
    crc32: int = Field(ge=0, description="its CRC-32")


class Header(_Strict):
    """``header.json`` of a trace directory."""

    schema_: int = Field(default=TRACE_SCHEMA, alias="schema", description="version of this format")
    t0_ns: int = Field(default=0, description="the recording's clock at time 0")
    clock: Clock = Field(default_factory=Clock, description="which clock")
    kernel_release: str | None = Field(default=None, description="x.y.z, no local suffix")
    machine: Machine = Field(default_factory=Machine, description="the recording machine")
    source: Source = Field(default_factory=Source, description="what was imported")
    target: Literal["command", "pids", "all", "synthetic", "unknown"] = Field(
        default="unknown", description="what was recorded"
    )
    events: list[Event] = Field(default_factory=list, description="events recorded")
    lost_events: int = Field(default=0, ge=0, description="events lost, each loss once")
    counters: dict[str, int] = Field(
        default_factory=dict, description="every drop and oddity of the import, by name"
    )
    capabilities: Capabilities = Field(
        default_factory=Capabilities, description="what the recording can support"
    )
    probe: Probe = Field(default_factory=Probe, description="the probes' own cost")
    span_ns: int = Field(default=0, ge=0, description="first to last event")
    warnings: list[str] = Field(
        default_factory=list, description="what a reader should know, a line each"
    )
    importer_version: str = Field(default="", description="mmreplay that wrote it")
    tables: dict[str, TableFile] = Field(
        default_factory=dict, description="file of each table; written on close"
    )

    model_config = ConfigDict(extra="forbid", validate_assignment=True, populate_by_name=True)

    @field_validator("kernel_release")
    @classmethod
    def _plain(cls, value: str | None) -> str | None:
        if value is not None and not _RELEASE.match(value):
            raise ValueError("must be x.y or x.y.z; use header.plain_release() on a full release")
        return value

    @property
    def generated(self) -> bool:
        """Generated from a workload: everything is there except durations, by design."""
        return self.clock.name == "simulated"

    def to_json(self) -> str:
        """The content of ``header.json``."""
        return json.dumps(self.model_dump(by_alias=True), indent=1) + "\n"


def plain_release(release: str) -> str | None:
    """``x.y.z`` of a kernel release, without its local suffix; None where it has none.

    >>> plain_release("6.1.0-18-amd64")
    '6.1.0'
    """
    match = _LEADING_RELEASE.match(release.strip())
    return match.group(1) if match else None


def parse_header(text: str, where: str) -> Header:
    """The header in ``text``; a :class:`UserError` names the key that is wrong."""
    try:
        raw: Any = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"not valid JSON ({error})", where=where, fix="import the recording again"
        ) from None
    if not isinstance(raw, dict):
        raise UserError("not a trace header", where=where, fix="import the recording again")
    version = raw.get("schema")
    if isinstance(version, int) and version > TRACE_SCHEMA:
        raise UserError(
            f"trace schema {version} is newer than this mmreplay, which reads up to {TRACE_SCHEMA}",
            where=where,
            fix="update mmreplay, or import the recording again with this version",
        )
    try:
        return Header.model_validate(raw)
    except ValidationError as error:
        raise _as_user_error(error, where) from None


def read_header(directory: Path) -> Header:
    """The header of the trace directory."""
    file = directory / "header.json"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the trace header ({error})",
            where=str(file),
            fix="import the recording again",
        ) from None
    return parse_header(text, str(file))


def _as_user_error(error: ValidationError, where: str) -> UserError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        model: Any = Header
        for part in first["loc"][:-1]:
            field = model.model_fields.get(str(part)) if isinstance(part, str) else None
            annotation = field.annotation if field is not None else None
            model = annotation if isinstance(annotation, type) else Event
        known = [field.alias or name for name, field in model.model_fields.items()]
        last = str(first["loc"][-1])
        return UserError(
            f'unknown key "{key}"{closest(last, known)}',
            where=where,
            fix="import the recording again",
        )
    return UserError(f"{key}: {first['msg']}", where=where, fix="import the recording again")
