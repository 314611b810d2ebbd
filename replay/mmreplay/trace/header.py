"""The header of a trace: what was recorded, on what, and what was lost.

Provenance is an allow-list: CPU model, topology, and the kernel release as
``x.y.z``.  There is no place for a host name, user, path, command line or
build-id, so none can leak.

What is read is checked by pydantic; what is written needs none, so that an import does
without it (loading it takes as long as reading half a million events).
"""

from __future__ import annotations

import functools
import json
import re
import zlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_type_hints

from mmreplay.errors import UserError, closest
from mmreplay.schema import TRACE_SCHEMA

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

_RELEASE = re.compile(r"^\d+\.\d+(\.\d+)?$")
_LEADING_RELEASE = re.compile(r"^(\d+\.\d+(?:\.\d+)?)")


def _told(description: str, **limits: Any) -> dict[str, Any]:
    """What is said of a key; ``limits`` (``ge``, ``alias``) are those of ``pydantic.Field``."""
    return {"description": description, **limits}


class _Strict:
    """What is read may have no other keys."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}


@dataclass(kw_only=True)
class Clock(_Strict):
    """The clock of the recording; ``begin_ns`` and its like count from ``Header.t0_ns`` on it."""

    name: str = field(
        default="unknown",
        metadata=_told("CLOCK_MONOTONIC, perf (local_clock), simulated, or unknown"),
    )
    resolution_ns: int = field(
        default=1, metadata=_told("1, or 1000 for text with microseconds", ge=1)
    )
    wall_ns_at_t0: int | None = field(
        default=None,
        metadata=_told("wall clock at t0; null where the recording does not tie the two"),
    )


@dataclass(kw_only=True)
class Machine(_Strict):
    """The recording machine; null where the recording does not say."""

    cpu_model: str | None = field(default=None, metadata=_told("model name"))
    cpu_id: str | None = field(
        default=None, metadata=_told("vendor, family, model, stepping, as perf writes it")
    )
    cpus_online: int | None = field(default=None, metadata=_told("CPUs online", ge=1))
    cpus_available: int | None = field(default=None, metadata=_told("CPUs present", ge=1))
    memory_kib: int | None = field(default=None, metadata=_told("main memory", ge=1))
    page_size: int | None = field(default=None, metadata=_told("base page, in bytes", ge=1))
    sockets: int | None = field(default=None, metadata=_told("packages", ge=1))
    cores_per_socket: int | None = field(
        default=None, metadata=_told("physical cores of one", ge=1)
    )
    threads_per_core: int | None = field(default=None, metadata=_told("2 with SMT", ge=1))


@dataclass(kw_only=True)
class Source(_Strict):
    """The file that was imported."""

    format: str = field(default="synthetic", metadata=_told("perf.data, synthetic, ..."))
    size_bytes: int | None = field(default=None, metadata=_told("size of the file", ge=0))
    blake2b: str | None = field(default=None, metadata=_told("hash of the file"))
    tool_version: str | None = field(default=None, metadata=_told("version of the recording tool"))


@dataclass(kw_only=True)
class Event(_Strict):
    """One recorded event.

    ``type`` is perf's name of the event's type (``tracepoint``, ``software``, ...);
    ``id`` its number within the type (``attr.config``); exactly one of ``period``
    and ``frequency`` is set where the recording says how it sampled.
    """

    name: str = field(metadata=_told("as recorded, such as exceptions:page_fault_user"))
    id: int | None = field(default=None, metadata=_told("number within the type"))
    type: str | None = field(default=None, metadata=_told("tracepoint, software, ..."))
    period: int | None = field(
        default=None, metadata=_told("one sample every so many; 1 records all", ge=0)
    )
    frequency: int | None = field(
        default=None, metadata=_told("samples a second asked for; null when counting", ge=0)
    )
    samples: int = field(default=0, metadata=_told("samples in the recording", ge=0))
    lost: int = field(default=0, metadata=_told("of this event, where known", ge=0))


@dataclass(kw_only=True)
class Capabilities(_Strict):
    """What the recording can support."""

    fault_duration: Literal["measured", "upper", "none"] = field(
        default="none",
        metadata=_told("both ends of a fault seen, only bounded by the next event, or unknown"),
    )
    syscall_durations: bool = field(
        default=False, metadata=_told("both ends of the memory-map calls were recorded")
    )
    think: Literal["oncpu", "wall"] = field(
        default="wall",
        metadata=_told("think time is on-CPU time (switches recorded), or wall time"),
    )
    switches: bool = field(default=False, metadata=_told("context switches were recorded"))
    data_mmaps: bool = field(
        default=False, metadata=_told("data mappings were recorded as MMAP2 (-d)")
    )
    kernel_faults: bool = field(
        default=False, metadata=_told("faults in kernel mode were recorded")
    )
    compat_visible: bool = field(
        default=False, metadata=_told("system calls of 32-bit tasks would be seen")
    )
    lock_spans: bool = field(default=False, metadata=_told("lock:contention_* was recorded"))
    wakeups: bool = field(default=False, metadata=_told("wake-ups were recorded"))
    sampling: bool = field(
        default=False,
        metadata=_told("sampled (-F, or a period above 1): counts are estimates, nothing pairs"),
    )
    snapshot: bool = field(
        default=False, metadata=_told("the initial state came from a snapshot of /proc/PID/smaps")
    )


@dataclass(kw_only=True)
class Probe(_Strict):
    """What one recorded event costs the recorded thread, and how that was found."""

    cost_ns: int = field(
        default=0, metadata=_told("what one recorded event costs the recorded thread", ge=0)
    )
    method: str = field(default="none", metadata=_told("how the cost was found"))


@dataclass(kw_only=True)
class TableFile(_Strict):
    """Size and CRC-32 of one table's file, so that damage is found before it is believed."""

    size_bytes: int = field(metadata=_told("size of the Parquet file", ge=0))
    crc32: int = field(metadata=_told("its CRC-32", ge=0))


@dataclass(kw_only=True)
class Header(_Strict):
    """``header.json`` of a trace directory."""

    schema_: int = field(
        default=TRACE_SCHEMA, metadata=_told("version of this format", alias="schema")
    )
    t0_ns: int = field(default=0, metadata=_told("the recording's clock at time 0"))
    clock: Clock = field(default_factory=Clock, metadata=_told("which clock"))
    kernel_release: str | None = field(default=None, metadata=_told("x.y.z, no local suffix"))
    machine: Machine = field(default_factory=Machine, metadata=_told("the recording machine"))
    source: Source = field(default_factory=Source, metadata=_told("what was imported"))
    target: Literal["command", "pids", "all", "synthetic", "unknown"] = field(
        default="unknown", metadata=_told("what was recorded")
    )
    events: list[Event] = field(default_factory=list, metadata=_told("events recorded"))
    lost_events: int = field(default=0, metadata=_told("events lost, each loss once", ge=0))
    counters: dict[str, int] = field(
        default_factory=dict, metadata=_told("every drop and oddity of the import, by name")
    )
    capabilities: Capabilities = field(
        default_factory=Capabilities, metadata=_told("what the recording can support")
    )
    probe: Probe = field(default_factory=Probe, metadata=_told("the probes' own cost"))
    span_ns: int = field(default=0, metadata=_told("first to last event", ge=0))
    warnings: list[str] = field(
        default_factory=list, metadata=_told("what a reader should know, a line each")
    )
    importer_version: str = field(default="", metadata=_told("mmreplay that wrote it"))
    tables: dict[str, TableFile] = field(
        default_factory=dict, metadata=_told("file of each table; written on close")
    )

    def __post_init__(self) -> None:
        if self.kernel_release is not None and not _RELEASE.match(self.kernel_release):
            raise ValueError(
                "kernel_release must be x.y or x.y.z; use header.plain_release() on a full release"
            )

    @property
    def generated(self) -> bool:
        """Generated from a workload: everything is there except durations, by design."""
        return self.clock.name == "simulated"

    def to_json(self) -> str:
        """The content of ``header.json``."""
        self.__post_init__()  # keys may have been set since
        lines = (f' "{key.rstrip("_")}": {_text(value)}' for key, value in _keys(self).items())
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _keys(told: Any) -> dict[str, Any]:
    return {one.name: getattr(told, one.name) for one in fields(told)}


def _text(value: Any) -> str:
    """A line, or one for each entry of a list."""
    if isinstance(value, list) and value:
        return "[\n  " + ",\n  ".join(map(_text, value)) + "\n ]"
    return json.dumps(value, default=_keys)


def plain_release(release: str) -> str | None:
    """``x.y.z`` of a kernel release, without its local suffix; None where it has none.

    >>> plain_release("6.1.0-18-amd64")
    '6.1.0'
    """
    match = _LEADING_RELEASE.match(release.strip())
    return match.group(1) if match else None


@functools.cache
def _checker() -> TypeAdapter[Header]:
    """Made once: that takes longer than an import of a small recording."""
    from pydantic import TypeAdapter

    return TypeAdapter(Header)


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
    from pydantic import ValidationError

    try:
        return _checker().validate_python(raw)
    except ValidationError as error:
        raise _as_user_error(error, where) from None


def not_allowed(file: Path) -> UserError:
    """The error of a trace's file that others own."""
    return UserError(
        "no permission to read it", where=str(file), fix="ask its owner: chmod -R a+rX TRACE"
    )


def read_header(directory: Path) -> Header:
    """The header of the trace directory."""
    file = directory / "header.json"
    try:
        text = file.read_text(encoding="utf-8")
    except PermissionError:
        raise not_allowed(file) from None
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
    if first["type"] != "unexpected_keyword_argument":
        problem = f"{key}: {first['msg']}" if key else first["msg"].removeprefix("Value error, ")
        return UserError(problem, where=where, fix="import the recording again")
    kind: Any = Header
    for part in first["loc"][:-1]:
        if isinstance(part, str):
            kind = get_type_hints(kind).get(part)
            # events: list[Event], tables: dict[str, TableFile]
            kind = (get_args(kind) or (kind,))[-1]
    known = [one.metadata.get("alias", one.name) for one in fields(kind)]
    last = str(first["loc"][-1])
    return UserError(
        f'unknown key "{key}"{closest(last, known)}',
        where=where,
        fix="import the recording again",
    )


def file_facts(file: Path, known: tuple[int, int, int] | None = None) -> TableFile:
    """Size and CRC-32 of a file, as the header keeps them; ``known`` spares the reading."""
    if known is not None:
        return TableFile(size_bytes=known[1], crc32=known[2])
    crc = size = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            crc = zlib.crc32(block, crc)
            size += len(block)
    return TableFile(size_bytes=size, crc32=crc)
