"""Arrays as compiled code likes them: see :data:`mmreplay.jit.lean`."""

from __future__ import annotations

import operator
from typing import Any, Final

import numba
import numba.extending
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global

from mmreplay.jit.shapes import COLUMNS

_CHECKED: Final = bool(numba.config.BOUNDSCHECK)


class Lean(numba.types.Type):  # type: ignore[misc]
    """In compiled code: a contiguous array as its address, length and columns, to be indexed.

    ``columns``: of a table, where they are known: they make indices of shifts, not products.
    """

    def __init__(self, dtype: Any, ndim: int, columns: int | None) -> None:
        self.dtype, self.ndim, self.columns = dtype, ndim, columns
        super().__init__(f"lean({dtype}, {ndim}, {columns})")


@numba.extending.register_model(Lean)
class _LeanModel(numba.extending.models.StructModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Lean) -> None:
        members = [
            ("data", numba.types.CPointer(kind.dtype)),
            ("length", numba.types.intp),
            ("columns", numba.types.intp),
        ]
        super().__init__(manager, kind, members)


def _is_place(kind: Lean, index: Any) -> bool:
    if kind.ndim == 1:
        return isinstance(index, numba.types.Integer)
    return (
        isinstance(index, numba.types.BaseTuple)
        and len(index) == 2
        and all(isinstance(part, numba.types.Integer) for part in index)
    )


@infer_global(operator.getitem)
class _TypeRead(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        if len(args) == 2 and isinstance(args[0], Lean) and _is_place(*args):
            return args[0].dtype(*args)
        return None


@infer_global(operator.setitem)
class _TypeWrite(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        if len(args) == 3 and isinstance(args[0], Lean) and _is_place(*args[:2]):
            return numba.types.none(*args[:2], args[0].dtype)
        return None


@infer_global(len)
class _TypeLength(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        return numba.types.intp(*args) if isinstance(args[0], Lean) else None


def _place(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    """Address of an element."""
    kind, index = kinds[:2]
    data = builder.extract_value(values[0], 0)

    def number(part: Any, value: Any) -> Any:
        return context.cast(builder, value, part, numba.types.intp)

    if kind.ndim == 1:
        return builder.gep(data, [number(index, values[1])])
    row, column = (number(index[k], builder.extract_value(values[1], k)) for k in range(2))
    columns = (
        builder.extract_value(values[0], 2) if kind.columns is None else row.type(kind.columns)
    )
    return builder.gep(data, [builder.add(builder.mul(row, columns), column)])


@numba.extending.lower_builtin(operator.getitem, Lean, numba.types.Any)
def _read(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    place = _place(context, builder, signature.args, values)
    kind = signature.return_type
    return (
        place
        if isinstance(kind, numba.types.Record)
        else context.unpack_value(builder, kind, place)
    )


@numba.extending.lower_builtin(operator.setitem, Lean, numba.types.Any, numba.types.Any)
def _write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    place = _place(context, builder, signature.args, values)
    context.pack_value(builder, signature.args[2], values[2], place)
    return context.get_dummy_value()


@numba.extending.lower_builtin(len, Lean)
def _length(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    return builder.extract_value(values[0], 1)


def _lean_kind(kind: Any, columns: int | None = None) -> Any:
    if isinstance(kind, numba.types.BaseNamedTuple):
        known = COLUMNS.get(kind.instance_class, {})
        parts = [_lean_kind(t, known.get(n)) for n, t in zip(kind.fields, kind.types, strict=True)]
        return numba.types.NamedTuple(parts, kind.instance_class)
    return Lean(kind.dtype, kind.ndim, columns) if isinstance(kind, numba.types.Array) else kind


def _made_lean(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    lean_kind = _lean_kind(kind)
    if isinstance(kind, numba.types.BaseNamedTuple):
        parts = [
            _made_lean(context, builder, part, builder.extract_value(value, k))
            for k, part in enumerate(kind.types)
        ]
        return context.make_tuple(builder, lean_kind, parts)
    if not isinstance(kind, numba.types.Array):
        return value
    array = context.make_array(kind)(context, builder, value)
    made = cgutils.create_struct_proxy(lean_kind)(context, builder)
    made.data = array.data
    made.length = builder.extract_value(array.shape, 0)
    made.columns = builder.extract_value(array.shape, kind.ndim - 1)
    return made._getvalue()


@numba.extending.intrinsic
def _lean(_context: Any, arrays: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _made_lean(context, builder, arrays, args[0])

    return _lean_kind(arrays)(arrays), codegen


def _as_lean(arrays: Any) -> Any:
    """In compiled code: a contiguous array, or a named tuple of them, as :class:`Lean` ones."""
    return _lean(arrays)


def _as_it_is(arrays: Any) -> Any:
    return arrays


#: One of two functions: numba would type both branches of one.
lean: Final = numba.extending.register_jitable(_as_it_is if _CHECKED else _as_lean)
