"""What unmapping and touching a page cost, after nothing else and after much else was touched.

    python benchmarks/unmap_costs.py [--rounds 5]

One thread maps, touches and unmaps pieces in turn, in the loop that performs recorded
applications; *after* so many MiB of pieces that were touched later.  What was touched long ago has
its struct pages and page tables in no cache (the trait ``cold`` of what is freed,
``address_space/cold_pages.py``).  Interleaved rounds, medians of medians.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "replay"))

import numpy as np

from mmreplay.hardware.child import Child
from mmreplay.hardware.trace_program import ARENA, NUMBERS, WORDS, Do, TraceProgram, Word
from mmreplay.hardware.trace_run import TraceRequest

PAGE, PAGES = 4096, 30_000
PIECES, AFTER = (16, 64, 256, 1024, 4096), (0, 1024, 4096, 16384)  # pages
FIXED_PRIVATE_ANONYMOUS = 0x32


def program(piece: int, after: int) -> TraceProgram:
    """Pieces of so many pages; the oldest is unmapped when ``after`` pages are younger."""
    rows: list[list[int]] = []
    place, span = 0, 4 * (piece + after)
    mapped: list[int] = []
    for _ in range(max(6, PAGES // piece) + after // piece):
        start = ARENA + place % span * PAGE
        place += piece
        size = piece * PAGE
        rows.append([Do.CALL, NUMBERS["mmap"], start, size, 3, FIXED_PRIVATE_ANONYMOUS, 0, -1])
        rows += [[Do.WRITE, 0, start + k * PAGE] for k in range(piece)]
        mapped.append(start)
        if len(mapped) * piece > after:
            rows.append([Do.CALL, NUMBERS["munmap"], mapped.pop(0), size])
    table = np.zeros((len(rows), WORDS), np.int64)
    for k, row in enumerate(rows):
        table[k, : len(row)] = row
    table[:, Word.OPERATION] = 1
    size = (span + piece) * PAGE
    return TraceProgram(
        name="unmaps",
        rows=table,
        order=np.arange(len(table)),
        threads=np.array([[0, len(table), 1]], np.int64),
        tids=[1],
        mappings=[],
        files=[],
        span=(ARENA, ARENA + size),
        touched_bytes=size,
        recorded_span_ns=10**9,
    )


def measure(rounds: int) -> dict[tuple[int, int], list[tuple[float, float]]]:
    """(pages of a piece, pages touched since) -> ns of unmapping and touching a page, by round."""
    cases = {(p, a): program(p, a) for p in PIECES for a in AFTER if a == 0 or a >= p}
    found: dict[tuple[int, int], list[tuple[float, float]]] = {key: [] for key in cases}
    with Child("mmreplay.hardware.run_worker") as worker:
        for _ in range(rounds):
            for (piece, after), case in cases.items():
                answer = worker.ask(TraceRequest(case))
                assert not answer.problem, answer.problem
                took = np.diff(answer.done_ns, prepend=0)
                unmaps = case.rows[:, Word.NUMBER] == NUMBERS["munmap"]
                touches = case.rows[:, Word.DO] == Do.WRITE
                touches[: len(touches) // 3] = False
                page = float(np.median(took[unmaps])) / piece
                found[piece, after].append((page, float(np.median(took[touches]))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    found = measure(parser.parse_args().rounds)
    for k, what in enumerate(("unmapping", "touching")):
        print(f"{what} a page, ns; after MiB      " + "".join(f"{a >> 8:8}" for a in AFTER))
        for piece in PIECES:
            row = [np.median(found.get((piece, a), [[np.nan] * 2]), axis=0)[k] for a in AFTER]
            print(f"pieces of {piece:5} pages           " + "".join(f"{v:8.0f}" for v in row))


if __name__ == "__main__":
    main()
