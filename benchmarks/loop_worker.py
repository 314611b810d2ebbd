"""The harness's worker process, for harness_cost.py: threads begin with a loop of its choice."""

from __future__ import annotations

import ctypes
import pickle
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from mmreplay.hardware import run_loop, run_worker
from mmreplay.hardware.child import pipes
from mmreplay.hardware.runner import RunRequest


@dataclass(frozen=True, slots=True)
class Wanted:
    """A run whose threads begin with ``function`` of a shared object; with ours where empty."""

    request: RunRequest
    library: str
    function: str = ""


def main() -> None:
    """Answer requests until there are no more."""
    requests, answers = pipes()
    server = run_worker.Server()
    ours: Any = run_loop.thread_main
    while True:
        try:
            wanted: Wanted = pickle.load(requests)
        except EOFError:
            return
        library = ctypes.CDLL(wanted.library)  # mapped for both
        entry = ours
        if wanted.function:
            function = getattr(library, wanted.function)
            entry = SimpleNamespace(address=ctypes.cast(function, ctypes.c_void_p).value)
        run_loop.thread_main = entry
        pickle.dump(server.answer(replace(wanted.request)), answers)
        answers.flush()
