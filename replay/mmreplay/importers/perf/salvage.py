"""What a recording whose end is missing does not say: whether it is packed, and its formats.

The formats of tracepoints lie behind the events.  Where they are missing they are taken
from another recording of the machine, or from this machine's tracefs, and believed only
if every sample looked at has the size that its format says.
"""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path
from typing import Final

from mmreplay.errors import UserError
from mmreplay.importers.perf import header as ph
from mmreplay.importers.perf.feeds import MappedFeed, Window, ZstdFeed
from mmreplay.importers.perf.layout import L_RAW, id_offset_of, sample_offsets
from mmreplay.importers.perf.walk import R_COMPRESSED, R_COMPRESSED2, R_SAMPLE
from mmreplay.importers.tracing_data import Format, TracingData, parse_format, parse_tracing_data

TRACEFS: Final = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_LOOKED_AT: Final = 2000  # samples
_MOST_RECORDS: Final = 1 << 20


def is_compressed(mapped: mmap.mmap, start: int, end: int, order: str) -> bool:
    """Whether ``perf record -z`` wrote the stream: then its samples lie in other records."""
    at = start
    for _ in range(_MOST_RECORDS):
        if at + 8 > end:
            break
        kind, _, size = struct.unpack_from(order + "IHH", mapped, at)
        if kind in (R_COMPRESSED, R_COMPRESSED2):
            return True
        if kind == R_SAMPLE or size < 8:
            break
        at += size
    return False


def find_formats(
    header: ph.PerfHeader,
    mapped: mmap.mmap | None,
    peek: tuple[int, int, bool] | None,
    other: Path | None,
    where: str,
) -> tuple[TracingData, str]:
    """Formats for a recording without any, and where they are from.

    ``peek`` is (first byte, last, packed) of a stream of it in ``mapped``.

    Raises
    ------
    UserError
        None were found that fit its samples.
    """
    if mapped is not None and peek is not None and not _samples(header, mapped, peek, 1):
        raise UserError(
            f"{header.cut or 'the recording is not whole'}: it holds no samples",
            where=where,
            fix="record again while the program maps and faults, and end perf with Ctrl-C (SIGINT)",
        )
    wanted = {attr.config for attr in header.attrs if attr.type == 2}
    fix = (
        "import it on the machine that recorded it, as root, or give another recording of that "
        "machine: --formats OTHER"
    )
    if other is not None:
        formats, told = _of_recording(other), "the formats of tracepoints are another recording's"
    else:
        formats, told = _of_tracefs(wanted), "the formats of tracepoints are this machine's"
    problem = ""
    if not formats:
        problem = "it lacks the formats of its tracepoints"
    elif mapped is None or peek is None or not _fits(header, mapped, peek, formats):
        problem = f"{told}, but its samples do not fit them"
    if problem:
        raise UserError(
            f"{header.cut or 'the recording is not whole'}: {problem}", where=where, fix=fix
        )
    return TracingData("", header.order == ">", 8, 0, formats), told


def _of_recording(path: Path) -> dict[int, Format]:
    where = str(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            features = ph.parse_header(data, where).features
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot be read ({error})", where=where, fix="give a whole perf.data file"
        ) from None
    if ph.F_TRACING_DATA not in features:
        raise UserError(
            "holds no formats of tracepoints", where=where, fix="give a recording of tracepoints"
        )
    return parse_tracing_data(features[ph.F_TRACING_DATA]).formats


def _of_tracefs(wanted: set[int]) -> dict[int, Format]:
    """Formats of the events with the ids ``wanted`` on this machine."""
    found = {}
    for root in TRACEFS:
        for file in (root / "events").glob("*/*/format"):
            try:
                text = file.read_text()
            except OSError:
                continue
            ident = re.search(r"^ID:\s*(\d+)", text, re.MULTILINE)
            if ident is not None and int(ident[1]) in wanted:
                parsed = parse_format(file.parent.parent.name, text)
                if parsed is not None:
                    found[parsed.id] = parsed
        if found:
            break
    return found


def _samples(
    header: ph.PerfHeader, mapped: mmap.mmap, peek: tuple[int, int, bool], most: int
) -> list[bytes]:
    """Its first samples, at most so many."""
    start, end, packed = peek
    order = header.order
    feed = MappedFeed(mapped, start, end)
    window = Window(ZstdFeed(feed, "", big_endian=order == ">", salvage=True) if packed else feed)
    found: list[bytes] = []
    for _ in range(_MOST_RECORDS):
        if len(found) >= most or not window.need(8):
            break
        kind, _, size = struct.unpack(order + "IHH", window.peek(8))
        if size < 8 or not window.need(size):
            break
        record = window.take(size)
        if kind == R_SAMPLE:
            found.append(record)
    return found


def _raw_of(attr: ph.Attr, record: bytes, order: str) -> int:
    """Where the size of RAW is in a sample; -1 where it has none."""
    raw = sample_offsets(attr)[L_RAW]
    if raw >= -1:
        return raw
    at = -raw  # behind READ and CALLCHAIN
    try:
        if attr.sample_type & ph.SAMPLE_READ:
            times = (attr.read_format & 3).bit_count()
            each = 1 + (attr.read_format & 0b10100).bit_count()
            group = attr.read_format & 8
            members = struct.unpack_from(order + "Q", record, at)[0] if group else 1
            at += 8 * (bool(group) + times + each * members)
        if attr.sample_type & ph.SAMPLE_CALLCHAIN:
            at += 8 + 8 * struct.unpack_from(order + "Q", record, at)[0]
    except struct.error:
        return -1
    return int(at)


def _fits(
    header: ph.PerfHeader,
    mapped: mmap.mmap,
    peek: tuple[int, int, bool],
    formats: dict[int, Format],
) -> bool:
    """Whether all samples of tracepoints looked at name their event in RAW, and have its format's
    size."""
    order = header.order
    events = {ident: attr for attr in header.attrs for ident in attr.ids}
    id_offset = id_offset_of(header.attrs[0])
    for record in _samples(header, mapped, peek, _LOOKED_AT):
        attr = header.attrs[0]
        if id_offset >= 0 and len(record) >= id_offset + 8:
            attr = events.get(struct.unpack_from(order + "Q", record, id_offset)[0], attr)
        raw = _raw_of(attr, record, order)
        if attr.type != 2 or raw < 0 or raw + 6 > len(record):
            continue
        form = formats.get(attr.config)
        length, common_type = struct.unpack_from(order + "IH", record, raw)
        if form is None or common_type != attr.config or not _sizes_fit(form, length):
            return False
    return True


def _sizes_fit(form: Format, length: int) -> bool:
    """RAW holds the event's struct, whose end is padded; with its size it fills words of 8."""
    least = max(field.offset + field.size for field in form.fields)
    most = ((least + 7 & ~7) + 4 + 7 & ~7) - 4
    return length >= least and (length <= most or any(field.dynamic for field in form.fields))
