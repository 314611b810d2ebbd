"""Lists of counts as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreplay.errors import UserError
from mmreplay.predict.counts import LARGEST, parse_counts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8", (8,)),
        ("1,2,4,8", (1, 2, 4, 8)),
        (" 8 , 1, 8", (1, 8)),
        ("1-5", (1, 2, 3, 4, 5)),
        ("2-9:3", (2, 5, 8)),
        ("1-128:x2", (1, 2, 4, 8, 16, 32, 64, 128)),
        ("1-100:x2", (1, 2, 4, 8, 16, 32, 64, 100)),
        ("3-3:x2", (3,)),
        ("1-4:x2,6", (1, 2, 4, 6)),
    ],
)
def test_reads(text: str, expected: tuple[int, ...]) -> None:
    assert parse_counts(text, "--cores", "cores") == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("1,,2", "not a list"),
        ("0", "0 cores"),
        ("-1", "-1 cores"),
        ("1000000000", "1000000000 cores"),
        ("8-2", "backwards"),
        ("2-8:x1", "never grows"),
        ("2-8:0", "never grows"),
        ("two", "neither"),
        ("1.5", "neither"),
        ("1-8192", "more than"),
    ],
)
def test_refuses(text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        parse_counts(text, "--cores", "cores")
    line = error.value.line()
    assert says in line
    assert "--cores" in line
    assert "\n" not in line


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, LARGEST), min_size=1, max_size=20))
def test_any_list_of_numbers_comes_back_sorted(values: list[int]) -> None:
    assert parse_counts(",".join(map(str, values)), "--cores", "cores") == tuple(sorted({*values}))
