"""Compilation: one decorator, and a cache that cannot go stale.

numba's ``cache=True`` does not notice a changed callee, or a changed constant, in
another file.  So each room compiles into a cache directory of its own, keyed by a
hash over the sources of the room, of the rooms it takes code or constants from, and
the versions that matter.  ``NUMBA_BOUNDSCHECK=1`` compiles with bounds checks into
caches of their own.

numba optimises and assembles every function together with all that it calls, so a
helper at the bottom of five levels is optimised five times over.  Here helpers are
only lowered; the function that Python calls links them all in, private to itself,
and is optimised once.  Being private, a helper also loses the arguments it does not
use: an array takes seven.  (The planner's pass: 45 to 28 s of CPU to compile, and
0.60 to 0.24 s for 1.5 M operations.)
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numba
import numba.extending
from llvmlite import ir
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, Flags
from numba.core.runtime import rtsys

from mmreplay.resources import cache_base

_PACKAGE: Final = Path(__file__).resolve().parent
_KEEP: Final = 3
_CHECKED: Final = bool(numba.config.BOUNDSCHECK)
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


def _sources(room: str) -> list[Path]:
    if room not in _USES:
        return sorted(_PACKAGE.rglob("*.py"))
    found = list(_PACKAGE.glob("*.py"))
    for name in (room, *_USES[room]):
        found += (_PACKAGE / name).rglob("*.py")
    return sorted(found)


def _key(room: str) -> str:
    digest = hashlib.sha256()
    for part in (
        numba.__version__,
        sys.version,
        platform.machine(),
        os.environ.get("NUMBA_BOUNDSCHECK", ""),
        str(_PACKAGE),
    ):
        digest.update(part.encode())
    for source in _sources(room):
        digest.update(str(source.relative_to(_PACKAGE)).encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:20]


def _prune(base: Path, room: str, keep: Path) -> None:
    others = [p for p in base.glob(f"jit-{room}-*") if p != keep]
    for old in sorted(others, key=lambda p: p.stat().st_mtime, reverse=True)[_KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


@functools.cache
def _cache_dir(room: str) -> str:
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


class _PartCodegen:
    """Of a helper: its environment (boxed constants) is never loaded, so it is not set."""

    def __init__(self, codegen: Any) -> None:
        self._codegen = codegen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codegen, name)

    def set_env(self, env_name: str, env: Any) -> None:
        pass


class _Part(JITCodeLibrary):  # type: ignore[misc]
    """Code of a helper: kept as it was lowered until a :class:`_Whole` links it in."""

    @property
    def codegen(self) -> Any:
        return _PartCodegen(self._codegen)

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._finalized = True


class _Whole(JITCodeLibrary):  # type: ignore[misc]
    """Code of a function that Python calls, with every helper that it reaches."""

    def finalize(self) -> None:
        libraries = self._linking_libraries
        for library in libraries:  # grows while it is walked
            if isinstance(library, _Part):
                libraries += [more for more in library._linking_libraries if more not in libraries]
        super().finalize()

    def _optimize_final_module(self) -> None:
        private = {
            function.name
            for library in self._linking_libraries
            if isinstance(library, _Part)
            for function in library.get_defined_functions()
        }
        for function in self.get_defined_functions():
            if function.name in private:
                function.linkage = "internal"
        super()._optimize_final_module()


class _Options(Flags):  # type: ignore[misc]
    """numba's options of a compilation.

    It looks for them in a dictionary for each operator that it types, and hashes all 30.
    """

    def __hash__(self) -> int:
        return hash(tuple(sorted((name, str(value)) for name, value in self._values.items())))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _Options) and self._values == other._values:
            return True
        return bool(super().__eq__(other))


def _into(kind: type[JITCodeLibrary]) -> type[Compiler]:
    """numba's compiler, with the code kept in a library of this kind."""

    class Into(Compiler):  # type: ignore[misc]
        def __init__(self, typing: Any, target: Any, library: Any, *rest: Any) -> None:
            if library is None:
                library = kind(target.codegen(), kind.__name__)
                library.enable_object_caching()
            arguments, result, flags, variables = rest
            super().__init__(typing, target, library, arguments, result, _Options(flags), variables)

    return Into


_INTO_PART: Final = _into(_Part)
_INTO_WHOLE: Final = _into(_Whole)


def njit(function: Callable[..., Any]) -> Any:
    """Compile ``function`` on first use: no GIL, cached on disk, C integer semantics."""
    words = function.__module__.split(".")
    room = words[1] if len(words) > 2 and words[0] == "mmreplay" else "other"
    numba.config.CACHE_DIR = _cache_dir(room)
    return _loading_alone(
        numba.njit(cache=True, nogil=True, error_model="numpy", pipeline_class=_INTO_WHOLE)(
            function
        )
    )


def _loading_alone(dispatcher: Any) -> Any:
    """Let code be loaded from the cache without all that numba needs to compile.

    numba lists all it can compile before it looks into its cache: half of the time of
    loading a command's functions (0.15 s).  Where there is nothing in the cache, compiling
    does that itself.  The runtime that counts references is all that loaded code needs.
    """
    if not numba.config.DISABLE_JIT:
        cache = dispatcher._cache

        def load_overload(signature: Any, context: Any) -> Any:
            rtsys.initialize(context)
            with cache._guard_against_spurious_io_errors():
                return cache._load_overload(signature, context)

        cache.load_overload = load_overload
    return dispatcher


def c_callback(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function that C code calls, by its C signature; its ``address`` is the pointer."""

    def compiled(function: Callable[..., Any]) -> Any:
        numba.config.CACHE_DIR = _cache_dir(function.__module__.split(".")[1])
        return numba.cfunc(signature, cache=True)(function)

    return compiled


def borrowing_njit(function: Callable[..., Any]) -> Any:
    """As ``njit``, for a function that makes, keeps and returns no arrays (see below)."""
    words = function.__module__.split(".")
    numba.config.CACHE_DIR = _cache_dir(words[1])
    return _loading_alone(
        numba.njit(
            cache=True, nogil=True, error_model="numpy", _nrt=False, pipeline_class=_INTO_WHOLE
        )(function)
    )


def borrowing_helper(function: Callable[..., Any]) -> Any:
    """A ``helper`` that makes, keeps and returns no arrays: compiled without reference counts.

    numba counts a reference to every array of a tuple at every call, atomically: with nine arrays
    and a dozen calls an operation that took ten times as long as the work itself.
    """
    return helper(function, counts_references=False)


@numba.extending.intrinsic
def _pointer(_context: Any, array: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return numba.types.CPointer(array.dtype)(array), codegen


@numba.extending.register_jitable
def pointer(array: Any) -> Any:
    """In compiled code: the elements of a contiguous array, as something to index.

    An array is passed to each callee as seven words, and every signed index into it is
    tested for being negative.  A pointer is one word and indexes as C does.  The caller
    keeps the array alive.  With ``NUMBA_BOUNDSCHECK=1`` it stays an array.
    """
    return array if _CHECKED else _pointer(array)


@numba.extending.intrinsic
def prefetch(_context: Any, array: Any, index: Any) -> Any:
    """In compiled code: ask for the cache line of ``array[index]``, to be read later."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        data = args[0]
        if isinstance(kind, numba.types.Array):
            data = context.make_array(kind)(context, builder, data).data
        place = builder.bitcast(builder.gep(data, [args[1]]), ir.PointerType(ir.IntType(8)))
        word = ir.IntType(32)
        name = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [place.type],
            ir.FunctionType(ir.VoidType(), [place.type, word, word, word]),
        )
        builder.call(name, [place, word(0), word(3), word(1)])  # read, keep in every level, data
        return context.get_dummy_value()

    return numba.types.void(array, index), codegen


def inlined_helper(function: Callable[..., Any]) -> Any:
    """A ``borrowing_helper`` that is put into every caller: for few and hot places."""
    return helper(function, counts_references=False, forceinline=True)


def helper(
    function: Callable[..., Any], *, counts_references: bool = True, forceinline: bool = False
) -> Any:
    """Compile a callee of compiled functions only: no Python wrapper, no cache of its own.

    It is stored inside its callers' cache entries.  Constants and narrow integers
    arrive as plain integers: numba would compile it anew for each constant.
    """
    dispatcher = numba.njit(
        nogil=True,
        error_model="numpy",
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        forceinline=forceinline,
        pipeline_class=_INTO_PART,
        **({} if counts_references else {"_nrt": False}),
    )(function)
    if numba.config.DISABLE_JIT:
        return dispatcher
    original = dispatcher.get_call_template

    def get_call_template(args: Any, kws: Any) -> Any:
        return original(tuple(_widened(a) for a in args), {k: _widened(v) for k, v in kws.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher


def _widened(kind: Any) -> Any:
    plain = numba.types.unliteral(kind)
    if isinstance(plain, numba.types.Integer) and plain.signed:
        return numba.types.int64
    return plain
