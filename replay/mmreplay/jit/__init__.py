"""Compilation: decorators, and a cache that cannot go stale.

numba's ``cache=True`` does not notice a changed callee, or a changed constant, in
another file.  So each room compiles into a cache directory of its own, keyed by a
hash over the sources of the room, of the rooms it takes code or constants from, and
the versions that matter.  ``NUMBA_BOUNDSCHECK=1`` compiles with bounds checks into
caches of their own.

Nothing here loads numba before something must be compiled, or is called that only numba
can load.  What :func:`native` decorates is neither, once it has been compiled
(:mod:`mmreplay.jit.loading`): importing numba alone takes longer than reading a million
events.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mmreplay.resources import cache_base

_PACKAGE: Final = Path(__file__).resolve().parents[1]
_KEEP: Final = 3
#: numba's switches, by the environment (it has them from nowhere else).
_CHECKED: Final = os.environ.get("NUMBA_BOUNDSCHECK", "0") not in ("", "0")
_SWITCHES: Final = ("BOUNDSCHECK", "OPT", "CPU_NAME", "CPU_FEATURES")
_INTERPRETED: Final = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
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
        with open(source, "rb", buffering=0) as file:  # noqa: PTH123
            parts += (source.encode(), file.read())
    return digest(b"\0".join(parts)).hex()


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
    base = cache_base()
    cache = base / f"jit-{room}-{_key(room)}"
    try:
        if not cache.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            _prune(base, room, cache)
    except OSError:
        return ""
    return str(cache)


def is_cold(name: str) -> bool:
    """Whether a ``native`` function (its module's name and its own) is still to be compiled.

    Not so where it could not be kept.
    """
    if _CHECKED or _INTERPRETED:
        return False
    folder = cache_dir(_room_of(name))
    return bool(folder) and os.access(folder, os.W_OK) and not any(Path(folder).glob(f"{name}-*"))


class Lazy:
    """Something that numba makes, made when it is first wanted.

    To compiled code it is what ``make`` returns; so it is to Python, which may call it.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    @functools.cached_property
    def made(self) -> Any:
        """What ``make`` returned; two threads may make it twice, and one is kept."""
        return self.__dict__.setdefault("made", self._make())

    @property
    def _numba_type_(self) -> Any:
        from mmreplay.jit.compiler import type_of

        return type_of(self.made)

    def __call__(self, *args: Any) -> Any:
        return self.made(*args)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.made, name)


def _room_of(module: str) -> str:
    words = module.split(".")
    return words[1] if len(words) > 2 and words[0] == "mmreplay" else "other"


def _whole(function: Callable[..., Any], counts_references: bool) -> Any:
    def make() -> Any:
        from mmreplay.jit.compiler import whole

        return whole(function, cache_dir(_room_of(function.__module__)), counts_references)

    return functools.update_wrapper(Lazy(make), function)


def njit(function: Callable[..., Any]) -> Any:
    """Compile ``function`` on first use: no GIL, cached on disk, C integer semantics."""
    return _whole(function, True)


def borrowing_njit(function: Callable[..., Any]) -> Any:
    """As ``njit``, for a function that makes, keeps and returns no arrays (see below)."""
    return _whole(function, False)


def native(function: Callable[..., Any]) -> Any:
    """As ``borrowing_njit``, and loaded without numba once it has been compiled.

    It takes C-contiguous arrays, integers, and (named) tuples of them, by position, and
    returns an integer (int64) or nothing.
    """
    if _CHECKED or _INTERPRETED:
        return borrowing_njit(function)
    from mmreplay.jit.loading import Native

    inner = borrowing_helper(function)
    room = _room_of(function.__module__)
    return functools.update_wrapper(
        Native(
            f"{function.__module__}.{function.__qualname__}",
            lambda: function,
            lambda: inner.made,
            lambda: cache_dir(room),
        ),
        function,
    )


def native_of(module: str, name: str) -> Any:
    """The ``native`` function of a module that is loaded only to compile it."""

    def found() -> Any:
        return getattr(importlib.import_module(module), name)

    if _CHECKED or _INTERPRETED:
        return Lazy(found)
    from mmreplay.jit.loading import Native

    return Native(
        f"{module}.{name}",
        lambda: found().__wrapped__,
        lambda: found().made,
        lambda: cache_dir(_room_of(module)),
    )


def c_callback(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function that C code calls, by its C signature; its ``address`` is the pointer."""
    from mmreplay.jit.compiler import callback

    return lambda function: callback(function, cache_dir(_room_of(function.__module__)), signature)


def helper(
    function: Callable[..., Any], *, counts_references: bool = True, forceinline: bool = False
) -> Any:
    """Compile a callee of compiled functions only: no Python wrapper, no cache of its own.

    It is stored inside its callers' cache entries.  Constants and narrow integers
    arrive as plain integers: numba would compile it anew for each constant.
    """

    def make() -> Any:
        from mmreplay.jit.compiler import part

        return part(function, counts_references, forceinline)

    return functools.update_wrapper(Lazy(make), function)


def borrowing_helper(function: Callable[..., Any]) -> Any:
    """A ``helper`` that makes, keeps and returns no arrays: compiled without reference counts.

    numba counts a reference to every array of a tuple at every call, atomically: with nine arrays
    and a dozen calls an operation that took ten times as long as the work itself.
    """
    return helper(function, counts_references=False)


def inlined_helper(function: Callable[..., Any]) -> Any:
    """A ``borrowing_helper`` that is put into every caller: for few and hot places."""
    return helper(function, counts_references=False, forceinline=True)


def _of_compiler(name: str, module: str = "compiler") -> Any:
    return Lazy(lambda: getattr(importlib.import_module(f"mmreplay.jit.{module}"), name))


#: In compiled code, ``pointer(array)``: the elements of a contiguous array, as something to index.
#:
#: An array is passed to each callee as seven words, and every signed index into it is
#: tested for being negative.  A pointer is one word and indexes as C does.  The caller
#: keeps the array alive.  With ``NUMBA_BOUNDSCHECK=1`` it stays an array.
pointer = _of_compiler("pointer")

#: In compiled code, ``values_at(address, np.int32)``: what lies there, to be indexed.
values_at = _of_compiler("values_at")

#: In compiled code, ``prefetch(array, index)``: ask for the cache line of ``array[index]``, to
#: be read later.
prefetch = _of_compiler("prefetch")

#: In compiled code, ``lean(arrays)``: a contiguous array, or a named tuple of them, as its
#: address, length and columns, to be indexed.
#:
#: As with ``pointer``, but elements may be records, and there may be two dimensions: a lean
#: array is three words.  (The planner: 32 to 25 s of CPU to compile.)
lean = _of_compiler("lean", "lean_arrays")

#: Columns of the two-dimensional arrays of named tuples, where :func:`tables` says them.
COLUMNS: Final[dict[type, dict[str, int]]] = {}


def tables(kind: type, **columns: int) -> None:
    """Say how many columns each two-dimensional array of a class of named tuples has.

    Compiled code then indexes the lean ones by shifts instead of products.
    """
    COLUMNS[kind] = columns
