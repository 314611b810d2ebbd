"""Compiled functions that are loaded and called without numba.

Of such a function the cache keeps object code, for each list of argument types that it was
called with.  It is put into this process (:mod:`mmreplay.jit.linking`), and ctypes calls it
without the GIL.  Its one entry takes a row of words: what numba's own calling convention has as
arguments, an array as (no owner, no parent, size, itemsize, data, shape, strides).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import sys
import threading
import weakref
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from mmreplay.jit.cache import alone, digest, version_of
from mmreplay.jit.lazy import Lazy
from mmreplay.jit.linking import MOST_RESULTS, link

_RESULTS: Final = ctypes.c_int64 * MOST_RESULTS
_DIGEST_BYTES: Final = 8
_LOCK: Final = threading.Lock()
#: Of /proc/cpuinfo, what tells one kind of processor from another.
_CPU_KEYS: Final = frozenset(
    (
        *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),  # x86
        *("Features", "CPU implementer", "CPU variant", "CPU part"),  # arm64
        *("isa", "uarch", "CPU Family", "Model Name"),  # riscv64, loongarch64
    )
)
_Entry = tuple[int, Callable[[Any, Any], int]]  # how many results, the code


class Native(Lazy):
    """See :func:`mmreplay.jit.loading`; to compiled code it is a helper."""

    def __init__(
        self,
        name: str,
        function: Callable[[], Callable[..., Any]],
        make: Callable[[], Any],
        folder: Callable[[], str],
    ) -> None:
        super().__init__(make)
        self._name = name
        self._function = function
        self._folder = folder
        self._entries: dict[tuple[Any, ...], _Entry] = {}

    def __call__(self, *args: Any) -> Any:
        words = array("q")
        kinds: list[Any] = []
        for argument in args:
            _spread(argument, words, kinds)
        key = tuple(kinds)
        entry = self._entries.get(key)
        if entry is None:
            with _LOCK:
                entry = self._entries.setdefault(key, self._load(key, args))
        count, code = entry
        results = _RESULTS()
        if code(words.buffer_info()[0], results):
            raise RuntimeError(f"{self._name} failed")
        if count == 1:
            return results[0]
        return tuple(results[:count]) if count else None

    def _load(self, key: tuple[Any, ...], args: tuple[Any, ...]) -> _Entry:
        folder = self._folder()
        told = repr((self._name, _machine(), [str(kind) for kind in key]))
        file = Path(folder) / f"{self._name}-{digest(told.encode()).hex()}.o"
        found = _read(file) if folder else None
        if found is None:
            from mmreplay.jit.compiler import native_code

            with alone(folder):
                found = _read(file) if folder else None  # as another process left it
                if found is None:
                    found = native_code(self._function(), args)
                    if folder:
                        _write(file, *found)
        return found[0], link(found[1])


class _Seen(NamedTuple):
    """What was found of a tuple of arrays."""

    arrays: list[weakref.ref[Any]]
    words: array[int]
    kinds: list[Any]

    def is_of(self, argument: tuple[Any, ...]) -> bool:
        """Whether ``argument`` has the same arrays, and not only the place of a former tuple."""
        if len(argument) != len(self.arrays):
            return False
        return all(seen() is one for seen, one in zip(self.arrays, argument, strict=True))


#: By id, tuples that were passed: a batch or a block comes again and again, and looking at its
#: arrays takes longer than all the rest of a call.
_SEEN: Final[dict[int, _Seen]] = {}
_MOST_SEEN: Final = 64


def _spread(argument: Any, words: array[int], kinds: list[Any]) -> None:
    """Append the words of an argument, and what its type is."""
    if isinstance(argument, np.ndarray):
        plain = argument.view(np.ndarray)  # looks into an array of records are slow
        flags = plain.flags
        if not flags.c_contiguous:
            raise TypeError("compiled code takes C-contiguous arrays")
        at = _address(plain, flags.writeable)
        words.extend((0, 0, plain.size, plain.itemsize, at, *plain.shape, *plain.strides))
        kinds += (plain.dtype, plain.ndim, flags.writeable)
    elif isinstance(argument, tuple):
        seen = _SEEN.get(id(argument))
        if seen is None or not seen.is_of(argument):
            seen = _Seen([], array("q"), [type(argument), len(argument)])
            for one in argument:
                _spread(one, seen.words, seen.kinds)
            if all(isinstance(one, np.ndarray) for one in argument):
                seen.arrays.extend(map(weakref.ref, argument))
                if len(_SEEN) >= _MOST_SEEN:
                    _SEEN.clear()
                _SEEN[id(argument)] = seen
        words.extend(seen.words)
        kinds += seen.kinds
    elif isinstance(argument, np.uint64):
        words.append(int(argument.astype(np.int64)))
        kinds.append(True)
    elif isinstance(argument, (int, np.integer, np.bool_)):
        words.append(int(argument))
        kinds.append(False)
    else:
        raise TypeError(f"compiled code takes no {type(argument).__name__}")


def _address(values: np.ndarray[Any, Any], writeable: bool) -> int:
    if writeable and values.size:
        return ctypes.addressof(ctypes.c_char.from_buffer(values.data))
    return int(values.ctypes.data)  # three times as long; more with records


def _read(file: Path) -> tuple[int, bytes] | None:
    """How many results, and object code that is whole; None where there is none."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    kept = content[_DIGEST_BYTES:]
    if digest(kept) != content[:_DIGEST_BYTES]:
        return None
    return kept[0], kept[1:]


def _write(file: Path, count: int, code: bytes) -> None:
    import tempfile

    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "wb") as out:
            kept = bytes([count]) + code
            out.write(digest(kept) + kept)
        Path(name).replace(file)


@functools.cache
def _machine() -> tuple[str, ...]:
    """What code is compiled for: LLVM would tell, but loading it takes longer than all else."""
    told = [version_of("llvmlite"), platform.machine(), sys.platform]
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as processors:  # noqa: PTH123
        for line in processors:
            key, _, value = line.partition(":")
            if not value:
                return tuple(told)  # the first one's end
            if key.strip() in _CPU_KEYS:
                told.append(value.strip())
    import llvmlite.binding as llvm

    return *told, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
