"""From attrs and event formats to the tables that the compiled scanner reads.

For every recorded event: its role, where the fixed parts of its samples lie,
where the parts of a non-sample's trailer lie, and which fields of
RAW go to which argument (by the format text).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreplay.errors import UserError
from mmreplay.importers import events as ev
from mmreplay.importers.binary import new_table, table_put_all
from mmreplay.importers.perf import header as ph
from mmreplay.importers.syscalls import BY_NAME, CALLS, PAGED, PRESENT
from mmreplay.importers.tracing_data import Format, TracingData

#: Columns of :attr:`Layout.fixed`; -1 where the event's samples do not have the part.
(L_IP, L_TID, L_TIME, L_ADDR, L_CPU, L_PERIOD, L_RAW, L_MIN) = range(8)
#: Columns of :attr:`Layout.flags`.
(G_ROLE, G_CALL, G_SAMPLE_TYPE, G_READ_FORMAT, G_WEIGHT, G_FIELDS, G_NEED, G_CHAIN, G_SIZE) = range(
    9
)
#: Columns of one field of :attr:`Layout.program`.
(P_SLOT, P_OFFSET, P_SIZE, P_SIGNED) = range(4)
#: Entries of :attr:`Layout.trailer`: distance from the record's end, -1 absent; then its size.
(T_TID, T_TIME, T_ID, T_CPU, T_SIZE) = range(5)
MAX_FIELDS: Final = 8
#: A record is at most 64 KiB.
_MAX_OFFSET: Final = 65_535

TYPE_SOFTWARE: Final = 1
TYPE_TRACEPOINT: Final = 2
_SOFTWARE_ROLES: Final = {2: ev.FAULT_SOFTWARE, 5: ev.FAULT_MINOR, 6: ev.FAULT_MAJOR}
#: PERF_COUNT_SW_*: include/uapi/linux/perf_event.h@6.18.
_SOFTWARE_NAMES: Final = {
    0: "cpu-clock",
    1: "task-clock",
    2: "page-faults",
    3: "context-switches",
    4: "cpu-migrations",
    5: "minor-faults",
    6: "major-faults",
    7: "alignment-faults",
    8: "emulation-faults",
    9: "dummy",
    10: "bpf-output",
    11: "cgroup-switches",
}
#: (system, event) -> (role, fields to arguments 0, 1, ...).
_TRACEPOINTS: Final[dict[tuple[str, str], tuple[int, tuple[str, ...]]]] = {
    ("exceptions", "page_fault_user"): (ev.FAULT_USER, ("address", "error_code", "ip")),
    ("exceptions", "page_fault_kernel"): (ev.FAULT_KERNEL, ("address", "error_code")),
    ("lock", "contention_begin"): (ev.CONTENTION_BEGIN, ("lock_addr", "flags")),
    ("lock", "contention_end"): (ev.CONTENTION_END, ("lock_addr",)),
    ("sched", "sched_switch"): (ev.SCHED_SWITCH, ("prev_state", "next_pid")),
    ("sched", "sched_waking"): (ev.WAKING, ("pid", "common_flags")),
    ("sched", "sched_wakeup"): (ev.WAKING, ("pid", "common_flags")),
    ("task", "task_newtask"): (ev.NEW_TASK, ("pid", "clone_flags")),
    ("mmap_lock", "mmap_lock_start_locking"): (ev.MMAP_LOCK_START, ("mm", "write")),
    ("mmap_lock", "mmap_lock_acquire_returned"): (
        ev.MMAP_LOCK_ACQUIRED,
        ("mm", "write", "success"),
    ),
    ("mmap_lock", "mmap_lock_released"): (ev.MMAP_LOCK_RELEASED, ("mm", "write")),
}


class Layout(NamedTuple):
    """Tables for the compiled scanner; first axis: the recorded event."""

    fixed: NDArray[np.int64]  # (events, 8): offsets from the record's start
    flags: NDArray[np.int64]  # (events, 8)
    program: NDArray[np.int64]  # (events, MAX_FIELDS, 4)
    id_keys: NDArray[np.uint64]
    id_values: NDArray[np.int32]
    trailer: NDArray[np.int64]  # (events, 5): from the record's end; -1 where it is not there
    id_offset: int  # of the sample's id from the record's start; -1: one event only
    trailer_id: int  # of the trailer's id from the record's end; -1: the first event's layout


@dataclass(slots=True)
class EventInfo:
    """One recorded event as the header lists it."""

    name: str
    type: str
    config: int
    role: int
    call: int
    sampled: bool
    period: int | None
    frequency: int | None
    format: Format | None = None

    @property
    def paged(self) -> bool:
        """Whether it is an entry of mmap whose offset is in pages."""
        name = self.format.name if self.format is not None and self.role == ev.ENTER else ""
        return name.removeprefix("sys_enter_") in PAGED


class Plan(NamedTuple):
    """Layout plus what is known about the events as a whole."""

    layout: Layout
    events: list[EventInfo]
    switch_records: bool
    warnings: list[str]

    def has(self, *roles: int) -> bool:
        """Whether any event has one of the roles."""
        return any(event.role in roles for event in self.events)

    @property
    def has_chains(self) -> bool:
        """Whether any event that begins operations has its call chain."""
        return bool(self.layout.flags[:, G_CHAIN].any())

    @property
    def sampled(self) -> bool:
        """Whether some event that matters here was sampled instead of counted."""
        return any(event.sampled for event in self.events if event.role != ev.OTHER)


def sample_offsets(attr: ph.Attr) -> list[int]:
    """Offsets L_IP … L_MIN of one event's samples (record header included)."""
    at = 8
    found = dict.fromkeys(range(8), -1)
    kinds = attr.sample_type
    if kinds & ph.SAMPLE_IDENTIFIER:
        at += 8
    for bit, column in (
        (ph.SAMPLE_IP, L_IP),
        (ph.SAMPLE_TID, L_TID),
        (ph.SAMPLE_TIME, L_TIME),
        (ph.SAMPLE_ADDR, L_ADDR),
        (ph.SAMPLE_ID, None),
        (ph.SAMPLE_STREAM_ID, None),
        (ph.SAMPLE_CPU, L_CPU),
        (ph.SAMPLE_PERIOD, L_PERIOD),
    ):
        if kinds & bit:
            if column is not None:
                found[column] = at
            at += 8
    if kinds & ph.SAMPLE_RAW:
        if not kinds & (ph.SAMPLE_READ | ph.SAMPLE_CALLCHAIN):
            found[L_RAW] = at
            found[L_MIN] = at + 4
        else:  # the scanner walks READ and CALLCHAIN from here
            found[L_RAW] = -at
            found[L_MIN] = at
    else:
        found[L_MIN] = at
    return [found[column] for column in range(8)]


def chain_offset(attr: ph.Attr) -> int:
    """Where READ and CALLCHAIN begin in the event's samples; 0 without a call chain."""
    return read_offset(attr) if attr.sample_type & ph.SAMPLE_CALLCHAIN else 0


def read_offset(attr: ph.Attr) -> int:
    """Where READ, and what follows it, begins in the event's samples."""
    before = (
        ph.SAMPLE_IDENTIFIER | ph.SAMPLE_IP | ph.SAMPLE_TID | ph.SAMPLE_TIME | ph.SAMPLE_ADDR
        | ph.SAMPLE_ID | ph.SAMPLE_STREAM_ID | ph.SAMPLE_CPU | ph.SAMPLE_PERIOD
    )  # fmt: skip
    return 8 + 8 * (attr.sample_type & before).bit_count()


def id_offset_of(attr: ph.Attr) -> int:
    if attr.sample_type & ph.SAMPLE_IDENTIFIER:
        return 8
    if not attr.sample_type & ph.SAMPLE_ID:
        return -1
    before = ph.SAMPLE_IP | ph.SAMPLE_TID | ph.SAMPLE_TIME | ph.SAMPLE_ADDR
    return 8 + 8 * (attr.sample_type & before).bit_count()


def _trailer(attr: ph.Attr) -> list[int]:
    if not attr.sample_id_all:
        return [-1, -1, -1, -1, 0]
    at = 0
    found = [-1, -1, -1, -1, 0]
    for bit, column in (  # from the record's end backwards
        (ph.SAMPLE_IDENTIFIER, T_ID),
        (ph.SAMPLE_CPU, T_CPU),
        (ph.SAMPLE_STREAM_ID, -1),
        (ph.SAMPLE_ID, T_ID),
        (ph.SAMPLE_TIME, T_TIME),
        (ph.SAMPLE_TID, T_TID),
    ):
        if attr.sample_type & bit:
            at += 8
            if column >= 0 and found[column] < 0:
                found[column] = at
    found[T_SIZE] = at
    return found


def _period(attr: ph.Attr, role: int) -> tuple[bool, int]:
    """(sampled, weight of a sample without PERIOD), as docs/import.md says."""
    if attr.freq:
        return True, 1
    has_period = bool(attr.sample_type & ph.SAMPLE_PERIOD)
    if attr.type == TYPE_TRACEPOINT and has_period:
        return False, 1  # perf_swevent_event@6.12 delivers every hit, whatever -c says
    return attr.sample_period > 1, max(1, min(attr.sample_period, 2**32 - 1))


def build(header: ph.PerfHeader, tracing: TracingData | None, where: str) -> Plan:
    """The scanner's tables for a recording.

    Raises
    ------
    UserError
        The samples lack time or thread, or cannot be told apart.
    """
    attrs = header.attrs
    count = len(attrs)
    warnings: list[str] = []
    for attr in attrs:
        lacking = [
            name
            for name, bit in (("time", ph.SAMPLE_TIME), ("thread id", ph.SAMPLE_TID))
            if not attr.sample_type & bit
        ]
        if lacking:
            raise UserError(
                f"the samples have no {' and no '.join(lacking)}",
                where=where,
                fix="record with perf record -T (--per-thread leaves the time out)",
            )
    id_offset = _common_id_offset(attrs, where)
    counted: list[str] = []
    infos = [_describe(attr, tracing) for attr in attrs]
    switch_records = any(attr.context_switch for attr in attrs)
    fixed = np.zeros((count, 8), np.int64)
    flags = np.zeros((count, G_SIZE), np.int64)
    program = np.zeros((count, MAX_FIELDS, 4), np.int64)
    for index, (attr, info) in enumerate(zip(attrs, infos, strict=True)):
        fixed[index] = sample_offsets(attr)
        steps = _program(info, big_endian=header.order == ">")
        needs_raw = bool(steps) or info.role in (ev.ENTER, ev.EXIT)
        needs_addr = info.role in (ev.FAULT_SOFTWARE, ev.FAULT_MINOR, ev.FAULT_MAJOR)
        if info.role == ev.SCHED_SWITCH and switch_records:
            info.role = ev.OTHER  # the switch records say the same, and both ends of it
        elif attr.only_counted and info.role != ev.OTHER:
            counted.append(info.name)
            info.role = ev.OTHER
        elif steps is None or (needs_raw and not attr.sample_type & ph.SAMPLE_RAW):
            warnings.append(f"{info.name}: its fields were not recorded; the event is only counted")
            info.role = ev.OTHER
        elif needs_addr and not attr.sample_type & ph.SAMPLE_ADDR:
            warnings.append(
                f"{info.name} has no address, so it is only counted; add -d to perf record"
            )
            info.role = ev.OTHER
        info.sampled, weight = _period(attr, info.role)
        if info.role == ev.OTHER:
            steps = None
        need = 0
        for step, values in enumerate(steps or ()):
            program[index, step] = values
            need = max(need, values[P_OFFSET] + values[P_SIZE])
        flags[index] = (
            info.role,
            info.call,
            attr.sample_type & 0xFFFF_FFFF,
            attr.read_format & 0xFF,
            weight,
            len(steps or ()),
            need,
            chain_offset(attr) if info.role in ev.BEGINNERS else 0,
        )
    if counted:
        warnings.append(
            f"{', '.join(counted)}: recorded in a group (:S), so only how many came between two "
            "samples of its leader is known; record each with its own -e"
        )
    counts = [len(attr.ids) for attr in attrs]
    keys, values = new_table(sum(counts))
    idents = np.array([ident for attr in attrs for ident in attr.ids], np.uint64)
    table_put_all(keys, values, idents, np.repeat(np.arange(len(attrs)), counts))
    trailer = np.array([_trailer(attr) for attr in attrs], np.int64)
    distances = {int(distance) for distance in trailer[:, T_ID]}
    trailer_id = distances.pop() if len(distances) == 1 else -1
    layout = Layout(fixed, flags, program, keys, values, trailer, id_offset, trailer_id)
    return Plan(layout, infos, switch_records, warnings)


def _common_id_offset(attrs: list[ph.Attr], where: str) -> int:
    if len(attrs) == 1 and not attrs[0].ids:
        return -1
    offsets = {id_offset_of(attr) for attr in attrs}
    if len(offsets) == 1 and (len(attrs) == 1 or -1 not in offsets):
        return offsets.pop()
    raise UserError(
        "the samples of different events cannot be told apart (no common sample id)",
        where=where,
        fix="record again with perf record, which adds the id by itself",
    )


def _describe(attr: ph.Attr, tracing: TracingData | None) -> EventInfo:
    role, call, form = ev.OTHER, -1, None
    kind = {0: "hardware", 1: "software", 2: "tracepoint", 3: "hw-cache", 4: "raw"}.get(
        attr.type, str(attr.type)
    )
    name = attr.name
    if attr.type == TYPE_SOFTWARE:
        role = _SOFTWARE_ROLES.get(attr.config, ev.OTHER)
        name = name or _SOFTWARE_NAMES.get(attr.config, f"software:{attr.config}")
    elif attr.type == TYPE_TRACEPOINT and tracing is not None:
        form = tracing.formats.get(attr.config)
        if form is not None:
            name = name or f"{form.system}:{form.name}"
            role, call = _tracepoint_role(form)
    sampled, _ = _period(attr, role)
    period = None if attr.freq else min(attr.sample_period, 2**62)
    frequency = min(attr.sample_period, 2**62) if attr.freq else None
    label = name or f"event {attr.type}:{attr.config}"
    return EventInfo(label, kind, attr.config, role, call, sampled, period, frequency, form)


def _tracepoint_role(form: Format) -> tuple[int, int]:
    known = _TRACEPOINTS.get((form.system, form.name))
    if known is not None:
        return known[0], -1
    if form.system == "raw_syscalls":
        roles = {"sys_enter": ev.RAW_ENTER, "sys_exit": ev.RAW_EXIT}
        return roles.get(form.name, ev.OTHER), -1
    if form.system == "syscalls":
        for prefix, role in (("sys_enter_", ev.ENTER), ("sys_exit_", ev.EXIT)):
            if form.name.startswith(prefix):
                call = BY_NAME.get(form.name[len(prefix) :], -1)
                return (role, call) if call >= 0 else (ev.OTHER, -1)
    return ev.OTHER, -1


def _program(info: EventInfo, *, big_endian: bool) -> list[tuple[int, int, int, int]] | None:
    """Steps (slot, offset, size, signed); None where a needed field is missing."""
    form = info.format
    if form is None or info.role == ev.OTHER:
        return []
    wanted: list[tuple[int, Any]] = []
    if info.role == ev.ENTER:
        call = CALLS[info.call]
        names = [f for f in form.fields if not f.name.startswith(("common_", "__syscall_nr"))]
        names = [f for f in names if f.name != "nr" or f.offset > 8]
        if call.name == "clone":  # the order of its arguments differs between architectures
            names = [f for f in names if f.name == "clone_flags"] or names
        for position, slot in enumerate(call.slots):
            if slot < 0:
                continue
            if position >= len(names):
                return None
            source = names[position]
            narrow = position in call.narrow
            wanted.append((slot, _narrowed(source, big_endian=big_endian) if narrow else source))
    elif info.role == ev.EXIT:
        wanted.append((0, form.field("ret")))
    elif info.role in (ev.RAW_ENTER, ev.RAW_EXIT):
        ident, args = form.field("id"), form.field("args" if info.role == ev.RAW_ENTER else "ret")
        wanted.append((7, ident))
        if info.role == ev.RAW_EXIT:
            wanted.append((0, args))
        elif args is None or args.size not in (24, 48):
            return None
        else:
            word = args.size // 6  # the kernel's long
            for k in range(6):
                place = args.offset + word * k
                wanted.append((k, type(args)(f"arg{k}", place, word, False)))
    else:
        for slot, name in enumerate(_TRACEPOINTS[(form.system, form.name)][1]):
            wanted.append((slot, form.field(name)))
    steps = []
    for slot, source in wanted:
        if source is None or source.size not in (1, 2, 4, 8) or source.dynamic:
            return None
        if source.offset > _MAX_OFFSET:
            return None
        steps.append((slot, source.offset, source.size, int(source.signed)))
    return steps


def _narrowed(source: Any, *, big_endian: bool) -> Any:
    """The int in a field of the kernel's long: its lower half, which a big-endian one ends with."""
    size = min(4, source.size)
    offset = source.offset + (source.size - size if big_endian else 0)
    return type(source)(source.name, offset, size, True)


def present_of(call: int) -> int:
    """Which argument slots a call fills."""
    return int(PRESENT[call]) if call >= 0 else 0
