"""What a read(2) of a /proc/PID file goes through; compiled."""

from __future__ import annotations

import numpy as np

from mmreplay.address_space import page_state as pages_
from mmreplay.address_space.plan import PlanOp, Trait
from mmreplay.address_space.plan_fault import MOST_PIECES, pieces
from mmreplay.address_space.vma_state import S_VMAS
from mmreplay.jit import borrowing_helper
from mmreplay.schema import ProcFile

_T_NO_CHANGE = int(Trait.NO_CHANGE)
_T_GATE = int(Trait.GATE_VMA)
_MAPS, _LINES = int(PlanOp.PROC_MAPS), (int(PlanOp.PROC_MAPS), int(PlanOp.PROC_SMAPS))
_ROLLUP, _PAGEMAP = int(PlanOp.PROC_ROLLUP), int(PlanOp.PROC_PAGEMAP)
_SMAPS = int(ProcFile.SMAPS)
#: Bytes of one VMA in maps and numa_maps, and in smaps: 2,000 VMAs of 6.18 take 26 reads of
#: maps and 404 of smaps, of 4,000 bytes each (datasets/lockcounts).
_MAPS_BYTES, _SMAPS_BYTES = 50, 800


@borrowing_helper
def read_proc(rows, i, m, p, w, out, o, space, op, pages):
    """VMAs and pages that the read(2) shows; returns its traits.

    ``pages``: those of its buffer.
    """
    traits = 0
    every = np.int64(m.spaces[space, S_VMAS])
    result = rows[i].result
    out.ops[o].vmas = every
    out.ops[o].first_page = 0
    out.ops[o].last_page = (np.int64(1) << 35) - 1
    out.ops[o].pages = max(pages, 1)
    if result > 0 and op in _LINES:
        size = _SMAPS_BYTES if rows[i].advice == _SMAPS else _MAPS_BYTES
        shown = min(max(result // size, 1), max(every, 1))
        out.ops[o].vmas = shown
        if op != _MAPS:
            total, _ = pages_.total(p, space)
            out.ops[o].pages = total * shown // max(every, 1)
    if op == _ROLLUP:  # one VMA after the other
        every = min(every, np.int64(MOST_PIECES))
        out.ops[o].vmas = every
        out.ops[o].pages, _ = pages_.total(p, space)
        pieces(w, out, every, -2 - space)
    if op == _PAGEMAP:  # 8 bytes a page; 2 MiB of pages at a time
        out.ops[o].pages = max(result >> 3, 1)
        pieces(w, out, (result - 1) >> 12, -2 - space)
    if result == 0:
        traits |= _T_NO_CHANGE  # finds the end
    if w.spaces[space].gate:
        traits |= _T_GATE
    return traits
