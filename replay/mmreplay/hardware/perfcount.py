"""mmap_lock tracepoints as perf counters of the calling process: where tracefs can be
read but no tracing instance can be made.

Counters cannot tell address spaces apart, and stop before a task gives its memory map
up; what a phase that forks or ends threads takes is therefore not counted this way.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Final

from mmreplay.errors import UserError
from mmreplay.hardware.tracing import Tally

_SYS_PERF_EVENT_OPEN: Final = 298  # arch/x86/entry/syscalls/syscall_64.tbl
_SYS_IOCTL: Final = 16
_TYPE_TRACEPOINT: Final = 2
_ATTR_BYTES: Final = 112  # PERF_ATTR_SIZE_VER5
# struct perf_event_attr: disabled, inherit
_DISABLED, _INHERIT = 1, 2
_ENABLE, _DISABLE, _SET_FILTER, _GROUP = 0x2400, 0x2401, 0x40082406, 1

#: Counter -> event and filter.
_COUNTERS: Final = {
    "started": ("mmap_lock_start_locking", "write == 0"),
    "read": ("mmap_lock_acquire_returned", "write == 0 && success == 1"),
    "read_failed": ("mmap_lock_acquire_returned", "write == 0 && success == 0"),
    "write": ("mmap_lock_acquire_returned", "write == 1 && success == 1"),
}

_libc = ctypes.CDLL(None, use_errno=True)


def tracepoint_ids(root: Path) -> dict[str, int]:
    """Numbers of the tracepoints that are counted.

    Raises
    ------
    UserError
        They cannot be read.
    """
    found = {}
    for event in {event for event, _ in _COUNTERS.values()}:
        try:
            found[event] = int((root / "events" / "mmap_lock" / event / "id").read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read the number of tracepoint {event}: {error}", fix="run as root"
            ) from None
    return found


def _open(event_id: int, leader: int) -> int:
    attr = bytearray(_ATTR_BYTES)
    struct.pack_into("<IIQ", attr, 0, _TYPE_TRACEPOINT, _ATTR_BYTES, event_id)
    struct.pack_into("<Q", attr, 40, _INHERIT | (_DISABLED if leader < 0 else 0))
    buffer = (ctypes.c_char * len(attr)).from_buffer(attr)
    fd = int(_libc.syscall(_SYS_PERF_EVENT_OPEN, ctypes.byref(buffer), 0, -1, leader, 0))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"perf_event_open: {os.strerror(code)}")
    return fd


class Counters:
    """A group of counters for each of ``segments`` segments, of the calling process and
    the children that it makes afterwards.

    Raises
    ------
    OSError
        The kernel refuses (kernel.perf_event_paranoid).
    """

    def __init__(self, ids: dict[str, int], segments: int) -> None:
        self._fds: list[dict[str, int]] = []
        for _ in range(segments):
            group: dict[str, int] = {}
            for name, (event, condition) in _COUNTERS.items():
                fd = _open(ids[event], next(iter(group.values()), -1))
                if _libc.ioctl(fd, ctypes.c_ulong(_SET_FILTER), condition.encode()):
                    code = ctypes.get_errno()
                    raise OSError(code, f"perf event filter: {os.strerror(code)}")
                group[name] = fd
            self._fds.append(group)

    def window(self, segment: int, opens: bool, label: int) -> tuple[int, ...]:
        """The system call that starts or stops the counters of a segment."""
        return _SYS_IOCTL, self._fds[segment]["started"], _ENABLE if opens else _DISABLE, _GROUP

    def tallies(self) -> dict[int, Tally]:
        """What was counted, by segment."""
        found = {}
        for number, group in enumerate(self._fds):
            value = {n: struct.unpack("<q", os.read(fd, 8))[0] for n, fd in group.items()}
            reads = value["started"] - value["read_failed"]
            found[number] = Tally(
                read=reads,
                write=value["write"],
                downgrade=value["read"] - reads,
                read_failed=value["read_failed"],
            )
        return found
