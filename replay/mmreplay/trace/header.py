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

    name: str = "unknown"
    resolution_ns: int = Field(default=1, ge=1)
    wall_ns_at_t0: int | None = None


class Machine(_Strict):
    """The recording machine; null where the recording does not say."""

    cpu_model: str | None = None
    cpu_id: str | None = None
    cpus_online: int | None = Field(default=None, ge=1)
    cpus_available: int | None = Field(default=None, ge=1)
    memory_kib: int | None = Field(default=None, ge=1)
    page_size: int | None = Field(default=None, ge=1)
    sockets: int | None = Field(default=None, ge=1)
    cores_per_socket: int | None = Field(default=None, ge=1)
    threads_per_core: int | None = Field(default=None, ge=1)


class Source(_Strict):
    """The file that was imported."""

    format: str = "synthetic"
    size_bytes: int | None = Field(default=None, ge=0)
    blake2b: str | None = None
    tool_version: str | None = None


class Event(_Strict):
    """One recorded event.

    ``type`` is perf's name of the event's type (``tracepoint``, ``software``, ...);
    ``id`` its number within the type (``attr.config``); exactly one of ``period``
    and ``frequency`` is set where the recording says how it sampled.
    """

    name: str
    id: int | None = None
    type: str | None = None
    period: int | None = Field(default=None, ge=0)
    frequency: int | None = Field(default=None, ge=0)
    samples: int = Field(default=0, ge=0)
    lost: int = Field(default=0, ge=0)


class Capabilities(_Strict):
    """What the recording can support (IMPORT §4 ``caps``)."""

    #: How far a fault's duration is known: both ends seen, only bounded by the thread's
    #: next event, or not at all.
    fault_duration: Literal["measured", "upper", "none"] = "none"
    #: Both ends of the memory-map system calls were recorded.
    syscall_durations: bool = False
    #: Think time is on-CPU time (switches recorded), or wall time.
    think: Literal["oncpu", "wall"] = "wall"
    switches: bool = False
    #: Later mmaps of data were recorded as MMAP2 records (``-d``).
    data_mmaps: bool = False
    kernel_faults: bool = False
    #: System calls of 32-bit tasks would be seen.
    compat_visible: bool = False
    #: ``lock:contention_*`` was recorded.
    lock_spans: bool = False
    wakeups: bool = False
    #: Events were sampled (``-F`` or a period above 1): counts are estimates, nothing pairs.
    sampling: bool = False
    #: The initial state came from a snapshot of /proc/PID/smaps.
    snapshot: bool = False


class Probe(_Strict):
    """What one recorded event costs the recorded thread, and how that was found."""

    cost_ns: int = Field(default=0, ge=0)
    method: str = "none"


class TableFile(_Strict):
    """Size and CRC-32 of one table's file, so that damage is found before it is believed."""

    size_bytes: int = Field(ge=0)
    crc32: int = Field(ge=0)


class Header(_Strict):
    """``header.json`` of a trace directory."""

    schema_: int = Field(default=TRACE_SCHEMA, alias="schema")
    t0_ns: int = 0
    clock: Clock = Field(default_factory=Clock)
    kernel_release: str | None = None
    machine: Machine = Field(default_factory=Machine)
    source: Source = Field(default_factory=Source)
    target: Literal["command", "pids", "all", "synthetic", "unknown"] = "unknown"
    events: list[Event] = Field(default_factory=list)
    lost_events: int = Field(default=0, ge=0)
    #: Every drop and oddity of the import, by name.
    counters: dict[str, int] = Field(default_factory=dict)
    capabilities: Capabilities = Field(default_factory=Capabilities)
    probe: Probe = Field(default_factory=Probe)
    span_ns: int = Field(default=0, ge=0)
    warnings: list[str] = Field(default_factory=list)
    importer_version: str = ""
    #: Table name to its file; written by ``TraceWriter.close``.
    tables: dict[str, TableFile] = Field(default_factory=dict)

    model_config = ConfigDict(extra="forbid", validate_assignment=True, populate_by_name=True)

    @field_validator("kernel_release")
    @classmethod
    def _plain(cls, value: str | None) -> str | None:
        if value is not None and not _RELEASE.match(value):
            raise ValueError("must be x.y or x.y.z; use header.plain_release() on a full release")
        return value

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
