"""Prints how many operations per second the VMA map alone replays, on a mixed stream.

Run: ``python benchmarks/vma_speed.py [VMAS]``.  Per 100 operations: 70 first or repeated faults, 10
mappings, 10 unmappings, 6 mprotect and 4 madvise calls, spread over VMAS (default 100000) mappings.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from mmreplay.address_space.rules import load_rules
from mmreplay.address_space.vma_map import apply, fault
from mmreplay.address_space.vma_state import NONE, Num, new_state
from mmreplay.jit import njit

MMAP, MUNMAP, MPROTECT, MADVISE, FAULT = 3, 4, 5, 6, 1
_NONE = NONE


@njit
def replay(state, rules, kind, address, length, prot, flags):  # type: ignore[no-untyped-def]
    """One compiled pass; returns the operations done before room ran out."""
    for i in range(len(kind)):
        if kind[i] == FAULT:
            fault(state, rules, 0, address[i], 1, 0)
        else:
            hint = address[i] if kind[i] == MMAP else _NONE
            status = apply(
                state, rules, 0, kind[i], address[i], length[i], hint, _NONE, prot[i], flags[i],
                _NONE, 0, _NONE,
            )  # fmt: skip
            if status == 1:
                return i
    return len(kind)


def main() -> None:
    vmas = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    ops = 2_000_000
    rng = np.random.default_rng(1)
    base = 1 << 40
    kind = rng.choice(
        [FAULT, MMAP, MUNMAP, MPROTECT, MADVISE], ops, p=[0.70, 0.10, 0.10, 0.06, 0.04]
    )
    place = rng.integers(0, vmas, ops)
    # A mapping of 4 pages with a hole above it; unmaps and protections of one page split it.
    page = rng.integers(0, 4, ops)
    whole = kind == MMAP
    address = base + (place * 5 + np.where(whole, 0, page)) * 4096
    length = np.where(whole, 4 * 4096, 4096)
    prot = np.where(whole, 3, np.where(rng.random(ops) < 0.5, 1, 3))
    flags = np.where(whole, 0x32, np.where(rng.random(ops) < 0.5, 1, 0))
    rules = load_rules("linux-6.18").vector
    state = new_state(1, vmas * 4)
    fill = np.arange(vmas, dtype=np.int64)
    begin = time.perf_counter()
    same = np.full(vmas, 3), base + fill * 5 * 4096, np.full(vmas, 4 * 4096)
    replay(state, rules, *(c[:1] for c in same), np.full(1, 3), np.full(1, 0x32))
    print(f"compiled or loaded in {time.perf_counter() - begin:.1f} s")
    replay(state, rules, *same, np.full(vmas, 3), np.full(vmas, 0x32))
    begin = time.perf_counter()
    done = replay(state, rules, kind, address, length, prot, flags)
    seconds = time.perf_counter() - begin
    print(f"{done} operations in {seconds:.2f} s: {done / seconds / 1e6:.2f} M ops/s")
    print(f"{state.space_vmas[0]} VMAs at the end, {state.numbers[Num.NEXT_UID]} made")


if __name__ == "__main__":
    main()
