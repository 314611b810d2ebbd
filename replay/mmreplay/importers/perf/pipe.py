"""The head of a perf.data stream in pipe format (``perf record -o -``): it comes as records."""

from __future__ import annotations

import struct
from typing import Final

from mmreplay.importers.perf import header as ph
from mmreplay.importers.perf.feeds import Window
from mmreplay.importers.perf.walk import R_THREAD_MAP, R_TRACING_DATA

# perf_user_event_type: tools/lib/perf/include/perf/event.h@6.18.
_ATTR, _EVENT_UPDATE, _FEATURE = 64, 78, 80
#: Records that only tell about the recording, and come before it.
_BEFORE: Final = frozenset(
    (_ATTR, 65, R_TRACING_DATA, 67, 69, R_THREAD_MAP, 74, _EVENT_UPDATE, 79, _FEATURE)
)
_UPDATE_NAME: Final = 2  # PERF_EVENT_UPDATE__NAME
_MOST_TRACING: Final = 1 << 28


def parse_prologue(window: Window, order: str, where: str) -> tuple[ph.PerfHeader, int]:
    """The head, and how many bytes of the window it took.

    Raises
    ------
    UserError
        The stream ends, or does not hold together.
    """
    header = ph.PerfHeader([], order=order)
    taken = 0
    while True:
        if not window.need(8):
            raise ph.truncated("the stream ends before its events", where)
        kind, _, size = struct.unpack(order + "IHH", window.peek(8))
        if kind not in _BEFORE or (kind == R_THREAD_MAP and header.attrs):
            break  # what the walk reads stays for it
        if size < 8:
            raise ph.damaged("a record shorter than its head", where)
        if not window.need(size):
            raise ph.truncated("the stream ends before its events", where)
        body = window.take(size)[8:]
        taken += size
        if kind == _ATTR:
            _add_attr(header, body, where)
        elif kind == _FEATURE and len(body) >= 8:
            (bit,) = struct.unpack_from(order + "Q", body)
            ph.add_feature(header, min(bit, 255), body[8:])
        elif kind == _EVENT_UPDATE:
            _update(header, body)
        elif kind == R_TRACING_DATA and len(body) >= 4:
            (length,) = struct.unpack_from(order + "I", body)
            padded = length + 7 & ~7
            if length > _MOST_TRACING or not window.need(padded):
                raise ph.truncated(f"the stream ends inside {length} bytes of formats", where)
            ph.add_feature(header, ph.F_TRACING_DATA, window.take(padded)[:length])
            taken += padded
    if not header.attrs:
        raise ph.damaged("no event attributes before the first event", where)
    return header, taken


def _add_attr(header: ph.PerfHeader, body: bytes, where: str) -> None:
    if len(body) < ph.ATTR_MIN:
        raise ph.damaged(f"event attributes of {len(body)} bytes", where)
    size = struct.unpack_from(header.order + "I", body, 4)[0] or ph.ATTR_MIN
    if size < ph.ATTR_MIN or size > len(body):
        raise ph.damaged(f"event attributes of {size} bytes in a record of {len(body)}", where)
    count = (len(body) - size) // 8
    ids = struct.unpack_from(f"{header.order}{count}Q", body, size)
    if len(header.attrs) >= ph.MAX_ATTRS:
        raise ph.damaged(f"more than {ph.MAX_ATTRS} event attributes", where)
    header.attrs.append(ph.parse_attr(body[:size], header.order, ids))


def _update(header: ph.PerfHeader, body: bytes) -> None:
    """An event's name."""
    if len(body) < 16:
        return
    kind, ident = struct.unpack_from(header.order + "QQ", body)
    if kind == _UPDATE_NAME:
        for attr in header.attrs:
            if ident in attr.ids:
                attr.name = body[16:].split(b"\0", 1)[0].decode("utf-8", "replace")
