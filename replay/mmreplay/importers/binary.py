"""Unaligned little-endian loads for compiled scanners.

perf records need not be aligned (user records of odd size, RAW data
starting at 4 mod 8), so the loads are unaligned.  They do **not** check bounds: every
caller proves its bounds first.  With ``NUMBA_BOUNDSCHECK=1`` in the environment each
load checks too, which is how the tests run the fuzzed files.
"""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np

from mmreplay.jit import Lazy, helper, native

_CHECK: Final = os.environ.get("NUMBA_BOUNDSCHECK", "0") not in ("", "0")


def _loader(name: str) -> Any:
    def make() -> Any:
        from numba import types
        from numba.core import cgutils
        from numba.extending import intrinsic

        ty = getattr(types, name)

        def typed(typingctx: Any, buffer: Any, position: Any) -> Any:
            if not isinstance(buffer, types.Array) or buffer.dtype != types.uint8:
                return None
            signature = ty(buffer, types.int64)

            def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                array = context.make_array(sig.args[0])(context, builder, args[0])
                address = cgutils.gep_inbounds(builder, array.data, args[1])
                pointer = builder.bitcast(address, context.get_value_type(ty).as_pointer())
                return builder.load(pointer, align=1)

            return signature, codegen

        return intrinsic(typed)

    return Lazy(make)


_u16 = _loader("uint16")
_u32 = _loader("uint32")
_i32 = _loader("int32")
_u64 = _loader("uint64")
_i64 = _loader("int64")

if _CHECK:

    @helper
    def load_u16(buffer: Any, position: int) -> Any:
        """The u16 at ``position`` of a uint8 buffer."""
        if position < 0 or position + 2 > buffer.shape[0]:
            raise IndexError("load_u16 out of bounds")
        return _u16(buffer, position)

    @helper
    def load_u32(buffer: Any, position: int) -> Any:
        """The u32 at ``position`` of a uint8 buffer."""
        if position < 0 or position + 4 > buffer.shape[0]:
            raise IndexError("load_u32 out of bounds")
        return _u32(buffer, position)

    @helper
    def load_i32(buffer: Any, position: int) -> Any:
        """The i32 at ``position`` of a uint8 buffer."""
        if position < 0 or position + 4 > buffer.shape[0]:
            raise IndexError("load_i32 out of bounds")
        return _i32(buffer, position)

    @helper
    def load_u64(buffer: Any, position: int) -> Any:
        """The u64 at ``position`` of a uint8 buffer."""
        if position < 0 or position + 8 > buffer.shape[0]:
            raise IndexError("load_u64 out of bounds")
        return _u64(buffer, position)

    @helper
    def load_i64(buffer: Any, position: int) -> Any:
        """The i64 at ``position`` of a uint8 buffer."""
        if position < 0 or position + 8 > buffer.shape[0]:
            raise IndexError("load_i64 out of bounds")
        return _i64(buffer, position)

else:
    load_u16 = _u16
    load_u32 = _u32
    load_i32 = _i32
    load_u64 = _u64
    load_i64 = _i64


def _make_pointer() -> Any:
    from numba import types
    from numba.extending import intrinsic

    def _pointer(typingctx: Any, array: Any) -> Any:
        if not isinstance(array, types.Array) or array.layout != "C":
            return None

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return context.make_array(sig.args[0])(context, builder, args[0]).data

        return types.CPointer(array.dtype)(array), codegen

    return intrinsic(_pointer)


def _make_flat() -> Any:
    from numba import types
    from numba.extending import intrinsic
    from numba.np.arrayobj import populate_array

    def _flat(typingctx: Any, array: Any) -> Any:
        if not isinstance(array, types.Array) or array.layout != "C":
            return None
        flat = types.Array(array.dtype, 1, "C")

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            source = context.make_array(sig.args[0])(context, builder, args[0])
            result = context.make_array(flat)(context, builder)
            populate_array(
                result,
                data=source.data,
                shape=[source.nitems],
                strides=[source.itemsize],
                itemsize=source.itemsize,
                meminfo=source.meminfo,
            )
            return result._getvalue()

        return flat(array), codegen

    return intrinsic(_flat)


if _CHECK:
    bare = Lazy(_make_flat)  # under bounds checks nothing is indexed without
else:
    #: A contiguous array as a bare pointer to its first value: ``bare(a)[i]`` has no bounds,
    #: and ``i`` may not be negative, which numba else asks at every access.  The caller
    #: keeps the array.
    bare = Lazy(_make_pointer)


@helper
def mix(key: np.uint64) -> np.uint64:
    """A 64-bit finaliser (splitmix64's), for the open-addressing tables."""
    x = np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@helper
def table_find(keys: Any, values: Any, key: np.uint64) -> int:
    """Value of ``key`` in an open-addressing table, or -1.

    ``keys`` (uint64) and ``values`` (int32, -1 free) have the same power-of-two length
    and at least one free place.
    """
    mask = np.uint64(keys.shape[0] - 1)
    at = mix(key) & mask
    while values[at] >= 0:
        if keys[at] == key:
            return int(values[at])
        at = (at + np.uint64(1)) & mask
    return -1


@native
def table_put(keys: Any, values: Any, key: np.uint64, value: int) -> None:
    """Set ``key`` to ``value`` (>= 0); the caller keeps the table at most half full."""
    mask = np.uint64(keys.shape[0] - 1)
    at = mix(key) & mask
    while values[at] >= 0 and keys[at] != key:
        at = (at + np.uint64(1)) & mask
    keys[at] = key
    values[at] = value


@native
def table_put_all(keys: Any, values: Any, new_keys: Any, new_values: Any) -> None:
    """As :func:`table_put` of each (uint64) key with its (int64) value, in one call."""
    for k in range(new_keys.shape[0]):
        table_put(keys, values, new_keys[k], new_values[k])


def new_table(capacity: int) -> tuple[Any, Any]:
    """An empty table for up to ``capacity`` keys: (keys uint64, values int32)."""
    size = 16
    while size < 2 * capacity + 2:
        size *= 2
    return np.zeros(size, np.uint64), np.full(size, -1, np.int32)
