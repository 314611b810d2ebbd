"""What needs numba: compiling, and loading what only numba can load.

numba optimises and assembles every function together with all that it calls, so a
helper at the bottom of five levels is optimised five times over.  Here helpers are
only lowered; the function that Python calls links them all in, private to itself,
and is optimised once.  Being private, a helper also loses the arguments it does not
use: an array takes seven.  (The planner's pass: 45 to 28 s of CPU to compile, and
0.60 to 0.24 s for 1.5 M operations.)
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, Final

import llvmlite.binding as llvm
import numba
import numba.extending
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys

from mmreplay.jit.cache import alone
from mmreplay.jit.linking import ENTRY, MOST_RESULTS
from mmreplay.jit.shortcuts import (
    Options,
    leave_results_unset,
    plain_passes,
    remember_operators,
    remember_sizes,
)

_CHECKED: Final = bool(numba.config.BOUNDSCHECK)
remember_operators()
leave_results_unset()


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


def _into(kind: type[JITCodeLibrary]) -> type[Compiler]:
    """numba's compiler, with the code kept in a library of this kind."""

    class Into(Compiler):  # type: ignore[misc]
        def __init__(self, typing: Any, target: Any, library: Any, *rest: Any) -> None:
            if library is None:
                library = kind(target.codegen(), kind.__name__)
                library.enable_object_caching()
            remember_sizes(target)
            arguments, result, flags, variables = rest
            super().__init__(typing, target, library, arguments, result, Options(flags), variables)

        def define_pipelines(self) -> list[Any]:
            passes = plain_passes(self.state)
            return super().define_pipelines() if passes is None else [passes]

    return Into


class _Native(_Whole):
    """Code that is called through one entry, which takes its arguments from a row of words."""

    def finalize(self) -> None:
        (own,) = (one for one in self.get_defined_functions() if not one.is_declaration)
        self._own = own.name
        self._final_module.link_in(llvm.parse_assembly(self._entry(own)))
        super().finalize()

    def _optimize_final_module(self) -> None:
        for function in self.get_defined_functions():
            if function.name == self._own:
                function.linkage = "internal"
        super()._optimize_final_module()

    def _entry(self, own: Any) -> str:
        kinds = [str(one.type) for one in own.arguments]
        given = []
        lines = []
        for at, kind in enumerate(kinds[2:]):  # behind where the result and the error go
            lines.append(f"%p{at} = getelementptr i64, ptr %words, i64 {at}")
            lines.append(f"%w{at} = load i64, ptr %p{at}")
            how = {"ptr": "inttoptr", "i64": "bitcast"}.get(kind, "trunc")
            lines.append(f"%a{at} = {how} i64 %w{at} to {kind}")
            given.append(f"{kind} %a{at}")
        return f"""
target triple = "{self._final_module.triple}"
target datalayout = "{self._final_module.data_layout}"
declare i32 @"{own.name}"({", ".join(kinds)})
define i32 @{ENTRY}(ptr %words, ptr %result) {{
  %error = alloca ptr
  {chr(10).join(lines)}
  %status = call i32 @"{own.name}"({", ".join(["ptr %result", "ptr %error", *given])})
  ret i32 %status
}}
"""


_INTO_PART: Final = _into(_Part)
_INTO_WHOLE: Final = _into(_Whole)
_INTO_NATIVE: Final = _into(_Native)


def type_of(made: Any) -> Any:
    """numba's type of what a :class:`mmreplay.jit.Lazy` stands for."""
    context = cpu_target.typing_context
    context.refresh()  # an intrinsic is known to it from then on
    return context.resolve_value_type(made)


_TURN: Final = threading.local()  # .of: the ExitStack of the compilation that a thread is in


def _cached(dispatcher: Any) -> Any:
    """A function that Python calls: loaded from the cache, else compiled by one process.

    numba lists all it can compile before it looks into its cache: half of the time of
    loading a command's functions (0.15 s).  Where there is nothing in the cache, compiling
    does that itself.  The runtime that counts references is all that loaded code needs.
    """
    if numba.config.DISABLE_JIT:
        return dispatcher
    cache, compile_now, folder = dispatcher._cache, dispatcher.compile, numba.config.CACHE_DIR

    def load_overload(signature: Any, context: Any) -> Any:
        rtsys.initialize(context)
        with cache._guard_against_spurious_io_errors():
            found = cache._load_overload(signature, context)
            if found is None and folder:
                _TURN.of.enter_context(alone(folder))
                found = cache._load_overload(signature, context)  # as another process left it
            return found

    def compile_in_turn(signature: Any) -> Any:
        with contextlib.ExitStack() as turn:
            turn.callback(setattr, _TURN, "of", getattr(_TURN, "of", None))
            _TURN.of = turn
            return compile_now(signature)

    cache.load_overload = load_overload
    dispatcher.compile = compile_in_turn
    return dispatcher


def whole(function: Callable[..., Any], cache: str, counts_references: bool) -> Any:
    """The dispatcher of :func:`mmreplay.jit.njit`, with its code kept in a directory."""
    numba.config.CACHE_DIR = cache
    return _cached(
        numba.njit(
            cache=True,
            nogil=True,
            error_model="numpy",
            pipeline_class=_INTO_WHOLE,
            **({} if counts_references else {"_nrt": False}),
        )(function)
    )


def callback(function: Callable[..., Any], cache: str, signature: Any) -> Any:
    """See :func:`mmreplay.jit.c_callback`."""
    numba.config.CACHE_DIR = cache
    return numba.cfunc(signature, cache=True)(function)


def native_code(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[int, bytes]:
    """How many integers it returns, and object code with :data:`~mmreplay.jit.linking.ENTRY`."""
    dispatcher = numba.njit(
        nogil=True,
        error_model="numpy",
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        pipeline_class=_INTO_NATIVE,
        _nrt=False,
    )(function)
    dispatcher.compile(tuple(_kind(argument) for argument in arguments))
    (compiled,) = dispatcher.overloads.values()
    returned = types.unliteral(compiled.signature.return_type)
    results = [] if returned == types.none else [returned]
    if isinstance(returned, types.BaseTuple):
        results = list(returned)
    if (
        any(types.unliteral(result) != types.int64 for result in results)
        or len(results) > MOST_RESULTS
    ):
        raise TypeError(f"{function.__qualname__} returns {returned}")
    return len(results), compiled.library._get_compiled_object()


def _kind(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        kind = numba.from_dtype(argument.dtype)
        return types.Array(kind, argument.ndim, "C", readonly=not argument.flags.writeable)
    if isinstance(argument, tuple):
        return types.BaseTuple.from_types([_kind(one) for one in argument], type(argument))
    return types.uint64 if isinstance(argument, np.uint64) else types.int64


@numba.extending.intrinsic
def _pointer(_context: Any, array: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return numba.types.CPointer(array.dtype)(array), codegen


def _at_address(array: Any) -> Any:
    """In compiled code: the elements of a contiguous array, as something to index.

    An array is passed to each callee as seven words, and every signed index into it is
    tested for being negative.  A pointer is one word and indexes as C does.  The caller
    keeps the array alive.  With ``NUMBA_BOUNDSCHECK=1`` it stays an array.
    """
    return _pointer(array)


def _as_it_is(array: Any) -> Any:
    return array


#: One of two functions: a branch in one would give a result that is no argument, which
#: ``borrowing_njit`` does not take.
pointer: Final = numba.extending.register_jitable(_as_it_is if _CHECKED else _at_address)


@numba.extending.intrinsic
def values_at(_context: Any, address: Any, kind: Any) -> Any:
    """In compiled code: what lies at an address, as ``kind`` (``np.int32``), to be indexed."""
    pointer_type = numba.types.CPointer(kind.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer_type))

    return pointer_type(numba.types.int64, kind), codegen


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


def part(function: Callable[..., Any], counts_references: bool, forceinline: bool) -> Any:
    """The dispatcher of :func:`mmreplay.jit.helper`."""
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
