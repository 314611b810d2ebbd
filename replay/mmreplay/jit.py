"""Compilation: one decorator, and a cache that cannot go stale.

numba's ``cache=True`` does not notice a changed callee in another file, so the
cache directory is keyed by a hash over every source file of the package and the
versions that matter.  ``NUMBA_BOUNDSCHECK=1`` compiles with bounds checks into a
cache of its own.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numba

_PACKAGE: Final = Path(__file__).resolve().parent
_KEEP: Final = 3


def _cache_base() -> Path:
    if "MMREPLAY_CACHE" in os.environ:
        return Path(os.environ["MMREPLAY_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mmreplay"


def _key() -> str:
    digest = hashlib.sha256()
    for part in (
        numba.__version__,
        sys.version,
        platform.machine(),
        os.environ.get("NUMBA_BOUNDSCHECK", ""),
        str(_PACKAGE),
    ):
        digest.update(part.encode())
    for source in sorted(_PACKAGE.rglob("*.py")):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:20]


def _prune(base: Path, keep: Path) -> None:
    others = [p for p in base.glob("jit-*") if p != keep]
    for old in sorted(others, key=lambda p: p.stat().st_mtime, reverse=True)[_KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def _configure() -> None:
    base = _cache_base()
    cache = base / f"jit-{_key()}"
    try:
        if not cache.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            _prune(base, cache)
    except OSError:
        return  # read-only home: numba falls back to its own choice
    numba.config.CACHE_DIR = str(cache)


_configure()


def njit(function: Callable[..., Any]) -> Any:
    """Compile ``function`` on first use: no GIL, cached on disk, C integer semantics."""
    return numba.njit(cache=True, nogil=True, error_model="numpy")(function)


def helper(function: Callable[..., Any]) -> Any:
    """Compile ``function`` for calls from compiled code only.

    Without the wrappers that Python needs a small function compiles several times faster
    where it takes many arrays; it is cached as part of its callers.
    """
    return numba.njit(
        nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
    )(function)
