"""This package's bytecode, kept where Python may not keep it.

With ``PYTHONDONTWRITEBYTECODE`` set, as in many containers, Python compiles all source that is
loaded, each time it is: a tenth of a second for an import of a recording.  The package's own
modules then have their bytecode beside its compiled code, in its cache; Python's own rules say
when it is out of date.
"""

from __future__ import annotations

import importlib.machinery
import sys
import threading
from collections.abc import Sequence
from types import CodeType, ModuleType

from mmreplay.resources import cache_base

_PACKAGE = "mmreplay."
_LOCK = threading.RLock()


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        with _LOCK:
            told = sys.pycache_prefix, sys.dont_write_bytecode
            sys.pycache_prefix, sys.dont_write_bytecode = str(cache_base() / "bytecode"), False
            try:
                return super().get_code(fullname)
            finally:
                sys.pycache_prefix, sys.dont_write_bytecode = told


class _Finder:
    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(_PACKAGE):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


def keep() -> None:
    """From now on, where Python may not write bytecode."""
    if sys.dont_write_bytecode and _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
