"""Where compiled code is kept: a cache that cannot go stale.

numba's ``cache=True`` does not notice a changed callee, or a changed constant, in
another file.  So each room compiles into a cache directory of its own, keyed by a
hash over the sources of the room, of the rooms it takes code or constants from, and
the versions that matter.  ``NUMBA_BOUNDSCHECK=1`` compiles with bounds checks into
caches of their own.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mmreplay.resources import cache_base

_PACKAGE: Final = Path(__file__).resolve().parents[1]
_KEEP: Final = 3
#: numba's switches, by the environment (it has them from nowhere else).
CHECKED: Final = os.environ.get("NUMBA_BOUNDSCHECK", "0") not in ("", "0")
_SWITCHES: Final = ("BOUNDSCHECK", "OPT", "CPU_NAME", "CPU_FEATURES")
INTERPRETED: Final = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
#: Which rooms' sources a room's compiled functions use, besides its own and the
#: modules at the top of the package.  A room that is not named uses all of them.
_USES: Final[dict[str, tuple[str, ...]]] = {
    "trace": (),
    "importers": ("trace",),
    "recorder": ("importers",),
    "report": (),
    "address_space": ("trace",),
    "engine": ("locking", "address_space"),
    "workloads": ("trace",),
    "hardware": ("workloads",),
}


def _sources(room: str) -> list[str]:
    """Paths of the sources, in order.  Every command looks, and pathlib takes twice as long."""
    found = [f"{_PACKAGE}/{name}" for name in next(os.walk(_PACKAGE))[2]]
    for folder in ("jit", room, *_USES[room]) if room in _USES else (".",):
        for at, _, names in os.walk(_PACKAGE / folder):
            found += (f"{at}/{name}" for name in names)
    return sorted({path for path in found if path.endswith(".py")})


@functools.cache
def version_of(package: str) -> str:
    """What tells a package's version, without loading it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return ""
    return (Path(found.origin).parent / "_version.py").read_text()


def _key(room: str) -> str:
    told = (
        version_of("numba"),
        sys.version,
        platform.machine(),
        *(os.environ.get(f"NUMBA_{name}", "") for name in _SWITCHES),
        str(_PACKAGE),
    )
    parts = [part.encode() for part in told]
    for source in _sources(room):
        parts += (source.encode(), _digest_of(source))
    return digest(b"\0".join(parts)).hex()


@functools.cache  # rooms share sources
def _digest_of(source: str) -> bytes:
    with open(source, "rb", buffering=0) as file:  # noqa: PTH123
        return digest(file.read())


def digest(content: bytes) -> bytes:
    """8 bytes that tell whether content is the same: what Python itself keeps compiled code by.

    Loading hashlib, with OpenSSL behind it, takes as long as all the rest of this module.
    """
    return importlib.util.source_hash(content)


def _prune(base: Path, room: str, keep: Path) -> None:
    others = [p for p in base.glob(f"jit-{room}-*") if p != keep]
    import shutil

    for old in sorted(others, key=lambda p: p.stat().st_mtime, reverse=True)[_KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


@functools.cache
def cache_dir(room: str) -> str:
    """The room's cache directory, made; empty (numba's own choice) where it cannot be."""
    try:
        base = cache_base()
        cache = base / f"jit-{room}-{_key(room)}"
        if not cache.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            _prune(base, room, cache)
    except (OSError, RuntimeError):  # nowhere to write, no home
        return ""
    return str(cache)


_HELD: Final[set[str]] = set()  # cache directories that this process compiles into


@contextlib.contextmanager
def alone(folder: str) -> Iterator[None]:
    """While compiling: no other process does so for this cache, and no garbage is collected.

    Several processes that start together (tests, a batch) would all compile the same.  Of
    the time to compile, 13 % went to looking for garbage; what piles up is about 160 MB.
    """
    if folder in _HELD:  # a function compiled on behalf of another one
        yield
        return
    _say_so(kept=bool(folder) and os.access(folder, os.W_OK))
    if not folder:  # nothing to share
        yield
        return
    with contextlib.ExitStack() as scope:
        with contextlib.suppress(OSError):  # file systems without locks: each for itself
            lock = scope.enter_context(open(Path(folder) / "lock", "w"))  # noqa: PTH123
            fcntl.flock(lock, fcntl.LOCK_EX)
        _HELD.add(folder)
        scope.callback(_HELD.discard, folder)
        if gc.isenabled():
            gc.disable()
            scope.callback(gc.enable)
        yield


@functools.cache
def _say_so(*, kept: bool) -> None:
    """Once, to who looks: a newcomer's first command seems to do nothing for half a minute."""
    if sys.stderr is None or not sys.stderr.isatty():
        return
    told = "only the first time" if kept else "each time: MMREPLAY_CACHE=DIR gives it a place"
    sys.stderr.write(f"mmreplay: compiling ({told})\n")
    sys.stderr.flush()
