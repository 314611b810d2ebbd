"""Pages: prose and tables of any width lose nothing and stay within the page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreplay.report import page

WORDS = st.text("abcdefgh0189µ%", min_size=1, max_size=9)
TEXTS = st.lists(WORDS, max_size=12).map(" ".join)


@pytest.fixture(autouse=True)
def _no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


def test_a_page_is_80_columns_wide_where_nothing_says_how_wide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert page.width() == page.prose() == 80
    monkeypatch.setenv("COLUMNS", "200")
    assert (page.width(), page.prose()) == (200, 80)
    monkeypatch.setenv("COLUMNS", "40")
    assert page.width() == page.prose() == 40
    for odd in ("0", "-3", "wide", ""):
        monkeypatch.setenv("COLUMNS", odd)
        assert page.prose() == 80


@given(
    st.integers(30, 130),
    st.lists(st.tuples(WORDS, WORDS, WORDS, TEXTS), min_size=1, max_size=6),
    st.booleans(),
)
def test_tables_fit_the_page_and_hold_every_cell(
    columns: int, rows: list[tuple[str, str, str, str]], flows: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        text = page.table(("name", "count", "", "note"), rows, (0,), 3 if flows else None)
    assert all(len(line) <= columns for line in text.splitlines())
    shown = text.split()
    for row in rows:
        for word in " ".join(row).split():
            assert word in shown


@given(st.integers(30, 130), st.lists(TEXTS, max_size=5), st.sampled_from(["", "lock      ", "  "]))
def test_folded_lines_fit_and_hold_every_word(columns: int, lines: list[str], lead: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        folded = page.fold("\n".join(lead + line for line in lines))
    assert all(len(line) <= min(columns, 80) for line in folded.splitlines())
    assert folded.split() == " ".join(lead + line for line in lines).split()


def test_a_table_that_fits_is_aligned() -> None:
    assert page.table(("op", "count"), [("mmap", "1"), ("munmap", "1,000")], left=(0,)) == (
        "op      count\nmmap        1\nmunmap  1,000"
    )


def test_a_narrow_page_gives_each_row_lines_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "32")
    head = ("cores", "linux-6.1", "linux-6.18", "faster")
    assert page.table(head, [("2", "163 k", "182 k", "1.11×"), ("4", "-", "", "2×")]) == (
        "cores 2\n  linux-6.1 163 k\n  linux-6.18 182 k  faster 1.11×\ncores 4\n  faster 2×"
    )


def test_text_in_a_table_is_wrapped_below_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    rows = [("ok", "what can be recorded on this machine"), ("", "and what to do")]
    assert page.table(None, rows, left=(0,), flow=1) == (
        "ok  what can be recorded on this machine\n    and what to do"
    )
    monkeypatch.setenv("COLUMNS", "32")
    assert page.table(None, rows, left=(0,), flow=1) == (
        "ok  what can be recorded on this\n    machine\n    and what to do"
    )
