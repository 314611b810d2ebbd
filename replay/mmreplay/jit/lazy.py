"""Something that numba makes, made when it is first wanted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


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
