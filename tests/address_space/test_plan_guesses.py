"""Every counter of a plan has words, a line in the documentation, and is shown."""

from __future__ import annotations

from pathlib import Path

from test_plan_rules import WRITE, A, Tape

from mmreplay.address_space.guesses import WORDS, guesses
from mmreplay.address_space.plan_state import Count

PAGE = Path(__file__).parents[2] / "docs" / "address-space.md"
NO_GUESS = {"dependencies"}  # shown as waits


def test_every_counter_has_words_and_a_line() -> None:
    tape = Tape()
    tape.fault(A, WRITE)
    bundle = tape.plan()
    assert set(bundle.counters) - NO_GUESS == set(WORDS)
    assert {kind.name.lower() for kind in Count if kind != Count.N} - NO_GUESS <= set(WORDS)
    text = PAGE.read_text()
    assert [name for name in WORDS if f"`{name}`" not in text] == []
    assert [(count, name) for count, name, _ in guesses(bundle)] == [(1, "unknown_faults")]
