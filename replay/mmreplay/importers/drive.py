"""Event batches through pairing to the tables, whatever was read."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

from mmreplay.importers.output.assemble import Assembler
from mmreplay.importers.pairing import state as ps
from mmreplay.importers.selection import Selection
from mmreplay.jit import native_of

#: Pairing is a sixth of the importers' source, and wanted only compiled.
_pair_rows: Final = native_of("mmreplay.importers.pairing.pair", "pair")
_finish: Final = native_of("mmreplay.importers.pairing.pair", "finish")


def pair_all(
    state: ps.State,
    tables: Assembler,
    batches: Generator[tuple[Any, int], None, None],
    selection: Selection,
) -> None:
    """Pair what ``selection`` wants of ``batches``; ``tables`` takes what comes of it."""
    begun = selection.begin_ns == 0
    for batch, rows in batches:
        before, last, ended = selection.cut(batch, rows) if selection else (0, rows, False)
        at = 0
        while at < before:  # for the state of things; what comes of it is forgotten
            at = _pair_rows(state.arena, state.ops, batch, at, before)
            if at < before:
                tables.forget(state)
                state.grow()
        if not begun and (last > before or ended):
            tables.forget(state)
            begun = True
        _pair(state, tables, batch, at, last)
        if ended:
            batches.close()  # what was read ahead is counted, whenever this comes
            break
    if not begun:
        tables.forget(state)


def _pair(state: ps.State, tables: Assembler, batch: Any, at: int, last: int) -> None:
    while at < last:
        at = _pair_rows(state.arena, state.ops, batch, at, last)
        if at < last:
            tables.take(state)
            state.grow()


def finish_all(state: ps.State, tables: Assembler) -> dict[str, int]:
    """Close what is open and write the rest; returns the time split's counters."""
    slot = 0
    while slot < state.count[ps.C_THREADS]:
        slot = _finish(state.arena, state.ops, slot)
        if slot < state.count[ps.C_THREADS]:
            tables.take(state)
            state.grow()
    return tables.finish(state)
