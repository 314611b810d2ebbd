"""Items made on a thread beside, while the ones before are used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

_Item = TypeVar("_Item")
_END = object()


class Ahead(Generic[_Item]):
    """Iterates over ``source``, which begins at once on a thread of its own.

    Parameters
    ----------
    source:
        May use the memory of an item again after ``most`` further ones: at most that many
        are made and not yet done with, the one in use included.

    What ``source`` raises is raised where its next item would have come.  :meth:`close` stops
    the thread; nothing that ``source`` uses may be taken from it before.
    """

    def __init__(self, source: Iterator[_Item], most: int) -> None:
        self._source = source
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._free = threading.Semaphore(most)
        self._stopped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._make, name="mmreplay-ahead", daemon=True)
        self._thread.start()

    def _make(self) -> None:
        try:
            while True:
                self._free.acquire()
                if self._stopped:
                    break
                self._ready.put(next(self._source))
        except StopIteration:
            pass
        except BaseException as error:
            self._error = error
        self._ready.put(_END)

    def __iter__(self) -> Iterator[_Item]:
        while (item := self._ready.get()) is not _END:
            yield item
            self._free.release()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop, as soon as the item that is being made is there."""
        self._stopped = True
        self._free.release()
        self._thread.join()
