"""Compilation: decorators, and what compiled code may call.

Nothing here loads numba before something must be compiled, or is called that only numba
can load.  What :func:`native` decorates is neither, once it has been compiled
(:mod:`mmreplay.jit.loading`): importing numba alone takes longer than reading a million
events.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmreplay.jit.cache import CHECKED, INTERPRETED, cache_dir
from mmreplay.jit.lazy import Lazy
from mmreplay.jit.shapes import tables

__all__ = [
    "Lazy",
    "borrowing_helper",
    "borrowing_njit",
    "c_callback",
    "helper",
    "inlined_helper",
    "is_cold",
    "lean",
    "native",
    "native_of",
    "njit",
    "pointer",
    "prefetch",
    "tables",
    "values_at",
]


def is_cold(name: str) -> bool:
    """Whether a ``native`` function (its module's name and its own) is still to be compiled.

    Not so where it could not be kept.
    """
    if CHECKED or INTERPRETED:
        return False
    folder = cache_dir(_room_of(name))
    return bool(folder) and os.access(folder, os.W_OK) and not any(Path(folder).glob(f"{name}-*"))


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
    if CHECKED or INTERPRETED:
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

    if CHECKED or INTERPRETED:
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
