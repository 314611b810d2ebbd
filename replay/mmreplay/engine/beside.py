"""Compiling the engine in a process of its own, while this one compiles the planner.

On first use the planner takes 19 s to compile and the engine 10, each one thread's work.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args, get_type_hints

import numpy as np

from mmreplay.address_space.plan import Plan
from mmreplay.engine import simulate
from mmreplay.engine.result import Options
from mmreplay.jit import is_cold

if TYPE_CHECKING:
    import subprocess

_COMPILE: Final = f"from {__name__} import compile_engine; compile_engine()"
_LOOP: Final = "mmreplay.engine.loop.replay"  # what takes long


@contextmanager
def engine_compiled() -> Iterator[None]:
    """While what is inside runs, a child compiles the engine; at the end it is through.

    Nothing happens where the engine is compiled already, where the cache cannot be written, and
    on one CPU.  Of a child that failed the rest is compiled by who needs it.  An
    exception (Ctrl-C) ends the child.
    """
    child = _child()
    if child is None:
        yield
        return
    try:
        yield
        child.wait()  # whoever uses the engine would wait for its lock on the cache anyway
    finally:
        child.kill()
        child.wait()


def _child() -> subprocess.Popen[bytes] | None:
    if not sys.executable or len(os.sched_getaffinity(0)) < 2 or not is_cold(_LOOP):
        return None
    import subprocess

    nowhere = subprocess.DEVNULL
    with suppress(OSError):  # no process may be started: one after the other then
        path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
        return subprocess.Popen(
            [sys.executable, "-c", _COMPILE],
            stdin=nowhere,
            stdout=nowhere,
            stderr=nowhere,
            env={**os.environ, "PYTHONPATH": path},
        )
    return None


def compile_engine() -> None:
    """Compile all that a replay needs, by one of an operation that takes no lock."""
    from mmreplay.locking.loader import load_model, model_names
    from mmreplay.machine.loader import list_machines, load_machine

    model, machine = load_model(model_names()[0]), load_machine(list_machines()[0])
    simulate(_one_operation(), model, machine, Options(cores=1))


def _one_operation() -> Plan:
    """One thread with one operation NONE, of the column types that a planned trace has."""
    columns: dict[str, Any] = {}
    for name, kind in get_type_hints(Plan).items():
        if kind is int:
            columns[name] = 0
            continue
        (dtype,) = get_args(get_args(kind)[1])
        columns[name] = np.zeros(2 if name.endswith("_first") else 1, dtype)
    columns["thread_first"][1] = 1
    columns["thread_loop"][0] = -1
    return Plan(**columns)
