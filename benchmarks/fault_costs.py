"""What a fault and a populating call cost, in the loop that performs recorded applications.

    python benchmarks/fault_costs.py [--rounds 9]

Each row of a recording is performed by this loop, calls are called and returned from
(docs/measuring.md), and pages are many: 32,768 in a run.  Interleaved rounds, medians of
medians, and the low quartiles from which a profile takes uncontended costs.  What a populating
call takes beyond a fault is more than what it takes on a page that is there, which
benchmarks/measure_machine.py measures (refill_present_ns): get_user_pages walks the table again
after each fault (mm/gup.c:__get_user_pages@6.18).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "replay"))

import numpy as np

from mmreplay.hardware.child import Child
from mmreplay.hardware.trace_program import (
    ARENA,
    NUMBERS,
    WORDS,
    Do,
    Mapping,
    TraceProgram,
    Word,
)
from mmreplay.hardware.trace_run import TraceRequest

PAGES, PAGE, DONTNEED, POPULATE_READ, POPULATE_WRITE = 32_768, 4096, 4, 22, 23


def program(*passes: tuple[Do, int]) -> TraceProgram:
    """Over all pages, once for each of ``passes``: what is done to each page, and advice."""
    rows = np.zeros((len(passes) * PAGES, WORDS), np.int64)
    for k, (do, advice) in enumerate(passes):
        part = rows[k * PAGES : (k + 1) * PAGES]
        part[:, Word.DO], part[:, Word.A] = do, ARENA + np.arange(PAGES) * PAGE
        part[:, Word.OPERATION] = 1
        if do == Do.CALL:
            part[:, Word.NUMBER] = NUMBERS["madvise"] if advice else NUMBERS["brk"]
            part[:, Word.B], part[:, Word.C] = PAGE, advice
            if not advice:
                part[:, Word.A] = 0
    size = PAGES * PAGE
    return TraceProgram(
        name="faults",
        rows=rows,
        order=np.arange(len(rows)),
        threads=np.array([[0, len(rows), 1]], np.int64),
        tids=[1],
        mappings=[Mapping(ARENA, size, 3, False, -1, 0)],
        files=[],
        span=(ARENA, ARENA + size),
        touched_bytes=size,
        recorded_span_ns=10**9,
    )


def again(pages: int) -> TraceProgram:
    """The same ``pages`` written and dropped in turn: what is allocated was freed just now."""
    one = program((Do.WRITE, 0))
    one.rows[:, Word.A] = ARENA + np.arange(PAGES) % (pages + 1) * PAGE
    drop = one.rows[pages :: pages + 1]
    drop[:, Word.DO], drop[:, Word.NUMBER] = Do.CALL, NUMBERS["madvise"]
    drop[:, Word.A], drop[:, Word.B], drop[:, Word.C] = ARENA, pages * PAGE, DONTNEED
    return one


CASES = {
    "row": program((Do.WRITE, 0), (Do.WRITE, 0)),  # the second time nothing faults
    "zero_page": program((Do.READ, 0)),
    "write": program((Do.WRITE, 0)),
    "write_again": again(512),
    "populate": program((Do.CALL, POPULATE_WRITE)),
    "populate_zero_page": program((Do.CALL, POPULATE_READ)),
    "populate_present": program((Do.WRITE, 0), (Do.CALL, POPULATE_WRITE)),
    "dontneed_empty": program((Do.CALL, DONTNEED)),
}


def measure(rounds: int) -> dict[str, list[float]]:
    """Case -> ns of a row, the median of each round."""
    found: dict[str, list[float]] = {name: [] for name in CASES}
    with Child("mmreplay.hardware.run_worker") as worker:
        for _ in range(rounds):
            for name, case in CASES.items():
                answer = worker.ask(TraceRequest(case))
                assert not answer.problem, answer.problem
                found[name].append(float(np.median(np.diff(answer.done_ns[-PAGES:]))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    low = {}
    for name, values in measure(parser.parse_args().rounds).items():
        low[name], middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        print(f"{name:18} {middle:7.0f} ns  quartiles {low[name]:.0f} {high:.0f}")
    beyond = low["populate"] - low["write"]
    looked = low["populate_zero_page"] - low["zero_page"]
    print(
        f"populate beyond a fault: {beyond:.0f} ns, low quartiles; of the zero page: {looked:.0f}"
    )
    print(f"so much for a page of its own (lru_add_drain): {beyond - looked:.0f} ns")


if __name__ == "__main__":
    main()
