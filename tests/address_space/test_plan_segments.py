"""The range map against a dictionary of pages."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mmreplay.address_space import segments

STEP = st.tuples(st.booleans(), st.integers(0, 120), st.integers(1, 40), st.integers(0, 99))


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_equal_to_a_dictionary(steps: list[tuple[bool, int, int, int]]) -> None:
    s = segments.make_segments(1, blocks=4, directory=4)
    pages: dict[int, int] = {}
    for store, start, size, value in steps:
        while segments.any_full(s):
            s = segments.grow_segments(s)
        for page in range(start, start + size):
            pages.pop(page, None)
        if store:
            segments.assign(s, 0, start, start + size, value)
            pages.update(dict.fromkeys(range(start, start + size), value))
        else:
            segments.clear(s, 0, start, start + size)
        assert {
            p: segments.get(s, 0, p) for p in range(170) if segments.get(s, 0, p) != -1
        } == pages
