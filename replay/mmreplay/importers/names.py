"""Names that a trace may keep: nothing in them tells about users."""

from __future__ import annotations

import re
from typing import Final, NamedTuple


def fold(comm: str) -> str:
    """A thread's group: its name with every run of digits folded to ``#``."""
    return re.sub(r"\d+", "#", comm)


#: What says of which kind a mapping is, and what stays of it.  The first that fits counts.
_KINDS: Final = (
    ("/memfd:", "/memfd"),
    ("/SYSV", "/SYSV"),
    ("/anon_hugepage", "/anon_hugepage"),
    ("/dev/shm/", "/dev/shm"),
    ("/run/shm/", "/dev/shm"),
    ("/dev/hugepages/", "/dev/hugepages"),
    ("/dev/zero", "/dev/zero"),
    ("/dev/", "/dev"),  # some device
)


class FileName(NamedTuple):
    """The plain names of what is mapped, and whether it is a file."""

    data: str
    code: str
    path: bool


def file_name(name: str) -> FileName:
    """What a trace keeps of the name in a record of a mapping."""
    path = name.startswith("/") and not name.startswith("//")
    return FileName(plain_name(name, False), plain_name(name, True), path)


def plain_name(name: str, executable: bool) -> str:
    """A mapping's name without what tells about users.

    Kernel names (``[heap]``, ``//anon``) stay; of shared memory, huge pages and devices stays
    what they are; shared libraries and executables keep their base name; any other file is
    ``(file)``.
    """
    if not name or name.startswith(("[", "//", "anon_inode:[")):
        return name
    for prefix, plain in _KINDS:
        if name.startswith(prefix):
            return plain
    base = name.removesuffix(" (deleted)").rsplit("/", 1)[-1]
    if executable or re.search(r"\.so(\.|$)", base):
        return base
    return "(file)"
