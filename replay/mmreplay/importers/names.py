"""Names that a trace may keep: nothing in them tells about users."""

from __future__ import annotations

import re


def fold(comm: str) -> str:
    """A thread's group: its name with every run of digits folded to ``#``."""
    return re.sub(r"\d+", "#", comm)


def plain_name(name: str, executable: bool) -> str:
    """A mapping's name without what tells about users.

    Kernel names (``[heap]``, ``//anon``) stay; shared libraries and executables keep
    their base name; any other file is ``(file)``.
    """
    if not name or name.startswith(("[", "//")) or name in ("/dev/zero", "anon_inode:[perf_event]"):
        return name
    if name.startswith("/memfd:"):
        return "/memfd"
    if name.startswith("/SYSV"):
        return "/SYSV"
    if name.startswith(("/anon_hugepage", "/dev/shm/")):
        return "/" + name.split("/")[1]
    base = name.removesuffix(" (deleted)").rsplit("/", 1)[-1]
    if executable or re.search(r"\.so(\.|$)", base):
        return base
    return "(file)"
