"""Threads that sleep, and nobody recorded what for: perhaps for each other."""

from __future__ import annotations

import re

import pytest
from traces import worker_trace

from mmreplay.predict import api
from mmreplay.predict.prediction import Prediction

SERVICE_NS = (8 * 1_200 + 2 * 1_900) / 10  # of an operation of worker_trace, on average
THINK_NS = 300
SLEEP_NS = 4_000


def predicted(blocked_ns: int, load: str = "both") -> Prediction:
    trace = worker_trace(threads=4, loops=60, think_ns=THINK_NS, blocked_ns=blocked_ns)
    return api.predict(
        trace,
        to_kernel="linux-6.18",
        cores=[4],
        load=load,  # type: ignore[arg-type]
        machine="generic-server",
        seeds=1,
    )


def test_a_gain_without_their_sleep_is_told_beside_the_one_with_it() -> None:
    found = predicted(blocked_ns=SLEEP_NS)
    gain = {row.load: row.speedup or 0 for row in found.rows if row.kernel == "linux-6.18"}
    assert gain["saturated"] > 1.2 * gain["recorded"]  # else there is nothing to be told
    told = re.search(r"never slept; .*\((\d+) % of their time.* it is ([\d.]+)×", found.headline)
    assert told
    asleep = SLEEP_NS / (SLEEP_NS + THINK_NS + SERVICE_NS)
    assert int(told[1]) == pytest.approx(100 * asleep, abs=2)
    assert float(told[2]) == pytest.approx(gain["recorded"], abs=0.01)
    assert any("--dependencies" in note for note in found.notes)


def test_one_load_alone_says_so_in_a_note() -> None:
    found = predicted(blocked_ns=SLEEP_NS, load="saturated")
    assert "never slept" not in found.headline
    assert any("--dependencies" in note for note in found.notes)
    assert not any("--dependencies" in n for n in predicted(SLEEP_NS, load="recorded").notes)


def test_threads_that_hardly_sleep_have_one_answer() -> None:
    found = predicted(blocked_ns=0)
    assert "never slept" not in found.headline
    assert not any("--dependencies" in note for note in found.notes)
